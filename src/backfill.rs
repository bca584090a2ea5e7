//! History from before a source was counted, read for Prometheus: what `audit-exporter backfill` writes.
//!
//! Promises:
//! - **Once.** Nothing is read that the exporter counts, or may come to count: the window ends where counting began at the
//!   latest. An event counts in the piece that holds its time, and there once by its key.
//! - **Settled.** The window ends so long ago that Prometheus takes its blocks, and that files do not change any more.
//! - **The same eyes.** The service is read by the source that polls it, through the same budget and session, and labels
//!   become series as in the ledger. Nothing is counted there.
//! - **Whole pieces.** A piece is handed over when it was read to its end. It is tried again as polls are, in smaller pieces
//!   if that may help, and in the end the failure is returned. Events that the source knows it could not get are told with
//!   their piece, also by a later run.
//!
//! Leaves to others: samples and their text (`backfill/samples.rs`), keeping the pieces of an interrupted run
//! (`backfill/unfinished.rs`), where it runs (`control.rs`).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::clock::{delta, rfc3339_seconds};
use crate::event::{EventKey, EventLabels, Item, Label, What};
use crate::failure::{ErrorKind, Failure};
use crate::fault::catch_panic_async;
use crate::ledger::Vocabulary;
use crate::page::{DocumentRecord, Page};
use crate::poll::{is_of_a_piece, pause_after};
use crate::settings::duration_text;
use crate::source::{FILE_SPAN, Reading, Sink, Source, Taken};
use crate::verify::{LeftOut, Say, VerifyInput};
use crate::window::{Window, floor};

pub use samples::{Counted, History, Minutes, Row, STEP, Written};
pub use unfinished::{Asked, Damaged, Unfinished};

mod samples;
mod unfinished;

/// Prometheus keeps its newest samples in memory, and takes no block of that time.
const HEAD_BLOCK: Duration = Duration::from_hours(3);
/// Some services cut times to seconds, so a second more is asked for on either side of a piece.
const MARGIN: TimeDelta = TimeDelta::seconds(1);
/// A piece is tried so often before a failure is returned; tries after which a smaller one is left to try do not count.
const TRIES: u32 = 5;
/// The first piece. Later ones are longer while reading is fast.
const PIECE_FIRST: Duration = Duration::from_hours(1);
/// A piece that took less than this is followed by one twice as long; one that took four times as long by one of half
/// the length. So much is read again after an interruption.
const PIECE_TIME: Duration = Duration::from_secs(15);
/// The clock of a service may be so far off; further, and it is not read at all.
const SKEW_MAX: TimeDelta = TimeDelta::days(1);

/// What is to be read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Of which source.
    pub source: String,
    /// Its system.
    pub system: String,
    /// From when to when, by the service's clock.
    pub window: Window,
    /// Its minutes.
    pub minutes: Minutes,
    /// Which label values count as themselves.
    pub vocabulary: Vocabulary,
    /// A fingerprint of the settings that decide what is read.
    pub settings: String,
}

/// What was read of a part of the window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Piece {
    /// Which part.
    pub window: Window,
    /// What happened there.
    pub rows: Vec<Row>,
    /// What is in none of the rows.
    pub left_out: LeftOut,
    /// Hours of a subscription without a file in the service's list.
    pub unlisted: u64,
    /// What the source reported on the way: among it, events it could not get.
    pub notes: Vec<String>,
}

/// Why a history cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BackfillError {
    /// It is not known where counting begins.
    #[error(
        "nothing was counted yet: start the exporter and let it poll this source first. Where it begins to count is where \
         the history may end; without that, the same events might be counted twice"
    )]
    NothingCounted,
    /// The same, of an old ledger.
    #[error(
        "this ledger was begun by a version that did not write down where counting began, so no moment is known to be before \
         it"
    )]
    BeginningUnknown,
    /// The window was refused.
    #[error("{0}")]
    Refused(String),
    /// The service could not be read.
    #[error("the service could not be read from {} to {}: {failure}", rfc3339_seconds(window.from), rfc3339_seconds(window.to))]
    Unreadable {
        /// The piece.
        window: Window,
        /// What went wrong.
        failure: Failure,
    },
    /// What was read could not be kept.
    #[error("what was read could not be written: {0}")]
    Unkept(#[from] io::Error),
}

