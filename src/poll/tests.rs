//! The promises of polling, with a source that does as it is told, in simulated time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::Router;

use super::*;
use crate::api::{Dialect, Limits, Session, Wire};
use crate::event::{Class, EventLabels, Item, Label, Outcome, System, What};
use crate::ledger::Counter;
use crate::page::Catalogue;
use crate::source::{Reading, Signals};
use crate::transport::InMemory;

struct Open;

#[async_trait]
impl Dialect for Open {
    async fn open_session(&self, _: &Wire) -> Result<Session, Failure> {
        Ok(Session { token: "t".into(), base: "http://service.test".parse().unwrap(), renew_at: None })
    }
}

type Reader = Box<dyn FnMut(Window) -> (Duration, Vec<Page>, Result<(), Failure>) + Send + Sync>;

/// Takes as long as it says, hands over the pages it says, and ends as it says.
struct Scripted {
    reader: Reader,
    windows: Arc<Mutex<Vec<Window>>>,
}

#[async_trait]
impl Source for Scripted {
    fn spec(&self) -> Spec {
        Spec {
            reading: Reading::History(crate::source::History {
                cell: Duration::from_millis(1),
                step_max: Duration::from_hours(24),
                ahead: Duration::ZERO,
            }),
            signals: Signals::default(),
            catalogue: Catalogue::default(),
        }
    }

    async fn read(&mut self, window: Window, _: &Api, sink: &mut dyn Sink) -> Result<(), Failure> {
        self.windows.lock().unwrap().push(window);
        let (time, pages, end) = (self.reader)(window);
        tokio::time::sleep(time).await;
        for page in pages {
            sink.page(page).await?;
        }
        end
    }
}

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

struct Bench {
    poller: Poller,
    windows: Arc<Mutex<Vec<Window>>>,
    book: Arc<Book>,
    stats: Arc<SourceStats>,
    clock: Clock,
    _folder: tempfile::TempDir,
}

async fn bench(
    reader: impl FnMut(Window) -> (Duration, Vec<Page>, Result<(), Failure>) + Send + Sync + 'static,
) -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::starting_at(DateTime::from_timestamp(1_800_000_000, 0).unwrap());
    let ledger = Ledger::open(folder.path()).unwrap();
    let name: SourceName = "test".parse().unwrap();
    let book = ledger.register(&name, System::named("losant"), Catalogue::default(), clock.now()).await.unwrap();
    let stats = Arc::new(SourceStats::default());
    let second = Duration::from_secs(1);
    let limits = Limits { requests: 1, per: second, burst: 1, timeout: second, max_response_bytes: 1 };
    let transport = Arc::new(InMemory(Router::new()));
    let api = Api::new(transport, Box::new(Open), limits, Arc::clone(&stats), clock.clone(), 1);
    let windows = Arc::default();
    let poller = Poller {
        name,
        source: Box::new(Scripted { reader: Box::new(reader), windows: Arc::clone(&windows) }),
        rebuild: Box::new(|| unreachable!("its source does not panic")),
        api: Arc::new(api),
        ledger,
        book: Arc::clone(&book),
        stats: Arc::clone(&stats),
        clock: clock.clone(),
        cadence: Cadence {
            overlap: Duration::from_mins(10),
            initial_lookback: Duration::from_hours(6),
            max_catch_up: Duration::from_hours(24),
            cell: Duration::from_millis(1),
            ahead: Duration::ZERO,
        },
        since: Instant::now(),
        interval: Duration::from_mins(1),
        timeout: Duration::from_mins(15),
        credential: Box::new(|| None),
        seed: 1,
    };
    Bench { poller, windows, book, stats, clock, _folder: folder }
}

fn event(id: u8, at: DateTime<Utc>) -> Item {
    let labels = EventLabels {
        category: Label::from_words("user"),
        action: Label::from_words("create"),
        outcome: Outcome::Success,
        class: Class::Change,
    };
    Item { key: EventKey::of("test", &[&[id]]), at: Some(at), filed_at: Some(at), what: What::Event(labels) }
}

/// One for each moment.
fn event_of(at: DateTime<Utc>) -> Item {
    Item { key: EventKey::of("test", &[&at.timestamp_millis().to_le_bytes()]), ..event(0, at) }
}

fn page(items: Vec<Item>) -> Page {
    Page { items, ..Page::default() }
}

fn broken() -> Failure {
    Failure::new(ErrorKind::Decode, "reading", "garbage")
}

fn refused() -> Failure {
    let mut refused = Failure::new(ErrorKind::Auth, "logging in", "status 401");
    refused.at_login = true;
    refused
}

/// Lets the poller run for a while.
async fn run_for(poller: Poller, time: Duration) {
    let stop = CancellationToken::new();
    let task = tokio::spawn(poller.run(stop.clone()));
    tokio::time::sleep(time).await;
    stop.cancel();
    task.await.unwrap();
}

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
    assert!(unread.to_string().contains("is not counted"), "and says so: {unread}");
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
        let reading = Reading::Feed { retention: Duration::from_hours(24), when_empty: "" };
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

// --- the backlog ---

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
