//! The process among others: what it does when nobody reads what it writes, when it is told to end, when it may open
//! few files, and what it leaves behind.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::program::{
    EAGER, PATIENCE, Process, Running, ask, config_file, config_text, eventually, finish, in_repository, now, program,
    skipped, try_ask,
};

/// Longer than any of the program's own deadlines at its end.
const END: Duration = Duration::from_secs(20);

/// A port that was free a moment ago, for a program that cannot tell its own.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// A pipe that takes nothing more.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut filler = writer.try_clone().unwrap();
    // as much as a pipe holds; where it holds less, this thread waits with the rest
    std::thread::spawn(move || filler.write_all(&vec![b'\n'; 65536]));
    std::thread::sleep(Duration::from_millis(300));
    (reader, writer)
}

/// A child that is killed at the end of the test, whatever it does.
struct Kept(Child);

impl Kept {
    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args(["-s", name, &self.0.id().to_string()]).status().unwrap().success());
    }

    fn ended(&mut self) -> ExitStatus {
        eventually(END, || self.0.try_wait().unwrap().ok_or_else(|| "its end".to_owned()))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until_ready(address: &str) {
    eventually(PATIENCE, || match try_ask(address, "GET", "/-/ready", &[], "") {
        Ok(answer) if answer.status == 200 => Ok(()),
        Ok(answer) => Err(answer.to_string()),
        Err(error) => Err(error.to_string()),
    });
}

fn dropped_lines(address: &str) -> u64 {
    let page = ask(address, "GET", "/metrics", &[], "").text();
    let line = page.lines().find_map(|line| line.strip_prefix("audit_exporter_log_lines_dropped_total "));
    line.expect("the family is there").parse().unwrap()
}

#[test]
fn a_standard_error_that_nobody_reads_holds_up_nothing_and_what_is_missing_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--rate=0.05"]);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    let (reader, writer) = full_pipe();
    let address = free_address();
    let (file, listen) = (format!("--config.file={}", config.display()), format!("--web.listen-address={address}"));
    let mut command = program(&[&file, &listen, "--log.level=debug"]);
    let mut exporter = Kept(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer).spawn().unwrap());
    // what holds the writing end of the pipe here
    drop(command);
    until_ready(&address);
    assert_eq!(dropped_lines(&address), 0);
    // each of these is a line; more of them than can wait
    let flood = || {
        for _ in 0..500 {
            if let Ok(mut stream) = TcpStream::connect(&address) {
                let _ = stream.write_all(b"nonsense\r\n\r\n");
                let _ = stream.read_to_end(&mut Vec::new());
            }
        }
    };
    eventually(Duration::from_mins(2), || {
        flood();
        match dropped_lines(&address) {
            0 => Err("a line that was dropped".into()),
            _ => Ok(()),
        }
    });
    let begun = now();
    assert_eq!(ask(&address, "GET", "/-/healthy", &[], "").status, 200);
    assert!(begun.elapsed() < Duration::from_secs(5));

    // somebody reads again: what waited comes whole, and the log says that there was more
    let (lines, read) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(reader).lines().map_while(Result::ok) {
            let _ = lines.send(line);
        }
    });
    let missing = loop {
        let line = read.recv_timeout(PATIENCE).expect("a line that tells how many are missing");
        // what filled the pipe was empty lines
        assert!(line.is_empty() || line.starts_with("ts=") && line.contains(" level="), "a whole line: {line:?}");
        if line.contains("log lines are missing here") {
            break line.split(" dropped=").nth(1).unwrap().split(' ').next().unwrap().parse::<u64>().unwrap();
        }
    };
    assert!((1..=dropped_lines(&address)).contains(&missing), "{missing}");
    exporter.signal("TERM");
    assert_eq!(exporter.ended().code(), Some(0));
}

#[test]
fn a_stop_is_heard_while_nobody_reads_standard_error() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--rate=0.05"]);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    let file = format!("--config.file={}", config.display());
    for signal in ["TERM", "INT"] {
        let (_reader, writer) = full_pipe();
        let address = free_address();
        let listen = format!("--web.listen-address={address}");
        let mut command = program(&[&file, &listen, "--log.level=debug"]);
        let mut exporter = Kept(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer).spawn().unwrap());
        until_ready(&address);
        exporter.signal(signal);
        assert_eq!(exporter.ended().code(), Some(0), "{signal}");
    }
}

