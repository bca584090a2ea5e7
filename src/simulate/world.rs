//! The world behind the services: its time, its traffic, its truth, and what any HTTP server can do
//! wrong.
//!
//! Promises: events are made in cells of ten seconds from (seed, service, cell) alone, so requests
//! do not change them; an event is visible from its own moment on, or later where it is late; every
//! request first brings the world up to the clock; no service is known by its name here.
//!
//! Leaves to others: which services there are (`simulate.rs`), what an event of a service looks like
//! and how it is asked for (one file each), what can be made to happen (`injection.rs`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
use chrono::{DateTime, TimeDelta, Utc};
use http::{HeaderValue, Method, StatusCode, header};
use serde::Serialize;
use serde_json::{Value, json};

use super::chance::{CELL_MS, Cell, Chance, Dice};
use super::faults::{BadFault, Faults};
use super::injection::{BadInjection, EventCall, Injection, Plays, Scenario, ScenarioCall, Scene};
use super::message::{Ask, Content, Delivery, REQUEST_BYTES_MAX, Refusal, Reply};
use super::service::{Beginning, Call, Injected, Met, Present, Served, Simulated};
use super::truth::{Expect, Truth, TruthOf};
use crate::clock::{Clock, delta};
use crate::event::System;

/// Requests remembered per service for `/simulator/requests`.
const SEEN_MAX: usize = 100_000;
/// Tokens that a world that forgets remembers for [`World::issued`].
const ISSUED_KEPT: usize = 1000;
/// How deep the fault `deep` nests.
const DEEP_LEVELS: usize = 200_000;

/// How a world is.
#[derive(Clone, Debug)]
pub struct Options {
    /// Same seed, same clock: same events.
    pub seed: u64,
    /// What time it is for the services.
    pub clock: Clock,
    /// How much past traffic exists at the start.
    pub history: Duration,
    /// The length of a day as far as the amount of traffic goes; events have the clock's times.
    pub day: Duration,
    /// Mean events per second of each service over a day.
    pub rate: f64,
    /// What goes wrong from the start.
    pub faults: Faults,
    /// No traffic of its own: only injected events (and what readers cause by logging in).
    pub quiet: bool,
}

/// The services; clones share one world.
#[derive(Clone)]
pub struct World(Arc<Mutex<Inner>>);

/// A request that a service saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// When, by the machine's clock.
    pub at: DateTime<Utc>,
    /// A login or token request, not a read.
    pub login: bool,
    /// What was answered; 0 where nothing was.
    pub status: u16,
    /// A login that was refused, whatever its status is.
    pub refused: bool,
}

/// A route of a service, by their numbers, and what is asked there.
#[derive(Clone, Copy)]
struct At {
    host: usize,
    route: usize,
    call: Call,
}

/// A service, and what was asked of it.
struct Host {
    system: System,
    service: Box<dyn Served>,
    /// How often it was asked for events.
    reads: u64,
    seen: Vec<Seen>,
}

/// Everything there is.
struct Inner {
    seed: u64,
    faults: Faults,
    /// The present, by the machine's clock; set before each use.
    now: DateTime<Utc>,
    clock: Clock,
    day: Duration,
    rate: f64,
    quiet: bool,
    /// Start of the next cell whose traffic is not made yet.
    next_cell_ms: i64,
    /// How long events are remembered; `None`: for ever.
    kept: Option<Duration>,
    chance: Chance,
    met: Met,
    /// Every token and session id that was ever given out.
    issued: Vec<String>,
    /// In the order in which the services are shown.
    hosts: Vec<Host>,
}

// === impl World ===

impl World {
    /// A world of these services, with its history.
    pub(super) fn of(services: &[Simulated], options: Options) -> Self {
        let now = options.clock.now();
        let from = now - delta(options.history);
        let begin_ms = from.timestamp_millis();
        let rate = options.rate.max(0.0);
        let beginning = Beginning { seed: options.seed, from, rate };
        let host = |service: &Simulated| Host {
            system: service.system,
            service: (service.begin)(&beginning),
            reads: 0,
            seen: Vec::new(),
        };
        let mut inner = Inner {
            seed: options.seed,
            faults: options.faults,
            now,
            clock: options.clock,
            day: options.day,
            rate,
            quiet: options.quiet,
            next_cell_ms: begin_ms - begin_ms.rem_euclid(CELL_MS),
            kept: None,
            chance: Chance::new(options.seed),
            met: Met::default(),
            issued: Vec::new(),
            hosts: services.iter().map(host).collect(),
        };
        inner.advance();
        Self(Arc::new(Mutex::new(inner)))
    }

