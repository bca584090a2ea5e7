//! The one polite client. Every request of a source, logins and retries too, goes through it.
//!
//! Promises:
//! - **Politeness.** Every request passes one gate (`api/gate.rs`): our budget, which nothing bypasses, and the
//!   time the service asked us to wait.
//! - **Credentials.** A session is opened when needed, renewed in time, and renewed once when the
//!   service says it has ended, or when poll after poll gets no good answer with it. Whatever an
//!   outage does, new sessions are bounded per hour; a refused credential is never tried twice in a row.
//! - **Bounds.** Every exchange has a deadline, every body a cap, decompressed (`api/wire.rs`).
//! - **Home.** A credential goes to the origin that its session names and nowhere else, whatever
//!   address an answer gave.
//! - **Errors** are classified here, say what was tried, what came back and what to do, and hold
//!   no query, no token and no event, even where a service repeats what it was sent (`api/call.rs`, `api/reply.rs`).
//!
//! Leaves to others: what to ask and what an answer means (`source/*.rs`), when to ask again after
//! a failed poll (`poll.rs`), the connection itself (`transport.rs`).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use http::{HeaderName, HeaderValue, StatusCode, header};
use rand::SeedableRng;
use rand::rngs::StdRng;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;
use url::Url;

use crate::backoff::Backoff;
use crate::clock::{Clock, delta};
use crate::failure::{ErrorKind, Failure};
use crate::stats::SourceStats;
use crate::transport::Transport;

mod call;
mod gate;
mod headers;
mod reply;
mod wire;

pub use call::Call;
pub use gate::{Gate, Limits};
pub use reply::{Download, Reply, says_invalid_token};
pub use wire::{SKEW_BELIEVED, Wire};

pub use crate::transport::secret_header;

/// How often a request is made again after a failure that may pass.
const RETRIES_MAX: u32 = 3;
/// A service that asks for a longer pause ends the poll; the next one waits as long.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(2);
/// No session is believed to last longer.
pub const LIFETIME_BELIEVED: Duration = Duration::from_hours(24 * 365);
/// No session is renewed sooner after it was opened, however short it says it lasts: rather one refused request
/// than a login for each.
const LIFETIME_MIN: Duration = Duration::from_mins(1);
/// After this many polls in a row without a good answer, a new session may be the cure: a login may name another
/// address, or replace a token that was lost on the other side.
const FRUITLESS_POLLS_MAX: u32 = 3;
/// The pause between one session that did not help and the next, if the service says that sessions end. The longest is
/// also the pause if the service does not say so.
const RENEWAL: Backoff = Backoff { first: Duration::from_mins(1), factor: 4, max: Duration::from_hours(1) };
/// The longest token of a session: a credential in a file may not be longer either.
const TOKEN_BYTES_MAX: usize = 64 << 10;

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

impl Verdict {
    /// What kind of error the answer is once no new session is to be tried; `None` for a good one.
    fn error(self, reply: &Reply) -> Option<ErrorKind> {
        match self {
            Verdict::Good => None,
            Verdict::Bad(kind) => Some(kind),
            // a page in place of an answer, even with a new session: nothing is wrong with the credential
            Verdict::Expired if reply.status.is_success() && reply.is_page() => Some(ErrorKind::Decode),
            // the new token is refused, too: it is not the token that is wrong
            Verdict::Expired if reply.status == StatusCode::FORBIDDEN && says_invalid_token(reply) => {
                Some(ErrorKind::Forbidden)
            }
            Verdict::Expired => Some(ErrorKind::Auth),
        }
    }
}

/// The meaning of a status, unless the service gives it another.
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

/// What a service says about its own budget.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// What is left of it, in the service's own measure.
    pub remaining: f64,
    /// How long to pause because of that; zero for not at all.
    pub pause: Duration,
}

/// The particulars of a service beside its events: how to log in, how to carry the credential, what its errors mean.
#[async_trait]
pub trait Dialect: Send + Sync {
    /// Opens a session. Requests it needs go through `wire`, and so through the same budget.
    async fn open_session(&self, wire: &Wire) -> Result<Session, Failure>;

    /// Whether the session is worth keeping; not if opening one only reads a file.
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

    /// What the service says is left of its own budget.
    fn budget(&self, _reply: &Reply) -> Option<Budget> {
        None
    }
}

/// The client of one source.
pub struct Api {
    wire: Wire,
    dialect: Box<dyn Dialect>,
    session: tokio::sync::Mutex<Option<Arc<Session>>>,
    standing: Mutex<Standing>,
}

