//! `demo --with-prometheus`: the shipped rules and routes in the installed Prometheus and Alertmanager, which come and go
//! with the demo.

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::program::{PATIENCE, Process, ask, eventually, in_repository, now, program, tool};

const CALL: [&str; 4] = ["demo", "--with-prometheus", "--web.listen-address=127.0.0.1:0", "--hold=3s"];

/// The address that it prints behind this.
fn printed_at(demo: &mut Process, start: &'static str) -> String {
    demo.until_printed(start, |printed| {
        let line = printed.lines().find_map(|line| line.strip_prefix(start))?;
        let address = line.trim().trim_start_matches("http://");
        Some(address.split(['/', ' ']).next()?.to_owned())
    })
}

/// What Prometheus or Alertmanager answers.
fn get(address: &str, path: &str) -> Value {
    let answer = ask(address, "GET", path, &[], "");
    assert_eq!(answer.status, 200, "{path}: {answer}");
    answer.json()
}

#[test]
fn the_demo_s_prometheus_has_all_rules_and_tells_alertmanager_and_both_end_with_it() {
    let tools = [
        tool("AUDIT_EXPORTER_PROMETHEUS", "prometheus"),
        tool("AUDIT_EXPORTER_ALERTMANAGER", "prometheus-alertmanager"),
    ];
    if tools.iter().any(Option::is_none) {
        return;
    }
    let mut demo = Process::start(&mut program(&CALL));
    let page = printed_at(&mut demo, "status page at");
    let prometheus = printed_at(&mut demo, "Prometheus at");
    let alertmanager = printed_at(&mut demo, "Alertmanager at");
    let folder = demo.until_printed("the folder", |printed| {
        printed.lines().find_map(|line| Some(line.strip_prefix("files and logs in")?.trim().to_owned()))
    });
    let folder = Path::new(&folder).to_owned();
    // it listens before it has opened its store
    eventually(PATIENCE, || match ask(&prometheus, "GET", "/-/ready", &[], "") {
        ready if ready.status == 200 => Ok(()),
        other => Err(format!("Prometheus is ready: {other}")),
    });

    eventually(PATIENCE, || {
        let targets = get(&prometheus, "/api/v1/targets")["data"]["activeTargets"].clone();
        let targets = targets.as_array().unwrap();
        let is_up = |target: &Value| target["health"] == "up" && target["labels"]["instance"] == page.as_str();
        if targets.len() == 1 && is_up(&targets[0]) { Ok(()) } else { Err(format!("the target is up: {targets:#?}")) }
    });
    let shipped = in_repository("alerts").read_dir().unwrap().map(|entry| entry.unwrap().path());
    let shipped = shipped.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("audit-"));
    let is_rule =
        |line: &&str| line.trim_start().starts_with("- alert: ") || line.trim_start().starts_with("- record: ");
    let shipped: usize =
        shipped.map(|path| std::fs::read_to_string(path).unwrap().lines().filter(is_rule).count()).sum();
    assert!(shipped > 40, "they are no longer found");
    let groups = get(&prometheus, "/api/v1/rules")["data"]["groups"].clone();
    let rules: Vec<&Value> =
        groups.as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
    assert_eq!(rules.len(), shipped);
    let broken: Vec<&&Value> = rules.iter().filter(|rule| rule["health"] == "err").collect();
    assert!(broken.is_empty(), "{broken:#?}");
    let known = get(&prometheus, "/api/v1/alertmanagers")["data"]["activeAlertmanagers"].clone();
    assert_eq!(known[0]["url"], format!("http://{alertmanager}/api/v2/alerts"), "{known:#}");
    // from the rules through Prometheus: the one that always fires
    eventually(Duration::from_mins(2), || {
        let alerts = get(&alertmanager, "/api/v2/alerts");
        let names: Vec<&Value> = alerts.as_array().unwrap().iter().map(|alert| &alert["labels"]["alertname"]).collect();
        if names.iter().any(|name| *name == "Watchdog") { Ok(()) } else { Err(format!("Watchdog, there is {names:?}")) }
    });
    let metrics = ask(&page, "GET", "/metrics", &[], "").text();
    assert!(
        metrics.contains(&format!("audit_exporter_external_url_info{{url=\"http://{page}\"}} 1")),
        "its own address"
    );
    for file in ["provisioning/dashboards/audit-exporter.yml", "provisioning/datasources/prometheus.yml"] {
        assert!(folder.join("grafana").join(file).is_file(), "{file}");
    }
    let overview = folder.join("grafana/dashboards/audit-overview.json");
    assert_eq!(
        std::fs::read(overview).unwrap(),
        std::fs::read(in_repository("dashboards/audit-overview.json")).unwrap()
    );

    demo.signal("TERM");
    let (status, printed) = demo.ended(PATIENCE);
    assert!(status.success(), "{status}: {printed}");
    assert!(!printed.contains("killing it") && !printed.contains("ended by itself"), "{printed}");
    for gone in [&prometheus, &alertmanager] {
        assert!(TcpStream::connect(gone).is_err(), "{gone} is still served");
    }
    assert!(!folder.exists(), "{} is still there", folder.display());
}