    /// All services and the simulator's own routes, on one origin.
    pub fn router(&self) -> Router {
        let truth = self.clone();
        let faults = self.clone();
        let inject = self.clone();
        let requests = self.clone();
        let silence = self.clone();
        let own = Router::new()
            .route("/simulator/truth", get(move |request: Request| async move { truth.serve_truth(&request) }))
            .route("/simulator/faults", post(move |request: Request| async move { faults.serve_faults(request).await }))
            .route("/simulator/inject", post(move |request: Request| async move { inject.serve_inject(request).await }))
            .route("/simulator/requests", get(move || async move { requests.serve_requests() }))
            .route("/simulator/silence", post(move || async move { silence.serve_silence() }));
        self.lock().hosts.iter().enumerate().fold(own, |router, (host, hosted)| {
            hosted.service.routes().into_iter().enumerate().fold(router, |router, (route, endpoint)| {
                router.route(endpoint.path, self.handler(&endpoint.method, At { host, route, call: endpoint.call }))
            })
        })
    }

    /// What an exact reader that has read everything visible by now must show.
    pub fn truth(&self) -> Truth {
        self.truth_of(&TruthOf::default())
    }

    /// The same for some of the events.
    pub fn truth_of(&self, of: &TruthOf) -> Truth {
        let mut inner = self.lock();
        inner.advance();
        inner.truth(of)
    }

    /// No traffic from now on but what is injected; what happened so far stays, and what is late
    /// still comes.
    pub fn fall_silent(&self) {
        let mut inner = self.lock();
        inner.advance();
        inner.quiet = true;
    }

    /// From now on the services remember events and requests for so long only. The truth of everything that happened
    /// still counts what is forgotten; that of a part ([`TruthOf`]) does not.
    pub fn forget_after(&self, kept: Duration) {
        self.lock().kept = Some(kept);
    }

    /// What goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// What goes wrong now.
    pub fn faults(&self) -> Faults {
        self.lock().faults.clone()
    }

    /// Makes something happen; says how many events that are.
    ///
    /// # Panics
    ///
    /// Where no service has such events.
    pub fn inject(&self, injection: &Injection) -> usize {
        self.inject_all(std::slice::from_ref(injection)).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Makes all of it happen, or nothing where some of it cannot.
    pub fn inject_all(&self, injections: &[Injection]) -> Result<usize, BadInjection> {
        let mut inner = self.lock();
        for injection in injections {
            inner.whom(injection)?;
        }
        let mut made = 0;
        for injection in injections {
            inner.advance();
            made += inner.inject(injection)?;
        }
        Ok(made)
    }

    /// The requests a service saw, oldest first.
    pub fn requests(&self, system: System) -> Vec<Seen> {
        let inner = self.lock();
        inner.hosts.iter().find(|host| host.system == system).map(|host| host.seen.clone()).unwrap_or_default()
    }

    /// How often which fault was met.
    pub fn met(&self) -> BTreeMap<&'static str, u64> {
        self.lock().met.0.clone()
    }

