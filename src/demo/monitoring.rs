//! Prometheus, Alertmanager and Grafana for the demo: their files, made of the shipped ones, and how to start them.
//!
//! Promises: what is written depends on addresses and folders alone. Nothing in it leads to another machine: the routes
//! of the shipped example are kept, and its receivers send nothing.
//!
//! Leaves to others: processes, and writing (`main/monitoring.rs`).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

macro_rules! shipped {
    ($folder:literal: $($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../", $folder, "/", $name)))),*]
    };
}

/// The rules, by the name of their file.
const RULES: &[(&str, &str)] = shipped!("alerts":
    "audit-activity.yml",
    "audit-backlog.yml",
    "audit-integrity.yml",
    "audit-recording.yml",
    "audit-thresholds.yml",
    "audit-watch.yml",
);

/// The dashboards, by the name of their file.
const DASHBOARDS: &[(&str, &str)] = shipped!("dashboards":
    "audit-exporter-health.json",
    "audit-feeds.json",
    "audit-overview.json",
    "audit-source.json",
);

const ROUTES: &str = include_str!("../../alerts/alertmanager.example.yml");
const PROVIDER: &str = include_str!("../../dashboards/provisioning/dashboards/audit-exporter.yml");
const DATASOURCE: &str = include_str!("../../dashboards/provisioning/datasources/prometheus.yml");
/// Where the shipped files expect the dashboards, and Prometheus.
const SHIPPED_DASHBOARDS: &str = "/var/lib/grafana/dashboards/audit-exporter";
const SHIPPED_PROMETHEUS: &str = "http://localhost:9090";
const SHIPPED_INTERVAL: &str = "timeInterval: 15s";

/// How often the demo's Prometheus scrapes.
const SCRAPE_INTERVAL: &str = "5s";

/// A program that the demo starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tool {
    /// What it is called.
    pub title: &'static str,
    /// What its file may be called.
    pub files: &'static [&'static str],
    /// The Debian package that has it.
    pub package: &'static str,
}

/// Scrapes, and evaluates the rules.
pub const PROMETHEUS: Tool = Tool { title: "Prometheus", files: &["prometheus"], package: "prometheus" };
/// Takes the alerts.
pub const ALERTMANAGER: Tool = Tool {
    title: "Alertmanager",
    files: &["alertmanager", "prometheus-alertmanager"],
    package: "prometheus-alertmanager",
};

/// Says which programs are missing, and what to do.
pub fn missing(tools: &[Tool]) -> String {
    let titles: Vec<String> =
        tools.iter().map(|tool| format!("{} ({})", tool.title, tool.files.join(" or "))).collect();
    let packages: Vec<&str> = tools.iter().map(|tool| tool.package).collect();
    format!(
        "--with-prometheus starts the installed Prometheus and Alertmanager, and PATH does not have {}: install what is \
         missing (on Debian and Ubuntu: apt-get install --no-install-recommends {}; elsewhere: \
         https://prometheus.io/download/)",
        titles.join(", nor "),
        packages.join(" ")
    )
}

/// Who listens where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The exporter.
    pub exporter: SocketAddr,
    /// Prometheus.
    pub prometheus: SocketAddr,
    /// Alertmanager.
    pub alertmanager: SocketAddr,
}

/// The folder that Grafana's variable `GF_PATHS_PROVISIONING` has to name.
pub fn provisioning(folder: &Path) -> PathBuf {
    folder.join("grafana/provisioning")
}

