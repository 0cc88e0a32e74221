//! What are our chains and sets called?
//!
//! Invariants: every name begins with the prefix by which we know our own; a name is a function of what
//! it names, so that it outlives restarts; it fits in 28 characters (chains) or 31 (sets).

use sha2::{Digest as _, Sha256};

use crate::net::{Family, IpFamily};

/// The prefix of our chains' names, in every table.
pub(crate) const CHAIN_PREFIX: &str = "PROXYD-";

/// Where the first packets of flows go from nat PREROUTING and OUTPUT.
pub(crate) const SERVICES: &str = "PROXYD-SERVICES";
/// The root of the tree of VIPs.
pub(crate) const VIPS: &str = "PROXYD-VIPS";
/// The root of the tree of NodePorts.
pub(crate) const NODE_PORTS: &str = "PROXYD-NODE-PORTS";
/// Where the first packets of flows go from nat POSTROUTING.
pub(crate) const POSTROUTING: &str = "PROXYD-POSTROUTING";
/// Gives marked flows this node's address.
pub(crate) const MASQUERADE: &str = "PROXYD-MASQUERADE";
/// What filter INPUT does with packets that were not translated.
pub(crate) const INPUT: &str = "PROXYD-INPUT";
/// What filter FORWARD does with packets that were not translated.
pub(crate) const FORWARD: &str = "PROXYD-FORWARD";
/// What filter OUTPUT does with packets that were not translated.
pub(crate) const OUTPUT: &str = "PROXYD-OUTPUT";
/// Packets to VIPs that were not translated.
pub(crate) const UNSERVED: &str = "PROXYD-UNSERVED";
/// Packets to NodePorts that were not translated.
pub(crate) const UNSERVED_NODE: &str = "PROXYD-UNSERVED-NODE";
/// Packets to ClusterIPs and their networks that were not translated.
pub(crate) const UNKNOWN: &str = "PROXYD-UNKNOWN";
/// Rejects with port-unreachable.
pub(crate) const REFUSE: &str = "PROXYD-REFUSE";

/// The prefix of a family's set names: sets of both families share one namespace.
pub(crate) const fn set_prefix(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "PROXYD4-",
        IpFamily::V6 => "PROXYD6-",
    }
}

/// The chain that `kind` and a hash of `parts` name. Unit of `kind`: at most 4 characters.
pub(crate) fn chain(kind: &str, parts: &[&str]) -> String {
    format!("{CHAIN_PREFIX}{kind}-{}", hash(parts))
}

/// The affinity set of a backend.
pub(crate) fn affinity_set<F: Family>(parts: &[&str]) -> String {
    format!("{}A-{}", set_prefix(F::FAMILY), hash(parts))
}

/// 80 bits of SHA-256: nobody can create a Service whose chain names collide with another's.
fn hash(parts: &[&str]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut sha = Sha256::new();
    for part in parts {
        sha.update(part.as_bytes());
        sha.update([0]);
    }
    let bits = sha
        .finalize()
        .iter()
        .take(10)
        .fold(0_u128, |bits, byte| bits << 8 | u128::from(*byte));
    (0..16)
        .rev()
        .filter_map(|digit| usize::try_from(bits >> (digit * 5) & 31).ok())
        .filter_map(|digit| ALPHABET.get(digit))
        .map(|letter| char::from(*letter))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{V4, V6};

    #[test]
    fn names_fit_and_differ() {
        let names = [
            chain("cCdX", &["a", "b"]),
            chain("cCdX", &["ab", ""]),
            chain("C", &["a", "b"]),
        ];
        assert!(names.iter().all(|name| name.len() <= 28));
        assert!(names[0] != names[1] && names[0] != names[2]);
        // XT_EXTENSION_MAXNAMELEN is 29, IPSET_MAXNAMELEN 32, each with a final zero.
        assert!(affinity_set::<V6>(&["a"]).len() <= 31);
        assert_ne!(affinity_set::<V4>(&["a"]), affinity_set::<V6>(&["a"]));
        assert_eq!(hash(&[]), "4OYMIQUY7QOBJGX3");
    }
}
