//! What does our table look like in the language of `nft`?
//!
//! The second writer of [`super::ruleset`], beside `codec`. Elements are read back from the bytes that
//! `codec` wrote, by the types that their set declares: what is shown is what the kernel gets, and
//! writing 100,000 elements costs nothing more. A rule is read step by step: each register holds the
//! expression that was loaded into it, and a step that uses the register prints that expression.
//!
//! Invariants: pure; equal states give equal text; `nft -f` makes the same table of it as `codec` (for
//! IPv6 with session affinity a version after 1.0.6 is needed, see [`super`]).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::codec::Printed;
use super::desired::Desired;
use super::elements::SetElements;
use super::layout::{TABLE, TABLE_COMMENT};
use super::ruleset::{
    Chain, Checksum, DataType, Expr, Hook, Reg, Rule, Set, SetKind, Value, Verdict,
};
use crate::net::{Family, IpFamily, L4Proto};

/// The whole table, sets first, each sorted.
pub(super) fn table<F: Family>(desired: &Desired<F>) -> String {
    let family = Words(F::FAMILY);
    let mut blocks = Vec::new();
    for (set, (_, elements)) in desired.sets.iter().zip(desired.elements.sets()) {
        blocks.push(family.set(set, elements));
    }
    let types: BTreeMap<&str, &Set> = desired.sets.iter().map(|set| (set.name, set)).collect();
    for chain in &desired.chains {
        blocks.push(family.chain(chain, &types));
    }
    format!(
        "table {} {TABLE} {{\n\tcomment \"{TABLE_COMMENT}\"\n\n{}}}\n",
        family.name(),
        blocks.join("\n")
    )
}

/// The words that depend on the family.
#[derive(Clone, Copy)]
struct Words(IpFamily);

impl Words {
    const fn name(self) -> &'static str {
        match self.0 {
            IpFamily::V4 => "ip",
            IpFamily::V6 => "ip6",
        }
    }

    fn set(self, set: &Set, elements: &SetElements) -> String {
        let Set {
            name,
            comment,
            key,
            value,
            kind,
            size,
        } = set;
        let word = if *value == Value::None { "set" } else { "map" };
        let mut text = format!("\t{word} {name} {{\n\t\t{}\n", self.types(key, value));
        match kind {
            SetKind::Exact => {}
            SetKind::Interval => text.push_str("\t\tflags interval\n"),
            // Of a map, nft 1.0.6 prints a gc-interval and does not read it.
            SetKind::Dynamic => text.push_str("\t\tflags dynamic,timeout\n"),
        }
        if let Some(size) = size {
            line(&mut text, format_args!("\t\tsize {size}"));
        }
        line(&mut text, format_args!("\t\tcomment \"{comment}\""));
        let elements = elements_of(set, elements);
        if !elements.is_empty() {
            let elements = elements.join(",\n\t\t\t");
            line(
                &mut text,
                format_args!("\t\telements = {{\n\t\t\t{elements}\n\t\t}}"),
            );
        }
        text.push_str("\t}\n");
        text
    }

    /// A number's type has no length; where the number comes from says it.
    fn types(self, key: &[DataType], value: &Value) -> String {
        let is_typeof = key.contains(&DataType::Integer);
        let join = |types: &[DataType]| {
            let words: Vec<String> = types
                .iter()
                .map(|kind| {
                    if is_typeof {
                        self.source_of(*kind)
                    } else {
                        name_of(*kind).to_owned()
                    }
                })
                .collect();
            words.join(" . ")
        };
        let word = if is_typeof { "typeof" } else { "type" };
        match value {
            Value::None => format!("{word} {}", join(key)),
            Value::Verdict => format!("{word} {} : verdict", join(key)),
            Value::Data(types) => format!("{word} {} : {}", join(key), join(types)),
        }
    }

    fn source_of(self, kind: DataType) -> String {
        match kind {
            DataType::Ipv4Addr | DataType::Ipv6Addr => format!("{} daddr", self.name()),
            DataType::InetProto => "meta l4proto".to_owned(),
            DataType::InetService => "th dport".to_owned(),
            DataType::Integer => "numgen random mod 2".to_owned(),
            DataType::ClassId => "meta priority".to_owned(),
        }
    }

    fn chain(self, chain: &Chain, types: &BTreeMap<&str, &Set>) -> String {
        let Chain {
            name,
            comment,
            hook,
            rules,
        } = chain;
        let mut text = format!("\tchain {name} {{\n");
        if !comment.is_empty() {
            line(&mut text, format_args!("\t\tcomment \"{comment}\""));
        }
        if let Some(Hook {
            chain_type,
            number,
            priority,
        }) = hook
        {
            let hook = match number {
                0 => "prerouting",
                1 => "input",
                2 => "forward",
                3 => "output",
                _ => "postrouting",
            };
            line(
                &mut text,
                format_args!(
                    "\t\ttype {chain_type} hook {hook} priority {priority}; policy accept;"
                ),
            );
        }
        for rule in rules {
            let mut reader = Reader {
                words: self,
                types,
                registers: BTreeMap::new(),
                steps: Vec::new(),
            };
            line(&mut text, format_args!("\t\t{}", reader.rule(rule)));
        }
        text.push_str("\t}\n");
        text
    }
}

