//! What is said of a folder that cannot be used. What needs another user is in `tests/it/disk.rs`.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

fn misplacement(folder: &Path) -> String {
    match usable(folder) {
        Err(Unusable::Misplaced(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_stands_in_the_place_of_the_folder_is_named() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    fs::write(at("file"), "").unwrap();
    let file = at("file").display().to_string();
    for folder in [at("file"), at("file/below"), at("file/far/below")] {
        assert!(misplacement(&folder).starts_with(&format!("{file} is a file")), "{}", misplacement(&folder));
    }
    fs::create_dir(at("data")).unwrap();
    fs::write(at("data/ledger.redb"), "").unwrap();
    assert!(misplacement(&at("data/ledger.redb")).ends_with(&format!("set it to {}", at("data").display())));
    symlink(at("gone"), at("link")).unwrap();
    for folder in [at("link"), at("link/below")] {
        let said = format!("is a symbolic link to {}, which is not there", at("gone").display());
        assert!(misplacement(&folder).contains(&said), "{}", misplacement(&folder));
    }
    fs::create_dir_all(at("odd/ledger.redb")).unwrap();
    assert!(misplacement(&at("odd")).contains("ledger.redb is a folder"));
}

#[test]
fn what_can_be_used_or_made_is_fine_and_is_not_made() {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("data")).unwrap();
    symlink(place.path().join("data"), place.path().join("link")).unwrap();
    for folder in ["data", "link", "new", "new/and/deep"] {
        usable(&place.path().join(folder)).unwrap();
    }
    assert!(!place.path().join("new").exists());
}
