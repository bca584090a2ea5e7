//! Listeners and connections: `--web.listen-address`, TLS handshakes, HTTP/1.1 and HTTP/2.
//!
//! Promises: a client that says nothing, says it slowly or does not take the answer holds up nobody
//! but itself and not for ever; at most [`CONNECTIONS_MAX`] connections at once, and
//! [`CLIENT_CONNECTIONS_MAX`] of one client: a new one takes the place of the one that has had
//! nothing to do for longest, so that many slow clients do not keep a scrape out; the head of a
//! request is bounded, its body is not read; a shutdown lets requests under way finish, for
//! [`GRACE`] at most; a request whose handler panics is answered with 500.
//!
//! Leaves to others: who may ask (`protect`, which the router must have passed through), which
//! certificates hold (`config.rs`), what is answered (the router).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::response::{IntoResponse, Response};
use http::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::config::WebFile;
use super::handover::{OverTcp, Stream, Unproven, Wire};
use crate::fault::contained_while;

/// Most connections at once, over all listeners.
pub const CONNECTIONS_MAX: usize = 512;
/// Most connections at once of one client: an IPv4 address, or an IPv6 network of 64 bits.
pub const CLIENT_CONNECTIONS_MAX: usize = 64;
/// Longest head of a request: its line and its headers, in bytes.
pub const HEAD_BYTES_MAX: u32 = 16 << 10;
/// Most headers of a request.
pub const HEADERS_MAX: usize = 64;
/// How long a TLS handshake may take.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// How long the head of a connection's first request may take.
pub const FIRST_REQUEST_MAX: Duration = Duration::from_secs(10);
/// How long after an answer the next request may begin, or that answer be taken. Twice the usual
/// longest scrape interval, so that Prometheus can keep its connection.
pub const IDLE_MAX: Duration = Duration::from_mins(2);
/// How long requests under way may take after a shutdown has begun.
pub const GRACE: Duration = Duration::from_secs(5);

/// Most requests at once on one HTTP/2 connection: each may hold a whole answer.
const STREAMS_MAX: u32 = 8;
/// Most HTTP/2 requests that are taken back before they were looked at; more end the connection.
const RESETS_MAX: usize = 20;
/// How often it is told that connections made room for others.
const TELL_EVERY: Duration = Duration::from_mins(1);
/// Connections that the system accepts in advance.
const BACKLOG: i32 = 1024;

// ---- addresses ----

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
#[error("{text:?} is no listen address: {why}; write :10812, 127.0.0.1:10812 or [::1]:10812")]
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
                return Err(bad("that is no name of a host"));
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

// ---- connections ----

/// Serves the router on all listeners until the shutdown, then finishes the requests under way
/// ([`GRACE`] at most) and returns. The router is served as it is: [`super::protect()`] it first.
pub async fn serve(listeners: Vec<TcpListener>, router: Router, web: Arc<WebFile>, shutdown: CancellationToken) {
    let server = Arc::new(Server { router, web, shutdown, room: Arc::default() });
    futures_util::future::join_all(listeners.into_iter().map(|listener| accept(listener, Arc::clone(&server)))).await;
}

/// Where a request came from; in the extensions of each that came over a connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

struct Server {
    router: Router,
    web: Arc<WebFile>,
    shutdown: CancellationToken,
    room: Arc<Room>,
}

