//! audit-exporter: five audit-log APIs, every event counted exactly once on `/metrics`.

pub mod api;
pub mod clock;
pub mod config;
pub mod demo;
pub mod event;
pub mod exporter;
pub mod exposition;
pub mod ledger;
pub mod metrics;
pub mod poll;
pub mod simulate;
pub mod source;
pub mod stats;
pub mod transport;
pub mod web;
pub mod window;
