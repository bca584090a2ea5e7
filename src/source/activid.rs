//! HID ActivID, SCIM audit events: logins and their failures, logouts, changes, integrity.
//!
//! `POST /scim/{tenant}/v2/Event/.search` (docs.hidglobal.com, "Event" of the ActivID SCIM API).
//! The service bends every rule: its events have no id, no time and no order, a search has no
//! pages and no total, and the bounds of its time filter are exclusive. What follows from that:
//!
//! - **Identity.** History is read in whole cells of a fixed grid. An event is (cell, content,
//!   n-th of its kind in the cell): equal events are as many, and reading again adds none,
//!   however a cell is cut into searches. It is filed at the start of its cell.
//! - **Completeness.** An answer as long as was asked for, or as the service's own limit, which
//!   is not documented, is not whole: its window is halved until no part is full, down to 1 ms.
//!   What even then is full is counted as far as it came and reported as truncated.
//! - **Integrity.** `verify eq true` makes the service say that *one of the records* of an answer
//!   is tainted, not which. The window is halved around it until the record stands alone.
//! - **Trust.** That the time filter is obeyed cannot be seen in the events, so that one search
//!   of each reading asks for a time in which there can be none.
//!
//! What it cannot report: when an event happened (unless a token says so), and so how late it was.

mod labels;
mod setup;
mod token;

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::BoxFuture;
use http::{HeaderValue, StatusCode, header};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use url::Url;

pub use self::setup::{SERVICE, SYSTEM, Settings};
use self::token::{ATTRIBUTES, Bag, Record, may_be_token};
use super::kit::{Ignore, credential, unread};
use super::list::{Raw, RawEvents};
use super::text::{self, Envelope};
use super::{History, Signals, Sink, Source, Spec, oauth};
use crate::api::{Api, Call, Dialect, Reply, Session, Verdict, Wire};
use crate::clock::delta;
use crate::event::{Class, EventKey, Item, Outcome, Principal, What};
use crate::failure::{ErrorKind, Failure};
use crate::ledger::TALLY_CELL;
use crate::page::{Catalogue, Facts, Page};
use crate::settings::Secret;
use crate::window::{Window, floor};

/// Keys hold the start of the cell: another length counts everything in the overlap once more.
const CELL: Duration = TALLY_CELL;
/// How many events a search asks for. Neither default nor maximum is documented.
const COUNT: u32 = 1000;
/// The most a search asks for, where time cannot be cut any finer.
const COUNT_MAX: u32 = 100_000;
/// How far beyond the present to ask.
const AHEAD: Duration = Duration::from_mins(5);
/// A service with a lower limit than this is not noticed to have one.
const CAP_MIN: usize = 4;
/// Limits are round: an answer of a multiple of this is not believed to be whole at once.
const ROUND: usize = 50;
/// Searches of one reading that only serve to find tainted records, so that a log that was
/// tampered with as a whole does not keep the source from reading it. Beyond that, tainted
/// records of one window count as one.
const TAINT_SEARCHES_MAX: u32 = 200;
/// The longest value of an event that is said back to the service in a filter.
const QUOTED_BYTES_MAX: usize = 256;
/// Cells whose parts are remembered: several times what an overlap of hours reads again.
const CELLS_REMEMBERED_MAX: usize = 512;

const OUTCOMES: [Outcome; 3] = [Outcome::Success, Outcome::Failure, Outcome::Unknown];

/// How the log is asked for.
const READING: super::Reading =
    super::Reading::History(History { cell: CELL, step_max: Duration::from_hours(4), ahead: AHEAD });

/// Reads one tenant's log.
pub struct Activid {
    search: Search,
    learnt: Learnt,
    /// Cells that are not asked for in one piece, by their start.
    cells: BTreeMap<DateTime<Utc>, Vec<Piece>>,
}

struct ActividDialect {
    base: Url,
    token_url: Url,
    client_id: String,
    client_secret: Secret,
}

#[async_trait]
impl Dialect for ActividDialect {
    async fn open_session(&self, wire: &Wire) -> Result<Session, Failure> {
        let secret = credential(&self.client_secret)?;
        let basic = oauth::basic(&self.client_id, secret.expose_secret());
        oauth::client_credentials(wire, &self.token_url, &basic, &self.base).await
    }