/// A program that only looks like one of the two.
fn written(folder: &Path, name: &str, script: &str) {
    let path = folder.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn what_is_not_installed_is_named_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let call = |path: &Path| {
        let demo = Process::start(program(&CALL).env("PATH", path).env("TMPDIR", folder.path()));
        let (status, printed) = demo.ended(PATIENCE);
        assert_eq!(status.code(), Some(2), "{printed}");
        assert!(!printed.contains("starting") && !printed.contains("serving"), "{printed}");
        printed
    };
    let bin = folder.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let printed = call(&bin);
    assert!(
        printed.contains("Prometheus (prometheus), nor Alertmanager (alertmanager or prometheus-alertmanager)"),
        "{printed}"
    );
    assert!(printed.contains("prometheus prometheus-alertmanager"), "what to install: {printed}");
    written(&bin, "alertmanager", "exit 0");
    // no program, though it has the name
    std::fs::write(bin.join("prometheus"), "").unwrap();
    let printed = call(&bin);
    assert!(printed.contains("Prometheus (prometheus): install") && !printed.contains("Alertmanager ("), "{printed}");
    assert_eq!(folder.path().read_dir().unwrap().count(), 1, "a folder was made");
}

#[test]
fn one_that_ends_ends_the_demo_with_its_last_words_and_one_that_does_not_end_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let bin = folder.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    written(&bin, "prometheus", "echo first words; sleep 1; echo last words >&2; exit 3");
    let pid = folder.path().join("pid");
    written(&bin, "alertmanager", &format!("trap '' TERM\necho $$ > {}\nwhile :; do sleep 0.2; done", pid.display()));
    let path = format!("{}:/usr/bin:/bin", bin.display());
    let began = now();
    let demo = Process::start(program(&CALL).env("PATH", path).env("TMPDIR", folder.path()));
    let (status, printed) = demo.ended(Duration::from_mins(1));
    assert_eq!(status.code(), Some(1), "{printed}");
    let says = "Prometheus ended by itself (exit status: 3), and the demo with it; the last lines of its log:\nfirst words\nlast words";
    assert!(printed.contains(says), "{printed}");
    assert!(printed.contains("did not end when asked; killing it"), "{printed}");
    assert!(now() - began < Duration::from_secs(30), "it took {:?}", now() - began);
    let pid = std::fs::read_to_string(pid).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "alertmanager still runs");
}

#[test]
fn a_second_signal_leaves_no_child_behind() {
    let folder = tempfile::tempdir().unwrap();
    let bin = folder.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let [one, other] = ["prometheus", "alertmanager"].map(|name| {
        let pid = folder.path().join(name);
        let script = format!("trap '' TERM\necho $$ > {}\nwhile :; do sleep 0.2; done", pid.display());
        written(&bin, name, &script);
        pid
    });
    let path = format!("{}:/usr/bin:/bin", bin.display());
    let demo = Process::start(program(&CALL).env("PATH", path).env("TMPDIR", folder.path()));
    let pids = [one, other].map(|file| {
        eventually(PATIENCE, || match std::fs::read_to_string(&file) {
            Ok(pid) if pid.ends_with('\n') => Ok(pid.trim().to_owned()),
            other => Err(format!("{}: {other:?}", file.display())),
        })
    });
    demo.signal("TERM");
    std::thread::sleep(Duration::from_secs(1));
    demo.signal("INT");
    let (status, printed) = demo.ended(PATIENCE);
    assert_eq!(status.code(), Some(1), "{printed}");
    for pid in pids {
        // it was killed; whoever is its parent now may still have to notice
        let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        eventually(PATIENCE, || if state().is_empty() || state().contains(") Z ") { Ok(()) } else { Err(state()) });
    }
    let left: Vec<_> = folder.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "a folder of the demo is left: {left:?}");
}