fn line(to: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    to.write_fmt(line).unwrap_or_default();
    to.push('\n');
}

const fn name_of(kind: DataType) -> &'static str {
    match kind {
        DataType::Integer => "integer",
        DataType::Ipv4Addr => "ipv4_addr",
        DataType::Ipv6Addr => "ipv6_addr",
        DataType::InetProto => "inet_proto",
        DataType::InetService => "inet_service",
        DataType::ClassId => "classid",
    }
}

/// Each element of a set as a line, in the order of their keys as numbers.
fn elements_of(set: &Set, elements: &SetElements) -> Vec<String> {
    let mut sorted: Vec<(Vec<u8>, Printed<'_>)> = elements
        .iter()
        .map(|element| Printed::of(element.bytes()))
        .map(|element| {
            let key = element.key().unwrap_or_default();
            (in_network_order(set.key, key), element)
        })
        .collect();
    sorted.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut lines = Vec::with_capacity(sorted.len());
    let mut sorted = sorted.into_iter().map(|(_, element)| element).peekable();
    while let Some(element) = sorted.next() {
        let key = element.key().unwrap_or_default();
        let text = if let Some(last) = element.last_key() {
            range_of(set.key, key, last)
        } else if set.kind == SetKind::Interval {
            // The first key after the interval is an element of its own; there is none after the last address.
            let end = sorted.next_if(|next| next.is_end());
            let end = end.and_then(Printed::key).map(before);
            range_of(set.key, key, &end.unwrap_or_else(|| vec![0xff; key.len()]))
        } else {
            value_of(set.key, key)
        };
        let comment = element.comment();
        let comment = comment.map(|comment| format!(" comment \"{comment}\""));
        let data = match &set.value {
            Value::None => String::new(),
            Value::Verdict => element
                .verdict()
                .map_or(String::new(), |v| format!(" : {}", verdict(&v))),
            Value::Data(types) => {
                format!(" : {}", value_of(types, element.data().unwrap_or_default()))
            }
        };
        lines.push(format!("{text}{}{data}", comment.unwrap_or_default()));
    }
    lines
}

/// The fields of a value, one or several concatenated.
fn fields<'a>(
    types: &'a [DataType],
    mut bytes: &'a [u8],
) -> impl Iterator<Item = (DataType, &'a [u8])> {
    types.iter().map(move |kind| {
        let len = usize::try_from(kind.len()).unwrap_or(0);
        let field = bytes.get(..len).unwrap_or_default();
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        (*kind, field)
    })
}

/// The same value so that greater numbers have greater bytes.
fn in_network_order(types: &[DataType], bytes: &[u8]) -> Vec<u8> {
    let mut ordered = Vec::with_capacity(bytes.len());
    for (kind, field) in fields(types, bytes) {
        match kind {
            DataType::Integer | DataType::ClassId => ordered.extend(number(field).to_be_bytes()),
            DataType::Ipv4Addr
            | DataType::Ipv6Addr
            | DataType::InetProto
            | DataType::InetService => {
                ordered.extend(field);
            }
        }
    }
    ordered
}

fn value_of(types: &[DataType], bytes: &[u8]) -> String {
    let words: Vec<String> = fields(types, bytes)
        .map(|(kind, field)| field_of(kind, field))
        .collect();
    words.join(" . ")
}

fn range_of(types: &[DataType], first: &[u8], last: &[u8]) -> String {
    let words: Vec<String> = fields(types, first)
        .zip(fields(types, last))
        .map(|((kind, first), (_, last))| match prefix_of(first, last) {
            _ if first == last => field_of(kind, first),
            Some(prefix) => format!("{}/{prefix}", field_of(kind, first)),
            None => format!("{}-{}", field_of(kind, first), field_of(kind, last)),
        })
        .collect();
    words.join(" . ")
}

/// The length of the prefix that just these addresses have in common.
fn prefix_of(first: &[u8], last: &[u8]) -> Option<u32> {
    let bits = |bytes: &[u8]| {
        let shift = |number: u128, byte: &u8| number << 8 | u128::from(*byte);
        bytes.iter().fold(0, shift)
    };
    let len = u32::try_from(first.len() * 8).ok()?;
    let host = bits(first) ^ bits(last);
    let is_prefix = host & host.wrapping_add(1) == 0 && bits(first) & host == 0;
    is_prefix.then(|| len - host.count_ones())
}

