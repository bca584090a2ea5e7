//! The running program: its sources, what it shows, and how it takes a new configuration.
//!
//! Promises: a reload either takes effect whole or not at all; a source whose entry did not change
//! goes on undisturbed; stopping finishes the commit under way.
//!
//! Leaves to others: polling (`poll.rs`), counting (`ledger.rs`), HTTP (`web.rs`).

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use chrono::{DateTime, Utc};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use secrecy::ExposeSecret;
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::api::{Api, ApiParts, Dialect, Gate};
use crate::clock::Clock;
use crate::config::{Config, Global, SourceConfig};
use crate::connect::{Connect, limits};
use crate::event::{SourceName, System};
use crate::exposition::{self, Format};
use crate::ledger::{
    BackupError, Book, Client, CommitError, Copied, Counter, Held, Ledger, Receipt, Registration, STORE_FILE,
};
use crate::metrics::{ExporterView, SourceView, families};
use crate::poll::Poller;
use crate::source::{Source, Spec};
use crate::stats::SourceStats;
use crate::transport::{ConnectError, Transport};
use crate::window::Cadence;

/// What the program is given from outside: disk, time, network and chance. In a simulation none of
/// them is the machine's.
pub struct Edges {
    /// What has been counted.
    pub ledger: Ledger,
    /// Tells the time.
    pub clock: Clock,
    /// Makes connections.
    pub connect: Connect,
    /// Where people reach it, where that was told.
    pub external_url: Option<Arc<str>>,
    /// Seed of every jitter.
    pub seed: u64,
}

/// Why a configuration cannot take effect.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A certificate, a key, a proxy.
    #[error("source {name}: {why}")]
    Connect {
        /// Which source.
        name: SourceName,
        /// What is wrong.
        why: ConnectError,
    },
    /// The ledger cannot move while the program runs.
    #[error(
        "storage.path was {before} at the start and is {after} now. A reload does not move the ledger, and a restart does \
         not either: {instead}. To move the ledger, stop the exporter, move the folder ({before} to {after}), and start it; \
         to keep it where it is, put storage.path back"
    )]
    StorageMoved {
        /// Where the ledger is.
        before: String,
        /// Where the configuration wants it.
        after: String,
        /// What a restart would do.
        instead: &'static str,
    },
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] CommitError),
}

/// The running program. Shared by the web server and the signals; polling ends with it.
pub struct Exporter {
    ledger: Ledger,
    clock: Clock,
    connect: Connect,
    external_url: Option<Arc<str>>,
    random: Mutex<StdRng>,
    /// `storage.path` of the configuration at the start.
    storage: PathBuf,
    inner: RwLock<Inner>,
    /// One reload at a time.
    applying: tokio::sync::Mutex<()>,
}

struct Inner {
    global: Global,
    running: Vec<Arc<Running>>,
    reload: Reload,
    /// As long as the process lives.
    kept: BTreeMap<(SourceName, System), Kept>,
}

/// What became of the last configuration.
#[derive(Clone, Copy)]
struct Reload {
    /// Whether it was taken.
    successful: bool,
    /// When the one in force was loaded.
    loaded_at: DateTime<Utc>,
}

/// What of a source outlives a reload that changes it.
#[derive(Clone)]
struct Kept {
    /// So that its counters do not begin anew.
    stats: Arc<SourceStats>,
    /// So that a budget is not refilled.
    gate: Arc<Gate>,
    /// When it was first to be polled.
    since: Instant,
}

/// A source that is polled.
pub struct Polled {
    /// Its settings.
    pub config: SourceConfig,
    /// Its client, with its session and its budget.
    pub api: Arc<Api>,
    /// What was counted of it.
    pub book: Arc<Book>,
    /// What its poller learns.
    pub stats: Arc<SourceStats>,
    /// Its budget.
    pub gate: Arc<Gate>,
}

struct Running {
    config: SourceConfig,
    spec: Spec,
    book: Arc<Book>,
    kept: Kept,
    api: Arc<Api>,
    stop: CancellationToken,
    task: Mutex<Option<AbortOnDropHandle<()>>>,
}

/// Whether two paths lead to one folder, however they are written.
fn same_folder(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path));
    one == other || real(one).is_ok_and(|one| real(other).is_ok_and(|other| one == other))
}

