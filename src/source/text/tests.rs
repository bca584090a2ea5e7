//! What pages of every service may hold, and what becomes of it: each reader is built as the exporter builds it, and its
//! service answers one page of raw bytes.

use std::collections::{BTreeMap, BTreeSet};
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
use proptest::prelude::*;

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

#[test]
fn whatever_bytes_a_text_holds_every_event_counts() {
    let mut texts: Vec<Vec<u8>> = [
        // Latin-1, raw control characters, escapes that are none, halves of surrogate pairs, written out or as bytes
        &b"caf\xFC"[..],
        b"\x01",
        b"a\nb\tc\0d\x7f",
        b"\\x41 \\' \\q \\",
        b"\\ud83d",
        b"\\ude00 \\ud83d\\ud83d\\ude00",
        b"\\u12",
        b"\\u",
        b"\xED\xA0\xBD",
        b"\xC0\x80 \xF8\x88\x80\x80\x80 \xFF\xFE",
        b"\xE2\x82",
        // quotes that should have been escaped, and what looks like the border of an entry
        b"a 5\" disk",
        b"Jo \"the\" X",
        b"}],[{",
        b"},{",
        b"// /* \xFC",
    ]
    .map(<[u8]>::to_vec)
    .into();
    // a backslash would make the quote behind it part of the text
    texts[3].push(b' ');
    for system in every_system() {
        let clean = read(system, page(system, &nine(system, b"null")));
        assert_eq!((clean.end, clean.counted.len(), clean.rejected()), (Ok(()), 9, 0), "{system}");
        for text in &texts {
            let became = read(system, page(system, &nine(system, &[b"\"", text.as_slice(), b"\""].concat())));
            let shown = String::from_utf8_lossy(text);
            assert_eq!((became.end, became.counted.len(), became.rejected()), (Ok(()), 9, 0), "{system} {shown}");
            let same = became.counted.intersection(&clean.counted).count();
            // ActivID knows an event by all it says
            assert!(same == 9 || (same == 8 && system == ACTIVID), "{system} {shown}: {same}");
        }
    }
}

#[test]
fn whatever_stands_where_nobody_looks_every_event_counts() {
    let deep = ["[".repeat(3000), "]".repeat(3000)].concat();
    let deep_and_bad = ["[".repeat(300), "NaN".into(), "]".repeat(300)].concat();
    let long = "9".repeat(400);
    let values = [
        "NaN",
        "Infinity",
        "-Infinity",
        "undefined",
        "None",
        "True",
        "1e999",
        "-1e-999",
        "007",
        "+1",
        ".5",
        "0x1F",
        &long,
        "[1,]",
        "{\"a\":1,}",
        "{\"a\":1,\"a\":2}",
        "{a:1}",
        "{'a':'b'}",
        "[,]",
        "/* no */ 1",
        "1 // no\n",
        "new Date(5)",
        "[1 2]",
        &deep,
        &deep_and_bad,
        "{\"\\ud83d\":1}",
    ];
    for system in every_system() {
        for value in values {
            let became = read(system, page(system, &nine(system, value.as_bytes())));
            assert_eq!((became.end, became.counted.len(), became.rejected()), (Ok(()), 9, 0), "{system} {value:.60}");
        }
    }
}

#[test]
fn an_entry_that_breaks_its_border_costs_no_other() {
    for system in [CANVAS, INFORMATICA, LOSANT, INDEX_EXCHANGE] {
        let clean = read(system, page(system, &nine(system, b"null"))).counted;
        let broken: [&[u8]; 5] = [b"\"C:\\dir\\\"", b"{\"a\":1", b"[1", b"\"C:\\\",\"x\":\"y\"", b"\"unclosed"];
        for value in broken {
            let became = read(system, page(system, &nine(system, value)));
            let others = became.counted.intersection(&clean).count();
            let shown = String::from_utf8_lossy(value);
            assert!(became.end == Ok(()) && others >= 8, "{system} {shown}: {:?} {others}", became.end);
        }
        // at its very end
        let mut entries = nine(system, b"null");
        entries[4].pop();
        entries[4].extend_from_slice(b",\"path\":\"C:\\\"}");
        let became = read(system, page(system, &entries));
        let others = became.counted.intersection(&clean).count();
        assert!(became.end == Ok(()) && others >= 8, "{system}: {:?} {others}", became.end);
    }
}

