//! Is a source as it must be? It is looked at as a poll would, and what is found is said in plain
//! words, with what to do about it.
//!
//! Promises:
//! - What is said was tried: names are resolved, a connection is made, the credential is shown, each
//!   log that is read is read.
//! - Politeness: every request passes the source's budget; a refused credential is shown once.
//! - Nothing is counted, and no secret is said.
//!
//! Leaves to others: reading (`source/*.rs`), what failed requests mean (`api.rs`), where it runs
//! (`control.rs`).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use http::{Request, Response};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::api::{Api, ApiParts, Gate, Limits, SKEW_BELIEVED};
use crate::clock::{Clock, delta, rfc3339_seconds};
use crate::config::{
    Canvas, Config, IndexExchange, SUBSCRIPTIONS, Service, SourceConfig, duration_text, mode_if_open_to_all,
};
use crate::event::{EventKey, EventLabels, System, What};
use crate::failure::ErrorKind;
use crate::failure::Failure;
use crate::page::{DocumentRecord, Feed, Page};
use crate::proxy::Proxies;
use crate::source::{self, Sink, Source, Spec, Taken};
use crate::stats::SourceStats;
use crate::transport::{Body, Transport, TransportError};
use crate::verify::Say;
use crate::window::Window;

/// How much history is looked at, where a poll reads less.
const LOOK_BACK: Duration = Duration::from_hours(1);
/// Sources that are looked at side by side.
pub const SIDE_BY_SIDE: usize = 16;
/// Label sets that are shown.
const SHOWN_MAX: usize = 10;
/// A clock that is further off is worth a word; the alert `AuditClockSkew` has the same limit.
const SKEW_MAX: TimeDelta = TimeDelta::seconds(60);
/// A credential that ends sooner is worth a word; the alert `AuditCredentialExpiring` has the same limit.
const EXPIRY_MIN: TimeDelta = TimeDelta::days(14);
/// The longest wait for a name to be resolved.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The source that is looked at, and the means to do so.
pub struct DoctorInput {
    /// Its settings.
    pub config: SourceConfig,
    /// A connection of its own, or why there can be none.
    pub transport: Result<Arc<dyn Transport>, String>,
    /// The budget: the running exporter's, where one runs.
    pub gate: Arc<Gate>,
    /// Bounds of the requests.
    pub limits: Limits,
    /// Where requests and errors are counted.
    pub stats: Arc<SourceStats>,
    /// What the service stamps earlier than this is not counted any more; `None` where that is not known.
    pub counted_from: Option<DateTime<Utc>>,
    /// Tells the time.
    pub clock: Clock,
    /// Seed of the jitter.
    pub seed: u64,
}

/// What was found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Findings {
    /// Which source.
    pub source: String,
    /// Its system.
    pub system: System,
    /// In the order in which things were tried.
    pub list: Vec<Finding>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How it is.
    pub state: State,
    /// In plain words, with the fix where one is needed.
    pub text: String,
}

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As it must be.
    Good,
    /// Worth knowing; nothing has to be done.
    Note,
    /// Something has to be done.
    Wrong,
}

impl Findings {
    /// Whether something has to be done.
    pub fn wrong(&self) -> bool {
        self.list.iter().any(|finding| finding.state == State::Wrong)
    }

    /// Says first that what was looked at is not what the configuration file says now.
    pub fn of_other_settings(&mut self, text: String) {
        self.list.insert(0, Finding { state: State::Note, text });
    }

    fn add(&mut self, state: State, text: impl Into<String>) {
        self.list.push(Finding { state, text: text.into() });
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} ({})", self.source, self.system)?;
        for finding in &self.list {
            let mark = match finding.state {
                State::Good => "ok   ",
                State::Note => "note ",
                State::Wrong => "WRONG",
            };
            writeln!(f, "  {mark}  {}", finding.text)?;
        }
        Ok(())
    }
}

