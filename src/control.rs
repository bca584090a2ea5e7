//! Where `verify`, `doctor`, `backup` and `backfill` run: inside the running exporter, where there is one, because it
//! holds the ledger and the budgets; else in a process of their own.
//!
//! Promises:
//! - The socket is in the folder of the ledger, for its owner alone, and only while the exporter
//!   lives there: the holder of the ledger may remove one that was left behind.
//! - No two look at one source at once, and no more than [`LOOKS_MAX`] at all; no two copy at once; a client that goes
//!   away ends what it asked for.
//! - Where no exporter runs, `verify` and `backfill` hold the ledger as an exporter would, so that no exporter
//!   spends the same budget meanwhile. No ledger is made where there is none.
//!
//! - A backup is written through a file that the client has opened, so that it is the client's right to write there
//!   that counts, and its view of the file systems. It has its name only when it is whole and verified.
//!
//! Leaves to others: what is looked at (`verify.rs`, `doctor.rs`, `backfill.rs`), what is copied
//! (`ledger/store/backup.rs`).

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::api::{Api, ApiParts, Gate};
use crate::backfill::{self, BackfillError, Piece, Plan};
use crate::clock::{Clock, rfc3339_seconds};
use crate::config::{Config, SourceConfig};
use crate::connect::{limits, over_the_network};
use crate::doctor::{self, DoctorInput, Findings};
use crate::exporter::{Exporter, Polled};
use crate::ledger::{BackupError, Copied, Ledger, OpenError, STORE_FILE, verify_copy};
use crate::threads::run_blocking;
use crate::verify::{self, Report, Say, VerifyError, VerifyInput};
use crate::window::Window;

use self::talk::{ask_running, unexpected, unknown};

mod backfilled;
mod talk;

pub use backfilled::{Backfilled, Wanted, backfill};

/// Name of the socket inside `storage.path`.
const SOCKET: &str = "control.sock";
/// What fits into an address of a socket, its end included, is 108 bytes.
const ADDRESS_BYTES_MAX: usize = 107;
/// The longest line of a question.
const ASK_BYTES_MAX: u64 = 16 << 10;
/// How long a question may take to be asked.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to read an answer. The work waits meanwhile, and may hold the session of its source.
const TAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// Clients that may wait to be taken.
const BACKLOG: i32 = 64;
/// Sources that are looked at at once.
const LOOKS_MAX: usize = 64;

/// What a client asks, as one line of JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Compare a window of a source with the service.
    Verify {
        /// Which source.
        source: String,
        /// From when on.
        from: DateTime<Utc>,
        /// Up to when; as far as it is counted where absent.
        to: Option<DateTime<Utc>>,
    },
    /// Look at a source.
    Doctor {
        /// Which.
        source: String,
    },
    /// Copy the ledger into a file that is handed over when the answer asks for it.
    Backup,
    /// Say which history of a source can be read, and as what it counts.
    PlanBackfill {
        /// Which source.
        source: String,
        /// From when on.
        from: DateTime<Utc>,
        /// Up to when; up to where counting began where absent.
        to: Option<DateTime<Utc>>,
    },
    /// Read it.
    Backfill {
        /// Which source.
        source: String,
        /// The window of the plan.
        window: Window,
        /// From when on: what lies before it has been read.
        after: DateTime<Utc>,
        /// The settings of the plan.
        settings: String,
    },
}

/// What is answered: any number of lines `told` and `read`, then one of the others.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// What happens meanwhile.
    Told(String),
    /// What `verify` found.
    Verified(Box<Report>),
    /// What `doctor` found.
    Examined {
        /// All of it.
        findings: Findings,
        /// When the settings in force were read.
        loaded_at: DateTime<Utc>,
    },
    /// The file for the backup may be sent.
    HandOver,
    /// It is written and flushed.
    BackedUp(Copied),
    /// What can be read of a history.
    Planned(Box<Plan>),
    /// A piece of it.
    Read(Box<Piece>),
    /// It was read to its end.
    Backfilled,
    /// The question asks for what may not be.
    Refused(String),
    /// The exporter has no source of that name.
    Unknown,
    /// It could not be done.
    Failed(String),
}

