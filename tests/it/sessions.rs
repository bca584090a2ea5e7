//! Sessions, logins and politeness, on every system they concern: the whole program for hours of simulated time,
//! against services that answer in ways no documentation shows.
#![allow(clippy::unnecessary_wraps, reason = "an answer may be none at all")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use audit_exporter::clock::Clock;
use audit_exporter::config::parse;
use audit_exporter::connect::Connect;
use audit_exporter::exporter::{Edges, Exporter, SourceStatus};
use audit_exporter::exposition::Format;
use audit_exporter::failure::ErrorKind;
use audit_exporter::ledger::Ledger;
use audit_exporter::simulate::{Credential, Disk, SERVICES, Sessions, service};
use audit_exporter::transport::{Body, Transport, TransportError};
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::{StreamExt, stream};
use http::{Request, Response};
use tokio::time::Instant;

use crate::exposed::Exposed;

/// An account that locks at this many wrong passwords is not locked.
const REFUSED_LOGINS_MAX: usize = 6;
const PAGE: &str = "<!DOCTYPE html><html><head><title>Blocked</title></head><body>Policy</body></html>";
const POD: &str = "usw3.dm-us.informaticacloud.com";

/// All systems.
fn systems() -> impl Iterator<Item = &'static str> {
    SERVICES.iter().map(|service| service.system.as_str())
}

/// Those whose credential becomes what requests carry in such a way.
fn that_log_in(ways: &[Sessions]) -> impl Iterator<Item = &'static str> {
    SERVICES.iter().filter(|service| ways.contains(&service.sessions)).map(|service| service.system.as_str())
}

/// A request, as the service sees it.
#[derive(Clone, Debug)]
struct Asked {
    /// Since the start.
    at: Duration,
    /// How many logins there were before it.
    logins: usize,
    login: bool,
    host: String,
    /// What stands in the header of the credential.
    credential: Option<String>,
}

