//! The command `audit-exporter`: what each subcommand does with the library, logging, exit code; nothing else.
#![warn(clippy::print_stdout, clippy::print_stderr)]

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use audit_exporter::backfill::{Asked, Written};
use audit_exporter::clock::Clock;
use audit_exporter::config::{self, Config};
use audit_exporter::connect::over_the_network;
use audit_exporter::control::{self, CheckError, Control, Wanted};
use audit_exporter::exporter::{ApplyError, Edges, Exporter};
use audit_exporter::fault::{catch_panic, log_panics};
use audit_exporter::ledger::{Copied, Ledger, OpenError, Unusable, usable};
use audit_exporter::notify::Manager;
use audit_exporter::simulate::{Faults, Options, World};
use audit_exporter::source::registry::SYSTEMS;
use audit_exporter::threads::run_blocking;
use audit_exporter::verify::Say;
use audit_exporter::web::listen::{self, ListenAddress};
use audit_exporter::web::{ExternalUrl, Pages, WebFile, protect, router};
use audit_exporter::{demo, doctor, metrics, output, process};
use chrono::{DateTime, Utc};
use clap::CommandFactory;
use futures_util::StreamExt;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::arguments::{
    Arguments, Command, ConfigCommand, Files, LogFormat, LogLevel, Logging, ReportFormat, Serving, Shell, Storage,
    WebConfig,
};
use crate::monitoring::Programs;
use crate::signals::Signals;

#[path = "main/arguments.rs"]
mod arguments;
#[path = "main/init.rs"]
mod init;
#[path = "main/monitoring.rs"]
mod monitoring;
#[path = "main/signals.rs"]
mod signals;
#[path = "main/terminal.rs"]
mod terminal;

/// The configuration or the arguments are wrong.
const EXIT_USAGE: u8 = 2;
/// Something else kept the program from running.
const EXIT_FAILURE: u8 = 1;
/// `verify` and `doctor`: something differs, something is wrong.
const EXIT_NOT_WELL: u8 = 1;
/// `verify`, `doctor`, `backup` and `backfill`: it could not be done.
const EXIT_COULD_NOT_LOOK: u8 = 3;
/// Where the configuration that `demo --print-config` prints expects the simulated services.
const SIMULATOR: &str = "127.0.0.1:10813";
/// How long to wait before a ledger that cannot be opened is tried again.
const STORAGE_RETRY: Duration = Duration::from_secs(5);
/// How long a stop may take beyond the commit under way.
const STOP_WAIT: Duration = Duration::from_secs(10);
/// How long the last log lines wait for a reader that takes none, at a stop.
const LAST_LINES_WAIT: Duration = Duration::from_secs(2);

