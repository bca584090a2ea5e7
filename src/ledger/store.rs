//! The tables of the ledger in one redb file, and the transaction that counts a page.
//!
//! Promises: one transaction a commit, flushed to the disk before it returns; a store of a newer
//! version, one that another process holds, or one that is damaged is refused; after a failure of
//! the disk, or a panic on what it holds, the file is opened and verified anew before anything else
//! is written.
//!
//! Leaves to others: the file itself (`file.rs`).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use redb::{
    Database, DatabaseError, Entry, MultimapTableHandle, ReadTransaction, ReadableDatabase, ReadableTable,
    ReadableTableMetadata, TableDefinition, TableHandle,
};
use tracing::info;

use super::access;
use super::backlog::{BACKLOG_CELLS, Peak, Peaks};
use super::backup::Copied;
use super::file::{self, Mark, Unaccepted};
use super::lock::{Lock, Refused};
use super::marks::{Marks, TIMELESS as WITHOUT_TIME};
use super::{
    Book, Change, Commit, CommitError, Committed, Counter, Record, Registration, Series, SeriesKey, State,
    TALLIES_KEPT, TALLY_CELL, Tallies, Tally,
};
use crate::clock::delta;
use crate::event::{EventKey, EventLabels, Item, Label, SourceName, System, What};
use crate::fault::catch_panic;
use crate::page::{Document, DocumentRecord};
use crate::window::{KEYS_BUCKET, Window, floor};

/// The layout of the tables below. A store with a higher number was written by a newer program.
/// 2: tallies. 3: the backlog.
const SCHEMA: u64 = 3;

/// Name of the file inside `storage.path`.
pub const STORE_FILE: &str = "ledger.redb";

/// How long a file's record is kept after its hour: the services list files for 14 days, and no source may hand
/// over an older one (`READ_FOR` in `source/index_exchange.rs`).
const DOCUMENTS_KEPT: Duration = Duration::from_hours(32 * 24);

/// redb's own default is 1 GiB; a commit touches a few pages of a few small tables.
const CACHE_BYTES: usize = 4 << 20;

/// `schema`: the layout. `commits`: how many transactions this store has seen. `generation`: see [`Store::generations`].
/// `copied`: there in a backup, until it is put to use.
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// `system/name` → the number the other tables use, and the record as JSON.
const SOURCES: TableDefinition<&str, (u32, &[u8])> = TableDefinition::new("sources");
/// [`SeriesKey::to_bytes`] → value, birth (Unix milliseconds), released.
const SERIES: TableDefinition<&[u8], (u64, i64, bool)> = TableDefinition::new("series");
/// Source, second since 1970, key: what was counted. In the order of time, because what is read
/// together happened together: the pages of the tree that a commit rewrites are few.
const SEEN: TableDefinition<&[u8; 24], ()> = TableDefinition::new("seen");
/// Source, key → hour first seen: what was counted of events without any time.
const TIMELESS: TableDefinition<&[u8; 20], u32> = TableDefinition::new("timeless");
/// Source, second, key → [`DocumentRecord`] as JSON.
const DOCUMENTS: TableDefinition<&[u8; 24], &[u8]> = TableDefinition::new("documents");
/// Source, then [`SeriesKey::to_bytes`] with the second the cell begins instead of the source → events
/// counted in that cell.
const TALLIES: TableDefinition<&[u8], u64> = TableDefinition::new("tallies");
/// The same of events that an outage held back, as long as events of that time may still come.
const BACKLOG: TableDefinition<&[u8], u64> = TableDefinition::new("backlog");
/// [`SeriesKey::to_bytes`] → [`Peaks`] as JSON.
const BACKLOG_PEAKS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("backlog_peaks");
/// Their cells.
#[expect(clippy::cast_possible_truncation, reason = "it is 300")]
const TALLY_CELL_SECONDS: u32 = TALLY_CELL.as_secs() as u32;

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Written by a newer program.
    #[error(
        "the store {path} has layout {found}, this program knows layouts up to {SCHEMA}: it was written by a newer \
         audit-exporter; run that version, or give another storage.path"
    )]
    Newer {
        /// The file.
        path: String,
        /// Its layout.
        found: u64,
    },
    /// Held by another process.
    #[error("the store {path} is in use by another process{holder}; two exporters must not share one storage.path")]
    InUse {
        /// The file.
        path: String,
        /// What that process says of itself, in brackets; empty if it says nothing.
        holder: String,
    },
    /// What is in it is not, or not all, what was written.
    #[error(
        "the store {path} is damaged, or no store of audit-exporter: {found}. Nothing of it is counted on or served. \
         Restore a backup (docs/backup.md), or move the file away and start again: then all counters begin at 0 and \
         events are read from initial_lookback before that start"
    )]
    Damaged {
        /// The file.
        path: String,
        /// What was found.
        found: String,
    },
    /// Anything the disk or the file says.
    #[error("cannot open the store {path}: {reason}")]
    Storage {
        /// The file.
        path: String,
        /// What was said.
        reason: String,
        /// Whether it may pass by itself: a disk that is full or read-only for now.
        passing: bool,
    },
}

/// Any failure inside a transaction.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("{0}")]
    Redb(Box<redb::Error>),
    #[error("{0}")]
    Open(#[from] OpenError),
    #[error("the record of a source cannot be read: {0}")]
    Record(#[from] serde_json::Error),
    #[error("it holds tables that this version does not know: {0}")]
    UnknownTables(String),
    /// As redb does on pages that are not what they were.
    #[error("a panic in the store: {0}")]
    Panic(String),
}

impl From<std::io::Error> for StoreError {
    fn from(error: std::io::Error) -> Self {
        Self::Redb(Box::new(redb::Error::Io(error)))
    }
}

macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for StoreError {
            fn from(error: $error) -> Self {
                Self::Redb(Box::new(error.into()))
            }
        }
    )*};
}
from_redb!(DatabaseError, redb::TransactionError, redb::TableError, redb::StorageError, redb::CommitError);

/// Opens the database, at the start and again after each failure.
pub type Opener = Box<dyn Fn() -> Result<Database, DatabaseError> + Send>;

/// The same for a file, which is not written to before it is accepted.
type AnyOpener = Box<dyn Fn() -> Result<(Database, Option<Unaccepted>), StoreError> + Send>;