    /// A search that is refused as wrong is an answer: what to do depends on what was asked, and
    /// asking the same again would not help.
    fn judge(&self, reply: &Reply) -> Verdict {
        match oauth::judge(reply) {
            Verdict::Bad(_) if reply.status == StatusCode::BAD_REQUEST => Verdict::Good,
            verdict => verdict,
        }
    }
}

#[async_trait]
impl Source for Activid {
    fn spec(&self) -> Spec {
        let integrity = self.search.verify;
        let mut catalogue = Catalogue { integrity, ..Catalogue::default() };
        catalogue.add_logins(&["authentication"], Principal::User, &OUTCOMES);
        catalogue.add_logins(&["authentication"], Principal::Device, &OUTCOMES);
        catalogue.add(&["authentication"], &["logout"], &OUTCOMES, Class::Logout);
        for name in labels::DOCUMENTED {
            let labels = labels::labels(name, ["https://scim.example.com/Users/123"], None);
            catalogue.add(&[labels.category.as_str()], &[labels.action.as_str()], &OUTCOMES, labels.class);
        }
        Spec {
            reading: READING,
            signals: Signals { login: true, login_failure: true, logout: true, change: true, integrity },
            catalogue,
        }
    }

    async fn read(&mut self, window: Window, api: &Api, sink: &mut dyn Sink) -> Result<(), Failure> {
        let mut reading = Reading {
            search: &self.search,
            learnt: &mut self.learnt,
            api,
            sink,
            filter_is_obeyed: false,
            verified: None,
            taint_searches_left: TAINT_SEARCHES_MAX,
        };
        let mut from = floor(window.from, CELL);
        while from < window.to {
            let cell = Window { from, to: from + delta(CELL) };
            let pieces =
                self.cells.get(&from).cloned().unwrap_or_else(|| vec![Piece { window: cell, len: 0, spot: None }]);
            let found = reading.read_cell(&pieces).await?;
            let pieces = reading.learnt.merge(found.pieces, self.search.count);
            self.cells.remove(&from);
            if pieces.len() > 1 || pieces.iter().any(|piece| piece.spot.is_some()) {
                self.cells.insert(from, pieces);
            }
            if self.cells.len() > CELLS_REMEMBERED_MAX {
                self.cells.pop_first();
            }
            let facts = Facts { tainted: reading.verified.filter(|tainted| *tainted), ..Facts::default() };
            reading
                .sink
                .page(Page { items: items(cell, &found.events, found.tainted), facts, ..Page::default() })
                .await?;
            from = cell.to;
        }
        if let Some(tainted) = reading.verified {
            let facts = Facts { tainted: Some(tainted), ..Facts::default() };
            reading.sink.page(Page { facts, ..Page::default() }).await?;
        }
        Ok(())
    }
}

/// What a cell's events and tainted records are counted under.
fn items(cell: Window, events: &Bag, mut tainted: Vec<Bag>) -> Vec<Item> {
    let start = cell.from.timestamp_millis().to_le_bytes();
    let key = |domain, content: EventKey, n: u32| EventKey::of(domain, &[&start, &content.0, &n.to_le_bytes()]);
    let mut items = Vec::with_capacity(events.len());
    for (record, count) in events.iter() {
        for n in 0..count {
            let at = record.at.filter(|at| cell.contains(*at));
            let key = key("activid", record.content, n);
            items.push(Item { key, at, filed_at: Some(cell.from), what: record.what.clone() });
        }
    }
    // those that stand alone come first and in the order of their content, so that it does not
    // matter in which order they were found
    tainted.sort_by_key(|suspects| (suspects.iter().count(), suspects.print()));
    let mut used: BTreeMap<EventKey, u32> = BTreeMap::new();
    for suspects in tainted {
        // what could be understood first: what is garbled on the way is not there the next time
        let mut suspects: Vec<&Record> = suspects.iter().map(|(record, _)| record).collect();
        suspects.sort_by_key(|record| matches!(record.what, What::Rejected(_)));
        let mut contents: Vec<EventKey> = suspects.into_iter().map(|record| record.content).collect();
        if contents.is_empty() {
            contents.push(EventKey::of("activid event", &[]));
        }
        let n = |content: &EventKey| used.get(content).copied().unwrap_or_default();
        let candidates: Vec<EventKey> =
            contents.iter().map(|content| key("activid tainted", *content, n(content))).collect();
        *used.entry(contents[0]).or_default() += 1;
        let what = What::Tainted { candidates: candidates.clone() };
        items.push(Item { key: candidates[0], at: None, filed_at: Some(cell.from), what });
    }
    items
}

