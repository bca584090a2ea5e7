//! The pages of the running program: formats, status, health, reload, stop, TLS.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use audit_exporter::clock::{Clock, unix_seconds};
use audit_exporter::simulate::raw::{self, RawService};
use audit_exporter::simulate::{self, SERVICES, Simulated, credentials as c};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::{ClientConfig, RootCertStore};

use crate::program::{
    EAGER, PATIENCE, Process, Running, ask, config_file, config_text, eventually, now, program, until_exact,
};

const HTML: &str = "text/html; charset=utf-8";
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROTOBUF: &str = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";

/// What Prometheus 2.42, 2.53 and 3.5 send, with and without native histograms.
const PROMETHEUS_2_42: &str = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
const PROMETHEUS_2_53: &str = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
const PROMETHEUS_3_5: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
const PROMETHEUS_2_42_NATIVE: &str = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
const PROMETHEUS_3_5_OPENMETRICS_ONLY: &str =
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,*/*;q=0.5";

struct Setup {
    exporter: Running,
    simulator: Running,
    folder: tempfile::TempDir,
    config: PathBuf,
}

impl Setup {
    fn new(common: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let simulator = Running::simulator(&["--rate=0.05"]);
        let config = config_file(folder.path(), &simulator, "0s", common);
        let exporter = Running::exporter(&config, &[]);
        Self { exporter, simulator, folder, config }
    }

    /// The configuration as it would be with other common keys and more at the end of a list.
    fn write_config(&self, common: &str, more: &str) {
        let origin = format!("http://{}", self.simulator.address);
        let text = config_text(&origin, self.folder.path(), "0s", common);
        std::fs::write(&self.config, text + more).unwrap();
    }

    fn until_polled(&self, source: &str, times: f64) {
        eventually(PATIENCE, || {
            let polls = self.polls(source);
            if polls >= times { Ok(()) } else { Err(format!("{times} polls of {source}, there were {polls}")) }
        });
    }

    fn polls(&self, source: &str) -> f64 {
        let source = format!("source=\"{source}\"");
        self.exporter.scrape().sum("audit_source_polls_total", &[&source, "result=\"success\""])
    }
}

#[test]
fn every_scraper_gets_the_format_it_asks_for() {
    let setup = Setup::new(EAGER);
    for (accept, expected) in [
        (Some(PROMETHEUS_2_42), OPENMETRICS),
        (Some(PROMETHEUS_2_53), OPENMETRICS),
        (Some(PROMETHEUS_3_5), OPENMETRICS),
        (Some(PROMETHEUS_3_5_OPENMETRICS_ONLY), OPENMETRICS),
        (Some(PROMETHEUS_2_42_NATIVE), PROTOBUF),
        (Some("text/plain;version=0.0.4"), TEXT),
        (Some("*/*"), TEXT),
        (Some("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"), TEXT),
        (Some("application/json"), TEXT),
        (None, TEXT),
    ] {
        let headers: Vec<(&str, &str)> = accept.iter().map(|accept| ("Accept", *accept)).collect();
        let page = setup.exporter.get_with("/metrics", &headers);
        assert_eq!((page.status, page.header("content-type").as_str()), (200, expected), "{accept:?}");
        match expected {
            TEXT => {
                let text = page.text();
                assert!(text.contains("# TYPE audit_events_total counter\n"), "{text}");
                assert!(!text.contains("# EOF"));
            }
            OPENMETRICS => {
                let text = page.text();
                assert!(text.contains("# TYPE audit_events counter\n"), "{text}");
                assert!(text.ends_with("# EOF\n") && !text.contains('\r') && !text.contains("_created"));
            }
            // behind the length of the first message its first field (name) and that field's length
            _ => {
                let behind = page.body.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
                assert_eq!(&page.body[behind..behind + 2], [10, 18], "{page}");
            }
        }
    }
}

