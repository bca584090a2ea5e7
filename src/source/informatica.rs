//! Informatica Intelligent Cloud Services, security log: logins, logouts and changes to users,
//! groups, roles and organizations.
//!
//! `GET {base}/public/core/v3/securityLog` (Informatica, REST API Reference, Security Logs) with a
//! closed range of `entryTime` of at most 14 days, pages by `skip` and `limit`, in an order nobody
//! documents and without a total. So a range is read until a page brings nothing new, and events are told apart by
//! their `id`: the service may have caps of its own, and a page that is shorter than `limit` is not the last for that.
//! Only a first page of fewer than 100 entries (the smallest `limit` there is) is taken for all there are, and that only
//! where its number is not round and its size small. Where the service refuses or ignores `skip`, the range is cut in
//! halves until each fits on one page.
//!
//! The session comes from a login with name and password (`/saas/public/core/v3/login`), which is
//! itself an entry of the log: it is kept until the service says that it has ended.
//!
//! What it cannot report: logins that failed. It keeps 400 days.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use http::StatusCode;
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use url::Url;

pub use self::setup::{SERVICE, SYSTEM, Settings};
use super::kit::{Ignore, may_be_own, parse_time, rejected, unread};
use super::list::{BadList, List, Raw, RawEvents};
use super::text::{Envelope, id_bytes, looks_like_one_of, mended};
use super::{History, Reading, Signals, Sink, Source, Spec};
use crate::api::{Api, Call, Session};
use crate::event::{Class, EventKey, EventLabels, Item, Label, Outcome, Principal, RejectReason, What};
use crate::failure::{ErrorKind, Failure};
use crate::page::{Catalogue, Page};
use crate::settings::endpoint;
use crate::window::{Window, floor};

mod session;
mod setup;

/// The documented maximum of `limit`.
const PAGE_SIZE: u32 = 1000;
/// The longest range asked for at once; 14 days are the documented maximum.
const RANGE_MAX: Duration = Duration::from_hours(7 * 24);
/// The finest piece a range is cut into: the log's times seem to be whole seconds.
const SECOND: Duration = Duration::from_secs(1);
/// Requests of one reading. A log that always has one more page is broken.
const REQUESTS_MAX: u32 = 100_000;
/// The documented minimum of `limit`. No cap of the service's own is believed to be smaller, unless it is [`ROUND`].
const LIMIT_MIN: usize = 100;
/// A page of a multiple of this many entries may be what a cap below `limit` left of it.
const ROUND: usize = 10;
/// A shorter page was not cut because of its size.
const SMALL_BYTES: usize = 8 << 10;
/// How many pairs of category and event are remembered with their labels.
const KNOWN_MAX: usize = 1000;
/// Longer names are not remembered.
const KNOWN_BYTES_MAX: usize = 256;
/// How the log is asked for.
const READING: Reading =
    Reading::History(History { cell: Duration::from_millis(1), step_max: RANGE_MAX, ahead: Duration::from_mins(10) });

/// Reads one organization's log.
pub struct Informatica {
    limit: u32,
    decoder: Decoder,
}

#[async_trait]
impl Source for Informatica {
    fn spec(&self) -> Spec {
        let success = [Outcome::Success];
        let mut catalogue = Catalogue::default();
        let categories = ["Authentication", "Organization", "User", "User group", "Role"];
        let events = ["create", "update", "delete", "disable", "password_reset"];
        catalogue.add(&categories, &events, &success, Class::Change);
        catalogue.add_logins(&["Authentication"], Principal::User, &success);
        catalogue.add_logins(&["Authentication"], Principal::Agent, &success);
        catalogue.add(&["Authentication"], &["logout"], &success, Class::Logout);
        Spec {
            reading: READING,
            signals: Signals { login: true, logout: true, change: true, ..Signals::default() },
            catalogue,
        }
    }

