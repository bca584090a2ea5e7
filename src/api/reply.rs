//! An answer, and what may be quoted from it.
//!
//! Promises: no text about an answer holds an event, a token or a secret that its request carried, even where the
//! service repeats what it was sent.
//!
//! Leaves to others: to read it off the wire (`wire.rs`), and what it means to a service (`source/*.rs`).

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use http::{HeaderMap, StatusCode, header};
use secrecy::SecretString;
use url::Url;

use super::call::{Call, redact};
use super::headers::asked_pause;
use crate::failure::{ErrorKind, Failure};
use crate::transport::{Body, PROXY_REMEDY, PROXY_WANTS_CREDENTIALS};

/// The most of an error's body that is read.
pub(super) const ERROR_BODY_MAX: u64 = 64 << 10;
/// What a firewall or a proxy likes to send instead of the service's answer.
const PAGE: &str = "an HTML page, maybe of a firewall or proxy";
/// UTF-8's byte order mark.
const BOM: &[u8] = b"\xef\xbb\xbf";
/// A word of an error that is as long as this may be a token.
const TOKEN_CHARS_MIN: usize = 40;
/// A content type is not longer; what a service writes there instead is not repeated.
const CONTENT_TYPE_CHARS_MAX: usize = 40;
/// The codes of an ended token, without what joins their words.
const INVALID_TOKEN: [&str; 7] = [
    "invalidtoken",
    "invalidaccesstoken",
    "tokenexpired",
    "expiredtoken",
    "accesstokenexpired",
    "tokenrevoked",
    "revokedtoken",
];

/// A whole answer.
#[derive(Clone)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, decompressed.
    pub body: Bytes,
    /// When it had arrived, by our clock.
    pub at: DateTime<Utc>,
    /// Whether it answers a login, whose error may repeat what was sent.
    pub(super) at_login: bool,
    pub(super) tried: String,
    /// The secrets that the request carried.
    pub(super) secrets: Vec<SecretString>,
}

/// Neither headers nor body: they may hold a credential, or an event.
impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reply").field(&self.tried).field(&self.status).finish()
    }
}

impl Reply {
    /// An answer that was never asked for.
    #[cfg(test)]
    pub(crate) fn of(status: StatusCode, headers: HeaderMap, body: &'static str) -> Self {
        let (body, at) = (Bytes::from_static(body.as_bytes()), DateTime::UNIX_EPOCH);
        Self { status, headers, body, at, at_login: false, tried: String::new(), secrets: Vec::new() }
    }

    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Method and address of the request, without its query.
    pub fn tried(&self) -> &str {
        &self.tried
    }

    /// The failure of an answer that is not what the service documents. `why` must not quote it.
    pub fn undecodable(&self, why: impl fmt::Display) -> Failure {
        let got = format!("status {}, {}: {why}", self.status.as_u16(), self.shape());
        let mut failure = Failure::new(ErrorKind::Decode, self.tried.clone(), redact(&self.secrets, got));
        failure.remedy = page_remedy(ErrorKind::Decode).filter(|_| self.is_page());
        failure
    }

    /// The failure of an answer to a login that gives no session, whatever its status. `why` must not quote it.
    ///
    /// It counts as a refused login: nothing says that the next one would not be the one that locks the account.
    pub fn no_session(&self, why: impl fmt::Display) -> Failure {
        let code = error_summary(&self.body, true).map(|code| format!(" ({code})")).unwrap_or_default();
        let got = format!("status {}, {}: {why}{code}", self.status.as_u16(), self.shape());
        let failure = Failure::new(ErrorKind::Auth, self.tried.clone(), redact(&self.secrets, got));
        failure.advising(
            "the login gave no session: check the credential, and who answers at this address; the exporter retries with \
             growing delays, as after a refused password",
        )
    }

    /// The failure this answer stands for.
    pub fn failure(&self, kind: ErrorKind) -> Failure {
        let status = self.status.as_u16();
        let by_proxy = self.status == StatusCode::PROXY_AUTHENTICATION_REQUIRED;
        let (got, remedy) = if by_proxy {
            (format!("status {status}: {PROXY_WANTS_CREDENTIALS}"), Some(PROXY_REMEDY))
        } else if kind == ErrorKind::Redirect {
            (format!("status {status} {}", self.redirect_target()), None)
        } else if self.is_page() {
            (format!("status {status}, {PAGE}"), page_remedy(kind))
        } else {
            let summary = error_summary(&self.body, self.at_login).map(|text| format!(": {text}")).unwrap_or_default();
            (format!("status {status}{summary}"), None)
        };
        let mut failure = Failure::new(kind, self.tried.clone(), redact(&self.secrets, got));
        failure.retry_after = asked_pause(&self.headers, self.at, self.status, kind);
        // a request that is wrong stays wrong
        failure.is_transient &= kind != ErrorKind::Server || !self.status.is_client_error();
        failure.by_proxy = by_proxy;
        failure.remedy = remedy;
        failure
    }

    /// The body, without the byte order mark that some services put before their JSON.
    pub fn json(&self) -> &[u8] {
        self.body.strip_prefix(BOM).unwrap_or(&self.body)
    }

    /// Whether this is a page for people, where an answer for programs belongs.
    pub fn is_page(&self) -> bool {
        let body = self.json().trim_ascii_start();
        let head = body[..body.len().min(1024)].to_ascii_lowercase();
        let is_html = || head.windows(5).any(|five| five == b"<html") || head.starts_with(b"<!doctype html");
        head.first() == Some(&b'<') && (!head.starts_with(b"<?xml") || is_html())
    }