/// The address before this one.
fn before(address: &[u8]) -> Vec<u8> {
    let mut address = address.to_vec();
    for byte in address.iter_mut().rev() {
        let (less, borrows) = byte.overflowing_sub(1);
        *byte = less;
        if !borrows {
            break;
        }
    }
    address
}

/// A number as it lies in a register.
fn number(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_ne_bytes)
}

fn field_of(kind: DataType, bytes: &[u8]) -> String {
    match kind {
        DataType::Integer => number(bytes).to_string(),
        DataType::Ipv4Addr | DataType::Ipv6Addr => address(bytes),
        DataType::InetProto => protocol(bytes),
        DataType::InetService => port(bytes).to_string(),
        DataType::ClassId => format!("{:x}:{:x}", number(bytes) >> 16, number(bytes) & 0xffff),
    }
}

fn address(bytes: &[u8]) -> String {
    let v4 = <[u8; 4]>::try_from(bytes).map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes)));
    let v6 = <[u8; 16]>::try_from(bytes).map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes)));
    v4.or(v6)
        .map_or(String::new(), |address| address.to_string())
}

fn protocol(bytes: &[u8]) -> String {
    let number = bytes.first().copied().unwrap_or(0);
    L4Proto::from_number(number).map_or(number.to_string(), |protocol| protocol.name().to_owned())
}

fn port(bytes: &[u8]) -> u16 {
    bytes.try_into().map_or(0, u16::from_be_bytes)
}

fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Drop => "drop".to_owned(),
        Verdict::Accept => "accept".to_owned(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::Goto(chain) => format!("goto {chain}"),
    }
}

/// How the value of a register is compared.
#[derive(Clone, Copy)]
enum Format {
    Address,
    Protocol,
    Port,
    Number,
    Interface,
    CtState,
    CtStatus,
    AddressType,
}

/// What a register holds.
#[derive(Clone)]
struct Loaded {
    text: String,
    kind: Format,
    /// The bits that were kept of it.
    mask: Option<Vec<u8>>,
}

/// Reads one rule.
struct Reader<'a> {
    words: Words,
    types: &'a BTreeMap<&'a str, &'a Set>,
    /// By the first register that each value takes.
    registers: BTreeMap<u8, Loaded>,
    steps: Vec<String>,
}

