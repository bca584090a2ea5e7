//! The store in one redb file.
//!
//! Promises: one transaction for the commits that wait together, flushed to the disk before they return; a store of a newer
//! version, one that another process holds, or one that is damaged is refused; after a failure of
//! the disk, or a panic on what it holds, the file is opened and verified anew before anything else
//! is written.
//!
//! Leaves to others: what is in the tables (`tables.rs`), the file itself (`file.rs`).

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use redb::{Database, DatabaseError, ReadableDatabase, WriteTransaction};
use tokio::sync::oneshot;
use tracing::info;

use super::file::{self, Mark, Unaccepted};
use super::lock::{Lock, Refused};
use super::marks::Marks;
use super::tables::{self, add_backlog, add_tallies, count_commit, create_tables, meta_of, next_generation};
use super::{Copied, Count, Loaded, OpenError, Place, SCHEMA, STORE_FILE, Store, StoreError, Wanted, access, backup};
use crate::fault::catch_panic;
use crate::ledger::count::{Counted, Keys, SeriesRow};
use crate::ledger::state::{Tallies, Who};
use crate::threads::run_blocking;
use crate::window::Window;

/// redb's own default is 1 GiB; a commit touches a few pages of a few small tables.
const CACHE_BYTES: usize = 4 << 20;

/// Opens the database, at the start and again after each failure.
pub type Opener = Box<dyn Fn() -> Result<Database, DatabaseError> + Send>;

/// The same for a file, which is not written to before it is accepted.
type AnyOpener = Box<dyn Fn() -> Result<(Database, Option<Unaccepted>), StoreError> + Send>;

/// The store of one process: one writer, and the commits that wait for it.
pub(in crate::ledger) struct RedbStore {
    writer: Arc<Mutex<Writer>>,
    queue: Arc<Mutex<Queue>>,
    generation: Arc<AtomicU64>,
}

/// Commits that wait for the writer, in the order in which they came.
#[derive(Default)]
struct Queue {
    waiting: Vec<Waiting>,
    /// Somebody is on the way to the writer, and will take with it what waits then.
    is_called_for: bool,
}

/// A commit, and where its outcome goes.
struct Waiting {
    place: Place,
    keys: Keys,
    count: Count,
    outcome: oneshot::Sender<Result<Counted, StoreError>>,
}

/// The file and what is needed to open it again.
struct Writer {
    opener: AnyOpener,
    path: String,
    /// `None` on a disk of the caller's.
    mark: Option<Mark>,
    /// `None` after a failure, until the next use opens it again.
    database: Option<Database>,
    /// It was open before: what is found now is not the beginning.
    was_open: bool,
    /// By the number of the source; read from the tables when it is first needed after an opening.
    marks: HashMap<u32, Marks>,
    /// See [`Store::generation`].
    generation: Arc<AtomicU64>,
    /// It was begun, or put in the place of a newer one, and that has still to be written down.
    begins_anew: bool,
}

impl RedbStore {
    /// Opens the store in a folder, which is created if it is missing.
    pub(in crate::ledger) fn open_folder(folder: &Path) -> Result<Self, OpenError> {
        Self::open_folder_with(folder, CACHE_BYTES)
    }

    pub(in crate::ledger) fn open_folder_with(folder: &Path, cache_bytes: usize) -> Result<Self, OpenError> {
        Writer::open_folder(folder, cache_bytes).map(Self::of)
    }

    /// Opens a store on a disk of the caller's, which is asked for anew after each failure.
    pub(in crate::ledger) fn open(opener: Opener) -> Result<Self, OpenError> {
        Writer::open(opener).map(Self::of)
    }

    fn of(writer: Writer) -> Self {
        let generation = Arc::clone(&writer.generation);
        Self { writer: Arc::new(Mutex::new(writer)), queue: Arc::default(), generation }
    }

    /// Keeps every other user waiting, for a test.
    #[cfg(test)]
    pub(in crate::ledger) fn hold(&self) -> impl Drop {
        self.writer.lock().unwrap()
    }

