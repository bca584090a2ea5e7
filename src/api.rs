//! The one polite client. Every request of a source, logins and retries too, goes through it.
//!
//! Promises:
//! - **Politeness.** Every request passes one gate: our budget, which nothing bypasses, and the
//!   time the service asked us to wait.
//! - **Credentials.** A session is opened when needed, renewed in time, and renewed once when the
//!   service says it has ended, or when poll after poll gets no good answer with it. Whatever an
//!   outage does, new sessions are bounded per hour; a refused credential is never tried twice in a row.
//! - **Bounds.** Every exchange has a deadline, every body a cap, decompressed.
//! - **Home.** A credential goes to the origin that its session names and nowhere else, whatever
//!   address an answer gave.
//! - **Errors** are classified here, say what was tried, what came back and what to do, and hold
//!   no query, no token and no event, even where a service repeats what it was sent.
//!
//! Leaves to others: what to ask and what an answer means (`source/*.rs`), when to ask again after
//! a failed poll (`poll.rs`), the connection itself (`transport.rs`).

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU32;
use std::ops::Add;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::StreamExt;
use governor::clock::{Clock as GovernorClock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;
use url::Url;

use crate::clock::{Clock, delta, written};
use crate::encoding;
use crate::failure::{ErrorKind, Failure};
use crate::stats::SourceStats;
use crate::transport::{Body, Transport, TransportError};

/// How often a request is made again after a failure that may pass.
const RETRIES_MAX: u32 = 3;
/// First wait before a retry; doubled each time, and jittered.
const RETRY_DELAY: Duration = Duration::from_millis(500);
/// A service that asks for a longer pause ends the poll; the next one waits as long.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(2);
/// No service means a longer pause; a source is not left for good because of a number.
const RETRY_AFTER_BELIEVED: Duration = Duration::from_hours(24);
/// No session is believed to last longer.
pub const LIFETIME_BELIEVED: Duration = Duration::from_hours(24 * 365);
/// No session is renewed sooner after it was opened, however short it says it lasts: rather one refused request
/// than a login for each.
const LIFETIME_MIN: Duration = Duration::from_mins(1);
/// After this many polls in a row without a good answer, a new session may be the cure: a login may name another
/// address, or replace a token that was lost on the other side.
const FRUITLESS_POLLS_MAX: u32 = 3;
/// Pause between one session that did not help and the next, where the service says that sessions end.
const RENEWAL_PAUSE: Duration = Duration::from_mins(1);
/// How much longer that pause is each time.
const RENEWAL_PAUSE_GROWS: u32 = 4;
/// The longest such pause, and the pause where the service does not say so.
const RENEWAL_PAUSE_MAX: Duration = Duration::from_hours(1);
/// The most of an error's body that is read.
const ERROR_BODY_MAX: u64 = 64 << 10;
/// The longest address that is asked for; an answer may say where to go on.
const URL_BYTES_MAX: usize = 8 << 10;
/// The longest token of a session: a credential in a file may not be longer either.
const TOKEN_BYTES_MAX: usize = 64 << 10;
/// Where a service's clock is further off, one of the two is wrong: windows planned by a year that is wrong
/// would give history up, or have what happens until then be taken for read.
pub const SKEW_BELIEVED: TimeDelta = TimeDelta::hours(24);
/// The most that `Age` may say (RFC 9111, section 1.2.2).
const AGE_SECONDS_MAX: f64 = 2_147_483_648.0;
/// A `Date` header is a whole second and may have been on its way for another.
const SKEW_MIN: TimeDelta = TimeDelta::seconds(2);

/// What bounds the requests of one source.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests in `per`, on the long run.
    pub requests: u32,
    /// See `requests`.
    pub per: Duration,
    /// Requests at once.
    pub burst: u32,
    /// One exchange, from the first byte sent to the last received.
    pub timeout: Duration,
    /// One body, decompressed.
    pub max_response_bytes: u64,
}

impl Limits {
    fn rate(&self) -> (u32, Duration, u32) {
        (self.requests, self.per, self.burst)
    }

    fn burst(&self) -> NonZeroU32 {
        NonZeroU32::new(self.burst).unwrap_or(NonZeroU32::MIN)
    }
}

/// What a login gives: the secret that later requests carry.
pub struct Session {
    /// The token or session id.
    pub token: SecretString,
    /// Where later requests go: as configured, or as the login says. A request to another origin
    /// is refused before it is sent.
    pub base: Url,
    /// From when on it is renewed before use.
    pub renew_at: Option<DateTime<Utc>>,
}

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
    /// What it carries and no text about it may repeat.
    secrets: Vec<SecretString>,
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

    /// With one more header.
    #[must_use]
    pub fn with(mut self, name: header::HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// With a secret that it carries, so that what is told of the answer does not repeat it.
    #[must_use]
    pub fn hiding(mut self, secret: &SecretString) -> Self {
        self.secrets.push(secret.clone());
        self
    }

    /// What was tried, for an error: without the query, which may hold a bookmark or a name. The path may be one
    /// that an answer gave.
    fn tried(&self) -> String {
        let mut shown = self.url.clone();
        shown.set_query(None);
        shown.set_fragment(None);
        let _ = shown.set_username("");
        let _ = shown.set_password(None);
        redact(&self.secrets, format!("{} {shown}", self.method))
    }

    fn failed(&self, error: TransportError) -> Failure {
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

/// A header that holds a secret behind `prefix`: never printed, and wiped when it is dropped.
/// `None` if no header can hold it.
pub fn secret_header(prefix: &str, secret: &SecretString) -> Option<HeaderValue> {
    let secret = secret.expose_secret();
    let mut value = Zeroizing::new(Vec::with_capacity(prefix.len() + secret.len()));
    value.extend_from_slice(prefix.as_bytes());
    value.extend_from_slice(secret.as_bytes());
    let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(value)).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// `text` without the secrets, in whatever case: a host name, say, has lost it.
fn redact(secrets: &[SecretString], mut text: String) -> String {
    for secret in secrets.iter().map(|secret| secret.expose_secret().to_ascii_lowercase()) {
        while secret.len() >= SECRET_CHARS_MIN
            && let Some(at) = text.to_ascii_lowercase().find(&secret)
        {
            text.replace_range(at..at + secret.len(), "…");
        }
    }
    text
}

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
    at_login: bool,
    tried: String,
    /// What the request carried.
    secrets: Vec<SecretString>,
}

/// Neither headers nor body: they may hold a credential, or an event.
impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reply").field(&self.tried).field(&self.status).finish()
    }
}