async fn accept(listener: TcpListener, server: Arc<Server>) {
    let mut connections = JoinSet::new();
    let accepting = async {
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // usually out of file descriptors: wait until some connection has ended
                    if !matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
                    ) {
                        tracing::warn!(%error, "cannot accept a connection");
                        sleep(Duration::from_secs(1)).await;
                    }
                    continue;
                }
            };
            // who finds no room is hung up on
            let Some(place) = server.room.admit(peer) else { continue };
            let server = Arc::clone(&server);
            connections.spawn(async move {
                tokio::select! {
                    () = connection(stream, peer, &server, &place.activity) => {}
                    () = place.leave.cancelled() => {}
                }
            });
            while connections.try_join_next().is_some() {}
        }
    };
    tokio::select! {
        () = server.shutdown.cancelled() => {}
        () = accepting => {}
    }
    drop(listener);
    // each ends by itself within GRACE; the rest is a precaution
    let ended = async { while connections.join_next().await.is_some() {} };
    if timeout(GRACE + Duration::from_secs(1), ended).await.is_err() {
        tracing::warn!("connections were cut off at shutdown");
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, server: &Server, activity: &Arc<Activity>) {
    if stream.set_nodelay(true).is_err() {
        // gone already
        return;
    }
    if !server.web.tls() {
        return requests(Wire::new(stream), false, peer, server, activity).await;
    }
    let shaken = tokio::select! {
        shaken = timeout(HANDSHAKE_MAX, handshake(stream, server)) => shaken,
        () = server.shutdown.cancelled() => return,
    };
    match shaken {
        Ok(Ok(Some(stream))) => {
            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            requests(stream, http2, peer, server, activity).await;
        }
        Ok(Ok(None)) => tracing::debug!(%peer, "refused before the TLS handshake"),
        Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
        Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
    }
}

/// The stream after the handshake; `None` if it was answered otherwise.
async fn handshake(mut stream: TcpStream, server: &Server) -> io::Result<Option<TlsStream<Wire>>> {
    let mut first = [0];
    stream.peek(&mut first).await?;
    if first[0].is_ascii_uppercase() {
        // a method: plain HTTP, answered in plain HTTP, as Go does
        part(
            &mut stream,
            b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 48\r\n\
              Connection: close\r\n\r\nClient sent an HTTP request to an HTTPS server.\n",
        )
        .await?;
        return Ok(None);
    }
    let Ok(config) = server.web.server().await else {
        // fatal alert internal_error (RFC 8446, 6.2), as Go sends it
        part(&mut stream, &[21, 3, 3, 0, 2, 2, 80]).await?;
        return Ok(None);
    };
    TlsAcceptor::from(config).accept(Wire::new(stream)).await.map(Some)
}

/// Last words. What the client has sent is read first: closing with it unread would reset the
/// connection, and the client might never see them.
async fn part(stream: &mut TcpStream, words: &[u8]) -> io::Result<()> {
    stream.write_all(words).await?;
    stream.shutdown().await?;
    let drain = async {
        let mut left = [0; 4096];
        for _ in 0..16 {
            if !matches!(stream.read(&mut left).await, Ok(1..)) {
                break;
            }
        }
    };
    // a client that does not close either has had its time
    let _ = timeout(Duration::from_secs(1), drain).await;
    Ok(())
}

/// Answers the connection's requests until either side has had enough.
async fn requests<S>(stream: S, http2: bool, peer: SocketAddr, server: &Server, activity: &Arc<Activity>)
where
    S: OverTcp,
{
    let unproven = Unproven::default();
    let stream = Stream::new(stream, unproven.clone(), server.shutdown.clone());
    let service = {
        let router = server.router.clone();
        let activity = Arc::clone(activity);
        tower::service_fn(move |mut request: Request<_>| {
            let under_way = UnderWay::new(Arc::clone(&activity));
            let unproven = unproven.clone();
            unproven.taken();
            request.extensions_mut().insert(Peer(peer.ip()));
            let answer = router.clone().oneshot(request);
            async move {
                let answer: Result<Response, Infallible> = match contained_while(answer).await {
                    Ok(answer) => answer,
                    // the log says where
                    Err(_panic) => {
                        Ok((StatusCode::INTERNAL_SERVER_ERROR, "a fault in audit-exporter\n").into_response())
                    }
                };
                drop(under_way);
                answer.map(|answer| unproven.watch(answer, http2))
            }
        })
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // the time limits are kept below, alike for both protocols
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(HEAD_BYTES_MAX as usize)
        .max_headers(HEADERS_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX)
        .max_pending_accept_reset_streams(RESETS_MAX);
    // known from ALPN; without TLS there is no HTTP/2, as in the toolkit
    let builder = if http2 { builder.http2_only() } else { builder.http1_only() };
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)));

    let mut closing = false;
    let mut deadline = Instant::now() + FIRST_REQUEST_MAX;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "connection failed");
                }
                return;
            }
            () = server.shutdown.cancelled(), if !closing => {}
            () = sleep_until(deadline) => {
                if closing {
                    tracing::debug!(%peer, "connection cut off");
                    return;
                }
                match activity.idle_until() {
                    None => {
                        tracing::debug!(%peer, "no request in time");
                        return;
                    }
                    Some(later) if later > Instant::now() => {
                        deadline = later;
                        continue;
                    }
                    Some(_) => {}
                }
            }
        }
        closing = true;
        deadline = Instant::now() + GRACE;
        connection.as_mut().graceful_shutdown();
    }
}

