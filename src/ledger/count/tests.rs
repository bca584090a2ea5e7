//! Counting, by values alone: what a page changes, given what the store says of its keys.

use super::*;
use crate::event::{Class, Outcome, Principal, RejectReason};

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
}

fn labels(category: &str, action: &str) -> EventLabels {
    let class = if action == "login" { Class::Login(Principal::User) } else { Class::Change };
    let (category, action) = (Label::from_words(category), Label::from_words(action));
    EventLabels { category, action, outcome: Outcome::Failure, class }
}

fn key(id: u8) -> EventKey {
    EventKey::of("test", &[&[id]])
}

fn event(id: u8, second: Option<i64>, category: &str, action: &str) -> Item {
    Item { key: key(id), at: second.map(at), filed_at: second.map(at), what: What::Event(labels(category, action)) }
}

fn commit(items: Vec<Item>) -> Commit {
    let page = Page { items, ..Page::default() };
    let next = Some(read_to(0));
    Commit { expected: None, next, page, lost_seconds: 0, now: at(100), service_now: at(100), backlog_from: None }
}

fn read_to(second: i64) -> Checkpoint {
    Checkpoint { origin: at(second - 3600), head: at(second), gaps: vec![] }
}

/// A state in which so many values of `category` are taken, and that was read to `at(0)`.
fn state(taken: usize) -> State {
    let mut state = State { record: Record { checkpoint: Some(read_to(0)), ..Record::default() }, ..State::default() };
    for n in 0..taken {
        assert!(state.categories.admit(&Label::from_words(&format!("c{n}"))));
    }
    state
}

/// Counts a page of which all keys are new.
fn counted(state: &State, mut commit: Commit) -> Counted {
    let keys = keys_of(&mut commit);
    count(state, commit, &vec![Recalled::New; keys.asked.len()])
}

fn rows(counted: &Counted) -> Vec<(&'static str, String, u64)> {
    let row = |row: &SeriesRow| (row.key.counter.name(), row.key.values.join(","), row.value);
    counted.change.series.iter().map(row).collect()
}

#[test]
fn keys_are_asked_for_in_the_order_of_time_and_what_has_none_comes_last() {
    let tainted = What::Tainted { candidates: vec![key(7), key(8)] };
    let mut commit = commit(vec![
        event(1, None, "user", "create"),
        event(2, Some(9), "user", "create"),
        Item { what: tainted, ..event(3, Some(5), "user", "create") },
    ]);
    let Keys { asked, hour } = keys_of(&mut commit);
    assert_eq!(hour, hour_of(at(100)));
    let [Asked::Taint { key: first, candidates, .. }, Asked::Item { key: second, .. }, last] = &asked[..] else {
        panic!("{asked:?}")
    };
    assert_eq!((*first, candidates.len(), *second), (key(3), 2, key(2)));
    assert!(matches!(last, Asked::Item { second: None, .. }), "{last:?}");
}

#[test]
fn an_event_adds_one_to_each_of_its_series_and_to_one_tally() {
    let counted =
        counted(&state(0), commit(vec![event(1, Some(1), "user", "create"), event(2, Some(2), "user", "create")]));
    assert_eq!(
        rows(&counted),
        [
            ("audit_events_total", "user,create,failure".into(), 2),
            ("audit_failures_total", "user,create".into(), 2),
            ("audit_actions_total", "user,create,failure".into(), 2),
        ]
    );
    assert_eq!(counted.committed, Committed { counted: 2, ..Committed::default() });
    let tallies: Vec<(u32, u64)> = counted.change.tallies.iter().map(|((cell, _), count)| (*cell, *count)).collect();
    assert_eq!(tallies, [(cell_of(second_of(at(1))), 2)]);
    assert_eq!(counted.change.record.last_event, Some(at(2)));
}

#[test]
fn what_is_known_is_a_duplicate_and_its_tally_follows_its_time() {
    let mut commit = commit(vec![event(1, Some(10), "user", "create"), event(2, Some(400), "user", "create")]);
    _ = keys_of(&mut commit);
    let moved = Recalled::Moved { from: second_of(at(0)), to: second_of(at(400)) };
    let counted = count(&state(0), commit, &[Recalled::Known, moved]);
    assert_eq!(rows(&counted), [("audit_source_events_duplicate_total", String::new(), 2)]);
    assert_eq!((counted.committed.counted, counted.committed.duplicate), (0, 2));
    let [moved] = &counted.change.moved[..] else { panic!("{:?}", counted.change.moved) };
    assert_eq!((moved.from, moved.to), (cell_of(second_of(at(0))), cell_of(second_of(at(400)))));
}

#[test]
fn values_beyond_the_cap_count_as_other_and_which_does_not_depend_on_their_order() {
    let of = |categories: [&str; 3]| {
        let items = (0..).zip(categories).map(|(id, category)| event(id, Some(1), category, "create")).collect();
        rows(&counted(&state(super::super::LABEL_VALUES_MAX - 1), commit(items)))
    };
    let expected = of(["x", "y", "z"]);
    assert_eq!(expected[0], ("audit_events_total", "other,create,failure".into(), 2));
    assert_eq!(expected[1], ("audit_events_total", "x,create,failure".into(), 1));
    assert!(expected.contains(&("audit_label_overflow_total", "category".into(), 2)), "{expected:?}");
    assert_eq!(of(["z", "y", "x"]), expected);
}

