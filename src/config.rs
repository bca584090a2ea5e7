//! The config file: YAML → [`Config`]. Parsing is validation.
//!
//! Promises:
//! - a [`Config`] that exists is complete: defaults are filled in, names are unique, URLs are
//!   usable and not plain `http://` by accident, and every file it names could be read;
//! - what is accepted but probably not meant is a warning, with its place, too;
//! - one run finds every problem, each with the line and column of the key or value in question.
//!   Only a text that is no YAML ends at its first problem;
//! - no message quotes a value. It might be a secret, even under the wrong key, and the position
//!   shows it anyway. Unknown keys and valid source names are quoted;
//! - a file with a secret that every user of the machine can read is warned of;
//! - reading is bounded by [`FILE_BYTES_MAX`] and the limits in `config/tree.rs`.
//!
//! Leaves to others: what certificates and keys look like (`pem.rs`), whether a service accepts what is
//! configured, and what to do when a reload finds a changed [`SourceConfig`].

mod read;
mod secret;
mod tree;
mod units;

use std::fmt;
use std::io::{self, Read};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderName;
use url::Url;

pub(crate) use self::read::{SUBSCRIPTIONS, is_loopback};
pub use self::secret::{Form, SECRET_BYTES_MAX, Secret, SecretError};
pub(crate) use self::secret::{mode_if_open_to_all, warn_of_open_files};
pub use self::units::{duration_text, parse_duration};
use crate::event::{SourceName, System};
use crate::proxy::NoProxy;

/// Largest config file, in bytes.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Largest file with certificates or a key, in bytes; a bundle of every public authority takes about 250 kB.
pub(crate) const PEM_BYTES_MAX: u64 = 4 << 20;

/// What stands in a file that has no more than `most` bytes, a number of MiB.
pub(crate) fn read_at_most(most: u64, path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    std::fs::File::open(path)?.take(most + 1).read_to_end(&mut content)?;
    if content.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {} MiB", most >> 20)));
    }
    Ok(content)
}

/// Everything the config file says.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What concerns all sources.
    pub global: Global,
    /// Where the state is kept.
    pub storage: Storage,
    /// At least one; in the order of the file, list by list.
    pub sources: Vec<SourceConfig>,
    /// What is accepted and probably not meant, sorted by position.
    pub warnings: Vec<Problem>,
}

impl Config {
    /// The warnings as `FILE:LINE:COLUMN: what is probably not meant`; `path` is where this comes from.
    pub fn warned(&self, path: &Path) -> impl Iterator<Item = String> {
        let show =
            move |Problem { line, column, message }: &Problem| format!("{}:{line}:{column}: {message}", path.display());
        self.warnings.iter().map(show)
    }

    /// Logs the warnings.
    pub fn log_warnings(&self, path: &Path) {
        self.warned(path)
            .for_each(|warning| tracing::warn!(%warning, "the configuration says what is probably not meant"));
    }

    /// Warns of each file with a secret that every user of this machine can read: `path`, where this
    /// comes from, is one if a secret stands in it.
    fn warn_of_open_files(&self, path: &Path) {
        let secrets =
            self.sources.iter().flat_map(|source| std::iter::once(source.secret()).chain(source.common.secrets()));
        let secrets = secrets.map(|secret| secret.path().unwrap_or(path));
        let keys = self.sources.iter().filter_map(|source| source.common.tls.as_ref()?.key_file.as_deref());
        warn_of_open_files(secrets.chain(keys));
    }
}

/// Settings for all sources. `global.poll_interval` is already part of each source.
#[derive(Clone, Debug, PartialEq)]
pub struct Global {
    /// How long a new series is served as 0 at least, so that `increase()` sees its first event.
    pub hold_new_series: Duration,
    /// Whether `OpenMetrics` text carries `_created` lines.
    pub openmetrics_created: bool,
}

impl Default for Global {
    fn default() -> Self {
        Self { hold_new_series: MINUTE, openmetrics_created: false }
    }
}

/// The embedded store.
#[derive(Clone, Debug, PartialEq)]
pub struct Storage {
    /// Its folder, already joined to the config file's.
    pub path: PathBuf,
}

