//! What the store in a file adds to the promises: layouts, generations, the damage a disk can do, many sources on one disk.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redb::{Database, ReadableDatabase, ReadableTable};

use super::*;
use crate::simulate::Disk;
use crate::window::{KEYS_BUCKET, floor};

/// A new ledger and its source.
async fn opened() -> (tempfile::TempDir, Ledger, Arc<Book>) {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(folder.path()).unwrap();
    let source = register(&ledger).await;
    (folder, ledger, source)
}

#[tokio::test]
async fn after_a_failure_of_the_disk_an_event_with_another_time_is_still_the_same() {
    for room in 0..40 {
        let disk = Disk::default();
        let ledger = Ledger::open_with(disk.opener()).unwrap();
        let source = register(&ledger).await;
        count(&ledger, &source, page(vec![dated(1, Some(1))])).await.unwrap();
        disk.fill_after(room);
        let _ = count(&ledger, &source, page(vec![dated(1, Some(2)), dated(2, Some(2))])).await;
        disk.make_room();
        let again = vec![dated(1, Some(3)), dated(2, Some(400)), dated(1, Some(2)), dated(2, Some(2))];
        count(&ledger, &source, page(again)).await.unwrap();
        assert_eq!(
            (events_total(&source), source.state().total(Counter::Actions)),
            (2, 2),
            "room for {room} operations"
        );
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(60))]
    /// Whatever times an event comes with, on whatever pages, with restarts and forgetting between them.
    #[test]
    fn an_id_counts_once_for_as_long_as_it_is_remembered(
        pages in proptest::collection::vec(
            (proptest::collection::vec((0_u64..12, proptest::option::of(0_i64..5400)), 0..12), 0_u8..4), 1..20)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let disk = Disk::default();
            let mut ledger = Ledger::open_with(disk.opener()).unwrap();
            let mut source = register(&ledger).await;
            let mut ids = BTreeSet::new();
            for (nth, (items, restart)) in (0..).zip(pages) {
                ids.extend(items.iter().map(|(id, _)| *id));
                // half an hour a page: the times move on, and the hours before them are forgotten
                let now = 1800 * nth;
                let items = items.into_iter().map(|(id, second)| dated(id, second.map(|second| now + second))).collect();
                let origin = floor(at(now - 5400), KEYS_BUCKET);
                let next = Checkpoint { origin, head: at(now), gaps: vec![] };
                let expected = source.state().checkpoint().cloned();
                let moment = at(now);
                let commit =
                    Commit { expected, next: Some(next), page: page(items), lost_seconds: 0, now: moment, service_now: moment, backlog_from: None };
                let before = events_total(&source);
                let committed = ledger.commit(&source, commit).await.unwrap();
                assert_eq!(events_total(&source) - before, committed.counted);
                if restart == 0 {
                    drop((ledger, source));
                    ledger = Ledger::open_with(disk.opener()).unwrap();
                    source = register(&ledger).await;
                }
                // every id is on every second page at least
                let refresh = ids.iter().map(|id| dated(*id, Some(now))).collect();
                assert_eq!(count(&ledger, &source, page(refresh)).await.unwrap().counted, 0);
                assert_eq!(events_total(&source), ids.len() as u64);
            }
        });
    }
}

