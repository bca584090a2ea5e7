//! Losant, instance audit logs: changes to the resources of an instance.
//!
//! `GET /instance/{id}/audit-logs` (docs.losant.com, REST API, Instance Audit Logs), pages of a
//! closed time range in ascending order, so that what is new does not shift what is old. The
//! service says how many there are in all (`totalCount`); where that changed while reading, or
//! fewer came, the window is read once more.
//!
//! Events without an id are told apart by what they hold and, where that is equal to the byte, by number. Ids are
//! taken as they are written: a number keeps all its digits.
//!
//! What it cannot report: logins of any kind (authentication is not recorded), and requests that
//! failed before they reached a resource. It keeps a year.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Id, Ignore, RawEvents, Signals, Sink, Source, Spec, StaticToken, is_believable, parse_time, rejected};
use crate::api::{Api, Call, Dialect, Failure, Reply};
use crate::config::{self, Common};
use crate::event::{Class, EventKey, EventLabels, Item, Label, Outcome, RejectReason, What};
use crate::ledger::{Catalogue, Page};
use crate::stats::ErrorKind;
use crate::window::Window;

/// The service's own default page size; its maximum is not documented.
const PAGE_SIZE: u32 = 100;
/// No window of an audit log has this many pages; a service that always has one more is broken.
const PAGES_MAX: u32 = 100_000;
/// How often a window is read in one poll when the number of its events changes meanwhile. More
/// would not help: in ascending order what is new cannot push out what is old, and the overlap
/// reads the window again.
const READINGS_MAX: u32 = 2;

/// Reads one instance's log.
pub struct Losant {
    base: url::Url,
    instance: String,
    page_size: u32,
    ignore: Ignore,
}

/// The source and its customs.
pub fn build(service: &config::Losant, common: &Common) -> (Box<dyn Source>, Box<dyn Dialect>) {
    let source = Losant {
        base: service.base_url.clone(),
        instance: service.instance_id.clone(),
        page_size: common.page_size.map_or(PAGE_SIZE, std::num::NonZeroU32::get),
        ignore: Ignore::new(&common.ignore_actors),
    };
    let customs = StaticToken { token: service.api_token.clone(), base: service.base_url.clone() };
    (Box::new(source), Box::new(customs))
}

#[async_trait]
impl Source for Losant {
    fn spec(&self) -> Spec {
        let mut catalogue = Catalogue::default();
        let targets = ["Organization", "ApiToken", "User", "InstanceCustomNode", "NotificationRule"];
        let outcomes = [Outcome::Success, Outcome::Failure];
        catalogue.add(&targets, &["create", "update", "delete"], &outcomes, Class::Change);
        Spec {
            cell: Duration::from_millis(1),
            step_max: Duration::from_hours(7 * 24),
            ahead: Duration::from_mins(10),
            is_feed: false,
            signals: Signals { change: true, ..Signals::default() },
            catalogue,
        }
    }

    async fn read(&mut self, window: Window, api: &Api, sink: &mut dyn Sink) -> Result<(), Failure> {
        let mut missing = 0;
        for _ in 0..READINGS_MAX {
            missing = match self.read_once(window, api, sink).await? {
                Reading::Whole => return Ok(()),
                Reading::Drifted => 0,
                Reading::Short(missing) => missing,
            };
        }
        if missing > 0 {
            let got = format!("{missing} events fewer than the service says there are, twice");
            sink.report(Failure::new(ErrorKind::Truncated, "reading all pages", got));
        }
        Ok(())
    }
}

/// How the reading of a window ended.
enum Reading {
    /// As many different events as the service says there are.
    Whole,
    /// The number of events changed, so pages may have shifted.
    Drifted,
    /// The pages ended this many events too early.
    Short(u64),
}

