//! Entries: what they are counted as, which times and ids they may have, and that a bad one costs no other.

use super::*;

fn decoder() -> Decoder {
    Decoder::new(Ignore::new(&["robot@example.com".into()]))
}

fn items(entries: &Value) -> Vec<Item> {
    decoder().items(json!({ "entries": entries }).to_string().as_bytes()).unwrap()
}

fn shown(item: &Item) -> String {
    match &item.what {
        What::Event(labels) => {
            format!("{} {} {} {:?}", labels.category, labels.action, labels.outcome.as_str(), labels.class)
        }
        What::Rejected(rejection) => rejection.reason.as_str().to_owned(),
        other => format!("{other:?}"),
    }
}

/// The answer of the service's own documentation.
const EXAMPLE: &str = r#"{
"entries": [
{"id": "1AoqT9lYsrUhu7kl49kGsx", "orgId": "9l10ywsSnqadMx1NtEEbKT", "actor": "admin",
 "entryTime": "2019-07-23T22:28:07.000Z", "objectId": "9l10ywsSnqadMx1NtEEbKT",
 "objectName": "idsv3_org_1563920884151", "actionCategory": "Organization", "actionEvent": "CREATE"},
{"id": "595EZai5YqFi6X8GIpVVu0", "orgId": "9l10ywsSnqadMx1NtEEbKT", "actor": "admin",
 "entryTime": "2019-07-23T22:28:13.000Z", "objectId": "9pieratUfEWkhFHnzY1r49",
 "objectName": "idsv3_user_1563920884151", "actionCategory": "User", "actionEvent": "CREATE"}
]
}"#;

#[test]
fn the_documented_example_is_counted_as_the_interface_says() {
    let items = decoder().items(EXAMPLE.as_bytes()).unwrap();
    assert_eq!(
        items.iter().map(shown).collect::<Vec<_>>(),
        ["organization create success Change", "user create success Change"]
    );
    assert_eq!(items[1].at, parse_time("2019-07-23T22:28:13Z"));
    assert_eq!(items[1].filed_at, items[1].at);
    assert_eq!(items[0].key, EventKey::of("informatica", &[b"1AoqT9lYsrUhu7kl49kGsx"]));
}

#[test]
fn codes_become_labels_by_their_words() {
    for (category, event, expected) in [
        ("Authentication", "USER_LOGIN", "authentication login success Login(User)"),
        ("Authentication", "User Login", "authentication login success Login(User)"),
        ("AUTHENTICATION", "agent_login", "authentication login success Login(Agent)"),
        ("Authentication", "LOGOUT", "authentication logout success Logout"),
        ("Authentication", "Logout", "authentication logout success Logout"),
        ("Authentication", "LOGIN", "authentication login success Change"),
        ("User group", "UPDATE", "user_group update success Change"),
        ("User", "PASSWORD_RESET", "user password_reset success Change"),
        ("Role", "DISABLE", "role disable success Change"),
        ("SAML Config", "somethingNew", "saml_config something_new success Change"),
        ("", "", "unknown unknown success Change"),
    ] {
        let entry = json!({"id": "a", "actionCategory": category, "actionEvent": event});
        assert_eq!(shown(&items(&json!([entry]))[0]), expected);
    }
    assert_eq!(shown(&items(&json!([{"id": "a", "actionCategory": null}]))[0]), "unknown unknown success Change");
}

#[test]
fn every_documented_label_set_is_in_the_catalogue() {
    let settings = Settings {
        base_url: None,
        login_url: "https://dm-us.informaticacloud.com".parse().unwrap(),
        username: "u".into(),
        password: Secret::text("p"),
    };
    let spec = settings.build(&(SERVICE.defaults)()).0.spec();
    assert!(spec.reading.step_max() < Duration::from_hours(14 * 24));
    for category in ["Organization", "User", "User group", "Role", "Authentication"] {
        for event in ["CREATE", "UPDATE", "DELETE", "DISABLE", "PASSWORD_RESET"] {
            assert!(spec.catalogue.events.contains(&labels(category, event)), "{category} {event}");
        }
    }
    for event in ["USER_LOGIN", "AGENT_LOGIN", "LOGOUT"] {
        assert!(spec.catalogue.events.contains(&labels("Authentication", event)), "{event}");
    }
    assert_eq!(spec.catalogue.events.len(), 28);
}

#[test]
fn one_bad_entry_loses_no_other() {
    let good =
        json!({"id": "g", "entryTime": "2019-07-23T22:28:07Z", "actionCategory": "Role", "actionEvent": "DELETE"});
    for (bad, reason) in [
        (json!("text"), "malformed"),
        (json!(null), "malformed"),
        (json!({}), "malformed"),
        (json!({"actor": "ada"}), "malformed"),
        (json!({"id": ["x"]}), "malformed"),
        (json!({"id": "x", "entryTime": "soon"}), "bad_time"),
        (json!({"id": "x", "entryTime": ""}), "bad_time"),
        (json!({"id": "x", "entryTime": 7}), "bad_time"),
    ] {
        let shown: Vec<String> = items(&json!([good, bad, good])).iter().map(shown).collect();
        assert_eq!(shown, ["role delete success Change", reason, "role delete success Change"], "{bad}");
    }
}

