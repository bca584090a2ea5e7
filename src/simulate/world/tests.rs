use super::testing::{body, bytes, call, get, quiet, request, with_fault, with_traffic};
use super::*;
use crate::event::{Outcome, Principal};
use crate::simulate::credentials::LOSANT_API_TOKEN;
use crate::simulate::{PlacedBy, SERVICES, service};

const LOSANT: &str = "/instance/575ec7417ae143cd83dc4a96/audit-logs?perPage=1000&sortDirection=asc";

fn system(name: &str) -> System {
    service(name).unwrap().system
}

async fn losant(world: &World) -> Response {
    let token = format!("Bearer {LOSANT_API_TOKEN}");
    call(world, get(LOSANT, &[("authorization", &token)])).await
}

async fn post(world: &World, path: &str, what: Value) -> (StatusCode, Value) {
    body(call(world, request("POST", path, &[], what.to_string())).await).await
}

fn scenario(name: &str, more: &Value) -> Injection {
    let mut call = json!({ "name": name });
    for (key, value) in more.as_object().unwrap() {
        call[key] = value.clone();
    }
    serde_json::from_value(json!({ "scenario": call })).unwrap()
}

#[tokio::test(start_paused = true)]
async fn requests_do_not_change_what_happens() {
    let (watched, alone) = (with_traffic(), with_traffic());
    for _ in 0..50 {
        tokio::time::advance(Duration::from_secs(7)).await;
        losant(&watched).await;
        watched.truth();
    }
    assert_eq!(body(losant(&watched).await).await, body(losant(&alone).await).await);
    assert_eq!(watched.truth(), alone.truth());
    for Simulated { system, .. } in SERVICES {
        assert!(alone.truth().total(*system) > 100, "{system}");
    }
}

