//! The promises of the ledger, each under its name, and the damage a disk can do.

use std::sync::atomic::Ordering;

use chrono::TimeDelta;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redb::{Database, ReadableTable};

use super::*;
use crate::event::{Class, Item, Outcome, Principal, RejectReason, What};
use crate::page::Document;
use crate::simulate::Disk;
use crate::window::{KEYS_BUCKET, floor};

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
}

fn labels(category: &str, action: &str) -> EventLabels {
    let class = if action == "login" { Class::Login(Principal::User) } else { Class::Change };
    EventLabels {
        category: Label::from_words(category),
        action: Label::from_words(action),
        outcome: Outcome::Success,
        class,
    }
}

fn event(id: u64, second: i64, category: &str, action: &str) -> Item {
    Item {
        key: EventKey::of("test", &[&id.to_le_bytes()]),
        at: Some(at(second)),
        filed_at: Some(at(second)),
        what: What::Event(labels(category, action)),
    }
}

fn page(items: Vec<Item>) -> Page {
    Page { items, ..Page::default() }
}

fn counted(counted: u64, duplicate: u64) -> Committed {
    Committed { counted, duplicate, rejections: Vec::new() }
}

fn catalogue() -> Catalogue {
    let mut catalogue = Catalogue { integrity: true, ..Catalogue::default() };
    catalogue.add_logins(&["authentication"], Principal::User, &[Outcome::Success]);
    catalogue
}

/// What somebody who is no scraper sees of a source, and takes whole.
async fn look(ledger: &Ledger, source: &Arc<Book>, now: DateTime<Utc>, hold: Duration) -> Vec<Shown> {
    let (mut seen, receipt) = ledger.scrape(&[Arc::clone(source)], now, hold, &Client::Other).await;
    receipt.taken();
    seen.remove(0).counters
}

fn name() -> SourceName {
    "test".parse().unwrap()
}

async fn register(ledger: &Ledger) -> Arc<Book> {
    ledger.register(&name(), System::Activid, catalogue(), at(0)).await.unwrap()
}

/// A new ledger and its source.
async fn opened() -> (tempfile::TempDir, Ledger, Arc<Book>) {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(folder.path()).unwrap();
    let source = register(&ledger).await;
    (folder, ledger, source)
}

/// Commits a page without moving the checkpoint.
async fn count(ledger: &Ledger, source: &Arc<Book>, page: Page) -> Result<Committed, CommitError> {
    let checkpoint = source.state().checkpoint().cloned();
    commit(ledger, source, checkpoint, page).await
}

async fn commit(
    ledger: &Ledger,
    source: &Arc<Book>,
    next: Option<Checkpoint>,
    page: Page,
) -> Result<Committed, CommitError> {
    let expected = source.state().checkpoint().cloned();
    ledger
        .commit(
            source,
            Commit { expected, next, page, lost_seconds: 0, now: at(100), service_now: at(100), backlog_from: None },
        )
        .await
}

fn events_total(source: &Book) -> u64 {
    source.state().total(Counter::Events)
}

fn read_to(second: i64) -> Checkpoint {
    Checkpoint { origin: at(-3600), head: at(second), gaps: vec![] }
}

#[tokio::test]
async fn an_event_read_again_is_not_counted_again_not_even_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let items = || vec![event(1, 1, "user", "create"), event(2, 2, "user", "create"), event(2, 2, "user", "create")];
    {
        let ledger = Ledger::open(folder.path()).unwrap();
        let source = register(&ledger).await;
        let committed = count(&ledger, &source, page(items())).await.unwrap();
        assert_eq!(committed, counted(2, 1));
    }
    let ledger = Ledger::open(folder.path()).unwrap();
    let source = register(&ledger).await;
    assert_eq!(events_total(&source), 2);
    assert_eq!(source.state().last_event(), Some(at(2)));
    let committed = count(&ledger, &source, page(items())).await.unwrap();
    assert_eq!(committed, counted(0, 3));
    assert_eq!(events_total(&source), 2);
    assert_eq!(source.state().total(Counter::Duplicate), 4);
    assert_eq!(source.state().value(&SeriesKey::new(Counter::Actions, &["user", "create", "success"])), 2);
}

/// An event that tells no time.
fn timeless() -> Page {
    page(vec![Item { at: None, filed_at: None, ..event(1, 0, "user", "create") }])
}

#[tokio::test]
async fn events_without_any_time_are_counted_once_too_and_forgotten_with_the_hour_they_were_seen_in() {
    let (_folder, ledger, source) = opened().await;
    commit(&ledger, &source, Some(read_to(0)), timeless()).await.unwrap();
    assert_eq!(count(&ledger, &source, timeless()).await.unwrap().duplicate, 1);
    let later = Checkpoint { origin: at(7200), head: at(10_000), gaps: vec![] };
    commit(&ledger, &source, Some(later), Page::default()).await.unwrap();
    assert_eq!(count(&ledger, &source, timeless()).await.unwrap().counted, 1, "its key was dropped");
}

#[tokio::test]
async fn events_without_any_time_are_remembered_by_the_service_s_clock() {
    let (_folder, ledger, source) = opened().await;
    // three hours ahead of ours
    let ahead = 10_800;
    let mut checkpoint = None;
    for minute in 0..200 {
        let now = at(60 * minute);
        let service_now = at(60 * minute + ahead);
        let head =
            Checkpoint { origin: floor(at(60 * minute + ahead - 4200), KEYS_BUCKET), head: service_now, gaps: vec![] };
        let (expected, next) = (checkpoint.replace(head.clone()), Some(head));
        // it is returned for ten minutes
        let page = if minute < 10 { timeless() } else { Page::default() };
        ledger
            .commit(&source, Commit { expected, next, page, lost_seconds: 0, now, service_now, backlog_from: None })
            .await
            .unwrap();
    }
    assert_eq!((events_total(&source), source.state().total(Counter::Duplicate)), (1, 9));
    assert_eq!(count(&ledger, &source, timeless()).await.unwrap().counted, 1, "forgotten in the end");
}

#[tokio::test]
async fn keys_are_forgotten_only_before_the_origin() {
    let (_folder, ledger, source) = opened().await;
    let both = || page(vec![event(1, 0, "user", "create"), event(2, 7200, "user", "create")]);
    commit(&ledger, &source, Some(read_to(0)), both()).await.unwrap();
    let moved = Checkpoint { origin: at(3600), head: at(9000), gaps: vec![] };
    commit(&ledger, &source, Some(moved), Page::default()).await.unwrap();
    assert_eq!(count(&ledger, &source, both()).await.unwrap(), counted(1, 1));
}

#[tokio::test]
async fn a_page_read_from_another_checkpoint_is_refused_whole() {
    let (_folder, ledger, source) = opened().await;
    commit(&ledger, &source, Some(read_to(10)), Page::default()).await.unwrap();
    let stale = Commit {
        expected: None,
        next: Some(read_to(20)),
        page: page(vec![event(1, 1, "user", "create")]),
        lost_seconds: 0,
        now: at(0),
        service_now: at(0),
        backlog_from: None,
    };
    assert!(matches!(ledger.commit(&source, stale).await, Err(CommitError::Conflict { .. })));
    assert_eq!(events_total(&source), 0);
    assert_eq!(source.state().checkpoint(), Some(&read_to(10)));
}

#[tokio::test]
async fn ten_thousand_new_values_are_capped_and_the_totals_stay_exact() {
    let (_folder, ledger, source) = opened().await;
    for chunk in 0..10 {
        let items = (0..1000).map(|n| chunk * 1000 + n).map(|n| event(n, 1, &format!("c{n}"), "create")).collect();
        count(&ledger, &source, page(items)).await.unwrap();
    }
    let state = source.state();
    assert_eq!(state.total(Counter::Events), 10_000);
    assert_eq!(state.value(&SeriesKey::new(Counter::LabelOverflow, &["category"])), 9950);
    assert_eq!(state.value(&SeriesKey::new(Counter::LabelOverflow, &["action"])), 0);
    assert_eq!(state.value(&SeriesKey::new(Counter::Events, &["other", "create", "success"])), 9950);
    let categories: BTreeSet<_> =
        state.series.keys().filter(|key| key.counter == Counter::Events).map(|key| key.values[0].clone()).collect();
    assert_eq!(categories.len(), 1 + LABEL_VALUES_MAX + 1, "documented, admitted, other");
}

