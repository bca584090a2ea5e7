//! A conversation with the service that the variable of this name says (tests/fuzz).
#![no_main]

#[allow(dead_code)]
#[path = "../harness.rs"]
mod harness;

use std::sync::LazyLock;

static SYSTEM: LazyLock<String> = LazyLock::new(|| std::env::var("FUZZED_SERVICE").expect("FUZZED_SERVICE"));

libfuzzer_sys::fuzz_target!(|input: &[u8]| harness::conversation(&SYSTEM, input));
