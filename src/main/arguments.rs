//! The command line: all options, and which of them each subcommand accepts.
//!
//! Promises: an option that a subcommand would ignore is an error. Options may stand before the subcommand, too.
//!
//! Leaves to others: what the subcommands do (`main.rs`).

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use audit_exporter::clock::Clock;
use audit_exporter::config;
use audit_exporter::web::ExternalUrl;
use audit_exporter::web::listen::ListenAddress;
use audit_exporter::window::floor;
use chrono::{DateTime, Utc};
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

/// The configuration file where none is named.
pub(crate) const CONFIG_FILE: &str = "audit-exporter.yml";

/// Prometheus exporter for the audit logs of Canvas LMS, Informatica IICS, HID ActivID, Losant and
/// Index Exchange: every event counted exactly once.
#[derive(Parser)]
#[command(name = "audit-exporter", disable_version_flag = true, args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    #[command(flatten)]
    pub(crate) files: Files,

    #[command(flatten)]
    pub(crate) serving: Serving,

    #[command(flatten)]
    pub(crate) logging: Logging,

    /// Print the version and exit.
    #[arg(long)]
    pub(crate) version: bool,
}

/// What is counted, and where.
#[derive(Args)]
pub(crate) struct Files {
    /// The configuration file (YAML) [default: audit-exporter.yml in the working folder].
    #[arg(long = "config.file", value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) storage: Storage,
}

/// Where the ledger is.
#[derive(Args)]
pub(crate) struct Storage {
    /// Folder that holds the ledger; overrides storage.path in the configuration.
    #[arg(long = "storage.path", value_name = "FOLDER")]
    pub(crate) folder: Option<PathBuf>,
}

/// How the program serves.
#[derive(Args)]
pub(crate) struct Serving {
    /// Address to listen on; can be given several times. Without a host: all interfaces.
    #[arg(long = "web.listen-address", value_name = "ADDRESS", default_value = ":10812")]
    pub(crate) listen: Vec<ListenAddress>,

    /// Serve on the sockets that systemd passes, instead of --web.listen-address.
    #[arg(long = "web.systemd-socket", conflicts_with = "listen")]
    pub(crate) systemd_socket: bool,

    #[command(flatten)]
    pub(crate) web: WebConfig,

    /// The http or https URL at which people reach this exporter, for links in alerts and dashboards.
    #[arg(long = "web.external-url", value_name = "URL")]
    pub(crate) external_url: Option<ExternalUrl>,

    /// Links lead to the address that it serves on, unless another one is given.
    #[arg(skip)]
    pub(crate) links_to_itself: bool,
}

/// The web configuration.
#[derive(Args)]
pub(crate) struct WebConfig {
    /// File with TLS and basic authentication settings (exporter-toolkit format).
    #[arg(long = "web.config.file", value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

/// How the program logs.
#[derive(Args, Clone, Copy)]
pub(crate) struct Logging {
    /// The lowest level to log.
    #[arg(long = "log.level", value_name = "LEVEL", default_value = "info")]
    pub(crate) log_level: LogLevel,

