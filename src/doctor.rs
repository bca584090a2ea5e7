//! Is a source as it must be? It is looked at as a poll would, and what is found is said in plain
//! words, with what to do about it.
//!
//! Promises:
//! - What is said was tried: names are resolved, a connection is made, the credential is shown, each
//!   log that is read is read.
//! - Politeness: every request passes the source's budget; a refused credential is shown once.
//! - Nothing is counted, and no secret is said.
//!
//! Leaves to others: what is found of one thing (`doctor/checks.rs`), reading (`source/*.rs`), what a service needs
//! (`source/NAME/setup.rs`), what failed requests mean (`api.rs`), where it runs
//! (`control.rs`).

mod checks;
mod finding;
mod preview;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use http::{Request, Response};
use secrecy::SecretString;

use self::checks::{
    check_budget, check_clock, check_counted, check_expiry, check_reached, check_secret, check_set_back,
    check_unused_proxy, failed, polls_allow,
};
pub use self::finding::{Finding, Findings, State};
use self::preview::Preview;
use crate::api::{Api, ApiParts, Gate, Limits};
use crate::clock::{Clock, delta, rfc3339_seconds};
use crate::config::SourceConfig;
use crate::failure::{ErrorKind, Failure};
use crate::page::Feed;
use crate::proxy::Proxies;
use crate::settings::duration_text;
use crate::source::{self, Look, Reading, Source};
use crate::stats::SourceStats;
use crate::transport::{Body, ConnectError, Transport, TransportError};
use crate::verify::Say;
use crate::window::Window;

/// How much history is looked at, where a poll reads less.
const LOOK_BACK: Duration = Duration::from_hours(1);
/// Sources that are looked at side by side.
pub const SIDE_BY_SIDE: usize = 16;
/// The longest wait for a name to be resolved.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The source that is looked at, and the means to do so.
pub struct DoctorInput {
    /// Its settings.
    pub config: SourceConfig,
    /// A connection of its own, or why there can be none.
    pub transport: Result<Arc<dyn Transport>, ConnectError>,
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

/// What is said before sources are looked at side by side: how long that will take.
pub fn how_long<'a>(sources: impl IntoIterator<Item = &'a SourceConfig>) -> Option<String> {
    let mut times: Vec<(Duration, &str)> =
        sources.into_iter().map(|source| (takes_about(source), source.name.as_str())).collect();
    let all: Duration = times.iter().map(|(time, _)| *time).sum();
    times.sort_unstable();
    let (longest, slowest) = times.last()?;
    let side_by_side = u32::try_from(times.len().min(SIDE_BY_SIDE)).unwrap_or(1);
    let about = duration_text(Duration::from_secs((*longest).max(all / side_by_side).as_secs().max(1)));
    Some(match times.len() {
        1 => format!("checking {slowest}: takes about {about} or more at its rate_limit"),
        count => format!(
            "checking {count} sources, {side_by_side} at the same time: takes about {about} or more at their rate_limit; {slowest} takes longest"
        ),
    })
}

/// How long a look at a source takes by its budget, if the service answers at once and there are not many events.
fn takes_about(config: &SourceConfig) -> Duration {
    let (limit, overlap) = (config.common.rate_limit, config.common.overlap);
    // what a poll reads, and what lies before it
    let look = Look { span: overlap.max(LOOK_BACK), windows: if overlap < LOOK_BACK { 2 } else { 1 } };
    let requests = u32::try_from(config.service.requests(look)).unwrap_or(u32::MAX);
    limit.per.saturating_mul(requests) / limit.requests.get()
}

/// Looks at a source.
pub async fn examine(input: DoctorInput, say: &Say) -> Findings {
    let secret = check_secret(&input.config);
    let mut findings = try_out(input, say).await;
    findings.list.splice(0..0, secret);
    findings
}

