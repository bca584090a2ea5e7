//! HID `ActivID`, SCIM audit events: `POST /idp/{tenant}/authn/token` and
//! `POST /scim/{tenant}/v2/Event/.search`.
//!
//! Promises: the documented filter grammar and nothing beyond it; `meta.created` bounds are
//! exclusive; at most `count` events, which ones is not said; no order, no totals, no times and no
//! ids in the tokens; both token shapes of the documentation; `tainted` only where the search asks
//! to verify and one of the returned records fails.
//!
//! Leaves to others: `POST /Event/` (external events).

use std::collections::BTreeMap;

use axum::Router;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta, Utc};
use http::{Method, StatusCode, header};
use serde::Serialize;
use serde_json::{Value, json};

use super::chance::{Cell, Dice};
use super::message::{Ask, Refusal, Reply};
use super::truth::{Expect, Placed, Timeline};
use super::world::{Call, EventCall, Inner, World};
use crate::event::{Class, Outcome, Principal, System};

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
pub(super) struct Log {
    pub(super) events: Timeline<Record>,
    /// Tokens and when they end.
    tokens: BTreeMap<String, DateTime<Utc>>,
    /// Refused logins in a row.
    refused: u32,
}

/// An event as it is sent and as it can be searched for.
pub(super) struct Record {
    token: String,
    kind: String,
    status: Option<String>,
    direct_user: String,
    indirect_user: String,
    authentication_type: String,
    correlation_id: String,
    resource_uri: String,
}

/// What happened.
struct Deed<'a> {
    kind: &'a str,
    resource: &'a str,
    /// `None` is shape (b), which has no place for it.
    status: Option<&'a str>,
    actor: String,
    address: String,
    correlation_id: String,
    tainted: bool,
}

pub(super) fn routes(world: &World) -> Router {
    Router::new()
        .route("/idp/{tenant}/authn/token", world.handler(&Method::POST, System::Activid, Call::Login, login))
        .route("/scim/{tenant}/v2/Event/.search", world.handler(&Method::POST, System::Activid, Call::Read, search))
}

