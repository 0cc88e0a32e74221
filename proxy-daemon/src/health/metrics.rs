//! How do dashboards count syncs?
//!
//! The names and labels are kube-proxy's, so that its dashboards go on working. Invariants: the text is
//! Prometheus' exposition format 0.0.4; a family that is not served is not mentioned. Spec: MET-4.

use std::fmt::{self, Write as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Upper bounds double from one millisecond, as kube-proxy's do.
const N_BUCKETS: usize = 15;

/// How long things took.
#[derive(Clone, Debug, Default)]
pub(super) struct Histogram {
    buckets: [u64; N_BUCKETS],
    count: u64,
    sum: Duration,
}

impl Histogram {
    /// One more.
    pub(super) fn observe(&mut self, took: Duration) {
        for (bound, bucket) in bounds().zip(&mut self.buckets) {
            if took <= bound {
                *bucket += 1;
            }
        }
        self.count += 1;
        self.sum += took;
    }

    /// Both together.
    pub(super) fn plus(&self, other: &Self) -> Self {
        let mut sum = self.clone();
        for (bucket, more) in sum.buckets.iter_mut().zip(other.buckets) {
            *bucket += more;
        }
        sum.count += other.count;
        sum.sum += other.sum;
        sum
    }

    /// How many there were.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }
}

fn bounds() -> impl Iterator<Item = Duration> {
    (0..u32::MAX).map(|n| Duration::from_millis(1 << n.min(63)))
}

/// A page of metrics in the making.
#[derive(Debug, Default)]
pub(super) struct Page {
    text: String,
}

impl Page {
    /// The page.
    pub(super) fn into_text(self) -> String {
        self.text
    }

    fn write(&mut self, arguments: fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        self.text.write_fmt(arguments).unwrap_or_default();
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.write(format_args!(
            "# HELP kubeproxy_{name} {help}\n# TYPE kubeproxy_{name} {kind}\n"
        ));
    }

    /// A counter or a gauge with one value for each set of labels.
    pub(super) fn values<V: fmt::Display>(
        &mut self,
        (name, kind, help): (&str, &str, &str),
        values: impl IntoIterator<Item = (String, V)>,
    ) {
        self.head(name, kind, help);
        for (labels, value) in values {
            self.write(format_args!("kubeproxy_{name}{{{labels}}} {value}\n"));
        }
    }

    /// A histogram for each set of labels.
    pub(super) fn histograms(
        &mut self,
        (name, help): (&str, &str),
        histograms: impl IntoIterator<Item = (String, Histogram)>,
    ) {
        self.head(name, "histogram", help);
        for (labels, histogram) in histograms {
            for (bound, count) in bounds().zip(histogram.buckets) {
                let bound = bound.as_secs_f64();
                self.write(format_args!(
                    "kubeproxy_{name}_bucket{{{labels},le=\"{bound}\"}} {count}\n"
                ));
            }
            let (count, sum) = (histogram.count, histogram.sum.as_secs_f64());
            self.write(format_args!(
                "kubeproxy_{name}_bucket{{{labels},le=\"+Inf\"}} {count}\n\
                 kubeproxy_{name}_sum{{{labels}}} {sum}\n\
                 kubeproxy_{name}_count{{{labels}}} {count}\n"
            ));
        }
    }
}

/// A moment as dashboards want it: seconds since 1970.
pub(super) fn timestamp(moment: Option<SystemTime>) -> f64 {
    moment
        .and_then(|moment| moment.duration_since(UNIX_EPOCH).ok())
        .map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn met_4_a_histogram_is_cumulative() {
        let mut histogram = Histogram::default();
        histogram.observe(Duration::from_micros(500));
        histogram.observe(Duration::from_millis(3));
        histogram.observe(Duration::from_secs(100));
        let mut page = Page::default();
        page.histograms(("x", "help"), [("a=\"b\"".to_owned(), histogram)]);
        let text = page.into_text();
        for line in [
            "# TYPE kubeproxy_x histogram",
            "kubeproxy_x_bucket{a=\"b\",le=\"0.001\"} 1",
            "kubeproxy_x_bucket{a=\"b\",le=\"0.004\"} 2",
            "kubeproxy_x_bucket{a=\"b\",le=\"16.384\"} 2",
            "kubeproxy_x_bucket{a=\"b\",le=\"+Inf\"} 3",
            "kubeproxy_x_count{a=\"b\"} 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
