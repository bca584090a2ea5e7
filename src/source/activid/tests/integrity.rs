//! Integrity: a tainted record is found and counted once, and what is not tainted is not taken for it.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_tainted_record_is_found_and_counted_once() {
    let mut rig = rig();
    for n in 0..60 {
        rig.other(at(n * 4_900));
    }
    rig.tainted(at(123_456));
    let first = rig.searches(cells(1)).await;
    for _ in 0..3 {
        let again = rig.searches(cells(1)).await;
        assert!(again * 2 < first, "{again} of {first}");
        assert_eq!((rig.book.total(), rig.book.tainted, rig.book.last_tainted), (61, 1, Some(true)));
    }
    // after a restart, too
    let (source, _) = config("audit", Secret::text("s:cret%")).build(&(SERVICE.defaults)());
    rig.source = source;
    rig.other(at(123_457));
    rig.read(cells(1)).await;
    assert_eq!((rig.book.total(), rig.book.tainted), (62, 1));
    rig.read(Window { from: at(300_000), to: at(600_000) }).await;
    assert_eq!(rig.book.last_tainted, Some(false), "this window is clean");
}

#[tokio::test(start_paused = true)]
async fn every_tainted_record_of_a_cell_is_found_also_when_one_comes_later() {
    let mut rig = rig();
    for n in 0..40 {
        rig.other(at(n * 7_000));
    }
    rig.tainted(at(20_000));
    rig.tainted(at(20_001));
    rig.read(cells(1)).await;
    assert_eq!(rig.book.tainted, 2);
    // beside, between and at the very moment of what is known
    for (ms, count) in [(250_000, 3), (19_990, 4), (20_001, 5)] {
        rig.tainted(at(ms));
        rig.read(cells(1)).await;
        assert_eq!(rig.book.tainted, count, "{ms}");
        rig.read(cells(1)).await;
        assert_eq!(rig.book.tainted, count, "{ms}");
    }
    assert_eq!(rig.book.total(), 45);
}

#[tokio::test(start_paused = true)]
async fn a_clean_event_at_the_moment_of_a_tainted_one_is_not_taken_for_it() {
    let mut rig = rig();
    rig.tainted(at(20_000));
    rig.read(cells(1)).await;
    rig.other(at(20_000));
    rig.read(cells(1)).await;
    assert_eq!((rig.book.total(), rig.book.tainted), (2, 1));
    let searches = &rig.service().searches;
    assert!(searches.iter().any(|(filter, _)| filter.contains(" and type eq \"changeUserPassword\" and verify")));
}

#[tokio::test(start_paused = true)]
async fn garbage_beside_a_tainted_record_is_not_another_one_when_it_is_gone() {
    for n in 0..8 {
        let mut rig = rig();
        rig.tainted(at(20_000));
        // three letters each time, and no JSON
        let payload = json!({"type": "changeUserPassword", "values": {"correlationId": "0"}});
        let garbage = Event { at: at(20_000), token: format!("e30.bm9{n}."), payload, tainted: false };
        rig.service().events.push(garbage);
        rig.read(cells(1)).await;
        rig.service().events.pop();
        rig.read(cells(1)).await;
        assert_eq!((rig.book.total(), rig.book.tainted), (1, 1), "{n}");
    }
}

#[tokio::test(start_paused = true)]
async fn equal_tainted_records_at_different_times_are_two() {
    let mut rig = rig();
    for ms in [5, 200_000] {
        rig.add(at(ms), typed("deleteUser"), true);
        rig.add(at(ms + 1), typed("deleteUser"), false);
    }
    for _ in 0..2 {
        rig.read(cells(1)).await;
        assert_eq!((rig.book.total(), rig.book.tainted), (4, 2));
    }
}

#[tokio::test(start_paused = true)]
async fn where_the_record_cannot_be_singled_out_the_taint_still_counts_once() {
    for refuses_attributes in [400, 500, 0] {
        let mut rig = rig();
        rig.service().refuses_attributes = refuses_attributes;
        for name in ["deleteUser", "create\"User", "create*", "create\\"] {
            rig.add(at(7), typed(name), name == "create*");
        }
        for n in 0..3 {
            rig.read(cells(1)).await;
            assert_eq!((rig.book.total(), rig.book.tainted), (4 + n, 1));
            rig.other(at(7));
        }
        let searches = &rig.service().searches;
        assert!(searches.iter().all(|(filter, _)| !filter.contains(['*', '\\'])));
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_that_is_tainted_everywhere_is_still_read() {
    let mut rig = rig();
    for n in 0..600 {
        rig.tainted(at(n * 2_400));
    }
    let window = cells(5);
    assert!(rig.searches(window).await < 5 + usize::try_from(TAINT_SEARCHES_MAX).unwrap() + 50);
    assert_eq!(rig.book.total(), 600);
    let found = rig.book.tainted;
    assert!(found > 20, "{found}");
    rig.read(window).await;
    assert_eq!((rig.book.total(), rig.book.tainted), (600, found));
}

#[tokio::test(start_paused = true)]
async fn without_verify_nothing_is_said_of_integrity() {
    let mut rig = rig_with(|activid, _| activid.verify = false);
    rig.tainted(at(5));
    rig.read(cells(1)).await;
    assert_eq!((rig.book.total(), rig.book.tainted, rig.book.last_tainted), (1, 0, None));
    assert!(rig.service().searches.iter().all(|(filter, _)| !filter.contains("verify")));
    let spec = rig.source.spec();
    assert!(!spec.signals.integrity && !spec.catalogue.integrity);
}

#[tokio::test(start_paused = true)]
async fn a_service_without_the_integrity_check_says_what_to_do() {
    let mut rig = rig();
    rig.service().cannot_verify = true;
    let failure = rig.try_read(cells(1)).await.unwrap_err();
    assert_eq!(failure.kind, ErrorKind::Server);
    assert!(failure.to_string().contains("set verify: false"), "{failure}");
    assert_eq!(rig.service().searches.len(), 2, "it is not asked again and again");
}
