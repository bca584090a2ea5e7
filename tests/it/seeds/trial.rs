//! One trial: a world, an exporter and everything that can go wrong, all drawn from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use audit_exporter::clock::Clock;
use audit_exporter::config::{Config, duration_text, parse};
use audit_exporter::connect::Connect;
use audit_exporter::event::System;
use audit_exporter::exporter::{ApplyError, Edges, Exporter};
use audit_exporter::exposition::Format;
use audit_exporter::ledger::{BACKLOG_CELLS, Ledger, TALLY_CELL};
use audit_exporter::simulate::{
    Disk, EventCall, Faults, Injection, Options, RetryForm, Scenario, ScenarioCall, TotalCount, Truth, TruthOf, World,
    credentials as c,
};
use audit_exporter::transport::{InMemory, Transport};
use audit_exporter::window::{Window, floor};
use chrono::{DateTime, TimeDelta, Utc};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redb::{ReadableDatabase, ReadableTable, TableDefinition};
use tokio::time::Instant;

use crate::exposed::{Durable, Exposed};

use super::checks::{Counts, Limit, backlog, beyond, counted, happened, within_limits};
use super::machine::{Machine, Road, Way, Weather};

const HOST: &str = "services.test";
/// How much had happened before the first start.
const HISTORY: Duration = Duration::from_hours(2);
/// The most logins within an hour with a credential that is refused.
const REFUSED_LOGINS_MAX: usize = 6;
/// Events per second and service, beyond which no outage takes days, and no overlap hours.
const RATE_OF_DAYS: f64 = 0.02;
/// A trial that is not at rest by then never will be.
const SETTLE_MAX: Duration = Duration::from_hours(30);

/// What a trial did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub events: u64,
    pub requests: u64,
    pub scrapes: u64,
    pub simulated: Duration,
    /// By kind: crashes, faults, reloads.
    pub did: BTreeMap<String, u64>,
    /// Of every line that was logged, and when.
    pub log: Vec<blake3::Hash>,
}

/// What must never be, and how it came to it.
#[derive(Debug)]
pub struct Violation {
    pub seed: u64,
    pub what: String,
    pub story: String,
}

type Outcome<T = ()> = Result<T, String>;

/// Runs the trial of a seed.
pub fn run(seed: u64) -> Result<Report, Box<Violation>> {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_timer(SinceStart(Arc::default()))
        .with_writer(log.clone())
        .finish();
    let _quiet = tracing::subscriber::set_default(subscriber);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let story = Arc::new(Mutex::new(String::new()));
    let told = Arc::clone(&story);
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            let mut trial = Trial::new(seed, log.clone(), told);
            trial.live_through().await.map(|()| trial.report())
        })
    }));
    let outcome = outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default())
    });
    outcome.map_err(|what| {
        let log = log.tail();
        let story = format!("{}\n--- the end of the log\n{log}", story.lock().unwrap());
        Box::new(Violation { seed, what, story })
    })
}

// --- the log ---

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn tail(&self) -> String {
        let log = self.0.lock().unwrap();
        // of a seed that is looked at alone, all of it
        let shown = if std::env::var_os("AUDIT_EXPORTER_SEEDS").is_some_and(|n| n == "1") { log.len() } else { 10_000 };
        String::from_utf8_lossy(&log[log.len().saturating_sub(shown)..]).into_owned()
    }
}

/// Simulated minutes since the first line.
struct SinceStart(Arc<std::sync::OnceLock<Instant>>);

