//! What is compared, and what is a difference.

use proptest::prelude::*;

use super::*;
use crate::source::History;

fn at(minute: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + minute * 60, 0).unwrap()
}

fn tallies(rows: &[(i64, &str, u64)]) -> Tallies {
    let row = |(minute, category, count): &(i64, &str, u64)| {
        ((at(*minute), SeriesKey::new(Counter::Events, &[category, "create", "success"])), *count)
    };
    rows.iter().map(row).collect()
}

fn lines(before: &Tallies, found: &Tallies, after: &Tallies) -> Vec<(i64, i64, String, u64, u64)> {
    let minute = |time: DateTime<Utc>| (time - at(0)).num_minutes();
    let line =
        |line: Difference| (minute(line.window.from), minute(line.window.to), line.category, line.counted, line.found);
    compare(before, found, after, TALLY_CELL).into_iter().map(line).collect()
}

#[test]
fn what_is_counted_while_we_look_is_no_difference() {
    let (before, after) = (tallies(&[(0, "user", 3)]), tallies(&[(0, "user", 5), (5, "role", 1)]));
    for found in [&before, &after, &tallies(&[(0, "user", 4)])] {
        assert_eq!(lines(&before, found, &after), []);
    }
    assert_eq!(lines(&before, &tallies(&[(0, "user", 2)]), &after), [(0, 5, "user".into(), 3, 2)]);
    assert_eq!(lines(&before, &tallies(&[(0, "user", 6)]), &after), [(0, 5, "user".into(), 5, 6)]);
}

#[test]
fn neighbouring_cells_that_differ_alike_are_one_line() {
    let counted = tallies(&[(0, "user", 3), (5, "user", 3), (10, "user", 3), (20, "user", 3), (5, "role", 1)]);
    let found = tallies(&[(0, "user", 1), (5, "user", 2), (10, "user", 4)]);
    assert_eq!(
        lines(&counted, &found, &counted),
        [
            (0, 10, "user".into(), 6, 3),
            (5, 10, "role".into(), 1, 0),
            (10, 15, "user".into(), 3, 4),
            (20, 25, "user".into(), 3, 0),
        ]
    );
}

proptest! {
    /// Nothing is hidden by being one line, and nothing is invented.
    #[test]
    fn the_lines_add_up_to_what_differs(rows in prop::collection::vec((0_i64..6, 0_usize..3, 0_u64..4, 0_u64..3, 0_u64..8), 0..20)) {
        let (mut before, mut after, mut found) = (Tallies::new(), Tallies::new(), Tallies::new());
        for (cell, label, counted, meanwhile, there) in rows {
            let place = (at(cell * 5), SeriesKey::new(Counter::Events, &[["a", "b", "c"][label], "create", "success"]));
            before.insert(place.clone(), counted);
            after.insert(place.clone(), counted + meanwhile);
            found.insert(place, there);
        }
        let (mut missing, mut surplus) = (0, 0);
        for (place, there) in &found {
            missing += there.saturating_sub(after[place]);
            surplus += before[place].saturating_sub(*there);
        }
        let lines = compare(&before, &found, &after, TALLY_CELL);
        prop_assert_eq!(lines.iter().map(|line| line.found.saturating_sub(line.counted)).sum::<u64>(), missing);
        prop_assert_eq!(lines.iter().map(|line| line.counted.saturating_sub(line.found)).sum::<u64>(), surplus);
    }

    /// Whatever the window and the step: the pieces meet, and are the window.
    #[test]
    fn the_pieces_of_a_window_are_the_window(length in 1_i64..500, step in 1_u64..100) {
        let window = Window { from: at(0), to: at(length) };
        let mut reached = window.from;
        for piece in steps(window, Duration::from_mins(step)) {
            prop_assert_eq!(piece.from, reached);
            prop_assert!(!piece.is_empty() && piece.length() <= delta(Duration::from_mins(step)));
            reached = piece.to;
        }
        prop_assert_eq!(reached, window.to);
        prop_assert_eq!(steps(window, Duration::MAX).collect::<Vec<_>>(), [window]);
    }
}

fn spec(is_feed: bool) -> Spec {
    Spec {
        reading: if is_feed {
            Reading::Feed { retention: Duration::from_hours(1), settled_after: Duration::from_hours(1), when_empty: "" }
        } else {
            let cell = Duration::from_millis(1);
            Reading::History(History { cell, step_max: Duration::from_hours(1), ahead: Duration::ZERO })
        },
        signals: crate::source::Signals::default(),
        catalogue: crate::page::Catalogue::default(),
    }
}

#[test]
fn only_whole_cells_that_were_read_to_their_end_are_compared_and_the_rest_is_named() {
    let read = Checkpoint { origin: at(-600), head: at(63), gaps: vec![] };
    let overlap = Duration::from_mins(10);
    let to = |checkpoint: &Checkpoint, is_feed, polled| Settled::of(checkpoint, &spec(is_feed), overlap, polled).to;
    assert_eq!(to(&read, false, true), at(63));
    assert_eq!(to(&read, false, false), at(53), "what is late is counted by the next exporter");
    assert_eq!(to(&read, true, false), at(63), "files are read whole each time");
    let gap = crate::window::Gap { from: at(20), to: at(40), unread_from: at(30) };
    assert_eq!(to(&Checkpoint { gaps: vec![gap], ..read.clone() }, false, true), at(20));

    let settled = Settled::of(&read, &spec(false), overlap, true);
    let comparable = |from, to: Option<i64>| settled.comparable(at(from), to.map(at), at(-61), TALLY_CELL);
    let (window, notes) = comparable(7, Some(11)).unwrap();
    assert_eq!((window, notes), (Window { from: at(5), to: at(15) }, vec![]), "outward to whole cells");
    let (window, notes) = comparable(0, None).unwrap();
    assert_eq!((window, notes), (Window { from: at(0), to: at(60) }, vec![]), "up to the last whole cell");
    let (window, notes) = comparable(-500, Some(999)).unwrap();
    assert_eq!(window, Window { from: at(-60), to: at(60) });
    assert!(notes[0].contains("not compared: before 2027-01-15T07:00:00Z"), "{notes:?}");
    assert!(notes[1].contains("not compared: from 2027-01-15T09:00:00Z on"), "{notes:?}");
    let why = comparable(61, None).unwrap_err().to_string();
    assert!(why.contains("nothing of that window can be compared") && why.contains("09:00:00Z"), "{why}");
}
