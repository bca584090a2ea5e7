//! Pages: what bookmarks lose is read by itself, an ignored filter is noticed, and every walk has an end.

use super::*;

#[tokio::test(start_paused = true)]
async fn bookmarks_that_lead_back_lose_nothing() {
    for bookmarks in [Bookmarks::Restarting, Bookmarks::Wandering, Bookmarks::Looping] {
        let mut fake = Fake::new(bookmarks, one_each(0..200));
        fake.per_page_max = 20;
        let mut reader = Reader::of(&ACCOUNT, fake);
        reader.read(-100..300).await.unwrap();
        assert_eq!(reader.sink.keys.len(), 200);
        assert_eq!(reader.sink.kinds(), []);
        assert!(reader.requests().len() < 70, "{}", reader.requests().len());
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_that_fits_no_page_is_reported_and_the_rest_is_read() {
    for bookmarks in [Bookmarks::Restarting, Bookmarks::Looping, Bookmarks::Moments] {
        let mut events = one_each(0..50);
        events.extend((0..9).map(|n| Happened(T + 7, "login", 5, 100 + n)));
        let mut fake = Fake::new(bookmarks, events);
        fake.per_page_max = 5;
        let mut reader = Reader::of(&ACCOUNT, fake);
        reader.read(0..60).await.unwrap();
        assert_eq!(reader.sink.keys.len(), 49 + 5);
        assert_eq!(reader.sink.kinds(), [ErrorKind::Truncated]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_always_has_a_next_page_is_left() {
    for body in ["[]", r#"[{"id":1,"created_at":"2027-01-15T08:00:05Z","event_type":"login"}]"#] {
        let mut reader = answering(move || {
            Response::builder().header("link", "</api/v1/x?page=9>; rel=next").body(Body::from(body)).unwrap()
        });
        reader.read(0..60).await.unwrap();
        assert!(reader.requests().len() < 20, "{}", reader.requests().len());
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_whose_page_is_not_full_is_complete_though_there_is_a_next_page() {
    let mut fake = Fake::new(Bookmarks::Restarting, one_each(0..30));
    (fake.never_ends, fake.per_page_max) = (true, 20);
    let mut reader = Reader::of(&ACCOUNT, fake);
    reader.read(0..60).await.unwrap();
    assert_eq!(reader.sink.keys.len(), 30);
    assert_eq!(reader.sink.kinds(), []);
}

#[tokio::test(start_paused = true)]
async fn an_ignored_filter_ends_no_walk_from_old_to_new() {
    let mut events = one_each(1..1000);
    events.extend((0..150).map(|n| Happened(T, "login", 5, 10_000 + n))); // a first page of one moment
    let mut fake = Fake::new(Bookmarks::Opaque, events);
    (fake.ignores_filter, fake.ascending) = (true, true);
    let mut reader = Reader::of(&ACCOUNT, fake);
    reader.read(500..700).await.unwrap();
    assert_eq!(reader.sink.keys.len(), 200);
    assert_eq!(reader.sink.kinds(), [ErrorKind::Decode]);
}

#[tokio::test(start_paused = true)]
async fn older_versions_lose_the_rest_of_a_second_which_is_read_by_itself() {
    let mut events = one_each(0..30);
    events.extend((0..3).map(|n| Happened(T + 19, "login", 6, 100 + n)));
    events.extend((0..3).map(|n| Happened(T, "login", 6, 200 + n)));
    let requests_of = async |bookmarks| {
        let mut fake = Fake::new(bookmarks, events.clone());
        fake.per_page_max = 11;
        let mut reader = Reader::of(&ACCOUNT, fake);
        reader.read(0..60).await.unwrap();
        assert_eq!(reader.sink.keys.len(), 36);
        assert_eq!(reader.sink.kinds(), []);
        reader.requests().len()
    };
    assert_eq!(requests_of(Bookmarks::Pairs).await, 4, "no more requests than pages where nothing is lost");
    assert!(requests_of(Bookmarks::Moments).await > 4);
}

#[test]
fn only_bookmarks_of_a_moment_and_an_id_keep_ties() {
    for (page, loses) in [
        ("bookmark:WyIyMDI0LTA1LTAxIDEyOjAwOjAwIFVUQyIsMTUwXQ", false),
        ("bookmark:WyIyMDI0LTA1LTAxIDEyOjAwOjAwIFVUQyIsMTUwXQ%3D%3D", false),
        ("bookmark:IjIwMjQtMDUtMDEgMTI6MDA6MDAgVVRDIg", true),
        ("bookmark:!!!", true),
        ("2", true),
    ] {
        let url = format!("http://canvas.test/x?page={page}").parse().unwrap();
        assert_eq!(loses_ties(&url), loses, "{page}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_ignored_filter_is_reported_once_and_history_is_not_read_to_its_end() {
    let mut fake = Fake::new(Bookmarks::Pairs, one_each(0..5000));
    fake.ignores_filter = true;
    let mut reader = Reader::of(&Setup { scopes: [&["1"], &["5"], &[]], ..ACCOUNT }, fake);
    reader.read(4500..4700).await.unwrap();
    assert_eq!(reader.sink.keys.len(), 200);
    assert_eq!(reader.sink.kinds(), [ErrorKind::Decode]);
    assert!(reader.sink.reports[0].to_string().contains("start_time/end_time was ignored"));
    assert_eq!(reader.requests().len(), 2 * 7);
}

#[tokio::test(start_paused = true)]
async fn the_second_at_either_end_does_not_mean_that_the_filter_was_ignored() {
    let mut reader = Reader::of(&ACCOUNT, Fake::new(Bookmarks::Pairs, one_each(0..100)));
    reader.read(10..20).await.unwrap();
    assert_eq!(reader.sink.keys.len(), 10);
    assert_eq!(reader.sink.kinds(), []);
}

#[test]
fn spans_are_cut_down_to_a_second_without_a_hole_and_around_what_was_seen() {
    let span = |first, last| Span { first, last };
    assert_eq!(Span::second(5).parts(None), None);
    assert_eq!(span(5, 6).parts(None), Some([Span::second(5), Span::second(6)]));
    assert_eq!(span(-5, 2).parts(None), Some([span(-5, -2), span(-1, 2)]));
    for (seen, end) in [
        (span(0, 100), 50),
        (span(40, 60), 50),
        (span(51, 100), 50),
        (span(70, 80), 69),
        (span(100, 100), 99),
        (span(0, 0), 0),
        (span(10, 20), 20),
        (span(-9, -1), 50),
        (span(101, 200), 50),
    ] {
        assert_eq!(span(0, 100).parts(Some(seen)), Some([span(0, end), span(end + 1, 100)]), "{seen:?}");
        for second in [5, 6] {
            assert_eq!(span(5, 6).parts(Some(Span::second(second))), span(5, 6).parts(None));
        }
    }
}
