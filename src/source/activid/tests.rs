//! The source against a scripted service, and against the simulator's truth.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::post;

use super::token::tests::token;
use super::*;
use crate::api::Limits;
use crate::clock::Clock;
use crate::event::{self, EventLabels};
use crate::page::DocumentRecord;
use crate::settings::{Common, Secret};
use crate::simulate::{
    EventCall, Faults, Injection, Options, Scenario, ScenarioCall, TruthOf, World, credentials as sim,
};
use crate::source::Entry as _;
use crate::source::Taken;
use crate::stats::SourceStats;
use crate::transport::InMemory;

/// The tests' present: in the middle of a cell.
fn noon() -> DateTime<Utc> {
    "2026-03-04T12:02:00Z".parse().unwrap()
}

/// A moment in the cell that begins at 11:00.
fn at(ms: i64) -> DateTime<Utc> {
    "2026-03-04T11:00:00Z".parse::<DateTime<Utc>>().unwrap() + TimeDelta::milliseconds(ms)
}

/// So many whole cells from 11:00 on.
fn cells(count: i64) -> Window {
    Window { from: at(0), to: at(count * 300_000) }
}

// === a scripted service ===

#[derive(Clone)]
struct Event {
    at: DateTime<Utc>,
    token: String,
    payload: Value,
    tainted: bool,
}

#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "switches are independent of each other")]
struct Service {
    events: Vec<Event>,
    /// Its own limit; 0 is none.
    cap: usize,
    /// Times are cut to so many milliseconds, those of filters too; 0 is 1.
    tick_ms: i64,
    /// Times are kept to the microsecond.
    fine: bool,
    cannot_verify: bool,
    ignores_time: bool,
    /// Answers 400 `tooMany` beyond so many; 0 is never.
    too_many: usize,
    /// One more token that is none in every answer.
    garbage: bool,
    /// How it refuses every search that names an attribute; 0 is not at all.
    refuses_attributes: u16,
    /// What the next searches are answered, instead of events.
    statuses: Vec<u16>,
    token_status: u16,
    expires_in: u32,
    /// The filters and counts of all searches.
    searches: Vec<(String, u64)>,
    /// The credentials of all logins.
    logins: Vec<String>,
}

type Shared = Arc<Mutex<Service>>;

async fn give_token(State(service): State<Shared>, headers: http::HeaderMap, body: String) -> impl IntoResponse {
    let mut service = service.lock().unwrap();
    assert_eq!(body, "grant_type=client_credentials");
    service.logins.push(headers["authorization"].to_str().unwrap().to_owned());
    let status = StatusCode::from_u16(if service.token_status == 0 { 200 } else { service.token_status }).unwrap();
    let body = if status.is_success() {
        json!({"access_token": format!("bearer{}", service.logins.len()), "expires_in": service.expires_in.max(60)})
    } else {
        json!({"error": "invalid_client"})
    };
    (status, body.to_string())
}

async fn search(State(service): State<Shared>, headers: http::HeaderMap, body: Bytes) -> impl IntoResponse {
    let mut service = service.lock().unwrap();
    assert_eq!(headers["content-type"], "application/scim+json");
    assert_eq!(headers["accept"], "application/scim+json, application/json");
    assert_eq!(headers["authorization"], format!("Bearer bearer{}", service.logins.len()));
    let ask: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(ask["schemas"][0], "urn:ietf:params:scim:api:messages:2.0:SearchRequest");
    let filter = ask["filter"].as_str().unwrap().to_owned();
    let count = ask["count"].as_u64().unwrap();
    service.searches.push((filter.clone(), count));
    let error = |status: u16, scim_type: &str| {
        let body = json!({"schemas": ["urn:ietf:params:scim:api:messages:2.0:Error"], "status": status.to_string(),
            "scimType": scim_type, "detail": "no, thank you"});
        (StatusCode::from_u16(status).unwrap(), body.to_string())
    };
    if !service.statuses.is_empty() {
        let status = service.statuses.remove(0);
        return error(status, "invalidValue");
    }
    let (fine, tick_ms) = (service.fine, service.tick_ms.max(1));
    let cut = |at: DateTime<Utc>| if fine { at.timestamp_micros() } else { at.timestamp_millis().div_euclid(tick_ms) };
    let (mut after, mut before, mut verify) = (i64::MIN, i64::MAX, false);
    let mut attributes = Vec::new();
    for clause in filter.split(" and ") {
        match clause.split(' ').collect::<Vec<_>>()[..] {
            ["meta.created", "gt", time] => after = cut(time.parse().unwrap()),
            ["meta.created", "lt", time] => before = cut(time.parse().unwrap()),
            ["verify", "eq", "true"] => verify = true,
            [name, "eq", value] => attributes.push((name.to_owned(), value.trim_matches('"').to_owned())),
            _ => return error(400, "invalidFilter"),
        }
    }
    if verify && service.cannot_verify {
        return error(400, "invalidFilter");
    }
    if !attributes.is_empty() && service.refuses_attributes > 0 {
        return error(service.refuses_attributes, "invalidFilter");
    }
    let matches = |event: &&Event| {
        let time = service.ignores_time || (after < cut(event.at) && cut(event.at) < before);
        time && attributes.iter().all(|(name, value)| {
            let held = if name == "type" { &event.payload["type"] } else { &event.payload["values"][name] };
            held == value
        })
    };
    let mut found: Vec<&Event> = service.events.iter().filter(matches).collect();
    if service.too_many > 0 && found.len() > service.too_many {
        return error(400, "tooMany");
    }
    let cap = if service.cap == 0 { usize::MAX } else { service.cap };
    found.truncate(cap.min(usize::try_from(count).unwrap()));
    let mut tokens: Vec<&str> = found.iter().map(|event| event.token.as_str()).collect();
    if service.garbage {
        tokens.insert(0, "e30.bm90IGpzb24.");
    }
    let mut list = json!({"schemas": ["urn:ietf:params:scim:api:messages:2.0:EventList"], "eventTokens": tokens});
    if verify && found.iter().any(|event| event.tainted) {
        list["tainted"] = json!(true);
    }
    (StatusCode::OK, list.to_string())
}

