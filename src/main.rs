//! The command `audit-exporter`: arguments, logging, signals, exit code; nothing else.
#![warn(clippy::print_stdout, clippy::print_stderr)]

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use audit_exporter::clock::Clock;
use audit_exporter::config::{self, Config};
use audit_exporter::connect::over_the_network;
use audit_exporter::control::{self, CheckError, Control};
use audit_exporter::event::System;
use audit_exporter::exporter::{ApplyError, Edges, Exporter};
use audit_exporter::fault::{catch_panic, log_panics};
use audit_exporter::ledger::{Copied, Ledger, OpenError, Unusable, usable};
use audit_exporter::simulate::{Faults, Options, World};
use audit_exporter::threads::run_blocking;
use audit_exporter::web::listen::{self, ListenAddress};
use audit_exporter::web::{ExternalUrl, Pages, WebFile, protect, router};
use audit_exporter::{demo, doctor, metrics, output};
use chrono::{DateTime, Utc};
use clap::{Parser, Subcommand, ValueEnum};
use futures_util::StreamExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The configuration or the arguments are wrong.
const EXIT_USAGE: u8 = 2;
/// Something else kept the program from running.
const EXIT_FAILURE: u8 = 1;
/// `verify` and `doctor`: something differs, something is wrong.
const EXIT_NOT_WELL: u8 = 1;
/// `verify`, `doctor` and `backup`: it could not be done.
const EXIT_COULD_NOT_LOOK: u8 = 3;
/// How long to wait before a ledger that cannot be opened is tried again.
const STORAGE_RETRY: Duration = Duration::from_secs(5);
/// How long a stop may take beyond the commit under way.
const STOP_WAIT: Duration = Duration::from_secs(10);
/// How long the last log lines wait for a reader that takes none, at a stop and at a second signal.
const LAST_LINES_WAIT: Duration = Duration::from_secs(2);
const LAST_LINES_WAIT_AT_ONCE: Duration = Duration::from_millis(200);