/// The file and what is needed to open it again.
pub(super) struct Store {
    opener: AnyOpener,
    path: String,
    /// `None` on a disk of the caller's.
    mark: Option<Mark>,
    /// `None` after a failure, until the next use opens it again.
    database: Option<Database>,
    /// How many times it was opened: a source loaded under an earlier number is loaded again.
    generation: u64,
    /// The sources in use, by the key of their row: one state each, whoever asks.
    books: HashMap<String, Arc<Book>>,
    /// By the number of the source; read from the tables when it is first needed after an opening.
    marks: HashMap<u32, Marks>,
    /// When the store was begun, or put in the place of a newer one (a backup that was restored), in Unix milliseconds; 0
    /// until that is known.
    generations: Arc<AtomicU64>,
    /// It was, and that has still to be written down.
    begins_anew: bool,
}

impl Store {
    pub(super) fn open_folder(folder: &Path) -> Result<Self, OpenError> {
        Self::open_folder_with(folder, CACHE_BYTES)
    }

    pub(super) fn open_folder_with(folder: &Path, cache_bytes: usize) -> Result<Self, OpenError> {
        let file = folder.join(STORE_FILE);
        let path = file.display().to_string();
        let refused = |error: std::io::Error| OpenError::Storage {
            path: path.clone(),
            reason: access::explained(folder, &error),
            passing: may_pass(&error),
        };
        std::fs::create_dir_all(folder).map_err(refused)?;
        let lock = Lock::take(folder).map_err(|why| match why {
            Refused::InUse(holder) if holder.is_empty() => OpenError::InUse { path: path.clone(), holder },
            Refused::InUse(holder) => OpenError::InUse { path: path.clone(), holder: format!(" ({holder})") },
            Refused::Disk(error) => refused(error),
        })?;
        let lock = Arc::new(lock);
        let mark = Mark::beside(&file);
        let open = move || file::open(&file, &lock, cache_bytes, create_tables);
        Self::open_at(path, Some(mark), Box::new(move || open().map(|(database, file)| (database, Some(file)))))
    }

    pub(super) fn open(opener: Opener) -> Result<Self, OpenError> {
        Self::open_at("in memory".into(), None, Box::new(move || Ok((opener()?, None))))
    }

    fn open_at(path: String, mark: Option<Mark>, opener: AnyOpener) -> Result<Self, OpenError> {
        let mut store = Self {
            opener,
            path,
            mark,
            database: None,
            generation: 0,
            books: HashMap::new(),
            marks: HashMap::new(),
            generations: Arc::default(),
            begins_anew: false,
        };
        store.reopen()?;
        Ok(store)
    }