/// What a stream of the program can be.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Broken {
    Closed,
    NobodyReads,
    Full,
}

impl Broken {
    const ALL: [Broken; 3] = [Broken::Closed, Broken::NobodyReads, Broken::Full];

    /// The program with its standard output (1) or its standard error (2) like this.
    fn program(self, stream: u8, arguments: &[&str]) -> Command {
        let whole = program(arguments);
        let mut command = Command::new("sh");
        let how = match self {
            Broken::Closed => format!("exec \"$0\" \"$@\" {stream}>&-"),
            Broken::Full => format!("exec \"$0\" \"$@\" {stream}>/dev/full"),
            Broken::NobodyReads => "exec \"$0\" \"$@\"".to_owned(),
        };
        command.arg("-c").arg(how).arg(whole.get_program()).args(whole.get_args());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if self == Broken::NobodyReads {
            let (_, writer) = std::io::pipe().unwrap();
            if stream == 1 {
                command.stdout(writer)
            } else {
                command.stderr(writer)
            };
        }
        command
    }

    /// How it ends, and what it says on the other stream.
    fn finish(self, stream: u8, arguments: &[&str]) -> (Option<i32>, String) {
        let done = self.program(stream, arguments).output().unwrap();
        let other = if stream == 1 { done.stderr } else { done.stdout };
        (done.status.code(), String::from_utf8(other).unwrap())
    }
}

#[test]
fn an_output_that_is_closed_or_full_changes_no_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--rate=0.05"]);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o600)).unwrap();
    let good = &format!("--config.file={}", config.display());
    let good = good.as_str();
    let bad = folder.path().join("bad.yml");
    std::fs::write(&bad, "nonsense: 1\n").unwrap();
    let bad = &format!("--config.file={}", bad.display());
    let bad = bad.as_str();
    let exporter = Running::exporter(&config, &[]);
    for broken in Broken::ALL {
        for (arguments, code) in [
            (&["--version"][..], 0),
            (&["--help"][..], 0),
            (&["doctor", "--help"][..], 0),
            (&["check", good][..], 0),
            (&["doctor", good, "--source=iot"][..], 0),
        ] {
            let (ended, stderr) = broken.finish(1, arguments);
            assert_eq!(ended, Some(code), "{broken:?} {arguments:?}: {stderr}");
            assert!(!stderr.contains("panic"), "{broken:?} {arguments:?}: {stderr}");
            assert!(
                broken == Broken::Full || !stderr.contains("standard output"),
                "{broken:?} {arguments:?}: {stderr}"
            );
        }
        for arguments in
            [&["--no.such.flag"][..], &["check", bad][..], &[bad][..], &[][..], &["doctor", good, "--source=none"][..]]
        {
            let (ended, stdout) = broken.finish(2, arguments);
            assert_eq!((ended, stdout.as_str()), (Some(2), ""), "{broken:?} {arguments:?}");
        }
        // the store is in use
        let (ended, _) = broken.finish(2, &[good, "--web.listen-address=127.0.0.1:0"]);
        assert_eq!(ended, Some(1), "{broken:?}");
    }
    drop(exporter);
}

#[test]
fn what_goes_on_goes_on_when_its_output_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    for broken in Broken::ALL {
        for stream in [1, 2] {
            let address = free_address();
            let listen = format!("--listen={address}");
            let mut command = broken.program(stream, &["simulate", &listen, "--quiet"]);
            let mut simulator = Kept(command.spawn().unwrap());
            eventually(PATIENCE, || try_ask(&address, "GET", "/simulator/truth", &[], "").map_err(|e| e.to_string()));
            simulator.signal("TERM");
            assert_eq!(simulator.ended().code(), Some(0), "{broken:?} {stream}");

            let address = free_address();
            let listen = format!("--web.listen-address={address}");
            let mut command = broken.program(stream, &["demo", &listen]);
            let mut demo = Kept(command.env("TMPDIR", folder.path()).spawn().unwrap());
            until_ready(&address);
            assert_eq!(ask(&address, "GET", "/metrics", &[], "").status, 200);
            demo.signal("TERM");
            assert_eq!(demo.ended().code(), Some(0), "{broken:?} {stream}");
        }
    }
}

