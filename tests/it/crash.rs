//! `kill -9` and SIGTERM at any instant: nothing is lost, nothing is counted twice, nothing served
//! goes back, nothing that was not shown as 0 before, no rate limit is exceeded, no secret is told.
//!
//! `tests/torture` runs the same in full, and prints the table.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use audit_exporter::simulate::{self, SERVICES, Simulated};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::exposed::Durable;
use crate::program::{PATIENCE, Process, Running, config_file, eventually, now, program, try_ask, until_exact};

/// Kills where the environment does not say `AUDIT_EXPORTER_KILLS`.
const KILLS: u32 = 30;

/// The budget of each source: small enough to be reached all the time.
const RATE: u64 = 40;
const BURST: u64 = 10;

/// How much later than another a request may reach the simulator than it was sent, on a machine
/// that is busy with other tests: the gate is kept where requests leave, and watched where they
/// arrive.
const JITTER_MS: u64 = 250;

/// What was ever served, and what was wrong with it.
#[derive(Default)]
pub struct Served {
    durable: Durable,
    pub violations: Vec<String>,
}

impl Served {
    pub fn see(&mut self, page: &str) {
        self.violations.extend(self.durable.see(page, &[]));
        self.look_for_secrets("/metrics", page);
    }

    pub fn scrapes(&self) -> u64 {
        self.durable.scrapes
    }

    pub fn look_for_secrets(&mut self, place: &str, text: &str) {
        for secret in simulate::secrets() {
            // quoted, too
            let written = [secret.to_owned(), secret.escape_debug().to_string()];
            if written.iter().any(|written| text.contains(written.as_str())) {
                let begin: String = secret.chars().take(4).collect();
                self.violations.push(format!("the secret {begin}… is told in {place}"));
            }
        }
    }
}

/// A run of many short lives of the program over one store.
struct Torture {
    simulator: Running,
    file: String,
    random: StdRng,
    served: Arc<Mutex<Served>>,
    kills: u32,
    terms: u32,
    /// Lives that ended before anything was served.
    unborn: u32,
}

impl Torture {
    fn violation(&self, what: String) {
        self.served.lock().unwrap().violations.push(what);
    }