    /// The format of log lines.
    #[arg(long = "log.format", value_name = "FORMAT", default_value = "logfmt")]
    pub(crate) log_format: LogFormat,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Write a first configuration: asks for one source after the other, and tries each credential at once.
    ///
    /// Needs a terminal. Writes the configuration, and each secret to a file of its own that only you can read; overwrites
    /// no file, and writes nothing before the last answer. Ends with what check and doctor say.
    /// Exit status: 0 all is well, 1 something is wrong or you gave up, 2 wrong arguments or a file is in the way; 129, 130
    /// or 143 if SIGHUP, SIGINT (Ctrl-C) or SIGTERM ended it.
    Init {
        /// The configuration file to create [default: audit-exporter.yml in the working folder].
        #[arg(long = "config.file", value_name = "FILE")]
        config: Option<PathBuf>,
        /// The folder for the files with secrets, created if missing [default: secrets beside the configuration file].
        #[arg(long = "secrets.path", value_name = "FOLDER")]
        secrets: Option<PathBuf>,
        /// For the service of the deb or rpm (run as root): writes /etc/audit-exporter/audit-exporter.yml, and the secrets
        /// where systemd takes them from.
        #[arg(long, conflicts_with_all = ["config", "secrets"])]
        systemd: bool,
        #[command(flatten)]
        logging: Logging,
    },
    /// Validate the configuration file, without using the network. Exit status: 0 good, 2 problems.
    Check {
        /// Skip the files with secrets and everything that depends on the target machine, for use in a repository or a
        /// pipeline.
        #[arg(long)]
        without_secrets: bool,
        #[command(flatten)]
        files: Files,
        #[command(flatten)]
        web: WebConfig,
        #[command(flatten)]
        logging: Logging,
    },
    /// Read a part of a source's history again and compare it with what was counted.
    ///
    /// If an exporter is running on the same storage, it does the reading, within its rate limit. Otherwise this command does.
    /// Exit status: 0 no difference, 1 differences, 2 wrong arguments or a configuration with problems, 3 it could not be
    /// done; 129, 130 or 143 if SIGHUP, SIGINT or SIGTERM ended it.
    Verify {
        #[command(flatten)]
        files: Files,
        /// Name of the source.
        #[arg(long, value_name = "NAME")]
        source: String,
        /// Start: a time (2026-11-22T03:00:00Z), or a time span before now (2h).
        #[arg(long, value_name = "TIME", value_parser = parse_moment)]
        from: DateTime<Utc>,
        /// End, in the same form; without it: everything counted so far.
        #[arg(long, value_name = "TIME", value_parser = parse_moment)]
        to: Option<DateTime<Utc>>,
        /// The format of the output.
        #[arg(long, value_name = "FORMAT", default_value = "text")]
        format: ReportFormat,
        #[command(flatten)]
        logging: Logging,
    },
    /// Check each source: can it be reached, is the credential accepted, may it read the log; also what would be counted,
    /// the service's clock and the request budget.
    ///
    /// If an exporter is running on the same storage, it does the reading. Otherwise this command does. It counts nothing. It
    /// checks several sources at the same time, each within its own rate limit.
    /// Exit status: 0 no problems, 1 problems found, 2 wrong arguments or a configuration with problems, 3 it could not be
    /// done; 129, 130 or 143 if SIGHUP, SIGINT or SIGTERM ended it.
    Doctor {
        #[command(flatten)]
        files: Files,
        /// Check only this source.
        #[arg(long, value_name = "NAME")]
        source: Option<String>,
        #[command(flatten)]
        logging: Logging,
    },
    /// Make a consistent copy of the ledger, even while the exporter is running.
    ///
    /// The ledger is the one in --storage.path or, without that option, in the storage.path of the configuration. The
    /// copy is verified before it gets its name. docs/backup.md says how to restore it.
    /// Exit status: 0 done, 2 wrong arguments or a configuration with problems, 3 it could not be done.
    Backup {
        #[command(flatten)]
        files: Files,
        /// The file to create. It must not exist yet.
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
        #[command(flatten)]
        logging: Logging,
    },
    /// Write the history from before a source was counted, for `promtool tsdb create-blocks-from openmetrics`.
    ///
    /// Reads the source's log and prints one sample a minute for each series. If an exporter runs on the same storage, it
    /// does the reading, within its rate limit; else this command does. Nothing is counted. If it is interrupted, the same
    /// command continues. docs/backfill.md says what to do with the output.
    /// Exit status: 0 done, 2 wrong arguments or a configuration with problems, 3 it could not be done; 129, 130 or 143 if
    /// SIGHUP, SIGINT or SIGTERM ended it.
    Backfill {
        #[command(flatten)]
        files: Files,
        /// Name of the source.
        #[arg(long, value_name = "NAME")]
        source: String,
        /// Start: a time (2026-11-22T03:00:00Z), or a time span before now (30d).
        #[arg(long, value_name = "TIME", value_parser = parse_written_moment)]
        from: WrittenMoment,
        /// End, in the same form. Default, and the latest allowed: the moment from which the exporter counts this source.
        #[arg(long, value_name = "TIME", value_parser = parse_written_moment)]
        to: Option<WrittenMoment>,
        /// The label `job` of the scrapes: its `job_name` in Prometheus's configuration.
        #[arg(long, value_name = "JOB", value_parser = NonEmptyStringValueParser::new())]
        job: String,
        /// The label `instance` of the scrapes: the target in Prometheus's configuration, with its port.
        #[arg(long, value_name = "INSTANCE", value_parser = NonEmptyStringValueParser::new())]
        instance: String,
        #[command(flatten)]
        logging: Logging,
    },
    /// Run simulated services for all five systems on loopback, and an exporter that polls them.
    Demo {
        /// Seed of the simulated traffic.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// A fault of a simulated service, as SERVICE:SWITCH=VALUE; can be given several times.
        #[arg(long, value_name = "FAULT")]
        fault: Vec<String>,
        /// How long a new series is served as 0.
        #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_hold)]
        hold: String,
        /// Print the configuration of the demo and exit.
        #[arg(long)]
        print_config: bool,
        /// Also start the installed Prometheus and Alertmanager, with the shipped rules and routes, on free ports of
        /// loopback, and write provisioning files for Grafana.
        #[arg(long, conflicts_with_all = ["print_config", "file", "systemd_socket"])]
        with_prometheus: bool,
        #[command(flatten)]
        storage: Storage,
        #[command(flatten)]
        serving: Serving,
        #[command(flatten)]
        logging: Logging,
    },
    /// Run only the simulated services.
    Simulate {
        /// Address to listen on.
        #[arg(long, value_name = "ADDRESS")]
        listen: ListenAddress,
        /// Seed of the simulated traffic.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// A fault, as SERVICE:SWITCH=VALUE; can be given several times.
        #[arg(long, value_name = "FAULT")]
        fault: Vec<String>,
        /// Average number of events per second for each service.
        #[arg(long, default_value_t = 0.5)]
        rate: f64,
        /// No traffic except what you inject with POST /simulator/inject.
        #[arg(long)]
        quiet: bool,
        /// How far back the simulated history reaches at the start.
        #[arg(long, value_name = "DURATION", default_value = "2h", value_parser = parse_span)]
        history: Duration,
        #[command(flatten)]
        logging: Logging,
    },
    /// Print information about the configuration file, for editors and scripts.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write a manual page for the program and each subcommand.
    #[command(hide = true)]
    ManPages {
        /// An existing folder.
        folder: PathBuf,
    },
}

#[derive(Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the JSON Schema of the configuration file, for editors.
    Schema,
}

