//! The services, one line each. Nothing else of the program knows which there are.

use super::{System, activid, canvas, index_exchange, informatica, losant};

/// Every service, in the order in which they are shown.
pub static SYSTEMS: [&dyn System; 5] =
    [&canvas::Setup, &informatica::Setup, &activid::Setup, &losant::Setup, &index_exchange::Setup];

/// The service of this name.
pub fn find(name: &str) -> Option<&'static dyn System> {
    SYSTEMS.into_iter().find(|system| system.name().as_str() == name)
}

#[cfg(test)]
mod tests;
