//! Every source against its simulated service in simulated time: after hours of traffic and
//! trouble the counters equal what happened, event by event. The services, their network, the
//! clock and the ledger's page commits are all real code; only sockets and waiting are not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use audit_exporter::backfill::{self, History, Piece};
use audit_exporter::clock::Clock;
use audit_exporter::config::{Config, parse};
use audit_exporter::connect::Connect;
use audit_exporter::demo;
use audit_exporter::event::System;
use audit_exporter::exporter::{Edges, Exporter};
use audit_exporter::exposition::Format;
use audit_exporter::ledger::{BACKLOG_CELLS, Ledger, TALLY_CELL};
use audit_exporter::simulate::{Faults, Options, Simulated, Truth, TruthOf, World, service};
use audit_exporter::transport::{InMemory, Transport};
use audit_exporter::verify::verify;
use audit_exporter::window::floor;
use chrono::{DateTime, TimeDelta, Utc};

use crate::exposed::{Exposed, label};

/// A week of polls costs a second or two, so the interval is that of real life.
const COMMON: &str = "poll_interval: 60s\n      rate_limit: {requests: 10, per: 1s}\n      initial_lookback: 2h";

struct Run {
    world: World,
    clock: Clock,
    folder: tempfile::TempDir,
    service: &'static Simulated,
    common: String,
}

impl Run {
    fn new(service: &'static Simulated, seed: u64, rate: f64) -> Self {
        Self::with(service, seed, rate, Faults::default())
    }

    /// A world that had these faults from its beginning.
    fn with(service: &'static Simulated, seed: u64, rate: f64, faults: Faults) -> Self {
        Self::after(Duration::from_hours(2), service, seed, rate, faults)
    }

    /// The same with so much history.
    fn after(history: Duration, service: &'static Simulated, seed: u64, rate: f64, faults: Faults) -> Self {
        let clock = Clock::starting_at(DateTime::from_timestamp(1_790_000_000, 0).unwrap());
        let world = World::new(Options {
            seed,
            clock: clock.clone(),
            history,
            day: Duration::from_hours(24),
            rate,
            faults,
            quiet: false,
        });
        Self { world, clock, folder: tempfile::tempdir().unwrap(), service, common: COMMON.to_owned() }
    }

    fn config(&self) -> Config {
        let text = demo::config_text("http://127.0.0.1:1", self.folder.path(), "0s", &self.common);
        let mut config = parse(&text, std::path::Path::new("test.yml")).unwrap();
        config.sources.retain(|source| source.system() == self.service.system);
        config
    }

    async fn start(&self) -> Arc<Exporter> {
        let router = self.world.router();
        let connect: Connect = Box::new(move |_| Ok(Arc::new(InMemory(router.clone())) as Arc<dyn Transport>));
        let ledger = Ledger::open(self.folder.path()).unwrap();
        let edges = Edges { ledger, clock: self.clock.clone(), connect, external_url: None, seed: 1 };
        Exporter::start(self.config(), edges).await.unwrap()
    }

    fn fault(&self, flags: &[&str]) {
        let mut faults = Faults::default();
        for flag in flags {
            faults.set(flag).unwrap();
        }
        self.world.set_faults(faults);
    }

    /// Lets everything be read: no new traffic, no trouble, and time for what is late.
    async fn settle(&self) {
        self.world.set_faults(Faults::default());
        self.fall_silent().await;
    }

    /// No new traffic, and time for what is late.
    async fn fall_silent(&self) {
        self.world.fall_silent();
        minutes(20).await;
        // a file may still gain rows; what came at the last moment is read by the next poll
        loop {
            let before = self.world.truth();
            minutes(3).await;
            if self.world.truth() == before {
                break;
            }
        }
    }
}

async fn minutes(minutes: u64) {
    tokio::time::sleep(Duration::from_mins(minutes)).await;
}

async fn exposed(exporter: &Exporter) -> Exposed {
    exporter.metrics(Format::Text).await; // a scrape that sees the zeros
    Exposed::parse(std::str::from_utf8(&exporter.metrics(Format::Text).await).unwrap())
}

type Counts = BTreeMap<(String, String, String), f64>;

/// What a page shows of `audit_events_total`, with the labels of a truth.
fn counted(page: &Exposed) -> Counts {
    shown(page, "audit_events_total{")
}

/// The same of any family with these labels.
fn shown(page: &Exposed, family: &str) -> Counts {
    page.beginning(family)
        .filter(|(_, value)| **value > 0.0)
        .map(|(name, value)| ((label(name, "category"), label(name, "action"), label(name, "outcome")), *value))
        .collect()
}