/// One source: what the frame needs, and what its service needs.
///
/// Equal means that a reload need not disturb it. Files are compared by path, not by content.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceConfig {
    /// Unique over all systems.
    pub name: SourceName,
    /// The settings every source has.
    pub common: Common,
    /// The settings of its service.
    pub service: Service,
}

impl SourceConfig {
    /// The list it stands in.
    pub fn system(&self) -> System {
        match self.service {
            Service::Canvas(_) => System::Canvas,
            Service::Informatica(_) => System::Informatica,
            Service::Activid(_) => System::Activid,
            Service::Losant(_) => System::Losant,
            Service::IndexExchange(_) => System::IndexExchange,
        }
    }

    /// Where its requests go, as far as the configuration says.
    pub(crate) fn addresses(&self) -> Vec<&Url> {
        match &self.service {
            Service::Canvas(service) => vec![&service.base_url],
            Service::Informatica(service) => std::iter::once(&service.login_url).chain(&service.base_url).collect(),
            Service::Activid(service) => vec![&service.token_url, &service.base_url],
            Service::Losant(service) => vec![&service.base_url],
            Service::IndexExchange(service) => vec![&service.token_url, &service.base_url],
        }
    }

    /// Its credential.
    pub fn secret(&self) -> &Secret {
        match &self.service {
            Service::Canvas(service) => &service.access_token,
            Service::Informatica(service) => &service.password,
            Service::Activid(service) => &service.client_secret,
            Service::Losant(service) => &service.api_token,
            Service::IndexExchange(service) => &service.client_key,
        }
    }
}

/// The settings every source has.
#[derive(Clone, Debug, PartialEq)]
pub struct Common {
    /// From the start of one poll to the start of the next. Above zero.
    pub poll_interval: Duration,
    /// How far each poll reads back before the watermark, for late events.
    /// At least [`OVERLAP_MIN`].
    pub overlap: Duration,
    /// How much history a source without a checkpoint counts.
    pub initial_lookback: Duration,
    /// The longest outage that is read back. Above zero.
    pub max_catch_up: Duration,
    /// The budget of requests.
    pub rate_limit: RateLimit,
    /// The deadline of one request. Above zero.
    pub timeout: Duration,
    /// The deadline of one poll, waiting for the budget included. Above zero.
    pub poll_timeout: Duration,
    /// The largest response body, decompressed. Above zero.
    pub max_response_bytes: u64,
    /// How many events to ask for per page. `None`: what suits the service.
    pub page_size: Option<NonZeroU32>,
    /// Actors whose events are not counted, in lower case.
    pub ignore_actors: Vec<String>,
    /// TLS beyond the usual roots.
    pub tls: Option<Tls>,
    /// The HTTP proxy.
    pub proxy_url: Option<Url>,
    /// Who we are at the proxy; given together with `proxy_password`, and with a proxy.
    pub proxy_username: Option<String>,
    /// The password of `proxy_username`.
    pub proxy_password: Option<Secret>,
    /// Whether the proxies are those of the environment; not together with `proxy_url`.
    pub proxy_from_environment: bool,
    /// Hosts that are reached without `proxy_url`.
    pub no_proxy: Option<NoProxy>,
    /// Further headers of every request, none twice and none that the program sets itself.
    pub headers: Vec<Header>,
    /// What requests introduce themselves as, instead of this program.
    pub user_agent: Option<String>,
    /// Whether `http://` is accepted for more than loopback.
    pub allow_plain_http: bool,
}

/// A header that every request of a source carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub name: HeaderName,
    /// Its value, which a header can carry.
    pub value: Secret,
}

/// A token bucket: in any time t at most `burst + requests · t / per` requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// How many requests, on the long run, in each `per`.
    pub requests: NonZeroU32,
    /// `per / requests` is at least a microsecond.
    pub per: Duration,
    /// How many at once.
    pub burst: NonZeroU32,
}

/// TLS settings of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM certificates that are trusted.
    pub ca_file: Option<PathBuf>,
    /// PEM certificate shown to the service; given together with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// PEM key of `cert_file`.
    pub key_file: Option<PathBuf>,
    /// The name the service's certificate must have, where it is not the URL's host.
    pub server_name: Option<String>,
}

