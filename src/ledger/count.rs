//! Counts a page: computes what it changes in its source, without a store.
//!
//! Promises:
//! - The same state, page and answers of the store give the same change: no clock, no disk, no randomness.
//! - An item counts once: as what it is where its key is new, as a duplicate otherwise.
//! - Label values beyond the cap count as `other`, and that they did is counted.
//! - All that a page changes is in one [`Change`], which a store writes whole or not at all. Whoever is to learn of new
//!   events (a rule that watches them) stands here, beside the counters, and its rows are part of that change.
//!
//! Leaves to others: which keys are known (`store.rs`), whose state it is (`state.rs`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::backlog::{BACKLOG_CELLS, Peaks};
use super::cells::{TALLY_CELL, cell_of, hour_of, second_of};
use super::series::{self, Counter, SeriesKey, series_of};
use super::state::{LabelValues, Record, Series, State, TALLIES_KEPT, Tallies};
use crate::clock::delta;
use crate::event::{EventKey, EventLabels, Item, Label, Rejection, What};
use crate::page::{Document, DocumentRecord, Facts, Page};
use crate::window::{Checkpoint, KEYS_BUCKET, floor};

/// How many rejections of one page are shown in the log.
pub const REJECTIONS_SHOWN: usize = 3;

/// How long a file's record is kept after its hour: the services list files for 14 days, and no source may hand
/// over an older one (`READ_FOR` in `source/index_exchange.rs`).
const DOCUMENTS_KEPT: Duration = Duration::from_hours(32 * 24);

/// A page and where it stands in the history.
#[derive(Clone, Debug)]
pub struct Commit {
    /// The checkpoint the reader worked from.
    pub expected: Option<Checkpoint>,
    /// The checkpoint after this commit; equal to `expected` in the middle of a window.
    pub next: Option<Checkpoint>,
    /// What was read.
    pub page: Page,
    /// History that is given up with this commit.
    pub lost_seconds: u64,
    /// The present, as the moment events are first seen and series are born.
    pub now: DateTime<Utc>,
    /// The same by the service's clock, which checkpoints go by: when what carries no time was first seen.
    pub service_now: DateTime<Utc>,
    /// Where an outage held back what was read: its events from this moment on, by the service's clock, are backlog.
    pub backlog_from: Option<DateTime<Utc>>,
}

/// What a commit did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Events (and rows) counted for the first time.
    pub counted: u64,
    /// Items whose key was known.
    pub duplicate: u64,
    /// What was rejected for the first time; the first [`REJECTIONS_SHOWN`] of a page, for the log.
    pub rejections: Vec<Rejection>,
}

// === what is asked of the store ===

/// The keys of a page, in the order in which they are to be looked up and remembered: what comes first is known to what
/// comes after it.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) asked: Vec<Asked>,
    /// The hour that is remembered with keys of no time.
    pub(super) hour: u32,
}

/// The key of an item.
#[derive(Debug)]
pub(super) enum Asked {
    /// Remembered with the second it is filed under, `None` for none. It is known if it is remembered with any.
    Item { key: EventKey, second: Option<u32> },
    /// A record that fails the integrity check. It is known if any of the candidates is remembered with this second, and
    /// remembered where none is.
    Taint { key: EventKey, second: u32, candidates: Vec<EventKey> },
}

/// What the store says of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recalled {
    /// It was not known, and is from now on.
    New,
    /// It was known.
    Known,
    /// It was known with another second only; from now on with both.
    Moved { from: u32, to: u32 },
}

/// Sorts a page's items, and says which keys have to be looked up for them.
pub(super) fn keys_of(commit: &mut Commit) -> Keys {
    let items = &mut commit.page.items;
    // neighbours in the store are written together; of an event that comes with a time and without one, the first counts
    items.sort_unstable_by_key(|item| (item.filed_at.is_none(), item.filed_at, item.key));
    let asked = |item: &mut Item| match &mut item.what {
        What::Tainted { candidates } => Asked::Taint {
            key: item.key,
            second: second_of(item.filed_at.unwrap_or(commit.now)),
            candidates: std::mem::take(candidates),
        },
        _ => Asked::Item { key: item.key, second: item.filed_at.map(second_of) },
    };
    Keys { asked: items.iter_mut().map(asked).collect(), hour: hour_of(commit.service_now) }
}