#[allow(clippy::cast_precision_loss)]
fn expected(truth: &Truth, system: System) -> Counts {
    truth
        .events
        .iter()
        .filter(|((of, ..), _)| *of == system)
        .map(|((_, category, action, outcome), count)| {
            ((category.clone(), action.clone(), outcome.as_str().to_owned()), *count as f64)
        })
        .collect()
}

#[allow(clippy::cast_precision_loss)]
fn assert_exact(page: &Exposed, truth: &Truth, system: System) {
    assert_eq!(counted(page), expected(truth, system), "{system}");
    let logins: u64 = truth.logins.iter().filter(|((of, ..), _)| *of == system).map(|(_, count)| count).sum();
    assert_eq!(page.sum("audit_logins_total", &[]), logins as f64);
    assert_eq!(page.sum("audit_logouts_total", &[]), truth.logouts.get(&system).copied().unwrap_or(0) as f64);
    assert_eq!(page.sum("audit_actions_total", &[]), truth.changes.get(&system).copied().unwrap_or(0) as f64);
    assert_eq!(page.sum("audit_tainted_feeds_total", &[]), truth.tainted.get(&system).copied().unwrap_or(0) as f64);
    assert_eq!(
        page.sum("audit_failures_total", &[]),
        page.sum("audit_events_total", &["outcome=\"failure\""]),
        "failures are the events that failed"
    );
}

async fn hours_of_traffic(service: &'static Simulated, seed: u64, rate: f64, flags: &[&str]) -> Exposed {
    let run = Run::new(service, seed, rate);
    run.fault(flags);
    let exporter = run.start().await;
    minutes(180).await;
    run.settle().await;
    let page = exposed(&exporter).await;
    assert!(run.world.truth().total(service.system) > 100, "there was traffic");
    assert_exact(&page, &run.world.truth(), service.system);
    assert_eq!(page.sum("audit_source_up", &[]), 1.0);
    assert_eq!(page.sum("audit_source_catching_up", &[]), 0.0);
    exporter.stop().await;
    page
}

/// Trouble that every service can make; each kind must show as an error of its own kind.
const TROUBLE: [(&str, &str); 13] = [
    ("throttle=0.2,retry_after=3", "throttled"),
    ("throttle=0.2,retry_after=3,retry_form=reset_epoch", "throttled"),
    ("throttle=0.2", "throttled"),
    ("unavailable=0.2", "server"),
    ("error=0.2", "server"),
    ("hang=0.05", "timeout"),
    ("truncated=0.1", "decode"),
    ("deep=0.05", "decode"),
    ("huge=0.02", "too_large"),
    ("redirect=0.05", "redirect"),
    ("expire_every=7", ""),
    ("expire_every=7,ended_as_403", ""),
    ("cached_seconds=10800,moves=0.01", ""),
];

async fn survives_trouble(service: &'static Simulated) {
    for (n, (fault, kind)) in TROUBLE.into_iter().enumerate() {
        let flag = format!("{}:{fault}", service.system);
        eprintln!("{flag}"); // shown where what follows fails
        let page = hours_of_traffic(service, 100 + n as u64, 0.05, &[&flag]).await;
        if !kind.is_empty() {
            let errors = page.sum("audit_source_errors_total", &[&format!("kind=\"{kind}\"")]);
            assert!(errors > 0.0, "{flag}: no error of kind {kind}");
        }
    }
}

/// A service whose clock is minutes or hours off: its `Date`, its events' times and its filters.
async fn foreign_clock(service: &'static Simulated) {
    for seconds in [300, -300, 7200, -7200] {
        let flag = format!("{}:clock_skew_seconds={seconds}", service.system);
        let mut faults = Faults::default();
        faults.set(&flag).unwrap();
        let run = Run::with(service, 9, 0.05, faults);
        eprintln!("{flag}"); // shown where what follows fails
        let exporter = run.start().await;
        minutes(90).await;
        run.fall_silent().await;
        let page = exposed(&exporter).await;
        assert_exact(&page, &run.world.truth(), service.system);
        let seen = page.sum("audit_source_clock_skew_seconds", &[]);
        assert!((seen - f64::from(seconds)).abs() < 5.0, "{flag}: seen as {seen}");
        exporter.stop().await;
    }
}

/// The most of each label set in any three whole five minutes, of what could first be read after `after` and by `by`.
fn peaks(run: &Run, after: DateTime<Utc>, by: DateTime<Utc>) -> Counts {
    let mut peaks = Counts::new();
    let mut from = floor(after - TimeDelta::hours(2), TALLY_CELL);
    while from < by {
        let visible = |by| {
            let to = from + TALLY_CELL * BACKLOG_CELLS;
            let of = TruthOf { from: Some(from), to: Some(to), visible_by: Some(by), ..TruthOf::default() };
            expected(&run.world.truth_of(&of), run.service.system)
        };
        let before = visible(after);
        for (labels, count) in visible(by) {
            let count = count - before.get(&labels).copied().unwrap_or(0.0);
            let peak = peaks.entry(labels).or_default();
            *peak = count.max(*peak);
        }
        from += TALLY_CELL;
    }
    peaks.retain(|_, peak| *peak > 0.0);
    peaks
}

