//! Losant, instance audit logs: changes to the resources of an instance.
//!
//! `GET /instance/{id}/audit-logs` (docs.losant.com, REST API, Instance Audit Logs), pages of a
//! closed time range in ascending order, so that what is new does not shift what is old. The
//! service says how many there are in all (`totalCount`); where that changed while reading, or
//! fewer came, the window is read once more.
//!
//! What it cannot report: logins of any kind (authentication is not recorded), and requests that
//! failed before they reached a resource. It keeps a year.

use std::collections::HashSet;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use http::StatusCode;
use serde::Deserialize;

use super::text::{Envelope, Field, Understood, id_bytes, looks_like_one_of, understand};
use super::{
    Ignore, Raw, RawEvents, Signals, Sink, Source, Spec, StaticToken, is_believable, is_strange, nothing_of_its_own,
    parse_time, rejected,
};
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
        for page in 0..PAGES_MAX {
            let url = self.url(window, page);
            let reply = api.call(|_| Call::get(url.clone())).await?;
            let listed = Listed::parse(&reply)?;
            let items: Vec<Item> = listed.items.iter().map(|Raw(raw)| self.item(raw)).collect();
            if is_strange(&listed.items, items.iter().map(|item| &item.what), &OWN_NAMES) {
                return Err(nothing_of_its_own(&reply));
            }
            let events = items.len();
            let fresh = items.iter().filter(|item| seen.insert(item.key)).count();
            sink.page(Page { items, ..Page::default() }).await?;
            // the pages are read to their end even so: what is new cannot push out what is old
            drifted |= *total_at_first.get_or_insert(listed.total) != listed.total;
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

    fn item(&self, raw: &[u8]) -> Item {
        let Some(Understood { entry: log, mended }) = understand::<Log>(raw) else {
            return rejected(RejectReason::Malformed, raw);
        };
        if log.says_nothing() && !looks_like_one_of(raw, &OWN_NAMES) {
            return rejected(RejectReason::Malformed, raw);
        }
        let at = match time(&log.creation_date) {
            None if !log.creation_date.is_missing() => return rejected(RejectReason::BadTime, raw),
            at => at,
        };
        let id = |field: &Field, name| field.id().map(|id| EventKey::of("losant", &[id_bytes(id, name, raw, mended)]));
        let key = id(&log.id, "id").or_else(|| id(&log.instance_audit_log_id, "instanceAuditLogId"));
        let key = key.unwrap_or_else(|| EventKey::of("losant without id", &[raw]));
        let what = if self.ignore.matches([log.actor_name.id(), log.actor_id.id()]) {
            What::Ignored
        } else {
            What::Event(log.labels())
        };
        Item { key, at, filed_at: at, what }
    }
}

/// A date as text, or as the milliseconds that the query takes.
fn time(written: &Field) -> Option<DateTime<Utc>> {
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

/// The collection, as far as it is needed.
struct Listed<'a> {
    items: Vec<Raw<'a>>,
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
        if reply.status == StatusCode::NO_CONTENT {
            return Ok(Self { items: Vec::new(), total: Some(0), per_page: None });
        }
        let wire = serde_json::from_slice::<Wire<'a>>(&reply.body).ok().or_else(|| {
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
        Ok(Self { items: wire.items.whole_of(reply)?, total: wire.total_count, per_page: wire.per_page })
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
            (r#"{"responseStatus": {}, "requestAction": 7}"#, "unknown unknown unknown"),
            (r#"{"responseBody": 1}"#, "unknown unknown unknown"),
        ] {
            assert_eq!(label_text(json), expected, "{json}");
        }
    }

    #[test]
    fn an_event_without_id_or_time_has_a_key_of_its_bytes() {
        let key = |json: &str| losant().item(json.as_bytes()).key;
        let patch = r#"{"requestAction":"patch"}"#;
        assert_eq!(key(patch), key(patch));
        assert_ne!(key(patch), key(r#"{"requestAction":"post"}"#));
    }

    #[test]
    fn what_cannot_be_understood_is_rejected_for_its_reason() {
        assert!(label_text("[1]").starts_with("Rejected(Rejection { reason: Malformed"));
        assert!(label_text("{}").contains("Malformed"), "none of its names");
        assert!(label_text(r#"{"id":"a","message":"b"}"#).contains("Malformed"), "an error");
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
