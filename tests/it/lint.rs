//! What a page of families must keep to.
//!
//! The unit tests of the exposition and the fuzz targets include this file; so the program does not hold it. Whoever
//! includes it has [`Family`] and its parts in scope.

use std::collections::{BTreeMap, BTreeSet};

use super::{Family, Kind, Sample, Value};

/// Everything that is wrong with the families, one sentence each, empty if nothing is.
///
/// Found are: families of the same name or whose series' names clash in some format, illegal
/// names, suffixes that belong to another kind, missing help; samples with the same labels,
/// with other label names than the family's first, or with a value that the kind does not allow.
pub(super) fn lint(families: &[Family]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut owners: BTreeMap<String, &str> = BTreeMap::new();
    for family in families {
        let name = family.name;
        let series = series_names(family);
        // Where one series clashes others often do too: the first says enough.
        if owners.get(name) == Some(&name) {
            wrong.push(format!("{name}: two families have this name"));
        } else if let Some((clash, owner)) = series.iter().find_map(|series| owners.get_key_value(series)) {
            wrong.push(format!("{name}: the name {clash} belongs to {owner} too"));
        }
        owners.extend(series.into_iter().map(|series| (series, name)));
        lint_family(family, &mut wrong);
        lint_samples(family, &mut wrong);
    }
    wrong
}

/// The names that the family takes up in any format, its declared `OpenMetrics` name included.
fn series_names(family: &Family) -> BTreeSet<String> {
    let stem = family.name.strip_suffix("_total").filter(|_| family.kind == Kind::Counter).unwrap_or(family.name);
    let suffixes: &[&str] = match family.kind {
        Kind::Counter => &["", "_total", "_created"],
        Kind::Gauge => &[""],
        Kind::Histogram => &["", "_bucket", "_sum", "_count", "_created"],
    };
    suffixes.iter().map(|suffix| format!("{stem}{suffix}")).chain([family.name.to_owned()]).collect()
}

fn lint_family(family: &Family, wrong: &mut Vec<String>) {
    let name = family.name;
    if !is_name(name, true) {
        wrong.push(format!("{name:?} is no metric name"));
    }
    if family.help.trim().is_empty() {
        wrong.push(format!("{name}: has no help"));
    }
    if family.kind == Kind::Counter && !name.ends_with("_total") {
        wrong.push(format!("{name}: a counter's name ends in _total"));
    }
    let stem = if family.kind == Kind::Counter { name.strip_suffix("_total").unwrap_or(name) } else { name };
    for suffix in ["_total", "_created", "_bucket", "_sum", "_count"] {
        if stem.ends_with(suffix) {
            wrong.push(format!("{name}: the suffix {suffix} belongs to another kind of metric"));
        }
    }
}

fn lint_samples(family: &Family, wrong: &mut Vec<String>) {
    let name = family.name;
    let mut seen = BTreeSet::new();
    let mut names: Option<Vec<&str>> = None;
    for sample in &family.samples {
        let mut labels: Vec<(&str, &str)> = sample.labels.iter().map(|(label, value)| (*label, &**value)).collect();
        labels.sort_unstable();
        let own: Vec<&str> = labels.iter().map(|(label, _)| *label).collect();
        if names.as_ref().is_some_and(|first| *first != own) {
            wrong.push(format!("{name}: label names differ: {:?} and {own:?}", names.as_deref().unwrap_or_default()));
        }
        lint_label_names(family, &own, wrong);
        names.get_or_insert(own);
        for problem in value_problems(family.kind, sample) {
            wrong.push(format!("{name}{labels:?}: {problem}"));
        }
        if seen.contains(&labels) {
            wrong.push(format!("{name}{labels:?}: two samples have these labels"));
        }
        seen.insert(labels);
    }
}

fn lint_label_names(family: &Family, sorted: &[&str], wrong: &mut Vec<String>) {
    for label in sorted {
        if !is_name(label, false) || label.starts_with("__") {
            wrong.push(format!("{}: {label:?} is no label name", family.name));
        }
        if *label == "le" && family.kind == Kind::Histogram {
            wrong.push(format!("{}: le is written by the histogram itself", family.name));
        }
    }
    for (label, _) in sorted.iter().zip(sorted.iter().skip(1)).filter(|(one, next)| one == next) {
        wrong.push(format!("{}: the label {label} is there twice", family.name));
    }
}

fn value_problems(kind: Kind, sample: &Sample) -> Vec<String> {
    if (kind == Kind::Histogram) != matches!(sample.value, Value::Histogram { .. }) {
        return vec![format!("the value {:?} does not fit a {kind:?} and is not written", sample.value)];
    }
    match &sample.value {
        Value::Number(number) if kind == Kind::Counter && (number.is_nan() || *number < 0.0) => {
            vec![format!("a counter cannot be {number}")]
        }
        Value::Histogram { buckets, sum, count } => histogram_problems(buckets, *sum, *count),
        Value::Number(_) | Value::Count(_) => Vec::new(),
    }
}

fn histogram_problems(buckets: &[(f64, u64)], sum: f64, count: u64) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some((bound, _)) = buckets.iter().find(|(bound, _)| !bound.is_finite()) {
        problems.push(format!("{bound} is no bucket bound"));
    }
    for pair in buckets.windows(2) {
        let ((lower, fewer), (upper, more)) = (pair[0], pair[1]);
        if lower >= upper {
            problems.push(format!("bucket {upper} stands after {lower}"));
        }
        if fewer > more {
            problems.push(format!("bucket {upper} holds {more}, fewer than the {fewer} of bucket {lower}"));
        }
    }
    if let Some((bound, cumulative)) = buckets.last().filter(|(_, cumulative)| *cumulative > count) {
        problems.push(format!("bucket {bound} holds {cumulative}, more than the count {count}"));
    }
    if sum.is_nan() {
        problems.push("the sum is NaN".to_owned());
    }
    problems
}

