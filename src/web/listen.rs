//! Listeners and connections: `--web.listen-address`, TLS handshakes, HTTP/1.1 and HTTP/2.
//!
//! Promises: a client that says nothing, says it slowly or does not take the answer holds up nobody
//! but itself and not for ever; at most [`CONNECTIONS_MAX`] connections at once (fewer where the limit
//! of open files is low), and [`CLIENT_CONNECTIONS_MAX`] of one client: a new one takes the place of the
//! one that has had nothing to do for longest, so that many slow clients do not keep a scrape out. Where
//! every place has a request under way, a new connection waits for one, and is told so (503) if none
//! becomes free; a plain connection that has to leave before its first request is told so, too. The head of a
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
use std::pin::{Pin, pin};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::response::{IntoResponse, Response};
use http::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::config::WebFile;
use super::handover::{OverTcp, Stream, Unproven, Wire};
use crate::fault::catch_panic_async;

/// Most connections at once, over all listeners.
pub const CONNECTIONS_MAX: usize = 512;
/// Most connections at once of one client: an IPv4 address, or an IPv6 network of 64 bits.
pub const CLIENT_CONNECTIONS_MAX: usize = 64;
/// Fewest connections at once, however low the limit of open files is.
pub const CONNECTIONS_MIN: usize = 8;
/// How long a new connection waits for a place where each has a request under way.
pub const PLACE_WAIT_MAX: Duration = Duration::from_secs(5);
/// Most connections that wait for a place, or are being told that there is none. Beyond it they are hung up on.
pub const WAITING_MAX: usize = 64;
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
/// What is told to a connection for which there is no place.
const NO_PLACE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 43\r\nRetry-After: 5\r\nConnection: close\r\n\r\ntoo many connections: try again in a while\n";
/// Open files that the program needs beside connections and sources: the store, its lock, the log, the runtime, the
/// control socket, listeners, and files that are read now and then.
const OPEN_FILES_BESIDE: u64 = 32;
/// Open files that a source needs: connections to its service, to where it logs in, and the lookup of their names.
const OPEN_FILES_PER_SOURCE: u64 = 2;
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

// ---- open files ----

/// Raises the limit of open files as far as the system lets this process.
pub fn raise_open_files() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Resource, getrlimit, setrlimit};
        let mut limit = getrlimit(Resource::Nofile);
        if limit.current != limit.maximum {
            limit.current = limit.maximum;
            if let Err(why) = setrlimit(Resource::Nofile, limit) {
                tracing::debug!(%why, "the limit of open files stays as it is");
            }
        }
    }
}

/// How many connections the limit of open files allows, beside the files that so many sources need.
pub fn connections_allowed(sources: usize) -> usize {
    #[cfg(target_os = "linux")]
    let open_files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    #[cfg(not(target_os = "linux"))]
    let open_files = None;
    open_files.map_or(CONNECTIONS_MAX, |open_files| connections_of(open_files, sources))
}

/// At least a quarter of the open files are for connections, so that a scrape gets in and can tell the rest.
fn connections_of(open_files: u64, sources: usize) -> usize {
    let others = OPEN_FILES_BESIDE.saturating_add(OPEN_FILES_PER_SOURCE.saturating_mul(sources as u64));
    let left = open_files.saturating_sub(others).max(open_files / 4);
    usize::try_from(left).unwrap_or(usize::MAX).clamp(CONNECTIONS_MIN, CONNECTIONS_MAX)
}

// ---- connections ----

/// Serves the router on all listeners until the shutdown, then finishes the requests under way
/// ([`GRACE`] at most) and returns. The router is served as it is: [`super::protect()`] it first.
pub async fn serve(listeners: Vec<TcpListener>, router: Router, web: Arc<WebFile>, shutdown: CancellationToken) {
    serve_at_most(connections_allowed(0), listeners, router, web, shutdown).await;
}

/// The same, with at most so many connections at once (see [`connections_allowed`]).
pub async fn serve_at_most(
    connections: usize,
    listeners: Vec<TcpListener>,
    router: Router,
    web: Arc<WebFile>,
    shutdown: CancellationToken,
) {
    if connections < CLIENT_CONNECTIONS_MAX {
        tracing::warn!(connections, "the limit of open files (ulimit -n) is low: few connections are served at once");
    }
    let server = Arc::new(Server { router, web, shutdown, room: Arc::new(Room::new(connections)) });
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
                    // usually out of file descriptors: somebody has to leave, and is given time for it
                    if !matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
                    ) {
                        let pause = server.room.out_of_files(&error);
                        sleep(pause).await;
                    }
                    continue;
                }
            };
            let server = Arc::clone(&server);
            if let Some(place) = server.room.admit(peer) {
                connections.spawn(admitted(stream, peer, server, place));
            } else if let Some(waiting) = server.room.wait() {
                connections.spawn(async move {
                    if let Ok(place) = timeout(PLACE_WAIT_MAX, server.room.place(peer)).await {
                        drop(waiting);
                        admitted(stream, peer, server, place).await;
                    } else {
                        turned_away(stream, &server).await;
                    }
                });
            }
            // beyond so many that wait, who finds no room is hung up on
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

