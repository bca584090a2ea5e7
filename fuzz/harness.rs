//! What is fuzzed, and what must hold whatever the input.
//!
//! The fuzz targets and `tests/it/fuzzed.rs` include this file, so that the ordinary tests replay what
//! the fuzzer found. Everything goes through the crate's public doors.
//!
//! The input of a conversation is text that a person can write and read: answers, separated by a line
//! `%%%%`. An answer is a line of words, header lines, an empty line, and the body:
//!
//! ```text
//! page 200 chunk=7 cut
//! Link: <https://service.example/x>; rel="next"
//!
//! {"events": []}
//! ```
//!
//! A number is the status. `login` and `file` answer requests for a session or a file, all others ask for a
//! page; each kind is answered in order, from the first again after the last. `chunk=N` cuts the body,
//! `cut` breaks the connection after it, `gzip` packs it, `tokens` makes event tokens of its lines, `tainted`
//! says that one of them is, `jwt` makes the answer to a login of its claims. `$SECRET` in headers and bodies
//! is the secret of the configuration: a service may say it back to us.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use audit_exporter::api::{Api, ApiParts, Gate, Limits};
use audit_exporter::clock::{Clock, delta};
use audit_exporter::config::{self, SourceConfig};
use audit_exporter::event::{EventKey, Item, LABEL_CHARS_MAX, Label, What};
use audit_exporter::exposition::{self, Family, Format, Kind, Sample, Value};
use audit_exporter::failure::ErrorKind;
use audit_exporter::failure::Failure;
use audit_exporter::page::{DocumentRecord, Page};
use audit_exporter::simulate::{self, Credential};
use audit_exporter::source::index_exchange::{BadFile, Rows, Unpacker};
use audit_exporter::source::{Sink, Taken};
use audit_exporter::transport::{Body, Transport, TransportError};
use audit_exporter::web;
use audit_exporter::window::Window;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use http::{HeaderName, HeaderValue, Request, Response};

#[path = "../tests/it/lint.rs"]
mod lint;

/// A target: its name, which is that of its folders of seeds and of its corpus, too, and what it runs.
pub struct Target {
    pub name: &'static str,
    pub run: Run,
}

/// What a target runs.
pub enum Run {
    /// A conversation with the service of the target's name.
    Conversation,
    /// A decoder alone.
    Decoder(fn(&[u8])),
}

impl Target {
    pub fn run(&self, input: &[u8]) {
        match self.run {
            Run::Conversation => conversation(self.name, input),
            Run::Decoder(run) => run(input),
        }
    }
}

/// A conversation with each service, and each decoder alone.
pub fn targets() -> Vec<Target> {
    let services = simulate::SERVICES.iter().map(|service| service.system.as_str());
    let conversations = services.map(|name| Target { name, run: Run::Conversation });
    let decoder = |name, run| Target { name, run: Run::Decoder(run) };
    let decoders = [
        decoder("rows", rows),
        decoder("config", config),
        decoder("web_config", web_config),
        decoder("accept", accept),
        decoder("exposition", exposition),
    ];
    conversations.chain(decoders).collect()
}

/// Told to the exporter in its configuration; must never be repeated by it. Long enough that the fuzzer
/// does not make it by itself.
const SECRET: &str = "Hush7Yq2ZwKe4";
/// The present: the seeds' events happened in the seconds before.
const NOW: i64 = 1_800_000_000;
/// More than this in one failure, log line or page would be ours to cut.
const TEXT_CHARS_MAX: usize = 2000;
/// What a reader may ask where nobody makes it wait: many times what any seed needs.
const REQUESTS_MAX: usize = 1500;

// === conversations ===

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    Login,
    File,
    Page,
}

struct Answer {
    status: u16,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Vec<u8>,
    chunk: usize,
    cut: bool,
}

/// A service that answers what the input says.
struct Scripted {
    answers: BTreeMap<Asked, Vec<Answer>>,
    given: Mutex<BTreeMap<Asked, usize>>,
    /// What a login is answered if the input does not say.
    login: String,
}