    /// Every token and session id that was given out: none of them may be shown to anybody.
    pub fn issued(&self) -> Vec<String> {
        self.lock().issued.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve_truth(&self, request: &Request) -> Response {
        let mut of = TruthOf::default();
        for (name, value) in url::form_urlencoded::parse(request.uri().query().unwrap_or("").as_bytes()) {
            match (name.as_ref(), value.parse::<DateTime<Utc>>()) {
                ("ignore_actor", _) => of.ignored_actors.push(value.into_owned()),
                ("from", Ok(at)) => of.from = Some(at),
                ("to", Ok(at)) => of.to = Some(at),
                _ => return complaint(&format!("{name}={value}: expected from, to (RFC 3339) or ignore_actor")),
            }
        }
        let truth = self.truth_of(&of);
        let systems: Vec<System> = self.lock().hosts.iter().map(|host| host.system).collect();
        plain_json(StatusCode::OK, &truth.to_json(systems))
    }

    async fn serve_faults(&self, request: Request) -> Response {
        let patch: Value = match read_json(request).await {
            Ok(patch) => patch,
            Err(error) => return complaint(&error),
        };
        let patched: Result<Faults, BadFault> = {
            let mut inner = self.lock();
            inner.faults.patch(&patch).map(|()| inner.faults.clone())
        };
        match patched {
            Ok(faults) => plain_json(StatusCode::OK, &serde_json::to_value(faults).unwrap_or_default()),
            Err(error) => complaint(&error.to_string()),
        }
    }

    /// A list of injections, one injection, or the bare name of a scenario.
    async fn serve_inject(&self, request: Request) -> Response {
        let body: Value = match read_json(request).await {
            Ok(body) => body,
            Err(error) => return complaint(&error),
        };
        let wanted = match body {
            Value::Array(list) => list,
            one => vec![one],
        };
        let mut injections: Vec<Injection> = Vec::new();
        for one in wanted {
            let one = if one.is_string() { json!({"scenario": {"name": one}}) } else { one };
            match serde_json::from_value(one) {
                Ok(injection) => injections.push(injection),
                Err(error) => return complaint(&error.to_string()),
            }
        }
        match self.inject_all(&injections) {
            Ok(count) => plain_json(StatusCode::OK, &json!({ "events": count })),
            Err(error) => complaint(&error.to_string()),
        }
    }

    fn serve_silence(&self) -> Response {
        self.fall_silent();
        plain_json(StatusCode::OK, &json!({ "quiet": true }))
    }

    fn serve_requests(&self) -> Response {
        let inner = self.lock();
        let mut by_service = serde_json::Map::new();
        for Host { system, seen, .. } in &inner.hosts {
            let mut by_status: BTreeMap<String, u64> = BTreeMap::new();
            for one in seen {
                *by_status.entry(one.status.to_string()).or_default() += 1;
            }
            by_service.insert(
                system.to_string(),
                json!({
                    "count": seen.len(),
                    "logins": seen.iter().filter(|one| one.login).count(),
                    "by_status": by_status,
                    "times_ms": seen.iter().map(|one| one.at.timestamp_millis()).collect::<Vec<_>>(),
                }),
            );
        }
        plain_json(StatusCode::OK, &Value::Object(by_service))
    }

    /// A route's handler: the service behind everything that can go wrong.
    fn handler(&self, method: &Method, at: At) -> MethodRouter {
        let world = self.clone();
        let handle = move |request: Request| async move { world.answer(at, request).await };
        if *method == Method::POST { post(handle) } else { get(handle) }
    }

    async fn answer(self, at: At, request: Request) -> Response {
        let ask = match Ask::read(request).await {
            Ok(ask) => ask,
            Err(error) => return complaint(&error),
        };
        let (reply, delivery, date) = {
            let mut inner = self.lock();
            inner.advance();
            let (mut reply, delivery) = inner.answer(at, &ask);
            let status = if delivery == Delivery::Never { 0 } else { reply.status.as_u16() };
            let now = inner.now;
            let login = at.call == Call::Login;
            let refused = login && status < 500 && status != 429 && delivery == Delivery::Plain && !reply.lets_in();
            let host = &mut inner.hosts[at.host];
            if host.seen.len() < SEEN_MAX {
                host.seen.push(Seen { at: now, login, status, refused });
            }
            let system = host.system;
            let cached = TimeDelta::seconds(i64::from(inner.faults.of(system).cached_seconds));
            if !cached.is_zero() {
                reply.headers.push((header::AGE, cached.num_seconds().to_string()));
            }
            (reply, delivery, now + inner.skew(system) - cached)
        };
        reply.deliver(delivery, date).await
    }
}

// === impl Inner ===

impl Inner {
    /// Brings the world up to the clock.
    fn advance(&mut self) {
        self.now = self.clock.now();
        while self.next_cell_ms <= self.now.timestamp_millis() {
            let start_ms = self.next_cell_ms;
            self.next_cell_ms += CELL_MS;
            if self.quiet {
                continue;
            }
            for host in 0..self.hosts.len() {
                let mut cell = self.cell(self.hosts[host].system, start_ms);
                self.hosts[host].service.traffic(&mut cell);
            }
        }
        if let Some(kept) = self.kept {
            self.forget(self.now - delta(kept));
        }
        self.redate();
    }

    fn forget(&mut self, before: DateTime<Utc>) {
        self.issued.drain(..self.issued.len().saturating_sub(ISSUED_KEPT));
        for host in &mut self.hosts {
            if let Some(events) = host.service.events() {
                events.forget(before);
            }
            let old = host.seen.partition_point(|one| one.at < before);
            host.seen.drain(..old);
        }
    }

    fn redate(&mut self) {
        for host in &mut self.hosts {
            let share = self.faults.of(host.system).redated;
            if share > 0.0
                && let Some(events) = host.service.events()
            {
                events.redate(self.now, share);
            }
        }
    }

