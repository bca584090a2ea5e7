//! A disk that is full, read-only, or holds something else than the store: the program says so,
//! serves nothing wrong, and goes on by itself where that can be.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::crash::{Served, scrape_on, serving};
use crate::program::{
    EAGER, PATIENCE, Process, Running, config_file, eventually, finish, now, program, skipped, skipping_allowed,
    try_ask, until_exact,
};

/// A small file system that exists only for the processes that are started in it.
pub struct SmallDisk {
    /// Holds the mount.
    holder: Process,
    /// Where it is for those processes.
    folder: PathBuf,
    _place: tempfile::TempDir,
}

impl SmallDisk {
    /// `None`, said aloud, where mounting is not allowed, not even in a namespace of its own.
    pub fn new() -> Option<Self> {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().to_owned();
        let mount =
            format!("mount -t tmpfs -o size=12m none '{}' && echo mounted && exec sleep 86400", folder.display());
        let mut holder = Process::start(Command::new("unshare").args(["-rm", "sh", "-c", &mount]));
        let mounted = eventually(PATIENCE, || match (holder.printed().contains("mounted"), holder.running()) {
            (true, _) => Ok(true),
            (_, false) => Ok(false),
            _ => Err("a mount".into()),
        });
        if mounted {
            return Some(Self { holder, folder, _place: place });
        }
        let missing = format!("no tmpfs can be mounted here, not even by unshare -rm: {}", holder.printed().trim());
        assert!(skipping_allowed(), "{missing}");
        skipped(&missing);
        None
    }

    /// A command that sees it.
    pub fn inside(&self, command: &Command) -> Command {
        let mut inside = Command::new("nsenter");
        inside.args(["-t", &self.holder.id().to_string(), "-U", "-m", "--preserve-credentials", "--"]);
        inside.arg(command.get_program()).args(command.get_args());
        inside
    }

    fn exporter(&self, config: &Path) -> Process {
        let file = format!("--config.file={}", config.display());
        let storage = format!("--storage.path={}", self.folder.display());
        Process::start(&mut self.inside(&program(&[&file, &storage, "--web.listen-address=127.0.0.1:0"])))
    }

    /// Where it is for what runs inside.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The big file that fills it, seen from here.
    fn filler(&self) -> PathBuf {
        let seen = format!("/proc/{}/root{}/filler", self.holder.id(), self.folder.display());
        PathBuf::from(seen)
    }

    fn fill(&self) {
        let mut filler = File::options().create(true).append(true).open(self.filler()).unwrap();
        let full = (0..100_000).find_map(|_| filler.write_all(&[1; 4096]).err()).expect("it gets full");
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull, "{full}");
    }

    fn empty(&self) {
        let _ = std::fs::remove_file(self.filler());
    }

    /// Remounts it: `ro` or `rw`. It is refused while a file is open for writing.
    pub fn remount(&self, how: &str) {
        let folder = self.folder.display().to_string();
        let remount = format!("remount,{how}");
        eventually(PATIENCE, || {
            let mut mount = Command::new("mount");
            let done = self.inside(mount.args(["-o", &remount, &folder])).output().unwrap();
            if done.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&done.stderr).into_owned()) }
        });
    }
}

/// The address, once there is one.
fn address_of(exporter: &mut Process) -> String {
    exporter.until_printed("the address it serves on", serving)
}

fn ready(address: &str) -> u16 {
    try_ask(address, "GET", "/-/ready", &[], "").map_or(0, |answer| answer.status)
}

fn until_ready(exporter: &Process, address: &str) {
    eventually(PATIENCE, || match ready(address) {
        200 => Ok(()),
        status => Err(format!("readiness instead of {status}:\n{}", exporter.printed())),
    });
}

fn storage_errors(address: &str) -> f64 {
    let page = try_ask(address, "GET", "/metrics", &[], "").unwrap().text();
    crate::exposed::Exposed::parse(&page).sum("audit_source_errors_total", &["kind=\"storage\""])
}

