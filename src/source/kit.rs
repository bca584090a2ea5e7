//! What sources share: how they read a time, a token, an id that is missing, and what they do with an event that they
//! cannot understand.
//!
//! Promises: nothing here knows a service. A sample of an event shows its shape and no value.
//!
//! Leaves to others: lists (`list.rs`), text that is not quite JSON (`text.rs`), the header `Link` (`link.rs`), OAuth
//! (`oauth.rs`).

use std::collections::HashSet;

use async_trait::async_trait;
use chrono::{DateTime, Datelike, Utc};
use http::{HeaderName, HeaderValue, header};
use secrecy::{ExposeSecret, SecretString};

use super::list::{BadList, ENTRIES_MAX};
use super::text;
use crate::api::{Budget, Dialect, Reply, Session, Verdict, Wire, judge_by_status, secret_header};
use crate::event::{EventKey, Item, RejectReason, Rejection, What};
use crate::failure::{ErrorKind, Failure};
use crate::settings::Secret;

/// The actors whose events are not counted.
#[derive(Clone, Debug, Default)]
pub struct Ignore(HashSet<String>);

impl Ignore {
    /// The actors of a configuration, which are lower case there.
    pub fn new(actors: &[String]) -> Self {
        Self(actors.iter().map(|actor| actor.to_lowercase()).collect())
    }

    /// Whether any of the names an event gives its actor is one of them.
    pub fn matches<'a>(&self, names: impl IntoIterator<Item = Option<&'a str>>) -> bool {
        !self.0.is_empty() && names.into_iter().flatten().any(|name| self.0.contains(&name.to_lowercase()))
    }
}

/// An event that could not be understood, keyed by its own bytes.
pub fn rejected(reason: RejectReason, raw: &[u8]) -> Item {
    let key = EventKey::of("rejected", &[raw]);
    Item { key, at: None, filed_at: None, what: What::Rejected(Rejection { reason, sample: redacted(raw) }) }
}

/// The shape of a JSON text without its values: keys, types and lengths; at most 300 characters. A key that does
/// not look like the name of a field may be a value itself, and is shown by its length.
pub fn redacted(raw: &[u8]) -> String {
    use serde_json::Value;
    let shape = |value: &Value| match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(_) => "number".to_owned(),
        Value::String(text) => format!("string({})", text.chars().count()),
        Value::Array(items) => format!("array({})", items.len()),
        Value::Object(fields) => format!("object({})", fields.len()),
    };
    let text = match serde_json::from_slice::<Value>(raw) {
        Ok(Value::Object(fields)) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|(key, value)| {
                    let is_name = key.len() <= 32 && key.chars().all(|c| c.is_ascii_alphabetic() || "_-.$".contains(c));
                    let length = key.chars().count();
                    let key = if is_name { key.clone() } else { format!("key({length})") };
                    format!("{key}: {}", shape(value))
                })
                .collect();
            format!("{{{}}}", fields.join(", "))
        }
        Ok(other) => shape(&other),
        Err(_) => format!("{} bytes that are not JSON", raw.len()),
    };
    text.chars().take(300).collect()
}

/// A time as the services write it: `Z`, fractions, `+0000` and `+00:00` are all understood.
pub fn parse_time(text: &str) -> Option<DateTime<Utc>> {
    text.trim().parse::<DateTime<Utc>>().ok().filter(is_believable)
}

/// Whether a time is one that any clock shows. Beyond these years adding an hour can overflow, and RFC 3339
/// has no way to write them.
pub fn is_believable(at: &DateTime<Utc>) -> bool {
    YEARS_BELIEVED.contains(&at.year())
}

/// The years in which events may happen.
const YEARS_BELIEVED: std::ops::RangeInclusive<i32> = 1970..=9998;

/// The claims of a token, which are read and not trusted: only TLS says where they come from.
pub fn token_claims<T: serde::de::DeserializeOwned>(token: &str) -> Option<T> {
    let payload = token.split('.').nth(1)?;
    serde_json::from_slice(&decode_base64url(payload)?).ok()
}

/// What a segment of a token or a bookmark holds, with or without padding.
pub(crate) fn decode_base64url(text: impl AsRef<[u8]>) -> Option<Vec<u8>> {
    use base64::Engine;
    use base64::alphabet::URL_SAFE;
    use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &URL_SAFE,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true),
    );
    LENIENT.decode(text).ok()
}

