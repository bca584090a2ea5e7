//! One trial: a world, an exporter and everything that can go wrong, all drawn from one seed.

mod entry;
mod log;
mod looking;
mod peace;
mod trouble;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use audit_exporter::clock::Clock;
use audit_exporter::config::{Config, duration_text, parse};
use audit_exporter::connect::Connect;
use audit_exporter::exporter::{ApplyError, Edges, Exporter};
use audit_exporter::ledger::Ledger;
use audit_exporter::simulate::{self, Disk, Faults, Options, SERVICES, Simulated, World};
use audit_exporter::transport::{InMemory, Transport};
use chrono::{DateTime, TimeDelta};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

use self::entry::{Entry, HOST, RATE_OF_DAYS};
use self::log::{Log, SinceStart};
use self::trouble::{changed, fixed_faults, redate};
use super::checks::Limit;
use super::machine::{Machine, Road, Way};
use crate::exposed::Durable;

/// A second source of a system that has another, in the configuration only now and then.
const SECOND: &str = "iot2";
/// How much had happened before the first start.
const HISTORY: Duration = Duration::from_hours(2);

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
        .with_timer(SinceStart::default())
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
        let second = (SECOND, simulate::service("losant").unwrap());
        let sources = SERVICES.iter().map(|service| (service.source, service)).chain([second]);
        let mut entries: Vec<Entry> =
            sources.map(|(name, service)| Entry::draw(name, service, rate, &mut random)).collect();
        for entry in &mut entries {
            entry.configured = entry.name != SECOND;
        }
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
        for service in SERVICES {
            trial.write_secret(service, service.secret());
        }
        trial
    }

    /// Everything that happens.
    async fn live_through(&mut self) -> Outcome {
        self.tell(format!(
            "rate {}, hold {:?}, clock off up to {}, {}",
            self.rate,
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
        // a source may get to its first look after days, and yet everything is to be counted; a day, because a look
        // that fails is tried again
        let since_the_first_event = self.begun.elapsed() + HISTORY + Duration::from_hours(24);
        let mut text = format!(
            "global:\n  hold_new_series: {}\nstorage:\n  path: simulated\nsources:\n",
            duration_text(self.hold)
        );
        for Simulated { system, .. } in SERVICES {
            let of_system = self.entries.iter().filter(|entry| entry.service.system == *system && entry.configured);
            let entries: String = of_system.map(|entry| entry.text(since_the_first_event)).collect();
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

    fn report(&mut self) -> Report {
        let truth = self.world.truth();
        let mut did = std::mem::take(&mut self.did);
        did.extend(self.world.met().into_iter().chain(self.road.troubles()).map(|(what, n)| (what.to_owned(), n)));
        Report {
            events: truth.events.values().sum(),
            requests: self.road.sent().values().map(|sent| sent.len() as u64).sum(),
            scrapes: self.served.scrapes,
            simulated: self.begun.elapsed(),
            did,
            log: vec![blake3::hash(&self.log.0.lock().unwrap())],
        }
    }
}
