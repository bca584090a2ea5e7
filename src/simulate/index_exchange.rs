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

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, SecondsFormat, TimeDelta, Timelike, Utc};
use http::{StatusCode, header};
use serde_json::{Value, json};

use super::chance::{Cell, Dice};
use super::faults::ServiceFaults;
use super::injection::{Plays, Scenario, Scene};
use super::message::{Ask, Content, Listing, Refusal, Reply, gzip, gzip_members};
use super::service::{
    Beginning, Call, Example, Injected, Present, Route, Routed, Sample, Service, Sessions, Simulated, Told, posted,
    read,
};
use super::truth::{Expect, Truth, TruthOf};
use crate::event::{Class, Outcome, System};

const SYSTEM: System = System::named("index_exchange");

pub(super) const SERVICE: Simulated = Simulated {
    system: SYSTEM,
    source: "ads",
    keys: &[
        ("base_url", Told::Address("")),
        ("token_url", Told::Address(TOKEN_PATH)),
        ("client_key", Told::Credential),
        ("subscriptions", Told::Yaml("[impressions, \"bid events\"]")),
    ],
    secrets: &[CLIENT_KEY, "7f0c2b1e-44aa-4b43-9d5e-0c9d3a1f6e55"],
    refused_secrets: &["aXhjbGllbnQ6SXhTZWNyZXQtVmFsdWUtMzE=", "IxSecret-Value-31"],
    is_feed: true,
    has_ids: false,
    loses_ids: None,
    sessions: Sessions::Tokens,
    example: Example {
        verb: "impression",
        kind: Some("impressions"),
        status: None,
        category: "impressions",
        action: "impression",
        outcome: "unknown",
    },
    sample: Sample {
        event: r#"{"subscriptionName":"impressions","note":$UNREAD,"hour":"$AT","downloadURL":"/files/$N","size":$N}"#,
        wrapped: None,
        page: r#"{"availableDownloads":[$EVENTS]}"#,
        login: r#"{"access_token":"$TOKEN","token_type":"Bearer","expires_in":3600}"#,
    },
    begin: |beginning| Box::new(Feed::new(beginning)),
};

const TOKEN_PATH: &str = "/auth/realms/eventlog/protocol/openid-connect/token";

/// The base64 key, as issued: of a client's id, a colon and its secret.
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
struct Feed {
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

impl Routed for Feed {
    const ROUTES: &'static [Route<Self>] = &[
        posted(TOKEN_PATH, Call::Login, Feed::login),
        read("/api/cal/v1/downloads", Feed::single_files),
        read("/api/cal/v1/downloads/bidevents", Feed::bid_parts),
        read("/api/cal/v1/files/{id}", Feed::file),
    ];
}

impl Service for Feed {
    fn refuse(&self, refusal: Refusal, _: &ServiceFaults, _: &Ask) -> Reply {
        refuse(refusal)
    }

    fn listing(&self) -> Listing {
        let no_event = json!({"subscriptionID": "not a download", "hour": 1});
        Listing { name: "availableDownloads", no_event, takes_fields: true }
    }

    /// Plans the files of all hours that have ended when the cell begins.
    fn traffic(&mut self, cell: &mut Cell) {
        while self.next_hour + TimeDelta::hours(1) <= cell.start() {
            let hour = self.next_hour;
            self.next_hour += TimeDelta::hours(1);
            for number in 0..SUBSCRIPTIONS.len() {
                self.plan(number, hour);
            }
        }
    }

    /// A row of its own in the file of its hour.
    fn inject(&mut self, _: &mut Dice, event: Injected<'_>) {
        let Injected { call, expect, at, visible_at } = event;
        let number = usize::from(call.kind.as_deref() == Some(SUBSCRIPTIONS[BIDS].name));
        let expect = Expect { class: Class::Row, ..expect };
        let rows = Rows { visible_at, count: 1, event_type: call.verb.clone(), expect };
        self.part(number, whole_hour(at), 0).add(rows);
    }

