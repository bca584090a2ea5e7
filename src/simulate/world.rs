//! The world behind the five services: its time, its traffic, its truth, and what any HTTP server
//! can do wrong.
//!
//! Promises: events are made in cells of ten seconds from (seed, service, cell) alone, so requests
//! do not change them; an event is visible from its own moment on, or later where it is late; every
//! request first brings the world up to the clock.
//!
//! Leaves to others: what an event of a service looks like and how it is asked for (one file each).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::faults::{BadFault, Faults, ServiceFaults};
use super::{activid, canvas, index_exchange, informatica, losant};
use crate::clock::{Clock, delta};
use crate::event::{Class, Outcome, Principal, System};

/// Traffic is made in cells of so many milliseconds.
const CELL_MS: i64 = 10_000;
/// A request to a simulated service is never longer.
const REQUEST_BYTES_MAX: usize = 1 << 20;
/// Requests remembered per service for `/simulator/requests`.
const SEEN_MAX: usize = 100_000;
/// How far a body is blown up by the faults `huge` and `bomb`.
const BLOWN_UP_BYTES: usize = 256 << 20;
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

/// The five services; clones share one world.
#[derive(Clone)]
pub struct World(Arc<Mutex<Inner>>);

/// What an exact reader must show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Truth {
    /// Events by (system, category, action, outcome).
    pub events: BTreeMap<(System, String, String, Outcome), u64>,
    /// Logins among them.
    pub logins: BTreeMap<(System, Principal, Outcome), u64>,
    /// Logouts among them.
    pub logouts: BTreeMap<System, u64>,
    /// Changes among them (neither login, logout nor row of a feed).
    pub changes: BTreeMap<System, u64>,
    /// Records the service would report as tainted.
    pub tainted: BTreeMap<System, u64>,
}

/// Which events a [`Truth`] is of; by default all that are visible.
#[derive(Clone, Debug, Default)]
pub struct TruthOf {
    /// Only events at or after this moment (files: hours that end after it).
    pub from: Option<DateTime<Utc>>,
    /// Only events before this moment (files: hours that begin before it).
    pub to: Option<DateTime<Utc>>,
    /// Without events of these actors (compared without case).
    pub ignored_actors: Vec<String>,
}

/// Something that is made to happen.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Injection {
    /// A named scenario.
    Scenario(ScenarioCall),
    /// One event, or several equal ones.
    Event(EventCall),
}

/// A scenario, and where and how often.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScenarioCall {
    /// Which one.
    pub name: Scenario,
    /// In which service, where there is a choice.
    #[serde(default)]
    pub system: Option<System>,
    /// How many events, where there is a choice.
    #[serde(default)]
    pub count: Option<u32>,
    /// From when on; the present by default.
    #[serde(default)]
    pub at: Option<DateTime<Utc>>,
    /// Over how many seconds from then on; 0 by default: all at once.
    #[serde(default)]
    pub seconds: u32,
}

/// The scenarios.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scenario {
    /// `ActivID`: failed logins (40) of as many users from one address, then a successful one.
    PasswordSpray,
    /// Losant (or Informatica, `ActivID`): deletions (25) by one actor.
    DeletionBurst,
    /// Informatica (or Losant, `ActivID`): a user is made, and roles and groups are changed.
    PrivilegeEscalation,
    /// `ActivID`: records (1) that fail the integrity check.
    TaintedRecord,
    /// Any but Index Exchange (all four if none is named): an event of a kind no document lists.
    NewCategory,
    /// Losant (or Informatica): events (10,000), each of another category that no document lists.
    CategoryFlood,
    /// Any but Index Exchange (all four if none is named): events (5) that are 1 to 8 minutes old
    /// when they become visible.
    LateEvents,
    /// Index Exchange: the newest file of each subscription gains rows (50).
    UpdatedFile,
    /// The service (all if none is named) answers 503 from now on.
    ServiceDown,
    /// The service (all if none is named) no longer does.
    ServiceUp,
}

/// One event (or `count` equal ones) as a service would have it, with what it must be counted as.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventCall {
    /// The service.
    pub system: System,
    /// What the service calls what was done: Canvas `event_type`, Informatica `actionEvent`,
    /// `ActivID` `type`, Losant `requestAction`, Index Exchange `event_type`.
    pub verb: String,
    /// What the service calls what it was done to: Informatica `actionCategory`, `ActivID` a
    /// resource type as in `…/Users/1`, Losant `primaryTargetType`, Index Exchange the subscription.
    #[serde(default)]
    pub kind: Option<String>,
    /// How it ended: `ActivID` `values.status`, Losant `responseStatus` as a number.
    #[serde(default)]
    pub status: Option<String>,
    /// Who did it; someone by default.
    #[serde(default)]
    pub actor: Option<String>,
    /// When; the present by default. Canvas and Informatica keep whole seconds.
    #[serde(default)]
    pub at: Option<DateTime<Utc>>,
    /// Milliseconds from the present until it can be read.
    #[serde(default)]
    pub visible_after_ms: u32,
    /// How many equal ones; 1 by default.
    #[serde(default)]
    pub count: Option<u32>,
    /// `ActivID`: fails the integrity check.
    #[serde(default)]
    pub tainted: bool,
    /// The category it must be counted as.
    pub category: String,
    /// The action it must be counted as.
    pub action: String,
    /// The outcome it must be counted as: `success`, `failure` or `unknown`.
    pub outcome: String,
    /// `user`, `agent` or `device` where it is a login.
    #[serde(default)]
    pub principal: Option<String>,
}

