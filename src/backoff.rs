//! A pause that grows with every failure.
//!
//! Promises: one rule for every such pause: the first, then a fixed factor longer each time, up to the longest.
//!
//! Leaves to others: jitter, waiting, and what counts as a failure (`api.rs`, `poll.rs`).

use std::time::Duration;

/// How a pause grows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    /// The pause after the first failure.
    pub first: Duration,
    /// How much longer each pause is than the one before.
    pub factor: u32,
    /// The longest pause.
    pub max: Duration,
}

impl Backoff {
    /// The pause after so many failures in a row.
    pub(crate) fn after(&self, failures: u32) -> Duration {
        let grown = self.factor.saturating_pow(failures.saturating_sub(1));
        self.first.saturating_mul(grown).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_the_longest_however_many_failures_there_are() {
        let backoff = Backoff { first: Duration::from_mins(1), factor: 4, max: Duration::from_hours(1) };
        let minutes = [0, 1, 2, 3, 4, 5, u32::MAX].map(|failures| backoff.after(failures).as_secs() / 60);
        assert_eq!(minutes, [1, 1, 4, 16, 60, 60, 60]);
    }
}