/// Looks at a source, but not at where its credential stands.
pub async fn try_out(input: DoctorInput, say: &Say) -> Findings {
    let DoctorInput { config, transport, gate, limits, stats, counted_from, clock, seed } = input;
    let (source, system) = (config.name.to_string(), config.system().to_string());
    let mut findings = Findings { source, system, list: Vec::new() };
    let transport = match transport {
        Ok(transport) => Arc::new(Counting { transport, requests: AtomicU64::new(0), answers: AtomicU64::new(0) }),
        Err(why) => {
            let fix = "correct the files under `tls`";
            findings.add(Finding::wrong(format!("no connection can be made: {why}. Fix: {fix}")));
            return findings;
        }
    };
    let environment = Proxies::of_environment(|name| std::env::var(name).ok()).unwrap_or_default();
    findings.add(check_unused_proxy(&config, &environment));
    if !names_resolve(&config, &mut findings).await {
        return findings;
    }
    let (reader, dialect) = config.service.build(&config.common);
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
    let newest = match spec.reading {
        Reading::History(history) => {
            Window { from: now - delta(config.common.overlap), to: now + delta(history.ahead) }
        }
        Reading::Feed { .. } => Window { from: now, to: now },
    };
    let mut seen = Preview::default();
    let mut parts = Parts::new(&config);
    say(&format!("{}: asking the service", config.name));
    if !parts.read(newest, &api, &mut seen, &mut findings).await {
        // a poll may have learnt it long ago
        let skew = stats.observed().clock_skew;
        if transport.answers.load(Ordering::Relaxed) > 0 && skew.is_some() {
            findings.add(check_clock(skew));
        }
        return findings;
    }
    let requests = || transport.requests.load(Ordering::Relaxed);
    let mut needed = requests();
    // a first look logs in, and learns how the service wants to be asked
    if !spec.reading.is_feed() && needed > polls_allow(&config.common) {
        if !parts.read_more(newest, &api, &mut seen, &mut findings).await {
            return findings;
        }
        needed = requests() - needed;
    }
    let mut span = config.common.overlap;
    match spec.reading {
        Reading::Feed { when_empty, .. } => {
            newest_file(&mut parts, when_empty, &api, &mut seen, &mut findings, say).await;
        }
        Reading::History(_) if span < LOOK_BACK && parts.allowed > 0 => {
            span = LOOK_BACK;
            let older = Window { from: now - delta(LOOK_BACK), to: newest.from };
            if !parts.read_more(older, &api, &mut seen, &mut findings).await {
                return findings;
            }
        }
        Reading::History(_) => {}
    }
    if parts.allowed > 0 {
        findings.add(check_counted(&spec, &seen, span));
    }
    let observed = stats.observed().clone();
    findings.add(check_clock(observed.clock_skew));
    findings.add(check_set_back(api.service_now(), counted_from));
    findings.add(check_budget(&config.common, needed, requests(), observed.remaining));
    findings.add(check_expiry(observed.credential_expiry, clock.now()));
    findings
}

/// Whether the names of all hosts that we connect to can be resolved.
async fn names_resolve(config: &SourceConfig, findings: &mut Findings) -> bool {
    // what is wrong with the environment kept the connection from being made
    let proxies = config.common.proxies().unwrap_or_default();
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
                findings.add(Finding::good(format!("{name} resolves to {found}")));
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer in {RESOLVE_TIMEOUT:?}"),
        };
        all = false;
        let fix = "correct the address in the configuration, or this machine's DNS";
        findings.add(Finding::wrong(format!("the name {name} cannot be resolved: {why}. Fix: {fix}")));
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
    /// What to do where nothing is listed of it, because no document names it.
    undocumented: Option<String>,
    refused: bool,
}

impl Parts {
    fn new(config: &SourceConfig) -> Self {
        let part = |source::Part { name, entry, undocumented }| {
            let (reader, _) = entry.build(&config.common);
            Part { name, reader, undocumented, refused: false }
        };
        Self { config: config.clone(), each: config.service.parts().into_iter().map(part).collect(), allowed: 0 }
    }

