//! The source with a real ledger, against scripted answers: the session (`sessions.rs`), the lists of files
//! (`lists.rs`), which hours are read again (`hours.rs`), the files themselves (`files.rs`); and against the simulated
//! service (`simulated.rs`).

mod files;
mod hours;
mod lists;
mod sessions;
mod simulated;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::stream;
use serde_json::{Value, json};

use super::*;
use crate::api::Limits;
use crate::clock::Clock;
use crate::event::{Item, SourceName, What};
use crate::ledger::{Book, Commit, Counter, Ledger, SeriesKey};
use crate::page::Feed;
use crate::settings::Secret;
use crate::simulate::{Faults, Options, World};
use crate::source::Entry as _;
use crate::source::Taken;
use crate::source::list::Raw;
use crate::stats::SourceStats;
use crate::transport::InMemory;

const TOKEN: &str = "/token";
const IMPRESSIONS: &str = "/api/cal/v1/downloads?subscriptionName=impressions";
const BIDS: &str = "/api/cal/v1/downloads?subscriptionName=bid%20events";
const BID_PARTS: &str = "/api/cal/v1/downloads/bidevents";

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn start() -> DateTime<Utc> {
    at("2026-03-04T12:00:00Z")
}

// === a service that answers what it is told to ===

#[derive(Clone)]
enum Answer {
    Json(Value),
    Status(u16),
    Bytes(Vec<u8>),
    /// Said to be packed like this.
    Encoded(&'static str, Vec<u8>),
    /// The connection breaks after these.
    Broken(Vec<u8>),
    /// A byte each second.
    Slow(Vec<u8>),
}

#[derive(Clone)]
struct Service {
    answers: Arc<Mutex<BTreeMap<String, Answer>>>,
    asked: Arc<Mutex<Vec<String>>>,
    /// The accepted keys; any if empty.
    keys: Arc<Mutex<Vec<String>>>,
}

impl Service {
    /// One that lists nothing.
    fn new() -> Self {
        let service = Self { answers: Arc::default(), asked: Arc::default(), keys: Arc::default() };
        service.set(TOKEN, token(3600, 3600));
        for list in [IMPRESSIONS, BIDS, BID_PARTS] {
            service.list(list, json!([]));
        }
        service
    }

