//! `backup`: copies that can be relied on, made while the exporter counts, and restored by the documented steps.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use audit_exporter::ledger::{Counter, Ledger};
use audit_exporter::page::Catalogue;
use audit_exporter::simulate::{SERVICES, Simulated};

use crate::program::{EAGER, Finished, PATIENCE, Running, config_file, eventually, finish, program, until_exact};

const NOBODY: u32 = 65534;

fn backup(config: &Path, to: &Path) -> Finished {
    finish(&["backup", &format!("--config.file={}", config.display()), &format!("--to={}", to.display())])
}

fn made(config: &Path, to: &Path) {
    let finished = backup(config, to);
    assert_eq!(finished.code, 0, "{}{}", finished.stdout, finished.stderr);
}

/// Events counted by source, as the running exporter has them.
fn live(exporter: &Running) -> BTreeMap<String, u64> {
    let status = exporter.get("/api/v1/status").json();
    let sources = status["sources"].as_array().unwrap().iter();
    sources.map(|source| (source["name"].as_str().unwrap().to_owned(), source["events"].as_u64().unwrap())).collect()
}

/// The same of a backup, opened as an exporter opens it: with all pages verified.
fn held(backup: &Path) -> BTreeMap<String, u64> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(backup, folder.path().join("ledger.redb")).unwrap();
    let ledger = Ledger::open(folder.path()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let total = |Simulated { source, system, .. }: &Simulated| {
        let found = runtime.block_on(ledger.find(&source.parse().unwrap(), *system, Catalogue::default())).unwrap();
        ((*source).to_owned(), found.map_or(0, |source| source.state().total(Counter::Events)))
    };
    SERVICES.iter().map(total).collect()
}

/// Which store it has.
fn generation(exporter: &Running) -> f64 {
    exporter.scrape().sum("audit_exporter_store_generation", &[])
}

fn all_at_most(less: &BTreeMap<String, u64>, more: &BTreeMap<String, u64>) -> bool {
    less.iter().all(|(source, events)| *events <= more[source])
}

/// Restores by the steps of docs/backup.md.
fn restore(backup: &Path, storage: &Path) {
    let ledger = storage.join("ledger.redb");
    std::fs::create_dir_all(storage).unwrap();
    std::fs::copy(backup, &ledger).unwrap();
    std::fs::set_permissions(&ledger, std::fs::Permissions::from_mode(0o600)).unwrap();
    match std::fs::remove_file(storage.join("ledger.mark")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
        _ => {}
    }
}

