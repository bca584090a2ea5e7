//! What pages of every service may hold, and what becomes of it: entries (`entries.rs`), pages (`pages.rs`) and fields
//! (`fields.rs`). Each reader is built as the exporter builds it, and its service answers one page of raw bytes.

mod entries;
mod fields;
mod pages;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use http::{Request, Response};

use super::*;
use crate::api::{Api, Limits};
use crate::clock::Clock;
use crate::event::{EventKey, Item, System, What};
use crate::failure::ErrorKind;
use crate::failure::Failure;
use crate::page::{DocumentRecord, Page};
use crate::source::activid::SYSTEM as ACTIVID;
use crate::source::canvas::SYSTEM as CANVAS;
use crate::source::index_exchange::SYSTEM as INDEX_EXCHANGE;
use crate::source::informatica::SYSTEM as INFORMATICA;
use crate::source::losant::SYSTEM as LOSANT;
use crate::source::registry::SYSTEMS;
use crate::source::{Sink, Taken};
use crate::transport::{Body, Transport, TransportError};
use crate::window::Window;

/// A whole cell of five minutes begins here.
const BEGIN: i64 = 1_800_000_000;

/// Answers the first page that is asked for with bytes, every other with an empty list.
struct Once {
    system: System,
    status: u16,
    body: Mutex<Option<Vec<u8>>>,
    logins: Mutex<usize>,
    mark: &'static [u8],
}

#[async_trait]
impl Transport for Once {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
        let path = request.uri().path();
        let mut status = 200;
        let body = if path.ends_with("/login") || path.ends_with("/token") {
            *self.logins.lock().unwrap() += 1;
            let login = r#"{"access_token":"x","userInfo":{"sessionId":"x"},"products":[{"baseApiUrl":"https://service.example/saas"}]}"#;
            [self.mark, login.as_bytes()].concat()
        } else if path.contains("/v1/files/") {
            b"event_type\nimpression\n".to_vec()
        } else if let Some(body) = self.body.lock().unwrap().take() {
            status = self.status;
            body
        } else {
            page(self.system, &[])
        };
        let body = futures_util::stream::iter([Ok(Bytes::from(body))]).boxed();
        Ok(Response::builder().status(status).body(body).unwrap())
    }
}

#[derive(Default)]
struct Collected {
    items: Vec<Item>,
    documents: BTreeSet<EventKey>,
}

#[async_trait]
impl Sink for Collected {
    async fn page(&mut self, page: Page) -> Result<Taken, Failure> {
        let inside = page.items.len();
        self.items.extend(page.items);
        self.documents.extend(page.documents.iter().map(|document| document.key));
        Ok(Taken { inside, before: 0, after: 0 })
    }

    fn report(&mut self, _: Failure) {}

    fn document(&mut self, _: &EventKey) -> Option<DocumentRecord> {
        None
    }
}

/// What became of a page.
struct Became {
    end: Result<(), ErrorKind>,
    /// The keys of what is counted.
    counted: BTreeSet<EventKey>,
    /// Labels, or why it is not counted, of each event.
    what: Vec<String>,
    logins: usize,
}

impl Became {
    fn rejected(&self) -> usize {
        self.what.iter().filter(|what| ["malformed", "bad_time"].contains(&what.as_str())).count()
    }
}

fn every_system() -> [System; SYSTEMS.len()] {
    SYSTEMS.map(|system| system.name)
}

fn read(system: System, body: impl Into<Vec<u8>>) -> Became {
    read_with(system, 200, body, b"")
}

