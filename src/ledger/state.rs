//! The state of one source: its counters, how far it has been read, the label values that it uses.
//!
//! Promises: what is readable here was on the disk before; label values are bounded ([`LABEL_VALUES_MAX`]).
//!
//! Leaves to others: what a page changes in it (`count.rs`), writing that down (`store.rs`), when a new series may show
//! its value (`hold.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::backlog::{Backlog, Peaks};
use super::hold;
use super::series::{Counter, SeriesKey};
use crate::clock::delta;
use crate::event::{EventKey, Label, SourceName, System};
use crate::page::{Catalogue, DocumentRecord, Facts};
use crate::window::Checkpoint;

/// How many distinct values a label of one source may take beyond the documented ones.
pub const LABEL_VALUES_MAX: usize = 50;

/// Upper bounds of the lateness histogram, in seconds: from "at once" to a week.
pub const LATENESS_BOUNDS: [f64; 14] =
    [1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 21_600.0, 43_200.0, 86_400.0, 604_800.0];

/// How long tallies are kept behind the newest window that was read.
pub const TALLIES_KEPT: Duration = Duration::from_hours(14 * 24);

/// How many events were counted, by the start of their cell (a file: of its hour) and the series of
/// [`Counter::Events`] they were added to.
pub type Tallies = BTreeMap<(DateTime<Utc>, SeriesKey), u64>;

/// The committed state of one source.
#[derive(Debug, Default)]
pub struct State {
    pub(super) record: Record,
    pub(super) series: BTreeMap<Arc<SeriesKey>, Series>,
    pub(super) documents: BTreeMap<EventKey, DocumentRecord>,
    /// By the series of [`Counter::Events`].
    pub(super) backlog: BTreeMap<SeriesKey, Peaks>,
    pub(super) categories: LabelValues,
    pub(super) actions: LabelValues,
}

/// What the store keeps of a source beside its series, keys and files.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) checkpoint: Option<Checkpoint>,
    pub(super) last_event: Option<DateTime<Utc>>,
    pub(super) lateness: Lateness,
    pub(super) facts: Facts,
    /// From here on every counted event is in the tallies: where counting began, or where the
    /// store learned to tally.
    pub(super) tallied_from: Option<DateTime<Utc>>,
    /// When an integrity failure was last newly found, by our clock; not known of those before the store learned to.
    pub(super) last_tainted: Option<DateTime<Utc>>,
}

/// How late events were when first seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lateness {
    /// Events by bucket (not cumulative); the last is beyond [`LATENESS_BOUNDS`].
    pub buckets: [u64; LATENESS_BOUNDS.len() + 1],
    /// Sum of all lateness, in milliseconds.
    pub sum_ms: i64,
}

impl Lateness {
    pub(super) fn observe(&mut self, lateness: TimeDelta) {
        let lateness_ms = lateness.num_milliseconds();
        let seconds = crate::clock::milliseconds_as_seconds(lateness_ms);
        let bucket = LATENESS_BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(LATENESS_BOUNDS.len());
        self.buckets[bucket] += 1;
        self.sum_ms = self.sum_ms.saturating_add(lateness_ms);
    }
}

#[derive(Debug)]
pub(super) struct Series {
    pub(super) value: u64,
    pub(super) born: DateTime<Utc>,
    /// Its true value may be shown: recorded in the store before it is.
    pub(super) released: bool,
    /// Its number among the births of this process.
    pub(super) birth: u64,
    /// Since when it is shown as 0.
    pub(super) shown_since: OnceLock<Instant>,
}

/// The values one label of one source has taken.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct LabelValues {
    documented: BTreeSet<Label>,
    admitted: BTreeSet<Label>,
}

impl LabelValues {
    /// Whether `label` may be counted as itself; where the cap is reached it counts as `other`.
    pub(super) fn admit(&mut self, label: &Label) -> bool {
        let is_ours = *label == Label::other() || *label == Label::unknown();
        let known = is_ours || self.documented.contains(label) || self.admitted.contains(label);
        if !known && self.admitted.len() < LABEL_VALUES_MAX {
            return self.admitted.insert(label.clone());
        }
        known
    }
}

