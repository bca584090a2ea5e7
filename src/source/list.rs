//! Splits an answer into its entries, even if some of them are malformed.
//!
//! Promises: an entry that is malformed cannot lose the rest; no answer makes more than [`ENTRIES_MAX`] of them; a list of
//! which not one entry is the service's own is no list of events ([`List::read`], the only way in). The service tells of
//! something else there, and what happened meanwhile has still to be read.
//!
//! Leaves to others: where a list begins (`text.rs`), and what makes an entry the service's own (`source/NAME.rs`).

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// An entry of a list as it stands there, so that one that is malformed cannot lose the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raw<'a>(pub &'a [u8]);

impl<'de: 'a, 'a> Deserialize<'de> for Raw<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&RawValue>::deserialize(deserializer).map(|raw| Raw(raw.get().as_bytes()))
    }
}

/// The events of a page.
pub type RawEvents<'a> = List<Raw<'a>>;

/// How many events or files one answer may hold: the most that is ever asked for (ActivID, where time cannot be
/// cut any finer). In the memory of this program an event is larger than the three bytes `{},` of an answer.
pub const ENTRIES_MAX: usize = 100_000;

/// Why the entries of a list are not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadList {
    /// There are more than [`ENTRIES_MAX`].
    #[error("too many entries")]
    TooMany,
    /// There are entries, and not one of them may be the service's.
    #[error("a list in which no entry has a field of this service")]
    NothingOfItsOwn,
}

/// A list in an answer, as far as it is no longer than [`ENTRIES_MAX`].
#[derive(Debug)]
pub struct List<T> {
    entries: Vec<T>,
    goes_on: bool,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), goes_on: false }
    }
}

impl<T> List<T> {
    /// Each entry with what `read` makes of it. `is_own` says whether it may be one of this service's; it is asked until
    /// the first that is.
    pub fn read<E>(
        self,
        mut read: impl FnMut(&T) -> E,
        is_own: impl Fn(&T, &E) -> bool,
    ) -> Result<Vec<(T, E)>, BadList> {
        if self.goes_on {
            return Err(BadList::TooMany);
        }
        let entries: Vec<(T, E)> = self
            .entries
            .into_iter()
            .map(|entry| {
                let made = read(&entry);
                (entry, made)
            })
            .collect();
        if entries.is_empty() || entries.iter().any(|(entry, made)| is_own(entry, made)) {
            Ok(entries)
        } else {
            Err(BadList::NothingOfItsOwn)
        }
    }

    /// Adds an entry, as far as there is room.
    pub(super) fn push(&mut self, entry: T) {
        if self.entries.len() < ENTRIES_MAX {
            self.entries.push(entry);
        } else {
            self.goes_on = true;
        }
    }

    /// Adds those of another list.
    pub(super) fn append(&mut self, other: Self) {
        self.goes_on |= other.goes_on;
        other.entries.into_iter().for_each(|entry| self.push(entry));
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = List<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<List<T>, A::Error> {
                let mut entries = Vec::new();
                while entries.len() < ENTRIES_MAX {
                    let Some(entry) = list.next_element()? else { return Ok(List { entries, goes_on: false }) };
                    entries.push(entry);
                }
                let mut goes_on = false;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    goes_on = true;
                }
                Ok(List { entries, goes_on })
            }
        }

        deserializer.deserialize_seq(Entries(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_kept_up_to_its_limit_and_read_to_its_end() {
        let list = |entries: usize, end: &str| {
            let text = format!("[{}null{end}", "null,".repeat(entries - 1));
            let list = serde_json::from_str::<List<IgnoredAny>>(&text);
            list.map(|list| list.read(|_| (), |_, ()| true).map(|entries| entries.len()))
        };
        assert_eq!(list(ENTRIES_MAX, "]").unwrap(), Ok(ENTRIES_MAX));
        assert_eq!(list(ENTRIES_MAX + 1, "]").unwrap(), Err(BadList::TooMany));
        assert!(list(ENTRIES_MAX + 1, "").is_err(), "cut off");
    }

    #[test]
    fn a_list_of_which_nothing_is_the_service_s_own_is_none() {
        let read = |text| {
            let list: RawEvents<'_> = serde_json::from_str(text).unwrap();
            let is_own = |Raw(raw): &Raw<'_>, (): &()| raw.starts_with(b"{");
            list.read(|_| (), is_own).map(|entries| entries.len())
        };
        assert_eq!(read("[]"), Ok(0));
        assert_eq!(read("[1, {}]"), Ok(2));
        assert_eq!(read("[[[]]]"), Err(BadList::NothingOfItsOwn));
    }
}
