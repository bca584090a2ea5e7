//! Reads JSON that is not quite JSON, so that what one event holds costs no other event.
//!
//! Promises:
//! - Text that is JSON is read as `serde_json` reads it, and by it alone: what is here comes after it has failed.
//! - Borders of entries are told by quotes and brackets. Within a string any byte may stand: what is not UTF-8, half
//!   of a surrogate pair, or no escape becomes U+FFFD. Outside, words that are no JSON become `null`, and comments and
//!   commas too many are passed over.
//! - An entry that is good is found byte for byte as it stands, whatever its neighbours hold.
//! - The beginning of a document is never taken for the whole: a text that ends before its last bracket is no document.
//!
//! Leaves to others: what a field means (`source/*.rs`).

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error, IgnoredAny};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::list::{List, Raw};
use crate::encoding::without_mark;

/// Nesting beyond this is left out of a mended text; `serde_json` reads 128 levels.
const LEVELS_MAX: usize = 100;
/// How many times its own length of a broken entry is read to find others that it has swallowed.
const SEARCHED_MAX: usize = 16;

// === fields ===

/// A field of an event or of an answer. What it may be is for its reader to say: a field that has another type than it
/// should have does not keep the others from being read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Field {
    /// Left out, or `null`.
    #[default]
    Missing,
    /// A text.
    Text(String),
    /// A number, as it is written.
    Number(String),
    /// Anything else.
    Other,
}

impl Field {
    /// What a value is, given as it stands in an answer.
    pub fn of(raw: &[u8]) -> Self {
        serde_json::from_slice(raw).unwrap_or_else(|_| match value(raw) {
            Value::Null => Self::Missing,
            Value::String(text) => Self::Text(text),
            Value::Number(number) => Self::Number(number.to_string()),
            _ => Self::Other,
        })
    }

    /// As an id or a name: a text or a number, alike for both ways of writing it. An empty one is none.
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Number(text) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    /// As a word that becomes a label.
    pub fn word(&self) -> &str {
        if let Self::Text(text) = self { text } else { "" }
    }

    /// As a number that counts something; `None` where it does not, as -1 does not.
    pub fn count(&self) -> Option<u64> {
        let text = self.id()?.trim();
        let number = || {
            let number = text.parse::<f64>().ok()?;
            #[expect(clippy::cast_precision_loss, reason = "it is compared with what a number can hold exactly")]
            let exact = (0.0..=(1_u64 << 53) as f64).contains(&number) && number.fract() == 0.0;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "looked at before")]
            exact.then_some(number as u64)
        };
        text.parse().ok().or_else(number)
    }

    /// Whether there is nothing.
    pub fn is_missing(&self) -> bool {
        *self == Self::Missing
    }
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?.get();
        Ok(match raw.as_bytes()[0] {
            b'"' => Self::Text(serde_json::from_str(raw).map_err(D::Error::custom)?),
            b'n' => Self::Missing,
            b'-' | b'0'..=b'9' => {
                // a number is written as it always was; one with more digits than a number holds keeps them all
                let digits = raw.strip_prefix('-').unwrap_or(raw);
                let is_long = digits.len() > 18 && digits.bytes().all(|byte| byte.is_ascii_digit());
                let number = if is_long { None } else { serde_json::from_str(raw).ok() };
                Self::Number(number.map_or_else(|| raw.to_owned(), |number: serde_json::Number| number.to_string()))
            }
            _ => Self::Other,
        })
    }
}

/// An object that may be missing, or be something else instead.
#[derive(Clone, Debug, Default)]
pub struct Inner<T>(pub Option<T>);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Inner<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?.get();
        let is_object = raw.starts_with('{');
        Ok(Self(is_object.then(|| serde_json::from_str(raw)).transpose().map_err(D::Error::custom)?))
    }
}

// === entries ===

/// An entry that was read.
pub struct Understood<T> {
    /// What it says.
    pub entry: T,
    /// It was no JSON before it was mended: texts of it may hold less than they did.
    pub mended: bool,
}

/// Reads an entry that is an object, as it is or mended. Where a key stands twice, the last one counts.
pub fn understand<T: DeserializeOwned>(raw: &[u8]) -> Option<Understood<T>> {
    if raw.first() != Some(&b'{') {
        return None;
    }
    if let Ok(entry) = serde_json::from_slice(raw) {
        return Some(Understood { entry, mended: false });
    }
    let entry = serde_json::from_str(&mended(raw)).ok()?;
    Some(Understood { entry, mended: true })
}

