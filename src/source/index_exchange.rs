//! Index Exchange, client audit logs: hourly files of auction data, one row per impression or bid.
//!
//! A token from Keycloak, two routes that list files, one that sends them (api.indexexchange.com,
//! Client Audit Logs: Authentication, Log Retrieval, Get Bid Event Logs). Every poll reads the whole
//! list of 14 days and downloads the hours that are new or changed.
//!
//! An hour is counted as one document, the sum of its parts: parts have no documented number, may
//! appear one after another, and may get another id when they are replaced, but their sum only
//! grows, and what it gains is what is new. Where a part cannot be read, the others are counted and
//! the hour is read again.
//!
//! What it cannot report: logins, changes, integrity. This is a data feed, not a log of acts.

mod list;
mod rows;
mod setup;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use http::{HeaderValue, StatusCode, header};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;
use url::Url;

use self::list::{File, Listing};
pub use self::rows::{BadFile, RECORD_BYTES_MAX, RowCounter, Rows, Unpacker};
pub use self::setup::{SERVICE, SYSTEM, Settings};
use super::kit::credential;
use super::{Reading, Signals, Sink, Source, Spec, oauth};
use crate::api::{Api, Call, Dialect, Download, Reply, Session, Verdict, Wire};
use crate::event::{Class, EventKey, Label, Outcome};
use crate::failure::{ErrorKind, Failure};
use crate::page::{Catalogue, Document, DocumentRecord, Facts, Page};
use crate::settings::{Secret, endpoint};
use crate::threads::run_blocking;
use crate::window::Window;

/// How often a file is asked for when its body breaks.
const ATTEMPTS_MAX: u32 = 3;
/// After so many files in a row that the service could not send, the poll ends: the next one asks
/// for them last.
const FAILURES_MAX: u32 = 10;
/// How many packed bytes are unpacked at once, on a thread that may block.
const BATCH_BYTES: usize = 256 << 10;
/// A file that comes more slowly than this, in bytes per second, after a minute, is given up.
const PACE_MIN: u64 = 1024;
/// How long a file may come as slowly as it likes.
const PACE_GRACE: Duration = Duration::from_mins(1);
/// How often a file is read again whose list entry says nothing about its content: someone else may
/// have downloaded it since it changed, which takes the status `updated` away.
const RECHECK_EVERY: TimeDelta = TimeDelta::hours(6);
/// For how long after its hour: files are there within 36 hours.
const RECHECK_FOR: TimeDelta = TimeDelta::hours(48);
/// Files of older hours are not read: the service keeps them for 14 days, and the ledger remembers them for 32.
const READ_FOR: TimeDelta = TimeDelta::days(31);
/// Files of hours further ahead than this are not read. Two clocks may differ by a day.
const AHEAD_MAX: TimeDelta = TimeDelta::days(1);
/// Files are of whole hours.
const HOUR: TimeDelta = TimeDelta::hours(1);

/// For how long a file is listed.
const RETENTION: Duration = Duration::from_hours(14 * 24);

/// How the files are read.
const READING: Reading = Reading::Feed {
    retention: RETENTION,
    settled_after: Duration::from_hours(RECHECK_FOR.num_hours().unsigned_abs()),
    when_empty: "the service makes files within 36 hours; after 35 days without a call it stops, and resumes with the next call",
};

/// Reads the files of one client.
pub struct IndexExchange {
    base: Url,
    subscriptions: Vec<String>,
    categories: Vec<Label>,
    /// What parts held that did not change since, so that one new part does not cost the others.
    parts: HashMap<EventKey, Rows>,
    /// Hours that could not be read last time.
    failed: HashSet<EventKey>,
    warned_of_column: bool,
}

// === the session ===

struct IndexExchangeDialect {
    base: Url,
    token_url: Url,
    client_key: Secret,
    /// Which way of writing the key was accepted last, or is to be tried next.
    form_encoded: AtomicBool,
    /// A hash of the key that was refused in both.
    refused: Mutex<Option<blake3::Hash>>,
}