/// A shell that can be told how to complete.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum LogFormat {
    Logfmt,
    Json,
}

impl Arguments {
    /// The arguments of this process. Ends it where they are wrong, or ask for nothing but help.
    pub(crate) fn of_process() -> Result<Self, clap::Error> {
        Self::try_parse_from(subcommand_first(std::env::args_os().collect()))
    }

    /// Whether the program runs until it is stopped.
    pub(crate) fn goes_on(&self) -> bool {
        !self.version
            && matches!(self.command, None | Some(Command::Demo { print_config: false, .. } | Command::Simulate { .. }))
    }

    /// How to log. Commands that only print something have no options for it.
    pub(crate) fn logging(&self) -> Logging {
        match &self.command {
            Some(
                Command::Init { logging, .. }
                | Command::Check { logging, .. }
                | Command::Verify { logging, .. }
                | Command::Doctor { logging, .. }
                | Command::Backup { logging, .. }
                | Command::Backfill { logging, .. }
                | Command::Demo { logging, .. }
                | Command::Simulate { logging, .. },
            ) => *logging,
            Some(Command::Config(_) | Command::Completions { .. } | Command::ManPages { .. }) | None => self.logging,
        }
    }
}

impl Files {
    /// This configuration file, and the ledger that it names.
    pub(crate) fn of(config: PathBuf) -> Self {
        Self { config: Some(config), storage: Storage { folder: None } }
    }

    /// The configuration file: the one that was named, or the usual one.
    pub(crate) fn config(&self) -> &Path {
        self.config.as_deref().unwrap_or(Path::new(CONFIG_FILE))
    }

    /// Whether nobody named a file and the usual one is not there.
    pub(crate) fn is_without_config(&self) -> bool {
        self.config.is_none() && !Path::new(CONFIG_FILE).exists()
    }
}

/// The same arguments with the subcommand before its options, as clap wants them: the options of a subcommand are its own,
/// so that it refuses those that it does not obey.
fn subcommand_first(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let command = Arguments::command();
    let all = || std::iter::once(&command).chain(command.get_subcommands()).flat_map(clap::Command::get_arguments);
    let is_flag = |name: &str| {
        let flags = all().filter(|argument| !argument.get_action().takes_values());
        ["help", "h"].into_iter().chain(flags.filter_map(clap::Arg::get_long)).any(|flag| flag == name)
    };
    let mut at = 1;
    while let Some(argument) = arguments.get(at).and_then(|argument| argument.to_str()) {
        if !argument.starts_with('-') {
            arguments[1..=at].rotate_right(1);
            break;
        }
        let is_alone = argument.contains('=') || is_flag(argument.trim_start_matches('-'));
        at += if is_alone { 1 } else { 2 };
    }
    arguments
}

