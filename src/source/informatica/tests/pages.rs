//! Ranges and pages: every entry of a window is counted once, however the service cuts, orders and repeats its pages.

use super::*;

#[tokio::test(start_paused = true)]
async fn the_question_is_asked_as_the_documentation_writes_it() {
    let script = Script::open(|_, _| empty());
    let window =
        Window { from: "2019-07-26T08:00:00Z".parse().unwrap(), to: "2019-07-26T17:00:00.001Z".parse().unwrap() };
    Reader::of(&script).read(window).await.0.unwrap();
    assert_eq!(
        script.reads()[0].raw_query,
        "q=entryTime%3E%3D%222019-07-26T08%3A00%3A00.000Z%22%3BentryTime%3C%3D%222019-07-26T17%3A00%3A01.000Z%22\
         &limit=1000&skip=0"
    );
}

#[tokio::test(start_paused = true)]
async fn pages_are_read_to_the_last_whatever_their_number() {
    // entries, the service's cap, limit, pages
    for (count, cap, limit, pages) in [
        (0, 1000, 1000, 1),
        (1, 1000, 1000, 1),
        (37, 1000, 1000, 1),
        (99, 1000, 1000, 2),
        (999, 1000, 1000, 2),
        (1000, 1000, 1000, 2),
        (1001, 1000, 1000, 3),
        (2000, 1000, 1000, 3),
        (300, 1000, 1000, 2),
        (450, 100, 1000, 6),
        (455, 100, 1000, 6),
        (455, 200, 1000, 4),
        (137, 50, 100, 4),
        (205, 1000, 100, 4),
        (1500, 256, 1000, 7),
        (1500, 333, 1000, 6),
        (256, 256, 1000, 2),
        (333, 333, 1000, 2),
    ] {
        let script = Script::log(entries(count, 1000), cap);
        let limit = std::num::NonZeroU32::new(limit);
        let mut reader = Reader::with(&script, |_, common| common.page_size = limit);
        let (result, collected) = reader.read(hours(1)).await;
        result.unwrap();
        assert_eq!((collected.events.len(), script.reads().len()), (count, pages), "{count} {cap} {limit:?}");
        assert_eq!(collected.handed_over, count);
        assert!(collected.reports.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn ranges_are_never_longer_than_documented_and_leave_nothing_out() {
    let hour = 3_600_000;
    let script = Script::log(entries(40 * 24 + 1, hour), 1000);
    let window = Window { from: at(1), to: at(40 * 24 * hour) };
    let (result, collected) = Reader::of(&script).read(window).await;
    result.unwrap();
    assert_eq!(collected.events.len(), 40 * 24 - 1);
    let mut reached = window.from;
    for read in script.reads().iter().filter(|read| read.skip == 0) {
        assert!(read.to - read.from <= TimeDelta::days(14) && read.from <= reached, "{read:?}");
        reached = read.to;
    }
    assert!(reached >= window.to);
}

#[tokio::test(start_paused = true)]
async fn entries_at_both_edges_of_a_window_are_asked_for() {
    let script = Script::log(entries(10, 500), 1000);
    // .500 is inside, 2.500 is not; both whole seconds around are asked for
    let (_, collected) = Reader::of(&script).read(Window { from: at(500), to: at(2500) }).await;
    assert_eq!(collected.events.len(), 4);
    let read = &script.reads()[0];
    assert_eq!((read.from, read.to), (at(0), at(3000)));
    assert!(collected.reports.is_empty(), "the seconds around are no ignored filter");
}

#[tokio::test(start_paused = true)]
async fn where_skip_is_ignored_or_refused_the_range_is_cut_until_it_fits() {
    for refused in [true, false] {
        let log = entries(5000, 700);
        let script = Script::open(move |_, asked| {
            if refused && asked.skip > 0 {
                return (400, json!({"error": {"code": "V3API_400", "message": "skip is too large"}}).to_string());
            }
            page(&log, asked, 0, 1000)
        });
        let (result, collected) = Reader::of(&script).read(hours(1)).await;
        result.unwrap();
        assert_eq!(collected.events.len(), 5000);
        assert!(script.reads().len() < 40, "{}", script.reads().len());
    }
}

#[tokio::test(start_paused = true)]
async fn an_order_that_is_another_on_each_page_hides_no_entry() {
    // forty to a second, and from one page to the next those of a second change places
    let log = entries(1500, 25);
    let script = Script::open(move |_, asked| {
        let mut listed = log.clone();
        if asked.skip > 0 {
            listed.chunks_mut(40).for_each(<[Value]>::reverse);
        }
        page(&listed, asked, asked.skip, 1000)
    });
    for limit in [100, 130, 1000] {
        let mut reader = Reader::with(&script, |_, common| common.page_size = std::num::NonZeroU32::new(limit));
        let (result, collected) = reader.read(hours(1)).await;
        result.unwrap();
        assert_eq!(collected.events.len(), 1500, "{limit} on a page");
    }
    assert!(script.reads().len() < 500, "{}", script.reads().len());
}

#[tokio::test(start_paused = true)]
async fn where_skip_leads_nowhere_within_a_second_reading_ends_with_an_error() {
    let log = entries(1500, 0);
    let script = Script::open(move |_, asked| page(&log, asked, 0, 1000));
    assert_eq!(Reader::of(&script).ends().await, "decode");
    // a page of as many as the smallest limit may be cut
    let log = entries(100, 0);
    let script = Script::open(move |_, asked| page(&log, asked, 0, 1000));
    assert_eq!(Reader::of(&script).ends().await, "decode");
    // but a shorter one is the whole of it
    let log = entries(90, 0);
    let script = Script::open(move |_, asked| page(&log, asked, 0, 1000));
    let (result, collected) = Reader::of(&script).read(hours(1)).await;
    result.unwrap();
    assert_eq!(collected.events.len(), 90);
}

#[tokio::test(start_paused = true)]
async fn pages_cut_by_their_size_are_read_until_nothing_new_comes() {
    for bytes in [9_000, 20_000, 64 << 10] {
        // entries of different lengths, so that pages have different numbers of them
        let mut log = entries(1500, 1000);
        for (n, entry) in log.iter_mut().enumerate() {
            entry["objectName"] = json!("x".repeat(n * 7919 % 200));
        }
        let script = Script::open(move |_, asked| {
            let mut room = bytes;
            let fits = |entry: &&Value| {
                room -= i64::try_from(entry.to_string().len()).unwrap();
                room > 0
            };
            let (_, whole) = page(&log, asked, asked.skip, 1000);
            let whole: Value = serde_json::from_str(&whole).unwrap();
            let listed: Vec<&Value> = whole["entries"].as_array().unwrap().iter().take_while(fits).collect();
            (200, json!({"entries": listed}).to_string())
        });
        let (result, collected) = Reader::of(&script).read(hours(1)).await;
        result.unwrap();
        assert_eq!(collected.events.len(), 1500, "{bytes}");
        assert_eq!(collected.reports, []);
        assert!(script.reads().len() < 45, "{bytes}: {}", script.reads().len());
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_repeats_its_last_or_first_page_behind_the_end_is_read_once() {
    for first in [false, true] {
        for (count, reads) in [(37, 1), (1355, 6)] {
            let log = entries(count, 1000);
            let script = Script::open(move |_, asked| {
                let mut skip = asked.skip;
                if skip >= count {
                    skip = if first { 0 } else { count / 300 * 300 };
                }
                page(&log, asked, skip, 300)
            });
            let (result, collected) = Reader::of(&script).read(hours(1)).await;
            result.unwrap();
            assert_eq!(collected.events.len(), count);
            if !first {
                assert_eq!(script.reads().len(), reads);
            }
            assert!(script.reads().len() < 60, "{}", script.reads().len());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_answers_everything_alike_is_left_soon() {
    for (count, ends) in [(0, "ok"), (9, "ok"), (10, "ok"), (90, "ok"), (140, "decode"), (1000, "decode")] {
        let log = json!({"entries": entries(count, 3_500)}).to_string();
        let script = Script::open(move |_, _| (200, log.clone()));
        assert_eq!(Reader::of(&script).ends().await, ends, "{count}");
        assert!(script.reads().len() <= 40, "{count}: {}", script.reads().len());
    }
}

#[tokio::test(start_paused = true)]
async fn nameless_entries_on_pages_that_do_not_move_end_the_reading_too() {
    let mut log = entries(1500, 0);
    for entry in &mut log {
        entry.as_object_mut().unwrap().remove("id");
    }
    let script = Script::open(move |_, asked| page(&log, asked, 0, 1000));
    assert_eq!(Reader::of(&script).ends().await, "decode");
}

#[tokio::test(start_paused = true)]
async fn an_ignored_range_is_reported_and_does_not_keep_the_reading_from_its_end() {
    let log = entries(1200, 10_000);
    let script = Script::open(move |_, asked| {
        page(&log, &Asked { from: at(-1), to: at(1 << 40), ..asked.clone() }, asked.skip, 1000)
    });
    let (result, collected) = Reader::of(&script).read(hours(1)).await;
    result.unwrap();
    assert_eq!((collected.events.len(), collected.reports), (360, vec![ErrorKind::Decode]));
}

#[tokio::test(start_paused = true)]
async fn entries_that_are_none_neither_end_a_reading_nor_shift_it() {
    for (count, reads) in [(0, 1), (7, 1), (10, 2), (1500, 16), (1505, 17)] {
        let log = entries(count, 1000);
        let script = Script::open(move |_, asked| {
            let (status, body) = page(&log, asked, asked.skip, 100);
            let mut body: Value = serde_json::from_str(&body).unwrap();
            body["entries"].as_array_mut().unwrap().insert(0, json!({"id": ["no"], "entryTime": 7}));
            (status, body.to_string())
        });
        let (result, collected) = Reader::of(&script).read(hours(1)).await;
        result.unwrap();
        assert_eq!((collected.events.len(), collected.rejected.len()), (count, 1));
        assert_eq!(script.reads().len(), reads, "{count}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever the order, the number of equal times, the cap and the duplicates: everything in
    /// the window is counted once.
    #[test]
    fn every_entry_of_a_window_is_counted_once(
        times in prop::collection::vec(0_i64..100, 0..700),
        cap in prop::sample::select(vec![50_usize, 100, 250, 1000]),
        edges in (0_i64..50_000, 50_000_i64..100_000),
        rotate in 0_usize..700,
        twice in prop::bool::ANY,
    ) {
        let mut log = entries(times.len(), 0);
        for (entry, time) in log.iter_mut().zip(&times) {
            entry["entryTime"] = json!(at(time * 1000).to_rfc3339_opts(SecondsFormat::Secs, true));
        }
        if twice {
            log.extend(log.clone().into_iter().step_by(3));
        }
        let middle = if log.is_empty() { 0 } else { rotate % log.len() };
        log.rotate_left(middle);
        let window = Window { from: at(edges.0), to: at(edges.1) };
        let expected = times.iter().filter(|time| window.contains(at(**time * 1000))).count();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let counted = runtime.block_on(async {
            let script = Script::log(log, cap);
            let (result, collected) = Reader::of(&script).read(window).await;
            result.map(|()| collected.events.len())
        });
        prop_assert_eq!(counted.unwrap(), expected);
    }
}
