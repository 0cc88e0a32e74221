//! How are chains and rules written, in the words of `iptables-save`?
//!
//! Invariant: a rule is written as `iptables-save` prints it, so that what is there can be compared with
//! what is wanted. If a version prints it otherwise, the chain is written anew at each read-back; nothing
//! else depends on it.

use std::fmt::{self, Write as _};

use crate::forwarding::{Detector, MarkBit};
use crate::net::{Family, IpFamily, L4Proto};

/// One of the tables that we write to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    /// Where flows are translated.
    Nat,
    /// Where packets are refused.
    Filter,
}

impl Table {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Nat, Self::Filter];

    /// The name that the programs take.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }
}

/// A chain of ours and its rules, each without `-A` and the chain's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    /// Its name.
    pub(crate) name: String,
    /// Its rules, in order.
    pub(crate) rules: Vec<String>,
}

impl Chain {
    /// A chain with these rules.
    pub(crate) fn new(name: impl Into<String>, rules: Vec<String>) -> Self {
        Self {
            name: name.into(),
            rules,
        }
    }
}

/// The conditions on a packet's header, in the order in which they are printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    /// `-s …`, or nothing.
    pub(crate) source: String,
    /// `-d …`, or nothing.
    pub(crate) destination: String,
    /// `-i …`, or nothing.
    pub(crate) interface: String,
    /// `-p …`, or nothing.
    pub(crate) transport: String,
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            source,
            destination,
            interface,
            transport,
        } = self;
        for part in [source, destination, interface, transport] {
            if !part.is_empty() {
                write!(f, "{part} ")?;
            }
        }
        Ok(())
    }
}

/// The protocol and the ports from `first` to `last`.
pub(crate) fn ports(protocol: L4Proto, first: u16, last: u16) -> String {
    if first == last {
        format!("-p {protocol} -m {protocol} --dport {first}")
    } else {
        format!("-p {protocol} -m {protocol} --dport {first}:{last}")
    }
}

/// Adds the condition that a packet is of class POD, or that it is not; `None` if no packet can be so.
pub(crate) fn from_pod<F: Family>(
    header: &Header,
    detector: &Detector<F>,
    yes: bool,
) -> Option<Header> {
    let not = if yes { "" } else { "! " };
    let mut header = header.clone();
    match detector {
        // `-s 0.0.0.0/0` is no condition at all, also with an exclamation mark.
        Detector::Network(network) if F::prefix(network).1 == 0 => return yes.then_some(header),
        Detector::Network(network) => {
            let (address, prefix) = F::prefix(network);
            header.source = format!("{not}-s {address}/{prefix}");
        }
        Detector::Interface(name) => {
            header.interface = format!("{not}-i {}", quoted(name.as_str()));
        }
        // No name is longer, so that the whole name is its beginning; with a `+` it would be too long.
        Detector::InterfacePrefix(name) if name.as_str().len() >= 15 => {
            header.interface = format!("{not}-i {}", quoted(name.as_str()));
        }
        Detector::InterfacePrefix(name) => {
            header.interface = format!("{not}-i {}", quoted(&format!("{name}+")));
        }
    }
    Some(header)
}

/// Marks the packet for masquerading; other bits of the mark stay. Spec: SRC-10.
pub(crate) fn mark(bit: MarkBit) -> String {
    format!("-j MARK --set-xmark {0:#x}/{0:#x}", bit.mask())
}

/// A comment for people.
pub(crate) fn comment(text: &str) -> String {
    // XT_MAX_COMMENT_LEN is 256 with its final zero.
    let clean: String = text
        .chars()
        .filter(|c| c.is_ascii_graphic() || *c == ' ')
        .take(255)
        .collect();
    format!("-m comment --comment {}", quoted(&clean))
}

/// A word as `iptables-save` prints it: in quotation marks if anything in it is unusual.
pub(crate) fn quoted(word: &str) -> String {
    let is_plain =
        |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '+' || c == '.';
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    let mut text = String::with_capacity(word.len() + 2);
    text.push('"');
    for c in word.chars() {
        if matches!(c, '"' | '\\' | '\'') {
            text.push('\\');
        }
        text.push(c);
    }
    text.push('"');
    text
}