/// A text as JSON, whatever it was.
pub fn mended(raw: &[u8]) -> String {
    value(raw).to_string()
}

/// The value of a text, as it is or mended.
pub fn value(raw: &[u8]) -> Value {
    serde_json::from_slice(raw).unwrap_or_else(|_| Scan::new(raw).value(0))
}

/// The same of a text that is whole: `None` where it ends before its last bracket, or goes on behind it.
pub fn whole_value(raw: &[u8]) -> Option<Value> {
    serde_json::from_slice(raw).ok().or_else(|| {
        let mut scan = Scan::new(raw);
        let value = scan.value(0);
        (!scan.is_cut && scan.blanks().is_none()).then_some(value)
    })
}

/// What makes an id its own. A text that was mended may be that of another one, too; its bytes are not.
pub fn id_bytes<'a>(id: &'a str, name: &str, raw: &'a [u8], mended: bool) -> &'a [u8] {
    let own = (mended && id.contains(char::REPLACEMENT_CHARACTER)).then(|| member(raw, name)).flatten();
    // it may be as good as it stands, and something else was mended
    own.filter(|own| serde_json::from_slice::<Field>(own).is_err()).unwrap_or(id.as_bytes())
}

/// A field of an object, as it stands there.
fn member<'a>(raw: &'a [u8], name: &str) -> Option<&'a [u8]> {
    members(raw).into_iter().rev().find(|(is, _)| is == name).map(|(_, raw)| raw)
}

fn members(raw: &[u8]) -> Vec<(String, &[u8])> {
    let mut scan = Scan::new(raw);
    let mut members = Vec::new();
    if scan.blanks() == Some(b'{') {
        scan.object(&mut |scan, name| {
            let (value, whole) = scan.skipped();
            members.push((name, value));
            whole
        });
    }
    members
}

/// Names of an error, which are none of an event.
const NAMES_OF_ERRORS: [&str; 12] = [
    "code",
    "description",
    "detail",
    "error",
    "error_description",
    "errorcode",
    "errormessage",
    "errors",
    "exception",
    "fault",
    "message",
    "title",
];

fn names_an_error(name: &str) -> bool {
    NAMES_OF_ERRORS.contains(&name.to_ascii_lowercase().as_str())
}

/// Whether an entry may be an event of a service that gives its fields these names: it has one of them. An `id` alone
/// is not enough beside the names of an error.
pub fn looks_like_one_of(raw: &[u8], own: &[&str]) -> bool {
    let members = members(raw);
    let has = |is: &dyn Fn(&str) -> bool| members.iter().any(|(name, _)| is(name));
    has(&|name| name != "id" && own.contains(&name)) || (has(&|name| name == "id") && !has(&names_an_error))
}

// === answers ===

