//! The web configuration file (`--web.config.file`): the exporter-toolkit's format, checked and
//! kept up to date.
//!
//! Promises: [`check`] accepts and refuses what `promtool check web-config` does (differences:
//! docs/web-config.md). [`WebFile`] looks at the file anew whenever it is asked, as the toolkit
//! does; what it hands out is either made from the present content or an error, never an older
//! state and never "no authentication". No message and no `Debug` text holds a key or a hash.
//!
//! Leaves to others: what rustls makes of the TLS settings (`tls.rs`), asking for passwords
//! (`protect.rs`), sockets (`listen.rs`).

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use http::{HeaderName, HeaderValue};
use rustls::ServerConfig;
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use serde::Deserialize;

use super::tls;
use crate::config::{PEM_BYTES_MAX, read_at_most};

/// A checked web configuration file.
#[derive(Debug)]
pub struct WebConfig {
    /// `tls_server_config`; `None` means plain HTTP.
    pub tls: Option<TlsSettings>,
    /// `http_server_config.http2`: whether HTTP/2 is offered; only over TLS.
    pub http2: bool,
    /// `http_server_config.headers`: set on every answer. Blank ones are left out.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// `basic_auth_users`: bcrypt hash by user name. Empty means that everybody may ask.
    pub users: BTreeMap<String, SecretString>,
}

/// `tls_server_config`: what was asked for, in the toolkit's words.
#[derive(Debug)]
pub struct TlsSettings {
    pub(super) cert: PemSource,
    pub(super) key: PemSource,
    pub(super) client_ca: Option<PemSource>,
    pub(super) client_auth: ClientAuth,
    pub(super) client_allowed_sans: Option<Vec<String>>,
    pub(super) min_version: TlsVersion,
    pub(super) max_version: TlsVersion,
    /// Empty means rustls' own choice; else the names as written, each known.
    pub(super) cipher_suites: Vec<String>,
    pub(super) prefer_server_cipher_suites: bool,
    /// Empty means rustls' own choice; else the names as written, each known.
    pub(super) curve_preferences: Vec<String>,
}

/// Where a certificate or key comes from.
pub(super) enum PemSource {
    /// Read anew at every look.
    File(PathBuf),
    /// Written in the web configuration file itself.
    Inline(SecretString),
}

impl fmt::Debug for PemSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PemSource::File(path) => write!(f, "File({})", path.display()),
            PemSource::Inline(_) => f.write_str("Inline"),
        }
    }
}

/// `client_auth_type`, with Go's meanings (crypto/tls, type `ClientAuthType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientAuth {
    /// No certificate is asked for.
    None,
    /// Asked for; any or none will do.
    Request,
    /// One must be shown; anyone's will do.
    RequireAny,
    /// None is needed, but one that is shown must come from the client CA.
    VerifyIfGiven,
    /// One from the client CA must be shown.
    RequireAndVerify,
}

/// `min_version`, `max_version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TlsVersion {
    Tls10,
    Tls11,
    Tls12,
    Tls13,
}

/// Why a web configuration file cannot be used. No text of it holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum WebConfigError {
    /// A file could not be read.
    #[error("{what}: cannot read {}: {source}", path.display())]
    Read {
        /// The setting that names the file.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no YAML, or not of the format.
    #[error("web config file {}: {why}", path.display())]
    Format {
        /// The web configuration file.
        path: PathBuf,
        /// Where and why.
        why: String,
    },
    /// A setting has a value that the format does not allow.
    #[error("{setting}: {why}")]
    Setting {
        /// The setting's full name.
        setting: &'static str,
        /// What is wrong and what would be right.
        why: String,
    },
    /// The format allows it, but this program's TLS library leaves nothing of it.
    #[error("{setting}: nothing usable remains: {why}")]
    NothingUsable {
        /// The setting's full name.
        setting: &'static str,
        /// What was asked for and what could be had.
        why: String,
    },
}

impl WebConfig {
    /// Warns of each file with a password hash or a key that every user of this machine can read.
    fn warn_of_open_files(&self, path: &Path) {
        let key = self.tls.as_ref().map(|tls| &tls.key);
        let inline = !self.users.is_empty() || matches!(key, Some(PemSource::Inline(_)));
        let key_file = match key {
            Some(PemSource::File(key)) => Some(key.as_path()),
            _ => None,
        };
        crate::config::warn_of_open_files(inline.then_some(path).into_iter().chain(key_file));
    }
}

/// What `promtool check web-config` does: reads and checks the file, the hashes in it, and the
/// certificate, key and client CA that it names. Blocks on the file system.
pub fn check(path: &Path) -> Result<WebConfig, WebConfigError> {
    let config = parse(path, &read("--web.config.file", path)?)?;
    if let Some(tls) = &config.tls {
        tls::certified_key(&tls.read()?)?;
    }
    Ok(config)
}

// ---- the file as written ----

