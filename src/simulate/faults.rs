//! The faults of a simulated service, as switches.
//!
//! Promises: all off by default; the same switches by flag (`canvas:throttle=0.1,retry_after=5`),
//! by JSON and in code; an unknown service or switch is an error that names it.
//!
//! Leaves to others: which services there are (`simulate.rs`), and doing it (`world.rs` for what any
//! HTTP server can do wrong, the services for what only they can).

use std::collections::BTreeMap;
use std::sync::LazyLock;

use chrono::{DateTime, TimeDelta, Utc};
use http::{HeaderName, header};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::event::System;

/// The switches of all services.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Faults(BTreeMap<System, ServiceFaults>);

/// The switches of one service. A number of kind `f64` is the probability (0 to 1) that a request
/// meets the fault. A switch that has no meaning for a service does nothing there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "switches are independent of each other")]
pub struct ServiceFaults {
    /// 429 (Canvas with `old_throttle`: 403 and its text).
    pub throttle: f64,
    /// Seconds in `Retry-After` of a throttled answer; 0 leaves the header out.
    pub retry_after: u32,
    /// How they are written.
    pub retry_form: RetryForm,
    /// Canvas before October 2025: throttled is 403 `text/plain`.
    pub old_throttle: bool,
    /// 503.
    pub unavailable: f64,
    /// 500.
    pub error: f64,
    /// The request is taken and never answered.
    pub hang: f64,
    /// The body comes one byte at a time, two bytes per second.
    pub drip: f64,
    /// 200 with an HTML page instead of the answer.
    pub html: f64,
    /// 200 with the first half of the answer, complete as far as HTTP can tell.
    pub truncated: f64,
    /// One more event in the list that is not an event (the good ones stay).
    pub malformed: f64,
    /// One event of the list (`ActivID`: the list) has a field that nobody needs and that is not quite JSON: bytes that
    /// are no UTF-8, escapes that are none, `NaN`. The event counts all the same.
    pub garbled: f64,
    /// The answer begins with a byte order mark.
    pub marked: f64,
    /// A list without events is `null`.
    pub null_lists: f64,
    /// 200 with a list of errors instead of events.
    pub strange: f64,
    /// Losant: `totalCount` is a text, has a fraction of 0, or is -1.
    pub odd_totals: f64,
    /// The events of an answer in any order.
    pub shuffled: f64,
    /// 200 with JSON nested 200,000 levels deep.
    pub deep: f64,
    /// The answer follows 256 MiB of blanks.
    pub huge: f64,
    /// `Content-Encoding: gzip` of about 256 KiB that unpacks to 256 MiB.
    pub bomb: f64,
    /// 307 to another origin.
    pub redirect: f64,
    /// The service's own 401.
    pub unauthorized: f64,
    /// Canvas: 401 without `WWW-Authenticate` (not permitted); others: 403.
    pub forbidden: f64,
    /// Every n-th read finds all sessions and tokens expired; 0 is never.
    pub expire_every: u32,
    /// `ActivID`, Index Exchange: an ended token is refused with 403 and `invalid_token`, not with 401.
    pub ended_as_403: bool,
    /// A login is refused with 200 and the error in the body.
    pub refused_as_200: bool,
    /// Informatica: the organization moves; where it was answers with a page, a redirect or not at all like the
    /// service, until a new login tells where it is.
    pub moves: f64,
    /// Share of events that are listed twice (services with ids).
    pub duplicates: f64,
    /// Share of events that get another time, up to two minutes off, some minutes after they happened (services with ids).
    pub redated: f64,
    /// Canvas: `next` of the second page leads to the second page; Losant and Informatica: `page`
    /// and `skip` are ignored.
    pub looping: bool,
    /// Canvas: the bookmark in `next` is one the service cannot decode, so that page 1 follows.
    pub restarting: bool,
    /// The time filter is accepted and ignored.
    pub ignore_time_filter: bool,
    /// How far the service's clock is ahead of the machine's, in seconds: its `Date`, the times of
    /// its events and its reading of time filters.
    pub clock_skew_seconds: i64,
    /// Answers come from a cache, which says in `Age` for how many seconds it has had their `Date`; 0 is no cache.
    pub cached_seconds: u32,
    /// The most events one answer holds, whatever was asked for; 0 is no cap beyond the documented.
    pub count_cap: usize,
    /// Losant: what `totalCount` says.
    pub total_count: TotalCount,
    /// Losant: `perPage` repeats what was asked for, whatever `count_cap` leaves of it.
    pub cap_unsaid: bool,
    /// Canvas: the answer comes without its `Link` header.
    pub link_lost: f64,
    /// Canvas: `next` of every page leads to that page.
    pub next_is_this_page: bool,
    /// Good answers come with `Content-Encoding: gzip` in several members with zeros behind the last; files of Index
    /// Exchange are such gzip themselves, too.
    pub gzip_members: bool,
    /// Losant: `start` and `end` are exclusive (the documentation does not say).
    pub exclusive_bounds: bool,
    /// Canvas: flat events as in the old documentation (no `id`, times with an offset) in the compound
    /// document.
    pub flat: bool,
    /// Canvas: the flat events as a bare list.
    pub bare_list: bool,
    /// Canvas: the old route `/pseudonyms/` instead of `/logins/`.
    pub pseudonyms_route: bool,
    /// Canvas: ids as strings even if nobody asked for them.
    pub string_ids: bool,
    /// Informatica: how an ended session is refused.
    pub session_end: SessionEnd,
    /// Informatica: the shape of errors.
    pub error_shape: ErrorShape,
    /// Informatica: sessions are long tokens that end 30 minutes after login, used or not.
    pub jwt_sessions: bool,
    /// Informatica, `ActivID`, Index Exchange: after so many refused logins in a row the account is
    /// locked for good; 0 is never.
    pub lock_after: u32,
    /// `ActivID`: each login and each search of the reader is an event too.
    pub self_noise: bool,
    /// Index Exchange, `ActivID`: seconds a token is really valid, if less than its `expires_in`
    /// says; 0 keeps the promise.
    pub token_seconds: u32,
    /// Index Exchange: any bearer token will do, as if another token server had issued it.
    pub accept_any_token: bool,
    /// Index Exchange: bid events come as one file per hour instead of several parts.
    pub single_file_bids: bool,
    /// Index Exchange: an updated file has another id.
    pub new_file_ids: bool,
    /// Index Exchange: files are sent with `Content-Encoding: gzip`, not as files that are gzip.
    pub content_encoding: bool,
}

