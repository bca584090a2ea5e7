//! What may be said of an answer.

use http::HeaderValue;

use super::*;

#[test]
fn what_says_that_a_token_is_no_longer_good() {
    let reply = |challenge: &'static str, body: &'static str| {
        let headers = HeaderMap::from_iter([(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge))]);
        Reply::of(StatusCode::FORBIDDEN, headers, body)
    };
    for (challenge, body) in [
        ("", r#"{"error":"invalid_token"}"#),
        ("", "\u{feff}{\"error\":\"invalid_token\",\"error_description\":\"Token was revoked\"}"),
        ("", r#"{"error":{"code":"InvalidToken"}}"#),
        ("", r#"{"code":"TOKEN_EXPIRED"}"#),
        (r#"Bearer realm="x", error="invalid_token""#, ""),
        (r#"Bearer error="invalid_token", error_description="revoked""#, "<html>"),
        ("Bearer realm=x,error=invalid_token", "{}"),
    ] {
        assert!(says_invalid_token(&reply(challenge, body)), "{challenge} {body}");
    }
    for (challenge, body) in [
        ("", ""),
        ("Bearer", r#"{"error":"insufficient_scope"}"#),
        (r#"Bearer error="insufficient_scope", error_description="invalid_token""#, ""),
        ("", r#"{"message":"invalid_token"}"#),
        ("", r#"["invalid_token"]"#),
    ] {
        assert!(!says_invalid_token(&reply(challenge, body)), "{challenge} {body}");
    }
}

#[test]
fn what_a_refused_login_says_is_not_repeated() {
    let body = br#"{"error":{"code":"IDS_085","message":"User name or password hunter2 is not valid."}}"#;
    assert_eq!(error_summary(body, true).as_deref(), Some("IDS_085"));
    assert_eq!(error_summary(body, false).as_deref(), Some("IDS_085: User name or password hunter2 is not valid."));
    let token = format!(r#"{{"error":"bad {}"}}"#, "t".repeat(60));
    assert_eq!(error_summary(token.as_bytes(), false).as_deref(), Some("bad …"));
}