impl Losant {
    async fn read_once(&self, window: Window, api: &Api, sink: &mut dyn Sink) -> Result<Reading, Failure> {
        let mut total_at_first = None;
        let mut drifted = false;
        let mut seen: HashSet<EventKey> = HashSet::new();
        let mut numbers = Numbers::default();
        for page in 0..PAGES_MAX {
            let url = self.url(window, page);
            let reply = api.call(|_| Call::get(url.clone())).await?;
            let listed = Listed::parse(&reply)?;
            // pages may have shifted; they are read to their end even so: what is new cannot push out what is old
            drifted |= *total_at_first.get_or_insert(listed.total) != listed.total;
            let entries: Vec<Entry> = listed.items.iter().map(|raw| self.entry(raw.get().as_bytes())).collect();
            let came_before = |entry: &Entry| entry.has_own_key && seen.contains(&entry.item.key);
            let doubtful = drifted || entries.iter().any(came_before);
            let items = numbers.number(entries, doubtful);
            let events = items.len();
            let fresh = items.iter().filter(|item| seen.insert(item.key)).count();
            sink.page(Page { items, ..Page::default() }).await?;
            let read = seen.len() as u64;
            if page > 0 && events > 0 && fresh == 0 && listed.total.is_some_and(|total| read < total) {
                // it would go on like this for as many pages as it says there are
                return Err(reply.undecodable("a page of events that were there before: page is ignored"));
            }
            let short = match listed.total {
                Some(total) if read >= total => 0,
                Some(total) if events == 0 => total - read,
                // the service may put fewer on a page than it was asked for
                None if events < listed.per_page.unwrap_or(self.page_size) as usize => 0,
                _ => continue,
            };
            return Ok(match short {
                _ if drifted => Reading::Drifted,
                0 => Reading::Whole,
                missing => Reading::Short(missing),
            });
        }
        Err(Failure::new(ErrorKind::Truncated, "reading pages", format!("no end after {PAGES_MAX} pages")))
    }

    fn url(&self, window: Window, page: u32) -> url::Url {
        let mut url = config::endpoint(&self.base, &["instance", &self.instance, "audit-logs"]);
        // whether the ends are inside is not documented: ask for a millisecond more on each side
        let start = (window.from - TimeDelta::milliseconds(1)).timestamp_millis();
        let end = window.to.timestamp_millis();
        url.query_pairs_mut()
            .append_pair("sortField", "creationDate")
            .append_pair("sortDirection", "asc")
            .append_pair("page", &page.to_string())
            .append_pair("perPage", &self.page_size.to_string())
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
        let Ok(log) = serde_json::from_slice::<Log>(raw) else {
            return own(rejected(RejectReason::Malformed, raw));
        };
        let text = |id: &Option<Id>| id.as_ref().map(Id::to_text).filter(|id| !id.is_empty());
        let id = text(&log.id).or_else(|| text(&log.instance_audit_log_id));
        let key = match &id {
            Some(id) => EventKey::of("losant", &[id.as_bytes()]),
            None => EventKey::of("losant without id", &[raw]),
        };
        let at: Option<DateTime<Utc>> = match log.creation_date.as_ref().map(time) {
            // with its own key, so that it does not count again as an event when its time is mended
            Some(None) if id.is_some() => return own(Item { key, ..rejected(RejectReason::BadTime, raw) }),
            Some(None) => return own(rejected(RejectReason::BadTime, raw)),
            Some(at) => at,
            None => None,
        };
        let what = if self.ignore.matches([log.actor_name.as_deref(), text(&log.actor_id).as_deref()]) {
            What::Ignored
        } else {
            What::Event(log.labels())
        };
        Entry { item: Item { key, at, filed_at: at, what }, has_own_key: id.is_some() }
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
fn time(written: &Id) -> Option<DateTime<Utc>> {
    match written {
        Id::Text(text) => parse_time(text),
        Id::Number(number) => DateTime::from_timestamp_millis(number.as_i64()?).filter(is_believable),
    }
}

/// The collection, as far as it is needed.
struct Listed<'a> {
    items: Vec<&'a RawValue>,
    total: Option<u64>,
    per_page: Option<u32>,
}

impl<'a> Listed<'a> {
    fn parse(reply: &'a Reply) -> Result<Self, Failure> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Wire<'a> {
            #[serde(borrow)]
            items: RawEvents<'a>,
            total_count: Option<u64>,
            per_page: Option<u32>,
        }
        let wire: Wire<'a> =
            serde_json::from_slice(&reply.body).map_err(|_| reply.undecodable("no collection with items"))?;
        Ok(Self { items: wire.items.whole_of(reply)?, total: wire.total_count, per_page: wire.per_page })
    }
}

/// One log, as far as it is needed: request and response bodies are never kept. Every field is
/// optional in the service's schema, and its enumerations grow.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Log {
    id: Option<Id>,
    instance_audit_log_id: Option<Id>,
    creation_date: Option<Id>,
    primary_target_type: Option<String>,
    request_action: Option<String>,
    actor_id: Option<Id>,
    actor_name: Option<String>,
    response_status: Option<Id>,
}

