//! Among the events that an outage held back: the highest count of each label set in any 15 minutes.
//!
//! What is counted while catching up stands in the counters at the moment it was counted, so alerts on their increase
//! must not judge it. Here the event's own time decides.
//!
//! Promises: told for an hour after they were counted ([`TOLD_FOR`]), whatever is counted meanwhile; a label set that
//! never had any, or none for a day, is not told of; bounded ([`PEAKS_MAX`]).
//!
//! Leaves to others: which events are held back (`poll.rs`), where the cells are kept (`store.rs`).

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::cells::TALLY_CELL_SECONDS;
use super::series::SeriesKey;
use crate::clock::delta;

/// How many cells of the tallies are judged together: 15 minutes.
pub const BACKLOG_CELLS: u32 = 3;

/// How long a peak is told after its last event was counted.
pub(super) const TOLD_FOR: Duration = Duration::from_hours(1);

/// How long 0 is told after that.
pub(super) const ZERO_TOLD_FOR: Duration = Duration::from_hours(24);

/// How many peaks are remembered of a label set: each is lower than the one before, and counted within an hour of it.
const PEAKS_MAX: usize = 64;

/// The events of a label set in 15 minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Peak {
    /// When the last of them was counted, by our clock.
    pub(super) counted_at: DateTime<Utc>,
    /// How many.
    pub(super) events: u64,
    /// When these 15 minutes begin, by the service's clock.
    pub(super) begins: DateTime<Utc>,
}

/// What has still to be told of a label set: lower from peak to peak, and never earlier.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Peaks(Vec<Peak>);

/// What is told of a label set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// The series of `Counter::Events` that its events were added to.
    pub key: SeriesKey,
    /// The most in any 15 minutes; 0 where all that were held back were counted more than an hour ago.
    pub events: u64,
    /// When these 15 minutes begin, by the service's clock.
    pub begins: Option<DateTime<Utc>>,
}

/// Whether it is no longer ago than that. What lies as far ahead was told by a clock that was wrong.
fn within(at: DateTime<Utc>, now: DateTime<Utc>, time: Duration) -> bool {
    (now - at).abs() < delta(time)
}

impl Peaks {
    /// Adds what was just counted.
    pub(super) fn add(&mut self, peak: Peak) {
        self.0.retain(|earlier| within(earlier.counted_at, peak.counted_at, TOLD_FOR) && earlier.events > peak.events);
        if self.0.len() >= PEAKS_MAX {
            self.0.pop();
        }
        self.0.push(peak);
    }

    /// What is told now; `None` where nothing is any more.
    pub(super) fn told(&self, key: &SeriesKey, now: DateTime<Utc>) -> Option<Backlog> {
        if self.are_over(now) {
            return None;
        }
        let highest = self.0.iter().find(|peak| within(peak.counted_at, now, TOLD_FOR));
        Some(Backlog {
            key: key.clone(),
            events: highest.map_or(0, |peak| peak.events),
            begins: highest.map(|peak| peak.begins),
        })
    }

    /// Whether nothing is told any more.
    pub(super) fn are_over(&self, now: DateTime<Utc>) -> bool {
        !self.0.last().is_some_and(|last| within(last.counted_at, now, TOLD_FOR + ZERO_TOLD_FOR))
    }
}

