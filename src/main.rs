//! The command `audit-exporter`: arguments, logging, signals, exit code; nothing else.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use audit_exporter::clock::Clock;
use audit_exporter::config::{self, Config};
use audit_exporter::control::{self, CheckError, Control};
use audit_exporter::exporter::{ApplyError, Edges, Exporter, over_the_network};
use audit_exporter::fault::log_panics;
use audit_exporter::ledger::{Ledger, OpenError};
use audit_exporter::simulate::{Faults, Options, World};
use audit_exporter::web::listen::{self, ListenAddress};
use audit_exporter::web::{Pages, WebFile, protect, router};
use audit_exporter::{demo, metrics};
use chrono::{DateTime, Utc};
use clap::{Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
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
/// `verify` and `doctor`: they could not look.
const EXIT_COULD_NOT_LOOK: u8 = 3;
/// How long to wait before a ledger that cannot be opened is tried again.
const STORAGE_RETRY: Duration = Duration::from_secs(5);
/// How long a stop may take beyond the commit under way.
const STOP_WAIT: Duration = Duration::from_secs(10);

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
    /// Exit status: 0 no difference, 1 differences, 2 wrong arguments, 3 it could not be done.
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
    /// Runs inside the exporter, where one runs on the same storage; else by itself. Counts nothing.
    /// Exit status: 0 all is well, 1 something is wrong, 2 wrong arguments, 3 it could not be done.
    Doctor {
        /// Only this source.
        #[arg(long, value_name = "NAME")]
        source: Option<String>,
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
    let arguments = Arguments::parse();
    if arguments.version {
        let (version, revision) = (env!("CARGO_PKG_VERSION"), metrics::revision());
        print(&format!("audit-exporter, version {version} (revision: {revision})"));
        return ExitCode::SUCCESS;
    }
    log_to_stderr(arguments.log_level, arguments.log_format);
    log_panics();
    keep_memory_private();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return end(&Exit::failure(format!("cannot start: {error}"))),
    };
    let outcome = runtime.block_on(run(arguments));
    runtime.shutdown_timeout(STOP_WAIT);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => end(&exit),
    }
}

/// Credentials are in memory: no core file, and no look inside for other programs of the same user.
fn keep_memory_private() {
    #[cfg(target_os = "linux")]
    if let Err(why) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable) {
        tracing::warn!(%why, "a crash may leave a core file, with credentials in it");
    }
}

#[expect(clippy::print_stdout, reason = "this is what the user asked to see")]
fn print(text: &str) {
    println!("{text}");
}

#[expect(clippy::print_stderr, reason = "the one clear message on standard error")]
fn end(exit: &Exit) -> ExitCode {
    if !exit.message.is_empty() {
        eprintln!("{}", exit.message.trim_end());
    }
    ExitCode::from(exit.code)
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
                .with_writer(std::io::stderr);
            registry.with(layer.with_filter(filter)).init();
        }
        LogFormat::Json => {
            let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(std::io::stderr);
            registry.with(layer.with_filter(filter)).init();
        }
    }
}

