//! The HTTP side: who may ask, over which connection, and (added here) what is answered.
//!
//! Promises: [`config`] reads the exporter-toolkit web configuration file, [`protect()`] guards a
//! router with it, [`listen`] serves that router over plain HTTP or TLS.

pub mod config;
mod external;
mod handover;
pub mod listen;
mod protect;
mod routes;
mod runbooks;
mod status_page;
mod tls;

#[cfg(test)]
mod tests;

pub use config::WebFile;
pub use external::ExternalUrl;
pub use listen::Peer;
pub use protect::protect;
pub use routes::{Pages, router};