impl Scripted {
    fn new(input: &[u8], secret: &str, login: &str) -> Self {
        let mut answers: BTreeMap<Asked, Vec<Answer>> = BTreeMap::new();
        let mut rest = input;
        let mark = b"\n%%%%\n";
        // no more than a bound on the requests can tell from an endless loop
        for _ in 0..16 {
            let end = rest.windows(mark.len()).position(|window| window == mark);
            let (asked, answer) = parse_answer(&rest[..end.unwrap_or(rest.len())], secret);
            answers.entry(asked).or_default().push(answer);
            let Some(end) = end else { break };
            rest = &rest[end + mark.len()..];
        }
        Self { answers, given: Mutex::default(), login: login.to_owned() }
    }

    fn requests(&self) -> usize {
        self.given.lock().unwrap().values().sum()
    }
}

fn parse_answer(text: &[u8], secret: &str) -> (Asked, Answer) {
    let (head, body) = match text.windows(2).position(|pair| pair == b"\n\n") {
        Some(at) => (&text[..at], &text[at + 2..]),
        None => (text, &[][..]),
    };
    let told = |bytes: &[u8]| replace(bytes, b"$SECRET", secret.as_bytes());
    let head = String::from_utf8_lossy(head);
    let mut lines = head.lines();
    let mut answer = Answer { status: 200, headers: Vec::new(), body: told(body), chunk: usize::MAX, cut: false };
    let mut asked = Asked::Page;
    let words: Vec<&str> = lines.next().unwrap_or_default().split_ascii_whitespace().collect();
    for word in &words {
        match *word {
            "login" => asked = Asked::Login,
            "file" => asked = Asked::File,
            "cut" => answer.cut = true,
            "gzip" => answer.body = gzip(&answer.body),
            "tokens" => answer.body = tokens(&answer.body, words.contains(&"tainted")),
            "jwt" => answer.body = session(&answer.body),
            word => {
                if let Some(Ok(chunk)) = word.strip_prefix("chunk=").map(str::parse::<usize>) {
                    answer.chunk = chunk.max(1);
                } else if let Ok(status) = word.parse::<u16>() {
                    answer.status = status;
                }
            }
        }
    }
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { continue };
        let value = told(value.trim().as_bytes());
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_bytes(&value)) {
            answer.headers.push((name, value));
        }
    }
    (asked, answer)
}

fn replace(text: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut replaced = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with(from) {
            replaced.extend_from_slice(to);
            at += from.len();
        } else {
            replaced.push(text[at]);
            at += 1;
        }
    }
    replaced
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(body).expect("into memory");
    encoder.finish().expect("into memory")
}

fn token(payload: &[u8]) -> String {
    format!("eyJhbGciOiJub25lIn0.{}.", URL_SAFE_NO_PAD.encode(payload))
}

fn tokens(lines: &[u8], tainted: bool) -> Vec<u8> {
    let tokens: Vec<String> = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(token).collect();
    serde_json::json!({"schemas": ["EventList"], "tainted": tainted, "eventTokens": tokens}).to_string().into()
}

/// The answer to a login of any of the services.
fn session(claims: &[u8]) -> Vec<u8> {
    let token = token(claims);
    let products = serde_json::json!([{"name": "Integration Cloud", "baseApiUrl": "https://pod.example/saas"}]);
    serde_json::json!({"access_token": token, "products": products, "userInfo": {"sessionId": token}})
        .to_string()
        .into()
}

#[async_trait]
impl Transport for Scripted {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
        let path = request.uri().path();
        let asked = match path {
            _ if path.ends_with("/login") || path.ends_with("/token") => Asked::Login,
            _ if path.contains("/v1/files/") => Asked::File,
            _ => Asked::Page,
        };
        let n = {
            let mut given = self.given.lock().unwrap();
            let n = given.entry(asked).or_default();
            *n += 1;
            *n - 1
        };
        let Some(answers) = self.answers.get(&asked) else {
            let body = if asked == Asked::Login { self.login.clone() } else { String::new() };
            let body = futures_util::stream::iter([Ok(Bytes::from(body))]).boxed();
            return Ok(Response::new(body));
        };
        let answer = &answers[n % answers.len()];
        let broken = |message: &str| TransportError::new(ErrorKind::Connect, message);
        let mut response = Response::builder().status(answer.status);
        for (name, value) in &answer.headers {
            response = response.header(name, value);
        }
        let mut pieces: Vec<Result<Bytes, TransportError>> =
            answer.body.chunks(answer.chunk).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        if answer.cut {
            pieces.push(Err(broken("the connection broke")));
        }
        response.body(futures_util::stream::iter(pieces).boxed()).map_err(|_| broken("no such status"))
    }
}