/// Stopped for six hours, then started again on the same store.
async fn outage(service: &'static Simulated) {
    const BACKLOG: &str = "audit_backlog_peak_15m_events{";
    let run = Run::new(service, 7, 0.05);
    let exporter = run.start().await;
    minutes(20).await;
    let page = exposed(&exporter).await;
    assert!(!page.0.keys().any(|name| name.starts_with(BACKLOG)), "a first look-back is none: {page:?}");
    let read_to = page.sum("audit_source_watermark_timestamp_seconds", &[]);
    #[allow(clippy::cast_possible_truncation)]
    let read_to = DateTime::from_timestamp_millis((read_to * 1000.0) as i64).unwrap();
    exporter.stop().await;
    drop(exporter);
    minutes(360).await;
    let held_back = peaks(&run, read_to, run.clock.now());
    let exporter = run.start().await;
    run.settle().await;
    let page = exposed(&exporter).await;
    if run.service.is_feed {
        assert!(!page.0.keys().any(|name| name.starts_with(BACKLOG)), "rows are nobody's acts");
    } else {
        assert!(held_back.values().sum::<f64>() > 20.0, "there was traffic: {held_back:?}");
        assert_eq!(shown(&page, BACKLOG), held_back);
        let begins = shown(&page, "audit_backlog_peak_15m_timestamp_seconds{");
        assert!(begins.keys().eq(held_back.keys()) && begins.values().all(|at| at % 300.0 == 0.0), "{begins:?}");
    }
    assert_exact(&page, &run.world.truth(), service.system);
    assert_eq!(page.sum("audit_source_lost_seconds_total", &[]), 0.0);
    exporter.stop().await;
}

/// A service whose clock is behind, which a process that begins anew does not know: what it takes for an
/// outage reaches into the service's future, where nothing has been read.
async fn outage_with_a_clock_behind(service: &'static Simulated) {
    let mut faults = Faults::default();
    faults.set(&format!("{}:clock_skew_seconds=-5000", service.system)).unwrap();
    let run = Run::with(service, 8, 0.05, faults);
    for _ in 0..3 {
        let exporter = run.start().await;
        minutes(100).await;
        exporter.stop().await;
        drop(exporter);
        minutes(15).await;
    }
    let exporter = run.start().await;
    run.fall_silent().await;
    let page = exposed(&exporter).await;
    assert_exact(&page, &run.world.truth(), service.system);
    exporter.stop().await;
}

/// A service that gives its events other times than they had when they were first read.
async fn other_times(service: &'static Simulated) {
    let mut faults = Faults::default();
    faults.set(&format!("{}:redated=0.5", service.system)).unwrap();
    let run = Run::with(service, 11, 0.1, faults);
    let exporter = run.start().await;
    minutes(150).await;
    exporter.stop().await;
    drop(exporter);
    minutes(5).await;
    let exporter = run.start().await;
    minutes(60).await;
    run.fall_silent().await;
    let truth = run.world.truth();
    assert!(truth.total(service.system) > 500, "there was traffic");
    assert_exact(&exposed(&exporter).await, &truth, service.system);
    // and the tallies by which `verify` compares are where the service says that the events are now
    let subject = audit_exporter::control::verify_input(&exporter, run.config().sources[0].name.as_str()).unwrap();
    let from = run.clock.now() - TimeDelta::hours(3);
    let report = verify(&subject, from, None, &|_| {}).await.unwrap();
    assert!(report.differences.is_empty() && report.counted > 300, "{report}");
    exporter.stop().await;
}