/// Why there is no report, no finding or no copy. The command line matches on it: the exit status differs, and `doctor`
/// goes on with the next source where one could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// What was asked for is not there to be had: no such source, a file that is there already.
    #[error("{0}")]
    Usage(String),
    /// It could not be done.
    #[error("{0}")]
    Failed(String),
}

impl CheckError {
    fn failed(why: impl fmt::Display) -> Self {
        Self::Failed(why.to_string())
    }
}

// === the exporter's side ===

/// The socket, bound.
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Control {
    /// Makes the socket in the folder of the ledger, which the caller must hold.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let path = folder.join(SOCKET);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let reach = Reach::of(folder)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(&reach.path)?)?;
        // nobody can connect before it listens
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        let listener = UnixListener::from_std(OwnedFd::from(socket).into())?;
        Ok(Self { listener, path })
    }

    /// Answers until `stop`, then removes the socket.
    pub async fn serve(self, exporter: Arc<Exporter>, stop: CancellationToken) {
        let turns = Turns::default();
        let mut clients = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = clients.join_next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    clients.spawn(serve_client(stream, Arc::clone(&exporter), turns.clone()));
                }
                Err(error) => {
                    warn!(%error, "the control socket takes no client");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Why the exporter does not do what a client asks. The client is told the text.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the running exporter does not understand the question: {0}")]
    NotUnderstood(#[from] serde_json::Error),
    #[error("{LOOKS_MAX} sources are being looked at in this exporter; try again when that is done")]
    TooManyLooks,
    #[error("another verify, doctor or backfill is at work on {0} in this exporter; try again when it is done")]
    LookedAt(String),
    #[error("another backup of this exporter is being made; try again when it is done")]
    Copying,
    #[error("the settings of {0} were changed by a reload just now; run the same command again")]
    Reloaded(String),
    #[error("a backup is made elsewhere")]
    NoLook,
    #[error("no file was handed over: {0}")]
    NoFile(#[from] io::Error),
    #[error(transparent)]
    Verify(#[from] VerifyError),
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error(transparent)]
    Backfill(#[from] BackfillError),
}

impl From<Refusal> for Answer {
    fn from(why: Refusal) -> Self {
        match why {
            Refusal::Backfill(BackfillError::Refused(why)) => Self::Refused(why),
            why => Self::Failed(why.to_string()),
        }
    }
}

/// What clients do at a time.
#[derive(Clone, Default)]
struct Turns {
    looks: Looks,
    copy: Arc<tokio::sync::Mutex<()>>,
}

/// The sources that are being looked at.
#[derive(Clone, Default)]
struct Looks(Arc<Mutex<BTreeSet<String>>>);

/// A source's place among them, until it is dropped.
struct Look {
    looks: Looks,
    source: String,
}

impl Looks {
    fn begin(&self, source: &str) -> Result<Look, Refusal> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= LOOKS_MAX {
            return Err(Refusal::TooManyLooks);
        }
        if !all.insert(source.to_owned()) {
            return Err(Refusal::LookedAt(source.to_owned()));
        }
        Ok(Look { looks: self.clone(), source: source.to_owned() })
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        self.looks.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.source);
    }
}

async fn serve_client(stream: UnixStream, exporter: Arc<Exporter>, turns: Turns) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader.take(ASK_BYTES_MAX));
    let mut line = String::new();
    let Ok(Ok(_)) = tokio::time::timeout(ASK_TIMEOUT, reader.read_line(&mut line)).await else { return };
    let ask = serde_json::from_str(&line);
    if let Ok(Ask::Backup) = ask {
        let reader = reader.into_inner().into_inner();
        let answer = match turns.copy.try_lock() {
            Ok(_alone) => take_backup(reader.as_ref(), &mut writer, &exporter).await,
            Err(_) => Err(Refusal::Copying),
        };
        let _ = write(&mut writer, &answer.unwrap_or_else(Answer::from)).await;
        return;
    }
    let (telling, mut told) = unbounded_channel();
    let work = async { look(&exporter, ask?, &turns.looks, &telling).await };
    tokio::pin!(work);
    let mut end = [0];
    let last = loop {
        tokio::select! {
            biased;
            // the work waits meanwhile, so that no more is read than the client takes
            Some(answer) = told.recv() => {
                if write(&mut writer, &answer).await.is_err() {
                    return;
                }
            }
            answer = &mut work => break answer,
            // nothing more is asked: this is the client's end
            _ = reader.read(&mut end) => return,
        }
    };
    // what the work has told since, before its end
    while let Ok(answer) = told.try_recv() {
        if write(&mut writer, &answer).await.is_err() {
            return;
        }
    }
    let _ = write(&mut writer, &last.unwrap_or_else(Answer::from)).await;
}

