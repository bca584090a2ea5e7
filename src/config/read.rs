//! The tree → [`Config`]: which keys there are, what each accepts, what it means if absent.
//!
//! Promises: goes on after a problem, so that one run finds all; a reader that returns `None` for
//! something that was given has added the reason to the problems.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::num::NonZeroU32;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use http::HeaderName;
use secrecy::ExposeSecret;
use secrecy::zeroize::Zeroizing;
use url::{Host, Url};

use super::secret::{BadForm, Form, Why, check_form, check_secret_file, open_file};
use super::tree::{At, Node, Value};
use super::units::{self, BadDuration};
use super::{
    Activid, Canvas, Common, Config, Global, Header, IndexExchange, Informatica, Losant, OVERLAP_MIN, PEM_BYTES_MAX,
    Problem, RateLimit, Secret, Service, SourceConfig, Storage, Tls,
};
use crate::event::{Label, SourceName, System};
use crate::pem::{self, Unfit};
use crate::proxy::{NoProxy, Proxies};

const TOP_KEYS: &[&str] = &["global", "storage", "sources"];
const GLOBAL_KEYS: &[&str] = &["poll_interval", "hold_new_series", "openmetrics_created"];
const STORAGE_KEYS: &[&str] = &["path"];
const RATE_LIMIT_KEYS: &[&str] = &["requests", "per", "burst"];
/// What Index Exchange lists files of (kb.indexexchange.com, Client Audit Logs). It may grow.
pub(crate) const SUBSCRIPTIONS: [&str; 2] = ["impressions", "bid events"];
const TLS_KEYS: &[&str] = &["ca_file", "cert_file", "key_file", "server_name"];
const HEADER_KEYS: &[&str] = &["name", "value", "value_file"];

/// The keys of every source, after its own.
const COMMON_KEYS: &[&str] = &[
    "poll_interval",
    "overlap",
    "initial_lookback",
    "max_catch_up",
    "rate_limit",
    "timeout",
    "poll_timeout",
    "max_response_bytes",
    "page_size",
    "ignore_actors",
    "tls",
    "proxy_url",
    "proxy_username",
    "proxy_password",
    "proxy_password_file",
    "proxy_from_environment",
    "no_proxy",
    "headers",
    "user_agent",
    "allow_plain_http",
];

/// The keys that only one system has.
fn own_keys(system: System) -> &'static [&'static str] {
    match system {
        System::Canvas => &["name", "base_url", "access_token", "access_token_file", "accounts", "users", "pseudonyms"],
        System::Informatica => &["name", "login_url", "base_url", "username", "password", "password_file"],
        System::Activid => {
            &["name", "base_url", "tenant", "token_url", "client_id", "client_secret", "client_secret_file", "verify"]
        }
        System::Losant => &["name", "base_url", "instance_id", "api_token", "api_token_file"],
        System::IndexExchange => &["name", "base_url", "token_url", "client_key", "client_key_file", "subscriptions"],
    }
}

/// Every key there is, some more than once.
#[cfg(test)]
pub(super) fn all_keys() -> impl Iterator<Item = &'static str> {
    [TOP_KEYS, GLOBAL_KEYS, STORAGE_KEYS, RATE_LIMIT_KEYS, TLS_KEYS, HEADER_KEYS, COMMON_KEYS]
        .into_iter()
        .chain(System::ALL.map(own_keys))
        .flatten()
        .copied()
        .chain(System::ALL.map(System::as_str))
}

/// The config that `root` describes; `None` if something without which there is none is missing.
pub(super) fn config(
    root: &Node,
    folder: &Path,
    has_authorities: fn() -> bool,
    problems: &mut Vec<Problem>,
) -> Option<Config> {
    let authorities = LazyCell::new(has_authorities);
    let mut reader = Reader { folder, problems, warnings: Vec::new(), names: BTreeMap::new(), authorities };
    let top = reader.map(root, "the file", TOP_KEYS)?;
    let (global, poll_interval) = match reader.section(&top, "global", GLOBAL_KEYS) {
        Some(fields) => reader.global(&fields),
        None => (Global::default(), None),
    };
    let path = reader.section(&top, "storage", STORAGE_KEYS).and_then(|fields| reader.path(&fields, "path"));
    let storage = Storage { path: path.unwrap_or_else(|| folder.join("data")) };
    let sources = reader.sources(&top, poll_interval);
    Some(Config { global, storage, sources, warnings: reader.warnings })
}

/// A mapping whose keys were checked.
struct Fields<'n> {
    at: At,
    /// What it is, for messages.
    what: String,
    entries: &'n [(super::tree::Key, Node)],
}

impl<'n> Fields<'n> {
    fn get(&self, key: &str) -> Option<&'n Node> {
        self.entries.iter().find(|(name, _)| name.text == key).map(|(_, node)| node)
    }

    fn key_at(&self, key: &str) -> Option<At> {
        self.entries.iter().find(|(name, _)| name.text == key).map(|(name, _)| name.at)
    }

    /// Where to show what is wrong with the value of `key`, or that it is not there.
    fn value_at(&self, key: &str) -> At {
        self.get(key).map_or(self.at, |node| node.at)
    }
}

/// A scalar as it is written; see [`Value::Scalar`].
struct Scalar<'n> {
    text: &'n str,
    plain: bool,
}

/// Which durations a key accepts.
#[derive(Clone, Copy)]
enum Zero {
    Accepted,
    Refused,
}

struct Reader<'a> {
    folder: &'a Path,
    problems: &'a mut Vec<Problem>,
    warnings: Vec<Problem>,
    /// Where each name was first given.
    names: BTreeMap<SourceName, At>,
    /// Whether this machine has certificates of authorities.
    authorities: LazyCell<bool>,
}

// === the sections ===