impl State {
    /// When the source was first made known, by our clock then; `None` where it has no documented series.
    pub fn born(&self) -> Option<DateTime<Utc>> {
        self.series.values().map(|series| series.born).min()
    }

    /// How far the source has been counted; `None` before its first window.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.record.checkpoint.as_ref()
    }

    /// The newest event's own time.
    pub fn last_event(&self) -> Option<DateTime<Utc>> {
        self.record.last_event
    }

    /// How late events were.
    pub fn lateness(&self) -> &Lateness {
        &self.record.lateness
    }

    /// What was last learned beside events.
    pub fn facts(&self) -> &Facts {
        &self.record.facts
    }

    /// What is remembered of the files of a feed.
    pub fn documents(&self) -> &BTreeMap<EventKey, DocumentRecord> {
        &self.documents
    }

    /// The first moment for which the tallies are whole; `None` before the first window.
    pub fn tallied_from(&self) -> Option<DateTime<Utc>> {
        let kept_from = self.checkpoint()?.head - delta(TALLIES_KEPT);
        Some(self.record.tallied_from?.max(kept_from))
    }

    /// From here on events are counted; `None` before the first window. Of a ledger that was begun before there were
    /// tallies it is where those begin, which is later.
    pub fn counted_from(&self) -> Option<DateTime<Utc>> {
        self.checkpoint().filter(|read| !read.is_beginning()).and(self.record.tallied_from)
    }

    /// The committed value of a series, whether or not it may be shown yet.
    pub fn value(&self, key: &SeriesKey) -> u64 {
        self.series.get(key).map_or(0, |series| series.value)
    }

    /// The committed sum of a family.
    pub fn total(&self, counter: Counter) -> u64 {
        self.series.iter().filter(|(key, _)| key.counter == counter).map(|(_, series)| series.value).sum()
    }

    /// Series that are held as if they had just been born: no answer before this shows them as 0.
    pub(super) fn bear_anew(&mut self) {
        for series in self.series.values_mut().filter(|series| !series.released) {
            series.birth = hold::next_birth();
        }
    }

    /// Registers the documented values, and which of the others are taken.
    pub(super) fn learn_labels(&mut self, catalogue: &Catalogue) {
        for labels in &catalogue.events {
            self.categories.documented.insert(labels.category.clone());
            self.actions.documented.insert(labels.action.clone());
        }
        let taken: Vec<[Label; 2]> = self
            .series
            .keys()
            .filter(|key| key.counter == Counter::Events)
            .map(|key| [Label::from_words(&key.values[0]), Label::from_words(&key.values[1])])
            .collect();
        for [category, action] in taken {
            self.categories.admit(&category);
            self.actions.admit(&action);
        }
    }
}

/// A source by its names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Who {
    pub(super) name: SourceName,
    pub(super) system: System,
}

impl Who {
    /// Both names in one, as a store keys its row.
    pub(super) fn path(&self) -> String {
        format!("{}/{}", self.system, self.name)
    }
}

/// A source: its committed state, and whose turn it is to change it.
#[derive(Debug)]
pub struct Book {
    who: Who,
    /// Its number in the store.
    pub(super) id: u32,
    catalogue: Mutex<Catalogue>,
    state: RwLock<State>,
    /// Whoever writes what is counted for this source holds it from before its state is looked at until it shows what
    /// was written. Other sources go on meanwhile.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// A write has failed, and whether it reached the disk is not known.
    is_uncertain: AtomicBool,
    is_new: bool,
}

impl Book {
    pub(super) fn new(who: Who, id: u32, state: State, is_new: bool) -> Self {
        Self {
            who,
            id,
            catalogue: Mutex::default(),
            state: RwLock::new(state),
            turn: tokio::sync::Mutex::default(),
            is_uncertain: AtomicBool::new(false),
            is_new,
        }
    }