/// What is said before sources are looked at side by side: how long that will take.
pub fn how_long(config: &Config, names: &[String]) -> Option<String> {
    let is_one = |source: &&SourceConfig| names.iter().any(|name| name.as_str() == source.name.as_str());
    let mut times: Vec<(Duration, &str)> =
        config.sources.iter().filter(is_one).map(|source| (takes_about(source), source.name.as_str())).collect();
    let all: Duration = times.iter().map(|(time, _)| *time).sum();
    times.sort_unstable();
    let (longest, slowest) = times.last()?;
    let side_by_side = u32::try_from(times.len().min(SIDE_BY_SIDE)).unwrap_or(1);
    let about = duration_text(Duration::from_secs((*longest).max(all / side_by_side).as_secs().max(1)));
    Some(match times.len() {
        1 => format!("looking at {slowest}: about {about}, as its rate_limit allows"),
        count => format!(
            "looking at {count} sources, {side_by_side} side by side: about {about}, as rate_limit allows; {slowest} takes longest"
        ),
    })
}

/// How long a look at a source takes by its budget, if the service answers at once and there are not many events.
fn takes_about(config: &SourceConfig) -> Duration {
    let (limit, overlap) = (config.common.rate_limit, config.common.overlap);
    let twice = |parts: usize| parts * if overlap < LOOK_BACK { 2 } else { 1 };
    let pairs = usize::try_from(overlap.max(LOOK_BACK).as_secs() / 600).unwrap_or(usize::MAX / 10) + 1;
    // logins; what a poll reads, and what lies before it, with a second page here and there
    let requests = match &config.service {
        Service::Canvas(service) => {
            twice(2 * (service.accounts.len() + service.users.len() + service.pseudonyms.len()))
        }
        Service::Informatica(_) => 1 + twice(1),
        // by pairs of cells of five minutes, which are cut where they hold much
        Service::Activid(_) => 1 + 5 * pairs,
        Service::Losant(_) => twice(2),
        // of each the list, and the parts of the newest hour
        Service::IndexExchange(service) => 1 + 4 * service.subscriptions.len(),
    };
    let requests = u32::try_from(requests).unwrap_or(u32::MAX);
    limit.per.saturating_mul(requests) / limit.requests.get()
}

/// Looks at a source.
pub async fn examine(patient: DoctorInput, say: &Say) -> Findings {
    let DoctorInput { config, transport, gate, limits, stats, counted_from, clock, seed } = patient;
    let system = config.system();
    let mut findings = Findings { source: config.name.to_string(), system, list: Vec::new() };
    secret_file(&config, &mut findings);
    let transport = match transport {
        Ok(transport) => Arc::new(Counting { transport, requests: AtomicU64::new(0), answers: AtomicU64::new(0) }),
        Err(why) => {
            findings.add(State::Wrong, format!("no connection can be made: {why}. Fix: correct the files under `tls`"));
            return findings;
        }
    };
    unused_proxy(&config, &mut findings);
    if !names_resolve(&config, &mut findings).await {
        return findings;
    }
    let (reader, dialect) = source::registry::build(&config);
    let spec = reader.spec();
    let api = Api::from_parts(ApiParts {
        gate,
        transport: Arc::clone(&transport) as Arc<dyn Transport>,
        dialect,
        limits,
        stats: Arc::clone(&stats),
        clock: clock.clone(),
        seed,
    });

    // as a poll reads, so that what it needs of the budget is known; of files, the list alone
    let now = api.service_now();
    let from = if spec.is_feed { now } else { now - delta(config.common.overlap) };
    let newest = Window { from, to: if spec.is_feed { now } else { now + delta(spec.ahead) } };
    let mut seen = Seen::default();
    let mut parts = Parts::new(&config);
    _ = say.send(format!("{}: asking the service", config.name));
    if !parts.read(newest, &api, &mut seen, &mut findings).await {
        // a poll may have learnt it long ago
        if transport.answers.load(Ordering::Relaxed) > 0 && stats.observed().clock_skew.is_some() {
            the_clock(&stats, &mut findings);
        }
        return findings;
    }
    let requests = || transport.requests.load(Ordering::Relaxed);
    let mut needed = requests();
    // a first look logs in, and learns how the service wants to be asked
    if !spec.is_feed && needed > polls_allow(&config) {
        if !parts.read_more(newest, &api, &mut seen, &mut findings).await {
            return findings;
        }
        needed = requests() - needed;
    }
    let mut span = config.common.overlap;
    if spec.is_feed {
        newest_file(&mut parts, &api, &mut seen, &mut findings, say).await;
    } else if span < LOOK_BACK && parts.allowed > 0 {
        span = LOOK_BACK;
        let older = Window { from: now - delta(LOOK_BACK), to: newest.from };
        if !parts.read_more(older, &api, &mut seen, &mut findings).await {
            return findings;
        }
    }
    if parts.allowed > 0 {
        what_would_be_counted(&spec, &seen, span, &mut findings);
    }
    the_clock(&stats, &mut findings);
    if let Some(from) = counted_from.filter(|from| api.service_now() < *from) {
        let (now, from) = (rfc3339_seconds(api.service_now()), rfc3339_seconds(from));
        let what = format!("the service's clock was set back: it shows {now}, and what it stamps until {from} is not");
        findings.add(State::Wrong, format!("{what} counted. Fix: look at the service's own log until then"));
    }
    the_budget(&config, &stats, needed, requests(), &mut findings);
    the_credential_ends(&stats, clock.now(), &mut findings);
    findings
}

