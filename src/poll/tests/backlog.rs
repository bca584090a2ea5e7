//! The backlog: what an outage held back is told by its own time, whichever window reads it.

use super::*;

/// A service with these events, in time order, that does not answer at some time.
fn service(
    events: Vec<Item>,
    down: Window,
    clock: Clock,
) -> impl FnMut(Window) -> (Duration, Vec<Page>, Result<(), Failure>) + Send + Sync {
    move |window| {
        let now = clock.now();
        if down.contains(now) {
            return (Duration::ZERO, Vec::new(), Err(Failure::new(ErrorKind::Server, "asking", "status 503")));
        }
        let there = events.iter().filter(|event| event.at.is_some_and(|at| at <= now && window.contains(at)));
        // small pages, so that windows have several
        let there: Vec<Item> = there.cloned().collect();
        (Duration::ZERO, there.chunks(7).map(|items| page(items.to_vec())).collect(), Ok(()))
    }
}

/// One event every so often, from a moment on.
fn every(seconds: i64, from: DateTime<Utc>, count: i64) -> Vec<Item> {
    (0..count).map(|n| event_of(from + TimeDelta::seconds(n * seconds) + TimeDelta::milliseconds(seconds))).collect()
}

/// What is told of the backlog: the most in 15 minutes, and when these begin, in seconds after `since`.
async fn told(ledger: &Ledger, book: &Arc<Book>, clock: &Clock, since: DateTime<Utc>) -> Option<(u64, i64)> {
    let books = [Arc::clone(book)];
    let (seen, _) = ledger.scrape(&books, clock.now(), Duration::ZERO, &crate::ledger::Client::Other).await;
    let backlog = seen[0].backlog.first()?;
    Some((backlog.events, backlog.begins.map_or(0, |at| (at - since).num_seconds())))
}

/// A bench whose service is `service`; it begins at a whole cell.
async fn bench_of(events: impl FnOnce(DateTime<Utc>) -> (Vec<Item>, Window)) -> (Bench, DateTime<Utc>) {
    let mut bench = bench(|_| unreachable!("it gets another reader")).await;
    let begun = bench.clock.now();
    let (events, down) = events(begun);
    let reader = Box::new(service(events, down, bench.clock.clone()));
    bench.poller.source = Box::new(Scripted { reader, windows: Arc::clone(&bench.windows) });
    (bench, begun)
}

fn minutes(from: DateTime<Utc>, begin: i64, end: i64) -> Window {
    Window { from: from + TimeDelta::minutes(begin), to: from + TimeDelta::minutes(end) }
}

#[tokio::test(start_paused = true)]
async fn what_an_outage_held_back_is_told_by_its_own_time_and_neither_the_look_back_nor_the_present_is() {
    // 70 an hour all the time, and 150 in five minutes of the outage
    let (bench, begun) = bench_of(|begun| {
        let mut events = every(51, begun - TimeDelta::hours(6), 800);
        events.extend(every(2, begun + TimeDelta::minutes(95), 150));
        events.sort_by_key(|event| event.at);
        (events, minutes(begun, 70, 110))
    })
    .await;
    let (book, clock, ledger) = (Arc::clone(&bench.book), bench.clock.clone(), bench.poller.ledger.clone());
    let stop = CancellationToken::new();
    let task = tokio::spawn(bench.poller.run(stop.clone()));
    for _ in 0..109 {
        tokio::time::sleep(Duration::from_mins(1)).await;
        assert_eq!(told(&ledger, &book, &clock, begun).await, None, "at {}", clock.now());
    }
    tokio::time::sleep(Duration::from_mins(8)).await;
    // and what is usual: one every 51 s
    let usual = |from, to| (from * 60 / 51..to * 60 / 51).count() as u64;
    let (events, at) = told(&ledger, &book, &clock, begun).await.unwrap();
    assert!(events.abs_diff(150 + usual(90, 105)) <= 1, "{events}");
    assert!(at == 90 * 60 || at == 95 * 60 || at == 85 * 60, "{at}");
    assert!(!book.state().checkpoint().unwrap().catching_up());
    let before = told(&ledger, &book, &clock, begun).await;
    tokio::time::sleep(Duration::from_mins(50)).await;
    assert_eq!(told(&ledger, &book, &clock, begun).await, before, "what came later is of the present");
    tokio::time::sleep(Duration::from_mins(20)).await;
    assert_eq!(told(&ledger, &book, &clock, begun).await, Some((0, 0)));
    stop.cancel();
    task.await.unwrap();
}

