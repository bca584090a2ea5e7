//! The operator can check us: `verify` and `doctor`, beside a running exporter and alone.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use audit_exporter::simulate::{self, SERVICES, Simulated};
use serde_json::{Value, json};

use crate::program::{EAGER, Finished, PATIENCE, Running, config_file, config_text, eventually, finish, until_exact};

fn verify(config: &Path, source: &str, more: &[&str]) -> Finished {
    let (file, source) = (format!("--config.file={}", config.display()), format!("--source={source}"));
    let mut arguments = vec!["verify", &file, &source];
    arguments.extend(more);
    finish(&arguments)
}

fn doctor(config: &Path, more: &[&str]) -> Finished {
    let file = format!("--config.file={}", config.display());
    let mut arguments = vec!["doctor", &file];
    arguments.extend(more);
    finish(&arguments)
}

/// What `verify` found, as JSON.
fn report(config: &Path, source: &str, from: &str, code: i32) -> Value {
    let looked = verify(config, source, &[&format!("--from={from}"), "--format=json"]);
    assert_eq!(looked.code, code, "{source}: {}{}", looked.stdout, looked.stderr);
    serde_json::from_str(&looked.stdout).unwrap()
}

fn assert_says(finished: &Finished, code: i32, all: &[&str]) {
    assert_eq!(finished.code, code, "{}{}", finished.stdout, finished.stderr);
    let said = format!("{}{}", finished.stdout, finished.stderr);
    for says in all {
        assert!(said.contains(says), "expected {says:?} in:\n{said}");
    }
}

/// Every event of the simulator is in whole cells only after five minutes, so the checks begin in
/// its past: it has two hours of history.
fn settled(more: &[&str], common: &str) -> (tempfile::TempDir, Running, std::path::PathBuf, Running) {
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(more);
    let config = config_file(folder.path(), &simulator, "1s", common);
    let exporter = Running::exporter(&config, &[]);
    simulator.post("/simulator/silence", "");
    until_exact(&exporter, &simulator, Duration::from_mins(1));
    caught_up(&exporter);
    (folder, simulator, config, exporter)
}

/// What is counted is not compared before it is known that there is no more.
fn caught_up(exporter: &Running) {
    eventually(Duration::from_mins(1), || {
        let behind = exporter.scrape().sum("audit_source_catching_up", &[]);
        if behind == 0.0 { Ok(()) } else { Err(format!("{behind} sources are still catching up")) }
    });
}

