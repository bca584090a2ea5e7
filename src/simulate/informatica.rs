//! Informatica Intelligent Cloud Services: `POST /saas/public/core/v3/login` and `…/logout`,
//! `GET /saas/public/core/v3/securityLog`.
//!
//! Promises: sessions that end after 30 minutes without use, the documented `q` and nothing beyond
//! it, `skip` and the filters only with a time range, ranges of 14 days at most, `limit` 100 to
//! 1,000, no order, no total, three shapes of errors; each login and logout of a reader is an entry
//! of the log it reads.
//!
//! Leaves to others: version 2 of the API.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, NaiveDateTime, SecondsFormat, TimeDelta, Utc};
use http::StatusCode;
use serde_json::{Value, json};

use super::chance::{Cell, Dice, times_listed};
use super::faults::{ErrorShape, ServiceFaults, SessionEnd};
use super::injection::{Plays, Scenario, Scene};
use super::message::{Ask, Listing, Refusal, Reply};
use super::service::{
    Call, Example, Injected, Present, Route, Routed, Sample, Service, Sessions, Simulated, SingleEvents, Told, novelty,
    posted, read,
};
use super::truth::{Events, Expect, Placed, Timeline, Wire};
use crate::event::{Class, Outcome, Principal, System};

const SYSTEM: System = System::named("informatica");

pub(super) const SERVICE: Simulated = Simulated {
    system: SYSTEM,
    source: "etl",
    keys: &[("login_url", Told::Address("")), ("username", Told::Text(USERNAME)), ("password", Told::Credential)],
    secrets: &[PASSWORD],
    refused_secrets: &["Infa\"Secret %9917"],
    is_feed: false,
    has_ids: true,
    loses_ids: None,
    sessions: Sessions::Own,
    example: Example {
        verb: "DELETE",
        kind: Some("USER"),
        status: None,
        category: "user",
        action: "delete",
        outcome: "success",
    },
    sample: Sample {
        event: r#"{"id":"e$N","actor":"ada","other":$UNREAD,"entryTime":"$AT","actionCategory":"User","actionEvent":"CREATE"}"#,
        wrapped: None,
        page: r#"{"entries":[$EVENTS]}"#,
        login: r#"{"products":[{"name":"Integration Cloud","baseApiUrl":"https://$HOST/saas"}],"userInfo":{"sessionId":"$TOKEN"}}"#,
    },
    begin: |_| Box::new(Log::new()),
};

/// The administrator who is let in; also the actor of the reader's own entries.
pub const USERNAME: &str = "audit@example.com";

/// The administrator's password.
pub const PASSWORD: &str = "correct \"horse\" \\ battery \u{e9}";

const IDLE: TimeDelta = TimeDelta::minutes(30);
const RANGE_MAX: TimeDelta = TimeDelta::days(14);
const LIMIT: usize = 200;
const ORG_ID: &str = "9l10ywsSnqadMx1NtEEbKT";

/// A name on the wire, and as it is counted.
type Named = (&'static str, &'static str);

const AUTHENTICATION: Named = ("Authentication", "authentication");
const LOGIN_USER: Class = Class::Login(Principal::User);
const LOGIN_AGENT: Class = Class::Login(Principal::Agent);

/// Changes: category on the wire and as counted, event on the wire and as counted, how often.
const CHANGES: [(Named, Named, u64); 15] = [
    (("User", "user"), ("CREATE", "create"), 16),
    (("User", "user"), ("UPDATE", "update"), 34),
    (("User", "user"), ("DELETE", "delete"), 6),
    (("User", "user"), ("DISABLE", "disable"), 6),
    (("User", "user"), ("PASSWORD_RESET", "password_reset"), 16),
    (("User group", "user_group"), ("CREATE", "create"), 4),
    (("User group", "user_group"), ("UPDATE", "update"), 10),
    (("User group", "user_group"), ("DELETE", "delete"), 2),
    (("Role", "role"), ("CREATE", "create"), 4),
    (("Role", "role"), ("UPDATE", "update"), 10),
    (("Role", "role"), ("DELETE", "delete"), 2),
    (("Organization", "organization"), ("UPDATE", "update"), 6),
    (("Organization", "organization"), ("CREATE", "create"), 2),
    (("Organization", "organization"), ("DELETE", "delete"), 1),
    (("Organization", "organization"), ("DISABLE", "disable"), 1),
];

