//! The gate that every request of a source passes: our own budget (governor), and the pause that the service asked
//! for.
//!
//! Promises: a request passes only when both allow it. What is left of the budget is read from governor's own state,
//! so the figure that is shown is the figure that rules.
//!
//! Leaves to others: when a pause is due (`api.rs`), which limits hold (`connect.rs`).

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, StateStore};
use governor::{Quota, RateLimiter};
use tokio::time::Instant;

use crate::stats::SourceStats;

/// What bounds the requests of one source.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests in `per`, on the long run.
    pub requests: u32,
    /// See `requests`.
    pub per: Duration,
    /// Requests at once.
    pub burst: u32,
    /// One exchange, from the first byte sent to the last received.
    pub timeout: Duration,
    /// One body, decompressed.
    pub max_response_bytes: u64,
}

impl Limits {
    fn rate(&self) -> (u32, Duration, u32) {
        (self.requests, self.per, self.burst)
    }

    fn burst(&self) -> NonZeroU32 {
        NonZeroU32::new(self.burst).unwrap_or(NonZeroU32::MIN)
    }
}

/// Our budget and what the service asked for. A source keeps one gate for the life of the process, shared by all who ask: a
/// reload that changes the limits changes them here, so that it bypasses nothing.
pub struct Gate {
    bucket: Mutex<Bucket>,
    resume_at: Mutex<Option<Instant>>,
}

impl Gate {
    /// A full bucket.
    pub fn full(limits: &Limits) -> Self {
        Self { bucket: Mutex::new(Bucket::full(limits)), resume_at: Mutex::default() }
    }

    /// An empty bucket, for a source that may have been asked a moment ago.
    pub fn empty(limits: &Limits) -> Self {
        Self { bucket: Mutex::new(Bucket::empty(limits)), resume_at: Mutex::default() }
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps to these limits from now on. If they differ, the bucket begins empty; the pause the service asked for
    /// stays.
    pub fn change(&self, limits: &Limits) {
        let mut bucket = self.bucket();
        if bucket.rate != limits.rate() {
            *bucket = Bucket::empty(limits);
        }
    }

    /// Waits until a request may be made, and takes its place in the budget.
    pub(super) async fn pass(&self, stats: &SourceStats) {
        let since = Instant::now();
        while let Some(wait) = self.must_wait() {
            tokio::time::sleep_until(wait).await;
        }
        stats.waited(since.elapsed());
    }

    /// Until when to wait; `None` if the request may be made, and was counted.
    fn must_wait(&self) -> Option<Instant> {
        let now = Instant::now();
        let resume_at = *self.resume_at.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(resume_at) = resume_at.filter(|at| *at > now) {
            return Some(resume_at);
        }
        self.bucket().take().err().map(|wait| now + wait)
    }

    /// No request before `pause` has passed.
    pub(super) fn pause(&self, pause: Duration) {
        let mut resume_at = self.resume_at.lock().unwrap_or_else(PoisonError::into_inner);
        *resume_at = (*resume_at).max(Some(Instant::now() + pause));
    }

    /// How many requests our own budget would let pass at once.
    pub(super) fn remaining(&self) -> f64 {
        self.bucket().remaining()
    }
}

struct Bucket {
    /// Requests, in what time, and how many at once.
    rate: (u32, Duration, u32),
    /// In what time one more request may be made.
    period: Duration,
    burst: NonZeroU32,
    limiter: RateLimiter<NotKeyed, SpentUntil, TokioClock, NoOpMiddleware<Nanos>>,
    /// The limiter's state.
    spent_until: SpentUntil,
}

impl Bucket {
    fn full(limits: &Limits) -> Self {
        // a little slower than asked for: requests that leave here evenly may arrive a little closer together
        let period = (limits.per / limits.requests.max(1)).mul_f64(1.01) + Duration::from_millis(2);
        let burst = limits.burst();
        let quota = Quota::with_period(period).unwrap_or(Quota::per_second(burst)).allow_burst(burst); // it is at least 2 ms
        let spent_until = SpentUntil::default();
        let limiter = RateLimiter::new(quota, spent_until.clone(), TokioClock { start: Instant::now() });
        Self { rate: limits.rate(), period, burst, limiter, spent_until }
    }

    fn empty(limits: &Limits) -> Self {
        let bucket = Self::full(limits);
        // a full bucket holds exactly that many
        let _ = bucket.limiter.check_n(bucket.burst);
        bucket
    }

    /// Takes one request, or says how long until there is one.
    fn take(&self) -> Result<(), Duration> {
        let now = self.limiter.clock().now();
        self.limiter.check().map_err(|early| early.wait_time_from(now))
    }

    /// The requests that [`Bucket::take`] would give now.
    fn remaining(&self) -> f64 {
        let now = self.limiter.clock().now().as_u64();
        let spent = self.spent_until.get().map_or(0, |until| until.as_u64().saturating_sub(now));
        let period = self.period.as_nanos();
        let left = (period * u128::from(self.burst.get())).saturating_sub(spent.into()) / period;
        f64::from(u32::try_from(left).unwrap_or(u32::MAX))
    }
}

/// The whole state of governor's bucket: until when the requests that passed use up the budget.
///
/// It is a store of our own because governor's cannot be read. `StateInformationMiddleware` does not replace it: it
/// tells only whole requests, and only at a request that passes, so that the part of a request that had already come
/// back would be missing from every later figure.
#[derive(Clone, Default)]
struct SpentUntil(Arc<Mutex<Option<Nanos>>>);

impl SpentUntil {
    fn lock(&self) -> MutexGuard<'_, Option<Nanos>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self) -> Option<Nanos> {
        *self.lock()
    }
}

impl StateStore for SpentUntil {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _key: &NotKeyed, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut until = self.lock();
        let (outcome, next) = decide(*until)?;
        *until = Some(next);
        Ok(outcome)
    }
}

/// governor's clock on tokio's time, so that simulated time rules the budget, too.
struct TokioClock {
    start: Instant,
}

impl Clock for TokioClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.start.elapsed().into()
    }
}

#[cfg(test)]
mod tests;
