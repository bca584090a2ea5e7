//! The promises of the client, against small routers in simulated time.

use std::sync::atomic::{AtomicU32, Ordering};

use axum::Router;
use axum::response::IntoResponse;
use http::HeaderMap;

use super::wire::URL_BYTES_MAX;
use super::*;
use crate::transport::InMemory;

/// A dialect whose sessions are numbered.
#[derive(Default)]
struct Numbered {
    opened: Arc<AtomicU32>,
    refuse: bool,
}

#[async_trait]
impl Dialect for Numbered {
    async fn open_session(&self, wire: &Wire) -> Result<Session, Failure> {
        let reply = wire.login_exchange(&Call::get(url("/login"))).await?;
        if self.refuse {
            return Err(reply.failure(ErrorKind::Auth));
        }
        let number = self.opened.fetch_add(1, Ordering::SeqCst) + 1;
        Ok(Session { token: format!("secret-{number}").into(), base: url("/"), renew_at: None })
    }
}

fn url(path: &str) -> Url {
    Url::parse("http://service.test").unwrap().join(path).unwrap()
}

/// When each request came, and for which path.
type Seen = Arc<Mutex<Vec<(Instant, String)>>>;

/// The answers a service gives, in this order; the last one for ever.
fn scripted(answers: Vec<fn() -> axum::response::Response>) -> (Router, Seen) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let next = Arc::new(AtomicU32::new(0));
    let router = Router::new().fallback(move |request: axum::extract::Request| {
        let path = request.uri().path().to_owned();
        log.lock().unwrap().push((Instant::now(), path.clone()));
        let place = if path == "/login" { None } else { Some(next.fetch_add(1, Ordering::SeqCst) as usize) };
        let answer = place.map(|place| answers[place.min(answers.len() - 1)]());
        async move { answer.unwrap_or_else(|| "welcome".into_response()) }
    });
    (router, seen)
}

fn api(router: Router, dialect: Numbered, limits: Limits) -> (Api, Arc<SourceStats>) {
    let stats = Arc::new(SourceStats::default());
    let clock = Clock::starting_at(DateTime::from_timestamp(1_800_000_000, 0).unwrap());
    (Api::new(Arc::new(InMemory(router)), Box::new(dialect), limits, Arc::clone(&stats), clock, 1), stats)
}

fn fast() -> Limits {
    Limits {
        requests: 1000,
        per: Duration::from_secs(1),
        burst: 100,
        timeout: Duration::from_secs(30),
        max_response_bytes: 1000,
    }
}

async fn ask(api: &Api) -> Result<Reply, Failure> {
    api.call(|_| Call::get(url("/log?token=QUERY-SECRET"))).await
}

fn ok() -> axum::response::Response {
    "fine".into_response()
}

fn status(code: u16) -> axum::response::Response {
    StatusCode::from_u16(code).unwrap().into_response()
}

fn requests(seen: &Seen, path: &str) -> usize {
    seen.lock().unwrap().iter().filter(|(_, of)| of == path).count()
}

#[tokio::test(start_paused = true)]
#[expect(clippy::cast_precision_loss, reason = "small numbers")]
async fn no_span_of_time_sees_more_requests_than_the_budget_logins_and_retries_included() {
    for (count, per, burst) in [(10, 60_u64, 1), (60, 60, 5), (3, 1, 2)] {
        // every second answer is a failure that is retried, every third ends the session
        let (router, seen) = scripted(vec![ok, || status(503), || status(401), ok]);
        let limits = Limits { requests: count, per: Duration::from_secs(per), burst, ..fast() };
        let (api, _) = api(router, Numbered::default(), limits);
        for _ in 0..100 {
            let _ = ask(&api).await;
        }
        let times: Vec<Instant> = seen.lock().unwrap().iter().map(|(at, _)| *at).collect();
        assert!(times.len() > 100);
        for (first, from) in times.iter().enumerate() {
            for (last, to) in times.iter().enumerate().skip(first) {
                let allowed = f64::from(burst) + f64::from(count) * (*to - *from).as_secs_f64() / per as f64;
                assert!((last - first + 1) as f64 <= allowed + 1e-9, "{count} per {per} s, burst {burst}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_asks_for_a_pause_gets_it() {
    let busy = || (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "7")]).into_response();
    let (router, seen) = scripted(vec![busy, ok]);
    let (api, stats) = api(router, Numbered::default(), fast());
    ask(&api).await.unwrap();
    let times: Vec<Instant> = seen.lock().unwrap().iter().map(|(at, _)| *at).collect();
    assert!(times[2] - times[1] >= Duration::from_secs(7));
    assert_eq!((stats.throttled(), stats.errors(ErrorKind::Throttled)), (1, 1));
    assert!(stats.waited_seconds() >= 7.0);
}

#[tokio::test(start_paused = true)]
async fn a_pause_longer_than_a_poll_can_bear_ends_it_and_is_passed_on() {
    let busy = || (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "3600")]).into_response();
    let (router, seen) = scripted(vec![busy]);
    let (api, _) = api(router, Numbered::default(), fast());
    let failure = ask(&api).await.unwrap_err();
    assert_eq!(failure.retry_after, Some(Duration::from_hours(1)));
    assert_eq!(requests(&seen, "/log"), 1);
}