impl Reply {
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
            "no session came of this login: check the credential, and who answers at this address; it is tried again \
             ever more slowly, as after a refused password",
        )
    }

    /// The failure this answer stands for.
    pub fn failure(&self, kind: ErrorKind) -> Failure {
        let status = self.status.as_u16();
        let by_proxy = self.status == StatusCode::PROXY_AUTHENTICATION_REQUIRED;
        let (got, remedy) = if by_proxy {
            (format!("status {status}: {PROXY_WANTS_CREDENTIALS}"), Some(PROXY_REMEDY))
        } else if kind == ErrorKind::Redirect {
            (format!("status {status} {}", self.leads()), None)
        } else if self.is_page() {
            (format!("status {status}, {PAGE}"), page_remedy(kind))
        } else {
            let said = error_summary(&self.body, self.at_login).map(|said| format!(": {said}")).unwrap_or_default();
            (format!("status {status}{said}"), None)
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

    /// What the body is, without a word of it.
    fn shape(&self) -> String {
        if self.is_page() {
            return PAGE.to_owned();
        }
        let kind = self.header("content-type").unwrap_or("no content type");
        let kind: String = kind.split(';').next().unwrap_or_default().chars().take(CONTENT_TYPE_CHARS_MAX).collect();
        format!("{} bytes of {kind}", self.body.len())
    }

    /// Where a redirect leads: within the same origin its path, which tells whether it is a page to log in; of
    /// another one no more than the origin. Never its query, nor what may be a token.
    fn leads(&self) -> String {
        let from = self.tried.split_once(' ').and_then(|(_, from)| Url::parse(from).ok());
        let to = from.as_ref().and_then(|from| from.join(self.header("location")?.trim()).ok());
        let (Some(from), Some(to)) = (from, to) else { return "without a place to go to".to_owned() };
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

/// What a firewall or a proxy likes to send instead of the service's answer.
const PAGE: &str = "an HTML page, maybe of a firewall or proxy";
/// UTF-8's byte order mark.
const BOM: &[u8] = b"\xef\xbb\xbf";
/// What a 407 is.
pub const PROXY_WANTS_CREDENTIALS: &str = "the proxy on the way wants to know who we are";
/// What to do about it.
pub const PROXY_REMEDY: &str =
    "set proxy_username and proxy_password, or correct them; it is tried again ever more slowly, because accounts lock";

/// What to do about a page: whoever sent it may not be the service.
fn page_remedy(kind: ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::Auth | ErrorKind::Forbidden => Some(
            "see who answers at this address: a firewall or proxy may forbid what the service would allow; if it is the \
             service, check the credential and its permissions",
        ),
        ErrorKind::NotFound => Some(
            "check the address and the ids in the configuration, and whether a firewall or proxy answers for the service",
        ),
        ErrorKind::Server | ErrorKind::Timeout => {
            Some("it is tried again; if this goes on, see whether a firewall or proxy answers for the service")
        }
        ErrorKind::Decode => Some(
            "see who answers at this address: it may be a page to log in, a firewall or a proxy; it is tried again",
        ),
        _ => None,
    }
}

/// An answer whose body is read as it arrives.
pub struct Download {
    /// Its headers.
    pub headers: HeaderMap,
    body: Body,
    idle: Duration,
    call: Call,
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

/// What an answer means for the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is an answer to the question.
    Good,
    /// The session has ended: renew it and ask again.
    Expired,
    /// It is an error.
    Bad(ErrorKind),
}

/// The meaning of a status where the service has no custom of its own.
pub fn judge_by_status(status: StatusCode) -> Verdict {
    match status.as_u16() {
        200..=299 => Verdict::Good,
        300..=399 => Verdict::Bad(ErrorKind::Redirect),
        401 => Verdict::Expired,
        407 => Verdict::Bad(ErrorKind::Auth),
        403 => Verdict::Bad(ErrorKind::Forbidden),
        404 | 410 => Verdict::Bad(ErrorKind::NotFound),
        408 => Verdict::Bad(ErrorKind::Timeout),
        429 => Verdict::Bad(ErrorKind::Throttled),
        _ => Verdict::Bad(ErrorKind::Server),
    }
}

/// What is particular to a service beside its events: how to log in, how to carry the
/// credential, what its errors mean.
#[async_trait]
pub trait Dialect: Send + Sync {
    /// Opens a session. Requests it needs go through `wire`, and so through the same budget.
    async fn open_session(&self, wire: &Wire) -> Result<Session, Failure>;

    /// Whether the session is worth keeping; not where opening one only reads a file.
    fn keeps_session(&self) -> bool {
        true
    }

    /// The header that carries the credential; `None` if none can. A request without it is not sent.
    fn credential(&self, session: &Session) -> Option<(HeaderName, HeaderValue)> {
        Some((header::AUTHORIZATION, secret_header("Bearer ", &session.token)?))
    }

    /// What an answer means.
    fn judge(&self, reply: &Reply) -> Verdict {
        judge_by_status(reply.status)
    }

    /// What the service says is left of its budget, and how long to pause because of it.
    fn budget(&self, _headers: &HeaderMap) -> Option<(f64, Duration)> {
        None
    }
}

/// Requests without a session: the gate, the deadline, the cap. Logins use it directly.
pub struct Wire {
    transport: Arc<dyn Transport>,
    limits: Limits,
    gate: Arc<Gate>,
    stats: Arc<SourceStats>,
    clock: Clock,
    random: Mutex<StdRng>,
}

impl Wire {
    /// Sends a call of a login and reads the whole answer, whatever its status.
    pub async fn login_exchange(&self, call: &Call) -> Result<Reply, Failure> {
        self.exchange(call, true).await
    }

    async fn exchange(&self, call: &Call, at_login: bool) -> Result<Reply, Failure> {
        let call = &*self.hiding_all(call);
        let exchange = async {
            let (status, headers, body, clock) = self.send(call).await?;
            // a clock that is wrong is told of by what is read with the session: another login would not set it right
            if !at_login {
                clock?;
            }
            self.read(call, status, headers, body, self.limits.max_response_bytes).await
        };
        Ok(Reply { at_login, ..self.pass_and_bound(call, exchange).await? })
    }

    /// Sends a call; a good answer's body is left to be read, any other is read whole.
    async fn open(&self, call: &Call) -> Result<Result<Download, Reply>, Failure> {
        let call = &*self.hiding_all(call);
        let exchange = async {
            let (status, headers, body, clock) = self.send(call).await?;
            clock?;
            if status.is_success() {
                return Ok(Ok(Download { headers, body, idle: self.limits.timeout, call: call.clone() }));
            }
            self.read(call, status, headers, body, ERROR_BODY_MAX).await.map(Err)
        };
        self.pass_and_bound(call, exchange).await
    }

    /// The call with the secrets that the transport adds to it.
    fn hiding_all<'c>(&self, call: &'c Call) -> Cow<'c, Call> {
        let secrets = self.transport.secrets();
        if secrets.is_empty() {
            return Cow::Borrowed(call);
        }
        Cow::Owned(secrets.iter().fold(call.clone(), Call::hiding))
    }

    /// Every request: through the gate first, and then not longer than its deadline.
    async fn pass_and_bound<T>(
        &self,
        call: &Call,
        exchange: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        self.gate.pass(&self.stats).await;
        tokio::time::timeout(self.limits.timeout, exchange).await.unwrap_or_else(|_| {
            let got = format!("no whole answer in {:?}", self.limits.timeout);
            Err(Failure::new(ErrorKind::Timeout, call.tried(), got))
        })
    }

    /// Sends a call. The last of what it gives says whether the service's clock and ours can both be right.
    async fn send(&self, call: &Call) -> Result<(StatusCode, HeaderMap, Body, Result<(), Failure>), Failure> {
        let length = call.url.as_str().len();
        if length > URL_BYTES_MAX {
            let got = format!("the service leads to an address of {length} bytes");
            return Err(Failure::new(ErrorKind::Decode, call.tried(), got));
        }
        let mut request = Request::builder().method(call.method.clone()).uri(call.url.as_str());
        if let Some(headers) = request.headers_mut() {
            headers.clone_from(&call.headers);
            // what a cache kept is of another moment than the one that is asked about
            headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache"));
            headers.insert(header::ACCEPT_ENCODING, encoding::ACCEPTED);
        }
        let request = request
            .body(call.body.clone())
            .map_err(|error| Failure::new(ErrorKind::Connect, call.tried(), error.to_string()))?;
        let (head, body) = self.transport.send(request).await.map_err(|error| call.failed(error))?.into_parts();
        self.stats.request(head.status.as_u16());
        let clock = self.note_clock(&head.headers, head.status).map_err(|got| {
            Failure::new(ErrorKind::Decode, call.tried(), got)
                .advising("set the clock that is wrong (NTP); what is not read now is read then")
        });
        let body = match encoding::unpacked(&head.headers, body) {
            Ok(body) => body,
            Err(error) if head.status.is_success() => return Err(call.failed(error)),
            // its status says enough
            Err(_) => futures_util::stream::empty().boxed(),
        };
        Ok((head.status, head.headers, body, clock))
    }

    /// Reads the rest of an answer, as long as it is no longer than `cap`.
    async fn read(
        &self,
        call: &Call,
        status: StatusCode,
        headers: HeaderMap,
        mut body: Body,
        cap: u64,
    ) -> Result<Reply, Failure> {
        let mut whole = Vec::new();
        while let Some(chunk) = body.next().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                // what refuses us is dealt with by its status, however it is packed
                Err(error) if error.kind == ErrorKind::Decode && !status.is_success() => break,
                Err(error) => return Err(call.failed(error)),
            };
            if (whole.len() + chunk.len()) as u64 > cap {
                return Err(Failure::new(
                    ErrorKind::TooLarge,
                    call.tried(),
                    format!("an answer of more than {cap} bytes"),
                ));
            }
            whole.extend_from_slice(&chunk);
        }
        let (tried, secrets) = (call.tried(), call.secrets.clone());
        let body = crate::source::text::plain(whole);
        Ok(Reply { status, headers, body, at: self.now(), at_login: false, tried, secrets })
    }

    /// Measures the service's clock by its `Date` header. `Err` where that and ours cannot both be
    /// right: windows are planned by them, so that events would be passed over.
    ///
    /// An answer from a cache says in `Age` how long ago its `Date` was. But there are caches that write a `Date` of
    /// their own beside it: of the two readings, the one that is closer to what is known is believed. To believe in a
    /// service that is ahead would have what has not happened yet taken for read.
    fn note_clock(&self, headers: &HeaderMap, status: StatusCode) -> Result<(), String> {
        let Some(date) = date_of(headers, &header::DATE) else { return Ok(()) };
        let now = self.clock.now();
        let known = self.stats.observed().clock_skew.filter(|skew| skew.abs() <= SKEW_BELIEVED).unwrap_or_default();
        let aged = date + age_of(headers);
        let date = if (aged - now - known).abs() < (date - now - known).abs() { aged } else { date };
        let skew = date - now;
        let believed = skew.abs() <= SKEW_BELIEVED;
        // what refuses us may be a proxy, and is dealt with by its status
        if !believed && !status.is_success() {
            return Ok(());
        }
        self.stats.observed().clock_skew = Some(if skew.abs() < SKEW_MIN { TimeDelta::zero() } else { skew });
        if believed {
            return Ok(());
        }
        let (date, now) = (written(date), written(now));
        Err(format!("an answer of {date}, while it is {now} here: what to ask for cannot be told"))
    }

    /// The present.
    pub fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// When the credential that the user configured ends, where it tells.
    pub fn note_credential_expiry(&self, expiry: Option<DateTime<Utc>>) {
        self.stats.observed().credential_expiry = expiry;
    }

    fn retry_delay(&self, attempt: u32) -> Duration {
        let jitter = self.random.lock().unwrap_or_else(PoisonError::into_inner).random_range(0.8..1.2);
        (RETRY_DELAY * 2_u32.saturating_pow(attempt)).mul_f64(jitter)
    }
}

