//! Losant, instance audit logs: changes to the resources of an instance.
//!
//! `GET /instance/{id}/audit-logs` (docs.losant.com, REST API, Instance Audit Logs), pages of a
//! closed time range in ascending order, so that what is new does not shift what is old.
//!
//! A window ends with an empty page. Nothing else is believed alone: `totalCount` may be capped, `perPage` may be
//! repeated and not obeyed, a page may be cut short. It also ends with a page that is shorter than those before it,
//! if exactly `totalCount` events were read; and where a page that is not full is followed by one without anything
//! new, because some services repeat a page where none is left; the newest events are then asked for first, and must be
//! among those that were read.
//!
//! Where `totalCount` changed while reading, or fewer events came, the window is read once more; where pages were
//! shorter than asked for, so that it cannot be known whether they join, once more in pages of that length.
//!
//! Events without an id are told apart by what they hold and, where that is equal to the byte, by number. Ids are
//! taken as they are written: a number keeps all its digits.
//!
//! What it cannot report: logins of any kind (authentication is not recorded), and requests that
//! failed before they reached a resource. It keeps a year.

mod setup;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use http::StatusCode;
use serde::Deserialize;

pub use self::setup::{SERVICE, SYSTEM, Settings};
use super::kit::{Ignore, is_believable, may_be_own, parse_time, rejected, unread};
use super::list::{Raw, RawEvents};
use super::text::{Envelope, Field, Understood, id_bytes, looks_like_one_of, understand};
use super::{History, Signals, Sink, Source, Spec};
use crate::api::{Api, Call, Reply, Verdict, judge_by_status};
use crate::event::{Class, EventKey, EventLabels, Item, Label, Outcome, RejectReason, What};
use crate::failure::{ErrorKind, Failure};
use crate::page::{Catalogue, Page};
use crate::settings::endpoint;
use crate::window::Window;

/// The service's own default page size; its maximum is not documented.
const PAGE_SIZE: u32 = 100;
/// No window of an audit log has this many pages; a service that always has one more is broken.
const PAGES_MAX: u32 = 100_000;
/// How often a window is read in one poll when the number of its events changes meanwhile. More
/// would not help: in ascending order what is new cannot push out what is old, and the overlap
/// reads the window again.
const READINGS_MAX: u32 = 2;
/// The same where pages of another length are asked for.
const LENGTHS_MAX: u32 = 3;

/// How the log is asked for.
const READING: super::Reading = super::Reading::History(History {
    cell: Duration::from_millis(1),
    step_max: Duration::from_hours(7 * 24),
    ahead: Duration::from_mins(10),
});

/// Reads one instance's log.
pub struct Losant {
    base: url::Url,
    instance: String,
    page_size: u32,
    ignore: Ignore,
}

fn judge(reply: &Reply) -> Verdict {
    match reply.status.as_u16() {
        // maybe no page where there is none any more: what follows is up to the reader
        400 | 404 | 416 | 422 => Verdict::Good,
        _ => judge_by_status(reply.status),
    }
}

#[async_trait]
impl Source for Losant {
    fn spec(&self) -> Spec {
        let mut catalogue = Catalogue::default();
        let targets = ["Organization", "ApiToken", "User", "InstanceCustomNode", "NotificationRule"];
        let outcomes = [Outcome::Success, Outcome::Failure];
        catalogue.add(&targets, &["create", "update", "delete"], &outcomes, Class::Change);
        Spec { reading: READING, signals: Signals { change: true, ..Signals::default() }, catalogue }
    }

