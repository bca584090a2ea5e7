//! Informatica Intelligent Cloud Services, security log: logins, logouts and changes to users,
//! groups, roles and organizations.
//!
//! `GET {base}/public/core/v3/securityLog` (Informatica, REST API Reference, Security Logs) with a
//! closed range of `entryTime` of at most 14 days, pages by `skip` and `limit`, in an order nobody
//! documents and without a total. So a range is read until a page brings nothing new, and events are told apart by
//! their `id`: the service may have caps of its own, and a page that is shorter than `limit` is not the last for that.
//! Only a first page of fewer than 100 entries (the smallest `limit` there is) is taken for all there are, and that only
//! where its number is not round and its size small. Where the service refuses or ignores `skip`, the range is cut in
//! halves until each fits on one page.
//!
//! The session comes from a login with name and password (`/saas/public/core/v3/login`), which is
//! itself an entry of the log: it is kept until the service says that it has ended.
//!
//! What it cannot report: logins that failed. It keeps 400 days.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use http::{HeaderName, HeaderValue, StatusCode};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use url::{Host, Url};

use super::text::{self, Envelope, id_bytes, looks_like_one_of, mended};
use super::{
    Ignore, List, Raw, RawEvents, Signals, Sink, Source, Spec, is_strange, parse_time, rejected, token_claims,
};
use crate::api::{
    Api, Call, Dialect, Reply, Session, Verdict, Wire, cannot_be_carried, judge_by_status, renewal, secret_header,
};
use crate::config::{self, Common, Secret};
use crate::event::{Class, EventKey, EventLabels, Item, Label, Outcome, Principal, RejectReason, What};
use crate::failure::ErrorKind;
use crate::failure::Failure;
use crate::page::{Catalogue, Page};
use crate::window::{Window, floor};

/// The documented maximum of `limit`.
const PAGE_SIZE: u32 = 1000;
/// The longest range asked for at once; 14 days are the documented maximum.
const RANGE_MAX: Duration = Duration::from_hours(7 * 24);
/// The finest piece a range is cut into: the log's times seem to be whole seconds.
const SECOND: Duration = Duration::from_secs(1);
/// Requests of one reading. A log that always has one more page is broken.
const REQUESTS_MAX: u32 = 100_000;
/// The documented minimum of `limit`. No cap of the service's own is believed to be smaller, unless it is [`ROUND`].
const LIMIT_MIN: usize = 100;
/// A page of a multiple of this many entries may be what a cap below `limit` left of it.
const ROUND: usize = 10;
/// A shorter page was not cut because of its size.
const SMALL_BYTES: usize = 8 << 10;
/// The longest body that is looked at as an error.
const ERROR_BODY_MAX: usize = 64 << 10;
/// How many pairs of category and event are remembered with their labels.
const KNOWN_MAX: usize = 1000;
/// Longer names are not remembered.
const KNOWN_BYTES_MAX: usize = 256;
/// A session that says it ends sooner is used until the service refuses it: rather one refused
/// request than a login for each.
const LIFETIME_MIN: Duration = Duration::from_mins(1);

/// Where Informatica's own machines are: the host of the log is another than that of the login.
const VENDOR: &str = "informaticacloud.com";

const SESSION: HeaderName = HeaderName::from_static("infa-session-id");

/// Reads one organization's log.
pub struct Informatica {
    limit: u32,
    decoder: Decoder,
}

/// The source and its dialect.
pub fn build(service: &config::Informatica, common: &Common) -> (Box<dyn Source>, Box<dyn Dialect>) {
    let source = Informatica {
        limit: common.page_size.map_or(PAGE_SIZE, std::num::NonZeroU32::get),
        decoder: Decoder::new(Ignore::new(&common.ignore_actors)),
    };
    let dialect = InformaticaDialect {
        login: config::endpoint(&service.login_url, &["saas", "public", "core", "v3", "login"]),
        base: service.base_url.clone(),
        username: service.username.clone(),
        password: service.password.clone(),
        allow_plain_http: common.allow_plain_http,
    };
    (Box::new(source), Box::new(dialect))
}

// === the session ===

struct InformaticaDialect {
    login: Url,
    /// Where the log is, if that is not for the login's answer to say.
    base: Option<Url>,
    username: String,
    password: Secret,
    allow_plain_http: bool,
}

