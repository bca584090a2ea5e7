use std::collections::BTreeSet;

use axum::response::Response;

use super::super::world::testing::{body, call, get, quiet, with_traffic};
use super::super::{EventCall, Injection, World};
use super::*;

const BASE: &str = "/api/v1/audit/authentication/accounts/1";

async fn ask(world: &World, path: &str) -> Response {
    call(world, get(path, &[("authorization", &format!("Bearer {ACCESS_TOKEN}"))])).await
}

fn rel(response: &Response, wanted: &str) -> Option<String> {
    let links = response.headers()["link"].to_str().unwrap();
    let link = links.split(',').find(|link| link.ends_with(&format!("rel=\"{wanted}\"")))?;
    let url = link.split(['<', '>']).nth(1).unwrap();
    Some(url.strip_prefix("http://sim.example:1234").unwrap().to_owned())
}

fn with_faults(world: &World, flags: &str) {
    let mut faults = world.faults();
    faults.set(flags).unwrap();
    world.set_faults(faults);
}

fn login_at(at: DateTime<Utc>, count: u32) -> Injection {
    let call: EventCall = serde_json::from_value(json!({"system": "canvas", "verb": "login", "at": at,
        "count": count, "category": "authentication", "action": "login", "outcome": "success"}))
    .unwrap();
    Injection::Event(call)
}

/// All events from a path on, page by page.
async fn all(world: &World, first: &str) -> (Vec<Value>, usize) {
    let (mut events, mut pages) = (Vec::new(), 0);
    let mut next = Some(first.to_owned());
    while let Some(path) = next {
        let response = ask(world, &path).await;
        next = rel(&response, "next");
        pages += 1;
        let (status, mut document) = body(response).await;
        assert_eq!(status, StatusCode::OK);
        let keys: Vec<&str> = document.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["events", "linked", "links"]);
        events.extend(document["events"].as_array_mut().map(std::mem::take).unwrap());
    }
    (events, pages)
}

