//! What goes wrong in a trial, and what happens that is out of the ordinary.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use audit_exporter::simulate::{
    self, Faults, Injection, RetryForm, SERVICES, Scenario, ScenarioCall, ServiceFaults, SessionEnd, Sessions,
    Simulated, TotalCount,
};
use chrono::{DateTime, TimeDelta, Utc};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::machine::Weather;
use super::entry::{Entry, secret_file};
use super::{Outcome, Trial};

/// The most logins within an hour with a credential that is refused.
const REFUSED_LOGINS_MAX: usize = 6;

impl Trial {
    /// After so many operations.
    pub(super) fn fill_disk(&mut self, after: u64) {
        self.tell(format!("the disk has room for {after} operations"));
        self.count("disk full");
        self.full = true;
        self.disk.fill_after(after);
    }

    pub(super) fn make_room(&mut self) {
        self.tell("the disk has room");
        self.full = false;
        self.disk.make_room();
    }

    pub(super) fn weather(&mut self) {
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
    pub(super) fn trouble(&mut self) {
        let mut faults = self.fixed.clone();
        for Simulated { system, .. } in SERVICES {
            if self.random.random_bool(0.5) {
                continue;
            }
            let of = faults.of_mut(*system);
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

    pub(super) async fn reload(&mut self) -> Outcome {
        for at in 0..self.entries.len() {
            if self.random.random_bool(0.6) {
                continue;
            }
            let drawn = Entry::draw(self.entries[at].name, self.entries[at].service, self.rate, &mut self.random);
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
    pub(super) async fn apply(&mut self) -> Outcome {
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
    pub(super) async fn refused_credential(&mut self) -> Outcome {
        let service = &SERVICES[self.random.random_range(0..SERVICES.len())];
        let system = service.system;
        if self.life.is_none() {
            self.boot(None).await?;
        }
        self.tell(format!("the credential of {system} is refused from now on"));
        self.count("credential refused");
        // a refusal that is lost on the way is none to who asked
        self.road.set(Weather::default());
        self.write_secret(service, "bm90IHRoZSByaWdodCBvbmU=");
        let before = self.world.requests(system).len();
        let time = self.minutes(5..180);
        self.live(time / 2).await?;
        // whatever else a reload changes
        for entry in self.entries.iter_mut().filter(|entry| entry.service.system == system) {
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
        self.write_secret(service, service.secret());
        self.tell(format!("{system} has a good credential again, after {} refused logins", refused.len()));
        Ok(())
    }

    pub(super) fn write_secret(&self, service: &Simulated, secret: &str) {
        let path: &Path = self.folder.path();
        std::fs::write(path.join(secret_file(service)), secret).unwrap();
    }

    pub(super) fn inject(&mut self) {
        // of a feed, only whole files can be made to change
        let logs: Vec<&Simulated> = SERVICES.iter().filter(|service| !service.is_feed).collect();
        let service = logs[self.random.random_range(0..logs.len())];
        let system = service.system;
        let now = self.clock.now();
        let scenario = |name, system, count, at| {
            Injection::Scenario(ScenarioCall { name, system, count: Some(count), at, seconds: 0 })
        };
        let injection = match self.random.random_range(0..8) {
            0 => scenario(Scenario::PasswordSpray, None, 40, None),
            1 => scenario(Scenario::DeletionBurst, None, 150, None),
            2 => scenario(Scenario::TaintedRecord, None, 3, None),
            3 => scenario(Scenario::NewCategory, Some(system), 2, None),
            4 => {
                // as late as the overlap allows
                let overlap = self
                    .entries
                    .iter()
                    .filter(|entry| entry.service.system == system)
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
            _ => Injection::Event(service.event(self.random.random_range(2..30))),
        };
        self.tell(format!("happens: {}", serde_json::to_string(&injection).unwrap()));
        self.world.inject(&injection);
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
pub(super) fn fixed_faults(random: &mut StdRng) -> Faults {
    let mut faults = Faults::default();
    let mut flip = |chance: f64| random.random_bool(chance);
    let mut of = |name: &str, set: &mut dyn FnMut(&mut ServiceFaults)| {
        set(faults.of_mut(simulate::service(name).unwrap().system));
    };
    of("canvas", &mut |of| {
        of.pseudonyms_route = flip(0.1);
        of.string_ids = flip(0.3);
        of.flat = flip(0.2);
        of.bare_list = flip(0.1);
    });
    of("losant", &mut |of| of.exclusive_bounds = flip(0.3));
    of("informatica", &mut |of| of.jwt_sessions = flip(0.3));
    of("index_exchange", &mut |of| {
        of.single_file_bids = flip(0.3);
        of.new_file_ids = flip(0.3);
        of.content_encoding = flip(0.3);
    });
    of("losant", &mut |of| of.cap_unsaid = flip(0.3));
    of("canvas", &mut |of| of.link_lost = if flip(0.2) { 1.0 } else { 0.0 });
    of("losant", &mut |of| of.total_count = TOTAL_COUNTS[random.random_range(0..TOTAL_COUNTS.len())]);
    for Simulated { system, loses_ids, sessions, .. } in SERVICES {
        let skew = [0, 0, 0, 0, 90, -90, 5000, -5000][random.random_range(0..8)];
        let of = faults.of_mut(*system);
        of.clock_skew_seconds = skew;
        of.count_cap = [0, 0, 0, 60, 200, 256][random.random_range(0..6)];
        of.gzip_members = random.random_bool(0.2);
        // without ids, what is listed twice has happened twice
        let without = loses_ids.is_some_and(|loses_ids| loses_ids(of));
        of.duplicates = if !without && random.random_bool(0.2) { 0.1 } else { 0.0 };
        of.token_seconds = [0, 0, 200][random.random_range(0..3)];
        of.refused_as_200 = random.random_bool(0.3);
        of.ended_as_403 = *sessions == Sessions::Tokens && random.random_bool(0.3);
        // longer than any two clocks here differ, so that what is meant can be told
        of.cached_seconds = [0, 0, 0, 0, 40_000][random.random_range(0..5)];
        // pages that are not quite what they should be, as long as they live
        of.garbled = [0.0, 0.0, 0.1, 1.0][random.random_range(0..4)];
        of.marked = [0.0, 0.0, 0.0, 1.0][random.random_range(0..4)];
        of.null_lists = [0.0, 1.0][random.random_range(0..2)];
        of.odd_totals = [0.0, 0.0, 0.5, 1.0][random.random_range(0..4)];
        of.session_end = [SessionEnd::Unauthorized, SessionEnd::Auth01, SessionEnd::Html][random.random_range(0..3)];
    }
    faults
}

/// Events get other times than they had. Drawn by itself, so that all else of a seed stays as it was.
pub(super) fn redate(faults: &mut Faults, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed ^ 0x7265_6461_7465);
    let mut of_services: Vec<&Simulated> = SERVICES.iter().filter(|service| service.has_ids).collect();
    // in an order that leaves the seeds that were tried before what they were
    of_services.sort_by_key(|service| service.loses_ids.is_some());
    for Simulated { system, loses_ids, .. } in of_services {
        let of = faults.of_mut(*system);
        // without ids, an event with another time is another event
        if loses_ids.is_some_and(|loses_ids| loses_ids(of)) {
            continue;
        }
        of.redated = if random.random_bool(0.3) { random.random_range(0.02..0.5) } else { 0.0 };
    }
}

/// The switches that are not as usual.
pub(super) fn changed(faults: &Faults) -> serde_json::Value {
    let usual = serde_json::to_value(Faults::default()).unwrap();
    let mut all = serde_json::to_value(faults).unwrap();
    for (system, switches) in all.as_object_mut().unwrap() {
        switches.as_object_mut().unwrap().retain(|switch, value| usual[system][switch] != *value);
    }
    all
}
