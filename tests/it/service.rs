//! The program under a service manager: what it tells it, and the sockets that it is handed. A datagram socket stands for
//! systemd here, and a shell for what hands over; `packaging/test` boots the real one.

use std::fs::File;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::disk::SmallDisk;
use crate::program::{EAGER, PATIENCE, Process, Running, ask, config_file, eventually, finish, now, program};

/// Longer than any of the program's own deadlines at its end.
const END: Duration = Duration::from_secs(20);

/// The manager's end of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(folder: &Path) -> Self {
        let path = folder.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        Self { socket, path }
    }

    /// The next message; `None` if there is none for a while.
    fn next(&self) -> Option<String> {
        let mut bytes = [0; 4096];
        match self.socket.recv(&mut bytes) {
            Ok(length) => Some(String::from_utf8(bytes[..length].to_vec()).unwrap()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Takes messages until one has this line, and returns that message.
    fn until(&self, wanted: &str) -> String {
        let mut before = Vec::new();
        eventually(PATIENCE, || {
            while let Some(message) = self.next() {
                if message.lines().any(|line| line == wanted) {
                    return Ok(message);
                }
                before.push(message);
            }
            Err(format!("{wanted} after {before:?}"))
        })
    }
}

/// A port that was free a moment ago.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn the_manager_is_told_when_the_program_is_ready_how_its_sources_are_and_that_it_stops() {
    let folder = tempfile::tempdir().unwrap();
    let manager = Manager::new(folder.path());
    let simulator = Running::simulator(&["--quiet"]);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    let address = free_address();
    let (file, listen) = (format!("--config.file={}", config.display()), format!("--web.listen-address={address}"));
    let exporter = Process::start(program(&[&file, &listen]).env("NOTIFY_SOCKET", &manager.path));
    let first = manager.until("READY=1");
    // at this very moment it is true
    assert_eq!(ask(&address, "GET", "/-/ready", &[], "").status, 200);
    assert!(first.lines().any(|line| line.starts_with("STATUS=5 sources")), "{first}");
    manager.until("STATUS=5 sources");

    let good = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, "nonsense: 1\n").unwrap();
    exporter.signal("HUP");
    manager.until("STATUS=5 sources; the last reload was refused, the configuration before it is in force");
    std::fs::write(&config, good).unwrap();
    exporter.signal("HUP");
    manager.until("STATUS=5 sources");

    drop(simulator);
    manager.until("STATUS=5 sources, 5 failing");
    exporter.signal("TERM");
    let last = manager.until("STOPPING=1");
    assert!(!last.contains("READY=1"), "{last}");
    let (status, printed) = exporter.ended(END);
    assert_eq!(status.code(), Some(0), "{printed}");
}

#[test]
fn the_manager_is_not_told_ready_while_the_ledger_cannot_be_opened_but_why() {
    let Some(disk) = SmallDisk::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let manager = Manager::new(folder.path());
    let simulator = Running::simulator(&["--quiet"]);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    let file = format!("--config.file={}", config.display());
    let storage = format!("--storage.path={}", disk.folder().display());
    let mut command = disk.inside(&program(&[&file, &storage, "--web.listen-address=127.0.0.1:0"]));
    command.env("NOTIFY_SOCKET", &manager.path);
    let first = Process::start(&mut command);
    manager.until("READY=1");
    first.kill();
    disk.remount("ro");
    while manager.next().is_some() {}
    let exporter = Process::start(&mut command);
    let message = eventually(PATIENCE, || manager.next().ok_or_else(|| format!("a message; {}", exporter.printed())));
    assert!(message.starts_with("STATUS=not ready: ") && message.contains("Read-only file system"), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    disk.remount("rw");
    manager.until("READY=1");
}

#[test]
fn a_manager_that_takes_nothing_holds_up_neither_the_start_nor_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let manager = Manager::new(folder.path());
    let filler = UnixDatagram::unbound().unwrap();
    filler.set_nonblocking(true).unwrap();
    let full = (0..100_000).find_map(|_| filler.send_to(b"x", &manager.path).err()).expect("it gets full");
    assert_eq!(full.kind(), ErrorKind::WouldBlock);
    let simulator = Running::simulator(&["--quiet"]);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    let file = format!("--config.file={}", config.display());
    let mut command = program(&[&file, "--web.listen-address=127.0.0.1:0"]);
    let exporter = Running::exporter_by(command.env("NOTIFY_SOCKET", &manager.path));
    assert_eq!(exporter.get("/-/ready").status, 200);
    let begun = now();
    exporter.process.signal("TERM");
    let (status, printed) = exporter.process.ended(END);
    assert_eq!(status.code(), Some(0), "{printed}");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

/// The program with descriptor 3 handed over as systemd does it.
fn handed(descriptor: impl Into<Stdio>, arguments: &[&str]) -> Command {
    let whole = program(arguments);
    let mut command = Command::new("sh");
    command.args(["-c", "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\" 3<&0 </dev/null"]);
    command.arg(whole.get_program()).args(whole.get_args());
    command.stdin(descriptor);
    command
}

#[test]
fn sockets_that_were_handed_over_are_served_instead_of_an_address() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--quiet"]);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    let file = format!("--config.file={}", config.display());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut command = handed(OwnedFd::from(listener), &[&file, "--web.systemd-socket"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // what holds the listener here
    drop(command);
    // the connection waits in the socket until the program is there, as the first scrape does
    assert!([200, 503].contains(&ask(&address, "GET", "/metrics", &[], "").status));
    eventually(PATIENCE, || match ask(&address, "GET", "/-/ready", &[], "").status {
        200 => Ok(()),
        status => Err(format!("readiness instead of {status}")),
    });
    assert_eq!(ask(&address, "GET", "/metrics", &[], "").status, 200);
    child.kill().unwrap();
    let told = child.wait_with_output().unwrap();
    let told = String::from_utf8(told.stderr).unwrap();
    assert!(told.contains("serving") && told.contains(&address), "{told}");
    assert!(!told.contains("10812"), "the address of the flag is not used: {told}");
}

#[test]
fn without_a_socket_that_can_be_served_the_program_says_what_to_do_and_starts_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--quiet"]);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    let file = format!("--config.file={}", config.display());
    let nothing = finish(&[&file, "--web.systemd-socket"]);
    assert_eq!(nothing.code, 2, "{}", nothing.stderr);
    assert!(nothing.stderr.contains("no socket was handed over"), "{}", nothing.stderr);
    assert!(nothing.stderr.contains("--web.listen-address"), "{}", nothing.stderr);
    let null = OwnedFd::from(File::open("/dev/null").unwrap());
    let done = handed(null, &[&file, "--web.systemd-socket"]).output().unwrap();
    let told = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(2), "{told}");
    assert!(told.contains("socket 1 of 1") && told.contains("ListenStream="), "{told}");
    let both = finish(&[&file, "--web.systemd-socket", "--web.listen-address=127.0.0.1:0"]);
    assert_eq!(both.code, 2, "{}", both.stderr);
    assert!(both.stderr.contains("cannot be used with"), "{}", both.stderr);
    assert!(!folder.path().join("data").exists(), "the store was begun");
}
