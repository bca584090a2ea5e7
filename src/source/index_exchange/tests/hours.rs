//! Which hours are read, when they are read again, and that this adds only what they gained.

use super::*;

#[test]
fn an_hour_is_read_again_when_what_is_said_about_it_changed_or_cannot_tell() {
    let hour = |row: Value| {
        let text = json!([row]).to_string();
        let mut listing = Listing::default();
        listing.add(
            &serde_json::from_str::<Vec<Raw<'_>>>(&text).unwrap(),
            &[Label::from_words("impressions")],
            Some(0),
        );
        let ((_, begins), files) = listing.hours.pop_first().unwrap();
        Hour { key: EventKey([0; 16]), category: Label::from_words("impressions"), begins, files }
    };
    let with = |more: Value| {
        let mut row = json!({"hour": "2026-03-04T01:00:00Z", "downloadStatus": "new", "downloadURL": "/files/1?s=1"});
        row.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
        row
    };
    let rules = [
        ("nothing changed", json!({"size": 1}), json!({"size": 1}), false),
        ("grew", json!({"size": 1}), json!({"size": 2}), true),
        ("made anew", json!({"generatedTime": "a"}), json!({"generatedTime": "b"}), true),
        ("another file", json!({}), json!({"downloadURL": "/files/2"}), true),
        ("anything unknown", json!({"rowCount": 1}), json!({"rowCount": 2}), true),
        ("downloaded", json!({}), json!({"downloadStatus": "downloaded"}), false),
        ("signed anew", json!({}), json!({"downloadURL": "/files/1?s=2", "downloadedAt": 5, "expiryTime": 6}), false),
        ("said to be updated, and cannot tell", json!({}), json!({"downloadStatus": "Updated"}), true),
        (
            "said to be updated, but is the same",
            json!({"size": 1}),
            json!({"size": 1, "downloadStatus": "updated"}),
            false,
        ),
        ("elsewhere", json!({}), json!({"downloadURL": "https://other.example/files/1"}), false),
    ];
    for (rule, before, after, expected) in rules {
        let counted: DocumentRecord = serde_json::from_value(json!({
            "version": hour(with(before)).version().0, "counted_at": "2026-03-04T02:30:00Z", "rows": {}, "rejected": 0,
        }))
        .unwrap();
        let listed = hour(with(after));
        assert_eq!(listed.has_changed(&counted, at("2026-03-04T03:00:00Z")), expected, "{rule}");
        // what cannot tell is read again now and then, for a while
        let weak = !listed.files[0].tells_changes;
        assert_eq!(listed.has_changed(&counted, at("2026-03-04T08:30:00Z")), expected || weak, "{rule}, later");
        assert_eq!(listed.has_changed(&counted, at("2026-03-06T01:00:00Z")), expected, "{rule}, long after");
    }
}

