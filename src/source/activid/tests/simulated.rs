//! Against the simulator's truth: every hour is counted exactly, and with few searches.

use super::*;
use crate::simulate::{
    EventCall, Faults, Injection, Options, Scenario, ScenarioCall, TruthOf, World, credentials as sim,
};

fn simulated(rate: f64, faults: &str) -> (World, Box<dyn Source>, Api) {
    let mut switches = Faults::default();
    if !faults.is_empty() {
        switches.set(&format!("activid:{faults}")).unwrap();
    }
    let world = World::new(Options {
        seed: 11,
        clock: Clock::starting_at(noon()),
        history: Duration::from_hours(1) + Duration::from_mins(30),
        day: Duration::from_hours(24),
        rate,
        faults: switches,
        quiet: false,
    });
    let mut activid = config(sim::ACTIVID_CLIENT_ID, Secret::text(sim::ACTIVID_CLIENT_SECRET));
    activid.tenant = sim::TENANT.into();
    let (source, dialect) = activid.build(&(SERVICE.defaults)());
    (world.clone(), source, client(world.router(), dialect))
}

async fn conserves(rate: f64, skew_seconds: i64, faults: &str) {
    let (world, mut source, api) = simulated(rate, faults);
    let tainted = |ms: i64| {
        let at = Some(at(ms));
        world.inject(&Injection::Scenario(ScenarioCall {
            name: Scenario::TaintedRecord,
            system: None,
            count: None,
            at,
            seconds: 0,
        }));
    };
    for ms in [600_000, 600_000, 1_800_000, 3_599_999] {
        tainted(ms);
    }
    let mut book = Book::default();
    // an hour of the service's own time, read over and over while late events come in; where its
    // clock is ahead, the hour ends about now
    let skew = TimeDelta::seconds(skew_seconds);
    let from = floor(at(0) + skew, CELL);
    let window = Window { from, to: from + TimeDelta::hours(1) };
    for _ in 0..5 {
        // a fault may end a reading
        let _ = source.read(window, &api, &mut book).await;
        tokio::time::sleep(Duration::from_mins(1)).await;
    }
    let new = Injection::Event(EventCall {
        count: Some(2),
        at: Some(at(1_234_567)),
        ..serde_json::from_value(json!({"system": "activid", "verb": "deleteUser", "status": "RESPONSE_FAILURE",
            "category": "user", "action": "delete", "outcome": "failure"}))
        .unwrap()
    });
    world.inject(&new);
    let mut skew_only = Faults::default();
    skew_only.set(&format!("activid:clock_skew_seconds={skew_seconds}")).unwrap();
    world.set_faults(skew_only);
    source.read(window, &api, &mut book).await.unwrap();
    let truth =
        world.truth_of(&TruthOf { from: Some(window.from - skew), to: Some(window.to - skew), ..TruthOf::default() });
    let counted: BTreeMap<(event::System, String, String, Outcome), u64> = book
        .events
        .iter()
        .map(|(labels, count)| {
            let (category, action) = (labels.category.to_string(), labels.action.to_string());
            ((SYSTEM, category, action, labels.outcome), *count)
        })
        .fold(BTreeMap::new(), |mut all, (key, count)| {
            *all.entry(key).or_default() += count;
            all
        });
    let expected: BTreeMap<_, _> = truth.events.into_iter().filter(|((system, ..), _)| *system == SYSTEM).collect();
    assert!(expected.values().sum::<u64>() > 100);
    assert_eq!(counted, expected, "{rate} {faults}");
    let logins: BTreeMap<_, u64> = book.events.iter().fold(BTreeMap::new(), |mut all, (labels, count)| {
        if let Class::Login(principal) = labels.class {
            *all.entry((SYSTEM, principal, labels.outcome)).or_default() += count;
        }
        all
    });
    let expected_logins: BTreeMap<_, _> =
        truth.logins.into_iter().filter(|((system, ..), _)| *system == SYSTEM).collect();
    assert_eq!(logins, expected_logins);
    assert_eq!(book.tainted, truth.tainted[&SYSTEM], "{rate} {faults}");
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_the_simulated_service_is_counted_exactly() {
    conserves(0.1, 0, "").await;
}

#[tokio::test(start_paused = true)]
async fn a_busy_hour_behind_a_low_limit_is_counted_exactly() {
    conserves(0.4, 0, "count_cap=13").await;
}

#[tokio::test(start_paused = true)]
async fn an_hour_with_everything_going_wrong_is_counted_exactly() {
    let faults = "throttle=0.05,retry_after=1,unavailable=0.05,expire_every=7,malformed=0.2,truncated=0.02";
    conserves(0.1, 0, faults).await;
}

#[tokio::test(start_paused = true)]
async fn a_window_that_our_clock_has_not_reached_is_read_all_the_same() {
    // as a gap is after a restart, where it is not known yet that the service's clock is ahead
    let (world, mut source, api) = simulated(0.1, "clock_skew_seconds=7200");
    let skew = TimeDelta::hours(2);
    let to = floor(api.now() + skew - TimeDelta::minutes(10), CELL);
    let window = Window { from: to - TimeDelta::hours(1), to };
    let mut book = Book::default();
    source.read(window, &api, &mut book).await.unwrap();
    let of = TruthOf { from: Some(window.from - skew), to: Some(window.to - skew), ..TruthOf::default() };
    let happened = world.truth_of(&of).total(SYSTEM);
    assert!(happened > 50);
    assert_eq!(book.events.values().sum::<u64>(), happened);
}

#[tokio::test(start_paused = true)]
async fn a_service_whose_clock_is_wrong_is_read_by_its_own_time() {
    conserves(0.1, 930, "clock_skew_seconds=930").await;
    conserves(0.1, -930, "clock_skew_seconds=-930").await;
}

#[tokio::test(start_paused = true)]
async fn ordinary_polls_take_few_more_searches_than_there_are_cells() {
    let (world, mut source, api) = simulated(0.1, "");
    let mut book = Book::default();
    let mut cells = 0;
    for _ in 0..60 {
        let to = floor(world.now(), CELL) + delta(CELL);
        let from = floor(world.now() - TimeDelta::minutes(10), CELL);
        cells += usize::try_from((to - from).num_minutes() / 5).unwrap();
        source.read(Window { from, to }, &api, &mut book).await.unwrap();
        tokio::time::sleep(Duration::from_mins(1)).await;
    }
    let searches = world.requests(SYSTEM).iter().filter(|request| !request.login).count();
    let probes = 60;
    assert!(searches < probes + cells * 3 / 2, "{searches} searches for {cells} cells");
}