/// A request that a service saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// When, by the machine's clock.
    pub at: DateTime<Utc>,
    /// A login or token request, not a read.
    pub login: bool,
    /// What was answered; 0 where nothing was.
    pub status: u16,
}

/// What an event must be counted as: written by hand where the event is made.
#[derive(Clone, Debug)]
pub(super) struct Expect {
    pub(super) category: String,
    pub(super) action: String,
    pub(super) outcome: Outcome,
    pub(super) class: Class,
}

/// An event in its place: when it happened, from when on it can be read, who did it.
#[derive(Clone, Debug)]
pub(super) struct Placed<E> {
    pub(super) at: DateTime<Utc>,
    pub(super) visible_at: DateTime<Utc>,
    pub(super) actor: String,
    pub(super) expect: Expect,
    pub(super) tainted: bool,
    pub(super) wire: E,
}

/// The events of one service by time.
pub(super) struct Timeline<E> {
    events: BTreeMap<(i64, u64), Placed<E>>,
    inserted: u64,
}

/// Chance that depends on nothing but its seed.
pub(super) struct Dice(StdRng);

/// Ten seconds in which a service's traffic is made.
pub(super) struct Cell {
    pub(super) dice: Dice,
    start_ms: i64,
    mean: f64,
    day: Duration,
}

/// A request as a service sees it.
pub(super) struct Ask {
    pub(super) path: String,
    /// The path's segments, percent-decoded.
    pub(super) segments: Vec<String>,
    /// The query's pairs, percent-decoded.
    pub(super) query: Vec<(String, String)>,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// `http://HOST`, as the client called it.
    pub(super) origin: String,
}

/// What a service answers.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: Vec<(HeaderName, String)>,
    pub(super) content: Content,
}

/// A body that faults can still be put into, or bytes.
pub(super) enum Content {
    Json(Value),
    Bytes(Bytes),
}

/// Why a service refuses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Unauthorized,
    Forbidden,
    Throttled,
    Broken,
    Unavailable,
}

/// What a request is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Login,
    Read,
}

/// How a service answers.
pub(super) type Serve = fn(&mut Inner, &Ask) -> Reply;

/// How the bytes of an answer get out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Delivery {
    Plain,
    Never,
    Drip,
    Huge,
    Bomb,
}

/// Everything there is.
pub(super) struct Inner {
    pub(super) seed: u64,
    pub(super) faults: Faults,
    /// The present, by the machine's clock; set before each use.
    pub(super) now: DateTime<Utc>,
    clock: Clock,
    day: Duration,
    rate: f64,
    quiet: bool,
    /// Start of the next cell whose traffic is not made yet.
    next_cell_ms: i64,
    /// Counts what is drawn outside cells: tokens, injected events.
    drawn: u64,
    reads: BTreeMap<System, u64>,
    seen: BTreeMap<System, Vec<Seen>>,
    pub(super) canvas: canvas::Log,
    pub(super) informatica: informatica::Log,
    pub(super) activid: activid::Log,
    pub(super) losant: losant::Log,
    pub(super) index_exchange: index_exchange::Feed,
}

// === impl World ===

impl World {
    /// A world with its history.
    pub fn new(options: Options) -> Self {
        let now = options.clock.now();
        let begin_ms = (now - delta(options.history)).timestamp_millis();
        let mut inner = Inner {
            seed: options.seed,
            faults: options.faults,
            now,
            clock: options.clock,
            day: options.day,
            rate: options.rate.max(0.0),
            quiet: options.quiet,
            next_cell_ms: begin_ms - begin_ms.rem_euclid(CELL_MS),
            drawn: 0,
            reads: BTreeMap::new(),
            seen: BTreeMap::new(),
            canvas: canvas::Log::new(),
            informatica: informatica::Log::new(),
            activid: activid::Log::new(),
            losant: losant::Log::new(),
            index_exchange: index_exchange::Feed::new(options.seed, now - delta(options.history), options.rate),
        };
        inner.advance();
        Self(Arc::new(Mutex::new(inner)))
    }