#[test]
fn the_page_tells_the_exporter_s_own_clock() {
    let setup = Setup::new(EAGER);
    let now = || unix_seconds(Clock::machine().now());
    let before = now();
    let told = setup.exporter.scrape().sum("audit_exporter_time_seconds", &[]);
    assert!((before..=now()).contains(&told), "{told} was asked for at {before}");
}

#[test]
fn the_page_tells_where_people_reach_the_exporter_only_where_that_was_told() {
    let setup = Setup::new(EAGER);
    let info = |exporter: &Running| {
        let page = exporter.scrape();
        page.0.into_iter().filter(|(name, _)| name.starts_with("audit_exporter_external_url_info")).collect::<Vec<_>>()
    };
    assert_eq!(info(&setup.exporter), []);
    setup.exporter.process.signal("TERM");
    setup.exporter.process.ended(PATIENCE);
    let exporter = Running::exporter(&setup.config, &["--web.external-url=https://example.com/audit/"]);
    let shown = "audit_exporter_external_url_info{url=\"https://example.com/audit\"}";
    assert_eq!(info(&exporter), [(shown.to_owned(), 1.0)]);
}

#[test]
fn pages_are_packed_only_for_those_who_can_unpack() {
    let setup = Setup::new(EAGER);
    for path in ["/metrics", "/"] {
        let packed = setup.exporter.get_with(path, &[("Accept-Encoding", "gzip")]);
        assert_eq!(packed.header("content-encoding"), "gzip", "{path}");
        let vary = packed.header("vary").to_lowercase();
        assert!(vary.contains("accept-encoding"), "{path}: {vary}");
        let mut text = String::new();
        flate2::read::GzDecoder::new(packed.body.as_slice()).read_to_string(&mut text).unwrap();
        let plain = setup.exporter.get_with(path, &[("Accept-Encoding", "identity")]);
        assert_eq!(plain.header("content-encoding"), "");
        assert_eq!(text.lines().next(), plain.text().lines().next(), "{path}");
        assert!(packed.body.len() * 2 < plain.body.len(), "{path}");
    }
}

#[test]
fn head_is_get_without_a_body() {
    let setup = Setup::new(EAGER);
    for (path, kind) in [
        ("/metrics", TEXT),
        ("/", HTML),
        ("/api/v1/status", "application/json"),
        ("/runbooks/", HTML),
        ("/runbooks/AuditSourceDown", HTML),
    ] {
        let head = ask(&setup.exporter.address, "HEAD", path, &[], "");
        assert_eq!((head.status, head.header("content-type").as_str()), (200, kind), "{path}");
        assert!(head.body.is_empty(), "{head}");
    }
}