/// How the session in force has served.
#[derive(Default)]
struct Standing {
    /// A request got a good answer since the last poll ended.
    answered: bool,
    /// A request failed since then, and a new session might mend that.
    missed: bool,
    /// Polls in a row that got no good answer.
    fruitless: u32,
    /// The next request tries a new session first.
    doubted: bool,
    /// New sessions since the last good answer that replaced one that did not serve.
    renewals: u32,
    /// When the last of them was opened.
    renewed_at: Option<Instant>,
}

impl Standing {
    fn note(&mut self, verdict: Verdict, reply: &Reply) {
        match verdict {
            Verdict::Good if reply.is_page() => self.missed = true,
            Verdict::Good if reply.status.is_success() => self.note_good_answer(),
            // a refusal of what was asked, which the reader deals with
            Verdict::Good => {}
            Verdict::Expired => self.missed = true,
            Verdict::Bad(kind) => self.note_failure(kind),
        }
    }

    fn note_good_answer(&mut self) {
        *self = Self { answered: true, ..Self::default() };
    }

    fn note_failure(&mut self, kind: ErrorKind) {
        use ErrorKind::{Connect, Forbidden, NotFound, Redirect, Server, Timeout, Tls};
        // no session mends the others: a bad request, too many of them, a proxy that wants something
        self.missed |= matches!(kind, Connect | Tls | Timeout | Forbidden | Server | NotFound | Redirect);
    }

    /// Whether another session may be opened now that the service says that this one has ended. Each one that does
    /// not help makes the pause to the next one longer.
    fn may_replace_ended(&self) -> bool {
        let Some(last) = self.renewed_at else { return true };
        last.elapsed() >= RENEWAL.after(self.renewals)
    }

    /// Whether this session brought no good answer for so long that another is to be tried.
    fn may_replace_fruitless(&self) -> bool {
        self.fruitless >= FRUITLESS_POLLS_MAX && self.renewed_at.is_none_or(|last| last.elapsed() >= RENEWAL.max)
    }

    fn note_replacement(&mut self) {
        self.renewals += 1;
        self.renewed_at = Some(Instant::now());
    }
}

/// What an [`Api`] is made of.
pub struct ApiParts {
    /// What every request passes.
    pub gate: Arc<Gate>,
    /// The connection.
    pub transport: Arc<dyn Transport>,
    /// What is particular to the service.
    pub dialect: Box<dyn Dialect>,
    /// What bounds the requests. Its rate is the gate's affair.
    pub limits: Limits,
    /// Takes notes on the way.
    pub stats: Arc<SourceStats>,
    /// Tells the time.
    pub clock: Clock,
    /// Seed of the jitter, so that a simulation can be repeated.
    pub seed: u64,
}

enum Answer {
    Whole(Reply),
    Streamed(Download),
}

/// What came of asking once.
enum Outcome {
    Good(Answer),
    /// An error of this kind; the session it was asked with, if the service says that it has ended.
    Bad(Reply, ErrorKind, Option<Arc<Session>>),
}