#[test]
fn no_difference_is_found_where_there_is_none_beside_the_running_exporter_and_alone() {
    let ahead = "--fault=activid:clock_skew_seconds=4000";
    let (folder, simulator, config, exporter) = settled(&["--rate=0.3", "--seed=31", ahead], EAGER);
    let socket = folder.path().join("data/control.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let truth = simulator.truth();
    for Simulated { source, system, .. } in SERVICES {
        let report = report(&config, source, "5h", 0);
        assert_eq!(report["counted"], report["found"], "{report:#}");
        let all: u64 = truth.iter().filter(|(labels, _)| labels[0] == system.as_str()).map(|(_, count)| count).sum();
        let compared = report["counted"].as_u64().unwrap();
        assert!(compared * 10 > all * 8, "most of {all} events were compared: {report:#}");
    }
    until_exact(&exporter, &simulator, PATIENCE);
    assert_eq!(exporter.scrape().sum("audit_source_errors_total", &[]), 0.0);
    exporter.process.signal("TERM");
    assert_eq!(exporter.process.ended(PATIENCE).0.code(), Some(0));
    assert!(!socket.exists(), "the socket goes with the exporter");
    for Simulated { source, .. } in SERVICES {
        let looked = verify(&config, source, &["--from=5h"]);
        assert_says(&looked, 0, &["no exporter runs", "no difference", "not compared: before"]);
    }
    assert!(!socket.exists());
}

#[test]
fn an_event_that_was_written_into_the_past_is_found_and_nothing_else() {
    let (_folder, simulator, config, exporter) = settled(&["--rate=0.1", "--seed=32"], EAGER);
    let at = chrono::DateTime::from_timestamp(unix_now() / 300 * 300 - 4500 + 17, 0).unwrap();
    for service in SERVICES.iter().filter(|service| !service.is_feed) {
        let mut event = service.event(2);
        event.at = Some(at);
        let call = json!({"event": event});
        assert_eq!(simulator.post("/simulator/inject", &call.to_string()).json()["events"], 2);
        let report = report(&config, service.source, "110m", 1);
        let differences = report["differences"].as_array().unwrap();
        assert_eq!(differences.len(), 1, "{report:#}");
        let line = &differences[0];
        assert_eq!(
            (&line["category"], &line["action"], &line["outcome"]),
            (&json!(event.category), &json!(event.action), &json!(event.outcome))
        );
        assert_eq!(line["found"].as_u64().unwrap(), line["counted"].as_u64().unwrap() + 2, "{report:#}");
        let begins = at.timestamp() - 17;
        let times = ["from", "to"].map(|end| {
            line["window"][end].as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().unwrap().timestamp()
        });
        assert_eq!(times, [begins, begins + 300]);
    }
    exporter.process.signal("TERM");
    exporter.process.ended(PATIENCE);
    let alone = verify(&config, "iot", &["--from=110m"]);
    let summary = "1 difference: 2 events of the service not counted, 0 events counted and not in the service";
    assert_says(&alone, 1, &["user", "delete", "success", summary, "possible:", "overlap"]);
    assert!(!alone.stdout.contains("retention"), "only reasons that fit: {}", alone.stdout);
}

#[allow(clippy::disallowed_methods, reason = "the simulator's clock is the machine's")]
fn unix_now() -> i64 {
    chrono::DateTime::<chrono::Utc>::from(std::time::SystemTime::now()).timestamp()
}

#[test]
fn checking_stays_within_the_rate_limit_of_the_polls_beside_it() {
    let slow = "poll_interval: 4s\n      rate_limit: {requests: 10, per: 1s, burst: 2}\n      initial_lookback: 1h";
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--rate=0.05", "--seed=33"]);
    let config = config_file(folder.path(), &simulator, "1s", slow);
    let exporter = Running::exporter(&config, &[]);
    eventually(PATIENCE, || {
        let page = exporter.scrape();
        let (up, behind) = (page.sum("audit_source_up", &["badge"]), page.sum("audit_source_catching_up", &["badge"]));
        (up == 1.0 && behind == 0.0).then_some(()).ok_or_else(|| format!("badge: up {up}, catching up {behind}"))
    });
    let from = simulator.get("/simulator/requests").json()["activid"]["count"].as_u64().unwrap();
    report(&config, "badge", "1h", 0);
    assert_says(&doctor(&config, &["--source=badge"]), 0, &["rate_limit allows 10 in 1s"]);
    let requests = simulator.get("/simulator/requests").json();
    let times: Vec<f64> =
        requests["activid"]["times_ms"].as_array().unwrap().iter().map(|at| at.as_f64().unwrap()).collect();
    assert!(times.len() as u64 > from + 20, "it asked for every cell: {}", times.len() as u64 - from);
    for (first, begin) in times.iter().enumerate() {
        for (last, end) in times.iter().enumerate().skip(first) {
            // the simulator sees them when it gets round to them
            let allowed = 2.0 + (end - begin + 50.0) * 10.0 / 1000.0;
            assert!((last - first + 1) as f64 <= allowed, "{} requests in {} ms", last - first + 1, end - begin);
        }
    }
}

#[test]
fn what_cannot_be_checked_is_said_with_a_status_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--quiet"]);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    assert_says(&verify(&config, "iot", &["--from=1h"]), 3, &["there is no ledger", "nothing has been counted"]);
    assert!(!folder.path().join("data").exists(), "looking makes nothing");
    assert_says(&verify(&config, "nobody", &["--from=1h"]), 2, &["no source \"nobody\"", "iot"]);
    assert_says(&verify(&config, "iot", &["--from=1h", "--to=2h"]), 2, &["--to must be later"]);
    assert_says(&verify(&config, "iot", &["--from=yesterday"]), 2, &["2026-11-22T03:00:00Z"]);
    let exporter = Running::exporter(&config, &[]);
    eventually(PATIENCE, || match exporter.scrape().sum("audit_source_up", &[]) {
        5.0 => Ok(()),
        up => Err(format!("all sources up: {up}")),
    });
    assert_says(&verify(&config, "iot", &["--from=0s"]), 3, &["nothing of that window can be compared"]);
    simulator.post("/simulator/faults", r#"{"losant":{"forbidden":1}}"#);
    assert_says(&verify(&config, "iot", &["--from=1h"]), 3, &["could not be read", "403", "permissions"]);
}

// === doctor ===

#[test]
fn doctor_finds_nothing_wrong_where_all_is_well() {
    let folder = tempfile::tempdir().unwrap();
    // too long for the address of a socket
    let folder = folder.path().join("x".repeat(150));
    std::fs::create_dir(&folder).unwrap();
    let simulator = Running::simulator(&["--rate=0.3", "--seed=34"]);
    let config = config_file(&folder, &simulator, "1s", EAGER);
    let alone = doctor(&config, &[]);
    let exporter = Running::exporter(&config, &[]);
    eventually(PATIENCE, || folder.join("data/control.sock").exists().then_some(()).ok_or("the socket".into()));
    let beside = doctor(&config, &[]);
    for looked in [&alone, &beside] {
        let good = [
            "campus (canvas)",
            "ads (index_exchange)",
            "the credential is accepted",
            "may read the log of account 1",
            "with the integrity check",
            "may read the files of \"bid events\"",
            "would be counted from the last 1h",
            "authentication login success",
            "can never report: login_failure",
            "clock agrees with ours",
            "a poll needs about",
        ];
        assert_says(looked, 0, &good);
        assert!(!looked.stdout.contains("WRONG"), "{}", looked.stdout);
        no_secret_in(looked);
    }
    // the exporter's own budget and statistics
    assert!(exporter.scrape().sum("audit_source_errors_total", &[]) == 0.0);
    caught_up(&exporter);
    assert_says(&verify(&config, "iot", &["--from=2h"]), 0, &["no difference"]);
}

fn no_secret_in(finished: &Finished) {
    for secret in simulate::secrets() {
        assert!(!format!("{}{}", finished.stdout, finished.stderr).contains(secret));
    }
}

/// The configuration for a simulator with each occurrence of something replaced.
fn changed(folder: &Path, origin: &str, changes: &[(&str, &str)]) -> std::path::PathBuf {
    let mut text = config_text(origin, folder, "1s", EAGER);
    for (from, to) in changes {
        assert!(text.contains(from), "{from} in {text}");
        text = text.replace(from, to);
    }
    let path = folder.join("audit-exporter.yml");
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn doctor_names_what_is_wrong_and_the_fix() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--rate=0.1", "--seed=35"]);
    let origin = format!("http://{}", simulator.address);
    let quoted = |text: &str| Value::from(text).to_string();

    let wrong: Vec<_> = SERVICES.iter().map(|service| (quoted(service.secret()), quoted("d3Jvbmc6d3Jvbmc="))).collect();
    let wrong: Vec<_> = wrong.iter().map(|(from, to)| (from.as_str(), to.as_str())).collect();
    let config = changed(folder.path(), &origin, &wrong);
    let fixes = [
        ("campus", "make a new token"),
        ("etl", "correct `username`, or the password"),
        ("badge", "correct `client_id`"),
        ("iot", "make a new instance API token"),
        ("ads", "as Index Exchange issued it"),
    ];
    for (source, fix) in fixes {
        let looked = doctor(&config, &[&format!("--source={source}")]);
        assert_says(&looked, 1, &["the service answers at", "WRONG", "status 40", fix]);
        assert!(!looked.stdout.contains("accepted"), "{}", looked.stdout);
    }
    let logins = simulator.get("/simulator/requests").json();
    for (system, most) in [("informatica", 1), ("activid", 1), ("index_exchange", 2)] {
        assert!(logins[system]["logins"].as_u64().unwrap() <= most, "a refused credential is shown once: {logins}");
    }

    let config = changed(
        folder.path(),
        &origin,
        &[("accounts: [1]", "accounts: [1, 7]"), (simulate::credentials::LOSANT_INSTANCE_ID, "deadbeef")],
    );
    let canvas = doctor(&config, &["--source=campus"]);
    assert_says(
        &canvas,
        1,
        &["may read the log of account 1", "cannot read the log of account 7", "404", "root account"],
    );
    assert_says(
        &doctor(&config, &["--source=iot"]),
        1,
        &["cannot read the audit log of instance deadbeef", "404", "correct `instance_id`"],
    );

    simulator.post(
        "/simulator/faults",
        r#"{"canvas":{"forbidden":1},"losant":{"forbidden":1},"activid":{"clock_skew_seconds":400}}"#,
    );
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    assert_says(&doctor(&config, &["--source=campus"]), 1, &["the credential is accepted", "view_statistics"]);
    assert_says(&doctor(&config, &["--source=iot"]), 1, &["the credential is accepted", "instanceAuditLogs.get"]);
    let skewed = doctor(&config, &["--source=badge"]);
    assert_says(&skewed, 1, &["may read", "clock is 6m", "ahead of ours", "third clock"]);
    simulator.post("/simulator/faults", r#"{"losant":{"forbidden":0,"clock_skew_seconds":-200000}}"#);
    let days = doctor(&config, &["--source=iot"]);
    assert_says(&days, 1, &["cannot read", "set the wrong clock", "behind ours", "nothing is read"]);

    let config = changed(folder.path(), &origin, &[("impressions", "impresions")]);
    let misspelled = doctor(&config, &["--source=ads"]);
    assert_says(&misspelled, 1, &["the files of \"impresions\" are not listed", "correct the name in `subscriptions`"]);

    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = changed(folder.path(), &origin, &[(&origin, &format!("http://{nobody}"))]);
    assert_says(&doctor(&config, &["--source=iot"]), 1, &["refused", "correct the address", "firewall"]);
    let config =
        changed(folder.path(), &origin, &[(&format!("base_url: {origin}"), "base_url: https://nowhere.invalid")]);
    assert_says(&doctor(&config, &["--source=iot"]), 1, &["the name nowhere.invalid cannot be resolved", "DNS"]);
    assert_says(&doctor(&config, &["--source=nobody"]), 2, &["no source \"nobody\""]);
}