/// All files that are to be in `folder`, by their paths.
pub fn files(folder: &Path, at: &Addresses) -> Vec<(PathBuf, String)> {
    let grafana = folder.join("grafana");
    let dashboards = grafana.join("dashboards");
    let provider = PROVIDER.replace(SHIPPED_DASHBOARDS, &quoted(&dashboards.display().to_string()));
    let interval = SHIPPED_INTERVAL.replace("15s", SCRAPE_INTERVAL);
    let prometheus = format!("http://{}", at.prometheus);
    let datasource = DATASOURCE.replace(SHIPPED_PROMETHEUS, &prometheus).replace(SHIPPED_INTERVAL, &interval);
    let own = [
        (folder.join("prometheus.yml"), prometheus_config(at)),
        (folder.join("alertmanager.yml"), alertmanager_config(ROUTES)),
        (provisioning(folder).join("dashboards/audit-exporter.yml"), provider),
        (provisioning(folder).join("datasources/prometheus.yml"), datasource),
    ];
    let into = |folder: PathBuf, shipped: &'static [(&str, &str)]| {
        shipped.iter().map(move |(name, text)| (folder.join(name), (*text).to_owned()))
    };
    own.into_iter().chain(into(folder.join("rules"), RULES)).chain(into(dashboards, DASHBOARDS)).collect()
}

fn prometheus_config(Addresses { exporter, alertmanager, .. }: &Addresses) -> String {
    format!(
        "\
global:
  scrape_interval: {SCRAPE_INTERVAL}
  evaluation_interval: {SCRAPE_INTERVAL}
rule_files:
  - rules/audit-*.yml
alerting:
  alertmanagers:
    - static_configs:
        - targets: [\"{alertmanager}\"]
scrape_configs:
  - job_name: audit-exporter
    static_configs:
      - targets: [\"{exporter}\"]
"
    )
}

/// The routes and inhibitions of the shipped example, with receivers that send nothing.
fn alertmanager_config(example: &str) -> String {
    let (routes, receivers) = example.split_once("\nreceivers:\n").unwrap_or((example, ""));
    let routes = routes.split_once("\nroute:\n").map_or(routes, |(_, routes)| routes);
    let receivers: Vec<&str> = receivers.lines().filter(|line| line.starts_with("  - name: ")).collect();
    format!(
        "# The routes of alertmanager.example.yml. The receivers are only names: the demo sends nothing to anybody.\n\
         route:\n{routes}\nreceivers:\n{}\n",
        receivers.join("\n")
    )
}

/// How Prometheus is started.
pub fn prometheus_arguments(folder: &Path, at: &Addresses) -> Vec<String> {
    let path = |name: &str| folder.join(name).display().to_string();
    vec![
        format!("--config.file={}", path("prometheus.yml")),
        format!("--storage.tsdb.path={}", path("prometheus")),
        format!("--web.listen-address={}", at.prometheus),
        format!("--web.external-url=http://{}/", at.prometheus),
    ]
}

/// How Alertmanager is started: alone.
pub fn alertmanager_arguments(folder: &Path, at: &Addresses) -> Vec<String> {
    let path = |name: &str| folder.join(name).display().to_string();
    vec![
        format!("--config.file={}", path("alertmanager.yml")),
        format!("--storage.path={}", path("alertmanager")),
        format!("--web.listen-address={}", at.alertmanager),
        format!("--web.external-url=http://{}/", at.alertmanager),
        "--cluster.listen-address=".into(),
    ]
}

/// What is said when all of it runs.
pub fn announcement(folder: &Path, at: &Addresses) -> String {
    format!(
        "Prometheus at         http://{prometheus}/ (with the rules of alerts/: http://{prometheus}/alerts)\n\
         Alertmanager at       http://{alertmanager}/ (amtool alert query --alertmanager.url=http://{alertmanager})\n\
         for Grafana:          GF_PATHS_PROVISIONING={provisioning} (data source and dashboards)\n\
         files and logs in     {folder}",
        prometheus = at.prometheus,
        alertmanager = at.alertmanager,
        provisioning = provisioning(folder).display(),
        folder = folder.display()
    )
}

/// The last lines of a log, of which only the end was read.
pub fn last_lines(log: &str) -> String {
    const LINES_MAX: usize = 10;
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES_MAX)..].join("\n")
}

