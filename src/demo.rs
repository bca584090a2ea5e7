//! A configuration that reads the simulated services, and a folder for what is counted: for `audit-exporter demo` and
//! the tests. Prometheus and Alertmanager beside it: `demo/monitoring.rs`.

pub mod monitoring;

use std::fmt::Write;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::{Config, ConfigErrors, parse};
use crate::simulate::{Credential, SERVICES};

/// Keys that are the same for every source of the demo: fast polls, a budget to match, and all of
/// the simulator's history, so that the counters become equal to `/simulator/truth`.
pub const FAST: &str =
    "poll_interval: 2s\n      rate_limit: {requests: 40, per: 1s, burst: 10}\n      initial_lookback: 4h";

/// How much traffic there has been before it starts.
pub const HISTORY: Duration = Duration::from_hours(2);

/// How long the simulated services of the demo remember an event: longer than anything the demo reads again, and short
/// enough that a demo that is left running does not grow.
pub const KEPT: Duration = Duration::from_mins(150);

/// What the name of a demo's folder begins with.
const FOLDER: &str = "audit-exporter-demo-";
/// The file in it that is locked as long as its demo runs.
const LOCK: &str = "in-use";

/// The configuration as text: all systems at `origin` (`http://127.0.0.1:PORT`), the store in
/// `storage`, new series held for `hold`, each source with the lines `common` beside its own.
pub fn config_text(origin: &str, storage: &Path, hold: &str, common: &str) -> String {
    let storage = serde_json::Value::from(storage.display().to_string());
    let mut text = format!("global:\n  hold_new_series: {hold}\nstorage:\n  path: {storage}\nsources:\n");
    for service in SERVICES {
        let keys = service.entry(origin, Credential::Text(service.secret()), "      ");
        let (system, source) = (service.system, service.source);
        // writing to a text cannot fail
        let _ = write!(text, "  {system}:\n    - name: {source}\n      {keys}\n      {common}\n");
    }
    text
}

/// The configuration, read.
pub fn config(origin: &str, storage: &Path, hold: &str) -> Result<Config, ConfigErrors> {
    parse(&config_text(origin, storage, hold, FAST), Path::new("demo.yml"))
}

/// A folder in the temporary directory that is nobody else's, under a name that nobody can guess. It is removed when it
/// is dropped. The folder of a demo that was killed is removed by the next one.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Locked.
    _in_use: Option<File>,
}

impl Folder {
    /// Makes the folder, and removes those that nobody uses any more.
    pub fn new() -> io::Result<Self> {
        Self::new_in(&std::env::temp_dir())
    }

    fn new_in(parent: &Path) -> io::Result<Self> {
        let path = parent.join(format!("{FOLDER}{:032x}", rand::random::<u128>()));
        DirBuilder::new().mode(0o700).create(&path)?;
        // locked before it has its name: a lock that is free always means that its owner is gone
        let unnamed = path.join("new");
        let in_use = File::create_new(&unnamed)
            .and_then(|file| file.lock().map(|()| file))
            .and_then(|file| std::fs::rename(&unnamed, path.join(LOCK)).map(|()| file));
        let folder = Self { path, _in_use: in_use.ok() };
        folder.remove_leftovers(parent);
        Ok(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn remove_leftovers(&self, parent: &Path) {
        let (Ok(own), Ok(entries)) = (self.path.symlink_metadata(), parent.read_dir()) else { return };
        for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(FOLDER)) {
            let path = entry.path();
            let is_ours = path.symlink_metadata().is_ok_and(|found| found.is_dir() && found.uid() == own.uid());
            if !is_ours || path == self.path {
                continue;
            }
            if let Ok(lock) = File::open(path.join(LOCK))
                && lock.try_lock().is_ok()
            {
                let _ = std::fs::remove_dir_all(&path);
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_folder_is_private_and_goes_with_its_demo_and_those_of_killed_ones_with_the_next() {
        let parent = tempfile::tempdir().unwrap();
        let folders = || parent.path().read_dir().unwrap().count();
        let first = Folder::new_in(parent.path()).unwrap();
        assert_eq!(first.path().metadata().unwrap().permissions().mode() & 0o777, 0o700);
        // a demo that was killed: its lock is gone, its files are not
        let killed = parent.path().join(format!("{FOLDER}killed"));
        std::fs::create_dir(&killed).unwrap();
        std::fs::write(killed.join(LOCK), "").unwrap();
        std::fs::write(killed.join("ledger.redb"), "x").unwrap();
        // not a demo's, though its name says so: nothing to lock, and a link to elsewhere
        std::fs::create_dir(parent.path().join(format!("{FOLDER}made-by-hand"))).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::fs::write(elsewhere.path().join(LOCK), "").unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), parent.path().join(format!("{FOLDER}link"))).unwrap();
        let second = Folder::new_in(parent.path()).unwrap();
        assert!(!killed.exists());
        assert!(first.path().join(LOCK).exists() && elsewhere.path().join(LOCK).exists());
        assert_eq!(folders(), 4);
        drop((first, second));
        assert_eq!(folders(), 2);
    }

    #[test]
    fn the_demo_s_configuration_is_one_that_check_accepts() {
        let config = config("http://127.0.0.1:1", Path::new("/tmp/x"), "5s").unwrap();
        let systems: Vec<_> = config.sources.iter().map(crate::config::SourceConfig::system).collect();
        assert_eq!(systems, SERVICES.iter().map(|service| service.system).collect::<Vec<_>>());
    }
}
