//! The list of systems.

use super::{Source, activid, canvas, index_exchange, informatica, losant};
use crate::api::Dialect;
use crate::config::{Service, SourceConfig};

/// The source and the dialect of its client for one entry of the configuration.
pub fn build(config: &SourceConfig) -> (Box<dyn Source>, Box<dyn Dialect>) {
    let common = &config.common;
    match &config.service {
        Service::Canvas(service) => canvas::build(service, common),
        Service::Informatica(service) => informatica::build(service, common),
        Service::Activid(service) => activid::build(service, common),
        Service::Losant(service) => losant::build(service, common),
        Service::IndexExchange(service) => index_exchange::build(service, common),
    }
}