/// The connections there are, by number. None is let in over the limits without another leaving.
#[derive(Default)]
struct Room(Mutex<Guests>);

#[derive(Default)]
struct Guests {
    next: u64,
    all: BTreeMap<u64, Guest>,
    /// When it was last told that somebody had to leave.
    told: Option<Instant>,
}

struct Guest {
    client: IpAddr,
    activity: Arc<Activity>,
    leave: CancellationToken,
}

/// A connection's place, until it is dropped.
struct Place {
    room: Arc<Room>,
    number: u64,
    activity: Arc<Activity>,
    /// Cancelled when somebody else has been given the place.
    leave: CancellationToken,
}

impl Room {
    /// A place for a new connection. Where its client has as many as one may have, another one of
    /// that client makes room; where all places are taken, one of the client that has most of them.
    /// Of these it is the one that has longest had nothing to do. `None` if each has a request
    /// under way.
    fn admit(self: &Arc<Self>, peer: SocketAddr) -> Option<Place> {
        let client = client(peer.ip());
        let mut guests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut by_client: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for guest in guests.all.values() {
            *by_client.entry(guest.client).or_default() += 1;
        }
        let crowd = if by_client.get(&client).is_some_and(|places| *places >= CLIENT_CONNECTIONS_MAX) {
            Some(client)
        } else if guests.all.len() >= CONNECTIONS_MAX {
            by_client.into_iter().max_by_key(|(_, places)| *places).map(|(client, _)| client)
        } else {
            None
        };
        if let Some(crowd) = crowd {
            if guests.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
                guests.told = Some(Instant::now());
                tracing::warn!(
                    client = %crowd,
                    connections = guests.all.len(),
                    "too many connections: those that have longest been idle or slow are closed for new ones"
                );
            }
            let of_crowd = guests.all.iter().filter(|(_, guest)| guest.client == crowd);
            let idle = of_crowd.filter_map(|(number, guest)| Some((guest.activity.idle_since()?, *number)));
            let (_, number) = idle.min()?;
            if let Some(guest) = guests.all.remove(&number) {
                guest.leave.cancel();
            }
        }
        let number = guests.next;
        guests.next += 1;
        let (activity, leave) = (Arc::new(Activity::new()), CancellationToken::new());
        let guest = Guest { client, activity: Arc::clone(&activity), leave: leave.clone() };
        guests.all.insert(number, guest);
        Some(Place { room: Arc::clone(self), number, activity, leave })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.0.lock().unwrap_or_else(PoisonError::into_inner).all.remove(&self.number);
    }
}

/// Whom an address belongs to: with IPv6, whoever has one has the other 2^64 of its network too.
fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

/// When a connection last had something to do.
struct Activity {
    opened: Instant,
    doing: Mutex<Doing>,
}

#[derive(Clone, Copy)]
struct Doing {
    /// Requests whose answer has not begun.
    under_way: usize,
    /// When a request last began or its answer did; `None` before the first.
    latest: Option<Instant>,
}

