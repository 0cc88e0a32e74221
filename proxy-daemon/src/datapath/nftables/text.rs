//! What does our table look like in the language of `nft`?
//!
//! The second writer of [`super::ruleset`], beside `codec`. Elements are read back from the bytes that
//! `codec` wrote, by the types that their set declares: what is shown is what the kernel gets, and
//! writing 100,000 elements costs nothing more.
//!
//! Invariants: pure; equal states give equal text; `nft -f` makes the same table of it as `codec` (for
//! IPv6 with session affinity a version after 1.0.6 is needed, see [`super`]).

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nftnl::Hook as At;

use super::codec::Printed;
use super::desired::Desired;
use super::elements::SetElements;
use super::layout::{TABLE, TABLE_COMMENT};
use super::ruleset::{
    Chain, Checksum, Expr, Field, Hook, Rule, Set, SetKind, Target, Value, Verdict, has_random,
};
use crate::net::{Family, IpFamily, L4Proto};

/// The whole table, sets first, each sorted.
pub(super) fn table<F: Family>(desired: &Desired<F>) -> String {
    let family = Words(F::FAMILY);
    let mut blocks = Vec::new();
    for (set, (_, elements)) in desired.sets.iter().zip(desired.elements.sets()) {
        blocks.push(family.set(set, elements));
    }
    blocks.extend(desired.chains.iter().map(|chain| family.chain(chain)));
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
        let elements = self.elements_of(set, elements);
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

    /// A random number's type has no length; where the number comes from says it.
    fn types(self, key: &[Field], value: &Value) -> String {
        let is_typeof = has_random(key);
        let join = |types: &[Field]| {
            if is_typeof {
                return self.key(types);
            }
            let words = types.iter().map(|field| field.data_type(self.0).1);
            words.collect::<Vec<_>>().join(" . ")
        };
        let word = if is_typeof { "typeof" } else { "type" };
        match value {
            Value::None => format!("{word} {}", join(key)),
            Value::Verdict => format!("{word} {} : verdict", join(key)),
            Value::Data(types) => format!("{word} {} : {}", join(key), join(types)),
        }
    }

    fn chain(self, chain: &Chain) -> String {
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
            at,
            priority,
        }) = hook
        {
            let hook = match at {
                At::PreRouting => "prerouting",
                At::In => "input",
                At::Forward => "forward",
                At::Out => "output",
                At::PostRouting => "postrouting",
                At::Ingress => "ingress",
            };
            line(
                &mut text,
                format_args!(
                    "\t\ttype {chain_type} hook {hook} priority {priority}; policy accept;"
                ),
            );
        }
        for rule in rules {
            line(&mut text, format_args!("\t\t{}", self.rule(rule)));
        }
        text.push_str("\t}\n");
        text
    }

    fn rule(self, rule: &Rule) -> String {
        if !rule.exprs.iter().all(is_quotable) {
            return "# a rule for an interface whose name nft cannot quote".to_owned();
        }
        let mut steps: Vec<String> = rule.exprs.iter().map(|expr| self.step(expr)).collect();
        steps.extend(rule.comment.map(|comment| format!("comment \"{comment}\"")));
        steps.join(" ")
    }

    /// What is loaded, in words.
    fn field(self, field: Field) -> String {
        let words = match field {
            Field::Source => return format!("{} saddr", self.name()),
            Field::Destination => return format!("{} daddr", self.name()),
            Field::Random(below) => return format!("numgen random mod {below}"),
            Field::Protocol => "meta l4proto",
            Field::SourcePort => "th sport",
            Field::DestinationPort => "th dport",
            Field::UdpChecksum => "udp checksum",
            Field::Mark => "meta mark",
            Field::Priority => "meta priority",
            Field::Interface => "iifname",
            Field::CtState => "ct state",
            Field::CtStatus => "ct status",
            Field::SourceType => "fib saddr type",
        };
        words.to_owned()
    }

    fn key(self, key: &[Field]) -> String {
        let words: Vec<String> = key.iter().map(|field| self.field(*field)).collect();
        words.join(" . ")
    }

    fn step(self, expr: &Expr) -> String {
        let ip = self.name();
        match expr {
            Expr::Compare { field, equal, to } => {
                let is = if *equal { "" } else { "!= " };
                format!("{} {is}{}", self.field(*field), value(*field, to))
            }
            Expr::Network {
                field,
                inside,
                first,
                prefix,
            } => {
                let is = if *inside { "" } else { "!= " };
                let is_one = usize::from(*prefix) == first.len() * 8;
                let len = if is_one {
                    String::new()
                } else {
                    format!("/{prefix}")
                };
                format!("{} {is}{}{len}", self.field(*field), address(first))
            }
            Expr::AnyBit(field, bits) => {
                let names = flags(*field, *bits);
                if names.is_empty() {
                    format!("{} & {bits:#x} != 0x0", self.field(*field))
                } else {
                    format!("{} {}", self.field(*field), names.join(","))
                }
            }
            Expr::In(set, key) => format!("{} @{}", self.key(key), set.name()),
            Expr::NotIn(set, key) => format!("{} != @{}", self.key(key), set.name()),
            Expr::VerdictMap(map, key) => format!("{} vmap @{}", self.key(key), map.name()),
            Expr::Set(target, map, key) => {
                let target = match target {
                    Target::Priority => "meta priority".to_owned(),
                    Target::Destination => format!("{ip} daddr"),
                    Target::DestinationPort(Checksum::Tcp) => "tcp dport".to_owned(),
                    Target::DestinationPort(Checksum::Udp) => "udp dport".to_owned(),
                    Target::DestinationPort(Checksum::Sctp) => "sctp dport".to_owned(),
                    Target::DestinationPort(Checksum::None) => "th dport".to_owned(),
                };
                format!("{target} set {} map @{}", self.key(key), map.name())
            }
            Expr::ClearPriority => "meta priority set none".to_owned(),
            Expr::SetMark { keep, set: 0 } => format!("meta mark set meta mark & {keep:#x}"),
            Expr::SetMark { keep: _, set } => format!("meta mark set meta mark | {set:#x}"),
            Expr::Verdict(to) => verdict(to),
            Expr::Dnat(map, key) => {
                format!("dnat {ip} to {} map @{}", self.key(key), map.name())
            }
            Expr::Masquerade => "masquerade fully-random".to_owned(),
            Expr::Reject => "reject".to_owned(),
            Expr::Update(map, key, seconds) => format!(
                "update @{} {{ {} timeout {seconds}s : meta priority }}",
                map.name(),
                self.key(key)
            ),
            Expr::Delete(map, key) => {
                format!(
                    "delete @{} {{ {} : meta priority }}",
                    map.name(),
                    self.key(key)
                )
            }
        }
    }

    /// The fields of a value, one or several concatenated.
    fn fields<'a>(
        self,
        types: &'a [Field],
        mut bytes: &'a [u8],
    ) -> impl Iterator<Item = (Field, &'a [u8])> {
        types.iter().map(move |field| {
            let len = usize::from(field.len(self.0));
            let value = bytes.get(..len).unwrap_or_default();
            bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
            (*field, value)
        })
    }

    /// Each element of a set as a line, in the order of their keys as numbers.
    fn elements_of(self, set: &Set, elements: &SetElements) -> Vec<String> {
        let mut sorted: Vec<(Vec<u8>, Printed<'_>)> = elements
            .iter()
            .map(|element| Printed::of(element.bytes()))
            .map(|element| {
                let key = element.key().unwrap_or_default();
                (self.in_network_order(set.key, key), element)
            })
            .collect();
        sorted.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut lines = Vec::with_capacity(sorted.len());
        let mut sorted = sorted.into_iter().map(|(_, element)| element).peekable();
        while let Some(element) = sorted.next() {
            let key = element.key().unwrap_or_default();
            let text = if let Some(last) = element.last_key() {
                self.range_of(set.key, key, last)
            } else if set.kind == SetKind::Interval {
                // The first key after the interval is an element of its own; there is none after the last address.
                let end = sorted.next_if(|next| next.is_end());
                let end = end.and_then(Printed::key).map(before);
                self.range_of(set.key, key, &end.unwrap_or_else(|| vec![0xff; key.len()]))
            } else {
                self.value_of(set.key, key)
            };
            let comment = element.comment();
            let comment = comment.map(|comment| format!(" comment \"{comment}\""));
            let data = match &set.value {
                Value::None => String::new(),
                Value::Verdict => element
                    .verdict()
                    .map_or(String::new(), |v| format!(" : {}", verdict(&v))),
                Value::Data(types) => {
                    format!(
                        " : {}",
                        self.value_of(types, element.data().unwrap_or_default())
                    )
                }
            };
            lines.push(format!("{text}{}{data}", comment.unwrap_or_default()));
        }
        lines
    }

    /// The same value so that greater numbers have greater bytes.
    fn in_network_order(self, types: &[Field], bytes: &[u8]) -> Vec<u8> {
        let mut ordered = Vec::with_capacity(bytes.len());
        for (field, value) in self.fields(types, bytes) {
            if field.is_number() {
                ordered.extend(number(value).to_be_bytes());
            } else {
                ordered.extend(value);
            }
        }
        ordered
    }

    fn value_of(self, types: &[Field], bytes: &[u8]) -> String {
        let fields = self.fields(types, bytes);
        let words: Vec<String> = fields.map(|(field, bytes)| value(field, bytes)).collect();
        words.join(" . ")
    }

    fn range_of(self, types: &[Field], first: &[u8], last: &[u8]) -> String {
        let words: Vec<String> = self
            .fields(types, first)
            .zip(self.fields(types, last))
            .map(|((field, first), (_, last))| match prefix_of(first, last) {
                _ if first == last => value(field, first),
                Some(prefix) => format!("{}/{prefix}", value(field, first)),
                None => format!("{}-{}", value(field, first), value(field, last)),
            })
            .collect();
        words.join(" . ")
    }
}

