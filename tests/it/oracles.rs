//! Our pages read by parsers that others wrote: `promtool` and `PyPI`'s `prometheus_client`.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::program::{EAGER, PATIENCE, Running, config_file, in_repository, python, tool, until_exact};

const OPENMETRICS: [(&str, &str); 1] = [("Accept", "application/openmetrics-text;version=1.0.0")];

/// What a command says to these bytes on its standard input.
fn fed(command: &mut Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    // one that ends before it has read everything has its reason, to be seen in its output
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// A simulator and an exporter that has read all of it, event labels no document lists included.
fn with_traffic(folder: &Path, global: &str) -> (Running, Running) {
    let simulator = Running::simulator(&["--rate=0.1"]);
    simulator.post("/simulator/inject", r#"["new_category", "tainted_record", "late_events"]"#);
    simulator.post("/simulator/silence", "");
    let config = config_file(folder, &simulator, &format!("0s\n{global}"), EAGER);
    let exporter = Running::exporter(&config, &[]);
    until_exact(&exporter, &simulator, PATIENCE);
    (exporter, simulator)
}

#[test]
fn promtool_accepts_the_text_page() {
    let Some(promtool) = tool("AUDIT_EXPORTER_PROMTOOL", "promtool") else { return };
    let folder = tempfile::tempdir().unwrap();
    let (exporter, _simulator) = with_traffic(folder.path(), "");
    let page = exporter.get("/metrics").body;
    let said = fed(Command::new(&promtool).args(["check", "metrics"]), &page);
    assert!(matches!(said.status.code(), Some(0 | 3)), "0: sound; 3: sound, with remarks on style: {said:?}");
    let remarks = String::from_utf8_lossy(&said.stderr) + String::from_utf8_lossy(&said.stdout);
    // whole hours are what this service publishes
    let unknown: Vec<_> =
        remarks.lines().filter(|line| !line.starts_with("audit_feed_missing_hours use base")).collect();
    assert!(unknown.iter().all(|line| line.is_empty()), "{unknown:#?}");
    // it does complain where there is reason to
    let bad = fed(Command::new(&promtool).args(["check", "metrics"]), b"# TYPE audit_events counter\naudit_events\n");
    assert_eq!(bad.status.code(), Some(1));
}

#[test]
fn the_openmetrics_parser_accepts_the_page_with_and_without_creation_times() {
    let Some(python) = python() else { return };
    let check = |page: &[u8]| fed(Command::new(&python).arg(in_repository("tests/oracles/openmetrics.py")), page);
    for (global, created) in [("", false), ("  openmetrics_created: true", true)] {
        let folder = tempfile::tempdir().unwrap();
        let (exporter, _simulator) = with_traffic(folder.path(), global);
        let page = exporter.get_with("/metrics", &OPENMETRICS);
        assert_eq!(page.text().contains("\naudit_events_created{"), created);
        let said = check(&page.body);
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        let samples: usize = String::from_utf8(said.stdout).unwrap().trim().parse().unwrap();
        assert_eq!(samples, page.text().lines().filter(|line| !line.starts_with('#')).count());
    }
    assert_eq!(check(b"# TYPE a counter\na 1\n# EOF\n").status.code(), Some(1), "it does complain");
}