#[async_trait]
impl Dialect for InformaticaDialect {
    async fn open_session(&self, wire: &Wire) -> Result<Session, Failure> {
        let password = self
            .password
            .read()
            .map_err(|error| Failure::new(ErrorKind::Auth, "reading the credential", error.to_string()))?;
        let body = self.login_body(password.expose_secret());
        let call = Call::post(self.login.clone(), "application/json", body).hiding(&password);
        self.opened(&wire.login_exchange(&call).await?, wire.now())
    }

    fn credential(&self, session: &Session) -> Option<(HeaderName, HeaderValue)> {
        Some((SESSION, secret_header("", &session.token)?))
    }

    fn judge(&self, reply: &Reply) -> Verdict {
        let said = || Complaint::of(&reply.body);
        match reply.status.as_u16() {
            // the page to log in, where a session has ended
            200..=299 if reply.body.trim_ascii_start().starts_with(b"<") => Verdict::Expired,
            200..=299 => said().map_or(Verdict::Good, |error| error.verdict()),
            400 | 403 if said().is_some_and(|error| error.session_ended) => Verdict::Expired,
            // no way to ask, such as too large a `skip`: what follows is up to the reader
            400 | 413 | 414 | 416 | 422 => Verdict::Good,
            _ => judge_by_status(reply.status),
        }
    }
}

/// The answer to a login, as far as it is needed.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LoggedIn {
    #[serde(default)]
    products: Vec<Product>,
    user_info: UserInfo,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Product {
    name: Option<String>,
    base_api_url: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UserInfo {
    session_id: SecretString,
}

impl InformaticaDialect {
    /// The body of a login, which is wiped when it is dropped.
    fn login_body(&self, password: &str) -> Bytes {
        #[derive(Serialize)]
        struct Credential<'a> {
            username: &'a str,
            password: &'a str,
        }
        // long enough for every character to be escaped: growing would leave copies behind
        let mut body = Zeroizing::new(Vec::with_capacity(64 + 6 * (self.username.len() + password.len())));
        let credential = Credential { username: &self.username, password };
        serde_json::to_writer(&mut *body, &credential).expect("texts can be written to memory");
        Bytes::from_owner(body)
    }

    /// The session a login gave, or why it gave none: the credential, unless the answer tells of something else.
    ///
    /// Since November 2025 the session id may be a JSON Web Token that ends at a moment of its own.
    fn opened(&self, reply: &Reply, now: DateTime<Utc>) -> Result<Session, Failure> {
        match reply.status.as_u16() {
            200..=299 => {}
            400 | 401 | 403 => return Err(reply.failure(ErrorKind::Auth)),
            _ => match judge_by_status(reply.status) {
                Verdict::Bad(kind) => return Err(reply.failure(kind)),
                Verdict::Good | Verdict::Expired => return Err(reply.failure(ErrorKind::Auth)),
            },
        }
        if let Some(error) = Complaint::of(&reply.body) {
            let kind = match error.verdict() {
                Verdict::Bad(kind @ ErrorKind::Throttled) => kind,
                // what passes by itself; any other error is a refusal
                Verdict::Bad(ErrorKind::Server) if error.status.is_some_and(|status| status >= 500) => {
                    ErrorKind::Server
                }
                _ => ErrorKind::Auth,
            };
            return Err(reply.failure(kind));
        }
        let answer: LoggedIn =
            serde_json::from_slice(reply.json()).map_err(|_| reply.no_session("no userInfo.sessionId"))?;
        let token = answer.user_info.session_id;
        if let Some(why) = cannot_be_carried(token.expose_secret()) {
            return Err(reply.no_session(format_args!("its userInfo.sessionId cannot be used: {why}")));
        }
        let base = if let Some(base) = &self.base {
            base.clone()
        } else {
            let base = base_of(&answer.products).ok_or_else(|| reply.no_session("no products[].baseApiUrl"))?;
            self.may_go(&base).map_err(|why| reply.no_session(format_args!("its baseApiUrl {why}")))?;
            base
        };
        let renew_at = lifetime(token.expose_secret(), reply, now).map(|lifetime| renewal(now, lifetime));
        Ok(Session { token, base, renew_at })
    }

    /// Whether the session may go where an answer says the log is: to the machine of the login, one
    /// below it, or one of Informatica's own, and no less protected on its way than the login was.
    fn may_go(&self, base: &Url) -> Result<(), String> {
        let here = config::is_loopback(base);
        if base.scheme() != "https" && (self.login.scheme() == "https" || !(self.allow_plain_http || here)) {
            return Err(
                "is plain http://, where the session could be read on the way; if that is right, set base_url \
                        (and allow_plain_http)"
                    .into(),
            );
        }
        let same_port = base.port_or_known_default() == self.login.port_or_known_default();
        let known = match (self.login.host(), base.host()) {
            // both on this machine: a simulator, or a tunnel
            _ if here && config::is_loopback(&self.login) => true,
            (Some(login), Some(base_host)) if login == base_host => same_port || base.scheme() == "https",
            (Some(login), Some(Host::Domain(name))) => {
                let below = |domain: &str| name.strip_suffix(domain).is_some_and(|left| left.ends_with('.'));
                below(VENDOR) || matches!(login, Host::Domain(domain) if below(domain))
            }
            _ => false,
        };
        if known {
            return Ok(());
        }
        let to = base.origin().ascii_serialization();
        Err(format!(
            "leads to {to}, which is neither the host of login_url nor Informatica's; if that is right, set base_url"
        ))
    }
}