/// Prometheus exporter for the audit logs of Canvas LMS, Informatica IICS, HID `ActivID`, Losant and
/// Index Exchange: every event counted exactly once.
#[derive(Parser)]
#[command(name = "audit-exporter", disable_version_flag = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    /// The configuration file (YAML).
    #[arg(long = "config.file", value_name = "FILE", global = true)]
    config_file: Option<PathBuf>,

    /// Address to serve on; may be given several times. Without a host: all interfaces.
    #[arg(long = "web.listen-address", value_name = "ADDRESS", default_value = ":10812", global = true)]
    listen: Vec<ListenAddress>,

    /// File with TLS and basic authentication settings (exporter-toolkit format).
    #[arg(long = "web.config.file", value_name = "FILE", global = true)]
    web_config: Option<PathBuf>,

    /// Where people reach this exporter, for links in alerts and dashboards: an http or https URL.
    #[arg(long = "web.external-url", value_name = "URL", global = true)]
    external_url: Option<ExternalUrl>,

    /// Folder of the ledger; overrides storage.path of the configuration.
    #[arg(long = "storage.path", value_name = "FOLDER", global = true)]
    storage: Option<PathBuf>,

    /// The least severe messages to log.
    #[arg(long = "log.level", value_name = "LEVEL", default_value = "info", global = true)]
    log_level: LogLevel,

    /// How to write log lines.
    #[arg(long = "log.format", value_name = "FORMAT", default_value = "logfmt", global = true)]
    log_format: LogFormat,

    /// Print the version and exit.
    #[arg(long)]
    version: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Validate the configuration file without touching the network: exit status 0 or 2.
    Check,
    /// Read a window of a source's history again and compare it with what was counted.
    ///
    /// Runs inside the exporter, where one runs on the same storage, within its rate limit; else by itself.
    /// Exit status: 0 no difference, 1 differences, 2 wrong arguments, 3 it could not be done; 129, 130 or 143 where
    /// SIGHUP, SIGINT or SIGTERM ended it.
    Verify {
        /// Name of the source.
        #[arg(long, value_name = "NAME")]
        source: String,
        /// Start: a time (2026-11-22T03:00:00Z), or how long ago (2h).
        #[arg(long, value_name = "TIME", value_parser = moment)]
        from: DateTime<Utc>,
        /// End, likewise; absent: as far as the history is counted.
        #[arg(long, value_name = "TIME", value_parser = moment)]
        to: Option<DateTime<Utc>>,
        /// How to print what was found.
        #[arg(long, value_name = "FORMAT", default_value = "text")]
        format: ReportFormat,
    },
    /// Look at every source: whether it can be reached, accepts the credential and allows what is
    /// read, what would be counted, its clock, its budget.
    ///
    /// Runs inside the exporter, where one runs on the same storage; else by itself. Counts nothing. Looks at several
    /// sources side by side, each within its own rate limit.
    /// Exit status: 0 all is well, 1 something is wrong, 2 wrong arguments, 3 it could not be done; 129, 130 or 143
    /// where SIGHUP, SIGINT or SIGTERM ended it.
    Doctor {
        /// Only this source.
        #[arg(long, value_name = "NAME")]
        source: Option<String>,
    },
    /// Copy the ledger to a file, consistently, also while the exporter runs.
    ///
    /// Needs --config.file or --storage.path. The copy is verified, and gets its name only when it is whole.
    /// To restore it, see docs/backup.md.
    /// Exit status: 0 done, 2 wrong arguments, 3 it could not be done.
    Backup {
        /// The file to make. It must not be there yet.
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
    /// Simulated services for all five systems on loopback, and the exporter polling them.
    Demo {
        /// Seed of the simulated traffic.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// A fault of a simulated service, as SERVICE:SWITCH=VALUE; may be given several times.
        #[arg(long, value_name = "FAULT")]
        fault: Vec<String>,
        /// How long a new series is shown as 0.
        #[arg(long, value_name = "DURATION", default_value = "5s")]
        hold: String,
    },
    /// Only the simulated services.
    Simulate {
        /// Address to serve on.
        #[arg(long, value_name = "ADDRESS")]
        listen: ListenAddress,
        /// Seed of the simulated traffic.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// A fault, as SERVICE:SWITCH=VALUE; may be given several times.
        #[arg(long, value_name = "FAULT")]
        fault: Vec<String>,
        /// Mean events per second and service.
        #[arg(long, default_value_t = 0.5)]
        rate: f64,
        /// No traffic but what is injected over POST /simulator/inject.
        #[arg(long)]
        quiet: bool,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ReportFormat {
    Text,
    Json,
}

/// A time, or how long ago it was.
fn moment(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Ok(at.to_utc());
    }
    let ago = config::parse_duration(text).and_then(|ago| chrono::TimeDelta::from_std(ago).ok());
    let at = ago.and_then(|ago| Clock::machine().now().checked_sub_signed(ago));
    at.ok_or_else(|| "expected a time such as 2026-11-22T03:00:00Z, or how long ago, such as 2h or 1d12h".to_owned())
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Logfmt,
    Json,
}

/// Why the program ends, already told to the user or to be told.
struct Exit {
    code: u8,
    message: String,
}

impl Exit {
    fn usage(message: impl Display) -> Self {
        Self { code: EXIT_USAGE, message: message.to_string() }
    }

    fn not_well() -> Self {
        Self { code: EXIT_NOT_WELL, message: String::new() }
    }

    fn failure(message: impl Display) -> Self {
        Self { code: EXIT_FAILURE, message: message.to_string() }
    }
}

fn main() -> ExitCode {
    let (code, patience) = match Arguments::try_parse() {
        Ok(arguments) => {
            // these go on without whoever reads what they write; the others wait for a slow reader, such as a pager
            let goes_on = arguments.goes_on();
            (obey(arguments), goes_on.then_some(LAST_LINES_WAIT))
        }
        Err(refused) if refused.use_stderr() => {
            output::tell(&refused.render().to_string());
            (EXIT_USAGE, None)
        }
        Err(help) => {
            output::print(help.render().to_string().trim_end());
            (0, None)
        }
    };
    output::flush(patience);
    ExitCode::from(code)
}

/// Does what was asked for; the exit code.
fn obey(arguments: Arguments) -> u8 {
    if arguments.version {
        let (version, revision) = (env!("CARGO_PKG_VERSION"), metrics::revision());
        output::print(&format!("audit-exporter, version {version} (revision: {revision})"));
        return 0;
    }
    log_to_stderr(arguments.log_level, arguments.log_format);
    log_panics();
    keep_memory_private();
    listen::raise_open_files();
    let outcome = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let outcome = catch_panic(|| runtime.block_on(run(arguments)));
            runtime.shutdown_timeout(STOP_WAIT);
            outcome.unwrap_or_else(|panic| Err(Exit::failure(format!("a fault in this program (a panic): {panic}"))))
        }
        Err(error) => Err(Exit::failure(format!("cannot start: {error}"))),
    };
    let Err(exit) = outcome else { return 0 };
    if !exit.message.is_empty() {
        output::tell(&exit.message);
    }
    exit.code
}

