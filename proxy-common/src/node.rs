//! What do the programs know of this node?

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Address, assert_layout};

/// What one family needs of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Settings<const WORDS: usize> {
    /// The pods' network, if the detector is one.
    pub pod_network: Address<WORDS>,
    /// Its mask.
    pub pod_mask: Address<WORDS>,
    /// How sources are told to be pods.
    pub detector: Detector,
    /// The mark by which others ask for masquerading; zero if it is not heeded.
    pub masquerade_mark: u32,
    /// The lowest port for masqueraded flows. Byte order: the host's.
    pub first_port: u16,
    /// How many ports there are from it on. Byte order: the host's.
    pub n_ports: u16,
    /// Whether the kernel knows `BPF_F_IPV6` (Linux 6.16): 0 or 1.
    pub has_ipv6_checksums: u32,
}

assert_layout!(Settings<1>, 24, pod_mask: 4, detector: 8, masquerade_mark: 12, first_port: 16, n_ports: 18, has_ipv6_checksums: 20);
assert_layout!(Settings<4>, 48, pod_mask: 16, detector: 32, masquerade_mark: 36, first_port: 40, n_ports: 42, has_ipv6_checksums: 44);

impl<const WORDS: usize> Settings<WORDS> {
    /// What holds before anything was configured: nothing counts as a pod, nothing can be masqueraded.
    pub const EMPTY: Self = Self {
        pod_network: Address::UNSPECIFIED,
        pod_mask: Address::UNSPECIFIED,
        detector: Detector::NONE,
        masquerade_mark: 0,
        first_port: 0,
        n_ports: 0,
        has_ipv6_checksums: 0,
    };
}

/// How sources are told to be pods (DL-1 to DL-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Detector(pub u32);

impl Detector {
    /// They are not.
    pub const NONE: Self = Self(0);
    /// By [`Settings::pod_network`].
    pub const NETWORK: Self = Self(1);
    /// By [`InterfaceFlags::POD`] of the interface that they enter by.
    pub const INTERFACE: Self = Self(2);
}

/// What is known of an interface, by its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Interface {
    /// What it is for.
    pub flags: InterfaceFlags,
    /// How long its link-layer header is: 14, or 0 where there is none. Unit: bytes.
    pub l2_length: u16,
    /// Its link-layer address.
    pub mac: [u8; 6],
    /// Zero.
    pub reserved: u16,
    /// This node's address on it, unspecified if there is none.
    pub source_v4: Address<1>,
    /// The same for IPv6.
    pub source_v6: Address<4>,
}

assert_layout!(Interface, 32, l2_length: 2, mac: 4, source_v4: 12, source_v6: 16);

/// What an interface is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct InterfaceFlags(pub u16);

impl InterfaceFlags {
    /// It is known.
    pub const KNOWN: Self = Self(1);
    /// What enters by it comes from a pod, if the detector goes by interfaces.
    pub const POD: Self = Self(2);

    /// Whether all of these flags are set.
    #[inline]
    pub const fn has(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// These flags and those.
    pub const fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }
}

/// What is known of an address of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LocalAddress {
    /// Whether NodePorts are accepted at it (NP-2): 0 or 1.
    pub node_ports: u32,
}

assert_layout!(LocalAddress, 4);
