//! What a simulated service is: to the world, which lets time pass and lets things go wrong, and to
//! the tests and the demo, which configure a source that reads it.
//!
//! Promises: a service sees its own events and sessions and, of the world, a [`Present`], so that
//! none can reach another's log; what is true of a service before there is a world is data
//! ([`Simulated`]), so that code that needs all of them takes them from one list.
//!
//! Leaves to others: which services there are (`simulate.rs`), what each does (one file each).

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use http::Method;
use serde_json::Value;

use super::chance::{Cell, Chance, Dice};
use super::faults::ServiceFaults;
use super::injection::{EventCall, Plays, Scenario, Scene};
use super::message::{Ask, Listing, Refusal, Reply};
use super::truth::{Events, Expect, Truth, TruthOf};
use crate::event::System;

/// A simulated service, as far as it can be told before there is a world.
#[derive(Debug)]
pub struct Simulated {
    /// Which system it is.
    pub system: System,
    /// What the source that reads it is called in the demo.
    pub source: &'static str,
    /// The keys of such a source beside those that all sources have, in order.
    pub keys: &'static [(&'static str, Told)],
    /// What is let in, and whatever of it could be used alone: nobody may be shown any of it.
    pub secrets: &'static [&'static str],
    /// The same of a credential of the same form that is refused.
    pub refused_secrets: &'static [&'static str],
    /// It lists files of rows, which are nobody's acts, and no single events.
    pub is_feed: bool,
    /// Its events have ids, so that one that gets another time is still the same.
    pub has_ids: bool,
    /// With which of its faults they have none.
    pub loses_ids: Option<fn(&ServiceFaults) -> bool>,
    /// How its credential becomes what requests carry.
    pub sessions: Sessions,
    /// An event that it may have.
    pub example: Example,
    /// Its answers, for tests that write them by themselves.
    pub sample: Sample,
    /// It, where a world begins.
    pub(super) begin: fn(&Beginning) -> Box<dyn Served>,
}

/// What stands at a key of a configuration.
#[derive(Clone, Copy, Debug)]
pub enum Told {
    /// The service's address, and behind it this path.
    Address(&'static str),
    /// The credential.
    Credential,
    /// A text.
    Text(&'static str),
    /// YAML, as it is.
    Yaml(&'static str),
}

/// How a credential becomes what requests carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sessions {
    /// There are none: they carry the credential itself.
    None,
    /// A login gives a session of the service's own.
    Own,
    /// A login gives an OAuth token.
    Tokens,
}

/// An event, as one can be made to happen ([`EventCall`]), and what it must be counted as.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the fields of an `EventCall`")]
pub struct Example {
    pub verb: &'static str,
    pub kind: Option<&'static str>,
    pub status: Option<&'static str>,
    pub category: &'static str,
    pub action: &'static str,
    pub outcome: &'static str,
}

/// What a service answers, as a pattern of text. For tests that answer by themselves what no simulator does.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// An element of its list: `$N` is its number, `$AT` when it happened, `$UNREAD` a value that nobody reads.
    pub event: &'static str,
    /// How an element stands in the list, where it is wrapped.
    pub wrapped: Option<Wrap>,
    /// An answer with a list: `$COUNT` elements, `$EVENTS`.
    pub page: &'static str,
    /// What a login is answered that gives `$TOKEN` for a log at `$HOST`; empty where there is none.
    pub login: &'static str,
}

/// Makes an element of a list from the event in it.
pub type Wrap = fn(&[u8]) -> Vec<u8>;

/// How a configuration tells a credential.
#[derive(Clone, Copy, Debug)]
pub enum Credential<'a> {
    /// As it is.
    Text(&'a str),
    /// By the name of a file that holds it.
    File(&'a str),
}

/// A world that begins.
pub(super) struct Beginning {
    pub(super) seed: u64,
    /// Since when there are events.
    pub(super) from: DateTime<Utc>,
    /// Mean events per second over a day.
    pub(super) rate: f64,
}

/// What a request is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Login,
    Read,
}

/// Where a service answers.
#[derive(Clone)]
pub(super) struct Endpoint {
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) call: Call,
}

