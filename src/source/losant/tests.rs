//! What single entries and pages become.

use std::collections::HashMap;

use super::*;
use crate::settings::Secret;

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
        (r#"{"primaryTargetType":"ApiToken","requestAction":"post","responseStatus":201}"#, "api_token create success"),
        (r#"{"primaryTargetType":"User","requestAction":"patch","responseStatus":400}"#, "user update failure"),
        (r#"{"primaryTargetType":"User","requestAction":"PUT","responseStatus":399}"#, "user update success"),
        (
            r#"{"primaryTargetType":"InstanceCustomNode","requestAction":"resendInvite"}"#,
            "instance_custom_node resend_invite unknown",
        ),
        (r#"{"id":12345,"actorId":7,"responseStatus":"201","creationDate":1465790400000}"#, "unknown unknown success"),
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
    let url = losant().url(Window { from: at(1000), to: at(2000) }, 3, 100);
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
    let page =
        |(n, raws): (usize, &&[&str])| numbers.number(raws.iter().map(|raw| named(raw)).collect(), n >= doubtful_from);
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
    assert_eq!(together.iter().collect::<HashSet<_>>(), keys.iter().collect::<HashSet<_>>(), "however pages are cut");
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

    fn document(&mut self, _: &EventKey) -> Option<crate::page::DocumentRecord> {
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
        let items: Vec<_> = (first..total.min(first + 100)).map(|n| serde_json::json!({"id": n.to_string()})).collect();
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
    let dialect = Box::new(crate::source::kit::StaticToken::bearer(&Secret::text("t"), &losant().base));
    let clock = crate::clock::Clock::starting_at(DateTime::UNIX_EPOCH);
    let api = Api::new(transport, dialect, limits, Arc::default(), clock, 1);
    let mut keys = Keys::default();
    let window = Window { from: DateTime::UNIX_EPOCH, to: DateTime::UNIX_EPOCH + TimeDelta::hours(1) };
    losant().read(window, &api, &mut keys).await.unwrap();
    assert!(keys.0.len() >= 250, "{} of the 250 that were there at the start", keys.0.len());
}