    /// Reads each for the first time; whether it makes sense to go on.
    async fn read(&mut self, window: Window, api: &Api, seen: &mut Preview, findings: &mut Findings) -> bool {
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
                findings.add(check_reached(&self.config));
            }
            // where a login of its own is asked for, all but that means that it went well
            let is_known_good = matches!(kind, None | Some(ErrorKind::Forbidden));
            if !accepted && is_known_good {
                accepted = true;
                findings.add(Finding::good("the credential is accepted"));
            }
            match failure {
                None => {
                    self.allowed += 1;
                    findings.add(Finding::good(format!("the credential may read {}", part.name)));
                    let (name, lists_nothing) = (&part.name, std::mem::take(&mut seen.lists_nothing));
                    if let (true, Some(fix)) = (lists_nothing, &part.undocumented) {
                        let text = format!("{name} are not listed, and the name is not documented. Fix: {fix}");
                        findings.add(Finding::wrong(text));
                    } else if lists_nothing && several {
                        findings.add(Finding::note(format!("{name} are not listed: do you have that subscription?")));
                    }
                }
                Some(failure) => {
                    part.refused = true;
                    findings.add(failed(&part.name, &failure, &self.config));
                    if !matches!(failure.kind, ErrorKind::Forbidden | ErrorKind::NotFound) {
                        return false;
                    }
                }
            }
            for trouble in std::mem::take(&mut seen.troubles) {
                findings.add(failed(&part.name, &trouble, &self.config));
            }
        }
        true
    }

    /// Reads those that may be read once more, elsewhere.
    async fn read_more(&mut self, window: Window, api: &Api, seen: &mut Preview, findings: &mut Findings) -> bool {
        for part in self.each.iter_mut().filter(|part| !part.refused) {
            if let Err(failure) = part.read(self.config.common.poll_timeout, window, api, seen).await {
                findings.add(failed(&part.name, &failure, &self.config));
                return false;
            }
            for trouble in std::mem::take(&mut seen.troubles) {
                findings.add(failed(&part.name, &trouble, &self.config));
            }
        }
        true
    }
}

impl Part {
    async fn read(&mut self, timeout: Duration, window: Window, api: &Api, seen: &mut Preview) -> Result<(), Failure> {
        seen.window = Some(window);
        tokio::time::timeout(timeout, self.reader.read(window, api, seen)).await.unwrap_or_else(|_| {
            let got = format!("not done after poll_timeout ({})", duration_text(timeout));
            Err(Failure::new(ErrorKind::Timeout, "reading what a poll reads", got))
        })
    }
}

/// Reads the files of the newest hour, to see whether files may be read and what is in them.
async fn newest_file(
    parts: &mut Parts,
    when_empty: &str,
    api: &Api,
    seen: &mut Preview,
    findings: &mut Findings,
    say: &Say,
) {
    let Some(Feed { newest_hour, files, missing_hours, .. }) = seen.feed.take() else { return };
    let listed = files.iter().filter(|(_, count)| **count > 0);
    let listed: Vec<String> = listed.map(|(status, count)| format!("{count} {status}")).collect();
    let Some(newest) = newest_hour else {
        findings.add(Finding::note(format!("no file is listed: {when_empty}")));
        return;
    };
    findings.add(Finding::good(format!(
        "files listed: {}; newest hour: {}; missing hours: {missing_hours}",
        listed.join(", "),
        rfc3339_seconds(newest)
    )));
    if files.get("updated").is_some_and(|updated| *updated > 0) {
        let text = "no file was read: some are marked as updated, and reading would remove the mark";
        findings.add(Finding::note(text));
        return;
    }
    say(&format!("{}: reading the files of {}", parts.config.name, rfc3339_seconds(newest)));
    let hour = Window { from: newest, to: newest + TimeDelta::hours(1) };
    if parts.read_more(hour, api, seen, findings).await {
        findings.add(Finding::good(format!("the files of {} can be read", rfc3339_seconds(newest))));
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
