//! What has been read of a service's history, and what is to be read next: plain functions over
//! values.
//!
//! Promises:
//! - A [`Checkpoint`] names exactly the history that is counted: everything from `origin` to
//!   `head`, but for its `gaps`. [`Checkpoint::watermark`] never runs ahead of a gap.
//! - Nothing is lost silently: [`give_up`] says how much.
//! - Every window ends at a whole cell where the source asks for that (see [`Cadence::cell`]).
//!
//! Leaves to others: reading the windows (`source/*.rs`), when to plan (`poll.rs`), keeping the
//! checkpoint (`ledger.rs`).

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::clock::delta;

/// Keys are kept, and dropped, by the hour.
pub const KEYS_BUCKET: Duration = Duration::from_hours(1);

/// How much longer than the overlap keys are kept: room for a service that files an event a
/// little off, and for the overlap to be lengthened.
const KEYS_MARGIN: Duration = Duration::from_hours(1);

/// A closed piece of event time: `from` is inside, `to` is not. Milliseconds are the finest step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// First moment inside.
    pub from: DateTime<Utc>,
    /// First moment after.
    pub to: DateTime<Utc>,
}

impl Window {
    /// Whether `at` lies inside.
    pub fn contains(&self, at: DateTime<Utc>) -> bool {
        self.from <= at && at < self.to
    }

    /// Its length; zero where `to` does not come after `from`.
    pub fn length(&self) -> TimeDelta {
        (self.to - self.from).max(TimeDelta::zero())
    }

    /// Whether nothing can lie inside.
    pub fn is_empty(&self) -> bool {
        self.to <= self.from
    }

    /// The two halves, cut at a multiple of `grain` since the epoch; `None` where the window
    /// holds no such moment but its start.
    pub fn halves(&self, grain: Duration) -> Option<(Window, Window)> {
        let middle = floor(self.from + self.length() / 2, grain);
        let middle = if middle > self.from { middle } else { middle + delta(grain) };
        (self.from < middle && middle < self.to)
            .then_some((Window { from: self.from, to: middle }, Window { from: middle, to: self.to }))
    }
}

/// The last multiple of `cell` (counted from the Unix epoch) that is not after `at`.
pub fn floor(at: DateTime<Utc>, cell: Duration) -> DateTime<Utc> {
    let cell = i64::try_from(cell.as_millis()).unwrap_or(i64::MAX).max(1);
    let at = at.timestamp_millis();
    DateTime::from_timestamp_millis(at - at.rem_euclid(cell)).unwrap_or_default()
}

/// How far the history of one source has been counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Nothing before this is ever counted: where counting began (the first start less the
    /// initial look-back), later the oldest moment whose keys are still kept. A longer overlap
    /// after a change of configuration can therefore not count anything twice.
    pub origin: DateTime<Utc>,
    /// The end of the newest window that was read whole.
    pub head: DateTime<Utc>,
    /// Windows before `head` that have still to be read, oldest first, without overlap.
    pub gaps: Vec<Gap>,
}

/// A piece of history that has still to be read, or read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Where reading goes on.
    pub from: DateTime<Utc>,
    /// First moment after the gap.
    pub to: DateTime<Utc>,
    /// What lies before this was read once before the outage; giving it up loses late events
    /// only.
    pub unread_from: DateTime<Utc>,
}

impl Gap {
    /// The gap as a window.
    pub fn window(&self) -> Window {
        Window { from: self.from, to: self.to }
    }

    /// The part that was never read.
    pub fn unread(&self) -> Window {
        Window { from: self.from.max(self.unread_from), to: self.to }
    }
}

impl Checkpoint {
    /// The checkpoint of a source of which nothing has been read, and that was first to be read at `since`.
    /// The look-back ends where reading back ends: what is never read is not begun with either.
    pub fn beginning(since: DateTime<Utc>, now: DateTime<Utc>, cadence: &Cadence) -> Self {
        let from = (since - delta(cadence.initial_lookback)).max(now - delta(cadence.max_catch_up)).min(since);
        let origin = floor(from, cadence.cell);
        Self { origin, head: origin, gaps: Vec::new() }
    }

