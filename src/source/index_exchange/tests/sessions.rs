//! The session: how the key is sent, when a token is renewed, and that a refused key is not tried again.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_token_is_renewed_by_its_own_life_where_the_answer_promises_more() {
    let service = Service::new();
    service.set(TOKEN, token(3600, 60));
    let mut reader = Reader::of(&service).await;
    for (wait, logins) in [(0, 1), (30, 0), (30, 1), (30, 0)] {
        tokio::time::advance(Duration::from_secs(wait)).await;
        reader.read().await.unwrap();
        assert_eq!(service.asked().iter().filter(|path| *path == TOKEN).count(), logins);
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_with_special_characters_is_tried_form_encoded_once_and_that_is_remembered() {
    let raw = STANDARD.encode("id:a:b+c%d");
    let encoded = STANDARD.encode("id:a%3Ab%2Bc%25d");
    for (accepted, first, later) in [(&encoded, 2, 1), (&raw, 1, 1)] {
        let service = Service::new();
        *service.keys.lock().unwrap() = vec![accepted.clone()];
        let mut reader = Reader::with_key(&service, &format!(" {raw}\n")).await;
        for logins in [first, later, later] {
            reader.read().await.unwrap();
            assert_eq!(service.asked().iter().filter(|path| *path == TOKEN).count(), logins);
            tokio::time::advance(Duration::from_hours(2)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_key_is_not_tried_again_in_a_poll() {
    for (key, logins) in [("id:plain", 1), ("id:a+b", 2)] {
        let service = Service::new();
        *service.keys.lock().unwrap() = vec!["none".into()];
        let failure = Reader::with_key(&service, &STANDARD.encode(key)).await.read().await.unwrap_err();
        assert_eq!((failure.kind, failure.at_login), (ErrorKind::Auth, true));
        assert!(!failure.to_string().contains("plain"));
        assert_eq!(service.asked(), vec![TOKEN; logins]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_ended_session_is_renewed_in_the_middle_of_a_poll() {
    let world = world(0.02, "index_exchange:expire_every=7");
    let mut reader = Reader::simulated(&world).await;
    reader.read_from(at("2026-01-01T00:00:00Z")).await.unwrap();
    assert_eq!(reader.total(), world.truth().total(SYSTEM));
}
