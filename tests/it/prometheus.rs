//! The whole chain: simulated services, the exporter as `demo` runs it, and a real Prometheus. What
//! Prometheus has stored adds up to what happened, series that were born meanwhile included; so does what a second one
//! has stored that scrapes more slowly.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use audit_exporter::simulate::{SERVICES, Simulated};
use serde_json::Value;

use crate::program::{
    Counts, PATIENCE, Process, Running, ask, difference, event_labels, eventually, free_port, in_repository, program,
    tool,
};

pub(crate) struct Prometheus {
    process: Process,
    address: String,
    folder: tempfile::TempDir,
}

impl Prometheus {
    /// Scrapes `target` every so many seconds.
    pub(crate) fn start(binary: &Path, target: &str, seconds: u32) -> Self {
        Self::with_rules(binary, target, seconds, &[])
    }

    /// Evaluates the rules in the files of these patterns as often, too.
    fn with_rules(binary: &Path, target: &str, seconds: u32, rules: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: {seconds}s, scrape_timeout: {seconds}s, evaluation_interval: {seconds}s}}\n\
             rule_files: {rules:?}\nscrape_configs:\n  - job_name: audit\n    static_configs:\n      - targets: ['{target}']\n"
        );
        std::fs::write(&config, text).unwrap();
        let mut process = Process::start(Command::new(binary).args([
            &format!("--config.file={}", config.display()),
            &format!("--storage.tsdb.path={}", folder.path().join("tsdb").display()),
            "--web.listen-address=127.0.0.1:0",
        ]));
        let address = process.until_printed("the address it listens on", |printed| {
            let line = printed.lines().find(|line| line.contains("msg=\"Listening on\""))?;
            Some(line.split("address=").nth(1)?.split_whitespace().next()?.to_owned())
        });
        // it listens before it has opened its store, and answers 503 until then
        eventually(PATIENCE, || match ask(&address, "GET", "/-/ready", &[], "") {
            ready if ready.status == 200 => Ok(()),
            other => Err(format!("Prometheus is not ready: {other}")),
        });
        Self { process, address, folder }
    }

    /// Where its blocks are.
    pub(crate) fn data(&self) -> std::path::PathBuf {
        self.folder.path().join("tsdb")
    }

    /// The series that an instant query finds: labels and samples (one, or many for a range).
    pub(crate) fn query(&self, query: &str) -> Vec<(Value, Vec<f64>)> {
        self.query_with(query, "")
    }

    /// The same as of a moment, in Unix seconds.
    pub(crate) fn query_at(&self, query: &str, at: f64) -> Vec<(Value, Vec<f64>)> {
        self.query_with(query, &format!("&time={at}"))
    }

    fn query_with(&self, query: &str, more: &str) -> Vec<(Value, Vec<f64>)> {
        let query: String = url::form_urlencoded::byte_serialize(query.as_bytes()).collect();
        let answer = ask(&self.address, "GET", &format!("/api/v1/query?query={query}{more}"), &[], "");
        let answer = answer.json();
        assert_eq!(answer["status"], "success", "{answer:#}");
        let number = |sample: &Value| sample[1].as_str().unwrap().parse::<f64>().unwrap();
        let samples = |series: &Value| match &series["values"] {
            Value::Array(values) => values.iter().map(number).collect(),
            _ => vec![number(&series["value"])],
        };
        let series = answer["data"]["result"].as_array().unwrap();
        series.iter().map(|series| (series["metric"].clone(), samples(series))).collect()
    }

    /// The alerts that fire, by their names.
    fn firing(&self) -> BTreeMap<String, Value> {
        let answer = ask(&self.address, "GET", "/api/v1/alerts", &[], "").json();
        let alerts = answer["data"]["alerts"].as_array().unwrap().clone();
        let firing = alerts.into_iter().filter(|alert| alert["state"] == "firing");
        firing.map(|alert| (alert["labels"]["alertname"].as_str().unwrap().to_owned(), alert)).collect()
    }

    /// By how much each series of a counter has grown since it was first stored.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn growth(&self) -> Counts {
        let mut growth = BTreeMap::new();
        for (labels, samples) in self.query("audit_events_total[1h]") {
            assert!(samples.is_sorted(), "{labels} went back: {samples:?}");
            assert_eq!(samples[0], 0.0, "{labels} was not stored as 0 first: {samples:?}");
            let grown = (samples[samples.len() - 1] - samples[0]) as u64;
            if grown > 0 {
                growth.insert(event_labels(|name| labels[name].as_str().unwrap().to_owned()), grown);
            }
        }
        growth
    }
}

