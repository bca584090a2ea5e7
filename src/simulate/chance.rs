//! Reproducible randomness: seeded draws, and the times of a service's traffic.
//!
//! Promises: the same seed, subject and number draw the same; traffic follows the hours of a day.
//!
//! Leaves to others: what happens at those times.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

/// Traffic is made in cells of so many milliseconds.
pub(super) const CELL_MS: i64 = 10_000;

/// Chance that depends on nothing but its seed.
#[derive(Clone)]
pub(super) struct Dice(Xoshiro256PlusPlus);

/// The chance of all that is not traffic: tokens, injected events, faults.
pub(super) struct Chance {
    seed: u64,
    /// How often it was drawn from.
    drawn: u64,
}

/// Ten seconds in which a service's traffic is made.
pub(super) struct Cell {
    pub(super) dice: Dice,
    start_ms: i64,
    mean: f64,
    day: Duration,
}

/// How often an event with this id is listed: now and then twice, and always the same ones.
pub(super) fn times_listed(id: &str, duplicates: f64) -> usize {
    1 + usize::from(duplicates > 0.0 && Dice::of(0, id, 0).chance(duplicates))
}

// === impl Dice ===

impl Dice {
    /// The chance of (seed, what, number).
    pub(super) fn of(seed: u64, what: &str, number: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher.update(&number.to_le_bytes());
        hasher.update(what.as_bytes());
        Self(Xoshiro256PlusPlus::from_seed(*hasher.finalize().as_bytes()))
    }

    /// 0 to `n` - 1; 0 where `n` is 0.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.0.random_range(0..n) }
    }

    pub(super) fn chance(&mut self, probability: f64) -> bool {
        // drawn in any case, so that a switch does not change what is drawn after it
        self.0.random::<f64>() < probability
    }

    pub(super) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let at = usize::try_from(self.below(from.len() as u64)).unwrap_or(0);
        &from[at]
    }

    /// One of a few, each as often as its share of all shares says.
    pub(super) fn weighted<'a, T>(&mut self, from: &'a [T], share: impl Fn(&T) -> u64) -> &'a T {
        let mut roll = self.below(from.iter().map(&share).sum());
        let hit = from.iter().find(|one| {
            let hit = roll < share(one);
            roll = roll.saturating_sub(share(one));
            hit
        });
        hit.unwrap_or(&from[0])
    }

    pub(super) fn hex(&mut self, length: usize) -> String {
        self.text(b"0123456789abcdef", length)
    }

    pub(super) fn base62(&mut self, length: usize) -> String {
        self.text(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", length)
    }

    /// Eight letters from each draw, because ids are most of what is drawn.
    fn text(&mut self, alphabet: &[u8], length: usize) -> String {
        let mut text = String::with_capacity(length);
        let mut drawn = [0_u8; 8];
        for place in 0..length {
            if place % 8 == 0 {
                drawn = self.0.random::<u64>().to_le_bytes();
            }
            text.push(char::from(alphabet[usize::from(drawn[place % 8]) % alphabet.len()]));
        }
        text
    }

    pub(super) fn uuid(&mut self) -> String {
        let hex = self.hex(30);
        format!("{}-{}-4{}-a{}-{}", &hex[..8], &hex[8..12], &hex[12..15], &hex[15..18], &hex[18..])
    }

    /// A Poisson-distributed number of the given mean.
    fn poisson(&mut self, mean: f64) -> u64 {
        let mut left = mean;
        let mut count = 0;
        // in pieces, because exp(-mean) of a large mean is 0
        while left > 0.0 {
            let limit = (-left.min(30.0)).exp();
            let mut product: f64 = self.0.random();
            while product > limit {
                count += 1;
                product *= self.0.random::<f64>();
            }
            left -= 30.0;
        }
        count
    }
}

// === impl Chance ===

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, drawn: 0 }
    }

    /// Dice that nobody had before.
    pub(super) fn draw(&mut self, what: &str) -> Dice {
        self.drawn += 1;
        Dice::of(self.seed, what, self.drawn)
    }
}

// === impl Cell ===

impl Cell {
    /// The cell that begins at `start_ms`, with `mean` events to be expected in it.
    pub(super) fn new(dice: Dice, start_ms: i64, mean: f64, day: Duration) -> Self {
        Self { dice, start_ms, mean, day }
    }

    /// When it begins.
    pub(super) fn start(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(self.start_ms).unwrap_or_default()
    }

    /// The times of this cell's ordinary events: any, and now and then exactly on a second or on
    /// the cell's first millisecond, where windows of readers begin and end.
    pub(super) fn times(&mut self) -> Vec<DateTime<Utc>> {
        let count = self.dice.poisson(self.mean);
        (0..count)
            .map(|_| {
                let offset = i64::try_from(self.dice.below(CELL_MS.unsigned_abs())).unwrap_or(0);
                let offset = match self.dice.below(40) {
                    0 => 0,
                    1..4 => offset - offset % 1000,
                    _ => offset,
                };
                DateTime::from_timestamp_millis(self.start_ms + offset).unwrap_or_default()
            })
            .collect()
    }

    /// A moment in this cell.
    pub(super) fn moment(&mut self) -> DateTime<Utc> {
        let offset = i64::try_from(self.dice.below(CELL_MS.unsigned_abs())).unwrap_or(0);
        DateTime::from_timestamp_millis(self.start_ms + offset).unwrap_or_default()
    }

    /// Whether something that happens so many times a day happens in this cell.
    pub(super) fn sometimes(&mut self, times_a_day: f64) -> bool {
        let cell = Duration::from_millis(CELL_MS.unsigned_abs()).as_secs_f64();
        self.mean > 0.0 && self.dice.chance(times_a_day * cell / self.day.as_secs_f64().max(cell))
    }

    /// From when on an event can be read: mostly at once or within 2 s, 3 in 100 after 5 s to 4 min.
    pub(super) fn visible_at(&mut self, at: DateTime<Utc>) -> DateTime<Utc> {
        let ms = if self.dice.chance(0.03) { 5_000 + self.dice.below(235_000) } else { self.dice.below(2_000) };
        at + TimeDelta::milliseconds(i64::try_from(ms).unwrap_or(0))
    }
}