impl Exporter {
    /// Starts polling what the configuration says.
    pub async fn start(config: Config, edges: Edges) -> Result<Arc<Self>, ApplyError> {
        let Edges { ledger, clock, connect, external_url, seed } = edges;
        let reload = Reload { successful: true, loaded_at: clock.now() };
        let inner = Inner { global: config.global.clone(), running: Vec::new(), reload, kept: BTreeMap::new() };
        let storage = config.storage.path.clone();
        let exporter = Self {
            ledger,
            clock,
            connect,
            external_url,
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            storage,
            inner: RwLock::new(inner),
            applying: tokio::sync::Mutex::default(),
        };
        exporter.apply(config).await?;
        Ok(Arc::new(exporter))
    }

    fn inner(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number of chance.
    pub fn draw(&self) -> u64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).random()
    }

    /// Puts a configuration in force. On an error the one before stays in force whole.
    pub async fn apply(&self, config: Config) -> Result<(), ApplyError> {
        let _alone = self.applying.lock().await;
        if !same_folder(&config.storage.path, &self.storage) {
            let (before, after) = (self.storage.display().to_string(), config.storage.path.display().to_string());
            let instead = if config.storage.path.join(STORE_FILE).exists() {
                "it would go on with the other ledger that is there"
            } else {
                "it would begin a new ledger there, with all counters at 0"
            };
            return Err(ApplyError::StorageMoved { before, after, instead });
        }
        let before = self.inner().running.clone();
        // everything that can be refused comes before anything is stopped
        let unchanged = |entry: &SourceConfig| before.iter().find(|running| running.config == *entry).cloned();
        let changed: Vec<_> = config.sources.iter().filter(|entry| unchanged(entry).is_none()).cloned().collect();
        let fresh = self.prepare_all(changed).await?;
        let mut prepared = fresh.iter().map(|(running, _)| Arc::clone(running));
        let after: Vec<Arc<Running>> =
            config.sources.iter().filter_map(|entry| unchanged(entry).or_else(|| prepared.next())).collect();
        for running in &before {
            if !after.iter().any(|kept| Arc::ptr_eq(kept, running)) {
                running.stop().await;
            }
        }
        for (running, poller) in fresh {
            // not before: the poller before it was to keep to its own limits
            running.kept.gate.change(&limits(&running.config.common));
            if !before.iter().any(|old| old.key() == running.key() && *old.config.service == *running.config.service) {
                running.kept.stats.observed().refused = None;
            }
            let task = AbortOnDropHandle::new(tokio::spawn(poller.run(running.stop.clone())));
            *running.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        }
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.global = config.global;
        inner.kept.extend(after.iter().map(|running| (running.key(), running.kept.clone())));
        inner.running = after;
        inner.reload = Reload { successful: true, loaded_at: self.clock.now() };
        Ok(())
    }

    /// When the configuration in force was loaded.
    pub fn loaded_at(&self) -> DateTime<Utc> {
        self.inner().reload.loaded_at
    }

    /// Whether the last configuration was taken.
    pub fn reload_succeeded(&self) -> bool {
        self.inner().reload.successful
    }

    /// Records that a configuration was refused.
    pub fn reload_failed(&self) {
        self.inner.write().unwrap_or_else(PoisonError::into_inner).reload.successful = false;
    }

    /// Connects sources and makes them known to the ledger, all at once: one flush of the disk, however many they are.
    async fn prepare_all(&self, configs: Vec<SourceConfig>) -> Result<Vec<(Arc<Running>, Poller)>, ApplyError> {
        let mut connected = Vec::with_capacity(configs.len());
        let mut registrations = Vec::with_capacity(configs.len());
        for config in configs {
            let transport =
                (self.connect)(&config).map_err(|why| ApplyError::Connect { name: config.name.clone(), why })?;
            let (reader, dialect) = config.service.build(&config.common);
            let catalogue = reader.spec().catalogue;
            registrations.push(Registration { name: config.name.clone(), system: config.system(), catalogue });
            connected.push((config, transport, reader, dialect));
        }
        if connected.is_empty() {
            return Ok(Vec::new());
        }
        let books = self.ledger.register_all(registrations, self.clock.now()).await?;
        let prepare =
            |((config, transport, reader, dialect), book)| self.prepare(config, transport, reader, dialect, book);
        Ok(connected.into_iter().zip(books).map(prepare).collect())
    }

    fn prepare(
        &self,
        config: SourceConfig,
        transport: Arc<dyn Transport>,
        reader: Box<dyn Source>,
        dialect: Box<dyn Dialect>,
        book: Arc<Book>,
    ) -> (Arc<Running>, Poller) {
        let common = &config.common;
        let key = (config.name.clone(), config.system());
        let limits = limits(common);
        let spec = reader.spec();
        let kept = self.inner().kept.get(&key).cloned();
        let kept = kept.unwrap_or_else(|| Kept {
            stats: Arc::default(),
            // what a process before this one asked a moment ago is not known
            gate: Arc::new(if book.is_new() { Gate::full(&limits) } else { Gate::empty(&limits) }),
            since: Instant::now(),
        });
        let Kept { stats, gate, since } = kept.clone();
        let (told, clock, seed) = (Arc::clone(&stats), self.clock.clone(), self.draw());
        let api = Arc::new(Api::from_parts(ApiParts { gate, transport, dialect, limits, stats: told, clock, seed }));
        let cadence = Cadence {
            overlap: common.overlap,
            initial_lookback: common.initial_lookback,
            max_catch_up: config.max_catch_up(),
            cell: spec.reading.cell(),
            ahead: spec.reading.ahead(),
        };
        let (secret, proxy_password) = (config.secret().clone(), common.proxy_password.clone());
        let poller = Poller {
            name: config.name.clone(),
            source: reader,
            rebuild: {
                let config = config.clone();
                Box::new(move || config.service.build(&config.common).0)
            },
            api: Arc::clone(&api),
            ledger: self.ledger.clone(),
            book: Arc::clone(&book),
            stats,
            clock: self.clock.clone(),
            cadence,
            since,
            interval: common.poll_interval,
            timeout: common.poll_timeout,
            credential: Box::new(move || {
                // what is wrong with it is told anew, too: nothing is sent for that
                let mut all = blake3::Hasher::new();
                for secret in std::iter::once(&secret).chain(&proxy_password) {
                    match secret.read() {
                        Ok(secret) => all.update(secret.expose_secret().as_bytes()),
                        Err(error) => all.update(error.to_string().as_bytes()),
                    };
                    all.update(b"\n");
                }
                Some(*all.finalize().as_bytes())
            }),
            seed: self.draw(),
        };
        let stop = CancellationToken::new();
        (Arc::new(Running { config, spec, book, kept, api, stop, task: Mutex::default() }), poller)
    }

    /// `/metrics` in the given format, as somebody takes it whole who is no scraper.
    pub async fn metrics(&self, format: Format) -> Vec<u8> {
        let (page, receipt) = self.answer(format, &Client::Other).await;
        receipt.taken();
        page
    }

    /// `/metrics` in the given format for `client`, and what is to be told once it has been handed that whole.
    pub async fn answer(&self, format: Format, client: &Client) -> (Vec<u8>, Receipt) {
        let (running, global, reload) = {
            let inner = self.inner();
            (inner.running.clone(), inner.global.clone(), inner.reload)
        };
        let books: Vec<_> = running.iter().map(|running| Arc::clone(&running.book)).collect();
        // before the ledger is waited for: a scraper dates what it gets by when it asked
        let now = self.clock.now();
        let (snapshots, receipt) = self.ledger.scrape(&books, now, global.hold_new_series, client).await;
        let views: Vec<SourceView<'_>> = running
            .iter()
            .zip(snapshots)
            .map(|(running, snapshot)| SourceView {
                book: &running.book,
                snapshot,
                stats: &running.kept.stats,
                spec: &running.spec,
                own_budget: running.api.own_budget(),
            })
            .collect();
        let exporter = ExporterView {
            now,
            reload_successful: reload.successful,
            reloaded_at: reload.loaded_at,
            store_generation: self.ledger.generation(),
            external_url: self.external_url.clone(),
        };
        (exposition::encode(&families(&exporter, &views), format, global.openmetrics_created), receipt)
    }

    /// What the status page and `/api/v1/status` show.
    pub fn status(&self) -> Status {
        let now = self.clock.now();
        let (running, hold) = {
            let inner = self.inner();
            (inner.running.clone(), inner.global.hold_new_series)
        };
        let books = running.iter().map(|running| &*running.book);
        let waiting = self.ledger.held(books, now, hold);
        let sources = running.iter().map(|running| running.status()).collect();
        Status { version: env!("CARGO_PKG_VERSION"), now, held: waiting, sources }
    }

    fn find(&self, name: &str) -> Option<Arc<Running>> {
        self.inner().running.iter().find(|running| running.config.name.as_str() == name).cloned()
    }

    /// Writes a copy of the ledger into an empty file.
    pub async fn backup(&self, file: File) -> Result<Copied, BackupError> {
        self.ledger.backup(file).await
    }

    /// A source that is polled, as others may look at it; `None` where none of this name is.
    pub fn polled(&self, name: &str) -> Option<Polled> {
        let running = self.find(name)?;
        Some(Polled {
            config: running.config.clone(),
            api: Arc::clone(&running.api),
            book: Arc::clone(&running.book),
            stats: Arc::clone(&running.kept.stats),
            gate: Arc::clone(&running.kept.gate),
        })
    }

    /// A connection for a source.
    pub fn connect(&self, config: &SourceConfig) -> Result<Arc<dyn Transport>, ConnectError> {
        (self.connect)(config)
    }

    /// What has been counted.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What tells the time.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Stops polling and waits for the commit under way.
    pub async fn stop(&self) {
        let running = self.inner().running.clone();
        for running in &running {
            running.stop.cancel();
        }
        for running in &running {
            running.stop().await;
        }
        self.ledger.settle().await;
    }
}

