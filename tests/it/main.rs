//! Whole-program tests, each named after the promise it keeps.

mod cli;
mod conformance;
mod crash;
mod exposed;
mod http;
mod program;
