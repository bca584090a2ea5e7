//! HID ActivID, SCIM audit events: `POST /idp/{tenant}/authn/token` and
//! `POST /scim/{tenant}/v2/Event/.search`.
//!
//! Promises: the documented filter grammar and nothing beyond it; `meta.created` bounds are
//! exclusive; at most `count` events, which ones is not said; no order, no totals, no times and no
//! ids in the tokens; both token shapes of the documentation; `tainted` only where the search asks
//! to verify and one of the returned records fails.
//!
//! Leaves to others: `POST /Event/` (external events).

mod search;
mod token;

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta, Utc};
use http::{StatusCode, header};
use serde_json::{Value, json};

use self::search::Filter;
use self::token::{Deed, Record};
use super::chance::{Cell, Dice};
use super::faults::ServiceFaults;
use super::injection::{Plays, Scenario, Scene};
use super::message::{Ask, Listing, Refusal, Reply};
use super::service::{
    Call, Example, Injected, Present, Route, Routed, Sample, Service, Sessions, Simulated, SingleEvents, Told, posted,
};
use super::truth::{Events, Expect, Placed, Timeline, Wire};
use crate::event::{Class, Outcome, Principal, System};

const SYSTEM: System = System::named("activid");

pub(super) const SERVICE: Simulated = Simulated {
    system: SYSTEM,
    source: "badge",
    keys: &[
        ("base_url", Told::Address("")),
        ("tenant", Told::Text(TENANT)),
        ("client_id", Told::Text(CLIENT_ID)),
        ("client_secret", Told::Credential),
    ],
    secrets: &[CLIENT_SECRET],
    refused_secrets: &["Activ:Secret+44%"],
    is_feed: false,
    has_ids: false,
    loses_ids: None,
    sessions: Sessions::Tokens,
    example: Example {
        verb: "deleteUser",
        kind: Some("Users"),
        status: Some("RESPONSE_SUCCESS"),
        category: "user",
        action: "delete",
        outcome: "success",
    },
    sample: Sample {
        event: r#"{"type":"deleteUser","values":{"n":$N,"message":$UNREAD},"status":"RESPONSE_SUCCESS"}"#,
        wrapped: Some(unsigned),
        page: r#"{"schemas":["urn:ietf:params:scim:api:messages:2.0:EventList"],"eventTokens":[$EVENTS]}"#,
        login: r#"{"access_token":"$TOKEN","token_type":"Bearer","expires_in":3600}"#,
    },
    begin: |_| Box::new(Log::new()),
};

/// A token of this payload, as a text in JSON, that nobody signed.
fn unsigned(payload: &[u8]) -> Vec<u8> {
    format!("\"e30.{}.\"", URL_SAFE_NO_PAD.encode(payload)).into_bytes()
}

/// The one tenant there is.
pub const TENANT: &str = "ACME";

/// The client that is let in.
pub const CLIENT_ID: &str = "audit-reader";

/// Its secret: of letters that differ once they are URL-encoded, as the service requires before
/// base64.
pub const CLIENT_SECRET: &str = "k8+:%/=Zq tail";

const EXPIRES_SECONDS: i64 = 3600;
/// Where no `count` is asked for (the documentation does not say).
const COUNT_DEFAULT: usize = 100;

const LOGIN_USER: Class = Class::Login(Principal::User);
const LOGIN_DEVICE: Class = Class::Login(Principal::Device);