    async fn read(&mut self, window: Window, api: &Api, sink: &mut dyn Sink) -> Result<(), Failure> {
        let mut per_page = self.page_size;
        let mut lengths = 1;
        let mut readings = 0;
        loop {
            readings += 1;
            let reading = self.read_once(window, per_page, api, sink).await?;
            match reading {
                Reading { uncertain: Some(shorter), .. } if lengths < LENGTHS_MAX => {
                    (per_page, lengths, readings) = (shorter, lengths + 1, 0);
                }
                Reading { drifted: false, missing: 0, uncertain: None } => return Ok(()),
                _ if readings < READINGS_MAX => {}
                Reading { drifted: true, .. } => return Ok(()),
                Reading { missing, .. } => {
                    let got = match missing {
                        0 => "pages shorter than requested, so events between them may be missing".to_owned(),
                        _ => format!("{missing} fewer events than the service says there are, twice"),
                    };
                    sink.report(Failure::new(ErrorKind::Truncated, "reading all pages", got));
                    return Ok(());
                }
            }
        }
    }
}

/// What came of reading a window once.
#[derive(Default)]
struct Reading {
    /// The number of events changed, so pages may have shifted.
    drifted: bool,
    /// How many more different events there are than came, as the service says.
    missing: u64,
    /// The length of the shortest page that others followed, where nothing says that the next one began where it ended.
    uncertain: Option<u32>,
}

/// The pages of a reading so far.
struct Pages {
    /// What was asked for.
    asked: u32,
    /// `totalCount` of the last page.
    total: Option<u64>,
    /// `perPage` of the last page.
    said: Option<u32>,
    /// The length of each page that brought anything new, and whether the service said that a page is no longer.
    lengths: Vec<(usize, bool)>,
    /// How many pages in a row brought nothing new.
    stale: u32,
}

/// What follows from a page.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    More,
    End,
    /// The same events over and over, and no sign that they are all.
    Stuck,
}

impl Pages {
    fn new(asked: u32) -> Self {
        Self { asked, total: None, said: None, lengths: Vec::new(), stale: 0 }
    }

    /// Takes a page of `events`, of which `fresh` were not there before, so that `read` different ones are known.
    fn next(&mut self, listed: &Listed, fresh: usize, read: u64) -> Next {
        let events = listed.events;
        (self.total, self.said) = (listed.total, listed.per_page.filter(|said| *said > 0));
        if events == 0 {
            return Next::End;
        }
        let before = self.lengths.last().map(|(length, _)| *length);
        if fresh == 0 {
            self.stale += 1;
            return match self.stale {
                _ if self.ended_short(read) => Next::End,
                // a total that is the length of the page itself says nothing
                _ if self.total == Some(read) && self.lengths.len() > 1 => Next::End,
                // pages may begin with 1
                1 => Next::More,
                _ => Next::Stuck,
            };
        }
        self.stale = 0;
        self.lengths.push((events, self.said.is_some_and(|said| said as usize <= events)));
        let followed = &self.lengths[..self.lengths.len() - 1];
        let is_shorter = before.is_some_and(|before| events < before && followed.iter().all(|(len, _)| *len == before));
        if is_shorter && self.total == Some(read) { Next::End } else { Next::More }
    }

    /// Whether a page that the service refuses is one behind the last.
    fn may_end(&self, read: u64) -> bool {
        self.ended_short(read) || self.total == Some(read)
    }

    /// Whether the last page was not full, and the service does not say that there are more events.
    fn ended_short(&self, read: u64) -> bool {
        let full = self.said.map_or(self.asked, |said| said.min(self.asked)) as usize;
        let is_short = self.lengths.last().is_some_and(|(length, _)| *length < full);
        is_short && self.total.is_none_or(|total| total <= read)
    }

    /// How many more different events there are, as the service says.
    fn missing(&self, read: u64) -> u64 {
        self.total.map_or(0, |total| total.saturating_sub(read))
    }

    /// The length of the shortest page that another one followed (or should have), where it was shorter than asked for
    /// and nothing says that the next one began where it ended.
    fn uncertain(&self, read: u64) -> Option<u32> {
        let followed = match &self.lengths[..] {
            [only] if self.missing(read) > 0 => std::slice::from_ref(only),
            lengths => lengths.split_last()?.1,
        };
        let shortest = followed.iter().map(|(length, _)| *length).min()?;
        let is_said = followed.iter().all(|(length, is_said)| *is_said && *length == shortest);
        let uncertain = shortest < self.asked as usize && !is_said && self.total != Some(read);
        uncertain.then(|| u32::try_from(shortest).ok()).flatten()
    }
}