fn until_it_cannot_write(exporter: &Process, address: &str, simulator: &Running) {
    let before = storage_errors(address);
    eventually(PATIENCE, || {
        assert_eq!(ready(address), 200, "it stays ready:\n{}", exporter.printed());
        // until the pages that the file has already are used up
        simulator.post("/simulator/inject", r#"["deletion_burst", "late_events"]"#);
        if storage_errors(address) > before { Ok(()) } else { Err(format!("storage errors:\n{}", exporter.printed())) }
    });
}

fn assert_no_violation(served: &Arc<Mutex<Served>>) {
    let served = served.lock().unwrap();
    assert!(served.violations.is_empty(), "{:#?}", served.violations);
    assert!(served.scrapes() > 10, "{} scrapes", served.scrapes());
}

/// Ends the traffic, waits for exact counters, and ends the program.
fn exact_at_the_end(exporter: Process, address: String, simulator: &Running) {
    simulator.post("/simulator/silence", "");
    let exporter = Running { process: exporter, address };
    until_exact(&exporter, simulator, Duration::from_mins(2));
    exporter.process.signal("TERM");
    let (status, printed) = exporter.process.ended(PATIENCE);
    assert_eq!(status.code(), Some(0), "{printed}");
}

#[test]
fn a_disk_that_fills_and_empties_delays_the_counting_and_nothing_else() {
    let Some(disk) = SmallDisk::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--rate=1", "--seed=7"]);
    let config = config_file(folder.path(), &simulator, "300ms", EAGER);
    let served: Arc<Mutex<Served>> = Arc::default();

    // full while it runs, killed in that state, started in that state
    let mut exporter = disk.exporter(&config);
    let address = address_of(&mut exporter);
    until_ready(&exporter, &address);
    let scraper = scrape_on(address.clone(), &served);
    disk.fill();
    until_it_cannot_write(&exporter, &address, &simulator);
    exporter.until_printed("why", |printed| printed.contains("No space left").then_some(()));
    exporter.kill();
    scraper.join().unwrap();
    let mut exporter = disk.exporter(&config);
    let mut address = address_of(&mut exporter);
    let mut scraper = scrape_on(address.clone(), &served);
    std::thread::sleep(Duration::from_secs(1));
    assert!(exporter.running(), "{}", exporter.printed());
    disk.empty();
    until_ready(&exporter, &address);

    // and at random moments
    let mut random = StdRng::seed_from_u64(8);
    let end = now() + Duration::from_secs(10);
    while now() < end {
        simulator.post("/simulator/inject", r#"["deletion_burst", "new_category"]"#);
        disk.fill();
        std::thread::sleep(Duration::from_millis(random.random_range(1..800)));
        if random.random_bool(0.3) {
            exporter.kill();
            scraper.join().unwrap();
            exporter = disk.exporter(&config);
            address = address_of(&mut exporter);
            scraper = scrape_on(address.clone(), &served);
        }
        disk.empty();
        std::thread::sleep(Duration::from_millis(random.random_range(1..800)));
    }
    until_ready(&exporter, &address);
    exact_at_the_end(exporter, address, &simulator);
    scraper.join().unwrap();
    assert_no_violation(&served);
}

#[test]
fn a_store_that_becomes_read_only_is_served_and_counting_goes_on_when_it_can_be_written() {
    let Some(disk) = SmallDisk::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--rate=1", "--seed=9"]);
    let config = config_file(folder.path(), &simulator, "300ms", EAGER);
    let served: Arc<Mutex<Served>> = Arc::default();
    let mut exporter = disk.exporter(&config);
    let address = address_of(&mut exporter);
    until_ready(&exporter, &address);
    let scraper = scrape_on(address.clone(), &served);
    // a mount cannot become read-only under an open file; after a failure the store is closed
    disk.fill();
    until_it_cannot_write(&exporter, &address, &simulator);
    disk.remount("ro");
    eventually(PATIENCE, || {
        assert_eq!(ready(&address), 200, "it stays ready");
        if exporter.printed().contains("Read-only file system") { Ok(()) } else { Err(exporter.printed()) }
    });
    disk.remount("rw");
    disk.empty();
    exact_at_the_end(exporter, address, &simulator);
    scraper.join().unwrap();
    assert_no_violation(&served);
}

#[test]
fn a_store_that_is_read_only_at_the_start_is_waited_for() {
    let Some(disk) = SmallDisk::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--rate=1", "--seed=10"]);
    let config = config_file(folder.path(), &simulator, "300ms", EAGER);
    let mut first = disk.exporter(&config);
    let address = address_of(&mut first);
    until_ready(&first, &address);
    first.kill();
    disk.remount("ro");
    let mut exporter = disk.exporter(&config);
    let address = address_of(&mut exporter);
    let why = exporter.until_printed("why it is not ready", |printed| {
        printed.lines().find(|line| line.contains("not ready")).map(str::to_owned)
    });
    assert!(why.contains("ledger.redb: Read-only file system") && why.contains("retry_in=5s"), "{why}");
    assert_eq!(ready(&address), 503);
    assert_eq!(try_ask(&address, "GET", "/metrics", &[], "").unwrap().status, 503, "nothing is better than zeros");
    disk.remount("rw");
    until_ready(&exporter, &address);
    exact_at_the_end(exporter, address, &simulator);
}

#[test]
fn what_is_no_store_ends_the_program_with_one_message_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--quiet"]);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    let file = format!("--config.file={}", config.display());
    drop(Running::exporter(&config, &[]));
    let store = folder.path().join("data").join("ledger.redb");
    let whole = std::fs::read(&store).unwrap();
    let mut flipped = whole.clone();
    // a bit in each block: which of them are in use is for the tests beside the ledger
    for block in flipped.chunks_mut(4096).skip(1) {
        block[17] ^= 1;
    }
    let cases: [(&[u8], &str); 4] = [
        (b"", "it is empty"),
        // half of it may hold all there is, and be read
        (&whole[..8 * 4096], "is damaged"),
        (&b"counters: 17\n".repeat(500), "Not a redb database"),
        (&flipped, "is damaged"),
    ];
    let refused = |says: &str| {
        let finished = finish(&[&file, "--web.listen-address=127.0.0.1:0"]);
        let message = finished.stderr.lines().last().unwrap_or_default().to_owned();
        assert_eq!((finished.code, finished.stdout.as_str()), (1, ""), "{}", finished.stderr);
        assert!(message.contains(says) && message.contains("ledger.redb"), "{says:?} in {message:?}");
    };
    for (bytes, says) in cases {
        std::fs::write(&store, bytes).unwrap();
        refused(says);
        assert!(std::fs::read(&store).unwrap() == bytes, "{says}: it was written to");
    }
    std::fs::remove_file(&store).unwrap();
    std::fs::create_dir(&store).unwrap();
    refused("Is a directory");
    assert_eq!(std::fs::read_dir(&store).unwrap().count(), 0);
    std::fs::remove_dir(&store).unwrap();
    std::fs::write(&store, &whole).unwrap();
    drop(Running::exporter(&config, &[]));
}

#[test]
fn a_store_without_permission_ends_the_program_with_one_message() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--quiet"]);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    let file = format!("--config.file={}", config.display());
    drop(Running::exporter(&config, &[]));
    let store = folder.path().join("data").join("ledger.redb");
    let before = std::fs::read(&store).unwrap();
    std::fs::set_permissions(&store, std::fs::Permissions::from_mode(0o000)).unwrap();
    let mut command = program(&[&file, "--web.listen-address=127.0.0.1:0"]);
    if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
        // root may open anything, unless it gives that up
        let mut without = Command::new("setpriv");
        without.arg("--bounding-set=-all").arg(command.get_program()).args(command.get_args());
        command = without;
    }
    let (status, printed) = Process::start(&mut command).ended(PATIENCE);
    assert_eq!(status.code(), Some(1), "{printed}");
    let message =
        printed.lines().find(|line| line.contains("Permission denied")).unwrap_or_else(|| panic!("{printed}"));
    assert!(message.contains("ledger.redb"), "{message}");
    std::fs::set_permissions(&store, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(std::fs::read(&store).unwrap() == before, "it was written to");
}

