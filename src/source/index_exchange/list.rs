//! Reads the answers of the two list routes: the files of each hour.
//!
//! Promises: a file that is listed twice, by either route, is one file; what is said about it is
//! reduced to where it is, its status, and a key of all that changes only when its content does.
//!
//! The service documents `availableDownloads`, `subscriptionID`, `subscriptionName`, `hour`,
//! `parts` and `downloadStatus`; the names of link, size, generation and expiry are not public, so
//! they are recognised by what they look like.
//!
//! Leaves to others: asking, and whether a file is to be read (`index_exchange.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value};

use super::super::kit::{parse_time, rejected, unread};
use super::super::list::{Raw, RawEvents};
use super::super::text::{self, Envelope};
use crate::api::Reply;
use crate::event::{EventKey, Item, Label, RejectReason};
use crate::failure::Failure;
use crate::page::Feed;
use crate::window::floor;

/// How many different statuses are told apart.
const STATUSES_MAX: usize = 10;
/// How many files one hour of a subscription may have. The service shows one, or a few parts.
pub(super) const FILES_PER_HOUR_MAX: usize = 1000;
/// The longest id of a file; those of the service are numbers.
const ID_BYTES_MAX: usize = 200;
/// The statuses the service documents.
const STATUSES: [&str; 3] = ["new", "downloaded", "updated"];

/// What one answer of a list route holds.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// The files of each (subscription, hour); the subscription as an index into the configured.
    pub(super) hours: BTreeMap<(usize, DateTime<Utc>), Vec<File>>,
    /// Rows and parts that could not be understood.
    pub(super) rejected: Vec<Item>,
}

/// A file, or one part of an hour's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File {
    /// Where it is: the last segment of its address.
    pub(super) id: String,
    /// All that is said about it but what changes although its content does not.
    pub(super) content: EventKey,
    /// Whether that holds a time of generation or a size, and so tells when the content changes.
    pub(super) tells_changes: bool,
    /// `downloadStatus`, as words.
    pub(super) status: Label,
    place: Place,
}

/// What a file is within its hour.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// All of it.
    Whole,
    /// A part that has a number. What stands at which place in `parts` says nothing: a part that
    /// appears later may stand before the others.
    Numbered(String),
    /// A part without a number.
    Part,
}

/// The rows of a list, each as its own text.
pub(super) fn rows(reply: &Reply) -> Result<Vec<Raw<'_>>, Failure> {
    let body = reply.body.trim_ascii_start();
    // the name of the list may be written in any way, and a page of hours is short
    let bare = serde_json::from_slice::<Option<RawEvents<'_>>>(body).ok().map(Option::unwrap_or_default);
    // an answer without any field is one of the ways to say that there are no files
    let is_empty = |answer: &Envelope<'_>| matches!(answer, Envelope::Document(fields) if fields.is_empty());
    let tolerant = || match Envelope::read(body)? {
        answer if is_empty(&answer) => Some(RawEvents::default()),
        answer => answer.entries(is_list, &[]),
    };
    let rows = bare.or_else(tolerant).ok_or_else(|| reply.undecodable("no availableDownloads"))?;
    let is_own = |Raw(raw): &Raw<'_>, (): &()| {
        let Value::Object(row) = text::value(raw) else { return false };
        raw.starts_with(b"{") && row.keys().any(|name| OWN_NAMES.contains(&plain(name).as_str()))
    };
    let rows = rows.read(|_| (), is_own).map_err(|bad| unread(bad, reply))?;
    Ok(rows.into_iter().map(|(row, ())| row).collect())
}

fn is_list(name: &str) -> bool {
    plain(name) == "availabledownloads"
}

/// The names of a row's fields as they are compared, as far as they are known, and what its link and id may be called.
const OWN_NAMES: [&str; 9] = [
    "subscriptionid",
    "subscriptionname",
    "hour",
    "parts",
    "downloadstatus",
    "downloadurl",
    "downloadlink",
    "fileid",
    "filesize",
];

