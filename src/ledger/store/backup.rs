//! A copy of everything that is committed at one moment, made while commits go on.
//!
//! Promises: the copy is what one commit left, whole; a table this program does not know is an error
//! and not left out; a copy that was not read back and verified is never said to be one.
//!
//! Leaves to others: which tables there are (`tables.rs`), where the copy goes (`control.rs`).

use std::fs::File;
use std::io;

use redb::backends::FileBackend;
use redb::{Builder, Database, ReadTransaction, StorageBackend};

use super::{BackupError, Copied, StoreError, tables};
use crate::fault::catch_panic;

/// Writes the copy into an empty file, and flushes it.
pub(super) fn write(snapshot: &ReadTransaction, file: File) -> Result<Copied, StoreError> {
    let database = Builder::new().create_with_backend(Private::new(file)?)?;
    tables::copy_tables(snapshot, &database)?;
    database.close()?;
    tables::contents(snapshot)
}

/// Verifies every page of a copy, and that it is that of `copied`.
pub fn verify_copy(file: &File, copied: Copied) -> Result<(), BackupError> {
    let look = || {
        let mut builder = Builder::new();
        builder.set_check_integrity_on_open(true);
        let database: Database = builder.create_with_backend(Private::new(file.try_clone()?)?)?;
        let found = tables::contents_of(&database)?;
        database.close()?;
        Ok::<_, StoreError>(found)
    };
    match catch_panic(look).unwrap_or_else(|panic| Err(StoreError::Panic(panic))) {
        Ok(found) if found == copied => Ok(()),
        Ok(found) => Err(BackupError::Other { found, copied }),
        Err(error) => Err(BackupError::Unreadable(error.to_string())),
    }
}

/// A file that nobody else knows of: it needs no lock, and its file system may have none.
#[derive(Debug)]
struct Private(FileBackend);

impl Private {
    fn new(file: File) -> Result<Self, StoreError> {
        Ok(Self(FileBackend::new(file)?))
    }
}

impl StorageBackend for Private {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}

#[cfg(test)]
mod tests;
