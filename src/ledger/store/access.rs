//! Explains why a folder cannot be used as `storage.path`: which user lacks which right, and which command helps.
//!
//! Promises: looks only, makes nothing.

use std::fmt;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use rustix::io::Errno;

use super::STORE_FILE;

/// Why a folder cannot be used as `storage.path`.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// For nobody: something else is in its place.
    #[error("{0}")]
    Misplaced(String),
    /// Not for the user of this process.
    #[error("{0}")]
    Forbidden(String),
}

/// Whether this process could use `folder` as `storage.path`. Makes nothing.
pub fn usable(folder: &Path) -> Result<(), Unusable> {
    if let Some(why) = misplaced(folder) {
        return Err(Unusable::Misplaced(why));
    }
    forbidden(folder).map_or(Ok(()), |why| Err(Unusable::Forbidden(why)))
}

/// What the file system said, and what to do about it.
pub(super) fn explained(folder: &Path, error: &io::Error) -> String {
    let shown = folder.display();
    let more = match error.kind() {
        ErrorKind::PermissionDenied => Some(forbidden(folder).unwrap_or_else(|| {
            format!(
                "owners and modes of {shown} allow it to {Me}, so something else forbids it: an immutable file (see lsattr), \
                 SELinux or AppArmor (see dmesg), or a systemd unit with ProtectSystem and without StateDirectory or \
                 ReadWritePaths"
            )
        })),
        ErrorKind::ReadOnlyFilesystem => Some(format!(
            "make the file system of {shown} writable (mount -o remount,rw), or, in a container, mount a volume there that \
             is not read-only; under systemd with ProtectSystem, name the folder in StateDirectory or ReadWritePaths"
        )),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Some(format!("make room on the file system of {shown} (see df -h, df -i, quota); the ledger itself must stay"))
        }
        _ => misplaced(folder),
    };
    more.map_or_else(|| error.to_string(), |more| format!("{error}: {more}"))
}

/// From the root to `folder`.
fn steps(folder: &Path) -> Vec<PathBuf> {
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let mut steps: Vec<PathBuf> = folder.ancestors().map(Path::to_owned).collect();
    steps.reverse();
    steps
}

/// What is in the place of the folder, of one above it, or of the store.
fn misplaced(folder: &Path) -> Option<String> {
    for step in steps(folder) {
        let shown = step.display();
        match step.metadata() {
            Ok(found) if found.is_dir() => {}
            Ok(_) if step.ends_with(STORE_FILE) => {
                let above = step.parent().unwrap_or(&step).display().to_string();
                return Some(format!("storage.path names the folder, not the file in it: set it to {above}"));
            }
            Ok(_) => {
                return Some(format!(
                    "{shown} is a file, and storage.path must be a folder: move the file away, or set storage.path to \
                     another place"
                ));
            }
            Err(_) => {
                let target = step.read_link().ok()?;
                return Some(format!(
                    "{shown} is a symbolic link to {}, which is not there: make that folder, or remove the link",
                    target.display()
                ));
            }
        }
    }
    let store = folder.join(STORE_FILE);
    let is_folder = store.is_dir();
    is_folder.then(|| format!("{} is a folder, and must be a file: move it away", store.display()))
}

/// What owners and modes forbid to this process.
fn forbidden(folder: &Path) -> Option<String> {
    let steps = steps(folder);
    let whole = steps.last()?;
    let shown = whole.display();
    let (user, group) = ids();
    for (n, step) in steps.iter().enumerate() {
        let (next, last) = (steps.get(n + 1), n + 1 == steps.len());
        if let Err(why) = access(step, Access::EXISTS) {
            // the folder above could be entered, so this one is not there
            let above = if why == Errno::NOENT && n > 0 { &steps[n - 1] } else { return None };
            return match access(above, Access::WRITE_OK) {
                Ok(()) => None,
                Err(Errno::ROFS) => Some(read_only(above)),
                Err(_) => Some(format!(
                    "{Me} may not create {} in {}: make the folder for this user, with `install -d -o {user} -g {group} -m \
                     0700 {shown}`{}",
                    step.file_name().unwrap_or_default().to_string_lossy(),
                    Owned(above),
                    unit(whole)
                )),
            };
        }
        if access(step, Access::EXEC_OK).is_err() {
            let what = next.map_or("it".to_owned(), |next| next.display().to_string());
            return Some(format!(
                "{Me} may not enter {}, and so does not reach {what}: give this user the right to (`setfacl -m \
                 u:{user}:x {}`), or set storage.path to another place",
                Owned(step),
                step.display()
            ));
        }
        if last {
            match access(step, Access::READ_OK | Access::WRITE_OK) {
                Ok(()) => {}
                Err(Errno::ROFS) => return Some(read_only(step)),
                Err(_) => {
                    return Some(format!(
                        "{Me} may not read and write {}: `chown -R {user}:{group} {shown}`, or run the exporter as the \
                         owner{}",
                        Owned(step),
                        unit(whole)
                    ));
                }
            }
        }
    }
    let store = whole.join(STORE_FILE);
    let files = [store.with_extension("redb.new"), store.with_extension("lock"), store];
    let kept_out = files.iter().find(|file| access(*file, Access::READ_OK | Access::WRITE_OK) == Err(Errno::ACCESS))?;
    Some(format!(
        "{Me} may not read and write {}: `chown -R {user}:{group} {shown}`, or run the exporter as the owner",
        Owned(kept_out)
    ))
}

fn read_only(folder: &Path) -> String {
    format!("the file system of {} is read-only", folder.display())
}

/// Where systemd would make the folder.
fn unit(folder: &Path) -> String {
    let name = folder.strip_prefix("/var/lib").map(|name| name.display().to_string()).unwrap_or_default();
    if name.is_empty() { name } else { format!(" (under systemd: StateDirectory={name})") }
}

fn ids() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

struct Me;

impl fmt::Display for Me {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (user, group) = ids();
        write!(f, "the user of this process (uid {user}, gid {group})")
    }
}

/// A path, its owner, and its mode.
struct Owned<'a>(&'a Path);

impl fmt::Display for Owned<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.display())?;
        match self.0.metadata() {
            Ok(of) => write!(f, " (owned by uid {}, gid {}, mode {:04o})", of.uid(), of.gid(), of.mode() & 0o7777),
            Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