#[async_trait]
impl Dialect for IndexExchangeDialect {
    async fn open_session(&self, wire: &Wire) -> Result<Session, Failure> {
        let key = credential(&self.client_key)?;
        let issued = SecretString::from(key.expose_secret().trim().to_owned());
        let Some(encoded) = form_encoded(&issued) else {
            return oauth::client_credentials(wire, &self.token_url, &issued, &self.base).await;
        };
        let was_encoded = self.form_encoded.load(Ordering::Relaxed);
        let (first, second) = if was_encoded { (&encoded, &issued) } else { (&issued, &encoded) };
        let hash = blake3::hash(issued.expose_secret().as_bytes());
        let refused = || self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        match oauth::client_credentials(wire, &self.token_url, first, &self.base).await {
            Err(failure) if failure.kind == ErrorKind::Auth && !failure.may_lock() => {
                // one attempt at a time from then on, because each may be the one that locks the account
                if *refused() == Some(hash) {
                    self.form_encoded.store(!was_encoded, Ordering::Relaxed);
                    return Err(failure);
                }
                tracing::debug!(error = %failure, "the key is refused; trying its other form");
                let session = oauth::client_credentials(wire, &self.token_url, second, &self.base).await;
                match &session {
                    Ok(_) => self.form_encoded.store(!was_encoded, Ordering::Relaxed),
                    Err(_) => *refused() = Some(hash),
                }
                session
            }
            answer => answer,
        }
    }

    /// A service without multi-part files need not have the route that lists them.
    fn judge(&self, reply: &Reply) -> Verdict {
        if reply.status == StatusCode::NOT_FOUND && reply.tried().ends_with("/downloads/bidevents") {
            return Verdict::Good;
        }
        oauth::judge(reply)
    }
}

/// The key as RFC 6749 section 2.3.1 wants it, where that is another than the one issued: servers
/// that decode what they receive see another secret otherwise.
fn form_encoded(key: &SecretString) -> Option<SecretString> {
    let decoded = SecretString::from(String::from_utf8(STANDARD.decode(key.expose_secret()).ok()?).ok()?);
    let (id, secret) = decoded.expose_secret().split_once(':')?;
    let encoded = oauth::basic(id, secret);
    (encoded.expose_secret() != key.expose_secret()).then_some(encoded)
}

// === the source ===

#[async_trait]
impl Source for IndexExchange {
    fn spec(&self) -> Spec {
        let mut catalogue = Catalogue::default();
        for category in &self.categories {
            let actions = ["impression", "bid"];
            let named: Vec<&str> = actions.into_iter().filter(|action| category.as_str().contains(action)).collect();
            // one that no document names has its series too, so that its silence can be seen
            let actions = if named.is_empty() { &actions[..] } else { &named };
            catalogue.add(&[category.as_str()], actions, &[Outcome::Unknown], Class::Row);
        }
        Spec { reading: READING, signals: Signals::default(), catalogue }
    }

    async fn read(&mut self, window: Window, api: &Api, sink: &mut dyn Sink) -> Result<(), Failure> {
        let mut troubles = Troubles::default();
        let done = self.read_all(window, api, sink, &mut troubles).await;
        match (done, troubles.first) {
            (Err(failure), first) => {
                if let Some(first) = first {
                    sink.report(first);
                }
                Err(failure)
            }
            (Ok(()), Some(first)) => Err(first),
            (Ok(()), None) => Ok(()),
        }
    }
}

/// What went wrong with single files and lists. The first is kept, to be returned in the end.
#[derive(Default)]
struct Troubles {
    first: Option<Failure>,
    in_a_row: u32,
}

impl Troubles {
    /// Takes a failure that concerns one file or list, and returns one that concerns all of them.
    fn take(&mut self, failure: Failure, sink: &mut dyn Sink) -> Result<(), Failure> {
        let general = matches!(failure.kind, ErrorKind::Auth | ErrorKind::Throttled | ErrorKind::Tls);
        self.in_a_row = if failure.kind.is_transient() { self.in_a_row + 1 } else { 0 };
        if failure.at_login || general || self.in_a_row >= FAILURES_MAX {
            return Err(failure);
        }
        match self.first {
            None => self.first = Some(failure),
            Some(_) => sink.report(failure),
        }
        Ok(())
    }
}

/// All files of one hour of a subscription.
struct Hour {
    key: EventKey,
    category: Label,
    begins: DateTime<Utc>,
    files: Vec<File>,
}

