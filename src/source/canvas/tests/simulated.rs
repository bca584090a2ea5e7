//! Against the simulated Canvas: whatever it does wrong, every event counts once.

use super::*;
use crate::simulate::{Faults, Options, TruthOf, World, credentials};

#[tokio::test(start_paused = true)]
async fn whatever_the_service_does_wrong_every_event_counts_once() {
    for faults in [
        "",
        "canvas:flat",
        "canvas:bare_list",
        "canvas:string_ids",
        "canvas:duplicates=0.3",
        "canvas:count_cap=7",
        "canvas:count_cap=50,flat",
        "canvas:ignore_time_filter",
        "canvas:looping",
        "canvas:looping,flat",
        "canvas:restarting",
        "canvas:restarting,bare_list",
        "canvas:link_lost=1",
        "canvas:link_lost=0.3,flat,count_cap=50",
        "canvas:link_lost=1,duplicates=0.3,count_cap=60",
        "canvas:gzip_members",
        "canvas:pseudonyms_route",
        "canvas:malformed=0.5",
        "canvas:throttle=0.1,old_throttle",
    ] {
        let clock = Clock::starting_at(DateTime::from_timestamp(T, 0).unwrap());
        let mut wrong = Faults::default();
        if !faults.is_empty() {
            wrong.set(faults).unwrap();
        }
        let world = World::new(Options {
            seed: 7,
            clock: clock.clone(),
            history: Duration::from_hours(1),
            day: Duration::from_hours(24),
            rate: 0.3,
            faults: wrong,
            quiet: false,
        });
        let setup = Setup {
            scopes: [&[&credentials::CANVAS_ACCOUNT.to_string()], &["363"], &["9479", "9480"]],
            page_size: 100,
            token: credentials::CANVAS_ACCESS_TOKEN,
        };
        let mut reader = Reader::new(&setup, world.router(), Arc::default(), clock);
        let window = -3000..-900; // long enough ago for nothing of it to become visible meanwhile
        reader.read(window.clone()).await.unwrap();
        let at = |second| DateTime::from_timestamp(T + second, 0);
        let of = TruthOf { from: at(window.start), to: at(window.end), ..TruthOf::default() };
        let truth = world.truth_of(&of).total(SYSTEM);
        let events = reader.sink.items.iter().filter(|item| matches!(item.what, What::Event(_))).count();
        assert!(truth > 300, "{truth}");
        assert_eq!(events as u64, truth, "{faults}");
        let reported = reader.sink.kinds();
        assert_eq!(reported.is_empty(), !faults.contains("ignore_time_filter"), "{faults}: {reported:?}");
        assert_eq!(reader.stats.errors(ErrorKind::Decode), 0);
    }
}