/// When a token says it ends (`exp`).
pub fn token_expiry(token: &str) -> Option<DateTime<Utc>> {
    #[derive(serde::Deserialize)]
    struct Claims {
        exp: Option<f64>,
    }
    #[expect(clippy::cast_possible_truncation, reason = "a date beyond an i64 saturates and is then refused")]
    let seconds = token_claims::<Claims>(token)?.exp? as i64;
    DateTime::from_timestamp(seconds, 0).filter(is_believable)
}

/// Whether an entry that became this item may be an event of a service that names its fields so.
pub fn may_be_own(raw: &[u8], what: &What, own: &[&str]) -> bool {
    !matches!(what, What::Rejected(_)) || text::looks_like_one_of(raw, own)
}

/// The failure of an answer whose list is not read.
pub fn unread(bad: BadList, reply: &Reply) -> Failure {
    match bad {
        BadList::TooMany => {
            Failure::new(ErrorKind::TooLarge, reply.tried(), format!("more than {ENTRIES_MAX} entries in one answer"))
        }
        BadList::NothingOfItsOwn => reply.undecodable(bad),
    }
}

/// The current credential.
pub fn credential(secret: &Secret) -> Result<SecretString, Failure> {
    secret.read().map_err(|error| Failure::new(ErrorKind::Auth, "reading the credential", error.to_string()))
}

/// The dialect of a service whose credential is a token in a file or in the configuration: read anew
/// for every request, so that a new one is used at once.
pub struct StaticToken {
    /// Where it stands.
    pub token: Secret,
    /// Where it may go.
    pub base: url::Url,
    /// What stands before it in `Authorization`, with the space between them.
    pub scheme: &'static str,
    /// What an answer means.
    pub judge: fn(&Reply) -> Verdict,
    /// What the service says is left of its own budget.
    pub budget: fn(&Reply) -> Option<Budget>,
}

impl StaticToken {
    /// Of a service whose answers mean what their status says, and that tells of no budget.
    pub fn bearer(token: &Secret, base: &url::Url) -> Self {
        Self {
            token: token.clone(),
            base: base.clone(),
            scheme: "Bearer ",
            judge: |reply| judge_by_status(reply.status),
            budget: |_| None,
        }
    }
}

#[async_trait]
impl Dialect for StaticToken {
    async fn open_session(&self, wire: &Wire) -> Result<Session, Failure> {
        let token = credential(&self.token)?;
        wire.note_credential_expiry(token_expiry(token.expose_secret()));
        Ok(Session { token, base: self.base.clone(), renew_at: None })
    }

    fn keeps_session(&self) -> bool {
        false
    }

    fn credential(&self, session: &Session) -> Option<(HeaderName, HeaderValue)> {
        Some((header::AUTHORIZATION, secret_header(self.scheme, &session.token)?))
    }

    fn judge(&self, reply: &Reply) -> Verdict {
        (self.judge)(reply)
    }

    fn budget(&self, reply: &Reply) -> Option<Budget> {
        (self.budget)(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redacted_sample_holds_no_value() {
        let sample = redacted(br#"{"actor": "alice@example.com", "n": 5, "body": {"password": "x"}, "items": [1]}"#);
        assert_eq!(sample, "{actor: string(17), body: object(1), items: array(1), n: number}");
        assert_eq!(redacted(br#"{"alice@example.com": 1, "\n": null}"#), "{key(1): null, key(17): number}");
        assert_eq!(redacted(b"\x00garbage"), "8 bytes that are not JSON");
    }

    #[test]
    fn times_are_read_as_every_service_writes_them() {
        for text in [
            "2019-07-23T22:28:07.000Z",
            "2019-07-23T22:28:07Z",
            "2019-07-23T16:28:07-06:00",
            "2019-07-23T22:28:07.000+0000",
        ] {
            assert_eq!(parse_time(text).map(|at| at.timestamp()), Some(1_563_920_887), "{text}");
        }
        for text in ["yesterday", "+262142-12-31T23:59:59Z", "-262143-01-01T00:00:00Z", "1969-12-31T23:59:59Z"] {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }

    #[test]
    fn a_token_tells_when_it_ends_whatever_its_padding() {
        // {"alg":"none"}.{"exp":1538763020}
        assert_eq!(
            token_expiry("eyJhbGciOiJub25lIn0.eyJleHAiOjE1Mzg3NjMwMjB9."),
            DateTime::from_timestamp(1_538_763_020, 0)
        );
        assert_eq!(token_expiry("opaque"), None);
    }

    #[test]
    fn ignored_actors_match_without_case() {
        let ignore = Ignore::new(&["audit@example.com".into()]);
        assert!(ignore.matches([Some("Audit@Example.com")]));
        assert!(!ignore.matches([None, Some("bob")]));
    }
}
