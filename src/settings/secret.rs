//! A secret: given in the config file, or in a file of its own.
//!
//! Promises: `Debug` and every error leave the secret out; a secret from a file is the file's
//! present content, so a rotated credential is used without a reload; a text that cannot be what
//! it should be (a byte order mark, quotes, a line end inside, a placeholder that nobody replaced)
//! is refused at every reading, so that no login is spent on it; what is read of a file is
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

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};

/// Largest secret file, in bytes. Tokens have a few hundred; a bigger file is a wrong path.
pub const SECRET_BYTES_MAX: usize = 64 * 1024;
/// Where systemd puts the credentials of a unit.
const CREDENTIALS: &str = "/run/credentials";

/// A secret that can be read whenever it is needed.
///
/// Equal means the same text, or the same path: a file with new content is the same secret, rotated.
#[derive(Clone)]
pub struct Secret {
    from: From,
    form: Form,
}

/// What a secret is, and so which characters it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A text that people choose, such as a password: any visible characters, blanks inside.
    Password,
    /// A text that a header carries as it is: visible ASCII without blanks.
    Token,
    /// Base64, as Index Exchange issues it; what it encodes is for the service to say.
    Base64Key,
}

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
pub(crate) enum Why {
    #[error("cannot be read: {0}")]
    Io(io::Error),
    #[error(
        "cannot be read by the user of this process (uid {user}): {error}; change the owner, the group or the mode of the \
         file and its folder"
    )]
    Forbidden { user: u32, error: io::Error },
    #[error(
        "cannot be read: {0}; systemd puts it there when it starts the unit: put the secret where LoadCredential= of the \
         unit says, and restart the unit"
    )]
    Credential(io::Error),
    #[error("is not a regular file")]
    NotAFile,
    #[error("is empty")]
    Empty,
    #[error("is larger than {SECRET_BYTES_MAX} bytes")]
    Large,
    #[error("is not UTF-8 text")]
    NotText,
    #[error("is UTF-16 text, as some editors and PowerShell write it: save it as UTF-8 without a byte order mark")]
    Utf16,
    #[error(transparent)]
    Form(#[from] BadForm),
}

impl Why {
    /// Whether what stands in the file is wrong, and not the file.
    pub(crate) fn is_of_content(&self) -> bool {
        matches!(self, Self::Empty | Self::Large | Self::NotText | Self::Utf16 | Self::Form(_))
    }

    /// Says what helps, where that follows from the place or the error.
    fn unreadable(path: &Path, error: io::Error) -> Self {
        if path.starts_with(CREDENTIALS) {
            return Why::Credential(error);
        }
        match error.kind() {
            io::ErrorKind::PermissionDenied => Why::Forbidden { user: rustix::process::geteuid().as_raw(), error },
            _ => Why::Io(error),
        }
    }
}

/// Why a text cannot be the secret it should be. Says what kind of character is in the way and
/// nothing of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadForm {
    #[error("begins with a byte order mark (U+FEFF): save it as UTF-8 without one")]
    ByteOrderMark,
    #[error("has a line end inside; only one at the end is ignored")]
    LineEnd,
    #[error("has a control character (U+{0:04X}) inside")]
    Control(u32),
    #[error("has an invisible character (U+{0:04X}) inside")]
    Invisible(u32),
    #[error("has a blank (U+{0:04X}) at its beginning or end")]
    BlankAround(u32),
    #[error("has a blank (U+{0:04X}) inside, and tokens have none")]
    BlankInside(u32),
    #[error("has a non-ASCII character, which a header cannot carry")]
    NotAscii,
    #[error("is in quotes, which would be sent as part of it: remove them")]
    Quoted,
    #[error("begins with the word `{0}`, which the exporter adds itself: remove it")]
    Scheme(&'static str),
    #[error("is a placeholder such as ${{NAME}}, and variables are not expanded here: write the value")]
    Placeholder,
    #[error("is a line NAME=VALUE: write only the value")]
    Assignment,
    #[error("is JSON: write only the token")]
    Json,
    #[error("is not base64: write the key exactly as issued")]
    NotBase64,
}

impl Secret {
    /// A secret given as text. One newline at its end is not part of it.
    pub fn text(text: &str) -> Self {
        Self { from: From::Text(without_newline(text).into()), form: Form::Password }
    }