/// Why the program ends. An empty message means that the user was told already.
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
    // it fixes the moment
    let _ = process::started_at();
    let (code, patience) = match Arguments::of_process() {
        Ok(arguments) => {
            // these go on when nobody reads their output; the others wait for a slow reader, such as a pager
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

/// Runs the command and returns the exit code.
fn obey(arguments: Arguments) -> u8 {
    if arguments.version {
        let (version, revision) = (env!("CARGO_PKG_VERSION"), metrics::revision());
        output::print(&format!("audit-exporter, version {version} (revision: {revision})"));
        return 0;
    }
    log_to_stderr(arguments.logging());
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

/// Credentials are in memory: no core file, and no look inside for other programs of the same user.
fn keep_memory_private() {
    #[cfg(target_os = "linux")]
    if let Err(why) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable) {
        tracing::warn!(%why, "a crash may leave a core file, with credentials in it");
    }
}

fn log_to_stderr(Logging { log_level, log_format }: Logging) {
    let ours = match log_level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    };
    // libraries may log what they send, so only their warnings pass; h2 warns of what any client may do at will
    let filter = Targets::new()
        .with_default(ours.min(LevelFilter::WARN))
        .with_target("h2", LevelFilter::ERROR)
        .with_target("audit_exporter", ours);
    let registry = tracing_subscriber::registry();
    match log_format {
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
        Some(Command::Check { without_secrets, files, web, .. }) => check(&files, &web, without_secrets),
        Some(Command::Verify { files, source, from, to, format, .. }) => {
            run_verify(&files, &source, from, to, format).await
        }
        Some(Command::Doctor { files, source, .. }) => run_doctor(&files, source.map(|name| vec![name])).await,
        Some(Command::Init { config, secrets, systemd, .. }) => {
            init::run(init::Wanted { config, secrets, systemd }, &signals).await
        }
        Some(Command::Backup { files, to, .. }) => run_backup(&files, &to, &signals).await,
        Some(Command::Backfill { files, source, from, to, job, instance, .. }) => {
            let asked = Asked { from: from.text, to: to.as_ref().map(|to| to.text.clone()) };
            let scrape = vec![("job", job.into()), ("instance", instance.into())];
            run_backfill(&files, Wanted { source, asked, from: from.at, to: to.map(|to| to.at), scrape }).await
        }
        Some(Command::Demo { print_config: true, storage, hold, .. }) => print_demo(&storage, &hold),
        Some(Command::Demo { seed, fault, hold, storage, mut serving, with_prometheus, .. }) => {
            let programs = with_prometheus.then(Programs::find).transpose()?;
            serving.links_to_itself = with_prometheus;
            let world = build_world(seed, &fault, 0.5, false, demo::HISTORY)?;
            run_demo(world, &hold, storage, &serving, programs, &signals).await
        }
        Some(Command::Simulate { listen, seed, fault, rate, quiet, history, .. }) => {
            let world = build_world(seed, &fault, rate, quiet, history)?;
            let listeners = listen::bind(&[listen]).await.map_err(Exit::failure)?;
            for listener in &listeners {
                let address = listener.local_addr().map_err(Exit::failure)?;
                let origin = format!("http://{}", seen_from_here(address));
                let config = demo::config_text(&origin, Path::new("data"), "1m", demo::FAST);
                output::announce(format!(
                    "simulated services at http://{address}\n\
                     a configuration that reads them, with their credentials:\n\n{config}"
                ));
            }
            listen::serve(listeners, world.router(), Arc::new(WebFile::none()), signals.finish_work()).await;
            Ok(())
        }
        Some(Command::Config(ConfigCommand::Schema)) => {
            output::print(&format!("{:#}", config::schema::schema()));
            Ok(())
        }
        Some(Command::Completions { shell }) => {
            output::print(completions(shell).trim_end());
            Ok(())
        }
        Some(Command::ManPages { folder }) => clap_mangen::generate_to(Arguments::command(), &folder)
            .map_err(|error| Exit::failure(format!("{}: {error}", folder.display()))),
        None => {
            let config = load(&arguments.files)?;
            let file = Arc::new(arguments.files.config().to_owned());
            config.log_warnings(&file);
            let storage = arguments.files.storage.folder;
            run_exporter(&arguments.serving, storage, config, Some(file), &signals, |_, _| {}).await
        }
    }
}

/// The configuration file, which has to be there if none was named.
fn named(files: &Files) -> Result<&Path, Exit> {
    let file = files.config();
    if files.is_without_config() {
        return Err(Exit::usage(format!(
            "no configuration: there is no {} in this folder; give --config.file=FILE, write one with `audit-exporter init`, or try \
             `audit-exporter demo`; see --help",
            file.display()
        )));
    }
    Ok(file)
}

fn load(files: &Files) -> Result<Config, Exit> {
    let file = named(files)?;
    let mut config = config::load(file).map_err(Exit::usage)?;
    if let Some(storage) = &files.storage.folder {
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

/// The script by which a shell completes our options.
fn completions(shell: Shell) -> String {
    let script = |generator: clap_complete::Shell| {
        let mut script = Vec::new();
        clap_complete::generate(generator, &mut Arguments::command(), "audit-exporter", &mut script);
        String::from_utf8_lossy(&script).into_owned()
    };
    match shell {
        // clap_complete 4.6 writes the name of a program with a hyphen in two ways, and then finds no subcommand
        Shell::Bash => script(clap_complete::Shell::Bash).replace("audit__subcmd__exporter", "audit__exporter"),
        Shell::Zsh => script(clap_complete::Shell::Zsh),
        Shell::Fish => for_fish(&script(clap_complete::Shell::Fish)),
    }
}

/// The script for fish. Its `argparse` refuses a dot in the name of an option: there, and in what it parses, our dots are
/// underscores. It also fails at an option whose value is still to be typed, so an empty word stands at the end.
fn for_fish(script: &str) -> String {
    let dotless = " | string replace -r '^(--[a-z_-]+)\\.' '$1_'";
    let mended = |line: &str| match line.trim() {
        specs if specs.starts_with("string join") => line.replace('.', "_"),
        "set -l cmd (commandline -opc)" => line.replace("-opc", &format!("-opc{dotless}{dotless}")),
        parse if parse.starts_with("argparse ") => line.replace("-- $cmd", "-- $cmd ''"),
        "if set -q argv[1]" => line.replace("set -q argv[1]", "test -n \"$argv[1]\""),
        _ => line.to_owned(),
    };
    script.lines().map(|line| mended(line) + "\n").collect()
}

/// Whether the exporter would take these files; what is doubtful in them is printed.
fn check(files: &Files, web: &WebConfig, without_secrets: bool) -> Result<(), Exit> {
    let config = if without_secrets {
        if let Some(file) = &web.file {
            WebFile::check_without_secrets(file)
                .map_err(|error| Exit::usage(format!("{}: {error}", file.display())))?;
        }
        config::load_without_secrets(named(files)?).map_err(Exit::usage)?
    } else {
        let config = load(files)?;
        web_config(web)?;
        check_storage(&config.storage.path)?;
        config
    };
    config.warned(files.config()).for_each(|warning| output::print(&warning));
    let unseen = if without_secrets { "; files with secrets were not looked at" } else { "" };
    let doubts = if config.warnings.is_empty() { "" } else { ", but see above" };
    output::print(&format!("the configuration is good{doubts}{unseen}"));
    Ok(())
}

/// A check may run as another user than the exporter, so a folder that this user cannot use is only warned of.
fn check_storage(folder: &Path) -> Result<(), Exit> {
    match usable(folder) {
        Ok(()) => {}
        Err(why @ Unusable::Misplaced(_)) => {
            return Err(Exit::usage(format!("storage.path {}: {why}", folder.display())));
        }
        Err(why @ Unusable::Forbidden(_)) => {
            warn!(folder = %folder.display(), %why, "the user who runs this check cannot use storage.path");
        }
    }
    Ok(())
}

async fn run_verify(
    files: &Files,
    source: &str,
    from: DateTime<Utc>,
    to: Option<DateTime<Utc>>,
    format: ReportFormat,
) -> Result<(), Exit> {
    let config = load(files)?;
    if to.is_some_and(|to| to <= from) {
        return Err(Exit::usage("--to must be later than --from"));
    }
    let report = control::verify(&config, source, from, to, PROGRESS).await?;
    match format {
        ReportFormat::Text => output::print(report.to_string().trim_end()),
        ReportFormat::Json => output::print(&serde_json::to_string_pretty(&report).map_err(Exit::failure)?),
    }
    if report.differences.is_empty() { Ok(()) } else { Err(Exit::not_well()) }
}

async fn run_doctor(files: &Files, only: Option<Vec<String>>) -> Result<(), Exit> {
    let config = load(files)?;
    let names = only.unwrap_or_else(|| config.sources.iter().map(|source| source.name.to_string()).collect());
    let changed_at = files.config().metadata().and_then(|file| file.modified()).ok();
    let changed_at = changed_at.map(DateTime::from);
    let looked_at = config.sources.iter().filter(|source| names.iter().any(|name| name == source.name.as_str()));
    if let Some(how_long) = doctor::how_long(looked_at) {
        PROGRESS(&how_long);
    }
    let mut looks = futures_util::stream::iter(&names)
        .map(|name| control::doctor(&config, changed_at, name, PROGRESS))
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

async fn run_backup(files: &Files, to: &Path, signals: &Signals) -> Result<(), Exit> {
    let storage = match &files.storage.folder {
        Some(folder) => folder.clone(),
        None if files.is_without_config() => {
            return Err(Exit::usage("which ledger? give --config.file=FILE or --storage.path=FOLDER"));
        }
        None => config::load(files.config()).map_err(Exit::usage)?.storage.path,
    };
    // a stop removes the part that was made
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

async fn run_backfill(files: &Files, wanted: Wanted) -> Result<(), Exit> {
    let config = load(files)?;
    let read = control::backfill(&config, wanted, PROGRESS).await?;
    let written = output::stream(|out| read.write(out)).map_err(|error| Exit {
        code: EXIT_COULD_NOT_LOOK,
        message: format!(
            "the samples could not be written to standard output: {error}; what was read is kept, and the same command \
             writes it again"
        ),
    })?;
    let Written { events, series, samples } = written;
    PROGRESS(&format!("{events} events written, as {samples} samples of {series} series"));
    Ok(read.finish(PROGRESS)?)
}

/// Progress goes to standard error, so that standard output is the report alone.
const PROGRESS: &Say = &output::tell;

impl From<CheckError> for Exit {
    fn from(error: CheckError) -> Self {
        let code = match error {
            CheckError::Usage(_) => EXIT_USAGE,
            CheckError::Failed(_) => EXIT_COULD_NOT_LOOK,
        };
        Self { code, message: error.to_string() }
    }
}

fn web_config(web: &WebConfig) -> Result<WebFile, Exit> {
    match &web.file {
        Some(file) => WebFile::open(file).map_err(|error| Exit::usage(format!("{}: {error}", file.display()))),
        None => Ok(WebFile::none()),
    }
}

fn build_world(seed: u64, faults: &[String], rate: f64, quiet: bool, history: Duration) -> Result<World, Exit> {
    let mut switched = Faults::default();
    for fault in faults {
        switched.set(fault).map_err(Exit::usage)?;
    }
    Ok(World::new(Options {
        seed,
        clock: Clock::machine(),
        history,
        day: Duration::from_mins(10),
        rate,
        faults: switched,
        quiet,
    }))
}

/// The configuration of the demo, for who runs its parts by hand.
fn print_demo(storage: &Storage, hold: &str) -> Result<(), Exit> {
    let storage = storage.folder.as_deref().unwrap_or(Path::new("data"));
    let origin = format!("http://{SIMULATOR}");
    demo::config(&origin, storage, hold).map_err(Exit::usage)?;
    let config = demo::config_text(&origin, storage, hold, demo::FAST);
    output::print(&format!("# the services: audit-exporter simulate --listen={SIMULATOR}\n{}", config.trim_end()));
    Ok(())
}

/// The simulated services on a free port of loopback, the exporter on the address asked for, and what watches it.
async fn run_demo(
    world: World,
    hold: &str,
    mut storage: Storage,
    serving: &Serving,
    programs: Option<Programs>,
    signals: &Signals,
) -> Result<(), Exit> {
    world.forget_after(demo::KEPT);
    let loopback: ListenAddress = "127.0.0.1:0".parse().map_err(Exit::failure)?;
    let services = listen::bind(&[loopback]).await.map_err(Exit::failure)?;
    let address = services[0].local_addr().map_err(Exit::failure)?;
    tokio::spawn(listen::serve(services, world.router(), Arc::new(WebFile::none()), signals.stop.clone()));

    let own = match storage.folder {
        Some(_) => None,
        None => Some(demo::Folder::new().map_err(|error| Exit::failure(format!("a folder for the demo: {error}")))?),
    };
    if let Some(own) = &own {
        signals.remove_at_end(own.path());
    }
    let given = storage.folder.take();
    let storage = given.as_deref().or(own.as_ref().map(demo::Folder::path)).unwrap_or(Path::new("."));
    let config = demo::config(&format!("http://{address}"), storage, hold).map_err(Exit::usage)?;
    let folder = std::path::absolute(storage.join(monitoring::FOLDER)).map_err(Exit::failure)?;
    let mut watched = None;
    let outcome = run_exporter(serving, None, config, None, signals, |page, exporter| {
        output::announce(format!(
            "simulated services at http://{address}\nstatus page at        http://{page}/\nmetrics at            http://{page}/metrics"
        ));
        let status = exporter.status();
        if let Some(held) = status.held {
            output::announce(held.told(status.now));
        }
        let started = programs.map(|programs| monitoring::run(programs, folder, page, signals.clone()));
        watched = started.map(tokio::spawn);
    })
    .await;
    let watched = match watched {
        Some(watched) => {
            signals.stop.cancel();
            watched.await.map_err(Exit::failure)?.map_err(Exit::failure)
        }
        None => Ok(()),
    };
    outcome.and(watched)
}

async fn run_exporter(
    serving: &Serving,
    storage: Option<PathBuf>,
    config: Config,
    config_file: Option<Arc<PathBuf>>,
    signals: &Signals,
    started: impl FnOnce(SocketAddr, &Exporter),
) -> Result<(), Exit> {
    let web = Arc::new(web_config(&serving.web)?);
    let listeners = if serving.systemd_socket {
        listen::take_handed().map_err(Exit::usage)?
    } else {
        listen::bind(&serving.listen).await.map_err(Exit::failure)?
    };
    let stop = signals.finish_work();
    tell_what_starts(&config, config_file.as_deref());
    let pages = Pages { exporter: Arc::default(), config_file, storage };
    if pages.config_file.is_some() {
        reload_on_hangup(pages.clone())?;
    }
    let address = listeners.first().and_then(|listener| listener.local_addr().ok());
    let own_url = || format!("http://{}", seen_from_here(address?)).parse().ok();
    let own_url = serving.links_to_itself.then(own_url).flatten();
    let external_url = serving.external_url.clone().or(own_url);
    for listener in &listeners {
        let address = listener.local_addr().map_err(Exit::failure)?;
        info!(%address, tls = web.tls(), "serving");
    }
    let router = protect(router(pages.clone()), Arc::clone(&web));
    let connections = listen::connections_allowed(config.sources.len());
    let served = tokio::spawn(listen::serve_at_most(connections, listeners, router, web, stop.clone()));

    let storage = config.storage.path.clone();
    let manager = Manager::from_env();
    let exporter = tokio::select! {
        exporter = start(config, external_url.as_ref(), &manager) => exporter?,
        () = stop.cancelled() => return Ok(()),
    };
    let _ = pages.exporter.set(Arc::clone(&exporter));
    if let Some(address) = address {
        started(seen_from_here(address), &exporter);
    }
    let control = match Control::open(&storage) {
        Ok(control) => Some(tokio::spawn(control.serve(Arc::clone(&exporter), stop.clone()))),
        Err(error) => {
            warn!(folder = %storage.display(), %error, "no control socket: verify, doctor, backup and backfill cannot ask this process");
            None
        }
    };
    info!("ready");
    let told = tokio::spawn(manager.tell(Arc::clone(&exporter), stop.clone()));
    served.await.map_err(Exit::failure)?;
    info!("stopping");
    exporter.stop().await;
    if let Some(control) = control {
        let _ = control.await;
    }
    let _ = told.await;
    info!("stopped");
    Ok(())
}

/// Loads the ledger and starts polling. A disk that is full or read-only for now is waited for;
/// until then the program serves, and says that it is not ready.
async fn start(config: Config, external_url: Option<&ExternalUrl>, manager: &Manager) -> Result<Arc<Exporter>, Exit> {
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
        manager.tell_not_ready(&why);
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
    for system in SYSTEMS.map(|system| system.name) {
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

fn reload_on_hangup(pages: Pages) -> Result<(), Exit> {
    let mut hangup = signal(SignalKind::hangup()).map_err(Exit::failure)?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            // the outcome is logged there
            let _ = pages.reload().await;
        }
    });
    Ok(())
}
