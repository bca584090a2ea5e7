//! Encodes metric families in the format that the scraper asks for.
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

use std::io::{self, Write};

use chrono::{DateTime, Utc};

mod family;
mod negotiate;
mod protobuf;
mod text;

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

/// Writes the past of a family of counters as `OpenMetrics` text. `pasts` has, for each of its samples in their order,
/// the values of that series with their times, oldest first. After the last family comes [`END_OF_PAST`].
pub fn write_past<P: IntoIterator<Item = (DateTime<Utc>, u64)>>(
    out: &mut dyn Write,
    family: &Family,
    pasts: impl IntoIterator<Item = P>,
) -> io::Result<()> {
    text::write_past(out, family, pasts)
}

/// The end of a page of `OpenMetrics` text.
pub const END_OF_PAST: &[u8] = b"# EOF\n";

#[cfg(test)]
pub(crate) mod tests;
