//! The words every other module shares: what an event is, and what it is counted as.
//!
//! Promises: every label value that reaches a counter went through [`Label::from_words`] or is a
//! closed enum of this file, so it is lower case, joined by `_`, at most [`LABEL_CHARS_MAX`]
//! characters and never empty. Nothing here can hold an actor, an object, an address or an id.
//!
//! Leaves to others: which service value becomes which label (`source/*.rs`), the cap on the
//! number of distinct values and the counting itself (`ledger.rs`).

use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// Longest label value, in characters.
pub const LABEL_CHARS_MAX: usize = 64;

/// A system that this exporter can read: the value of the label `system`, and the list of its sources in the
/// configuration. Which there are, only `source/registry.rs` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct System(&'static str);

impl System {
    /// The system of this name, lower-case words joined by `_`. Each service names itself once.
    pub const fn named(name: &'static str) -> Self {
        Self(name)
    }

    /// The label value, which is also the configuration's key.
    pub fn as_str(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name a user gave a source: `[a-z0-9][a-z0-9_-]{0,62}`, the value of the label `source`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceName(Arc<str>);

/// Why a text is no [`SourceName`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a source name is 1 to 63 characters of a-z, 0-9, _ and -, and begins with a letter or digit")]
pub struct BadSourceName;

impl SourceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as a shared label value.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

impl std::str::FromStr for SourceName {
    type Err = BadSourceName;

    fn from_str(text: &str) -> Result<Self, BadSourceName> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let first_fits = text.chars().next().is_some_and(plain);
        let rest_fits = text.chars().all(|c| plain(c) || c == '_' || c == '-');
        if first_fits && rest_fits && text.len() <= 63 { Ok(Self(text.into())) } else { Err(BadSourceName) }
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A category or action as it is counted: lower-case words joined by `_`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Label(Arc<str>);

/// Of a label that was written as text: it is one already, and words that are split again may be others.
impl From<String> for Label {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<Label> for String {
    fn from(label: Label) -> Self {
        label.as_str().to_owned()
    }
}

impl Label {
    /// What a service called something, as a label value: words end at anything that is not a
    /// letter or digit and at a change of case (`SSOConfig` → `sso_config`, `User group` →
    /// `user_group`). A text without a letter or digit is [`Label::unknown`].
    pub fn from_words(text: &str) -> Self {
        let joined = words(text).join("_");
        let value: String = joined.chars().take(LABEL_CHARS_MAX).collect();
        let value = value.trim_end_matches('_'); // so that reading a label again changes nothing
        if value.is_empty() { Self::unknown() } else { Self(value.into()) }
    }

    /// The value for what the service left out.
    pub fn unknown() -> Self {
        Self("unknown".into())
    }

    /// The value that stands for all values beyond the cap.
    pub fn other() -> Self {
        Self("other".into())
    }

    /// The value as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The value as a shared label value.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The lower-case words of a name (see [`Label::from_words`]). A digit belongs to the word it
/// follows; it neither starts nor ends one, but a change of case is seen across it
/// (`OAuth2Token` → `o`, `auth2`, `token`).
pub fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut previous = ' ';
    let mut last_letter_lower = false;
    let mut letters = text.chars().peekable();
    while let Some(c) = letters.next() {
        if !c.is_alphanumeric() {
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            previous = c;
            continue;
        }
        let next_lower = letters.peek().is_some_and(|n| n.is_lowercase());
        let boundary =
            c.is_uppercase() && !word.is_empty() && (last_letter_lower || (!previous.is_lowercase() && next_lower));
        if boundary {
            words.push(std::mem::take(&mut word));
        }
        word.extend(c.to_lowercase());
        if c.is_alphabetic() {
            last_letter_lower = c.is_lowercase();
        }
        previous = c;
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// How an audited action ended, as far as the service says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The service says it succeeded, or records successes only.
    Success,
    /// The service says it failed.
    Failure,
    /// The service does not say.
    Unknown,
}

impl Outcome {
    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Success => "success",
            Outcome::Failure => "failure",
            Outcome::Unknown => "unknown",
        }
    }
}

/// Who logs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Principal {
    /// A person.
    User,
    /// A piece of the customer's own software (an Informatica Secure Agent).
    Agent,
    /// A device that proves itself.
    Device,
}

impl Principal {
    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Principal::User => "user",
            Principal::Agent => "agent",
            Principal::Device => "device",
        }
    }
}

/// Which of the summed families an event belongs to beside `audit_events_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Someone or something logged in, or tried to.
    Login(Principal),
    /// A session was ended on purpose.
    Logout,
    /// Anything else that was done to the system.
    Change,
    /// A row of a data feed: no act of anyone, counted in `audit_events_total` alone.
    Row,
}

