//! The HTTP side: who may ask, over which connection, and (added here) what is answered.
//!
//! Promises: [`config`] reads the exporter-toolkit web configuration file, [`protect()`] guards a
//! router with it, [`listen`] serves that router over plain HTTP or TLS.

mod address;
pub mod config;
mod external;
mod handed;
mod handover;
mod html;
pub mod listen;
mod live;
mod password;
mod protect;
mod room;
mod routes;
mod runbooks;
mod settings;
mod shared;
mod status_page;
mod tls;

#[cfg(test)]
mod tests;

pub use external::ExternalUrl;
pub use listen::Peer;
pub use live::{Unusable, WebFile};
pub use protect::protect;
pub use routes::{Pages, ReloadError, router};
pub use settings::{WebConfig, WebConfigError};