#[tokio::test(start_paused = true)]
async fn truth_never_decreases_and_grows_in_every_service() {
    let world = with_traffic();
    let mut before = world.truth();
    let first = before.clone();
    for _ in 0..60 {
        tokio::time::advance(Duration::from_mins(2)).await;
        let now = world.truth();
        assert!(before.events.iter().all(|(key, count)| now.events[key] >= *count));
        before = now;
    }
    for Simulated { system, .. } in SERVICES {
        assert!(before.total(*system) > first.total(*system), "{system}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_world_that_forgets_does_not_grow_and_its_truth_is_still_of_everything() {
    let (forgets, remembers) = (with_traffic(), with_traffic());
    forgets.forget_after(Duration::from_hours(3));
    let remembered = |world: &World| {
        let mut inner = world.lock();
        let of = |host: &mut Host| host.service.events().map_or(0, |events| events.len()) + host.seen.len();
        inner.hosts.iter_mut().map(of).sum::<usize>()
    };
    let mut after_a_day = 0;
    for hour in 0..72 {
        tokio::time::advance(Duration::from_hours(1)).await;
        losant(&forgets).await;
        assert_eq!(forgets.truth(), remembers.truth());
        if hour == 24 {
            after_a_day = remembered(&forgets);
        }
    }
    assert!(remembered(&forgets) < after_a_day * 2, "{} of {after_a_day}", remembered(&forgets));
    assert!(remembered(&remembers) > remembered(&forgets) * 10);
}

#[tokio::test]
async fn the_truth_of_two_halves_is_the_truth() {
    let world = with_traffic();
    let cut = Some(world.now() - TimeDelta::hours(1));
    let older = world.truth_of(&TruthOf { to: cut, ..TruthOf::default() });
    let newer = world.truth_of(&TruthOf { from: cut, ..TruthOf::default() });
    for Simulated { system, .. } in SERVICES {
        assert!(older.total(*system) > 0, "{system}");
        assert_eq!(older.total(*system) + newer.total(*system), world.truth().total(*system), "{system}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_got_another_time_is_placed_by_either_or_both_if_so_asked() {
    let world = with_fault("losant:redated=0.5");
    for _ in 0..30 {
        tokio::time::advance(Duration::from_mins(1)).await;
        world.truth();
    }
    let (from, to) = (Some(world.now() - TimeDelta::minutes(20)), Some(world.now() - TimeDelta::minutes(15)));
    let total = |placed_by, system: System| {
        world.truth_of(&TruthOf { from, to, placed_by, ..TruthOf::default() }).total(system)
    };
    for Simulated { system, .. } in SERVICES {
        let [last, either, both] =
            [PlacedBy::LastTime, PlacedBy::EitherTime, PlacedBy::BothTimes].map(|placed_by| total(placed_by, *system));
        if system.as_str() == "losant" {
            assert!(both < last && last < either, "{both} {last} {either}");
        } else {
            assert!(both == last && last == either, "{system}: {both} {last} {either}");
        }
    }
}

#[tokio::test]
async fn a_quiet_world_holds_what_is_injected_and_nothing_else() {
    let world = quiet();
    assert_eq!(world.truth(), Truth::default());
    for (name, more, of, events) in [
        ("password_spray", json!({}), "activid", 41),
        ("deletion_burst", json!({"system": "informatica", "count": 3}), "informatica", 3),
        ("deletion_burst", json!({}), "losant", 25),
        ("privilege_escalation", json!({"at": world.now() - TimeDelta::minutes(1)}), "informatica", 3),
        ("category_flood", json!({"count": 70}), "losant", 70),
        ("late_events", json!({"system": "canvas"}), "canvas", 5),
        ("updated_file", json!({"count": 9}), "index_exchange", 18),
    ] {
        let total = || world.truth().total(system(of));
        let before = total();
        assert_eq!(world.inject(&scenario(name, &more)), events, "{name}");
        assert_eq!(total() - before, events as u64, "{name}");
    }
    let truth = world.truth();
    let key = (system("activid"), Principal::User, Outcome::Failure);
    assert_eq!(truth.logins[&key], 40);
    assert_eq!(truth.events.keys().filter(|(_, category, ..)| category.starts_with("novelty")).count(), 70);
}

#[tokio::test]
async fn the_simulators_own_routes_take_json_and_say_what_is_wrong_with_it() {
    let world = quiet();
    let (status, answer) = post(&world, "/simulator/inject", json!("tainted_record")).await;
    assert_eq!((status, answer), (StatusCode::OK, json!({"events": 1})));
    let many = json!([{"scenario": {"name": "new_category"}}, "deletion_burst"]);
    let logs = SERVICES.iter().filter(|service| !service.is_feed).count();
    assert_eq!(post(&world, "/simulator/inject", many).await.1, json!({"events": logs + 25}));
    let (status, answer) = post(&world, "/simulator/inject", json!("earthquake")).await;
    assert!(status == StatusCode::BAD_REQUEST && answer["error"].as_str().unwrap().contains("earthquake"));
    let (status, answer) = post(&world, "/simulator/faults", json!({"losant": {"gravity": 1}})).await;
    assert!(status == StatusCode::BAD_REQUEST && answer["error"].as_str().unwrap().contains("gravity"));
    let (_, answer) = post(&world, "/simulator/faults", json!({"losant": {"error": 1}})).await;
    assert_eq!(answer["losant"]["error"], 1.0);
    assert_eq!(losant(&world).await.status(), StatusCode::INTERNAL_SERVER_ERROR);
    post(&world, "/simulator/faults", json!({"losant": null})).await;
    assert_eq!(losant(&world).await.status(), StatusCode::OK);
    let (_, truth) = body(call(&world, get("/simulator/truth", &[])).await).await;
    assert_eq!((&truth["totals"]["losant"], &truth["tainted"]["activid"]), (&json!(26), &json!(1)));
    let (_, requests) = body(call(&world, get("/simulator/requests", &[])).await).await;
    assert_eq!((&requests["losant"]["count"], &requests["canvas"]["count"]), (&json!(2), &json!(0)));
    assert_eq!(requests["losant"]["by_status"], json!({"200": 1, "500": 1}));
    let bad = call(&world, get("/simulator/truth?from=soon", &[])).await;
    assert_eq!(bad.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_service_that_is_down_comes_back() {
    let world = quiet();
    world.inject(&scenario("service_down", &json!({"system": "losant"})));
    assert_eq!(losant(&world).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    world.inject(&scenario("service_up", &json!({})));
    assert_eq!(losant(&world).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn each_fault_of_an_answer_is_what_it_says() {
    let throttled = losant(&with_fault("losant:throttle,retry_after=9")).await;
    assert_eq!(throttled.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(throttled.headers()["retry-after"], "9");
    assert_eq!(losant(&with_fault("losant:unauthorized")).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(losant(&with_fault("losant:forbidden")).await.status(), StatusCode::FORBIDDEN);
    let redirect = losant(&with_fault("losant:redirect")).await;
    assert!(redirect.status().is_redirection());
    assert!(redirect.headers()["location"].to_str().unwrap().starts_with("https://elsewhere.invalid/"));
    let html = losant(&with_fault("losant:html")).await;
    assert!(html.status() == StatusCode::OK && bytes(html).await.starts_with(b"<!DOCTYPE html>"));
    let truncated = bytes(losant(&with_fault("losant:truncated")).await).await;
    assert!(serde_json::from_slice::<Value>(&truncated).unwrap_err().is_eof());
    assert!(bytes(losant(&with_fault("losant:deep")).await).await.starts_with(b"[[[[[["));
    let (_, good) = body(losant(&with_traffic()).await).await;
    let (_, spoilt) = body(losant(&with_fault("losant:malformed")).await).await;
    let [good, spoilt] = [good, spoilt].map(|list| list["items"].as_array().unwrap().len());
    assert_eq!(spoilt, good + 1);
    let garbled = bytes(losant(&with_fault("losant:garbled")).await).await;
    assert!(garbled.windows(8).any(|bytes| bytes == b"linkNote"));
    assert!(bytes(losant(&with_fault("losant:marked")).await).await.starts_with(b"\xEF\xBB\xBF{"));
    let (_, strange) = body(losant(&with_fault("losant:strange")).await).await;
    assert_eq!(strange["items"].as_array().map(Vec::len), Some(1));
    let (_, odd) = body(losant(&with_fault("losant:odd_totals")).await).await;
    assert!(odd["totalCount"].as_u64().is_none() && !odd["totalCount"].is_null());
    let nobody = with_fault("losant:null_lists");
    let token = format!("Bearer {LOSANT_API_TOKEN}");
    let future = get(&format!("{LOSANT}&start=9999999999999"), &[("authorization", &token)]);
    assert_eq!(body(call(&nobody, future).await).await.1["items"], Value::Null);
    let (_, doubled) = body(losant(&with_fault("losant:duplicates=1")).await).await;
    assert_eq!(doubled["totalCount"], 2 * good);
    let (_, capped) = body(losant(&with_fault("losant:count_cap=3")).await).await;
    assert_eq!((&capped["perPage"], &capped["count"]), (&json!(3), &json!(3)));
}

#[tokio::test]
async fn a_bomb_is_small_until_it_is_unpacked() {
    let response = losant(&with_fault("losant:bomb")).await;
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let packed = bytes(response).await;
    assert!(packed.len() < 1 << 20, "{}", packed.len());
    let mut first = vec![0; 8 << 20];
    std::io::Read::read_exact(&mut flate2::read::GzDecoder::new(&packed[..]), &mut first).unwrap();
    assert!(first.iter().all(|byte| *byte == b' '));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_hangs_is_never_answered_and_one_that_drips_is_slow() {
    let hanging = with_fault("losant:hang");
    assert!(tokio::time::timeout(Duration::from_hours(1), losant(&hanging)).await.is_err());
    assert_eq!(hanging.requests(system("losant"))[0].status, 0);
    let dripping = losant(&with_fault("losant:drip")).await;
    assert_eq!(dripping.status(), StatusCode::OK);
    assert!(tokio::time::timeout(Duration::from_mins(1), bytes(dripping)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_skewed_clock_shows_in_the_date_the_events_and_the_bounds() {
    let world = with_fault("losant:clock_skew_seconds=3600");
    let (_, plain) = body(losant(&with_traffic()).await).await;
    let response = losant(&world).await;
    assert_eq!(response.headers()["date"], "Wed, 04 Mar 2026 13:00:00 GMT");
    let (_, skewed) = body(response).await;
    let [was, is] = [&plain, &skewed]
        .map(|list| list["items"][0]["creationDate"].as_str().unwrap().parse::<DateTime<Utc>>().unwrap());
    assert_eq!(is - was, TimeDelta::hours(1));
    let token = format!("Bearer {LOSANT_API_TOKEN}");
    let ms = is.timestamp_millis();
    let path = format!("{LOSANT}&start={ms}&end={ms}");
    let (_, found) = body(call(&world, get(&path, &[("authorization", &token)])).await).await;
    assert_eq!(found["items"][0]["id"], skewed["items"][0]["id"]);
}

#[tokio::test]
async fn every_service_is_on_one_origin_and_refuses_strangers() {
    let world = with_traffic();
    let json = ("content-type", "application/json");
    for (method, path) in [
        ("GET", "/api/v1/audit/authentication/accounts/1"),
        ("GET", "/saas/public/core/v3/securityLog"),
        ("POST", "/scim/ACME/v2/Event/.search"),
        ("GET", LOSANT),
        ("GET", "/api/cal/v1/downloads"),
        ("GET", "/api/cal/v1/downloads/bidevents"),
        ("GET", "/api/cal/v1/files/1"),
    ] {
        let response = call(&world, request(method, path, &[json], "{}")).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{path}");
    }
}

#[tokio::test]
async fn a_service_makes_each_scenario_that_it_has_for_itself_alone_and_refuses_the_others() {
    let all = [
        Scenario::PasswordSpray,
        Scenario::DeletionBurst,
        Scenario::PrivilegeEscalation,
        Scenario::TaintedRecord,
        Scenario::NewCategory,
        Scenario::CategoryFlood,
        Scenario::LateEvents,
        Scenario::UpdatedFile,
    ];
    for name in all {
        let mut players = 0;
        for Simulated { system, .. } in SERVICES {
            let world = quiet();
            // long enough ago that all of it can be read
            let at = Some(world.now() - TimeDelta::minutes(1));
            let call = ScenarioCall { name, system: Some(*system), count: Some(2), at, seconds: 0 };
            let path = "/simulator/inject";
            let (status, answer) = post(&world, path, json!(Injection::Scenario(call))).await;
            let truth = world.truth();
            assert_eq!(truth.events.values().sum::<u64>(), truth.total(*system), "{name} of {system}");
            if status == StatusCode::OK {
                players += 1;
                assert!(truth.total(*system) > 0, "{name} of {system}");
                assert_eq!(answer["events"], truth.total(*system), "{name} of {system}");
            } else {
                assert_eq!((status, truth.total(*system)), (StatusCode::BAD_REQUEST, 0), "{name} of {system}");
                let error = answer["error"].as_str().unwrap();
                assert!(error.contains(&format!("{system} has no scenario {name}: expected ")), "{error}");
            }
        }
        assert!(players > 0, "nobody has {name}");
        // some have it also where none is named
        assert!(quiet().inject(&scenario(&name.to_string(), &json!({"count": 2}))) > 0, "{name}");
    }
}

#[tokio::test]
async fn of_several_injections_of_which_one_is_refused_none_happens() {
    let world = quiet();
    let both = json!(["deletion_burst", {"scenario": {"name": "password_spray", "system": "canvas"}}]);
    let (status, answer) = post(&world, "/simulator/inject", both).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(answer["error"], "canvas has no scenario password_spray: expected activid");
    assert_eq!(world.truth(), Truth::default());
}
