//! A file system whose locks fail, or say yes to everybody: still one exporter for one store.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::crash::serving;
use crate::program::{EAGER, PATIENCE, Process, Running, config_file, eventually, program, tool, try_ask, until_exact};

/// What every kind of file lock answers in a program that is loaded with it: the error number in `LOCKS`; with 0,
/// success without a lock.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/syscall.h>

static long answer(void) {
    int number = atoi(getenv("LOCKS"));
    if (number == 0) return 0;
    errno = number;
    return -1;
}

int flock(int fd, int operation) { return answer(); }

static int locks(int command) {
    return command == F_OFD_SETLK || command == F_OFD_SETLKW || command == F_OFD_GETLK || command == F_SETLK
        || command == F_SETLKW || command == F_GETLK;
}

int fcntl64(int fd, int command, ...) {
    va_list list;
    va_start(list, command);
    void *argument = va_arg(list, void *);
    va_end(list);
    if (locks(command)) return answer();
    int (*real)(int, int, ...) = dlsym(RTLD_NEXT, "fcntl64");
    return real(fd, command, argument);
}

int fcntl(int fd, int command, ...) {
    va_list list;
    va_start(list, command);
    void *argument = va_arg(list, void *);
    va_end(list);
    if (locks(command)) return answer();
    int (*real)(int, int, ...) = dlsym(RTLD_NEXT, "fcntl");
    return real(fd, command, argument);
}

long syscall(long number, ...) {
    va_list list;
    va_start(list, number);
    long a = va_arg(list, long), b = va_arg(list, long), c = va_arg(list, long), d = va_arg(list, long),
         e = va_arg(list, long), f = va_arg(list, long);
    va_end(list);
    if (number == SYS_fcntl && locks((int)b)) return answer();
    long (*real)(long, ...) = dlsym(RTLD_NEXT, "syscall");
    return real(number, a, b, c, d, e, f);
}
"#;

const ENOSYS: u32 = 38;
const EOPNOTSUPP: u32 = 95;
const ENOLCK: u32 = 37;

/// A store on a file system without locks, and its traffic.
struct NoLocks {
    folder: tempfile::TempDir,
    simulator: Running,
    config: PathBuf,
    shim: PathBuf,
}

impl NoLocks {
    /// `None`, said aloud, where no C compiler makes the shim.
    fn new(seed: u32) -> Option<Self> {
        let compiler = tool("AUDIT_EXPORTER_CC", "gcc")?;
        let folder = tempfile::tempdir().unwrap();
        let (source, shim) = (folder.path().join("locks.c"), folder.path().join("locks.so"));
        std::fs::write(&source, SHIM).unwrap();
        let made = Command::new(compiler).args(["-shared", "-fPIC", "-o"]).args([&shim, &source]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let simulator = Running::simulator(&["--rate=1", &format!("--seed={seed}")]);
        let config = config_file(folder.path(), &simulator, "300ms", EAGER);
        Some(Self { folder, simulator, config, shim })
    }

    fn exporter(&self, locks: u32) -> Process {
        let file = format!("--config.file={}", self.config.display());
        let mut command = program(&[&file, "--web.listen-address=127.0.0.1:0"]);
        Process::start(command.env("LD_PRELOAD", &self.shim).env("LOCKS", locks.to_string()))
    }

    fn ready(&self, locks: u32) -> Running {
        let mut process = self.exporter(locks);
        let address = process.until_printed("the address it serves on", serving);
        eventually(PATIENCE, || match try_ask(&address, "GET", "/-/ready", &[], "") {
            Ok(answer) if answer.status == 200 => Ok(()),
            _ => Err(format!("readiness:\n{}", process.printed())),
        });
        Running { process, address }
    }

    fn lock(&self) -> PathBuf {
        self.folder.path().join("data/ledger.lock")
    }
}

fn holder(lock: &Path) -> String {
    std::fs::read_to_string(lock).unwrap_or_default().split(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn where_locks_fail_a_second_exporter_is_refused_and_the_first_counts_on() {
    let Some(disk) = NoLocks::new(51) else { return };
    // each as the one before left it: killed, then ended
    for locks in [ENOSYS, EOPNOTSUPP, ENOLCK, 0] {
        let first = disk.ready(locks);
        for other in [locks, ENOSYS, 0] {
            let (status, printed) = disk.exporter(other).ended(PATIENCE);
            assert_eq!(status.code(), Some(1), "locks answer {locks} and {other}: {printed}");
            let said = format!("is in use by another process (pid {}", first.process.id());
            assert!(printed.contains(&said), "{said} in {printed}");
        }
        assert_eq!(first.get("/-/ready").status, 200);
        if locks == EOPNOTSUPP {
            first.process.signal("TERM");
            assert_eq!(first.process.ended(PATIENCE).0.code(), Some(0));
            assert!(!disk.lock().exists(), "the next start needs not wait");
        } else {
            first.process.kill();
            assert!(disk.lock().exists());
        }
    }
    // one that has real locks waits for the hold of one that has none, and then needs no such file
    let exporter = disk.ready_with_locks();
    assert!(!disk.lock().exists());
    disk.simulator.post("/simulator/silence", "");
    until_exact(&exporter, &disk.simulator, PATIENCE);
    assert_eq!(exporter.scrape().sum("audit_source_errors_total", &[r#"kind="storage""#]), 0.0);
}

impl NoLocks {
    fn ready_with_locks(&self) -> Running {
        Running::exporter(&self.config, &[])
    }
}

#[test]
fn an_exporter_that_was_paused_and_has_lost_its_store_does_not_write_to_it() {
    let Some(disk) = NoLocks::new(52) else { return };
    let first = disk.ready(ENOSYS);
    let before = holder(&disk.lock());
    first.process.signal("STOP");
    let second = disk.ready(ENOSYS);
    assert_ne!(holder(&disk.lock()), before, "it was taken over");
    first.process.signal("CONT");
    // both have something to count
    disk.simulator.post("/simulator/inject", r#"["deletion_burst", "new_category"]"#);
    eventually(PATIENCE, || {
        let said = first.process.printed();
        if said.contains("taken over by another process") { Ok(()) } else { Err(said) }
    });
    std::thread::sleep(Duration::from_secs(3));
    disk.simulator.post("/simulator/silence", "");
    until_exact(&second, &disk.simulator, PATIENCE);
    assert_eq!(second.scrape().sum("audit_source_errors_total", &[r#"kind="storage""#]), 0.0);
    first.process.kill();
    second.process.signal("TERM");
    assert_eq!(second.process.ended(PATIENCE).0.code(), Some(0));
    // all of it is verified as it is opened
    let third = disk.ready(ENOSYS);
    until_exact(&third, &disk.simulator, PATIENCE);
}

#[test]
fn a_store_on_a_local_disk_needs_no_file_to_hold_it() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--quiet"]);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    drop(Running::exporter(&config, &[]));
    let mut files: Vec<_> = std::fs::read_dir(folder.path().join("data"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(files, ["control.sock", "ledger.mark", "ledger.redb"]);
}
