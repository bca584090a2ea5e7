use std::collections::BTreeSet;
use std::num::NonZeroU32;

use proptest::prelude::*;
use secrecy::ExposeSecret;

use super::*;
use crate::proxy::NoProxy;
use crate::settings::{RateLimit, endpoint};
use crate::source::{activid, canvas, index_exchange, informatica, losant as losant_source};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
const MIB: u64 = 1024 * 1024;

const EXAMPLE: &str = include_str!("../../docs/example.yml");
const REFERENCE: &str = include_str!("../../docs/configuration.md");

/// The example of the public interface, word for word.
const INTERFACE: &str = "\
global:
  poll_interval: 60s
  hold_new_series: 60s        # see 5.2
  openmetrics_created: false  # also write _created lines in OpenMetrics text
storage:
  path: ./data                # embedded store, created if missing
sources:                      # one list per system, each may hold any number of sources
  canvas:
    - name: campus            # label value `source`; [a-z0-9][a-z0-9_-]{0,62}, unique over all lists
      base_url: https://canvas.example.edu
      access_token_file: canvas.token
      accounts: [1]           # any of accounts, users, pseudonyms (lists of ids), at least one
  informatica:
    - name: etl
      login_url: https://dm-us.informaticacloud.com     # + /saas/public/core/v3/login
      username: audit@example.com
      password_file: informatica.password
  activid:
    - name: badge
      base_url: https://activid.example.com             # + /scim/{tenant}/v2/Event/.search
      tenant: ACME
      token_url: https://activid.example.com/idp/ACME/authn/token   # this is the default: {base_url}/idp/{tenant}/authn/token
      client_id: audit
      client_secret_file: activid.secret
      verify: true            # ask for the integrity check (default)
  losant:
    - name: iot
      base_url: https://api.losant.com                  # the default
      instance_id: 575ec7417ae143cd83dc4a96
      api_token_file: losant.token
  index_exchange:
    - name: ads
      base_url: https://app.indexexchange.com           # the default
      token_url: https://identity.indexexchange.com/auth/realms/eventlog/protocol/openid-connect/token   # the default
      client_key_file: ix.key   # the base64 key, as issued
      subscriptions: [impressions, \"bid events\"]
";

/// A certificate and its key.
static CERTIFICATE: std::sync::LazyLock<[String; 2]> = std::sync::LazyLock::new(|| {
    let own = rcgen::generate_simple_self_signed(vec!["api.internal".to_owned()]).unwrap();
    [own.cert.pem(), own.signing_key.serialize_pem()]
});

/// A folder with the files that the examples name.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in [
        ("canvas.token", "canvas-secret\n"),
        ("informatica.password", "informatica-secret"),
        ("activid.secret", "activid-secret\r\n"),
        ("losant.token", "losant-secret"),
        ("ix.key", "aXg6c2VjcmV0\n"),
        ("proxy.password", "proxy-secret\n"),
        ("gateway.key", "gateway-secret\n"),
        ("empty", ""),
    ] {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    for (name, content) in ["private-ca.pem", "client.pem", "client.key"].into_iter().zip([0, 0, 1]) {
        std::fs::write(folder.path().join(name), &CERTIFICATE[content]).unwrap();
    }
    folder
}

/// `text` as the config file of a folder with secrets.
fn parsed(text: &str) -> Result<Config, ConfigErrors> {
    let folder = folder();
    parse(text, &folder.path().join("c.yml"))
}

/// The problems of `text` as `LINE:COLUMN: message`, without the accepted keys of a mapping, and
/// with DIR for the folder.
fn problems(text: &str) -> Vec<String> {
    let folder = folder();
    let path = folder.path().join("c.yml");
    let shown = match parse(text, &path) {
        Ok(_) => return Vec::new(),
        Err(errors) => errors.to_string(),
    };
    let prefix = format!("{}:", path.display());
    shown
        .lines()
        .map(|line| line.strip_prefix(&prefix).expect("every line begins with the file"))
        .map(|line| line.replace(&folder.path().display().to_string(), "DIR"))
        .map(|line| match line.split_once("; accepted: name, base_url, instance_id, ") {
            Some((what, _)) => format!("{what}; accepted: KEYS"),
            None => line,
        })
        .collect()
}

/// A losant source with these lines added; its first own line is line 6.
fn losant(lines: &str) -> String {
    let lines = lines.lines().map(|line| format!("      {line}")).collect::<Vec<_>>().join("\n");
    format!("sources:\n  losant:\n    - name: iot\n      instance_id: abc\n      api_token: hunter2\n{lines}\n")
}

fn only(text: &str) -> SourceConfig {
    let mut sources = parsed(text).unwrap().sources;
    assert_eq!(sources.len(), 1);
    sources.remove(0)
}

/// What only its service needs of a source.
fn own<T: Entry>(source: &SourceConfig) -> &T {
    let entry: &dyn std::any::Any = &*source.service;
    entry.downcast_ref().expect("a source of this service")
}

/// Every key there is, some more than once, with the part of the reference that tells of it.
fn all_keys() -> Vec<(Key, String)> {
    fn add(keys: &[Key], part: &str, to: &mut Vec<(Key, String)>) {
        for key in keys {
            to.push((*key, part.to_owned()));
            if let Kind::Section(keys) | Kind::Sections(keys) = key.kind {
                add(keys, key.name, to);
            }
        }
    }
    let mut all = Vec::new();
    add(TOP, "", &mut all);
    for system in SYSTEMS {
        add(&lists(), "", &mut all);
        add(&keys_of(system), "", &mut all);
        add(system.keys, system.name.as_str(), &mut all);
    }
    all
}

fn url(text: &str) -> Url {
    Url::parse(text).unwrap()
}

#[test]
fn the_example_of_the_interface_means_what_it_says() {
    let folder = folder();
    let config = parse(INTERFACE, &folder.path().join("c.yml")).unwrap();
    let file = |name: &str| Secret::file(folder.path().join(name));
    let source = |name: &str, service: Arc<dyn Entry>| SourceConfig {
        name: name.parse().unwrap(),
        // `global.poll_interval` is given, so it holds for the feeds too.
        common: Common { poll_interval: MINUTE, ..(service.system().defaults)() },
        service,
    };
    let sources = vec![
        source(
            "campus",
            Arc::new(canvas::Settings {
                base_url: url("https://canvas.example.edu"),
                access_token: file("canvas.token"),
                accounts: vec!["1".to_owned()],
                users: Vec::new(),
                pseudonyms: Vec::new(),
            }),
        ),
        source(
            "etl",
            Arc::new(informatica::Settings {
                base_url: None,
                login_url: url("https://dm-us.informaticacloud.com"),
                username: "audit@example.com".to_owned(),
                password: file("informatica.password"),
            }),
        ),
        source(
            "badge",
            Arc::new(activid::Settings {
                base_url: url("https://activid.example.com"),
                tenant: "ACME".to_owned(),
                token_url: url("https://activid.example.com/idp/ACME/authn/token"),
                client_id: "audit".to_owned(),
                client_secret: file("activid.secret"),
                verify: true,
            }),
        ),
        source(
            "iot",
            Arc::new(losant_source::Settings {
                base_url: url("https://api.losant.com"),
                instance_id: "575ec7417ae143cd83dc4a96".to_owned(),
                api_token: file("losant.token"),
            }),
        ),
        source(
            "ads",
            Arc::new(index_exchange::Settings {
                base_url: url("https://app.indexexchange.com"),
                token_url: url("https://identity.indexexchange.com/auth/realms/eventlog/protocol/openid-connect/token"),
                client_key: file("ix.key"),
                subscriptions: vec!["impressions".to_owned(), "bid events".to_owned()],
            }),
        ),
    ];
    for (source, system) in sources.iter().zip(SYSTEMS) {
        assert_eq!(source.system(), system.name);
    }
    let global = Global { hold_new_series: MINUTE, openmetrics_created: false };
    let storage = Storage { path: folder.path().join("./data") };
    assert_eq!(config, Config { global, storage, sources, warnings: Vec::new() });
    let activid: &activid::Settings = own(&config.sources[2]);
    assert_eq!(activid.client_secret.read().unwrap().expose_secret(), "activid-secret");
}

