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
//! Inside: what a page adds (`count.rs`, without any store), what is shown (`state.rs`), where it is kept (`store.rs`). Here is
//! whose turn it is: one source is changed by one caller at a time, others go on meanwhile, and no state is locked while a
//! disk is written.
//!
//! Leaves to others: what an event is counted as (`source/*.rs`), which window to read
//! (`window.rs`), how counters are written (`exposition.rs`), comparing with the service
//! (`verify.rs`). Its door is narrow on purpose: open, register or find, commit, scrape, tallies,
//! backup, and reading a source's state.

mod backlog;
mod cells;
mod count;
mod hold;
mod series;
mod state;
mod store;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

pub use backlog::{BACKLOG_CELLS, Backlog};
pub use cells::TALLY_CELL;
pub use count::{Commit, Committed, REJECTIONS_SHOWN, Vocabulary};
use count::{SeriesRow, count, keys_of};
use hold::Audience;
pub use hold::{Client, LONGEST_HOLDS, Receipt, Scraper};
pub use series::{Counter, SeriesKey, series_of};
pub use state::{Book, LABEL_VALUES_MAX, LATENESS_BOUNDS, Lateness, Shown, Snapshot, State, TALLIES_KEPT, Tallies};
use state::{Series, Who};
pub use store::{BackupError, Copied, OpenError, Opener, STORE_FILE, Unusable, usable, verify_copy};
use store::{Loaded, Place, RedbStore, Store, StoreError, Wanted};

use crate::clock::{delta, rfc3339_seconds};
use crate::event::{EventLabels, Label, SourceName, System};
use crate::fault::{Panicked, catch_panic_async};
use crate::page::Catalogue;
use crate::threads::run_to_end;
use crate::window::Window;

/// How long a scrape waits, over all sources, for the ledger to record that series may be shown.
const RELEASE_WAIT_MAX: Duration = Duration::from_secs(2);

/// Why a commit did not happen. Nothing of it is visible.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// Another commit moved the checkpoint.
    #[error("another commit moved the checkpoint of {source_name} while this page was read; the window is read again")]
    Conflict {
        /// Whose checkpoint.
        source_name: SourceName,
    },
    /// The disk.
    #[error("cannot write the ledger: {0}; counting stops until it can be written, and serving continues")]
    Storage(String),
    /// This program.
    #[error(
        "a fault in this program (a panic) while using the ledger: {0}; the ledger is opened again and read from the disk"
    )]
    Fault(Panicked),
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
    /// When every series that an answer has shown as 0 by now is released, even if a scraper is still missing.
    pub at_the_latest: Option<DateTime<Utc>>,
}

impl Held {
    /// The line that says so. A time that is over would read like a mistake, so it is left out.
    pub fn told(&self, now: DateTime<Utc>) -> String {
        let is = if self.series == 1 { "new series is" } else { "new series are" };
        let until =
            if self.until > now { format!("{} and until ", rfc3339_seconds(self.until)) } else { String::new() };
        let read = match self.waiting_for_scrapers {
            0 => "that 0 has been scraped".to_owned(),
            1 => "1 more scraper has read that 0".to_owned(),
            scrapers => format!("{scrapers} more scrapers have read that 0"),
        };
        let latest =
            self.at_the_latest.map(|at| format!(", at the latest until {}", rfc3339_seconds(at))).unwrap_or_default();
        format!("{} {is} shown as 0 on /metrics until {until}{read}{latest}: a first look shows zeros", self.series)
    }
}

