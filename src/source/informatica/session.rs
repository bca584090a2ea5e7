//! The session: logging in, and recognizing that a session has ended.
//!
//! Promises: the password goes to `login_url` alone, and the session to where the log is only if that is the machine of the
//! login, one below it, or one of Informatica's own.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use http::{HeaderName, HeaderValue, StatusCode};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use url::{Host, Url};

use super::super::kit::{credential, token_claims};
use super::super::text;
use crate::api::{
    Call, Dialect, Reply, Session, Verdict, Wire, cannot_be_carried, judge_by_status, renewal, secret_header,
};
use crate::failure::{ErrorKind, Failure};
use crate::settings::{Secret, is_loopback};

/// The longest body that is looked at as an error.
const ERROR_BODY_MAX: usize = 64 << 10;
/// A session that says it ends sooner is used until the service refuses it: rather one refused
/// request than a login for each.
const LIFETIME_MIN: Duration = Duration::from_mins(1);

/// Informatica's own domains: the log lives on another host than the login.
const VENDOR: &str = "informaticacloud.com";

const SESSION: HeaderName = HeaderName::from_static("infa-session-id");

pub(super) struct InformaticaDialect {
    pub(super) login: Url,
    /// Where the log is, if that is not for the login's answer to say.
    pub(super) base: Option<Url>,
    pub(super) username: String,
    pub(super) password: Secret,
    pub(super) allow_plain_http: bool,
}

#[async_trait]
impl Dialect for InformaticaDialect {
    async fn open_session(&self, wire: &Wire) -> Result<Session, Failure> {
        let password = credential(&self.password)?;
        let body = self.login_body(password.expose_secret());
        let call = Call::post(self.login.clone(), "application/json", body).hiding(&password);
        self.opened(&wire.login_exchange(&call).await?, wire.now())
    }

    fn credential(&self, session: &Session) -> Option<(HeaderName, HeaderValue)> {
        Some((SESSION, secret_header("", &session.token)?))
    }

    fn judge(&self, reply: &Reply) -> Verdict {
        let said = || Complaint::of(&reply.body);
        match reply.status.as_u16() {
            // the page to log in, where a session has ended
            200..=299 if reply.body.trim_ascii_start().starts_with(b"<") => Verdict::Expired,
            200..=299 => said().map_or(Verdict::Good, |error| error.verdict()),
            400 | 403 if said().is_some_and(|error| error.session_ended) => Verdict::Expired,
            // no way to ask, such as too large a `skip`: what follows is up to the reader
            400 | 413 | 414 | 416 | 422 => Verdict::Good,
            _ => judge_by_status(reply.status),
        }
    }
}

/// The answer to a login, as far as it is needed.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LoggedIn {
    #[serde(default)]
    products: Vec<Product>,
    user_info: UserInfo,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Product {
    name: Option<String>,
    base_api_url: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UserInfo {
    session_id: SecretString,
}

impl InformaticaDialect {
    /// The body of a login, which is wiped when it is dropped.
    fn login_body(&self, password: &str) -> Bytes {
        #[derive(Serialize)]
        struct Credential<'a> {
            username: &'a str,
            password: &'a str,
        }
        // long enough for every character to be escaped: growing would leave copies behind
        let mut body = Zeroizing::new(Vec::with_capacity(64 + 6 * (self.username.len() + password.len())));
        let credential = Credential { username: &self.username, password };
        serde_json::to_writer(&mut *body, &credential).expect("texts can be written to memory");
        Bytes::from_owner(body)
    }

    /// The session a login gave, or why it gave none: the credential, unless the answer tells of something else.
    ///
    /// Since November 2025 the session id may be a JSON Web Token that ends at a moment of its own.
    fn opened(&self, reply: &Reply, now: DateTime<Utc>) -> Result<Session, Failure> {
        match reply.status.as_u16() {
            200..=299 => {}
            400 | 401 | 403 => return Err(reply.failure(ErrorKind::Auth)),
            _ => match judge_by_status(reply.status) {
                Verdict::Bad(kind) => return Err(reply.failure(kind)),
                Verdict::Good | Verdict::Expired => return Err(reply.failure(ErrorKind::Auth)),
            },
        }
        if let Some(error) = Complaint::of(&reply.body) {
            let kind = match error.verdict() {
                Verdict::Bad(kind @ ErrorKind::Throttled) => kind,
                // what passes by itself; any other error is a refusal
                Verdict::Bad(ErrorKind::Server) if error.status.is_some_and(|status| status >= 500) => {
                    ErrorKind::Server
                }
                _ => ErrorKind::Auth,
            };
            return Err(reply.failure(kind));
        }
        let answer: LoggedIn =
            serde_json::from_slice(reply.json()).map_err(|_| reply.no_session("no userInfo.sessionId"))?;
        let token = answer.user_info.session_id;
        if let Some(why) = cannot_be_carried(token.expose_secret()) {
            return Err(reply.no_session(format_args!("its userInfo.sessionId cannot be used: {why}")));
        }
        let base = if let Some(base) = &self.base {
            base.clone()
        } else {
            let base = base_of(&answer.products).ok_or_else(|| reply.no_session("no products[].baseApiUrl"))?;
            self.may_go(&base).map_err(|why| reply.no_session(format_args!("its baseApiUrl {why}")))?;
            base
        };
        let renew_at = lifetime(token.expose_secret(), reply, now).map(|lifetime| renewal(now, lifetime));
        Ok(Session { token, base, renew_at })
    }

    /// Whether the session may go where an answer says the log is: to the machine of the login, one
    /// below it, or one of Informatica's own, and no less protected on its way than the login was.
    fn may_go(&self, base: &Url) -> Result<(), String> {
        let here = is_loopback(base);
        if base.scheme() != "https" && (self.login.scheme() == "https" || !(self.allow_plain_http || here)) {
            return Err(
                "is plain http://, where the session could be read on the way; if that is right, set base_url \
                        (and allow_plain_http)"
                    .into(),
            );
        }
        let same_port = base.port_or_known_default() == self.login.port_or_known_default();
        let known = match (self.login.host(), base.host()) {
            // both on this machine: a simulator, or a tunnel
            _ if here && is_loopback(&self.login) => true,
            (Some(login), Some(base_host)) if login == base_host => same_port || base.scheme() == "https",
            (Some(login), Some(Host::Domain(name))) => {
                let below = |domain: &str| name.strip_suffix(domain).is_some_and(|left| left.ends_with('.'));
                below(VENDOR) || matches!(login, Host::Domain(domain) if below(domain))
            }
            _ => false,
        };
        if known {
            return Ok(());
        }
        let to = base.origin().ascii_serialization();
        Err(format!(
            "leads to {to}, which is neither the host of login_url nor Informatica's; if that is right, set base_url"
        ))
    }
}