/// The client of one source.
pub struct Api {
    wire: Wire,
    dialect: Box<dyn Dialect>,
    session: tokio::sync::Mutex<Option<Arc<Session>>>,
    standing: Mutex<Standing>,
}

/// What is to be thought of the session in force.
#[derive(Default)]
struct Standing {
    /// Since the last poll ended, a request was answered as it should be.
    answered: bool,
    /// Since then one was not, and a new session might mend that.
    missed: bool,
    /// Polls in a row that got no good answer.
    fruitless: u32,
    /// The next request tries a new session first.
    doubted: bool,
    /// New sessions since the last good answer that were opened because the one before did not do.
    renewals: u32,
    /// When the last of them was.
    renewed_at: Option<Instant>,
}

impl Standing {
    fn note(&mut self, verdict: Verdict, is_page: bool, is_success: bool) {
        match verdict {
            Verdict::Good if is_page => self.missed = true,
            Verdict::Good if is_success => *self = Self { answered: true, ..Self::default() },
            Verdict::Expired
            | Verdict::Bad(
                ErrorKind::Connect
                | ErrorKind::Tls
                | ErrorKind::Timeout
                | ErrorKind::Forbidden
                | ErrorKind::Server
                | ErrorKind::NotFound
                | ErrorKind::Redirect,
            ) => self.missed = true,
            // what was asked is refused, or we are too fast, or a proxy wants something: no session mends that
            Verdict::Good | Verdict::Bad(_) => {}
        }
    }