// === before anything is asked ===

/// The key of the credential in the configuration.
fn secret_key(system: System) -> &'static str {
    match system {
        System::Canvas => "access_token",
        System::Informatica => "password",
        System::Activid => "client_secret",
        System::Losant => "api_token",
        System::IndexExchange => "client_key",
    }
}

fn secret_file(config: &SourceConfig, findings: &mut Findings) {
    let (key, secret) = (secret_key(config.system()), config.secret());
    if let Err(error) = secret.read() {
        findings.add(State::Wrong, format!("{error}. Fix: put the credential into that file"));
        return;
    }
    let Some(path) = secret.path() else {
        let text =
            format!("{key} stands in the configuration file, for all who may read that; {key}_file keeps it apart");
        findings.add(State::Note, text);
        return;
    };
    if let Some(mode) = mode_if_open_to_all(path) {
        let path = path.display();
        let text =
            format!("every user of this machine can read the secret file {path} (mode {mode:04o}): chmod 600 {path}");
        findings.add(State::Note, text);
    }
}

/// Says that the environment names a proxy for this service, and the configuration does not want it.
fn unused_proxy(config: &SourceConfig, findings: &mut Findings) {
    if config.common.proxy_from_environment || config.common.proxy_url.is_some() {
        return;
    }
    let environment = Proxies::of_environment(|name| std::env::var(name).ok()).unwrap_or_default();
    let Some(url) = config.addresses().into_iter().find(|url| environment.via(url).is_some()) else { return };
    let variable = if url.scheme() == "https" { "HTTPS_PROXY" } else { "HTTP_PROXY" };
    let text = format!(
        "{variable} is set in the environment and not used: if the service can be reached only through that proxy, set \
         `proxy_from_environment: true`, or `proxy_url`"
    );
    findings.add(State::Note, text);
}

/// Whether the names of all hosts that we connect to can be resolved.
async fn names_resolve(config: &SourceConfig, findings: &mut Findings) -> bool {
    // what is wrong with the environment kept the connection from being made
    let proxies = Proxies::of(&config.common).unwrap_or_default();
    let urls = config.addresses().into_iter().map(|url| proxies.via(url).unwrap_or(url));
    let hosts: BTreeSet<(String, u16)> =
        urls.filter_map(|url| Some((url.host_str()?.to_owned(), url.port_or_known_default()?))).collect();
    let mut all = true;
    for (host, port) in hosts {
        let name = host.trim_matches(['[', ']']);
        if name.parse::<std::net::IpAddr>().is_ok() {
            continue;
        }
        let looked_up = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((name, port))).await;
        let why = match looked_up {
            Ok(Ok(found)) => {
                let found: BTreeSet<String> = found.map(|address| address.ip().to_string()).collect();
                let found = found.into_iter().collect::<Vec<_>>().join(", ");
                findings.add(State::Good, format!("{name} resolves to {found}"));
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer in {RESOLVE_TIMEOUT:?}"),
        };
        all = false;
        let fix = "correct the address in the configuration, or this machine's DNS";
        findings.add(State::Wrong, format!("the name {name} cannot be resolved: {why}. Fix: {fix}"));
    }
    all
}