/// Takes what a source reads, and looks at it.
struct Looking {
    window: Window,
    now: DateTime<Utc>,
    failures: Vec<Failure>,
    items: Vec<Item>,
    documents: BTreeMap<EventKey, BTreeMap<Label, u64>>,
}

fn look_at_label(label: &Label) {
    let text = label.as_str();
    assert!(!text.is_empty() && text.chars().count() <= LABEL_CHARS_MAX, "{text:?}");
    assert!(text.chars().all(|c| c.is_alphanumeric() || c == '_' || !c.is_ascii()), "{text:?}");
    assert_eq!(&Label::from_words(text), label, "a label read again is the same");
}

#[async_trait]
impl Sink for Looking {
    async fn page(&mut self, page: Page) -> Result<Taken, Failure> {
        let mut taken = Taken::default();
        for item in &page.items {
            match item.at.or(item.filed_at) {
                Some(at) if at < self.window.from => taken.before += 1,
                Some(at) if at >= self.window.to => taken.after += 1,
                _ => taken.inside += 1,
            }
            // what the ledger does with it
            let _ = item.at.map(|at| (self.now - at).num_milliseconds());
            match &item.what {
                What::Event(labels) => {
                    look_at_label(&labels.category);
                    look_at_label(&labels.action);
                }
                What::Rejected(rejection) => {
                    let sample = &rejection.sample;
                    assert!(sample.chars().count() <= 300 && !sample.contains(SECRET), "{sample}");
                    assert!(!sample.chars().any(char::is_control), "{sample:?}");
                }
                What::Tainted { candidates } => assert!(candidates.contains(&item.key)),
                What::Ignored => {}
            }
        }
        for document in &page.documents {
            look_at_label(&document.category);
            document.rows.keys().for_each(look_at_label);
            self.documents.insert(document.key, document.rows.clone());
        }
        self.items.extend(page.items);
        Ok(taken)
    }

    fn report(&mut self, failure: Failure) {
        self.failures.push(failure);
    }

    fn document(&mut self, _: &EventKey) -> Option<DocumentRecord> {
        None
    }
}

/// A conversation with a service, beside what is true of the service everywhere.
struct Talk<'a> {
    system: &'a str,
    /// Keys of its source beside those that it must have.
    more: &'static str,
    /// How long the window is.
    length: Duration,
    /// Its windows may have to be cut to milliseconds; there the deadline is the bound.
    asks_without_bound: bool,
}

/// Reads a window from a service that answers what the input says.
fn converse(talk: &Talk<'_>, secret: &str, input: &[u8]) {
    let system = talk.system;
    let service = simulate::service(system).expect("a simulated service");
    let keys = service.entry("https://service.example", Credential::Text(secret), "      ");
    let text = format!("sources:\n  {system}:\n    - name: fuzzed\n      {keys}\n{}", talk.more);
    let config = config::parse(&text, Path::new("fuzzed.yml")).expect("the harness's own configuration");
    let config = config.sources.into_iter().next().expect("one source");
    // paused, so that neither budget nor deadline takes any time
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .max_blocking_threads(1)
        .build()
        .expect("a runtime");
    let login = service.sample.login("x", "pod.example");
    runtime.block_on(converse_with(&config, secret, &login, talk, input));
}

