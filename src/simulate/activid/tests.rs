use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::super::world::testing::{body, call, get, quiet, request, with_traffic};
use super::super::{Injection, ScenarioCall, World};
use super::*;

const TOKEN: &str = "/idp/ACME/authn/token";
const SEARCH: &str = "/scim/ACME/v2/Event/.search";
const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

fn encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

async fn log_in(world: &World) -> String {
    let key = STANDARD.encode(format!("{}:{}", encoded(CLIENT_ID), encoded(CLIENT_SECRET)));
    let headers = [("authorization", &*format!("Basic {key}")), FORM];
    let (status, answer) =
        body(call(world, request("POST", TOKEN, &headers, "grant_type=client_credentials")).await).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    format!("Bearer {}", answer["access_token"].as_str().unwrap())
}

async fn search_with(world: &World, token: &str, ask: &Value) -> (StatusCode, Value) {
    let headers = [("authorization", token), ("content-type", "application/scim+json")];
    body(call(world, request("POST", SEARCH, &headers, ask.to_string())).await).await
}

async fn search_for(world: &World, filter: &str, count: usize) -> (StatusCode, Value) {
    let token = log_in(world).await;
    let ask = json!({"schemas": ["urn:ietf:params:scim:api:messages:2.0:SearchRequest"],
                     "filter": filter, "count": count});
    search_with(world, &token, &ask).await
}

