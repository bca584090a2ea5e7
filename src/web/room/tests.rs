//! Who gets a place, and who makes room.

use tokio::time::{sleep, timeout};

use super::*;
use crate::web::listen::PLACE_WAIT_MAX;

fn peer(text: &str) -> SocketAddr {
    SocketAddr::new(text.parse().unwrap(), 1)
}

#[tokio::test(start_paused = true)]
async fn many_clients_together_push_out_those_that_hold_most() {
    let room = Arc::new(Room::new(CONNECTIONS_MAX));
    let mut places = vec![room.admit(peer("192.0.2.1")).unwrap()];
    for client in 0..8 {
        for _ in 0..CLIENT_CONNECTIONS_MAX {
            tokio::time::advance(Duration::from_millis(1)).await;
            places.push(room.admit(peer(&format!("10.0.0.{client}"))).unwrap());
        }
    }
    // one more than there is room for, which one of the crowd had to leave; and many more
    let count = || room.guests().all.len();
    assert_eq!(count(), CONNECTIONS_MAX);
    for client in 0..200 {
        places.push(room.admit(peer(&format!("10.0.1.{client}"))).unwrap());
        assert_eq!(count(), CONNECTIONS_MAX);
    }
    assert!(!places[0].leave.is_cancelled(), "alone at its address, and the oldest");
    let left = places.iter().filter(|place| place.leave.is_cancelled()).count();
    assert_eq!(left, places.len() - CONNECTIONS_MAX);
    drop(places);
    assert_eq!(count(), 0);
}

#[tokio::test(start_paused = true)]
async fn where_each_has_a_request_under_way_a_new_one_waits_for_a_place() {
    let room = Arc::new(Room::new(CONNECTIONS_MAX));
    let places: Vec<Place> = (0..CLIENT_CONNECTIONS_MAX).map(|_| room.admit(peer("192.0.2.1")).unwrap()).collect();
    let mut requests: Vec<UnderWay> = places.iter().map(|place| UnderWay::new(Arc::clone(&place.activity))).collect();
    assert!(room.admit(peer("192.0.2.1")).is_none());
    assert!(room.admit(peer("192.0.2.2")).is_some(), "others are let in");
    assert!(timeout(PLACE_WAIT_MAX, room.place(peer("192.0.2.1"))).await.is_err());
    let waits = tokio::spawn({
        let room = Arc::clone(&room);
        async move { room.place(peer("192.0.2.1")).await }
    });
    sleep(Duration::from_secs(1)).await;
    assert!(!waits.is_finished());
    requests.truncate(CLIENT_CONNECTIONS_MAX - 1);
    let _place = waits.await.unwrap();
    assert!(places[CLIENT_CONNECTIONS_MAX - 1].leave.is_cancelled());
}

#[test]
fn one_network_of_ipv6_is_one_client() {
    let client = |text: &str| client(text.parse().unwrap());
    assert_eq!(client("2001:db8::1"), client("2001:db8::ffff:1:2:3"));
    assert_ne!(client("2001:db8::1"), client("2001:db8:0:1::1"));
    assert_eq!(client("::ffff:192.0.2.1"), client("192.0.2.1"));
    assert_ne!(client("192.0.2.1"), client("192.0.2.2"));
}
