//! Which of two versions of the API server's state is the older one?
//!
//! Source: KEP-5504. A `resourceVersion` is a decimal number without leading zeros and grows with each
//! change; what is not of that form cannot be compared.

/// Whether `a` is older than `b`; `false` where that cannot be said.
pub(super) fn is_older(a: &str, b: &str) -> bool {
    is_number(a) && is_number(b) && (a.len(), a) < (b.len(), b)
}

fn is_number(text: &str) -> bool {
    let is_short = text == "0" || !text.starts_with('0');
    !text.is_empty() && is_short && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers_where_they_are_numbers() {
        for (a, b) in [
            ("9", "10"),
            ("1000", "1300"),
            ("0", "1"),
            ("99999999999999999999", "100000000000000000000"),
        ] {
            assert!(is_older(a, b), "{a} {b}");
            assert!(!is_older(b, a), "{b} {a}");
            assert!(!is_older(a, a), "{a}");
        }
        for (a, b) in [
            ("", "1"),
            ("1", ""),
            ("a", "b"),
            ("01", "2"),
            ("1.5", "2"),
            ("-1", "2"),
        ] {
            assert!(!is_older(a, b) && !is_older(b, a), "{a} {b}");
        }
    }
}
