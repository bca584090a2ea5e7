//! The figures of `docs/performance.md`, measured anew: `cargo bench`.
//!
//! Each figure is printed with its goal. Nothing here judges: a shared machine is too noisy for
//! that. Figures per second are of one core, as the process's own CPU time tells, and by the clock.

#![allow(clippy::unwrap_used, clippy::cast_precision_loss, missing_docs, reason = "a measurement, not a promise")]
#![allow(clippy::print_stdout, reason = "figures are printed")]
#![allow(clippy::disallowed_methods, reason = "a stopwatch")]

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use audit_exporter::clock::Clock;
use audit_exporter::config::parse;
use audit_exporter::connect::over_the_network;
use audit_exporter::demo;
use audit_exporter::event::{Class, EventKey, EventLabels, Item, Label, Outcome, What};
use audit_exporter::exporter::{Edges, Exporter};
use audit_exporter::exposition::Format;
use audit_exporter::ledger::{Commit, Counter, Ledger, Registration};
use audit_exporter::page::{Catalogue, Page};
use audit_exporter::simulate::credentials;
use audit_exporter::source::index_exchange::RowCounter;
use audit_exporter::source::informatica::{self, Decoder};
use audit_exporter::source::kit::Ignore;
use audit_exporter::source::losant;
use audit_exporter::window::Checkpoint;
use axum::extract::Query;
use axum::routing::{get, post};
use chrono::{DateTime, TimeDelta, Utc};

const PAGE: usize = 1000;

fn main() {
    println!("{:<58} {:>16} {:>16}   goal", "figure", "per CPU second", "per second");
    decode();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        commit().await;
        slow_disk().await;
        over_http().await;
    });
    rows();
    runtime.block_on(scrapes());
    whole_program();
    many_sources();
    peak_memory();
}

/// CPU seconds this process has used.
fn cpu_seconds() -> f64 {
    cpu_seconds_of(std::process::id())
}

/// CPU seconds a process has used.
fn cpu_seconds_of(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / 100.0
}

/// Prints a rate: `count` things done by `work`.
fn rate(name: &str, count: f64, unit: &str, goal: &str, work: impl FnOnce()) {
    let (cpu, clock) = (cpu_seconds(), Instant::now());
    work();
    print_rate(name, count, unit, goal, cpu_seconds() - cpu, clock.elapsed());
}

fn print_rate(name: &str, count: f64, unit: &str, goal: &str, cpu: f64, clock: Duration) {
    let per_cpu = format!("{:.0} {unit}", count / cpu);
    let per_second = format!("{:.0} {unit}", count / clock.as_secs_f64());
    println!("{name:<58} {per_cpu:>16} {per_second:>16}   {goal}");
}

// --- Informatica ---

/// A page of the security log as the service writes it.
fn page(first: usize, at: DateTime<Utc>) -> String {
    let kinds = [
        ("Authentication", "USER_LOGIN"),
        ("Authentication", "AGENT_LOGIN"),
        ("Authentication", "LOGOUT"),
        ("User", "CREATE"),
        ("User group", "UPDATE"),
        ("Role", "DELETE"),
    ];
    let mut text = String::from("{\"entries\":[");
    for n in first..first + PAGE {
        let (category, event) = kinds[n % kinds.len()];
        let time = (at + TimeDelta::seconds(i64::try_from(n / 100).unwrap())).format("%Y-%m-%dT%H:%M:%S.000Z");
        let comma = if n == first { "" } else { "," };
        write!(
            text,
            "{comma}{{\"id\":\"1AoqT9lYsr{n:012}\",\"orgId\":\"9l10ywsSnqadMx1NtEEbKT\",\"actor\":\"user{}@example.com\",\
             \"entryTime\":\"{time}\",\"objectId\":\"9l10ywsSnqadMx1NtEEbKT\",\"objectName\":\"idsv3_org_1563920884151\",\
             \"actionCategory\":\"{category}\",\"actionEvent\":\"{event}\"}}",
            n % 500
        )
        .unwrap();
    }
    text.push_str("]}");
    text
}

fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_790_000_000, 0).unwrap()
}

fn pages(count: usize) -> Vec<String> {
    (0..count).map(|n| page(n * PAGE, start())).collect()
}