#[test]
fn what_the_interface_calls_a_default_is_one() {
    let short: Vec<&str> = INTERFACE
        .lines()
        .filter(|line| !line.contains("default") && !line.contains("60s") && !line.contains("_created"))
        .filter(|line| !line.contains("global") && !line.contains("storage") && !line.contains("path:"))
        .collect();
    assert_eq!(INTERFACE.lines().count() - short.len(), 11);
    let folder = folder();
    let path = folder.path().join("c.yml");
    let mut long = parse(INTERFACE, &path).unwrap();
    // Only this one is set to something else than the default.
    long.sources[4].common.poll_interval = 15 * MINUTE;
    long.storage.path = folder.path().join("data");
    assert_eq!(parse(&short.join("\n"), &path).unwrap(), long);
}

#[test]
fn the_shipped_example_is_accepted() {
    let config = parsed(EXAMPLE).unwrap();
    assert_eq!(config.sources.len(), 5);
    // Its commented keys say the defaults.
    let uncommented: Vec<String> = EXAMPLE
        .lines()
        .map(|line| line.strip_prefix("      # ").map_or(line.to_owned(), |key| format!("      {key}")))
        .filter(|line| !line.contains("tls:") && !line.contains("      The keys"))
        .collect();
    let full = parsed(&uncommented.join("\n")).unwrap();
    for (with, without) in full.sources.iter().zip(&config.sources) {
        let common = Common { page_size: None, user_agent: None, headers: Vec::new(), ..with.common.clone() };
        let common = Common { proxy_url: None, proxy_username: None, proxy_password: None, no_proxy: None, ..common };
        let common = Common { ignore_actors: without.common.ignore_actors.clone(), ..common };
        assert_eq!(common, without.common);
    }
    assert!(full.sources[0].common.page_size.is_some() && full.sources[0].common.proxy_url.is_some());
}

#[test]
fn the_example_of_the_reference_is_accepted() {
    let (_, example) = REFERENCE.split_once("```yaml\n").unwrap();
    let (example, _) = example.split_once("```").unwrap();
    let source = only(example);
    assert_eq!(source.common.poll_interval, 5 * MINUTE);
    assert!(source.common.tls.unwrap().ca_file.unwrap().ends_with("private-ca.pem"));
}

#[test]
fn the_reference_names_every_key_and_every_default() {
    let row_of = |part: &str, key: &Key| {
        let (_, part) = REFERENCE
            .split_once(&format!("\n### `{part}`\n"))
            .or_else(|| REFERENCE.split_once(&format!("\n## `{part}`\n")))?;
        let part = part.split("\n## ").next().and_then(|part| part.split("\n### ").next()).unwrap_or_default();
        part.lines().find(|line| line.starts_with(&format!("| `{}`", key.name))).map(str::to_owned)
    };
    for (key, part) in all_keys() {
        for name in key.names() {
            assert!(REFERENCE.contains(&format!("`{name}`")), "docs/configuration.md says nothing about `{name}`");
        }
        let is_table = ["global", "storage"].contains(&part.as_str()) || registry::find(&part).is_some();
        if !is_table {
            continue;
        }
        let row =
            row_of(&part, &key).unwrap_or_else(|| panic!("docs/configuration.md: no row `{}` in {part}", key.name));
        let cells: Vec<&str> = row.split(" | ").collect();
        let names: Vec<String> = key.names().map(|name| format!("`{name}`")).collect();
        assert_eq!(cells[0], format!("| {}", names.join(" or ")), "{part}");
        let default = match key.absent {
            Absent::Refused => "required".to_owned(),
            Absent::Nothing => "none".to_owned(),
            Absent::Is(value) => format!("`{value}`"),
            Absent::Means(words) => words.to_owned(),
            Absent::Usual => continue,
        };
        assert_eq!(cells[1], default, "the default of `{}` in {part}", key.name);
    }
    let shown = SYSTEMS.map(|system| (system.defaults)().shown());
    for (n, (key, _)) in shown[0].iter().enumerate() {
        let row = format!("| `{key}` | {} |", shown.clone().map(|shown| shown[n].1.clone()).join(" | "));
        assert!(REFERENCE.contains(&row), "docs/configuration.md lacks {row}");
    }
    let usual: BTreeSet<&str> =
        common::KEYS.iter().filter(|key| key.absent == Absent::Usual).map(|key| key.name).collect();
    assert_eq!(usual, shown[0].iter().map(|(key, _)| *key).collect());
}

