//! The promises of the ledger (`promises.rs`), and what redb and the disk add to them (`disk.rs`).

mod disk;
mod promises;

use chrono::TimeDelta;

use super::*;
use crate::event::{Class, EventKey, Item, Outcome, Principal, What};
use crate::page::{Document, Page};
use crate::window::Checkpoint;

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
}

fn labels(category: &str, action: &str) -> EventLabels {
    let class = if action == "login" { Class::Login(Principal::User) } else { Class::Change };
    EventLabels {
        category: Label::from_words(category),
        action: Label::from_words(action),
        outcome: Outcome::Success,
        class,
    }
}

fn event(id: u64, second: i64, category: &str, action: &str) -> Item {
    Item {
        key: EventKey::of("test", &[&id.to_le_bytes()]),
        at: Some(at(second)),
        filed_at: Some(at(second)),
        what: What::Event(labels(category, action)),
    }
}

fn page(items: Vec<Item>) -> Page {
    Page { items, ..Page::default() }
}

fn counted(counted: u64, duplicate: u64) -> Committed {
    Committed { counted, duplicate, rejections: Vec::new() }
}

fn catalogue() -> Catalogue {
    let mut catalogue = Catalogue { integrity: true, ..Catalogue::default() };
    catalogue.add_logins(&["authentication"], Principal::User, &[Outcome::Success]);
    catalogue
}

/// What somebody who is no scraper sees of a source, and takes whole.
async fn look(ledger: &Ledger, source: &Arc<Book>, now: DateTime<Utc>, hold: Duration) -> Vec<Shown> {
    let (mut seen, receipt) = ledger.scrape(&[Arc::clone(source)], now, hold, &Client::Other).await;
    receipt.taken();
    seen.remove(0).counters
}

fn name() -> SourceName {
    "test".parse().unwrap()
}

async fn register(ledger: &Ledger) -> Arc<Book> {
    ledger.register(&name(), System::named("activid"), catalogue(), at(0)).await.unwrap()
}

/// Commits a page without moving the checkpoint.
async fn count(ledger: &Ledger, source: &Arc<Book>, page: Page) -> Result<Committed, CommitError> {
    let checkpoint = source.state().checkpoint().cloned();
    commit(ledger, source, checkpoint, page).await
}

async fn commit(
    ledger: &Ledger,
    source: &Arc<Book>,
    next: Option<Checkpoint>,
    page: Page,
) -> Result<Committed, CommitError> {
    let expected = source.state().checkpoint().cloned();
    ledger
        .commit(
            source,
            Commit { expected, next, page, lost_seconds: 0, now: at(100), service_now: at(100), backlog_from: None },
        )
        .await
}

fn events_total(source: &Book) -> u64 {
    source.state().total(Counter::Events)
}

fn read_to(second: i64) -> Checkpoint {
    Checkpoint { origin: at(-3600), head: at(second), gaps: vec![] }
}

/// An event that tells no time.
fn timeless() -> Page {
    page(vec![Item { at: None, filed_at: None, ..event(1, 0, "user", "create") }])
}

fn file(version: u8, rows: &[(&str, u64)]) -> Page {
    let rows = rows.iter().map(|(action, count)| (Label::from_words(action), *count)).collect();
    let document = Document {
        key: EventKey::of("file", &[b"1"]),
        filed_at: at(0),
        version: EventKey::of("version", &[&[version]]),
        category: Label::from_words("impressions"),
        rows,
        rejected: 0,
    };
    Page { documents: vec![document], ..Page::default() }
}

/// An event that its service tells another time of, or none.
fn dated(id: u64, second: Option<i64>) -> Item {
    Item { at: second.map(at), filed_at: second.map(at), ..event(id, 0, "user", "create") }
}

/// What a source's tallies say of a window, in seconds.
async fn tallied(ledger: &Ledger, source: &Arc<Book>, from: i64, to: i64) -> Vec<(i64, String, u64)> {
    let tallies = ledger.tallies(source, Window { from: at(from), to: at(to) }).await.unwrap();
    tallies.iter().map(|((cell, key), count)| ((*cell - at(0)).num_seconds(), key.values.join(","), *count)).collect()
}

/// What an outage that began at `at(-5000)` held back; counted at a moment of our clock.
fn held_back(source: &Book, counted_at: i64, items: Vec<Item>) -> Commit {
    let expected = source.state().checkpoint().cloned();
    let (now, page) = (at(counted_at), page(items));
    Commit {
        expected: expected.clone(),
        next: expected,
        page,
        lost_seconds: 0,
        now,
        service_now: now,
        backlog_from: Some(at(-5000)),
    }
}

async fn catch_up(ledger: &Ledger, source: &Arc<Book>, counted_at: i64, items: Vec<Item>) {
    ledger.commit(source, held_back(source, counted_at, items)).await.unwrap();
}

/// `count` events that happened in a second, told apart by it.
fn burst(second: i64, count: u64, action: &str) -> Vec<Item> {
    let first = second.unsigned_abs() * 1_000_000 + u64::from(action == "delete") * 1000;
    (first..first + count).map(|id| event(id, second, "user", action)).collect()
}

/// What a scrape is told of the backlog: labels, how many, and when it began.
fn backlog(source: &Book, now: i64) -> Vec<(String, u64, Option<i64>)> {
    let told = source.state().snapshot(at(now)).backlog.into_iter();
    told.map(|of| (of.key.values.join(","), of.events, of.begins.map(|at| at.timestamp() - 1_800_000_000))).collect()
}

fn deletions(events: u64, begins: i64) -> Vec<(String, u64, Option<i64>)> {
    vec![("user,delete,success".into(), events, Some(begins))]
}

fn commit_of(expected: Option<Checkpoint>, next: Option<Checkpoint>, id: u64) -> Commit {
    let page = page(vec![event(id, 1, "user", "create")]);
    Commit { expected, next, page, lost_seconds: 0, now: at(100), service_now: at(100), backlog_from: None }
}
