use std::collections::{BTreeMap, BTreeSet, HashMap};
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
use crate::event;
use crate::page::DocumentRecord;
use crate::settings::{Common, Secret};
use crate::simulate::{Faults, Options, TruthOf, World, credentials};
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

// === logins ===

#[tokio::test(start_paused = true)]
async fn every_shape_of_a_login_answer_ends_as_it_should() {
    let with_products = |products: Value| json!({"products": products, "userInfo": {"sessionId": "s"}}).to_string();
    let product = |name: &str, url: &str| json!({"name": name, "baseApiUrl": url});
    let v3 = json!({"error": {"code": "IDS_085", "message": "User name or password is not valid.", "details": null}});
    let v2 = json!({"code": "UI_10000", "description": "User name or password is not valid.", "statusCode": 403,
                    "@type": "error"});
    let problem = json!({"type": "about:blank", "title": "Unauthorized", "status": 401, "detail": "No."});
    let busy = json!({"code": "X", "description": "Try later.", "statusCode": 503, "@type": "error"});
    let html = "<!DOCTYPE html><html><body>Log in</body></html>";
    for (status, body, expected, logins) in [
        (200, welcome("s"), "ok", 1),
        (200, v3.to_string(), "auth at login", 1),
        (200, v2.to_string(), "auth at login", 1),
        (200, problem.to_string(), "auth at login", 1),
        (200, busy.to_string(), "server at login", 4),
        (200, busy.to_string().replace("503", "422"), "auth at login", 1),
        (400, v3.to_string(), "auth at login", 1),
        (401, v3.to_string(), "auth at login", 1),
        (403, v2.to_string(), "auth at login", 1),
        (401, html.to_owned(), "auth at login", 1),
        (404, problem.to_string(), "not_found at login", 1),
        (302, String::new(), "redirect at login", 1),
        (429, v3.to_string(), "throttled at login", 4),
        (500, html.to_owned(), "server at login", 4),
        (200, html.to_owned(), "auth at login", 1),
        (200, String::new(), "auth at login", 1),
        (200, "{}".to_owned(), "auth at login", 1),
        (200, with_products(json!([])), "auth at login", 1),
        (200, with_products(json!([product("Integration Cloud", "")])), "auth at login", 1),
        (200, with_products(json!([product("Integration Cloud", "pod/saas")])), "auth at login", 1),
        (200, with_products(json!([product("Integration Cloud", "ftp://pod/saas")])), "auth at login", 1),
        (
            200,
            with_products(json!([product("Integration Cloud", "http://pod.informaticacloud.com/saas")])),
            "auth at login",
            1,
        ),
        (200, with_products(json!([product("Integration Cloud", "http://127.0.0.1:1/saas")])), "auth at login", 1),
        (200, json!({"products": [product("a", "https://a/saas")], "userInfo": {}}).to_string(), "auth at login", 1),
        (200, welcome(""), "auth at login", 1),
        (200, welcome("line\nbreak"), "auth at login", 1),
    ] {
        let answer = body.clone();
        let script = Script::new(move |_| (status, answer.clone()), |_, _| empty());
        let ended = Reader::of(&script).ends().await;
        assert_eq!((ended.as_str(), script.logins()), (expected, logins), "{status} {body}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_log_is_read_where_the_login_says_it_is() {
    let base = |products: Value| {
        let answer = json!({"products": products, "userInfo": {"sessionId": "s"}}).to_string();
        Script::new(move |_| (200, answer.clone()), |_, _| empty())
    };
    for (products, host) in [
        (
            json!([{"name": "Integration Cloud", "baseApiUrl": "https://pod.informaticacloud.com/saas"}]),
            "pod.informaticacloud.com/saas/public/core/v3/securityLog",
        ),
        (
            json!([{"name": "MDM", "baseApiUrl": "https://mdm.informaticacloud.com/x"}, {"name": "integration cloud", "baseApiUrl": "https://pod.informaticacloud.com/saas/"}]),
            "pod.informaticacloud.com/saas/public/core/v3/securityLog",
        ),
        (
            json!([{"name": "Integration Cloud", "baseApiUrl": null}, {"baseApiUrl": ""}, {"baseApiUrl": "https://other.informaticacloud.com/saas"}]),
            "other.informaticacloud.com/saas/public/core/v3/securityLog",
        ),
    ] {
        let script = base(products);
        assert_eq!(Reader::of(&script).ends().await, "ok");
        assert_eq!(script.reads()[0].host, host);
        assert_eq!(script.reads()[0].session, "s");
    }
}

#[tokio::test(start_paused = true)]
async fn the_session_goes_only_where_a_login_may_send_it() {
    let vendor = "https://dm-us.informaticacloud.com";
    for (login, base, plain, expected) in [
        (vendor, "https://usw3.dm-us.informaticacloud.com/saas", false, "ok"),
        (vendor, "https://emw1.dm-em.informaticacloud.com/saas", false, "ok"),
        (vendor, "https://dm-us.informaticacloud.com:8443/saas", false, "ok"),
        // another domain, also one that looks like the right one
        (vendor, "https://evil.example/saas", false, "auth at login"),
        (vendor, "https://evilinformaticacloud.com/saas", false, "auth at login"),
        (vendor, "https://informaticacloud.com.evil.example/saas", false, "auth at login"),
        (vendor, "https://dm-us.informaticacloud.com@evil.example/saas", false, "auth at login"),
        (vendor, "https://127.0.0.1/saas", false, "auth at login"),
        (vendor, "https://[::1]/saas", false, "auth at login"),
        // a login by TLS does not give way to plain HTTP, whatever else is allowed
        (vendor, "http://usw3.dm-us.informaticacloud.com/saas", false, "auth at login"),
        (vendor, "http://usw3.dm-us.informaticacloud.com/saas", true, "auth at login"),
        (vendor, "http://127.0.0.1/saas", true, "auth at login"),
        // behind a gateway of one's own
        ("https://iics.example.com", "https://usw3.dm-us.informaticacloud.com/saas", false, "ok"),
        ("https://iics.example.com", "https://pod.iics.example.com/saas", false, "ok"),
        ("https://iics.example.com", "https://example.com/saas", false, "auth at login"),
        ("https://iics.example.com", "https://other.example.com/saas", false, "auth at login"),
        ("https://10.1.2.3", "https://10.1.2.3/saas", false, "ok"),
        ("https://10.1.2.3", "https://10.1.2.4/saas", false, "auth at login"),
        // plain HTTP where it was chosen
        ("http://10.1.2.3", "http://10.1.2.3/saas", true, "ok"),
        ("http://10.1.2.3", "http://10.1.2.3:8080/saas", true, "auth at login"),
        ("http://10.1.2.3", "http://usw3.dm-us.informaticacloud.com/saas", false, "auth at login"),
        ("http://localhost:81", "http://localhost:81/saas", false, "ok"),
        ("http://localhost:81", "http://localhost:82/saas", false, "ok"),
        ("http://localhost:81", "http://usw3.dm-us.informaticacloud.com/saas", false, "auth at login"),
    ] {
        let body = welcome("s").replace("https://usw3.dm-us.informaticacloud.com/saas", base);
        let script = Script::new(move |_| (200, body.clone()), |_, _| empty());
        let mut reader = Reader::with(&script, |service, common| {
            service.login_url = login.parse().unwrap();
            common.allow_plain_http = plain;
        });
        let ended = reader.read(hours(1)).await.0;
        let shown = ended.as_ref().map_or_else(ToString::to_string, |()| "ok".to_owned());
        assert_eq!(ended.is_ok(), expected == "ok", "{login} {base}: {shown}");
        assert_eq!(script.reads().len(), usize::from(expected == "ok"), "{login} {base}: where the session went");
    }
}

#[tokio::test(start_paused = true)]
async fn the_log_is_read_where_the_configuration_says_it_is() {
    let body = welcome("s").replace("https://usw3.dm-us.informaticacloud.com", "http://evil.example");
    let script = Script::new(move |_| (200, body.clone()), |_, _| empty());
    let set = |service: &mut Settings, _: &mut Common| {
        service.base_url = Some("https://gateway.example/saas".parse().unwrap());
    };
    assert_eq!(Reader::with(&script, set).ends().await, "ok");
    assert_eq!(script.reads()[0].host, "gateway.example/saas/public/core/v3/securityLog");
}

#[tokio::test(start_paused = true)]
async fn the_login_is_what_is_documented_with_the_password_of_the_moment() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("password");
    std::fs::write(&path, "first \"one\"\n").unwrap();
    let script = Script::open(|n, _| if n == 2 { (401, String::new()) } else { empty() });
    let mut reader = Reader::with(&script, |service, _| service.password = Secret::file(&path));
    assert_eq!(reader.ends().await, "ok");
    std::fs::write(&path, "second").unwrap();
    assert_eq!(reader.ends().await, "ok");
    let logins = script.0.lock().unwrap().logins.clone();
    let logins: Vec<Value> = logins.iter().map(|body| serde_json::from_str(body).unwrap()).collect();
    let expected = |password: &str| json!({"username": "audit@example.com", "password": password});
    assert_eq!(logins, [expected("first \"one\""), expected("second")]);
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_password_is_an_auth_failure_without_a_request() {
    let script = Script::open(|_, _| empty());
    let mut reader = Reader::with(&script, |service, _| service.password = Secret::file("no/such/file"));
    assert_eq!(reader.ends().await, "auth at login");
    assert_eq!(script.logins(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_opaque_session_is_kept_until_the_service_refuses_it() {
    let script = Script::open(|_, _| empty());
    let mut reader = Reader::of(&script);
    for _ in 0..3 {
        assert_eq!(reader.ends().await, "ok");
        tokio::time::advance(Duration::from_hours(10)).await;
    }
    assert_eq!(script.logins(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_says_when_it_ends_is_renewed_before() {
    use base64::Engine;
    let jwt = |claims: Value| {
        let part = |value: &Value| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.c2ln", part(&json!({"alg": "RS256"})), part(&claims))
    };
    let start = at(0).timestamp();
    for (claims, expected) in [
        (json!({"exp": start + 1800}), 2),
        // their clock is a day ahead, but they say how long it lasts
        (json!({"exp": start + 86_400 + 1800, "iat": start + 86_400}), 2),
        // by our clock it has ended already: rather be refused than log in for each request
        (json!({"exp": start - 5}), 1),
        (json!({"exp": 1e300}), 1),
        (json!({"sub": "x"}), 1),
    ] {
        let token = jwt(claims.clone());
        let script = Script::new(move |_| (200, welcome(&token)), |_, _| empty());
        let mut reader = Reader::of(&script);
        for minutes in [0, 20, 9] {
            tokio::time::advance(Duration::from_mins(minutes)).await;
            assert_eq!(reader.ends().await, "ok");
        }
        assert_eq!(script.logins(), expected, "{claims}");
    }
}

const HTML: &str = "\n<!DOCTYPE html><html><title>Log in</title></html>";

/// The ways in which an ended session is refused.
fn endings() -> Vec<Answer> {
    let v3 = |code: &str, message: &str| json!({"error": {"code": code, "message": message}}).to_string();
    let v2 = json!({"code": "AUTH_01", "description": "x", "statusCode": 403, "@type": "error"}).to_string();
    let problem = json!({"title": "Forbidden", "status": 403, "detail": "Session is invalid or expired."}).to_string();
    vec![
        (401, String::new()),
        (401, v3("AUTH_02", "x")),
        (403, json!({"error": {"code": "AUTH_01"}}).to_string()),
        (403, v2.clone()),
        (403, problem.clone()),
        (400, v3("auth_01", "")),
        (200, v3("AUTH_01", "")),
        (200, v3("X_1", "The session has expired.")),
        (200, v2),
        (200, problem),
        (200, json!({"code": "Y", "description": "No.", "statusCode": 401, "@type": "error"}).to_string()),
        (200, HTML.to_owned()),
    ]
}

#[tokio::test(start_paused = true)]
async fn an_ended_session_is_renewed_once_per_failure() {
    for (status, body) in endings() {
        let answer = body.clone();
        let script = Script::open(move |n, _| if n % 2 == 0 { (status, answer.clone()) } else { empty() });
        let mut reader = Reader::of(&script);
        assert_eq!(reader.ends().await, "ok");
        assert_eq!(reader.ends().await, "ok", "{status} {body}");
        assert_eq!((script.logins(), script.reads().len()), (2, 3), "{status} {body}");
        assert_eq!(script.reads()[2].session, "session-2");
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_refused_anew_is_not_renewed_again() {
    for (status, body) in endings() {
        let answer = body.clone();
        let script = Script::open(move |_, _| (status, answer.clone()));
        let kind = if body.trim_start().starts_with('<') { "decode" } else { "auth" };
        assert_eq!(Reader::of(&script).ends().await, kind, "{status} {body}");
        assert_eq!((script.logins(), script.reads().len()), (2, 2), "{status} {body}");
    }
}

#[tokio::test(start_paused = true)]
async fn other_errors_are_what_they_say_and_cost_no_login() {
    let v3 = |code: &str, message: &str| json!({"error": {"code": code, "message": message}}).to_string();
    let problem = json!({"type": "about:blank", "title": "Not Found", "status": 404,
                         "detail": "No static resource core/v3/securityLogs.", "properties": null});
    for (status, body, expected, reads) in [
        (403, v3("AUTH_03", "The user lacks the necessary role."), "forbidden", 1),
        (403, String::new(), "forbidden", 1),
        (404, problem.to_string(), "not_found", 1),
        (200, problem.to_string(), "not_found", 1),
        (200, v3("INTERNAL", "Oops."), "server", 4),
        (
            200,
            json!({"code": "X", "description": "Y", "statusCode": 429, "@type": "error"}).to_string(),
            "throttled",
            4,
        ),
        (400, v3("V3API_400", "Bad q."), "server", 1),
        (429, String::new(), "throttled", 4),
        (503, HTML.to_owned(), "server", 4),
        (307, String::new(), "redirect", 1),
        (200, String::new(), "decode", 1),
        (200, "{}".to_owned(), "decode", 1),
        (200, json!({"entries": null}).to_string(), "ok", 1),
        (200, json!({"entries": {}}).to_string(), "decode", 1),
        (200, r#"{"entries":[{"id":"a","#.to_owned(), "decode", 1),
        (200, "[".repeat(2000) + &"]".repeat(2000), "decode", 1),
    ] {
        let answer = body.clone();
        let script = Script::open(move |_, _| (status, answer.clone()));
        assert_eq!(Reader::of(&script).ends().await, expected, "{status} {body}");
        assert_eq!((script.logins(), script.reads().len()), (1, reads), "{status} {body}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_session_and_the_password_are_in_no_error() {
    let script = Script::new(|_| (200, welcome("secret-session")), |_, _| (403, String::new()));
    let failure = Reader::with(&script, |service, _| service.password = Secret::text("secret-password"))
        .read(hours(1))
        .await
        .0
        .unwrap_err();
    assert!(!format!("{failure} {failure:?}").contains("secret-"), "{failure:?}");
}

// === ranges and pages ===

#[tokio::test(start_paused = true)]
async fn the_question_is_asked_as_the_documentation_writes_it() {
    let script = Script::open(|_, _| empty());
    let window =
        Window { from: "2019-07-26T08:00:00Z".parse().unwrap(), to: "2019-07-26T17:00:00.001Z".parse().unwrap() };
    Reader::of(&script).read(window).await.0.unwrap();
    assert_eq!(
        script.reads()[0].raw_query,
        "q=entryTime%3E%3D%222019-07-26T08%3A00%3A00.000Z%22%3BentryTime%3C%3D%222019-07-26T17%3A00%3A01.000Z%22\
         &limit=1000&skip=0"
    );
}

#[tokio::test(start_paused = true)]
async fn pages_are_read_to_the_last_whatever_their_number() {
    // entries, the service's cap, limit, pages
    for (count, cap, limit, pages) in [
        (0, 1000, 1000, 1),
        (1, 1000, 1000, 1),
        (37, 1000, 1000, 1),
        (99, 1000, 1000, 2),
        (999, 1000, 1000, 2),
        (1000, 1000, 1000, 2),
        (1001, 1000, 1000, 3),
        (2000, 1000, 1000, 3),
        (300, 1000, 1000, 2),
        (450, 100, 1000, 6),
        (455, 100, 1000, 6),
        (455, 200, 1000, 4),
        (137, 50, 100, 4),
        (205, 1000, 100, 4),
        (1500, 256, 1000, 7),
        (1500, 333, 1000, 6),
        (256, 256, 1000, 2),
        (333, 333, 1000, 2),
    ] {
        let script = Script::log(entries(count, 1000), cap);
        let limit = std::num::NonZeroU32::new(limit);
        let mut reader = Reader::with(&script, |_, common| common.page_size = limit);
        let (result, collected) = reader.read(hours(1)).await;
        result.unwrap();
        assert_eq!((collected.events.len(), script.reads().len()), (count, pages), "{count} {cap} {limit:?}");
        assert_eq!(collected.handed_over, count);
        assert!(collected.reports.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn ranges_are_never_longer_than_documented_and_leave_nothing_out() {
    let hour = 3_600_000;
    let script = Script::log(entries(40 * 24 + 1, hour), 1000);
    let window = Window { from: at(1), to: at(40 * 24 * hour) };
    let (result, collected) = Reader::of(&script).read(window).await;
    result.unwrap();
    assert_eq!(collected.events.len(), 40 * 24 - 1);
    let mut reached = window.from;
    for read in script.reads().iter().filter(|read| read.skip == 0) {
        assert!(read.to - read.from <= TimeDelta::days(14) && read.from <= reached, "{read:?}");
        reached = read.to;
    }
    assert!(reached >= window.to);
}

#[tokio::test(start_paused = true)]
async fn entries_at_both_edges_of_a_window_are_asked_for() {
    let script = Script::log(entries(10, 500), 1000);
    // .500 is inside, 2.500 is not; both whole seconds around are asked for
    let (_, collected) = Reader::of(&script).read(Window { from: at(500), to: at(2500) }).await;
    assert_eq!(collected.events.len(), 4);
    let read = &script.reads()[0];
    assert_eq!((read.from, read.to), (at(0), at(3000)));
    assert!(collected.reports.is_empty(), "the seconds around are no ignored filter");
}

#[tokio::test(start_paused = true)]
async fn where_skip_is_ignored_or_refused_the_range_is_cut_until_it_fits() {
    for refused in [true, false] {
        let log = entries(5000, 700);
        let script = Script::open(move |_, asked| {
            if refused && asked.skip > 0 {
                return (400, json!({"error": {"code": "V3API_400", "message": "skip is too large"}}).to_string());
            }
            page(&log, asked, 0, 1000)
        });
        let (result, collected) = Reader::of(&script).read(hours(1)).await;
        result.unwrap();
        assert_eq!(collected.events.len(), 5000);
        assert!(script.reads().len() < 40, "{}", script.reads().len());
    }
}

#[tokio::test(start_paused = true)]
async fn an_order_that_is_another_on_each_page_hides_no_entry() {
    // forty to a second, and from one page to the next those of a second change places
    let log = entries(1500, 25);
    let script = Script::open(move |_, asked| {
        let mut listed = log.clone();
        if asked.skip > 0 {
            listed.chunks_mut(40).for_each(<[Value]>::reverse);
        }
        page(&listed, asked, asked.skip, 1000)
    });
    for limit in [100, 130, 1000] {
        let mut reader = Reader::with(&script, |_, common| common.page_size = std::num::NonZeroU32::new(limit));
        let (result, collected) = reader.read(hours(1)).await;
        result.unwrap();
        assert_eq!(collected.events.len(), 1500, "{limit} on a page");
    }
    assert!(script.reads().len() < 500, "{}", script.reads().len());
}

#[tokio::test(start_paused = true)]
async fn where_skip_leads_nowhere_within_a_second_reading_ends_with_an_error() {
    let log = entries(1500, 0);
    let script = Script::open(move |_, asked| page(&log, asked, 0, 1000));
    assert_eq!(Reader::of(&script).ends().await, "decode");
    // a page of as many as the smallest limit may be cut
    let log = entries(100, 0);
    let script = Script::open(move |_, asked| page(&log, asked, 0, 1000));
    assert_eq!(Reader::of(&script).ends().await, "decode");
    // but a shorter one is the whole of it
    let log = entries(90, 0);
    let script = Script::open(move |_, asked| page(&log, asked, 0, 1000));
    let (result, collected) = Reader::of(&script).read(hours(1)).await;
    result.unwrap();
    assert_eq!(collected.events.len(), 90);
}

#[tokio::test(start_paused = true)]
async fn pages_cut_by_their_size_are_read_until_nothing_new_comes() {
    for bytes in [9_000, 20_000, 64 << 10] {
        // entries of different lengths, so that pages have different numbers of them
        let mut log = entries(1500, 1000);
        for (n, entry) in log.iter_mut().enumerate() {
            entry["objectName"] = json!("x".repeat(n * 7919 % 200));
        }
        let script = Script::open(move |_, asked| {
            let mut room = bytes;
            let fits = |entry: &&Value| {
                room -= i64::try_from(entry.to_string().len()).unwrap();
                room > 0
            };
            let (_, whole) = page(&log, asked, asked.skip, 1000);
            let whole: Value = serde_json::from_str(&whole).unwrap();
            let listed: Vec<&Value> = whole["entries"].as_array().unwrap().iter().take_while(fits).collect();
            (200, json!({"entries": listed}).to_string())
        });
        let (result, collected) = Reader::of(&script).read(hours(1)).await;
        result.unwrap();
        assert_eq!(collected.events.len(), 1500, "{bytes}");
        assert_eq!(collected.reports, []);
        assert!(script.reads().len() < 45, "{bytes}: {}", script.reads().len());
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_repeats_its_last_or_first_page_behind_the_end_is_read_once() {
    for first in [false, true] {
        for (count, reads) in [(37, 1), (1355, 6)] {
            let log = entries(count, 1000);
            let script = Script::open(move |_, asked| {
                let mut skip = asked.skip;
                if skip >= count {
                    skip = if first { 0 } else { count / 300 * 300 };
                }
                page(&log, asked, skip, 300)
            });
            let (result, collected) = Reader::of(&script).read(hours(1)).await;
            result.unwrap();
            assert_eq!(collected.events.len(), count);
            if !first {
                assert_eq!(script.reads().len(), reads);
            }
            assert!(script.reads().len() < 60, "{}", script.reads().len());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_answers_everything_alike_is_left_soon() {
    for (count, ends) in [(0, "ok"), (9, "ok"), (10, "ok"), (90, "ok"), (140, "decode"), (1000, "decode")] {
        let log = json!({"entries": entries(count, 3_500)}).to_string();
        let script = Script::open(move |_, _| (200, log.clone()));
        assert_eq!(Reader::of(&script).ends().await, ends, "{count}");
        assert!(script.reads().len() <= 40, "{count}: {}", script.reads().len());
    }
}

#[tokio::test(start_paused = true)]
async fn nameless_entries_on_pages_that_do_not_move_end_the_reading_too() {
    let mut log = entries(1500, 0);
    for entry in &mut log {
        entry.as_object_mut().unwrap().remove("id");
    }
    let script = Script::open(move |_, asked| page(&log, asked, 0, 1000));
    assert_eq!(Reader::of(&script).ends().await, "decode");
}

#[tokio::test(start_paused = true)]
async fn an_ignored_range_is_reported_and_does_not_keep_the_reading_from_its_end() {
    let log = entries(1200, 10_000);
    let script = Script::open(move |_, asked| {
        page(&log, &Asked { from: at(-1), to: at(1 << 40), ..asked.clone() }, asked.skip, 1000)
    });
    let (result, collected) = Reader::of(&script).read(hours(1)).await;
    result.unwrap();
    assert_eq!((collected.events.len(), collected.reports), (360, vec![ErrorKind::Decode]));
}

#[tokio::test(start_paused = true)]
async fn entries_that_are_none_neither_end_a_reading_nor_shift_it() {
    for (count, reads) in [(0, 1), (7, 1), (10, 2), (1500, 16), (1505, 17)] {
        let log = entries(count, 1000);
        let script = Script::open(move |_, asked| {
            let (status, body) = page(&log, asked, asked.skip, 100);
            let mut body: Value = serde_json::from_str(&body).unwrap();
            body["entries"].as_array_mut().unwrap().insert(0, json!({"id": ["no"], "entryTime": 7}));
            (status, body.to_string())
        });
        let (result, collected) = Reader::of(&script).read(hours(1)).await;
        result.unwrap();
        assert_eq!((collected.events.len(), collected.rejected.len()), (count, 1));
        assert_eq!(script.reads().len(), reads, "{count}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever the order, the number of equal times, the cap and the duplicates: everything in
    /// the window is counted once.
    #[test]
    fn every_entry_of_a_window_is_counted_once(
        times in prop::collection::vec(0_i64..100, 0..700),
        cap in prop::sample::select(vec![50_usize, 100, 250, 1000]),
        edges in (0_i64..50_000, 50_000_i64..100_000),
        rotate in 0_usize..700,
        twice in prop::bool::ANY,
    ) {
        let mut log = entries(times.len(), 0);
        for (entry, time) in log.iter_mut().zip(&times) {
            entry["entryTime"] = json!(at(time * 1000).to_rfc3339_opts(SecondsFormat::Secs, true));
        }
        if twice {
            log.extend(log.clone().into_iter().step_by(3));
        }
        let middle = if log.is_empty() { 0 } else { rotate % log.len() };
        log.rotate_left(middle);
        let window = Window { from: at(edges.0), to: at(edges.1) };
        let expected = times.iter().filter(|time| window.contains(at(**time * 1000))).count();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let counted = runtime.block_on(async {
            let script = Script::log(log, cap);
            let (result, collected) = Reader::of(&script).read(window).await;
            result.map(|()| collected.events.len())
        });
        prop_assert_eq!(counted.unwrap(), expected);
    }
}

// === entries ===

fn decoder() -> Decoder {
    Decoder::new(Ignore::new(&["robot@example.com".into()]))
}

fn items(entries: &Value) -> Vec<Item> {
    decoder().items(json!({ "entries": entries }).to_string().as_bytes()).unwrap()
}

fn shown(item: &Item) -> String {
    match &item.what {
        What::Event(labels) => {
            format!("{} {} {} {:?}", labels.category, labels.action, labels.outcome.as_str(), labels.class)
        }
        What::Rejected(rejection) => rejection.reason.as_str().to_owned(),
        other => format!("{other:?}"),
    }
}

/// The answer of the service's own documentation.
const EXAMPLE: &str = r#"{
"entries": [
{"id": "1AoqT9lYsrUhu7kl49kGsx", "orgId": "9l10ywsSnqadMx1NtEEbKT", "actor": "admin",
 "entryTime": "2019-07-23T22:28:07.000Z", "objectId": "9l10ywsSnqadMx1NtEEbKT",
 "objectName": "idsv3_org_1563920884151", "actionCategory": "Organization", "actionEvent": "CREATE"},
{"id": "595EZai5YqFi6X8GIpVVu0", "orgId": "9l10ywsSnqadMx1NtEEbKT", "actor": "admin",
 "entryTime": "2019-07-23T22:28:13.000Z", "objectId": "9pieratUfEWkhFHnzY1r49",
 "objectName": "idsv3_user_1563920884151", "actionCategory": "User", "actionEvent": "CREATE"}
]
}"#;

#[test]
fn the_documented_example_is_counted_as_the_interface_says() {
    let items = decoder().items(EXAMPLE.as_bytes()).unwrap();
    assert_eq!(
        items.iter().map(shown).collect::<Vec<_>>(),
        ["organization create success Change", "user create success Change"]
    );
    assert_eq!(items[1].at, parse_time("2019-07-23T22:28:13Z"));
    assert_eq!(items[1].filed_at, items[1].at);
    assert_eq!(items[0].key, EventKey::of("informatica", &[b"1AoqT9lYsrUhu7kl49kGsx"]));
}

#[test]
fn codes_become_labels_by_their_words() {
    for (category, event, expected) in [
        ("Authentication", "USER_LOGIN", "authentication login success Login(User)"),
        ("Authentication", "User Login", "authentication login success Login(User)"),
        ("AUTHENTICATION", "agent_login", "authentication login success Login(Agent)"),
        ("Authentication", "LOGOUT", "authentication logout success Logout"),
        ("Authentication", "Logout", "authentication logout success Logout"),
        ("Authentication", "LOGIN", "authentication login success Change"),
        ("User group", "UPDATE", "user_group update success Change"),
        ("User", "PASSWORD_RESET", "user password_reset success Change"),
        ("Role", "DISABLE", "role disable success Change"),
        ("SAML Config", "somethingNew", "saml_config something_new success Change"),
        ("", "", "unknown unknown success Change"),
    ] {
        let entry = json!({"id": "a", "actionCategory": category, "actionEvent": event});
        assert_eq!(shown(&items(&json!([entry]))[0]), expected);
    }
    assert_eq!(shown(&items(&json!([{"id": "a", "actionCategory": null}]))[0]), "unknown unknown success Change");
}

#[test]
fn every_documented_label_set_is_in_the_catalogue() {
    let settings = Settings {
        base_url: None,
        login_url: "https://dm-us.informaticacloud.com".parse().unwrap(),
        username: "u".into(),
        password: Secret::text("p"),
    };
    let spec = settings.build(&(SERVICE.defaults)()).0.spec();
    assert!(spec.reading.step_max() < Duration::from_hours(14 * 24));
    for category in ["Organization", "User", "User group", "Role", "Authentication"] {
        for event in ["CREATE", "UPDATE", "DELETE", "DISABLE", "PASSWORD_RESET"] {
            assert!(spec.catalogue.events.contains(&labels(category, event)), "{category} {event}");
        }
    }
    for event in ["USER_LOGIN", "AGENT_LOGIN", "LOGOUT"] {
        assert!(spec.catalogue.events.contains(&labels("Authentication", event)), "{event}");
    }
    assert_eq!(spec.catalogue.events.len(), 28);
}

#[test]
fn one_bad_entry_loses_no_other() {
    let good =
        json!({"id": "g", "entryTime": "2019-07-23T22:28:07Z", "actionCategory": "Role", "actionEvent": "DELETE"});
    for (bad, reason) in [
        (json!("text"), "malformed"),
        (json!(null), "malformed"),
        (json!({}), "malformed"),
        (json!({"actor": "ada"}), "malformed"),
        (json!({"id": ["x"]}), "malformed"),
        (json!({"id": "x", "entryTime": "soon"}), "bad_time"),
        (json!({"id": "x", "entryTime": ""}), "bad_time"),
        (json!({"id": "x", "entryTime": 7}), "bad_time"),
    ] {
        let shown: Vec<String> = items(&json!([good, bad, good])).iter().map(shown).collect();
        assert_eq!(shown, ["role delete success Change", reason, "role delete success Change"], "{bad}");
    }
}

#[test]
fn the_list_may_be_bare_and_ids_may_be_numbers() {
    let key = |body: Value| decoder().items(body.to_string().as_bytes()).unwrap()[0].key;
    assert_eq!(key(json!([{"id": 17}])), key(json!({"entries": [{"id": "17", "new": {"field": [1]}}]})));
    assert!(decoder().items(b" [] ").unwrap().is_empty());
    for body in ["[1, 2]", "[[{}]]", "17", "\"entries\"", "{\"entries\": 1}", "", "<html>"] {
        assert!(decoder().items(body.as_bytes()).is_err(), "{body}");
    }
}

#[test]
fn times_are_read_in_every_documented_format() {
    for text in [
        "2019-07-23T22:28:07Z",
        "2019-07-23T22:28:07.000Z",
        "2019-07-23T22:28:07+0000",
        "2019-07-23T22:28:07.000+0000",
        "2019-07-23T16:28:07.000-0600",
    ] {
        let item = &items(&json!([{"id": "a", "entryTime": text}]))[0];
        assert_eq!(item.at.map(|at| at.timestamp()), Some(1_563_920_887), "{text}");
    }
}

#[test]
fn escapes_and_broken_utf_8_do_not_change_what_is_counted() {
    let body = br#"{"entries":[{"id":"\u0061","actionCategory":"User\u0020group","actionEvent":"CREATE","objectName":"\xff\"\\"}]}"#;
    let mut body = body.to_vec();
    let position = body.windows(4).position(|bytes| bytes == br"\xff").unwrap();
    body.splice(position..position + 4, [0xff]);
    let items = decoder().items(&body).unwrap();
    assert_eq!(shown(&items[0]), "user_group create success Change");
    assert_eq!(items[0].key, EventKey::of("informatica", &[b"a"]));
}

#[test]
fn equal_entries_without_id_are_as_many_as_they_are_and_the_same_when_read_again() {
    let page = json!({"entries": [{"actionEvent": "A"}, {"actionEvent": "A"}, {"actionEvent": "B"}, {"id": "", "actionEvent": "B"}]});
    let page = page.to_string();
    let mut decoder = decoder();
    let mut keys = || decoder.items(page.as_bytes()).unwrap().iter().map(|item| item.key).collect::<Vec<_>>();
    let first = keys();
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 4);
    let next_page = keys();
    assert!(first.iter().all(|key| !next_page.contains(key)));
    decoder.restart();
    let again: Vec<EventKey> = decoder.items(page.as_bytes()).unwrap().iter().map(|item| item.key).collect();
    assert_eq!(again, first);
}

#[test]
fn an_ignored_actor_is_ignored_without_case() {
    let entry = |actor: &str| json!({"id": "a", "actor": actor, "actionEvent": "USER_LOGIN"});
    let items = items(&json!([entry("Robot@Example.com"), entry("robot"), entry("")]));
    assert!(matches!(items[0].what, What::Ignored));
    assert!(items[1..].iter().all(|item| matches!(item.what, What::Event(_))));
}

#[test]
fn labels_remembered_are_bounded_and_do_not_change() {
    let mut decoder = decoder();
    for n in 0..3 * KNOWN_MAX {
        let event = format!("EVENT_{n}");
        assert_eq!(decoder.labels("User", &event), labels("User", &event));
        assert!(decoder.known_pairs <= KNOWN_MAX);
    }
    let long = "x".repeat(KNOWN_BYTES_MAX);
    let before = decoder.known_pairs;
    assert_eq!(decoder.labels("User", &long), labels("User", &long));
    assert_eq!(decoder.known_pairs, before);
}

proptest! {
    /// The quick way and the careful way read the same.
    #[test]
    fn a_page_reads_alike_with_a_bad_entry_in_it(
        entries in prop::collection::vec(("[a-c]{0,2}", "[A-Z][a-z]{0,3} ?[a-z]{0,3}", "[A-Z_]{0,6}", 0_i64..9), 1..20)
    ) {
        let entry = |(id, category, event, second): &(String, String, String, i64)| {
            let time = at(second * 1000).to_rfc3339();
            json!({"id": id, "entryTime": time, "actionCategory": category, "actionEvent": event})
        };
        let mut page: Vec<Value> = entries.iter().map(entry).collect();
        let text = |items: &[Item]| items.iter().map(|item| format!("{item:?}")).collect::<Vec<_>>();
        let quick = text(&items(&json!(page)));
        page.push(json!("no entry"));
        let careful = text(&items(&json!(page)));
        prop_assert_eq!(&quick[..], &careful[..quick.len()]);
    }

    /// No body makes it panic, and none that is cut off is a page.
    #[test]
    fn half_a_page_is_none(cut in 1..EXAMPLE.len()) {
        prop_assert!(decoder().items(&EXAMPLE.as_bytes()[..cut]).is_err());
    }
}

// === against the simulated service ===

fn counts(events: &HashMap<EventKey, EventLabels>) -> BTreeMap<(event::System, String, String, Outcome), u64> {
    let mut counts = BTreeMap::new();
    for labels in events.values() {
        let key = (SYSTEM, labels.category.to_string(), labels.action.to_string(), labels.outcome);
        *counts.entry(key).or_default() += 1;
    }
    counts
}

#[tokio::test(start_paused = true)]
async fn the_simulated_log_is_counted_exactly_whatever_goes_wrong() {
    for faults in [
        "informatica:retry_after=0",
        "informatica:expire_every=3",
        "informatica:expire_every=2,session_end=auth01,error_shape=v2",
        "informatica:expire_every=3,session_end=auth01,error_shape=problem",
        "informatica:expire_every=2,session_end=html",
        "informatica:jwt_sessions,clock_skew_seconds=4000",
        "informatica:count_cap=100",
        "informatica:count_cap=256",
        "informatica:count_cap=333,duplicates=0.1",
        "informatica:gzip_members",
        "informatica:looping",
        "informatica:looping,count_cap=200",
        "informatica:looping,count_cap=256",
        "informatica:duplicates=0.3",
        "informatica:malformed=1",
        "informatica:malformed=0.5,duplicates=0.3,count_cap=100",
        "informatica:throttle=0.2,retry_after=3,unavailable=0.1,error=0.1",
    ] {
        let clock = Clock::starting_at(at(0));
        let mut switched = Faults::default();
        switched.set(faults).unwrap();
        let world = World::new(Options {
            seed: 11,
            clock: clock.clone(),
            history: Duration::from_hours(3),
            day: Duration::from_hours(24),
            rate: 0.25,
            faults: switched,
            quiet: false,
        });
        let service = Settings {
            base_url: None,
            login_url: "http://localhost:10813".parse().unwrap(),
            username: credentials::INFORMATICA_USERNAME.to_owned(),
            password: Secret::text(credentials::INFORMATICA_PASSWORD),
        };
        let mut common = (SERVICE.defaults)();
        common.ignore_actors = vec![credentials::INFORMATICA_USERNAME.to_lowercase()];
        let mut reader = Reader::new(world.router(), &service, &common, clock.clone());
        let skew = TimeDelta::seconds(world.faults().of(super::SYSTEM).clock_skew_seconds);
        let window = Window { from: at(-3 * 3_600_000) + skew, to: at(-600_000) + skew };
        let mut collected = Collected { window: Some(window), ..Collected::default() };
        let mut polls = 0;
        while let Err(failure) = reader.source.read(window, &reader.api, &mut collected).await {
            polls += 1;
            assert!(polls < 20, "{faults}: {failure}");
        }
        let of = TruthOf {
            from: Some(window.from - skew),
            to: Some(window.to - skew),
            ignored_actors: common.ignore_actors.clone(),
            ..TruthOf::default()
        };
        let truth = world.truth_of(&of);
        assert!(truth.total(SYSTEM) > 1000, "{faults}: too quiet to tell");
        let truth: BTreeMap<_, _> = truth.events.into_iter().filter(|(key, _)| key.0 == SYSTEM).collect();
        assert_eq!(counts(&collected.events), truth, "{faults}");
        assert!(collected.reports.is_empty(), "{faults}");
        let logins = world.requests(SYSTEM).iter().filter(|seen| seen.login).count();
        if !faults.contains("expire") && !faults.contains("throttle") {
            assert_eq!(logins, 1, "{faults}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_wrong_password_costs_one_login() {
    for shape in ["v3", "v2", "problem"] {
        let clock = Clock::starting_at(at(0));
        let mut faults = Faults::default();
        faults.set(&format!("informatica:error_shape={shape}")).unwrap();
        let options = Options {
            seed: 1,
            clock: clock.clone(),
            history: Duration::ZERO,
            day: Duration::from_hours(24),
            rate: 0.0,
            faults,
            quiet: true,
        };
        let world = World::new(options);
        let service = Settings {
            base_url: None,
            login_url: "http://localhost:10813".parse().unwrap(),
            username: credentials::INFORMATICA_USERNAME.to_owned(),
            password: Secret::text("wrong"),
        };
        let mut reader = Reader::new(world.router(), &service, &(SERVICE.defaults)(), clock);
        assert_eq!(reader.ends().await, "auth at login");
        assert_eq!(world.requests(SYSTEM).len(), 1);
    }
}
