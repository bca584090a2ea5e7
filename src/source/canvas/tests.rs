//! The source against a small Canvas with the bookmarks of any version: requests (`requests.rs`), which events are the
//! same (`identity.rs`), answers (`answers.rs`), pages (`pages.rs`), the `Link` header (`links.rs`); and against the
//! simulated Canvas (`simulated.rs`).

mod answers;
mod identity;
mod links;
mod pages;
mod requests;
mod simulated;

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
use serde_json::{Value, json};

use super::*;
use crate::api::Limits;
use crate::clock::Clock;
use crate::page::DocumentRecord;
use crate::settings::Secret;
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
