//! Index Exchange, client audit logs: a token, lists of hourly files, the files.
//!
//! Promises: one file per hour for impressions, two or three parts per hour for bid events (or one
//! file, by fault), gzip CSV of the documented columns; a file appears some minutes after its hour
//! and may gain rows for hours, and then holds old and new rows; `downloadStatus` is new, then
//! downloaded, then updated, by what was downloaded by anyone; 14 days are listed; one of the two
//! list routes for bid events is empty.
//!
//! Leaves to others: mappings, exchange rates. The names of a listed file's size, generation and
//! expiry are not public; those here are made up, and so is the size.

use std::collections::BTreeMap;

use axum::Router;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, SecondsFormat, TimeDelta, Timelike, Utc};
use http::{Method, StatusCode, header};
use serde_json::{Value, json};

use super::chance::Dice;
use super::message::{Ask, Content, Refusal, Reply, gzip, gzip_members};
use super::truth::{Expect, Truth, TruthOf};
use super::world::{Call, EventCall, Inner, World};
use crate::event::{Class, Outcome, System};

/// The base64 key, as issued.
pub const CLIENT_KEY: &str = "c2ltLWNsaWVudDo3ZjBjMmIxZS00NGFhLTRiNDMtOWQ1ZS0wYzlkM2ExZjZlNTU=";

const EXPIRES_SECONDS: i64 = 3600;
const RETENTION: TimeDelta = TimeDelta::days(14);
/// An updated file's id, where the fault gives it another one, is this much more per version.
const ID_STEP: u64 = 1_000_000;

const COLUMNS: &str = "auction_id,timestamp,country,state,dma,zip_postal,device_type,operating_system,browser,\
                       partner_id,site_id,creative_type,domain,app_bundle,inventory_channel,supply_source,slot_id,\
                       size,event_type,event_opportunity,gross_revenue,net_revenue,dsp";

/// A subscription: on the wire, as category, its usual `event_type`, its share of the traffic.
struct Subscription {
    id: u64,
    name: &'static str,
    category: &'static str,
    event_type: &'static str,
    share: f64,
}

const SUBSCRIPTIONS: [Subscription; 2] = [
    Subscription { id: 1, name: "impressions", category: "impressions", event_type: "impression", share: 0.6 },
    Subscription { id: 2, name: "bid events", category: "bid_events", event_type: "bid", share: 0.4 },
];
const BIDS: usize = 1;

/// The client's files and who may read them.
pub(super) struct Feed {
    seed: u64,
    rate: f64,
    /// The next hour whose files are not planned yet.
    next_hour: DateTime<Utc>,
    /// By (subscription, hour).
    files: BTreeMap<(usize, DateTime<Utc>), Vec<Part>>,
    /// Tokens and when they end.
    tokens: BTreeMap<String, DateTime<Utc>>,
    /// Refused logins in a row.
    refused: u32,
}

/// One part of an hour; a single-file hour has one.
#[derive(Default)]
struct Part {
    id: u64,
    /// Rows, in the order in which they become visible.
    rows: Vec<Rows>,
    /// How many rows it had when it was last downloaded.
    downloaded: Option<u64>,
}

/// Rows that become visible together.
struct Rows {
    visible_at: DateTime<Utc>,
    count: u64,
    event_type: String,
    expect: Expect,
}

pub(super) fn routes(world: &World) -> Router {
    let read = |serve| world.handler(&Method::GET, System::IndexExchange, Call::Read, serve);
    Router::new()
        .route(
            "/auth/realms/eventlog/protocol/openid-connect/token",
            world.handler(&Method::POST, System::IndexExchange, Call::Login, login),
        )
        .route("/api/cal/v1/downloads", read(single_files))
        .route("/api/cal/v1/downloads/bidevents", read(bid_parts))
        .route("/api/cal/v1/files/{id}", read(file))
}