#[tokio::test]
async fn a_store_of_layout_1_learns_to_tally_and_says_since_when() {
    let folder = tempfile::tempdir().unwrap();
    {
        let ledger = Ledger::open(folder.path()).unwrap();
        let source = register(&ledger).await;
        commit(&ledger, &source, Some(read_to(100)), page(vec![event(1, 400, "user", "create")])).await.unwrap();
    }
    {
        // as the program wrote it before
        let database = Database::create(folder.path().join(STORE_FILE)).unwrap();
        let write = database.begin_write().unwrap();
        write.delete_table(redb::TableDefinition::<&[u8], u64>::new("tallies")).unwrap();
        write.open_table(redb::TableDefinition::<&str, u64>::new("meta")).unwrap().insert("schema", 1).unwrap();
        {
            let mut sources = write.open_table(redb::TableDefinition::<&str, (u32, &[u8])>::new("sources")).unwrap();
            let record = sources.get("activid/test").unwrap().unwrap().value().1.to_vec();
            let mut record: serde_json::Value = serde_json::from_slice(&record).unwrap();
            record.as_object_mut().unwrap().remove("tallied_from").unwrap();
            sources.insert("activid/test", (1, record.to_string().as_bytes())).unwrap();
        }
        write.commit().unwrap();
    }
    for opened_before in 0..2 {
        let ledger = Ledger::open(folder.path()).unwrap();
        let source = register(&ledger).await;
        assert_eq!(events_total(&source), 1 + opened_before);
        assert_eq!(source.state().tallied_from(), Some(at(600)), "behind the newest event, by whole cells");
        let again = count(&ledger, &source, page(vec![event(1, 400, "user", "create")])).await.unwrap();
        assert_eq!(again, counted(0, 1));
        count(&ledger, &source, page(vec![event(2, 700, "user", "create")])).await.unwrap();
        assert_eq!(tallied(&ledger, &source, 0, 900).await, [(600, "user,create,success".into(), 1)]);
    }
}

#[test]
fn a_store_of_a_newer_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    drop(Ledger::open(folder.path()).unwrap());
    let database = Database::create(folder.path().join("ledger.redb")).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(redb::TableDefinition::<&str, u64>::new("meta")).unwrap().insert("schema", 99).unwrap();
    write.commit().unwrap();
    drop(database);
    let refused = Ledger::open(folder.path()).err().unwrap();
    assert!(matches!(refused, OpenError::Newer { found: 99, .. }), "{refused}");
}

#[test]
fn a_second_process_on_the_same_store_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let _first = Ledger::open(folder.path()).unwrap();
    assert!(matches!(Ledger::open(folder.path()), Err(OpenError::InUse { .. })));
}

// --- the backlog ---

#[tokio::test]
async fn a_source_that_stays_behind_is_told_of_for_as_long_as_it_does() {
    let (folder, ledger, source) = opened().await;
    commit(&ledger, &source, Some(read_to(0)), Page::default()).await.unwrap();
    for hour in 0..200_i64 {
        let now = 3600 * hour;
        let next = Checkpoint { origin: floor(at(now - 9000), KEYS_BUCKET), head: at(now), gaps: vec![] };
        // other deletions in each hour; and once something else
        let mut items = burst(now - 2100, 1 + hour.unsigned_abs() % 7, "delete");
        items.extend(burst(now - 2100, u64::from(hour == 3), "create"));
        let commit = Commit { next: Some(next), ..held_back(&source, now, items) };
        ledger.commit(&source, commit).await.unwrap();
        let told = backlog(&source, now + 1800);
        assert_eq!(told.last().unwrap().1, 1 + hour.unsigned_abs() % 7, "in hour {hour}");
        assert_eq!(told.len() == 2, (3..28).contains(&hour), "a day later nothing is told any more: hour {hour}");
        assert!(source.state().backlog.len() <= 2, "bounded");
    }
    assert_eq!(source.state().backlog.len(), 1);
    drop((ledger, source));
    let database = Database::open(folder.path().join(STORE_FILE)).unwrap();
    let read = database.begin_read().unwrap();
    let cells = read.open_table(redb::TableDefinition::<&[u8], u64>::new("backlog")).unwrap();
    assert!(redb::ReadableTableMetadata::len(&cells).unwrap() <= 6, "bounded");
}