    /// When the store was begun or restored, in Unix milliseconds; 0 until that is known.
    pub(super) fn generations(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.generations)
    }

    fn reopen(&mut self) -> Result<(), OpenError> {
        let opened = catch_panic(|| {
            let (database, unaccepted) = (self.opener)()?;
            let found = match meta_of(&database, "schema")? {
                // one that is made in a folder has its tables from the first moment
                None if self.mark.is_none() => {
                    create_tables(&database)?;
                    Some(SCHEMA)
                }
                found => found,
            };
            let commits = meta_of(&database, "commits")?.unwrap_or(0);
            let generation = meta_of(&database, "generation")?;
            let is_copy = meta_of(&database, "copied")?.is_some();
            Ok((database, unaccepted, found, commits, generation, is_copy))
        });
        let (database, unaccepted, schema, commits, generation, is_copy) =
            opened.unwrap_or_else(|panic| Err(StoreError::Panic(panic))).map_err(|error| self.cannot_open(error))?;
        let damaged = |found: String| OpenError::Damaged { path: self.path.clone(), found };
        match schema {
            Some(found) if found > SCHEMA => return Err(OpenError::Newer { path: self.path.clone(), found }),
            Some(_) => {}
            None => return Err(damaged("it holds other tables".into())),
        }
        if let Some(missing) = self.mark.as_ref().and_then(|mark| mark.missing(commits)) {
            return Err(damaged(missing));
        }
        if self.generation == 0 {
            // who puts an older store in the place of a newer one has to remove the mark
            let went_back = commits > 0 && self.mark.as_ref().is_some_and(Mark::is_absent);
            self.begins_anew = generation.is_none() || is_copy || went_back;
            if is_copy || went_back {
                info!(store = self.path, "the ledger was restored: it is older than what was counted last, or may be");
            }
        }
        if !self.begins_anew {
            self.generations.store(generation.unwrap_or(0), Ordering::Relaxed);
        }
        if let Some(unaccepted) = unaccepted {
            unaccepted.accept().map_err(|error| self.cannot_open(error.into()))?;
        }
        if schema == Some(1) {
            add_tallies(&database).map_err(|error| self.cannot_open(error))?;
        }
        if schema < Some(SCHEMA) {
            add_backlog(&database).map_err(|error| self.cannot_open(error))?;
        }
        self.database = Some(database);
        self.generation += 1;
        Ok(())
    }

    fn cannot_open(&self, error: StoreError) -> OpenError {
        use std::io::ErrorKind;
        let path = self.path.clone();
        let reason = error.to_string();
        let error = match error {
            StoreError::Open(error) => return error,
            StoreError::Record(_) | StoreError::UnknownTables(_) | StoreError::Panic(_) => {
                return OpenError::Damaged { path, found: reason };
            }
            StoreError::Redb(error) => *error,
        };
        match error {
            redb::Error::DatabaseAlreadyOpen => OpenError::InUse { path, holder: String::new() },
            // a transaction after the one that failed
            redb::Error::PreviousIo => OpenError::Storage { path, reason, passing: true },
            redb::Error::Io(error) if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => {
                OpenError::Damaged { path, found: error.to_string() }
            }
            redb::Error::Io(error) => {
                let folder = Path::new(&path).parent().filter(|_| self.mark.is_some());
                let reason = folder.map_or_else(|| error.to_string(), |folder| access::explained(folder, &error));
                OpenError::Storage { path, reason, passing: may_pass(&error) }
            }
            redb::Error::Corrupted(found) => OpenError::Damaged { path, found },
            redb::Error::UpgradeRequired(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TypeDefinitionChanged { .. } => OpenError::Damaged { path, found: reason },
            _ => OpenError::Storage { path, reason, passing: false },
        }
    }

    fn database(&mut self) -> Result<&Database, StoreError> {
        if self.database.is_none() {
            self.reopen()?;
        }
        Ok(self.database.as_ref().expect("reopen filled it or returned"))
    }

    /// After a panic: closes the file, and reads from it anew what every source shows. What cannot be read now
    /// is read before it is used again, as after any failure.
    pub(super) fn distrust(&mut self) {
        self.close();
        let books: Vec<Arc<Book>> = self.books.values().map(Arc::clone).collect();
        let _ = catch_panic(|| books.iter().try_for_each(|book| self.heal(book)));
    }

    /// Until the next use. Closing writes, too, which one that has failed or panicked may not survive.
    fn close(&mut self) {
        let database = self.database.take();
        // they may hold what was not committed
        self.marks.clear();
        let _ = catch_panic(move || drop(database));
    }

    /// Runs `work`; after a failure or a panic the file is closed, so that the next use opens it anew.
    fn guarded<T>(&mut self, work: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let database = self.database()?;
        let done = catch_panic(|| work(database)).unwrap_or_else(|panic| Err(StoreError::Panic(panic)));
        if done.is_err() {
            self.close();
        }
        done
    }

    /// The same with a transaction, which is durable when this returns.
    fn writing<T>(
        &mut self,
        work: impl FnOnce(&redb::WriteTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let (done, commits) = self.guarded(|database| {
            let write = database.begin_write()?;
            let done = work(&write)?;
            let commits = count_commit(&write)?;
            write.commit()?;
            Ok((done, commits))
        })?;
        if let Some(mark) = &self.mark {
            mark.set(commits);
        }
        Ok(done)
    }

    /// All that is committed. Commits go on meanwhile; until it is dropped, the file keeps what they replace.
    pub(super) fn snapshot(&mut self) -> Result<ReadTransaction, StoreError> {
        self.guarded(|database| Ok(database.begin_read()?))
    }

    /// Whether anything was ever recorded of a source.
    pub(super) fn knows(&mut self, name: &SourceName, system: System) -> Result<bool, StoreError> {
        let path = format!("{system}/{name}");
        self.guarded(|database| Ok(database.begin_read()?.open_table(SOURCES)?.get(path.as_str())?.is_some()))
    }

    /// The tallies of a source whose cells begin in `window`.
    pub(super) fn tallies(&mut self, source: u32, window: Window) -> Result<Tallies, StoreError> {
        self.guarded(|database| {
            let mut tallies = Tallies::new();
            let read = database.begin_read()?;
            let (first, after) = (tally_place(source, window.from), tally_place(source, window.to.max(window.from)));
            for row in read.open_table(TALLIES)?.range(first.as_slice()..after.as_slice())? {
                let (key, count) = row?;
                let key = &key.value()[4..];
                let second = key.first_chunk().map_or(0, |second| u32::from_be_bytes(*second));
                if let Some(series) = SeriesKey::from_bytes(key) {
                    let cell = DateTime::from_timestamp(second.into(), 0).unwrap_or_default();
                    tallies.insert((cell, series), count.value());
                }
            }
            Ok(tallies)
        })
    }

    /// The one state of a source, read from the store at its first use.
    pub(super) fn book(&mut self, name: &SourceName, system: System) -> Result<Arc<Book>, StoreError> {
        let path = format!("{system}/{name}");
        if let Some(book) = self.books.get(&path) {
            return Ok(Arc::clone(book));
        }
        let (id, state) = self.load(name, system)?;
        let book = Arc::new(self.new_book(name, system, id, state, false));
        self.books.insert(path, Arc::clone(&book));
        Ok(book)
    }

    fn new_book(&self, name: &SourceName, system: System, id: u32, state: State, is_new: bool) -> Book {
        Book {
            name: name.clone(),
            system,
            id,
            catalogue: Mutex::default(),
            state: RwLock::new(state),
            generation: AtomicU64::new(self.generation),
            is_new,
        }
    }

    /// Makes sources known, each once, and brings the series of their catalogues into being.
    pub(super) fn register(
        &mut self,
        wanted: Vec<Registration>,
        now: DateTime<Utc>,
    ) -> Result<Vec<Arc<Book>>, CommitError> {
        let mut sources: Vec<Arc<Book>> = Vec::with_capacity(wanted.len());
        let mut new: Vec<(String, Arc<Book>)> = Vec::new();
        for Registration { name, system, .. } in &wanted {
            let path = format!("{system}/{name}");
            if self.books.contains_key(&path) || self.knows(name, *system)? {
                let source = self.book(name, *system)?;
                self.heal(&source)?;
                sources.push(source);
            } else {
                let last = match new.last() {
                    Some((_, last)) => last.id,
                    None => self.last_number()?,
                };
                let source = Arc::new(self.new_book(name, *system, last + 1, State::default(), true));
                new.push((path, Arc::clone(&source)));
                sources.push(source);
            }
        }
        let mut missing: Vec<(Arc<Book>, Vec<SeriesKey>)> = Vec::with_capacity(sources.len());
        for (source, Registration { catalogue, .. }) in sources.iter().zip(wanted) {
            let mut state = source.state.write().unwrap_or_else(PoisonError::into_inner);
            // one that was out of the configuration was not shown meanwhile
            state.bear_anew();
            state.learn_labels(&catalogue);
            let mut series = super::series::series_of_catalogue(&catalogue);
            series.retain(|key| !state.series.contains_key(key));
            *source.catalogue.lock().unwrap_or_else(PoisonError::into_inner) = catalogue;
            if !series.is_empty() {
                missing.push((Arc::clone(source), series));
            }
        }
        let begins_anew = self.begins_anew;
        if !new.is_empty() || !missing.is_empty() || begins_anew {
            let generation = self.writing(|write| {
                let record = serde_json::to_vec(&Record::default())?;
                let mut table = write.open_table(SOURCES)?;
                for (path, source) in &new {
                    table.insert(path.as_str(), (source.id, record.as_slice()))?;
                }
                let mut table = write.open_table(SERIES)?;
                for (source, series) in &missing {
                    for key in series {
                        table.insert(key.to_bytes(source.id).as_slice(), (0, now.timestamp_millis(), false))?;
                    }
                }
                begins_anew.then(|| next_generation(write, now)).transpose()
            })?;
            if let Some(generation) = generation {
                self.begins_anew = false;
                self.generations.store(generation, Ordering::Relaxed);
            }
        }
        for (source, series) in missing {
            let mut state = source.state.write().unwrap_or_else(PoisonError::into_inner);
            state.series.extend(series.into_iter().map(|key| (Arc::new(key), Series::new(0, now, false))));
        }
        self.books.extend(new);
        Ok(sources)
    }

    /// The largest number of a source; 0 where there is none.
    fn last_number(&mut self) -> Result<u32, StoreError> {
        self.guarded(|database| last_number(&database.begin_read()?.open_table(SOURCES)?))
    }

    /// Makes sure that the file is open and that `source` shows what is in it: after a failure it
    /// is not known whether the last commit reached the disk.
    pub(super) fn heal(&mut self, source: &Book) -> Result<(), CommitError> {
        self.database()?;
        if source.generation.load(Ordering::Relaxed) != self.generation {
            let (_, mut state) = self.load(&source.name, source.system)?;
            state.learn_labels(&source.catalogue.lock().unwrap_or_else(PoisonError::into_inner));
            let mut shown = source.state.write().unwrap_or_else(PoisonError::into_inner);
            state.bear_anew();
            *shown = state;
            drop(shown);
            source.generation.store(self.generation, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The number and the state of a source; a source that is new gets a number.
    fn load(&mut self, name: &SourceName, system: System) -> Result<(u32, State), StoreError> {
        let path = format!("{system}/{name}");
        let known = self.guarded(|database| {
            let read = database.begin_read()?;
            let known = read.open_table(SOURCES)?.get(path.as_str())?.map(|row| {
                let (id, record) = row.value();
                (id, serde_json::from_slice::<Record>(record))
            });
            let Some((id, record)) = known else { return Ok(None) };
            let mut state = State { record: record?, ..State::default() };
            let first = id.to_be_bytes();
            let after = (id + 1).to_be_bytes();
            for row in read.open_table(SERIES)?.range(first.as_slice()..after.as_slice())? {
                let (key, value) = row?;
                let (value, born, released) = value.value();
                // a family of a version to come is left alone
                if let Some(key) = SeriesKey::from_bytes(key.value()) {
                    let born = DateTime::from_timestamp_millis(born).unwrap_or_default();
                    state.series.insert(key.into(), Series::new(value, born, released));
                }
            }
            for row in read.open_table(DOCUMENTS)?.range::<&[u8; 24]>(&first_key(id)..&first_key(id + 1))? {
                let (key, record) = row?;
                let key = EventKey(*key.value().last_chunk().expect("the key has 24 bytes"));
                state.documents.insert(key, serde_json::from_slice(record.value())?);
            }
            for row in read.open_table(BACKLOG_PEAKS)?.range(first.as_slice()..after.as_slice())? {
                let (key, peaks) = row?;
                if let Some(key) = SeriesKey::from_bytes(key.value()) {
                    state.backlog.insert(key, serde_json::from_slice(peaks.value())?);
                }
            }
            Ok(Some((id, state)))
        })?;
        match known {
            Some(known) => Ok(known),
            None => Ok((self.writing(|write| add_source(write, &path))?, State::default())),
        }
    }

    /// Writes series whose value is not touched by a commit: newly born or newly released ones.
    pub(super) fn write_series<'a>(
        &mut self,
        source: u32,
        rows: impl Iterator<Item = (&'a SeriesKey, u64, DateTime<Utc>, bool)>,
    ) -> Result<(), StoreError> {
        self.writing(|write| {
            let mut table = write.open_table(SERIES)?;
            for (key, value, born, released) in rows {
                table.insert(key.to_bytes(source).as_slice(), (value, born.timestamp_millis(), released))?;
            }
            Ok(())
        })
    }

    /// The transaction: counts what is new in the pages (of a source each), remembers it, moves the checkpoints.
    pub(super) fn write(&mut self, pages: Vec<(Arc<Book>, Commit)>) -> Result<Vec<(Change, Committed)>, CommitError> {
        let mut marks = std::mem::take(&mut self.marks);
        let written = self.writing(|write| {
            let mut written = Vec::with_capacity(pages.len());
            for (source, commit) in pages {
                let path = format!("{}/{}", source.system, source.name);
                let state = source.state();
                let mut page = Transaction::new(source.id, &state, &commit, &mut marks);
                page.count_items(write, commit.page.items)?;
                page.count_documents(write, commit.page.documents)?;
                written.push(page.finish(write, &path, commit.page.facts, commit.next)?);
            }
            Ok(written)
        })?;
        self.marks = marks;
        Ok(written)
    }
}

fn may_pass(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem)
}

/// A number of the store itself; `None` where it has none, as an empty store or an older layout.
fn meta_of(database: &Database, name: &str) -> Result<Option<u64>, StoreError> {
    match database.begin_read()?.open_table(META) {
        Ok(meta) => Ok(meta.get(name)?.map(|number| number.value())),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn count_commit(write: &redb::WriteTransaction) -> Result<u64, StoreError> {
    let mut meta = write.open_table(META)?;
    let commits = meta.get("commits")?.map_or(0, |commits| commits.value()) + 1;
    meta.insert("commits", commits)?;
    Ok(commits)
}

/// From now on the store is one that began, or was restored, now. It grows also where the clock was set back.
fn next_generation(write: &redb::WriteTransaction, now: DateTime<Utc>) -> Result<u64, StoreError> {
    let mut meta = write.open_table(META)?;
    let before = meta.get("generation")?.map_or(0, |generation| generation.value());
    let generation = u64::try_from(now.timestamp_millis()).unwrap_or(0).max(before + 1);
    meta.insert("generation", generation)?;
    meta.remove("copied")?;
    Ok(generation)
}

fn create_tables(database: &Database) -> Result<(), StoreError> {
    let write = database.begin_write()?;
    write.open_table(META)?.insert("schema", SCHEMA)?;
    write.open_table(SOURCES)?;
    write.open_table(SERIES)?;
    write.open_table(SEEN)?;
    write.open_table(TIMELESS)?;
    write.open_table(DOCUMENTS)?;
    write.open_table(TALLIES)?;
    write.open_table(BACKLOG)?;
    write.open_table(BACKLOG_PEAKS)?;
    write.commit()?;
    Ok(())
}

/// Copies every table into a new database, in one transaction, and marks it as a copy.
pub(super) fn copy_tables(from: &ReadTransaction, to: &Database) -> Result<(), StoreError> {
    let mut left = from.list_tables()?.map(|table| table.name().to_owned()).collect::<Vec<_>>();
    left.extend(from.list_multimap_tables()?.map(|table| table.name().to_owned()));
    let write = to.begin_write()?;
    copy_table(from, &write, META, &mut left)?;
    copy_table(from, &write, SOURCES, &mut left)?;
    copy_table(from, &write, SERIES, &mut left)?;
    copy_table(from, &write, SEEN, &mut left)?;
    copy_table(from, &write, TIMELESS, &mut left)?;
    copy_table(from, &write, DOCUMENTS, &mut left)?;
    copy_table(from, &write, TALLIES, &mut left)?;
    copy_table(from, &write, BACKLOG, &mut left)?;
    copy_table(from, &write, BACKLOG_PEAKS, &mut left)?;
    if !left.is_empty() {
        return Err(StoreError::UnknownTables(left.join(", ")));
    }
    // whoever opens it puts it in the place of what was counted since
    write.open_table(META)?.insert("copied", 1)?;
    write.commit()?;
    Ok(())
}

fn copy_table<K: redb::Key + 'static, V: redb::Value + 'static>(
    from: &ReadTransaction,
    to: &redb::WriteTransaction,
    table: TableDefinition<'_, K, V>,
    left: &mut Vec<String>,
) -> Result<(), StoreError> {
    let rows = from.open_table(table)?;
    let mut copy = to.open_table(table)?;
    for row in rows.iter()? {
        let (key, value) = row?;
        copy.insert(key.value(), value.value())?;
    }
    left.retain(|name| name != table.name());
    Ok(())
}

/// What a store holds, in short.
pub(super) fn contents(read: &ReadTransaction) -> Result<Copied, StoreError> {
    let mut events = 0;
    for row in read.open_table(SERIES)?.iter()? {
        let (key, value) = row?;
        if SeriesKey::from_bytes(key.value()).is_some_and(|key| key.counter == Counter::Events) {
            events += value.value().0;
        }
    }
    let commit = read.open_table(META)?.get("commits")?.map_or(0, |commits| commits.value());
    Ok(Copied { sources: read.open_table(SOURCES)?.len()?, events, commit })
}

/// The same of a database that is open.
pub(super) fn contents_of(database: &Database) -> Result<Copied, StoreError> {
    contents(&database.begin_read()?)
}

/// From layout 1 to 2. What was counted until now is in no tally: those of each source are whole
/// from behind its newest event on.
fn add_tallies(database: &Database) -> Result<(), StoreError> {
    let write = database.begin_write()?;
    {
        write.open_table(TALLIES)?;
        let mut sources = write.open_table(SOURCES)?;
        let mut records: Vec<(String, u32, Record)> = Vec::new();
        for row in sources.iter()? {
            let (path, row) = row?;
            let (id, record) = row.value();
            records.push((path.value().to_owned(), id, serde_json::from_slice(record)?));
        }
        for (path, id, mut record) in records {
            let newest = record.checkpoint.as_ref().map(|read| read.head).max(record.last_event);
            record.tallied_from = newest.map(|newest| floor(newest, TALLY_CELL) + delta(TALLY_CELL));
            sources.insert(path.as_str(), (id, serde_json::to_vec(&record)?.as_slice()))?;
        }
        write.open_table(META)?.insert("schema", 2)?;
    }
    write.commit()?;
    Ok(())
}

/// From layout 2 to 3.
fn add_backlog(database: &Database) -> Result<(), StoreError> {
    let write = database.begin_write()?;
    write.open_table(BACKLOG)?;
    write.open_table(BACKLOG_PEAKS)?;
    write.open_table(META)?.insert("schema", 3)?;
    write.commit()?;
    Ok(())
}

fn last_number(sources: &impl ReadableTable<&'static str, (u32, &'static [u8])>) -> Result<u32, StoreError> {
    let mut last = 0;
    for row in sources.iter()? {
        last = last.max(row?.1.value().0);
    }
    Ok(last)
}

fn add_source(write: &redb::WriteTransaction, path: &str) -> Result<u32, StoreError> {
    let mut sources = write.open_table(SOURCES)?;
    let last = last_number(&sources)?;
    let record = serde_json::to_vec(&Record::default())?;
    sources.insert(path, (last + 1, record.as_slice()))?;
    Ok(last + 1)
}

fn hour_of(at: DateTime<Utc>) -> u32 {
    let hours = floor(at, KEYS_BUCKET).timestamp() / 3600;
    u32::try_from(hours.max(0)).unwrap_or(u32::MAX)
}

fn second_of(at: DateTime<Utc>) -> u32 {
    u32::try_from(at.timestamp().max(0)).unwrap_or(u32::MAX)
}

/// The second in which the cell of a moment begins.
fn tally_cell(at: DateTime<Utc>) -> u32 {
    cell_of(second_of(at))
}

fn cell_of(second: u32) -> u32 {
    second - second % TALLY_CELL_SECONDS
}

/// Where the tallies of the cells that begin at `from` or later begin.
fn tally_place(source: u32, from: DateTime<Utc>) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&source.to_be_bytes());
    bytes[4..].copy_from_slice(&second_of(from).to_be_bytes());
    bytes
}

fn tally_key(source: u32, second: u32, series: &SeriesKey) -> Vec<u8> {
    [&source.to_be_bytes()[..], &series.to_bytes(second)].concat()
}

/// What a table of counts has under a key.
fn count_at(table: &redb::Table<'_, &'static [u8], u64>, key: &[u8]) -> Result<u64, StoreError> {
    Ok(table.get(key)?.map_or(0, |count| count.value()))
}

fn add_to(table: &mut redb::Table<'_, &'static [u8], u64>, key: &[u8], count: u64) -> Result<(), StoreError> {
    let before = count_at(table, key)?;
    table.insert(key, before + count)?;
    Ok(())
}

fn filed_key(source: u32, filed_at: DateTime<Utc>, key: [u8; 16]) -> [u8; 24] {
    seen_key(source, second_of(filed_at), key)
}

fn seen_key(source: u32, second: u32, key: [u8; 16]) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..4].copy_from_slice(&source.to_be_bytes());
    bytes[4..8].copy_from_slice(&second.to_be_bytes());
    bytes[8..].copy_from_slice(&key);
    bytes
}