#[test]
fn the_runbook_of_an_alert_is_a_page_of_the_program() {
    let setup = Setup::new(EAGER);
    let get = |path: &str| setup.exporter.get(path);
    let index = get("/runbooks/");
    assert_eq!((index.status, index.header("content-type").as_str()), (200, HTML));
    let text = index.text();
    let names: Vec<&str> = text.split("<li><a href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert!(names.len() > 30 && names.contains(&"Watchdog"), "{names:?}");
    for name in names {
        let page = get(&format!("/runbooks/{name}"));
        assert_eq!((page.status, page.header("content-type").as_str()), (200, HTML), "{name}");
        assert!(page.header("content-security-policy").starts_with("default-src 'none';"), "{name}");
        let text = page.text();
        assert!(text.contains(&format!("<title>{name} – audit-exporter</title>")), "{name}: {text}");
        assert!(
            ["Meaning", "Impact", "Diagnosis", "Mitigation"].iter().all(|part| text.contains(part)),
            "{name}: {text}"
        );
    }
    let moved = get("/runbooks");
    assert_eq!((moved.status, moved.header("location").as_str()), (308, "runbooks/"));
    // what is not there, as HTML too, and whatever its name is
    for (path, says) in [
        ("/runbooks/AuditSourceDwon", "<a href=\"AuditSourceDown\">AuditSourceDown</a>"),
        ("/runbooks/README", "<a href=\"./\">All runbooks</a>"),
        ("/runbooks/%3Cscript%3Ealert(1)%3C%2Fscript%3E", "There is no runbook &lt;script&gt;alert(1)&lt;/script&gt;"),
        ("/runbooks/..%2F..%2FCargo.toml", "There is no runbook ../../Cargo.toml"),
    ] {
        let page = get(path);
        assert_eq!((page.status, page.header("content-type").as_str()), (404, HTML), "{path}");
        assert!(page.text().contains(says), "{path}: {page}");
    }
    assert_eq!(get("/runbooks/AuditSourceDown/").status, 404);
    for path in ["/runbooks/", "/runbooks/AuditSourceDown"] {
        let refused = setup.exporter.post(path, "");
        assert_eq!((refused.status, refused.header("allow").as_str()), (405, "GET,HEAD"), "{path}");
    }
    assert!(get("/").text().contains("href=\"runbooks/\""));
}

#[test]
fn health_readiness_and_what_is_not_there() {
    let setup = Setup::new(EAGER);
    assert_eq!(setup.exporter.get("/-/healthy").status, 200);
    assert_eq!(setup.exporter.get("/-/ready").status, 200);
    assert_eq!(setup.exporter.get("/no/such/page").status, 404);
    assert_eq!(setup.exporter.get("/metrics/").status, 404);
    assert_eq!(setup.exporter.post("/metrics", "").status, 405);
    let refused = setup.exporter.get("/-/reload");
    assert_eq!(refused.status, 405);
    assert!(refused.header("allow").contains("POST"), "{refused}");
}

#[test]
fn the_status_page_and_its_json_tell_the_state_of_every_source() {
    let setup = Setup::new(EAGER);
    until_exact_after_silence(&setup);
    let json = setup.exporter.get("/api/v1/status");
    assert_eq!((json.status, json.header("content-type").as_str()), (200, "application/json"));
    let status = json.json();
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    let sources = status["sources"].as_array().unwrap();
    assert_eq!(sources.len(), SERVICES.len(), "{status:#}");
    let html = setup.exporter.get("/");
    assert_eq!((html.status, html.header("content-type").as_str()), (200, "text/html; charset=utf-8"));
    let html = html.text();
    for (source, Simulated { system, .. }) in sources.iter().zip(SERVICES) {
        assert_eq!(source["system"], system.as_str());
        assert_eq!(source["state"], "ok", "{source:#}");
        assert_eq!(source["catching_up"], false);
        assert!(source["last_error"].is_null(), "{source:#}");
        // ActivID's events tell no time
        let event: &[&str] = if system.as_str() == "activid" { &[] } else { &["last_event"] };
        for key in ["last_success", "watermark"].iter().chain(event) {
            let time = source[*key].as_str().unwrap_or_else(|| panic!("{key} in {source:#}"));
            chrono::DateTime::parse_from_rfc3339(time).unwrap_or_else(|error| panic!("{key} {time}: {error}"));
        }
        assert!(html.contains(source["name"].as_str().unwrap()), "{html}");
    }
    assert!(html.contains("href=\"metrics\""), "links to the metrics");
}

fn until_exact_after_silence(setup: &Setup) {
    assert_eq!(setup.simulator.post("/simulator/silence", "").status, 200);
    until_exact(&setup.exporter, &setup.simulator, PATIENCE);
}

#[test]
fn trouble_at_a_service_is_seen_on_every_page_and_passes() {
    let setup = Setup::new(EAGER);
    setup.until_polled("iot", 1.0);
    setup.simulator.post("/simulator/inject", "\"service_down\"");
    let status = |state: &str| {
        let json = setup.exporter.get("/api/v1/status").json();
        let sources = json["sources"].as_array().unwrap();
        if sources.iter().all(|source| source["state"] == state) {
            return Ok(sources.clone());
        }
        Err(format!("state {state} in {json:#}"))
    };
    for source in eventually(PATIENCE, || status("error")) {
        assert!(source["last_error"].as_str().unwrap().contains("503"), "{source:#}");
    }
    let page = setup.exporter.scrape();
    assert_eq!(page.sum("audit_source_up", &[]), 0.0);
    assert!(page.sum("audit_source_errors_total", &["kind=\"server\""]) >= 1.0);
    assert!(page.sum("audit_source_requests_total", &["code=\"503\""]) >= 1.0);
    assert_eq!(setup.exporter.get("/-/healthy").status, 200, "a service's trouble is not the exporter's");
    setup.simulator.post("/simulator/inject", "\"service_up\"");
    // nor does an error that is over stand beside it
    for source in eventually(PATIENCE, || status("ok")) {
        assert!(source["last_error"].is_null() && source["last_error_at"].is_null(), "{source:#}");
    }
    let html = setup.exporter.get("/").text();
    // a tainted record may be told there
    assert!(!html.contains("status 503") && !html.contains("cannot be read"), "{html}");
}

#[test]
fn what_a_service_answers_is_shown_whole_on_the_status_page_and_never_as_markup() {
    let said = r#"{"type": "NotAllowed", "message": "<script>alert('status page')</script> & more"}"#;
    let kind = ("Content-Type", "application/json");
    let service = RawService::start(move |_| raw::answer(400, &[kind], said)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("audit-exporter.yml");
    let text = format!(
        "storage: {{path: data}}\nsources:\n  losant:\n    - name: iot\n      instance_id: abc\n      api_token: abc\n      \
         base_url: {}\n      {EAGER}\n",
        service.origin()
    );
    std::fs::write(&config, text).unwrap();
    let exporter = Running::exporter(&config, &[]);
    let page = eventually(PATIENCE, || {
        let page = exporter.get("/").text();
        if page.contains("1 of 1 source cannot be read") { Ok(page) } else { Err(page) }
    });
    assert!(page.contains("&lt;script&gt;alert('status page')&lt;/script&gt; &amp; more"), "{page}");
    assert!(!page.contains("<script"), "{page}");
}

/// So long that a poll within the test can only be the first one.
const RARE: &str =
    "poll_interval: 1h\n      rate_limit: {requests: 200, per: 1s, burst: 50}\n      initial_lookback: 4h";

#[test]
fn scrapes_cause_no_request_upstream() {
    let setup = Setup::new(RARE);
    for Simulated { system, .. } in SERVICES {
        eventually(PATIENCE, || {
            let page = setup.exporter.scrape();
            let polled = page.sum("audit_source_polls_total", &[&format!("system=\"{system}\"")]);
            if polled >= 1.0 { Ok(()) } else { Err(format!("a poll of {system}")) }
        });
    }
    let requests = || setup.simulator.get("/simulator/requests").json();
    let before = requests();
    assert!(before["losant"]["count"].as_u64().unwrap() >= 1);
    for _ in 0..20 {
        setup.exporter.scrape();
        setup.exporter.get("/");
    }
    assert_eq!(requests(), before);
}

/// A second Losant source, to stand at the end of the list.
fn second_source(setup: &Setup, name: &str) -> String {
    let (origin, instance, token) = (&setup.simulator.address, c::LOSANT_INSTANCE_ID, c::LOSANT_API_TOKEN);
    let text = std::fs::read_to_string(&setup.config).unwrap();
    let entry = format!(
        "    - name: {name}\n      base_url: http://{origin}\n      instance_id: {instance}\n      api_token: {token}\n      {EAGER}\n"
    );
    text.replacen("  losant:\n", &format!("  losant:\n{entry}"), 1)
}

#[test]
fn a_reload_takes_what_is_new_and_leaves_the_rest_undisturbed() {
    let setup = Setup::new(RARE);
    setup.until_polled("iot", 1.0);
    std::fs::write(&setup.config, second_source(&setup, "second")).unwrap();
    let reloaded = setup.exporter.post("/-/reload", "");
    assert_eq!(reloaded.status, 200, "{reloaded}");
    setup.until_polled("second", 3.0);
    assert_eq!(setup.polls("iot"), 1.0, "iot polls once an hour; a restarted one would have polled again");
    // changed: polls at its new pace, and counts on from where it was
    setup.write_config(EAGER, "");
    assert_eq!(setup.exporter.post("/-/reload", "").status, 200);
    setup.until_polled("iot", 4.0);
    let page = setup.exporter.scrape();
    assert_eq!(page.sum("audit_source_up", &["source=\"second\""]), 0.0);
    assert!(!page.0.keys().any(|name| name.contains("source=\"second\"")), "a source that was removed is gone");
    until_exact_after_silence(&setup);
}

#[test]
fn a_reload_is_carried_out_even_where_nobody_waits_for_the_answer() {
    let setup = Setup::new(EAGER);
    let text = second_source(&setup, "second");
    // a pipe, so that reading the configuration takes as long as we like
    std::fs::remove_file(&setup.config).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&setup.config).status().unwrap().success());
    let mut stream = TcpStream::connect(&setup.exporter.address).unwrap();
    stream.write_all(b"POST /-/reload HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").unwrap();
    // opens once the other end is read
    let mut pipe = std::fs::OpenOptions::new().write(true).open(&setup.config).unwrap();
    drop(stream);
    std::thread::sleep(Duration::from_millis(300));
    pipe.write_all(text.as_bytes()).unwrap();
    drop(pipe);
    setup.until_polled("second", 1.0);
}