/// An answer of which `serde_json` could make nothing.
pub enum Envelope<'a> {
    /// `null`, where a list might stand.
    Nothing,
    /// A list without anything around it.
    Bare(List<Raw<'a>>),
    /// A document. Names may come twice.
    Document(Vec<(String, &'a [u8])>),
}

impl<'a> Envelope<'a> {
    /// `None` where the text is no document, or not all of one.
    pub fn read(body: &'a [u8]) -> Option<Self> {
        let mut scan = Scan::new(without_mark(body));
        let (envelope, whole) = match scan.blanks()? {
            b'[' => {
                let (list, whole) = scan.list();
                (Self::Bare(list), whole)
            }
            b'{' => {
                let mut members = Vec::new();
                let whole = scan.object(&mut |scan, name| {
                    let (value, whole) = scan.skipped();
                    members.push((name, value));
                    whole
                });
                (Self::Document(members), whole)
            }
            _ => (Self::Nothing, scan.skipped().0 == b"null"),
        };
        (whole && scan.blanks().is_none()).then_some(envelope)
    }

    /// The entries of the list that `is_list` names; `None` if this is no answer of the service. No list at all is
    /// an empty one where the answer says that there is nothing, or has other fields of the service's own: `others`.
    pub fn entries(self, is_list: impl Fn(&str) -> bool, others: &[&str]) -> Option<List<Raw<'a>>> {
        let members = match &self {
            Self::Bare(_) => {
                let Self::Bare(list) = self else { return None };
                return Some(list);
            }
            Self::Nothing => return Some(List::default()),
            Self::Document(members) => members,
        };
        let mut lists: Vec<&[u8]> = Vec::new();
        let mut is_named = false;
        for (_, raw) in members.iter().filter(|(name, _)| is_list(name)) {
            is_named = true;
            match raw.first() {
                Some(b'[') if !lists.contains(raw) => lists.push(raw),
                Some(b'[') => {}
                _ if Field::of(raw).is_missing() => {}
                _ => return None,
            }
        }
        if lists.is_empty() && (self.says_error() || !(is_named || self.says_nothing(others))) {
            return None;
        }
        let mut all = List::default();
        for raw in lists {
            let (list, _) = Scan::new(raw).list();
            all.append(list);
        }
        Some(all)
    }

    /// Whether it says that there is nothing: a total of 0, or a page beyond the last, or fields of the service's own.
    fn says_nothing(&self, others: &[&str]) -> bool {
        let total = ["totalCount", "totalResults", "total", "count"].iter().find_map(|name| self.field(name).count());
        match (total, self.field("page").count(), self.field("perPage").count()) {
            (Some(total), Some(page), Some(per_page)) if total > 0 => page.saturating_mul(per_page) >= total,
            (Some(total), ..) => total == 0,
            (None, ..) => others.iter().any(|name| !self.field(name).is_missing()),
        }
    }

    fn says_error(&self) -> bool {
        let Self::Document(members) = self else { return false };
        let is_said = |raw: &[u8]| !matches!(raw, b"" | b"null" | b"false" | b"\"\"" | b"[]" | b"{}" | b"0");
        members.iter().any(|(name, raw)| names_an_error(name) && is_said(raw))
    }

    /// A field of the document; the last one of that name.
    pub fn field(&self, name: &str) -> Field {
        self.member(name).map_or(Field::Missing, Field::of)
    }

    /// The same as it stands there.
    pub fn member(&self, name: &str) -> Option<&'a [u8]> {
        let Self::Document(members) = self else { return None };
        members.iter().rev().find(|(is, _)| is == name).map(|(_, raw)| *raw)
    }
}

// === reading by quotes and brackets ===

/// A text, and how far it has been read.
struct Scan<'a> {
    text: &'a [u8],
    at: usize,
    /// Brackets that are open.
    open: Vec<u8>,
    /// The text ended within a value.
    is_cut: bool,
}

/// What an array or an object does with each of its values: whether the text went on to its end.
type Each<'e, 'a, T> = &'e mut dyn FnMut(&mut Scan<'a>, T) -> bool;