/// What Losant's `totalCount` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TotalCount {
    /// How many events there are.
    #[default]
    Right,
    /// The same, at most 150.
    Capped,
    /// How many are on the page.
    PageLength,
    /// 0.
    Zero,
    /// Nothing.
    Absent,
}

/// How Informatica refuses an ended session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionEnd {
    /// 401.
    #[default]
    Unauthorized,
    /// 403 with `error.code` `AUTH_01`.
    Auth01,
    /// 200 with an HTML login page.
    Html,
}

/// How a throttled answer says when to come again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryForm {
    /// `Retry-After: 30`.
    #[default]
    Seconds,
    /// `Retry-After: 29.5`.
    Fraction,
    /// `Retry-After: 30, 30`, as two headers that were put together.
    Twice,
    /// `Retry-After` with a date, by the service's clock.
    Date,
    /// `RateLimit-Reset: 30`.
    Reset,
    /// `X-RateLimit-Reset` in seconds since 1970, by the service's clock.
    ResetEpoch,
}

impl RetryForm {
    /// The header, and what stands in it.
    pub(super) fn header(self, seconds: u32, now: DateTime<Utc>) -> (HeaderName, String) {
        let at = now + TimeDelta::seconds(i64::from(seconds));
        match self {
            Self::Seconds => (header::RETRY_AFTER, seconds.to_string()),
            Self::Fraction => (header::RETRY_AFTER, format!("{}.5", seconds.saturating_sub(1))),
            Self::Twice => (header::RETRY_AFTER, format!("{seconds}, {seconds}")),
            Self::Date => (header::RETRY_AFTER, httpdate::fmt_http_date(at.into())),
            Self::Reset => (HeaderName::from_static("ratelimit-reset"), seconds.to_string()),
            Self::ResetEpoch => (HeaderName::from_static("x-ratelimit-reset"), at.timestamp().to_string()),
        }
    }
}

/// The three shapes of Informatica's errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorShape {
    /// `{"error":{"code","message","requestId","details"}}`.
    #[default]
    V3,
    /// `{"code","description","statusCode","@type":"error"}`.
    V2,
    /// Spring's problem detail.
    Problem,
}

/// Why a text or JSON value does not switch faults.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct BadFault(String);

// === impl Faults ===

impl Faults {
    /// Nothing wrong with any of these.
    pub(super) fn none(services: impl IntoIterator<Item = System>) -> Self {
        Self(services.into_iter().map(|system| (system, ServiceFaults::default())).collect())
    }

    /// The switches of one service.
    pub fn of(&self, system: System) -> &ServiceFaults {
        static ALL_OFF: LazyLock<ServiceFaults> = LazyLock::new(ServiceFaults::default);
        self.0.get(&system).unwrap_or(&ALL_OFF)
    }

    /// The switches of one service, to be changed.
    pub fn of_mut(&mut self, system: System) -> &mut ServiceFaults {
        self.0.entry(system).or_default()
    }

