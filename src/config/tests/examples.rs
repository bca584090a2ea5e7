//! The examples of the docs are accepted and mean what they say, and the reference names every key and every default.

use std::collections::BTreeSet;

use super::*;

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
