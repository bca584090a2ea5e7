//! The file of the ledger on a disk that may lie.
//!
//! Promises: a file under its name was once complete, because it is made under another one; every
//! page in use is verified each time it is opened; what is read later is what was verified or
//! written since, or an error; a commit that was acknowledged and is missing is noticed; a file
//! that is refused because of its length or its first bytes is not written to.
//!
//! Leaves to others: what is in it (`store.rs`).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use redb::backends::FileBackend;
use redb::{BackendError, Builder, Database, DatabaseError, StorageBackend};
use tracing::{debug, warn};

use super::store::StoreError;

/// redb's pages are of this size, or of several.
const BLOCK: usize = 4096;

/// Opens the file, and makes it with `make_tables` where there is none.
pub(super) fn open(
    path: &Path,
    cache_bytes: usize,
    make_tables: impl Fn(&Database) -> Result<(), StoreError>,
) -> Result<Database, StoreError> {
    let existing = || OpenOptions::new().read(true).write(true).open(path);
    let file = match existing() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create(path, make_tables)?;
            existing()?
        }
        other => other?,
    };
    // redb would take it for a new one
    if file.metadata()?.len() == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty").into());
    }
    let mut builder = Builder::new();
    builder.set_cache_size(cache_bytes).set_check_integrity_on_open(true);
    Ok(builder.create_with_backend(Watched::new(FileBackend::new(file)?))?)
}

/// Makes the file under another name and gives it its own when it is complete: whenever the
/// program is killed, an empty or half-made file is not one of ours.
fn create(path: &Path, make_tables: impl Fn(&Database) -> Result<(), StoreError>) -> Result<(), StoreError> {
    let unfinished = path.with_extension("redb.new");
    let database = match Database::create(&unfinished) {
        Err(DatabaseError::DatabaseAlreadyOpen) => return Err(DatabaseError::DatabaseAlreadyOpen.into()),
        Err(_) if unfinished.is_file() => {
            // left behind by a program that was killed here, or by a full disk
            fs::remove_file(&unfinished)?;
            Database::create(&unfinished)?
        }
        other => other?,
    };
    make_tables(&database)?;
    database.close()?;
    Mark::beside(path).remove()?;
    fs::rename(&unfinished, path)?;
    // without this a loss of power could take the file away, with all that is counted until then
    if let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Runs what may panic on a damaged file; `Err` says what the panic said.
pub(super) fn contained<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_owned()
    })
}

/// Knows a fingerprint of every block that was read or written since the file was opened, and
/// refuses to hand out a block that has become another. redb verifies what it reads while it
/// opens the file, and trusts the disk from then on; worse, it gives a damaged page that it copies
/// a good checksum.
#[derive(Debug)]
struct Watched<B> {
    disk: B,
    /// By block; 0 where nothing is known.
    fingerprints: Mutex<Vec<u64>>,
}

impl<B> Watched<B> {
    fn new(disk: B) -> Self {
        Self { disk, fingerprints: Mutex::default() }
    }

    fn with_fingerprints<T>(&self, work: impl FnOnce(&mut Vec<u64>) -> T) -> T {
        work(&mut self.fingerprints.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn block_of(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX) / BLOCK
}

/// The blocks that lie wholly in `data`: redb reads and writes whole ones, but for its header.
fn whole_blocks(offset: u64, data: &[u8]) -> impl Iterator<Item = (usize, u64)> {
    let aligned = offset.is_multiple_of(BLOCK as u64);
    let blocks = data.chunks_exact(BLOCK).filter(move |_| aligned).enumerate();
    blocks.map(move |(n, block)| (block_of(offset) + n, fingerprint(block)))
}

fn fingerprint(block: &[u8]) -> u64 {
    let hash = blake3::hash(block);
    let (first, _) = hash.as_bytes().split_first_chunk().expect("a hash has 32 bytes");
    u64::from_le_bytes(*first).max(1)
}

fn at(fingerprints: &mut Vec<u64>, block: usize) -> &mut u64 {
    if fingerprints.len() <= block {
        fingerprints.resize(block + 1, 0);
    }
    &mut fingerprints[block]
}

impl<B: StorageBackend> StorageBackend for Watched<B> {
    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset, out)?;
        self.with_fingerprints(|fingerprints| {
            for (block, found) in whole_blocks(offset, out) {
                let known = at(fingerprints, block);
                if *known == 0 {
                    *known = found;
                } else if *known != found {
                    let place = block * BLOCK;
                    let what = format!("the {BLOCK} bytes at {place} are not those that were written there");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                }
            }
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with_fingerprints(|fingerprints| fingerprints.truncate(block_of(len)));
        self.disk.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with_fingerprints(|fingerprints| {
            for block in block_of(offset)..=block_of(offset + (data.len() as u64).saturating_sub(1)) {
                *at(fingerprints, block) = 0;
            }
        });
        self.disk.write(offset, data)?;
        self.with_fingerprints(|fingerprints| {
            for (block, written) in whole_blocks(offset, data) {
                *at(fingerprints, block) = written;
            }
        });
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.disk.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.disk.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.disk.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.disk.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.disk.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.disk.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.disk.query_lock_range(start, end)
    }
}

/// The number of the last commit that was acknowledged, in a small file beside the store.
///
/// Where the newest commit does not verify, redb takes the one before it without a word: after a
/// loss of power that is right, the newest was never acknowledged. A bit that flipped in the newest
/// commit looks the same, but then counters would go back. This file is written after a commit is
/// durable and never flushed: it may lag after a loss of power, but it never runs ahead.
pub(super) struct Mark(PathBuf);

impl Mark {
    pub(super) fn beside(store: &Path) -> Self {
        Self(store.with_extension("mark"))
    }

    /// What is wrong with a store whose last commit has the number `commits`.
    pub(super) fn missing(&self, commits: u64) -> Option<String> {
        let mark = self.read().filter(|mark| *mark > commits)?;
        Some(format!(
            "its newest commit is number {commits}, and number {mark} has been made: what came after is damaged or was \
             taken away (if an older copy was put there on purpose, remove {} to accept it)",
            self.0.display()
        ))
    }

    fn read(&self) -> Option<u64> {
        let line = match fs::read_to_string(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            line => line.unwrap_or_default(),
        };
        let number = line.split_once(' ').and_then(|(number, _)| number.parse().ok());
        let number = number.filter(|number| mark_line(*number) == line);
        if number.is_none() {
            warn!(file = %self.0.display(), "cannot be read; whether the store is missing commits is not known");
        }
        number
    }

    /// Where this fails, the next commit sets it again.
    pub(super) fn set(&self, commits: u64) {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&self.0);
        if let Err(error) = file.and_then(|file| file.write_all_at(mark_line(commits).as_bytes(), 0)) {
            debug!(file = %self.0.display(), %error, "not written");
        }
    }

    fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Always of the same length, so that a new one replaces the old one whole.
fn mark_line(commits: u64) -> String {
    let number = format!("{commits:020}");
    let check = fingerprint(number.as_bytes());
    format!("{number} {check:016x}\n")
}

#[cfg(test)]
mod tests;
