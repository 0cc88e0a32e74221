//! How does Go write a duration?
//!
//! Invariants: what `time.ParseDuration` accepts is accepted and means the same; nothing else is.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A duration as flags and `KubeProxyConfiguration` write it, such as `1m30s` or `500ms`.
///
/// Unit: nanoseconds; may be negative, which validation refuses with the field's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(i64);

impl GoDuration {
    /// So many seconds.
    pub const fn from_secs(seconds: u32) -> Self {
        Self(seconds as i64 * 1_000_000_000)
    }

    /// The duration; `None` if it is negative.
    pub fn get(self) -> Option<Duration> {
        u64::try_from(self.0).ok().map(Duration::from_nanos)
    }

    /// Whether it is exactly zero, which often means "unset".
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

/// Text that is no Go duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration such as 30s, 1m0s or 500ms")]
pub struct DurationError(String);

impl std::str::FromStr for GoDuration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        parse(text).ok_or_else(|| DurationError(text.to_owned()))
    }
}

/// The grammar of `time.ParseDuration`: `[-+]?(0|([0-9]*(\.[0-9]*)?[a-z]+)+)`.
fn parse(text: &str) -> Option<GoDuration> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(GoDuration(0));
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i64 = 0;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at_checked(end)?;
        let unit = nanoseconds(unit)?;
        let whole: i64 = if whole.is_empty() {
            0
        } else {
            whole.parse().ok()?
        };
        total = total
            .checked_add(whole.checked_mul(unit)?)?
            .checked_add(fraction_of(fraction, unit)?)?;
        rest = after;
    }
    Some(GoDuration(if negative { -total } else { total }))
}

fn digits(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, ""))
}

fn nanoseconds(unit: &str) -> Option<i64> {
    match unit {
        "ns" => Some(1),
        "us" | "µs" | "μs" => Some(1_000),
        "ms" => Some(1_000_000),
        "s" => Some(1_000_000_000),
        "m" => Some(60_000_000_000),
        "h" => Some(3_600_000_000_000),
        _ => None,
    }
}

/// `0.digits` of a unit, cut to whole nanoseconds.
fn fraction_of(digits: &str, unit: i64) -> Option<i64> {
    let digits = digits.get(..digits.len().min(15)).unwrap_or(digits);
    if digits.is_empty() {
        return Some(0);
    }
    let numerator: i128 = digits.parse().ok()?;
    let denominator = 10_i128.checked_pow(u32::try_from(digits.len()).ok()?)?;
    i64::try_from(numerator * i128::from(unit) / denominator).ok()
}

impl fmt::Display for GoDuration {
    /// As Go prints it: `1h0m0s`, `1m30s`, `500ms`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let total = self.0.unsigned_abs();
        if total == 0 {
            return f.write_str("0s");
        }
        let decimal = |f: &mut fmt::Formatter<'_>, unit: u64, name: &str| {
            let fraction = format!("{:0width$}", total % unit, width = unit.ilog10() as usize);
            let fraction = fraction.trim_end_matches('0');
            let dot = if fraction.is_empty() { "" } else { "." };
            write!(f, "{sign}{}{dot}{fraction}{name}", total / unit)
        };
        if total < 1_000 {
            return write!(f, "{sign}{total}ns");
        }
        if total < 1_000_000 {
            return decimal(f, 1_000, "µs");
        }
        if total < 1_000_000_000 {
            return decimal(f, 1_000_000, "ms");
        }
        let minutes = total / 60_000_000_000;
        let seconds = total % 60_000_000_000;
        f.write_str(sign)?;
        if minutes >= 60 {
            write!(f, "{}h", minutes / 60)?;
        }
        if minutes > 0 {
            write!(f, "{}m", minutes % 60)?;
        }
        let fraction = format!("{:09}", seconds % 1_000_000_000);
        let fraction = fraction.trim_end_matches('0');
        let dot = if fraction.is_empty() { "" } else { "." };
        write!(f, "{}{dot}{fraction}s", seconds / 1_000_000_000)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = GoDuration;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as 30s or 1m0s")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<GoDuration, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_are_read_and_printed_as_go_does() {
        for (text, nanoseconds, printed) in [
            ("30s", 30_000_000_000, "30s"),
            ("1m0s", 60_000_000_000, "1m0s"),
            ("500ms", 500_000_000, "500ms"),
            ("0", 0, "0s"),
            ("0s", 0, "0s"),
            ("24h", 86_400_000_000_000, "24h0m0s"),
            ("1.5h", 5_400_000_000_000, "1h30m0s"),
            (".5s", 500_000_000, "500ms"),
            ("1.s", 1_000_000_000, "1s"),
            ("-1s", -1_000_000_000, "-1s"),
            ("+2us", 2_000, "2µs"),
            ("1h1m1.25s", 3_661_250_000_000, "1h1m1.25s"),
        ] {
            let duration: GoDuration = text.parse().unwrap();
            assert_eq!(duration, GoDuration(nanoseconds), "{text}");
            assert_eq!(duration.to_string(), printed, "{text}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for text in [
            "",
            "1",
            "s",
            "1 s",
            ".s",
            "-",
            "1x",
            "1h-1m",
            "9999999999h",
            "é",
        ] {
            assert!(text.parse::<GoDuration>().is_err(), "{text:?}");
        }
    }
}
