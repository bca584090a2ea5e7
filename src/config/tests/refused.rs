//! What is refused, each at its place and with what is accepted there.

use super::*;

const DURATION: &str = "above 0s, such as 30s, 5m, 1h30m or 14d (units y, w, d, h, m, s, ms, in this order)";
const ZERO_DURATION: &str = "0s or more, such as 30s, 5m, 1h30m or 14d (units y, w, d, h, m, s, ms, in this order)";
const URL: &str = "https:// with a host, without user, password, query and fragment; http:// for loopback or with \
                   `allow_plain_http: true`";
const SIZE: &str = "a whole number of bytes above 0, alone or with B, KiB, MiB, GiB, kB, MB or GB, such as 8MiB";
const FILES: &str = "a path from `/` or from the config file's folder, DIR (`~` is not expanded)";

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
            "6:13: `cert_file` is given without `key_file`; accepted: both or neither".to_owned(),
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
        ("overlap: !x 5m", "6:16: this value has a YAML tag (`!`); accepted: the value without it".to_owned()),
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
    let one_missing = "`proxy_username` and `proxy_password` (or `proxy_password_file`) belong together, and one is missing; accepted: both \
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
            vec!["6:7: `proxy_username` is given without a proxy; accepted: with `proxy_url` or `proxy_from_environment`"
                .to_owned()],
        ),
        (
            "proxy_url: http://p\nproxy_username: 'me:'\nproxy_password: hunter2",
            vec!["7:23: `proxy_username` has characters that a user name cannot have; accepted: a text without colon and control \
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
        ("no_proxy: a.example", vec!["6:7: `no_proxy` is given without `proxy_url`; accepted: both".to_owned()]),
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
            vec!["7:7: `no_proxy` is given without `proxy_url`; accepted: both".to_owned()],
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
    let value = "has characters that a header cannot carry; accepted: visible ASCII characters and blanks, on one line";
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
            "6:34: `value` has a line end inside; only one at the end is ignored; accepted: a text".to_owned(),
        ),
        ("headers: [{name: a, value: hünter2}]", format!("6:34: `value` {value}")),
        ("headers: [{name: a, value: ''}]", "6:34: `value` is empty; accepted: a text".to_owned()),
        (
            "headers: [{name: a, value_file: two.lines}]",
            "6:39: the file of `value_file`, DIR/two.lines, has a line end inside; only one at the end is ignored; accepted: \
             a file with the secret and nothing else".to_owned(),
        ),
        (
            "headers: [{name: Authorization, value: hunter2}]",
            format!("6:24: `name` cannot be authorization: it carries the credential of the service; {name}"),
        ),
        (
            "headers: [{name: user-agent, value: b}]",
            format!("6:24: `name` cannot be user-agent: `user_agent` sets it; {name}"),
        ),
        ("user_agent: \"a\\nb\"", "6:19: `user_agent` has characters that a header cannot carry; accepted: a text of visible ASCII characters and blanks".to_owned()),
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
        let errors = parse_with(text, &folder.path().join("c.yml"), Machine::This, || false).err();
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
        "9:15: `tenant` has characters that an id cannot have; accepted: a text",
        "11:7: `api_token` is missing; required in a source of `losant`, or `api_token_file`",
        "11:7: `instance_id` is missing; required in a source of `losant`",
        "13:7: `client_key` is missing; required in a source of `index_exchange`, or `client_key_file`",
        "14:7: `subscriptions` is empty; accepted: at least one, such as impressions or \"bid events\"",
        "16:24: the file of `client_key_file`, DIR/empty, is empty; accepted: a file with the secret and nothing else",
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
            problems.len() == 1 && problems[0].contains(holds) && problems[0].contains(&format!("`{key}` contains")),
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
