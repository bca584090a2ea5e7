//! Canvas LMS, Authentications Log: logins and logouts of an institution.
//!
//! `GET /api/v1/audit/authentication/{accounts|users|logins}/{id}` (developerdocs.instructure.com,
//! Authentications Log), newest first, in pages that the `Link` header strings together. Times are
//! whole seconds and both bounds are inclusive (canvas-lms, `event_stream/record.rb` and
//! `index_strategy/active_record.rb`).
//!
//! What can go wrong while paging, and what is done:
//! - A bookmark the service cannot read yields page 1 without a word. A page that was seen before
//!   in the same walk ends it, and the window is read in halves, down to one second.
//! - The `Link` header may be lost on the way. That it holds no `next` ends a walk only where it is there, or where the
//!   page is much shorter than the longest. Else the window is read in parts, until two that both hold something bring
//!   nothing new; where there are no parts, it stays open.
//! - A `next` may lead back to a page that was read, even where nothing is left to be read: an error, found out the
//!   same way.
//! - Older versions lose the rest of a second at the end of a page. That second is read by itself.
//! - A time the service cannot read is ignored without a word. What comes back is checked.
//!
//! What it cannot report: failed logins and changes, which the log does not hold. It keeps a year.

mod setup;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use http::{HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde::de::IgnoredAny;
use url::Url;

pub use self::setup::{SERVICE, SYSTEM, Settings};
use super::kit::{Ignore, decode_base64url, may_be_own, parse_time, rejected, unread};
use super::link;
use super::list::{Raw, RawEvents};
use super::text::{Envelope, Field, Inner, Understood, id_bytes, understand};
use super::{History, Signals, Sink, Source, Spec};
use crate::api::{Api, Budget, Call, Reply, Verdict, judge_by_status};
use crate::event::{Class, EventKey, EventLabels, Item, Label, Outcome, Principal, RejectReason, What};
use crate::failure::{ErrorKind, Failure};
use crate::page::{Catalogue, Page};
use crate::settings::{Common, endpoint};
use crate::window::Window;

/// What clients ask for; the service's maximum is "unspecified" in its documentation, and it takes
/// less without a word.
const PAGE_SIZE: u32 = 100;
/// No window has this many pages; a service that always has one more is broken.
const PAGES_MAX: usize = 10_000;
/// What the service puts on a page where nobody asks for a number. No cap of its own is believed to be smaller.
const PAGE_SIZE_MIN: usize = 10;
/// Keeps ids beyond 2^53 whole (Canvas API documentation, "Schema").
const ACCEPT: HeaderValue = HeaderValue::from_static("application/json+canvas-string-ids, application/json");
/// An event this far outside what was asked for does not mean that the filter was ignored.
const TOLERANCE: TimeDelta = TimeDelta::seconds(1);
/// Below this much of the service's budget (plus the cost of a request) we slow down: a request
/// takes 50 in advance (canvas-lms, `request_throttle.rb`), and the token may have other users.
const RESERVE: f64 = 50.0;
/// How fast the service's budget comes back, per second (same place).
const OUTFLOW: f64 = 10.0;
/// What its `Link` header may say of a page besides `next` (developerdocs.instructure.com, Pagination).
const PAGE_RELATIONS: [&str; 5] = ["current", "first", "last", "prev", "previous"];
/// The longest pause for the service's budget.
const PAUSE_MAX_SECONDS: f64 = 30.0;

/// How the log is asked for.
const READING: super::Reading = super::Reading::History(History {
    cell: Duration::from_secs(1),
    step_max: Duration::from_hours(24),
    ahead: Duration::from_mins(10),
});

/// Reads the logs of one institution.
pub struct Canvas {
    base: Url,
    scopes: Arc<[Scope]>,
    page_size: u32,
    ignore: Ignore,
    /// The service knows the route of logins by its old name, `/pseudonyms/`.
    logins_by_old_name: bool,
}

/// One log that can be asked for.
struct Scope {
    of: Of,
    id: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Account,
    User,
    Login,
}

fn judge(reply: &Reply) -> Verdict {
    match reply.status.as_u16() {
        // with the header the token is bad; without it, it may not do this, unless something on the way took that away
        401 if !reply.headers.contains_key(header::WWW_AUTHENTICATE) && !says(reply, "access token") => {
            Verdict::Bad(ErrorKind::Forbidden)
        }
        // until October 2025, and still where Canvas is self-hosted
        403 if says(reply, "rate limit exceeded") => Verdict::Bad(ErrorKind::Throttled),
        _ => judge_by_status(reply.status),
    }
}

fn budget(reply: &Reply) -> Option<Budget> {
    let number = |name: &str| {
        let number = reply.header(name)?.trim().parse::<f64>().ok()?;
        number.is_finite().then_some(number)
    };
    let remaining = number("x-rate-limit-remaining")?;
    let wanted = RESERVE + number("x-request-cost").unwrap_or_default().max(0.0);
    let pause = ((wanted - remaining) / OUTFLOW).clamp(0.0, PAUSE_MAX_SECONDS);
    Some(Budget { remaining, pause: Duration::from_secs_f64(pause) })
}

/// Whether an answer holds these words, in any case.
fn says(reply: &Reply, words: &str) -> bool {
    String::from_utf8_lossy(&reply.body).to_ascii_lowercase().contains(words)
}

#[async_trait]
impl Source for Canvas {
    fn spec(&self) -> Spec {
        let mut catalogue = Catalogue::default();
        let outcomes = [Outcome::Success];
        catalogue.add(&["authentication"], &["login"], &outcomes, Class::Login(Principal::User));
        catalogue.add(&["authentication"], &["logout"], &outcomes, Class::Logout);
        Spec { reading: READING, signals: Signals { login: true, logout: true, ..Signals::default() }, catalogue }
    }

