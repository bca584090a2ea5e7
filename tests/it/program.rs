//! The real program as a child process, and the little HTTP that tests need of it.
//!
//! Promises: every child is killed when its handle is dropped; every wait has a deadline; what a
//! child printed is in the message of the failure.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use audit_exporter::config::duration_text;
use audit_exporter::demo;
use serde_json::Value;

use crate::exposed::{Exposed, label};

/// Keys for sources that are read as fast as a test wants it. All of the simulator's history (two
/// hours, and for files the hour it begins in) is counted, so that the counters equal its truth.
pub const EAGER: &str =
    "poll_interval: 200ms\n      rate_limit: {requests: 200, per: 1s, burst: 50}\n      initial_lookback: 4h";

/// Long for a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The time, for deadlines of tests against real processes.
#[allow(clippy::disallowed_methods, reason = "real processes take real time")]
pub fn now() -> Instant {
    Instant::now()
}

/// Asks until there is an answer. `Err` says what is still missing, for the message at the end.
pub fn eventually<T>(patience: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let end = now() + patience;
    loop {
        match look() {
            Ok(found) => return found,
            Err(missing) if now() > end => panic!("not within {}: {missing}", duration_text(patience)),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Whether tests may leave out what they have no tool for. The default is to fail: `tests/run`
/// installs the tools.
pub fn skipping_allowed() -> bool {
    std::env::var_os("AUDIT_EXPORTER_ALLOW_SKIP").is_some_and(|value| value == "1")
}

/// A tool from outside: named by an environment variable, else looked for in `PATH`. `None`, said
/// aloud, only where skipping is allowed.
pub fn tool(variable: &str, name: &str) -> Option<std::path::PathBuf> {
    let named = std::env::var_os(variable).map(std::path::PathBuf::from);
    let found = named.filter(|path| path.is_file()).or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file())
    });
    if found.is_none() {
        let missing = format!("{name} was not found: run tests/run, which installs it, or set {variable}");
        assert!(skipping_allowed(), "{missing}");
        skipped(&missing);
    }
    found
}

/// Python with the packages of `tests/requirements.txt`.
pub fn python() -> Option<std::path::PathBuf> {
    let python = std::env::var_os("AUDIT_EXPORTER_PYTHON").map(std::path::PathBuf::from).filter(|path| path.is_file());
    if python.is_none() {
        let missing = "a Python with the packages of tests/requirements.txt was not found: run tests/run, which makes \
                       one, or set AUDIT_EXPORTER_PYTHON";
        assert!(skipping_allowed(), "{missing}");
        skipped(missing);
    }
    python
}

pub fn skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    eprintln!("SKIPPED: {test}, {why}");
    // for the summary of tests/run: the output of a test that passes is not shown
    if let Some(summary) = std::env::var_os("AUDIT_EXPORTER_SKIPPED") {
        let mut summary = std::fs::OpenOptions::new().create(true).append(true).open(summary).unwrap();
        writeln!(summary, "SKIPPED: {test}, {why}").unwrap();
    }
}

/// A file of this repository.
pub fn in_repository(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A port that nobody listens on at the moment.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A child process and everything it has printed.
pub struct Process {
    child: Child,
    printed: Arc<Mutex<String>>,
    readers: Vec<std::thread::JoinHandle<()>>,
}

impl Process {
    pub fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let printed = Arc::new(Mutex::new(String::new()));
        let readers = vec![
            gather(child.stdout.take().unwrap(), Arc::clone(&printed)),
            gather(child.stderr.take().unwrap(), Arc::clone(&printed)),
        ];
        Self { child, printed, readers }
    }

    /// What it has printed so far, on either stream.
    pub fn printed(&self) -> String {
        self.printed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it has printed something in which `look` finds what it looks for.
    pub fn until_printed<T>(&mut self, what: &str, look: impl Fn(&str) -> Option<T>) -> T {
        eventually(PATIENCE, || {
            let ended = self.child.try_wait().unwrap();
            let printed = self.printed();
            if let Some(found) = look(&printed) {
                return Ok(found);
            }
            assert!(ended.is_none(), "it ended ({ended:?}) without printing {what}:\n{printed}");
            Err(format!("{what} in:\n{printed}"))
        })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// `kill -9`. What it had printed.
    pub fn kill(mut self) -> String {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        self.printed()
    }

    /// Sends a signal by name, as `kill` does.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.id().to_string()]).status().unwrap();
        assert!(sent.success(), "kill -s {name}");
    }

    /// Waits for its end; what it printed is complete then.
    pub fn ended(mut self, patience: Duration) -> (ExitStatus, String) {
        let status = eventually(patience, || {
            self.child.try_wait().unwrap().ok_or_else(|| format!("its end; it printed:\n{}", self.printed()))
        });
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        (status, self.printed())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn gather(from: impl Read + Send + 'static, into: Arc<Mutex<String>>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            let Ok(line) = line else { return };
            let mut into = into.lock().unwrap_or_else(PoisonError::into_inner);
            into.push_str(&line);
            into.push('\n');
        }
    })
}