#[test]
fn an_entry_that_is_none_is_rejected_beside_good_ones() {
    for system in every_system() {
        for bad in ["NaN", "null", "17", "\"x\"", "[1]", "undefined", "true", "\"\\ud83d\""] {
            let mut entries = nine(system, b"null");
            entries.insert(3, bad.as_bytes().to_vec());
            let became = read(system, page(system, &entries));
            assert_eq!((became.end, became.counted.len(), became.rejected()), (Ok(()), 9, 1), "{system} {bad}");
        }
        let mut entries = nine(system, b"null");
        entries.push(b" ".to_vec());
        assert_eq!(read(system, page(system, &entries)).counted.len(), 9, "{system}: a comma too many");
        assert_eq!(read(system, page(system, &entries)).rejected(), 0);
    }
}

#[test]
fn half_a_page_is_none_whatever_it_holds() {
    for system in every_system() {
        let whole = page(system, &nine(system, b"\"}]} \xFC \\ud83d \\\"}]}\""));
        assert_eq!(read(system, whole.clone()).end, Ok(()), "{system}");
        for cut in (1..whole.len()).step_by(13).chain([whole.len() - 1]) {
            let became = read(system, &whole[..cut]);
            assert_eq!((became.end, became.what.len()), (Err(ErrorKind::Decode), 0), "{system} {cut}");
        }
        for beyond in ["x", "{}", "]", "}"] {
            let body = [whole.as_slice(), beyond.as_bytes()].concat();
            assert_eq!(read(system, body).end, Err(ErrorKind::Decode), "{system} {beyond}");
        }
    }
}

#[test]
fn a_byte_order_mark_or_utf_16_changes_nothing() {
    for system in every_system() {
        for unread in [&b"\"\xC3\xBC\""[..], b"NaN"] {
            let plain = page(system, &nine(system, unread));
            let text = String::from_utf8(plain.clone()).unwrap();
            let units: Vec<u16> = text.encode_utf16().collect();
            let big: Vec<u8> = units.iter().flat_map(|unit| unit.to_be_bytes()).collect();
            let little: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
            let expected = read(system, plain.clone()).counted;
            for body in [
                [b"\xEF\xBB\xBF", plain.as_slice()].concat(),
                [b"\r\n ", plain.as_slice(), b"\n\0"].concat(),
                [b"\xFE\xFF", big.as_slice()].concat(),
                [b"\xFF\xFE", little.as_slice()].concat(),
                little.clone(),
                big.clone(),
            ] {
                let became = read_with(system, 200, body, b"\xEF\xBB\xBF");
                assert_eq!((became.end, &became.counted), (Ok(()), &expected), "{system}");
                assert!(became.logins <= 1, "{system}: no session has ended");
            }
        }
    }
}