    async fn read(&mut self, window: Window, api: &Api, sink: &mut dyn Sink) -> Result<(), Failure> {
        let mut reading = Reading {
            api,
            sink,
            filter_ignored: false,
            finer: false,
            longest: 0,
            seen: HashSet::new(),
            unproven: None,
        };
        let mut refused = None;
        let mut gone = Vec::new();
        for scope in &*Arc::clone(&self.scopes) {
            match self.read_scope(scope, window, &mut reading).await {
                Ok(()) => {}
                // a user who is gone has nothing to be read, and does not keep the others from being counted
                Err(failure) if failure.kind == ErrorKind::NotFound => gone.push(failure),
                // a permission may come back, and the log with it: the window stays open
                Err(failure) if failure.kind == ErrorKind::Forbidden => {
                    refused.get_or_insert(failure);
                }
                Err(failure) => return Err(failure),
            }
        }
        if gone.len() == self.scopes.len() {
            refused = refused.or_else(|| gone.pop());
        }
        for failure in gone {
            reading.sink.report(failure);
        }
        refused.or(reading.unproven).map_or(Ok(()), Err)
    }
}

/// What is under way while one window is read.
struct Reading<'a> {
    api: &'a Api,
    sink: &'a mut dyn Sink,
    /// Events came that were not asked for.
    filter_ignored: bool,
    /// Events came whose times are finer than the documented seconds.
    finer: bool,
    /// Events of the longest page: a shorter one is not full.
    longest: usize,
    /// What came of the scope that is read.
    seen: HashSet<EventKey>,
    /// Pages that may go on, and do not say how. The rest is read, but the window stays open.
    unproven: Option<Failure>,
}

/// Whole seconds since the epoch, both inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    first: i64,
    last: i64,
}

impl Span {
    /// The window and, since the service takes its end as inside, the moment of its end.
    fn of(window: Window) -> Self {
        Self { first: window.from.timestamp(), last: -(-window.to.timestamp_millis()).div_euclid(1000) }
    }

    fn second(second: i64) -> Self {
        Self { first: second, last: second }
    }