impl Arguments {
    /// Whether the program runs until it is stopped.
    fn goes_on(&self) -> bool {
        !self.version && matches!(self.command, None | Some(Command::Demo { .. } | Command::Simulate { .. }))
    }
}

/// Credentials are in memory: no core file, and no look inside for other programs of the same user.
fn keep_memory_private() {
    #[cfg(target_os = "linux")]
    if let Err(why) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable) {
        tracing::warn!(%why, "a crash may leave a core file, with credentials in it");
    }
}

fn log_to_stderr(level: LogLevel, format: LogFormat) {
    let ours = match level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    };
    // libraries may log what they send: only their warnings; h2 warns of what any client may do at will
    let filter = Targets::new()
        .with_default(ours.min(LevelFilter::WARN))
        .with_target("h2", LevelFilter::ERROR)
        .with_target("audit_exporter", ours);
    let registry = tracing_subscriber::registry();
    match format {
        LogFormat::Logfmt => {
            let layer = tracing_logfmt::builder()
                .with_span_name(false)
                .with_span_path(false)
                .layer()
                .with_writer(|| output::LogLines);
            registry.with(layer.with_filter(filter)).init();
        }
        LogFormat::Json => {
            let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(|| output::LogLines);
            registry.with(layer.with_filter(filter)).init();
        }
    }
}

async fn run(mut arguments: Arguments) -> Result<(), Exit> {
    let signals = Signals::take(&arguments)?;
    match arguments.command.take() {
        Some(Command::Check) => {
            let config = load(&arguments)?;
            web_config(&arguments)?;
            check_storage(&config.storage.path)?;
            let file = arguments.config_file.as_deref().unwrap_or(Path::new(""));
            config.warned(file).for_each(|warning| output::print(&warning));
            let doubts = if config.warnings.is_empty() { "" } else { ", but see above" };
            output::print(&format!("the configuration is good{doubts}"));
            Ok(())
        }
        Some(Command::Verify { source, from, to, format }) => run_verify(&arguments, &source, from, to, format).await,
        Some(Command::Doctor { source }) => run_doctor(&arguments, source).await,
        Some(Command::Backup { to }) => run_backup(&arguments, &to, &signals).await,
        Some(Command::Demo { seed, fault, hold }) => run_demo(arguments, seed, &fault, &hold, &signals).await,
        Some(Command::Simulate { listen, seed, fault, rate, quiet }) => {
            let world = world(seed, &fault, rate, quiet)?;
            let listeners = listen::bind(&[listen]).await.map_err(Exit::failure)?;
            for listener in &listeners {
                let address = listener.local_addr().map_err(Exit::failure)?;
                output::announce(format!("simulated services at http://{address}"));
            }
            listen::serve(listeners, world.router(), Arc::new(WebFile::none()), signals.finish_work()).await;
            Ok(())
        }
        None => {
            let config = load(&arguments)?;
            let file = arguments.config_file.clone().map(Arc::new);
            config.log_warnings(file.as_deref().map_or(Path::new(""), PathBuf::as_path));
            run_exporter(&arguments, config, file, &signals, |_, _| {}).await
        }
    }
}

fn load(arguments: &Arguments) -> Result<Config, Exit> {
    let Some(file) = &arguments.config_file else {
        return Err(Exit::usage(
            "no configuration: give --config.file=FILE, or try `audit-exporter demo`; --help tells more",
        ));
    };
    let mut config = config::load(file).map_err(Exit::usage)?;
    if let Some(storage) = &arguments.storage {
        config.storage.path.clone_from(storage);
    }
    // proxies of the environment are part of the configuration; kept until all are made, because they share
    let ways: Vec<_> = config.sources.iter().map(|source| (&source.name, over_the_network(source))).collect();
    let bad = ways
        .iter()
        .filter_map(|(name, way)| Some(format!("{}: source {name}: {}", file.display(), way.as_ref().err()?)));
    let bad: Vec<String> = bad.collect();
    if !bad.is_empty() {
        return Err(Exit::usage(bad.join("\n")));
    }
    Ok(config)
}