// === what is asked ===

/// The logs of a source, each to be read by itself, because each may be allowed or not.
struct Parts {
    config: SourceConfig,
    each: Vec<Part>,
    /// How many could be read.
    allowed: usize,
}

struct Part {
    name: String,
    reader: Box<dyn Source>,
    /// Not where the configuration names something that no document does.
    documented: bool,
    refused: bool,
}

impl Parts {
    fn new(config: &SourceConfig) -> Self {
        let part = |name: String, service: Service| {
            let (reader, _) = source::registry::build(&SourceConfig { service, ..config.clone() });
            Part { name, reader, documented: true, refused: false }
        };
        let each = match &config.service {
            Service::Canvas(all) => {
                let none = Canvas { accounts: vec![], users: vec![], pseudonyms: vec![], ..all.clone() };
                let (mut accounts, mut users, mut logins) = (none.clone(), none.clone(), none);
                let mut each = Vec::new();
                for id in &all.accounts {
                    accounts.accounts = vec![id.clone()];
                    each.push(part(format!("the log of account {id}"), Service::Canvas(accounts.clone())));
                }
                for id in &all.users {
                    users.users = vec![id.clone()];
                    each.push(part(format!("the log of user {id}"), Service::Canvas(users.clone())));
                }
                for id in &all.pseudonyms {
                    logins.pseudonyms = vec![id.clone()];
                    each.push(part(format!("the log of login {id}"), Service::Canvas(logins.clone())));
                }
                each
            }
            Service::IndexExchange(all) => {
                let one = |name: &String| IndexExchange { subscriptions: vec![name.clone()], ..all.clone() };
                all.subscriptions
                    .iter()
                    .map(|name| Part {
                        documented: SUBSCRIPTIONS.contains(&name.as_str()),
                        ..part(format!("the files of {name:?}"), Service::IndexExchange(one(name)))
                    })
                    .collect()
            }
            Service::Informatica(_) => vec![part("the security log".into(), config.service.clone())],
            Service::Activid(service) => {
                let with = if service.verify { ", with the integrity check" } else { "" };
                vec![part(format!("the audit log of tenant {}{with}", service.tenant), config.service.clone())]
            }
            Service::Losant(service) => {
                vec![part(format!("the audit log of instance {}", service.instance_id), config.service.clone())]
            }
        };
        Self { config: config.clone(), each, allowed: 0 }
    }

    /// Reads each for the first time; whether it makes sense to go on.
    async fn read(&mut self, window: Window, api: &Api, seen: &mut Seen, findings: &mut Findings) -> bool {
        let mut reached = false;
        let mut accepted = false;
        let several = self.each.len() > 1;
        for part in &mut self.each {
            let read = part.read(self.config.common.poll_timeout, window, api, seen).await;
            let failure = read.err();
            let kind = failure.as_ref().map(|failure| failure.kind);
            let unreached = matches!(kind, Some(ErrorKind::Connect | ErrorKind::Tls | ErrorKind::Timeout));
            if !reached && !unreached {
                reached = true;
                findings.add(State::Good, how_reached(&self.config));
            }
            // where a login of its own is asked for, all but that means that it went well
            let is_known_good = matches!(kind, None | Some(ErrorKind::Forbidden));
            if !accepted && is_known_good {
                accepted = true;
                findings.add(State::Good, "the credential is accepted");
            }
            match failure {
                None => {
                    self.allowed += 1;
                    findings.add(State::Good, format!("{} may be read", part.name));
                    match std::mem::take(&mut seen.lists_nothing) {
                        true if !part.documented => {
                            let fix = format!(
                                "correct the name in `subscriptions`; documented: {}",
                                SUBSCRIPTIONS.join(", ")
                            );
                            let text =
                                format!("nothing is listed of {}, which no document names. Fix: {fix}", part.name);
                            findings.add(State::Wrong, text);
                        }
                        true if several => {
                            let text = format!("nothing is listed of {}: is it subscribed to?", part.name);
                            findings.add(State::Note, text);
                        }
                        _ => {}
                    }
                }
                Some(failure) => {
                    part.refused = true;
                    findings.add(State::Wrong, said(&part.name, &failure, &self.config));
                    if !matches!(failure.kind, ErrorKind::Forbidden | ErrorKind::NotFound) {
                        return false;
                    }
                }
            }
            for trouble in std::mem::take(&mut seen.troubles) {
                findings.add(State::Wrong, said(&part.name, &trouble, &self.config));
            }
        }
        true
    }