#[tokio::test]
async fn wherever_a_commit_of_a_backlog_fails_it_is_told_once() {
    for room in 0..60 {
        let disk = Disk::default();
        let ledger = Ledger::open_with(disk.opener()).unwrap();
        let source = register(&ledger).await;
        count(&ledger, &source, Page::default()).await.unwrap();
        catch_up(&ledger, &source, 0, burst(-1800, 5, "delete")).await;
        disk.fill_after(room);
        let items = || burst(-1500, 7, "delete");
        let commit = Commit { page: page(items()), backlog_from: Some(at(-5000)), ..commit_of(None, None, 1) };
        let done = ledger.commit(&source, commit).await;
        let expected = if done.is_ok() { 12 } else { 5 };
        assert_eq!(backlog(&source, 0)[0].1, expected, "room for {room} operations: {done:?}");
        disk.make_room();
        catch_up(&ledger, &source, 0, items()).await;
        assert_eq!(backlog(&source, 0), deletions(12, -1800), "room for {room} operations");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(40))]
    /// Whatever is read in which order, with restarts and repetitions: the highest 15 minutes of whole cells that got
    /// anything within the hour.
    #[test]
    fn what_is_told_of_a_backlog_is_what_a_look_at_all_its_events_tells(
        pages in proptest::collection::vec(
            (1_i64..1500, proptest::collection::vec((0_i64..3600, 0_u64..30), 0..12), 0_u8..4), 1..15)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let disk = Disk::default();
            let mut ledger = Ledger::open_with(disk.opener()).unwrap();
            let mut source = register(&ledger).await;
            let mut now = 0;
            let mut all: Vec<(i64, i64)> = Vec::new();
            let mut last: Vec<Item> = Vec::new();
            for (nth, (pause, bursts, restart)) in (0..).zip(pages) {
                now += pause;
                let mut items = last.clone();
                for (n, (second, count)) in (0_u64..).zip(bursts) {
                    let first = nth * 1_000_000 + n * 1000;
                    items.extend((first..first + count).map(|id| event(id, second - 3600, "user", "delete")));
                    all.extend((0..count).map(|_| (second - 3600, now)));
                }
                catch_up(&ledger, &source, now, items.clone()).await;
                last = items;
                if restart == 0 {
                    drop((ledger, source));
                    ledger = Ledger::open_with(disk.opener()).unwrap();
                    source = register(&ledger).await;
                }
                for later in [now, now + 1800, now + 3599] {
                    let spans = (-20..20).map(|cell| cell * 300).map(|from| {
                        let inside: Vec<_> = all.iter().filter(|(second, _)| (from..from + 900).contains(second)).collect();
                        let is_told = inside.iter().any(|(_, counted_at)| later - counted_at < 3600);
                        if is_told { inside.len() as u64 } else { 0 }
                    });
                    let told = backlog(&source, later).first().map_or(0, |told| told.1);
                    assert_eq!(told, spans.max().unwrap());
                }
            }
        });
    }
}

#[tokio::test]
async fn a_store_of_layout_2_learns_of_the_backlog() {
    let folder = tempfile::tempdir().unwrap();
    {
        let ledger = Ledger::open(folder.path()).unwrap();
        let source = register(&ledger).await;
        commit(&ledger, &source, Some(read_to(0)), page(burst(-1800, 5, "delete"))).await.unwrap();
    }
    {
        // as the program wrote it before
        let database = Database::create(folder.path().join(STORE_FILE)).unwrap();
        let write = database.begin_write().unwrap();
        write.delete_table(redb::TableDefinition::<&[u8], u64>::new("backlog")).unwrap();
        write.delete_table(redb::TableDefinition::<&[u8], &[u8]>::new("backlog_peaks")).unwrap();
        write.open_table(redb::TableDefinition::<&str, u64>::new("meta")).unwrap().insert("schema", 2).unwrap();
        write.commit().unwrap();
    }
    for known in [0, 7] {
        let ledger = Ledger::open(folder.path()).unwrap();
        let source = register(&ledger).await;
        assert_eq!(events_total(&source), 5 + known);
        catch_up(&ledger, &source, 0, burst(-1500, 7, "delete")).await;
        assert_eq!(backlog(&source, 0), deletions(7, -1500));
    }
}