/// Who checks a file need not be the user that the exporter runs as, so what that user may is only warned of.
fn check_storage(folder: &Path) -> Result<(), Exit> {
    match usable(folder) {
        Ok(()) => {}
        Err(why @ Unusable::Misplaced(_)) => {
            return Err(Exit::usage(format!("storage.path {}: {why}", folder.display())));
        }
        Err(why @ Unusable::Forbidden(_)) => {
            warn!(folder = %folder.display(), %why, "storage.path cannot be used by the user who runs this check");
        }
    }
    Ok(())
}

async fn run_verify(
    arguments: &Arguments,
    source: &str,
    from: DateTime<Utc>,
    to: Option<DateTime<Utc>>,
    format: ReportFormat,
) -> Result<(), Exit> {
    let config = load(arguments)?;
    if to.is_some_and(|to| to <= from) {
        return Err(Exit::usage("--to must be later than --from"));
    }
    let report = control::verify(&config, source, from, to, &told()).await?;
    match format {
        ReportFormat::Text => output::print(report.to_string().trim_end()),
        ReportFormat::Json => output::print(&serde_json::to_string_pretty(&report).map_err(Exit::failure)?),
    }
    if report.differences.is_empty() { Ok(()) } else { Err(Exit::not_well()) }
}

async fn run_doctor(arguments: &Arguments, only: Option<String>) -> Result<(), Exit> {
    let config = load(arguments)?;
    let all = config.sources.iter().map(|source| source.name.to_string());
    let names: Vec<String> = only.map_or_else(|| all.collect(), |name| vec![name]);
    let say = told();
    let changed_at = arguments.config_file.as_ref().and_then(|file| file.metadata().ok()?.modified().ok());
    let changed_at = changed_at.map(DateTime::from);
    if let Some(how_long) = doctor::how_long(&config, &names) {
        _ = say.send(how_long);
    }
    let mut looks = futures_util::stream::iter(&names)
        .map(|name| control::doctor(&config, changed_at, name, &say))
        .buffered(doctor::SIDE_BY_SIDE);
    let mut wrong = false;
    let mut failed = BTreeSet::new();
    while let Some(look) = looks.next().await {
        match look {
            Ok(findings) => {
                output::print(findings.to_string().trim_end());
                wrong |= findings.wrong();
            }
            Err(CheckError::Failed(why)) => _ = failed.insert(why),
            Err(error) => return Err(error.into()),
        }
    }
    if !failed.is_empty() {
        return Err(CheckError::Failed(Vec::from_iter(failed).join("\n")).into());
    }
    if wrong { Err(Exit::not_well()) } else { Ok(()) }
}

async fn run_backup(arguments: &Arguments, to: &Path, signals: &Signals) -> Result<(), Exit> {
    let storage = match (&arguments.storage, &arguments.config_file) {
        (Some(storage), _) => storage.clone(),
        (None, Some(file)) => config::load(file).map_err(Exit::usage)?.storage.path,
        (None, None) => return Err(Exit::usage("which ledger? give --config.file=FILE or --storage.path=FOLDER")),
    };
    // what was begun is removed
    let stop = signals.finish_work();
    let Copied { sources, events, commit } = tokio::select! {
        copied = control::backup(&storage, to) => copied?,
        () = stop.cancelled() => {
            return Err(Exit { code: EXIT_COULD_NOT_LOOK, message: "stopped; no backup was made".into() });
        }
    };
    let (from, to) = (storage.display(), to.display());
    output::print(&format!(
        "{to}: the ledger in {from} as of its commit {commit}: {events} events counted, sources: {sources}"
    ));
    Ok(())
}

/// Progress goes to standard error, so that standard output is the report alone.
fn told() -> audit_exporter::verify::Say {
    let (say, mut told) = tokio::sync::mpsc::unbounded_channel::<String>();
    tokio::spawn(async move {
        while let Some(text) = told.recv().await {
            output::tell(&text);
        }
    });
    say
}

impl From<CheckError> for Exit {
    fn from(error: CheckError) -> Self {
        let code = match error {
            CheckError::Usage(_) => EXIT_USAGE,
            CheckError::Failed(_) => EXIT_COULD_NOT_LOOK,
        };
        Self { code, message: error.to_string() }
    }
}

fn web_config(arguments: &Arguments) -> Result<WebFile, Exit> {
    match &arguments.web_config {
        Some(file) => WebFile::open(file).map_err(|error| Exit::usage(format!("{}: {error}", file.display()))),
        None => Ok(WebFile::none()),
    }
}

