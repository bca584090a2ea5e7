//! The file of the ledger, on a disk that may not keep its promises.
//!
//! Promises: a file under its name was once complete, because it is made under another one; every
//! page in use is verified each time it is opened; what is read later is what was verified or
//! written since, or an error; a commit that was acknowledged and is missing is noticed; a file
//! that is refused is left as it is, to the byte.
//!
//! Leaves to others: what is in it (`tables.rs`).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use redb::backends::FileBackend;
use redb::{BackendError, Builder, Database, StorageBackend};
use tracing::{debug, warn};

use super::StoreError;
use super::lock::Lock;

/// redb's pages are of this size, or of several.
const BLOCK: usize = 4096;

/// Opens the file, and makes it with `make_tables` where there is none. Nothing is written to a
/// file that was there until it is accepted.
pub(super) fn open(
    path: &Path,
    lock: &Arc<Lock>,
    cache_bytes: usize,
    make_tables: impl Fn(&Database) -> Result<(), StoreError>,
) -> Result<(Database, Unaccepted), StoreError> {
    lock.check()?;
    let existing = || OpenOptions::new().read(true).write(true).open(path);
    let file = match existing() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create(path, lock, make_tables)?;
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
    let disk = Watched::new(FileBackend::new(file)?, Some(Arc::clone(lock)));
    Ok((builder.create_with_backend(disk.clone())?, Unaccepted(disk)))
}

/// A file whose content has still to be judged: redb repairs as it opens, which means to overwrite
/// what it found.
pub(super) struct Unaccepted(Watched<FileBackend>);

impl Unaccepted {
    /// Carries out what redb has written so far. Where this fails, the database must not be used.
    pub(super) fn accept(self) -> io::Result<()> {
        self.0.release()
    }
}

/// Makes the file under another name and gives it its own when it is complete: whenever the
/// program is killed, an empty or half-made file is not one of ours.
fn create(
    path: &Path,
    lock: &Arc<Lock>,
    make_tables: impl Fn(&Database) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let unfinished = path.with_extension("redb.new");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        // or left behind by a program that was killed here, or by a full disk
        _ => {}
    }
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&unfinished)?;
    let disk = Watched::new(FileBackend::new(file)?, Some(Arc::clone(lock)));
    disk.release()?;
    let database = Builder::new().create_with_backend(disk)?;
    make_tables(&database)?;
    database.close()?;
    let mark = Mark::beside(path);
    mark.remove()?;
    // one that is absent later was removed
    mark.set(0);
    fs::rename(&unfinished, path)?;
    // without this a loss of power could take the file away, with all that is counted until then
    if let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Knows a fingerprint of every block that was read or written since the file was opened, and
/// refuses to hand out a block that has become another. redb verifies what it reads while it
/// opens the file, and trusts the disk from then on; worse, it gives a damaged page that it copies
/// a good checksum.
#[derive(Debug)]
struct Watched<B> {
    disk: Arc<B>,
    /// Asked before each write: the folder may have gone to another process.
    lock: Option<Arc<Lock>>,
    state: Arc<Mutex<Watch>>,
}

#[derive(Debug)]
struct Watch {
    /// By block; 0 where nothing is known.
    fingerprints: Vec<u64>,
    /// What is not to reach the disk yet, in order; `None` once the file is accepted.
    held: Option<Vec<Held>>,
}

#[derive(Debug)]
enum Held {
    Write(u64, Vec<u8>),
    Length(u64),
    Sync,
}

impl<B> Clone for Watched<B> {
    fn clone(&self) -> Self {
        Self { disk: Arc::clone(&self.disk), lock: self.lock.clone(), state: Arc::clone(&self.state) }
    }
}

impl<B: StorageBackend> Watched<B> {
    fn new(disk: B, lock: Option<Arc<Lock>>) -> Self {
        let watch = Watch { fingerprints: Vec::new(), held: Some(Vec::new()) };
        Self { disk: Arc::new(disk), lock, state: Arc::new(Mutex::new(watch)) }
    }

    /// The disk, where it may still be written to.
    fn ours(&self) -> io::Result<&B> {
        self.lock.as_ref().map_or(Ok(()), |lock| lock.check())?;
        Ok(&self.disk)
    }

