//! The configuration of a Losant source, and what is known of it without a request.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::{Losant, PAGE_SIZE, READING, judge};
use crate::api::Dialect;
use crate::event;
use crate::failure::ErrorKind;
use crate::settings::fields::{ANY, segment};
use crate::settings::{Absent, Common, Fields, Form, Key, Kind, Reader, Secret};
use crate::source::kit::{Ignore, StaticToken};
use crate::source::{Entry, Look, Part, Source, System, USUAL_PAGE_SIZES};

/// Its name.
pub const SYSTEM: event::System = event::System::named("losant");

/// The service.
pub static SERVICE: System = System {
    name: SYSTEM,
    title: "Losant",
    keys: KEYS,
    reading: READING,
    page_sizes: USUAL_PAGE_SIZES,
    defaults,
    read,
};

const KEYS: &[Key] = &[
    Key::optional("base_url", Kind::Url, Absent::Is("https://api.losant.com"), "The API."),
    Key::required("instance_id", Kind::Text, "The instance."),
    Key::required("api_token", Kind::Secret(Form::Token), "Instance API token that may read audit logs."),
];

fn defaults() -> Common {
    Common::usual(Duration::from_hours(365 * 24))
}

fn read(reader: &mut Reader<'_>, fields: &Fields<'_>, common: &Common) -> Option<Arc<dyn Entry>> {
    let base_url = reader.url(fields, "base_url", common.allow_plain_http);
    reader.holds_what_is_added(fields, "base_url", base_url.as_ref(), &["instance", ANY, "audit-logs"]);
    let instance_id = reader.text(fields, "instance_id", segment);
    let api_token = reader.secret(fields, "api_token");
    Some(Arc::new(Settings { base_url: base_url?, instance_id: instance_id?, api_token: api_token? }))
}

/// An entry of the list `losant`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The API, without `/instance`.
    pub base_url: Url,
    /// Fits into one path segment.
    pub instance_id: String,
    /// The bearer token.
    pub api_token: Secret,
}

impl Entry for Settings {
    fn system(&self) -> &'static System {
        &SERVICE
    }

    fn credential(&self) -> &Secret {
        &self.api_token
    }

    fn addresses(&self) -> Vec<&Url> {
        vec![&self.base_url]
    }

    fn parts(&self) -> Vec<Part> {
        vec![Part::whole(format!("the audit log of instance {}", self.instance_id), self)]
    }

    fn requests(&self, look: Look) -> usize {
        2 * look.windows
    }

    fn remedy(&self, kind: ErrorKind, place: &str) -> Option<String> {
        Some(match kind {
            ErrorKind::Auth => format!("make a new instance API token, and put it into {place}"),
            ErrorKind::Forbidden => "make an instance API token with the scope instanceAuditLogs.get".into(),
            ErrorKind::NotFound => "correct `instance_id` or `base_url`".into(),
            _ => return None,
        })
    }

    fn build(&self, common: &Common) -> (Box<dyn Source>, Box<dyn Dialect>) {
        let source = Losant {
            base: self.base_url.clone(),
            instance: self.instance_id.clone(),
            page_size: common.page_size.map_or(PAGE_SIZE, NonZeroU32::get),
            ignore: Ignore::new(&common.ignore_actors),
        };
        let token = StaticToken { judge, ..StaticToken::bearer(&self.api_token, &self.base_url) };
        (Box::new(source), Box::new(token))
    }
}