/// Where a service answers, and how.
pub(super) type Route<S> = (Endpoint, fn(&mut S, &mut Present<'_>, &Ask) -> Reply);

/// All of the world that a service may see.
pub(super) struct Present<'a> {
    /// The present, by the machine's clock.
    pub(super) now: DateTime<Utc>,
    /// How far the service's own clock is ahead of it.
    pub(super) skew: TimeDelta,
    /// What is wrong with the service.
    pub(super) faults: &'a ServiceFaults,
    /// Every token and session id that was given out.
    pub(super) issued: &'a mut Vec<String>,
    pub(super) chance: &'a mut Chance,
    pub(super) met: &'a mut Met,
}

/// How often which fault was met.
#[derive(Default)]
pub(super) struct Met(pub(super) BTreeMap<&'static str, u64>);

/// A service in a world.
pub(super) trait Service: Send {
    /// How it refuses.
    fn refuse(&self, refusal: Refusal, faults: &ServiceFaults, ask: &Ask) -> Reply;

    /// The list of events in its answers.
    fn listing(&self) -> Listing;

    /// What happens by itself within a cell.
    fn traffic(&mut self, cell: &mut Cell);

    /// An event that is made to happen. For several equal ones it is called as often, with the same dice.
    fn inject(&mut self, dice: &mut Dice, event: Injected<'_>);

    /// Its single events; `None` where it has none.
    fn events(&mut self) -> Option<&mut dyn Events> {
        None
    }

    /// Adds what an exact reader must have counted by now.
    fn tell(&mut self, now: DateTime<Utc>, of: &TruthOf, truth: &mut Truth) {
        if let Some(events) = self.events() {
            events.tell(now, of, truth);
        }
    }

    /// Whether it plays a scenario.
    fn plays(&self, _: Scenario) -> Plays {
        Plays::Never
    }

    /// Plays one that it plays; says how many events that are.
    fn play(&mut self, _: &Scene, _: &mut Dice) -> usize {
        0
    }

    /// Ends all its sessions; false where credentials are given once and for all.
    fn end_sessions(&mut self) -> bool {
        false
    }
}

/// A service with the table of where it answers, and how.
pub(super) trait Routed: Sized + 'static {
    const ROUTES: &'static [Route<Self>];
}

/// A service as the world asks it.
pub(super) trait Served: Service {
    /// Where it answers.
    fn routes(&self) -> Vec<Endpoint>;

    /// What it answers at its route of this number.
    fn answer(&mut self, route: usize, present: &mut Present<'_>, ask: &Ask) -> Reply;
}

impl<S: Service + Routed> Served for S {
    fn routes(&self) -> Vec<Endpoint> {
        S::ROUTES.iter().map(|(endpoint, _)| endpoint.clone()).collect()
    }

    fn answer(&mut self, route: usize, present: &mut Present<'_>, ask: &Ask) -> Reply {
        (S::ROUTES[route].1)(self, present, ask)
    }
}

/// An event that is made to happen.
pub(super) struct Injected<'a> {
    pub(super) call: &'a EventCall,
    pub(super) expect: Expect,
    pub(super) at: DateTime<Utc>,
    pub(super) visible_at: DateTime<Utc>,
}

/// A service whose log holds single events, and the scenarios that each such log has.
pub(super) trait SingleEvents {
    /// One event of its usual traffic.
    fn ordinary(&mut self, dice: &mut Dice, at: DateTime<Utc>, visible_at: DateTime<Utc>);

    /// An event of a kind no document lists; the `number`-th such kind, or the usual one.
    fn unlisted(&mut self, dice: &mut Dice, number: Option<u32>, at: DateTime<Utc>, visible_at: DateTime<Utc>);

    /// Its usual traffic within a cell.
    fn usual_traffic(&mut self, cell: &mut Cell) {
        for at in cell.times() {
            let visible_at = cell.visible_at(at);
            self.ordinary(&mut cell.dice, at, visible_at);
        }
    }

    /// Plays a scenario that each such log has; says how many events that are.
    fn play_common(&mut self, scene: &Scene, dice: &mut Dice) -> usize {
        let now = scene.now;
        let count = match scene.name {
            Scenario::NewCategory => {
                let count = scene.count(1);
                (0..count).for_each(|_| self.unlisted(dice, None, scene.at, now.max(scene.at)));
                count
            }
            Scenario::CategoryFlood => {
                let count = scene.count(10_000);
                for number in 0..count {
                    let at = scene.moment(dice);
                    self.unlisted(dice, Some(number), at, now.max(at));
                }
                count
            }
            Scenario::LateEvents => {
                let count = scene.count(5);
                for _ in 0..count {
                    let at = scene.at - TimeDelta::seconds(60 + i64::try_from(dice.below(420)).unwrap_or(0));
                    self.ordinary(dice, at, now.max(at));
                }
                count
            }
            _ => 0,
        };
        count as usize
    }
}

/// A kind that no document lists, on the wire and as it is counted: the `number`-th, or the usual one.
pub(super) fn novelty(usual: (&str, &str), number: Option<u32>) -> (String, String) {
    number.map_or_else(
        || (usual.0.to_owned(), usual.1.to_owned()),
        |number| (format!("Novelty {number}"), format!("novelty_{number}")),
    )
}

/// A route to what is read.
pub(super) const fn read<S>(path: &'static str, serve: fn(&mut S, &mut Present<'_>, &Ask) -> Reply) -> Route<S> {
    (Endpoint { method: Method::GET, path, call: Call::Read }, serve)
}

/// A route to which something is posted.
pub(super) const fn posted<S>(
    path: &'static str,
    call: Call,
    serve: fn(&mut S, &mut Present<'_>, &Ask) -> Reply,
) -> Route<S> {
    (Endpoint { method: Method::POST, path, call }, serve)
}

// === impl Simulated ===

impl Simulated {
    /// The credential that is let in.
    pub fn secret(&self) -> &'static str {
        self.secrets.first().copied().unwrap_or_default()
    }

    /// The key at which a configuration tells the credential.
    pub fn secret_key(&self) -> &'static str {
        self.keys.iter().find(|(_, told)| matches!(told, Told::Credential)).map_or("", |(key, _)| key)
    }

    /// So many equal events, by someone, now.
    pub fn event(&self, count: u32) -> EventCall {
        let Example { verb, kind, status, category, action, outcome } = self.example;
        EventCall {
            system: self.system,
            verb: verb.to_owned(),
            kind: kind.map(str::to_owned),
            status: status.map(str::to_owned),
            actor: Some("someone".to_owned()),
            at: None,
            visible_after_ms: 0,
            count: Some(count),
            tainted: false,
            category: category.to_owned(),
            action: action.to_owned(),
            outcome: outcome.to_owned(),
            principal: None,
        }
    }

    /// The entry of a source in a configuration, from its second line on, each line behind `indent`
    /// but the first: the service is at `origin` (`http://127.0.0.1:PORT`).
    pub fn entry(&self, origin: &str, credential: Credential<'_>, indent: &str) -> String {
        let quoted = |text: &str| Value::from(text).to_string();
        let line = |(key, told): &(&str, Told)| match told {
            Told::Address(path) => format!("{key}: {origin}{path}"),
            Told::Text(text) => format!("{key}: {}", quoted(text)),
            Told::Yaml(text) => format!("{key}: {text}"),
            Told::Credential => match credential {
                Credential::Text(secret) => format!("{key}: {}", quoted(secret)),
                Credential::File(name) => format!("{key}_file: {}", quoted(name)),
            },
        };
        let lines: Vec<String> = self.keys.iter().map(line).collect();
        lines.join(&format!("\n{indent}"))
    }
}

