//! The operator's side of `backfill`: where an interrupted run is continued, and where the samples go.
//!
//! Promises: a piece is kept before the next one is read; nothing is written before all of it is there; what was read is
//! kept until it is written.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

use chrono::{DateTime, Utc};

use super::talk::{Talk, ask_running, unexpected, unknown};
use super::{Answer, Ask, CheckError, alone, find};
use crate::backfill::{self, Asked, BackfillError, Hand, History, Piece, Plan, Unfinished, Written};
use crate::clock::{Clock, rfc3339_seconds};
use crate::config::Config;
use crate::ledger::STORE_FILE;
use crate::metrics::Labels;
use crate::verify::{LeftOut, Say, VerifyInput};
use crate::window::Window;

/// What an operator asks for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Name of the source.
    pub source: String,
    /// The window, as it was written.
    pub asked: Asked,
    /// From when on.
    pub from: DateTime<Utc>,
    /// Up to when; up to where counting began where absent.
    pub to: Option<DateTime<Utc>>,
    /// The labels that a scrape adds.
    pub scrape: Labels,
}

/// Reads the history of a source from before it was counted, wherever that is to be done.
pub async fn backfill(config: &Config, wanted: Wanted, say: &Say) -> Result<Backfilled, CheckError> {
    let (storage, name) = (config.storage.path.as_path(), wanted.source.as_str());
    let before = Unfinished::find(storage, name).map_err(CheckError::failed)?;
    let window = before.as_ref().filter(|before| *before.asked() == wanted.asked).map(|before| before.plan().window);
    let (from, to) = window.map_or((wanted.from, wanted.to), |window| (window.from, Some(window.to)));
    let (place, plan) = Place::planned(config, name, from, to, say).await?;
    let mut unfinished = match continued(before, &plan)? {
        Some(before) => before,
        None => Unfinished::begin(storage, wanted.asked, plan).map_err(CheckError::failed)?,
    };
    let plan = unfinished.plan().clone();
    let mut collected = Collected::new(&plan);
    unfinished.pieces(|piece| collected.add(piece)).map_err(CheckError::failed)?;
    let after = unfinished.reached();
    if after > plan.window.from {
        say(&format!("{} to {} was read before", rfc3339_seconds(plan.window.from), rfc3339_seconds(after)));
    }
    let keep = &mut |piece: Piece| {
        unfinished.add(&piece)?;
        collected.add(piece);
        Ok(())
    };
    if after < plan.window.to {
        place.read(name, &plan, after, say, keep).await?;
    }
    if unfinished.reached() != plan.window.to {
        let reached = rfc3339_seconds(unfinished.reached());
        return Err(CheckError::Failed(format!(
            "the history was read up to {reached} only; run the same command again"
        )));
    }
    Ok(Backfilled { unfinished, collected, scrape: wanted.scrape })
}

/// A history that was read whole, and is to be written.
pub struct Backfilled {
    unfinished: Unfinished,
    collected: Collected,
    scrape: Labels,
}

impl Backfilled {
    /// Writes the samples.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<Written> {
        self.collected.history.write(&self.scrape, out)
    }

    /// Says what is in none of the samples. What was read need not be kept any more.
    pub fn finish(self, say: &Say) -> Result<(), CheckError> {
        self.collected.tell(say);
        self.unfinished.finish().map_err(CheckError::failed)
    }
}

/// The run that is continued. One of another window is neither continued nor given up without a word.
fn continued(before: Option<Unfinished>, plan: &Plan) -> Result<Option<Unfinished>, CheckError> {
    let Some(before) = before else { return Ok(None) };
    let Plan { window: Window { from, to }, settings, .. } = before.plan();
    if *from != plan.window.from || *to != plan.window.to {
        let Asked { from, to } = before.asked();
        let to = to.as_ref().map(|to| format!(" --to={to}")).unwrap_or_default();
        return Err(CheckError::Usage(format!(
            "another backfill of {} was begun and is not finished: continue it with --from={from}{to}, or remove {} to give \
             it up",
            plan.source,
            before.path().display()
        )));
    }
    if *settings != plan.settings {
        return Err(CheckError::Usage(format!(
            "the settings of {} have changed since this backfill was begun, and decide what is read: put them back to continue \
             it, or remove {} to begin again",
            plan.source,
            before.path().display()
        )));
    }
    Ok(Some(before))
}

/// What was read.
struct Collected {
    history: History,
    left_out: LeftOut,
    unlisted: u64,
    notes: BTreeSet<String>,
}