/// As a user who is nobody in particular, also where the tests run as root. Root may do anything.
fn as_nobody(arguments: &[&str]) -> (i32, String) {
    let mut command = program(arguments);
    if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
        command.uid(NOBODY).gid(NOBODY);
    }
    let (status, printed) = Process::start(&mut command).ended(PATIENCE);
    (status.code().unwrap(), printed)
}

const NOBODY: u32 = 65534;

#[test]
fn a_storage_path_that_may_not_be_used_is_told_with_whose_it_is_and_the_command_that_helps() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let mode = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(place.path(), 0o755);
    let config = at("audit-exporter.yml");
    std::fs::write(&config, "sources: {losant: [{name: iot, instance_id: i, api_token: t}]}").unwrap();
    mode(&config, 0o644);
    for (folder, bits) in [("closed", 0o555), ("shut", 0o700), ("shut/data", 0o777), ("kept", 0o777)] {
        std::fs::create_dir(at(folder)).unwrap();
        mode(&at(folder), bits);
    }
    std::fs::write(at("kept/ledger.redb"), "counters").unwrap();
    mode(&at("kept/ledger.redb"), 0o400);
    std::fs::write(at("file"), "").unwrap();
    let root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    if !root {
        // nobody but root can give a folder to somebody else; without any right it is as if it were
        mode(&at("shut"), 0o000);
        mode(&at("kept/ledger.redb"), 0o000);
    }
    let shown = |name: &str| at(name).display().to_string();
    // the folder; what it is not allowed; what helps; whether it is wrong for everybody
    let cases = [
        ("closed", format!("may not read and write {}", shown("closed")), "chown -R ", false),
        ("closed/new", format!("may not create new in {}", shown("closed")), "install -d -o ", false),
        ("closed/new/deep", format!("may not create new in {}", shown("closed")), "install -d -o ", false),
        ("shut/data", format!("may not enter {}", shown("shut")), "setfacl -m ", false),
        ("kept", format!("may not read and write {}", shown("kept/ledger.redb")), "chown -R ", false),
        ("file", format!("{} is a file", shown("file")), "move the file away", true),
        ("file/data", format!("{} is a file", shown("file")), "move the file away", true),
        ("kept/ledger.redb", "names the folder, not the file".into(), &shown("kept"), true),
    ];
    let file = format!("--config.file={}", config.display());
    for (folder, said, helps, wrong_for_all) in cases {
        let storage = format!("--storage.path={}", shown(folder));
        let expected: &[&str] = if wrong_for_all { &[&said, helps] } else { &[&said, helps, "uid ", "mode 0"] };
        let (code, printed) = as_nobody(&[&file, &storage, "--web.listen-address=127.0.0.1:0"]);
        assert_eq!(code, 1, "{printed}");
        let message = printed.lines().last().unwrap();
        assert!(expected.iter().all(|said| message.contains(said)), "{folder}: {expected:?} in {message}");
        // who checks a file may be another user than the exporter's
        let (code, printed) = as_nobody(&["check", &file, &storage]);
        assert_eq!(code, if wrong_for_all { 2 } else { 0 }, "{printed}");
        assert!(expected.iter().all(|said| printed.contains(said)), "{folder}: {expected:?} in {printed}");
    }
    assert_eq!(std::fs::read(at("kept/ledger.redb")).ok().filter(|_| root), root.then(|| b"counters".to_vec()));
    assert_eq!(std::fs::read_dir(at("closed")).unwrap().count(), 0);
    mode(&at("shut"), 0o700);
}

