//! The end of a trial: nothing is wrong any more, and every number must be the one that happened.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use audit_exporter::exporter::Exporter;
use audit_exporter::exposition::Format;
use audit_exporter::ledger::TALLY_CELL;
use audit_exporter::simulate::{PlacedBy, TruthOf};
use audit_exporter::window::{Window, floor};
use chrono::{DateTime, TimeDelta, Utc};
use redb::{ReadableDatabase, ReadableTable, TableDefinition};
use tokio::time::Instant;

use super::super::checks::{beyond, counted, happened, sum, sums, within_limits};
use super::super::machine::Weather;
use super::entry::Entry;
use super::{HISTORY, Outcome, SECOND, Trial};
use crate::exposed::Exposed;

/// A trial that is not at rest by then never will be.
const SETTLE_MAX: Duration = Duration::from_hours(30);

impl Trial {
    /// No trouble and no news any more: everything is counted, exactly, soon and for good.
    pub(super) async fn settle(&mut self) -> Outcome {
        self.tell("peace");
        self.at_peace = true;
        self.make_room();
        self.road.set(Weather::default());
        self.world.set_faults(self.fixed.clone());
        for entry in &mut self.entries {
            entry.configured |= entry.name != SECOND;
        }
        if self.life.as_ref().is_some_and(|life| life.astray) {
            self.tell("the clock is set right");
            self.die("killed");
        }
        if self.life.is_none() {
            self.boot(None).await?;
        }
        self.apply().await?;
        self.world.fall_silent();
        let end = Instant::now() + SETTLE_MAX;
        let mut exact_for = 0;
        let mut last = String::new();
        while exact_for < 3 {
            if Instant::now() > end {
                return Err(format!("not exact after {SETTLE_MAX:?} of peace: {last}"));
            }
            self.rest(Duration::from_mins(11)).await;
            if self.life.is_none() {
                // a crash that was still to come
                self.boot(None).await?;
            }
            self.scrape(true).await?;
            match self.exact().await {
                Ok(()) => exact_for += 1,
                Err(why) => (exact_for, last) = (0, why),
            }
        }
        let page = self.life.as_ref().map(|life| Arc::clone(&life.exporter)).ok_or("dead")?.metrics(Format::Text).await;
        let page = Exposed::parse(&String::from_utf8_lossy(&page));
        if page.sum("audit_source_lost_seconds_total", &[]) > 0.0 {
            self.count("history given up");
        }
        let sent = self.road.sent();
        for (name, limits) in &self.limits {
            let sent = sent.iter().find(|(source, _)| source.to_string() == *name).map_or(&[][..], |(_, sent)| sent);
            within_limits(sent, limits).map_err(|why| format!("{name}: {why}"))?;
        }
        self.memory_is_bounded()?;
        self.check_quietly()
    }

    /// Whether every number is the one that happened.
    async fn exact(&mut self) -> Outcome {
        let Some(life) = &self.life else { return Err("dead".into()) };
        let exporter = Arc::clone(&life.exporter);
        let Some(page) = self.unless_dead(async { exporter.metrics(Format::Text).await }).await else {
            return Err("dead".into());
        };
        let page = self.see(&String::from_utf8(page).unwrap())?;
        let truth = self.world.truth();
        let sum_of = |entry: &Entry, family: &str| page.sum(family, &[&format!("source=\"{}\"", entry.name)]);
        let configured = || self.entries.iter().filter(|entry| entry.configured);
        for entry in configured() {
            for (gauge, expected) in [("audit_source_up", 1.0), ("audit_source_catching_up", 0.0)] {
                if sum_of(entry, gauge) != expected {
                    return Err(format!("{}: {gauge} is {}", entry.name, sum_of(entry, gauge)));
                }
            }
            let lost = sum_of(entry, "audit_source_lost_seconds_total");
            if lost > 0.0 && entry.catch_up.is_none() {
                return Err(format!("{}: {lost} s are given up without need", entry.name));
            }
        }
        for entry in configured() {
            let (counted, happened) = (counted(&page, entry.name), happened(&truth, entry.service.system));
            let same = if self.flooded { sum(&counted) == sum(&happened) } else { counted == happened };
            if !same && entry.catch_up.is_some() {
                self.only_what_is_said_is_missing(&exporter, entry, sum_of(entry, "audit_source_lost_seconds_total"))
                    .await?;
                continue;
            }
            if !same {
                let missing = beyond(&happened, &counted);
                return Err(format!(
                    "{}: {} counted of {}, missing {missing:?}",
                    entry.name,
                    sum(&counted),
                    sum(&happened)
                ));
            }
            for (family, expected) in sums(&truth, entry.service.system) {
                if sum_of(entry, family) != expected as f64 {
                    return Err(format!("{}: {family} is {} and not {expected}", entry.name, sum_of(entry, family)));
                }
            }
        }
        Ok(())
    }

