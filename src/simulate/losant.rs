//! Losant, instance audit logs: `GET /instance/{id}/audit-logs` and `/audit-logs/{log id}`.
//!
//! Promises: pages from 0, `perPage` 100 unless asked (at most 1,000), newest first unless asked,
//! `totalCount` of what the filters leave, bounds in epoch milliseconds, both inclusive (the
//! documentation does not say; the fault `exclusive_bounds` is the other reading), the fields of
//! the public JSON schema with any of the optional ones missing, and `_type` and `_links` besides.
//!
//! Leaves to others: everything that mutates.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::chance::{Cell, Dice, times_listed};
use super::faults::{ServiceFaults, TotalCount};
use super::injection::{Plays, Scenario, Scene};
use super::message::{Ask, Listing, Refusal, Reply};
use super::service::{
    Example, Injected, Present, Route, Routed, Sample, Service, Sessions, Simulated, SingleEvents, Told, novelty, read,
};
use super::truth::{Events, Expect, Placed, Timeline, Wire};
use crate::event::{Class, Outcome, System};

const SYSTEM: System = System::named("losant");

pub(super) const SERVICE: Simulated = Simulated {
    system: SYSTEM,
    source: "iot",
    keys: &[("base_url", Told::Address("")), ("instance_id", Told::Text(INSTANCE_ID)), ("api_token", Told::Credential)],
    secrets: &[API_TOKEN],
    refused_secrets: &["LosantToken.ABC.987654"],
    is_feed: false,
    has_ids: true,
    loses_ids: None,
    sessions: Sessions::None,
    example: Example {
        verb: "delete",
        kind: Some("User"),
        status: Some("200"),
        category: "user",
        action: "delete",
        outcome: "success",
    },
    sample: Sample {
        event: concat!(
            r#"{"id":"e$N","requestBody":{"a":[$UNREAD]},"creationDate":"$AT","primaryTargetType":"User","#,
            r#""requestAction":"post","responseStatus":201}"#
        ),
        wrapped: None,
        page: r#"{"totalCount":$COUNT,"perPage":100,"page":0,"items":[$EVENTS],"sortDirection":"asc"}"#,
        login: "",
    },
    begin: |_| Box::new(Log::new()),
};

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
struct Log {
    events: Timeline<Item>,
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

impl Wire for Item {
    fn id(&self) -> Option<&str> {
        Some(&self.id)
    }
}

impl Routed for Log {
    const ROUTES: &'static [Route<Self>] =
        &[read("/instance/{instance}/audit-logs", Log::list), read("/instance/{instance}/audit-logs/{log}", Log::one)];
}

impl Service for Log {
    fn refuse(&self, refusal: Refusal, _: &ServiceFaults, _: &Ask) -> Reply {
        refuse(refusal)
    }

    fn listing(&self) -> Listing {
        Listing { name: "items", no_event: json!("not an item"), takes_fields: true }
    }

    fn traffic(&mut self, cell: &mut Cell) {
        self.usual_traffic(cell);
        if cell.sometimes(2.0) {
            let start = cell.moment();
            let seconds = |n: i64| start + TimeDelta::seconds(3 * n);
            let times: Vec<_> = (0..25).map(seconds).collect();
            self.deletion_burst(&mut cell.dice, &times, start);
        }
        if cell.sometimes(1.0) {
            let start = cell.moment();
            self.privilege_escalation(&mut cell.dice, start, start);
        }
    }

    fn inject(&mut self, dice: &mut Dice, event: Injected<'_>) {
        let Injected { call, expect, at, visible_at } = event;
        let deed = Deed {
            target: call.kind.as_deref().map(|kind| (kind, "")),
            resource: "instance",
            target_name: "injected",
            action: Some((&call.verb, "")),
            status: call.status.as_ref().and_then(|status| status.parse().ok()),
            actor: call.actor.as_deref().unwrap_or("ada@example.com"),
        };
        self.put(dice, &deed, expect, at, visible_at);
    }