/// Where the log is: the product "Integration Cloud", else the first that has an address.
fn base_of(products: &[Product]) -> Option<Url> {
    let addressed =
        || products.iter().filter(|product| product.base_api_url.as_deref().is_some_and(|url| !url.trim().is_empty()));
    let wanted =
        |product: &&Product| product.name.as_deref().is_some_and(|name| name.eq_ignore_ascii_case("integration cloud"));
    let product = addressed().find(wanted).or_else(|| addressed().next())?;
    let base = Url::parse(product.base_api_url.as_deref()?.trim()).ok()?;
    let plain = matches!(base.scheme(), "http" | "https") && base.username().is_empty() && base.password().is_none();
    plain.then_some(base)
}

/// How long a session lasts that says when it ends, by the clock that says so.
fn lifetime(token: &str, reply: &Reply, now: DateTime<Utc>) -> Option<Duration> {
    #[derive(Deserialize)]
    struct Claims {
        exp: f64,
        iat: Option<f64>,
    }
    let claims: Claims = token_claims(token)?;
    let their_now = || {
        let date = reply.header("date").and_then(|date| httpdate::parse_http_date(date).ok());
        crate::clock::unix_seconds(date.map_or(now, DateTime::<Utc>::from))
    };
    let lifetime = Duration::try_from_secs_f64(claims.exp - claims.iat.unwrap_or_else(their_now)).ok()?;
    (lifetime >= LIFETIME_MIN).then_some(lifetime)
}

/// An error in a body, in any of the three shapes the service has for it: `{"error": {"code",
/// "message"}}`, `{"code", "description", "statusCode", "@type": "error"}` and Spring's problem
/// `{"type", "title", "status", "detail"}`. Each of them also comes with a status of 200.
struct Complaint {
    /// The status the body itself tells, if it is an error's.
    status: Option<u16>,
    /// Whether it says that the session has ended.
    session_ended: bool,
}

impl Complaint {
    fn of(body: &[u8]) -> Option<Self> {
        if body.len() > ERROR_BODY_MAX {
            return None;
        }
        let whole = text::value(body);
        if whole.get("entries").is_some_and(|entries| !entries.is_null()) || whole.get("userInfo").is_some() {
            return None;
        }
        let is_said = |error: &&Value| error.is_object() || error.as_str().is_some_and(|text| !text.is_empty());
        let error = whole.get("error").filter(is_said);
        let inner = error.filter(|error| error.is_object()).unwrap_or(&whole);
        let number = |key: &str| match inner.get(key)? {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        let status = number("statusCode").or_else(|| number("status"));
        let status = status.and_then(|status| u16::try_from(status).ok()).filter(|status| (400..600).contains(status));
        let has = |key: &str| inner.get(key).is_some_and(Value::is_string);
        let is_error = error.is_some()
            || status.is_some()
            || whole.get("@type").is_some_and(|kind| kind == "error")
            || (inner.get("code").is_some() && (has("message") || has("description")));
        is_error.then(|| Self { status, session_ended: says_session_ended(inner) })
    }

    fn verdict(&self) -> Verdict {
        match self.status {
            _ if self.session_ended => Verdict::Expired,
            Some(status) => {
                let status = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
                judge_by_status(status)
            }
            None => Verdict::Bad(ErrorKind::Server),
        }
    }
}

/// `AUTH_01` is what public collectors know; other codes are told by their words.
fn says_session_ended(error: &Value) -> bool {
    let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default();
    if text("code").eq_ignore_ascii_case("AUTH_01") {
        return true;
    }
    let keys = ["code", "message", "description", "detail", "title", "error"];
    let said = keys.map(text).join(" ").to_lowercase();
    let ended =
        ["expired", "invalid", "not valid", "no longer valid", "ended", "timed out", "timeout", "not logged in"];
    (said.contains("session") || said.contains("token")) && ended.iter().any(|word| said.contains(word))
}

// === reading ===

#[async_trait]
impl Source for Informatica {
    fn spec(&self) -> Spec {
        let success = [Outcome::Success];
        let mut catalogue = Catalogue::default();
        let categories = ["Authentication", "Organization", "User", "User group", "Role"];
        let events = ["create", "update", "delete", "disable", "password_reset"];
        catalogue.add(&categories, &events, &success, Class::Change);
        catalogue.add_logins(&["Authentication"], Principal::User, &success);
        catalogue.add_logins(&["Authentication"], Principal::Agent, &success);
        catalogue.add(&["Authentication"], &["logout"], &success, Class::Logout);
        Spec {
            cell: Duration::from_millis(1),
            step_max: RANGE_MAX,
            ahead: Duration::from_mins(10),
            is_feed: false,
            signals: Signals { login: true, logout: true, change: true, ..Signals::default() },
            catalogue,
        }
    }