// === what is to be written ===

/// What a page changes. The store writes all of it, or nothing.
#[derive(Debug)]
pub(super) struct Change {
    /// The moment of the commit, by our clock.
    pub(super) now: DateTime<Utc>,
    pub(super) record: Record,
    /// Series with their new values.
    pub(super) series: Vec<SeriesRow>,
    /// Added to the tallies, by the second the cell begins.
    pub(super) tallies: BTreeMap<(u32, SeriesKey), u64>,
    pub(super) moved: Vec<Moved>,
    pub(super) backlog: Vec<HeldBack>,
    /// Label sets of which no backlog is told any more.
    pub(super) backlog_over: Vec<SeriesKey>,
    pub(super) documents: Vec<(EventKey, DocumentRecord)>,
    /// The files that [`Forgotten::documents`] drops.
    forgotten_documents: Vec<EventKey>,
    pub(super) forgotten: Forgotten,
    categories: LabelValues,
    actions: LabelValues,
}

/// A series as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SeriesRow {
    pub(super) key: SeriesKey,
    pub(super) value: u64,
    pub(super) born: DateTime<Utc>,
    pub(super) released: bool,
}

/// An event that came again with a time of other five minutes: one of the first cell goes to the second, where the first
/// has one.
#[derive(Debug)]
pub(super) struct Moved {
    pub(super) series: SeriesKey,
    pub(super) from: u32,
    pub(super) to: u32,
}

/// Events of a label set that an outage held back.
#[derive(Debug)]
pub(super) struct HeldBack {
    pub(super) series: SeriesKey,
    /// Added to its cells, by the second they begin.
    pub(super) cells: BTreeMap<u32, u64>,
    /// What is told of it; the store adds the highest 15 minutes that got any of them.
    pub(super) peaks: Peaks,
}

/// What need not be remembered any more: what lies before these moments. `None`: nothing of it is forgotten.
#[derive(Debug, Default)]
pub(super) struct Forgotten {
    /// Keys, by their second, and of those without one by the hour.
    pub(super) keys: Option<DateTime<Utc>>,
    pub(super) tallies: Option<DateTime<Utc>>,
    /// The cells of the backlog.
    pub(super) backlog: Option<DateTime<Utc>>,
    pub(super) documents: Option<DateTime<Utc>>,
}

/// A page that was counted.
#[derive(Debug)]
pub(super) struct Counted {
    pub(super) change: Change,
    pub(super) committed: Committed,
}

impl Change {
    /// Shows what was written.
    pub(super) fn apply(self, state: &mut State) {
        state.record = self.record;
        for row in self.series {
            match state.series.get_mut(&row.key) {
                Some(series) => series.value = row.value,
                None => {
                    state.series.insert(row.key.into(), Series::new(row.value, row.born, row.released));
                }
            }
        }
        state.documents.extend(self.documents);
        for key in self.forgotten_documents {
            state.documents.remove(&key);
        }
        state.backlog.extend(self.backlog.into_iter().map(|held_back| (held_back.series, held_back.peaks)));
        for key in self.backlog_over {
            state.backlog.remove(&key);
        }
        state.categories = self.categories;
        state.actions = self.actions;
    }
}

// === counting ===

/// Counts a page whose keys were looked up: `recalled` has an answer for each of [`keys_of`] the commit, in its order.
pub(super) fn count(state: &State, commit: Commit, recalled: &[Recalled]) -> Counted {
    let Commit { next, page, lost_seconds, now, service_now, backlog_from, .. } = commit;
    let mut counting = Counting {
        state,
        now,
        service_now,
        backlog_from,
        record: state.record.clone(),
        categories: state.categories.clone(),
        actions: state.actions.clone(),
        series: BTreeMap::new(),
        committed: Committed::default(),
    };
    if lost_seconds > 0 {
        counting.series.insert(SeriesKey::new(Counter::LostSeconds, &[]), lost_seconds);
    }
    let items = counting.items(page.items, recalled);
    let documents = counting.documents(page.documents);
    counting.finish(next, page.facts, items, documents)
}

