//! Logins and sessions: every shape of an answer, where the session may go, when it ends, and that it is in no error.

use super::*;

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
