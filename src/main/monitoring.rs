//! `demo --with-prometheus`: Prometheus and Alertmanager as children of the demo.
//!
//! Promises: they end with the demo, asked first and then killed; if one of them ends by itself, the demo ends and says
//! which, with the last lines of its log.
//!
//! Leaves to others: their files and arguments (`demo/monitoring.rs` of the library).

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use audit_exporter::demo::monitoring::{self, ALERTMANAGER, Addresses, PROMETHEUS, Tool};
use audit_exporter::output;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::Exit;
use crate::signals::Signals;

/// The folder of all of it, in that of the ledger.
pub(crate) const FOLDER: &str = "monitoring";
/// How long a child may take to end after it was asked.
const END_WAIT: Duration = Duration::from_secs(5);
/// How long a child may take until it listens.
const START_WAIT: Duration = Duration::from_mins(1);
/// How often it is looked whether it does.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How much of the end of a log is read.
const LOG_END_BYTES: u64 = 16 << 10;

/// The files of the programs.
#[derive(Clone)]
pub(crate) struct Programs {
    prometheus: PathBuf,
    alertmanager: PathBuf,
}

impl Programs {
    /// Those in `PATH`; else what is missing.
    pub(crate) fn find() -> Result<Self, Exit> {
        match (in_path(PROMETHEUS), in_path(ALERTMANAGER)) {
            (Some(prometheus), Some(alertmanager)) => Ok(Self { prometheus, alertmanager }),
            (prometheus, alertmanager) => {
                let found = [(PROMETHEUS, prometheus), (ALERTMANAGER, alertmanager)];
                let missing: Vec<Tool> =
                    found.into_iter().filter(|(_, found)| found.is_none()).map(|(tool, _)| tool).collect();
                Err(Exit::usage(monitoring::missing(&missing)))
            }
        }
    }
}

fn in_path(tool: Tool) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let runs = |file: &PathBuf| file.metadata().is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0);
    tool.files.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name))).find(runs)
}

/// Starts both beside an exporter that serves, and waits until `stop`. `Err` says why they do not run; the demo is asked
/// to stop then.
pub(crate) async fn run(
    programs: Programs,
    folder: PathBuf,
    exporter: SocketAddr,
    signals: Signals,
) -> Result<(), String> {
    let stop = signals.stop.clone();
    let outcome = both(&programs, &folder, exporter, &signals).await;
    stop.cancel();
    outcome
}

async fn both(programs: &Programs, folder: &Path, exporter: SocketAddr, signals: &Signals) -> Result<(), String> {
    let [prometheus, alertmanager] = free_addresses()
        .map_err(|error| format!("no free port on loopback for Prometheus and Alertmanager: {error}"))?;
    let at = Addresses { exporter, prometheus, alertmanager };
    for (path, text) in monitoring::files(folder, &at) {
        write(&path, &text).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    let start = |tool, file: &Path, arguments, address| Running::start(tool, file, arguments, folder, address);
    let arguments = monitoring::alertmanager_arguments(folder, &at);
    let mut alertmanager = start(ALERTMANAGER, &programs.alertmanager, arguments, alertmanager)?;
    signals.kill_at_end(alertmanager.pid);
    let arguments = monitoring::prometheus_arguments(folder, &at);
    let outcome = match start(PROMETHEUS, &programs.prometheus, arguments, prometheus) {
        Ok(mut prometheus) => {
            signals.kill_at_end(prometheus.pid);
            let told = monitoring::announcement(folder, &at);
            let outcome = watch(&mut prometheus, &mut alertmanager, &signals.stop, told).await;
            prometheus.end().await;
            outcome
        }
        Err(why) => Err(why),
    };
    alertmanager.end().await;
    signals.kill_nobody_at_end();
    outcome
}

/// Waits for `stop`; `Err` if one ends before.
async fn watch(
    prometheus: &mut Running,
    alertmanager: &mut Running,
    stop: &CancellationToken,
    announcement: String,
) -> Result<(), String> {
    let listen = async {
        let outcome =
            tokio::try_join!(listens(PROMETHEUS, prometheus.address), listens(ALERTMANAGER, alertmanager.address));
        if outcome.is_ok() {
            output::announce(announcement);
            std::future::pending::<()>().await;
        }
        outcome.map(drop)
    };
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        ended = prometheus.child.wait() => Err(ended_early(PROMETHEUS, &prometheus.log, ended)),
        ended = alertmanager.child.wait() => Err(ended_early(ALERTMANAGER, &alertmanager.log, ended)),
        outcome = listen => outcome,
    }
}

/// A child.
struct Running {
    tool: Tool,
    child: Child,
    pid: Option<Pid>,
    address: SocketAddr,
    log: PathBuf,
}

impl Running {
    fn start(
        tool: Tool,
        file: &Path,
        arguments: Vec<String>,
        folder: &Path,
        address: SocketAddr,
    ) -> Result<Self, String> {
        let log = folder.join(format!("{}.log", tool.files[0]));
        let failed = |error: io::Error| format!("{} ({}) cannot be started: {error}", tool.title, file.display());
        let into = File::create(&log).map_err(failed)?;
        let child = Command::new(file)
            .args(arguments)
            // Ctrl-C in the terminal is for the demo, which then ends its children
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(into.try_clone().map_err(failed)?)
            .stderr(into)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        Ok(Self { tool, child, pid, address, log })
    }

    /// Asks it to end, then kills it.
    async fn end(&mut self) {
        if let (Ok(None), Some(pid)) = (self.child.try_wait(), self.pid) {
            let _ = kill_process(pid, Signal::TERM);
        }
        if tokio::time::timeout(END_WAIT, self.child.wait()).await.is_err() {
            warn!(program = self.tool.title, "did not end when asked; killing it");
            let _ = self.child.kill().await;
        }
    }
}

/// Waits until somebody listens.
async fn listens(tool: Tool, address: SocketAddr) -> Result<(), String> {
    let connected = async {
        while tokio::net::TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(START_WAIT, connected)
        .await
        .map_err(|_| format!("{} does not listen on {address} after {START_WAIT:?}", tool.title))
}

fn ended_early(tool: Tool, log: &Path, ended: io::Result<ExitStatus>) -> String {
    let how = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
    let lines = end_of(log)
        .map_or_else(|error| format!("(its log cannot be read: {error})"), |end| monitoring::last_lines(&end));
    format!("{} ended by itself ({how}), and the demo with it; the last lines of its log:\n{lines}", tool.title)
}

/// The end of a log.
fn end_of(log: &Path) -> io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_END_BYTES)))?;
    let mut end = Vec::new();
    file.take(LOG_END_BYTES).read_to_end(&mut end)?;
    Ok(String::from_utf8_lossy(&end).into_owned())
}

/// Two addresses of loopback that nobody has now. Neither program says before its start which port it will get, and both
/// need their own address for links.
fn free_addresses() -> io::Result<[SocketAddr; 2]> {
    let held = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
    Ok([held[0].local_addr()?, held[1].local_addr()?])
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, text)
}
