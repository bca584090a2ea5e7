//! The interfaces of a service and of a source.
//!
//! A [`System`] is a service, an [`Entry`] what a configuration says of one source of it, a [`Source`] what reads that.
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

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use url::Url;

use crate::api::{Api, Dialect};
use crate::event::{self, EventKey};
use crate::failure::{ErrorKind, Failure};
use crate::page::{Catalogue, DocumentRecord, Page};
use crate::settings::{Common, Fields, Key, Kind, Reader, Secret};
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

/// A service, before there is an entry of it in a configuration.
pub struct System {
    /// Its name.
    pub name: event::System,
    /// What people call it.
    pub title: &'static str,
    /// The keys that only its sources have, after `name`; one of them is the credential's.
    pub keys: &'static [Key],
    /// How it is read.
    pub reading: Reading,
    /// The least and the most that may be asked for per page; `None` where there are no pages.
    pub page_sizes: Option<(u32, u32)>,
    /// What the keys of every source are where they are not given.
    pub defaults: fn() -> Common,
    /// The entry that the configuration describes.
    pub read: fn(&mut Reader<'_>, &Fields<'_>, &Common) -> Option<Arc<dyn Entry>>,
}

/// Page sizes of a service that does not say what it takes.
pub const USUAL_PAGE_SIZES: Option<(u32, u32)> = Some((1, 10_000));

impl System {
    /// The key of the credential.
    pub fn credential_key(&self) -> &'static str {
        self.keys.iter().find(|key| matches!(key.kind, Kind::Secret(_))).map_or("", |key| key.name)
    }
}

/// What only one kind of service needs of an entry of the configuration.
pub trait Entry: Any + Debug + Send + Sync + Alike {
    /// Whose entry it is.
    fn system(&self) -> &'static System;

    /// Its credential.
    fn credential(&self) -> &Secret;

    /// Where its requests go, as far as the configuration says.
    fn addresses(&self) -> Vec<&Url>;

    /// The logs that it reads, each an entry by itself, because each may be allowed or not.
    fn parts(&self) -> Vec<Part>;

    /// About how many requests `doctor` needs, logins included, if there are not many events.
    fn requests(&self, look: Look) -> usize;

    /// What to do about a failure, where the service is known to need something of its own. `place`: where the credential
    /// stands.
    fn remedy(&self, kind: ErrorKind, place: &str) -> Option<String>;

    /// Its source, and the dialect of the client.
    fn build(&self, common: &Common) -> (Box<dyn Source>, Box<dyn Dialect>);
}

/// A log of an entry.
pub struct Part {
    /// What it is called.
    pub name: String,
    /// What reads nothing else.
    pub entry: Arc<dyn Entry>,
    /// What to do where nothing is listed of it, because no document names it.
    pub undocumented: Option<String>,
}

impl Part {
    /// A log that cannot be parted.
    pub fn whole(name: impl Into<String>, entry: &(impl Entry + Clone)) -> Self {
        Self { name: name.into(), entry: Arc::new(entry.clone()), undocumented: None }
    }
}

/// How much `doctor` looks at.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// From when on, back from the present.
    pub span: Duration,
    /// In how many windows.
    pub windows: usize,
}

/// Whether two entries are the same: a reload leaves such a source alone. Whatever can be compared has this.
pub trait Alike {
    /// Whether the other is of the same service and has the same values.
    fn is_like(&self, other: &dyn Entry) -> bool;
}

impl<E: Entry + PartialEq> Alike for E {
    fn is_like(&self, other: &dyn Entry) -> bool {
        (other as &dyn Any).downcast_ref() == Some(self)
    }
}

impl PartialEq for dyn Entry {
    fn eq(&self, other: &Self) -> bool {
        self.is_like(other)
    }
}

/// How a service is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// A log: events of any time that it keeps can be asked for.
    History(History),
    /// A list of files, read whole each time.
    Feed {
        /// For how long a file is listed.
        retention: Duration,
        /// How long after its hour a file may still appear or change.
        settled_after: Duration,
        /// What to know where none is listed.
        when_empty: &'static str,
    },
}

/// How events of a time are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct History {
    /// Windows begin and end at multiples of this; 1 ms where events have times of their own.
    pub cell: Duration,
    /// The longest window that is asked for at once while catching up.
    pub step_max: Duration,
    /// How far beyond the present to ask, for a service whose clock is ahead.
    pub ahead: Duration,
}

impl Reading {
    /// Whether the service is a list of files.
    pub fn is_feed(&self) -> bool {
        matches!(self, Self::Feed { .. })
    }

    /// Windows begin and end at multiples of this.
    pub fn cell(&self) -> Duration {
        match self {
            Self::History(history) => history.cell,
            Self::Feed { .. } => Duration::from_millis(1),
        }
    }

    /// The longest window that is asked for at once while catching up.
    pub fn step_max(&self) -> Duration {
        match self {
            Self::History(history) => history.step_max,
            Self::Feed { retention, .. } => *retention,
        }
    }

    /// How far beyond the present to ask.
    pub fn ahead(&self) -> Duration {
        match self {
            Self::History(history) => history.ahead,
            Self::Feed { .. } => Duration::ZERO,
        }
    }

    /// The longest outage that is read back, where so much is wanted: the list of a feed is read whole, whatever the limit
    /// is, and lost is what it no longer shows.
    pub fn catch_up(&self, wanted: Duration) -> Duration {
        match self {
            Self::History(_) => wanted,
            Self::Feed { retention, .. } => wanted.max(*retention),
        }
    }
}

/// What is always true of a source, whatever it reads.
#[derive(Clone, Debug)]
pub struct Spec {
    /// How it is read.
    pub reading: Reading,
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

impl Taken {
    /// Counts an event by the moment it is filed at. What has none is within every window.
    pub(crate) fn note(&mut self, filed_at: Option<DateTime<Utc>>, window: Window) {
        let place = match filed_at {
            Some(moment) if moment < window.from => &mut self.before,
            Some(moment) if moment >= window.to => &mut self.after,
            _ => &mut self.inside,
        };
        *place += 1;
    }
}

/// The span of a file of a feed, which begins at a whole hour.
pub(crate) const FILE_SPAN: Duration = Duration::from_hours(1);
