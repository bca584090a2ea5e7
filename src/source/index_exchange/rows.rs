//! One file, gzip or plain CSV, as rows by `event_type`, counted while its bytes arrive.
//!
//! Promises: the counts do not depend on how the bytes are cut; nothing of a file is kept but
//! the record under way, so neither a large file nor one that unpacks to terabytes costs memory;
//! a gzip stream that ends too early is an error.
//!
//! Leaves to others: the bytes and what to do about errors (`index_exchange.rs`), the cap on
//! label values (`ledger.rs`).

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

use csv_core::ReadRecordResult;

use crate::encoding::Gunzip;
use crate::event::Label;

/// The longest record, in bytes; those of the service have a few hundred.
pub const RECORD_BYTES_MAX: usize = 1 << 20;
/// How many spellings of `event_type` one file may have; further ones count as `other`.
const ACTIONS_MAX: usize = 1000;
/// How much of an `event_type` is looked at; a label has at most 64 characters.
const ACTION_BYTES_MAX: usize = 256;
/// How far a file is looked into for its first letter, which tells a page from a table.
const BLANK_BYTES_MAX: usize = 1024;
/// The column that names the action.
const ACTION_COLUMN: &str = "event_type";
const BOM: &[u8] = b"\xef\xbb\xbf";
const GZIP: &[u8] = b"\x1f\x8b";

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// Rows by action.
    pub by_action: BTreeMap<Label, u64>,
    /// Rows with more or fewer fields than the header has.
    pub rejected: u64,
    /// How many columns the header has; 0 where there is none.
    pub columns: usize,
    /// Whether one of them is `event_type`; without it all rows are `unknown`.
    pub names_actions: bool,
}

/// Why a file cannot be counted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadFile {
    /// One record is longer than [`RECORD_BYTES_MAX`].
    #[error("a record of more than {RECORD_BYTES_MAX} bytes")]
    RecordTooLong,
    /// It is neither gzip nor CSV.
    #[error("{0} instead of a file")]
    NoFile(&'static str),
    /// It is gzip, but broken or cut off.
    #[error("gzip that is broken or ends too early: {0}")]
    Gzip(String),
}

/// Counts the rows of a CSV text that arrives in pieces.
///
/// What CSV means is decided by `csv_core`. Measured on one core: 1,300 MB/s of text, 750 MB/s
/// with unpacking. Cutting lines without quotes by hand was up to twice as fast for the text
/// alone; unpacking and the network are slower than either, so it was left out.
pub struct RowCounter {
    /// The first bytes, until it is known whether they are a byte order mark.
    head: Option<Vec<u8>>,
    parser: csv_core::Reader,
    /// The record under way in the parser: how many bytes of it were read, its fields so far.
    record_bytes: usize,
    text: Vec<u8>,
    text_len: usize,
    ends: Vec<usize>,
    ends_len: usize,
    header: Option<Header>,
    tally: Tally,
}

#[derive(Clone, Copy)]
struct Header {
    columns: usize,
    action: Option<usize>,
}

/// Rows by the raw text of their `event_type`.
#[derive(Default)]
struct Tally {
    index: HashMap<Box<[u8]>, usize>,
    counts: Vec<(Box<[u8]>, u64)>,
    /// The text of the previous row. The next row usually has the same.
    last: usize,
    other: u64,
    rejected: u64,
}

impl Default for RowCounter {
    fn default() -> Self {
        Self::new()
    }
}

impl RowCounter {
    /// A counter at the start of a file.
    pub fn new() -> Self {
        Self {
            head: Some(Vec::new()),
            parser: csv_core::Reader::new(),
            record_bytes: 0,
            text: vec![0; 4096],
            text_len: 0,
            ends: vec![0; 64],
            ends_len: 0,
            header: None,
            tally: Tally::default(),
        }
    }

