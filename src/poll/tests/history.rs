//! History: where reading begins, pieces that cannot be read, and what a feed no longer lists.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_piece_of_history_that_fits_into_no_poll_is_read_in_smaller_ones() {
    let bench = bench(|window| {
        let long = window.length() > TimeDelta::minutes(10);
        let time = if long { window.length().to_std().unwrap() / 3 } else { Duration::ZERO };
        (time, Vec::new(), Ok(()))
    })
    .await;
    run_for(bench.poller, Duration::from_hours(12)).await;
    assert!(bench.stats.errors(ErrorKind::Timeout) > 0, "an hour takes twenty minutes, a poll may take fifteen");
    assert!(!bench.book.state().checkpoint().unwrap().catching_up());
}

#[tokio::test(start_paused = true)]
async fn where_nothing_could_be_read_yet_a_restart_does_not_move_where_reading_begins() {
    // how far the first clock was off, and what is read in the end: a look-back of six hours, and max_catch_up
    for (off, read) in [(TimeDelta::zero(), TimeDelta::hours(9)), (TimeDelta::days(-4), TimeDelta::hours(24))] {
        let mut bench = bench(|_| (Duration::ZERO, Vec::new(), Ok(()))).await;
        let register = async |folder: &tempfile::TempDir, at| {
            let ledger = Ledger::open(folder.path()).unwrap();
            let name: SourceName = "test".parse().unwrap();
            let book = ledger.register(&name, System::named("losant"), Catalogue::default(), at).await.unwrap();
            (ledger, book)
        };
        let folder = tempfile::tempdir().unwrap();
        drop(register(&folder, bench.clock.now() + off).await);
        tokio::time::sleep(Duration::from_hours(3)).await;
        let now = bench.clock.now();
        let (ledger, book) = register(&folder, now).await;
        (bench.poller.ledger, bench.poller.book, bench.poller.since) = (ledger, Arc::clone(&book), Instant::now());
        run_for(bench.poller, Duration::from_secs(1)).await;
        assert_eq!(bench.windows.lock().unwrap()[1].from, now - read);
        let state = book.state();
        assert!(!state.checkpoint().unwrap().catching_up());
        assert_eq!(state.total(Counter::LostSeconds), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_feed_reports_what_its_list_no_longer_shows_but_not_of_the_look_back() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::starting_at(DateTime::from_timestamp(1_800_000_000, 0).unwrap());
    // each process comes so many hours after the one before; the first reads nothing, the list shows a day
    for (process, (away, lost)) in [(0, 0), (5, 0), (30, 6), (23, 6)].into_iter().enumerate() {
        tokio::time::sleep(Duration::from_hours(away)).await;
        let Bench { mut poller, .. } = bench(|_| (Duration::ZERO, Vec::new(), Ok(()))).await;
        poller.ledger = Ledger::open(folder.path()).unwrap();
        let registered =
            poller.ledger.register(&poller.name, System::named("losant"), Catalogue::default(), clock.now()).await;
        poller.book = registered.unwrap();
        poller.clock = clock.clone();
        poller.cadence.initial_lookback = poller.cadence.max_catch_up;
        if process == 0 {
            continue;
        }
        let reading =
            Reading::Feed { retention: Duration::from_hours(24), settled_after: Duration::ZERO, when_empty: "" };
        let spec = Spec { reading, ..poller.source.spec() };
        poller.poll(&spec, Instant::now(), &mut History::new(GAP_STEP_FIRST)).await.unwrap();
        let state = poller.book.state();
        assert_eq!(state.total(Counter::LostSeconds), lost * 3600, "process {process}");
        assert_eq!(state.checkpoint().map(|read| (read.head, read.catching_up())), Some((clock.now(), false)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_piece_of_history_that_cannot_be_read_keeps_no_other_waiting_and_is_named_until_it_is_lost() {
    let mark = TimeDelta::minutes(10);
    let start = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
    let bad = start - TimeDelta::hours(3) + TimeDelta::minutes(5);
    let attempts: Arc<Mutex<Vec<Window>>> = Arc::default();
    let noted = Arc::clone(&attempts);
    let bench = bench(move |window| {
        if window.contains(bad) {
            noted.lock().unwrap().push(window);
            return (Duration::ZERO, Vec::new(), Err(broken()));
        }
        let marks = (-40..400).map(|n| start + mark * n).filter(|at| window.contains(*at));
        let id = |at: DateTime<Utc>| u8::try_from((at - start).num_minutes() / 10 + 40).unwrap();
        (Duration::ZERO, vec![page(marks.map(|at| event(id(at), at)).collect())], Ok(()))
    })
    .await;
    let (book, stats) = (Arc::clone(&bench.book), Arc::clone(&bench.stats));
    let mut poller = bench.poller;
    poller.interval = Duration::from_mins(5);
    poller.cadence.max_catch_up = Duration::from_hours(20);
    let stop = CancellationToken::new();
    let task = tokio::spawn(poller.run(stop.clone()));

    tokio::time::sleep(Duration::from_hours(10)).await;
    // six hours before the start, ten since, and what was read of the piece before the bad moment
    let happened = 6 * 6 + 10 * 6;
    let counted = book.state().total(Counter::Events);
    assert!((happened - 1..=happened + 1).contains(&counted), "{counted} of {happened}");
    let checkpoint = book.state().checkpoint().cloned().unwrap();
    assert!(checkpoint.watermark() <= bad && checkpoint.watermark() > bad - TimeDelta::minutes(2), "{checkpoint:?}");
    assert!(checkpoint.catching_up() && checkpoint.gaps.len() == 1 && !stats.up());
    let unread = checkpoint.gaps[0].window();
    assert!(unread.contains(bad) && unread.length() <= TimeDelta::seconds(1), "{unread:?}");
    let error = stats.observed().last_error.as_ref().unwrap().1.clone();
    let (from, to) = (rfc3339_seconds(unread.from), rfc3339_seconds(unread.to));
    assert!(error.contains(&format!("from {from} to {to}")) && error.contains("garbage"), "{error}");
    // smaller each time, and less and less often
    let attempts = attempts.lock().unwrap().clone();
    assert!(attempts.windows(2).all(|two| two[1].length() <= two[0].length()), "{attempts:?}");
    assert!((8..=20).contains(&attempts.len()), "{}", attempts.len());
    // the newest events did not wait
    let newest = bench.windows.lock().unwrap().iter().filter(|window| window.from >= start).count();
    assert!(newest >= 110, "{newest}");
    assert_eq!(book.state().total(Counter::LostSeconds), 0);

    tokio::time::sleep(Duration::from_hours(8)).await;
    assert!(stats.up());
    assert!(!book.state().checkpoint().unwrap().catching_up());
    assert_eq!(book.state().total(Counter::LostSeconds), 1);
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn where_no_piece_can_be_read_few_are_tried() {
    let bench = bench(|window| {
        let newest = window.length() <= TimeDelta::minutes(10) && window.from.timestamp() >= 1_799_999_400;
        (Duration::ZERO, Vec::new(), if newest { Ok(()) } else { Err(broken()) })
    })
    .await;
    run_for(bench.poller, Duration::from_hours(2)).await;
    let asked = bench.windows.lock().unwrap().len();
    assert!(asked < 600, "{asked}");
    assert!(bench.book.state().checkpoint().unwrap().gaps.len() <= 34);
    assert_eq!(
        bench.book.state().checkpoint().unwrap().watermark(),
        DateTime::from_timestamp(1_800_000_000 - 6 * 3600, 0).unwrap()
    );
}

#[tokio::test(start_paused = true)]
async fn a_credential_that_is_refused_is_no_matter_of_a_piece() {
    let mut asked = 0;
    let bench = bench(move |_| {
        asked += 1;
        (Duration::ZERO, Vec::new(), if asked == 1 { Ok(()) } else { Err(refused()) })
    })
    .await;
    run_for(bench.poller, Duration::from_secs(30)).await;
    assert_eq!(bench.windows.lock().unwrap().len(), 2, "the newest, and one piece");
}