/// `/api/v1/status`.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The program's version.
    pub version: &'static str,
    /// The present, as the ages on the page are counted from it.
    pub now: DateTime<Utc>,
    /// The new series that `/metrics` still shows as 0; `null` if there is none.
    pub held: Option<Held>,
    /// One entry per source, in the order of the configuration.
    pub sources: Vec<SourceStatus>,
}

/// One source in `/api/v1/status`. Times are RFC 3339; `null` where nothing is known.
#[derive(Clone, Debug, Serialize)]
pub struct SourceStatus {
    /// Its name.
    pub name: String,
    /// Its system.
    pub system: System,
    /// `starting`, `ok`, `catching_up`, `error` or `throttled`.
    pub state: &'static str,
    /// When a poll last succeeded.
    pub last_success: Option<DateTime<Utc>>,
    /// The newest counted event's own time.
    pub last_event: Option<DateTime<Utc>>,
    /// Everything up to here is counted.
    pub watermark: Option<DateTime<Utc>>,
    /// Whether history older than the overlap is being read.
    pub catching_up: bool,
    /// What last went wrong, until a poll goes through without any error.
    pub last_error: Option<String>,
    /// When.
    pub last_error_at: Option<DateTime<Utc>>,
    /// When the next poll is due.
    pub next_poll: Option<DateTime<Utc>>,
    /// Events counted, ever.
    pub events: u64,
    /// What is left of the budget.
    pub rate_limit_remaining: f64,
    /// Whether that is the service's own account of it.
    pub rate_limit_told: bool,
    /// The budget, in words.
    pub rate_limit: String,
    /// The service's clock less ours, in seconds.
    pub clock_skew_seconds: Option<i64>,
    /// Whether the last verified read reported taint; `null` where the service does not verify.
    pub tainted: Option<bool>,
    /// The signals this system cannot report.
    pub cannot_report: Vec<&'static str>,
}

