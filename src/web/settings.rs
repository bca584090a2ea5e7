//! The settings of a web configuration file, and the files that it names.
//!
//! Promises: no message and no `Debug` text holds a key or a hash.
//!
//! Leaves to others: the format (`config.rs`), what rustls makes of it (`tls.rs`), following the files (`live.rs`).

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use http::{HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretSlice, SecretString};

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
    /// Read again at every look.
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
    pub(super) fn warn_of_open_files(&self, path: &Path) {
        let key = self.tls.as_ref().map(|tls| &tls.key);
        let inline = !self.users.is_empty() || matches!(key, Some(PemSource::Inline(_)));
        let key_file = match key {
            Some(PemSource::File(key)) => Some(key.as_path()),
            _ => None,
        };
        crate::config::warn_of_open_files(inline.then_some(path).into_iter().chain(key_file));
    }
}

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
    /// A digest of all of it, which shows a change.
    pub(super) fn digest(&self, web_config: &blake3::Hash) -> blake3::Hash {
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

/// Reads a file that the setting `what` names.
pub(super) fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, WebConfigError> {
    let refuse = |source| WebConfigError::Read { what, path: path.to_owned(), source };
    read_at_most(PEM_BYTES_MAX, path).map_err(refuse)
}
