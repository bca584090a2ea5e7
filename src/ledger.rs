//! The ledger: what has been counted. An event is counted in the same transaction that remembers
//! its key; the checkpoint moves in the transaction that ends its window.
//!
//! Promises:
//! - **Exactly once.** [`Ledger::commit`] counts an item whose key it does not hold, under any time, and no other.
//!   Counters, keys and checkpoint change together or not at all, durably, before anyone sees
//!   them. A commit names the checkpoint it works from and is refused if that is not the ledger's.
//! - **Committed values only.** What is readable here was on disk before. A commit that failed is
//!   not visible; after a failure of the disk the state is read from it anew.
//! - **Nothing goes back.** A series shown at its true value is recorded as such before it is
//!   shown (see [`Ledger::scrape`]), so a restart does not hold it at 0 again.
//! - **Bounded.** Keys are kept for the hours that can be read again (`Checkpoint::origin`), label
//!   values up to [`LABEL_VALUES_MAX`] beyond the documented ones.
//! - **Judged by its own time.** What an outage held back is told by the 15 minutes in which it happened, too
//!   (`backlog.rs`): in the counters it stands at the moment it was counted.
//! - **Checkable.** How many events of which labels were counted in every five minutes of the last
//!   two weeks is written in the transaction that counts them (see [`Ledger::tallies`]).
//!
//! Leaves to others: what an event is counted as (`source/*.rs`), which window to read
//! (`window.rs`), how counters are written (`exposition.rs`), comparing with the service
//! (`verify.rs`). Its door is narrow on purpose: open, register or find, commit, scrape, tallies,
//! backup, and reading a source's state.

mod access;
mod backlog;
mod backup;
mod file;
mod hold;
mod lock;
mod marks;
mod series;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::Instant;

pub use access::{Unusable, usable};
use backlog::Peaks;
pub use backlog::{BACKLOG_CELLS, Backlog};
pub use backup::{Copied, verify_copy};
use hold::Audience;
pub use hold::{Client, LONGEST_HOLDS, Receipt, Scraper};
pub use series::{Counter, SeriesKey, series_of};
pub use store::{OpenError, Opener, STORE_FILE};
use store::{Store, StoreError};

use crate::clock::{delta, rfc3339_seconds};
use crate::event::{EventKey, EventLabels, Label, Rejection, SourceName, System};
use crate::fault::catch_panic;
use crate::page::{Catalogue, DocumentRecord, Facts, Page};
use crate::threads::run_blocking;
use crate::window::{Checkpoint, Window};

/// How many distinct values a label of one source may take beyond the documented ones.
pub const LABEL_VALUES_MAX: usize = 50;

/// How many rejections of one page are shown in the log.
pub const REJECTIONS_SHOWN: usize = 3;

/// Upper bounds of the lateness histogram, in seconds: from "at once" to a week.
pub const LATENESS_BOUNDS: [f64; 14] =
    [1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 21_600.0, 43_200.0, 86_400.0, 604_800.0];

/// The pieces of event time in which counted events are tallied.
pub const TALLY_CELL: Duration = Duration::from_mins(5);

/// How long tallies are kept behind the newest window that was read.
pub const TALLIES_KEPT: Duration = Duration::from_hours(14 * 24);

/// How many events were counted, by the start of their cell (a file: of its hour) and the series of
/// [`Counter::Events`] they were added to.
pub type Tallies = BTreeMap<(DateTime<Utc>, SeriesKey), u64>;

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

/// Why a commit did not happen. Nothing of it is visible.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// Another commit moved the checkpoint.
    #[error("the checkpoint of {source_name} is not the one this page was read from; the window is read again")]
    Conflict {
        /// Whose checkpoint.
        source_name: SourceName,
    },
    /// The disk.
    #[error("cannot write the ledger: {0}; counting stops until it can be written, serving goes on")]
    Storage(String),
    /// This program.
    #[error("a fault in this program (a panic) while using the ledger: {0}; it is opened anew and read from the disk")]
    Fault(String),
}

/// The committed state of one source.
#[derive(Debug, Default)]
pub struct State {
    record: Record,
    series: BTreeMap<Arc<SeriesKey>, Series>,
    documents: BTreeMap<EventKey, DocumentRecord>,
    /// By the series of [`Counter::Events`].
    backlog: BTreeMap<SeriesKey, Peaks>,
    categories: LabelValues,
    actions: LabelValues,
}