impl Running {
    fn key(&self) -> (SourceName, System) {
        (self.config.name.clone(), self.config.system())
    }

    async fn stop(&self) {
        self.stop.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }

    fn status(&self) -> SourceStatus {
        let observed = self.kept.stats.observed().clone();
        let state = self.book.state();
        let catching_up = state.checkpoint().is_none_or(crate::window::Checkpoint::catching_up);
        let failing = observed.next_poll.is_some() && !self.kept.stats.up();
        let condition = if observed.next_poll.is_none() && !self.kept.stats.up() {
            "starting"
        } else if failing && observed.throttled_last {
            "throttled"
        } else if failing {
            "error"
        } else if catching_up {
            "catching_up"
        } else {
            "ok"
        };
        let limit = self.config.common.rate_limit;
        SourceStatus {
            name: self.config.name.to_string(),
            system: self.config.system(),
            state: condition,
            last_success: observed.last_success,
            last_event: state.last_event(),
            watermark: state.checkpoint().map(crate::window::Checkpoint::watermark),
            catching_up,
            last_error: observed.standing_error().map(|(_, error)| error.clone()),
            last_error_at: observed.standing_error().map(|(at, _)| *at),
            next_poll: observed.next_poll,
            events: state.total(Counter::Events),
            rate_limit_remaining: observed.remaining.unwrap_or_else(|| self.api.own_budget()),
            rate_limit_told: observed.remaining.is_some(),
            tainted: state.facts().tainted,
            rate_limit: format!("{} per {}", limit.requests, crate::settings::per_text(limit.per)),
            clock_skew_seconds: observed.clock_skew.map(|skew| skew.num_seconds()),
            cannot_report: self.spec.signals.rows().iter().filter(|(_, can)| !can).map(|(signal, _)| *signal).collect(),
        }
    }
}
