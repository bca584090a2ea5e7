//! What is looked at while a trial goes on.

use std::sync::Arc;

use audit_exporter::event::System;
use audit_exporter::exposition::Format;
use audit_exporter::ledger::{BACKLOG_CELLS, TALLY_CELL};
use audit_exporter::simulate::{self, TruthOf};
use chrono::{DateTime, TimeDelta};

use super::super::checks::{backlog, beyond, counted, happened, sum, sums};
use super::{Outcome, Trial};
use crate::exposed::Exposed;

fn is_feed(system: System) -> bool {
    simulate::service(system.as_str()).is_some_and(|service| service.is_feed)
}

impl Trial {
    pub(super) async fn scrape(&mut self, closely: bool) -> Outcome {
        let Some(life) = &self.life else { return Ok(()) };
        let (exporter, astray) = (Arc::clone(&life.exporter), life.astray);
        let Some(page) = self.unless_dead(async { exporter.metrics(Format::Text).await }).await else {
            return Ok(());
        };
        let page = String::from_utf8(page).map_err(|error| error.to_string())?;
        self.look_for_secrets("/metrics", &page)?;
        let page = self.see(&page)?;
        if astray && page.sum("audit_source_up", &[]) != 0.0 {
            return Err("a source is up while its clock and ours are days apart".into());
        }
        if !closely {
            return Ok(());
        }
        let status = serde_json::to_string(&exporter.status()).unwrap();
        self.look_for_secrets("/api/v1/status", &status)?;
        // never more than happened
        let truth = self.world.truth();
        for entry in self.entries.iter().filter(|entry| entry.configured) {
            let (counted, happened) = (counted(&page, entry.name), happened(&truth, entry.service.system));
            let excess = if self.flooded {
                let (counted, happened) = (sum(&counted), sum(&happened));
                if counted > happened { vec![format!("{counted} against {happened}")] } else { Vec::new() }
            } else {
                beyond(&counted, &happened)
            };
            if !excess.is_empty() {
                return Err(format!("{}: more is counted than happened: {excess:?}", entry.name));
            }
            let of = format!("source=\"{}\"", entry.name);
            for (family, happened) in sums(&truth, entry.service.system) {
                let counted = page.sum(family, &[&of]);
                if counted > happened as f64 {
                    return Err(format!("{}: {family} is {counted}, and {happened} happened", entry.name));
                }
            }
        }
        self.check_backlog(&page)?;
        // everything the service reported up to the watermark
        for source in exporter.status().sources {
            let Some(watermark) = source.watermark else { continue };
            // how much of it is not to be counted is looked at in the end
            if self.entries.iter().any(|entry| entry.name == source.name && entry.catch_up.is_some()) {
                continue;
            }
            // that a file gained rows is not always listed: someone downloaded it, and it is read again after six hours
            let unlisted = if is_feed(source.system) { TimeDelta::hours(7) } else { TimeDelta::zero() };
            let by = watermark - unlisted - TimeDelta::seconds(self.fixed.of(source.system).clock_skew_seconds + 5);
            let of = TruthOf { to: Some(by), visible_by: Some(by), ..TruthOf::default() };
            let due = self.world.truth_of(&of).total(source.system);
            if source.events < due {
                return Err(format!(
                    "{}: the watermark is {watermark}, before which {due} events were to be seen, but {} are counted",
                    source.name, source.events
                ));
            }
        }
        Ok(())
    }

    /// What is told of a backlog: never more than happened in these 15 minutes, and nothing of a first look-back.
    fn check_backlog(&mut self, page: &Exposed) -> Outcome {
        let mut right = Vec::new();
        let clocks_were_right = self.clock_off_max.is_zero() && !self.did.contains_key("clock days off");
        for entry in self.entries.iter().filter(|entry| entry.configured) {
            let (name, of) = (entry.name, self.fixed.of(entry.service.system));
            let skew = TimeDelta::seconds(of.clock_skew_seconds);
            for (labels, (events, begins)) in backlog(page, name) {
                if entry.service.is_feed {
                    return Err(format!("{name}: rows of files are told as a backlog"));
                }
                let Some(begins) = begins else {
                    if events > 0 {
                        return Err(format!("{name}: when {events} events of {labels:?} happened is not told"));
                    }
                    continue;
                };
                let told = (name, labels, events, begins);
                if self.right_backlogs.contains(&told) {
                    continue;
                }
                let labels = &told.1;
                let from = DateTime::from_timestamp(begins, 0).unwrap_or_default();
                let to = from + TALLY_CELL * BACKLOG_CELLS;
                let first = self.limits[name][0].0.duration_since(self.begun);
                let first = self.clock.now() - self.begun.elapsed() + first + skew;
                if clocks_were_right && to + TimeDelta::seconds(5) < first {
                    return Err(format!("{name}: a backlog at {from}, and the first start was at {first}"));
                }
                // the time that decides is the one an event had when it was first read
                if self.flooded || of.redated > 0.0 {
                    continue;
                }
                let of = TruthOf { from: Some(from - skew), to: Some(to - skew), ..TruthOf::default() };
                let happened =
                    happened(&self.world.truth_of(&of), entry.service.system).get(labels).copied().unwrap_or(0);
                if events > happened || events == 0 {
                    return Err(format!("{name}: a backlog of {events} {labels:?} at {from}, and {happened} happened"));
                }
                right.push(told);
            }
        }
        self.right_backlogs.extend(right);
        Ok(())
    }

    pub(super) fn see(&mut self, page: &str) -> Outcome<Exposed> {
        let without: Vec<String> =
            self.entries.iter().filter(|entry| !entry.configured).map(|entry| entry.name.to_owned()).collect();
        match self.served.see(page, &without).into_iter().next() {
            Some(wrong) => Err(wrong),
            None => Ok(Exposed::parse(page)),
        }
    }

    pub(super) fn look_for_secrets(&self, place: &str, text: &str) -> Outcome {
        for secret in simulate::secrets().map(str::to_owned).chain(self.world.issued()) {
            if text.contains(&secret) {
                return Err(format!("{place} shows a secret"));
            }
        }
        Ok(())
    }

    /// What needs no page: the log, and who was asked.
    pub(super) fn check_quietly(&mut self) -> Outcome {
        let new = {
            let log = self.log.0.lock().unwrap();
            String::from_utf8_lossy(&log[self.searched..]).into_owned()
        };
        self.searched += new.len();
        self.look_for_secrets("the log", &new)?;
        if let Some(line) = new.lines().find(|line| line.contains("a fault in this program")) {
            return Err(format!("a panic: {line}"));
        }
        if let Some(astray) = self.road.astray().first() {
            return Err(format!("a request went to {astray}"));
        }
        Ok(())
    }
}
