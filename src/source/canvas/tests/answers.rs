//! What comes back: every shape is understood, a refusal is told from throttling, and we slow down in time.

use http::HeaderMap;

use super::*;

#[tokio::test(start_paused = true)]
async fn every_shape_is_understood_and_one_bad_event_loses_no_other() {
    let good = r#"{"id":1,"created_at":"2027-01-15T01:00:00-07:00","event_type":"login"}"#;
    let ignored = r#"{"id":2,"created_at":"2027-01-15T08:00:00Z","event_type":"login","links":{"user":99}}"#;
    let events = format!(r#"[{good},7,{ignored},{{"id":3}},{{"id":4,"created_at":"soon"}}]"#);
    for body in [
        events.clone(),
        format!(r#"{{"events":{events}}}"#),
        format!(r#"while(1);{{"linked":[{{}}],"events":{events}}}"#),
    ] {
        let mut reader = answering(move || Response::new(Body::from(body.clone())));
        reader.read(0..10).await.unwrap();
        let what: Vec<String> = reader
            .sink
            .items
            .iter()
            .map(|item| match &item.what {
                What::Event(labels) => labels.action.to_string(),
                What::Ignored => "ignored".into(),
                What::Rejected(rejection) => rejection.reason.as_str().into(),
                What::Tainted { .. } => "tainted".into(),
            })
            .collect();
        assert_eq!(what, ["login", "malformed", "ignored", "malformed", "bad_time"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_of_another_kind_is_an_error() {
    for body in ["<html>Log in</html>", "{}", r#"{"events":5}"#, r#"{"events":[{"id":1}"#, ""] {
        let mut reader = answering(move || Response::new(Body::from(body)));
        assert_eq!(reader.read(0..10).await.unwrap_err().kind, ErrorKind::Decode, "{body}");
        assert_eq!(reader.sink.items.len(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_from_throttling_and_from_a_bad_token() {
    let real = "Bearer realm=\"canvas-lms\"";
    for (status, header, body, kind, requests) in [
        (401, Some(real), "{}", ErrorKind::Auth, 1),
        (401, None, "{}", ErrorKind::Forbidden, 1),
        (401, None, r#"{"errors":[{"message":"Invalid access token."}]}"#, ErrorKind::Auth, 1),
        (
            401,
            None,
            r#"{"errors":[{"message":"user not authorized to perform that action"}]}"#,
            ErrorKind::Forbidden,
            1,
        ),
        (403, None, "403 Forbidden (Rate Limit Exceeded)\n", ErrorKind::Throttled, 4),
        (429, None, "429 Forbidden (Rate Limit Exceeded)\n", ErrorKind::Throttled, 4),
        (403, None, "forbidden", ErrorKind::Forbidden, 1),
        (404, None, "{}", ErrorKind::NotFound, 1),
    ] {
        let mut reader = answering(move || {
            let mut response = Response::builder().status(status);
            if let Some(header) = header {
                response = response.header("www-authenticate", header);
            }
            response.body(Body::from(body)).unwrap()
        });
        assert_eq!(reader.read(0..10).await.unwrap_err().kind, kind, "{status} {body}");
        assert_eq!(reader.requests().len(), requests, "{status} {body}");
    }
}

#[test]
fn we_slow_down_before_the_service_has_to() {
    let budget = |remaining: &str, cost: Option<&str>| {
        let mut headers = HeaderMap::new();
        headers.insert("x-rate-limit-remaining", remaining.parse().unwrap());
        if let Some(cost) = cost {
            headers.insert("x-request-cost", cost.parse().unwrap());
        }
        let budget = super::budget(&Reply::of(StatusCode::OK, headers, ""));
        budget.map(|Budget { remaining, pause }| (remaining.round(), pause.as_millis()))
    };
    assert_eq!(budget("699.5", Some("0.5")), Some((700.0, 0)));
    assert_eq!(budget("40", Some("10")), Some((40.0, 2000)));
    assert_eq!(budget("0.0", None), Some((0.0, 5000)));
    assert_eq!(budget("-900", None), Some((-900.0, 30_000)));
    assert_eq!(budget("NaN", None), None);
    assert_eq!(super::budget(&Reply::of(StatusCode::OK, HeaderMap::new(), "")), None);
}
