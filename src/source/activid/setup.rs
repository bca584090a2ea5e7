//! The configuration of an ActivID source, and what is known of it without a request.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::{Activid, ActividDialect, COUNT, Learnt, READING, Search};
use crate::api::Dialect;
use crate::event;
use crate::failure::ErrorKind;
use crate::settings::fields::{ANY, any_text, segment};
use crate::settings::{Absent, Common, Fields, Form, Key, Kind, RateLimit, Reader, Secret, endpoint};
use crate::source::kit::Ignore;
use crate::source::{Entry, Look, Part, Source, System, USUAL_PAGE_SIZES};

/// Its name.
pub const SYSTEM: event::System = event::System::named("activid");

/// The service.
pub static SERVICE: System = System {
    name: SYSTEM,
    title: "HID ActivID",
    keys: KEYS,
    reading: READING,
    page_sizes: USUAL_PAGE_SIZES,
    defaults,
    read,
};

const KEYS: &[Key] = &[
    Key::required("base_url", Kind::Url, "The appliance; /scim/{tenant}/v2/Event/.search is added."),
    Key::required("tenant", Kind::Text, "The tenant as it appears in the paths."),
    Key::optional(
        "token_url",
        Kind::Url,
        Absent::Means("`{base_url}/idp/{tenant}/authn/token`"),
        "Where tokens are issued.",
    ),
    Key::required("client_id", Kind::Text, "Client to ask for tokens as."),
    Key::required("client_secret", Kind::Secret(Form::Password), "Its secret."),
    Key::optional("verify", Kind::Flag, Absent::Is("true"), "Ask for the integrity check."),
];

/// What its operator keeps is not known; 30 days is the vendor's advice for the online log.
fn defaults() -> Common {
    Common { rate_limit: RateLimit::a_minute(120), ..Common::usual(Duration::from_hours(30 * 24)) }
}

fn read(reader: &mut Reader<'_>, fields: &Fields<'_>, common: &Common) -> Option<Arc<dyn Entry>> {
    let plain = common.allow_plain_http;
    let base_url = reader.url(fields, "base_url", plain);
    let path = ["scim", ANY, "v2", "Event", ".search"];
    reader.holds_what_is_added(fields, "base_url", base_url.as_ref(), &path);
    let tenant = reader.text(fields, "tenant", segment);
    let client_id = reader.text(fields, "client_id", any_text);
    let client_secret = reader.secret(fields, "client_secret");
    let verify = reader.flag(fields, "verify");
    let token_url = reader.url(fields, "token_url", plain);
    let (base_url, tenant) = (base_url?, tenant?);
    let token_url = token_url.unwrap_or_else(|| endpoint(&base_url, &["idp", &tenant, "authn", "token"]));
    let (client_id, client_secret) = (client_id?, client_secret?);
    Some(Arc::new(Settings { base_url, tenant, token_url, client_id, client_secret, verify }))
}

/// An entry of the list `activid`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The appliance, without `/scim`.
    pub base_url: Url,
    /// Fits into one path segment.
    pub tenant: String,
    /// The token endpoint.
    pub token_url: Url,
    /// The client to ask for tokens as.
    pub client_id: String,
    /// Its secret.
    pub client_secret: Secret,
    /// Whether to ask for the integrity check.
    pub verify: bool,
}

impl Entry for Settings {
    fn system(&self) -> &'static System {
        &SERVICE
    }

    fn credential(&self) -> &Secret {
        &self.client_secret
    }

    fn addresses(&self) -> Vec<&Url> {
        vec![&self.token_url, &self.base_url]
    }

    fn parts(&self) -> Vec<Part> {
        let with = if self.verify { ", with the integrity check" } else { "" };
        vec![Part::whole(format!("the audit log of tenant {}{with}", self.tenant), self)]
    }

    /// By pairs of cells of five minutes, which are cut where they hold much.
    fn requests(&self, look: Look) -> usize {
        let pairs = usize::try_from(look.span.as_secs() / 600).unwrap_or(usize::MAX / 10) + 1;
        1 + 5 * pairs
    }

    fn remedy(&self, kind: ErrorKind, place: &str) -> Option<String> {
        Some(match kind {
            ErrorKind::Auth => format!(
                "correct `client_id`, `token_url`, or the secret in {place}; too many wrong ones disable the client"
            ),
            ErrorKind::Forbidden => "give the client the permissions Read audit log and Read reference data".into(),
            ErrorKind::NotFound => "correct `tenant` or `base_url`".into(),
            _ => return None,
        })
    }

    fn build(&self, common: &Common) -> (Box<dyn Source>, Box<dyn Dialect>) {
        let search = Search {
            url: endpoint(&self.base_url, &["scim", &self.tenant, "v2", "Event", ".search"]),
            count: common.page_size.map_or(COUNT, NonZeroU32::get),
            verify: self.verify,
            ignore: Ignore::new(&common.ignore_actors),
        };
        let dialect = ActividDialect {
            base: self.base_url.clone(),
            token_url: self.token_url.clone(),
            client_id: self.client_id.clone(),
            client_secret: self.client_secret.clone(),
        };
        (Box::new(Activid { search, learnt: Learnt::default(), cells: BTreeMap::new() }), Box::new(dialect))
    }
}