// === what is asked and what comes back ===

/// How to ask.
struct Search {
    url: Url,
    count: u32,
    verify: bool,
    ignore: Ignore,
}

/// What a search brought.
enum Found {
    Events(Answer),
    /// More than the service is willing to return (SCIM, RFC 7644 section 3.12).
    TooMany,
    /// It was refused as wrong.
    Refused(Reply),
}

/// The events of one answer.
#[derive(Default)]
struct Answer {
    events: Bag,
    len: usize,
    /// How many were asked for.
    count: u32,
    tainted: bool,
    /// There may be more.
    full: bool,
    /// It is as long as an answer has ever been: that may be the service's limit.
    suspect: bool,
}

impl Search {
    async fn ask(&self, api: &Api, window: Window, count: u32, verify: bool, also: &str) -> Result<Found, Failure> {
        let time = |at: DateTime<Utc>| at.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
        // both bounds are exclusive, and the window's start is inside
        let (after, before) = (time(window.from - TimeDelta::milliseconds(1)), time(window.to));
        let mut filter = format!("meta.created gt {after} and meta.created lt {before}{also}");
        if verify {
            filter.push_str(" and verify eq true");
        }
        let body = json!({
            "schemas": ["urn:ietf:params:scim:api:messages:2.0:SearchRequest"],
            "filter": filter,
            "count": count,
        });
        let accept = HeaderValue::from_static("application/scim+json, application/json");
        let call = Call::post(self.url.clone(), "application/scim+json", body.to_string()).with(header::ACCEPT, accept);
        let reply = api.call(|_| call.clone()).await?;
        if reply.status != StatusCode::BAD_REQUEST {
            return Ok(Found::Events(self.answer(&reply, count)?));
        }
        let error = text::value(&reply.body);
        Ok(if error["scimType"] == "tooMany" { Found::TooMany } else { Found::Refused(reply) })
    }

    fn answer(&self, reply: &Reply, count: u32) -> Result<Answer, Failure> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct List<'a> {
            #[serde(borrow)]
            schemas: Option<&'a RawValue>,
            #[serde(borrow)]
            event_tokens: Option<RawEvents<'a>>,
            tainted: Option<Value>,
        }
        let mut answer = Answer { count, ..Answer::default() };
        if reply.status == StatusCode::NO_CONTENT {
            return Ok(answer);
        }
        let is_list = |schemas: &[u8]| String::from_utf8_lossy(schemas).contains("EventList");
        let (tokens, tainted) = match serde_json::from_slice::<List<'_>>(&reply.body) {
            Ok(List { event_tokens: Some(tokens), tainted, .. }) => (Some(tokens), tainted),
            // SCIM leaves out what is empty
            Ok(List { schemas: Some(schemas), tainted, .. }) if is_list(schemas.get().as_bytes()) => {
                (Some(RawEvents::default()), tainted)
            }
            _ => {
                let answer = Envelope::read(&reply.body).filter(|answer| matches!(answer, Envelope::Document(_)));
                let answer = answer.ok_or_else(|| reply.undecodable("no event list"))?;
                let tainted = answer.member("tainted").map(text::value);
                let others: &[&str] = if answer.member("schemas").is_some_and(is_list) { &["schemas"] } else { &[] };
                (answer.entries(|name| name == "eventTokens", others), tainted)
            }
        };
        let tokens = tokens.ok_or_else(|| reply.undecodable("no event list"))?;
        let is_own = |Raw(token): &Raw<'_>, record: &Record| record.is_good() || may_be_token(token);
        let records = tokens.read(|Raw(token)| Record::read(token, &self.ignore), is_own);
        let records = records.map_err(|bad| unread(bad, reply))?;
        answer.len = records.len();
        for (_, record) in records {
            answer.events.add(record);
        }
        answer.tainted = match tainted {
            Some(Value::Bool(tainted)) => tainted,
            Some(Value::String(text)) => text.eq_ignore_ascii_case("true"),
            _ => false,
        };
        Ok(answer)
    }
}

/// What answers have taught about the service's own limit.
#[derive(Debug, Default)]
struct Learnt {
    /// The longest answer so far: the limit is not below it.
    longest: usize,
    /// The limit.
    cap: Option<usize>,
}

