//! stub
#![allow(unused, missing_docs)]
use super::faults::ServiceFaults;
use super::world::*;
use axum::Router;
use chrono::{DateTime, Utc};
use http::StatusCode;
pub const ACCESS_TOKEN: &str = "t";
pub const ACCOUNT: u64 = 1;

pub(super) struct Log {
    pub(super) events: Timeline<()>,
}
impl Log {
    pub(super) fn new() -> Self {
        Self { events: Timeline::new() }
    }
    pub(super) fn end_sessions(&mut self) -> bool {
        true
    }
    pub(super) fn end_tokens(&mut self) -> bool {
        true
    }
}
pub(super) fn routes(_w: &World) -> Router {
    Router::new()
}
pub(super) fn refuse(_r: Refusal, _f: &ServiceFaults) -> Reply {
    Reply::new(StatusCode::UNAUTHORIZED)
}
pub(super) fn traffic(_l: &mut Log, _c: &mut Cell) {}
pub(super) fn ordinary(_l: &mut Log, _d: &mut Dice, _a: DateTime<Utc>, _v: DateTime<Utc>) {}
pub(super) fn unlisted(_l: &mut Log, _d: &mut Dice, _n: Option<u32>, _a: DateTime<Utc>, _v: DateTime<Utc>) {}
pub(super) fn inject(_l: &mut Log, _d: &mut Dice, _c: &EventCall, _e: Expect, _a: DateTime<Utc>, _v: DateTime<Utc>) {}
pub(super) fn password_spray(_l: &mut Log, _d: &mut Dice, _t: &[DateTime<Utc>], _v: DateTime<Utc>) -> usize {
    0
}
pub(super) fn deletion_burst(_l: &mut Log, _d: &mut Dice, _t: &[DateTime<Utc>], _v: DateTime<Utc>) -> usize {
    0
}
pub(super) fn privilege_escalation(_l: &mut Log, _d: &mut Dice, _t: DateTime<Utc>, _v: DateTime<Utc>) -> usize {
    0
}
pub(super) fn tainted_record(_l: &mut Log, _d: &mut Dice, _t: DateTime<Utc>, _v: DateTime<Utc>) -> usize {
    0
}
