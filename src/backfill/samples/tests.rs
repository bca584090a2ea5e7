//! Samples of any history, and their text.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::event::{Class, Label, Outcome, Principal};
use crate::exposition::tests::wrong_with;

fn at(milliseconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(1_800_000_000_000 + milliseconds).unwrap()
}

fn event(category: &str, action: &str, outcome: Outcome, class: Class) -> Counted {
    Counted::Event(EventLabels {
        category: Label::from_words(category),
        action: Label::from_words(action),
        outcome,
        class,
    })
}

fn scrape() -> Labels {
    vec![("job", "audit".into()), ("instance", "a\"b:10812".into())]
}

fn history(minutes: Minutes) -> History {
    History::new("iot", "a_system", minutes, Vocabulary::default())
}

fn written(history: &History) -> String {
    let mut out = Vec::new();
    history.write(&scrape(), &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// The samples of a text by series: time in milliseconds and value.
fn samples(text: &str) -> BTreeMap<String, Vec<(i64, u64)>> {
    let mut samples: BTreeMap<String, Vec<(i64, u64)>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let mut parts = line.rsplitn(3, ' ');
        let at: f64 = parts.next().unwrap().parse().unwrap();
        let value = parts.next().unwrap().parse().unwrap();
        #[expect(clippy::cast_possible_truncation, reason = "a time in this century")]
        let at = (at * 1000.0).round() as i64;
        samples.entry(parts.next().unwrap().to_owned()).or_default().push((at, value));
    }
    samples
}

#[test]
fn the_text_is_this() {
    let minutes = Minutes::new(at(0), at(150_500)).unwrap();
    let mut history = history(minutes);
    let failed = event("authentication", "login", Outcome::Failure, Class::Login(Principal::User));
    history.add(vec![
        Row { minute: minutes.of(at(130_000)), what: failed.clone(), count: 1 },
        Row { minute: minutes.of(at(59_999)), what: failed, count: 2 },
        Row { minute: minutes.of(at(60_000)), what: Counted::Tainted, count: 1 },
    ]);
    let own = r#"source="iot",system="a_system","#;
    let scrape = r#"job="audit",instance="a\"b:10812"} "#;
    let lines = |name: &str, labels: &str, samples: &[&str]| {
        let lines = samples.iter().map(|sample| format!("{name}{{{own}{labels}{scrape}{sample}\n"));
        lines.collect::<Vec<_>>().concat()
    };
    let grown = ["0 1800000001", "2 1800000060", "2 1800000120", "3 1800000150.5"];
    let all = [
        lines("audit_events_total", r#"category="authentication",action="login",outcome="failure","#, &grown),
        lines("audit_logins_total", r#"principal="user",outcome="failure","#, &grown),
        lines("audit_failures_total", r#"category="authentication",action="login","#, &grown),
        lines("audit_tainted_feeds_total", "", &["0 1800000060", "1 1800000120", "1 1800000150.5"]),
    ];
    let text = written(&history);
    let without_help: Vec<&str> = text.split_inclusive('\n').filter(|line| !line.starts_with("# HELP ")).collect();
    let expected = ["events", "logins", "failures", "tainted_feeds"].into_iter().zip(all);
    let expected = expected.map(|(name, lines)| format!("# TYPE audit_{name} counter\n{lines}"));
    assert_eq!(without_help.concat(), expected.collect::<Vec<_>>().concat() + "# EOF\n");
    assert_eq!(text.matches("# HELP ").count(), 4);
}

#[test]
fn a_window_without_events_has_an_end_and_nothing_else() {
    let history = history(Minutes::new(at(0), at(60_000)).unwrap());
    assert_eq!(written(&history), "# EOF\n");
    assert_eq!(Minutes::new(at(0), at(59_999)), None);
}

#[test]
fn values_beyond_the_cap_are_other_and_those_that_came_first_are_themselves() {
    let mut history = history(Minutes::new(at(0), at(6_000_000)).unwrap());
    // of a later minute, though it stands first
    let mut rows = vec![Row { minute: 99, what: event("a", "do", Outcome::Success, Class::Change), count: 5 }];
    let kind = |n: u32| event(&format!("kind {n}"), "do", Outcome::Success, Class::Change);
    rows.extend((0..60).map(|n| Row { minute: n, what: kind(n), count: 1 }));
    history.add(rows);
    let text = written(&history);
    let samples = samples(&text);
    let last = |part: &str| {
        let found = samples.iter().find(|(name, _)| name.starts_with("audit_events_total") && name.contains(part));
        found.map(|(_, samples)| samples.last().unwrap().1)
    };
    assert_eq!(last("\"kind_49\""), Some(1));
    assert_eq!(last("\"kind_50\""), None);
    assert_eq!(last("category=\"a\""), None);
    assert_eq!(last("category=\"other\""), Some(15));
    assert!(text.contains("# TYPE audit_label_overflow counter"), "{text}");
}

fn rows() -> impl Strategy<Value = Vec<(i64, Counted, u64)>> {
    let categories = prop::sample::select(vec!["user", "role", "größe\n\"x\"", ""]);
    let actions = prop::sample::select(vec!["login", "create"]);
    let outcomes = prop::sample::select(vec![Outcome::Success, Outcome::Failure, Outcome::Unknown]);
    let classes = prop::sample::select(vec![Class::Login(Principal::Device), Class::Logout, Class::Change, Class::Row]);
    let what = (categories, actions, outcomes, classes, 0..9)
        .prop_map(|(c, a, o, class, n)| if n == 0 { Counted::Tainted } else { event(c, a, o, class) });
    prop::collection::vec((-1_000_i64..20_000_000, what, 1_u64..5), 0..60)
}

proptest! {
    #[test]
    fn every_series_begins_at_0_ascends_and_ends_with_the_number_of_its_events(
        events in rows(),
        offset in 0_i64..100_000,
        length in 60_000_i64..20_000_000,
        cut in 0_u32..400,
    ) {
        let minutes = Minutes::new(at(offset), at(offset + length)).unwrap();
        let row = |(moment, what, count): &(i64, Counted, u64)| {
            Row { minute: minutes.of(at(offset + moment)), what: what.clone(), count: *count }
        };
        let rows: Vec<Row> = events.iter().map(row).collect();
        let mut expected: BTreeMap<SeriesKey, u64> = BTreeMap::new();
        let mut whole = history(minutes);
        for Row { what, count, .. } in &rows {
            let keys = match what {
                Counted::Event(labels) => crate::ledger::series_of(labels),
                Counted::Tainted => vec![SeriesKey::new(Counter::Tainted, &[])],
            };
            for key in keys {
                *expected.entry(key).or_default() += count;
            }
        }
        whole.add(rows.clone());
        let text = written(&whole);
        let found = samples(&text);
        let mut totals: Vec<u64> = expected.values().copied().collect();
        totals.sort_unstable();
        let mut last: Vec<u64> = found.values().map(|samples| samples.last().unwrap().1).collect();
        last.sort_unstable();
        prop_assert_eq!(last, totals);
        for (name, samples) in &found {
            prop_assert_eq!(samples[0].1, 0, "{}", name);
            prop_assert!(samples[0].0 > at(offset).timestamp_millis());
            prop_assert_eq!(samples.last().unwrap().0, at(offset + length).timestamp_millis());
            for pair in samples.windows(2) {
                let ((earlier, less), (later, more)) = (pair[0], pair[1]);
                prop_assert!(earlier < later && later - earlier <= 60_000, "{} after {} in {}", later, earlier, name);
                prop_assert!(less <= more);
            }
        }
        // what happened is never shown before it happened, and at most a minute later, unless it was after the last moment
        for Row { minute, .. } in &rows {
            prop_assert!(minutes.shown(*minute) > minutes.zero(*minute));
        }
        for (moment, ..) in &events {
            let moment = at(offset + moment.max(&0));
            let shown = minutes.shown(minutes.of(moment));
            let late = shown - moment;
            let is_after = moment >= minutes.last;
            prop_assert!(is_after || (late > TimeDelta::zero() && late <= delta(STEP)), "{}", late);
            prop_assert!(!is_after || shown == minutes.last);
        }

        let mut in_pieces = history(minutes);
        let (before, after): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(|row| row.minute < cut);
        in_pieces.add(before);
        in_pieces.add(after);
        prop_assert_eq!(&written(&in_pieces), &text);

        let families: Vec<Family> = Counter::ALL.into_iter().map(|counter| whole.family(counter, &scrape())).collect();
        prop_assert_eq!(wrong_with(&families), Vec::<String>::new());
        let names: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        prop_assert!(names.iter().all(|name| name.ends_with(" counter")));
        prop_assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1 && !text.contains("_created"));
    }
}
