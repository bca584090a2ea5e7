//! The file beside the lock. What whole processes do with it is in `tests/it/locks.rs`.

use super::*;

fn path(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("ledger.lock")
}

#[test]
fn of_several_that_make_or_take_over_the_file_at_the_same_moment_one_has_it() {
    for left_behind in [None, Some("from a process that is gone\n")] {
        let folder = tempfile::tempdir().unwrap();
        let path = path(&folder);
        if let Some(text) = left_behind {
            fs::write(&path, text).unwrap();
        }
        let contenders: Vec<_> = (0..6)
            .map(|_| {
                let path = path.clone();
                thread::spawn(move || Lease::take(path, left_behind))
            })
            .collect();
        let taken: Vec<_> = contenders.into_iter().map(|one| one.join().unwrap()).collect();
        let owners: Vec<_> = taken.iter().filter_map(|one| one.as_ref().ok()).collect();
        assert_eq!(owners.len(), 1, "{taken:?}");
        owners[0].state.check().unwrap();
        drop(taken);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing stays behind");
    }
}

#[test]
fn the_file_of_another_is_neither_written_nor_removed() {
    let folder = tempfile::tempdir().unwrap();
    let lease = Lease::take(path(&folder), None).unwrap();
    let of_another = format!("{:032x} {:020} pid 7 on host there\n", 1, 1);
    fs::write(path(&folder), &of_another).unwrap();
    let why = lease.state.check().unwrap_err().to_string();
    assert!(why.contains("taken over by another process (pid 7 on host there)"), "{why}");
    thread::sleep(BEAT * 2);
    drop(lease);
    assert_eq!(fs::read_to_string(path(&folder)).unwrap(), of_another);
}

#[test]
fn a_file_that_somebody_cleaned_up_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let lease = Lease::take(path(&folder), None).unwrap();
    fs::remove_file(path(&folder)).unwrap();
    lease.state.check().unwrap();
    assert!(fs::read_to_string(path(&folder)).unwrap().starts_with(&lease.state.id));
    assert!(matches!(Lease::take(path(&folder), None), Err(Refused::InUse(_))));
}
