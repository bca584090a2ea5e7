//! Against the simulated service: its log is counted exactly, whatever goes wrong.

use std::collections::BTreeMap;

use super::*;
use crate::event;
use crate::simulate::{Faults, Options, TruthOf, World, credentials};

fn counts(events: &HashMap<EventKey, EventLabels>) -> BTreeMap<(event::System, String, String, Outcome), u64> {
    let mut counts = BTreeMap::new();
    for labels in events.values() {
        let key = (SYSTEM, labels.category.to_string(), labels.action.to_string(), labels.outcome);
        *counts.entry(key).or_default() += 1;
    }
    counts
}

#[tokio::test(start_paused = true)]
async fn the_simulated_log_is_counted_exactly_whatever_goes_wrong() {
    for faults in [
        "informatica:retry_after=0",
        "informatica:expire_every=3",
        "informatica:expire_every=2,session_end=auth01,error_shape=v2",
        "informatica:expire_every=3,session_end=auth01,error_shape=problem",
        "informatica:expire_every=2,session_end=html",
        "informatica:jwt_sessions,clock_skew_seconds=4000",
        "informatica:count_cap=100",
        "informatica:count_cap=256",
        "informatica:count_cap=333,duplicates=0.1",
        "informatica:gzip_members",
        "informatica:looping",
        "informatica:looping,count_cap=200",
        "informatica:looping,count_cap=256",
        "informatica:duplicates=0.3",
        "informatica:malformed=1",
        "informatica:malformed=0.5,duplicates=0.3,count_cap=100",
        "informatica:throttle=0.2,retry_after=3,unavailable=0.1,error=0.1",
    ] {
        let clock = Clock::starting_at(at(0));
        let mut switched = Faults::default();
        switched.set(faults).unwrap();
        let world = World::new(Options {
            seed: 11,
            clock: clock.clone(),
            history: Duration::from_hours(3),
            day: Duration::from_hours(24),
            rate: 0.25,
            faults: switched,
            quiet: false,
        });
        let service = Settings {
            base_url: None,
            login_url: "http://localhost:10813".parse().unwrap(),
            username: credentials::INFORMATICA_USERNAME.to_owned(),
            password: Secret::text(credentials::INFORMATICA_PASSWORD),
        };
        let mut common = (SERVICE.defaults)();
        common.ignore_actors = vec![credentials::INFORMATICA_USERNAME.to_lowercase()];
        let mut reader = Reader::new(world.router(), &service, &common, clock.clone());
        let skew = TimeDelta::seconds(world.faults().of(super::SYSTEM).clock_skew_seconds);
        let window = Window { from: at(-3 * 3_600_000) + skew, to: at(-600_000) + skew };
        let mut collected = Collected { window: Some(window), ..Collected::default() };
        let mut polls = 0;
        while let Err(failure) = reader.source.read(window, &reader.api, &mut collected).await {
            polls += 1;
            assert!(polls < 20, "{faults}: {failure}");
        }
        let of = TruthOf {
            from: Some(window.from - skew),
            to: Some(window.to - skew),
            ignored_actors: common.ignore_actors.clone(),
            ..TruthOf::default()
        };
        let truth = world.truth_of(&of);
        assert!(truth.total(SYSTEM) > 1000, "{faults}: too quiet to tell");
        let truth: BTreeMap<_, _> = truth.events.into_iter().filter(|(key, _)| key.0 == SYSTEM).collect();
        assert_eq!(counts(&collected.events), truth, "{faults}");
        assert!(collected.reports.is_empty(), "{faults}");
        let logins = world.requests(SYSTEM).iter().filter(|seen| seen.login).count();
        if !faults.contains("expire") && !faults.contains("throttle") {
            assert_eq!(logins, 1, "{faults}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_wrong_password_costs_one_login() {
    for shape in ["v3", "v2", "problem"] {
        let clock = Clock::starting_at(at(0));
        let mut faults = Faults::default();
        faults.set(&format!("informatica:error_shape={shape}")).unwrap();
        let options = Options {
            seed: 1,
            clock: clock.clone(),
            history: Duration::ZERO,
            day: Duration::from_hours(24),
            rate: 0.0,
            faults,
            quiet: true,
        };
        let world = World::new(options);
        let service = Settings {
            base_url: None,
            login_url: "http://localhost:10813".parse().unwrap(),
            username: credentials::INFORMATICA_USERNAME.to_owned(),
            password: Secret::text("wrong"),
        };
        let mut reader = Reader::new(world.router(), &service, &(SERVICE.defaults)(), clock);
        assert_eq!(reader.ends().await, "auth at login");
        assert_eq!(world.requests(SYSTEM).len(), 1);
    }
}