    fn cell(&self, system: System, start_ms: i64) -> Cell {
        let day_ms = i64::try_from(self.day.as_millis()).unwrap_or(i64::MAX).max(1);
        #[expect(clippy::cast_precision_loss, reason = "a share of a day, to three digits")]
        let phase = start_ms.rem_euclid(day_ms) as f64 / day_ms as f64;
        let intensity = 1.0 - 0.8 * (std::f64::consts::TAU * phase).cos();
        #[expect(clippy::cast_precision_loss, reason = "ten thousand is exact")]
        let seconds = CELL_MS as f64 / 1000.0;
        let dice = Dice::of(self.seed, system.as_str(), start_ms.unsigned_abs());
        Cell::new(dice, start_ms, self.rate * intensity * seconds, self.day)
    }

    /// How far a service's clock is ahead.
    fn skew(&self, system: System) -> TimeDelta {
        TimeDelta::seconds(self.faults.of(system).clock_skew_seconds)
    }

    fn answer(&mut self, At { host: number, route, call }: At, ask: &Ask) -> (Reply, Delivery) {
        let host = &mut self.hosts[number];
        let system = host.system;
        let faults = self.faults.of(system).clone();
        host.reads += u64::from(call == Call::Read);
        let due =
            faults.expire_every > 0 && call == Call::Read && host.reads.is_multiple_of(u64::from(faults.expire_every));
        let mut dice = self.chance.draw("faults");

        if self.meets(&mut dice, "hang", faults.hang) {
            return (Reply::new(StatusCode::OK), Delivery::Never);
        }
        let refusal = if self.meets(&mut dice, "throttle", faults.throttle) {
            Some(Refusal::Throttled)
        } else if self.meets(&mut dice, "unavailable", faults.unavailable) {
            Some(Refusal::Unavailable)
        } else if self.meets(&mut dice, "error", faults.error) {
            Some(Refusal::Broken)
        } else if call == Call::Read && self.meets(&mut dice, "unauthorized", faults.unauthorized) {
            Some(Refusal::Unauthorized)
        } else if call == Call::Read && self.meets(&mut dice, "forbidden", faults.forbidden) {
            Some(Refusal::Forbidden)
        } else if due && !self.end_sessions(number) {
            Some(Refusal::Unauthorized)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            let mut reply = self.hosts[number].service.refuse(refusal, &faults, ask);
            if refusal == Refusal::Throttled && faults.retry_after > 0 {
                reply.headers.push(faults.retry_form.header(faults.retry_after, self.now + self.skew(system)));
            }
            return (reply.refused_as(&faults, call == Call::Login), Delivery::Plain);
        }
        if call == Call::Read && self.meets(&mut dice, "redirect", faults.redirect) {
            let elsewhere = format!("https://elsewhere.invalid{}", ask.path);
            return (Reply::new(StatusCode::TEMPORARY_REDIRECT).with(header::LOCATION, elsewhere), Delivery::Plain);
        }

        let mut present = Present {
            now: self.now,
            skew: self.skew(system),
            faults: &faults,
            issued: &mut self.issued,
            chance: &mut self.chance,
            met: &mut self.met,
        };
        let service = &mut self.hosts[number].service;
        let mut reply = service.answer(route, &mut present, ask);
        if call == Call::Login || !reply.status.is_success() {
            return (reply.refused_as(&faults, call == Call::Login), Delivery::Plain);
        }
        let listing = service.listing();
        if self.meets(&mut dice, "link_lost", faults.link_lost) {
            reply.headers.retain(|(name, _)| *name != header::LINK);
        }
        if self.meets(&mut dice, "html", faults.html) {
            return (Reply::html(), Delivery::Plain);
        }
        if self.meets(&mut dice, "deep", faults.deep) {
            reply.content = Content::Bytes(("[".repeat(DEEP_LEVELS) + &"]".repeat(DEEP_LEVELS)).into());
        }
        if self.meets(&mut dice, "malformed", faults.malformed) {
            reply.spoil(&listing, faults.count_cap);
        }
        if self.meets(&mut dice, "shuffled", faults.shuffled) {
            reply.shuffle(&listing, &mut dice);
        }
        if self.meets(&mut dice, "strange", faults.strange) {
            reply.estrange(&listing);
        }
        if self.meets(&mut dice, "null_lists", faults.null_lists) {
            reply.nullify(&listing);
        }
        if self.meets(&mut dice, "odd_totals", faults.odd_totals) {
            reply.miscount(&mut dice);
        }
        // not files
        let is_text = matches!(reply.content, Content::Json(_));
        if is_text && self.meets(&mut dice, "garbled", faults.garbled) {
            reply.garble(&listing, &mut dice);
        }
        if is_text && self.meets(&mut dice, "marked", faults.marked) {
            reply.mark();
        }
        if self.meets(&mut dice, "truncated", faults.truncated) {
            let whole = reply.content.bytes();
            reply.content = Content::Bytes(whole.slice(..whole.len() / 2));
        }
        let delivery = if self.meets(&mut dice, "drip", faults.drip) {
            Delivery::Drip
        } else if self.meets(&mut dice, "huge", faults.huge) {
            Delivery::Huge
        } else if self.meets(&mut dice, "bomb", faults.bomb) {
            Delivery::Bomb
        } else if faults.gzip_members {
            Delivery::Members
        } else {
            Delivery::Plain
        };
        (reply, delivery)
    }

