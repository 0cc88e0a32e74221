//! Which strings are Kubernetes names, and which are times?
//!
//! Invariants: what passes here contains only letters, digits, `-` and `.`, so that it can stand in a
//! log line, a comment of a kernel object or a path.

/// Whether this is a DNS label: the name of a namespace, a Service or a port.
///
/// Source: RFC 1123, as `IsDNS1123Label` of Kubernetes has it.
pub(crate) fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_part(text)
}

/// Whether this is a DNS subdomain: the name of an EndpointSlice, a Node or a ServiceCIDR.
///
/// Source: RFC 1123, as `IsDNS1123Subdomain` of Kubernetes has it.
pub(crate) fn is_subdomain(text: &str) -> bool {
    // Unlike the parts of a host name, each part may be as long as the whole.
    text.len() <= 253 && text.split('.').all(is_part)
}

fn is_part(text: &str) -> bool {
    let is_alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(is_alphanumeric)
        && bytes.last().is_some_and(is_alphanumeric)
        && bytes.iter().all(|b| is_alphanumeric(b) || *b == b'-')
}

/// Reads a time such as `2026-11-22T08:10:38Z`, with or without a fraction, in any zone.
///
/// Returns seconds since 1970-01-01 UTC; the fraction is dropped.
/// Source: RFC 3339.
pub(crate) fn parse_time(text: &str) -> Option<i64> {
    text.parse::<jiff::Timestamp>()
        .ok()
        .map(jiff::Timestamp::as_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_lower_case_and_at_most_63_long() {
        for good in ["a", "a-b", "0", "web-1", &"x".repeat(63)] {
            assert!(is_label(good), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a.b",
            "a/b",
            "a_b",
            "ä",
            "a b",
            "..",
            &"x".repeat(64),
        ] {
            assert!(!is_label(bad), "{bad}");
        }
    }

    #[test]
    fn subdomains_are_parts_with_dots_between() {
        for good in ["a", "a.b", "node-1.example.com", &"x".repeat(253)] {
            assert!(is_subdomain(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "a..b",
            ".a",
            "a.",
            "a.-b",
            "A",
            "a/b",
            &"x".repeat(254),
        ] {
            assert!(!is_subdomain(bad), "{bad}");
        }
    }

    #[test]
    fn times_are_read_in_any_zone() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:00:00Z", 951_825_600),
            ("2026-11-22T08:10:38Z", 1_795_335_038),
            ("2026-11-22T08:10:38.123456Z", 1_795_335_038),
            ("2026-11-22T09:10:38+01:00", 1_795_335_038),
            ("2026-11-22t07:10:38-01:00", 1_795_335_038),
            ("1969-12-31T23:59:59Z", -1),
        ] {
            assert_eq!(parse_time(text), Some(seconds), "{text}");
        }
        for text in [
            "",
            "2026",
            "2026-11-22",
            "2026-11-22T08:10:38",
            "2026-13-22T08:10:38Z",
            "2026-11-22T24:10:38Z",
            "2026-11-22T08:10:38.Z",
            "2026-11-22T08:10:38+1:00",
            "2026-11-22T08:10:38+01:00x",
            "+026-11-22T08:10:38Z",
            "ä026-11-22T08:10:38Z",
        ] {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }
}
