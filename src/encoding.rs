//! How an answer is encoded: packed for its way here (`Content-Encoding`), and as text.
//!
//! Promises: gzip is unpacked whole or not at all. It may have several members (RFC 1952, section 2.2) and zeros
//! behind the last; a member that is broken or cut off, anything else behind it, or another encoding than gzip is an
//! error. What is unpacked at once is bounded, whatever it unpacks to.
//!
//! A text in UTF-16 becomes UTF-8, and loses its byte order mark.
//!
//! Why not by reqwest: tower-http, which it uses, stops after the first member, and takes no error from what follows
//! (tower-rs/tower-http#737). And what is called in memory is unpacked the same way.
//!
//! Leaves to others: how much of an answer is taken (`api.rs`), files that are gzip themselves (`index_exchange/rows.rs`).

use std::io::{self, Write};

use bytes::{Buf, Bytes};
use flate2::write::GzDecoder;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::{HeaderMap, HeaderValue, header};

use crate::failure::ErrorKind;
use crate::transport::{Body, TransportError};

/// What we understand, as `Accept-Encoding`.
pub const ACCEPTED: HeaderValue = HeaderValue::from_static("gzip");

/// How much is unpacked before it is handed on; a step of the decoder may add some 32 KiB.
const PIECE_BYTES: usize = 64 << 10;
/// How often an answer may be packed.
const LAYERS_MAX: usize = 2;
/// The name of an encoding is not longer; what is said there instead is not repeated.
const NAME_CHARS_MAX: usize = 20;

/// The body of an answer with these headers as it was before it was packed.
pub fn unpacked(headers: &HeaderMap, packed: Body) -> Result<Body, TransportError> {
    let layers = layers(headers).map_err(bad)?;
    Ok((0..layers).fold(packed, |body, _| gunzipped(body)))
}

fn bad(why: String) -> TransportError {
    let remedy = "find out what changes answers on their way (a proxy or gateway); nothing of this answer is counted, and it is read again";
    TransportError { remedy: Some(remedy), ..TransportError::new(ErrorKind::Decode, why) }
}

/// How often an answer is packed.
fn layers(headers: &HeaderMap) -> Result<usize, String> {
    let said = headers.get_all(header::CONTENT_ENCODING).iter();
    let said: Vec<String> = said.map(|value| String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase()).collect();
    let mut layers = 0;
    for coding in said.iter().flat_map(|value| value.split(',')).map(str::trim) {
        match coding {
            "gzip" | "x-gzip" => layers += 1,
            // no encodings, but they stand there
            "" | "identity" | "none" | "binary" | "utf-8" | "utf8" => {}
            other => {
                let name: String = other.chars().filter(char::is_ascii_graphic).take(NAME_CHARS_MAX).collect();
                return Err(format!("a body in the encoding {name}, which was not requested: only gzip is supported"));
            }
        }
    }
    if layers > LAYERS_MAX {
        return Err(format!("a body that is packed {layers} times"));
    }
    Ok(layers)
}

/// Unpacks a body as it arrives.
fn gunzipped(packed: Body) -> Body {
    struct Under {
        packed: Body,
        gunzip: Gunzip<Vec<u8>>,
        arrived: Bytes,
    }
    let under = Under { packed, gunzip: Gunzip::new(Vec::new()), arrived: Bytes::new() };
    let broken = |error: io::Error| bad(format!("a body that is not the gzip its Content-Encoding says: {error}"));
    stream::try_unfold(Some(under), move |under| async move {
        let Some(mut under) = under else { return Ok(None) };
        loop {
            while !under.arrived.is_empty() && under.gunzip.get_mut().is_some_and(|piece| piece.len() < PIECE_BYTES) {
                let taken = under.gunzip.write(&under.arrived).map_err(broken)?;
                under.arrived.advance(taken);
            }
            let piece = under.gunzip.get_mut().map(std::mem::take).unwrap_or_default();
            if !piece.is_empty() {
                return Ok(Some((Bytes::from(piece), Some(under))));
            }
            let Some(chunk) = under.packed.next().await else {
                let rest = under.gunzip.finish().map_err(broken)?;
                return Ok((!rest.is_empty()).then(|| (Bytes::from(rest), None)));
            };
            under.arrived = chunk?;
        }
    })
    .into_stream()
    .boxed()
}