/// What only one kind of service needs.
#[derive(Clone, Debug, PartialEq)]
pub enum Service {
    /// A source of the list `canvas`.
    Canvas(Canvas),
    /// A source of the list `informatica`.
    Informatica(Informatica),
    /// A source of the list `activid`.
    Activid(Activid),
    /// A source of the list `losant`.
    Losant(Losant),
    /// A source of the list `index_exchange`.
    IndexExchange(IndexExchange),
}

/// Canvas LMS. At least one of the three scopes is not empty; ids fit into one path segment.
#[derive(Clone, Debug, PartialEq)]
pub struct Canvas {
    /// The institution's host.
    pub base_url: Url,
    /// The bearer token.
    pub access_token: Secret,
    /// Root accounts, by id.
    pub accounts: Vec<String>,
    /// Users, by id.
    pub users: Vec<String>,
    /// Logins, by id.
    pub pseudonyms: Vec<String>,
}

/// Informatica Intelligent Cloud Services.
#[derive(Clone, Debug, PartialEq)]
pub struct Informatica {
    /// Where to log in, without `/saas/public/core/v3/login`.
    pub login_url: Url,
    /// Where the log is, up to `/public`. `None`: where the login's answer says.
    pub base_url: Option<Url>,
    /// The user to log in as.
    pub username: String,
    /// Its password.
    pub password: Secret,
}

/// HID `ActivID` Appliance.
#[derive(Clone, Debug, PartialEq)]
pub struct Activid {
    /// The appliance, without `/scim`.
    pub base_url: Url,
    /// Fits into one path segment.
    pub tenant: String,
    /// The token endpoint.
    pub token_url: Url,
    /// The client to ask for tokens as.
    pub client_id: String,
    /// Its secret.
    pub client_secret: Secret,
    /// Whether to ask for the integrity check.
    pub verify: bool,
}

/// Losant.
#[derive(Clone, Debug, PartialEq)]
pub struct Losant {
    /// The API, without `/instance`.
    pub base_url: Url,
    /// Fits into one path segment.
    pub instance_id: String,
    /// The bearer token.
    pub api_token: Secret,
}

/// Index Exchange.
#[derive(Clone, Debug, PartialEq)]
pub struct IndexExchange {
    /// The API, without `/api`.
    pub base_url: Url,
    /// The token endpoint.
    pub token_url: Url,
    /// The base64 key, as issued.
    pub client_key: Secret,
    /// At least one.
    pub subscriptions: Vec<String>,
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
/// The least a poll reads again: two clocks are not the same to the second, and no service shows an event as it happens.
const OVERLAP_MIN: Duration = MINUTE;
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
const MIB: u64 = 1024 * 1024;

impl Common {
    /// The longest outage that is read back: the list of a feed is read whole, whatever the limit is, and lost is
    /// what it no longer shows.
    pub fn max_catch_up_of(&self, system: System) -> Duration {
        let files = system == System::IndexExchange;
        if files { self.max_catch_up.max(Self::defaults(system).max_catch_up) } else { self.max_catch_up }
    }

    /// The defaults of a system.
    pub fn defaults(system: System) -> Self {
        let files = system == System::IndexExchange;
        let per_minute = match system {
            System::Canvas | System::Activid => const { NonZeroU32::new(120).expect("not zero") },
            System::Informatica | System::Losant | System::IndexExchange => {
                const { NonZeroU32::new(60).expect("not zero") }
            }
        };
        Self {
            poll_interval: if files { 15 * MINUTE } else { MINUTE },
            overlap: 10 * MINUTE,
            // The files list always shows the whole retention.
            initial_lookback: if files { 14 * DAY } else { HOUR },
            max_catch_up: match system {
                System::Canvas | System::Losant => 365 * DAY,
                System::Informatica => 400 * DAY,
                System::Activid => 30 * DAY,
                System::IndexExchange => 14 * DAY,
            },
            rate_limit: RateLimit { requests: per_minute, per: MINUTE, burst: NonZeroU32::MIN },
            timeout: 30 * SECOND,
            poll_timeout: if files { 2 * HOUR } else { 15 * MINUTE },
            max_response_bytes: 16 * MIB,
            page_size: None,
            ignore_actors: Vec::new(),
            tls: None,
            proxy_url: None,
            proxy_username: None,
            proxy_password: None,
            proxy_from_environment: false,
            no_proxy: None,
            headers: Vec::new(),
            user_agent: None,
            allow_plain_http: false,
        }
    }

