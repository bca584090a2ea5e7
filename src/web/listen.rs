//! Connections: TLS handshakes, HTTP/1.1 and HTTP/2.
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
//! certificates hold (`live.rs`), where to listen (`address.rs`, `handed.rs`), who has a place (`room.rs`), what is answered (the
//! router).

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::{IntoResponse, Response};
use http::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

pub use super::address::{BadListenAddress, ListenAddress, ListenError, bind};
pub use super::handed::{HandedError, take_handed};
use super::handover::{OverTcp, Stream, Unproven, Wire};
use super::live::WebFile;
use super::room::{Activity, Place, Room, UnderWay};
pub use super::room::{CLIENT_CONNECTIONS_MAX, CONNECTIONS_MAX, IDLE_MAX, WAITING_MAX};
use super::shared::Shared;
use crate::fault::catch_panic_async;

/// Fewest connections at once, however low the limit of open files is.
pub const CONNECTIONS_MIN: usize = 8;
/// How long a new connection waits for a place while every place has a request under way.
pub const PLACE_WAIT_MAX: Duration = Duration::from_secs(5);
/// Longest head of a request: its line and its headers, in bytes.
pub const HEAD_BYTES_MAX: u32 = 16 << 10;
/// Most headers of a request.
pub const HEADERS_MAX: usize = 64;
/// How long a TLS handshake may take.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// How long the head of a connection's first request may take.
pub const FIRST_REQUEST_MAX: Duration = Duration::from_secs(10);
/// How long requests under way may take after a shutdown has begun.
pub const GRACE: Duration = Duration::from_secs(5);

/// Most requests at once on one HTTP/2 connection: each may hold a whole answer.
const STREAMS_MAX: u32 = 8;
/// Most HTTP/2 requests that are taken back before they were looked at; more end the connection.
const RESETS_MAX: usize = 20;
/// The answer to a connection for which there is no place.
const NO_PLACE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 43\r\nRetry-After: 5\r\nConnection: close\r\n\r\ntoo many connections: try again in a while\n";
/// Open files that the program needs beside connections and sources: the store, its lock, the log, the runtime, the
/// control socket, listeners, and files that are read now and then.
const OPEN_FILES_BESIDE: u64 = 32;
/// Open files that a source needs: connections to its service, to where it logs in, and the lookup of their names.
const OPEN_FILES_PER_SOURCE: u64 = 2;

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
        tracing::warn!(
            connections,
            "the limit of open files (ulimit -n) is low: only a few connections are served at once"
        );
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
                    // usually out of file descriptors: a connection has to leave, and is given time for it
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
                connections.spawn(serve_connection(stream, peer, server, place));
            } else if let Some(waiting) = server.room.wait() {
                connections.spawn(async move {
                    if let Ok(place) = timeout(PLACE_WAIT_MAX, server.room.place(peer)).await {
                        drop(waiting);
                        serve_connection(stream, peer, server, place).await;
                    } else {
                        refuse(stream, &server).await;
                    }
                });
            }
            // beyond so many that wait, a new connection is closed at once
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
async fn serve_connection(stream: TcpStream, peer: SocketAddr, server: Arc<Server>, place: Place) {
    if stream.set_nodelay(true).is_err() {
        // gone already
        return;
    }
    if server.web.tls() {
        tokio::select! {
            () = serve_tls(stream, peer, &server, &place.activity) => {}
            () = place.leave.cancelled() => {}
        }
        return;
    }
    let stream = Arc::new(stream);
    tokio::select! {
        () = answer_requests(Wire::new(Shared(Arc::clone(&stream))), false, peer, &server, &place.activity) => {}
        () = place.leave.cancelled() => {
            // a client that has asked nothing yet may be about to; between two requests it expects the end
            if place.activity.idle_until().is_none() && stream.try_write(NO_PLACE).is_ok() {
                let _ = SockRef::from(&*stream).shutdown(std::net::Shutdown::Write);
            }
        }
    }
}

/// Tells a client that there is no place for it. Over TLS that comes after the handshake: the client could not read it
/// before.
async fn refuse(mut stream: TcpStream, server: &Server) {
    let told = async {
        if server.web.tls() {
            if let Some(mut stream) = handshake(stream, server).await? {
                stream.write_all(NO_PLACE).await?;
                stream.shutdown().await?;
            }
            return Ok(());
        }
        send_last_words(&mut stream, NO_PLACE).await
    };
    // a client that goes away meanwhile, or takes its time, need not be told
    let _: Result<io::Result<()>, _> = timeout(HANDSHAKE_MAX, told).await;
}

/// A connection with TLS.
async fn serve_tls(stream: TcpStream, peer: SocketAddr, server: &Server, activity: &Arc<Activity>) {
    let shaken = tokio::select! {
        shaken = timeout(HANDSHAKE_MAX, handshake(stream, server)) => shaken,
        () = server.shutdown.cancelled() => return,
    };
    match shaken {
        Ok(Ok(Some(stream))) => {
            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            answer_requests(stream, http2, peer, server, activity).await;
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
        send_last_words(
            &mut stream,
            b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 48\r\n\
              Connection: close\r\n\r\nClient sent an HTTP request to an HTTPS server.\n",
        )
        .await?;
        return Ok(None);
    }
    let Ok(config) = server.web.server().await else {
        // fatal alert internal_error (RFC 8446, 6.2), as Go sends it
        send_last_words(&mut stream, &[21, 3, 3, 0, 2, 2, 80]).await?;
        return Ok(None);
    };
    TlsAcceptor::from(config).accept(Wire::new(Shared(Arc::new(stream)))).await.map(Some)
}

/// Last words. What the client has sent is read first: closing with it unread would reset the
/// connection, and the client might never see them.
async fn send_last_words(stream: &mut TcpStream, words: &[u8]) -> io::Result<()> {
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
async fn answer_requests<S>(stream: S, http2: bool, peer: SocketAddr, server: &Server, activity: &Arc<Activity>)
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
