//! Chooses the proxy of a request.
//!
//! Promises: plain functions over values. `no_proxy` and the environment's variables mean what they
//! mean to Prometheus, whose HTTP client follows Go's `httpproxy`. No text printed here holds the
//! password that an address in the environment may have.
//!
//! Leaves to others: where the settings come from (`settings/common.rs`), the connection (`transport.rs`).

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use url::{Host, Url};

use crate::settings::is_loopback;

/// A variable of the environment is not the address of an HTTP proxy. Its value, which may hold a password, is not shown.
#[derive(Debug, thiserror::Error)]
#[error("{variable} of the environment is not the address of an HTTP proxy; accepted: one such as http://proxy:3128")]
pub struct ProxyError {
    variable: &'static str,
}

/// The proxies of one source.
#[derive(Clone, Default, PartialEq)]
pub struct Proxies {
    /// For `http://` services.
    http: Option<Url>,
    /// For `https://` services.
    https: Option<Url>,
    /// Hosts that are reached directly.
    direct: NoProxy,
    /// Whether loopback is reached directly, too.
    loopback_direct: bool,
}

/// Without the user and the password that an address may have.
impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |url: &Option<Url>| url.as_ref().map(|url| url.origin().ascii_serialization());
        f.debug_struct("Proxies")
            .field("http", &shown(&self.http))
            .field("https", &shown(&self.https))
            .field("direct", &self.direct)
            .field("loopback_direct", &self.loopback_direct)
            .finish()
    }
}

impl Proxies {
    /// One proxy, if any, for all but some hosts.
    pub fn one(proxy: Option<Url>, direct: NoProxy) -> Self {
        Self { http: proxy.clone(), https: proxy, direct, loopback_direct: false }
    }

    /// The proxies that `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` (or the same in lower case) name. As in Go,
    /// loopback is reached directly, and `HTTP_PROXY` is not believed where a web server may have set it from a
    /// request's header (CGI).
    ///
    /// # Errors
    /// A variable is not the address of an HTTP proxy.
    pub fn of_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ProxyError> {
        let any = |names: [&'static str; 2]| {
            names.into_iter().find_map(|name| variable(name).filter(|text| !text.trim().is_empty()).map(|t| (name, t)))
        };
        let proxy = |names| {
            let Some((name, text)) = any(names) else { return Ok(None) };
            let text = text.trim();
            let usable = |url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host();
            let url = if text.contains("://") { Url::parse(text) } else { Url::parse(&format!("http://{text}")) };
            url.ok().filter(usable).map(Some).ok_or(ProxyError { variable: name })
        };
        let http = if variable("REQUEST_METHOD").is_some() { None } else { proxy(["HTTP_PROXY", "http_proxy"])? };
        let https = proxy(["HTTPS_PROXY", "https_proxy"])?;
        let direct = any(["NO_PROXY", "no_proxy"]).map(|(_, text)| NoProxy::as_far_as_understood(&text));
        Ok(Self { http, https, direct: direct.unwrap_or_default(), loopback_direct: true })
    }

    /// The proxy through which `url` is reached; `None`: directly.
    pub fn via(&self, url: &Url) -> Option<&Url> {
        let proxy = if url.scheme() == "https" { self.https.as_ref() } else { self.http.as_ref() };
        let direct = self.direct.names(url) || (self.loopback_direct && is_loopback(url));
        proxy.filter(|_| !direct)
    }

    /// Whether any request goes through a proxy.
    pub fn any(&self) -> bool {
        self.http.is_some() || self.https.is_some()
    }

    /// The proxies that are spoken to over TLS, by host.
    pub fn over_tls(&self) -> impl Iterator<Item = &str> {
        [&self.http, &self.https].into_iter().flatten().filter(|url| url.scheme() == "https").filter_map(Url::host_str)
    }

    /// Users and passwords in the addresses, as they are written there.
    pub(crate) fn logins(&self) -> impl Iterator<Item = (&str, &str)> {
        let urls = [&self.http, &self.https].into_iter().flatten();
        urls.filter_map(|url| url.password().map(|password| (url.username(), password)))
    }

