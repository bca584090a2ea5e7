//! Whatever one entry holds, all others count; what is no entry is rejected; every search for borders has an end.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[test]
fn whatever_bytes_a_text_holds_every_event_counts() {
    let mut texts: Vec<Vec<u8>> = [
        // Latin-1, raw control characters, escapes that are none, halves of surrogate pairs, written out or as bytes
        &b"caf\xFC"[..],
        b"\x01",
        b"a\nb\tc\0d\x7f",
        b"\\x41 \\' \\q \\",
        b"\\ud83d",
        b"\\ude00 \\ud83d\\ud83d\\ude00",
        b"\\u12",
        b"\\u",
        b"\xED\xA0\xBD",
        b"\xC0\x80 \xF8\x88\x80\x80\x80 \xFF\xFE",
        b"\xE2\x82",
        // quotes that should have been escaped, and what looks like the border of an entry
        b"a 5\" disk",
        b"Jo \"the\" X",
        b"}],[{",
        b"},{",
        b"// /* \xFC",
    ]
    .map(<[u8]>::to_vec)
    .into();
    // a backslash would make the quote behind it part of the text
    texts[3].push(b' ');
    for system in every_system() {
        let clean = read(system, page(system, &nine(system, b"null")));
        assert_eq!((clean.end, clean.counted.len(), clean.rejected()), (Ok(()), 9, 0), "{system}");
        for text in &texts {
            let became = read(system, page(system, &nine(system, &[b"\"", text.as_slice(), b"\""].concat())));
            let shown = String::from_utf8_lossy(text);
            assert_eq!((became.end, became.counted.len(), became.rejected()), (Ok(()), 9, 0), "{system} {shown}");
            let same = became.counted.intersection(&clean.counted).count();
            // ActivID knows an event by all it says
            assert!(same == 9 || (same == 8 && system == ACTIVID), "{system} {shown}: {same}");
        }
    }
}

#[test]
fn whatever_stands_where_nobody_looks_every_event_counts() {
    let deep = ["[".repeat(3000), "]".repeat(3000)].concat();
    let deep_and_bad = ["[".repeat(300), "NaN".into(), "]".repeat(300)].concat();
    let long = "9".repeat(400);
    let values = [
        "NaN",
        "Infinity",
        "-Infinity",
        "undefined",
        "None",
        "True",
        "1e999",
        "-1e-999",
        "007",
        "+1",
        ".5",
        "0x1F",
        &long,
        "[1,]",
        "{\"a\":1,}",
        "{\"a\":1,\"a\":2}",
        "{a:1}",
        "{'a':'b'}",
        "[,]",
        "/* no */ 1",
        "1 // no\n",
        "new Date(5)",
        "[1 2]",
        &deep,
        &deep_and_bad,
        "{\"\\ud83d\":1}",
    ];
    for system in every_system() {
        for value in values {
            let became = read(system, page(system, &nine(system, value.as_bytes())));
            assert_eq!((became.end, became.counted.len(), became.rejected()), (Ok(()), 9, 0), "{system} {value:.60}");
        }
    }
}

#[test]
fn an_entry_that_breaks_its_border_costs_no_other() {
    for system in [CANVAS, INFORMATICA, LOSANT, INDEX_EXCHANGE] {
        let clean = read(system, page(system, &nine(system, b"null"))).counted;
        let broken: [&[u8]; 5] = [b"\"C:\\dir\\\"", b"{\"a\":1", b"[1", b"\"C:\\\",\"x\":\"y\"", b"\"unclosed"];
        for value in broken {
            let became = read(system, page(system, &nine(system, value)));
            let others = became.counted.intersection(&clean).count();
            let shown = String::from_utf8_lossy(value);
            assert!(became.end == Ok(()) && others >= 8, "{system} {shown}: {:?} {others}", became.end);
        }
        // at its very end
        let mut entries = nine(system, b"null");
        entries[4].pop();
        entries[4].extend_from_slice(b",\"path\":\"C:\\\"}");
        let became = read(system, page(system, &entries));
        let others = became.counted.intersection(&clean).count();
        assert!(became.end == Ok(()) && others >= 8, "{system}: {:?} {others}", became.end);
    }
}

#[test]
fn an_entry_that_is_none_is_rejected_beside_good_ones() {
    for system in every_system() {
        for bad in ["NaN", "null", "17", "\"x\"", "[1]", "undefined", "true", "\"\\ud83d\""] {
            let mut entries = nine(system, b"null");
            entries.insert(3, bad.as_bytes().to_vec());
            let became = read(system, page(system, &entries));
            assert_eq!((became.end, became.counted.len(), became.rejected()), (Ok(()), 9, 1), "{system} {bad}");
        }
        let mut entries = nine(system, b"null");
        entries.push(b" ".to_vec());
        assert_eq!(read(system, page(system, &entries)).counted.len(), 9, "{system}: a comma too many");
        assert_eq!(read(system, page(system, &entries)).rejected(), 0);
    }
}

