//! Sends requests that need no session: rate limit, deadline, size limit.
//!
//! Promises: every request passes the gate and ends by its deadline; no body is longer than its cap, decompressed; a
//! service whose clock and ours cannot both be right is not read.
//!
//! Leaves to others: sessions and retries (`api.rs`), the connection itself (`transport.rs`).

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use rand::RngExt;
use rand::rngs::StdRng;

use super::call::Call;
use super::gate::{Gate, Limits};
use super::headers::{age_of, date_of};
use super::reply::{Download, ERROR_BODY_MAX, Reply};
use crate::backoff::Backoff;
use crate::clock::{Clock, rfc3339_seconds};
use crate::encoding;
use crate::failure::{ErrorKind, Failure};
use crate::stats::SourceStats;
use crate::transport::{Body, Transport};

/// The wait before a retry, without its jitter.
const RETRY: Backoff = Backoff { first: Duration::from_millis(500), factor: 2, max: Duration::from_mins(1) };
/// The longest address that is asked for; an answer may say where to go on.
pub(super) const URL_BYTES_MAX: usize = 8 << 10;
/// A service's clock that is further off is not believed, nor is ours: a wrong year would plan windows that skip history
/// or mark the future as read.
pub const SKEW_BELIEVED: TimeDelta = TimeDelta::hours(24);
/// A `Date` header is a whole second and may have been on its way for another.
const SKEW_MIN: TimeDelta = TimeDelta::seconds(2);

/// Requests without a session: the gate, the deadline, the cap. Logins use it directly.
pub struct Wire {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) limits: Limits,
    pub(super) gate: Arc<Gate>,
    pub(super) stats: Arc<SourceStats>,
    pub(super) clock: Clock,
    pub(super) random: Mutex<StdRng>,
}

/// An answer whose body is still on its way.
struct Arriving {
    status: StatusCode,
    headers: HeaderMap,
    body: Body,
    /// Why it must not be read: the service's clock and ours cannot both be right.
    wrong_clock: Option<Failure>,
}

/// The service's clock and ours, of which one must be wrong. Windows are planned by both, so that events would be passed
/// over.
#[derive(Debug, thiserror::Error)]
#[error("the service's clock says {}, ours says {}: it is not known which time to request", rfc3339_seconds(*service), rfc3339_seconds(*ours))]
struct ClocksDisagree {
    service: DateTime<Utc>,
    ours: DateTime<Utc>,
}

impl Wire {
    /// Sends a call of a login and reads the whole answer, whatever its status.
    pub async fn login_exchange(&self, call: &Call) -> Result<Reply, Failure> {
        self.exchange(call, true).await
    }

    /// Sends a call and reads the whole answer, whatever its status.
    pub(super) async fn exchange(&self, call: &Call, at_login: bool) -> Result<Reply, Failure> {
        let call = &*self.hiding_all(call);
        let exchange = async {
            let mut arriving = self.send(call).await?;
            // a wrong clock is reported by what is read with the session: another login would not set it right
            if let Some(failure) = arriving.wrong_clock.take_if(|_| !at_login) {
                return Err(failure);
            }
            self.read(call, arriving, self.limits.max_response_bytes).await
        };
        Ok(Reply { at_login, ..self.pass_and_bound(call, exchange).await? })
    }

    /// Sends a call. The body of a good answer is left to be read; any other answer is read whole.
    pub(super) async fn open(&self, call: &Call) -> Result<Result<Download, Reply>, Failure> {
        let call = &*self.hiding_all(call);
        let exchange = async {
            let mut arriving = self.send(call).await?;
            if let Some(failure) = arriving.wrong_clock.take() {
                return Err(failure);
            }
            if arriving.status.is_success() {
                let Arriving { headers, body, .. } = arriving;
                return Ok(Ok(Download { headers, body, idle: self.limits.timeout, call: call.clone() }));
            }
            self.read(call, arriving, ERROR_BODY_MAX).await.map(Err)
        };
        self.pass_and_bound(call, exchange).await
    }