fn world(seed: u64, faults: &[String], rate: f64, quiet: bool) -> Result<World, Exit> {
    let mut switched = Faults::default();
    for fault in faults {
        switched.set(fault).map_err(Exit::usage)?;
    }
    Ok(World::new(Options {
        seed,
        clock: Clock::machine(),
        history: Duration::from_hours(2),
        day: Duration::from_mins(10),
        rate,
        faults: switched,
        quiet,
    }))
}

/// The simulated services on a free port of loopback, the exporter on the address asked for.
async fn run_demo(
    mut arguments: Arguments,
    seed: u64,
    faults: &[String],
    hold: &str,
    signals: &Signals,
) -> Result<(), Exit> {
    let world = world(seed, faults, 0.5, false)?;
    world.forget_after(demo::KEPT);
    let loopback: ListenAddress = "127.0.0.1:0".parse().map_err(Exit::failure)?;
    let services = listen::bind(&[loopback]).await.map_err(Exit::failure)?;
    let address = services[0].local_addr().map_err(Exit::failure)?;
    tokio::spawn(listen::serve(services, world.router(), Arc::new(WebFile::none()), signals.stop.clone()));

    let own = match arguments.storage {
        Some(_) => None,
        None => Some(demo::Folder::new().map_err(|error| Exit::failure(format!("a folder for the demo: {error}")))?),
    };
    if let Some(own) = &own {
        signals.remove_at_end(own.path());
    }
    let given = arguments.storage.take();
    let storage = given.as_deref().or(own.as_ref().map(demo::Folder::path)).unwrap_or(std::path::Path::new("."));
    let config = demo::config(&format!("http://{address}"), storage, hold).map_err(Exit::usage)?;
    run_exporter(&arguments, config, None, signals, |page, exporter| {
        output::announce(format!(
            "simulated services at http://{address}\nstatus page at        http://{page}/\nmetrics at            http://{page}/metrics"
        ));
        if let Some(held) = exporter.status().held {
            output::announce(held.to_string());
        }
    })
    .await
}

async fn run_exporter(
    arguments: &Arguments,
    config: Config,
    config_file: Option<Arc<PathBuf>>,
    signals: &Signals,
    started: impl FnOnce(SocketAddr, &Exporter),
) -> Result<(), Exit> {
    let web = Arc::new(web_config(arguments)?);
    let listeners = listen::bind(&arguments.listen).await.map_err(Exit::failure)?;
    let stop = signals.finish_work();
    tell_what_starts(&config, config_file.as_deref());
    let pages = Pages { exporter: Arc::default(), config_file, storage: arguments.storage.clone() };
    if pages.config_file.is_some() {
        reload_on_hangup(pages.clone())?;
    }
    let address = listeners.first().and_then(|listener| listener.local_addr().ok());
    for listener in &listeners {
        let address = listener.local_addr().map_err(Exit::failure)?;
        info!(%address, tls = web.tls(), "serving");
    }
    let router = protect(router(pages.clone()), Arc::clone(&web));
    let connections = listen::connections_allowed(config.sources.len());
    let serving = tokio::spawn(listen::serve_at_most(connections, listeners, router, web, stop.clone()));

    let storage = config.storage.path.clone();
    let exporter = tokio::select! {
        exporter = start(config, arguments.external_url.as_ref()) => exporter?,
        () = stop.cancelled() => return Ok(()),
    };
    let _ = pages.exporter.set(Arc::clone(&exporter));
    if let Some(address) = address {
        started(seen_from_here(address), &exporter);
    }
    let control = match Control::open(&storage) {
        Ok(control) => Some(tokio::spawn(control.serve(Arc::clone(&exporter), stop.clone()))),
        Err(error) => {
            warn!(folder = %storage.display(), %error, "no control socket: verify, doctor and backup cannot ask this process");
            None
        }
    };
    info!("ready");
    serving.await.map_err(Exit::failure)?;
    info!("stopping");
    exporter.stop().await;
    if let Some(control) = control {
        let _ = control.await;
    }
    info!("stopped");
    Ok(())
}

/// Loads the ledger and starts polling. A disk that is full or read-only for now is waited for;
/// until then the program serves, and says that it is not ready.
async fn start(config: Config, external_url: Option<&ExternalUrl>) -> Result<Arc<Exporter>, Exit> {
    loop {
        let folder = config.storage.path.clone();
        let why = match run_blocking(move || Ledger::open(&folder)).await {
            Ok(ledger) => {
                let clock = Clock::machine();
                let edges = Edges {
                    ledger,
                    clock,
                    connect: Box::new(over_the_network),
                    external_url: external_url.map(ExternalUrl::shared),
                    seed: rand::random(),
                };
                match Exporter::start(config.clone(), edges).await {
                    Ok(exporter) => return Ok(exporter),
                    Err(ApplyError::Ledger(error)) => error.to_string(),
                    Err(error) => return Err(Exit::failure(error)),
                }
            }
            Err(error @ OpenError::Storage { passing: true, .. }) => error.to_string(),
            Err(error) => return Err(Exit::failure(error)),
        };
        error!(%why, retry_in = ?STORAGE_RETRY, "not ready");
        tokio::time::sleep(STORAGE_RETRY).await;
    }
}

