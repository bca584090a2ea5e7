//! The lists: which are asked for, what they may hold, and what is told of the feed.

use super::*;

#[tokio::test(start_paused = true)]
async fn every_subscription_and_the_parts_of_bids_are_asked_for() {
    let service = Service::new();
    service.set(BID_PARTS, Answer::Status(404));
    let mut reader = Reader::of(&service).await;
    reader.read().await.unwrap();
    assert_eq!(service.asked(), [TOKEN, IMPRESSIONS, BIDS, BID_PARTS]);
    assert_eq!(reader.stats.errors(ErrorKind::NotFound), 0, "a route that is not there lists nothing");
    service.set(IMPRESSIONS, Answer::Status(404));
    assert_eq!(reader.read().await.unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_list_may_be_bare_or_empty_in_every_way_but_not_something_else() {
    let service = Service::new();
    service.file("1", &[("impression", 3)]);
    let mut reader = Reader::of(&service).await;
    for empty in [json!(null), json!({}), json!([]), json!({"availableDownloads": null})] {
        service.set(BID_PARTS, Answer::Json(empty));
        reader.read().await.unwrap();
    }
    service.set(BIDS, Answer::Status(204));
    service.set(IMPRESSIONS, Answer::Json(json!([single("impressions", 3, "1", "new", 1)])));
    reader.read().await.unwrap();
    assert_eq!(reader.count("impressions", "impression"), 3);
    for wrong in [json!({"message": "no"}), json!([[1]]), json!(7), json!({"availableDownloads": 7})] {
        service.set(BIDS, Answer::Json(wrong.clone()));
        assert_eq!(reader.read().await.unwrap_err().kind, ErrorKind::Decode, "{wrong}");
    }
    service.set(BIDS, Answer::Bytes(b"<html></html>".to_vec()));
    assert_eq!(reader.read().await.unwrap_err().kind, ErrorKind::Decode);
}

#[tokio::test(start_paused = true)]
async fn a_file_on_both_routes_or_twice_on_one_counts_once() {
    let service = Service::new();
    service.file("7", &[("bid", 5)]);
    service.file("8", &[("bid", 2)]);
    service.list(BIDS, json!([single("bid events", 3, "7", "new", 1), single("Bid-Events", 3, "7", "new", 1)]));
    service.list(BID_PARTS, json!([parted(3, &[part("7", "new", 1), part("8", "new", 1), part("8", "new", 1)])]));
    let mut reader = Reader::of(&service).await;
    reader.read().await.unwrap();
    assert_eq!(reader.count("bid_events", "bid"), 7);
    assert_eq!(service.downloads(), ["7", "8"]);
    // the whole hour under an id of its own is its parts again
    service.file("9", &[("bid", 7)]);
    service.list(BIDS, json!([single("bid events", 3, "9", "new", 1)]));
    reader.read().await.unwrap();
    service.list(BID_PARTS, json!([]));
    reader.read().await.unwrap();
    assert_eq!(reader.count("bid_events", "bid"), 7);
}

#[tokio::test(start_paused = true)]
async fn a_link_may_lead_anywhere_and_be_called_anything_but_the_token_stays() {
    let service = Service::new();
    service.file("42", &[("impression", 1)]);
    service.file("ab-7", &[("impression", 10)]);
    service.file("9", &[("impression", 100)]);
    service.file("10", &[("impression", 1000)]);
    service.list(
        IMPRESSIONS,
        json!([
            {"hour": "2026-03-04T01:00:00Z", "link": "https://evil.example/x/files/42?sig=1"},
            {"hour": "2026-03-04T02:00:00+00:00", "subscriptionName": "impressions", "download_url": "/files/ab-7"},
            {"hour": "2026-03-04T03:00:00Z", "subscriptionname": "Impressions", "fileID": 9},
            {"hour": "2026-03-04T04:00:00Z", "subscriptionName": "impressions", "part": 0, "id": "10"},
            {"hour": "2026-03-04T04:00:00Z", "subscriptionName": "clicks", "id": "11"},
        ]),
    );
    let mut reader = Reader::of(&service).await;
    reader.read().await.unwrap();
    assert_eq!(reader.total(), 1111);
    assert!(reader.sink.rejected.is_empty(), "a subscription nobody asked for is no mistake");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_understood_is_rejected_once_and_the_rest_is_counted() {
    let service = Service::new();
    service.file("1", &[("impression", 1)]);
    service.file("2", &[("bid", 2)]);
    let rows = |status: &str| {
        json!([
            "not a row",
            {"subscriptionName": "impressions", "hour": "soon", "id": 1, "downloadStatus": status},
            {"subscriptionName": "impressions", "id": 1},
            {"subscriptionName": "impressions", "hour": "2026-03-04T01:00:00Z", "id": "../x"},
            single("impressions", 3, "1", status, 1),
        ])
    };
    let parts = [json!({"downloadStatus": "new"}), part("2", "new", 1), json!(null)];
    service.list(BID_PARTS, json!([parted(3, &parts)]));
    let mut reader = Reader::of(&service).await;
    for status in ["new", "downloaded"] {
        service.list(IMPRESSIONS, rows(status));
        reader.read().await.unwrap();
    }
    let rejected = |reason| reader.sink.source.state().value(&SeriesKey::new(Counter::Rejected, &[reason]));
    assert_eq!((rejected("malformed"), rejected("bad_time")), (5, 1));
    assert_eq!((reader.count("impressions", "impression"), reader.count("bid_events", "bid")), (1, 2));
    assert!(reader.sink.rejected.iter().all(|item| matches!(item.what, What::Rejected(_))));
}

#[tokio::test(start_paused = true)]
async fn the_feed_tells_its_newest_hour_its_holes_and_its_files_by_status() {
    let service = Service::new();
    service.list(
        IMPRESSIONS,
        json!([
            single("impressions", 2, "1", "NEW", 1),
            single("impressions", 5, "2", "Downloaded", 1),
            single("impressions", 6, "3", "being made", 1),
        ]),
    );
    service.list(BID_PARTS, json!([parted(3, &[part("4", "Updated", 1), part("5", "new", 1)]), parted(5, &[])]));
    let mut reader = Reader::of(&service).await;
    reader.read_from(start()).await.unwrap();
    assert!(service.downloads().is_empty());
    let files = [("being_made", 1), ("downloaded", 1), ("new", 2), ("updated", 1)];
    let expected = Feed {
        newest_hour: Some(start() - HOUR * 2),
        newest_by_category: [("impressions", 2), ("bid_events", 3)]
            .map(|(category, hours)| (category.to_owned(), start() - HOUR * hours))
            .into(),
        missing_hours: 3,
        files: files.map(|(status, files)| (status.to_owned(), files)).into(),
    };
    assert_eq!(reader.feed(), expected);
    // a feed that was suspended must not look young, nor vanish
    service.list(IMPRESSIONS, json!([]));
    service.list(BID_PARTS, json!([]));
    reader.read_from(start()).await.unwrap();
    assert_eq!(reader.feed().newest_hour, expected.newest_hour);
    assert_eq!(reader.feed().newest_by_category, expected.newest_by_category);
    assert_eq!(reader.feed().files.values().sum::<u64>(), 0);
    // nor is half a list the state of the feed
    service.list(IMPRESSIONS, json!([single("impressions", 2, "1", "new", 1)]));
    service.set(BIDS, Answer::Status(403));
    reader.read_from(start()).await.unwrap_err();
    assert_eq!(reader.feed().files.values().sum::<u64>(), 0);
}

#[test]
fn statuses_beyond_ten_are_told_as_other() {
    let rows: Vec<Value> = (0..30).map(|n| single("impressions", n, &n.to_string(), &format!("s{n}"), 1)).collect();
    let text = Value::from(rows).to_string();
    let mut listing = Listing::default();
    listing.add(&serde_json::from_str::<Vec<Raw<'_>>>(&text).unwrap(), &[Label::from_words("impressions")], None);
    let files = listing.feed(&[Label::from_words("impressions")], DateTime::UNIX_EPOCH).files;
    assert_eq!((files.len(), files["other"], files.values().sum::<u64>()), (11, 23, 30));
}

#[tokio::test]
async fn the_series_of_what_is_subscribed_exist_from_the_start() {
    let reader = Reader::of(&Service::new()).await;
    let mut events: Vec<String> = Vec::new();
    for labels in reader.source.spec().catalogue.events {
        events.push(format!("{} {} {:?}", labels.category, labels.action, labels.class));
    }
    assert_eq!(events, ["impressions impression Row", "bid_events bid Row"]);
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_more_files_than_any_has_is_refused() {
    let service = Service::new();
    let parts: Vec<Value> = (0..2000).map(|n| part(&n.to_string(), "new", 1)).collect();
    service.list(BID_PARTS, json!([parted(2, &parts)]));
    let mut reader = Reader::of(&service).await;
    let failure = reader.read().await.unwrap_err();
    assert_eq!(failure.kind, ErrorKind::TooLarge, "{failure}");
    assert_eq!(reader.total(), 0);
}

#[test]
fn an_hour_that_is_none_is_rejected() {
    let mut listing = Listing::default();
    let rows: Vec<Value> = ["2026-03-04T11:00:00Z", "2026-03-04T11:00:01Z", "2026-03-04T11:00:00.5Z"]
        .map(|hour| json!({"hour": hour, "downloadURL": "/files/1"}))
        .into();
    let text = Value::from(rows).to_string();
    listing.add(&serde_json::from_str::<Vec<Raw<'_>>>(&text).unwrap(), &[Label::from_words("impressions")], Some(0));
    assert_eq!((listing.hours.len(), listing.rejected.len()), (1, 2));
}