    async fn read(&mut self, window: Window, api: &Api, sink: &mut dyn Sink) -> Result<(), Failure> {
        let mut progress = Progress::default();
        let mut pieces = ranges(window);
        while let Some(piece) = pieces.pop() {
            let End::Stuck { full } = self.read_piece(piece, api, sink, &mut progress).await? else { continue };
            match piece.halves(SECOND).filter(|_| !progress.range_ignored) {
                Some((earlier, later)) => pieces.extend([later, earlier]),
                None if full => {
                    let within = if progress.range_ignored { "any range" } else { "one second" };
                    let got = format!("possibly more than a page within {within}, and skip is refused or ignored");
                    return Err(Failure::new(ErrorKind::Decode, "reading all pages", got));
                }
                None => {}
            }
        }
        if progress.outside > 0 {
            let got = format!("{} entries from outside that range", progress.outside);
            sink.report(Failure::new(ErrorKind::Decode, "asking for a range of entryTime", got));
        }
        Ok(())
    }
}

/// What is known of a reading so far.
#[derive(Default)]
struct Progress {
    requests: u32,
    /// Entries from outside the range that was asked for.
    outside: usize,
    /// Entries of the longest page: a shorter one is not full.
    longest: usize,
    /// The first page of the piece that was read last.
    first_page: Bytes,
    /// A piece had the first page of the piece before, though some of it lies outside: no smaller piece helps.
    range_ignored: bool,
}

/// How the reading of a piece ended.
enum End {
    /// With its last page.
    Whole,
    /// `skip` leads no further, or not to every entry; `full` if there must be more entries.
    Stuck {
        /// Whether a page had so many entries that it may have been cut.
        full: bool,
    },
}

impl Informatica {
    async fn read_piece(
        &mut self,
        piece: Window,
        api: &Api,
        sink: &mut dyn Sink,
        progress: &mut Progress,
    ) -> Result<End, Failure> {
        let asked = whole_seconds(piece);
        let limit = self.limit as usize;
        let mut seen: HashSet<EventKey> = HashSet::new();
        let mut previous = Bytes::new();
        let mut full = false;
        let mut entries = 0;
        let mut skip = 0;
        // entries of the page before that are to come again
        let mut again = 0;
        let mut shifted = false;
        self.decoder.restart();
        loop {
            progress.requests += 1;
            if progress.requests > REQUESTS_MAX {
                let got = format!("no end after {REQUESTS_MAX} requests");
                return Err(Failure::new(ErrorKind::Truncated, "reading pages", got));
            }
            let reply = api.call(|session| Call::get(url(session, asked, self.limit, skip))).await?;
            if !reply.status.is_success() {
                return match skip {
                    0 => Err(reply.failure(ErrorKind::Server)),
                    // the first page of the piece, and not a full one
                    _ if skip <= entries && entries < progress.longest => Ok(End::Whole),
                    _ => Ok(End::Stuck { full }),
                };
            }
            let items =
                if reply.status == StatusCode::NO_CONTENT { Ok(Vec::new()) } else { self.decoder.items(&reply.body) };
            let items = items.map_err(|error| match error {
                BadPage::NoEntries => reply.undecodable(error),
                BadPage::List(bad) => unread(bad, &reply),
            })?;
            entries = items.len();
            let understood = items.iter().filter(|item| !matches!(item.what, What::Rejected(_))).count();
            let fresh = items.iter().filter(|item| seen.insert(item.key)).count();
            full |= entries >= limit.min(LIMIT_MIN);
            progress.longest = progress.longest.max(entries);
            let outside =
                items.iter().filter(|item| item.at.is_some_and(|at| at < asked.from || asked.to < at)).count();
            progress.outside += outside;
            if skip == 0 {
                progress.range_ignored |= outside > 0 && reply.body == progress.first_page;
                progress.first_page = reply.body.clone();
            }
            let may_be_cut = |entries: usize| entries >= LIMIT_MIN || (entries > 0 && entries.is_multiple_of(ROUND));
            let small = !may_be_cut(entries) && !may_be_cut(understood) && reply.body.len() < SMALL_BYTES;
            let is_last = if skip == 0 {
                entries == 0 || small
            } else {
                // nothing but what was to come again, or the last page once more
                fresh == 0 && (entries <= again || (reply.body == previous && entries < progress.longest))
            };
            if !is_last && (fresh == 0 || reply.body == previous) {
                return Ok(End::Stuck { full });
            }
            // an entry that comes twice stands where another one should: equal times may be in another order each time
            shifted |= skip > 0 && !is_last && entries - fresh > again;
            sink.page(Page { items, ..Page::default() }).await?;
            if is_last {
                return Ok(if shifted { End::Stuck { full: false } } else { End::Whole });
            }
            // what could not be understood may not be in the service's count: rather read an
            // entry twice than skip one
            let step = if understood > 0 { understood.min(limit) } else { entries.min(limit) };
            again = entries - step;
            skip += step;
            previous = reply.body;
        }
    }
}