struct Counting<'a> {
    state: &'a State,
    now: DateTime<Utc>,
    service_now: DateTime<Utc>,
    /// See [`Commit::backlog_from`].
    backlog_from: Option<DateTime<Utc>>,
    record: Record,
    categories: LabelValues,
    actions: LabelValues,
    /// What is added to which series.
    series: BTreeMap<SeriesKey, u64>,
    committed: Committed,
}

/// What the items of a page add beside the counters.
#[derive(Default)]
struct Cells {
    tallies: BTreeMap<(u32, SeriesKey), u64>,
    moved: Vec<Moved>,
    backlog: BTreeMap<SeriesKey, BTreeMap<u32, u64>>,
}

/// Events of one label set and cell.
#[derive(Default)]
struct Events {
    all: u64,
    /// Those of them that an outage held back.
    held_back: u64,
}

impl Counting<'_> {
    fn tally(&mut self) -> Tally<'_> {
        Tally { categories: &mut self.categories, actions: &mut self.actions, series: std::mem::take(&mut self.series) }
    }

    fn items(&mut self, items: Vec<Item>, recalled: &[Recalled]) -> Cells {
        debug_assert_eq!(items.len(), recalled.len());
        if items.is_empty() {
            return Cells::default();
        }
        let mut cells = Cells::default();
        let mut events: HashMap<(EventLabels, Option<u32>), Events> = HashMap::new();
        let mut others: BTreeMap<SeriesKey, u64> = BTreeMap::new();
        let mut count_other = |key| *others.entry(key).or_default() += 1;
        for (item, recalled) in items.into_iter().zip(recalled) {
            let known = *recalled != Recalled::New;
            if let What::Tainted { .. } = &item.what {
                if !known {
                    count_other(SeriesKey::new(Counter::Tainted, &[]));
                    self.record.last_tainted = Some(self.now);
                }
                continue;
            }
            if let (Recalled::Moved { from, to }, What::Event(labels)) = (recalled, &item.what)
                && cell_of(*from) != cell_of(*to)
            {
                let series = self.state.series_of_event(labels);
                cells.moved.push(Moved { series, from: cell_of(*from), to: cell_of(*to) });
            }
            if known {
                self.committed.duplicate += 1;
                count_other(SeriesKey::new(Counter::Duplicate, &[]));
                continue;
            }
            match item.what {
                What::Event(labels) => {
                    self.committed.counted += 1;
                    let cell = item.filed_at.map(|at| cell_of(second_of(at)));
                    let counted = events.entry((labels, cell)).or_default();
                    counted.all += 1;
                    // without a time, it lies somewhere within the five minutes it is filed under
                    let end = item.filed_at.map(|cell| cell + delta(TALLY_CELL) - TimeDelta::milliseconds(1));
                    let (first, last) = (item.at.or(item.filed_at), item.at.or(end));
                    let is_held_back = |from| last.is_some_and(|last| last >= from);
                    counted.held_back += u64::from(self.backlog_from.is_some_and(is_held_back));
                    if let Some(at) = item.at {
                        self.record.last_event = self.record.last_event.max(Some(at));
                        self.record.lateness.observe((self.service_now - at).max(TimeDelta::zero()));
                    }
                    if let (Some(first), Some(last)) = (first, last)
                        && self.state.checkpoint().is_some_and(|read| read.covers_all(first, last))
                    {
                        count_other(SeriesKey::new(Counter::Late, &[]));
                    }
                }
                What::Ignored => count_other(SeriesKey::new(Counter::Ignored, &[])),
                What::Rejected(rejection) => {
                    count_other(SeriesKey::new(Counter::Rejected, &[rejection.reason.as_str()]));
                    if self.committed.rejections.len() < REJECTIONS_SHOWN {
                        self.committed.rejections.push(rejection);
                    }
                }
                What::Tainted { .. } => unreachable!("handled above"),
            }
        }
        // sorted, so that which values come under the cap does not depend on a hash
        let events: BTreeMap<(EventLabels, Option<u32>), Events> = events.into_iter().collect();
        let tallied_from = self.state.checkpoint().map_or(0, |read| second_of(read.head - delta(TALLIES_KEPT)));
        let mut tally = self.tally();
        for ((labels, cell), counted) in events {
            let series = tally.add_events(labels, counted.all);
            let Some(cell) = cell else { continue };
            if counted.held_back > 0 {
                *cells.backlog.entry(series.clone()).or_default().entry(cell).or_default() += counted.held_back;
            }
            if cell >= tallied_from {
                *cells.tallies.entry((cell, series)).or_default() += counted.all;
            }
        }
        for (key, count) in others {
            tally.add(key, count);
        }
        self.series = tally.series;
        cells
    }

    /// Adds the rows that files gained since they were last counted.
    fn documents(&mut self, documents: Vec<Document>) -> Vec<(EventKey, DocumentRecord)> {
        let mut records = Vec::with_capacity(documents.len());
        for document in documents {
            let before = self.state.documents.get(&document.key);
            let mut record = DocumentRecord {
                version: document.version.0,
                counted_at: self.now,
                filed_at: document.filed_at,
                category: document.category.as_str().to_owned(),
                rows: before.map(|before| before.rows.clone()).unwrap_or_default(),
                overflow: before.map_or(0, |before| before.overflow),
                rejected: before.map_or(0, |before| before.rejected),
            };
            let mut tally = self.tally();
            // rows by the value they are counted as, so that the record is as bounded as the labels
            let mut rows: BTreeMap<Label, u64> = BTreeMap::new();
            let mut overflow = 0;
            for (action, count) in document.rows {
                let admitted = tally.actions.admit(&action);
                overflow += if admitted { 0 } else { count };
                *rows.entry(if admitted { action } else { Label::other() }).or_default() += count;
            }
            let mut gain = |counter, labels: &[&str], now: u64, known: &mut u64| {
                let gained = now.saturating_sub(*known);
                *known += gained;
                tally.add(SeriesKey::new(counter, labels), gained);
            };
            gain(Counter::LabelOverflow, &["action"], overflow, &mut record.overflow);
            gain(Counter::Rejected, &["malformed"], document.rejected, &mut record.rejected);
            let mut counted = 0;
            for (action, count) in rows {
                let known = record.rows.entry(action.as_str().to_owned()).or_default();
                let gained = count.saturating_sub(*known);
                *known += gained;
                counted += gained;
                tally.add_events(EventLabels::row(document.category.clone(), action), gained);
            }
            self.series = tally.series;
            if counted > 0 {
                self.record.last_event = self.record.last_event.max(Some(document.filed_at));
                self.committed.counted += counted;
            }
            records.push((document.key, record));
        }
        records
    }

    /// Moves the checkpoint, and says what need not be remembered any more.
    fn finish(
        mut self,
        next: Option<Checkpoint>,
        facts: Facts,
        cells: Cells,
        documents: Vec<(EventKey, DocumentRecord)>,
    ) -> Counted {
        let Cells { tallies, moved, backlog } = cells;
        let held_back = |(series, cells)| {
            let peaks = self.state.backlog.get(&series).cloned().unwrap_or_default();
            HeldBack { series, cells, peaks }
        };
        let backlog: Vec<HeldBack> = backlog.into_iter().map(held_back).collect();
        let mut forgotten = Forgotten::default();
        let mut backlog_over = Vec::new();
        if let (Some(before), Some(after)) = (&self.record.checkpoint, &next)
            && hour_of(after.origin) > hour_of(before.origin)
        {
            forgotten.keys = Some(floor(after.origin, KEYS_BUCKET));
            forgotten.tallies = Some(after.head - delta(TALLIES_KEPT));
            // events from before the origin are not counted any more, so what was is not added to
            forgotten.backlog = Some(floor(after.origin, TALLY_CELL) - delta(TALLY_CELL) * BACKLOG_CELLS.cast_signed());
            let added: BTreeSet<&SeriesKey> = backlog.iter().map(|held_back| &held_back.series).collect();
            let told = self.state.backlog.iter();
            let over = told.filter(|(series, peaks)| peaks.are_over(self.now) && !added.contains(series));
            backlog_over = over.map(|(series, _)| series.clone()).collect();
        }
        let mut forgotten_documents = Vec::new();
        if !documents.is_empty() {
            let before = self.now - delta(DOCUMENTS_KEPT);
            forgotten.documents = Some(before);
            // the origin of a feed, by which they are forgotten otherwise, never moves
            forgotten.keys = forgotten.keys.max(Some(before));
            let is_over = |record: &DocumentRecord| second_of(record.filed_at) < second_of(before);
            let known = self.state.documents.iter().chain(documents.iter().map(|(key, record)| (key, record)));
            forgotten_documents = known.filter(|(_, record)| is_over(record)).map(|(key, _)| *key).collect();
        }
        if let Some(next) = &next {
            match &self.record.checkpoint {
                // the first window may turn out to begin earlier, where the service's clock is behind
                Some(before) if next.origin < before.origin => self.record.tallied_from = Some(next.origin),
                Some(_) => {}
                None => _ = self.record.tallied_from.get_or_insert(next.origin),
            }
        }
        self.record.checkpoint = next;
        if facts.tainted.is_some() {
            self.record.facts.tainted = facts.tainted;
        }
        if let Some(feed) = facts.feed {
            self.record.facts.feed = Some(feed.after(self.record.facts.feed.take()));
        }
        let row = |(key, added): (SeriesKey, u64)| {
            let (value, born, released) = match self.state.series.get(&key) {
                Some(series) => (series.value + added, series.born, series.released),
                None => (added, self.now, false),
            };
            SeriesRow { key, value, born, released }
        };
        let change = Change {
            now: self.now,
            series: self.series.into_iter().map(row).collect(),
            record: self.record,
            tallies,
            moved,
            backlog,
            backlog_over,
            documents,
            forgotten_documents,
            forgotten,
            categories: self.categories,
            actions: self.actions,
        };
        Counted { change, committed: self.committed }
    }
}

