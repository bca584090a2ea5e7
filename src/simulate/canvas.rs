//! Canvas LMS, Authentications Log: `GET /api/v1/audit/authentication/{accounts|users|logins}/{id}`.
//!
//! Promises: the compound document of the source code (`events`, `linked`, `links`), newest first
//! by (`created_at`, `id`), whole seconds, both bounds inclusive, a malformed time ignored, one
//! without an offset read in the account's zone, pages by opaque bookmarks in the `Link` header, of
//! which one that cannot be decoded is page 1.
//!
//! Leaves to others: failed logins, which Canvas does not record.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, FixedOffset, NaiveDate, NaiveDateTime, NaiveTime, SecondsFormat, TimeDelta, Utc};
use http::{HeaderName, StatusCode, header};
use serde_json::{Value, json};

use super::chance::{Cell, Dice, times_listed};
use super::faults::ServiceFaults;
use super::injection::{Plays, Scenario, Scene};
use super::message::{Ask, Listing, Refusal, Reply};
use super::service::{
    Example, Injected, Present, Route, Routed, Sample, Service, Sessions, Simulated, SingleEvents, Told, novelty, read,
};
use super::truth::{Events, Expect, Placed, Timeline, Wire};
use crate::event::{Class, Outcome, Principal, System};

const SYSTEM: System = System::named("canvas");

pub(super) const SERVICE: Simulated = Simulated {
    system: SYSTEM,
    source: "campus",
    keys: &[("base_url", Told::Address("")), ("access_token", Told::Credential), ("accounts", Told::Yaml("[1]"))],
    secrets: &[ACCESS_TOKEN],
    refused_secrets: &["1042~CanvasSecret/plus+eq="],
    is_feed: false,
    has_ids: true,
    loses_ids: Some(|faults| faults.flat || faults.bare_list),
    sessions: Sessions::None,
    example: Example {
        verb: "logout",
        kind: None,
        status: None,
        category: "authentication",
        action: "logout",
        outcome: "success",
    },
    sample: Sample {
        event: r#"{"id":"e$N","links":{"user":$N,"page_view":$UNREAD},"created_at":"$AT","event_type":"login"}"#,
        wrapped: None,
        page: r#"{"links":{},"events":[$EVENTS],"linked":{"users":[]}}"#,
        login: "",
    },
    begin: |_| Box::new(Log::new()),
};

/// The token that is let in.
pub const ACCESS_TOKEN: &str = "1016~sImUlAtEdCaNvAsToKeN0123456789abcdefghijklmnopqrstuvwxyzABCDEFG";

/// The one root account; also known as `self`.
pub const ACCOUNT: u64 = 1;

const PER_PAGE: i64 = 10;
const PER_PAGE_MAX: i64 = 100;
/// The leaky bucket: what it holds, and what flows out per second.
const BUCKET: f64 = 700.0;
const OUTFLOW: f64 = 10.0;
/// The account's zone: seven hours behind.
const ZONE_SECONDS: i32 = -7 * 3600;
/// Users of another shard have ids beyond 2^53.
const FOREIGN_SHARD: u64 = 21_070_000_000_000_000;
const USERS: u64 = 60;

const COST: HeaderName = HeaderName::from_static("x-request-cost");
const REMAINING: HeaderName = HeaderName::from_static("x-rate-limit-remaining");

/// The account's log.
struct Log {
    events: Timeline<Login>,
    /// How full the bucket is, and since when.
    level: f64,
    level_at: DateTime<Utc>,
}

/// An event as it is sent, but for its time.
pub(super) struct Login {
    id: String,
    event_type: String,
    user: u64,
    page_view: Option<String>,
}

/// The collections that can be asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Account,
    User,
    Login,
}

impl Wire for Login {
    fn id(&self) -> Option<&str> {
        Some(&self.id)
    }
}

impl Routed for Log {
    const ROUTES: &'static [Route<Self>] = &[
        read("/api/v1/audit/authentication/accounts/{id}", Log::of_account),
        read("/api/v1/audit/authentication/users/{id}", Log::of_user),
        read("/api/v1/audit/authentication/logins/{id}", Log::of_login),
        read("/api/v1/audit/authentication/pseudonyms/{id}", Log::of_pseudonym),
    ];
}

impl Service for Log {
    fn refuse(&self, refusal: Refusal, faults: &ServiceFaults, _: &Ask) -> Reply {
        refuse(refusal, faults)
    }

