//! Statistics of a source: requests, errors, throttling, polls.
//!
//! Promises: made by `api.rs` and `poll.rs` alone, alike for every source. Unlike the ledger's
//! counters these begin at 0 with the process, as Prometheus counters of a process do, so that
//! they can be shown even while the disk cannot be written.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

use crate::failure::{ErrorKind, Failure};

/// How a poll ended; the label `result` of `audit_source_polls_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollResult {
    /// Everything was read and committed.
    Success,
    /// Something failed.
    Error,
    /// The service asked to slow down and did not relent in time.
    Throttled,
}

impl PollResult {
    /// Every result.
    pub const ALL: [PollResult; 3] = [PollResult::Success, PollResult::Error, PollResult::Throttled];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            PollResult::Success => "success",
            PollResult::Error => "error",
            PollResult::Throttled => "throttled",
        }
    }
}

/// Upper bounds of `audit_source_poll_duration_seconds`.
pub const POLL_DURATION_BOUNDS: [f64; 11] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// A login that was refused, so that a reload does not try it again at once.
#[derive(Clone, Copy, Debug)]
pub struct Refused {
    /// How many were, in a row.
    pub failures: u32,
    /// When it is tried again.
    pub until: Instant,
    /// A fingerprint of the credential.
    pub credential: Option<[u8; 32]>,
}

/// What is known of one source since the process started.
#[derive(Debug, Default)]
pub struct SourceStats {
    errors: [AtomicU64; ErrorKind::ALL.len()],
    polls: [AtomicU64; PollResult::ALL.len()],
    throttled: AtomicU64,
    waited_ms: AtomicU64,
    up: AtomicBool,
    observed: Mutex<Observed>,
}

/// The part of the statistics that is not a plain number.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Requests by HTTP status.
    pub requests: BTreeMap<u16, u64>,
    /// Polls by bucket (not cumulative) of [`POLL_DURATION_BOUNDS`] and beyond.
    pub poll_durations: [u64; POLL_DURATION_BOUNDS.len() + 1],
    /// Sum of the poll durations.
    pub poll_seconds: f64,
    /// When a poll last succeeded.
    pub last_success: Option<DateTime<Utc>>,
    /// When that poll had begun.
    pub last_success_began: Option<Instant>,
    /// When and why something last failed.
    pub last_error: Option<(DateTime<Utc>, String)>,
    /// How many polls have ended since then.
    pub polls_since_error: u64,
    /// Requests we may still make at once, by the service's own account where it gives one.
    pub remaining: Option<f64>,
    /// When the credential in use ends.
    pub credential_expiry: Option<DateTime<Utc>>,
    /// The service's clock less ours, by its `Date` header.
    pub clock_skew: Option<TimeDelta>,
    /// Events the service returned although they lie outside the window that was asked for.
    pub outside_window: u64,
    /// Whether the last poll ended because the service asked to slow down.
    pub throttled_last: bool,
    /// When the next poll is due.
    pub next_poll: Option<DateTime<Utc>>,
    /// The pause after the last login, where that was refused.
    pub refused: Option<Refused>,
}

impl Observed {
    /// The last error, unless a poll has gone through without any since. An error need not fail its poll: one bad entry of a
    /// page is reported, and the rest is read.
    pub fn standing_error(&self) -> Option<&(DateTime<Utc>, String)> {
        self.last_error.as_ref().filter(|_| self.polls_since_error <= 1)
    }
}

impl SourceStats {
    /// The part behind the lock.
    pub fn observed(&self) -> MutexGuard<'_, Observed> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a failure that has not been counted yet.
    pub fn count_once(&self, failure: &mut Failure) {
        if !failure.counted {
            self.error(failure.kind);
            failure.counted = true;
        }
    }

    /// Counts an error.
    pub fn error(&self, kind: ErrorKind) {
        self.errors[kind as usize].fetch_add(1, Ordering::Relaxed);
        if kind == ErrorKind::Throttled {
            self.throttled.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Errors of a kind.
    pub fn errors(&self, kind: ErrorKind) -> u64 {
        self.errors[kind as usize].load(Ordering::Relaxed)
    }

    /// Counts a request by its status.
    pub fn request(&self, status: u16) {
        *self.observed().requests.entry(status).or_default() += 1;
    }

    /// Keeps what failed, in words.
    pub fn failed(&self, now: DateTime<Utc>, why: String) {
        let mut observed = self.observed();
        observed.last_error = Some((now, why));
        observed.polls_since_error = 0;
    }

    /// Adds time spent waiting for the budget or because the service asked for it.
    pub fn waited(&self, time: Duration) {
        self.waited_ms.fetch_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Time spent waiting, in seconds.
    pub fn waited_seconds(&self) -> f64 {
        Duration::from_millis(self.waited_ms.load(Ordering::Relaxed)).as_secs_f64()
    }

    /// How many times the service asked to slow down.
    pub fn throttled(&self) -> u64 {
        self.throttled.load(Ordering::Relaxed)
    }

    /// Records the end of a poll.
    pub fn poll(&self, result: PollResult, duration: Duration, now: DateTime<Utc>) {
        self.polls[result as usize].fetch_add(1, Ordering::Relaxed);
        self.up.store(result == PollResult::Success, Ordering::Relaxed);
        let seconds = duration.as_secs_f64();
        let bucket = POLL_DURATION_BOUNDS.iter().position(|b| seconds <= *b).unwrap_or(POLL_DURATION_BOUNDS.len());
        let mut observed = self.observed();
        observed.poll_durations[bucket] += 1;
        observed.poll_seconds += seconds;
        observed.polls_since_error += 1;
        observed.throttled_last = result == PollResult::Throttled;
        if result == PollResult::Success {
            observed.last_success = Some(now);
            observed.last_success_began = Instant::now().checked_sub(duration);
        }
    }

    /// Polls that ended so.
    pub fn polls(&self, result: PollResult) -> u64 {
        self.polls[result as usize].load(Ordering::Relaxed)
    }

    /// Whether the last poll succeeded.
    pub fn up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_stands_until_a_poll_goes_through_without_one() {
        let stats = SourceStats::default();
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let ends = |result| stats.poll(result, Duration::ZERO, now);
        let stands = || stats.observed().standing_error().map(|(_, error)| error.clone());
        ends(PollResult::Success);
        assert_eq!(stands(), None);
        stats.failed(now, "refused".into());
        ends(PollResult::Error);
        assert_eq!(stands().as_deref(), Some("refused"));
        // reported by a poll that succeeds all the same
        stats.failed(now, "one bad entry".into());
        assert_eq!(stands().as_deref(), Some("one bad entry"), "while the poll is under way");
        ends(PollResult::Success);
        assert_eq!(stands().as_deref(), Some("one bad entry"));
        ends(PollResult::Success);
        assert_eq!(stands(), None);
    }
}
