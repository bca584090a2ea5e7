//! Which series an event adds to, and the key of a series in the store.
//!
//! Promises: the families after `audit_events_total` are sums over the same events, because
//! [`series_of`] is the only place that says which series an event adds to.

use std::sync::Arc;

use crate::event::{Class, EventLabels, Outcome, RejectReason};
use crate::page::Catalogue;

/// A family of counters that the ledger keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Counter {
    /// `audit_events_total`
    Events = 1,
    /// `audit_logins_total`
    Logins = 2,
    /// `audit_logouts_total`
    Logouts = 3,
    /// `audit_failures_total`
    Failures = 4,
    /// `audit_actions_total`
    Actions = 5,
    /// `audit_tainted_feeds_total`
    Tainted = 6,
    /// `audit_source_events_duplicate_total`
    Duplicate = 7,
    /// `audit_source_events_late_total`
    Late = 8,
    /// `audit_source_events_ignored_total`
    Ignored = 9,
    /// `audit_source_events_rejected_total`
    Rejected = 10,
    /// `audit_label_overflow_total`
    LabelOverflow = 11,
    /// `audit_source_lost_seconds_total`
    LostSeconds = 12,
}

impl Counter {
    /// Every family, in the order in which they are shown.
    pub const ALL: [Counter; 12] = [
        Counter::Events,
        Counter::Logins,
        Counter::Logouts,
        Counter::Failures,
        Counter::Actions,
        Counter::Tainted,
        Counter::Duplicate,
        Counter::Late,
        Counter::Ignored,
        Counter::Rejected,
        Counter::LabelOverflow,
        Counter::LostSeconds,
    ];

    /// The family's name on `/metrics`.
    pub fn name(self) -> &'static str {
        match self {
            Counter::Events => "audit_events_total",
            Counter::Logins => "audit_logins_total",
            Counter::Logouts => "audit_logouts_total",
            Counter::Failures => "audit_failures_total",
            Counter::Actions => "audit_actions_total",
            Counter::Tainted => "audit_tainted_feeds_total",
            Counter::Duplicate => "audit_source_events_duplicate_total",
            Counter::Late => "audit_source_events_late_total",
            Counter::Ignored => "audit_source_events_ignored_total",
            Counter::Rejected => "audit_source_events_rejected_total",
            Counter::LabelOverflow => "audit_label_overflow_total",
            Counter::LostSeconds => "audit_source_lost_seconds_total",
        }
    }

    /// The names of the labels after `source` and `system`.
    pub fn label_names(self) -> &'static [&'static str] {
        match self {
            Counter::Events | Counter::Actions => &["category", "action", "outcome"],
            Counter::Logins => &["principal", "outcome"],
            Counter::Failures => &["category", "action"],
            Counter::Rejected => &["reason"],
            Counter::LabelOverflow => &["label"],
            Counter::Logouts
            | Counter::Tainted
            | Counter::Duplicate
            | Counter::Late
            | Counter::Ignored
            | Counter::LostSeconds => &[],
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|counter| *counter as u8 == byte)
    }
}

/// One series of one source: its family and the values of the labels after `source` and `system`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeriesKey {
    /// The family.
    pub counter: Counter,
    /// The label values, in the order of [`Counter::label_names`].
    pub values: Vec<Arc<str>>,
}

impl SeriesKey {
    /// A series of `counter`.
    pub fn new(counter: Counter, values: &[&str]) -> Self {
        debug_assert_eq!(values.len(), counter.label_names().len());
        Self { counter, values: values.iter().map(|value| Arc::from(*value)).collect() }
    }

    /// The key in the store: source, family, then each value behind its length, so that no two
    /// series share a key, whatever their values hold.
    pub(super) fn to_bytes(&self, source: u32) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        bytes.extend_from_slice(&source.to_be_bytes());
        bytes.push(self.counter as u8);
        for value in &self.values {
            let length = u16::try_from(value.len()).expect("a label value has at most 64 characters of 4 bytes");
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(value.as_bytes());
        }
        bytes
    }

    /// The series behind a key of the store; `None` where this version does not know its family.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let counter = Counter::from_byte(*bytes.get(4)?)?;
        let mut rest = &bytes[5..];
        let mut values = Vec::new();
        while let Some((length, tail)) = rest.split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*length));
            values.push(Arc::from(std::str::from_utf8(tail.get(..length)?).ok()?));
            rest = &tail[length..];
        }
        (values.len() == counter.label_names().len()).then_some(Self { counter, values })
    }
}

