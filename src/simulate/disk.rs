//! A disk that can be full and can lose power.
//!
//! Promises: what was flushed is still there after a loss of power; of what was not, each sector of
//! 512 bytes is there or is not, by chance; a changed length is taken to be durable, as after
//! ftruncate on a journalling file system. A holder of an earlier plug can no longer write.
//!
//! Leaves to others: what is written, and when the power goes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fmt, io};

use rand::{Rng, RngExt};
use redb::{Database, StorageBackend};

use crate::ledger::Opener;

/// Power is lost in pieces of so many bytes.
const SECTOR_BYTES: usize = 512;

/// The disk; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<Inner>>);

/// What is told that the power is gone.
struct WhenOff(Box<dyn FnOnce() + Send>);

impl fmt::Debug for WhenOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WhenOff")
    }
}

#[derive(Debug, Default)]
struct Inner {
    flushed: Vec<u8>,
    now: Vec<u8>,
    unflushed: Vec<(usize, Vec<u8>)>,
    room_left: Option<u64>,
    /// The last of them goes through, and is the last that does.
    operations_left: Option<u64>,
    when_off: Option<WhenOff>,
    /// Only the newest plug has power.
    plug: u64,
}

/// One use of the disk, from being switched on to the loss of power.
#[derive(Clone, Debug)]
struct Plugged {
    disk: Disk,
    plug: u64,
}

impl Disk {
    /// What opens a store on this disk, again and again until power is lost.
    pub fn opener(&self) -> Opener {
        let plugged = Plugged { disk: self.clone(), plug: self.lock().plug };
        Box::new(move || Database::builder().set_cache_size(1 << 16).create_with_backend(plugged.clone()))
    }

    /// There is room for so many writes, flushes and changes of length; those after them fail.
    pub fn fill_after(&self, operations: u64) {
        self.lock().room_left = Some(operations);
    }

    /// There is room again.
    pub fn make_room(&self) {
        self.lock().room_left = None;
    }

    /// Power goes with the `operations`-th write, flush or change of length from now, which is still
    /// done; `when_off` is told.
    pub fn fail_after(&self, operations: u64, when_off: impl FnOnce() + Send + 'static) {
        let mut inner = self.lock();
        inner.operations_left = Some(operations);
        inner.when_off = Some(WhenOff(Box::new(when_off)));
    }

    /// Power is lost, and is there again for the next [`Disk::opener`].
    pub fn lose_power(&self, random: &mut impl Rng) {
        let mut inner = self.lock();
        let mut image = std::mem::take(&mut inner.flushed);
        for (offset, data) in std::mem::take(&mut inner.unflushed) {
            for (n, sector) in data.chunks(SECTOR_BYTES).enumerate() {
                let from = offset + n * SECTOR_BYTES;
                if random.random_bool(0.5) && from + sector.len() <= image.len() {
                    image[from..from + sector.len()].copy_from_slice(sector);
                }
            }
        }
        inner.now.clone_from(&image);
        inner.flushed = image;
        inner.operations_left = None;
        inner.when_off = None;
        inner.plug += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Plugged {
    fn powered(&self) -> io::Result<MutexGuard<'_, Inner>> {
        let inner = self.disk.lock();
        if inner.plug != self.plug || inner.operations_left == Some(0) {
            return Err(io::Error::other("no power"));
        }
        Ok(inner)
    }

    fn change(&self, work: impl FnOnce(&mut Inner)) -> io::Result<()> {
        let mut inner = self.powered()?;
        if let Some(room) = &mut inner.room_left {
            *room = room.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
        }
        work(&mut inner);
        if let Some(left) = &mut inner.operations_left {
            *left -= 1;
            if *left == 0
                && let Some(WhenOff(tell)) = inner.when_off.take()
            {
                tell();
            }
        }
        Ok(())
    }
}

fn place(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(io::Error::other)
}

impl StorageBackend for Plugged {
    fn len(&self) -> io::Result<u64> {
        Ok(self.powered()?.now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let from = place(offset)?;
        let inner = self.powered()?;
        let found = inner.now.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = place(len)?;
        self.change(|inner| {
            inner.now.resize(len, 0);
            inner.flushed.resize(len, 0);
            inner.unflushed.retain(|(from, data)| from + data.len() <= len);
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change(|inner| {
            for (from, data) in inner.unflushed.drain(..) {
                inner.flushed[from..from + data.len()].copy_from_slice(&data);
            }
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let from = place(offset)?;
        self.change(|inner| {
            inner.now[from..from + data.len()].copy_from_slice(data);
            inner.unflushed.push((from, data.to_vec()));
        })
    }
}