pub(super) fn refuse(refusal: Refusal) -> Reply {
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

fn login(world: &mut Inner, ask: &Ask) -> Reply {
    if ask.segments[1] != TENANT {
        return Reply::text(StatusCode::NOT_FOUND, "Not Found");
    }
    let Some(form) = ask.form() else {
        return oauth_error("invalid_request", "The body must be a form.");
    };
    if form.get("grant_type").map(String::as_str) != Some("client_credentials") {
        return oauth_error("unsupported_grant_type", "The grant type is not supported.");
    }
    let given = ask
        .basic()
        .map_or_else(|| Some((form.get("client_id")?.clone(), form.get("client_secret")?.clone())), basic_credentials);
    let lock_after = world.faults.activid.lock_after;
    let locked = lock_after > 0 && world.activid.refused >= lock_after;
    if locked || given != Some((CLIENT_ID.to_owned(), CLIENT_SECRET.to_owned())) {
        world.activid.refused += 1;
        // the service says 400, not 401
        return oauth_error("invalid_client", "Client authentication failed.");
    }
    world.activid.refused = 0;
    let real_seconds = match world.faults.activid.token_seconds {
        0 => EXPIRES_SECONDS,
        seconds => i64::from(seconds),
    };
    let token = world.draw("activid token").base62(48);
    world.issued.push(token.clone());
    world.activid.tokens.retain(|_, end| world.now < *end);
    world.activid.tokens.insert(token.clone(), world.now + TimeDelta::seconds(real_seconds));
    if world.faults.activid.self_noise {
        note_self(world, "primaryAuthenticateUP", "authentication", "login", LOGIN_USER);
    }
    Reply::json(
        StatusCode::OK,
        json!({"access_token": token, "token_type": "Bearer", "expires_in": EXPIRES_SECONDS, "scope": "openid"}),
    )
    .with(header::CACHE_CONTROL, "no-store")
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

fn search(world: &mut Inner, ask: &Ask) -> Reply {
    if ask.segments[1] != TENANT {
        return scim_error(StatusCode::NOT_FOUND, "", "Unknown tenant.");
    }
    let let_in = ask.bearer().and_then(|token| world.activid.tokens.get(token)).is_some_and(|end| world.now < *end);
    if !let_in {
        return refuse(Refusal::Unauthorized);
    }
    if !ask.header("content-type").is_some_and(|kind| kind.contains("json")) {
        return scim_error(StatusCode::UNSUPPORTED_MEDIA_TYPE, "", "Expected application/scim+json.");
    }
    if world.faults.activid.self_noise {
        note_self(world, "getAuditLog", "audit_log", "other", Class::Change);
    }
    match found(world, ask) {
        Ok(list) => {
            let mut reply = Reply::json(StatusCode::OK, list);
            reply.headers = vec![(header::CONTENT_TYPE, "application/json+scim;charset=UTF-8".to_owned())];
            reply
        }
        Err((scim_type, detail)) => scim_error(StatusCode::BAD_REQUEST, scim_type, &detail),
    }
}

fn found(world: &Inner, ask: &Ask) -> Result<Value, (&'static str, String)> {
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
    let cap = match world.faults.activid.count_cap {
        0 => count,
        cap => count.min(cap),
    };
    let text = request.get("filter").map_or(Some(""), Value::as_str);
    let text = text.ok_or(("invalidFilter", "filter must be a string".to_owned()))?;
    let skew = world.skew(System::Activid);
    let mut filter = Filter::parse(text).map_err(|detail| ("invalidFilter", detail))?;
    if world.faults.activid.ignore_time_filter {
        filter.after = None;
        filter.before = None;
    }
    let from = filter.after.map_or(DateTime::UNIX_EPOCH, |after| after - skew + TimeDelta::milliseconds(1));
    let to = filter.before.map_or(DateTime::<Utc>::MAX_UTC, |before| before - skew - TimeDelta::milliseconds(1));
    let mut records: Vec<(blake3::Hash, &Placed<Record>)> = world
        .activid
        .events
        .visible(world.now, from, to)
        .filter(|event| filter.admits(&event.wire))
        .map(|event| {
            // no order: another one for every search
            let place = blake3::Hasher::new().update(text.as_bytes()).update(event.wire.token.as_bytes()).finalize();
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

/// A search's filter: clauses joined by `and`.
#[derive(Default)]
struct Filter {
    after: Option<DateTime<Utc>>,
    before: Option<DateTime<Utc>>,
    verify: bool,
    /// Attribute, operator, value.
    clauses: Vec<(String, String, String)>,
}

impl Filter {
    fn parse(text: &str) -> Result<Self, String> {
        let words = filter_words(text)?;
        let mut filter = Self::default();
        for (number, clause) in words.chunks(4).enumerate() {
            let [attribute, operator, value, joint @ ..] = clause else {
                return Err(format!("clause {} is not ATTRIBUTE OPERATOR VALUE", number + 1));
            };
            let last = (number + 1) * 4 > words.len();
            match joint {
                [] if last => {}
                [and] if and.eq_ignore_ascii_case("and") && (number + 1) * 4 < words.len() => {}
                _ => return Err("clauses are joined by 'and' only".to_owned()),
            }
            let operator = operator.to_ascii_lowercase();
            match (attribute.as_str(), operator.as_str()) {
                ("meta.created", "gt") => {
                    let at = moment(value)?;
                    filter.after = Some(filter.after.map_or(at, |after| after.max(at)));
                }
                ("meta.created", "lt") => {
                    let at = moment(value)?;
                    filter.before = Some(filter.before.map_or(at, |before| before.min(at)));
                }
                ("verify", "eq") if value == "true" => filter.verify = true,
                ("type", "eq" | "co" | "ew" | "sw")
                | (
                    "directUserExtId" | "indirectUserExtId" | "authenticationType" | "resourceUris" | "eventId"
                    | "correlationId" | "status",
                    "eq",
                ) => filter.clauses.push((attribute.clone(), operator, value.clone())),
                _ => return Err(format!("{attribute} {operator} {value} is not supported")),
            }
        }
        Ok(filter)
    }

    fn admits(&self, record: &Record) -> bool {
        self.clauses.iter().all(|(attribute, operator, value)| {
            let held = match attribute.as_str() {
                "type" | "eventId" => record.kind.as_str(),
                "directUserExtId" => &record.direct_user,
                "indirectUserExtId" => &record.indirect_user,
                "authenticationType" => &record.authentication_type,
                "correlationId" => &record.correlation_id,
                "resourceUris" if record.resource_uri.contains("/Users/") => &record.resource_uri,
                "status" => record.status.as_deref().unwrap_or(""),
                _ => return false,
            };
            let bare = value.trim_matches('*');
            match operator.as_str() {
                "co" => held.contains(bare),
                "sw" => held.starts_with(bare),
                "ew" => held.ends_with(bare),
                _ => match (value.starts_with('*') && value.len() > 1, value.ends_with('*')) {
                    (true, true) => held.contains(bare),
                    (true, false) => held.ends_with(bare),
                    (false, true) => held.starts_with(bare),
                    (false, false) => held == value,
                },
            }
        })
    }
}

/// The words of a filter; a quoted one may hold blanks.
fn filter_words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut letters = text.chars().peekable();
    while let Some(first) = letters.next() {
        if first.is_whitespace() {
            continue;
        }
        let mut word = String::new();
        if first == '"' {
            loop {
                match letters.next() {
                    Some('"') => break,
                    Some('\\') => word.extend(letters.next()),
                    Some(letter) => word.push(letter),
                    None => return Err("a quoted value does not end".to_owned()),
                }
            }
        } else {
            word.push(first);
            while let Some(letter) = letters.next_if(|letter| !letter.is_whitespace()) {
                word.push(letter);
            }
            if word.starts_with('(') {
                return Err("grouping is not supported".to_owned());
            }
        }
        words.push(word);
    }
    Ok(words)
}

/// `yyyy-MM-dd'T'HH:mm:ss[.SSS](Z|+0200|+02:00)`.
fn moment(text: &str) -> Result<DateTime<Utc>, String> {
    let shaped = text.len() >= 20 && text.as_bytes()[10] == b'T' && !text.contains(' ');
    text.parse::<DateTime<Utc>>().ok().filter(|_| shaped).ok_or_else(|| format!("{text} is no date"))
}

// === tokens ===

/// Shape (a), the documentation's typical event.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Typical<'a> {
    schemas: [&'a str; 1],
    publisher_uri: &'a str,
    resource_uris: [&'a str; 1],
    #[serde(rename = "type")]
    kind: &'a str,
    attributes: &'a [&'a str],
    values: TypicalValues<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TypicalValues<'a> {
    alsi: &'a str,
    authentication_type: &'a str,
    channel: &'a str,
    correlation_id: &'a str,
    correlation_type: &'a str,
    direct_user: &'a str,
    event_id: &'a str,
    event_type: &'a str,
    host_address: &'a str,
    message: &'a str,
    palsi: &'a str,
    parameters: &'a str,
    response: &'a str,
    serial_number: &'a str,
    texts: &'a str,
    status: &'a str,
}

/// Shape (b), the documentation's sample token.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Notification<'a> {
    publisher_uri: &'a str,
    feed_uris: [&'a str; 1],
    resource_uris: [&'a str; 1],
    event_types: [&'a str; 1],
    attributes: &'a [&'a str],
    values: Value,
}

const PUBLISHER: &str = "https://activid.example.com";
const ATTRIBUTES: [&str; 16] = [
    "alsi",
    "authenticationType",
    "channel",
    "correlationId",
    "correlationType",
    "directUser",
    "eventId",
    "eventType",
    "hostAddress",
    "message",
    "palsi",
    "parameters",
    "response",
    "serialNumber",
    "status",
    "texts",
];

impl Record {
    fn new(deed: &Deed<'_>) -> Self {
        let resource_uri = format!("{PUBLISHER}/{}/{}", deed.resource, number_of(&deed.actor));
        let device = deed.resource == "Devices";
        let authentication_type = if device { "AT_EMPOTP" } else { "AT_EMPPWD" };
        let parameters = if device { "ATC=\"AT_EMPOTP\" DID=\"11178\"" } else { "ATC=\"AT_EMPPWD\"" };
        let payload = match deed.status {
            Some(status) => serde_json::to_string(&Typical {
                schemas: ["urn:ietf:params:scim:schemas:notify:2.0:Event"],
                publisher_uri: PUBLISHER,
                resource_uris: [&resource_uri],
                kind: deed.kind,
                attributes: &ATTRIBUTES,
                values: TypicalValues {
                    alsi: "",
                    authentication_type,
                    channel: "CH_DIREXT",
                    correlation_id: &deed.correlation_id,
                    correlation_type: "",
                    direct_user: &deed.actor,
                    event_id: deed.kind,
                    event_type: "AUDIT",
                    host_address: &deed.address,
                    message: "",
                    palsi: "",
                    parameters,
                    response: "",
                    serial_number: "",
                    texts: "",
                    status,
                },
            }),
            None => serde_json::to_string(&Notification {
                publisher_uri: PUBLISHER,
                feed_uris: ["https://jhub.example.com/Feeds/98d52461fa5bbc879593b7754"],
                resource_uris: [&resource_uri],
                event_types: [deed.kind],
                attributes: &["id", "name", "userName", "password", "emails"],
                values: json!({"id": number_of(&deed.actor).to_string(), "userName": deed.actor,
                    "password": "not4u2no", "correlationId": deed.correlation_id,
                    "emails": [{"type": "work", "value": "jdoe@example.com"}]}),
            }),
        };
        let payload = payload.unwrap_or_default();
        Self {
            token: format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), URL_SAFE_NO_PAD.encode(payload)),
            kind: deed.kind.to_owned(),
            status: deed.status.map(str::to_owned),
            direct_user: deed.actor.clone(),
            indirect_user: String::new(),
            authentication_type: authentication_type.to_owned(),
            correlation_id: deed.correlation_id.clone(),
            resource_uri,
        }
    }
}

/// A stable number for a name.
fn number_of(name: &str) -> u64 {
    100 + Dice::of(0, name, 0).below(900_000)
}

// === impl Log ===

impl Log {
    pub(super) fn new() -> Self {
        Self { events: Timeline::new(), tokens: BTreeMap::new(), refused: 0 }
    }

    pub(super) fn end_tokens(&mut self) -> bool {
        self.tokens.clear();
        true
    }

    fn add(&mut self, deed: &Deed<'_>, expect: Expect, at: DateTime<Utc>, visible_at: DateTime<Utc>) {
        let wire = Record::new(deed);
        // shape (b) has no place for the direct user
        let actors = deed.status.map(|_| deed.actor.clone()).into_iter().collect();
        self.events.insert(Placed { at, visible_at, actors, expect, tainted: deed.tainted, wire });
    }
}

/// The reader's own doings, in the log it reads.
fn note_self(world: &mut Inner, kind: &str, category: &str, action: &str, class: Class) {
    let correlation_id = world.draw("activid self").uuid();
    let deed = Deed {
        kind,
        resource: "Users",
        status: Some("RESPONSE_SUCCESS"),
        actor: CLIENT_ID.to_owned(),
        address: "192.0.2.10".to_owned(),
        correlation_id,
        tainted: false,
    };
    world.activid.add(&deed, Expect::new(category, action, Outcome::Success, class), world.now, world.now);
}

// === what happens ===

fn someone(dice: &mut Dice) -> String {
    format!("user{:03}", dice.below(300))
}

fn address(dice: &mut Dice) -> String {
    format!("198.51.100.{}", dice.below(256))
}

pub(super) fn traffic(log: &mut Log, cell: &mut Cell) {
    for at in cell.times() {
        let visible_at = cell.visible_at(at);
        ordinary(log, &mut cell.dice, at, visible_at);
    }
    if cell.sometimes(1.0) {
        let start = cell.moment();
        let times: Vec<_> = (0..40).map(|n| start + TimeDelta::milliseconds(1_400 * n)).collect();
        password_spray(log, &mut cell.dice, &times, start);
    }
    if cell.sometimes(0.3) {
        let at = cell.moment();
        tainted_record(log, &mut cell.dice, at, at);
    }
    if cell.sometimes(1.0) {
        let at = cell.moment();
        privilege_escalation(log, &mut cell.dice, at, at);
    }
}

pub(super) fn ordinary(log: &mut Log, dice: &mut Dice, at: DateTime<Utc>, visible_at: DateTime<Utc>) {
    let mut roll = dice.below(DEEDS.iter().map(|(.., share)| share).sum());
    let (kind, category, action, class, resource, _) = *DEEDS
        .iter()
        .find(|(.., share)| {
            let hit = roll < *share;
            roll = roll.saturating_sub(*share);
            hit
        })
        .unwrap_or(&DEEDS[0]);
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
    log.add(&deed, expect.clone(), at, visible_at);
    if dice.chance(0.03) {
        // the same again within the same second: an equal token that is another event
        let left = 1000 - at.timestamp_subsec_millis();
        let again = at + TimeDelta::milliseconds(i64::try_from(dice.below(u64::from(left))).unwrap_or(0));
        log.add(&deed, expect, again, visible_at.max(again));
    }
}

pub(super) fn password_spray(log: &mut Log, dice: &mut Dice, times: &[DateTime<Utc>], now: DateTime<Utc>) -> usize {
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
        log.add(&deed, login(Outcome::Failure), *at, now.max(*at));
    }
    let Some(last) = times.iter().max() else { return 0 };
    deed.status = Some("RESPONSE_SUCCESS");
    deed.correlation_id = dice.uuid();
    log.add(&deed, login(Outcome::Success), *last, now.max(*last));
    times.len() + 1
}

pub(super) fn deletion_burst(log: &mut Log, dice: &mut Dice, times: &[DateTime<Utc>], now: DateTime<Utc>) -> usize {
    for at in times {
        let deed = Deed {
            kind: "deleteUser",
            resource: "Users",
            status: Some("RESPONSE_SUCCESS"),
            actor: "mallory".to_owned(),
            address: "203.0.113.66".to_owned(),
            correlation_id: dice.uuid(),
            tainted: false,
        };
        log.add(&deed, Expect::new("user", "delete", Outcome::Success, Class::Change), *at, now.max(*at));
    }
    times.len()
}

pub(super) fn privilege_escalation(log: &mut Log, dice: &mut Dice, at: DateTime<Utc>, now: DateTime<Utc>) -> usize {
    let steps = [("addRoleToUser", "role"), ("addUserFunctionPrivilege", "user_function_privilege")];
    for (kind, category) in steps {
        let deed = Deed {
            kind,
            resource: "Users",
            status: Some("RESPONSE_SUCCESS"),
            actor: "mallory".to_owned(),
            address: "203.0.113.66".to_owned(),
            correlation_id: dice.uuid(),
            tainted: false,
        };
        log.add(&deed, Expect::new(category, "create", Outcome::Success, Class::Change), at, now.max(at));
    }
    steps.len()
}

pub(super) fn tainted_record(log: &mut Log, dice: &mut Dice, at: DateTime<Utc>, now: DateTime<Utc>) -> usize {
    let deed = Deed {
        kind: "changeUserPassword",
        resource: "Users",
        status: Some("RESPONSE_SUCCESS"),
        actor: someone(dice),
        address: address(dice),
        correlation_id: dice.uuid(),
        tainted: true,
    };
    log.add(&deed, Expect::new("user_password", "update", Outcome::Success, Class::Change), at, now.max(at));
    1
}

pub(super) fn unlisted(log: &mut Log, dice: &mut Dice, number: Option<u32>, at: DateTime<Utc>, now: DateTime<Utc>) {
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
    log.add(&deed, Expect::new(&category, "create", Outcome::Success, Class::Change), at, now.max(at));
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
        kind: &call.verb,
        resource: call.kind.as_deref().unwrap_or("Users"),
        status: call.status.as_deref(),
        actor: call.actor.clone().unwrap_or_else(|| someone(dice)),
        address: address(dice),
        correlation_id: dice.uuid(),
        tainted: call.tainted,
    };
    log.add(&deed, expect, at, visible_at);
}

#[cfg(test)]
mod tests {
    use super::super::world::testing::{body, call, get, quiet, request, with_traffic};
    use super::super::{Injection, Scenario, ScenarioCall};
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
        assert_eq!(found.len() as u64, world.truth().total(System::Activid));
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
        assert_eq!(world.truth().tainted[&System::Activid], 1);
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
        let expected: u64 = truth
            .logins
            .iter()
            .filter(|((s, _, o), _)| (*s, *o) == (System::Activid, Outcome::Failure))
            .map(|(_, n)| n)
            .sum();
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
}