/// Whether `nft` can read what the step compares with: it has no escape within quotes.
fn is_quotable(step: &Expr) -> bool {
    let Expr::Compare { field, to, .. } = step else {
        return true;
    };
    *field != Field::Interface || !to.iter().any(|byte| b"\"\\".contains(byte))
}

fn line(to: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    to.write_fmt(line).unwrap_or_default();
    to.push('\n');
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

/// A field's value in words.
fn value(field: Field, bytes: &[u8]) -> String {
    match field {
        Field::Source | Field::Destination => address(bytes),
        Field::Protocol => protocol(bytes),
        Field::SourcePort | Field::DestinationPort | Field::UdpChecksum => {
            bytes.try_into().map_or(0, u16::from_be_bytes).to_string()
        }
        Field::Priority => format!("{:x}:{:x}", number(bytes) >> 16, number(bytes) & 0xffff),
        Field::Interface => {
            // The whole name has its closing zeros; without them it is how the name begins.
            let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
            let name = String::from_utf8_lossy(name).replace('*', "\\*");
            let rest = if bytes.contains(&0) { "" } else { "*" };
            format!("\"{name}{rest}\"")
        }
        Field::SourceType if number(bytes) == 2 => "local".to_owned(),
        Field::SourceType | Field::Random(_) => number(bytes).to_string(),
        Field::Mark | Field::CtState | Field::CtStatus => format!("{:#x}", number(bytes)),
    }
}

/// The names of bits.
fn flags(field: Field, bits: u32) -> Vec<&'static str> {
    const STATES: [(u32, &str); 4] = [
        (1, "invalid"),
        (2, "established"),
        (4, "related"),
        (64, "untracked"),
    ];
    let names: &[_] = if field == Field::CtState {
        &STATES
    } else if field == Field::CtStatus {
        &[(0x20, "dnat")]
    } else {
        &[]
    };
    let set = names.iter().filter(|(bit, _)| bits & bit != 0);
    set.map(|(_, name)| *name).collect()
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

fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Drop => "drop".to_owned(),
        Verdict::Accept => "accept".to_owned(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::Goto(chain) => format!("goto {chain}"),
    }
}