// === impl Sample ===

impl Sample {
    /// The `number`-th event, with a value where nobody looks.
    pub fn event(&self, number: usize, at: DateTime<Utc>, unread: &[u8]) -> Vec<u8> {
        let at = at.to_rfc3339_opts(SecondsFormat::AutoSi, true);
        let event = self.event.replace("$N", &number.to_string()).replace("$AT", &at);
        let event = filled(&event, "$UNREAD", unread);
        match self.wrapped {
            Some(wrapped) => wrapped(&event),
            None => event,
        }
    }

    /// An answer that holds these events.
    pub fn page(&self, events: &[Vec<u8>]) -> Vec<u8> {
        let page = self.page.replace("$COUNT", &events.len().to_string());
        filled(&page, "$EVENTS", &events.join(&b","[..]))
    }

    /// An answer to a login.
    pub fn login(&self, token: &str, host: &str) -> String {
        self.login.replace("$TOKEN", token).replace("$HOST", host)
    }
}

/// A text with bytes at a place of it.
fn filled(text: &str, place: &str, bytes: &[u8]) -> Vec<u8> {
    let (before, after) = text.split_once(place).unwrap_or((text, ""));
    [before.as_bytes(), bytes, after.as_bytes()].concat()
}

// === impl Present ===

impl Present<'_> {
    /// Chance for what is not traffic; never the same twice.
    pub(super) fn draw(&mut self, what: &str) -> Dice {
        self.chance.draw(what)
    }

    /// Whether a request meets a fault.
    pub(super) fn meets(&mut self, dice: &mut Dice, what: &'static str, probability: f64) -> bool {
        self.met.meets(dice, what, probability)
    }
}

// === impl Met ===

impl Met {
    /// Whether a request meets a fault.
    pub(super) fn meets(&mut self, dice: &mut Dice, what: &'static str, probability: f64) -> bool {
        let meets = dice.chance(probability);
        if meets {
            self.count(what);
        }
        meets
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }
}
