//! What the ledger promises on whichever store: each promise is one test of every maker of stores.
//!
//! A promise that is missing in the list at the end is dead code, and does not compile.

use std::collections::BTreeSet;

use super::*;
use crate::event::{RejectReason, Rejection};
use crate::window::{KEYS_BUCKET, floor};

/// Makes stores of one kind.
trait Maker {
    /// From now on it is a new one, in which nothing was counted.
    fn begin(&self);

    /// A ledger on the store, which nobody else has open: as after a restart.
    fn open(&self) -> Ledger;
}

#[derive(Default)]
struct InFolder(Mutex<Option<tempfile::TempDir>>);

impl Maker for InFolder {
    fn begin(&self) {
        *self.0.lock().unwrap() = None;
    }

    fn open(&self) -> Ledger {
        let mut folder = self.0.lock().unwrap();
        Ledger::open(folder.get_or_insert_with(|| tempfile::tempdir().unwrap()).path()).unwrap()
    }
}

#[derive(Default)]
struct InMemory(Mutex<store::MemoryStore>);

impl Maker for InMemory {
    fn begin(&self) {
        *self.0.lock().unwrap() = store::MemoryStore::default();
    }

    fn open(&self) -> Ledger {
        Ledger::of(Arc::new(self.0.lock().unwrap().clone()))
    }
}

/// A new ledger and its source.
async fn opened(maker: &dyn Maker) -> (Ledger, Arc<Book>) {
    maker.begin();
    let ledger = maker.open();
    let source = register(&ledger).await;
    (ledger, source)
}

async fn an_event_read_again_is_not_counted_again_not_even_after_a_restart(maker: &dyn Maker) {
    let items = || vec![event(1, 1, "user", "create"), event(2, 2, "user", "create"), event(2, 2, "user", "create")];
    {
        let ledger = maker.open();
        let source = register(&ledger).await;
        let committed = count(&ledger, &source, page(items())).await.unwrap();
        assert_eq!(committed, counted(2, 1));
    }
    let ledger = maker.open();
    let source = register(&ledger).await;
    assert_eq!(events_total(&source), 2);
    assert_eq!(source.state().last_event(), Some(at(2)));
    let committed = count(&ledger, &source, page(items())).await.unwrap();
    assert_eq!(committed, counted(0, 3));
    assert_eq!(events_total(&source), 2);
    assert_eq!(source.state().total(Counter::Duplicate), 4);
    assert_eq!(source.state().value(&SeriesKey::new(Counter::Actions, &["user", "create", "success"])), 2);
}

async fn events_without_any_time_are_counted_once_too_and_forgotten_with_the_hour_they_were_seen_in(maker: &dyn Maker) {
    let (ledger, source) = opened(maker).await;
    commit(&ledger, &source, Some(read_to(0)), timeless()).await.unwrap();
    assert_eq!(count(&ledger, &source, timeless()).await.unwrap().duplicate, 1);
    let later = Checkpoint { origin: at(7200), head: at(10_000), gaps: vec![] };
    commit(&ledger, &source, Some(later), Page::default()).await.unwrap();
    assert_eq!(count(&ledger, &source, timeless()).await.unwrap().counted, 1, "its key was dropped");
}