/// The door to everything that has been counted. Cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    store: Arc<dyn Store>,
    /// The sources in use: one shared state each.
    books: Arc<Mutex<HashMap<Who, Arc<Book>>>>,
    /// One at a time makes sources known, so that none gets two states.
    registry: Arc<tokio::sync::Mutex<()>>,
    audience: Audience,
    /// Work under way, even if nobody waits for it any more.
    tasks: TaskTracker,
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
        Ok(Self::of(Arc::new(RedbStore::open_folder(path)?)))
    }

    /// Opens a store on a disk of the caller's (a simulated one), which is asked for anew after each failure.
    pub fn open_with(open: Opener) -> Result<Self, OpenError> {
        Ok(Self::of(Arc::new(RedbStore::open(open)?)))
    }

    fn of(store: Arc<dyn Store>) -> Self {
        let tasks = TaskTracker::new();
        // it only waits for those that are in it
        tasks.close();
        Self { store, books: Arc::default(), registry: Arc::default(), audience: Audience::new(), tasks }
    }

    /// When the store was begun, or restored from a backup, so that it grows each time; `None` before the first source
    /// was registered.
    pub fn generation(&self) -> Option<DateTime<Utc>> {
        let generation = self.store.generation();
        DateTime::from_timestamp_millis(generation.try_into().ok()?).filter(|_| generation > 0)
    }

    /// Runs `work` to its end, even where the caller stops waiting: what was written must be shown. Should it panic,
    /// every source is read from the store anew, because what is in memory cannot be trusted.
    async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, CommitError>> + Send + 'static,
    ) -> Result<T, CommitError> {
        let ledger = self.clone();
        let work = async move {
            match catch_panic_async(work).await {
                Ok(done) => done,
                Err(panic) => {
                    ledger.distrust().await;
                    Err(CommitError::Fault(panic))
                }
            }
        };
        run_to_end(self.tasks.track_future(work)).await
    }

    /// Reads what every source shows from the store anew. What cannot be read now is read before it is used again.
    async fn distrust(&self) {
        self.store.distrust().await;
        let books: Vec<Arc<Book>> = self.books().values().cloned().collect();
        for book in &books {
            book.doubt();
        }
        for book in books {
            let _turn = book.turn.lock().await;
            if self.settle_doubt(&book).await.is_err() {
                return;
            }
        }
    }

    fn books(&self) -> std::sync::MutexGuard<'_, HashMap<Who, Arc<Book>>> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that a source shows what is stored: after a failure it is not known whether the last write reached
    /// the disk. To be called by whose turn it is.
    async fn settle_doubt(&self, book: &Book) -> Result<(), CommitError> {
        if book.is_uncertain()
            && let Some(stored) = self.store.load(vec![book.who().clone()]).await?.pop().flatten()
        {
            book.refresh(stored.state);
        }
        Ok(())
    }

    /// The one state of each source, read from the store at its first use; `None` where nothing is recorded of it.
    /// To be called with the registry locked.
    async fn recorded(&self, sources: &[Who]) -> Result<Vec<Option<Arc<Book>>>, CommitError> {
        let unread: Vec<Who> = {
            let books = self.books();
            sources.iter().filter(|who| !books.contains_key(who)).cloned().collect()
        };
        // all at once: a call of the store costs a change of the thread, or a round trip
        let loaded = if unread.is_empty() { Vec::new() } else { self.store.load(unread.clone()).await? };
        let mut books = self.books();
        for (who, loaded) in unread.into_iter().zip(loaded) {
            if let Some(Loaded { id, state }) = loaded {
                books.insert(who.clone(), Arc::new(Book::new(who, id, state, false)));
            }
        }
        Ok(sources.iter().map(|who| books.get(who).cloned()).collect())
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
        let ledger = self.clone();
        self.run(async move { ledger.make_known(registrations, now).await }).await
    }

    async fn make_known(
        &self,
        registrations: Vec<Registration>,
        now: DateTime<Utc>,
    ) -> Result<Vec<Arc<Book>>, CommitError> {
        let _registry = self.registry.lock().await;
        let (sources, catalogues): (Vec<Who>, Vec<Catalogue>) = registrations
            .into_iter()
            .map(|Registration { name, system, catalogue }| (Who { name, system }, catalogue))
            .unzip();
        let books = self.recorded(&sources).await?;
        let known: Vec<(Who, Catalogue, Option<Arc<Book>>)> = sources
            .into_iter()
            .zip(catalogues)
            .zip(books)
            .map(|((who, catalogue), book)| (who, catalogue, book))
            .collect();
        let mut turns = Vec::with_capacity(known.len());
        let mut wanted = Vec::with_capacity(known.len());
        for (who, catalogue, book) in &known {
            let mut series = series::series_of_catalogue(catalogue);
            if let Some(book) = book {
                turns.push(book.turn.lock().await);
                self.settle_doubt(book).await?;
                // one that was out of the configuration was not shown meanwhile
                book.state_mut().bear_anew();
                book.learn(catalogue.clone());
                let state = book.state();
                series.retain(|key| !state.series.contains_key(key));
            }
            wanted.push(Wanted { who: who.clone(), id: book.as_ref().map(|book| book.id), series });
        }
        let born: Vec<Vec<SeriesKey>> = wanted.iter().map(|wanted| wanted.series.clone()).collect();
        let registered = self.store.register(wanted, now).await;
        if registered.is_err() {
            known.iter().filter_map(|(_, _, book)| book.as_ref()).for_each(|book| book.doubt());
        }
        let mut books = Vec::with_capacity(known.len());
        for (((who, catalogue, book), id), born) in known.iter().zip(registered?).zip(born) {
            let book = book.clone().unwrap_or_else(|| {
                let book = Arc::new(Book::new(who.clone(), id, State::default(), true));
                book.learn(catalogue.clone());
                self.books().insert(who.clone(), Arc::clone(&book));
                book
            });
            let mut state = book.state_mut();
            state.series.extend(born.into_iter().map(|key| (Arc::new(key), Series::new(0, now, false))));
            drop(state);
            books.push(book);
        }
        Ok(books)
    }

    /// A source that something was counted for, without making it known where nothing was.
    pub async fn find(
        &self,
        name: &SourceName,
        system: System,
        catalogue: Catalogue,
    ) -> Result<Option<Arc<Book>>, CommitError> {
        let (ledger, who) = (self.clone(), Who { name: name.clone(), system });
        self.run(async move {
            let _registry = ledger.registry.lock().await;
            let book = ledger.recorded(&[who]).await?.pop().flatten();
            if let Some(book) = &book {
                book.learn(catalogue);
            }
            Ok(book)
        })
        .await
    }

    /// What was counted of the events (and files) whose cells begin in `window`. Events that carry
    /// no time at all are not in it.
    pub async fn tallies(&self, source: &Arc<Book>, window: Window) -> Result<Tallies, CommitError> {
        let (ledger, book) = (self.clone(), Arc::clone(source));
        self.run(async move {
            let _turn = book.turn.lock().await;
            ledger.settle_doubt(&book).await?;
            let mut tallies = ledger.store.tallies(book.id, window).await?;
            let state = book.state();
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
    pub async fn backup(&self, file: File) -> Result<Copied, BackupError> {
        self.store.backup(file).await.map_err(|error| BackupError::Unmade(error.to_string()))
    }

    /// Waits until nothing is under way.
    pub async fn settle(&self) {
        self.tasks.wait().await;
    }

    /// Counts a page. When this returns `Ok`, the page is durable and visible.
    pub async fn commit(&self, source: &Arc<Book>, commit: Commit) -> Result<Committed, CommitError> {
        let (ledger, book) = (self.clone(), Arc::clone(source));
        self.run(async move { ledger.commit_in_turn(book, commit).await }).await
    }

    async fn commit_in_turn(&self, book: Arc<Book>, mut commit: Commit) -> Result<Committed, CommitError> {
        let _turn = book.turn.lock().await;
        self.settle_doubt(&book).await?;
        let keys = keys_of(&mut commit);
        let place = Place { id: book.id, who: book.who().clone(), expected: commit.expected.clone() };
        let counted_for = Arc::clone(&book);
        let counting = Box::new(move |recalled: &[count::Recalled]| count(&counted_for.state(), commit, recalled));
        match self.store.commit(place, keys, counting).await {
            Ok(counted) => {
                counted.change.apply(&mut book.state_mut());
                Ok(counted.committed)
            }
            Err(StoreError::Elsewhere) => Err(CommitError::Conflict { source_name: book.name().clone() }),
            Err(error) => {
                book.doubt();
                Err(error.into())
            }
        }
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
            let (ledger, book) = (self.clone(), Arc::clone(source));
            let release = self.run(async move { ledger.release(&book, keys, now).await });
            match tokio::time::timeout_at(deadline, release).await {
                Ok(Ok(())) if overdue > 0 => tracing::warn!(
                    source = %source.name(),
                    series = overdue,
                    held_for = ?hold::longest(hold),
                    "new series are shown although not every scraper has read them as 0, because they were held for as \
                     long as allowed; in a scraper that did not come, increase() may miss their first events"
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

    /// Records that series may be shown, and shows them.
    async fn release(&self, book: &Book, keys: Vec<Arc<SeriesKey>>, now: DateTime<Utc>) -> Result<(), CommitError> {
        let _turn = book.turn.lock().await;
        self.settle_doubt(book).await?;
        let rows: Vec<SeriesRow> = {
            let state = book.state();
            let row = |key: &Arc<SeriesKey>| {
                let series = state.series.get(key)?;
                let born = series.born.min(now);
                Some(SeriesRow { key: SeriesKey::clone(key), value: series.value, born, released: true })
            };
            keys.iter().filter_map(row).collect()
        };
        if let Err(error) = self.store.write_series(book.id, rows).await {
            book.doubt();
            return Err(error.into());
        }
        let mut state = book.state_mut();
        for key in keys {
            if let Some(series) = state.series.get_mut(&key) {
                series.released = true;
                series.born = series.born.min(now);
            }
        }
        Ok(())
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

impl From<StoreError> for CommitError {
    fn from(error: StoreError) -> Self {
        CommitError::Storage(error.to_string())
    }
}

#[cfg(test)]
mod tests;
