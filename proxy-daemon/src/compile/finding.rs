//! Which findings does compiling report to the operator?

use ipnet::IpNet;

use crate::forwarding::ServicePortId;
use crate::model::{Diagnostic, ServiceName};
use crate::net::IpFamily;

/// A request of an object that is not fulfilled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// Another ServicePort has a frontend. Spec: SVC-14.
    FrontendLost {
        /// The frontend.
        frontend: String,
        /// The ServicePort that does not get it.
        loser: ServicePortId,
        /// The ServicePort that has it.
        winner: ServicePortId,
    },
    /// Further frontends of a Service belong to others. Spec: SVC-14.
    MoreFrontendsLost {
        /// The Service.
        service: ServiceName,
        /// The family that the frontends are of.
        family: IpFamily,
        /// The number of frontends.
        n: usize,
    },
    /// A Service has session affinity for some of its ports only, or for none.
    AffinityOverLimit {
        /// The Service.
        service: ServiceName,
        /// The family.
        family: IpFamily,
        /// The number of ports without affinity.
        n: usize,
    },
    /// A ServiceCIDR holds a network of others. Spec: REJ-6.
    CidrHolds {
        /// The ServiceCIDR.
        cidr: IpNet,
        /// The other network.
        other: IpNet,
    },
    /// A ServiceCIDR lies in a network of others. Spec: REJ-6.
    CidrLiesIn {
        /// The ServiceCIDR.
        cidr: IpNet,
        /// The other network.
        other: IpNet,
    },
}

impl Finding {
    /// As text.
    pub fn diagnostic(&self) -> Diagnostic {
        let (object, field, message) = match self {
            Self::FrontendLost {
                frontend,
                loser,
                winner,
            } => (
                format!("Service {loser}"),
                "",
                format!(
                    "{frontend} belongs to {winner}; it is not served for this Service (SVC-14)"
                ),
            ),
            Self::MoreFrontendsLost { service, family, n } => (
                format!("Service {service}"),
                "",
                format!(
                    "{n} more of its {family} frontends belong to others and are not served for this \
                     Service (SVC-14)"
                ),
            ),
            Self::AffinityOverLimit { service, family, n } => (
                format!("Service {service}"),
                "spec.sessionAffinity",
                format!(
                    "session affinity is disabled for {n} of its {family} ports: the memory limit of this \
                     mode is reached"
                ),
            ),
            Self::CidrHolds { cidr, other } => (
                format!("ServiceCIDR {cidr}"),
                "spec.cidrs",
                format!(
                    "it holds {other}, which pods, this node's network or multicast use; addresses there \
                     are not dropped as unallocated (REJ-6)"
                ),
            ),
            Self::CidrLiesIn { cidr, other } => (
                format!("ServiceCIDR {cidr}"),
                "spec.cidrs",
                format!(
                    "it lies in {other}, which pods or this node's network use; addresses of this \
                     ServiceCIDR that neither a Service, an endpoint nor this node has are dropped (REJ-6)"
                ),
            ),
        };
        Diagnostic {
            object,
            field: field.to_owned(),
            message,
        }
    }
}