    fn listing(&self) -> Listing {
        let no_event = json!({"id": "bad-time", "created_at": "soon", "event_type": "login"});
        Listing { name: "events", no_event, takes_fields: true }
    }

    fn traffic(&mut self, cell: &mut Cell) {
        for at in cell.times() {
            let visible_at = cell.visible_at(at);
            let user = user_id(cell.dice.below(USERS));
            if cell.dice.chance(0.2) {
                // a login before the second factor, and one after it
                self.add(&mut cell.dice, "login", user, at, visible_at);
                let after = at + TimeDelta::milliseconds(i64::try_from(cell.dice.below(25_000)).unwrap_or(0));
                self.add(&mut cell.dice, "login", user, after, visible_at.max(after));
            } else {
                let event_type = if cell.dice.chance(0.3) { "logout" } else { "login" };
                self.add(&mut cell.dice, event_type, user, at, visible_at);
            }
        }
        if cell.sometimes(2.0) {
            // a lecture begins: many within few seconds
            let start = cell.moment();
            for number in 0..30 {
                let at = start + TimeDelta::milliseconds(i64::try_from(cell.dice.below(4_000)).unwrap_or(0));
                self.add(&mut cell.dice, "login", user_id(number), at, at);
            }
        }
    }

    fn inject(&mut self, dice: &mut Dice, event: Injected<'_>) {
        let Injected { call, expect, at, visible_at } = event;
        let known = |id: &u64| (0..USERS).any(|user| user_id(user) == *id);
        let user = call.actor.as_ref().and_then(|actor| actor.parse().ok()).filter(known);
        let user = user.unwrap_or_else(|| user_id(dice.below(USERS)));
        self.put(dice, &call.verb, user, expect, at, visible_at);
    }

    fn events(&mut self) -> Option<&mut dyn Events> {
        Some(&mut self.events)
    }

    fn plays(&self, scenario: Scenario) -> Plays {
        match scenario {
            Scenario::NewCategory | Scenario::LateEvents => Plays::Usually,
            Scenario::CategoryFlood => Plays::WhenNamed,
            _ => Plays::Never,
        }
    }

    fn play(&mut self, scene: &Scene, dice: &mut Dice) -> usize {
        self.play_common(scene, dice)
    }
}

