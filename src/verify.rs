//! Checks that the ledger holds what the service holds. A window is read again and compared with what was counted, by
//! five minutes and label set.
//!
//! Promises:
//! - **The same eyes.** The service is read by the source that polls it, through the same budget and
//!   session; nothing is counted, and no state of the service is changed that the polls rely on.
//! - **No false alarm.** Only what must be counted by now is compared: whole cells that the ledger
//!   tallied, below what was read to its end. What is counted while we look is no difference.
//! - **No silence.** The report says what was compared, what was left out, and why.
//!
//! Leaves to others: reading (`source/*.rs`), counting (`ledger.rs`), where it runs
//! (`control.rs`).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::ops::AddAssign;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::api::Api;
use crate::clock::{delta, rfc3339_seconds};
use crate::config::SourceConfig;
use crate::event::{EventKey, EventLabels, Item, What};
use crate::failure::Failure;
use crate::ledger::{Book, CommitError, Counter, Ledger, SeriesKey, TALLY_CELL, Tallies};
use crate::page::{DocumentRecord, Page};
use crate::settings::duration_text;
use crate::source::{FILE_SPAN, Reading, Sink, Spec, Taken};
use crate::stats::SourceStats;
use crate::window::{Checkpoint, Window, floor};

/// The longest piece that is read at once: its keys are held in memory.
const STEP_MAX: Duration = Duration::from_hours(1);
/// How often we look whether a poll has ended.
const LOOK: Duration = Duration::from_millis(100);
/// Rows of differences that are printed.
const ROWS_MAX: usize = 200;

/// Takes progress reports, one line each.
pub type Say = dyn Fn(&str) + Sync;

/// The source that is looked at.
pub struct VerifyInput {
    /// Its settings.
    pub config: SourceConfig,
    /// Talks to it.
    pub api: Arc<Api>,
    /// Holds what was counted.
    pub ledger: Ledger,
    /// Its part of that.
    pub book: Arc<Book>,
    /// What its poller learns; `None` if nobody polls it meanwhile.
    pub polls: Option<Arc<SourceStats>>,
}

/// Why a window could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// There is nothing to compare with.
    #[error("nothing was counted yet: the first window of this source has still to be read")]
    NothingCounted,
    /// No whole cell of the window can be compared.
    #[error("nothing of that window can be compared: not {before}, and not {after}. Ask for whole cells of {} in between", duration_text(*cell))]
    NothingComparable {
        /// What cannot be compared because it is too early, and why.
        before: String,
        /// What cannot be compared because it is too late, and why.
        after: String,
        /// The length of a cell.
        cell: Duration,
    },
    /// The service could not be read.
    #[error("the service could not be read from {} to {}: {failure}", rfc3339_seconds(window.from), rfc3339_seconds(window.to))]
    Unreadable {
        /// The piece of the window.
        window: Window,
        /// What went wrong.
        failure: Failure,
    },
    /// The ledger could not be read.
    #[error("reading the ledger: {0}")]
    Ledger(#[from] CommitError),
}

/// The outcome of a comparison.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Which source.
    pub source: String,
    /// Its system.
    pub system: String,
    /// What was compared.
    pub compared: Window,
    /// In pieces of this length, in seconds.
    pub cell_seconds: u64,
    /// Events that the ledger counted in that window.
    pub counted: u64,
    /// Events that the service has there.
    pub found: u64,
    /// Events of the service that are not compared, because they are not counted as events.
    pub left_out: LeftOut,
    /// None, if all is well.
    pub differences: Vec<Difference>,
    /// What was not compared, and what went wrong on the way.
    pub notes: Vec<String>,
    /// What differences like these come from.
    pub reasons: Vec<String>,
}

/// What a service returned beside events that can be compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Events of `ignore_actors`.
    pub ignored: u64,
    /// Events that could not be understood.
    pub rejected: u64,
    /// Events that carry no time, so that it is not known when they were counted.
    pub timeless: u64,
}

impl LeftOut {
    /// Counts something if it is one of these.
    pub(crate) fn note(&mut self, what: &What, has_time: bool) {
        match what {
            What::Ignored => self.ignored += 1,
            What::Rejected(_) => self.rejected += 1,
            What::Event(_) if !has_time => self.timeless += 1,
            What::Event(_) | What::Tainted { .. } => {}
        }
    }
}

