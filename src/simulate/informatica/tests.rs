use std::collections::BTreeSet;
use std::time::Duration;

use super::super::world::testing::{body, call, get, quiet, request, with_traffic};
use super::super::{Injection, TruthOf, World};
use super::*;

const LOG: &str = "/saas/public/core/v3/securityLog";

async fn log_in_as(world: &World, username: &str, password: &str) -> (StatusCode, Value) {
    let given = json!({"username": username, "password": password}).to_string();
    let headers = [("content-type", "application/json")];
    body(call(world, request("POST", "/saas/public/core/v3/login", &headers, given)).await).await
}

async fn log_in(world: &World) -> String {
    let (status, answer) = log_in_as(world, USERNAME, PASSWORD).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(answer["products"][0]["baseApiUrl"], "http://sim.example:1234/saas");
    answer["userInfo"]["sessionId"].as_str().unwrap().to_owned()
}

async fn read(world: &World, session: &str, pairs: &[(&str, &str)]) -> (StatusCode, Value) {
    let query: String = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    body(call(world, get(&format!("{LOG}?{query}"), &[("INFA-SESSION-ID", session)])).await).await
}

fn with_faults(world: &World, flags: &str) {
    let mut faults = world.faults();
    faults.set(flags).unwrap();
    world.set_faults(faults);
}

const DAY: &str = "entryTime>=\"2026-03-04T00:00:00.000Z\";entryTime<=\"2026-03-04T23:59:59.999Z\"";

#[tokio::test]
async fn skip_and_limit_lead_through_every_entry_once_in_no_order() {
    let world = with_traffic();
    let session = log_in(&world).await;
    let (mut ids, mut times, mut skip) = (BTreeSet::new(), Vec::new(), 0_usize);
    loop {
        let (status, page) = read(&world, &session, &[("q", DAY), ("limit", "100"), ("skip", &skip.to_string())]).await;
        assert_eq!(status, StatusCode::OK);
        let entries = page["entries"].as_array().unwrap();
        for entry in entries {
            assert!(ids.insert(entry["id"].as_str().unwrap().to_owned()));
            times.push(entry["entryTime"].as_str().unwrap().to_owned());
        }
        skip += entries.len();
        if entries.len() < 100 {
            break;
        }
    }
    assert_eq!(ids.len() as u64, world.truth().total(SYSTEM));
    assert!(ids.len() > 200 && !times.is_sorted() && !times.iter().rev().is_sorted());
    assert!(times.iter().all(|at| at[19..] == *".000Z"));
}

#[tokio::test]
async fn a_day_and_two_hundred_entries_by_default() {
    let world = with_traffic();
    let session = log_in(&world).await;
    assert_eq!(read(&world, &session, &[]).await.1["entries"].as_array().unwrap().len(), 200);
}

#[tokio::test]
async fn what_the_documentation_does_not_allow_is_refused() {
    let world = quiet();
    let session = log_in(&world).await;
    let fifteen_days = "entryTime>=\"2026-02-18T00:00:00Z\";entryTime<=\"2026-03-04T00:00:01Z\"";
    let fourteen_days = "entryTime>=\"2026-02-18T00:00:00Z\";entryTime<=\"2026-03-04T00:00:00Z\"";
    for (pairs, status) in [
        (vec![("limit", "99")], 400),
        (vec![("limit", "1001")], 400),
        (vec![("limit", "100")], 200),
        (vec![("skip", "0")], 400),
        (vec![("q", "actor=='admin'")], 400),
        (vec![("q", "entryTime<=\"2026-03-04T00:00:00Z\"")], 400),
        (vec![("q", "entryTime<\"2026-03-04T00:00:00Z\"")], 400),
        (vec![("q", fifteen_days)], 400),
        (vec![("q", fourteen_days), ("skip", "0")], 200),
        (vec![("q", "entryTime>=2026-03-04T00:00:00Z")], 400),
        (vec![("q", "entryTime>=\"2026-03-04 00:00:00Z\"")], 400),
        (vec![("q", "entryTime>=\"2026-03-04T00:00:00+00:00\"")], 400),
        (vec![("q", "entryTime>=\"2026-03-04T00:00:00.000+0000\"")], 200),
        (vec![("q", "entryTime=>\"2026-03-04T00:00:00Z\";actor!='x;y';actionCategory==\"User group\"")], 200),
        (vec![("q", "entryTime>=\"2026-03-04T00:00:00Z\" AND actor=='x'")], 400),
        (vec![("q", "entryTime>=\"2026-03-04T00:00:00Z\";mood=='x'")], 400),
    ] {
        let (got, answer) = read(&world, &session, &pairs).await;
        assert_eq!(got.as_u16(), status, "{pairs:?}: {answer}");
    }
}

