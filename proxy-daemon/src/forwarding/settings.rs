//! Which settings reach a datapath as they are?

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

/// What only datapaths of netfilter need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Netfilter {
    /// The mark that asks for masquerading. Spec: SRC-10.
    pub masquerade_bit: MarkBit,
    /// Whether packets of endpoints that conntrack calls INVALID must be dropped. Spec: CT-7.
    pub drop_invalid: bool,
}

/// How much kernel memory the clients of ServicePorts with session affinity may take in one family, in a
/// mode that sets it aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AffinityLimit {
    /// For all ServicePorts together. Unit: KiB.
    pub total: usize,
    /// For one backend of a ServicePort that has one, of one that has two, and so on; the last is for all
    /// that have more. Unit: KiB.
    pub per_backend: &'static [usize],
}

impl AffinityLimit {
    /// For a ServicePort with so many backends. Unit: KiB.
    pub fn cost(self, n_backends: usize) -> usize {
        let known = self.per_backend.get(n_backends.saturating_sub(1));
        let each = known.or(self.per_backend.last()).copied();
        n_backends.saturating_mul(each.unwrap_or_default())
    }
}

/// A network interface's name, or the beginning of one.
///
/// Unit: 1 to 15 bytes, no slash and no white space.
/// Source: `dev_valid_name()` and `IFNAMSIZ` in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct InterfaceName(Arc<str>);

impl InterfaceName {
    /// The name, or `None` if no interface can have it.
    pub fn new(name: &str) -> Option<Self> {
        let fits = (1..=15).contains(&name.len());
        let clean = !name
            .bytes()
            .any(|b| b == b'/' || b == b':' || b == 0 || b.is_ascii_whitespace());
        (fits && clean && name != "." && name != "..").then(|| Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// One bit of the packet mark.
///
/// Unit: bit number, 0 to 31. Default 14, the mark 0x4000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct MarkBit(u8);

impl MarkBit {
    /// kube-proxy's default.
    pub const DEFAULT: Self = Self(14);

    /// The bit with this number; `None` above 31.
    pub const fn new(bit: u8) -> Option<Self> {
        if bit < 32 { Some(Self(bit)) } else { None }
    }

    /// The mark with just this bit set.
    pub const fn mask(self) -> u32 {
        1 << self.0
    }

    /// The bit's number.
    pub const fn bit(self) -> u8 {
        self.0
    }
}