    /// Reads those that may be read once more, elsewhere.
    async fn read_more(&mut self, window: Window, api: &Api, seen: &mut Seen, findings: &mut Findings) -> bool {
        for part in self.each.iter_mut().filter(|part| !part.refused) {
            if let Err(failure) = part.read(self.config.common.poll_timeout, window, api, seen).await {
                findings.add(State::Wrong, said(&part.name, &failure, &self.config));
                return false;
            }
            for trouble in std::mem::take(&mut seen.troubles) {
                findings.add(State::Wrong, said(&part.name, &trouble, &self.config));
            }
        }
        true
    }
}

impl Part {
    async fn read(&mut self, timeout: Duration, window: Window, api: &Api, seen: &mut Seen) -> Result<(), Failure> {
        seen.window = Some(window);
        tokio::time::timeout(timeout, self.reader.read(window, api, seen)).await.unwrap_or_else(|_| {
            let got = format!("not done after poll_timeout ({})", duration_text(timeout));
            Err(Failure::new(ErrorKind::Timeout, "reading what a poll reads", got))
        })
    }
}

/// Reads the files of the newest hour, to see whether files may be read and what is in them.
async fn newest_file(parts: &mut Parts, api: &Api, seen: &mut Seen, findings: &mut Findings, say: &Say) {
    let Some(Feed { newest_hour, files, missing_hours, .. }) = seen.feed.take() else { return };
    let listed = files.iter().filter(|(_, count)| **count > 0);
    let listed: Vec<String> = listed.map(|(status, count)| format!("{count} {status}")).collect();
    let Some(newest) = newest_hour else {
        let text = "no file is listed: files are made within 36 hours; after 35 days without a call, the next calls make \
                    the service resume";
        findings.add(State::Note, text);
        return;
    };
    findings.add(
        State::Good,
        format!(
            "files listed: {}; the newest is of {}; {missing_hours} hours are missing",
            listed.join(", "),
            rfc3339_seconds(newest)
        ),
    );
    if files.get("updated").is_some_and(|updated| *updated > 0) {
        findings.add(State::Note, "no file was read: some are marked as updated, and reading would take the mark away");
        return;
    }
    _ = say.send(format!("{}: reading the files of {}", parts.config.name, rfc3339_seconds(newest)));
    let hour = Window { from: newest, to: newest + TimeDelta::hours(1) };
    if parts.read_more(hour, api, seen, findings).await {
        findings.add(State::Good, format!("the files of {} can be read", rfc3339_seconds(newest)));
    }
}

/// Takes what is read, and counts it nowhere.
#[derive(Default)]
struct Seen {
    window: Option<Window>,
    keys: HashSet<EventKey>,
    events: BTreeMap<EventLabels, u64>,
    rejected: u64,
    ignored: u64,
    outside: u64,
    tainted: bool,
    feed: Option<Feed>,
    /// One of the lists was empty.
    lists_nothing: bool,
    troubles: Vec<Failure>,
}