    fn meets(&mut self, dice: &mut Dice, what: &'static str, probability: f64) -> bool {
        self.met.meets(dice, what, probability)
    }

    /// Ends all sessions of a service; false where credentials are given once and for all.
    fn end_sessions(&mut self, host: usize) -> bool {
        self.met.count("expire_every");
        self.hosts[host].service.end_sessions()
    }

    fn truth(&mut self, of: &TruthOf) -> Truth {
        let mut truth = Truth::default();
        for host in &mut self.hosts {
            host.service.tell(self.now, of, &mut truth);
        }
        truth
    }

    /// For which services an injection is.
    fn whom(&self, injection: &Injection) -> Result<Vec<usize>, BadInjection> {
        let numbers = |held: &dyn Fn(&Host) -> bool| -> Vec<usize> {
            (0..self.hosts.len()).filter(|number| held(&self.hosts[*number])).collect()
        };
        match injection {
            Injection::Event(call) => {
                let whom = numbers(&|host| host.system == call.system);
                if whom.is_empty() { Err(BadInjection::NotSimulated(call.system)) } else { Ok(whom) }
            }
            Injection::Scenario(call) => {
                let whom = numbers(&|host| match call.system {
                    Some(system) => host.system == system && host.plays(call.name) != Plays::Never,
                    None => host.plays(call.name) == Plays::Usually,
                });
                if whom.is_empty() { Err(self.not_played(call)) } else { Ok(whom) }
            }
        }
    }

    fn not_played(&self, call: &ScenarioCall) -> BadInjection {
        let players = self.hosts.iter().filter(|host| host.plays(call.name) != Plays::Never);
        let players: Vec<&str> = players.map(|host| host.system.as_str()).collect();
        BadInjection::NotPlayed {
            system: call.system.map_or("the simulator", System::as_str),
            scenario: call.name,
            players: players.join(", "),
        }
    }

    fn inject(&mut self, injection: &Injection) -> Result<usize, BadInjection> {
        let whom = self.whom(injection)?;
        Ok(match injection {
            Injection::Scenario(call) => self.play(call, &whom),
            Injection::Event(call) => self.inject_event(call, &whom),
        })
    }

    fn inject_event(&mut self, call: &EventCall, whom: &[usize]) -> usize {
        let at = call.at.unwrap_or(self.now);
        let visible_at = at.max(self.now + TimeDelta::milliseconds(i64::from(call.visible_after_ms)));
        let count = call.count.unwrap_or(1);
        // one draw for all: `count` equal events are equal in everything but a service's own id
        let mut dice = self.chance.draw("inject");
        for host in whom {
            for _ in 0..count {
                self.hosts[*host]
                    .service
                    .inject(&mut dice, Injected { call, expect: Expect::called(call), at, visible_at });
            }
        }
        count as usize
    }

    fn play(&mut self, call: &ScenarioCall, whom: &[usize]) -> usize {
        let scene = Scene::of(call, self.now);
        let mut dice = self.chance.draw("scenario");
        let mut made = 0;
        for host in whom {
            let host = &mut self.hosts[*host];
            match call.name {
                Scenario::ServiceDown => self.faults.of_mut(host.system).unavailable = 1.0,
                Scenario::ServiceUp => self.faults.of_mut(host.system).unavailable = 0.0,
                _ => made += host.service.play(&scene, &mut dice),
            }
        }
        made
    }
}

// === impl Host ===

impl Host {
    fn plays(&self, scenario: Scenario) -> Plays {
        match scenario {
            Scenario::ServiceDown | Scenario::ServiceUp => Plays::Usually,
            _ => self.service.plays(scenario),
        }
    }
}

async fn read_json(request: Request) -> Result<Value, String> {
    let body = axum::body::to_bytes(request.into_body(), REQUEST_BYTES_MAX).await.map_err(|error| error.to_string())?;
    serde_json::from_slice(&body).map_err(|error| error.to_string())
}

fn plain_json(status: StatusCode, value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// What the simulator's own routes answer to a request they cannot read.
fn complaint(what: &str) -> Response {
    plain_json(StatusCode::BAD_REQUEST, &json!({ "error": what }))
}

#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
