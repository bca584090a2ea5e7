//! An index of the second under which each key is stored, to recognize an event that returns with another time.
//!
//! The table of keys is in the order of time, which makes commits cheap, but answers only "is this key there with this
//! second". A mark is a part of the key and its second. It is looked up for what is new at its own second; what it
//! says is confirmed in the table, so that two keys with equal marks are never taken for one.
//!
//! Promises: every mark that was put in is found, until it is dropped; 10 to 15 bytes for each.

/// The second of a key without any time.
pub(super) const TIMELESS: u32 = u32::MAX;

/// Slots that may be taken, of five.
const FULL_AT: usize = 4;

/// The marks of one source: an open-addressing table in the order of the keys' first four bytes.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// Part of the key (never 0) in the upper half, second in the lower; 0 is free.
    slots: Vec<u64>,
    taken: usize,
}

fn part_of(key: [u8; 16]) -> u32 {
    let [a, b, c, d, ..] = key;
    u32::from_be_bytes([a, b, c, d]).max(1)
}

impl Marks {
    /// The first second under which the key may be remembered and `is_there` says that it is.
    pub(super) fn find<E>(
        &self,
        key: [u8; 16],
        mut is_there: impl FnMut(u32) -> Result<bool, E>,
    ) -> Result<Option<u32>, E> {
        let part = part_of(key);
        let mut slot = self.home(part);
        while let Some(mark) = self.slots.get(slot).copied().filter(|mark| *mark != 0) {
            let second = low(mark);
            if high(mark) == part && is_there(second)? {
                return Ok(Some(second));
            }
            slot = self.after(slot);
        }
        Ok(None)
    }

    /// Adds a mark.
    pub(super) fn put(&mut self, key: [u8; 16], second: u32) {
        if (self.taken + 1) * 5 > self.slots.len() * FULL_AT {
            self.resize((self.slots.len() * 3 / 2).max(16));
        }
        self.place(u64::from(part_of(key)) << 32 | u64::from(second));
    }

    /// Drops the marks of keys that are forgotten: those without a time, and those before a second.
    pub(super) fn drop_before(&mut self, before: u32) {
        let kept: Vec<u64> = std::mem::take(&mut self.slots)
            .into_iter()
            .filter(|mark| *mark != 0 && low(*mark) != TIMELESS && low(*mark) >= before)
            .collect();
        self.slots = vec![0; (kept.len() * 3 / 2).max(16)];
        self.taken = 0;
        for mark in kept {
            self.place(mark);
        }
    }

    fn resize(&mut self, slots: usize) {
        let marks = std::mem::replace(&mut self.slots, vec![0; slots]);
        self.taken = 0;
        for mark in marks.into_iter().filter(|mark| *mark != 0) {
            self.place(mark);
        }
    }

    fn place(&mut self, mark: u64) {
        let mut slot = self.home(high(mark));
        while self.slots[slot] != 0 {
            slot = self.after(slot);
        }
        self.slots[slot] = mark;
        self.taken += 1;
    }

    fn home(&self, part: u32) -> usize {
        usize::try_from((u64::from(part) * self.slots.len() as u64) >> 32).unwrap_or_default()
    }

    fn after(&self, slot: usize) -> usize {
        if slot + 1 < self.slots.len() { slot + 1 } else { 0 }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "half of it is meant")]
fn low(mark: u64) -> u32 {
    mark as u32
}

fn high(mark: u64) -> u32 {
    low(mark >> 32)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    fn seconds(marks: &Marks, key: [u8; 16]) -> Vec<u32> {
        let mut all = Vec::new();
        let _ = marks.find(key, |second| {
            all.push(second);
            Ok::<_, Infallible>(false)
        });
        all.sort_unstable();
        all
    }

    proptest! {
        /// Whatever is put in and dropped, also of keys that differ in nothing the marks know: what is there is found.
        #[test]
        fn every_mark_is_found_until_it_is_dropped(
            puts in prop::collection::vec((0_u8..40, 0_u32..50, any::<bool>()), 0..400), drop_at in 0_usize..400, before in 0_u32..50
        ) {
            let key = |n: u8| { let mut key = [n; 16]; key[0] = n % 5 * 60; key[1..4].fill(0); key };
            let mut marks = Marks::default();
            let mut model: HashMap<u32, Vec<u32>> = HashMap::new();
            for (nth, (n, second, timeless)) in puts.into_iter().enumerate() {
                if nth == drop_at {
                    marks.drop_before(before);
                    for seconds in model.values_mut() {
                        seconds.retain(|second| *second >= before && *second != TIMELESS);
                    }
                }
                let second = if timeless { TIMELESS } else { second };
                marks.put(key(n), second);
                model.entry(part_of(key(n))).or_default().push(second);
            }
            for n in 0..40 {
                let mut expected = model.get(&part_of(key(n))).cloned().unwrap_or_default();
                expected.sort_unstable();
                prop_assert_eq!(seconds(&marks, key(n)), expected);
            }
        }
    }

    #[test]
    fn a_mark_takes_ten_to_fifteen_bytes() {
        let mut marks = Marks::default();
        for n in 0_u64..1_000_000 {
            marks.put(crate::event::EventKey::of("test", &[&n.to_le_bytes()]).0, 1);
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let bytes = (marks.slots.capacity() * 8) as f64 / marks.taken as f64;
            assert!(n < 1000 || (10.0..=15.1).contains(&bytes), "{bytes} bytes at {n}");
        }
    }
}