#[test]
fn the_list_may_be_bare_and_ids_may_be_numbers() {
    let key = |body: Value| decoder().items(body.to_string().as_bytes()).unwrap()[0].key;
    assert_eq!(key(json!([{"id": 17}])), key(json!({"entries": [{"id": "17", "new": {"field": [1]}}]})));
    assert!(decoder().items(b" [] ").unwrap().is_empty());
    for body in ["[1, 2]", "[[{}]]", "17", "\"entries\"", "{\"entries\": 1}", "", "<html>"] {
        assert!(decoder().items(body.as_bytes()).is_err(), "{body}");
    }
}

#[test]
fn times_are_read_in_every_documented_format() {
    for text in [
        "2019-07-23T22:28:07Z",
        "2019-07-23T22:28:07.000Z",
        "2019-07-23T22:28:07+0000",
        "2019-07-23T22:28:07.000+0000",
        "2019-07-23T16:28:07.000-0600",
    ] {
        let item = &items(&json!([{"id": "a", "entryTime": text}]))[0];
        assert_eq!(item.at.map(|at| at.timestamp()), Some(1_563_920_887), "{text}");
    }
}

#[test]
fn escapes_and_broken_utf_8_do_not_change_what_is_counted() {
    let body = br#"{"entries":[{"id":"\u0061","actionCategory":"User\u0020group","actionEvent":"CREATE","objectName":"\xff\"\\"}]}"#;
    let mut body = body.to_vec();
    let position = body.windows(4).position(|bytes| bytes == br"\xff").unwrap();
    body.splice(position..position + 4, [0xff]);
    let items = decoder().items(&body).unwrap();
    assert_eq!(shown(&items[0]), "user_group create success Change");
    assert_eq!(items[0].key, EventKey::of("informatica", &[b"a"]));
}

#[test]
fn equal_entries_without_id_are_as_many_as_they_are_and_the_same_when_read_again() {
    let page = json!({"entries": [{"actionEvent": "A"}, {"actionEvent": "A"}, {"actionEvent": "B"}, {"id": "", "actionEvent": "B"}]});
    let page = page.to_string();
    let mut decoder = decoder();
    let mut keys = || decoder.items(page.as_bytes()).unwrap().iter().map(|item| item.key).collect::<Vec<_>>();
    let first = keys();
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 4);
    let next_page = keys();
    assert!(first.iter().all(|key| !next_page.contains(key)));
    decoder.restart();
    let again: Vec<EventKey> = decoder.items(page.as_bytes()).unwrap().iter().map(|item| item.key).collect();
    assert_eq!(again, first);
}

#[test]
fn an_ignored_actor_is_ignored_without_case() {
    let entry = |actor: &str| json!({"id": "a", "actor": actor, "actionEvent": "USER_LOGIN"});
    let items = items(&json!([entry("Robot@Example.com"), entry("robot"), entry("")]));
    assert!(matches!(items[0].what, What::Ignored));
    assert!(items[1..].iter().all(|item| matches!(item.what, What::Event(_))));
}

#[test]
fn labels_remembered_are_bounded_and_do_not_change() {
    let mut decoder = decoder();
    for n in 0..3 * KNOWN_MAX {
        let event = format!("EVENT_{n}");
        assert_eq!(decoder.labels("User", &event), labels("User", &event));
        assert!(decoder.known_pairs <= KNOWN_MAX);
    }
    let long = "x".repeat(KNOWN_BYTES_MAX);
    let before = decoder.known_pairs;
    assert_eq!(decoder.labels("User", &long), labels("User", &long));
    assert_eq!(decoder.known_pairs, before);
}

proptest! {
    /// The quick way and the careful way read the same.
    #[test]
    fn a_page_reads_alike_with_a_bad_entry_in_it(
        entries in prop::collection::vec(("[a-c]{0,2}", "[A-Z][a-z]{0,3} ?[a-z]{0,3}", "[A-Z_]{0,6}", 0_i64..9), 1..20)
    ) {
        let entry = |(id, category, event, second): &(String, String, String, i64)| {
            let time = at(second * 1000).to_rfc3339();
            json!({"id": id, "entryTime": time, "actionCategory": category, "actionEvent": event})
        };
        let mut page: Vec<Value> = entries.iter().map(entry).collect();
        let text = |items: &[Item]| items.iter().map(|item| format!("{item:?}")).collect::<Vec<_>>();
        let quick = text(&items(&json!(page)));
        page.push(json!("no entry"));
        let careful = text(&items(&json!(page)));
        prop_assert_eq!(&quick[..], &careful[..quick.len()]);
    }

    /// No body makes it panic, and none that is cut off is a page.
    #[test]
    fn half_a_page_is_none(cut in 1..EXAMPLE.len()) {
        prop_assert!(decoder().items(&EXAMPLE.as_bytes()[..cut]).is_err());
    }
}
