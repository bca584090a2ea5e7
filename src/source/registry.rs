//! The services, one line each. Nothing else of the program knows which there are.

use super::{System, activid, canvas, index_exchange, informatica, losant};

/// Every service, in the order in which they are shown.
pub static SYSTEMS: [&System; 5] =
    [&canvas::SERVICE, &informatica::SERVICE, &activid::SERVICE, &losant::SERVICE, &index_exchange::SERVICE];

/// The service of this name.
pub fn find(name: &str) -> Option<&'static System> {
    SYSTEMS.into_iter().find(|system| system.name.as_str() == name)
}

#[cfg(test)]
mod tests;
