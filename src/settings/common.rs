//! The keys that every source has, besides those of its system.
//!
//! Leaves to others: what is usual for a system (`source/NAME/setup.rs`), and what of it is used how.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use secrecy::ExposeSecret;
use url::Url;

use super::fields::{Fields, Holds, Machine, Reader, any_text, kind};
use super::keys::{Absent, Key, Kind, Zero};
use super::secret::{Form, Secret};
use super::tree::Value;
use super::units;
use crate::pem;
use crate::proxy::{NoProxy, Proxies, ProxyError};

const MINUTE: Duration = Duration::from_mins(1);
/// The least a poll reads again: two clocks are not the same to the second, and no service shows an event as it happens.
const OVERLAP_MIN: Duration = MINUTE;
const MIB: u64 = 1024 * 1024;

/// The keys of every source.
pub const KEYS: &[Key] = &[
    Key::optional("poll_interval", Kind::Duration(Zero::Refused), Absent::Usual, "Time between polls."),
    Key::optional(
        "overlap",
        Kind::Duration(Zero::Accepted),
        Absent::Usual,
        "How far back each poll reads again for late events; at least a minute.",
    ),
    Key::optional(
        "initial_lookback",
        Kind::Duration(Zero::Accepted),
        Absent::Usual,
        "How far back a new source is read, counted from when it was first configured.",
    ),
    Key::optional(
        "max_catch_up",
        Kind::Duration(Zero::Refused),
        Absent::Usual,
        "The longest outage that is read back.",
    ),
    Key::optional("rate_limit", Kind::Section(RATE_LIMIT), Absent::Usual, "The limit of requests."),
    Key::optional("timeout", Kind::Duration(Zero::Refused), Absent::Usual, "How long one request may take."),
    Key::optional(
        "poll_timeout",
        Kind::Duration(Zero::Refused),
        Absent::Usual,
        "How long one poll may take, including the time it waits for the rate limit.",
    ),
    Key::optional("max_response_bytes", Kind::Bytes, Absent::Usual, "The largest response body, decompressed."),
    Key::optional(
        PAGE_SIZE,
        Kind::Count { min: 1, max: 10_000 },
        Absent::Nothing,
        "How many events to ask for per page; if absent, a value that suits the service.",
    ),
    Key::optional("ignore_actors", Kind::Texts, Absent::Nothing, "Actors whose events are not counted."),
    Key::optional("tls", Kind::Section(TLS), Absent::Nothing, "TLS settings of this source."),
    Key::optional("proxy_url", Kind::ProxyUrl, Absent::Nothing, "The HTTP proxy for every request."),
    Key::optional("proxy_username", Kind::Text, Absent::Nothing, "The user at the proxy."),
    Key::optional("proxy_password", Kind::Secret(Form::Password), Absent::Nothing, "The password at the proxy."),
    Key::optional(
        "proxy_from_environment",
        Kind::Flag,
        Absent::Is("false"),
        "Take the proxies from HTTP_PROXY, HTTPS_PROXY and NO_PROXY.",
    ),
    Key::optional("no_proxy", Kind::Text, Absent::Nothing, "Hosts that are reached directly."),
    Key::optional("headers", Kind::Sections(HEADER), Absent::Nothing, "Extra headers for every request."),
    Key::optional("user_agent", Kind::Text, Absent::Nothing, "The User-Agent of requests."),
    Key::optional(
        "allow_plain_http",
        Kind::Flag,
        Absent::Is("false"),
        "Accept http:// for more than loopback; credentials can then be read on the way.",
    ),
];

/// The one of them that a source without pages does not have.
pub const PAGE_SIZE: &str = "page_size";

const RATE_LIMIT: &[Key] = &[
    Key::required("requests", Kind::Count { min: 1, max: u32::MAX }, "How many requests in the long run."),
    Key::required("per", Kind::Duration(Zero::Refused), "In how much time."),
    Key::optional("burst", Kind::Count { min: 1, max: u32::MAX }, Absent::Is("1"), "How many requests at once."),
];

