//! The ground truth: what happened, and what an exact reader must show.
//!
//! Promises: an event counts from the moment it can be read; what it counts as was written by hand
//! where it was made.
//!
//! Leaves to others: making events.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::chance::Dice;
use super::injection::EventCall;
use crate::event::{Class, Outcome, Principal, System};

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
    /// Only what could be read at this moment.
    pub visible_by: Option<DateTime<Utc>>,
    /// Without events of these actors (compared without case).
    pub ignored_actors: Vec<String>,
    /// Which of its times places an event that got another one.
    pub placed_by: PlacedBy,
}

/// Which time of an event must lie in the part of the truth that is asked for. It matters only to events that the
/// service gave another time after they could be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlacedBy {
    /// The one that it has now.
    #[default]
    LastTime,
    /// The one that it has now or the one that it had first: a reader may have seen it at either.
    EitherTime,
    /// Both: wherever a reader saw it, it was there.
    BothTimes,
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
    /// Every name by which the service tells who did it; none where it does not say.
    pub(super) actors: Vec<String>,
    pub(super) expect: Expect,
    pub(super) tainted: bool,
    pub(super) wire: E,
}

/// The events of one service by time.
pub(super) struct Timeline<E> {
    system: System,
    events: BTreeMap<(i64, u64), Placed<E>>,
    inserted: u64,
    /// What is forgotten, counted.
    forgotten: Truth,
    /// The first time of each that got another one.
    redated: BTreeMap<u64, DateTime<Utc>>,
}

/// Within so much of its own time an event may get another one.
const REDATED_WITHIN: TimeDelta = TimeDelta::minutes(15);
/// The longest time between being visible and getting another time.
const REDATED_AFTER_MS: u64 = 200_000;
/// The earliest new time before, and the latest behind the old one, in seconds.
const REDATED_BY: (u64, u64) = (60, 120);

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

    fn merge(&mut self, other: &Truth) {
        fn sum<K: Clone + Ord>(into: &mut BTreeMap<K, u64>, from: &BTreeMap<K, u64>) {
            for (key, count) in from {
                *into.entry(key.clone()).or_default() += count;
            }
        }
        sum(&mut self.events, &other.events);
        sum(&mut self.logins, &other.logins);
        sum(&mut self.logouts, &other.logouts);
        sum(&mut self.changes, &other.changes);
        sum(&mut self.tainted, &other.tainted);
    }

    /// All events of a system.
    pub fn total(&self, system: System) -> u64 {
        self.events.iter().filter(|((of, ..), _)| *of == system).map(|(_, count)| count).sum()
    }

    /// As `/simulator/truth` answers it, with the totals of these systems.
    pub fn to_json(&self, systems: impl IntoIterator<Item = System>) -> Value {
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
            systems.into_iter().map(|system| (system.as_str(), self.total(system))).collect();
        json!({"events": events, "logins": logins, "logouts": self.logouts, "changes": self.changes,
               "tainted": self.tainted, "totals": totals})
    }
}

// === impl TruthOf ===

impl TruthOf {
    fn is_everything(&self) -> bool {
        self.from.is_none() && self.to.is_none() && self.visible_by.is_none() && self.ignored_actors.is_empty()
    }

    /// Whether it is of this event, which had another time first if there is a `first_at`.
    fn holds<E>(&self, event: &Placed<E>, first_at: Option<DateTime<Utc>>) -> bool {
        let within = |at: DateTime<Utc>| self.from.is_none_or(|from| at >= from) && self.to.is_none_or(|to| at < to);
        let first_at = first_at.unwrap_or(event.at);
        let placed = match self.placed_by {
            PlacedBy::LastTime => within(event.at),
            PlacedBy::EitherTime => within(event.at) || within(first_at),
            PlacedBy::BothTimes => within(event.at) && within(first_at),
        };
        placed
            && self.visible_by.is_none_or(|by| event.visible_at <= by)
            && !self
                .ignored_actors
                .iter()
                .any(|ignored| event.actors.iter().any(|actor| actor.eq_ignore_ascii_case(ignored)))
    }
}

// === impl Placed ===

impl<E> Placed<E> {
    fn tell(&self, system: System, truth: &mut Truth) {
        truth.add(system, &self.expect, 1);
        if self.tainted {
            *truth.tainted.entry(system).or_default() += 1;
        }
    }
}

