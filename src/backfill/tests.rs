//! What may be read, in which pieces, and what becomes of it.

use super::*;
use crate::event::{Class, Outcome};
use crate::page::Document;
use crate::source::History as Log;

fn at(minute: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + minute * 60, 0).unwrap()
}

fn log(cell: Duration) -> Reading {
    Reading::History(Log { cell, step_max: Duration::from_hours(24), ahead: Duration::ZERO })
}

fn feed() -> Reading {
    let settled_after = Duration::from_hours(48);
    Reading::Feed { retention: Duration::from_hours(14 * 24), settled_after, when_empty: "" }
}

const MILLISECOND: Duration = Duration::from_millis(1);

fn refused(from: i64, to: Option<i64>, began: i64, reading: &Reading) -> String {
    allowed(at(from), to.map(at), at(began), at(0), reading).unwrap_err().to_string()
}

#[test]
fn the_window_ends_where_counting_began_and_that_must_be_settled() {
    let read = log(MILLISECOND);
    let window = |from, to: Option<i64>, began| allowed(at(from), to.map(at), at(began), at(0), &read).unwrap();
    assert_eq!(window(-900, None, -240), Window { from: at(-900), to: at(-240) });
    assert_eq!(window(-900, Some(-300), -240), Window { from: at(-900), to: at(-300) });
    assert_eq!(window(-900, Some(-180), -180), Window { from: at(-900), to: at(-180) }, "three hours ago");
    // to the millisecond
    let began = at(-240) + TimeDelta::milliseconds(123);
    assert_eq!(allowed(at(-900), None, began, at(0), &read).unwrap().to, began);

    let why = refused(-900, Some(-239), -240, &read);
    assert!(
        why.starts_with("--to=2027-01-15T04:01:00Z is too late; the latest moment allowed is 2027-01-15T04:00:00Z"),
        "{why}"
    );
    assert!(why.contains("counted twice"), "{why}");
    let why = refused(-900, None, -60, &read);
    assert!(why.contains("the latest moment allowed is 2027-01-15T05:00:00Z: it must be 3h ago"), "{why}");
    assert!(why.contains("will work from 2027-01-15T10:00:01Z on"), "{why}");
    assert!(!why.contains("--to="), "nobody gave it: {why}");
    let why = refused(-240, Some(-240), -240, &read);
    assert!(why.contains("--from (2027-01-15T04:00:00Z) must be at least a minute before --to"), "{why}");
    assert!(refused(10, Some(5), 99, &read).contains("the latest moment allowed is 2027-01-15T05:00:00Z"));
}

#[test]
fn windows_of_cells_and_of_files_are_whole_ones() {
    let cells = log(Duration::from_mins(5));
    let window = allowed(at(-903), Some(at(-241)), at(-240), at(0), &cells).unwrap();
    assert_eq!(window, Window { from: at(-905), to: at(-245) });
    // the hour in which counting began is counted whole
    let window = allowed(at(-9001), None, at(-2999), at(0), &feed()).unwrap();
    assert_eq!(window, Window { from: at(-9060), to: at(-3000) });
    let why = refused(-9000, Some(-2820), -60, &feed());
    assert!(
        why.contains("the latest moment allowed is 2027-01-13T08:00:00Z: it must be 2d ago, because files"),
        "{why}"
    );
}

#[test]
fn pieces_are_cut_between_minutes_cells_and_hours_whatever_happens() {
    for (reading, least) in [(log(MILLISECOND), 60), (log(Duration::from_mins(5)), 300), (feed(), 3600)] {
        let mut pace = Pace::of(reading);
        for step in 0..100 {
            match step * 7 % 5 {
                0 => _ = pace.failed(),
                1 => pace.went_well(Duration::from_mins(2)),
                _ => pace.went_well(Duration::from_secs(1)),
            }
            let length = pace.length.as_secs();
            assert!(length >= least && length.is_multiple_of(least) && pace.length <= reading.step_max(), "{length}");
        }
        while pace.failed() {}
        assert_eq!(pace.length.as_secs(), least);
        (0..20).for_each(|_| pace.went_well(Duration::ZERO));
        assert_eq!(pace.length, reading.step_max());
    }
}

fn labels(action: &str) -> EventLabels {
    EventLabels {
        category: Label::from_words("user"),
        action: Label::from_words(action),
        outcome: Outcome::Success,
        class: Class::Change,
    }
}

