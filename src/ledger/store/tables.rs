//! The tables of the ledger in a redb database: what is in them, how older layouts become this one, how they are copied.
//!
//! Promises: keys sort by source first, then by time, so that what belongs together lies together; a table that this program
//! does not know is an error where all are copied.
//!
//! Leaves to others: transactions (`redb.rs`), the file (`file.rs`).

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use redb::{
    Database, DatabaseError, Entry, MultimapTableHandle, ReadTransaction, ReadableDatabase, ReadableTable,
    ReadableTableMetadata, Table, TableDefinition, TableHandle, WriteTransaction,
};

use super::marks::{Marks, TIMELESS as WITHOUT_TIME};
use super::{Copied, Loaded, SCHEMA, StoreError, Wanted};
use crate::clock::delta;
use crate::event::EventKey;
use crate::ledger::backlog::highest;
use crate::ledger::cells::{TALLY_CELL, hour_of, second_of};
use crate::ledger::count::{Asked, Change, Forgotten, Keys, Recalled, SeriesRow};
use crate::ledger::series::{Counter, SeriesKey};
use crate::ledger::state::{Record, Series, State, Tallies, Who};
use crate::window::{Checkpoint, Window, floor};

macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for StoreError {
            fn from(error: $error) -> Self {
                Self::Redb(Box::new(error.into()))
            }
        }
    )*};
}
from_redb!(DatabaseError, redb::TransactionError, redb::TableError, redb::StorageError, redb::CommitError);