/// The second and the key of a row of [`SEEN`].
fn parts_of(row: &[u8; 24]) -> (u32, [u8; 16]) {
    let [_, _, _, _, a, b, c, d, ..] = *row;
    (u32::from_be_bytes([a, b, c, d]), *row.last_chunk().expect("the key has 24 bytes"))
}

/// Before every key of a source.
fn first_key(source: u32) -> [u8; 24] {
    filed_key(source, DateTime::UNIX_EPOCH, [0; 16])
}

fn timeless_key(source: u32, key: [u8; 16]) -> [u8; 20] {
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&source.to_be_bytes());
    bytes[4..].copy_from_slice(&key);
    bytes
}

/// Whether the key was there; a key that was is not written again, so that reading again costs
/// no writing.
fn insert_if_new<K: redb::Key, V: redb::Value + 'static>(
    place: Entry<'_, K, V>,
    value: V::SelfType<'_>,
) -> Result<bool, StoreError> {
    match place {
        Entry::Occupied(_) => Ok(true),
        Entry::Vacant(place) => {
            place.insert(value)?;
            Ok(false)
        }
    }
}

/// The keys of a source, by their time and by themselves.
struct Keys<'a> {
    source: u32,
    seen: redb::Table<'a, &'static [u8; 24], ()>,
    timeless: redb::Table<'a, &'static [u8; 20], u32>,
    marks: &'a mut Marks,
}