#[tokio::test]
async fn which_values_were_admitted_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let fill = || page((0..60).map(|n| event(n, 1, &format!("c{n}"), "create")).collect());
    {
        let ledger = Ledger::open(folder.path()).unwrap();
        let source = register(&ledger).await;
        count(&ledger, &source, fill()).await.unwrap();
    }
    let ledger = Ledger::open(folder.path()).unwrap();
    let source = register(&ledger).await;
    count(&ledger, &source, page(vec![event(100, 1, "novel", "create")])).await.unwrap();
    assert_eq!(source.state().value(&SeriesKey::new(Counter::Events, &["novel", "create", "success"])), 0);
    assert_eq!(source.state().value(&SeriesKey::new(Counter::LabelOverflow, &["category"])), 11);
}

#[tokio::test]
async fn a_series_is_0_until_a_scrape_saw_that_and_the_hold_has_passed_and_never_goes_back() {
    let (folder, ledger, source) = opened().await;
    let key = SeriesKey::new(Counter::Events, &["user", "create", "success"]);
    let hold = Duration::from_mins(1);
    let shown = async |ledger: &Ledger, source: &Arc<Book>, second| {
        let rows = look(ledger, source, at(second), hold).await;
        rows.iter().find(|row| *row.key == key).map(|row| row.value)
    };
    assert_eq!(shown(&ledger, &source, 50).await, None, "not born yet");
    count(&ledger, &source, page(vec![event(1, 1, "user", "create")])).await.unwrap(); // born at 100
    assert_eq!(shown(&ledger, &source, 500).await, Some(0), "the first scrape sees 0, however late it comes");
    assert_eq!(shown(&ledger, &source, 159).await, Some(0), "the hold has not passed");
    assert_eq!(shown(&ledger, &source, 160).await, Some(1));
    count(&ledger, &source, page(vec![event(2, 1, "user", "create")])).await.unwrap();
    assert_eq!(shown(&ledger, &source, 161).await, Some(2), "and follows at once from then on");
    drop((ledger, source));
    let ledger = Ledger::open(folder.path()).unwrap();
    let source = register(&ledger).await;
    assert_eq!(shown(&ledger, &source, 162).await, Some(2), "after a restart, too");
}

#[tokio::test]
async fn the_catalogue_exists_from_the_first_start() {
    let (_folder, ledger, source) = opened().await;
    let rows = look(&ledger, &source, at(0), Duration::ZERO).await;
    let names: BTreeSet<_> = rows.iter().map(|row| row.key.counter.name()).collect();
    for expected in
        ["audit_events_total", "audit_logins_total", "audit_tainted_feeds_total", "audit_source_lost_seconds_total"]
    {
        assert!(names.contains(expected), "{expected}");
    }
}

#[tokio::test]
async fn events_older_than_the_watermark_are_late_and_their_lateness_is_measured() {
    let (_folder, ledger, source) = opened().await;
    commit(&ledger, &source, Some(read_to(50)), Page::default()).await.unwrap();
    count(&ledger, &source, page(vec![event(1, 49, "user", "create"), event(2, 50, "user", "create")])).await.unwrap();
    let state = source.state();
    assert_eq!(state.total(Counter::Late), 1);
    assert_eq!(state.lateness().sum_ms, 51_000 + 50_000);
    assert_eq!(state.lateness().buckets[4], 2, "between 30 and 60 s");
}

#[tokio::test]
async fn what_is_ignored_or_rejected_is_counted_once_as_that() {
    let (_folder, ledger, source) = opened().await;
    for _ in 0..2 {
        let ignored = Item { what: What::Ignored, ..event(1, 1, "x", "y") };
        let rejected = Item {
            what: What::Rejected(Rejection { reason: RejectReason::Malformed, sample: String::new() }),
            ..event(2, 1, "x", "y")
        };
        count(&ledger, &source, page(vec![ignored, rejected])).await.unwrap();
    }
    let state = source.state();
    assert_eq!(state.total(Counter::Events), 0);
    assert_eq!(state.total(Counter::Ignored), 1);
    assert_eq!(state.value(&SeriesKey::new(Counter::Rejected, &["malformed"])), 1);
}

#[tokio::test]
async fn a_tainted_record_counts_once_even_when_later_only_a_group_can_be_named() {
    let (_folder, ledger, source) = opened().await;
    let key = |n: u8| EventKey::of("taint", &[&[n]]);
    let taint = |own: u8, candidates: &[u8]| {
        let candidates = candidates.iter().map(|n| key(*n)).collect();
        page(vec![Item { key: key(own), what: What::Tainted { candidates }, ..event(0, 1, "", "") }])
    };
    count(&ledger, &source, taint(1, &[1])).await.unwrap();
    count(&ledger, &source, taint(2, &[1, 2])).await.unwrap();
    assert_eq!(source.state().total(Counter::Tainted), 1);
    count(&ledger, &source, taint(3, &[3])).await.unwrap();
    assert_eq!(source.state().total(Counter::Tainted), 2);
}

#[tokio::test]
async fn when_taint_was_last_found_is_when_the_counter_last_grew_also_after_a_restart() {
    let (folder, mut ledger, mut source) = opened().await;
    let last = |source: &Book| source.state().record.last_tainted;
    assert_eq!(last(&source), None);
    let mut counter = 0;
    for (second, tainted) in [(100, vec![1]), (200, vec![1]), (300, vec![1, 2]), (400, vec![]), (500, vec![2, 3])] {
        let item = |n: &u8| {
            let key = EventKey::of("taint", &[&[*n]]);
            Item { key, what: What::Tainted { candidates: vec![key] }, ..event(0, 1, "", "") }
        };
        // what the service's clock shows is another matter
        let (now, service_now) = (at(second), at(second + 5000));
        let page = page(tainted.iter().map(item).collect());
        let commit = Commit { expected: None, next: None, page, lost_seconds: 0, now, service_now, backlog_from: None };
        let before = last(&source);
        ledger.commit(&source, commit).await.unwrap();
        let grew = source.state().total(Counter::Tainted)
            > std::mem::replace(&mut counter, source.state().total(Counter::Tainted));
        assert_eq!(last(&source), if grew { Some(now) } else { before }, "at {second}");
        drop((ledger, source));
        ledger = Ledger::open(folder.path()).unwrap();
        source = register(&ledger).await;
    }
    assert_eq!((counter, last(&source)), (3, Some(at(500))));
}

fn file(version: u8, rows: &[(&str, u64)]) -> Page {
    let rows = rows.iter().map(|(action, count)| (Label::from_words(action), *count)).collect();
    let document = Document {
        key: EventKey::of("file", &[b"1"]),
        filed_at: at(0),
        version: EventKey::of("version", &[&[version]]),
        category: Label::from_words("impressions"),
        rows,
        rejected: 0,
    };
    Page { documents: vec![document], ..Page::default() }
}

#[tokio::test]
async fn a_replaced_file_adds_only_the_rows_it_gained() {
    let (folder, ledger, source) = opened().await;
    count(&ledger, &source, file(1, &[("impression", 10)])).await.unwrap();
    count(&ledger, &source, file(2, &[("impression", 13), ("bid", 2)])).await.unwrap();
    count(&ledger, &source, file(3, &[("impression", 4)])).await.unwrap();
    drop((source, ledger));
    let ledger = Ledger::open(folder.path()).unwrap();
    let source = register(&ledger).await;
    assert_eq!(events_total(&source), 15);
    assert_eq!(source.state().documents().len(), 1);
    count(&ledger, &source, file(2, &[("impression", 13), ("bid", 3)])).await.unwrap();
    assert_eq!(events_total(&source), 16);
}

/// An event that its service tells another time of, or none.
fn dated(id: u64, second: Option<i64>) -> Item {
    Item { at: second.map(at), filed_at: second.map(at), ..event(id, 0, "user", "create") }
}

