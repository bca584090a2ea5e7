//! From a list of metric families to the bytes of a scrape, and which bytes a scraper wants.
//!
//! Promises: pure functions, no I/O, no clock. The same families say the same in every
//! [`Format`]; what differs is only what the format itself prescribes. A family without samples
//! is left out, and so is a sample whose value does not fit its family's kind, so that whatever
//! is passed in, one scrape stays readable. Nothing here reorders: families, samples and labels
//! are written as given.
//!
//! Leaves to others: which families exist and their values (`metrics.rs`), HTTP and compression
//! (`web.rs`). Label values may hold any text; names are the caller's own and are written as
//! they are, so tests pass pages through a lint (`tests/it/lint.rs`).

mod family;
mod negotiate;
mod protobuf;
mod text;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::proto;

pub use family::{Family, Kind, Sample, Value};
pub use negotiate::negotiate;

/// The wire formats of a scrape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Prometheus text 0.0.4.
    Text,
    /// `OpenMetrics` text 1.0.0.
    OpenMetrics,
    /// Length-delimited `io.prometheus.client.MetricFamily` messages.
    Protobuf,
}

impl Format {
    /// The value of the response header `Content-Type`.
    ///
    /// `escaping` is not among the parameters: all names here are legacy names, which every
    /// escaping scheme leaves as they are; without it `underscores` is meant, and this way the
    /// type is to the letter the one of the `OpenMetrics` 1.0 specification.
    pub fn content_type(&self) -> &'static str {
        match self {
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Protobuf => prometheus::PROTOBUF_FORMAT,
        }
    }
}

/// The body of a scrape. `openmetrics_created` adds `_created` lines to `OpenMetrics` text, which
/// a Prometheus without the feature flag `created-timestamp-zero-ingestion` stores as one more
/// series each; protobuf always carries the creation times, text 0.0.4 cannot.
pub fn encode(families: &[Family], format: Format, openmetrics_created: bool) -> Vec<u8> {
    match format {
        Format::Text => text::write(families, text::Dialect::Text),
        Format::OpenMetrics => text::write(families, text::Dialect::OpenMetrics { created: openmetrics_created }),
        Format::Protobuf => protobuf::write(families),
    }
}

/// Families as the `prometheus` crate collects them (its process collector), so that they can be
/// served beside our own. Summaries and untyped metrics have no counterpart here and are left
/// out, and so are explicit timestamps, which an exporter should not set.
///
/// Names and help texts are kept for the life of the process, each distinct one once: they come
/// from code, so there are few, and everything else can go on with `&'static str`.
pub fn from_proto(families: Vec<proto::MetricFamily>) -> Vec<Family> {
    families.into_iter().filter_map(family_from_proto).collect()
}

fn family_from_proto(mut family: proto::MetricFamily) -> Option<Family> {
    let kind = match family.get_field_type() {
        proto::MetricType::COUNTER => Kind::Counter,
        proto::MetricType::GAUGE => Kind::Gauge,
        proto::MetricType::HISTOGRAM => Kind::Histogram,
        proto::MetricType::SUMMARY | proto::MetricType::UNTYPED => return None,
    };
    let samples = family.take_metric().iter().map(|metric| sample_from_proto(kind, metric)).collect();
    Some(Family { name: intern(family.name()), help: intern(family.help()), kind, samples })
}

fn sample_from_proto(kind: Kind, metric: &proto::Metric) -> Sample {
    let labels = metric.get_label().iter().map(|label| (intern(label.name()), Arc::from(label.value()))).collect();
    let value = match kind {
        Kind::Counter => Value::Number(metric.get_counter().value()),
        Kind::Gauge => Value::Number(metric.get_gauge().value()),
        Kind::Histogram => {
            let histogram = metric.get_histogram();
            let buckets = histogram.get_bucket().iter().map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()));
            Value::Histogram {
                buckets: buckets.filter(|(bound, _)| *bound != f64::INFINITY).collect(),
                sum: histogram.get_sample_sum(),
                count: histogram.get_sample_count(),
            }
        }
    };
    Sample { labels, value, created: None }
}

/// The text, kept for the life of the process.
fn intern(text: &str) -> &'static str {
    static KEPT: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    // A panic between the two steps leaves the set whole, so a poisoned lock is still good.
    let mut all = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = all.get(text) {
        return known;
    }
    let new: &'static str = Box::leak(text.into());
    all.insert(new);
    new
}

#[cfg(test)]
mod tests;
