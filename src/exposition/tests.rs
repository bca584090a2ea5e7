use std::sync::Arc;

use chrono::DateTime;

use super::*;

#[path = "../../tests/it/lint.rs"]
mod lint;

use lint::lint;

/// What is wrong with families that are made elsewhere.
pub(crate) fn wrong_with(families: &[Family]) -> Vec<String> {
    lint(families)
}

fn labels(pairs: &[(&'static str, &str)]) -> Vec<(&'static str, Arc<str>)> {
    pairs.iter().map(|(name, value)| (*name, Arc::from(*value))).collect()
}

/// A page with everything that is spelled differently somewhere.
fn page() -> Vec<Family> {
    let born = DateTime::from_timestamp(1_763_712_000, 123_000_000);
    vec![
        Family {
            name: "audit_events_total",
            help: "Events, \"counted\" once.\nSee C:\\docs.",
            kind: Kind::Counter,
            samples: vec![
                Sample {
                    labels: labels(&[("source", "campus"), ("action", "a\\b\"c\nd é")]),
                    value: Value::Count(9_007_199_254_740_993),
                    created: born,
                },
                Sample {
                    labels: labels(&[("source", "{x=\"1\"}"), ("action", "")]),
                    value: Value::Count(0),
                    created: None,
                },
            ],
        },
        Family { name: "empty_total", help: "No sample yet.", kind: Kind::Counter, samples: vec![] },
        Family {
            name: "audit_source_up",
            help: "",
            kind: Kind::Gauge,
            samples: vec![Sample { labels: vec![], value: Value::Number(-0.5), created: born }],
        },
        Family {
            name: "audit_event_lateness_seconds",
            help: "Lateness.",
            kind: Kind::Histogram,
            samples: vec![Sample {
                labels: labels(&[("source", "iot")]),
                value: Value::Histogram { buckets: vec![(0.5, 1), (60.0, 3), (2_592_000.0, 3)], sum: 1e17, count: 4 },
                created: born,
            }],
        },
        Family {
            name: "bare_seconds",
            help: "Without labels.",
            kind: Kind::Histogram,
            samples: vec![Sample {
                labels: vec![],
                value: Value::Histogram { buckets: vec![(1.0, 0)], sum: 0.0, count: 0 },
                created: None,
            }],
        },
    ]
}

fn text(families: &[Family], format: Format, created: bool) -> String {
    String::from_utf8(encode(families, format, created)).unwrap()
}

const TEXT: &str = r#"# HELP audit_events_total Events, "counted" once.\nSee C:\\docs.
# TYPE audit_events_total counter
audit_events_total{source="campus",action="a\\b\"c\nd é"} 9007199254740993
audit_events_total{source="{x=\"1\"}",action=""} 0
# TYPE audit_source_up gauge
audit_source_up -0.5
# HELP audit_event_lateness_seconds Lateness.
# TYPE audit_event_lateness_seconds histogram
audit_event_lateness_seconds_bucket{source="iot",le="0.5"} 1
audit_event_lateness_seconds_bucket{source="iot",le="60"} 3
audit_event_lateness_seconds_bucket{source="iot",le="2.592e+06"} 3
audit_event_lateness_seconds_bucket{source="iot",le="+Inf"} 4
audit_event_lateness_seconds_sum{source="iot"} 1e17
audit_event_lateness_seconds_count{source="iot"} 4
# HELP bare_seconds Without labels.
# TYPE bare_seconds histogram
bare_seconds_bucket{le="1"} 0
bare_seconds_bucket{le="+Inf"} 0
bare_seconds_sum 0
bare_seconds_count 0
"#;

const OPENMETRICS: &str = r#"# HELP audit_events Events, \"counted\" once.\nSee C:\\docs.
# TYPE audit_events counter
audit_events_total{source="campus",action="a\\b\"c\nd é"} 9007199254740993
audit_events_created{source="campus",action="a\\b\"c\nd é"} 1763712000.123
audit_events_total{source="{x=\"1\"}",action=""} 0
# TYPE audit_source_up gauge
audit_source_up -0.5
# HELP audit_event_lateness_seconds Lateness.
# TYPE audit_event_lateness_seconds histogram
audit_event_lateness_seconds_bucket{source="iot",le="0.5"} 1
audit_event_lateness_seconds_bucket{source="iot",le="60.0"} 3
audit_event_lateness_seconds_bucket{source="iot",le="2.592e+06"} 3
audit_event_lateness_seconds_bucket{source="iot",le="+Inf"} 4
audit_event_lateness_seconds_sum{source="iot"} 1e17
audit_event_lateness_seconds_count{source="iot"} 4
audit_event_lateness_seconds_created{source="iot"} 1763712000.123
# HELP bare_seconds Without labels.
# TYPE bare_seconds histogram
bare_seconds_bucket{le="1.0"} 0
bare_seconds_bucket{le="+Inf"} 0
bare_seconds_sum 0
bare_seconds_count 0
# EOF
"#;

#[test]
fn text_is_written_to_the_letter() {
    assert_eq!(text(&page(), Format::Text, false), TEXT);
    assert_eq!(text(&page(), Format::Text, true), TEXT, "text 0.0.4 has no creation times");
}

#[test]
fn openmetrics_is_written_to_the_letter() {
    assert_eq!(text(&page(), Format::OpenMetrics, true), OPENMETRICS);
}

#[test]
fn created_lines_are_written_only_when_asked_for() {
    let without: String = OPENMETRICS.split_inclusive('\n').filter(|line| !line.contains("_created")).collect();
    assert_eq!(text(&page(), Format::OpenMetrics, false), without);
}

/// The bytes of a length-delimited protobuf field.
fn field(number: u8, body: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, u8::try_from(body.len()).unwrap()], body].concat()
}

