//! The promises of polling, with a source that does as it is told, in simulated time: windows (`windows.rs`), failures
//! and pauses (`failures.rs`), clocks (`clocks.rs`), history (`history.rs`), what an outage held back (`backlog.rs`).

mod backlog;
mod clocks;
mod failures;
mod history;
mod windows;

use std::sync::Mutex;

use axum::Router;

use super::*;
use crate::api::{Dialect, Limits, Session, Wire};
use crate::event::{Class, EventLabels, Item, Label, Outcome, System, What};
use crate::ledger::Counter;
use crate::page::Catalogue;
use crate::source::{Reading, Signals};
use crate::transport::InMemory;

struct Open;

#[async_trait]
impl Dialect for Open {
    async fn open_session(&self, _: &Wire) -> Result<Session, Failure> {
        Ok(Session { token: "t".into(), base: "http://service.test".parse().unwrap(), renew_at: None })
    }
}

type Reader = Box<dyn FnMut(Window) -> (Duration, Vec<Page>, Result<(), Failure>) + Send + Sync>;

/// Takes as long as it says, hands over the pages it says, and ends as it says.
struct Scripted {
    reader: Reader,
    windows: Arc<Mutex<Vec<Window>>>,
}

#[async_trait]
impl Source for Scripted {
    fn spec(&self) -> Spec {
        Spec {
            reading: Reading::History(crate::source::History {
                cell: Duration::from_millis(1),
                step_max: Duration::from_hours(24),
                ahead: Duration::ZERO,
            }),
            signals: Signals::default(),
            catalogue: Catalogue::default(),
        }
    }

    async fn read(&mut self, window: Window, _: &Api, sink: &mut dyn Sink) -> Result<(), Failure> {
        self.windows.lock().unwrap().push(window);
        let (time, pages, end) = (self.reader)(window);
        tokio::time::sleep(time).await;
        for page in pages {
            sink.page(page).await?;
        }
        end
    }
}

struct Bench {
    poller: Poller,
    windows: Arc<Mutex<Vec<Window>>>,
    book: Arc<Book>,
    stats: Arc<SourceStats>,
    clock: Clock,
    _folder: tempfile::TempDir,
}

async fn bench(
    reader: impl FnMut(Window) -> (Duration, Vec<Page>, Result<(), Failure>) + Send + Sync + 'static,
) -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::starting_at(DateTime::from_timestamp(1_800_000_000, 0).unwrap());
    let ledger = Ledger::open(folder.path()).unwrap();
    let name: SourceName = "test".parse().unwrap();
    let book = ledger.register(&name, System::named("losant"), Catalogue::default(), clock.now()).await.unwrap();
    let stats = Arc::new(SourceStats::default());
    let second = Duration::from_secs(1);
    let limits = Limits { requests: 1, per: second, burst: 1, timeout: second, max_response_bytes: 1 };
    let transport = Arc::new(InMemory(Router::new()));
    let api = Api::new(transport, Box::new(Open), limits, Arc::clone(&stats), clock.clone(), 1);
    let windows = Arc::default();
    let poller = Poller {
        name,
        source: Box::new(Scripted { reader: Box::new(reader), windows: Arc::clone(&windows) }),
        rebuild: Box::new(|| unreachable!("its source does not panic")),
        api: Arc::new(api),
        ledger,
        book: Arc::clone(&book),
        stats: Arc::clone(&stats),
        clock: clock.clone(),
        cadence: Cadence {
            overlap: Duration::from_mins(10),
            initial_lookback: Duration::from_hours(6),
            max_catch_up: Duration::from_hours(24),
            cell: Duration::from_millis(1),
            ahead: Duration::ZERO,
        },
        since: Instant::now(),
        interval: Duration::from_mins(1),
        timeout: Duration::from_mins(15),
        credential: Box::new(|| None),
        seed: 1,
    };
    Bench { poller, windows, book, stats, clock, _folder: folder }
}

fn event(id: u8, at: DateTime<Utc>) -> Item {
    let labels = EventLabels {
        category: Label::from_words("user"),
        action: Label::from_words("create"),
        outcome: Outcome::Success,
        class: Class::Change,
    };
    Item { key: EventKey::of("test", &[&[id]]), at: Some(at), filed_at: Some(at), what: What::Event(labels) }
}

/// One for each moment.
fn event_of(at: DateTime<Utc>) -> Item {
    Item { key: EventKey::of("test", &[&at.timestamp_millis().to_le_bytes()]), ..event(0, at) }
}

fn page(items: Vec<Item>) -> Page {
    Page { items, ..Page::default() }
}

fn broken() -> Failure {
    Failure::new(ErrorKind::Decode, "reading", "garbage")
}

fn refused() -> Failure {
    let mut refused = Failure::new(ErrorKind::Auth, "logging in", "status 401");
    refused.at_login = true;
    refused
}

/// Lets the poller run for a while.
async fn run_for(poller: Poller, time: Duration) {
    let stop = CancellationToken::new();
    let task = tokio::spawn(poller.run(stop.clone()));
    tokio::time::sleep(time).await;
    stop.cancel();
    task.await.unwrap();
}