/// `schema`: the layout. `commits`: how many transactions this store has seen. `generation`: see [`Store::generations`].
/// `copied`: there in a backup, until it is put to use.
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// `system/name` → the number the other tables use, and the record as JSON.
const SOURCES: TableDefinition<&str, (u32, &[u8])> = TableDefinition::new("sources");
/// [`SeriesKey::to_bytes`] → value, birth (Unix milliseconds), released.
const SERIES: TableDefinition<&[u8], (u64, i64, bool)> = TableDefinition::new("series");
/// Source, second since 1970, key: what was counted. In the order of time, because what is read
/// together happened together: the pages of the tree that a commit rewrites are few.
const SEEN: TableDefinition<&[u8; 24], ()> = TableDefinition::new("seen");
/// Source, key → hour first seen: what was counted of events without any time.
const TIMELESS: TableDefinition<&[u8; 20], u32> = TableDefinition::new("timeless");
/// Source, second, key → [`DocumentRecord`] as JSON.
const DOCUMENTS: TableDefinition<&[u8; 24], &[u8]> = TableDefinition::new("documents");
/// Source, then [`SeriesKey::to_bytes`] with the second the cell begins instead of the source → events
/// counted in that cell.
const TALLIES: TableDefinition<&[u8], u64> = TableDefinition::new("tallies");
/// The same of events that an outage held back, as long as events of that time may still come.
const BACKLOG: TableDefinition<&[u8], u64> = TableDefinition::new("backlog");
/// [`SeriesKey::to_bytes`] → [`Peaks`] as JSON.
const BACKLOG_PEAKS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("backlog_peaks");
/// A number of the store itself; `None` where it has none, as an empty store or an older layout.
pub(super) fn meta_of(database: &Database, name: &str) -> Result<Option<u64>, StoreError> {
    match database.begin_read()?.open_table(META) {
        Ok(meta) => Ok(meta.get(name)?.map(|number| number.value())),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn count_commit(write: &WriteTransaction) -> Result<u64, StoreError> {
    let mut meta = write.open_table(META)?;
    let commits = meta.get("commits")?.map_or(0, |commits| commits.value()) + 1;
    meta.insert("commits", commits)?;
    Ok(commits)
}

/// From now on the store is one that began, or was restored, now. It grows also where the clock was set back.
pub(super) fn next_generation(write: &WriteTransaction, now: DateTime<Utc>) -> Result<u64, StoreError> {
    let mut meta = write.open_table(META)?;
    let before = meta.get("generation")?.map_or(0, |generation| generation.value());
    let generation = u64::try_from(now.timestamp_millis()).unwrap_or(0).max(before + 1);
    meta.insert("generation", generation)?;
    meta.remove("copied")?;
    Ok(generation)
}

pub(super) fn create_tables(database: &Database) -> Result<(), StoreError> {
    let write = database.begin_write()?;
    write.open_table(META)?.insert("schema", SCHEMA)?;
    write.open_table(SOURCES)?;
    write.open_table(SERIES)?;
    write.open_table(SEEN)?;
    write.open_table(TIMELESS)?;
    write.open_table(DOCUMENTS)?;
    write.open_table(TALLIES)?;
    write.open_table(BACKLOG)?;
    write.open_table(BACKLOG_PEAKS)?;
    write.commit()?;
    Ok(())
}

/// Copies every table into a new database, in one transaction, and marks it as a copy.
pub(super) fn copy_tables(from: &ReadTransaction, to: &Database) -> Result<(), StoreError> {
    let mut left = from.list_tables()?.map(|table| table.name().to_owned()).collect::<Vec<_>>();
    left.extend(from.list_multimap_tables()?.map(|table| table.name().to_owned()));
    let write = to.begin_write()?;
    copy_table(from, &write, META, &mut left)?;
    copy_table(from, &write, SOURCES, &mut left)?;
    copy_table(from, &write, SERIES, &mut left)?;
    copy_table(from, &write, SEEN, &mut left)?;
    copy_table(from, &write, TIMELESS, &mut left)?;
    copy_table(from, &write, DOCUMENTS, &mut left)?;
    copy_table(from, &write, TALLIES, &mut left)?;
    copy_table(from, &write, BACKLOG, &mut left)?;
    copy_table(from, &write, BACKLOG_PEAKS, &mut left)?;
    if !left.is_empty() {
        return Err(StoreError::UnknownTables(left.join(", ")));
    }
    // opening it replaces what was counted since
    write.open_table(META)?.insert("copied", 1)?;
    write.commit()?;
    Ok(())
}

fn copy_table<K: redb::Key + 'static, V: redb::Value + 'static>(
    from: &ReadTransaction,
    to: &WriteTransaction,
    table: TableDefinition<'_, K, V>,
    left: &mut Vec<String>,
) -> Result<(), StoreError> {
    let rows = from.open_table(table)?;
    let mut copy = to.open_table(table)?;
    for row in rows.iter()? {
        let (key, value) = row?;
        copy.insert(key.value(), value.value())?;
    }
    left.retain(|name| name != table.name());
    Ok(())
}

/// What a store holds, in short.
pub(super) fn contents(read: &ReadTransaction) -> Result<Copied, StoreError> {
    let mut events = 0;
    for row in read.open_table(SERIES)?.iter()? {
        let (key, value) = row?;
        if SeriesKey::from_bytes(key.value()).is_some_and(|key| key.counter == Counter::Events) {
            events += value.value().0;
        }
    }
    let commit = read.open_table(META)?.get("commits")?.map_or(0, |commits| commits.value());
    Ok(Copied { sources: read.open_table(SOURCES)?.len()?, events, commit })
}

/// The same of a database that is open.
pub(super) fn contents_of(database: &Database) -> Result<Copied, StoreError> {
    contents(&database.begin_read()?)
}

/// From layout 1 to 2. What was counted until now is in no tally: those of each source are whole
/// from behind its newest event on.
pub(super) fn add_tallies(database: &Database) -> Result<(), StoreError> {
    let write = database.begin_write()?;
    {
        write.open_table(TALLIES)?;
        let mut sources = write.open_table(SOURCES)?;
        let mut records: Vec<(String, u32, Record)> = Vec::new();
        for row in sources.iter()? {
            let (path, row) = row?;
            let (id, record) = row.value();
            records.push((path.value().to_owned(), id, serde_json::from_slice(record)?));
        }
        for (path, id, mut record) in records {
            let newest = record.checkpoint.as_ref().map(|read| read.head).max(record.last_event);
            record.tallied_from = newest.map(|newest| floor(newest, TALLY_CELL) + delta(TALLY_CELL));
            sources.insert(path.as_str(), (id, serde_json::to_vec(&record)?.as_slice()))?;
        }
        write.open_table(META)?.insert("schema", 2)?;
    }
    write.commit()?;
    Ok(())
}

/// From layout 2 to 3.
pub(super) fn add_backlog(database: &Database) -> Result<(), StoreError> {
    let write = database.begin_write()?;
    write.open_table(BACKLOG)?;
    write.open_table(BACKLOG_PEAKS)?;
    write.open_table(META)?.insert("schema", 3)?;
    write.commit()?;
    Ok(())
}

fn last_number(sources: &impl ReadableTable<&'static str, (u32, &'static [u8])>) -> Result<u32, StoreError> {
    let mut last = 0;
    for row in sources.iter()? {
        last = last.max(row?.1.value().0);
    }
    Ok(last)
}

/// Where the tallies of the cells that begin at `from` or later begin.
fn tally_place(source: u32, from: DateTime<Utc>) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&source.to_be_bytes());
    bytes[4..].copy_from_slice(&second_of(from).to_be_bytes());
    bytes
}