/// A window in ranges the service answers, the last first.
fn ranges(window: Window) -> Vec<Window> {
    let mut ranges = Vec::new();
    let mut from = window.from;
    while from < window.to {
        let to = (from + crate::clock::delta(RANGE_MAX)).min(window.to);
        ranges.push(Window { from, to });
        from = to;
    }
    ranges.reverse();
    ranges
}

/// The whole seconds around a window: a service that writes or compares whole seconds would
/// otherwise leave out what happened between a second and an edge within it.
fn whole_seconds(window: Window) -> Window {
    let from = floor(window.from, SECOND);
    let to = floor(window.to + TimeDelta::milliseconds(999), SECOND);
    Window { from, to }
}

/// A page of the entries from `asked.from` to `asked.to`, both included.
///
/// The operator is `>=`: the documentation's table prints `=>`, all its examples `>=`.
fn url(session: &Session, asked: Window, limit: u32, skip: usize) -> Url {
    let time = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::Millis, true);
    let mut url = endpoint(&session.base, &["public", "core", "v3", "securityLog"]);
    let q = format!("entryTime>=\"{}\";entryTime<=\"{}\"", time(asked.from), time(asked.to));
    // there is no space in it, which form encoding would make a plus sign
    url.query_pairs_mut()
        .clear()
        .append_pair("q", &q)
        .append_pair("limit", &limit.to_string())
        .append_pair("skip", &skip.to_string());
    url.set_fragment(None);
    url
}

// === decoding ===

/// Turns pages of the log into items.
pub struct Decoder {
    ignore: Ignore,
    /// Labels by category and event as the service writes them. There are a few dozen, and to
    /// make them costs more than to read the entry.
    known: HashMap<String, HashMap<String, EventLabels>>,
    known_pairs: usize,
    /// How often an entry without id was seen since the last restart.
    nameless: HashMap<EventKey, u64>,
}

/// Why a body cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BadPage {
    /// It is no list of entries.
    #[error("no list of entries")]
    NoEntries,
    /// It is a list that is not read.
    #[error(transparent)]
    List(#[from] BadList),
}

impl Decoder {
    /// A decoder that marks the events of some actors as ignored.
    pub fn new(ignore: Ignore) -> Self {
        Self { ignore, known: HashMap::new(), known_pairs: 0, nameless: HashMap::new() }
    }

    /// Begins the reading of a range anew. Entries without id are told apart by how many equal
    /// ones there are in the reading of a range.
    pub fn restart(&mut self) {
        self.nameless.clear();
    }