    async fn read(&mut self, window: Window, api: &Api, sink: &mut dyn Sink) -> Result<(), Failure> {
        let mut progress = Progress::default();
        let mut pieces = ranges(window);
        while let Some(piece) = pieces.pop() {
            let End::Stuck { full } = self.read_piece(piece, api, sink, &mut progress).await? else { continue };
            match piece.halves(SECOND).filter(|_| !progress.range_ignored) {
                Some((earlier, later)) => pieces.extend([later, earlier]),
                None if full => {
                    let within = if progress.range_ignored { "any range" } else { "one second" };
                    let got = format!("maybe more than a page within {within}, and skip is refused or ignored");
                    return Err(Failure::new(ErrorKind::Decode, "reading all pages", got));
                }
                None => {}
            }
        }
        if progress.outside > 0 {
            let got = format!("{} entries from outside that range", progress.outside);
            sink.report(Failure::new(ErrorKind::Decode, "asking for a range of entryTime", got));
        }
        Ok(())
    }
}

/// What is known of a reading so far.
#[derive(Default)]
struct Progress {
    requests: u32,
    /// Entries from outside the range that was asked for.
    outside: usize,
    /// Entries of the longest page: a shorter one is not full.
    longest: usize,
    /// The first page of the piece that was read last.
    first_page: Bytes,
    /// A piece had the first page of the piece before, though some of it lies outside: no smaller piece helps.
    range_ignored: bool,
}

/// How the reading of a piece ended.
enum End {
    /// With its last page.
    Whole,
    /// `skip` leads no further, or not to every entry; `full` if there must be more entries.
    Stuck {
        /// Whether a page had so many entries that it may have been cut.
        full: bool,
    },
}

impl Informatica {
    async fn read_piece(
        &mut self,
        piece: Window,
        api: &Api,
        sink: &mut dyn Sink,
        progress: &mut Progress,
    ) -> Result<End, Failure> {
        let asked = whole_seconds(piece);
        let limit = self.limit as usize;
        let mut seen: HashSet<EventKey> = HashSet::new();
        let mut previous = Bytes::new();
        let mut full = false;
        let mut entries = 0;
        let mut skip = 0;
        // entries of the page before that are to come again
        let mut again = 0;
        let mut shifted = false;
        self.decoder.restart();
        loop {
            progress.requests += 1;
            if progress.requests > REQUESTS_MAX {
                let got = format!("no end after {REQUESTS_MAX} requests");
                return Err(Failure::new(ErrorKind::Truncated, "reading pages", got));
            }
            let reply = api.call(|session| Call::get(url(session, asked, self.limit, skip))).await?;
            if !reply.status.is_success() {
                return match skip {
                    0 => Err(reply.failure(ErrorKind::Server)),
                    // the first page of the piece, and not a full one
                    _ if skip <= entries && entries < progress.longest => Ok(End::Whole),
                    _ => Ok(End::Stuck { full }),
                };
            }
            let items =
                if reply.status == StatusCode::NO_CONTENT { Ok(Vec::new()) } else { self.decoder.items(&reply.body) };
            let items = items.map_err(|error| match error {
                BadPage::TooMany => super::too_many(&reply),
                BadPage::NoEntries | BadPage::Strange => reply.undecodable(error),
            })?;
            entries = items.len();
            let understood = items.iter().filter(|item| !matches!(item.what, What::Rejected(_))).count();
            let fresh = items.iter().filter(|item| seen.insert(item.key)).count();
            full |= entries >= limit.min(LIMIT_MIN);
            progress.longest = progress.longest.max(entries);
            let outside =
                items.iter().filter(|item| item.at.is_some_and(|at| at < asked.from || asked.to < at)).count();
            progress.outside += outside;
            if skip == 0 {
                progress.range_ignored |= outside > 0 && reply.body == progress.first_page;
                progress.first_page = reply.body.clone();
            }
            let may_be_cut = |entries: usize| entries >= LIMIT_MIN || (entries > 0 && entries.is_multiple_of(ROUND));
            let small = !may_be_cut(entries) && !may_be_cut(understood) && reply.body.len() < SMALL_BYTES;
            let is_last = if skip == 0 {
                entries == 0 || small
            } else {
                // nothing but what was to come again, or the last page once more
                fresh == 0 && (entries <= again || (reply.body == previous && entries < progress.longest))
            };
            if !is_last && (fresh == 0 || reply.body == previous) {
                return Ok(End::Stuck { full });
            }
            // an entry that comes twice stands where another one should: equal times may be in another order each time
            shifted |= skip > 0 && !is_last && entries - fresh > again;
            sink.page(Page { items, ..Page::default() }).await?;
            if is_last {
                return Ok(if shifted { End::Stuck { full: false } } else { End::Whole });
            }
            // what could not be understood may not be in the service's count: rather read an
            // entry twice than skip one
            let step = if understood > 0 { understood.min(limit) } else { entries.min(limit) };
            again = entries - step;
            skip += step;
            previous = reply.body;
        }
    }
}

/// A window in ranges the service answers, the last first.
fn ranges(window: Window) -> Vec<Window> {
    let mut ranges = Vec::new();
    let mut from = window.from;
    while from < window.to {
        let to = (from + crate::clock::delta(RANGE_MAX)).min(window.to);
        ranges.push(Window { from, to });
        from = to;
    }
    ranges.reverse();
    ranges
}

/// The whole seconds around a window: a service that writes or compares whole seconds would
/// otherwise leave out what happened between a second and an edge within it.
fn whole_seconds(window: Window) -> Window {
    let from = floor(window.from, SECOND);
    let to = floor(window.to + TimeDelta::milliseconds(999), SECOND);
    Window { from, to }
}

/// A page of the entries from `asked.from` to `asked.to`, both included.
///
/// The operator is `>=`: the documentation's table prints `=>`, all its examples `>=`.
fn url(session: &Session, asked: Window, limit: u32, skip: usize) -> Url {
    let time = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::Millis, true);
    let mut url = config::endpoint(&session.base, &["public", "core", "v3", "securityLog"]);
    let q = format!("entryTime>=\"{}\";entryTime<=\"{}\"", time(asked.from), time(asked.to));
    // there is no space in it, which form encoding would make a plus sign
    url.query_pairs_mut()
        .clear()
        .append_pair("q", &q)
        .append_pair("limit", &limit.to_string())
        .append_pair("skip", &skip.to_string());
    url.set_fragment(None);
    url
}

