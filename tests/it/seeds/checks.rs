//! What must hold of everything that is ever served, whatever happened before.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use audit_exporter::event::System;
use audit_exporter::simulate::Truth;
use tokio::time::Instant;

use crate::exposed::Exposed;

/// Counters of the process's own life, which begin anew with it.
const OF_THE_PROCESS: [&str; 9] = [
    "process_",
    "audit_source_polls_total",
    "audit_source_requests_total",
    "audit_source_errors_total",
    "audit_source_throttled_total",
    "audit_source_rate_limit_wait_seconds_total",
    "audit_source_poll_duration_seconds",
    "audit_source_events_outside_window_total",
    "audit_exporter_",
];

/// Everything that was served so far.
#[derive(Default)]
pub struct Served {
    highest: BTreeMap<String, f64>,
    pub scrapes: u64,
}

impl Served {
    /// A page: no durable counter went back or vanished (but those of a source that is not
    /// configured now), and each was 0 when first served.
    pub fn see(&mut self, page: &str, without: &[String]) -> Result<Exposed, String> {
        let mut counters = BTreeSet::new();
        let mut histograms = BTreeSet::new();
        for line in page.lines() {
            let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) else {
                continue;
            };
            if OF_THE_PROCESS.iter().any(|own| name.starts_with(own)) {
                continue;
            }
            match kind {
                "counter" => drop(counters.insert(name)),
                "histogram" => drop(histograms.insert(name)),
                _ => {}
            }
        }
        let exposed = Exposed::parse(page);
        let mut seen = 0;
        for (name, value) in &exposed.0 {
            let family = name.split('{').next().unwrap_or(name);
            let counter = counters.contains(family);
            let histogram = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|end| family.strip_suffix(end))
                .any(|family| histograms.contains(family));
            // a sum of lateness goes down with an event of the future
            if !counter && (!histogram || family.ends_with("_sum")) {
                continue;
            }
            if let Some(before) = self.highest.get_mut(name) {
                if value < before {
                    return Err(format!("{name} was served as {before} and now as {value}"));
                }
                *before = *value;
                seen += 1;
            } else if counter && *value != 0.0 {
                return Err(format!("{name} was first served as {value}, not as 0"));
            } else {
                self.highest.insert(name.clone(), *value);
                seen += 1;
            }
        }
        let absent = |name: &&String| without.iter().any(|source| name.contains(&format!("source=\"{source}\"")));
        let expected = self.highest.keys().filter(|name| !absent(name)).count();
        if seen < expected {
            let gone: Vec<_> =
                self.highest.keys().filter(|name| !absent(name) && !exposed.0.contains_key(*name)).collect();
            return Err(format!("served before and gone: {gone:?}"));
        }
        self.scrapes += 1;
        Ok(exposed)
    }
}

/// Events by category, action and outcome.
pub type Counts = BTreeMap<[String; 3], u64>;

/// What a page shows of a source's `audit_events_total`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts")]
pub fn counted(page: &Exposed, source: &str) -> Counts {
    let of_source = format!("source=\"{source}\"");
    let label = |name: &str, label: &str| {
        let start = name.find(&format!("{label}=\"")).unwrap() + label.len() + 2;
        name[start..].split('"').next().unwrap().to_owned()
    };
    page.0
        .iter()
        .filter(|(name, value)| name.starts_with("audit_events_total{") && **value > 0.0 && name.contains(&of_source))
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
