//! The times in the headers of an answer: its date, its age, and the pause that it asks for.
//!
//! Promises: a pause is understood in every way in which services write it, and none is believed to be longer than
//! [`RETRY_AFTER_BELIEVED`].
//!
//! Leaves to others: what is done about it (`wire.rs`, `api.rs`).

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use http::{HeaderMap, HeaderName, StatusCode, header};

use crate::failure::ErrorKind;

/// No service means a longer pause; a source is not left for good because of a number.
const RETRY_AFTER_BELIEVED: Duration = Duration::from_hours(24);
/// The most that `Age` may say (RFC 9111, section 1.2.2).
const AGE_SECONDS_MAX: f64 = 2_147_483_648.0;
/// A number this close to the present is a moment.
const A_YEAR_SECONDS: f64 = 365.0 * 86_400.0;
/// Headers that say when more may be asked for, in seconds or as a moment.
const RESETS: [&str; 4] = ["ratelimit-reset", "x-ratelimit-reset", "x-rate-limit-reset", "x-ratelimit-reset-after"];

/// The moment that a header names.
pub(super) fn date_of(headers: &HeaderMap, name: &HeaderName) -> Option<DateTime<Utc>> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?.trim()).ok().map(DateTime::from)
}

/// How long an answer has been in caches (`Age`).
pub(super) fn age_of(headers: &HeaderMap) -> TimeDelta {
    let seconds = headers.get(header::AGE).and_then(|age| leading_number(age.to_str().ok()?.trim()));
    #[expect(clippy::cast_possible_truncation, reason = "it was looked at")]
    let seconds = seconds.filter(|seconds| *seconds <= AGE_SECONDS_MAX).map(|seconds| seconds as i64);
    TimeDelta::seconds(seconds.unwrap_or_default())
}

/// The pause an answer asks for: `Retry-After`, or else, if we are too fast, what the headers about rates say.
pub(super) fn asked_pause(
    headers: &HeaderMap,
    now: DateTime<Utc>,
    status: StatusCode,
    kind: ErrorKind,
) -> Option<Duration> {
    // moments are of the service's clock
    let now = date_of(headers, &header::DATE).map_or(now, |date| date + age_of(headers));
    let texts = |name: &str| {
        let values: Vec<_> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
        values
    };
    let retry_after = texts("retry-after").into_iter().find_map(|text| wait(text, now));
    let used_up = || {
        let left = ["x-ratelimit-remaining", "ratelimit-remaining", "x-rate-limit-remaining"];
        left.into_iter().flat_map(texts).any(|text| leading_number(text.trim()) == Some(0.0))
    };
    let too_fast = kind == ErrorKind::Throttled || (status == StatusCode::SERVICE_UNAVAILABLE && used_up());
    let reset = || {
        let by_name = RESETS.into_iter().flat_map(texts).find_map(|text| wait(text, now));
        by_name.or_else(|| texts("ratelimit").into_iter().find_map(|text| wait_of_policies(text, now)))
    };
    retry_after.or_else(|| too_fast.then(reset)?)
}

/// A pause in any of the ways in which it is written: seconds, whole or not, the first of several; a moment as a date;
/// or, near the present, as seconds or milliseconds since 1970. A moment in the past is no pause; a text without a
/// number is nothing.
fn wait(text: &str, now: DateTime<Utc>) -> Option<Duration> {
    let text = text.trim().trim_matches('"').trim();
    let until = |moment: DateTime<Utc>| (moment - now).to_std().unwrap_or_default();
    let pause = if let Some(number) = leading_number(text) {
        let present = crate::clock::unix_seconds(now);
        let moment = [number, number / 1000.0].into_iter().find(|moment| (moment - present).abs() <= A_YEAR_SECONDS);
        let seconds = moment.map_or(number, |moment| moment - present).clamp(0.0, RETRY_AFTER_BELIEVED.as_secs_f64());
        Duration::from_secs_f64(seconds.ceil())
    } else if let Ok(date) = httpdate::parse_http_date(text) {
        until(date.into())
    } else {
        let date = DateTime::parse_from_rfc3339(text).or_else(|_| DateTime::parse_from_rfc2822(text)).ok()?;
        until(date.to_utc())
    };
    Some(pause.min(RETRY_AFTER_BELIEVED))
}

/// The pause of `RateLimit: limit=100, remaining=0, reset=30` (draft 7 of the IETF) or `"default";r=0;t=30` (later
/// drafts). Of several policies, that which is used up and lasts longest.
fn wait_of_policies(text: &str, now: DateTime<Utc>) -> Option<Duration> {
    let parts = |text: &str, by: char| {
        let pairs = text.split(by).filter_map(|part| part.split_once('='));
        pairs.map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned())).collect::<Vec<_>>()
    };
    let of = |pairs: &[(String, String)], name: &str| pairs.iter().find(|(is, _)| is == name).map(|(_, v)| v.clone());
    if let Some(reset) = of(&parts(text, ','), "reset") {
        return wait(&reset, now);
    }
    let policies = text.split(',').map(|policy| parts(policy, ';'));
    let waits = policies.filter_map(|policy| {
        let left = of(&policy, "r").and_then(|left| leading_number(&left)).unwrap_or_default();
        Some((left <= 0.0, wait(&of(&policy, "t")?, now)?))
    });
    waits.max().map(|(_, wait)| wait)
}

/// The number a text begins with, unless it goes on as a word: no sign, no exponent, not `30m`.
fn leading_number(text: &str) -> Option<f64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let goes_on = text[end..].chars().next();
    if goes_on.is_some_and(|c| !matches!(c, ',' | ';' | ' ' | '\t' | 's')) {
        return None;
    }
    text[..end].parse().ok()
}

#[cfg(test)]
mod tests;
