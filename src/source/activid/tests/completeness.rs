//! Completeness: a full answer is halved until nothing is missing, whatever the limit and the clock of the service.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_full_answer_is_halved_until_nothing_is_missing() {
    let mut rig = rig_with(|_, common| common.page_size = std::num::NonZeroU32::new(20));
    for n in 0..150 {
        rig.other(at(n * 1900));
        // some within one second
        rig.other(at(60_000 + n));
    }
    rig.read(cells(1)).await;
    assert_eq!(rig.book.total(), 300);
    rig.read(cells(1)).await;
    assert_eq!(rig.book.total(), 300);
    assert!(rig.book.reports.is_empty());
}

#[tokio::test(start_paused = true)]
async fn times_finer_than_a_millisecond_double_nothing() {
    for page_size in [1000, 7] {
        let mut rig = rig_with(|_, common| common.page_size = std::num::NonZeroU32::new(page_size));
        rig.service().fine = true;
        let moment = |ms, microseconds| at(ms) + TimeDelta::microseconds(microseconds);
        for n in 0..5 {
            rig.add(moment(60_000, 400), typed("deleteUser"), n == 3); // equal ones at one instant
            rig.other(moment(60_000, 400));
            rig.other(moment(61_000, 2 * n));
            rig.add(moment(62_000, 999), typed("createUser"), false);
        }
        for n in 0..50 {
            rig.other(moment(100_000, 1300 * n));
            rig.add(moment(149_999, 20 * n), typed("createUser"), false); // on both sides of the first cut
        }
        for _ in 0..3 {
            rig.read(cells(1)).await;
            assert_eq!((rig.book.total(), rig.book.tainted), (120, 1), "pages of {page_size}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn keys_are_the_same_whether_a_cell_was_halved_or_not() {
    let mut split = rig_with(|_, common| common.page_size = std::num::NonZeroU32::new(3));
    for n in 0..40 {
        split.add(at(n * n * 180), typed(["deleteUser", "createUser"][usize::from(n % 3 == 0)]), n == 7);
    }
    split.read(cells(1)).await;
    let mut whole = rig();
    whole.service().events = split.service().events.clone();
    whole.read(cells(1)).await;
    assert_eq!((split.book.total(), split.book.tainted), (40, 1));
    assert_eq!(split.book.seen, whole.book.seen);
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_the_service_below_what_was_asked_for_is_noticed() {
    for cap in [7, 50, 128, 200] {
        let mut rig = rig();
        rig.service().cap = cap;
        for n in 0..700 {
            // not spread evenly: one half of the cell stays empty
            rig.other(at(n * 150));
            rig.other(at(600_000 + n * 20));
        }
        rig.read(cells(3)).await;
        assert_eq!(rig.book.total(), 1400, "{cap}");
        let first = rig.service().searches.len();
        assert!(rig.searches(cells(3)).await < first, "{cap}: what was learnt is remembered");
        assert_eq!(rig.book.total(), 1400, "{cap}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cell_that_grows_to_the_limit_and_beyond_loses_nothing() {
    let mut rig = rig();
    rig.service().cap = 20;
    for n in 0..30 {
        rig.other(at(n * 7_000));
        rig.read(cells(1)).await;
        assert_eq!(rig.book.total(), u64::try_from(n).unwrap() + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn no_limit_is_learnt_from_events_that_merely_came() {
    let mut learnt = Learnt::default();
    let answer = |len| Answer { len, count: 1000, ..Answer::default() };
    let mut judge = |len| {
        let mut answer = answer(len);
        learnt.judge(&mut answer);
        (answer.full, answer.suspect)
    };
    assert_eq!(judge(3), (false, false), "too few to tell");
    assert_eq!(judge(40), (false, true), "the longest so far");
    assert_eq!(judge(39), (false, false), "a longer one has been seen");
    assert_eq!(judge(40), (false, true), "as long as the longest");
    assert_eq!(judge(90), (false, true));
    assert_eq!(judge(50), (false, true), "a round number");
    assert_eq!(judge(1000), (true, false));
    learnt.cap = Some(60);
    let mut judge = |len| {
        let mut answer = answer(len);
        learnt.judge(&mut answer);
        answer.full
    };
    assert!(judge(60) && !judge(59));
    assert!(!judge(61), "then it is no limit");
    assert!(!judge(60));
}

#[tokio::test(start_paused = true)]
async fn more_events_of_one_millisecond_than_can_be_had_are_reported_as_truncated() {
    let mut rig = rig_with(|_, common| common.page_size = std::num::NonZeroU32::new(10));
    for _ in 0..30 {
        rig.other(at(77));
    }
    rig.other(at(5_000));
    rig.read(cells(1)).await;
    assert_eq!(rig.book.total(), 31, "a larger count helps");
    assert!(rig.book.reports.is_empty());
    rig.service().cap = 10;
    for n in 0..12 {
        rig.other(at(100_000 + n));
        rig.other(at(90_000));
    }
    rig.read(cells(1)).await;
    assert_eq!(rig.book.total(), 31 + 12 + 10, "what came is counted");
    assert_eq!(rig.book.reports.len(), 2, "one for each such moment: {:?}", rig.book.reports);
    assert!(rig.book.reports.iter().all(|report| report.kind == ErrorKind::Truncated));
}

#[tokio::test(start_paused = true)]
async fn a_clock_of_whole_seconds_loses_nothing_when_a_second_is_full() {
    let mut rig = rig_with(|_, common| common.page_size = std::num::NonZeroU32::new(10));
    rig.service().tick_ms = 1000;
    for n in 0..25 {
        rig.other(at(77_000 + n));
        rig.other(at(n * 3_000));
    }
    rig.read(cells(1)).await;
    assert_eq!(rig.book.total(), 50);
    assert!(rig.book.reports.is_empty(), "{:?}", rig.book.reports);
}

#[tokio::test(start_paused = true)]
async fn too_many_is_halved_like_a_full_answer() {
    let mut rig = rig();
    rig.service().too_many = 8;
    for n in 0..60 {
        rig.other(at(n * 4_999));
    }
    rig.read(cells(1)).await;
    assert_eq!(rig.book.total(), 60);
}

#[tokio::test(start_paused = true)]
async fn garbage_in_every_answer_disturbs_no_count() {
    let mut rig = rig();
    rig.service().garbage = true;
    rig.service().cap = 30;
    for n in 0..100 {
        rig.other(at(n * 2_500));
    }
    rig.tainted(at(9_999));
    for _ in 0..2 {
        rig.read(cells(1)).await;
        assert_eq!((rig.book.total(), rig.book.tainted), (101, 1));
        assert!(rig.book.rejected > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_ignores_the_time_filter_is_an_error_and_nothing_is_counted() {
    let mut rig = rig();
    rig.service().ignores_time = true;
    rig.other(at(0));
    let failure = rig.try_read(cells(2)).await.unwrap_err();
    assert_eq!(failure.kind, ErrorKind::Decode);
    assert!(failure.to_string().contains("meta.created"), "{failure}");
    assert_eq!((rig.book.total(), rig.book.pages), (0, 0));
}