fn refuse(refusal: Refusal, faults: &ServiceFaults) -> Reply {
    match refusal {
        Refusal::Unauthorized => {
            Reply::json(StatusCode::UNAUTHORIZED, json!({"errors": [{"message": "Invalid access token."}]}))
                .with(header::WWW_AUTHENTICATE, "Bearer realm=\"canvas-lms\"")
        }
        Refusal::Forbidden => Reply::json(
            StatusCode::UNAUTHORIZED,
            json!({"status": "unauthorized", "errors": [{"message": "user not authorized to perform that action"}]}),
        ),
        Refusal::Throttled if faults.old_throttle => {
            Reply::text(StatusCode::FORBIDDEN, "403 Forbidden (Rate Limit Exceeded)\n").with(REMAINING, "0.0")
        }
        Refusal::Throttled => {
            Reply::text(StatusCode::TOO_MANY_REQUESTS, "429 Forbidden (Rate Limit Exceeded)\n").with(REMAINING, "0.0")
        }
        Refusal::Broken => Reply::json(
            StatusCode::INTERNAL_SERVER_ERROR,
            json!({"errors": [{"message": "An error occurred.", "error_code": "internal_server_error"}],
                   "error_report_id": 4711}),
        ),
        Refusal::Unavailable => Reply::text(StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable"),
    }
}

fn not_found() -> Reply {
    let error = json!({"errors": [{"message": "The specified resource does not exist."}]});
    Reply::json(StatusCode::NOT_FOUND, error)
}

// === reading ===

impl Log {
    fn of_account(&mut self, present: &mut Present<'_>, ask: &Ask) -> Reply {
        self.list(present, ask, Of::Account)
    }

    fn of_user(&mut self, present: &mut Present<'_>, ask: &Ask) -> Reply {
        self.list(present, ask, Of::User)
    }

    fn of_login(&mut self, present: &mut Present<'_>, ask: &Ask) -> Reply {
        if present.faults.pseudonyms_route { not_found() } else { self.list(present, ask, Of::Login) }
    }

    fn of_pseudonym(&mut self, present: &mut Present<'_>, ask: &Ask) -> Reply {
        if present.faults.pseudonyms_route { self.list(present, ask, Of::Login) } else { not_found() }
    }

    fn list(&mut self, present: &mut Present<'_>, ask: &Ask, of: Of) -> Reply {
        match ask.bearer().or_else(|| last(ask, "access_token")) {
            Some(ACCESS_TOKEN) => {}
            Some(_) => return refuse(Refusal::Unauthorized, present.faults),
            None => {
                let error =
                    json!({"status": "unauthenticated", "errors": [{"message": "user authorization required"}]});
                return Reply::json(StatusCode::UNAUTHORIZED, error)
                    .with(header::WWW_AUTHENTICATE, "Bearer realm=\"canvas-lms\"");
            }
        }
        let id = ask.segments.last().map_or("", String::as_str);
        let id = if of == Of::Account && id == "self" { Some(ACCOUNT) } else { id.parse().ok() };
        let user = match (of, id) {
            (Of::Account, Some(ACCOUNT)) => None,
            (Of::User, Some(id)) if (0..USERS).any(|user| user_id(user) == id) => Some(id),
            (Of::Login, Some(id)) => match (0..USERS).find(|user| login_id(*user) == id) {
                Some(user) => Some(user_id(user)),
                None => return not_found(),
            },
            _ => return not_found(),
        };

        let faults = present.faults;
        let skew = present.skew;
        let bound = |name: &str| last(ask, name).and_then(canvas_time).map(|at| at - skew);
        let (mut from, mut to) = (bound("start_time"), bound("end_time"));
        if faults.ignore_time_filter {
            (from, to) = (None, None);
        }
        let most =
            if faults.count_cap > 0 { i64::try_from(faults.count_cap).unwrap_or(PER_PAGE_MAX) } else { PER_PAGE_MAX };
        // a text that is no number is 0, as in Ruby, and 0 is 1
        let per_page = last(ask, "per_page").map_or(PER_PAGE, |text| text.parse().unwrap_or(0)).clamp(1, most);
        let per_page = usize::try_from(per_page).unwrap_or(1);
        let page = last(ask, "page").unwrap_or("first");
        let bookmark = Bookmark::of(page);

        let mut events: Vec<&Placed<Login>> = self
            .events
            .visible(present.now, from.unwrap_or(DateTime::UNIX_EPOCH), to.unwrap_or(DateTime::<Utc>::MAX_UTC))
            .filter(|event| user.is_none_or(|user| event.wire.user == user))
            .filter(|event| bookmark.as_ref().is_none_or(|bookmark| bookmark.precedes(event.at + skew, &event.wire.id)))
            .collect();
        events.sort_by(|a, b| (b.at, &b.wire.id).cmp(&(a.at, &a.wire.id)));
        let more = events.len() > per_page;
        events.truncate(per_page);

        let next = match events.last() {
            Some(_) if more && faults.restarting => Some("bookmark:!!!".to_owned()),
            Some(_) if more && faults.looping && bookmark.is_some() => Some(page.to_owned()),
            Some(event) if more => Some(bookmark_of(event.at + skew, &event.wire.id)),
            _ => None,
        };
        let current = if bookmark.is_some() { page } else { "first" };
        let mut links = vec![link(ask, current, per_page, "current")];
        if faults.next_is_this_page {
            links.push(this_page(ask));
        } else {
            links.extend(next.map(|next| link(ask, &next, per_page, "next")));
        }
        links.push(link(ask, "first", per_page, "first"));

        let listed = |event: &Placed<Login>| times_listed(&event.wire.id, faults.duplicates);
        events = events.into_iter().flat_map(|event| std::iter::repeat_n(event, listed(event))).collect();
        let as_text = faults.string_ids || ask.header("accept").is_some_and(|kind| kind.contains("canvas-string-ids"));
        let shape = Shape { as_text, flat: faults.flat || faults.bare_list, skew };
        let document = if faults.bare_list {
            Value::Array(events.iter().map(|event| shape.event(event)).collect())
        } else {
            shape.document(&events, &ask.origin)
        };
        let cost = 0.031 + 0.000_7 * f64::from(u32::try_from(events.len()).unwrap_or(0));
        let remaining = self.take(cost, present.now);
        Reply::json(StatusCode::OK, document)
            .with(header::LINK, links.join(","))
            .with(COST, cost.to_string())
            .with(REMAINING, remaining.to_string())
    }
}

/// The last value of a parameter, which is the one Rails keeps.
fn last<'a>(ask: &'a Ask, name: &str) -> Option<&'a str> {
    ask.query
        .iter()
        .rev()
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.as_str())
        .filter(|value| !value.is_empty())
}