/// Every scalar is optional, because Go's YAML reads null as "left out" anywhere. A plain number
/// or boolean where text belongs is taken as the text that was written, as in Go.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Raw {
    tls_server_config: Option<RawTls>,
    http_server_config: Option<RawHttp>,
    basic_auth_users: Option<BTreeMap<String, Option<String>>>,
    rate_limit: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawTls {
    cert: Option<String>,
    key: Option<String>,
    client_ca: Option<String>,
    cert_file: Option<String>,
    key_file: Option<String>,
    client_auth_type: Option<String>,
    client_ca_file: Option<String>,
    cipher_suites: Option<Vec<Option<String>>>,
    curve_preferences: Option<Vec<Option<String>>>,
    min_version: Option<String>,
    max_version: Option<String>,
    prefer_server_cipher_suites: Option<bool>,
    client_allowed_sans: Option<Vec<Option<String>>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawHttp {
    http2: Option<bool>,
    headers: Option<BTreeMap<String, Option<String>>>,
}

/// The suites of Go 1.19's `tls.CipherSuites()`, which promtool 2.42 knows.
const CIPHER_SUITES: [&str; 17] = [
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
];

const CURVES: [&str; 4] = ["CurveP256", "CurveP384", "CurveP521", "X25519"];

/// The headers that may be configured, with the values that are allowed (none listed: any).
const HEADERS: [(&str, &[&str]); 5] = [
    ("Strict-Transport-Security", &[]),
    ("X-Content-Type-Options", &["nosniff"]),
    ("X-Frame-Options", &["deny", "sameorigin"]),
    ("X-XSS-Protection", &[]),
    ("Content-Security-Policy", &[]),
];

/// Checks the content of a file at `path`, whose folder relative paths in it are relative to. Reads no other file.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<WebConfig, WebConfigError> {
    let format = |why| WebConfigError::Format { path: path.to_owned(), why };
    // like Go's Unmarshal, only the first document counts; nothing at all is an empty one
    let mut reader = bytes;
    let raw: Raw = match serde_saphyr::read::<_, Option<Raw>>(&mut reader).next() {
        None => Raw::default(),
        Some(Ok(raw)) => raw.unwrap_or_default(),
        Some(Err(error)) => return Err(format(without_values(&error))),
    };
    if raw.rate_limit.is_some() {
        return Err(WebConfigError::Setting {
            setting: "rate_limit",
            why: "not supported; remove it, or limit the rate in a proxy".into(),
        });
    }
    let http = raw.http_server_config.unwrap_or_default();
    let headers = headers(http.headers.unwrap_or_default())?;
    let directory = path.parent().unwrap_or(Path::new(""));
    let tls = tls_settings(raw.tls_server_config.unwrap_or_default(), directory)?;
    let users = users(raw.basic_auth_users.unwrap_or_default())?;
    Ok(WebConfig { tls, http2: http.http2.unwrap_or(true), headers, users })
}

/// Where a YAML error is and what it is about, without the value (which may be a hash or a key)
/// and without the snippet of the file that serde-saphyr would show.
fn without_values(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error as E;
    let error = error.without_snippet();
    let why = match error {
        E::SerdeUnknownField { field, expected, .. } => {
            format!("unknown field {}, expected one of: {}", quoted(field), expected.join(", "))
        }
        E::DuplicateMappingKey { key: Some(key), .. } => format!("{} is set twice", quoted(key)),
        E::SerdeInvalidType { expected, .. } | E::SerdeInvalidValue { expected, .. } => {
            format!("a value of the wrong kind, expected {expected}")
        }
        _ => "not valid YAML, or a value of the wrong kind".into(),
    };
    match error.location() {
        Some(at) => format!("line {}, column {}: {why}", at.line(), at.column()),
        None => why,
    }
}

/// A word of the file, where it looks like one: a hash or a key in the wrong place does not.
fn quoted(word: &str) -> String {
    let is_word = word.len() <= 40 && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_ ".contains(c));
    if is_word { format!("{word:?}") } else { "that value".into() }
}

fn headers(written: BTreeMap<String, Option<String>>) -> Result<Vec<(HeaderName, HeaderValue)>, WebConfigError> {
    let refuse = |why| WebConfigError::Setting { setting: "http_server_config.headers", why };
    let mut headers = Vec::new();
    for (name, value) in written {
        let Some((_, allowed)) = HEADERS.iter().find(|(known, _)| *known == name) else {
            let known = HEADERS.map(|(known, _)| known).join(", ");
            return Err(refuse(format!("{} cannot be configured, only {known}", quoted(&name))));
        };
        let value = value.unwrap_or_default();
        if !allowed.is_empty() && !allowed.contains(&value.as_str()) {
            return Err(refuse(format!("{name} must be one of {}, not {}", allowed.join(", "), quoted(&value))));
        }
        // a value folded over several lines goes out on one, as Go sends it
        let line: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let name = HeaderName::try_from(name).map_err(|error| refuse(error.to_string()))?;
        let value = HeaderValue::from_bytes(line.as_bytes()).map_err(|error| refuse(error.to_string()))?;
        headers.push((name, value));
    }
    Ok(headers)
}