impl AddAssign for LeftOut {
    fn add_assign(&mut self, other: Self) {
        self.ignored += other.ignored;
        self.rejected += other.rejected;
        self.timeless += other.timeless;
    }
}

/// A label set of which the service has another number of events than the ledger counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Where.
    pub window: Window,
    /// The label `category`.
    pub category: String,
    /// The label `action`.
    pub action: String,
    /// The label `outcome`.
    pub outcome: String,
    /// Events that the ledger counted.
    pub counted: u64,
    /// Events that the service has.
    pub found: u64,
}

/// Reads the history from `from` to `to` again (without `to`, as far as it is counted),
/// and compares it with the ledger.
pub async fn verify(
    subject: &VerifyInput,
    from: DateTime<Utc>,
    to: Option<DateTime<Utc>>,
    say: &Say,
) -> Result<Report, VerifyError> {
    let config = &subject.config;
    let (mut source, _) = config.service.build(&config.common);
    let spec = source.spec();
    let (cell, step_max) = match spec.reading {
        Reading::History(history) => (TALLY_CELL, STEP_MAX.min(history.step_max)),
        Reading::Feed { .. } => (FILE_SPAN, Duration::MAX),
    };
    let (tallied_from, checkpoint) = {
        let state = subject.book.state();
        (state.tallied_from(), state.checkpoint().cloned())
    };
    let Some((tallied_from, checkpoint)) = tallied_from.zip(checkpoint) else {
        return Err(VerifyError::NothingCounted);
    };
    let settled = Settled::of(&checkpoint, &spec, config.common.overlap, subject.polls.is_some());
    let (window, mut notes) = settled.comparable(from, to, tallied_from, cell)?;

    let mut recount = Recount::new(Arc::clone(&subject.book), spec.reading.is_feed());
    let before = subject.ledger.tallies(&subject.book, window).await?;
    for step in steps(window, step_max) {
        say(&format!("reading {} to {}", rfc3339_seconds(step.from), rfc3339_seconds(step.to)));
        recount.begin(step);
        let read = source.read(step, &subject.api, &mut recount).await;
        read.map_err(|failure| VerifyError::Unreadable { window: step, failure })?;
    }
    let looked = Instant::now();
    let mut after = subject.ledger.tallies(&subject.book, window).await?;
    let compare_now = |after: &Tallies| {
        let state = subject.book.state();
        let skipped = state.as_counted(&recount.skipped);
        let is_skipped = |at: DateTime<Utc>, key: &SeriesKey| {
            skipped.keys().any(|(hour, of)| *hour == at && of.values[0] == key.values[0])
        };
        let inside = |tallies: &Tallies| -> Tallies {
            let kept = tallies.iter().filter(|((at, key), _)| !is_skipped(*at, key));
            kept.map(|(place, count)| (place.clone(), *count)).collect()
        };
        let (before, found, after) = (inside(&before), state.as_counted(&recount.events), inside(after));
        (compare(&before, &found, &after, cell), after.values().sum::<u64>(), found.values().sum::<u64>())
    };
    let mut outcome = compare_now(&after);
    if let Some(stats) = &subject.polls
        && outcome.0.iter().any(|difference| difference.found > difference.counted)
    {
        say("the service has events that are not counted yet: waiting for the next poll");
        if !polled_since(stats, looked, 2 * config.common.poll_interval + Duration::from_mins(1)).await {
            notes.push("no poll has succeeded since: the differences may still be counted".into());
        }
        after = subject.ledger.tallies(&subject.book, window).await?;
        outcome = compare_now(&after);
    }
    let (differences, counted, found_now) = outcome;
    notes.append(&mut recount.notes());
    let reasons = reasons(subject, &differences, &recount);
    Ok(Report {
        source: config.name.to_string(),
        system: config.system().to_string(),
        compared: window,
        cell_seconds: cell.as_secs(),
        counted,
        found: found_now,
        left_out: recount.left_out,
        differences,
        notes,
        reasons,
    })
}

/// Waits until a poll that began after `since` has succeeded; whether one has.
async fn polled_since(stats: &SourceStats, since: Instant, patience: Duration) -> bool {
    let end = Instant::now() + patience;
    while Instant::now() < end {
        if stats.observed().last_success_began.is_some_and(|began| began >= since) {
            return true;
        }
        tokio::time::sleep(LOOK).await;
    }
    false
}

