//! Which of the two iptables does this node use?

/// One of the two programs that are called iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// iptables-nft: its rules are rules of `nf_tables`.
    Nft,
    /// iptables-legacy: its rules are those of `ip_tables`.
    Legacy,
}

impl Flavour {
    /// The name in lower case, as in the names of the programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }
}
