//! What the fuzzer starts from and what it found, through the same functions as in `fuzz/`.

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

#[path = "../../fuzz/harness.rs"]
mod harness;

fn inputs(folder: &str, target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(folder).join(target);
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut inputs: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    inputs
}

#[test]
fn what_every_service_answers_is_fuzzed() {
    for service in audit_exporter::simulate::SERVICES {
        let system = service.system.as_str();
        assert!(harness::TARGETS.iter().any(|(target, _)| *target == system), "{system} has no target");
    }
}

#[test]
fn no_input_that_was_ever_tried_breaks_a_decoder() {
    let mut broken = Vec::new();
    for (target, run) in harness::TARGETS {
        let seeds = inputs("seeds", target);
        assert!(!seeds.is_empty(), "{target} has no seeds");
        for input in seeds.into_iter().chain(inputs("corpus", target)) {
            let bytes = std::fs::read(&input).unwrap();
            if std::panic::catch_unwind(AssertUnwindSafe(|| run(&bytes))).is_err() {
                broken.push(input);
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}