    /// Switches what a flag says: `SERVICE:SWITCH[=VALUE][,SWITCH[=VALUE]…]`, where a switch without
    /// a value is on (a probability: always). `SERVICE` may be `all`.
    pub fn set(&mut self, flag: &str) -> Result<(), BadFault> {
        let (service, switches) =
            flag.split_once(':').ok_or_else(|| BadFault(format!("{flag:?}: expected SERVICE:SWITCH=VALUE")))?;
        let plain = serde_json::to_value(ServiceFaults::default()).unwrap_or_default();
        let mut wanted = serde_json::Map::new();
        for switch in switches.split(',') {
            let (name, value) = match switch.split_once('=') {
                Some((name, text)) => {
                    (name, serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned())))
                }
                None if plain[switch].is_boolean() => (switch, Value::Bool(true)),
                None => (switch, Value::from(1)),
            };
            wanted.insert(name.to_owned(), value);
        }
        let systems: Vec<&str> =
            if service == "all" { self.0.keys().map(|system| system.as_str()).collect() } else { vec![service] };
        let patch = systems.into_iter().map(|s| (s.to_owned(), Value::Object(wanted.clone()))).collect();
        self.patch(&Value::Object(patch))
    }

    /// Switches what a JSON object says, `{"canvas":{"throttle":0.1}}`. What it does not name stays;
    /// `null` for a service turns all its faults off.
    pub fn patch(&mut self, patch: &Value) -> Result<(), BadFault> {
        let services = patch.as_object().ok_or_else(|| BadFault("expected a JSON object by service".to_owned()))?;
        let mut patched = self.clone();
        for (name, switches) in services {
            let (_, service) = patched
                .0
                .iter_mut()
                .find(|(system, _)| system.as_str() == name)
                .ok_or_else(|| BadFault(format!("{name:?} is not a simulated service")))?;
            if switches.is_null() {
                *service = ServiceFaults::default();
                continue;
            }
            let wanted = switches.as_object().ok_or_else(|| BadFault(format!("{name}: expected a JSON object")))?;
            let mut whole = serde_json::to_value(&*service).unwrap_or_default();
            for (switch, value) in wanted {
                whole[switch] = value.clone();
            }
            *service = serde_json::from_value(whole).map_err(|error| BadFault(format!("{name}: {error}")))?;
        }
        *self = patched;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::service;

    fn of<'a>(faults: &'a Faults, name: &str) -> &'a ServiceFaults {
        faults.of(service(name).unwrap().system)
    }

    #[test]
    fn a_flag_switches_one_service_and_leaves_the_rest() {
        let mut faults = Faults::default();
        faults.set("canvas:throttle=0.1,retry_after=5,flat").unwrap();
        faults.set("informatica:session_end=html").unwrap();
        faults.set("canvas:hang").unwrap();
        let canvas = of(&faults, "canvas");
        assert_eq!(canvas.throttle.to_bits(), 0.1_f64.to_bits());
        assert_eq!(canvas.retry_after, 5);
        assert!(canvas.flat);
        assert_eq!(canvas.hang.to_bits(), 1.0_f64.to_bits());
        assert_eq!(of(&faults, "informatica").session_end, SessionEnd::Html);
        assert_eq!(*of(&faults, "losant"), ServiceFaults::default());
        faults.patch(&serde_json::json!({"canvas": null})).unwrap();
        assert_eq!(*of(&faults, "canvas"), ServiceFaults::default());
    }

    #[test]
    fn an_unknown_service_or_switch_is_named_and_changes_nothing() {
        let mut faults = Faults::default();
        for (flag, named) in [("mail:throttle=1", "mail"), ("canvas:thrott=1", "thrott"), ("canvas", "canvas")] {
            let error = faults.set(flag).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        assert_eq!(faults, Faults::default());
    }

    #[test]
    fn the_page_lists_every_switch_and_no_other() {
        let page = include_str!("../../docs/simulator.md");
        let table = page.split_once("| switch |").unwrap().1;
        let mut listed: Vec<&str> =
            table.lines().filter_map(|row| row.strip_prefix("| `")?.split_once("` |")).map(|(name, _)| name).collect();
        let plain = serde_json::to_value(ServiceFaults::default()).unwrap();
        let mut switches: Vec<&str> = plain.as_object().unwrap().keys().map(String::as_str).collect();
        listed.sort_unstable();
        switches.sort_unstable();
        assert_eq!(listed, switches);
    }

    #[test]
    fn the_page_lists_every_value_of_a_switch_of_words() {
        let page = include_str!("../../docs/simulator.md");
        for switch in ["retry_form", "total_count", "session_end", "error_shape"] {
            let row = page.lines().find(|row| row.starts_with(&format!("| `{switch}` |"))).unwrap();
            let error = Faults::default().set(&format!("canvas:{switch}=none_of_them")).unwrap_err().to_string();
            let (_, accepted) = error.split_once("expected one of ").unwrap();
            let named = row.split('|').nth(2).unwrap().trim();
            assert_eq!(named, accepted, "{switch}");
        }
    }
}