    /// All five services and the simulator's own routes, on one origin.
    pub fn router(&self) -> Router {
        let truth = self.clone();
        let faults = self.clone();
        let inject = self.clone();
        let requests = self.clone();
        Router::new()
            .merge(canvas::routes(self))
            .merge(informatica::routes(self))
            .merge(activid::routes(self))
            .merge(losant::routes(self))
            .merge(index_exchange::routes(self))
            .route("/simulator/truth", get(move |request: Request| async move { truth.serve_truth(&request) }))
            .route(
                "/simulator/faults",
                post(move |request: Request| async move { faults.serve_faults(request).await }),
            )
            .route(
                "/simulator/inject",
                post(move |request: Request| async move { inject.serve_inject(request).await }),
            )
            .route("/simulator/requests", get(move || async move { requests.serve_requests() }))
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

    /// What goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// What goes wrong now.
    pub fn faults(&self) -> Faults {
        self.lock().faults.clone()
    }

    /// Makes something happen; says how many events that are.
    pub fn inject(&self, injection: &Injection) -> usize {
        let mut inner = self.lock();
        inner.advance();
        inner.inject(injection)
    }

    /// The requests a service saw, oldest first.
    pub fn requests(&self, system: System) -> Vec<Seen> {
        self.lock().seen.get(&system).cloned().unwrap_or_default()
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
        plain_json(StatusCode::OK, &self.truth_of(&of).to_json())
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
        let count: usize = injections.iter().map(|injection| self.inject(injection)).sum();
        plain_json(StatusCode::OK, &json!({ "events": count }))
    }

    fn serve_requests(&self) -> Response {
        let inner = self.lock();
        let mut by_service = serde_json::Map::new();
        for system in System::ALL {
            let seen = inner.seen.get(&system).map_or(&[][..], Vec::as_slice);
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

    /// A route's handler: `serve` behind everything that can go wrong.
    pub(super) fn handler(&self, method: &Method, system: System, call: Call, serve: Serve) -> MethodRouter {
        let world = self.clone();
        let handle = move |request: Request| async move { world.answer(system, call, serve, request).await };
        if *method == Method::POST { post(handle) } else { get(handle) }
    }

    async fn answer(self, system: System, call: Call, serve: Serve, request: Request) -> Response {
        let ask = match Ask::read(request).await {
            Ok(ask) => ask,
            Err(error) => return complaint(&error),
        };
        let (reply, delivery, date) = {
            let mut inner = self.lock();
            inner.advance();
            let (reply, delivery) = inner.answer(system, call, serve, &ask);
            let status = if delivery == Delivery::Never { 0 } else { reply.status.as_u16() };
            let now = inner.now;
            let seen = inner.seen.entry(system).or_default();
            if seen.len() < SEEN_MAX {
                seen.push(Seen { at: now, login: call == Call::Login, status });
            }
            (reply, delivery, now + inner.skew(system))
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
            let mut cell = self.cell(System::Canvas, start_ms);
            canvas::traffic(&mut self.canvas, &mut cell);
            let mut cell = self.cell(System::Informatica, start_ms);
            informatica::traffic(&mut self.informatica, &mut cell);
            let mut cell = self.cell(System::Activid, start_ms);
            activid::traffic(&mut self.activid, &mut cell);
            let mut cell = self.cell(System::Losant, start_ms);
            losant::traffic(&mut self.losant, &mut cell);
        }
        if !self.quiet {
            self.index_exchange.grow(self.now);
        }
    }

    fn cell(&self, system: System, start_ms: i64) -> Cell {
        let day_ms = i64::try_from(self.day.as_millis()).unwrap_or(i64::MAX).max(1);
        #[expect(clippy::cast_precision_loss, reason = "a share of a day, to three digits")]
        let phase = start_ms.rem_euclid(day_ms) as f64 / day_ms as f64;
        let intensity = 1.0 - 0.8 * (std::f64::consts::TAU * phase).cos();
        #[expect(clippy::cast_precision_loss, reason = "ten thousand is exact")]
        let seconds = CELL_MS as f64 / 1000.0;
        Cell {
            dice: Dice::of(self.seed, system.as_str(), start_ms.unsigned_abs()),
            start_ms,
            mean: self.rate * intensity * seconds,
            day: self.day,
        }
    }

    /// Chance for what is not traffic; never the same twice.
    pub(super) fn draw(&mut self, what: &str) -> Dice {
        self.drawn += 1;
        Dice::of(self.seed, what, self.drawn)
    }

    /// How far a service's clock is ahead.
    pub(super) fn skew(&self, system: System) -> TimeDelta {
        TimeDelta::seconds(self.faults.of(system).clock_skew_seconds)
    }

    fn answer(&mut self, system: System, call: Call, serve: Serve, ask: &Ask) -> (Reply, Delivery) {
        let faults = self.faults.of(system).clone();
        let reads = self.reads.entry(system).or_default();
        *reads += u64::from(call == Call::Read);
        let due = faults.expire_every > 0 && call == Call::Read && reads.is_multiple_of(u64::from(faults.expire_every));
        let mut dice = self.draw("faults");

        if dice.chance(faults.hang) {
            return (Reply::new(StatusCode::OK), Delivery::Never);
        }
        let refusal = if dice.chance(faults.throttle) {
            Some(Refusal::Throttled)
        } else if dice.chance(faults.unavailable) {
            Some(Refusal::Unavailable)
        } else if dice.chance(faults.error) {
            Some(Refusal::Broken)
        } else if call == Call::Read && dice.chance(faults.unauthorized) {
            Some(Refusal::Unauthorized)
        } else if call == Call::Read && dice.chance(faults.forbidden) {
            Some(Refusal::Forbidden)
        } else if due && !self.expire_tokens(system) {
            Some(Refusal::Unauthorized)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            let mut reply = refuse(system, refusal, &faults, ask);
            if refusal == Refusal::Throttled && faults.retry_after > 0 {
                reply.headers.push((header::RETRY_AFTER, faults.retry_after.to_string()));
            }
            return (reply, Delivery::Plain);
        }
        if call == Call::Read && dice.chance(faults.redirect) {
            let elsewhere = format!("https://elsewhere.invalid{}", ask.path);
            return (Reply::new(StatusCode::TEMPORARY_REDIRECT).with(header::LOCATION, elsewhere), Delivery::Plain);
        }

        let mut reply = serve(self, ask);
        if call == Call::Login || !reply.status.is_success() {
            return (reply, Delivery::Plain);
        }
        if dice.chance(faults.html) {
            return (Reply::html(), Delivery::Plain);
        }
        if dice.chance(faults.deep) {
            reply.content = Content::Bytes(("[".repeat(DEEP_LEVELS) + &"]".repeat(DEEP_LEVELS)).into());
        }
        if dice.chance(faults.malformed) {
            reply.spoil(system);
        }
        if dice.chance(faults.truncated) {
            let whole = reply.content.bytes();
            reply.content = Content::Bytes(whole.slice(..whole.len() / 2));
        }
        let delivery = if dice.chance(faults.drip) {
            Delivery::Drip
        } else if dice.chance(faults.huge) {
            Delivery::Huge
        } else if dice.chance(faults.bomb) {
            Delivery::Bomb
        } else {
            Delivery::Plain
        };
        (reply, delivery)
    }

    /// Ends all sessions of a service; false where credentials are given once and for all.
    fn expire_tokens(&mut self, system: System) -> bool {
        match system {
            System::Canvas | System::Losant => false,
            System::Informatica => self.informatica.end_sessions(),
            System::Activid => self.activid.end_tokens(),
            System::IndexExchange => self.index_exchange.end_tokens(),
        }
    }

    fn truth(&self, of: &TruthOf) -> Truth {
        let mut truth = Truth::default();
        self.canvas.events.tell(System::Canvas, self.now, of, &mut truth);
        self.informatica.events.tell(System::Informatica, self.now, of, &mut truth);
        self.activid.events.tell(System::Activid, self.now, of, &mut truth);
        self.losant.events.tell(System::Losant, self.now, of, &mut truth);
        self.index_exchange.tell(self.now, of, &mut truth);
        truth
    }

    fn inject(&mut self, injection: &Injection) -> usize {
        match injection {
            Injection::Scenario(call) => self.play(call),
            Injection::Event(call) => self.inject_event(call),
        }
    }

    fn inject_event(&mut self, call: &EventCall) -> usize {
        let at = call.at.unwrap_or(self.now);
        let visible_at = at.max(self.now + TimeDelta::milliseconds(i64::from(call.visible_after_ms)));
        let count = call.count.unwrap_or(1);
        // one draw for all: `count` equal events are equal in everything but a service's own id
        let mut dice = self.draw("inject");
        for _ in 0..count {
            let expect = Expect::called(call);
            match call.system {
                System::Canvas => canvas::inject(&mut self.canvas, &mut dice, call, expect, at, visible_at),
                System::Informatica => {
                    informatica::inject(&mut self.informatica, &mut dice, call, expect, at, visible_at);
                }
                System::Activid => {
                    let mut same = Dice::of(self.seed, "inject", self.drawn);
                    activid::inject(&mut self.activid, &mut same, call, expect, at, visible_at);
                }
                System::Losant => losant::inject(&mut self.losant, &mut dice, call, expect, at, visible_at),
                System::IndexExchange => self.index_exchange.inject(call, expect, at, visible_at),
            }
        }
        count as usize
    }

    fn play(&mut self, call: &ScenarioCall) -> usize {
        let four = [System::Canvas, System::Informatica, System::Activid, System::Losant];
        let named = |or: &[System]| call.system.map_or_else(|| or.to_vec(), |system| vec![system]);
        let at = call.at.unwrap_or(self.now);
        let count = |usual: u32| call.count.unwrap_or(usual).max(1);
        let mut dice = self.draw("scenario");
        let spread = |dice: &mut Dice| {
            at + TimeDelta::milliseconds(i64::try_from(dice.below(u64::from(call.seconds) * 1000 + 1)).unwrap_or(0))
        };
        let mut made = 0;
        match call.name {
            Scenario::PasswordSpray => {
                let times: Vec<_> = (0..count(40)).map(|_| spread(&mut dice)).collect();
                made += activid::password_spray(&mut self.activid, &mut dice, &times, self.now);
            }
            Scenario::DeletionBurst => {
                let times: Vec<_> = (0..count(25)).map(|_| spread(&mut dice)).collect();
                for system in named(&[System::Losant]) {
                    made += match system {
                        System::Informatica => {
                            informatica::deletion_burst(&mut self.informatica, &mut dice, &times, self.now)
                        }
                        System::Activid => activid::deletion_burst(&mut self.activid, &mut dice, &times, self.now),
                        _ => losant::deletion_burst(&mut self.losant, &mut dice, &times, self.now),
                    };
                }
            }
            Scenario::PrivilegeEscalation => {
                for system in named(&[System::Informatica]) {
                    made += match system {
                        System::Losant => losant::privilege_escalation(&mut self.losant, &mut dice, at, self.now),
                        System::Activid => activid::privilege_escalation(&mut self.activid, &mut dice, at, self.now),
                        _ => informatica::privilege_escalation(&mut self.informatica, &mut dice, at, self.now),
                    };
                }
            }
            Scenario::TaintedRecord => {
                for _ in 0..count(1) {
                    let at = spread(&mut dice);
                    made += activid::tainted_record(&mut self.activid, &mut dice, at, self.now);
                }
            }
            Scenario::NewCategory => {
                for system in named(&four) {
                    for _ in 0..count(1) {
                        made += self.unlisted(system, &mut dice, None, at);
                    }
                }
            }
            Scenario::CategoryFlood => {
                for system in named(&[System::Losant]) {
                    for number in 0..count(10_000) {
                        let at = spread(&mut dice);
                        made += self.unlisted(system, &mut dice, Some(number), at);
                    }
                }
            }
            Scenario::LateEvents => {
                for system in named(&four) {
                    for _ in 0..count(5) {
                        let at = at - TimeDelta::seconds(60 + i64::try_from(dice.below(420)).unwrap_or(0));
                        made += self.ordinary(system, &mut dice, at);
                    }
                }
            }
            Scenario::UpdatedFile => made += self.index_exchange.update_newest(self.now, u64::from(count(50))),
            Scenario::ServiceDown => {
                for system in named(&System::ALL) {
                    self.faults.of_mut(system).unavailable = 1.0;
                }
            }
            Scenario::ServiceUp => {
                for system in named(&System::ALL) {
                    self.faults.of_mut(system).unavailable = 0.0;
                }
            }
        }
        made
    }

    /// An event of a kind no document lists; the `number`-th such kind, or the usual one.
    fn unlisted(&mut self, system: System, dice: &mut Dice, number: Option<u32>, at: DateTime<Utc>) -> usize {
        match system {
            System::Canvas => canvas::unlisted(&mut self.canvas, dice, number, at, self.now),
            System::Informatica => informatica::unlisted(&mut self.informatica, dice, number, at, self.now),
            System::Activid => activid::unlisted(&mut self.activid, dice, number, at, self.now),
            System::Losant => losant::unlisted(&mut self.losant, dice, number, at, self.now),
            System::IndexExchange => return 0,
        }
        1
    }

    /// One event of a service's usual traffic at a given time.
    fn ordinary(&mut self, system: System, dice: &mut Dice, at: DateTime<Utc>) -> usize {
        match system {
            System::Canvas => canvas::ordinary(&mut self.canvas, dice, at, self.now.max(at)),
            System::Informatica => informatica::ordinary(&mut self.informatica, dice, at, self.now.max(at)),
            System::Activid => activid::ordinary(&mut self.activid, dice, at, self.now.max(at)),
            System::Losant => losant::ordinary(&mut self.losant, dice, at, self.now.max(at)),
            System::IndexExchange => return 0,
        }
        1
    }
}

/// How a service refuses.
fn refuse(system: System, refusal: Refusal, faults: &ServiceFaults, ask: &Ask) -> Reply {
    match system {
        System::Canvas => canvas::refuse(refusal, faults),
        System::Informatica => informatica::refuse(refusal, faults, ask),
        System::Activid => activid::refuse(refusal),
        System::Losant => losant::refuse(refusal),
        System::IndexExchange => index_exchange::refuse(refusal),
    }
}

// === impl Truth ===

impl Truth {
    /// Adds `count` events.
    pub(super) fn add(&mut self, system: System, expect: &Expect, count: u64) {
        if count == 0 {
            return;
        }
        let key = (system, expect.category.clone(), expect.action.clone(), expect.outcome);
        *self.events.entry(key).or_default() += count;
        match expect.class {
            Class::Login(principal) => *self.logins.entry((system, principal, expect.outcome)).or_default() += count,
            Class::Logout => *self.logouts.entry(system).or_default() += count,
            Class::Change => *self.changes.entry(system).or_default() += count,
            Class::Row => {}
        }
    }

    /// All events of a system.
    pub fn total(&self, system: System) -> u64 {
        self.events.iter().filter(|((of, ..), _)| *of == system).map(|(_, count)| count).sum()
    }

    /// As `/simulator/truth` answers it.
    pub fn to_json(&self) -> Value {
        let events: Vec<Value> = self
            .events
            .iter()
            .map(|((system, category, action, outcome), count)| {
                json!({"system": system, "category": category, "action": action,
                       "outcome": outcome.as_str(), "count": count})
            })
            .collect();
        let logins: Vec<Value> = self
            .logins
            .iter()
            .map(|((system, principal, outcome), count)| {
                json!({"system": system, "principal": principal.as_str(), "outcome": outcome.as_str(),
                       "count": count})
            })
            .collect();
        let totals: BTreeMap<&str, u64> =
            System::ALL.into_iter().map(|system| (system.as_str(), self.total(system))).collect();
        json!({"events": events, "logins": logins, "logouts": self.logouts, "changes": self.changes,
               "tainted": self.tainted, "totals": totals})
    }
}

// === impl TruthOf ===

impl TruthOf {
    fn holds<E>(&self, event: &Placed<E>) -> bool {
        self.from.is_none_or(|from| event.at >= from)
            && self.to.is_none_or(|to| event.at < to)
            && !self.ignored_actors.iter().any(|actor| actor.eq_ignore_ascii_case(&event.actor))
    }
}

// === impl Expect ===

impl Expect {
    pub(super) fn new(category: &str, action: &str, outcome: Outcome, class: Class) -> Self {
        Self { category: category.to_owned(), action: action.to_owned(), outcome, class }
    }

    fn called(call: &EventCall) -> Self {
        let outcome = match call.outcome.as_str() {
            "success" => Outcome::Success,
            "failure" => Outcome::Failure,
            _ => Outcome::Unknown,
        };
        let class = match (call.system, call.action.as_str(), call.principal.as_deref()) {
            (System::IndexExchange, ..) => Class::Row,
            (_, "login", Some("agent")) => Class::Login(Principal::Agent),
            (_, "login", Some("device")) => Class::Login(Principal::Device),
            (_, "login", _) => Class::Login(Principal::User),
            (_, "logout", _) => Class::Logout,
            _ => Class::Change,
        };
        Self::new(&call.category, &call.action, outcome, class)
    }
}

// === impl Timeline ===

impl<E> Timeline<E> {
    pub(super) fn new() -> Self {
        Self { events: BTreeMap::new(), inserted: 0 }
    }

    pub(super) fn insert(&mut self, event: Placed<E>) {
        self.inserted += 1;
        self.events.insert((event.at.timestamp_millis(), self.inserted), event);
    }

    /// What can be read `now` and happened from `from` to `to`, both inclusive.
    pub(super) fn visible(
        &self,
        now: DateTime<Utc>,
        from: DateTime<Utc>,
        to: DateTime<Utc>,
    ) -> impl Iterator<Item = &Placed<E>> {
        let (first, last) = (from.timestamp_millis(), to.timestamp_millis());
        let range = if first <= last { (first, 0)..=(last, u64::MAX) } else { (0, 0)..=(0, 0) };
        self.events.range(range).map(|(_, event)| event).filter(move |event| {
            event.visible_at <= now && event.at >= from && event.at <= to
        })
    }

    fn tell(&self, system: System, now: DateTime<Utc>, of: &TruthOf, truth: &mut Truth) {
        for event in self.events.values().filter(|event| event.visible_at <= now && of.holds(event)) {
            truth.add(system, &event.expect, 1);
            if event.tainted {
                *truth.tainted.entry(system).or_default() += 1;
            }
        }
    }
}

// === impl Dice ===

impl Dice {
    /// The chance of (seed, what, number).
    pub(super) fn of(seed: u64, what: &str, number: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher.update(&number.to_le_bytes());
        hasher.update(what.as_bytes());
        Self(StdRng::from_seed(*hasher.finalize().as_bytes()))
    }

    /// 0 to `n` - 1; 0 where `n` is 0.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.0.random_range(0..n) }
    }

    pub(super) fn chance(&mut self, probability: f64) -> bool {
        // drawn in any case, so that a switch does not change what is drawn after it
        self.0.random::<f64>() < probability
    }

    pub(super) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let at = usize::try_from(self.below(from.len() as u64)).unwrap_or(0);
        &from[at]
    }

    pub(super) fn hex(&mut self, length: usize) -> String {
        self.text(b"0123456789abcdef", length)
    }

    pub(super) fn base62(&mut self, length: usize) -> String {
        self.text(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", length)
    }

    /// Eight letters from each draw, because ids are most of what is drawn.
    fn text(&mut self, alphabet: &[u8], length: usize) -> String {
        let mut text = String::with_capacity(length);
        let mut drawn = [0_u8; 8];
        for place in 0..length {
            if place % 8 == 0 {
                drawn = self.0.random::<u64>().to_le_bytes();
            }
            text.push(char::from(alphabet[usize::from(drawn[place % 8]) % alphabet.len()]));
        }
        text
    }

    pub(super) fn uuid(&mut self) -> String {
        let hex = self.hex(30);
        format!("{}-{}-4{}-a{}-{}", &hex[..8], &hex[8..12], &hex[12..15], &hex[15..18], &hex[18..])
    }

    /// A Poisson-distributed number of the given mean.
    fn poisson(&mut self, mean: f64) -> u64 {
        let mut left = mean;
        let mut count = 0;
        // in pieces, because exp(-mean) of a large mean is 0
        while left > 0.0 {
            let limit = (-left.min(30.0)).exp();
            let mut product: f64 = self.0.random();
            while product > limit {
                count += 1;
                product *= self.0.random::<f64>();
            }
            left -= 30.0;
        }
        count
    }
}

// === impl Cell ===

impl Cell {
    /// The times of this cell's ordinary events: any, and now and then exactly on a second or on
    /// the cell's first millisecond, where windows of readers begin and end.
    pub(super) fn times(&mut self) -> Vec<DateTime<Utc>> {
        let count = self.dice.poisson(self.mean);
        (0..count)
            .map(|_| {
                let offset = i64::try_from(self.dice.below(CELL_MS.unsigned_abs())).unwrap_or(0);
                let offset = match self.dice.below(40) {
                    0 => 0,
                    1..4 => offset - offset % 1000,
                    _ => offset,
                };
                DateTime::from_timestamp_millis(self.start_ms + offset).unwrap_or_default()
            })
            .collect()
    }

    /// A moment in this cell.
    pub(super) fn moment(&mut self) -> DateTime<Utc> {
        let offset = i64::try_from(self.dice.below(CELL_MS.unsigned_abs())).unwrap_or(0);
        DateTime::from_timestamp_millis(self.start_ms + offset).unwrap_or_default()
    }

    /// Whether something that happens so many times a day happens in this cell.
    pub(super) fn sometimes(&mut self, times_a_day: f64) -> bool {
        let cell = Duration::from_millis(CELL_MS.unsigned_abs()).as_secs_f64();
        self.mean > 0.0 && self.dice.chance(times_a_day * cell / self.day.as_secs_f64().max(cell))
    }

    /// From when on an event can be read: mostly at once or within 2 s, 3 in 100 after 5 s to 4 min.
    pub(super) fn visible_at(&mut self, at: DateTime<Utc>) -> DateTime<Utc> {
        let ms = if self.dice.chance(0.03) { 5_000 + self.dice.below(235_000) } else { self.dice.below(2_000) };
        at + TimeDelta::milliseconds(i64::try_from(ms).unwrap_or(0))
    }
}

// === impl Ask ===

impl Ask {
    async fn read(request: Request) -> Result<Self, String> {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, REQUEST_BYTES_MAX).await.map_err(|error| error.to_string())?;
        let host = parts
            .headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok())
            .or_else(|| parts.uri.authority().map(http::uri::Authority::as_str))
            .unwrap_or("localhost");
        let query = parts.uri.query().unwrap_or("");
        Ok(Self {
            path: parts.uri.path().to_owned(),
            segments: parts.uri.path().split('/').skip(1).map(percent_decoded).collect(),
            query: url::form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
            origin: format!("{}://{host}", parts.uri.scheme_str().unwrap_or("http")),
            headers: parts.headers,
            body,
        })
    }