fn double(number: u8, value: f64) -> Vec<u8> {
    [&[number << 3 | 1][..], &value.to_le_bytes()].concat()
}

fn label(name: &str, value: &str) -> Vec<u8> {
    field(1, &[field(1, name.as_bytes()), field(2, value.as_bytes())].concat())
}

/// Field by field as in Prometheus' `metrics.proto`, which is where the numbers are from.
#[test]
fn protobuf_carries_creation_times_always() {
    let born = DateTime::from_timestamp(300, 5);
    let histogram = Value::Histogram { buckets: vec![(0.5, 1)], sum: 2.5, count: 3 };
    let families = [
        Family {
            name: "a_total",
            help: "A.",
            kind: Kind::Counter,
            samples: vec![
                Sample { labels: labels(&[("x", "\"\n")]), value: Value::Count(7), created: born },
                Sample { labels: vec![], value: Value::Number(0.5), created: None },
            ],
        },
        Family { name: "none_total", help: "", kind: Kind::Counter, samples: vec![] },
        Family {
            name: "g",
            help: "G.",
            kind: Kind::Gauge,
            samples: vec![Sample { labels: vec![], value: Value::Number(1.5), created: born }],
        },
        Family {
            name: "h",
            help: "H.",
            kind: Kind::Histogram,
            samples: vec![Sample { labels: vec![], value: histogram, created: born }],
        },
    ];
    let timestamp = [0x08, 0xac, 0x02, 0x10, 5];
    let counter = |number: f64, created: &[u8]| field(3, &[&double(1, number), created].concat());
    let bucket = [&[0x08, 1][..], &double(2, 0.5)].concat();
    let parts = [&[0x08, 3][..], &double(2, 2.5), &field(3, &bucket), &field(15, &timestamp)].concat();
    let messages = [
        [
            field(1, b"a_total"),
            field(2, b"A."),
            vec![0x18, 0],
            field(4, &[label("x", "\"\n"), counter(7.0, &field(3, &timestamp))].concat()),
            field(4, &counter(0.5, &[])),
        ]
        .concat(),
        [field(1, b"g"), field(2, b"G."), vec![0x18, 1], field(4, &field(2, &double(1, 1.5)))].concat(),
        [field(1, b"h"), field(2, b"H."), vec![0x18, 4], field(4, &field(7, &parts))].concat(),
    ];
    let expected: Vec<u8> = messages
        .iter()
        .flat_map(|message| [vec![u8::try_from(message.len()).unwrap()], message.clone()].concat())
        .collect();
    assert_eq!(encode(&families, Format::Protobuf, false), expected);
    assert_eq!(encode(&families, Format::Protobuf, true), expected);
}

#[test]
fn nothing_to_say_is_said_in_every_format() {
    let empty = Family { name: "a_total", help: "A.", kind: Kind::Counter, samples: vec![] };
    for families in [vec![], vec![empty]] {
        assert_eq!(text(&families, Format::Text, true), "");
        assert_eq!(text(&families, Format::OpenMetrics, true), "# EOF\n");
        assert_eq!(encode(&families, Format::Protobuf, true), b"");
    }
}

#[test]
fn what_cannot_be_written_does_not_spoil_the_rest() {
    let number = || Sample { labels: vec![], value: Value::Number(1.0), created: None };
    let histogram =
        Sample { labels: vec![], value: Value::Histogram { buckets: vec![], sum: 0.0, count: 0 }, created: None };
    let families = [
        Family { name: "a_total", help: "", kind: Kind::Counter, samples: vec![histogram, number()] },
        Family { name: "b", help: "", kind: Kind::Histogram, samples: vec![number()] },
        Family { name: "", help: "", kind: Kind::Gauge, samples: vec![number()] },
        Family { name: "no_suffix", help: "", kind: Kind::Counter, samples: vec![number()] },
    ];
    assert_eq!(
        text(&families, Format::Text, false),
        "# TYPE a_total counter\na_total 1\n# TYPE no_suffix counter\nno_suffix 1\n"
    );
    assert_eq!(
        text(&families, Format::OpenMetrics, false),
        "# TYPE a counter\na_total 1\n# TYPE no_suffix unknown\nno_suffix 1\n# EOF\n"
    );
    let protobuf = encode(&families, Format::Protobuf, false);
    assert_eq!(usize::from(protobuf[0]) + usize::from(protobuf[usize::from(protobuf[0]) + 1]) + 2, protobuf.len());
}

#[test]
fn the_process_family_has_good_names_and_help() {
    let families = crate::process::families();
    assert!(families.len() > 5, "{families:?}");
    assert_eq!(lint(&families), Vec::<String>::new());
}

#[test]
fn content_types_are_the_registered_ones() {
    let types = [Format::Text, Format::OpenMetrics, Format::Protobuf].map(|format| format.content_type());
    assert_eq!(
        types,
        [
            "text/plain; version=0.0.4; charset=utf-8",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited",
        ]
    );
    for (content_type, format) in types.iter().zip([Format::Text, Format::OpenMetrics, Format::Protobuf]) {
        assert_eq!(negotiate(Some(content_type)), format, "what is answered can be asked for");
    }
}