async fn take_backup(stream: &UnixStream, writer: &mut OwnedWriteHalf, exporter: &Exporter) -> Result<Answer, Refusal> {
    write(writer, &Answer::HandOver).await?;
    let received = tokio::time::timeout(ASK_TIMEOUT, receive_file(stream)).await;
    let file = received.map_err(io::Error::from)??;
    Ok(Answer::BackedUp(exporter.backup(file).await?))
}

/// A file that the other side has opened.
async fn receive_file(stream: &UnixStream) -> io::Result<File> {
    let receive = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let file = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next().map(File::from),
            _ => None,
        });
        file.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    };
    stream.async_io(Interest::READABLE, receive).await
}

/// A source as `verify` needs it; `None` where none of this name is polled.
pub fn verify_input(exporter: &Exporter, name: &str) -> Option<VerifyInput> {
    let Polled { config, api, book, stats, .. } = exporter.polled(name)?;
    Some(VerifyInput { config, api, ledger: exporter.ledger().clone(), book, polls: Some(stats) })
}

/// A source as `doctor` needs it: with its budget, but a connection and a session of its own.
fn doctor_input(exporter: &Exporter, name: &str) -> Option<DoctorInput> {
    let Polled { config, book, stats, gate, .. } = exporter.polled(name)?;
    Some(DoctorInput {
        transport: exporter.connect(&config).map(|shared| shared.apart().unwrap_or(shared)),
        gate,
        limits: limits(&config.common),
        stats,
        counted_from: book.state().checkpoint().map(|checkpoint| checkpoint.origin),
        clock: exporter.clock().clone(),
        seed: exporter.draw(),
        config,
    })
}

/// Looks at a source as a client asks.
async fn look(
    exporter: &Exporter,
    ask: Ask,
    looks: &Looks,
    telling: &UnboundedSender<Answer>,
) -> Result<Answer, Refusal> {
    // where nobody listens any more, the work is ended elsewhere
    let told = telling.clone();
    let say = move |text: &str| _ = told.send(Answer::Told(text.to_owned()));
    match ask {
        Ask::Verify { source, from, to } => {
            let _look = looks.begin(&source)?;
            let Some(input) = verify_input(exporter, &source) else { return Ok(Answer::Unknown) };
            Ok(Answer::Verified(Box::new(verify::verify(&input, from, to, &say).await?)))
        }
        Ask::PlanBackfill { source, from, to } => {
            let Some(input) = verify_input(exporter, &source) else { return Ok(Answer::Unknown) };
            Ok(Answer::Planned(Box::new(backfill::plan(&input, from, to, exporter.clock().now())?)))
        }
        Ask::Backfill { source, window, after, settings } => {
            let _look = looks.begin(&source)?;
            let Some(input) = verify_input(exporter, &source) else { return Ok(Answer::Unknown) };
            let plan = backfill::plan(&input, window.from, Some(window.to), exporter.clock().now())?;
            if plan.settings != settings {
                return Err(Refusal::Reloaded(source));
            }
            let mut hand = |piece| {
                _ = telling.send(Answer::Read(Box::new(piece)));
                Ok(())
            };
            backfill::read(&input, &plan, after, &say, &mut hand).await?;
            Ok(Answer::Backfilled)
        }
        Ask::Doctor { source } => {
            let _look = looks.begin(&source)?;
            let Some(input) = doctor_input(exporter, &source) else { return Ok(Answer::Unknown) };
            let loaded_at = exporter.loaded_at();
            Ok(Answer::Examined { findings: doctor::examine(input, &say).await, loaded_at })
        }
        Ask::Backup => Err(Refusal::NoLook),
    }
}