#[async_trait]
impl Sink for Seen {
    async fn page(&mut self, page: Page) -> Result<Taken, Failure> {
        let mut taken = Taken::default();
        for item in page.items {
            // some services cut times to seconds
            let tolerance = TimeDelta::seconds(1);
            match (item.at, self.window) {
                (Some(at), Some(window)) if at < window.from - tolerance => taken.before += 1,
                (Some(at), Some(window)) if at >= window.to + tolerance => taken.after += 1,
                _ => {
                    taken.inside += 1;
                    match item.what {
                        What::Tainted { .. } => self.tainted = true,
                        _ if !self.keys.insert(item.key) => {}
                        What::Event(labels) => *self.events.entry(labels).or_default() += 1,
                        What::Ignored => self.ignored += 1,
                        What::Rejected(_) => self.rejected += 1,
                    }
                }
            }
        }
        self.outside += (taken.before + taken.after) as u64;
        self.lists_nothing |= page.facts.feed.as_ref().is_some_and(|feed| feed.newest_hour.is_none());
        for document in page.documents {
            for (action, count) in document.rows {
                *self.events.entry(EventLabels::row(document.category.clone(), action)).or_default() += count;
            }
            self.rejected += document.rejected;
        }
        self.feed = match (self.feed.take(), page.facts.feed) {
            // one list after the other: what is newest of any
            (Some(mut all), Some(one)) => {
                all.newest_hour = all.newest_hour.max(one.newest_hour);
                all.missing_hours += one.missing_hours;
                for (status, count) in one.files {
                    *all.files.entry(status).or_default() += count;
                }
                Some(all)
            }
            (all, one) => one.or(all),
        };
        Ok(taken)
    }

    fn report(&mut self, failure: Failure) {
        self.troubles.push(failure);
    }

    fn document(&mut self, _: &EventKey) -> Option<DocumentRecord> {
        None
    }
}

/// Counts requests, logins included.
struct Counting {
    transport: Arc<dyn Transport>,
    requests: AtomicU64,
    answers: AtomicU64,
}

#[async_trait]
impl Transport for Counting {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let answer = self.transport.send(request).await;
        self.answers.fetch_add(u64::from(answer.is_ok()), Ordering::Relaxed);
        answer
    }

    fn secrets(&self) -> Vec<SecretString> {
        self.transport.secrets()
    }
}

// === what is said ===

fn how_reached(config: &SourceConfig) -> String {
    let mut origins: Vec<String> = config.addresses().iter().map(|url| url.origin().ascii_serialization()).collect();
    origins.dedup();
    let tls = config.common.tls.as_ref();
    let trusted = match tls.and_then(|tls| tls.ca_file.as_ref()) {
        _ if origins.iter().all(|origin| origin.starts_with("http:")) => "without TLS".to_owned(),
        Some(file) => format!("its certificate is good by tls.ca_file {}", file.display()),
        None => "its certificate is good by this machine's authorities".to_owned(),
    };
    let proxies = Proxies::of(&config.common).unwrap_or_default();
    let mut through: Vec<String> = config
        .addresses()
        .into_iter()
        .filter_map(|url| Some(proxies.via(url)?.origin().ascii_serialization()))
        .collect();
    through.dedup();
    let through =
        if through.is_empty() { String::new() } else { format!(" through the proxy {}", through.join(" and ")) };
    format!("the service answers at {}{through}, {trusted}", origins.join(" and "))
}

/// What failed, and the fix.
fn said(part: &str, failure: &Failure, config: &SourceConfig) -> String {
    let fix = fix(failure, config);
    format!("{part} could not be read: {}. Fix: {fix}", failure.what_happened())
}