impl BackfillError {
    fn refused(why: impl Into<String>) -> Self {
        Self::Refused(why.into())
    }
}

/// A time, to the millisecond where it has any: what is printed may be given back.
fn exactly(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

// === what may be read ===

/// Plans to read from `from` to `to` (without `to`, up to where counting began), as seen at `now`.
pub fn plan(
    subject: &VerifyInput,
    from: DateTime<Utc>,
    to: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Result<Plan, BackfillError> {
    let config = &subject.config;
    let reading = config.service.build(&config.common).0.spec().reading;
    let state = subject.book.state();
    let began = state.counted_from().ok_or(BackfillError::NothingCounted)?;
    // no scrape was before this, by our clock; where counting began is by the service's
    let born = state.born().unwrap_or(began);
    if began > born + SKEW_MAX {
        return Err(BackfillError::BeginningUnknown);
    }
    let window = allowed(from, to, began, now, &reading)?;
    let minutes = Minutes::new(window.from, window.to.min(born)).ok_or_else(|| {
        BackfillError::refused(format!(
            "from {} to {} is less than a minute; give an earlier --from",
            exactly(window.from),
            exactly(window.to.min(born))
        ))
    })?;
    let settings = format!("{:?} {:?}", config.service, config.common.ignore_actors);
    Ok(Plan {
        source: config.name.to_string(),
        system: config.system().to_string(),
        window,
        minutes,
        vocabulary: state.vocabulary(),
        settings: format!("{:?}", EventKey::of("settings", &[settings.as_bytes()])),
    })
}

/// The window that is read, in whole cells, if all of it is before the exporter began to count and is settled.
fn allowed(
    from: DateTime<Utc>,
    to: Option<DateTime<Utc>>,
    began: DateTime<Utc>,
    now: DateTime<Utc>,
    reading: &Reading,
) -> Result<Window, BackfillError> {
    let (cell, settled_after, why_not_later) = match reading {
        Reading::History(history) => (history.cell, HEAD_BLOCK, "Prometheus takes no blocks of its newest hours"),
        Reading::Feed { settled_after, .. } => {
            (FILE_SPAN, *settled_after, "files of newer hours may still appear or change")
        }
    };
    let uncounted = floor(began, cell);
    let settled = floor(now - delta(settled_after), cell);
    let latest = uncounted.min(settled);
    let is_given = to.is_some();
    let to = floor(to.unwrap_or(uncounted), cell);
    if to > latest {
        let why = if uncounted <= settled {
            "from then on the exporter counts this source, and later events would be counted twice".to_owned()
        } else {
            let until = rfc3339_seconds(to + delta(settled_after) + delta(cell.max(Duration::from_secs(1))));
            format!(
                "it must be {} ago, because {why_not_later}. The same command will work from {until} on. An earlier --to \
                 works now, but the exporter counts from {} on, and what happened between the two would be in no counter",
                duration_text(settled_after),
                exactly(uncounted)
            )
        };
        let asked = if is_given {
            format!("--to={}", exactly(to))
        } else {
            format!("the end of the history, {},", exactly(to))
        };
        let message = format!("{asked} is too late; the latest moment allowed is {}: {why}", exactly(latest));
        return Err(BackfillError::Refused(message));
    }
    let window = Window { from: floor(from, cell), to };
    if window.length() < delta(STEP) {
        let (from, to) = (exactly(window.from), exactly(to));
        let end = if is_given { "--to" } else { "the moment from which on the exporter counts" };
        let message = format!("--from ({from}) must be at least a minute before {end} ({to})");
        return Err(BackfillError::Refused(message));
    }
    Ok(window)
}

// === reading ===

/// Takes pieces, oldest first and without a hole.
pub type Hand<'a> = dyn FnMut(Piece) -> io::Result<()> + Send + 'a;

/// Reads the window of a plan from `after` on, what lies before it having been read, and hands over piece by piece.
pub async fn read(
    subject: &VerifyInput,
    plan: &Plan,
    after: DateTime<Utc>,
    say: &Say,
    hand: &mut Hand<'_>,
) -> Result<(), BackfillError> {
    let common = &subject.config.common;
    let build = || subject.config.service.build(common).0;
    let mut source = build();
    let mut pace = Pace::of(source.spec().reading);
    let mut at = after.max(plan.window.from);
    let mut failures = 0;
    // what carries no time may be in several pieces
    let mut timeless = HashSet::new();
    while at < plan.window.to {
        let window = Window { from: at, to: (at + delta(pace.length)).min(plan.window.to) };
        let began = Instant::now();
        match read_piece(subject, plan.minutes, source.as_mut(), window, &timeless).await {
            Ok((piece, seen)) => {
                timeless.extend(seen);
                let events = piece.rows.iter().filter(|row| matches!(row.what, Counted::Event(_)));
                let events: u64 = events.map(|row| row.count).sum();
                let (from, to) = (rfc3339_seconds(window.from), rfc3339_seconds(window.to));
                say(&format!("read {from} to {to}: {events} events"));
                piece.notes.iter().for_each(|note| say(&format!("while reading: {note}")));
                hand(piece)?;
                at = window.to;
                failures = 0;
                pace.went_well(began.elapsed());
            }
            Err(failure) => {
                if failure.kind == ErrorKind::Panic {
                    source = build();
                    subject.api.forget_session().await;
                }
                let is_of_piece = is_of_a_piece(&failure);
                failures = if is_of_piece && pace.failed() { 1 } else { failures + 1 };
                let may_pass = failure.is_transient || is_of_piece;
                if failure.may_lock() || !may_pass || failures >= TRIES {
                    return Err(BackfillError::Unreadable { window, failure });
                }
                let pause = pause_after(&failure, failures, common.poll_interval);
                say(&format!("trying again in {}: {failure}", duration_text(pause)));
                tokio::time::sleep(pause).await;
            }
        }
    }
    Ok(())
}

async fn read_piece(
    subject: &VerifyInput,
    minutes: Minutes,
    source: &mut dyn Source,
    window: Window,
    timeless: &HashSet<EventKey>,
) -> Result<(Piece, Vec<EventKey>), Failure> {
    let spec = source.spec();
    let cell = spec.reading.cell();
    // whole cells and files are asked for as they are
    let is_exact = spec.reading.is_feed() || delta(cell) > MARGIN;
    let margin = if is_exact { TimeDelta::zero() } else { MARGIN };
    let asked = Window { from: window.from - margin, to: window.to + margin };
    let mut reader = Reader::new(minutes, window, asked, cell);
    reader.seen.clone_from(timeless);
    let timeout = subject.config.common.poll_timeout;
    let read = catch_panic_async(source.read(asked, &subject.api, &mut reader));
    let failed = |kind, got| Err(Failure::new(kind, "reading a piece of history", got));
    match tokio::time::timeout(timeout, read).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(panic)) => failed(ErrorKind::Panic, format!("a fault in this program (a panic): {panic}")),
        Err(_) => failed(ErrorKind::Timeout, format!("not done after poll_timeout ({})", duration_text(timeout))),
    }?;
    let feeds: Vec<&Label> = spec.catalogue.feeds().into_iter().collect();
    Ok(reader.finish(&feeds))
}