impl IndexExchange {
    async fn read_all(
        &mut self,
        window: Window,
        api: &Api,
        sink: &mut dyn Sink,
        troubles: &mut Troubles,
    ) -> Result<(), Failure> {
        let mut listing = self.list(api, sink, troubles).await?;
        let whole_list = troubles.first.is_none();
        let feed = listing.feed(&self.categories, api.now() + AHEAD_MAX);
        let rejected = std::mem::take(&mut listing.rejected);
        if !rejected.is_empty() {
            sink.page(Page { items: rejected, ..Page::default() }).await?;
        }
        let mut hours = self.hours(listing, api.now(), sink);
        let mut listed: HashSet<EventKey> = HashSet::new();
        listed.extend(hours.iter().flat_map(|hour| &hour.files).map(|file| file.content));
        self.parts.retain(|content, _| listed.contains(content));
        // what failed last time comes last, so that it cannot keep the rest from being read
        hours.sort_by_key(|hour| (self.failed.contains(&hour.key), hour.begins));
        for hour in hours {
            if hour.begins + HOUR <= window.from || hour.begins >= window.to || hour.files.is_empty() {
                continue;
            }
            let is_new = sink.document(&hour.key).is_none_or(|record| hour.has_changed(&record, api.now()));
            // to read what is new takes away the mark that it is
            if is_new != sink.checks() {
                self.read_hour(hour, api, sink, troubles).await?;
            }
        }
        if whole_list {
            sink.page(Page { facts: Facts { feed: Some(feed), ..Facts::default() }, ..Page::default() }).await?;
        }
        Ok(())
    }

    /// Asks both routes.
    async fn list(&self, api: &Api, sink: &mut dyn Sink, troubles: &mut Troubles) -> Result<Listing, Failure> {
        let mut listing = Listing::default();
        for (index, name) in self.subscriptions.iter().enumerate() {
            let mut url = endpoint(&self.base, &["api", "cal", "v1", "downloads"]);
            // a space is %20, as in the service's examples
            let name: String = url::form_urlencoded::byte_serialize(name.as_bytes()).collect();
            url.set_query(Some(&format!("subscriptionName={}", name.replace('+', "%20"))));
            let added = self.list_one(&url, Some(index), api, &mut listing).await;
            added.or_else(|failure| troubles.take(failure, sink))?;
        }
        let bids: Vec<usize> =
            (0..self.categories.len()).filter(|index| self.categories[*index].as_str().contains("bid")).collect();
        if !bids.is_empty() {
            let url = endpoint(&self.base, &["api", "cal", "v1", "downloads", "bidevents"]);
            let only = (bids.len() == 1).then(|| bids[0]);
            let added = self.list_one(&url, only, api, &mut listing).await;
            added.or_else(|failure| troubles.take(failure, sink))?;
        }
        Ok(listing)
    }

    async fn list_one(&self, url: &Url, asked: Option<usize>, api: &Api, listing: &mut Listing) -> Result<(), Failure> {
        let reply = api.call(|_| Call::get(url.clone())).await?;
        if !matches!(reply.status, StatusCode::NO_CONTENT | StatusCode::NOT_FOUND) {
            listing.add(&list::rows(&reply)?, &self.categories, asked);
            if listing.is_overfull() {
                let got = format!("more than {} files for one hour", list::FILES_PER_HOUR_MAX);
                return Err(Failure::new(ErrorKind::TooLarge, reply.tried(), got));
            }
        }
        Ok(())
    }

    /// The hours that can be counted once. What is older than the ledger's memory of files would be counted
    /// with every list that still shows it; what is of days to come would be remembered for ever.
    fn hours(&self, listing: Listing, now: DateTime<Utc>, sink: &mut dyn Sink) -> Vec<Hour> {
        let hour = |((subscription, begins), files): ((usize, DateTime<Utc>), Vec<File>)| {
            let category = self.categories[subscription].clone();
            let at = begins.timestamp_millis().to_le_bytes();
            let key = EventKey::of("index_exchange", &[category.as_str().as_bytes(), &at]);
            Hour { key, category, begins, files }
        };
        let listed = listing.hours.len();
        let near = now - READ_FOR..now + AHEAD_MAX;
        let hours: Vec<Hour> =
            listing.hours.into_iter().filter(|((_, begins), _)| near.contains(begins)).map(hour).collect();
        if hours.len() < listed {
            let got = format!("{} hours older than {} days or days ahead", listed - hours.len(), READ_FOR.num_days());
            sink.report(Failure::new(ErrorKind::Decode, "listing files", got));
        }
        hours
    }

