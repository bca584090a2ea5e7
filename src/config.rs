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
//! - reading is bounded by [`FILE_BYTES_MAX`] and the limits in `settings/tree.rs`.
//!
//! Leaves to others: kinds of values (`settings.rs`), the keys of a service (`source/NAME/setup.rs`), what certificates and
//! keys look like (`pem.rs`), whether a service accepts what is configured, and what to do when a reload finds a changed
//! [`SourceConfig`].

pub mod schema;

use std::borrow::Cow;
use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use crate::event::{self, SourceName};
pub(crate) use crate::settings::fields::{Machine, PEM_BYTES_MAX, join_words, kind, read_at_most};
pub(crate) use crate::settings::secret::warn_of_open_files;
use crate::settings::tree::{self, At, Node, Value};
pub use crate::settings::units::{duration_text, parse_duration};
use crate::settings::{Absent, Common, Fields, Key, Kind, Problem, Reader, Secret, Zero, common, is_loopback};
use crate::source::registry::{self, SYSTEMS};
use crate::source::{Entry, System};

/// Largest config file, in bytes.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024;

const TOP: &[Key] = &[
    Key::optional("global", Kind::Section(GLOBAL), Absent::Nothing, "Settings for all sources."),
    Key::optional("storage", Kind::Section(STORAGE), Absent::Nothing, "The embedded store."),
    // what stands there is made of the registry
    Key::optional(
        "sources",
        Kind::Section(&[]),
        Absent::Nothing,
        "One list per system, each with any number of sources.",
    ),
];

const GLOBAL: &[Key] = &[
    Key::optional(
        "poll_interval",
        Kind::Duration(Zero::Refused),
        Absent::Usual,
        "Time between polls, for every source that does not set its own.",
    ),
    Key::optional(
        "hold_new_series",
        Kind::Duration(Zero::Accepted),
        Absent::Is("60s"),
        "The shortest time a new series is served as 0, so that increase() sees its first event.",
    ),
    Key::optional(
        "openmetrics_created",
        Kind::Flag,
        Absent::Is("false"),
        "Also write _created lines in OpenMetrics text.",
    ),
];

const STORAGE: &[Key] =
    &[Key::optional("path", Kind::Path, Absent::Is("./data"), "Folder of the embedded store, created if missing.")];

/// The key of every source that comes first.
const NAME: Key = Key::required("name", Kind::Text, "The label `source`; unique over all lists.");

/// The keys of a source of this system, in the order in which they are told.
fn keys_of(system: &System) -> Vec<Key> {
    let common = common::KEYS.iter().copied().filter_map(|key| match system.page_sizes {
        Some((min, max)) if key.name == common::PAGE_SIZE => Some(Key { kind: Kind::Count { min, max }, ..key }),
        None if key.name == common::PAGE_SIZE => None,
        _ => Some(key),
    });
    std::iter::once(NAME).chain(system.keys.iter().copied()).chain(common).collect()
}

/// The lists of sources.
fn lists() -> Vec<Key> {
    let list = |system: &&System| {
        Key::optional(system.name.as_str(), Kind::Sections(system.keys), Absent::Nothing, "The sources of this system.")
    };
    SYSTEMS.iter().map(list).collect()
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
        self.warned(path).for_each(
            |warning| tracing::warn!(%warning, "the configuration has a setting that is probably not intended"),
        );
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
        Self { hold_new_series: Duration::from_mins(1), openmetrics_created: false }
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
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// Unique over all systems.
    pub name: SourceName,
    /// The settings every source has.
    pub common: Common,
    /// The settings of its service.
    pub service: Arc<dyn Entry>,
}

impl PartialEq for SourceConfig {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.common == other.common && *self.service == *other.service
    }
}

impl SourceConfig {
    /// The list it stands in.
    pub fn system(&self) -> event::System {
        self.service.system().name
    }

    /// The longest outage that is read back.
    pub fn max_catch_up(&self) -> Duration {
        self.service.system().reading.catch_up(self.common.max_catch_up)
    }

    /// Where its requests go, as far as the configuration says.
    pub(crate) fn addresses(&self) -> Vec<&Url> {
        self.service.addresses()
    }

    /// Its credential.
    pub fn secret(&self) -> &Secret {
        self.service.credential()
    }
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
    let config = read(path, Machine::This, crate::transport::machine_has_authorities)?;
    config.warn_of_open_files(path);
    Ok(config)
}