#[test]
fn every_key_that_all_sources_accept_is_read() {
    let source = only(&losant(
        "poll_interval: 1m30s\noverlap: 90s\ninitial_lookback: 0\nmax_catch_up: 1w\n\
         rate_limit: {requests: 7, per: 1h, burst: 3}\ntimeout: 500ms\npoll_timeout: 1h\nmax_response_bytes: 8MiB\n\
         page_size: 50\nignore_actors: [Me@Example.COM, 12]\n\
         tls: {ca_file: private-ca.pem, cert_file: client.pem, key_file: client.key, server_name: api.internal}\n\
         proxy_url: http://proxy:3128\nproxy_username: me\nproxy_password_file: losant.token\nno_proxy: .example.com\n\
         user_agent: audit (me@example.com)\nheaders: [{name: X-Gateway, value: abc}, {name: x-key, value_file: ix.key}]\nallow_plain_http: true\nbase_url: http://api.internal/prefix/",
    ));
    let common = source.common.clone();
    assert_eq!(common.poll_interval, 90 * SECOND);
    assert_eq!(common.overlap, 90 * SECOND);
    assert_eq!(only(&losant("overlap: 0s")).common.overlap, MINUTE, "the least there is");
    assert_eq!(common.initial_lookback, Duration::ZERO);
    assert_eq!(common.max_catch_up, 7 * DAY);
    let number = |n| NonZeroU32::new(n).unwrap();
    assert_eq!(common.rate_limit, RateLimit { requests: number(7), per: HOUR, burst: number(3) });
    assert_eq!(common.timeout, SECOND / 2);
    assert_eq!(common.poll_timeout, HOUR);
    assert_eq!(common.max_response_bytes, 8 * MIB);
    assert_eq!(common.page_size, Some(number(50)));
    assert_eq!(common.ignore_actors, ["me@example.com", "12"]);
    let tls = common.tls.unwrap();
    for (path, name) in [(tls.ca_file, "private-ca.pem"), (tls.cert_file, "client.pem"), (tls.key_file, "client.key")] {
        assert!(path.unwrap().ends_with(name));
    }
    assert_eq!(tls.server_name.unwrap(), "api.internal");
    assert_eq!(common.proxy_url, Some(url("http://proxy:3128")));
    assert_eq!(common.proxy_username.as_deref(), Some("me"));
    assert!(common.proxy_password.unwrap().path().unwrap().ends_with("losant.token"));
    assert_eq!(common.no_proxy, Some(NoProxy::parse(".example.com").unwrap()));
    assert_eq!(common.user_agent.as_deref(), Some("audit (me@example.com)"));
    let [gateway, key] = common.headers.try_into().unwrap();
    assert_eq!((gateway.name.as_str(), key.name.as_str()), ("x-gateway", "x-key"));
    assert_eq!(gateway.value, Secret::text("abc"));
    assert!(key.value.path().unwrap().ends_with("ix.key"));
    assert!(
        !common.proxy_from_environment && only(&losant("proxy_from_environment: true")).common.proxy_from_environment
    );
    assert!(common.allow_plain_http);
    let losant: &losant_source::Settings = own(&source);
    assert_eq!(endpoint(&losant.base_url, &["a b", "c"]).as_str(), "http://api.internal/prefix/a%20b/c");
}

#[test]
fn the_interval_is_the_sources_own_then_the_global_then_the_systems() {
    let source = |global: &str, own: &str| {
        only(&format!(
            "{global}sources:\n  index_exchange:\n    - {{name: a, client_key: k, subscriptions: [bid events]{own}}}\n"
        ))
        .common
        .poll_interval
    };
    let global = "global: {poll_interval: 5m}\n";
    assert_eq!(source("", ""), 15 * MINUTE);
    assert_eq!(source(global, ""), 5 * MINUTE);
    assert_eq!(source(global, ", poll_interval: 1h"), HOUR);
    assert_eq!(source("global:\n", ""), 15 * MINUTE);
}

#[test]
fn sources_stand_in_the_order_of_the_file() {
    let text = "sources:\n  losant:\n    - &a {name: b, instance_id: x, api_token: t}\n    - {name: a, instance_id: 1e5, \
                api_token: 007}\n  canvas:\n    - {name: '0', base_url: 'http://[::1]:8', access_token: t, users: [12~3, \"4\"]}\n";
    let config = parsed(text).unwrap();
    let names: Vec<&str> = config.sources.iter().map(|source| source.name.as_str()).collect();
    assert_eq!(names, ["b", "a", "0"]);
    let losant: &losant_source::Settings = own(&config.sources[1]);
    assert_eq!(losant.instance_id, "1e5", "what looks like a number is taken as it is written");
    assert_eq!(losant.api_token.read().unwrap().expose_secret(), "007");
    let canvas: &canvas::Settings = own(&config.sources[2]);
    assert_eq!(canvas.users, ["12~3", "4"]);
}

#[test]
fn a_reload_sees_which_sources_changed() {
    let (a, b) = (parsed(&losant("")).unwrap(), parsed(&losant("")).unwrap());
    assert_eq!(a.sources, b.sources);
    for changed in [losant("overlap: 11m"), losant("").replace("hunter2", "hunter3"), losant("").replace("abc", "abd")]
    {
        assert_ne!(parsed(&changed).unwrap().sources, a.sources, "{changed}");
    }
}

#[test]
fn the_token_url_of_activid_follows_the_base_url() {
    let text = "sources:\n  activid:\n    - {name: a, base_url: 'https://h/x/', tenant: Ä b, client_id: c, client_secret: s}\n";
    assert_eq!(problems(text), ["3:51: `tenant` has characters that no id has; accepted: a text"]);
    let source = only(&text.replace("Ä b", "Äb"));
    let activid: &activid::Settings = own(&source);
    assert_eq!(activid.token_url.as_str(), "https://h/x/idp/%C3%84b/authn/token");
    assert!(activid.verify);
}

const DURATION: &str = "above 0s, such as 30s, 5m, 1h30m or 14d (units y, w, d, h, m, s, ms, in this order)";
const ZERO_DURATION: &str = "0s or more, such as 30s, 5m, 1h30m or 14d (units y, w, d, h, m, s, ms, in this order)";
const URL: &str = "https:// with a host, without user, password, query and fragment; http:// for loopback or with \
                   `allow_plain_http: true`";