/// Status, headers and body; or no answer.
type Answer = Result<(u16, Vec<(&'static str, String)>, String), ErrorKind>;

fn answer(status: u16, body: impl Into<String>) -> Answer {
    Ok((status, Vec::new(), body.into()))
}

fn with(status: u16, name: &'static str, value: &str) -> Answer {
    Ok((status, vec![(name, value.to_owned())], String::new()))
}

/// A login that gives a session; `base` is the host of the log, for Informatica.
fn welcome(system: &str, token: &str, base: &str) -> Answer {
    answer(200, service(system).unwrap().sample.login(token, base))
}

/// A log without an event.
fn empty(system: &str) -> Answer {
    answer(200, String::from_utf8(service(system).unwrap().sample.page(&[])).unwrap())
}

type Handler = Arc<dyn Fn(&Asked) -> Answer + Send + Sync>;

#[derive(Clone)]
struct Service {
    begun: Instant,
    clock: Clock,
    handler: Handler,
    asked: Arc<Mutex<Vec<Asked>>>,
}

#[async_trait]
impl Transport for Service {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
        let path = request.uri().path();
        let header = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let asked = {
            let mut all = self.asked.lock().unwrap();
            let login = path.ends_with("/login") || path.ends_with("/token");
            let asked = Asked {
                at: self.begun.elapsed(),
                logins: all.iter().filter(|asked| asked.login).count(),
                login,
                host: request.uri().host().unwrap().to_owned(),
                credential: header("infa-session-id").or_else(|| header("authorization")),
            };
            all.push(asked.clone());
            asked
        };
        let (status, headers, body) = match (self.handler)(&asked) {
            Ok(answer) => answer,
            Err(ErrorKind::Timeout) => std::future::pending().await,
            Err(kind) => return Err(TransportError::new(kind, "no answer")),
        };
        let mut response = Response::builder().status(status);
        if !headers.iter().any(|(name, _)| *name == "date") {
            response = response.header("date", httpdate::fmt_http_date(self.clock.now().into()));
        }
        for (name, value) in headers {
            response = response.header(name, value);
        }
        let body = stream::once(async { Ok(Bytes::from(body)) }).boxed() as Body;
        Ok(response.body(body).unwrap())
    }
}

/// What became of a source.
struct Lived {
    asked: Vec<Asked>,
    status: SourceStatus,
    page: Exposed,
    ended: DateTime<Utc>,
}

impl Lived {
    fn logins(&self) -> Vec<Duration> {
        self.asked.iter().filter(|asked| asked.login).map(|asked| asked.at).collect()
    }

    fn reads(&self) -> usize {
        self.asked.iter().filter(|asked| !asked.login).count()
    }

    fn errors(&self, kind: &str) -> f64 {
        self.page.sum("audit_source_errors_total", &[&format!("kind=\"{kind}\"")])
    }

    fn error(&self) -> &str {
        self.status.last_error.as_deref().unwrap_or_default()
    }

    fn is_up(&self) -> bool {
        self.page.sum("audit_source_up", &[]) == 1.0
    }

    /// The most logins in any hour.
    fn logins_in_an_hour(&self) -> usize {
        let logins = self.logins();
        let within =
            |from: &Duration| logins.iter().filter(|at| *at >= from && **at < *from + Duration::from_hours(1)).count();
        logins.iter().map(within).max().unwrap_or_default()
    }
}

/// Runs one source for so long; it polls every ten seconds.
async fn live(
    system: &'static str,
    time: Duration,
    handler: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
) -> Lived {
    let folder = tempfile::tempdir().unwrap();
    let (address, secret) = match system {
        "informatica" => ("https://dm-us.informaticacloud.com", "hunter2"),
        // id:a+b, which is tried in two forms
        "index_exchange" => ("https://services.test", "aWQ6YSti"),
        _ => ("https://services.test", "hunter2"),
    };
    let keys = service(system).unwrap().entry(address, Credential::Text(secret), "      ");
    let text = format!(
        "storage:\n  path: simulated\nsources:\n  {system}:\n    - name: source\n      {keys}\n      poll_interval: 10s\n      rate_limit: {{requests: 600, per: 1m, burst: 20}}\n"
    );
    let config = parse(&text, &folder.path().join("audit-exporter.yml")).unwrap_or_else(|errors| panic!("{errors}"));
    let clock = Clock::starting_at("2027-01-15T08:00:00Z".parse().unwrap());
    let service =
        Service { begun: Instant::now(), clock: clock.clone(), handler: Arc::new(handler), asked: Arc::default() };
    let reached = service.clone();
    let connect: Connect = Box::new(move |_| Ok(Arc::new(reached.clone()) as Arc<dyn Transport>));
    let ledger = Ledger::open_with(Disk::default().opener()).unwrap();
    let exporter =
        Exporter::start(config, Edges { ledger, clock: clock.clone(), connect, external_url: None, seed: 1 })
            .await
            .unwrap();
    tokio::time::sleep(time).await;
    let page = String::from_utf8(exporter.metrics(Format::Text).await).unwrap();
    let status = exporter.status().sources.remove(0);
    let shown = format!("{page}{}", serde_json::to_string(&status).unwrap());
    for secret in [secret, "SESSION"] {
        assert!(!shown.contains(secret), "{system}: {secret} is shown");
    }
    exporter.stop().await;
    let asked = service.asked.lock().unwrap().clone();
    Lived { asked, status, page: Exposed::parse(&page), ended: clock.now() }
}

const HOUR: Duration = Duration::from_hours(1);

// === logins that give no session ===

#[tokio::test(start_paused = true)]
async fn an_answer_to_a_login_that_gives_no_session_is_a_refused_login() {
    let products =
        r#""products":[{"name":"Integration Cloud","baseApiUrl":"https://usw3.dm-us.informaticacloud.com/saas"}]"#;
    let bodies = |system| -> Vec<String> {
        let of_system: &[&str] = match system {
            "informatica" => &[
                r#"{"error":{"code":"IDS_085","message":"no"}}"#,
                r#"{"code":"UI_10000","description":"no","statusCode":403,"@type":"error"}"#,
                r#"{"statusCode":400,"@type":"error"}"#,
                r#"{"PRODUCTS,"userInfo":{}}"#,
                r#"{PRODUCTS,"userInfo":{"sessionId":null}}"#,
                r#"{PRODUCTS,"userInfo":{"sessionId":""}}"#,
                r#"{PRODUCTS,"userInfo":{"sessionId":"SESSION\n"}}"#,
                r#"{PRODUCTS,"userInfo":{"sessionId":"SESSION\u0000"}}"#,
                r#"{PRODUCTS,"userInfo":{"sessionId":"SESSIONé"}}"#,
                r#"{"products":[],"userInfo":{"sessionId":"SESSION"}}"#,
                r#"{"products":[{"baseApiUrl":"pod/saas"}],"userInfo":{"sessionId":"SESSION"}}"#,
                r#"{"products":[{"baseApiUrl":"https://evil.example/saas"}],"userInfo":{"sessionId":"SESSION"}}"#,
            ],
            _ => &[
                r#"{"error":"invalid_client"}"#,
                r#"{"error":"invalid_client","error_description":"hunter2 is wrong"}"#,
                r#"{"access_token":null}"#,
                r#"{"access_token":""}"#,
                r#"{"access_token":7}"#,
                r#"{"access_token":"SESSION\n","expires_in":3600}"#,
                r#"{"access_token":"SESSION\u0007"}"#,
                r#"{"access_token":"SESSION\u00e9"}"#,
                r#"{"access_token":"SESSION SESSION"}"#,
                r#"{"token":"SESSION","expires_in":3600}"#,
            ],
        };
        let general = ["", "{}", "[]", "null", "7", "true", "\"SESSION\"", PAGE, "{\"access_token\":\"SESSION"];
        of_system.iter().chain(&general).map(|body| body.replace("PRODUCTS", products)).collect()
    };
    for system in that_log_in(&[Sessions::Own, Sessions::Tokens]) {
        for body in bodies(system) {
            let given = body.clone();
            let lived = live(system, HOUR, move |_| answer(200, given.clone())).await;
            let logins = lived.logins().len();
            assert!((3..=REFUSED_LOGINS_MAX).contains(&logins), "{system} {body}: {logins} logins");
            assert_eq!(lived.reads(), 0, "{system} {body}: nothing is sent without a session");
            assert!(lived.errors("auth") >= 3.0, "{system} {body}: {}", lived.error());
            let all = lived.page.sum("audit_source_errors_total", &[]);
            assert_eq!(all, lived.errors("auth"), "{system} {body}: {}", lived.error());
            if body == PAGE {
                assert!(lived.error().contains("an HTML page, maybe of a firewall or proxy"), "{}", lived.error());
            }
            if body.contains("invalid_client") {
                assert!(lived.error().contains("invalid_client"), "{}", lived.error());
            }
        }
        // whatever the status is, unless it passes by itself
        for status in [201, 204, 302, 400, 401, 402, 403, 404, 405, 410, 415, 422, 451] {
            for body in ["", PAGE, r#"{"error":"invalid_client"}"#] {
                let lived = live(system, HOUR, move |_| answer(status, body)).await;
                let logins = lived.logins().len();
                assert!((3..=REFUSED_LOGINS_MAX).contains(&logins), "{system} {status} {body}: {logins} logins");
            }
        }
        for (status, kind) in [(429, "throttled"), (500, "server"), (503, "server")] {
            let lived = live(system, HOUR, move |_| answer(status, PAGE)).await;
            assert!(lived.errors(kind) > 10.0 && lived.errors("auth") == 0.0, "{system} {status}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_of_no_life_costs_a_login_a_minute_at_most() {
    for system in that_log_in(&[Sessions::Tokens]) {
        for life in ["0", "-1", "1", "0.5", "\"0\"", "\"\"", "\"soon\"", "null", "1e400", "[]", "\"59\""] {
            let lived = live(system, HOUR, move |asked| {
                let token = format!(r#"{{"access_token":"SESSION-{}","expires_in":{life}}}"#, asked.logins);
                if asked.login { answer(200, token) } else { empty(system) }
            })
            .await;
            let logins = lived.logins().len();
            assert!(lived.is_up() && (1..=60).contains(&logins), "{system} {life}: {logins} logins, {}", lived.error());
        }
    }
}

// === sessions that do not do any more ===

/// How a session's address fails.
fn failures() -> [(&'static str, Answer); 12] {
    [
        ("refused", Err(ErrorKind::Connect)),
        ("not this host", Err(ErrorKind::Tls)),
        ("silent", Err(ErrorKind::Timeout)),
        ("404", answer(404, "")),
        ("404 page", answer(404, PAGE)),
        ("302", with(302, "location", "/maintenance")),
        ("503", answer(503, "")),
        ("403 page", answer(403, PAGE)),
        ("400 page", answer(400, PAGE)),
        ("301", with(301, "location", "https://elsewhere.informaticacloud.com/")),
        ("401", answer(401, "")),
        ("403 invalid_token", answer(403, r#"{"error":"invalid_token"}"#)),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_address_fails_gives_way_to_a_new_one() {
    for (how, failure) in failures() {
        for system in that_log_in(&[Sessions::Own, Sessions::Tokens]) {
            // from the beginning, and after it has worked
            for moved in [Duration::ZERO, Duration::from_mins(20)] {
                let failure = failure.clone();
                let lived = live(system, Duration::from_mins(50), move |asked| {
                    let first =
                        asked.logins <= 1 && asked.credential.as_deref().is_none_or(|c| c.ends_with("SESSION-0"));
                    match asked.login {
                        true if asked.logins == 0 => welcome(system, "SESSION-0", "old.dm-us.informaticacloud.com"),
                        true => welcome(system, "SESSION-1", POD),
                        false if first && asked.at >= moved => failure.clone(),
                        false => empty(system),
                    }
                })
                .await;
                assert!(lived.is_up(), "{system} {how} {moved:?}: {} logins, {}", lived.logins().len(), lived.error());
                assert_eq!(lived.logins().len(), 2, "{system} {how} {moved:?}");
                if system == "informatica" {
                    assert_eq!(lived.asked.last().unwrap().host, POD);
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_day_of_outage_is_no_day_of_logins() {
    let day = Duration::from_hours(24);
    for (how, failure) in failures().into_iter().chain([("page", answer(200, PAGE))]) {
        for system in that_log_in(&[Sessions::Own, Sessions::Tokens]) {
            let failure = failure.clone();
            let lived = live(system, day + HOUR, move |asked| {
                let away = (Duration::from_mins(10)..day).contains(&asked.at);
                match asked.login {
                    // tokens that last, so that each login has a cause
                    true => welcome(system, &format!("SESSION-{}", asked.logins), POD)
                        .map(|(status, headers, body)| (status, headers, body.replace("3600", "360000"))),
                    false if away => failure.clone(),
                    false => empty(system),
                }
            })
            .await;
            let logins = lived.logins().len();
            assert!(lived.is_up(), "{system} {how}: {}", lived.error());
            assert!(
                logins <= 30 && lived.logins_in_an_hour() <= REFUSED_LOGINS_MAX,
                "{system} {how}: {:?}",
                lived.logins()
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn where_no_login_is_to_be_had_either_the_session_is_kept() {
    for (how, failure) in [
        ("refused", Err(ErrorKind::Connect)),
        ("silent", Err(ErrorKind::Timeout)),
        ("503", answer(503, PAGE)),
        ("302", with(302, "location", "/maintenance")),
        ("404", answer(404, PAGE)),
    ] {
        for system in that_log_in(&[Sessions::Own, Sessions::Tokens]) {
            let failure = failure.clone();
            let lived = live(system, Duration::from_hours(13), move |asked| {
                let away = (Duration::from_mins(10)..Duration::from_hours(12)).contains(&asked.at);
                match asked.login {
                    _ if away => failure.clone(),
                    true => welcome(system, "SESSION", POD)
                        .map(|(status, headers, body)| (status, headers, body.replace("3600", "360000"))),
                    false => empty(system),
                }
            })
            .await;
            assert!(lived.is_up(), "{system} {how}: {}", lived.error());
            assert!(lived.logins().len() <= 16, "{system} {how}: {:?}", lived.logins());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn throttling_costs_no_session() {
    for system in that_log_in(&[Sessions::Own, Sessions::Tokens]) {
        let lived = live(system, Duration::from_hours(5), move |asked| match asked.login {
            true => welcome(system, "SESSION", POD).map(|(s, h, body)| (s, h, body.replace("3600", "360000"))),
            false if asked.at < Duration::from_hours(4) => answer(429, ""),
            false => empty(system),
        })
        .await;
        assert!(lived.is_up() && lived.logins().len() == 1, "{system}: {:?}", lived.logins());
    }
}

#[tokio::test(start_paused = true)]
async fn a_revoked_token_is_replaced_once_however_that_is_said() {
    for system in that_log_in(&[Sessions::Tokens]) {
        for (status, challenge, body) in [
            (403, "", r#"{"error":"invalid_token","error_description":"Token was revoked"}"#),
            (403, r#"Bearer realm="x", error="invalid_token""#, "Forbidden"),
            (403, r#"Bearer error="invalid_token""#, PAGE),
            (400, "", r#"{"error":"invalid_token"}"#),
            (401, "Bearer", ""),
        ] {
            for helps in [true, false] {
                let lived = live(system, Duration::from_secs(45), move |asked| {
                    let revoked = asked.at >= Duration::from_secs(30) && (!helps || asked.logins < 2);
                    match asked.login {
                        true => welcome(system, &format!("SESSION-{}", asked.logins), ""),
                        false if revoked => {
                            Ok((status, vec![("www-authenticate", challenge.to_owned())], body.to_owned()))
                        }
                        false => empty(system),
                    }
                })
                .await;
                let what = format!("{system} {status} {challenge} {body}: {}", lived.error());
                assert_eq!((lived.is_up(), lived.logins().len()), (helps, 2), "{what}");
                let kind = if status == 403 { "forbidden" } else { "auth" };
                assert_eq!(lived.errors(kind) > 0.0, !helps, "{what}");
            }
        }
        // a permission that is missing is no token that is
        let lived = live(system, Duration::from_secs(45), move |asked| {
            if asked.login { welcome(system, "SESSION", "") } else { answer(403, r#"{"error":"insufficient_scope"}"#) }
        })
        .await;
        assert_eq!((lived.logins().len(), lived.errors("forbidden") > 0.0), (1, true), "{system}");
    }
}

// === politeness ===

#[tokio::test(start_paused = true)]
async fn a_proxy_that_wants_credentials_is_asked_ever_more_rarely() {
    for system in systems() {
        for refusal in [answer(407, PAGE), Err(ErrorKind::Auth)] {
            let lived = live(system, HOUR, move |_| refusal.clone()).await;
            assert!((3..=REFUSED_LOGINS_MAX).contains(&lived.asked.len()), "{system}: {} requests", lived.asked.len());
            assert!(lived.errors("auth") >= 3.0, "{system}: {}", lived.error());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_system_waits_as_long_as_it_is_asked_to() {
    for system in systems() {
        for (name, value, pause) in [
            ("retry-after", "30.5", 31),
            ("retry-after", "30, 30", 30),
            ("retry-after", "99999999999999999999", 24 * 3600),
            ("retry-after", "Fri, 15 Jan 2027 08:10:30 GMT", 30),
            ("ratelimit-reset", "45", 45),
            ("x-ratelimit-reset", "1800000645", 45),
            ("x-rate-limit-reset", "1800000645000", 45),
            ("ratelimit", "\"default\";r=0;t=45", 45),
        ] {
            let begins = Duration::from_mins(10);
            let refused = Arc::new(Mutex::new(None));
            let told = Arc::clone(&refused);
            let lived = live(system, begins + Duration::from_secs(pause) * 5 / 4 + begins, move |asked| {
                if asked.login {
                    return welcome(system, "SESSION", POD);
                }
                if asked.at >= begins && told.lock().unwrap().is_none() {
                    *told.lock().unwrap() = Some(asked.at);
                    // at ten minutes past eight by the service's clock
                    return Ok((
                        429,
                        vec![(name, value.to_owned()), ("date", "Fri, 15 Jan 2027 08:10:00 GMT".into())],
                        String::new(),
                    ));
                }
                empty(system)
            })
            .await;
            let refused = refused.lock().unwrap().unwrap();
            let next = lived.asked.iter().find(|asked| asked.at > refused).unwrap().at;
            let waited = next.saturating_sub(refused).as_secs_f64();
            let most = pause as f64 * 1.2 + 15.0;
            assert!(waited >= pause as f64 && waited < most, "{system} {name}: {value}: {waited} s");
            assert!(lived.is_up() && lived.errors("throttled") == 1.0, "{system} {name}: {value}: {}", lived.error());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_from_a_cache_leaves_no_source_blind() {
    for system in systems() {
        let lived = live(system, Duration::from_mins(30), move |asked| {
            let (status, mut headers, body) =
                if asked.login { welcome(system, "SESSION", POD) } else { empty(system) }?;
            let then = DateTime::from_timestamp(1_800_000_000, 0).unwrap() + asked.at - TimeDelta::hours(3);
            headers.push(("date", httpdate::fmt_http_date(then.into())));
            headers.push(("age", "10800".to_owned()));
            Ok((status, headers, body))
        })
        .await;
        let behind = lived.ended - lived.status.watermark.unwrap();
        assert!(lived.is_up() && behind < TimeDelta::minutes(10), "{system}: {behind} behind");
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_days_off_costs_one_login() {
    for system in that_log_in(&[Sessions::Own, Sessions::Tokens]) {
        let lived = live(system, Duration::from_hours(5), move |asked| {
            let (status, mut headers, body) =
                if asked.login { welcome(system, "SESSION", POD) } else { empty(system) }?;
            headers.push(("date", "Mon, 25 Jan 2027 08:00:00 GMT".to_owned()));
            Ok((status, headers, body.replace("3600", "360000")))
        })
        .await;
        assert!(!lived.is_up() && lived.error().contains("set the wrong clock"), "{system}: {}", lived.error());
        assert_eq!(lived.logins().len(), 1, "{system}");
    }
}
