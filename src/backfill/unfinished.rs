//! A backfill that is not finished: what was asked for and all that was read, in a file of the ledger's folder.
//!
//! Promises:
//! - The file has one line for each piece, written when the piece was read. A line that was cut by a crash is dropped, and
//!   its piece read again.
//! - One process at a time uses it. It is for its owner alone, and holds no event, only numbers of them by label and minute.
//!
//! Leaves to others: what is read (`backfill.rs`), and whether what is in the file is what is wanted (`control.rs`).

use std::fs::{File, TryLockError};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::{Piece, Plan};

/// A window as it was asked for: a time span before now is another window each time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// `--from`, as it was written.
    pub from: String,
    /// `--to`, as it was written.
    pub to: Option<String>,
}

/// The first line.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Beginning {
    asked: Asked,
    plan: Plan,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Damaged {
    /// The disk.
    #[error("{}: {error}{}", path.display(), advice(error))]
    Io {
        /// Which file.
        path: PathBuf,
        /// What went wrong.
        error: io::Error,
    },
    /// Another process.
    #[error("another backfill of this source is at work: {} is in use", path.display())]
    InUse {
        /// Which file.
        path: PathBuf,
    },
    /// It is not what was written.
    #[error("{}, line {line}: {why}; remove the file to begin again", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1 on.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
}

/// The file, locked.
pub struct Unfinished {
    file: File,
    path: PathBuf,
    beginning: Beginning,
    /// Where the next line goes.
    end: u64,
    /// Up to when the pieces reach.
    reached: DateTime<Utc>,
}

impl Unfinished {
    /// The one of a source, if there is one.
    pub fn find(folder: &Path, source: &str) -> Result<Option<Self>, Damaged> {
        let path = place(folder, source);
        let file = match options().open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => locked(file, &path)?,
        };
        let mut line = String::new();
        BufReader::new(&file).read_line(&mut line).map_err(|error| Damaged::Io { path: path.clone(), error })?;
        if !line.ends_with('\n') {
            return Ok(None);
        }
        let end = line.len() as u64;
        match serde_json::from_str(&line) {
            Ok(Beginning { asked, plan }) => {
                let reached = plan.window.from;
                Ok(Some(Self { file, path, beginning: Beginning { asked, plan }, end, reached }))
            }
            Err(error) => Err(Damaged::Line { path, line: 1, why: error.to_string() }),
        }
    }

    /// Begins one, in the place of any other.
    pub fn begin(folder: &Path, asked: Asked, plan: Plan) -> Result<Self, Damaged> {
        let path = place(folder, &plan.source);
        let file = locked(options().create(true).truncate(false).mode(0o600).open(&path), &path)?;
        belong_to_owner_of(folder, &file).map_err(|error| Damaged::Io { path: path.clone(), error })?;
        let reached = plan.window.from;
        let mut unfinished = Self { file, path, beginning: Beginning { asked, plan }, end: 0, reached };
        unfinished.file.set_len(0).map_err(|error| unfinished.io(error))?;
        unfinished.write(&unfinished.beginning.clone()).map_err(|error| unfinished.io(error))?;
        Ok(unfinished)
    }

    /// What was asked for.
    pub fn asked(&self) -> &Asked {
        &self.beginning.asked
    }

    /// What was planned then.
    pub fn plan(&self) -> &Plan {
        &self.beginning.plan
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Up to when the pieces reach that were read from the file or added to it.
    pub fn reached(&self) -> DateTime<Utc> {
        self.reached
    }

    /// All pieces so far.
    pub fn pieces(&mut self, mut take: impl FnMut(Piece)) -> Result<(), Damaged> {
        self.file.seek(SeekFrom::Start(self.end)).map_err(|error| self.io(error))?;
        let mut lines = BufReader::new(&self.file);
        let mut text = String::new();
        let mut number = 1;
        loop {
            text.clear();
            number += 1;
            lines.read_line(&mut text).map_err(|error| self.io(error))?;
            if !text.ends_with('\n') {
                // the end, or a line that was cut
                break;
            }
            let damaged = |why: String| Damaged::Line { path: self.path.clone(), line: number, why };
            let piece: Piece = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
            self.reached = self.follows(&piece).map_err(|why| damaged(why.into()))?;
            self.end += text.len() as u64;
            take(piece);
        }
        self.file.set_len(self.end).map_err(|error| self.io(error))
    }

    /// Keeps the next piece. The file must have been read to its end.
    pub fn add(&mut self, piece: &Piece) -> io::Result<()> {
        let reached = self.follows(piece).map_err(io::Error::other)?;
        self.write(piece)?;
        self.reached = reached;
        Ok(())
    }

    /// The end of a piece, which must begin where the one before it ends.
    fn follows(&self, piece: &Piece) -> Result<DateTime<Utc>, &'static str> {
        if piece.window.from == self.reached && !piece.window.is_empty() {
            Ok(piece.window.to)
        } else {
            Err("a piece does not follow the one before it")
        }
    }

    /// Removes the file: what was read is where it belongs.
    pub fn finish(self) -> Result<(), Damaged> {
        std::fs::remove_file(&self.path).map_err(|error| self.io(error))
    }

    fn write(&mut self, line: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(line)?;
        line.push(b'\n');
        self.file.seek(SeekFrom::Start(self.end))?;
        self.file.write_all(&line)?;
        self.end += line.len() as u64;
        Ok(())
    }

    fn io(&self, error: io::Error) -> Damaged {
        Damaged::Io { path: self.path.clone(), error }
    }
}

fn place(folder: &Path, source: &str) -> PathBuf {
    folder.join(format!("backfill-{source}.unfinished"))
}

fn locked(file: io::Result<File>, path: &Path) -> Result<File, Damaged> {
    let io = |error| Damaged::Io { path: path.to_owned(), error };
    let file = file.map_err(io)?;
    if !file.metadata().map_err(io)?.is_file() {
        return Err(io(io::Error::other("is not a regular file")));
    }
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Damaged::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(io(error)),
    }
}

/// The folder is that of the exporter's user, who may put a link there; root follows none.
fn options() -> std::fs::OpenOptions {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    options
}

/// So that a run by root is continued by the exporter's user.
fn belong_to_owner_of(folder: &Path, file: &File) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let owner = folder.metadata()?;
    fchown(file, Some(owner.uid()), Some(owner.gid()))
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; run this command as the exporter's user or as root",
        _ => "",
    }
}
