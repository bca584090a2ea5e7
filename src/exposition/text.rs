//! One writer for Prometheus text 0.0.4 and `OpenMetrics` text 1.0.
//!
//! `OpenMetrics` differs in: counters are declared without `_total`, `"` is escaped in HELP too,
//! whole bucket bounds end in `.0`, `_created` lines (if asked for), and `# EOF`.

use std::io::{self, Write};

use chrono::{DateTime, Utc};

use super::family::{Family, Kind, Sample, Value};
use crate::clock::unix_seconds;

/// Room for a series: measured pages have 127 bytes for one with five labels.
const SERIES_BYTES_TYPICAL: usize = 128;

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Dialect {
    Text,
    OpenMetrics { created: bool },
}

pub(super) fn write(families: &[Family], dialect: Dialect) -> Vec<u8> {
    let series: usize = families.iter().flat_map(|family| &family.samples).map(series_count).sum();
    let mut out = Vec::with_capacity((series + families.len()) * SERIES_BYTES_TYPICAL);
    // The labels of the sample at hand, escaped, without braces: written once, used on each line.
    let mut labels = Vec::new();
    for family in families {
        let mut samples = family.writable().peekable();
        if samples.peek().is_none() {
            continue;
        }
        let declared = declare(&mut out, family, dialect);
        for sample in samples {
            labels.clear();
            escape_labels(&mut labels, sample);
            write_sample(&mut out, family.name, &labels, &sample.value, dialect);
            if let (Dialect::OpenMetrics { created: true }, Kind::Counter | Kind::Histogram, Some(created)) =
                (dialect, family.kind, sample.created)
            {
                write_series(&mut out, declared, "_created", &labels, None);
                push_number(&mut out, unix_seconds(created));
                out.push(b'\n');
            }
        }
    }
    if dialect != Dialect::Text {
        out.extend_from_slice(b"# EOF\n");
    }
    out
}

/// Writes the past of a family of counters, without the end of the page.
pub(super) fn write_past<P: IntoIterator<Item = (DateTime<Utc>, u64)>>(
    out: &mut dyn Write,
    family: &Family,
    pasts: impl IntoIterator<Item = P>,
) -> io::Result<()> {
    let mut declared = Vec::new();
    declare(&mut declared, family, Dialect::OpenMetrics { created: false });
    out.write_all(&declared)?;
    let (mut labels, mut line) = (Vec::new(), Vec::new());
    for (sample, past) in family.samples.iter().zip(pasts) {
        labels.clear();
        escape_labels(&mut labels, sample);
        line.clear();
        write_series(&mut line, family.name, "", &labels, None);
        let start = line.len();
        for (at, count) in past {
            line.truncate(start);
            push_count(&mut line, count);
            line.push(b' ');
            push_number(&mut line, unix_seconds(at));
            line.push(b'\n');
            out.write_all(&line)?;
        }
    }
    Ok(())
}

fn series_count(sample: &Sample) -> usize {
    match &sample.value {
        Value::Number(_) | Value::Count(_) => 1,
        Value::Histogram { buckets, .. } => buckets.len() + 3,
    }
}

/// Writes the HELP and TYPE lines; returns the name they declare.
fn declare(out: &mut Vec<u8>, family: &Family, dialect: Dialect) -> &'static str {
    let (name, kind) = match (family.kind, dialect) {
        (Kind::Counter, Dialect::Text) => (family.name, "counter"),
        // What has no suffix `_total` is no counter to an OpenMetrics parser.
        (Kind::Counter, Dialect::OpenMetrics { .. }) => match family.name.strip_suffix("_total") {
            Some(stem) => (stem, "counter"),
            None => (family.name, "unknown"),
        },
        (Kind::Gauge, _) => (family.name, "gauge"),
        (Kind::Histogram, _) => (family.name, "histogram"),
    };
    if !family.help.is_empty() {
        push_all(out, &["# HELP ", name, " "]);
        push_escaped(out, family.help, dialect != Dialect::Text);
        out.push(b'\n');
    }
    push_all(out, &["# TYPE ", name, " ", kind, "\n"]);
    name
}

fn write_sample(out: &mut Vec<u8>, name: &str, labels: &[u8], value: &Value, dialect: Dialect) {
    match value {
        Value::Number(number) => {
            write_series(out, name, "", labels, None);
            push_number(out, *number);
        }
        Value::Count(count) => {
            write_series(out, name, "", labels, None);
            push_count(out, *count);
        }
        Value::Histogram { buckets, sum, count } => {
            for (bound, cumulative) in buckets {
                write_series(out, name, "_bucket", labels, Some(&bound_text(*bound, dialect)));
                push_count(out, *cumulative);
                out.push(b'\n');
            }
            write_series(out, name, "_bucket", labels, Some("+Inf"));
            push_count(out, *count);
            out.push(b'\n');
            write_series(out, name, "_sum", labels, None);
            push_number(out, *sum);
            out.push(b'\n');
            write_series(out, name, "_count", labels, None);
            push_count(out, *count);
        }
    }
    out.push(b'\n');
}

