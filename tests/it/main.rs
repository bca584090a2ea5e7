//! Whole-program tests, each named after the promise it keeps.

mod cli;
mod clients;
mod conformance;
mod crash;
mod exposed;
mod http;
mod oracles;
mod program;
mod prometheus;