impl Api {
    /// A client of these parts.
    pub fn from_parts(parts: ApiParts) -> Self {
        let ApiParts { gate, transport, dialect, limits, stats, clock, seed } = parts;
        let random = Mutex::new(StdRng::seed_from_u64(seed));
        let wire = Wire { transport, limits, gate, stats, clock, random };
        Self { wire, dialect, session: tokio::sync::Mutex::new(None), standing: Mutex::default() }
    }

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
        Self::from_parts(ApiParts { gate, transport, dialect, limits, stats, clock, seed })
    }

    /// The present by our clock.
    pub fn now(&self) -> DateTime<Utc> {
        self.wire.clock.now()
    }

    /// The present by the service's clock, as far as that is known.
    pub fn service_now(&self) -> DateTime<Utc> {
        self.now() + self.clock_skew()
    }

    /// The service's clock less ours; zero if it is unknown, too small to tell or too large to believe.
    pub fn clock_skew(&self) -> TimeDelta {
        self.known_clock_skew().unwrap_or_default()
    }

    /// The same; `None` if the service has not told.
    pub fn known_clock_skew(&self) -> Option<TimeDelta> {
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
        let mut failures = 0;
        loop {
            let mut failure = match self.once(build, stream).await {
                Ok(Outcome::Good(answer)) => return Ok(answer),
                Ok(Outcome::Bad(_, _, Some(ended))) if !renewed && self.replace_ended(&ended).await => {
                    renewed = true;
                    continue;
                }
                Ok(Outcome::Bad(reply, kind, _)) => reply.failure(kind),
                Err(failure) => failure,
            };
            failures += 1;
            self.wire.stats.count_once(&mut failure);
            let own = self.wire.retry_delay(failures);
            let pause = failure.retry_after.map_or(own, |asked| asked.max(own));
            let again = failure.is_transient && failures <= RETRIES_MAX && pause <= RETRY_AFTER_MAX;
            // binds every later request, whatever it is for
            if again || failure.retry_after.is_some() {
                self.wire.gate.pause(pause);
            }
            if !again {
                return Err(failure);
            }
            tracing::debug!(error = %failure, ?pause, "asking again");
        }
    }

    async fn once(&self, build: &(dyn Fn(&Session) -> Call + Send + Sync), stream: bool) -> Result<Outcome, Failure> {
        let session = self.session().await?;
        let mut call = build(&session).hiding(&session.token);
        check_origin(&session, &call)?;
        let (name, value) = self
            .dialect
            .credential(&session)
            .ok_or_else(|| unusable_credential(&session, &*self.dialect, "no header can carry it"))?;
        call.headers.insert(name, value);
        let sent = if stream { self.wire.open(&call).await } else { self.wire.exchange(&call, false).await.map(Err) };
        match sent {
            Ok(Ok(download)) => {
                self.standing().note_good_answer();
                Ok(Outcome::Good(Answer::Streamed(download)))
            }
            Ok(Err(reply)) => {
                let verdict = self.judge(&reply);
                self.standing().note(verdict, &reply);
                Ok(match verdict.error(&reply) {
                    None => Outcome::Good(Answer::Whole(reply)),
                    Some(kind) => Outcome::Bad(reply, kind, (verdict == Verdict::Expired).then_some(session)),
                })
            }
            Err(failure) => {
                self.standing().note_failure(failure.kind);
                Err(failure)
            }
        }
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note that a poll has ended. After a few that got no good answer with the session they had, the next one
    /// tries a new session: if the service moved the organization, or lost its tokens, nothing else helps. Until
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
            standing.note_replacement();
        }
    }

    fn judge(&self, reply: &Reply) -> Verdict {
        if let Some(budget) = self.dialect.budget(reply) {
            self.wire.stats.observed().remaining = Some(budget.remaining);
            if !budget.pause.is_zero() {
                self.wire.gate.pause(budget.pause);
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
            // the login failed: the session in force may serve again, and another login is in no hurry
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
                Some(why) => Err(unusable_credential(&session, &*self.dialect, why)),
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
            self.standing().note_replacement();
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

    /// Whether a credential, read again, differs from the one that was refused.
    async fn has_changed(&self, refused: &Session) -> bool {
        let anew = self.dialect.open_session(&self.wire).await;
        anew.is_ok_and(|anew| anew.token.expose_secret() != refused.token.expose_secret())
    }

    /// The gate that every request passes.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.wire.gate
    }

    /// What is left of our own budget; shown if the service does not say what is left of its own.
    pub fn own_budget(&self) -> f64 {
        self.wire.gate.remaining()
    }
}

/// Whether a request goes where the session belongs. Its address may be one that an answer gave.
fn check_origin(session: &Session, call: &Call) -> Result<(), Failure> {
    let (url, base) = (&call.url, &session.base);
    if url.origin() == base.origin() && url.username().is_empty() && url.password().is_none() {
        return Ok(());
    }
    let [to, home] = [url, base].map(|url| url.origin().ascii_serialization());
    let got = format!("not sent, because an answer led to {to} and the credential belongs to {home} alone");
    Err(Failure::new(ErrorKind::Redirect, call.tried(), call::redact(&call.secrets, got)))
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
fn unusable_credential(session: &Session, dialect: &dyn Dialect, why: &'static str) -> Failure {
    let (tried, whose) = if dialect.keeps_session() {
        ("logging in", format!("the session for {} cannot be used", session.base.origin().ascii_serialization()))
    } else {
        ("reading the credential", "it cannot be used".to_owned())
    };
    Failure::new(ErrorKind::Auth, tried, format!("{whose}: {why}; nothing was sent with it"))
}

/// When a session of this lifetime is renewed: with a tenth of its life left, at least 5 s, but not within a minute.
pub fn renewal(now: DateTime<Utc>, lifetime: Duration) -> DateTime<Utc> {
    let lifetime = lifetime.min(LIFETIME_BELIEVED);
    let margin = (lifetime / 10).max(Duration::from_secs(5)).min(lifetime / 2);
    now + delta(lifetime.saturating_sub(margin).max(LIFETIME_MIN))
}

#[cfg(test)]
mod tests;
