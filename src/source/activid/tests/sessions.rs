//! Sessions: how id and secret are sent, and when a token is renewed.

use super::*;

#[tokio::test(start_paused = true)]
async fn id_and_secret_are_encoded_and_a_new_secret_is_read_at_the_next_login() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, "one:\n").unwrap();
    let mut rig = rig_with(|activid, _| activid.client_secret = Secret::file(&path));
    rig.read(cells(1)).await;
    std::fs::write(&path, "two+").unwrap();
    rig.service().statuses = vec![401];
    rig.read(cells(1)).await;
    let expected = ["audit:one%3A", "audit:two%2B"].map(|pair| {
        use base64::Engine;
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
    });
    assert_eq!(rig.service().logins, expected);
}

#[tokio::test(start_paused = true)]
async fn a_token_is_renewed_in_time_and_once_when_it_is_refused() {
    let mut rig = rig();
    rig.service().expires_in = 100;
    rig.other(at(0));
    rig.read(cells(1)).await;
    tokio::time::sleep(Duration::from_secs(95)).await;
    rig.read(cells(1)).await;
    assert_eq!(rig.service().logins.len(), 2, "renewed before it ends");
    rig.service().statuses = vec![401, 401, 401];
    let failure = rig.try_read(cells(1)).await.unwrap_err();
    assert_eq!(failure.kind, ErrorKind::Auth);
    assert_eq!(rig.service().logins.len(), 3);
    assert_eq!(rig.book.total(), 1);
}