impl Reader<'_> {
    fn global(&mut self, fields: &Fields<'_>) -> (Global, Option<Duration>) {
        let default = Global::default();
        let poll_interval = self.duration(fields, "poll_interval", Zero::Refused);
        let global = Global {
            hold_new_series: self
                .duration(fields, "hold_new_series", Zero::Accepted)
                .unwrap_or(default.hold_new_series),
            openmetrics_created: self.flag(fields, "openmetrics_created").unwrap_or(default.openmetrics_created),
        };
        (global, poll_interval)
    }

    fn sources(&mut self, top: &Fields<'_>, poll_interval: Option<Duration>) -> Vec<SourceConfig> {
        let systems: Vec<&str> = System::ALL.iter().map(|system| system.as_str()).collect();
        let before = self.problems.len();
        let fields = self.section(top, "sources", &systems);
        let mut sources = Vec::new();
        let mut given = false;
        // In the order of the file.
        for (key, node) in fields.iter().flat_map(|fields| fields.entries) {
            let Some(system) = System::ALL.into_iter().find(|system| system.as_str() == key.text) else { continue };
            let entries = match &node.value {
                Value::List(entries) => entries.as_slice(),
                Value::Null => &[],
                Value::Map(_) | Value::Scalar { .. } => {
                    let message = format!(
                        "`{system}` is {}; accepted: a list of sources, each beginning with `- name:`",
                        kind(node)
                    );
                    self.problems.push(node.at.problem(message));
                    continue;
                }
            };
            for entry in entries {
                given = true;
                sources.extend(self.source(system, entry, poll_interval));
            }
        }
        // A list or key that could not be read is reason enough.
        if !given && self.problems.len() == before {
            let at = top.key_at("sources").unwrap_or(top.at);
            let message =
                format!("there is no source; accepted: `sources` with at least one in {}", join_words(&systems));
            self.problems.push(at.problem(message));
        }
        sources
    }

    fn source(&mut self, system: System, node: &Node, poll_interval: Option<Duration>) -> Option<SourceConfig> {
        let keys: Vec<&str> =
            own_keys(system).iter().chain(COMMON_KEYS).copied().filter(|key| has_common_key(system, key)).collect();
        let fields = self.map(node, &format!("a source of `{system}`"), &keys)?;
        let name = self.name(&fields);
        let common = self.common(system, &fields, poll_interval);
        let plain = common.allow_plain_http;
        let service = match system {
            System::Canvas => self.canvas(&fields, plain).map(Service::Canvas),
            System::Informatica => self.informatica(&fields, plain).map(Service::Informatica),
            System::Activid => self.activid(&fields, plain).map(Service::Activid),
            System::Losant => self.losant(&fields, plain).map(Service::Losant),
            System::IndexExchange => self.index_exchange(&fields, plain).map(Service::IndexExchange),
        };
        let source = SourceConfig { name: name?, common, service: service? };
        self.authorities_where_needed(&fields, &source);
        self.no_plain_http_through(&fields, &source);
        Some(source)
    }

    /// Plain `http://` to loopback shows nothing to others, but for a proxy elsewhere.
    fn no_plain_http_through(&mut self, fields: &Fields<'_>, source: &SourceConfig) {
        let common = &source.common;
        if common.proxy_url.as_ref().is_none_or(is_loopback) {
            return;
        }
        let direct = common.no_proxy.clone().unwrap_or_default();
        let shown = |url: &&Url| url.scheme() == "http" && !direct.names(url);
        if !common.allow_plain_http && source.addresses().iter().any(shown) {
            let message = "`proxy_url` leads a plain http:// service over another machine, where credentials could be read; accepted: \
                 the service in `no_proxy`, https://, or `allow_plain_http: true`";
            self.problems.push(fields.value_at("proxy_url").problem(message));
        }
    }

    fn authorities_where_needed(&mut self, fields: &Fields<'_>, source: &SourceConfig) {
        let own = source.common.tls.as_ref().is_some_and(|tls| tls.ca_file.is_some());
        let over_tls =
            source.addresses().into_iter().chain(&source.common.proxy_url).any(|url| url.scheme() == "https");
        if own || !over_tls || *self.authorities {
            return;
        }
        let key = ["base_url", "login_url"].into_iter().find(|key| fields.get(key).is_some()).unwrap_or_default();
        let message = "this machine has no CA certificates, without which no https:// service can be verified; accepted: \
                       installed ones (package ca-certificates), SSL_CERT_FILE with the path of a file that has some, or \
                       the service's own authority in `tls.ca_file`";
        self.problems.push(fields.value_at(key).problem(message));
    }

    fn name(&mut self, fields: &Fields<'_>) -> Option<SourceName> {
        self.require(fields, "name");
        let accepted = "1 to 63 characters of a-z, 0-9, _ and -, the first a letter or digit";
        let name: SourceName = self.scalar(fields, "name", accepted, |scalar| {
            scalar.text.parse().map_err(|_| "is not a source name".to_owned())
        })?;
        let at = fields.value_at("name");
        if let Some(first) = self.names.get(&name) {
            let line = first.line;
            let message = format!(
                "duplicate name `{name}`, already used on line {line}; accepted: a name that no other source has"
            );
            self.problems.push(at.problem(message));
            return None;
        }
        self.names.insert(name.clone(), at);
        Some(name)
    }

    fn common(&mut self, system: System, fields: &Fields<'_>, poll_interval: Option<Duration>) -> Common {
        let default = Common::defaults(system);
        let from_environment = self.proxy_from_environment(fields);
        let common = Common {
            poll_interval: self
                .duration(fields, "poll_interval", Zero::Refused)
                .or(poll_interval)
                .unwrap_or(default.poll_interval),
            overlap: self.duration(fields, "overlap", Zero::Accepted).unwrap_or(default.overlap).max(OVERLAP_MIN),
            initial_lookback: self
                .duration(fields, "initial_lookback", Zero::Accepted)
                .unwrap_or(default.initial_lookback),
            max_catch_up: self.duration(fields, "max_catch_up", Zero::Refused).unwrap_or(default.max_catch_up),
            rate_limit: self.rate_limit(fields).unwrap_or(default.rate_limit),
            timeout: self.duration(fields, "timeout", Zero::Refused).unwrap_or(default.timeout),
            poll_timeout: self.duration(fields, "poll_timeout", Zero::Refused).unwrap_or(default.poll_timeout),
            max_response_bytes: self.bytes(fields, "max_response_bytes").unwrap_or(default.max_response_bytes),
            page_size: self.page_size(system, fields),
            ignore_actors: self
                .texts(fields, "ignore_actors", any_text)
                .iter()
                .map(|actor| actor.to_lowercase())
                .collect(),
            tls: self.tls(fields),
            // What goes through a proxy is protected by the TLS of the service behind it.
            proxy_url: self.url(fields, "proxy_url", true),
            proxy_username: self.proxy_username(fields, from_environment),
            proxy_password: self.optional_secret(fields, "proxy_password"),
            proxy_from_environment: from_environment,
            no_proxy: self.no_proxy(fields, from_environment),
            headers: self.headers(fields),
            user_agent: self.scalar(fields, "user_agent", "a text of visible ASCII characters and blanks", |scalar| {
                any_text(scalar.text)?;
                fits_header(scalar.text).then(|| scalar.text.to_owned()).ok_or_else(|| NO_HEADER.to_owned())
            }),
            allow_plain_http: self.flag(fields, "allow_plain_http").unwrap_or(default.allow_plain_http),
        };
        self.shorter_counts(system, fields, &common);
        common
    }

    /// Says which one counts where reading would begin earlier than it may go back.
    fn shorter_counts(&mut self, system: System, fields: &Fields<'_>, common: &Common) {
        let Some(at) = fields.key_at("initial_lookback").or(fields.key_at("max_catch_up")) else { return };
        let (lookback, catch_up) = (common.initial_lookback, common.max_catch_up_of(system));
        if lookback > catch_up {
            let [lookback, catch_up] = [lookback, catch_up].map(units::duration_text);
            let message = format!(
                "`initial_lookback` ({lookback}) is longer than `max_catch_up` ({catch_up}), and the shorter one \
                 counts: a new source is read from {catch_up} back"
            );
            self.warnings.push(at.problem(message));
        }
    }

    fn rate_limit(&mut self, fields: &Fields<'_>) -> Option<RateLimit> {
        let node = fields.get("rate_limit")?;
        let limit = self.map(node, "`rate_limit`", RATE_LIMIT_KEYS)?;
        self.require(&limit, "requests");
        self.require(&limit, "per");
        let requests = self.count(&limit, "requests", 1, u32::MAX);
        let per = self.duration(&limit, "per", Zero::Refused);
        let burst = match limit.get("burst") {
            Some(_) => self.count(&limit, "burst", 1, u32::MAX),
            None => Some(NonZeroU32::MIN),
        };
        let (requests, per, burst) = (requests?, per?, burst?);
        let interval_ns = per.as_nanos() / u128::from(requests.get());
        if interval_ns < 1000 {
            let message = "`rate_limit` allows more than 1000000 requests per second; accepted: fewer";
            self.problems.push(node.at.problem(message));
            return None;
        }
        // The bucket counts nanoseconds until it is full again.
        if interval_ns.saturating_mul(u128::from(burst.get())) > u128::from(units::DURATION_MS_MAX) * 1_000_000 {
            let message =
                "`rate_limit` would take more than 292 years to earn its `burst`; accepted: a smaller `burst`";
            self.problems.push(node.at.problem(message));
            return None;
        }
        Some(RateLimit { requests, per, burst })
    }

    fn page_size(&mut self, system: System, fields: &Fields<'_>) -> Option<NonZeroU32> {
        // Informatica's documentation: `limit` is 100 to 1000. The others name no bounds.
        let (min, max) = if system == System::Informatica { (100, 1000) } else { (1, 10_000) };
        self.count(fields, "page_size", min, max)
    }

    fn tls(&mut self, fields: &Fields<'_>) -> Option<Tls> {
        let tls = self.section(fields, "tls", TLS_KEYS)?;
        for (one, other) in [("cert_file", "key_file"), ("key_file", "cert_file")] {
            if let (Some(at), None) = (tls.key_at(one), tls.key_at(other)) {
                self.problems.push(at.problem(format!("`{one}` stands without `{other}`; accepted: both or neither")));
            }
        }
        let (ca_file, _) = self.pem(&tls, "ca_file", pem::certificates).unzip();
        let (cert_file, chain) = self.pem(&tls, "cert_file", pem::certificates).unzip();
        let (key_file, key) = self.pem(&tls, "key_file", pem::private_key).unzip();
        if let (Some(chain), Some(key)) = (chain, key)
            && let Err(no_pair) = pem::pair(chain, key)
        {
            self.problems.push(tls.value_at("key_file").problem(format!("the file of `key_file` {no_pair}")));
        }
        let accepted = "a DNS name or an IP address";
        Some(Tls {
            ca_file,
            cert_file,
            key_file,
            server_name: self.scalar(&tls, "server_name", accepted, |scalar| {
                rustls::pki_types::ServerName::try_from(scalar.text)
                    .map(|_| scalar.text.to_owned())
                    .map_err(|_| "is not a server name".to_owned())
            }),
        })
    }

    fn proxy_from_environment(&mut self, fields: &Fields<'_>) -> bool {
        let key = "proxy_from_environment";
        let wanted = self.flag(fields, key).unwrap_or(false);
        for other in ["proxy_url", "no_proxy"].into_iter().filter(|_| wanted) {
            if let (Some(at), Some(here)) = (fields.key_at(other), fields.key_at(key)) {
                let message = format!("both `{other}` and `{key}` are given; accepted: one of them");
                self.problems.push(at.max(here).problem(message));
            }
        }
        if wanted && let Err(why) = Proxies::of_environment(|name| std::env::var(name).ok()) {
            self.problems.push(fields.value_at(key).problem(why));
        }
        wanted
    }

    fn no_proxy(&mut self, fields: &Fields<'_>, from_environment: bool) -> Option<NoProxy> {
        if let (Some(at), None, false) = (fields.key_at("no_proxy"), fields.get("proxy_url"), from_environment) {
            self.problems.push(at.problem("`no_proxy` stands without `proxy_url`; accepted: with it"));
        }
        let accepted = "hosts, domains, addresses and networks, each with a port or without, separated by commas, such as \
                        `.example.com, 10.0.0.0/8, api.example.org:8443`, or `*`";
        self.scalar(fields, "no_proxy", accepted, |scalar| NoProxy::parse(scalar.text).map_err(str::to_owned))
    }

    fn proxy_username(&mut self, fields: &Fields<'_>, from_environment: bool) -> Option<String> {
        let password = || fields.key_at("proxy_password").or_else(|| fields.key_at("proxy_password_file"));
        match (fields.key_at("proxy_username"), password()) {
            (Some(at), None) | (None, Some(at)) => {
                let message = "of `proxy_username` and `proxy_password` (or `proxy_password_file`) one is missing; \
                               accepted: both or neither";
                self.problems.push(at.problem(message));
            }
            (Some(at), Some(_)) if fields.get("proxy_url").is_none() && !from_environment => {
                let message = "`proxy_username` stands without a proxy; accepted: with `proxy_url` or \
                               `proxy_from_environment`";
                self.problems.push(at.problem(message));
            }
            _ => {}
        }
        self.scalar(fields, "proxy_username", "a text without colon and control characters", |scalar| {
            any_text(scalar.text)?;
            // the first colon ends the name (RFC 7617)
            let odd = scalar.text.contains(|c: char| c == ':' || c.is_control());
            if odd { Err("has characters that no user name has".to_owned()) } else { Ok(scalar.text.to_owned()) }
        })
    }

    fn headers(&mut self, fields: &Fields<'_>) -> Vec<Header> {
        let Some(node) = fields.get("headers") else { return Vec::new() };
        let entries = match &node.value {
            Value::List(entries) => entries.as_slice(),
            Value::Null => &[],
            Value::Scalar { .. } | Value::Map(_) => {
                let message =
                    format!("`headers` is {}; accepted: a list, each entry with `name` and `value`", kind(node));
                self.problems.push(node.at.problem(message));
                &[]
            }
        };
        let mut headers: Vec<Header> = Vec::new();
        for entry in entries {
            let Some(entry) = self.map(entry, "an entry of `headers`", HEADER_KEYS) else { continue };
            self.require(&entry, "name");
            let taken = |name: &HeaderName| headers.iter().any(|header| header.name == *name);
            let name =
                self.scalar(&entry, "name", "the name of a header that this program does not set itself", |scalar| {
                    let name: HeaderName = scalar.text.parse().map_err(|_| "is not the name of a header".to_owned())?;
                    if let Some(why) = ours(&name) {
                        return Err(format!("cannot be {name}: {why}"));
                    }
                    if taken(&name) { Err("is listed twice".to_owned()) } else { Ok(name) }
                });
            let value = self.secret(&entry, "value", Form::Password);
            let fits = |value: &Secret| value.read().is_ok_and(|text| fits_header(text.expose_secret()));
            if let Some(false) = value.as_ref().map(fits) {
                let key = if entry.get("value").is_some() { "value" } else { "value_file" };
                let message =
                    format!("`{key}` {NO_HEADER}; accepted: visible ASCII characters and blanks, on one line");
                self.problems.push(entry.value_at(key).problem(message));
            } else if let (Some(name), Some(value)) = (name, value) {
                headers.push(Header { name, value });
            }
        }
        headers
    }

    fn canvas(&mut self, fields: &Fields<'_>, plain: bool) -> Option<Canvas> {
        let base_url = self.required_url(fields, "base_url", plain);
        self.holds_what_is_added(fields, "base_url", base_url.as_ref(), &["api", "v1", "audit", "authentication"]);
        let access_token = self.secret(fields, "access_token", Form::Token);
        let scopes = ["accounts", "users", "pseudonyms"];
        let before = self.problems.len();
        let [accounts, users, pseudonyms] = scopes.map(|scope| self.texts(fields, scope, segment));
        let none = accounts.is_empty() && users.is_empty() && pseudonyms.is_empty();
        if none && self.problems.len() == before {
            let at = scopes.iter().find_map(|scope| fields.key_at(scope)).unwrap_or(fields.at);
            let message = "there is nothing to read; accepted: at least one id in `accounts`, `users` or `pseudonyms`";
            self.problems.push(at.problem(message));
        }
        Some(Canvas { base_url: base_url?, access_token: access_token?, accounts, users, pseudonyms })
    }

    fn informatica(&mut self, fields: &Fields<'_>, plain: bool) -> Option<Informatica> {
        let login_url = self.required_url(fields, "login_url", plain);
        let path = ["saas", "public", "core", "v3", "login"];
        self.holds_what_is_added(fields, "login_url", login_url.as_ref(), &path);
        let base_url = self.url(fields, "base_url", plain);
        self.holds_what_is_added(fields, "base_url", base_url.as_ref(), &["public", "core", "v3", "securityLog"]);
        let username = self.required_text(fields, "username", any_text);
        let password = self.secret(fields, "password", Form::Password);
        Some(Informatica { login_url: login_url?, base_url, username: username?, password: password? })
    }

    fn activid(&mut self, fields: &Fields<'_>, plain: bool) -> Option<Activid> {
        let base_url = self.required_url(fields, "base_url", plain);
        self.holds_what_is_added(fields, "base_url", base_url.as_ref(), &["scim", ANY, "v2", "Event", ".search"]);
        let tenant = self.required_text(fields, "tenant", segment);
        let client_id = self.required_text(fields, "client_id", any_text);
        let client_secret = self.secret(fields, "client_secret", Form::Password);
        let verify = self.flag(fields, "verify").unwrap_or(true);
        let token_url = self.url(fields, "token_url", plain);
        let (base_url, tenant) = (base_url?, tenant?);
        let token_url = token_url.unwrap_or_else(|| super::endpoint(&base_url, &["idp", &tenant, "authn", "token"]));
        Some(Activid { base_url, tenant, token_url, client_id: client_id?, client_secret: client_secret?, verify })
    }

    fn losant(&mut self, fields: &Fields<'_>, plain: bool) -> Option<Losant> {
        let base_url = self.url(fields, "base_url", plain).unwrap_or_else(|| constant_url("https://api.losant.com"));
        self.holds_what_is_added(fields, "base_url", Some(&base_url), &["instance", ANY, "audit-logs"]);
        let instance_id = self.required_text(fields, "instance_id", segment);
        let api_token = self.secret(fields, "api_token", Form::Token);
        Some(Losant { base_url, instance_id: instance_id?, api_token: api_token? })
    }

    fn index_exchange(&mut self, fields: &Fields<'_>, plain: bool) -> Option<IndexExchange> {
        let base_url =
            self.url(fields, "base_url", plain).unwrap_or_else(|| constant_url("https://app.indexexchange.com"));
        self.holds_what_is_added(fields, "base_url", Some(&base_url), &["api", "cal", "v1", "downloads"]);
        let token_url = self.url(fields, "token_url", plain).unwrap_or_else(|| {
            constant_url("https://identity.indexexchange.com/auth/realms/eventlog/protocol/openid-connect/token")
        });
        let client_key = self.secret(fields, "client_key", Form::Base64Key);
        self.require(fields, "subscriptions");
        let before = self.problems.len();
        let subscriptions = self.texts(fields, "subscriptions", any_text);
        if let (true, true, Some(at)) =
            (subscriptions.is_empty(), self.problems.len() == before, fields.key_at("subscriptions"))
        {
            let message = "`subscriptions` is empty; accepted: at least one, such as impressions or \"bid events\"";
            self.problems.push(at.problem(message));
        }
        let categories: BTreeSet<Label> = subscriptions.iter().map(|name| Label::from_words(name)).collect();
        if categories.len() < subscriptions.len() && self.problems.len() == before {
            let message = "two of the `subscriptions` are counted under the same category; accepted: names that differ \
                           in letters or digits, or two sources";
            self.problems.push(fields.value_at("subscriptions").problem(message));
        }
        self.known_subscriptions(fields);
        Some(IndexExchange { base_url, token_url, client_key: client_key?, subscriptions })
    }

    /// Warns of subscriptions that no document names: one that is misspelled lists nothing, for ever.
    fn known_subscriptions(&mut self, fields: &Fields<'_>) {
        let Some(Node { value: Value::List(items), .. }) = fields.get("subscriptions") else { return };
        for item in items {
            let Value::Scalar { text, .. } = &item.value else { continue };
            if SUBSCRIPTIONS.contains(&text.as_str()) {
                continue;
            }
            let near =
                nearest(text, &SUBSCRIPTIONS).map_or_else(String::new, |near| format!(" (did you mean `{near}`?)"));
            let message = format!(
                "an entry of `subscriptions` is none that Index Exchange documents{near}; documented: {}; of a name that \
                 it does not know the service lists nothing",
                join_words(&SUBSCRIPTIONS)
            );
            self.warnings.push(item.at.problem(message));
        }
    }

    /// An address that holds the path which the source adds to it would be asked for with that path twice.
    fn holds_what_is_added(&mut self, fields: &Fields<'_>, key: &str, url: Option<&Url>, added: &[&str]) {
        let Some(path) = url.and_then(|url| already_there(url, added)) else { return };
        let at = fields.value_at(key);
        let added =
            added.iter().map(|segment| if *segment == ANY { "…" } else { segment }).collect::<Vec<_>>().join("/");
        // a gateway may have a path of that name
        if path == "/api" {
            let message = format!("`{key}` ends with /api, and /{added} is added to it: is that meant?");
            self.warnings.push(at.problem(message));
            return;
        }
        let what = if key == "login_url" { "login" } else { "API" };
        let message = format!(
            "`{key}` holds the path of the {what} ({path}), and /{added} is added to it; accepted: what stands before that"
        );
        self.problems.push(at.problem(message));
    }
}