    /// Counts the next piece of the text. After an error nothing more can be counted.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), BadFile> {
        let Some(head) = &mut self.head else { return self.text(bytes) };
        head.extend_from_slice(bytes);
        if head.len() < BOM.len() && BOM.starts_with(head) {
            return Ok(());
        }
        let head = self.head.take().unwrap_or_default();
        self.text(head.strip_prefix(BOM).unwrap_or(&head))
    }

    /// What was counted. A last record needs no newline.
    pub fn finish(mut self) -> Result<Rows, BadFile> {
        if let Some(head) = self.head.take() {
            self.text(&head)?;
        }
        if self.record_bytes > 0 {
            self.record(&[])?;
        }
        let mut rows = Rows {
            rejected: self.tally.rejected,
            columns: self.header.map_or(0, |header| header.columns),
            names_actions: self.header.is_some_and(|header| header.action.is_some()),
            ..Rows::default()
        };
        for (raw, count) in self.tally.counts {
            *rows.by_action.entry(Label::from_words(&String::from_utf8_lossy(&raw))).or_default() += count;
        }
        if self.tally.other > 0 {
            *rows.by_action.entry(Label::other()).or_default() += self.tally.other;
        }
        Ok(rows)
    }

    fn text(&mut self, mut bytes: &[u8]) -> Result<(), BadFile> {
        loop {
            if self.record_bytes == 0 {
                // what csv_core skips between records must not count as part of the next
                let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
                bytes = &bytes[blank..];
            }
            if bytes.is_empty() {
                return Ok(());
            }
            bytes = &bytes[self.record(bytes)?..];
        }
    }

    /// Parses up to the end of one record or of the bytes, and says how many those were; no bytes
    /// at all are the end of the text.
    fn record(&mut self, bytes: &[u8]) -> Result<usize, BadFile> {
        let mut at = 0;
        loop {
            let (text, ends) = (&mut self.text[self.text_len..], &mut self.ends[self.ends_len..]);
            let (result, read, written, ended) = self.parser.read_record(&bytes[at..], text, ends);
            at += read;
            self.record_bytes += read;
            self.text_len += written;
            self.ends_len += ended;
            if self.record_bytes > RECORD_BYTES_MAX {
                return Err(BadFile::RecordTooLong);
            }
            // neither grows beyond twice what a record may have: each field has a byte that ends it
            match result {
                ReadRecordResult::InputEmpty => return Ok(at),
                ReadRecordResult::OutputFull => self.text.resize(self.text.len() * 2, 0),
                ReadRecordResult::OutputEndsFull => self.ends.resize(self.ends.len() * 2, 0),
                ReadRecordResult::Record | ReadRecordResult::End => break,
            }
        }
        let ends = &self.ends[..self.ends_len];
        let field = |n: usize| &self.text[if n == 0 { 0 } else { ends[n - 1] }..ends[n]];
        match self.header {
            None => {
                // a row may hold anything; what has this in its header is no table
                if (0..ends.len()).flat_map(field).any(|byte| byte.is_ascii_control() && !byte.is_ascii_whitespace()) {
                    return Err(BadFile::NoFile("something that is neither text nor gzip"));
                }
                let named =
                    |n: &usize| Label::from_words(&String::from_utf8_lossy(field(*n))).as_str() == ACTION_COLUMN;
                self.header = Some(Header { columns: ends.len(), action: (0..ends.len()).find(named) });
            }
            Some(header) if header.columns != ends.len() => self.tally.rejected += 1,
            Some(header) => self.tally.add(header.action.map_or(&[], field)),
        }
        (self.record_bytes, self.text_len, self.ends_len) = (0, 0, 0);
        Ok(at)
    }
}

impl Tally {
    fn add(&mut self, raw: &[u8]) {
        let raw = &raw[..raw.len().min(ACTION_BYTES_MAX)];
        if let Some((last, count)) = self.counts.get_mut(self.last)
            && **last == *raw
        {
            *count += 1;
        } else if let Some(index) = self.index.get(raw) {
            self.last = *index;
            self.counts[*index].1 += 1;
        } else if self.counts.len() < ACTIONS_MAX {
            self.last = self.counts.len();
            self.index.insert(raw.into(), self.last);
            self.counts.push((raw.into(), 1));
        } else {
            self.other += 1;
        }
    }
}

/// Unpacks and counts a file that arrives in pieces.
pub struct Unpacker(Form);

enum Form {
    /// Too little has arrived to tell what it is.
    Unknown(Vec<u8>),
    Plain(Box<RowCounter>),
    Gzip(Box<Gunzip<Feeder>>),
}

/// Hands unpacked bytes on.
struct Feeder(RowCounter);

