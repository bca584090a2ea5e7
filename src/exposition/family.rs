//! What a page consists of: families, their samples and values.

use std::sync::Arc;

use chrono::{DateTime, Utc};

/// All samples of one metric name.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// The name as it is queried; of a counter with its suffix `_total`.
    pub name: &'static str,
    /// One sentence on what is measured.
    pub help: &'static str,
    /// What kind of values its samples have.
    pub kind: Kind,
    /// At most one sample for each label set, all with the same label names.
    pub samples: Vec<Sample>,
}

/// What kind of values a family has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; a [`Value::Number`] or [`Value::Count`].
    Counter,
    /// Goes up and down; a [`Value::Number`] or [`Value::Count`].
    Gauge,
    /// A [`Value::Histogram`].
    Histogram,
}

/// One series of a family, or of a histogram the series that belong together.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Names and values. A histogram's `le` is not among them.
    pub labels: Vec<(&'static str, Arc<str>)>,
    /// The present value.
    pub value: Value,
    /// Since when it has been counted up from 0. A gauge has no such moment: there it is ignored.
    pub created: Option<DateTime<Utc>>,
}

/// The value of a [`Sample`].
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any number, infinities and NaN included.
    Number(f64),
    /// A whole number, exact in the text formats beyond 2^53 too. Protobuf has a double for it.
    Count(u64),
    /// How many observations fell where.
    Histogram {
        /// Upper bounds (inclusive, ascending, without +Inf), each with the number of all
        /// observations up to it.
        buckets: Vec<(f64, u64)>,
        /// The sum of all observations.
        sum: f64,
        /// The number of all observations: the bucket of +Inf.
        count: u64,
    },
}

impl Family {
    /// The samples that can be written; of a family without a name there are none.
    pub(super) fn writable(&self) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(|sample| !self.name.is_empty() && self.kind.fits(&sample.value))
    }
}

impl Kind {
    fn fits(self, value: &Value) -> bool {
        (self == Kind::Histogram) == matches!(value, Value::Histogram { .. })
    }
}