    /// Whether nothing has been read yet.
    pub fn is_beginning(&self) -> bool {
        self.head == self.origin && self.gaps.is_empty()
    }

    /// Everything the service reported up to here is counted.
    pub fn watermark(&self) -> DateTime<Utc> {
        self.gaps.first().map_or(self.head, |gap| gap.unread().from.min(self.head))
    }

    /// Whether history older than the overlap is still to be read.
    pub fn catching_up(&self) -> bool {
        self.is_beginning() || !self.gaps.is_empty()
    }

    /// Whether what is read at `now` was held back by an outage that was longer than `longest`, or of which something has
    /// still to be read. What happened before a source was first to be polled, at `since`, was held back by none.
    pub fn follows_outage(&self, since: DateTime<Utc>, now: DateTime<Utc>, longest: TimeDelta) -> bool {
        now - self.head.max(since) > longest || self.gaps.iter().any(|gap| gap.to > since)
    }

    /// Whether `at` belongs to what was read before, so that an event of that moment which is
    /// new now is a late one.
    pub fn covers(&self, at: DateTime<Utc>) -> bool {
        self.origin <= at && at < self.head && !self.gaps.iter().any(|gap| gap.unread().contains(at))
    }

    /// Whether all from `first` to `last` belongs to what was read before.
    pub fn covers_all(&self, first: DateTime<Utc>, last: DateTime<Utc>) -> bool {
        let is_unread = |unread: Window| unread.from <= last && first < unread.to;
        self.covers(first) && self.covers(last) && !self.gaps.iter().any(|gap| is_unread(gap.unread()))
    }

    /// This checkpoint after a piece of its gaps was read. What lies before and behind it stays a gap.
    #[must_use]
    pub fn piece_read(&self, piece: Window) -> Self {
        let rest = |gap: &Gap| {
            let before = Gap { to: gap.to.min(piece.from), ..*gap };
            let behind = Gap { from: gap.from.max(piece.to), ..*gap };
            [before, behind].into_iter().filter(|gap| !gap.window().is_empty())
        };
        Self { gaps: self.gaps.iter().flat_map(rest).collect(), ..self.clone() }
    }

    /// This checkpoint with `origin` moved up to what can still be read again, less a margin, in
    /// whole hours: keys of earlier hours need not be kept.
    #[must_use]
    pub fn forgetting(&self, overlap: Duration) -> Self {
        let oldest = self.gaps.first().map_or(self.head, |gap| gap.from.min(self.head));
        let keep_from = floor(oldest - delta(overlap) - delta(KEYS_MARGIN), KEYS_BUCKET);
        Self { origin: self.origin.max(keep_from), ..self.clone() }
    }
}

/// The lengths that planning goes by, all of one source.
#[derive(Clone, Debug)]
pub struct Cadence {
    /// How far back every poll reads again.
    pub overlap: Duration,
    /// How much history a source without a checkpoint counts.
    pub initial_lookback: Duration,
    /// The longest outage that is read back.
    pub max_catch_up: Duration,
    /// Windows begin at multiples of this; 1 ms where the service's events have times and ids.
    pub cell: Duration,
    /// How far beyond the present to ask, so that a service whose clock is ahead is not read late.
    pub ahead: Duration,
}

/// What one poll is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The checkpoint to work from: the ledger's, with an outage turned into a gap.
    pub checkpoint: Checkpoint,
    /// The window to read first: the overlap and everything since.
    pub live: Window,
    /// The checkpoint once `live` has been read.
    pub after_live: Checkpoint,
}