    /// Whether another session may be opened now that the service says that this one has ended. Each one that does
    /// not help makes the pause to the next one longer.
    fn may_replace_ended(&self) -> bool {
        let Some(last) = self.renewed_at else { return true };
        let grown = RENEWAL_PAUSE_GROWS.saturating_pow(self.renewals.saturating_sub(1).min(15));
        last.elapsed() >= RENEWAL_PAUSE.saturating_mul(grown).min(RENEWAL_PAUSE_MAX)
    }

    /// Whether another session is to be tried because nothing comes of this one.
    fn may_replace_fruitless(&self) -> bool {
        self.fruitless >= FRUITLESS_POLLS_MAX && self.renewed_at.is_none_or(|last| last.elapsed() >= RENEWAL_PAUSE_MAX)
    }

    fn replaced(&mut self) {
        self.renewals += 1;
        self.renewed_at = Some(Instant::now());
    }
}

enum Answer {
    Whole(Reply),
    Streamed(Download),
}

impl Api {
    /// A client with a budget of its own.
    #[cfg(test)]
    pub(crate) fn new(
        transport: Arc<dyn Transport>,
        dialect: Box<dyn Dialect>,
        limits: Limits,
        stats: Arc<SourceStats>,
        clock: Clock,
        seed: u64,
    ) -> Self {
        let gate = Arc::new(Gate::full(&limits));
        Self::behind(gate, transport, dialect, limits, stats, clock, seed)
    }

    /// A client whose requests pass `gate`. `seed` makes the jitter repeatable in simulation.
    pub fn behind(
        gate: Arc<Gate>,
        transport: Arc<dyn Transport>,
        dialect: Box<dyn Dialect>,
        limits: Limits,
        stats: Arc<SourceStats>,
        clock: Clock,
        seed: u64,
    ) -> Self {
        let random = Mutex::new(StdRng::seed_from_u64(seed));
        let wire = Wire { transport, limits, gate, stats, clock, random };
        Self { wire, dialect, session: tokio::sync::Mutex::new(None), standing: Mutex::default() }
    }

    /// The present by our clock.
    pub fn now(&self) -> DateTime<Utc> {
        self.wire.clock.now()
    }

