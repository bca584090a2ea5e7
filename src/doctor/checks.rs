//! The single checks of `doctor`: pure functions over what was read and measured.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::finding::Finding;
use super::preview::Preview;
use crate::api::SKEW_BELIEVED;
use crate::clock::rfc3339_seconds;
use crate::config::SourceConfig;
use crate::failure::{ErrorKind, Failure};
use crate::proxy::Proxies;
use crate::settings::secret::mode_if_open_to_all;
use crate::settings::{Common, duration_text};
use crate::source::Spec;

/// Label sets that are shown.
const SHOWN_MAX: usize = 10;
/// A clock that is further off is worth a word; the alert `AuditClockSkew` has the same limit.
const SKEW_MAX: TimeDelta = TimeDelta::seconds(60);
/// A credential that ends sooner is worth a word; the alert `AuditCredentialExpiring` has the same limit.
const EXPIRY_MIN: TimeDelta = TimeDelta::days(14);

/// Whether the credential can be read, and by whom.
pub(super) fn check_secret(config: &SourceConfig) -> Option<Finding> {
    let (key, secret) = (config.service.system().credential_key(), config.service.credential());
    if let Err(error) = secret.read() {
        return Some(Finding::wrong(format!("{error}. Fix: put the credential into that file")));
    }
    let Some(path) = secret.path() else {
        let text = format!(
            "{key} is in the configuration file, and everyone who can read that file sees it; {key}_file keeps it separate"
        );
        return Some(Finding::note(text));
    };
    let mode = mode_if_open_to_all(path)?;
    let path = path.display();
    let text =
        format!("every user of this machine can read the secret file {path} (mode {mode:04o}): chmod 600 {path}");
    Some(Finding::note(text))
}

/// Whether the environment names a proxy for this service, and the configuration does not want it.
pub(super) fn check_unused_proxy(config: &SourceConfig, environment: &Proxies) -> Option<Finding> {
    if config.common.proxy_from_environment || config.common.proxy_url.is_some() {
        return None;
    }
    let url = config.addresses().into_iter().find(|url| environment.via(url).is_some())?;
    let variable = if url.scheme() == "https" { "HTTPS_PROXY" } else { "HTTP_PROXY" };
    let text = format!(
        "{variable} is set in the environment but not used: if this machine reaches the service only through that \
         proxy, set `proxy_from_environment: true`, or `proxy_url`"
    );
    Some(Finding::note(text))
}

/// How the service was reached.
pub(super) fn check_reached(config: &SourceConfig) -> Finding {
    let mut origins: Vec<String> = config.addresses().iter().map(|url| url.origin().ascii_serialization()).collect();
    origins.dedup();
    let tls = config.common.tls.as_ref();
    let trusted = match tls.and_then(|tls| tls.ca_file.as_ref()) {
        _ if origins.iter().all(|origin| origin.starts_with("http:")) => "without TLS".to_owned(),
        Some(file) => format!("its certificate is valid by tls.ca_file {}", file.display()),
        None => "its certificate is valid by this machine's authorities".to_owned(),
    };
    let proxies = config.common.proxies().unwrap_or_default();
    let mut through: Vec<String> = config
        .addresses()
        .into_iter()
        .filter_map(|url| Some(proxies.via(url)?.origin().ascii_serialization()))
        .collect();
    through.dedup();
    let through =
        if through.is_empty() { String::new() } else { format!(" through the proxy {}", through.join(" and ")) };
    Finding::good(format!("the service answers at {}{through}, {trusted}", origins.join(" and ")))
}

/// What failed, and the fix.
pub(super) fn failed(part: &str, failure: &Failure, config: &SourceConfig) -> Finding {
    let fix = fix(failure, config);
    Finding::wrong(format!("cannot read {part}: {}. Fix: {fix}", failure.what_happened()))
}

fn fix(failure: &Failure, config: &SourceConfig) -> String {
    if let Some(remedy) = failure.remedy() {
        return remedy.into();
    }
    let (key, secret) = (config.service.system().credential_key(), config.service.credential());
    let place = secret.path().map_or_else(|| format!("`{key}`"), |path| path.display().to_string());
    if let Some(remedy) = config.service.remedy(failure.kind, &place) {
        return remedy;
    }
    let usual = match failure.kind {
        ErrorKind::Connect => {
            "correct the address or `proxy_url`, or check the network between this machine and the service (firewall, routing)"
        }
        ErrorKind::Tls => {
            "give the service's own authority in `tls.ca_file`, or the name in its certificate in `tls.server_name`; if \
             neither helps, do not trust what answers there"
        }
        ErrorKind::Timeout => {
            "the service is slow or does not answer: ask its operator, or raise `timeout` and `poll_timeout`"
        }
        ErrorKind::Auth => return format!("correct the credential in {place}"),
        ErrorKind::Forbidden => "give the credential the permissions that the service's page in docs/services lists",
        ErrorKind::NotFound => "correct the addresses in the configuration",
        ErrorKind::Throttled => "wait; if it continues, lower `rate_limit`, and check who else uses the credential",
        ErrorKind::TooLarge => "raise `max_response_bytes`, if this is really the service's answer",
        ErrorKind::Redirect => "configure the address that it leads to, if that is the service",
        ErrorKind::Truncated => "see the service's page in docs/services; events beyond its limit cannot be read",
        ErrorKind::Decode => {
            "check whether the address is the service's API, and not a login page or a proxy; else see the service's \
             page in docs/services"
        }
        ErrorKind::Panic => "report it, with the log line that names the place",
        ErrorKind::Server | ErrorKind::Storage => {
            "try again; if it continues, ask the service's operator, with the time and the status above"
        }
    };
    usual.into()
}

