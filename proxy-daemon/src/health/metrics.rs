//! How do dashboards count syncs?
//!
//! The names and labels are kube-proxy's, so that its dashboards go on working. Invariants: the text is
//! Prometheus' exposition format 0.0.4; a family that is not served is not mentioned. Spec: MET-4.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{self, exponential_buckets};
use prometheus_client::registry::Registry;

use super::{Family, Probes};
use crate::datapath::{FailureCounter, Figure};
use crate::net::IpFamily;

pub(super) use prometheus_client::encoding::prometheus_text::CONTENT_TYPE;

/// A histogram of durations, whose upper bounds double from one millisecond as kube-proxy's do.
#[derive(Clone, Debug)]
pub(super) struct Histogram(histogram::Histogram);

impl Default for Histogram {
    fn default() -> Self {
        Self(histogram::Histogram::new(exponential_buckets(
            0.001, 2.0, 15,
        )))
    }
}

impl Histogram {
    /// One more.
    pub(super) fn observe(&self, took: Duration) {
        self.0.observe(took.as_secs_f64());
    }
}

/// A metric with a value for each family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Metric {
    /// Without the prefix `kubeproxy_`, and of a counter without `_total`: the encoder adds both.
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) value: Value,
}

/// How a metric's value is read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    Durations(fn(&Family) -> &Histogram),
    /// A moment, in seconds since 1970.
    Moment(fn(&Family) -> Option<SystemTime>),
    Count(fn(&Family) -> u32),
}

const METRICS: [Metric; 7] = [
    Metric {
        name: "sync_proxy_rules_duration_seconds",
        help: "Duration of syncs",
        value: Value::Durations(|family| &family.syncs),
    },
    Metric {
        name: "sync_full_proxy_rules_duration_seconds",
        help: "Duration of syncs that read back everything",
        value: Value::Durations(|family| &family.full),
    },
    Metric {
        name: "sync_partial_proxy_rules_duration_seconds",
        help: "Duration of syncs that wrote only what changed",
        value: Value::Durations(|family| &family.partial),
    },
    Metric {
        name: "conntrack_reconciler_sync_duration_seconds",
        help: "Duration of searches for stale UDP flows",
        value: Value::Durations(|family| &family.conntrack),
    },
    Metric {
        name: "sync_proxy_rules_last_timestamp_seconds",
        help: "End of the last successful sync",
        value: Value::Moment(|family| family.last_updated),
    },
    Metric {
        name: "sync_proxy_rules_last_queued_timestamp_seconds",
        help: "Last request for a sync",
        value: Value::Moment(|family| family.last_queued),
    },
    Metric {
        name: "conntrack_reconciler_deleted_entries",
        help: "Stale UDP flows deleted",
        value: Value::Count(|family| family.n_flows_deleted),
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
            value: Value::Count(if counter.only_partial {
                |family| family.n_partial_failures
            } else {
                |family| family.n_failures
            }),
        });
        for metric in METRICS.into_iter().chain(failures) {
            let kind = match metric.value {
                Value::Durations(_) => MetricType::Histogram,
                Value::Moment(_) => MetricType::Gauge,
                Value::Count(_) => MetricType::Counter,
            };
            let mut encoder = encoder.encode_descriptor(metric.name, metric.help, None, kind)?;
            for (name, family) in &self.families {
                let label = [("ip_family", name.name())];
                let encoder = encoder.encode_family(&label)?;
                match metric.value {
                    Value::Durations(of) => of(family).0.encode(encoder),
                    Value::Moment(of) => ConstGauge::new(seconds(of(family))).encode(encoder),
                    Value::Count(of) => ConstCounter::new(of(family)).encode(encoder),
                }?;
            }
        }
        for figure in &self.figures {
            let kind = if figure.is_counter {
                MetricType::Counter
            } else {
                MetricType::Gauge
            };
            let encoder = encoder.encode_descriptor(figure.name, figure.help, None, kind)?;
            if figure.is_counter {
                ConstCounter::new(figure.value).encode(encoder)?;
            } else {
                ConstGauge::new(figure.value).encode(encoder)?;
            }
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

/// Seconds since 1970; 0 for what has not happened.
fn seconds(moment: Option<SystemTime>) -> f64 {
    moment
        .and_then(|moment| moment.duration_since(UNIX_EPOCH).ok())
        .map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn met_4_a_histogram_is_cumulative() {
        let family = Family::default();
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