    /// All of it, as text: to tell whether two are equal. It may hold a password.
    pub(crate) fn secret_text(&self) -> String {
        let url = |url: &Option<Url>| url.as_ref().map_or("-", Url::as_str).to_owned();
        format!("{} {} {:?} {}", url(&self.http), url(&self.https), self.direct, self.loopback_direct)
    }
}

/// Hosts that are reached without a proxy, as in Prometheus's `no_proxy`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NoProxy(Vec<Entry>);

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    hosts: Hosts,
    /// `None`: all.
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq)]
enum Hosts {
    All,
    Net(IpNet),
    /// Everything below this name, and the name itself unless `below_only`.
    Domain {
        name: String,
        below_only: bool,
    },
}

impl NoProxy {
    /// Reads a list with commas.
    ///
    /// # Errors
    /// What is wrong with one of its entries, without showing it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let entries: Result<Vec<_>, _> = parts(text).map(entry).collect();
        let entries = entries?;
        if entries.is_empty() { Err("is empty") } else { Ok(Self(entries)) }
    }

    /// The same without the entries that are none, as Go does with the environment's list.
    fn as_far_as_understood(text: &str) -> Self {
        Self(parts(text).filter_map(|part| entry(part).ok()).collect())
    }

    /// Whether the host of `url` is one of them.
    pub(crate) fn names(&self, url: &Url) -> bool {
        self.0.iter().any(|entry| {
            entry.port.is_none_or(|port| url.port_or_known_default() == Some(port))
                && match (&entry.hosts, url.host()) {
                    (Hosts::All, _) => true,
                    (Hosts::Net(net), Some(Host::Ipv4(address))) => net.contains(&IpAddr::V4(address)),
                    (Hosts::Net(net), Some(Host::Ipv6(address))) => net.contains(&IpAddr::V6(address).to_canonical()),
                    (Hosts::Domain { name, below_only }, Some(Host::Domain(host))) => {
                        let host = host.trim_end_matches('.');
                        let below = || host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'));
                        below() || (!below_only && host == name)
                    }
                    _ => false,
                }
        })
    }
}

fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