async fn run(mut arguments: Arguments) -> Result<(), Exit> {
    match arguments.command.take() {
        Some(Command::Check) => {
            load(&arguments)?;
            web_config(&arguments)?;
            print("the configuration is good");
            Ok(())
        }
        Some(Command::Verify { source, from, to, format }) => run_verify(&arguments, &source, from, to, format).await,
        Some(Command::Doctor { source }) => run_doctor(&arguments, source).await,
        Some(Command::Demo { seed, fault, hold }) => run_demo(arguments, seed, &fault, &hold).await,
        Some(Command::Simulate { listen, seed, fault, rate, quiet }) => {
            let world = world(seed, &fault, rate, quiet)?;
            let stop = stop_signal()?;
            let listeners = listen::bind(&[listen]).await.map_err(Exit::failure)?;
            for listener in &listeners {
                let address = listener.local_addr().map_err(Exit::failure)?;
                print(&format!("simulated services at http://{address}"));
            }
            listen::serve(listeners, world.router(), Arc::new(WebFile::none()), stop).await;
            Ok(())
        }
        None => {
            let config = load(&arguments)?;
            let file = arguments.config_file.clone().map(Arc::new);
            run_exporter(&arguments, config, file, stop_signal()?, |_, _| {}).await
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
    // certificates and keys are part of the configuration, and are read without touching the network
    for source in config.sources.iter().filter(|source| source.common.tls.is_some()) {
        if let Err(why) = over_the_network(source) {
            return Err(Exit::usage(format!("{}: source {}: {why}", file.display(), source.name)));
        }
    }
    Ok(config)
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
        ReportFormat::Text => print(report.to_string().trim_end()),
        ReportFormat::Json => print(&serde_json::to_string_pretty(&report).map_err(Exit::failure)?),
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
    let mut wrong = false;
    for name in names {
        let findings = control::doctor(&config, changed_at, &name, &say).await?;
        print(findings.to_string().trim_end());
        wrong |= findings.wrong();
    }
    if wrong { Err(Exit::not_well()) } else { Ok(()) }
}

/// Progress goes to standard error, so that standard output is the report alone.
#[expect(clippy::print_stderr, reason = "for whoever waits")]
fn told() -> audit_exporter::verify::Say {
    let (say, mut told) = tokio::sync::mpsc::unbounded_channel::<String>();
    tokio::spawn(async move {
        while let Some(text) = told.recv().await {
            eprintln!("{text}");
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
async fn run_demo(mut arguments: Arguments, seed: u64, faults: &[String], hold: &str) -> Result<(), Exit> {
    let world = world(seed, faults, 0.5, false)?;
    let loopback: ListenAddress = "127.0.0.1:0".parse().map_err(Exit::failure)?;
    let services = listen::bind(&[loopback]).await.map_err(Exit::failure)?;
    let address = services[0].local_addr().map_err(Exit::failure)?;
    let stop = stop_signal()?;
    tokio::spawn(listen::serve(services, world.router(), Arc::new(WebFile::none()), stop.clone()));

    let own_storage = std::env::temp_dir().join(format!("audit-exporter-demo-{}", std::process::id()));
    let storage = arguments.storage.take().unwrap_or_else(|| own_storage.clone());
    let config = demo::config(&format!("http://{address}"), &storage, hold).map_err(Exit::usage)?;
    let outcome = run_exporter(&arguments, config, None, stop, |page, exporter| {
        print(&format!(
            "simulated services at http://{address}\nstatus page at        http://{page}/\nmetrics at            http://{page}/metrics"
        ));
        if let Some(held) = exporter.status().held {
            print(&format!("{held}"));
        }
    })
    .await;
    let _ = std::fs::remove_dir_all(&own_storage);
    outcome
}

async fn run_exporter(
    arguments: &Arguments,
    config: Config,
    config_file: Option<Arc<PathBuf>>,
    stop: CancellationToken,
    started: impl FnOnce(SocketAddr, &Exporter),
) -> Result<(), Exit> {
    let web = Arc::new(web_config(arguments)?);
    let listeners = listen::bind(&arguments.listen).await.map_err(Exit::failure)?;
    let pages = Pages { exporter: Arc::default(), config_file, storage: arguments.storage.clone() };
    // before anything is waited for: without a handler this signal ends the program
    reload_on_hangup(pages.clone())?;
    let address = listeners.first().and_then(|listener| listener.local_addr().ok());
    for listener in &listeners {
        let address = listener.local_addr().map_err(Exit::failure)?;
        info!(%address, tls = web.tls(), "serving");
    }
    let router = protect(router(pages.clone()), Arc::clone(&web));
    let serving = tokio::spawn(listen::serve(listeners, router, web, stop.clone()));

    let storage = config.storage.path.clone();
    let exporter = tokio::select! {
        exporter = start(config) => exporter?,
        () = stop.cancelled() => return Ok(()),
    };
    let _ = pages.exporter.set(Arc::clone(&exporter));
    if let Some(address) = address {
        started(seen_from_here(address), &exporter);
    }
    let control = match Control::open(&storage) {
        Ok(control) => Some(tokio::spawn(control.serve(Arc::clone(&exporter), stop.clone()))),
        Err(error) => {
            warn!(folder = %storage.display(), %error, "no control socket: verify and doctor cannot ask this process");
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
async fn start(config: Config) -> Result<Arc<Exporter>, Exit> {
    loop {
        let why = match Ledger::open(&config.storage.path) {
            Ok(ledger) => {
                let clock = Clock::machine();
                let edges = Edges { ledger, clock, connect: Box::new(over_the_network), seed: rand::random() };
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

/// Cancelled by SIGTERM or SIGINT; a second one ends the program at once.
fn stop_signal() -> Result<CancellationToken, Exit> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Exit::failure)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Exit::failure)?;
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        for _ in 0..2 {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            if stopped.is_cancelled() {
                error!("stopped a second time; not waiting");
                std::process::exit(i32::from(EXIT_FAILURE));
            }
            stopped.cancel();
        }
    });
    Ok(stop)
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