impl Learnt {
    /// Judges an answer by its length, and learns from it.
    fn judge(&mut self, answer: &mut Answer) {
        let len = answer.len;
        if self.cap.is_some_and(|cap| len > cap) {
            self.cap = None;
        }
        answer.full = len >= answer.count as usize || self.cap.is_some_and(|cap| len >= cap);
        let is_round = len > 0 && len.is_multiple_of(ROUND);
        answer.suspect = !answer.full && (is_round || len >= self.longest.max(CAP_MIN));
        self.longest = self.longest.max(len);
    }

    /// Puts neighbouring pieces together, as long as they are well below what may be a limit.
    fn merge(&self, pieces: Vec<Piece>, count: u32) -> Vec<Piece> {
        let limit = self.cap.unwrap_or(usize::MAX).min(count as usize).min(self.longest.max(CAP_MIN));
        let mut merged: Vec<Piece> = Vec::new();
        for piece in pieces {
            if let Some(last) = merged.last_mut()
                && last.spot.is_none()
                && piece.spot.is_none()
                && (last.len + piece.len) * 4 <= limit * 3
            {
                last.window.to = piece.window.to;
                last.len += piece.len;
            } else {
                merged.push(piece);
            }
        }
        merged
    }
}

// === reading a cell ===

/// A part of a cell that is asked for at once.
#[derive(Clone)]
struct Piece {
    window: Window,
    /// How many events it had.
    len: usize,
    /// What is known of the taint in it.
    spot: Option<Spot>,
}

/// Taint that was found: an answer with the same events needs no new search.
#[derive(Clone)]
struct Spot {
    print: EventKey,
    tainted: Vec<Bag>,
}

/// What a window holds.
#[derive(Default)]
struct Whole {
    events: Bag,
    /// For each tainted record, which it may be.
    tainted: Vec<Bag>,
    /// How to ask for it the next time.
    pieces: Vec<Piece>,
    /// Some of it could not be read, and that has been reported.
    truncated: bool,
}

impl Whole {
    /// Of a window that one answer covers.
    fn of(window: Window, answer: Answer, tainted: Vec<Bag>) -> Self {
        let spot = answer.tainted.then(|| Spot { print: answer.events.print(), tainted: tainted.clone() });
        let pieces = vec![Piece { window, len: answer.len, spot }];
        Self { events: answer.events, tainted, pieces, truncated: answer.full }
    }

    /// Of a window that is not looked into any further: any of its events may be the tainted one.
    fn settled(window: Window, answer: Answer) -> Self {
        let mut tainted = Vec::new();
        if answer.tainted {
            note_taint(window, answer.len);
            tainted.push(answer.events.clone());
        }
        Self::of(window, answer, tainted)
    }

    fn append(&mut self, other: Whole) {
        self.events.add_all(other.events);
        self.tainted.extend(other.tainted);
        self.pieces.extend(other.pieces);
        self.truncated |= other.truncated;
    }
}

/// One call of [`Source::read`].
struct Reading<'a> {
    search: &'a Search,
    learnt: &'a mut Learnt,
    api: &'a Api,
    sink: &'a mut dyn Sink,
    filter_is_obeyed: bool,
    /// Whether any verified answer was tainted; `None` where none was asked for.
    verified: Option<bool>,
    taint_searches_left: u32,
}

