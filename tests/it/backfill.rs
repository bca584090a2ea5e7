//! `backfill`: history from before the exporter's first start, as Prometheus has it together with the live counters.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use audit_exporter::simulate::SERVICES;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};

use crate::program::{
    Counts, EAGER, Finished, PATIENCE, Process, Running, config_file, difference, event_labels, eventually, finish,
    program, tool,
};
use crate::prometheus::Prometheus;

/// Eight hours of history, of which [`EAGER`] counts the last four.
const HISTORY: &[&str] = &["--history=8h", "--rate=0.02", "--seed=41"];

#[allow(clippy::disallowed_methods, reason = "the simulator's clock is the machine's")]
fn hours_ago(hours: i64) -> DateTime<Utc> {
    let now = DateTime::<Utc>::from(std::time::SystemTime::now());
    DateTime::from_timestamp(now.timestamp(), 0).unwrap() - TimeDelta::hours(hours)
}

fn text(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

fn arguments(config: &Path, source: &str, more: &[&str]) -> Vec<String> {
    let file = format!("--config.file={}", config.display());
    let mut arguments = vec!["backfill".into(), file, format!("--source={source}"), "--job=audit".into()];
    arguments.push("--instance=exporter:10812".into());
    arguments.extend(more.iter().map(|more| (*more).to_owned()));
    arguments
}

fn backfill(config: &Path, source: &str, more: &[&str]) -> Finished {
    let arguments = arguments(config, source, more);
    finish(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

fn assert_says(finished: &Finished, code: i32, all: &[&str]) {
    assert_eq!(finished.code, code, "{}", finished.stderr);
    for says in all {
        assert!(finished.stderr.contains(says), "expected {says:?} in:\n{}", finished.stderr);
    }
    assert!(code == 0 || finished.stdout.is_empty(), "a history that is not whole: {}", finished.stdout);
}

/// Waits until these sources have read their look-back. By the status page: a scrape would release their series.
fn caught_up(exporter: &Running, sources: &[&str]) {
    eventually(Duration::from_mins(1), || {
        let status = exporter.get("/api/v1/status").json();
        let all = status["sources"].as_array().unwrap().iter();
        let mut behind =
            all.filter(|source| sources.contains(&source["name"].as_str().unwrap()) && source["catching_up"] != false);
        behind.next().map_or(Ok(()), |source| Err(format!("{source} has read its look-back")))
    });
}

#[test]
#[allow(clippy::too_many_lines, reason = "it is one story")]
fn prometheus_has_history_and_live_counters_as_one_series_and_their_sum_is_what_happened() {
    let Some(binary) = tool("AUDIT_EXPORTER_PROMETHEUS", "prometheus") else { return };
    let Some(promtool) = tool("AUDIT_EXPORTER_PROMTOOL", "promtool") else { return };
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(HISTORY);
    simulator.post("/simulator/silence", "");
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    let exporter = Running::exporter(&config, &[]);
    let prometheus = Prometheus::start(&binary, &exporter.address, 1);
    let sources: Vec<&str> = SERVICES.iter().filter(|service| !service.is_feed).map(|service| service.source).collect();
    caught_up(&exporter, &sources);

    // on whole cells of every service, so that the truth of that time is the one that is read
    let from = text(audit_exporter::window::floor(hours_ago(7), audit_exporter::ledger::TALLY_CELL));
    let instance = format!("--instance={}", exporter.address);
    let file = format!("--config.file={}", config.display());
    let mut written = 0;
    for source in &sources {
        let (named, from) = (format!("--source={source}"), format!("--from={from}"));
        let done = finish(&["backfill", &file, &named, &from, "--job=audit", &instance]);
        assert_says(&done, 0, &["events written, as", "samples of"]);
        let openmetrics = folder.path().join(format!("{source}.om"));
        std::fs::write(&openmetrics, &done.stdout).unwrap();
        assert!(done.stdout.ends_with("\n# EOF\n"), "gathered by lines");
        let stage = folder.path().join(format!("blocks-of-{source}"));
        let made = Command::new(&promtool)
            .args(["tsdb", "create-blocks-from", "openmetrics"])
            .args([&openmetrics, &stage])
            .output()
            .unwrap();
        assert!(
            made.status.success(),
            "{}{}",
            String::from_utf8_lossy(&made.stdout),
            String::from_utf8_lossy(&made.stderr)
        );
        for block in std::fs::read_dir(&stage).unwrap() {
            let block = block.unwrap();
            // promtool leaves its own files beside them
            if block.path().join("meta.json").exists() {
                let to = prometheus.data().join(block.file_name());
                let moved = Command::new("mv").arg(block.path()).arg(&to).status().unwrap();
                assert!(moved.success());
            }
        }
        written += done.stdout.lines().filter(|line| !line.starts_with('#')).count();
    }
    // of files only what has settled for two days can be had
    let feed = SERVICES.iter().find(|service| service.is_feed).unwrap().source;
    let refused = backfill(&config, feed, &[&format!("--from={from}")]);
    assert_says(
        &refused,
        2,
        &["too late; the latest moment allowed is", "it must be 2d ago, because files of newer hours"],
    );

    // it looks for new blocks every minute, and the live series are shown when their zeros were read
    let of_logs =
        |labels: &[String; 4]| SERVICES.iter().any(|service| !service.is_feed && service.system.as_str() == labels[0]);
    // what is late still comes
    let truth = || {
        let all = simulator.truth_of(&format!("?from={from}"));
        all.into_iter().filter(|(labels, _)| of_logs(labels)).collect::<Counts>()
    };
    let (last, truth) = eventually(Duration::from_mins(4), || {
        let samples: f64 =
            prometheus.query("sum(count_over_time(audit_events_total[9h]))").iter().map(|(_, count)| count[0]).sum();
        let held = prometheus.query("sum(audit_series_held)").iter().map(|(_, held)| held[0]).sum::<f64>();
        if samples < written as f64 / 3.0 || held > 0.0 {
            return Err(format!("{samples} samples are there, {held} series are held"));
        }
        let truth = truth();
        let last = prometheus.query("max(timestamp(audit_events_total))")[0].1[0];
        let grown = prometheus.query_at("increase(audit_events_total[9h]) > 0", last);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let grown: Counts = grown
            .into_iter()
            .map(|(labels, grown)| {
                (event_labels(|name| labels[name].as_str().unwrap().to_owned()), grown[0].round() as u64)
            })
            .filter(|(labels, _)| of_logs(labels))
            .collect();
        if grown == truth {
            Ok((last, truth))
        } else {
            Err(format!("increase over the seam:\n{}", difference(&grown, &truth)))
        }
    });
    let before: u64 = simulator.truth_of(&format!("?from={from}&to={}", text(hours_ago(4)))).values().sum();
    assert!(before > 200 && truth.values().sum::<u64>() > before + 200, "there was traffic on both sides: {before}");

    let mut with_history = 0;
    let mut seen = std::collections::BTreeSet::new();
    for (labels, resets) in prometheus.query_at("resets(audit_events_total[9h])", last) {
        assert_eq!((&labels["job"], &labels["instance"]), (&"audit".into(), &exporter.address.as_str().into()));
        assert!(resets[0] <= 1.0, "{labels}: {resets:?} resets");
        assert!(seen.insert(event_labels(|name| labels[name].as_str().unwrap().to_owned())), "{labels} is there twice");
        with_history += usize::from(resets[0] == 1.0);
    }
    assert!(with_history > 20, "{with_history} series have a seam");
    // the other families are of the same events
    for (query, of) in [
        ("sum(increase(audit_logins_total[9h]))", "sum(increase(audit_events_total{action=\"login\"}[9h]))"),
        ("sum(increase(audit_failures_total[9h]))", "sum(increase(audit_events_total{outcome=\"failure\"}[9h]))"),
        ("sum(increase(audit_logouts_total[9h]))", "sum(increase(audit_events_total{action=\"logout\"}[9h]))"),
    ] {
        let [one, other] = [query, of].map(|query| prometheus.query_at(query, last)[0].1[0]);
        assert!(one > 0.0 && one == other, "{query} {one}, {of} {other}");
    }
}

#[test]
fn an_interrupted_backfill_is_continued_and_writes_the_same_bytes() {
    let slow = "poll_interval: 1s\n      rate_limit: {requests: 8, per: 1s}\n      initial_lookback: 4h";
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--history=17h", "--rate=0.003", "--seed=42"]);
    let config = config_file(folder.path(), &simulator, "1s", slow);
    let exporter = Running::exporter(&config, &[]);
    caught_up(&exporter, &["iot"]);
    let (from, to) = (format!("--from={}", text(hours_ago(15))), format!("--to={}", text(hours_ago(5))));
    let window = [from.as_str(), to.as_str()];
    let unfinished = folder.path().join("data/backfill-iot.unfinished");

    // killed while it reads, beside the exporter
    let mut killed = Process::start(&mut program(
        &arguments(&config, "iot", &window).iter().map(String::as_str).collect::<Vec<_>>(),
    ));
    killed.until_printed("that a piece was read", |printed| {
        printed.lines().find(|line| line.starts_with("read ")).map(drop)
    });
    let printed = killed.kill();
    assert!(!printed.contains("# EOF"), "it was killed too late: {printed}");
    let kept = std::fs::read_to_string(&unfinished).unwrap();
    assert!(kept.lines().count() >= 2, "{kept}");
    // another one is not begun over it
    let other = backfill(&config, "iot", &[&from]);
    assert_says(&other, 2, &["another backfill of iot was begun", &from, &to, "remove", "backfill-iot.unfinished"]);
    // the service fails for good
    simulator.post("/simulator/faults", r#"{"losant":{"forbidden":1}}"#);
    assert_says(&backfill(&config, "iot", &window), 3, &["was read before", "could not be read from", "403"]);
    simulator.post("/simulator/faults", r#"{"losant":{"forbidden":0}}"#);
    // a full disk takes nothing, and what was read is kept
    let full = Command::new(program(&[]).get_program())
        .args(arguments(&config, "iot", &window))
        .stdout(std::fs::File::options().write(true).open("/dev/full").unwrap())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&full.stderr);
    assert_eq!(full.status.code(), Some(3), "{said}");
    assert!(said.contains("No space left on device") && said.contains("the same command writes it again"), "{said}");
    let asked = || simulator.get("/simulator/requests").json()["losant"]["by_status"].clone();
    assert!(unfinished.exists());
    // nobody reads the service any more
    exporter.process.signal("TERM");
    assert_eq!(exporter.process.ended(PATIENCE).0.code(), Some(0));
    let before = asked();
    let continued = backfill(&config, "iot", &window);
    assert_says(&continued, 0, &["was read before", "events written"]);
    assert_eq!(asked(), before, "all of it had been read");
    assert!(!unfinished.exists());

    // the same at once, by the command itself
    let alone = backfill(&config, "iot", &window);
    assert_says(&alone, 0, &["no exporter runs", "events written"]);
    assert!(!alone.stderr.contains("was read before"), "{}", alone.stderr);
    assert!(continued.stdout == alone.stdout, "they differ:\n{}\n\n{}", continued.stdout, alone.stdout);
    assert!(alone.stdout.lines().count() > 1000, "{}", alone.stdout);
    let happened = simulator.truth_of(&format!("?{}&{}", &from[2..], &to[2..]));
    let happened: u64 = happened.iter().filter(|(labels, _)| labels[0] == "losant").map(|(_, count)| count).sum();
    assert!(alone.stderr.contains(&format!("{happened} events written")), "{happened}: {}", alone.stderr);
}

#[test]
fn what_cannot_be_had_is_refused_with_the_latest_moment_that_can() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(HISTORY);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    let early = ["--from=7h", "--to=6h"];
    let nothing = "nothing was counted yet: start the exporter and let it poll this source first";
    assert_says(&backfill(&config, "iot", &early), 3, &[nothing]);
    assert!(!folder.path().join("data").exists(), "looking makes nothing");
    let exporter = Running::exporter(&config, &[]);
    caught_up(&exporter, &["iot"]);

    let late = backfill(&config, "iot", &["--from=7h", "--to=210m"]);
    assert_says(
        &late,
        2,
        &["is too late; the latest moment allowed is ", "from then on the exporter counts this source"],
    );
    assert_says(&backfill(&config, "iot", &["--from=7h", "--to=1h"]), 2, &["the latest moment allowed is "]);
    let latest = late.stderr.split("allowed is ").nth(1).unwrap().split("Z:").next().unwrap().to_owned() + "Z";
    let moment: DateTime<Utc> = latest.parse().unwrap();
    assert!((moment - hours_ago(4)).abs() < TimeDelta::minutes(2), "{latest}");
    let next = text(moment + TimeDelta::milliseconds(1));
    assert_says(&backfill(&config, "iot", &["--from=7h", &format!("--to={next}")]), 2, &[&latest]);
    assert_says(&backfill(&config, "iot", &["--from=6h", &format!("--to={latest}")]), 0, &["events written"]);

    assert_says(&backfill(&config, "iot", &["--from=5h", "--to=6h"]), 2, &["must be at least a minute before --to"]);
    assert_says(&backfill(&config, "nobody", &early), 2, &["no source \"nobody\""]);
    assert_says(&backfill(&config, "iot", &["--from=yesterday"]), 2, &["2026-11-22T03:00:00Z"]);
    let file = format!("--config.file={}", config.display());
    let without = |more: &[&str]| finish(&[&["backfill", &file, "--source=iot", "--from=7h"], more].concat());
    assert_says(&without(&["--job=audit"]), 2, &["--instance"]);
    assert_says(&without(&["--job=", "--instance=x"]), 2, &["--job"]);
    assert!(
        std::fs::read_dir(folder.path().join("data"))
            .unwrap()
            .all(|file| { !file.unwrap().file_name().to_string_lossy().starts_with("backfill") })
    );
}
