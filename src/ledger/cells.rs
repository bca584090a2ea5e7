//! The time units of the ledger: seconds, cells of five minutes, hours.
//!
//! Promises: what lies before 1970 or beyond an `u32` is at its end, so that no time makes arithmetic panic.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::window::{KEYS_BUCKET, floor};

/// The pieces of event time in which counted events are tallied.
pub const TALLY_CELL: Duration = Duration::from_mins(5);

/// The same in seconds.
#[expect(clippy::cast_possible_truncation, reason = "it is 300")]
pub(super) const TALLY_CELL_SECONDS: u32 = TALLY_CELL.as_secs() as u32;

pub(super) fn hour_of(at: DateTime<Utc>) -> u32 {
    let hours = floor(at, KEYS_BUCKET).timestamp() / 3600;
    u32::try_from(hours.max(0)).unwrap_or(u32::MAX)
}

pub(super) fn second_of(at: DateTime<Utc>) -> u32 {
    u32::try_from(at.timestamp().max(0)).unwrap_or(u32::MAX)
}

/// The second in which the cell of a second begins.
pub(super) fn cell_of(second: u32) -> u32 {
    second - second % TALLY_CELL_SECONDS
}
