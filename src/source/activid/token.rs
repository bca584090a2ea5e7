//! Event tokens: unsigned JWTs, of which only the second segment is used.
//!
//! Promises: both shapes of the documentation are understood (`type` and `values.status`;
//! `eventTypes`); a token that is not understood becomes a rejection that shows no value of it;
//! equal events have equal [`Record::content`] on every reading, and nothing of a token's text
//! is kept but what a search can be narrowed by.
//!
//! The signature is not looked at: `alg` is `none`, and only TLS says where a token comes from.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::labels::labels;
use crate::event::{EventKey, RejectReason, What};
use crate::source::kit::{Ignore, decode_base64url, parse_time, rejected};
use crate::source::text::{self, Field};

/// Claims about the token and not about the event. No documented token has them; they may
/// differ from one reading to the next.
const TOKEN_CLAIMS: [&str; 4] = ["iat", "exp", "nbf", "jti"];

/// The attributes a search can be narrowed by, beside time, to tell events of one millisecond apart.
pub(super) const ATTRIBUTES: [&str; 4] = ["status", "type", "eventId", "correlationId"];

/// One token, as far as it is needed.
#[derive(Clone, Debug)]
pub(super) struct Record {
    /// The same for equal events.
    pub(super) content: EventKey,
    /// What it is counted as.
    pub(super) what: What,
    /// When it happened, where the token says so. Documented tokens do not.
    pub(super) at: Option<DateTime<Utc>>,
    /// Its values of [`ATTRIBUTES`].
    pub(super) attributes: [Option<String>; ATTRIBUTES.len()],
}

impl Record {
    /// Reads an element of `eventTokens`, given as JSON text.
    pub(super) fn read(element: &[u8], ignore: &Ignore) -> Self {
        let Field::Text(token) = Field::of(element) else {
            return Self::malformed(element);
        };
        let Some(payload) = segment(&token, 1) else {
            return Self::malformed(token.as_bytes());
        };
        // an object with odd bytes in it is one; the first half of an object is not
        match text::whole_value(&payload) {
            Some(event) if event.is_object() => Self::event(event, ignore),
            _ => Self::malformed(&payload),
        }
    }

    fn malformed(bytes: &[u8]) -> Self {
        Self {
            content: EventKey::of("activid token", &[bytes]),
            what: rejected(RejectReason::Malformed, bytes).what,
            at: None,
            attributes: Default::default(),
        }
    }

    fn event(mut event: Value, ignore: &Ignore) -> Self {
        if let Some(claims) = event.as_object_mut() {
            claims.retain(|name, _| !TOKEN_CLAIMS.contains(&name.as_str()));
        }
        // written anew, so that neither blanks nor the order of fields make another event of it
        let content = EventKey::of("activid event", &[event.to_string().as_bytes()]);
        let values = &event["values"];
        let name = text(&event["type"]).or_else(|| text(&event["eventTypes"]));
        let status = text(&values["status"]).or_else(|| text(&event["status"]));
        let actors = names(&values["directUser"]).chain(names(&event["directUser"]));
        let what = if ignore.matches(actors.collect::<Vec<_>>().iter().map(|name| Some(name.as_str()))) {
            What::Ignored
        } else {
            What::Event(labels(name.unwrap_or_default(), texts(&event["resourceUris"]), status))
        };
        let at = text(&event["meta"]["created"]).or_else(|| text(&event["created"])).and_then(parse_time);
        let attributes = [status, name, text(&values["eventId"]), text(&values["correlationId"])];
        Self { content, what, at, attributes: attributes.map(|value| value.map(str::to_owned)) }
    }

    /// Whether it was understood.
    pub(super) fn is_good(&self) -> bool {
        !matches!(self.what, What::Rejected(_))
    }
}

/// What the n-th segment of a token holds.
fn segment(token: &str, n: usize) -> Option<Vec<u8>> {
    let segment = token.trim().split('.').nth(n)?;
    decode_base64url(segment.replace('+', "-").replace('/', "_"))
}

/// Whether an element of `eventTokens` may be a token, though one that cannot be read: its header is an object.
pub(super) fn may_be_token(element: &[u8]) -> bool {
    let Field::Text(token) = Field::of(element) else { return false };
    token.contains('.') && segment(&token, 0).is_some_and(|header| text::value(&header).is_object())
}

/// The texts of a value that may be a text or a list of them.
fn texts(value: &Value) -> impl Iterator<Item = &str> {
    let one = value.as_str().into_iter();
    one.chain(value.as_array().into_iter().flatten().filter_map(Value::as_str)).filter(|text| !text.trim().is_empty())
}

/// The first of them.
fn text(value: &Value) -> Option<&str> {
    texts(value).next()
}

/// The names of an actor: a text, a number, or what an object says of it.
fn names(value: &Value) -> impl Iterator<Item = String> {
    let parts: Vec<&Value> = match value {
        Value::Object(fields) => fields.values().collect(),
        other => vec![other],
    };
    parts.into_iter().filter_map(|part| match part {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    })
}