    /// Reads what changed of an hour and counts all of it.
    async fn read_hour(
        &mut self,
        hour: Hour,
        api: &Api,
        sink: &mut dyn Sink,
        troubles: &mut Troubles,
    ) -> Result<(), Failure> {
        let mut rows: BTreeMap<Label, u64> = BTreeMap::new();
        let mut rejected = 0;
        let mut read = Vec::new();
        for file in &hour.files {
            let part = match self.parts.get(&file.content) {
                Some(known) => known.clone(),
                None => match self.read_file(file, &hour, api, sink).await {
                    Ok(part) => part,
                    Err(failure) => {
                        self.failed.insert(hour.key);
                        troubles.take(failure, sink)?;
                        continue;
                    }
                },
            };
            troubles.in_a_row = 0;
            for (action, count) in &part.by_action {
                *rows.entry(action.clone()).or_default() += count;
            }
            rejected += part.rejected;
            read.push(file.content);
            if hour.files.len() > 1 && file.tells_changes {
                self.parts.insert(file.content, part);
            }
        }
        if read.is_empty() {
            return Ok(());
        }
        let version = if read.len() == hour.files.len() {
            self.failed.remove(&hour.key);
            hour.version()
        } else {
            version("index_exchange incomplete hour", read)
        };
        let Hour { key, category, begins, .. } = hour;
        let document = Document { key, filed_at: begins, version, category, rows, rejected };
        sink.page(Page { documents: vec![document], ..Page::default() }).await?;
        Ok(())
    }

    /// Downloads a file and counts it; again, where its body breaks.
    async fn read_file(&mut self, file: &File, hour: &Hour, api: &Api, sink: &mut dyn Sink) -> Result<Rows, Failure> {
        // whatever host the list names: the token goes to the one that was configured
        let url = endpoint(&self.base, &["api", "cal", "v1", "files", &file.id]);
        let what = format!("reading file {} ({}, {})", file.id, hour.category, hour.begins.format("%Y-%m-%d %H:%MZ"));
        let mut attempt = 1;
        let rows = loop {
            let call = Call::get(url.clone()).with(header::ACCEPT, HeaderValue::from_static("*/*"));
            let download = api.download(|_| call.clone()).await?;
            match count(download, &what).await {
                Err(failure) if attempt < ATTEMPTS_MAX && failure.kind != ErrorKind::TooLarge => sink.report(failure),
                done => break done?,
            }
            attempt += 1;
        };
        if rows.columns > 0 && !rows.names_actions && !self.warned_of_column {
            self.warned_of_column = true;
            tracing::warn!(file = %what, "no column event_type: its rows are counted with action unknown");
        }
        Ok(rows)
    }
}

impl Hour {
    fn version(&self) -> EventKey {
        version("index_exchange hour", self.files.iter().map(|file| file.content).collect())
    }

    /// Whether there may be more in it than was counted.
    fn has_changed(&self, counted: &DocumentRecord, now: DateTime<Utc>) -> bool {
        if counted.version != self.version().0 {
            return true;
        }
        let recheck = now - counted.counted_at >= RECHECK_EVERY && now - self.begins < RECHECK_FOR;
        self.files.iter().any(|file| !file.tells_changes && (file.is_updated() || recheck))
    }
}

/// The version of an hour with files of these contents, in whatever order they are listed.
fn version(domain: &str, mut contents: Vec<EventKey>) -> EventKey {
    contents.sort_unstable();
    let parts: Vec<&[u8]> = contents.iter().map(|content| &content.0[..]).collect();
    EventKey::of(domain, &parts)
}

/// Counts a body as it arrives.
async fn count(mut download: Download, what: &str) -> Result<Rows, Failure> {
    let began = Instant::now();
    let mut unpacker = Unpacker::new();
    let mut batch: Vec<Bytes> = Vec::new();
    let (mut batched, mut arrived) = (0, 0);
    loop {
        let chunk = download.chunk().await?;
        let at_end = chunk.is_none();
        if let Some(chunk) = chunk {
            batched += chunk.len();
            arrived += chunk.len() as u64;
            batch.push(chunk);
        }
        let paced = began.elapsed().saturating_sub(PACE_GRACE).as_secs();
        if !at_end && arrived < paced * PACE_MIN {
            let got = format!("{arrived} bytes in {:?}", began.elapsed());
            return Err(Failure::new(ErrorKind::Timeout, what, got));
        }
        if at_end || batched >= BATCH_BYTES {
            let full = std::mem::take(&mut batch);
            batched = 0;
            let fed =
                run_blocking(move || full.iter().try_for_each(|bytes| unpacker.feed(bytes)).map(|()| unpacker)).await;
            unpacker = fed.map_err(|bad| failure(&bad, what))?;
        }
        if at_end {
            return unpacker.finish().map_err(|bad| failure(&bad, what));
        }
    }
}

fn failure(bad: &BadFile, what: &str) -> Failure {
    let kind = match bad {
        BadFile::RecordTooLong => ErrorKind::TooLarge,
        BadFile::NoFile(_) | BadFile::Gzip(_) => ErrorKind::Decode,
    };
    Failure::new(kind, what, bad.to_string())
}

#[cfg(test)]
mod tests;
