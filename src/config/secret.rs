//! A secret: given in the config file, or in a file of its own.
//!
//! Promises: `Debug` and every error leave the secret out; a secret from a file is the file's
//! present content, so a rotated credential is used without a reload; what is read of a file is
//! wiped when it is no longer needed; a file that all may read is told of.
//!
//! Leaves to others: when to ask again (`api.rs` asks for each login, or for each request that
//! carries the secret itself).

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};

/// Largest secret file, in bytes. Tokens have a few hundred; a bigger file is a wrong path.
pub const SECRET_BYTES_MAX: usize = 64 * 1024;

/// A secret that can be read whenever it is needed.
///
/// Equal means the same text, or the same path: a file with new content is the same secret, rotated.
#[derive(Clone)]
pub struct Secret(From);

#[derive(Clone)]
enum From {
    Text(SecretString),
    File(PathBuf),
}

/// Why a secret cannot be read. Displays the path, never the content.
#[derive(Debug, thiserror::Error)]
#[error("the secret file {path} {why}", path = path.display())]
pub struct SecretError {
    path: PathBuf,
    why: Why,
}

/// What is wrong with a file, without its path, which might be a secret in the wrong place.
#[derive(Debug, thiserror::Error)]
pub(super) enum Why {
    #[error("cannot be read: {0}")]
    Io(io::Error),
    #[error("is not a regular file")]
    NotAFile,
    #[error("is empty")]
    Empty,
    #[error("is larger than {SECRET_BYTES_MAX} bytes")]
    Large,
    #[error("is not UTF-8 text")]
    NotText,
}

impl Secret {
    /// A secret given as text. One newline at its end is not part of it.
    pub fn text(text: &str) -> Self {
        Self(From::Text(without_newline(text).into()))
    }

    /// A secret that stands in the file at `path`.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self(From::File(path.into()))
    }

    /// The secret as it is now. A file is read on every call: it is small, and no time stamp can
    /// hide a change. One newline (`\n` or `\r\n`) at its end is not part of the secret.
    ///
    /// # Errors
    /// The file is gone, unreadable, no regular file, empty, too large or not UTF-8.
    pub fn read(&self) -> Result<SecretString, SecretError> {
        match &self.0 {
            From::Text(text) => Ok(text.clone()),
            From::File(path) => read_file(path).map_err(|why| SecretError { path: path.clone(), why }),
        }
    }

    /// The file it is read from, if it is.
    pub fn path(&self) -> Option<&Path> {
        match &self.0 {
            From::Text(_) => None,
            From::File(path) => Some(path),
        }
    }
}

fn read_file(path: &Path) -> Result<SecretString, Why> {
    // as large as it may be, because growing would leave copies behind
    let mut content = Zeroizing::new(Vec::with_capacity(SECRET_BYTES_MAX + 1));
    open_file(path)?.take(SECRET_BYTES_MAX as u64 + 1).read_to_end(&mut content).map_err(Why::Io)?;
    if content.len() > SECRET_BYTES_MAX {
        return Err(Why::Large);
    }
    let secret = without_newline(std::str::from_utf8(&content).map_err(|_| Why::NotText)?);
    if secret.trim().is_empty() { Err(Why::Empty) } else { Ok(secret.into()) }
}

/// Whether the secret file at `path` could be read now.
pub(super) fn check_secret_file(path: &Path) -> Result<(), Why> {
    read_file(path).map(drop)
}

/// Opens a file, if it is a regular one.
pub(super) fn open_file(path: &Path) -> Result<File, Why> {
    // Asked before opening: to open a pipe without a writer would wait for ever.
    if !std::fs::metadata(path).map_err(Why::Io)?.is_file() {
        return Err(Why::NotAFile);
    }
    File::open(path).map_err(Why::Io)
}

/// Warns, once for each, of the files that every user of this machine can read. They hold secrets.
///
/// Others may read a file whose mode says so (that of the file a link leads to) and that they can
/// get at. A group may be meant: that is how a secret is shared with a service of its own user.
pub(crate) fn warn_of_open_files<'p>(paths: impl IntoIterator<Item = &'p Path>) {
    for path in paths.into_iter().collect::<BTreeSet<_>>() {
        if let Some(mode) = mode_if_open_to_all(path) {
            tracing::warn!(
                path = %path.display(),
                mode = %format_args!("{mode:04o}"),
                "every user of this machine can read this file, and it holds a secret: chmod 600 it, or, where it is \
                 a Kubernetes secret, set its defaultMode to 0400"
            );
        }
    }
}

