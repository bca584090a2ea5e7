//! What must hold of everything that is ever served, whatever happened before.

use std::collections::BTreeMap;
use std::time::Duration;

use audit_exporter::event::System;
use audit_exporter::simulate::Truth;
use tokio::time::Instant;

use crate::exposed::{Exposed, label};

/// Events by category, action and outcome.
pub type Counts = BTreeMap<[String; 3], u64>;

/// What a page shows of a source's `audit_events_total`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts")]
pub fn counted(page: &Exposed, source: &str) -> Counts {
    let of_source = format!("source=\"{source}\"");
    page.beginning("audit_events_total{")
        .filter(|(name, value)| **value > 0.0 && name.contains(&of_source))
        .map(|(name, value)| (["category", "action", "outcome"].map(|l| label(name, l)), *value as u64))
        .collect()
}

/// The same of a truth.
pub fn happened(truth: &Truth, system: System) -> Counts {
    truth
        .events
        .iter()
        .filter(|((of, ..), _)| *of == system)
        .map(|((_, category, action, outcome), count)| {
            ([category.clone(), action.clone(), outcome.as_str().to_owned()], *count)
        })
        .collect()
}

/// All of them.
pub fn sum(counts: &Counts) -> u64 {
    counts.values().sum()
}

/// The other families, which are sums over the same events.
pub fn sums(truth: &Truth, system: System) -> [(&'static str, u64); 5] {
    let logins = truth.logins.iter().filter(|((of, ..), _)| *of == system).map(|(_, count)| count).sum();
    let failures = truth.events.iter().filter(|((of, .., outcome), _)| *of == system && outcome.as_str() == "failure");
    let of = |map: &BTreeMap<System, u64>| map.get(&system).copied().unwrap_or(0);
    [
        ("audit_logins_total", logins),
        ("audit_logouts_total", of(&truth.logouts)),
        ("audit_actions_total", of(&truth.changes)),
        ("audit_failures_total", failures.map(|(_, count)| count).sum()),
        ("audit_tainted_feeds_total", of(&truth.tainted)),
    ]
}

/// What a page tells of a source's backlog: the most in 15 minutes, and when these begin.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts and seconds")]
pub fn backlog(page: &Exposed, source: &str) -> BTreeMap<[String; 3], (u64, Option<i64>)> {
    let of_source = format!("source=\"{source}\"");
    let family = "audit_backlog_peak_15m_events";
    page.beginning(family)
        .filter(|(name, _)| name.contains(&of_source))
        .map(|(name, value)| {
            let begins = page.0.get(&name.replace(family, "audit_backlog_peak_15m_timestamp_seconds"));
            (["category", "action", "outcome"].map(|l| label(name, l)), (*value as u64, begins.map(|at| *at as i64)))
        })
        .collect()
}

/// What `more` has too little of.
pub fn beyond(less: &Counts, more: &Counts) -> Vec<String> {
    less.iter()
        .filter(|(labels, count)| more.get(*labels).copied().unwrap_or(0) < **count)
        .map(|(labels, count)| format!("{labels:?}: {count} against {}", more.get(labels).copied().unwrap_or(0)))
        .collect()
}

/// A bucket that must never run dry: what `rate_limit` promises of every span of time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    pub requests: f64,
    pub per: Duration,
    pub burst: f64,
}

/// `limits`: from when on which limit was configured. In no span more than what the limits of that
/// span allow.
pub fn within_limits(sent: &[Instant], limits: &[(Instant, Limit)]) -> Result<(), String> {
    let Some(&(mut at, mut limit)) = limits.first() else { return Ok(()) };
    let mut tokens = limit.burst;
    let mut changes = limits[1..].iter().peekable();
    for (n, sent) in sent.iter().enumerate() {
        while let Some((changed, to)) = changes.next_if(|(changed, _)| changed < sent) {
            let gained = (*changed - at).as_secs_f64() / limit.per.as_secs_f64() * limit.requests;
            tokens = (tokens + gained).min(limit.burst).min(to.burst);
            (at, limit) = (*changed, *to);
        }
        let gained = (*sent - at).as_secs_f64() / limit.per.as_secs_f64() * limit.requests;
        tokens = (tokens + gained).min(limit.burst) - 1.0;
        at = *sent;
        if tokens < -0.001 {
            return Err(format!("request {n} is one more than {limit:?} allows"));
        }
    }
    Ok(())
}