/// A segment of a path that may be anything.
const ANY: &str = "*";

/// The part of a path that is one of its own, or a version, as `/v1`: no address of a service ends with that.
fn already_there(url: &Url, added: &[&str]) -> Option<String> {
    let segments: Vec<&str> = url.path().split('/').filter(|segment| !segment.is_empty()).collect();
    let is_version = |segment: &str| {
        let number = segment.strip_prefix(['v', 'V']).unwrap_or_default();
        !number.is_empty() && number.chars().all(|c| c.is_ascii_digit() || c == '.')
    };
    for (start, _) in segments.iter().enumerate() {
        let rest = &segments[start..];
        let same = |(is, added): &(&&str, &&str)| **added == ANY || is.eq_ignore_ascii_case(added);
        let alike = rest.iter().zip(added).take_while(same).count();
        // only its beginning, or so much of it that it is no accident
        if alike == rest.len() || (alike >= 2 && added[1] != ANY) || alike >= 3 {
            return Some(format!("/{}", rest[..alike].join("/")));
        }
    }
    let last = segments.last().filter(|last| is_version(last))?;
    Some(format!("/{last}"))
}

/// Whether the system has this common key: a file feed has no pages.
fn has_common_key(system: System, key: &str) -> bool {
    !(system == System::IndexExchange && key == "page_size")
}

