//! Detects whether a client received a whole answer.
//!
//! Promises: a [`Receipt`] in the extensions of a response is taken only after the last byte of the body was
//! written to the connection **and** the client then showed that it goes on: by its next request on the same
//! connection, or by closing it in an orderly way. An answer that was cut off, reset, timed out, failed or never
//! read is never taken: a program that ends with an answer unread resets its connection, and one that never reads
//! neither asks again nor closes.
//!
//! That data was acknowledged would prove less: the client's kernel does that, whether or not the client reads.
//! What stays unproven: a client that gave up while the answer was on its way to it (one round trip) may look as
//! if it had read it; of a client behind a proxy only what the proxy did is seen, and of one with HTTP/2 what its
//! library took, which is more than the program behind it has asked for.
//!
//! Leaves to others: what it means that an answer was taken (`ledger/hold.rs`).

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::shared::Shared;
use crate::ledger::Receipt;

/// How long a client that was told that the connection ends may take to close it.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// How long after its orderly end a connection may still turn out to be reset: some clients say that they will send
/// no more, and then close with data unread.
const QUIET_WAIT: Duration = Duration::from_millis(20);

/// What is still unproven on one connection.
#[derive(Clone, Default)]
pub(super) struct Unproven(Arc<Mutex<Answers>>);

#[derive(Default)]
struct Answers {
    /// The body was given out to its end.
    ended: Vec<Receipt>,
    /// And was written.
    written: Vec<Receipt>,
}

impl Unproven {
    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client goes on: it has taken what was written.
    pub(super) fn taken(&self) {
        let written = std::mem::take(&mut self.answers().written);
        written.into_iter().for_each(Receipt::taken);
    }

    fn forget(&self) {
        *self.answers() = Answers::default();
    }

    fn flushed(&self) {
        let mut answers = self.answers();
        let ended = std::mem::take(&mut answers.ended);
        answers.written.extend(ended);
    }

    /// Whether something was written of which it is not known whether it was taken.
    fn closing(&self) -> bool {
        let mut answers = self.answers();
        answers.written.iter_mut().for_each(Receipt::closing);
        !answers.written.is_empty()
    }

    /// The response, watched if there is a receipt in it.
    pub(super) fn watch(&self, mut response: Response, http2: bool) -> Response {
        let Some(receipt) = response.extensions_mut().remove::<Token>().and_then(|token| token.take()) else {
            return response;
        };
        let watched = |body| Watched { body, last: None, receipt: Some(receipt), unproven: self.clone(), http2 };
        response.map(|body| Body::new(watched(body)))
    }
}

/// Carries a receipt through the layers of the router, which want to copy what they carry.
#[derive(Clone)]
pub(super) struct Token(Arc<Mutex<Option<Receipt>>>);

impl Token {
    pub(super) fn new(receipt: Receipt) -> Self {
        Self(Arc::new(Mutex::new(Some(receipt))))
    }

    fn take(&self) -> Option<Receipt> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A body that tells when it was given out to its end.
struct Watched {
    body: Body,
    /// The last byte of a piece, given out by itself.
    last: Option<Bytes>,
    receipt: Option<Receipt>,
    unproven: Unproven,
    http2: bool,
}

impl Watched {
    fn ended(&mut self) {
        if let Some(receipt) = self.receipt.take() {
            self.unproven.answers().ended.push(receipt);
        }
    }

    /// HTTP/2 takes a piece as soon as the client's window has room for one byte of it, and asks on at once. So the
    /// last byte is a piece by itself: there is room for it only when all before it has gone.
    fn without_last_byte(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        match frame.into_data() {
            Ok(mut data) if data.len() > 1 => {
                self.last = Some(data.split_off(data.len() - 1));
                Frame::data(data)
            }
            Ok(data) => Frame::data(data),
            Err(frame) => frame,
        }
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Some(last) = self.last.take() {
            return Poll::Ready(Some(Ok(Frame::data(last))));
        }
        let mut polled = Pin::new(&mut self.body).poll_frame(context);
        if self.http2 {
            polled = polled.map(|piece| piece.map(|piece| piece.map(|frame| self.without_last_byte(frame))));
        }
        match &polled {
            Poll::Ready(None) => self.ended(),
            // HTTP/1 does not ask for more than it said there is
            Poll::Ready(Some(Ok(_))) if !self.http2 && self.body.is_end_stream() => self.ended(),
            Poll::Ready(Some(Err(_))) => self.receipt = None,
            _ => {}
        }
        polled
    }

