//! Half a page is none, nothing in any spelling is empty, and what is not the service's own keeps the window open.

use super::*;

#[test]
fn half_a_page_is_none_whatever_it_holds() {
    for system in every_system() {
        let whole = page(system, &nine(system, b"\"}]} \xFC \\ud83d \\\"}]}\""));
        assert_eq!(read(system, whole.clone()).end, Ok(()), "{system}");
        for cut in (1..whole.len()).step_by(13).chain([whole.len() - 1]) {
            let became = read(system, &whole[..cut]);
            assert_eq!((became.end, became.what.len()), (Err(ErrorKind::Decode), 0), "{system} {cut}");
        }
        for beyond in ["x", "{}", "]", "}"] {
            let body = [whole.as_slice(), beyond.as_bytes()].concat();
            assert_eq!(read(system, body).end, Err(ErrorKind::Decode), "{system} {beyond}");
        }
    }
}

#[test]
fn a_byte_order_mark_or_utf_16_changes_nothing() {
    for system in every_system() {
        for unread in [&b"\"\xC3\xBC\""[..], b"NaN"] {
            let plain = page(system, &nine(system, unread));
            let text = String::from_utf8(plain.clone()).unwrap();
            let units: Vec<u16> = text.encode_utf16().collect();
            let big: Vec<u8> = units.iter().flat_map(|unit| unit.to_be_bytes()).collect();
            let little: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
            let expected = read(system, plain.clone()).counted;
            for body in [
                [b"\xEF\xBB\xBF", plain.as_slice()].concat(),
                [b"\r\n ", plain.as_slice(), b"\n\0"].concat(),
                [b"\xFE\xFF", big.as_slice()].concat(),
                [b"\xFF\xFE", little.as_slice()].concat(),
                little.clone(),
                big.clone(),
            ] {
                let became = read_with(system, 200, body, b"\xEF\xBB\xBF");
                assert_eq!((became.end, &became.counted), (Ok(()), &expected), "{system}");
                assert!(became.logins <= 1, "{system}: no session has ended");
            }
        }
    }
}