fn router(service: &Shared) -> Router {
    Router::new()
        .route("/idp/ACME/authn/token", post(give_token))
        .route("/scim/ACME/v2/Event/.search", post(search))
        .with_state(Arc::clone(service))
}

// === a reader and its book ===

/// What the frame and the ledger make of pages, as far as it matters here.
#[derive(Default)]
struct Book {
    seen: HashSet<(DateTime<Utc>, EventKey)>,
    events: BTreeMap<EventLabels, u64>,
    ignored: u64,
    rejected: u64,
    tainted: u64,
    pages: usize,
    last_tainted: Option<bool>,
    reports: Vec<Failure>,
    at: Vec<Option<DateTime<Utc>>>,
}

impl Book {
    fn total(&self) -> u64 {
        self.events.values().sum()
    }
}

#[async_trait]
impl Sink for Book {
    async fn page(&mut self, page: Page) -> Result<Taken, Failure> {
        self.pages += 1;
        if page.facts.tainted.is_some() {
            self.last_tainted = page.facts.tainted;
        }
        let inside = page.items.len();
        for item in page.items {
            let filed_at = item.filed_at.unwrap();
            assert_eq!(filed_at, floor(filed_at, CELL), "filed at the start of a cell");
            if let What::Tainted { candidates } = item.what {
                assert!(candidates.contains(&item.key));
                if !candidates.iter().any(|candidate| self.seen.contains(&(filed_at, *candidate))) {
                    self.seen.insert((filed_at, item.key));
                    self.tainted += 1;
                }
            } else if self.seen.insert((filed_at, item.key)) {
                match item.what {
                    What::Event(labels) => {
                        self.at.push(item.at);
                        *self.events.entry(labels).or_default() += 1;
                    }
                    What::Ignored => self.ignored += 1,
                    _ => self.rejected += 1,
                }
            }
        }
        Ok(Taken { inside, ..Taken::default() })
    }

    fn report(&mut self, failure: Failure) {
        self.reports.push(failure);
    }

    fn document(&mut self, _: &EventKey) -> Option<DocumentRecord> {
        None
    }
}

struct Rig {
    service: Shared,
    source: Box<dyn Source>,
    api: Api,
    book: Book,
}

fn config(client_id: &str, secret: Secret) -> Settings {
    Settings {
        base_url: "http://activid.example.com/".parse().unwrap(),
        tenant: "ACME".into(),
        token_url: "http://activid.example.com/idp/ACME/authn/token".parse().unwrap(),
        client_id: client_id.into(),
        client_secret: secret,
        verify: true,
    }
}

fn client(router: Router, dialect: Box<dyn Dialect>) -> Api {
    let limits = Limits {
        requests: 120,
        per: Duration::from_mins(1),
        burst: 1,
        timeout: Duration::from_secs(30),
        max_response_bytes: 64 << 20,
    };
    let stats = Arc::new(SourceStats::default());
    Api::new(Arc::new(InMemory(router)), dialect, limits, stats, Clock::starting_at(noon()), 1)
}

fn rig_with(change: impl FnOnce(&mut Settings, &mut Common)) -> Rig {
    let service = Shared::default();
    let mut activid = config("audit", Secret::text("s:cret%"));
    let mut common = (SERVICE.defaults)();
    change(&mut activid, &mut common);
    let (source, dialect) = activid.build(&common);
    Rig { api: client(router(&service), dialect), service, source, book: Book::default() }
}

fn rig() -> Rig {
    rig_with(|_, _| {})
}

