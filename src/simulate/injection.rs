//! The events that a user of the simulator can inject.
//!
//! Promises: the same in code and as JSON; a field that is not known is an error.
//!
//! Leaves to others: what comes of it (each service's own file), and for whom (`world.rs`).

use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::chance::Dice;
use crate::event::System;

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

/// The scenarios. Which service plays which, and which play where none is named, each service says
/// for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scenario {
    /// Failed logins (40) of as many users from one address, then a successful one.
    PasswordSpray,
    /// Deletions (25) by one actor.
    DeletionBurst,
    /// A user is made or changed, and gets roles, groups or privileges.
    PrivilegeEscalation,
    /// Records (1) that fail the integrity check.
    TaintedRecord,
    /// Events (1) of a kind no document lists.
    NewCategory,
    /// Events (10,000), each of another category that no document lists.
    CategoryFlood,
    /// Events (5) that are 1 to 8 minutes old when they become visible.
    LateEvents,
    /// The newest file of each subscription gains rows (50).
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
    /// ActivID `type`, Losant `requestAction`, Index Exchange `event_type`.
    pub verb: String,
    /// What the service calls what it was done to: Informatica `actionCategory`, ActivID a
    /// resource type as in `…/Users/1`, Losant `primaryTargetType`, Index Exchange the subscription.
    #[serde(default)]
    pub kind: Option<String>,
    /// How it ended: ActivID `values.status`, Losant `responseStatus` as a number.
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
    /// ActivID: fails the integrity check.
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

/// Why nothing was made to happen.
#[derive(Debug, thiserror::Error)]
pub enum BadInjection {
    /// No such service.
    #[error("{0} is not a simulated service")]
    NotSimulated(System),
    /// No such events.
    #[error("{system} has no scenario {scenario}: expected {players}")]
    NotPlayed {
        /// The service that is named.
        system: &'static str,
        /// What it does not have.
        scenario: Scenario,
        /// Who has it.
        players: String,
    },
}

/// Whether a service plays a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plays {
    /// It has no such events.
    Never,
    /// Only where it is named.
    WhenNamed,
    /// Also where no service is named.
    Usually,
}

/// A scenario that a service plays now.
pub(super) struct Scene {
    pub(super) name: Scenario,
    pub(super) now: DateTime<Utc>,
    /// From when on it happens.
    pub(super) at: DateTime<Utc>,
    count: Option<u32>,
    seconds: u32,
}

// === impl Scenario ===

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

// === impl Scene ===

impl Scene {
    pub(super) fn of(call: &ScenarioCall, now: DateTime<Utc>) -> Self {
        Self { name: call.name, now, at: call.at.unwrap_or(now), count: call.count, seconds: call.seconds }
    }

    /// How many events are wanted: so many unless told otherwise.
    pub(super) fn count(&self, usual: u32) -> u32 {
        self.count.unwrap_or(usual).max(1)
    }

    /// A moment of the scene.
    pub(super) fn moment(&self, dice: &mut Dice) -> DateTime<Utc> {
        let ms = dice.below(u64::from(self.seconds) * 1000 + 1);
        self.at + TimeDelta::milliseconds(i64::try_from(ms).unwrap_or(0))
    }

    /// As many moments as events are wanted.
    pub(super) fn moments(&self, usual: u32, dice: &mut Dice) -> Vec<DateTime<Utc>> {
        (0..self.count(usual)).map(|_| self.moment(dice)).collect()
    }
}
