//! The request: whole seconds in UTC, and the routes of logins.

use super::*;

#[tokio::test(start_paused = true)]
async fn the_request_asks_for_whole_seconds_in_utc() {
    let mut reader = Reader::of(&ACCOUNT, Fake::new(Bookmarks::Pairs, vec![]));
    let at = |ms| DateTime::from_timestamp_millis(T * 1000 + ms).unwrap();
    let window = Window { from: at(500), to: at(2500) };
    reader.source.read(window, &reader.api, &mut reader.sink).await.unwrap();
    assert_eq!(
        reader.requests(),
        ["http://canvas.test/api/v1/audit/authentication/accounts/1\
         ?start_time=2027-01-15T08%3A00%3A00Z&end_time=2027-01-15T08%3A00%3A03Z&per_page=100"]
    );
}

#[tokio::test(start_paused = true)]
async fn logins_are_found_under_the_old_name_of_their_route_which_is_remembered() {
    let mut fake = Fake::new(Bookmarks::Pairs, one_each(0..3));
    fake.old_route = true;
    let mut reader = Reader::of(&Setup { scopes: [&[], &[], &["5"]], ..ACCOUNT }, fake);
    reader.read(0..10).await.unwrap();
    reader.read(0..10).await.unwrap();
    assert_eq!(reader.sink.keys.len(), 3);
    let routes: Vec<bool> = reader.requests().iter().map(|url| url.contains("/pseudonyms/5")).collect();
    assert_eq!(routes, [false, true, true]);
}

#[tokio::test(start_paused = true)]
async fn a_login_that_is_nowhere_is_an_error_that_does_not_keep_the_others_from_being_read() {
    let setup = Setup { scopes: [&[], &[], &["404", "5"]], ..ACCOUNT };
    let mut reader = Reader::of(&setup, Fake::new(Bookmarks::Pairs, one_each(0..3)));
    reader.read(0..10).await.unwrap();
    let failure = reader.sink.reports.pop().unwrap();
    assert_eq!(failure.kind, ErrorKind::NotFound);
    assert!(failure.to_string().contains("/logins/404"), "{failure}");
    assert_eq!(reader.sink.keys.len(), 3);
    let nowhere = Setup { scopes: [&[], &[], &["404"]], ..ACCOUNT };
    let mut reader = Reader::of(&nowhere, Fake::new(Bookmarks::Pairs, one_each(0..3)));
    assert_eq!(reader.read(0..10).await.unwrap_err().kind, ErrorKind::NotFound, "where all are gone");
}