    /// The name it was registered under.
    pub fn name(&self) -> &SourceName {
        &self.who.name
    }

    /// Its system.
    pub fn system(&self) -> System {
        self.who.system
    }

    pub(super) fn who(&self) -> &Who {
        &self.who
    }

    /// Whether nobody had registered it before this process.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// The committed state. Held for as short as can be: commits wait for it.
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes another catalogue, and its labels for documented ones.
    pub(super) fn learn(&self, catalogue: Catalogue) {
        self.state_mut().learn_labels(&catalogue);
        *self.catalogue.lock().unwrap_or_else(PoisonError::into_inner) = catalogue;
    }

    /// From now on what it shows may not be what was written, until it is [refreshed](Self::refresh).
    pub(super) fn doubt(&self) {
        self.is_uncertain.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_uncertain(&self) -> bool {
        self.is_uncertain.load(Ordering::Relaxed)
    }

    /// Shows what the store holds.
    pub(super) fn refresh(&self, mut stored: State) {
        stored.learn_labels(&self.catalogue.lock().unwrap_or_else(PoisonError::into_inner));
        let mut state = self.state_mut();
        stored.bear_anew();
        *state = stored;
        self.is_uncertain.store(false, Ordering::Relaxed);
    }
}

/// A series as a scrape shows it.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Which series.
    pub key: Arc<SeriesKey>,
    /// Its value, or 0 while it is held.
    pub value: u64,
    /// When it was born; `None` where the clock was set back behind that.
    pub born: Option<DateTime<Utc>>,
}

/// A source as a scrape shows it: one moment of it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Its counters.
    pub counters: Vec<Shown>,
    /// How many of them are held at 0.
    pub held: u64,
    /// How far it has been counted; `None` before its first window.
    pub checkpoint: Option<Checkpoint>,
    /// The newest event's own time.
    pub last_event: Option<DateTime<Utc>>,
    /// How late events were.
    pub lateness: Lateness,
    /// What was last learned beside events. Taint is not told before the counter of tainted records tells it.
    pub facts: Facts,
    /// When an integrity failure was last newly found, by our clock; told with that counter, too.
    pub last_tainted: Option<DateTime<Utc>>,
    /// What was counted of a backlog lately.
    pub backlog: Vec<Backlog>,
}

impl State {
    /// What a scrape shows; series that are held are shown as 0 from then on.
    pub(super) fn snapshot(&self, now: DateTime<Utc>) -> Snapshot {
        let mut held = 0;
        let mut taint_is_held = false;
        let show = |(key, series): (&Arc<SeriesKey>, &Series)| {
            if !series.released {
                held += 1;
                taint_is_held |= key.counter == Counter::Tainted;
                series.shown_since.get_or_init(Instant::now);
            }
            let value = if series.released { series.value } else { 0 };
            Shown { key: Arc::clone(key), value, born: Some(series.born).filter(|born| *born <= now) }
        };
        let counters = self.series.iter().map(show).collect();
        let mut facts = self.record.facts.clone();
        if taint_is_held {
            facts.tainted = facts.tainted.filter(|tainted| !tainted);
        }
        Snapshot {
            counters,
            held,
            checkpoint: self.record.checkpoint.clone(),
            last_event: self.record.last_event,
            lateness: self.record.lateness.clone(),
            facts,
            last_tainted: self.record.last_tainted.filter(|_| !taint_is_held),
            backlog: self.backlog.iter().filter_map(|(key, peaks)| peaks.told(key, now)).collect(),
        }
    }
}

impl Series {
    /// To be called with the state it is born into locked for writing (see `hold.rs`).
    pub(super) fn new(value: u64, born: DateTime<Utc>, released: bool) -> Self {
        Self { value, born, released, birth: hold::next_birth(), shown_since: OnceLock::new() }
    }
}