// --- which store it is ---

/// The generation of the store in a folder, in milliseconds after `at(0)`, by an exporter that starts then.
async fn generation(folder: &Path, now: DateTime<Utc>) -> i64 {
    let ledger = Ledger::open(folder).unwrap();
    assert_eq!(ledger.register_all(vec![], now).await.unwrap().len(), 0, "also where nothing is configured yet");
    let generation = ledger.generation().unwrap();
    ledger.register(&name(), System::named("activid"), catalogue(), now + TimeDelta::seconds(7)).await.unwrap();
    assert_eq!(ledger.generation(), Some(generation));
    (generation - at(0)).num_milliseconds()
}

/// Puts a backup of a store into a folder of its own.
async fn backup_of(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let file = File::options().read(true).write(true).create_new(true).open(copy.path().join(STORE_FILE)).unwrap();
    Ledger::open(folder).unwrap().backup(file).await.unwrap();
    copy
}

#[tokio::test]
async fn a_new_store_has_a_greater_generation_than_the_one_before_and_a_restart_changes_none() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assert_eq!(Ledger::open(first.path()).unwrap().generation(), None, "nothing was counted in it yet");
    for start in [0, 60, 100_000, -100_000] {
        assert_eq!(generation(first.path(), at(start)).await, 0);
    }
    assert_eq!(generation(second.path(), at(200_000)).await, 200_000_000);
}

#[tokio::test]
async fn a_restored_backup_has_a_greater_generation_once_each_time_it_is_restored() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(generation(folder.path(), at(0)).await, 0);
    let copy = backup_of(folder.path()).await;
    assert_eq!(generation(folder.path(), at(50)).await, 0, "what was copied is the same as before");
    // looking at it is not putting it to use
    for _ in 0..2 {
        let ledger = Ledger::open(copy.path()).unwrap();
        assert!(ledger.find(&name(), System::named("activid"), catalogue()).await.unwrap().is_some());
    }
    let again = backup_of(copy.path()).await;
    for restored in [&copy, &again] {
        assert_eq!(generation(restored.path(), at(1000)).await, 1_000_000);
        assert_eq!(generation(restored.path(), at(2000)).await, 1_000_000);
    }
    let again = backup_of(copy.path()).await;
    assert_eq!(generation(again.path(), at(-5000)).await, 1_000_001, "by a clock that is wrong it grows, too");
}

#[tokio::test]
async fn a_store_that_was_put_in_the_place_of_a_newer_one_has_a_greater_generation() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(generation(folder.path(), at(0)).await, 0);
    let older = std::fs::read(folder.path().join(STORE_FILE)).unwrap();
    let ledger = Ledger::open(folder.path()).unwrap();
    let source = register(&ledger).await;
    count(&ledger, &source, page(vec![event(1, 1, "user", "create")])).await.unwrap();
    drop((ledger, source));
    // the whole folder elsewhere is the same store
    let moved = tempfile::tempdir().unwrap();
    for name in [STORE_FILE, "ledger.mark"] {
        std::fs::copy(folder.path().join(name), moved.path().join(name)).unwrap();
    }
    assert_eq!(generation(moved.path(), at(100)).await, 0);
    std::fs::write(folder.path().join(STORE_FILE), older).unwrap();
    assert!(matches!(Ledger::open(folder.path()), Err(OpenError::Damaged { .. })));
    std::fs::remove_file(folder.path().join("ledger.mark")).unwrap();
    assert_eq!(generation(folder.path(), at(200)).await, 200_000);
    assert_eq!(generation(folder.path(), at(300)).await, 200_000);
}

