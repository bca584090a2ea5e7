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
fn no_input_that_was_ever_tried_breaks_a_decoder() {
    let mut broken = Vec::new();
    for target in harness::targets() {
        let seeds = inputs("seeds", target.name);
        assert!(!seeds.is_empty(), "{} has no seeds", target.name);
        for input in seeds.into_iter().chain(inputs("corpus", target.name)) {
            let bytes = std::fs::read(&input).unwrap();
            if std::panic::catch_unwind(AssertUnwindSafe(|| target.run(&bytes))).is_err() {
                broken.push(input);
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}