/// Passes what Go's `bcrypt.Cost` passes: at least 59 bytes, `$2`, a cost of 4 to 31.
fn users(written: BTreeMap<String, Option<String>>) -> Result<BTreeMap<String, SecretString>, WebConfigError> {
    written
        .into_iter()
        .map(|(user, hash)| {
            let hash = hash.unwrap_or_default();
            if super::protect::cost_of(&hash).is_none() {
                let why = format!(
                    "the password of {} is no bcrypt hash; make one with: htpasswd -nBC 10 \"\"",
                    quoted(&user)
                );
                return Err(WebConfigError::Setting { setting: "basic_auth_users", why });
            }
            Ok((user, hash.into()))
        })
        .collect()
}

fn tls_settings(raw: RawTls, directory: &Path) -> Result<Option<TlsSettings>, WebConfigError> {
    // names are checked before it is asked whether TLS is on at all: Go does so while it reads
    let min_version = version("tls_server_config.min_version", raw.min_version)?.unwrap_or(TlsVersion::Tls12);
    let max_version = version("tls_server_config.max_version", raw.max_version)?.unwrap_or(TlsVersion::Tls13);
    let cipher_suites = names("tls_server_config.cipher_suites", raw.cipher_suites, &CIPHER_SUITES)?;
    let curve_preferences = names("tls_server_config.curve_preferences", raw.curve_preferences, &CURVES)?;

    let auth_type = raw.client_auth_type.unwrap_or_default();
    let cert = pem_source(raw.cert_file, raw.cert, directory);
    let key = pem_source(raw.key_file, raw.key, directory);
    let client_ca = pem_source(raw.client_ca_file, raw.client_ca, directory);
    if cert.is_none() && key.is_none() && client_ca.is_none() && auth_type.is_empty() {
        return Ok(None);
    }
    let missing =
        |setting| WebConfigError::Setting { setting, why: "missing, while other TLS settings are set".into() };
    let cert = cert.ok_or_else(|| missing("tls_server_config.cert_file"))?;
    let key = key.ok_or_else(|| missing("tls_server_config.key_file"))?;
    let client_auth = match auth_type.as_str() {
        "" | "NoClientCert" => ClientAuth::None,
        "RequestClientCert" => ClientAuth::Request,
        // the second is the toolkit's older name for the first
        "RequireAnyClientCert" | "RequireClientCert" => ClientAuth::RequireAny,
        "VerifyClientCertIfGiven" => ClientAuth::VerifyIfGiven,
        "RequireAndVerifyClientCert" => ClientAuth::RequireAndVerify,
        other => {
            let why = format!(
                "{} is none of NoClientCert, RequestClientCert, RequireAnyClientCert, \
                 VerifyClientCertIfGiven, RequireAndVerifyClientCert",
                quoted(other)
            );
            return Err(WebConfigError::Setting { setting: "tls_server_config.client_auth_type", why });
        }
    };
    if client_ca.is_some() && client_auth == ClientAuth::None {
        return Err(WebConfigError::Setting {
            setting: "tls_server_config.client_auth_type",
            why: "missing, while a client CA is set; usually RequireAndVerifyClientCert".into(),
        });
    }
    let texts = |list: Vec<Option<String>>| list.into_iter().map(Option::unwrap_or_default).collect();
    Ok(Some(TlsSettings {
        cert,
        key,
        client_ca,
        client_auth,
        client_allowed_sans: raw.client_allowed_sans.map(texts),
        min_version,
        max_version,
        cipher_suites,
        prefer_server_cipher_suites: raw.prefer_server_cipher_suites.unwrap_or(true),
        curve_preferences,
    }))
}

fn version(setting: &'static str, name: Option<String>) -> Result<Option<TlsVersion>, WebConfigError> {
    let Some(name) = name else { return Ok(None) };
    match name.as_str() {
        "TLS10" => Ok(Some(TlsVersion::Tls10)),
        "TLS11" => Ok(Some(TlsVersion::Tls11)),
        "TLS12" => Ok(Some(TlsVersion::Tls12)),
        "TLS13" => Ok(Some(TlsVersion::Tls13)),
        _ => {
            let why = format!("{} is none of TLS10, TLS11, TLS12, TLS13", quoted(&name));
            Err(WebConfigError::Setting { setting, why })
        }
    }
}

fn names(
    setting: &'static str,
    written: Option<Vec<Option<String>>>,
    known: &[&str],
) -> Result<Vec<String>, WebConfigError> {
    let names: Vec<String> = written.unwrap_or_default().into_iter().flatten().collect();
    match names.iter().find(|name| !known.contains(&name.as_str())) {
        Some(name) => {
            let why = format!("{} is none of {}", quoted(name), known.join(", "));
            Err(WebConfigError::Setting { setting, why })
        }
        None => Ok(names),
    }
}

/// The file, relative to the web configuration file's folder; else the text; an empty one is none.
fn pem_source(file: Option<String>, inline: Option<String>, directory: &Path) -> Option<PemSource> {
    let file = file.filter(|path| !path.is_empty()).map(|path| PemSource::File(directory.join(path)));
    file.or_else(|| inline.filter(|text| !text.is_empty()).map(|text| PemSource::Inline(text.into())))
}

// ---- the files it names ----

