//! The first event: when a new series shows its value, and who must have read its 0 before. Each client speaks
//! over real sockets, so that it can do what a scrape must not.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::exposed::Exposed;
use crate::program::{Answer, EAGER, PATIENCE, Running, ask, config_file, eventually, now};

/// Two scrapers on one machine, one of them without the header, and two who are none.
const FAST: [(&str, &str); 2] = [("User-Agent", "Prometheus/3.5.0"), ("X-Prometheus-Scrape-Timeout-Seconds", "1")];
const SLOW: [(&str, &str); 1] = [("User-Agent", "Telegraf/1.30 Go/1.22")];
const BROWSER: [(&str, &str); 1] = [("User-Agent", "Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/140.0")];
const PROBE: [(&str, &str); 1] = [("User-Agent", "curl/8.5.0")];

/// The events that are counted, whether or not they are shown.
fn counted(status: &serde_json::Value) -> u64 {
    status["sources"].as_array().unwrap().iter().map(|source| source["events"].as_u64().unwrap()).sum()
}

/// Waits until everything that happened is counted. Asks for no `/metrics`.
fn until_counted(exporter: &Running, simulator: &Running) {
    eventually(PATIENCE, || {
        let happened: u64 = simulator.truth().values().sum();
        let counted = counted(&exporter.get("/api/v1/status").json());
        if counted == happened { Ok(()) } else { Err(format!("{happened} events, {counted} are counted")) }
    });
}

/// Services in which something has happened, and nothing more happens by itself: the end of ordinary traffic comes
/// with some seconds of delay, and may be a series that nobody has heard of.
fn simulator() -> Running {
    let simulator = Running::simulator(&["--quiet"]);
    simulator.post("/simulator/inject", r#"["password_spray", "deletion_burst", "privilege_escalation"]"#);
    simulator
}

struct Setup {
    exporter: Running,
    simulator: Running,
    _folder: tempfile::TempDir,
}

impl Setup {
    /// An exporter that has counted the simulator's history and was never asked for `/metrics`.
    fn new(hold: &str, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let simulator = simulator();
        let config = config_file(folder.path(), &simulator, hold, EAGER);
        let exporter = Running::exporter(&config, more);
        let setup = Self { exporter, simulator, _folder: folder };
        if more.is_empty() {
            until_counted(&setup.exporter, &setup.simulator);
        }
        setup
    }

    fn status(&self) -> serde_json::Value {
        self.exporter.get("/api/v1/status").json()
    }

    fn page(&self, headers: &[(&str, &str)]) -> Exposed {
        let answer = self.exporter.get_with("/metrics", headers);
        assert_eq!(answer.status, 200, "{answer}");
        Exposed::parse(&answer.text())
    }

    /// The events that are shown to a client, who reads the whole page.
    fn events(&self, headers: &[(&str, &str)]) -> f64 {
        self.page(headers).sum("audit_events_total", &[])
    }

    /// A request of the fast scraper, of whose answer nothing has been read.
    fn begin(&self, more: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.exporter.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = FAST.iter().fold(String::new(), |head, (name, value)| head + name + ": " + value + "\r\n");
        stream.write_all(format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{head}{more}\r\n").as_bytes()).unwrap();
        stream
    }
}

/// Reads one answer with `Content-Length`, and leaves the connection open.
fn read_one(stream: &mut TcpStream) -> Exposed {
    let mut bytes = Vec::new();
    let mut piece = [0; 8192];
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            if bytes.len() >= end + 4 + length.parse::<usize>().unwrap() {
                return Exposed::parse(&String::from_utf8_lossy(&bytes[end + 4..]));
            }
        }
        let count = stream.read(&mut piece).unwrap();
        assert!(count > 0, "the connection was closed");
        bytes.extend_from_slice(&piece[..count]);
    }
}

#[test]
fn an_answer_that_was_not_read_whole_shows_nobody_a_zero() {
    // held for 30 s at the most, which this test does not take
    let setup = Setup::new("3s", &[]);
    let mut unread = Vec::new();
    for _ in 0..2 {
        for more in ["", "Connection: close\r\n", "Accept-Encoding: gzip\r\n"] {
            // reset with everything unread, reset after a part, and never read
            let stream = setup.begin(more);
            std::thread::sleep(Duration::from_millis(200));
            drop(stream);
            let mut stream = setup.begin(more);
            stream.read_exact(&mut [0; 600]).unwrap();
            drop(stream);
            unread.push(setup.begin(more));
        }
        // begun only
        let stream = TcpStream::connect(&setup.exporter.address).unwrap();
        (&stream).write_all(b"GET /metrics HTTP/1.1\r\nHost").unwrap();
    }
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(setup.events(&FAST), 0.0, "the first answer that was read whole");
    assert!(setup.events(&FAST) > 20.0, "and the hold has passed");
    drop(unread);
}