fn tokens(list: &Value) -> Vec<&str> {
    list["eventTokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap()).collect()
}

fn decoded(token: &str) -> Value {
    let parts: Vec<&str> = token.split('.').collect();
    assert_eq!((parts.len(), parts[2]), (3, ""));
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap()
}

fn scenario(name: Scenario, at: DateTime<Utc>) -> Injection {
    Injection::Scenario(ScenarioCall { name, system: None, count: None, at: Some(at), seconds: 0 })
}

#[tokio::test]
async fn a_secret_that_is_not_url_encoded_is_refused_with_400() {
    let world = quiet();
    let raw = STANDARD.encode(format!("{CLIENT_ID}:{CLIENT_SECRET}"));
    let headers = [("authorization", &*format!("Basic {raw}")), FORM];
    let (status, error) =
        body(call(&world, request("POST", TOKEN, &headers, "grant_type=client_credentials")).await).await;
    assert_eq!((status.as_u16(), &error["error"]), (400, &json!("invalid_client")));
    assert!(log_in(&world).await.len() > 40);
}

#[tokio::test]
async fn enough_refused_logins_lock_the_account_where_that_is_switched_on() {
    let world = quiet();
    let mut faults = world.faults();
    faults.set("activid:lock_after=2").unwrap();
    world.set_faults(faults);
    for password in ["no", "no", CLIENT_SECRET] {
        let key = STANDARD.encode(format!("{CLIENT_ID}:{}", encoded(password)));
        let headers = [("authorization", &*format!("Basic {key}")), FORM];
        let answer = call(&world, request("POST", TOKEN, &headers, "grant_type=client_credentials")).await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    }
}

#[tokio::test]
async fn everything_is_found_and_nothing_says_when_it_happened() {
    let world = with_traffic();
    let (status, list) = search_for(&world, "", 100_000).await;
    assert_eq!(status, StatusCode::OK);
    let found = tokens(&list);
    assert_eq!(found.len() as u64, world.truth().total(SYSTEM));
    let mut shapes = [0, 0];
    for token in found {
        let event = decoded(token);
        assert!(event.get("meta").is_none() && event.get("id").is_none());
        shapes[usize::from(event.get("eventTypes").is_some())] += 1;
    }
    assert!(shapes[0] > 100 && shapes[1] > 0, "{shapes:?}");
    assert!(list.get("totalResults").is_none() && list.get("tainted").is_none());
}

#[tokio::test]
async fn equal_events_within_a_second_are_as_many_tokens() {
    let world = quiet();
    let event = json!({"system": "activid", "verb": "deleteUser", "status": "RESPONSE_SUCCESS", "count": 2,
                       "category": "user", "action": "delete", "outcome": "success"});
    world.inject(&Injection::Event(serde_json::from_value(event).unwrap()));
    let (_, list) = search_for(&world, "", 10).await;
    let found = tokens(&list);
    assert_eq!(found.len(), 2);
    assert_eq!(found[0], found[1]);
}

#[tokio::test]
async fn both_bounds_are_exclusive() {
    let world = quiet();
    let at = world.now() - TimeDelta::seconds(60);
    world.inject(&scenario(Scenario::TaintedRecord, at));
    let text = |ms: i64| (at + TimeDelta::milliseconds(ms)).format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
    for (after, before, count) in [(0, 1, 0), (-1, 0, 0), (-1, 1, 1)] {
        let filter = format!("meta.created gt {} and meta.created lt \"{}\"", text(after), text(before));
        let (status, list) = search_for(&world, &filter, 10).await;
        assert_eq!((status, tokens(&list).len()), (StatusCode::OK, count), "{filter}");
    }
}

#[tokio::test]
async fn tainted_is_said_only_of_a_verified_answer_that_holds_the_record() {
    let world = quiet();
    world.inject(&scenario(Scenario::TaintedRecord, world.now()));
    world.inject(&scenario(Scenario::PasswordSpray, world.now()));
    assert_eq!(world.truth().tainted[&SYSTEM], 1);
    for (filter, tainted) in [
        ("verify eq true", true),
        ("type eq changeUserPassword and verify eq true", true),
        ("", false),
        ("type co Authenticate and verify eq true", false),
    ] {
        let (_, list) = search_for(&world, filter, 100).await;
        assert_eq!(list.get("tainted").is_some(), tainted, "{filter}");
        assert!(!tokens(&list).is_empty());
    }
}

#[tokio::test]
async fn the_grammar_is_the_documented_one() {
    let world = with_traffic();
    for good in [
        "type eq indirectP* and meta.created gt 2018-05-21T12:00:00Z and verify eq true",
        "type sw \"primary\" AND status eq RESPONSE_FAILURE",
        "meta.created lt 2030-05-21T12:00:00.123+0200",
        "resourceUris eq https://scim.example.com/Users/123",
    ] {
        assert_eq!(search_for(&world, good, 5).await.0, StatusCode::OK, "{good}");
    }
    for bad in [
        "type eq a or type eq b",
        "meta.created ge 2018-05-21T12:00:00Z",
        "meta.created gt yesterday",
        "status co RESPONSE",
        "type eq",
        "type eq a and",
        "(type eq a)",
        "verify eq false",
    ] {
        let (status, error) = search_for(&world, bad, 5).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{bad}");
        assert_eq!((&error["status"], &error["scimType"]), (&json!("400"), &json!("invalidFilter")));
    }
    let (_, failed) = search_for(&world, "type co Authenticate and status eq RESPONSE_FAILURE", 10_000).await;
    let truth = world.truth();
    let expected: u64 =
        truth.logins.iter().filter(|((s, _, o), _)| (*s, *o) == (SYSTEM, Outcome::Failure)).map(|(_, n)| n).sum();
    assert_eq!(tokens(&failed).len() as u64, expected);
}

#[tokio::test]
async fn paging_and_sorting_are_refused_and_count_is_kept() {
    let world = with_traffic();
    let token = log_in(&world).await;
    let schemas = json!(["urn:ietf:params:scim:api:messages:2.0:SearchRequest"]);
    let (_, list) = search_with(&world, &token, &json!({"schemas": schemas, "count": 7})).await;
    assert_eq!(tokens(&list).len(), 7);
    let (_, list) = search_with(&world, &token, &json!({"schemas": schemas})).await;
    assert_eq!(tokens(&list).len(), COUNT_DEFAULT);
    let (status, _) = search_with(&world, &token, &json!({"schemas": schemas, "startIndex": 1})).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(search_with(&world, "Bearer no", &json!({"schemas": schemas})).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(call(&world, get(SEARCH, &[])).await.status(), StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn tokens_end_every_so_many_reads_where_that_is_switched_on() {
    let world = quiet();
    let mut faults = world.faults();
    faults.set("activid:expire_every=3").unwrap();
    world.set_faults(faults);
    let token = log_in(&world).await;
    let ask = json!({"schemas": ["urn:ietf:params:scim:api:messages:2.0:SearchRequest"]});
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(search_with(&world, &token, &ask).await.0.as_u16());
    }
    assert_eq!(statuses, [200, 200, 401, 401]);
}
