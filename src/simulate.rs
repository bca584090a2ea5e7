//! The five services, simulated: what they send and what they refuse, over one ground truth; and
//! the disk.
//!
//! Promises: each service answers as its documentation and public collectors say it does on the
//! wire; with the same seed and the same clock it has the same events whatever is asked of it;
//! [`World::truth`] says what an exact reader that has read everything visible by now must have
//! counted. The expected labels are written beside each made-up event by hand, so that nothing
//! here shares a mistake with the sources that read it.
//!
//! Leaves to others: sockets. [`World::router`] is an axum router for one origin, to be served
//! or to be called in memory.

mod activid;
mod canvas;
mod chance;
mod disk;
mod faults;
mod index_exchange;
mod informatica;
mod losant;
mod message;
pub mod raw;
mod truth;
mod world;

pub use disk::Disk;
pub use faults::{BadFault, ErrorShape, Faults, RetryForm, ServiceFaults, SessionEnd, TotalCount};
pub use truth::{Truth, TruthOf};
pub use world::{EventCall, Injection, Options, Scenario, ScenarioCall, Seen, World};

/// What a reader needs in order to be let in, and where.
pub mod credentials {
    pub use super::activid::{CLIENT_ID as ACTIVID_CLIENT_ID, CLIENT_SECRET as ACTIVID_CLIENT_SECRET, TENANT};
    pub use super::canvas::{ACCESS_TOKEN as CANVAS_ACCESS_TOKEN, ACCOUNT as CANVAS_ACCOUNT};
    pub use super::index_exchange::CLIENT_KEY as INDEX_EXCHANGE_CLIENT_KEY;
    pub use super::informatica::{PASSWORD as INFORMATICA_PASSWORD, USERNAME as INFORMATICA_USERNAME};
    pub use super::losant::{API_TOKEN as LOSANT_API_TOKEN, INSTANCE_ID as LOSANT_INSTANCE_ID};

    /// What nobody may be shown of them.
    pub const SECRETS: [&str; 5] =
        [CANVAS_ACCESS_TOKEN, INFORMATICA_PASSWORD, ACTIVID_CLIENT_SECRET, LOSANT_API_TOKEN, INDEX_EXCHANGE_CLIENT_KEY];
}
