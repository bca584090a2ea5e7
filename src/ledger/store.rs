//! The interface of a ledger store, and its errors.
//!
//! Promises, of every store (`tests/promises.rs` of the ledger holds each of them to the ledger's):
//! - **Atomic.** [`Store::commit`] looks up keys, passes the answers to `count`, and writes the result: all of it or nothing,
//!   and nothing unless the source is where [`Place`] says.
//! - **Durable.** After `Ok`, the change survives a power failure. After an error it may or may not have been written, and
//!   the caller must load the source again.
//! - **Serial per source.** Callers never run two calls for one source at the same time; calls for different sources may
//!   overlap. No call leaves a transaction open.
//!
//! Leaves to others: what a page adds (`count.rs`), what is shown (`state.rs`), the order of the calls (`ledger.rs`).

mod access;
mod backup;
mod file;
mod lock;
mod marks;
#[cfg(test)]
mod memory;
mod redb;
mod tables;

use std::fs::File;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

pub use self::access::{Unusable, usable};
pub use self::backup::verify_copy;
#[cfg(test)]
pub(super) use self::memory::MemoryStore;
pub use self::redb::Opener;
pub(super) use self::redb::RedbStore;
use super::count::{Counted, Keys, Recalled, SeriesRow};
use super::series::SeriesKey;
use super::state::{State, Tallies, Who};
use crate::fault::Panicked;
use crate::window::{Checkpoint, Window};

/// The layout of the tables. A store with a higher number was written by a newer program.
/// 2: tallies. 3: the backlog.
const SCHEMA: u64 = 3;

/// Name of the file inside `storage.path`.
pub const STORE_FILE: &str = "ledger.redb";

/// A store of sources.
#[async_trait]
pub(super) trait Store: Send + Sync {
    /// Loads sources, in their order; `None` for one that is not known.
    async fn load(&self, sources: Vec<Who>) -> Result<Vec<Option<Loaded>>, StoreError>;

    /// Creates sources and series, all of them or none. Series begin at 0, born `now`. Returns the number of each source.
    async fn register(&self, wanted: Vec<Wanted>, now: DateTime<Utc>) -> Result<Vec<u32>, StoreError>;

    /// Looks up `keys` and remembers them, passes the answers to `count`, and writes the change that it returns.
    async fn commit(&self, place: Place, keys: Keys, count: Count) -> Result<Counted, StoreError>;

    /// Writes newly released series.
    async fn write_series(&self, source: u32, rows: Vec<SeriesRow>) -> Result<(), StoreError>;

    /// The tallies of the cells that begin in `window`.
    async fn tallies(&self, source: u32, window: Window) -> Result<Tallies, StoreError>;

    /// Writes a copy of all that is committed now into an empty file, and flushes it. Commits go on meanwhile.
    async fn backup(&self, file: File) -> Result<Copied, StoreError>;

    /// When the store was created, or restored from a backup, in Unix milliseconds; 0 until that is known.
    fn generation(&self) -> u64;

    /// Closes the store after a panic in its user. The next use opens and verifies it again.
    async fn distrust(&self);
}

/// Counts a page, given what is known of its keys. Pure, except that it reads the source's state. It is not called if the
/// source is not where [`Place`] says.
pub(super) type Count = Box<dyn FnOnce(&[Recalled]) -> Counted + Send>;

/// What is recorded of a source.
pub(super) struct Loaded {
    pub(super) id: u32,
    pub(super) state: State,
}

/// A source that is to exist, and series of it that are not there yet.
pub(super) struct Wanted {
    pub(super) who: Who,
    /// Its number, where it has one.
    pub(super) id: Option<u32>,
    pub(super) series: Vec<SeriesKey>,
}

/// Where a source must be for a commit to be made.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) id: u32,
    pub(super) who: Who,
    /// The checkpoint the page was read from.
    pub(super) expected: Option<Checkpoint>,
}

/// What is in a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    /// Sources that something is recorded of.
    pub sources: u64,
    /// Events counted, ever, over all sources.
    pub events: u64,
    /// The number of the commit it is a copy of.
    pub commit: u64,
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Written by a newer program.
    #[error(
        "the store {path} has layout {found}, and this program knows layouts up to {SCHEMA}: a newer audit-exporter \
         wrote it; run that version, or give another storage.path"
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
        "the store {path} is damaged, or is not a store of audit-exporter: {found}. It is not used. Restore a backup \
         (docs/backup.md), or move the file away and start again: then all counters begin at 0, and events are read \
         from initial_lookback before that start"
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

/// Why there is no copy. Nobody in the program matches on it: each of them is shown, and the copy is thrown away.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The store could not be read, or the copy not be written.
    #[error("cannot copy the ledger: {0}")]
    Unmade(String),
    /// What was written is no store.
    #[error("the copy cannot be read back: {0}")]
    Unreadable(String),
    /// What was written is another one.
    #[error("the copy holds something else than was written: {found:?} instead of {copied:?}")]
    Other {
        /// What is in the copy.
        found: Copied,
        /// What was written.
        copied: Copied,
    },
}

/// Why a verb did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// The source is not where the commit expects it to be. Nothing was written.
    #[error("the checkpoint is not the expected one")]
    Elsewhere,
    #[error("{0}")]
    Redb(Box<::redb::Error>),
    #[error("{0}")]
    Open(#[from] OpenError),
    #[error("the record of a source cannot be read: {0}")]
    Record(#[from] serde_json::Error),
    #[error("it holds tables that this version does not know: {0}")]
    UnknownTables(String),
    /// As redb does on pages that are not what they were.
    #[error("a panic in the store: {0}")]
    Panic(Panicked),
    /// What became of the transaction that it was part of.
    #[error("{0}")]
    Together(String),
}

impl From<std::io::Error> for StoreError {
    fn from(error: std::io::Error) -> Self {
        Self::Redb(Box::new(::redb::Error::Io(error)))
    }
}