/// What an event is counted as. Two events with equal labels add to the same series.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EventLabels {
    /// What kind of thing was acted on.
    pub category: Label,
    /// What was done.
    pub action: Label,
    /// How it ended.
    pub outcome: Outcome,
    /// Which summed families it adds to.
    pub class: Class,
}

impl EventLabels {
    /// What a row of a data feed is counted as.
    pub fn row(category: Label, action: Label) -> Self {
        Self { category, action, outcome: Outcome::Unknown, class: Class::Row }
    }
}

/// What makes an event the same event when it is read again: 128 bits of BLAKE3 over the
/// service's id, or over (cell, content, n-th of its kind in the cell) where it has none. A
/// cryptographic hash, because ids come from outside and a chosen collision would hide an event.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventKey(pub [u8; 16]);

impl EventKey {
    /// The key of the parts, each of which is delimited, so that `["ab", "c"]` and `["a", "bc"]`
    /// differ. `domain` keeps keys of different make apart.
    pub fn of(domain: &str, parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(domain.len() as u64).to_le_bytes());
        hasher.update(domain.as_bytes());
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let mut key = [0; 16];
        key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(key)
    }
}

impl fmt::Debug for EventKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// Why an event could not be understood; the label `reason` of `audit_source_events_rejected_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RejectReason {
    /// It is not the object, token or row that the service documents.
    Malformed,
    /// Its time is there but cannot be read as one.
    BadTime,
}

impl RejectReason {
    /// Every reason.
    pub const ALL: [RejectReason; 2] = [RejectReason::Malformed, RejectReason::BadTime];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            RejectReason::Malformed => "malformed",
            RejectReason::BadTime => "bad_time",
        }
    }
}

/// An event that could not be understood, as far as it may be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Why.
    pub reason: RejectReason,
    /// What it looked like, without any value of it; for the log.
    pub sample: String,
}

/// One thing a source read, with what makes it itself.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its identity for "read again".
    pub key: EventKey,
    /// When it happened, by the service's clock. `None` where the service does not say.
    pub at: Option<DateTime<Utc>>,
    /// When it happened as closely as the source can tell: the event's own time, or the start of
    /// the cell of five minutes ([`TALLY_CELL`](crate::ledger::TALLY_CELL)) it was read from. Keys are
    /// kept in the order of this moment; one that comes again under another is found, at some cost.
    /// `None` only where neither is known.
    pub filed_at: Option<DateTime<Utc>>,
    /// What it is.
    pub what: What,
}

/// What an [`Item`] is.
#[derive(Clone, Debug)]
pub enum What {
    /// An event to be counted.
    Event(EventLabels),
    /// An event of an actor whose events the user asked not to count.
    Ignored,
    /// An event that could not be understood.
    Rejected(Rejection),
    /// A record the service reports as tainted. It is one of `candidates` (the item's own key
    /// among them): counted unless one of them was counted as tainted before.
    Tainted {
        /// The keys of all records that may be the tainted one.
        candidates: Vec<EventKey>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_end_at_marks_and_at_changes_of_case() {
        for (text, label) in [
            ("User group", "user_group"),
            ("PASSWORD_RESET", "password_reset"),
            ("InstanceCustomNode", "instance_custom_node"),
            ("SSOConfig", "sso_config"),
            ("Authentication", "authentication"),
            ("bid events", "bid_events"),
            ("apiToken", "api_token"),
            ("OAuth2Token", "o_auth2_token"),
            ("oauth2API", "oauth2_api"),
            ("4TRESS", "4tress"),
            ("V2", "v2"),
            ("  --x--  y ", "x_y"),
            ("Größe ÄNDERN", "größe_ändern"),
            ("", "unknown"),
            ("***", "unknown"),
        ] {
            assert_eq!(Label::from_words(text).as_str(), label, "{text:?}");
        }
    }

    #[test]
    fn a_label_is_at_most_64_characters() {
        assert_eq!(Label::from_words(&"é".repeat(200)).as_str().chars().count(), 64);
    }

    #[test]
    fn keys_of_shifted_parts_differ() {
        assert_ne!(EventKey::of("a", &[b"ab", b"c"]), EventKey::of("a", &[b"a", b"bc"]));
        assert_ne!(EventKey::of("a", &[b"b"]), EventKey::of("b", &[b"b"]));
    }

    #[test]
    fn source_names_are_checked() {
        for good in ["a", "0-_", "campus", &"a".repeat(63)] {
            assert!(good.parse::<SourceName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "_a", "A", "a b", "é", &"a".repeat(64)] {
            assert!(bad.parse::<SourceName>().is_err(), "{bad}");
        }
    }
}
