//! The families of `/metrics`, computed from what the ledger committed and what the pollers observed.
//!
//! Promises: every source shows the same families, made here and never by a source; event
//! counters show committed values only; a number the program does not know is left out.
//!
//! Leaves to others: the counting (`ledger.rs`), the process itself (`process.rs`), the bytes (`exposition.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};

use crate::clock::{milliseconds_as_seconds, unix_seconds};
use crate::exposition::{Family, Kind, Sample, Value};
use crate::failure::ErrorKind;
use crate::ledger::{Book, Counter, LATENESS_BOUNDS, SeriesKey, Snapshot};
use crate::source::Spec;
use crate::stats::{POLL_DURATION_BOUNDS, PollResult, SourceStats};

/// One source as it is shown.
pub struct SourceView<'a> {
    /// Which source.
    pub book: &'a Book,
    /// What was committed, as this scrape sees it.
    pub snapshot: Snapshot,
    /// What was observed.
    pub stats: &'a SourceStats,
    /// What is always true of it.
    pub spec: &'a Spec,
    /// What is left of our own budget.
    pub own_budget: f64,
}

/// What is known of the exporter itself.
#[derive(Clone, Debug)]
pub struct ExporterView {
    /// The present by its own clock.
    pub now: DateTime<Utc>,
    /// Whether the last reload succeeded.
    pub reload_successful: bool,
    /// When the configuration in force was loaded.
    pub reloaded_at: DateTime<Utc>,
    /// When its store was begun or restored; `None` where that is not known yet.
    pub store_generation: Option<DateTime<Utc>>,
    /// Where people reach it; `None` where nobody has told.
    pub external_url: Option<Arc<str>>,
}

/// Names and values of the labels of a series.
pub type Labels = Vec<(&'static str, Arc<str>)>;

/// Collects samples by family, in the order in which families are first named.
#[derive(Default)]
struct Page {
    families: Vec<Family>,
    places: BTreeMap<&'static str, usize>,
}

impl Page {
    fn family(&mut self, name: &'static str, kind: Kind, help: &'static str) -> &mut Vec<Sample> {
        let place = *self.places.entry(name).or_insert_with(|| {
            self.families.push(Family { name, help, kind, samples: Vec::new() });
            self.families.len() - 1
        });
        &mut self.families[place].samples
    }

    fn gauge(&mut self, name: &'static str, help: &'static str, labels: Labels, value: Option<f64>) {
        let samples = self.family(name, Kind::Gauge, help);
        if let Some(value) = value {
            samples.push(Sample { labels, value: Value::Number(value), created: None });
        }
    }

    fn counter(&mut self, name: &'static str, help: &'static str, labels: Labels, value: Value) {
        self.family(name, Kind::Counter, help).push(Sample { labels, value, created: None });
    }

    fn histogram(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: Labels,
        bounds: &[f64],
        counts: &[u64],
        sum: f64,
    ) {
        let mut cumulative = 0;
        let mut buckets = Vec::with_capacity(bounds.len());
        for (bound, count) in bounds.iter().zip(counts) {
            cumulative += count;
            buckets.push((*bound, cumulative));
        }
        let value = Value::Histogram { buckets, sum, count: counts.iter().sum() };
        self.family(name, Kind::Histogram, help).push(Sample { labels, value, created: None });
    }
}

/// `base` and one more label.
fn with(base: &Labels, name: &'static str, value: &str) -> Labels {
    let mut labels = base.clone();
    labels.push((name, value.into()));
    labels
}

fn time(at: Option<DateTime<Utc>>) -> Option<f64> {
    at.map(unix_seconds)
}

fn flag(fact: bool) -> f64 {
    if fact { 1.0 } else { 0.0 }
}

fn counter_help(counter: Counter) -> &'static str {
    match counter {
        Counter::Events => {
            "Audit events, each counted exactly once, after its commit is durable. The exporter polls on its own timer, because these logs are rate-limited; a scrape only shows committed values."
        }
        Counter::Logins => {
            "Logins among the audit events, polled on the exporter's own timer; failed logins only if the service records them (see audit_source_signal_available)."
        }
        Counter::Logouts => "Logouts among the audit events, polled on the exporter's own timer.",
        Counter::Failures => "Audit events whose outcome is failure, polled on the exporter's own timer.",
        Counter::Actions => {
            "Changes among the audit events: every action except login and logout, polled on the exporter's own timer."
        }
        Counter::Tainted => {
            "Records that the service reports as tainted (integrity check failed); each counts once, however often it is read."
        }
        Counter::Duplicate => {
            "Events that were read again, because of the overlap or because the service repeated them; they are not counted again."
        }
        Counter::Late => "Events that were older than the watermark when they were first seen.",
        Counter::Ignored => "Events of the actors in ignore_actors; they are not counted as events.",
        Counter::Rejected => "Events that could not be parsed; a redacted sample is in the log.",
        Counter::LabelOverflow => {
            "Events counted with the label value other, because the label had reached its limit of distinct values."
        }
        Counter::LostSeconds => {
            "Seconds of history that were not read and can no longer be read (retention, max_catch_up)."
        }
    }
}

