//! Requests and answers as the services see them, and what any HTTP server can do to an answer.
//!
//! Promises: a request is read whole (it is small); an answer is built without a socket in sight, so
//! that faults can be put into it before it is sent.
//!
//! Leaves to others: which fault when (`world.rs`), what is answered (the services).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Write;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use super::chance::Dice;
use super::faults::ServiceFaults;

/// A request to a simulated service is never longer.
pub(super) const REQUEST_BYTES_MAX: usize = 1 << 20;
/// How far a body is blown up by the faults `huge` and `bomb`.
const BLOWN_UP_BYTES: usize = 256 << 20;

/// A request as a service sees it.
pub(super) struct Ask {
    pub(super) path: String,
    /// The path's segments, percent-decoded.
    pub(super) segments: Vec<String>,
    /// The query's pairs, percent-decoded.
    pub(super) query: Vec<(String, String)>,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// `http://HOST`, as the client called it.
    pub(super) origin: String,
}

/// What a service answers.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: Vec<(HeaderName, String)>,
    pub(super) content: Content,
}

/// A body that faults can still be put into, or bytes.
pub(super) enum Content {
    Json(Value),
    Bytes(Bytes),
}

/// The list of events in an answer, as far as faults have to know of it.
pub(super) struct Listing {
    /// The name of its field.
    pub(super) name: &'static str,
    /// Something that may stand in it and is no event.
    pub(super) no_event: Value,
    /// An event may get a field that nobody needs, and stays the event that it is.
    pub(super) takes_fields: bool,
}

/// Why a service refuses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Unauthorized,
    Forbidden,
    Throttled,
    Broken,
    Unavailable,
}

/// How the bytes of an answer get out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    Plain,
    Never,
    Drip,
    Huge,
    Bomb,
    /// Packed in several members.
    Members,
}

// === impl Ask ===

impl Ask {
    pub(super) async fn read(request: Request) -> Result<Self, String> {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, REQUEST_BYTES_MAX).await.map_err(|error| error.to_string())?;
        let host = parts
            .headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok())
            .or_else(|| parts.uri.authority().map(http::uri::Authority::as_str))
            .unwrap_or("localhost");
        let query = parts.uri.query().unwrap_or("");
        Ok(Self {
            path: parts.uri.path().to_owned(),
            segments: parts.uri.path().split('/').skip(1).map(percent_decoded).collect(),
            query: url::form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
            origin: format!("{}://{host}", parts.uri.scheme_str().unwrap_or("http")),
            headers: parts.headers,
            body,
        })
    }

    /// The first value of a query parameter.
    pub(super) fn param(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub(super) fn bearer(&self) -> Option<&str> {
        let (scheme, token) = self.header("authorization")?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    }

    /// The base64 text after `Basic`.
    pub(super) fn basic(&self) -> Option<&str> {
        let (scheme, key) = self.header("authorization")?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("basic").then(|| key.trim())
    }

    /// The fields of a form, if the request says it is one.
    pub(super) fn form(&self) -> Option<BTreeMap<String, String>> {
        let kind = self.header("content-type")?;
        kind.starts_with("application/x-www-form-urlencoded")
            .then(|| url::form_urlencoded::parse(&self.body).into_owned().collect())
    }
}

/// A text with its percent-encoding undone and `+` kept.
pub(super) fn percent_decoded(text: &str) -> String {
    let plus_kept = text.replace('+', "%2B");
    url::form_urlencoded::parse(plus_kept.as_bytes()).next().map_or_else(String::new, |(key, _)| key.into_owned())
}

// === impl Reply ===

impl Reply {
    pub(super) fn new(status: StatusCode) -> Self {
        Self { status, headers: Vec::new(), content: Content::Bytes(Bytes::new()) }
    }

    pub(super) fn json(status: StatusCode, value: Value) -> Self {
        Self {
            status,
            headers: vec![(header::CONTENT_TYPE, "application/json; charset=utf-8".to_owned())],
            content: Content::Json(value),
        }
    }

    pub(super) fn text(status: StatusCode, text: &str) -> Self {
        Self {
            status,
            headers: vec![(header::CONTENT_TYPE, "text/plain; charset=utf-8".to_owned())],
            content: Content::Bytes(text.to_owned().into()),
        }
    }