#[test]
fn nothing_in_any_spelling_is_empty() {
    let list = "urn:ietf:params:scim:api:messages:2.0:EventList";
    let scim = format!(r#"{{"schemas":["{list}"],"eventTokens":null}}"#);
    let scim_without = format!(r#"{{"schemas":["{list}"]}}"#);
    let (all, none) = (Ok(()), Err(ErrorKind::Decode));
    for (system, body, end) in [
        (CANVAS, r#"{"events":null}"#, all),
        (CANVAS, r#"{"links":{},"linked":{}}"#, all),
        (CANVAS, "null", all),
        (CANVAS, "[]", all),
        (CANVAS, r#"{"count":0}"#, all),
        (INFORMATICA, r#"{"entries":null}"#, all),
        (INFORMATICA, r#"{"totalCount":"0"}"#, all),
        (INFORMATICA, "[ ]", all),
        (INFORMATICA, "null", all),
        (ACTIVID, &scim, all),
        (ACTIVID, &scim_without, all),
        (ACTIVID, r#"{"eventTokens":null}"#, all),
        (ACTIVID, r#"{"totalResults":0}"#, all),
        (LOSANT, r#"{"items":null}"#, all),
        (LOSANT, r#"{"items":null,"totalCount":null}"#, all),
        (LOSANT, r#"{"totalCount":0}"#, all),
        (LOSANT, r#"{"totalCount":0.0,"perPage":100}"#, all),
        (LOSANT, r#"{"perPage":100,"page":0,"sortField":"creationDate"}"#, all),
        (INDEX_EXCHANGE, r#"{"availableDownloads":null}"#, all),
        (INDEX_EXCHANGE, "{}", all),
        (INDEX_EXCHANGE, "null", all),
        (INDEX_EXCHANGE, r#"{"count":0}"#, all),
        // what says of itself that it is an error, and what says nothing, are no empty lists
        (CANVAS, r#"{"events":null,"errors":[{"message":"x"}]}"#, none),
        (CANVAS, "{}", none),
        (CANVAS, "17", none),
        (CANVAS, r#"{"events":{}}"#, none),
        (INFORMATICA, "{}", none),
        (INFORMATICA, r#"{"entries":"x"}"#, none),
        (INFORMATICA, r#"{"total":3}"#, none),
        (ACTIVID, "{}", none),
        (ACTIVID, "null", none),
        (ACTIVID, "[]", none),
        (LOSANT, "{}", none),
        (LOSANT, "null", none),
        (LOSANT, r#"{"totalCount":5,"perPage":100,"page":0}"#, none),
        (LOSANT, r#"{"type":"NotFound","message":"x","count":0}"#, none),
        (LOSANT, r#"{"items":null,"error":{"message":"x"}}"#, none),
        (INDEX_EXCHANGE, r#"{"message":"no"}"#, none),
    ] {
        let became = read(system, body);
        assert_eq!((became.end, became.what.len()), (end, 0), "{system} {body}");
    }
    for system in every_system() {
        assert_eq!(read_with(system, 204, "", b"").end, Ok(()), "{system}");
        assert_eq!(read(system, "").end, Err(ErrorKind::Decode), "{system}: 200 and nothing at all");
    }
}

#[test]
fn a_list_in_which_nothing_is_the_services_own_keeps_the_window_open() {
    let lists = [
        r#"[{"message":"Too many","errorCode":"X"}]"#,
        r#"[{"error":"x"},{"error":"y"}]"#,
        r#"[{"id":"err-1","code":"X","title":"Oops"}]"#,
        r#"["x"]"#,
        "[null,7]",
        "[[1]]",
        "[NaN]",
        "[{}]",
    ];
    for system in every_system() {
        for list in lists {
            let around = String::from_utf8(page(system, &[])).unwrap().replace("[]", list);
            let mut bodies = vec![around];
            if matches!(system, CANVAS | INFORMATICA | INDEX_EXCHANGE) {
                bodies.push(list.to_owned());
            }
            for body in bodies {
                let became = read(system, body.clone());
                assert_eq!((became.end, became.counted.len()), (Err(ErrorKind::Decode), 0), "{system} {body}");
            }
        }
    }
}

#[test]
fn a_single_event_that_cannot_be_understood_closes_its_window() {
    for (system, body) in [
        (CANVAS, r#"{"events":[{"id":"a","created_at":"soon"}]}"#),
        (INFORMATICA, r#"{"entries":[{"id":"a","entryTime":{}}]}"#),
        (ACTIVID, r#"{"eventTokens":["eyJhbGciOiJub25lIn0.bm90IGpzb24."]}"#),
        (LOSANT, r#"{"items":[{"id":"a","creationDate":"soon"}],"totalCount":1}"#),
        (INDEX_EXCHANGE, r#"{"availableDownloads":[{"hour":1,"subscriptionName":"impressions"}]}"#),
    ] {
        let became = read(system, body);
        assert_eq!((became.end, became.rejected(), became.counted.len()), (Ok(()), 1, 0), "{system}");
    }
}

#[test]
fn a_field_of_another_type_says_nothing_and_costs_nothing() {
    let time = r#""2027-01-15T08:00:00Z""#;
    let canvas = |fields: &str| (CANVAS, format!(r#"{{"created_at":{time},{fields}}}"#));
    let informatica = |fields: &str| (INFORMATICA, format!(r#"{{"entryTime":{time},{fields}}}"#));
    let losant = |fields: &str| (LOSANT, format!(r#"{{"creationDate":{time},{fields}}}"#));
    let activid = |payload: &str| (ACTIVID, String::from_utf8(token(payload.as_bytes())).unwrap());
    for ((system, entry), expected) in [
        (canvas(r#""id":"a","event_type":"login","links":[]"#), "authentication login success"),
        (canvas(r#""id":"a","event_type":"login","links":[1,2,3]"#), "authentication login success"),
        (canvas(r#""id":"a","event_type":"login","links":"x","user_id":true"#), "authentication login success"),
        (canvas(r#""id":{},"event_type":"login","links":{"user":{"id":1}}"#), "authentication login success"),
        (canvas(r#""id":true,"event_type":7"#), "authentication unknown success"),
        (canvas(r#""id":"a","event_type":{}"#), "authentication unknown success"),
        (canvas(r#""id":"a","id":"b","event_type":"logout","event_type":"login""#), "authentication login success"),
        (canvas(r#""id":"a","event_type":"login","links":{"user":"\ud83d"}"#), "authentication login success"),
        (
            informatica(r#""id":"a","objectName":{},"actor":true,"actionCategory":"User","actionEvent":"CREATE""#),
            "user create success",
        ),
        (informatica(r#""id":[],"orgId":1.5,"actionCategory":"User","actionEvent":"CREATE""#), "user create success"),
        (informatica(r#""id":"a","actionCategory":[],"actionEvent":{"a":1}"#), "unknown unknown success"),
        (informatica(r#""id":"a","actor":"x","actor":"robot","actionEvent":"CREATE""#), "ignored"),
        (
            informatica(r#""id":"a","objectName":"\ud83d","actionCategory":"User","actionEvent":"CREATE""#),
            "user create success",
        ),
        (
            losant(r#""id":"a","primaryTargetType":{},"requestAction":["post"],"responseStatus":{}"#),
            "unknown unknown unknown",
        ),
        (
            losant(r#""id":false,"primaryTargetType":"User","requestAction":"post","responseStatus":"NaN""#),
            "user create unknown",
        ),
        (
            losant(r#""id":"a","primaryTargetType":"User","requestAction":"post","responseStatus":NaN"#),
            "user create unknown",
        ),
        (
            losant(r#""id":"a","actorName":{},"actorId":[],"requestAction":"post","responseStatus":201.0"#),
            "unknown create success",
        ),
        (
            losant(r#""id":"a","actorName":"robot","actorName":"\ud83d","requestAction":"post""#),
            "unknown create unknown",
        ),
        (activid(r#"{"type":{"a":1},"values":[],"resourceUris":7}"#), "unknown unknown unknown"),
        (activid(r#"{"type":"deleteUser","values":{"status":true,"directUser":[1]}}"#), "user delete unknown"),
        (activid(r#"{"type":"x","type":"deleteUser","values":{"message":"\ud83d"}}"#), "user delete unknown"),
    ] {
        let became = read(system, page(system, &[entry.clone().into_bytes()]));
        assert_eq!((became.end, became.what), (Ok(()), vec![expected.to_owned()]), "{system} {entry}");
    }
}

#[test]
fn events_that_differ_only_in_bytes_that_are_no_text_are_two() {
    for system in [CANVAS, INFORMATICA, LOSANT] {
        let ids: [&[u8]; 6] = [b"caf\xE8", b"caf\xE9", b"\\ud83d", b"\\ud83e", b"\xFF", b"\xFE"];
        let entry = |id: &[u8]| {
            let event = String::from_utf8(event(system, 1, b"null")).unwrap();
            let (before, after) = event.split_once("e1").unwrap();
            [before.as_bytes(), id, after.as_bytes()].concat()
        };
        let entries: Vec<Vec<u8>> = ids.into_iter().map(entry).collect();
        let first = read(system, page(system, &entries));
        assert_eq!((first.end, first.counted.len()), (Ok(()), 6), "{system}");
        let mut turned = entries.clone();
        turned.reverse();
        assert_eq!(read(system, page(system, &turned)).counted, first.counted, "{system}: the same on every reading");
        // an id that holds U+FFFD itself is the same whatever else its event holds
        let with = |unread: &[u8]| {
            let event = event(system, 1, unread);
            let at = event.windows(2).position(|two| two == b"e1").unwrap();
            read(system, page(system, &[[&event[..at], "\u{fffd}".as_bytes(), &event[at..]].concat()])).counted
        };
        assert_eq!(with(b"null"), with(b"NaN"), "{system}");
        // alone or beside others
        let alone: BTreeSet<EventKey> =
            entries.iter().flat_map(|entry| read(system, page(system, std::slice::from_ref(entry))).counted).collect();
        assert_eq!(alone, first.counted, "{system}");
    }
}

#[test]
fn a_list_that_stands_twice_is_read_whole() {
    for system in every_system() {
        let entries = nine(system, b"null");
        let expected = read(system, page(system, &entries)).counted;
        let halves = [page(system, &entries[..4]), page(system, &entries[4..])];
        let [first, second] = halves.map(|half| String::from_utf8(half).unwrap());
        let twice = format!("{},{}", first.strip_suffix('}').unwrap(), second.strip_prefix('{').unwrap());
        // Losant's total is that of the second
        let became = read(system, twice);
        assert_eq!((became.end, became.counted), (Ok(()), expected.clone()), "{system}");
        let same = String::from_utf8(page(system, &entries)).unwrap();
        let same = format!("{},{}", same.strip_suffix('}').unwrap(), same.strip_prefix('{').unwrap());
        let became = read(system, same);
        assert_eq!((became.end, became.counted), (Ok(()), expected), "{system}");
    }
}

#[test]
fn a_total_that_is_no_number_is_unknown() {
    let entries = nine(LOSANT, b"null");
    let body = String::from_utf8(page(LOSANT, &entries)).unwrap();
    for total in
        ["\"9\"", "9.0", "-1", "null", "\"many\"", "\"\"", "[]", "{}", "1e999", "NaN", "true", "9.5", "\" 9 \""]
    {
        for per_page in ["100", "\"100\"", "100.0", "-1", "{}", "1e30"] {
            let body = body.replace("\"totalCount\":9", &format!("\"totalCount\":{total}"));
            let body = body.replace("\"perPage\":100", &format!("\"perPage\":{per_page}"));
            let became = read(LOSANT, body);
            assert_eq!((became.end, became.counted.len()), (Ok(()), 9), "{total} {per_page}");
        }
    }
}

#[test]
fn a_count_is_a_whole_number_however_it_is_written() {
    for (raw, expected) in [
        ("1500", Some(1500)),
        ("\"1500\"", Some(1500)),
        ("1500.0", Some(1500)),
        ("1.5e3", Some(1500)),
        ("0", Some(0)),
        ("-0", Some(0)),
        ("18446744073709551615", Some(u64::MAX)),
        ("-1", None),
        ("1.5", None),
        ("1e300", None),
        ("null", None),
        ("\"\"", None),
        ("[1]", None),
        ("NaN", None),
    ] {
        assert_eq!(Field::of(raw.as_bytes()).count(), expected, "{raw}");
    }
}

#[test]
fn a_number_keeps_all_its_digits() {
    for number in ["18446744073709551616", "18446744073709551617", "123456789012345678901234567890"] {
        assert_eq!(Field::of(number.as_bytes()).id(), Some(number));
    }
    assert_eq!(Field::of(b"17"), Field::Number("17".into()));
    assert_eq!(Field::of(b"1.50"), Field::Number("1.5".into()));
}

#[test]
fn the_search_for_swallowed_entries_has_an_end() {
    let swallowing = ["[{\"a\":\"\\\"}", &",{\"a\":{}".repeat(50_000), "}]"].concat();
    let began = tokio::time::Instant::now();
    Envelope::read(swallowing.as_bytes());
    let many = ["[{\"a\":\u{1},\"b\":[", &"{},".repeat(100_000), "]}]"].concat();
    Envelope::read(many.as_bytes());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever bytes one entry's text holds, all others keep their keys and are counted.
    #[test]
    fn one_text_of_any_bytes_costs_no_other_event(
        bytes in prop::collection::vec(any::<u8>().prop_filter("no borders", |byte| !b"\"\\".contains(byte)), 0..60),
        system in prop::sample::select(every_system().to_vec()),
        at in 0_usize..9,
    ) {
        let clean = read(system, page(system, &nine(system, b"null"))).counted;
        let mut entries = nine(system, b"null");
        entries[at] = event(system, at, &[b"\"", bytes.as_slice(), b"\""].concat());
        let became = read(system, page(system, &entries));
        prop_assert_eq!(became.end, Ok(()));
        prop_assert_eq!((became.counted.len(), became.rejected()), (9, 0));
        let same = became.counted.intersection(&clean).count();
        prop_assert!(same == 9 || (same == 8 && system == ACTIVID), "{}", same);
    }

    /// No bytes at all make it panic, or take long.
    #[test]
    fn any_bytes_are_read_to_an_end(bytes in prop::collection::vec(prop::sample::select(b"[]{}\",:\\u0d8n/*' \n\xFC".to_vec()), 0..200)) {
        if let Some(envelope) = Envelope::read(&bytes) {
            let _ = envelope.entries(|_| true, &[]);
        }
        value(&bytes);
        text(&bytes);
    }

    /// What is JSON is read by the scanner as by serde_json, and half of it is not a document.
    #[test]
    fn json_is_read_alike(value in json(), cut in 0.0_f64..1.0) {
        let text = value.to_string();
        let mut scan = Scan::new(text.as_bytes());
        let scanned = scan.value(0);
        prop_assert!(!scan.is_cut);
        prop_assert_eq!(scanned.to_string(), text.clone());
        let list = format!("[{text},{text}]");
        let Some(Envelope::Bare(entries)) = Envelope::read(list.as_bytes()) else { panic!("{list}") };
        let entries = entries.read(|_| (), |_, ()| true).unwrap();
        let entries: Vec<&[u8]> = entries.into_iter().map(|(Raw(raw), ())| raw).collect();
        prop_assert_eq!(entries, [text.as_bytes(), text.as_bytes()]);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a place in a text")]
        let cut = (cut * list.len() as f64) as usize;
        prop_assert!(Envelope::read(&list.as_bytes()[..cut]).is_none());
    }
}

/// Any JSON with whole numbers.
fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        "[\\\\\"{}\\[\\],:/' ]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map("[a-c\\\\\"{]{0,4}", inner, 0..6)
                .prop_map(|fields: BTreeMap<_, _>| { Value::Object(fields.into_iter().collect()) }),
        ]
    })
}