impl Log {
    fn labels(&self) -> EventLabels {
        let action = Label::from_words(self.request_action.as_deref().unwrap_or_default());
        let action = match action.as_str() {
            "post" => Label::from_words("create"),
            "patch" | "put" => Label::from_words("update"),
            _ => action,
        };
        let status = self.response_status.as_ref().and_then(|status| status.to_text().parse::<f64>().ok());
        let outcome = match status {
            Some(status) if status < 400.0 => Outcome::Success,
            Some(_) => Outcome::Failure,
            None => Outcome::Unknown,
        };
        let category = Label::from_words(self.primary_target_type.as_deref().unwrap_or_default());
        EventLabels { category, action, outcome, class: Class::Change }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn losant() -> Losant {
        Losant {
            base: "https://api.losant.com".parse().unwrap(),
            instance: "575ec7417ae143cd83dc4a96".into(),
            page_size: 100,
            ignore: Ignore::new(&["robot@example.com".into()]),
        }
    }

    /// The example of the service's own documentation.
    const EXAMPLE: &str = r#"{"id": "586e9d5151265cb9d72f6ec6", "creationDate": "2016-06-13T04:00:00.000Z",
        "primaryTargetType": "Organization", "actorName": "actor@example.com", "requestResource": "organization",
        "requestAction": "delete", "requestBody": {"a": [1]}, "responseBody": {"success": true}, "responseStatus": 200}"#;

