//! The only place that reads the clock.
//!
//! Promises: every other module receives a [`Clock`] and can therefore run in simulated time
//! (`tokio::time::pause`). Leaves to others: sleeping (`tokio::time`), and the services' own
//! clocks, whose difference from ours `api.rs` measures.

use std::time::{Duration, SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};
use tokio::time::Instant;

/// Where the present comes from: the machine, or a simulation that began at a chosen moment and
/// advances with tokio's (pausable) time.
#[derive(Clone, Debug)]
pub struct Clock(Kind);

#[derive(Clone, Debug)]
enum Kind {
    /// Asked each time, so that corrections of the machine's clock are followed.
    Machine,
    Simulated {
        epoch: DateTime<Utc>,
        since: Instant,
    },
}

impl Clock {
    /// The machine's wall clock.
    pub fn machine() -> Self {
        Self(Kind::Machine)
    }

    /// A clock that shows `epoch` now and goes on at the pace of tokio's time.
    pub fn starting_at(epoch: DateTime<Utc>) -> Self {
        Self(Kind::Simulated { epoch, since: Instant::now() })
    }

    /// The present, to the millisecond: the resolution of everything this program stores.
    pub fn now(&self) -> DateTime<Utc> {
        let now = match &self.0 {
            #[expect(clippy::disallowed_methods, reason = "this is the one place")]
            Kind::Machine => DateTime::<Utc>::from(SystemTime::now()),
            Kind::Simulated { epoch, since } => *epoch + since.elapsed(),
        };
        DateTime::from_timestamp_millis(now.timestamp_millis()).unwrap_or(now)
    }
}

/// Seconds since the Unix epoch, as Prometheus wants its timestamps.
pub fn unix_seconds(at: DateTime<Utc>) -> f64 {
    milliseconds_as_seconds(at.timestamp_millis())
}

/// A `std` duration as chrono's, saturating at about 292 million years.
pub fn delta(duration: Duration) -> chrono::TimeDelta {
    chrono::TimeDelta::from_std(duration).unwrap_or(chrono::TimeDelta::MAX)
}

/// A moment as people are told it: RFC 3339, to the second.
pub fn rfc3339_seconds(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Milliseconds as seconds.
#[expect(clippy::cast_precision_loss, reason = "milliseconds stay exact in an f64 for 285,000 years")]
pub fn milliseconds_as_seconds(milliseconds: i64) -> f64 {
    milliseconds as f64 / 1000.0
}
