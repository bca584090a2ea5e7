//! What a source returns: a page of events or files, and the events that its system can report at all.
//!
//! Promises: values only. Nothing here reads, counts or stores.
//!
//! Leaves to others: making a page (`source/*.rs`), counting it (`ledger.rs`).

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::event::{Class, EventKey, EventLabels, Item, Label, Outcome, Principal};

/// A file of a feed, counted as a whole: when it is read again, only the rows it gained are added.
#[derive(Clone, Debug)]
pub struct Document {
    /// Which file: the same for every later version of it.
    pub key: EventKey,
    /// The hour the file is about; its record is kept for 32 days after it.
    pub filed_at: DateTime<Utc>,
    /// Which version of the file was read.
    pub version: EventKey,
    /// The category of all its rows.
    pub category: Label,
    /// Rows by action.
    pub rows: BTreeMap<Label, u64>,
    /// Rows that could not be understood.
    pub rejected: u64,
}

/// What the ledger remembers of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentRecord {
    /// The version that was counted.
    pub version: [u8; 16],
    /// When it was counted.
    pub counted_at: DateTime<Utc>,
    /// The hour it is about.
    #[serde(default)]
    pub filed_at: DateTime<Utc>,
    /// The category of its rows.
    #[serde(default)]
    pub category: String,
    pub(crate) rows: BTreeMap<String, u64>,
    /// How many of them are counted as `other` because there is no room for their own value.
    #[serde(default)]
    pub(crate) overflow: u64,
    pub(crate) rejected: u64,
}

/// What a source found out that is a state rather than an event; shown as gauges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Whether the last verified read reported taint.
    pub tainted: Option<bool>,
    /// The state of a file feed.
    pub feed: Option<Feed>,
}

/// The state of a file feed as of its last listing; the newest hours are those of any listing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feed {
    /// Start of the newest hour listed.
    pub newest_hour: Option<DateTime<Utc>>,
    /// The same by the category of each subscription; without those of which nothing was ever listed.
    #[serde(default)]
    pub newest_by_category: BTreeMap<String, DateTime<Utc>>,
    /// Hours between the oldest and the newest listed for which no file is listed.
    pub missing_hours: u64,
    /// Files by the service's status (`new`, `downloaded`, `updated`).
    pub files: BTreeMap<String, u64>,
}

impl Feed {
    /// This listing after an earlier one: a subscription that lists nothing any more keeps its newest hour.
    #[must_use]
    pub fn after(mut self, earlier: Option<Feed>) -> Self {
        let Some(earlier) = earlier else { return self };
        self.newest_hour = self.newest_hour.max(earlier.newest_hour);
        for (category, hour) in earlier.newest_by_category {
            let newest = self.newest_by_category.entry(category).or_insert(hour);
            *newest = hour.max(*newest);
        }
        self
    }
}

/// One page of what a source read, or a whole window of it.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Events, in any order.
    pub items: Vec<Item>,
    /// Files that were read whole.
    pub documents: Vec<Document>,
    /// What was learned beside them; `None` leaves the last value.
    pub facts: Facts,
}

/// What a source can ever report, so that those series exist from the first start.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    /// The label sets that the service's documentation makes possible.
    pub events: Vec<EventLabels>,
    /// Whether the service can report integrity failures.
    pub integrity: bool,
}

impl Catalogue {
    /// Adds every combination of the given values.
    pub fn add(&mut self, categories: &[&str], actions: &[&str], outcomes: &[Outcome], class: Class) {
        for category in categories {
            for action in actions {
                for outcome in outcomes {
                    self.events.push(EventLabels {
                        category: Label::from_words(category),
                        action: Label::from_words(action),
                        outcome: *outcome,
                        class,
                    });
                }
            }
        }
    }

    /// The categories that are feeds of rows, each once.
    pub fn feeds(&self) -> BTreeSet<&Label> {
        self.events.iter().filter(|labels| labels.class == Class::Row).map(|labels| &labels.category).collect()
    }

    /// Adds logins of a principal.
    pub fn add_logins(&mut self, categories: &[&str], principal: Principal, outcomes: &[Outcome]) {
        self.add(categories, &["login"], outcomes, Class::Login(principal));
    }
}
