//! How do Kubernetes objects and kube-proxy's flags spell addresses?
//!
//! Invariants: what kube-proxy accepts is accepted (leading zeros are decimal, IPv4-mapped IPv6 is
//! IPv4); everything else is an error that names the text. Spec: SVC-10.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Text that is neither an address nor a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct AddressError {
    /// What was written.
    pub text: String,
    /// What was expected instead, with an example.
    pub expected: &'static str,
}

/// Reads an IP address the way kube-proxy does.
///
/// Spec: SVC-10.
///
/// # Errors
/// [`AddressError`] if the text is no address; white space around it is part of the text.
pub fn parse_address(text: &str) -> Result<IpAddr, AddressError> {
    parse_v4(text)
        .map(IpAddr::V4)
        .or_else(|| parse_v6(text))
        .ok_or_else(|| AddressError {
            text: text.to_owned(),
            expected: "an IP address such as 192.0.2.1 or 2001:db8::1",
        })
}

/// Reads a network the way kube-proxy does; bits beyond the prefix are cleared.
///
/// Spec: SVC-10.
///
/// # Errors
/// [`AddressError`] if the text is not `ADDRESS/PREFIX`, or the prefix is longer than the address.
pub fn parse_network(text: &str) -> Result<IpNet, AddressError> {
    let parsed = || {
        let (address, prefix) = text.split_once('/')?;
        if prefix.is_empty() || prefix.len() > 3 || !prefix.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let prefix: u8 = prefix.parse().ok()?;
        let network = if address.contains(':') {
            // The prefix of an IPv4-mapped network counts from the IPv6 address's first bit.
            let address: Ipv6Addr = parse_v6_text(address)?;
            match address.to_ipv4_mapped() {
                Some(v4) if prefix >= 96 => IpNet::V4(Ipv4Net::new(v4, prefix - 96).ok()?),
                Some(_) | None => IpNet::V6(Ipv6Net::new(address, prefix).ok()?),
            }
        } else {
            IpNet::V4(Ipv4Net::new(parse_v4(address)?, prefix).ok()?)
        };
        Some(network.trunc())
    };
    parsed().ok_or_else(|| AddressError {
        text: text.to_owned(),
        expected: "a network such as 192.0.2.0/24 or 2001:db8::/64",
    })
}

/// Four decimal parts; leading zeros do not make them octal.
fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0_u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() {
            0
        } else {
            digits.parse().ok()?
        };
    }
    parts.next().is_none().then(|| octets.into())
}

fn parse_v6(text: &str) -> Option<IpAddr> {
    let address = parse_v6_text(text)?;
    Some(
        address
            .to_ipv4_mapped()
            .map_or(IpAddr::V6(address), IpAddr::V4),
    )
}

/// Like the standard parser, but a dotted tail may have leading zeros.
fn parse_v6_text(text: &str) -> Option<Ipv6Addr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let (head, tail) = text.rsplit_once(':')?;
    let tail = parse_v4(tail)?;
    format!("{head}:{tail}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Option<String> {
        parse_address(text).ok().map(|a| a.to_string())
    }

    #[test]
    fn svc_10_leading_zeros_are_decimal() {
        assert_eq!(address("172.30.0.041").as_deref(), Some("172.30.0.41"));
        assert_eq!(address("1.2.3.004").as_deref(), Some("1.2.3.4"));
        assert_eq!(address("000.0.0.0").as_deref(), Some("0.0.0.0"));
        assert_eq!(address("::ffff:1.2.3.004").as_deref(), Some("1.2.3.4"));
        assert_eq!(
            parse_network("203.0.113.000/025").map(|n| n.to_string()),
            Ok("203.0.113.0/25".to_owned())
        );
    }

    #[test]
    fn svc_10_mapped_addresses_are_ipv4() {
        assert_eq!(address("::ffff:192.0.2.1").as_deref(), Some("192.0.2.1"));
        assert_eq!(
            parse_network("::ffff:192.0.2.0/120").map(|n| n.to_string()),
            Ok("192.0.2.0/24".to_owned())
        );
    }

    #[test]
    fn networks_lose_their_host_bits() {
        assert_eq!(
            parse_network("192.0.2.77/24").map(|n| n.to_string()),
            Ok("192.0.2.0/24".to_owned())
        );
    }

    #[test]
    fn what_is_no_address_is_refused_with_its_text() {
        for text in [
            "",
            " 1.2.3.4",
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.256",
            "+1.2.3.4",
            "1..2.3",
            ":::",
            "x",
        ] {
            let error = parse_address(text).unwrap_err();
            assert_eq!(error.text, text);
        }
        for text in [
            "",
            "1.2.3.4",
            "1.2.3.4/",
            "1.2.3.4/33",
            "1.2.3.4/-1",
            "::/129",
            "1.2.3.4/+8",
        ] {
            assert!(parse_network(text).is_err(), "{text}");
        }
    }
}
