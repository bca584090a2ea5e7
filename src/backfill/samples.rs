//! Counted events as samples of the past: how many events of which labels in which minute go in, `OpenMetrics` text comes
//! out.
//!
//! Promises:
//! - The same rows give the same text, however they are cut into pieces: no clock, no disk, no network.
//! - Of every series: the first sample is 0, the last is the number of its events, times ascend, and there is a sample
//!   for every minute in between. None is before the beginning of the window, and none after its last moment.
//! - Series and labels are those of `/metrics`, values beyond the cap of a label included, and those of the scrape.
//! - Memory holds one number for each series and minute in which it grew.
//!
//! Leaves to others: reading the service (`backfill.rs`), escaping (`exposition.rs`).

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::clock::delta;
use crate::event::EventLabels;
use crate::exposition::{END_OF_PAST, Family, Sample, Value, write_past};
use crate::ledger::{Counter, SeriesKey, Vocabulary};
use crate::metrics::{Labels, counter_family, counter_labels};

/// From sample to sample, as with a scrape interval of a minute: `increase()` over five minutes wants several.
pub const STEP: Duration = Duration::from_mins(1);

/// What is added to the counters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Counted {
    /// An event.
    Event(EventLabels),
    /// A record that the service reports as tainted.
    Tainted,
}

/// So many of the same in one minute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Row {
    /// The number of the minute (see [`Minutes::of`]).
    pub minute: u32,
    /// What.
    pub what: Counted,
    /// How many.
    pub count: u64,
}

/// A window in minutes. What happened in a minute is shown at its end; the last minute may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Minutes {
    from: DateTime<Utc>,
    last: DateTime<Utc>,
}

impl Minutes {
    /// The minutes from `from` on. No sample is later than `last`, and what happened after it is shown then. `None` where
    /// that is not even a minute.
    pub fn new(from: DateTime<Utc>, last: DateTime<Utc>) -> Option<Self> {
        (last - from >= delta(STEP)).then_some(Self { from, last })
    }

    /// The number of the minute in which something happened.
    pub fn of(&self, at: DateTime<Utc>) -> u32 {
        let minute = (at - self.from).num_milliseconds().div_euclid(delta(STEP).num_milliseconds());
        u32::try_from(minute.max(0)).unwrap_or(u32::MAX).min(self.final_one())
    }

    fn final_one(&self) -> u32 {
        let before_last = self.last - self.from - TimeDelta::milliseconds(1);
        u32::try_from(before_last.num_milliseconds() / delta(STEP).num_milliseconds()).unwrap_or(u32::MAX)
    }

    /// When what happened in a minute is shown.
    fn shown(&self, minute: u32) -> DateTime<Utc> {
        (self.from + delta(STEP) * i32::try_from(minute).unwrap_or(i32::MAX) + delta(STEP)).min(self.last)
    }

    /// When a series is shown as 0 that first grew in a minute. Not at the very beginning of the window: there another
    /// window may end.
    fn zero(&self, first: u32) -> DateTime<Utc> {
        (self.shown(first) - delta(STEP)).max(self.from + TimeDelta::seconds(1))
    }
}

/// What was counted of a source, by series and minute.
pub struct History {
    source: Arc<str>,
    system: Arc<str>,
    minutes: Minutes,
    vocabulary: Vocabulary,
    /// By how much each series grew in which minute.
    growth: BTreeMap<SeriesKey, BTreeMap<u32, u64>>,
}

/// How much was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Events.
    pub events: u64,
    /// Series.
    pub series: u64,
    /// Samples of all of them.
    pub samples: u64,
}

impl History {
    /// Nothing yet. The vocabulary says which label values count as themselves.
    pub fn new(source: &str, system: &str, minutes: Minutes, vocabulary: Vocabulary) -> Self {
        let growth = BTreeMap::new();
        Self { source: source.into(), system: system.into(), minutes, vocabulary, growth }
    }

    /// Adds what happened in some minutes. Later minutes come with later calls, so that it does not depend on the cut which
    /// label values come under the cap.
    pub fn add(&mut self, mut rows: Vec<Row>) {
        rows.sort();
        for Row { minute, what, count } in rows {
            let grown = match what {
                Counted::Event(labels) => self.vocabulary.add(labels, count),
                Counted::Tainted => BTreeMap::from([(SeriesKey::new(Counter::Tainted, &[]), count)]),
            };
            for (key, count) in grown {
                *self.growth.entry(key).or_default().entry(minute).or_default() += count;
            }
        }
    }

    /// Writes all of it, with these labels of the scrape on every series.
    pub fn write(&self, scrape: &Labels, out: &mut dyn Write) -> io::Result<Written> {
        let mut written = Written::default();
        for counter in Counter::ALL {
            let series: Vec<_> = self.growth.iter().filter(|(key, _)| key.counter == counter).collect();
            if series.is_empty() {
                continue;
            }
            for (_, growth) in &series {
                written.series += 1;
                written.samples += self.past(growth).count() as u64;
                written.events += if counter == Counter::Events { growth.values().sum() } else { 0 };
            }
            let family = self.family(counter, scrape);
            write_past(out, &family, series.iter().map(|(_, growth)| self.past(growth)))?;
        }
        out.write_all(END_OF_PAST)?;
        Ok(written)
    }

    /// A family with the last value of each of its series.
    fn family(&self, counter: Counter, scrape: &Labels) -> Family {
        let series = self.growth.iter().filter(|(key, _)| key.counter == counter);
        let samples = series.map(|(key, growth)| {
            let mut labels = counter_labels(&self.source, &self.system, key);
            labels.extend(scrape.iter().cloned());
            Sample { labels, value: Value::Count(growth.values().sum()), created: None }
        });
        Family { samples: samples.collect(), ..counter_family(counter) }
    }

    /// The samples of a series.
    fn past(&self, growth: &BTreeMap<u32, u64>) -> impl Iterator<Item = (DateTime<Utc>, u64)> {
        let first = growth.keys().next().copied().unwrap_or_default();
        let zero = (self.minutes.zero(first), 0);
        let minutes = self.minutes;
        let mut value = 0;
        let grown = (first..=minutes.final_one()).map(move |minute| {
            value += growth.get(&minute).copied().unwrap_or_default();
            (minutes.shown(minute), value)
        });
        std::iter::once(zero).chain(grown)
    }
}

#[cfg(test)]
mod tests;