const SIZE: &str = "a whole number of bytes above 0, alone or with B, KiB, MiB, GiB, kB, MB or GB, such as 8MiB";
const FILES: &str = "a path from `/` or from the config file's folder, DIR (`~` is not expanded)";
const NAMES: &str = "canvas, informatica, activid, losant, index_exchange";

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn a_bad_value_is_shown_at_its_place() {
    for (line, message) in [
        ("poll_interval: 5", format!("6:22: `poll_interval` is a number without a unit; accepted: {DURATION}")),
        ("poll_interval: 0s", format!("6:22: `poll_interval` is zero; accepted: {DURATION}")),
        ("poll_interval:", format!("6:7: `poll_interval` is empty; accepted: {DURATION}")),
        ("timeout:   1m1m", format!("6:18: `timeout` has a unit twice or after a smaller one; accepted: {DURATION}")),
        ("timeout: [1m]", format!("6:16: `timeout` is a list; accepted: {DURATION}")),
        ("poll_timeout: soon", format!("6:21: `poll_timeout` is not a duration; accepted: {DURATION}")),
        ("max_catch_up: 300y", format!("6:21: `max_catch_up` is longer than 292 years; accepted: {DURATION}")),
        ("overlap: -5m", format!("6:16: `overlap` is not a duration; accepted: {ZERO_DURATION}")),
        ("initial_lookback: 1.5h", format!("6:25: `initial_lookback` is not a duration; accepted: {ZERO_DURATION}")),
        ("max_response_bytes: 8M", format!("6:27: `max_response_bytes` is not a size; accepted: {SIZE}")),
        ("max_response_bytes: 0", format!("6:27: `max_response_bytes` is not a size; accepted: {SIZE}")),
        ("base_url: ftp://h", format!("6:17: `base_url` is neither an http:// nor an https:// URL; accepted: {URL}")),
        ("base_url: h.example", format!("6:17: `base_url` is not a URL; accepted: {URL}")),
        ("base_url: 'https://'", format!("6:17: `base_url` is not a URL; accepted: {URL}")),
        ("base_url: https://u:hunter3@h", format!("6:17: `base_url` has a user or password in it; accepted: {URL}")),
        ("base_url: https://h?a", format!("6:17: `base_url` has a query (`?`); accepted: {URL}")),
        ("base_url: https://h#a", format!("6:17: `base_url` has a fragment (`#`); accepted: {URL}")),
        (
            "base_url: http://h",
            format!(
                "6:17: `base_url` is plain http:// to another machine, where credentials could be read on the way; \
                 accepted: {URL}"
            ),
        ),
        (
            "proxy_url: socks5://h",
            "6:18: `proxy_url` is neither an http:// nor an https:// URL; accepted: http:// or https:// with a host, \
             without user, password, query and fragment"
                .to_owned(),
        ),
        (
            "allow_plain_http: yes",
            "6:25: `allow_plain_http` is neither true nor false; accepted: true or false, without quotes".to_owned(),
        ),
        (
            "page_size: 0",
            "6:18: `page_size` is out of range; accepted: a whole number from 1 to 10000, without quotes".to_owned(),
        ),
        (
            "page_size: '5'",
            "6:18: `page_size` is not a whole number; accepted: a whole number from 1 to 10000, without quotes"
                .to_owned(),
        ),
        (
            "ignore_actors: me",
            "6:22: `ignore_actors` is a single value; accepted: a list, such as [one, two]".to_owned(),
        ),
        (
            "rate_limit: 5",
            "6:19: `rate_limit` is a single value; accepted: a mapping with the keys requests, per, burst".to_owned(),
        ),
        (
            "rate_limit: {requests: 0, per: 1m}",
            "6:30: `requests` is out of range; accepted: a whole number from 1 to 4294967295, without quotes"
                .to_owned(),
        ),
        ("rate_limit: {requests: 1, per: 0s}", format!("6:38: `per` is zero; accepted: {DURATION}")),
        ("rate_limit: {requests: 1}", "6:19: `per` is missing; required in `rate_limit`".to_owned()),
        (
            "rate_limit: {requests: 4000000000, per: 1s}",
            "6:19: `rate_limit` allows more than 1000000 requests per second; accepted: fewer".to_owned(),
        ),
        (
            "rate_limit: {requests: 1, per: 1y, burst: 300}",
            "6:19: `rate_limit` would take more than 292 years to earn its `burst`; accepted: a smaller `burst`"
                .to_owned(),
        ),
        (
            "tls: {ca_file: gone.pem}",
            format!(
                "6:22: the file of `ca_file`, DIR/gone.pem, cannot be read: No such file or directory (os error 2); accepted: \
                 {FILES}"
            ),
        ),
        (
            "tls: {ca_file: empty}",
            "6:22: the file of `ca_file` is empty; accepted: PEM certificates (-----BEGIN CERTIFICATE-----)".to_owned(),
        ),
        ("tls: {ca_file: .}", format!("6:22: the file of `ca_file`, DIR/., is not a regular file; accepted: {FILES}")),
        (
            "tls: {cert_file: client.pem}",
            "6:13: `cert_file` stands without `key_file`; accepted: both or neither".to_owned(),
        ),
        (
            "tls: {server_name: a b}",
            "6:26: `server_name` is not a server name; accepted: a DNS name or an IP address".to_owned(),
        ),
        (
            "polinterval: 5m",
            "6:7: unknown key `polinterval` in a source of `losant` (did you mean `poll_interval`?); accepted: KEYS"
                .to_owned(),
        ),
        ("accounts: [1]", "6:7: unknown key `accounts` in a source of `losant`; accepted: KEYS".to_owned()),
        (
            "<<: 1",
            "6:7: unknown key in a source of `losant` (YAML merge keys are not supported); accepted: KEYS".to_owned(),
        ),
        (
            "overlap:5m: 1",
            "6:7: unknown key in a source of `losant` (a key ends with a colon and a space); accepted: KEYS".to_owned(),
        ),
        ("[a]: 1", "6:7: a key must be one word".to_owned()),
        ("name: other", "6:7: duplicate key, already given on line 3; accepted: once".to_owned()),
        ("overlap: !x 5m", "6:16: a YAML tag (`!`) stands before this value; accepted: the value alone".to_owned()),
        (
            "api_token_file: losant.token",
            "6:7: both `api_token` and `api_token_file` are given; accepted: one of them".to_owned(),
        ),
    ] {
        assert_eq!(problems(&losant(line)), [message], "{line}");
    }
}

#[test]
fn settings_of_proxies_that_cannot_be_meant_are_refused() {
    let one_missing = "of `proxy_username` and `proxy_password` (or `proxy_password_file`) one is missing; accepted: both \
                       or neither";
    let list = "accepted: hosts, domains, addresses and networks, each with a port or without, separated by commas, such as \
                `.example.com, 10.0.0.0/8, api.example.org:8443`, or `*`";
    for (lines, messages) in [
        (
            "proxy_url: http://u:hunter2@p",
            vec!["6:18: `proxy_url` has a user or password in it; accepted: http:// or https:// with a host, without user, \
                  password, query and fragment"
                .to_owned()],
        ),
        ("proxy_url: http://p\nproxy_username: me", vec![format!("7:7: {one_missing}")]),
        ("proxy_url: http://p\nproxy_password: hunter2", vec![format!("7:7: {one_missing}")]),
        ("proxy_url: http://p\nproxy_password_file: ix.key", vec![format!("7:7: {one_missing}")]),
        (
            "proxy_username: me\nproxy_password: hunter2",
            vec!["6:7: `proxy_username` stands without a proxy; accepted: with `proxy_url` or `proxy_from_environment`"
                .to_owned()],
        ),
        (
            "proxy_url: http://p\nproxy_username: 'me:'\nproxy_password: hunter2",
            vec!["7:23: `proxy_username` has characters that no user name has; accepted: a text without colon and control \
                  characters"
                .to_owned()],
        ),
        (
            "proxy_url: http://p\nproxy_username: me\nproxy_password: hunter2\nproxy_password_file: ix.key",
            vec!["9:7: both `proxy_password` and `proxy_password_file` are given; accepted: one of them".to_owned()],
        ),
        (
            "proxy_url: http://p\nproxy_from_environment: true",
            vec!["7:7: both `proxy_url` and `proxy_from_environment` are given; accepted: one of them".to_owned()],
        ),
        (
            "proxy_from_environment: true\nno_proxy: a.example",
            vec!["7:7: both `no_proxy` and `proxy_from_environment` are given; accepted: one of them".to_owned()],
        ),
        ("no_proxy: a.example", vec!["6:7: `no_proxy` stands without `proxy_url`; accepted: with it".to_owned()]),
        (
            "proxy_url: http://p\nno_proxy: http://a.example",
            vec![format!("7:17: `no_proxy` has an entry with a scheme (`://`); {list}")],
        ),
        (
            "proxy_url: http://p\nno_proxy: 10.0.0.0/99",
            vec![format!("7:17: `no_proxy` has an entry that is not a network, such as 10.0.0.0/8; {list}")],
        ),
        ("proxy_url: http://p\nproxy_from_environment: false\nno_proxy: a.example", vec![]),
        (
            "proxy_from_environment: false\nno_proxy: a.example",
            vec!["7:7: `no_proxy` stands without `proxy_url`; accepted: with it".to_owned()],
        ),
        (
            "proxy_url: http://p\nbase_url: http://127.0.0.1:1",
            vec!["6:18: `proxy_url` leads a plain http:// service over another machine, where credentials could be read; \
                  accepted: the service in `no_proxy`, https://, or `allow_plain_http: true`"
                .to_owned()],
        ),
        ("proxy_url: http://p\nbase_url: http://127.0.0.1:1\nno_proxy: 127.0.0.1", vec![]),
        ("proxy_url: http://p\nbase_url: http://127.0.0.1:1\nallow_plain_http: true", vec![]),
        ("proxy_url: http://127.0.0.1:2\nbase_url: http://127.0.0.1:1", vec![]),
        ("proxy_from_environment: true\nproxy_username: me\nproxy_password: hunter2", vec![]),
    ] {
        assert_eq!(problems(&losant(lines)), messages, "{lines}");
    }
}