// === what can be compared ===

/// The end of the history that is counted to its last event, and why it is not later.
struct Settled {
    to: DateTime<Utc>,
    why: String,
}

impl Settled {
    fn of(checkpoint: &Checkpoint, spec: &Spec, overlap: Duration, polled: bool) -> Self {
        match checkpoint.gaps.first() {
            Some(gap) => Self {
                to: gap.from.min(checkpoint.head),
                why: "the exporter is still reading the history from there on".into(),
            },
            None if polled || spec.reading.is_feed() => {
                Self { to: checkpoint.head, why: "the last poll ended there, and only whole cells are compared".into() }
            }
            None => Self {
                to: checkpoint.head - delta(overlap),
                why: format!(
                    "no exporter is running, and the next one begins by reading the last {} before its stop again",
                    duration_text(overlap)
                ),
            },
        }
    }

    /// The part of the window that can be compared, in whole cells, and notes on what is left out.
    fn comparable(
        &self,
        from: DateTime<Utc>,
        to: Option<DateTime<Utc>>,
        tallied_from: DateTime<Utc>,
        cell: Duration,
    ) -> Result<(Window, Vec<String>), VerifyError> {
        let up = |at: DateTime<Utc>| floor(at + delta(cell) - chrono::TimeDelta::milliseconds(1), cell);
        let (first, last) = (up(tallied_from), floor(self.to, cell));
        let asked = Window { from: floor(from, cell), to: to.map_or(last, up) };
        let window = Window { from: asked.from.max(first), to: asked.to.min(last) };
        let before = || {
            format!("before {}: the ledger cannot tell what it counted there (docs/verify.md)", rfc3339_seconds(first))
        };
        let after = || format!("from {} on: {}", rfc3339_seconds(last), self.why);
        let mut notes = Vec::new();
        if window.from > asked.from {
            notes.push(format!("not compared: {}", before()));
        }
        if window.to < asked.to {
            notes.push(format!("not compared: {}", after()));
        }
        if window.is_empty() {
            return Err(VerifyError::NothingComparable { before: before(), after: after(), cell });
        }
        Ok((window, notes))
    }
}

/// A window in pieces of at most `step`, the first first.
fn steps(window: Window, step: Duration) -> impl Iterator<Item = Window> {
    let after =
        move |from: DateTime<Utc>| from.checked_add_signed(delta(step)).map_or(window.to, |to| to.min(window.to));
    std::iter::successors(Some(Window { from: window.from, to: after(window.from) }), move |last| {
        Some(Window { from: last.to, to: after(last.to) })
    })
    .take_while(|step| !step.is_empty())
}

// === what is read ===

/// Counts what the service holds: each key once, as the ledger does.
struct Recount {
    book: Arc<Book>,
    is_feed: bool,
    step: Window,
    /// Of this step. An event is of the step that holds its time, whichever returned it.
    seen: HashSet<(DateTime<Utc>, EventKey)>,
    seen_timeless: HashSet<EventKey>,
    events: BTreeMap<(EventLabels, DateTime<Utc>), u64>,
    left_out: LeftOut,
    /// Files that the next poll reads, by any row of theirs.
    skipped: BTreeMap<(EventLabels, DateTime<Utc>), u64>,
    /// Files that are known, until they are read.
    awaited: BTreeMap<EventKey, DocumentRecord>,
    uncounted_files: u64,
    troubles: BTreeSet<String>,
}

impl Recount {
    fn new(book: Arc<Book>, is_feed: bool) -> Self {
        Self {
            book,
            is_feed,
            step: Window { from: DateTime::UNIX_EPOCH, to: DateTime::UNIX_EPOCH },
            seen: HashSet::new(),
            seen_timeless: HashSet::new(),
            events: BTreeMap::new(),
            left_out: LeftOut::default(),
            skipped: BTreeMap::new(),
            awaited: BTreeMap::new(),
            uncounted_files: 0,
            troubles: BTreeSet::new(),
        }
    }

    fn begin(&mut self, step: Window) {
        self.step = step;
        self.seen = HashSet::new();
    }