impl Listing {
    /// Adds the rows of one answer. `asked` is the subscription to which rows without a name
    /// belong.
    pub(super) fn add(&mut self, rows: &[Raw<'_>], categories: &[Label], asked: Option<usize>) {
        for Raw(raw) in rows {
            let value = if raw.starts_with(b"{") { text::value(raw) } else { Value::Null };
            let understood = match value {
                Value::Object(row) => self.row(&row, categories, asked).map_err(|reason| {
                    let lasting: BTreeMap<String, &Value> = stable(&row).collect();
                    let lasting = serde_json::to_vec(&lasting).unwrap_or_default();
                    Item { key: EventKey::of("index_exchange row", &[&lasting]), ..rejected(reason, raw) }
                }),
                _ => Err(rejected(RejectReason::Malformed, raw)),
            };
            self.rejected.extend(understood.err());
        }
    }

    fn row(
        &mut self,
        row: &Map<String, Value>,
        categories: &[Label],
        asked: Option<usize>,
    ) -> Result<(), RejectReason> {
        let subscription = match field(row, &["subscriptionname"]) {
            Some(Value::String(name)) => {
                let category = Label::from_words(name);
                let Some(subscription) = categories.iter().position(|known| *known == category) else {
                    return Ok(()); // of a subscription nobody asked to count
                };
                subscription
            }
            // an unusable name is treated like a missing one
            _ => asked.ok_or(RejectReason::Malformed)?,
        };
        let hour = match field(row, &["hour"]) {
            Some(Value::String(text)) => parse_time(text).filter(is_whole_hour).ok_or(RejectReason::BadTime)?,
            Some(_) => return Err(RejectReason::BadTime),
            None => return Err(RejectReason::Malformed),
        };
        let files = self.hours.entry((subscription, hour)).or_default();
        let parts = field(row, &["parts"]).and_then(Value::as_array);
        let located: Vec<Option<String>> =
            parts.into_iter().flatten().map(|part| part.as_object().and_then(file_id)).collect();
        if located.iter().all(Option::is_none)
            && let Some(id) = file_id(row)
        {
            let first = parts.and_then(|parts| parts.first()?.as_object());
            add(files, File::new(id, first.unwrap_or(row), row, Place::Whole));
            return Ok(());
        }
        let Some(parts) = parts else { return Err(RejectReason::Malformed) };
        for (part, id) in parts.iter().zip(located) {
            if let (Some(part), Some(id)) = (part.as_object(), id) {
                add(files, File::new(id, part, row, Place::Part));
                continue;
            }
            // its hour tells one such part from that of another
            let lasting = part.as_object().map(|part| stable(part).collect::<BTreeMap<_, _>>());
            let lasting = serde_json::to_vec(&lasting).unwrap_or_default();
            let hour = hour.timestamp_millis().to_le_bytes();
            let key = EventKey::of("index_exchange part", &[&subscription.to_le_bytes(), &hour, &lasting]);
            let sample = part.to_string();
            self.rejected.push(Item { key, ..rejected(RejectReason::Malformed, sample.as_bytes()) });
        }
        Ok(())
    }

    /// Whether an hour has more than [`FILES_PER_HOUR_MAX`] files, of which the rest was left out.
    pub(super) fn is_overfull(&self) -> bool {
        self.hours.values().any(|files| files.len() > FILES_PER_HOUR_MAX)
    }

    /// The state of the feed. `newest_hour` is the newest that was ever seen.
    pub(super) fn feed(&self, categories: &[Label], before: DateTime<Utc>) -> Feed {
        let mut files: BTreeMap<String, u64> = STATUSES.into_iter().map(|status| (status.to_owned(), 0)).collect();
        for file in self.hours.values().flatten() {
            let known = files.len() < STATUSES_MAX || files.contains_key(file.status.as_str());
            let status = if known { file.status.as_str() } else { "other" };
            *files.entry(status.to_owned()).or_default() += 1;
        }
        // an hour far ahead is a mistake that would hide every later silence; the keys are in the order of the hours
        let hours = self.hours.keys().filter(|(_, hour)| *hour < before);
        let newest_by_category: BTreeMap<String, DateTime<Utc>> =
            hours.map(|(subscription, hour)| (categories[*subscription].to_string(), *hour)).collect();
        let newest_hour = newest_by_category.values().max().copied();
        Feed { newest_hour, newest_by_category, missing_hours: self.missing_hours(), files }
    }

    /// Hours between the oldest and the newest of each subscription for which nothing is listed.
    fn missing_hours(&self) -> u64 {
        let mut listed: BTreeMap<usize, BTreeSet<i64>> = BTreeMap::new();
        for (subscription, hour) in self.hours.keys() {
            listed
                .entry(*subscription)
                .or_default()
                .insert(hour.timestamp().div_euclid(TimeDelta::hours(1).num_seconds()));
        }
        let missing = |hours: &BTreeSet<i64>| {
            let span = hours.last().zip(hours.first()).map_or(0, |(last, first)| last.abs_diff(*first) + 1);
            span - hours.len() as u64
        };
        listed.values().map(missing).sum()
    }
}

/// Adds a file where it is not known yet. A whole hour and its parts are the same rows.
fn add(files: &mut Vec<File>, file: File) {
    if files.len() > FILES_PER_HOUR_MAX {
        return;
    }
    if let Some(known) = files.iter_mut().find(|known| known.id == file.id) {
        if known.place == Place::Whole {
            known.place = file.place;
        }
        return;
    }
    if file.place == Place::Whole && files.iter().any(|known| known.place != Place::Whole) {
        return;
    }
    if file.place != Place::Whole {
        files.retain(|known| known.place != Place::Whole);
    }
    let same = |known: &&mut File| file.place != Place::Part && known.place == file.place;
    match files.iter_mut().find(same) {
        // the same under another id: the newer one holds the older one's rows
        Some(known) if known.number() <= file.number() => *known = file,
        Some(_) => {}
        None => files.push(file),
    }
}

impl File {
    fn new(id: String, own: &Map<String, Value>, row: &Map<String, Value>, place: Place) -> Self {
        let number = match field(own, &["part", "partnumber", "partindex", "index"]) {
            Some(Value::Number(number)) => Some(number.to_string()),
            Some(Value::String(number)) => Some(number.clone()),
            _ => None,
        };
        let place = number.map_or(place, Place::Numbered);
        let said: BTreeMap<String, &Value> = stable(row).chain(stable(own)).collect();
        let tells_changes = said.iter().any(|(name, value)| tells_change(name) && !value.is_null());
        let said = serde_json::to_vec(&said).unwrap_or_default();
        let status = match field(own, &["downloadstatus", "status"]).or(field(row, &["downloadstatus", "status"])) {
            Some(Value::String(status)) => Label::from_words(status),
            _ => Label::unknown(),
        };
        let content = EventKey::of("index_exchange content", &[id.as_bytes(), &said]);
        Self { id, content, tells_changes, status, place }
    }