const TLS: &[Key] = &[
    Key::optional("ca_file", Kind::Path, Absent::Nothing, "PEM certificates to trust, instead of the machine's."),
    Key::optional("cert_file", Kind::Path, Absent::Nothing, "PEM certificate to present to the service."),
    Key::optional("key_file", Kind::Path, Absent::Nothing, "PEM key of cert_file."),
    Key::optional(
        "server_name",
        Kind::Text,
        Absent::Nothing,
        "The name that the service's certificate must have, if it differs from the URL's host.",
    ),
];

const HEADER: &[Key] = &[
    Key::required("name", Kind::Text, "The name of the header."),
    Key::required("value", Kind::Secret(Form::Password), "Its value."),
];

/// The settings every source has.
#[derive(Clone, Debug, PartialEq)]
pub struct Common {
    /// From the start of one poll to the start of the next. Above zero.
    pub poll_interval: Duration,
    /// How far each poll reads back before the watermark, for late events.
    /// At least a minute.
    pub overlap: Duration,
    /// How much history a source without a checkpoint counts.
    pub initial_lookback: Duration,
    /// The longest outage that is read back. Above zero.
    pub max_catch_up: Duration,
    /// The budget of requests.
    pub rate_limit: RateLimit,
    /// The deadline of one request. Above zero.
    pub timeout: Duration,
    /// The deadline of one poll, waiting for the budget included. Above zero.
    pub poll_timeout: Duration,
    /// The largest response body, decompressed. Above zero.
    pub max_response_bytes: u64,
    /// How many events to ask for per page. `None`: what suits the service.
    pub page_size: Option<NonZeroU32>,
    /// Actors whose events are not counted, in lower case.
    pub ignore_actors: Vec<String>,
    /// TLS beyond the usual roots.
    pub tls: Option<Tls>,
    /// The HTTP proxy.
    pub proxy_url: Option<Url>,
    /// Who we are at the proxy; given together with `proxy_password`, and with a proxy.
    pub proxy_username: Option<String>,
    /// The password of `proxy_username`.
    pub proxy_password: Option<Secret>,
    /// Whether the proxies are those of the environment; not together with `proxy_url`.
    pub proxy_from_environment: bool,
    /// Hosts that are reached without `proxy_url`.
    pub no_proxy: Option<NoProxy>,
    /// Further headers of every request, none twice and none that the program sets itself.
    pub headers: Vec<Header>,
    /// What requests introduce themselves as, instead of this program.
    pub user_agent: Option<String>,
    /// Whether `http://` is accepted for more than loopback.
    pub allow_plain_http: bool,
}

/// A header that every request of a source carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub name: HeaderName,
    /// Its value, which a header can carry.
    pub value: Secret,
}

/// A token bucket: in any time t at most `burst + requests · t / per` requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// How many requests, on the long run, in each `per`.
    pub requests: NonZeroU32,
    /// `per / requests` is at least a microsecond.
    pub per: Duration,
    /// How many at once.
    pub burst: NonZeroU32,
}

/// TLS settings of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM certificates that are trusted.
    pub ca_file: Option<PathBuf>,
    /// PEM certificate shown to the service; given together with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// PEM key of `cert_file`.
    pub key_file: Option<PathBuf>,
    /// The name the service's certificate must have, where it is not the URL's host.
    pub server_name: Option<String>,
}

impl RateLimit {
    /// So many requests a minute, one at a time.
    ///
    /// # Panics
    /// There are none.
    pub const fn a_minute(requests: u32) -> Self {
        let requests = NonZeroU32::new(requests).expect("a budget allows something");
        Self { requests, per: MINUTE, burst: NonZeroU32::MIN }
    }
}

impl Common {
    /// What is usual for a log that is kept for so long.
    pub fn usual(kept: Duration) -> Self {
        Self {
            poll_interval: MINUTE,
            overlap: 10 * MINUTE,
            initial_lookback: Duration::from_hours(1),
            max_catch_up: kept,
            rate_limit: RateLimit::a_minute(60),
            timeout: Duration::from_secs(30),
            poll_timeout: 15 * MINUTE,
            max_response_bytes: 16 * MIB,
            page_size: None,
            ignore_actors: Vec::new(),
            tls: None,
            proxy_url: None,
            proxy_username: None,
            proxy_password: None,
            proxy_from_environment: false,
            no_proxy: None,
            headers: Vec::new(),
            user_agent: None,
            allow_plain_http: false,
        }
    }