    /// Two parts: halves; but where all that was seen lies in one of them, what lies beside it and the rest.
    fn parts(self, seen: Option<Span>) -> Option<[Span; 2]> {
        let middle = self.first + (self.last - self.first) / 2;
        let end = match seen {
            Some(seen) if (self.first..=middle).contains(&seen.last) => seen.last,
            Some(seen) if (middle + 1..=self.last).contains(&seen.first) => seen.first - 1,
            _ => middle,
        };
        (middle < self.last).then_some([Self { last: end, ..self }, Self { first: end + 1, ..self }])
    }
}

impl Canvas {
    /// `scopes`: the ids of accounts, users and logins.
    fn new(base: &Url, scopes: [&Vec<String>; 3], common: &Common) -> Self {
        let kinds = [Of::Account, Of::User, Of::Login].into_iter().zip(scopes);
        let scopes = kinds.flat_map(|(of, ids)| ids.iter().map(move |id| Scope { of, id: id.clone() }));
        Self {
            base: base.clone(),
            scopes: scopes.collect(),
            page_size: common.page_size.map_or(PAGE_SIZE, std::num::NonZeroU32::get),
            ignore: Ignore::new(&common.ignore_actors),
            logins_by_old_name: false,
        }
    }

    async fn read_scope(&mut self, scope: &Scope, window: Window, reading: &mut Reading<'_>) -> Result<(), Failure> {
        reading.seen.clear();
        let whole = Span::of(window);
        let mut walked = vec![(whole, self.walk(scope, whole, reading).await?)];
        let mut by_itself = HashSet::new();
        while let Some((span, walk)) = walked.pop() {
            let alone = span.first == span.last;
            let overfull = alone && walk.cut.contains(&span.first);
            if !walk.loops && !walk.lost && !overfull {
                for second in walk.cut {
                    if !reading.filter_ignored && by_itself.insert(second) {
                        let span = Span::second(second);
                        walked.push((span, self.walk(scope, span, reading).await?));
                    }
                }
                continue;
            }
            match span.parts(walk.seen_span()) {
                // nothing at all, over and over, is nothing
                _ if walk.longest == 0 => {}
                // where the filter is ignored, half a window is no smaller
                Some(parts) if !reading.filter_ignored => {
                    let before = reading.seen.len();
                    let mut lengths = [0; 2];
                    for (part, length) in parts.into_iter().zip(&mut lengths) {
                        let walk = self.walk(scope, part, reading).await?;
                        *length = walk.longest;
                        walked.push((part, walk));
                    }
                    // parts that both hold something, and nothing new: it was whole, and what it led to is wrong
                    let was_whole = lengths.iter().all(|length| *length > 0) && reading.seen.len() == before;
                    if was_whole && walk.leads_back {
                        let got = "a next link that leads back to an earlier page";
                        let failure = Failure::new(ErrorKind::Decode, self.tried(scope), got);
                        reading.unproven.get_or_insert(failure);
                        return Ok(());
                    }
                    if was_whole && lengths.iter().all(|length| *length < walk.longest) {
                        walked.iter_mut().rev().take(2).for_each(|(_, part)| (part.loops, part.lost) = (false, false));
                    }
                }
                _ if walk.lost => {
                    // a page that is shorter than asked for is the last, unless the service's cap shows in others
                    let full = walk.longest >= self.page_size as usize;
                    if full || (alone && reading.seen.len() > reading.longest) {
                        let got = "a full page without a Link header, and no smaller window";
                        let failure = Failure::new(ErrorKind::Truncated, self.tried(scope), got).advising(
                            "find out what removes the Link header (a proxy or gateway); the window is read again",
                        );
                        reading.unproven.get_or_insert(failure);
                    }
                }
                // a page that is not full held everything
                None if walk.longest < reading.longest => {}
                _ => {
                    let got = if alone {
                        "more events in one second than fit on a page, and no next page"
                    } else {
                        "pages without end, and no smaller window because the filter is ignored"
                    };
                    reading.sink.report(Failure::new(ErrorKind::Truncated, self.tried(scope), got));
                }
            }
        }
        Ok(())
    }

