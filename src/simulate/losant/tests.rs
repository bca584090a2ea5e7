use std::collections::BTreeSet;
use std::time::Duration;

use super::super::world::testing::{body, call, get, quiet, with_traffic};
use super::super::{Injection, ScenarioCall, World};
use super::*;

const BASE: &str = "/instance/575ec7417ae143cd83dc4a96/audit-logs";

async fn read(world: &World, query: &str) -> (StatusCode, Value) {
    let token = format!("Bearer {API_TOKEN}");
    body(call(world, get(&format!("{BASE}?{query}"), &[("authorization", &token)])).await).await
}

#[tokio::test]
async fn pages_in_ascending_order_hold_every_event_once() {
    let world = with_traffic();
    let mut ids = BTreeSet::new();
    let mut times = Vec::new();
    let end = world.now().timestamp_millis();
    for page in 0.. {
        let (status, answer) =
            read(&world, &format!("sortDirection=asc&perPage=30&page={page}&start=0&end={end}")).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(answer["totalCount"], world.truth().total(SYSTEM));
        let items = answer["items"].as_array().unwrap();
        assert_eq!(answer["count"], items.len());
        for item in items {
            assert!(ids.insert(item["id"].as_str().unwrap().to_owned()));
            times.push(item["creationDate"].as_str().unwrap().to_owned());
        }
        if items.len() < 30 {
            break;
        }
    }
    assert_eq!(ids.len() as u64, world.truth().total(SYSTEM));
    assert!(times.is_sorted());
    assert!(ids.len() > 100, "{}", ids.len());
}

#[tokio::test]
async fn newest_first_and_a_hundred_by_default() {
    let world = with_traffic();
    let (_, answer) = read(&world, "").await;
    let times: Vec<&str> =
        answer["items"].as_array().unwrap().iter().map(|item| item["creationDate"].as_str().unwrap()).collect();
    assert_eq!(times.len(), 100);
    assert!(times.iter().rev().is_sorted());
}

#[tokio::test]
async fn both_bounds_are_inclusive_unless_switched() {
    let world = quiet();
    let at = world.now() - TimeDelta::seconds(30);
    world.inject(&Injection::Scenario(ScenarioCall {
        name: Scenario::NewCategory,
        system: Some(SYSTEM),
        count: None,
        at: Some(at),
        seconds: 0,
    }));
    let ms = at.timestamp_millis();
    assert_eq!(read(&world, &format!("start={ms}&end={ms}")).await.1["totalCount"], 1);
    assert_eq!(read(&world, &format!("start={}", ms + 1)).await.1["totalCount"], 0);
    let mut faults = world.faults();
    faults.of_mut(SYSTEM).exclusive_bounds = true;
    world.set_faults(faults);
    assert_eq!(read(&world, &format!("start={ms}&end={ms}")).await.1["totalCount"], 0);
    assert_eq!(read(&world, &format!("start={}&end={}", ms - 1, ms + 1)).await.1["totalCount"], 1);
    let truth = world.truth();
    assert_eq!(
        truth.events.into_iter().collect::<Vec<_>>(),
        [((SYSTEM, "sso_config".to_owned(), "update".to_owned(), Outcome::Success), 1)]
    );
}

#[tokio::test]
async fn refusals_have_a_type_and_a_message() {
    let world = quiet();
    let token = format!("Bearer {API_TOKEN}");
    for (path, authorization, status) in [
        (BASE.to_owned(), "Bearer no", 401),
        (format!("{BASE}?sortField=id"), token.as_str(), 400),
        (format!("{BASE}?start=2024-05-01"), token.as_str(), 400),
        (format!("{BASE}?page=-1"), token.as_str(), 400),
        (format!("{BASE}?auditLogFilter[mood][0][type]=x"), token.as_str(), 400),
        ("/instance/575ec7417ae143cd83dc4a97/audit-logs".to_owned(), token.as_str(), 404),
        (format!("{BASE}/586e9d5151265cb9d72f6ec6"), token.as_str(), 404),
    ] {
        let (got, error) = body(call(&world, get(&path, &[("authorization", authorization)])).await).await;
        assert_eq!(got.as_u16(), status, "{path}");
        assert!(error["type"].is_string() && error["message"].is_string(), "{error}");
    }
}

#[tokio::test]
async fn a_filter_admits_any_of_its_entries() {
    let world = with_traffic();
    let query = "auditLogFilter[primaryTarget][0][type]=Organization&auditLogFilter[primaryTarget][1][type]=User\
                 &auditLogFilter[actor][0][name]=bo@example.com&perPage=1000";
    let (_, answer) = read(&world, query).await;
    let items = answer["items"].as_array().unwrap();
    assert!(!items.is_empty());
    for item in items {
        assert!(["Organization", "User"].contains(&item["primaryTargetType"].as_str().unwrap()));
        assert_eq!(item["actorName"], "bo@example.com");
    }
}

#[tokio::test]
async fn a_listed_item_is_also_found_by_its_id() {
    let world = with_traffic();
    let (_, answer) = read(&world, "perPage=1").await;
    let id = answer["items"][0]["id"].as_str().unwrap();
    let token = format!("Bearer {API_TOKEN}");
    let (status, item) = body(call(&world, get(&format!("{BASE}/{id}"), &[("authorization", &token)])).await).await;
    assert_eq!((status, item), (StatusCode::OK, answer["items"][0].clone()));
}

#[tokio::test(start_paused = true)]
async fn a_late_event_is_seen_later_with_its_older_time() {
    let world = quiet();
    world.inject(&Injection::Event(
        serde_json::from_value(json!({
            "system": "losant", "verb": "delete", "kind": "ApiToken", "status": "403", "visible_after_ms": 5000,
            "at": world.now() - TimeDelta::seconds(60),
            "category": "api_token", "action": "delete", "outcome": "failure"
        }))
        .unwrap(),
    ));
    assert_eq!(read(&world, "").await.1["totalCount"], 0);
    assert_eq!(world.truth().total(SYSTEM), 0);
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(read(&world, "").await.1["items"][0]["responseStatus"], 403);
    assert_eq!(world.truth().total(SYSTEM), 1);
}
