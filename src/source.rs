//! What a source is, and the list of systems.
//!
//! A source knows one service: given a window, what to ask; given an answer, which events it
//! holds and what to ask next. It promises that every event the service reports for the window
//! goes to the [`Sink`] under a key that is the same on every reading, and that an error is
//! returned where it cannot know that it has them all.
//!
//! It does not sleep, retry, count, look at a clock or see the ledger: politeness is `api.rs`,
//! cadence is `poll.rs`, counting is `ledger.rs`.
//!
//! A sixth system is a file beside the five, a variant of [`System`](crate::event::System), a line in [`build`].

use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Datelike, Utc};
use secrecy::ExposeSecret;
use serde::de::{Deserialize, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::api::{Api, Dialect, Reply, Session, Wire};
use crate::config::{Secret, Service, SourceConfig};
use crate::event::{EventKey, Item, RejectReason, Rejection, What};
use crate::failure::ErrorKind;
use crate::failure::Failure;
use crate::page::{Catalogue, DocumentRecord, Page};
use crate::window::Window;

pub mod activid;
pub mod canvas;
pub mod index_exchange;
pub mod informatica;
pub mod losant;
mod oauth;
pub mod text;

/// What is always true of a source, whatever it reads.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Windows begin and end at multiples of this; 1 ms where events have times of their own.
    pub cell: Duration,
    /// The longest window that is asked for at once while catching up.
    pub step_max: Duration,
    /// How far beyond the present to ask, for a service whose clock is ahead.
    pub ahead: Duration,
    /// Whether the service is a list of files, read whole each time, instead of a history.
    pub is_feed: bool,
    /// What the service can report.
    pub signals: Signals,
    /// The label sets its documentation makes possible.
    pub catalogue: Catalogue,
}

/// What a service can report: `audit_source_signal_available`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are five independent facts, each a series of its own")]
pub struct Signals {
    /// Logins.
    pub login: bool,
    /// Failed logins.
    pub login_failure: bool,
    /// Logouts.
    pub logout: bool,
    /// Changes.
    pub change: bool,
    /// Whether its records are what was written.
    pub integrity: bool,
}

impl Signals {
    /// Label value and fact.
    pub fn rows(self) -> [(&'static str, bool); 5] {
        [
            ("login", self.login),
            ("login_failure", self.login_failure),
            ("logout", self.logout),
            ("change", self.change),
            ("integrity", self.integrity),
        ]
    }
}

/// Reads one service.
#[async_trait]
pub trait Source: Send + Sync {
    /// What is always true of it.
    fn spec(&self) -> Spec;

    /// Reads everything the service reports for `window` and hands it to `sink`, page by page.
    ///
    /// Returns `Ok` only if nothing of the window is missing. What was handed over before an
    /// error stays counted; the window is read again.
    async fn read(&mut self, window: Window, api: &Api, sink: &mut dyn Sink) -> Result<(), Failure>;
}

/// Takes what a source reads.
#[async_trait]
pub trait Sink: Send {
    /// Takes a page. Events outside the window are not counted, only noticed.
    async fn page(&mut self, page: Page) -> Result<Taken, Failure>;

    /// Reports something that does not keep the window from being complete, or that reading
    /// again will not mend (`Truncated`, an ignored filter): counted and logged, the poll goes on.
    fn report(&mut self, failure: Failure);

    /// What is remembered of a file of the window.
    fn document(&mut self, key: &EventKey) -> Option<DocumentRecord>;

    /// Whether files are read again to check what is remembered of them: those, and only those,
    /// that have not changed since.
    fn checks(&self) -> bool {
        false
    }
}

/// What became of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Events within the window.
    pub inside: usize,
    /// Events before the window: the service ignored its start.
    pub before: usize,
    /// Events after the window: the service ignored its end.
    pub after: usize,
}

/// The source and the dialect of its client for one entry of the configuration.
pub fn build(config: &SourceConfig) -> (Box<dyn Source>, Box<dyn Dialect>) {
    let common = &config.common;
    match &config.service {
        Service::Canvas(service) => canvas::build(service, common),
        Service::Informatica(service) => informatica::build(service, common),
        Service::Activid(service) => activid::build(service, common),
        Service::Losant(service) => losant::build(service, common),
        Service::IndexExchange(service) => index_exchange::build(service, common),
    }
}

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

