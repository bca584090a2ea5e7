//! A request, as a source sees it.
//!
//! Promises: no text about a call holds its query, its headers, its body or a secret that it was told to hide.
//!
//! Leaves to others: to send it (`wire.rs`), to give it the credential (`api.rs`).

use std::fmt;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::failure::{ErrorKind, Failure};
use crate::transport::TransportError;

/// A shorter text is no secret, but part of many words.
const SECRET_CHARS_MIN: usize = 4;

/// A request, as a source sees it.
#[derive(Clone)]
pub struct Call {
    /// `GET` or `POST`.
    pub method: Method,
    /// The whole address.
    pub url: Url,
    /// Headers beside the credential.
    pub headers: HeaderMap,
    /// The body; empty for `GET`.
    pub body: Bytes,
    /// Secrets that the call carries. They are redacted from every text about it.
    pub(super) secrets: Vec<SecretString>,
}

impl Call {
    /// A `GET` that accepts JSON.
    pub fn get(url: Url) -> Self {
        let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static("application/json"))]);
        Self { method: Method::GET, url, headers, body: Bytes::new(), secrets: Vec::new() }
    }

    /// A `POST` of a body of the given type that accepts JSON.
    pub fn post(url: Url, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let mut call = Self::get(url);
        call.method = Method::POST;
        call.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        call.body = body.into();
        call
    }

    /// Adds a header.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Marks a secret that must be redacted from any error about this call.
    #[must_use]
    pub fn hiding(mut self, secret: &SecretString) -> Self {
        self.secrets.push(secret.clone());
        self
    }

    /// What was tried, for an error: without the query, which may hold a bookmark or a name. The path may be one
    /// that an answer gave.
    pub(super) fn tried(&self) -> String {
        let mut shown = self.url.clone();
        shown.set_query(None);
        shown.set_fragment(None);
        let _ = shown.set_username("");
        let _ = shown.set_password(None);
        redact(&self.secrets, format!("{} {shown}", self.method))
    }

    /// The failure of this call below HTTP.
    pub(super) fn failed(&self, error: TransportError) -> Failure {
        let mut failure = Failure::new(error.kind, self.tried(), redact(&self.secrets, error.message));
        failure.remedy = error.remedy;
        // below HTTP nobody but a proxy asks for credentials
        failure.by_proxy = error.kind == ErrorKind::Auth;
        failure
    }
}

/// Neither headers nor body: they may hold a credential.
impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Call").field(&self.tried()).finish()
    }
}

/// Takes the secrets out of `text`, in upper or lower case: a host name, say, comes back in lower case.
pub(super) fn redact(secrets: &[SecretString], mut text: String) -> String {
    for secret in secrets.iter().map(|secret| secret.expose_secret().to_ascii_lowercase()) {
        while secret.len() >= SECRET_CHARS_MIN
            && let Some(at) = text.to_ascii_lowercase().find(&secret)
        {
            text.replace_range(at..at + secret.len(), "…");
        }
    }
    text
}
