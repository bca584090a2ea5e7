//! The configuration of an Index Exchange source, and what is known of it without a request.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use url::Url;

use super::{IndexExchange, IndexExchangeDialect, READING, RETENTION};
use crate::api::Dialect;
use crate::event::{self, Label};
use crate::failure::ErrorKind;
use crate::settings::fields::{any_text, join_words, nearest};
use crate::settings::tree::{Node, Value};
use crate::settings::{Absent, Common, Fields, Form, Key, Kind, Reader, Secret};
use crate::source::{Entry, Look, Part, Source, System};

/// Its name.
pub const SYSTEM: event::System = event::System::named("index_exchange");

/// What it lists files of (kb.indexexchange.com, Client Audit Logs). It may grow.
const SUBSCRIPTIONS: [&str; 2] = ["impressions", "bid events"];

/// The service.
pub static SERVICE: System =
    System { name: SYSTEM, title: "Index Exchange", keys: KEYS, reading: READING, page_sizes: None, defaults, read };

const KEYS: &[Key] = &[
    Key::optional("base_url", Kind::Url, Absent::Is("https://app.indexexchange.com"), "The API."),
    Key::optional(
        "token_url",
        Kind::Url,
        Absent::Is("https://identity.indexexchange.com/auth/realms/eventlog/protocol/openid-connect/token"),
        "Where tokens are issued.",
    ),
    Key::required("client_key", Kind::Secret(Form::Base64Key), "The base64 key, as issued."),
    Key::required("subscriptions", Kind::Texts, "Names of lists of files."),
];

fn defaults() -> Common {
    Common {
        poll_interval: Duration::from_mins(15),
        // the list always shows the whole retention
        initial_lookback: RETENTION,
        poll_timeout: Duration::from_hours(2),
        ..Common::usual(RETENTION)
    }
}

fn read(reader: &mut Reader<'_>, fields: &Fields<'_>, common: &Common) -> Option<Arc<dyn Entry>> {
    let plain = common.allow_plain_http;
    let base_url = reader.url(fields, "base_url", plain);
    reader.holds_what_is_added(fields, "base_url", base_url.as_ref(), &["api", "cal", "v1", "downloads"]);
    let token_url = reader.url(fields, "token_url", plain);
    let client_key = reader.secret(fields, "client_key");
    let before = reader.problems.len();
    let subscriptions = reader.texts(fields, "subscriptions", any_text);
    if let (true, true, Some(at)) =
        (subscriptions.is_empty(), reader.problems.len() == before, fields.key_at("subscriptions"))
    {
        let message = "`subscriptions` is empty; accepted: at least one, such as impressions or \"bid events\"";
        reader.problems.push(at.problem(message));
    }
    let categories: BTreeSet<Label> = subscriptions.iter().map(|name| Label::from_words(name)).collect();
    if categories.len() < subscriptions.len() && reader.problems.len() == before {
        let message = "two of the `subscriptions` are counted under the same category; accepted: names that differ \
                       in letters or digits, or two sources";
        reader.problems.push(fields.value_at("subscriptions").problem(message));
    }
    warn_of_undocumented(reader, fields);
    let (base_url, token_url, client_key) = (base_url?, token_url?, client_key?);
    Some(Arc::new(Settings { base_url, token_url, client_key, subscriptions }))
}

/// Warns of subscriptions that no document names: one that is misspelled lists nothing, for ever.
fn warn_of_undocumented(reader: &mut Reader<'_>, fields: &Fields<'_>) {
    let Some(Node { value: Value::List(items), .. }) = fields.get("subscriptions") else { return };
    for item in items {
        let Value::Scalar { text, .. } = &item.value else { continue };
        if SUBSCRIPTIONS.contains(&text.as_str()) {
            continue;
        }
        let near = nearest(text, &SUBSCRIPTIONS).map_or_else(String::new, |near| format!(" (did you mean `{near}`?)"));
        let message = format!(
            "an entry of `subscriptions` is not a name that Index Exchange documents{near}; documented: {}; of a name that \
             it does not know the service lists nothing",
            join_words(&SUBSCRIPTIONS)
        );
        reader.warnings.push(item.at.problem(message));
    }
}

/// An entry of the list `index_exchange`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The API, without `/api`.
    pub base_url: Url,
    /// The token endpoint.
    pub token_url: Url,
    /// The base64 key, as issued.
    pub client_key: Secret,
    /// At least one.
    pub subscriptions: Vec<String>,
}

impl Entry for Settings {
    fn system(&self) -> &'static System {
        &SERVICE
    }

    fn credential(&self) -> &Secret {
        &self.client_key
    }

    fn addresses(&self) -> Vec<&Url> {
        vec![&self.token_url, &self.base_url]
    }

    fn parts(&self) -> Vec<Part> {
        let part = |name: &String| Part {
            name: format!("the files of {name:?}"),
            entry: Arc::new(Self { subscriptions: vec![name.clone()], ..self.clone() }),
            undocumented: (!SUBSCRIPTIONS.contains(&name.as_str()))
                .then(|| format!("correct the name in `subscriptions`; documented: {}", join_words(&SUBSCRIPTIONS))),
        };
        self.subscriptions.iter().map(part).collect()
    }

    /// Of each subscription the list, and the parts of the newest hour.
    fn requests(&self, _: Look) -> usize {
        1 + 4 * self.subscriptions.len()
    }

    fn remedy(&self, kind: ErrorKind, place: &str) -> Option<String> {
        Some(match kind {
            ErrorKind::Auth => {
                format!("put the base64 key as Index Exchange issued it into {place}, or correct `token_url`")
            }
            ErrorKind::Forbidden => "ask Index Exchange to allow this subscription for the key".into(),
            _ => return None,
        })
    }

    fn build(&self, _: &Common) -> (Box<dyn Source>, Box<dyn Dialect>) {
        let source = IndexExchange {
            base: self.base_url.clone(),
            subscriptions: self.subscriptions.clone(),
            categories: self.subscriptions.iter().map(|name| Label::from_words(name)).collect(),
            parts: HashMap::new(),
            failed: HashSet::new(),
            warned_of_column: false,
        };
        let dialect = IndexExchangeDialect {
            base: self.base_url.clone(),
            token_url: self.token_url.clone(),
            client_key: self.client_key.clone(),
            form_encoded: AtomicBool::new(false),
            refused: Mutex::default(),
        };
        (Box::new(source), Box::new(dialect))
    }
}
