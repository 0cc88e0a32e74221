//! What of the cluster is handed from the store to `compile`?

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{EndpointSlice, Service, ServiceName};

/// One Service as it is now: its object, if it exists, and its slices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceInput {
    /// The Service; `None` if it is not there, or is one that we do not serve.
    pub service: Option<Arc<Service>>,
    /// Its EndpointSlices, by name.
    pub slices: Vec<Arc<EndpointSlice>>,
}

/// Services as they are now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Services {
    /// All that there are.
    All(BTreeMap<ServiceName, ServiceInput>),
    /// Those of which the object or a slice changed.
    Changed(BTreeMap<ServiceName, ServiceInput>),
}
