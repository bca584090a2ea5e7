//! A store in memory, as simple as possible: a second implementation for the tests of the store's promises.
//!
//! Promises: those of `store.rs`, by looking at everything each time; clones share what they hold, as a restart does.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::File;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::{Copied, Count, Loaded, Place, Store, StoreError, Wanted};
use crate::event::EventKey;
use crate::ledger::backlog::{Peaks, highest};
use crate::ledger::cells::{hour_of, second_of};
use crate::ledger::count::{Asked, Change, Counted, Keys, Recalled, SeriesRow};
use crate::ledger::series::SeriesKey;
use crate::ledger::state::{Record, Series, State, Tallies, Who};
use crate::page::DocumentRecord;
use crate::window::Window;

#[derive(Clone, Default)]
pub(in crate::ledger) struct MemoryStore(Arc<Mutex<Tables>>);

#[derive(Clone, Default)]
struct Tables {
    sources: Vec<(String, Record)>,
    series: BTreeMap<(u32, SeriesKey), SeriesRow>,
    /// With the second, `None` for none, and the hour each was seen in.
    keys: BTreeMap<(u32, EventKey, Option<u32>), u32>,
    documents: BTreeMap<(u32, EventKey), DocumentRecord>,
    tallies: BTreeMap<(u32, u32, SeriesKey), u64>,
    backlog: BTreeMap<(u32, u32, SeriesKey), u64>,
    peaks: BTreeMap<(u32, SeriesKey), Peaks>,
    generation: u64,
}

impl Tables {
    fn load(&mut self, who: &Who) -> Option<Loaded> {
        let id = self.id_of(who)?;
        let mut state = State { record: self.record(id).clone(), ..State::default() };
        for ((_, key), row) in self.series.iter().filter(|((of, _), _)| *of == id) {
            state.series.insert(key.clone().into(), Series::new(row.value, row.born, row.released));
        }
        let documents = self.documents.iter().filter(|((of, _), _)| *of == id);
        state.documents = documents.map(|((_, key), record)| (*key, record.clone())).collect();
        let peaks = self.peaks.iter().filter(|((of, _), _)| *of == id);
        state.backlog = peaks.map(|((_, series), peaks)| (series.clone(), peaks.clone())).collect();
        Some(Loaded { id, state })
    }

    fn id_of(&self, who: &Who) -> Option<u32> {
        let at = self.sources.iter().position(|(path, _)| *path == who.path())?;
        Some(u32::try_from(at).unwrap() + 1)
    }

    fn record(&mut self, id: u32) -> &mut Record {
        &mut self.sources[id as usize - 1].1
    }

    fn recall(&mut self, source: u32, asked: &Asked, hour: u32) -> Recalled {
        match asked {
            Asked::Item { key, second } => {
                let before = self.keys.range((source, *key, None)..=(source, *key, Some(u32::MAX)));
                let before: Vec<Option<u32>> = before.map(|((_, _, second), _)| *second).collect();
                if before.contains(second) {
                    return Recalled::Known;
                }
                self.keys.insert((source, *key, *second), hour);
                match (before.last(), second) {
                    (None, _) => Recalled::New,
                    (Some(Some(from)), Some(to)) => Recalled::Moved { from: *from, to: *to },
                    _ => Recalled::Known,
                }
            }
            Asked::Taint { key, second, candidates } => {
                if candidates.iter().any(|candidate| self.keys.contains_key(&(source, *candidate, Some(*second)))) {
                    return Recalled::Known;
                }
                self.keys.insert((source, *key, Some(*second)), hour);
                Recalled::New
            }
        }
    }

