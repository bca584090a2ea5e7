//! What is in a copy. How it is made beside a running exporter, and restored: `tests/it/backup.rs`.

use redb::{MultimapTableDefinition, ReadableDatabase, TableDefinition};

use super::*;

fn store(more: impl Fn(&redb::WriteTransaction)) -> (tempfile::TempDir, Database) {
    let folder = tempfile::tempdir().unwrap();
    drop(crate::ledger::Ledger::open(folder.path()).unwrap());
    let database = Database::open(folder.path().join("ledger.redb")).unwrap();
    let write = database.begin_write().unwrap();
    more(&write);
    write.commit().unwrap();
    (folder, database)
}

fn copy(database: &Database) -> Result<(Copied, File), StoreError> {
    let file = tempfile::tempfile().unwrap();
    let copied = write(&database.begin_read()?, file.try_clone()?)?;
    Ok((copied, file))
}

#[test]
fn every_table_of_a_new_store_is_copied() {
    let (_folder, database) = store(|_| {});
    let (copied, file) = copy(&database).unwrap();
    verify_copy(&file, copied).unwrap();
    let copy = Builder::new().create_with_backend(Private::new(file).unwrap()).unwrap();
    let names = |database: &Database| {
        let read = database.begin_read().unwrap();
        read.list_tables().unwrap().map(|table| redb::TableHandle::name(&table).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&copy), names(&database));
}

#[test]
fn a_table_of_a_version_to_come_is_an_error_and_is_not_left_out() {
    for multimap in [false, true] {
        let (_folder, database) = store(|write| {
            if multimap {
                write.open_multimap_table(MultimapTableDefinition::<u64, u64>::new("findings")).unwrap();
            } else {
                write.open_table(TableDefinition::<&str, u64>::new("findings")).unwrap();
            }
        });
        let why = copy(&database).unwrap_err().to_string();
        assert!(why.contains("findings"), "{why}");
    }
}

#[test]
fn a_copy_that_was_damaged_or_is_another_is_not_taken_for_one() {
    use std::os::unix::fs::FileExt;
    let (_folder, database) = store(|_| {});
    let (copied, file) = copy(&database).unwrap();
    let other = Copied { commit: copied.commit + 1, ..copied };
    assert!(matches!(verify_copy(&file, other), Err(BackupError::Other { found, .. }) if found == copied));
    let length = file.metadata().unwrap().len();
    for block in 1..length / 4096 {
        let mut byte = [0];
        file.read_exact_at(&mut byte, block * 4096 + 17).unwrap();
        file.write_all_at(&[byte[0] ^ 1], block * 4096 + 17).unwrap();
    }
    assert!(matches!(verify_copy(&file, copied), Err(BackupError::Unreadable(_))));
}