impl<'a> Scan<'a> {
    fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0, open: Vec::new(), is_cut: false }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// Passes over what means nothing between two values, and looks at what follows.
    fn blanks(&mut self) -> Option<u8> {
        loop {
            let rest = &self.text[self.at..];
            self.at += match rest {
                [b' ' | b'\t' | b'\r' | b'\n' | 0, ..] => 1,
                [0xEF, 0xBB, 0xBF, ..] => 3,
                [b'/', b'/', ..] => rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()),
                [b'/', b'*', ..] => {
                    rest.windows(2).skip(2).position(|two| two == b"*/").map_or(rest.len(), |end| end + 4)
                }
                _ => return rest.first().copied(),
            };
        }
    }

    /// Whether the closing bracket that is next closes something that was opened before the innermost `from`; one that
    /// closes nothing at all is passed over.
    fn closes_outside(&mut self, closing: u8, from: usize) -> bool {
        let opening = if closing == b']' { b'[' } else { b'{' };
        match self.open.iter().rposition(|open| *open == opening) {
            Some(at) if at < from => return true,
            Some(at) => {
                self.open.truncate(at);
                self.at += 1;
            }
            None => self.at += 1,
        }
        false
    }

    /// The value that begins here, as it stands; whether the text goes on to its end.
    fn skipped(&mut self) -> (&'a [u8], bool) {
        let next = self.blanks();
        let begin = self.at;
        let base = self.open.len();
        let whole = match next {
            Some(b'{' | b'[') => self.skip_nested(base),
            Some(quote @ (b'"' | b'\'')) => self.skip_string(quote),
            // nothing stands here
            Some(b',' | b':' | b']' | b'}') => true,
            Some(_) => {
                self.skip_word();
                true
            }
            None => false,
        };
        (self.text[begin..self.at].trim_ascii_end(), whole)
    }

    fn skip_nested(&mut self, base: usize) -> bool {
        while let Some(next) = self.blanks() {
            match next {
                b'{' | b'[' => {
                    self.open.push(next);
                    self.at += 1;
                }
                b'}' | b']' => {
                    if self.closes_outside(next, base) {
                        self.open.truncate(base);
                    }
                    if self.open.len() <= base {
                        return true;
                    }
                }
                b'"' | b'\'' => {
                    if !self.skip_string(next) {
                        return false;
                    }
                }
                b',' | b':' => self.at += 1,
                _ => self.skip_word(),
            }
        }
        false
    }

    /// A quote ends a string where the text can go on behind it; any other is part of it.
    fn skip_string(&mut self, quote: u8) -> bool {
        self.at += 1;
        while let Some(byte) = self.peek() {
            self.at += 1;
            if byte == b'\\' {
                self.at = (self.at + 1).min(self.text.len());
            } else if byte == quote {
                let rest = self.text[self.at..].trim_ascii_start();
                if matches!(rest, [] | [b',' | b':' | b']' | b'}' | 0, ..] | [b'/', b'/' | b'*', ..]) {
                    return true;
                }
            }
        }
        false
    }

    fn skip_word(&mut self) {
        let ends = |byte: &u8| matches!(byte, b',' | b':' | b'[' | b']' | b'{' | b'}') || byte.is_ascii_whitespace();
        let rest = &self.text[self.at + 1..];
        self.at += 1 + rest.iter().position(ends).unwrap_or(rest.len());
    }

    /// Reads the list that begins here.
    fn array(&mut self, each: Each<'_, 'a, ()>) -> bool {
        self.open.push(b'[');
        let base = self.open.len();
        self.at += 1;
        while let Some(next) = self.blanks() {
            match next {
                b']' | b'}' => {
                    if self.closes_outside(next, base - 1) || self.open.len() < base {
                        self.open.truncate(base - 1);
                        return true;
                    }
                }
                b',' | b':' => self.at += 1,
                _ => {
                    if !each(self, ()) {
                        return false;
                    }
                }
            }
        }
        false
    }

    /// Reads the object that begins here. A name without a value is passed over.
    fn object(&mut self, each: Each<'_, 'a, String>) -> bool {
        self.open.push(b'{');
        let base = self.open.len();
        self.at += 1;
        while let Some(next) = self.blanks() {
            match next {
                b']' | b'}' => {
                    if self.closes_outside(next, base - 1) || self.open.len() < base {
                        self.open.truncate(base - 1);
                        return true;
                    }
                }
                b',' | b':' => self.at += 1,
                _ => {
                    let (name, whole) = self.skipped();
                    if !whole {
                        return false;
                    }
                    if self.blanks() != Some(b':') {
                        continue;
                    }
                    self.at += 1;
                    self.blanks();
                    if !each(self, text(name)) {
                        return false;
                    }
                }
            }
        }
        false
    }

    /// The entries of the list that begins here, and whether it ends.
    fn list(&mut self) -> (List<Raw<'a>>, bool) {
        let mut list = List::default();
        let whole = self.array(&mut |scan, ()| {
            let (entry, whole) = scan.skipped();
            for entry in apart(entry) {
                list.push(Raw(entry));
            }
            whole
        });
        (list, whole)
    }

    /// The value that begins here.
    fn value(&mut self, level: usize) -> Value {
        match self.blanks() {
            Some(b'{') if level < LEVELS_MAX => {
                let mut fields = Map::new();
                let whole = self.object(&mut |scan, name| {
                    let value = scan.value(level + 1);
                    fields.insert(name, value);
                    true
                });
                self.is_cut |= !whole;
                Value::Object(fields)
            }
            Some(b'[') if level < LEVELS_MAX => {
                let mut values = Vec::new();
                let whole = self.array(&mut |scan, ()| {
                    values.push(scan.value(level + 1));
                    true
                });
                self.is_cut |= !whole;
                Value::Array(values)
            }
            _ => {
                let (raw, whole) = self.skipped();
                self.is_cut |= !whole;
                word(raw)
            }
        }
    }
}