#[test]
fn headers_that_the_program_sets_itself_cannot_be_configured() {
    let name = "accepted: the name of a header that this program does not set itself";
    let value = "has characters that no header can carry; accepted: visible ASCII characters and blanks, on one line";
    for (lines, message) in [
        ("headers: {name: a, value: b}", "6:16: `headers` is a mapping; accepted: a list, each entry with `name` and `value`".to_owned()),
        ("headers: [{value: b}]", "6:17: `name` is missing; required in an entry of `headers`".to_owned()),
        ("headers: [{name: a}]", "6:17: `value` is missing; required in an entry of `headers`, or `value_file`".to_owned()),
        (
            "headers: [{name: a, value: b, value_file: ix.key}]",
            "6:37: both `value` and `value_file` are given; accepted: one of them".to_owned(),
        ),
        ("headers: [{name: a b, value: c}]", format!("6:24: `name` is not the name of a header; {name}")),
        ("headers: [{name: a, value: b}, {name: A, value: c}]", format!("6:45: `name` is listed twice; {name}")),
        (
            "headers: [{name: a, value: \"b\\nc: d\"}]",
            "6:34: `value` has a line end inside; only one at its end is left out; accepted: a text".to_owned(),
        ),
        ("headers: [{name: a, value: hünter2}]", format!("6:34: `value` {value}")),
        ("headers: [{name: a, value: ''}]", "6:34: `value` is empty; accepted: a text".to_owned()),
        (
            "headers: [{name: a, value_file: two.lines}]",
            format!("6:39: the file of `value_file`, DIR/two.lines, has a line end inside; only one at its end is left out; accepted: {FILES}"),
        ),
        (
            "headers: [{name: Authorization, value: hunter2}]",
            format!("6:24: `name` cannot be authorization: it carries the credential of the service; {name}"),
        ),
        (
            "headers: [{name: user-agent, value: b}]",
            format!("6:24: `name` cannot be user-agent: `user_agent` sets it; {name}"),
        ),
        ("user_agent: \"a\\nb\"", "6:19: `user_agent` has characters that no header can carry; accepted: a text of visible ASCII characters and blanks".to_owned()),
    ] {
        let folder = folder();
        std::fs::write(folder.path().join("two.lines"), "a\nb\n").unwrap();
        let errors = parse(&losant(lines), &folder.path().join("c.yml")).unwrap_err();
        let shown: Vec<String> =
            errors.problems().iter().map(|Problem { line, column, message }| format!("{line}:{column}: {message}")).collect();
        let shown = shown.iter().map(|text| text.replace(&folder.path().display().to_string(), "DIR"));
        let shown: Vec<String> = shown.collect();
        assert_eq!(shown, [message], "{lines}");
        assert!(!shown.concat().contains("hunter2"));
    }
    for name in [
        "INFA-SESSION-ID",
        "Host",
        "Content-Length",
        "content-type",
        "Content-Encoding",
        "Accept",
        "Accept-Encoding",
        "Connection",
        "Transfer-Encoding",
        "TE",
        "Trailer",
        "Upgrade",
        "Keep-Alive",
        "Expect",
        "Proxy-Connection",
        "Proxy-Authorization",
        "Range",
        "If-None-Match",
        "If-Modified-Since",
        "If-Match",
        "If-Unmodified-Since",
    ] {
        let problems = problems(&losant(&format!("headers: [{{name: {name}, value: x}}]")));
        assert!(problems[0].contains("`name` cannot be"), "{name}: {problems:?}");
    }
    for name in
        ["X-Api-Key", "Cookie", "Ocp-Apim-Subscription-Key", "CF-Access-Client-Secret", "X-Forwarded-For", "Via"]
    {
        assert_eq!(problems(&losant(&format!("headers: [{{name: {name}, value: a b}}]"))), [] as [String; 0], "{name}");
    }
}

#[test]
fn a_certificate_and_its_key_belong_together() {
    let folder = folder();
    let other = rcgen::generate_simple_self_signed(vec!["b".to_owned()]).unwrap();
    std::fs::write(folder.path().join("other.key"), other.signing_key.serialize_pem()).unwrap();
    let text = losant("tls: {cert_file: client.pem, key_file: other.key}");
    let shown = parse(&text, &folder.path().join("c.yml")).unwrap_err().to_string();
    assert!(shown.contains(":6:46: the file of `key_file` does not belong to the certificate"), "{shown}");
    std::fs::write(folder.path().join("large.pem"), vec![b'x'; usize::try_from(PEM_BYTES_MAX).unwrap() + 1]).unwrap();
    let shown = parse(&losant("tls: {ca_file: large.pem}"), &folder.path().join("c.yml")).unwrap_err().to_string();
    assert!(shown.contains(":6:22: the file of `ca_file` is larger than 4 MiB"), "{shown}");
}

#[test]
fn a_machine_without_authorities_is_told_of_where_some_are_needed() {
    let without = |text: &str| {
        let folder = folder();
        let errors = parse_with(text, &folder.path().join("c.yml"), || false).err();
        errors.map(|errors| errors.problems().iter().map(|p| (p.line, p.column, p.message.clone())).collect::<Vec<_>>())
    };
    let own = losant("tls: {ca_file: private-ca.pem}");
    let loopback = losant("base_url: http://127.0.0.1:1");
    for fine in [own, loopback.clone()] {
        assert_eq!(without(&fine), None, "{fine}");
    }
    for (text, line, column) in [
        (losant(""), 3, 7),
        (losant("base_url: https://h"), 6, 17),
        (format!("{loopback}      proxy_url: https://localhost\n"), 6, 17),
        (losant("base_url: https://h\ntls: {server_name: a}"), 6, 17),
    ] {
        let problems = without(&text).unwrap();
        let [(at_line, at_column, message)] = problems.as_slice() else { panic!("{problems:?}") };
        assert_eq!((*at_line, *at_column), (line, column), "{text}");
        for word in ["ca-certificates", "SSL_CERT_FILE", "tls.ca_file"] {
            assert!(message.contains(word), "{message}");
        }
    }
}