/// What to read now. `now` is the service's present as well as it is known.
///
/// An outage longer than the overlap becomes a gap, which is read oldest first between live
/// windows, so that the newest events are never late because of old ones.
pub fn plan(checkpoint: &Checkpoint, now: DateTime<Utc>, cadence: &Cadence) -> Plan {
    let overlap = delta(cadence.overlap);
    let mut checkpoint = checkpoint.clone();
    let recent = floor(now - overlap, cadence.cell);
    if checkpoint.head < recent {
        // late events of before the outage are read again, too, but nothing before the origin
        let from = floor(checkpoint.head - overlap, cadence.cell).max(checkpoint.origin);
        let from = checkpoint.gaps.last().map_or(from, |gap| from.max(gap.to));
        let unread_from = checkpoint.head.max(from);
        checkpoint.gaps.push(Gap { from, to: recent, unread_from });
        checkpoint.head = recent;
    }
    let from = floor(checkpoint.head.min(now) - overlap, cadence.cell).max(checkpoint.origin);
    let from = checkpoint.gaps.last().map_or(from, |gap| from.max(gap.to));
    let mut to = now + delta(cadence.ahead);
    if cadence.cell > Duration::from_millis(1) {
        to = floor(to, cadence.cell) + delta(cadence.cell);
    }
    // a clock that is far behind asks, too: the answer tells that it is
    to = to.max(from + delta(cadence.cell));
    let mut after_live = checkpoint.clone();
    after_live.head = after_live.head.max(now);
    Plan { checkpoint, live: Window { from, to }, after_live }
}

/// The checkpoint without what is older than `max_catch_up`, and how much of that, from `since` on, was never read. To
/// be asked once the service has answered: a clock that is wrong must not give up anything.
pub fn give_up(
    checkpoint: &Checkpoint,
    since: DateTime<Utc>,
    now: DateTime<Utc>,
    cadence: &Cadence,
) -> (Checkpoint, TimeDelta) {
    let (mut kept, mut lost) = (checkpoint.clone(), TimeDelta::zero());
    let horizon = floor(now - delta(cadence.max_catch_up), cadence.cell);
    // a gap begins an overlap before its outage; the look-back of a first start may grow by as much while it is read
    for gap in kept.gaps.iter_mut().filter(|gap| gap.from < horizon - delta(cadence.overlap)) {
        let given_up_to = horizon.min(gap.to);
        lost += (given_up_to - gap.unread().from.max(since)).max(TimeDelta::zero());
        gap.from = given_up_to;
    }
    kept.gaps.retain(|gap| !gap.window().is_empty());
    (kept, lost)
}

/// What to read now of a service that is a list of files: always the whole list. An outage is
/// shown as a gap, so that the rows it holds back are known not to be of the present; the head stays before it
/// until the list has been read.
pub fn plan_feed(checkpoint: &Checkpoint, now: DateTime<Utc>, cadence: &Cadence, interval: Duration) -> Plan {
    let since = checkpoint.watermark();
    let mut checkpoint = Checkpoint { head: since, ..checkpoint.clone() };
    if checkpoint.catching_up() || now - since > delta(cadence.overlap.max(3 * interval)) {
        checkpoint.gaps = vec![Gap { from: since, to: now.max(since), unread_from: since }];
    }
    let live = Window { from: checkpoint.origin, to: now };
    let after_live = Checkpoint { head: since.max(now), ..checkpoint.clone() };
    Plan { checkpoint, live, after_live }
}

/// The checkpoint of a feed whose list was read up to its head.
#[must_use]
pub fn feed_was_read(mut checkpoint: Checkpoint) -> Checkpoint {
    checkpoint.gaps.retain(|gap| gap.to > checkpoint.head);
    checkpoint
}

/// The next piece of the oldest gap, at most `step` long, that lies in none of the windows to be left out.
pub fn next_gap_step(checkpoint: &Checkpoint, left_out: &[Window], step: Duration, cell: Duration) -> Option<Window> {
    let mut gaps = checkpoint.gaps.iter().map(Gap::window);
    let readable = gaps.find_map(|gap| {
        let mut from = gap.from;
        // they need not be in order
        while let Some(around) = left_out.iter().find(|window| window.contains(from)) {
            from = around.to;
        }
        let to = left_out.iter().map(|window| window.from).filter(|edge| *edge > from).min();
        let rest = Window { from, to: to.map_or(gap.to, |edge| edge.min(gap.to)) };
        (!rest.is_empty()).then_some(rest)
    })?;
    Some(beginning_of(readable, step, cell))
}