/// Events, each as often as it is there.
#[derive(Clone, Debug, Default)]
pub(super) struct Bag(BTreeMap<EventKey, (Record, u32)>);

impl Bag {
    /// Adds one.
    pub(super) fn add(&mut self, record: Record) {
        self.0.entry(record.content).or_insert((record, 0)).1 += 1;
    }

    /// Adds all of another.
    pub(super) fn add_all(&mut self, other: Bag) {
        for (content, (record, count)) in other.0 {
            self.0.entry(content).or_insert((record, 0)).1 += count;
        }
    }

    /// Raises each to what it is in another reading of the same events.
    pub(super) fn raise_to(&mut self, other: &Bag) {
        for (content, (record, count)) in &other.0 {
            let held = self.0.entry(*content).or_insert_with(|| (record.clone(), 0));
            held.1 = held.1.max(*count);
        }
    }

    /// What is in both, as often as it is in both.
    pub(super) fn shared_with(&self, other: &Bag) -> Bag {
        let mut shared = Bag::default();
        for (content, (record, count)) in &self.0 {
            if let Some((_, others)) = other.0.get(content) {
                shared.0.insert(*content, (record.clone(), *count.min(others)));
            }
        }
        shared
    }

    /// Takes away what is in another.
    pub(super) fn remove(&mut self, other: &Bag) {
        for (content, (_, count)) in &other.0 {
            if let Some(held) = self.0.get_mut(content) {
                held.1 = held.1.saturating_sub(*count);
            }
        }
        self.0.retain(|_, (_, count)| *count > 0);
    }

    /// Whether all that was understood of another reading is here.
    pub(super) fn holds_good_of(&self, other: &Bag) -> bool {
        other.0.iter().all(|(content, (record, count))| {
            !record.is_good() || self.0.get(content).is_some_and(|(_, held)| held >= count)
        })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.values().map(|(_, count)| *count as usize).sum()
    }

    /// How many were understood.
    pub(super) fn good(&self) -> usize {
        self.0.values().filter(|(record, _)| record.is_good()).map(|(_, count)| *count as usize).sum()
    }

    /// Each different one, and how often it is there, in an order that is always the same.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Record, u32)> {
        self.0.values().map(|(record, count)| (record, *count))
    }

    /// The same for equal bags only.
    pub(super) fn print(&self) -> EventKey {
        let mut parts = Vec::new();
        for (record, count) in self.iter() {
            parts.extend_from_slice(&record.content.0);
            parts.extend_from_slice(&count.to_le_bytes());
        }
        EventKey::of("activid bag", &[&parts])
    }
}