impl<'a> Keys<'a> {
    /// Reads the marks from the tables where they are not known.
    fn open(
        write: &'a redb::WriteTransaction,
        source: u32,
        known: &'a mut HashMap<u32, Marks>,
    ) -> Result<Self, StoreError> {
        use std::collections::hash_map::Entry;
        let (seen, timeless) = (write.open_table(SEEN)?, write.open_table(TIMELESS)?);
        let marks = match known.entry(source) {
            Entry::Occupied(marks) => marks.into_mut(),
            Entry::Vacant(place) => {
                let mut marks = Marks::default();
                for row in seen.range::<&[u8; 24]>(&first_key(source)..&first_key(source + 1))? {
                    let (second, key) = parts_of(row?.0.value());
                    marks.put(key, second);
                }
                put_timeless(&mut marks, source, &timeless)?;
                place.insert(marks)
            }
        };
        Ok(Self { source, seen, timeless, marks })
    }

    /// Makes sure that an item's key is remembered under its time. Whether it was remembered under any and, if that was
    /// another one, which second it had and has now.
    ///
    /// A service may give an event another time than it had: it is remembered under both, and counted once.
    fn remember(&mut self, item: &Item, this_hour: u32) -> Result<(bool, Option<(u32, u32)>), StoreError> {
        let Self { source, seen, timeless, marks } = self;
        let key = item.key.0;
        let (second, known_here) = match item.filed_at {
            Some(at) => (second_of(at), insert_if_new(seen.entry(&filed_key(*source, at, key))?, ())?),
            None => (WITHOUT_TIME, insert_if_new(timeless.entry(&timeless_key(*source, key))?, this_hour)?),
        };
        if known_here {
            return Ok((true, None));
        }
        let before = marks.find(key, |second| -> Result<bool, StoreError> {
            Ok(match second {
                WITHOUT_TIME => timeless.get(&timeless_key(*source, key))?.is_some(),
                second => seen.get(&seen_key(*source, second, key))?.is_some(),
            })
        })?;
        marks.put(key, second);
        let timed = |second: &u32| *second != WITHOUT_TIME;
        Ok((before.is_some(), before.filter(timed).zip(Some(second).filter(timed))))
    }
}

