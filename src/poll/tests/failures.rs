//! Failures: panics, refused logins and the pauses after them.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// Each reading knows of one event more than the one before, hands over a page for each, and panics after the
/// second in its `falls_at`-th.
struct Falling {
    first: DateTime<Utc>,
    readings: Arc<AtomicU32>,
    falls_at: u32,
    /// A reader that has panicked is not asked again.
    fallen: bool,
}

#[async_trait]
impl Source for Falling {
    fn spec(&self) -> Spec {
        Scripted { reader: Box::new(|_| unreachable!()), windows: Arc::default() }.spec()
    }

    async fn read(&mut self, _: Window, _: &Api, sink: &mut dyn Sink) -> Result<(), Failure> {
        assert!(!self.fallen, "the same reader again");
        let reading = self.readings.fetch_add(1, Ordering::SeqCst) + 1;
        for n in 0..u8::try_from(reading).unwrap() {
            sink.page(page(vec![event(n, self.first + TimeDelta::milliseconds(n.into()))])).await?;
            if reading == self.falls_at && n == 1 {
                self.fallen = true;
                panic!("a fault");
            }
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_reader_is_counted_and_another_takes_its_place() {
    let mut bench = bench(|_| (Duration::ZERO, Vec::new(), Ok(()))).await;
    let (readings, built) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let rebuild = {
        let (readings, built) = (Arc::clone(&readings), Arc::clone(&built));
        let first = bench.clock.now() - TimeDelta::minutes(1);
        move || -> Box<dyn Source> {
            built.fetch_add(1, Ordering::SeqCst);
            Box::new(Falling { first, readings: Arc::clone(&readings), falls_at: 3, fallen: false })
        }
    };
    bench.poller.source = rebuild();
    bench.poller.rebuild = Box::new(rebuild);
    bench.poller.cadence.initial_lookback = Duration::from_mins(10);

    // another source of the same ledger goes on undisturbed
    let other =
        self::bench(|window| (Duration::ZERO, vec![page(vec![event_of(window.to - TimeDelta::seconds(1))])], Ok(())))
            .await;
    let mut poller = other.poller;
    poller.name = "other".parse().unwrap();
    poller.ledger = bench.poller.ledger.clone();
    let now = bench.clock.now();
    let book = poller.ledger.register(&poller.name, System::named("losant"), Catalogue::default(), now).await.unwrap();
    poller.book = Arc::clone(&book);
    poller.cadence.initial_lookback = Duration::from_mins(10);

    let time = Duration::from_mins(8);
    let both = (run_for(bench.poller, time), run_for(poller, time));
    tokio::join!(both.0, both.1);
    assert_eq!((bench.stats.polls(PollResult::Error), bench.stats.errors(ErrorKind::Panic)), (1, 1));
    assert_eq!(bench.stats.errors(ErrorKind::Decode), 0);
    assert_eq!(built.load(Ordering::SeqCst), 2);
    assert!(bench.stats.up());
    let error = bench.stats.observed().last_error.as_ref().unwrap().1.clone();
    assert!(error.contains("a fault in this program (a panic): a fault"), "{error}");
    let readings = u64::from(readings.load(Ordering::SeqCst));
    assert!(readings >= 6, "{readings}");
    assert_eq!(bench.book.state().total(Counter::Events), readings);
    assert_eq!(other.stats.polls(PollResult::Error), 0);
    assert!(other.stats.polls(PollResult::Success) >= 8);
    assert_eq!(book.state().total(Counter::Events), other.stats.polls(PollResult::Success));
}

#[tokio::test(start_paused = true)]
async fn a_new_credential_ends_the_pause() {
    let mut tries = 0;
    let mut bench = bench(move |_| {
        tries += 1;
        (Duration::ZERO, Vec::new(), if tries < 3 { Err(refused()) } else { Ok(()) })
    })
    .await;
    let print = Arc::new(Mutex::new([0_u8; 32]));
    let read = Arc::clone(&print);
    bench.poller.credential = Box::new(move || Some(*read.lock().unwrap()));
    bench.poller.interval = Duration::from_mins(10);
    let stop = CancellationToken::new();
    let task = tokio::spawn(bench.poller.run(stop.clone()));
    tokio::time::sleep(Duration::from_mins(15)).await;
    assert_eq!(bench.stats.polls(PollResult::Error), 2, "the second pause is forty minutes");
    print.lock().unwrap()[0] = 1;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(bench.stats.up());
    stop.cancel();
    task.await.unwrap();
}

#[test]
fn pauses_grow_and_are_longest_after_a_refused_login() {
    let seconds = |seconds| Duration::from_secs(seconds);
    let passing = Failure::new(ErrorKind::Server, "asking", "status 503");
    let pauses = |failure: &Failure, interval| (1..=12).map(|n| pause_after(failure, n, interval)).collect::<Vec<_>>();
    assert_eq!(pauses(&passing, seconds(60))[..4], [60, 120, 240, 300].map(seconds));
    assert_eq!(pauses(&passing, seconds(1))[..5], [1, 2, 4, 8, 8].map(seconds));
    assert_eq!(pauses(&passing, seconds(900))[..2], [900, 900].map(seconds));
    let mut refused = Failure::new(ErrorKind::Auth, "logging in", "status 401");
    assert_eq!(pauses(&refused, seconds(1))[3], seconds(8), "a token that is read from a file locks nothing");
    refused.at_login = true;
    assert_eq!(pauses(&refused, seconds(1))[..5], [60, 240, 960, 3600, 3600].map(seconds));
    refused.retry_after = Some(seconds(9999));
    assert_eq!(pauses(&refused, seconds(1))[0], seconds(9999));
}

#[tokio::test(start_paused = true)]
async fn a_refused_login_is_not_tried_again_at_once_by_the_poller_that_a_reload_brings() {
    let refuses = |_| (Duration::ZERO, Vec::new(), Err(refused()));
    let first = bench(refuses).await;
    let stats = Arc::clone(&first.stats);
    run_for(first.poller, Duration::from_mins(2)).await;
    assert_eq!(stats.polls(PollResult::Error), 2);
    for _ in 0..5 {
        let mut next = bench(refuses).await;
        next.poller.stats = Arc::clone(&stats);
        run_for(next.poller, Duration::from_secs(30)).await;
    }
    assert_eq!(stats.polls(PollResult::Error), 2, "the second pause is four minutes");
    // another credential is tried at once
    let mut next = bench(|_| (Duration::ZERO, Vec::new(), Ok(()))).await;
    next.poller.stats = Arc::clone(&stats);
    next.poller.credential = Box::new(|| Some([7; 32]));
    run_for(next.poller, Duration::from_secs(10)).await;
    assert!(stats.up() && stats.observed().refused.is_none());
}