/// A legacy name: letters, digits, `_` and, in metric names, `:`; no digit first.
fn is_name(name: &str, colons: bool) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':');
    name.starts_with(|c: char| fits(c) && !c.is_ascii_digit()) && name.chars().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn family(name: &'static str, kind: Kind, samples: Vec<Sample>) -> Family {
        Family { name, help: "Help.", kind, samples }
    }

    fn sample(labels: &[(&'static str, &str)], value: Value) -> Sample {
        let labels = labels.iter().map(|(name, value)| (*name, (*value).into())).collect();
        Sample { labels, value, created: None }
    }

    fn histogram(buckets: &[(f64, u64)], count: u64) -> Vec<Sample> {
        vec![sample(&[], Value::Histogram { buckets: buckets.to_vec(), sum: 1.0, count })]
    }

    #[test]
    fn a_sound_page_is_not_criticised() {
        let families = [
            family(
                "a_total",
                Kind::Counter,
                vec![
                    sample(&[("x", "1"), ("y", "2")], Value::Count(1)),
                    sample(&[("y", "1"), ("x", "2")], Value::Count(0)),
                ],
            ),
            family("ns:b", Kind::Gauge, vec![sample(&[], Value::Number(f64::NAN))]),
            family("c", Kind::Histogram, histogram(&[(-1.0, 0), (0.0, 3), (5.0, 3)], 4)),
            family("d_seconds", Kind::Gauge, vec![]),
        ];
        assert_eq!(lint(&families), Vec::<String>::new());
    }

    #[test]
    fn each_fault_is_named_once() {
        let gauge = |name| family(name, Kind::Gauge, vec![]);
        let one = |labels: &[(&'static str, &str)]| sample(labels, Value::Number(1.0));
        let counter = |value| vec![family("a_total", Kind::Counter, vec![sample(&[], value)])];
        for (families, fault) in [
            (vec![gauge("a"), gauge("a")], "a: two families have this name"),
            (vec![family("a_total", Kind::Counter, vec![]), gauge("a")], "a: the name a belongs to a_total too"),
            (
                vec![family("a", Kind::Histogram, vec![]), family("a_total", Kind::Counter, vec![])],
                "a_total: the name a ",
            ),
            (vec![family("a", Kind::Counter, vec![])], "a: a counter's name ends in _total"),
            (vec![gauge("a_total")], "a_total: the suffix _total belongs"),
            (vec![gauge("a_count")], "a_count: the suffix _count belongs"),
            (vec![gauge("1a")], "\"1a\" is no metric name"),
            (vec![gauge("a.b")], "\"a.b\" is no metric name"),
            (vec![Family { help: " ", ..gauge("a") }], "a: has no help"),
            (
                vec![family("a", Kind::Gauge, vec![one(&[("x", "1")]), one(&[("x", "1")])])],
                "a[(\"x\", \"1\")]: two samples",
            ),
            (
                vec![family("a", Kind::Gauge, vec![one(&[("x", "1"), ("y", "2")]), one(&[("y", "2"), ("x", "1")])])],
                "two samples have these labels",
            ),
            (
                vec![family("a", Kind::Gauge, vec![one(&[("x", "1")]), one(&[])])],
                "a: label names differ: [\"x\"] and []",
            ),
            (vec![family("a", Kind::Gauge, vec![one(&[("x:y", "1")])])], "\"x:y\" is no label name"),
            (vec![family("a", Kind::Gauge, vec![one(&[("__x", "1")])])], "\"__x\" is no label name"),
            (vec![family("a", Kind::Gauge, vec![one(&[("x", "1"), ("x", "2")])])], "the label x is there twice"),
            (counter(Value::Number(-1.0)), "a counter cannot be -1"),
            (counter(Value::Number(f64::NAN)), "a counter cannot be NaN"),
            (counter(Value::Histogram { buckets: vec![], sum: 0.0, count: 0 }), "does not fit a Counter"),
            (vec![family("a", Kind::Histogram, vec![one(&[])])], "does not fit a Histogram"),
            (vec![family("a", Kind::Histogram, histogram(&[(1.0, 1), (1.0, 1)], 1))], "bucket 1 stands after 1"),
            (vec![family("a", Kind::Histogram, histogram(&[(1.0, 2), (2.0, 1)], 2))], "bucket 2 holds 1, fewer"),
            (vec![family("a", Kind::Histogram, histogram(&[(1.0, 2)], 1))], "bucket 1 holds 2, more than the count 1"),
            (vec![family("a", Kind::Histogram, histogram(&[(f64::INFINITY, 2)], 2))], "inf is no bucket bound"),
            (
                vec![family(
                    "a",
                    Kind::Histogram,
                    vec![sample(&[("le", "1")], Value::Histogram { buckets: vec![], sum: 0.0, count: 0 })],
                )],
                "le is written by the histogram itself",
            ),
        ] {
            let found = lint(&families);
            assert_eq!(found.len(), 1, "{fault}: {found:?}");
            assert!(found[0].contains(fault), "{fault}: {found:?}");
        }
    }
}
