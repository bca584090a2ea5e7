//! Clocks that are wrong, ours and the service's: they decide nothing and take nothing back.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_first_start_by_a_wrong_clock_decides_nothing() {
    for off in [TimeDelta::days(5), TimeDelta::days(-9999)] {
        let mut tries = 0;
        let reader = move |window: Window| {
            tries += 1;
            let inside = page(vec![event(1, window.to - TimeDelta::milliseconds(1))]);
            if tries == 1 { (Duration::ZERO, vec![], Err(broken())) } else { (Duration::ZERO, vec![inside], Ok(())) }
        };
        let mut bench = bench(reader).await;
        let (spec, mut step) = (bench.poller.source.spec(), History::new(GAP_STEP_FIRST));
        bench.poller.clock = Clock::starting_at(bench.clock.now() + off);
        bench.poller.poll(&spec, Instant::now(), &mut step).await.unwrap_err();
        assert_eq!(bench.book.state().checkpoint(), None, "no answer has told what time it is");
        tokio::time::sleep(Duration::from_mins(7)).await;
        bench.poller.clock = bench.clock.clone();
        bench.poller.poll(&spec, Instant::now(), &mut step).await.unwrap();
        let checkpoint = bench.book.state().checkpoint().cloned().unwrap();
        assert_eq!((checkpoint.head, checkpoint.gaps.len()), (bench.clock.now(), 1));
        let first = bench.clock.now() - TimeDelta::minutes(7) - TimeDelta::hours(6);
        assert_eq!(
            checkpoint.watermark(),
            first + delta(GAP_STEP_FIRST),
            "six hours before it began, and one was read"
        );
        assert_eq!(bench.book.state().total(Counter::LostSeconds), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_beginning_in_the_future_goes_back_once_the_service_tells_the_time() {
    let mut tries = 0;
    // a page is counted before the first window fails
    let reader = move |window: Window| {
        tries += 1;
        let inside = |id| page(vec![event(id, window.from)]);
        let end = if tries == 1 { Err(broken()) } else { Ok(()) };
        (Duration::ZERO, vec![inside(1), inside(2)], end)
    };
    let mut bench = bench(reader).await;
    let (spec, mut step) = (bench.poller.source.spec(), History::new(GAP_STEP_FIRST));
    bench.poller.clock = Clock::starting_at(bench.clock.now() + TimeDelta::hours(20));
    bench.poller.poll(&spec, Instant::now(), &mut step).await.unwrap_err();
    assert!(bench.book.state().checkpoint().unwrap().is_beginning());
    bench.poller.clock = bench.clock.clone();
    bench.stats.observed().clock_skew = Some(TimeDelta::zero());
    bench.poller.poll(&spec, Instant::now(), &mut step).await.unwrap();
    let checkpoint = bench.book.state().checkpoint().cloned().unwrap();
    assert_eq!(checkpoint.head, bench.clock.now());
    assert!(checkpoint.watermark() < bench.clock.now() && checkpoint.catching_up(), "{checkpoint:?}");
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_falls_back_takes_nothing_back_and_goes_on_asking() {
    let mut bench = bench(|_| (Duration::ZERO, Vec::new(), Ok(()))).await;
    let (spec, soon, mut step) = (bench.poller.source.spec(), Instant::now(), History::new(GAP_STEP_FIRST));
    for _ in 0..9 {
        bench.poller.poll(&spec, soon, &mut step).await.unwrap();
    }
    let before = bench.book.state().checkpoint().cloned().unwrap();
    assert!(!before.catching_up());
    bench.poller.clock = Clock::starting_at(bench.clock.now() - TimeDelta::hours(12));
    let asked = bench.windows.lock().unwrap().len();
    let unread = bench.poller.poll(&spec, soon, &mut step).await.unwrap_err();
    assert!(unread.to_string().contains("are not counted"), "and says so: {unread}");
    assert_eq!(bench.book.state().checkpoint(), Some(&before));
    let windows = bench.windows.lock().unwrap();
    assert!(windows.len() == asked + 1 && !windows[asked].is_empty(), "the answer would tell what time it is");
}

#[tokio::test(start_paused = true)]
async fn a_service_whose_clock_is_set_back_is_down_until_it_shows_times_that_can_be_counted() {
    let bench = bench(|window| {
        let at = window.to - TimeDelta::milliseconds(1);
        let items = if window.length() > TimeDelta::minutes(1) { vec![event_of(at)] } else { vec![] };
        (Duration::ZERO, vec![page(items)], Ok(()))
    })
    .await;
    let skew = |hours| bench.stats.observed().clock_skew = Some(TimeDelta::hours(hours));
    skew(5);
    let stop = CancellationToken::new();
    let task = tokio::spawn(bench.poller.run(stop.clone()));
    tokio::time::sleep(Duration::from_hours(2)).await;
    assert!(bench.stats.up());
    skew(0);
    let counted = bench.book.state().total(Counter::Events);
    let mut down = 0;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_mins(30)).await;
        if bench.stats.up() {
            break;
        }
        down += 1;
        assert_eq!(bench.book.state().total(Counter::Events), counted);
    }
    // the origin is an hour to two and the overlap behind what the clock showed
    assert!((6..=8).contains(&down), "{down}");
    tokio::time::sleep(Duration::from_mins(30)).await;
    assert!(bench.book.state().total(Counter::Events) > counted + 20);
    assert_eq!(bench.book.state().total(Counter::Duplicate), 0);
    stop.cancel();
    task.await.unwrap();
}
