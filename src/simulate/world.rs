//! The world behind the five services: its time, its traffic, its truth, and what any HTTP server
//! can do wrong.
//!
//! Promises: events are made in cells of ten seconds from (seed, service, cell) alone, so requests
//! do not change them; an event is visible from its own moment on, or later where it is late; every
//! request first brings the world up to the clock.
//!
//! Leaves to others: what an event of a service looks like and how it is asked for (one file each).

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
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::chance::{CELL_MS, Cell, Dice};
use super::faults::{BadFault, Faults, ServiceFaults};
use super::message::{Ask, Content, Delivery, REQUEST_BYTES_MAX, Refusal, Reply};
use super::truth::{Expect, Truth, TruthOf};
use super::{activid, canvas, index_exchange, informatica, losant};
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

/// The five services; clones share one world.
#[derive(Clone)]
pub struct World(Arc<Mutex<Inner>>);

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
    /// A login that was refused, whatever its status is.
    pub refused: bool,
}

/// What a request is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Login,
    Read,
}

/// How a service answers.
pub(super) type Serve = fn(&mut Inner, &Ask) -> Reply;

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
    /// How long events are remembered; `None`: for ever.
    kept: Option<Duration>,
    /// Counts what is drawn outside cells: tokens, injected events.
    drawn: u64,
    reads: BTreeMap<System, u64>,
    seen: BTreeMap<System, Vec<Seen>>,
    /// How often which fault was met.
    met: BTreeMap<&'static str, u64>,
    /// Every token and session id that was ever given out.
    pub(super) issued: Vec<String>,
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
            kept: None,
            drawn: 0,
            reads: BTreeMap::new(),
            seen: BTreeMap::new(),
            met: BTreeMap::new(),
            issued: Vec::new(),
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
        let silence = self.clone();
        Router::new()
            .merge(canvas::routes(self))
            .merge(informatica::routes(self))
            .merge(activid::routes(self))
            .merge(losant::routes(self))
            .merge(index_exchange::routes(self))
            .route("/simulator/truth", get(move |request: Request| async move { truth.serve_truth(&request) }))
            .route("/simulator/faults", post(move |request: Request| async move { faults.serve_faults(request).await }))
            .route("/simulator/inject", post(move |request: Request| async move { inject.serve_inject(request).await }))
            .route("/simulator/requests", get(move || async move { requests.serve_requests() }))
            .route("/simulator/silence", post(move || async move { silence.serve_silence() }))
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
    pub fn inject(&self, injection: &Injection) -> usize {
        let mut inner = self.lock();
        inner.advance();
        inner.inject(injection)
    }

    /// The requests a service saw, oldest first.
    pub fn requests(&self, system: System) -> Vec<Seen> {
        self.lock().seen.get(&system).cloned().unwrap_or_default()
    }

    /// How often which fault was met.
    pub fn met(&self) -> BTreeMap<&'static str, u64> {
        self.lock().met.clone()
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

    fn serve_silence(&self) -> Response {
        self.fall_silent();
        plain_json(StatusCode::OK, &json!({ "quiet": true }))
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
            let (mut reply, delivery) = inner.answer(system, call, serve, &ask);
            let status = if delivery == Delivery::Never { 0 } else { reply.status.as_u16() };
            let now = inner.now;
            let login = call == Call::Login;
            let refused = login && status < 500 && status != 429 && delivery == Delivery::Plain && !reply.lets_in();
            let seen = inner.seen.entry(system).or_default();
            if seen.len() < SEEN_MAX {
                seen.push(Seen { at: now, login, status, refused });
            }
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
        if let Some(kept) = self.kept {
            self.forget(self.now - delta(kept));
        }
        self.redate();
    }

    fn forget(&mut self, before: DateTime<Utc>) {
        self.canvas.events.forget(System::Canvas, before);
        self.informatica.events.forget(System::Informatica, before);
        self.activid.events.forget(System::Activid, before);
        self.losant.events.forget(System::Losant, before);
        self.issued.drain(..self.issued.len().saturating_sub(ISSUED_KEPT));
        for seen in self.seen.values_mut() {
            let old = seen.partition_point(|one| one.at < before);
            seen.drain(..old);
        }
    }

    fn redate(&mut self) {
        let now = self.now;
        let share = |system| Some(self.faults.of(system).redated).filter(|share| *share > 0.0);
        let [canvas, informatica, losant] = [System::Canvas, System::Informatica, System::Losant].map(share);
        canvas.inspect(|share| self.canvas.redate(now, *share));
        informatica.inspect(|share| self.informatica.redate(now, *share));
        losant.inspect(|share| self.losant.redate(now, *share));
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
        } else if due && !self.end_sessions(system) {
            Some(Refusal::Unauthorized)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            let mut reply = refuse(system, refusal, &faults, ask);
            if refusal == Refusal::Throttled && faults.retry_after > 0 {
                reply.headers.push(faults.retry_form.header(faults.retry_after, self.now + self.skew(system)));
            }
            return (reply.refused_as(&faults, call == Call::Login), Delivery::Plain);
        }
        if call == Call::Read && self.meets(&mut dice, "redirect", faults.redirect) {
            let elsewhere = format!("https://elsewhere.invalid{}", ask.path);
            return (Reply::new(StatusCode::TEMPORARY_REDIRECT).with(header::LOCATION, elsewhere), Delivery::Plain);
        }

        let mut reply = serve(self, ask);
        if call == Call::Login || !reply.status.is_success() {
            return (reply.refused_as(&faults, call == Call::Login), Delivery::Plain);
        }
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
            reply.spoil(system, faults.count_cap);
        }
        if self.meets(&mut dice, "shuffled", faults.shuffled) {
            reply.shuffle(system, &mut dice);
        }
        if self.meets(&mut dice, "strange", faults.strange) {
            reply.estrange(system);
        }
        if self.meets(&mut dice, "null_lists", faults.null_lists) {
            reply.nullify(system);
        }
        if self.meets(&mut dice, "odd_totals", faults.odd_totals) {
            reply.miscount(&mut dice);
        }
        // not files
        let is_text = matches!(reply.content, Content::Json(_));
        if is_text && self.meets(&mut dice, "garbled", faults.garbled) {
            reply.garble(system, &mut dice);
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

    /// Whether a request meets a fault.
    pub(super) fn meets(&mut self, dice: &mut Dice, what: &'static str, probability: f64) -> bool {
        let meets = dice.chance(probability);
        if meets {
            *self.met.entry(what).or_default() += 1;
        }
        meets
    }

    /// Ends all sessions of a service; false where credentials are given once and for all.
    fn end_sessions(&mut self, system: System) -> bool {
        *self.met.entry("expire_every").or_default() += 1;
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

/// What the tests of the services share.
#[cfg(test)]
pub(super) mod testing {
    use bytes::Bytes;
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
            history: Duration::from_hours(2),
            day: Duration::from_hours(24),
            rate,
            faults: Faults::default(),
            quiet,
        })
    }

    /// A world with traffic in which something is wrong.
    pub(crate) fn with_fault(flag: &str) -> World {
        let world = with_traffic();
        let mut faults = Faults::default();
        faults.set(flag).unwrap();
        world.set_faults(faults);
        world
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

#[cfg(test)]
mod tests {
    use super::testing::{body, bytes, call, get, quiet, request, with_fault, with_traffic};
    use super::*;
    use crate::event::Outcome;

    const LOSANT: &str = "/instance/575ec7417ae143cd83dc4a96/audit-logs?perPage=1000&sortDirection=asc";

    async fn losant(world: &World) -> Response {
        let token = format!("Bearer {}", losant::API_TOKEN);
        call(world, get(LOSANT, &[("authorization", &token)])).await
    }

    async fn post(world: &World, path: &str, what: Value) -> (StatusCode, Value) {
        body(call(world, request("POST", path, &[], what.to_string())).await).await
    }

    fn scenario(name: &str, more: &Value) -> Injection {
        let mut call = json!({ "name": name });
        for (key, value) in more.as_object().unwrap() {
            call[key] = value.clone();
        }
        serde_json::from_value(json!({ "scenario": call })).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn requests_do_not_change_what_happens() {
        let (watched, alone) = (with_traffic(), with_traffic());
        for _ in 0..50 {
            tokio::time::advance(Duration::from_secs(7)).await;
            losant(&watched).await;
            watched.truth();
        }
        assert_eq!(body(losant(&watched).await).await, body(losant(&alone).await).await);
        assert_eq!(watched.truth(), alone.truth());
        for system in System::ALL {
            assert!(alone.truth().total(system) > 100, "{system}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn truth_never_decreases_and_grows_in_every_service() {
        let world = with_traffic();
        let mut before = world.truth();
        let first = before.clone();
        for _ in 0..60 {
            tokio::time::advance(Duration::from_mins(2)).await;
            let now = world.truth();
            assert!(before.events.iter().all(|(key, count)| now.events[key] >= *count));
            before = now;
        }
        for system in System::ALL {
            assert!(before.total(system) > first.total(system), "{system}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_world_that_forgets_does_not_grow_and_its_truth_is_still_of_everything() {
        let (forgets, remembers) = (with_traffic(), with_traffic());
        forgets.forget_after(Duration::from_hours(3));
        let remembered = |world: &World| {
            let inner = world.lock();
            let events = inner.canvas.events.len() + inner.informatica.events.len();
            events
                + inner.activid.events.len()
                + inner.losant.events.len()
                + inner.seen.values().map(Vec::len).sum::<usize>()
        };
        let mut after_a_day = 0;
        for hour in 0..72 {
            tokio::time::advance(Duration::from_hours(1)).await;
            losant(&forgets).await;
            assert_eq!(forgets.truth(), remembers.truth());
            if hour == 24 {
                after_a_day = remembered(&forgets);
            }
        }
        assert!(remembered(&forgets) < after_a_day * 2, "{} of {after_a_day}", remembered(&forgets));
        assert!(remembered(&remembers) > remembered(&forgets) * 10);
    }

    #[tokio::test]
    async fn the_truth_of_two_halves_is_the_truth() {
        let world = with_traffic();
        let cut = Some(world.now() - TimeDelta::hours(1));
        let older = world.truth_of(&TruthOf { to: cut, ..TruthOf::default() });
        let newer = world.truth_of(&TruthOf { from: cut, ..TruthOf::default() });
        for system in System::ALL {
            assert!(older.total(system) > 0, "{system}");
            assert_eq!(older.total(system) + newer.total(system), world.truth().total(system), "{system}");
        }
    }

    #[tokio::test]
    async fn a_quiet_world_holds_what_is_injected_and_nothing_else() {
        let world = quiet();
        assert_eq!(world.truth(), Truth::default());
        for (name, more, system, events) in [
            ("password_spray", json!({}), System::Activid, 41),
            ("deletion_burst", json!({"system": "informatica", "count": 3}), System::Informatica, 3),
            ("deletion_burst", json!({}), System::Losant, 25),
            ("privilege_escalation", json!({"at": world.now() - TimeDelta::minutes(1)}), System::Informatica, 3),
            ("category_flood", json!({"count": 70}), System::Losant, 70),
            ("late_events", json!({"system": "canvas"}), System::Canvas, 5),
            ("updated_file", json!({"count": 9}), System::IndexExchange, 18),
        ] {
            let before = world.truth().total(system);
            assert_eq!(world.inject(&scenario(name, &more)), events, "{name}");
            assert_eq!(world.truth().total(system) - before, events as u64, "{name}");
        }
        let truth = world.truth();
        let key = (System::Activid, crate::event::Principal::User, Outcome::Failure);
        assert_eq!(truth.logins[&key], 40);
        assert_eq!(truth.events.keys().filter(|(_, category, ..)| category.starts_with("novelty")).count(), 70);
    }

    #[tokio::test]
    async fn the_simulators_own_routes_take_json_and_say_what_is_wrong_with_it() {
        let world = quiet();
        let (status, answer) = post(&world, "/simulator/inject", json!("tainted_record")).await;
        assert_eq!((status, answer), (StatusCode::OK, json!({"events": 1})));
        let many = json!([{"scenario": {"name": "new_category"}}, "deletion_burst"]);
        assert_eq!(post(&world, "/simulator/inject", many).await.1, json!({"events": 29}));
        let (status, answer) = post(&world, "/simulator/inject", json!("earthquake")).await;
        assert!(status == StatusCode::BAD_REQUEST && answer["error"].as_str().unwrap().contains("earthquake"));
        let (status, answer) = post(&world, "/simulator/faults", json!({"losant": {"gravity": 1}})).await;
        assert!(status == StatusCode::BAD_REQUEST && answer["error"].as_str().unwrap().contains("gravity"));
        let (_, answer) = post(&world, "/simulator/faults", json!({"losant": {"error": 1}})).await;
        assert_eq!(answer["losant"]["error"], 1.0);
        assert_eq!(losant(&world).await.status(), StatusCode::INTERNAL_SERVER_ERROR);
        post(&world, "/simulator/faults", json!({"losant": null})).await;
        assert_eq!(losant(&world).await.status(), StatusCode::OK);
        let (_, truth) = body(call(&world, get("/simulator/truth", &[])).await).await;
        assert_eq!((&truth["totals"]["losant"], &truth["tainted"]["activid"]), (&json!(26), &json!(1)));
        let (_, requests) = body(call(&world, get("/simulator/requests", &[])).await).await;
        assert_eq!((&requests["losant"]["count"], &requests["canvas"]["count"]), (&json!(2), &json!(0)));
        assert_eq!(requests["losant"]["by_status"], json!({"200": 1, "500": 1}));
        let bad = call(&world, get("/simulator/truth?from=soon", &[])).await;
        assert_eq!(bad.status(), StatusCode::BAD_REQUEST);
    }

    #[tokio::test]
    async fn a_service_that_is_down_comes_back() {
        let world = quiet();
        world.inject(&scenario("service_down", &json!({"system": "losant"})));
        assert_eq!(losant(&world).await.status(), StatusCode::SERVICE_UNAVAILABLE);
        world.inject(&scenario("service_up", &json!({})));
        assert_eq!(losant(&world).await.status(), StatusCode::OK);
    }

    #[tokio::test]
    async fn each_fault_of_an_answer_is_what_it_says() {
        let throttled = losant(&with_fault("losant:throttle,retry_after=9")).await;
        assert_eq!(throttled.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(throttled.headers()["retry-after"], "9");
        assert_eq!(losant(&with_fault("losant:unauthorized")).await.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(losant(&with_fault("losant:forbidden")).await.status(), StatusCode::FORBIDDEN);
        let redirect = losant(&with_fault("losant:redirect")).await;
        assert!(redirect.status().is_redirection());
        assert!(redirect.headers()["location"].to_str().unwrap().starts_with("https://elsewhere.invalid/"));
        let html = losant(&with_fault("losant:html")).await;
        assert!(html.status() == StatusCode::OK && bytes(html).await.starts_with(b"<!DOCTYPE html>"));
        let truncated = bytes(losant(&with_fault("losant:truncated")).await).await;
        assert!(serde_json::from_slice::<Value>(&truncated).unwrap_err().is_eof());
        assert!(bytes(losant(&with_fault("losant:deep")).await).await.starts_with(b"[[[[[["));
        let (_, good) = body(losant(&with_traffic()).await).await;
        let (_, spoilt) = body(losant(&with_fault("losant:malformed")).await).await;
        let [good, spoilt] = [good, spoilt].map(|list| list["items"].as_array().unwrap().len());
        assert_eq!(spoilt, good + 1);
        let garbled = bytes(losant(&with_fault("losant:garbled")).await).await;
        assert!(garbled.windows(8).any(|bytes| bytes == b"linkNote"));
        assert!(bytes(losant(&with_fault("losant:marked")).await).await.starts_with(b"\xEF\xBB\xBF{"));
        let (_, strange) = body(losant(&with_fault("losant:strange")).await).await;
        assert_eq!(strange["items"].as_array().map(Vec::len), Some(1));
        let (_, odd) = body(losant(&with_fault("losant:odd_totals")).await).await;
        assert!(odd["totalCount"].as_u64().is_none() && !odd["totalCount"].is_null());
        let nobody = with_fault("losant:null_lists");
        let token = format!("Bearer {}", losant::API_TOKEN);
        let future = get(&format!("{LOSANT}&start=9999999999999"), &[("authorization", &token)]);
        assert_eq!(body(call(&nobody, future).await).await.1["items"], Value::Null);
        let (_, doubled) = body(losant(&with_fault("losant:duplicates=1")).await).await;
        assert_eq!(doubled["totalCount"], 2 * good);
        let (_, capped) = body(losant(&with_fault("losant:count_cap=3")).await).await;
        assert_eq!((&capped["perPage"], &capped["count"]), (&json!(3), &json!(3)));
    }

    #[tokio::test]
    async fn a_bomb_is_small_until_it_is_unpacked() {
        let response = losant(&with_fault("losant:bomb")).await;
        assert_eq!(response.headers()["content-encoding"], "gzip");
        let packed = bytes(response).await;
        assert!(packed.len() < 1 << 20, "{}", packed.len());
        let mut first = vec![0; 8 << 20];
        std::io::Read::read_exact(&mut flate2::read::GzDecoder::new(&packed[..]), &mut first).unwrap();
        assert!(first.iter().all(|byte| *byte == b' '));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_hangs_is_never_answered_and_one_that_drips_is_slow() {
        let hanging = with_fault("losant:hang");
        assert!(tokio::time::timeout(Duration::from_hours(1), losant(&hanging)).await.is_err());
        assert_eq!(hanging.requests(System::Losant)[0].status, 0);
        let dripping = losant(&with_fault("losant:drip")).await;
        assert_eq!(dripping.status(), StatusCode::OK);
        assert!(tokio::time::timeout(Duration::from_mins(1), bytes(dripping)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_skewed_clock_shows_in_the_date_the_events_and_the_bounds() {
        let world = with_fault("losant:clock_skew_seconds=3600");
        let (_, plain) = body(losant(&with_traffic()).await).await;
        let response = losant(&world).await;
        assert_eq!(response.headers()["date"], "Wed, 04 Mar 2026 13:00:00 GMT");
        let (_, skewed) = body(response).await;
        let [was, is] = [&plain, &skewed]
            .map(|list| list["items"][0]["creationDate"].as_str().unwrap().parse::<DateTime<Utc>>().unwrap());
        assert_eq!(is - was, TimeDelta::hours(1));
        let token = format!("Bearer {}", losant::API_TOKEN);
        let ms = is.timestamp_millis();
        let path = format!("{LOSANT}&start={ms}&end={ms}");
        let (_, found) = body(call(&world, get(&path, &[("authorization", &token)])).await).await;
        assert_eq!(found["items"][0]["id"], skewed["items"][0]["id"]);
    }

    #[tokio::test]
    async fn every_service_is_on_one_origin_and_refuses_strangers() {
        let world = with_traffic();
        let json = ("content-type", "application/json");
        for (method, path) in [
            ("GET", "/api/v1/audit/authentication/accounts/1"),
            ("GET", "/saas/public/core/v3/securityLog"),
            ("POST", "/scim/ACME/v2/Event/.search"),
            ("GET", LOSANT),
            ("GET", "/api/cal/v1/downloads"),
            ("GET", "/api/cal/v1/downloads/bidevents"),
            ("GET", "/api/cal/v1/files/1"),
        ] {
            let response = call(&world, request(method, path, &[json], "{}")).await;
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{path}");
        }
    }
}
