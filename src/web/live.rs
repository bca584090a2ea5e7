//! The current web configuration file.
//!
//! Promises: [`WebFile`] looks at the file anew whenever it is asked, as the exporter-toolkit does. What it hands out is
//! either made from the present content or an error, never an older state and never "no authentication".
//!
//! Leaves to others: the format (`config.rs`), what rustls makes of the TLS settings (`tls.rs`), asking for passwords
//! (`protect.rs`), sockets (`listen.rs`).

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ServerConfig;

use super::config::parse;
use super::settings::{WebConfig, WebConfigError, read};
use super::tls;

/// The current web configuration file, or none.
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

    /// Checks the file, and nothing that it names.
    pub fn check_without_secrets(path: &Path) -> Result<(), WebConfigError> {
        parse(path, &read("--web.config.file", path)?).map(drop)
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

    /// The settings for a request that comes in now; `Ok(None)` without a file.
    pub(super) async fn settings(self: &Arc<Self>) -> Result<Option<Arc<WebConfig>>, Unusable> {
        if self.0.is_none() {
            return Ok(None);
        }
        let this = Arc::clone(self);
        let looked = tokio::task::spawn_blocking(move || this.0.as_ref().map(Inner::settings).transpose()).await;
        looked.unwrap_or(Err(Unusable))
    }

    /// The settings for a TLS connection that comes in now. `Err` also if the file has no TLS settings (any more).
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

/// The digest of the content, or of the reason why it could not be read: the same failure is the same state.
fn digest_of(read: Result<blake3::Hash, &WebConfigError>) -> blake3::Hash {
    read.unwrap_or_else(|error| blake3::hash(error.to_string().as_bytes()))
}

/// Rebuilds the value when the digest has changed. Logs each change once, however many requests meet it.
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
                tracing::error!(%error, "{what} cannot be used; requests are refused until it is fixed");
                Err(Unusable)
            }
        };
        latest.digest = digest;
    }
    latest.result.clone()
}

#[cfg(test)]
mod tests;