#[test]
fn a_ledger_that_a_reload_would_move_stays_where_it_is_and_the_answer_says_how_to_move_it() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--quiet"]);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    let exporter = Running::exporter(&config, &[]);
    let text = std::fs::read_to_string(&config).unwrap();
    let data = folder.path().join("data").display().to_string();
    let reload = |path: &str| {
        std::fs::write(&config, text.replace(&data, path)).unwrap();
        exporter.post("/-/reload", "")
    };
    // the same folder in other words
    std::os::unix::fs::symlink(&data, folder.path().join("link")).unwrap();
    let link = folder.path().join("link").display().to_string();
    for same in [&data, "data", "./data/", "data/../data", &link] {
        assert_eq!(reload(same).status, 200, "{same}");
    }
    let refused = reload("elsewhere");
    assert_eq!(refused.status, 500);
    for said in ["a restart does not", "begin a new ledger there, with all counters at 0", "move the folder", &data] {
        assert!(refused.text().contains(said), "{said:?} in {refused}");
    }
    assert!(!folder.path().join("elsewhere").exists());
    std::fs::create_dir(folder.path().join("elsewhere")).unwrap();
    std::fs::write(folder.path().join("elsewhere/ledger.redb"), "").unwrap();
    assert!(reload("elsewhere").text().contains("go on with the other ledger that is there"));
    // by the steps that it says
    std::fs::remove_dir_all(folder.path().join("elsewhere")).unwrap();
    exporter.process.signal("TERM");
    assert_eq!(exporter.process.ended(PATIENCE).0.code(), Some(0));
    std::fs::rename(&data, folder.path().join("elsewhere")).unwrap();
    drop(Running::exporter(&config, &[]));
    assert!(!Path::new(&data).exists());
}