/// Unpacks gzip that is written to it in pieces: any number of members, and zeros behind them.
///
/// flate2's own decoder of several members takes the zeros that fill a block for a broken member.
pub struct Gunzip<W: Write>(Place<W>);

enum Place<W: Write> {
    /// Nothing came yet: nothing at all is nothing, packed.
    Before(W),
    Within(Box<GzDecoder<W>>),
    Behind(W),
    /// Only zeros may follow.
    Padding(W),
    /// After an error.
    Lost,
}

impl<W: Write> Gunzip<W> {
    /// One that writes what it unpacks to `to`.
    pub fn new(to: W) -> Self {
        Self(Place::Before(to))
    }

    /// What it writes to; `None` after an error.
    pub fn get_mut(&mut self) -> Option<&mut W> {
        match &mut self.0 {
            Place::Before(to) | Place::Behind(to) | Place::Padding(to) => Some(to),
            Place::Within(decoder) => Some(decoder.get_mut()),
            Place::Lost => None,
        }
    }

    /// What was written to, if all that came is whole.
    pub fn finish(self) -> io::Result<W> {
        match self.0 {
            Place::Before(to) | Place::Behind(to) | Place::Padding(to) => Ok(to),
            Place::Within(decoder) => decoder.finish(),
            Place::Lost => Err(invalid("it is broken")),
        }
    }
}