fn decode() {
    let pages = pages(500);
    let events = (pages.len() * PAGE) as f64;
    rate("Informatica: decode, normalise, dedupe, count", events, "events", "500,000", || {
        let mut decoder = Decoder::new(Ignore::default());
        let mut seen: HashSet<EventKey> = HashSet::new();
        let mut counts: HashMap<EventLabels, u64> = HashMap::new();
        for page in &pages {
            for item in decoder.items(page.as_bytes()).unwrap() {
                if let (true, What::Event(labels)) = (seen.insert(item.key), item.what) {
                    *counts.entry(labels).or_default() += 1;
                }
            }
        }
        assert_eq!(counts.values().sum::<u64>(), 500_000);
    });
}

/// A page that leaves the checkpoint where it is.
fn commit_of(items: Vec<Item>, checkpoint: Option<Checkpoint>, now: DateTime<Utc>) -> Commit {
    let page = Page { items, ..Page::default() };
    Commit {
        expected: checkpoint.clone(),
        next: checkpoint,
        page,
        lost_seconds: 0,
        now,
        service_now: now,
        backlog_from: None,
    }
}

async fn commit() {
    let pages = pages(300);
    let folder = tempfile::tempdir_in(target_folder()).unwrap();
    let ledger = Ledger::open(folder.path()).unwrap();
    let name = "etl".parse().unwrap();
    let book = ledger.register(&name, informatica::SYSTEM, Catalogue::default(), start()).await.unwrap();
    let (cpu, clock) = (cpu_seconds(), Instant::now());
    let mut decoder = Decoder::new(Ignore::default());
    for page in &pages {
        let items = decoder.items(page.as_bytes()).unwrap();
        ledger.commit(&book, commit_of(items, None, start())).await.unwrap();
    }
    let events = (pages.len() * PAGE) as f64;
    assert_eq!(book.state().total(Counter::Events), (pages.len() * PAGE) as u64);
    let name = "… and a durable commit per page of 1,000";
    print_rate(name, events, "events", "200,000", cpu_seconds() - cpu, clock.elapsed());
}

/// A disk in memory that takes its time to flush.
#[derive(Clone, Debug)]
struct SlowDisk(Arc<redb::backends::InMemoryBackend>);

impl redb::StorageBackend for SlowDisk {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        std::thread::sleep(Duration::from_millis(10));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.0.write(offset, data)
    }
}

/// A thousand sources that are made known, and a hundred that commit an event each second.
async fn slow_disk() {
    let disk = SlowDisk(Arc::new(redb::backends::InMemoryBackend::new()));
    let ledger =
        Ledger::open_with(Box::new(move || redb::Database::builder().create_with_backend(disk.clone()))).unwrap();
    let mut catalogue = Catalogue::default();
    catalogue.add(&["user", "role"], &["create", "update", "delete"], &[Outcome::Success], Class::Change);
    let registration = |n: usize| Registration {
        name: format!("source{n}").parse().unwrap(),
        system: losant::SYSTEM,
        catalogue: catalogue.clone(),
    };
    let clock = Instant::now();
    let books = ledger.register_all((0..1000).map(registration).collect(), start()).await.unwrap();
    let took = clock.elapsed().as_secs_f64() * 1000.0;
    println!("{:<58} {took:>13.1} ms {:>16}   under 1,000 ms", "1,000 sources made known, flush of 10 ms", "");
    let mut waits = Vec::new();
    let labels = EventLabels {
        category: Label::from_words("user"),
        action: Label::from_words("create"),
        outcome: Outcome::Success,
        class: Class::Change,
    };
    for second in 0..10_u64 {
        let begun = Instant::now();
        let commits = books[..100].iter().map(|book| {
            let (ledger, book, labels) = (ledger.clone(), Arc::clone(book), labels.clone());
            let at = Some(start());
            let key = EventKey::of("bench", &[&second.to_le_bytes()]);
            let items = vec![Item { key, at, filed_at: at, what: What::Event(labels) }];
            let commit = commit_of(items, None, start());
            tokio::spawn(async move {
                ledger.commit(&book, commit).await.unwrap();
                begun.elapsed().as_secs_f64() * 1000.0
            })
        });
        for commit in commits.collect::<Vec<_>>() {
            waits.push(commit.await.unwrap());
        }
        tokio::time::sleep(Duration::from_secs(1).saturating_sub(begun.elapsed())).await;
    }
    waits.sort_by(f64::total_cmp);
    let (p50, p99) = (waits[500], waits[990]);
    println!("{:<58} {p50:>13.1} ms {p99:>13.1} ms   p50 and p99", "100 sources commit at once, flush of 10 ms");
}