#[test]
fn a_file_without_a_usable_source_is_refused() {
    let not_yaml = "accepted: YAML 1.2, with quotes around values with special characters";
    let empty = "1:1: the file is empty; accepted: a mapping with the key `sources`".to_owned();
    let none = format!("1:1: there is no source; accepted: `sources` with at least one in {NAMES}");
    for (text, message) in [
        ("", empty.clone()),
        ("# nothing\n", empty.clone()),
        ("---\n", empty),
        ("storage:\n", none.clone()),
        ("sources:\n", none.clone()),
        ("sources: {canvas: [], losant: }\n", none),
        ("- a\n", "1:1: the file is a list; accepted: a mapping with the keys global, storage, sources".to_owned()),
        ("sources: []\n", format!("1:10: `sources` is a list; accepted: a mapping with the keys {NAMES}")),
        (
            "sources:\n  canvass: []\n",
            format!("2:3: unknown key `canvass` in `sources` (did you mean `canvas`?); accepted: {NAMES}"),
        ),
        (
            "sources:\n  canvas:\n    name: a\n",
            "3:5: `canvas` is a mapping; accepted: a list of sources, each beginning with `- name:`".to_owned(),
        ),
        ("a: 1\n---\nb: 1\n", "2:1: a second YAML document begins here; accepted: one document per file".to_owned()),
        ("a: 'é' b: 1\n", format!("1:8: not YAML: invalid trailing content after single-quoted scalar; {not_yaml}")),
        ("sources: [\n", format!("1:10: not YAML: unclosed bracket '['; {not_yaml}")),
        ("a: *b\n", format!("1:4: not YAML: an alias (`*`) without its anchor (`&`); {not_yaml}")),
        ("a: &a [*a]\n", "1:8: this alias (`*`) stands within its own anchor (`&`); accepted: one after it".to_owned()),
    ] {
        assert_eq!(problems(text), [message], "{text:?}");
    }
}

#[test]
fn what_a_service_needs_is_required() {
    let text = "sources:\n  canvas:\n    - name: a\n      accounts: []\n  informatica:\n    - {}\n  activid:\n    - name: b\n      \
                tenant: ..\n  losant:\n    - name: c\n  index_exchange:\n    - name: d\n      subscriptions: []\n    - name: e\n      \
                client_key_file: empty\n      subscriptions: [bid events, bid_events]\n";
    let expected = [
        "3:7: `access_token` is missing; required in a source of `canvas`, or `access_token_file`",
        "3:7: `base_url` is missing; required in a source of `canvas`",
        "4:7: there is nothing to read; accepted: at least one id in `accounts`, `users` or `pseudonyms`",
        "6:7: `login_url` is missing; required in a source of `informatica`",
        "6:7: `name` is missing; required in a source of `informatica`",
        "6:7: `password` is missing; required in a source of `informatica`, or `password_file`",
        "6:7: `username` is missing; required in a source of `informatica`",
        "8:7: `base_url` is missing; required in a source of `activid`",
        "8:7: `client_id` is missing; required in a source of `activid`",
        "8:7: `client_secret` is missing; required in a source of `activid`, or `client_secret_file`",
        "9:15: `tenant` has characters that no id has; accepted: a text",
        "11:7: `api_token` is missing; required in a source of `losant`, or `api_token_file`",
        "11:7: `instance_id` is missing; required in a source of `losant`",
        "13:7: `client_key` is missing; required in a source of `index_exchange`, or `client_key_file`",
        "14:7: `subscriptions` is empty; accepted: at least one, such as impressions or \"bid events\"",
        &format!("16:24: the file of `client_key_file`, DIR/empty, is empty; accepted: {FILES}"),
        "17:22: two of the `subscriptions` are counted under the same category; accepted: names that differ in letters \
         or digits, or two sources",
    ];
    assert_eq!(problems(text), expected);
}

#[test]
fn names_are_unique_over_all_lists() {
    let text = "sources:\n  losant:\n    - {name: a, instance_id: x, api_token: t}\n  canvas:\n    - {name: A, base_url: 'https://h', \
                access_token: t, users: [1, 1, ~]}\n    - {name: a, base_url: 'https://h', access_token: t, users: [1]}\n";
    let expected = [
        "5:14: `name` is not a source name; accepted: 1 to 63 characters of a-z, 0-9, _ and -, the first a letter or digit",
        "5:68: an entry of `users` is listed twice; accepted: texts or numbers, each once",
        "5:71: an entry of `users` is empty; accepted: texts or numbers, each once",
        "6:14: duplicate name `a`, already used on line 3; accepted: a name that no other source has",
    ];
    assert_eq!(problems(text), expected);
}

#[test]
fn page_sizes_are_those_of_the_service() {
    let text = "sources:\n  informatica:\n    - {name: a, login_url: 'https://h', username: u, password: p, page_size: 99}\n  \
                index_exchange:\n    - {name: b, client_key: k, subscriptions: [x], page_size: 99}\n";
    let problems = problems(text);
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].starts_with("3:78: `page_size` is out of range; accepted: a whole number from 100 to 1000"));
    assert!(problems[1].starts_with("5:52: unknown key `page_size` in a source of `index_exchange`"));
}

#[test]
fn an_address_does_not_hold_the_path_that_is_added_to_it() {
    let source = |system: &str, key: &str, url: &str| {
        let own = match system {
            "canvas" => "access_token: t, accounts: [1]",
            "informatica" if key == "base_url" => "login_url: 'https://h', username: u, password: p",
            "informatica" => "username: u, password: p",
            "activid" => "tenant: ACME, client_id: c, client_secret: s",
            "losant" => "instance_id: i, api_token: t",
            _ => "client_key: aWQ6c2VjcmV0, subscriptions: [impressions]",
        };
        format!("sources: {{{system}: [{{name: a, {key}: '{url}', {own}}}]}}\n")
    };
    for (system, key, path, holds) in [
        ("canvas", "base_url", "/api/v1", "/api/v1"),
        ("canvas", "base_url", "/api/v1/", "/api/v1"),
        ("canvas", "base_url", "/gateway/API/V1/accounts", "/API/V1"),
        ("canvas", "base_url", "/api/v1/audit/authentication/accounts/1", "/api/v1/audit/authentication"),
        ("canvas", "base_url", "/v1", "/v1"),
        ("informatica", "login_url", "/saas", "/saas"),
        ("informatica", "login_url", "/saas/public/core/v3/login", "path of the login (/saas/public/core/v3/login)"),
        ("informatica", "login_url", "/saas/public/core/v3/login/", "/saas/public/core/v3/login"),
        ("informatica", "base_url", "/saas/public/core/v3", "/public/core/v3"),
        ("informatica", "base_url", "/saas/public/core/v3/securityLog", "/public/core/v3/securityLog"),
        ("activid", "base_url", "/scim", "/scim"),
        ("activid", "base_url", "/scim/ACME", "/scim/ACME"),
        ("activid", "base_url", "/scim/ACME/v2/", "/scim/ACME/v2"),
        ("activid", "base_url", "/x/scim/OTHER/v2/Event/.search", "/scim/OTHER/v2/Event/.search"),
        ("losant", "base_url", "/v1", "/v1"),
        ("losant", "base_url", "/instance", "/instance"),
        ("losant", "base_url", "/instance/575ec7417ae143cd83dc4a96/audit-logs", "/instance/575ec7417ae143cd83dc4a96"),
        ("index_exchange", "base_url", "/api/cal", "/api/cal"),
        ("index_exchange", "base_url", "/api/cal/v1/downloads", "/api/cal/v1/downloads"),
        ("index_exchange", "base_url", "/v1.2", "/v1.2"),
    ] {
        let problems = problems(&source(system, key, &format!("https://h{path}")));
        assert!(
            problems.len() == 1 && problems[0].contains(holds) && problems[0].contains(&format!("`{key}` holds")),
            "{system} {path}: {problems:?}"
        );
    }
    for (system, key, path) in [
        ("canvas", "base_url", "/canvas"),
        ("canvas", "base_url", "/v1/tenant"),
        ("informatica", "login_url", "/prefix"),
        ("informatica", "base_url", "/saas"),
        ("activid", "base_url", "/scim-gateway"),
        ("losant", "base_url", "/instances-of-ours"),
        ("index_exchange", "base_url", "/proxy/api/ix"),
    ] {
        let config = parsed(&source(system, key, &format!("https://h{path}"))).unwrap();
        assert!(config.warnings.is_empty(), "{system} {path}: {:?}", config.warnings);
    }
    let config = parsed(&source("canvas", "base_url", "https://gateway/api")).unwrap();
    let warned: Vec<String> = config.warned(Path::new("c.yml")).collect();
    assert_eq!(warned.len(), 1);
    assert!(warned[0].starts_with("c.yml:1:40: `base_url` ends with /api"), "{warned:?}");
}

