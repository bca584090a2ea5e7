//! Damage of every kind: it is noticed, or it changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redb::{ReadableDatabase, ReadableTable, TableDefinition, TableHandle};

use super::*;
use crate::event::{Class, EventKey, EventLabels, Item, Label, Outcome, System, What};
use crate::ledger::store::RedbStore;
use crate::ledger::{Book, Client, Commit, CommitError, Counter, Ledger, OpenError};
use crate::page::{Catalogue, Document, Page};
use crate::window::Checkpoint;

const EVENTS: u64 = 3000;
/// Events of one commit.
const PAGE: u64 = 200;

fn time(second: u64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + i64::try_from(second).unwrap(), 0).unwrap()
}

fn event(n: u64) -> Item {
    let word = |prefix: &str, of: u64| Label::from_words(&format!("{prefix}{of}"));
    let labels = EventLabels {
        category: word("c", n % 7),
        action: word("a", n % 11),
        outcome: Outcome::Success,
        class: Class::Change,
    };
    let at = (!n.is_multiple_of(10)).then(|| time(n));
    Item { key: EventKey::of("test", &[&n.to_le_bytes()]), at, filed_at: at, what: What::Event(labels) }
}

async fn register(ledger: &Ledger) -> Arc<Book> {
    let name = "test".parse().unwrap();
    ledger.register(&name, System::named("activid"), Catalogue::default(), time(0)).await.unwrap()
}

/// Counts some events, and a file, and moves the checkpoint.
async fn commit(ledger: &Ledger, source: &Arc<Book>, events: std::ops::Range<u64>) -> Result<u64, CommitError> {
    let document = Document {
        key: EventKey::of("file", &[&events.start.to_le_bytes()]),
        filed_at: time(events.start),
        version: EventKey::of("version", &[]),
        category: Label::from_words("rows"),
        rows: BTreeMap::from([(Label::from_words("row"), 3)]),
        rejected: 0,
    };
    let expected = source.state().checkpoint().cloned();
    let before = expected.as_ref().map_or(time(0), |read| read.head);
    let next = Some(Checkpoint { origin: time(0), head: before.max(time(events.end)), gaps: vec![] });
    let page = Page { items: events.map(event).collect(), documents: vec![document], ..Page::default() };
    let commit = Commit {
        expected,
        next,
        page,
        lost_seconds: 0,
        now: time(EVENTS),
        service_now: time(EVENTS),
        backlog_from: None,
    };
    ledger.commit(source, commit).await.map(|committed| committed.counted)
}

