//! The source against scripted answers, and against the simulated service, with a real ledger.

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
use crate::simulate::{Faults, Injection, Options, Scenario, ScenarioCall, TruthOf, World};
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

// === the session ===

#[tokio::test(start_paused = true)]
async fn a_token_is_renewed_by_its_own_life_where_the_answer_promises_more() {
    let service = Service::new();
    service.set(TOKEN, token(3600, 60));
    let mut reader = Reader::of(&service).await;
    for (wait, logins) in [(0, 1), (30, 0), (30, 1), (30, 0)] {
        tokio::time::advance(Duration::from_secs(wait)).await;
        reader.read().await.unwrap();
        assert_eq!(service.asked().iter().filter(|path| *path == TOKEN).count(), logins);
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_with_special_characters_is_tried_form_encoded_once_and_that_is_remembered() {
    let raw = STANDARD.encode("id:a:b+c%d");
    let encoded = STANDARD.encode("id:a%3Ab%2Bc%25d");
    for (accepted, first, later) in [(&encoded, 2, 1), (&raw, 1, 1)] {
        let service = Service::new();
        *service.keys.lock().unwrap() = vec![accepted.clone()];
        let mut reader = Reader::with_key(&service, &format!(" {raw}\n")).await;
        for logins in [first, later, later] {
            reader.read().await.unwrap();
            assert_eq!(service.asked().iter().filter(|path| *path == TOKEN).count(), logins);
            tokio::time::advance(Duration::from_hours(2)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_key_is_not_tried_again_in_a_poll() {
    for (key, logins) in [("id:plain", 1), ("id:a+b", 2)] {
        let service = Service::new();
        *service.keys.lock().unwrap() = vec!["none".into()];
        let failure = Reader::with_key(&service, &STANDARD.encode(key)).await.read().await.unwrap_err();
        assert_eq!((failure.kind, failure.at_login), (ErrorKind::Auth, true));
        assert!(!failure.to_string().contains("plain"));
        assert_eq!(service.asked(), vec![TOKEN; logins]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_ended_session_is_renewed_in_the_middle_of_a_poll() {
    let world = world(0.02, "index_exchange:expire_every=7");
    let mut reader = Reader::simulated(&world).await;
    reader.read_from(at("2026-01-01T00:00:00Z")).await.unwrap();
    assert_eq!(reader.total(), world.truth().total(SYSTEM));
}

// === the lists ===

#[tokio::test(start_paused = true)]
async fn every_subscription_and_the_parts_of_bids_are_asked_for() {
    let service = Service::new();
    service.set(BID_PARTS, Answer::Status(404));
    let mut reader = Reader::of(&service).await;
    reader.read().await.unwrap();
    assert_eq!(service.asked(), [TOKEN, IMPRESSIONS, BIDS, BID_PARTS]);
    assert_eq!(reader.stats.errors(ErrorKind::NotFound), 0, "a route that is not there lists nothing");
    service.set(IMPRESSIONS, Answer::Status(404));
    assert_eq!(reader.read().await.unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_list_may_be_bare_or_empty_in_every_way_but_not_something_else() {
    let service = Service::new();
    service.file("1", &[("impression", 3)]);
    let mut reader = Reader::of(&service).await;
    for empty in [json!(null), json!({}), json!([]), json!({"availableDownloads": null})] {
        service.set(BID_PARTS, Answer::Json(empty));
        reader.read().await.unwrap();
    }
    service.set(BIDS, Answer::Status(204));
    service.set(IMPRESSIONS, Answer::Json(json!([single("impressions", 3, "1", "new", 1)])));
    reader.read().await.unwrap();
    assert_eq!(reader.count("impressions", "impression"), 3);
    for wrong in [json!({"message": "no"}), json!([[1]]), json!(7), json!({"availableDownloads": 7})] {
        service.set(BIDS, Answer::Json(wrong.clone()));
        assert_eq!(reader.read().await.unwrap_err().kind, ErrorKind::Decode, "{wrong}");
    }
    service.set(BIDS, Answer::Bytes(b"<html></html>".to_vec()));
    assert_eq!(reader.read().await.unwrap_err().kind, ErrorKind::Decode);
}

#[tokio::test(start_paused = true)]
async fn a_file_on_both_routes_or_twice_on_one_counts_once() {
    let service = Service::new();
    service.file("7", &[("bid", 5)]);
    service.file("8", &[("bid", 2)]);
    service.list(BIDS, json!([single("bid events", 3, "7", "new", 1), single("Bid-Events", 3, "7", "new", 1)]));
    service.list(BID_PARTS, json!([parted(3, &[part("7", "new", 1), part("8", "new", 1), part("8", "new", 1)])]));
    let mut reader = Reader::of(&service).await;
    reader.read().await.unwrap();
    assert_eq!(reader.count("bid_events", "bid"), 7);
    assert_eq!(service.downloads(), ["7", "8"]);
    // the whole hour under an id of its own is its parts again
    service.file("9", &[("bid", 7)]);
    service.list(BIDS, json!([single("bid events", 3, "9", "new", 1)]));
    reader.read().await.unwrap();
    service.list(BID_PARTS, json!([]));
    reader.read().await.unwrap();
    assert_eq!(reader.count("bid_events", "bid"), 7);
}

#[tokio::test(start_paused = true)]
async fn a_link_may_lead_anywhere_and_be_called_anything_but_the_token_stays() {
    let service = Service::new();
    service.file("42", &[("impression", 1)]);
    service.file("ab-7", &[("impression", 10)]);
    service.file("9", &[("impression", 100)]);
    service.file("10", &[("impression", 1000)]);
    service.list(
        IMPRESSIONS,
        json!([
            {"hour": "2026-03-04T01:00:00Z", "link": "https://evil.example/x/files/42?sig=1"},
            {"hour": "2026-03-04T02:00:00+00:00", "subscriptionName": "impressions", "download_url": "/files/ab-7"},
            {"hour": "2026-03-04T03:00:00Z", "subscriptionname": "Impressions", "fileID": 9},
            {"hour": "2026-03-04T04:00:00Z", "subscriptionName": "impressions", "part": 0, "id": "10"},
            {"hour": "2026-03-04T04:00:00Z", "subscriptionName": "clicks", "id": "11"},
        ]),
    );
    let mut reader = Reader::of(&service).await;
    reader.read().await.unwrap();
    assert_eq!(reader.total(), 1111);
    assert!(reader.sink.rejected.is_empty(), "a subscription nobody asked for is no mistake");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_understood_is_rejected_once_and_the_rest_is_counted() {
    let service = Service::new();
    service.file("1", &[("impression", 1)]);
    service.file("2", &[("bid", 2)]);
    let rows = |status: &str| {
        json!([
            "not a row",
            {"subscriptionName": "impressions", "hour": "soon", "id": 1, "downloadStatus": status},
            {"subscriptionName": "impressions", "id": 1},
            {"subscriptionName": "impressions", "hour": "2026-03-04T01:00:00Z", "id": "../x"},
            single("impressions", 3, "1", status, 1),
        ])
    };
    let parts = [json!({"downloadStatus": "new"}), part("2", "new", 1), json!(null)];
    service.list(BID_PARTS, json!([parted(3, &parts)]));
    let mut reader = Reader::of(&service).await;
    for status in ["new", "downloaded"] {
        service.list(IMPRESSIONS, rows(status));
        reader.read().await.unwrap();
    }
    let rejected = |reason| reader.sink.source.state().value(&SeriesKey::new(Counter::Rejected, &[reason]));
    assert_eq!((rejected("malformed"), rejected("bad_time")), (5, 1));
    assert_eq!((reader.count("impressions", "impression"), reader.count("bid_events", "bid")), (1, 2));
    assert!(reader.sink.rejected.iter().all(|item| matches!(item.what, What::Rejected(_))));
}

#[tokio::test(start_paused = true)]
async fn the_feed_tells_its_newest_hour_its_holes_and_its_files_by_status() {
    let service = Service::new();
    service.list(
        IMPRESSIONS,
        json!([
            single("impressions", 2, "1", "NEW", 1),
            single("impressions", 5, "2", "Downloaded", 1),
            single("impressions", 6, "3", "being made", 1),
        ]),
    );
    service.list(BID_PARTS, json!([parted(3, &[part("4", "Updated", 1), part("5", "new", 1)]), parted(5, &[])]));
    let mut reader = Reader::of(&service).await;
    reader.read_from(start()).await.unwrap();
    assert!(service.downloads().is_empty());
    let files = [("being_made", 1), ("downloaded", 1), ("new", 2), ("updated", 1)];
    let expected = Feed {
        newest_hour: Some(start() - HOUR * 2),
        newest_by_category: [("impressions", 2), ("bid_events", 3)]
            .map(|(category, hours)| (category.to_owned(), start() - HOUR * hours))
            .into(),
        missing_hours: 3,
        files: files.map(|(status, files)| (status.to_owned(), files)).into(),
    };
    assert_eq!(reader.feed(), expected);
    // a feed that was suspended must not look young, nor vanish
    service.list(IMPRESSIONS, json!([]));
    service.list(BID_PARTS, json!([]));
    reader.read_from(start()).await.unwrap();
    assert_eq!(reader.feed().newest_hour, expected.newest_hour);
    assert_eq!(reader.feed().newest_by_category, expected.newest_by_category);
    assert_eq!(reader.feed().files.values().sum::<u64>(), 0);
    // nor is half a list the state of the feed
    service.list(IMPRESSIONS, json!([single("impressions", 2, "1", "new", 1)]));
    service.set(BIDS, Answer::Status(403));
    reader.read_from(start()).await.unwrap_err();
    assert_eq!(reader.feed().files.values().sum::<u64>(), 0);
}

#[test]
fn statuses_beyond_ten_are_told_as_other() {
    let rows: Vec<Value> = (0..30).map(|n| single("impressions", n, &n.to_string(), &format!("s{n}"), 1)).collect();
    let text = Value::from(rows).to_string();
    let mut listing = Listing::default();
    listing.add(&serde_json::from_str::<Vec<Raw<'_>>>(&text).unwrap(), &[Label::from_words("impressions")], None);
    let files = listing.feed(&[Label::from_words("impressions")], DateTime::UNIX_EPOCH).files;
    assert_eq!((files.len(), files["other"], files.values().sum::<u64>()), (11, 23, 30));
}

// === what is read, and when ===

#[test]
fn an_hour_is_read_again_when_what_is_said_about_it_changed_or_cannot_tell() {
    let hour = |row: Value| {
        let text = json!([row]).to_string();
        let mut listing = Listing::default();
        listing.add(
            &serde_json::from_str::<Vec<Raw<'_>>>(&text).unwrap(),
            &[Label::from_words("impressions")],
            Some(0),
        );
        let ((_, begins), files) = listing.hours.pop_first().unwrap();
        Hour { key: EventKey([0; 16]), category: Label::from_words("impressions"), begins, files }
    };
    let with = |more: Value| {
        let mut row = json!({"hour": "2026-03-04T01:00:00Z", "downloadStatus": "new", "downloadURL": "/files/1?s=1"});
        row.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
        row
    };
    let rules = [
        ("nothing changed", json!({"size": 1}), json!({"size": 1}), false),
        ("grew", json!({"size": 1}), json!({"size": 2}), true),
        ("made anew", json!({"generatedTime": "a"}), json!({"generatedTime": "b"}), true),
        ("another file", json!({}), json!({"downloadURL": "/files/2"}), true),
        ("anything unknown", json!({"rowCount": 1}), json!({"rowCount": 2}), true),
        ("downloaded", json!({}), json!({"downloadStatus": "downloaded"}), false),
        ("signed anew", json!({}), json!({"downloadURL": "/files/1?s=2", "downloadedAt": 5, "expiryTime": 6}), false),
        ("said to be updated, and cannot tell", json!({}), json!({"downloadStatus": "Updated"}), true),
        (
            "said to be updated, but is the same",
            json!({"size": 1}),
            json!({"size": 1, "downloadStatus": "updated"}),
            false,
        ),
        ("elsewhere", json!({}), json!({"downloadURL": "https://other.example/files/1"}), false),
    ];
    for (rule, before, after, expected) in rules {
        let counted: DocumentRecord = serde_json::from_value(json!({
            "version": hour(with(before)).version().0, "counted_at": "2026-03-04T02:30:00Z", "rows": {}, "rejected": 0,
        }))
        .unwrap();
        let listed = hour(with(after));
        assert_eq!(listed.has_changed(&counted, at("2026-03-04T03:00:00Z")), expected, "{rule}");
        // what cannot tell is read again now and then, for a while
        let weak = !listed.files[0].tells_changes;
        assert_eq!(listed.has_changed(&counted, at("2026-03-04T08:30:00Z")), expected || weak, "{rule}, later");
        assert_eq!(listed.has_changed(&counted, at("2026-03-06T01:00:00Z")), expected, "{rule}, long after");
    }
}

#[tokio::test(start_paused = true)]
async fn an_updated_file_adds_only_the_rows_it_gained_whoever_downloads_it_meanwhile() {
    let service = Service::new();
    service.file("1", &[("impression", 10)]);
    let mut reader = Reader::of(&service).await;
    let steps = [
        ("1", "new", 10, &[("impression", 10)][..], 10, 1),
        ("1", "downloaded", 10, &[("impression", 10)], 10, 0),
        ("1", "Updated", 14, &[("impression", 12), ("click", 2)], 14, 1),
        ("1", "downloaded", 14, &[("impression", 12), ("click", 2)], 14, 0),
        // someone else was faster
        ("1", "downloaded", 15, &[("impression", 13), ("click", 2)], 15, 1),
        // replaced by another file
        ("2", "new", 17, &[("impression", 15), ("click", 2)], 17, 1),
        ("2", "downloaded", 17, &[("impression", 15), ("click", 2)], 17, 0),
    ];
    for (id, status, size, rows, total, downloads) in steps {
        service.list(IMPRESSIONS, json!([single("impressions", 3, id, status, size)]));
        service.file(id, rows);
        reader.read().await.unwrap();
        assert_eq!(reader.total(), total, "{id} {status} {size}");
        assert_eq!(service.downloads().len(), downloads, "{id} {status} {size}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_check_reads_what_was_counted_again_and_leaves_what_is_new_or_changed_to_the_polls() {
    let service = Service::new();
    for id in ["1", "2", "3", "4"] {
        service.file(id, &[("impression", 10)]);
    }
    let mut reader = Reader::of(&service).await;
    let listed = |status: &str| {
        json!([
            single("impressions", 6, "1", "downloaded", 10),
            single("impressions", 5, "2", "downloaded", 10),
            single("impressions", 4, "3", status, 10 + u64::from(status == "updated")),
        ])
    };
    service.list(IMPRESSIONS, listed("new"));
    reader.read().await.unwrap();
    assert_eq!(service.downloads().len(), 3);
    let mut more = listed("updated");
    more.as_array_mut().unwrap().push(single("impressions", 3, "4", "new", 10));
    service.list(IMPRESSIONS, more);
    reader.sink.checks = true;
    reader.read_from(start() - HOUR * 5).await.unwrap();
    assert_eq!(service.downloads(), ["2"], "not the first either: it is outside the window");
    reader.sink.checks = false;
    reader.read().await.unwrap();
    assert_eq!(service.downloads(), ["3", "4"]);
}

#[tokio::test(start_paused = true)]
async fn parts_may_appear_in_any_order_and_change_their_ids() {
    let service = Service::new();
    service.file("11", &[("bid", 10)]);
    service.file("12", &[("bid", 200)]);
    let mut reader = Reader::of(&service).await;
    service.list(BID_PARTS, json!([parted(3, &[part("12", "new", 200)])]));
    reader.read().await.unwrap();
    assert_eq!((reader.total(), service.downloads()), (200, vec!["12".to_owned()]));
    service.list(BID_PARTS, json!([parted(3, &[part("11", "new", 10), part("12", "downloaded", 200)])]));
    reader.read().await.unwrap();
    assert_eq!((reader.total(), service.downloads()), (210, vec!["11".to_owned(), "12".to_owned()]));
    service.file("1011", &[("bid", 13)]);
    service.list(BID_PARTS, json!([parted(3, &[part("12", "downloaded", 200), part("1011", "updated", 13)])]));
    reader.read().await.unwrap();
    assert_eq!((reader.total(), service.downloads()), (213, vec!["1011".to_owned()]), "the other part is known");
}

#[tokio::test(start_paused = true)]
async fn hours_that_ended_before_the_window_are_not_counted() {
    let service = Service::new();
    service
        .list(IMPRESSIONS, json!([single("impressions", 3, "3", "new", 1), single("impressions", 4, "4", "new", 1)]));
    service.file("3", &[("impression", 1)]);
    let mut reader = Reader::of(&service).await;
    reader.read_from(start() - HOUR * 3).await.unwrap();
    assert_eq!(service.downloads(), ["3"]);
}

// === what goes wrong ===

#[tokio::test(start_paused = true)]
async fn a_file_that_fails_does_not_stop_the_others_and_is_read_the_next_time() {
    for (answer, kind, requests) in [
        (Answer::Status(404), ErrorKind::NotFound, 1),
        (Answer::Status(500), ErrorKind::Server, 4),
        (Answer::Broken(gzip(&csv(&[("impression", 3)]))[..20].to_vec()), ErrorKind::Connect, 3),
        (Answer::Bytes(gzip(&csv(&[("impression", 3)]))[..40].to_vec()), ErrorKind::Decode, 3),
        (Answer::Bytes(b"<html>, </html>\n, \n".to_vec()), ErrorKind::Decode, 3),
        (Answer::Bytes(Vec::new()), ErrorKind::Decode, 3),
        (Answer::Bytes(gzip(&[csv(&[]), vec![b'x'; RECORD_BYTES_MAX + 1]].concat())), ErrorKind::TooLarge, 1),
        (Answer::Slow(vec![b'x'; 1000]), ErrorKind::Timeout, 3),
    ] {
        let service = Service::new();
        let listed = json!([
            single("impressions", 5, "1", "new", 1),
            single("impressions", 4, "2", "new", 1),
            single("impressions", 3, "3", "new", 1),
        ]);
        service.list(IMPRESSIONS, listed);
        service.set("/api/cal/v1/files/1", answer.clone());
        service.set("/api/cal/v1/files/2", answer);
        service.file("3", &[("impression", 4)]);
        let mut reader = Reader::of(&service).await;
        assert_eq!(reader.read().await.unwrap_err().kind, kind);
        let failed = reader.sink.reported.iter().filter(|failure| failure.kind == kind).count();
        assert_eq!(failed, if requests == 3 { 5 } else { 1 }, "{kind:?}: every attempt but the one returned");
        let asked = service.downloads();
        assert_eq!(asked.iter().filter(|id| *id == "1").count(), requests, "{kind:?}");
        assert_eq!(reader.total(), 4, "{kind:?}");
        assert!(reader.sink.source.state().facts().feed.is_some());
        service.file("1", &[("impression", 3)]);
        service.file("2", &[("impression", 2)]);
        reader.read().await.unwrap();
        assert_eq!((reader.total(), service.downloads()), (9, vec!["1".to_owned(), "2".to_owned()]), "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_part_that_fails_leaves_the_others_counted_and_the_hour_to_be_read_again() {
    let service = Service::new();
    service.list(BID_PARTS, json!([parted(3, &[part("1", "new", 1), part("2", "new", 1)])]));
    service.set("/api/cal/v1/files/1", Answer::Status(404));
    service.file("2", &[("bid", 5)]);
    let mut reader = Reader::of(&service).await;
    for _ in 0..2 {
        reader.read().await.unwrap_err();
        assert_eq!(reader.total(), 5);
    }
    service.file("1", &[("bid", 3)]);
    service.asked();
    for downloads in [1, 0] {
        reader.read().await.unwrap();
        assert_eq!((reader.total(), service.downloads().len()), (8, downloads));
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_sends_no_file_at_all_is_left_alone_for_this_poll() {
    let service = Service::new();
    let rows: Vec<Value> = (1..=40).map(|n| single("impressions", n, &n.to_string(), "new", 1)).collect();
    service.list(IMPRESSIONS, rows);
    for n in 31..=40 {
        service.set(&format!("/api/cal/v1/files/{n}"), Answer::Status(503));
    }
    for n in 1..=30 {
        service.file(&n.to_string(), &[("impression", 1)]);
    }
    let mut reader = Reader::of(&service).await;
    assert_eq!(reader.read().await.unwrap_err().kind, ErrorKind::Server);
    assert_eq!(service.downloads().len(), 40, "ten files, four times each");
    // what failed comes last the next time
    reader.read().await.unwrap_err();
    assert_eq!(reader.total(), 30);
}

#[tokio::test(start_paused = true)]
async fn files_of_every_kind_are_counted() {
    let service = Service::new();
    let files: [(&str, Vec<u8>); 5] = [
        ("1", csv(&[("impression", 1)])),
        ("2", [gzip(&csv(&[("impression", 2)])), gzip(b"x,impression,y\n")].concat()),
        ("3", b"\xef\xbb\xbf\"Event_Type\",b\r\nimpression,1\r\nbad\r\n\r\nimpression,2".to_vec()),
        ("4", b"a,b\n1,2\n".to_vec()),
        ("5", gzip(b"")),
    ];
    let mut rows = Vec::new();
    for (hours_ago, (id, bytes)) in (1..).zip(files) {
        rows.push(single("impressions", hours_ago, id, "new", 1));
        service.set(&format!("/api/cal/v1/files/{id}"), Answer::Bytes(bytes));
    }
    service.list(IMPRESSIONS, rows);
    let mut reader = Reader::of(&service).await;
    reader.read().await.unwrap();
    assert_eq!(reader.count("impressions", "impression"), 1 + 3 + 2);
    assert_eq!(reader.count("impressions", "unknown"), 1);
    assert_eq!(reader.sink.source.state().value(&SeriesKey::new(Counter::Rejected, &["malformed"])), 1);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_packed_for_its_way_is_counted_whole_or_not_at_all() {
    let text = csv(&[("impression", 500)]);
    let (first, second) = text.split_at(text.len() / 2);
    let members = [gzip(first), gzip(second)].concat();
    let padded = [&members[..], &[0; 512]].concat();
    for (coding, bytes, rows) in [
        ("gzip", gzip(&text), Some(500)),
        ("gzip", members.clone(), Some(500)),
        ("x-gzip", padded.clone(), Some(500)),
        ("identity", padded.clone(), Some(500)),
        ("gzip", gzip(&padded), Some(500)),
        ("gzip, gzip", gzip(&members), Some(500)),
        ("gzip", [gzip(&members), vec![0; 10]].concat(), Some(500)),
        ("gzip", members[..members.len() - 9].to_vec(), None),
        ("gzip", members[..gzip(first).len() + 4].to_vec(), None),
        ("gzip", [&members[..], b"garbage"].concat(), None),
        ("gzip", text.clone(), None),
        ("br", text.clone(), None),
        ("deflate", members.clone(), None),
        ("gzip", gzip(&members[..members.len() - 9]), None),
        ("gzip", gzip(&[&members[..], b"x"].concat()), None),
    ] {
        let service = Service::new();
        service.list(IMPRESSIONS, json!([single("impressions", 3, "1", "new", 1)]));
        service.set("/api/cal/v1/files/1", Answer::Encoded(coding, bytes));
        let mut reader = Reader::of(&service).await;
        let failure = reader.read().await.err();
        assert_eq!(failure.as_ref().map(|failure| failure.kind), rows.is_none().then_some(ErrorKind::Decode));
        assert_eq!(reader.total(), rows.unwrap_or(0), "{coding}: {failure:?}");
        if rows.is_none() {
            service.set("/api/cal/v1/files/1", Answer::Encoded("gzip", members.clone()));
            reader.read().await.unwrap();
            assert_eq!(reader.total(), 500, "when the service recovers");
        }
    }
}

#[tokio::test]
async fn the_series_of_what_is_subscribed_exist_from_the_start() {
    let reader = Reader::of(&Service::new()).await;
    let mut events: Vec<String> = Vec::new();
    for labels in reader.source.spec().catalogue.events {
        events.push(format!("{} {} {:?}", labels.category, labels.action, labels.class));
    }
    assert_eq!(events, ["impressions impression Row", "bid_events bid Row"]);
}

// === against the simulated service ===

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

#[tokio::test(start_paused = true)]
async fn answers_that_are_no_answers_are_errors_and_count_nothing() {
    for (fault, kind) in [
        ("html", ErrorKind::Decode),
        ("truncated", ErrorKind::Decode),
        ("deep", ErrorKind::Decode),
        ("bomb", ErrorKind::TooLarge),
        ("huge", ErrorKind::TooLarge),
        ("redirect", ErrorKind::Redirect),
        ("forbidden", ErrorKind::Forbidden),
        ("throttle", ErrorKind::Throttled),
    ] {
        let world = world(0.006, &format!("index_exchange:{fault}=1"));
        let mut reader = Reader::simulated(&world).await;
        assert_eq!(reader.read().await.unwrap_err().kind, kind, "{fault}");
        assert_eq!((reader.total(), reader.sink.source.state().facts().feed.is_some()), (0, false), "{fault}");
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_the_service_does_every_row_is_counted_once_in_the_end() {
    let all = "index_exchange:throttle=0.05,error=0.05,truncated=0.05,html=0.03,malformed=0.2,redirect=0.02,\
               unauthorized=0.03,expire_every=9,token_seconds=300";
    for faults in [
        "index_exchange:new_file_ids=false",
        "index_exchange:new_file_ids",
        "index_exchange:single_file_bids",
        "index_exchange:content_encoding",
        "index_exchange:gzip_members",
        "index_exchange:gzip_members,content_encoding",
        all,
    ] {
        let world = world(0.006, faults);
        let mut reader = Reader::simulated(&world).await;
        let from = start() - HOUR * 4;
        for step in 0..24 {
            // the next poll mends what this one could not read
            let _ = reader.read_from(from).await;
            let truth = world.truth_of(&TruthOf { from: Some(from), ..TruthOf::default() });
            assert!(reader.total() <= truth.total(SYSTEM), "{faults}: never too many");
            if step % 8 == 3 {
                let name = Scenario::UpdatedFile;
                let call = ScenarioCall { name, system: None, count: Some(5), at: None, seconds: 0 };
                world.inject(&Injection::Scenario(call));
            }
            tokio::time::advance(Duration::from_mins(15)).await;
        }
        world.set_faults({
            let mut calm = Faults::default();
            calm.set(&format!("index_exchange:new_file_ids={}", faults.contains("new_file_ids"))).unwrap();
            calm
        });
        reader.read_from(from).await.unwrap();
        let truth = world.truth_of(&TruthOf { from: Some(from), ..TruthOf::default() });
        for ((system, category, action, _), rows) in &truth.events {
            if *system == SYSTEM {
                assert_eq!(reader.count(category, action), *rows, "{faults}: {category} {action}");
            }
        }
        assert_eq!(reader.total(), truth.total(SYSTEM), "{faults}");
        assert!(reader.total() > 100, "{faults}: {}", reader.total());
    }
}

#[tokio::test(start_paused = true)]
async fn hours_that_would_be_counted_again_and_again_or_remembered_for_ever_are_not_read() {
    let service = Service::new();
    let days = |days: i64| single("impressions", days * 24, &format!("9{}", days.abs()), "new", 1);
    service.list(IMPRESSIONS, json!([days(40), days(30), days(-3)]));
    for days in [40, 30, 3] {
        service.file(&format!("9{days}"), &[("impression", 5)]);
    }
    let mut reader = Reader::of(&service).await;
    for _ in 0..3 {
        reader.read_from(start() - TimeDelta::days(60)).await.unwrap();
        assert_eq!(reader.count("impressions", "impression"), 5, "of the hour of 30 days ago");
    }
    assert!(reader.sink.reported.iter().all(|failure| failure.to_string().contains("2 hours")));
    assert_eq!(reader.sink.reported.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_more_files_than_any_has_is_refused() {
    let service = Service::new();
    let parts: Vec<Value> = (0..2000).map(|n| part(&n.to_string(), "new", 1)).collect();
    service.list(BID_PARTS, json!([parted(2, &parts)]));
    let mut reader = Reader::of(&service).await;
    let failure = reader.read().await.unwrap_err();
    assert_eq!(failure.kind, ErrorKind::TooLarge, "{failure}");
    assert_eq!(reader.total(), 0);
}

#[test]
fn an_hour_that_is_none_is_rejected() {
    let mut listing = Listing::default();
    let rows: Vec<Value> = ["2026-03-04T11:00:00Z", "2026-03-04T11:00:01Z", "2026-03-04T11:00:00.5Z"]
        .map(|hour| json!({"hour": hour, "downloadURL": "/files/1"}))
        .into();
    let text = Value::from(rows).to_string();
    listing.add(&serde_json::from_str::<Vec<Raw<'_>>>(&text).unwrap(), &[Label::from_words("impressions")], Some(0));
    assert_eq!((listing.hours.len(), listing.rejected.len()), (1, 2));
}