/// The highest 15 minutes that hold any of `cells`, which were just counted; `count_at` tells how many a cell holds now.
/// Of equal ones the last, so that it begins where the events do.
pub(super) fn highest<E>(
    cells: impl Iterator<Item = u32>,
    now: DateTime<Utc>,
    mut count_at: impl FnMut(u32) -> Result<u64, E>,
) -> Result<Option<Peak>, E> {
    let mut highest: Option<Peak> = None;
    for cell in cells {
        let first = cell.saturating_sub((BACKLOG_CELLS - 1) * TALLY_CELL_SECONDS);
        let cells_of = |count| (0..count).map(move |n| first.saturating_add(n * TALLY_CELL_SECONDS));
        let mut around = Vec::with_capacity(2 * BACKLOG_CELLS as usize - 1);
        for cell in cells_of(2 * BACKLOG_CELLS - 1) {
            around.push(count_at(cell)?);
        }
        for (begins, span) in cells_of(BACKLOG_CELLS).zip(around.windows(BACKLOG_CELLS as usize)) {
            let begins = DateTime::from_timestamp(begins.into(), 0).unwrap_or_default();
            let peak = Peak { counted_at: now, events: span.iter().sum(), begins };
            if highest.is_none_or(|highest| (peak.events, peak.begins) > (highest.events, highest.begins)) {
                highest = Some(peak);
            }
        }
    }
    Ok(highest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ledger::Counter;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
    }

    fn peak(counted_at: i64, events: u64) -> Peak {
        Peak { counted_at: at(counted_at), events, begins: at(counted_at - 9000) }
    }

    fn told(peaks: &Peaks, second: i64) -> Option<(u64, Option<DateTime<Utc>>)> {
        let key = SeriesKey::new(Counter::Events, &["user", "delete", "success"]);
        peaks.told(&key, at(second)).map(|backlog| (backlog.events, backlog.begins))
    }

    #[test]
    fn a_peak_is_told_for_an_hour_and_0_for_a_day() {
        let mut peaks = Peaks::default();
        assert_eq!(told(&peaks, 0), None);
        peaks.add(peak(0, 150));
        for (second, expected) in [
            (0, Some((150, Some(at(-9000))))),
            (3599, Some((150, Some(at(-9000))))),
            (3600, Some((0, None))),
            (3600 + 86_399, Some((0, None))),
            (3600 + 86_400, None),
            // a clock that was set back
            (-3600, Some((0, None))),
            (-400_000, None),
        ] {
            assert_eq!(told(&peaks, second), expected, "{second}");
        }
    }

    #[test]
    fn a_lower_peak_is_told_when_the_higher_one_is_over() {
        let mut peaks = Peaks::default();
        peaks.add(peak(0, 150));
        peaks.add(peak(1000, 20));
        peaks.add(peak(1500, 60));
        assert_eq!(told(&peaks, 3599).unwrap().0, 150);
        assert_eq!(told(&peaks, 3600), Some((60, Some(at(-7500)))));
        assert_eq!(told(&peaks, 5100).unwrap().0, 0);
        // one that is as high is told for as long as the newer
        peaks.add(peak(2000, 60));
        assert_eq!(told(&peaks, 5100), Some((60, Some(at(-7000)))));
    }

    proptest! {
        /// The highest of those that were counted within the hour, whatever came in which order, and bounded.
        #[test]
        fn what_is_told_is_the_highest_of_the_last_hour(steps in prop::collection::vec((1_i64..900, 1_u64..40), 1..200)) {
            let mut peaks = Peaks::default();
            let (mut now, mut all) = (0, Vec::new());
            for (pause, events) in steps {
                now += pause;
                peaks.add(peak(now, events));
                all.push((now, events));
                prop_assert!(peaks.0.len() <= PEAKS_MAX);
                for later in [now, now + 1800, now + 3599, now + 3600] {
                    let highest = all.iter().filter(|(at, _)| later - at < 3600).map(|(_, events)| *events).max();
                    prop_assert_eq!(told(&peaks, later).unwrap().0, highest.unwrap_or(0));
                }
            }
        }
    }

    #[test]
    fn of_ever_lower_peaks_no_more_than_so_many_are_remembered() {
        let mut peaks = Peaks::default();
        for n in 0..1000_u32 {
            peaks.add(peak(n.into(), 5000 - u64::from(n)));
        }
        assert_eq!(peaks.0.len(), PEAKS_MAX);
        assert_eq!((told(&peaks, 1000).unwrap().0, told(&peaks, 3600 + 998).unwrap().0), (5000, 4001));
    }
}
