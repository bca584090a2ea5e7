//! `kill -9` at any instant: nothing is lost, nothing is counted twice, nothing served goes back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::program::{EAGER, Process, Running, config_file, now, program, try_ask, until_exact};

const KILLS: u32 = 25;

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

/// The highest value that each durable counter was ever served with.
#[derive(Default)]
struct Served {
    highest: BTreeMap<String, f64>,
    scrapes: u32,
}

impl Served {
    fn see(&mut self, page: &str) {
        let mut families = BTreeSet::new();
        let mut durable = BTreeMap::new();
        for line in page.lines() {
            if let Some(family) = line.strip_prefix("# TYPE ") {
                let (name, kind) = family.split_once(' ').unwrap();
                if matches!(kind, "counter" | "histogram") && !OF_THE_PROCESS.iter().any(|own| name.starts_with(own)) {
                    families.insert(name.to_owned());
                }
            } else if let Some((name, value)) = line.rsplit_once(' ').filter(|_| !line.starts_with('#')) {
                let family = name.split('{').next().unwrap();
                let of = ["", "_bucket", "_sum", "_count"].iter().filter_map(|end| family.strip_suffix(end));
                if of.into_iter().any(|family| families.contains(family)) {
                    durable.insert(name.to_owned(), value.parse::<f64>().unwrap());
                }
            }
        }
        for (name, before) in &self.highest {
            let value = durable.get(name).unwrap_or_else(|| panic!("{name} {before} was served and is gone"));
            assert!(value >= before, "{name} was served as {before} and now as {value}");
        }
        self.highest = durable;
        self.scrapes += 1;
    }
}

#[test]
fn nothing_is_lost_or_doubled_and_nothing_served_goes_back() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--rate=1", "--seed=5"]);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    let file = format!("--config.file={}", config.display());
    let mut random = StdRng::seed_from_u64(20);
    let mut served = Served::default();
    for kill in 0..KILLS {
        simulator.post("/simulator/inject", r#"["deletion_burst", "new_category", "late_events"]"#);
        let life = Duration::from_millis(random.random_range(20..900));
        let begun = now();
        let mut exporter = Process::start(&mut program(&[&file, "--web.listen-address=127.0.0.1:0"]));
        let mut address = None;
        while begun.elapsed() < life {
            if address.is_none() {
                assert!(exporter.running(), "life {kill} ended by itself:\n{}", exporter.printed());
                address = serving(&exporter.printed());
                std::thread::sleep(Duration::from_millis(2));
            } else if let Some(address) = &address {
                let page = try_ask(address, "GET", "/metrics", &[], "").unwrap();
                // 503: the store is not read yet
                if page.status != 503 {
                    assert_eq!(page.status, 200, "{page}");
                    served.see(&page.text());
                }
            }
        }
        exporter.kill();
    }
    assert!(served.scrapes > KILLS, "{} scrapes", served.scrapes);
    simulator.post("/simulator/silence", "");
    let exporter = Running::exporter(&config, &[]);
    let truth = until_exact(&exporter, &simulator, Duration::from_mins(1));
    assert!(truth.values().sum::<u64>() > 1000, "there was traffic");
    let page = exporter.get("/metrics").text();
    served.see(&page);
    let failures = exporter.scrape().sum("audit_failures_total", &[]);
    let failed: u64 = truth.iter().filter(|(labels, _)| labels[3] == "failure").map(|(_, count)| count).sum();
    #[allow(clippy::cast_precision_loss)]
    let failed = failed as f64;
    assert_eq!(failures, failed);
}

fn serving(printed: &str) -> Option<String> {
    let line = printed.lines().find(|line| line.contains("serving") && line.contains("address="))?;
    Some(line.split("address=").nth(1)?.split_whitespace().next()?.trim_matches('"').to_owned())
}
