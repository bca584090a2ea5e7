//! One task per source: plan a window, read it, commit it, pause.
//!
//! Promises:
//! - **Cadence.** Never two polls of one source at a time: a slow source is late, not doubled.
//!   Nothing here waits for another source.
//! - **Order.** The newest window is read first in every poll; what is left of the time until the
//!   next one goes to the gaps, oldest first, and to one piece of them even if nothing is left.
//! - **Pieces.** A piece of a gap that cannot be read at all does not keep the later ones from being read. It stays a gap,
//!   so that the watermark does not pass it; it is tried again in smaller pieces, less and less often, and until then
//!   the source is down and says which piece it is.
//! - **Held back.** What is read after an outage, until its last gap is closed, is told to the ledger as backlog: also by
//!   the newest window, also where the overlap is longer than the outage. The look-back of a new source is none.
//! - **Nothing outside.** An event that lies outside the window that was asked for is not
//!   counted, whatever the service says: it may have been counted and forgotten.
//! - **Containment.** A panic ends one poll: it is counted, and the reader is built anew.
//! - **Patience.** After a failure the next poll is later each time; after a login that gave no
//!   session much later, because accounts lock, but at once when the credential's file changes.
//!
//! Leaves to others: what to read (`window.rs`), how (`source/*.rs`, `api.rs`), counting
//! (`ledger.rs`).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::api::Api;
use crate::backoff::Backoff;
use crate::clock::{Clock, delta, rfc3339_seconds};
use crate::event::{EventKey, SourceName};
use crate::failure::ErrorKind;
use crate::failure::Failure;
use crate::fault::catch_panic_async;
use crate::ledger::{Book, Commit, CommitError, Counter, Ledger};
use crate::page::{DocumentRecord, Page};
use crate::settings::duration_text;
use crate::source::{Sink, Source, Spec, Taken};
use crate::stats::{PollResult, Refused, SourceStats};
use crate::window::{
    Cadence, Checkpoint, PassedOver, Window, beginning_of, feed_was_read, give_up, next_gap_step, plan, plan_feed,
};

/// First piece of a gap that is read at once; doubled as long as that goes well.
const GAP_STEP_FIRST: Duration = Duration::from_hours(1);
/// The smallest piece a gap is read in after failures.
const GAP_STEP_MIN: Duration = Duration::from_mins(1);
/// The smallest piece of one that cannot be read.
const PIECE_MIN: Duration = Duration::from_secs(1);
/// After so many pieces that could not be read a poll ends: it may be no matter of pieces.
const PIECES_FAILED_MAX: u32 = 3;
/// The longest until a piece that cannot be read is tried again, unless the interval is longer.
const PIECE_PAUSE_MAX: Duration = Duration::from_hours(1);
/// An event this far outside the window is still taken: some services cut times to seconds.
const WINDOW_TOLERANCE: TimeDelta = TimeDelta::seconds(1);
/// The longest pause after failures that pass by themselves, unless the interval is longer.
const PAUSE_MAX: Duration = Duration::from_mins(5);
/// The pause after a refused login: four tries in the first hour, because accounts lock after five or more.
const LOGIN_PAUSE: Backoff = Backoff { first: Duration::from_mins(1), factor: 4, max: Duration::from_hours(1) };
/// What was not read for so long, or for the overlap if that is shorter, was held back: rules that judge counters wait then,
/// and 15 minutes are what they look back on.
const HELD_BACK_MIN: Duration = Duration::from_mins(15);
/// Where the service's clock turns out to be further behind than believed, its windows are planned anew.
const SKEW_SURPRISE: TimeDelta = TimeDelta::minutes(1);
/// How often a credential's file is looked at during a pause.
const CREDENTIAL_LOOK: Duration = Duration::from_secs(2);