#[tokio::test]
async fn an_event_that_comes_again_with_another_time_is_the_same_event() {
    for times in [
        &[Some(10), Some(11)][..],
        &[Some(11), Some(10)],
        &[Some(-3000), Some(900)],
        &[Some(900), Some(-3000)],
        &[Some(10), Some(70), Some(10), Some(70)],
        &[Some(10), None],
        &[None, Some(10)],
        &[None, Some(10), None, Some(500), Some(10)],
    ] {
        let once = counted(1, u64::try_from(times.len()).unwrap() - 1);
        let items = || times.iter().map(|second| dated(1, *second));
        let (_folder, ledger, source) = opened().await;
        assert_eq!(count(&ledger, &source, page(items().collect())).await.unwrap(), once, "on one page: {times:?}");

        let (folder, ledger, source) = opened().await;
        commit(&ledger, &source, Some(read_to(0)), Page::default()).await.unwrap();
        for item in items() {
            count(&ledger, &source, page(vec![item, event(2, 10, "user", "create")])).await.unwrap();
        }
        assert_eq!(events_total(&source), 2, "page by page: {times:?}");
        drop((ledger, source));

        let ledger = Ledger::open(folder.path()).unwrap();
        let source = register(&ledger).await;
        let fresh = dated(3, Some(20));
        let again = vec![dated(1, Some(1234)), fresh.clone(), Item { at: Some(at(1)), filed_at: Some(at(1)), ..fresh }];
        assert_eq!(count(&ledger, &source, page(again)).await.unwrap(), counted(1, 2), "after a restart: {times:?}");
        assert_eq!(source.state().total(Counter::Late), u64::from(times[0].is_some_and(|second| second < 0)));
    }
}

#[tokio::test]
async fn an_event_with_a_new_time_is_remembered_as_long_as_that_time() {
    let (_folder, ledger, source) = opened().await;
    commit(&ledger, &source, Some(read_to(0)), page(vec![dated(1, Some(0)), dated(2, None)])).await.unwrap();
    count(&ledger, &source, page(vec![dated(1, Some(3700)), dated(2, Some(3700))])).await.unwrap();
    let moved = Checkpoint { origin: at(3600), head: at(9000), gaps: vec![] };
    let service_now = at(9000);
    let page_at = |page: Page| Commit {
        expected: Some(read_to(0)),
        next: Some(moved.clone()),
        page,
        lost_seconds: 0,
        now: service_now,
        service_now,
        backlog_from: None,
    };
    ledger.commit(&source, page_at(Page::default())).await.unwrap();
    let again = vec![dated(1, Some(3700)), dated(1, Some(5000)), dated(2, Some(5000)), dated(2, None)];
    assert_eq!(
        count(&ledger, &source, page(again)).await.unwrap(),
        counted(0, 4),
        "what was forgotten is the old time"
    );
    let moved = Checkpoint { origin: at(36_000), head: at(40_000), gaps: vec![] };
    commit(&ledger, &source, Some(moved), Page::default()).await.unwrap();
    assert_eq!(
        count(&ledger, &source, page(vec![dated(1, Some(36_001))])).await.unwrap().counted,
        1,
        "in the end all is"
    );
}

#[tokio::test]
async fn what_is_ignored_or_rejected_does_not_become_an_event_with_another_time() {
    let (_folder, ledger, source) = opened().await;
    let rejection = Rejection { reason: RejectReason::BadTime, sample: String::new() };
    let rejected = Item { what: What::Rejected(rejection), ..dated(1, None) };
    let ignored = Item { what: What::Ignored, ..dated(2, Some(5)) };
    count(&ledger, &source, page(vec![rejected.clone(), ignored, dated(3, Some(7))])).await.unwrap();
    let rejected = Item { key: dated(3, None).key, ..rejected };
    count(&ledger, &source, page(vec![dated(1, Some(9)), dated(2, Some(9)), rejected])).await.unwrap();
    let state = source.state();
    let total = |counter| state.total(counter);
    assert_eq!((total(Counter::Events), total(Counter::Rejected), total(Counter::Ignored)), (1, 1, 1));
    assert_eq!(total(Counter::Duplicate), 3);
}

#[tokio::test]
async fn after_a_failure_of_the_disk_an_event_with_another_time_is_still_the_same() {
    for room in 0..40 {
        let disk = Disk::default();
        let ledger = Ledger::open_with(disk.opener()).unwrap();
        let source = register(&ledger).await;
        count(&ledger, &source, page(vec![dated(1, Some(1))])).await.unwrap();
        disk.fill_after(room);
        let _ = count(&ledger, &source, page(vec![dated(1, Some(2)), dated(2, Some(2))])).await;
        disk.make_room();
        let again = vec![dated(1, Some(3)), dated(2, Some(400)), dated(1, Some(2)), dated(2, Some(2))];
        count(&ledger, &source, page(again)).await.unwrap();
        assert_eq!(
            (events_total(&source), source.state().total(Counter::Actions)),
            (2, 2),
            "room for {room} operations"
        );
    }
}

#[tokio::test]
async fn keys_of_two_sources_are_not_taken_for_each_other() {
    let (_folder, ledger, source) = opened().await;
    let other = ledger.register(&"other".parse().unwrap(), System::Losant, catalogue(), at(0)).await.unwrap();
    for (source, second) in [(&source, 1), (&other, 2), (&source, 3), (&other, 4)] {
        count(&ledger, source, page(vec![dated(1, Some(second))])).await.unwrap();
    }
    assert_eq!((events_total(&source), events_total(&other)), (1, 1));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(60))]
    /// Whatever times an event comes with, on whatever pages, with restarts and forgetting between them.
    #[test]
    fn an_id_counts_once_for_as_long_as_it_is_remembered(
        pages in proptest::collection::vec(
            (proptest::collection::vec((0_u64..12, proptest::option::of(0_i64..5400)), 0..12), 0_u8..4), 1..20)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let disk = Disk::default();
            let mut ledger = Ledger::open_with(disk.opener()).unwrap();
            let mut source = register(&ledger).await;
            let mut ids = BTreeSet::new();
            for (nth, (items, restart)) in (0..).zip(pages) {
                ids.extend(items.iter().map(|(id, _)| *id));
                // half an hour a page: the times move on, and the hours before them are forgotten
                let now = 1800 * nth;
                let items = items.into_iter().map(|(id, second)| dated(id, second.map(|second| now + second))).collect();
                let origin = floor(at(now - 5400), KEYS_BUCKET);
                let next = Checkpoint { origin, head: at(now), gaps: vec![] };
                let expected = source.state().checkpoint().cloned();
                let moment = at(now);
                let commit =
                    Commit { expected, next: Some(next), page: page(items), lost_seconds: 0, now: moment, service_now: moment, backlog_from: None };
                let before = events_total(&source);
                let committed = ledger.commit(&source, commit).await.unwrap();
                assert_eq!(events_total(&source) - before, committed.counted);
                if restart == 0 {
                    drop((ledger, source));
                    ledger = Ledger::open_with(disk.opener()).unwrap();
                    source = register(&ledger).await;
                }
                // every id is on every second page at least
                let refresh = ids.iter().map(|id| dated(*id, Some(now))).collect();
                assert_eq!(count(&ledger, &source, page(refresh)).await.unwrap().counted, 0);
                assert_eq!(events_total(&source), ids.len() as u64);
            }
        });
    }
}