/// Names of actions, what they are counted as, what kind of resource they are about, how often.
const DEEDS: [(&str, &str, &str, Class, &str, u64); 27] = [
    ("primaryAuthenticateUP", "authentication", "login", LOGIN_USER, "Users", 300),
    ("indirectPrimaryAuthenticateUP", "authentication", "login", LOGIN_USER, "Users", 150),
    ("primaryAuthenticateDevice", "authentication", "login", LOGIN_DEVICE, "Devices", 120),
    ("indirectPrimaryAuthenticateDevice", "authentication", "login", LOGIN_DEVICE, "Devices", 60),
    ("logout", "authentication", "logout", Class::Logout, "Users", 120),
    ("indirectLogoutUser", "authentication", "logout", Class::Logout, "Users", 20),
    ("addRoleToUser", "role", "create", Class::Change, "Users", 12),
    ("addAssetToAssetSet", "asset", "create", Class::Change, "Assets", 8),
    ("addCredentialToDevice", "credential", "create", Class::Change, "Devices", 14),
    ("addUserFunctionPrivilege", "user_function_privilege", "create", Class::Change, "Users", 6),
    ("addRoleFunctionSetPrivilege", "role_function_set_privilege", "create", Class::Change, "Roles", 4),
    ("assignDeviceToUser", "device", "create", Class::Change, "Devices", 18),
    ("importDevice", "device", "create", Class::Change, "Devices", 6),
    ("changeUserPassword", "user_password", "update", Class::Change, "Users", 24),
    ("changeOwnExpiredPassword", "own_expired_password", "update", Class::Change, "Users", 10),
    ("changeUserExpiredPassword", "user_expired_password", "update", Class::Change, "Users", 6),
    ("changeSoftPinDevice", "soft_pin_device", "update", Class::Change, "Devices", 6),
    ("unlockUser", "user", "update", Class::Change, "Users", 8),
    ("removeRoleFromUser", "role", "delete", Class::Change, "Users", 8),
    ("deleteUser", "user", "delete", Class::Change, "Users", 8),
    ("unassignDeviceFromUser", "device", "delete", Class::Change, "Devices", 8),
    ("suspendDevice", "device", "disable", Class::Change, "Devices", 6),
    ("lockAuthenticator", "authenticator", "disable", Class::Change, "Users", 6),
    ("4TRESS.CREATE_USER", "user", "create", Class::Change, "Users", 12),
    ("CREATE", "user", "create", Class::Change, "Users", 8),
    ("DELETE", "device", "delete", Class::Change, "Devices", 6),
    ("UPDATE", "group", "update", Class::Change, "Groups", 6),
];

/// The tenant's log and who may read it.
struct Log {
    events: Timeline<Record>,
    /// Tokens and when they end.
    tokens: BTreeMap<String, DateTime<Utc>>,
    /// Refused logins in a row.
    refused: u32,
}

impl Wire for Record {
    fn id(&self) -> Option<&str> {
        None
    }
}

impl Routed for Log {
    const ROUTES: &'static [Route<Self>] = &[
        posted("/idp/{tenant}/authn/token", Call::Login, Log::login),
        posted("/scim/{tenant}/v2/Event/.search", Call::Read, Log::search),
    ];
}

impl Service for Log {
    fn refuse(&self, refusal: Refusal, _: &ServiceFaults, _: &Ask) -> Reply {
        refuse(refusal)
    }

    fn listing(&self) -> Listing {
        // a token is what its event says: another one would be another event
        Listing { name: "eventTokens", no_event: json!("eyJhbGciOiJub25lIn0.bm90IGpzb24."), takes_fields: false }
    }

    fn traffic(&mut self, cell: &mut Cell) {
        self.usual_traffic(cell);
        if cell.sometimes(1.0) {
            let start = cell.moment();
            let times: Vec<_> = (0..40).map(|n| start + TimeDelta::milliseconds(1_400 * n)).collect();
            self.password_spray(&mut cell.dice, &times, start);
        }
        if cell.sometimes(0.3) {
            let at = cell.moment();
            self.tainted_record(&mut cell.dice, at, at);
        }
        if cell.sometimes(1.0) {
            let at = cell.moment();
            self.privilege_escalation(&mut cell.dice, at, at);
        }
    }

    fn inject(&mut self, dice: &mut Dice, event: Injected<'_>) {
        let Injected { call, expect, at, visible_at } = event;
        // without ids, events are equal only if all that is drawn for them is
        let mut same = dice.clone();
        let deed = Deed {
            kind: &call.verb,
            resource: call.kind.as_deref().unwrap_or("Users"),
            status: call.status.as_deref(),
            actor: call.actor.clone().unwrap_or_else(|| someone(&mut same)),
            address: address(&mut same),
            correlation_id: same.uuid(),
            tainted: call.tainted,
        };
        self.add(&deed, expect, at, visible_at);
    }