impl Write for Feeder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.feed(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Default for Unpacker {
    fn default() -> Self {
        Self::new()
    }
}

impl Unpacker {
    /// One to which nothing has come yet.
    pub fn new() -> Self {
        Self(Form::Unknown(Vec::new()))
    }

    /// Counts the next piece. After an error nothing more can be counted.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), BadFile> {
        match &mut self.0 {
            Form::Plain(counter) => counter.feed(bytes),
            Form::Gzip(decoder) => decoder.write_all(bytes).map_err(bad_gzip),
            Form::Unknown(head) => {
                head.extend_from_slice(bytes);
                let blank = head.iter().take(BLANK_BYTES_MAX).all(u8::is_ascii_whitespace);
                if head.len() < GZIP.len() || (blank && head.len() < BLANK_BYTES_MAX) {
                    return Ok(());
                }
                self.decide()
            }
        }
    }

    /// Begins with what has arrived so far.
    fn decide(&mut self) -> Result<(), BadFile> {
        let Form::Unknown(head) = &mut self.0 else { return Ok(()) };
        let head = std::mem::take(head);
        refuse_pages(&head)?;
        self.0 = if head.starts_with(GZIP) {
            Form::Gzip(Box::new(Gunzip::new(Feeder(RowCounter::new()))))
        } else {
            Form::Plain(Box::default())
        };
        self.feed(&head)
    }

    /// What was counted, if the file ended where it should.
    pub fn finish(mut self) -> Result<Rows, BadFile> {
        match &self.0 {
            Form::Unknown(head) if head.is_empty() => return Err(BadFile::NoFile("nothing")),
            Form::Unknown(head) if head.len() < GZIP.len() => return Err(BadFile::NoFile("a single byte")),
            _ => self.decide()?,
        }
        let rows = match self.0 {
            Form::Unknown(_) => return Err(BadFile::NoFile("nothing")),
            Form::Plain(counter) => counter.finish()?,
            Form::Gzip(decoder) => decoder.finish().map_err(bad_gzip)?.0.finish()?,
        };
        if rows.columns == 1 && !rows.names_actions {
            return Err(BadFile::NoFile("a text that is not a table"));
        }
        Ok(rows)
    }
}

/// A login page or an error sent with status 200 would otherwise be counted line by line.
fn refuse_pages(head: &[u8]) -> Result<(), BadFile> {
    match head.iter().take(BLANK_BYTES_MAX).find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'<') => Err(BadFile::NoFile("a page")),
        Some(b'{' | b'[') => Err(BadFile::NoFile("JSON")),
        _ => Ok(()),
    }
}

