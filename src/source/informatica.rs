//! To be written.

use super::Source;
use crate::api::Dialect;
use crate::config::{self, Common};

/// The source and its customs.
pub fn build(_service: &config::Informatica, _common: &Common) -> (Box<dyn Source>, Box<dyn Dialect>) {
    todo!()
}