    /// The present by the service's clock, as far as that is known.
    pub fn service_now(&self) -> DateTime<Utc> {
        self.now() + self.clock_skew()
    }

    /// The service's clock less ours; zero where it is not known, too small to tell or too much to believe.
    pub fn clock_skew(&self) -> TimeDelta {
        self.told_clock_skew().unwrap_or_default()
    }

    /// The same; `None` where the service has not told.
    pub fn told_clock_skew(&self) -> Option<TimeDelta> {
        self.wire.stats.observed().clock_skew.filter(|skew| skew.abs() <= SKEW_BELIEVED)
    }

    /// Asks, with a session, and again after failures that may pass. `build` makes the request of
    /// the session in force.
    pub async fn call(&self, build: impl Fn(&Session) -> Call + Send + Sync) -> Result<Reply, Failure> {
        match self.ask(&build, false).await? {
            Answer::Whole(reply) => Ok(reply),
            Answer::Streamed(_) => unreachable!("not asked for"),
        }
    }

    /// Asks as [`Api::call`] does, and leaves the body of the answer to be read as it arrives.
    pub async fn download(&self, build: impl Fn(&Session) -> Call + Send + Sync) -> Result<Download, Failure> {
        match self.ask(&build, true).await? {
            Answer::Streamed(download) => Ok(download),
            Answer::Whole(reply) => Err(reply.undecodable("no body to stream")),
        }
    }

    async fn ask(&self, build: &(dyn Fn(&Session) -> Call + Send + Sync), stream: bool) -> Result<Answer, Failure> {
        let mut renewed = false;
        let mut attempt = 0;
        loop {
            let mut failure = match self.once(build, stream).await {
                Ok((answer, Verdict::Good, _)) => return Ok(answer),
                Ok((Answer::Whole(reply), Verdict::Expired, session)) => {
                    if !renewed && self.replace_ended(&session).await {
                        renewed = true;
                        continue;
                    }
                    reply.failure(match reply.status {
                        // a page where an answer belongs, even with a new session: nothing is wrong with the credential
                        status if status.is_success() && reply.is_page() => ErrorKind::Decode,
                        // the new token is refused, too: it is not the token that is wrong
                        StatusCode::FORBIDDEN if says_invalid_token(&reply) => ErrorKind::Forbidden,
                        _ => ErrorKind::Auth,
                    })
                }
                Ok((Answer::Whole(reply), Verdict::Bad(kind), _)) => reply.failure(kind),
                Ok((Answer::Streamed(_), _, _)) => unreachable!("only good answers are streamed"),
                Err(failure) => failure,
            };
            self.wire.stats.count_once(&mut failure);
            let own = self.wire.retry_delay(attempt);
            let pause = failure.retry_after.map_or(own, |asked| asked.max(own));
            let again = failure.is_transient && attempt < RETRIES_MAX && pause <= RETRY_AFTER_MAX;
            // whoever asks next, and whyever: not before the service said
            if again || failure.retry_after.is_some() {
                self.wire.gate.pause(pause);
            }
            if !again {
                return Err(failure);
            }
            tracing::debug!(error = %failure, ?pause, "asking again");
            attempt += 1;
        }
    }