fn fix(failure: &Failure, config: &SourceConfig) -> String {
    if let Some(remedy) = failure.remedy() {
        return remedy.into();
    }
    let key = secret_key(config.system());
    let place = config.secret().path().map_or_else(|| format!("`{key}`"), |path| path.display().to_string());
    match (failure.kind, config.system()) {
        (ErrorKind::Connect, _) => {
            "correct the address, `proxy_url`, or what stands between this machine and the service (firewall, routing)".into()
        }
        (ErrorKind::Tls, _) => "name the service's own authority in `tls.ca_file`, or the name its certificate has in \
                                `tls.server_name`; if neither is it, do not trust what answers there"
            .into(),
        (ErrorKind::Timeout, _) => "the service is slow or does not answer: ask its operator, or raise `timeout` and \
                                    `poll_timeout`"
            .into(),
        (ErrorKind::Auth, System::Canvas) => {
            format!("make a new token (Account, Settings, New Access Token) as the exporter's user, and put it into {place}")
        }
        (ErrorKind::Auth, System::Informatica) => format!(
            "log in by hand as `username` at the same login_url; correct `username`, or the password in {place}; a \
             locked account must be unlocked by an administrator"
        ),
        (ErrorKind::Auth, System::Activid) => {
            format!("correct `client_id`, `token_url`, or the secret in {place}; too many wrong ones disable the client")
        }
        (ErrorKind::Auth, System::Losant) => format!("make a new instance API token, and put it into {place}"),
        (ErrorKind::Auth, System::IndexExchange) => {
            format!("put the base64 key as Index Exchange issued it into {place}, or correct `token_url`")
        }
        (ErrorKind::Forbidden, System::Canvas) => "give the token's user `view_statistics` or `manage_user_logins` on the \
                                                   root account; where developer keys have scopes, allow the audit log's"
            .into(),
        (ErrorKind::Forbidden, System::Informatica) => "give the user the Administrator role".into(),
        (ErrorKind::Forbidden, System::Activid) => {
            "give the client the permissions Read audit log and Read reference data".into()
        }
        (ErrorKind::Forbidden, System::Losant) => {
            "make an instance API token with the scope instanceAuditLogs.get".into()
        }
        (ErrorKind::Forbidden, System::IndexExchange) => "ask Index Exchange to allow this subscription for the key".into(),
        (ErrorKind::NotFound, System::Canvas) => {
            "correct `base_url` or the id: an account must be a root account that exists, and Canvas must have its audit \
             log set up"
                .into()
        }
        (ErrorKind::NotFound, System::Losant) => "correct `instance_id` or `base_url`".into(),
        (ErrorKind::NotFound, System::Activid) => "correct `tenant` or `base_url`".into(),
        (ErrorKind::NotFound, _) => "correct the addresses in the configuration".into(),
        (ErrorKind::Throttled, _) => "wait; if it goes on, lower `rate_limit`, and look who else uses the credential".into(),
        (ErrorKind::TooLarge, _) => "raise `max_response_bytes`, if this is the service's answer".into(),
        (ErrorKind::Redirect, _) => "configure the address it leads to, if that is the service's".into(),
        (ErrorKind::Truncated, _) => "see the service's page in docs/services; events beyond its limit cannot be read".into(),
        (ErrorKind::Decode, _) => "look whether the address is the service's API and not a login page or a proxy; else see the \
                                   service's page in docs/services"
            .into(),
        (ErrorKind::Panic, _) => "report it, with the line of the log that says where".into(),
        (ErrorKind::Server | ErrorKind::Storage, _) => {
            "try again; if it goes on, ask the service's operator with the time and the status above".into()
        }
    }
}