async fn converse_with(config: &SourceConfig, secret: &str, login: &str, talk: &Talk<'_>, input: &[u8]) {
    let service = Arc::new(Scripted::new(input, secret, login));
    let clock = Clock::starting_at(DateTime::from_timestamp(NOW, 0).expect("a date"));
    let (mut source, dialect) = config.service.build(&config.common);
    let limits = Limits {
        requests: 120,
        per: Duration::from_mins(1),
        burst: 1,
        timeout: config.common.timeout,
        max_response_bytes: 64 << 10,
    };
    let gate = Arc::new(Gate::full(&limits));
    let transport = Arc::clone(&service) as Arc<dyn Transport>;
    let stats = Arc::default();
    let api = Api::from_parts(ApiParts { gate, transport, dialect, limits, stats, clock: clock.clone(), seed: 1 });
    let now = clock.now();
    let window = Window { from: now - delta(talk.length), to: now };
    let mut sink = Looking { window, now, failures: Vec::new(), items: Vec::new(), documents: BTreeMap::new() };
    // twice, because a source remembers
    for _ in 0..2 {
        let asked_before = service.requests();
        let read = tokio::time::timeout(config.common.poll_timeout, source.read(window, &api, &mut sink)).await;
        let asked = service.requests() - asked_before;
        if let Ok(Err(failure)) = read {
            sink.failures.push(failure);
        } else if read.is_err() && !talk.asks_without_bound {
            assert!(asked < REQUESTS_MAX, "{asked} requests, and no end");
        }
    }
    for failure in sink.failures {
        let text = failure.to_string();
        assert!(!text.contains(secret) && !text.contains(SECRET), "{text}");
        assert!(text.chars().count() <= TEXT_CHARS_MAX && !text.chars().any(char::is_control), "{text:?}");
    }
}

/// Reads a window from the service of this name.
pub fn conversation(system: &str, input: &[u8]) {
    let usual = Talk { system, more: "", length: Duration::from_secs(10), asks_without_bound: false };
    let key = STANDARD.encode(format!("id:{SECRET}"));
    let (talk, secret) = match system {
        "canvas" => (Talk { more: "      pseudonyms: [2]\n", ..usual }, SECRET),
        "informatica" => (Talk { more: "      ignore_actors: [admin]\n", ..usual }, SECRET),
        "activid" => (Talk { length: Duration::from_mins(10), asks_without_bound: true, ..usual }, SECRET),
        "index_exchange" => (Talk { length: Duration::from_hours(14 * 24), ..usual }, key.as_str()),
        _ => (usual, SECRET),
    };
    converse(&talk, secret, input);
}

// === single decoders ===

fn unpack<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<Rows, BadFile> {
    let mut unpacker = Unpacker::new();
    for piece in pieces {
        unpacker.feed(piece)?;
    }
    unpacker.finish()
}

/// A file is counted alike however it is cut, packed or not. The first bytes say how it is cut.
pub fn rows(input: &[u8]) {
    let (cuts, file) = input.split_at(input.len().min(4));
    let cut = |file: &[u8]| {
        let mut rest = file;
        let mut pieces = Vec::new();
        for length in cuts.iter().cycle().map(|length| usize::from(*length % 64) + 1) {
            let (piece, tail) = rest.split_at(length.min(rest.len()));
            pieces.push(piece.to_vec());
            rest = tail;
            if rest.is_empty() {
                return pieces;
            }
        }
        vec![file.to_vec()]
    };
    let same = |file: &[u8]| {
        let whole = unpack(std::iter::once(file));
        let in_pieces = unpack(cut(file).iter().map(Vec::as_slice));
        // where gzip breaks is said in other words as it is cut otherwise
        let shown = |rows: &Result<Rows, BadFile>| rows.as_ref().map_err(|_| ()).cloned();
        assert_eq!(shown(&whole), shown(&in_pieces));
        if let Ok(rows) = &whole {
            rows.by_action.keys().for_each(look_at_label);
        }
        whole
    };
    let plain = same(file);
    let packed = same(&gzip(file));
    if !file.starts_with(b"\x1f\x8b")
        && let (Ok(plain), Ok(packed)) = (plain, packed)
    {
        assert_eq!(plain, packed);
    }
}