    /// HTTP/2 asks for the end only once the client's window has room for the last byte.
    fn is_end_stream(&self) -> bool {
        self.last.is_none() && self.body.is_end_stream() && (!self.http2 || self.receipt.is_none())
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A TCP connection that remembers that it broke. Only the first to meet the error is told: after
/// that a broken connection looks like one that was closed in an orderly way.
pub(super) struct Wire {
    stream: Shared,
    broken: bool,
}

impl Wire {
    pub(super) fn new(stream: Shared) -> Self {
        Self { stream, broken: false }
    }

    fn noted<T>(&mut self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.broken |= matches!(polled, Poll::Ready(Err(_)));
        polled
    }

    /// Whether nothing was reset up to now.
    fn is_sound(&self) -> bool {
        !self.broken && matches!(self.stream.0.take_error(), Ok(None))
    }

    /// Until the client has ended its side. Whether it did so in an orderly way.
    fn poll_ended(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        loop {
            let mut left = [0; 1024];
            let mut buffer = ReadBuf::new(&mut left);
            let read = ready!(Pin::new(&mut *self).poll_read(context, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(!self.broken);
            }
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.noted(polled)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.noted(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.noted(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.noted(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(context);
        self.noted(polled)
    }
}

/// A stream over TCP, with TLS or without.
pub(super) trait OverTcp: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// The connection underneath. Only there it is seen how the client ended it: a TLS client may say that it
    /// closes, and then reset the connection because it has not read everything.
    fn wire(&mut self) -> &mut Wire;
}

impl OverTcp for Wire {
    fn wire(&mut self) -> &mut Wire {
        self
    }
}

impl OverTcp for TlsStream<Wire> {
    fn wire(&mut self) -> &mut Wire {
        self.get_mut().0
    }
}

/// A connection that notices what was written, and how the client ends it.
pub(super) struct Stream<S> {
    inner: S,
    unproven: Unproven,
    /// From then on nothing is learned that would be of use.
    shutdown: CancellationToken,
    /// The client has said that it sends no more.
    client_ended: bool,
    end: End,
}

/// How far the end of a connection has come.
enum End {
    NotYet,
    /// Until the client has ended its side, or its time is over.
    Client(Pin<Box<Sleep>>),
    /// Until it would have been reset.
    Quiet(Pin<Box<Sleep>>),
    Known,
}

impl<S: OverTcp> Stream<S> {
    pub(super) fn new(inner: S, unproven: Unproven, shutdown: CancellationToken) -> Self {
        Self { inner, unproven, shutdown, client_ended: false, end: End::NotYet }
    }
}

impl<S: OverTcp> AsyncRead for Stream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(context, buffer);
        self.client_ended |= match &polled {
            Poll::Ready(Ok(())) => buffer.filled().len() == before && buffer.remaining() > 0,
            // TLS without a last word
            Poll::Ready(Err(error)) => error.kind() == io::ErrorKind::UnexpectedEof,
            Poll::Pending => false,
        };
        polled
    }
}

impl<S: OverTcp> AsyncWrite for Stream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_flush(context))?;
        self.unproven.flushed();
        Poll::Ready(Ok(()))
    }

    /// Ends our side, and waits a moment for the client to end its own. Where the client came first, it is looked at
    /// before anything else is sent to it: a connection that is closed for good answers that with a reset.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let this = &mut *self;
            this.end = match &mut this.end {
                End::NotYet if this.shutdown.is_cancelled() || !this.unproven.closing() => End::Known,
                End::NotYet => {
                    if !this.client_ended {
                        ready!(Pin::new(&mut this.inner).poll_shutdown(context))?;
                    }
                    End::Client(Box::pin(sleep(CLOSE_WAIT)))
                }
                End::Client(wait) => match this.inner.wire().poll_ended(context) {
                    Poll::Ready(true) => End::Quiet(Box::pin(sleep(QUIET_WAIT))),
                    Poll::Ready(false) => End::Known,
                    Poll::Pending => {
                        ready!(wait.as_mut().poll(context));
                        End::Known
                    }
                },
                End::Quiet(wait) => {
                    ready!(wait.as_mut().poll(context));
                    if this.inner.wire().is_sound() {
                        this.unproven.taken();
                    }
                    End::Known
                }
                End::Known => {
                    this.unproven.forget();
                    return Pin::new(&mut this.inner).poll_shutdown(context);
                }
            };
        }
    }
}
