//! Where does each kind live on the API server, and which of its objects do we ask for?
//!
//! Spec: SVC-1, EPS-1, NODE-1, API-3.

use std::fmt::Write as _;

use crate::model::from_k8s::ObjectKind;

/// How many objects a page of a list has.
const PAGE: u32 = 500;

/// A collection on the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resource {
    /// The kind of its objects.
    pub(super) kind: ObjectKind,
    /// Its paths, the newest version of the API first.
    paths: &'static [&'static str],
    /// Which of them is in use.
    version: usize,
    /// Its selectors, encoded.
    selectors: String,
    /// The resource as RBAC rules name it, for a message.
    pub(super) plural: &'static str,
}

impl Resource {
    /// The collection of a kind, as the Node of this name needs it.
    pub(super) fn of(kind: ObjectKind, node: &str) -> Self {
        let (paths, plural): (&[_], _) = match kind {
            ObjectKind::Service => (&["/api/v1/services"], "services"),
            ObjectKind::EndpointSlice => (
                &["/apis/discovery.k8s.io/v1/endpointslices"],
                "endpointslices.discovery.k8s.io",
            ),
            ObjectKind::Node => (&["/api/v1/nodes"], "nodes"),
            ObjectKind::ServiceCidr => (
                &[
                    "/apis/networking.k8s.io/v1/servicecidrs",
                    "/apis/networking.k8s.io/v1beta1/servicecidrs",
                ],
                "servicecidrs.networking.k8s.io",
            ),
        };
        let selectors = match kind {
            ObjectKind::Service => format!(
                "labelSelector={}&fieldSelector={}&",
                encode("!service.kubernetes.io/service-proxy-name"),
                encode("spec.clusterIP!=None")
            ),
            ObjectKind::EndpointSlice => {
                let selector = encode("!service.kubernetes.io/headless");
                format!("labelSelector={selector}&")
            }
            ObjectKind::Node => format!(
                "fieldSelector={}&",
                encode(&format!("metadata.name={node}"))
            ),
            ObjectKind::ServiceCidr => String::new(),
        };
        Self {
            kind,
            paths,
            version: 0,
            selectors,
            plural,
        }
    }

    /// Switches to the next older version of the API; `false` if it was the oldest, and back to the newest.
    pub(super) fn older_version(&mut self) -> bool {
        self.version = (self.version + 1) % self.paths.len();
        self.version != 0
    }

    fn url(&self, query: std::fmt::Arguments<'_>) -> String {
        let path = self.paths.get(self.version).copied().unwrap_or_default();
        format!("{path}?{}{query}", self.selectors)
    }

    /// One page of a list; without a limit where pages have failed.
    pub(super) fn list(&self, continue_token: Option<&str>, paged: bool) -> String {
        let mut url = self.url(format_args!(""));
        if paged {
            write!(url, "limit={PAGE}&").unwrap_or_default();
        }
        if let Some(token) = continue_token {
            write!(url, "continue={}&", encode(token)).unwrap_or_default();
        }
        url.pop();
        url
    }

    /// The smallest list: its version is that of the server's newest state.
    ///
    /// Source: "Kubernetes API Concepts": a list without a resourceVersion is consistent.
    pub(super) fn newest(&self) -> String {
        self.url(format_args!("limit=1"))
    }

    /// A watch from a version on.
    pub(super) fn watch(&self, version: &str, seconds: u64) -> String {
        self.url(format_args!(
            "watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={}",
            encode(version)
        ))
    }

    /// A watch that begins with every object there is.
    ///
    /// Source: KEP-3157, streaming lists.
    pub(super) fn streaming_list(&self, seconds: u64) -> String {
        self.url(format_args!(
            "watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}\
             &sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
        ))
    }
}

/// Percent-encodes everything that is not unreserved.
///
/// Source: RFC 3986, section 2.3.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").unwrap_or_default();
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn svc_1_both_selectors_are_on_list_and_watch() {
        let services = Resource::of(ObjectKind::Service, "n");
        let selectors = "labelSelector=%21service.kubernetes.io%2Fservice-proxy-name\
                         &fieldSelector=spec.clusterIP%21%3DNone&";
        for url in [
            services.list(None, true),
            services.watch("1", 300),
            services.streaming_list(300),
        ] {
            assert!(
                url.starts_with(&format!("/api/v1/services?{selectors}")),
                "{url}"
            );
        }
        assert!(
            services
                .list(Some("a+b=="), true)
                .ends_with("limit=500&continue=a%2Bb%3D%3D")
        );
        assert!(services.list(None, false).ends_with("%3DNone"));
    }

    #[test]
    fn eps_1_slices_have_a_label_selector_and_no_field_selector() {
        let url = Resource::of(ObjectKind::EndpointSlice, "n").list(None, true);
        assert_eq!(
            url,
            "/apis/discovery.k8s.io/v1/endpointslices\
             ?labelSelector=%21service.kubernetes.io%2Fheadless&limit=500"
        );
    }

    #[test]
    fn node_1_only_our_node_is_asked_for() {
        let url = Resource::of(ObjectKind::Node, "n1.example").watch("7", 300);
        assert_eq!(
            url,
            "/api/v1/nodes?fieldSelector=metadata.name%3Dn1.example&watch=true\
             &allowWatchBookmarks=true&timeoutSeconds=300&resourceVersion=7"
        );
    }

    #[test]
    fn rej_7_service_cidrs_exist_in_two_versions() {
        let mut cidrs = Resource::of(ObjectKind::ServiceCidr, "n");
        assert_eq!(
            cidrs.list(None, true),
            "/apis/networking.k8s.io/v1/servicecidrs?limit=500"
        );
        assert!(cidrs.older_version());
        assert!(cidrs.list(None, true).contains("/v1beta1/"));
        assert!(!cidrs.older_version());
        assert!(!Resource::of(ObjectKind::Service, "n").older_version());
    }
}
