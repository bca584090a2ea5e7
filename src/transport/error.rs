//! Errors of connecting a source, and of requests without an answer.

use std::fmt;
use std::path::{Path, PathBuf};

use rustls::pki_types::InvalidDnsNameError;

use crate::failure::ErrorKind;
use crate::proxy::ProxyError;
use crate::settings::secret::SecretError;

/// What a 407 is.
pub const PROXY_WANTS_CREDENTIALS: &str = "the proxy on the way wants to know who we are";
/// What to do about it.
pub const PROXY_REMEDY: &str =
    "set proxy_username and proxy_password, or correct them; it is tried again ever more slowly, because accounts lock";

/// Why no answer, or only part of one, arrived.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct TransportError {
    /// `Connect`, `Tls`, `Timeout`, `Decode` (a body that is not the gzip it says it is, see `encoding.rs`) or `Auth` (a
    /// proxy that wants to know who we are).
    pub kind: ErrorKind,
    /// What happened, without the address.
    pub message: String,
    /// What to do about it, if that differs from the advice for others of its kind.
    pub remedy: Option<&'static str>,
}

impl TransportError {
    /// An error like others of its kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), remedy: None }
    }
}

/// Why a source cannot be connected. Nobody matches on it: a start and a reload are refused with its words, and `doctor`
/// shows them. The variants tell which setting is to be corrected.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A certificate or key cannot be used.
    #[error("{what} {path} {why}", path = path.display())]
    Tls {
        /// The setting that names the file.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// `tls.server_name` is no name.
    #[error("no HTTP client: tls.server_name: {0}")]
    ServerName(#[from] InvalidDnsNameError),
    /// A proxy of the environment cannot be used.
    #[error("no HTTP client: {0}")]
    Proxy(#[from] ProxyError),
    /// `proxy_password` cannot be read.
    #[error("no HTTP client: {0}")]
    ProxyPassword(#[from] SecretError),
    /// No setting of its own: what the client says when all else is in order.
    #[error("no HTTP client: {0}")]
    Client(reqwest::Error),
}

impl ConnectError {
    pub(super) fn tls(what: &'static str, path: &Path, why: impl fmt::Display) -> Self {
        Self::Tls { what, path: path.to_owned(), why: why.to_string() }
    }
}
