//! What a source is.
//!
//! A source knows one service: given a window, what to ask; given an answer, which events it
//! holds and what to ask next. It promises that every event the service reports for the window
//! goes to the [`Sink`] under a key that is the same on every reading, and that an error is
//! returned where it cannot know that it has them all.
//!
//! It does not sleep, retry, count, look at a clock or see the ledger: politeness is `api.rs`,
//! cadence is `poll.rs`, counting is `ledger.rs`.
//!
//! Leaves to others: which there are (`source/registry.rs`), what they share (`source/kit.rs`).

use std::time::Duration;

use async_trait::async_trait;

use crate::api::Api;
use crate::event::EventKey;
use crate::failure::Failure;
use crate::page::{Catalogue, DocumentRecord, Page};
use crate::window::Window;

pub mod activid;
pub mod canvas;
pub mod index_exchange;
pub mod informatica;
pub mod kit;
mod link;
pub mod list;
pub mod losant;
mod oauth;
pub mod registry;
pub mod text;

/// What is always true of a source, whatever it reads.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Windows begin and end at multiples of this; 1 ms where events have times of their own.
    pub cell: Duration,
    /// The longest window that is asked for at once while catching up.
    pub step_max: Duration,
    /// How far beyond the present to ask, for a service whose clock is ahead.
    pub ahead: Duration,
    /// Whether the service is a list of files, read whole each time, instead of a history.
    pub is_feed: bool,
    /// What the service can report.
    pub signals: Signals,
    /// The label sets its documentation makes possible.
    pub catalogue: Catalogue,
}

/// What a service can report: `audit_source_signal_available`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are five independent facts, each a series of its own")]
pub struct Signals {
    /// Logins.
    pub login: bool,
    /// Failed logins.
    pub login_failure: bool,
    /// Logouts.
    pub logout: bool,
    /// Changes.
    pub change: bool,
    /// Whether its records are what was written.
    pub integrity: bool,
}

impl Signals {
    /// Label value and fact.
    pub fn rows(self) -> [(&'static str, bool); 5] {
        [
            ("login", self.login),
            ("login_failure", self.login_failure),
            ("logout", self.logout),
            ("change", self.change),
            ("integrity", self.integrity),
        ]
    }
}

/// Reads one service.
#[async_trait]
pub trait Source: Send + Sync {
    /// What is always true of it.
    fn spec(&self) -> Spec;

    /// Reads everything the service reports for `window` and hands it to `sink`, page by page.
    ///
    /// Returns `Ok` only if nothing of the window is missing. What was handed over before an
    /// error stays counted; the window is read again.
    async fn read(&mut self, window: Window, api: &Api, sink: &mut dyn Sink) -> Result<(), Failure>;
}

/// Takes what a source reads.
#[async_trait]
pub trait Sink: Send {
    /// Takes a page. Events outside the window are not counted, only noticed.
    async fn page(&mut self, page: Page) -> Result<Taken, Failure>;

    /// Reports something that does not keep the window from being complete, or that reading
    /// again will not mend (`Truncated`, an ignored filter): counted and logged, the poll goes on.
    fn report(&mut self, failure: Failure);

    /// What is remembered of a file of the window.
    fn document(&mut self, key: &EventKey) -> Option<DocumentRecord>;

    /// Whether files are read again to check what is remembered of them: those, and only those,
    /// that have not changed since.
    fn checks(&self) -> bool {
        false
    }
}

/// What became of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Events within the window.
    pub inside: usize,
    /// Events before the window: the service ignored its start.
    pub before: usize,
    /// Events after the window: the service ignored its end.
    pub after: usize,
}
