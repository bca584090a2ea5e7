//! OAuth 2.0 client credentials (RFC 6749 section 4.4), as ActivID and Index Exchange use them.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{StatusCode, header};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::value::RawValue;
use url::Url;

use super::kit::token_claims;
use crate::api::{
    Call, LIFETIME_BELIEVED, Reply, Session, Verdict, Wire, cannot_be_carried, judge_by_status, renewal,
    says_invalid_token, secret_header,
};
use crate::failure::{ErrorKind, Failure};

/// Lifetime of a token whose answer does not tell.
const LIFETIME_UNKNOWN: Duration = Duration::from_mins(5);

/// The answer of a token endpoint, as far as it is needed.
#[derive(Deserialize)]
struct Granted<'a> {
    access_token: SecretString,
    /// Seconds, which some servers write as text. Whatever stands there does not cost the token.
    #[serde(borrow)]
    expires_in: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Lifetime {
    exp: f64,
    iat: f64,
}

/// `base64(form-encoded id : form-encoded secret)`, as RFC 6749 section 2.3.1 wants it: without
/// the encoding a secret with `:`, `+` or `%` is refused, which counts as a failed attempt.
pub(super) fn basic(id: &str, secret: &str) -> SecretString {
    let encode = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let secret = Zeroizing::new(encode(secret));
    let both = Zeroizing::new(format!("{}:{}", encode(id), *secret));
    STANDARD.encode(both.as_bytes()).into()
}

/// Asks for a token with the given `Basic` credential; `base` is where it may go.
///
/// Any answer that gives no token is [`ErrorKind::Auth`], but for those that tell of something else: a status of 404, 429
/// or 5xx, a redirect, a proxy. The token's life is the shorter of `expires_in` and what the token itself says (`exp`
/// less `iat`).
pub(super) async fn client_credentials(
    wire: &Wire,
    token_url: &Url,
    basic: &SecretString,
    base: &Url,
) -> Result<Session, Failure> {
    let form = "grant_type=client_credentials";
    let credential = secret_header("Basic ", basic).ok_or_else(|| {
        Failure::new(ErrorKind::Auth, "reading the credential", "it has characters that a header cannot carry")
    })?;
    let call = Call::post(token_url.clone(), "application/x-www-form-urlencoded", form)
        .with(header::AUTHORIZATION, credential)
        .hiding(basic);
    let reply = wire.login_exchange(&call).await?;
    match reply.status {
        StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            return Err(reply.failure(ErrorKind::Auth));
        }
        status => match judge_by_status(status) {
            Verdict::Good => {}
            Verdict::Expired => return Err(reply.failure(ErrorKind::Auth)),
            Verdict::Bad(kind) => return Err(reply.failure(kind)),
        },
    }
    let granted: Granted<'_> = serde_json::from_slice(reply.json()).map_err(|_| reply.no_session("no access_token"))?;
    if let Some(why) = cannot_be_carried(granted.access_token.expose_secret()) {
        return Err(reply.no_session(format_args!("its access_token cannot be used: {why}")));
    }
    let own = token_claims::<Lifetime>(granted.access_token.expose_secret()).map(|claims| claims.exp - claims.iat);
    let lifetime = lifetime(granted.expires_in.map(RawValue::get), own);
    let renew_at = Some(renewal(wire.now(), lifetime));
    Ok(Session { token: granted.access_token, base: base.clone(), renew_at })
}

/// How long a token lasts by what the answer and the token itself say, each as far as it can be believed.
fn lifetime(expires_in: Option<&str>, own: Option<f64>) -> Duration {
    let said = expires_in.and_then(|text| text.trim_matches('"').trim().parse::<f64>().ok());
    let told = [said, own].into_iter().flatten().filter(|seconds| seconds.is_finite() && *seconds > 0.0);
    told.min_by(f64::total_cmp)
        .map_or(LIFETIME_UNKNOWN, |seconds| Duration::from_secs_f64(seconds.min(LIFETIME_BELIEVED.as_secs_f64())))
}

/// What an answer to a request with a token means, where its status does not tell enough: a token that was revoked is
/// refused with 403 or 400 by some.
pub(super) fn judge(reply: &Reply) -> Verdict {
    match reply.status {
        StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN if says_invalid_token(reply) => Verdict::Expired,
        status => judge_by_status(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_and_secret_are_form_encoded_before_base64() {
        let decoded = STANDARD.decode(basic("a:b", "c+d %é").expose_secret()).unwrap();
        assert_eq!(String::from_utf8(decoded).unwrap(), "a%3Ab:c%2Bd+%25%C3%A9");
    }

    #[test]
    fn a_lifetime_that_is_none_is_unknown_and_numbers_may_be_text() {
        for (said, own, seconds) in [
            (Some("3600"), None, 3600.0),
            (Some("\"3600\""), None, 3600.0),
            (Some("\" 3600.5 \""), None, 3600.5),
            (Some("0.25"), None, 0.25),
            (Some("3600"), Some(60.0), 60.0),
            (None, Some(60.0), 60.0),
            (Some("0"), Some(60.0), 60.0),
            (Some("3600"), Some(-5.0), 3600.0),
            (Some("1e300"), None, LIFETIME_BELIEVED.as_secs_f64()),
            (Some("99999999999999999999"), None, LIFETIME_BELIEVED.as_secs_f64()),
        ] {
            assert_eq!(lifetime(said, own), Duration::from_secs_f64(seconds), "{said:?} {own:?}");
        }
        for unknown in
            ["0", "-1", "-0", "\"0\"", "\"\"", "\"soon\"", "\"NaN\"", "\"inf\"", "1e400", "null", "{}", "true"]
        {
            assert_eq!(lifetime(Some(unknown), None), LIFETIME_UNKNOWN, "{unknown}");
        }
        assert_eq!(lifetime(None, Some(0.0)), LIFETIME_UNKNOWN);
    }
}