fn put_timeless(
    marks: &mut Marks,
    source: u32,
    timeless: &impl ReadableTable<&'static [u8; 20], u32>,
) -> Result<(), StoreError> {
    let (first, after) = (timeless_key(source, [0; 16]), timeless_key(source + 1, [0; 16]));
    for row in timeless.range::<&[u8; 20]>(&first..&after)? {
        marks.put(*row?.0.value().last_chunk().expect("the key has 20 bytes"), WITHOUT_TIME);
    }
    Ok(())
}

/// An event that came again with a time of other five minutes.
struct Moved {
    labels: EventLabels,
    from: u32,
    to: u32,
}

/// One page on its way into the store: what it will change, should the transaction commit.
struct Transaction<'a> {
    source: u32,
    marks: &'a mut HashMap<u32, Marks>,
    state: &'a State,
    now: DateTime<Utc>,
    service_now: DateTime<Utc>,
    record: Record,
    series: BTreeMap<SeriesKey, u64>,
    categories: super::LabelValues,
    actions: super::LabelValues,
    documents: Vec<(EventKey, DocumentRecord)>,
    /// See [`Commit::backlog_from`].
    backlog_from: Option<DateTime<Utc>>,
    backlog: Vec<(SeriesKey, Peaks)>,
    committed: Committed,
}

/// Events of one label set and cell.
#[derive(Default)]
struct Counted {
    all: u64,
    /// Those of them that an outage held back.
    held_back: u64,
}

impl<'a> Transaction<'a> {
    fn new(source: u32, state: &'a State, commit: &Commit, marks: &'a mut HashMap<u32, Marks>) -> Self {
        let mut series = BTreeMap::new();
        if commit.lost_seconds > 0 {
            series.insert(SeriesKey::new(Counter::LostSeconds, &[]), commit.lost_seconds);
        }
        Self {
            source,
            marks,
            state,
            now: commit.now,
            service_now: commit.service_now,
            record: state.record.clone(),
            series,
            categories: state.categories.clone(),
            actions: state.actions.clone(),
            documents: Vec::new(),
            backlog_from: commit.backlog_from,
            backlog: Vec::new(),
            committed: Committed::default(),
        }
    }

