//! stub
#![allow(unused, missing_docs)]
use super::world::*;
use axum::Router;
use chrono::{DateTime, Utc};
use http::StatusCode;
pub const CLIENT_KEY: &str = "k";
pub(super) struct Feed;
impl Feed {
    pub(super) fn new(_s: u64, _f: DateTime<Utc>, _r: f64) -> Self {
        Self
    }
    pub(super) fn end_tokens(&mut self) -> bool {
        true
    }
    pub(super) fn grow(&mut self, _n: DateTime<Utc>) {}
    pub(super) fn tell(&self, _n: DateTime<Utc>, _of: &TruthOf, _t: &mut Truth) {}
    pub(super) fn inject(&mut self, _c: &EventCall, _e: Expect, _a: DateTime<Utc>, _v: DateTime<Utc>) {}
    pub(super) fn update_newest(&mut self, _n: DateTime<Utc>, _c: u64) -> usize {
        0
    }
}
pub(super) fn routes(_w: &World) -> Router {
    Router::new()
}
pub(super) fn refuse(_r: Refusal) -> Reply {
    Reply::new(StatusCode::UNAUTHORIZED)
}