impl Collected {
    fn new(plan: &Plan) -> Self {
        let history = History::new(&plan.source, &plan.system, plan.minutes, plan.vocabulary.clone());
        Self { history, left_out: LeftOut::default(), unlisted: 0, notes: BTreeSet::new() }
    }

    fn add(&mut self, piece: Piece) {
        self.history.add(piece.rows);
        self.left_out += piece.left_out;
        self.unlisted += piece.unlisted;
        self.notes.extend(piece.notes);
    }

    /// What is missing in the samples.
    fn tell(&self, say: &Say) {
        for note in &self.notes {
            say(&format!("not all of it may be there: {note}"));
        }
        let LeftOut { ignored, rejected, timeless } = self.left_out;
        if (ignored, rejected, timeless) != (0, 0, 0) {
            say(&format!(
                "also returned, but in no sample: {ignored} events of ignored actors, {rejected} that could not be parsed, \
                 {timeless} without a time"
            ));
        }
        if self.unlisted > 0 {
            say(&format!("{} files are missing: the service does not list them (any more)", self.unlisted));
        }
    }
}

/// Where the service is read.
enum Place<'a> {
    /// In the exporter that runs on this ledger.
    There(&'a Path),
    /// In this process, which holds the ledger.
    Here(Box<VerifyInput>),
}

impl<'a> Place<'a> {
    /// The place, and what can be read there.
    async fn planned(
        config: &'a Config,
        name: &str,
        from: DateTime<Utc>,
        to: Option<DateTime<Utc>>,
        say: &Say,
    ) -> Result<(Self, Plan), CheckError> {
        let storage = config.storage.path.as_path();
        let ask = Ask::PlanBackfill { source: name.to_owned(), from, to };
        match ask_running(storage, &ask, None, say).await? {
            Some(Answer::Planned(plan)) => return Ok((Self::There(storage), *plan)),
            Some(Answer::Unknown) => return Err(unknown(storage, name)),
            Some(other) => return Err(unexpected(other)),
            None => {}
        }
        let source = find(config, name)?;
        let subject = if storage.join(STORE_FILE).exists() { alone(source, storage).await? } else { None };
        let subject = subject.ok_or(BackfillError::NothingCounted)?;
        say(&format!("no exporter runs on {}: this process reads the service itself", storage.display()));
        let plan = backfill::plan(&subject, from, to, Clock::machine().now())?;
        Ok((Self::Here(Box::new(subject)), plan))
    }

    async fn read(
        &self,
        name: &str,
        plan: &Plan,
        after: DateTime<Utc>,
        say: &Say,
        keep: &mut Hand<'_>,
    ) -> Result<(), CheckError> {
        let storage = match self {
            Self::There(storage) => storage,
            Self::Here(subject) => return Ok(backfill::read(subject, plan, after, say, keep).await?),
        };
        let settings = plan.settings.clone();
        let ask = Ask::Backfill { source: name.to_owned(), window: plan.window, after, settings };
        let gone = || CheckError::failed("the exporter has just stopped; run the same command again");
        let mut talk = Talk::begin(storage, &ask).await?.ok_or_else(gone)?;
        loop {
            match talk.next(say).await? {
                Answer::Read(piece) => keep(*piece).map_err(BackfillError::from)?,
                Answer::Backfilled => return Ok(()),
                Answer::Unknown => return Err(unknown(storage, name)),
                other => return Err(unexpected(other)),
            }
        }
    }
}

impl From<BackfillError> for CheckError {
    fn from(error: BackfillError) -> Self {
        match error {
            BackfillError::Refused(why) => Self::Usage(why),
            error => Self::failed(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::backfill::Minutes;
    use crate::ledger::Vocabulary;

    /// Also of pieces that a run before this one read.
    #[test]
    fn what_a_source_could_not_get_is_told_at_the_end_once() {
        let at = |minute: i64| DateTime::from_timestamp(1_800_000_000 + 60 * minute, 0).unwrap();
        let window = Window { from: at(0), to: at(60) };
        let plan = Plan {
            source: "iot".into(),
            system: "losant".into(),
            window,
            minutes: Minutes::new(at(0), at(60)).unwrap(),
            vocabulary: Vocabulary::default(),
            settings: String::new(),
        };
        let mut collected = Collected::new(&plan);
        for _ in 0..2 {
            let notes = vec!["3 fewer events than the service says".to_owned()];
            collected.add(Piece { window, rows: Vec::new(), left_out: LeftOut::default(), unlisted: 0, notes });
        }
        let told = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&told);
        collected.tell(&move |text: &str| into.lock().unwrap().push(text.to_owned()));
        assert_eq!(*told.lock().unwrap(), ["not all of it may be there: 3 fewer events than the service says"]);
    }
}