fn item(key: u8, at: Option<DateTime<Utc>>, what: What) -> Item {
    Item { key: EventKey([key; 16]), at, filed_at: at, what }
}

#[tokio::test]
async fn an_event_is_counted_in_the_piece_that_holds_its_time_and_once() {
    let minutes = Minutes::new(at(0), at(60)).unwrap();
    let window = Window { from: at(10), to: at(20) };
    let asked = Window { from: window.from - MARGIN, to: window.to + MARGIN };
    let mut reader = Reader::new(minutes, window, asked, MILLISECOND);
    let event = || What::Event(labels("create"));
    let just_before = window.to - TimeDelta::milliseconds(1);
    let rejected = What::Rejected(crate::event::Rejection {
        reason: crate::event::RejectReason::Malformed,
        sample: String::new(),
    });
    let items = vec![
        item(1, Some(window.from), event()),
        item(1, Some(window.from), event()),
        item(2, Some(just_before), event()),
        item(3, Some(window.from - TimeDelta::milliseconds(1)), event()),
        item(4, Some(window.to), event()),
        item(5, None, event()),
        item(6, Some(at(11)), What::Ignored),
        item(7, None, rejected),
        item(8, Some(at(40)), event()),
        item(9, Some(at(1)), event()),
        // an event, and that it is tainted, or another may be
        item(1, Some(at(12)), What::Tainted { candidates: vec![EventKey([1; 16]), EventKey([2; 16])] }),
        item(2, Some(at(12)), What::Tainted { candidates: vec![EventKey([1; 16]), EventKey([2; 16])] }),
    ];
    let taken = reader.page(Page { items, ..Page::default() }).await.unwrap();
    assert_eq!((taken.before, taken.inside, taken.after), (1, 10, 1));
    reader.report(Failure::new(ErrorKind::Truncated, "reading", "too many"));
    let (piece, timeless) = reader.finish(&[]);
    assert_eq!(timeless, [EventKey([5; 16]), EventKey([7; 16])]);
    let row = |minute, what, count| Row { minute, what, count };
    assert_eq!(
        piece.rows,
        [
            row(10, Counted::Event(labels("create")), 1),
            row(12, Counted::Tainted, 1),
            row(19, Counted::Event(labels("create")), 1)
        ]
    );
    assert_eq!(piece.left_out, LeftOut { ignored: 1, rejected: 1, timeless: 1 });
    assert_eq!((piece.unlisted, piece.notes.len()), (0, 1));
    let line = serde_json::to_string(&piece).unwrap();
    assert_eq!(serde_json::from_str::<Piece>(&line).unwrap(), piece);
}

#[tokio::test]
async fn what_has_no_time_of_its_own_is_shown_at_the_end_of_its_cell_or_hour() {
    let minutes = Minutes::new(at(0), at(600)).unwrap();
    let window = Window { from: at(60), to: at(180) };
    let mut reader = Reader::new(minutes, window, window, Duration::from_mins(5));
    let in_cell = Item { filed_at: Some(at(65)), ..item(1, None, What::Event(labels("create"))) };
    let in_minute = Item { filed_at: Some(at(65)), ..item(2, Some(at(66)), What::Event(labels("create"))) };
    let document = |hour: i64| Document {
        key: EventKey([3; 16]),
        filed_at: at(hour * 60),
        version: EventKey([4; 16]),
        category: Label::from_words("rows"),
        rows: BTreeMap::from([(Label::from_words("bid"), 7)]),
        rejected: 2,
    };
    let page = Page { items: vec![in_cell, in_minute], documents: vec![document(2), document(3)], ..Page::default() };
    reader.page(page).await.unwrap();
    let (piece, _) = reader.finish(&[&Label::from_words("rows"), &Label::from_words("others")]);
    let minutes: Vec<(u32, u64)> = piece.rows.iter().map(|row| (row.minute, row.count)).collect();
    assert_eq!(minutes, [(66, 1), (69, 1), (179, 7)]);
    assert_eq!(
        (piece.left_out.rejected, piece.unlisted),
        (2, 3),
        "two hours of two kinds of files, of which one is there"
    );
}

// === an interrupted run ===

fn a_plan() -> Plan {
    Plan {
        source: "iot".into(),
        system: "a_system".into(),
        window: Window { from: at(0), to: at(60) },
        minutes: Minutes::new(at(0), at(60)).unwrap(),
        vocabulary: Vocabulary::default(),
        settings: "x".into(),
    }
}

