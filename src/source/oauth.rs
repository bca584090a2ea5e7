//! OAuth 2.0 client credentials (RFC 6749 section 4.4), as `ActivID` and Index Exchange use them.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{StatusCode, header};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use super::token_claims;
use crate::api::{Call, Failure, Session, Verdict, Wire, judge_by_status, renewal, secret_header};
use crate::stats::ErrorKind;

/// Lifetime of a token whose answer does not tell.
const LIFETIME_UNKNOWN: Duration = Duration::from_mins(5);

/// The answer of a token endpoint, as far as it is needed.
#[derive(Deserialize)]
struct Granted {
    access_token: SecretString,
    /// Seconds, which some servers write as text.
    expires_in: Option<Value>,
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
/// A refusal (400, 401, 403) is [`ErrorKind::Auth`]. The token's life is the shorter of
/// `expires_in` and what the token itself says (`exp` less `iat`).
pub(super) async fn client_credentials(
    wire: &Wire,
    token_url: &Url,
    basic: &SecretString,
    base: &Url,
) -> Result<Session, Failure> {
    let form = "grant_type=client_credentials";
    let credential = secret_header("Basic ", basic).ok_or_else(|| {
        Failure::new(ErrorKind::Auth, "reading the credential", "it holds characters no header can carry")
    })?;
    let call = Call::post(token_url.clone(), "application/x-www-form-urlencoded", form)
        .with(header::AUTHORIZATION, credential)
        .hiding(basic);
    let reply = wire.exchange(&call).await?;
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
    let granted: Granted = serde_json::from_slice(&reply.body).map_err(|_| reply.undecodable("no access_token"))?;
    let own = token_claims::<Lifetime>(granted.access_token.expose_secret()).map(|claims| claims.exp - claims.iat);
    let said = granted.expires_in.and_then(|said| said.as_f64().or_else(|| said.as_str()?.trim().parse().ok()));
    let lifetime = match (said, own) {
        (Some(said), Some(own)) => Some(said.min(own)),
        (said, own) => said.or(own),
    };
    let lifetime = lifetime.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).unwrap_or(LIFETIME_UNKNOWN);
    let renew_at = Some(renewal(wire.now(), lifetime));
    Ok(Session { token: granted.access_token, base: base.clone(), renew_at })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_and_secret_are_form_encoded_before_base64() {
        let decoded = STANDARD.decode(basic("a:b", "c+d %é").expose_secret()).unwrap();
        assert_eq!(String::from_utf8(decoded).unwrap(), "a%3Ab:c%2Bd+%25%C3%A9");
    }
}
