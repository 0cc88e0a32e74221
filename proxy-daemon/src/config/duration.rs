//! How does Go write a duration?
//!
//! Invariants: what `time.ParseDuration` accepts is accepted and means the same; nothing else is.

use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error as _};

/// A duration as flags and `KubeProxyConfiguration` write it, such as `1m30s` or `500ms`.
///
/// Unit: nanoseconds; may be negative, which validation refuses with the field's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(i64);

impl GoDuration {
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
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return Some(GoDuration(0));
    }
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let mut total: i128 = 0;
    loop {
        let (number, after) = rest.split_at_checked(rest.find(|c| !is_number(c))?)?;
        let end = after.find(is_number).unwrap_or(after.len());
        let (unit, after) = after.split_at_checked(end)?;
        total = total.checked_add(nanoseconds(number, unit)?)?;
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    let sign = if text.starts_with('-') { -1 } else { 1 };
    i64::try_from(sign * total).ok().map(GoDuration)
}

/// So many of a unit, cut to whole nanoseconds.
fn nanoseconds(number: &str, unit: &str) -> Option<i128> {
    let unit: i128 = match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // No unit has so many nanoseconds that further digits count.
    let fraction = fraction.get(..15).unwrap_or(fraction);
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let n_fraction = u32::try_from(fraction.len()).ok()?;
    Some(digits.checked_mul(unit)? / 10_i128.pow(n_fraction))
}

impl fmt::Display for GoDuration {
    /// In one unit, such as `-90.5s` or `500ms`, which Go reads too.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        write!(f, "{sign}{:?}", Duration::from_nanos(self.0.unsigned_abs()))
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_are_read_as_go_does_and_printed_so_that_it_could() {
        for (text, nanoseconds, printed) in [
            ("30s", 30_000_000_000, "30s"),
            ("1m0s", 60_000_000_000, "60s"),
            ("500ms", 500_000_000, "500ms"),
            ("0", 0, "0ns"),
            ("0s", 0, "0ns"),
            ("24h", 86_400_000_000_000, "86400s"),
            ("1.5h", 5_400_000_000_000, "5400s"),
            (".5s", 500_000_000, "500ms"),
            ("1.s", 1_000_000_000, "1s"),
            ("-1s", -1_000_000_000, "-1s"),
            ("+2us", 2_000, "2µs"),
            ("1h1m1.25s", 3_661_250_000_000, "3661.25s"),
        ] {
            let duration: GoDuration = text.parse().unwrap();
            assert_eq!(duration, GoDuration(nanoseconds), "{text}");
            assert_eq!(duration.to_string(), printed, "{text}");
            assert_eq!(printed.parse(), Ok(duration), "{text}");
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
            "1.2.3s",
            "--1s",
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