/// The warnings of a text that is accepted.
fn warnings(text: &str) -> Vec<String> {
    parsed(text).unwrap().warned(Path::new("c.yml")).collect()
}

#[test]
fn the_shorter_of_look_back_and_catch_up_is_said_to_count() {
    let told = warnings(&losant("initial_lookback: 30d\nmax_catch_up: 9d"));
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("c.yml:6:7: `initial_lookback` (30d) is longer than `max_catch_up` (9d)"), "{told:?}");
    assert!(told[0].ends_with("a new source is read from 9d back"), "{told:?}");
    let by_default = warnings(&losant("max_catch_up: 30m"));
    assert!(by_default[0].contains("`initial_lookback` (1h) is longer than `max_catch_up` (30m)"), "{by_default:?}");
    let beyond_the_service = warnings(&losant("initial_lookback: 500d"));
    assert!(beyond_the_service[0].contains("(500d) is longer than `max_catch_up` (1y)"), "{beyond_the_service:?}");
    for good in ["initial_lookback: 7d\nmax_catch_up: 7d", "initial_lookback: 2d", ""] {
        assert!(warnings(&losant(good)).is_empty(), "{good}");
    }
    // of a feed everything that is listed is read
    let feed = |more: &str| {
        format!(
            "sources: {{index_exchange: [{{name: a, client_key: aWQ6cw==, subscriptions: [impressions], {more}}}]}}"
        )
    };
    assert!(warnings(&feed("max_catch_up: 1d")).is_empty());
    assert_eq!(warnings(&feed("initial_lookback: 30d")).len(), 1);
}

#[test]
fn a_subscription_that_no_document_names_is_warned_of() {
    let text = |names: &str| {
        format!("sources: {{index_exchange: [{{name: a, client_key: aWQ6cw==, subscriptions: [{names}]}}]}}")
    };
    for (name, meant) in [
        ("impresions", "did you mean `impressions`?"),
        ("Impressions", "did you mean `impressions`?"),
        ("impression", "did you mean `impressions`?"),
        ("bid_events", "did you mean `bid events`?"),
        ("bidevents", "did you mean `bid events`?"),
        ("clicks", "documented: impressions, bid events"),
    ] {
        let told = warnings(&text(name));
        assert!(told.len() == 1 && told[0].starts_with("c.yml:1:") && told[0].contains(meant), "{name}: {told:?}");
    }
    assert!(warnings(&text("impressions, bid events")).is_empty());
}

#[test]
fn a_secret_in_the_configuration_is_looked_at_as_one_in_a_file_is() {
    for (secret, why) in [
        ("'Bearer hunter2'", "begins with the word `Bearer`"),
        ("${LOSANT_TOKEN}", "is a placeholder"),
        ("\"hunter2\\u200b\"", "has an invisible character (U+200B)"),
        ("\"hunter2\\nhunter3\"", "has a line end inside"),
        ("'\"hunter2\"'", "stands in quotes"),
        ("' hunter2'", "has a blank (U+0020)"),
    ] {
        let problems = problems(&losant("").replace("api_token: hunter2", &format!("api_token: {secret}")));
        let good = problems.len() == 1 && problems[0].starts_with("5:18: `api_token`") && problems[0].contains(why);
        assert!(good && !problems[0].contains("hunter"), "{problems:?}");
    }
    let key = |key: &str| {
        format!("sources: {{index_exchange: [{{name: a, client_key: {key}, subscriptions: [impressions]}}]}}")
    };
    let told = warnings(&key("hunter2"));
    assert!(
        told.len() == 1 && told[0].ends_with(": `client_key` is not base64: write the key as it was issued"),
        "{told:?}"
    );
    let with_blanks = "sources: {informatica: [{name: a, login_url: 'https://h', username: u, password: ' \"p\" '}]}";
    let config = only(with_blanks);
    assert_eq!(config.secret().read().unwrap().expose_secret(), " \"p\" ", "what YAML shows was meant");
}

#[test]
fn a_missing_file_is_named_by_the_path_that_was_looked_at_and_a_secret_is_not() {
    for (path, shown) in [
        ("gone.token", "DIR/gone.token"),
        ("secrets/losant-token", "DIR/secrets/losant-token"),
        ("token", "DIR/token"),
        ("/run/secrets/audit exporter/token", "/run/secrets/audit exporter/token"),
        (
            "/var/lib/kubelet/pods/3f9c1c5e-7d0b-4f43-9b1e-0c9f4f0c7c11/volumes/token",
            "/var/lib/kubelet/pods/3f9c1c5e-7d0b-4f43-9b1e-0c9f4f0c7c11/volumes/token",
        ),
        (
            "../run/credentials/audit-exporter.service/losant.token",
            "DIR/../run/credentials/audit-exporter.service/losant.token",
        ),
        ("hunter2", "DIR/hu… (7 characters)"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "DIR/ey… (49 characters)"),
        ("1042~AbCdEfGh", "DIR/10… (13 characters)"),
        ("aXhjbGllbnQ6SXhTZWNyZXQtVmFsdWUtMzE=", "DIR/aX… (36 characters)"),
        ("aXhjbGll/nQ6SXhTZWNyZXQtVmFsdWUtMzE=", "DIR/aXhjbGll/nQ… (27 characters)"),
        ("correct+horse", "DIR/co… (13 characters)"),
    ] {
        let text = losant("").replace("api_token: hunter2", &format!("api_token_file: '{path}'"));
        let problems = problems(&text);
        let expected = format!("5:23: the file of `api_token_file`, {shown}, cannot be read: No such file");
        assert!(problems[0].starts_with(&expected), "{path}: {problems:?}");
    }
}