// === decoding ===

/// Turns pages of the log into items.
pub struct Decoder {
    ignore: Ignore,
    /// Labels by category and event as the service writes them. There are a few dozen, and to
    /// make them costs more than to read the entry.
    known: HashMap<String, HashMap<String, EventLabels>>,
    known_pairs: usize,
    /// How often an entry without id was seen since the last restart.
    nameless: HashMap<EventKey, u64>,
}

/// Why a body cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BadPage {
    /// It is no list of entries.
    #[error("no list of entries")]
    NoEntries,
    /// None of its entries is one of this service's.
    #[error("a list in which no entry is one of this service's")]
    Strange,
    /// It is longer than [`super::ENTRIES_MAX`].
    #[error("too many entries")]
    TooMany,
}

impl Decoder {
    /// A decoder that marks the events of some actors as ignored.
    pub fn new(ignore: Ignore) -> Self {
        Self { ignore, known: HashMap::new(), known_pairs: 0, nameless: HashMap::new() }
    }

    /// Begins the reading of a range anew. Entries without id are told apart by how many equal
    /// ones there are in the reading of a range.
    pub fn restart(&mut self) {
        self.nameless.clear();
    }

    /// The items of one page, in its order.
    pub fn items(&mut self, body: &[u8]) -> Result<Vec<Item>, BadPage> {
        let whole = std::str::from_utf8(body).ok();
        // nearly every page is flawless and can be read in one go
        if let Some(entries) = whole.and_then(list::<Entry<'_>>) {
            let entries = entries.whole().ok_or(BadPage::TooMany)?;
            let times: Result<Vec<_>, RejectReason> = entries.iter().map(Entry::when).collect();
            if let Ok(times) = times {
                return Ok(entries
                    .iter()
                    .zip(times)
                    .map(|(entry, at)| self.item(entry, at, entry.id().map(str::as_bytes)))
                    .collect());
            }
        }
        let tolerant = || Envelope::read(body)?.entries(|name| name == "entries", &[]);
        let raws: RawEvents<'_> = whole.and_then(list).or_else(tolerant).ok_or(BadPage::NoEntries)?;
        let raws = raws.whole().ok_or(BadPage::TooMany)?;
        let items: Vec<Item> = raws.iter().map(|Raw(raw)| self.careful(raw)).collect();
        if is_strange(&raws, items.iter().map(|item| &item.what), &OWN_NAMES) {
            return Err(BadPage::Strange);
        }
        Ok(items)
    }

