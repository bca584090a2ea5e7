//! What is accepted but probably not meant is warned of.

use super::*;

#[test]
fn the_shorter_of_look_back_and_catch_up_is_said_to_count() {
    let told = warnings(&losant("initial_lookback: 30d\nmax_catch_up: 9d"));
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("c.yml:6:7: `initial_lookback` (30d) is longer than `max_catch_up` (9d)"), "{told:?}");
    assert!(told[0].ends_with("a new source is read from 9d back"), "{told:?}");
    let by_default = warnings(&losant("max_catch_up: 30m"));
    assert!(by_default[0].contains("`initial_lookback` (1h) is longer than `max_catch_up` (30m)"), "{by_default:?}");
    let beyond_the_service = warnings(&losant("initial_lookback: 500d"));
    assert!(beyond_the_service[0].contains("(500d) is longer than `max_catch_up` (1y)"), "{beyond_the_service:?}");
    for good in ["initial_lookback: 7d\nmax_catch_up: 7d", "initial_lookback: 2d", ""] {
        assert!(warnings(&losant(good)).is_empty(), "{good}");
    }
    // of a feed everything that is listed is read
    let feed = |more: &str| {
        format!(
            "sources: {{index_exchange: [{{name: a, client_key: aWQ6cw==, subscriptions: [impressions], {more}}}]}}"
        )
    };
    assert!(warnings(&feed("max_catch_up: 1d")).is_empty());
    assert_eq!(warnings(&feed("initial_lookback: 30d")).len(), 1);
}

#[test]
fn a_subscription_that_no_document_names_is_warned_of() {
    let text = |names: &str| {
        format!("sources: {{index_exchange: [{{name: a, client_key: aWQ6cw==, subscriptions: [{names}]}}]}}")
    };
    for (name, meant) in [
        ("impresions", "did you mean `impressions`?"),
        ("Impressions", "did you mean `impressions`?"),
        ("impression", "did you mean `impressions`?"),
        ("bid_events", "did you mean `bid events`?"),
        ("bidevents", "did you mean `bid events`?"),
        ("clicks", "documented: impressions, bid events"),
    ] {
        let told = warnings(&text(name));
        assert!(told.len() == 1 && told[0].starts_with("c.yml:1:") && told[0].contains(meant), "{name}: {told:?}");
    }
    assert!(warnings(&text("impressions, bid events")).is_empty());
}