    /// What is known of the pages of one span at their end.
    async fn walk(&mut self, scope: &Scope, span: Span, reading: &mut Reading<'_>) -> Result<Walk, Failure> {
        let walk = self.follow(scope, span, reading).await?;
        // what the pages held is not needed any more
        Ok(Walk { asked: HashSet::new(), seen: HashSet::new(), equal: HashMap::new(), ..walk })
    }

    /// Follows the pages of one span from the first to the last.
    async fn follow(&mut self, scope: &Scope, span: Span, reading: &mut Reading<'_>) -> Result<Walk, Failure> {
        let mut walk = Walk::default();
        let (mut url, mut reply) = self.first_page(scope, span, reading.finer, reading.api).await?;
        for _ in 0..PAGES_MAX {
            walk.asked.insert(in_order(&url));
            let entries = self.entries(&reply)?;
            let next = next_page(&self.path(scope), &reply);
            let next_again = matches!(&next, Ok(Some(next)) if walk.asked.contains(&in_order(next)));
            let restarted = walk.restarts_with(&entries);
            // what has no id and comes twice would be numbered twice; it is read again in a smaller span
            let doubtful = next_again && walk.pages > 0 && entries.iter().any(|entry| !entry.has_own_key);
            walk.loops = next_again || restarted;
            walk.leads_back = next_again && !restarted;
            reading.longest = reading.longest.max(entries.len());
            // pages may be of different lengths, but not of such different ones
            let full = entries.len() >= PAGE_SIZE_MIN && 2 * entries.len() > reading.longest;
            if restarted || doubtful {
                return Ok(walk);
            }
            walk.observe(&entries, span);
            self.check_filter(scope, &walk, reading);
            let items = walk.number(entries);
            reading.seen.extend(items.iter().map(|item| item.key));
            reading.sink.page(Page { items, ..Page::default() }).await?;
            match next? {
                Some(next) if !walk.loops && !walk.is_past() => {
                    walk.tie = if loses_ties(&next) { walk.last_second() } else { None };
                    url = next;
                }
                next => {
                    walk.lost = next.is_none() && full && !link::says_end(&reply.headers, &PAGE_RELATIONS);
                    return Ok(walk);
                }
            }
            reply = reading.api.call(|_| request(&url)).await?;
        }
        Err(Failure::new(ErrorKind::Truncated, self.tried(scope), format!("no end after {PAGES_MAX} pages")))
    }

    /// The first page, and where it was. Logins are looked for under both names of their route.
    async fn first_page(&mut self, scope: &Scope, span: Span, finer: bool, api: &Api) -> Result<(Url, Reply), Failure> {
        let url = self.url(scope, span, finer);
        let refused = match api.call(|_| request(&url)).await {
            Ok(reply) => return Ok((url, reply)),
            Err(failure) => failure,
        };
        if scope.of != Of::Login || refused.kind != ErrorKind::NotFound {
            return Err(refused);
        }
        self.logins_by_old_name = !self.logins_by_old_name;
        let url = self.url(scope, span, finer);
        match api.call(|_| request(&url)).await {
            Ok(reply) => Ok((url, reply)),
            Err(failure) => {
                self.logins_by_old_name = !self.logins_by_old_name;
                Err(if failure.kind == ErrorKind::NotFound { refused } else { failure })
            }
        }
    }

    fn path(&self, scope: &Scope) -> Url {
        let of = match scope.of {
            Of::Account => "accounts",
            Of::User => "users",
            Of::Login if self.logins_by_old_name => "pseudonyms",
            Of::Login => "logins",
        };
        endpoint(&self.base, &["api", "v1", "audit", "authentication", of, &scope.id])
    }

