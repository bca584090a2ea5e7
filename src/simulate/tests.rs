use std::path::Path;

use super::*;

#[test]
fn a_service_says_all_that_its_readers_need() {
    for service in SERVICES {
        let system = service.system;
        assert!(!service.source.is_empty() && !service.secrets.is_empty(), "{system}");
        assert!(service.secrets.len() == service.refused_secrets.len(), "{system}");
        assert_eq!(service.keys.iter().filter(|(_, told)| matches!(told, Told::Credential)).count(), 1, "{system}");
    }
}

/// Written from the documents: what a simulator shares with its source it would get wrong with it.
#[test]
fn no_simulator_knows_of_the_source_that_reads_it() {
    fn look(folder: &Path) {
        for entry in folder.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                look(&path);
            } else {
                let text = std::fs::read_to_string(&path).unwrap();
                let word = concat!("source", "::");
                let known = text.lines().find(|line| line.contains(&format!("crate::{word}")) || line.contains(word));
                assert_eq!(known, None, "{}", path.display());
            }
        }
    }
    look(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/simulate"));
}
