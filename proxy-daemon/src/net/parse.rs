//! How do Kubernetes objects and kube-proxy's flags spell addresses?
//!
//! Invariants: what kube-proxy accepts is accepted (leading zeros are decimal, IPv4-mapped IPv6 is
//! IPv4); everything else is an error that names the text. Spec: SVC-10.

use std::net::IpAddr;

use ipnet::IpNet;

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
    parse(text)
        .map(|address| address.to_canonical())
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
        let address = parse(address)?;
        // The prefix of an IPv4-mapped network counts from the IPv6 address's first bit.
        let network = match (address.to_canonical(), prefix.checked_sub(96)) {
            (v4 @ IpAddr::V4(_), Some(prefix)) if address.is_ipv6() => IpNet::new(v4, prefix),
            _ => IpNet::new(address, prefix),
        };
        Some(network.ok()?.trunc())
    };
    parsed().ok_or_else(|| AddressError {
        text: text.to_owned(),
        expected: "a network such as 192.0.2.0/24 or 2001:db8::/64",
    })
}

/// Like the standard parser, but parts of a dotted address may have leading zeros, which do not make them octal.
fn parse(text: &str) -> Option<IpAddr> {
    let lenient = || {
        let (head, dotted) = text.split_at_checked(text.rfind(':').map_or(0, |colon| colon + 1))?;
        let parts = dotted.split('.').map(|part| {
            let digits = part.trim_start_matches('0');
            let is_zero = digits.is_empty() && !part.is_empty();
            if is_zero { "0" } else { digits }
        });
        let is_dotted = dotted.contains('.');
        let text = format!("{head}{}", parts.collect::<Vec<_>>().join("."));
        text.parse().ok().filter(|_| is_dotted)
    };
    text.parse().ok().or_else(lenient)
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