fn read_with(system: System, status: u16, body: impl Into<Vec<u8>>, mark: &'static [u8]) -> Became {
    let keys = match system {
        CANVAS => "base_url: https://service.example\n      access_token: t\n      accounts: [1]",
        INFORMATICA => "login_url: https://service.example\n      username: audit\n      password: p",
        ACTIVID => {
            "base_url: https://service.example\n      tenant: T\n      client_id: audit\n      client_secret: s\n      verify: false"
        }
        LOSANT => "base_url: https://service.example\n      instance_id: i\n      api_token: t",
        INDEX_EXCHANGE => {
            "base_url: https://service.example\n      token_url: https://service.example/token\n      client_key: aTpr\n      subscriptions: [impressions]"
        }
        _ => unreachable!("{system} is read by nobody here"),
    };
    let text = format!("sources:\n  {system}:\n    - name: read\n      ignore_actors: [robot]\n      {keys}\n");
    let text = if system == INDEX_EXCHANGE { text.replace("      ignore_actors: [robot]\n", "") } else { text };
    let config = crate::config::parse(&text, Path::new("text.yml")).unwrap().sources.remove(0);
    let (mut source, dialect) = config.service.build(&config.common);
    let limits = Limits {
        requests: 120,
        per: Duration::from_mins(1),
        burst: 1,
        timeout: Duration::from_secs(30),
        max_response_bytes: 1 << 20,
    };
    let from = DateTime::from_timestamp(BEGIN, 0).unwrap();
    let length = Duration::from_mins(5);
    let clock = Clock::starting_at(from + length);
    let body = Mutex::new(Some(body.into()));
    let service = Arc::new(Once { system, status, body, logins: Mutex::default(), mark });
    let transport = Arc::clone(&service) as Arc<dyn Transport>;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let api = Api::new(transport, dialect, limits, Arc::default(), clock, 1);
        let mut sink = Collected::default();
        let days = if system == INDEX_EXCHANGE { chrono::TimeDelta::days(2) } else { chrono::TimeDelta::zero() };
        let window = Window { from: from - days, to: from + length };
        let end = source.read(window, &api, &mut sink).await.map_err(|failure| failure.kind);
        let what = |item: &Item| match &item.what {
            What::Event(labels) => format!("{} {} {}", labels.category, labels.action, labels.outcome.as_str()),
            What::Rejected(rejection) => rejection.reason.as_str().to_owned(),
            What::Ignored => "ignored".to_owned(),
            What::Tainted { .. } => "tainted".to_owned(),
        };
        let events = sink.items.iter().filter(|item| !matches!(item.what, What::Rejected(_)));
        let mut counted: BTreeSet<EventKey> = events.map(|item| item.key).collect();
        counted.extend(sink.documents);
        let logins = *service.logins.lock().unwrap();
        Became { end, counted, what: sink.items.iter().map(what).collect(), logins }
    })
}

/// The n-th event of a service, with a value where nobody looks.
fn event(system: System, n: usize, unread: &[u8]) -> Vec<u8> {
    let at = DateTime::<Utc>::from_timestamp(BEGIN + i64::try_from(n).unwrap(), 0).unwrap();
    let at = at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    let (before, after) = match system {
        CANVAS => (
            format!(r#"{{"id":"e{n}","links":{{"user":{n},"page_view":"#),
            format!(r#"}},"created_at":"{at}","event_type":"login"}}"#),
        ),
        INFORMATICA => (
            format!(r#"{{"id":"e{n}","actor":"ada","other":"#),
            format!(r#","entryTime":"{at}","actionCategory":"User","actionEvent":"CREATE"}}"#),
        ),
        ACTIVID => (
            format!(r#"{{"type":"deleteUser","values":{{"n":{n},"message":"#),
            r#","status":"RESPONSE_SUCCESS"}}"#.to_owned(),
        ),
        LOSANT => (
            format!(r#"{{"id":"e{n}","requestBody":{{"a":["#),
            format!(
                r#"]}},"creationDate":"{at}","primaryTargetType":"User","requestAction":"post","responseStatus":201}}"#
            ),
        ),
        INDEX_EXCHANGE => (
            r#"{"subscriptionName":"impressions","note":"#.to_owned(),
            format!(r#","hour":"2027-01-14T{n:02}:00:00Z","downloadURL":"/files/{n}","size":{n}}}"#),
        ),
        _ => unreachable!("{system} is read by nobody here"),
    };
    let event = [before.as_bytes(), unread, after.as_bytes()].concat();
    if system == ACTIVID { token(&event) } else { event }
}

fn token(payload: &[u8]) -> Vec<u8> {
    format!("\"e30.{}.\"", URL_SAFE_NO_PAD.encode(payload)).into_bytes()
}

fn page(system: System, entries: &[Vec<u8>]) -> Vec<u8> {
    let list = [b"[", entries.join(&b","[..]).as_slice(), b"]"].concat();
    let (before, after) = match system {
        CANVAS => (r#"{"links":{},"events":"#.to_owned(), r#","linked":{"users":[]}}"#),
        INFORMATICA => (r#"{"entries":"#.to_owned(), "}"),
        ACTIVID => (r#"{"schemas":["urn:ietf:params:scim:api:messages:2.0:EventList"],"eventTokens":"#.to_owned(), "}"),
        LOSANT => (
            format!(r#"{{"totalCount":{},"perPage":100,"page":0,"items":"#, entries.len()),
            r#","sortDirection":"asc"}"#,
        ),
        INDEX_EXCHANGE => (r#"{"availableDownloads":"#.to_owned(), "}"),
        _ => unreachable!("{system} is read by nobody here"),
    };
    [before.as_bytes(), &list, after.as_bytes()].concat()
}

/// Nine good ones; the fifth with this value.
fn nine(system: System, unread: &[u8]) -> Vec<Vec<u8>> {
    (0..9).map(|n| event(system, n, if n == 4 { unread } else { b"null" })).collect()
}