    /// The items of one page, in its order.
    pub fn items(&mut self, body: &[u8]) -> Result<Vec<Item>, BadPage> {
        let whole = std::str::from_utf8(body).ok();
        // nearly every page is flawless and can be read in one go
        if let Some(entries) = whole.and_then(list::<Entry<'_>>) {
            match entries.read(Entry::when, |_, at| at.is_ok()) {
                Ok(entries) if entries.iter().all(|(_, at)| at.is_ok()) => {
                    let item = |(entry, at): (Entry<'_>, Result<_, _>)| {
                        self.item(&entry, at.ok().flatten(), entry.id().map(str::as_bytes))
                    };
                    return Ok(entries.into_iter().map(item).collect());
                }
                Err(BadList::TooMany) => return Err(BadPage::List(BadList::TooMany)),
                Ok(_) | Err(BadList::NothingOfItsOwn) => {}
            }
        }
        let tolerant = || Envelope::read(body)?.entries(|name| name == "entries", &[]);
        let raws: RawEvents<'_> = whole.and_then(list).or_else(tolerant).ok_or(BadPage::NoEntries)?;
        let is_own = |Raw(raw): &Raw<'_>, item: &Item| may_be_own(raw, &item.what, &OWN_NAMES);
        let items = raws.read(|Raw(raw)| self.careful(raw), is_own)?;
        Ok(items.into_iter().map(|(_, item)| item).collect())
    }

    /// The item of an entry that may be anything.
    fn careful(&mut self, raw: &[u8]) -> Item {
        if raw.first() != Some(&b'{') {
            return rejected(RejectReason::Malformed, raw);
        }
        let text;
        let mut is_mended = false;
        let mut entry: Result<Entry<'_>, _> = serde_json::from_slice(raw);
        if entry.is_err() {
            is_mended = true;
            text = mended(raw);
            entry = serde_json::from_str(&text);
        }
        let Ok(entry) = entry else { return rejected(RejectReason::Malformed, raw) };
        let at = match entry.when() {
            Err(RejectReason::Malformed) if entry.id().is_some() && looks_like_one_of(raw, &OWN_NAMES) => Ok(None),
            at => at,
        };
        let id = entry.id().map(|id| id_bytes(id, "id", raw, is_mended));
        match (at, id) {
            (Ok(at), id) => self.item(&entry, at, id),
            // with its own key, so that it does not count again as an event when its time is mended
            (Err(reason), Some(id)) => Item { key: key_of(id), ..rejected(reason, raw) },
            (Err(reason), None) => rejected(reason, raw),
        }
    }

    fn item(&mut self, entry: &Entry<'_>, at: Option<DateTime<Utc>>, id: Option<&[u8]>) -> Item {
        let key = match id {
            Some(id) => key_of(id),
            None => self.key_of_nameless(entry),
        };
        let what = if self.ignore.matches([text_of(entry.actor.as_ref())]) {
            What::Ignored
        } else {
            let category = text_of(entry.action_category.as_ref()).unwrap_or_default();
            let event = text_of(entry.action_event.as_ref()).unwrap_or_default();
            What::Event(self.labels(category, event))
        };
        Item { key, at, filed_at: at, what }
    }

    fn key_of_nameless(&mut self, entry: &Entry<'_>) -> EventKey {
        let fields = [
            entry.org_id.as_ref(),
            entry.actor.as_ref(),
            entry.time.as_ref(),
            entry.object_id.as_ref(),
            entry.object_name.as_ref(),
            entry.action_category.as_ref(),
            entry.action_event.as_ref(),
        ];
        let content =
            EventKey::of("informatica without id", &fields.map(|field| text_of(field).unwrap_or_default().as_bytes()));
        let nth = self.nameless.entry(content).or_default();
        *nth += 1;
        EventKey::of("informatica without id, n-th", &[&content.0, &nth.to_le_bytes()])
    }

    fn labels(&mut self, category: &str, event: &str) -> EventLabels {
        if let Some(labels) = self.known.get(category).and_then(|events| events.get(event)) {
            return labels.clone();
        }
        let labels = labels(category, event);
        if category.len() + event.len() <= KNOWN_BYTES_MAX {
            if self.known_pairs >= KNOWN_MAX {
                self.known.clear();
                self.known_pairs = 0;
            }
            self.known_pairs += 1;
            self.known.entry(category.to_owned()).or_default().insert(event.to_owned(), labels.clone());
        }
        labels
    }
}