    /// The call with the secrets that the transport adds to it.
    fn hiding_all<'c>(&self, call: &'c Call) -> Cow<'c, Call> {
        let secrets = self.transport.secrets();
        if secrets.is_empty() {
            return Cow::Borrowed(call);
        }
        Cow::Owned(secrets.iter().fold(call.clone(), Call::hiding))
    }

    /// Every request: through the gate first, and then not longer than its deadline.
    async fn pass_and_bound<T>(
        &self,
        call: &Call,
        exchange: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        self.gate.pass(&self.stats).await;
        tokio::time::timeout(self.limits.timeout, exchange).await.unwrap_or_else(|_| {
            let got = format!("no whole answer in {:?}", self.limits.timeout);
            Err(Failure::new(ErrorKind::Timeout, call.tried(), got))
        })
    }

    async fn send(&self, call: &Call) -> Result<Arriving, Failure> {
        let length = call.url.as_str().len();
        if length > URL_BYTES_MAX {
            let got = format!("the service leads to an address of {length} bytes");
            return Err(Failure::new(ErrorKind::Decode, call.tried(), got));
        }
        let mut request = Request::builder().method(call.method.clone()).uri(call.url.as_str());
        if let Some(headers) = request.headers_mut() {
            headers.clone_from(&call.headers);
            // a cached answer is of another moment than the one that is asked about
            headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache"));
            headers.insert(header::ACCEPT_ENCODING, encoding::ACCEPTED);
        }
        let request = request
            .body(call.body.clone())
            .map_err(|error| Failure::new(ErrorKind::Connect, call.tried(), error.to_string()))?;
        let (head, body) = self.transport.send(request).await.map_err(|error| call.failed(error))?.into_parts();
        self.stats.request(head.status.as_u16());
        let wrong_clock = self.note_clock(&head.headers, head.status).err().map(|clocks| {
            Failure::new(ErrorKind::Decode, call.tried(), clocks.to_string())
                .advising("set the wrong clock (NTP); what is not read now is read after that")
        });
        let body = match encoding::unpacked(&head.headers, body) {
            Ok(body) => body,
            Err(error) if head.status.is_success() => return Err(call.failed(error)),
            // its status says enough
            Err(_) => futures_util::stream::empty().boxed(),
        };
        Ok(Arriving { status: head.status, headers: head.headers, body, wrong_clock })
    }

    /// Reads the rest of an answer, as long as it is no longer than `cap`.
    async fn read(&self, call: &Call, arriving: Arriving, cap: u64) -> Result<Reply, Failure> {
        let Arriving { status, headers, mut body, .. } = arriving;
        let mut whole = Vec::new();
        while let Some(chunk) = body.next().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                // an answer that refuses us is dealt with by its status, however it is packed
                Err(error) if error.kind == ErrorKind::Decode && !status.is_success() => break,
                Err(error) => return Err(call.failed(error)),
            };
            if (whole.len() + chunk.len()) as u64 > cap {
                return Err(Failure::new(
                    ErrorKind::TooLarge,
                    call.tried(),
                    format!("an answer of more than {cap} bytes"),
                ));
            }
            whole.extend_from_slice(&chunk);
        }
        let (tried, secrets) = (call.tried(), call.secrets.clone());
        let body = encoding::plain(whole);
        Ok(Reply { status, headers, body, at: self.now(), at_login: false, tried, secrets })
    }

    /// Measures the service's clock by its `Date` header.
    ///
    /// An answer from a cache says in `Age` how long ago its `Date` was. But there are caches that write a `Date` of
    /// their own beside it: of the two readings, the one closer to the known skew is believed. A skew that is too far
    /// ahead would mark the future as read.
    fn note_clock(&self, headers: &HeaderMap, status: StatusCode) -> Result<(), ClocksDisagree> {
        let Some(date) = date_of(headers, &header::DATE) else { return Ok(()) };
        let now = self.clock.now();
        let known = self.stats.observed().clock_skew.filter(|skew| skew.abs() <= SKEW_BELIEVED).unwrap_or_default();
        let aged = date + age_of(headers);
        let date = if (aged - now - known).abs() < (date - now - known).abs() { aged } else { date };
        let skew = date - now;
        let believed = skew.abs() <= SKEW_BELIEVED;
        // an answer that refuses us may come from a proxy, and is dealt with by its status
        if !believed && !status.is_success() {
            return Ok(());
        }
        self.stats.observed().clock_skew = Some(if skew.abs() < SKEW_MIN { TimeDelta::zero() } else { skew });
        if believed { Ok(()) } else { Err(ClocksDisagree { service: date, ours: now }) }
    }

    /// The present.
    pub fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// When the credential that the user configured ends, if it tells.
    pub fn note_credential_expiry(&self, expiry: Option<DateTime<Utc>>) {
        self.stats.observed().credential_expiry = expiry;
    }

    /// How long to wait before a request is made again that has failed so many times in a row.
    pub(super) fn retry_delay(&self, failures: u32) -> Duration {
        let jitter = self.random.lock().unwrap_or_else(PoisonError::into_inner).random_range(0.8..1.2);
        RETRY.after(failures).mul_f64(jitter)
    }
}