impl Rig {
    fn service(&self) -> std::sync::MutexGuard<'_, Service> {
        self.service.lock().unwrap()
    }

    fn add(&self, at: DateTime<Utc>, payload: Value, tainted: bool) {
        let event = Event { at, token: token(&payload), payload, tainted };
        self.service().events.push(event);
    }

    /// An event unlike all others.
    fn other(&self, at: DateTime<Utc>) {
        let n = self.service().events.len();
        self.add(at, json!({"type": "deleteUser", "values": {"correlationId": n.to_string()}}), false);
    }

    /// One that is tainted.
    fn tainted(&self, at: DateTime<Utc>) {
        let n = self.service().events.len();
        self.add(at, json!({"type": "changeUserPassword", "values": {"correlationId": n.to_string()}}), true);
    }

    async fn read(&mut self, window: Window) {
        self.try_read(window).await.unwrap();
    }

    async fn try_read(&mut self, window: Window) -> Result<(), Failure> {
        self.source.read(window, &self.api, &mut self.book).await
    }

    /// How many searches a reading takes.
    async fn searches(&mut self, window: Window) -> usize {
        let before = self.service().searches.len();
        self.read(window).await;
        self.service().searches.len() - before
    }
}

fn typed(name: &str) -> Value {
    json!({"type": name, "values": {"status": "RESPONSE_SUCCESS", "directUser": "alice"}})
}

// === identity ===

#[tokio::test(start_paused = true)]
async fn equal_events_are_as_many_and_reading_again_adds_none() {
    let mut rig = rig();
    for ms in [1, 1, 250_000] {
        rig.add(at(ms), typed("deleteUser"), false);
    }
    rig.add(at(2), typed("createUser"), false);
    for _ in 0..3 {
        rig.read(cells(2)).await;
        assert_eq!(rig.book.total(), 4);
        assert_eq!(rig.book.events.values().max(), Some(&3));
    }
    // an equal one that comes late, or in another cell, is one more
    rig.add(at(3), typed("deleteUser"), false);
    rig.add(at(300_000), typed("deleteUser"), false);
    rig.read(cells(2)).await;
    assert_eq!(rig.book.total(), 6);
    assert!(rig.book.at.iter().all(Option::is_none), "nothing says when they happened");
}

#[tokio::test(start_paused = true)]
async fn a_late_event_is_counted_when_its_old_cell_is_read_again() {
    let mut rig = rig();
    rig.other(at(10));
    rig.read(cells(1)).await;
    rig.other(at(5));
    rig.read(cells(1)).await;
    assert_eq!(rig.book.total(), 2);
}

#[tokio::test(start_paused = true)]
async fn events_on_the_edges_of_cells_are_counted_once_in_their_own() {
    let mut rig = rig();
    for ms in [-1, 0, 1, 299_999, 300_000, 300_001, 599_999, 600_000] {
        rig.add(at(ms), typed("deleteUser"), false);
    }
    rig.read(cells(1)).await;
    assert_eq!(rig.book.total(), 3);
    rig.read(cells(2)).await;
    assert_eq!(rig.book.total(), 6);
    rig.read(Window { from: at(-300_000), to: at(900_000) }).await;
    assert_eq!(rig.book.total(), 8);
    let service = rig.service();
    assert_eq!(
        service.searches[0],
        (
            "meta.created gt 2026-03-04T10:59:59.999Z and meta.created lt 2026-03-04T11:05:00.000Z and verify eq true"
                .to_owned(),
            1000
        )
    );
}

#[tokio::test(start_paused = true)]
async fn ignored_and_rejected_ones_are_counted_as_that_once() {
    let mut rig = rig_with(|_, common| common.ignore_actors = vec!["alice".into()]);
    rig.add(at(0), typed("deleteUser"), false);
    rig.other(at(1));
    let garbage = Event { at: at(2), token: "e30.bm90NHUybm8.".into(), payload: Value::Null, tainted: false };
    rig.service().events.extend([garbage.clone(), garbage]);
    for _ in 0..2 {
        rig.read(cells(1)).await;
        assert_eq!((rig.book.total(), rig.book.ignored, rig.book.rejected), (1, 1, 2));
    }
}

#[tokio::test(start_paused = true)]
async fn an_events_own_time_is_taken_where_it_lies_in_its_cell() {
    let mut rig = rig();
    for ms in [7, 300_007] {
        rig.add(at(7), json!({"type": "deleteUser", "meta": {"created": at(ms)}}), false);
    }
    rig.read(cells(1)).await;
    rig.book.at.sort_unstable();
    assert_eq!(rig.book.at, [None, Some(at(7))]);
}

// === completeness ===

#[tokio::test(start_paused = true)]
async fn a_full_answer_is_halved_until_nothing_is_missing() {
    let mut rig = rig_with(|_, common| common.page_size = std::num::NonZeroU32::new(20));
    for n in 0..150 {
        rig.other(at(n * 1900));
        // some within one second
        rig.other(at(60_000 + n));
    }
    rig.read(cells(1)).await;
    assert_eq!(rig.book.total(), 300);
    rig.read(cells(1)).await;
    assert_eq!(rig.book.total(), 300);
    assert!(rig.book.reports.is_empty());
}