/// Counts events by label, values beyond the cap as `other`.
struct Tally<'a> {
    categories: &'a mut LabelValues,
    actions: &'a mut LabelValues,
    series: BTreeMap<SeriesKey, u64>,
}

impl Tally<'_> {
    fn add(&mut self, key: SeriesKey, count: u64) {
        if count > 0 {
            *self.series.entry(key).or_default() += count;
        }
    }

    fn cap(&mut self, labels: &mut EventLabels, count: u64) {
        let overflow = |label| SeriesKey::new(Counter::LabelOverflow, &[label]);
        if !self.categories.admit(&labels.category) {
            labels.category = Label::other();
            self.add(overflow("category"), count);
        }
        if !self.actions.admit(&labels.action) {
            labels.action = Label::other();
            self.add(overflow("action"), count);
        }
    }

    /// Returns the series of [`Counter::Events`] that they are in.
    fn add_events(&mut self, mut labels: EventLabels, count: u64) -> SeriesKey {
        self.cap(&mut labels, count);
        for key in series_of(&labels) {
            self.add(key, count);
        }
        series::events_series(&labels)
    }
}

/// The label values of a source, and which of them are counted as themselves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Vocabulary {
    categories: LabelValues,
    actions: LabelValues,
}

impl Vocabulary {
    /// What events of these labels add to which series, as the ledger counts them: a value that is new takes a place, as
    /// long as there is one.
    pub fn add(&mut self, labels: EventLabels, count: u64) -> BTreeMap<SeriesKey, u64> {
        let Self { categories, actions } = self;
        let mut tally = Tally { categories, actions, series: BTreeMap::new() };
        tally.add_events(labels, count);
        tally.series
    }
}

impl State {
    /// The label values as they are now.
    pub fn vocabulary(&self) -> Vocabulary {
        Vocabulary { categories: self.categories.clone(), actions: self.actions.clone() }
    }

    /// What was read of a service, by the series that it is, or would be, counted under.
    pub fn as_counted(&self, found: &BTreeMap<(EventLabels, DateTime<Utc>), u64>) -> Tallies {
        let (mut categories, mut actions) = (self.categories.clone(), self.actions.clone());
        let mut tally = Tally { categories: &mut categories, actions: &mut actions, series: BTreeMap::new() };
        let mut tallies = Tallies::new();
        for ((labels, at), count) in found {
            let key = tally.add_events(labels.clone(), *count);
            *tallies.entry((*at, key)).or_default() += count;
        }
        tallies
    }

    /// The series of [`Counter::Events`] that an event of these labels is, or would be, counted under.
    fn series_of_event(&self, labels: &EventLabels) -> SeriesKey {
        let (mut categories, mut actions) = (self.categories.clone(), self.actions.clone());
        let mut tally = Tally { categories: &mut categories, actions: &mut actions, series: BTreeMap::new() };
        tally.add_events(labels.clone(), 0)
    }
}

#[cfg(test)]
mod tests;