/// The case of an actor is not always the same.
const ACTORS: [&str; 8] = [
    "admin",
    "Admin",
    "ada@example.com",
    "Ada@Example.com",
    "bo@example.com",
    "chen@example.com",
    "dana@example.com",
    "eli@example.com",
];

/// The organization's log and who may read it.
struct Log {
    events: Timeline<Entry>,
    sessions: BTreeMap<String, Session>,
    /// How often the organization has moved.
    moved: u32,
    /// Refused logins in a row.
    refused: u32,
}

struct Session {
    begun: DateTime<Utc>,
    used: DateTime<Utc>,
    /// Ends 30 minutes after it began, used or not.
    absolute: bool,
    /// How often the organization had moved then.
    moved: u32,
}

/// An entry as it is sent, but for its time.
pub(super) struct Entry {
    id: String,
    actor: String,
    object_id: String,
    object_name: String,
    category: String,
    event: String,
}

impl Wire for Entry {
    fn id(&self) -> Option<&str> {
        Some(&self.id)
    }
}

impl Routed for Log {
    const ROUTES: &'static [Route<Self>] = &[
        posted("/saas/public/core/v3/login", Call::Login, Log::login),
        posted("/saas/public/core/v3/logout", Call::Login, Log::logout),
        read("/saas/public/core/v3/securityLog", Log::security_log),
        read("/saas/public/core/v3/{*rest}", |_, _, ask| missing(ask)),
    ];
}

impl Service for Log {
    fn refuse(&self, refusal: Refusal, faults: &ServiceFaults, ask: &Ask) -> Reply {
        refuse(refusal, faults, ask)
    }

    fn listing(&self) -> Listing {
        let no_event = json!({"id": ["not", "an", "entry"], "entryTime": 7});
        Listing { name: "entries", no_event, takes_fields: true }
    }

    fn traffic(&mut self, cell: &mut Cell) {
        self.usual_traffic(cell);
        if cell.sometimes(1.0) {
            let start = cell.moment();
            let times: Vec<_> = (0..20).map(|n| start + TimeDelta::seconds(2 * n)).collect();
            self.deletion_burst(&mut cell.dice, &times, start);
        }
        if cell.sometimes(1.0) {
            let at = cell.moment();
            self.privilege_escalation(&mut cell.dice, at, at);
        }
    }

    fn inject(&mut self, dice: &mut Dice, event: Injected<'_>) {
        let Injected { call, expect, at, visible_at } = event;
        let what = (call.kind.as_deref().unwrap_or(AUTHENTICATION.0), call.verb.as_str());
        self.put(dice, call.actor.as_deref().unwrap_or("admin"), "injected", what, expect, at, visible_at);
    }

    fn events(&mut self) -> Option<&mut dyn Events> {
        Some(&mut self.events)
    }