    async fn once(
        &self,
        build: &(dyn Fn(&Session) -> Call + Send + Sync),
        stream: bool,
    ) -> Result<(Answer, Verdict, Arc<Session>), Failure> {
        let session = self.session().await?;
        let mut call = build(&session).hiding(&session.token);
        at_home(&session, &call)?;
        let (name, value) = self
            .dialect
            .credential(&session)
            .ok_or_else(|| unusable(&session, &*self.dialect, "no header can carry it"))?;
        call.headers.insert(name, value);
        let sent = if stream { self.wire.open(&call).await } else { self.wire.exchange(&call, false).await.map(Err) };
        match sent {
            Ok(Ok(download)) => {
                self.standing().note(Verdict::Good, false, true);
                Ok((Answer::Streamed(download), Verdict::Good, session))
            }
            Ok(Err(reply)) => {
                let verdict = self.judge(&reply);
                self.standing().note(verdict, reply.is_page(), reply.status.is_success());
                Ok((Answer::Whole(reply), verdict, session))
            }
            Err(failure) => {
                self.standing().note(Verdict::Bad(failure.kind), false, false);
                Err(failure)
            }
        }
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note that a poll has ended. After a few that got no good answer with the session they had, the next one
    /// tries a new session: where the service moved the organization, or lost its tokens, nothing else helps. Until
    /// an answer is good again that is done once an hour at most.
    pub fn note_end_of_poll(&self) {
        let mut standing = self.standing();
        let (answered, missed) = (std::mem::take(&mut standing.answered), std::mem::take(&mut standing.missed));
        if !answered && missed {
            standing.fruitless += 1;
        }
        if self.dialect.keeps_session() && standing.may_replace_fruitless() {
            tracing::debug!(
                polls = standing.fruitless,
                "no good answer with this session; the next poll opens another"
            );
            standing.doubted = true;
            standing.replaced();
        }
    }

    fn judge(&self, reply: &Reply) -> Verdict {
        if let Some((remaining, pause)) = self.dialect.budget(&reply.headers) {
            self.wire.stats.observed().remaining = Some(remaining);
            if !pause.is_zero() {
                self.wire.gate.pause(pause);
            }
        }
        self.dialect.judge(reply)
    }

    /// The session in force, opened if need be.
    async fn session(&self) -> Result<Arc<Session>, Failure> {
        let mut held = self.session.lock().await;
        let now = self.now();
        let usable =
            |session: &&Arc<Session>| self.dialect.keeps_session() && session.renew_at.is_none_or(|at| now < at);
        let usable = held.as_ref().filter(usable).map(Arc::clone);
        let doubted = self.standing().doubted;
        if let Some(session) = usable.as_ref().filter(|_| !doubted) {
            return Ok(Arc::clone(session));
        }
        match (self.log_in().await, usable) {
            (Ok(opened), _) => {
                self.standing().doubted = false;
                let session = Arc::new(opened);
                *held = Some(Arc::clone(&session));
                Ok(session)
            }
            // no login, no other session: what is in force may do again, and there is no hurry to try another login
            (Err(mut failure), Some(session)) if failure.kind != ErrorKind::Auth => {
                self.wire.stats.count_once(&mut failure);
                tracing::debug!(error = %failure, "no other session; going on with the one in force");
                if let Some(pause) = failure.retry_after {
                    self.wire.gate.pause(pause);
                }
                self.standing().doubted = false;
                Ok(session)
            }
            (Err(failure), _) => Err(failure),
        }
    }

    /// Opens a session, and looks whether requests can carry it.
    async fn log_in(&self) -> Result<Session, Failure> {
        let opened = self.dialect.open_session(&self.wire).await.and_then(|session| {
            match cannot_be_carried(session.token.expose_secret()) {
                Some(why) => Err(unusable(&session, &*self.dialect, why)),
                None => Ok(session),
            }
        });
        opened.map_err(|mut failure| {
            failure.at_login = true;
            failure
        })
    }

    /// Whether to ask again after the service said that `session` has ended: it is dropped, if it is still the one in
    /// force, as long as that does not become a login for each request.
    async fn replace_ended(&self, session: &Arc<Session>) -> bool {
        if !self.dialect.keeps_session() {
            return self.forget(session).await && self.has_changed(session).await;
        }
        if !self.standing().may_replace_ended() {
            return false;
        }
        if self.forget(session).await {
            self.standing().replaced();
        }
        true
    }

    /// Drops the session in force, so that the next request begins with a new one.
    pub async fn forget_session(&self) {
        *self.session.lock().await = None;
    }

    /// Drops `session` if it is the one in force; whether it was.
    async fn forget(&self, session: &Arc<Session>) -> bool {
        let mut held = self.session.lock().await;
        let same = held.as_ref().is_some_and(|held| Arc::ptr_eq(held, session));
        if same {
            *held = None;
        }
        same
    }

    /// Whether a credential that is read anew each time differs from the one that was refused.
    async fn has_changed(&self, refused: &Session) -> bool {
        let anew = self.dialect.open_session(&self.wire).await;
        anew.is_ok_and(|anew| anew.token.expose_secret() != refused.token.expose_secret())
    }

    /// What every request of it passes.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.wire.gate
    }

    /// What is left of our own budget, where the service does not say.
    pub fn own_budget(&self) -> f64 {
        self.wire.gate.remaining()
    }
}

/// Whether a request goes where the session belongs. Its address may be one that an answer gave.
fn at_home(session: &Session, call: &Call) -> Result<(), Failure> {
    let (url, base) = (&call.url, &session.base);
    if url.origin() == base.origin() && url.username().is_empty() && url.password().is_none() {
        return Ok(());
    }
    let [to, home] = [url, base].map(|url| url.origin().ascii_serialization());
    let got = format!("not sent, because an answer led to {to} and the credential belongs to {home} alone");
    Err(Failure::new(ErrorKind::Redirect, call.tried(), redact(&call.secrets, got)))
}

/// Why no header can carry a token.
pub fn cannot_be_carried(token: &str) -> Option<&'static str> {
    match token.bytes().find(|byte| !byte.is_ascii_graphic()) {
        _ if token.is_empty() => Some("it is empty"),
        _ if token.len() > TOKEN_BYTES_MAX => Some("it has more than 65,536 bytes"),
        None => None,
        Some(b'\n' | b'\r') => Some("it holds a line break, which no header can carry"),
        Some(b' ') => Some("it holds a blank"),
        Some(byte) if byte.is_ascii() => Some("it holds a control character, which no header can carry"),
        Some(_) => Some("it holds a character beyond ASCII, which no header can carry"),
    }
}

/// The failure of a session, or of a token as it stands in a file, that no request can carry: none is sent.
fn unusable(session: &Session, dialect: &dyn Dialect, why: &'static str) -> Failure {
    let (tried, whose) = if dialect.keeps_session() {
        ("logging in", format!("the session for {} cannot be used", session.base.origin().ascii_serialization()))
    } else {
        ("reading the credential", "it cannot be used".to_owned())
    };
    Failure::new(ErrorKind::Auth, tried, format!("{whose}: {why}; nothing was sent with it"))
}

/// Whether an answer says, in the words of OAuth (RFC 6750, section 3.1), that the token is no longer good: then a new
/// one may be.
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

/// The codes that say so, without what joins their words.
const INVALID_TOKEN: [&str; 7] = [
    "invalidtoken",
    "invalidaccesstoken",
    "tokenexpired",
    "expiredtoken",
    "accesstokenexpired",
    "tokenrevoked",
    "revokedtoken",
];