    /// A login page, as gateways like to send with 200.
    pub(super) fn html() -> Self {
        let page = "<!DOCTYPE html><html><head><title>Sign in</title></head><body><form></form></body></html>";
        Self {
            status: StatusCode::OK,
            headers: vec![(header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned())],
            content: Content::Bytes(page.into()),
        }
    }

    /// The same refusal in the way that the faults say.
    pub(super) fn refused_as(mut self, faults: &ServiceFaults, login: bool) -> Self {
        let refused = self.status.is_client_error() && self.status != StatusCode::TOO_MANY_REQUESTS;
        if login && refused && faults.refused_as_200 {
            self.status = StatusCode::OK;
        } else if !login && self.status == StatusCode::UNAUTHORIZED && faults.ended_as_403 {
            self.status = StatusCode::FORBIDDEN;
            self.content = Content::Json(json!({"error": "invalid_token", "error_description": "Token was revoked"}));
        }
        self
    }

    /// Whether this answer to a login gives a session.
    pub(super) fn lets_in(&self) -> bool {
        matches!(&self.content, Content::Json(body) if body.get("access_token").or(body.get("userInfo")).is_some())
    }

    pub(super) fn with(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Puts something that is no event into the list of events.
    pub(super) fn spoil(&mut self, listing: &Listing, count_cap: usize) {
        if let Some(events) = self.events(listing) {
            // no answer is longer than the service's own limit, and what is empty stays so
            if !events.is_empty() && (count_cap == 0 || events.len() < count_cap) {
                events.insert(events.len() / 2, listing.no_event.clone());
            }
        }
    }

    /// Makes text of the answer that is not quite JSON, although every event in it can be told.
    pub(super) fn garble(&mut self, listing: &Listing, dice: &mut Dice) {
        const PLACE: &str = "here goes what is no JSON";
        let pick = |dice: &mut Dice, below: usize| usize::try_from(dice.below(below as u64)).unwrap_or(0);
        let value = VALUES_THAT_ARE_NO_JSON[pick(dice, VALUES_THAT_ARE_NO_JSON.len())];
        // no field of that name says anything about a file
        let field = "linkNote";
        let events = self.events(listing).filter(|events| listing.takes_fields && !events.is_empty());
        if let Some(events) = events {
            let at = pick(dice, events.len());
            if let Some(event) = events[at].as_object_mut() {
                event.insert(field.to_owned(), PLACE.into());
            }
        } else if let Content::Json(Value::Object(whole)) = &mut self.content {
            whole.insert(field.to_owned(), PLACE.into());
        }
        let text = self.content.bytes();
        let place = format!("\"{PLACE}\"").into_bytes();
        if let Some(at) = text.windows(place.len()).position(|bytes| bytes == place) {
            self.content = Content::Bytes([&text[..at], value, &text[at + place.len()..]].concat().into());
        }
    }

    /// Says that there are no events in another way, where there are none.
    pub(super) fn nullify(&mut self, listing: &Listing) {
        if self.events(listing).is_none_or(|events| !events.is_empty()) {
            return;
        }
        let Content::Json(whole) = &mut self.content else { return };
        match whole.as_object_mut() {
            Some(fields) => {
                fields.insert(listing.name.to_owned(), Value::Null);
            }
            None => *whole = Value::Null,
        }
    }

    /// Puts errors where the events belong.
    pub(super) fn estrange(&mut self, listing: &Listing) {
        if let Some(events) = self.events(listing) {
            *events = vec![json!({"message": "Try again later", "errorCode": "X_17"})];
        }
    }

    /// Writes the total in another way.
    pub(super) fn miscount(&mut self, dice: &mut Dice) {
        if let Content::Json(whole) = &mut self.content
            && let Some(total) = whole.get("totalCount").and_then(Value::as_u64)
        {
            whole["totalCount"] = match dice.below(3) {
                0 => json!(total.to_string()),
                1 => serde_json::from_str(&format!("{total}.0")).unwrap_or_default(),
                _ => json!(-1),
            };
        }
    }

    /// Puts a byte order mark before it.
    pub(super) fn mark(&mut self) {
        self.content = Content::Bytes([b"\xEF\xBB\xBF", &*self.content.bytes()].concat().into());
    }

    /// Puts the events of the list into another order.
    pub(super) fn shuffle(&mut self, listing: &Listing, dice: &mut Dice) {
        if let Some(events) = self.events(listing) {
            for last in (1..events.len()).rev() {
                let other = usize::try_from(dice.below(last as u64 + 1)).unwrap_or(last);
                events.swap(last, other);
            }
        }
    }

    /// The list of events, where the answer has one.
    fn events(&mut self, listing: &Listing) -> Option<&mut Vec<Value>> {
        let Content::Json(whole) = &mut self.content else { return None };
        if whole.is_array() { whole.as_array_mut() } else { whole.get_mut(listing.name)?.as_array_mut() }
    }

    pub(super) async fn deliver(self, delivery: Delivery, date: DateTime<Utc>) -> Response {
        let bytes = self.content.bytes();
        let body = match delivery {
            Delivery::Plain => Body::from(bytes),
            Delivery::Never => std::future::pending().await,
            Delivery::Drip => drip(bytes),
            Delivery::Huge => {
                let blanks = Bytes::from(vec![b' '; 1 << 20]);
                let pieces = (0..BLOWN_UP_BYTES >> 20).map(move |_| blanks.clone()).chain([bytes]);
                Body::from_stream(stream::iter(pieces.map(Ok::<_, Infallible>)))
            }
            Delivery::Bomb => Body::from(bomb()),
            Delivery::Members => Body::from(gzip_members(&bytes)),
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        for (name, value) in self.headers {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.append(name, value);
            }
        }
        if matches!(delivery, Delivery::Bomb | Delivery::Members) {
            headers.append(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        if let Ok(value) = HeaderValue::from_str(&httpdate::fmt_http_date(date.into())) {
            headers.insert(header::DATE, value);
        }
        response
    }
}

/// Values as real services have sent them.
const VALUES_THAT_ARE_NO_JSON: [&[u8]; 12] = [
    b"\"caf\xFC\"",
    b"\"\x01 \n\"",
    b"\"\\x41 \\' \\ud83d\"",
    b"\"\\u12\"",
    b"\"\xED\xA0\xBD\xC0\x80\"",
    b"\"a 5\" disk\"",
    b"NaN",
    b"-Infinity",
    b"007",
    b"1e999",
    b"[1,]",
    b"{\"a\":1,\"a\":\"\\ude00\"}",
];

// === impl Content ===

impl Content {
    pub(super) fn bytes(&self) -> Bytes {
        match self {
            Content::Json(value) => value.to_string().into(),
            Content::Bytes(bytes) => bytes.clone(),
        }
    }
}

/// The bytes one by one, two per second.
fn drip(bytes: Bytes) -> Body {
    Body::from_stream(stream::unfold(bytes, |mut rest| async move {
        if rest.is_empty() {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let first = rest.split_to(1);
        Some((Ok::<_, Infallible>(first), rest))
    }))
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    // writing to a Vec cannot fail
    let _ = packer.write_all(bytes);
    packer.finish().unwrap_or_default()
}

/// gzip of several members, one of them empty, with zeros behind the last (RFC 1952; GNU gzip, "Tapes").
pub(super) fn gzip_members(bytes: &[u8]) -> Bytes {
    let (first, second) = bytes.split_at(bytes.len() / 3);
    [gzip(first), gzip(b""), gzip(second), vec![0; 512]].concat().into()
}

/// A gzip stream that unpacks to [`BLOWN_UP_BYTES`] blanks: one flushed block, repeated. Its
/// checksum is wrong, which only who unpacks all of it will see.
fn bomb() -> Bytes {
    let piece = BLOWN_UP_BYTES / 256;
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    // writing to a Vec cannot fail
    let _ = encoder.write_all(&vec![b' '; piece]);
    let _ = encoder.flush();
    let block = std::mem::take(encoder.get_mut());
    let mut stream = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    for _ in 0..256 {
        stream.extend_from_slice(&block);
    }
    stream.extend_from_slice(&[3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    stream.into()
}
