//! The source against a scripted service: which events are the same (`identity.rs`), full answers (`completeness.rs`),
//! tainted records (`integrity.rs`), tokens (`sessions.rs`), answers and refusals (`answers.rs`); and against the
//! simulator's truth (`simulated.rs`).

mod answers;
mod completeness;
mod identity;
mod integrity;
mod sessions;
mod simulated;

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
