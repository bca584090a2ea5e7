//! A finding of `doctor`, and how it is printed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What was found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Findings {
    /// Which source.
    pub source: String,
    /// Its system.
    pub system: String,
    /// In the order in which things were tried.
    pub list: Vec<Finding>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How it is.
    pub state: State,
    /// In plain words, with the fix where one is needed.
    pub text: String,
}

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As it must be.
    Good,
    /// Worth knowing; nothing has to be done.
    Note,
    /// Something has to be done.
    Wrong,
}

impl Findings {
    /// Whether something has to be done.
    pub fn wrong(&self) -> bool {
        self.list.iter().any(|finding| finding.state == State::Wrong)
    }

    /// Says first that what was looked at is not what the configuration file says now.
    pub fn of_other_settings(&mut self, text: String) {
        self.list.insert(0, Finding::note(text));
    }

    /// Adds what was found of one thing.
    pub(super) fn add(&mut self, found: impl IntoIterator<Item = Finding>) {
        self.list.extend(found);
    }
}

impl Finding {
    pub(super) fn good(text: impl Into<String>) -> Self {
        Self { state: State::Good, text: text.into() }
    }

    pub(super) fn note(text: impl Into<String>) -> Self {
        Self { state: State::Note, text: text.into() }
    }

    pub(super) fn wrong(text: impl Into<String>) -> Self {
        Self { state: State::Wrong, text: text.into() }
    }
}

/// One thing that was found is all of it.
impl IntoIterator for Finding {
    type Item = Self;
    type IntoIter = std::iter::Once<Self>;

    fn into_iter(self) -> Self::IntoIter {
        std::iter::once(self)
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} ({})", self.source, self.system)?;
        for finding in &self.list {
            let mark = match finding.state {
                State::Good => "ok   ",
                State::Note => "note ",
                State::Wrong => "WRONG",
            };
            writeln!(f, "  {mark}  {}", finding.text)?;
        }
        Ok(())
    }
}