fn constant_url(url: &str) -> Url {
    Url::parse(url).expect("a constant of this file, which the tests parse")
}

// === the kinds of values ===

impl Reader<'_> {
    /// A mapping without unknown keys; `what` names it in messages. Unknown keys are problems but
    /// do not keep the known ones from being read.
    fn map<'n>(&mut self, node: &'n Node, what: &str, keys: &[&str]) -> Option<Fields<'n>> {
        let Value::Map(entries) = &node.value else {
            let message = format!("{what} is {}; accepted: a mapping with the keys {}", kind(node), join_words(keys));
            self.problems.push(node.at.problem(message));
            return None;
        };
        for (key, value) in entries {
            if !keys.contains(&key.text.as_str()) {
                let bare = matches!(value.value, Value::Null);
                self.problems.push(key.at.problem(unknown(&key.text, bare, what, keys)));
            }
        }
        Some(Fields { at: node.at, what: what.to_owned(), entries })
    }

    /// A mapping under `key`. Absent and empty are the same: all its keys may be commented out.
    fn section<'n>(&mut self, fields: &Fields<'n>, key: &str, keys: &[&str]) -> Option<Fields<'n>> {
        let node = fields.get(key)?;
        if matches!(node.value, Value::Null) { None } else { self.map(node, &format!("`{key}`"), keys) }
    }

    fn require(&mut self, fields: &Fields<'_>, key: &str) {
        if fields.get(key).is_none() {
            self.problems.push(fields.at.problem(format!("`{key}` is missing; required in {}", fields.what)));
        }
    }

    /// The scalar under `key`, if given, as `parse` understands it. `parse` says what is wrong
    /// without showing the value.
    fn scalar<T>(
        &mut self,
        fields: &Fields<'_>,
        key: &str,
        accepted: &str,
        parse: impl FnOnce(Scalar<'_>) -> Result<T, String>,
    ) -> Option<T> {
        let node = fields.get(key)?;
        let parsed = match &node.value {
            Value::Scalar { text, plain } => parse(Scalar { text, plain: *plain }),
            Value::Null | Value::List(_) | Value::Map(_) => Err(format!("is {}", kind(node))),
        };
        match parsed {
            Ok(value) => Some(value),
            Err(what) => {
                self.problems.push(node.at.problem(format!("`{key}` {what}; accepted: {accepted}")));
                None
            }
        }
    }

    fn duration(&mut self, fields: &Fields<'_>, key: &str, zero: Zero) -> Option<Duration> {
        let accepted = match zero {
            Zero::Accepted => "0s or more, such as 30s, 5m, 1h30m or 14d (units y, w, d, h, m, s, ms, in this order)",
            Zero::Refused => "above 0s, such as 30s, 5m, 1h30m or 14d (units y, w, d, h, m, s, ms, in this order)",
        };
        self.scalar(fields, key, accepted, |scalar| {
            let duration = units::duration(scalar.text).map_err(|bad| match bad {
                BadDuration::Form => "is not a duration".to_owned(),
                BadDuration::NoUnit => "is a number without a unit".to_owned(),
                BadDuration::Order => "has a unit twice or after a smaller one".to_owned(),
                BadDuration::Long => "is longer than 292 years".to_owned(),
            })?;
            match zero {
                Zero::Refused if duration.is_zero() => Err("is zero".to_owned()),
                _ => Ok(duration),
            }
        })
    }

    fn flag(&mut self, fields: &Fields<'_>, key: &str) -> Option<bool> {
        self.scalar(fields, key, "true or false, without quotes", |scalar| match scalar.text {
            "true" | "True" | "TRUE" if scalar.plain => Ok(true),
            "false" | "False" | "FALSE" if scalar.plain => Ok(false),
            _ => Err("is neither true nor false".to_owned()),
        })
    }

    fn count(&mut self, fields: &Fields<'_>, key: &str, min: u32, max: u32) -> Option<NonZeroU32> {
        let accepted = format!("a whole number from {min} to {max}, without quotes");
        self.scalar(fields, key, &accepted, |scalar| {
            let digits = scalar.plain && scalar.text.chars().all(|c| c.is_ascii_digit());
            if !digits {
                return Err("is not a whole number".to_owned());
            }
            let number: Option<NonZeroU32> = scalar.text.parse().ok();
            number.filter(|n| (min..=max).contains(&n.get())).ok_or_else(|| "is out of range".to_owned())
        })
    }

    fn bytes(&mut self, fields: &Fields<'_>, key: &str) -> Option<u64> {
        let accepted = "a whole number of bytes above 0, alone or with B, KiB, MiB, GiB, kB, MB or GB, such as 8MiB";
        self.scalar(fields, key, accepted, |scalar| units::bytes(scalar.text).ok_or_else(|| "is not a size".to_owned()))
    }

    fn required_text(&mut self, fields: &Fields<'_>, key: &str, check: Check) -> Option<String> {
        self.require(fields, key);
        self.scalar(fields, key, "a text", |scalar| check(scalar.text).map(|()| scalar.text.to_owned()))
    }

    /// A list of texts, none of them twice. Numbers are texts: an id is what is written.
    fn texts(&mut self, fields: &Fields<'_>, key: &str, check: Check) -> Vec<String> {
        let Some(node) = fields.get(key) else { return Vec::new() };
        let items = match &node.value {
            Value::List(items) => items.as_slice(),
            Value::Null => &[],
            Value::Scalar { .. } | Value::Map(_) => {
                let message = format!("`{key}` is {}; accepted: a list, such as [one, two]", kind(node));
                self.problems.push(node.at.problem(message));
                &[]
            }
        };
        let mut seen = BTreeSet::new();
        let mut texts = Vec::new();
        for item in items {
            let checked = match &item.value {
                Value::Scalar { text, .. } if !seen.insert(text) => Err("is listed twice".to_owned()),
                Value::Scalar { text, .. } => check(text).map(|()| text.clone()),
                Value::Null | Value::List(_) | Value::Map(_) => Err(format!("is {}", kind(item))),
            };
            match checked {
                Ok(text) => texts.push(text),
                Err(what) => {
                    let message = format!("an entry of `{key}` {what}; accepted: texts or numbers, each once");
                    self.problems.push(item.at.problem(message));
                }
            }
        }
        texts
    }

    fn path(&mut self, fields: &Fields<'_>, key: &str) -> Option<PathBuf> {
        let folder = self.folder;
        self.scalar(fields, key, "a path", |scalar| {
            any_text(scalar.text)?;
            Ok(folder.join(scalar.text))
        })
    }

    /// A path whose file `check` finds good. What of the path looks like a secret is shortened: it may be one that
    /// was given under the wrong key.
    fn file(
        &mut self,
        fields: &Fields<'_>,
        key: &str,
        check: impl FnOnce(&Path) -> Result<(), Why>,
    ) -> Option<PathBuf> {
        let path = self.path(fields, key)?;
        let Some(Value::Scalar { text, .. }) = fields.get(key).map(|node| &node.value) else { return None };
        match check(&path) {
            Ok(()) => Some(path),
            Err(why) => {
                let (hint, shown) = (self.where_files_are(), shown_path(self.folder, Path::new(text)));
                let message = format!("the file of `{key}`, {shown}, {why}; accepted: {hint}");
                self.problems.push(fields.value_at(key).problem(message));
                None
            }
        }
    }

    /// A file with certificates or a key, and what `parse` makes of it.
    fn pem<T>(
        &mut self,
        fields: &Fields<'_>,
        key: &str,
        parse: impl FnOnce(&[u8]) -> Result<T, Unfit>,
    ) -> Option<(PathBuf, T)> {
        let mut content = Zeroizing::new(Vec::new());
        let path = self.file(fields, key, |path| {
            open_file(path)?.take(PEM_BYTES_MAX + 1).read_to_end(&mut content).map(drop).map_err(Why::Io)
        })?;
        let unfit = if content.len() as u64 > PEM_BYTES_MAX {
            let is = format!("is larger than {} MiB", PEM_BYTES_MAX >> 20);
            Unfit { is, accepted: "certificates and keys in PEM".to_owned() }
        } else {
            match parse(&content) {
                Ok(parsed) => return Some((path, parsed)),
                Err(unfit) => unfit,
            }
        };
        self.problems.push(fields.value_at(key).problem(format!("the file of `{key}` {unfit}")));
        None
    }

    fn where_files_are(&self) -> String {
        let here = Path::new(".");
        let folder = if self.folder.as_os_str().is_empty() { here } else { self.folder };
        format!("a path from `/` or from the config file's folder, {} (`~` is not expanded)", folder.display())
    }

    /// The required secret `key`, as text or in a file.
    fn secret(&mut self, fields: &Fields<'_>, key: &str, form: Form) -> Option<Secret> {
        let key_file = format!("{key}_file");
        match (fields.key_at(key), fields.key_at(&key_file)) {
            (None, None) => {
                let message = format!("`{key}` is missing; required in {}, or `{key_file}`", fields.what);
                self.problems.push(fields.at.problem(message));
                None
            }
            (Some(text), Some(file)) => {
                let message = format!("both `{key}` and `{key_file}` are given; accepted: one of them");
                self.problems.push(text.max(file).problem(message));
                None
            }
            (Some(_), None) => {
                let mut doubtful = None;
                let secret = self.scalar(fields, key, "a text", |scalar| {
                    any_text(scalar.text.trim_end_matches(['\n', '\r']))?;
                    let secret = scalar.text.strip_suffix('\n').unwrap_or(scalar.text);
                    match check_form(secret, form) {
                        // it is sent as it stands here, for all to see who may read this
                        Err(bad @ BadForm::NotBase64) => doubtful = Some(bad),
                        checked => checked.map_err(|bad| bad.to_string())?,
                    }
                    Ok(Secret::text(secret).of_form(form))
                });
                let warning = doubtful.map(|bad| fields.value_at(key).problem(format!("`{key}` {bad}")));
                self.warnings.extend(warning);
                secret
            }
            (None, Some(_)) => {
                let path = self.file(fields, &key_file, |path| check_secret_file(path, form))?;
                Some(Secret::file(path).of_form(form))
            }
        }
    }

    /// The same where it may be left out.
    fn optional_secret(&mut self, fields: &Fields<'_>, key: &str) -> Option<Secret> {
        let given = [key, &format!("{key}_file")].into_iter().any(|key| fields.get(key).is_some());
        if given { self.secret(fields, key, Form::Password) } else { None }
    }

    fn required_url(&mut self, fields: &Fields<'_>, key: &str, plain: bool) -> Option<Url> {
        self.require(fields, key);
        self.url(fields, key, plain)
    }

    /// A URL to which paths can be added; `plain` accepts `http://` beyond loopback.
    fn url(&mut self, fields: &Fields<'_>, key: &str, plain: bool) -> Option<Url> {
        let accepted = if plain {
            "http:// or https:// with a host, without user, password, query and fragment"
        } else {
            "https:// with a host, without user, password, query and fragment; http:// for loopback or with \
             `allow_plain_http: true`"
        };
        self.scalar(fields, key, accepted, |scalar| {
            let url = Url::parse(scalar.text).map_err(|_| "is not a URL".to_owned())?;
            let wrong = if !matches!(url.scheme(), "http" | "https") {
                "is neither an http:// nor an https:// URL"
            } else if !url.username().is_empty() || url.password().is_some() {
                "has a user or password in it"
            } else if url.query().is_some() {
                "has a query (`?`)"
            } else if url.fragment().is_some() {
                "has a fragment (`#`)"
            } else if url.scheme() == "http" && !plain && !is_loopback(&url) {
                "is plain http:// to another machine, where credentials could be read on the way"
            } else {
                return Ok(url);
            };
            Err(wrong.to_owned())
        })
    }
}