impl tracing_subscriber::fmt::time::FormatTime for SinceStart {
    fn format_time(&self, to: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        let minutes = self.0.get_or_init(Instant::now).elapsed().as_secs_f64() / 60.0;
        write!(to, "{minutes:>9.2}")
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

// --- the configuration ---

#[derive(Clone, Debug)]
struct Entry {
    name: &'static str,
    system: System,
    configured: bool,
    interval: Duration,
    overlap: Duration,
    limit: Limit,
    page_size: Option<u32>,
    lookback: Duration,
    /// `max_catch_up`, where it is short.
    catch_up: Option<Duration>,
}

fn secret_file(system: System) -> (&'static str, &'static str) {
    match system {
        System::Canvas => ("canvas.secret", c::CANVAS_ACCESS_TOKEN),
        System::Informatica => ("informatica.secret", c::INFORMATICA_PASSWORD),
        System::Activid => ("activid.secret", c::ACTIVID_CLIENT_SECRET),
        System::Losant => ("losant.secret", c::LOSANT_API_TOKEN),
        System::IndexExchange => ("index_exchange.secret", c::INDEX_EXCHANGE_CLIENT_KEY),
    }
}

impl Entry {
    fn draw(name: &'static str, system: System, rate: f64, random: &mut StdRng) -> Self {
        let mut pick = |from: &[u64]| from[random.random_range(0..from.len())];
        let minutes = |minutes| Duration::from_mins(minutes);
        let feed = system == System::IndexExchange;
        Self {
            name,
            system,
            configured: true,
            interval: if feed { minutes(pick(&[2, 5, 15])) } else { Duration::from_secs(pick(&[20, 60, 60, 300])) },
            // every poll reads it again
            overlap: minutes(pick(if rate > RATE_OF_DAYS { &[10, 10, 10, 30] } else { &[10, 10, 30, 200] })),
            limit: Limit {
                requests: pick(&[30, 60, 120, 600]) as f64,
                per: minutes(1),
                burst: pick(&[1, 1, 5, 20]) as f64,
            },
            page_size: (!feed && pick(&[0, 1]) == 1).then(|| u32::try_from(pick(&[100, 300, 1000])).unwrap()),
            lookback: Duration::from_hours(24) * u32::try_from(pick(&[14, 6, 6, 6])).unwrap(),
            catch_up: (!feed && pick(&[0, 0, 0, 1]) == 1).then_some(Duration::from_hours(5)),
        }
    }

    fn text(&self) -> String {
        let file = secret_file(self.system).0;
        let address = match self.system {
            System::Canvas => format!(
                "base_url: https://{HOST}\n      access_token_file: {file}\n      accounts: [{}]",
                c::CANVAS_ACCOUNT
            ),
            System::Informatica => format!(
                "login_url: https://{HOST}\n      username: {}\n      password_file: {file}",
                c::INFORMATICA_USERNAME
            ),
            System::Activid => format!(
                "base_url: https://{HOST}\n      tenant: {}\n      client_id: {}\n      client_secret_file: {file}",
                c::TENANT,
                c::ACTIVID_CLIENT_ID
            ),
            System::Losant => format!(
                "base_url: https://{HOST}\n      instance_id: {}\n      api_token_file: {file}",
                c::LOSANT_INSTANCE_ID
            ),
            System::IndexExchange => format!(
                "base_url: https://{HOST}\n      token_url: https://{HOST}/auth/realms/eventlog/protocol/openid-connect/token\n      client_key_file: {file}\n      subscriptions: [impressions, \"bid events\"]"
            ),
        };
        let mut text = format!(
            "    - name: {}\n      {address}\n      initial_lookback: {}\n      poll_interval: {}\n      overlap: {}\n      rate_limit: {{requests: {}, per: {}, burst: {}}}\n",
            self.name,
            duration_text(self.lookback),
            duration_text(self.interval),
            duration_text(self.overlap),
            self.limit.requests,
            duration_text(self.limit.per),
            self.limit.burst
        );
        if let Some(size) = self.page_size {
            let _ = writeln!(text, "      page_size: {size}");
        }
        if let Some(catch_up) = self.catch_up {
            let _ = writeln!(text, "      max_catch_up: {}", duration_text(catch_up));
        }
        text
    }
}

// --- the trial ---

struct Life {
    exporter: Arc<Exporter>,
    machine: Arc<Machine>,
    /// Its clock and those of the services are days apart.
    astray: bool,
}

/// How the next crash comes.
#[derive(Clone, Copy, Debug)]
enum Crash {
    AtAwait(u64),
    AtWrite(u64),
}

struct Trial {
    random: StdRng,
    rate: f64,
    world: World,
    clock: Clock,
    begun: Instant,
    /// What is wrong with the services from beginning to end.
    fixed: Faults,
    disk: Disk,
    full: bool,
    folder: tempfile::TempDir,
    road: Road,
    entries: Vec<Entry>,
    hold: Duration,
    /// How far the exporter's clock may be off in a life.
    clock_off_max: TimeDelta,
    life: Option<Life>,
    served: Durable,
    limits: BTreeMap<&'static str, Vec<(Instant, Limit)>>,
    /// What was told of backlogs, and found to be right: what is told again need not be looked at again.
    right_backlogs: BTreeSet<(&'static str, [String; 3], u64, i64)>,
    /// Values beyond the cap count as `other`: only sums can be compared.
    flooded: bool,
    at_peace: bool,
    log: Log,
    searched: usize,
    story: Arc<Mutex<String>>,
    did: BTreeMap<String, u64>,
}

impl Trial {
    fn new(seed: u64, log: Log, story: Arc<Mutex<String>>) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let clock = Clock::starting_at(DateTime::from_timestamp(1_790_000_000, 0).unwrap());
        let mut fixed = fixed_faults(&mut random);
        redate(&mut fixed, seed);
        let rate = 0.004 * 30_f64.powf(random.random_range(0.0_f64..1.0).powi(2));
        let world = World::new(Options {
            seed,
            clock: clock.clone(),
            history: HISTORY,
            day: Duration::from_hours(24),
            rate,
            faults: fixed.clone(),
            quiet: false,
        });
        let mut entries = vec![
            Entry::draw("campus", System::Canvas, rate, &mut random),
            Entry::draw("etl", System::Informatica, rate, &mut random),
            Entry::draw("badge", System::Activid, rate, &mut random),
            Entry::draw("iot", System::Losant, rate, &mut random),
            Entry::draw("ads", System::IndexExchange, rate, &mut random),
            Entry::draw("iot2", System::Losant, rate, &mut random),
        ];
        entries[5].configured = false;
        let hold = Duration::from_secs([0, 0, 60, 300][random.random_range(0..4)]);
        let off = [0, 0, 0, 5, 300, 7200][random.random_range(0..6)];
        let trial = Self {
            road: Road::new(seed),
            rate,
            world,
            clock,
            begun: Instant::now(),
            fixed,
            disk: Disk::default(),
            full: false,
            folder: tempfile::tempdir().unwrap(),
            entries,
            hold,
            clock_off_max: TimeDelta::seconds(off),
            life: None,
            // the sum goes down with an event of the future
            served: Durable::default(),
            limits: BTreeMap::new(),
            right_backlogs: BTreeSet::new(),
            flooded: false,
            at_peace: false,
            log,
            searched: 0,
            story,
            did: BTreeMap::new(),
            random,
        };
        for system in System::ALL {
            trial.write_secret(system, secret_file(system).1);
        }
        trial
    }

    /// Everything that happens.
    async fn live_through(&mut self) -> Outcome {
        self.tell(format!(
            "rate {}, hold {:?}, clock off up to {}, {}",
            self.world.truth().total(System::Losant),
            self.hold,
            self.clock_off_max,
            serde_json::to_string(&changed(&self.fixed)).unwrap()
        ));
        self.boot(None).await?;
        let acts = self.random.random_range(4..11);
        for _ in 0..acts {
            self.act().await?;
            self.check_quietly()?;
        }
        self.settle().await
    }

    fn tell(&self, what: impl AsRef<str>) {
        let at = self.begun.elapsed();
        let _ = writeln!(self.story.lock().unwrap(), "{:>8.1} min  {}", at.as_secs_f64() / 60.0, what.as_ref());
    }

    fn count(&mut self, what: &str) {
        *self.did.entry(what.to_owned()).or_default() += 1;
    }

    fn minutes(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_secs(self.random.random_range(range.start * 60..range.end * 60))
    }

    async fn act(&mut self) -> Outcome {
        match self.random.random_range(0..30) {
            0..5 => {
                let time = self.minutes(2..40);
                self.live(time).await
            }
            5..9 => {
                let crash = Crash::AtAwait(self.random.random_range(1..80));
                self.crash(crash).await
            }
            9..13 => {
                let crash = Crash::AtWrite(self.random.random_range(1..150));
                self.crash(crash).await
            }
            13 => {
                if let Some(life) = self.life.take() {
                    self.tell("stopped");
                    self.count("stop");
                    life.exporter.stop().await;
                }
                self.outage().await?;
                self.boot(None).await
            }
            14 => {
                // it dies on its way up, a few times
                self.die("killed");
                for _ in 0..self.random.random_range(1..4) {
                    let crash = if self.random.random_bool(0.5) {
                        Crash::AtAwait(self.random.random_range(1..12))
                    } else {
                        Crash::AtWrite(self.random.random_range(1..60))
                    };
                    self.boot(Some(crash)).await?;
                    let time = self.minutes(0..3);
                    self.rest(time).await;
                    self.die("killed");
                }
                self.boot(None).await
            }
            15..20 => {
                self.trouble();
                let time = self.minutes(3..25);
                self.live(time).await
            }
            20 => {
                self.tell("the services are well again");
                self.world.set_faults(self.fixed.clone());
                let time = self.minutes(3..20);
                self.live(time).await
            }
            21..23 => {
                self.weather();
                let time = self.minutes(3..20);
                self.live(time).await
            }
            23 => {
                let rounds = if self.random.random_bool(0.5) { 1 } else { 12 };
                for _ in 0..rounds {
                    // in the middle of a commit, too
                    let after = self.random.random_range(0..60);
                    self.fill_disk(after);
                    let time = self.minutes(1..20) / rounds;
                    self.live(time).await?;
                    self.make_room();
                    let time = self.minutes(0..10) / rounds;
                    self.live(time).await?;
                }
                Ok(())
            }
            24..26 => self.reload().await,
            26 => self.refused_credential().await,
            _ => {
                self.inject();
                let time = self.minutes(1..10);
                self.live(time).await
            }
        }
    }

    // --- lives ---

    fn config(&self) -> Config {
        let mut text = format!(
            "global:\n  hold_new_series: {}\nstorage:\n  path: simulated\nsources:\n",
            duration_text(self.hold)
        );
        for system in System::ALL {
            let of_system = self.entries.iter().filter(|entry| entry.system == system && entry.configured);
            let entries: String = of_system.map(Entry::text).collect();
            if !entries.is_empty() {
                let _ = write!(text, "  {system}:\n{entries}");
            }
        }
        parse(&text, &self.folder.path().join("audit-exporter.yml")).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
    }

    fn note_limits(&mut self) {
        let now = Instant::now();
        for entry in self.entries.iter().filter(|entry| entry.configured) {
            let limits = self.limits.entry(entry.name).or_default();
            if limits.last().is_none_or(|(_, limit)| *limit != entry.limit) {
                limits.push((now, entry.limit));
            }
        }
    }

    /// Starts the exporter, on what the disk holds.
    async fn boot(&mut self, crash: Option<Crash>) -> Outcome {
        let machine = Arc::new(Machine::default());
        self.arm(&machine, crash);
        let (road, services, of) = (self.road.clone(), self.world.router(), Arc::clone(&machine));
        let connect: Connect = Box::new(move |source| {
            Ok(Arc::new(Way {
                machine: Arc::clone(&of),
                road: road.clone(),
                services: InMemory(services.clone()),
                source: source.name.clone(),
                host: HOST,
            }) as Arc<dyn Transport>)
        });
        let off = self.clock_off_max.num_seconds();
        let mut off = TimeDelta::seconds(if off == 0 { 0 } else { self.random.random_range(-off..=off) });
        let astray = !self.at_peace && self.random.random_bool(0.03);
        if astray {
            let days = TimeDelta::days(self.random.random_range(2..10));
            off = if self.random.random_bool(0.5) { days } else { -days };
            self.count("clock days off");
        }
        self.note_limits();
        let config = self.config();
        let seed = self.random.random();
        let clock = Clock::starting_at(self.clock.now() + off);
        let disk = self.disk.clone();
        let start = async {
            let ledger = Ledger::open_with(disk.opener()).map_err(|error| error.to_string())?;
            let edges = Edges { ledger, clock, connect, external_url: None, seed };
            match Exporter::start(config, edges).await {
                Ok(exporter) => Ok(exporter),
                Err(ApplyError::Ledger(error)) => Err(error.to_string()),
                Err(error) => panic!("{error}"),
            }
        };
        let started = tokio::select! {
            biased;
            () = machine.death() => Err("died at its start".to_owned()),
            started = start => started,
        };
        match started {
            Ok(exporter) => {
                self.tell(format!("started; its clock is off by {off}"));
                self.life = Some(Life { exporter, machine, astray });
                self.count("start");
            }
            Err(why) => {
                self.tell(format!("not started: {why}"));
                if !machine.is_dead() && !self.full {
                    return Err(format!("the store cannot be used: {why}"));
                }
                self.life = None;
                self.disk.lose_power(&mut self.random);
                self.count("crash at the start");
            }
        }
        Ok(())
    }

    fn arm(&mut self, machine: &Arc<Machine>, crash: Option<Crash>) {
        match crash {
            None => {}
            Some(Crash::AtAwait(steps)) => machine.die_at_await(steps),
            Some(Crash::AtWrite(writes)) => machine.die_at_write(&self.disk, writes),
        }
    }

    /// Ends a life where it stands: nothing of it goes on, and what was not flushed may be gone.
    fn die(&mut self, how: &str) {
        if let Some(life) = self.life.take() {
            self.tell(how);
            self.count(how);
            life.machine.die();
            drop(life);
            self.disk.lose_power(&mut self.random);
        }
    }

    async fn crash(&mut self, crash: Crash) -> Outcome {
        if let Some(life) = &self.life {
            let machine = Arc::clone(&life.machine);
            self.tell(format!("will crash: {crash:?}"));
            self.arm(&machine, Some(crash));
            let time = self.minutes(1..30);
            self.live(time).await?;
        }
        self.die("killed");
        self.outage().await?;
        self.boot(None).await
    }

    /// A while without an exporter: mostly short, sometimes hours, rarely days.
    async fn outage(&mut self) -> Outcome {
        let seconds = match self.random.random_range(0..40) {
            0..23 => self.random.random_range(0..30),
            23..31 => self.random.random_range(30..1200),
            31..38 => self.random.random_range(1200..10 * 3600),
            // a trial takes as long as it has events
            _ if self.rate > RATE_OF_DAYS => self.random.random_range(1200..10 * 3600),
            _ => self.random.random_range(86_400..4 * 86_400),
        };
        if seconds > 86_400 {
            self.count("outage of days");
        }
        self.tell(format!("away for {seconds} s"));
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        Ok(())
    }

    /// Time passes. If the machine dies, that is the end of this life.
    async fn rest(&mut self, time: Duration) {
        let _ = self.unless_dead(tokio::time::sleep(time)).await;
    }

    /// What comes of `work` on the machine, unless that dies.
    async fn unless_dead<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let Some(machine) = self.life.as_ref().map(|life| Arc::clone(&life.machine)) else {
            return Some(work.await);
        };
        let done = tokio::select! {
            biased;
            () = machine.death() => None,
            done = work => Some(done),
        };
        // a write that was the last may be part of the work
        if machine.is_dead() {
            self.die("crash");
            return None;
        }
        done
    }

    /// Lives on and is scraped, for so long or until it dies.
    async fn live(&mut self, time: Duration) -> Outcome {
        if self.life.is_none() {
            self.boot(None).await?;
        }
        self.tell(format!("lives on for {} min", time.as_secs() / 60));
        let end = Instant::now() + time;
        let every = self.random.random_range(10..400);
        let mut scrapes = 0;
        while Instant::now() < end && self.life.is_some() {
            let pause = Duration::from_secs(self.random.random_range(1..=every));
            self.rest(pause.min(end - Instant::now())).await;
            self.scrape(scrapes == 0 || scrapes % 8 == 7).await?;
            scrapes += 1;
        }
        Ok(())
    }

    // --- looking ---

    async fn scrape(&mut self, closely: bool) -> Outcome {
        let Some(life) = &self.life else { return Ok(()) };
        let (exporter, astray) = (Arc::clone(&life.exporter), life.astray);
        let Some(page) = self.unless_dead(async { exporter.metrics(Format::Text).await }).await else {
            return Ok(());
        };
        let page = String::from_utf8(page).map_err(|error| error.to_string())?;
        self.look_for_secrets("/metrics", &page)?;
        let page = self.see(&page)?;
        if astray && page.sum("audit_source_up", &[]) != 0.0 {
            return Err("a source is up while its clock and ours are days apart".into());
        }
        if !closely {
            return Ok(());
        }
        let status = serde_json::to_string(&exporter.status()).unwrap();
        self.look_for_secrets("/api/v1/status", &status)?;
        // never more than happened
        let truth = self.world.truth();
        for entry in self.entries.iter().filter(|entry| entry.configured) {
            let (counted, happened) = (counted(&page, entry.name), happened(&truth, entry.system));
            let excess = if self.flooded {
                let (counted, happened) = (sum(&counted), sum(&happened));
                if counted > happened { vec![format!("{counted} against {happened}")] } else { Vec::new() }
            } else {
                beyond(&counted, &happened)
            };
            if !excess.is_empty() {
                return Err(format!("{}: more is counted than happened: {excess:?}", entry.name));
            }
            let of = format!("source=\"{}\"", entry.name);
            for (family, happened) in sums(&truth, entry.system) {
                let counted = page.sum(family, &[&of]);
                if counted > happened as f64 {
                    return Err(format!("{}: {family} is {counted}, and {happened} happened", entry.name));
                }
            }
        }
        self.check_backlog(&page)?;
        // everything the service reported up to the watermark
        for source in exporter.status().sources {
            let Some(watermark) = source.watermark else { continue };
            // how much of it is not to be counted is looked at in the end
            if self.entries.iter().any(|entry| entry.name == source.name && entry.catch_up.is_some()) {
                continue;
            }
            // that a file gained rows is not always listed: someone downloaded it, and it is read again after six hours
            let unlisted = if source.system == System::IndexExchange { TimeDelta::hours(7) } else { TimeDelta::zero() };
            let by = watermark - unlisted - TimeDelta::seconds(self.fixed.of(source.system).clock_skew_seconds + 5);
            let of = TruthOf { to: Some(by), visible_by: Some(by), ..TruthOf::default() };
            let due = self.world.truth_of(&of).total(source.system);
            if source.events < due {
                return Err(format!(
                    "{}: the watermark is {watermark}, before which {due} events were to be seen, but {} are counted",
                    source.name, source.events
                ));
            }
        }
        Ok(())
    }

    /// What is told of a backlog: never more than happened in these 15 minutes, and nothing of a first look-back.
    fn check_backlog(&mut self, page: &Exposed) -> Outcome {
        let mut right = Vec::new();
        let clocks_were_right = self.clock_off_max.is_zero() && !self.did.contains_key("clock days off");
        for entry in self.entries.iter().filter(|entry| entry.configured) {
            let (name, of) = (entry.name, self.fixed.of(entry.system));
            let skew = TimeDelta::seconds(of.clock_skew_seconds);
            for (labels, (events, begins)) in backlog(page, name) {
                if entry.system == System::IndexExchange {
                    return Err(format!("{name}: rows of files are told as a backlog"));
                }
                let Some(begins) = begins else {
                    if events > 0 {
                        return Err(format!("{name}: when {events} events of {labels:?} happened is not told"));
                    }
                    continue;
                };
                let told = (name, labels, events, begins);
                if self.right_backlogs.contains(&told) {
                    continue;
                }
                let labels = &told.1;
                let from = DateTime::from_timestamp(begins, 0).unwrap_or_default();
                let to = from + TALLY_CELL * BACKLOG_CELLS;
                let first = self.limits[name][0].0.duration_since(self.begun);
                let first = self.clock.now() - self.begun.elapsed() + first + skew;
                if clocks_were_right && to + TimeDelta::seconds(5) < first {
                    return Err(format!("{name}: a backlog at {from}, and the first start was at {first}"));
                }
                // the time that decides is the one an event had when it was first read
                if self.flooded || of.redated > 0.0 {
                    continue;
                }
                let of = TruthOf { from: Some(from - skew), to: Some(to - skew), ..TruthOf::default() };
                let happened = happened(&self.world.truth_of(&of), entry.system).get(labels).copied().unwrap_or(0);
                if events > happened || events == 0 {
                    return Err(format!("{name}: a backlog of {events} {labels:?} at {from}, and {happened} happened"));
                }
                right.push(told);
            }
        }
        self.right_backlogs.extend(right);
        Ok(())
    }

    fn see(&mut self, page: &str) -> Outcome<Exposed> {
        let without: Vec<String> =
            self.entries.iter().filter(|entry| !entry.configured).map(|entry| entry.name.to_owned()).collect();
        match self.served.see(page, &without).into_iter().next() {
            Some(wrong) => Err(wrong),
            None => Ok(Exposed::parse(page)),
        }
    }

    fn look_for_secrets(&self, place: &str, text: &str) -> Outcome {
        for secret in c::SECRETS.map(str::to_owned).into_iter().chain(self.world.issued()) {
            if text.contains(&secret) {
                return Err(format!("{place} shows a secret"));
            }
        }
        Ok(())
    }

    /// What needs no page: the log, and who was asked.
    fn check_quietly(&mut self) -> Outcome {
        let new = {
            let log = self.log.0.lock().unwrap();
            String::from_utf8_lossy(&log[self.searched..]).into_owned()
        };
        self.searched += new.len();
        self.look_for_secrets("the log", &new)?;
        if let Some(line) = new.lines().find(|line| line.contains("a fault in this program")) {
            return Err(format!("a panic: {line}"));
        }
        if let Some(astray) = self.road.astray().first() {
            return Err(format!("a request went to {astray}"));
        }
        Ok(())
    }

    // --- what goes wrong ---

    /// After so many operations.
    fn fill_disk(&mut self, after: u64) {
        self.tell(format!("the disk has room for {after} operations"));
        self.count("disk full");
        self.full = true;
        self.disk.fill_after(after);
    }

    fn make_room(&mut self) {
        self.tell("the disk has room");
        self.full = false;
        self.disk.make_room();
    }

    fn weather(&mut self) {
        let mut chance =
            |most: f64| if self.random.random_bool(0.5) { self.random.random_range(0.0..most) } else { 0.0 };
        let weather = Weather {
            refused: chance(0.3),
            lost: chance(0.2),
            cut: chance(0.2),
            delay: Duration::from_secs(8).mul_f64(chance(1.0).powi(3)),
        };
        self.tell(format!("{weather:?}"));
        self.count("weather");
        self.road.set(weather);
    }

    /// Something else is wrong with one or more services.
    fn trouble(&mut self) {
        let mut faults = self.fixed.clone();
        for system in System::ALL {
            if self.random.random_bool(0.5) {
                continue;
            }
            let of = faults.of_mut(system);
            for _ in 0..self.random.random_range(1..4) {
                let often = self.random.random_range(0.02..0.5);
                let seldom = self.random.random_range(0.0..0.05);
                match self.random.random_range(0..31) {
                    0 | 1 => {
                        of.throttle = often;
                        of.retry_after = [0, 1, 7, 60, 400][self.random.random_range(0..5)];
                        of.retry_form = [
                            RetryForm::Seconds,
                            RetryForm::Fraction,
                            RetryForm::Twice,
                            RetryForm::Date,
                            RetryForm::Reset,
                            RetryForm::ResetEpoch,
                        ][self.random.random_range(0..6)];
                        of.old_throttle = self.random.random_bool(0.5);
                    }
                    2 => of.unavailable = often,
                    3 => of.error = often,
                    4 => of.hang = seldom,
                    5 => of.drip = seldom,
                    6 => of.html = often / 3.0,
                    7 => of.truncated = often / 2.0,
                    8 => of.malformed = often,
                    9 => of.deep = seldom,
                    10 => of.huge = seldom / 10.0,
                    11 => of.redirect = seldom,
                    12 => of.unauthorized = often / 2.0,
                    13 => of.forbidden = often / 2.0,
                    14 | 15 => of.expire_every = self.random.random_range(2..12),
                    16 => of.looping = true,
                    17 => of.restarting = true,
                    18 => of.unavailable = 1.0,
                    19 => of.moves = seldom,
                    20 | 21 => of.garbled = often,
                    22 => of.marked = often,
                    23 => of.null_lists = often,
                    24 => of.strange = often / 2.0,
                    25 => of.odd_totals = often,
                    26 => of.link_lost = often * 2.0,
                    27 => of.next_is_this_page = true,
                    28 => of.gzip_members = true,
                    29 => of.total_count = TOTAL_COUNTS[self.random.random_range(0..TOTAL_COUNTS.len())],
                    _ => of.shuffled = often * 2.0,
                }
            }
        }
        self.tell(format!("trouble: {}", serde_json::to_string(&changed(&faults)).unwrap()));
        self.world.set_faults(faults);
    }

    async fn reload(&mut self) -> Outcome {
        for at in 0..self.entries.len() {
            if self.random.random_bool(0.6) {
                continue;
            }
            let drawn = Entry::draw(self.entries[at].name, self.entries[at].system, self.rate, &mut self.random);
            let entry = &mut self.entries[at];
            match self.random.random_range(0..4) {
                0 => entry.configured = !entry.configured,
                1 => entry.interval = drawn.interval,
                2 => entry.limit = drawn.limit,
                _ => entry.page_size = drawn.page_size,
            }
        }
        if self.entries.iter().all(|entry| !entry.configured) {
            self.entries[0].configured = true;
        }
        self.apply().await
    }

    /// Puts the configuration as it is now in force.
    async fn apply(&mut self) -> Outcome {
        let Some(exporter) = self.life.as_ref().map(|life| Arc::clone(&life.exporter)) else { return Ok(()) };
        let names: Vec<_> = self.entries.iter().filter(|entry| entry.configured).map(|entry| entry.name).collect();
        self.tell(format!("reloads with {names:?}"));
        self.count("reload");
        let config = self.config();
        let outcome = self.unless_dead(async { exporter.apply(config).await }).await;
        // until then the limits before were in force
        self.note_limits();
        match outcome {
            Some(Err(error)) if !self.full => Err(format!("a good configuration is refused: {error}")),
            Some(Err(error)) => {
                self.tell(format!("refused: {error}"));
                // what is configured is not what runs: begin anew
                self.die("killed");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A credential that the service refuses, for a while.
    async fn refused_credential(&mut self) -> Outcome {
        let system = System::ALL[self.random.random_range(0..5)];
        if self.life.is_none() {
            self.boot(None).await?;
        }
        self.tell(format!("the credential of {system} is refused from now on"));
        self.count("credential refused");
        // a refusal that is lost on the way is none to who asked
        self.road.set(Weather::default());
        self.write_secret(system, "bm90IHRoZSByaWdodCBvbmU=");
        let before = self.world.requests(system).len();
        let time = self.minutes(5..180);
        self.live(time / 2).await?;
        // whatever else a reload changes
        for entry in self.entries.iter_mut().filter(|entry| entry.system == system) {
            entry.interval += Duration::from_secs(1);
        }
        self.apply().await?;
        self.live(time / 2).await?;
        let refused: Vec<DateTime<Utc>> =
            self.world.requests(system)[before..].iter().filter(|seen| seen.refused).map(|seen| seen.at).collect();
        let most = refused
            .windows(REFUSED_LOGINS_MAX + 1)
            .find(|some| some[REFUSED_LOGINS_MAX] - some[0] < TimeDelta::hours(1));
        if let Some(some) = most {
            return Err(format!("{system}: too many refused logins: {some:?}"));
        }
        self.write_secret(system, secret_file(system).1);
        self.tell(format!("{system} has a good credential again, after {} refused logins", refused.len()));
        Ok(())
    }

    fn write_secret(&self, system: System, secret: &str) {
        let path: &Path = self.folder.path();
        std::fs::write(path.join(secret_file(system).0), secret).unwrap();
    }

    fn inject(&mut self) {
        let four = [System::Canvas, System::Informatica, System::Activid, System::Losant];
        let system = four[self.random.random_range(0..4)];
        let now = self.clock.now();
        let scenario = |name, system, count, at| {
            Injection::Scenario(ScenarioCall { name, system, count: Some(count), at, seconds: 0 })
        };
        let injection = match self.random.random_range(0..8) {
            0 => scenario(Scenario::PasswordSpray, None, 40, None),
            1 => scenario(Scenario::DeletionBurst, Some(System::Losant), 150, None),
            2 => scenario(Scenario::TaintedRecord, None, 3, None),
            3 => scenario(Scenario::NewCategory, Some(system), 2, None),
            4 => {
                // as late as the overlap allows
                let overlap = self
                    .entries
                    .iter()
                    .filter(|entry| entry.system == system)
                    .map(|entry| entry.overlap)
                    .min()
                    .unwrap();
                let latest = overlap.as_secs().saturating_sub(480 + 20);
                let late = TimeDelta::seconds(self.random.random_range(0..=latest).try_into().unwrap());
                scenario(Scenario::LateEvents, Some(system), 9, Some(now - late))
            }
            5 => scenario(Scenario::UpdatedFile, None, 30, None),
            6 if self.random.random_bool(0.2) => {
                self.flooded = true;
                scenario(Scenario::CategoryFlood, Some(system), 90, None)
            }
            // the same thing several times within a second
            _ => Injection::Event(equal_events(system, self.random.random_range(2..30))),
        };
        self.tell(format!("happens: {}", serde_json::to_string(&injection).unwrap()));
        self.world.inject(&injection);
    }

    // --- the end ---

    /// No trouble and no news any more: everything is counted, exactly, soon and for good.
    async fn settle(&mut self) -> Outcome {
        self.tell("peace");
        self.at_peace = true;
        self.make_room();
        self.road.set(Weather::default());
        self.world.set_faults(self.fixed.clone());
        for entry in &mut self.entries {
            entry.configured |= entry.name != "iot2";
        }
        if self.life.as_ref().is_some_and(|life| life.astray) {
            self.tell("the clock is set right");
            self.die("killed");
        }
        if self.life.is_none() {
            self.boot(None).await?;
        }
        self.apply().await?;
        self.world.fall_silent();
        let end = Instant::now() + SETTLE_MAX;
        let mut exact_for = 0;
        let mut last = String::new();
        while exact_for < 3 {
            if Instant::now() > end {
                return Err(format!("not exact after {SETTLE_MAX:?} of peace: {last}"));
            }
            self.rest(Duration::from_mins(11)).await;
            if self.life.is_none() {
                // a crash that was still to come
                self.boot(None).await?;
            }
            self.scrape(true).await?;
            match self.exact().await {
                Ok(()) => exact_for += 1,
                Err(why) => (exact_for, last) = (0, why),
            }
        }
        let page = self.life.as_ref().map(|life| Arc::clone(&life.exporter)).ok_or("dead")?.metrics(Format::Text).await;
        let page = Exposed::parse(&String::from_utf8_lossy(&page));
        if page.sum("audit_source_lost_seconds_total", &[]) > 0.0 {
            self.count("history given up");
        }
        let sent = self.road.sent();
        for (name, limits) in &self.limits {
            let sent = sent.iter().find(|(source, _)| source.to_string() == *name).map_or(&[][..], |(_, sent)| sent);
            within_limits(sent, limits).map_err(|why| format!("{name}: {why}"))?;
        }
        self.memory_is_bounded()?;
        self.check_quietly()
    }

    /// Whether every number is the one that happened.
    async fn exact(&mut self) -> Outcome {
        let Some(life) = &self.life else { return Err("dead".into()) };
        let exporter = Arc::clone(&life.exporter);
        let Some(page) = self.unless_dead(async { exporter.metrics(Format::Text).await }).await else {
            return Err("dead".into());
        };
        let page = self.see(&String::from_utf8(page).unwrap())?;
        let truth = self.world.truth();
        let sum_of = |entry: &Entry, family: &str| page.sum(family, &[&format!("source=\"{}\"", entry.name)]);
        let configured = || self.entries.iter().filter(|entry| entry.configured);
        for entry in configured() {
            for (gauge, expected) in [("audit_source_up", 1.0), ("audit_source_catching_up", 0.0)] {
                if sum_of(entry, gauge) != expected {
                    return Err(format!("{}: {gauge} is {}", entry.name, sum_of(entry, gauge)));
                }
            }
            let lost = sum_of(entry, "audit_source_lost_seconds_total");
            if lost > 0.0 && entry.catch_up.is_none() {
                return Err(format!("{}: {lost} s are given up without need", entry.name));
            }
        }
        for entry in configured() {
            let (counted, happened) = (counted(&page, entry.name), happened(&truth, entry.system));
            let same = if self.flooded { sum(&counted) == sum(&happened) } else { counted == happened };
            if !same && entry.catch_up.is_some() {
                self.only_what_is_said_is_missing(&exporter, entry, sum_of(entry, "audit_source_lost_seconds_total"))
                    .await?;
                continue;
            }
            if !same {
                let missing = beyond(&happened, &counted);
                return Err(format!(
                    "{}: {} counted of {}, missing {missing:?}",
                    entry.name,
                    sum(&counted),
                    sum(&happened)
                ));
            }
            for (family, expected) in sums(&truth, entry.system) {
                if sum_of(entry, family) != expected as f64 {
                    return Err(format!("{}: {family} is {} and not {expected}", entry.name, sum_of(entry, family)));
                }
            }
        }
        Ok(())
    }

    /// Where little is read back: what is not counted lies in no more time than is said to be lost, or was over when
    /// counting began.
    async fn only_what_is_said_is_missing(&self, exporter: &Exporter, entry: &Entry, lost: f64) -> Outcome {
        let name = entry.name;
        let lived = self.begun.elapsed();
        if lost > 0.0 && (entry.catch_up.is_some_and(|catch_up| lived < catch_up) || lost > lived.as_secs_f64()) {
            return Err(format!("{name}: {lost} s are given up without need"));
        }
        let subject = exporter.subject(name).ok_or("gone")?;
        let (from, to) = {
            let state = subject.book.state();
            let read = state.checkpoint().ok_or("nothing was read")?;
            (state.tallied_from().ok_or("nothing was tallied")?, read.head)
        };
        let tallies = subject.ledger.tallies(&subject.book, Window { from, to }).await.map_err(|e| e.to_string())?;
        let mut counted: BTreeMap<DateTime<Utc>, u64> = BTreeMap::new();
        for ((cell, _), count) in tallies {
            *counted.entry(cell).or_default() += count;
        }
        let skew = TimeDelta::seconds(self.fixed.of(entry.system).clock_skew_seconds);
        let begun = self.clock.now() - lived - HISTORY + skew;
        let mut unread = Duration::ZERO;
        let mut cell = floor(from.max(begun), TALLY_CELL) + TALLY_CELL;
        while cell + TALLY_CELL < to {
            let of = TruthOf { from: Some(cell - skew), to: Some(cell + TALLY_CELL - skew), ..TruthOf::default() };
            let happened = self.world.truth_of(&of).total(entry.system);
            let counted = counted.get(&cell).copied().unwrap_or(0);
            if counted > happened {
                return Err(format!("{name}: {counted} of {happened} are counted from {cell} on"));
            }
            if counted < happened {
                unread += TALLY_CELL;
            }
            cell += TALLY_CELL;
        }
        // a cell may be lost in part
        if !unread.is_zero() && (lost == 0.0 || unread.as_secs_f64() > lost + 3600.0) {
            return Err(format!("{name}: {} s are not read, and {lost} s are said to be lost", unread.as_secs()));
        }
        if lost == 0.0 && from <= begun {
            return Err(format!("{name}: events are missing, but no time"));
        }
        Ok(())
    }

    /// What is remembered of single events is of the time that may be read again, no more.
    fn memory_is_bounded(&mut self) -> Outcome {
        self.die("killed");
        let database = self.disk.opener()().map_err(|error| error.to_string())?;
        let read = database.begin_read().unwrap();
        let sources = read.open_table(TableDefinition::<&str, (u32, &[u8])>::new("sources")).unwrap();
        let (seen, timeless) = (
            read.open_table(TableDefinition::<&[u8; 24], ()>::new("seen")).unwrap(),
            read.open_table(TableDefinition::<&[u8; 20], u32>::new("timeless")).unwrap(),
        );
        let number = |bytes: &[u8]| u32::from_be_bytes(*bytes.first_chunk().unwrap());
        for entry in self.entries.iter().filter(|entry| entry.configured && entry.system != System::IndexExchange) {
            let row = sources.get(format!("{}/{}", entry.system, entry.name).as_str()).unwrap().unwrap();
            let (id, record) = row.value();
            let record: serde_json::Value = serde_json::from_slice(record).unwrap();
            let time = |name: &str| record["checkpoint"][name].as_str().unwrap().parse::<DateTime<Utc>>().unwrap();
            // an overlap and an hour, from hour to hour
            let oldest = time("origin").timestamp();
            if time("head").timestamp() - oldest > (entry.overlap + Duration::from_hours(2)).as_secs().cast_signed() {
                return Err(format!("{}: keys are kept from {} on", entry.name, time("origin")));
            }
            let kept = seen.iter().unwrap().map(|row| *row.unwrap().0.value()).filter(|key| number(key) == id);
            let old = kept.filter(|key| i64::from(number(&key[4..])) < oldest).count();
            let kept = timeless.iter().unwrap().map(Result::unwrap).filter(|(key, _)| number(key.value()) == id);
            let old = old + kept.filter(|(_, hour)| i64::from(hour.value()) < oldest / 3600).count();
            if old > 0 {
                return Err(format!("{}: {old} keys from before {} are kept", entry.name, time("origin")));
            }
        }
        Ok(())
    }

    fn report(&mut self) -> Report {
        let truth = self.world.truth();
        let mut did = std::mem::take(&mut self.did);
        did.extend(self.world.met().into_iter().chain(self.road.troubles()).map(|(what, n)| (what.to_owned(), n)));
        Report {
            events: System::ALL.into_iter().map(|system| truth.total(system)).sum(),
            requests: self.road.sent().values().map(|sent| sent.len() as u64).sum(),
            scrapes: self.served.scrapes,
            simulated: self.begun.elapsed(),
            did,
            log: vec![blake3::hash(&self.log.0.lock().unwrap())],
        }
    }
}

fn sum(counts: &Counts) -> u64 {
    counts.values().sum()
}

/// The other families, which are sums over the same events.
fn sums(truth: &Truth, system: System) -> [(&'static str, u64); 5] {
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

fn equal_events(system: System, count: u32) -> EventCall {
    let (verb, kind, status, category, action) = match system {
        System::Canvas => ("logout", None, None, "authentication", "logout"),
        System::Informatica => ("DELETE", Some("USER"), None, "user", "delete"),
        System::Activid => ("deleteUser", Some("Users"), Some("RESPONSE_SUCCESS"), "user", "delete"),
        _ => ("delete", Some("User"), Some("200"), "user", "delete"),
    };
    EventCall {
        system,
        verb: verb.to_owned(),
        kind: kind.map(str::to_owned),
        status: status.map(str::to_owned),
        actor: Some("someone".to_owned()),
        at: None,
        visible_after_ms: 0,
        count: Some(count),
        tainted: false,
        category: category.to_owned(),
        action: action.to_owned(),
        outcome: "success".to_owned(),
        principal: None,
    }
}

/// Half of them are right.
const TOTAL_COUNTS: [TotalCount; 8] = [
    TotalCount::Right,
    TotalCount::Right,
    TotalCount::Right,
    TotalCount::Right,
    TotalCount::Capped,
    TotalCount::PageLength,
    TotalCount::Zero,
    TotalCount::Absent,
];

/// What a service is like, as opposed to what happens to it.
fn fixed_faults(random: &mut StdRng) -> Faults {
    let mut faults = Faults::default();
    let mut flip = |chance: f64| random.random_bool(chance);
    faults.canvas.pseudonyms_route = flip(0.1);
    faults.canvas.string_ids = flip(0.3);
    faults.canvas.flat = flip(0.2);
    faults.canvas.bare_list = flip(0.1);
    faults.losant.exclusive_bounds = flip(0.3);
    faults.informatica.jwt_sessions = flip(0.3);
    faults.index_exchange.single_file_bids = flip(0.3);
    faults.index_exchange.new_file_ids = flip(0.3);
    faults.index_exchange.content_encoding = flip(0.3);
    faults.losant.cap_unsaid = flip(0.3);
    faults.canvas.link_lost = if flip(0.2) { 1.0 } else { 0.0 };
    faults.losant.total_count = TOTAL_COUNTS[random.random_range(0..TOTAL_COUNTS.len())];
    let (flat, bare) = (faults.canvas.flat, faults.canvas.bare_list);
    for system in System::ALL {
        let skew = [0, 0, 0, 0, 90, -90, 5000, -5000][random.random_range(0..8)];
        let of = faults.of_mut(system);
        of.clock_skew_seconds = skew;
        of.count_cap = [0, 0, 0, 60, 200, 256][random.random_range(0..6)];
        of.gzip_members = random.random_bool(0.2);
        // without ids, what is listed twice has happened twice
        let ids = system != System::Canvas || !(flat || bare);
        of.duplicates = if ids && random.random_bool(0.2) { 0.1 } else { 0.0 };
        of.token_seconds = [0, 0, 200][random.random_range(0..3)];
        of.refused_as_200 = random.random_bool(0.3);
        of.ended_as_403 = matches!(system, System::Activid | System::IndexExchange) && random.random_bool(0.3);
        // longer than any two clocks here differ, so that what is meant can be told
        of.cached_seconds = [0, 0, 0, 0, 40_000][random.random_range(0..5)];
        // pages that are not quite what they should be, as long as they live
        of.garbled = [0.0, 0.0, 0.1, 1.0][random.random_range(0..4)];
        of.marked = [0.0, 0.0, 0.0, 1.0][random.random_range(0..4)];
        of.null_lists = [0.0, 1.0][random.random_range(0..2)];
        of.odd_totals = [0.0, 0.0, 0.5, 1.0][random.random_range(0..4)];
        of.session_end = [
            audit_exporter::simulate::SessionEnd::Unauthorized,
            audit_exporter::simulate::SessionEnd::Auth01,
            audit_exporter::simulate::SessionEnd::Html,
        ][random.random_range(0..3)];
    }
    faults
}

/// Events get other times than they had. Drawn by itself, so that all else of a seed stays as it was.
fn redate(faults: &mut Faults, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed ^ 0x7265_6461_7465);
    // without ids, an event with another time is another event
    let ids = !(faults.canvas.flat || faults.canvas.bare_list);
    for of in [&mut faults.informatica, &mut faults.losant].into_iter().chain(ids.then_some(&mut faults.canvas)) {
        of.redated = if random.random_bool(0.3) { random.random_range(0.02..0.5) } else { 0.0 };
    }
}

/// The switches that are not as usual.
fn changed(faults: &Faults) -> serde_json::Value {
    let usual = serde_json::to_value(Faults::default()).unwrap();
    let mut all = serde_json::to_value(faults).unwrap();
    for (system, switches) in all.as_object_mut().unwrap() {
        switches.as_object_mut().unwrap().retain(|switch, value| usual[system][switch] != *value);
    }
    all
}