    /// A secret that stands in the file at `path`.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { from: From::File(path.into()), form: Form::Password }
    }

    /// The same secret, which has to be of this form.
    #[must_use]
    pub fn of_form(self, form: Form) -> Self {
        Self { form, ..self }
    }

    /// The current secret. A file is read on every call: it is small, and no time stamp can
    /// hide a change. One newline (`\n` or `\r\n`) at its end is not part of the secret.
    ///
    /// # Errors
    /// The file is gone, unreadable, no regular file, empty, too large or not UTF-8, or what stands in it is not
    /// of the secret's form. A text of the configuration was checked when it was read.
    pub fn read(&self) -> Result<SecretString, SecretError> {
        match &self.from {
            From::Text(text) => Ok(text.clone()),
            From::File(path) => read_file(path, self.form).map_err(|why| SecretError { path: path.clone(), why }),
        }
    }

    /// The file it is read from, if it is.
    pub fn path(&self) -> Option<&Path> {
        match &self.from {
            From::Text(_) => None,
            From::File(path) => Some(path),
        }
    }
}

fn read_file(path: &Path, form: Form) -> Result<SecretString, Why> {
    // as large as it may be, because growing would leave copies behind
    let mut content = Zeroizing::new(Vec::with_capacity(SECRET_BYTES_MAX + 1));
    open_file(path)?.take(SECRET_BYTES_MAX as u64 + 1).read_to_end(&mut content).map_err(Why::Io)?;
    if content.len() > SECRET_BYTES_MAX {
        return Err(Why::Large);
    }
    if content.starts_with(b"\xff\xfe") || content.starts_with(b"\xfe\xff") {
        return Err(Why::Utf16);
    }
    let secret = without_newline(std::str::from_utf8(&content).map_err(|_| Why::NotText)?);
    check_file_text(secret, form)?;
    Ok(secret.into())
}

/// Whether a file may hold this text, but for its newline at the end, as a secret of this form.
pub(crate) fn check_file_text(secret: &str, form: Form) -> Result<(), Why> {
    if secret.trim_matches(|c: char| c.is_whitespace() || is_invisible(c)).is_empty() {
        return Err(Why::Empty);
    }
    check_form(secret, form)?;
    // a password may have them, but then somebody wrote them on purpose: in the configuration, where YAML shows them
    if let Some(blank) = secret.chars().next().into_iter().chain(secret.chars().last()).find(|c| c.is_whitespace()) {
        return Err(BadForm::BlankAround(blank.into()).into());
    }
    if ['"', '\'', '`']
        .into_iter()
        .any(|quote| secret.len() > 1 && secret.starts_with(quote) && secret.ends_with(quote))
    {
        return Err(BadForm::Quoted.into());
    }
    Ok(())
}

/// Whether the secret file at `path` could be read now, and holds a secret of this form.
pub(crate) fn check_secret_file(path: &Path, form: Form) -> Result<(), Why> {
    read_file(path, form).map(drop)
}

/// Whether a text can be a secret of this form. It is never sent otherwise: a login with a password
/// that was pasted badly counts as a failed one, and accounts lock.
pub(crate) fn check_form(text: &str, form: Form) -> Result<(), BadForm> {
    if text.starts_with('\u{feff}') {
        return Err(BadForm::ByteOrderMark);
    }
    if text.contains(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']) {
        return Err(BadForm::LineEnd);
    }
    for c in text.chars() {
        match c {
            _ if c.is_control() => return Err(BadForm::Control(c.into())),
            _ if is_invisible(c) => return Err(BadForm::Invisible(c.into())),
            _ => {}
        }
    }
    if is_placeholder(text.trim()) {
        return Err(BadForm::Placeholder);
    }
    match form {
        Form::Password => Ok(()),
        Form::Token => check_token(text),
        Form::Base64Key => check_token(text).and_then(|()| check_base64_key(text)),
    }
}

fn check_token(text: &str) -> Result<(), BadForm> {
    let ends = [text.chars().next(), text.chars().last()];
    if let Some(blank) = ends.into_iter().flatten().find(|c| c.is_whitespace()) {
        return Err(BadForm::BlankAround(blank.into()));
    }
    for scheme in ["Bearer", "Basic", "Token", "Authorization:"] {
        let rest = text.get(..scheme.len()).filter(|start| start.eq_ignore_ascii_case(scheme));
        if rest.is_some() && text[scheme.len()..].starts_with(char::is_whitespace) {
            return Err(BadForm::Scheme(scheme));
        }
    }
    if text.starts_with(['"', '\'', '`']) && text.ends_with(['"', '\'', '`']) {
        return Err(BadForm::Quoted);
    }
    if text.starts_with(['{', '[']) {
        return Err(BadForm::Json);
    }
    // padding ends a token; what follows it is a value
    let name = text.split_once('=').filter(|(_, value)| value.contains(|c| c != '=')).map(|(name, _)| name);
    if name.is_some_and(is_variable) {
        return Err(BadForm::Assignment);
    }
    for c in text.chars() {
        match c {
            _ if c.is_whitespace() => return Err(BadForm::BlankInside(c.into())),
            '!'..='~' => {}
            _ => return Err(BadForm::NotAscii),
        }
    }
    Ok(())
}

