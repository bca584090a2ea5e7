//! Reads the values of the config file, and reports the problems in them.
//!
//! Promises: goes on after a problem, so that one run finds all; a reader that returns `None` for
//! something that was given has added the reason to the problems; no message quotes a value.
//!
//! Leaves to others: which keys there are (`common.rs`, `config.rs`, `source/NAME/setup.rs`).

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::{self, Read};
use std::num::NonZeroU32;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use secrecy::zeroize::Zeroizing;
use url::{Host, Url};

use super::keys::{Absent, Key, Kind, Zero};
use super::secret::{BadForm, Secret, Why, check_form, check_secret_file, open_file};
use super::tree::{self, At, Node, Problem, Value};
use super::units::{self, BadDuration};
use crate::pem::Unfit;

/// Largest file with certificates or a key, in bytes; a bundle of every public authority takes about 250 kB.
pub(crate) const PEM_BYTES_MAX: u64 = 4 << 20;

/// A mapping whose keys were checked.
pub struct Fields<'n> {
    pub(crate) at: At,
    /// What it is, for messages.
    what: String,
    keys: Cow<'n, [Key]>,
    pub(crate) entries: &'n [(tree::Key, Node)],
}

impl<'n> Fields<'n> {
    /// The value of a key, if it is given. The key must be in the list of keys.
    pub(crate) fn get(&self, key: &str) -> Option<&'n Node> {
        self.entry(key).map(|(_, node)| node)
    }

    pub(crate) fn key_at(&self, key: &str) -> Option<At> {
        self.entry(key).map(|(name, _)| name.at)
    }

    fn entry(&self, key: &str) -> Option<&'n (tree::Key, Node)> {
        debug_assert!(self.keys.iter().any(|known| known.is_named(key)), "`{key}` is in no list");
        self.entries.iter().find(|(name, _)| name.text == key)
    }

    /// What the list of keys says of this one.
    fn key(&self, key: &str) -> Key {
        let known = self.keys.iter().copied().find(|known| known.is_named(key));
        known.unwrap_or_else(|| panic!("{} has no key `{key}` in its list", self.what))
    }

    /// Where to show what is wrong with the value of `key`, or that it is not there.
    pub(crate) fn value_at(&self, key: &str) -> At {
        self.get(key).map_or(self.at, |node| node.at)
    }
}

/// A scalar as it is written; see [`Value::Scalar`].
pub(crate) struct Scalar<'n> {
    pub(crate) text: &'n str,
    pub(crate) plain: bool,
}

/// Reads values, and collects what is wrong with them.
pub struct Reader<'a> {
    folder: &'a Path,
    pub(super) machine: Machine,
    pub(crate) problems: Vec<Problem>,
    pub(crate) warnings: Vec<Problem>,
}

/// Where a config file is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machine {
    /// Where it is used: each file that it names must be there, and good.
    This,
    /// Elsewhere (a repository, a pipeline): files with secrets are not looked at, because what is there in their place
    /// may be encrypted; files with certificates are, if they are there.
    Another,
}

/// What a file holds that a config file names.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holds {
    /// A secret or a private key.
    Secret,
    /// Certificates.
    Certificates,
}

impl<'a> Reader<'a> {
    /// A reader of a file in this folder.
    pub(crate) fn new(folder: &'a Path, machine: Machine) -> Self {
        Self { folder, machine, problems: Vec::new(), warnings: Vec::new() }
    }

    /// The folder of the config file.
    pub(crate) fn folder(&self) -> &Path {
        self.folder
    }

