//! Whole-program tests, each named after the promise it keeps.

#![allow(clippy::unwrap_used, clippy::float_cmp, missing_docs, reason = "tests")]

mod conformance;
mod exposed;