    fn url(&self, scope: &Scope, span: Span, finer: bool) -> Url {
        // without `Z` a time is read in the user's zone, and one that cannot be read is ignored
        let time = |second| {
            let at: DateTime<Utc> = DateTime::from_timestamp(second, 0).unwrap_or_default();
            at.to_rfc3339_opts(SecondsFormat::Secs, true)
        };
        let mut url = self.path(scope);
        url.query_pairs_mut()
            .append_pair("start_time", &time(span.first))
            .append_pair("end_time", &time(span.last + i64::from(finer)))
            .append_pair("per_page", &self.page_size.to_string());
        url
    }

    fn tried(&self, scope: &Scope) -> String {
        format!("GET {}", self.path(scope))
    }

    fn check_filter(&self, scope: &Scope, walk: &Walk, reading: &mut Reading<'_>) {
        reading.finer |= walk.finer;
        if walk.strays && !reading.filter_ignored {
            reading.filter_ignored = true;
            let got = "events outside the requested window: start_time/end_time was ignored";
            reading.sink.report(Failure::new(ErrorKind::Decode, self.tried(scope), got));
        }
    }

    fn entries(&self, reply: &Reply) -> Result<Vec<Entry>, Failure> {
        let is_own = |Raw(raw): &Raw<'_>, entry: &Entry| may_be_own(raw, &entry.what, &OWN_NAMES);
        let entries = listed(reply)?.read(|Raw(raw)| self.entry(raw), is_own).map_err(|bad| unread(bad, reply))?;
        Ok(entries.into_iter().map(|(_, entry)| entry).collect())
    }

    fn entry(&self, raw: &[u8]) -> Entry {
        let refused = |reason| {
            let item = rejected(reason, raw);
            Entry { key: item.key, has_own_key: true, at: None, what: item.what }
        };
        let Some(Understood { entry: event, mended }) = understand::<Event>(raw) else {
            return refused(RejectReason::Malformed);
        };
        let id = event.id.id().map(|id| id_bytes(id, "id", raw, mended));
        let own_key = id.map(|id| EventKey::of("canvas", &[id]));
        // with its own key, so that it does not count again as an event when its time is mended
        let refused = |reason| Entry { key: own_key.unwrap_or(refused(reason).key), ..refused(reason) };
        let at = match &event.created_at {
            Field::Missing => return refused(RejectReason::Malformed),
            Field::Text(text) => parse_time(text),
            _ => None,
        };
        let Some(at) = at else { return refused(RejectReason::BadTime) };
        let (key, has_own_key) = (own_key.unwrap_or_else(|| event.key(at)), own_key.is_some());
        let what = if self.ignore.matches([event.user()]) { What::Ignored } else { What::Event(event.labels()) };
        Entry { key, has_own_key, at: Some(at), what }
    }
}

/// The next page. Whether the token may go there is for `api.rs` to say.
fn next_page(current: &Url, reply: &Reply) -> Result<Option<Url>, Failure> {
    let Some(target) = link::next(&reply.headers) else { return Ok(None) };
    let mut next = current.join(&target).map_err(|_| reply.undecodable("its next link is not a URL"))?;
    next.set_fragment(None);
    Ok(Some(next))
}

/// An address with its query in order, so that another way to write the same one is seen.
fn in_order(url: &Url) -> Url {
    let mut query: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    query.sort_unstable();
    let mut url = url.clone();
    url.query_pairs_mut().clear().extend_pairs(query);
    url
}

/// An event of a page, before events without an id are numbered.
struct Entry {
    /// Its key or, where it has none of its own, that of all events equal to it.
    key: EventKey,
    has_own_key: bool,
    at: Option<DateTime<Utc>>,
    what: What,
}