fn tally_key(source: u32, second: u32, series: &SeriesKey) -> Vec<u8> {
    [&source.to_be_bytes()[..], &series.to_bytes(second)].concat()
}

/// What a table of counts has under a key.
fn count_at(table: &Table<'_, &'static [u8], u64>, key: &[u8]) -> Result<u64, StoreError> {
    Ok(table.get(key)?.map_or(0, |count| count.value()))
}

fn add_to(table: &mut Table<'_, &'static [u8], u64>, key: &[u8], count: u64) -> Result<(), StoreError> {
    let before = count_at(table, key)?;
    table.insert(key, before + count)?;
    Ok(())
}

fn filed_key(source: u32, filed_at: DateTime<Utc>, key: [u8; 16]) -> [u8; 24] {
    seen_key(source, second_of(filed_at), key)
}

fn seen_key(source: u32, second: u32, key: [u8; 16]) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..4].copy_from_slice(&source.to_be_bytes());
    bytes[4..8].copy_from_slice(&second.to_be_bytes());
    bytes[8..].copy_from_slice(&key);
    bytes
}

/// The second and the key of a row of [`SEEN`].
fn parts_of(row: &[u8; 24]) -> (u32, [u8; 16]) {
    let [_, _, _, _, a, b, c, d, ..] = *row;
    (u32::from_be_bytes([a, b, c, d]), *row.last_chunk().expect("the key has 24 bytes"))
}

/// Before every key of a source.
fn first_key(source: u32) -> [u8; 24] {
    filed_key(source, DateTime::UNIX_EPOCH, [0; 16])
}

fn timeless_key(source: u32, key: [u8; 16]) -> [u8; 20] {
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&source.to_be_bytes());
    bytes[4..].copy_from_slice(&key);
    bytes
}

/// Whether the key was there; a key that was is not written again, so that reading again costs
/// no writing.
fn insert_if_new<K: redb::Key, V: redb::Value + 'static>(
    place: Entry<'_, K, V>,
    value: V::SelfType<'_>,
) -> Result<bool, StoreError> {
    match place {
        Entry::Occupied(_) => Ok(true),
        Entry::Vacant(place) => {
            place.insert(value)?;
            Ok(false)
        }
    }
}

/// The keys of a source, by their time and by themselves.
struct Remembered<'a> {
    source: u32,
    seen: Table<'a, &'static [u8; 24], ()>,
    timeless: Table<'a, &'static [u8; 20], u32>,
    marks: &'a mut Marks,
}

impl<'a> Remembered<'a> {
    /// Reads the marks from the tables where they are not known.
    fn open(write: &'a WriteTransaction, source: u32, known: &'a mut HashMap<u32, Marks>) -> Result<Self, StoreError> {
        use std::collections::hash_map::Entry;
        let (seen, timeless) = (write.open_table(SEEN)?, write.open_table(TIMELESS)?);
        let marks = match known.entry(source) {
            Entry::Occupied(marks) => marks.into_mut(),
            Entry::Vacant(place) => {
                let mut marks = Marks::default();
                for row in seen.range::<&[u8; 24]>(&first_key(source)..&first_key(source + 1))? {
                    let (second, key) = parts_of(row?.0.value());
                    marks.put(key, second);
                }
                put_timeless(&mut marks, source, &timeless)?;
                place.insert(marks)
            }
        };
        Ok(Self { source, seen, timeless, marks })
    }

