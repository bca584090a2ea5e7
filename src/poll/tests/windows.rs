//! Windows: the newest is read first, what came before an error is counted, and no poll takes for ever.

use super::*;

#[tokio::test(start_paused = true)]
async fn the_newest_window_is_read_first_and_history_oldest_first_after_it() {
    let bench = bench(|_| (Duration::ZERO, Vec::new(), Ok(()))).await;
    let now = bench.clock.now();
    run_for(bench.poller, Duration::from_secs(1)).await;
    let windows = bench.windows.lock().unwrap().clone();
    assert_eq!(windows[0], Window { from: now - TimeDelta::minutes(10), to: now });
    assert_eq!(windows[1].from, now - TimeDelta::hours(6));
    assert!(windows[1..].windows(2).all(|pair| pair[0].to == pair[1].from), "{windows:?}");
    assert_eq!(windows.last().unwrap().to, windows[0].from);
    assert_eq!(bench.book.state().checkpoint().unwrap().watermark(), now);
}

#[tokio::test(start_paused = true)]
async fn history_is_read_even_where_the_newest_window_takes_all_the_time_there_is() {
    let bench = bench(|_| (Duration::from_mins(2), Vec::new(), Ok(()))).await;
    run_for(bench.poller, Duration::from_hours(8)).await;
    assert!(!bench.book.state().checkpoint().unwrap().catching_up());
}

#[tokio::test(start_paused = true)]
async fn a_slow_source_is_polled_late_and_not_twice_at_a_time() {
    let bench = bench(|_| (Duration::from_mins(5), Vec::new(), Ok(()))).await;
    run_for(bench.poller, Duration::from_hours(1)).await;
    assert!(bench.stats.polls(PollResult::Success) <= 12);
}

#[tokio::test(start_paused = true)]
async fn what_came_before_an_error_is_counted_and_the_window_is_read_again() {
    let mut tries = 0;
    let bench = bench(move |window| {
        let inside = window.to - TimeDelta::seconds(1);
        tries += 1;
        let end = if tries == 1 { Err(broken()) } else { Ok(()) };
        (Duration::ZERO, vec![page(vec![event(1, inside)]), page(vec![event(2, inside)])], end)
    })
    .await;
    let now = bench.clock.now();
    run_for(bench.poller, Duration::from_secs(30)).await;
    assert_eq!(bench.book.state().total(Counter::Events), 2, "after one failed poll");
    assert!(bench.book.state().checkpoint().unwrap().watermark() < now);
    assert_eq!((bench.stats.polls(PollResult::Error), bench.stats.errors(ErrorKind::Decode)), (1, 1));
    assert!(!bench.stats.up());
    assert!(bench.stats.observed().last_error.as_ref().unwrap().1.contains("garbage"));
}

#[tokio::test(start_paused = true)]
async fn events_outside_the_window_are_noticed_and_not_counted() {
    let bench = bench(|window| {
        let items = vec![
            event(1, window.from - TimeDelta::seconds(5)),
            event(2, window.from),
            event(3, window.to + TimeDelta::seconds(5)),
        ];
        (Duration::ZERO, vec![page(items)], Ok(()))
    })
    .await;
    let mut poller = bench.poller;
    let spec = poller.source.spec();
    poller.cadence.initial_lookback = Duration::from_mins(10);
    let mut step = History::new(Duration::from_hours(1));
    poller.poll(&spec, Instant::now(), &mut step).await.unwrap();
    assert_eq!(bench.book.state().total(Counter::Events), 1);
    assert_eq!(bench.stats.observed().outside_window, 2);
}

#[tokio::test(start_paused = true)]
async fn a_poll_that_never_ends_is_ended() {
    let bench = bench(|_| (Duration::from_hours(1000), Vec::new(), Ok(()))).await;
    run_for(bench.poller, Duration::from_mins(16)).await;
    assert_eq!((bench.stats.polls(PollResult::Error), bench.stats.errors(ErrorKind::Timeout)), (1, 1));
}
