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
use bytes::Bytes;
use chrono::DateTime;
use futures_util::StreamExt;
use http::{Request, Response};

use super::*;
use crate::api::{Api, Limits};
use crate::clock::Clock;
use crate::event::{EventKey, Item, System, What};
use crate::failure::ErrorKind;
use crate::failure::Failure;
use crate::page::{DocumentRecord, Page};
use crate::simulate::{self, Credential, Sample};
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
            let login = sample(self.system).login("x", "service.example");
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
    let service = simulate::service(system.as_str()).unwrap();
    let keys = service.entry("https://service.example", Credential::Text(service.secret()), "      ");
    let more = match system {
        // what is verified is asked for, too
        ACTIVID => "      verify: false\n",
        _ if service.is_feed => "",
        _ => "      ignore_actors: [robot]\n",
    };
    let text = format!("sources:\n  {system}:\n    - name: read\n      {keys}\n{more}");
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

fn sample(system: System) -> &'static Sample {
    &simulate::service(system.as_str()).unwrap().sample
}

/// The n-th event of a service, with a value where nobody looks.
fn event(system: System, n: usize, unread: &[u8]) -> Vec<u8> {
    let n_th = i64::try_from(n).unwrap();
    let at = if simulate::service(system.as_str()).unwrap().is_feed { -86_400 + 3600 * n_th } else { n_th };
    sample(system).event(n, DateTime::from_timestamp(BEGIN + at, 0).unwrap(), unread)
}

fn token(payload: &[u8]) -> Vec<u8> {
    sample(ACTIVID).wrapped.unwrap()(payload)
}

fn page(system: System, entries: &[Vec<u8>]) -> Vec<u8> {
    sample(system).page(entries)
}

/// Nine good ones; the fifth with this value.
fn nine(system: System, unread: &[u8]) -> Vec<Vec<u8>> {
    (0..9).map(|n| event(system, n, if n == 4 { unread } else { b"null" })).collect()
}