#[tokio::test]
async fn bookmarks_lead_through_every_event_once_newest_first() {
    let world = with_traffic();
    let (events, pages) = all(&world, &format!("{BASE}?per_page=7")).await;
    let total = world.truth().total(SYSTEM);
    assert_eq!(events.len() as u64, total);
    assert_eq!(pages as u64, total.div_ceil(7));
    let ids: BTreeSet<&str> = events.iter().map(|event| event["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), events.len());
    let times: Vec<&str> = events.iter().map(|event| event["created_at"].as_str().unwrap()).collect();
    assert!(times.iter().rev().is_sorted());
    assert!(times.iter().all(|at| at.len() == "2026-03-04T12:00:00Z".len()));
}

#[tokio::test]
async fn ten_by_default_a_hundred_at_most_one_at_least() {
    let world = with_traffic();
    for (query, count) in
        [("", 10), ("?per_page=1000", 100), ("?per_page=0", 1), ("?per_page=-3", 1), ("?per_page=3&per_page=4", 4)]
    {
        let (_, document) = body(ask(&world, &format!("{BASE}{query}")).await).await;
        assert_eq!(document["events"].as_array().unwrap().len(), count, "{query}");
    }
}

#[tokio::test]
async fn both_bounds_are_inclusive_and_a_malformed_one_is_ignored() {
    let world = quiet();
    let at: DateTime<Utc> = "2026-03-04T11:00:05.700Z".parse().unwrap();
    world.inject(&login_at(at, 1));
    for (query, count) in [
        ("start_time=2026-03-04T11:00:05Z&end_time=2026-03-04T11:00:05Z", 1),
        ("start_time=2026-03-04T11:00:06Z", 0),
        ("end_time=2026-03-04T11:00:04Z", 0),
        ("start_time=2026-03-04T04:00:05", 1),
        ("start_time=2026-03-04T04:00:06", 0),
        ("start_time=2026-03-04T12:00:05%2B01:00", 1),
        ("start_time=2026-03-05&end_time=tomorrow", 0),
        ("start_time=soon&end_time=tomorrow", 1),
    ] {
        let (events, _) = all(&world, &format!("{BASE}?{query}")).await;
        assert_eq!(events.len(), count, "{query}");
    }
}

#[tokio::test]
async fn links_repeat_all_parameters_but_the_token() {
    let world = with_traffic();
    let path = format!("{BASE}?access_token={ACCESS_TOKEN}&start_time=2026-03-04T00:00:00Z&per_page=5");
    let response = call(&world, get(&path, &[])).await;
    assert_eq!(response.status(), StatusCode::OK);
    let links = response.headers()["link"].to_str().unwrap();
    assert!(!links.contains("access_token") && !links.contains("rel=\"last\""), "{links}");
    let next = rel(&response, "next").unwrap();
    assert!(next.starts_with(&format!("{BASE}?start_time=2026-03-04T00%3A00%3A00Z&page=bookmark:")), "{next}");
    assert!(next.ends_with("&per_page=5"), "{next}");
    assert!(rel(&response, "first").unwrap().contains("page=first"));
    assert!(rel(&response, "current").unwrap().contains("page=first"));
    assert!(response.headers().contains_key("x-request-cost"));
    let remaining: f64 = response.headers()["x-rate-limit-remaining"].to_str().unwrap().parse().unwrap();
    assert!((600.0..700.0).contains(&remaining));
}

#[tokio::test]
async fn a_bookmark_that_cannot_be_decoded_is_page_1() {
    let world = with_traffic();
    let (_, first) = body(ask(&world, BASE).await).await;
    for page in ["bookmark:W1td", "bookmark:!!!", "2", "first"] {
        let (_, document) = body(ask(&world, &format!("{BASE}?page={page}")).await).await;
        assert_eq!(document, first, "{page}");
    }
}

#[tokio::test]
async fn the_bookmark_of_older_versions_skips_the_rest_of_its_second() {
    let world = quiet();
    world.inject(&login_at("2026-03-04T11:00:05Z".parse().unwrap(), 3));
    world.inject(&login_at("2026-03-04T11:00:04Z".parse().unwrap(), 1));
    let old = URL_SAFE_NO_PAD.encode("\"2026-03-04 11:00:05 UTC\"");
    let (events, _) = all(&world, &format!("{BASE}?page=bookmark:{old}")).await;
    assert_eq!(events.len(), 1);
}

#[tokio::test]
async fn refusals_tell_a_bad_token_from_a_missing_permission() {
    let world = quiet();
    let bad = call(&world, get(BASE, &[("authorization", "Bearer no")])).await;
    assert_eq!(bad.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(bad.headers()["www-authenticate"], "Bearer realm=\"canvas-lms\"");
    with_faults(&world, "canvas:forbidden");
    let barred = ask(&world, BASE).await;
    assert_eq!(barred.status(), StatusCode::UNAUTHORIZED);
    assert!(!barred.headers().contains_key("www-authenticate"));
    with_faults(&world, "canvas:throttle,old_throttle");
    let old = ask(&world, BASE).await;
    assert_eq!(old.status(), StatusCode::FORBIDDEN);
    assert_eq!(old.headers()["x-rate-limit-remaining"], "0.0");
    assert!(!old.headers().contains_key("x-request-cost") && !old.headers().contains_key("retry-after"));
    with_faults(&world, "canvas:old_throttle=false,retry_after=7");
    let new = ask(&world, BASE).await;
    assert_eq!(new.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(new.headers()["retry-after"], "7");
}

#[tokio::test]
async fn only_one_of_the_two_names_of_logins_is_there() {
    let world = with_traffic();
    let (events, _) = all(&world, &format!("{BASE}?per_page=100")).await;
    let [login, user] = ["login", "user"].map(|name| events[0]["links"][name].as_u64().unwrap());
    let of = |name: &str, id: u64| format!("/api/v1/audit/authentication/{name}/{id}?per_page=100");
    let (of_login, _) = all(&world, &of("logins", login)).await;
    assert!(!of_login.is_empty() && of_login.iter().all(|event| event["links"]["user"] == user));
    assert_eq!(of_login, all(&world, &of("users", user)).await.0);
    assert_eq!(ask(&world, &of("pseudonyms", login)).await.status(), StatusCode::NOT_FOUND);
    with_faults(&world, "canvas:pseudonyms_route");
    assert_eq!(ask(&world, &of("logins", login)).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(all(&world, &of("pseudonyms", login)).await.0, of_login);
    assert_eq!(ask(&world, &of("accounts", 2)).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn flat_events_have_no_id_and_ids_may_be_texts() {
    let world = with_traffic();
    let path = format!("{BASE}?per_page=100");
    let token = format!("Bearer {ACCESS_TOKEN}");
    let headers = [("authorization", token.as_str()), ("accept", "application/json+canvas-string-ids")];
    let (_, document) = body(call(&world, get(&path, &headers)).await).await;
    assert!(document["events"][0]["links"]["user"].is_string());
    with_faults(&world, "canvas:flat");
    let (_, document) = body(ask(&world, &path).await).await;
    let event = &document["events"][0];
    assert!(event.get("id").is_none() && event["user_id"].is_u64() && event["pseudonym_id"].is_u64(), "{event}");
    assert!(event["created_at"].as_str().unwrap().ends_with("-07:00"));
    with_faults(&world, "canvas:bare_list");
    assert!(body(ask(&world, &path).await).await.1.is_array());
}

#[tokio::test]
async fn the_looping_and_the_restarting_bookmark_never_end() {
    let world = with_traffic();
    with_faults(&world, "canvas:looping");
    let second = rel(&ask(&world, BASE).await, "next").unwrap();
    assert_eq!(rel(&ask(&world, &second).await, "next").unwrap(), second);
    with_faults(&world, "canvas:looping=false,restarting");
    let first = ask(&world, BASE).await;
    let again = ask(&world, &rel(&first, "next").unwrap()).await;
    assert_eq!(body(first).await.1, body(again).await.1);
}

#[tokio::test]
async fn some_ids_are_beyond_two_to_the_53() {
    let world = with_traffic();
    let (events, _) = all(&world, &format!("{BASE}?per_page=100")).await;
    assert!(events.iter().any(|event| event["links"]["user"].as_u64().unwrap() > 1 << 53));
}
