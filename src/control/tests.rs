//! The socket and who may use it.

use super::*;

#[tokio::test]
async fn a_socket_left_behind_is_replaced_and_is_for_its_owner_alone_however_long_its_path() {
    let folder = tempfile::tempdir().unwrap();
    for folder in [folder.path().to_owned(), folder.path().join("x".repeat(200))] {
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(SOCKET), "left behind").unwrap();
        let left = Control::open(&folder).unwrap();
        let mode = std::fs::metadata(&left.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(left);
        let ask = Ask::Doctor { source: "iot".into() };
        assert!(ask_running(&folder, &ask, None, &|_| {}).await.unwrap().is_none(), "nobody listens there any more");
        let control = Control::open(&folder).unwrap();
        let client = UnixStream::connect(Reach::of(&folder).unwrap().path).await.unwrap();
        let (_server, _) = control.listener.accept().await.unwrap();
        drop(client);
    }
    let ask = Ask::Doctor { source: "iot".into() };
    assert!(ask_running(&folder.path().join("none"), &ask, None, &|_| {}).await.unwrap().is_none());
}

#[test]
fn a_question_is_one_line_that_is_read_back_as_it_was() {
    let ask = Ask::Verify { source: "iot".into(), from: DateTime::UNIX_EPOCH, to: None };
    let line = serde_json::to_string(&ask).unwrap();
    assert_eq!(line, r#"{"verify":{"source":"iot","from":"1970-01-01T00:00:00Z","to":null}}"#);
    let Ask::Verify { source, from, to } = serde_json::from_str(&line).unwrap() else { panic!("{line}") };
    assert_eq!((source.as_str(), from, to), ("iot", DateTime::UNIX_EPOCH, None));
}