pub(super) fn refuse(refusal: Refusal) -> Reply {
    let (status, message) = match refusal {
        Refusal::Unauthorized => (StatusCode::UNAUTHORIZED, "Unauthorized"),
        Refusal::Forbidden => (StatusCode::FORBIDDEN, "Forbidden"),
        Refusal::Throttled => (StatusCode::TOO_MANY_REQUESTS, "Too Many Requests"),
        Refusal::Broken => (StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error"),
        Refusal::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable"),
    };
    let reply = Reply::json(status, json!({"message": message}));
    if status == StatusCode::UNAUTHORIZED { reply.with(header::WWW_AUTHENTICATE, "Bearer") } else { reply }
}

// === login ===

fn login(world: &mut Inner, ask: &Ask) -> Reply {
    let Some(form) = ask.form() else {
        return keycloak_error(StatusCode::BAD_REQUEST, "invalid_request", "Missing form parameter: grant_type");
    };
    match form.get("grant_type").map(String::as_str) {
        Some("client_credentials") => {}
        None => {
            return keycloak_error(StatusCode::BAD_REQUEST, "invalid_request", "Missing form parameter: grant_type");
        }
        Some(_) => {
            return keycloak_error(StatusCode::BAD_REQUEST, "unsupported_grant_type", "Unsupported grant_type");
        }
    }
    let faults = world.faults.index_exchange.clone();
    let locked = faults.lock_after > 0 && world.index_exchange.refused >= faults.lock_after;
    if locked || ask.basic() != Some(CLIENT_KEY) {
        world.index_exchange.refused += 1;
        return keycloak_error(StatusCode::UNAUTHORIZED, "invalid_client", "Invalid client secret");
    }
    world.index_exchange.refused = 0;
    let real_seconds = match faults.token_seconds {
        0 => EXPIRES_SECONDS,
        seconds => i64::from(seconds),
    };
    let issued = world.now + world.skew(System::IndexExchange);
    let mut dice = world.draw("index exchange token");
    let session = dice.uuid();
    let subject = Dice::of(0, "index exchange subject", 0).uuid();
    let mut token = |kind: &str, seconds: i64| {
        let claims = json!({
            "jti": dice.uuid(), "exp": issued.timestamp() + seconds, "nbf": 0, "iat": issued.timestamp(),
            "iss": format!("{}/auth/realms/eventlog", ask.origin), "aud": "sim-client", "sub": subject,
            "typ": kind, "azp": "sim-client", "auth_time": 0, "session_state": session, "acr": "1",
            "realm_access": {"roles": ["uma_authorization"]}, "eventLogClientId": "12", "clientId": "sim-client",
            "preferred_username": "service-account-sim-client",
        });
        let head = json!({"alg": "RS256", "typ": "JWT", "kid": "PMXaSayMXqyh_AQR_DRu8_4Aht70U5c4PLkbzThBkN0"});
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.{}", part(&head), part(&claims), dice.base62(342))
    };
    let access_token = token("Bearer", real_seconds);
    let refresh_token = token("Refresh", EXPIRES_SECONDS);
    world.issued.extend([access_token.clone(), refresh_token.clone()]);
    world.index_exchange.tokens.retain(|_, end| world.now < *end);
    world.index_exchange.tokens.insert(access_token.clone(), world.now + TimeDelta::seconds(real_seconds));
    Reply::json(
        StatusCode::OK,
        json!({
            "access_token": access_token, "expires_in": EXPIRES_SECONDS, "refresh_expires_in": EXPIRES_SECONDS,
            "refresh_token": refresh_token, "token_type": "bearer", "not-before-policy": 0, "session_state": session,
        }),
    )
    .with(header::CACHE_CONTROL, "no-store")
}

fn keycloak_error(status: StatusCode, error: &str, description: &str) -> Reply {
    Reply::json(status, json!({"error": error, "error_description": description}))
}

fn barred(world: &Inner, ask: &Ask) -> bool {
    if world.faults.index_exchange.accept_any_token && ask.bearer().is_some_and(|token| !token.is_empty()) {
        return false;
    }
    let end = ask.bearer().and_then(|token| world.index_exchange.tokens.get(token));
    end.is_none_or(|end| world.now >= *end)
}

// === lists ===

fn single_files(world: &mut Inner, ask: &Ask) -> Reply {
    if barred(world, ask) {
        return refuse(Refusal::Unauthorized);
    }
    let bids_here = world.faults.index_exchange.single_file_bids;
    let wanted = ask.param("subscriptionName");
    let mut listed = Vec::new();
    for (number, hour, parts) in world.index_exchange.listed(world.now) {
        let subscription = &SUBSCRIPTIONS[number];
        if (number == BIDS && !bids_here) || wanted.is_some_and(|name| name != subscription.name) {
            continue;
        }
        let mut row = shown(world, ask, hour, parts);
        row["subscriptionID"] = json!(subscription.id);
        row["subscriptionName"] = json!(subscription.name);
        row["hour"] = json!(rfc3339(hour));
        listed.push(row);
    }
    Reply::json(StatusCode::OK, json!({"availableDownloads": listed}))
}

fn bid_parts(world: &mut Inner, ask: &Ask) -> Reply {
    if barred(world, ask) {
        return refuse(Refusal::Unauthorized);
    }
    let mut listed = Vec::new();
    for (number, hour, parts) in world.index_exchange.listed(world.now) {
        if number != BIDS || world.faults.index_exchange.single_file_bids {
            continue;
        }
        let parts: Vec<Value> = parts
            .iter()
            .filter(|part| part.appeared(world.now))
            .map(|part| shown(world, ask, hour, std::slice::from_ref(part)))
            .collect();
        listed.push(json!({
            "subscriptionID": SUBSCRIPTIONS[number].id, "subscriptionName": SUBSCRIPTIONS[number].name,
            "hour": rfc3339(hour), "parts": parts,
        }));
    }
    Reply::json(StatusCode::OK, json!({"availableDownloads": listed}))
}

/// What a list says of a file that is made of these parts.
fn shown(world: &Inner, ask: &Ask, hour: DateTime<Utc>, parts: &[Part]) -> Value {
    let now = world.now;
    let rows: u64 = parts.iter().map(|part| part.visible_rows(now)).sum();
    let downloaded = parts.iter().try_fold(0, |sum, part| part.downloaded.map(|rows| sum + rows));
    let status = match downloaded {
        None => "new",
        Some(had) if had < rows => "updated",
        Some(_) => "downloaded",
    };
    let steps = || parts.iter().flat_map(|part| &part.rows).filter(|rows| rows.visible_at <= now);
    let generated = steps().map(|rows| rows.visible_at).max().unwrap_or(hour);
    let version = if world.faults.index_exchange.new_file_ids { steps().count() as u64 } else { 0 };
    let id = parts.first().map_or(0, |part| part.id) + version * ID_STEP;
    json!({
        "downloadStatus": status,
        "downloadURL": format!("{}/api/cal/v1/files/{id}", ask.origin),
        "generatedTime": rfc3339(generated),
        "expiryTime": rfc3339(hour + RETENTION),
        "fileSize": rows * 90,
    })
}

fn rfc3339(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

// === files ===

fn file(world: &mut Inner, ask: &Ask) -> Reply {
    if barred(world, ask) {
        return refuse(Refusal::Unauthorized);
    }
    let now = world.now;
    let whole_hours = world.faults.index_exchange.single_file_bids;
    let encoded = world.faults.index_exchange.content_encoding;
    let members = world.faults.index_exchange.gzip_members;
    let wanted = ask.segments.last().and_then(|id| id.parse::<u64>().ok()).map_or(0, |id| id % ID_STEP);
    let seed = world.index_exchange.seed;
    let found = world.index_exchange.files.iter_mut().find_map(|((number, hour), parts)| {
        let at = parts.iter().position(|part| part.id == wanted && part.appeared(now))?;
        let sent = if whole_hours { &mut parts[..] } else { &mut parts[at..=at] };
        (*hour + RETENTION > now).then_some((*number, *hour, sent))
    });
    let Some((number, hour, parts)) = found else {
        return Reply::json(StatusCode::NOT_FOUND, json!({"message": "File not found"}));
    };
    for part in parts.iter_mut() {
        part.downloaded = Some(part.visible_rows(now));
    }
    let csv = csv(seed, &SUBSCRIPTIONS[number], hour, parts, now);
    let mut reply = Reply::new(StatusCode::OK);
    reply.content = Content::Bytes(if members { gzip_members(csv.as_bytes()) } else { gzip(csv.as_bytes()).into() });
    if encoded {
        return reply.with(header::CONTENT_TYPE, "text/csv").with(header::CONTENT_ENCODING, "gzip");
    }
    let name =
        format!("attachment; filename=\"{}-{}.csv.gz\"", SUBSCRIPTIONS[number].category, hour.format("%Y%m%d%H"));
    reply.with(header::CONTENT_TYPE, "application/gzip").with(header::CONTENT_DISPOSITION, name)
}

/// The rows that are visible, by their times, so that late ones stand among the others.
fn csv(seed: u64, subscription: &Subscription, hour: DateTime<Utc>, parts: &[Part], now: DateTime<Utc>) -> String {
    let line_end = if subscription.id == 2 { "\r\n" } else { "\n" };
    let mut rows: Vec<(i64, String)> = Vec::new();
    for part in parts {
        let steps = part.rows.iter().filter(|rows| rows.visible_at <= now);
        let types = steps.flat_map(|step| (0..step.count).map(|_| step.event_type.as_str()));
        for (index, event_type) in types.enumerate() {
            rows.push(row(seed, part.id, index as u64, hour, event_type));
        }
    }
    rows.sort();
    let mut text = COLUMNS.to_owned() + line_end;
    for (_, row) in rows {
        text += &row;
        text += line_end;
    }
    text
}

fn row(seed: u64, part: u64, index: u64, hour: DateTime<Utc>, event_type: &str) -> (i64, String) {
    let mut dice = Dice::of(seed, "index exchange row", part * 10_000_000 + index);
    let at = hour.timestamp_millis() + i64::try_from(dice.below(3_600_000)).unwrap_or(0);
    let when = DateTime::from_timestamp_millis(at).unwrap_or(hour).to_rfc3339_opts(SecondsFormat::Millis, true);
    let bundle = match dice.below(200) {
        0 => "\"two\nlines\"",
        1..6 => "\"News, \"\"Daily\"\"\"",
        6..60 => "com.example.app",
        _ => "",
    };
    let country = *dice.pick(&["US", "CA", "DE", "JP", "XXXX"]);
    let device = *dice.pick(&["mobile", "desktop", "tablet", "-1"]);
    let size = *dice.pick(&["300x250", "728x90", "320x50"]);
    let text = format!(
        "{},{when},{country},-1,-1,XXXX,{device},{},{},{},{},banner,news.example.com,{bundle},web,ix,{},{size},\
         {event_type},1,{}.{:04},{}.{:04},{}",
        dice.hex(32),
        dice.pick(&["ios", "android", "windows"]),
        dice.pick(&["chrome", "safari", "firefox"]),
        100 + dice.below(40),
        2_000 + dice.below(900),
        dice.below(50),
        dice.below(3),
        dice.below(10_000),
        dice.below(2),
        dice.below(10_000),
        dice.below(30),
    );
    (at, text)
}

// === impl Part ===

impl Part {
    fn appeared(&self, now: DateTime<Utc>) -> bool {
        self.rows.iter().any(|rows| rows.visible_at <= now)
    }

    fn visible_rows(&self, now: DateTime<Utc>) -> u64 {
        self.rows.iter().filter(|rows| rows.visible_at <= now).map(|rows| rows.count).sum()
    }

    /// Adds rows behind all that become visible before or with them: a row keeps its place, and so
    /// its content.
    fn add(&mut self, rows: Rows) {
        let at = self.rows.partition_point(|other| other.visible_at <= rows.visible_at);
        self.rows.insert(at, rows);
    }
}

// === impl Feed ===

impl Feed {
    pub(super) fn new(seed: u64, begin: DateTime<Utc>, rate: f64) -> Self {
        Self { seed, rate, next_hour: whole_hour(begin), files: BTreeMap::new(), tokens: BTreeMap::new(), refused: 0 }
    }

    pub(super) fn end_tokens(&mut self) -> bool {
        self.tokens.clear();
        true
    }

    /// Plans the files of all hours that have ended.
    pub(super) fn grow(&mut self, now: DateTime<Utc>) {
        while self.next_hour + TimeDelta::hours(1) <= now {
            let hour = self.next_hour;
            self.next_hour += TimeDelta::hours(1);
            for number in 0..SUBSCRIPTIONS.len() {
                self.plan(number, hour);
            }
        }
    }

    fn plan(&mut self, number: usize, hour: DateTime<Utc>) {
        let subscription = &SUBSCRIPTIONS[number];
        let hour_number = hour.timestamp().unsigned_abs() / 3600;
        let mut dice = Dice::of(self.seed, subscription.name, hour_number);
        let part_count = if number == BIDS { 2 + dice.below(2) } else { 1 };
        #[expect(clippy::cast_precision_loss, reason = "two or three")]
        let mean = self.rate * 3600.0 * subscription.share / part_count as f64;
        for part in 0..part_count {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_precision_loss,
                clippy::cast_sign_loss,
                reason = "a positive number of rows, give or take a few"
            )]
            let total = (mean * (80 + dice.below(41)) as f64 / 100.0) as u64;
            let mut visible_at = hour + TimeDelta::hours(1) + minutes(&mut dice, 3, 25);
            let mut left = total / 10;
            self.part(number, hour, part).add(Rows::usual(subscription, total - left, visible_at));
            while left > 0 {
                let gained = 1 + dice.below(left);
                left -= gained;
                visible_at += minutes(&mut dice, 2, 90);
                self.part(number, hour, part).add(Rows::usual(subscription, gained, visible_at));
            }
        }
    }

    /// A part of an hour, made if need be.
    fn part(&mut self, number: usize, hour: DateTime<Utc>, part: u64) -> &mut Part {
        let hour_number = hour.timestamp().unsigned_abs() / 3600;
        let parts = self.files.entry((number, hour)).or_default();
        let id = |part: u64| 100_000 + hour_number % 20_000 * 40 + number as u64 * 20 + part;
        while parts.len() as u64 <= part {
            parts.push(Part { id: id(parts.len() as u64), ..Part::default() });
        }
        &mut parts[usize::try_from(part).unwrap_or(0)]
    }

    /// Hours within the retention that have something to download, newest first.
    fn listed(&self, now: DateTime<Utc>) -> impl Iterator<Item = (usize, DateTime<Utc>, &Vec<Part>)> {
        self.files.iter().rev().filter_map(move |((number, hour), parts)| {
            let listed = *hour + RETENTION > now && parts.iter().any(|part| part.appeared(now));
            listed.then_some((*number, *hour, parts))
        })
    }

    pub(super) fn tell(&self, now: DateTime<Utc>, of: &TruthOf, truth: &mut Truth) {
        let now = of.visible_by.map_or(now, |by| by.min(now));
        for ((_, hour), parts) in &self.files {
            let held =
                of.from.is_none_or(|from| *hour + TimeDelta::hours(1) > from) && of.to.is_none_or(|to| *hour < to);
            for rows in parts.iter().flat_map(|part| &part.rows).filter(|rows| held && rows.visible_at <= now) {
                truth.add(System::IndexExchange, &rows.expect, rows.count);
            }
        }
    }

    /// A row of its own in the file of its hour.
    pub(super) fn inject(&mut self, call: &EventCall, expect: Expect, at: DateTime<Utc>, visible_at: DateTime<Utc>) {
        let number = usize::from(call.kind.as_deref() == Some(SUBSCRIPTIONS[BIDS].name));
        let rows = Rows { visible_at, count: 1, event_type: call.verb.clone(), expect };
        self.part(number, whole_hour(at), 0).add(rows);
    }

    /// The newest file of each subscription gains rows; where there is none, that of the hour before
    /// this one appears with them.
    pub(super) fn update_newest(&mut self, now: DateTime<Utc>, count: u64) -> usize {
        for (number, subscription) in SUBSCRIPTIONS.iter().enumerate() {
            let newest = self.listed(now).find(|(of, ..)| *of == number).map(|(_, hour, _)| hour);
            let hour = newest.unwrap_or_else(|| whole_hour(now) - TimeDelta::hours(1));
            self.part(number, hour, 0).add(Rows::usual(subscription, count, now));
        }
        SUBSCRIPTIONS.len() * usize::try_from(count).unwrap_or(usize::MAX)
    }
}