impl Reader<'_> {
    fn rule(&mut self, rule: &Rule) -> String {
        for expr in &rule.exprs {
            self.step(expr);
        }
        let comment = rule.comment.map(|comment| format!("comment \"{comment}\""));
        self.steps.extend(comment);
        self.steps.join(" ")
    }

    fn load(&mut self, to: Reg, text: impl Into<String>, kind: Format) {
        let text = text.into();
        let mask = None;
        self.registers.insert(to.0, Loaded { text, kind, mask });
    }

    fn text(&self, from: Reg) -> &str {
        self.registers
            .get(&from.0)
            .map_or("", |loaded| &loaded.text)
    }

    /// The key of a set: what lies in its registers.
    fn key(&self, set: &str, first: Reg) -> String {
        let mut at = first.0;
        let mut words = Vec::new();
        for kind in self.types.get(set).map_or(&[][..], |set| set.key) {
            words.push(self.text(Reg(at)));
            at += u8::try_from(kind.len().div_ceil(4)).unwrap_or(0);
        }
        words.join(" . ")
    }

    /// Each expression prints itself, or waits in a register for who uses it.
    fn step(&mut self, expr: &Expr) {
        let ip = self.words.name();
        let step = match expr {
            Expr::Network { offset, len: _, to } => {
                let is_source = match self.words.0 {
                    IpFamily::V4 => *offset == 12,
                    IpFamily::V6 => *offset == 8,
                };
                let end = if is_source { "saddr" } else { "daddr" };
                return self.load(*to, format!("{ip} {end}"), Format::Address);
            }
            Expr::SourcePort { to } => return self.load(*to, "th sport", Format::Port),
            Expr::DestinationPort { to } => return self.load(*to, "th dport", Format::Port),
            Expr::L4Proto { to } => return self.load(*to, "meta l4proto", Format::Protocol),
            Expr::Mark { to } => return self.load(*to, "meta mark", Format::Number),
            Expr::Priority { to } => return self.load(*to, "meta priority", Format::Number),
            Expr::Zero { to } => return self.load(*to, "none", Format::Number),
            Expr::UdpChecksum { to } => return self.load(*to, "udp checksum", Format::Port),
            Expr::InterfaceName { to } => return self.load(*to, "iifname", Format::Interface),
            Expr::CtState { to } => return self.load(*to, "ct state", Format::CtState),
            Expr::CtStatus { to } => return self.load(*to, "ct status", Format::CtStatus),
            Expr::SourceAddressType { to } => {
                return self.load(*to, "fib saddr type", Format::AddressType);
            }
            Expr::Random { below, to } => {
                return self.load(*to, format!("numgen random mod {below}"), Format::Number);
            }
            Expr::Map { set, key, to } => {
                let text = format!("{} map @{set}", self.key(set, *key));
                return self.load(*to, text, Format::Number);
            }
            Expr::Bitwise { reg, mask, xor } => return self.mask(*reg, mask, xor),
            Expr::SetMark { from } => format!("meta mark set {}", self.text(*from)),
            Expr::SetPriority { from } => format!("meta priority set {}", self.text(*from)),
            Expr::SetDestination { from } => format!("{ip} daddr set {}", self.text(*from)),
            Expr::SetDestinationPort { from, checksum } => {
                let header = match checksum {
                    Checksum::Tcp => "tcp",
                    Checksum::Udp => "udp",
                    Checksum::Sctp => "sctp",
                    Checksum::None => "th",
                };
                format!("{header} dport set {}", self.text(*from))
            }
            Expr::Equal { reg, to } => self.compare(*reg, "", to),
            Expr::NotEqual { reg, to } => self.compare(*reg, "!= ", to),
            Expr::In { set, key } => format!("{} @{set}", self.key(set, *key)),
            Expr::NotIn { set, key } => format!("{} != @{set}", self.key(set, *key)),
            Expr::VerdictMap { set, key } => format!("{} vmap @{set}", self.key(set, *key)),
            Expr::Verdict(to) => verdict(to),
            Expr::Dnat { address, port: _ } => format!("dnat {ip} to {}", self.text(*address)),
            Expr::Masquerade => "masquerade fully-random".to_owned(),
            Expr::Reject => "reject".to_owned(),
            Expr::Update {
                set,
                key,
                data,
                seconds,
            } => {
                let (key, data) = (self.key(set, *key), self.text(*data));
                format!("update @{set} {{ {key} timeout {seconds}s : {data} }}")
            }
            Expr::Delete { set, key, data } => {
                let (key, data) = (self.key(set, *key), self.text(*data));
                format!("delete @{set} {{ {key} : {data} }}")
            }
        };
        self.steps.push(step);
    }

    fn mask(&mut self, reg: Reg, mask: &[u8], xor: &[u8]) {
        let Some(loaded) = self.registers.get_mut(&reg.0) else {
            return;
        };
        match loaded.kind {
            Format::Number if number(xor) != 0 => {
                loaded.text = format!("{} | {:#x}", loaded.text, number(xor));
            }
            Format::Number => loaded.text = format!("{} & {:#x}", loaded.text, number(mask)),
            Format::Address
            | Format::Protocol
            | Format::Port
            | Format::Interface
            | Format::CtState
            | Format::CtStatus
            | Format::AddressType => loaded.mask = Some(mask.to_vec()),
        }
    }

    fn compare(&self, reg: Reg, operator: &str, to: &[u8]) -> String {
        let Some(loaded) = self.registers.get(&reg.0) else {
            return String::new();
        };
        let mask = loaded.mask.as_deref();
        let bits = number(mask.unwrap_or_default());
        let flags = |names: &[(u32, &'static str)]| {
            let set = names.iter().filter(|(bit, _)| bits & bit != 0);
            set.map(|(_, name)| *name).collect::<Vec<_>>().join(",")
        };
        let text = &loaded.text;
        let value = match loaded.kind {
            // "Not none of these bits": nft says so by their names alone.
            Format::CtState => {
                let names = [
                    (1, "invalid"),
                    (2, "established"),
                    (4, "related"),
                    (64, "untracked"),
                ];
                return format!("{text} {}", flags(&names));
            }
            Format::CtStatus => return format!("{text} {}", flags(&[(0x20, "dnat")])),
            Format::Address => {
                let ones = mask.map(|mask| mask.iter().map(|byte| byte.count_ones()).sum::<u32>());
                ones.map_or_else(|| address(to), |ones| format!("{}/{ones}", address(to)))
            }
            Format::Protocol => protocol(to),
            Format::Port => port(to).to_string(),
            Format::Number => format!("{:#x}", number(to)),
            Format::Interface => {
                // The whole name has its closing zeros; without them it is how the name begins.
                let name = to.split(|byte| *byte == 0).next().unwrap_or_default();
                let name = String::from_utf8_lossy(name).replace('*', "\\*");
                let rest = if to.contains(&0) { "" } else { "*" };
                format!("\"{name}{rest}\"")
            }
            Format::AddressType if number(to) == 2 => "local".to_owned(),
            Format::AddressType => number(to).to_string(),
        };
        format!("{text} {operator}{value}")
    }
}
