//! Whole-program tests, each named after the promise it keeps.

mod conformance;
mod exposed;