/// Everything one source needs to be polled.
pub struct Poller {
    /// Its name.
    pub name: SourceName,
    /// Reads the service.
    pub source: Box<dyn Source>,
    /// Makes another reader like it, for when this one has panicked.
    pub rebuild: Box<dyn Fn() -> Box<dyn Source> + Send + Sync>,
    /// Talks to it.
    pub api: Arc<Api>,
    /// Counts.
    pub ledger: Ledger,
    /// What is counted.
    pub book: Arc<Book>,
    /// What is learned on the way.
    pub stats: Arc<SourceStats>,
    /// Tells the time.
    pub clock: Clock,
    /// How windows are planned.
    pub cadence: Cadence,
    /// When this process was first to poll it: where nothing has been read yet, the look-back is counted from here.
    pub since: Instant,
    /// Time from the start of one poll to the start of the next.
    pub interval: Duration,
    /// The longest a poll may take.
    pub timeout: Duration,
    /// A fingerprint of the current credential, to notice when it is replaced.
    pub credential: Box<dyn Fn() -> Option<[u8; 32]> + Send + Sync>,
    /// Seed of the jitter.
    pub seed: u64,
}

/// How the reading of history goes on from poll to poll.
pub struct History {
    /// The length of the next piece.
    step: Duration,
    passed_over: PassedOver<Unread>,
    /// The piece that is being read.
    reading: Option<Window>,
    /// The last poll read what it could: it failed only because of pieces that are passed over.
    only_passed_over: bool,
}

/// A pause as it is logged: in whole seconds.
fn seconds_text(pause: Duration) -> String {
    duration_text(Duration::from_secs((pause + Duration::from_millis(500)).as_secs()))
}

/// Why a piece could not be read.
#[derive(Clone, Debug)]
struct Unread {
    kind: ErrorKind,
    what_happened: String,
    remedy: Option<&'static str>,
    again_at: Instant,
}

impl History {
    /// One whose first piece is so long.
    pub fn new(step: Duration) -> Self {
        Self { step, passed_over: PassedOver::default(), reading: None, only_passed_over: false }
    }

    /// A part of a piece that is due again; shorter each time it fails.
    fn due(&self, now: Instant, cell: Duration) -> Option<Window> {
        let piece = self.passed_over.pieces().iter().find(|piece| piece.why.again_at <= now)?;
        let quarter = piece.window.length().to_std().unwrap_or_default() / 4;
        Some(beginning_of(piece.window, quarter.max(PIECE_MIN), cell))
    }

    fn failed(&mut self, piece: Window, failure: &Failure, interval: Duration) {
        let why = Unread {
            kind: failure.kind,
            what_happened: failure.what_happened(),
            remedy: failure.remedy(),
            again_at: Instant::now(),
        };
        let failed = self.passed_over.failed(piece, why);
        let backoff = Backoff { first: interval, factor: 2, max: PIECE_PAUSE_MAX.max(interval) };
        failed.why.again_at += backoff.after(failed.tries);
    }

    /// The failure of a poll that had to leave pieces out: the oldest is named.
    fn failure(&self) -> Option<Failure> {
        let pieces = self.passed_over.pieces();
        let piece = pieces.first()?;
        let tried = format!(
            "reading the history from {} to {}",
            rfc3339_seconds(piece.window.from),
            rfc3339_seconds(piece.window.to)
        );
        let others = match pieces.len() - 1 {
            0 => String::new(),
            n => format!(" (and {n} other pieces)"),
        };
        let got = format!(
            "{}; the exporter retries this piece, and has read what came after it{others}",
            piece.why.what_happened
        );
        let failure = Failure::new(piece.why.kind, tried, got);
        Some(match piece.why.remedy {
            Some(remedy) => failure.advising(remedy),
            None => failure,
        })
    }
}

/// Whether a failure may be one of the piece of history that was asked for, and not of the service or the credential:
/// the newest window has just been read, and the service does not ask us to wait.
pub(crate) fn is_of_a_piece(failure: &Failure) -> bool {
    use ErrorKind::{Decode, Panic, Server, Timeout, TooLarge, Truncated};
    !failure.at_login
        && failure.retry_after.is_none()
        && matches!(failure.kind, Decode | TooLarge | Truncated | Server | Timeout | Panic)
}

