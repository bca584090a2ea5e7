//! The files: every kind is counted whole or not at all, and one that cannot be had costs no other.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_file_that_fails_does_not_stop_the_others_and_is_read_the_next_time() {
    for (answer, kind, requests) in [
        (Answer::Status(404), ErrorKind::NotFound, 1),
        (Answer::Status(500), ErrorKind::Server, 4),
        (Answer::Broken(gzip(&csv(&[("impression", 3)]))[..20].to_vec()), ErrorKind::Connect, 3),
        (Answer::Bytes(gzip(&csv(&[("impression", 3)]))[..40].to_vec()), ErrorKind::Decode, 3),
        (Answer::Bytes(b"<html>, </html>\n, \n".to_vec()), ErrorKind::Decode, 3),
        (Answer::Bytes(Vec::new()), ErrorKind::Decode, 3),
        (Answer::Bytes(gzip(&[csv(&[]), vec![b'x'; RECORD_BYTES_MAX + 1]].concat())), ErrorKind::TooLarge, 1),
        (Answer::Slow(vec![b'x'; 1000]), ErrorKind::Timeout, 3),
    ] {
        let service = Service::new();
        let listed = json!([
            single("impressions", 5, "1", "new", 1),
            single("impressions", 4, "2", "new", 1),
            single("impressions", 3, "3", "new", 1),
        ]);
        service.list(IMPRESSIONS, listed);
        service.set("/api/cal/v1/files/1", answer.clone());
        service.set("/api/cal/v1/files/2", answer);
        service.file("3", &[("impression", 4)]);
        let mut reader = Reader::of(&service).await;
        assert_eq!(reader.read().await.unwrap_err().kind, kind);
        let failed = reader.sink.reported.iter().filter(|failure| failure.kind == kind).count();
        assert_eq!(failed, if requests == 3 { 5 } else { 1 }, "{kind:?}: every attempt but the one returned");
        let asked = service.downloads();
        assert_eq!(asked.iter().filter(|id| *id == "1").count(), requests, "{kind:?}");
        assert_eq!(reader.total(), 4, "{kind:?}");
        assert!(reader.sink.source.state().facts().feed.is_some());
        service.file("1", &[("impression", 3)]);
        service.file("2", &[("impression", 2)]);
        reader.read().await.unwrap();
        assert_eq!((reader.total(), service.downloads()), (9, vec!["1".to_owned(), "2".to_owned()]), "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_part_that_fails_leaves_the_others_counted_and_the_hour_to_be_read_again() {
    let service = Service::new();
    service.list(BID_PARTS, json!([parted(3, &[part("1", "new", 1), part("2", "new", 1)])]));
    service.set("/api/cal/v1/files/1", Answer::Status(404));
    service.file("2", &[("bid", 5)]);
    let mut reader = Reader::of(&service).await;
    for _ in 0..2 {
        reader.read().await.unwrap_err();
        assert_eq!(reader.total(), 5);
    }
    service.file("1", &[("bid", 3)]);
    service.asked();
    for downloads in [1, 0] {
        reader.read().await.unwrap();
        assert_eq!((reader.total(), service.downloads().len()), (8, downloads));
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_sends_no_file_at_all_is_left_alone_for_this_poll() {
    let service = Service::new();
    let rows: Vec<Value> = (1..=40).map(|n| single("impressions", n, &n.to_string(), "new", 1)).collect();
    service.list(IMPRESSIONS, rows);
    for n in 31..=40 {
        service.set(&format!("/api/cal/v1/files/{n}"), Answer::Status(503));
    }
    for n in 1..=30 {
        service.file(&n.to_string(), &[("impression", 1)]);
    }
    let mut reader = Reader::of(&service).await;
    assert_eq!(reader.read().await.unwrap_err().kind, ErrorKind::Server);
    assert_eq!(service.downloads().len(), 40, "ten files, four times each");
    // what failed comes last the next time
    reader.read().await.unwrap_err();
    assert_eq!(reader.total(), 30);
}

#[tokio::test(start_paused = true)]
async fn files_of_every_kind_are_counted() {
    let service = Service::new();
    let files: [(&str, Vec<u8>); 5] = [
        ("1", csv(&[("impression", 1)])),
        ("2", [gzip(&csv(&[("impression", 2)])), gzip(b"x,impression,y\n")].concat()),
        ("3", b"\xef\xbb\xbf\"Event_Type\",b\r\nimpression,1\r\nbad\r\n\r\nimpression,2".to_vec()),
        ("4", b"a,b\n1,2\n".to_vec()),
        ("5", gzip(b"")),
    ];
    let mut rows = Vec::new();
    for (hours_ago, (id, bytes)) in (1..).zip(files) {
        rows.push(single("impressions", hours_ago, id, "new", 1));
        service.set(&format!("/api/cal/v1/files/{id}"), Answer::Bytes(bytes));
    }
    service.list(IMPRESSIONS, rows);
    let mut reader = Reader::of(&service).await;
    reader.read().await.unwrap();
    assert_eq!(reader.count("impressions", "impression"), 1 + 3 + 2);
    assert_eq!(reader.count("impressions", "unknown"), 1);
    assert_eq!(reader.sink.source.state().value(&SeriesKey::new(Counter::Rejected, &["malformed"])), 1);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_packed_for_its_way_is_counted_whole_or_not_at_all() {
    let text = csv(&[("impression", 500)]);
    let (first, second) = text.split_at(text.len() / 2);
    let members = [gzip(first), gzip(second)].concat();
    let padded = [&members[..], &[0; 512]].concat();
    for (coding, bytes, rows) in [
        ("gzip", gzip(&text), Some(500)),
        ("gzip", members.clone(), Some(500)),
        ("x-gzip", padded.clone(), Some(500)),
        ("identity", padded.clone(), Some(500)),
        ("gzip", gzip(&padded), Some(500)),
        ("gzip, gzip", gzip(&members), Some(500)),
        ("gzip", [gzip(&members), vec![0; 10]].concat(), Some(500)),
        ("gzip", members[..members.len() - 9].to_vec(), None),
        ("gzip", members[..gzip(first).len() + 4].to_vec(), None),
        ("gzip", [&members[..], b"garbage"].concat(), None),
        ("gzip", text.clone(), None),
        ("br", text.clone(), None),
        ("deflate", members.clone(), None),
        ("gzip", gzip(&members[..members.len() - 9]), None),
        ("gzip", gzip(&[&members[..], b"x"].concat()), None),
    ] {
        let service = Service::new();
        service.list(IMPRESSIONS, json!([single("impressions", 3, "1", "new", 1)]));
        service.set("/api/cal/v1/files/1", Answer::Encoded(coding, bytes));
        let mut reader = Reader::of(&service).await;
        let failure = reader.read().await.err();
        assert_eq!(failure.as_ref().map(|failure| failure.kind), rows.is_none().then_some(ErrorKind::Decode));
        assert_eq!(reader.total(), rows.unwrap_or(0), "{coding}: {failure:?}");
        if rows.is_none() {
            service.set("/api/cal/v1/files/1", Answer::Encoded("gzip", members.clone()));
            reader.read().await.unwrap();
            assert_eq!(reader.total(), 500, "when the service recovers");
        }
    }
}