/// The log holds what was done, not what was tried: every outcome is a success.
fn labels(category: &str, event: &str) -> EventLabels {
    let event = Label::from_words(event);
    let (action, class) = match event.as_str() {
        "user_login" => (Label::from_words("login"), Class::Login(Principal::User)),
        "agent_login" => (Label::from_words("login"), Class::Login(Principal::Agent)),
        "logout" => (event, Class::Logout),
        _ => (event, Class::Change),
    };
    EventLabels { category: Label::from_words(category), action, outcome: Outcome::Success, class }
}

/// The list of a page: under `entries`, or bare.
fn list<'a, T: Deserialize<'a>>(text: &'a str) -> Option<List<T>> {
    #[derive(Deserialize)]
    #[serde(bound = "T: Deserialize<'de>")]
    struct Wire<T> {
        entries: List<T>,
    }
    if text.trim_ascii_start().starts_with('[') {
        serde_json::from_str(text).ok()
    } else {
        serde_json::from_str(text).ok().map(|Wire { entries }| entries)
    }
}

/// One entry. Every field may be missing.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    org_id: Option<Text<'a>>,
    #[serde(borrow)]
    actor: Option<Text<'a>>,
    #[serde(borrow, rename = "entryTime")]
    time: Option<Text<'a>>,
    #[serde(borrow)]
    object_id: Option<Text<'a>>,
    #[serde(borrow)]
    object_name: Option<Text<'a>>,
    #[serde(borrow)]
    action_category: Option<Text<'a>>,
    #[serde(borrow)]
    action_event: Option<Text<'a>>,
}

/// The key of an entry with this id.
fn key_of(id: &[u8]) -> EventKey {
    EventKey::of("informatica", &[id])
}

/// The names of an entry's fields.
const OWN_NAMES: [&str; 8] =
    ["id", "orgId", "actor", "entryTime", "objectId", "objectName", "actionCategory", "actionEvent"];

impl Entry<'_> {
    /// Its id, if it has one.
    fn id(&self) -> Option<&str> {
        text_of(self.id.as_ref()).filter(|id| !id.is_empty())
    }

    /// When it happened, where it says so; or why it is no event. An id alone does not make it one.
    fn when(&self) -> Result<Option<DateTime<Utc>>, RejectReason> {
        if self.time.is_none() {
            let says_what = [&self.action_category, &self.action_event].iter().any(|text| text.is_some());
            return if says_what { Ok(None) } else { Err(RejectReason::Malformed) };
        }
        let text = text_of(self.time.as_ref()).ok_or(RejectReason::BadTime)?;
        // the documented format is also that of RFC 3339, which is read faster
        let at = DateTime::parse_from_rfc3339(text).ok().map(|at| at.to_utc());
        at.or_else(|| parse_time(text)).map(Some).ok_or(RejectReason::BadTime)
    }
}

/// A text, borrowed from the page where it holds no escape; a number is taken as it reads, and anything else as a
/// field that says nothing.
///
/// serde borrows a `Cow` field, but not one within an `Option`.
struct Text<'a>(Option<Cow<'a, str>>);

fn text_of<'a>(text: Option<&'a Text<'_>>) -> Option<&'a str> {
    text?.0.as_deref()
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyText;

        impl<'de> Visitor<'de> for AnyText {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a number")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Some(Cow::Borrowed(text))))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Some(Cow::Owned(text.to_owned()))))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Text<'de>, E> {
                Ok(Text(Some(Cow::Owned(number.to_string()))))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Text<'de>, E> {
                Ok(Text(Some(Cow::Owned(number.to_string()))))
            }

            fn visit_f64<E: Error>(self, number: f64) -> Result<Text<'de>, E> {
                // so that the entry is mended, which keeps the digits
                const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
                if number.abs() > EXACT_MAX {
                    return Err(E::custom("more digits than a number holds"));
                }
                Ok(Text(Some(Cow::Owned(number.to_string()))))
            }

            fn visit_bool<E: Error>(self, _: bool) -> Result<Text<'de>, E> {
                Ok(Text(None))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Text<'de>, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Text(None))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Text<'de>, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Text(None))
            }
        }

        deserializer.deserialize_any(AnyText)
    }
}

#[cfg(test)]
mod tests;