#[tokio::test]
async fn an_event_without_a_time_of_its_own_is_late_where_all_of_its_cell_was_read_before() {
    let (_folder, ledger, source) = opened().await;
    let first = |second: i64| floor(at(second), TALLY_CELL);
    let cell =
        |id: u64, second: i64| Item { at: None, filed_at: Some(first(second)), ..event(id, 0, "user", "create") };
    let head = first(3000) + TimeDelta::seconds(10);
    let gap = Window { from: first(900), to: first(1500) };
    let gap = crate::window::Gap { from: gap.from, to: gap.to, unread_from: gap.from };
    let read = Checkpoint { origin: first(0), head, gaps: vec![gap] };
    commit(&ledger, &source, Some(read), page(vec![cell(1, 2700)])).await.unwrap();
    assert_eq!(source.state().total(Counter::Late), 0, "nothing had been read before");
    let items =
        vec![cell(2, 2700), cell(3, 3000), cell(4, 3300), cell(5, 900), cell(6, 1200), cell(7, 600), cell(8, 1500)];
    count(&ledger, &source, page([items.clone(), items].concat())).await.unwrap();
    assert_eq!(
        source.state().total(Counter::Late),
        3,
        "of 2700, 600 and 1500: 3000 was read in part, 900 is in the gap"
    );
    assert_eq!(source.state().lateness().buckets, [0; 15], "how late is not known");
}

/// What a source's tallies say of a window, in seconds.
async fn tallied(ledger: &Ledger, source: &Arc<Book>, from: i64, to: i64) -> Vec<(i64, String, u64)> {
    let tallies = ledger.tallies(source, Window { from: at(from), to: at(to) }).await.unwrap();
    tallies.iter().map(|((cell, key), count)| ((*cell - at(0)).num_seconds(), key.values.join(","), *count)).collect()
}

#[tokio::test]
async fn what_was_counted_is_tallied_by_five_minutes_and_labels_once() {
    let folder = tempfile::tempdir().unwrap();
    let items =
        || vec![event(1, 1, "user", "create"), event(2, 299, "user", "create"), event(3, 300, "role", "create")];
    let timeless = Item { at: None, filed_at: None, ..event(4, 0, "user", "create") };
    {
        let ledger = Ledger::open(folder.path()).unwrap();
        let source = register(&ledger).await;
        commit(&ledger, &source, Some(read_to(0)), page(items())).await.unwrap();
    }
    let ledger = Ledger::open(folder.path()).unwrap();
    let source = ledger.find(&name(), System::Activid, catalogue()).await.unwrap().unwrap();
    count(&ledger, &source, page(items().into_iter().chain([event(5, 2, "user", "create"), timeless]).collect()))
        .await
        .unwrap();
    let first = (0, "user,create,success".to_owned(), 3);
    let second = (300, "role,create,success".to_owned(), 1);
    assert_eq!(tallied(&ledger, &source, 0, 600).await, [first.clone(), second]);
    assert_eq!(tallied(&ledger, &source, 0, 300).await, [first]);
    assert_eq!(source.state().tallied_from(), Some(at(-3600)), "from where counting began");
    assert!(ledger.find(&name(), System::Losant, catalogue()).await.unwrap().is_none(), "nothing was made known");
    count(&ledger, &source, file(1, &[("impression", 10)])).await.unwrap();
    count(&ledger, &source, file(2, &[("impression", 12)])).await.unwrap();
    assert!(tallied(&ledger, &source, 0, 300).await.contains(&(0, "impressions,impression,unknown".into(), 12)));
}

#[tokio::test]
async fn the_tally_of_an_event_follows_its_time() {
    let (_folder, ledger, source) = opened().await;
    let both = vec![event(1, 10, "user", "create"), event(2, 10, "role", "create")];
    commit(&ledger, &source, Some(read_to(0)), page(both)).await.unwrap();
    count(&ledger, &source, page(vec![event(1, 299, "user", "create")])).await.unwrap();
    assert_eq!(tallied(&ledger, &source, 0, 300).await.len(), 2, "within five minutes nothing changes");
    count(&ledger, &source, page(vec![event(1, 301, "user", "create"), event(2, 301, "novel", "create")]))
        .await
        .unwrap();
    let of = |cell, labels: &str| (cell, labels.to_owned(), 1);
    let stays = of(0, "role,create,success");
    assert_eq!(
        tallied(&ledger, &source, 0, 900).await,
        [stays, of(300, "user,create,success")],
        "what is described otherwise now stays where it was"
    );
    assert_eq!(events_total(&source), 2);
}

#[tokio::test]
async fn values_beyond_the_cap_are_tallied_and_compared_as_other() {
    let (_folder, ledger, source) = opened().await;
    let sixty = || (0..60).map(|n| event(n, 1, &format!("c{n}"), "create"));
    count(&ledger, &source, page(sixty().collect())).await.unwrap();
    let found = (0..60).map(|n| ((labels(&format!("c{n}"), "create"), at(0)), 1)).collect();
    let tallies = ledger.tallies(&source, Window { from: at(0), to: at(300) }).await.unwrap();
    assert_eq!(source.state().as_counted(&found), tallies);
    assert_eq!(tallies[&(at(0), SeriesKey::new(Counter::Events, &["other", "create", "success"]))], 10);
}

#[tokio::test]
async fn tallies_are_kept_for_two_weeks_and_nobody_is_told_that_they_are_whole_before_that() {
    let (_folder, ledger, source) = opened().await;
    let day = 86_400;
    commit(&ledger, &source, Some(read_to(0)), page(vec![event(1, 0, "user", "create")])).await.unwrap();
    let later = Checkpoint { origin: at(15 * day), head: at(15 * day), gaps: vec![] };
    commit(&ledger, &source, Some(later), page(vec![event(2, 15 * day, "user", "create")])).await.unwrap();
    assert_eq!(tallied(&ledger, &source, -day, 20 * day).await.len(), 1, "the first was dropped");
    assert_eq!(source.state().tallied_from(), Some(at(day)));
    count(&ledger, &source, page(vec![event(3, 10, "user", "create")])).await.unwrap();
    assert_eq!(tallied(&ledger, &source, -day, day).await, [], "and is not begun again");
}

#[tokio::test]
async fn a_store_of_layout_1_learns_to_tally_and_says_since_when() {
    let folder = tempfile::tempdir().unwrap();
    {
        let ledger = Ledger::open(folder.path()).unwrap();
        let source = register(&ledger).await;
        commit(&ledger, &source, Some(read_to(100)), page(vec![event(1, 400, "user", "create")])).await.unwrap();
    }
    {
        // as the program wrote it before
        let database = Database::create(folder.path().join(STORE_FILE)).unwrap();
        let write = database.begin_write().unwrap();
        write.delete_table(redb::TableDefinition::<&[u8], u64>::new("tallies")).unwrap();
        write.open_table(redb::TableDefinition::<&str, u64>::new("meta")).unwrap().insert("schema", 1).unwrap();
        {
            let mut sources = write.open_table(redb::TableDefinition::<&str, (u32, &[u8])>::new("sources")).unwrap();
            let record = sources.get("activid/test").unwrap().unwrap().value().1.to_vec();
            let mut record: serde_json::Value = serde_json::from_slice(&record).unwrap();
            record.as_object_mut().unwrap().remove("tallied_from").unwrap();
            sources.insert("activid/test", (1, record.to_string().as_bytes())).unwrap();
        }
        write.commit().unwrap();
    }
    for opened_before in 0..2 {
        let ledger = Ledger::open(folder.path()).unwrap();
        let source = register(&ledger).await;
        assert_eq!(events_total(&source), 1 + opened_before);
        assert_eq!(source.state().tallied_from(), Some(at(600)), "behind the newest event, by whole cells");
        let again = count(&ledger, &source, page(vec![event(1, 400, "user", "create")])).await.unwrap();
        assert_eq!(again, counted(0, 1));
        count(&ledger, &source, page(vec![event(2, 700, "user", "create")])).await.unwrap();
        assert_eq!(tallied(&ledger, &source, 0, 900).await, [(600, "user,create,success".into(), 1)]);
    }
}

#[test]
fn a_store_of_a_newer_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    drop(Ledger::open(folder.path()).unwrap());
    let database = Database::create(folder.path().join("ledger.redb")).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(redb::TableDefinition::<&str, u64>::new("meta")).unwrap().insert("schema", 99).unwrap();
    write.commit().unwrap();
    drop(database);
    let refused = Ledger::open(folder.path()).err().unwrap();
    assert!(matches!(refused, OpenError::Newer { found: 99, .. }), "{refused}");
}

#[test]
fn a_second_process_on_the_same_store_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let _first = Ledger::open(folder.path()).unwrap();
    assert!(matches!(Ledger::open(folder.path()), Err(OpenError::InUse { .. })));
}