impl<W: Write> Write for Gunzip<W> {
    /// Takes some of the bytes, and not more than unpack to some 32 KiB. After an error nothing more can be unpacked.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(&mut self.0, Place::Lost) {
                Place::Within(mut decoder) => {
                    let taken = decoder.write(bytes)?;
                    if taken > 0 {
                        self.0 = Place::Within(decoder);
                        return Ok(taken);
                    }
                    // its member has ended
                    self.0 = Place::Behind(decoder.finish()?);
                }
                Place::Behind(to) if bytes[0] == 0 => self.0 = Place::Padding(to),
                Place::Before(to) | Place::Behind(to) => self.0 = Place::Within(Box::new(GzDecoder::new(to))),
                Place::Padding(to) if bytes.iter().all(|byte| *byte == 0) => {
                    self.0 = Place::Padding(to);
                    return Ok(bytes.len());
                }
                Place::Padding(_) => return Err(invalid("something follows the zeros behind its last member")),
                Place::Lost => return Err(invalid("it is broken")),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

// === text ===

/// The text of an answer: without byte order mark, and in UTF-8 where it came in UTF-16.
pub(crate) fn plain(body: Vec<u8>) -> Bytes {
    let utf16 = |unit: fn([u8; 2]) -> u16| {
        let units = body.chunks(2).map(|pair| unit([pair[0], pair.get(1).copied().unwrap_or_default()]));
        let text: String = char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
        Bytes::from(text.trim_start_matches('\u{feff}').to_owned())
    };
    match *body.as_slice() {
        [0xFF, 0xFE, ..] | [b'{' | b'[' | b'<', 0, ..] => utf16(u16::from_le_bytes),
        [0xFE, 0xFF, ..] | [0, b'{' | b'[' | b'<', ..] => utf16(u16::from_be_bytes),
        _ => {
            let marks = body.len() - without_mark(&body).len();
            Bytes::from(body).slice(marks..)
        }
    }
}

/// The same bytes without byte order marks before them.
pub(crate) fn without_mark(mut bytes: &[u8]) -> &[u8] {
    while let Some(rest) = bytes.strip_prefix(b"\xEF\xBB\xBF") {
        bytes = rest;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    /// What a body that arrives in pieces of this length is unpacked to.
    fn read(codings: &[&str], body: &[u8], piece: usize) -> Result<Vec<u8>, TransportError> {
        let mut headers = HeaderMap::new();
        for coding in codings {
            headers.append(header::CONTENT_ENCODING, coding.parse().unwrap());
        }
        let pieces: Vec<_> = body.chunks(piece).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let body = unpacked(&headers, stream::iter(pieces).boxed())?;
        let pieces: Vec<Bytes> = futures_util::FutureExt::now_or_never(body.try_collect()).unwrap()?;
        Ok(pieces.concat())
    }

    #[test]
    fn gzip_of_any_number_of_members_is_unpacked_whole_and_zeros_may_follow() {
        let members = [gzip(b"{\"items\": ["), gzip(b""), gzip(b"1, 2"), gzip(b"]}")].concat();
        let padded = [members.clone(), vec![0; 700]].concat();
        for piece in [1, 3, 64, usize::MAX] {
            for body in [&members, &padded] {
                for coding in ["gzip", "x-gzip", " GZip "] {
                    assert_eq!(read(&[coding], body, piece).unwrap(), b"{\"items\": [1, 2]}");
                }
            }
            let twice = gzip(&members);
            assert_eq!(read(&["gzip, gzip"], &twice, piece).unwrap(), b"{\"items\": [1, 2]}");
            assert_eq!(read(&["gzip", "identity", "gzip"], &twice, piece).unwrap(), b"{\"items\": [1, 2]}");
            assert_eq!(
                read(&["gzip"], &twice, piece).unwrap(),
                members,
                "what was packed before is handed on as it is"
            );
            for none in [&[][..], &["identity"], &[""], &["UTF-8"]] {
                assert_eq!(read(none, &members, piece).unwrap(), members);
            }
        }
        assert_eq!(read(&["gzip"], b"", 1).unwrap(), b"", "an answer without a body");
    }

    #[test]
    fn what_is_not_the_gzip_it_says_is_an_error_and_never_a_part() {
        let first = gzip(b"{}");
        let whole = [first.clone(), gzip(b"and more")].concat();
        let mut wrong_sum = whole.clone();
        let at = wrong_sum.len() - 8;
        wrong_sum[at] ^= 1;
        let mut bad: Vec<Vec<u8>> = vec![
            wrong_sum,
            b"{\"items\": []}".to_vec(),
            b"<html>".to_vec(),
            vec![0; 9],
            [&first[..], b"garbage"].concat(),
            [&first[..], b"\n"].concat(),
            [&first[..], &[0, 0, 1]].concat(),
            [&first[..], &[0], &first[..]].concat(),
        ];
        bad.extend((1..whole.len()).filter(|end| *end != first.len()).map(|end| whole[..end].to_vec()));
        for body in bad {
            for piece in [1, 5, usize::MAX] {
                let error = read(&["gzip"], &body, piece).unwrap_err();
                assert_eq!(error.kind, ErrorKind::Decode);
                assert!(error.message.contains("not the gzip"), "{error}");
            }
        }
    }

    #[test]
    fn an_encoding_nobody_asked_for_is_named() {
        for (codings, named) in [
            (&["br"][..], "br"),
            (&["gzip", "zstd"], "zstd"),
            (&["deflate"], "deflate"),
            (&["gzip, gzip, gzip"], "3 times"),
            (&["nonsense-that-goes-on-and-on"], "nonsense-that-goes-o,"),
        ] {
            let mut headers = HeaderMap::new();
            for coding in codings {
                headers.append(header::CONTENT_ENCODING, HeaderValue::from_static(coding));
            }
            let error = unpacked(&headers, stream::empty().boxed()).err().unwrap();
            assert_eq!(error.kind, ErrorKind::Decode);
            assert!(error.message.contains(named), "{error}");
        }
    }

    #[test]
    fn what_unpacks_to_much_is_handed_on_in_small_pieces() {
        let bomb = gzip(&vec![b' '; 64 << 20]);
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_ENCODING, ACCEPTED);
        let body = unpacked(&headers, stream::iter([Ok(bomb.into())]).boxed()).unwrap();
        let longest =
            body.try_fold((0, 0), async |(longest, all), piece| Ok((piece.len().max(longest), all + piece.len())));
        let (longest, all) = futures_util::FutureExt::now_or_never(longest).unwrap().unwrap();
        assert_eq!(all, 64 << 20);
        assert!(longest <= 2 * PIECE_BYTES, "{longest}");
    }

    proptest! {
        #[test]
        fn any_members_in_any_pieces_are_their_texts(
            texts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..5),
            zeros in 0_usize..20,
            piece in 1_usize..100,
        ) {
            let packed = [texts.iter().map(|text| gzip(text)).collect::<Vec<_>>().concat(), vec![0; zeros]].concat();
            prop_assert_eq!(read(&["gzip"], &packed, piece).unwrap(), texts.concat());
        }
    }
}
