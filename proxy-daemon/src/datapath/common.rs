//! What do the rules of all netfilter datapaths have in common?

use crate::forwarding::{BackendSet, Globals, Route};
use crate::net::Family;

/// Whose source becomes this node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Masquerade {
    /// Nobody's.
    Never,
    /// All but POD's.
    UnlessPod,
    /// Everybody's.
    Always,
}

/// Where POD, HOST and EXTN go if one rule can say it: all to the same set of backends.
pub(crate) fn common_forward(routes: [Route; 3]) -> Option<(BackendSet, Masquerade)> {
    let forward = |route| match route {
        Route::Forward { to, masquerade } => Some((to, masquerade)),
        Route::Reject | Route::Drop => None,
    };
    let [pod, host, extn] = routes.map(forward);
    let ((to, pod), (of_host, host), (of_extn, extn)) = (pod?, host?, extn?);
    if to != of_host || to != of_extn {
        return None;
    }
    let masquerade = match (pod, host, extn) {
        (false, false, false) => Masquerade::Never,
        (false, true, true) => Masquerade::UnlessPod,
        (true, true, true) => Masquerade::Always,
        _ => return None,
    };
    Some((to, masquerade))
}

/// Whether these globals differ by elements of sets at most, and not by rules.
pub(crate) fn have_same_rules<F: Family>(one: &Globals<F>, other: &Globals<F>) -> bool {
    let Globals {
        detector,
        masquerade_bit,
        node_port_addresses: _,
        service_cidrs: _,
        spared: _,
        drop_invalid,
    } = other;
    one.detector == *detector
        && one.masquerade_bit == *masquerade_bit
        && one.drop_invalid == *drop_invalid
}