fn a_piece(from: i64, to: i64) -> Piece {
    let row = Row { minute: 3, what: Counted::Event(labels("create")), count: 2 };
    let window = Window { from: at(from), to: at(to) };
    Piece { window, rows: vec![row], left_out: LeftOut::default(), unlisted: 0, notes: vec![] }
}

#[test]
fn what_was_read_is_found_again_and_a_line_that_was_cut_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let find = || Unfinished::find(folder.path(), "iot");
    assert!(find().unwrap().is_none());
    let asked = Asked { from: "2d".into(), to: None };
    let mut first = Unfinished::begin(folder.path(), asked.clone(), a_plan()).unwrap();
    assert!(matches!(find(), Err(Damaged::InUse { .. })), "one at a time");
    first.add(&a_piece(0, 10)).unwrap();
    first.add(&a_piece(10, 30)).unwrap();
    let path = first.path().to_owned();
    drop(first);
    let whole = std::fs::read(&path).unwrap();
    for cut in [0, 1, 20] {
        std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
        let mut again = find().unwrap().unwrap();
        assert_eq!((again.asked(), again.plan()), (&asked, &a_plan()));
        let mut pieces = Vec::new();
        again.pieces(|piece| pieces.push(piece)).unwrap();
        let expected = if cut == 0 { vec![a_piece(0, 10), a_piece(10, 30)] } else { vec![a_piece(0, 10)] };
        assert_eq!((again.reached(), &pieces), (expected.last().unwrap().window.to, &expected));
        again.add(&a_piece(if cut == 0 { 30 } else { 10 }, 60)).unwrap();
        drop(again);
        let mut after = find().unwrap().unwrap();
        after.pieces(drop).unwrap();
        assert_eq!(after.reached(), at(60));
    }
    find().unwrap().unwrap().finish().unwrap();
    assert!(!path.exists());
}

#[test]
fn a_file_that_is_something_else_is_refused_and_one_that_was_hardly_begun_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let begin = || Unfinished::begin(folder.path(), Asked { from: "2d".into(), to: None }, a_plan()).unwrap();
    let mut first = begin();
    first.add(&a_piece(0, 10)).unwrap();
    assert!(first.add(&a_piece(20, 30)).is_err(), "a hole");
    let path = first.path().to_owned();
    drop(first);
    let mut text = std::fs::read_to_string(&path).unwrap();
    text += &(serde_json::to_string(&a_piece(20, 30)).unwrap() + "\n");
    std::fs::write(&path, text).unwrap();
    let hole = Unfinished::find(folder.path(), "iot").unwrap().unwrap().pieces(drop).unwrap_err().to_string();
    assert!(hole.contains("line 3: a piece does not follow") && hole.contains("remove the file"), "{hole}");
    std::fs::write(&path, "{}\n").unwrap();
    let other = Unfinished::find(folder.path(), "iot").err().expect("it is no such file").to_string();
    assert!(other.contains("line 1") && other.contains("remove the file"), "{other}");
    std::fs::write(&path, "{").unwrap();
    assert!(Unfinished::find(folder.path(), "iot").unwrap().is_none());
    let mut anew = begin();
    anew.pieces(|piece| panic!("{piece:?}")).unwrap();
    assert_eq!(anew.reached(), at(0));
}

#[tokio::test]
async fn what_carries_no_time_is_left_out_once_however_many_pieces_have_it() {
    let minutes = Minutes::new(at(0), at(60)).unwrap();
    let mut seen = HashSet::new();
    let mut left_out = Vec::new();
    for minute in [0, 20, 40] {
        let window = Window { from: at(minute), to: at(minute + 20) };
        let mut reader = Reader::new(minutes, window, window, MILLISECOND);
        reader.seen.clone_from(&seen);
        let again =
            [item(1, None, What::Event(labels("create"))), item(2, Some(at(minute)), What::Event(labels("create")))];
        reader.page(Page { items: again.into(), ..Page::default() }).await.unwrap();
        let (piece, timeless) = reader.finish(&[]);
        seen.extend(timeless);
        left_out.push((piece.left_out.timeless, piece.rows.len()));
    }
    assert_eq!(left_out, [(1, 1), (0, 1), (0, 1)]);
}