    /// The item of an entry that may be anything.
    fn careful(&mut self, raw: &[u8]) -> Item {
        if raw.first() != Some(&b'{') {
            return rejected(RejectReason::Malformed, raw);
        }
        let text;
        let mut is_mended = false;
        let mut entry: Result<Entry<'_>, _> = serde_json::from_slice(raw);
        if entry.is_err() {
            is_mended = true;
            text = mended(raw);
            entry = serde_json::from_str(&text);
        }
        let Ok(entry) = entry else { return rejected(RejectReason::Malformed, raw) };
        let at = match entry.when() {
            Err(RejectReason::Malformed) if entry.id().is_some() && looks_like_one_of(raw, &OWN_NAMES) => Ok(None),
            at => at,
        };
        let id = entry.id().map(|id| id_bytes(id, "id", raw, is_mended));
        match (at, id) {
            (Ok(at), id) => self.item(&entry, at, id),
            // with its own key, so that it does not count again as an event when its time is mended
            (Err(reason), Some(id)) => Item { key: key_of(id), ..rejected(reason, raw) },
            (Err(reason), None) => rejected(reason, raw),
        }
    }

    fn item(&mut self, entry: &Entry<'_>, at: Option<DateTime<Utc>>, id: Option<&[u8]>) -> Item {
        let key = match id {
            Some(id) => key_of(id),
            None => self.key_of_nameless(entry),
        };
        let what = if self.ignore.matches([text_of(entry.actor.as_ref())]) {
            What::Ignored
        } else {
            let category = text_of(entry.action_category.as_ref()).unwrap_or_default();
            let event = text_of(entry.action_event.as_ref()).unwrap_or_default();
            What::Event(self.labels(category, event))
        };
        Item { key, at, filed_at: at, what }
    }

    fn key_of_nameless(&mut self, entry: &Entry<'_>) -> EventKey {
        let fields = [
            entry.org_id.as_ref(),
            entry.actor.as_ref(),
            entry.time.as_ref(),
            entry.object_id.as_ref(),
            entry.object_name.as_ref(),
            entry.action_category.as_ref(),
            entry.action_event.as_ref(),
        ];
        let content =
            EventKey::of("informatica without id", &fields.map(|field| text_of(field).unwrap_or_default().as_bytes()));
        let nth = self.nameless.entry(content).or_default();
        *nth += 1;
        EventKey::of("informatica without id, n-th", &[&content.0, &nth.to_le_bytes()])
    }

    fn labels(&mut self, category: &str, event: &str) -> EventLabels {
        if let Some(labels) = self.known.get(category).and_then(|events| events.get(event)) {
            return labels.clone();
        }
        let labels = labels(category, event);
        if category.len() + event.len() <= KNOWN_BYTES_MAX {
            if self.known_pairs >= KNOWN_MAX {
                self.known.clear();
                self.known_pairs = 0;
            }
            self.known_pairs += 1;
            self.known.entry(category.to_owned()).or_default().insert(event.to_owned(), labels.clone());
        }
        labels
    }
}