    fn take(&mut self, item: Item, taken: &mut Taken) {
        let filed_at = item.filed_at.or(item.at);
        taken.note(filed_at, self.step);
        let Some(moment) = filed_at else {
            if self.seen_timeless.insert(item.key) {
                self.left_out.note(&item.what, false);
            }
            return;
        };
        let second = floor(moment, Duration::from_secs(1));
        let is_event = !matches!(item.what, What::Tainted { .. });
        if !self.step.contains(moment) || !is_event || !self.seen.insert((second, item.key)) {
            return;
        }
        self.left_out.note(&item.what, true);
        if let What::Event(labels) = item.what {
            *self.events.entry((labels, floor(moment, TALLY_CELL))).or_default() += 1;
        }
    }

    fn notes(&mut self) -> Vec<String> {
        let mut notes: Vec<String> =
            std::mem::take(&mut self.troubles).into_iter().map(|trouble| format!("while reading: {trouble}")).collect();
        let waiting = self.uncounted_files + self.awaited.len() as u64;
        if waiting > 0 {
            notes.push(format!(
                "not compared: {waiting} hours whose files are new or have changed; the next poll reads them"
            ));
        }
        notes
    }
}

#[async_trait]
impl Sink for Recount {
    async fn page(&mut self, page: Page) -> Result<Taken, Failure> {
        let mut taken = Taken::default();
        for item in page.items {
            self.take(item, &mut taken);
        }
        for document in page.documents {
            if let Some(record) = self.awaited.remove(&document.key) {
                self.skipped.remove(&any_row(&record));
            }
            for (action, count) in document.rows {
                let labels = EventLabels::row(document.category.clone(), action);
                *self.events.entry((labels, document.filed_at)).or_default() += count;
            }
            self.left_out.rejected += document.rejected;
        }
        Ok(taken)
    }

    fn report(&mut self, failure: Failure) {
        self.troubles.insert(failure.to_string());
    }

    fn document(&mut self, key: &EventKey) -> Option<DocumentRecord> {
        let record = self.book.state().documents().get(key).cloned();
        match &record {
            Some(record) => {
                self.awaited.insert(*key, record.clone());
                self.skipped.insert(any_row(record), 1);
            }
            None => self.uncounted_files += 1,
        }
        record
    }

    fn checks(&self) -> bool {
        self.is_feed
    }
}

/// Labels that stand for all rows of a file.
fn any_row(record: &DocumentRecord) -> (EventLabels, DateTime<Utc>) {
    use crate::event::Label;
    (EventLabels::row(Label::from_words(&record.category), Label::other()), record.filed_at)
}

// === what differs ===

/// The differences between what was counted `before` and `after` the service was read and what was
/// `found`. A number between the two counts is no difference: it was counted meanwhile.
pub fn compare(before: &Tallies, found: &Tallies, after: &Tallies, cell: Duration) -> Vec<Difference> {
    let of = |tallies: &Tallies, place| tallies.get(place).copied().unwrap_or_default();
    let places: BTreeSet<_> = before.keys().chain(found.keys()).chain(after.keys()).collect();
    // neighbouring cells of one label set that differ in the same direction are one line
    let mut by_labels: BTreeMap<&SeriesKey, Vec<Difference>> = BTreeMap::new();
    for place @ (at, key) in places {
        let (low, found, high) = (of(before, place), of(found, place), of(after, place));
        let counted = found.clamp(low.min(high), low.max(high));
        if found == counted {
            continue;
        }
        let lines = by_labels.entry(key).or_default();
        match lines.last_mut() {
            Some(last) if last.window.to == *at && (last.found > last.counted) == (found > counted) => {
                last.window.to = *at + delta(cell);
                last.counted += counted;
                last.found += found;
            }
            _ => lines.push(Difference {
                window: Window { from: *at, to: *at + delta(cell) },
                category: key.values[0].to_string(),
                action: key.values[1].to_string(),
                outcome: key.values[2].to_string(),
                counted,
                found,
            }),
        }
    }
    let mut differences: Vec<Difference> = by_labels.into_values().flatten().collect();
    differences.sort_by_key(|difference| difference.window.from);
    differences
}