#[test]
fn a_folder_given_by_flag_overrides_the_file_s_at_a_reload_too() {
    let setup = Setup::new(EAGER);
    let elsewhere = format!("--storage.path={}", setup.folder.path().join("elsewhere").display());
    let exporter = Running::exporter(&setup.config, &[&elsewhere]);
    let text = std::fs::read_to_string(&setup.config).unwrap();
    std::fs::write(&setup.config, text.replace("/data", "/moved")).unwrap();
    assert_eq!(setup.exporter.post("/-/reload", "").status, 500, "the file's own cannot move");
    let reloaded = exporter.post("/-/reload", "");
    assert_eq!(reloaded.status, 200, "{reloaded}");
    assert!(setup.folder.path().join("elsewhere/ledger.redb").exists());
    assert!(!setup.folder.path().join("moved").exists());
}

#[test]
fn who_asks_for_the_head_of_the_metrics_has_not_seen_that_a_series_is_0() {
    let setup = Setup::new(EAGER);
    eventually(PATIENCE, || {
        let sources = setup.exporter.get("/api/v1/status").json()["sources"].clone();
        let events: u64 = sources.as_array().unwrap().iter().map(|source| source["events"].as_u64().unwrap()).sum();
        if events > 20 { Ok(()) } else { Err(format!("{events} events")) }
    });
    for _ in 0..3 {
        let head = ask(&setup.exporter.address, "HEAD", "/metrics", &[], "");
        assert_eq!((head.status, head.body.len()), (200, 0));
    }
    assert_eq!(setup.exporter.scrape().sum("audit_events_total", &[]), 0.0);
    assert!(setup.exporter.scrape().sum("audit_events_total", &[]) > 20.0);
}