fn what_would_be_counted(spec: &Spec, seen: &Seen, span: Duration, findings: &mut Findings) {
    let total: u64 = seen.events.values().sum();
    let (what, of) = if spec.is_feed {
        ("rows", "its newest hour".into())
    } else {
        ("events", format!("the last {}", duration_text(span)))
    };
    if !(spec.is_feed && total == 0) {
        let mut by_set: BTreeMap<String, u64> = BTreeMap::new();
        for (labels, count) in &seen.events {
            let set = format!("{} {} {}", labels.category, labels.action, labels.outcome.as_str());
            *by_set.entry(set).or_default() += count;
        }
        let mut sets: Vec<_> = by_set.into_iter().collect();
        sets.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let shown: Vec<String> = sets.iter().take(SHOWN_MAX).map(|(set, count)| format!("{set} {count}")).collect();
        let more =
            if sets.len() > SHOWN_MAX { format!("; and {} more", sets.len() - SHOWN_MAX) } else { String::new() };
        let list = if shown.is_empty() { String::new() } else { format!(": {}{more}", shown.join("; ")) };
        findings.add(State::Good, format!("would be counted of {of}: {total} {what}{list}"));
    }
    if seen.ignored > 0 {
        findings.add(State::Note, format!("{} events of `ignore_actors` would not be counted", seen.ignored));
    }
    if seen.rejected > 0 {
        let fix = "their form is in the exporter's log; see docs/runbooks/AuditEventsRejected.md";
        findings.add(State::Wrong, format!("{} {what} could not be understood. Fix: {fix}", seen.rejected));
    }
    if seen.outside > 0 {
        let text = format!(
            "{} events were returned that lie outside the time asked for; they would not be counted",
            seen.outside
        );
        findings.add(State::Note, text);
    }
    if seen.tainted {
        findings.add(
            State::Note,
            "the service says that a record fails its integrity check: see docs/runbooks/AuditFeedTainted.md",
        );
    }
    let cannot: Vec<&str> = spec.signals.rows().iter().filter(|(_, can)| !can).map(|(signal, _)| *signal).collect();
    if !cannot.is_empty() {
        findings.add(State::Note, format!("this service can never report: {}", cannot.join(", ")));
    }
}

fn the_clock(stats: &SourceStats, findings: &mut Findings) {
    let Some(skew) = stats.observed().clock_skew else {
        findings.add(State::Note, "how far the service's clock is off is not known: no answer carried a Date to go by");
        return;
    };
    let off = duration_text(skew.abs().to_std().unwrap_or_default());
    let side = if skew > TimeDelta::zero() { "ahead of" } else { "behind" };
    if skew.abs() <= SKEW_MAX {
        let how =
            if skew.is_zero() { "agrees with ours (within 2s)".to_owned() } else { format!("is {off} {side} ours") };
        findings.add(State::Good, format!("the service's clock {how}"));
    } else {
        let meanwhile = if skew.abs() > SKEW_BELIEVED {
            "nothing is read"
        } else if skew > TimeDelta::hours(1) {
            "nothing is lost, but once it is set back, what it stamps is not counted until it shows about what it does now"
        } else {
            "nothing is lost, but times of this log cannot be compared with those of others"
        };
        let fix = format!("compare both with a third clock and set up NTP where it is missing; until then {meanwhile}");
        findings.add(State::Wrong, format!("the service's clock is {off} {side} ours. Fix: {fix}"));
    }
}

/// Requests that the budget allows from one poll to the next.
fn polls_allow(config: &SourceConfig) -> u64 {
    let limit = config.common.rate_limit;
    let allowed =
        u128::from(limit.requests.get()) * config.common.poll_interval.as_nanos() / limit.per.as_nanos().max(1);
    u64::try_from(allowed).unwrap_or(u64::MAX)
}

fn the_budget(config: &SourceConfig, stats: &SourceStats, needed: u64, used: u64, findings: &mut Findings) {
    let (limit, interval) = (config.common.rate_limit, config.common.poll_interval);
    let limit = format!("rate_limit allows {} in {}", limit.requests, duration_text(limit.per));
    let need = format!("a poll needs about {needed} requests, every {}", duration_text(interval));
    if needed > polls_allow(config) {
        let fix = "raise `poll_interval`, or `rate_limit` if the service allows more";
        findings.add(State::Wrong, format!("{need}, and {limit}: polls will be late. Fix: {fix}"));
    } else {
        findings.add(State::Good, format!("{need}; {limit}. This look took {used}"));
    }
    if let Some(remaining) = stats.observed().remaining {
        findings.add(State::Good, format!("by the service's own account {remaining:.0} are left of its budget"));
    }
}

fn the_credential_ends(stats: &SourceStats, now: DateTime<Utc>, findings: &mut Findings) {
    let Some(ends) = stats.observed().credential_expiry else { return };
    let (how, fix) = if ends <= now + EXPIRY_MIN { (State::Wrong, ". Fix: replace it now") } else { (State::Good, "") };
    findings.add(how, format!("the credential ends on {}{fix}", rfc3339_seconds(ends)));
}