/// How long pieces are.
struct Pace {
    length: Duration,
    least: Duration,
    most: Duration,
}

impl Pace {
    /// Pieces are cut between minutes, and between the cells or files of a source that has such.
    fn of(reading: Reading) -> Self {
        let least = if reading.is_feed() { FILE_SPAN } else { STEP.max(reading.cell()) };
        Self { length: PIECE_FIRST.min(reading.step_max()).max(least), least, most: reading.step_max().max(least) }
    }

    fn went_well(&mut self, took: Duration) {
        if took < PIECE_TIME {
            self.set(self.length * 2);
        } else if took > PIECE_TIME * 4 {
            self.set(self.length / 2);
        }
    }

    /// Whether pieces are smaller from now on.
    fn failed(&mut self) -> bool {
        let before = self.length;
        self.set(self.length / 4);
        self.length < before
    }

    fn set(&mut self, length: Duration) {
        let whole = length.as_secs() / self.least.as_secs() * self.least.as_secs();
        self.length = Duration::from_secs(whole).clamp(self.least, self.most);
    }
}

/// Counts what the service has in a piece.
struct Reader {
    minutes: Minutes,
    window: Window,
    /// What was asked for.
    asked: Window,
    cell: Duration,
    seen: HashSet<EventKey>,
    /// Those among them that carry no time.
    timeless: Vec<EventKey>,
    rows: BTreeMap<(u32, Counted), u64>,
    files: BTreeSet<(Label, DateTime<Utc>)>,
    left_out: LeftOut,
    notes: BTreeSet<String>,
}