impl Reading<'_> {
    /// Asks for a window.
    async fn ask(&mut self, window: Window) -> Result<Answer, Failure> {
        match self.try_ask(window, self.search.count, "").await? {
            Found::Events(answer) => Ok(answer),
            Found::TooMany => Ok(Answer { full: true, ..Answer::default() }),
            Found::Refused(reply) => Err(self.why_refused(window, &reply).await?),
        }
    }

    /// Asks what a service may not be able to answer, and what can be done without.
    async fn ask_if_possible(&mut self, window: Window, count: u32, also: &str) -> Result<Option<Answer>, Failure> {
        match self.try_ask(window, count, also).await {
            Ok(Found::Events(answer)) => Ok(Some(answer)),
            Ok(Found::TooMany | Found::Refused(_)) => Ok(None),
            Err(failure) if matches!(failure.kind, ErrorKind::Server | ErrorKind::TooLarge) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Asks for a window, or for a part of it that a further filter (` and NAME eq VALUE`) describes.
    async fn try_ask(&mut self, window: Window, count: u32, also: &str) -> Result<Found, Failure> {
        let mut found = self.search.ask(self.api, window, count, self.search.verify, also).await?;
        if let Found::Events(answer) = &mut found {
            self.learnt.judge(answer);
            if self.search.verify {
                self.verified = Some(self.verified.unwrap_or_default() || answer.tainted);
            }
            if !self.filter_is_obeyed && answer.events.good() > 0 {
                self.check_time_filter().await?;
                self.filter_is_obeyed = true;
            }
        }
        Ok(found)
    }

    /// A service that ignores the time filter would have every event counted in every cell.
    async fn check_time_filter(&mut self) -> Result<(), Failure> {
        let from = floor(self.api.now(), CELL) + TimeDelta::days(366);
        let nobody = Window { from, to: from + delta(CELL) };
        if let Found::Events(answer) = self.search.ask(self.api, nobody, 1, false, "").await?
            && answer.events.good() > 0
        {
            let got = "events dated next year: the service ignores the filter meta.created";
            return Err(Failure::new(ErrorKind::Decode, format!("POST {}", self.search.url), got));
        }
        Ok(())
    }

    /// The failure of a refused search: the integrity check may be to blame.
    async fn why_refused(&mut self, window: Window, reply: &Reply) -> Result<Failure, Failure> {
        if self.search.verify && !matches!(self.search.ask(self.api, window, 1, false, "").await?, Found::Refused(_)) {
            let tried = format!("POST {} with \"verify eq true\"", self.search.url);
            let got = "status 400, but the same search without it is accepted: this service cannot check integrity, \
                       set verify: false for this source";
            return Ok(Failure::new(ErrorKind::Server, tried, got));
        }
        Ok(reply.failure(ErrorKind::Server))
    }

    async fn read_cell(&mut self, pieces: &[Piece]) -> Result<Whole, Failure> {
        let mut whole: Option<Whole> = None;
        for piece in pieces {
            let answer = self.ask(piece.window).await?;
            let known = piece.spot.as_ref().filter(|spot| {
                answer.tainted && !answer.full && !answer.suspect && spot.print == answer.events.print()
            });
            let part = match known {
                Some(spot) => Whole::of(piece.window, answer, spot.tainted.clone()),
                None => self.examine(piece.window, answer).await?,
            };
            whole = Some(match whole {
                Some(before) => self.join(before, part, piece.window.from).await?,
                None => part,
            });
        }
        Ok(whole.unwrap_or_default())
    }

    /// Puts two windows together that meet at `cut`. Bounds are exclusive and milliseconds the finest we
    /// may write, so both were asked for what lies less than a millisecond before the cut; a service with finer
    /// times returns that twice. Only what both hold can be it, and then it is asked for by itself.
    async fn join(&mut self, mut left: Whole, mut right: Whole, cut: DateTime<Utc>) -> Result<Whole, Failure> {
        let shared = left.events.shared_with(&right.events);
        if shared.len() > 0 {
            let sliver = Window { from: cut, to: cut }; // the search begins a millisecond before
            let count = u32::try_from(shared.len() + 1).unwrap_or(COUNT_MAX).clamp(self.search.count, COUNT_MAX);
            if let Some(answer) = self.ask_if_possible(sliver, count, "").await? {
                let twice = if answer.full { shared } else { answer.events.shared_with(&shared) };
                right.events.remove(&twice);
                right.tainted.retain(|suspects| {
                    let known = left.tainted.iter().any(|before| before.print() == suspects.print());
                    !known || suspects.shared_with(&twice).len() < suspects.len()
                });
            }
        }
        left.append(right);
        Ok(left)
    }

    /// Makes sure that an answer is whole and that its tainted records are found, by halving its
    /// window where need be.
    fn examine(&mut self, window: Window, answer: Answer) -> BoxFuture<'_, Result<Whole, Failure>> {
        Box::pin(async move {
            let incomplete = answer.full || answer.suspect;
            let locate = answer.tainted && answer.len > 1 && self.taint_searches_left >= 2;
            if !incomplete && !locate {
                return Ok(Whole::settled(window, answer));
            }
            let grain =
                if window.length() > TimeDelta::seconds(1) { Duration::from_secs(1) } else { Duration::from_millis(1) };
            let Some((left, right)) = window.halves(grain) else { return self.indivisible(window, answer).await };
            if !incomplete {
                self.taint_searches_left -= 2;
            }
            let left_answer = self.ask(left).await?;
            let left_half = self.examine(left, left_answer).await?;
            let right_answer = self.ask(right).await?;
            let right_half = self.examine(right, right_answer).await?;
            let mut whole = self.join(left_half, right_half, right.from).await?;
            if !whole.truncated && !whole.events.holds_good_of(&answer.events) {
                // the service's clock is coarser than these halves, which lie between its ticks
                let mut undivided = self.indivisible(window, answer).await?;
                undivided.events.raise_to(&whole.events);
                return Ok(undivided);
            }
            if answer.suspect && whole.events.good() > answer.events.good() {
                // unless it has merely grown meanwhile, it was cut off
                let again = self.ask(window).await?;
                if again.len == answer.len {
                    self.learnt.cap = Some(answer.len);
                }
            }
            whole.events.raise_to(&answer.events);
            if answer.tainted && whole.tainted.is_empty() {
                if !incomplete {
                    return Ok(Whole::settled(window, answer));
                }
                whole.tainted.push(answer.events);
            }
            Ok(whole)
        })
    }

    /// A window whose halves would tell no more.
    async fn indivisible(&mut self, window: Window, answer: Answer) -> Result<Whole, Failure> {
        let answer = if answer.full { self.with_larger_count(window, answer).await? } else { answer };
        if !answer.tainted || answer.len <= 1 {
            return Ok(Whole::settled(window, answer));
        }
        let tainted = self.single_out(window, answer.events.clone(), 0, String::new()).await?;
        for suspects in &tainted {
            note_taint(window, suspects.len());
        }
        Ok(Whole::of(window, answer, tainted))
    }

    async fn with_larger_count(&mut self, window: Window, mut answer: Answer) -> Result<Answer, Failure> {
        let mut count = self.search.count;
        while count < COUNT_MAX {
            count = count.saturating_mul(10).min(COUNT_MAX);
            let Some(mut more) = self.ask_if_possible(window, count, "").await? else { break };
            let grew = more.len > answer.len;
            more.events.raise_to(&answer.events);
            answer = more;
            if grew && !answer.full {
                return Ok(answer);
            }
            if !grew {
                break;
            }
        }
        answer.full = true;
        let got = format!("{} events of {}, and there may be more", answer.len, span(window));
        self.sink.report(Failure::new(ErrorKind::Truncated, format!("POST {}", self.search.url), got));
        Ok(answer)
    }

    /// Tells the events of one moment apart by what else a search can be narrowed by.
    fn single_out(
        &mut self,
        window: Window,
        suspects: Bag,
        attribute: usize,
        narrowed: String,
    ) -> BoxFuture<'_, Result<Vec<Bag>, Failure>> {
        Box::pin(async move {
            if attribute >= ATTRIBUTES.len() || suspects.iter().count() <= 1 {
                return Ok(vec![suspects]);
            }
            let mut values: Vec<Option<&str>> =
                suspects.iter().map(|(record, _)| record.attributes[attribute].as_deref()).collect();
            values.sort_unstable();
            values.dedup();
            let mut found = Vec::new();
            if values.len() > 1 {
                for value in values.into_iter().flatten().filter(|value| can_be_quoted(value)) {
                    if self.taint_searches_left == 0 {
                        break;
                    }
                    self.taint_searches_left -= 1;
                    let narrowed = format!("{narrowed} and {} eq \"{value}\"", ATTRIBUTES[attribute]);
                    let asked = self.ask_if_possible(window, self.search.count, &narrowed).await?;
                    if let Some(answer) = asked
                        && answer.tainted
                        && answer.len > 0
                    {
                        found.extend(self.single_out(window, answer.events, attribute + 1, narrowed).await?);
                    }
                }
            }
            if found.is_empty() { self.single_out(window, suspects, attribute + 1, narrowed).await } else { Ok(found) }
        })
    }
}

/// Whether a value can stand in a filter between quotes and means itself there.
fn can_be_quoted(value: &str) -> bool {
    value.len() <= QUOTED_BYTES_MAX && !value.contains(['"', '\\', '*']) && !value.contains(char::is_control)
}

fn note_taint(window: Window, suspects: usize) {
    tracing::warn!(window = span(window), suspects, "the service reports a tainted record among these");
}

fn span(window: Window) -> String {
    let time = |at: DateTime<Utc>| at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    format!("{} to {}", time(window.from), time(window.to))
}

#[cfg(test)]
mod tests;
