//! The configuration of a Canvas source, and what is known of it without a request.

use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::{Canvas, READING, budget, judge};
use crate::api::Dialect;
use crate::event;
use crate::failure::ErrorKind;
use crate::settings::fields::segment;
use crate::settings::{Absent, Common, Fields, Form, Key, Kind, RateLimit, Reader, Secret};
use crate::source::kit::StaticToken;
use crate::source::{Entry, Look, Part, Source, System, USUAL_PAGE_SIZES};

/// Its name.
pub const SYSTEM: event::System = event::System::named("canvas");

/// The service.
pub static SERVICE: System = System {
    name: SYSTEM,
    title: "Canvas LMS",
    keys: KEYS,
    reading: READING,
    page_sizes: USUAL_PAGE_SIZES,
    defaults,
    read,
};

const KEYS: &[Key] = &[
    Key::required("base_url", Kind::Url, "The institution's Canvas."),
    Key::required(
        "access_token",
        Kind::Secret(Form::Token),
        "Token of a user who may view statistics or manage logins.",
    ),
    Key::optional("accounts", Kind::Texts, Absent::Nothing, "Root account ids."),
    Key::optional("users", Kind::Texts, Absent::Nothing, "User ids."),
    Key::optional("pseudonyms", Kind::Texts, Absent::Nothing, "Login ids."),
];

fn defaults() -> Common {
    Common { rate_limit: RateLimit::a_minute(120), ..Common::usual(Duration::from_hours(365 * 24)) }
}

fn read(reader: &mut Reader<'_>, fields: &Fields<'_>, common: &Common) -> Option<Arc<dyn Entry>> {
    let base_url = reader.url(fields, "base_url", common.allow_plain_http);
    let path = ["api", "v1", "audit", "authentication"];
    reader.holds_what_is_added(fields, "base_url", base_url.as_ref(), &path);
    let access_token = reader.secret(fields, "access_token");
    let scopes = ["accounts", "users", "pseudonyms"];
    let before = reader.problems.len();
    let [accounts, users, pseudonyms] = scopes.map(|scope| reader.texts(fields, scope, segment));
    let none = accounts.is_empty() && users.is_empty() && pseudonyms.is_empty();
    if none && reader.problems.len() == before {
        let at = scopes.iter().find_map(|scope| fields.key_at(scope)).unwrap_or(fields.at);
        let message = "there is nothing to read; accepted: at least one id in `accounts`, `users` or `pseudonyms`";
        reader.problems.push(at.problem(message));
    }
    let (base_url, access_token) = (base_url?, access_token?);
    Some(Arc::new(Settings { base_url, access_token, accounts, users, pseudonyms }))
}

/// An entry of the list `canvas`. At least one of the three scopes is not empty; ids fit into one path segment.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The institution's host.
    pub base_url: Url,
    /// The bearer token.
    pub access_token: Secret,
    /// Root accounts, by id.
    pub accounts: Vec<String>,
    /// Users, by id.
    pub users: Vec<String>,
    /// Logins, by id.
    pub pseudonyms: Vec<String>,
}

impl Entry for Settings {
    fn system(&self) -> &'static System {
        &SERVICE
    }

    fn credential(&self) -> &Secret {
        &self.access_token
    }

    fn addresses(&self) -> Vec<&Url> {
        vec![&self.base_url]
    }

    fn parts(&self) -> Vec<Part> {
        let none = Self { accounts: vec![], users: vec![], pseudonyms: vec![], ..self.clone() };
        let part = |what: &str, id: &String, entry: Self| Part {
            name: format!("the log of {what} {id}"),
            entry: Arc::new(entry),
            undocumented: None,
        };
        let accounts =
            self.accounts.iter().map(|id| part("account", id, Self { accounts: vec![id.clone()], ..none.clone() }));
        let users = self.users.iter().map(|id| part("user", id, Self { users: vec![id.clone()], ..none.clone() }));
        let logins =
            self.pseudonyms.iter().map(|id| part("login", id, Self { pseudonyms: vec![id.clone()], ..none.clone() }));
        accounts.chain(users).chain(logins).collect()
    }

    /// A second page here and there.
    fn requests(&self, look: Look) -> usize {
        2 * (self.accounts.len() + self.users.len() + self.pseudonyms.len()) * look.windows
    }

    fn remedy(&self, kind: ErrorKind, place: &str) -> Option<String> {
        Some(match kind {
            ErrorKind::Auth => format!(
                "make a new token (Account, Settings, New Access Token) as the exporter's user, and put it into {place}"
            ),
            ErrorKind::Forbidden => {
                "give the token's user `view_statistics` or `manage_user_logins` on the root account; \
                                     where developer keys have scopes, allow the audit log's"
                    .into()
            }
            ErrorKind::NotFound => "correct `base_url` or the id: an account must be a root account that exists, and \
                                    Canvas must have its audit log set up"
                .into(),
            _ => return None,
        })
    }

    fn build(&self, common: &Common) -> (Box<dyn Source>, Box<dyn Dialect>) {
        let token = StaticToken { judge, budget, ..StaticToken::bearer(&self.access_token, &self.base_url) };
        let scopes = [&self.accounts, &self.users, &self.pseudonyms];
        (Box::new(Canvas::new(&self.base_url, scopes, common)), Box::new(token))
    }
}