    /// Makes sure that a key is remembered with its second, and says whether it was with any.
    ///
    /// A service may give an event another time than it had: it is remembered with both, and counted once.
    fn remember(&mut self, key: EventKey, second: Option<u32>, this_hour: u32) -> Result<Recalled, StoreError> {
        let Self { source, seen, timeless, marks } = self;
        let EventKey(key) = key;
        let known_here = match second {
            Some(second) => insert_if_new(seen.entry(&seen_key(*source, second, key))?, ())?,
            None => insert_if_new(timeless.entry(&timeless_key(*source, key))?, this_hour)?,
        };
        if known_here {
            return Ok(Recalled::Known);
        }
        let before = marks.find(key, |second| -> Result<bool, StoreError> {
            Ok(match second {
                WITHOUT_TIME => timeless.get(&timeless_key(*source, key))?.is_some(),
                second => seen.get(&seen_key(*source, second, key))?.is_some(),
            })
        })?;
        marks.put(key, second.unwrap_or(WITHOUT_TIME));
        Ok(match (before, second) {
            (None, _) => Recalled::New,
            (Some(from), Some(to)) if from != WITHOUT_TIME => Recalled::Moved { from, to },
            (Some(_), _) => Recalled::Known,
        })
    }

    fn remember_taint(&mut self, key: EventKey, second: u32, candidates: &[EventKey]) -> Result<Recalled, StoreError> {
        let mut known = false;
        for candidate in candidates {
            known = known || self.seen.get(&seen_key(self.source, second, candidate.0))?.is_some();
        }
        if !known {
            self.seen.insert(&seen_key(self.source, second, key.0), ())?;
        }
        Ok(if known { Recalled::Known } else { Recalled::New })
    }
}

/// Looks the keys of a page up, and remembers them.
pub(super) fn recall(
    write: &WriteTransaction,
    source: u32,
    keys: &Keys,
    marks: &mut HashMap<u32, Marks>,
) -> Result<Vec<Recalled>, StoreError> {
    if keys.asked.is_empty() {
        return Ok(Vec::new());
    }
    let mut remembered = Remembered::open(write, source, marks)?;
    let recall = |asked: &Asked| match asked {
        Asked::Item { key, second } => remembered.remember(*key, *second, keys.hour),
        Asked::Taint { key, second, candidates } => remembered.remember_taint(*key, *second, candidates),
    };
    keys.asked.iter().map(recall).collect()
}

fn put_timeless(
    marks: &mut Marks,
    source: u32,
    timeless: &impl ReadableTable<&'static [u8; 20], u32>,
) -> Result<(), StoreError> {
    let (first, after) = (timeless_key(source, [0; 16]), timeless_key(source + 1, [0; 16]));
    for row in timeless.range::<&[u8; 20]>(&first..&after)? {
        marks.put(*row?.0.value().last_chunk().expect("the key has 20 bytes"), WITHOUT_TIME);
    }
    Ok(())
}

/// Writes what a page changes. Its keys are remembered already.
pub(super) fn write_change(
    write: &WriteTransaction,
    source: u32,
    path: &str,
    change: &mut Change,
    marks: &mut HashMap<u32, Marks>,
) -> Result<(), StoreError> {
    write_backlog(write, source, change)?;
    write_tallies(write, source, change)?;
    if !change.documents.is_empty() {
        let mut table = write.open_table(DOCUMENTS)?;
        for (key, record) in &change.documents {
            let place = filed_key(source, record.filed_at, key.0);
            table.insert(&place, serde_json::to_vec(record)?.as_slice())?;
        }
    }
    forget(write, source, &change.forgotten, marks)?;
    write_series(write, source, &change.series)?;
    let record = serde_json::to_vec(&change.record)?;
    write.open_table(SOURCES)?.insert(path, (source, record.as_slice()))?;
    Ok(())
}

