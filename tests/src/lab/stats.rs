//! What do a number of measurements come to?

use std::time::Duration;

/// The value that a share `q` (0 to 1) of the sorted values does not exceed; nearest rank.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts of measurements are small"
    )]
    let rank = ((sorted.len() as f64 * q).ceil() as usize).clamp(1, sorted.len().max(1));
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

/// The middle value.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// Unit: milliseconds.
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Milliseconds for people: three digits.
pub fn show_ms(ms: f64) -> String {
    match ms {
        x if x.is_nan() => "–".into(),
        x if x < 9.995 => format!("{x:.2} ms"),
        x if x < 99.95 => format!("{x:.1} ms"),
        x if x < 9_999.5 => format!("{x:.0} ms"),
        x => format!("{:.1} s", x / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_measured_values() {
        let values = [5.0, 1.0, 3.0, 2.0, 4.0];
        assert_eq!(median(&values).to_bits(), 3.0_f64.to_bits());
        assert_eq!(quantile(&values, 0.99).to_bits(), 5.0_f64.to_bits());
        assert_eq!(quantile(&values, 0.0).to_bits(), 1.0_f64.to_bits());
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn milliseconds_keep_three_digits() {
        assert_eq!(show_ms(0.1234), "0.12 ms");
        assert_eq!(show_ms(12.34), "12.3 ms");
        assert_eq!(show_ms(1234.0), "1234 ms");
    }
}
