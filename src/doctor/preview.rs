//! Shows what a poll would count, without counting it.

use std::collections::{BTreeMap, HashSet};

use async_trait::async_trait;
use chrono::TimeDelta;

use crate::event::{EventKey, EventLabels, What};
use crate::failure::Failure;
use crate::page::{DocumentRecord, Feed, Page};
use crate::source::{Sink, Taken};
use crate::window::Window;

/// Takes what is read, and counts it nowhere.
#[derive(Default)]
pub(super) struct Preview {
    pub(super) window: Option<Window>,
    keys: HashSet<EventKey>,
    pub(super) events: BTreeMap<EventLabels, u64>,
    pub(super) rejected: u64,
    pub(super) ignored: u64,
    pub(super) outside: u64,
    pub(super) tainted: bool,
    pub(super) feed: Option<Feed>,
    /// One of the lists was empty.
    pub(super) lists_nothing: bool,
    pub(super) troubles: Vec<Failure>,
}

#[async_trait]
impl Sink for Preview {
    async fn page(&mut self, page: Page) -> Result<Taken, Failure> {
        let mut taken = Taken::default();
        for item in page.items {
            // some services cut times to seconds
            let tolerance = TimeDelta::seconds(1);
            match (item.at, self.window) {
                (Some(at), Some(window)) if at < window.from - tolerance => taken.before += 1,
                (Some(at), Some(window)) if at >= window.to + tolerance => taken.after += 1,
                _ => {
                    taken.inside += 1;
                    match item.what {
                        What::Tainted { .. } => self.tainted = true,
                        _ if !self.keys.insert(item.key) => {}
                        What::Event(labels) => *self.events.entry(labels).or_default() += 1,
                        What::Ignored => self.ignored += 1,
                        What::Rejected(_) => self.rejected += 1,
                    }
                }
            }
        }
        self.outside += (taken.before + taken.after) as u64;
        self.lists_nothing |= page.facts.feed.as_ref().is_some_and(|feed| feed.newest_hour.is_none());
        for document in page.documents {
            for (action, count) in document.rows {
                *self.events.entry(EventLabels::row(document.category.clone(), action)).or_default() += count;
            }
            self.rejected += document.rejected;
        }
        self.feed = match (self.feed.take(), page.facts.feed) {
            // one list after the other: what is newest of any
            (Some(mut all), Some(one)) => {
                all.newest_hour = all.newest_hour.max(one.newest_hour);
                all.missing_hours += one.missing_hours;
                for (status, count) in one.files {
                    *all.files.entry(status).or_default() += count;
                }
                Some(all)
            }
            (all, one) => one.or(all),
        };
        Ok(taken)
    }

    fn report(&mut self, failure: Failure) {
        self.troubles.push(failure);
    }

    fn document(&mut self, _: &EventKey) -> Option<DocumentRecord> {
        None
    }
}