    /// What each key of [`KEYS`] that is [`Absent::Usual`] is here, as a user writes it.
    pub fn shown(&self) -> [(&'static str, String); 8] {
        let RateLimit { requests, per, burst } = self.rate_limit;
        let time = units::duration_text;
        [
            ("poll_interval", time(self.poll_interval)),
            ("overlap", time(self.overlap)),
            ("initial_lookback", time(self.initial_lookback)),
            ("max_catch_up", time(self.max_catch_up)),
            ("rate_limit", format!("{requests} per {}, burst {burst}", time(per))),
            ("timeout", time(self.timeout)),
            ("poll_timeout", time(self.poll_timeout)),
            ("max_response_bytes", format!("{}MiB", self.max_response_bytes / MIB)),
        ]
    }

    /// The proxies of the source.
    ///
    /// # Errors
    /// A variable of the environment is to be used and cannot be.
    pub fn proxies(&self) -> Result<Proxies, ProxyError> {
        if self.proxy_from_environment {
            return Proxies::of_environment(|name| std::env::var(name).ok());
        }
        Ok(Proxies::one(self.proxy_url.clone(), self.no_proxy.clone().unwrap_or_default()))
    }

    /// The secrets beside the credential of the service.
    pub(crate) fn secrets(&self) -> impl Iterator<Item = &Secret> {
        self.headers.iter().map(|header| &header.value).chain(&self.proxy_password)
    }
}

impl Reader<'_> {
    /// The settings of a source that every source has. What it does not say is what is usual for its system, but for
    /// `poll_interval`, which may be said for all.
    pub(crate) fn common(
        &mut self,
        fields: &Fields<'_>,
        default: &Common,
        poll_interval: Option<Duration>,
        has_pages: bool,
    ) -> Common {
        let from_environment = self.proxy_from_environment(fields);
        Common {
            poll_interval: self.duration(fields, "poll_interval").or(poll_interval).unwrap_or(default.poll_interval),
            overlap: self.duration(fields, "overlap").unwrap_or(default.overlap).max(OVERLAP_MIN),
            initial_lookback: self.duration(fields, "initial_lookback").unwrap_or(default.initial_lookback),
            max_catch_up: self.duration(fields, "max_catch_up").unwrap_or(default.max_catch_up),
            rate_limit: self.rate_limit(fields).unwrap_or(default.rate_limit),
            timeout: self.duration(fields, "timeout").unwrap_or(default.timeout),
            poll_timeout: self.duration(fields, "poll_timeout").unwrap_or(default.poll_timeout),
            max_response_bytes: self.bytes(fields, "max_response_bytes").unwrap_or(default.max_response_bytes),
            page_size: if has_pages { self.count(fields, "page_size") } else { None },
            ignore_actors: self
                .texts(fields, "ignore_actors", any_text)
                .iter()
                .map(|actor| actor.to_lowercase())
                .collect(),
            tls: self.tls(fields),
            proxy_url: self.url(fields, "proxy_url", false),
            proxy_username: self.proxy_username(fields, from_environment),
            proxy_password: self.secret(fields, "proxy_password"),
            proxy_from_environment: from_environment,
            no_proxy: self.no_proxy(fields, from_environment),
            headers: self.headers(fields),
            user_agent: self.scalar(fields, "user_agent", "a text of visible ASCII characters and blanks", |scalar| {
                any_text(scalar.text)?;
                fits_header(scalar.text).then(|| scalar.text.to_owned()).ok_or_else(|| NO_HEADER.to_owned())
            }),
            allow_plain_http: self.flag(fields, "allow_plain_http"),
        }
    }