    /// A mapping without unknown keys, and with those that it needs; `what` names it in messages. Unknown keys are problems
    /// but do not keep the known ones from being read.
    pub(crate) fn map<'n>(
        &mut self,
        node: &'n Node,
        what: &str,
        keys: impl Into<Cow<'n, [Key]>>,
    ) -> Option<Fields<'n>> {
        let keys = keys.into();
        let names = || keys.iter().flat_map(Key::names).collect::<Vec<_>>();
        let Value::Map(entries) = &node.value else {
            let message = format!("{what} is {}; accepted: a mapping with the keys {}", kind(node), names().join(", "));
            self.problems.push(node.at.problem(message));
            return None;
        };
        for (key, value) in entries {
            if !keys.iter().any(|known| known.is_named(&key.text)) {
                let bare = matches!(value.value, Value::Null);
                let names = names();
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                self.problems.push(key.at.problem(unknown(&key.text, bare, what, &names)));
            }
        }
        let is_given = |key: &Key| entries.iter().any(|(name, _)| key.is_named(&name.text));
        for key in keys.iter().filter(|key| key.absent == Absent::Refused && !is_given(key)) {
            let name = key.name;
            let or = if matches!(key.kind, Kind::Secret(_)) { format!(", or `{name}_file`") } else { String::new() };
            self.problems.push(node.at.problem(format!("`{name}` is missing; required in {what}{or}")));
        }
        Some(Fields { at: node.at, what: what.to_owned(), keys, entries })
    }

    /// A mapping under `key`. Absent and empty are the same: all its keys may be commented out.
    pub(crate) fn section<'n>(&mut self, fields: &Fields<'n>, key: &str) -> Option<Fields<'n>> {
        let Kind::Section(keys) = fields.key(key).kind else { panic!("`{key}` is no section") };
        let node = fields.get(key)?;
        if matches!(node.value, Value::Null) { None } else { self.map(node, &format!("`{key}`"), keys) }
    }

    /// The scalar under `key`, if given, as `parse` understands it. `parse` says what is wrong
    /// without showing the value.
    pub(crate) fn scalar<T>(
        &mut self,
        fields: &Fields<'_>,
        key: &str,
        accepted: &str,
        parse: impl FnOnce(Scalar<'_>) -> Result<T, String>,
    ) -> Option<T> {
        let node = fields.get(key)?;
        let parsed = match &node.value {
            Value::Scalar { text, plain } => parse(Scalar { text, plain: *plain }),
            Value::Null | Value::List(_) | Value::Map(_) => Err(format!("is {}", kind(node))),
        };
        match parsed {
            Ok(value) => Some(value),
            Err(what) => {
                self.problems.push(node.at.problem(format!("`{key}` {what}; accepted: {accepted}")));
                None
            }
        }
    }

    /// A duration.
    pub(crate) fn duration(&mut self, fields: &Fields<'_>, key: &str) -> Option<Duration> {
        let Kind::Duration(zero) = fields.key(key).kind else { panic!("`{key}` is no duration") };
        let accepted = match zero {
            Zero::Accepted => "0s or more, such as 30s, 5m, 1h30m or 14d (units y, w, d, h, m, s, ms, in this order)",
            Zero::Refused => "above 0s, such as 30s, 5m, 1h30m or 14d (units y, w, d, h, m, s, ms, in this order)",
        };
        self.scalar(fields, key, accepted, |scalar| {
            let duration = units::duration(scalar.text).map_err(|bad| match bad {
                BadDuration::Form => "is not a duration".to_owned(),
                BadDuration::NoUnit => "is a number without a unit".to_owned(),
                BadDuration::Order => "has a unit twice or after a smaller one".to_owned(),
                BadDuration::Long => "is longer than 292 years".to_owned(),
            })?;
            match zero {
                Zero::Refused if duration.is_zero() => Err("is zero".to_owned()),
                _ => Ok(duration),
            }
        })
    }

    /// Whether a thing is wanted: what is given, else what it means where it is not.
    ///
    /// # Panics
    /// The list of keys says that something else stands there.
    pub fn flag(&mut self, fields: &Fields<'_>, key: &str) -> bool {
        let Key { kind: Kind::Flag, absent, .. } = fields.key(key) else { panic!("`{key}` is no flag") };
        let given = self.scalar(fields, key, "true or false, without quotes", |scalar| match scalar.text {
            "true" | "True" | "TRUE" if scalar.plain => Ok(true),
            "false" | "False" | "FALSE" if scalar.plain => Ok(false),
            _ => Err("is neither true nor false".to_owned()),
        });
        given.unwrap_or(absent == Absent::Is("true"))
    }

    /// A whole number.
    pub(crate) fn count(&mut self, fields: &Fields<'_>, key: &str) -> Option<NonZeroU32> {
        let Kind::Count { min, max } = fields.key(key).kind else { panic!("`{key}` is no number") };
        let accepted = format!("a whole number from {min} to {max}, without quotes");
        self.scalar(fields, key, &accepted, |scalar| {
            let digits = scalar.plain && scalar.text.chars().all(|c| c.is_ascii_digit());
            if !digits {
                return Err("is not a whole number".to_owned());
            }
            let number: Option<NonZeroU32> = scalar.text.parse().ok();
            number.filter(|n| (min..=max).contains(&n.get())).ok_or_else(|| "is out of range".to_owned())
        })
    }

    /// A number of bytes.
    pub(crate) fn bytes(&mut self, fields: &Fields<'_>, key: &str) -> Option<u64> {
        let accepted = "a whole number of bytes above 0, alone or with B, KiB, MiB, GiB, kB, MB or GB, such as 8MiB";
        self.scalar(fields, key, accepted, |scalar| units::bytes(scalar.text).ok_or_else(|| "is not a size".to_owned()))
    }

    /// A text in which `check` finds nothing wrong.
    pub fn text(&mut self, fields: &Fields<'_>, key: &str, check: Check) -> Option<String> {
        self.scalar(fields, key, "a text", |scalar| check(scalar.text).map(|()| scalar.text.to_owned()))
    }

    /// A list of texts, none of them twice. Numbers are texts: an id is what is written.
    pub fn texts(&mut self, fields: &Fields<'_>, key: &str, check: Check) -> Vec<String> {
        let Some(node) = fields.get(key) else { return Vec::new() };
        let items = match &node.value {
            Value::List(items) => items.as_slice(),
            Value::Null => &[],
            Value::Scalar { .. } | Value::Map(_) => {
                let message = format!("`{key}` is {}; accepted: a list, such as [one, two]", kind(node));
                self.problems.push(node.at.problem(message));
                &[]
            }
        };
        let mut seen = BTreeSet::new();
        let mut texts = Vec::new();
        for item in items {
            let checked = match &item.value {
                Value::Scalar { text, .. } if !seen.insert(text) => Err("is listed twice".to_owned()),
                Value::Scalar { text, .. } => check(text).map(|()| text.clone()),
                Value::Null | Value::List(_) | Value::Map(_) => Err(format!("is {}", kind(item))),
            };
            match checked {
                Ok(text) => texts.push(text),
                Err(what) => {
                    let message = format!("an entry of `{key}` {what}; accepted: texts or numbers, each once");
                    self.problems.push(item.at.problem(message));
                }
            }
        }
        texts
    }

    pub(crate) fn path(&mut self, fields: &Fields<'_>, key: &str) -> Option<PathBuf> {
        let folder = self.folder;
        self.scalar(fields, key, "a path", |scalar| {
            any_text(scalar.text)?;
            Ok(folder.join(scalar.text))
        })
    }

    /// A path whose file `check` finds good, or is not asked about (see [`Machine::Another`]). What of the path looks
    /// like a secret is shortened: it may be one that was given under the wrong key.
    fn file(
        &mut self,
        fields: &Fields<'_>,
        key: &str,
        holds: Holds,
        check: impl FnOnce(&Path) -> Result<(), Why>,
    ) -> Option<PathBuf> {
        let path = self.path(fields, key)?;
        if self.machine == Machine::Another && (holds == Holds::Secret || !path.exists()) {
            return Some(path);
        }
        let Some(Value::Scalar { text, .. }) = fields.get(key).map(|node| &node.value) else { return None };
        match check(&path) {
            Ok(()) => Some(path),
            Err(why) => {
                let shown = shown_path(self.folder, Path::new(text));
                let hint = if why.is_of_content() {
                    "a file with the secret and nothing else".to_owned()
                } else {
                    self.where_files_are()
                };
                let message = format!("the file of `{key}`, {shown}, {why}; accepted: {hint}");
                self.problems.push(fields.value_at(key).problem(message));
                None
            }
        }
    }

    /// A file with certificates or a key, and what `parse` makes of it; `None` where it is not looked at.
    pub(crate) fn pem<T>(
        &mut self,
        fields: &Fields<'_>,
        key: &str,
        holds: Holds,
        parse: impl FnOnce(&[u8]) -> Result<T, Unfit>,
    ) -> Option<(PathBuf, T)> {
        let mut content = None;
        let path = self.file(fields, key, holds, |path| {
            let content = content.insert(Zeroizing::new(Vec::new()));
            open_file(path)?.take(PEM_BYTES_MAX + 1).read_to_end(content).map(drop).map_err(Why::Io)
        })?;
        let content = content?;
        let unfit = if content.len() as u64 > PEM_BYTES_MAX {
            let is = format!("is larger than {} MiB", PEM_BYTES_MAX >> 20);
            Unfit { is, accepted: "certificates and keys in PEM".to_owned() }
        } else {
            match parse(&content) {
                Ok(parsed) => return Some((path, parsed)),
                Err(unfit) => unfit,
            }
        };
        self.problems.push(fields.value_at(key).problem(format!("the file of `{key}` {unfit}")));
        None
    }

    fn where_files_are(&self) -> String {
        let here = Path::new(".");
        let folder = if self.folder.as_os_str().is_empty() { here } else { self.folder };
        format!("a path from `/` or from the config file's folder, {} (`~` is not expanded)", folder.display())
    }

    /// A secret, as text or in a file.
    ///
    /// # Panics
    /// The list of keys says that something else stands there.
    pub fn secret(&mut self, fields: &Fields<'_>, key: &str) -> Option<Secret> {
        let Kind::Secret(form) = fields.key(key).kind else { panic!("`{key}` is no secret") };
        let key_file = format!("{key}_file");
        match (fields.key_at(key), fields.key_at(&key_file)) {
            (None, None) => None,
            (Some(text), Some(file)) => {
                let message = format!("both `{key}` and `{key_file}` are given; accepted: one of them");
                self.problems.push(text.max(file).problem(message));
                None
            }
            (Some(_), None) => {
                let mut doubtful = None;
                let secret = self.scalar(fields, key, "a text", |scalar| {
                    any_text(scalar.text.trim_end_matches(['\n', '\r']))?;
                    let secret = scalar.text.strip_suffix('\n').unwrap_or(scalar.text);
                    match check_form(secret, form) {
                        // it is sent as it stands here, for all to see who may read this
                        Err(bad @ BadForm::NotBase64) => doubtful = Some(bad),
                        checked => checked.map_err(|bad| bad.to_string())?,
                    }
                    Ok(Secret::text(secret).of_form(form))
                });
                let warning = doubtful.map(|bad| fields.value_at(key).problem(format!("`{key}` {bad}")));
                self.warnings.extend(warning);
                secret
            }
            (None, Some(_)) => {
                let path = self.file(fields, &key_file, Holds::Secret, |path| check_secret_file(path, form))?;
                Some(Secret::file(path).of_form(form))
            }
        }
    }

    /// A URL to which paths can be added: what is given, else what it is where it is not. `plain` accepts `http://` beyond
    /// loopback.
    ///
    /// # Panics
    /// What the list of keys says it is where it is not given is no URL.
    pub fn url(&mut self, fields: &Fields<'_>, key: &str, plain: bool) -> Option<Url> {
        let Key { kind, absent, .. } = fields.key(key);
        if let (None, Absent::Is(url)) = (fields.get(key), absent) {
            return Some(Url::parse(url).expect("a constant of a list of keys, which the tests parse"));
        }
        let plain = plain || matches!(kind, Kind::ProxyUrl);
        let accepted = if plain {
            "http:// or https:// with a host, without user, password, query and fragment"
        } else {
            "https:// with a host, without user, password, query and fragment; http:// for loopback or with \
             `allow_plain_http: true`"
        };
        self.scalar(fields, key, accepted, |scalar| {
            let url = Url::parse(scalar.text).map_err(|_| "is not a URL".to_owned())?;
            let wrong = if !matches!(url.scheme(), "http" | "https") {
                "is neither an http:// nor an https:// URL"
            } else if !url.username().is_empty() || url.password().is_some() {
                "has a user or password in it"
            } else if url.query().is_some() {
                "has a query (`?`)"
            } else if url.fragment().is_some() {
                "has a fragment (`#`)"
            } else if url.scheme() == "http" && !plain && !is_loopback(&url) {
                "is plain http:// to another machine, where credentials could be read on the way"
            } else {
                return Ok(url);
            };
            Err(wrong.to_owned())
        })
    }

    /// An address that holds the path which the source adds to it would be asked for with that path twice.
    pub fn holds_what_is_added(&mut self, fields: &Fields<'_>, key: &str, url: Option<&Url>, added: &[&str]) {
        let Some(path) = url.and_then(|url| already_there(url, added)) else { return };
        let at = fields.value_at(key);
        let added =
            added.iter().map(|segment| if *segment == ANY { "…" } else { segment }).collect::<Vec<_>>().join("/");
        // a gateway may have a path of that name
        if path == "/api" {
            let message = format!("`{key}` ends with /api, and /{added} is added to it: is that intended?");
            self.warnings.push(at.problem(message));
            return;
        }
        let what = if key == "login_url" { "login" } else { "API" };
        let message = format!(
            "`{key}` contains the path of the {what} ({path}), and /{added} is added to it; accepted: the part before that"
        );
        self.problems.push(at.problem(message));
    }
}

