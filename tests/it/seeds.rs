//! Whole lives of the exporter under simulated time, network and disk, each drawn from a seed.
//!
//! `cargo test` runs the first 300; `tests/seeds` runs as many, or for as long, as it is told, and
//! prints what was tried. A seed that fails fails again: `tests/seeds --seed 4711` tells its story.

mod checks;
mod machine;
mod trial;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::program::now;
use trial::{Report, Violation};

/// How many seeds `cargo test` tries.
const SEEDS: u64 = 300;

/// How often a long run tells how far it is.
const TOLD_EVERY: Duration = Duration::from_mins(10);

/// A seed that takes longer is named.
const SLOW: Duration = Duration::from_secs(30);

/// What is to be tried: by environment, because a test takes no arguments.
struct Wanted {
    first: u64,
    count: u64,
    time: Option<Duration>,
    /// After so many it ends.
    violations: usize,
}

impl Wanted {
    fn read() -> Self {
        let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
        Self {
            first: number("AUDIT_EXPORTER_FIRST_SEED").unwrap_or(0),
            count: number("AUDIT_EXPORTER_SEEDS").unwrap_or(SEEDS),
            time: number("AUDIT_EXPORTER_MINUTES").map(Duration::from_mins),
            violations: number("AUDIT_EXPORTER_VIOLATIONS").map_or(5, |n| n.try_into().unwrap()),
        }
    }
}

#[test]
fn whatever_happens_every_number_is_right() {
    let wanted = Wanted::read();
    let begun = now();
    let next = AtomicU64::new(wanted.first);
    let total: Mutex<(u64, Report)> = Mutex::default();
    let violations: Mutex<Vec<Box<Violation>>> = Mutex::default();
    let told = AtomicU64::new(0);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let over = match wanted.time {
                Some(time) => begun.elapsed() >= time,
                None => seed >= wanted.first + wanted.count,
            };
            if over || violations.lock().unwrap().len() >= wanted.violations {
                return;
            }
            let started = now();
            let outcome = trial::run(seed);
            if started.elapsed() > SLOW {
                eprintln!("seed {seed} took {} s", started.elapsed().as_secs());
            }
            match outcome {
                Ok(report) => {
                    let mut total = total.lock().unwrap();
                    add(&mut total, report);
                    // a run of hours may be ended from outside
                    let spans = begun.elapsed().as_secs() / TOLD_EVERY.as_secs();
                    if told.fetch_max(spans, Ordering::Relaxed) < spans {
                        eprintln!("{}", table(&total, violations.lock().unwrap().len(), begun.elapsed()));
                    }
                }
                Err(violation) => {
                    eprintln!(
                        "seed {}: {}\n{}\nseed {}: {}",
                        seed, violation.what, violation.story, seed, violation.what
                    );
                    violations.lock().unwrap().push(violation);
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let total = total.into_inner().unwrap();
    let violations = violations.into_inner().unwrap();
    println!("{}", table(&total, violations.len(), begun.elapsed()));
    let failed: Vec<_> = violations.iter().map(|violation| (violation.seed, &violation.what)).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn a_seed_is_the_same_life_each_time() {
    for seed in [3, 7] {
        let [first, second] =
            [0, 0].map(|_| trial::run(seed).map_or_else(|violation| panic!("{violation:?}"), |report| report.log));
        assert_eq!(first, second, "seed {seed}");
    }
}

fn add(total: &mut (u64, Report), report: Report) {
    total.0 += 1;
    let sum = &mut total.1;
    sum.events += report.events;
    sum.requests += report.requests;
    sum.scrapes += report.scrapes;
    sum.simulated += report.simulated;
    for (what, times) in report.did {
        *sum.did.entry(what).or_default() += times;
    }
}

fn table((seeds, sum): &(u64, Report), violations: usize, took: Duration) -> String {
    let mut rows: BTreeMap<&str, u64> = sum.did.iter().map(|(what, times)| (what.as_str(), *times)).collect();
    let mut text = format!("{:<34}{:>12}\n", "seeds without violation", seeds);
    let mut row = |what: &str, times: u64| writeln!(text, "{what:<34}{times:>12}").unwrap();
    row("violations", violations as u64);
    row("events", sum.events);
    row("requests", sum.requests);
    row("scrapes", sum.scrapes);
    row("hours simulated", sum.simulated.as_secs() / 3600);
    row("seconds it took", took.as_secs());
    for what in [
        "start",
        "stop",
        "crash",
        "killed",
        "crash at the start",
        "reload",
        "outage of days",
        "clock days off",
        "history given up",
    ] {
        row(what, rows.remove(what).unwrap_or(0));
    }
    for (what, times) in rows {
        row(&format!("  {what}"), times);
    }
    text
}