/// The first part of a window, at most `step` long and at least a cell, as far as there is one.
pub fn beginning_of(window: Window, step: Duration, cell: Duration) -> Window {
    let to = floor(window.from + delta(step), cell);
    let to = if to > window.from { to } else { floor(window.from, cell) + delta(cell) };
    Window { from: window.from, to: to.min(window.to) }
}

/// A piece of a gap that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable<T> {
    /// Which one.
    pub window: Window,
    /// How often it, or one it is a part of, was tried.
    pub tries: u32,
    /// What is known beside that.
    pub why: T,
}

/// The pieces of the gaps that could not be read, and are passed over until they are tried again. They are not written
/// down: after a restart each is tried once more.
#[derive(Clone, Debug)]
pub struct PassedOver<T>(Vec<Unreadable<T>>);

impl<T> Default for PassedOver<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> PassedOver<T> {
    /// The pieces, oldest first.
    pub fn pieces(&self) -> &[Unreadable<T>] {
        &self.0
    }

    /// What next to leave out.
    pub fn windows(&self) -> Vec<Window> {
        self.0.iter().map(|piece| piece.window).collect()
    }

    /// Whether no more are passed over: each is a gap of its own.
    pub fn is_full(&self) -> bool {
        self.0.len() >= PASSED_OVER_MAX
    }

    /// Forgets what is no gap any more, as where it was given up.
    pub fn keep_to(&mut self, checkpoint: &Checkpoint) {
        self.0.retain_mut(|piece| {
            let gap = checkpoint.gaps.iter().find(|gap| gap.from < piece.window.to && piece.window.from < gap.to);
            gap.is_some_and(|gap| {
                piece.window = Window { from: piece.window.from.max(gap.from), to: piece.window.to.min(gap.to) };
                true
            })
        });
    }

    /// A piece could not be read. Where it was part of one that could not be read either, only it is passed over from now
    /// on.
    pub fn failed(&mut self, window: Window, why: T) -> &mut Unreadable<T> {
        let mut tries = 1;
        self.0.retain(|piece| {
            let is_around = piece.window.from <= window.from && window.to <= piece.window.to;
            if is_around {
                tries = piece.tries + 1;
            }
            !is_around
        });
        let at = self.0.partition_point(|piece| piece.window.from < window.from);
        self.0.insert(at, Unreadable { window, tries, why });
        &mut self.0[at]
    }

    /// A part at the beginning of a piece was read; the rest is still passed over.
    pub fn read(&mut self, window: Window) {
        for piece in self.0.iter_mut().filter(|piece| piece.window.contains(window.from)) {
            piece.window.from = window.to;
        }
        self.0.retain(|piece| !piece.window.is_empty());
    }
}

