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

    /// Address to listen on; can be given several times. Without a host: all interfaces.
    #[arg(long = "web.listen-address", value_name = "ADDRESS", default_value = ":10812", global = true)]
    pub(crate) listen: Vec<ListenAddress>,

    /// File with TLS and basic authentication settings (exporter-toolkit format).
    #[arg(long = "web.config.file", value_name = "FILE", global = true)]
    pub(crate) web_config: Option<PathBuf>,

    /// The http or https URL under which people reach this exporter, for links in alerts and dashboards.
    #[arg(long = "web.external-url", value_name = "URL", global = true)]
    pub(crate) external_url: Option<ExternalUrl>,

    /// Folder of the ledger; overrides storage.path in the configuration.
    #[arg(long = "storage.path", value_name = "FOLDER", global = true)]
    pub(crate) storage: Option<PathBuf>,

    /// The lowest level to log.
    #[arg(long = "log.level", value_name = "LEVEL", default_value = "info", global = true)]
    pub(crate) log_level: LogLevel,

    /// The format of log lines.
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
    /// Read a part of a source's history again and compare it with what was counted.
    ///
    /// If an exporter runs on the same storage, it does the reading, within its rate limit; else this command does.
    /// Exit status: 0 no difference, 1 differences, 2 wrong arguments, 3 it could not be done; 129, 130 or 143 if
    /// SIGHUP, SIGINT or SIGTERM ended it.
    Verify {
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
    },
    /// Check every source: whether it can be reached, accepts the credential and may be read, what
    /// would be counted, its clock, its budget.
    ///
    /// If an exporter runs on the same storage, it does the reading; else this command does. Counts nothing. Checks
    /// several sources at the same time, each within its own rate limit.
    /// Exit status: 0 all is well, 1 something is wrong, 2 wrong arguments, 3 it could not be done; 129, 130 or 143 if
    /// SIGHUP, SIGINT or SIGTERM ended it.
    Doctor {
        /// Check only this source.
        #[arg(long, value_name = "NAME")]
        source: Option<String>,
    },
    /// Make a consistent copy of the ledger, also while the exporter runs.
    ///
    /// Needs --config.file or --storage.path. The copy is verified before it gets its name. docs/backup.md says how to
    /// restore it.
    /// Exit status: 0 done, 2 wrong arguments, 3 it could not be done.
    Backup {
        /// The file to create. It must not exist yet.
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
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
        #[arg(long, value_name = "DURATION", default_value = "5s")]
        hold: String,
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
        /// Mean events per second and service.
        #[arg(long, default_value_t = 0.5)]
        rate: f64,
        /// No traffic except what you inject with POST /simulator/inject.
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
    at.ok_or_else(|| {
        "expected a time such as 2026-11-22T03:00:00Z, or a time span before now, such as 2h or 1d12h".to_owned()
    })
}