    fn rate_limit(&mut self, fields: &Fields<'_>) -> Option<RateLimit> {
        let node = fields.get("rate_limit")?;
        let limit = self.map(node, "`rate_limit`", RATE_LIMIT)?;
        let requests = self.count(&limit, "requests");
        let per = self.duration(&limit, "per");
        let burst = match limit.get("burst") {
            Some(_) => self.count(&limit, "burst"),
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

    fn tls(&mut self, fields: &Fields<'_>) -> Option<Tls> {
        let tls = self.section(fields, "tls")?;
        for (one, other) in [("cert_file", "key_file"), ("key_file", "cert_file")] {
            if let (Some(at), None) = (tls.key_at(one), tls.key_at(other)) {
                self.problems
                    .push(at.problem(format!("`{one}` is given without `{other}`; accepted: both or neither")));
            }
        }
        let (ca_file, _) = self.pem(&tls, "ca_file", Holds::Certificates, pem::certificates).unzip();
        let (cert_file, chain) = self.pem(&tls, "cert_file", Holds::Certificates, pem::certificates).unzip();
        let (key_file, key) = self.pem(&tls, "key_file", Holds::Secret, pem::private_key).unzip();
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
        let wanted = self.flag(fields, key);
        for other in ["proxy_url", "no_proxy"].into_iter().filter(|_| wanted) {
            if let (Some(at), Some(here)) = (fields.key_at(other), fields.key_at(key)) {
                let message = format!("both `{other}` and `{key}` are given; accepted: one of them");
                self.problems.push(at.max(here).problem(message));
            }
        }
        if wanted
            && self.machine == Machine::This
            && let Err(why) = Proxies::of_environment(|name| std::env::var(name).ok())
        {
            self.problems.push(fields.value_at(key).problem(why.to_string()));
        }
        wanted
    }

    fn no_proxy(&mut self, fields: &Fields<'_>, from_environment: bool) -> Option<NoProxy> {
        if let (Some(at), None, false) = (fields.key_at("no_proxy"), fields.get("proxy_url"), from_environment) {
            self.problems.push(at.problem("`no_proxy` is given without `proxy_url`; accepted: both"));
        }
        let accepted = "hosts, domains, addresses and networks, each with a port or without, separated by commas, such as \
                        `.example.com, 10.0.0.0/8, api.example.org:8443`, or `*`";
        self.scalar(fields, "no_proxy", accepted, |scalar| NoProxy::parse(scalar.text).map_err(str::to_owned))
    }

    fn proxy_username(&mut self, fields: &Fields<'_>, from_environment: bool) -> Option<String> {
        let password = || fields.key_at("proxy_password").or_else(|| fields.key_at("proxy_password_file"));
        match (fields.key_at("proxy_username"), password()) {
            (Some(at), None) | (None, Some(at)) => {
                let message = "`proxy_username` and `proxy_password` (or `proxy_password_file`) belong together, and one is \
                               missing; accepted: both or neither";
                self.problems.push(at.problem(message));
            }
            (Some(at), Some(_)) if fields.get("proxy_url").is_none() && !from_environment => {
                let message = "`proxy_username` is given without a proxy; accepted: with `proxy_url` or \
                               `proxy_from_environment`";
                self.problems.push(at.problem(message));
            }
            _ => {}
        }
        self.scalar(fields, "proxy_username", "a text without colon and control characters", |scalar| {
            any_text(scalar.text)?;
            // the first colon ends the name (RFC 7617)
            let odd = scalar.text.contains(|c: char| c == ':' || c.is_control());
            if odd { Err("has characters that a user name cannot have".to_owned()) } else { Ok(scalar.text.to_owned()) }
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
            let Some(entry) = self.map(entry, "an entry of `headers`", HEADER) else { continue };
            let taken = |name: &HeaderName| headers.iter().any(|header| header.name == *name);
            let name =
                self.scalar(&entry, "name", "the name of a header that this program does not set itself", |scalar| {
                    let name: HeaderName = scalar.text.parse().map_err(|_| "is not the name of a header".to_owned())?;
                    if let Some(why) = ours(&name) {
                        return Err(format!("cannot be {name}: {why}"));
                    }
                    if taken(&name) { Err("is listed twice".to_owned()) } else { Ok(name) }
                });
            let value = self.secret(&entry, "value");
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
}

/// What is wrong with a text that [`fits_header`] refuses.
const NO_HEADER: &str = "has characters that a header cannot carry";

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
            "the exporter sets it as the service needs it"
        }
        "connection" | "keep-alive" | "proxy-connection" | "te" | "trailer" | "transfer-encoding" | "upgrade"
        | "expect" | "http2-settings" => "it controls the connection",
        "range" | "if-match" | "if-none-match" | "if-modified-since" | "if-unmodified-since" | "if-range" => {
            "answers would leave out events"
        }
        "www-authenticate" | "proxy-authenticate" => "it belongs in an answer",
        _ => return None,
    })
}