/// What is known of the pages of one span so far.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent facts about the pages")]
struct Walk {
    asked: HashSet<Url>,
    seen: HashSet<EventKey>,
    /// How many equal events without an id there were.
    equal: HashMap<EventKey, u64>,
    pages: usize,
    /// Events of the longest page.
    longest: usize,
    newest: Option<DateTime<Utc>>,
    oldest: Option<DateTime<Utc>>,
    /// The last event of the last page that had one with a time.
    last: Option<DateTime<Utc>>,
    /// An event was newer than the one before it.
    unordered: bool,
    /// All events of the last page lie before the span.
    before: bool,
    /// An event lies outside the span.
    strays: bool,
    finer: bool,
    /// The second at the end of the page before, if the service may have passed over the rest of it.
    tie: Option<i64>,
    /// Seconds of which events may be missing.
    cut: Vec<i64>,
    /// The pages lead back to where they came from.
    loops: bool,
    /// A page says so itself.
    leads_back: bool,
    /// The last page is full, and does not say that it is the last.
    lost: bool,
}

impl Walk {
    fn last_second(&self) -> Option<i64> {
        self.last.map(|at| at.timestamp())
    }

    /// The seconds of all events that were seen.
    fn seen_span(&self) -> Option<Span> {
        Some(Span { first: self.oldest?.timestamp(), last: self.newest?.timestamp() })
    }

    /// Whether a page after the first brings nothing but what was there before.
    fn restarts_with(&self, entries: &[Entry]) -> bool {
        let mut known: Vec<&Entry> = entries.iter().filter(|entry| entry.at.is_some()).collect();
        if known.is_empty() {
            known = entries.iter().collect();
        }
        let Some(first) = known.first() else { return false };
        let last_second = self.last_second();
        // equal events without an id may fill a second that goes on over the end of a page
        let tells = |entry: &&Entry| entry.has_own_key || entry.at.map(|at| at.timestamp()) != last_second;
        let all_seen = known.iter().all(|entry| self.seen.contains(&entry.key)) && known.iter().any(tells);
        let jumps_back = !first.has_own_key && !self.unordered && self.last.is_some() && first.at > self.last;
        self.pages > 0 && (all_seen || jumps_back)
    }

    fn observe(&mut self, entries: &[Entry], span: Span) {
        self.pages += 1;
        self.longest = self.longest.max(entries.len());
        self.seen.extend(entries.iter().map(|entry| entry.key));
        let times: Vec<DateTime<Utc>> = entries.iter().filter_map(|entry| entry.at).collect();
        if let Some(tie) = self.tie.take()
            && times.first().map(DateTime::timestamp) != Some(tie)
        {
            self.cut.push(tie);
        }
        let at = |second| DateTime::from_timestamp(second, 0).unwrap_or_default();
        let (first, last) = (at(span.first) - TOLERANCE, at(span.last) + TOLERANCE);
        self.before = !times.is_empty() && times.iter().all(|at| *at < first);
        for at in times {
            self.unordered |= self.last.is_some_and(|previous| at > previous);
            self.strays |= at < first || at > last;
            self.finer |= at.timestamp_subsec_nanos() > 0;
            self.newest = self.newest.max(Some(at));
            self.oldest = Some(self.oldest.map_or(at, |oldest| oldest.min(at)));
            self.last = Some(at);
        }
    }

    /// Whether all that follows is older than the span. True only where pages are seen to go from new to
    /// old: a page of one moment does not tell.
    fn is_past(&self) -> bool {
        self.before && !self.unordered && self.newest > self.last
    }

    /// Turns entries into items. An event without an id is the n-th of its kind in its second, in a
    /// walk that holds the whole second; so it is the same on every reading and in every scope.
    fn number(&mut self, entries: Vec<Entry>) -> Vec<Item> {
        let number = |entry: Entry| {
            let key = if entry.has_own_key {
                entry.key
            } else {
                let nth = self.equal.entry(entry.key).or_default();
                *nth += 1;
                EventKey::of("canvas nth without id", &[&entry.key.0, &nth.to_le_bytes()])
            };
            Item { key, at: entry.at, filed_at: entry.at, what: entry.what }
        };
        entries.into_iter().map(number).collect()
    }
}

fn request(url: &Url) -> Call {
    Call::get(url.clone()).with(header::ACCEPT, ACCEPT)
}

