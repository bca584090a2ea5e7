//! Listen addresses (`--web.listen-address`), and the listeners on them.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections that the system accepts in advance.
const BACKLOG: i32 = 1024;

/// Where to listen: `host:port`, `[IPv6]:port`, or `:port` for all interfaces. Port 0 lets the
/// system choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenAddress {
    /// Empty means all interfaces.
    host: String,
    port: u16,
}

/// Why a text is no [`ListenAddress`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not a listen address: {why}; write :10812, 127.0.0.1:10812 or [::1]:10812")]
pub struct BadListenAddress {
    text: String,
    why: &'static str,
}

impl FromStr for ListenAddress {
    type Err = BadListenAddress;

    fn from_str(text: &str) -> Result<Self, BadListenAddress> {
        let bad = |why| BadListenAddress { text: text.to_owned(), why };
        let (host, port) = text.rsplit_once(':').ok_or_else(|| bad("the port is missing"))?;
        let host = match host.strip_prefix('[') {
            Some(inside) => {
                let inside = inside.strip_suffix(']').ok_or_else(|| bad("a closing ] is missing"))?;
                let address = inside.split('%').next().unwrap_or_default();
                address.parse::<Ipv6Addr>().map_err(|_| bad("only an IPv6 address belongs in brackets"))?;
                inside
            }
            None if host.contains([':', '[', ']']) => return Err(bad("an IPv6 address belongs in brackets")),
            None if host.contains(char::is_whitespace) || host.contains('/') => {
                return Err(bad("that is not a host name"));
            }
            None => host,
        };
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let port = if digits { port.parse().ok() } else { None };
        Ok(Self { host: host.to_owned(), port: port.ok_or_else(|| bad("the port is a number from 0 to 65535"))? })
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Why nothing can be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}; give another address (--web.listen-address; simulate: --listen)")]
pub struct ListenError {
    address: ListenAddress,
    source: io::Error,
}

/// Opens a listener for each address, in their order; all of them or none.
pub async fn bind(addresses: &[ListenAddress]) -> Result<Vec<TcpListener>, ListenError> {
    let mut listeners = Vec::with_capacity(addresses.len());
    for address in addresses {
        let bound = bind_one(address).await;
        listeners.push(bound.map_err(|source| ListenError { address: address.clone(), source })?);
    }
    Ok(listeners)
}

async fn bind_one(address: &ListenAddress) -> io::Result<TcpListener> {
    if address.host.is_empty() {
        return match open((Ipv6Addr::UNSPECIFIED, address.port).into()) {
            Err(error) if !matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied) => {
                // no IPv6 here
                open((Ipv4Addr::UNSPECIFIED, address.port).into())
            }
            bound => bound,
        };
    }
    if let Ok(literal) = address.host.parse::<IpAddr>() {
        return open((literal, address.port).into());
    }
    // a name with several addresses is listened on at one of them, IPv4 first, as Go does
    let found: Vec<SocketAddr> = tokio::net::lookup_host((address.host.as_str(), address.port)).await?.collect();
    let chosen = found.iter().find(|found| found.is_ipv4()).or(found.first());
    open(*chosen.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))?)
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // [::] takes IPv4 too, whatever the system's default is
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}
