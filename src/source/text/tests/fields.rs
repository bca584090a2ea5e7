//! A field of another type costs nothing, and a number is the one that is written.

use super::*;

#[test]
fn a_field_of_another_type_says_nothing_and_costs_nothing() {
    let time = r#""2027-01-15T08:00:00Z""#;
    let canvas = |fields: &str| (CANVAS, format!(r#"{{"created_at":{time},{fields}}}"#));
    let informatica = |fields: &str| (INFORMATICA, format!(r#"{{"entryTime":{time},{fields}}}"#));
    let losant = |fields: &str| (LOSANT, format!(r#"{{"creationDate":{time},{fields}}}"#));
    let activid = |payload: &str| (ACTIVID, String::from_utf8(token(payload.as_bytes())).unwrap());
    for ((system, entry), expected) in [
        (canvas(r#""id":"a","event_type":"login","links":[]"#), "authentication login success"),
        (canvas(r#""id":"a","event_type":"login","links":[1,2,3]"#), "authentication login success"),
        (canvas(r#""id":"a","event_type":"login","links":"x","user_id":true"#), "authentication login success"),
        (canvas(r#""id":{},"event_type":"login","links":{"user":{"id":1}}"#), "authentication login success"),
        (canvas(r#""id":true,"event_type":7"#), "authentication unknown success"),
        (canvas(r#""id":"a","event_type":{}"#), "authentication unknown success"),
        (canvas(r#""id":"a","id":"b","event_type":"logout","event_type":"login""#), "authentication login success"),
        (canvas(r#""id":"a","event_type":"login","links":{"user":"\ud83d"}"#), "authentication login success"),
        (
            informatica(r#""id":"a","objectName":{},"actor":true,"actionCategory":"User","actionEvent":"CREATE""#),
            "user create success",
        ),
        (informatica(r#""id":[],"orgId":1.5,"actionCategory":"User","actionEvent":"CREATE""#), "user create success"),
        (informatica(r#""id":"a","actionCategory":[],"actionEvent":{"a":1}"#), "unknown unknown success"),
        (informatica(r#""id":"a","actor":"x","actor":"robot","actionEvent":"CREATE""#), "ignored"),
        (
            informatica(r#""id":"a","objectName":"\ud83d","actionCategory":"User","actionEvent":"CREATE""#),
            "user create success",
        ),
        (
            losant(r#""id":"a","primaryTargetType":{},"requestAction":["post"],"responseStatus":{}"#),
            "unknown unknown unknown",
        ),
        (
            losant(r#""id":false,"primaryTargetType":"User","requestAction":"post","responseStatus":"NaN""#),
            "user create unknown",
        ),
        (
            losant(r#""id":"a","primaryTargetType":"User","requestAction":"post","responseStatus":NaN"#),
            "user create unknown",
        ),
        (
            losant(r#""id":"a","actorName":{},"actorId":[],"requestAction":"post","responseStatus":201.0"#),
            "unknown create success",
        ),
        (
            losant(r#""id":"a","actorName":"robot","actorName":"\ud83d","requestAction":"post""#),
            "unknown create unknown",
        ),
        (activid(r#"{"type":{"a":1},"values":[],"resourceUris":7}"#), "unknown unknown unknown"),
        (activid(r#"{"type":"deleteUser","values":{"status":true,"directUser":[1]}}"#), "user delete unknown"),
        (activid(r#"{"type":"x","type":"deleteUser","values":{"message":"\ud83d"}}"#), "user delete unknown"),
    ] {
        let became = read(system, page(system, &[entry.clone().into_bytes()]));
        assert_eq!((became.end, became.what), (Ok(()), vec![expected.to_owned()]), "{system} {entry}");
    }
}

#[test]
fn a_total_that_is_no_number_is_unknown() {
    let entries = nine(LOSANT, b"null");
    let body = String::from_utf8(page(LOSANT, &entries)).unwrap();
    for total in
        ["\"9\"", "9.0", "-1", "null", "\"many\"", "\"\"", "[]", "{}", "1e999", "NaN", "true", "9.5", "\" 9 \""]
    {
        for per_page in ["100", "\"100\"", "100.0", "-1", "{}", "1e30"] {
            let body = body.replace("\"totalCount\":9", &format!("\"totalCount\":{total}"));
            let body = body.replace("\"perPage\":100", &format!("\"perPage\":{per_page}"));
            let became = read(LOSANT, body);
            assert_eq!((became.end, became.counted.len()), (Ok(()), 9), "{total} {per_page}");
        }
    }
}

#[test]
fn a_count_is_a_whole_number_however_it_is_written() {
    for (raw, expected) in [
        ("1500", Some(1500)),
        ("\"1500\"", Some(1500)),
        ("1500.0", Some(1500)),
        ("1.5e3", Some(1500)),
        ("0", Some(0)),
        ("-0", Some(0)),
        ("18446744073709551615", Some(u64::MAX)),
        ("-1", None),
        ("1.5", None),
        ("1e300", None),
        ("null", None),
        ("\"\"", None),
        ("[1]", None),
        ("NaN", None),
    ] {
        assert_eq!(Field::of(raw.as_bytes()).count(), expected, "{raw}");
    }
}

#[test]
fn a_number_keeps_all_its_digits() {
    for number in ["18446744073709551616", "18446744073709551617", "123456789012345678901234567890"] {
        assert_eq!(Field::of(number.as_bytes()).id(), Some(number));
    }
    assert_eq!(Field::of(b"17"), Field::Number("17".into()));
    assert_eq!(Field::of(b"1.50"), Field::Number("1.5".into()));
}