/// The usual reasons for differences of these directions, and what to do. Reasons that do not apply are left out.
fn reasons(subject: &VerifyInput, differences: &[Difference], recount: &Recount) -> Vec<String> {
    let (common, state) = (&subject.config.common, subject.book.state());
    let missing = differences.iter().any(|difference| difference.found > difference.counted);
    let surplus = differences.iter().any(|difference| difference.found < difference.counted);
    let mut reasons = Vec::new();
    let mut add_if = |applies: bool, reason: String| {
        if applies {
            reasons.push(reason);
        }
    };
    let lost = state.total(Counter::LostSeconds);
    add_if(
        missing && !recount.is_feed,
        format!(
            "events that appeared in the log more than `overlap` ({}) after they happened are missed: raise overlap if \
             audit_event_lateness_seconds comes close to it, and ask the service's operator who can add events to the \
             past of its log",
            duration_text(common.overlap)
        ),
    );
    add_if(missing && lost > 0, format!("{lost} seconds of history were not read (audit_source_lost_seconds_total)"));
    add_if(
        missing && state.total(Counter::Ignored) > 0,
        "events are not counted if their actor was in ignore_actors when they were read".into(),
    );
    add_if(
        missing && state.total(Counter::Rejected) > 0,
        "events are not counted if they could not be parsed when they were read".into(),
    );
    add_if(
        surplus && !recount.is_feed,
        "the service no longer has events that it returned before: its retention ended, or they were deleted".into(),
    );
    add_if(
        surplus && recount.is_feed,
        "the service no longer lists the files, or replaced them with files that have fewer rows; counted rows stay \
         counted"
            .into(),
    );
    add_if(
        surplus && recount.left_out.ignored > 0,
        "events stay counted if their actor was added to ignore_actors later".into(),
    );
    add_if(
        missing && surplus && !recount.is_feed,
        "the service changed the time of events after they were counted".into(),
    );
    let other = differences.iter().any(|difference| difference.category == "other" || difference.action == "other");
    add_if(
        missing && surplus && other,
        "a label value counts as `other` if 50 others were known before it; another version of this program may know it"
            .into(),
    );
    add_if(
        missing && surplus && !other,
        "the service, or another version of this program, now describes the same events differently".into(),
    );
    reasons
}

/// A number and what it counts: `1 event`, `2 events`.
fn some(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Window { from, to } = self.compared;
        let cell = duration_text(Duration::from_secs(self.cell_seconds));
        writeln!(
            f,
            "{} ({}): compared {} to {}, by {cell}",
            self.source,
            self.system,
            rfc3339_seconds(from),
            rfc3339_seconds(to)
        )?;
        writeln!(f, "events counted: {}; events in the service's log: {}", self.counted, self.found)?;
        let LeftOut { ignored, rejected, timeless } = self.left_out;
        if (ignored, rejected, timeless) != (0, 0, 0) {
            writeln!(
                f,
                "also returned, but not compared: {ignored} of ignored actors, {rejected} that could not be parsed, \
                 {timeless} without a time"
            )?;
        }
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        if self.differences.is_empty() {
            return writeln!(f, "no difference");
        }
        let mut rows = vec![["from", "to", "category", "action", "outcome", "counted", "service"].map(String::from)];
        rows.extend(self.differences.iter().take(ROWS_MAX).map(|line| {
            [
                rfc3339_seconds(line.window.from),
                rfc3339_seconds(line.window.to),
                line.category.clone(),
                line.action.clone(),
                line.outcome.clone(),
                line.counted.to_string(),
                line.found.to_string(),
            ]
        }));
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
        let widths: [usize; 7] = std::array::from_fn(width);
        for row in &rows {
            let cells = row.iter().zip(widths).map(|(text, width)| format!("{text:width$}"));
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        if self.differences.len() > ROWS_MAX {
            writeln!(f, "… and {} more lines (--format=json has all)", self.differences.len() - ROWS_MAX)?;
        }
        let sum = |more: fn(&Difference) -> u64| self.differences.iter().map(more).sum::<u64>();
        let missing = sum(|line| line.found.saturating_sub(line.counted));
        let surplus = sum(|line| line.counted.saturating_sub(line.found));
        writeln!(
            f,
            "{}: {} of the service not counted, {} counted and not in the service",
            some(self.differences.len() as u64, "difference"),
            some(missing, "event"),
            some(surplus, "event"),
        )?;
        for reason in &self.reasons {
            writeln!(f, "possible: {reason}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