/// The mode of a file that every user of this machine can read.
pub(crate) fn mode_if_open_to_all(path: &Path) -> Option<u32> {
    let mode_of = |path: &Path| Some(std::fs::metadata(path).ok()?.permissions().mode() & 0o7777);
    let real = path.canonicalize().ok()?;
    let mode = mode_of(&real)?;
    let way_is_open = real.ancestors().skip(1).all(|folder| mode_of(folder).is_some_and(|mode| mode & 0o001 != 0));
    (mode & 0o004 != 0 && way_is_open).then_some(mode)
}

fn without_newline(text: &str) -> &str {
    text.strip_suffix('\n').map_or(text, |text| text.strip_suffix('\r').unwrap_or(text))
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (From::Text(a), From::Text(b)) => a.expose_secret() == b.expose_secret(),
            (From::File(a), From::File(b)) => a == b,
            _ => false,
        }
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            From::Text(_) => f.write_str("Secret(given as text)"),
            From::File(path) => write!(f, "Secret(in {})", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(secret: &Secret) -> String {
        secret.read().unwrap().expose_secret().to_owned()
    }

    #[test]
    fn a_rotated_file_is_read_anew_even_when_size_and_time_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "first").unwrap();
        let secret = Secret::file(&path);
        assert_eq!(shown(&secret), "first");
        let changed = std::fs::metadata(&path).unwrap().modified().unwrap();
        std::fs::write(&path, "other").unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(changed).unwrap();
        assert_eq!(shown(&secret), "other");
        std::fs::remove_file(&path).unwrap();
        let error = secret.read().unwrap_err().to_string();
        assert!(error.contains("token cannot be read: No such file"), "{error}");
    }

    #[test]
    fn one_newline_at_the_end_is_not_part_of_the_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        for (content, secret) in [("a", "a"), ("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), (" a \r", " a \r")] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(shown(&Secret::file(&path)), secret);
            assert_eq!(shown(&Secret::text(content)), secret);
        }
    }

    #[test]
    fn a_file_that_holds_no_secret_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        for (content, why) in [
            (&b"\n"[..], "is empty"),
            (b"", "is empty"),
            (b" \t\n", "is empty"),
            (b"\xff\xfe", "is not UTF-8 text"),
            ("a".repeat(65_537).as_bytes(), "is larger than 65536 bytes"),
        ] {
            std::fs::write(&path, content).unwrap();
            assert!(Secret::file(&path).read().unwrap_err().to_string().ends_with(why), "{why}");
        }
        let error = Secret::file(folder.path()).read().unwrap_err().to_string();
        assert!(error.ends_with("is not a regular file"), "{error}");
    }

    #[test]
    fn a_file_is_told_of_only_where_all_can_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let set = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        let (path, link) = (folder.path().join("token"), folder.path().join("link"));
        std::fs::write(&path, "secret").unwrap();
        // as Kubernetes mounts it
        std::os::unix::fs::symlink("token", &link).unwrap();
        for (of_folder, of_file, told) in [
            (0o755, 0o644, Some(0o644)),
            (0o755, 0o604, Some(0o604)),
            (0o711, 0o444, Some(0o444)),
            (0o755, 0o640, None),
            (0o755, 0o600, None),
            (0o700, 0o644, None),
        ] {
            set(folder.path(), of_folder);
            set(&path, of_file);
            for path in [&path, &link] {
                assert_eq!(mode_if_open_to_all(path), told, "{of_folder:o} {of_file:o} {}", path.display());
            }
        }
        assert_eq!(mode_if_open_to_all(&folder.path().join("absent")), None);
    }

    #[test]
    fn debug_shows_no_secret() {
        assert_eq!(format!("{:?}", Secret::text("hunter2")), "Secret(given as text)");
        assert_eq!(format!("{:?}", Secret::file("/run/token")), "Secret(in /run/token)");
    }

    #[test]
    fn secrets_are_equal_by_text_or_path() {
        assert_eq!(Secret::text("a"), Secret::text("a"));
        assert_ne!(Secret::text("a"), Secret::text("b"));
        assert_eq!(Secret::file("a"), Secret::file("a"));
        assert_ne!(Secret::file("a"), Secret::text("a"));
    }
}