/// What an error's body says, where it is JSON of one of the usual shapes; at most 200 characters,
/// on one line. Of the answer to a login only the codes: its words may repeat the secret. Words as
/// long as a token are left out everywhere.
fn error_summary(body: &[u8], at_login: bool) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    let inner = value.get("error").filter(|error| error.is_object()).unwrap_or(&value);
    let text = |key: &str| inner.get(key).and_then(serde_json::Value::as_str);
    let codes = ["code", "error", "type", "scimType"];
    let words = ["title", "message", "detail", "description", "error_description"];
    let is_code =
        |text: &&str| text.len() <= 40 && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.: ".contains(c));
    let said = codes.into_iter().filter_map(text).filter(|text| !at_login || is_code(text));
    let said = said.chain(words.into_iter().filter(|_| !at_login).filter_map(text));
    let said: Vec<String> = said
        .filter(|text| !text.is_empty())
        .map(|text| {
            text.split_whitespace()
                .map(|word| if word.len() < TOKEN_CHARS_MIN { word } else { "…" })
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    let line: String = said.join(": ").chars().filter(|c| !c.is_control()).take(200).collect();
    (!line.is_empty()).then_some(line)
}

/// A word of an error that is as long as this may be a token.
const TOKEN_CHARS_MIN: usize = 40;
/// A shorter text is no secret, but part of many words.
const SECRET_CHARS_MIN: usize = 4;
/// A content type is not longer; what a service writes there instead is not repeated.
const CONTENT_TYPE_CHARS_MAX: usize = 40;

fn date_of(headers: &HeaderMap, name: &HeaderName) -> Option<DateTime<Utc>> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?.trim()).ok().map(DateTime::from)
}

/// How long an answer has been in caches (`Age`).
fn age_of(headers: &HeaderMap) -> TimeDelta {
    let seconds = headers.get(header::AGE).and_then(|age| leading_number(age.to_str().ok()?.trim()));
    #[expect(clippy::cast_possible_truncation, reason = "it was looked at")]
    let seconds = seconds.filter(|seconds| *seconds <= AGE_SECONDS_MAX).map(|seconds| seconds as i64);
    TimeDelta::seconds(seconds.unwrap_or_default())
}

/// The pause an answer asks for: `Retry-After`, or else, where we are too fast, what the headers about rates say.
fn asked_pause(headers: &HeaderMap, now: DateTime<Utc>, status: StatusCode, kind: ErrorKind) -> Option<Duration> {
    // moments are of the service's clock
    let now = date_of(headers, &header::DATE).map_or(now, |date| date + age_of(headers));
    let texts = |name: &str| {
        let values: Vec<_> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
        values
    };
    let told = texts("retry-after").into_iter().find_map(|text| wait(text, now));
    let used_up = || {
        let left = ["x-ratelimit-remaining", "ratelimit-remaining", "x-rate-limit-remaining"];
        left.into_iter().flat_map(texts).any(|text| leading_number(text.trim()) == Some(0.0))
    };
    let too_fast = kind == ErrorKind::Throttled || (status == StatusCode::SERVICE_UNAVAILABLE && used_up());
    let reset = || {
        let by_name = RESETS.into_iter().flat_map(texts).find_map(|text| wait(text, now));
        by_name.or_else(|| texts("ratelimit").into_iter().find_map(|text| wait_of_policies(text, now)))
    };
    told.or_else(|| too_fast.then(reset)?)
}

/// Headers that say when more may be asked for, in seconds or as a moment.
const RESETS: [&str; 4] = ["ratelimit-reset", "x-ratelimit-reset", "x-rate-limit-reset", "x-ratelimit-reset-after"];

/// A number this close to the present is a moment.
const A_YEAR_SECONDS: f64 = 365.0 * 86_400.0;

/// A pause in any of the ways in which it is written: seconds, whole or not, of several the first; a moment as a date;
/// or, near the present, as seconds or milliseconds since 1970. What is over is no pause; what is no number is nothing.
/// No pause is believed to be longer than [`RETRY_AFTER_BELIEVED`].
fn wait(text: &str, now: DateTime<Utc>) -> Option<Duration> {
    let text = text.trim().trim_matches('"').trim();
    let until = |moment: DateTime<Utc>| (moment - now).to_std().unwrap_or_default();
    let pause = if let Some(number) = leading_number(text) {
        let present = crate::clock::unix_seconds(now);
        let moment = [number, number / 1000.0].into_iter().find(|moment| (moment - present).abs() <= A_YEAR_SECONDS);
        let seconds = moment.map_or(number, |moment| moment - present).clamp(0.0, RETRY_AFTER_BELIEVED.as_secs_f64());
        Duration::from_secs_f64(seconds.ceil())
    } else if let Ok(date) = httpdate::parse_http_date(text) {
        until(date.into())
    } else {
        let date = DateTime::parse_from_rfc3339(text).or_else(|_| DateTime::parse_from_rfc2822(text)).ok()?;
        until(date.to_utc())
    };
    Some(pause.min(RETRY_AFTER_BELIEVED))
}

/// The pause of `RateLimit: limit=100, remaining=0, reset=30` (draft 7 of the IETF) or `"default";r=0;t=30` (later ones),
/// of several policies that which is used up and lasts longest.
fn wait_of_policies(text: &str, now: DateTime<Utc>) -> Option<Duration> {
    let parts = |text: &str, by: char| {
        let pairs = text.split(by).filter_map(|part| part.split_once('='));
        pairs.map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned())).collect::<Vec<_>>()
    };
    let of = |pairs: &[(String, String)], name: &str| pairs.iter().find(|(is, _)| is == name).map(|(_, v)| v.clone());
    if let Some(reset) = of(&parts(text, ','), "reset") {
        return wait(&reset, now);
    }
    let policies = text.split(',').map(|policy| parts(policy, ';'));
    let waits = policies.filter_map(|policy| {
        let left = of(&policy, "r").and_then(|left| leading_number(&left)).unwrap_or_default();
        Some((left <= 0.0, wait(&of(&policy, "t")?, now)?))
    });
    waits.max().map(|(_, wait)| wait)
}