fn check_base64_key(text: &str) -> Result<(), BadForm> {
    let decoded = STANDARD.decode(text).map(Zeroizing::new);
    decoded.map(drop).map_err(|_| BadForm::NotBase64)
}

/// What shows nothing and is no blank: it comes along when a text is copied from a page.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Whether the whole text is what some other tool would have replaced: `${NAME}`, `$(command)`, `{{ name }}`,
/// `<token>`, `%NAME%`.
fn is_placeholder(text: &str) -> bool {
    let within = |open: &str, close: &str| text.strip_prefix(open).and_then(|rest| rest.strip_suffix(close));
    let is_template = [("${", "}"), ("$(", ")"), ("{{", "}}"), ("<", ">")]
        .into_iter()
        .any(|(open, close)| within(open, close).is_some());
    is_template || within("%", "%").is_some_and(is_variable) || text.strip_prefix('$').is_some_and(is_variable)
}

/// Whether it looks like the name of an environment variable.
fn is_variable(name: &str) -> bool {
    name.len() > 2
        && name.starts_with(|c: char| c.is_ascii_uppercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
}

/// Opens a file, if it is a regular one.
pub(crate) fn open_file(path: &Path) -> Result<File, Why> {
    // Asked before opening: to open a pipe without a writer would wait for ever.
    let unreadable = |error| Why::unreadable(path, error);
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(Why::NotAFile);
    }
    File::open(path).map_err(unreadable)
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
                "every user of this machine can read this file, and it holds a secret: chmod 600 it; for a Kubernetes \
                 secret, set its defaultMode to 0400"
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
        match (&self.from, &other.from) {
            (From::Text(a), From::Text(b)) => a.expose_secret() == b.expose_secret(),
            (From::File(a), From::File(b)) => a == b,
            _ => false,
        }
    }
}

impl Eq for Secret {}