/// A configuration whose only source never answers.
fn of_a_silent_service(folder: &Path) -> (TcpListener, String) {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = format!("http://{}", silent.local_addr().unwrap());
    let path = folder.join("silent.yml");
    let text = format!(
        "storage: {{path: data}}\nsources: {{losant: [{{name: iot, base_url: \"{origin}\", instance_id: i, api_token: t}}]}}\n"
    );
    std::fs::write(&path, text).unwrap();
    (silent, format!("--config.file={}", path.display()))
}

#[test]
fn a_command_that_waits_ends_at_once_with_its_own_code_when_it_is_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let (silent, file) = of_a_silent_service(folder.path());
    let fifo = folder.path().join("fifo.yml");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let fifo = format!("--config.file={}", fifo.display());
    for (signal, code) in [("TERM", 143), ("INT", 130), ("HUP", 129)] {
        let mut doctor = Process::start(&mut program(&["doctor", &file]));
        doctor.until_printed("that it asks", |printed| printed.contains("asking the service").then_some(()));
        let begun = now();
        doctor.signal(signal);
        // by a handler: the first process of a container does not get signals that have none
        assert_eq!(doctor.ended(END).0.code(), Some(code), "{signal}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{signal}");
        for command in ["check", "doctor"] {
            let waiting = Process::start(&mut program(&[command, &fifo]));
            until_handled(&waiting, 1);
            waiting.signal(signal);
            assert_eq!(waiting.ended(END).0.code(), Some(code), "{command} {signal}");
        }
    }
    drop(silent);
}

/// Waits until a process has a handler for a signal.
fn until_handled(process: &Process, signal: u32) {
    eventually(PATIENCE, || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim();
        let handled = u64::from_str_radix(mask, 16).unwrap() & (1 << (signal - 1)) != 0;
        if handled { Ok(()) } else { Err(format!("a handler of signal {signal}")) }
    });
}

#[test]
fn the_first_process_of_a_container_ends_when_it_is_told_to() {
    let allowed = Command::new("unshare").args(["--pid", "--fork", "true"]).stderr(Stdio::null()).status();
    if !allowed.is_ok_and(|status| status.success()) {
        skipped("unshare may not make a namespace of processes here");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (silent, file) = of_a_silent_service(folder.path());
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let whole = program(&["doctor", &file]);
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child"]).arg(whole.get_program()).args(whole.get_args());
        let mut outside = Process::start(&mut command);
        outside.until_printed("that it asks", |printed| printed.contains("asking the service").then_some(()));
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", outside.id())).unwrap();
        assert!(Command::new("kill").args(["-s", signal, children.trim()]).status().unwrap().success());
        assert_eq!(outside.ended(END).0.code(), Some(code), "{signal}");
    }
    drop(silent);
}

/// The program under a limit of open files, as `ulimit` sets it.
fn limited(ulimit: &str, arguments: &[&str]) -> Command {
    let whole = program(arguments);
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit {ulimit}; exec \"$0\" \"$@\"")]).arg(whole.get_program()).args(arguments);
    command
}

#[test]
fn few_open_files_and_many_silent_clients_keep_no_scrape_out() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--rate=0.05"]);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    let file = format!("--config.file={}", config.display());
    let exporter = Running::exporter_by(&mut limited("-n 64", &[&file, "--web.listen-address=127.0.0.1:0"]));
    let silent: Vec<_> = (0..300).map(|_| TcpStream::connect(&exporter.address).unwrap()).collect();
    for _ in 0..5 {
        let begun = now();
        let page = exporter.get("/metrics");
        assert_eq!(page.status, 200, "{page}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
    // its sources have open files, too
    let polls = |result: &str| exporter.scrape().sum("audit_source_polls_total", &[&format!("result=\"{result}\"")]);
    let before = polls("success");
    eventually(PATIENCE, || if polls("success") > before + 5.0 { Ok(()) } else { Err("more good polls".into()) });
    assert!(polls("error") < 1.0, "{}", exporter.process.printed());
    drop(silent);
}

#[test]
fn the_limit_of_open_files_is_raised_as_far_as_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--quiet"]);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    let file = format!("--config.file={}", config.display());
    let exporter = Running::exporter_by(&mut limited("-S -n 64", &[&file, "--web.listen-address=127.0.0.1:0"]));
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", exporter.process.id())).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let [soft, hard] = line.split_whitespace().take(2).collect::<Vec<_>>()[..] else { panic!("{line}") };
    assert_eq!(soft, hard);
}