    fn tell(&mut self, now: DateTime<Utc>, of: &TruthOf, truth: &mut Truth) {
        let now = of.visible_by.map_or(now, |by| by.min(now));
        for ((_, hour), parts) in &self.files {
            let held =
                of.from.is_none_or(|from| *hour + TimeDelta::hours(1) > from) && of.to.is_none_or(|to| *hour < to);
            for rows in parts.iter().flat_map(|part| &part.rows).filter(|rows| held && rows.visible_at <= now) {
                truth.add(SYSTEM, &rows.expect, rows.count);
            }
        }
    }

    fn plays(&self, scenario: Scenario) -> Plays {
        if scenario == Scenario::UpdatedFile { Plays::Usually } else { Plays::Never }
    }

    fn play(&mut self, scene: &Scene, _: &mut Dice) -> usize {
        self.update_newest(scene.now, u64::from(scene.count(50)))
    }

    fn end_sessions(&mut self) -> bool {
        self.tokens.clear();
        true
    }
}

fn refuse(refusal: Refusal) -> Reply {
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

impl Feed {
    fn login(&mut self, present: &mut Present<'_>, ask: &Ask) -> Reply {
        let Some(form) = ask.form() else {
            return keycloak_error(StatusCode::BAD_REQUEST, "invalid_request", "Missing form parameter: grant_type");
        };
        match form.get("grant_type").map(String::as_str) {
            Some("client_credentials") => {}
            None => {
                return keycloak_error(
                    StatusCode::BAD_REQUEST,
                    "invalid_request",
                    "Missing form parameter: grant_type",
                );
            }
            Some(_) => {
                return keycloak_error(StatusCode::BAD_REQUEST, "unsupported_grant_type", "Unsupported grant_type");
            }
        }
        let faults = present.faults;
        let locked = faults.lock_after > 0 && self.refused >= faults.lock_after;
        if locked || ask.basic() != Some(CLIENT_KEY) {
            self.refused += 1;
            return keycloak_error(StatusCode::UNAUTHORIZED, "invalid_client", "Invalid client secret");
        }
        self.refused = 0;
        let real_seconds = match faults.token_seconds {
            0 => EXPIRES_SECONDS,
            seconds => i64::from(seconds),
        };
        let issued = present.now + present.skew;
        let mut dice = present.draw("index exchange token");
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
        present.issued.extend([access_token.clone(), refresh_token.clone()]);
        self.tokens.retain(|_, end| present.now < *end);
        self.tokens.insert(access_token.clone(), present.now + TimeDelta::seconds(real_seconds));
        Reply::json(
        StatusCode::OK,
        json!({
            "access_token": access_token, "expires_in": EXPIRES_SECONDS, "refresh_expires_in": EXPIRES_SECONDS,
            "refresh_token": refresh_token, "token_type": "bearer", "not-before-policy": 0, "session_state": session,
        }),
    )
    .with(header::CACHE_CONTROL, "no-store")
    }

    fn barred(&self, present: &Present<'_>, ask: &Ask) -> bool {
        if present.faults.accept_any_token && ask.bearer().is_some_and(|token| !token.is_empty()) {
            return false;
        }
        let end = ask.bearer().and_then(|token| self.tokens.get(token));
        end.is_none_or(|end| present.now >= *end)
    }
}

fn keycloak_error(status: StatusCode, error: &str, description: &str) -> Reply {
    Reply::json(status, json!({"error": error, "error_description": description}))
}

// === lists ===

impl Feed {
    fn single_files(&mut self, present: &mut Present<'_>, ask: &Ask) -> Reply {
        if self.barred(present, ask) {
            return refuse(Refusal::Unauthorized);
        }
        let bids_here = present.faults.single_file_bids;
        let wanted = ask.param("subscriptionName");
        let mut listed = Vec::new();
        for (number, hour, parts) in self.listed(present.now) {
            let subscription = &SUBSCRIPTIONS[number];
            if (number == BIDS && !bids_here) || wanted.is_some_and(|name| name != subscription.name) {
                continue;
            }
            let mut row = shown(present, ask, hour, parts);
            row["subscriptionID"] = json!(subscription.id);
            row["subscriptionName"] = json!(subscription.name);
            row["hour"] = json!(rfc3339(hour));
            listed.push(row);
        }
        Reply::json(StatusCode::OK, json!({"availableDownloads": listed}))
    }

    fn bid_parts(&mut self, present: &mut Present<'_>, ask: &Ask) -> Reply {
        if self.barred(present, ask) {
            return refuse(Refusal::Unauthorized);
        }
        let mut listed = Vec::new();
        for (number, hour, parts) in self.listed(present.now) {
            if number != BIDS || present.faults.single_file_bids {
                continue;
            }
            let parts: Vec<Value> = parts
                .iter()
                .filter(|part| part.appeared(present.now))
                .map(|part| shown(present, ask, hour, std::slice::from_ref(part)))
                .collect();
            listed.push(json!({
                "subscriptionID": SUBSCRIPTIONS[number].id, "subscriptionName": SUBSCRIPTIONS[number].name,
                "hour": rfc3339(hour), "parts": parts,
            }));
        }
        Reply::json(StatusCode::OK, json!({"availableDownloads": listed}))
    }
}

/// What a list says of a file that is made of these parts.
fn shown(present: &Present<'_>, ask: &Ask, hour: DateTime<Utc>, parts: &[Part]) -> Value {
    let now = present.now;
    let rows: u64 = parts.iter().map(|part| part.visible_rows(now)).sum();
    let downloaded = parts.iter().try_fold(0, |sum, part| part.downloaded.map(|rows| sum + rows));
    let status = match downloaded {
        None => "new",
        Some(had) if had < rows => "updated",
        Some(_) => "downloaded",
    };
    let steps = || parts.iter().flat_map(|part| &part.rows).filter(|rows| rows.visible_at <= now);
    let generated = steps().map(|rows| rows.visible_at).max().unwrap_or(hour);
    let version = if present.faults.new_file_ids { steps().count() as u64 } else { 0 };
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

impl Feed {
    fn file(&mut self, present: &mut Present<'_>, ask: &Ask) -> Reply {
        if self.barred(present, ask) {
            return refuse(Refusal::Unauthorized);
        }
        let now = present.now;
        let whole_hours = present.faults.single_file_bids;
        let encoded = present.faults.content_encoding;
        let members = present.faults.gzip_members;
        let wanted = ask.segments.last().and_then(|id| id.parse::<u64>().ok()).map_or(0, |id| id % ID_STEP);
        let seed = self.seed;
        let found = self.files.iter_mut().find_map(|((number, hour), parts)| {
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
        reply.content =
            Content::Bytes(if members { gzip_members(csv.as_bytes()) } else { gzip(csv.as_bytes()).into() });
        if encoded {
            return reply.with(header::CONTENT_TYPE, "text/csv").with(header::CONTENT_ENCODING, "gzip");
        }
        let name =
            format!("attachment; filename=\"{}-{}.csv.gz\"", SUBSCRIPTIONS[number].category, hour.format("%Y%m%d%H"));
        reply.with(header::CONTENT_TYPE, "application/gzip").with(header::CONTENT_DISPOSITION, name)
    }
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
    fn new(beginning: &Beginning) -> Self {
        Self {
            seed: beginning.seed,
            rate: beginning.rate,
            next_hour: whole_hour(beginning.from),
            files: BTreeMap::new(),
            tokens: BTreeMap::new(),
            refused: 0,
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

    /// The newest file of each subscription gains rows; where there is none, that of the hour before
    /// this one appears with them.
    fn update_newest(&mut self, now: DateTime<Utc>, count: u64) -> usize {
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
mod tests;