/// What the store keeps of a source beside its series, keys and files.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Record {
    checkpoint: Option<Checkpoint>,
    last_event: Option<DateTime<Utc>>,
    lateness: Lateness,
    facts: Facts,
    /// From here on every counted event is in the tallies: where counting began, or where the
    /// store learned to tally.
    tallied_from: Option<DateTime<Utc>>,
    /// When an integrity failure was last newly found, by our clock; not known of those before the store learned to.
    last_tainted: Option<DateTime<Utc>>,
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
    fn observe(&mut self, lateness: TimeDelta) {
        let lateness_ms = lateness.num_milliseconds();
        let seconds = crate::clock::milliseconds_as_seconds(lateness_ms);
        let bucket = LATENESS_BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(LATENESS_BOUNDS.len());
        self.buckets[bucket] += 1;
        self.sum_ms = self.sum_ms.saturating_add(lateness_ms);
    }
}

#[derive(Debug)]
struct Series {
    value: u64,
    born: DateTime<Utc>,
    /// Its true value may be shown: recorded in the store before it is.
    released: bool,
    /// Its number among the births of this process.
    birth: u64,
    /// Since when it is shown as 0.
    shown_since: OnceLock<Instant>,
}

/// The values one label of one source has taken.
#[derive(Clone, Debug, Default)]
struct LabelValues {
    documented: BTreeSet<Label>,
    admitted: BTreeSet<Label>,
}

impl LabelValues {
    /// Whether `label` may be counted as itself; where the cap is reached it counts as `other`.
    fn admit(&mut self, label: &Label) -> bool {
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

    /// The committed value of a series, whether or not it may be shown yet.
    pub fn value(&self, key: &SeriesKey) -> u64 {
        self.series.get(key).map_or(0, |series| series.value)
    }

    /// The committed sum of a family.
    pub fn total(&self, counter: Counter) -> u64 {
        self.series.iter().filter(|(key, _)| key.counter == counter).map(|(_, series)| series.value).sum()
    }

    /// Series that are held as if they had just been born: no answer before this shows them as 0.
    fn bear_anew(&mut self) {
        for series in self.series.values_mut().filter(|series| !series.released) {
            series.birth = hold::next_birth();
        }
    }

    /// Registers the documented values, and which of the others are taken.
    fn learn_labels(&mut self, catalogue: &Catalogue) {
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

/// The committed state of one source and its place in the store.
#[derive(Debug)]
pub struct Book {
    name: SourceName,
    system: System,
    id: u32,
    catalogue: Mutex<Catalogue>,
    state: RwLock<State>,
    /// The opening of the store that `state` was read from.
    generation: AtomicU64,
    is_new: bool,
}

impl Book {
    /// The name it was registered under.
    pub fn name(&self) -> &SourceName {
        &self.name
    }

    /// Its system.
    pub fn system(&self) -> System {
        self.system
    }

    /// Whether nobody had registered it before this process.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// The committed state. Held for as short as can be: commits wait for it.
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
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

/// Series that are held at 0 at the moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Held {
    /// How many.
    pub series: u64,
    /// Not before this all of them are shown.
    pub until: DateTime<Utc>,
    /// How many scrapers are waited for.
    pub waiting_for_scrapers: usize,
    /// When all are shown that an answer has shown as 0 by now, whoever is still waited for.
    pub at_the_latest: Option<DateTime<Utc>>,
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (is, until) =
            (if self.series == 1 { "new series is" } else { "new series are" }, rfc3339_seconds(self.until));
        write!(f, "{} {is} shown as 0 on /metrics until {until} and until ", self.series)?;
        match self.waiting_for_scrapers {
            0 => write!(f, "that 0 has been scraped")?,
            1 => write!(f, "1 more scraper has read that 0")?,
            scrapers => write!(f, "{scrapers} more scrapers have read that 0")?,
        }
        if let Some(latest) = self.at_the_latest {
            write!(f, ", at the latest until {}", rfc3339_seconds(latest))?;
        }
        write!(f, ": a first look shows zeros")
    }
}

/// The door to everything that has been counted. Cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    writer: Arc<Mutex<Store>>,
    queue: Arc<Mutex<Queue>>,
    audience: Audience,
    generation: Arc<AtomicU64>,
}

/// Commits that wait for the store, in the order in which they came.
#[derive(Default)]
struct Queue {
    waiting: Vec<Waiting>,
    /// Somebody is on the way to the store, and will take with it what waits then.
    is_called_for: bool,
}

/// A commit, and where its outcome goes.
struct Waiting {
    source: Arc<Book>,
    commit: Commit,
    outcome: oneshot::Sender<Result<Committed, CommitError>>,
}

/// A source that is to be made known.
pub struct Registration {
    /// Its name.
    pub name: SourceName,
    /// Its system.
    pub system: System,
    /// The series that are to exist from the start.
    pub catalogue: Catalogue,
}

impl Ledger {
    /// Opens the store in the folder `path`, which is created if it is missing.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Ok(Self::of(Store::open_folder(path)?))
    }