pub(super) fn write_series(write: &WriteTransaction, source: u32, rows: &[SeriesRow]) -> Result<(), StoreError> {
    let mut table = write.open_table(SERIES)?;
    for SeriesRow { key, value, born, released } in rows {
        table.insert(key.to_bytes(source).as_slice(), (*value, born.timestamp_millis(), *released))?;
    }
    Ok(())
}

/// Adds what an outage held back to its cells, and finds the highest 15 minutes that got any of it.
fn write_backlog(write: &WriteTransaction, source: u32, change: &mut Change) -> Result<(), StoreError> {
    if change.backlog.is_empty() && change.backlog_over.is_empty() {
        return Ok(());
    }
    let mut cells = write.open_table(BACKLOG)?;
    let mut peaks = write.open_table(BACKLOG_PEAKS)?;
    for held_back in &mut change.backlog {
        let series = &held_back.series;
        for (cell, count) in &held_back.cells {
            add_to(&mut cells, &tally_key(source, *cell, series), *count)?;
        }
        let count_of = |cell| count_at(&cells, &tally_key(source, cell, series));
        if let Some(peak) = highest(held_back.cells.keys().copied(), change.now, count_of)? {
            held_back.peaks.add(peak);
        }
        peaks.insert(series.to_bytes(source).as_slice(), serde_json::to_vec(&held_back.peaks)?.as_slice())?;
    }
    for series in &change.backlog_over {
        peaks.remove(series.to_bytes(source).as_slice())?;
    }
    Ok(())
}

fn write_tallies(write: &WriteTransaction, source: u32, change: &Change) -> Result<(), StoreError> {
    if change.tallies.is_empty() && change.moved.is_empty() {
        return Ok(());
    }
    let mut table = write.open_table(TALLIES)?;
    for ((cell, series), count) in &change.tallies {
        add_to(&mut table, &tally_key(source, *cell, series), *count)?;
    }
    // tallies are compared with what the service says now
    for moved in &change.moved {
        let (from, to) = (tally_key(source, moved.from, &moved.series), tally_key(source, moved.to, &moved.series));
        let left = count_at(&table, &from)?;
        if left == 0 {
            continue;
        }
        table.remove(from.as_slice())?;
        if left > 1 {
            table.insert(from.as_slice(), left - 1)?;
        }
        add_to(&mut table, &to, 1)?;
    }
    Ok(())
}

fn forget(
    write: &WriteTransaction,
    source: u32,
    forgotten: &Forgotten,
    marks: &mut HashMap<u32, Marks>,
) -> Result<(), StoreError> {
    if let Some(before) = forgotten.keys {
        let after = filed_key(source, before, [0; 16]);
        write.open_table(SEEN)?.retain_in::<&[u8; 24], _>(&first_key(source)..&after, |_, ()| false)?;
        let first = timeless_key(source, [0; 16]);
        let after = timeless_key(source + 1, [0; 16]);
        let mut timeless = write.open_table(TIMELESS)?;
        timeless.retain_in::<&[u8; 20], _>(&first..&after, |_, hour| hour >= hour_of(before))?;
        if let Some(marks) = marks.get_mut(&source) {
            marks.drop_before(second_of(before));
            put_timeless(marks, source, &timeless)?;
        }
    }
    for (table, before) in [(TALLIES, forgotten.tallies), (BACKLOG, forgotten.backlog)] {
        let Some(before) = before else { continue };
        let (first, after) = (tally_place(source, DateTime::UNIX_EPOCH), tally_place(source, before));
        write.open_table(table)?.retain_in::<&[u8], _>(first.as_slice()..after.as_slice(), |_, _| false)?;
    }
    if let Some(before) = forgotten.documents {
        let (first, after) = (first_key(source), filed_key(source, before, [0; 16]));
        write.open_table(DOCUMENTS)?.retain_in::<&[u8; 24], _>(&first..&after, |_, _| false)?;
    }
    Ok(())
}