// --- the backlog ---

/// What an outage that began at `at(-5000)` held back; counted at a moment of our clock.
fn held_back(source: &Book, counted_at: i64, items: Vec<Item>) -> Commit {
    let expected = source.state().checkpoint().cloned();
    let (now, page) = (at(counted_at), page(items));
    Commit {
        expected: expected.clone(),
        next: expected,
        page,
        lost_seconds: 0,
        now,
        service_now: now,
        backlog_from: Some(at(-5000)),
    }
}

async fn catch_up(ledger: &Ledger, source: &Arc<Book>, counted_at: i64, items: Vec<Item>) {
    ledger.commit(source, held_back(source, counted_at, items)).await.unwrap();
}

/// `count` events that happened in a second, told apart by it.
fn burst(second: i64, count: u64, action: &str) -> Vec<Item> {
    let first = second.unsigned_abs() * 1_000_000 + u64::from(action == "delete") * 1000;
    (first..first + count).map(|id| event(id, second, "user", action)).collect()
}

/// What a scrape is told of the backlog: labels, how many, and when it began.
fn backlog(source: &Book, now: i64) -> Vec<(String, u64, Option<i64>)> {
    let told = source.state().snapshot(at(now)).backlog.into_iter();
    told.map(|of| (of.key.values.join(","), of.events, of.begins.map(|at| at.timestamp() - 1_800_000_000))).collect()
}

fn deletions(events: u64, begins: i64) -> Vec<(String, u64, Option<i64>)> {
    vec![("user,delete,success".into(), events, Some(begins))]
}

#[tokio::test]
async fn the_highest_15_minutes_of_a_backlog_are_told_with_their_beginning() {
    let (_folder, ledger, source) = opened().await;
    commit(&ledger, &source, Some(read_to(0)), page(burst(-4000, 500, "delete"))).await.unwrap();
    assert_eq!(backlog(&source, 0), [], "what no outage held back is no backlog");
    let mut items = burst(-3600, 30, "delete");
    for (second, count) in [(-3000, 10), (-2700, 20), (-2401, 40), (-2400, 7), (-1500, 60), (-5001, 900)] {
        items.extend(burst(second, count, "delete"));
    }
    items.extend(burst(-3000, 3, "create"));
    catch_up(&ledger, &source, 0, items).await;
    let told = backlog(&source, 0);
    assert_eq!(told[0], ("user,create,success".into(), 3, Some(-3000)));
    assert_eq!(told[1..], deletions(77, -3000), "three whole cells; not what happened before the outage");
    for (now, expected) in [(3599, 77), (3600, 0), (3600 + 86_399, 0)] {
        assert_eq!(backlog(&source, now)[1].1, expected, "at {now}");
    }
    assert_eq!(backlog(&source, 3600 + 86_400), []);
}

/// Of an event without a time only five minutes are known. Where an outage began within them, it may have held the event back.
#[tokio::test]
async fn what_has_no_time_is_told_where_an_outage_may_have_held_it_back() {
    let (_folder, ledger, source) = opened().await;
    let of = |cell: i64, count| {
        let timeless = move |item: Item| Item { at: None, filed_at: Some(at(cell)), ..item };
        burst(cell, count, "delete").into_iter().map(timeless)
    };
    catch_up(&ledger, &source, 0, of(-5400, 900).collect()).await;
    assert_eq!(backlog(&source, 0), [], "whole five minutes before it");
    catch_up(&ledger, &source, 0, of(-5100, 7).chain(of(-4800, 2)).collect()).await;
    assert_eq!(backlog(&source, 0), deletions(9, -5100));
}

#[tokio::test]
async fn an_attack_over_pages_pieces_and_restarts_is_one_and_reading_again_does_not_double_it() {
    let folder = tempfile::tempdir().unwrap();
    // newest first, as some services list, or oldest first
    for pages in [[(-1200, 40), (-1500, 50), (-1800, 60)], [(-1800, 60), (-1500, 50), (-1200, 40)]] {
        let _ = std::fs::remove_file(folder.path().join(STORE_FILE));
        let mut told = Vec::new();
        for (n, (second, count)) in (0..).zip(pages) {
            let ledger = Ledger::open(folder.path()).unwrap();
            let source = register(&ledger).await;
            if n == 0 {
                commit(&ledger, &source, Some(read_to(0)), Page::default()).await.unwrap();
            }
            for _ in 0..2 {
                catch_up(&ledger, &source, 60 * n, burst(second, count, "delete")).await;
                told = backlog(&source, 60 * n);
            }
        }
        assert_eq!(told, deletions(150, -1800));
        let ledger = Ledger::open(folder.path()).unwrap();
        let source = register(&ledger).await;
        assert_eq!(backlog(&source, 200), told, "after a restart");
        assert_eq!(backlog(&source, 3600 + 119)[0].1, 150, "an hour after its last page");
        assert_eq!(backlog(&source, 3600 + 120)[0].1, 0);
    }
}

#[tokio::test]
async fn a_source_that_stays_behind_is_told_of_for_as_long_as_it_does() {
    let (_folder, ledger, source) = opened().await;
    commit(&ledger, &source, Some(read_to(0)), Page::default()).await.unwrap();
    let cells = |ledger: &Ledger| {
        let mut store = ledger.writer.lock().unwrap();
        let read = store.snapshot().unwrap();
        let table = read.open_table(redb::TableDefinition::<&[u8], u64>::new("backlog")).unwrap();
        redb::ReadableTableMetadata::len(&table).unwrap()
    };
    for hour in 0..200_i64 {
        let now = 3600 * hour;
        let next = Checkpoint { origin: floor(at(now - 9000), KEYS_BUCKET), head: at(now), gaps: vec![] };
        // other deletions in each hour; and once something else
        let mut items = burst(now - 2100, 1 + hour.unsigned_abs() % 7, "delete");
        items.extend(burst(now - 2100, u64::from(hour == 3), "create"));
        let commit = Commit { next: Some(next), ..held_back(&source, now, items) };
        ledger.commit(&source, commit).await.unwrap();
        let told = backlog(&source, now + 1800);
        assert_eq!(told.last().unwrap().1, 1 + hour.unsigned_abs() % 7, "in hour {hour}");
        assert_eq!(told.len() == 2, (3..28).contains(&hour), "a day later nothing is told any more: hour {hour}");
        assert!(source.state().backlog.len() <= 2 && cells(&ledger) <= 6, "bounded");
    }
    assert_eq!(source.state().backlog.len(), 1);
}

#[tokio::test]
async fn wherever_a_commit_of_a_backlog_fails_it_is_told_once() {
    for room in 0..60 {
        let disk = Disk::default();
        let ledger = Ledger::open_with(disk.opener()).unwrap();
        let source = register(&ledger).await;
        count(&ledger, &source, Page::default()).await.unwrap();
        catch_up(&ledger, &source, 0, burst(-1800, 5, "delete")).await;
        disk.fill_after(room);
        let items = || burst(-1500, 7, "delete");
        let commit = Commit { page: page(items()), backlog_from: Some(at(-5000)), ..commit_of(None, None, 1) };
        let done = ledger.commit(&source, commit).await;
        let expected = if done.is_ok() { 12 } else { 5 };
        assert_eq!(backlog(&source, 0)[0].1, expected, "room for {room} operations: {done:?}");
        disk.make_room();
        catch_up(&ledger, &source, 0, items()).await;
        assert_eq!(backlog(&source, 0), deletions(12, -1800), "room for {room} operations");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(40))]
    /// Whatever is read in which order, with restarts and repetitions: the highest 15 minutes of whole cells that got
    /// anything within the hour.
    #[test]
    fn what_is_told_of_a_backlog_is_what_a_look_at_all_its_events_tells(
        pages in proptest::collection::vec(
            (1_i64..1500, proptest::collection::vec((0_i64..3600, 0_u64..30), 0..12), 0_u8..4), 1..15)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let disk = Disk::default();
            let mut ledger = Ledger::open_with(disk.opener()).unwrap();
            let mut source = register(&ledger).await;
            let mut now = 0;
            let mut all: Vec<(i64, i64)> = Vec::new();
            let mut last: Vec<Item> = Vec::new();
            for (nth, (pause, bursts, restart)) in (0..).zip(pages) {
                now += pause;
                let mut items = last.clone();
                for (n, (second, count)) in (0_u64..).zip(bursts) {
                    let first = nth * 1_000_000 + n * 1000;
                    items.extend((first..first + count).map(|id| event(id, second - 3600, "user", "delete")));
                    all.extend((0..count).map(|_| (second - 3600, now)));
                }
                catch_up(&ledger, &source, now, items.clone()).await;
                last = items;
                if restart == 0 {
                    drop((ledger, source));
                    ledger = Ledger::open_with(disk.opener()).unwrap();
                    source = register(&ledger).await;
                }
                for later in [now, now + 1800, now + 3599] {
                    let spans = (-20..20).map(|cell| cell * 300).map(|from| {
                        let inside: Vec<_> = all.iter().filter(|(second, _)| (from..from + 900).contains(second)).collect();
                        let is_told = inside.iter().any(|(_, counted_at)| later - counted_at < 3600);
                        if is_told { inside.len() as u64 } else { 0 }
                    });
                    let told = backlog(&source, later).first().map_or(0, |told| told.1);
                    assert_eq!(told, spans.max().unwrap());
                }
            }
        });
    }
}