#[test]
fn every_backup_under_traffic_is_whole_and_an_exporter_counts_on_from_it_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--rate=0.3", "--seed=61"]);
    let config = config_file(folder.path(), &simulator, "300ms", EAGER);
    let exporter = Running::exporter(&config, &[]);
    let backups: Vec<PathBuf> = (0..24).map(|n| folder.path().join(format!("{n}.redb"))).collect();
    let mut grew = 0;
    let mut last = BTreeMap::new();
    for (n, to) in backups.iter().enumerate() {
        simulator.post("/simulator/inject", r#"["deletion_burst", "new_category", "late_events"]"#);
        // one of three comes close upon the one before, however fast the machine is; the others when there is more to copy
        if n % 3 > 0 {
            eventually(PATIENCE, || if live(&exporter) == last { Err("more events".into()) } else { Ok(()) });
        }
        let before = live(&exporter);
        made(&config, to);
        let after = live(&exporter);
        let held = held(to);
        assert!(all_at_most(&before, &held) && all_at_most(&held, &after), "{before:?} <= {held:?} <= {after:?}");
        grew += u32::from(held != last);
        last = held;
        assert_eq!(std::fs::metadata(to).unwrap().mode() & 0o777, 0o600);
    }
    assert!(grew > 12, "there was traffic: {grew}");
    assert!(simulator.truth().values().sum::<u64>() > last.values().sum(), "and there is more to count");
    assert_eq!(exporter.scrape().sum("audit_source_errors_total", &[r#"kind="storage""#]), 0.0);
    simulator.post("/simulator/silence", "");
    until_exact(&exporter, &simulator, Duration::from_mins(1));
    let mut before = generation(&exporter);
    exporter.process.signal("TERM");
    assert_eq!(exporter.process.ended(PATIENCE).0.code(), Some(0));
    // back on the same machine, to an early and a late one
    for to in [&backups[23], &backups[2]] {
        let storage = folder.path().join("data");
        std::fs::copy(to, storage.join("ledger.redb")).unwrap();
        let mark = storage.join("ledger.mark");
        if mark.exists() {
            let file = format!("--config.file={}", config.display());
            let refused = finish(&[&file, "--web.listen-address=127.0.0.1:0"]);
            let said = format!("remove {} to accept it", mark.display());
            assert!(refused.code == 1 && refused.stderr.contains(&said), "{said} in {}", refused.stderr);
        }
        restore(to, &storage);
        let exporter = Running::exporter(&config, &[]);
        assert!(generation(&exporter) > before, "it is another store than {before}");
        before = generation(&exporter);
        // its own login is an event, too
        until_exact(&exporter, &simulator, Duration::from_mins(1));
        exporter.process.signal("TERM");
        assert_eq!(exporter.process.ended(PATIENCE).0.code(), Some(0));
    }
    // and on a new one
    let elsewhere = tempfile::tempdir().unwrap();
    restore(&backups[11], &elsewhere.path().join("data"));
    let config = config_file(elsewhere.path(), &simulator, "300ms", EAGER);
    let exporter = Running::exporter(&config, &[]);
    until_exact(&exporter, &simulator, Duration::from_mins(1));
}

#[test]
fn a_backup_of_a_stopped_or_killed_exporter_is_made_by_the_command_itself() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--rate=1", "--seed=62"]);
    let config = config_file(folder.path(), &simulator, "300ms", EAGER);
    let exporter = Running::exporter(&config, &[]);
    simulator.post("/simulator/silence", "");
    until_exact(&exporter, &simulator, Duration::from_mins(1));
    let before = live(&exporter);
    let store = generation(&exporter);
    // leaves its socket behind
    exporter.process.kill();
    let first = folder.path().join("first");
    made(&config, &first);
    // a late event may have come in between
    let counted = held(&first);
    assert!(before.iter().all(|(source, events)| counted[source] >= *events), "{before:?} {counted:?}");
    let second = folder.path().join("second");
    made(&config, &second);
    assert_eq!(held(&second), counted);
    // without a configuration, and into the folder where it was called
    let storage = format!("--storage.path={}", folder.path().join("data").display());
    let call = |exporter: bool| {
        let name = if exporter { "--to=beside" } else { "--to=alone" };
        let mut command = program(&["backup", &storage, name]);
        let output = command.current_dir(folder.path()).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        held(&folder.path().join(&name[5..]))
    };
    assert_eq!(call(false), counted);
    let exporter = Running::exporter(&config, &[]);
    assert_eq!(generation(&exporter), store, "a kill, a restart and backups made of it change nothing");
    let beside = call(true);
    assert!(counted.iter().all(|(source, events)| beside[source] >= *events), "{counted:?} {beside:?}");
}

#[test]
fn a_backup_that_cannot_be_made_says_why_overwrites_nothing_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--quiet"]);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    let to = folder.path().join("copy");
    // no ledger yet, and none is made
    let refused = backup(&config, &to);
    assert!(refused.code == 3 && refused.stderr.contains("there is no ledger"), "{}", refused.stderr);
    assert!(!folder.path().join("data").exists());
    for running in [true, false] {
        let exporter = Running::exporter(&config, &[]);
        if !running {
            exporter.process.signal("TERM");
            exporter.process.ended(PATIENCE);
        }
        std::fs::write(&to, "something of value").unwrap();
        std::os::unix::fs::symlink("nowhere", folder.path().join("link")).unwrap();
        for (to, code, said) in [
            (to.as_path(), 2, "exists already"),
            (&folder.path().join("link"), 2, "exists already"),
            (&folder.path().join("data/ledger.redb"), 2, "exists already"),
            (folder.path(), 2, "exists already"),
            (&folder.path().join("absent/copy"), 3, "No such file or directory"),
            (Path::new("/proc/copy"), 3, "cannot write /proc/copy"),
        ] {
            let refused = backup(&config, to);
            assert!(refused.code == code && refused.stderr.contains(said), "{said:?} in {}", refused.stderr);
        }
        assert_eq!(std::fs::read_to_string(&to).unwrap(), "something of value");
        std::fs::remove_file(folder.path().join("link")).unwrap();
    }
    let names =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(names.into_iter().all(|name| ["copy", "data", "audit-exporter.yml"].contains(&name.as_str())));
    for wrong in [&["backup"][..], &["backup", "--to=x"]] {
        assert_eq!(finish(wrong).code, 2);
    }
}

#[test]
fn the_caller_must_be_allowed_to_write_the_file_and_not_the_exporter() {
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        // only root can run the two as different users
        return crate::program::skipped("it needs root");
    }
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--quiet"]);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::os::unix::fs::chown(&data, Some(NOBODY), Some(NOBODY)).unwrap();
    let file = format!("--config.file={}", config.display());
    let mut command = program(&[&file, "--web.listen-address=127.0.0.1:0"]);
    let mut process = crate::program::Process::start(command.uid(NOBODY).gid(NOBODY));
    process.until_printed("that it is ready", |printed| printed.contains("message=ready").then_some(()));
    // a folder that the exporter may not even enter
    let closed = tempfile::tempdir().unwrap();
    made(&config, &closed.path().join("copy"));
    held(&closed.path().join("copy"));
    assert_eq!(std::fs::metadata(closed.path().join("copy")).unwrap().uid(), 0);
}