/// An entry of a list as it stands there, so that one that is malformed cannot lose the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raw<'a>(pub &'a [u8]);

impl<'de: 'a, 'a> Deserialize<'de> for Raw<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&RawValue>::deserialize(deserializer).map(|raw| Raw(raw.get().as_bytes()))
    }
}

/// The events of a page.
pub type RawEvents<'a> = List<Raw<'a>>;

/// How many events or files one answer may hold: the most that is ever asked for (`ActivID`, where time cannot be
/// cut any finer). In the memory of this program an event is larger than the three bytes `{},` of an answer.
pub const ENTRIES_MAX: usize = 100_000;

/// A list in an answer, as far as it is no longer than [`ENTRIES_MAX`].
#[derive(Debug)]
pub struct List<T> {
    entries: Vec<T>,
    goes_on: bool,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), goes_on: false }
    }
}

impl<T> List<T> {
    /// The entries, if these are all of them.
    pub fn whole(self) -> Option<Vec<T>> {
        (!self.goes_on).then_some(self.entries)
    }

    /// Adds an entry, as far as there is room.
    fn push(&mut self, entry: T) {
        if self.entries.len() < ENTRIES_MAX {
            self.entries.push(entry);
        } else {
            self.goes_on = true;
        }
    }

    /// Adds those of another list.
    fn append(&mut self, other: Self) {
        self.goes_on |= other.goes_on;
        other.entries.into_iter().for_each(|entry| self.push(entry));
    }

    /// The entries, or why they are not read.
    pub fn whole_of(self, reply: &Reply) -> Result<Vec<T>, Failure> {
        self.whole().ok_or_else(|| too_many(reply))
    }
}

/// The failure of a list in which nothing is what was asked for: the service tells of something else, and what happened
/// meanwhile has still to be read.
fn nothing_of_its_own(reply: &Reply) -> Failure {
    reply.undecodable("a list in which no entry is one of this service's")
}

/// Whether a list is not empty and not one of its entries, which gave these items, may be of a service that names its
/// fields so.
fn is_strange<'a>(raws: &[Raw<'_>], mut items: impl Iterator<Item = &'a What>, own: &[&str]) -> bool {
    !raws.is_empty()
        && items.all(|what| matches!(what, What::Rejected(_)))
        && !raws.iter().any(|Raw(raw)| text::looks_like_one_of(raw, own))
}

/// The failure of an answer that holds more than [`ENTRIES_MAX`].
fn too_many(reply: &Reply) -> Failure {
    Failure::new(ErrorKind::TooLarge, reply.tried(), format!("more than {ENTRIES_MAX} entries in one answer"))
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = List<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<List<T>, A::Error> {
                let mut entries = Vec::new();
                while entries.len() < ENTRIES_MAX {
                    let Some(entry) = list.next_element()? else { return Ok(List { entries, goes_on: false }) };
                    entries.push(entry);
                }
                let mut goes_on = false;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    goes_on = true;
                }
                Ok(List { entries, goes_on })
            }
        }

        deserializer.deserialize_seq(Entries(PhantomData))
    }
}

/// The dialect of a service whose credential is a token in a file or in the configuration: read anew
/// for every request, so that a new one is used at once.
pub struct StaticToken {
    /// Where it stands.
    pub token: Secret,
    /// Where it may go.
    pub base: url::Url,
}

#[async_trait]
impl Dialect for StaticToken {
    async fn open_session(&self, wire: &Wire) -> Result<Session, Failure> {
        let token = self
            .token
            .read()
            .map_err(|error| Failure::new(ErrorKind::Auth, "reading the credential", error.to_string()))?;
        wire.note_credential_expiry(token_expiry(token.expose_secret()));
        Ok(Session { token, base: self.base.clone(), renew_at: None })
    }

    fn keeps_session(&self) -> bool {
        false
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
    fn a_list_is_kept_up_to_its_limit_and_read_to_its_end() {
        let list = |entries: usize, end: &str| {
            let text = format!("[{}null{end}", "null,".repeat(entries - 1));
            serde_json::from_str::<List<IgnoredAny>>(&text).map(List::whole)
        };
        assert_eq!(list(ENTRIES_MAX, "]").unwrap().map(|entries| entries.len()), Some(ENTRIES_MAX));
        assert!(list(ENTRIES_MAX + 1, "]").unwrap().is_none());
        assert!(list(ENTRIES_MAX + 1, "").is_err(), "cut off");
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