#[tokio::test]
async fn a_store_of_layout_2_learns_of_the_backlog() {
    let folder = tempfile::tempdir().unwrap();
    {
        let ledger = Ledger::open(folder.path()).unwrap();
        let source = register(&ledger).await;
        commit(&ledger, &source, Some(read_to(0)), page(burst(-1800, 5, "delete"))).await.unwrap();
    }
    {
        // as the program wrote it before
        let database = Database::create(folder.path().join(STORE_FILE)).unwrap();
        let write = database.begin_write().unwrap();
        write.delete_table(redb::TableDefinition::<&[u8], u64>::new("backlog")).unwrap();
        write.delete_table(redb::TableDefinition::<&[u8], &[u8]>::new("backlog_peaks")).unwrap();
        write.open_table(redb::TableDefinition::<&str, u64>::new("meta")).unwrap().insert("schema", 2).unwrap();
        write.commit().unwrap();
    }
    for known in [0, 7] {
        let ledger = Ledger::open(folder.path()).unwrap();
        let source = register(&ledger).await;
        assert_eq!(events_total(&source), 5 + known);
        catch_up(&ledger, &source, 0, burst(-1500, 7, "delete")).await;
        assert_eq!(backlog(&source, 0), deletions(7, -1500));
    }
}

// --- which store it is ---

/// The generation of the store in a folder, in milliseconds after `at(0)`, by an exporter that starts then.
async fn generation(folder: &Path, now: DateTime<Utc>) -> i64 {
    let ledger = Ledger::open(folder).unwrap();
    assert_eq!(ledger.register_all(vec![], now).await.unwrap().len(), 0, "also where nothing is configured yet");
    let generation = ledger.generation().unwrap();
    ledger.register(&name(), System::Activid, catalogue(), now + TimeDelta::seconds(7)).await.unwrap();
    assert_eq!(ledger.generation(), Some(generation));
    (generation - at(0)).num_milliseconds()
}

/// Puts a backup of a store into a folder of its own.
async fn backup_of(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let file = File::options().read(true).write(true).create_new(true).open(copy.path().join(STORE_FILE)).unwrap();
    Ledger::open(folder).unwrap().backup(file).await.unwrap();
    copy
}

#[tokio::test]
async fn a_new_store_has_a_greater_generation_than_the_one_before_and_a_restart_changes_none() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assert_eq!(Ledger::open(first.path()).unwrap().generation(), None, "nothing was counted in it yet");
    for start in [0, 60, 100_000, -100_000] {
        assert_eq!(generation(first.path(), at(start)).await, 0);
    }
    assert_eq!(generation(second.path(), at(200_000)).await, 200_000_000);
}

#[tokio::test]
async fn a_restored_backup_has_a_greater_generation_once_each_time_it_is_restored() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(generation(folder.path(), at(0)).await, 0);
    let copy = backup_of(folder.path()).await;
    assert_eq!(generation(folder.path(), at(50)).await, 0, "what was copied is the same as before");
    // looking at it is not putting it to use
    for _ in 0..2 {
        let ledger = Ledger::open(copy.path()).unwrap();
        assert!(ledger.find(&name(), System::Activid, catalogue()).await.unwrap().is_some());
    }
    let again = backup_of(copy.path()).await;
    for restored in [&copy, &again] {
        assert_eq!(generation(restored.path(), at(1000)).await, 1_000_000);
        assert_eq!(generation(restored.path(), at(2000)).await, 1_000_000);
    }
    let again = backup_of(copy.path()).await;
    assert_eq!(generation(again.path(), at(-5000)).await, 1_000_001, "by a clock that is wrong it grows, too");
}

#[tokio::test]
async fn a_store_that_was_put_in_the_place_of_a_newer_one_has_a_greater_generation() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(generation(folder.path(), at(0)).await, 0);
    let older = std::fs::read(folder.path().join(STORE_FILE)).unwrap();
    let ledger = Ledger::open(folder.path()).unwrap();
    let source = register(&ledger).await;
    count(&ledger, &source, page(vec![event(1, 1, "user", "create")])).await.unwrap();
    drop((ledger, source));
    // the whole folder elsewhere is the same store
    let moved = tempfile::tempdir().unwrap();
    for name in [STORE_FILE, "ledger.mark"] {
        std::fs::copy(folder.path().join(name), moved.path().join(name)).unwrap();
    }
    assert_eq!(generation(moved.path(), at(100)).await, 0);
    std::fs::write(folder.path().join(STORE_FILE), older).unwrap();
    assert!(matches!(Ledger::open(folder.path()), Err(OpenError::Damaged { .. })));
    std::fs::remove_file(folder.path().join("ledger.mark")).unwrap();
    assert_eq!(generation(folder.path(), at(200)).await, 200_000);
    assert_eq!(generation(folder.path(), at(300)).await, 200_000);
}

#[tokio::test]
async fn a_generation_that_could_not_be_written_down_is_when_there_is_room() {
    let disk = Disk::default();
    let ledger = Ledger::open_with(disk.opener()).unwrap();
    disk.fill_after(0);
    ledger.register_all(vec![], at(0)).await.unwrap_err();
    assert_eq!(ledger.generation(), None);
    disk.make_room();
    ledger.register_all(vec![], at(60)).await.unwrap();
    drop(ledger);
    let ledger = Ledger::open_with(disk.opener()).unwrap();
    ledger.register_all(vec![], at(120)).await.unwrap();
    assert_eq!(ledger.generation(), Some(at(60)));
}

// --- the disk ---

#[tokio::test]
async fn wherever_a_commit_fails_its_page_is_counted_once() {
    let mut failed_but_there = 0;
    for room in 0.. {
        let disk = Disk::default();
        let ledger = Ledger::open_with(disk.opener()).unwrap();
        let source = register(&ledger).await;
        let items = || page(vec![event(1, 1, "user", "create"), event(2, 1, "user", "create")]);
        disk.fill_after(room);
        let done = count(&ledger, &source, items()).await;
        disk.make_room();
        let again = count(&ledger, &source, items()).await.unwrap();
        assert_eq!(
            (events_total(&source), source.state().total(Counter::Actions)),
            (2, 2),
            "room for {room} operations"
        );
        failed_but_there += u32::from(done.is_err() && again.counted == 0);
        if done.is_ok() {
            assert!(room > 5, "the disk was full too late");
            break;
        }
    }
    assert!(failed_but_there > 0, "at its last flush a commit may fail and be there all the same");
}