/// Nor says where it is: settings that read the same look the same (`backfill.rs`).
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
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
    fn a_file_that_cannot_be_read_is_told_with_what_helps_there() {
        let told = |path: &str, kind: io::ErrorKind| Why::unreadable(Path::new(path), kind.into()).to_string();
        for kind in [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied] {
            let credential = told("/run/credentials/audit-exporter.service/secrets_losant.token", kind);
            assert!(credential.contains("LoadCredential=") && credential.contains("restart the unit"), "{credential}");
        }
        let forbidden = told("/etc/audit-exporter/secrets/losant.token", io::ErrorKind::PermissionDenied);
        let user = format!("(uid {})", rustix::process::geteuid().as_raw());
        assert!(forbidden.contains(&user) && forbidden.contains("mode of the file"), "{forbidden}");
        let missing = told("/etc/audit-exporter/secrets/losant.token", io::ErrorKind::NotFound);
        assert!(!missing.contains("LoadCredential") && !missing.contains("uid"), "{missing}");
    }

    #[test]
    fn one_newline_at_the_end_is_not_part_of_the_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        for (content, secret) in [("a", "a"), ("a\n", "a"), ("a\r\n", "a"), ("a b\n", "a b")] {
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
            (b"\xef\xbb\xbf\n", "is empty"),
            (b"\xfc", "is not UTF-8 text"),
            ("a".repeat(65_537).as_bytes(), "is larger than 65536 bytes"),
        ] {
            std::fs::write(&path, content).unwrap();
            assert!(Secret::file(&path).read().unwrap_err().to_string().ends_with(why), "{why}");
        }
        let error = Secret::file(folder.path()).read().unwrap_err().to_string();
        assert!(error.ends_with("is not a regular file"), "{error}");
    }

    /// What is said of a file with this content, or nothing if it is good.
    fn refused(content: &[u8], form: Form) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, content).unwrap();
        match Secret::file(&path).of_form(form).read() {
            Ok(_) => String::new(),
            Err(error) => {
                let text = error.to_string();
                assert!(text.starts_with(&format!("the secret file {} ", path.display())), "{text}");
                assert!(!text.contains("tail"), "shows the secret: {text}");
                text
            }
        }
    }

    #[test]
    fn what_was_pasted_badly_is_named_by_its_kind_and_never_by_its_value() {
        for (content, why) in [
            (&b"\xef\xbb\xbf5xtail"[..], "byte order mark"),
            (b"\xff\xfe5\0x\0", "UTF-16"),
            (b"5x\ntail", "line end inside"),
            (b"5x\n\n", "line end inside"),
            (b"5x\rtail", "line end inside"),
            ("5x\u{2028}tail".as_bytes(), "line end inside"),
            (b"5x\0tail", "control character (U+0000)"),
            (b"5x\x1btail\n", "control character (U+001B)"),
            (b"\t5xtail", "control character (U+0009)"),
            ("5x\u{200b}tail".as_bytes(), "invisible character (U+200B)"),
            ("5xtail\u{feff}".as_bytes(), "invisible character (U+FEFF)"),
            (b" 5xtail", "blank (U+0020) at its beginning or end"),
            (b"5xtail \n", "blank (U+0020) at its beginning or end"),
            ("5xtail\u{a0}\n".as_bytes(), "blank (U+00A0) at its beginning or end"),
            ("\u{3000}5xtail".as_bytes(), "blank (U+3000) at its beginning or end"),
            (b"\"5xtail\"\n", "is in quotes"),
            (b"'5xtail'", "is in quotes"),
            (b"${5xtail}", "placeholder"),
            (b"$(cat 5xtail)", "placeholder"),
            (b"{{ 5xtail }}\n", "placeholder"),
            (b"<5xtail>", "placeholder"),
            (b"$CANVAS_TAIL", "placeholder"),
            (b"%CANVAS_TAIL%", "placeholder"),
        ] {
            for form in [Form::Password, Form::Token, Form::Base64Key] {
                let told = refused(content, form);
                assert!(told.contains(why), "{form:?} {:?}: {told}", String::from_utf8_lossy(content));
            }
        }
        for (content, why) in [
            (&b"Bearer 5xtail"[..], "the word `Bearer`"),
            (b"bearer  5xtail\n", "the word `Bearer`"),
            (b"Authorization: Bearer 5xtail\n", "the word `Authorization:`"),
            (b"5x tail", "blank (U+0020) inside"),
            ("5x\u{a0}tail".as_bytes(), "blank (U+00A0) inside"),
            ("5x\u{e4}tail".as_bytes(), "non-ASCII"),
            (b"{\"access_token\":\"5xtail\"}", "is JSON"),
            (b"CANVAS_TOKEN=5xtail", "NAME=VALUE"),
        ] {
            let told = refused(content, Form::Token);
            assert!(told.contains(why), "{:?}: {told}", String::from_utf8_lossy(content));
        }
        for (content, why) in [
            (&b"5x*tail"[..], "is not base64"),
            (b"aXhjbGllbnQ6c2VjcmV0dGFpb", "is not base64"),
            (b"Basic aWQ6dGFpbA==", "the word `Basic`"),
        ] {
            let told = refused(content, Form::Base64Key);
            assert!(told.contains(why), "{:?}: {told}", String::from_utf8_lossy(content));
        }
    }

    #[test]
    fn what_people_and_services_choose_is_taken_as_it_is() {
        for (content, form) in [
            ("correct horse battery", Form::Password),
            ("p\"w'x`", Form::Password),
            ("\"", Form::Password),
            ("größer=als $5 {alles} <b>", Form::Password),
            ("a\u{a0}b", Form::Password),
            ("$5x", Form::Password),
            ("$ab", Form::Password),
            ("1042~AbC/plus+eq=", Form::Token),
            ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln-_", Form::Token),
            ("bearer", Form::Token),
            ("BASE64==", Form::Token),
            ("aWQ6c2VjcmV0", Form::Base64Key),
            ("aXhjbGllbnQ6SXhTZWNyZXQtVmFsdWUtMzE=", Form::Base64Key),
        ] {
            assert_eq!(refused(content.as_bytes(), form), "");
            assert_eq!(refused(format!("{content}\r\n").as_bytes(), form), "");
            assert_eq!(check_form(content, form), Ok(()));
        }
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
        assert_eq!(format!("{:?}", Secret::text("hunter2")), "Secret(..)");
        assert_eq!(format!("{:?}", Secret::file("/run/token")), "Secret(..)");
    }

    #[test]
    fn secrets_are_equal_by_text_or_path() {
        assert_eq!(Secret::text("a"), Secret::text("a"));
        assert_ne!(Secret::text("a"), Secret::text("b"));
        assert_eq!(Secret::file("a"), Secret::file("a"));
        assert_ne!(Secret::file("a"), Secret::text("a"));
    }
}