impl Activity {
    fn new() -> Self {
        Self { opened: Instant::now(), doing: Mutex::new(Doing { under_way: 0, latest: None }) }
    }

    fn change(&self, change: impl FnOnce(&mut Doing)) {
        let mut doing = self.doing.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut doing);
        doing.latest = Some(Instant::now());
    }

    /// When the connection will have been idle too long; `None` if it never had a request.
    fn idle_until(&self) -> Option<Instant> {
        let doing = *self.doing.lock().unwrap_or_else(PoisonError::into_inner);
        let since = if doing.under_way > 0 { Some(Instant::now()) } else { doing.latest };
        since.map(|since| since + IDLE_MAX)
    }

    /// Since when the connection could be closed with least loss; `None` while a request is under
    /// way. Whoever takes long over an answer, too, has been idle since it began.
    fn idle_since(&self) -> Option<Instant> {
        let doing = *self.doing.lock().unwrap_or_else(PoisonError::into_inner);
        (doing.under_way == 0).then(|| doing.latest.unwrap_or(self.opened))
    }
}

/// One request under way, also if its handler is dropped.
struct UnderWay(Arc<Activity>);

impl UnderWay {
    fn new(activity: Arc<Activity>) -> Self {
        activity.change(|doing| doing.under_way += 1);
        Self(activity)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.change(|doing| doing.under_way -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(text: &str) -> SocketAddr {
        SocketAddr::new(text.parse().unwrap(), 1)
    }

    #[tokio::test(start_paused = true)]
    async fn many_clients_together_push_out_those_that_hold_most() {
        let room = Arc::new(Room::default());
        let mut places = vec![room.admit(peer("192.0.2.1")).unwrap()];
        for client in 0..8 {
            for _ in 0..CLIENT_CONNECTIONS_MAX {
                tokio::time::advance(Duration::from_millis(1)).await;
                places.push(room.admit(peer(&format!("10.0.0.{client}"))).unwrap());
            }
        }
        // one more than there is room for, which one of the crowd had to leave; and many more
        let count = || room.0.lock().unwrap().all.len();
        assert_eq!(count(), CONNECTIONS_MAX);
        for client in 0..200 {
            places.push(room.admit(peer(&format!("10.0.1.{client}"))).unwrap());
            assert_eq!(count(), CONNECTIONS_MAX);
        }
        assert!(!places[0].leave.is_cancelled(), "alone at its address, and the oldest");
        let left = places.iter().filter(|place| place.leave.is_cancelled()).count();
        assert_eq!(left, places.len() - CONNECTIONS_MAX);
        drop(places);
        assert_eq!(count(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn where_each_has_a_request_under_way_a_new_one_is_hung_up_on() {
        let room = Arc::new(Room::default());
        let places: Vec<Place> = (0..CLIENT_CONNECTIONS_MAX).map(|_| room.admit(peer("192.0.2.1")).unwrap()).collect();
        let mut requests: Vec<UnderWay> =
            places.iter().map(|place| UnderWay::new(Arc::clone(&place.activity))).collect();
        assert!(room.admit(peer("192.0.2.1")).is_none());
        assert!(room.admit(peer("192.0.2.2")).is_some(), "others are let in");
        requests.truncate(CLIENT_CONNECTIONS_MAX - 1);
        assert!(room.admit(peer("192.0.2.1")).is_some());
        assert!(places[CLIENT_CONNECTIONS_MAX - 1].leave.is_cancelled());
    }

    #[test]
    fn one_network_of_ipv6_is_one_client() {
        let client = |text: &str| client(text.parse().unwrap());
        assert_eq!(client("2001:db8::1"), client("2001:db8::ffff:1:2:3"));
        assert_ne!(client("2001:db8::1"), client("2001:db8:0:1::1"));
        assert_eq!(client("::ffff:192.0.2.1"), client("192.0.2.1"));
        assert_ne!(client("192.0.2.1"), client("192.0.2.2"));
    }
}