    fn tally(&mut self) -> Tally<'_> {
        Tally { categories: &mut self.categories, actions: &mut self.actions, series: std::mem::take(&mut self.series) }
    }

    /// Counts the items whose keys are not in the store yet, and puts their keys there.
    fn count_items(&mut self, write: &redb::WriteTransaction, mut items: Vec<Item>) -> Result<(), StoreError> {
        if items.is_empty() {
            return Ok(());
        }
        // neighbours in the tree are written together; of an event that comes with a time and without one, the first counts
        items.sort_unstable_by_key(|item| (item.filed_at.is_none(), item.filed_at, item.key));
        let mut keys = Keys::open(write, self.source, self.marks)?;
        let mut moved: Vec<Moved> = Vec::new();
        let mut events: HashMap<(EventLabels, Option<u32>), Counted> = HashMap::new();
        let tallied_from = self.state.checkpoint().map_or(0, |read| second_of(read.head - delta(TALLIES_KEPT)));
        let mut others: BTreeMap<SeriesKey, u64> = BTreeMap::new();
        let mut count_other = |key| *others.entry(key).or_default() += 1;
        let this_hour = hour_of(self.service_now);
        for item in items {
            if let What::Tainted { candidates } = &item.what {
                let filed_at = item.filed_at.unwrap_or(self.now);
                let mut known = false;
                for candidate in candidates {
                    known = known || keys.seen.get(&filed_key(self.source, filed_at, candidate.0))?.is_some();
                }
                if !known {
                    keys.seen.insert(&filed_key(self.source, filed_at, item.key.0), ())?;
                    count_other(SeriesKey::new(Counter::Tainted, &[]));
                    self.record.last_tainted = Some(self.now);
                }
                continue;
            }
            let (known, new_time) = keys.remember(&item, this_hour)?;
            if let (Some((from, to)), What::Event(labels)) = (new_time, &item.what)
                && cell_of(from) != cell_of(to)
            {
                moved.push(Moved { labels: labels.clone(), from: cell_of(from), to: cell_of(to) });
            }
            if known {
                self.committed.duplicate += 1;
                count_other(SeriesKey::new(Counter::Duplicate, &[]));
                continue;
            }
            match item.what {
                What::Event(labels) => {
                    self.committed.counted += 1;
                    let counted = events.entry((labels, item.filed_at.map(tally_cell))).or_default();
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
                    if self.committed.rejections.len() < super::REJECTIONS_SHOWN {
                        self.committed.rejections.push(rejection);
                    }
                }
                What::Tainted { .. } => unreachable!("handled above"),
            }
        }
        drop(keys);
        // sorted, so that which values come under the cap does not depend on a hash
        let events: BTreeMap<(EventLabels, Option<u32>), Counted> = events.into_iter().collect();
        let mut tallies: BTreeMap<(u32, SeriesKey), u64> = BTreeMap::new();
        let mut backlog: BTreeMap<(u32, SeriesKey), u64> = BTreeMap::new();
        let mut tally = self.tally();
        for ((labels, cell), counted) in events {
            let series = tally.add_events(labels, counted.all);
            let Some(cell) = cell else { continue };
            if counted.held_back > 0 {
                *backlog.entry((cell, series.clone())).or_default() += counted.held_back;
            }
            if cell >= tallied_from {
                *tallies.entry((cell, series)).or_default() += counted.all;
            }
        }
        for (key, count) in others {
            tally.add(key, count);
        }
        self.series = tally.series;
        self.write_backlog(write, &backlog)?;
        self.write_tallies(write, tallies, moved)
    }

    /// Adds what an outage held back to its cells, and finds the highest 15 minutes that got any of it.
    fn write_backlog(
        &mut self,
        write: &redb::WriteTransaction,
        backlog: &BTreeMap<(u32, SeriesKey), u64>,
    ) -> Result<(), StoreError> {
        if backlog.is_empty() {
            return Ok(());
        }
        let mut cells = write.open_table(BACKLOG)?;
        for ((cell, series), count) in backlog {
            add_to(&mut cells, &tally_key(self.source, *cell, series), *count)?;
        }
        let mut highest: BTreeMap<&SeriesKey, Peak> = BTreeMap::new();
        for (cell, series) in backlog.keys() {
            let first = cell.saturating_sub((BACKLOG_CELLS - 1) * TALLY_CELL_SECONDS);
            let cells_of = |from: u32, count| (0..count).map(move |n| from.saturating_add(n * TALLY_CELL_SECONDS));
            let mut around = Vec::with_capacity(2 * BACKLOG_CELLS as usize - 1);
            for cell in cells_of(first, 2 * BACKLOG_CELLS - 1) {
                around.push(count_at(&cells, &tally_key(self.source, cell, series))?);
            }
            for (begins, span) in cells_of(first, BACKLOG_CELLS).zip(around.windows(BACKLOG_CELLS as usize)) {
                let begins = DateTime::from_timestamp(begins.into(), 0).unwrap_or_default();
                let peak = Peak { counted_at: self.now, events: span.iter().sum(), begins };
                // of equal ones the last, so that they begin where the events do
                let known = highest.entry(series).or_insert(peak);
                if (peak.events, peak.begins) > (known.events, known.begins) {
                    *known = peak;
                }
            }
        }
        let mut table = write.open_table(BACKLOG_PEAKS)?;
        for (series, peak) in highest {
            let mut peaks = self.state.backlog.get(series).cloned().unwrap_or_default();
            peaks.add(peak);
            table.insert(series.to_bytes(self.source).as_slice(), serde_json::to_vec(&peaks)?.as_slice())?;
            self.backlog.push((series.clone(), peaks));
        }
        Ok(())
    }

    fn write_tallies(
        &self,
        write: &redb::WriteTransaction,
        tallies: BTreeMap<(u32, SeriesKey), u64>,
        moved: Vec<Moved>,
    ) -> Result<(), StoreError> {
        if tallies.is_empty() && moved.is_empty() {
            return Ok(());
        }
        let mut table = write.open_table(TALLIES)?;
        for ((cell, series), count) in tallies {
            add_to(&mut table, &tally_key(self.source, cell, &series), count)?;
        }
        // tallies are compared with what the service says now
        for Moved { labels, from, to } in moved {
            let series = self.state.series_of_event(&labels);
            let (from, to) = (tally_key(self.source, from, &series), tally_key(self.source, to, &series));
            let left = count_at(&table, &from)?;
            if left == 0 {
                continue;
            }
            table.remove(from.as_slice())?;
            if left > 1 {
                table.insert(from.as_slice(), left - 1)?;
            }
            add_to(&mut table, &to, 1)?;
        }
        Ok(())
    }

    /// Adds the rows that files gained since they were last counted.
    fn count_documents(&mut self, write: &redb::WriteTransaction, documents: Vec<Document>) -> Result<(), StoreError> {
        if documents.is_empty() {
            return Ok(());
        }
        let mut table = write.open_table(DOCUMENTS)?;
        let mut counted = 0;
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
            }
            let key = filed_key(self.source, document.filed_at, document.key.0);
            table.insert(&key, serde_json::to_vec(&record)?.as_slice())?;
            self.documents.push((document.key, record));
        }
        self.committed.counted += counted;
        Ok(())
    }

    /// Moves the checkpoint, drops what need not be remembered any more, writes the counters.
    fn finish(
        mut self,
        write: &redb::WriteTransaction,
        path: &str,
        facts: super::Facts,
        next: Option<crate::window::Checkpoint>,
    ) -> Result<(Change, Committed), StoreError> {
        let mut backlog_over = Vec::new();
        if let (Some(before), Some(after)) = (&self.record.checkpoint, &next)
            && hour_of(after.origin) > hour_of(before.origin)
        {
            self.forget_keys(write, floor(after.origin, KEYS_BUCKET))?;
            self.forget_tallies(write, after.head - delta(TALLIES_KEPT))?;
            backlog_over = self.forget_backlog(write, after.origin)?;
        }
        if let Some(next) = &next {
            match &self.record.checkpoint {
                // the first window may turn out to begin earlier, where the service's clock is behind
                Some(before) if next.origin < before.origin => self.record.tallied_from = Some(next.origin),
                Some(_) => {}
                None => _ = self.record.tallied_from.get_or_insert(next.origin),
            }
        }
        let forgotten = if self.documents.is_empty() { Vec::new() } else { self.forget_documents(write)? };
        self.record.checkpoint = next;
        if facts.tainted.is_some() {
            self.record.facts.tainted = facts.tainted;
        }
        if let Some(feed) = facts.feed {
            self.record.facts.feed = Some(feed.after(self.record.facts.feed.take()));
        }
        let series = self.write_counters(write)?;
        let record = serde_json::to_vec(&self.record)?;
        write.open_table(SOURCES)?.insert(path, (self.source, record.as_slice()))?;
        let change = Change {
            record: self.record,
            series,
            documents: self.documents,
            forgotten,
            backlog: self.backlog,
            backlog_over,
            categories: self.categories,
            actions: self.actions,
        };
        Ok((change, self.committed))
    }

    fn write_counters(
        &mut self,
        write: &redb::WriteTransaction,
    ) -> Result<Vec<(SeriesKey, u64, DateTime<Utc>)>, StoreError> {
        let mut table = write.open_table(SERIES)?;
        let mut changed = Vec::with_capacity(self.series.len());
        for (key, added) in std::mem::take(&mut self.series) {
            let (value, born, released) = match self.state.series.get(&key) {
                Some(series) => (series.value + added, series.born, series.released),
                None => (added, self.now, false),
            };
            table.insert(key.to_bytes(self.source).as_slice(), (value, born.timestamp_millis(), released))?;
            changed.push((key, value, born));
        }
        Ok(changed)
    }

    fn forget_keys(&mut self, write: &redb::WriteTransaction, before: DateTime<Utc>) -> Result<(), StoreError> {
        let after = filed_key(self.source, before, [0; 16]);
        write.open_table(SEEN)?.retain_in::<&[u8; 24], _>(&first_key(self.source)..&after, |_, ()| false)?;
        let first = timeless_key(self.source, [0; 16]);
        let after = timeless_key(self.source + 1, [0; 16]);
        let mut timeless = write.open_table(TIMELESS)?;
        timeless.retain_in::<&[u8; 20], _>(&first..&after, |_, hour| hour >= hour_of(before))?;
        if let Some(marks) = self.marks.get_mut(&self.source) {
            marks.drop_before(second_of(before));
            put_timeless(marks, self.source, &timeless)?;
        }
        Ok(())
    }

    fn forget_tallies(&self, write: &redb::WriteTransaction, before: DateTime<Utc>) -> Result<(), StoreError> {
        let (first, after) = (tally_place(self.source, DateTime::UNIX_EPOCH), tally_place(self.source, before));
        write.open_table(TALLIES)?.retain_in::<&[u8], _>(first.as_slice()..after.as_slice(), |_, _| false)?;
        Ok(())
    }

    /// Events from before the origin are not counted any more, so what was is not added to. Returns of which label sets
    /// nothing is told any more.
    fn forget_backlog(
        &self,
        write: &redb::WriteTransaction,
        origin: DateTime<Utc>,
    ) -> Result<Vec<SeriesKey>, StoreError> {
        let before = floor(origin, TALLY_CELL) - delta(TALLY_CELL) * BACKLOG_CELLS.cast_signed();
        let (first, after) = (tally_place(self.source, DateTime::UNIX_EPOCH), tally_place(self.source, before));
        write.open_table(BACKLOG)?.retain_in::<&[u8], _>(first.as_slice()..after.as_slice(), |_, _| false)?;
        let is_over = |(series, peaks): &(&SeriesKey, &Peaks)| {
            peaks.are_over(self.now) && !self.backlog.iter().any(|(added, _)| added == *series)
        };
        let over: Vec<SeriesKey> =
            self.state.backlog.iter().filter(is_over).map(|(series, _)| series.clone()).collect();
        if !over.is_empty() {
            let mut table = write.open_table(BACKLOG_PEAKS)?;
            for series in &over {
                table.remove(series.to_bytes(self.source).as_slice())?;
            }
        }
        Ok(over)
    }

    fn forget_documents(&mut self, write: &redb::WriteTransaction) -> Result<Vec<EventKey>, StoreError> {
        let before = self.now - delta(DOCUMENTS_KEPT);
        // the origin of a feed, by which they are forgotten otherwise, never moves
        self.forget_keys(write, before)?;
        let first = first_key(self.source);
        let after = filed_key(self.source, before, [0; 16]);
        let mut forgotten = Vec::new();
        write.open_table(DOCUMENTS)?.retain_in::<&[u8; 24], _>(&first..&after, |key, _| {
            forgotten.push(EventKey(*key.last_chunk().expect("the key has 24 bytes")));
            false
        })?;
        Ok(forgotten)
    }
}
