//! Creates the files of `init`: all of them, or none.
//!
//! Promises:
//! - No file is overwritten: whatever is in the way, a link included, is named.
//! - If one cannot be written, those that were are removed again, and the folder if it was made.

use std::fmt;
use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use secrecy::ExposeSecret;

use super::NewFile;

/// Who may enter the folder of the secrets: its owner.
const FOLDER_MODE: u32 = 0o700;

/// Why nothing was written.
#[derive(Debug)]
pub enum NotWritten {
    /// There is something already.
    InTheWay(PathBuf),
    /// It could not be done.
    Failed(PathBuf, io::Error),
}

impl fmt::Display for NotWritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InTheWay(path) => write!(
                f,
                "{} is in the way, and init overwrites nothing: remove or rename it, or write elsewhere with --config.file \
                 and --secrets.path; nothing was written",
                path.display()
            ),
            Self::Failed(path, error) => write!(f, "cannot write {}: {error}; nothing was written", path.display()),
        }
    }
}

/// Creates the files, and the folder for secrets if one of them needs it.
pub fn create(files: &[NewFile], secrets: &Path) -> Result<(), NotWritten> {
    let mut made = Made::default();
    if files.iter().any(|file| file.path.starts_with(secrets)) {
        made.folder(secrets)?;
    }
    for file in files {
        made.file(file)?;
    }
    made.files.clear();
    made.folder = None;
    Ok(())
}

/// What was made so far. It is removed when this is dropped.
#[derive(Default)]
struct Made {
    files: Vec<PathBuf>,
    folder: Option<PathBuf>,
}

impl Made {
    fn folder(&mut self, folder: &Path) -> Result<(), NotWritten> {
        match DirBuilder::new().mode(FOLDER_MODE).create(folder) {
            Ok(()) => self.folder = Some(folder.to_owned()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !folder.is_dir() {
                    return Err(NotWritten::InTheWay(folder.to_owned()));
                }
            }
            Err(error) => return Err(NotWritten::Failed(folder.to_owned(), error)),
        }
        Ok(())
    }

    fn file(&mut self, NewFile { path, mode, whatever_umask, text }: &NewFile) -> Result<(), NotWritten> {
        // `create_new` follows no link, and two of us cannot both succeed
        let opened = File::options().write(true).create_new(true).mode(*mode).open(path);
        let mut file = opened.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => NotWritten::InTheWay(path.clone()),
            _ => NotWritten::Failed(path.clone(), error),
        })?;
        self.files.push(path.clone());
        let mode = if *whatever_umask { file.set_permissions(Permissions::from_mode(*mode)) } else { Ok(()) };
        let written =
            mode.and_then(|()| file.write_all(text.expose_secret().as_bytes())).and_then(|()| file.sync_all());
        written.map_err(|error| NotWritten::Failed(path.clone(), error))
    }
}

/// Whether this user can create files in a folder: to be known before anything is asked.
pub fn is_writable(folder: &Path) -> io::Result<()> {
    Ok(access(folder, Access::WRITE_OK | Access::EXEC_OK)?)
}

impl Drop for Made {
    fn drop(&mut self) {
        for file in &self.files {
            let _ = std::fs::remove_file(file);
        }
        if let Some(folder) = &self.folder {
            let _ = std::fs::remove_dir(folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: PathBuf, mode: u32, text: &str) -> NewFile {
        NewFile { path, mode, whatever_umask: false, text: text.into() }
    }

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn files_are_made_with_their_modes_in_a_folder_of_their_owner() {
        let folder = tempfile::tempdir().unwrap();
        let (secrets, config) = (folder.path().join("secrets"), folder.path().join("a.yml"));
        create(&[file(secrets.join("a.token"), 0o600, "s\n"), file(config.clone(), 0o644, "c\n")], &secrets).unwrap();
        assert_eq!((mode(&secrets), mode(&secrets.join("a.token"))), (0o700, 0o600));
        // what the umask takes away, others do not get
        assert_eq!(mode(&config) & !0o644, 0);
        assert_eq!(std::fs::read_to_string(secrets.join("a.token")).unwrap(), "s\n");
        assert_eq!(std::fs::read_to_string(config).unwrap(), "c\n");
    }

    #[test]
    fn what_is_in_the_way_is_named_and_left_alone_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let (secrets, config) = (folder.path().join("secrets"), folder.path().join("a.yml"));
        let files = [file(secrets.join("a.token"), 0o600, "s\n"), file(config.clone(), 0o644, "c\n")];
        let refused = |path: &Path| {
            let why = create(&files, &secrets).unwrap_err();
            assert!(matches!(&why, NotWritten::InTheWay(in_the_way) if in_the_way == path), "{why}");
            assert!(why.to_string().contains(&path.display().to_string()), "{why}");
        };
        std::fs::write(&config, "mine").unwrap();
        refused(&config);
        assert!(!secrets.exists(), "the folder was made for nothing");
        assert_eq!(std::fs::read_to_string(&config).unwrap(), "mine");
        // a folder that was there stays
        std::fs::create_dir(&secrets).unwrap();
        refused(&config);
        assert_eq!(secrets.read_dir().unwrap().count(), 0);
        // also where a link leads nowhere
        std::fs::remove_file(&config).unwrap();
        std::os::unix::fs::symlink(folder.path().join("nowhere"), &config).unwrap();
        refused(&config);
        assert!(config.is_symlink() && !folder.path().join("nowhere").exists());
        std::fs::remove_file(&config).unwrap();
        std::fs::write(secrets.join("a.token"), "mine").unwrap();
        refused(&secrets.join("a.token"));
        assert_eq!(std::fs::read_to_string(secrets.join("a.token")).unwrap(), "mine");
        assert!(!config.exists());
        std::fs::remove_dir_all(&secrets).unwrap();
        std::fs::write(&secrets, "a file").unwrap();
        refused(&secrets);
    }

    #[test]
    fn where_a_file_cannot_be_written_those_before_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let secrets = folder.path().join("secrets");
        let files =
            [file(secrets.join("a.token"), 0o600, "s\n"), file(folder.path().join("nowhere/a.yml"), 0o644, "c\n")];
        let why = create(&files, &secrets).unwrap_err();
        assert!(matches!(why, NotWritten::Failed(..)), "{why}");
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }
}