/// The outage, the overlap and what is told then of 60 events within its last five minutes.
async fn after_an_outage(outage: i64, overlap: u64, interval: u64) -> Option<u64> {
    let (mut bench, begun) = bench_of(|begun| {
        let attack = begun + TimeDelta::minutes(60 + outage - 5);
        (every(4, attack, 60), minutes(begun, 60, 60 + outage))
    })
    .await;
    bench.poller.cadence.overlap = Duration::from_mins(overlap);
    bench.poller.interval = Duration::from_mins(interval);
    let (book, clock, ledger) = (Arc::clone(&bench.book), bench.clock.clone(), bench.poller.ledger.clone());
    run_for(bench.poller, Duration::from_mins((60 + outage).unsigned_abs() + interval + 20)).await;
    assert_eq!(book.state().total(Counter::Events), 60);
    told(&ledger, &book, &clock, begun).await.map(|(events, _)| events)
}

#[tokio::test(start_paused = true)]
async fn an_attack_in_an_outage_is_told_whichever_window_reads_it() {
    for (outage, overlap, interval, expected) in [
        // by the newest window beside a gap
        (40, 10, 1, Some(60)),
        // without any gap: rules wait all the same, because the watermark was old
        (40, 200, 1, Some(60)),
        (600, 10, 1, Some(60)),
        // too short for any rule to wait
        (5, 10, 1, None),
        (7, 30, 1, None),
        // one that is always behind
        (40, 10, 35, Some(60)),
    ] {
        assert_eq!(after_an_outage(outage, overlap, interval).await, expected, "{outage} min, overlap {overlap} min");
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_always_behind_is_told_of_hour_by_hour() {
    // polled every 35 minutes: 8 events in each of ten hours
    let (mut bench, begun) = bench_of(|begun| {
        let events = (0..10).flat_map(|hour| every(5, begun + TimeDelta::minutes(60 * hour + 20), 8)).collect();
        (events, minutes(begun, -2, -1))
    })
    .await;
    bench.poller.interval = Duration::from_mins(35);
    let (book, clock, ledger) = (Arc::clone(&bench.book), bench.clock.clone(), bench.poller.ledger.clone());
    let stop = CancellationToken::new();
    let task = tokio::spawn(bench.poller.run(stop.clone()));
    for hour in 0..10 {
        tokio::time::sleep(Duration::from_hours(1)).await;
        let told = told(&ledger, &book, &clock, begun).await;
        assert!(told.is_some_and(|(events, _)| events == 8), "in hour {hour}: {told:?}");
    }
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_first_start_that_fails_for_long_holds_back_what_happened_since() {
    // 200 before the first start, 60 while it failed
    let (bench, begun) = bench_of(|begun| {
        let mut events = every(1, begun - TimeDelta::minutes(30), 200);
        events.extend(every(4, begun + TimeDelta::minutes(20), 60));
        (events, minutes(begun, -1, 45))
    })
    .await;
    let (book, clock, ledger) = (Arc::clone(&bench.book), bench.clock.clone(), bench.poller.ledger.clone());
    run_for(bench.poller, Duration::from_mins(52)).await;
    assert_eq!(book.state().total(Counter::Events), 260);
    assert_eq!(told(&ledger, &book, &clock, begun).await, Some((60, 20 * 60)));
}