impl Losant {
    async fn read_once(
        &self,
        window: Window,
        per_page: u32,
        api: &Api,
        sink: &mut dyn Sink,
    ) -> Result<Reading, Failure> {
        let mut total_at_first = None;
        let mut drifted = false;
        let mut seen: HashSet<EventKey> = HashSet::new();
        let mut pages = Pages::new(per_page);
        let mut numbers = Numbers::default();
        for page in 0..PAGES_MAX {
            let url = self.url(window, page, per_page);
            let reply = api.call(|_| Call::get(url.clone())).await?;
            let read = seen.len() as u64;
            if !reply.status.is_success() {
                if page > 0 && pages.may_end(read) {
                    self.newest_were_seen(window, per_page, api, &seen).await?;
                    return Ok(Reading { drifted, missing: 0, uncertain: pages.uncertain(read) });
                }
                let kind = if reply.status == StatusCode::NOT_FOUND { ErrorKind::NotFound } else { ErrorKind::Server };
                return Err(reply.failure(kind));
            }
            let (listed, entries) = self.listed(&reply)?;
            // pages may have shifted; they are read to their end even so: what is new cannot push out what is old
            drifted |= *total_at_first.get_or_insert(listed.total) != listed.total;
            let came_before = |entry: &Entry| entry.has_own_key && seen.contains(&entry.item.key);
            let doubtful = drifted || entries.iter().any(came_before);
            let items = numbers.number(entries, doubtful);
            let fresh = items.iter().filter(|item| seen.insert(item.key)).count();
            sink.page(Page { items, ..Page::default() }).await?;
            let read = seen.len() as u64;
            match pages.next(&listed, fresh, read) {
                Next::More => {}
                Next::End => {
                    if fresh == 0 && listed.events > 0 {
                        self.newest_were_seen(window, per_page, api, &seen).await?;
                    }
                    return Ok(Reading { drifted, missing: pages.missing(read), uncertain: pages.uncertain(read) });
                }
                // it would go on like this for ever
                Next::Stuck => {
                    return Err(reply.undecodable("a page of events that came before: page is ignored"));
                }
            }
        }
        Err(Failure::new(ErrorKind::Truncated, "reading pages", format!("no end after {PAGES_MAX} pages")))
    }

    /// Where a window ends with a page that was there before, or that is refused, `page` may be ignored, or not be
    /// taken beyond some number: then the newest events, asked for first, are none of those that were read.
    async fn newest_were_seen(
        &self,
        window: Window,
        per_page: u32,
        api: &Api,
        seen: &HashSet<EventKey>,
    ) -> Result<(), Failure> {
        let url = self.url_sorted("desc", window, 0, per_page);
        let reply = api.call(|_| Call::get(url.clone())).await?;
        if !reply.status.is_success() {
            return Err(reply.failure(ErrorKind::Server));
        }
        let is_new = |entry: &Entry| entry.has_own_key && !seen.contains(&entry.item.key);
        if self.listed(&reply)?.1.iter().any(is_new) {
            return Err(reply.undecodable("newer events than the last page holds: page is ignored"));
        }
        Ok(())
    }

    fn url(&self, window: Window, page: u32, per_page: u32) -> url::Url {
        self.url_sorted("asc", window, page, per_page)
    }

    fn url_sorted(&self, direction: &str, window: Window, page: u32, per_page: u32) -> url::Url {
        let mut url = endpoint(&self.base, &["instance", &self.instance, "audit-logs"]);
        // whether the ends are inside is not documented: ask for a millisecond more on each side
        let start = (window.from - TimeDelta::milliseconds(1)).timestamp_millis();
        let end = window.to.timestamp_millis();
        url.query_pairs_mut()
            .append_pair("sortField", "creationDate")
            .append_pair("sortDirection", direction)
            .append_pair("page", &page.to_string())
            .append_pair("perPage", &per_page.to_string())
            .append_pair("start", &start.to_string())
            .append_pair("end", &end.to_string());
        url
    }