#[test]
fn a_bad_file_is_refused_with_its_errors_and_the_old_one_stays_in_force() {
    let setup = Setup::new(EAGER);
    let successful = || setup.exporter.scrape().sum("audit_exporter_config_last_reload_successful", &[]);
    let loaded_at = || {
        let page = setup.exporter.scrape();
        page.sum("audit_exporter_config_last_reload_success_timestamp_seconds", &[])
    };
    setup.until_polled("iot", 1.0);
    assert_eq!(successful(), 1.0);
    let first_load = loaded_at();
    assert!(first_load > 1.7e9);

    setup.write_config(EAGER, "nonsense: hunter2\n");
    let refused = setup.exporter.post("/-/reload", "");
    assert_eq!(refused.status, 500);
    let place = format!("{}:", setup.config.display());
    assert!(refused.text().contains(&place) && refused.text().contains("nonsense"), "{refused}");
    assert!(!refused.text().contains("hunter2"), "{refused}");
    assert_eq!((successful(), loaded_at()), (0.0, first_load));
    let polls = setup.polls("iot");
    setup.until_polled("iot", polls + 2.0);

    // good again, and the same by signal: good, then bad
    setup.write_config(EAGER, "");
    assert_eq!(setup.exporter.post("/-/reload", "").status, 200);
    assert_eq!(successful(), 1.0);
    std::fs::write(&setup.config, second_source(&setup, "by-signal")).unwrap();
    setup.exporter.process.signal("HUP");
    setup.until_polled("by-signal", 1.0);
    assert!(loaded_at() > first_load);
    std::fs::remove_file(&setup.config).unwrap();
    setup.exporter.process.signal("HUP");
    eventually(PATIENCE, || if successful() == 0.0 { Ok(()) } else { Err("the reload to fail".into()) });
}