/// Nothing of a value is in any message, and what is accepted has its bounds.
pub fn config(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    // sources name files; those of this machine are none of the fuzzer's business
    if text.contains("_file") {
        return;
    }
    match config::parse(&text, Path::new("folder/fuzzed.yml")) {
        Ok(config) => {
            assert!(!config.sources.is_empty());
            for source in config.sources {
                let common = &source.common;
                for length in [common.poll_interval, common.timeout, common.poll_timeout, common.max_catch_up] {
                    assert!(!length.is_zero());
                    let _ = DateTime::from_timestamp(NOW, 0).map(|now| now.checked_add_signed(delta(length)));
                    let text = config::duration_text(length);
                    assert!(text.len() < 60, "{text}");
                }
                assert!(common.max_response_bytes > 0);
                let shown = format!("{source:?}");
                assert!(!shown.contains(SECRET), "{shown}");
                let limits = Limits {
                    requests: common.rate_limit.requests.get(),
                    per: common.rate_limit.per,
                    burst: common.rate_limit.burst.get(),
                    timeout: common.timeout,
                    max_response_bytes: common.max_response_bytes,
                };
                let _ = Gate::full(&limits);
                let _ = source.service.build(&source.common);
            }
        }
        Err(errors) => {
            assert!(!errors.problems().is_empty());
            for problem in errors.problems() {
                let message = &problem.message;
                assert!(problem.line > 0 && problem.column > 0);
                assert!(message.chars().count() <= TEXT_CHARS_MAX && !message.contains('\n'), "{message:?}");
                // that what stands where a key belongs may be shown is said in `config.rs`
                assert!(!message.contains(SECRET) || message.starts_with("unknown key `"), "{message}");
            }
        }
    }
}

/// A password's hash or a key is in no message.
pub fn web_config(input: &[u8]) {
    match web::config::parse(Path::new("folder/web.yml"), input) {
        Ok(config) => {
            let shown = format!("{config:?}");
            assert!(!shown.contains(SECRET), "{shown}");
        }
        Err(error) => {
            let _ = error.to_string();
        }
    }
}

/// A header is understood in no more time than its length allows, and what is chosen does not depend on
/// what else a browser lists after it with quality 0.
pub fn accept(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let chosen = exposition::negotiate(Some(&text));
    assert_eq!(exposition::negotiate(Some(&format!("{text} "))), chosen);
    assert_eq!(exposition::negotiate(Some(&format!(" ,, {text}"))), chosen);
}

/// Whatever label values hold, a page has a line for each series, the lint finds nothing, and the values can
/// be read back.
pub fn exposition(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut values: Vec<&str> = text.split('|').take(50).collect();
    values.sort_unstable();
    values.dedup();
    let sample = |value: &&str| Sample {
        labels: vec![("source", "fuzzed".into()), ("category", (*value).into())],
        value: Value::Count(1),
        created: DateTime::from_timestamp(NOW, 0),
    };
    let samples: Vec<Sample> = values.iter().map(sample).collect();
    let family = Family { name: "audit_events_total", help: "Events.", kind: Kind::Counter, samples };
    assert_eq!(lint::lint(std::slice::from_ref(&family)), Vec::<String>::new());
    let families = [family];
    for format in [Format::Text, Format::OpenMetrics] {
        let page = String::from_utf8(exposition::encode(&families, format, false)).expect("text");
        let lines: Vec<&str> = page.split('\n').filter(|line| line.starts_with("audit_events_total{")).collect();
        let read: Vec<String> = lines.iter().map(|line| category(line)).collect();
        assert_eq!(read, values, "{page}");
    }
    exposition::encode(&families, Format::Protobuf, false);
}

/// The value of `category`, as a scraper reads it.
fn category(line: &str) -> String {
    let (_, rest) = line.split_once("category=\"").expect("the label");
    let mut value = String::new();
    let mut letters = rest.chars();
    loop {
        match letters.next().expect("an end") {
            '"' => break,
            '\\' => match letters.next() {
                Some('n') => value.push('\n'),
                Some(c @ ('\\' | '"')) => value.push(c),
                other => panic!("{other:?}"),
            },
            c => value.push(c),
        }
    }
    assert!(letters.as_str().starts_with("} 1"), "{line}");
    value
}