    /// The first value of a query parameter.
    pub(super) fn param(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub(super) fn bearer(&self) -> Option<&str> {
        let (scheme, token) = self.header("authorization")?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    }

    /// The base64 text after `Basic`.
    pub(super) fn basic(&self) -> Option<&str> {
        let (scheme, key) = self.header("authorization")?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("basic").then(|| key.trim())
    }

    /// The fields of a form, if the request says it is one.
    pub(super) fn form(&self) -> Option<BTreeMap<String, String>> {
        let kind = self.header("content-type")?;
        kind.starts_with("application/x-www-form-urlencoded")
            .then(|| url::form_urlencoded::parse(&self.body).into_owned().collect())
    }
}

/// A text with its percent-encoding undone and `+` kept.
pub(super) fn percent_decoded(text: &str) -> String {
    let plus_kept = text.replace('+', "%2B");
    url::form_urlencoded::parse(plus_kept.as_bytes()).next().map_or_else(String::new, |(key, _)| key.into_owned())
}

// === impl Reply ===

impl Reply {
    pub(super) fn new(status: StatusCode) -> Self {
        Self { status, headers: Vec::new(), content: Content::Bytes(Bytes::new()) }
    }

    pub(super) fn json(status: StatusCode, value: Value) -> Self {
        Self {
            status,
            headers: vec![(header::CONTENT_TYPE, "application/json; charset=utf-8".to_owned())],
            content: Content::Json(value),
        }
    }