impl Reader {
    fn new(minutes: Minutes, window: Window, asked: Window, cell: Duration) -> Self {
        Self {
            minutes,
            window,
            asked,
            cell,
            seen: HashSet::new(),
            timeless: Vec::new(),
            rows: BTreeMap::new(),
            files: BTreeSet::new(),
            left_out: LeftOut::default(),
            notes: BTreeSet::new(),
        }
    }

    fn take(&mut self, item: Item, taken: &mut Taken) {
        let filed_at = item.filed_at.or(item.at);
        taken.note(filed_at, self.asked);
        if filed_at.is_some_and(|moment| !self.window.contains(moment)) || !self.is_new(&item) {
            return;
        }
        if filed_at.is_none() && !matches!(item.what, What::Tainted { .. }) {
            self.timeless.push(item.key);
        }
        self.left_out.note(&item.what, filed_at.is_some());
        match (item.what, filed_at) {
            (What::Event(labels), Some(filed_at)) => self.add(Counted::Event(labels), item.at, filed_at, 1),
            (What::Tainted { .. }, filed_at) => {
                self.add(Counted::Tainted, item.at, filed_at.unwrap_or(self.window.from), 1);
            }
            _ => {}
        }
    }

    /// Whether it is read for the first time. A tainted record may be any of its candidates.
    fn is_new(&mut self, item: &Item) -> bool {
        let What::Tainted { candidates } = &item.what else { return self.seen.insert(item.key) };
        let taint = |key: &EventKey| EventKey::of("tainted", &[&key.0]);
        !candidates.iter().any(|candidate| self.seen.contains(&taint(candidate))) && self.seen.insert(taint(&item.key))
    }

    /// Counts something in its minute: that of its time or, without one, the last of the cell in which it is filed.
    fn add(&mut self, what: Counted, at: Option<DateTime<Utc>>, filed_at: DateTime<Utc>, count: u64) {
        let end = filed_at + delta(self.cell) - TimeDelta::milliseconds(1);
        let at = at.unwrap_or(end).clamp(self.window.from, self.window.to - TimeDelta::milliseconds(1));
        *self.rows.entry((self.minutes.of(at), what)).or_default() += count;
    }

    fn finish(self, feeds: &[&Label]) -> (Piece, Vec<EventKey>) {
        let hours = u64::try_from(self.window.length().num_hours()).unwrap_or_default();
        let listed = self.files.len() as u64;
        let piece = Piece {
            window: self.window,
            rows: self.rows.into_iter().map(|((minute, what), count)| Row { minute, what, count }).collect(),
            left_out: self.left_out,
            unlisted: (hours * feeds.len() as u64).saturating_sub(listed),
            notes: self.notes.into_iter().collect(),
        };
        (piece, self.timeless)
    }
}

#[async_trait]
impl Sink for Reader {
    async fn page(&mut self, page: Page) -> Result<Taken, Failure> {
        let mut taken = Taken::default();
        for item in page.items {
            self.take(item, &mut taken);
        }
        let window = self.window;
        for document in page.documents.into_iter().filter(|document| window.contains(document.filed_at)) {
            let last = document.filed_at + delta(FILE_SPAN) - TimeDelta::milliseconds(1);
            for (action, count) in document.rows {
                let labels = EventLabels::row(document.category.clone(), action);
                self.add(Counted::Event(labels), Some(last), document.filed_at, count);
            }
            self.left_out.rejected += document.rejected;
            self.files.insert((document.category, document.filed_at));
        }
        Ok(taken)
    }

    fn report(&mut self, failure: Failure) {
        self.notes.insert(failure.to_string());
    }

    /// Every file is new here.
    fn document(&mut self, _: &EventKey) -> Option<DocumentRecord> {
        None
    }
}

#[cfg(test)]
mod tests;
