//! What holds for every service, and what a source may not do.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::*;
use crate::event::Label;
use crate::settings::{Absent, Kind};

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/source")
}

/// Each file of a folder that is no test, by its path from there on, with its code: no comments, and no tests of its own.
fn files(root: &Path) -> Vec<(String, String)> {
    fn add(folder: &Path, to: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { add(&path, to) } else { to.push(path) }
        }
    }
    let mut paths = Vec::new();
    add(root, &mut paths);
    let is_test = |path: &Path| {
        let path = path.strip_prefix(root).unwrap();
        ["tests.rs", "ends.rs"].iter().any(|name| path.ends_with(name)) || path.iter().any(|part| part == "tests")
    };
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let code: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        (path.strip_prefix(root).unwrap().display().to_string(), code.join("\n"))
    };
    paths.into_iter().filter(|path| !is_test(path)).map(read).collect()
}

/// What a source may not do (docs/design.md), as it would stand in its code, and where it does so even so.
const FORBIDDEN: &[(&str, &[&str])] = &[
    // Index Exchange: how fast a file comes is known to who counts it as it comes
    ("tokio::time", &["index_exchange.rs"]),
    ("Instant::now", &["index_exchange.rs"]),
    ("thread::sleep", &[]),
    ("Utc::now", &[]),
    ("SystemTime", &[]),
    ("Clock", &[]),
    // ActivID: its cells are those of the tallies, so that both are cut at the same moments
    ("crate::ledger", &["activid.rs"]),
    ("crate::poll", &[]),
    ("crate::stats", &[]),
    ("crate::transport", &[]),
    ("crate::metrics", &[]),
    ("crate::exporter", &[]),
    ("crate::config", &[]),
    ("crate::simulate", &[]),
];

#[test]
fn a_source_does_not_sleep_look_at_a_clock_or_see_the_ledger() {
    let files = files(&sources());
    assert!(files.len() > 3 * SYSTEMS.len(), "they are no longer found");
    for (what, allowed) in FORBIDDEN {
        let found: BTreeSet<&str> =
            files.iter().filter(|(_, code)| code.contains(what)).map(|(name, _)| name.as_str()).collect();
        assert_eq!(found, allowed.iter().copied().collect(), "files that name {what}");
    }
}

#[test]
fn a_service_knows_no_other() {
    let names: Vec<&str> = SYSTEMS.iter().map(|system| system.name.as_str()).collect();
    for (file, code) in files(&sources()) {
        let own = file.split(['/', '.']).next().unwrap();
        if own == "registry" {
            continue;
        }
        for other in names.iter().filter(|name| **name != own) {
            for path in [format!("source::{other}"), format!("super::{other}")] {
                assert!(!code.contains(&path), "{file} names {path}");
            }
        }
    }
}

/// Its page in the docs.
fn page_of(system: &System) -> String {
    format!("docs/services/{}.md", system.name.as_str().replace('_', "-"))
}

#[test]
fn every_service_has_a_name_that_is_a_label_files_and_a_page() {
    for system in SYSTEMS {
        let name = system.name.as_str();
        assert_eq!(Label::from_words(name).as_str(), name);
        assert_eq!(find(name).map(|system| system.name), Some(system.name));
        let page = page_of(system);
        for file in [format!("src/source/{name}.rs"), format!("src/simulate/{name}.rs"), page] {
            assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(&file).exists(), "there is no {file}");
        }
    }
    let names: BTreeSet<&str> = SYSTEMS.iter().map(|system| system.name.as_str()).collect();
    assert_eq!(names.len(), SYSTEMS.len());
}

/// A service's words in the names of types, and the modules of its source and its simulator.
fn words_of(system: &str) -> [String; 3] {
    let camel: Vec<String> = system.split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect();
    [camel.concat(), format!("source::{system}"), format!("simulate::{system}")]
}

#[test]
fn nothing_else_of_the_program_names_a_service() {
    let files = files(&sources().join(".."));
    assert!(files.len() > 90, "they are no longer found");
    for (file, code) in files.iter().filter(|(file, _)| !file.starts_with("source/") && !file.starts_with("simulate")) {
        for word in SYSTEMS.iter().flat_map(|system| words_of(system.name.as_str())) {
            assert!(!code.contains(&word), "{file} names {word}");
        }
    }
}

#[test]
fn the_readme_and_the_security_page_name_every_service() {
    let read = |path: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let (readme, security) = (read("README.md"), read("docs/security.md"));
    for system in SYSTEMS {
        let page = page_of(system);
        assert!(readme.contains(&format!("]({page})")), "README.md has no link to {page}");
        let (title, key) = (system.name.as_str().replace('_', " "), format!("`{}`", system.credential_key()));
        let is_told =
            |line: &str| line.starts_with("| ") && line.to_lowercase().contains(&title) && line.contains(&key);
        assert!(security.lines().any(is_told), "the table of secrets in docs/security.md lacks {key} of {title}");
    }
}

#[test]
fn defaults_in_the_lists_of_keys_are_values_of_their_kind() {
    for key in SYSTEMS.iter().flat_map(|system| system.keys) {
        let Absent::Is(default) = key.absent else { continue };
        match key.kind {
            Kind::Url => assert!(default.parse::<url::Url>().is_ok(), "{}", key.name),
            Kind::Flag => assert!(["true", "false"].contains(&default), "{}", key.name),
            kind => panic!("{}: a default of {kind:?} is read by nobody", key.name),
        }
    }
}

#[test]
fn every_system_is_simulated_and_nothing_else_is() {
    let simulated = crate::simulate::SERVICES.iter().map(|service| service.system);
    let systems = SYSTEMS.into_iter().map(|system| system.name);
    assert_eq!(simulated.collect::<Vec<_>>(), systems.collect::<Vec<_>>());
}