// === impl Expect ===

impl Expect {
    pub(super) fn new(category: &str, action: &str, outcome: Outcome, class: Class) -> Self {
        Self { category: category.to_owned(), action: action.to_owned(), outcome, class }
    }

    /// What a single event must be counted as that is made to happen.
    pub(super) fn called(call: &EventCall) -> Self {
        let outcome = match call.outcome.as_str() {
            "success" => Outcome::Success,
            "failure" => Outcome::Failure,
            _ => Outcome::Unknown,
        };
        let class = match (call.action.as_str(), call.principal.as_deref()) {
            ("login", Some("agent")) => Class::Login(Principal::Agent),
            ("login", Some("device")) => Class::Login(Principal::Device),
            ("login", _) => Class::Login(Principal::User),
            ("logout", _) => Class::Logout,
            _ => Class::Change,
        };
        Self::new(&call.category, &call.action, outcome, class)
    }
}

/// What a service sends for an event.
pub(super) trait Wire {
    /// The service's own id of it; `None` where it gives none.
    fn id(&self) -> Option<&str>;
}

/// The events of a service, whatever they are on the wire.
pub(super) trait Events {
    /// Adds what an exact reader must have counted by now.
    fn tell(&self, now: DateTime<Utc>, of: &TruthOf, truth: &mut Truth);

    /// Forgets what happened, and could be read, before a moment.
    fn forget(&mut self, before: DateTime<Utc>);

    /// Gives a share of the events another time, each once. By their ids, so that it does not matter who looks when;
    /// what has none keeps its time.
    fn redate(&mut self, now: DateTime<Utc>, share: f64);

    /// How many there are.
    #[cfg(test)]
    fn len(&self) -> usize;
}

// === impl Timeline ===

impl<E> Timeline<E> {
    pub(super) fn new(system: System) -> Self {
        Self { system, events: BTreeMap::new(), inserted: 0, forgotten: Truth::default(), redated: BTreeMap::new() }
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
        self.events
            .range(range)
            .map(|(_, event)| event)
            .filter(move |event| event.visible_at <= now && event.at >= from && event.at <= to)
    }
}

impl<E: Wire> Events for Timeline<E> {
    fn tell(&self, now: DateTime<Utc>, of: &TruthOf, truth: &mut Truth) {
        if of.is_everything() {
            truth.merge(&self.forgotten);
        }
        for ((_, n), event) in &self.events {
            if event.visible_at <= now && of.holds(event, self.redated.get(n).copied()) {
                event.tell(self.system, truth);
            }
        }
    }

    fn forget(&mut self, before: DateTime<Utc>) {
        while let Some(oldest) = self.events.first_entry().filter(|oldest| {
            let event = oldest.get();
            event.at < before && event.visible_at < before
        }) {
            self.redated.remove(&oldest.key().1);
            oldest.remove().tell(self.system, &mut self.forgotten);
        }
    }

    fn redate(&mut self, now: DateTime<Utc>, share: f64) {
        let range = ((now - REDATED_WITHIN).timestamp_millis(), 0)..=(now.timestamp_millis(), u64::MAX);
        let moved: Vec<((i64, u64), DateTime<Utc>)> = self
            .events
            .range(range)
            .filter(|((_, n), _)| !self.redated.contains_key(n))
            .filter_map(|(place, event)| {
                let mut dice = Dice::of(0, event.wire.id()?, 1);
                let happens = dice.chance(share);
                let mut below = |n: u64| i64::try_from(dice.below(n)).unwrap_or(0);
                let due = event.visible_at + TimeDelta::milliseconds(below(REDATED_AFTER_MS));
                let (before, behind) = REDATED_BY;
                let at =
                    event.at - TimeDelta::seconds(below(before + behind)) + TimeDelta::seconds(behind.cast_signed());
                (happens && due <= now && at <= now).then_some((*place, at))
            })
            .collect();
        for (place @ (_, n), at) in moved {
            let Some(event) = self.events.remove(&place) else { continue };
            self.redated.insert(n, event.at);
            self.events.insert((at.timestamp_millis(), n), Placed { at, ..event });
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.events.len()
    }
}