fn bad_gzip(error: io::Error) -> BadFile {
    match error.downcast::<BadFile>() {
        Ok(bad) => bad,
        Err(error) => BadFile::Gzip(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

    fn count(pieces: &[&[u8]]) -> Result<Rows, BadFile> {
        let mut counter = RowCounter::new();
        for piece in pieces {
            counter.feed(piece)?;
        }
        counter.finish()
    }

    fn unpack(bytes: &[u8], piece: usize) -> Result<Rows, BadFile> {
        let mut unpacker = Unpacker::new();
        for piece in bytes.chunks(piece) {
            unpacker.feed(piece)?;
        }
        unpacker.finish()
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    /// Actions with their counts, then what was rejected.
    fn shown(rows: &Rows) -> String {
        let actions: Vec<String> = rows.by_action.iter().map(|(action, count)| format!("{action}={count}")).collect();
        format!("{} -{}", actions.join(" "), rows.rejected)
    }

    #[test]
    fn rows_are_counted_by_the_words_of_their_event_type() {
        for (text, expected) in [
            ("a,event_type,b\n1,impression,2\n3,impression,4\n", "impression=2 -0"),
            ("a,event_type,b\r\n1,bid,2\r\n3,Bid Won,4", "bid=1 bid_won=1 -0"),
            ("\u{feff}event_type,b\nx,1\n", "x=1 -0"),
            ("\u{feff}\"event_type\",b\nx,1\n", "x=1 -0"),
            ("a,\"EVENT_TYPE\"\n1,x\n", "x=1 -0"),
            ("b, Event Type \n1,x\n", "x=1 -0"),
            ("a,event_type\n1,\n2,-1\n", "1=1 unknown=1 -0"),
            ("a,event_type\n\n\r\n1,x\n\n", "x=1 -0"),
            ("a,event_type\n\"1,\"\"\n2\",x\n3,\"y\"\n", "x=1 y=1 -0"),
            ("a,event_type\n1\n1,2,3\n1,x\n\"1\"\n", "x=1 -3"),
            ("a,b\n1,2\n3,4\n", "unknown=2 -0"),
            ("event_type\nx\n\ny\n", "x=1 y=1 -0"),
            ("a,event_type\r1,x\r2,y\r", "x=1 y=1 -0"),
            ("a,event_type\n1,\u{e9}T\u{c9}\n", "é_té=1 -0"),
            ("", " -0"),
        ] {
            let rows = count(&[text.as_bytes()]).unwrap();
            assert_eq!(shown(&rows), expected, "{text:?}");
            let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            assert_eq!(count(&bytes).unwrap(), rows, "{text:?} byte by byte");
        }
    }

    #[test]
    fn a_missing_column_is_told() {
        assert!(!count(&[b"a,b\n1,2\n"]).unwrap().names_actions);
        assert!(count(&[b"a,event_type\n1,2\n"]).unwrap().names_actions);
    }

    #[test]
    fn spellings_beyond_the_cap_count_as_other() {
        let lines = (0..ACTIONS_MAX + 7).map(|n| format!("t{n},{n}\nt0,{n}\n"));
        let text = format!("event_type,n\n{}", lines.collect::<String>());
        let rows = count(&[text.as_bytes()]).unwrap();
        assert_eq!(rows.by_action.len(), ACTIONS_MAX + 1);
        assert_eq!(rows.by_action[&Label::other()], 7);
        assert_eq!(rows.by_action[&Label::from_words("t0")], ACTIONS_MAX as u64 + 8);
    }

    #[test]
    fn a_record_may_be_long_but_not_endless() {
        let long = |bytes: usize, quote: &str| format!("a,event_type\n{quote}{}{quote},x\n", "z".repeat(bytes));
        for quote in ["", "\""] {
            let good = long(RECORD_BYTES_MAX - 100, quote);
            assert_eq!(shown(&unpack(&gzip(good.as_bytes()), 1000).unwrap()), "x=1 -0");
            let bad = long(RECORD_BYTES_MAX + 1, quote);
            for piece in [1000, usize::MAX] {
                assert_eq!(unpack(&gzip(bad.as_bytes()), piece), Err(BadFile::RecordTooLong));
                assert_eq!(unpack(bad.as_bytes(), piece), Err(BadFile::RecordTooLong));
            }
        }
        let commas = format!("a,event_type\n{}\n", ",".repeat(RECORD_BYTES_MAX + 1));
        assert_eq!(unpack(commas.as_bytes(), 1000), Err(BadFile::RecordTooLong));
        let blank = format!("a,event_type\n{}1,x\n{}2,x", "\n".repeat(3 << 20), "\r".repeat(3 << 20));
        assert_eq!(shown(&unpack(blank.as_bytes(), 1000).unwrap()), "x=2 -0", "empty lines are no record");
    }

    #[test]
    fn gzip_is_known_by_its_first_bytes_and_may_have_several_members() {
        let whole = [gzip(b"a,event_type\n1,x\n2,"), gzip(b"y\n"), gzip(b""), gzip(b"3,y\n")].concat();
        for piece in [1, 2, 7, usize::MAX] {
            assert_eq!(shown(&unpack(&whole, piece).unwrap()), "x=1 y=2 -0");
            assert_eq!(
                shown(&unpack(&[&whole[..], &[0; 600]].concat(), piece).unwrap()),
                "x=1 y=2 -0",
                "zeros behind it"
            );
            assert_eq!(shown(&unpack(b"a,event_type\n1,x\n", piece).unwrap()), "x=1 -0");
        }
    }

    #[test]
    fn gzip_that_is_cut_off_or_broken_anywhere_is_an_error() {
        let first = gzip(b"a,event_type\n1,x\n");
        let whole = [first.clone(), gzip(b"2,y\n3,y\n4,y\n")].concat();
        for end in (0..whole.len()).filter(|end| *end != first.len()) {
            assert!(unpack(&whole[..end], 5).is_err(), "cut at {end}");
        }
        let mut wrong_sum = whole.clone();
        let at = wrong_sum.len() - 8;
        wrong_sum[at] ^= 1;
        assert!(matches!(unpack(&wrong_sum, 64), Err(BadFile::Gzip(_))));
        for behind in [&b"x,y\n"[..], &[0, 0, 7], &[0, 0x1f, 0x8b]] {
            let followed = [&whole[..], behind].concat();
            assert!(matches!(unpack(&followed, 5), Err(BadFile::Gzip(_))), "followed by {behind:?}");
        }
    }

    #[test]
    fn pages_and_errors_are_not_files() {
        for text in
            ["<!DOCTYPE html>\n<p>, </p>", "  {\"message\": \"no\"}", "[1,2]", "Service unavailable\nlater\n", "", "x"]
        {
            assert!(matches!(unpack(text.as_bytes(), 64), Err(BadFile::NoFile(_))), "{text}");
        }
        let packed = [&b"\xef\xbb\xbf"[..], &gzip(b"a,event_type\n1,bid\n")].concat();
        let wide: Vec<u8> = "a,event_type\n1,bid\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        for bytes in [&packed[..], &wide, b"PK\x03\x04a,b\n1,2\n", b"a,b\x00\n1,2\n"] {
            for cut in [1, 2, 3, 64] {
                assert!(matches!(unpack(bytes, cut), Err(BadFile::NoFile(_))), "{bytes:?}");
            }
        }
        let strange = unpack(b"a,event_type\n\x00\x01,bid\n2,bid\n", 64).unwrap();
        assert_eq!(strange.by_action.values().sum::<u64>(), 2, "what a row holds costs nothing");
    }

    #[test]
    fn a_stream_that_unpacks_to_much_keeps_little() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(b"a,event_type\n").unwrap();
        let lines = b"1,x\n".repeat(1 << 18);
        for _ in 0..32 {
            encoder.write_all(&lines).unwrap();
        }
        let mut unpacker = Unpacker::new();
        unpacker.feed(&encoder.finish().unwrap()).unwrap();
        let Form::Gzip(decoder) = &mut unpacker.0 else { panic!("gzip") };
        let counter = &decoder.get_mut().unwrap().0;
        assert!(counter.text.len() + counter.ends.len() < 10_000);
        assert_eq!(shown(&unpacker.finish().unwrap()), format!("x={} -0", 32 << 18));
    }

    /// The whole text through `csv_core` alone.
    fn plainly(text: &[u8]) -> (Vec<Vec<u8>>, u64) {
        let mut parser = csv_core::Reader::new();
        let (mut out, mut ends) = (vec![0; text.len() + 1], vec![0; text.len() + 1]);
        let mut rest = text;
        let mut records: Vec<Vec<Vec<u8>>> = Vec::new();
        let (mut out_len, mut ends_len) = (0, 0);
        loop {
            let (result, read, written, ended) = parser.read_record(rest, &mut out[out_len..], &mut ends[ends_len..]);
            rest = &rest[read..];
            out_len += written;
            ends_len += ended;
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::End => break,
                ReadRecordResult::Record => {
                    let starts = std::iter::once(0).chain(ends.iter().copied());
                    let fields = starts.zip(&ends[..ends_len]).map(|(start, end)| out[start..*end].to_vec());
                    records.push(fields.collect());
                    (out_len, ends_len) = (0, 0);
                }
                full => panic!("{full:?}"),
            }
        }
        if records.is_empty() {
            return (Vec::new(), 0);
        }
        let header = records.remove(0);
        let column = header.iter().position(|name| name == b"event_type");
        let rows = records.len();
        records.retain(|record| record.len() == header.len());
        let rejected = (rows - records.len()) as u64;
        let action = |record: Vec<Vec<u8>>| column.map_or(Vec::new(), |column| record[column].clone());
        (records.into_iter().map(action).collect(), rejected)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn any_cutting_gives_what_csv_core_gives_for_the_whole(
            header in prop::sample::select(vec!["event_type,a,b", "a,event_type,b", "a,b,event_type", "a,b,c", "\"a\",event_type", ""]),
            mark in any::<bool>(),
            pieces in prop::collection::vec(prop::sample::select(vec![
                "x,y,z\n", "x,yy,zzz\n", "1,2,3\r\n", "\n", "\r\n", "\r", ",", ",,", "\"", "\"\"", "\"a,b\"", "x", "\"x\ny\",", "é", " ",
            ]), 0..60),
            cuts in prop::collection::vec(1_usize..40, 1..20),
        ) {
            let text = format!("{}{header}\n{}", if mark { "\u{feff}" } else { "" }, pieces.concat());
            let mut counter = RowCounter::new();
            let mut rest = text.as_bytes();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, tail) = rest.split_at((*cut).min(rest.len()));
                counter.feed(piece).unwrap();
                rest = tail;
            }
            let rows = counter.finish().unwrap();
            let (actions, rejected) = plainly(text.as_bytes());
            let mut by_action: BTreeMap<Label, u64> = BTreeMap::new();
            for action in actions {
                *by_action.entry(Label::from_words(&String::from_utf8_lossy(&action))).or_default() += 1;
            }
            prop_assert_eq!((rows.by_action, rows.rejected), (by_action, rejected), "{:?}", text);
        }
    }
}