    #[cfg(test)]
    fn item(&self, raw: &[u8]) -> Item {
        self.entry(raw).item
    }

    fn entry(&self, raw: &[u8]) -> Entry {
        let own = |item| Entry { item, has_own_key: true };
        let Some(Understood { entry: log, mended }) = understand::<Log>(raw) else {
            return own(rejected(RejectReason::Malformed, raw));
        };
        if log.says_nothing() && !looks_like_one_of(raw, &OWN_NAMES) {
            return own(rejected(RejectReason::Malformed, raw));
        }
        let id = |field: &Field, name| field.id().map(|id| EventKey::of("losant", &[id_bytes(id, name, raw, mended)]));
        let own_key = id(&log.id, "id").or_else(|| id(&log.instance_audit_log_id, "instanceAuditLogId"));
        let at = match parse_creation_date(&log.creation_date) {
            None if !log.creation_date.is_missing() => {
                let refused = rejected(RejectReason::BadTime, raw);
                // with its own key, so that it does not count again as an event when its time is mended
                return own(Item { key: own_key.unwrap_or(refused.key), ..refused });
            }
            at => at,
        };
        let key = own_key.unwrap_or_else(|| EventKey::of("losant without id", &[raw]));
        let what = if self.ignore.matches([log.actor_name.id(), log.actor_id.id()]) {
            What::Ignored
        } else {
            What::Event(log.labels())
        };
        Entry { item: Item { key, at, filed_at: at, what }, has_own_key: own_key.is_some() }
    }
}

/// An event of a page, before those without an id are numbered.
struct Entry {
    /// With its key or, where it has none of its own, that of all events equal to it to the byte.
    item: Item,
    has_own_key: bool,
}

/// Tells equal events without an id apart: the n-th of its kind in a reading is the same one in every reading.
///
/// Where pages shift, an event may come twice: at the end of one page and at the start of the next. From the moment
/// that this is possible each page is numbered by itself. That may miss an event until the next reading, but never
/// counts one twice.
#[derive(Default)]
struct Numbers {
    /// How often each kind came so far.
    counts: HashMap<EventKey, u64>,
    /// The keys of the page before, in its order.
    previous: Vec<EventKey>,
    /// The newest time of the page before.
    last: Option<DateTime<Utc>>,
    doubtful: bool,
}

impl Numbers {
    /// The items of a page, each with a key of its own. `doubtful`: pages have shifted.
    fn number(&mut self, entries: Vec<Entry>, doubtful: bool) -> Vec<Item> {
        let keys: Vec<EventKey> = entries.iter().map(|entry| entry.item.key).collect();
        let times = || entries.iter().filter_map(|entry| entry.item.at);
        let (first, last) = (times().min(), times().max());
        // in ascending order, equal events go on at the edge of two pages or not at all
        let goes_on = |item: &Item| item.at.is_none() || (item.at == self.last && item.at == first);
        let came_before = |entry: &Entry| self.counts.contains_key(&entry.item.key) && !goes_on(&entry.item);
        self.doubtful |= doubtful || (!keys.is_empty() && keys == self.previous) || entries.iter().any(came_before);
        (self.last, self.previous) = (last, keys);
        if self.doubtful {
            self.counts.clear();
        }
        let numbered = |entry: Entry| {
            let mut item = entry.item;
            if !entry.has_own_key {
                let nth = self.counts.entry(item.key).or_default();
                *nth += 1;
                if *nth > 1 {
                    item.key = EventKey::of("losant nth without id", &[&item.key.0, &nth.to_le_bytes()]);
                }
            }
            item
        };
        entries.into_iter().map(numbered).collect()
    }
}

/// A date as text, or as the milliseconds that the query takes.
fn parse_creation_date(written: &Field) -> Option<DateTime<Utc>> {
    match written {
        Field::Text(text) => parse_time(text),
        Field::Number(_) => {
            let ms = i64::try_from(written.count()?).ok()?;
            DateTime::from_timestamp_millis(ms).filter(is_believable)
        }
        Field::Missing | Field::Other => None,
    }
}