    pub(super) fn text(status: StatusCode, text: &str) -> Self {
        Self {
            status,
            headers: vec![(header::CONTENT_TYPE, "text/plain; charset=utf-8".to_owned())],
            content: Content::Bytes(text.to_owned().into()),
        }
    }

    /// A login page, as gateways like to send with 200.
    pub(super) fn html() -> Self {
        let page = "<!DOCTYPE html><html><head><title>Sign in</title></head><body><form></form></body></html>";
        Self {
            status: StatusCode::OK,
            headers: vec![(header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned())],
            content: Content::Bytes(page.into()),
        }
    }

    pub(super) fn with(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Puts something that is no event into the list of events.
    fn spoil(&mut self, system: System) {
        let Content::Json(whole) = &mut self.content else { return };
        let (list, no_event) = match system {
            System::Canvas => ("events", json!({"id": "bad-time", "created_at": "soon", "event_type": "login"})),
            System::Informatica => ("entries", json!({"id": ["not", "an", "entry"], "entryTime": 7})),
            System::Activid => ("eventTokens", json!("eyJhbGciOiJub25lIn0.bm90IGpzb24.")),
            System::Losant => ("items", json!("not an item")),
            System::IndexExchange => ("availableDownloads", json!({"subscriptionID": "not a download", "hour": 1})),
        };
        if let Some(events) = whole.get_mut(list).and_then(Value::as_array_mut) {
            events.insert(events.len() / 2, no_event);
        } else if let Some(events) = whole.as_array_mut() {
            events.insert(events.len() / 2, no_event);
        }
    }

    async fn deliver(self, delivery: Delivery, date: DateTime<Utc>) -> Response {
        let bytes = self.content.bytes();
        let body = match delivery {
            Delivery::Plain => Body::from(bytes),
            Delivery::Never => std::future::pending().await,
            Delivery::Drip => drip(bytes),
            Delivery::Huge => {
                let blanks = Bytes::from(vec![b' '; 1 << 20]);
                let pieces = (0..BLOWN_UP_BYTES >> 20).map(move |_| blanks.clone()).chain([bytes]);
                Body::from_stream(stream::iter(pieces.map(Ok::<_, Infallible>)))
            }
            Delivery::Bomb => Body::from(bomb()),
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        for (name, value) in self.headers {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.append(name, value);
            }
        }
        if delivery == Delivery::Bomb {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        if let Ok(value) = HeaderValue::from_str(&httpdate::fmt_http_date(date.into())) {
            headers.insert(header::DATE, value);
        }
        response
    }
}

// === impl Content ===

impl Content {
    fn bytes(&self) -> Bytes {
        match self {
            Content::Json(value) => value.to_string().into(),
            Content::Bytes(bytes) => bytes.clone(),
        }
    }
}

/// The bytes one by one, two per second.
fn drip(bytes: Bytes) -> Body {
    Body::from_stream(stream::unfold(bytes, |mut rest| async move {
        if rest.is_empty() {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let first = rest.split_to(1);
        Some((Ok::<_, Infallible>(first), rest))
    }))
}

/// A gzip stream that unpacks to [`BLOWN_UP_BYTES`] blanks: one flushed block, repeated. Its
/// checksum is wrong, which only who unpacks all of it will see.
fn bomb() -> Bytes {
    let piece = BLOWN_UP_BYTES / 256;
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    // writing to a Vec cannot fail
    let _ = encoder.write_all(&vec![b' '; piece]);
    let _ = encoder.flush();
    let block = std::mem::take(encoder.get_mut());
    let mut stream = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    for _ in 0..256 {
        stream.extend_from_slice(&block);
    }
    stream.extend_from_slice(&[3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    stream.into()
}

async fn read_json(request: Request) -> Result<Value, String> {
    let body =
        axum::body::to_bytes(request.into_body(), REQUEST_BYTES_MAX).await.map_err(|error| error.to_string())?;
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

/// What the tests of the services share.
#[cfg(test)]
pub(super) mod testing {
    use tower::ServiceExt;

    use super::*;

    impl World {
        pub(crate) fn now(&self) -> DateTime<Utc> {
            self.lock().clock.now()
        }
    }

    fn world(rate: f64, quiet: bool) -> World {
        let noon = "2026-03-04T12:00:00Z".parse().unwrap();
        World::new(Options {
            seed: 7,
            clock: Clock::starting_at(noon),
            history: Duration::from_secs(2 * 3600),
            day: Duration::from_secs(86_400),
            rate,
            faults: Faults::default(),
            quiet,
        })
    }

    /// Two hours with traffic, at noon.
    pub(crate) fn with_traffic() -> World {
        world(0.05, false)
    }

    /// A world in which nothing happens by itself.
    pub(crate) fn quiet() -> World {
        world(0.0, true)
    }

    pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Request {
        let mut request = Request::builder().method(method).uri(path).header("host", "sim.example:1234");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(body.into()).unwrap()
    }

    pub(crate) fn get(path: &str, headers: &[(&str, &str)]) -> Request {
        request("GET", path, headers, Body::empty())
    }

    pub(crate) async fn call(world: &World, request: Request) -> Response {
        world.router().oneshot(request).await.unwrap()
    }

    pub(crate) async fn bytes(response: Response) -> Bytes {
        axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap()
    }

    /// The status, and the body where it is JSON.
    pub(crate) async fn body(response: Response) -> (StatusCode, Value) {
        let status = response.status();
        let bytes = bytes(response).await;
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }
}