    /// Where little is read back: what is not counted lies in no more time than is said to be lost, or was over when
    /// counting began.
    async fn only_what_is_said_is_missing(&self, exporter: &Exporter, entry: &Entry, lost: f64) -> Outcome {
        let name = entry.name;
        let lived = self.begun.elapsed();
        if lost > 0.0 && (entry.catch_up.is_some_and(|catch_up| lived < catch_up) || lost > lived.as_secs_f64()) {
            return Err(format!("{name}: {lost} s are given up without need"));
        }
        let subject = audit_exporter::control::verify_input(exporter, name).ok_or("gone")?;
        let (from, to) = {
            let state = subject.book.state();
            let read = state.checkpoint().ok_or("nothing was read")?;
            (state.tallied_from().ok_or("nothing was tallied")?, read.head)
        };
        let tallies = subject.ledger.tallies(&subject.book, Window { from, to }).await.map_err(|e| e.to_string())?;
        let mut counted: BTreeMap<DateTime<Utc>, u64> = BTreeMap::new();
        for ((cell, _), count) in tallies {
            *counted.entry(cell).or_default() += count;
        }
        let skew = TimeDelta::seconds(self.fixed.of(entry.service.system).clock_skew_seconds);
        let begun = self.clock.now() - lived - HISTORY + skew;
        let mut unread = Duration::ZERO;
        let mut cell = floor(from.max(begun), TALLY_CELL) + TALLY_CELL;
        while cell + TALLY_CELL < to {
            let happened = |placed_by| {
                let (from, to) = (Some(cell - skew), Some(cell + TALLY_CELL - skew));
                let of = TruthOf { from, to, placed_by, ..TruthOf::default() };
                self.world.truth_of(&of).total(entry.service.system)
            };
            let counted = counted.get(&cell).copied().unwrap_or(0);
            // an event that got another time after it was counted stays where it was, if that time is not read again
            let most = happened(PlacedBy::EitherTime);
            if counted > most {
                return Err(format!("{name}: {counted} of {most} are counted from {cell} on"));
            }
            if counted < happened(PlacedBy::BothTimes) {
                unread += TALLY_CELL;
            }
            cell += TALLY_CELL;
        }
        // a cell may be lost in part
        if !unread.is_zero() && (lost == 0.0 || unread.as_secs_f64() > lost + 3600.0) {
            return Err(format!("{name}: {} s are not read, and {lost} s are said to be lost", unread.as_secs()));
        }
        if lost == 0.0 && from <= begun {
            return Err(format!("{name}: events are missing, but no time"));
        }
        Ok(())
    }

    /// What is remembered of single events is of the time that may be read again, no more.
    fn memory_is_bounded(&mut self) -> Outcome {
        self.die("killed");
        let database = self.disk.opener()().map_err(|error| error.to_string())?;
        let read = database.begin_read().unwrap();
        let sources = read.open_table(TableDefinition::<&str, (u32, &[u8])>::new("sources")).unwrap();
        let (seen, timeless) = (
            read.open_table(TableDefinition::<&[u8; 24], ()>::new("seen")).unwrap(),
            read.open_table(TableDefinition::<&[u8; 20], u32>::new("timeless")).unwrap(),
        );
        let number = |bytes: &[u8]| u32::from_be_bytes(*bytes.first_chunk().unwrap());
        for entry in self.entries.iter().filter(|entry| entry.configured && !entry.service.is_feed) {
            let row = sources.get(format!("{}/{}", entry.service.system, entry.name).as_str()).unwrap().unwrap();
            let (id, record) = row.value();
            let record: serde_json::Value = serde_json::from_slice(record).unwrap();
            let time = |name: &str| record["checkpoint"][name].as_str().unwrap().parse::<DateTime<Utc>>().unwrap();
            // an overlap and an hour, from hour to hour
            let oldest = time("origin").timestamp();
            if time("head").timestamp() - oldest > (entry.overlap + Duration::from_hours(2)).as_secs().cast_signed() {
                return Err(format!("{}: keys are kept from {} on", entry.name, time("origin")));
            }
            let kept = seen.iter().unwrap().map(|row| *row.unwrap().0.value()).filter(|key| number(key) == id);
            let old = kept.filter(|key| i64::from(number(&key[4..])) < oldest).count();
            let kept = timeless.iter().unwrap().map(Result::unwrap).filter(|(key, _)| number(key.value()) == id);
            let old = old + kept.filter(|(_, hour)| i64::from(hour.value()) < oldest / 3600).count();
            if old > 0 {
                return Err(format!("{}: {old} keys from before {} are kept", entry.name, time("origin")));
            }
        }
        Ok(())
    }
}
