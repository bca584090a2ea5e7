//! audit-exporter: five audit-log APIs, every event counted exactly once on `/metrics`.
//!
//! ```text
//! service ──HTTP──▶ api ──▶ source ──pages──▶ poll ──one transaction──▶ ledger ──committed──▶ metrics ──▶ web
//! ```
//!
//! Data goes one way; nothing downstream calls upstream. Where each promise is kept:
//!
//! - [`ledger`]: an event is counted in the transaction that remembers its key;
//! - [`window`]: which history has been read and what is next, as plain functions;
//! - [`api`]: every request passes one gate; sessions, retries, bounds, errors;
//! - [`poll`]: one task per source, newest window first, gaps with the time left;
//! - [`source`]: five services, each in one place, each knowing nothing but its service;
//! - [`metrics`] and [`exposition`]: what `/metrics` shows, and its bytes;
//! - [`exporter`] and [`web`]: the running program, its reload, its pages; [`notify`]: what systemd is told of it;
//! - [`verify`] and [`doctor`]: what an operator asks about numbers and sources; [`backfill`]: history from before a
//!   source was counted; [`control`]: where that runs, in the running exporter or beside it;
//! - [`event`], [`page`], [`failure`]: the words that all of them use;
//! - [`config`], [`settings`]: the file and its language; [`init`]: a first one, by questions;
//! - `backoff`, [`clock`], [`connect`], [`process`], [`stats`], [`threads`], [`transport`], [`proxy`]: the edges;
//! - [`fault`]: what a panic may say; [`output`]: standard output and standard error;
//! - [`simulate`] and [`demo`]: the five services over one ground truth, for demo and tests.

#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

pub mod api;
pub mod backfill;
mod backoff;
pub mod clock;
pub mod config;
pub mod connect;
pub mod control;
pub mod demo;
pub mod doctor;
pub mod encoding;
pub mod event;
pub mod exporter;
pub mod exposition;
pub mod failure;
pub mod fault;
pub mod init;
pub mod ledger;
pub mod metrics;
pub mod notify;
pub mod output;
pub mod page;
mod pem;
pub mod poll;
pub mod process;
pub mod proxy;
pub mod settings;
pub mod simulate;
pub mod source;
pub mod stats;
pub mod threads;
pub mod transport;
pub mod verify;
pub mod web;
pub mod window;