#[test]
fn aliases_repeat_values_but_cannot_blow_up() {
    let text = "sources:\n  losant:\n    - {name: a, instance_id: x, api_token: t, rate_limit: &slow {requests: 1, per: 1m}}\n    \
                - {name: b, instance_id: x, api_token: t, rate_limit: *slow}\n";
    let config = parsed(text).unwrap();
    assert_eq!(config.sources[0].common.rate_limit, config.sources[1].common.rate_limit);

    let chain = |times: usize| -> String {
        let link = |n: usize| format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); times].join(", "));
        std::iter::once(format!("a: &a0 [{}]\n", vec!["x"; times].join(", "))).chain((1..40).map(link)).collect()
    };
    let (bomb, deep) = (chain(10), chain(1));
    assert_eq!(
        problems(&bomb),
        ["5:25: the file has more than 50000 values by here, repetitions through aliases included"]
    );
    assert_eq!(problems(&deep), ["31:12: nested deeper than 32 levels through this alias"]);
    let nested = format!("a: {}", "[".repeat(100_000));
    assert_eq!(problems(&nested).len(), 1);
    assert!(problems(&nested)[0].contains("nested deeper than 32 levels"), "{:?}", problems(&nested));
}

#[test]
fn no_message_shows_a_secret() {
    let secret = "hunter2";
    for lines in [
        "api_token: [hunter2]",
        "api_token: {hunter2: hunter2}",
        "api_token: {hunter2: hunter2",
        "api_token: !hunter2",
        "api_token: !hunter2 hunter2",
        "api_token: &hunter2",
        "api_token: *hunter2",
        "api_token: @hunter2",
        "api_token: %hunter2",
        "api_token: `hunter2",
        "api_token: \"hunter2",
        "api_token: \"\\hunter2\"",
        "api_token: 'hunter2' hunter2",
        "api_token: hunter2: hunter2",
        "api_token: |1hunter2",
        "api_token:hunter2",
        "api_token:hunter2: x",
        "api_token_file: hunter2",
        "api_token_file: [hunter2]",
        "api_tken: hunter2",
        "api_token: a\napi_token: hunter2",
        "api_token: a\napi_token_file: hunter2",
        "api_token: a\nname: hunter 2 hunter2",
        "api_token: a\nbase_url: https://hunter2@h",
        "api_token: a\nproxy_url: http://u:hunter2@h",
        "api_token: a\ntimeout: hunter2",
        "api_token: a\npage_size: hunter2",
        "api_token: a\nverify: hunter2",
        "api_token: a\ntls: {key_file: hunter2, cert_file: hunter2}",
        "api_token: a\nignore_actors: hunter2",
        "api_token: a\nrate_limit: hunter2",
        "api_token: a\nhunter2: x",
        "api_token: a\nHUNTERhunter2: [x]",
        "- hunter2",
    ] {
        let text = losant(lines).replace("      api_token: hunter2\n      ", "      ");
        let errors = parsed(&text).expect_err(lines);
        let (display, debug) = (errors.to_string(), format!("{errors:?}"));
        assert!(!display.contains(secret) && !debug.contains(secret), "{lines}: {display}");
    }
    let flow = "sources: {losant: [{name: a, instance_id: b, api_token: swordfish,hunter2}]}";
    let shown = parsed(flow).unwrap_err().to_string();
    assert!(shown.contains("unknown key in a source") && !shown.contains(secret), "{shown}");
}

#[test]
fn debug_of_a_config_shows_no_secret() {
    let shown = format!("{:?} {:#?}", parsed(&losant("")).unwrap(), parsed(EXAMPLE).unwrap());
    assert!(shown.contains("Secret(given as text)"));
    for secret in [
        "hunter2",
        "canvas-secret",
        "informatica-secret",
        "activid-secret",
        "losant-secret",
        "proxy-secret",
        "gateway-secret",
        "aXg6",
    ] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[test]
fn a_file_that_cannot_be_read_says_so() {
    let folder = folder();
    let path = folder.path().join("gone.yml");
    let file = path.display();
    assert_eq!(
        load(&path).unwrap_err().to_string(),
        format!(
            "{file}:1:1: the file cannot be read: No such file or directory (os error 2); accepted: a readable YAML file"
        )
    );
    std::fs::write(&path, b"a: 1\n\xc3\xa9: \xff\n").unwrap();
    let expected = format!("{file}:2:4: the file is not text from here on; accepted: UTF-8");
    assert_eq!(load(&path).unwrap_err().to_string(), expected);
    std::fs::write(&path, " ".repeat(1024 * 1024 + 1)).unwrap();
    let expected = format!("{file}:1:1: the file is too large; accepted: up to 1048576 bytes");
    assert_eq!(load(&path).unwrap_err().to_string(), expected);
    std::fs::write(&path, losant("").replace("api_token: hunter2", "api_token_file: losant.token")).unwrap();
    assert_eq!(load(&path).unwrap().storage.path, folder.path().join("data"));
}

#[test]
fn where_informatica_s_log_is_can_be_said_and_is_held_to_the_rules_for_urls() {
    let text = |base: &str, more: &str| {
        format!(
            "sources:\n  informatica:\n    - name: etl\n      login_url: https://a.example\n      username: u\n      \
             password: hunter2\n      base_url: {base}\n{more}"
        )
    };
    let source = only(&text("https://b.example/saas", ""));
    let service: &informatica::Settings = own(&source);
    assert_eq!(service.base_url, Some(url("https://b.example/saas")));
    assert!(parsed(&text("http://b.example/saas", "")).is_err());
    assert!(parsed(&text("http://b.example/saas", "      allow_plain_http: true\n")).is_ok());
}

/// Pieces from which almost-configs are made.
fn piece() -> impl Strategy<Value = String> {
    let words: Vec<String> = all_keys()
        .iter()
        .flat_map(|(key, _)| key.names())
        .map(|name| format!("{name}: "))
        .chain(
            [
                "\n", "\n  ", "\n    - ", "\n      ", "{", "}", "[", "]", ", ", "- ", "&a ", "*a", "!!str ", "? ",
                "|\n", "'",
            ]
            .map(str::to_owned),
        )
        .chain(
            ["1m", "0", "é", "\"", "#", "---\n", "\t", "https://h", "~", "true", "\u{feff}", "\0", "%"]
                .map(str::to_owned),
        )
        .collect();
    proptest::sample::select(words)
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,200}", pieces in prop::collection::vec(piece(), 0..60)) {
        for text in [text, pieces.concat()] {
            if let Err(errors) = parse(&text, Path::new("c.yml")) {
                prop_assert!(!errors.problems().is_empty());
                for problem in errors.problems() {
                    prop_assert!(problem.line >= 1 && problem.column >= 1);
                    prop_assert!(problem.line <= text.lines().count() + 1);
                    prop_assert!(!problem.message.contains('\n'));
                }
            }
        }
    }
}