#[tokio::test]
async fn a_full_disk_stops_the_counting_and_heals_by_itself() {
    let disk = Disk::default();
    let ledger = Ledger::open_with(disk.opener()).unwrap();
    let source = register(&ledger).await;
    count(&ledger, &source, page(vec![event(1, 1, "user", "create")])).await.unwrap();
    disk.fill_after(0);
    for _ in 0..3 {
        let refused = count(&ledger, &source, page(vec![event(2, 1, "user", "create")])).await;
        assert!(matches!(refused, Err(CommitError::Storage(_))), "{refused:?}");
        assert_eq!(events_total(&source), 1, "what was committed is still served");
        assert!(look(&ledger, &source, at(500), Duration::ZERO).await.len() > 1);
    }
    disk.make_room();
    let again = page(vec![event(1, 1, "user", "create"), event(2, 1, "user", "create")]);
    assert_eq!(count(&ledger, &source, again).await.unwrap(), counted(1, 1));
    assert_eq!(events_total(&source), 2);
}

/// Pages of five events, each ending a window; power is lost at any input or output; after each
/// loss the ledger is at a whole page: the last one acknowledged or the one under way.
#[tokio::test]
async fn a_loss_of_power_at_any_moment_leaves_a_whole_number_of_pages() {
    for seed in 0..40 {
        let mut random = StdRng::seed_from_u64(seed);
        let disk = Disk::default();
        let mut acknowledged: u64 = 0;
        let mut losses = 0;
        while losses < 6 {
            let Ok(ledger) = Ledger::open_with(disk.opener()) else {
                disk.lose_power(&mut random);
                continue;
            };
            let Ok(source) = ledger.register(&name(), System::Activid, catalogue(), at(0)).await else {
                drop(ledger);
                disk.lose_power(&mut random);
                continue;
            };
            let pages =
                source.state().checkpoint().map_or(0, |read| u64::try_from((read.head - at(0)).num_seconds()).unwrap());
            assert!(pages == acknowledged || pages == acknowledged + 1, "seed {seed}: {pages} of {acknowledged}");
            acknowledged = pages;
            assert_eq!(events_total(&source), 5 * pages, "seed {seed}");
            assert_eq!(source.state().total(Counter::Actions), 5 * pages, "seed {seed}");
            disk.fail_after(random.random_range(1..150), || {});
            loop {
                // the page before is read again, as the overlap does
                let first = acknowledged.saturating_sub(1) * 5;
                let items = (first..(acknowledged + 1) * 5).map(|n| event(n, 1, "user", "create")).collect();
                let head = at(0) + TimeDelta::seconds(i64::try_from(acknowledged).unwrap() + 1);
                let next = Checkpoint { origin: at(-3600), head, gaps: vec![] };
                if commit(&ledger, &source, Some(next), page(items)).await.is_err() {
                    break;
                }
                acknowledged += 1;
            }
            losses += 1;
            drop((ledger, source));
            disk.lose_power(&mut random);
        }
        assert!(acknowledged > 0, "seed {seed} never got anywhere");
    }
}

#[tokio::test]
async fn a_series_that_was_born_by_a_clock_that_was_wrong_is_not_held_until_then() {
    let (_folder, ledger, source) = opened().await;
    count(&ledger, &source, page(vec![event(1, 1, "user", "create")])).await.unwrap(); // born at 100
    let key = SeriesKey::new(Counter::Events, &["user", "create", "success"]);
    let shown = async |second| {
        let rows = look(&ledger, &source, at(second), Duration::from_mins(1)).await;
        rows.iter().find(|row| *row.key == key).map(|row| row.value)
    };
    assert_eq!(shown(-86_400).await, Some(0), "0 is seen first all the same");
    assert_eq!(shown(-86_400 + 1).await, Some(1));
}

/// Whatever a panic in the store's own thread leaves behind, nobody but the one who asked learns of it.
#[tokio::test]
async fn a_panic_in_the_store_is_an_error_and_the_store_is_read_anew() {
    let (_folder, ledger, source) = opened().await;
    count(&ledger, &source, page(vec![event(1, 1, "user", "create")])).await.unwrap();
    let broken = Arc::clone(&source);
    let fault = ledger.with_store(move |store| -> Result<(), CommitError> {
        let items = vec![event(2, 1, "user", "create")];
        let commit = Commit {
            expected: None,
            next: None,
            page: page(items),
            lost_seconds: 0,
            now: at(100),
            service_now: at(100),
            backlog_from: None,
        };
        let (change, _) = store.write(vec![(Arc::clone(&broken), commit)])?.remove(0);
        let mut state = broken.state.write().unwrap();
        change.apply(&mut state);
        state.series.clear();
        panic!("a fault, with the lock of the visible state in hand");
    });
    let fault = fault.await.unwrap_err();
    assert!(matches!(&fault, CommitError::Fault(why) if why.contains("with the lock")), "{fault}");
    assert_eq!(events_total(&source), 2, "what had reached the disk is what is shown");
    assert!(look(&ledger, &source, at(500), Duration::ZERO).await.len() > 1);
    let again = vec![event(1, 1, "user", "create"), event(2, 1, "user", "create"), event(3, 1, "user", "create")];
    assert_eq!(count(&ledger, &source, page(again)).await.unwrap(), counted(1, 2));
    assert_eq!((events_total(&source), source.state().total(Counter::Actions)), (3, 3));
    assert_eq!(events_total(&*register(&ledger).await), 3);
}

// --- many sources ---

/// A disk that takes its time to flush, and counts how often it does.
#[derive(Clone, Debug)]
struct SlowDisk {
    memory: Arc<redb::backends::InMemoryBackend>,
    flush: Duration,
    flushes: Arc<AtomicU64>,
}

impl redb::StorageBackend for SlowDisk {
    fn len(&self) -> std::io::Result<u64> {
        self.memory.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.memory.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.memory.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(self.flush);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.memory.write(offset, data)
    }
}

impl SlowDisk {
    fn new(flush: Duration) -> Self {
        Self { memory: Arc::new(redb::backends::InMemoryBackend::new()), flush, flushes: Arc::default() }
    }

    fn ledger(&self) -> Ledger {
        let disk = self.clone();
        Ledger::open_with(Box::new(move || Database::builder().create_with_backend(disk.clone()))).unwrap()
    }

    fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }
}

async fn register_many(ledger: &Ledger, count: usize) -> Vec<Arc<Book>> {
    let registration = |n| Registration {
        name: format!("source{n}").parse().unwrap(),
        system: System::Losant,
        catalogue: catalogue(),
    };
    ledger.register_all((0..count).map(registration).collect(), at(0)).await.unwrap()
}

#[tokio::test]
async fn a_thousand_sources_are_made_known_with_the_flushes_of_one() {
    let disk = SlowDisk::new(Duration::ZERO);
    let ledger = disk.ledger();
    let before = disk.flushes();
    register_many(&ledger, 1).await;
    let of_one = disk.flushes() - before;
    let sources = register_many(&ledger, 1000).await;
    assert_eq!(disk.flushes() - before, 2 * of_one);
    assert!(sources[1..].iter().all(|source| source.is_new()) && sources[0].state().series.len() > 5);
    let ids: BTreeSet<u32> = sources.iter().map(|source| source.id).collect();
    assert_eq!(ids.len(), 1000, "each has a number of its own");
    count(&ledger, &sources[7], page(vec![event(1, 1, "user", "create")])).await.unwrap();
    // a reload, and a restart
    let again = register_many(&ledger, 1000).await;
    assert!(sources.iter().zip(&again).all(|(before, after)| Arc::ptr_eq(before, after)));
    drop((sources, again, ledger));
    let flushes = disk.flushes();
    let ledger = disk.ledger();
    let opened = disk.flushes() - flushes;
    let sources = register_many(&ledger, 1000).await;
    assert_eq!((events_total(&sources[7]), events_total(&sources[8])), (1, 0));
    assert!(sources.iter().all(|source| !source.is_new()));
    assert_eq!(disk.flushes() - flushes, opened, "nothing is written where nothing is new");
    let mixed = register_many(&ledger, 1001).await;
    assert!(mixed[1000].is_new() && ids.iter().all(|id| mixed[1000].id > *id));
}