#[test]
fn a_stop_is_quick_and_clean_whatever_is_under_way() {
    for (signal, fault) in [("TERM", ""), ("INT", ""), ("TERM", "all:hang=1")] {
        let setup = Setup::new(EAGER);
        setup.until_polled("iot", 1.0);
        if !fault.is_empty() {
            let hang =
                SERVICES.iter().map(|service| format!("\"{}\":{{\"hang\":1.0}}", service.system)).collect::<Vec<_>>();
            let answer = setup.simulator.post("/simulator/faults", &format!("{{{}}}", hang.join(",")));
            assert_eq!(answer.status, 200, "{answer}");
            std::thread::sleep(Duration::from_secs(1)); // a request hangs by now
        }
        // a client that keeps its connection and says nothing
        let _idle = std::net::TcpStream::connect(&setup.exporter.address).unwrap();
        let begun = now();
        setup.exporter.process.signal(signal);
        let (status, printed) = setup.exporter.process.ended(PATIENCE);
        assert_eq!(status.code(), Some(0), "{printed}");
        assert!(begun.elapsed() < Duration::from_secs(8), "{signal} {fault}: {:?}", begun.elapsed());
        assert!(printed.contains("stopped"), "{printed}");
        assert!(!printed.contains("panic"), "{printed}");
    }
}

#[test]
fn a_restart_continues_every_counter() {
    let Setup { exporter, simulator, folder, config } = Setup::new(EAGER);
    simulator.post("/simulator/silence", "");
    until_exact(&exporter, &simulator, PATIENCE);
    exporter.process.signal("TERM");
    assert_eq!(exporter.process.ended(PATIENCE).0.code(), Some(0));
    let exporter = Running::exporter(&config, &[]);
    let first = crate::program::counted(&exporter.scrape());
    assert!(first.values().sum::<u64>() > 0, "the first scrape after a restart shows what was counted before");
    until_exact(&exporter, &simulator, PATIENCE);
    drop(folder);
}

#[test]
fn logs_in_either_format_and_never_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--quiet"]);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    let file = format!("--config.file={}", config.display());
    let call = [file.as_str(), "--web.listen-address=127.0.0.1:0", "--log.format=json", "--log.level=debug"];
    let mut process = Process::start(&mut program(&call));
    process.until_printed("commits", |printed| printed.contains("committed").then_some(()));
    process.signal("TERM");
    let (status, printed) = process.ended(PATIENCE);
    assert!(status.success());
    for line in printed.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["level"].is_string() && line["message"].is_string(), "{line}");
    }
    for secret in simulate::secrets() {
        assert!(!printed.contains(secret), "{secret} in {printed}");
    }
}