/// A configured path as a message may show it, from `/` or from the folder of the config file on: what looks like a
/// secret is cut to its first characters.
fn shown_path(folder: &Path, configured: &Path) -> String {
    let single = configured.is_relative() && configured.components().count() == 1;
    let shown: PathBuf = configured
        .components()
        .map(|component| {
            let name = component.as_os_str().to_string_lossy().into_owned();
            if component == Component::RootDir || !looks_like_a_secret(&name, single) {
                return name;
            }
            let start: String = name.chars().take(2).collect();
            format!("{start}… ({} characters)", name.chars().count())
        })
        .collect();
    let shown = folder.join(shown).display().to_string();
    shown.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Whether a name of a file or folder may be a secret that was given instead of a path. A `single` one, of which nothing
/// else says that it is a path, is one where it has digits among its letters and no mark that names of files have.
fn looks_like_a_secret(name: &str, single: bool) -> bool {
    let has = |kind: fn(&char) -> bool| name.chars().any(|c| kind(&c));
    let (upper, lower, digit) =
        (has(char::is_ascii_uppercase), has(char::is_ascii_lowercase), has(char::is_ascii_digit));
    let length = name.chars().count();
    let has_marks = name.contains(['.', '-', '_']);
    let unlike_a_name = !name.chars().all(|c| c.is_alphanumeric() || "._-@: ".contains(c));
    let random = upper && lower && digit && length >= 16;
    if single {
        unlike_a_name || length > 40 || random || (digit && (upper || lower) && !has_marks)
    } else {
        unlike_a_name || length > 64 || (random && length >= 20 && !has_marks)
    }
}

/// Says what is wrong with a text, without showing it.
type Check = fn(&str) -> Result<(), String>;

fn any_text(text: &str) -> Result<(), String> {
    if text.trim().is_empty() { Err("is empty".to_owned()) } else { Ok(()) }
}

/// A text that can be one segment of a URL's path. Dots would be resolved away.
fn segment(text: &str) -> Result<(), String> {
    any_text(text)?;
    let odd = |c: char| c.is_control() || c.is_whitespace() || matches!(c, '/' | '\\' | '?' | '#' | '%');
    if text.contains(odd) || matches!(text, "." | "..") {
        Err("has characters that no id has".to_owned())
    } else {
        Ok(())
    }
}

/// What is wrong with a text that [`fits_header`] refuses.
const NO_HEADER: &str = "has characters that no header can carry";

/// Whether a header can carry a text, without a blank at its ends, which would not arrive.
fn fits_header(text: &str) -> bool {
    let carried = |c: char| c == ' ' || c == '\t' || c.is_ascii_graphic();
    text.chars().all(carried) && !text.starts_with([' ', '\t']) && !text.ends_with([' ', '\t'])
}

/// Why a header cannot be configured.
fn ours(name: &HeaderName) -> Option<&'static str> {
    Some(match name.as_str() {
        "user-agent" => "`user_agent` sets it",
        "proxy-authorization" => "`proxy_username` and `proxy_password` set it",
        "authorization" | "infa-session-id" => "it carries the credential of the service",
        "host" | "content-length" | "content-type" | "content-encoding" | "accept" | "accept-encoding" => {
            "it is set as the service needs it"
        }
        "connection" | "keep-alive" | "proxy-connection" | "te" | "trailer" | "transfer-encoding" | "upgrade"
        | "expect" | "http2-settings" => "it governs the connection",
        "range" | "if-match" | "if-none-match" | "if-modified-since" | "if-unmodified-since" | "if-range" => {
            "answers would leave out what is to be counted"
        }
        "www-authenticate" | "proxy-authenticate" => "it belongs into an answer",
        _ => return None,
    })
}