/// Writes a line up to its value.
fn write_series(out: &mut Vec<u8>, name: &str, suffix: &str, labels: &[u8], le: Option<&str>) {
    push_all(out, &[name, suffix]);
    if !labels.is_empty() || le.is_some() {
        out.push(b'{');
        out.extend_from_slice(labels);
        if let Some(bound) = le {
            push_all(out, &[if labels.is_empty() { "" } else { "," }, "le=\"", bound, "\""]);
        }
        out.push(b'}');
    }
    out.push(b' ');
}

fn escape_labels(out: &mut Vec<u8>, sample: &Sample) {
    for (name, value) in &sample.labels {
        push_all(out, &[if out.is_empty() { "" } else { "," }, name, "=\""]);
        push_escaped(out, value, true);
        out.push(b'"');
    }
}

fn push_all(out: &mut Vec<u8>, parts: &[&str]) {
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
}

/// `\` and line feed are escaped everywhere, `"` where it would end or be taken to end a text.
fn push_escaped(out: &mut Vec<u8>, text: &str, quotes: bool) {
    let special = |byte: &u8| matches!(byte, b'\\' | b'\n') || (quotes && *byte == b'"');
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(special) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(match rest[at] {
            b'\\' => br"\\",
            b'"' => b"\\\"",
            _ => br"\n",
        });
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

/// A Vec takes every byte.
const INTO_VEC: &str = "writing into a Vec does not fail";

fn push_count(out: &mut Vec<u8>, count: u64) {
    write!(out, "{count}").expect(INTO_VEC);
}

/// The shortest decimal that reads back as the same number; with an exponent only where the
/// digits alone would be long.
fn push_number(out: &mut Vec<u8>, number: f64) {
    let size = number.abs();
    if number.is_nan() {
        out.extend_from_slice(b"NaN");
    } else if size.is_infinite() {
        out.extend_from_slice(if number > 0.0 { b"+Inf" } else { b"-Inf" });
    } else if size == 0.0 || (1e-5..1e16).contains(&size) {
        write!(out, "{number}").expect(INTO_VEC);
    } else {
        write!(out, "{number:e}").expect(INTO_VEC);
    }
}

/// A bucket bound as Go's clients write it. It is a label value, compared as text: spelled in any
/// other way the same bucket would be another series to a Prometheus that knows it from
/// protobuf, where the server itself does the spelling.
fn bound_text(bound: f64, dialect: Dialect) -> String {
    let mut text = Vec::new();
    let scientific = format!("{bound:e}");
    match scientific.split_once('e').and_then(|(digits, exponent)| Some((digits, exponent.parse::<i32>().ok()?))) {
        Some((digits, exponent)) if !(-4..6).contains(&exponent) && bound != 0.0 => {
            let sign = if exponent < 0 { '-' } else { '+' };
            return format!("{digits}e{sign}{:02}", exponent.abs());
        }
        _ => push_number(&mut text, bound),
    }
    let mut text = String::from_utf8_lossy(&text).into_owned();
    if dialect != Dialect::Text && bound.is_finite() && !text.contains('.') {
        text.push_str(".0");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_spelled_as_by_go_clients() {
        let openmetrics = Dialect::OpenMetrics { created: false };
        for (bound, text, open) in [
            (0.0, "0", "0.0"),
            (1.0, "1", "1.0"),
            (-1.0, "-1", "-1.0"),
            (0.005, "0.005", "0.005"),
            (0.0001, "0.0001", "0.0001"),
            (0.00001, "1e-05", "1e-05"),
            (2.5e-9, "2.5e-09", "2.5e-09"),
            (3600.0, "3600", "3600.0"),
            (604_800.0, "604800", "604800.0"),
            (999_999.0, "999999", "999999.0"),
            (1e6, "1e+06", "1e+06"),
            (2_592_000.0, "2.592e+06", "2.592e+06"),
            (1e100, "1e+100", "1e+100"),
        ] {
            assert_eq!(bound_text(bound, Dialect::Text), text);
            assert_eq!(bound_text(bound, openmetrics), open);
        }
    }

    #[test]
    fn numbers_read_back_as_they_were() {
        for (number, text) in [
            (0.0, "0"),
            (17.0, "17"),
            (-2.5, "-2.5"),
            (1_763_712_000.123, "1763712000.123"),
            (1e15, "1000000000000000"),
            (1e16, "1e16"),
            (f64::MAX, "1.7976931348623157e308"),
            (0.000_01, "0.00001"),
            (1.5e-7, "1.5e-7"),
            (f64::MIN_POSITIVE, "2.2250738585072014e-308"),
        ] {
            let mut out = Vec::new();
            push_number(&mut out, number);
            let written = String::from_utf8(out).unwrap();
            assert_eq!(written, text);
            assert_eq!(written.parse::<f64>().unwrap().to_bits(), number.to_bits());
        }
        for (number, text) in [(f64::NAN, "NaN"), (f64::INFINITY, "+Inf"), (f64::NEG_INFINITY, "-Inf")] {
            let mut out = Vec::new();
            push_number(&mut out, number);
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }
}
