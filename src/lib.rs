//! audit-exporter: five audit-log APIs, every event counted exactly once on `/metrics`.

pub mod clock;
pub mod event;
pub mod simulate;