/// Reads and parses the config file at `path` as far as that can be done on another machine than the one it is for, without
/// the secrets: files with secrets are not looked at, files with certificates are if they are there.
///
/// # Errors
/// All problems of the file, or the one that kept it from being read.
pub fn load_without_secrets(path: &Path) -> Result<Config, ConfigErrors> {
    read(path, Machine::Another, || true)
}

fn read(path: &Path, machine: Machine, has_authorities: fn() -> bool) -> Result<Config, ConfigErrors> {
    let content = read_at_most(FILE_BYTES_MAX, path).map_err(|error| {
        let message = match error.kind() {
            io::ErrorKind::FileTooLarge => format!("the file is too large; accepted: up to {FILE_BYTES_MAX} bytes"),
            _ => format!("the file cannot be read: {error}; accepted: a readable YAML file"),
        };
        ConfigErrors::one(path, 1, 1, message)
    })?;
    match std::str::from_utf8(&content) {
        Ok(text) => parse_with(text, path, machine, has_authorities),
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
    parse_with(text, path, Machine::This, || true)
}

/// The same for a machine that has or lacks certificates of authorities; only asked where some are needed.
fn parse_with(
    text: &str,
    path: &Path,
    machine: Machine,
    has_authorities: fn() -> bool,
) -> Result<Config, ConfigErrors> {
    let mut reader = Reader::new(path.parent().unwrap_or(Path::new("")), machine);
    let root = tree::read(text, &mut reader.problems);
    let config = root.and_then(|root| whole(&root, &mut reader, has_authorities));
    let Reader { problems, .. } = reader;
    match config {
        Some(mut config) if problems.is_empty() => {
            config.warnings.sort();
            config.warnings.dedup();
            Ok(config)
        }
        _ => Err(ConfigErrors::new(path, problems)),
    }
}

// === the sections ===

/// The config that `root` describes; `None` if something without which there is none is missing.
fn whole(root: &Node, reader: &mut Reader<'_>, has_authorities: fn() -> bool) -> Option<Config> {
    let top = reader.map(root, "the file", TOP)?;
    let (global, poll_interval) = match reader.section(&top, "global") {
        Some(fields) => read_global(reader, &fields),
        None => (Global::default(), None),
    };
    let path = reader.section(&top, "storage").and_then(|fields| reader.path(&fields, "path"));
    let storage = Storage { path: path.unwrap_or_else(|| reader.folder().join("data")) };
    let authorities = LazyCell::new(has_authorities);
    let sources = Sources { reader, poll_interval, names: BTreeMap::new(), authorities }.all(&top);
    Some(Config { global, storage, sources, warnings: std::mem::take(&mut reader.warnings) })
}

fn read_global(reader: &mut Reader<'_>, fields: &Fields<'_>) -> (Global, Option<Duration>) {
    let poll_interval = reader.duration(fields, "poll_interval");
    let global = Global {
        hold_new_series: reader.duration(fields, "hold_new_series").unwrap_or(Global::default().hold_new_series),
        openmetrics_created: reader.flag(fields, "openmetrics_created"),
    };
    (global, poll_interval)
}

/// Reads the lists of sources.
struct Sources<'r, 'a> {
    reader: &'r mut Reader<'a>,
    /// `global.poll_interval`.
    poll_interval: Option<Duration>,
    /// Where each name was first given.
    names: BTreeMap<SourceName, At>,
    /// Whether this machine has certificates of authorities.
    authorities: LazyCell<bool>,
}

impl Sources<'_, '_> {
    fn all(mut self, top: &Fields<'_>) -> Vec<SourceConfig> {
        let before = self.reader.problems.len();
        let node = top.get("sources").filter(|node| !matches!(node.value, Value::Null));
        let fields = node.and_then(|node| self.reader.map(node, "`sources`", Cow::Owned(lists())));
        let mut sources = Vec::new();
        let mut given = false;
        // In the order of the file.
        for (key, node) in fields.iter().flat_map(|fields| fields.entries) {
            let Some(system) = registry::find(&key.text) else { continue };
            let entries = match &node.value {
                Value::List(entries) => entries.as_slice(),
                Value::Null => &[],
                Value::Map(_) | Value::Scalar { .. } => {
                    let message = format!(
                        "`{}` is {}; accepted: a list of sources, each beginning with `- name:`",
                        system.name,
                        kind(node)
                    );
                    self.reader.problems.push(node.at.problem(message));
                    continue;
                }
            };
            for entry in entries {
                given = true;
                sources.extend(self.source(system, entry));
            }
        }
        // A list or key that could not be read is reason enough.
        if !given && self.reader.problems.len() == before {
            let at = top.key_at("sources").unwrap_or(top.at);
            let names: Vec<&str> = SYSTEMS.iter().map(|system| system.name.as_str()).collect();
            let message =
                format!("there is no source; accepted: `sources` with at least one in {}", join_words(&names));
            self.reader.problems.push(at.problem(message));
        }
        sources
    }

    fn source(&mut self, system: &System, node: &Node) -> Option<SourceConfig> {
        let what = format!("a source of `{}`", system.name);
        let fields = self.reader.map(node, &what, Cow::Owned(keys_of(system)))?;
        let name = self.name(&fields);
        let has_pages = system.page_sizes.is_some();
        let common = self.reader.common(&fields, &(system.defaults)(), self.poll_interval, has_pages);
        self.shorter_counts(system, &fields, &common);
        let service = (system.read)(self.reader, &fields, &common);
        let source = SourceConfig { name: name?, common, service: service? };
        self.authorities_where_needed(&fields, &source);
        self.no_plain_http_through(&fields, &source);
        Some(source)
    }

    /// Plain `http://` to loopback shows nothing to others, but for a proxy elsewhere.
    fn no_plain_http_through(&mut self, fields: &Fields<'_>, source: &SourceConfig) {
        let common = &source.common;
        if common.proxy_url.as_ref().is_none_or(is_loopback) {
            return;
        }
        let direct = common.no_proxy.clone().unwrap_or_default();
        let shown = |url: &&Url| url.scheme() == "http" && !direct.names(url);
        if !common.allow_plain_http && source.addresses().iter().any(shown) {
            let message = "`proxy_url` leads a plain http:// service over another machine, where credentials could be read; accepted: \
                 the service in `no_proxy`, https://, or `allow_plain_http: true`";
            self.reader.problems.push(fields.value_at("proxy_url").problem(message));
        }
    }

    fn authorities_where_needed(&mut self, fields: &Fields<'_>, source: &SourceConfig) {
        let own = source.common.tls.as_ref().is_some_and(|tls| tls.ca_file.is_some());
        let over_tls =
            source.addresses().into_iter().chain(&source.common.proxy_url).any(|url| url.scheme() == "https");
        if own || !over_tls || *self.authorities {
            return;
        }
        let is_given = |key: &&str| fields.entries.iter().any(|(name, _)| name.text == *key);
        let at = ["base_url", "login_url"].into_iter().find(is_given).map_or(fields.at, |key| fields.value_at(key));
        let message = "this machine has no CA certificates, without which no https:// service can be verified; accepted: \
                       installed ones (package ca-certificates), SSL_CERT_FILE with the path of a file that has some, or \
                       the service's own authority in `tls.ca_file`";
        self.reader.problems.push(at.problem(message));
    }

    fn name(&mut self, fields: &Fields<'_>) -> Option<SourceName> {
        let accepted = "1 to 63 characters of a-z, 0-9, _ and -, the first a letter or digit";
        let name: SourceName = self.reader.scalar(fields, "name", accepted, |scalar| {
            scalar.text.parse().map_err(|_| "is not a source name".to_owned())
        })?;
        let at = fields.value_at("name");
        if let Some(first) = self.names.get(&name) {
            let line = first.line;
            let message = format!(
                "duplicate name `{name}`, already used on line {line}; accepted: a name that no other source has"
            );
            self.reader.problems.push(at.problem(message));
            return None;
        }
        self.names.insert(name.clone(), at);
        Some(name)
    }

    /// Says which one counts where reading would begin earlier than it may go back.
    fn shorter_counts(&mut self, system: &System, fields: &Fields<'_>, common: &Common) {
        let Some(at) = fields.key_at("initial_lookback").or(fields.key_at("max_catch_up")) else { return };
        let (lookback, catch_up) = (common.initial_lookback, system.reading.catch_up(common.max_catch_up));
        if lookback > catch_up {
            let [lookback, catch_up] = [lookback, catch_up].map(duration_text);
            let message = format!(
                "`initial_lookback` ({lookback}) is longer than `max_catch_up` ({catch_up}), and the shorter one \
                 counts: a new source is read from {catch_up} back"
            );
            self.reader.warnings.push(at.problem(message));
        }
    }
}

#[cfg(test)]
mod tests;