/// A connection that has a place, until it ends or has to leave.
async fn admitted(stream: TcpStream, peer: SocketAddr, server: Arc<Server>, place: Place) {
    if stream.set_nodelay(true).is_err() {
        // gone already
        return;
    }
    if server.web.tls() {
        tokio::select! {
            () = encrypted(stream, peer, &server, &place.activity) => {}
            () = place.leave.cancelled() => {}
        }
        return;
    }
    let stream = Arc::new(stream);
    tokio::select! {
        () = requests(Wire::new(Shared(Arc::clone(&stream))), false, peer, &server, &place.activity) => {}
        () = place.leave.cancelled() => {
            // whoever has asked nothing yet may be about to; between two requests a client expects the end
            if place.activity.idle_until().is_none() && stream.try_write(NO_PLACE).is_ok() {
                let _ = SockRef::from(&*stream).shutdown(std::net::Shutdown::Write);
            }
        }
    }
}

/// Tells a client that there is no place for it; after the handshake where there is TLS, because it could not read
/// it before.
async fn turned_away(mut stream: TcpStream, server: &Server) {
    let told = async {
        if server.web.tls() {
            if let Some(mut stream) = handshake(stream, server).await? {
                stream.write_all(NO_PLACE).await?;
                stream.shutdown().await?;
            }
            return Ok(());
        }
        part(&mut stream, NO_PLACE).await
    };
    // a client that goes away meanwhile, or takes its time, needs to be told nothing
    let _: Result<io::Result<()>, _> = timeout(HANDSHAKE_MAX, told).await;
}

