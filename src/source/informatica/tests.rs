//! The source against a scripted service: logins and sessions (`logins.rs`), ranges and pages (`pages.rs`), entries
//! (`entries.rs`); and against the simulated service (`simulated.rs`).

mod entries;
mod logins;
mod pages;
mod simulated;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::api::Limits;
use crate::clock::Clock;
use crate::page::DocumentRecord;
use crate::settings::{Common, Secret};
use crate::source::Entry as _;
use crate::source::Taken;
use crate::stats::SourceStats;
use crate::transport::InMemory;

// === a scripted service ===

/// Status and body.
type Answer = (u16, String);

/// A read, as the service saw it.
#[derive(Clone, Debug)]
struct Asked {
    raw_query: String,
    session: String,
    host: String,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
    limit: usize,
    skip: usize,
}

type OnLogin = Box<dyn Fn(usize) -> Answer + Send>;
type OnRead = Box<dyn Fn(usize, &Asked) -> Answer + Send>;

struct Scripted {
    on_login: OnLogin,
    on_read: OnRead,
    logins: Vec<String>,
    reads: Vec<Asked>,
}

#[derive(Clone)]
struct Script(Arc<Mutex<Scripted>>);

impl Script {
    fn new(
        on_login: impl Fn(usize) -> Answer + Send + 'static,
        on_read: impl Fn(usize, &Asked) -> Answer + Send + 'static,
    ) -> Self {
        let (on_login, on_read) = (Box::new(on_login), Box::new(on_read));
        Self(Arc::new(Mutex::new(Scripted { on_login, on_read, logins: Vec::new(), reads: Vec::new() })))
    }

    /// A service that lets everyone in.
    fn open(on_read: impl Fn(usize, &Asked) -> Answer + Send + 'static) -> Self {
        Self::new(|n| (200, welcome(&format!("session-{n}"))), on_read)
    }

    /// A log of entries that does as documented, with a cap on pages.
    fn log(entries: Vec<Value>, cap: usize) -> Self {
        Self::open(move |_, asked| page(&entries, asked, asked.skip, cap))
    }

    fn router(&self) -> Router {
        let script = self.clone();
        Router::new().fallback(move |request: Request| async move { script.answer(request).await })
    }

    async fn answer(&self, request: Request) -> Response {
        let (head, body) = request.into_parts();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        let mut script = self.0.lock().unwrap();
        let (status, text) = if head.uri.path().ends_with("/core/v3/login") {
            script.logins.push(String::from_utf8(body.to_vec()).unwrap());
            (script.on_login)(script.logins.len())
        } else {
            let raw_query = head.uri.query().unwrap_or("").to_owned();
            let pairs: HashMap<String, String> =
                url::form_urlencoded::parse(raw_query.as_bytes()).into_owned().collect();
            let text = |name: &str| head.headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
            let (from, to) = pairs["q"].split_once(';').unwrap();
            let time = |clause: &str, operator: &str| {
                let text = clause.strip_prefix(&format!("entryTime{operator}\"")).unwrap();
                parse_time(text.trim_end_matches('"')).unwrap()
            };
            let asked = Asked {
                session: text("infa-session-id"),
                host: format!("{}{}", text("host"), head.uri.path()),
                from: time(from, ">="),
                to: time(to, "<="),
                limit: pairs["limit"].parse().unwrap(),
                skip: pairs["skip"].parse().unwrap(),
                raw_query,
            };
            script.reads.push(asked.clone());
            (script.on_read)(script.reads.len(), &asked)
        };
        (StatusCode::from_u16(status).unwrap(), text).into_response()
    }

    fn logins(&self) -> usize {
        self.0.lock().unwrap().logins.len()
    }

    fn reads(&self) -> Vec<Asked> {
        self.0.lock().unwrap().reads.clone()
    }
}

fn welcome(session: &str) -> String {
    json!({"products": [{"name": "Integration Cloud", "baseApiUrl": "https://usw3.dm-us.informaticacloud.com/saas"}],
           "userInfo": {"sessionId": session}})
    .to_string()
}

fn empty() -> Answer {
    (200, json!({"entries": []}).to_string())
}