#[tokio::test]
async fn a_generation_that_could_not_be_written_down_is_when_there_is_room() {
    let disk = Disk::default();
    let ledger = Ledger::open_with(disk.opener()).unwrap();
    disk.fill_after(0);
    ledger.register_all(vec![], at(0)).await.unwrap_err();
    assert_eq!(ledger.generation(), None);
    disk.make_room();
    ledger.register_all(vec![], at(60)).await.unwrap();
    drop(ledger);
    let ledger = Ledger::open_with(disk.opener()).unwrap();
    ledger.register_all(vec![], at(120)).await.unwrap();
    assert_eq!(ledger.generation(), Some(at(60)));
}

// --- the disk ---

#[tokio::test]
async fn wherever_a_commit_fails_its_page_is_counted_once() {
    let mut failed_but_there = 0;
    for room in 0.. {
        let disk = Disk::default();
        let ledger = Ledger::open_with(disk.opener()).unwrap();
        let source = register(&ledger).await;
        let items = || page(vec![event(1, 1, "user", "create"), event(2, 1, "user", "create")]);
        disk.fill_after(room);
        let done = count(&ledger, &source, items()).await;
        disk.make_room();
        let again = count(&ledger, &source, items()).await.unwrap();
        assert_eq!(
            (events_total(&source), source.state().total(Counter::Actions)),
            (2, 2),
            "room for {room} operations"
        );
        failed_but_there += u32::from(done.is_err() && again.counted == 0);
        if done.is_ok() {
            assert!(room > 5, "the disk was full too late");
            break;
        }
    }
    assert!(failed_but_there > 0, "at its last flush a commit may fail and be there all the same");
}

#[tokio::test]
async fn a_full_disk_stops_the_counting_and_heals_by_itself() {
    let disk = Disk::default();
    let ledger = Ledger::open_with(disk.opener()).unwrap();
    let source = register(&ledger).await;
    count(&ledger, &source, page(vec![event(1, 1, "user", "create")])).await.unwrap();
    disk.fill_after(0);
    for _ in 0..3 {
        let refused = count(&ledger, &source, page(vec![event(2, 1, "user", "create")])).await;
        assert!(matches!(refused, Err(CommitError::Storage(_))), "{refused:?}");
        assert_eq!(events_total(&source), 1, "what was committed is still served");
        assert!(look(&ledger, &source, at(500), Duration::ZERO).await.len() > 1);
    }
    disk.make_room();
    let again = page(vec![event(1, 1, "user", "create"), event(2, 1, "user", "create")]);
    assert_eq!(count(&ledger, &source, again).await.unwrap(), counted(1, 1));
    assert_eq!(events_total(&source), 2);
}

/// Pages of five events, each ending a window; power is lost at any input or output; after each
/// loss the ledger is at a whole page: the last one acknowledged or the one under way.
#[tokio::test]
async fn a_loss_of_power_at_any_moment_leaves_a_whole_number_of_pages() {
    for seed in 0..40 {
        let mut random = StdRng::seed_from_u64(seed);
        let disk = Disk::default();
        let mut acknowledged: u64 = 0;
        let mut losses = 0;
        while losses < 6 {
            let Ok(ledger) = Ledger::open_with(disk.opener()) else {
                disk.lose_power(&mut random);
                continue;
            };
            let Ok(source) = ledger.register(&name(), System::named("activid"), catalogue(), at(0)).await else {
                drop(ledger);
                disk.lose_power(&mut random);
                continue;
            };
            let pages =
                source.state().checkpoint().map_or(0, |read| u64::try_from((read.head - at(0)).num_seconds()).unwrap());
            assert!(pages == acknowledged || pages == acknowledged + 1, "seed {seed}: {pages} of {acknowledged}");
            acknowledged = pages;
            assert_eq!(events_total(&source), 5 * pages, "seed {seed}");
            assert_eq!(source.state().total(Counter::Actions), 5 * pages, "seed {seed}");
            disk.fail_after(random.random_range(1..150), || {});
            loop {
                // the page before is read again, as the overlap does
                let first = acknowledged.saturating_sub(1) * 5;
                let items = (first..(acknowledged + 1) * 5).map(|n| event(n, 1, "user", "create")).collect();
                let head = at(0) + TimeDelta::seconds(i64::try_from(acknowledged).unwrap() + 1);
                let next = Checkpoint { origin: at(-3600), head, gaps: vec![] };
                if commit(&ledger, &source, Some(next), page(items)).await.is_err() {
                    break;
                }
                acknowledged += 1;
            }
            losses += 1;
            drop((ledger, source));
            disk.lose_power(&mut random);
        }
        assert!(acknowledged > 0, "seed {seed} never got anywhere");
    }
}