/// The source as it is, from login to commit, against a server of ready-made pages.
async fn over_http() {
    const EVENTS: usize = 300_000;
    let from = Clock::machine().now() - TimeDelta::hours(9);
    let first_event = from + TimeDelta::minutes(1);
    let pages: Arc<Vec<String>> = Arc::new((0..EVENTS / PAGE).map(|n| page(n * PAGE, first_event)).collect());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let answer = serde_json::json!({
        "products": [{"name": "Integration Cloud", "baseApiUrl": format!("{origin}/saas")}],
        "userInfo": {"sessionId": "s"},
    })
    .to_string();
    let log = move |Query(query): Query<HashMap<String, String>>| {
        // everything lies in the one gap that is read first; the newest window is empty
        let in_gap = query["q"].contains(&from.format("%Y-%m-%dT%H").to_string());
        let skip: usize = query.get("skip").map_or(0, |skip| skip.parse().unwrap());
        let empty = String::from("{\"entries\":[]}");
        let page = if in_gap { pages.get(skip / PAGE).cloned().unwrap_or(empty) } else { empty };
        async move { ([("content-type", "application/json")], page) }
    };
    let router = axum::Router::new()
        .route("/saas/public/core/v3/login", post(move || async move { answer }))
        .route("/saas/public/core/v3/securityLog", get(log));
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { axum::serve(listener, router).await.unwrap() });
    });
    let folder = tempfile::tempdir_in(target_folder()).unwrap();
    let text = format!(
        "storage: {{path: {}}}\nsources:\n  informatica:\n    - name: etl\n      login_url: {origin}\n      username: u\n      password: p\n      \
         initial_lookback: 9h\n      rate_limit: {{requests: 100000, per: 1s, burst: 1000}}\n",
        folder.path().display()
    );
    let config = parse(&text, Path::new("bench.yml")).unwrap();
    let ledger = Ledger::open(folder.path()).unwrap();
    let (cpu, clock) = (cpu_seconds(), Instant::now());
    let exporter = Exporter::start(config, edges(ledger, Clock::machine())).await.unwrap();
    while exporter.status().sources[0].events < EVENTS as u64 {
        assert!(clock.elapsed() < Duration::from_mins(2), "{:?}", exporter.status());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let name = "… over HTTP, the local server's CPU time included";
    print_rate(name, EVENTS as f64, "events", "100,000", cpu_seconds() - cpu, clock.elapsed());
    exporter.stop().await;
}

// --- Index Exchange ---

fn rows() {
    let mut csv = String::from(
        "auction_id,timestamp,country,state,dma,zip_postal,device_type,operating_system,browser,partner_id,site_id,creative_type,domain,app_bundle,inventory_channel,supply_source,slot_id,size,event_type,event_opportunity,gross_revenue,net_revenue,dsp\n",
    );
    while csv.len() < 64 << 20 {
        let n = csv.len();
        writeln!(
            csv,
            "{n:032x},2026-02-12T01:{:02}:{:02}Z,US,CA,807,94105,mobile,Android,Chrome,{},{},banner,example.com,-1,web,direct,{},300x250,impression,1,0.00{},0.00{},XXXX",
            n % 60, n % 59, n % 1000, n % 7777, n % 31, n % 997, n % 991
        )
        .unwrap();
    }
    let megabytes = csv.len() as f64 / 1e6;
    rate("Index Exchange: CSV, in pieces of 64 KiB", megabytes, "MB", "200", || {
        let mut counter = RowCounter::new();
        for piece in csv.as_bytes().chunks(64 << 10) {
            counter.feed(piece).unwrap();
        }
        assert!(counter.finish().unwrap().by_action.values().sum::<u64>() > 100_000);
    });
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut packed, csv.as_bytes()).unwrap();
    let packed = packed.finish().unwrap();
    rate("Index Exchange: the same, gzip", megabytes, "MB", "", || {
        let mut unpacked = flate2::write::MultiGzDecoder::new(Counted(RowCounter::new()));
        for piece in packed.chunks(64 << 10) {
            std::io::Write::write_all(&mut unpacked, piece).unwrap();
        }
        let counter = unpacked.finish().unwrap().0;
        assert!(counter.finish().unwrap().by_action.values().sum::<u64>() > 100_000);
    });
}