#[tokio::test]
async fn both_bounds_are_inclusive_and_filters_are_exact() {
    let world = quiet();
    let session = log_in(&world).await;
    let entry = json!({"system": "informatica", "kind": "User group", "verb": "UPDATE", "actor": "Eve",
        "at": "2026-03-04T11:00:00Z", "category": "user_group", "action": "update", "outcome": "success"});
    world.inject(&Injection::Event(serde_json::from_value(entry).unwrap()));
    let exact = "entryTime>=\"2026-03-04T11:00:00Z\";entryTime<=\"2026-03-04T11:00:00Z\"";
    for (more, count) in [
        ("", 1),
        (";actor=='Eve'", 1),
        (";actor=='eve'", 0),
        (";actor!='Eve'", 0),
        (";actionCategory==\"User group\"", 1),
        (";entryTime!=\"2026-03-04T11:00:00Z\"", 0),
        (";entryTime>\"2026-03-04T10:59:59Z\"", 1),
    ] {
        let (status, page) = read(&world, &session, &[("q", &format!("{exact}{more}"))]).await;
        assert_eq!((status, page["entries"].as_array().map(Vec::len)), (StatusCode::OK, Some(count)), "{more}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_ends_when_it_is_not_used_for_half_an_hour() {
    let world = quiet();
    let session = log_in(&world).await;
    for (minutes, status) in [(29, 200), (29, 200), (31, 401)] {
        tokio::time::advance(Duration::from_secs(60 * minutes)).await;
        assert_eq!(read(&world, &session, &[]).await.0.as_u16(), status);
    }
    with_faults(&world, "informatica:jwt_sessions");
    let session = log_in(&world).await;
    assert!(session.len() > 1500);
    for (minutes, status) in [(29, 200), (2, 401)] {
        tokio::time::advance(Duration::from_secs(60 * minutes)).await;
        assert_eq!(read(&world, &session, &[]).await.0.as_u16(), status);
    }
}

#[tokio::test]
async fn an_ended_session_is_refused_in_one_of_three_ways() {
    let world = quiet();
    assert_eq!(read(&world, "no", &[]).await.0, StatusCode::UNAUTHORIZED);
    with_faults(&world, "informatica:session_end=auth01");
    let (status, error) = read(&world, "no", &[]).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::FORBIDDEN, &json!("AUTH_01")));
    with_faults(&world, "informatica:session_end=html");
    let page = call(&world, get(LOG, &[])).await;
    assert_eq!(
        (page.status(), page.headers()["content-type"].as_bytes()),
        (StatusCode::OK, &b"text/html; charset=utf-8"[..])
    );
}

#[tokio::test]
async fn errors_have_one_of_three_shapes() {
    let world = quiet();
    let (status, error) = log_in_as(&world, USERNAME, "no").await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::UNAUTHORIZED, &json!("IDS_085")));
    with_faults(&world, "informatica:error_shape=v2");
    let (status, error) = log_in_as(&world, USERNAME, "no").await;
    assert_eq!((status, &error["code"], &error["@type"]), (StatusCode::FORBIDDEN, &json!("UI_10000"), &json!("error")));
    with_faults(&world, "informatica:error_shape=problem");
    assert_eq!(log_in_as(&world, USERNAME, "no").await.1["title"], "Unauthorized");
    let (status, error) = body(call(&world, get(&format!("{LOG}s"), &[])).await).await;
    assert_eq!((status, &error["detail"]), (StatusCode::NOT_FOUND, &json!("No static resource core/v3/securityLogs.")));
}

#[tokio::test]
async fn the_readers_own_logins_and_logouts_are_entries() {
    let world = quiet();
    let first = log_in(&world).await;
    let second = log_in(&world).await;
    let headers = [("INFA-SESSION-ID", first.as_str())];
    let gone = call(&world, request("POST", "/saas/public/core/v3/logout", &headers, "")).await;
    assert_eq!(gone.status(), StatusCode::OK);
    assert_eq!(read(&world, &first, &[]).await.0, StatusCode::UNAUTHORIZED);
    let (_, page) = read(&world, &second, &[]).await;
    let mut events: Vec<&str> =
        page["entries"].as_array().unwrap().iter().map(|entry| entry["actionEvent"].as_str().unwrap()).collect();
    events.sort_unstable();
    assert_eq!(events, ["LOGOUT", "USER_LOGIN", "USER_LOGIN"]);
    let truth = world.truth();
    assert_eq!(truth.logins[&(SYSTEM, Principal::User, Outcome::Success)], 2);
    assert_eq!(truth.logouts[&SYSTEM], 1);
    let of = TruthOf { ignored_actors: vec![USERNAME.to_uppercase()], ..TruthOf::default() };
    assert_eq!(world.truth_of(&of).total(SYSTEM), 0);
}