/// The names of an event's own fields, in both shapes.
const OWN_NAMES: [&str; 7] = ["id", "created_at", "event_type", "pseudonym_id", "account_id", "user_id", "links"];

/// The events of a page: a compound document (what the service sends) or a bare list. What else
/// the document holds is not looked at.
fn listed(reply: &Reply) -> Result<RawEvents<'_>, Failure> {
    #[derive(Deserialize)]
    struct Document<'a> {
        #[serde(borrow)]
        events: RawEvents<'a>,
    }
    if reply.status == StatusCode::NO_CONTENT {
        return Ok(RawEvents::default());
    }
    let body = reply.body.trim_ascii_start();
    // Canvas puts this before JSON for browsers
    let body = body.strip_prefix(b"while(1);").unwrap_or(body).trim_ascii_start();
    let events = if body.starts_with(b"[") {
        serde_json::from_slice::<RawEvents<'_>>(body)
    } else {
        serde_json::from_slice::<Document<'_>>(body).map(|document| document.events)
    };
    let tolerant = || Envelope::read(body)?.entries(|name| name == "events", &["links", "linked"]);
    let events = events.ok().or_else(tolerant);
    events.ok_or_else(|| reply.undecodable("neither a document with events nor a list of them"))
}

/// Whether the page behind `next` may begin after the second in which this one ends. Bookmarks of
/// older versions hold only a moment, and what follows lies before it; newer ones hold the moment
/// and an id (canvas-lms, `index_strategy/active_record.rb`).
fn loses_ties(next: &Url) -> bool {
    let page = next.query_pairs().filter(|(name, _)| name == "page").last();
    let Some(token) = page.as_ref().and_then(|(_, page)| page.strip_prefix("bookmark:")) else { return true };
    let token = token.replace(['+', ' '], "-").replace('/', "_"); // a bare `+` in a query is a blank
    let parts = decode_base64url(&token).and_then(|json| serde_json::from_slice::<Vec<IgnoredAny>>(&json).ok());
    parts.is_none_or(|parts| parts.len() < 2)
}

/// One event, as the service sends it (ids in `links`) or as its documentation shows it (flat,
/// without an id).
#[derive(Default, Deserialize)]
#[serde(default)]
struct Event {
    id: Field,
    created_at: Field,
    #[serde(rename = "event_type")]
    kind: Field,
    pseudonym_id: Field,
    account_id: Field,
    user_id: Field,
    links: Inner<Links>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Links {
    login: Field,
    account: Field,
    user: Field,
}

impl Event {
    /// The key of all events without an id that are equal to it.
    fn key(&self, at: DateTime<Utc>) -> EventKey {
        let text = |linked: fn(&Links) -> &Field, flat| self.linked_or(linked, flat).unwrap_or_default().as_bytes();
        let login = text(|links| &links.login, &self.pseudonym_id);
        let account = text(|links| &links.account, &self.account_id);
        let second = at.timestamp().to_le_bytes();
        let user = self.user().unwrap_or_default().as_bytes();
        let parts: [&[u8]; 5] = [&second, self.kind.word().as_bytes(), login, account, user];
        EventKey::of("canvas without id", &parts)
    }

    fn linked_or<'a>(&'a self, linked: fn(&Links) -> &Field, flat: &'a Field) -> Option<&'a str> {
        self.links.0.as_ref().and_then(|links| linked(links).id()).or(flat.id())
    }

    fn user(&self) -> Option<&str> {
        self.linked_or(|links| &links.user, &self.user_id)
    }

    /// The log holds logins that succeeded, and logouts.
    fn labels(&self) -> EventLabels {
        let action = Label::from_words(self.kind.word());
        let class = match action.as_str() {
            "login" => Class::Login(Principal::User),
            "logout" => Class::Logout,
            _ => Class::Change,
        };
        EventLabels { category: Label::from_words("authentication"), action, outcome: Outcome::Success, class }
    }
}

#[cfg(test)]
mod tests;