    fn label_text(raw: &str) -> String {
        match losant().item(raw.as_bytes()).what {
            What::Event(labels) => format!("{} {} {}", labels.category, labels.action, labels.outcome.as_str()),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn the_documented_example_is_counted_as_the_interface_says() {
        assert_eq!(label_text(EXAMPLE), "organization delete success");
        let item = losant().item(EXAMPLE.as_bytes());
        assert_eq!(item.at, parse_time("2016-06-13T04:00:00Z"));
        assert_eq!(item.filed_at, item.at);
    }

    #[test]
    fn methods_become_actions_and_statuses_outcomes() {
        for (json, expected) in [
            (
                r#"{"primaryTargetType":"ApiToken","requestAction":"post","responseStatus":201}"#,
                "api_token create success",
            ),
            (r#"{"primaryTargetType":"User","requestAction":"patch","responseStatus":400}"#, "user update failure"),
            (r#"{"primaryTargetType":"User","requestAction":"PUT","responseStatus":399}"#, "user update success"),
            (
                r#"{"primaryTargetType":"InstanceCustomNode","requestAction":"resendInvite"}"#,
                "instance_custom_node resend_invite unknown",
            ),
            (
                r#"{"id":12345,"actorId":7,"responseStatus":"201","creationDate":1465790400000}"#,
                "unknown unknown success",
            ),
            ("{}", "unknown unknown unknown"),
        ] {
            assert_eq!(label_text(json), expected, "{json}");
        }
    }

    #[test]
    fn an_event_without_id_or_time_has_a_key_of_its_bytes() {
        let key = |json: &str| losant().item(json.as_bytes()).key;
        assert_eq!(key("{}"), key("{}"));
        assert_ne!(key("{}"), key(r#"{"requestAction":"post"}"#));
    }

    #[test]
    fn what_cannot_be_understood_is_rejected_for_its_reason() {
        assert!(label_text("[1]").starts_with("Rejected(Rejection { reason: Malformed"));
        assert!(label_text(r#"{"responseStatus": {}}"#).contains("Malformed"));
        assert!(label_text(r#"{"id":"a","creationDate":"soon"}"#).contains("BadTime"));
    }

    #[test]
    fn an_ignored_actor_is_ignored_by_name_or_id() {
        assert_eq!(label_text(r#"{"id":"a","actorName":"Robot@example.com"}"#), "Ignored");
    }

    #[test]
    fn the_query_asks_for_ascending_pages_of_a_closed_range() {
        let at = |ms| DateTime::from_timestamp_millis(ms).unwrap();
        let url = losant().url(Window { from: at(1000), to: at(2000) }, 3);
        assert_eq!(
            url.as_str(),
            "https://api.losant.com/instance/575ec7417ae143cd83dc4a96/audit-logs?sortField=creationDate\
             &sortDirection=asc&page=3&perPage=100&start=999&end=2000"
        );
    }

    fn named(raw: &str) -> Entry {
        losant().entry(raw.as_bytes())
    }

    /// The keys that pages of these events have, those without an id numbered.
    fn keys_of(pages: &[&[&str]], doubtful_from: usize) -> Vec<EventKey> {
        let mut numbers = Numbers::default();
        let page = |(n, raws): (usize, &&[&str])| {
            numbers.number(raws.iter().map(|raw| named(raw)).collect(), n >= doubtful_from)
        };
        pages.iter().enumerate().flat_map(page).map(|item| item.key).collect()
    }

    fn different(keys: &[EventKey]) -> usize {
        keys.iter().collect::<HashSet<_>>().len()
    }

    /// Equal events at 10 and 20 s, and others.
    const AT_10: &str = r#"{"creationDate":"2026-01-01T00:00:10.000Z","requestAction":"post"}"#;
    const AT_20: &str = r#"{"id":null,"creationDate":"2026-01-01T00:00:20.000Z","requestAction":"post"}"#;
    const OTHER_AT_20: &str = r#"{"id":"","creationDate":"2026-01-01T00:00:20.000Z","requestAction":"put"}"#;
    const WITH_ID: &str = r#"{"id":"a","creationDate":"2026-01-01T00:00:15.000Z"}"#;
    const LATER: &str = r#"{"id":"b","creationDate":"2026-01-01T00:00:30.000Z"}"#;
    const NO_TIME: &str = r#"{"requestAction":"post"}"#;

    #[test]
    fn equal_events_without_an_id_are_as_many_as_there_are_and_the_same_in_every_reading() {
        let pages: &[&[&str]] =
            &[&[NO_TIME, AT_10, AT_10, WITH_ID, WITH_ID, AT_20, OTHER_AT_20], &[AT_20, AT_20, OTHER_AT_20, NO_TIME]];
        let keys = keys_of(pages, usize::MAX);
        assert_eq!(different(&keys), 2 + 2 + 1 + 3 + 2);
        assert_eq!(keys, keys_of(pages, usize::MAX));
        let one_page: Vec<&str> = pages.concat();
        let together = keys_of(&[&one_page], usize::MAX);
        assert_eq!(
            together.iter().collect::<HashSet<_>>(),
            keys.iter().collect::<HashSet<_>>(),
            "however pages are cut"
        );
        // as ledgers have it
        assert_eq!(keys[1], EventKey::of("losant without id", &[AT_10.as_bytes()]));
    }

    #[test]
    fn an_event_without_an_id_that_comes_twice_because_pages_shift_is_one() {
        let once = |pages: &[&[&str]], doubtful_from| different(&keys_of(pages, doubtful_from));
        assert_eq!(once(&[&[AT_10, AT_20], &[AT_20, LATER]], 1), 3, "the total has changed");
        assert_eq!(once(&[&[AT_10, AT_20], &[AT_20, LATER]], 2), 4, "two at the edge");
        assert_eq!(once(&[&[AT_10, AT_20], &[AT_10, AT_20], &[AT_10, AT_20]], 9), 2, "a page that repeats");
        assert_eq!(once(&[&[AT_20], &[AT_20], &[AT_20]], 9), 1, "the same of one kind");
        assert_eq!(once(&[&[AT_10, AT_20], &[AT_10, AT_20, LATER]], 9), 3, "one that begins anew");
        assert_eq!(once(&[&[AT_10, AT_20, AT_20], &[AT_20, AT_20, LATER]], 1), 4, "in doubt, as many as on one page");
    }

    #[test]
    fn an_event_with_an_id_has_one_key_whether_or_not_its_time_can_be_read() {
        let key = |json: &str| losant().item(json.as_bytes()).key;
        let dated = key(r#"{"id":"a","creationDate":"2026-01-01T00:00:10.000Z"}"#);
        for json in [r#"{"id":"a","creationDate":"soon"}"#, r#"{"id":"a"}"#, r#"{"instanceAuditLogId":"a","id":""}"#] {
            assert_eq!(key(json), dated, "{json}");
        }
        assert_ne!(key(r#"{"creationDate":"soon","n":1}"#), key(r#"{"creationDate":"soon","n":2}"#));
    }

    #[test]
    fn ids_of_more_digits_than_a_number_holds_are_told_apart() {
        let key = |id: &str| losant().item(format!(r#"{{"id":{id}}}"#).as_bytes()).key;
        let ids = ["18446744073709551616", "18446744073709551617", "-9223372036854775809", "-9223372036854775810"];
        let ids = [&ids[..], &["123456789012345678901234567890", "123456789012345678901234567891"]].concat();
        assert_eq!(different(&ids.iter().map(|id| key(id)).collect::<Vec<_>>()), ids.len());
        for id in ["7", "18446744073709551615", "18446744073709551616"] {
            assert_eq!(key(id), key(&format!("\"{id}\"")), "a number and a text are the same id");
        }
    }

    /// Takes pages and remembers keys.
    #[derive(Default)]
    struct Keys(HashSet<EventKey>);

    #[async_trait]
    impl Sink for Keys {
        async fn page(&mut self, page: Page) -> Result<super::super::Taken, Failure> {
            self.0.extend(page.items.iter().map(|item| item.key));
            Ok(super::super::Taken::default())
        }

        fn report(&mut self, failure: Failure) {
            panic!("{failure}");
        }

        fn document(&mut self, _: &EventKey) -> Option<crate::ledger::DocumentRecord> {
            None
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pages_are_read_to_their_end_though_the_total_grows_with_every_request() {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicU64, Ordering};

        let total = Arc::new(AtomicU64::new(250));
        let grown = Arc::clone(&total);
        let router = axum::Router::new().fallback(move |request: axum::extract::Request| {
            let total = grown.fetch_add(1, Ordering::SeqCst);
            let query: HashMap<String, String> =
                url::form_urlencoded::parse(request.uri().query().unwrap().as_bytes()).into_owned().collect();
            let first = query["page"].parse::<u64>().unwrap() * 100;
            let items: Vec<_> =
                (first..total.min(first + 100)).map(|n| serde_json::json!({"id": n.to_string()})).collect();
            let list = serde_json::json!({"items": items, "totalCount": total, "perPage": 100}).to_string();
            async move { list }
        });
        let limits = crate::api::Limits {
            requests: 100,
            per: Duration::from_secs(1),
            burst: 1,
            timeout: Duration::from_secs(30),
            max_response_bytes: 1 << 20,
        };
        let transport = Arc::new(crate::transport::InMemory(router));
        let customs = Box::new(StaticToken { token: config::Secret::text("t"), base: losant().base });
        let clock = crate::clock::Clock::starting_at(DateTime::UNIX_EPOCH);
        let api = Api::new(transport, customs, limits, Arc::default(), clock, 1);
        let mut keys = Keys::default();
        let window = Window { from: DateTime::UNIX_EPOCH, to: DateTime::UNIX_EPOCH + TimeDelta::hours(1) };
        losant().read(window, &api, &mut keys).await.unwrap();
        assert!(keys.0.len() >= 250, "{} of the 250 that were there at the start", keys.0.len());
    }
}