/// A string, number or word. A number that none can hold exactly is a text, which keeps all it says.
fn word(raw: &[u8]) -> Value {
    match raw {
        [b'"' | b'\'', ..] => Value::String(text(raw)),
        [b'{' | b'[', ..] => Value::Null,
        _ => match serde_json::from_slice::<Value>(raw) {
            Ok(Value::Number(number)) if number.to_string().as_bytes() != raw => Value::String(text(raw)),
            Ok(value) => value,
            Err(_) if raw.eq_ignore_ascii_case(b"true") => Value::Bool(true),
            Err(_) if raw.eq_ignore_ascii_case(b"false") => Value::Bool(false),
            Err(_) if raw.iter().any(u8::is_ascii_digit) => Value::String(text(raw)),
            Err(_) => Value::Null,
        },
    }
}

/// What a string says, with its quotes or without, as far as it can be told.
fn text(raw: &[u8]) -> String {
    if let Ok(text) = serde_json::from_slice(raw) {
        return text;
    }
    let inner = match raw {
        [first @ (b'"' | b'\''), inner @ .., last] if first == last => inner,
        [b'"' | b'\'', inner @ ..] => inner,
        bare => bare,
    };
    let inner: Cow<'_, str> = String::from_utf8_lossy(inner);
    let mut units: Vec<u16> = Vec::new();
    let mut said = String::new();
    let flush = |units: &mut Vec<u16>, said: &mut String| {
        said.extend(char::decode_utf16(units.drain(..)).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)));
    };
    let mut letters = inner.chars();
    while let Some(letter) = letters.next() {
        if letter != '\\' {
            flush(&mut units, &mut said);
            said.push(letter);
            continue;
        }
        let rest = letters.as_str();
        let digits = rest.strip_prefix('u').and_then(|rest| rest.get(..4));
        let unit = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if let Some(unit) = unit.and_then(|unit| u16::from_str_radix(unit, 16).ok()) {
            units.push(unit);
            letters = rest[5..].chars();
            continue;
        }
        flush(&mut units, &mut said);
        said.push(match letters.next() {
            Some(letter @ ('"' | '\'' | '\\' | '/')) => letter,
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            _ => char::REPLACEMENT_CHARACTER,
        });
    }
    flush(&mut units, &mut said);
    said
}

/// An entry and those that it has swallowed: a quote or bracket that is missing in one moves its border to that of a later
/// one. What follows `},` and is JSON to the end is not part of it.
fn apart(entry: &[u8]) -> Vec<&[u8]> {
    if entry.first() != Some(&b'{') || serde_json::from_slice::<IgnoredAny>(entry).is_ok() {
        return vec![entry];
    }
    let mut budget = entry.len().saturating_mul(SEARCHED_MAX);
    for (at, _) in entry.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'{') {
        let before = entry[..at].trim_ascii_end();
        let Some(before) = before.strip_suffix(b",").map(<[u8]>::trim_ascii_end) else { continue };
        if before.last() != Some(&b'}') {
            continue;
        }
        if let Some(others) = good_entries(&entry[at..], &mut budget) {
            return std::iter::once(before).chain(others).collect();
        }
        if budget == 0 {
            break;
        }
    }
    vec![entry]
}

/// Objects with commas between them and nothing else, if the text is that.
fn good_entries<'a>(text: &'a [u8], budget: &mut usize) -> Option<Vec<&'a [u8]>> {
    let mut entries = Vec::new();
    let mut rest = text;
    loop {
        let mut stream = serde_json::Deserializer::from_slice(rest).into_iter::<IgnoredAny>();
        let read = stream.next();
        let end = match &read {
            Some(Err(error)) => offset(rest, error),
            _ => stream.byte_offset(),
        };
        *budget = budget.saturating_sub(end.max(1));
        if !matches!(read, Some(Ok(_))) || rest.first() != Some(&b'{') || *budget == 0 {
            return None;
        }
        entries.push(&rest[..end]);
        rest = rest[end..].trim_ascii();
        match rest.split_first() {
            None => return Some(entries),
            Some((b',', more)) => rest = more.trim_ascii_start(),
            Some(_) => return None,
        }
    }
}

/// How far a text was read until it broke.
fn offset(text: &[u8], error: &serde_json::Error) -> usize {
    let lines = text.split_inclusive(|byte| *byte == b'\n').take(error.line().saturating_sub(1));
    lines.map(<[u8]>::len).sum::<usize>() + error.column()
}

#[cfg(test)]
mod tests;
