//! What headers say about time, in every way in which services write it.

use http::HeaderValue;

use super::*;
use crate::api::{Verdict, judge_by_status};

/// The pause that a 429 with these headers asks for.
fn asked(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    asked_pause(headers, now, StatusCode::TOO_MANY_REQUESTS, ErrorKind::Throttled)
}

/// The pause, in seconds, that an answer with these headers asks for.
fn told(status: u16, headers: &[(&str, &str)]) -> Option<u64> {
    let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    let status = StatusCode::from_u16(status).unwrap();
    let Verdict::Bad(kind) = judge_by_status(status) else { unreachable!() };
    asked_pause(&map, now, status, kind).map(|pause| pause.as_secs())
}

#[test]
fn a_pause_is_understood_however_it_is_written() {
    const DAY: u64 = 86_400;
    for (text, pause) in [
        ("30", Some(30)),
        ("30.5", Some(31)),
        ("30.0", Some(30)),
        ("0.001", Some(1)),
        (".5", Some(1)),
        ("30, 30", Some(30)),
        ("30,60", Some(30)),
        ("30; why=busy", Some(30)),
        (" \t30 ", Some(30)),
        ("\"30\"", Some(30)),
        ("30s", Some(30)),
        ("0", Some(0)),
        ("00", Some(0)),
        ("86401", Some(DAY)),
        ("99999999999999999999", Some(DAY)),
        ("99999999999999999999.5, 1", Some(DAY)),
        ("1800000030", Some(30)),
        ("1800000030.2", Some(31)),
        ("1800000030500", Some(31)),
        ("1799999000", Some(0)),
        ("1830000000", Some(DAY)),
        ("Fri, 15 Jan 2027 08:00:30 GMT", Some(30)),
        ("Friday, 15-Jan-27 08:00:30 GMT", Some(30)),
        ("Fri, 15 Jan 2027 08:00:30 +0000", Some(30)),
        ("2027-01-15T08:00:30Z", Some(30)),
        ("Fri, 15 Jan 2027 07:00:00 GMT", Some(0)),
        ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
        ("Fri, 31 Dec 9999 23:59:59 GMT", Some(DAY)),
        ("-30", None),
        ("+30", None),
        ("1e3", None),
        ("30m", None),
        ("0x1e", None),
        ("NaN", None),
        ("inf", None),
        ("", None),
        ("soon", None),
        ("1.2.3", None),
        ("Fri, 99 Jan 2027 08:00:30 GMT", None),
    ] {
        assert_eq!(told(429, &[("retry-after", text)]), pause, "Retry-After: {text}");
        for name in ["RateLimit-Reset", "X-RateLimit-Reset", "X-Rate-Limit-Reset"] {
            assert_eq!(told(429, &[(&name.to_ascii_lowercase(), text)]), pause, "{name}: {text}");
        }
    }
}

#[test]
fn of_several_pauses_the_one_that_is_meant_is_taken() {
    for (status, headers, pause) in [
        (429, &[("retry-after", "7"), ("x-ratelimit-reset", "60")][..], Some(7)),
        (429, &[("retry-after", "soon"), ("x-ratelimit-reset", "60")], Some(60)),
        (429, &[("retry-after", "7"), ("retry-after", "60")], Some(7)),
        (429, &[("retry-after", "soon"), ("retry-after", "60")], Some(60)),
        (429, &[("ratelimit", "limit=100, remaining=0, reset=30")], Some(30)),
        (429, &[("ratelimit", "\"default\";r=0;t=30")], Some(30)),
        (429, &[("ratelimit", "\"hour\";r=50;t=3000, \"minute\";r=0;t=30")], Some(30)),
        (429, &[("ratelimit", "\"default\"; T=30")], Some(30)),
        (429, &[("ratelimit", "nothing")], None),
        (429, &[], None),
        // on every answer of many services, and no reason to leave one alone that is merely broken
        (503, &[("x-ratelimit-reset", "3600"), ("x-ratelimit-remaining", "55")], None),
        (503, &[("x-ratelimit-reset", "3600")], None),
        (503, &[("x-ratelimit-reset", "60"), ("x-ratelimit-remaining", "0")], Some(60)),
        (500, &[("x-ratelimit-reset", "60"), ("x-ratelimit-remaining", "0")], None),
        (503, &[("retry-after", "60")], Some(60)),
    ] {
        assert_eq!(told(status, headers), pause, "{status} {headers:?}");
    }
}

#[test]
fn the_date_to_wait_for_is_of_the_service_s_clock() {
    let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
    let date = |at: DateTime<Utc>| HeaderValue::from_str(&httpdate::fmt_http_date(at.into())).unwrap();
    // which is ten minutes behind
    let theirs = now - TimeDelta::minutes(10);
    let resume = (header::RETRY_AFTER, date(theirs + TimeDelta::minutes(5)));
    let told = HeaderMap::from_iter([(header::DATE, date(theirs)), resume.clone()]);
    assert_eq!(asked(&told, now), Some(Duration::from_mins(5)));
    assert_eq!(asked(&HeaderMap::from_iter([resume]), now), Some(Duration::ZERO), "as far as we know");
    // or was, when a cache kept the answer
    let kept = HeaderMap::from_iter([
        (header::DATE, date(theirs - TimeDelta::hours(3))),
        (header::AGE, HeaderValue::from_static("10800")),
        (header::RETRY_AFTER, date(theirs + TimeDelta::minutes(5))),
    ]);
    assert_eq!(asked(&kept, now), Some(Duration::from_mins(5)));
}

#[test]
fn numbers_beyond_belief_are_cut() {
    let headers = HeaderMap::from_iter([(header::RETRY_AFTER, HeaderValue::from_static("18446744073709551615"))]);
    let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
    assert_eq!(asked(&headers, now), Some(RETRY_AFTER_BELIEVED));
}