    fn number(&self) -> Option<u64> {
        self.id.parse().ok()
    }

    /// Whether the service says that it gained rows since anyone downloaded it.
    pub(super) fn is_updated(&self) -> bool {
        self.status.as_str() == "updated"
    }
}

/// Files are of whole hours; each other moment would be one more to be remembered.
fn is_whole_hour(at: &DateTime<Utc>) -> bool {
    floor(*at, Duration::from_hours(1)) == *at
}

/// A key as it is compared: lower case, without `_` and the like.
fn plain(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// The first of these keys that is there with a value.
fn field<'a>(row: &'a Map<String, Value>, names: &[&str]) -> Option<&'a Value> {
    let find = |name: &&str| row.iter().find(|(key, value)| plain(key) == **name && !value.is_null());
    names.iter().find_map(find).map(|(_, value)| value)
}

/// What does not change by itself: neither status, link, expiry nor anything about downloads.
fn stable(row: &Map<String, Value>) -> impl Iterator<Item = (String, &Value)> {
    const PASSING: [&str; 7] = ["status", "expir", "url", "link", "href", "token", "signature"];
    let stays = |name: &str| {
        let passing = PASSING.iter().any(|word| name.contains(word)) || name == "parts";
        !passing && (!name.contains("download") || name.contains("size"))
    };
    row.iter().map(|(name, value)| (plain(name), value)).filter(move |(name, _)| stays(name))
}

/// Whether a key is about the content of a file, so that another content has another value.
fn tells_change(name: &str) -> bool {
    const TELLING: [&str; 12] =
        ["generat", "creat", "modif", "updat", "size", "byte", "length", "checksum", "hash", "md5", "etag", "version"];
    TELLING.iter().any(|word| name.contains(word))
}

/// The id of a file: what follows `/files/` in an address, wherever that leads, else an id.
fn file_id(row: &Map<String, Value>) -> Option<String> {
    let named = ["downloadurl", "url"].into_iter().filter_map(|name| field(row, &[name]));
    let linked = named.chain(row.values()).filter_map(Value::as_str).find_map(tail);
    let given = || match field(row, &["fileid", "id"])? {
        Value::String(id) => Some(id.clone()),
        Value::Number(id) => Some(id.to_string()),
        _ => None,
    };
    let id = linked.or_else(given)?;
    // only what stands for itself as one segment of an address
    let plain = id.chars().all(|c| c.is_ascii_alphanumeric() || "-_.~=+:@,".contains(c));
    (plain && id.len() <= ID_BYTES_MAX && !id.chars().all(|c| c == '.')).then_some(id)
}

fn tail(address: &str) -> Option<String> {
    let (_, tail) = address.rsplit_once("/files/")?;
    let end = tail.find(['?', '#', '/']).unwrap_or(tail.len());
    (end > 0).then(|| tail[..end].to_owned())
}
