//! Whole-program tests, each named after the promise it keeps. `tests/run` runs them with the tools
//! they need.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::float_cmp,
    clippy::cast_precision_loss,
    reason = "a test ends at the first surprise, and compares counts, which are exact as floats"
)]

mod backfill;
mod backup;
mod cli;
mod clients;
mod conformance;
mod crash;
mod disk;
mod exposed;
mod fuzzed;
mod hostile_clients;
mod http;
mod init;
mod locks;
mod monitoring;
mod network;
mod oracles;
mod process;
mod program;
mod prometheus;
mod scrapes;
mod security;
mod seeds;
mod service;
mod sessions;
mod verify;
