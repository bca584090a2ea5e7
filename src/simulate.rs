//! Simulated services with a common ground truth, and a simulated disk.
//!
//! Promises: each service answers as its documentation and public collectors say it does on the
//! wire; with the same seed and the same clock it has the same events whatever is asked of it;
//! [`World::truth`] says what an exact reader that has read everything visible by now must have
//! counted. The expected labels are written beside each made-up event by hand, so that nothing
//! here shares a mistake with the sources that read it. [`SERVICES`] is the only list of them: the
//! demo and the tests of all services are run from it.
//!
//! Leaves to others: sockets. [`World::router`] is an axum router for one origin, to be served
//! or to be called in memory.

use serde::{Deserialize, Deserializer};

use crate::event::System;

mod activid;
mod canvas;
mod chance;
mod disk;
mod faults;
mod index_exchange;
mod informatica;
mod injection;
mod losant;
mod message;
pub mod raw;
mod service;
mod truth;
mod world;

pub use disk::Disk;
pub use faults::{BadFault, ErrorShape, Faults, RetryForm, ServiceFaults, SessionEnd, TotalCount};
pub use injection::{BadInjection, EventCall, Injection, Scenario, ScenarioCall};
pub use service::{Credential, Example, Sample, Sessions, Simulated, Told, Wrap};
pub use truth::{PlacedBy, Truth, TruthOf};
pub use world::{Options, Seen, World};

/// Calls a macro with the name of each service, in the order in which they are shown: the one list of them.
#[macro_export]
macro_rules! each_simulated_service {
    ($apply:ident) => {
        $apply! { canvas informatica activid losant index_exchange }
    };
}

macro_rules! services {
    ($($name:ident)*) => {
        /// All simulated services, in the order in which they are shown.
        pub static SERVICES: &[Simulated] = &[$($name::SERVICE),*];
    };
}

each_simulated_service!(services);

/// A system that is simulated, by its name.
impl<'de> Deserialize<'de> for System {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let known = service(&name).map(|service| service.system);
        known.ok_or_else(|| serde::de::Error::custom(format!("unknown system {name}")))
    }
}

/// A service by the name of its system.
pub fn service(name: &str) -> Option<&'static Simulated> {
    SERVICES.iter().find(|service| service.system.as_str() == name)
}

/// What nobody may be shown of the credentials that let a reader in.
pub fn secrets() -> impl Iterator<Item = &'static str> {
    SERVICES.iter().flat_map(|service| service.secrets.iter().copied())
}

impl World {
    /// A world of all services, with its history.
    pub fn new(options: Options) -> Self {
        Self::of(SERVICES, options)
    }
}

impl Default for Faults {
    /// Nothing is wrong with any service.
    fn default() -> Self {
        Self::none(SERVICES.iter().map(|service| service.system))
    }
}

/// What a reader needs in order to be let in, and where, for tests of one service.
pub mod credentials {
    pub use super::activid::{CLIENT_ID as ACTIVID_CLIENT_ID, CLIENT_SECRET as ACTIVID_CLIENT_SECRET, TENANT};
    pub use super::canvas::{ACCESS_TOKEN as CANVAS_ACCESS_TOKEN, ACCOUNT as CANVAS_ACCOUNT};
    pub use super::index_exchange::CLIENT_KEY as INDEX_EXCHANGE_CLIENT_KEY;
    pub use super::informatica::{PASSWORD as INFORMATICA_PASSWORD, USERNAME as INFORMATICA_USERNAME};
    pub use super::losant::{API_TOKEN as LOSANT_API_TOKEN, INSTANCE_ID as LOSANT_INSTANCE_ID};
}

#[cfg(test)]
mod tests;