/// Lets commits queue up while the store is held, and returns their outcomes.
async fn together(ledger: &Ledger, commits: Vec<(Arc<Book>, Commit)>) -> Vec<Result<Committed, CommitError>> {
    let (free, held) = std::sync::mpsc::channel::<()>();
    let (taken, is_held) = oneshot::channel();
    let holder = ledger.clone();
    let holder = tokio::spawn(async move {
        let wait = move |_: &mut Store| {
            let _ = taken.send(());
            let _ = held.recv();
            Ok(())
        };
        holder.with_store(wait).await
    });
    is_held.await.unwrap();
    let wanted = commits.len();
    let mut tasks = Vec::new();
    for (n, (source, commit)) in commits.into_iter().enumerate() {
        let ledger = ledger.clone();
        let queue = Arc::clone(&ledger.queue);
        tasks.push(tokio::spawn(async move { ledger.commit(&source, commit).await }));
        while queue.lock().unwrap().waiting.len() <= n {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(ledger.queue.lock().unwrap().waiting.len(), wanted);
    free.send(()).unwrap();
    holder.await.unwrap().unwrap();
    let mut outcomes = Vec::new();
    for task in tasks {
        outcomes.push(task.await.unwrap());
    }
    outcomes
}

fn commit_of(expected: Option<Checkpoint>, next: Option<Checkpoint>, id: u64) -> Commit {
    let page = page(vec![event(id, 1, "user", "create")]);
    Commit { expected, next, page, lost_seconds: 0, now: at(100), service_now: at(100), backlog_from: None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_wait_for_the_disk_share_one_flush_and_each_has_its_own_outcome() {
    let disk = SlowDisk::new(Duration::from_millis(1));
    let ledger = disk.ledger();
    let sources = register_many(&ledger, 50).await;
    let before = disk.flushes();
    count(&ledger, &sources[0], page(vec![event(0, 1, "user", "create")])).await.unwrap();
    let of_one = disk.flushes() - before;

    let mut commits: Vec<_> =
        sources.iter().map(|source| (Arc::clone(source), commit_of(None, Some(read_to(10)), 1))).collect();
    commits[7].1.expected = Some(read_to(5)); // what another reader had
    // the next page of a source, and one of a reader that does not know of it
    commits.push((Arc::clone(&sources[3]), commit_of(Some(read_to(10)), Some(read_to(20)), 2)));
    commits.push((Arc::clone(&sources[4]), commit_of(None, Some(read_to(20)), 2)));
    let before = disk.flushes();
    let outcomes = together(&ledger, commits).await;
    assert_eq!(disk.flushes() - before, 2 * of_one, "all first pages are one transaction, a second page another");
    for (n, outcome) in outcomes.iter().enumerate() {
        match n {
            7 | 51 => assert!(matches!(outcome, Err(CommitError::Conflict { .. })), "{n}: {outcome:?}"),
            _ => assert_eq!(outcome.as_ref().unwrap(), &counted(1, 0), "{n}"),
        }
    }
    let totals: Vec<u64> = sources.iter().map(|source| events_total(source)).collect();
    let expected = |n| match n {
        7 => 0,
        0 | 3 => 2,
        _ => 1,
    };
    assert_eq!(totals, (0..50).map(expected).collect::<Vec<_>>());
    drop((ledger, sources));
    let sources = register_many(&disk.ledger(), 50).await;
    assert_eq!(totals, sources.iter().map(|source| events_total(source)).collect::<Vec<_>>(), "as it is on the disk");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_disk_fails_all_commits_of_a_transaction_fail_and_none_is_counted_twice_later() {
    for room in 0..12 {
        let disk = Disk::default();
        let ledger = Ledger::open_with(disk.opener()).unwrap();
        let sources = register_many(&ledger, 8).await;
        let commits =
            |id| sources.iter().map(|source| (Arc::clone(source), commit_of(None, None, id))).collect::<Vec<_>>();
        disk.fill_after(room);
        let outcomes = together(&ledger, commits(1)).await;
        let failed = outcomes.iter().filter(|outcome| matches!(outcome, Err(CommitError::Storage(_)))).count();
        assert!(failed == 0 || failed == 8, "room for {room} operations: {outcomes:?}");
        disk.make_room();
        for outcome in together(&ledger, commits(1)).await {
            outcome.unwrap();
        }
        assert!(sources.iter().all(|source| events_total(source) == 1), "room for {room} operations");
    }
}

/// A hundred sources, each with an event a second, on a disk that takes 10 ms to flush.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_sources_with_an_event_a_second_do_not_queue_for_a_slow_disk() {
    let disk = SlowDisk::new(Duration::from_millis(10));
    let ledger = disk.ledger();
    let sources = register_many(&ledger, 100).await;
    let before = disk.flushes();
    let commit_at_once = async |id| {
        let begun = tokio::time::Instant::now();
        let commits = sources.iter().map(|source| {
            let (ledger, source) = (ledger.clone(), Arc::clone(source));
            tokio::spawn(async move { ledger.commit(&source, commit_of(None, None, id)).await })
        });
        for commit in commits.collect::<Vec<_>>() {
            assert_eq!(commit.await.unwrap().unwrap(), counted(1, 0));
        }
        begun.elapsed()
    };
    let mut longest = Duration::ZERO;
    for second in 0..3 {
        longest = longest.max(commit_at_once(second).await);
    }
    let flushes = disk.flushes() - before;
    eprintln!("{flushes} flushes for 300 commits; the longest took {longest:?}");
    assert!(flushes < 100, "{flushes} flushes for 300 commits");
    assert!(sources.iter().all(|source| events_total(source) == 3));
}

/// With a store that cannot be written the time is left out; with one that can it is set right for good.
#[tokio::test]
async fn a_series_is_never_created_later_than_now_also_where_the_clock_was_set_back() {
    let disk = Disk::default();
    let ledger = Ledger::open_with(disk.opener()).unwrap();
    let source = register(&ledger).await;
    count(&ledger, &source, page(vec![event(1, 1, "user", "create")])).await.unwrap(); // born at 100
    let key = SeriesKey::new(Counter::Events, &["user", "create", "success"]);
    let created = async |second| {
        let rows = look(&ledger, &source, at(second), Duration::ZERO).await;
        assert!(rows.iter().all(|row| row.born.is_none_or(|born| born <= at(second))), "at {second}");
        rows.iter().find(|row| *row.key == key).unwrap().born
    };
    assert_eq!((created(200).await, created(201).await), (Some(at(100)), Some(at(100))));
    disk.fill_after(0);
    assert_eq!(created(-500).await, None);
    disk.make_room();
    assert_eq!(created(-400).await, Some(at(-400)));
    assert_eq!(created(300).await, Some(at(-400)), "it does not move again: that would look like a reset");
    let (ledger, source) = {
        drop((ledger, source));
        let ledger = Ledger::open_with(disk.opener()).unwrap();
        let source = register(&ledger).await;
        (ledger, source)
    };
    let rows = look(&ledger, &source, at(400), Duration::ZERO).await;
    assert_eq!(rows.iter().find(|row| *row.key == key).unwrap().born, Some(at(-400)), "after a restart, too");
}

/// One page never says that taint was found and counts none.
#[tokio::test]
async fn taint_is_not_told_before_the_counter_of_tainted_records_tells_it() {
    let (_folder, ledger, source) = opened().await;
    let tainted = What::Tainted { candidates: vec![EventKey::of("tainted", &[b"1"])] };
    let mut found =
        page(vec![Item { key: EventKey::of("tainted", &[b"1"]), what: tainted, ..event(1, 1, "user", "create") }]);
    found.facts.tainted = Some(true);
    count(&ledger, &source, found).await.unwrap();
    for (taint, last, counted) in [(None, None, 0), (Some(true), Some(at(100)), 1)] {
        let (mut seen, receipt) = ledger.scrape(&[Arc::clone(&source)], at(200), Duration::ZERO, &Client::Other).await;
        receipt.taken();
        let seen = seen.remove(0);
        let shown = seen.counters.iter().find(|row| row.key.counter == Counter::Tainted).unwrap().value;
        assert_eq!((seen.facts.tainted, seen.last_tainted, shown), (taint, last, counted));
    }
}