// === impl Rows ===

impl Rows {
    fn usual(subscription: &Subscription, count: u64, visible_at: DateTime<Utc>) -> Self {
        let expect = Expect::new(subscription.category, subscription.event_type, Outcome::Unknown, Class::Row);
        Self { visible_at, count, event_type: subscription.event_type.to_owned(), expect }
    }
}

fn minutes(dice: &mut Dice, least: u64, most: u64) -> TimeDelta {
    let seconds = 60 * least + dice.below(60 * (most - least));
    TimeDelta::seconds(i64::try_from(seconds).unwrap_or(0))
}

fn whole_hour(at: DateTime<Utc>) -> DateTime<Utc> {
    at - TimeDelta::seconds(i64::from(at.num_seconds_from_midnight() % 3600))
        - TimeDelta::nanoseconds(i64::from(at.nanosecond()))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Duration;

    use flate2::read::MultiGzDecoder;

    use super::super::world::testing::{body, bytes, call, get, quiet, request, with_traffic};
    use super::super::{Injection, Scenario, ScenarioCall};
    use super::*;

    const TOKEN: &str = "/auth/realms/eventlog/protocol/openid-connect/token";
    const SINGLE: &str = "/api/cal/v1/downloads?subscriptionName=impressions";
    const PARTS: &str = "/api/cal/v1/downloads/bidevents";

    async fn ask_token(world: &World, key: &str) -> (StatusCode, Value) {
        let headers =
            [("authorization", &*format!("Basic {key}")), ("content-type", "application/x-www-form-urlencoded")];
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
                let key = (System::IndexExchange, (*category).to_owned(), action.clone(), Outcome::Unknown);
                ((*category, action.clone()), world.truth().events[&key])
            })
            .collect();
        assert_eq!(found, truth);
        assert_eq!(found.values().sum::<u64>(), world.truth().total(System::IndexExchange));
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
        let key = (System::IndexExchange, "bid_events".to_owned(), "bid".to_owned(), Outcome::Unknown);
        assert_eq!(rows, world.truth().events[&key]);
    }
}