    /// Describes the body without quoting it.
    fn shape(&self) -> String {
        if self.is_page() {
            return PAGE.to_owned();
        }
        let kind = self.header("content-type").unwrap_or("no content type");
        let kind: String = kind.split(';').next().unwrap_or_default().chars().take(CONTENT_TYPE_CHARS_MAX).collect();
        format!("{} bytes of {kind}", self.body.len())
    }

    /// Where a redirect leads: the path within the same origin, which tells whether it is a page to log in; of another
    /// origin no more than its name. Never the query, nor what may be a token.
    fn redirect_target(&self) -> String {
        let from = self.tried.split_once(' ').and_then(|(_, from)| Url::parse(from).ok());
        let to = from.as_ref().and_then(|from| from.join(self.header("location")?.trim()).ok());
        let (Some(from), Some(to)) = (from, to) else { return "without a target".to_owned() };
        let origin = to.origin().ascii_serialization();
        if to.origin() != from.origin() {
            return format!("to {origin}");
        }
        // behind a semicolon stands what may be a session
        let segments = to.path().split('/').map(|segment| segment.split(';').next().unwrap_or_default());
        let path: Vec<&str> =
            segments.map(|segment| if segment.len() < TOKEN_CHARS_MIN { segment } else { "…" }).collect();
        format!("to {origin}{}", path.join("/"))
    }
}

/// What to do about an HTML page: it may not come from the service.
fn page_remedy(kind: ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::Auth | ErrorKind::Forbidden => Some(
            "check who answers at this address: a firewall or proxy may forbid what the service allows; if it is the \
             service, check the credential and its permissions",
        ),
        ErrorKind::NotFound => Some(
            "check the address and the ids in the configuration, and whether a firewall or proxy answers for the service",
        ),
        ErrorKind::Server | ErrorKind::Timeout => {
            Some("the exporter retries; if this continues, check whether a firewall or proxy answers for the service")
        }
        ErrorKind::Decode => Some(
            "check who answers at this address: it may be a login page, a firewall or a proxy; the exporter retries",
        ),
        _ => None,
    }
}

/// An answer whose body is read as it arrives.
pub struct Download {
    /// Its headers.
    pub headers: HeaderMap,
    pub(super) body: Body,
    /// How long the next piece may take.
    pub(super) idle: Duration,
    pub(super) call: Call,
}

impl Download {
    /// The next piece; `None` at the end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Failure> {
        match tokio::time::timeout(self.idle, self.body.next()).await {
            Ok(Some(Ok(bytes))) => Ok(Some(bytes)),
            Ok(Some(Err(error))) => Err(self.call.failed(error)),
            Ok(None) => Ok(None),
            Err(_) => Err(Failure::new(ErrorKind::Timeout, self.call.tried(), format!("nothing for {:?}", self.idle))),
        }
    }
}

/// Whether an answer says, in the words of OAuth (RFC 6750, section 3.1), that the token is no longer good. A new one
/// may be.
pub fn says_invalid_token(reply: &Reply) -> bool {
    let is_code = |text: &str| {
        let code: String = text.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
        INVALID_TOKEN.contains(&code.as_str())
    };
    let challenges = reply.headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let mut errors = challenges.flat_map(|text| text.split([',', ' '])).filter_map(|part| {
        let (name, value) = part.split_once('=')?;
        name.trim().eq_ignore_ascii_case("error").then(|| value.trim().trim_matches('"'))
    });
    if errors.any(is_code) {
        return true;
    }
    if reply.body.len() as u64 > ERROR_BODY_MAX {
        return false;
    }
    let Ok(whole) = serde_json::from_slice::<serde_json::Value>(reply.json()) else { return false };
    let inner = whole.get("error").filter(|error| error.is_object()).unwrap_or(&whole);
    ["error", "code", "errorCode", "type"]
        .into_iter()
        .any(|key| inner.get(key).and_then(serde_json::Value::as_str).is_some_and(is_code))
}

/// What an error's body says, if it is JSON of one of the usual shapes: one line of at most 200 characters. Of the
/// answer to a login only the codes are shown, because its words may repeat the secret. Words as long as a token are
/// left out everywhere.
fn error_summary(body: &[u8], at_login: bool) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    let inner = value.get("error").filter(|error| error.is_object()).unwrap_or(&value);
    let text = |key: &str| inner.get(key).and_then(serde_json::Value::as_str);
    let codes = ["code", "error", "type", "scimType"];
    let words = ["title", "message", "detail", "description", "error_description"];
    let is_code =
        |text: &&str| text.len() <= 40 && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.: ".contains(c));
    let codes = codes.into_iter().filter_map(text).filter(|text| !at_login || is_code(text));
    let words = words.into_iter().filter(|_| !at_login).filter_map(text);
    let texts: Vec<String> = codes
        .chain(words)
        .filter(|text| !text.is_empty())
        .map(|text| {
            text.split_whitespace()
                .map(|word| if word.len() < TOKEN_CHARS_MIN { word } else { "…" })
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    let line: String = texts.join(": ").chars().filter(|c| !c.is_control()).take(200).collect();
    (!line.is_empty()).then_some(line)
}

#[cfg(test)]
mod tests;
