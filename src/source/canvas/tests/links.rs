//! The `Link` header: the token goes nowhere else, and one that is lost, garbled or leads back loses nothing.

use super::*;

#[tokio::test(start_paused = true)]
async fn the_token_goes_nowhere_else() {
    for link in [
        "https://canvas.test/api/v1/x?page=2",
        "http://canvas.test:81/api/v1/x?page=2",
        "http://evil.test/api/v1/x?page=2",
        "//evil.test/x",
        "http://u:p@canvas.test/api/v1/x",
    ] {
        let mut reader = answering(move || {
            let events = r#"[{"id":1,"created_at":"2027-01-15T08:00:00Z","event_type":"login"}]"#;
            Response::builder().header("link", format!("<{link}>; rel=\"next\"")).body(Body::from(events)).unwrap()
        });
        assert_eq!(reader.read(0..10).await.unwrap_err().kind, ErrorKind::Redirect, "{link}");
        assert_eq!(reader.requests().len(), 1);
        assert_eq!(reader.sink.items.len(), 1, "what came stays");
    }
}

#[tokio::test(start_paused = true)]
async fn events_are_read_in_parts_where_the_link_header_is_lost() {
    for (events, cap, most) in
        [(1500, 100, 110), (1500, 50, 220), (250, 100, 20), (100, 100, 9), (37, 100, 7), (9, 100, 1), (0, 100, 1)]
    {
        let mut fake = Fake::new(Bookmarks::Pairs, one_each(0..events));
        (fake.silent, fake.per_page_max) = (true, cap);
        let mut reader = Reader::of(&ACCOUNT, fake);
        reader.read(0..1600).await.unwrap();
        assert_eq!(i64::try_from(reader.sink.keys.len()).unwrap(), events, "{cap} on a page");
        assert_eq!(reader.sink.kinds(), []);
        assert!(reader.requests().len() <= most, "{events}, {cap} on a page: {}", reader.requests().len());
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_second_without_a_link_header_keeps_the_window_open_and_nothing_else_from_being_read() {
    for cap in [100, 50] {
        let mut events = one_each(0..300);
        events.extend((0..150).map(|n| Happened(T + 7, "login", 5, 1000 + n)));
        let mut fake = Fake::new(Bookmarks::Pairs, events);
        (fake.silent, fake.per_page_max) = (true, cap);
        let mut reader = Reader::of(&ACCOUNT, fake);
        let failure = reader.read(0..600).await.unwrap_err();
        assert_eq!(failure.kind, ErrorKind::Truncated);
        assert!(failure.to_string().contains("Link header"), "{failure}");
        assert_eq!(reader.sink.keys.len(), 299 + cap);
        assert!(reader.requests().len() < 60, "{}", reader.requests().len());
    }
    // a burst that is shorter than a page is no sign of a cap
    let burst = (0..40).map(|n| Happened(T + 7, "login", 5, n)).collect();
    let mut fake = Fake::new(Bookmarks::Pairs, burst);
    fake.silent = true;
    let mut reader = Reader::of(&ACCOUNT, fake);
    reader.read(0..600).await.unwrap();
    assert_eq!((reader.sink.keys.len(), reader.sink.kinds()), (40, vec![]));
}

/// Answers like `fake`, with another `Link` header; how often it was asked.
fn relinked(
    fake: Fake,
    link: impl Fn(usize, &Request, Option<String>) -> Option<String> + Send + Sync + 'static,
) -> (Reader, Arc<std::sync::atomic::AtomicBool>) {
    let log: Arc<Mutex<Vec<String>>> = Arc::default();
    let (seen, broken) = (Arc::clone(&log), Arc::new(std::sync::atomic::AtomicBool::new(true)));
    let (is_broken, fake, link) = (Arc::clone(&broken), Arc::new(fake), Arc::new(link));
    let router = Router::new().fallback(move |request: Request| {
        seen.lock().unwrap().push(request.uri().to_string());
        let number = seen.lock().unwrap().len();
        let mut response = fake.answer(&request);
        if is_broken.load(Ordering::Relaxed) {
            let next = link::next(response.headers());
            response.headers_mut().remove(header::LINK);
            if let Some(value) = link(number, &request, next) {
                response.headers_mut().append(header::LINK, value.parse().unwrap());
            }
        }
        async move { response }
    });
    (Reader::new(&ACCOUNT, router, log, Clock::starting_at(DateTime::from_timestamp(T, 0).unwrap())), broken)
}

#[tokio::test(start_paused = true)]
async fn a_next_link_that_leads_back_is_an_error_soon_and_all_is_read_when_the_service_recovers() {
    let thrice =
        |seconds: i64| (0..3 * seconds).map(|n| Happened(T + n / 3, "login", 5, u64::try_from(n).unwrap())).collect();
    for seconds in [500, 40, 4] {
        for back in [0, 1, 2] {
            let pages: Mutex<Vec<String>> = Mutex::default();
            let fake = Fake::new(Bookmarks::Pairs, thrice(seconds));
            let (mut reader, broken) = relinked(fake, move |_, request, next| {
                let mut pages = pages.lock().unwrap();
                if !request.uri().query().unwrap().contains("&page=") {
                    pages.clear();
                }
                pages.push(request.uri().to_string());
                // this very page; or the one before, or the one before that, once there are so many
                let to = match pages.len().checked_sub(back + 1) {
                    Some(at) => pages[at].clone(),
                    None => next.unwrap_or_else(|| pages[0].clone()),
                };
                Some(format!("<{to}>; rel=\"next\""))
            });
            let failure = reader.read(0..600).await.unwrap_err();
            assert_eq!(failure.kind, ErrorKind::Decode, "{back} back of {seconds}");
            assert!(failure.to_string().contains("leads back"), "{failure}");
            assert!(reader.requests().len() < 60, "{back} back of {seconds}: {}", reader.requests().len());
            broken.store(false, Ordering::Relaxed);
            reader.read(0..600).await.unwrap();
            assert_eq!(i64::try_from(reader.sink.keys.len()).unwrap(), 3 * seconds);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_header_that_is_lost_now_and_then_or_garbled_loses_nothing() {
    type Garble = fn(&str) -> String;
    let garbled: [Garble; 4] = [
        |next| format!("{next}; rel=\"next\""),
        |next| format!("<{next}; rel=\"next\""),
        |_| "</style.css>; rel=preload".to_owned(),
        |_| String::new(),
    ];
    for every in [1, 2, 3] {
        for garble in garbled {
            for cap in [100, 60] {
                let mut fake = Fake::new(Bookmarks::Pairs, one_each(0..1500));
                fake.per_page_max = cap;
                let (mut reader, _) = relinked(fake, move |number, _, next| {
                    let current = "<http://canvas.test/x>; rel=\"current\"";
                    Some(match next {
                        Some(next) if number.is_multiple_of(every) => garble(&next),
                        Some(next) => format!("{current},<{next}>; rel=\"next\""),
                        None => current.to_owned(),
                    })
                });
                reader.read(0..1600).await.unwrap();
                assert_eq!(reader.sink.keys.len(), 1500);
                assert_eq!(reader.sink.kinds(), []);
                assert!(reader.requests().len() < 150, "{}", reader.requests().len());
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_answers_everything_alike_is_left_soon() {
    for (events, kinds) in [(9, vec![]), (36, vec![ErrorKind::Decode])] {
        let event = |n| json!({"id": n, "created_at": "2027-01-15T08:00:20Z", "event_type": "login"});
        let list = Value::Array((0..events).map(event).collect()).to_string();
        let mut reader = answering(move || Response::new(Body::from(list.clone())));
        reader.read(0..60).await.unwrap();
        assert_eq!((reader.sink.keys.len(), reader.sink.kinds()), (events, kinds));
        assert!(reader.requests().len() <= 9, "{}", reader.requests().len());
    }
}
