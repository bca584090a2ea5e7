//! Errors of a source, in one sentence for the person who has to act: what was tried, what came back, what to do.
//!
//! Promises: the text of a failure is one line of bounded length.
//!
//! Leaves to others: to keep secrets and events out of that text (`api.rs`), and to count failures (`stats.rs`).

use std::time::Duration;

/// The most of what was tried, or of what came back, that an error shows.
const SHOWN_CHARS_MAX: usize = 500;

/// What went wrong; the label `kind` of `audit_source_errors_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorKind {
    /// No connection, or it broke.
    Connect,
    /// A certificate or the handshake.
    Tls,
    /// No answer in time.
    Timeout,
    /// The credentials are refused.
    Auth,
    /// The credentials are good but do not allow this.
    Forbidden,
    /// Asked to slow down.
    Throttled,
    /// The service failed, or refused the request as wrong.
    Server,
    /// The address does not exist there.
    NotFound,
    /// The answer is not what the service documents.
    Decode,
    /// The answer is larger than `max_response_bytes`.
    TooLarge,
    /// The service holds more events than it can be made to return.
    Truncated,
    /// The service sent us elsewhere.
    Redirect,
    /// The ledger cannot be written.
    Storage,
    /// A fault in this program.
    Panic,
}

impl ErrorKind {
    /// Every kind.
    pub const ALL: [ErrorKind; 14] = [
        ErrorKind::Connect,
        ErrorKind::Tls,
        ErrorKind::Timeout,
        ErrorKind::Auth,
        ErrorKind::Forbidden,
        ErrorKind::Throttled,
        ErrorKind::Server,
        ErrorKind::NotFound,
        ErrorKind::Decode,
        ErrorKind::TooLarge,
        ErrorKind::Truncated,
        ErrorKind::Redirect,
        ErrorKind::Storage,
        ErrorKind::Panic,
    ];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorKind::Connect => "connect",
            ErrorKind::Tls => "tls",
            ErrorKind::Timeout => "timeout",
            ErrorKind::Auth => "auth",
            ErrorKind::Forbidden => "forbidden",
            ErrorKind::Throttled => "throttled",
            ErrorKind::Server => "server",
            ErrorKind::NotFound => "not_found",
            ErrorKind::Decode => "decode",
            ErrorKind::TooLarge => "too_large",
            ErrorKind::Truncated => "truncated",
            ErrorKind::Redirect => "redirect",
            ErrorKind::Storage => "storage",
            ErrorKind::Panic => "panic",
        }
    }

    /// Whether asking again soon may help.
    pub fn is_transient(self) -> bool {
        matches!(self, ErrorKind::Connect | ErrorKind::Timeout | ErrorKind::Throttled | ErrorKind::Server)
    }
}

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{tried}: {got}; {}", self.advice())]
#[expect(clippy::struct_excessive_bools, reason = "they are four independent facts")]
pub struct Failure {
    /// What went wrong.
    pub kind: ErrorKind,
    /// How long the service asked us to wait.
    pub retry_after: Option<Duration>,
    /// Whether it was a login that failed: too many of them can lock an account.
    pub at_login: bool,
    /// Whether it was a proxy that refused us, not the service.
    pub(crate) by_proxy: bool,
    /// Whether asking the same again soon may help.
    pub(crate) is_transient: bool,
    tried: String,
    got: String,
    pub(crate) remedy: Option<&'static str>,
    pub(crate) counted: bool,
}

impl Failure {
    /// A failure; `tried` and `got` must hold neither secret nor event.
    pub fn new(kind: ErrorKind, tried: impl Into<String>, got: impl Into<String>) -> Self {
        let is_transient = kind.is_transient();
        let (tried, got) = (one_line(&tried.into()), one_line(&got.into()));
        Self {
            kind,
            retry_after: None,
            at_login: false,
            by_proxy: false,
            is_transient,
            tried,
            got,
            remedy: None,
            counted: false,
        }
    }

    /// This failure, with something else to do about it than about others of its kind.
    #[must_use]
    pub fn advising(self, remedy: &'static str) -> Self {
        Self { remedy: Some(remedy), ..self }
    }

    /// What to do about it, where that is not what to do about others of its kind.
    pub fn remedy(&self) -> Option<&'static str> {
        self.remedy
    }

    /// What was tried and what came back, without what to do about it.
    pub fn what_happened(&self) -> String {
        format!("{}: {}", self.tried, self.got)
    }

    /// Whether a login was refused. Any answer to a login that gives no session counts as a refusal, but for those
    /// that pass by themselves (429, 5xx, none at all): who counts our attempts does not tell us.
    pub fn is_refused_login(&self) -> bool {
        self.at_login && !self.by_proxy && !self.is_transient && self.kind != ErrorKind::Tls
    }

    /// Whether more of the same can lock an account: of the service, or of the proxy.
    pub fn may_lock(&self) -> bool {
        self.by_proxy || self.is_refused_login()
    }

    fn advice(&self) -> &'static str {
        if let Some(remedy) = self.remedy {
            return remedy;
        }
        match self.kind {
            ErrorKind::Connect => "check address, proxy and network; the exporter retries",
            ErrorKind::Tls => "check tls.ca_file, tls.server_name and the service's certificate",
            ErrorKind::Timeout => "the exporter retries; raise timeout if the service is just slow",
            ErrorKind::Auth => {
                "check the credential; the exporter retries with growing delays, and at once when the secret file changes"
            }
            ErrorKind::Forbidden => "check the permissions of the credential",
            ErrorKind::Throttled => "the exporter slows down; lower rate_limit if this continues",
            ErrorKind::Server if !self.is_transient => {
                "the service rejects the request: check the configuration and docs/services"
            }
            ErrorKind::Server => "the exporter retries",
            ErrorKind::NotFound => "check the address and the ids in the configuration",
            ErrorKind::Decode => {
                "this is not the documented format; what cannot be parsed is not counted, and is read again"
            }
            ErrorKind::TooLarge => {
                "raise max_response_bytes, or lower page_size, if this is really the service's answer"
            }
            ErrorKind::Truncated => "events beyond the service's limit cannot be read",
            ErrorKind::Redirect => {
                "redirects are not followed, because they could leak the credential: correct the address"
            }
            ErrorKind::Storage => "free or repair the disk; counting then continues by itself",
            ErrorKind::Panic => "please report it, with the log line that names the place; the exporter retries",
        }
    }
}

/// On one line, and not endless: some of it may have come from outside.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN_CHARS_MAX).collect()
}