/// Where the log is: the product "Integration Cloud", else the first that has an address.
fn base_of(products: &[Product]) -> Option<Url> {
    let addressed =
        || products.iter().filter(|product| product.base_api_url.as_deref().is_some_and(|url| !url.trim().is_empty()));
    let wanted =
        |product: &&Product| product.name.as_deref().is_some_and(|name| name.eq_ignore_ascii_case("integration cloud"));
    let product = addressed().find(wanted).or_else(|| addressed().next())?;
    let base = Url::parse(product.base_api_url.as_deref()?.trim()).ok()?;
    let plain = matches!(base.scheme(), "http" | "https") && base.username().is_empty() && base.password().is_none();
    plain.then_some(base)
}

/// How long a session lasts that says when it ends, by the clock that says so.
fn lifetime(token: &str, reply: &Reply, now: DateTime<Utc>) -> Option<Duration> {
    #[derive(Deserialize)]
    struct Claims {
        exp: f64,
        iat: Option<f64>,
    }
    let claims: Claims = token_claims(token)?;
    let their_now = || {
        let date = reply.header("date").and_then(|date| httpdate::parse_http_date(date).ok());
        crate::clock::unix_seconds(date.map_or(now, DateTime::<Utc>::from))
    };
    let lifetime = Duration::try_from_secs_f64(claims.exp - claims.iat.unwrap_or_else(their_now)).ok()?;
    (lifetime >= LIFETIME_MIN).then_some(lifetime)
}

/// An error in a body, in any of the three shapes the service has for it: `{"error": {"code",
/// "message"}}`, `{"code", "description", "statusCode", "@type": "error"}` and Spring's problem
/// `{"type", "title", "status", "detail"}`. Each of them also comes with a status of 200.
struct Complaint {
    /// The status the body itself tells, if it is an error's.
    status: Option<u16>,
    /// Whether it says that the session has ended.
    session_ended: bool,
}

impl Complaint {
    fn of(body: &[u8]) -> Option<Self> {
        if body.len() > ERROR_BODY_MAX {
            return None;
        }
        let whole = text::value(body);
        if whole.get("entries").is_some_and(|entries| !entries.is_null()) || whole.get("userInfo").is_some() {
            return None;
        }
        let is_said = |error: &&Value| error.is_object() || error.as_str().is_some_and(|text| !text.is_empty());
        let error = whole.get("error").filter(is_said);
        let inner = error.filter(|error| error.is_object()).unwrap_or(&whole);
        let number = |key: &str| match inner.get(key)? {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        let status = number("statusCode").or_else(|| number("status"));
        let status = status.and_then(|status| u16::try_from(status).ok()).filter(|status| (400..600).contains(status));
        let has = |key: &str| inner.get(key).is_some_and(Value::is_string);
        let is_error = error.is_some()
            || status.is_some()
            || whole.get("@type").is_some_and(|kind| kind == "error")
            || (inner.get("code").is_some() && (has("message") || has("description")));
        is_error.then(|| Self { status, session_ended: says_session_ended(inner) })
    }

    fn verdict(&self) -> Verdict {
        match self.status {
            _ if self.session_ended => Verdict::Expired,
            Some(status) => {
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                judge_by_status(status)
            }
            None => Verdict::Bad(ErrorKind::Server),
        }
    }
}

/// `AUTH_01` is what public collectors know; other codes are told by their words.
fn says_session_ended(error: &Value) -> bool {
    let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default();
    if text("code").eq_ignore_ascii_case("AUTH_01") {
        return true;
    }
    let keys = ["code", "message", "description", "detail", "title", "error"];
    let said = keys.map(text).join(" ").to_lowercase();
    let ended =
        ["expired", "invalid", "not valid", "no longer valid", "ended", "timed out", "timeout", "not logged in"];
    (said.contains("session") || said.contains("token")) && ended.iter().any(|word| said.contains(word))
}