fn entry(text: &str) -> Result<Entry, &'static str> {
    const NO_PORT: &str = "has an entry with an invalid port";
    if text == "*" {
        return Ok(Entry { hosts: Hosts::All, port: None });
    }
    if text.contains("://") {
        return Err("has an entry with a scheme (`://`)");
    }
    let net = |text: &str| {
        let address = text.parse().map(|address: IpAddr| address.to_canonical());
        address.map(IpNet::from).ok().or_else(|| text.parse().ok())
    };
    if let Some(net) = net(text) {
        return Ok(Entry { hosts: Hosts::Net(net), port: None });
    }
    if text.contains('/') {
        return Err("has an entry that is not a network, such as 10.0.0.0/8");
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => (host, Some(port.parse().map_err(|_| NO_PORT)?)),
        _ => (text, None),
    };
    if let Some(net) = net(host.trim_start_matches('[').trim_end_matches(']')) {
        return Ok(Entry { hosts: Hosts::Net(net), port });
    }
    let name = host.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(host);
    let below = name.strip_prefix('.');
    match Host::parse(below.unwrap_or(name).trim_end_matches('.')) {
        Ok(Host::Domain(name)) if !name.contains('*') => {
            Ok(Entry { hosts: Hosts::Domain { name, below_only: below.is_some() }, port })
        }
        _ => Err("has an entry that is neither a host nor an address"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direct(list: &str, url: &str) -> bool {
        NoProxy::parse(list).unwrap().names(&Url::parse(url).unwrap())
    }

    #[test]
    fn no_proxy_means_what_it_means_to_prometheus() {
        for (list, url, expected) in [
            ("example.com", "https://example.com/", true),
            ("example.com", "https://EXAMPLE.com./", true),
            ("example.com", "https://a.b.example.com/", true),
            ("example.com", "https://notexample.com/", false),
            (".example.com", "https://a.example.com/", true),
            (".example.com", "https://example.com/", false),
            ("*.example.com", "https://a.example.com/", true),
            ("*.example.com", "https://example.com/", false),
            ("a.example, b.example", "https://b.example/", true),
            (" ,a.example,, ", "https://a.example/", true),
            ("example.com:8443", "https://example.com:8443/", true),
            ("example.com:8443", "https://example.com/", false),
            ("example.com:443", "https://example.com/", true),
            ("example.com:80", "http://example.com/", true),
            ("10.0.0.0/8", "http://10.1.2.3/", true),
            ("10.0.0.0/8", "http://11.1.2.3/", false),
            ("10.0.0.0/8", "http://10.example/", false),
            ("10.1.2.3", "http://10.1.2.3:8080/", true),
            ("10.1.2.3:8080", "http://10.1.2.3:8080/", true),
            ("10.1.2.3:8080", "http://10.1.2.3/", false),
            ("::1", "http://[::1]/", true),
            ("[::1]:81", "http://[::1]:81/", true),
            ("[::1]:81", "http://[::1]/", false),
            ("fd00::/8", "http://[fd12::1]/", true),
            ("10.0.0.0/8", "http://[::ffff:10.0.0.1]/", true),
            ("*", "https://anything.example/", true),
            ("localhost", "http://127.0.0.1/", false),
            ("büro.example", "https://xn--bro-hoa.example/", true),
        ] {
            assert_eq!(direct(list, url), expected, "{list} {url}");
        }
        for wrong in [
            "",
            " , ",
            "http://a.example",
            "10.0.0.0/64",
            "a b",
            "a.example:x",
            "a.example:70000",
            "a*.example",
            "1.2.3.400",
        ] {
            assert!(NoProxy::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    fn environment(variables: &[(&str, &str)]) -> Result<Proxies, ProxyError> {
        Proxies::of_environment(|name| {
            variables.iter().find(|(is, _)| *is == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_is_read_as_go_reads_it() {
        let (https, http) = (Url::parse("https://api.example/").unwrap(), Url::parse("http://api.example/").unwrap());
        let via = |variables: &[(&str, &str)], url: &Url| {
            let proxies = environment(variables).unwrap();
            proxies.via(url).map(|proxy| proxy.origin().ascii_serialization())
        };
        let some = |origin: &str| Some(origin.to_owned());
        assert_eq!(via(&[("HTTPS_PROXY", "http://p:1")], &https), some("http://p:1"));
        assert_eq!(via(&[("https_proxy", "http://p:1")], &https), some("http://p:1"));
        assert_eq!(via(&[("HTTPS_PROXY", "http://p:1"), ("https_proxy", "http://q:1")], &https), some("http://p:1"));
        assert_eq!(via(&[("HTTPS_PROXY", ""), ("https_proxy", "http://q:1")], &https), some("http://q:1"));
        assert_eq!(via(&[("HTTPS_PROXY", "p.example:1")], &https), some("http://p.example:1"));
        assert_eq!(via(&[("HTTPS_PROXY", "10.0.0.1:1")], &https), some("http://10.0.0.1:1"));
        assert_eq!(via(&[("HTTPS_PROXY", "p")], &https), some("http://p"));
        assert_eq!(via(&[("HTTPS_PROXY", "http://p:1")], &http), None, "one scheme, one variable");
        assert_eq!(via(&[("ALL_PROXY", "http://p:1")], &https), None, "Go knows no ALL_PROXY");
        assert_eq!(via(&[("HTTP_PROXY", "http://p:1"), ("REQUEST_METHOD", "GET")], &http), None);
        let both =
            [("HTTPS_PROXY", "http://u:pw@p:1"), ("HTTP_PROXY", "http://p:1"), ("no_proxy", "api.example, 1/99")];
        assert_eq!(via(&both, &https), None);
        for loopback in ["http://127.0.0.1:1/", "https://localhost/", "http://[::1]/"] {
            assert_eq!(via(&both, &Url::parse(loopback).unwrap()), None, "{loopback}");
        }
        assert!(!format!("{:?}", environment(&both).unwrap()).contains("pw"));
        for wrong in ["socks5://p:1", "http://", "ftp://p", "a b", "swordfish://x"] {
            let why = environment(&[("https_proxy", wrong)]).unwrap_err().to_string();
            assert!(why.starts_with("https_proxy of the environment") && !why.contains("swordfish"), "{why}");
        }
    }
}