/// A time as Rails' zone reads it: with its offset, or in the account's zone. `None` is ignored.
fn canvas_time(text: &str) -> Option<DateTime<Utc>> {
    if let Ok(at) = text.parse::<DateTime<Utc>>() {
        return Some(at);
    }
    let zone = FixedOffset::east_opt(ZONE_SECONDS)?;
    let local = NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f")
        .or_else(|_| NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f"))
        .or_else(|_| NaiveDate::parse_from_str(text, "%Y-%m-%d").map(|day| day.and_time(NaiveTime::MIN)))
        .ok()?;
    local.and_local_timezone(zone).single().map(|at| at.with_timezone(&Utc))
}

/// Behind which event a page begins.
struct Bookmark {
    at: DateTime<Utc>,
    /// Not there in the bookmarks of older versions.
    id: Option<String>,
}

impl Bookmark {
    /// `None` for page 1, and for anything that cannot be decoded.
    fn of(page: &str) -> Option<Self> {
        let json = URL_SAFE_NO_PAD.decode(page.strip_prefix("bookmark:")?.trim_end_matches('=')).ok()?;
        let (at, id) = match serde_json::from_slice(&json).ok()? {
            Value::String(at) => (at, None),
            Value::Array(parts) => (parts.first()?.as_str()?.to_owned(), Some(parts.get(1)?.as_str()?.to_owned())),
            _ => return None,
        };
        let at = NaiveDateTime::parse_from_str(&at, "%Y-%m-%d %H:%M:%S UTC").ok()?.and_utc();
        Some(Self { at, id })
    }

    fn precedes(&self, at: DateTime<Utc>, id: &str) -> bool {
        match &self.id {
            Some(mark) => (at, id) < (self.at, mark.as_str()),
            None => at < self.at,
        }
    }
}

fn bookmark_of(at: DateTime<Utc>, id: &str) -> String {
    let parts = json!([at.format("%Y-%m-%d %H:%M:%S UTC").to_string(), id]);
    format!("bookmark:{}", URL_SAFE_NO_PAD.encode(parts.to_string()))
}

/// One link of the header: all parameters but the token, then the page.
fn link(ask: &Ask, page: &str, per_page: usize, rel: &str) -> String {
    let kept = ask.query.iter().filter(|(name, _)| !["access_token", "page", "per_page"].contains(&name.as_str()));
    let query: String = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(kept).finish();
    let joint = if query.is_empty() { "" } else { "&" };
    format!("<{}{}?{query}{joint}page={page}&per_page={per_page}>; rel=\"{rel}\"", ask.origin, ask.path)
}

/// A link to the page that is asked for, as the next one.
fn this_page(ask: &Ask) -> String {
    let query: String = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(&ask.query).finish();
    format!("<{}{}?{query}>; rel=\"next\"", ask.origin, ask.path)
}

// === documents ===

struct Shape {
    as_text: bool,
    flat: bool,
    skew: TimeDelta,
}

impl Shape {
    fn id(&self, id: u64) -> Value {
        if self.as_text { Value::from(id.to_string()) } else { Value::from(id) }
    }

    fn event(&self, event: &Placed<Login>) -> Value {
        let at = event.at + self.skew;
        let login = login_of(event.wire.user);
        if self.flat {
            let zone = FixedOffset::east_opt(ZONE_SECONDS);
            let at = zone.map_or_else(|| at.to_rfc3339(), |zone| at.with_timezone(&zone).to_rfc3339());
            return json!({"created_at": at, "event_type": event.wire.event_type, "pseudonym_id": self.id(login),
                          "account_id": self.id(ACCOUNT), "user_id": self.id(event.wire.user)});
        }
        json!({
            "id": event.wire.id,
            "created_at": at.to_rfc3339_opts(SecondsFormat::Secs, true),
            "event_type": event.wire.event_type,
            "links": {"login": self.id(login), "account": self.id(ACCOUNT), "user": self.id(event.wire.user),
                      "page_view": event.wire.page_view},
        })
    }

    fn document(&self, events: &[&Placed<Login>], origin: &str) -> Value {
        let mut users = BTreeMap::new();
        let mut logins = BTreeMap::new();
        let mut page_views = BTreeMap::new();
        for event in events {
            let user = event.wire.user;
            let login = login_of(user);
            let name = format!("User {login}");
            let address = format!("user{login}@example.edu");
            users.insert(
                user,
                json!({"id": self.id(user), "name": name, "sortable_name": name, "short_name": name,
                       "login_id": address}),
            );
            logins.insert(
                login,
                json!({"id": self.id(login), "account_id": self.id(ACCOUNT), "user_id": self.id(user),
                       "unique_id": address, "sis_user_id": null}),
            );
            if let Some(id) = &event.wire.page_view {
                page_views.insert(
                    id.clone(),
                    json!({"id": id, "remote_ip": "198.51.100.7", "user_agent": "Mozilla/5.0 (\"x\")"}),
                );
            }
        }
        let account = json!({"id": self.id(ACCOUNT), "name": "Example", "parent_account_id": null,
                             "root_account_id": null, "workflow_state": "active",
                             "default_time_zone": "America/Phoenix"});
        json!({
            "links": {"events.login": null, "events.account": format!("{origin}/api/v1/accounts/{{events.account}}"),
                      "events.user": null, "events.page_view": null},
            "events": events.iter().map(|event| self.event(event)).collect::<Vec<_>>(),
            "linked": {
                "logins": logins.into_values().collect::<Vec<_>>(),
                "accounts": if events.is_empty() { vec![] } else { vec![account] },
                "users": users.into_values().collect::<Vec<_>>(),
                "page_views": page_views.into_values().collect::<Vec<_>>(),
            },
        })
    }
}

fn user_id(user: u64) -> u64 {
    if user.is_multiple_of(20) { FOREIGN_SHARD + 362 + user } else { 362 + user }
}

fn login_id(user: u64) -> u64 {
    9_478 + user
}

/// The login of a user id.
fn login_of(user_id: u64) -> u64 {
    login_id(user_id % FOREIGN_SHARD - 362)
}

// === impl Log ===

impl Log {
    fn new() -> Self {
        Self { events: Timeline::new(SYSTEM), level: 0.0, level_at: DateTime::UNIX_EPOCH }
    }

    /// Fills the bucket by a request's cost; what is left of it.
    fn take(&mut self, cost: f64, now: DateTime<Utc>) -> f64 {
        let seconds = (now - self.level_at).to_std().map_or(0.0, |elapsed| elapsed.as_secs_f64());
        self.level = (self.level - OUTFLOW * seconds).max(0.0) + cost;
        self.level_at = now;
        BUCKET - self.level
    }

    fn add(&mut self, dice: &mut Dice, event_type: &str, user: u64, at: DateTime<Utc>, visible_at: DateTime<Utc>) {
        let class = match event_type {
            "login" => Class::Login(Principal::User),
            "logout" => Class::Logout,
            _ => Class::Change,
        };
        let expect = Expect::new("authentication", event_type, Outcome::Success, class);
        self.put(dice, event_type, user, expect, at, visible_at);
    }

    fn put(
        &mut self,
        dice: &mut Dice,
        event_type: &str,
        user: u64,
        expect: Expect,
        at: DateTime<Utc>,
        visible_at: DateTime<Utc>,
    ) {
        let wire = Login {
            id: dice.uuid(),
            event_type: event_type.to_owned(),
            user,
            page_view: dice.chance(0.3).then(|| dice.uuid()),
        };
        // whole seconds, as written
        let at = at - TimeDelta::nanoseconds(i64::from(at.timestamp_subsec_nanos()));
        self.events.insert(Placed { at, visible_at, actors: vec![user.to_string()], expect, tainted: false, wire });
    }
}

// === what happens ===

impl SingleEvents for Log {
    fn ordinary(&mut self, dice: &mut Dice, at: DateTime<Utc>, visible_at: DateTime<Utc>) {
        let user = user_id(dice.below(USERS));
        let event_type = if dice.chance(0.3) { "logout" } else { "login" };
        self.add(dice, event_type, user, at, visible_at);
    }

    fn unlisted(&mut self, dice: &mut Dice, number: Option<u32>, at: DateTime<Utc>, visible_at: DateTime<Utc>) {
        let (_, event_type) = novelty(("", "api_login"), number);
        let user = user_id(dice.below(USERS));
        self.add(dice, &event_type, user, at, visible_at);
    }
}

#[cfg(test)]
mod tests;