    fn set(&self, path: &str, answer: Answer) {
        self.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    fn list(&self, path: &str, rows: impl Into<Value>) {
        self.set(path, Answer::Json(json!({ "availableDownloads": rows.into() })));
    }

    /// A gzip file with this many rows of each kind.
    fn file(&self, id: &str, rows: &[(&str, usize)]) {
        self.set(&format!("/api/cal/v1/files/{id}"), Answer::Bytes(gzip(&csv(rows))));
    }

    /// What was asked for since the last call, in order.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    /// The files among these.
    fn downloads(&self) -> Vec<String> {
        self.asked().iter().filter_map(|path| Some(path.strip_prefix("/api/cal/v1/files/")?.to_owned())).collect()
    }

    fn answer(&self, request: &Request) -> Response {
        let path = request.uri().path_and_query().unwrap().to_string();
        self.asked.lock().unwrap().push(path.clone());
        assert_eq!(request.headers()["host"], "ix.example", "the token must not go elsewhere");
        let credential = request.headers()["authorization"].to_str().unwrap();
        if path == TOKEN {
            let keys = self.keys.lock().unwrap();
            let key = credential.strip_prefix("Basic ").unwrap();
            if !keys.is_empty() && !keys.iter().any(|known| known == key) {
                return (StatusCode::UNAUTHORIZED, r#"{"error":"invalid_client"}"#).into_response();
            }
        } else {
            assert!(credential.starts_with("Bearer "));
        }
        match self.answers.lock().unwrap().get(&path) {
            None => StatusCode::NOT_FOUND.into_response(),
            Some(Answer::Status(status)) => StatusCode::from_u16(*status).unwrap().into_response(),
            Some(Answer::Json(value)) => value.to_string().into_response(),
            Some(Answer::Bytes(bytes)) => bytes.clone().into_response(),
            Some(Answer::Encoded(coding, bytes)) => {
                ([(header::CONTENT_ENCODING, *coding)], bytes.clone()).into_response()
            }
            Some(Answer::Broken(bytes)) => {
                let pieces = [Ok(Bytes::from(bytes.clone())), Err(std::io::Error::other("gone"))];
                Body::from_stream(stream::iter(pieces)).into_response()
            }
            Some(Answer::Slow(bytes)) => {
                let slow = stream::unfold(bytes.clone(), |mut rest| async move {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    let last = rest.pop()?;
                    Some((Ok::<_, std::io::Error>(Bytes::from(vec![last])), rest))
                });
                Body::from_stream(slow).into_response()
            }
        }
    }

    fn router(&self) -> Router {
        let service = self.clone();
        Router::new().fallback(move |request: Request| async move { service.answer(&request) })
    }
}

fn token(expires_in: i64, real: i64) -> Answer {
    let claims = json!({"iat": 1_538_762_960, "exp": 1_538_762_960 + real}).to_string();
    let access = format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(claims));
    Answer::Json(
        json!({"access_token": access, "expires_in": expires_in, "token_type": "bearer", "refresh_token": "r"}),
    )
}

fn csv(rows: &[(&str, usize)]) -> Vec<u8> {
    let lines = rows.iter().flat_map(|(action, count)| vec![format!("7,{action},\"a, \"\"b\"\"\n\"\n"); *count]);
    format!("auction_id,event_type,domain\n{}", lines.collect::<String>()).into_bytes()
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

/// A single file as a list shows it, of the hour that began so many hours ago.
fn single(name: &str, hours_ago: i64, id: &str, status: &str, size: u64) -> Value {
    json!({"subscriptionID": 1, "subscriptionName": name, "hour": start() - HOUR * i32::try_from(hours_ago).unwrap(),
        "downloadStatus": status, "downloadURL": format!("https://ix.example/api/cal/v1/files/{id}"), "size": size})
}

fn part(id: &str, status: &str, size: u64) -> Value {
    json!({"downloadStatus": status, "downloadURL": format!("/api/cal/v1/files/{id}?signature={status}"), "size": size})
}

fn parted(hours_ago: i64, parts: &[Value]) -> Value {
    json!({"subscriptionID": 2, "subscriptionName": "bid events",
        "hour": start() - HOUR * i32::try_from(hours_ago).unwrap(), "parts": parts})
}

// === a reader with a real ledger ===

struct Reader {
    source: Box<dyn Source>,
    api: Api,
    stats: Arc<SourceStats>,
    sink: Counted,
    _folder: tempfile::TempDir,
}

struct Counted {
    ledger: Ledger,
    source: Arc<Book>,
    clock: Clock,
    documents: usize,
    rejected: Vec<Item>,
    reported: Vec<Failure>,
    checks: bool,
}

#[async_trait]
impl Sink for Counted {
    async fn page(&mut self, page: Page) -> Result<Taken, Failure> {
        self.documents += page.documents.len();
        self.rejected.extend(page.items.iter().cloned());
        let now = self.clock.now();
        let commit =
            Commit { expected: None, next: None, page, lost_seconds: 0, now, service_now: now, backlog_from: None };
        self.ledger.commit(&self.source, commit).await.unwrap();
        Ok(Taken::default())
    }

    fn report(&mut self, failure: Failure) {
        self.reported.push(failure);
    }

    fn document(&mut self, key: &EventKey) -> Option<DocumentRecord> {
        self.source.state().documents().get(key).cloned()
    }

    fn checks(&self) -> bool {
        self.checks
    }
}

impl Reader {
    async fn new(router: Router, origin: &str, token_path: &str, key: &str, clock: Clock) -> Self {
        let service = Settings {
            base_url: origin.parse().unwrap(),
            token_url: format!("{origin}{token_path}").parse().unwrap(),
            client_key: Secret::text(key),
            subscriptions: vec!["impressions".into(), "bid events".into()],
        };
        let (source, dialect) = service.build(&(SERVICE.defaults)());
        let stats = Arc::new(SourceStats::default());
        let limits = Limits {
            requests: 1000,
            per: Duration::from_secs(1),
            burst: 100,
            timeout: Duration::from_secs(30),
            max_response_bytes: 64 << 20,
        };
        let api = Api::new(Arc::new(InMemory(router)), dialect, limits, Arc::clone(&stats), clock.clone(), 1);
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(folder.path()).unwrap();
        let name: SourceName = "ads".parse().unwrap();
        let registered = ledger.register(&name, SYSTEM, source.spec().catalogue, clock.now()).await.unwrap();
        let (rejected, reported) = (Vec::new(), Vec::new());
        let sink = Counted { ledger, source: registered, clock, documents: 0, rejected, reported, checks: false };
        Self { source, api, stats, sink, _folder: folder }
    }

    async fn of(service: &Service) -> Self {
        Self::with_key(service, "aWQ6c2VjcmV0").await
    }

    async fn with_key(service: &Service, key: &str) -> Self {
        Self::new(service.router(), "https://ix.example", TOKEN, key, Clock::starting_at(start())).await
    }

    async fn read(&mut self) -> Result<(), Failure> {
        self.read_from(start() - TimeDelta::days(14)).await
    }

    async fn read_from(&mut self, from: DateTime<Utc>) -> Result<(), Failure> {
        let window = Window { from, to: self.api.now() };
        self.source.read(window, &self.api, &mut self.sink).await
    }

    fn count(&self, category: &str, action: &str) -> u64 {
        self.sink.source.state().value(&SeriesKey::new(Counter::Events, &[category, action, "unknown"]))
    }

    fn total(&self) -> u64 {
        self.sink.source.state().total(Counter::Events)
    }

    fn feed(&self) -> Feed {
        self.sink.source.state().facts().feed.clone().unwrap()
    }
}

// === a reader of the simulated service ===

fn world(rate: f64, faults: &str) -> World {
    let mut switched = Faults::default();
    switched.set(faults).unwrap();
    World::new(Options {
        seed: 7,
        clock: Clock::starting_at(start()),
        history: Duration::from_hours(6),
        day: Duration::from_hours(24),
        rate,
        faults: switched,
        quiet: false,
    })
}

impl Reader {
    async fn simulated(world: &World) -> Self {
        let token_path = "/auth/realms/eventlog/protocol/openid-connect/token";
        let key = crate::simulate::credentials::INDEX_EXCHANGE_CLIENT_KEY;
        Self::new(world.router(), "http://sim.example:1234", token_path, key, Clock::starting_at(start())).await
    }
}
