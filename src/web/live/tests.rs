//! The file is followed, and a bad one never means open.

use super::*;
use crate::web::config::check;
use crate::web::config::tests::{folder, written};

#[test]
fn what_rustls_cannot_do_is_refused_at_start_only() {
    let folder = folder();
    for (extra, usable) in [
        ("  max_version: TLS11\n  min_version: TLS10\n", false),
        ("  min_version: TLS13\n  max_version: TLS12\n", false),
        ("  min_version: TLS10\n", true),
        ("  curve_preferences: [CurveP521]\n", false),
        ("  curve_preferences: [CurveP521, CurveP256]\n", true),
        ("  cipher_suites: [TLS_RSA_WITH_AES_128_CBC_SHA]\n", true),
        ("  cipher_suites: [TLS_RSA_WITH_AES_128_CBC_SHA]\n  max_version: TLS12\n", false),
        ("  cipher_suites: [TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256]\n  max_version: TLS12\n", true),
        ("  client_auth_type: RequireAndVerifyClientCert\n", false),
        ("  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: junk.pem\n", false),
        ("  client_auth_type: VerifyClientCertIfGiven\n", true),
    ] {
        let path = written(folder.path(), &format!("tls_server_config:\n@CERT{extra}"));
        check(&path).unwrap();
        let opened = WebFile::open(&path);
        assert_eq!(opened.is_ok(), usable, "{extra}: {opened:?}");
        if let Err(error) = opened {
            assert!(matches!(error, WebConfigError::NothingUsable { .. }), "{error}");
        }
    }
}

#[tokio::test]
async fn a_change_holds_at_the_next_look_and_a_bad_one_never_means_open() {
    let folder = folder();
    let path = written(folder.path(), "basic_auth_users:\n  alice: @HASH\n");
    let web = Arc::new(WebFile::open(&path).unwrap());
    let users = |config: Option<Arc<WebConfig>>| config.unwrap().users.keys().cloned().collect::<Vec<_>>();
    assert_eq!(users(web.settings().await.unwrap()), ["alice"]);
    // of the same length and, as likely as not, of the same time
    written(folder.path(), "basic_auth_users:\n  bobby: @HASH\n");
    assert_eq!(users(web.settings().await.unwrap()), ["bobby"]);
    written(folder.path(), "basic_auth_users: [\n");
    assert_eq!(web.settings().await.unwrap_err(), Unusable);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(web.settings().await.unwrap_err(), Unusable);
    written(folder.path(), "basic_auth_users:\n  alice: @HASH\n");
    assert_eq!(users(web.settings().await.unwrap()), ["alice"]);
}

#[test]
fn the_same_content_is_worked_on_once() {
    let digest = blake3::hash(b"bad");
    let latest = Mutex::new(Latest { digest: blake3::hash(b"good"), result: Ok(Arc::new(1)) });
    let bad = || Err(WebConfigError::Setting { setting: "x", why: "y".into() });
    refresh(&latest, digest, "test", bad).unwrap_err();
    refresh(&latest, digest, "test", || unreachable!("looked at, and logged, twice")).unwrap_err();
    assert_eq!(*refresh(&latest, blake3::hash(b"new"), "test", || Ok(2)).unwrap(), 2);
}
