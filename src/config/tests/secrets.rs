//! No message shows a secret, and a secret that cannot be meant is told of.

use super::*;

#[test]
fn a_secret_in_the_configuration_is_looked_at_as_one_in_a_file_is() {
    for (secret, why) in [
        ("'Bearer hunter2'", "begins with the word `Bearer`"),
        ("${LOSANT_TOKEN}", "is a placeholder"),
        ("\"hunter2\\u200b\"", "has an invisible character (U+200B)"),
        ("\"hunter2\\nhunter3\"", "has a line end inside"),
        ("'\"hunter2\"'", "is in quotes"),
        ("' hunter2'", "has a blank (U+0020)"),
    ] {
        let problems = problems(&losant("").replace("api_token: hunter2", &format!("api_token: {secret}")));
        let good = problems.len() == 1 && problems[0].starts_with("5:18: `api_token`") && problems[0].contains(why);
        assert!(good && !problems[0].contains("hunter"), "{problems:?}");
    }
    let key = |key: &str| {
        format!("sources: {{index_exchange: [{{name: a, client_key: {key}, subscriptions: [impressions]}}]}}")
    };
    let told = warnings(&key("hunter2"));
    assert!(
        told.len() == 1 && told[0].ends_with(": `client_key` is not base64: write the key exactly as issued"),
        "{told:?}"
    );
    let with_blanks = "sources: {informatica: [{name: a, login_url: 'https://h', username: u, password: ' \"p\" '}]}";
    let config = only(with_blanks);
    assert_eq!(config.secret().read().unwrap().expose_secret(), " \"p\" ", "what YAML shows was meant");
}

#[test]
fn a_missing_file_is_named_by_the_path_that_was_looked_at_and_a_secret_is_not() {
    for (path, shown) in [
        ("gone.token", "DIR/gone.token"),
        ("secrets/losant-token", "DIR/secrets/losant-token"),
        ("token", "DIR/token"),
        ("/run/secrets/audit exporter/token", "/run/secrets/audit exporter/token"),
        (
            "/var/lib/kubelet/pods/3f9c1c5e-7d0b-4f43-9b1e-0c9f4f0c7c11/volumes/token",
            "/var/lib/kubelet/pods/3f9c1c5e-7d0b-4f43-9b1e-0c9f4f0c7c11/volumes/token",
        ),
        (
            "../run/credentials/audit-exporter.service/losant.token",
            "DIR/../run/credentials/audit-exporter.service/losant.token",
        ),
        ("hunter2", "DIR/hu… (7 characters)"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "DIR/ey… (49 characters)"),
        ("1042~AbCdEfGh", "DIR/10… (13 characters)"),
        ("aXhjbGllbnQ6SXhTZWNyZXQtVmFsdWUtMzE=", "DIR/aX… (36 characters)"),
        ("aXhjbGll/nQ6SXhTZWNyZXQtVmFsdWUtMzE=", "DIR/aXhjbGll/nQ… (27 characters)"),
        ("correct+horse", "DIR/co… (13 characters)"),
    ] {
        let text = losant("").replace("api_token: hunter2", &format!("api_token_file: '{path}'"));
        let problems = problems(&text);
        let expected = format!("5:23: the file of `api_token_file`, {shown}, cannot be read: No such file");
        assert!(problems[0].starts_with(&expected), "{path}: {problems:?}");
    }
}

#[test]
fn no_message_shows_a_secret() {
    let secret = "hunter2";
    for lines in [
        "api_token: [hunter2]",
        "api_token: {hunter2: hunter2}",
        "api_token: {hunter2: hunter2",
        "api_token: !hunter2",
        "api_token: !hunter2 hunter2",
        "api_token: &hunter2",
        "api_token: *hunter2",
        "api_token: @hunter2",
        "api_token: %hunter2",
        "api_token: `hunter2",
        "api_token: \"hunter2",
        "api_token: \"\\hunter2\"",
        "api_token: 'hunter2' hunter2",
        "api_token: hunter2: hunter2",
        "api_token: |1hunter2",
        "api_token:hunter2",
        "api_token:hunter2: x",
        "api_token_file: hunter2",
        "api_token_file: [hunter2]",
        "api_tken: hunter2",
        "api_token: a\napi_token: hunter2",
        "api_token: a\napi_token_file: hunter2",
        "api_token: a\nname: hunter 2 hunter2",
        "api_token: a\nbase_url: https://hunter2@h",
        "api_token: a\nproxy_url: http://u:hunter2@h",
        "api_token: a\ntimeout: hunter2",
        "api_token: a\npage_size: hunter2",
        "api_token: a\nverify: hunter2",
        "api_token: a\ntls: {key_file: hunter2, cert_file: hunter2}",
        "api_token: a\nignore_actors: hunter2",
        "api_token: a\nrate_limit: hunter2",
        "api_token: a\nhunter2: x",
        "api_token: a\nHUNTERhunter2: [x]",
        "- hunter2",
    ] {
        let text = losant(lines).replace("      api_token: hunter2\n      ", "      ");
        let errors = parsed(&text).expect_err(lines);
        let (display, debug) = (errors.to_string(), format!("{errors:?}"));
        assert!(!display.contains(secret) && !debug.contains(secret), "{lines}: {display}");
    }
    let flow = "sources: {losant: [{name: a, instance_id: b, api_token: swordfish,hunter2}]}";
    let shown = parsed(flow).unwrap_err().to_string();
    assert!(shown.contains("unknown key in a source") && !shown.contains(secret), "{shown}");
}

#[test]
fn debug_of_a_config_shows_no_secret() {
    let shown = format!("{:?} {:#?}", parsed(&losant("")).unwrap(), parsed(EXAMPLE).unwrap());
    assert!(shown.contains("Secret(..)"));
    for secret in [
        "hunter2",
        "canvas-secret",
        "informatica-secret",
        "activid-secret",
        "losant-secret",
        "proxy-secret",
        "gateway-secret",
        "aXg6",
    ] {
        assert!(!shown.contains(secret), "{shown}");
    }
}
