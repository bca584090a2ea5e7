//! What is read: every key of all sources, defaults and their order, and what follows from other keys.

use std::num::NonZeroU32;

use super::*;
use crate::proxy::NoProxy;
use crate::settings::{RateLimit, endpoint};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
const MIB: u64 = 1024 * 1024;

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
    assert_eq!(problems(text), ["3:51: `tenant` has characters that an id cannot have; accepted: a text"]);
    let source = only(&text.replace("Ä b", "Äb"));
    let activid: &activid::Settings = own(&source);
    assert_eq!(activid.token_url.as_str(), "https://h/x/idp/%C3%84b/authn/token");
    assert!(activid.verify);
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
