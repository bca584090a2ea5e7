//! The machine a life of the exporter runs on, and the road between it and the services.
//!
//! Promises: a machine can be made to die at any await (the n-th step from now) or at any write;
//! from then on nothing on it goes on, and nothing it sent arrives. The road loses, cuts and delays
//! by a seed, and writes down when each source sent what.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use audit_exporter::event::SourceName;
use audit_exporter::failure::ErrorKind;
use audit_exporter::simulate::Disk;
use audit_exporter::transport::{Body, InMemory, Transport, TransportError};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::Notify;
use tokio::time::Instant;

/// One life of the machine.
#[derive(Default)]
pub struct Machine {
    /// 0 is never.
    steps_left: AtomicU64,
    dead: AtomicBool,
    died: Notify,
}

impl Machine {
    /// Lets it die at the so-manieth await on the road.
    pub fn die_at_await(&self, steps: u64) {
        self.steps_left.store(steps, Ordering::Relaxed);
    }

    /// Lets it die with the so-manieth write to its disk.
    pub fn die_at_write(self: &Arc<Self>, disk: &Disk, writes: u64) {
        let machine = Arc::clone(self);
        disk.fail_after(writes, move || machine.die());
    }

    pub fn die(&self) {
        self.dead.store(true, Ordering::Relaxed);
        self.died.notify_one();
    }

    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// Until it is dead.
    pub async fn death(&self) {
        while !self.is_dead() {
            self.died.notified().await;
        }
    }

    /// An await: where the machine is dead, it is the last.
    async fn step(&self) {
        let left = self.steps_left.load(Ordering::Relaxed);
        self.steps_left.store(left.saturating_sub(1), Ordering::Relaxed);
        if left == 1 {
            self.die();
        }
        if self.is_dead() {
            std::future::pending::<()>().await;
        }
    }
}

/// What the road does to what goes over it; probabilities for each exchange.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// No connection.
    pub refused: f64,
    /// The service got the request, but its answer is lost.
    pub lost: f64,
    /// The answer breaks off in the middle.
    pub cut: f64,
    /// The longest delay of a step.
    pub delay: Duration,
}

/// The road of all sources.
#[derive(Clone)]
pub struct Road(Arc<Mutex<Inner>>);

struct Inner {
    random: StdRng,
    weather: Weather,
    sent: BTreeMap<SourceName, Vec<Instant>>,
    troubles: BTreeMap<&'static str, u64>,
    astray: Vec<String>,
}

impl Road {
    pub fn new(seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        Self(Arc::new(Mutex::new(Inner {
            random,
            weather: Weather::default(),
            sent: BTreeMap::new(),
            troubles: BTreeMap::new(),
            astray: Vec::new(),
        })))
    }

    pub fn set(&self, weather: Weather) {
        self.0.lock().unwrap().weather = weather;
    }

    /// When a source sent its requests.
    pub fn sent(&self) -> BTreeMap<SourceName, Vec<Instant>> {
        self.0.lock().unwrap().sent.clone()
    }

    /// Requests to hosts that nobody configured.
    pub fn astray(&self) -> Vec<String> {
        self.0.lock().unwrap().astray.clone()
    }

    /// How often the road did what.
    pub fn troubles(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().unwrap().troubles.clone()
    }

    fn happens(&self, what: &'static str, chance: impl Fn(&Weather) -> f64) -> bool {
        let mut inner = self.0.lock().unwrap();
        let chance = chance(&inner.weather);
        let happens = chance > 0.0 && inner.random.random_bool(chance);
        if happens {
            *inner.troubles.entry(what).or_default() += 1;
        }
        happens
    }

    async fn delay(&self) {
        let delay = {
            let mut inner = self.0.lock().unwrap();
            let longest = u64::try_from(inner.weather.delay.as_millis()).unwrap();
            Duration::from_millis(inner.random.random_range(0..=longest))
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
    }
}

/// The way of one source on one machine.
pub struct Way {
    pub machine: Arc<Machine>,
    pub road: Road,
    pub services: InMemory,
    pub source: SourceName,
    /// The only host there is.
    pub host: &'static str,
}

fn broken(what: &str) -> TransportError {
    TransportError::new(ErrorKind::Connect, what)
}

#[async_trait]
impl Transport for Way {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
        if request.uri().authority().map(http::uri::Authority::as_str) != Some(self.host) {
            self.road.0.lock().unwrap().astray.push(request.uri().to_string());
        }
        self.machine.step().await;
        tracing::debug!(source = %self.source, method = %request.method(), uri = %request.uri(), "asked");
        self.road.0.lock().unwrap().sent.entry(self.source.clone()).or_default().push(Instant::now());
        self.road.delay().await;
        if self.road.happens("connection refused", |weather| weather.refused) {
            return Err(broken("connection refused"));
        }
        let response = self.services.send(request).await?;
        self.road.delay().await;
        self.machine.step().await;
        if self.road.happens("answer lost", |weather| weather.lost) {
            return Err(broken("connection reset"));
        }
        let cut = self.road.happens("answer cut", |weather| weather.cut);
        let (machine, road) = (Arc::clone(&self.machine), self.road.clone());
        Ok(response.map(|body| {
            let pieces = body.flat_map({
                let road = road.clone();
                move |chunk| stream::iter(in_pieces(chunk, &road))
            });
            let walked = stream::unfold(Some(pieces), move |pieces| {
                let (machine, road) = (Arc::clone(&machine), road.clone());
                async move {
                    let mut pieces = pieces?;
                    machine.step().await;
                    let next = pieces.next().await;
                    if cut && (next.is_none() || road.0.lock().unwrap().random.random_bool(0.5)) {
                        return Some((Err(broken("connection reset in the middle of the answer")), None));
                    }
                    next.map(|piece| (piece, Some(pieces)))
                }
            });
            walked.boxed() as Body
        }))
    }
}

/// A chunk in a few pieces of any length.
fn in_pieces(chunk: Result<Bytes, TransportError>, road: &Road) -> Vec<Result<Bytes, TransportError>> {
    let Ok(mut rest) = chunk else { return vec![chunk] };
    let mut pieces = Vec::new();
    // a huge answer is in pieces already
    while rest.len() > 1 && rest.len() < 1 << 19 && pieces.len() < 3 {
        let at = road.0.lock().unwrap().random.random_range(1..rest.len());
        pieces.push(Ok(rest.split_to(at)));
    }
    pieces.push(Ok(rest));
    pieces
}