/// The content of the files that TLS settings name, as PEM.
pub(super) struct Material {
    pub(super) cert: Vec<u8>,
    pub(super) key: SecretSlice<u8>,
    pub(super) client_ca: Option<Vec<u8>>,
}

impl TlsSettings {
    /// Reads certificate, key and client CA as they are now.
    pub(super) fn read(&self) -> Result<Material, WebConfigError> {
        let pem = |what, source: &PemSource| match source {
            PemSource::File(path) => read(what, path),
            PemSource::Inline(text) => Ok(text.expose_secret().as_bytes().to_vec()),
        };
        Ok(Material {
            cert: pem("tls_server_config.cert_file", &self.cert)?,
            key: pem("tls_server_config.key_file", &self.key)?.into(),
            client_ca: match &self.client_ca {
                Some(source) => Some(pem("tls_server_config.client_ca_file", source)?),
                None => None,
            },
        })
    }
}

impl Material {
    /// A digest of all of it, to see a change.
    fn digest(&self, web_config: &blake3::Hash) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(web_config.as_bytes());
        hasher.update(blake3::hash(&self.cert).as_bytes());
        hasher.update(blake3::hash(self.key.expose_secret()).as_bytes());
        if let Some(client_ca) = &self.client_ca {
            hasher.update(blake3::hash(client_ca).as_bytes());
        }
        hasher.finalize()
    }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, WebConfigError> {
    let refuse = |source| WebConfigError::Read { what, path: path.to_owned(), source };
    read_at_most(PEM_BYTES_MAX, path).map_err(refuse)
}

// ---- kept up to date ----

/// The web configuration file as it is now, or the absence of one.
///
/// Whether TLS is on and whether HTTP/2 is offered is decided once, when it is opened, as in the
/// toolkit; everything else follows the files. The files are compared by content, so that no
/// change is missed whatever the file system's clock does.
pub struct WebFile(Option<Inner>);

struct Inner {
    path: PathBuf,
    tls: bool,
    http2: bool,
    settings: Mutex<Latest<WebConfig>>,
    server: Mutex<Latest<ServerConfig>>,
}

/// The result of the latest look, with the digest of what was looked at.
struct Latest<T> {
    digest: blake3::Hash,
    result: Result<Arc<T>, Unusable>,
}

/// The web configuration file, or a file that it names, is bad now. The reason has been logged.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the web configuration file cannot be used at present")]
pub struct Unusable;

impl fmt::Debug for WebFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WebFile").field(&self.0.as_ref().map(|inner| &inner.path)).finish()
    }
}

impl WebFile {
    /// No file: plain HTTP, no authentication, no added headers.
    pub fn none() -> Self {
        Self(None)
    }

    /// Checks the file and everything it names, and that TLS can be served with it. Blocks on the
    /// file system; call it at start.
    pub fn open(path: &Path) -> Result<Self, WebConfigError> {
        let bytes = read("--web.config.file", path)?;
        let digest = blake3::hash(&bytes);
        let config = parse(path, &bytes)?;
        let mut server = Latest { digest, result: Err(Unusable) };
        if let Some(settings) = &config.tls {
            let material = settings.read()?;
            let made = tls::server_config(settings, &material, config.http2)?;
            server = Latest { digest: material.digest(&digest), result: Ok(Arc::new(made)) };
        }
        config.warn_of_open_files(path);
        Ok(Self(Some(Inner {
            path: path.to_owned(),
            tls: config.tls.is_some(),
            http2: config.http2,
            settings: Mutex::new(Latest { digest, result: Ok(Arc::new(config)) }),
            server: Mutex::new(server),
        })))
    }

    /// Whether connections are TLS; fixed when the file was opened.
    pub fn tls(&self) -> bool {
        self.0.as_ref().is_some_and(|inner| inner.tls)
    }

    /// Whether HTTP/2 is offered; fixed when the file was opened.
    pub fn http2(&self) -> bool {
        self.0.as_ref().is_some_and(|inner| inner.tls && inner.http2)
    }

    /// What holds for a request that comes in now; `Ok(None)` without a file.
    pub(super) async fn settings(self: &Arc<Self>) -> Result<Option<Arc<WebConfig>>, Unusable> {
        if self.0.is_none() {
            return Ok(None);
        }
        let this = Arc::clone(self);
        let looked = tokio::task::spawn_blocking(move || this.0.as_ref().map(Inner::settings).transpose()).await;
        looked.unwrap_or(Err(Unusable))
    }

    /// What holds for a TLS connection that comes in now. `Err` also where the file has no TLS
    /// settings (any more).
    pub(super) async fn server(self: &Arc<Self>) -> Result<Arc<ServerConfig>, Unusable> {
        let this = Arc::clone(self);
        let looked = tokio::task::spawn_blocking(move || this.0.as_ref().ok_or(Unusable)?.server()).await;
        looked.unwrap_or(Err(Unusable))
    }
}

impl Inner {
    fn settings(&self) -> Result<Arc<WebConfig>, Unusable> {
        let (_, settings) = self.look()?;
        Ok(settings)
    }

