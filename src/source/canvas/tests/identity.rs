//! Which events are the same, with and without an id, seen twice and equal to others; what they are counted as.

use super::*;

#[tokio::test(start_paused = true)]
async fn an_event_seen_through_several_scopes_counts_once_with_and_without_an_id() {
    for flat in [false, true] {
        let mut fake = Fake::new(
            Bookmarks::Pairs,
            vec![Happened(T, "login", 5, 1), Happened(T, "login", 5, 2), Happened(T + 1, "logout", 6, 3)],
        );
        fake.flat = flat;
        let setup = Setup { scopes: [&["1"], &["5", "6"], &["5"]], ..ACCOUNT };
        let mut reader = Reader::of(&setup, fake);
        reader.read(0..10).await.unwrap();
        assert_eq!(reader.sink.keys.len(), 3, "flat: {flat}");
        reader.read(0..10).await.unwrap();
        assert_eq!(reader.sink.keys.len(), 3, "a second reading adds none; flat: {flat}");
    }
}

#[tokio::test(start_paused = true)]
async fn equal_events_without_an_id_each_count_even_over_the_end_of_a_page() {
    for bookmarks in [Bookmarks::Pairs, Bookmarks::Moments, Bookmarks::Opaque] {
        // seven equal ones from page 1 to 4, between others
        let mut events = one_each(0..9);
        events.extend((0..6).map(|n| Happened(T + 4, "login", 5, 100 + n)));
        let mut fake = Fake::new(bookmarks, events);
        fake.flat = true;
        fake.per_page_max = if bookmarks == Bookmarks::Moments { 7 } else { 2 };
        let mut reader = Reader::of(&ACCOUNT, fake);
        reader.read(0..20).await.unwrap();
        assert_eq!(reader.sink.keys.len(), 15);
        assert_eq!(reader.sink.kinds(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_among_equal_events_without_an_id_counts_none_twice() {
    for bookmarks in [Bookmarks::Restarting, Bookmarks::Wandering, Bookmarks::Looping] {
        let mut events = one_each(0..40);
        events.extend((0..3).map(|n| Happened(T + 4, "login", 5, 100 + n)));
        let mut fake = Fake::new(bookmarks, events);
        fake.flat = true;
        fake.per_page_max = 5;
        let mut reader = Reader::of(&ACCOUNT, fake);
        reader.read(0..100).await.unwrap();
        assert_eq!(reader.sink.keys.len(), 43);
        assert_eq!(reader.sink.kinds(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_with_a_new_event_at_the_top_counts_none_twice() {
    let mut fake = Fake::new(Bookmarks::Wandering, one_each(0..40));
    (fake.flat, fake.grows, fake.per_page_max) = (true, true, 10);
    let mut reader = Reader::of(&ACCOUNT, fake);
    reader.read(0..5000).await.unwrap();
    let actions = |action: &str| {
        let is = |item: &&Item| matches!(&item.what, What::Event(labels) if labels.action.as_str() == action);
        reader.sink.items.iter().filter(is).count()
    };
    assert_eq!(actions("login"), 40);
    assert!(actions("logout") <= reader.requests().len());
}

#[tokio::test(start_paused = true)]
async fn equal_events_without_an_id_that_fit_no_page_are_never_too_many() {
    for bookmarks in [Bookmarks::Restarting, Bookmarks::Looping] {
        let events = (0..7).map(|n| Happened(T, "login", 5, n)).collect();
        let mut fake = Fake::new(bookmarks, events);
        (fake.flat, fake.per_page_max) = (true, 5);
        let mut reader = Reader::of(&ACCOUNT, fake);
        reader.read(0..10).await.unwrap();
        assert_eq!(reader.sink.keys.len(), 5);
        assert_eq!(reader.sink.kinds(), [ErrorKind::Truncated]);
    }
}

#[test]
fn ids_are_alike_as_text_and_as_number_and_keep_all_digits() {
    let service = Settings {
        base_url: "http://canvas.test".parse().unwrap(),
        access_token: Secret::text("t"),
        accounts: vec!["1".to_owned()],
        users: Vec::new(),
        pseudonyms: Vec::new(),
    };
    let canvas =
        Canvas::new(&service.base_url, [&service.accounts, &service.users, &service.pseudonyms], &(SERVICE.defaults)());
    let key = |mut json: Value| {
        json["created_at"] = "2026-11-22T10:00:00Z".into();
        let entry = canvas.entry(json.to_string().as_bytes());
        (entry.key, entry.has_own_key)
    };
    assert_eq!(key(json!({"id": 7})), key(json!({"id": "7"})));
    assert_ne!(key(json!({"id": 9_007_199_254_740_993_u64})), key(json!({"id": 9_007_199_254_740_992_u64})));
    let flat =
        key(json!({"event_type": "login", "pseudonym_id": 1, "account_id": 2, "user_id": 21_070_000_000_000_001_u64}));
    let linked = json!({"id": null, "event_type": "login",
        "links": {"login": "1", "account": "2", "user": "21070000000000001", "page_view": null}});
    assert_eq!(flat, key(linked));
    assert!(!flat.1);
    assert_eq!(key(json!({"id": ""})), key(json!({})), "an empty id is none");
    assert_ne!(flat, key(json!({"event_type": "login", "pseudonym_id": 1, "account_id": 2})));
}

#[test]
fn events_are_counted_as_the_interface_says() {
    let labels = |kind: Value| {
        let labels = serde_json::from_str::<Event>(&json!({"event_type": kind}).to_string()).unwrap().labels();
        (format!("{} {} {}", labels.category, labels.action, labels.outcome.as_str()), labels.class)
    };
    assert_eq!(labels(json!("login")), ("authentication login success".into(), Class::Login(Principal::User)));
    assert_eq!(labels(json!("logout")), ("authentication logout success".into(), Class::Logout));
    assert_eq!(labels(json!("apiLogin")), ("authentication api_login success".into(), Class::Change));
    assert_eq!(labels(json!(null)), ("authentication unknown success".into(), Class::Change));
}