/// Whether a URL leads to this machine, where plain `http://` shows nothing to others.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// What a node is, without its content.
fn kind(node: &Node) -> &'static str {
    match &node.value {
        Value::Null => "empty",
        Value::Scalar { text, .. } if text.is_empty() => "empty",
        Value::Scalar { .. } => "a single value",
        Value::List(_) => "a list",
        Value::Map(_) => "a mapping",
    }
}

/// What to say about a key that `what` does not have. `bare`: it has no value.
fn unknown(key: &str, bare: bool, what: &str, keys: &[&str]) -> String {
    // `{password: one,two}` makes a key of a half secret, `{token:abc}` of a whole one. So only
    // what has a value and looks like a key of ours, which have no digits, is shown.
    let letters = key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    let like_ours = letters && key.len() <= 40 && !key.contains(|c: char| c.is_ascii_digit() || c.is_ascii_uppercase());
    let shown = if !bare && like_ours { format!("unknown key `{key}`") } else { "unknown key".to_owned() };
    let near = nearest(key, keys).map(|known| format!(" (did you mean `{known}`?)"));
    let hint = match near {
        Some(near) => near,
        None if key == "<<" => " (YAML merge keys are not supported)".to_owned(),
        None if !letters => " (a key ends with a colon and a space)".to_owned(),
        None => String::new(),
    };
    format!("{shown} in {what}{hint}; accepted: {}", join_words(keys))
}

/// The known word that was probably meant.
fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let word = word.to_lowercase();
    let distances = known.iter().map(|known| (strsim::damerau_levenshtein(&word, known), *known));
    distances.filter(|(distance, known)| *distance <= (known.len() / 3).max(1)).min().map(|(_, known)| known)
}

fn join_words(words: &[&str]) -> String {
    words.join(", ")
}