    /// How many commits wait, for a test.
    #[cfg(test)]
    pub(in crate::ledger) fn waiting(&self) -> usize {
        self.queue.lock().unwrap().waiting.len()
    }

    /// Runs `work` with the writer on a thread that may block.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Writer) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let writer = Arc::clone(&self.writer);
        run_blocking(move || {
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            catch_panic(|| work(&mut writer)).unwrap_or_else(|panic| {
                writer.close();
                Err(StoreError::Panic(panic))
            })
        })
        .await
    }

    /// Makes the commits that wait when the writer is free, all in one transaction.
    async fn commit_waiting(&self) -> Result<(), StoreError> {
        let queue = Arc::clone(&self.queue);
        self.with(move |writer| {
            let waiting = {
                let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                queue.is_called_for = false;
                std::mem::take(&mut queue.waiting)
            };
            writer.commit_together(waiting);
            Ok(())
        })
        .await
    }
}

#[async_trait]
impl Store for RedbStore {
    async fn load(&self, sources: Vec<Who>) -> Result<Vec<Option<Loaded>>, StoreError> {
        self.with(move |writer| writer.guarded(|database| tables::load(database, &sources))).await
    }

    async fn register(&self, wanted: Vec<Wanted>, now: DateTime<Utc>) -> Result<Vec<u32>, StoreError> {
        self.with(move |writer| writer.register(&wanted, now)).await
    }

    /// Commits that wait while another transaction is being flushed share the next one and its flush.
    async fn commit(&self, place: Place, keys: Keys, count: Count) -> Result<Counted, StoreError> {
        let (outcome, told) = oneshot::channel();
        let is_first = {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.waiting.push(Waiting { place, keys, count, outcome });
            !std::mem::replace(&mut queue.is_called_for, true)
        };
        if is_first {
            self.commit_waiting().await?;
        }
        // a panic on the way to it
        told.await.unwrap_or_else(|_| Err(StoreError::Panic("the commit was not made".into())))
    }

    async fn write_series(&self, source: u32, rows: Vec<SeriesRow>) -> Result<(), StoreError> {
        self.with(move |writer| writer.writing(|write| tables::write_series(write, source, &rows))).await
    }

    async fn tallies(&self, source: u32, window: Window) -> Result<Tallies, StoreError> {
        self.with(move |writer| writer.guarded(|database| tables::tallies(database, source, window))).await
    }