/// What a page of `entries` holds, both bounds included.
fn page(entries: &[Value], asked: &Asked, skip: usize, cap: usize) -> Answer {
    let inside = |entry: &&Value| {
        let at = parse_time(entry["entryTime"].as_str().unwrap()).unwrap();
        asked.from <= at && at <= asked.to
    };
    let listed: Vec<&Value> = entries.iter().filter(inside).skip(skip).take(asked.limit.min(cap)).collect();
    (200, json!({"entries": listed}).to_string())
}

/// `count` entries, one every `step` milliseconds, each with an id.
fn entries(count: usize, step: i64) -> Vec<Value> {
    let entry = |n: usize| {
        let time = at(i64::try_from(n).unwrap() * step).to_rfc3339_opts(SecondsFormat::Millis, true);
        json!({"id": format!("entry-{n}"), "entryTime": time, "actor": "ada", "actionCategory": "User", "actionEvent": "UPDATE"})
    };
    (0..count).map(entry).collect()
}

fn at(ms: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(1_700_000_000_000 + ms).unwrap()
}

fn hours(n: i64) -> Window {
    Window { from: at(0), to: at(n * 3_600_000) }
}

// === a reader ===

struct Reader {
    source: Box<dyn Source>,
    api: Api,
}

impl Reader {
    fn new(router: Router, service: &Settings, common: &Common, clock: Clock) -> Self {
        let (source, dialect) = service.build(common);
        let limits = Limits {
            requests: 60,
            per: Duration::from_mins(1),
            burst: 1,
            timeout: Duration::from_secs(30),
            max_response_bytes: 64 << 20,
        };
        let stats = Arc::new(SourceStats::default());
        let api = Api::new(Arc::new(InMemory(router)), dialect, limits, stats, clock, 1);
        Self { source, api }
    }

    fn of(script: &Script) -> Self {
        Self::with(script, |_, _| {})
    }

    fn with(script: &Script, change: impl FnOnce(&mut Settings, &mut Common)) -> Self {
        let mut service = Settings {
            base_url: None,
            login_url: "https://dm-us.informaticacloud.com/".parse().unwrap(),
            username: "audit@example.com".into(),
            password: Secret::text("p\"w"),
        };
        let mut common = (SERVICE.defaults)();
        change(&mut service, &mut common);
        Self::new(script.router(), &service, &common, Clock::starting_at(at(0)))
    }

    async fn read(&mut self, window: Window) -> (Result<(), Failure>, Collected) {
        let mut collected = Collected { window: Some(window), ..Collected::default() };
        let result = self.source.read(window, &self.api, &mut collected).await;
        (result, collected)
    }

    /// How a reading of an hour ended.
    async fn ends(&mut self) -> String {
        match self.read(hours(1)).await.0 {
            Ok(()) => "ok".into(),
            Err(failure) => format!("{}{}", failure.kind.as_str(), if failure.at_login { " at login" } else { "" }),
        }
    }
}

/// Counts as the frame does: each key once, and only what lies in the window.
#[derive(Default)]
struct Collected {
    window: Option<Window>,
    events: HashMap<EventKey, EventLabels>,
    ignored: BTreeSet<EventKey>,
    rejected: BTreeSet<EventKey>,
    handed_over: usize,
    reports: Vec<ErrorKind>,
}

#[async_trait]
impl Sink for Collected {
    async fn page(&mut self, page: Page) -> Result<Taken, Failure> {
        let mut taken = Taken::default();
        for item in page.items {
            self.handed_over += 1;
            if let (Some(at), Some(window)) = (item.at, self.window)
                && !window.contains(at)
            {
                continue;
            }
            taken.inside += 1;
            match item.what {
                What::Event(labels) => drop(self.events.insert(item.key, labels)),
                What::Ignored => drop(self.ignored.insert(item.key)),
                What::Rejected(_) => drop(self.rejected.insert(item.key)),
                What::Tainted { .. } => unreachable!(),
            }
        }
        Ok(taken)
    }

    fn report(&mut self, failure: Failure) {
        self.reports.push(failure.kind);
    }

    fn document(&mut self, _: &EventKey) -> Option<DocumentRecord> {
        None
    }
}
