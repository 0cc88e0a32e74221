//! Which addresses do some networks cover?
//!
//! Invariants: as few networks as possible, sorted, none inside another: equal coverage is equal values.

use std::fmt;

use ipnet::IpNet;
use serde::Serialize;

use super::Family;

/// Networks of one family, aggregated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(bound = "")]
pub struct Networks<F: Family>(Box<[F::Net]>);

impl<F: Family> Default for Networks<F> {
    fn default() -> Self {
        Self(Box::default())
    }
}

impl<F: Family> FromIterator<F::Net> for Networks<F> {
    fn from_iter<I: IntoIterator<Item = F::Net>>(networks: I) -> Self {
        let networks: Vec<IpNet> = networks.into_iter().map(Into::into).collect();
        let aggregated = IpNet::aggregate(&networks);
        let mut aggregated: Vec<F::Net> = aggregated.into_iter().filter_map(F::net).collect();
        aggregated.sort_unstable();
        Self(aggregated.into())
    }
}

impl<F: Family> Networks<F> {
    /// The networks, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &F::Net> {
        self.0.iter()
    }

    /// Whether they cover nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether they cover every address.
    pub fn is_everything(&self) -> bool {
        self.0.iter().any(|network| F::prefix(network).1 == 0)
    }

    /// Whether they cover this address.
    pub fn contains(&self, address: F::Addr) -> bool {
        self.0.iter().any(|network| F::contains(network, address))
    }

    /// The covered addresses as ranges that do not touch, each with its first and last address.
    ///
    /// Networks side by side need not make one network, but they make one range.
    pub fn ranges(&self) -> Vec<(F::Addr, F::Addr)> {
        let mut ranges: Vec<(F::Addr, F::Addr)> = Vec::with_capacity(self.0.len());
        for network in &self.0 {
            let network: IpNet = (*network).into();
            let ends = (F::addr(network.network()), F::addr(network.broadcast()));
            let (Some(first), Some(last)) = ends else {
                continue;
            };
            match ranges.last_mut() {
                Some((_, end)) if F::next(*end) == Some(first) => *end = last,
                Some(_) | None => ranges.push((first, last)),
            }
        }
        ranges
    }
}

impl<F: Family> fmt::Display for Networks<F> {
    /// The networks, separated by spaces; `none` if there are none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(if texts.is_empty() { "none" } else { "" })?;
        f.write_str(&texts.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{V4, V6};

    fn ranges<F: Family>(texts: &[&str]) -> String {
        let networks = texts.iter().map(|n| F::net(n.parse().unwrap()).unwrap());
        let networks: Networks<F> = networks.collect();
        let ranges = networks
            .ranges()
            .into_iter()
            .map(|(first, last)| format!(" {first}-{last}"));
        format!("{networks};{}", ranges.collect::<String>())
    }

    #[test]
    fn networks_are_joined_and_ranges_do_not_touch() {
        for (networks, told) in [
            (&[][..], "none;"),
            (
                &["10.0.1.0/24", "10.0.0.0/24"],
                "10.0.0.0/23; 10.0.0.0-10.0.1.255",
            ),
            (
                &["10.0.2.0/24", "10.0.1.0/24", "10.0.2.7/32"],
                "10.0.1.0/24 10.0.2.0/24; 10.0.1.0-10.0.2.255",
            ),
            (
                &["0.0.0.0/1", "128.0.0.0/1"],
                "0.0.0.0/0; 0.0.0.0-255.255.255.255",
            ),
            (
                &["0.0.0.0/8", "255.0.0.0/8"],
                "0.0.0.0/8 255.0.0.0/8; 0.0.0.0-0.255.255.255 255.0.0.0-255.255.255.255",
            ),
        ] {
            assert_eq!(ranges::<V4>(networks), told);
        }
        assert_eq!(
            ranges::<V6>(&["2001:db8:1::/48", "2001:db8:2::/48", "ffff::/16"]),
            "2001:db8:1::/48 2001:db8:2::/48 ffff::/16; \
             2001:db8:1::-2001:db8:2:ffff:ffff:ffff:ffff:ffff \
             ffff::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
        );
    }
}
