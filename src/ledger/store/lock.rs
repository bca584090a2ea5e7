//! One process for one folder, also where the file system has no locks, or locks that only look like some.
//!
//! Promises: of two processes that open the same folder, on one machine or on two, one is refused; what
//! a killed process left behind needs no human; a process that lost the folder to another (it was
//! paused for longer than [`SILENCE`]) does not write any more.
//!
//! The kernel's lock on the folder is enough where it is known to work: on a local file system, and
//! when a second handle is really refused. Elsewhere (NFS, FUSE, Lustre without `flock` and others) the owner
//! also keeps a file, `ledger.lock`, and changes it every second. Who finds that file watches it:
//! if it changes, its owner lives; if it stands still for [`SILENCE`], its owner is gone. No pid, host
//! name or clock is compared, because they mean nothing across containers and machines.
//!
//! Leaves to others: redb's own lock on its file, which stays in use.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tracing::{error, info, warn};

use super::STORE_FILE;

/// How often the owner changes its file.
const BEAT: Duration = Duration::from_secs(1);
/// An owner whose file stands still for this long is gone.
const SILENCE: Duration = Duration::from_secs(10);
/// How often a file is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(500);
/// Of several that take over at the same time, the last one wins; by then all of them have written.
const SETTLE: Duration = Duration::from_secs(2);

/// Why the folder could not be had.
#[derive(Debug)]
pub(super) enum Refused {
    /// Another process holds it: what it says of itself, if anything.
    InUse(String),
    /// The file system said something.
    Disk(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

/// The folder is ours until this is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    /// The kernel's lock lives as long as this handle.
    _folder: File,
    lease: Option<Lease>,
}

impl Lock {
    /// Waits up to [`SILENCE`] and [`SETTLE`] where a file of another process is found.
    pub(super) fn take(folder: &Path) -> Result<Self, Refused> {
        let path = folder.join(STORE_FILE).with_extension("lock");
        let handle = File::open(folder)?;
        let enough = match handle.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(Refused::InUse(holder(&path))),
            Err(TryLockError::Error(_)) => false,
            // some file systems say yes to everybody
            Ok(()) => is_local(&handle) && matches!(File::open(folder)?.try_lock(), Err(TryLockError::WouldBlock)),
        };
        let left_behind = still(&path)?;
        if enough {
            // its owner saw this file system otherwise, and is gone
            if left_behind.is_some() {
                fs::remove_file(&path)?;
            }
            return Ok(Self { _folder: handle, lease: None });
        }
        let lease = Lease::take(path, left_behind.as_deref())?;
        Ok(Self { _folder: handle, lease: Some(lease) })
    }

    /// Whether it does without the locks of the file system.
    pub(super) fn is_by_file(&self) -> bool {
        self.lease.is_some()
    }

    /// Whether the folder is still ours. To be asked before each write.
    pub(super) fn check(&self) -> io::Result<()> {
        self.lease.as_ref().map_or(Ok(()), |lease| lease.state.check())
    }
}

/// File systems whose locks bind every process that can reach them, because one kernel serves them all.
#[cfg(target_os = "linux")]
fn is_local(folder: &File) -> bool {
    // ext, xfs, btrfs, tmpfs, overlayfs, zfs, f2fs, bcachefs, ramfs, jfs, nilfs
    const LOCAL: [u64; 11] = [
        0xef53,
        0x5846_5342,
        0x9123_683e,
        0x0102_1994,
        0x794c_7630,
        0x2fc1_2fc1,
        0xf2f5_2010,
        0xca45_1a4e,
        0x8584_58f6,
        0x3153_464a,
        0x3434,
    ];
    // the type of the number differs between platforms
    rustix::fs::fstatfs(folder).is_ok_and(|of| LOCAL.iter().any(|local| i128::from(of.f_type) == i128::from(*local)))
}

#[cfg(not(target_os = "linux"))]
fn is_local(_: &File) -> bool {
    true
}

/// The file of an owner that is gone; `None` if there is none (any more).
fn still(path: &Path) -> Result<Option<String>, Refused> {
    let Some(first) = read(path)? else { return Ok(None) };
    info!(file = %path.display(), "checking whether the process that holds the store is still alive");
    for _ in 0..SILENCE.as_millis() / LOOK.as_millis() {
        thread::sleep(LOOK);
        match read(path)? {
            None => return Ok(None),
            Some(now) if now != first => return Err(Refused::InUse(holder(path))),
            Some(_) => {}
        }
    }
    Ok(Some(first))
}

fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What the owner says of itself: `pid 17 on host a`.
fn holder(path: &Path) -> String {
    let text = read(path).ok().flatten().unwrap_or_default();
    let said = text.splitn(3, ' ').nth(2).unwrap_or_default();
    said.trim().chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(100).collect()
}

/// The file that is changed every second.
#[derive(Debug)]
struct Lease {
    state: Arc<LeaseState>,
    beating: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct LeaseState {
    path: PathBuf,
    /// Drawn at random for this opening.
    id: String,
    beat: AtomicU64,
    ended: AtomicBool,
}

impl Lease {
    fn take(path: PathBuf, left_behind: Option<&str>) -> Result<Self, Refused> {
        let id = format!("{:032x}", rand::random::<u128>());
        let state = LeaseState { path, id, beat: AtomicU64::new(0), ended: AtomicBool::new(false) };
        match left_behind {
            None => state.create().map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => Refused::InUse(holder(&state.path)),
                _ => error.into(),
            })?,
            Some(left_behind) => state.take_over(left_behind)?,
        }
        let state = Arc::new(state);
        let beats = Arc::clone(&state);
        let beating = thread::Builder::new().name("ledger.lock".into()).spawn(move || beats.beat())?;
        info!(
            file = %state.path.display(),
            "the locks of this file system may not keep other machines out; the store is also held with this file"
        );
        Ok(Self { state, beating: Some(beating) })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Relaxed);
        if let Some(beating) = self.beating.take() {
            beating.thread().unpark();
            let _ = beating.join();
        }
        if self.state.check().is_ok() {
            let _ = fs::remove_file(&self.state.path);
        }
    }
}

impl LeaseState {
    /// Always of the same length, so that a new one replaces the old one whole.
    fn line(&self) -> String {
        let beat = self.beat.load(Ordering::Relaxed);
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        format!("{} {beat:020} pid {} on host {}\n", self.id, std::process::id(), host.trim())
    }

    /// Makes a file that must not be there. Everybody may read it: who is to judge it may be another user.
    fn write_new(&self, path: &Path) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
        let written = file.write_all(self.line().as_bytes()).and_then(|()| file.sync_all());
        if written.is_err() {
            let _ = fs::remove_file(path);
        }
        written
    }

    fn create(&self) -> io::Result<()> {
        self.write_new(&self.path)
    }

    fn take_over(&self, left_behind: &str) -> Result<(), Refused> {
        let fresh = self.path.with_extension(format!("lock.{}", self.id));
        self.write_new(&fresh)?;
        let done = (|| {
            if read(&self.path)?.is_some_and(|now| now != left_behind) {
                return Err(Refused::InUse(holder(&self.path)));
            }
            fs::rename(&fresh, &self.path)?;
            thread::sleep(SETTLE);
            self.check().map_err(|_| Refused::InUse(holder(&self.path)))
        })();
        let _ = fs::remove_file(&fresh);
        done
    }

    fn check(&self) -> io::Result<()> {
        match read(&self.path)? {
            Some(text) if text.starts_with(&self.id) => Ok(()),
            // somebody cleaned up; the first to create the file has the lock
            None => self.create(),
            Some(_) => Err(io::Error::other(format!(
                "the store was taken over by another process ({}), because this one stood still for more than {} \
                 seconds; nothing is written any more: end one of the two",
                holder(&self.path),
                SILENCE.as_secs()
            ))),
        }
    }

    fn beat(&self) {
        let mut failed = false;
        loop {
            thread::park_timeout(BEAT);
            if self.ended.load(Ordering::Relaxed) {
                return;
            }
            self.beat.fetch_add(1, Ordering::Relaxed);
            let written = self.check().and_then(|()| {
                OpenOptions::new().write(true).open(&self.path)?.write_all_at(self.line().as_bytes(), 0)
            });
            match &written {
                Ok(()) if failed => warn!(file = %self.path.display(), "written again"),
                Err(why) if !failed => {
                    error!(file = %self.path.display(), %why, "cannot renew the lock file of the store");
                }
                _ => {}
            }
            failed = written.is_err();
        }
    }
}

#[cfg(test)]
mod tests;