/// The names of a log's fields, by the service's schema.
const OWN_NAMES: [&str; 20] = [
    "id",
    "instanceAuditLogId",
    "creationDate",
    "instanceId",
    "primaryTargetId",
    "primaryTargetType",
    "primaryTargetName",
    "secondaryTargetId",
    "secondaryTargetType",
    "secondaryTargetName",
    "actorId",
    "actorType",
    "actorName",
    "requestResource",
    "requestAction",
    "requestQueryParams",
    "requestBody",
    "requestPathParams",
    "responseBody",
    "responseStatus",
];

/// What a page says of itself.
struct Listed {
    /// How many events it holds.
    events: usize,
    total: Option<u64>,
    per_page: Option<u32>,
}

impl Losant {
    /// A page and its events, of which at least one is this service's, if there are any.
    fn listed(&self, reply: &Reply) -> Result<(Listed, Vec<Entry>), Failure> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Wire<'a> {
            #[serde(borrow)]
            items: RawEvents<'a>,
            total_count: Option<u64>,
            per_page: Option<u32>,
        }
        if reply.status == StatusCode::NO_CONTENT {
            return Ok((Listed { events: 0, total: Some(0), per_page: None }, Vec::new()));
        }
        let wire = serde_json::from_slice::<Wire<'_>>(&reply.body).ok().or_else(|| {
            let answer = Envelope::read(&reply.body)?;
            let total_count = answer.field("totalCount").count();
            let per_page = answer.field("perPage").count().and_then(|per_page| per_page.try_into().ok());
            let others = ["perPage", "page", "sortField", "sortDirection", "instanceId"];
            // no answer of this service is a bare list, or nothing at all
            let is_document = matches!(answer, Envelope::Document(_));
            let items = is_document.then(|| answer.entries(|name| name == "items", &others)).flatten()?;
            Some(Wire { items, total_count, per_page })
        });
        let wire = wire.ok_or_else(|| reply.undecodable("no collection with items"))?;
        let is_own = |Raw(raw): &Raw<'_>, entry: &Entry| may_be_own(raw, &entry.item.what, &OWN_NAMES);
        let entries = wire.items.read(|Raw(raw)| self.entry(raw), is_own).map_err(|bad| unread(bad, reply))?;
        let entries: Vec<Entry> = entries.into_iter().map(|(_, entry)| entry).collect();
        Ok((Listed { events: entries.len(), total: wire.total_count, per_page: wire.per_page }, entries))
    }
}

/// One log, as far as it is needed: request and response bodies are never kept. Every field is
/// optional in the service's schema, and its enumerations grow.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Log {
    id: Field,
    instance_audit_log_id: Field,
    creation_date: Field,
    primary_target_type: Field,
    request_action: Field,
    actor_id: Field,
    actor_name: Field,
    response_status: Field,
}

impl Log {
    /// Whether nothing that is needed is there but, maybe, an id.
    fn says_nothing(&self) -> bool {
        let fields = [
            &self.instance_audit_log_id,
            &self.creation_date,
            &self.primary_target_type,
            &self.request_action,
            &self.actor_id,
            &self.actor_name,
            &self.response_status,
        ];
        fields.into_iter().all(Field::is_missing)
    }

    fn labels(&self) -> EventLabels {
        let action = Label::from_words(self.request_action.word());
        let action = match action.as_str() {
            "post" => Label::from_words("create"),
            "patch" | "put" => Label::from_words("update"),
            _ => action,
        };
        let status = self.response_status.id().and_then(|status| status.trim().parse::<f64>().ok());
        let outcome = match status.filter(|status| status.is_finite()) {
            Some(status) if status < 400.0 => Outcome::Success,
            Some(_) => Outcome::Failure,
            None => Outcome::Unknown,
        };
        let category = Label::from_words(self.primary_target_type.word());
        EventLabels { category, action, outcome, class: Class::Change }
    }
}

#[cfg(test)]
mod ends;
#[cfg(test)]
mod tests;