#[test]
fn each_of_many_connections_of_one_address_is_answered_or_told_why_not() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--quiet"]);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    let exporter = Running::exporter(&config, &[]);
    let connect = |_| {
        let stream = TcpStream::connect(&exporter.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let mut streams: Vec<TcpStream> = (0..80).map(connect).collect();
    std::thread::sleep(Duration::from_millis(500));
    let mut statuses = Vec::new();
    for stream in &mut streams {
        // whoever was told already may find that it cannot ask any more
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).unwrap_or_else(|| panic!("no answer: {ended:?} {answer:?}")).to_owned();
        let told = answer.contains("Retry-After: ") && answer.contains("too many connections");
        assert!(status == "200" || (status == "503" && told), "{answer}");
        statuses.push(status);
    }
    assert_eq!(statuses.iter().filter(|status| *status == "200").count(), 64, "{statuses:?}");
}

/// The keys of a log line, in their order.
fn keys_of_logfmt(line: &str) -> Vec<String> {
    let (mut keys, mut rest) = (Vec::new(), line);
    while let Some((key, value)) = rest.split_once('=') {
        keys.push(key.trim().to_owned());
        rest = match value.strip_prefix('"') {
            None => value.split_once(' ').map_or("", |(_, rest)| rest),
            Some(quoted) => {
                let mut escaped = false;
                let end = quoted.find(|c| {
                    let end = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    end
                });
                &quoted[end.expect("a closing quote") + 1..]
            }
        };
    }
    keys
}

fn keys_of_json(line: &str) -> Vec<String> {
    struct Keys(Vec<String>);
    impl<'de> serde::Deserialize<'de> for Keys {
        fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            struct All;
            impl<'de> serde::de::Visitor<'de> for All {
                type Value = Keys;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("an object")
                }
                fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                    let mut keys = Vec::new();
                    while let Some((key, _)) = map.next_entry::<String, serde_json::Value>()? {
                        keys.push(key);
                    }
                    Ok(Keys(keys))
                }
            }
            from.deserialize_map(All)
        }
    }
    serde_json::from_str::<Keys>(line).unwrap_or_else(|error| panic!("{error}: {line}")).0
}

#[test]
fn the_log_says_once_that_all_is_well_and_no_line_has_a_key_twice() {
    for format in ["logfmt", "json"] {
        let folder = tempfile::tempdir().unwrap();
        let simulator = Running::simulator(&["--rate=0.05"]);
        let config = config_file(folder.path(), &simulator, "1s", EAGER);
        let (file, format_is) = (format!("--config.file={}", config.display()), format!("--log.format={format}"));
        let call = [&file, "--web.listen-address=127.0.0.1:0", "--log.level=debug", &format_is];
        let mut exporter = Process::start(&mut program(&call));
        let good = |printed: &str| printed.lines().filter(|line| line.contains("first good poll")).count();
        exporter.until_printed("a good poll of each source", |printed| (good(printed) >= 5).then_some(()));
        // lines of failures, too
        simulator.post(
            "/simulator/faults",
            r#"{"losant": {"error": 1}, "canvas": {"html": 1}, "activid": {"throttle": 1}}"#,
        );
        exporter.until_printed("a failure", |printed| printed.contains("poll failed").then_some(()));
        std::fs::write(&config, "nonsense: 1\n").unwrap();
        exporter.signal("HUP");
        exporter
            .until_printed("a refusal", |printed| printed.contains("the new configuration is refused").then_some(()));
        exporter.signal("TERM");
        let (status, printed) = exporter.ended(END);
        assert!(status.success());
        assert_eq!(good(&printed), 5, "{printed}");
        for source in ["campus", "etl", "badge", "iot", "ads"] {
            let line = printed.lines().find(|line| line.contains("first good poll") && line.contains(source)).unwrap();
            for key in ["events", "from", "to", "next_poll"] {
                assert!(line.contains(key), "{key} in {line}");
            }
        }
        let starts: Vec<&str> = printed.lines().filter(|line| line.contains("starting")).collect();
        let [start] = starts[..] else { panic!("{starts:?}") };
        for says in [
            env!("CARGO_PKG_VERSION"),
            audit_exporter::metrics::revision(),
            &config.display().to_string(),
            &folder.path().join("data").display().to_string(),
            "canvas 1, informatica 1, activid 1, losant 1, index_exchange 1",
        ] {
            assert!(start.contains(says), "{says} in {start}");
        }
        for line in printed.lines() {
            let keys = if format == "json" { keys_of_json(line) } else { keys_of_logfmt(line) };
            let distinct: BTreeSet<&String> = keys.iter().collect();
            assert!(distinct.len() == keys.len() && keys.len() >= 3, "{keys:?} of {line}");
        }
    }
}