/// Whatever a panic leaves behind in memory, nobody but the one who asked learns of it.
#[tokio::test]
async fn a_panic_in_the_ledger_is_an_error_and_the_store_is_read_anew() {
    let (_folder, ledger, source) = opened().await;
    count(&ledger, &source, page(vec![event(1, 1, "user", "create")])).await.unwrap();
    let (inner, broken) = (ledger.clone(), Arc::clone(&source));
    let fault = ledger.run(async move {
        inner.commit_in_turn(Arc::clone(&broken), commit_of(None, None, 2)).await?;
        let mut state = broken.state_mut();
        state.series.clear();
        panic!("a fault, with the lock of the visible state in hand");
        #[expect(unreachable_code, reason = "it says what this would return")]
        Ok(())
    });
    let fault = fault.await.unwrap_err();
    assert!(matches!(&fault, CommitError::Fault(why) if why.to_string().contains("with the lock")), "{fault}");
    assert_eq!(events_total(&source), 2, "what had reached the disk is what is shown");
    assert!(look(&ledger, &source, at(500), Duration::ZERO).await.len() > 1);
    let again = vec![event(1, 1, "user", "create"), event(2, 1, "user", "create"), event(3, 1, "user", "create")];
    assert_eq!(count(&ledger, &source, page(again)).await.unwrap(), counted(1, 2));
    assert_eq!((events_total(&source), source.state().total(Counter::Actions)), (3, 3));
    assert_eq!(events_total(&*register(&ledger).await), 3);
}

// --- many sources ---

/// A disk that takes its time to flush, and counts how often it does.
#[derive(Clone, Debug)]
struct SlowDisk {
    memory: Arc<redb::backends::InMemoryBackend>,
    flush: Duration,
    flushes: Arc<AtomicU64>,
}

impl redb::StorageBackend for SlowDisk {
    fn len(&self) -> std::io::Result<u64> {
        self.memory.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.memory.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.memory.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(self.flush);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.memory.write(offset, data)
    }
}

impl SlowDisk {
    fn new(flush: Duration) -> Self {
        Self { memory: Arc::new(redb::backends::InMemoryBackend::new()), flush, flushes: Arc::default() }
    }

    fn store(&self) -> Arc<RedbStore> {
        let disk = self.clone();
        let open = move || Database::builder().create_with_backend(disk.clone());
        Arc::new(RedbStore::open(Box::new(open)).unwrap())
    }

    fn ledger(&self) -> Ledger {
        Ledger::of(self.store())
    }

    fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }
}

async fn register_many(ledger: &Ledger, count: usize) -> Vec<Arc<Book>> {
    let registration = |n| Registration {
        name: format!("source{n}").parse().unwrap(),
        system: System::named("losant"),
        catalogue: catalogue(),
    };
    ledger.register_all((0..count).map(registration).collect(), at(0)).await.unwrap()
}

