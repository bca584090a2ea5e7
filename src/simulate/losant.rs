//! Losant, instance audit logs: `GET /instance/{id}/audit-logs` and `/audit-logs/{log id}`.
//!
//! Promises: pages from 0, `perPage` 100 unless asked (at most 1,000), newest first unless asked,
//! `totalCount` of what the filters leave, bounds in epoch milliseconds, both inclusive (the
//! documentation does not say; the fault `exclusive_bounds` is the other reading), the fields of
//! the public JSON schema with any of the optional ones missing, and `_type` and `_links` besides.
//!
//! Leaves to others: everything that mutates.

use std::collections::BTreeMap;

use axum::Router;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::chance::{Cell, Dice, times_listed};
use super::faults::TotalCount;
use super::message::{Ask, Refusal, Reply};
use super::truth::{Expect, Placed, Timeline};
use super::world::{Call, EventCall, Inner, World};
use crate::event::{Class, Outcome, System};

/// The one instance there is.
pub const INSTANCE_ID: &str = "575ec7417ae143cd83dc4a96";

/// The token that is let in: a JWT (of the scope `instanceAuditLogs.get`, until the year 2100), as
/// the service's own are.
pub const API_TOKEN: &str = concat!(
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.",
    "eyJzdWIiOiI1NzVlZDcwYzdhZTE0M2NkODNkYzRhYTkiLCJzdWJ0eXBlIjoiaW5zdGFuY2VBcGlUb2tlbiIsInNjb3BlIjpbImluc3Rh",
    "bmNlQXVkaXRMb2dzLmdldCJdLCJpYXQiOjE3MDQwNjcyMDAsImV4cCI6NDEwMjQ0NDgwMCwiaXNzIjoiYXBpLmxvc2FudC5jb20ifQ.",
    "c2ltdWxhdGVkLW5vdC1zaWduZWQ"
);

const PER_PAGE: i64 = 100;
const PER_PAGE_MAX: usize = 1000;
/// The most that a capped `totalCount` says.
const TOTAL_MAX: usize = 150;

/// Target types: on the wire, as category, as `requestResource`, and as an actor would name one.
const TARGETS: [(&str, &str, &str, &str); 5] = [
    ("Organization", "organization", "instanceOrg", "Fleet West"),
    ("ApiToken", "api_token", "instanceApiToken", "ingest token"),
    ("User", "user", "instanceMember", "kim@example.com"),
    ("InstanceCustomNode", "instance_custom_node", "instanceCustomNode", "Modbus Bridge"),
    ("NotificationRule", "notification_rule", "instanceNotificationRule", "Usage above 80 %"),
];

/// Actions on the wire, as counted, and how often of 100.
const ACTIONS: [(&str, &str, u64); 7] = [
    ("patch", "update", 45),
    ("post", "create", 27),
    ("delete", "delete", 15),
    ("put", "update", 4),
    ("resendInvite", "resend_invite", 4),
    ("undelete", "undelete", 3),
    ("generateReport", "generate_report", 2),
];

const ACTORS: [&str; 6] =
    ["ada@example.com", "bo@example.com", "Chen@example.com", "dana@example.com", "eli@example.com", "ci-deploy"];

/// The instance's log.
pub(super) struct Log {
    pub(super) events: Timeline<Item>,
}

/// An item as it is sent, but for its time.
pub(super) struct Item {
    id: String,
    fields: Map<String, Value>,
}

/// What is counted of an item, beside its time.
struct Deed<'a> {
    /// `primaryTargetType` and category; `None` leaves it out.
    target: Option<(&'a str, &'a str)>,
    resource: &'a str,
    target_name: &'a str,
    /// `requestAction` and action; `None` leaves it out.
    action: Option<(&'a str, &'a str)>,
    /// `responseStatus`; `None` leaves it out.
    status: Option<u16>,
    actor: &'a str,
}

pub(super) fn routes(world: &World) -> Router {
    Router::new()
        .route("/instance/{instance}/audit-logs", world.handler(&Method::GET, System::Losant, Call::Read, list))
        .route("/instance/{instance}/audit-logs/{log}", world.handler(&Method::GET, System::Losant, Call::Read, one))
}