#[test]
fn series_go_on_from_their_value_keep_their_birth_and_new_ones_are_held() {
    let mut state = state(0);
    let known = SeriesKey::new(Counter::Ignored, &[]);
    state.series.insert(known.clone().into(), Series::new(7, at(-500), true));
    let ignored = Item { what: What::Ignored, ..event(1, Some(1), "", "") };
    let rejected = What::Rejected(Rejection { reason: RejectReason::Malformed, sample: "{}".into() });
    let counted = counted(&state, commit(vec![ignored, Item { what: rejected, ..event(2, Some(1), "", "") }]));
    let row = |key, value, born, released| SeriesRow { key, value, born, released };
    let rejected = SeriesKey::new(Counter::Rejected, &["malformed"]);
    assert_eq!(counted.change.series, [row(known.clone(), 8, at(-500), true), row(rejected, 1, at(100), false)]);
    assert_eq!(counted.committed.rejections.len(), 1);
    counted.change.apply(&mut state);
    assert_eq!((state.value(&known), state.series.len()), (8, 2));
}

#[test]
fn lateness_is_measured_by_the_service_s_clock_and_what_was_read_over_is_late() {
    let of = |second| {
        counted(&state(0), Commit { next: Some(read_to(50)), ..commit(vec![event(1, second, "user", "create")]) })
    };
    let on_time = of(Some(40));
    assert_eq!(on_time.change.record.lateness.sum_ms, 60_000);
    assert!(!rows(&on_time).iter().any(|(name, ..)| *name == "audit_source_events_late_total"));
    let late = of(Some(-40));
    assert_eq!(late.change.record.lateness.sum_ms, 140_000);
    assert!(rows(&late).contains(&("audit_source_events_late_total", String::new(), 1)));
    assert_eq!(of(None).change.record.lateness.sum_ms, 0, "nothing is known of what has no time");
}

#[test]
fn only_what_an_outage_held_back_is_backlog() {
    let items = vec![
        event(1, Some(-301), "user", "delete"),
        event(2, Some(-299), "user", "delete"),
        event(3, Some(1), "user", "delete"),
    ];
    let counted = counted(&state(0), Commit { backlog_from: Some(at(-300)), ..commit(items) });
    let [held_back] = &counted.change.backlog[..] else { panic!("{:?}", counted.change.backlog) };
    assert_eq!(held_back.series.values.join(","), "user,delete,failure");
    assert_eq!(held_back.cells.values().sum::<u64>(), 2);
    assert_eq!(held_back.peaks, Peaks::default(), "the store knows what the cells hold");
}

#[test]
fn nothing_is_forgotten_before_the_origin_has_moved_by_an_hour() {
    let forgotten =
        |second| counted(&state(0), Commit { next: Some(read_to(second)), ..commit(vec![]) }).change.forgotten;
    let same = floor(at(-3600), KEYS_BUCKET) + TimeDelta::hours(1) - at(-3600);
    let before = forgotten(same.num_seconds() - 1);
    assert!(before.keys.is_none() && before.tallies.is_none() && before.backlog.is_none(), "{before:?}");
    let after = forgotten(same.num_seconds());
    assert_eq!(after.keys, Some(floor(at(-3600) + same, KEYS_BUCKET)));
    assert!(after.tallies.is_some() && after.backlog.is_some() && after.documents.is_none(), "{after:?}");
}

#[test]
fn a_file_adds_the_rows_it_gained_and_old_files_are_forgotten_with_it() {
    let document = |id: u8, filed_at, rows: u64| Document {
        key: key(id),
        filed_at,
        version: key(id),
        category: Label::from_words("impressions"),
        rows: [(Label::from_words("impression"), rows)].into(),
        rejected: 0,
    };
    let add = |state: &mut State, documents| {
        let page = Page { documents, ..Page::default() };
        let counted = counted(state, Commit { page, ..commit(vec![]) });
        let (added, forgotten) = (counted.committed.counted, counted.change.forgotten.documents);
        counted.change.apply(state);
        (added, forgotten)
    };
    let mut state = state(0);
    let old = at(100) - delta(DOCUMENTS_KEPT);
    let (added, forgotten) = add(&mut state, vec![document(1, at(0), 10), document(2, old, 5)]);
    assert_eq!((added, forgotten), (15, Some(old)));
    assert_eq!(state.documents.len(), 2, "it is not before that moment");
    assert_eq!(add(&mut state, vec![document(1, at(0), 13)]).0, 3);
    assert_eq!(add(&mut state, vec![document(1, at(0), 4)]).0, 0, "what was counted stays");
    assert_eq!(add(&mut state, vec![document(3, old - TimeDelta::seconds(1), 1)]).0, 1);
    assert_eq!(state.documents.len(), 2, "{:?}", state.documents);
}
