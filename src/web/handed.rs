//! Listeners that the service manager opened (`--web.systemd-socket`, systemd's socket activation).
//!
//! Promises: the program listens on every socket that it was given, or fails; a socket that is not TCP is an error that says
//! so.
//!
//! Leaves to others: addresses that the program opens itself (`address.rs`).

use std::io;

use listenfd::ListenFd;
use tokio::net::TcpListener;

/// Why the program cannot listen on the sockets of the service manager.
#[derive(Debug, thiserror::Error)]
pub enum HandedError {
    /// There are none.
    #[error(
        "--web.systemd-socket: no socket was handed over (LISTEN_FDS and LISTEN_PID): start the program through its .socket \
         unit, or give --web.listen-address instead"
    )]
    Nothing,
    /// One of them cannot be used.
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

/// Takes the listeners of the service manager, in its order. This works once: `listenfd` removes the environment variables
/// that announce them, so that no child process takes them for its own. Call it before anything resolves a name, because the
/// resolver reads the environment on another thread.
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