/// History from before the first start, with a service that fails now and then: the sum of both is what happened.
async fn history_before_the_first_start(service: &'static Simulated) {
    let (history, look_back, before) = if service.is_feed { (8 * 24, 50, 6 * 24) } else { (16, 4, 14) };
    let mut run = Run::after(
        Duration::from_hours(history),
        service,
        12,
        if service.is_feed { 0.002 } else { 0.05 },
        Faults::default(),
    );
    run.common = COMMON.replace("initial_lookback: 2h", &format!("initial_lookback: {look_back}h"));
    let exporter = run.start().await;
    minutes(180).await;
    run.settle().await;
    let page = exposed(&exporter).await;
    run.fault(&[&format!("{}:error=0.1,throttle=0.1", service.system)]);

    let subject = audit_exporter::control::verify_input(&exporter, run.config().sources[0].name.as_str()).unwrap();
    let now = run.clock.now();
    // not on the hour, nor on the minute
    let from = now - TimeDelta::hours(before) - TimeDelta::milliseconds(1_234_567);
    let plan = backfill::plan(&subject, from, None, now).unwrap();
    let too_late = plan.window.to + if service.is_feed { TimeDelta::hours(1) } else { TimeDelta::minutes(5) };
    let refused = backfill::plan(&subject, from, Some(too_late), now).unwrap_err().to_string();
    assert!(refused.contains("would be counted twice"), "{refused}");
    let read_after = async |after| {
        let mut pieces = Vec::new();
        let mut hand = |piece| {
            pieces.push(piece);
            Ok(())
        };
        backfill::read(&subject, &plan, after, &|_| {}, &mut hand).await.unwrap();
        pieces
    };
    let pieces = read_after(plan.window.from).await;
    let reached: Vec<_> = pieces.iter().map(|piece| piece.window.from).chain([plan.window.to]).collect();
    assert!(pieces.len() > 2 && pieces.iter().zip(&reached[1..]).all(|(piece, next)| piece.window.to == *next));
    assert!(pieces.iter().all(|piece| piece.unlisted == 0 && piece.notes.is_empty()), "{pieces:?}");
    let again = read_after(pieces[1].window.to).await;
    let text = |pieces: Vec<Piece>| {
        let mut history = History::new(&plan.source, &plan.system, plan.minutes, plan.vocabulary.clone());
        for piece in pieces {
            history.add(piece.rows);
        }
        let mut text = Vec::new();
        let written = history.write(&vec![("job", "a".into()), ("instance", "b".into())], &mut text).unwrap();
        assert!(written.events > 100, "there was traffic");
        String::from_utf8(text).unwrap()
    };
    let resumed = text(pieces.iter().take(2).cloned().chain(again).collect());
    let text = text(pieces);
    assert_eq!(text, resumed, "wherever it was interrupted");
    // of each series the last value stands
    let values = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
    let before = Exposed::parse(&values.map(|(sample, _)| format!("{sample}\n")).collect::<Vec<_>>().concat());
    let of = |from, to| run.world.truth_of(&TruthOf { from, to, ..TruthOf::default() });
    assert_exact(&before, &of(Some(plan.window.from), Some(plan.window.to)), service.system);
    assert_exact(&page, &of(Some(plan.window.to), None), service.system);
    // and both are the same series
    let own = |page: &Exposed| -> Vec<String> {
        let names =
            page.beginning("audit_events_total{").map(|(name, _)| name.replace(",job=\"a\",instance=\"b\"", ""));
        names.collect()
    };
    let live = own(&page);
    let (both, only_before): (Vec<_>, Vec<_>) = own(&before).into_iter().partition(|name| live.contains(name));
    // label sets that no document lists are born when they are first seen
    assert!(both.len() > only_before.len(), "{only_before:?} beside {both:?}");
    exporter.stop().await;
}

macro_rules! conforms {
    ($($name:ident)*) => {$(
        mod $name {
            use super::*;

            fn simulated() -> &'static Simulated {
                service(stringify!($name)).unwrap()
            }

            #[tokio::test(start_paused = true)]
            async fn every_event_is_counted_exactly_once() {
                let page = hours_of_traffic(simulated(), 1, 0.3, &[]).await;
                assert_eq!(page.sum("audit_source_errors_total", &[]), 0.0);
                assert_eq!(page.sum("audit_source_events_rejected_total", &[]), 0.0);
            }

            #[tokio::test(start_paused = true)]
            async fn trouble_of_every_kind_loses_and_doubles_nothing() {
                survives_trouble(simulated()).await;
            }

            #[tokio::test(start_paused = true)]
            async fn a_service_whose_clock_is_off_is_counted_exactly() {
                foreign_clock(simulated()).await;
            }

            #[tokio::test(start_paused = true)]
            async fn an_outage_is_read_back_whole() {
                outage(simulated()).await;
            }

            #[tokio::test(start_paused = true)]
            async fn a_restart_that_does_not_know_the_service_s_clock_misses_nothing() {
                outage_with_a_clock_behind(simulated()).await;
            }

            #[tokio::test(start_paused = true)]
            async fn the_history_before_the_first_start_can_be_had_exactly() {
                history_before_the_first_start(simulated()).await;
            }

            #[tokio::test(start_paused = true)]
            async fn an_event_that_gets_another_time_is_counted_once() {
                // without ids, it is another event
                if simulated().has_ids {
                    other_times(simulated()).await;
                }
            }
        }
    )*};
}

audit_exporter::each_simulated_service!(conforms);