/// A text in quotes, as JSON and YAML read it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses() -> Addresses {
        let [exporter, prometheus, alertmanager] =
            ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"].map(|address| address.parse().unwrap());
        Addresses { exporter, prometheus, alertmanager }
    }

    fn shipped(folder: &str, is_one: impl Fn(&str) -> bool) -> Vec<String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| is_one(name))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn all_shipped_rules_and_dashboards_are_there() {
        let names = |shipped: &[(&str, &str)]| shipped.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(names(RULES), shipped("alerts", |name| name.starts_with("audit-")));
        assert_eq!(
            names(DASHBOARDS),
            shipped("dashboards", |name| Path::new(name).extension().is_some_and(|it| it == "json"))
        );
    }

    #[test]
    fn the_files_name_the_addresses_and_the_folder_and_no_other_machine() {
        let folder = Path::new("/tmp/a demo");
        let files = files(folder, &addresses());
        let text = |name: &str| {
            let found = files.iter().find(|(path, _)| path == &folder.join(name));
            found.unwrap_or_else(|| panic!("no {name}")).1.as_str()
        };
        assert!(text("prometheus.yml").contains("targets: [\"127.0.0.1:1\"]"));
        assert!(text("prometheus.yml").contains("targets: [\"127.0.0.1:3\"]"));
        let provider = text("grafana/provisioning/dashboards/audit-exporter.yml");
        assert!(provider.contains("path: \"/tmp/a demo/grafana/dashboards\"\n"), "{provider}");
        let datasource = text("grafana/provisioning/datasources/prometheus.yml");
        assert!(datasource.contains("url: http://127.0.0.1:2\n"), "{datasource}");
        assert!(datasource.contains("timeInterval: 5s\n"), "{datasource}");
        assert!(text("grafana/dashboards/audit-overview.json").contains("\"uid\": \"audit-overview\""));
        assert!(text("rules/audit-watch.yml").contains("- alert: Watchdog"));
        for (path, text) in files.iter().filter(|(path, _)| !path.starts_with(folder.join("rules"))) {
            let of_ours = path.starts_with(folder.join("grafana/dashboards"));
            assert!(of_ours || !text.contains("https://"), "{}: {text}", path.display());
        }
    }

    #[test]
    fn the_routes_are_those_of_the_example_and_every_receiver_is_there_and_sends_nothing() {
        let text = alertmanager_config(ROUTES);
        let names = |text: &str, key: &str| {
            let names = text.lines().filter_map(|line| line.trim_start().trim_start_matches("- ").strip_prefix(key));
            names.map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
        };
        let receivers = names(&text, "name: ");
        assert_eq!(receivers, names(&text, "receiver: "));
        assert!(receivers.len() >= 4 && text.contains("\ninhibit_rules:\n"), "{text}");
        assert_eq!(text.lines().filter(|line| *line == "route:" || *line == "receivers:").count(), 2, "{text}");
        for sends in ["_configs", "templates", "secret", "example.com", "url"] {
            assert!(!text.lines().any(|line| !line.trim_start().starts_with('#') && line.contains(sends)), "{sends}");
        }
    }

    #[test]
    fn what_is_missing_is_named_with_what_installs_it() {
        let text = missing(&[ALERTMANAGER]);
        assert!(text.contains("alertmanager or prometheus-alertmanager"), "{text}");
        assert!(text.contains("apt-get install --no-install-recommends prometheus-alertmanager;"), "{text}");
        let text = missing(&[PROMETHEUS, ALERTMANAGER]);
        assert!(text.contains("recommends prometheus prometheus-alertmanager;"), "{text}");
    }

    #[test]
    fn of_a_log_the_last_lines_are_shown() {
        let log = (0..50).map(|line| format!("line {line}")).collect::<Vec<_>>().join("\n");
        assert!(last_lines(&log).starts_with("line 40\n") && last_lines(&log).ends_with("line 49"));
        assert_eq!(last_lines("one\n"), "one");
        assert_eq!(last_lines(""), "");
    }
}