#[tokio::test(start_paused = true)]
async fn times_finer_than_a_millisecond_double_nothing() {
    for page_size in [1000, 7] {
        let mut rig = rig_with(|_, common| common.page_size = std::num::NonZeroU32::new(page_size));
        rig.service().fine = true;
        let moment = |ms, microseconds| at(ms) + TimeDelta::microseconds(microseconds);
        for n in 0..5 {
            rig.add(moment(60_000, 400), typed("deleteUser"), n == 3); // equal ones at one instant
            rig.other(moment(60_000, 400));
            rig.other(moment(61_000, 2 * n));
            rig.add(moment(62_000, 999), typed("createUser"), false);
        }
        for n in 0..50 {
            rig.other(moment(100_000, 1300 * n));
            rig.add(moment(149_999, 20 * n), typed("createUser"), false); // on both sides of the first cut
        }
        for _ in 0..3 {
            rig.read(cells(1)).await;
            assert_eq!((rig.book.total(), rig.book.tainted), (120, 1), "pages of {page_size}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn keys_are_the_same_whether_a_cell_was_halved_or_not() {
    let mut split = rig_with(|_, common| common.page_size = std::num::NonZeroU32::new(3));
    for n in 0..40 {
        split.add(at(n * n * 180), typed(["deleteUser", "createUser"][usize::from(n % 3 == 0)]), n == 7);
    }
    split.read(cells(1)).await;
    let mut whole = rig();
    whole.service().events = split.service().events.clone();
    whole.read(cells(1)).await;
    assert_eq!((split.book.total(), split.book.tainted), (40, 1));
    assert_eq!(split.book.seen, whole.book.seen);
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_the_service_below_what_was_asked_for_is_noticed() {
    for cap in [7, 50, 128, 200] {
        let mut rig = rig();
        rig.service().cap = cap;
        for n in 0..700 {
            // not spread evenly: one half of the cell stays empty
            rig.other(at(n * 150));
            rig.other(at(600_000 + n * 20));
        }
        rig.read(cells(3)).await;
        assert_eq!(rig.book.total(), 1400, "{cap}");
        let first = rig.service().searches.len();
        assert!(rig.searches(cells(3)).await < first, "{cap}: what was learnt is remembered");
        assert_eq!(rig.book.total(), 1400, "{cap}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cell_that_grows_to_the_limit_and_beyond_loses_nothing() {
    let mut rig = rig();
    rig.service().cap = 20;
    for n in 0..30 {
        rig.other(at(n * 7_000));
        rig.read(cells(1)).await;
        assert_eq!(rig.book.total(), u64::try_from(n).unwrap() + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn no_limit_is_learnt_from_events_that_merely_came() {
    let mut learnt = Learnt::default();
    let answer = |len| Answer { len, count: 1000, ..Answer::default() };
    let mut judge = |len| {
        let mut answer = answer(len);
        learnt.judge(&mut answer);
        (answer.full, answer.suspect)
    };
    assert_eq!(judge(3), (false, false), "too few to tell");
    assert_eq!(judge(40), (false, true), "the longest so far");
    assert_eq!(judge(39), (false, false), "a longer one has been seen");
    assert_eq!(judge(40), (false, true), "as long as the longest");
    assert_eq!(judge(90), (false, true));
    assert_eq!(judge(50), (false, true), "a round number");
    assert_eq!(judge(1000), (true, false));
    learnt.cap = Some(60);
    let mut judge = |len| {
        let mut answer = answer(len);
        learnt.judge(&mut answer);
        answer.full
    };
    assert!(judge(60) && !judge(59));
    assert!(!judge(61), "then it is no limit");
    assert!(!judge(60));
}

#[tokio::test(start_paused = true)]
async fn more_events_of_one_millisecond_than_can_be_had_are_reported_as_truncated() {
    let mut rig = rig_with(|_, common| common.page_size = std::num::NonZeroU32::new(10));
    for _ in 0..30 {
        rig.other(at(77));
    }
    rig.other(at(5_000));
    rig.read(cells(1)).await;
    assert_eq!(rig.book.total(), 31, "a larger count helps");
    assert!(rig.book.reports.is_empty());
    rig.service().cap = 10;
    for n in 0..12 {
        rig.other(at(100_000 + n));
        rig.other(at(90_000));
    }
    rig.read(cells(1)).await;
    assert_eq!(rig.book.total(), 31 + 12 + 10, "what came is counted");
    assert_eq!(rig.book.reports.len(), 2, "one for each such moment: {:?}", rig.book.reports);
    assert!(rig.book.reports.iter().all(|report| report.kind == ErrorKind::Truncated));
}

#[tokio::test(start_paused = true)]
async fn a_clock_of_whole_seconds_loses_nothing_when_a_second_is_full() {
    let mut rig = rig_with(|_, common| common.page_size = std::num::NonZeroU32::new(10));
    rig.service().tick_ms = 1000;
    for n in 0..25 {
        rig.other(at(77_000 + n));
        rig.other(at(n * 3_000));
    }
    rig.read(cells(1)).await;
    assert_eq!(rig.book.total(), 50);
    assert!(rig.book.reports.is_empty(), "{:?}", rig.book.reports);
}

#[tokio::test(start_paused = true)]
async fn too_many_is_halved_like_a_full_answer() {
    let mut rig = rig();
    rig.service().too_many = 8;
    for n in 0..60 {
        rig.other(at(n * 4_999));
    }
    rig.read(cells(1)).await;
    assert_eq!(rig.book.total(), 60);
}

#[tokio::test(start_paused = true)]
async fn garbage_in_every_answer_disturbs_no_count() {
    let mut rig = rig();
    rig.service().garbage = true;
    rig.service().cap = 30;
    for n in 0..100 {
        rig.other(at(n * 2_500));
    }
    rig.tainted(at(9_999));
    for _ in 0..2 {
        rig.read(cells(1)).await;
        assert_eq!((rig.book.total(), rig.book.tainted), (101, 1));
        assert!(rig.book.rejected > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_ignores_the_time_filter_is_an_error_and_nothing_is_counted() {
    let mut rig = rig();
    rig.service().ignores_time = true;
    rig.other(at(0));
    let failure = rig.try_read(cells(2)).await.unwrap_err();
    assert_eq!(failure.kind, ErrorKind::Decode);
    assert!(failure.to_string().contains("meta.created"), "{failure}");
    assert_eq!((rig.book.total(), rig.book.pages), (0, 0));
}

// === integrity ===

#[tokio::test(start_paused = true)]
async fn a_tainted_record_is_found_and_counted_once() {
    let mut rig = rig();
    for n in 0..60 {
        rig.other(at(n * 4_900));
    }
    rig.tainted(at(123_456));
    let first = rig.searches(cells(1)).await;
    for _ in 0..3 {
        let again = rig.searches(cells(1)).await;
        assert!(again * 2 < first, "{again} of {first}");
        assert_eq!((rig.book.total(), rig.book.tainted, rig.book.last_tainted), (61, 1, Some(true)));
    }
    // after a restart, too
    let (source, _) = config("audit", Secret::text("s:cret%")).build(&(SERVICE.defaults)());
    rig.source = source;
    rig.other(at(123_457));
    rig.read(cells(1)).await;
    assert_eq!((rig.book.total(), rig.book.tainted), (62, 1));
    rig.read(Window { from: at(300_000), to: at(600_000) }).await;
    assert_eq!(rig.book.last_tainted, Some(false), "this window is clean");
}

#[tokio::test(start_paused = true)]
async fn every_tainted_record_of_a_cell_is_found_also_when_one_comes_later() {
    let mut rig = rig();
    for n in 0..40 {
        rig.other(at(n * 7_000));
    }
    rig.tainted(at(20_000));
    rig.tainted(at(20_001));
    rig.read(cells(1)).await;
    assert_eq!(rig.book.tainted, 2);
    // beside, between and at the very moment of what is known
    for (ms, count) in [(250_000, 3), (19_990, 4), (20_001, 5)] {
        rig.tainted(at(ms));
        rig.read(cells(1)).await;
        assert_eq!(rig.book.tainted, count, "{ms}");
        rig.read(cells(1)).await;
        assert_eq!(rig.book.tainted, count, "{ms}");
    }
    assert_eq!(rig.book.total(), 45);
}

#[tokio::test(start_paused = true)]
async fn a_clean_event_at_the_moment_of_a_tainted_one_is_not_taken_for_it() {
    let mut rig = rig();
    rig.tainted(at(20_000));
    rig.read(cells(1)).await;
    rig.other(at(20_000));
    rig.read(cells(1)).await;
    assert_eq!((rig.book.total(), rig.book.tainted), (2, 1));
    let searches = &rig.service().searches;
    assert!(searches.iter().any(|(filter, _)| filter.contains(" and type eq \"changeUserPassword\" and verify")));
}

#[tokio::test(start_paused = true)]
async fn garbage_beside_a_tainted_record_is_not_another_one_when_it_is_gone() {
    for n in 0..8 {
        let mut rig = rig();
        rig.tainted(at(20_000));
        // three letters each time, and no JSON
        let payload = json!({"type": "changeUserPassword", "values": {"correlationId": "0"}});
        let garbage = Event { at: at(20_000), token: format!("e30.bm9{n}."), payload, tainted: false };
        rig.service().events.push(garbage);
        rig.read(cells(1)).await;
        rig.service().events.pop();
        rig.read(cells(1)).await;
        assert_eq!((rig.book.total(), rig.book.tainted), (1, 1), "{n}");
    }
}

#[tokio::test(start_paused = true)]
async fn equal_tainted_records_at_different_times_are_two() {
    let mut rig = rig();
    for ms in [5, 200_000] {
        rig.add(at(ms), typed("deleteUser"), true);
        rig.add(at(ms + 1), typed("deleteUser"), false);
    }
    for _ in 0..2 {
        rig.read(cells(1)).await;
        assert_eq!((rig.book.total(), rig.book.tainted), (4, 2));
    }
}

#[tokio::test(start_paused = true)]
async fn where_the_record_cannot_be_singled_out_the_taint_still_counts_once() {
    for refuses_attributes in [400, 500, 0] {
        let mut rig = rig();
        rig.service().refuses_attributes = refuses_attributes;
        for name in ["deleteUser", "create\"User", "create*", "create\\"] {
            rig.add(at(7), typed(name), name == "create*");
        }
        for n in 0..3 {
            rig.read(cells(1)).await;
            assert_eq!((rig.book.total(), rig.book.tainted), (4 + n, 1));
            rig.other(at(7));
        }
        let searches = &rig.service().searches;
        assert!(searches.iter().all(|(filter, _)| !filter.contains(['*', '\\'])));
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_that_is_tainted_everywhere_is_still_read() {
    let mut rig = rig();
    for n in 0..600 {
        rig.tainted(at(n * 2_400));
    }
    let window = cells(5);
    assert!(rig.searches(window).await < 5 + usize::try_from(TAINT_SEARCHES_MAX).unwrap() + 50);
    assert_eq!(rig.book.total(), 600);
    let found = rig.book.tainted;
    assert!(found > 20, "{found}");
    rig.read(window).await;
    assert_eq!((rig.book.total(), rig.book.tainted), (600, found));
}

#[tokio::test(start_paused = true)]
async fn without_verify_nothing_is_said_of_integrity() {
    let mut rig = rig_with(|activid, _| activid.verify = false);
    rig.tainted(at(5));
    rig.read(cells(1)).await;
    assert_eq!((rig.book.total(), rig.book.tainted, rig.book.last_tainted), (1, 0, None));
    assert!(rig.service().searches.iter().all(|(filter, _)| !filter.contains("verify")));
    let spec = rig.source.spec();
    assert!(!spec.signals.integrity && !spec.catalogue.integrity);
}

#[tokio::test(start_paused = true)]
async fn a_service_without_the_integrity_check_says_what_to_do() {
    let mut rig = rig();
    rig.service().cannot_verify = true;
    let failure = rig.try_read(cells(1)).await.unwrap_err();
    assert_eq!(failure.kind, ErrorKind::Server);
    assert!(failure.to_string().contains("set verify: false"), "{failure}");
    assert_eq!(rig.service().searches.len(), 2, "it is not asked again and again");
}

// === sessions and errors ===

#[tokio::test(start_paused = true)]
async fn id_and_secret_are_encoded_and_a_new_secret_is_read_at_the_next_login() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, "one:\n").unwrap();
    let mut rig = rig_with(|activid, _| activid.client_secret = Secret::file(&path));
    rig.read(cells(1)).await;
    std::fs::write(&path, "two+").unwrap();
    rig.service().statuses = vec![401];
    rig.read(cells(1)).await;
    let expected = ["audit:one%3A", "audit:two%2B"].map(|pair| {
        use base64::Engine;
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
    });
    assert_eq!(rig.service().logins, expected);
}

#[tokio::test(start_paused = true)]
async fn a_token_is_renewed_in_time_and_once_when_it_is_refused() {
    let mut rig = rig();
    rig.service().expires_in = 100;
    rig.other(at(0));
    rig.read(cells(1)).await;
    tokio::time::sleep(Duration::from_secs(95)).await;
    rig.read(cells(1)).await;
    assert_eq!(rig.service().logins.len(), 2, "renewed before it ends");
    rig.service().statuses = vec![401, 401, 401];
    let failure = rig.try_read(cells(1)).await.unwrap_err();
    assert_eq!(failure.kind, ErrorKind::Auth);
    assert_eq!(rig.service().logins.len(), 3);
    assert_eq!(rig.book.total(), 1);
}

#[tokio::test(start_paused = true)]
async fn refusals_are_what_they_are_and_show_no_event() {
    for (token_status, statuses, kind) in [
        (400, vec![], ErrorKind::Auth),
        (401, vec![], ErrorKind::Auth),
        (200, vec![403], ErrorKind::Forbidden),
        (200, vec![400, 400], ErrorKind::Server),
        (200, vec![500, 500, 500, 500], ErrorKind::Server),
        (200, vec![404], ErrorKind::NotFound),
    ] {
        let mut rig = rig();
        rig.service().token_status = token_status;
        rig.service().statuses = statuses.clone();
        rig.other(at(0));
        let failure = rig.try_read(cells(1)).await.unwrap_err();
        assert_eq!((failure.kind, failure.at_login), (kind, token_status != 200), "{token_status} {statuses:?}");
        let shown = failure.to_string();
        assert!(!shown.contains("e30") && !shown.contains("eyJ") && !shown.contains("bearer"), "{shown}");
        if statuses == [400, 400] {
            assert!(shown.contains("no, thank you") && !shown.contains("verify: false"), "{shown}");
        }
    }
}

async fn parsed(body: &'static str) -> Result<Answer, ErrorKind> {
    let router = Router::new()
        .route("/scim/ACME/v2/Event/.search", post(move || async move { body }))
        .route("/idp/ACME/authn/token", post(|| async { r#"{"access_token":"x"}"# }));
    let common = (SERVICE.defaults)();
    let (_, dialect) = config("audit", Secret::text("x")).build(&common);
    let api = client(router, dialect);
    let search = Search {
        url: "http://activid.example.com/scim/ACME/v2/Event/.search".parse().unwrap(),
        count: 10,
        verify: true,
        ignore: Ignore::default(),
    };
    match search.ask(&api, cells(1), 10, true, "").await {
        Ok(Found::Events(answer)) => Ok(answer),
        Ok(_) => unreachable!(),
        Err(failure) => {
            assert!(!failure.to_string().contains("c2VjcmV0"), "{failure}");
            Err(failure.kind)
        }
    }
}

#[tokio::test(start_paused = true)]
async fn only_an_event_list_is_an_answer() {
    for (body, expected) in [
        (
            r#"{"schemas":["urn:ietf:params:scim:api:messages:2.0:EventList"],"eventTokens":["e30.e30."]}"#,
            Some((1, false)),
        ),
        (r#"{"schemas":["urn:ietf:params:scim:api:messages:2.0:EventList"]}"#, Some((0, false))),
        (r#"{"schemas":["urn:ietf:params:scim:api:messages:2.0:EventList"],"eventTokens":null}"#, Some((0, false))),
        (r#"{"eventTokens":[7, "e30.e30."],"tainted":true}"#, Some((2, true))),
        (r#"{"eventTokens":[7, null],"tainted":true}"#, None),
        (r#"{"eventTokens":[],"tainted":"true","totalResults":0}"#, Some((0, true))),
        (r#"{"eventTokens":[],"tainted":null}"#, Some((0, false))),
        ("{}", None),
        ("", None),
        ("<html>c2VjcmV0</html>", None),
        (r#"{"eventTokens":"c2VjcmV0"}"#, None),
        (r#"{"eventTokens":["e30.c2VjcmV0."#, None),
        (r#"["c2VjcmV0"]"#, None),
    ] {
        let answer = parsed(body).await;
        assert_eq!(answer.ok().map(|answer| (answer.len, answer.tainted)), expected, "{body}");
    }
    assert_eq!(parsed("{}").await.err(), Some(ErrorKind::Decode));
}

// === catalogue ===

#[test]
fn every_documented_label_set_exists_from_the_start() {
    let (source, _) = config("audit", Secret::text("x")).build(&(SERVICE.defaults)());
    let spec = source.spec();
    let has = |category: &str, action: &str, outcome| {
        spec.catalogue.events.iter().any(|labels| {
            (labels.category.as_str(), labels.action.as_str(), labels.outcome) == (category, action, outcome)
        })
    };
    for outcome in OUTCOMES {
        for (category, action) in [
            ("authentication", "login"),
            ("authentication", "logout"),
            ("role", "create"),
            ("user", "create"),
            ("user_password", "update"),
            ("role_function_set_privilege", "create"),
        ] {
            assert!(has(category, action, outcome), "{category} {action}");
        }
    }
    let logins: HashSet<_> = spec.catalogue.events.iter().map(|labels| labels.class).collect();
    assert!(logins.contains(&Class::Login(Principal::User)) && logins.contains(&Class::Login(Principal::Device)));
    assert!(spec.catalogue.integrity && spec.signals.integrity && spec.signals.login_failure);
}

// === the simulator's truth ===

fn simulated(rate: f64, faults: &str) -> (World, Box<dyn Source>, Api) {
    let mut switches = Faults::default();
    if !faults.is_empty() {
        switches.set(&format!("activid:{faults}")).unwrap();
    }
    let world = World::new(Options {
        seed: 11,
        clock: Clock::starting_at(noon()),
        history: Duration::from_hours(1) + Duration::from_mins(30),
        day: Duration::from_hours(24),
        rate,
        faults: switches,
        quiet: false,
    });
    let mut activid = config(sim::ACTIVID_CLIENT_ID, Secret::text(sim::ACTIVID_CLIENT_SECRET));
    activid.tenant = sim::TENANT.into();
    let (source, dialect) = activid.build(&(SERVICE.defaults)());
    (world.clone(), source, client(world.router(), dialect))
}

async fn conserves(rate: f64, skew_seconds: i64, faults: &str) {
    let (world, mut source, api) = simulated(rate, faults);
    let tainted = |ms: i64| {
        let at = Some(at(ms));
        world.inject(&Injection::Scenario(ScenarioCall {
            name: Scenario::TaintedRecord,
            system: None,
            count: None,
            at,
            seconds: 0,
        }));
    };
    for ms in [600_000, 600_000, 1_800_000, 3_599_999] {
        tainted(ms);
    }
    let mut book = Book::default();
    // an hour of the service's own time, read over and over while late events come in; where its
    // clock is ahead, the hour ends about now
    let skew = TimeDelta::seconds(skew_seconds);
    let from = floor(at(0) + skew, CELL);
    let window = Window { from, to: from + TimeDelta::hours(1) };
    for _ in 0..5 {
        // a fault may end a reading
        let _ = source.read(window, &api, &mut book).await;
        tokio::time::sleep(Duration::from_mins(1)).await;
    }
    let new = Injection::Event(EventCall {
        count: Some(2),
        at: Some(at(1_234_567)),
        ..serde_json::from_value(json!({"system": "activid", "verb": "deleteUser", "status": "RESPONSE_FAILURE",
            "category": "user", "action": "delete", "outcome": "failure"}))
        .unwrap()
    });
    world.inject(&new);
    let mut skew_only = Faults::default();
    skew_only.set(&format!("activid:clock_skew_seconds={skew_seconds}")).unwrap();
    world.set_faults(skew_only);
    source.read(window, &api, &mut book).await.unwrap();
    let truth =
        world.truth_of(&TruthOf { from: Some(window.from - skew), to: Some(window.to - skew), ..TruthOf::default() });
    let counted: BTreeMap<(event::System, String, String, Outcome), u64> = book
        .events
        .iter()
        .map(|(labels, count)| {
            let (category, action) = (labels.category.to_string(), labels.action.to_string());
            ((SYSTEM, category, action, labels.outcome), *count)
        })
        .fold(BTreeMap::new(), |mut all, (key, count)| {
            *all.entry(key).or_default() += count;
            all
        });
    let expected: BTreeMap<_, _> = truth.events.into_iter().filter(|((system, ..), _)| *system == SYSTEM).collect();
    assert!(expected.values().sum::<u64>() > 100);
    assert_eq!(counted, expected, "{rate} {faults}");
    let logins: BTreeMap<_, u64> = book.events.iter().fold(BTreeMap::new(), |mut all, (labels, count)| {
        if let Class::Login(principal) = labels.class {
            *all.entry((SYSTEM, principal, labels.outcome)).or_default() += count;
        }
        all
    });
    let expected_logins: BTreeMap<_, _> =
        truth.logins.into_iter().filter(|((system, ..), _)| *system == SYSTEM).collect();
    assert_eq!(logins, expected_logins);
    assert_eq!(book.tainted, truth.tainted[&SYSTEM], "{rate} {faults}");
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_the_simulated_service_is_counted_exactly() {
    conserves(0.1, 0, "").await;
}

#[tokio::test(start_paused = true)]
async fn a_busy_hour_behind_a_low_limit_is_counted_exactly() {
    conserves(0.4, 0, "count_cap=13").await;
}

#[tokio::test(start_paused = true)]
async fn an_hour_with_everything_going_wrong_is_counted_exactly() {
    let faults = "throttle=0.05,retry_after=1,unavailable=0.05,expire_every=7,malformed=0.2,truncated=0.02";
    conserves(0.1, 0, faults).await;
}

#[tokio::test(start_paused = true)]
async fn a_window_that_our_clock_has_not_reached_is_read_all_the_same() {
    // as a gap is after a restart, where it is not known yet that the service's clock is ahead
    let (world, mut source, api) = simulated(0.1, "clock_skew_seconds=7200");
    let skew = TimeDelta::hours(2);
    let to = floor(api.now() + skew - TimeDelta::minutes(10), CELL);
    let window = Window { from: to - TimeDelta::hours(1), to };
    let mut book = Book::default();
    source.read(window, &api, &mut book).await.unwrap();
    let of = TruthOf { from: Some(window.from - skew), to: Some(window.to - skew), ..TruthOf::default() };
    let happened = world.truth_of(&of).total(SYSTEM);
    assert!(happened > 50);
    assert_eq!(book.events.values().sum::<u64>(), happened);
}

#[tokio::test(start_paused = true)]
async fn a_service_whose_clock_is_wrong_is_read_by_its_own_time() {
    conserves(0.1, 930, "clock_skew_seconds=930").await;
    conserves(0.1, -930, "clock_skew_seconds=-930").await;
}

#[tokio::test(start_paused = true)]
async fn ordinary_polls_take_few_more_searches_than_there_are_cells() {
    let (world, mut source, api) = simulated(0.1, "");
    let mut book = Book::default();
    let mut cells = 0;
    for _ in 0..60 {
        let to = floor(world.now(), CELL) + delta(CELL);
        let from = floor(world.now() - TimeDelta::minutes(10), CELL);
        cells += usize::try_from((to - from).num_minutes() / 5).unwrap();
        source.read(Window { from, to }, &api, &mut book).await.unwrap();
        tokio::time::sleep(Duration::from_mins(1)).await;
    }
    let searches = world.requests(SYSTEM).iter().filter(|request| !request.login).count();
    let probes = 60;
    assert!(searches < probes + cells * 3 / 2, "{searches} searches for {cells} cells");
}