    fn plays(&self, scenario: Scenario) -> Plays {
        match scenario {
            Scenario::PrivilegeEscalation | Scenario::NewCategory | Scenario::LateEvents => Plays::Usually,
            Scenario::DeletionBurst | Scenario::CategoryFlood => Plays::WhenNamed,
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

    fn end_sessions(&mut self) -> bool {
        self.sessions.clear();
        true
    }
}

// === errors ===

fn refuse(refusal: Refusal, faults: &ServiceFaults, ask: &Ask) -> Reply {
    match (refusal, faults.session_end) {
        (Refusal::Unauthorized, SessionEnd::Unauthorized) => {
            error(faults, ask, StatusCode::UNAUTHORIZED, "AUTH_02", "Session is invalid or expired.")
        }
        (Refusal::Unauthorized, SessionEnd::Auth01) => {
            error(faults, ask, StatusCode::FORBIDDEN, "AUTH_01", "Session is invalid or expired.")
        }
        (Refusal::Unauthorized, SessionEnd::Html) => Reply::html(),
        (Refusal::Forbidden, _) => {
            error(faults, ask, StatusCode::FORBIDDEN, "AUTH_03", "The user lacks the necessary role.")
        }
        (Refusal::Throttled, _) => error(faults, ask, StatusCode::TOO_MANY_REQUESTS, "LIMIT_01", "Too many requests."),
        (Refusal::Broken, _) => {
            error(faults, ask, StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL", "Internal server error.")
        }
        (Refusal::Unavailable, _) => {
            error(faults, ask, StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", "Service unavailable.")
        }
    }
}

fn error(faults: &ServiceFaults, ask: &Ask, status: StatusCode, code: &str, message: &str) -> Reply {
    let body = match faults.error_shape {
        ErrorShape::V3 => json!({"error": {"code": code, "message": message,
                                           "requestId": "9hr8e2ObIcChbwYftgDui7", "details": null}}),
        ErrorShape::V2 => {
            json!({"code": code, "description": message, "statusCode": status.as_u16(), "@type": "error"})
        }
        ErrorShape::Problem => problem(ask, status, message),
    };
    Reply::json(status, body)
}

fn problem(ask: &Ask, status: StatusCode, detail: &str) -> Value {
    json!({"type": "about:blank", "title": status.canonical_reason(), "status": status.as_u16(), "detail": detail,
           "instance": ask.path, "properties": null})
}

/// A path that is not there, as Spring says it.
fn missing(ask: &Ask) -> Reply {
    let path = ask.path.trim_start_matches("/saas/public/");
    let detail = format!("No static resource {path}.");
    Reply::json(StatusCode::NOT_FOUND, problem(ask, StatusCode::NOT_FOUND, &detail))
}

// === sessions ===

impl Log {
    fn login(&mut self, present: &mut Present<'_>, ask: &Ask) -> Reply {
        let faults = present.faults;
        let Ok(given) = serde_json::from_slice::<Value>(&ask.body) else {
            return error(faults, ask, StatusCode::BAD_REQUEST, "IDS_001", "The request body is not valid.");
        };
        let locked = faults.lock_after > 0 && self.refused >= faults.lock_after;
        if locked || given["username"] != USERNAME || given["password"] != PASSWORD {
            self.refused += 1;
            let (status, code) = match faults.error_shape {
                ErrorShape::V2 => (StatusCode::FORBIDDEN, "UI_10000"),
                _ => (StatusCode::UNAUTHORIZED, "IDS_085"),
            };
            return error(faults, ask, status, code, "User name or password is not valid.");
        }
        self.refused = 0;
        let mut dice = present.draw("informatica session");
        let now = present.now;
        let id = if faults.jwt_sessions {
            let ends = (now + present.skew + IDLE).timestamp();
            let claims = json!({"sub": USERNAME, "exp": ends, "orgs": dice.base62(1200)});
            let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
            format!("{}.{}.{}", part(&json!({"alg": "RS256"})), part(&claims), dice.base62(342))
        } else {
            dice.base62(22)
        };
        present.issued.push(id.clone());
        let moved = self.moved;
        let session = Session { begun: now, used: now, absolute: faults.jwt_sessions, moved };
        self.sessions.insert(id.clone(), session);
        self.note_self(present, "USER_LOGIN", "login", LOGIN_USER);
        Reply::json(
            StatusCode::OK,
            json!({
                "products": [{"name": "Integration Cloud", "baseApiUrl": format!("{}/saas", ask.origin)}],
                "userInfo": {"sessionId": id, "id": "9L1GFroXSDHe2IIg7QhBaT", "name": USERNAME,
                             "parentOrgId": "52ZSTB0IDK6dXxaEQLUaQu", "orgId": ORG_ID, "orgName": "MyOrg_INFA",
                             "groups": {}, "status": "Active"},
            }),
        )
    }

    fn logout(&mut self, present: &mut Present<'_>, ask: &Ask) -> Reply {
        let session = ask.header("infa-session-id").unwrap_or("");
        if self.sessions.remove(session).is_none() {
            return refuse(Refusal::Unauthorized, present.faults, ask);
        }
        self.note_self(present, "LOGOUT", "logout", Class::Logout);
        Reply::json(StatusCode::OK, json!({}))
    }

    /// The reader's own doings, in the log it reads.
    fn note_self(&mut self, present: &mut Present<'_>, event: &str, action: &str, class: Class) {
        let mut dice = present.draw("informatica self");
        let expect = Expect::new(AUTHENTICATION.1, action, Outcome::Success, class);
        let now = present.now;
        self.put(&mut dice, USERNAME, USERNAME, (AUTHENTICATION.0, event), expect, now, now);
    }
}

/// What answers where the organization was.
fn gone(moved: u32) -> Reply {
    let page = |status| Reply { status, ..Reply::html() };
    match moved % 4 {
        0 => page(StatusCode::NOT_FOUND),
        1 => page(StatusCode::SERVICE_UNAVAILABLE),
        2 => page(StatusCode::FORBIDDEN),
        _ => Reply::new(StatusCode::FOUND).with(http::header::LOCATION, "/maintenance"),
    }
}

// === reading ===

impl Log {
    fn security_log(&mut self, present: &mut Present<'_>, ask: &Ask) -> Reply {
        let now = present.now;
        let mut dice = present.draw("informatica pod");
        let moves = present.faults.moves;
        if present.meets(&mut dice, "moves", moves) {
            self.moved += 1;
        }
        let here = self.moved;
        let session = ask.header("infa-session-id").and_then(|id| self.sessions.get_mut(id));
        // what is left of the old address, for good: it does not change its mind between two requests
        if let Some(old) = session.as_ref().filter(|session| session.moved < here) {
            return gone(old.moved);
        }
        let Some(session) = session.filter(|session| session.holds(now)) else {
            return refuse(Refusal::Unauthorized, present.faults, ask);
        };
        session.used = now;
        match self.entries(present, ask) {
            Ok(entries) => Reply::json(StatusCode::OK, json!({"entries": entries})),
            Err(message) => error(present.faults, ask, StatusCode::BAD_REQUEST, "V3API_400", &message),
        }
    }

    fn entries(&self, present: &Present<'_>, ask: &Ask) -> Result<Vec<Value>, String> {
        let faults = present.faults;
        let skew = present.skew;
        let number = |name: &str, usual: usize| {
            ask.param(name).map_or(Ok(usual), |text| {
                text.parse::<usize>().map_err(|_| format!("{name} {text:?} is not a whole number"))
            })
        };
        let limit = number("limit", LIMIT)?;
        if !(100..=1000).contains(&limit) {
            return Err(format!("limit {limit} is not between 100 and 1000"));
        }
        let limit = if faults.count_cap > 0 { limit.min(faults.count_cap) } else { limit };
        let skip = number("skip", 0)?;
        let query = Query::parse(ask.param("q").unwrap_or(""))?;
        let range = query.range(present.now + skew);
        if range.is_none() && (ask.param("skip").is_some() || !query.texts.is_empty() || query.timed) {
            return Err("a valid entryTime range is required".to_owned());
        }
        let (from, to) = range.unwrap_or((present.now + skew - TimeDelta::hours(24), present.now + skew));
        if to - from > RANGE_MAX {
            return Err("the entryTime range is longer than 14 days".to_owned());
        }
        if from > to {
            return Err("the entryTime range ends before it begins".to_owned());
        }
        let (from, to) = if faults.ignore_time_filter {
            (DateTime::UNIX_EPOCH, DateTime::<Utc>::MAX_UTC)
        } else {
            (from - skew, to - skew)
        };
        let mut found: Vec<(blake3::Hash, &Placed<Entry>)> = self
            .events
            .visible(present.now, from, to)
            .filter(|event| faults.ignore_time_filter || query.admits(event, skew))
            .map(|event| (blake3::hash(event.wire.id.as_bytes()), event))
            .collect();
        // no order anyone could rely on, but the same for every page of the same question
        found.sort_by(|(a, _), (b, _)| a.as_bytes().cmp(b.as_bytes()));
        let listed = |event: &Placed<Entry>| times_listed(&event.wire.id, faults.duplicates);
        let found = found.into_iter().flat_map(|(_, event)| std::iter::repeat_n(event, listed(event)));
        let skip = if faults.looping { 0 } else { skip };
        Ok(found.skip(skip).take(limit).map(|event| shown(event, skew)).collect())
    }
}

fn shown(event: &Placed<Entry>, skew: TimeDelta) -> Value {
    let entry = &event.wire;
    json!({
        "id": entry.id,
        "orgId": ORG_ID,
        "actor": entry.actor,
        "entryTime": (event.at + skew).to_rfc3339_opts(SecondsFormat::Millis, true),
        "objectId": entry.object_id,
        "objectName": entry.object_name,
        "actionCategory": entry.category,
        "actionEvent": entry.event,
    })
}

/// What `q` asks for.
#[derive(Default)]
struct Query {
    /// `entryTime` is asked for in any way.
    timed: bool,
    from: Option<DateTime<Utc>>,
    to: Option<DateTime<Utc>>,
    /// `entryTime` that is not meant.
    not_at: Vec<DateTime<Utc>>,
    /// Field, whether equal or not, value.
    texts: Vec<(String, bool, String)>,
}

impl Query {
    fn parse(text: &str) -> Result<Self, String> {
        let mut query = Self::default();
        for clause in clauses(text)? {
            let (field, operator, value) = clause;
            let bad = || format!("{field}{operator}{value} is not supported");
            match (field.as_str(), operator) {
                ("entryTime", _) => {
                    let at = entry_time(&value)?;
                    let after = at + TimeDelta::milliseconds(1);
                    query.timed = true;
                    match operator {
                        "==" => (query.from, query.to) = (Some(at), Some(at)),
                        "!=" => query.not_at.push(at),
                        ">" => query.from = Some(query.from.map_or(after, |from| from.max(after))),
                        "<=" => query.to = Some(query.to.map_or(at, |to| to.min(at))),
                        // the documentation's table prints `=>`, its examples `>=`
                        ">=" | "=>" => query.from = Some(query.from.map_or(at, |from| from.max(at))),
                        _ => return Err(bad()),
                    }
                }
                ("actionCategory" | "actor" | "objectName", "==" | "!=") => {
                    query.texts.push((field.clone(), operator == "==", value.clone()));
                }
                _ => return Err(bad()),
            }
        }
        Ok(query)
    }

    /// The time range, if there is a valid one: it may be open at its end.
    fn range(&self, now: DateTime<Utc>) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
        self.from.map(|from| (from, self.to.unwrap_or(now.max(from))))
    }

    fn admits(&self, event: &Placed<Entry>, skew: TimeDelta) -> bool {
        let texts = self.texts.iter().all(|(field, equal, value)| {
            let held = match field.as_str() {
                "actionCategory" => &event.wire.category,
                "actor" => &event.wire.actor,
                _ => &event.wire.object_name,
            };
            (held == value) == *equal
        });
        texts && !self.not_at.contains(&(event.at + skew))
    }
}

/// The clauses of `q`: field, operator, value without its quotes. `;` between quotes is text.
fn clauses(text: &str) -> Result<Vec<(String, &'static str, String)>, String> {
    let mut clauses = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let name_end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
        let (field, behind) = rest.split_at(name_end);
        let operator = ["<=", ">=", "=>", "==", "!=", ">"].into_iter().find(|operator| behind.starts_with(operator));
        let operator = operator.ok_or_else(|| format!("q: no operator after {field:?}"))?;
        let behind = &behind[operator.len()..];
        let quote = behind.chars().next().filter(|c| *c == '"' || *c == '\'');
        let quote = quote.ok_or_else(|| format!("q: the value of {field} is not quoted"))?;
        let end = behind[1..].find(quote).ok_or_else(|| format!("q: the value of {field} does not end"))? + 1;
        clauses.push((field.to_owned(), operator, behind[1..end].to_owned()));
        rest = &behind[end + 1..];
        if let Some(next) = rest.strip_prefix(';') {
            rest = next;
        } else if !rest.is_empty() {
            return Err("q: clauses are joined by ';'".to_owned());
        }
    }
    Ok(clauses)
}

/// `yyyy-MM-dd'T'HH:mm:ss['.SSS']('Z'|Z)`, where `Z` unquoted is an offset without a colon.
fn entry_time(text: &str) -> Result<DateTime<Utc>, String> {
    let local = |text: &str| NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f").ok();
    let at = match text.strip_suffix('Z') {
        Some(rest) => local(rest).map(|at| at.and_utc()),
        None => DateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f%z")
            .ok()
            .filter(|_| text.len() > 5 && !text[text.len().saturating_sub(5)..].contains(':'))
            .map(|at| at.with_timezone(&Utc)),
    };
    at.ok_or_else(|| format!("entryTime {text:?} is not in a documented format"))
}

// === impl Session ===

impl Session {
    fn holds(&self, now: DateTime<Utc>) -> bool {
        now - if self.absolute { self.begun } else { self.used } <= IDLE
    }
}

// === impl Log ===

impl Log {
    fn new() -> Self {
        Self { events: Timeline::new(SYSTEM), sessions: BTreeMap::new(), moved: 0, refused: 0 }
    }

    /// `what` is category and event as they are sent.
    #[expect(clippy::too_many_arguments, reason = "an entry has so many parts")]
    fn put(
        &mut self,
        dice: &mut Dice,
        actor: &str,
        object: &str,
        what: (&str, &str),
        expect: Expect,
        at: DateTime<Utc>,
        visible_at: DateTime<Utc>,
    ) {
        let wire = Entry {
            id: dice.base62(22),
            actor: actor.to_owned(),
            object_id: dice.base62(22),
            object_name: object.to_owned(),
            category: what.0.to_owned(),
            event: what.1.to_owned(),
        };
        // whole seconds, as in all samples
        let at = at - TimeDelta::nanoseconds(i64::from(at.timestamp_subsec_nanos()));
        self.events.insert(Placed { at, visible_at, actors: vec![actor.to_owned()], expect, tainted: false, wire });
    }
}

fn success(category: &str, action: &str, class: Class) -> Expect {
    Expect::new(category, action, Outcome::Success, class)
}

// === what happens ===

impl SingleEvents for Log {
    fn ordinary(&mut self, dice: &mut Dice, at: DateTime<Utc>, visible_at: DateTime<Utc>) {
        let actor = *dice.pick(&ACTORS);
        let roll = dice.below(100);
        if roll < 85 {
            let agent = format!("agent-{:02}", dice.below(6));
            let (who, event, action, class) = match roll {
                0..55 => (agent.as_str(), "AGENT_LOGIN", "login", LOGIN_AGENT),
                55..74 => (actor, "USER_LOGIN", "login", LOGIN_USER),
                _ => (actor, "LOGOUT", "logout", Class::Logout),
            };
            let expect = success(AUTHENTICATION.1, action, class);
            self.put(dice, who, who, (AUTHENTICATION.0, event), expect, at, visible_at);
            return;
        }
        let ((wire_category, category), (wire_event, action), _) = *dice.weighted(&CHANGES, |(.., share)| *share);
        let object = format!("idsv3_{category}_{}", dice.below(100));
        let expect = success(category, action, Class::Change);
        self.put(dice, actor, &object, (wire_category, wire_event), expect, at, visible_at);
    }

    fn unlisted(&mut self, dice: &mut Dice, number: Option<u32>, at: DateTime<Utc>, visible_at: DateTime<Utc>) {
        let (wire_category, category) = novelty(("SAML Config", "saml_config"), number);
        let expect = success(&category, "enable", Class::Change);
        self.put(dice, "admin", "something new", (&wire_category, "ENABLE"), expect, at, visible_at);
    }
}

impl Log {
    fn deletion_burst(&mut self, dice: &mut Dice, times: &[DateTime<Utc>], now: DateTime<Utc>) -> usize {
        for at in times {
            let expect = success("user", "delete", Class::Change);
            self.put(dice, "mallory@example.com", "someone", ("User", "DELETE"), expect, *at, now.max(*at));
        }
        times.len()
    }

    fn privilege_escalation(&mut self, dice: &mut Dice, at: DateTime<Utc>, now: DateTime<Utc>) -> usize {
        let steps = [
            ("User", "user", "CREATE", "create"),
            ("Role", "role", "UPDATE", "update"),
            ("User group", "user_group", "UPDATE", "update"),
        ];
        for (number, (wire_category, category, event, action)) in steps.into_iter().enumerate() {
            let at = at + TimeDelta::seconds(20 * i64::try_from(number).unwrap_or(0));
            let expect = success(category, action, Class::Change);
            self.put(dice, "mallory@example.com", "helpdesk2", (wire_category, event), expect, at, now.max(at));
        }
        steps.len()
    }
}

#[cfg(test)]
mod tests;