/// The number a text begins with, unless it goes on as a word: no sign, no exponent, not `30m`.
fn leading_number(text: &str) -> Option<f64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let goes_on = text[end..].chars().next();
    if goes_on.is_some_and(|c| !matches!(c, ',' | ';' | ' ' | '\t' | 's')) {
        return None;
    }
    text[..end].parse().ok()
}

/// Our budget (governor) and what the service asked for. There is one for a source as long as the process lives,
/// whoever asks: a reload that changes the limits changes them here, so that it bypasses nothing.
pub struct Gate {
    bucket: Mutex<Bucket>,
    resume_at: Mutex<Option<Instant>>,
}

struct Bucket {
    /// Requests, in what time, and how many at once.
    rate: (u32, Duration, u32),
    limiter: RateLimiter<NotKeyed, InMemoryState, TokioClock, NoOpMiddleware<At>>,
    shadow: Shadow,
}

/// The same bucket once more, because governor's cannot be looked into.
struct Shadow {
    tokens: f64,
    at: Instant,
    burst: f64,
    per_second: f64,
}

impl Shadow {
    fn refill(&mut self, now: Instant) {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * self.per_second;
        self.tokens = (self.tokens + gained).min(self.burst);
        self.at = now;
    }
}

impl Bucket {
    fn full(limits: &Limits) -> Self {
        // a little slower than asked for: what leaves here evenly may arrive a little closer together
        let period = (limits.per / limits.requests.max(1)).mul_f64(1.01) + Duration::from_millis(2);
        let burst = limits.burst();
        let quota = Quota::with_period(period).unwrap_or(Quota::per_second(burst)).allow_burst(burst); // it is at least 2 ms
        let tokens = f64::from(burst.get());
        let shadow = Shadow { tokens, at: Instant::now(), burst: tokens, per_second: 1.0 / period.as_secs_f64() };
        let limiter = RateLimiter::direct_with_clock(quota, TokioClock);
        Self { rate: limits.rate(), limiter, shadow }
    }

    fn empty(limits: &Limits) -> Self {
        let mut bucket = Self::full(limits);
        // it holds no more than that
        let _ = bucket.limiter.check_n(limits.burst());
        bucket.shadow.tokens = 0.0;
        bucket
    }
}

impl Gate {
    /// A full bucket.
    pub fn full(limits: &Limits) -> Self {
        Self { bucket: Mutex::new(Bucket::full(limits)), resume_at: Mutex::default() }
    }

    /// An empty bucket, for a source that may have been asked a moment ago.
    pub fn empty(limits: &Limits) -> Self {
        Self { bucket: Mutex::new(Bucket::empty(limits)), resume_at: Mutex::default() }
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps to these limits from now on. Where they are others, the bucket begins empty; the pause the service
    /// asked for stays.
    pub fn change(&self, limits: &Limits) {
        let mut bucket = self.bucket();
        if bucket.rate != limits.rate() {
            *bucket = Bucket::empty(limits);
        }
    }

    /// Waits until a request may be made, and takes its place in the budget.
    async fn pass(&self, stats: &SourceStats) {
        let since = Instant::now();
        while let Some(wait) = self.must_wait() {
            tokio::time::sleep_until(wait).await;
        }
        stats.waited(since.elapsed());
    }

    /// Until when; `None` where the request may be made, and was counted.
    fn must_wait(&self) -> Option<Instant> {
        let now = Instant::now();
        let resume_at = *self.resume_at.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(resume_at) = resume_at.filter(|at| *at > now) {
            return Some(resume_at);
        }
        let mut bucket = self.bucket();
        if let Err(early) = bucket.limiter.check() {
            return Some(now + early.wait_time_from(At(now)));
        }
        bucket.shadow.refill(now);
        bucket.shadow.tokens = (bucket.shadow.tokens - 1.0).max(0.0);
        None
    }

    /// No request before `pause` has passed.
    fn pause(&self, pause: Duration) {
        let mut resume_at = self.resume_at.lock().unwrap_or_else(PoisonError::into_inner);
        *resume_at = (*resume_at).max(Some(Instant::now() + pause));
    }

    fn remaining(&self) -> f64 {
        let mut bucket = self.bucket();
        bucket.shadow.refill(Instant::now());
        bucket.shadow.tokens.floor()
    }
}

/// governor's clock on tokio's time, so that simulated time rules the budget, too.
#[derive(Clone, Debug)]
struct TokioClock;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct At(Instant);

impl Add<Nanos> for At {
    type Output = At;

    fn add(self, nanos: Nanos) -> At {
        At(self.0 + Duration::from(nanos))
    }
}

impl Reference for At {
    fn duration_since(&self, earlier: Self) -> Nanos {
        self.0.saturating_duration_since(earlier.0).into()
    }

    fn saturating_sub(&self, nanos: Nanos) -> Self {
        At(self.0.checked_sub(nanos.into()).unwrap_or(self.0))
    }
}

impl GovernorClock for TokioClock {
    type Instant = At;

    fn now(&self) -> At {
        At(Instant::now())
    }
}

/// When a session of this lifetime is renewed: with a tenth of its life left, at least 5 s, but not within a minute.
pub fn renewal(now: DateTime<Utc>, lifetime: Duration) -> DateTime<Utc> {
    let lifetime = lifetime.min(LIFETIME_BELIEVED);
    let margin = (lifetime / 10).max(Duration::from_secs(5)).min(lifetime / 2);
    now + delta(lifetime.saturating_sub(margin).max(LIFETIME_MIN))
}

#[cfg(test)]
mod tests;