/// The program with these arguments, not started yet: the one built with the tests, or another
/// build of it that the environment names.
pub fn program(arguments: &[&str]) -> Command {
    let binary = std::env::var_os("AUDIT_EXPORTER_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_audit-exporter").into());
    let mut command = Command::new(binary);
    command.args(arguments);
    command
}

/// What a call that ends by itself said.
pub struct Finished {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Runs the program to its end, which must come soon.
pub fn finish(arguments: &[&str]) -> Finished {
    let mut command = program(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let printed = [Arc::default(), Arc::default()];
    let readers = [
        gather(child.stdout.take().unwrap(), Arc::clone(&printed[0])),
        gather(child.stderr.take().unwrap(), Arc::clone(&printed[1])),
    ];
    let end = now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if now() > end {
            child.kill().unwrap();
            panic!("{arguments:?} does not end; it printed {}", printed[1].lock().unwrap());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    for reader in readers {
        reader.join().unwrap();
    }
    let [stdout, stderr] = printed.map(|printed| printed.lock().unwrap().clone());
    Finished { code: status.code().expect("it was not killed"), stdout, stderr }
}

/// A running exporter or simulator and its address, `127.0.0.1:PORT`.
pub struct Running {
    pub process: Process,
    pub address: String,
}

impl Running {
    /// The exporter on a port of its own.
    pub fn exporter(config: &Path, more: &[&str]) -> Self {
        let file = format!("--config.file={}", config.display());
        Self::exporter_by(program(&[&file, "--web.listen-address=127.0.0.1:0"]).args(more))
    }

    /// The exporter as this command starts it.
    pub fn exporter_by(command: &mut Command) -> Self {
        Self::started(Process::start(command))
    }

    /// An exporter that was started with `--web.listen-address=127.0.0.1:0`.
    pub fn started(mut process: Process) -> Self {
        let address = process.until_printed("the address it serves on", |printed| {
            let line = printed.lines().find(|line| line.contains("serving") && line.contains("address="))?;
            let address = line.split("address=").nth(1)?;
            Some(address.split_whitespace().next()?.trim_matches('"').to_owned())
        });
        // over TLS it refuses this question, which is for the test to ask then
        eventually(PATIENCE, || match ask(&address, "GET", "/-/ready", &[], "").status {
            503 => Err(format!("readiness; it printed:\n{}", process.printed())),
            _ => Ok(()),
        });
        Self { process, address }
    }

    /// The simulated services on a port of their own.
    pub fn simulator(more: &[&str]) -> Self {
        let mut process = Process::start(program(&["simulate", "--listen=127.0.0.1:0"]).args(more));
        let address = process.until_printed("the address it serves on", |printed| {
            Some(printed.lines().next()?.strip_prefix("simulated services at http://")?.to_owned())
        });
        Self { process, address }
    }

    pub fn get(&self, path: &str) -> Answer {
        ask(&self.address, "GET", path, &[], "")
    }

    pub fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        ask(&self.address, "GET", path, headers, "")
    }

    pub fn post(&self, path: &str, body: &str) -> Answer {
        ask(&self.address, "POST", path, &[], body)
    }

    /// `/metrics` as text 0.0.4.
    pub fn scrape(&self) -> Exposed {
        let page = self.get("/metrics");
        assert_eq!(page.status, 200, "{page}");
        Exposed::parse(&page.text())
    }

    /// What the simulator says must have been counted by now.
    pub fn truth(&self) -> Counts {
        self.truth_of("")
    }

    /// The same of some of the events, as the query says.
    pub fn truth_of(&self, query: &str) -> Counts {
        let truth = self.get(&format!("/simulator/truth{query}")).json();
        let text = |event: &Value, key: &str| event[key].as_str().unwrap().to_owned();
        truth["events"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| {
                let key = ["system", "category", "action", "outcome"].map(|name| text(event, name));
                (key, event["count"].as_u64().unwrap())
            })
            .collect()
    }
}

/// Events by system, category, action and outcome; none that is 0.
pub type Counts = std::collections::BTreeMap<[String; 4], u64>;

/// `audit_events_total` of a page, as a truth has it.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub fn counted(page: &Exposed) -> Counts {
    let events = page.beginning("audit_events_total{").filter(|(_, value)| **value > 0.0);
    events.map(|(name, value)| (event_labels(|wanted| label(name, wanted)), *value as u64)).collect()
}

/// The labels of a series of `audit_events_total` in the order of [`Counts`].
pub fn event_labels(label: impl Fn(&str) -> String) -> [String; 4] {
    ["system", "category", "action", "outcome"].map(label)
}

/// What differs, in words.
pub fn difference(counted: &Counts, truth: &Counts) -> String {
    let mut lines = Vec::new();
    for key in counted.keys().chain(truth.keys().filter(|key| !counted.contains_key(*key))) {
        let of = |counts: &Counts| counts.get(key).copied().unwrap_or(0);
        if of(counted) != of(truth) {
            lines.push(format!("{}: counted {}, happened {}", key.join(" "), of(counted), of(truth)));
        }
    }
    lines.join("\n")
}

/// Waits until the exporter shows what the simulator says has happened, neither changing meanwhile.
pub fn until_exact(exporter: &Running, simulator: &Running, patience: Duration) -> Counts {
    eventually(patience, || {
        let before = simulator.truth();
        let page = exporter.scrape();
        let counted = counted(&page);
        if simulator.truth() != before {
            return Err("the simulator to be silent".into());
        }
        if counted == before {
            return Ok(before);
        }
        Err(format!("counts equal the truth; these differ:\n{}", difference(&counted, &before)))
    })
}

/// A configuration file for all systems at a simulator, its store beside it.
pub fn config_file(folder: &Path, simulator: &Running, hold: &str, common: &str) -> std::path::PathBuf {
    let path = folder.join("audit-exporter.yml");
    let text = config_text(&format!("http://{}", simulator.address), folder, hold, common);
    std::fs::write(&path, text).unwrap();
    path
}

/// The text of such a file.
pub fn config_text(origin: &str, folder: &Path, hold: &str, common: &str) -> String {
    demo::config_text(origin, &folder.join("data"), hold, common)
}

/// An HTTP answer.
#[derive(Clone)]
pub struct Answer {
    pub status: u16,
    head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's values, joined by `, `; empty where there is none.
    pub fn header(&self, name: &str) -> String {
        let lines = self.head.lines().skip(1);
        let found = lines.filter_map(|line| line.split_once(": ")).filter(|(is, _)| is.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value).collect::<Vec<_>>().join(", ")
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self}"))
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n\n{}", self.head, String::from_utf8_lossy(&self.body))
    }
}

/// One request over a connection of its own, sent exactly as given: no header of a library's making.
pub fn ask(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    try_ask(address, method, path, headers, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
}

/// The same, where the other side may be gone.
pub fn try_ask(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let headers = headers.iter().fold(String::new(), |head, (name, value)| head + name + ": " + value + "\r\n");
    let length = body.len();
    stream.write_all(
        format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n\
             {headers}\r\n{body}"
        )
        .as_bytes(),
    )?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let cut = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the answer is cut off");
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Err(cut) };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let mut answer = Answer { status, head, body: bytes[end + 4..].to_vec() };
    if answer.header("transfer-encoding") == "chunked" {
        answer.body = joined(&answer.body).ok_or(cut)?;
    } else if let Ok(length) = answer.header("content-length").parse::<usize>()
        && method != "HEAD"
        && answer.body.len() != length
    {
        return Err(cut);
    }
    Ok(answer)
}

/// The chunks of a body put together; `None` if the last one is missing.
fn joined(mut chunks: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = chunks.windows(2).position(|two| two == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&chunks[..end]).ok()?, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(chunks.get(end + 2..end + 2 + size)?);
        chunks = chunks.get(end + 4 + size..)?;
    }
}