impl Poller {
    /// Polls until `stop`. A commit that is under way then is finished by the ledger.
    pub async fn run(mut self, stop: CancellationToken) {
        let spec = self.source.spec();
        let mut random = StdRng::seed_from_u64(self.seed);
        // a poller before this one, of the same service, was
        let refused = self.stats.observed().refused;
        let mut failures = refused.map_or(0, |refused| refused.failures);
        let mut wait =
            refused.map(|refused| (refused.until.saturating_duration_since(Instant::now()), refused.credential));
        let mut history = History::new(GAP_STEP_FIRST.min(spec.reading.step_max()));
        let mut told_all_is_well = false;
        loop {
            if let Some((pause, credential)) = wait {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    () = self.wait_or_new_credential(pause, credential, failures > 0) => {}
                }
            }
            let started = Instant::now();
            let next = started + self.interval.mul_f64(random.random_range(0.97..1.0));
            let credential = (self.credential)();
            let events_before = self.book.state().total(Counter::Events);
            let outcome = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                outcome = self.guarded_poll(&spec, next, &mut history) => outcome,
            };
            let pause = match outcome {
                Ok(()) => {
                    if failures > 0 {
                        info!(source = %self.name, after = failures, "polling again");
                    }
                    failures = 0;
                    self.stats.observed().refused = None;
                    let pause = next.saturating_duration_since(Instant::now());
                    if !std::mem::replace(&mut told_all_is_well, true) {
                        self.tell_all_is_well(events_before, pause);
                    }
                    pause
                }
                // the newest events are read as often as ever
                Err(failure) if history.only_passed_over => {
                    failures = 0;
                    self.stats.observed().refused = None;
                    let pause = next.saturating_duration_since(Instant::now());
                    warn!(source = %self.name, kind = failure.kind.as_str(), error = %failure, next_try = %seconds_text(pause), "a piece of history cannot be read");
                    pause
                }
                Err(failure) => {
                    failures += 1;
                    let pause = pause_after(&failure, failures, self.interval).mul_f64(random.random_range(1.0..1.2));
                    self.stats.observed().refused = failure.is_refused_login().then(|| Refused {
                        failures,
                        until: Instant::now() + pause,
                        credential,
                    });
                    warn!(source = %self.name, kind = failure.kind.as_str(), error = %failure, next_try = %seconds_text(pause), "poll failed");
                    pause
                }
            };
            self.stats.observed().next_poll = Some(self.clock.now() + pause);
            wait = Some((pause, credential));
        }
    }

    /// Once per source: what the first good poll read, and that it goes on.
    fn tell_all_is_well(&self, events_before: u64, pause: Duration) {
        let state = self.book.state();
        let Some(checkpoint) = state.checkpoint() else { return };
        info!(
            source = %self.name,
            events = state.total(Counter::Events) - events_before,
            from = %rfc3339_seconds(checkpoint.origin),
            to = %rfc3339_seconds(checkpoint.head),
            catching_up = checkpoint.catching_up(),
            next_poll = %rfc3339_seconds(self.clock.now() + delta(pause)),
            "first good poll"
        );
    }

    /// Waits; after a failure no longer than until the credential changes.
    async fn wait_or_new_credential(&self, pause: Duration, credential: Option<[u8; 32]>, watch: bool) {
        let end = Instant::now() + pause;
        while watch && end.saturating_duration_since(Instant::now()) > CREDENTIAL_LOOK {
            tokio::time::sleep(CREDENTIAL_LOOK).await;
            if (self.credential)() != credential {
                info!(source = %self.name, "the credential changed; polling at once");
                return;
            }
        }
        tokio::time::sleep_until(end).await;
    }

    /// A poll with its deadline, its statistics, and a fence around a panic.
    async fn guarded_poll(&mut self, spec: &Spec, until: Instant, history: &mut History) -> Result<(), Failure> {
        let started = Instant::now();
        let timeout = self.timeout;
        history.reading = None;
        let poll = catch_panic_async(self.poll(spec, until, history));
        let outcome = match tokio::time::timeout(timeout, poll).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(panic)) => {
                // neither the reader nor its session can be trusted any more
                self.source = (self.rebuild)();
                self.api.forget_session().await;
                let got = format!("a fault in this program (a panic): {panic}");
                Err(Failure::new(ErrorKind::Panic, "polling", got))
            }
            Err(_) => {
                // what did not fit into a poll will fit in pieces
                history.step = (history.step / 4).max(self.gap_step_min());
                Err(Failure::new(ErrorKind::Timeout, "polling", format!("not done after {timeout:?}")))
            }
        };
        self.api.note_end_of_poll();
        if let (Err(failure), Some(piece)) = (&outcome, history.reading.take())
            && (failure.kind == ErrorKind::Panic || piece.length() <= delta(self.gap_step_min()))
            && is_of_a_piece(failure)
        {
            history.failed(piece, failure, self.interval);
        }
        let now = self.clock.now();
        let outcome = outcome.map_err(|mut failure| {
            self.stats.count_once(&mut failure);
            self.stats.failed(now, failure.to_string());
            failure
        });
        let result = match &outcome {
            Ok(()) => PollResult::Success,
            Err(failure) if failure.kind == ErrorKind::Throttled => PollResult::Throttled,
            Err(_) => PollResult::Error,
        };
        self.stats.poll(result, started.elapsed(), now);
        outcome
    }

    /// One poll: the newest window, then gaps until it is time for the next poll.
    pub async fn poll(&mut self, spec: &Spec, until: Instant, history: &mut History) -> Result<(), Failure> {
        history.only_passed_over = false;
        let believed = self.api.clock_skew();
        if !self.read_newest(spec, believed).await? {
            let learnt = self.api.clock_skew();
            debug!(source = %self.name, %believed, %learnt, "the service's clock is behind what was believed");
            self.read_newest(spec, learnt).await?;
        }
        self.clock_was_set_back()?;
        self.give_up(spec).await?;
        if spec.reading.is_feed() {
            return Ok(());
        }
        self.read_history(spec, until, history).await?;
        let passed_over = history.failure();
        history.only_passed_over = passed_over.is_some();
        passed_over.map_or(Ok(()), Err)
    }

    /// Reads pieces of the gaps. What cannot be read is passed over, and tried again every other time it is due.
    async fn read_history(&mut self, spec: &Spec, until: Instant, history: &mut History) -> Result<(), Failure> {
        let (overlap, cell) = (self.cadence.overlap, self.cadence.cell);
        let mut failed = 0;
        let mut turn = 0_u32;
        // one piece in any case: where the newest window takes all the time there is, gaps must close too
        while turn == 0 || (Instant::now() < until && failed < PIECES_FAILED_MAX) {
            let Some(checkpoint) = self.book.state().checkpoint().cloned() else { break };
            history.passed_over.keep_to(&checkpoint);
            let unread = next_gap_step(&checkpoint, &history.passed_over.windows(), history.step, cell);
            let due = history.due(Instant::now(), cell);
            let is_again = due.is_some() && (turn % 2 == 1 || unread.is_none());
            let Some(piece) = (if is_again { due } else { unread }) else { break };
            turn += 1;
            debug!(source = %self.name, from = %piece.from, to = %piece.to, "catching up");
            let after = checkpoint.piece_read(piece).forgetting(overlap);
            let started = Instant::now();
            history.reading = Some(piece);
            let done = self
                .read(Some(checkpoint.clone()), checkpoint, piece, Facts::Past, spec.reading.is_feed(), |_| after)
                .await;
            history.reading = None;
            if !is_again {
                let step = history.step;
                let step = match done {
                    Ok(()) if started.elapsed() < self.interval / 2 => step * 2,
                    // the newest events wait for it; but what takes long for its waiting, not for its
                    // events, takes as long in small pieces
                    Ok(()) if started.elapsed() > self.interval * 4 => (step / 2).max(overlap.min(step)),
                    Ok(()) => step,
                    Err(_) => step / 4,
                };
                history.step = step.clamp(self.gap_step_min(), spec.reading.step_max());
            }
            match done {
                Ok(()) => history.passed_over.read(piece),
                Err(failure) if is_of_a_piece(&failure) && (is_again || !history.passed_over.is_full()) => {
                    failed += 1;
                    history.failed(piece, &failure, self.interval);
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    fn gap_step_min(&self) -> Duration {
        GAP_STEP_MIN.max(self.cadence.cell)
    }

    /// Where the service's clock was set back so far that it stamps new events with times whose events were
    /// forgotten, they cannot be told from those, and are not counted.
    fn clock_was_set_back(&self) -> Result<(), Failure> {
        let now = self.clock.now() + self.api.clock_skew();
        let state = self.book.state();
        let Some(checkpoint) = state.checkpoint().filter(|read| now + SKEW_SURPRISE < read.origin) else {
            return Ok(());
        };
        let Checkpoint { origin, head, .. } = checkpoint;
        let got = format!(
            "the service's clock says {}, and said {} before; events it stamps until {} look like events that are already \
             counted, and are not counted",
            rfc3339_seconds(now),
            rfc3339_seconds(*head),
            rfc3339_seconds(*origin)
        );
        let failure = Failure::new(ErrorKind::Decode, "telling new events from old ones", got);
        Err(failure.advising("look at the service's own log until then; counting continues by itself"))
    }

    /// Gives up what is older than `max_catch_up`, by the clock of the service that has just answered.
    async fn give_up(&self, spec: &Spec) -> Result<(), Failure> {
        let Some(checkpoint) = self.book.state().checkpoint().cloned() else { return Ok(()) };
        let is_feed = spec.reading.is_feed();
        // of a feed, when the list was asked for: reading the files may take hours
        let now = if is_feed { checkpoint.head } else { self.api.service_now() };
        let never_read = checkpoint.gaps.first().is_some_and(|gap| gap.from <= checkpoint.origin);
        // and what its list no longer showed of the look-back is not lost
        let since = if is_feed && never_read { self.first_start(now) } else { checkpoint.origin };
        let (kept, lost) = give_up(&checkpoint, since, now, &self.cadence);
        let kept = if is_feed { feed_was_read(kept) } else { kept };
        if kept == checkpoint {
            return Ok(());
        }
        self.move_checkpoint(Some(checkpoint), kept, lost).await
    }

    async fn move_checkpoint(&self, from: Option<Checkpoint>, to: Checkpoint, lost: TimeDelta) -> Result<(), Failure> {
        let lost_seconds = u64::try_from(lost.num_seconds()).unwrap_or_default();
        if lost_seconds > 0 {
            warn!(source = %self.name, lost_seconds, "history older than max_catch_up is given up");
        }
        let (page, now, service_now) = (Page::default(), self.api.now(), self.api.service_now());
        let commit =
            Commit { expected: from, next: Some(to), page, lost_seconds, now, service_now, backlog_from: None };
        self.ledger.commit(&self.book, commit).await.map(drop).map_err(|error| storage(&error))
    }

    /// When the source was first to be polled. Both moments are of the service's clock.
    fn first_start(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        let since = now - delta(self.since.elapsed());
        if self.book.is_new() {
            return since;
        }
        // or by a process before this one, whose clock may have been wrong: nothing is said to be lost by that
        let born = self.book.state().born().map(|born| born + self.api.clock_skew());
        born.map_or(since, |born| since.min(born.max(now - delta(self.cadence.max_catch_up))))
    }

    /// Where reading begins. Where nothing has been read yet, that is not known before the service has told what time
    /// it is: neither a clock that was wrong at the first start may decide it, nor one that is wrong now.
    fn beginning(&self, known: Option<&Checkpoint>, now: DateTime<Utc>) -> Checkpoint {
        if let Some(known) = known.filter(|known| !known.is_beginning() || self.api.known_clock_skew().is_none()) {
            return known.clone();
        }
        let beginning = Checkpoint::beginning(self.first_start(now), now, &self.cadence);
        known.filter(|known| known.origin <= beginning.origin).cloned().unwrap_or(beginning)
    }

    /// Plans by what the service's clock is believed to show, and reads the newest window. Whether the
    /// answers bear that out: a plan for a moment that has not come is not committed, because what it
    /// takes for an outage reaches into the future.
    async fn read_newest(&mut self, spec: &Spec, clock_skew: TimeDelta) -> Result<bool, Failure> {
        let local = self.clock.now();
        let now = local + clock_skew;
        let mut known = self.book.state().checkpoint().cloned();
        let mut stored = self.beginning(known.as_ref(), now);
        let is_feed = spec.reading.is_feed();
        let plan = if is_feed {
            plan_feed(&stored, now, &self.cadence, self.interval)
        } else {
            plan(&stored, now, &self.cadence)
        };
        // the rows that an outage held back are not of the present, which must be known while they are counted
        if is_feed && plan.checkpoint.catching_up() && !stored.catching_up() {
            self.move_checkpoint(known, plan.checkpoint.clone(), TimeDelta::zero()).await?;
            stored = plan.checkpoint.clone();
            known = Some(plan.checkpoint);
        }
        let overlap = self.cadence.overlap;
        let (before, after) = (stored.clone(), plan.after_live);
        let mut borne_out = true;
        self.read(known, stored, plan.live, Facts::Present, is_feed, |api| {
            borne_out = api.clock_skew() >= clock_skew - SKEW_SURPRISE;
            if !borne_out {
                return before;
            }
            // an answer may tell that the service's clock is behind: the head must not run ahead of it
            let head = after.head.min(local + api.clock_skew()).max(before.head);
            let mut after = Checkpoint { head, ..after };
            if !is_feed {
                return after.forgetting(overlap);
            }
            after.gaps.iter_mut().for_each(|gap| gap.to = gap.to.min(head));
            after
        })
        .await?;
        Ok(borne_out)
    }

    /// Reads one window and commits it; the checkpoint moves with its last page. `known` is the ledger's.
    async fn read(
        &mut self,
        known: Option<Checkpoint>,
        checkpoint: Checkpoint,
        window: Window,
        facts: Facts,
        is_feed: bool,
        after: impl FnOnce(&Api) -> Checkpoint,
    ) -> Result<(), Failure> {
        let mut pages = Pages {
            name: &self.name,
            ledger: &self.ledger,
            book: &self.book,
            stats: &self.stats,
            api: &self.api,
            window,
            facts,
            begun: self.api.now(),
            first_start: self.first_start(self.api.service_now()) - self.api.clock_skew(),
            longest: (!is_feed).then(|| delta(self.cadence.overlap.min(HELD_BACK_MIN))),
            known,
            checkpoint,
            pending: None,
        };
        let read = self.source.read(window, &self.api, &mut pages).await;
        // what came before an error is good, and stays counted
        let next = if read.is_ok() { after(&self.api) } else { pages.checkpoint.clone() };
        let committed = pages.finish(next).await;
        read.and(committed)
    }
}

/// The pages of one window on their way to the ledger. The latest is held back until the next
/// one comes, so that the last page and the checkpoint are one transaction.
struct Pages<'a> {
    name: &'a SourceName,
    ledger: &'a Ledger,
    book: &'a Arc<Book>,
    stats: &'a SourceStats,
    api: &'a Api,
    window: Window,
    facts: Facts,
    /// When reading began, by our clock.
    begun: DateTime<Utc>,
    /// When the source was first to be polled, by our clock.
    first_start: DateTime<Utc>,
    /// After a longer outage than this, what is read was held back by it. `None` for a feed, whose rows nobody did.
    longest: Option<TimeDelta>,
    /// What the ledger has.
    known: Option<Checkpoint>,
    /// What is worked from.
    checkpoint: Checkpoint,
    pending: Option<Page>,
}

/// Whether what a read finds out beside events is the state of things now. A gap read later must
/// not overwrite what the newest window said.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Facts {
    Present,
    Past,
}

impl Pages<'_> {
    /// From when on, by the service's clock, what is read was held back by an outage; `None` where it was not. By what
    /// the answers tell of that clock, not by what was believed when they were asked for.
    fn backlog_from(&self) -> Option<DateTime<Utc>> {
        let skew = self.api.clock_skew();
        let (since, now) = (self.first_start + skew, self.begun + skew);
        self.checkpoint.follows_outage(since, now, self.longest?).then_some(since)
    }

    async fn commit(&mut self, page: Page, next: Checkpoint) -> Result<(), Failure> {
        let commit = Commit {
            expected: self.known.clone(),
            next: Some(next.clone()),
            page,
            lost_seconds: 0,
            now: self.api.now(),
            service_now: self.api.service_now(),
            backlog_from: self.backlog_from(),
        };
        let committed = self.ledger.commit(self.book, commit).await.map_err(|error| storage(&error))?;
        self.known = Some(next.clone());
        self.checkpoint = next;
        debug!(source = %self.name, counted = committed.counted, duplicate = committed.duplicate, "committed");
        for rejection in committed.rejections {
            warn!(
                source = %self.name,
                reason = rejection.reason.as_str(),
                sample = rejection.sample,
                "an event could not be understood; it is counted as rejected"
            );
        }
        Ok(())
    }

    async fn finish(mut self, next: Checkpoint) -> Result<(), Failure> {
        let page = self.pending.take();
        if page.is_none() && next == self.checkpoint {
            return Ok(());
        }
        self.commit(page.unwrap_or_default(), next).await
    }
}