    /// Opens a store on a disk of the caller's (a simulated one), which is asked for anew after each failure.
    pub fn open_with(open: Opener) -> Result<Self, OpenError> {
        Ok(Self::of(Store::open(open)?))
    }

    fn of(store: Store) -> Self {
        let generation = store.generations();
        Self { writer: Arc::new(Mutex::new(store)), queue: Arc::default(), audience: Audience::new(), generation }
    }

    /// When the store was begun, or restored from a backup, so that it grows each time; `None` before the first source
    /// was registered.
    pub fn generation(&self) -> Option<DateTime<Utc>> {
        let generation = self.generation.load(Ordering::Relaxed);
        DateTime::from_timestamp_millis(generation.try_into().ok()?).filter(|_| generation > 0)
    }

    /// Runs `work` with the store on a thread that may block. Should it panic, the store is opened and every
    /// source read from it anew, because neither what is in memory nor the open file can be trusted.
    async fn with_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> Result<T, CommitError> + Send + 'static,
    ) -> Result<T, CommitError> {
        let writer = Arc::clone(&self.writer);
        run_blocking(move || {
            let mut store = writer.lock().unwrap_or_else(PoisonError::into_inner);
            catch_panic(|| work(&mut store)).unwrap_or_else(|panic| {
                store.distrust();
                Err(CommitError::Fault(panic))
            })
        })
        .await
    }

    /// Makes a source known: reads what was counted for it, and brings the series of its
    /// catalogue into being. A source that is known already (a reload) is the same one again, so
    /// that a commit of its former reader that is still under way is not overlooked.
    pub async fn register(
        &self,
        name: &SourceName,
        system: System,
        catalogue: Catalogue,
        now: DateTime<Utc>,
    ) -> Result<Arc<Book>, CommitError> {
        let registration = Registration { name: name.clone(), system, catalogue };
        let mut registered = self.register_all(vec![registration], now).await?;
        Ok(registered.remove(0))
    }

    /// The same for many sources, in one transaction: all of them are made known, or none.
    pub async fn register_all(
        &self,
        registrations: Vec<Registration>,
        now: DateTime<Utc>,
    ) -> Result<Vec<Arc<Book>>, CommitError> {
        self.audience.open(now);
        self.with_store(move |store| store.register(registrations, now)).await
    }

    /// A source that something was counted for, without making it known where nothing was.
    pub async fn find(
        &self,
        name: &SourceName,
        system: System,
        catalogue: Catalogue,
    ) -> Result<Option<Arc<Book>>, CommitError> {
        let name = name.clone();
        self.with_store(move |store| {
            if !store.knows(&name, system)? {
                return Ok(None);
            }
            let source = store.book(&name, system)?;
            source.state.write().unwrap_or_else(PoisonError::into_inner).learn_labels(&catalogue);
            *source.catalogue.lock().unwrap_or_else(PoisonError::into_inner) = catalogue;
            Ok(Some(source))
        })
        .await
    }

    /// What was counted of the events (and files) whose cells begin in `window`. Events that carry
    /// no time at all are not in it.
    pub async fn tallies(&self, source: &Arc<Book>, window: Window) -> Result<Tallies, CommitError> {
        let source = Arc::clone(source);
        self.with_store(move |store| {
            store.heal(&source)?;
            let mut tallies = store.tallies(source.id, window)?;
            let state = source.state();
            let mut rows = BTreeMap::new();
            for record in state.documents.values().filter(|record| window.contains(record.filed_at)) {
                for (action, count) in &record.rows {
                    let category = Label::from_words(&record.category);
                    let labels = EventLabels::row(category, Label::from_words(action));
                    *rows.entry((labels, record.filed_at)).or_default() += count;
                }
            }
            tallies.extend(state.as_counted(&rows));
            Ok(tallies)
        })
        .await
    }

    /// Writes a copy of all that is committed now into an empty file, and flushes it. Commits go on meanwhile.
    pub async fn backup(&self, file: File) -> Result<Copied, String> {
        let snapshot = self.with_store(|store| Ok(store.snapshot()?)).await.map_err(|error| error.to_string())?;
        let copy = move || catch_panic(|| backup::write(&snapshot, file));
        match run_blocking(copy).await {
            Ok(copied) => copied.map_err(|error| format!("cannot copy the ledger: {error}")),
            Err(panic) => Err(format!("a fault in this program (a panic) while copying the ledger: {panic}")),
        }
    }

    /// Waits until no commit is under way.
    pub async fn settle(&self) {
        // a store that cannot be used has none
        let _ = self.commit_waiting().await;
    }

    /// Counts a page. When this returns `Ok`, the page is durable and visible.
    ///
    /// Commits that wait while another transaction is being flushed share the next one and its flush. Each has its own
    /// checkpoint to be checked and its own outcome.
    pub async fn commit(&self, source: &Arc<Book>, commit: Commit) -> Result<Committed, CommitError> {
        let (outcome, told) = oneshot::channel();
        let is_first = {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.waiting.push(Waiting { source: Arc::clone(source), commit, outcome });
            !std::mem::replace(&mut queue.is_called_for, true)
        };
        if is_first {
            self.commit_waiting().await?;
        }
        // a panic on the way to it
        told.await.unwrap_or_else(|_| Err(CommitError::Fault("the commit was not made".into())))
    }

    /// Makes the commits that wait when the store is free, as many as can be in one transaction.
    async fn commit_waiting(&self) -> Result<(), CommitError> {
        let queue = Arc::clone(&self.queue);
        self.with_store(move |store| {
            let mut waiting = {
                let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                queue.is_called_for = false;
                std::mem::take(&mut queue.waiting)
            };
            while !waiting.is_empty() {
                // a source's second commit builds on its first
                let mut sources = BTreeSet::new();
                let (now, later) = waiting.into_iter().partition(|one| sources.insert(one.source.id));
                waiting = later;
                commit_together(store, now);
            }
            Ok(())
        })
        .await
    }

    /// `sources` as this scrape by `client` is to see them, in their order, and what is to be told once the client
    /// has been handed that whole.
    ///
    /// A series is shown as 0 until everybody who counts was handed that 0 (see `hold.rs`) and `hold` has passed
    /// since its birth; that it may then be shown is recorded first. Where that cannot be recorded (a full disk),
    /// it stays at 0.
    pub async fn scrape(
        &self,
        sources: &[Arc<Book>],
        now: DateTime<Utc>,
        hold: Duration,
        client: &Client,
    ) -> (Vec<Snapshot>, Receipt) {
        let is_held = |source: &Arc<Book>| source.state().series.values().any(|series| !series.released);
        if sources.iter().any(is_held) {
            self.audience.settle().await;
        }
        let due = self.audience.asks(client, now, hold);
        let is_due = |series: &Series| {
            if series.released {
                // the clock was set back: a creation that lies ahead is dated anew, once
                return series.born > now;
            }
            let handed = due.was_handed(series.birth) || due.is_overdue(series.shown_since.get().copied());
            handed && due.hold_has_passed(series.born)
        };
        let deadline = Instant::now() + RELEASE_WAIT_MAX;
        for source in sources {
            let (keys, overdue) = {
                let state = source.state();
                let due_now = || state.series.iter().filter(|(_, series)| is_due(series));
                let overdue = due_now().filter(|(_, series)| !series.released && !due.was_handed(series.birth)).count();
                (due_now().map(|(key, _)| Arc::clone(key)).collect::<Vec<_>>(), overdue)
            };
            if keys.is_empty() {
                continue;
            }
            let book = Arc::clone(source);
            let release = self.with_store(move |store| {
                store.heal(&book)?;
                {
                    let state = book.state();
                    let row = |key: &'_ Arc<SeriesKey>| {
                        state.series.get_key_value(key).map(|(key, s)| (&**key, s.value, s.born.min(now), true))
                    };
                    let rows = keys.iter().filter_map(row);
                    store.write_series(book.id, rows)?;
                }
                let mut state = book.state.write().unwrap_or_else(PoisonError::into_inner);
                for key in keys {
                    if let Some(series) = state.series.get_mut(&key) {
                        series.released = true;
                        series.born = series.born.min(now);
                    }
                }
                Ok(())
            });
            match tokio::time::timeout_at(deadline, release).await {
                Ok(Ok(())) if overdue > 0 => tracing::warn!(
                    source = %source.name,
                    series = overdue,
                    held_for = ?hold::longest(hold),
                    "new series are shown although not every scraper has read them as 0: they were held for as long \
                     as can be; increase() of a scraper that did not come may lack their first events"
                ),
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "new series stay at 0"),
                Err(_) => tracing::warn!("the ledger is busy; new series stay at 0 for one more scrape"),
            }
        }
        // before the states are read: what is born meanwhile may be missing in this answer
        let births = hold::births();
        let snapshots = sources.iter().map(|source| source.state().snapshot(now)).collect();
        (snapshots, self.audience.receipt(client, births))
    }

    /// The series of `sources` that are held at 0 now; `None` if none is.
    pub fn held<'a>(
        &self,
        sources: impl Iterator<Item = &'a Book>,
        now: DateTime<Utc>,
        hold: Duration,
    ) -> Option<Held> {
        let (mut series, mut birth, mut born, mut since) = (0, 0, None, None);
        for source in sources {
            for held in source.state().series.values().filter(|series| !series.released) {
                series += 1;
                birth = birth.max(held.birth);
                born = born.max(Some(held.born.min(now)));
                since = since.max(held.shown_since.get().copied());
            }
        }
        let left = since.map(|since| hold::longest(hold).saturating_sub(since.elapsed()));
        Some(Held {
            series,
            until: self.audience.held_until(born?, hold),
            waiting_for_scrapers: self.audience.waited_for(birth),
            at_the_latest: left.map(|left| now + delta(left)),
        })
    }
}

