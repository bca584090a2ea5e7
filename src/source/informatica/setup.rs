//! The configuration of an Informatica source, and what is known of it without a request.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::session::InformaticaDialect;
use super::{Decoder, Informatica, PAGE_SIZE, READING};
use crate::api::Dialect;
use crate::event;
use crate::failure::ErrorKind;
use crate::settings::fields::any_text;
use crate::settings::{Absent, Common, Fields, Form, Key, Kind, Reader, Secret, endpoint};
use crate::source::kit::Ignore;
use crate::source::{Entry, Look, Part, Source, System};

/// Its name.
pub const SYSTEM: event::System = event::System::named("informatica");

/// The service.
pub static SERVICE: System = System {
    name: SYSTEM,
    title: "Informatica IICS",
    keys: KEYS,
    reading: READING,
    // the documentation: `limit` is 100 to 1000
    page_sizes: Some((100, 1000)),
    defaults,
    read,
};

const KEYS: &[Key] = &[
    Key::required("login_url", Kind::Url, "Where to log in; /saas/public/core/v3/login is added."),
    Key::optional(
        "base_url",
        Kind::Url,
        Absent::Means("from the login's answer"),
        "Where the log is; /public/core/v3/securityLog is added.",
    ),
    Key::required("username", Kind::Text, "User to log in as."),
    Key::required("password", Kind::Secret(Form::Password), "Its password."),
];

fn defaults() -> Common {
    Common::usual(Duration::from_hours(400 * 24))
}

fn read(reader: &mut Reader<'_>, fields: &Fields<'_>, common: &Common) -> Option<Arc<dyn Entry>> {
    let plain = common.allow_plain_http;
    let login_url = reader.url(fields, "login_url", plain);
    let path = ["saas", "public", "core", "v3", "login"];
    reader.holds_what_is_added(fields, "login_url", login_url.as_ref(), &path);
    let base_url = reader.url(fields, "base_url", plain);
    reader.holds_what_is_added(fields, "base_url", base_url.as_ref(), &["public", "core", "v3", "securityLog"]);
    let username = reader.text(fields, "username", any_text);
    let password = reader.secret(fields, "password");
    Some(Arc::new(Settings { login_url: login_url?, base_url, username: username?, password: password? }))
}

/// An entry of the list `informatica`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where to log in, without `/saas/public/core/v3/login`.
    pub login_url: Url,
    /// Where the log is, up to `/public`. `None`: where the login's answer says.
    pub base_url: Option<Url>,
    /// The user to log in as.
    pub username: String,
    /// Its password.
    pub password: Secret,
}

impl Entry for Settings {
    fn system(&self) -> &'static System {
        &SERVICE
    }

    fn credential(&self) -> &Secret {
        &self.password
    }

    fn addresses(&self) -> Vec<&Url> {
        std::iter::once(&self.login_url).chain(&self.base_url).collect()
    }

    fn parts(&self) -> Vec<Part> {
        vec![Part::whole("the security log", self)]
    }

    fn requests(&self, look: Look) -> usize {
        1 + look.windows
    }

    fn remedy(&self, kind: ErrorKind, place: &str) -> Option<String> {
        Some(match kind {
            ErrorKind::Auth => format!(
                "log in by hand as `username` at the same login_url; correct `username`, or the password in {place}; a \
                 locked account must be unlocked by an administrator"
            ),
            ErrorKind::Forbidden => "give the user the Administrator role".into(),
            _ => return None,
        })
    }

    fn build(&self, common: &Common) -> (Box<dyn Source>, Box<dyn Dialect>) {
        let source = Informatica {
            limit: common.page_size.map_or(PAGE_SIZE, NonZeroU32::get),
            decoder: Decoder::new(Ignore::new(&common.ignore_actors)),
        };
        let dialect = InformaticaDialect {
            login: endpoint(&self.login_url, &["saas", "public", "core", "v3", "login"]),
            base: self.base_url.clone(),
            username: self.username.clone(),
            password: self.password.clone(),
            allow_plain_http: common.allow_plain_http,
        };
        (Box::new(source), Box::new(dialect))
    }
}