    fn write(&mut self, source: u32, change: &mut Change) {
        for held_back in &mut change.backlog {
            for (cell, count) in &held_back.cells {
                *self.backlog.entry((source, *cell, held_back.series.clone())).or_default() += count;
            }
            let count_of = |cell| Ok(self.backlog.get(&(source, cell, held_back.series.clone())).copied().unwrap_or(0));
            let Ok::<_, Infallible>(peak) = highest(held_back.cells.keys().copied(), change.now, count_of);
            held_back.peaks.add(peak.unwrap());
            self.peaks.insert((source, held_back.series.clone()), held_back.peaks.clone());
        }
        for series in &change.backlog_over {
            self.peaks.remove(&(source, series.clone()));
        }
        for ((cell, series), count) in &change.tallies {
            *self.tallies.entry((source, *cell, series.clone())).or_default() += count;
        }
        for moved in &change.moved {
            let from = self.tallies.entry((source, moved.from, moved.series.clone())).or_default();
            if *from > 0 {
                *from -= 1;
                *self.tallies.entry((source, moved.to, moved.series.clone())).or_default() += 1;
            }
        }
        self.tallies.retain(|_, count| *count > 0);
        self.documents.extend(change.documents.iter().map(|(key, record)| ((source, *key), record.clone())));
        let forgotten = &change.forgotten;
        if let Some(before) = forgotten.keys {
            self.keys.retain(|(of, _, second), hour| {
                *of != source || second.map_or(*hour >= hour_of(before), |second| second >= second_of(before))
            });
        }
        for (table, before) in [(&mut self.tallies, forgotten.tallies), (&mut self.backlog, forgotten.backlog)] {
            let before = before.map_or(0, second_of);
            table.retain(|(of, cell, _), _| *of != source || *cell >= before);
        }
        let before = forgotten.documents.map_or(0, second_of);
        self.documents.retain(|(of, _), record| *of != source || second_of(record.filed_at) >= before);
        self.write_series(source, change.series.clone());
        *self.record(source) = change.record.clone();
    }

    fn write_series(&mut self, source: u32, rows: Vec<SeriesRow>) {
        self.series.extend(rows.into_iter().map(|row| ((source, row.key.clone()), row)));
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn load(&self, sources: Vec<Who>) -> Result<Vec<Option<Loaded>>, StoreError> {
        let mut tables = self.0.lock().unwrap();
        Ok(sources.iter().map(|who| tables.load(who)).collect())
    }

    async fn register(&self, wanted: Vec<Wanted>, now: DateTime<Utc>) -> Result<Vec<u32>, StoreError> {
        let mut tables = self.0.lock().unwrap();
        if tables.generation == 0 {
            tables.generation = u64::try_from(now.timestamp_millis()).unwrap();
        }
        let mut ids = Vec::new();
        for Wanted { who, id, series } in wanted {
            let id = id.unwrap_or_else(|| {
                tables.sources.push((who.path(), Record::default()));
                u32::try_from(tables.sources.len()).unwrap()
            });
            let born = |key| SeriesRow { key, value: 0, born: now, released: false };
            tables.write_series(id, series.into_iter().map(born).collect());
            ids.push(id);
        }
        Ok(ids)
    }

    async fn commit(&self, place: Place, keys: Keys, count: Count) -> Result<Counted, StoreError> {
        let mut tables = self.0.lock().unwrap();
        if tables.record(place.id).checkpoint != place.expected {
            return Err(StoreError::Elsewhere);
        }
        let mut changed = tables.clone();
        let recalled: Vec<Recalled> =
            keys.asked.iter().map(|asked| changed.recall(place.id, asked, keys.hour)).collect();
        let mut counted = count(&recalled);
        changed.write(place.id, &mut counted.change);
        *tables = changed;
        Ok(counted)
    }

    async fn write_series(&self, source: u32, rows: Vec<SeriesRow>) -> Result<(), StoreError> {
        self.0.lock().unwrap().write_series(source, rows);
        Ok(())
    }

    async fn tallies(&self, source: u32, window: Window) -> Result<Tallies, StoreError> {
        let tables = self.0.lock().unwrap();
        let mut found = Tallies::new();
        for ((of, cell, series), count) in &tables.tallies {
            let begins = DateTime::from_timestamp((*cell).into(), 0).unwrap();
            if *of == source && window.contains(begins) {
                found.insert((begins, series.clone()), *count);
            }
        }
        Ok(found)
    }

    async fn backup(&self, _: File) -> Result<Copied, StoreError> {
        Err(StoreError::Together("a store in memory has no copy".into()))
    }

    fn generation(&self) -> u64 {
        self.0.lock().unwrap().generation
    }

    async fn distrust(&self) {}
}