pub(super) fn refuse(refusal: Refusal) -> Reply {
    match refusal {
        Refusal::Unauthorized => error(StatusCode::UNAUTHORIZED, "Unauthorized", "Authentication is required"),
        Refusal::Forbidden => error(StatusCode::FORBIDDEN, "Forbidden", "The token lacks the necessary scope"),
        Refusal::Throttled => error(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", "Too many requests"),
        Refusal::Broken => error(StatusCode::INTERNAL_SERVER_ERROR, "InternalServer", "An error occurred"),
        Refusal::Unavailable => error(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "Try again later"),
    }
}

fn error(status: StatusCode, kind: &str, message: &str) -> Reply {
    Reply::json(status, json!({"type": kind, "message": message}))
}

// === reading ===

/// Who may not read, or reads what is not there.
fn barred(ask: &Ask) -> Option<Reply> {
    if ask.bearer() != Some(API_TOKEN) {
        return Some(refuse(Refusal::Unauthorized));
    }
    (ask.segments[1] != INSTANCE_ID).then(|| error(StatusCode::NOT_FOUND, "NotFound", "Instance was not found"))
}

fn list(world: &mut Inner, ask: &Ask) -> Reply {
    if let Some(refusal) = barred(ask) {
        return refusal;
    }
    match listed(world, ask) {
        Ok(collection) => Reply::json(StatusCode::OK, collection),
        Err(message) => error(StatusCode::BAD_REQUEST, "Validation", &message),
    }
}

fn one(world: &mut Inner, ask: &Ask) -> Reply {
    if let Some(refusal) = barred(ask) {
        return refusal;
    }
    let skew = world.skew(System::Losant);
    let mut all = world.losant.events.visible(world.now, DateTime::UNIX_EPOCH, DateTime::<Utc>::MAX_UTC);
    all.find(|event| event.wire.id == ask.segments[3]).map_or_else(
        || error(StatusCode::NOT_FOUND, "NotFound", "Instance audit log was not found"),
        |event| Reply::json(StatusCode::OK, shown(event, skew)),
    )
}

fn listed(world: &Inner, ask: &Ask) -> Result<Value, String> {
    let faults = &world.faults.losant;
    let skew = world.skew(System::Losant);
    let page = number(ask, "page")?.map_or(Ok(0), usize::try_from).map_err(|_| "page must not be negative")?;
    let wanted = number(ask, "perPage")?.unwrap_or(PER_PAGE);
    let wanted = usize::try_from(wanted).ok().filter(|n| *n > 0).ok_or("perPage must be positive")?;
    let cap = if faults.count_cap > 0 { faults.count_cap } else { PER_PAGE_MAX };
    let per_page = wanted.min(cap);
    let field = ask.param("sortField").unwrap_or("creationDate");
    if !["creationDate", "responseStatus", "actorName"].contains(&field) {
        return Err(format!("sortField {field:?} is not one of creationDate, responseStatus, actorName"));
    }
    let direction = ask.param("sortDirection").filter(|d| !d.is_empty()).unwrap_or("desc");
    if !["asc", "desc", "ASC", "DESC"].contains(&direction) {
        return Err(format!("sortDirection {direction:?} is not one of asc, desc"));
    }
    let filter = Filter::of(&ask.query)?;
    let edge = TimeDelta::milliseconds(i64::from(faults.exclusive_bounds));
    let bound = |name: &str| -> Result<Option<DateTime<Utc>>, String> {
        number(ask, name)?
            .map(|ms| DateTime::from_timestamp_millis(ms).ok_or_else(|| format!("{name} is no time")))
            .transpose()
    };
    let mut from = bound("start")?.map_or(DateTime::UNIX_EPOCH, |start| start - skew + edge);
    let mut to = bound("end")?.map_or(DateTime::<Utc>::MAX_UTC, |end| end - skew - edge);
    if faults.ignore_time_filter {
        (from, to) = (DateTime::UNIX_EPOCH, DateTime::<Utc>::MAX_UTC);
    }

    let mut events: Vec<&Placed<Item>> =
        world.losant.events.visible(world.now, from, to).filter(|event| filter.admits(&event.wire)).collect();
    events.sort_by(|a, b| {
        let by_field = match field {
            "responseStatus" => a.wire.number("responseStatus").cmp(&b.wire.number("responseStatus")),
            "actorName" => a.wire.text("actorName").cmp(&b.wire.text("actorName")),
            _ => a.at.cmp(&b.at),
        };
        by_field.then_with(|| a.wire.id.cmp(&b.wire.id))
    });
    if direction.eq_ignore_ascii_case("desc") {
        events.reverse();
    }
    let listed = |event: &Placed<Item>| times_listed(&event.wire.id, faults.duplicates);
    events = events.into_iter().flat_map(|event| std::iter::repeat_n(event, listed(event))).collect();
    let skipped = if faults.looping { 0 } else { page.saturating_mul(per_page) };
    let items: Vec<Value> = events.iter().skip(skipped).take(per_page).map(|event| shown(event, skew)).collect();
    Ok(json!({
        "items": items,
        "count": items.len(),
        "totalCount": match faults.total_count {
            TotalCount::Right => Some(events.len()),
            TotalCount::Capped => Some(events.len().min(TOTAL_MAX)),
            TotalCount::PageLength => Some(items.len()),
            TotalCount::Zero => Some(0),
            TotalCount::Absent => None,
        },
        "perPage": if faults.cap_unsaid { wanted } else { per_page },
        "page": page,
        "sortField": field,
        "sortDirection": direction,
        "instanceId": INSTANCE_ID,
        "_type": "instanceAuditLogs",
        "_links": {"self": {"href": format!("/instance/{INSTANCE_ID}/audit-logs")}},
    }))
}

/// An item as it is sent.
fn shown(event: &Placed<Item>, skew: TimeDelta) -> Value {
    let mut item = event.wire.fields.clone();
    let at = (event.at + skew).to_rfc3339_opts(SecondsFormat::Millis, true);
    item.insert("creationDate".to_owned(), Value::from(at));
    Value::Object(item)
}

/// A whole number of the query; an empty one is none.
fn number(ask: &Ask, name: &str) -> Result<Option<i64>, String> {
    ask.param(name)
        .filter(|text| !text.is_empty())
        .map(|text| text.parse().map_err(|_| format!("{name} {text:?} is not a whole number")))
        .transpose()
}

/// `auditLogFilter[field][n][key]=value`: any of the n, all of its keys, in every field.
struct Filter(BTreeMap<String, BTreeMap<String, BTreeMap<String, String>>>);

impl Filter {
    fn of(query: &[(String, String)]) -> Result<Self, String> {
        let mut fields: BTreeMap<String, BTreeMap<String, BTreeMap<String, String>>> = BTreeMap::new();
        for (name, value) in query {
            let Some(rest) = name.strip_prefix("auditLogFilter[") else { continue };
            let parts: Vec<&str> = rest.trim_end_matches(']').split("][").collect();
            let (field, index, key) = match parts[..] {
                [field @ ("primaryTarget" | "secondaryTarget" | "actor"), index, key @ ("id" | "type" | "name")]
                | [field @ "request", index, key @ ("resource" | "action")] => (field, index, key),
                [field @ "responseCode", index] => (field, index, ""),
                _ => return Err(format!("{name} is no audit log filter")),
            };
            let one = fields.entry(field.to_owned()).or_default().entry(index.to_owned()).or_default();
            one.insert(key.to_owned(), value.clone());
        }
        Ok(Self(fields))
    }

    fn admits(&self, item: &Item) -> bool {
        self.0.iter().all(|(field, choices)| {
            choices.values().any(|keys| {
                keys.iter().all(|(key, value)| {
                    if field == "responseCode" {
                        return item.number("responseStatus").map(|status| status.to_string()).as_ref() == Some(value);
                    }
                    let first = key[..1].to_uppercase();
                    item.text(&format!("{field}{first}{}", &key[1..])) == Some(value)
                })
            })
        })
    }
}

// === impl Item ===

impl Item {
    fn text(&self, name: &str) -> Option<&str> {
        self.fields.get(name).and_then(Value::as_str)
    }

    fn number(&self, name: &str) -> Option<i64> {
        self.fields.get(name).and_then(Value::as_i64)
    }
}

// === impl Log ===

impl Log {
    pub(super) fn redate(&mut self, now: DateTime<Utc>, share: f64) {
        self.events.redate(now, share, |event| &event.id);
    }

    pub(super) fn new() -> Self {
        Self { events: Timeline::new() }
    }

    fn add(&mut self, dice: &mut Dice, deed: &Deed<'_>, at: DateTime<Utc>, visible_at: DateTime<Utc>) {
        let outcome = match deed.status {
            None => Outcome::Unknown,
            Some(status) if status < 400 => Outcome::Success,
            Some(_) => Outcome::Failure,
        };
        let category = deed.target.map_or("unknown", |(_, category)| category);
        let action = deed.action.map_or("unknown", |(_, action)| action);
        self.put(dice, deed, Expect::new(category, action, outcome, Class::Change), at, visible_at);
    }

    fn put(&mut self, dice: &mut Dice, deed: &Deed<'_>, expect: Expect, at: DateTime<Utc>, visible_at: DateTime<Utc>) {
        // an id begins with its second, as theirs do
        let id = format!("{:08x}{}", at.timestamp() & 0xffff_ffff, dice.hex(16));
        let target_id = dice.hex(24);
        let actor_id = Dice::of(0, deed.actor, 0).hex(24);
        let named = !dice.chance(0.03);
        let mut actors = vec![actor_id.clone()];
        actors.extend(named.then(|| deed.actor.to_owned()));
        let by_token = !deed.actor.contains('@');
        let mut path = Map::new();
        path.insert(format!("{}Id", deed.resource), Value::from(target_id.as_str()));
        let mut fields = Map::new();
        let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        set("id", json!(id));
        set("instanceAuditLogId", json!(id));
        set("instanceId", json!(INSTANCE_ID));
        if let Some((kind, _)) = deed.target {
            set("primaryTargetId", json!(target_id));
            set("primaryTargetType", json!(kind));
            set("primaryTargetName", json!(deed.target_name));
        }
        if deed.resource == "instanceOrgInvite" {
            set("secondaryTargetId", json!(dice.hex(24)));
            set("secondaryTargetType", json!("OrgInvite"));
            set("secondaryTargetName", json!("new.member@example.com"));
        }
        set("actorId", json!(actor_id));
        set("actorType", json!(if by_token { "ApiToken" } else { "User" }));
        if named {
            set("actorName", json!(deed.actor));
        }
        set("requestResource", json!(deed.resource));
        if let Some((action, _)) = deed.action {
            set("requestAction", json!(action));
        }
        set("requestQueryParams", json!({}));
        set("requestBody", json!({"name": deed.target_name, "description": "line 1\nline \"2\" \u{e9}"}));
        set("requestPathParams", Value::Object(path));
        set("responseBody", json!({"success": deed.status.is_none_or(|status| status < 400)}));
        if let Some(status) = deed.status {
            set("responseStatus", json!(status));
        }
        set("_type", json!("instanceAuditLog"));
        set("_links", json!({"self": {"href": format!("/instance/{INSTANCE_ID}/audit-logs/{id}")}}));
        self.events.insert(Placed { at, visible_at, actors, expect, tainted: false, wire: Item { id, fields } });
    }
}

// === what happens ===

pub(super) fn traffic(log: &mut Log, cell: &mut Cell) {
    for at in cell.times() {
        let visible_at = cell.visible_at(at);
        ordinary(log, &mut cell.dice, at, visible_at);
    }
    if cell.sometimes(2.0) {
        let start = cell.moment();
        let seconds = |n: i64| start + TimeDelta::seconds(3 * n);
        let times: Vec<_> = (0..25).map(seconds).collect();
        deletion_burst(log, &mut cell.dice, &times, start);
    }
    if cell.sometimes(1.0) {
        let start = cell.moment();
        privilege_escalation(log, &mut cell.dice, start, start);
    }
}

pub(super) fn ordinary(log: &mut Log, dice: &mut Dice, at: DateTime<Utc>, visible_at: DateTime<Utc>) {
    let (kind, category, resource, target_name) = *dice.pick(&TARGETS);
    let mut roll = dice.below(100);
    let (wire_action, action, _) = *ACTIONS
        .iter()
        .find(|(.., share)| {
            let hit = roll < *share;
            roll = roll.saturating_sub(*share);
            hit
        })
        .unwrap_or(&ACTIONS[0]);
    let status = match dice.below(100) {
        0 => None,
        1..4 => Some(400),
        4..6 => Some(403),
        6 => Some(409),
        7 => Some(500),
        8 => Some(304),
        9..20 => Some(201),
        _ => Some(200),
    };
    let deed = Deed {
        target: (!dice.chance(0.02)).then_some((kind, category)),
        resource: if action == "resend_invite" { "instanceOrgInvite" } else { resource },
        target_name,
        action: (!dice.chance(0.01)).then_some((wire_action, action)),
        status,
        actor: dice.pick::<&str>(&ACTORS),
    };
    log.add(dice, &deed, at, visible_at);
}

pub(super) fn deletion_burst(log: &mut Log, dice: &mut Dice, times: &[DateTime<Utc>], now: DateTime<Utc>) -> usize {
    for at in times {
        let deed = Deed {
            target: Some(("Organization", "organization")),
            resource: "instanceOrg",
            target_name: "Fleet West",
            action: Some(("delete", "delete")),
            status: Some(200),
            actor: "eli@example.com",
        };
        log.add(dice, &deed, *at, now.max(*at));
    }
    times.len()
}

pub(super) fn privilege_escalation(log: &mut Log, dice: &mut Dice, at: DateTime<Utc>, now: DateTime<Utc>) -> usize {
    let steps = [
        ("User", "user", "instanceMember", "patch", "update"),
        ("ApiToken", "api_token", "instanceApiToken", "post", "create"),
    ];
    for (number, (kind, category, resource, wire_action, action)) in steps.into_iter().enumerate() {
        let at = at + TimeDelta::milliseconds(1500 * i64::try_from(number).unwrap_or(0));
        let deed = Deed {
            target: Some((kind, category)),
            resource,
            target_name: "mallory@example.com",
            action: Some((wire_action, action)),
            status: Some(200),
            actor: "mallory@example.com",
        };
        log.add(dice, &deed, at, now.max(at));
    }
    steps.len()
}

pub(super) fn unlisted(log: &mut Log, dice: &mut Dice, number: Option<u32>, at: DateTime<Utc>, now: DateTime<Utc>) {
    let (kind, category) = number.map_or(("SSOConfig".to_owned(), "sso_config".to_owned()), |n| {
        (format!("Novelty {n}"), format!("novelty_{n}"))
    });
    let deed = Deed {
        target: Some((&kind, &category)),
        resource: "instance",
        target_name: "something new",
        action: Some(("patch", "update")),
        status: Some(200),
        actor: "ada@example.com",
    };
    log.add(dice, &deed, at, now.max(at));
}

pub(super) fn inject(
    log: &mut Log,
    dice: &mut Dice,
    call: &EventCall,
    expect: Expect,
    at: DateTime<Utc>,
    visible_at: DateTime<Utc>,
) {
    let deed = Deed {
        target: call.kind.as_deref().map(|kind| (kind, "")),
        resource: "instance",
        target_name: "injected",
        action: Some((&call.verb, "")),
        status: call.status.as_ref().and_then(|status| status.parse().ok()),
        actor: call.actor.as_deref().unwrap_or("ada@example.com"),
    };
    log.put(dice, &deed, expect, at, visible_at);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::super::world::testing::{body, call, get, quiet, with_traffic};
    use super::super::{Injection, Scenario, ScenarioCall};
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
            assert_eq!(answer["totalCount"], world.truth().total(System::Losant));
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
        assert_eq!(ids.len() as u64, world.truth().total(System::Losant));
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
            system: Some(System::Losant),
            count: None,
            at: Some(at),
            seconds: 0,
        }));
        let ms = at.timestamp_millis();
        assert_eq!(read(&world, &format!("start={ms}&end={ms}")).await.1["totalCount"], 1);
        assert_eq!(read(&world, &format!("start={}", ms + 1)).await.1["totalCount"], 0);
        let mut faults = world.faults();
        faults.losant.exclusive_bounds = true;
        world.set_faults(faults);
        assert_eq!(read(&world, &format!("start={ms}&end={ms}")).await.1["totalCount"], 0);
        assert_eq!(read(&world, &format!("start={}&end={}", ms - 1, ms + 1)).await.1["totalCount"], 1);
        let truth = world.truth();
        assert_eq!(
            truth.events.into_iter().collect::<Vec<_>>(),
            [((System::Losant, "sso_config".to_owned(), "update".to_owned(), Outcome::Success), 1)]
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
        assert_eq!(world.truth().total(System::Losant), 0);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(read(&world, "").await.1["items"][0]["responseStatus"], 403);
        assert_eq!(world.truth().total(System::Losant), 1);
    }
}