#[tokio::test(start_paused = true)]
async fn what_may_pass_is_asked_again_and_what_will_not_is_not() {
    for (code, kind, times) in
        [(503, ErrorKind::Server, 4), (404, ErrorKind::NotFound, 1), (403, ErrorKind::Forbidden, 1)]
    {
        let (router, seen) = match code {
            503 => scripted(vec![|| status(503)]),
            404 => scripted(vec![|| status(404)]),
            _ => scripted(vec![|| status(403)]),
        };
        let (api, stats) = api(router, Numbered::default(), fast());
        assert_eq!(ask(&api).await.unwrap_err().kind, kind);
        assert_eq!(requests(&seen, "/log"), times);
        assert_eq!(stats.errors(kind), times as u64, "each failed request is counted once");
    }
}

#[tokio::test(start_paused = true)]
async fn an_ended_session_is_renewed_once_and_a_refused_one_not_again() {
    let (router, seen) = scripted(vec![|| status(401), ok]);
    let (api_renewed, stats) = api(router, Numbered::default(), fast());
    ask(&api_renewed).await.unwrap();
    ask(&api_renewed).await.unwrap();
    assert_eq!((requests(&seen, "/login"), stats.errors(ErrorKind::Auth)), (2, 0), "reused afterwards");

    let (router, seen) = scripted(vec![|| status(401)]);
    let (api, _) = api(router, Numbered::default(), fast());
    assert_eq!(ask(&api).await.unwrap_err().kind, ErrorKind::Auth);
    assert_eq!((requests(&seen, "/login"), requests(&seen, "/log")), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_refused_login_is_tried_once() {
    let (router, seen) = scripted(vec![ok]);
    let (api, stats) = api(router, Numbered { refuse: true, ..Numbered::default() }, fast());
    let failure = ask(&api).await.unwrap_err();
    assert!(failure.at_login && failure.kind == ErrorKind::Auth);
    assert_eq!((requests(&seen, "/login"), requests(&seen, "/log")), (1, 0));
    assert_eq!(stats.errors(ErrorKind::Auth), 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_beyond_the_cap_is_refused() {
    let (router, _) = scripted(vec![|| vec![b'x'; 1001].into_response()]);
    let (api, _) = api(router, Numbered::default(), fast());
    assert_eq!(ask(&api).await.unwrap_err().kind, ErrorKind::TooLarge);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_never_answers_is_given_up_in_time() {
    let router = Router::new()
        .route("/login", axum::routing::get(async || "welcome"))
        .fallback(async || std::future::pending::<()>().await);
    let (api, stats) = api(router, Numbered::default(), fast());
    let started = Instant::now();
    assert_eq!(ask(&api).await.unwrap_err().kind, ErrorKind::Timeout);
    assert!(started.elapsed() < Duration::from_secs(4 * 30 + 10));
    assert_eq!(stats.errors(ErrorKind::Timeout), 4);
}

#[tokio::test(start_paused = true)]
async fn errors_tell_what_was_tried_and_hold_no_secret() {
    let away = || (StatusCode::FOUND, [("location", "https://evil.test/path?token=OTHER")]).into_response();
    let refusal = || (StatusCode::BAD_REQUEST, r#"{"error":{"code":"X1","message":"bad\nrange"}}"#).into_response();
    let (router, _) = scripted(vec![away, refusal]);
    let (api, _) = api(router, Numbered::default(), fast());
    let redirect = ask(&api).await.unwrap_err().to_string();
    assert!(redirect.contains("GET http://service.test/log: status 302 to https://evil.test;"), "{redirect}");
    for _ in 0..2 {
        let text = ask(&api).await.unwrap_err().to_string();
        assert!(text.contains("status 400: X1: bad range"), "{text}");
        assert!(!text.contains("SECRET") && !text.contains("secret-"), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_differs_is_noticed() {
    // a minute after the simulation's start
    let dated = || [("date", "Fri, 15 Jan 2027 08:01:00 GMT")].into_response();
    let (router, _) = scripted(vec![dated]);
    let (api, _) = api(router, Numbered::default(), fast());
    ask(&api).await.unwrap();
    assert_eq!(api.clock_skew(), TimeDelta::seconds(60));
}

#[tokio::test(start_paused = true)]
async fn an_answer_from_a_cache_does_not_set_the_clock_back() {
    fn dated(date: &'static str, age: &'static str) -> axum::response::Response {
        ([(header::DATE, date), (header::AGE, age)], "fine").into_response()
    }

    // it is eight by our clock
    for (answer, skew) in [
        ((|| dated("Fri, 15 Jan 2027 05:00:00 GMT", "10800")) as fn() -> _, 0),
        (|| dated("Fri, 15 Jan 2027 05:01:00 GMT", "10800"), 60),
        (|| dated("Fri, 15 Jan 2027 05:00:00 GMT", " 10800 , 3"), 0),
        (|| dated("Tue, 05 Jan 2027 08:00:00 GMT", "864000"), 0),
        // a cache that writes a date of its own: what is to come must not be taken for read
        (|| dated("Fri, 15 Jan 2027 08:00:00 GMT", "10800"), 0),
        // no age
        (|| dated("Fri, 15 Jan 2027 07:00:00 GMT", "old"), -3600),
        (|| dated("Fri, 15 Jan 2027 07:00:00 GMT", "-3600"), -3600),
        (|| dated("Fri, 15 Jan 2027 07:00:00 GMT", "99999999999999999999"), -3600),
        (|| dated("Fri, 15 Jan 2027 07:00:00 GMT", "0"), -3600),
    ] {
        let (router, _) = scripted(vec![answer]);
        let (api, _) = api(router, Numbered::default(), fast());
        let told = ask(&api).await.map(|reply| format!("{:?}", reply.headers)).unwrap();
        assert_eq!(api.clock_skew(), TimeDelta::seconds(skew), "{told}");
    }
    // what is known of the service's clock tells which reading is right
    let ahead = || [(header::DATE, "Fri, 15 Jan 2027 10:00:00 GMT")].into_response();
    let (router, _) = scripted(vec![ahead, || dated("Fri, 15 Jan 2027 07:00:00 GMT", "10800")]);
    let (api, _) = api(router, Numbered::default(), fast());
    for _ in 0..2 {
        ask(&api).await.unwrap();
        assert_eq!(api.clock_skew(), TimeDelta::hours(2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_cache_on_the_way_is_told_to_ask_the_service() {
    let router = Router::new().fallback(|headers: HeaderMap| async move {
        assert_eq!(headers["cache-control"], "no-cache");
        "fine"
    });
    let (api, _) = api(router, Numbered::default(), fast());
    ask(&api).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_token_that_no_header_can_carry_is_told_of_and_nothing_is_sent() {
    struct Given(&'static str, bool);

    #[async_trait]
    impl Dialect for Given {
        async fn open_session(&self, _: &Wire) -> Result<Session, Failure> {
            Ok(Session { token: self.0.into(), base: url("/"), renew_at: None })
        }

        fn keeps_session(&self) -> bool {
            self.1
        }
    }

    for (token, why) in [
        ("", "empty"),
        ("hunter2\n", "line break"),
        ("hunter2\r\nx-injected: 1", "line break"),
        ("hunter2\0", "control"),
        ("hunter2\x7f", "control"),
        ("hunter2\t", "control"),
        ("hunter2é", "ASCII"),
        ("hunter2\u{a0}", "ASCII"),
        ("hunter2 hunter3", "blank"),
        (" ", "blank"),
    ] {
        for keeps in [true, false] {
            let (router, seen) = scripted(vec![ok]);
            let clock = Clock::starting_at(DateTime::UNIX_EPOCH);
            let stats = Arc::new(SourceStats::default());
            let transport = Arc::new(InMemory(router));
            let api = Api::new(transport, Box::new(Given(token, keeps)), fast(), Arc::clone(&stats), clock, 1);
            let failure = ask(&api).await.unwrap_err();
            assert!(failure.kind == ErrorKind::Auth && failure.is_refused_login(), "{failure}");
            let text = format!("{failure} {failure:?}");
            assert!(text.contains(why) && !text.contains("hunter2"), "{text}");
            assert_eq!((seen.lock().unwrap().len(), stats.errors(ErrorKind::Auth)), (0, 1), "{token:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_is_called_a_page_and_a_redirect_tells_where_it_leads() {
    fn page(code: u16) -> axum::response::Response {
        let html = "\u{feff} <!DOCTYPE html><html><title>Blocked secret-1</title></html>";
        (StatusCode::from_u16(code).unwrap(), html).into_response()
    }
    fn away(to: &'static str) -> axum::response::Response {
        (StatusCode::FOUND, [("location", to)], "<html></html>").into_response()
    }

    for (answer, kind, told, not) in [
        (
            (|| page(403)) as fn() -> _,
            ErrorKind::Forbidden,
            vec!["403, an HTML page, maybe of a firewall or proxy"],
            "check the permissions",
        ),
        (|| page(404), ErrorKind::NotFound, vec!["404, an HTML page", "firewall or proxy answers"], "Blocked"),
        (|| page(502), ErrorKind::Server, vec!["502, an HTML page", "the exporter retries"], "Blocked"),
        (|| page(401), ErrorKind::Auth, vec!["401, an HTML page", "check who answers"], "Blocked"),
        (|| page(407), ErrorKind::Auth, vec!["407: the proxy", "proxy_username"], "HTML"),
        (|| away("/login?next=NEXT-SECRET"), ErrorKind::Redirect, vec!["302 to http://service.test/login;"], "NEXT"),
        (|| away("../sso/secret-1/x"), ErrorKind::Redirect, vec!["302 to http://service.test/sso/…/x;"], "HTML"),
        (|| away("/sso;jsessionid=0A1B2C/x"), ErrorKind::Redirect, vec!["302 to http://service.test/sso/x;"], "0A1B"),
        (|| away("//sso.test/a/b"), ErrorKind::Redirect, vec!["302 to http://sso.test;"], "/a/b"),
        (|| away("https://service.test/log"), ErrorKind::Redirect, vec!["302 to https://service.test;"], "HTML"),
        (|| away("http://"), ErrorKind::Redirect, vec!["302 without a target"], "HTML"),
        (|| status(307), ErrorKind::Redirect, vec!["307 without a target"], "HTML"),
    ] {
        let (router, seen) = scripted(vec![answer]);
        let (api, stats) = api(router, Numbered::default(), fast());
        let failure = ask(&api).await.unwrap_err();
        let text = failure.to_string();
        assert_eq!(failure.kind, kind, "{text}");
        assert!(told.iter().all(|told| text.contains(told)), "{text}");
        assert!(!text.contains(not) && !text.contains("secret-1") && !text.contains("Blocked"), "{text}");
        if text.contains("407") {
            assert_eq!((requests(&seen, "/log"), stats.errors(kind)), (1, 1), "accounts of proxies lock, too");
            assert!(failure.may_lock() && !failure.is_refused_login());
        }
    }
    let long = || away("/t/0123456789012345678901234567890123456789/x");
    let (router, _) = scripted(vec![long]);
    let (api, _) = api(router, Numbered::default(), fast());
    let text = ask(&api).await.unwrap_err().to_string();
    assert!(text.contains("302 to http://service.test/t/…/x;"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn sessions_that_end_at_once_are_opened_ever_more_rarely() {
    let (router, seen) = scripted(vec![|| status(401)]);
    let (api, _) = api(router, Numbered::default(), fast());
    let started = Instant::now();
    while started.elapsed() < Duration::from_hours(24) {
        assert_eq!(ask(&api).await.unwrap_err().kind, ErrorKind::Auth);
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
    let logins: Vec<u64> = {
        let seen = seen.lock().unwrap();
        seen.iter().filter(|(_, path)| path == "/login").map(|(at, _)| (*at - started).as_secs() / 60).collect()
    };
    assert_eq!(logins[..5], [0, 0, 1, 5, 21]);
    assert!((26..=28).contains(&logins.len()), "{logins:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pause_of_nothing_is_no_reason_to_hurry() {
    let at_once = || (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "0")]).into_response();
    let (router, seen) = scripted(vec![at_once]);
    let (api, _) = api(router, Numbered::default(), fast());
    ask(&api).await.unwrap_err();
    let times: Vec<Instant> = seen.lock().unwrap().iter().map(|(at, _)| *at).skip(1).collect();
    let pauses: Vec<u128> = times.windows(2).map(|two| (two[1] - two[0]).as_millis()).collect();
    assert!(pauses.len() == 3 && pauses[0] >= 400 && pauses[1] >= 800 && pauses[2] >= 1600, "{pauses:?}");
}

#[test]
fn no_session_is_believed_to_last_for_ever() {
    let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
    assert!(renewal(now, Duration::MAX) < now + TimeDelta::days(366));
}

#[test]
fn an_error_is_one_line_and_not_endless() {
    let failure = Failure::new(ErrorKind::Decode, "reading\nx", "y".repeat(10_000)).to_string();
    assert!(failure.starts_with("reading x: yyy") && failure.len() < 1000, "{failure}");
}

#[tokio::test(start_paused = true)]
async fn where_two_clocks_are_days_apart_nothing_is_read() {
    fn dated(status: StatusCode, date: &'static str) -> axum::response::Response {
        (status, [(header::DATE, date)], "fine").into_response()
    }

    let (router, _) = scripted(vec![
        || dated(StatusCode::OK, "Fri, 31 Dec 9999 23:59:59 GMT"),
        || dated(StatusCode::OK, "Fri, 15 Jan 2027 20:00:00 GMT"),
        || dated(StatusCode::FORBIDDEN, "Thu, 01 Jan 1970 00:00:00 GMT"),
        || dated(StatusCode::OK, "Thu, 14 Jan 2027 07:59:00 GMT"),
        || dated(StatusCode::OK, "Fri, 15 Jan 2027 08:00:00 GMT"),
    ]);
    let (api, stats) = api(router, Numbered::default(), fast());
    let failure = ask(&api).await.unwrap_err();
    assert_eq!(failure.kind, ErrorKind::Decode);
    let text = failure.to_string();
    assert!(text.contains("9999-12-31T23:59:59Z") && text.contains("2027-01-15T08:00:00Z"), "{text}");
    assert!(text.contains("set the wrong clock"), "{text}");
    assert!(stats.observed().clock_skew.is_some_and(|skew| skew > TimeDelta::days(365)), "what was measured is shown");
    assert_eq!((api.clock_skew(), api.known_clock_skew()), (TimeDelta::zero(), None), "but nothing is planned by it");
    ask(&api).await.unwrap();
    assert_eq!(api.clock_skew(), TimeDelta::hours(12));
    assert_eq!(ask(&api).await.unwrap_err().kind, ErrorKind::Forbidden, "who refuses us may be another");
    assert_eq!(api.clock_skew(), TimeDelta::hours(12));
    assert_eq!(ask(&api).await.unwrap_err().kind, ErrorKind::Decode);
    ask(&api).await.unwrap();
    assert_eq!(api.known_clock_skew(), Some(TimeDelta::zero()));
}

#[tokio::test(start_paused = true)]
async fn an_endless_address_or_token_is_not_used() {
    struct Long(usize);

    #[async_trait]
    impl Dialect for Long {
        async fn open_session(&self, _: &Wire) -> Result<Session, Failure> {
            Ok(Session { token: "x".repeat(self.0).into(), base: url("/"), renew_at: None })
        }
    }

    let (router, seen) = scripted(vec![ok]);
    let (client, _) = api(router.clone(), Numbered::default(), fast());
    let far = url(&format!("/log?page={}", "x".repeat(URL_BYTES_MAX)));
    let failure = client.call(|_| Call::get(far.clone())).await.unwrap_err();
    assert_eq!(failure.kind, ErrorKind::Decode, "{failure}");
    let clock = Clock::starting_at(DateTime::UNIX_EPOCH);
    for (length, good) in [(TOKEN_BYTES_MAX, true), (TOKEN_BYTES_MAX + 1, false)] {
        let transport = Arc::new(InMemory(router.clone()));
        let api = Api::new(transport, Box::new(Long(length)), fast(), Arc::default(), clock.clone(), 1);
        assert_eq!(ask(&api).await.is_ok(), good, "{length}");
    }
    assert_eq!(requests(&seen, "/log"), 1, "that with the longest token that is taken");
}

#[tokio::test(start_paused = true)]
async fn a_credential_goes_to_its_own_origin_and_nowhere_else() {
    for (to, sent) in [
        ("http://service.test/elsewhere", true),
        ("http://service.test:80/log", true),
        ("https://service.test/log", false),
        ("http://service.test:81/log", false),
        ("http://sub.service.test/log", false),
        ("http://service.test.evil/log", false),
        ("http://service.test@evil/log", false),
        ("http://user:word@service.test/log", false),
        ("http://127.0.0.1/log", false),
    ] {
        for stream in [false, true] {
            let (router, seen) = scripted(vec![ok]);
            let (api, stats) = api(router, Numbered::default(), fast());
            let to: Url = to.parse().unwrap();
            let failure = if stream {
                api.download(|_| Call::get(to.clone())).await.err()
            } else {
                api.call(|_| Call::get(to.clone())).await.err()
            };
            let reached = seen.lock().unwrap().iter().filter(|(_, path)| path != "/login").count();
            assert_eq!((failure.is_none(), reached), (sent, usize::from(sent)), "{to}");
            if let Some(failure) = failure {
                assert_eq!((failure.kind, stats.errors(ErrorKind::Redirect)), (ErrorKind::Redirect, 1));
                assert!(!failure.to_string().contains("word"), "{failure}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_service_repeats_of_the_credential_is_left_out() {
    // as long as a session of Informatica, and shorter than what is taken for a token anywhere
    let words = || (StatusCode::BAD_REQUEST, r#"{"message":"session secret-1 (SECRET-1) ended"}"#).into_response();
    let away = || (StatusCode::FOUND, [("location", "https://secret-1.evil.test/")]).into_response();
    let odd = || ([("content-type", "secret-1")], "x").into_response();
    let (router, _) = scripted(vec![words, away, odd]);
    let (api, _) = api(router, Numbered::default(), fast());
    let failures =
        [ask(&api).await.unwrap_err(), ask(&api).await.unwrap_err(), ask(&api).await.unwrap().undecodable("no list")];
    for failure in failures {
        let text = format!("{failure} {failure:?}").to_lowercase();
        assert!(text.contains('…') && !text.contains("secret-1"), "{text}");
    }
}

#[test]
fn requests_and_answers_print_neither_credential_nor_body() {
    let token: SecretString = "hunter2".into();
    let header = secret_header("Bearer ", &token).unwrap();
    assert_eq!((header.as_bytes(), format!("{header:?}").as_str()), (&b"Bearer hunter2"[..], "Sensitive"));
    assert!(secret_header("", &"a\nb".into()).is_none());
    let mut address = url("/login?key=hunter2#hunter2");
    address.set_username("hunter2").unwrap();
    let call =
        Call::post(address, "text/plain", "hunter2").with(header::COOKIE, "hunter2".parse().unwrap()).hiding(&token);
    assert_eq!(format!("{call:?}"), r#"Call("POST http://service.test/login")"#);
    let reply = Reply {
        status: StatusCode::OK,
        headers: call.headers.clone(),
        body: call.body.clone(),
        at: DateTime::UNIX_EPOCH,
        at_login: false,
        tried: call.tried(),
        secrets: call.secrets.clone(),
    };
    assert_eq!(format!("{reply:?}"), r#"Reply("POST http://service.test/login", 200)"#);
}

// === packed answers ===

fn gzip(text: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

/// What comes of an answer: in memory and over a real connection.
async fn packed(status: u16, coding: &'static str, body: Vec<u8>) -> [Result<Reply, Failure>; 2] {
    use crate::settings::Common;
    use crate::simulate::raw;
    use crate::transport::Network;
    let sent = body.clone();
    let router = Router::new().fallback(move || {
        let status = StatusCode::from_u16(status).unwrap();
        let answer = (status, [(header::CONTENT_ENCODING, coding)], sent.clone()).into_response();
        async move { answer }
    });
    let service = raw::RawService::start(move |asked| {
        assert_eq!(asked.header("accept-encoding"), Some("gzip"));
        raw::answer(status, &[("Content-Encoding", coding)], &body)
    });
    let limits = Limits { max_response_bytes: 100_000, ..fast() };
    let exchange = async |transport: Arc<dyn Transport>, to: Url| {
        let clock = Clock::machine();
        let api = Api::new(transport, Box::new(Numbered::default()), limits, Arc::default(), clock, 1);
        api.wire.exchange(&Call::get(to), false).await
    };
    let network = Network::new(&Common::usual(Duration::from_hours(1))).unwrap();
    let to = Url::parse(&service.unwrap().origin()).unwrap();
    [exchange(Arc::new(InMemory(router)), url("/log")).await, exchange(Arc::new(network), to).await]
}

#[tokio::test]
async fn a_packed_answer_is_read_whole_or_not_at_all() {
    let text = "{\"entries\": [1, 2, 3]}".repeat(100);
    let (first, second) = text.as_bytes().split_at(700);
    let members = [gzip(first), gzip(b""), gzip(second)].concat();
    let padded = [&members[..], &[0; 512]].concat();
    for (coding, body) in [
        ("gzip", gzip(text.as_bytes())),
        ("gzip", members.clone()),
        ("x-gzip", padded.clone()),
        ("gzip, gzip", gzip(&padded)),
        ("identity", text.clone().into_bytes()),
    ] {
        for reply in packed(200, coding, body).await {
            assert!(reply.unwrap().body == text, "{coding}");
        }
    }
    for (coding, body, kind, why) in [
        ("gzip", members[..members.len() - 3].to_vec(), ErrorKind::Decode, "not the gzip"),
        ("gzip", [&members[..], b"garbage"].concat(), ErrorKind::Decode, "not the gzip"),
        ("gzip", text.clone().into_bytes(), ErrorKind::Decode, "not the gzip"),
        ("gzip", b"<html>".to_vec(), ErrorKind::Decode, "not the gzip"),
        ("br", text.clone().into_bytes(), ErrorKind::Decode, "encoding br"),
        ("gzip", gzip(&vec![b' '; 64 << 20]), ErrorKind::TooLarge, "more than 100000 bytes"),
        ("gzip, gzip", gzip(&gzip(&vec![b' '; 64 << 20])), ErrorKind::TooLarge, "more than 100000 bytes"),
    ] {
        for reply in packed(200, coding, body).await {
            let failure = reply.unwrap_err();
            assert_eq!(failure.kind, kind, "{coding}: {failure}");
            assert!(failure.to_string().contains(why), "{coding}: {failure}");
        }
    }
    // what refuses is dealt with by its status
    for (coding, body) in [("gzip", b"<html>".to_vec()), ("br", b"x".to_vec()), ("gzip", gzip(b"{}")[..9].to_vec())] {
        for reply in packed(429, coding, body).await {
            assert_eq!(reply.unwrap().status, StatusCode::TOO_MANY_REQUESTS);
        }
    }
    for reply in packed(204, "gzip", Vec::new()).await {
        assert_eq!(reply.unwrap().body, "");
    }
}
