use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use serde_json::{Value, json};

use super::*;
use crate::api::Limits;
use crate::clock::Clock;
use crate::page::DocumentRecord;
use crate::settings::Secret;
use crate::simulate::{Faults, Options, TruthOf, World, credentials};
use crate::source::Entry as _;
use crate::source::Taken;
use crate::stats::SourceStats;
use crate::transport::InMemory;

const T: i64 = 1_800_000_000;

// === a small Canvas with the bookmarks of any version ===

/// An event: second, kind, login, and what makes it itself.
#[derive(Clone, Debug)]
struct Happened(i64, &'static str, u64, u64);

#[derive(Clone, Copy, PartialEq)]
enum Bookmarks {
    /// `[created_at, id]`.
    Pairs,
    /// `created_at`, as in older versions.
    Moments,
    /// Something that cannot be read, and works.
    Opaque,
    /// Something that cannot be read, and leads to page 1.
    Restarting,
    /// The same, in other words each time.
    Wandering,
    /// The same page again.
    Looping,
}

#[expect(clippy::struct_excessive_bools, reason = "they are independent switches")]
struct Fake {
    events: Vec<Happened>,
    bookmarks: Bookmarks,
    per_page_max: usize,
    flat: bool,
    ignores_filter: bool,
    old_route: bool,
    ascending: bool,
    /// There is a next page even after the last.
    never_ends: bool,
    /// Each answer holds one event more than the one before, at its top.
    grows: bool,
    /// Without any `Link` header.
    silent: bool,
    answers: AtomicI64,
}

impl Fake {
    fn new(bookmarks: Bookmarks, mut events: Vec<Happened>) -> Self {
        events.sort_by_key(|event| std::cmp::Reverse((event.0, event.3)));
        Self {
            events,
            bookmarks,
            per_page_max: 100,
            flat: false,
            ignores_filter: false,
            old_route: false,
            ascending: false,
            never_ends: false,
            grows: false,
            silent: false,
            answers: AtomicI64::new(0),
        }
    }

    fn answer(&self, request: &Request) -> Response {
        let path = request.uri().path();
        let query: HashMap<String, String> =
            url::form_urlencoded::parse(request.uri().query().unwrap_or("").as_bytes()).into_owned().collect();
        let (scope, id) = path.strip_prefix("/api/v1/audit/authentication/").unwrap().split_once('/').unwrap();
        let (from, to) = (parse_time(&query["start_time"]).unwrap(), parse_time(&query["end_time"]).unwrap());
        if scope == if self.old_route { "logins" } else { "pseudonyms" } || id == "404" {
            return Response::builder().status(404).body(Body::from(r#"{"errors":[]}"#)).unwrap();
        }
        let answers = self.answers.fetch_add(1, Ordering::Relaxed);
        let grown = if self.grows { 1 + answers } else { 0 };
        let mut all: Vec<Happened> = (0..grown).rev().map(|n| Happened(T + 1000 + n, "logout", 5, 1)).collect();
        all.extend_from_slice(&self.events);
        if self.ascending {
            all.reverse();
        }
        let events = all
            .iter()
            .filter(|event| self.ignores_filter || (from.timestamp() <= event.0 && event.0 <= to.timestamp()));
        let events: Vec<&Happened> = events.filter(|event| scope == "accounts" || id == event.2.to_string()).collect();
        let page = query.get("page").map_or("0", String::as_str);
        let json = page.strip_prefix("bookmark:").and_then(|token| URL_SAFE_NO_PAD.decode(token).ok());
        let value = json.and_then(|json| serde_json::from_slice(&json).ok());
        let begin = match (value, self.bookmarks) {
            (Some(Value::String(moment)), _) => {
                events.iter().position(|event| event.0.to_string() < moment).unwrap_or(events.len())
            }
            (Some(Value::Array(parts)), _) => {
                events.iter().position(|event| json!([event.0.to_string(), event.3]) == json!(parts)).unwrap() + 1
            }
            (_, Bookmarks::Restarting | Bookmarks::Wandering) => 0,
            _ => page.parse().unwrap(),
        };
        let end = (begin + query["per_page"].parse::<usize>().unwrap().min(self.per_page_max)).min(events.len());
        let listed: Vec<Value> = events[begin..end].iter().map(|event| self.wire(event)).collect();
        let next = (end < events.len() || self.never_ends).then(|| {
            let last = events.get(end.wrapping_sub(1)).copied().unwrap_or(&Happened(0, "", 0, 0));
            let bookmark = |value: Value| format!("bookmark:{}", URL_SAFE_NO_PAD.encode(value.to_string()));
            match self.bookmarks {
                Bookmarks::Pairs => bookmark(json!([last.0.to_string(), last.3])),
                Bookmarks::Moments => bookmark(json!(last.0.to_string())),
                Bookmarks::Opaque => end.to_string(),
                Bookmarks::Restarting => format!("bookmark:!{end}"),
                Bookmarks::Wandering => format!("bookmark:!{answers}"),
                Bookmarks::Looping => page.to_owned(),
            }
        });
        let mut response = Response::builder();
        if !self.silent {
            response = response.header("LINK", format!("<http://canvas.test{path}>; rel=\"current\""));
        }
        if let Some(next) = next.filter(|_| !self.silent) {
            let mut query = query.clone();
            query.insert("page".into(), next);
            let mut query: Vec<_> = query.into_iter().collect();
            query.sort();
            let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
            response = response.header("LINK", format!("<http://canvas.test{path}?{query}>; rel=\"next\""));
        }
        let body = if self.flat { json!(listed) } else { json!({"links": {}, "events": listed, "linked": {"x": []}}) };
        response.body(Body::from(body.to_string())).unwrap()
    }

    fn wire(&self, &Happened(second, kind, login, id): &Happened) -> Value {
        let at = DateTime::from_timestamp(second, 0).unwrap().to_rfc3339();
        if self.flat {
            return json!({"created_at": at, "event_type": kind, "pseudonym_id": login, "account_id": 1, "user_id": login});
        }
        json!({"id": format!("id-{id}"), "created_at": at, "event_type": kind,
               "links": {"login": login.to_string(), "account": "1", "user": login, "page_view": null}})
    }

    fn router(self, log: &Arc<Mutex<Vec<String>>>) -> Router {
        let log = Arc::clone(log);
        let this = Arc::new(self);
        Router::new().fallback(move |request: Request| {
            log.lock().unwrap().push(request.uri().to_string());
            let response = this.answer(&request);
            async move { response }
        })
    }
}

/// One login of its own for each second.
fn one_each(seconds: std::ops::Range<i64>) -> Vec<Happened> {
    seconds.map(|second| Happened(T + second, "login", 5, u64::try_from(second).unwrap())).collect()
}

// === a reader around it ===

#[derive(Default)]
struct Collected {
    keys: BTreeSet<EventKey>,
    items: Vec<Item>,
    reports: Vec<Failure>,
    window: Option<Window>,
}

#[async_trait]
impl Sink for Collected {
    async fn page(&mut self, page: Page) -> Result<Taken, Failure> {
        let inside = page.items.into_iter().filter(|item| item.at.is_none_or(|at| self.window.unwrap().contains(at)));
        for item in inside {
            assert_eq!(item.at, item.filed_at);
            if self.keys.insert(item.key) {
                self.items.push(item);
            }
        }
        Ok(Taken::default())
    }

    fn report(&mut self, failure: Failure) {
        self.reports.push(failure);
    }

    fn document(&mut self, _key: &EventKey) -> Option<DocumentRecord> {
        None
    }
}

impl Collected {
    fn kinds(&self) -> Vec<ErrorKind> {
        self.reports.iter().map(|report| report.kind).collect()
    }
}

struct Reader {
    source: Box<dyn Source>,
    api: Api,
    stats: Arc<SourceStats>,
    log: Arc<Mutex<Vec<String>>>,
    sink: Collected,
}

/// Scopes as `accounts`, `users`, `pseudonyms`.
struct Setup<'a> {
    scopes: [&'a [&'a str]; 3],
    page_size: u32,
    token: &'a str,
}

const ACCOUNT: Setup<'static> = Setup { scopes: [&["1"], &[], &[]], page_size: 100, token: "t" };

impl Reader {
    fn new(setup: &Setup<'_>, router: Router, log: Arc<Mutex<Vec<String>>>, clock: Clock) -> Self {
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
        let service = Settings {
            base_url: "http://canvas.test".parse().unwrap(),
            access_token: Secret::text(setup.token),
            accounts: ids(setup.scopes[0]),
            users: ids(setup.scopes[1]),
            pseudonyms: ids(setup.scopes[2]),
        };
        let mut common = (SERVICE.defaults)();
        common.page_size = NonZeroU32::new(setup.page_size);
        common.ignore_actors = vec!["99".into()];
        let (source, dialect) = service.build(&common);
        let stats = Arc::new(SourceStats::default());
        let limits = Limits {
            requests: 120,
            per: Duration::from_mins(1),
            burst: 1,
            timeout: Duration::from_secs(30),
            max_response_bytes: 1 << 20,
        };
        let api = Api::new(Arc::new(InMemory(router)), dialect, limits, Arc::clone(&stats), clock, 1);
        Self { source, api, stats, log, sink: Collected::default() }
    }

    fn of(setup: &Setup<'_>, fake: Fake) -> Self {
        let log = Arc::default();
        Self::new(setup, fake.router(&log), log, Clock::starting_at(DateTime::from_timestamp(T, 0).unwrap()))
    }

    async fn read(&mut self, seconds: std::ops::Range<i64>) -> Result<(), Failure> {
        let at = |second| DateTime::from_timestamp(T + second, 0).unwrap();
        let window = Window { from: at(seconds.start), to: at(seconds.end) };
        self.sink.window = Some(window);
        self.source.read(window, &self.api, &mut self.sink).await
    }

    fn requests(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

/// A service that answers everything alike.
fn answering(response: impl Fn() -> Response + Clone + Send + Sync + 'static) -> Reader {
    let log: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&log);
    let router = Router::new().fallback(move |request: Request| {
        seen.lock().unwrap().push(request.uri().to_string());
        let response = response();
        async move { response }
    });
    Reader::new(&ACCOUNT, router, log, Clock::starting_at(DateTime::from_timestamp(T, 0).unwrap()))
}

// === the request ===

#[tokio::test(start_paused = true)]
async fn the_request_asks_for_whole_seconds_in_utc() {
    let mut reader = Reader::of(&ACCOUNT, Fake::new(Bookmarks::Pairs, vec![]));
    let at = |ms| DateTime::from_timestamp_millis(T * 1000 + ms).unwrap();
    let window = Window { from: at(500), to: at(2500) };
    reader.source.read(window, &reader.api, &mut reader.sink).await.unwrap();
    assert_eq!(
        reader.requests(),
        ["http://canvas.test/api/v1/audit/authentication/accounts/1\
         ?start_time=2027-01-15T08%3A00%3A00Z&end_time=2027-01-15T08%3A00%3A03Z&per_page=100"]
    );
}

#[tokio::test(start_paused = true)]
async fn logins_are_found_under_the_old_name_of_their_route_which_is_remembered() {
    let mut fake = Fake::new(Bookmarks::Pairs, one_each(0..3));
    fake.old_route = true;
    let mut reader = Reader::of(&Setup { scopes: [&[], &[], &["5"]], ..ACCOUNT }, fake);
    reader.read(0..10).await.unwrap();
    reader.read(0..10).await.unwrap();
    assert_eq!(reader.sink.keys.len(), 3);
    let routes: Vec<bool> = reader.requests().iter().map(|url| url.contains("/pseudonyms/5")).collect();
    assert_eq!(routes, [false, true, true]);
}

#[tokio::test(start_paused = true)]
async fn a_login_that_is_nowhere_is_an_error_that_does_not_keep_the_others_from_being_read() {
    let setup = Setup { scopes: [&[], &[], &["404", "5"]], ..ACCOUNT };
    let mut reader = Reader::of(&setup, Fake::new(Bookmarks::Pairs, one_each(0..3)));
    reader.read(0..10).await.unwrap();
    let failure = reader.sink.reports.pop().unwrap();
    assert_eq!(failure.kind, ErrorKind::NotFound);
    assert!(failure.to_string().contains("/logins/404"), "{failure}");
    assert_eq!(reader.sink.keys.len(), 3);
    let nowhere = Setup { scopes: [&[], &[], &["404"]], ..ACCOUNT };
    let mut reader = Reader::of(&nowhere, Fake::new(Bookmarks::Pairs, one_each(0..3)));
    assert_eq!(reader.read(0..10).await.unwrap_err().kind, ErrorKind::NotFound, "where all are gone");
}

// === identity ===

#[tokio::test(start_paused = true)]
async fn an_event_seen_through_several_scopes_counts_once_with_and_without_an_id() {
    for flat in [false, true] {
        let mut fake = Fake::new(
            Bookmarks::Pairs,
            vec![Happened(T, "login", 5, 1), Happened(T, "login", 5, 2), Happened(T + 1, "logout", 6, 3)],
        );
        fake.flat = flat;
        let setup = Setup { scopes: [&["1"], &["5", "6"], &["5"]], ..ACCOUNT };
        let mut reader = Reader::of(&setup, fake);
        reader.read(0..10).await.unwrap();
        assert_eq!(reader.sink.keys.len(), 3, "flat: {flat}");
        reader.read(0..10).await.unwrap();
        assert_eq!(reader.sink.keys.len(), 3, "a second reading adds none; flat: {flat}");
    }
}

#[tokio::test(start_paused = true)]
async fn equal_events_without_an_id_each_count_even_over_the_end_of_a_page() {
    for bookmarks in [Bookmarks::Pairs, Bookmarks::Moments, Bookmarks::Opaque] {
        // seven equal ones from page 1 to 4, between others
        let mut events = one_each(0..9);
        events.extend((0..6).map(|n| Happened(T + 4, "login", 5, 100 + n)));
        let mut fake = Fake::new(bookmarks, events);
        fake.flat = true;
        fake.per_page_max = if bookmarks == Bookmarks::Moments { 7 } else { 2 };
        let mut reader = Reader::of(&ACCOUNT, fake);
        reader.read(0..20).await.unwrap();
        assert_eq!(reader.sink.keys.len(), 15);
        assert_eq!(reader.sink.kinds(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_among_equal_events_without_an_id_counts_none_twice() {
    for bookmarks in [Bookmarks::Restarting, Bookmarks::Wandering, Bookmarks::Looping] {
        let mut events = one_each(0..40);
        events.extend((0..3).map(|n| Happened(T + 4, "login", 5, 100 + n)));
        let mut fake = Fake::new(bookmarks, events);
        fake.flat = true;
        fake.per_page_max = 5;
        let mut reader = Reader::of(&ACCOUNT, fake);
        reader.read(0..100).await.unwrap();
        assert_eq!(reader.sink.keys.len(), 43);
        assert_eq!(reader.sink.kinds(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_with_a_new_event_at_the_top_counts_none_twice() {
    let mut fake = Fake::new(Bookmarks::Wandering, one_each(0..40));
    (fake.flat, fake.grows, fake.per_page_max) = (true, true, 10);
    let mut reader = Reader::of(&ACCOUNT, fake);
    reader.read(0..5000).await.unwrap();
    let actions = |action: &str| {
        let is = |item: &&Item| matches!(&item.what, What::Event(labels) if labels.action.as_str() == action);
        reader.sink.items.iter().filter(is).count()
    };
    assert_eq!(actions("login"), 40);
    assert!(actions("logout") <= reader.requests().len());
}

#[tokio::test(start_paused = true)]
async fn equal_events_without_an_id_that_fit_no_page_are_never_too_many() {
    for bookmarks in [Bookmarks::Restarting, Bookmarks::Looping] {
        let events = (0..7).map(|n| Happened(T, "login", 5, n)).collect();
        let mut fake = Fake::new(bookmarks, events);
        (fake.flat, fake.per_page_max) = (true, 5);
        let mut reader = Reader::of(&ACCOUNT, fake);
        reader.read(0..10).await.unwrap();
        assert_eq!(reader.sink.keys.len(), 5);
        assert_eq!(reader.sink.kinds(), [ErrorKind::Truncated]);
    }
}

#[test]
fn ids_are_alike_as_text_and_as_number_and_keep_all_digits() {
    let service = Settings {
        base_url: "http://canvas.test".parse().unwrap(),
        access_token: Secret::text("t"),
        accounts: vec!["1".to_owned()],
        users: Vec::new(),
        pseudonyms: Vec::new(),
    };
    let canvas =
        Canvas::new(&service.base_url, [&service.accounts, &service.users, &service.pseudonyms], &(SERVICE.defaults)());
    let key = |mut json: Value| {
        json["created_at"] = "2026-11-22T10:00:00Z".into();
        let entry = canvas.entry(json.to_string().as_bytes());
        (entry.key, entry.has_own_key)
    };
    assert_eq!(key(json!({"id": 7})), key(json!({"id": "7"})));
    assert_ne!(key(json!({"id": 9_007_199_254_740_993_u64})), key(json!({"id": 9_007_199_254_740_992_u64})));
    let flat =
        key(json!({"event_type": "login", "pseudonym_id": 1, "account_id": 2, "user_id": 21_070_000_000_000_001_u64}));
    let linked = json!({"id": null, "event_type": "login",
        "links": {"login": "1", "account": "2", "user": "21070000000000001", "page_view": null}});
    assert_eq!(flat, key(linked));
    assert!(!flat.1);
    assert_eq!(key(json!({"id": ""})), key(json!({})), "an empty id is none");
    assert_ne!(flat, key(json!({"event_type": "login", "pseudonym_id": 1, "account_id": 2})));
}

#[test]
fn events_are_counted_as_the_interface_says() {
    let labels = |kind: Value| {
        let labels = serde_json::from_str::<Event>(&json!({"event_type": kind}).to_string()).unwrap().labels();
        (format!("{} {} {}", labels.category, labels.action, labels.outcome.as_str()), labels.class)
    };
    assert_eq!(labels(json!("login")), ("authentication login success".into(), Class::Login(Principal::User)));
    assert_eq!(labels(json!("logout")), ("authentication logout success".into(), Class::Logout));
    assert_eq!(labels(json!("apiLogin")), ("authentication api_login success".into(), Class::Change));
    assert_eq!(labels(json!(null)), ("authentication unknown success".into(), Class::Change));
}

// === what comes back ===

#[tokio::test(start_paused = true)]
async fn every_shape_is_understood_and_one_bad_event_loses_no_other() {
    let good = r#"{"id":1,"created_at":"2027-01-15T01:00:00-07:00","event_type":"login"}"#;
    let ignored = r#"{"id":2,"created_at":"2027-01-15T08:00:00Z","event_type":"login","links":{"user":99}}"#;
    let events = format!(r#"[{good},7,{ignored},{{"id":3}},{{"id":4,"created_at":"soon"}}]"#);
    for body in [
        events.clone(),
        format!(r#"{{"events":{events}}}"#),
        format!(r#"while(1);{{"linked":[{{}}],"events":{events}}}"#),
    ] {
        let mut reader = answering(move || Response::new(Body::from(body.clone())));
        reader.read(0..10).await.unwrap();
        let what: Vec<String> = reader
            .sink
            .items
            .iter()
            .map(|item| match &item.what {
                What::Event(labels) => labels.action.to_string(),
                What::Ignored => "ignored".into(),
                What::Rejected(rejection) => rejection.reason.as_str().into(),
                What::Tainted { .. } => "tainted".into(),
            })
            .collect();
        assert_eq!(what, ["login", "malformed", "ignored", "malformed", "bad_time"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_of_another_kind_is_an_error() {
    for body in ["<html>Log in</html>", "{}", r#"{"events":5}"#, r#"{"events":[{"id":1}"#, ""] {
        let mut reader = answering(move || Response::new(Body::from(body)));
        assert_eq!(reader.read(0..10).await.unwrap_err().kind, ErrorKind::Decode, "{body}");
        assert_eq!(reader.sink.items.len(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_from_throttling_and_from_a_bad_token() {
    let real = "Bearer realm=\"canvas-lms\"";
    for (status, header, body, kind, requests) in [
        (401, Some(real), "{}", ErrorKind::Auth, 1),
        (401, None, "{}", ErrorKind::Forbidden, 1),
        (401, None, r#"{"errors":[{"message":"Invalid access token."}]}"#, ErrorKind::Auth, 1),
        (
            401,
            None,
            r#"{"errors":[{"message":"user not authorized to perform that action"}]}"#,
            ErrorKind::Forbidden,
            1,
        ),
        (403, None, "403 Forbidden (Rate Limit Exceeded)\n", ErrorKind::Throttled, 4),
        (429, None, "429 Forbidden (Rate Limit Exceeded)\n", ErrorKind::Throttled, 4),
        (403, None, "forbidden", ErrorKind::Forbidden, 1),
        (404, None, "{}", ErrorKind::NotFound, 1),
    ] {
        let mut reader = answering(move || {
            let mut response = Response::builder().status(status);
            if let Some(header) = header {
                response = response.header("www-authenticate", header);
            }
            response.body(Body::from(body)).unwrap()
        });
        assert_eq!(reader.read(0..10).await.unwrap_err().kind, kind, "{status} {body}");
        assert_eq!(reader.requests().len(), requests, "{status} {body}");
    }
}

#[test]
fn we_slow_down_before_the_service_has_to() {
    let dialect = CanvasDialect(StaticToken { token: Secret::text("t"), base: "http://canvas.test".parse().unwrap() });
    let budget = |remaining: &str, cost: Option<&str>| {
        let mut headers = HeaderMap::new();
        headers.insert("x-rate-limit-remaining", remaining.parse().unwrap());
        if let Some(cost) = cost {
            headers.insert("x-request-cost", cost.parse().unwrap());
        }
        let budget = dialect.budget(&Reply::of(StatusCode::OK, headers, ""));
        budget.map(|Budget { remaining, pause }| (remaining.round(), pause.as_millis()))
    };
    assert_eq!(budget("699.5", Some("0.5")), Some((700.0, 0)));
    assert_eq!(budget("40", Some("10")), Some((40.0, 2000)));
    assert_eq!(budget("0.0", None), Some((0.0, 5000)));
    assert_eq!(budget("-900", None), Some((-900.0, 30_000)));
    assert_eq!(budget("NaN", None), None);
    assert_eq!(dialect.budget(&Reply::of(StatusCode::OK, HeaderMap::new(), "")), None);
}

// === pages ===

#[tokio::test(start_paused = true)]
async fn the_token_goes_nowhere_else() {
    for link in [
        "https://canvas.test/api/v1/x?page=2",
        "http://canvas.test:81/api/v1/x?page=2",
        "http://evil.test/api/v1/x?page=2",
        "//evil.test/x",
        "http://u:p@canvas.test/api/v1/x",
    ] {
        let mut reader = answering(move || {
            let events = r#"[{"id":1,"created_at":"2027-01-15T08:00:00Z","event_type":"login"}]"#;
            Response::builder().header("link", format!("<{link}>; rel=\"next\"")).body(Body::from(events)).unwrap()
        });
        assert_eq!(reader.read(0..10).await.unwrap_err().kind, ErrorKind::Redirect, "{link}");
        assert_eq!(reader.requests().len(), 1);
        assert_eq!(reader.sink.items.len(), 1, "what came stays");
    }
}

#[tokio::test(start_paused = true)]
async fn bookmarks_that_lead_back_lose_nothing() {
    for bookmarks in [Bookmarks::Restarting, Bookmarks::Wandering, Bookmarks::Looping] {
        let mut fake = Fake::new(bookmarks, one_each(0..200));
        fake.per_page_max = 20;
        let mut reader = Reader::of(&ACCOUNT, fake);
        reader.read(-100..300).await.unwrap();
        assert_eq!(reader.sink.keys.len(), 200);
        assert_eq!(reader.sink.kinds(), []);
        assert!(reader.requests().len() < 70, "{}", reader.requests().len());
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_that_fits_no_page_is_reported_and_the_rest_is_read() {
    for bookmarks in [Bookmarks::Restarting, Bookmarks::Looping, Bookmarks::Moments] {
        let mut events = one_each(0..50);
        events.extend((0..9).map(|n| Happened(T + 7, "login", 5, 100 + n)));
        let mut fake = Fake::new(bookmarks, events);
        fake.per_page_max = 5;
        let mut reader = Reader::of(&ACCOUNT, fake);
        reader.read(0..60).await.unwrap();
        assert_eq!(reader.sink.keys.len(), 49 + 5);
        assert_eq!(reader.sink.kinds(), [ErrorKind::Truncated]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_always_has_a_next_page_is_left() {
    for body in ["[]", r#"[{"id":1,"created_at":"2027-01-15T08:00:05Z","event_type":"login"}]"#] {
        let mut reader = answering(move || {
            Response::builder().header("link", "</api/v1/x?page=9>; rel=next").body(Body::from(body)).unwrap()
        });
        reader.read(0..60).await.unwrap();
        assert!(reader.requests().len() < 20, "{}", reader.requests().len());
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_whose_page_is_not_full_is_complete_though_there_is_a_next_page() {
    let mut fake = Fake::new(Bookmarks::Restarting, one_each(0..30));
    (fake.never_ends, fake.per_page_max) = (true, 20);
    let mut reader = Reader::of(&ACCOUNT, fake);
    reader.read(0..60).await.unwrap();
    assert_eq!(reader.sink.keys.len(), 30);
    assert_eq!(reader.sink.kinds(), []);
}

#[tokio::test(start_paused = true)]
async fn an_ignored_filter_ends_no_walk_from_old_to_new() {
    let mut events = one_each(1..1000);
    events.extend((0..150).map(|n| Happened(T, "login", 5, 10_000 + n))); // a first page of one moment
    let mut fake = Fake::new(Bookmarks::Opaque, events);
    (fake.ignores_filter, fake.ascending) = (true, true);
    let mut reader = Reader::of(&ACCOUNT, fake);
    reader.read(500..700).await.unwrap();
    assert_eq!(reader.sink.keys.len(), 200);
    assert_eq!(reader.sink.kinds(), [ErrorKind::Decode]);
}

#[tokio::test(start_paused = true)]
async fn older_versions_lose_the_rest_of_a_second_which_is_read_by_itself() {
    let mut events = one_each(0..30);
    events.extend((0..3).map(|n| Happened(T + 19, "login", 6, 100 + n)));
    events.extend((0..3).map(|n| Happened(T, "login", 6, 200 + n)));
    let requests_of = async |bookmarks| {
        let mut fake = Fake::new(bookmarks, events.clone());
        fake.per_page_max = 11;
        let mut reader = Reader::of(&ACCOUNT, fake);
        reader.read(0..60).await.unwrap();
        assert_eq!(reader.sink.keys.len(), 36);
        assert_eq!(reader.sink.kinds(), []);
        reader.requests().len()
    };
    assert_eq!(requests_of(Bookmarks::Pairs).await, 4, "no more requests than pages where nothing is lost");
    assert!(requests_of(Bookmarks::Moments).await > 4);
}

#[test]
fn only_bookmarks_of_a_moment_and_an_id_keep_ties() {
    for (page, loses) in [
        ("bookmark:WyIyMDI0LTA1LTAxIDEyOjAwOjAwIFVUQyIsMTUwXQ", false),
        ("bookmark:WyIyMDI0LTA1LTAxIDEyOjAwOjAwIFVUQyIsMTUwXQ%3D%3D", false),
        ("bookmark:IjIwMjQtMDUtMDEgMTI6MDA6MDAgVVRDIg", true),
        ("bookmark:!!!", true),
        ("2", true),
    ] {
        let url = format!("http://canvas.test/x?page={page}").parse().unwrap();
        assert_eq!(loses_ties(&url), loses, "{page}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_ignored_filter_is_reported_once_and_history_is_not_read_to_its_end() {
    let mut fake = Fake::new(Bookmarks::Pairs, one_each(0..5000));
    fake.ignores_filter = true;
    let mut reader = Reader::of(&Setup { scopes: [&["1"], &["5"], &[]], ..ACCOUNT }, fake);
    reader.read(4500..4700).await.unwrap();
    assert_eq!(reader.sink.keys.len(), 200);
    assert_eq!(reader.sink.kinds(), [ErrorKind::Decode]);
    assert!(reader.sink.reports[0].to_string().contains("start_time/end_time was ignored"));
    assert_eq!(reader.requests().len(), 2 * 7);
}

#[tokio::test(start_paused = true)]
async fn the_second_at_either_end_does_not_mean_that_the_filter_was_ignored() {
    let mut reader = Reader::of(&ACCOUNT, Fake::new(Bookmarks::Pairs, one_each(0..100)));
    reader.read(10..20).await.unwrap();
    assert_eq!(reader.sink.keys.len(), 10);
    assert_eq!(reader.sink.kinds(), []);
}

#[test]
fn spans_are_cut_down_to_a_second_without_a_hole_and_around_what_was_seen() {
    let span = |first, last| Span { first, last };
    assert_eq!(Span::second(5).parts(None), None);
    assert_eq!(span(5, 6).parts(None), Some([Span::second(5), Span::second(6)]));
    assert_eq!(span(-5, 2).parts(None), Some([span(-5, -2), span(-1, 2)]));
    for (seen, end) in [
        (span(0, 100), 50),
        (span(40, 60), 50),
        (span(51, 100), 50),
        (span(70, 80), 69),
        (span(100, 100), 99),
        (span(0, 0), 0),
        (span(10, 20), 20),
        (span(-9, -1), 50),
        (span(101, 200), 50),
    ] {
        assert_eq!(span(0, 100).parts(Some(seen)), Some([span(0, end), span(end + 1, 100)]), "{seen:?}");
        for second in [5, 6] {
            assert_eq!(span(5, 6).parts(Some(Span::second(second))), span(5, 6).parts(None));
        }
    }
}

// === against the simulated Canvas ===

#[tokio::test(start_paused = true)]
async fn whatever_the_service_does_wrong_every_event_counts_once() {
    for faults in [
        "",
        "canvas:flat",
        "canvas:bare_list",
        "canvas:string_ids",
        "canvas:duplicates=0.3",
        "canvas:count_cap=7",
        "canvas:count_cap=50,flat",
        "canvas:ignore_time_filter",
        "canvas:looping",
        "canvas:looping,flat",
        "canvas:restarting",
        "canvas:restarting,bare_list",
        "canvas:link_lost=1",
        "canvas:link_lost=0.3,flat,count_cap=50",
        "canvas:link_lost=1,duplicates=0.3,count_cap=60",
        "canvas:gzip_members",
        "canvas:pseudonyms_route",
        "canvas:malformed=0.5",
        "canvas:throttle=0.1,old_throttle",
    ] {
        let clock = Clock::starting_at(DateTime::from_timestamp(T, 0).unwrap());
        let mut wrong = Faults::default();
        if !faults.is_empty() {
            wrong.set(faults).unwrap();
        }
        let world = World::new(Options {
            seed: 7,
            clock: clock.clone(),
            history: Duration::from_hours(1),
            day: Duration::from_hours(24),
            rate: 0.3,
            faults: wrong,
            quiet: false,
        });
        let setup = Setup {
            scopes: [&[&credentials::CANVAS_ACCOUNT.to_string()], &["363"], &["9479", "9480"]],
            page_size: 100,
            token: credentials::CANVAS_ACCESS_TOKEN,
        };
        let mut reader = Reader::new(&setup, world.router(), Arc::default(), clock);
        let window = -3000..-900; // long enough ago for nothing of it to become visible meanwhile
        reader.read(window.clone()).await.unwrap();
        let at = |second| DateTime::from_timestamp(T + second, 0);
        let of = TruthOf { from: at(window.start), to: at(window.end), ..TruthOf::default() };
        let truth = world.truth_of(&of).total(SYSTEM);
        let events = reader.sink.items.iter().filter(|item| matches!(item.what, What::Event(_))).count();
        assert!(truth > 300, "{truth}");
        assert_eq!(events as u64, truth, "{faults}");
        let reported = reader.sink.kinds();
        assert_eq!(reported.is_empty(), !faults.contains("ignore_time_filter"), "{faults}: {reported:?}");
        assert_eq!(reader.stats.errors(ErrorKind::Decode), 0);
    }
}

// === where the end is not proven ===

#[tokio::test(start_paused = true)]
async fn events_are_read_in_parts_where_the_link_header_is_lost() {
    for (events, cap, most) in
        [(1500, 100, 110), (1500, 50, 220), (250, 100, 20), (100, 100, 9), (37, 100, 7), (9, 100, 1), (0, 100, 1)]
    {
        let mut fake = Fake::new(Bookmarks::Pairs, one_each(0..events));
        (fake.silent, fake.per_page_max) = (true, cap);
        let mut reader = Reader::of(&ACCOUNT, fake);
        reader.read(0..1600).await.unwrap();
        assert_eq!(i64::try_from(reader.sink.keys.len()).unwrap(), events, "{cap} on a page");
        assert_eq!(reader.sink.kinds(), []);
        assert!(reader.requests().len() <= most, "{events}, {cap} on a page: {}", reader.requests().len());
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_second_without_a_link_header_keeps_the_window_open_and_nothing_else_from_being_read() {
    for cap in [100, 50] {
        let mut events = one_each(0..300);
        events.extend((0..150).map(|n| Happened(T + 7, "login", 5, 1000 + n)));
        let mut fake = Fake::new(Bookmarks::Pairs, events);
        (fake.silent, fake.per_page_max) = (true, cap);
        let mut reader = Reader::of(&ACCOUNT, fake);
        let failure = reader.read(0..600).await.unwrap_err();
        assert_eq!(failure.kind, ErrorKind::Truncated);
        assert!(failure.to_string().contains("Link header"), "{failure}");
        assert_eq!(reader.sink.keys.len(), 299 + cap);
        assert!(reader.requests().len() < 60, "{}", reader.requests().len());
    }
    // a burst that is shorter than a page is no sign of a cap
    let burst = (0..40).map(|n| Happened(T + 7, "login", 5, n)).collect();
    let mut fake = Fake::new(Bookmarks::Pairs, burst);
    fake.silent = true;
    let mut reader = Reader::of(&ACCOUNT, fake);
    reader.read(0..600).await.unwrap();
    assert_eq!((reader.sink.keys.len(), reader.sink.kinds()), (40, vec![]));
}

/// Answers like `fake`, with another `Link` header; how often it was asked.
fn relinked(
    fake: Fake,
    link: impl Fn(usize, &Request, Option<String>) -> Option<String> + Send + Sync + 'static,
) -> (Reader, Arc<std::sync::atomic::AtomicBool>) {
    let log: Arc<Mutex<Vec<String>>> = Arc::default();
    let (seen, broken) = (Arc::clone(&log), Arc::new(std::sync::atomic::AtomicBool::new(true)));
    let (is_broken, fake, link) = (Arc::clone(&broken), Arc::new(fake), Arc::new(link));
    let router = Router::new().fallback(move |request: Request| {
        seen.lock().unwrap().push(request.uri().to_string());
        let number = seen.lock().unwrap().len();
        let mut response = fake.answer(&request);
        if is_broken.load(Ordering::Relaxed) {
            let next = link::next(response.headers());
            response.headers_mut().remove(header::LINK);
            if let Some(value) = link(number, &request, next) {
                response.headers_mut().append(header::LINK, value.parse().unwrap());
            }
        }
        async move { response }
    });
    (Reader::new(&ACCOUNT, router, log, Clock::starting_at(DateTime::from_timestamp(T, 0).unwrap())), broken)
}

#[tokio::test(start_paused = true)]
async fn a_next_link_that_leads_back_is_an_error_soon_and_all_is_read_when_the_service_recovers() {
    let thrice =
        |seconds: i64| (0..3 * seconds).map(|n| Happened(T + n / 3, "login", 5, u64::try_from(n).unwrap())).collect();
    for seconds in [500, 40, 4] {
        for back in [0, 1, 2] {
            let pages: Mutex<Vec<String>> = Mutex::default();
            let fake = Fake::new(Bookmarks::Pairs, thrice(seconds));
            let (mut reader, broken) = relinked(fake, move |_, request, next| {
                let mut pages = pages.lock().unwrap();
                if !request.uri().query().unwrap().contains("&page=") {
                    pages.clear();
                }
                pages.push(request.uri().to_string());
                // this very page; or the one before, or the one before that, once there are so many
                let to = match pages.len().checked_sub(back + 1) {
                    Some(at) => pages[at].clone(),
                    None => next.unwrap_or_else(|| pages[0].clone()),
                };
                Some(format!("<{to}>; rel=\"next\""))
            });
            let failure = reader.read(0..600).await.unwrap_err();
            assert_eq!(failure.kind, ErrorKind::Decode, "{back} back of {seconds}");
            assert!(failure.to_string().contains("leads back"), "{failure}");
            assert!(reader.requests().len() < 60, "{back} back of {seconds}: {}", reader.requests().len());
            broken.store(false, Ordering::Relaxed);
            reader.read(0..600).await.unwrap();
            assert_eq!(i64::try_from(reader.sink.keys.len()).unwrap(), 3 * seconds);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_header_that_is_lost_now_and_then_or_garbled_loses_nothing() {
    type Garble = fn(&str) -> String;
    let garbled: [Garble; 4] = [
        |next| format!("{next}; rel=\"next\""),
        |next| format!("<{next}; rel=\"next\""),
        |_| "</style.css>; rel=preload".to_owned(),
        |_| String::new(),
    ];
    for every in [1, 2, 3] {
        for garble in garbled {
            for cap in [100, 60] {
                let mut fake = Fake::new(Bookmarks::Pairs, one_each(0..1500));
                fake.per_page_max = cap;
                let (mut reader, _) = relinked(fake, move |number, _, next| {
                    let current = "<http://canvas.test/x>; rel=\"current\"";
                    Some(match next {
                        Some(next) if number.is_multiple_of(every) => garble(&next),
                        Some(next) => format!("{current},<{next}>; rel=\"next\""),
                        None => current.to_owned(),
                    })
                });
                reader.read(0..1600).await.unwrap();
                assert_eq!(reader.sink.keys.len(), 1500);
                assert_eq!(reader.sink.kinds(), []);
                assert!(reader.requests().len() < 150, "{}", reader.requests().len());
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_answers_everything_alike_is_left_soon() {
    for (events, kinds) in [(9, vec![]), (36, vec![ErrorKind::Decode])] {
        let event = |n| json!({"id": n, "created_at": "2027-01-15T08:00:20Z", "event_type": "login"});
        let list = Value::Array((0..events).map(event).collect()).to_string();
        let mut reader = answering(move || Response::new(Body::from(list.clone())));
        reader.read(0..60).await.unwrap();
        assert_eq!((reader.sink.keys.len(), reader.sink.kinds()), (events, kinds));
        assert!(reader.requests().len() <= 9, "{}", reader.requests().len());
    }
}