/// Everything `/metrics` shows.
pub fn families(exporter: &ExporterView, sources: &[SourceView<'_>]) -> Vec<Family> {
    let mut page = Page::default();
    event_counters(&mut page, sources);
    for source in sources {
        let base: Labels =
            vec![("source", source.book.name().shared()), ("system", source.book.system().as_str().into())];
        state_of_history(&mut page, source, &base);
        backlog(&mut page, &source.snapshot, &base);
        state_of_polling(&mut page, source, &base);
    }
    own(&mut page, exporter);
    page.families
}

/// A family of the ledger's counters, without its samples.
pub fn counter_family(counter: Counter) -> Family {
    Family { name: counter.name(), help: counter_help(counter), kind: Kind::Counter, samples: Vec::new() }
}

/// The labels of a counter of the ledger.
pub fn counter_labels(source: &Arc<str>, system: &Arc<str>, key: &SeriesKey) -> Labels {
    let mut labels: Labels = Vec::with_capacity(5);
    labels.push(("source", Arc::clone(source)));
    if key.counter != Counter::LabelOverflow {
        labels.push(("system", Arc::clone(system)));
    }
    labels.extend(key.counter.label_names().iter().copied().zip(key.values.iter().cloned()));
    labels
}

fn event_counters(page: &mut Page, sources: &[SourceView<'_>]) {
    for counter in Counter::ALL {
        page.family(counter.name(), Kind::Counter, counter_help(counter));
    }
    for source in sources {
        let name = source.book.name().shared();
        let system: Arc<str> = source.book.system().as_str().into();
        for shown in &source.snapshot.counters {
            let labels = counter_labels(&name, &system, &shown.key);
            let sample = Sample { labels, value: Value::Count(shown.value), created: shown.born };
            page.family(shown.key.counter.name(), Kind::Counter, "").push(sample);
        }
    }
}

fn state_of_history(page: &mut Page, source: &SourceView<'_>, base: &Labels) {
    let state = &source.snapshot;
    let checkpoint = state.checkpoint.as_ref();
    page.gauge(
        "audit_source_watermark_timestamp_seconds",
        "Everything the service reported up to this time is counted.",
        base.clone(),
        time(checkpoint.map(crate::window::Checkpoint::watermark)),
    );
    page.gauge(
        "audit_source_catching_up",
        "1 while history older than the overlap is being read.",
        base.clone(),
        Some(flag(checkpoint.is_none_or(crate::window::Checkpoint::catching_up))),
    );
    page.gauge(
        "audit_source_last_event_timestamp_seconds",
        "The time of the newest counted event.",
        base.clone(),
        time(state.last_event),
    );
    if !source.spec.reading.is_feed() {
        let lateness = &state.lateness;
        page.histogram(
            "audit_event_lateness_seconds",
            "How long after it happened an event was first seen.",
            base.clone(),
            &LATENESS_BOUNDS,
            &lateness.buckets,
            milliseconds_as_seconds(lateness.sum_ms),
        );
    }
    #[expect(clippy::cast_precision_loss, reason = "few series fit into memory, compared with 2^53")]
    let held = state.held as f64;
    page.gauge(
        "audit_series_held",
        "New series that are served as 0 until every known scraper has read that 0, so that increase() sees their first event.",
        base.clone(),
        Some(held),
    );
    for (signal, available) in source.spec.signals.rows() {
        page.gauge(
            "audit_source_signal_available",
            "1 if the service can report this signal, 0 if it never does. If it is 0, a 0 in other metrics does not mean that nothing happened.",
            with(base, "signal", signal),
            Some(flag(available)),
        );
    }
    let facts = &state.facts;
    if source.spec.signals.integrity {
        page.gauge(
            "audit_feed_tainted",
            "1 while the last verified read found a tainted record; absent while audit_tainted_feeds_total is still held at 0.",
            base.clone(),
            facts.tainted.map(flag),
        );
        page.gauge(
            "audit_tainted_last_timestamp_seconds",
            "When a tainted record was last found for the first time, by the exporter's clock; shown together with audit_tainted_feeds_total, absent if there never was one.",
            base.clone(),
            time(state.last_tainted),
        );
    }
    for category in source.spec.catalogue.feeds() {
        let newest = facts.feed.as_ref().and_then(|feed| feed.newest_by_category.get(category.as_str()).copied());
        page.gauge(
            "audit_feed_subscription_newest_hour_timestamp_seconds",
            "Start of the newest hour for which a file of this subscription was listed; 0 if none ever was.",
            with(base, "category", category.as_str()),
            Some(time(newest).unwrap_or_default()),
        );
    }
    if let Some(feed) = &facts.feed {
        page.gauge(
            "audit_feed_newest_hour_timestamp_seconds",
            "Start of the newest hour for which a file is listed.",
            base.clone(),
            time(feed.newest_hour),
        );
        #[expect(clippy::cast_precision_loss, reason = "a list of 14 days has few files")]
        let number = |count: u64| Some(count as f64);
        page.gauge(
            "audit_feed_missing_hours",
            "Hours without a file, between the oldest and the newest listed hour.",
            base.clone(),
            number(feed.missing_hours),
        );
        for (status, files) in &feed.files {
            page.gauge(
                "audit_feed_files",
                "Files in the service's list, by its own status.",
                with(base, "status", status),
                number(*files),
            );
        }
    }
}

fn backlog(page: &mut Page, state: &Snapshot, base: &Labels) {
    for backlog in &state.backlog {
        let mut labels = base.clone();
        labels.extend(Counter::Events.label_names().iter().copied().zip(backlog.key.values.iter().cloned()));
        #[expect(clippy::cast_precision_loss, reason = "nobody has 2^53 events in 15 minutes")]
        let events = backlog.events as f64;
        page.gauge(
            "audit_backlog_peak_15m_events",
            "The most events of this label set in any 15 minutes (three whole five minutes), by the events' own times, among those counted while catching up after an outage. Shown for an hour after they were counted, then 0, and absent a day later. Excludes the first look-back of a new source, and rows of files.",
            labels.clone(),
            Some(events),
        );
        page.gauge(
            "audit_backlog_peak_15m_timestamp_seconds",
            "When the 15 minutes of audit_backlog_peak_15m_events began, by the service's clock; absent if that is 0.",
            labels,
            time(backlog.begins),
        );
    }
}

fn state_of_polling(page: &mut Page, source: &SourceView<'_>, base: &Labels) {
    let stats = source.stats;
    let rest = stats.observed().clone();
    page.gauge("audit_source_up", "1 if the last poll succeeded.", base.clone(), Some(flag(stats.up())));
    for result in PollResult::ALL {
        page.counter(
            "audit_source_polls_total",
            "Polls since the start, by result.",
            with(base, "result", result.as_str()),
            Value::Count(stats.polls(result)),
        );
    }
    page.histogram(
        "audit_source_poll_duration_seconds",
        "How long polls took, including the time they waited for the budget.",
        base.clone(),
        &POLL_DURATION_BOUNDS,
        &rest.poll_durations,
        rest.poll_seconds,
    );
    page.gauge(
        "audit_source_last_success_timestamp_seconds",
        "When a poll last succeeded.",
        base.clone(),
        time(rest.last_success),
    );
    for kind in ErrorKind::ALL {
        page.counter(
            "audit_source_errors_total",
            "Failed requests and polls since the start, by kind.",
            with(base, "kind", kind.as_str()),
            Value::Count(stats.errors(kind)),
        );
    }
    let mut requests = BTreeMap::from([(200, 0), (401, 0), (403, 0), (429, 0), (500, 0), (503, 0)]);
    requests.extend(&rest.requests);
    for (code, count) in requests {
        page.counter(
            "audit_source_requests_total",
            "Requests to the service that were answered, by HTTP status.",
            with(base, "code", &code.to_string()),
            Value::Count(count),
        );
    }
    page.counter(
        "audit_source_throttled_total",
        "Times the service asked to slow down.",
        base.clone(),
        Value::Count(stats.throttled()),
    );
    page.counter(
        "audit_source_rate_limit_wait_seconds_total",
        "Seconds spent waiting for the budget, or because the service asked to wait.",
        base.clone(),
        Value::Number(stats.waited_seconds()),
    );
    page.gauge(
        "audit_source_rate_limit_remaining",
        "What is left of the budget: of the service's own if it says so (canvas: X-Rate-Limit-Remaining), else the requests that rate_limit would allow at once.",
        base.clone(),
        Some(rest.remaining.unwrap_or(source.own_budget)),
    );
    page.gauge(
        "audit_source_credential_expiry_timestamp_seconds",
        "When the configured credential expires; absent if that is unknown.",
        base.clone(),
        time(rest.credential_expiry),
    );
    page.gauge(
        "audit_source_clock_skew_seconds",
        "The service's clock minus ours, by its Date header; 0 if they agree within 2 s.",
        base.clone(),
        rest.clock_skew.as_ref().map(TimeDelta::num_milliseconds).map(milliseconds_as_seconds),
    );
    page.counter(
        "audit_source_events_outside_window_total",
        "Events that the service returned from outside the requested window; they are not counted.",
        base.clone(),
        Value::Count(rest.outside_window),
    );
}

fn own(page: &mut Page, exporter: &ExporterView) {
    page.gauge(
        "audit_exporter_build_info",
        "1, with the version and revision of the program.",
        vec![("version", env!("CARGO_PKG_VERSION").into()), ("revision", revision().into())],
        Some(1.0),
    );
    if let Some(url) = &exporter.external_url {
        page.gauge(
            "audit_exporter_external_url_info",
            "1, with the address of --web.external-url, at which people reach this exporter; absent without that flag.",
            vec![("url", Arc::clone(url))],
            Some(1.0),
        );
    }
    page.gauge(
        "audit_exporter_time_seconds",
        "The exporter's clock at the time of the scrape. Subtract timestamp() of the sample to see how far it is off.",
        Vec::new(),
        Some(unix_seconds(exporter.now)),
    );
    page.gauge(
        "audit_exporter_store_generation",
        "When the store was created or restored from a backup, in Unix seconds. It grows when counters went back, and does not change with a restart.",
        Vec::new(),
        time(exporter.store_generation),
    );
    page.gauge(
        "audit_exporter_config_last_reload_successful",
        "Whether the last configuration reload succeeded.",
        Vec::new(),
        Some(flag(exporter.reload_successful)),
    );
    page.gauge(
        "audit_exporter_config_last_reload_success_timestamp_seconds",
        "When the current configuration was loaded.",
        Vec::new(),
        Some(unix_seconds(exporter.reloaded_at)),
    );
    page.counter(
        "audit_exporter_log_lines_dropped_total",
        "Log lines that were dropped, because standard error was not read in time or could not be written.",
        Vec::new(),
        Value::Count(crate::output::lines_dropped()),
    );
    page.families.extend(crate::process::families());
}

/// The commit this program was built from, as `build.rs` found it; `unknown` where there was none to find.
pub fn revision() -> &'static str {
    env!("AUDIT_EXPORTER_REVISION")
}
