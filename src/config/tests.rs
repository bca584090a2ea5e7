//! What a configuration file may say, and what is said of one: the examples of the docs (`examples.rs`), values that
//! are read (`values.rs`), the file as a whole (`files.rs`), what is refused (`refused.rs`) and warned of
//! (`warnings.rs`), and secrets (`secrets.rs`).

mod examples;
mod files;
mod refused;
mod secrets;
mod values;
mod warnings;

use secrecy::ExposeSecret;

use super::*;
use crate::source::{activid, canvas, index_exchange, informatica, losant as losant_source};

const MINUTE: Duration = Duration::from_mins(1);

const EXAMPLE: &str = include_str!("../../docs/example.yml");
const REFERENCE: &str = include_str!("../../docs/configuration.md");

/// A certificate and its key.
static CERTIFICATE: std::sync::LazyLock<[String; 2]> = std::sync::LazyLock::new(|| {
    let own = rcgen::generate_simple_self_signed(vec!["api.internal".to_owned()]).unwrap();
    [own.cert.pem(), own.signing_key.serialize_pem()]
});

/// A folder with the files that the examples name.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in [
        ("canvas.token", "canvas-secret\n"),
        ("informatica.password", "informatica-secret"),
        ("activid.secret", "activid-secret\r\n"),
        ("losant.token", "losant-secret"),
        ("ix.key", "aXg6c2VjcmV0\n"),
        ("proxy.password", "proxy-secret\n"),
        ("gateway.key", "gateway-secret\n"),
        ("empty", ""),
    ] {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    for (name, content) in ["private-ca.pem", "client.pem", "client.key"].into_iter().zip([0, 0, 1]) {
        std::fs::write(folder.path().join(name), &CERTIFICATE[content]).unwrap();
    }
    folder
}

/// `text` as the config file of a folder with secrets.
fn parsed(text: &str) -> Result<Config, ConfigErrors> {
    let folder = folder();
    parse(text, &folder.path().join("c.yml"))
}

/// The problems of `text` as `LINE:COLUMN: message`, without the accepted keys of a mapping, and
/// with DIR for the folder.
fn problems(text: &str) -> Vec<String> {
    let folder = folder();
    let path = folder.path().join("c.yml");
    let shown = match parse(text, &path) {
        Ok(_) => return Vec::new(),
        Err(errors) => errors.to_string(),
    };
    let prefix = format!("{}:", path.display());
    shown
        .lines()
        .map(|line| line.strip_prefix(&prefix).expect("every line begins with the file"))
        .map(|line| line.replace(&folder.path().display().to_string(), "DIR"))
        .map(|line| match line.split_once("; accepted: name, base_url, instance_id, ") {
            Some((what, _)) => format!("{what}; accepted: KEYS"),
            None => line,
        })
        .collect()
}

/// A losant source with these lines added; its first own line is line 6.
fn losant(lines: &str) -> String {
    let lines = lines.lines().map(|line| format!("      {line}")).collect::<Vec<_>>().join("\n");
    format!("sources:\n  losant:\n    - name: iot\n      instance_id: abc\n      api_token: hunter2\n{lines}\n")
}

fn only(text: &str) -> SourceConfig {
    let mut sources = parsed(text).unwrap().sources;
    assert_eq!(sources.len(), 1);
    sources.remove(0)
}

/// What only its service needs of a source.
fn own<T: Entry>(source: &SourceConfig) -> &T {
    let entry: &dyn std::any::Any = &*source.service;
    entry.downcast_ref().expect("a source of this service")
}

/// Every key there is, some more than once, with the part of the reference that tells of it.
fn all_keys() -> Vec<(Key, String)> {
    fn add(keys: &[Key], part: &str, to: &mut Vec<(Key, String)>) {
        for key in keys {
            to.push((*key, part.to_owned()));
            if let Kind::Section(keys) | Kind::Sections(keys) = key.kind {
                add(keys, key.name, to);
            }
        }
    }
    let mut all = Vec::new();
    add(TOP, "", &mut all);
    for system in SYSTEMS {
        add(&lists(), "", &mut all);
        add(&keys_of(system), "", &mut all);
        add(system.keys, system.name.as_str(), &mut all);
    }
    all
}

fn url(text: &str) -> Url {
    Url::parse(text).unwrap()
}

/// The warnings of a text that is accepted.
fn warnings(text: &str) -> Vec<String> {
    parsed(text).unwrap().warned(Path::new("c.yml")).collect()
}