/// The checkpoint of a source as it is stored.
pub(super) fn checkpoint_of(write: &WriteTransaction, path: &str) -> Result<Option<Checkpoint>, StoreError> {
    /// The part of a [`Record`] that is asked for.
    #[derive(serde::Deserialize)]
    struct Place {
        checkpoint: Option<Checkpoint>,
    }
    let sources = write.open_table(SOURCES)?;
    let row = sources.get(path)?;
    let place = row.map(|row| serde_json::from_slice::<Place>(row.value().1)).transpose()?;
    Ok(place.and_then(|place| place.checkpoint))
}

/// The number and the state of each source; `None` where nothing is recorded of it.
pub(super) fn load(database: &Database, sources: &[Who]) -> Result<Vec<Option<Loaded>>, StoreError> {
    let read = database.begin_read()?;
    sources.iter().map(|who| load_one(&read, &who.path())).collect()
}

fn load_one(read: &ReadTransaction, path: &str) -> Result<Option<Loaded>, StoreError> {
    let known = read.open_table(SOURCES)?.get(path)?.map(|row| {
        let (id, record) = row.value();
        (id, serde_json::from_slice::<Record>(record))
    });
    let Some((id, record)) = known else { return Ok(None) };
    let mut state = State { record: record?, ..State::default() };
    let first = id.to_be_bytes();
    let after = (id + 1).to_be_bytes();
    for row in read.open_table(SERIES)?.range(first.as_slice()..after.as_slice())? {
        let (key, value) = row?;
        let (value, born, released) = value.value();
        // a family of a version to come is left alone
        if let Some(key) = SeriesKey::from_bytes(key.value()) {
            let born = DateTime::from_timestamp_millis(born).unwrap_or_default();
            state.series.insert(key.into(), Series::new(value, born, released));
        }
    }
    for row in read.open_table(DOCUMENTS)?.range::<&[u8; 24]>(&first_key(id)..&first_key(id + 1))? {
        let (key, record) = row?;
        let key = EventKey(*key.value().last_chunk().expect("the key has 24 bytes"));
        state.documents.insert(key, serde_json::from_slice(record.value())?);
    }
    for row in read.open_table(BACKLOG_PEAKS)?.range(first.as_slice()..after.as_slice())? {
        let (key, peaks) = row?;
        if let Some(key) = SeriesKey::from_bytes(key.value()) {
            state.backlog.insert(key, serde_json::from_slice(peaks.value())?);
        }
    }
    Ok(Some(Loaded { id, state }))
}

/// The tallies of a source whose cells begin in `window`.
pub(super) fn tallies(database: &Database, source: u32, window: Window) -> Result<Tallies, StoreError> {
    let mut tallies = Tallies::new();
    let read = database.begin_read()?;
    let (first, after) = (tally_place(source, window.from), tally_place(source, window.to.max(window.from)));
    for row in read.open_table(TALLIES)?.range(first.as_slice()..after.as_slice())? {
        let (key, count) = row?;
        let key = &key.value()[4..];
        let second = key.first_chunk().map_or(0, |second| u32::from_be_bytes(*second));
        if let Some(series) = SeriesKey::from_bytes(key) {
            let cell = DateTime::from_timestamp(second.into(), 0).unwrap_or_default();
            tallies.insert((cell, series), count.value());
        }
    }
    Ok(tallies)
}

/// Brings sources and series into being, and returns the number of each source.
pub(super) fn register(
    write: &WriteTransaction,
    wanted: &[Wanted],
    now: DateTime<Utc>,
) -> Result<Vec<u32>, StoreError> {
    let record = serde_json::to_vec(&Record::default())?;
    let mut sources = write.open_table(SOURCES)?;
    let mut series = write.open_table(SERIES)?;
    let mut last = last_number(&sources)?;
    let mut ids = Vec::with_capacity(wanted.len());
    for Wanted { who, id, series: missing } in wanted {
        let id = if let Some(id) = id {
            *id
        } else {
            last += 1;
            sources.insert(who.path().as_str(), (last, record.as_slice()))?;
            last
        };
        for key in missing {
            series.insert(key.to_bytes(id).as_slice(), (0, now.timestamp_millis(), false))?;
        }
        ids.push(id);
    }
    Ok(ids)
}