    async fn backup(&self, file: File) -> Result<Copied, StoreError> {
        let snapshot = self.with(|writer| writer.guarded(|database| Ok(database.begin_read()?))).await?;
        let copy = move || catch_panic(|| backup::write(&snapshot, file));
        run_blocking(copy).await.unwrap_or_else(|panic| Err(StoreError::Panic(panic)))
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    async fn distrust(&self) {
        let closed = self.with(|writer| {
            writer.close();
            Ok(())
        });
        // it is closed also where that panics
        let _ = closed.await;
    }
}

impl Writer {
    fn open_folder(folder: &Path, cache_bytes: usize) -> Result<Self, OpenError> {
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

    fn open(opener: Opener) -> Result<Self, OpenError> {
        Self::open_at("in memory".into(), None, Box::new(move || Ok((opener()?, None))))
    }

    fn open_at(path: String, mark: Option<Mark>, opener: AnyOpener) -> Result<Self, OpenError> {
        let mut store = Self {
            opener,
            path,
            mark,
            database: None,
            was_open: false,
            marks: HashMap::new(),
            generation: Arc::default(),
            begins_anew: false,
        };
        store.reopen()?;
        Ok(store)
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
        if !self.was_open {
            // who puts an older store in the place of a newer one has to remove the mark
            let went_back = commits > 0 && self.mark.as_ref().is_some_and(Mark::is_absent);
            self.begins_anew = generation.is_none() || is_copy || went_back;
            if is_copy || went_back {
                info!(store = self.path, "the ledger was restored from a backup: it may be older than the last count");
            }
        }
        if !self.begins_anew {
            self.generation.store(generation.unwrap_or(0), Ordering::Relaxed);
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
        self.was_open = true;
        Ok(())
    }

    fn cannot_open(&self, error: StoreError) -> OpenError {
        use std::io::ErrorKind;
        let path = self.path.clone();
        let reason = error.to_string();
        let error = match error {
            StoreError::Open(error) => return error,
            StoreError::Record(_)
            | StoreError::UnknownTables(_)
            | StoreError::Panic(_)
            | StoreError::Elsewhere
            | StoreError::Together(_) => {
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
    fn writing<T>(&mut self, work: impl FnOnce(&WriteTransaction) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.writing_if(|write| Ok((work(write)?, true)))
    }

    /// The same where `work` may find that there is nothing to write.
    fn writing_if<T>(
        &mut self,
        work: impl FnOnce(&WriteTransaction) -> Result<(T, bool), StoreError>,
    ) -> Result<T, StoreError> {
        let (done, commits) = self.guarded(|database| {
            let write = database.begin_write()?;
            let (done, is_any) = work(&write)?;
            if !is_any {
                write.abort()?;
                return Ok((done, None));
            }
            let commits = count_commit(&write)?;
            write.commit()?;
            Ok((done, Some(commits)))
        })?;
        if let (Some(mark), Some(commits)) = (&self.mark, commits) {
            mark.set(commits);
        }
        Ok(done)
    }

    /// See [`Store::register`]. Nothing is written where nothing is new.
    fn register(&mut self, wanted: &[Wanted], now: DateTime<Utc>) -> Result<Vec<u32>, StoreError> {
        let begins_anew = self.begins_anew;
        let is_new = |wanted: &Wanted| wanted.id.is_none() || !wanted.series.is_empty();
        if !begins_anew && !wanted.iter().any(is_new) {
            return Ok(wanted.iter().filter_map(|wanted| wanted.id).collect());
        }
        let (ids, generation) = self.writing(|write| {
            let ids = tables::register(write, wanted, now)?;
            Ok((ids, begins_anew.then(|| next_generation(write, now)).transpose()?))
        })?;
        if let Some(generation) = generation {
            self.begins_anew = false;
            self.generation.store(generation, Ordering::Relaxed);
        }
        Ok(ids)
    }

    /// Makes commits of different sources in one transaction, and tells each its outcome. Where it fails, it fails for
    /// all.
    fn commit_together(&mut self, waiting: Vec<Waiting>) {
        let mut outcomes = Vec::with_capacity(waiting.len());
        let mut commits = Vec::with_capacity(waiting.len());
        for Waiting { place, keys, count, outcome } in waiting {
            outcomes.push(outcome);
            commits.push((place, keys, count));
        }
        let mut marks = std::mem::take(&mut self.marks);
        let written = self.writing_if(|write| {
            let mut written = Vec::with_capacity(commits.len());
            for (place, keys, count) in commits {
                let path = place.who.path();
                if tables::checkpoint_of(write, &path)? != place.expected {
                    written.push(None);
                    continue;
                }
                let recalled = tables::recall(write, place.id, &keys, &mut marks)?;
                let mut counted = count(&recalled);
                tables::write_change(write, place.id, &path, &mut counted.change, &mut marks)?;
                written.push(Some(counted));
            }
            let is_any = written.iter().any(Option::is_some);
            Ok((written, is_any))
        });
        match written {
            Ok(written) => {
                self.marks = marks;
                for (outcome, counted) in outcomes.into_iter().zip(written) {
                    // nobody may listen any more
                    let _ = outcome.send(counted.ok_or(StoreError::Elsewhere));
                }
            }
            Err(error) => {
                for outcome in outcomes {
                    let _ = outcome.send(Err(StoreError::Together(error.to_string())));
                }
            }
        }
    }
}

fn may_pass(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem)
}