/// The match that lets one in `n` packets through.
///
/// Kernel: a probability is a number of 2^31sts; `iptables-save` prints eleven digits of it.
pub(crate) fn one_in(n: usize) -> String {
    let n = u64::try_from(n).unwrap_or(u64::MAX).max(1);
    let whole = 1_u64 << 31;
    let share = (whole + n / 2) / n;
    // Eleven digits after the point of share / 2^31; printf rounds a half to the even digit.
    let (whole, scaled) = (u128::from(whole), u128::from(share) * 100_000_000_000);
    let (down, rest) = (scaled / whole, scaled % whole);
    let is_up = rest * 2 > whole || (rest * 2 == whole && down % 2 == 1);
    let digits = down + u128::from(is_up);
    let (ones, rest) = (digits / 100_000_000_000, digits % 100_000_000_000);
    format!("-m statistic --mode random --probability {ones}.{rest:011}")
}

/// Sends the flow to a backend; `chance` is nothing, or a match and a blank.
pub(crate) fn dnat(protocol: L4Proto, chance: &str, to: &dyn fmt::Display) -> String {
    format!("-p {protocol} {chance}-j DNAT --to-destination {to}")
}

/// A `cBPF` program that is true of packets whose source is their destination.
///
/// Kernel: `xt_bpf` runs it with the network header at 0.
pub(crate) fn source_is_destination(family: IpFamily) -> String {
    const LOAD_WORD: u16 = 0x20;
    const TO_X: u16 = 0x07;
    const JUMP_IF_EQUAL_X: u16 = 0x1d;
    const RETURN: u16 = 0x06;
    let (source, words) = match family {
        IpFamily::V4 => (12_u32, 1_u32),
        IpFamily::V6 => (8, 4),
    };
    let mut program: Vec<(u16, u32, u32, u32)> = Vec::new();
    for word in 0..words {
        let at = source + word * 4;
        // Four instructions a word; the last two of all are the answers.
        let to_no = (words - 1 - word) * 4 + 1;
        program.extend([
            (LOAD_WORD, 0, 0, at),
            (TO_X, 0, 0, 0),
            (LOAD_WORD, 0, 0, at + words * 4),
            (JUMP_IF_EQUAL_X, 0, to_no, 0),
        ]);
    }
    program.extend([(RETURN, 0, 0, 1), (RETURN, 0, 0, 0)]);
    let mut text = program.len().to_string();
    for (code, yes, no, k) in program {
        // Writing to a String cannot fail.
        write!(text, ",{code} {yes} {no} {k}").unwrap_or_default();
    }
    format!("-m bpf --bytecode \"{text}\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::V4;

    #[test]
    fn probabilities_are_printed_as_iptables_does() {
        let printed = |n| one_in(n).rsplit(' ').next().unwrap().to_owned();
        assert_eq!(printed(10), "0.10000000009");
        assert_eq!(printed(9), "0.11111111101");
        assert_eq!(printed(8), "0.12500000000");
        assert_eq!(printed(1), "1.00000000000");
        assert_eq!(printed(4096), "0.00024414062");
    }

    #[test]
    fn hairpins_are_found_by_four_instructions_a_word() {
        assert_eq!(
            source_is_destination(IpFamily::V4),
            "-m bpf --bytecode \"6,32 0 0 12,7 0 0 0,32 0 0 16,29 0 1 0,6 0 0 1,6 0 0 0\""
        );
        assert!(
            source_is_destination(IpFamily::V6).starts_with("-m bpf --bytecode \"18,32 0 0 8,")
        );
    }

    #[test]
    fn words_cannot_break_out_of_their_quotation_marks() {
        assert_eq!(
            comment("a/b:c \"x\\"),
            r#"-m comment --comment "a/b:c \"x\\""#
        );
        assert_eq!(comment("a\n-A INPUT").matches('\n').count(), 0);
        assert_eq!(quoted("cali+"), "cali+");
    }

    #[test]
    fn everybody_is_a_pod_of_a_network_without_bits() {
        let detector = Detector::<V4>::Network("0.0.0.0/0".parse().unwrap());
        let header = Header::default();
        assert_eq!(from_pod(&header, &detector, true), Some(Header::default()));
        assert_eq!(from_pod(&header, &detector, false), None);
    }
}