    fn events(&mut self) -> Option<&mut dyn Events> {
        Some(&mut self.events)
    }

    fn plays(&self, scenario: Scenario) -> Plays {
        match scenario {
            Scenario::PasswordSpray | Scenario::TaintedRecord | Scenario::NewCategory | Scenario::LateEvents => {
                Plays::Usually
            }
            Scenario::DeletionBurst | Scenario::PrivilegeEscalation | Scenario::CategoryFlood => Plays::WhenNamed,
            _ => Plays::Never,
        }
    }

    fn play(&mut self, scene: &Scene, dice: &mut Dice) -> usize {
        match scene.name {
            Scenario::PasswordSpray => {
                let times = scene.moments(40, dice);
                self.password_spray(dice, &times, scene.now)
            }
            Scenario::DeletionBurst => {
                let times = scene.moments(25, dice);
                self.deletion_burst(dice, &times, scene.now)
            }
            Scenario::PrivilegeEscalation => self.privilege_escalation(dice, scene.at, scene.now),
            Scenario::TaintedRecord => {
                let count = scene.count(1);
                for _ in 0..count {
                    let at = scene.moment(dice);
                    self.tainted_record(dice, at, scene.now);
                }
                count as usize
            }
            _ => self.play_common(scene, dice),
        }
    }

    fn end_sessions(&mut self) -> bool {
        self.tokens.clear();
        true
    }
}