/// How many pieces of history are passed over at most: what is unreadable everywhere is no matter of pieces.
const PASSED_OVER_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
    }

    /// Before everything.
    fn since() -> DateTime<Utc> {
        DateTime::UNIX_EPOCH
    }

    fn cadence() -> Cadence {
        let seconds = Duration::from_secs;
        Cadence {
            overlap: seconds(600),
            initial_lookback: seconds(3600),
            max_catch_up: seconds(86_400),
            cell: Duration::from_millis(1),
            ahead: seconds(0),
        }
    }

    #[test]
    fn the_first_poll_reads_the_overlap_at_once_and_leaves_the_rest_of_the_look_back_as_a_gap() {
        let plan = plan(&Checkpoint::beginning(at(0), at(0), &cadence()), at(0), &cadence());
        assert_eq!(plan.live, Window { from: at(-600), to: at(0) });
        assert_eq!(plan.checkpoint.gaps, [Gap { from: at(-3600), to: at(-600), unread_from: at(-3600) }]);
        assert_eq!(plan.after_live.head, at(0));
        assert_eq!(plan.after_live.watermark(), at(-3600));
    }

    #[test]
    fn an_ordinary_poll_reads_the_overlap_and_what_is_new() {
        let read = Checkpoint { origin: at(-9999), head: at(-60), gaps: vec![] };
        let plan = plan(&read, at(0), &cadence());
        assert_eq!(plan.live, Window { from: at(-660), to: at(0) });
        assert!(!plan.after_live.catching_up());
        assert_eq!(plan.after_live.watermark(), at(0));
    }

    #[test]
    fn nothing_before_the_origin_is_read() {
        let young = Checkpoint { origin: at(-70), head: at(-60), gaps: vec![] };
        assert_eq!(plan(&young, at(0), &cadence()).live.from, at(-70));
    }

    #[test]
    fn an_outage_becomes_a_gap_and_the_late_events_before_it_are_read_again() {
        let old = Checkpoint { origin: at(-99_999), head: at(-7200), gaps: vec![] };
        let plan = plan(&old, at(0), &cadence());
        assert_eq!(plan.after_live.watermark(), at(-7200), "the watermark stays where it was");
        assert_eq!(plan.checkpoint.gaps, [Gap { from: at(-7800), to: at(-600), unread_from: at(-7200) }]);
        assert_eq!(plan.live, Window { from: at(-600), to: at(0) });
    }

    #[test]
    fn an_outage_holds_back_what_is_read_until_its_gap_is_closed_and_a_first_look_back_does_not() {
        let longest = TimeDelta::minutes(10);
        let read = |head, gaps| Checkpoint { origin: at(-9999), head, gaps };
        let gap = |from, to| Gap { from: at(from), to: at(to), unread_from: at(from) };
        // which was first to be polled a minute ago, and ten days ago
        let (new, old) = (at(-60), at(-864_000));
        let beginning = Checkpoint::beginning(new, at(0), &cadence());
        for (checkpoint, since, expected) in [
            (beginning.clone(), new, false),
            (plan(&beginning, at(0), &cadence()).after_live, new, false),
            (read(at(-600), vec![]), old, false),
            (read(at(-601), vec![]), old, true),
            // a first start that failed for a while
            (Checkpoint::beginning(at(-601), at(0), &cadence()), at(-601), true),
            (read(at(0), vec![gap(-3600, -600)]), old, true),
            (read(at(0), vec![gap(-3600, -600)]), new, false),
            (read(at(0), vec![gap(-9000, -6000), gap(-3600, -600)]), at(-5000), true),
        ] {
            assert_eq!(checkpoint.follows_outage(since, at(0), longest), expected, "{checkpoint:?} since {since}");
        }
    }

    #[test]
    fn what_is_older_than_the_catch_up_limit_is_reported_as_lost() {
        let old = Checkpoint { origin: at(-999_999), head: at(-86_400 - 500), gaps: vec![] };
        let plan = plan(&old, at(0), &cadence());
        let (kept, lost) = give_up(&plan.after_live, since(), at(0), &cadence());
        assert_eq!(lost, TimeDelta::seconds(500));
        assert_eq!(kept.gaps[0].from, at(-86_400));
        assert_eq!(give_up(&kept, since(), at(0), &cadence()), (kept, TimeDelta::zero()), "and only once");
    }

    #[test]
    fn a_look_back_as_long_as_the_catch_up_limit_is_not_lost_while_it_is_read() {
        let cadence = Cadence { initial_lookback: cadence().max_catch_up, ..cadence() };
        let plan = plan(&Checkpoint::beginning(at(0), at(0), &cadence), at(0), &cadence);
        assert_eq!(give_up(&plan.after_live, since(), at(300), &cadence), (plan.after_live, TimeDelta::zero()));
    }

    #[test]
    fn a_clock_that_went_back_loses_and_repeats_nothing() {
        let read = Checkpoint { origin: at(-9999), head: at(500), gaps: vec![] };
        let plan = plan(&read, at(0), &cadence());
        assert_eq!(plan.after_live.head, at(500));
        assert_eq!(plan.live.from, at(-600));
    }

    #[test]
    fn a_clock_that_is_far_behind_still_asks_for_something() {
        let read = Checkpoint { origin: at(-9999), head: at(0), gaps: vec![] };
        for cell in [Duration::from_millis(1), Duration::from_mins(5)] {
            let cadence = Cadence { cell, ..cadence() };
            let plan = plan(&read, at(-99_999), &cadence);
            assert!(!plan.live.is_empty());
            assert_eq!(plan.after_live.head, at(0));
        }
    }

    #[test]
    fn windows_of_a_gridded_source_are_whole_cells() {
        let mut gridded = cadence();
        gridded.cell = Duration::from_mins(5);
        let plan = plan(&Checkpoint::beginning(at(17), at(17), &gridded), at(17), &gridded);
        for edge in [plan.live.from, plan.live.to, plan.checkpoint.gaps[0].from, plan.checkpoint.gaps[0].to] {
            assert_eq!(edge.timestamp() % 300, 0, "{edge}");
        }
        assert!(plan.live.contains(at(17)));
    }

    #[test]
    fn a_feed_is_read_whole_and_an_outage_shows_as_a_gap_until_then() {
        let interval = Duration::from_mins(15);
        let first = plan_feed(&Checkpoint::beginning(at(0), at(0), &cadence()), at(0), &cadence(), interval);
        let read = feed_was_read(first.after_live);
        assert!(first.checkpoint.catching_up() && !read.catching_up());
        assert_eq!(first.live, Window { from: at(-3600), to: at(0) });
        let next = plan_feed(&read, at(900), &cadence(), interval);
        assert!(!next.checkpoint.catching_up());
        assert_eq!(next.live, Window { from: at(-3600), to: at(900) });
        assert_eq!(next.after_live.watermark(), at(900));
        let late = plan_feed(&next.after_live, at(900 + 86_400 + 5000), &cadence(), interval);
        assert!(late.checkpoint.catching_up());
        let (kept, lost) = give_up(&late.after_live, since(), at(900 + 86_400 + 5000), &cadence());
        assert_eq!(lost, TimeDelta::seconds(5000));
        let read = feed_was_read(kept);
        assert_eq!((read.catching_up(), read.watermark()), (false, at(900 + 86_400 + 5000)));
    }

    #[test]
    fn the_watermark_of_a_feed_that_cannot_be_read_stays_and_what_it_no_longer_lists_is_lost_once() {
        let (interval, cadence) = (Duration::from_mins(15), cadence());
        let mut checkpoint = Checkpoint { origin: at(-9999), head: at(0), gaps: vec![] };
        for poll in 1..=40 {
            // fails, and a clock that was days ahead for a moment changes nothing
            let now = if poll == 20 { at(999_999) } else { at(poll * 3000) };
            checkpoint = plan_feed(&checkpoint, now, &cadence, interval).checkpoint;
            assert_eq!(checkpoint.watermark(), at(0));
            assert!(checkpoint.catching_up());
        }
        let plan = plan_feed(&checkpoint, at(121_000), &cadence, interval);
        let (kept, lost) = give_up(&plan.after_live, since(), at(121_000), &cadence);
        assert_eq!(lost, TimeDelta::seconds(121_000 - 86_400));
        let read = feed_was_read(kept);
        assert_eq!((read.head, read.catching_up()), (at(121_000), false));
        assert_eq!(give_up(&read, since(), at(121_900), &cadence), (read.clone(), TimeDelta::zero()));
    }

    #[test]
    fn what_happened_before_a_first_start_that_fails_for_long_is_not_lost_and_what_happens_then_is() {
        let cadence = Cadence { initial_lookback: cadence().max_catch_up, ..cadence() };
        let lost_after = |failing: i64| {
            let now = at(failing);
            let plan = plan(&Checkpoint::beginning(at(0), now, &cadence), now, &cadence);
            give_up(&plan.after_live, since(), now, &cadence).1
        };
        assert_eq!(lost_after(0), TimeDelta::zero());
        assert_eq!(lost_after(80_000), TimeDelta::zero());
        assert_eq!(lost_after(90_000), TimeDelta::seconds(90_000 - 86_400));
    }

    #[test]
    fn halves_meet_at_the_grain_and_end_with_it() {
        let window = Window { from: at(0), to: at(3) };
        let (left, right) = window.halves(Duration::from_secs(1)).unwrap();
        assert_eq!((left.from, left.to, right.from, right.to), (at(0), at(1), at(1), at(3)));
        assert_eq!(left.halves(Duration::from_secs(1)), None);
    }

    proptest! {
        /// Whatever polls, outages and clock steps happen: every moment between the origin and the
        /// head is read, or still a gap, or reported as lost.
        #[test]
        fn no_moment_is_skipped(
            steps in prop::collection::vec((0_i64..200_000, 0_usize..9), 1..25),
            cell in prop::sample::select(vec![1_u64, 60_000]),
            mut unreadable: u32,
        ) {
            let mut cadence = cadence();
            cadence.cell = Duration::from_millis(cell);
            let mut now = at(0);
            let mut checkpoint: Option<Checkpoint> = None;
            let mut read: Vec<Window> = Vec::new();
            let mut lost = TimeDelta::zero();
            let mut passed_over = PassedOver::default();
            for (pause, gap_steps) in steps {
                now += TimeDelta::seconds(pause);
                let known = checkpoint.unwrap_or_else(|| Checkpoint::beginning(now, now, &cadence));
                let plan = plan(&known, now, &cadence);
                // what lies after the present cannot have been read yet
                read.push(Window { to: plan.live.to.min(now), ..plan.live });
                let (mut next, given_up) = give_up(&plan.after_live, since(), now, &cadence);
                lost += given_up;
                for _ in 0..gap_steps {
                    passed_over.keep_to(&next);
                    let hour = Duration::from_hours(1);
                    // now and then one that was passed over before, in a smaller piece
                    let again = passed_over.pieces().first().filter(|_| unreadable % 3 == 0).cloned();
                    let again = again.map(|piece| beginning_of(piece.window, hour / 4_u32.pow(piece.tries.min(5)), cadence.cell));
                    let new = || next_gap_step(&next, &passed_over.windows(), hour, cadence.cell);
                    let Some(step) = again.or_else(new) else { break };
                    prop_assert!(!step.is_empty());
                    unreadable = unreadable.wrapping_mul(31) / 7 + 1;
                    if unreadable % 2 == 0 && !passed_over.is_full() {
                        passed_over.failed(step, ());
                        continue;
                    }
                    read.push(step);
                    passed_over.read(step);
                    let watermark = next.watermark();
                    next = next.piece_read(step);
                    prop_assert!(next.watermark() >= watermark);
                    prop_assert!(next.gaps.first().is_none_or(|gap| next.watermark() <= gap.to.max(gap.unread_from)));
                }
                for pair in next.gaps.windows(2) {
                    prop_assert!(pair[0].to <= pair[1].from);
                }
                checkpoint = Some(next);
            }
            let end = checkpoint.unwrap();
            read.extend(end.gaps.iter().map(Gap::window));
            read.sort_by_key(|window| window.from);
            let mut reached = end.origin;
            let mut unread = TimeDelta::zero();
            for window in &read {
                unread += (window.from - reached).max(TimeDelta::zero());
                reached = reached.max(window.to);
            }
            prop_assert!(reached >= end.head);
            prop_assert_eq!(unread, lost);
        }
    }
}