#[tokio::test]
async fn tls_and_basic_authentication_guard_every_page() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let mut server = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().unwrap();
    std::fs::write(path("cert.pem"), server.signed_by(&key, &authority).unwrap().pem()).unwrap();
    std::fs::write(path("key.pem"), key.serialize_pem()).unwrap();
    let hash = bcrypt::hash("open sesame", 4).unwrap();
    std::fs::write(
        path("web.yml"),
        format!("tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\nbasic_auth_users:\n  ada: {hash}\n"),
    )
    .unwrap();
    let simulator = Running::simulator(&["--quiet"]);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    let exporter = Running::exporter(&config, &[&format!("--web.config.file={}", path("web.yml").display())]);
    let port = exporter.address.rsplit(':').next().unwrap();

    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build().unwrap();
    for _ in 0..200 {
        let ready = client.get(format!("https://localhost:{port}/-/ready")).basic_auth("ada", Some("open sesame"));
        if ready.send().await.unwrap().status() == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for page in ["/metrics", "/", "/api/v1/status", "/-/healthy", "/-/ready", "/no/such/page"] {
        let url = format!("https://localhost:{port}{page}");
        let status = |answer: reqwest::Response| answer.status().as_u16();
        assert_eq!(status(client.get(&url).send().await.unwrap()), 401, "{page}");
        let wrong = client.get(&url).basic_auth("ada", Some("sesame open"));
        assert_eq!(status(wrong.send().await.unwrap()), 401, "{page}");
        let right = client.get(&url).basic_auth("ada", Some("open sesame"));
        let expected = if page == "/no/such/page" { 404 } else { 200 };
        assert_eq!(status(right.send().await.unwrap()), expected, "{page}");
    }
    let reload = client.post(format!("https://localhost:{port}/-/reload")).send().await.unwrap();
    assert_eq!(reload.status(), 401);
    assert_eq!(exporter.get("/metrics").status, 400, "plain HTTP is refused");
}

/// A row of the first table of docs/http.md.
struct Told {
    path: String,
    methods: Vec<String>,
    status: u16,
    kind: String,
}

fn told_paths() -> Vec<Told> {
    let page = include_str!("../../docs/http.md");
    let rows = page.lines().skip_while(|line| !line.starts_with("| --- ")).skip(1);
    let rows = rows.take_while(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<String> = row.trim_matches(['|', ' ']).split(" | ").map(|cell| cell.replace('`', "")).collect();
        let [path, methods, status, kind] = cells.try_into().expect("a row has four cells");
        let status = status.split(", ").next().unwrap().parse().unwrap();
        Told { path, methods: methods.split(", ").map(str::to_owned).collect(), status, kind }
    })
    .collect()
}

#[test]
fn the_page_of_paths_has_every_path_and_each_answers_as_it_says() {
    let told = told_paths();
    let routes = include_str!("../../src/web/routes.rs").split(".route(\"").skip(1);
    let routes: Vec<&str> = routes.map(|rest| rest.split('"').next().unwrap()).collect();
    assert_eq!(told.iter().map(|row| row.path.as_str()).collect::<Vec<_>>(), routes);
    let setup = Setup::new(EAGER);
    for Told { path, methods, status, kind } in told {
        let path = path.replace("{name}", "AuditSourceDown");
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE"] {
            let answer = ask(&setup.exporter.address, method, &path, &[], "");
            if methods.iter().any(|told| told == method) {
                let expected = if kind == "–" { "" } else { &kind };
                let is = (answer.status, answer.header("content-type"));
                assert_eq!(is, (status, expected.to_owned()), "{method} {path}");
            } else {
                assert_eq!(answer.status, 405, "{method} {path}");
                let allowed = answer.header("allow");
                assert!(methods.iter().all(|told| allowed.contains(told.as_str())), "{method} {path}: {allowed}");
            }
        }
    }
}

#[test]
fn the_page_of_paths_names_every_field_of_the_status() {
    let setup = Setup::new(EAGER);
    let (page, status) = (include_str!("../../docs/http.md"), setup.exporter.get("/api/v1/status").json());
    let fields = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    for field in fields(&status).into_iter().chain(fields(&status["sources"][0])) {
        let is_told = |line: &str| line.split(" | ").next().is_some_and(|cell| cell.contains(&format!("`{field}`")));
        assert!(page.lines().any(|line| line.starts_with("| `") && is_told(line)), "docs/http.md lacks {field}");
    }
}