/// A store with everything in it: as a killed program left it, and as it is after a clean stop.
async fn stores() -> [BTreeMap<String, Vec<u8>>; 2] {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(folder.path()).unwrap();
    let source = register(&ledger).await;
    for start in (0..EVENTS).step_by(usize::try_from(PAGE).unwrap()) {
        commit(&ledger, &source, start..start + PAGE).await.unwrap();
        let (_, receipt) =
            ledger.scrape(&[Arc::clone(&source)], time(EVENTS), std::time::Duration::ZERO, &Client::Other).await;
        receipt.taken();
    }
    let killed = files(folder.path());
    drop((source, ledger));
    [killed, files(folder.path())]
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

fn place(files: &BTreeMap<String, Vec<u8>>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

/// Every row of every table.
fn rows(folder: &Path) -> Vec<String> {
    let database = Database::open(folder.join("ledger.redb")).unwrap();
    let read = database.begin_read().unwrap();
    let mut rows = Vec::new();
    macro_rules! table {
        ($name:literal, $key:ty, $value:ty) => {
            let table = read.open_table(TableDefinition::<$key, $value>::new($name)).unwrap();
            for row in table.iter().unwrap() {
                let (key, value) = row.unwrap();
                rows.push(format!("{} {:?} {:?}", $name, key.value(), value.value()));
            }
        };
    }
    table!("meta", &str, u64);
    table!("sources", &str, (u32, &[u8]));
    table!("series", &[u8], (u64, i64, bool));
    table!("seen", &[u8; 24], ());
    table!("timeless", &[u8; 20], u32);
    table!("documents", &[u8; 24], &[u8]);
    table!("tallies", &[u8], u64);
    table!("backlog", &[u8], u64);
    table!("backlog_peaks", &[u8], &[u8]);
    let known = ["meta", "sources", "series", "seen", "timeless", "documents", "tallies", "backlog", "backlog_peaks"];
    assert!(read.list_tables().unwrap().all(|table| known.contains(&table.name())), "a table is not looked at here");
    rows
}

/// Whether a store that differs from a good one is refused as damaged; if not, it must hold what
/// the good one holds.
fn refused(files: &BTreeMap<String, Vec<u8>>, good: &[String], what: &str) -> bool {
    let folder = place(files);
    match Ledger::open(folder.path()) {
        Err(OpenError::Damaged { .. }) => {
            assert!(self::files(folder.path()) == *files, "{what}: it was written to");
            true
        }
        Err(other) => panic!("{what}: {other}"),
        Ok(ledger) => {
            drop(ledger);
            assert_eq!(rows(folder.path()), good, "{what}");
            false
        }
    }
}

#[tokio::test]
async fn a_flipped_bit_is_refused_or_changes_nothing() {
    let flips = std::env::var("AUDIT_EXPORTER_FLIPS").map_or(100, |flips| flips.parse().unwrap());
    let mut random = StdRng::seed_from_u64(1);
    for (state, store) in ["killed", "stopped"].into_iter().zip(stores().await) {
        let good = rows(place(&store).path());
        assert!(good.len() > usize::try_from(EVENTS).unwrap());
        let bytes = &store["ledger.redb"];
        let used: Vec<usize> =
            (0..bytes.len()).step_by(BLOCK).filter(|at| bytes[*at..at + BLOCK].iter().any(|byte| *byte != 0)).collect();
        let mut found = [0_usize; 2];
        // every other byte of the header, then anywhere where there is something
        for n in 0..160 + flips {
            let at =
                if n < 160 { 2 * n } else { used[random.random_range(0..used.len())] + random.random_range(0..BLOCK) };
            let bit = random.random_range(0..8);
            let mut flipped = store.clone();
            flipped.get_mut("ledger.redb").unwrap()[at] ^= 1 << bit;
            let what = format!("{state}, bit {bit} of byte {at}");
            found[usize::from(n >= 160)] += usize::from(refused(&flipped, &good, &what));
        }
        println!("{state}: of 160 flips in the header {} were refused, of {flips} elsewhere {}", found[0], found[1]);
        assert!(found[0] > 40 && found[1] > flips / 4, "{found:?}: this test does not hit what is in use");
    }
}

#[tokio::test]
async fn a_bit_that_flips_while_the_program_runs_is_not_counted_on() {
    let mut random = StdRng::seed_from_u64(2);
    let [_, store] = stores().await;
    let mut noticed = 0;
    for round in 0..40 {
        let folder = place(&store);
        // next to nothing is kept in memory, so that everything is read again
        let store = RedbStore::open_folder_with(folder.path(), 0).unwrap();
        let ledger = Ledger::of(Arc::new(store));
        let source = register(&ledger).await;
        let before = source.state().total(Counter::Events);
        let path = folder.path().join("ledger.redb");
        let bytes = fs::read(&path).unwrap();
        let blocks = bytes.len() / BLOCK;
        let used = |block: usize| bytes[block * BLOCK..(block + 1) * BLOCK].iter().any(|byte| *byte != 0);
        let block = std::iter::repeat_with(|| random.random_range(1..blocks)).find(|block| used(*block)).unwrap();
        let at = block * BLOCK + random.random_range(0..BLOCK);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[bytes[at] ^ 1 << random.random_range(0..8)], at as u64).unwrap();
        // all events are read again
        match commit(&ledger, &source, 0..EVENTS).await {
            Ok(counted) => assert_eq!(counted, 0, "round {round}"),
            Err(error) => match commit(&ledger, &source, 0..PAGE).await {
                // it hit what redb keeps for itself, and the commit before has the same counters and keys
                Ok(counted) => assert_eq!(counted, 0, "round {round}"),
                Err(again) => {
                    noticed += 1;
                    assert!(again.to_string().contains("is damaged"), "{error}, then {again}");
                }
            },
        }
        assert_eq!(source.state().total(Counter::Events), before, "round {round}");
        let (shown, _) =
            ledger.scrape(&[Arc::clone(&source)], time(EVENTS), std::time::Duration::ZERO, &Client::Other).await;
        assert!(!shown[0].counters.is_empty(), "what is known to be right is still served");
    }
    assert!(noticed > 6, "{noticed} of 40");
}

#[tokio::test]
async fn a_store_without_its_newest_commit_is_refused_until_that_is_accepted() {
    let [older, _] = stores().await;
    let folder = place(&older);
    {
        let ledger = Ledger::open(folder.path()).unwrap();
        let source = register(&ledger).await;
        assert_eq!(commit(&ledger, &source, EVENTS..EVENTS + 1).await.unwrap(), 4);
    }
    fs::write(folder.path().join("ledger.redb"), &older["ledger.redb"]).unwrap();
    let refused = Ledger::open(folder.path()).err().unwrap().to_string();
    assert!(refused.contains("newest commit is number") && refused.contains("ledger.mark"), "{refused}");
    fs::remove_file(folder.path().join("ledger.mark")).unwrap();
    let ledger = Ledger::open(folder.path()).unwrap();
    assert_eq!(register(&ledger).await.state().total(Counter::Events), EVENTS + 3 * EVENTS / PAGE);
}

#[tokio::test]
async fn a_mark_that_cannot_be_read_stops_nothing() {
    let [mut store, _] = stores().await;
    store.get_mut("ledger.mark").unwrap()[3] ^= 1;
    let folder = place(&store);
    let ledger = Ledger::open(folder.path()).unwrap();
    let source = register(&ledger).await;
    commit(&ledger, &source, 0..1).await.unwrap();
    let mark = Mark::beside(&folder.path().join("ledger.redb"));
    assert!(mark.read().is_some(), "the next commit sets it right");
}

#[tokio::test]
async fn a_file_that_is_no_store_or_not_all_of_one_is_refused_and_left_as_it_is() {
    let [killed, store] = stores().await;
    let whole = &store["ledger.redb"];
    let killed = &killed["ledger.redb"];
    let other = {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.redb");
        let database = Database::create(&path).unwrap();
        let write = database.begin_write().unwrap();
        write.open_table(TableDefinition::<u64, u64>::new("theirs")).unwrap().insert(1, 2).unwrap();
        write.commit().unwrap();
        drop(database);
        fs::read(path).unwrap()
    };
    let cases: [(&str, Vec<u8>); 8] = [
        ("empty", Vec::new()),
        ("one byte", whole[..1].to_vec()),
        ("only the header", whole[..320].to_vec()),
        ("half", whole[..whole.len() / 2].to_vec()),
        ("without its last byte", whole[..whole.len() - 1].to_vec()),
        ("half of one that was not closed", killed[..killed.len() / 2].to_vec()),
        ("a text", b"counters: 17\n".repeat(1000)),
        ("a database of another program", other),
    ];
    for (what, bytes) in cases {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.redb");
        fs::write(&path, &bytes).unwrap();
        match Ledger::open(folder.path()).err() {
            Some(OpenError::Damaged { .. }) => {}
            other => panic!("{what}: {other:?}"),
        }
        assert!(fs::read(&path).unwrap() == bytes, "{what}: it was written to");
    }
}

#[tokio::test]
async fn a_program_killed_while_it_makes_its_store_makes_it_at_the_next_start() {
    let [_, store] = stores().await;
    let whole = &store["ledger.redb"];
    for left in [&[][..], &whole[..100], &vec![0; whole.len()]] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ledger.redb.new"), left).unwrap();
        drop(Ledger::open(folder.path()).unwrap());
        assert_eq!(files(folder.path()).into_keys().collect::<Vec<_>>(), ["ledger.mark", "ledger.redb"]);
    }
    let folder = place(&store);
    fs::remove_file(folder.path().join("ledger.redb")).unwrap();
    let ledger = Ledger::open(folder.path()).unwrap();
    assert_eq!(register(&ledger).await.state().total(Counter::Events), 0, "moved away, it begins anew");
}