async fn write(writer: &mut OwnedWriteHalf, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    tokio::time::timeout(TAKE_TIMEOUT, writer.write_all(&line)).await?
}

/// A path to the socket that fits into an address: where the folder's own is too long, by way of
/// the open folder.
struct Reach {
    path: PathBuf,
    _folder: Option<File>,
}

impl Reach {
    fn of(folder: &Path) -> io::Result<Self> {
        let path = folder.join(SOCKET);
        if path.as_os_str().len() <= ADDRESS_BYTES_MAX {
            return Ok(Self { path, _folder: None });
        }
        let folder = File::open(folder)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(SOCKET);
        Ok(Self { path, _folder: Some(folder) })
    }
}

// === the operator's side ===

/// Compares a window of a source with the service, wherever that is to be done.
pub async fn verify(
    config: &Config,
    name: &str,
    from: DateTime<Utc>,
    to: Option<DateTime<Utc>>,
    say: &Say,
) -> Result<Report, CheckError> {
    let storage = config.storage.path.as_path();
    let ask = Ask::Verify { source: name.to_owned(), from, to };
    match ask_running(storage, &ask, None, say).await? {
        Some(Answer::Verified(report)) => return Ok(*report),
        Some(Answer::Unknown) => {
            return Err(unknown(storage, name));
        }
        Some(other) => return Err(unexpected(other)),
        None => {}
    }
    let source = find(config, name)?;
    say(&format!("no exporter runs on {}: this process reads the service itself", storage.display()));
    let nothing =
        || CheckError::Failed(format!("nothing was ever counted for the {} source {name:?}", source.system()));
    let subject = alone(source, storage).await?.ok_or_else(nothing)?;
    verify::verify(&subject, from, to, say).await.map_err(CheckError::failed)
}

/// Looks at a source, wherever that is to be done. `changed_at` is when the configuration's file was last changed.
pub async fn doctor(
    config: &Config,
    changed_at: Option<DateTime<Utc>>,
    name: &str,
    say: &Say,
) -> Result<Findings, CheckError> {
    let storage = config.storage.path.as_path();
    let ask = Ask::Doctor { source: name.to_owned() };
    match ask_running(storage, &ask, None, say).await? {
        Some(Answer::Examined { mut findings, loaded_at }) => {
            if let Some(changed_at) = changed_at.filter(|at| *at > loaded_at) {
                findings.of_other_settings(format!(
                    "looked at with the settings that the running exporter read at {}; the configuration file was changed \
                     at {}: reload it to put that in force",
                    rfc3339_seconds(loaded_at),
                    rfc3339_seconds(changed_at)
                ));
            }
            return Ok(findings);
        }
        Some(Answer::Failed(why)) => return Err(CheckError::Failed(why)),
        // the running exporter does not know this source yet, so nobody else reads it
        Some(_) | None => {}
    }
    Ok(doctor::examine(input_alone(find(config, name)?), say).await)
}

/// Looks at a source that no exporter knows yet.
pub async fn try_out(config: &SourceConfig, say: &Say) -> Findings {
    doctor::try_out(input_alone(config), say).await
}

/// A source that no exporter reads, with a budget of its own.
fn input_alone(config: &SourceConfig) -> DoctorInput {
    let limits = limits(&config.common);
    DoctorInput {
        config: config.clone(),
        transport: over_the_network(config),
        gate: Arc::new(Gate::empty(&limits)),
        limits,
        stats: Arc::default(),
        counted_from: None,
        clock: Clock::machine(),
        seed: rand::random(),
    }
}

fn find<'a>(config: &'a Config, name: &str) -> Result<&'a SourceConfig, CheckError> {
    config.sources.iter().find(|source| source.name.as_str() == name).ok_or_else(|| {
        let names: Vec<&str> = config.sources.iter().map(|source| source.name.as_str()).collect();
        CheckError::Usage(format!("the configuration has no source {name:?}; it has: {}", names.join(", ")))
    })
}

