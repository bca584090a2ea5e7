use std::io::Read;
use std::time::Duration;

use flate2::read::MultiGzDecoder;

use super::super::world::testing::{body, bytes, call, get, quiet, request, with_traffic};
use super::super::{Injection, ScenarioCall, World};
use super::*;

const TOKEN: &str = "/auth/realms/eventlog/protocol/openid-connect/token";
const SINGLE: &str = "/api/cal/v1/downloads?subscriptionName=impressions";
const PARTS: &str = "/api/cal/v1/downloads/bidevents";

async fn ask_token(world: &World, key: &str) -> (StatusCode, Value) {
    let headers = [("authorization", &*format!("Basic {key}")), ("content-type", "application/x-www-form-urlencoded")];
    body(call(world, request("POST", TOKEN, &headers, "grant_type=client_credentials")).await).await
}

async fn log_in(world: &World) -> String {
    let (status, answer) = ask_token(world, CLIENT_KEY).await;
    assert_eq!(status, StatusCode::OK);
    format!("Bearer {}", answer["access_token"].as_str().unwrap())
}

async fn list(world: &World, token: &str, path: &str) -> Vec<Value> {
    let (status, mut answer) = body(call(world, get(path, &[("authorization", token)])).await).await;
    assert_eq!(status, StatusCode::OK);
    answer["availableDownloads"].as_array_mut().map(std::mem::take).unwrap()
}

/// The records of a file, headings aside.
async fn download(world: &World, token: &str, listed: &Value) -> Vec<Vec<String>> {
    let url = listed["downloadURL"].as_str().unwrap();
    let path = url.strip_prefix("http://sim.example:1234").unwrap();
    let packed = bytes(call(world, get(path, &[("authorization", token)])).await).await;
    let mut text = String::new();
    MultiGzDecoder::new(&packed[..]).read_to_string(&mut text).unwrap();
    // enough of CSV for what is sent here
    let mut records = vec![vec![String::new()]];
    let mut quoted = false;
    for letter in text.chars() {
        let record = records.last_mut().unwrap();
        match letter {
            '"' => quoted = !quoted,
            ',' if !quoted => record.push(String::new()),
            '\n' if !quoted => records.push(vec![String::new()]),
            '\r' => {}
            _ => record.last_mut().unwrap().push(letter),
        }
    }
    records.pop();
    assert_eq!(records.remove(0).join(","), COLUMNS);
    assert!(records.iter().all(|record| record.len() == 23));
    records
}

#[tokio::test]
async fn all_rows_of_all_files_are_the_truth() {
    let world = with_traffic();
    let token = log_in(&world).await;
    let mut found: BTreeMap<(&str, String), u64> = BTreeMap::new();
    for single in list(&world, &token, SINGLE).await {
        for record in download(&world, &token, &single).await {
            *found.entry(("impressions", record[18].clone())).or_default() += 1;
        }
    }
    for hour in list(&world, &token, PARTS).await {
        for part in hour["parts"].as_array().unwrap() {
            for record in download(&world, &token, part).await {
                *found.entry(("bid_events", record[18].clone())).or_default() += 1;
            }
        }
    }
    assert!(list(&world, &token, "/api/cal/v1/downloads?subscriptionName=bid%20events").await.is_empty());
    let truth: BTreeMap<(&str, String), u64> = found
        .keys()
        .map(|(category, action)| {
            let key = (SYSTEM, (*category).to_owned(), action.clone(), Outcome::Unknown);
            ((*category, action.clone()), world.truth().events[&key])
        })
        .collect();
    assert_eq!(found, truth);
    assert_eq!(found.values().sum::<u64>(), world.truth().total(SYSTEM));
    assert!(found.len() == 2 && found.values().all(|rows| *rows > 20), "{found:?}");
}

#[tokio::test]
async fn a_file_is_new_then_downloaded_then_updated_with_old_and_new_rows() {
    let world = quiet();
    let token = log_in(&world).await;
    let update = Injection::Scenario(ScenarioCall {
        name: Scenario::UpdatedFile,
        system: None,
        count: Some(5),
        at: None,
        seconds: 0,
    });
    world.inject(&update);
    assert_eq!(list(&world, &token, SINGLE).await[0]["downloadStatus"], "new");
    world.inject(&update);
    let listed = list(&world, &token, SINGLE).await;
    assert_eq!(listed[0]["downloadStatus"], "new");
    let old = download(&world, &token, &listed[0]).await;
    assert_eq!(old.len(), 10);
    assert_eq!(list(&world, &token, SINGLE).await[0]["downloadStatus"], "downloaded");
    world.inject(&update);
    let listed = list(&world, &token, SINGLE).await;
    assert_eq!(listed[0]["downloadStatus"], "updated");
    let new = download(&world, &token, &listed[0]).await;
    assert_eq!(new.len(), 15);
    assert!(old.iter().all(|row| new.contains(row)));
}

#[tokio::test(start_paused = true)]
async fn a_token_ends_with_its_own_exp_even_where_expires_in_says_more() {
    let world = quiet();
    let mut faults = world.faults();
    faults.set("index_exchange:token_seconds=60").unwrap();
    world.set_faults(faults);
    let (_, answer) = ask_token(&world, CLIENT_KEY).await;
    assert_eq!((&answer["expires_in"], &answer["token_type"]), (&json!(3600), &json!("bearer")));
    let access = answer["access_token"].as_str().unwrap();
    let claims: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(access.split('.').nth(1).unwrap()).unwrap()).unwrap();
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 60);
    let token = format!("Bearer {access}");
    assert!(list(&world, &token, SINGLE).await.is_empty());
    tokio::time::advance(Duration::from_secs(61)).await;
    assert_eq!(call(&world, get(SINGLE, &[("authorization", &token)])).await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_wrong_key_is_an_invalid_client() {
    let (status, error) = ask_token(&quiet(), "bm86cGU=").await;
    assert_eq!((status, &error["error"]), (StatusCode::UNAUTHORIZED, &json!("invalid_client")));
}

#[tokio::test(start_paused = true)]
async fn files_leave_the_list_after_14_days() {
    let world = with_traffic();
    let token = log_in(&world).await;
    let oldest = list(&world, &token, SINGLE).await.last().unwrap()["hour"].clone();
    tokio::time::advance(Duration::from_hours(14 * 24)).await;
    let token = log_in(&world).await;
    let listed = list(&world, &token, SINGLE).await;
    assert!(listed.len() > 330 && listed.len() <= 14 * 24, "{}", listed.len());
    assert!(listed.iter().all(|file| file["hour"] != oldest));
}

#[tokio::test]
async fn as_single_files_bid_events_are_the_same_rows() {
    let world = with_traffic();
    let mut faults = world.faults();
    faults.set("index_exchange:single_file_bids").unwrap();
    world.set_faults(faults);
    let token = log_in(&world).await;
    assert!(list(&world, &token, PARTS).await.is_empty());
    let mut rows = 0;
    for single in list(&world, &token, "/api/cal/v1/downloads?subscriptionName=bid%20events").await {
        assert_eq!(single["downloadStatus"], "new");
        rows += download(&world, &token, &single).await.len() as u64;
    }
    let key = (SYSTEM, "bid_events".to_owned(), "bid".to_owned(), Outcome::Unknown);
    assert_eq!(rows, world.truth().events[&key]);
}