    fn look(&self) -> Result<(blake3::Hash, Arc<WebConfig>), Unusable> {
        let bytes = read("--web.config.file", &self.path);
        let digest = digest_of(bytes.as_ref().map(|bytes| blake3::hash(bytes)));
        let settings = refresh(&self.settings, digest, "web config file", || {
            let config = parse(&self.path, &bytes?)?;
            if config.tls.is_some() != self.tls || (self.tls && config.http2 != self.http2) {
                tracing::warn!(path = %self.path.display(), "TLS on or off and http2 change only with a restart");
            }
            config.warn_of_open_files(&self.path);
            Ok(config)
        })?;
        Ok((digest, settings))
    }

    fn server(&self) -> Result<Arc<ServerConfig>, Unusable> {
        let (digest, config) = self.look()?;
        let material = match &config.tls {
            Some(settings) => settings.read(),
            None => Err(WebConfigError::Setting {
                setting: "tls_server_config",
                why: "was there at start and is missing now".into(),
            }),
        };
        let digest = digest_of(material.as_ref().map(|material| material.digest(&digest)));
        refresh(&self.server, digest, "TLS certificates", || {
            let material = material?;
            // without TLS settings there is no material
            let settings = config.tls.as_ref().expect("material was read from these settings");
            tls::server_config(settings, &material, self.http2)
        })
    }
}

/// The digest of what was read, or of why it could not be: the same failure is the same state.
fn digest_of(read: Result<blake3::Hash, &WebConfigError>) -> blake3::Hash {
    read.unwrap_or_else(|error| blake3::hash(error.to_string().as_bytes()))
}