#[test]
fn events_that_differ_only_in_bytes_that_are_no_text_are_two() {
    for system in [CANVAS, INFORMATICA, LOSANT] {
        let ids: [&[u8]; 6] = [b"caf\xE8", b"caf\xE9", b"\\ud83d", b"\\ud83e", b"\xFF", b"\xFE"];
        let entry = |id: &[u8]| {
            let event = String::from_utf8(event(system, 1, b"null")).unwrap();
            let (before, after) = event.split_once("e1").unwrap();
            [before.as_bytes(), id, after.as_bytes()].concat()
        };
        let entries: Vec<Vec<u8>> = ids.into_iter().map(entry).collect();
        let first = read(system, page(system, &entries));
        assert_eq!((first.end, first.counted.len()), (Ok(()), 6), "{system}");
        let mut turned = entries.clone();
        turned.reverse();
        assert_eq!(read(system, page(system, &turned)).counted, first.counted, "{system}: the same on every reading");
        // an id that holds U+FFFD itself is the same whatever else its event holds
        let with = |unread: &[u8]| {
            let event = event(system, 1, unread);
            let at = event.windows(2).position(|two| two == b"e1").unwrap();
            read(system, page(system, &[[&event[..at], "\u{fffd}".as_bytes(), &event[at..]].concat()])).counted
        };
        assert_eq!(with(b"null"), with(b"NaN"), "{system}");
        // alone or beside others
        let alone: BTreeSet<EventKey> =
            entries.iter().flat_map(|entry| read(system, page(system, std::slice::from_ref(entry))).counted).collect();
        assert_eq!(alone, first.counted, "{system}");
    }
}

#[test]
fn the_search_for_swallowed_entries_has_an_end() {
    let swallowing = ["[{\"a\":\"\\\"}", &",{\"a\":{}".repeat(50_000), "}]"].concat();
    let began = tokio::time::Instant::now();
    Envelope::read(swallowing.as_bytes());
    let many = ["[{\"a\":\u{1},\"b\":[", &"{},".repeat(100_000), "]}]"].concat();
    Envelope::read(many.as_bytes());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever bytes one entry's text holds, all others keep their keys and are counted.
    #[test]
    fn one_text_of_any_bytes_costs_no_other_event(
        bytes in prop::collection::vec(any::<u8>().prop_filter("no borders", |byte| !b"\"\\".contains(byte)), 0..60),
        system in prop::sample::select(every_system().to_vec()),
        at in 0_usize..9,
    ) {
        let clean = read(system, page(system, &nine(system, b"null"))).counted;
        let mut entries = nine(system, b"null");
        entries[at] = event(system, at, &[b"\"", bytes.as_slice(), b"\""].concat());
        let became = read(system, page(system, &entries));
        prop_assert_eq!(became.end, Ok(()));
        prop_assert_eq!((became.counted.len(), became.rejected()), (9, 0));
        let same = became.counted.intersection(&clean).count();
        prop_assert!(same == 9 || (same == 8 && system == ACTIVID), "{}", same);
    }

    /// No bytes at all make it panic, or take long.
    #[test]
    fn any_bytes_are_read_to_an_end(bytes in prop::collection::vec(prop::sample::select(b"[]{}\",:\\u0d8n/*' \n\xFC".to_vec()), 0..200)) {
        if let Some(envelope) = Envelope::read(&bytes) {
            let _ = envelope.entries(|_| true, &[]);
        }
        value(&bytes);
        text(&bytes);
    }

    /// What is JSON is read by the scanner as by serde_json, and half of it is not a document.
    #[test]
    fn json_is_read_alike(value in json(), cut in 0.0_f64..1.0) {
        let text = value.to_string();
        let mut scan = Scan::new(text.as_bytes());
        let scanned = scan.value(0);
        prop_assert!(!scan.is_cut);
        prop_assert_eq!(scanned.to_string(), text.clone());
        let list = format!("[{text},{text}]");
        let Some(Envelope::Bare(entries)) = Envelope::read(list.as_bytes()) else { panic!("{list}") };
        let entries = entries.read(|_| (), |_, ()| true).unwrap();
        let entries: Vec<&[u8]> = entries.into_iter().map(|(Raw(raw), ())| raw).collect();
        prop_assert_eq!(entries, [text.as_bytes(), text.as_bytes()]);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a place in a text")]
        let cut = (cut * list.len() as f64) as usize;
        prop_assert!(Envelope::read(&list.as_bytes()[..cut]).is_none());
    }
}

/// Any JSON with whole numbers.
fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        "[\\\\\"{}\\[\\],:/' ]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map("[a-c\\\\\"{]{0,4}", inner, 0..6)
                .prop_map(|fields: BTreeMap<_, _>| { Value::Object(fields.into_iter().collect()) }),
        ]
    })
}