#[test]
fn the_revision_is_the_commit_that_was_built() {
    let version = finish(&["--version"]).stdout;
    let git = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(in_repository(".")).output();
    let commit = git.ok().filter(|git| git.status.success() && in_repository(".git").exists());
    match (std::env::var_os("AUDIT_EXPORTER_REVISION"), commit) {
        (None, Some(commit)) => {
            let commit = String::from_utf8(commit.stdout).unwrap();
            assert!(version.contains(&format!("(revision: {}", commit.trim())), "{version} is not of {commit}");
        }
        _ => assert!(version.contains("(revision: "), "{version}"),
    }
}

fn demo_folders(parent: &Path) -> Vec<std::path::PathBuf> {
    parent.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn the_folder_of_the_demo_is_private_and_removed_at_every_end() {
    let parent = tempfile::tempdir().unwrap();
    let start = || {
        let mut command = program(&["demo", "--web.listen-address=127.0.0.1:0"]);
        let mut demo = Process::start(command.env("TMPDIR", parent.path()));
        demo.until_printed("that it is ready", |printed| printed.contains("message=ready").then_some(()));
        demo
    };
    for signal in ["TERM", "INT", "HUP"] {
        let demo = start();
        let [folder] = &demo_folders(parent.path())[..] else { panic!("{:?}", demo_folders(parent.path())) };
        assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(name.len() > 40 && !name.contains(&demo.id().to_string()), "{name} cannot be guessed");
        demo.signal(signal);
        assert_eq!(demo.ended(END).0.code(), Some(0), "{signal}");
        assert_eq!(demo_folders(parent.path()), Vec::<std::path::PathBuf>::new(), "{signal}");
    }
    // an error at the start
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("--web.listen-address={}", taken.local_addr().unwrap());
    let refused = program(&["demo", &listen]).env("TMPDIR", parent.path()).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(demo_folders(parent.path()), Vec::<std::path::PathBuf>::new());
    // one that was killed leaves its folder to the next, and one that runs keeps its own
    start().kill();
    let left = demo_folders(parent.path());
    let (first, second) = (start(), start());
    let there = demo_folders(parent.path());
    assert!(there.len() == 2 && left.len() == 1 && !there.contains(&left[0]), "{left:?} {there:?}");
    drop((first, second));
}

#[test]
fn doctor_looks_at_sources_side_by_side_and_says_how_long_it_takes() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--rate=0.05"]);
    let slow = "poll_interval: 5m\n      rate_limit: {requests: 1, per: 1s}";
    let text = config_text(&format!("http://{}", simulator.address), folder.path(), "1s", slow);
    // this one needs many requests
    let (before, badge) = text.split_once("- name: badge").unwrap();
    let text = format!("{before}- name: badge{}", badge.replacen("per: 1s", "per: 100ms", 1));
    let config = folder.path().join("slow.yml");
    std::fs::write(&config, text).unwrap();
    let look = |config: &Path, alone: bool| {
        let file = format!("--config.file={}", config.display());
        let begun = now();
        let looked = finish(&["doctor", &file]);
        let took = begun.elapsed();
        assert_eq!(looked.code, 0, "{alone}: {}{}", looked.stdout, looked.stderr);
        let requests = looked.stdout.split("This check took ").skip(1);
        let requests: Vec<u32> = requests.map(|rest| rest.lines().next().unwrap().trim().parse().unwrap()).collect();
        let one_by_one = Duration::from_secs(1) * (requests.iter().sum::<u32>() - requests[2]);
        assert!(took < one_by_one * 2 / 3 || !alone, "{took:?} for {requests:?} requests");
        let order: Vec<usize> = ["campus (", "etl (", "badge (", "iot (", "ads ("]
            .iter()
            .map(|name| looked.stdout.find(name).unwrap_or_else(|| panic!("{name} in {}", looked.stdout)))
            .collect();
        assert!(order.is_sorted(), "in the order of the configuration: {}", looked.stdout);
        assert!(looked.stderr.contains("5 sources, 5 at the same time: takes about "), "{}", looked.stderr);
    };
    look(&config, true);
    let fast = config_file(folder.path(), &simulator, "1s", EAGER);
    let _exporter = Running::exporter(&fast, &[]);
    look(&fast, false);
}