/// A segment of a path that may be anything.
pub const ANY: &str = "*";

/// The part of a path that is one of its own, or a version, as `/v1`: no address of a service ends with that.
fn already_there(url: &Url, added: &[&str]) -> Option<String> {
    let segments: Vec<&str> = url.path().split('/').filter(|segment| !segment.is_empty()).collect();
    let is_version = |segment: &str| {
        let number = segment.strip_prefix(['v', 'V']).unwrap_or_default();
        !number.is_empty() && number.chars().all(|c| c.is_ascii_digit() || c == '.')
    };
    for (start, _) in segments.iter().enumerate() {
        let rest = &segments[start..];
        let same = |(is, added): &(&&str, &&str)| **added == ANY || is.eq_ignore_ascii_case(added);
        let alike = rest.iter().zip(added).take_while(same).count();
        // only its beginning, or so much of it that it is no accident
        if alike == rest.len() || (alike >= 2 && added[1] != ANY) || alike >= 3 {
            return Some(format!("/{}", rest[..alike].join("/")));
        }
    }
    let last = segments.last().filter(|last| is_version(last))?;
    Some(format!("/{last}"))
}

/// A configured path as a message may show it, from `/` or from the folder of the config file on: what looks like a
/// secret is cut to its first characters.
fn shown_path(folder: &Path, configured: &Path) -> String {
    let single = configured.is_relative() && configured.components().count() == 1;
    let shown: PathBuf = configured
        .components()
        .map(|component| {
            let name = component.as_os_str().to_string_lossy().into_owned();
            if component == Component::RootDir || !looks_like_a_secret(&name, single) {
                return name;
            }
            let start: String = name.chars().take(2).collect();
            let characters = name.chars().count();
            format!("{start}… ({characters} character{})", if characters == 1 { "" } else { "s" })
        })
        .collect();
    let shown = folder.join(shown).display().to_string();
    shown.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Whether a name of a file or folder may be a secret that was given instead of a path. A `single` one, of which nothing
/// else says that it is a path, is one where it has digits among its letters and no mark that names of files have.
fn looks_like_a_secret(name: &str, single: bool) -> bool {
    let has = |kind: fn(&char) -> bool| name.chars().any(|c| kind(&c));
    let (upper, lower, digit) =
        (has(char::is_ascii_uppercase), has(char::is_ascii_lowercase), has(char::is_ascii_digit));
    let length = name.chars().count();
    let has_marks = name.contains(['.', '-', '_']);
    let unlike_a_name = !name.chars().all(|c| c.is_alphanumeric() || "._-@: ".contains(c));
    let random = upper && lower && digit && length >= 16;
    if single {
        unlike_a_name || length > 40 || random || (digit && (upper || lower) && !has_marks)
    } else {
        unlike_a_name || length > 64 || (random && length >= 20 && !has_marks)
    }
}

/// Says what is wrong with a text, without showing it.
pub type Check = fn(&str) -> Result<(), String>;

/// A text that is not blank.
pub fn any_text(text: &str) -> Result<(), String> {
    if text.trim().is_empty() { Err("is empty".to_owned()) } else { Ok(()) }
}

/// A text that can be one segment of a URL's path. Dots would be resolved away.
pub fn segment(text: &str) -> Result<(), String> {
    any_text(text)?;
    let odd = |c: char| c.is_control() || c.is_whitespace() || matches!(c, '/' | '\\' | '?' | '#' | '%');
    if text.contains(odd) || matches!(text, "." | "..") {
        Err("has characters that an id cannot have".to_owned())
    } else {
        Ok(())
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

/// The content of a file of at most `most` bytes, a whole number of MiB.
pub(crate) fn read_at_most(most: u64, path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    std::fs::File::open(path)?.take(most + 1).read_to_end(&mut content)?;
    if content.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {} MiB", most >> 20)));
    }
    Ok(content)
}

/// Whether a URL leads to this machine, where plain `http://` shows nothing to others.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// What a node is, without its content.
pub(crate) fn kind(node: &Node) -> &'static str {
    match &node.value {
        Value::Null => "empty",
        Value::Scalar { text, .. } if text.is_empty() => "empty",
        Value::Scalar { .. } => "a single value",
        Value::List(_) => "a list",
        Value::Map(_) => "a mapping",
    }
}

/// What to say about a key that `what` does not have. `bare`: it has no value.
fn unknown(key: &str, bare: bool, what: &str, keys: &[&str]) -> String {
    // `{password: one,two}` makes a key of a half secret, `{token:abc}` of a whole one. So only
    // what has a value and looks like a key of ours, which have no digits, is shown.
    let letters = key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    let like_ours = letters && key.len() <= 40 && !key.contains(|c: char| c.is_ascii_digit() || c.is_ascii_uppercase());
    let shown = if !bare && like_ours { format!("unknown key `{key}`") } else { "unknown key".to_owned() };
    let near = nearest(key, keys).map(|known| format!(" (did you mean `{known}`?)"));
    let hint = match near {
        Some(near) => near,
        None if key == "<<" => " (YAML merge keys are not supported)".to_owned(),
        None if !letters => " (a key ends with a colon and a space)".to_owned(),
        None => String::new(),
    };
    format!("{shown} in {what}{hint}; accepted: {}", join_words(keys))
}

/// The known word that was probably meant.
pub(crate) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let word = word.to_lowercase();
    let distances = known.iter().map(|known| (strsim::damerau_levenshtein(&word, known), *known));
    distances.filter(|(distance, known)| *distance <= (known.len() / 3).max(1)).min().map(|(_, known)| known)
}

pub(crate) fn join_words(words: &[&str]) -> String {
    words.join(", ")
}