/// A connection with TLS.
async fn encrypted(stream: TcpStream, peer: SocketAddr, server: &Server, activity: &Arc<Activity>) {
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
    TlsAcceptor::from(config).accept(Wire::new(Shared(Arc::new(stream)))).await.map(Some)
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
                let answer: Result<Response, Infallible> = match catch_panic_async(answer).await {
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

/// A stream that can be written to beside the connection that owns it, for last words.
pub(super) struct Shared(pub(super) Arc<TcpStream>);

impl AsyncRead for Shared {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Shared {
    fn poll_written(
        &self,
        context: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match write(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

impl AsyncWrite for Shared {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_written(context, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_written(context, |stream| stream.try_write_vectored(parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.0).shutdown(std::net::Shutdown::Write))
    }
}

/// The connections there are, by number. None is let in over the limits without another leaving.
struct Room {
    /// Most connections at once.
    connections_max: usize,
    guests: Mutex<Guests>,
    /// Told whenever a place may have become free.
    freed: Arc<Notify>,
    /// Held by each that waits.
    waiting: Arc<()>,
}

#[derive(Default)]
struct Guests {
    next: u64,
    all: BTreeMap<u64, Guest>,
    /// When it was last told that somebody had to leave.
    told: Option<Instant>,
    /// When it was last told that the system has no more descriptors.
    told_of_files: Option<Instant>,
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
    fn new(connections_max: usize) -> Self {
        Self { connections_max, guests: Mutex::default(), freed: Arc::default(), waiting: Arc::new(()) }
    }

    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets another one wait, as long as it holds what is returned; `None` if too many do.
    fn wait(&self) -> Option<Arc<()>> {
        (Arc::strong_count(&self.waiting) <= WAITING_MAX).then(|| Arc::clone(&self.waiting))
    }

    /// A place for a new connection, as soon as there is one.
    async fn place(self: &Arc<Self>, peer: SocketAddr) -> Place {
        loop {
            let mut freed = pin!(self.freed.notified());
            freed.as_mut().enable();
            if let Some(place) = self.admit(peer) {
                return place;
            }
            freed.await;
        }
    }

    /// The system has no more descriptors: the connection that has longest had nothing to do makes room. How long to
    /// wait until then.
    fn out_of_files(&self, error: &io::Error) -> Duration {
        let mut guests = self.guests();
        if guests.told_of_files.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            guests.told_of_files = Some(Instant::now());
            tracing::warn!(%error, connections = guests.all.len(), "cannot accept a connection");
        }
        if guests.longest_idle_leaves(|_| true).is_some() { Duration::from_millis(20) } else { Duration::from_secs(1) }
    }

    /// A place for a new connection. Where its client has as many as one may have, another one of
    /// that client makes room; where all places are taken, one of the client that has most of them.
    /// Of these it is the one that has longest had nothing to do. `None` if each has a request
    /// under way.
    fn admit(self: &Arc<Self>, peer: SocketAddr) -> Option<Place> {
        let client = client(peer.ip());
        let mut guests = self.guests();
        let mut by_client: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for guest in guests.all.values() {
            *by_client.entry(guest.client).or_default() += 1;
        }
        let crowd = if by_client.get(&client).is_some_and(|places| *places >= CLIENT_CONNECTIONS_MAX) {
            Some(client)
        } else if guests.all.len() >= self.connections_max {
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
            guests.longest_idle_leaves(|guest| guest.client == crowd)?;
        }
        let number = guests.next;
        guests.next += 1;
        let (activity, leave) = (Arc::new(Activity::new(Arc::clone(&self.freed))), CancellationToken::new());
        let guest = Guest { client, activity: Arc::clone(&activity), leave: leave.clone() };
        guests.all.insert(number, guest);
        Some(Place { room: Arc::clone(self), number, activity, leave })
    }
}

impl Guests {
    /// Of some connections, the one that has longest had nothing to do leaves. `None` if each has a request under way.
    fn longest_idle_leaves(&mut self, of: impl Fn(&Guest) -> bool) -> Option<()> {
        let some = self.all.iter().filter(|(_, guest)| of(guest));
        let idle = some.filter_map(|(number, guest)| Some((guest.activity.idle_since()?, *number)));
        let (_, number) = idle.min()?;
        self.all.remove(&number)?.leave.cancel();
        Some(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.guests().all.remove(&self.number);
        self.room.freed.notify_waiters();
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
    /// Told when a request is no longer under way: then the connection may leave for another.
    freed: Arc<Notify>,
}

#[derive(Clone, Copy)]
struct Doing {
    /// Requests whose answer has not begun.
    under_way: usize,
    /// When a request last began or its answer did; `None` before the first.
    latest: Option<Instant>,
}

impl Activity {
    fn new(freed: Arc<Notify>) -> Self {
        Self { opened: Instant::now(), doing: Mutex::new(Doing { under_way: 0, latest: None }), freed }
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
        self.0.freed.notify_waiters();
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
        let room = Arc::new(Room::new(CONNECTIONS_MAX));
        let mut places = vec![room.admit(peer("192.0.2.1")).unwrap()];
        for client in 0..8 {
            for _ in 0..CLIENT_CONNECTIONS_MAX {
                tokio::time::advance(Duration::from_millis(1)).await;
                places.push(room.admit(peer(&format!("10.0.0.{client}"))).unwrap());
            }
        }
        // one more than there is room for, which one of the crowd had to leave; and many more
        let count = || room.guests().all.len();
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
    async fn where_each_has_a_request_under_way_a_new_one_waits_for_a_place() {
        let room = Arc::new(Room::new(CONNECTIONS_MAX));
        let places: Vec<Place> = (0..CLIENT_CONNECTIONS_MAX).map(|_| room.admit(peer("192.0.2.1")).unwrap()).collect();
        let mut requests: Vec<UnderWay> =
            places.iter().map(|place| UnderWay::new(Arc::clone(&place.activity))).collect();
        assert!(room.admit(peer("192.0.2.1")).is_none());
        assert!(room.admit(peer("192.0.2.2")).is_some(), "others are let in");
        assert!(timeout(PLACE_WAIT_MAX, room.place(peer("192.0.2.1"))).await.is_err());
        let waits = tokio::spawn({
            let room = Arc::clone(&room);
            async move { room.place(peer("192.0.2.1")).await }
        });
        sleep(Duration::from_secs(1)).await;
        assert!(!waits.is_finished());
        requests.truncate(CLIENT_CONNECTIONS_MAX - 1);
        let _place = waits.await.unwrap();
        assert!(places[CLIENT_CONNECTIONS_MAX - 1].leave.is_cancelled());
    }

    #[test]
    fn connections_leave_open_files_for_the_rest_and_never_none_for_a_scrape() {
        assert_eq!(connections_of(1 << 20, 5), CONNECTIONS_MAX);
        assert_eq!(connections_of(1024, 5), CONNECTIONS_MAX);
        assert_eq!(connections_of(64, 5), 22);
        assert_eq!(connections_of(1024, 1000), 256);
        assert_eq!(connections_of(10, 0), CONNECTIONS_MIN);
        assert_eq!(connections_of(u64::MAX, usize::MAX), CONNECTIONS_MAX);
    }

    #[test]
    fn what_is_told_to_those_who_have_to_leave_is_as_long_as_it_says() {
        let text = std::str::from_utf8(NO_PLACE).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{text}");
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