    fn live(&mut self) {
        if self.random.random_bool(0.3) {
            self.simulator.post("/simulator/inject", r#"["deletion_burst", "new_category", "late_events"]"#);
        }
        let by_term = self.random.random_bool(0.15);
        // a quarter of the ends come while the program starts
        let life = if self.random.random_bool(0.25) { 1..60 } else { 20..900 };
        let life = Duration::from_millis(self.random.random_range(life));
        let begun = now();
        let mut exporter =
            Process::start(&mut program(&[&self.file, "--web.listen-address=127.0.0.1:0", "--log.level=debug"]));
        let mut scraper = None;
        while begun.elapsed() < life || (by_term && scraper.is_none()) {
            if scraper.is_none() {
                if !exporter.running() {
                    return self.violation(format!("it ended by itself:\n{}", exporter.printed()));
                }
                scraper = serving(&exporter.printed()).map(|address| scrape_on(address, &self.served));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let printed = if by_term {
            self.terms += 1;
            exporter.signal("TERM");
            let (status, printed) = exporter.ended(PATIENCE);
            if status.code() != Some(0) {
                self.violation(format!("SIGTERM: it ended with {status}:\n{printed}"));
            }
            printed
        } else {
            self.kills += 1;
            self.unborn += u32::from(scraper.is_none());
            exporter.kill()
        };
        if let Some(scraper) = scraper {
            scraper.join().unwrap();
        }
        let mut served = self.served.lock().unwrap();
        served.look_for_secrets("the log", &printed);
        if printed.contains("panicked") {
            served.violations.push(format!("a panic:\n{printed}"));
        }
    }

    /// In no span of time more requests than the burst and what that span allows, restarts or not.
    /// Returns how much of the burst was used at most, as seen where requests arrive.
    fn check_rates(&self) -> f64 {
        let mut most = 0;
        let requests = self.simulator.get("/simulator/requests").json();
        for Simulated { system, .. } in SERVICES {
            let times = requests[system.as_str()]["times_ms"].as_array().unwrap();
            assert!(times.len() < 100_000, "the simulator remembers no more");
            // the level of a bucket that leaks at the allowed rate: thousandths of a request
            let (mut level, mut last, mut highest) = (0_u64, 0, 0);
            for time in times.iter().map(|time| time.as_u64().unwrap()) {
                level = level.saturating_sub(time.saturating_sub(last) * RATE) + 1000;
                last = last.max(time);
                highest = highest.max(level);
            }
            most = most.max(highest);
            if highest > BURST * 1000 + JITTER_MS * RATE {
                self.violation(format!("{system}: {} requests above the rate of {RATE} per second", highest / 1000));
            }
        }
        most as f64 / 1000.0
    }
}

/// Asks as a scraper does, whose zeros count, but without a pause until the program is gone, so that a scrape is under way at every end.
pub fn scrape_on(address: String, served: &Arc<Mutex<Served>>) -> std::thread::JoinHandle<()> {
    let served = Arc::clone(served);
    std::thread::spawn(move || {
        for path in ["/metrics"; 19].into_iter().chain(["/", "/api/v1/status"]).cycle() {
            // cut off by the end
            let Ok(page) = try_ask(&address, "GET", path, &[("User-Agent", "Prometheus/3.5.0")], "") else { return };
            let mut served = served.lock().unwrap();
            match (page.status, path) {
                (200, "/metrics") => served.see(&page.text()),
                (200, _) => served.look_for_secrets(path, &page.text()),
                // the store is not read yet
                (503, _) => {}
                _ => served.violations.push(format!("{path}: {page}")),
            }
            drop(served);
            std::thread::sleep(Duration::from_millis(2));
        }
    })
}

/// What the program prints before it answers.
pub fn serving(printed: &str) -> Option<String> {
    let line = printed.lines().find(|line| line.contains("serving") && line.contains("address="))?;
    Some(line.split("address=").nth(1)?.split_whitespace().next()?.trim_matches('"').to_owned())
}

#[test]
fn nothing_is_lost_or_doubled_and_nothing_served_goes_back() {
    let kills = std::env::var("AUDIT_EXPORTER_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let seed = std::env::var("AUDIT_EXPORTER_SEED").map_or(20, |seed| seed.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--rate=1", "--seed=5"]);
    let keys = format!(
        "poll_interval: 200ms\n      rate_limit: {{requests: {RATE}, per: 1s, burst: {BURST}}}\n      initial_lookback: 4h"
    );
    let config = config_file(folder.path(), &simulator, "300ms", &keys);
    let file = format!("--config.file={}", config.display());
    let random = StdRng::seed_from_u64(seed);
    let mut torture = Torture { simulator, file, random, served: Arc::default(), kills: 0, terms: 0, unborn: 0 };
    while torture.kills < kills && torture.served.lock().unwrap().violations.len() < 10 {
        torture.live();
        if torture.kills.is_multiple_of(100) && kills > 100 {
            eprintln!("{} kills, {} SIGTERMs", torture.kills, torture.terms);
        }
    }
    torture.simulator.post("/simulator/silence", "");
    let exporter = Running::exporter(&config, &[]);
    let scraper = scrape_on(exporter.address.clone(), &torture.served);
    let truth = until_exact(&exporter, &torture.simulator, Duration::from_mins(15));
    let sums = eventually(PATIENCE, || sums_agree(&exporter, &torture.simulator));
    let burst = torture.check_rates();
    exporter.process.kill();
    scraper.join().unwrap();
    let served = torture.served.lock().unwrap();

    println!("kills {} (before it served {}), SIGTERMs {}", torture.kills, torture.unborn, torture.terms);
    println!("scrapes {}, series watched {}", served.scrapes(), served.durable.watched());
    println!("events counted {}", truth.values().sum::<u64>());
    for Simulated { system, .. } in SERVICES {
        let of = truth.iter().filter(|(labels, _)| labels[0] == system.as_str()).map(|(_, count)| count);
        println!("  {system} {}", of.sum::<u64>());
    }
    println!("of them: {sums}");
    println!("requests ahead of the rate, at most: {burst} (allowed: {BURST}, and {JITTER_MS} ms of jitter)");
    println!("violations {}", served.violations.len());
    assert!(served.violations.is_empty(), "{:#?}", served.violations);
    assert!(served.scrapes() > u64::from(kills) && torture.terms > 0, "{} scrapes", served.scrapes());
    assert!(truth.values().sum::<u64>() > 1000, "there was traffic");
}

/// The counters that sum up events, each against the truth.
fn sums_agree(exporter: &Running, simulator: &Running) -> Result<String, String> {
    let truth = simulator.get("/simulator/truth").json();
    let page = exporter.scrape();
    let listed = |name: &str, which: &dyn Fn(&serde_json::Value) -> bool| -> f64 {
        let rows = truth[name].as_array().unwrap().iter();
        rows.filter(|row| which(row)).map(|row| row["count"].as_f64().unwrap()).sum()
    };
    let by_system =
        |name: &str| -> f64 { truth[name].as_object().unwrap().values().filter_map(serde_json::Value::as_f64).sum() };
    let sums = [
        ("audit_failures_total", listed("events", &|row| row["outcome"] == "failure")),
        ("audit_logins_total", listed("logins", &|_| true)),
        ("audit_logouts_total", by_system("logouts")),
        ("audit_actions_total", by_system("changes")),
        ("audit_tainted_feeds_total", by_system("tainted")),
        ("audit_source_lost_seconds_total", 0.0),
    ];
    let mut said = Vec::new();
    for (family, happened) in sums {
        let shown = page.sum(family, &[]);
        if shown != happened {
            return Err(format!("{family} {happened}; it is {shown}"));
        }
        said.push(format!("{family} {shown}"));
    }
    Ok(said.join(", "))
}