fn refuse(refusal: Refusal) -> Reply {
    match refusal {
        Refusal::Unauthorized => scim_error(StatusCode::UNAUTHORIZED, "", "The access token is missing or invalid."),
        Refusal::Forbidden => scim_error(StatusCode::FORBIDDEN, "", "Read audit log permission is required."),
        Refusal::Throttled => scim_error(StatusCode::TOO_MANY_REQUESTS, "tooMany", "Too many requests."),
        Refusal::Broken => scim_error(StatusCode::INTERNAL_SERVER_ERROR, "", "Internal error."),
        Refusal::Unavailable => Reply::text(StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable"),
    }
}

/// SCIM's error, whose `status` is a string, with the product's own `errorCode`.
fn scim_error(status: StatusCode, scim_type: &str, detail: &str) -> Reply {
    let mut error = json!({
        "schemas": ["urn:ietf:params:scim:api:messages:2.0:Error"],
        "detail": detail,
        "status": status.as_str(),
        "errorCode": 1292,
    });
    if !scim_type.is_empty() {
        error["scimType"] = Value::from(scim_type);
    }
    let mut reply = Reply::json(status, error);
    reply.headers = vec![(header::CONTENT_TYPE, "application/scim+json;charset=UTF-8".to_owned())];
    if status == StatusCode::UNAUTHORIZED {
        reply = reply.with(header::WWW_AUTHENTICATE, "Bearer realm=\"SCIM\", error=\"invalid_token\"");
    }
    reply
}

// === login ===

impl Log {
    fn login(&mut self, present: &mut Present<'_>, ask: &Ask) -> Reply {
        if ask.segments[1] != TENANT {
            return Reply::text(StatusCode::NOT_FOUND, "Not Found");
        }
        let Some(form) = ask.form() else {
            return oauth_error("invalid_request", "The body must be a form.");
        };
        if form.get("grant_type").map(String::as_str) != Some("client_credentials") {
            return oauth_error("unsupported_grant_type", "The grant type is not supported.");
        }
        let given = ask.basic().map_or_else(
            || Some((form.get("client_id")?.clone(), form.get("client_secret")?.clone())),
            basic_credentials,
        );
        let lock_after = present.faults.lock_after;
        let locked = lock_after > 0 && self.refused >= lock_after;
        if locked || given != Some((CLIENT_ID.to_owned(), CLIENT_SECRET.to_owned())) {
            self.refused += 1;
            // the service says 400, not 401
            return oauth_error("invalid_client", "Client authentication failed.");
        }
        self.refused = 0;
        let real_seconds = match present.faults.token_seconds {
            0 => EXPIRES_SECONDS,
            seconds => i64::from(seconds),
        };
        let token = present.draw("activid token").base62(48);
        present.issued.push(token.clone());
        self.tokens.retain(|_, end| present.now < *end);
        self.tokens.insert(token.clone(), present.now + TimeDelta::seconds(real_seconds));
        if present.faults.self_noise {
            self.note_self(present, "primaryAuthenticateUP", "authentication", "login", LOGIN_USER);
        }
        Reply::json(
            StatusCode::OK,
            json!({"access_token": token, "token_type": "Bearer", "expires_in": EXPIRES_SECONDS, "scope": "openid"}),
        )
        .with(header::CACHE_CONTROL, "no-store")
    }
}

/// Id and secret, each URL-encoded, joined by a colon, in base64.
fn basic_credentials(key: &str) -> Option<(String, String)> {
    let text = String::from_utf8(STANDARD.decode(key).ok()?).ok()?;
    let (id, secret) = text.split_once(':')?;
    let decoded = |part: &str| -> String {
        let part = part.replace('&', "%26").replace('=', "%3D");
        url::form_urlencoded::parse(part.as_bytes()).map(|(key, _)| key.into_owned()).collect()
    };
    Some((decoded(id), decoded(secret)))
}

fn oauth_error(error: &str, description: &str) -> Reply {
    Reply::json(StatusCode::BAD_REQUEST, json!({"error": error, "error_description": description}))
}

// === search ===

impl Log {
    fn search(&mut self, present: &mut Present<'_>, ask: &Ask) -> Reply {
        if ask.segments[1] != TENANT {
            return scim_error(StatusCode::NOT_FOUND, "", "Unknown tenant.");
        }
        let let_in = ask.bearer().and_then(|token| self.tokens.get(token)).is_some_and(|end| present.now < *end);
        if !let_in {
            return refuse(Refusal::Unauthorized);
        }
        if !ask.header("content-type").is_some_and(|kind| kind.contains("json")) {
            return scim_error(StatusCode::UNSUPPORTED_MEDIA_TYPE, "", "Expected application/scim+json.");
        }
        if present.faults.self_noise {
            self.note_self(present, "getAuditLog", "audit_log", "other", Class::Change);
        }
        match self.found(present, ask) {
            Ok(list) => {
                let mut reply = Reply::json(StatusCode::OK, list);
                reply.headers = vec![(header::CONTENT_TYPE, "application/json+scim;charset=UTF-8".to_owned())];
                reply
            }
            Err((scim_type, detail)) => scim_error(StatusCode::BAD_REQUEST, scim_type, &detail),
        }
    }

    fn found(&self, present: &Present<'_>, ask: &Ask) -> Result<Value, (&'static str, String)> {
        let request: Value =
            serde_json::from_slice(&ask.body).map_err(|error| ("invalidSyntax", format!("not JSON: {error}")))?;
        let schema = "urn:ietf:params:scim:api:messages:2.0:SearchRequest";
        if !request["schemas"].as_array().is_some_and(|schemas| schemas.iter().any(|one| one == schema)) {
            return Err(("invalidSyntax", format!("schemas must hold {schema}")));
        }
        for unsupported in ["startIndex", "sortBy", "sortOrder", "attributes", "excludedAttributes"] {
            if request.get(unsupported).is_some() {
                return Err(("invalidValue", format!("{unsupported} is not supported")));
            }
        }
        let count = match request.get("count") {
            None => COUNT_DEFAULT,
            Some(count) => count
                .as_u64()
                .and_then(|count| usize::try_from(count).ok())
                .ok_or(("invalidValue", "count must be a whole number".to_owned()))?,
        };
        let cap = match present.faults.count_cap {
            0 => count,
            cap => count.min(cap),
        };
        let text = request.get("filter").map_or(Some(""), Value::as_str);
        let text = text.ok_or(("invalidFilter", "filter must be a string".to_owned()))?;
        let skew = present.skew;
        let mut filter = Filter::parse(text).map_err(|detail| ("invalidFilter", detail))?;
        if present.faults.ignore_time_filter {
            filter.after = None;
            filter.before = None;
        }
        let from = filter.after.map_or(DateTime::UNIX_EPOCH, |after| after - skew + TimeDelta::milliseconds(1));
        let to = filter.before.map_or(DateTime::<Utc>::MAX_UTC, |before| before - skew - TimeDelta::milliseconds(1));
        let mut records: Vec<(blake3::Hash, &Placed<Record>)> = self
            .events
            .visible(present.now, from, to)
            .filter(|event| filter.admits(&event.wire))
            .map(|event| {
                // no order: another one for every search
                let place =
                    blake3::Hasher::new().update(text.as_bytes()).update(event.wire.token.as_bytes()).finalize();
                (place, event)
            })
            .collect();
        records.sort_by(|(a, _), (b, _)| a.as_bytes().cmp(b.as_bytes()));
        records.truncate(cap);
        let tokens: Vec<&str> = records.iter().map(|(_, event)| event.wire.token.as_str()).collect();
        let mut list = json!({"schemas": ["urn:ietf:params:scim:api:messages:2.0:EventList"], "eventTokens": tokens});
        if filter.verify && records.iter().any(|(_, event)| event.tainted) {
            list["tainted"] = Value::Bool(true);
        }
        Ok(list)
    }
}

// === impl Log ===

impl Log {
    fn new() -> Self {
        Self { events: Timeline::new(SYSTEM), tokens: BTreeMap::new(), refused: 0 }
    }

    fn add(&mut self, deed: &Deed<'_>, expect: Expect, at: DateTime<Utc>, visible_at: DateTime<Utc>) {
        let wire = Record::new(deed);
        // shape (b) has no place for the direct user
        let actors = deed.status.map(|_| deed.actor.clone()).into_iter().collect();
        self.events.insert(Placed { at, visible_at, actors, expect, tainted: deed.tainted, wire });
    }

    /// The reader's own doings, in the log it reads.
    fn note_self(&mut self, present: &mut Present<'_>, kind: &str, category: &str, action: &str, class: Class) {
        let correlation_id = present.draw("activid self").uuid();
        let deed = Deed {
            kind,
            resource: "Users",
            status: Some("RESPONSE_SUCCESS"),
            actor: CLIENT_ID.to_owned(),
            address: "192.0.2.10".to_owned(),
            correlation_id,
            tainted: false,
        };
        self.add(&deed, Expect::new(category, action, Outcome::Success, class), present.now, present.now);
    }
}

// === what happens ===

fn someone(dice: &mut Dice) -> String {
    format!("user{:03}", dice.below(300))
}

fn address(dice: &mut Dice) -> String {
    format!("198.51.100.{}", dice.below(256))
}

impl SingleEvents for Log {
    fn ordinary(&mut self, dice: &mut Dice, at: DateTime<Utc>, visible_at: DateTime<Utc>) {
        let (kind, category, action, class, resource, _) = *dice.weighted(&DEEDS, |(.., share)| *share);
        let bare = ["CREATE", "DELETE", "UPDATE"].contains(&kind);
        let (status, outcome) = match dice.below(100) {
            _ if bare && dice.chance(0.6) => (None, Outcome::Unknown),
            0..7 => (Some("RESPONSE_FAILURE"), Outcome::Failure),
            7 => (Some(""), Outcome::Unknown),
            _ => (Some("RESPONSE_SUCCESS"), Outcome::Success),
        };
        let deed = Deed {
            kind,
            resource,
            status,
            actor: someone(dice),
            address: address(dice),
            // without it, equal events at different times have equal tokens
            correlation_id: if dice.chance(0.3) { String::new() } else { dice.uuid() },
            tainted: false,
        };
        let expect = Expect::new(category, action, outcome, class);
        self.add(&deed, expect.clone(), at, visible_at);
        if dice.chance(0.03) {
            // the same again within the same second: an equal token that is another event
            let left = 1000 - at.timestamp_subsec_millis();
            let again = at + TimeDelta::milliseconds(i64::try_from(dice.below(u64::from(left))).unwrap_or(0));
            self.add(&deed, expect, again, visible_at.max(again));
        }
    }

    fn unlisted(&mut self, dice: &mut Dice, number: Option<u32>, at: DateTime<Utc>, visible_at: DateTime<Utc>) {
        let (kind, category) = number.map_or(("createHologram".to_owned(), "hologram".to_owned()), |n| {
            (format!("createNovelty{n}ForUser"), format!("novelty{n}"))
        });
        let deed = Deed {
            kind: &kind,
            resource: "Users",
            status: Some("RESPONSE_SUCCESS"),
            actor: someone(dice),
            address: address(dice),
            correlation_id: dice.uuid(),
            tainted: false,
        };
        self.add(&deed, Expect::new(&category, "create", Outcome::Success, Class::Change), at, visible_at);
    }
}

impl Log {
    fn password_spray(&mut self, dice: &mut Dice, times: &[DateTime<Utc>], now: DateTime<Utc>) -> usize {
        let login = |outcome| Expect::new("authentication", "login", outcome, LOGIN_USER);
        let mut deed = Deed {
            kind: "primaryAuthenticateUP",
            resource: "Users",
            status: Some("RESPONSE_FAILURE"),
            actor: String::new(),
            address: "203.0.113.66".to_owned(),
            correlation_id: String::new(),
            tainted: false,
        };
        for (number, at) in times.iter().enumerate() {
            deed.actor = format!("user{number:03}");
            deed.correlation_id = dice.uuid();
            self.add(&deed, login(Outcome::Failure), *at, now.max(*at));
        }
        let Some(last) = times.iter().max() else { return 0 };
        deed.status = Some("RESPONSE_SUCCESS");
        deed.correlation_id = dice.uuid();
        self.add(&deed, login(Outcome::Success), *last, now.max(*last));
        times.len() + 1
    }

    fn deletion_burst(&mut self, dice: &mut Dice, times: &[DateTime<Utc>], now: DateTime<Utc>) -> usize {
        for at in times {
            self.add(
                &by_mallory("deleteUser", dice),
                Expect::new("user", "delete", Outcome::Success, Class::Change),
                *at,
                now.max(*at),
            );
        }
        times.len()
    }

    fn privilege_escalation(&mut self, dice: &mut Dice, at: DateTime<Utc>, now: DateTime<Utc>) -> usize {
        let steps = [("addRoleToUser", "role"), ("addUserFunctionPrivilege", "user_function_privilege")];
        for (kind, category) in steps {
            self.add(
                &by_mallory(kind, dice),
                Expect::new(category, "create", Outcome::Success, Class::Change),
                at,
                now.max(at),
            );
        }
        steps.len()
    }

    fn tainted_record(&mut self, dice: &mut Dice, at: DateTime<Utc>, now: DateTime<Utc>) {
        let deed = Deed {
            kind: "changeUserPassword",
            resource: "Users",
            status: Some("RESPONSE_SUCCESS"),
            actor: someone(dice),
            address: address(dice),
            correlation_id: dice.uuid(),
            tainted: true,
        };
        self.add(&deed, Expect::new("user_password", "update", Outcome::Success, Class::Change), at, now.max(at));
    }
}

/// What an intruder does to users, and the service lets happen.
fn by_mallory<'a>(kind: &'a str, dice: &mut Dice) -> Deed<'a> {
    Deed {
        kind,
        resource: "Users",
        status: Some("RESPONSE_SUCCESS"),
        actor: "mallory".to_owned(),
        address: "203.0.113.66".to_owned(),
        correlation_id: dice.uuid(),
        tainted: false,
    }
}

#[cfg(test)]
mod tests;