#[tokio::test(start_paused = true)]
async fn an_updated_file_adds_only_the_rows_it_gained_whoever_downloads_it_meanwhile() {
    let service = Service::new();
    service.file("1", &[("impression", 10)]);
    let mut reader = Reader::of(&service).await;
    let steps = [
        ("1", "new", 10, &[("impression", 10)][..], 10, 1),
        ("1", "downloaded", 10, &[("impression", 10)], 10, 0),
        ("1", "Updated", 14, &[("impression", 12), ("click", 2)], 14, 1),
        ("1", "downloaded", 14, &[("impression", 12), ("click", 2)], 14, 0),
        // someone else was faster
        ("1", "downloaded", 15, &[("impression", 13), ("click", 2)], 15, 1),
        // replaced by another file
        ("2", "new", 17, &[("impression", 15), ("click", 2)], 17, 1),
        ("2", "downloaded", 17, &[("impression", 15), ("click", 2)], 17, 0),
    ];
    for (id, status, size, rows, total, downloads) in steps {
        service.list(IMPRESSIONS, json!([single("impressions", 3, id, status, size)]));
        service.file(id, rows);
        reader.read().await.unwrap();
        assert_eq!(reader.total(), total, "{id} {status} {size}");
        assert_eq!(service.downloads().len(), downloads, "{id} {status} {size}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_check_reads_what_was_counted_again_and_leaves_what_is_new_or_changed_to_the_polls() {
    let service = Service::new();
    for id in ["1", "2", "3", "4"] {
        service.file(id, &[("impression", 10)]);
    }
    let mut reader = Reader::of(&service).await;
    let listed = |status: &str| {
        json!([
            single("impressions", 6, "1", "downloaded", 10),
            single("impressions", 5, "2", "downloaded", 10),
            single("impressions", 4, "3", status, 10 + u64::from(status == "updated")),
        ])
    };
    service.list(IMPRESSIONS, listed("new"));
    reader.read().await.unwrap();
    assert_eq!(service.downloads().len(), 3);
    let mut more = listed("updated");
    more.as_array_mut().unwrap().push(single("impressions", 3, "4", "new", 10));
    service.list(IMPRESSIONS, more);
    reader.sink.checks = true;
    reader.read_from(start() - HOUR * 5).await.unwrap();
    assert_eq!(service.downloads(), ["2"], "not the first either: it is outside the window");
    reader.sink.checks = false;
    reader.read().await.unwrap();
    assert_eq!(service.downloads(), ["3", "4"]);
}

#[tokio::test(start_paused = true)]
async fn parts_may_appear_in_any_order_and_change_their_ids() {
    let service = Service::new();
    service.file("11", &[("bid", 10)]);
    service.file("12", &[("bid", 200)]);
    let mut reader = Reader::of(&service).await;
    service.list(BID_PARTS, json!([parted(3, &[part("12", "new", 200)])]));
    reader.read().await.unwrap();
    assert_eq!((reader.total(), service.downloads()), (200, vec!["12".to_owned()]));
    service.list(BID_PARTS, json!([parted(3, &[part("11", "new", 10), part("12", "downloaded", 200)])]));
    reader.read().await.unwrap();
    assert_eq!((reader.total(), service.downloads()), (210, vec!["11".to_owned(), "12".to_owned()]));
    service.file("1011", &[("bid", 13)]);
    service.list(BID_PARTS, json!([parted(3, &[part("12", "downloaded", 200), part("1011", "updated", 13)])]));
    reader.read().await.unwrap();
    assert_eq!((reader.total(), service.downloads()), (213, vec!["1011".to_owned()]), "the other part is known");
}

#[tokio::test(start_paused = true)]
async fn hours_that_ended_before_the_window_are_not_counted() {
    let service = Service::new();
    service
        .list(IMPRESSIONS, json!([single("impressions", 3, "3", "new", 1), single("impressions", 4, "4", "new", 1)]));
    service.file("3", &[("impression", 1)]);
    let mut reader = Reader::of(&service).await;
    reader.read_from(start() - HOUR * 3).await.unwrap();
    assert_eq!(service.downloads(), ["3"]);
}

#[tokio::test(start_paused = true)]
async fn hours_that_would_be_counted_again_and_again_or_remembered_for_ever_are_not_read() {
    let service = Service::new();
    let days = |days: i64| single("impressions", days * 24, &format!("9{}", days.abs()), "new", 1);
    service.list(IMPRESSIONS, json!([days(40), days(30), days(-3)]));
    for days in [40, 30, 3] {
        service.file(&format!("9{days}"), &[("impression", 5)]);
    }
    let mut reader = Reader::of(&service).await;
    for _ in 0..3 {
        reader.read_from(start() - TimeDelta::days(60)).await.unwrap();
        assert_eq!(reader.count("impressions", "impression"), 5, "of the hour of 30 days ago");
    }
    assert!(reader.sink.reported.iter().all(|failure| failure.to_string().contains("2 hours")));
    assert_eq!(reader.sink.reported.len(), 3);
}