#[tokio::test]
async fn a_thousand_sources_are_made_known_with_the_flushes_of_one() {
    let disk = SlowDisk::new(Duration::ZERO);
    let ledger = disk.ledger();
    let before = disk.flushes();
    register_many(&ledger, 1).await;
    let of_one = disk.flushes() - before;
    let sources = register_many(&ledger, 1000).await;
    assert_eq!(disk.flushes() - before, 2 * of_one);
    assert!(sources[1..].iter().all(|source| source.is_new()) && sources[0].state().series.len() > 5);
    let ids: BTreeSet<u32> = sources.iter().map(|source| source.id).collect();
    assert_eq!(ids.len(), 1000, "each has a number of its own");
    count(&ledger, &sources[7], page(vec![event(1, 1, "user", "create")])).await.unwrap();
    // a reload, and a restart
    let again = register_many(&ledger, 1000).await;
    assert!(sources.iter().zip(&again).all(|(before, after)| Arc::ptr_eq(before, after)));
    drop((sources, again, ledger));
    let flushes = disk.flushes();
    let ledger = disk.ledger();
    let opened = disk.flushes() - flushes;
    let sources = register_many(&ledger, 1000).await;
    assert_eq!((events_total(&sources[7]), events_total(&sources[8])), (1, 0));
    assert!(sources.iter().all(|source| !source.is_new()));
    assert_eq!(disk.flushes() - flushes, opened, "nothing is written where nothing is new");
    let mixed = register_many(&ledger, 1001).await;
    assert!(mixed[1000].is_new() && ids.iter().all(|id| mixed[1000].id > *id));
}