/// Copies the ledger in `storage` to `to`, which must not be there, wherever that is to be done.
pub async fn backup(storage: &Path, to: &Path) -> Result<Copied, CheckError> {
    let shown = to.display();
    let taken = || {
        CheckError::Usage(format!("{shown} exists already, and a backup does not overwrite files: give another name"))
    };
    if to.symlink_metadata().is_ok() {
        return Err(taken());
    }
    let failed = |error: io::Error| CheckError::Failed(format!("cannot write {shown}: {error}"));
    let unfinished = Unfinished::beside(to).map_err(failed)?;
    let opened = unfinished.open().map_err(failed)?;
    let file = opened.try_clone().map_err(failed)?;
    let copied = match ask_running(storage, &Ask::Backup, Some(&file), &|_| {}).await? {
        Some(Answer::BackedUp(copied)) => copied,
        Some(other) => return Err(unexpected(other)),
        None => {
            let ledger = open_alone(storage).await?;
            ledger.backup(file).await.map_err(CheckError::failed)?
        }
    };
    let to = to.to_owned();
    run_blocking(move || {
        verify_copy(&opened, copied).map_err(CheckError::failed)?;
        opened.sync_all().and_then(|()| unfinished.finish(&to)).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => CheckError::Usage(format!("{} exists already", to.display())),
            _ => CheckError::Failed(format!("cannot write {}: {error}", to.display())),
        })?;
        Ok(copied)
    })
    .await
}

/// A backup under a name of its own; removed unless it was finished.
struct Unfinished(PathBuf);

impl Unfinished {
    fn beside(to: &Path) -> io::Result<Self> {
        let mut name = to.file_name().ok_or(io::ErrorKind::IsADirectory)?.to_owned();
        name.push(format!(".unfinished-{:08x}", rand::random::<u32>()));
        Ok(Self(std::path::absolute(to)?.with_file_name(name)))
    }

    /// For its owner alone.
    fn open(&self) -> io::Result<File> {
        File::options().read(true).write(true).create_new(true).mode(0o600).open(&self.0)
    }

    /// Gives it its name, if nothing else has it.
    fn finish(self, to: &Path) -> io::Result<()> {
        match std::fs::hard_link(&self.0, to) {
            // a file system without links
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists && to.symlink_metadata().is_err() => {
                std::fs::rename(&self.0, to)?;
            }
            linked => linked?,
        }
        let folder = self.0.parent().map(File::open).transpose()?;
        drop(self);
        folder.map_or(Ok(()), |folder| folder.sync_all())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A ledger of which no exporter takes care. None is made.
async fn open_alone(storage: &Path) -> Result<Ledger, CheckError> {
    let file = storage.join(STORE_FILE);
    if !file.exists() {
        return Err(CheckError::Failed(format!(
            "there is no ledger {}: nothing has been counted there yet",
            file.display()
        )));
    }
    let folder = storage.to_owned();
    run_blocking(move || Ledger::open(&folder)).await.map_err(|error| match error {
        OpenError::InUse { path, .. } => CheckError::Failed(format!(
            "the store {path} is in use by a process that cannot be asked: an exporter that is just starting, or one \
             without a control socket (its log says why)"
        )),
        error => CheckError::failed(error),
    })
}

/// A source of which no exporter takes care, and its ledger; `None` where nothing was ever counted for it.
async fn alone(config: &SourceConfig, storage: &Path) -> Result<Option<VerifyInput>, CheckError> {
    let ledger = open_alone(storage).await?;
    let (reader, dialect) = config.service.build(&config.common);
    let book = ledger.find(&config.name, config.system(), reader.spec().catalogue).await.map_err(CheckError::failed)?;
    let Some(book) = book else { return Ok(None) };
    let limits = limits(&config.common);
    let gate = Arc::new(Gate::empty(&limits));
    let transport = over_the_network(config).map_err(CheckError::failed)?;
    let (stats, clock, seed) = (Arc::default(), Clock::machine(), rand::random());
    let api = Api::from_parts(ApiParts { gate, transport, dialect, limits, stats, clock, seed });
    Ok(Some(VerifyInput { config: config.clone(), api: Arc::new(api), ledger, book, polls: None }))
}

#[cfg(test)]
mod tests;
