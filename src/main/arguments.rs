//! The command line.

use std::path::PathBuf;

use audit_exporter::clock::Clock;
use audit_exporter::config;
use audit_exporter::web::ExternalUrl;
use audit_exporter::web::listen::ListenAddress;
use chrono::{DateTime, Utc};
use clap::{Parser, Subcommand, ValueEnum};

/// Prometheus exporter for the audit logs of Canvas LMS, Informatica IICS, HID `ActivID`, Losant and
/// Index Exchange: every event counted exactly once.
#[derive(Parser)]
#[command(name = "audit-exporter", disable_version_flag = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    /// The configuration file (YAML).
    #[arg(long = "config.file", value_name = "FILE", global = true)]
    pub(crate) config_file: Option<PathBuf>,

    /// Address to serve on; may be given several times. Without a host: all interfaces.
    #[arg(long = "web.listen-address", value_name = "ADDRESS", default_value = ":10812", global = true)]
    pub(crate) listen: Vec<ListenAddress>,

    /// Serve on the sockets that systemd hands over, instead of --web.listen-address.
    #[arg(long = "web.systemd-socket", conflicts_with = "listen", global = true)]
    pub(crate) systemd_socket: bool,

    /// File with TLS and basic authentication settings (exporter-toolkit format).
    #[arg(long = "web.config.file", value_name = "FILE", global = true)]
    pub(crate) web_config: Option<PathBuf>,

    /// Where people reach this exporter, for links in alerts and dashboards: an http or https URL.
    #[arg(long = "web.external-url", value_name = "URL", global = true)]
    pub(crate) external_url: Option<ExternalUrl>,

    /// Folder of the ledger; overrides storage.path of the configuration.
    #[arg(long = "storage.path", value_name = "FOLDER", global = true)]
    pub(crate) storage: Option<PathBuf>,

    /// The least severe messages to log.
    #[arg(long = "log.level", value_name = "LEVEL", default_value = "info", global = true)]
    pub(crate) log_level: LogLevel,

    /// How to write log lines.
    #[arg(long = "log.format", value_name = "FORMAT", default_value = "logfmt", global = true)]
    pub(crate) log_format: LogFormat,

    /// Print the version and exit.
    #[arg(long)]
    pub(crate) version: bool,
}

#[derive(Subcommand)]
pub(crate) enum Command {
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
        #[arg(long, value_name = "TIME", value_parser = parse_moment)]
        from: DateTime<Utc>,
        /// End, likewise; absent: as far as the history is counted.
        #[arg(long, value_name = "TIME", value_parser = parse_moment)]
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
    /// Whether the program runs until it is stopped.
    pub(crate) fn goes_on(&self) -> bool {
        !self.version && matches!(self.command, None | Some(Command::Demo { .. } | Command::Simulate { .. }))
    }
}

/// A time, or how long ago it was.
fn parse_moment(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Ok(at.to_utc());
    }
    let ago = config::parse_duration(text).and_then(|ago| chrono::TimeDelta::from_std(ago).ok());
    let at = ago.and_then(|ago| Clock::machine().now().checked_sub_signed(ago));
    at.ok_or_else(|| "expected a time such as 2026-11-22T03:00:00Z, or how long ago, such as 2h or 1d12h".to_owned())
}