impl State {
    /// What a scrape shows; series that are held are shown as 0 from then on.
    fn snapshot(&self, now: DateTime<Utc>) -> Snapshot {
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

/// Makes commits of different sources in one transaction, and tells each its outcome. Where it fails, it fails for all.
fn commit_together(store: &mut Store, waiting: Vec<Waiting>) {
    let healed = waiting.iter().try_for_each(|one| store.heal(&one.source));
    let mut pages = Vec::with_capacity(waiting.len());
    let mut outcomes = Vec::with_capacity(waiting.len());
    for Waiting { source, commit, outcome } in waiting {
        if healed.is_ok() && source.state().record.checkpoint != commit.expected {
            // nobody may listen any more
            let _ = outcome.send(Err(CommitError::Conflict { source_name: source.name.clone() }));
            continue;
        }
        outcomes.push((Arc::clone(&source), outcome));
        pages.push((source, commit));
    }
    if pages.is_empty() {
        return;
    }
    let written = healed.and_then(|()| {
        catch_panic(|| store.write(pages)).unwrap_or_else(|panic| {
            store.distrust();
            Err(CommitError::Fault(panic))
        })
    });
    match written {
        Ok(written) => {
            for ((source, outcome), (change, committed)) in outcomes.into_iter().zip(written) {
                change.apply(&mut source.state.write().unwrap_or_else(PoisonError::into_inner));
                let _ = outcome.send(Ok(committed));
            }
        }
        Err(error) => {
            for (_, outcome) in outcomes {
                let _ = outcome.send(Err(error.clone()));
            }
        }
    }
}

impl From<StoreError> for CommitError {
    fn from(error: StoreError) -> Self {
        CommitError::Storage(error.to_string())
    }
}

/// How long a scrape waits, over all sources, for the ledger to record that series may be shown.
const RELEASE_WAIT_MAX: Duration = Duration::from_secs(2);

impl Series {
    /// To be called with the state it is born into locked for writing (see `hold.rs`).
    fn new(value: u64, born: DateTime<Utc>, released: bool) -> Self {
        Self { value, born, released, birth: hold::next_birth(), shown_since: OnceLock::new() }
    }
}

/// What a durable commit changes in the visible state.
struct Change {
    record: Record,
    series: Vec<(SeriesKey, u64, DateTime<Utc>)>,
    documents: Vec<(EventKey, DocumentRecord)>,
    forgotten: Vec<EventKey>,
    backlog: Vec<(SeriesKey, Peaks)>,
    /// Of which nothing is told any more.
    backlog_over: Vec<SeriesKey>,
    categories: LabelValues,
    actions: LabelValues,
}

impl Change {
    fn apply(self, state: &mut State) {
        state.record = self.record;
        for (key, value, born) in self.series {
            match state.series.get_mut(&key) {
                Some(series) => series.value = value,
                None => {
                    state.series.insert(Arc::new(key), Series::new(value, born, false));
                }
            }
        }
        state.documents.extend(self.documents);
        for key in self.forgotten {
            state.documents.remove(&key);
        }
        state.backlog.extend(self.backlog);
        for key in self.backlog_over {
            state.backlog.remove(&key);
        }
        state.categories = self.categories;
        state.actions = self.actions;
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

#[cfg(test)]
mod tests;
