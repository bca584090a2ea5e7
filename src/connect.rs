//! Connects a source to its service: over the network or to a simulator, and within which limits.
//!
//! Leaves to others: connections themselves (`transport.rs`), keeping the bounds (`api.rs`).

use std::sync::Arc;

use crate::api::Limits;
use crate::config::SourceConfig;
use crate::settings::Common;
use crate::transport::{ConnectError, Network, Transport};

/// Makes the connection of a source: over the network, or into a simulator.
pub type Connect = Box<dyn Fn(&SourceConfig) -> Result<Arc<dyn Transport>, ConnectError> + Send + Sync>;

/// The transport of a source over the network. Sources that connect in the same way share connections.
pub fn over_the_network(config: &SourceConfig) -> Result<Arc<dyn Transport>, ConnectError> {
    Ok(Arc::new(Network::new(&config.common)?))
}

/// What bounds the requests of a source.
pub fn limits(common: &Common) -> Limits {
    Limits {
        requests: common.rate_limit.requests.get(),
        per: common.rate_limit.per,
        burst: common.rate_limit.burst.get(),
        timeout: common.timeout,
        max_response_bytes: common.max_response_bytes,
    }
}