/// Makes the thing anew if its digest is another one than at the latest look. Logs each change
/// once, however many requests meet it.
fn refresh<T>(
    latest: &Mutex<Latest<T>>,
    digest: blake3::Hash,
    what: &str,
    make: impl FnOnce() -> Result<T, WebConfigError>,
) -> Result<Arc<T>, Unusable> {
    let mut latest = latest.lock().unwrap_or_else(PoisonError::into_inner);
    if latest.digest != digest {
        latest.result = match make() {
            Ok(value) => {
                tracing::info!("{what} reloaded");
                Ok(Arc::new(value))
            }
            Err(error) => {
                tracing::error!(%error, "{what} cannot be used; requests are refused until it is mended");
                Err(Unusable)
            }
        };
        latest.digest = digest;
    }
    latest.result.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with a certificate, its key, another key and something that is neither.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        write("cert.pem", &made.cert.pem());
        write("key.pem", &made.signing_key.serialize_pem());
        write("other-key.pem", &rcgen::KeyPair::generate().unwrap().serialize_pem());
        write("junk.pem", "no PEM at all\n");
        folder
    }

    const HASH: &str = "$2y$04$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi";

    /// What promtool 2.42 says.
    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Promtool {
        /// The same as we do.
        Same,
        /// It does not know the setting yet.
        TooOld,
    }
    use Promtool::{Same, TooOld};

    /// Our cases: name, file, whether it is accepted, what promtool says. `@CERT` stands for a
    /// usable `cert_file` and `key_file`, `@HASH` for a bcrypt hash.
    const CASES: &[(&str, &str, bool, Promtool)] = &[
        ("nothing", "", true, Same),
        ("only a comment", "# nothing yet\n", true, Same),
        ("null document", "---\n", true, Same),
        ("empty mapping", "{}", true, Same),
        ("null sections", "tls_server_config:\nhttp_server_config:\nbasic_auth_users:\n", true, Same),
        ("a scalar", "hello", false, Same),
        ("a list", "- a\n- b\n", false, Same),
        ("broken yaml", "tls_server_config: {", false, Same),
        ("tab for indentation", "http_server_config:\n\thttp2: true\n", false, Same),
        ("unknown section", "tls_config: {}\n", false, Same),
        ("section twice", "http_server_config: {}\nhttp_server_config: {}\n", false, Same),
        ("unknown key", "tls_server_config:\n  cert: 1\n  certificate: x\n", false, Same),
        ("second document not read", "http_server_config: {http2: true}\n---\nunknown: 1\n", true, Same),
        ("certificate and key", "tls_server_config:\n@CERT", true, Same),
        ("certificate without key", "tls_server_config:\n  cert_file: cert.pem\n", false, Same),
        ("key without certificate", "tls_server_config:\n  key_file: key.pem\n", false, Same),
        ("empty paths", "tls_server_config:\n  cert_file: ''\n  key_file: ''\n", true, Same),
        ("null path", "tls_server_config:\n  cert_file: cert.pem\n  key_file:\n", false, Same),
        ("auth type only", "tls_server_config:\n  client_auth_type: NoClientCert\n", false, Same),
        ("version only: no TLS", "tls_server_config:\n  min_version: TLS13\n", true, Same),
        ("missing file", "tls_server_config:\n  cert_file: absent.pem\n  key_file: key.pem\n", false, Same),
        ("a folder", "tls_server_config:\n  cert_file: .\n  key_file: key.pem\n", false, Same),
        ("no PEM", "tls_server_config:\n  cert_file: junk.pem\n  key_file: key.pem\n", false, Same),
        ("key of another", "tls_server_config:\n  cert_file: cert.pem\n  key_file: other-key.pem\n", false, Same),
        ("key in place of certificate", "tls_server_config:\n  cert_file: key.pem\n  key_file: key.pem\n", false, Same),
        ("every version", "tls_server_config:\n@CERT  min_version: TLS10\n  max_version: TLS13\n", true, Same),
        ("version of SSL", "tls_server_config:\n@CERT  min_version: SSL30\n", false, Same),
        ("version in lower case", "tls_server_config:\n@CERT  min_version: tls12\n", false, Same),
        ("null version", "tls_server_config:\n@CERT  min_version:\n", true, Same),
        ("suites", "tls_server_config:\n@CERT  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]\n", true, Same),
        ("suites of RSA", "tls_server_config:\n@CERT  cipher_suites: [TLS_RSA_WITH_AES_128_CBC_SHA]\n", true, Same),
        ("insecure suite", "tls_server_config:\n@CERT  cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]\n", false, Same),
        ("suite as scalar", "tls_server_config:\n@CERT  cipher_suites: TLS_AES_128_GCM_SHA256\n", false, Same),
        ("no suites", "tls_server_config:\n@CERT  cipher_suites: []\n", true, Same),
        ("unknown suite without TLS", "tls_server_config:\n  cipher_suites: [X]\n", false, Same),
        (
            "curves",
            "tls_server_config:\n@CERT  curve_preferences: [X25519, CurveP256, CurveP384, CurveP521]\n",
            true,
            Same,
        ),
        ("unknown curve", "tls_server_config:\n@CERT  curve_preferences: [P-256]\n", false, Same),
        ("prefer server", "tls_server_config:\n@CERT  prefer_server_cipher_suites: false\n", true, Same),
        ("prefer server: a word", "tls_server_config:\n@CERT  prefer_server_cipher_suites: maybe\n", false, Same),
        ("auth without CA", "tls_server_config:\n@CERT  client_auth_type: RequireAndVerifyClientCert\n", true, Same),
        ("any", "tls_server_config:\n@CERT  client_auth_type: RequireAnyClientCert\n", true, Same),
        ("old name", "tls_server_config:\n@CERT  client_auth_type: RequireClientCert\n", true, Same),
        ("request", "tls_server_config:\n@CERT  client_auth_type: RequestClientCert\n", true, Same),
        ("if given", "tls_server_config:\n@CERT  client_auth_type: VerifyClientCertIfGiven\n", true, Same),
        ("unknown auth", "tls_server_config:\n@CERT  client_auth_type: Require\n", false, Same),
        ("CA without auth", "tls_server_config:\n@CERT  client_ca_file: cert.pem\n", false, Same),
        (
            "CA, no auth wanted",
            "tls_server_config:\n@CERT  client_ca_file: cert.pem\n  client_auth_type: NoClientCert\n",
            false,
            Same,
        ),
        (
            "CA",
            "tls_server_config:\n@CERT  client_ca_file: cert.pem\n  client_auth_type: RequireAndVerifyClientCert\n",
            true,
            Same,
        ),
        (
            "CA missing",
            "tls_server_config:\n@CERT  client_ca_file: absent\n  client_auth_type: RequireAndVerifyClientCert\n",
            false,
            Same,
        ),
        (
            "CA that is none",
            "tls_server_config:\n@CERT  client_ca_file: junk.pem\n  client_auth_type: RequireAndVerifyClientCert\n",
            true,
            Same,
        ),
        (
            "names",
            "tls_server_config:\n@CERT  client_allowed_sans: [a.example, '::1']\n  client_auth_type: RequireAnyClientCert\n",
            true,
            TooOld,
        ),
        ("http2", "http_server_config:\n  http2: false\n", true, Same),
        ("http2 in YAML 1.1", "http_server_config:\n  http2: off\n", true, Same),
        ("http2 by a letter", "http_server_config:\n  http2: y\n", true, Same),
        ("http2 as a number", "http_server_config:\n  http2: 1\n", false, Same),
        ("http2 null", "http_server_config:\n  http2:\n", true, Same),
        ("frame options", "http_server_config:\n  headers: {X-Frame-Options: deny}\n", true, Same),
        ("frame options in capitals", "http_server_config:\n  headers: {X-Frame-Options: DENY}\n", false, Same),
        ("frame options blank", "http_server_config:\n  headers: {X-Frame-Options: ''}\n", false, Same),
        ("header in lower case", "http_server_config:\n  headers: {x-frame-options: deny}\n", false, Same),
        ("other header", "http_server_config:\n  headers: {Server: x}\n", false, Same),
        ("header as a number", "http_server_config:\n  headers: {X-XSS-Protection: 0}\n", true, Same),
        ("header null", "http_server_config:\n  headers: {Content-Security-Policy: }\n", true, Same),
        ("header as a list", "http_server_config:\n  headers: {Content-Security-Policy: [a]}\n", false, Same),
        (
            "header folded",
            "http_server_config:\n  headers:\n    Content-Security-Policy: |\n      a\n      b\n",
            true,
            Same,
        ),
        ("user", "basic_auth_users:\n  alice: @HASH\n", true, Same),
        ("numeric user", "basic_auth_users:\n  12: @HASH\n", true, Same),
        ("user twice", "basic_auth_users:\n  alice: @HASH\n  alice: @HASH\n", false, Same),
        ("user without hash", "basic_auth_users:\n  alice:\n", false, Same),
        ("plain password", "basic_auth_users:\n  alice: secret\n", false, Same),
        (
            "letter of the hash unknown",
            "basic_auth_users:\n  a: $2z$04$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi\n",
            true,
            Same,
        ),
        (
            "hash of version 3",
            "basic_auth_users:\n  a: $3a$04$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi\n",
            false,
            Same,
        ),
        (
            "hash without letter",
            "basic_auth_users:\n  a: $2$04$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi\n",
            true,
            Same,
        ),
        (
            "hash cut short",
            "basic_auth_users:\n  a: $2y$04$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDe\n",
            false,
            Same,
        ),
        (
            "hash with other signs",
            "basic_auth_users:\n  a: $2y$04$____________________________________________________!\n",
            true,
            Same,
        ),
        (
            "cost 3",
            "basic_auth_users:\n  a: $2y$03$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi\n",
            false,
            Same,
        ),
        (
            "cost 32",
            "basic_auth_users:\n  a: $2y$32$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi\n",
            false,
            Same,
        ),
        (
            "cost +4",
            "basic_auth_users:\n  a: $2y$+4$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi\n",
            true,
            Same,
        ),
        (
            "argon2",
            "basic_auth_users:\n  a: $argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHQ$RdescudvJCsgt3ub+b2dWRWJTmaaJObG\n",
            false,
            Same,
        ),
        ("users as a list", "basic_auth_users: [alice]\n", false, Same),
        ("no users", "basic_auth_users: {}\n", true, Same),
        ("rate limit", "rate_limit: {interval: 1s, burst: 3}\n", false, Same),
        ("merge", "basic_auth_users:\n  <<: {a: @HASH}\n  b: @HASH\n", true, Same),
        ("alias", "basic_auth_users:\n  a: &h @HASH\n  b: *h\n", true, Same),
        ("unknown alias", "basic_auth_users:\n  b: *h\n", false, Same),
    ];

    fn written(folder: &Path, yaml: &str) -> PathBuf {
        let path = folder.join("web.yml");
        let yaml = yaml.replace("@CERT", "  cert_file: cert.pem\n  key_file: key.pem\n").replace("@HASH", HASH);
        std::fs::write(&path, yaml).unwrap();
        path
    }

    #[test]
    fn accepts_and_refuses_as_listed() {
        let folder = folder();
        for (name, yaml, accepted, _) in CASES {
            let checked = check(&written(folder.path(), yaml));
            assert_eq!(checked.is_ok(), *accepted, "{name}: {checked:?}");
        }
    }

    /// `None`, said aloud, only where `tests/run` was told that tools may be missing.
    fn promtool() -> Option<PathBuf> {
        let named = std::env::var_os("AUDIT_EXPORTER_PROMTOOL").map(PathBuf::from);
        let in_path = || {
            let path = std::env::var_os("PATH")?;
            std::env::split_paths(&path).map(|folder| folder.join("promtool")).find(|path| path.is_file())
        };
        let found = named.or_else(in_path);
        if found.is_none() {
            let missing = "promtool was not found: run tests/run, which installs it, or set AUDIT_EXPORTER_PROMTOOL";
            let allowed = std::env::var_os("AUDIT_EXPORTER_ALLOW_SKIP").is_some_and(|value| value == "1");
            assert!(allowed, "{missing}");
            let line = format!("SKIPPED: the comparison of web configurations with promtool, {missing}\n");
            if let Some(summary) = std::env::var_os("AUDIT_EXPORTER_SKIPPED") {
                let mut summary = std::fs::OpenOptions::new().create(true).append(true).open(summary).unwrap();
                io::Write::write_all(&mut summary, line.as_bytes()).unwrap();
            }
        }
        found
    }

    #[test]
    fn agrees_with_promtool() {
        let Some(promtool) = promtool() else { return };
        let folder = folder();
        for (name, yaml, accepted, expected) in CASES {
            let path = written(folder.path(), yaml);
            let said = std::process::Command::new(&promtool).args(["check", "web-config"]).arg(&path).output().unwrap();
            if *expected == Same {
                let text = String::from_utf8_lossy(&said.stderr);
                assert_eq!(said.status.success(), *accepted, "{name}: {text}");
            }
        }
    }

    #[test]
    fn inline_certificates_are_read() {
        let folder = folder();
        let text = |name| {
            let text = std::fs::read_to_string(folder.path().join(name)).unwrap();
            format!("    {}\n", text.trim_end().replace('\n', "\n    "))
        };
        let (cert, key) = (text("cert.pem"), text("key.pem"));
        let yaml = format!("tls_server_config:\n  cert: |\n{cert}  key: |\n{key}");
        let config = check(&written(folder.path(), &yaml)).unwrap();
        assert!(!format!("{config:?}").contains("PRIVATE"), "no key in a Debug text");
        let other = text("other-key.pem");
        let yaml = format!("tls_server_config:\n  cert: |\n{cert}  key: |\n{other}");
        check(&written(folder.path(), &yaml)).unwrap_err();
    }

    #[test]
    fn no_message_shows_a_secret() {
        let folder = folder();
        let secret = "hunter2hunter2";
        for yaml in [
            "basic_auth_users: SECRET",
            "basic_auth_users:\n  alice: SECRET\n",
            "basic_auth_users:\n  alice: [SECRET]\n",
            "basic_auth_users:\n  alice: {SECRET: 1}\n",
            "basic_auth_users: [SECRET]\n",
            "tls_server_config:\n  cert_file: cert.pem\n  key: SECRET\n",
            "tls_server_config:\n  key: \"SECRET\n",
            "tls_server_config:\n  key: *SECRET\n",
            "http_server_config:\n  http2: SECRET\n",
            "SECRET",
        ] {
            let error = check(&written(folder.path(), &yaml.replace("SECRET", secret))).unwrap_err();
            assert!(!format!("{error} {error:?}").contains(secret), "{yaml}: {error}");
        }
    }

    #[test]
    fn an_error_says_where() {
        let folder = folder();
        let error = check(&written(folder.path(), "tls_server_config:\n  cert_fil: x\n")).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("\"cert_fil\"") && error.contains("cert_file"), "{error}");
        let error = check(Path::new("/nowhere/web.yml")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/web.yml"), "{error}");
    }

    #[test]
    fn what_rustls_cannot_do_is_refused_at_start_only() {
        let folder = folder();
        for (extra, usable) in [
            ("  max_version: TLS11\n  min_version: TLS10\n", false),
            ("  min_version: TLS13\n  max_version: TLS12\n", false),
            ("  min_version: TLS10\n", true),
            ("  curve_preferences: [CurveP521]\n", false),
            ("  curve_preferences: [CurveP521, CurveP256]\n", true),
            ("  cipher_suites: [TLS_RSA_WITH_AES_128_CBC_SHA]\n", true),
            ("  cipher_suites: [TLS_RSA_WITH_AES_128_CBC_SHA]\n  max_version: TLS12\n", false),
            ("  cipher_suites: [TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256]\n  max_version: TLS12\n", true),
            ("  client_auth_type: RequireAndVerifyClientCert\n", false),
            ("  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: junk.pem\n", false),
            ("  client_auth_type: VerifyClientCertIfGiven\n", true),
        ] {
            let path = written(folder.path(), &format!("tls_server_config:\n@CERT{extra}"));
            check(&path).unwrap();
            let opened = WebFile::open(&path);
            assert_eq!(opened.is_ok(), usable, "{extra}: {opened:?}");
            if let Err(error) = opened {
                assert!(matches!(error, WebConfigError::NothingUsable { .. }), "{error}");
            }
        }
    }

    #[test]
    fn header_values_are_one_line_and_blank_ones_are_unset() {
        let folder = folder();
        let yaml = "http_server_config:\n  headers:\n    Content-Security-Policy: |\n      default-src\n      'self'\n    X-XSS-Protection: ''\n";
        let config = check(&written(folder.path(), yaml)).unwrap();
        assert_eq!(config.headers.len(), 1);
        assert_eq!(config.headers[0].1, "default-src 'self'");
    }

    #[tokio::test]
    async fn a_change_holds_at_the_next_look_and_a_bad_one_never_means_open() {
        let folder = folder();
        let path = written(folder.path(), "basic_auth_users:\n  alice: @HASH\n");
        let web = Arc::new(WebFile::open(&path).unwrap());
        let users = |config: Option<Arc<WebConfig>>| config.unwrap().users.keys().cloned().collect::<Vec<_>>();
        assert_eq!(users(web.settings().await.unwrap()), ["alice"]);
        // of the same length and, as likely as not, of the same time
        written(folder.path(), "basic_auth_users:\n  bobby: @HASH\n");
        assert_eq!(users(web.settings().await.unwrap()), ["bobby"]);
        written(folder.path(), "basic_auth_users: [\n");
        assert_eq!(web.settings().await.unwrap_err(), Unusable);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(web.settings().await.unwrap_err(), Unusable);
        written(folder.path(), "basic_auth_users:\n  alice: @HASH\n");
        assert_eq!(users(web.settings().await.unwrap()), ["alice"]);
    }

    #[test]
    fn the_same_content_is_worked_on_once() {
        let digest = blake3::hash(b"bad");
        let latest = Mutex::new(Latest { digest: blake3::hash(b"good"), result: Ok(Arc::new(1)) });
        let bad = || Err(WebConfigError::Setting { setting: "x", why: "y".into() });
        refresh(&latest, digest, "test", bad).unwrap_err();
        refresh(&latest, digest, "test", || unreachable!("looked at, and logged, twice")).unwrap_err();
        assert_eq!(*refresh(&latest, blake3::hash(b"new"), "test", || Ok(2)).unwrap(), 2);
    }
}