async fn events_without_any_time_are_remembered_by_the_service_s_clock(maker: &dyn Maker) {
    let (ledger, source) = opened(maker).await;
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

async fn keys_are_forgotten_only_before_the_origin(maker: &dyn Maker) {
    let (ledger, source) = opened(maker).await;
    let both = || page(vec![event(1, 0, "user", "create"), event(2, 7200, "user", "create")]);
    commit(&ledger, &source, Some(read_to(0)), both()).await.unwrap();
    let moved = Checkpoint { origin: at(3600), head: at(9000), gaps: vec![] };
    commit(&ledger, &source, Some(moved), Page::default()).await.unwrap();
    assert_eq!(count(&ledger, &source, both()).await.unwrap(), counted(1, 1));
}

async fn a_page_read_from_another_checkpoint_is_refused_whole(maker: &dyn Maker) {
    let (ledger, source) = opened(maker).await;
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

async fn ten_thousand_new_values_are_capped_and_the_totals_stay_exact(maker: &dyn Maker) {
    let (ledger, source) = opened(maker).await;
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

async fn which_values_were_admitted_survives_a_restart(maker: &dyn Maker) {
    let fill = || page((0..60).map(|n| event(n, 1, &format!("c{n}"), "create")).collect());
    {
        let ledger = maker.open();
        let source = register(&ledger).await;
        count(&ledger, &source, fill()).await.unwrap();
    }
    let ledger = maker.open();
    let source = register(&ledger).await;
    count(&ledger, &source, page(vec![event(100, 1, "novel", "create")])).await.unwrap();
    assert_eq!(source.state().value(&SeriesKey::new(Counter::Events, &["novel", "create", "success"])), 0);
    assert_eq!(source.state().value(&SeriesKey::new(Counter::LabelOverflow, &["category"])), 11);
}

async fn a_series_is_0_until_a_scrape_saw_that_and_the_hold_has_passed_and_never_goes_back(maker: &dyn Maker) {
    let (ledger, source) = opened(maker).await;
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
    let ledger = maker.open();
    let source = register(&ledger).await;
    assert_eq!(shown(&ledger, &source, 162).await, Some(2), "after a restart, too");
}

async fn the_catalogue_exists_from_the_first_start(maker: &dyn Maker) {
    let (ledger, source) = opened(maker).await;
    let rows = look(&ledger, &source, at(0), Duration::ZERO).await;
    let names: BTreeSet<_> = rows.iter().map(|row| row.key.counter.name()).collect();
    for expected in
        ["audit_events_total", "audit_logins_total", "audit_tainted_feeds_total", "audit_source_lost_seconds_total"]
    {
        assert!(names.contains(expected), "{expected}");
    }
}

async fn events_older_than_the_watermark_are_late_and_their_lateness_is_measured(maker: &dyn Maker) {
    let (ledger, source) = opened(maker).await;
    commit(&ledger, &source, Some(read_to(50)), Page::default()).await.unwrap();
    count(&ledger, &source, page(vec![event(1, 49, "user", "create"), event(2, 50, "user", "create")])).await.unwrap();
    let state = source.state();
    assert_eq!(state.total(Counter::Late), 1);
    assert_eq!(state.lateness().sum_ms, 51_000 + 50_000);
    assert_eq!(state.lateness().buckets[4], 2, "between 30 and 60 s");
}

async fn what_is_ignored_or_rejected_is_counted_once_as_that(maker: &dyn Maker) {
    let (ledger, source) = opened(maker).await;
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

async fn a_tainted_record_counts_once_even_when_later_only_a_group_can_be_named(maker: &dyn Maker) {
    let (ledger, source) = opened(maker).await;
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

async fn when_taint_was_last_found_is_when_the_counter_last_grew_also_after_a_restart(maker: &dyn Maker) {
    let (mut ledger, mut source) = opened(maker).await;
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
        ledger = maker.open();
        source = register(&ledger).await;
    }
    assert_eq!((counter, last(&source)), (3, Some(at(500))));
}

async fn a_replaced_file_adds_only_the_rows_it_gained(maker: &dyn Maker) {
    let (ledger, source) = opened(maker).await;
    count(&ledger, &source, file(1, &[("impression", 10)])).await.unwrap();
    count(&ledger, &source, file(2, &[("impression", 13), ("bid", 2)])).await.unwrap();
    count(&ledger, &source, file(3, &[("impression", 4)])).await.unwrap();
    drop((source, ledger));
    let ledger = maker.open();
    let source = register(&ledger).await;
    assert_eq!(events_total(&source), 15);
    assert_eq!(source.state().documents().len(), 1);
    count(&ledger, &source, file(2, &[("impression", 13), ("bid", 3)])).await.unwrap();
    assert_eq!(events_total(&source), 16);
}

async fn an_event_that_comes_again_with_another_time_is_the_same_event(maker: &dyn Maker) {
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
        let (ledger, source) = opened(maker).await;
        assert_eq!(count(&ledger, &source, page(items().collect())).await.unwrap(), once, "on one page: {times:?}");

        let (ledger, source) = opened(maker).await;
        commit(&ledger, &source, Some(read_to(0)), Page::default()).await.unwrap();
        for item in items() {
            count(&ledger, &source, page(vec![item, event(2, 10, "user", "create")])).await.unwrap();
        }
        assert_eq!(events_total(&source), 2, "page by page: {times:?}");
        drop((ledger, source));

        let ledger = maker.open();
        let source = register(&ledger).await;
        let fresh = dated(3, Some(20));
        let again = vec![dated(1, Some(1234)), fresh.clone(), Item { at: Some(at(1)), filed_at: Some(at(1)), ..fresh }];
        assert_eq!(count(&ledger, &source, page(again)).await.unwrap(), counted(1, 2), "after a restart: {times:?}");
        assert_eq!(source.state().total(Counter::Late), u64::from(times[0].is_some_and(|second| second < 0)));
    }
}

async fn an_event_with_a_new_time_is_remembered_as_long_as_that_time(maker: &dyn Maker) {
    let (ledger, source) = opened(maker).await;
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

async fn what_is_ignored_or_rejected_does_not_become_an_event_with_another_time(maker: &dyn Maker) {
    let (ledger, source) = opened(maker).await;
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

async fn keys_of_two_sources_are_not_taken_for_each_other(maker: &dyn Maker) {
    let (ledger, source) = opened(maker).await;
    let other = ledger.register(&"other".parse().unwrap(), System::named("losant"), catalogue(), at(0)).await.unwrap();
    for (source, second) in [(&source, 1), (&other, 2), (&source, 3), (&other, 4)] {
        count(&ledger, source, page(vec![dated(1, Some(second))])).await.unwrap();
    }
    assert_eq!((events_total(&source), events_total(&other)), (1, 1));
}

async fn an_event_without_a_time_of_its_own_is_late_where_all_of_its_cell_was_read_before(maker: &dyn Maker) {
    let (ledger, source) = opened(maker).await;
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

async fn what_was_counted_is_tallied_by_five_minutes_and_labels_once(maker: &dyn Maker) {
    let items =
        || vec![event(1, 1, "user", "create"), event(2, 299, "user", "create"), event(3, 300, "role", "create")];
    let timeless = Item { at: None, filed_at: None, ..event(4, 0, "user", "create") };
    {
        let ledger = maker.open();
        let source = register(&ledger).await;
        commit(&ledger, &source, Some(read_to(0)), page(items())).await.unwrap();
    }
    let ledger = maker.open();
    let source = ledger.find(&name(), System::named("activid"), catalogue()).await.unwrap().unwrap();
    count(&ledger, &source, page(items().into_iter().chain([event(5, 2, "user", "create"), timeless]).collect()))
        .await
        .unwrap();
    let first = (0, "user,create,success".to_owned(), 3);
    let second = (300, "role,create,success".to_owned(), 1);
    assert_eq!(tallied(&ledger, &source, 0, 600).await, [first.clone(), second]);
    assert_eq!(tallied(&ledger, &source, 0, 300).await, [first]);
    assert_eq!(source.state().tallied_from(), Some(at(-3600)), "from where counting began");
    assert!(
        ledger.find(&name(), System::named("losant"), catalogue()).await.unwrap().is_none(),
        "nothing was made known"
    );
    count(&ledger, &source, file(1, &[("impression", 10)])).await.unwrap();
    count(&ledger, &source, file(2, &[("impression", 12)])).await.unwrap();
    assert!(tallied(&ledger, &source, 0, 300).await.contains(&(0, "impressions,impression,unknown".into(), 12)));
}

async fn the_tally_of_an_event_follows_its_time(maker: &dyn Maker) {
    let (ledger, source) = opened(maker).await;
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

async fn values_beyond_the_cap_are_tallied_and_compared_as_other(maker: &dyn Maker) {
    let (ledger, source) = opened(maker).await;
    let sixty = || (0..60).map(|n| event(n, 1, &format!("c{n}"), "create"));
    count(&ledger, &source, page(sixty().collect())).await.unwrap();
    let found = (0..60).map(|n| ((labels(&format!("c{n}"), "create"), at(0)), 1)).collect();
    let tallies = ledger.tallies(&source, Window { from: at(0), to: at(300) }).await.unwrap();
    assert_eq!(source.state().as_counted(&found), tallies);
    assert_eq!(tallies[&(at(0), SeriesKey::new(Counter::Events, &["other", "create", "success"]))], 10);
}

async fn tallies_are_kept_for_two_weeks_and_nobody_is_told_that_they_are_whole_before_that(maker: &dyn Maker) {
    let (ledger, source) = opened(maker).await;
    let day = 86_400;
    commit(&ledger, &source, Some(read_to(0)), page(vec![event(1, 0, "user", "create")])).await.unwrap();
    let later = Checkpoint { origin: at(15 * day), head: at(15 * day), gaps: vec![] };
    commit(&ledger, &source, Some(later), page(vec![event(2, 15 * day, "user", "create")])).await.unwrap();
    assert_eq!(tallied(&ledger, &source, -day, 20 * day).await.len(), 1, "the first was dropped");
    assert_eq!(source.state().tallied_from(), Some(at(day)));
    count(&ledger, &source, page(vec![event(3, 10, "user", "create")])).await.unwrap();
    assert_eq!(tallied(&ledger, &source, -day, day).await, [], "and is not begun again");
}

async fn the_highest_15_minutes_of_a_backlog_are_told_with_their_beginning(maker: &dyn Maker) {
    let (ledger, source) = opened(maker).await;
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
async fn what_has_no_time_is_told_where_an_outage_may_have_held_it_back(maker: &dyn Maker) {
    let (ledger, source) = opened(maker).await;
    let of = |cell: i64, count| {
        let timeless = move |item: Item| Item { at: None, filed_at: Some(at(cell)), ..item };
        burst(cell, count, "delete").into_iter().map(timeless)
    };
    catch_up(&ledger, &source, 0, of(-5400, 900).collect()).await;
    assert_eq!(backlog(&source, 0), [], "whole five minutes before it");
    catch_up(&ledger, &source, 0, of(-5100, 7).chain(of(-4800, 2)).collect()).await;
    assert_eq!(backlog(&source, 0), deletions(9, -5100));
}

async fn an_attack_over_pages_pieces_and_restarts_is_one_and_reading_again_does_not_double_it(maker: &dyn Maker) {
    // newest first, as some services list, or oldest first
    for pages in [[(-1200, 40), (-1500, 50), (-1800, 60)], [(-1800, 60), (-1500, 50), (-1200, 40)]] {
        maker.begin();
        let mut told = Vec::new();
        for (n, (second, count)) in (0..).zip(pages) {
            let ledger = maker.open();
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
        let ledger = maker.open();
        let source = register(&ledger).await;
        assert_eq!(backlog(&source, 200), told, "after a restart");
        assert_eq!(backlog(&source, 3600 + 119)[0].1, 150, "an hour after its last page");
        assert_eq!(backlog(&source, 3600 + 120)[0].1, 0);
    }
}

async fn a_series_that_was_born_by_a_clock_that_was_wrong_is_not_held_until_then(maker: &dyn Maker) {
    let (ledger, source) = opened(maker).await;
    count(&ledger, &source, page(vec![event(1, 1, "user", "create")])).await.unwrap(); // born at 100
    let key = SeriesKey::new(Counter::Events, &["user", "create", "success"]);
    let shown = async |second| {
        let rows = look(&ledger, &source, at(second), Duration::from_mins(1)).await;
        rows.iter().find(|row| *row.key == key).map(|row| row.value)
    };
    assert_eq!(shown(-86_400).await, Some(0), "0 is seen first all the same");
    assert_eq!(shown(-86_400 + 1).await, Some(1));
}

/// One page never says that taint was found and counts none.
async fn taint_is_not_told_before_the_counter_of_tainted_records_tells_it(maker: &dyn Maker) {
    let (ledger, source) = opened(maker).await;
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

/// Tries each promise on each maker.
macro_rules! store_promises {
    ($($promise:ident,)*) => {
        store_promises!(in_folder, super::InFolder::default(), $($promise,)*);
        store_promises!(in_memory, super::InMemory::default(), $($promise,)*);
    };
    ($maker:ident, $make:expr, $($promise:ident,)*) => {
        mod $maker {
            $(#[tokio::test]
            async fn $promise() {
                super::$promise(&$make).await;
            })*
        }
    };
}

store_promises! {
    an_event_read_again_is_not_counted_again_not_even_after_a_restart,
    events_without_any_time_are_counted_once_too_and_forgotten_with_the_hour_they_were_seen_in,
    events_without_any_time_are_remembered_by_the_service_s_clock,
    keys_are_forgotten_only_before_the_origin,
    a_page_read_from_another_checkpoint_is_refused_whole,
    ten_thousand_new_values_are_capped_and_the_totals_stay_exact,
    which_values_were_admitted_survives_a_restart,
    a_series_is_0_until_a_scrape_saw_that_and_the_hold_has_passed_and_never_goes_back,
    the_catalogue_exists_from_the_first_start,
    events_older_than_the_watermark_are_late_and_their_lateness_is_measured,
    what_is_ignored_or_rejected_is_counted_once_as_that,
    a_tainted_record_counts_once_even_when_later_only_a_group_can_be_named,
    when_taint_was_last_found_is_when_the_counter_last_grew_also_after_a_restart,
    a_replaced_file_adds_only_the_rows_it_gained,
    an_event_that_comes_again_with_another_time_is_the_same_event,
    an_event_with_a_new_time_is_remembered_as_long_as_that_time,
    what_is_ignored_or_rejected_does_not_become_an_event_with_another_time,
    keys_of_two_sources_are_not_taken_for_each_other,
    an_event_without_a_time_of_its_own_is_late_where_all_of_its_cell_was_read_before,
    what_was_counted_is_tallied_by_five_minutes_and_labels_once,
    the_tally_of_an_event_follows_its_time,
    values_beyond_the_cap_are_tallied_and_compared_as_other,
    tallies_are_kept_for_two_weeks_and_nobody_is_told_that_they_are_whole_before_that,
    the_highest_15_minutes_of_a_backlog_are_told_with_their_beginning,
    what_has_no_time_is_told_where_an_outage_may_have_held_it_back,
    an_attack_over_pages_pieces_and_restarts_is_one_and_reading_again_does_not_double_it,
    a_series_that_was_born_by_a_clock_that_was_wrong_is_not_held_until_then,
    taint_is_not_told_before_the_counter_of_tainted_records_tells_it,
}