    fn with<T>(&self, work: impl FnOnce(&mut Watch) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Does what was held, in its order, flushes included. After a failure all that follows is held
    /// and forgotten: it would build on what is not there.
    fn release(&self) -> io::Result<()> {
        self.with(|watch| {
            for held in watch.held.iter_mut().flat_map(std::mem::take) {
                match held {
                    Held::Write(offset, data) => self.ours()?.write(offset, &data)?,
                    Held::Length(len) => self.ours()?.set_len(len)?,
                    Held::Sync => self.ours()?.sync_data()?,
                }
            }
            watch.held = None;
            Ok(())
        })
    }

    fn length(&self, held: &[Held]) -> io::Result<u64> {
        let lengths = held.iter().rev().filter_map(|held| if let Held::Length(len) = held { Some(*len) } else { None });
        lengths.map(Ok).next().unwrap_or_else(|| self.disk.len())
    }

    /// What would be on the disk, had nothing been held.
    fn view(&self, held: &[Held], offset: u64, out: &mut [u8]) -> io::Result<()> {
        let wanted = out.len();
        // how much of what is wanted lies before a place in the file
        let before = |at: u64| usize::try_from(at.saturating_sub(offset)).unwrap_or(usize::MAX).min(wanted);
        if before(self.length(held)?) < wanted {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let on_disk = before(self.disk.len()?);
        self.disk.read(offset, &mut out[..on_disk])?;
        out[on_disk..].fill(0);
        for held in held {
            match held {
                Held::Write(at, data) => {
                    let skipped = usize::try_from(offset.saturating_sub(*at)).unwrap_or(usize::MAX).min(data.len());
                    let (from, data) = (before(*at), &data[skipped..]);
                    let fits = data.len().min(wanted - from);
                    out[from..from + fits].copy_from_slice(&data[..fits]);
                }
                Held::Length(len) => out[before(*len)..].fill(0),
                Held::Sync => {}
            }
        }
        Ok(())
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

fn fingerprint_mut(fingerprints: &mut Vec<u64>, block: usize) -> &mut u64 {
    if fingerprints.len() <= block {
        fingerprints.resize(block + 1, 0);
    }
    &mut fingerprints[block]
}

impl<B: StorageBackend> StorageBackend for Watched<B> {
    fn len(&self) -> io::Result<u64> {
        self.with(|watch| self.length(watch.held.as_deref().unwrap_or_default()))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(|watch| {
            match watch.held.as_deref() {
                Some(held) if !held.is_empty() => self.view(held, offset, out)?,
                _ => self.disk.read(offset, out)?,
            }
            for (block, found) in whole_blocks(offset, out) {
                let known = fingerprint_mut(&mut watch.fingerprints, block);
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
        self.with(|watch| {
            watch.fingerprints.truncate(block_of(len));
            match &mut watch.held {
                Some(held) => held.push(Held::Length(len)),
                None => self.ours()?.set_len(len)?,
            }
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|watch| match &mut watch.held {
            Some(held) => {
                held.push(Held::Sync);
                Ok(())
            }
            None => self.ours()?.sync_data(),
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(|watch| {
            for block in block_of(offset)..=block_of(offset + (data.len() as u64).saturating_sub(1)) {
                *fingerprint_mut(&mut watch.fingerprints, block) = 0;
            }
            match &mut watch.held {
                Some(held) => held.push(Held::Write(offset, data.to_vec())),
                None => self.ours()?.write(offset, data)?,
            }
            for (block, written) in whole_blocks(offset, data) {
                *fingerprint_mut(&mut watch.fingerprints, block) = written;
            }
            Ok(())
        })
    }

    fn close(&self) -> io::Result<()> {
        self.disk.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        match self.disk.try_lock_range(start, end) {
            // redb goes on without a lock then; whatever else is said by NFS without lockd ends it
            Err(_) if self.lock.as_ref().is_some_and(|lock| lock.is_by_file()) => Err(BackendError::Unsupported),
            locked => locked,
        }
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

    /// Whether it was taken away: a store has one from the moment it has its name.
    pub(super) fn is_absent(&self) -> bool {
        self.0.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    fn read(&self) -> Option<u64> {
        let line = match fs::read_to_string(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            line => line.unwrap_or_default(),
        };
        let number = line.split_once(' ').and_then(|(number, _)| number.parse().ok());
        let number = number.filter(|number| mark_line(*number) == line);
        if number.is_none() {
            warn!(file = %self.0.display(), "cannot be read; it is not known whether the store is missing commits");
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