/// An address a browser on this machine can open.
fn seen_from_here(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    address
}

/// The one line that says what runs here.
fn tell_what_starts(config: &Config, file: Option<&PathBuf>) {
    let mut systems = Vec::new();
    for system in System::ALL {
        match config.sources.iter().filter(|source| source.system() == system).count() {
            0 => {}
            count => systems.push(format!("{system} {count}")),
        }
    }
    info!(
        version = env!("CARGO_PKG_VERSION"),
        revision = metrics::revision(),
        config = %file.map_or_else(|| "of the demo".into(), |file| file.display().to_string()),
        store = %config.storage.path.display(),
        sources = config.sources.len(),
        systems = systems.join(", "),
        "starting"
    );
}

/// The signals that end the program. They have handlers from the start on and in every command, because the kernel
/// withholds a signal without a handler from the first process of a container.
///
/// Until the program has something to finish, a signal ends it at once. From then on the first signal asks it to
/// finish, and a second one ends it at once.
struct Signals {
    stop: CancellationToken,
    finishing: Arc<AtomicBool>,
    leftover: Arc<Mutex<Option<PathBuf>>>,
}

impl Signals {
    fn take(arguments: &Arguments) -> Result<Self, Exit> {
        let mut terminate = signal(SignalKind::terminate()).map_err(Exit::failure)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Exit::failure)?;
        // the exporter reloads on this one, as soon as it can; the demo of somebody who used nohup goes on
        let ignored = hangup_is_ignored();
        let hangup = signal(SignalKind::hangup()).map_err(Exit::failure)?;
        let mut hangup = (arguments.command.is_some() && !ignored).then_some(hangup);
        let goes_on = arguments.goes_on();
        let signals = Self { stop: CancellationToken::new(), finishing: Arc::default(), leftover: Arc::default() };
        let Self { stop, finishing, leftover } = &signals;
        let (stop, finishing, leftover) = (stop.clone(), Arc::clone(finishing), Arc::clone(leftover));
        tokio::spawn(async move {
            loop {
                let by_signal = tokio::select! {
                    _ = terminate.recv() => 143,
                    _ = interrupt.recv() => 130,
                    () = received(hangup.as_mut()) => 129,
                };
                let again = stop.is_cancelled();
                if finishing.load(Ordering::Acquire) && !again {
                    stop.cancel();
                    continue;
                }
                if again {
                    error!("stopped a second time; not waiting");
                }
                if let Some(folder) = leftover.lock().unwrap_or_else(PoisonError::into_inner).take() {
                    let _ = std::fs::remove_dir_all(folder);
                }
                output::flush(Some(LAST_LINES_WAIT_AT_ONCE));
                std::process::exit(match (again, goes_on) {
                    (true, _) => i32::from(EXIT_FAILURE),
                    (false, true) => 0,
                    (false, false) => by_signal,
                });
            }
        });
        Ok(signals)
    }

    /// From now on there is something to finish, until the token is cancelled.
    fn finish_work(&self) -> CancellationToken {
        self.finishing.store(true, Ordering::Release);
        self.stop.clone()
    }

    /// What to remove where the program ends at once.
    fn remove_at_end(&self, folder: &std::path::Path) {
        *self.leftover.lock().unwrap_or_else(PoisonError::into_inner) = Some(folder.to_owned());
    }
}

async fn received(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => _ = signal.recv().await,
        None => std::future::pending().await,
    }
}

/// Whether whoever started the program wants it to outlive the terminal, as nohup does.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    let number = u32::try_from(SignalKind::hangup().as_raw_value()).unwrap_or(1);
    ignored & (1 << (number - 1)) != 0
}

fn reload_on_hangup(pages: Pages) -> Result<(), Exit> {
    let mut hangup = signal(SignalKind::hangup()).map_err(Exit::failure)?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            // what came of it is logged there
            let _ = pages.reload().await;
        }
    });
    Ok(())
}
