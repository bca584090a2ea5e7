//! The tokens that carry ActivID's events.
//!
//! Promises: both shapes of the documentation; neither has a time or an id.
//!
//! Leaves to others: what happens (`activid.rs`), which of them a search finds (`search.rs`).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde_json::{Value, json};

use super::super::chance::Dice;

/// An event as it is sent and as it can be searched for.
pub(super) struct Record {
    pub(super) token: String,
    pub(super) kind: String,
    pub(super) status: Option<String>,
    pub(super) direct_user: String,
    pub(super) indirect_user: String,
    pub(super) authentication_type: String,
    pub(super) correlation_id: String,
    pub(super) resource_uri: String,
}

/// What happened.
pub(super) struct Deed<'a> {
    pub(super) kind: &'a str,
    pub(super) resource: &'a str,
    /// `None` is shape (b), which has no place for it.
    pub(super) status: Option<&'a str>,
    pub(super) actor: String,
    pub(super) address: String,
    pub(super) correlation_id: String,
    pub(super) tainted: bool,
}

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
    pub(super) fn new(deed: &Deed<'_>) -> Self {
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
