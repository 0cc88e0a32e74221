//! Which decisions do all netfilter datapaths share?

use crate::forwarding::{BackendSet, Changes, Globals, Route};
use crate::net::Family;

/// For which source classes the source address becomes this node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Masquerade {
    /// None.
    Never,
    /// All but POD.
    UnlessPod,
    /// All.
    Always,
}

/// The set of backends and masquerading for POD, HOST and EXTN, if one rule can serve all three.
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

/// Whether these globals give the same rules; elements of sets may differ.
pub(crate) fn have_same_rules<F: Family>(one: &Globals<F>, other: &Globals<F>) -> bool {
    let Globals {
        detector,
        local_addresses: _,
        node_port_addresses: _,
        service_cidrs: _,
        netfilter,
    } = other;
    one.detector == *detector && one.netfilter == *netfilter
}

/// Whether these changes, which end in `now`, change nothing in netfilter.
pub(crate) fn is_nothing<F: Family>(changes: &Changes<F>, now: &Globals<F>) -> bool {
    let Changes {
        globals,
        spared_added,
        spared_removed,
        service_ports,
    } = changes;
    // The node's own addresses do not count: the kernel knows them (`fib`, `addrtype`).
    let is_same = |old: &Globals<F>| {
        have_same_rules(old, now)
            && old.node_port_addresses == now.node_port_addresses
            && old.service_cidrs == now.service_cidrs
    };
    globals.as_ref().is_none_or(is_same)
        && spared_added.is_empty()
        && spared_removed.is_empty()
        && service_ports.is_empty()
}
