//! Durations and byte sizes as users write them.
//!
//! Promises: [`duration_text`] and [`duration`] are inverse to the millisecond; nothing overflows.

use std::time::Duration;

/// The units of Prometheus, largest first, in milliseconds. A year has 365 days.
const UNITS: [(&str, u64); 7] = [
    ("y", 365 * 86_400_000),
    ("w", 7 * 86_400_000),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

/// Longest duration, in milliseconds: about 292 years, so that its nanoseconds fit an `i64`, which
/// is what Prometheus accepts too.
pub(crate) const DURATION_MS_MAX: u64 = i64::MAX.unsigned_abs() / 1_000_000;

/// Why a text is no duration.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BadDuration {
    /// It is not numbers with units.
    Form,
    /// A number has no unit.
    NoUnit,
    /// A unit comes twice or after a smaller one.
    Order,
    /// It is longer than [`DURATION_MS_MAX`].
    Long,
}

/// A duration as the configuration writes it, given elsewhere.
pub fn parse_duration(text: &str) -> Option<Duration> {
    duration(text).ok()
}

/// Reads a duration such as `1h30m`: whole numbers with the units y, w, d, h, m, s and ms, each at
/// most once, larger units first. `0` needs no unit.
pub(crate) fn duration(text: &str) -> Result<Duration, BadDuration> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if text.is_empty() {
        return Err(BadDuration::Form);
    }
    let mut rest = text;
    let mut units = UNITS.iter();
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (number, after) = split_digits(rest);
        let unit_len = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_len);
        if number.is_empty() {
            return Err(BadDuration::Form);
        }
        if unit.is_empty() {
            return Err(BadDuration::NoUnit);
        }
        if UNITS.iter().all(|(name, _)| *name != unit) {
            return Err(BadDuration::Form);
        }
        // The iterator only moves on, so a repeated or larger unit is no longer found.
        let (_, ms) = units.find(|(name, _)| *name == unit).ok_or(BadDuration::Order)?;
        let number: u64 = number.parse().map_err(|_| BadDuration::Long)?;
        total = number.checked_mul(*ms).and_then(|part| total.checked_add(part)).ok_or(BadDuration::Long)?;
        rest = after;
    }
    if total > DURATION_MS_MAX { Err(BadDuration::Long) } else { Ok(Duration::from_millis(total)) }
}

/// A duration as Prometheus writes it (`90s` → `1m30s`); years and weeks only where they leave no
/// rest. Below a millisecond is cut off.
pub fn duration_text(duration: Duration) -> String {
    let mut ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if ms == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, length) in UNITS {
        let whole_only = matches!(unit, "y" | "w");
        if ms >= length && (!whole_only || ms.is_multiple_of(length)) {
            text += &(ms / length).to_string();
            text += unit;
            ms %= length;
        }
    }
    text
}

/// A duration after "per": one unit by its name (`minute`), others as [`duration_text`].
pub fn per_text(duration: Duration) -> String {
    match duration_text(duration).as_str() {
        "1s" => "second".to_owned(),
        "1m" => "minute".to_owned(),
        "1h" => "hour".to_owned(),
        "1d" => "day".to_owned(),
        other => other.to_owned(),
    }
}

/// Reads a number of bytes: `1048576`, or a whole number with B, KiB, MiB, GiB (powers of 1024) or
/// kB, KB, MB, GB (powers of 1000). `None` for anything else, zero and overflow included.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = split_digits(text);
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor).filter(|bytes| *bytes > 0)
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::BadDuration::{Form, Long, NoUnit, Order};
    use super::*;

    #[test]
    fn durations_are_read_as_prometheus_does() {
        for (text, ms) in [
            ("0", 0),
            ("0s", 0),
            ("500ms", 500),
            ("30s", 30_000),
            ("1h30m", 5_400_000),
            ("90m", 5_400_000),
            ("14d", 14 * 86_400_000),
            ("1w", 7 * 86_400_000),
            ("1y", 365 * 86_400_000),
            ("1y2w3d4h5m6s7ms", (((365 + 14 + 3) * 24 + 4) * 3600 + 306) * 1000 + 7),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for (text, why) in [
            ("", Form),
            ("s", Form),
            ("-5s", Form),
            ("1.5h", Form),
            ("5 m", Form),
            ("5M", Form),
            ("5µs", Form),
            ("60", NoUnit),
            ("1h30", NoUnit),
            ("30m1h", Order),
            ("1m1m", Order),
            ("300y", Long),
            ("99999999999999999999s", Long),
            ("18446744073709551615ms", Long),
        ] {
            assert_eq!(duration(text), Err(why), "{text}");
        }
    }

    #[test]
    fn sizes_are_powers_of_1024_with_an_i_and_of_1000_without() {
        for (text, size) in [
            ("1048576", 1 << 20),
            ("64KiB", 64 << 10),
            ("8MiB", 8 << 20),
            ("1GiB", 1 << 30),
            ("8MB", 8_000_000),
            ("3kB", 3000),
            ("7B", 7),
        ] {
            assert_eq!(bytes(text), Some(size), "{text}");
        }
        for text in ["", "0", "0MiB", "MiB", "-1", "1.5MiB", "8 MiB", "8mib", "8M", "99999999999GiB"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }

    #[test]
    fn one_unit_after_per_has_its_name() {
        for (seconds, text) in
            [(1, "second"), (60, "minute"), (3600, "hour"), (86_400, "day"), (10, "10s"), (90, "1m30s"), (7200, "2h")]
        {
            assert_eq!(per_text(Duration::from_secs(seconds)), text);
        }
    }

    proptest! {
        #[test]
        fn a_written_duration_reads_back_as_itself(ms in 0..=DURATION_MS_MAX) {
            let whole = Duration::from_millis(ms);
            prop_assert_eq!(duration(&duration_text(whole)), Ok(whole));
        }

        #[test]
        fn no_text_makes_a_reader_panic(text in "[0-9ywdhmsKMGiB. µ-]{0,24}") {
            let _ = duration(&text);
            let _ = bytes(&text);
        }
    }
}