#[test]
fn what_prometheus_stores_adds_up_to_what_happened() {
    let Some(binary) = tool("AUDIT_EXPORTER_PROMETHEUS", "prometheus") else { return };
    let store = tempfile::tempdir().unwrap();
    let storage = format!("--storage.path={}", store.path().join("data").display());
    let call = ["demo", "--web.listen-address=127.0.0.1:0", "--hold=3s", "--seed=3", &storage];
    let mut demo = Process::start(&mut program(&call));
    let after = |start: &'static str| {
        move |printed: &str| {
            let line = printed.lines().find_map(|line| line.strip_prefix(start))?;
            Some(line.trim().trim_start_matches("http://").trim_end_matches('/').to_owned())
        }
    };
    let services = demo.until_printed("the simulator's address", after("simulated services at"));
    let page = demo.until_printed("the status page's address", after("status page at"));
    let services = Running { process: demo, address: services };
    let prometheus = Prometheus::start(&binary, &page, 1);

    let up = |at_least: usize| {
        eventually(Duration::from_secs(40), || match prometheus.query("up[1h]").first() {
            Some((_, samples)) if samples.len() >= at_least => Ok(()),
            other => Err(format!("{at_least} scrapes, there is {other:?}")),
        });
    };
    up(3);
    // a burst in series that exist, and kinds of events that were never heard of
    let injected =
        services.post("/simulator/inject", r#"["new_category", "deletion_burst", "password_spray", "late_events"]"#);
    assert_eq!(injected.status, 200, "{injected}");
    up(12);
    let again = services.post("/simulator/inject", r#"["new_category", "deletion_burst", "updated_file"]"#);
    assert_eq!(again.status, 200, "{again}");
    up(20);
    services.post("/simulator/silence", "");

    // nobody but Prometheus scrapes: what it has seen is all that is known here
    let truth = eventually(Duration::from_mins(1), || {
        let truth = services.truth();
        let growth = prometheus.growth();
        if truth == growth && services.truth() == truth {
            return Ok(truth);
        }
        Err(format!("what Prometheus has to add up to what happened:\n{}", difference(&growth, &truth)))
    });
    for Simulated { system, .. } in SERVICES {
        let total: u64 = truth.iter().filter(|(labels, _)| labels[0] == system.as_str()).map(|(_, count)| count).sum();
        assert!(total > 100, "{system}: {total} events are no traffic");
    }
    // born during the run, and so not shown by the first scrape
    let scrapes = prometheus.query("up[1h]")[0].1.len();
    let born = prometheus.query("audit_events_total[1h]").iter().filter(|(_, samples)| samples.len() < scrapes).count();
    assert!(born > 0, "no series was born during the run");

    let (_, ups) = prometheus.query("up[1h]").remove(0);
    assert!(ups.iter().all(|up| *up == 1.0), "down at times: {ups:?}");
    let log = prometheus.process.printed();
    let complaints: Vec<&str> =
        log.lines().filter(|line| line.contains("level=warn") || line.contains("level=error")).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn what_the_slower_of_two_stores_adds_up_too_whatever_a_browser_looks_at() {
    const SLOW_SECONDS: u32 = 10;
    let Some(binary) = tool("AUDIT_EXPORTER_PROMETHEUS", "prometheus") else { return };
    let store = tempfile::tempdir().unwrap();
    let storage = format!("--storage.path={}", store.path().join("data").display());
    let address = format!("127.0.0.1:{}", free_port());
    // there before the exporter is, so that both come within its first hold
    let prometheus = [1, SLOW_SECONDS].map(|seconds| Prometheus::start(&binary, &address, seconds));
    let listen = format!("--web.listen-address={address}");
    let mut demo = Process::start(&mut program(&["demo", &listen, "--hold=15s", "--seed=4", &storage]));
    let services = demo.until_printed("the simulator's address", |printed| {
        let line = printed.lines().find_map(|line| line.strip_prefix("simulated services at http://"))?;
        Some(line.trim().to_owned())
    });
    let held = demo.until_printed("that series are held", |printed| {
        printed.lines().find(|line| line.contains("shown as 0 on /metrics until")).map(str::to_owned)
    });
    assert!(held.contains("a first look shows zeros"), "{held}");
    let services = Running { process: demo, address: services };
    let look = || {
        let page = ask(&address, "GET", "/metrics", &[("User-Agent", "Mozilla/5.0 Firefox/140.0")], "");
        crate::exposed::Exposed::parse(&page.text())
    };
    eventually(Duration::from_mins(2), || match look().sum("audit_series_held", &[]) {
        0.0 => Ok(()),
        held => Err(format!("{held} series are held")),
    });
    // bursts in kinds of events that were never heard of, right after the slow one has been here
    let injected = services.post("/simulator/inject", r#"["new_category", "deletion_burst", "password_spray"]"#);
    assert_eq!(injected.status, 200, "{injected}");
    services.post("/simulator/silence", "");
    let mut most_held = 0.0_f64;
    eventually(Duration::from_mins(3), || {
        let held = look().sum("audit_series_held", &[]);
        most_held = most_held.max(held);
        let truth = services.truth();
        for prometheus in &prometheus {
            let growth = prometheus.growth();
            if growth != truth {
                return Err(format!("what Prometheus has to add up:\n{}", difference(&growth, &truth)));
            }
        }
        if held == 0.0 && services.truth() == truth { Ok(()) } else { Err(format!("{held} series are held")) }
    });
    assert!(most_held > 0.0, "no series was born during the run");
}

/// The shipped rules, except that a source that is down fires at once.
fn impatient_rules() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(in_repository("alerts")).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with("audit-") {
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(folder.path().join(name), text.replace("        for: 15m\n", "        for: 0s\n")).unwrap();
        }
    }
    folder
}

#[test]
fn the_links_of_a_firing_alert_open_its_runbook_and_its_source_on_the_status_page() {
    let Some(binary) = tool("AUDIT_EXPORTER_PROMETHEUS", "prometheus") else { return };
    let store = tempfile::tempdir().unwrap();
    let storage = format!("--storage.path={}", store.path().join("data").display());
    let address = format!("127.0.0.1:{}", free_port());
    let (listen, url) = (format!("--web.listen-address={address}"), format!("--web.external-url=http://{address}/"));
    let call = ["demo", &listen, &url, "--hold=1s", "--seed=5", "--fault=losant:unavailable=1", &storage];
    let mut demo = Process::start(&mut program(&call));
    demo.until_printed("the status page's address", |printed| printed.contains("status page at").then_some(()));
    let rules = impatient_rules();
    let pattern = format!("{}/*.yml", rules.path().display());
    let prometheus = Prometheus::with_rules(&binary, &address, 1, &[pattern]);
    let origin = format!("http://{address}");
    let firing = eventually(PATIENCE, || {
        let firing = prometheus.firing();
        // the first may have fired before the first scrape, when the address was not known
        let linked = |name: &str| firing.get(name).is_some_and(|alert| link(alert, "runbook_url").starts_with("http"));
        if linked("AuditSourceDown") && linked("Watchdog") {
            Ok(firing)
        } else {
            Err(format!("two alerts: {firing:#?}"))
        }
    });
    let open = |url: &str| {
        let path = url.strip_prefix(&origin).unwrap_or_else(|| panic!("{url} does not begin with {origin}/"));
        let page = ask(&address, "GET", path.split('#').next().unwrap(), &[], "");
        assert_eq!(page.status, 200, "{url}: {page}");
        page.text()
    };
    for (name, alert) in &firing {
        let page = open(&link(alert, "runbook_url"));
        let runbook = if name.ends_with("InBacklog") { "AuditBacklogUnusual" } else { name };
        assert!(page.contains(&format!("<h1 id=\"{}\">{runbook}</h1>", runbook.to_lowercase())), "{name}: {page}");
    }
    let down = &firing["AuditSourceDown"];
    let source = down["labels"]["source"].as_str().unwrap();
    let status = link(down, "status_url");
    assert!(status.ends_with(&format!("/#{source}")), "{status}");
    let page = open(&status);
    assert!(page.contains(&format!("<tbody id=\"{source}\" class=\"failing\">")) && page.contains("503"), "{page}");
    assert_eq!(link(&firing["Watchdog"], "status_url"), format!("{origin}/"));
}

fn link(alert: &Value, annotation: &str) -> String {
    alert["annotations"][annotation].as_str().unwrap().to_owned()
}
