//! How do dashboards count syncs?
//!
//! The names and labels are kube-proxy's, so that its dashboards go on working. Invariants: the text is
//! Prometheus' exposition format 0.0.4; a family that is not served is not mentioned. Spec: MET-4.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, prometheus_text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::exponential_buckets;
use prometheus_client::registry::Registry;

use super::{Family, Probes};
use crate::datapath::{FailureCounter, Figure};
use crate::net::IpFamily;

pub(super) use prometheus_client::encoding::prometheus_text::CONTENT_TYPE;

/// A histogram of durations, whose upper bounds double from one millisecond as kube-proxy's do.
///
/// All clones of the library's own are the same one, and so cannot show a moment.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    seconds: f64,
    /// How many were longer than the bound before, but not than this one. Unit: seconds.
    buckets: Vec<(f64, u64)>,
}

impl Default for Histogram {
    fn default() -> Self {
        let bounds = exponential_buckets(0.001, 2.0, 15).chain([f64::MAX]);
        Self {
            seconds: 0.0,
            buckets: bounds.map(|bound| (bound, 0)).collect(),
        }
    }
}

impl Histogram {
    /// One more.
    pub(super) fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        self.seconds += seconds;
        let mut buckets = self.buckets.iter_mut();
        if let Some((_, n)) = buckets.find(|(bound, _)| seconds <= *bound) {
            *n += 1;
        }
    }
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let n = self.buckets.iter().map(|(_, n)| n).sum();
        encoder.encode_histogram::<NoLabelSet>(self.seconds, n, &self.buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// A metric with a value for each family.
struct Metric {
    /// Without the prefix `kubeproxy_`, and of a counter without `_total`: the encoder adds both.
    name: &'static str,
    help: &'static str,
    value: fn(&Family) -> Box<dyn EncodeMetric>,
}

const METRICS: [Metric; 7] = [
    Metric {
        name: "sync_proxy_rules_duration_seconds",
        help: "Duration of syncs",
        value: |family| Box::new(family.syncs.clone()),
    },
    Metric {
        name: "sync_full_proxy_rules_duration_seconds",
        help: "Duration of syncs that read back everything",
        value: |family| Box::new(family.full.clone()),
    },
    Metric {
        name: "sync_partial_proxy_rules_duration_seconds",
        help: "Duration of syncs that wrote only what changed",
        value: |family| Box::new(family.partial.clone()),
    },
    Metric {
        name: "conntrack_reconciler_sync_duration_seconds",
        help: "Duration of searches for stale UDP flows",
        value: |family| Box::new(family.conntrack.clone()),
    },
    Metric {
        name: "sync_proxy_rules_last_timestamp_seconds",
        help: "End of the last successful sync",
        value: |family| moment(family.last_updated),
    },
    Metric {
        name: "sync_proxy_rules_last_queued_timestamp_seconds",
        help: "Last request for a sync",
        value: |family| moment(family.last_queued),
    },
    Metric {
        name: "conntrack_reconciler_deleted_entries",
        help: "Stale UDP flows deleted",
        value: |family| count(family.n_flows_deleted),
    },
];

/// All values at one moment.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) families: BTreeMap<IpFamily, Family>,
    pub(super) probes: Probes,
    /// The counters of failed syncs of the datapath.
    pub(super) failures: &'static [FailureCounter],
    pub(super) figures: Vec<Figure>,
}

impl Page {
    /// The text that a scraper reads.
    pub(super) fn into_text(self) -> String {
        let mut registry = Registry::with_prefix("kubeproxy");
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        // Writing to a String cannot fail.
        prometheus_text::encode(&mut text, &registry).unwrap_or_default();
        text
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let failures = self.failures.iter().map(|counter| Metric {
            name: counter.name,
            help: counter.help,
            value: if counter.only_partial {
                |family| count(family.n_partial_failures)
            } else {
                |family| count(family.n_failures)
            },
        });
        for Metric { name, help, value } in METRICS.into_iter().chain(failures) {
            let kind = value(&Family::default()).metric_type();
            let mut encoder = encoder.encode_descriptor(name, help, None, kind)?;
            for (name, family) in &self.families {
                let label = [("ip_family", name.name())];
                value(family).encode(encoder.encode_family(&label)?)?;
            }
        }
        for figure in &self.figures {
            let (counter, gauge) = (
                ConstCounter::new(figure.value),
                ConstGauge::new(figure.value),
            );
            let value: &dyn EncodeMetric = if figure.is_counter { &counter } else { &gauge };
            let kind = value.metric_type();
            value.encode(encoder.encode_descriptor(figure.name, figure.help, None, kind)?)?;
        }
        for (path, name) in [("healthz", "proxy_healthz"), ("livez", "proxy_livez")] {
            let kind = MetricType::Counter;
            let mut encoder = encoder.encode_descriptor(name, "Probes answered", None, kind)?;
            for ((_, code), n) in self.probes.iter().filter(|((of, _), _)| *of == path) {
                let label = [("code", *code)];
                ConstCounter::new(*n).encode(encoder.encode_family(&label)?)?;
            }
        }
        Ok(())
    }
}

fn count(n: u32) -> Box<dyn EncodeMetric> {
    Box::new(ConstCounter::new(n))
}

/// In seconds since 1970; 0 for what has not happened.
fn moment(moment: Option<SystemTime>) -> Box<dyn EncodeMetric> {
    let since = moment.and_then(|moment| moment.duration_since(UNIX_EPOCH).ok());
    Box::new(ConstGauge::new(since.unwrap_or_default().as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn met_4_a_histogram_is_cumulative() {
        let mut family = Family::default();
        for took in [
            Duration::from_micros(500),
            Duration::from_millis(3),
            Duration::from_secs(100),
        ] {
            family.conntrack.observe(took);
        }
        let page = Page {
            families: BTreeMap::from([(IpFamily::V4, family)]),
            probes: Probes::default(),
            failures: &[],
            figures: Vec::new(),
        };
        let text = page.into_text();
        let name = "kubeproxy_conntrack_reconciler_sync_duration_seconds";
        for line in [
            "# TYPE NAME histogram",
            "NAME_bucket{ip_family=\"IPv4\",le=\"0.001\"} 1",
            "NAME_bucket{ip_family=\"IPv4\",le=\"0.004\"} 2",
            "NAME_bucket{ip_family=\"IPv4\",le=\"16.384\"} 2",
            "NAME_bucket{ip_family=\"IPv4\",le=\"+Inf\"} 3",
            "NAME_count{ip_family=\"IPv4\"} 3",
        ] {
            let line = line.replace("NAME", name);
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
