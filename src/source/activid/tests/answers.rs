//! What a refusal means, what an answer may be, and which label sets it can lead to.

use super::*;

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