/// The log holds what was done, not what was tried: every outcome is a success.
fn labels(category: &str, event: &str) -> EventLabels {
    let event = Label::from_words(event);
    let (action, class) = match event.as_str() {
        "user_login" => (Label::from_words("login"), Class::Login(Principal::User)),
        "agent_login" => (Label::from_words("login"), Class::Login(Principal::Agent)),
        "logout" => (event, Class::Logout),
        _ => (event, Class::Change),
    };
    EventLabels { category: Label::from_words(category), action, outcome: Outcome::Success, class }
}

/// The list of a page: under `entries`, or bare.
fn list<'a, T: Deserialize<'a>>(text: &'a str) -> Option<List<T>> {
    #[derive(Deserialize)]
    #[serde(bound = "T: Deserialize<'de>")]
    struct Wire<T> {
        entries: List<T>,
    }
    if text.trim_ascii_start().starts_with('[') {
        serde_json::from_str(text).ok()
    } else {
        serde_json::from_str(text).ok().map(|Wire { entries }| entries)
    }
}

/// One entry. Every field may be missing.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    org_id: Option<Text<'a>>,
    #[serde(borrow)]
    actor: Option<Text<'a>>,
    #[serde(borrow, rename = "entryTime")]
    time: Option<Text<'a>>,
    #[serde(borrow)]
    object_id: Option<Text<'a>>,
    #[serde(borrow)]
    object_name: Option<Text<'a>>,
    #[serde(borrow)]
    action_category: Option<Text<'a>>,
    #[serde(borrow)]
    action_event: Option<Text<'a>>,
}

/// The key of an entry with this id.
fn key_of(id: &[u8]) -> EventKey {
    EventKey::of("informatica", &[id])
}

/// The names of an entry's fields.
const OWN_NAMES: [&str; 8] =
    ["id", "orgId", "actor", "entryTime", "objectId", "objectName", "actionCategory", "actionEvent"];

impl Entry<'_> {
    /// Its id, if it has one.
    fn id(&self) -> Option<&str> {
        text_of(self.id.as_ref()).filter(|id| !id.is_empty())
    }

    /// When it happened, where it says so; or why it is no event. An id alone does not make it one.
    fn when(&self) -> Result<Option<DateTime<Utc>>, RejectReason> {
        if self.time.is_none() {
            let says_what = [&self.action_category, &self.action_event].iter().any(|text| text.is_some());
            return if says_what { Ok(None) } else { Err(RejectReason::Malformed) };
        }
        let text = text_of(self.time.as_ref()).ok_or(RejectReason::BadTime)?;
        // the documented format is also that of RFC 3339, which is read faster
        let at = DateTime::parse_from_rfc3339(text).ok().map(|at| at.to_utc());
        at.or_else(|| parse_time(text)).map(Some).ok_or(RejectReason::BadTime)
    }
}

/// A text, borrowed from the page where it holds no escape; a number is taken as it reads, and anything else as a
/// field that says nothing.
///
/// serde borrows a `Cow` field, but not one within an `Option`.
struct Text<'a>(Option<Cow<'a, str>>);

fn text_of<'a>(text: Option<&'a Text<'_>>) -> Option<&'a str> {
    text?.0.as_deref()
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyText;

        impl<'de> Visitor<'de> for AnyText {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a number")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Some(Cow::Borrowed(text))))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Some(Cow::Owned(text.to_owned()))))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Text<'de>, E> {
                Ok(Text(Some(Cow::Owned(number.to_string()))))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Text<'de>, E> {
                Ok(Text(Some(Cow::Owned(number.to_string()))))
            }

            fn visit_f64<E: Error>(self, number: f64) -> Result<Text<'de>, E> {
                // so that the entry is mended, which keeps the digits
                const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
                if number.abs() > EXACT_MAX {
                    return Err(E::custom("more digits than a number holds"));
                }
                Ok(Text(Some(Cow::Owned(number.to_string()))))
            }

            fn visit_bool<E: Error>(self, _: bool) -> Result<Text<'de>, E> {
                Ok(Text(None))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Text<'de>, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Text(None))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Text<'de>, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Text(None))
            }
        }

        deserializer.deserialize_any(AnyText)
    }
}

#[cfg(test)]
mod tests;