/// Lets the first commits of each source queue up while the store is held, and returns all outcomes.
async fn together(
    store: &RedbStore,
    ledger: &Ledger,
    commits: Vec<(Arc<Book>, Commit)>,
) -> Vec<Result<Committed, CommitError>> {
    let sources: BTreeSet<u32> = commits.iter().map(|(source, _)| source.id).collect();
    let mut tasks = Vec::new();
    {
        let held = store.hold();
        for (n, (source, commit)) in commits.into_iter().enumerate() {
            let ledger = ledger.clone();
            tasks.push(tokio::spawn(async move { ledger.commit(&source, commit).await }));
            while store.waiting() <= n.min(sources.len() - 1) {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(store.waiting(), sources.len(), "a second commit of a source waits for its turn");
        drop(held);
    }
    let mut outcomes = Vec::new();
    for task in tasks {
        outcomes.push(task.await.unwrap());
    }
    outcomes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_wait_for_the_disk_share_one_flush_and_each_has_its_own_outcome() {
    let disk = SlowDisk::new(Duration::from_millis(1));
    let store = disk.store();
    let ledger = Ledger::of(Arc::clone(&store) as Arc<dyn Store>);
    let sources = register_many(&ledger, 50).await;
    let before = disk.flushes();
    count(&ledger, &sources[0], page(vec![event(0, 1, "user", "create")])).await.unwrap();
    let of_one = disk.flushes() - before;

    let mut commits: Vec<_> =
        sources.iter().map(|source| (Arc::clone(source), commit_of(None, Some(read_to(10)), 1))).collect();
    commits[7].1.expected = Some(read_to(5)); // what another reader had
    // the next page of a source, and one of a reader that does not know of it
    commits.push((Arc::clone(&sources[3]), commit_of(Some(read_to(10)), Some(read_to(20)), 2)));
    commits.push((Arc::clone(&sources[4]), commit_of(None, Some(read_to(20)), 2)));
    let before = disk.flushes();
    let outcomes = together(&store, &ledger, commits).await;
    assert_eq!(disk.flushes() - before, 2 * of_one, "all first pages are one transaction, a second page another");
    for (n, outcome) in outcomes.iter().enumerate() {
        match n {
            7 | 51 => assert!(matches!(outcome, Err(CommitError::Conflict { .. })), "{n}: {outcome:?}"),
            _ => assert_eq!(outcome.as_ref().unwrap(), &counted(1, 0), "{n}"),
        }
    }
    let totals: Vec<u64> = sources.iter().map(|source| events_total(source)).collect();
    let expected = |n| match n {
        7 => 0,
        0 | 3 => 2,
        _ => 1,
    };
    assert_eq!(totals, (0..50).map(expected).collect::<Vec<_>>());
    drop((ledger, store, sources));
    let sources = register_many(&disk.ledger(), 50).await;
    assert_eq!(totals, sources.iter().map(|source| events_total(source)).collect::<Vec<_>>(), "as it is on the disk");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_disk_fails_all_commits_of_a_transaction_fail_and_none_is_counted_twice_later() {
    for room in 0..12 {
        let disk = Disk::default();
        let store = Arc::new(RedbStore::open(disk.opener()).unwrap());
        let ledger = Ledger::of(Arc::clone(&store) as Arc<dyn Store>);
        let sources = register_many(&ledger, 8).await;
        let commits =
            |id| sources.iter().map(|source| (Arc::clone(source), commit_of(None, None, id))).collect::<Vec<_>>();
        disk.fill_after(room);
        let outcomes = together(&store, &ledger, commits(1)).await;
        let failed = outcomes.iter().filter(|outcome| matches!(outcome, Err(CommitError::Storage(_)))).count();
        assert!(failed == 0 || failed == 8, "room for {room} operations: {outcomes:?}");
        disk.make_room();
        for (source, commit) in commits(1) {
            ledger.commit(&source, commit).await.unwrap();
        }
        assert!(sources.iter().all(|source| events_total(source) == 1), "room for {room} operations");
    }
}

/// A hundred sources, each with an event a second, on a disk that takes 10 ms to flush.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_sources_with_an_event_a_second_do_not_queue_for_a_slow_disk() {
    let disk = SlowDisk::new(Duration::from_millis(10));
    let ledger = disk.ledger();
    let sources = register_many(&ledger, 100).await;
    let before = disk.flushes();
    let commit_at_once = async |id| {
        let begun = tokio::time::Instant::now();
        let commits = sources.iter().map(|source| {
            let (ledger, source) = (ledger.clone(), Arc::clone(source));
            tokio::spawn(async move { ledger.commit(&source, commit_of(None, None, id)).await })
        });
        for commit in commits.collect::<Vec<_>>() {
            assert_eq!(commit.await.unwrap().unwrap(), counted(1, 0));
        }
        begun.elapsed()
    };
    let mut longest = Duration::ZERO;
    for second in 0..3 {
        longest = longest.max(commit_at_once(second).await);
    }
    let flushes = disk.flushes() - before;
    eprintln!("{flushes} flushes for 300 commits; the longest took {longest:?}");
    assert!(flushes < 100, "{flushes} flushes for 300 commits");
    assert!(sources.iter().all(|source| events_total(source) == 3));
}

/// With a store that cannot be written the time is left out; with one that can it is set right for good.
#[tokio::test]
async fn a_series_is_never_created_later_than_now_also_where_the_clock_was_set_back() {
    let disk = Disk::default();
    let ledger = Ledger::open_with(disk.opener()).unwrap();
    let source = register(&ledger).await;
    count(&ledger, &source, page(vec![event(1, 1, "user", "create")])).await.unwrap(); // born at 100
    let key = SeriesKey::new(Counter::Events, &["user", "create", "success"]);
    let created = async |second| {
        let rows = look(&ledger, &source, at(second), Duration::ZERO).await;
        assert!(rows.iter().all(|row| row.born.is_none_or(|born| born <= at(second))), "at {second}");
        rows.iter().find(|row| *row.key == key).unwrap().born
    };
    assert_eq!((created(200).await, created(201).await), (Some(at(100)), Some(at(100))));
    disk.fill_after(0);
    assert_eq!(created(-500).await, None);
    disk.make_room();
    assert_eq!(created(-400).await, Some(at(-400)));
    assert_eq!(created(300).await, Some(at(-400)), "it does not move again: that would look like a reset");
    let (ledger, source) = {
        drop((ledger, source));
        let ledger = Ledger::open_with(disk.opener()).unwrap();
        let source = register(&ledger).await;
        (ledger, source)
    };
    let rows = look(&ledger, &source, at(400), Duration::ZERO).await;
    assert_eq!(rows.iter().find(|row| *row.key == key).unwrap().born, Some(at(-400)), "after a restart, too");
}