#[async_trait]
impl Sink for Pages<'_> {
    async fn page(&mut self, mut page: Page) -> Result<Taken, Failure> {
        let mut taken = Taken::default();
        let first = (self.window.from - WINDOW_TOLERANCE).max(self.checkpoint.origin);
        let after = self.window.to + WINDOW_TOLERANCE;
        page.items.retain(|item| {
            let moment: Option<DateTime<Utc>> = item.at.or(item.filed_at);
            let filed_before_origin =
                item.filed_at.is_some_and(|filed| filed < self.checkpoint.origin - WINDOW_TOLERANCE);
            match moment {
                Some(moment) if moment < first || filed_before_origin => taken.before += 1,
                Some(moment) if moment >= after => taken.after += 1,
                _ => {
                    taken.inside += 1;
                    return true;
                }
            }
            false
        });
        self.stats.observed().outside_window += (taken.before + taken.after) as u64;
        if self.facts == Facts::Past {
            page.facts = crate::page::Facts::default();
        }
        if let Some(previous) = self.pending.replace(page) {
            self.commit(previous, self.checkpoint.clone()).await?;
        }
        Ok(taken)
    }

    fn report(&mut self, mut failure: Failure) {
        self.stats.count_once(&mut failure);
        warn!(source = %self.name, kind = failure.kind.as_str(), error = %failure, "reading continues despite an error");
        self.stats.failed(self.api.now(), failure.to_string());
    }

    fn document(&mut self, key: &EventKey) -> Option<DocumentRecord> {
        self.book.state().documents().get(key).cloned()
    }
}

fn storage(error: &CommitError) -> Failure {
    let kind = if matches!(error, CommitError::Fault(_)) { ErrorKind::Panic } else { ErrorKind::Storage };
    Failure::new(kind, "writing the ledger", error.to_string())
}

/// How long to wait after the `failures`-th failure in a row.
pub fn pause_after(failure: &Failure, failures: u32, interval: Duration) -> Duration {
    let backoff = if failure.may_lock() {
        Backoff { first: interval.max(LOGIN_PAUSE.first), max: LOGIN_PAUSE.max.max(interval), ..LOGIN_PAUSE }
    } else {
        Backoff { first: interval, factor: 2, max: PAUSE_MAX.max(interval).min(interval.saturating_mul(8)) }
    };
    backoff.after(failures).max(failure.retry_after.unwrap_or_default())
}

#[cfg(test)]
mod tests;