/// The series of [`Counter::Events`] that an event with these labels is in.
pub(super) fn events_series(labels: &EventLabels) -> SeriesKey {
    let values = vec![labels.category.shared(), labels.action.shared(), labels.outcome.as_str().into()];
    SeriesKey { counter: Counter::Events, values }
}

/// The series an event with these labels adds 1 to.
pub fn series_of(labels: &EventLabels) -> Vec<SeriesKey> {
    let key = |counter, values: &[&Arc<str>]| SeriesKey { counter, values: values.iter().copied().cloned().collect() };
    let category = labels.category.shared();
    let action = labels.action.shared();
    let outcome: Arc<str> = labels.outcome.as_str().into();
    let mut series = vec![events_series(labels)];
    match labels.class {
        Class::Login(principal) => series.push(key(Counter::Logins, &[&principal.as_str().into(), &outcome])),
        Class::Logout => series.push(key(Counter::Logouts, &[])),
        Class::Change => series.push(key(Counter::Actions, &[&category, &action, &outcome])),
        Class::Row => {}
    }
    if labels.outcome == Outcome::Failure {
        series.push(key(Counter::Failures, &[&category, &action]));
    }
    series
}

/// All series of a source with this catalogue that exist from its first start.
pub(super) fn series_of_catalogue(catalogue: &Catalogue) -> Vec<SeriesKey> {
    let mut series: Vec<SeriesKey> = catalogue.events.iter().flat_map(series_of).collect();
    for counter in [Counter::Duplicate, Counter::Late, Counter::Ignored, Counter::LostSeconds] {
        series.push(SeriesKey::new(counter, &[]));
    }
    for reason in RejectReason::ALL {
        series.push(SeriesKey::new(Counter::Rejected, &[reason.as_str()]));
    }
    for label in ["category", "action"] {
        series.push(SeriesKey::new(Counter::LabelOverflow, &[label]));
    }
    if catalogue.integrity {
        series.push(SeriesKey::new(Counter::Tainted, &[]));
    }
    // hours that cannot be read any more and re-read rows have no meaning for files
    if !catalogue.feeds().is_empty() {
        series.retain(|key| key.counter != Counter::Late);
    }
    series.sort();
    series.dedup();
    series
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::{Label, Principal};

    fn labels(category: &str, action: &str, outcome: Outcome, class: Class) -> EventLabels {
        EventLabels { category: Label::from_words(category), action: Label::from_words(action), outcome, class }
    }

    fn names(labels: &EventLabels) -> Vec<(&'static str, String)> {
        series_of(labels).iter().map(|key| (key.counter.name(), key.values.join(","))).collect()
    }

    #[test]
    fn an_event_adds_to_its_series_and_to_the_sums_it_belongs_to() {
        let failed_login = labels("authentication", "login", Outcome::Failure, Class::Login(Principal::Device));
        assert_eq!(
            names(&failed_login),
            [
                ("audit_events_total", "authentication,login,failure".into()),
                ("audit_logins_total", "device,failure".into()),
                ("audit_failures_total", "authentication,login".into()),
            ]
        );
        let logout = labels("authentication", "logout", Outcome::Success, Class::Logout);
        assert_eq!(names(&logout)[1], ("audit_logouts_total", String::new()));
        let change = labels("role", "create", Outcome::Success, Class::Change);
        assert_eq!(names(&change)[1], ("audit_actions_total", "role,create,success".into()));
        assert_eq!(names(&labels("bid_events", "bid", Outcome::Unknown, Class::Row)).len(), 1);
    }

    proptest! {
        #[test]
        fn a_series_key_is_read_back_from_the_store_as_it_was(a in ".{0,64}", b in ".{0,64}", id: u32) {
            let key = SeriesKey::new(Counter::Failures, &[&a, &b]);
            let bytes = key.to_bytes(id);
            prop_assert_eq!(SeriesKey::from_bytes(&bytes), Some(key));
        }
    }
}
