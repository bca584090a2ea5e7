//! The tables of the ledger in one redb file, and the transaction that counts a page.
//!
//! Promises: one transaction a commit, flushed to the disk before it returns; a store of a newer
//! version, or one that another process holds, is refused; after a failure of the disk the file is
//! opened anew before anything else is written.

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use chrono::{DateTime, Utc};
use redb::{Database, DatabaseError, Entry, ReadableDatabase, ReadableTable, TableDefinition};

use super::{
    Change, Commit, CommitError, Committed, Counter, Document, DocumentRecord, Record, Series, SeriesKey, SourceLedger,
    State, Tally,
};
use crate::clock::delta;
use crate::event::{Class, EventKey, EventLabels, Item, Label, Outcome, SourceName, System, What};
use crate::window::{KEYS_BUCKET, floor};

/// The layout of the tables below. A store with a higher number was written by a newer program.
const SCHEMA: u64 = 1;

/// Name of the file inside `storage.path`.
const FILE_NAME: &str = "ledger.redb";

/// How long a file's record is kept after its hour: the services list files for 14 days, and no source may hand
/// over an older one (`READ_FOR` in `source/index_exchange.rs`).
const DOCUMENTS_KEPT: Duration = Duration::from_hours(32 * 24);

/// redb's own default is 1 GiB; a commit touches a few pages of a few small tables.
const CACHE_BYTES: usize = 4 << 20;

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
    #[error("the store {path} is in use by another process; two exporters must not share one storage.path")]
    InUse {
        /// The file.
        path: String,
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
from_redb!(redb::TransactionError, redb::TableError, redb::StorageError, redb::CommitError);

/// Opens the database, at the start and again after each failure.
pub type Opener = Box<dyn Fn() -> Result<Database, DatabaseError> + Send>;

/// The file and what is needed to open it again.
pub(super) struct Store {
    opener: Opener,
    path: String,
    /// `None` after a failure, until the next use opens it again.
    database: Option<Database>,
    /// How many times it was opened: a source loaded under an earlier number is loaded again.
    generation: u64,
    /// The sources in use, by the key of their row: one state each, whoever asks.
    books: HashMap<String, Arc<SourceLedger>>,
}

impl Store {
    pub(super) fn open_folder(folder: &Path) -> Result<Self, OpenError> {
        let file: PathBuf = folder.join(FILE_NAME);
        let path = file.display().to_string();
        std::fs::create_dir_all(folder).map_err(|error| OpenError::Storage {
            path: path.clone(),
            reason: error.to_string(),
            passing: may_pass(&error),
        })?;
        Self::open_at(path, Box::new(move || Database::builder().set_cache_size(CACHE_BYTES).create(&file)))
    }

    pub(super) fn open(opener: Opener) -> Result<Self, OpenError> {
        Self::open_at("in memory".into(), opener)
    }

    fn open_at(path: String, opener: Opener) -> Result<Self, OpenError> {
        let mut store = Self { opener, path, database: None, generation: 0, books: HashMap::new() };
        store.reopen()?;
        Ok(store)
    }

    fn reopen(&mut self) -> Result<(), OpenError> {
        let path = || self.path.clone();
        let failed = |reason: String, passing| OpenError::Storage { path: self.path.clone(), reason, passing };
        let database = (self.opener)().map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { path: path() },
            DatabaseError::Storage(redb::StorageError::Io(error)) => failed(error.to_string(), may_pass(&error)),
            other => failed(other.to_string(), false),
        })?;
        if let Some(found) = schema_of(&database).map_err(|error| failed(error.to_string(), true))? {
            if found > SCHEMA {
                return Err(OpenError::Newer { path: path(), found });
            }
        } else {
            create_tables(&database).map_err(|error| failed(error.to_string(), true))?;
        }
        self.database = Some(database);
        self.generation += 1;
        Ok(())
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
        let database = self.database.take();
        // one that has panicked may not even survive its closing
        let _ = catch_unwind(AssertUnwindSafe(|| drop(database)));
        let books: Vec<Arc<SourceLedger>> = self.books.values().map(Arc::clone).collect();
        let _ = catch_unwind(AssertUnwindSafe(|| books.iter().try_for_each(|book| self.heal(book))));
    }

    /// Runs `work`; after a failure the file is closed, so that the next use opens it anew.
    fn guarded<T>(&mut self, work: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let done = work(self.database()?);
        if done.is_err() {
            self.database = None;
        }
        done
    }

    /// The one state of a source, read from the store at its first use.
    pub(super) fn book(&mut self, name: &SourceName, system: System) -> Result<Arc<SourceLedger>, StoreError> {
        let path = format!("{system}/{name}");
        if let Some(book) = self.books.get(&path) {
            return Ok(Arc::clone(book));
        }
        let (id, state) = self.load(name, system)?;
        let book = Arc::new(SourceLedger {
            name: name.clone(),
            system,
            id,
            catalogue: Mutex::default(),
            state: RwLock::new(state),
            generation: AtomicU64::new(self.generation),
        });
        self.books.insert(path, Arc::clone(&book));
        Ok(book)
    }

    /// Makes sure that the file is open and that `source` shows what is in it: after a failure it
    /// is not known whether the last commit reached the disk.
    pub(super) fn heal(&mut self, source: &SourceLedger) -> Result<(), CommitError> {
        self.database()?;
        if source.generation.load(Ordering::Relaxed) != self.generation {
            let (_, mut state) = self.load(&source.name, source.system)?;
            state.learn_labels(&source.catalogue.lock().unwrap_or_else(PoisonError::into_inner));
            *source.state.write().unwrap_or_else(PoisonError::into_inner) = state;
            source.generation.store(self.generation, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The number and the state of a source; a source that is new gets a number.
    fn load(&mut self, name: &SourceName, system: System) -> Result<(u32, State), StoreError> {
        let path = format!("{system}/{name}");
        self.guarded(|database| {
            let read = database.begin_read()?;
            let known = read.open_table(SOURCES)?.get(path.as_str())?.map(|row| {
                let (id, record) = row.value();
                (id, serde_json::from_slice::<Record>(record))
            });
            let Some((id, record)) = known else {
                return Ok((add_source(database, &path)?, State::default()));
            };
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
            Ok((id, state))
        })
    }

    /// Writes series whose value is not touched by a commit: newly born or newly released ones.
    pub(super) fn write_series<'a>(
        &mut self,
        source: u32,
        rows: impl Iterator<Item = (&'a SeriesKey, u64, DateTime<Utc>, bool)>,
    ) -> Result<(), StoreError> {
        self.guarded(|database| {
            let write = database.begin_write()?;
            {
                let mut table = write.open_table(SERIES)?;
                for (key, value, born, released) in rows {
                    table.insert(key.to_bytes(source).as_slice(), (value, born.timestamp_millis(), released))?;
                }
            }
            write.commit()?;
            Ok(())
        })
    }

    /// The transaction: counts what is new in the page, remembers it, moves the checkpoint.
    pub(super) fn write(
        &mut self,
        source: &SourceLedger,
        state: &State,
        commit: Commit,
    ) -> Result<(Change, Committed), CommitError> {
        let path = format!("{}/{}", source.system, source.name);
        self.guarded(|database| {
            let write = database.begin_write()?;
            let outcome = {
                let mut page = Transaction::new(source.id, state, &commit);
                page.count_items(&write, commit.page.items)?;
                page.count_documents(&write, commit.page.documents)?;
                page.finish(&write, &path, commit.page.facts, commit.next)?
            };
            write.commit()?;
            Ok(outcome)
        })
        .map_err(CommitError::from)
    }
}

fn may_pass(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem)
}

/// The layout of a store; `None` where it is empty.
fn schema_of(database: &Database) -> Result<Option<u64>, StoreError> {
    match database.begin_read()?.open_table(META) {
        Ok(meta) => Ok(meta.get("schema")?.map(|schema| schema.value())),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn create_tables(database: &Database) -> Result<(), StoreError> {
    let write = database.begin_write()?;
    write.open_table(META)?.insert("schema", SCHEMA)?;
    write.open_table(SOURCES)?;
    write.open_table(SERIES)?;
    write.open_table(SEEN)?;
    write.open_table(TIMELESS)?;
    write.open_table(DOCUMENTS)?;
    write.commit()?;
    Ok(())
}

fn add_source(database: &Database, path: &str) -> Result<u32, StoreError> {
    let write = database.begin_write()?;
    let id = {
        let mut sources = write.open_table(SOURCES)?;
        let mut last = 0;
        for row in sources.iter()? {
            last = last.max(row?.1.value().0);
        }
        let record = serde_json::to_vec(&Record::default())?;
        sources.insert(path, (last + 1, record.as_slice()))?;
        last + 1
    };
    write.commit()?;
    Ok(id)
}

fn hour_of(at: DateTime<Utc>) -> u32 {
    let hours = floor(at, KEYS_BUCKET).timestamp() / 3600;
    u32::try_from(hours.max(0)).unwrap_or(u32::MAX)
}

fn filed_key(source: u32, filed_at: DateTime<Utc>, key: [u8; 16]) -> [u8; 24] {
    let second = u32::try_from(filed_at.timestamp().max(0)).unwrap_or(u32::MAX);
    let mut bytes = [0; 24];
    bytes[..4].copy_from_slice(&source.to_be_bytes());
    bytes[4..8].copy_from_slice(&second.to_be_bytes());
    bytes[8..].copy_from_slice(&key);
    bytes
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

/// One page on its way into the store: what it will change, should the transaction commit.
struct Transaction<'a> {
    source: u32,
    state: &'a State,
    now: DateTime<Utc>,
    record: Record,
    series: BTreeMap<SeriesKey, u64>,
    categories: super::LabelValues,
    actions: super::LabelValues,
    documents: Vec<(EventKey, DocumentRecord)>,
    committed: Committed,
}

impl<'a> Transaction<'a> {
    fn new(source: u32, state: &'a State, commit: &Commit) -> Self {
        let mut series = BTreeMap::new();
        if commit.lost_seconds > 0 {
            series.insert(SeriesKey::new(Counter::LostSeconds, &[]), commit.lost_seconds);
        }
        Self {
            source,
            state,
            now: commit.now,
            record: state.record.clone(),
            series,
            categories: state.categories.clone(),
            actions: state.actions.clone(),
            documents: Vec::new(),
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
        // neighbours in the tree are written together
        items.sort_unstable_by_key(|item| (item.filed_at, item.key));
        let mut seen = write.open_table(SEEN)?;
        let mut timeless = write.open_table(TIMELESS)?;
        let mut events: HashMap<EventLabels, u64> = HashMap::new();
        let mut others: BTreeMap<SeriesKey, u64> = BTreeMap::new();
        let mut count_other = |key| *others.entry(key).or_default() += 1;
        let this_hour = hour_of(self.now);
        for item in items {
            if let What::Tainted { candidates } = &item.what {
                let filed_at = item.filed_at.unwrap_or(self.now);
                let mut known = false;
                for candidate in candidates {
                    known = known || seen.get(&filed_key(self.source, filed_at, candidate.0))?.is_some();
                }
                if !known {
                    seen.insert(&filed_key(self.source, filed_at, item.key.0), ())?;
                    count_other(SeriesKey::new(Counter::Tainted, &[]));
                }
                continue;
            }
            let known = if let Some(filed_at) = item.filed_at {
                let place = filed_key(self.source, filed_at, item.key.0);
                insert_if_new(seen.entry(&place)?, ())?
            } else {
                let place = timeless_key(self.source, item.key.0);
                insert_if_new(timeless.entry(&place)?, this_hour)?
            };
            if known {
                self.committed.duplicate += 1;
                count_other(SeriesKey::new(Counter::Duplicate, &[]));
                continue;
            }
            match item.what {
                What::Event(labels) => {
                    self.committed.counted += 1;
                    *events.entry(labels).or_default() += 1;
                    if let Some(at) = item.at {
                        self.record.last_event = self.record.last_event.max(Some(at));
                        self.record.lateness.observe((self.now - at).num_milliseconds());
                        if self.state.checkpoint().is_some_and(|read| read.covers(at)) {
                            count_other(SeriesKey::new(Counter::Late, &[]));
                        }
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
        // sorted, so that which values come under the cap does not depend on a hash
        let events: BTreeMap<EventLabels, u64> = events.into_iter().collect();
        let mut tally = self.tally();
        for (labels, count) in events {
            tally.add_events(labels, count);
        }
        for (key, count) in others {
            tally.add(key, count);
        }
        self.series = tally.series;
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
                rows: before.map(|before| before.rows.clone()).unwrap_or_default(),
                rejected: before.map_or(0, |before| before.rejected),
            };
            let mut tally = self.tally();
            // rows by the value they are counted as, so that the record is as bounded as the labels
            let mut rows: BTreeMap<Label, u64> = BTreeMap::new();
            for (action, count) in document.rows {
                let capped = if tally.actions.admit(&action) { action } else { Label::other() };
                *rows.entry(capped).or_default() += count;
            }
            for (action, count) in rows {
                let known = record.rows.entry(action.as_str().to_owned()).or_default();
                let gained = count.saturating_sub(*known);
                *known += gained;
                counted += gained;
                if action == Label::other() {
                    tally.add(SeriesKey::new(Counter::LabelOverflow, &["action"]), gained);
                }
                let category = document.category.clone();
                tally
                    .add_events(EventLabels { category, action, outcome: Outcome::Unknown, class: Class::Row }, gained);
            }
            let gained = document.rejected.saturating_sub(record.rejected);
            record.rejected += gained;
            tally.add(SeriesKey::new(Counter::Rejected, &["malformed"]), gained);
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
        if let (Some(before), Some(after)) = (&self.record.checkpoint, &next)
            && hour_of(after.origin) > hour_of(before.origin)
        {
            self.forget_keys(write, floor(after.origin, KEYS_BUCKET))?;
        }
        let forgotten = if self.documents.is_empty() { Vec::new() } else { self.forget_documents(write)? };
        self.record.checkpoint = next;
        if facts.tainted.is_some() {
            self.record.facts.tainted = facts.tainted;
        }
        if facts.feed.is_some() {
            self.record.facts.feed = facts.feed;
        }
        let series = self.write_counters(write)?;
        let record = serde_json::to_vec(&self.record)?;
        write.open_table(SOURCES)?.insert(path, (self.source, record.as_slice()))?;
        let change = Change {
            record: self.record,
            series,
            documents: self.documents,
            forgotten,
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

    fn forget_keys(&self, write: &redb::WriteTransaction, before: DateTime<Utc>) -> Result<(), StoreError> {
        let after = filed_key(self.source, before, [0; 16]);
        write.open_table(SEEN)?.retain_in::<&[u8; 24], _>(&first_key(self.source)..&after, |_, ()| false)?;
        let first = timeless_key(self.source, [0; 16]);
        let after = timeless_key(self.source + 1, [0; 16]);
        write.open_table(TIMELESS)?.retain_in::<&[u8; 20], _>(&first..&after, |_, hour| hour >= hour_of(before))?;
        Ok(())
    }

    fn forget_documents(&self, write: &redb::WriteTransaction) -> Result<Vec<EventKey>, StoreError> {
        let first = first_key(self.source);
        let after = filed_key(self.source, self.now - delta(DOCUMENTS_KEPT), [0; 16]);
        let mut forgotten = Vec::new();
        write.open_table(DOCUMENTS)?.retain_in::<&[u8; 24], _>(&first..&after, |key, _| {
            forgotten.push(EventKey(*key.last_chunk().expect("the key has 24 bytes")));
            false
        })?;
        Ok(forgotten)
    }
}
