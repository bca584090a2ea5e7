//! Listeners that the service manager has opened (`--web.systemd-socket`, systemd's socket activation).
//!
//! Promises: all that was handed over is listened on, or nothing is; what is no TCP socket is an error that says so.
//!
//! Leaves to others: addresses that the program opens itself (`address.rs`).

use std::io;

use listenfd::ListenFd;
use tokio::net::TcpListener;

/// Why nothing that was handed over can be listened on.
#[derive(Debug, thiserror::Error)]
pub enum HandedError {
    /// Nobody handed over anything.
    #[error(
        "--web.systemd-socket: no socket was handed over (LISTEN_FDS and LISTEN_PID): start the program through its .socket \
         unit, or give --web.listen-address instead"
    )]
    Nothing,
    /// Something else than a socket to listen on.
    #[error("--web.systemd-socket: socket {number} of {all}: {source}; it must be a TCP socket (ListenStream=PORT)")]
    Unfit {
        /// Which, from 1.
        number: usize,
        /// How many there are.
        all: usize,
        /// What is wrong.
        source: io::Error,
    },
}

/// The listeners that were handed over, in their order. They can be taken once: `listenfd` removes the variables that
/// announce them, so that no child of this process takes them for its own. Call it before a name is resolved: the
/// resolver reads the environment, and does so on another thread.
pub fn take_handed() -> Result<Vec<TcpListener>, HandedError> {
    let mut handed = ListenFd::from_env();
    let all = handed.len();
    if all == 0 {
        return Err(HandedError::Nothing);
    }
    let mut take = |index| {
        let listener = handed.take_tcp_listener(index)?.ok_or(io::ErrorKind::NotFound)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    (0..all).map(|index| take(index).map_err(|source| HandedError::Unfit { number: index + 1, all, source })).collect()
}