#[test]
fn nothing_in_any_spelling_is_empty() {
    let list = "urn:ietf:params:scim:api:messages:2.0:EventList";
    let scim = format!(r#"{{"schemas":["{list}"],"eventTokens":null}}"#);
    let scim_without = format!(r#"{{"schemas":["{list}"]}}"#);
    let (all, none) = (Ok(()), Err(ErrorKind::Decode));
    for (system, body, end) in [
        (CANVAS, r#"{"events":null}"#, all),
        (CANVAS, r#"{"links":{},"linked":{}}"#, all),
        (CANVAS, "null", all),
        (CANVAS, "[]", all),
        (CANVAS, r#"{"count":0}"#, all),
        (INFORMATICA, r#"{"entries":null}"#, all),
        (INFORMATICA, r#"{"totalCount":"0"}"#, all),
        (INFORMATICA, "[ ]", all),
        (INFORMATICA, "null", all),
        (ACTIVID, &scim, all),
        (ACTIVID, &scim_without, all),
        (ACTIVID, r#"{"eventTokens":null}"#, all),
        (ACTIVID, r#"{"totalResults":0}"#, all),
        (LOSANT, r#"{"items":null}"#, all),
        (LOSANT, r#"{"items":null,"totalCount":null}"#, all),
        (LOSANT, r#"{"totalCount":0}"#, all),
        (LOSANT, r#"{"totalCount":0.0,"perPage":100}"#, all),
        (LOSANT, r#"{"perPage":100,"page":0,"sortField":"creationDate"}"#, all),
        (INDEX_EXCHANGE, r#"{"availableDownloads":null}"#, all),
        (INDEX_EXCHANGE, "{}", all),
        (INDEX_EXCHANGE, "null", all),
        (INDEX_EXCHANGE, r#"{"count":0}"#, all),
        // what says of itself that it is an error, and what says nothing, are no empty lists
        (CANVAS, r#"{"events":null,"errors":[{"message":"x"}]}"#, none),
        (CANVAS, "{}", none),
        (CANVAS, "17", none),
        (CANVAS, r#"{"events":{}}"#, none),
        (INFORMATICA, "{}", none),
        (INFORMATICA, r#"{"entries":"x"}"#, none),
        (INFORMATICA, r#"{"total":3}"#, none),
        (ACTIVID, "{}", none),
        (ACTIVID, "null", none),
        (ACTIVID, "[]", none),
        (LOSANT, "{}", none),
        (LOSANT, "null", none),
        (LOSANT, r#"{"totalCount":5,"perPage":100,"page":0}"#, none),
        (LOSANT, r#"{"type":"NotFound","message":"x","count":0}"#, none),
        (LOSANT, r#"{"items":null,"error":{"message":"x"}}"#, none),
        (INDEX_EXCHANGE, r#"{"message":"no"}"#, none),
    ] {
        let became = read(system, body);
        assert_eq!((became.end, became.what.len()), (end, 0), "{system} {body}");
    }
    for system in every_system() {
        assert_eq!(read_with(system, 204, "", b"").end, Ok(()), "{system}");
        assert_eq!(read(system, "").end, Err(ErrorKind::Decode), "{system}: 200 and nothing at all");
    }
}

#[test]
fn a_list_in_which_nothing_is_the_services_own_keeps_the_window_open() {
    let lists = [
        r#"[{"message":"Too many","errorCode":"X"}]"#,
        r#"[{"error":"x"},{"error":"y"}]"#,
        r#"[{"id":"err-1","code":"X","title":"Oops"}]"#,
        r#"["x"]"#,
        "[null,7]",
        "[[1]]",
        "[NaN]",
        "[{}]",
    ];
    for system in every_system() {
        for list in lists {
            let around = String::from_utf8(page(system, &[])).unwrap().replace("[]", list);
            let mut bodies = vec![around];
            if matches!(system, CANVAS | INFORMATICA | INDEX_EXCHANGE) {
                bodies.push(list.to_owned());
            }
            for body in bodies {
                let became = read(system, body.clone());
                assert_eq!((became.end, became.counted.len()), (Err(ErrorKind::Decode), 0), "{system} {body}");
            }
        }
    }
}

#[test]
fn a_single_event_that_cannot_be_understood_closes_its_window() {
    for (system, body) in [
        (CANVAS, r#"{"events":[{"id":"a","created_at":"soon"}]}"#),
        (INFORMATICA, r#"{"entries":[{"id":"a","entryTime":{}}]}"#),
        (ACTIVID, r#"{"eventTokens":["eyJhbGciOiJub25lIn0.bm90IGpzb24."]}"#),
        (LOSANT, r#"{"items":[{"id":"a","creationDate":"soon"}],"totalCount":1}"#),
        (INDEX_EXCHANGE, r#"{"availableDownloads":[{"hour":1,"subscriptionName":"impressions"}]}"#),
    ] {
        let became = read(system, body);
        assert_eq!((became.end, became.rejected(), became.counted.len()), (Ok(()), 1, 0), "{system}");
    }
}

#[test]
fn a_list_that_stands_twice_is_read_whole() {
    // around a bare list there is no document that could hold it twice
    for system in every_system().into_iter().filter(|system| page(*system, &[]).ends_with(b"}")) {
        let entries = nine(system, b"null");
        let expected = read(system, page(system, &entries)).counted;
        let halves = [page(system, &entries[..4]), page(system, &entries[4..])];
        let [first, second] = halves.map(|half| String::from_utf8(half).unwrap());
        let twice = format!("{},{}", first.strip_suffix('}').unwrap(), second.strip_prefix('{').unwrap());
        // Losant's total is that of the second
        let became = read(system, twice);
        assert_eq!((became.end, became.counted), (Ok(()), expected.clone()), "{system}");
        let same = String::from_utf8(page(system, &entries)).unwrap();
        let same = format!("{},{}", same.strip_suffix('}').unwrap(), same.strip_prefix('{').unwrap());
        let became = read(system, same);
        assert_eq!((became.end, became.counted), (Ok(()), expected), "{system}");
    }
}