/// What would be counted of what was read of the last `span`.
pub(super) fn check_counted(spec: &Spec, seen: &Preview, span: Duration) -> Vec<Finding> {
    let mut findings = Vec::new();
    let total: u64 = seen.events.values().sum();
    let (what, of) = if spec.reading.is_feed() {
        ("rows", "its newest hour".into())
    } else {
        ("events", format!("the last {}", duration_text(span)))
    };
    if !(spec.reading.is_feed() && total == 0) {
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
        findings.push(Finding::good(format!("would be counted from {of}: {total} {what}{list}")));
    }
    if seen.ignored > 0 {
        findings.push(Finding::note(format!("not counted, because of `ignore_actors`: {}", seen.ignored)));
    }
    if seen.rejected > 0 {
        let fix = "their shape is in the exporter's log; see docs/runbooks/AuditEventsRejected.md";
        findings.push(Finding::wrong(format!("{what} that could not be parsed: {}. Fix: {fix}", seen.rejected)));
    }
    if seen.outside > 0 {
        findings.push(Finding::note(format!("not counted, because outside the requested time: {}", seen.outside)));
    }
    if seen.tainted {
        findings.push(Finding::note(
            "the service says that a record fails its integrity check: see docs/runbooks/AuditFeedTainted.md",
        ));
    }
    let cannot: Vec<&str> = spec.signals.rows().iter().filter(|(_, can)| !can).map(|(signal, _)| *signal).collect();
    if !cannot.is_empty() {
        findings.push(Finding::note(format!("this service can never report: {}", cannot.join(", "))));
    }
    findings
}

/// How far the service's clock is off.
pub(super) fn check_clock(skew: Option<TimeDelta>) -> Finding {
    let Some(skew) = skew else {
        return Finding::note("the service's clock is unknown: no answer had a usable Date header");
    };
    let off = duration_text(skew.abs().to_std().unwrap_or_default());
    let side = if skew > TimeDelta::zero() { "ahead of" } else { "behind" };
    if skew.abs() <= SKEW_MAX {
        let how =
            if skew.is_zero() { "agrees with ours (within 2s)".to_owned() } else { format!("is {off} {side} ours") };
        return Finding::good(format!("the service's clock {how}"));
    }
    let meanwhile = if skew.abs() > SKEW_BELIEVED {
        "nothing is read"
    } else if skew > TimeDelta::hours(1) {
        "nothing is lost, but once it is set back, its events are not counted until it shows about the present time again"
    } else {
        "nothing is lost, but times in this log cannot be compared with those of other logs"
    };
    let fix = format!("compare both with a third clock, and set up NTP where it is missing; until then {meanwhile}");
    Finding::wrong(format!("the service's clock is {off} {side} ours. Fix: {fix}"))
}

/// Whether the service's clock shows times of which nothing is counted any more.
pub(super) fn check_set_back(now: DateTime<Utc>, counted_from: Option<DateTime<Utc>>) -> Option<Finding> {
    let from = counted_from.filter(|from| now < *from)?;
    let (now, from) = (rfc3339_seconds(now), rfc3339_seconds(from));
    let what = format!("the service's clock was set back: it shows {now}, and its events until {from} are not counted");
    Some(Finding::wrong(format!("{what}. Fix: look at the service's own log until then")))
}

/// Requests that the budget allows from one poll to the next.
pub(super) fn polls_allow(common: &Common) -> u64 {
    let limit = common.rate_limit;
    let allowed = u128::from(limit.requests.get()) * common.poll_interval.as_nanos() / limit.per.as_nanos().max(1);
    u64::try_from(allowed).unwrap_or(u64::MAX)
}

/// Whether the budget is enough for polls that need so many requests; `remaining`: what the service says is left of its own.
pub(super) fn check_budget(common: &Common, needed: u64, used: u64, remaining: Option<f64>) -> Vec<Finding> {
    let (limit, interval) = (common.rate_limit, common.poll_interval);
    let limit = format!("rate_limit allows {} in {}", limit.requests, duration_text(limit.per));
    let need = format!("a poll needs about {needed} requests, every {}", duration_text(interval));
    let enough = if needed > polls_allow(common) {
        let fix = "raise `poll_interval`, or `rate_limit` if the service allows more";
        Finding::wrong(format!("{need}, and {limit}: polls will be late. Fix: {fix}"))
    } else {
        Finding::good(format!("{need}; {limit}. This check took {used}"))
    };
    let left = remaining
        .map(|remaining| Finding::good(format!("left of the service's own budget, as it says: {remaining:.0}")));
    std::iter::once(enough).chain(left).collect()
}

/// Whether the credential ends soon.
pub(super) fn check_expiry(ends: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Option<Finding> {
    let ends = ends?;
    let when = format!("the credential expires at {}", rfc3339_seconds(ends));
    let soon = ends <= now + EXPIRY_MIN;
    Some(if soon { Finding::wrong(format!("{when}. Fix: replace it now")) } else { Finding::good(when) })
}

#[cfg(test)]
mod tests;