#[test]
fn the_next_request_on_a_connection_that_stays_open_shows_that_the_answer_was_read() {
    let setup = Setup::new("0s", &[]);
    let mut stream = setup.begin("");
    assert_eq!(read_one(&mut stream).sum("audit_events_total", &[]), 0.0);
    let head = FAST.iter().fold(String::new(), |head, (name, value)| head + name + ": " + value + "\r\n");
    stream.write_all(format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{head}\r\n").as_bytes()).unwrap();
    assert!(read_one(&mut stream).sum("audit_events_total", &[]) > 20.0);
}

#[test]
fn a_series_waits_for_each_known_scraper_and_a_browser_speaks_for_none() {
    let setup = Setup::new("3s", &[]);
    let shown = |headers: &[(&str, &str)]| setup.events(headers);
    assert_eq!(shown(&SLOW), 0.0);
    assert_eq!(shown(&FAST), 0.0);
    std::thread::sleep(Duration::from_secs(4));
    let before = shown(&SLOW);
    assert!(before > 20.0, "both have read the zeros");
    // kinds of events that nobody has heard of
    setup.simulator.post("/simulator/inject", r#"["new_category"]"#);
    until_counted(&setup.exporter, &setup.simulator);
    let new = setup.status()["held"]["series"].as_f64().expect("there are new series");
    let end = now() + Duration::from_secs(5);
    let mut held = 0.0;
    while now() < end {
        for headers in [&FAST[..], &BROWSER, &PROBE, &[]] {
            let page = setup.page(headers);
            held = page.sum("audit_series_held", &[]);
            assert!(held >= new, "the slow one has not come yet: {headers:?}");
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    let status = setup.status();
    assert_eq!(status["held"]["waiting_for_scrapers"], 1, "{status:#}");
    assert_eq!(status["held"]["series"].as_f64(), Some(held));
    let said = "are shown as 0 on /metrics until";
    assert!(setup.exporter.get("/").text().contains(said));
    let page = setup.page(&SLOW);
    assert_eq!(page.sum("audit_series_held", &[]), held, "its first look");
    assert_eq!(setup.page(&BROWSER).sum("audit_series_held", &[]), 0.0);
    assert!(shown(&SLOW) > before);
    assert!(setup.status()["held"].is_null() && !setup.exporter.get("/").text().contains(said));
}

#[test]
fn what_was_held_for_as_long_as_can_be_is_shown_and_said() {
    let setup = Setup::new("1s", &[]);
    let begin = now();
    // comes once and never again
    assert_eq!(setup.events(&SLOW), 0.0);
    setup.simulator.post("/simulator/inject", r#"["new_category"]"#);
    eventually(PATIENCE, || {
        let held = setup.page(&FAST).sum("audit_series_held", &[]);
        if held == 0.0 { Ok(()) } else { Err(format!("{held} series are held")) }
    });
    assert!(now() - begin >= Duration::from_secs(10), "ten times the hold");
    let log = setup.exporter.process.printed();
    assert!(log.contains("new series are shown although not every scraper has read them as 0"), "{log}");
}

#[test]
fn after_a_restart_what_was_shown_is_shown_and_what_is_held_waits_for_those_who_come() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = simulator();
    let config = config_file(folder.path(), &simulator, "4s", EAGER);
    let page =
        |exporter: &Running, headers: &[(&str, &str)]| Exposed::parse(&exporter.get_with("/metrics", headers).text());
    let events = |page: &Exposed| page.sum("audit_events_total", &[]);
    let held = |page: &Exposed| page.sum("audit_series_held", &[]);
    let before = {
        let exporter = Running::exporter(&config, &[]);
        until_counted(&exporter, &simulator);
        eventually(PATIENCE, || {
            let held = held(&page(&exporter, &FAST));
            if held == 0.0 { Ok(()) } else { Err(format!("{held} series are held")) }
        });
        simulator.post("/simulator/inject", r#"["new_category"]"#);
        until_counted(&exporter, &simulator);
        std::thread::sleep(Duration::from_secs(5));
        page(&exporter, &PROBE)
    };
    assert!(events(&before) > 20.0 && held(&before) > 0.0);
    let exporter = Running::exporter(&config, &[]);
    let restarted = now();
    for headers in [&PROBE[..], &PROBE, &FAST, &FAST, &PROBE] {
        let page = page(&exporter, headers);
        assert!(events(&page) >= events(&before), "what was shown is shown");
        assert!(held(&page) >= held(&before), "what was held is held, however old it is");
    }
    assert!(now() - restarted < Duration::from_secs(4), "the machine is too slow for this test");
    // within the hold after the start, so that it is known before anything is released
    assert!(held(&page(&exporter, &SLOW)) > 0.0);
    std::thread::sleep(Duration::from_secs(5));
    let after = page(&exporter, &SLOW);
    assert!(held(&after) == 0.0 && events(&after) > events(&before));
}

#[test]
fn taint_and_the_counter_of_tainted_records_tell_one_story_on_every_page() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = simulator();
    simulator.post("/simulator/inject", r#"["tainted_record"]"#);
    let config = config_file(folder.path(), &simulator, "2s", EAGER);
    let exporter = Running::exporter(&config, &[]);
    eventually(PATIENCE, || {
        let page = exporter.scrape();
        let (tainted, found) = (page.sum("audit_feed_tainted", &[]), page.sum("audit_tainted_feeds_total", &[]));
        let last = page.sum("audit_tainted_last_timestamp_seconds", &[]);
        assert_eq!((tainted > 0.0, last > 0.0), (found > 0.0, found > 0.0), "tainted {tainted}, {last}, found {found}");
        if found > 0.0 { Ok(()) } else { Err("a tainted record".into()) }
    });
}

#[test]
fn the_head_of_the_metrics_is_that_of_the_page() {
    let setup = Setup::new("0s", &[]);
    let address = &setup.exporter.address;
    for headers in
        [&[][..], &[("Accept-Encoding", "gzip")], &[("Accept", "application/openmetrics-text;version=1.0.0")]]
    {
        setup.page(&[]);
        setup.page(&[]);
        let (head, page) =
            (ask(address, "HEAD", "/metrics", headers, ""), ask(address, "GET", "/metrics", headers, ""));
        assert_eq!((head.status, head.body.len()), (200, 0));
        let said = |answer: &Answer| ["vary", "content-type", "content-encoding"].map(|name| answer.header(name));
        assert_eq!(said(&head), said(&page));
        assert!(head.header("vary").contains("accept-encoding"), "{head}");
        assert_ne!(head.header("content-length"), "0");
    }
}

/// Over TLS, with either protocol. An HTTP/2 client has a part of the answer before it is asked for: what is more
/// than that, and taken back, was not read.
#[tokio::test]
async fn the_rule_is_the_same_over_tls_with_http_1_and_http_2() {
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
    std::fs::write(path("web.yml"), "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n").unwrap();
    for (protocol, version) in [("h2", http::Version::HTTP_2), ("http/1.1", http::Version::HTTP_11)] {
        let setup = Setup::new("0s", &[&format!("--web.config.file={}", path("web.yml").display())]);
        let url =
            |path: &str| format!("https://localhost:{}{path}", setup.exporter.address.rsplit(':').next().unwrap());
        let tls = || {
            let mut roots = RootCertStore::empty();
            roots.add(authority.der().clone()).unwrap();
            let mut tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            tls.alpn_protocols = vec![protocol.as_bytes().to_vec()];
            tls
        };
        let client = |window: u32| {
            let builder = reqwest::Client::builder().tls_backend_preconfigured(tls()).no_proxy();
            builder.http2_initial_stream_window_size(window).build().unwrap()
        };
        let steady = client(1 << 20);
        let patient_until = now() + PATIENCE;
        loop {
            // the exporter's own logins among it
            let happened: u64 = setup.simulator.truth().values().sum();
            let answer = steady.get(url("/api/v1/status")).send().await.unwrap();
            // until the ledger is open there is none
            let is_there = answer.status().is_success();
            let status = answer.text().await.unwrap();
            if is_there && counted(&serde_json::from_str(&status).unwrap()) == happened {
                break;
            }
            assert!(now() < patient_until, "{happened} events happened: {status}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let ask = async |client: &reqwest::Client| {
            client.get(url("/metrics")).header("user-agent", "Prometheus/3").send().await.unwrap()
        };
        for polite in [false, true, false] {
            if version == http::Version::HTTP_2 {
                let fleeting = client(4096);
                assert_eq!(ask(&fleeting).await.version(), version);
                continue;
            }
            let stream = tokio::net::TcpStream::connect(&setup.exporter.address).await.unwrap();
            let tls = tokio_rustls::TlsConnector::from(Arc::new(tls()));
            let mut stream = tls.connect("localhost".try_into().unwrap(), stream).await.unwrap();
            let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nUser-Agent: Prometheus/3\r\n\r\n";
            stream.write_all(request).await.unwrap();
            stream.read_exact(&mut [0; 600]).await.unwrap();
            if polite {
                // says that it closes, though it has not read everything
                stream.shutdown().await.unwrap();
            }
        }
        let events = async |answer: reqwest::Response| {
            Exposed::parse(&answer.text().await.unwrap()).sum("audit_events_total", &[])
        };
        assert_eq!(events(ask(&steady).await).await, 0.0, "{protocol}");
        assert!(events(ask(&steady).await).await > 20.0, "{protocol}");
    }
}