/// A time, or how long ago it was.
fn parse_moment(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Ok(at.to_utc());
    }
    let ago = config::parse_duration(text).and_then(|ago| chrono::TimeDelta::from_std(ago).ok());
    let at = ago.and_then(|ago| Clock::machine().now().checked_sub_signed(ago));
    at.ok_or_else(|| {
        "expected a time such as 2026-11-22T03:00:00Z, or a time span before now, such as 2h or 1d12h".to_owned()
    })
}

/// A time as it was written, and which it is.
#[derive(Clone, Debug)]
pub(crate) struct WrittenMoment {
    pub(crate) text: String,
    pub(crate) at: DateTime<Utc>,
}

/// The same as [`parse_moment`], but a time span ends at a whole second.
fn parse_written_moment(text: &str) -> Result<WrittenMoment, String> {
    let mut at = parse_moment(text)?;
    if DateTime::parse_from_rfc3339(text).is_err() {
        at = floor(at, Duration::from_secs(1));
    }
    Ok(WrittenMoment { text: text.to_owned(), at })
}

/// It becomes a value of the demo's configuration.
fn parse_hold(text: &str) -> Result<String, String> {
    if text == "0" { Ok(text.to_owned()) } else { parse_span(text).map(|_| text.to_owned()) }
}

fn parse_span(text: &str) -> Result<Duration, String> {
    config::parse_duration(text).ok_or_else(|| "expected a time span, such as 2h or 1d12h".to_owned())
}

#[cfg(test)]
mod tests {

    use super::*;

    fn parsed(line: &str) -> Result<Arguments, String> {
        let arguments = std::iter::once("audit-exporter").chain(line.split_whitespace()).map(OsString::from).collect();
        Arguments::try_parse_from(subcommand_first(arguments)).map_err(|error| error.to_string())
    }

    #[test]
    fn the_definition_is_one_that_clap_accepts() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn options_may_stand_on_both_sides_of_the_subcommand() {
        for line in [
            "check --config.file=check --log.level=debug",
            "--config.file=check check --log.level=debug",
            "--config.file check --log.level debug check",
            "--log.level=debug check --config.file check",
            "--without-secrets check --config.file=check --log.level=debug",
            "--log.level debug --without-secrets check --config.file=check",
        ] {
            let Ok(Arguments { command: Some(Command::Check { files, logging, .. }), .. }) = parsed(line) else {
                panic!("{line}");
            };
            assert_eq!(files.config(), Path::new("check"), "{line}");
            assert!(matches!(logging.log_level, LogLevel::Debug), "{line}");
        }
        let exporter = parsed("--config.file check --web.listen-address=:1").unwrap();
        assert!(exporter.command.is_none() && exporter.files.config() == Path::new("check"));
    }

    #[test]
    fn an_option_that_a_subcommand_would_ignore_is_refused_wherever_it_stands() {
        for (command, refused) in [
            (
                "simulate --listen=:1",
                &["--config.file=x", "--web.config.file=x", "--storage.path=x", "--web.listen-address=:1"][..],
            ),
            ("demo", &["--config.file=x"]),
            ("check", &["--web.listen-address=:1", "--web.external-url=http://x"]),
            ("doctor", &["--web.config.file=x", "--web.listen-address=:1", "--web.external-url=http://x"]),
            ("verify --source=a --from=1h", &["--web.config.file=x", "--web.external-url=http://x"]),
            ("init", &["--storage.path=x", "--web.config.file=x", "--web.listen-address=:1"]),
            ("backup --to=x", &["--web.config.file=x", "--web.external-url=http://x"]),
            ("backfill --source=a --from=1d --job=j --instance=i", &["--web.config.file=x", "--format=json"]),
            ("completions bash", &["--config.file=x", "--log.level=debug"]),
            ("config schema", &["--config.file=x", "--log.level=debug"]),
        ] {
            assert!(parsed(command).is_ok(), "{command}");
            for option in refused {
                for line in [format!("{command} {option}"), format!("{option} {command}")] {
                    let error = parsed(&line).err().unwrap_or_else(|| panic!("{line} is accepted"));
                    assert!(error.contains("unexpected argument"), "{line}: {error}");
                }
            }
        }
    }
}