/// Rows as they are unpacked.
struct Counted(RowCounter);

impl std::io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.feed(bytes).unwrap();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

// --- /metrics ---

async fn scrapes() {
    let folder = tempfile::tempdir_in(target_folder()).unwrap();
    let ledger = Ledger::open(folder.path()).unwrap();
    let mut config = demo::config("http://127.0.0.1:9", folder.path(), "0s").unwrap();
    config.sources.retain(|source| source.system() == losant::SYSTEM);
    let clock = Clock::machine();
    let exporter = Exporter::start(config, edges(ledger.clone(), clock.clone())).await.unwrap();
    let name = "iot".parse().unwrap();
    let book = ledger.register(&name, losant::SYSTEM, Catalogue::default(), clock.now()).await.unwrap();
    let mut items = Vec::new();
    for category in 0..50 {
        for action in 0..50 {
            for outcome in [Outcome::Success, Outcome::Failure] {
                let labels = EventLabels {
                    category: Label::from_words(&format!("category {category}")),
                    action: Label::from_words(&format!("action {action}")),
                    outcome,
                    class: Class::Change,
                };
                let key = EventKey::of(
                    "bench",
                    &[category.to_string().as_bytes(), action.to_string().as_bytes(), outcome.as_str().as_bytes()],
                );
                items.push(Item { key, at: None, filed_at: None, what: What::Event(labels) });
            }
        }
    }
    loop {
        let checkpoint = book.state().checkpoint().cloned();
        if ledger.commit(&book, commit_of(items.clone(), checkpoint, clock.now())).await.is_ok() {
            break;
        }
    }
    for (name, format) in [("text", Format::Text), ("OpenMetrics", Format::OpenMetrics), ("protobuf", Format::Protobuf)]
    {
        exporter.metrics(format).await;
        let mut times = Vec::new();
        let mut bytes = 0;
        for _ in 0..500 {
            let clock = Instant::now();
            bytes = exporter.metrics(format).await.len();
            times.push(clock.elapsed().as_secs_f64() * 1000.0);
        }
        times.sort_by(f64::total_cmp);
        let page = exporter.metrics(Format::Text).await;
        let series = page.split(|byte| *byte == b'\n').filter(|line| !line.is_empty() && line[0] != b'#').count();
        let goal = if name == "protobuf" { "p99 under 5 ms" } else { "p99 under 10 ms" };
        let figure = format!("/metrics as {name}, {series} series, {bytes} bytes");
        println!("{figure:<58} {:>13.2} ms {:>13.2} ms   p50 and p99; {goal}", times[250], times[495]);
    }
    exporter.stop().await;
}

// --- the program ---

struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn status(child: &Child, key: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

fn get_page(address: SocketAddr, path: &str) -> Option<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

fn whole_program() {
    let binary = env!("CARGO_BIN_EXE_audit-exporter");
    let size = std::fs::metadata(binary).unwrap().len() as f64 / 1e6;
    println!("{:<58} {size:>13.1} MB {:>16}   under 20 MB", "release binary", "");

    let (_services, origin) = quiet_services();
    let folder = tempfile::tempdir_in(target_folder()).unwrap();
    let config = folder.path().join("audit-exporter.yml");
    std::fs::write(&config, demo::config_text(&origin, &folder.path().join("data"), "5s", demo::FAST)).unwrap();
    let mut starts = Vec::new();
    for round in 0..6 {
        let (exporter, address, ready) = started(&config);
        starts.push(ready.as_secs_f64() * 1000.0);
        if round == 5 {
            std::thread::sleep(Duration::from_secs(20));
            get_page(address, "/metrics").unwrap();
            let rss = status(&exporter.0, "VmRSS");
            println!("{:<58} {rss:>13.1} MB {:>16}   under 20 MB", "RSS with five idle sources, 20 s after start", "");
        }
    }
    println!("{:<58} {:>13.1} ms {:>16}   under 100 ms", "start to ready, new store", starts[0], "");
    starts.remove(0);
    starts.sort_by(f64::total_cmp);
    println!("{:<58} {:>13.1} ms {:>16}   under 100 ms", "start to ready, median of 5", starts[2], "");
}

/// The simulated services without traffic, and where they are.
fn quiet_services() -> (Program, String) {
    let mut services = Command::new(env!("CARGO_BIN_EXE_audit-exporter"));
    services.args(["simulate", "--listen=127.0.0.1:0", "--quiet"]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut services = Program(services.spawn().unwrap());
    let mut line = String::new();
    BufReader::new(services.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (services, line.trim().rsplit(' ').next().unwrap().to_owned())
}

/// The program with this configuration, where it serves, and how long it took to be ready.
fn started(config: &Path) -> (Program, SocketAddr, Duration) {
    let address: SocketAddr = format!("127.0.0.1:{}", free_port()).parse().unwrap();
    let clock = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_audit-exporter"));
    command.arg(format!("--config.file={}", config.display())).arg(format!("--web.listen-address={address}"));
    let exporter = Program(command.stderr(Stdio::null()).spawn().unwrap());
    while !get_page(address, "/-/ready").is_some_and(|page| page.starts_with("HTTP/1.1 200")) {
        assert!(clock.elapsed() < Duration::from_mins(2));
        std::thread::sleep(Duration::from_millis(1));
    }
    (exporter, address, clock.elapsed())
}

/// What a source costs that has nothing to count: a thousand of them, each polled once a minute.
fn many_sources() {
    const SOURCES: usize = 1000;
    let (_services, origin) = quiet_services();
    let folder = tempfile::tempdir_in(target_folder()).unwrap();
    let config = folder.path().join("audit-exporter.yml");
    let store = folder.path().join("data");
    let mut text = format!("storage: {{path: {}}}\nsources:\n  losant:\n", store.display());
    for source in 0..SOURCES {
        let (instance, token) = (credentials::LOSANT_INSTANCE_ID, credentials::LOSANT_API_TOKEN);
        writeln!(
            text,
            "    - {{name: s{source}, base_url: '{origin}', instance_id: {instance}, api_token: {token}, initial_lookback: 5m}}"
        )
        .unwrap();
    }
    std::fs::write(&config, text).unwrap();
    for store in ["new store", "the same store"] {
        let (exporter, address, ready) = started(&config);
        let figure = format!("start to ready, {SOURCES} sources, {store}");
        println!("{figure:<58} {:>13.1} ms {:>16}   under 1000 ms", ready.as_secs_f64() * 1000.0, "");
        if store == "new store" {
            continue;
        }
        // the first polls of all
        std::thread::sleep(Duration::from_secs(75));
        let polls = || -> f64 {
            let page = get_page(address, "/metrics").unwrap();
            let lines = page.lines().filter(|line| line.starts_with("audit_source_polls_total{"));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        let (before, cpu) = (polls(), cpu_seconds_of(exporter.0.id()));
        std::thread::sleep(Duration::from_mins(1));
        let (cpu, after) = (cpu_seconds_of(exporter.0.id()) - cpu, polls());
        let rss = status(&exporter.0, "VmRSS");
        println!("{:<58} {rss:>13.1} MB {:>16}   under 130 MB", format!("RSS with {SOURCES} idle sources"), "");
        let each = cpu * 1000.0 / (after - before);
        println!("{:<58} {each:>13.2} ms {:>16}   CPU time", format!("a poll of {SOURCES} idle sources"), "");
    }
}

/// The most memory the program takes while it reads what is as large as can be: a page just under
/// `max_response_bytes` and a file of half a gigabyte.
fn peak_memory() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    serve_large(listener, &origin);
    let folder = tempfile::tempdir_in(target_folder()).unwrap();
    let common = "rate_limit: {requests: 100, per: 1s, burst: 10}\n      initial_lookback: 30m";
    let ads = format!(
        "  index_exchange:\n    - name: ads\n      base_url: {origin}\n      token_url: {origin}/token\n      client_key: bm86cGU=\n      subscriptions: [impressions]\n      rate_limit: {{requests: 100, per: 1s, burst: 10}}\n"
    );
    let etl = format!(
        "  informatica:\n    - name: etl\n      login_url: {origin}\n      username: u\n      password: p\n      {common}\n"
    );
    for (name, source, events) in [("a page of 15 MiB", etl, 1000), ("a file of 512 MB of rows", ads, 1_000_000)] {
        let store = folder.path().join(name.replace(' ', "-"));
        let config = folder.path().join("large.yml");
        std::fs::write(&config, format!("storage: {{path: {}}}\nsources:\n{source}", store.display())).unwrap();
        let address: SocketAddr = format!("127.0.0.1:{}", free_port()).parse().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_audit-exporter"));
        command.arg(format!("--config.file={}", config.display())).arg(format!("--web.listen-address={address}"));
        let exporter = Program(command.stderr(Stdio::null()).spawn().unwrap());
        let clock = Instant::now();
        let counted = |page: String| {
            let (_, rest) = page.split_once("\"events\": ")?;
            rest.split(',').next()?.trim().parse::<u64>().ok()
        };
        while get_page(address, "/api/v1/status").and_then(counted).is_none_or(|counted| counted < events) {
            assert!(clock.elapsed() < Duration::from_mins(2), "{:?}", get_page(address, "/api/v1/status"));
            std::thread::sleep(Duration::from_millis(20));
        }
        let figure = format!("peak RSS while reading {name}");
        println!("{figure:<58} {:>13.1} MB {:>16}   under 60 MB", status(&exporter.0, "VmHWM"), "");
    }
}

/// Answers of both services, each as large as can be.
fn serve_large(listener: std::net::TcpListener, origin: &str) {
    let now = Clock::machine().now();
    let session = serde_json::json!({
        "products": [{"name": "Integration Cloud", "baseApiUrl": format!("{origin}/saas")}],
        "userInfo": {"sessionId": "s"},
    })
    .to_string();
    let padding = "x".repeat(15_400);
    let entries: Vec<String> = (0..PAGE)
        .map(|n| {
            format!(
                "{{\"id\":\"{n}\",\"entryTime\":\"{}\",\"objectName\":\"{padding}\",\"actionCategory\":\"User\",\"actionEvent\":\"CREATE\"}}",
                (now - TimeDelta::minutes(5)).format("%Y-%m-%dT%H:%M:%S.000Z")
            )
        })
        .collect();
    let page = format!("{{\"entries\":[{}]}}", entries.join(","));
    let hour = (now - TimeDelta::hours(3)).format("%Y-%m-%dT%H:00:00Z").to_string();
    let list = serde_json::json!({"availableDownloads": [{
        "subscriptionID": 1, "subscriptionName": "impressions", "hour": hour, "downloadStatus": "new",
        "downloadURL": format!("{origin}/api/cal/v1/files/1"),
    }]})
    .to_string();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, b"auction_id,event_type,rest\n").unwrap();
    let rest = "y".repeat(480);
    for n in 0..1_000_000 {
        std::io::Write::write_all(&mut packed, format!("{n:016x},impression,{rest}\n").as_bytes()).unwrap();
    }
    let file = bytes::Bytes::from(packed.finish().unwrap());
    let log = move |Query(query): Query<HashMap<String, String>>| {
        let first = query.get("skip").is_none_or(|skip| skip == "0");
        let page = if first { page.clone() } else { String::from("{\"entries\":[]}") };
        async move { ([("content-type", "application/json")], page) }
    };
    let router = axum::Router::new()
        .route("/saas/public/core/v3/login", post(move || async move { session }))
        .route("/saas/public/core/v3/securityLog", get(log))
        .route("/token", post(async || r#"{"access_token":"t","expires_in":3600,"token_type":"bearer"}"#))
        .route("/api/cal/v1/downloads", get(move || async move { list }))
        .route("/api/cal/v1/files/{id}", get(move || async move { file }));
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, router).await.unwrap();
        });
    });
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A folder on the disk the project is on: `/tmp` may be memory.
fn target_folder() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

fn edges(ledger: Ledger, clock: Clock) -> Edges {
    Edges { ledger, clock, connect: Box::new(over_the_network), external_url: None, seed: 1 }
}