    fn events(&mut self) -> Option<&mut dyn Events> {
        Some(&mut self.events)
    }

    fn plays(&self, scenario: Scenario) -> Plays {
        match scenario {
            Scenario::DeletionBurst | Scenario::NewCategory | Scenario::CategoryFlood | Scenario::LateEvents => {
                Plays::Usually
            }
            Scenario::PrivilegeEscalation => Plays::WhenNamed,
            _ => Plays::Never,
        }
    }

    fn play(&mut self, scene: &Scene, dice: &mut Dice) -> usize {
        match scene.name {
            Scenario::DeletionBurst => {
                let times = scene.moments(25, dice);
                self.deletion_burst(dice, &times, scene.now)
            }
            Scenario::PrivilegeEscalation => self.privilege_escalation(dice, scene.at, scene.now),
            _ => self.play_common(scene, dice),
        }
    }
}

fn refuse(refusal: Refusal) -> Reply {
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

impl Log {
    fn list(&mut self, present: &mut Present<'_>, ask: &Ask) -> Reply {
        if let Some(refusal) = barred(ask) {
            return refusal;
        }
        match self.listed(present, ask) {
            Ok(collection) => Reply::json(StatusCode::OK, collection),
            Err(message) => error(StatusCode::BAD_REQUEST, "Validation", &message),
        }
    }

    fn one(&mut self, present: &mut Present<'_>, ask: &Ask) -> Reply {
        if let Some(refusal) = barred(ask) {
            return refusal;
        }
        let skew = present.skew;
        let mut all = self.events.visible(present.now, DateTime::UNIX_EPOCH, DateTime::<Utc>::MAX_UTC);
        all.find(|event| event.wire.id == ask.segments[3]).map_or_else(
            || error(StatusCode::NOT_FOUND, "NotFound", "Instance audit log was not found"),
            |event| Reply::json(StatusCode::OK, shown(event, skew)),
        )
    }

    fn listed(&self, present: &Present<'_>, ask: &Ask) -> Result<Value, String> {
        let faults = present.faults;
        let skew = present.skew;
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
            self.events.visible(present.now, from, to).filter(|event| filter.admits(&event.wire)).collect();
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
    fn new() -> Self {
        Self { events: Timeline::new(SYSTEM) }
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

impl SingleEvents for Log {
    fn ordinary(&mut self, dice: &mut Dice, at: DateTime<Utc>, visible_at: DateTime<Utc>) {
        let (kind, category, resource, target_name) = *dice.pick(&TARGETS);
        let (wire_action, action, _) = *dice.weighted(&ACTIONS, |(.., share)| *share);
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
        self.add(dice, &deed, at, visible_at);
    }

    fn unlisted(&mut self, dice: &mut Dice, number: Option<u32>, at: DateTime<Utc>, visible_at: DateTime<Utc>) {
        let (kind, category) = novelty(("SSOConfig", "sso_config"), number);
        let deed = Deed {
            target: Some((&kind, &category)),
            resource: "instance",
            target_name: "something new",
            action: Some(("patch", "update")),
            status: Some(200),
            actor: "ada@example.com",
        };
        self.add(dice, &deed, at, visible_at);
    }
}

impl Log {
    fn deletion_burst(&mut self, dice: &mut Dice, times: &[DateTime<Utc>], now: DateTime<Utc>) -> usize {
        for at in times {
            let deed = Deed {
                target: Some(("Organization", "organization")),
                resource: "instanceOrg",
                target_name: "Fleet West",
                action: Some(("delete", "delete")),
                status: Some(200),
                actor: "eli@example.com",
            };
            self.add(dice, &deed, *at, now.max(*at));
        }
        times.len()
    }

    fn privilege_escalation(&mut self, dice: &mut Dice, at: DateTime<Utc>, now: DateTime<Utc>) -> usize {
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
            self.add(dice, &deed, at, now.max(at));
        }
        steps.len()
    }
}

#[cfg(test)]
mod tests;