#[cfg(test)]
pub(super) mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    use serde_json::json;

    use super::*;

    /// A token of this payload, as the service writes them.
    pub(in super::super) fn token(payload: &Value) -> String {
        format!("eyJhbGciOiJub25lIn0.{}.", URL_SAFE_NO_PAD.encode(payload.to_string()))
    }

    fn read(token: &str) -> Record {
        Record::read(json!(token).to_string().as_bytes(), &Ignore::new(&["robot".into(), "17".into()]))
    }

    fn shown(record: &Record) -> String {
        match &record.what {
            What::Event(labels) => format!("{} {} {}", labels.category, labels.action, labels.outcome.as_str()),
            other => format!("{other:?}"),
        }
    }

    /// The sample token of the documentation.
    const SAMPLE: &str = "eyJhbGciOiJub25lIn0.eyJwdWJsaXNoZXJVcmkiOiJodHRwczovL3NjaW0uZXhhbXBsZS5jb20iLCJmZWVkVXJpcyI6WyJodHRwczovL2podWIuZXhhbXBsZS5jb20vRmVlZHMvOThkNTI0NjFmYTViYmM4Nzk1OTNiNzc1NCIsImh0dHBzOi8vamh1Yi5leGFtcGxlLmNvbS9GZWVkcy81ZDc2MDQ1MTZiMWQwODY0MWQ3Njc2ZWU3Il0sInJlc291cmNlVXJpcyI6WyJodHRwczovL3NjaW0uZXhhbXBsZS5jb20vVXNlcnMvNDRmNjE0MmRmOTZiZDZhYjYxZTc1MjFkOSJdLCJldmVudFR5cGVzIjpbIkNSRUFURSJdLCJhdHRyaWJ1dGVzIjpbImlkIiwibmFtZSIsInVzZXJOYW1lIiwicGFzc3dvcmQiLCJlbWFpbHMiXSwidmFsdWVzIjp7ImVtYWlscyI6W3sidHlwZSI6IndvcmsiLCJ2YWx1ZSI6Impkb2VAZXhhbXBsZS5jb20ifV0sInBhc3N3b3JkIjoibm90NHUybm8iLCJ1c2VyTmFtZSI6Impkb2UiLCJpZCI6IjQ0ZjYxNDJkZjk2YmQ2YWI2MWU3NTIxZDkiLCJuYW1lIjp7ImdpdmVuTmFtZSI6IkpvaG4iLCJmYW1pbHlOYW1lIjoiRG9lIn19fQ.";

    #[test]
    fn both_documented_shapes_are_understood() {
        assert_eq!(shown(&read(SAMPLE)), "user create unknown");
        let typical = json!({"schemas": ["urn:ietf:params:scim:schemas:notify:2.0:Event"],
            "resourceUris": ["https://scim.example.com/Users/123"], "type": "addRoleToUser",
            "values": {"directUser": "alice", "eventId": "addRoleToUser", "status": "RESPONSE_FAILURE"}});
        assert_eq!(shown(&read(&token(&typical))), "role create failure");
        let status_outside = json!({"eventTypes": ["DELETE"], "status": "RESPONSE_SUCCESS",
            "resourceUris": "https://scim.example.com/Devices/1", "values": {"status": ""}});
        assert_eq!(shown(&read(&token(&status_outside))), "device delete success");
        assert_eq!(shown(&read(&token(&json!({})))), "unknown unknown unknown");
    }

    #[test]
    fn neither_signature_nor_padding_nor_alphabet_makes_another_event() {
        let payload = json!({"type": "deleteUser", "values": {"message": "a?>~ÿ"}});
        let segments = [URL_SAFE_NO_PAD.encode(payload.to_string()), STANDARD.encode(payload.to_string())];
        let plain = read(&token(&payload));
        assert_eq!(shown(&plain), "user delete unknown");
        for segment in segments {
            for token in [format!("e30.{segment}"), format!("e30.{segment}."), format!(" e30.{segment}.c2ln\n")] {
                assert_eq!(read(&token).content, plain.content, "{token}");
            }
        }
    }

    #[test]
    fn claims_about_the_token_do_not_make_another_event_and_others_do() {
        let content = |payload: Value| read(&token(&payload)).content;
        let plain = content(json!({"type": "a", "values": {"x": 1}}));
        assert_eq!(content(json!({"values": {"x": 1}, "iat": 5, "jti": "z", "type": "a"})), plain);
        assert_ne!(content(json!({"type": "a", "values": {"x": 2}})), plain);
        assert_eq!(read(&token(&json!({"iat": 5}))).at, None, "iat is when the token was made");
    }

    #[test]
    fn a_time_is_taken_where_the_token_has_one() {
        let at = parse_time("2026-03-04T12:00:00.123Z");
        assert_eq!(read(&token(&json!({"meta": {"created": "2026-03-04T12:00:00.123Z"}}))).at, at);
        assert_eq!(read(&token(&json!({"created": "2026-03-04T12:00:00.123+00:00"}))).at, at);
        assert_eq!(read(&token(&json!({"created": "soon"}))).at, None);
    }

    #[test]
    fn an_ignored_actor_may_be_a_text_a_number_or_an_object() {
        for actor in [json!("Robot"), json!(17), json!({"value": "ROBOT", "$ref": "x"}), json!({"id": 17})] {
            let record = read(&token(&json!({"type": "deleteUser", "values": {"directUser": actor}})));
            assert_eq!(shown(&record), "Ignored", "{actor}");
        }
        let other = read(&token(&json!({"type": "deleteUser", "values": {"directUser": {"id": 18}}})));
        assert_eq!(shown(&other), "user delete unknown");
    }

    #[test]
    fn what_is_no_event_is_rejected_and_shows_nothing_of_itself() {
        let not_an_object = token(&json!(["not4u2no"]));
        for bad in ["", "not4u2no", "e30", "e30.", "e30.bm90NHUybm8.", "e30.!!!.", &not_an_object] {
            let record = read(bad);
            let What::Rejected(rejection) = &record.what else { panic!("{bad}") };
            assert!(!rejection.sample.contains("not4u2no") && !rejection.sample.contains("bm90"), "{rejection:?}");
            assert_eq!(record.content, read(bad).content);
        }
        for bad in ["7", "null", r#"{"type":"CREATE"}"#, r#"["e30.e30."]"#] {
            assert!(matches!(Record::read(bad.as_bytes(), &Ignore::default()).what, What::Rejected(_)), "{bad}");
        }
    }

    #[test]
    fn bags_are_multisets() {
        let record = |n: u32| read(&token(&json!({"type": "a", "n": n})));
        let bag = |numbers: &[u32]| {
            let mut bag = Bag::default();
            for n in numbers {
                bag.add(record(*n));
            }
            bag
        };
        assert_eq!(bag(&[1, 1, 2]).len(), 3);
        assert_eq!(bag(&[1, 2, 1]).print(), bag(&[2, 1, 1]).print());
        assert_ne!(bag(&[1, 2]).print(), bag(&[1, 1, 2]).print());
        assert!(bag(&[1, 1, 2]).holds_good_of(&bag(&[1, 2])) && !bag(&[1, 2]).holds_good_of(&bag(&[1, 1])));
        let mut raised = bag(&[1, 1]);
        raised.raise_to(&bag(&[1, 2]));
        assert_eq!(raised.print(), bag(&[1, 1, 2]).print());
    }
}
