//! Which events are the same: reading again adds none, equal ones are as many as they are, each is in its own cell.

use super::*;

#[tokio::test(start_paused = true)]
async fn equal_events_are_as_many_and_reading_again_adds_none() {
    let mut rig = rig();
    for ms in [1, 1, 250_000] {
        rig.add(at(ms), typed("deleteUser"), false);
    }
    rig.add(at(2), typed("createUser"), false);
    for _ in 0..3 {
        rig.read(cells(2)).await;
        assert_eq!(rig.book.total(), 4);
        assert_eq!(rig.book.events.values().max(), Some(&3));
    }
    // an equal one that comes late, or in another cell, is one more
    rig.add(at(3), typed("deleteUser"), false);
    rig.add(at(300_000), typed("deleteUser"), false);
    rig.read(cells(2)).await;
    assert_eq!(rig.book.total(), 6);
    assert!(rig.book.at.iter().all(Option::is_none), "nothing says when they happened");
}

#[tokio::test(start_paused = true)]
async fn a_late_event_is_counted_when_its_old_cell_is_read_again() {
    let mut rig = rig();
    rig.other(at(10));
    rig.read(cells(1)).await;
    rig.other(at(5));
    rig.read(cells(1)).await;
    assert_eq!(rig.book.total(), 2);
}

#[tokio::test(start_paused = true)]
async fn events_on_the_edges_of_cells_are_counted_once_in_their_own() {
    let mut rig = rig();
    for ms in [-1, 0, 1, 299_999, 300_000, 300_001, 599_999, 600_000] {
        rig.add(at(ms), typed("deleteUser"), false);
    }
    rig.read(cells(1)).await;
    assert_eq!(rig.book.total(), 3);
    rig.read(cells(2)).await;
    assert_eq!(rig.book.total(), 6);
    rig.read(Window { from: at(-300_000), to: at(900_000) }).await;
    assert_eq!(rig.book.total(), 8);
    let service = rig.service();
    assert_eq!(
        service.searches[0],
        (
            "meta.created gt 2026-03-04T10:59:59.999Z and meta.created lt 2026-03-04T11:05:00.000Z and verify eq true"
                .to_owned(),
            1000
        )
    );
}

#[tokio::test(start_paused = true)]
async fn ignored_and_rejected_ones_are_counted_as_that_once() {
    let mut rig = rig_with(|_, common| common.ignore_actors = vec!["alice".into()]);
    rig.add(at(0), typed("deleteUser"), false);
    rig.other(at(1));
    let garbage = Event { at: at(2), token: "e30.bm90NHUybm8.".into(), payload: Value::Null, tainted: false };
    rig.service().events.extend([garbage.clone(), garbage]);
    for _ in 0..2 {
        rig.read(cells(1)).await;
        assert_eq!((rig.book.total(), rig.book.ignored, rig.book.rejected), (1, 1, 2));
    }
}

#[tokio::test(start_paused = true)]
async fn an_events_own_time_is_taken_where_it_lies_in_its_cell() {
    let mut rig = rig();
    for ms in [7, 300_007] {
        rig.add(at(7), json!({"type": "deleteUser", "meta": {"created": at(ms)}}), false);
    }
    rig.read(cells(1)).await;
    rig.book.at.sort_unstable();
    assert_eq!(rig.book.at, [None, Some(at(7))]);
}