    /// The secrets beside the credential of the service.
    pub(crate) fn secrets(&self) -> impl Iterator<Item = &Secret> {
        self.headers.iter().map(|header| &header.value).chain(&self.proxy_password)
    }
}

/// `base` with further path segments, each percent-encoded as needed. A slash at the end of
/// `base` makes no difference.
///
/// # Panics
/// `base` is no `http` or `https` URL; those in a [`Config`] are.
pub fn endpoint(base: &Url, segments: &[&str]) -> Url {
    let mut url = base.clone();
    url.path_segments_mut().expect("http and https URLs have a path").pop_if_empty().extend(segments);
    url
}

/// One thing that is wrong with a config file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// What is wrong, and what is accepted. One line.
    pub message: String,
}

/// All that is wrong with a config file; at least one problem. Displays one line for each,
/// `FILE:LINE:COLUMN: what is wrong; accepted: what is`, sorted by position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    file: PathBuf,
    problems: Vec<Problem>,
}

impl ConfigErrors {
    fn new(file: &Path, mut problems: Vec<Problem>) -> Self {
        problems.sort();
        // A node that is repeated by an alias shows the same problem at the same place.
        problems.dedup();
        Self { file: file.to_owned(), problems }
    }

    fn one(file: &Path, line: usize, column: usize, message: String) -> Self {
        Self::new(file, vec![Problem { line, column, message }])
    }

    /// The problems, sorted by position.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Problem { line, column, message }) in self.problems.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{}:{line}:{column}: {message}", self.file.display())?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Reads and parses the config file at `path`, and warns of secrets that others can read.
///
/// # Errors
/// All problems of the file, or the one that kept it from being read.
pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
    let content = read_at_most(FILE_BYTES_MAX, path).map_err(|error| {
        let message = match error.kind() {
            io::ErrorKind::FileTooLarge => format!("the file is too large; accepted: up to {FILE_BYTES_MAX} bytes"),
            _ => format!("the file cannot be read: {error}; accepted: a readable YAML file"),
        };
        ConfigErrors::one(path, 1, 1, message)
    })?;
    match std::str::from_utf8(&content) {
        Ok(text) => {
            let config = parse_with(text, path, crate::transport::machine_has_authorities)?;
            config.warn_of_open_files(path);
            Ok(config)
        }
        Err(error) => {
            let good = String::from_utf8_lossy(&content[..error.valid_up_to()]);
            let line = good.matches('\n').count() + 1;
            let column = good.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
            let message = "the file is not text from here on; accepted: UTF-8".to_owned();
            Err(ConfigErrors::one(path, line, column, message))
        }
    }
}

/// Parses the text of a config file. `path` says where the text comes from: it begins every
/// message, and relative paths in the text are relative to its folder. The files that the text
/// names are looked at; the network is not.
///
/// # Errors
/// All problems of the text.
pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigErrors> {
    parse_with(text, path, || true)
}

/// The same for a machine that has or lacks certificates of authorities; only asked where some are needed.
fn parse_with(text: &str, path: &Path, has_authorities: fn() -> bool) -> Result<Config, ConfigErrors> {
    let mut problems = Vec::new();
    let folder = path.parent().unwrap_or(Path::new(""));
    let config =
        tree::read(text, &mut problems).and_then(|root| read::config(&root, folder, has_authorities, &mut problems));
    match config {
        Some(mut config) if problems.is_empty() => {
            config.warnings.sort();
            config.warnings.dedup();
            Ok(config)
        }
        _ => Err(ConfigErrors::new(path, problems)),
    }
}

#[cfg(test)]
mod tests;
