//! A configuration that reads the simulated services: for `audit-exporter demo` and the tests.

use std::path::Path;

use crate::config::{Config, ConfigErrors, parse};
use crate::simulate::credentials as c;

/// Keys that are the same for every source of the demo: fast polls, a budget to match, and all of
/// the simulator's history, so that the counters become equal to `/simulator/truth`.
pub const FAST: &str =
    "poll_interval: 2s\n      rate_limit: {requests: 40, per: 1s, burst: 10}\n      initial_lookback: 4h";

/// The configuration as text: all five systems at `origin` (`http://127.0.0.1:PORT`), the store
/// in `storage`, new series held for `hold`, each source with the lines `common` beside its own.
pub fn config_text(origin: &str, storage: &Path, hold: &str, common: &str) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    format!(
        "global:\n  hold_new_series: {hold}\nstorage:\n  path: {storage}\nsources:\n  \
         canvas:\n    - name: campus\n      base_url: {origin}\n      access_token: {canvas}\n      accounts: [{account}]\n      {common}\n  \
         informatica:\n    - name: etl\n      login_url: {origin}\n      username: {username}\n      password: {password}\n      {common}\n  \
         activid:\n    - name: badge\n      base_url: {origin}\n      tenant: {tenant}\n      client_id: {client_id}\n      client_secret: {client_secret}\n      {common}\n  \
         losant:\n    - name: iot\n      base_url: {origin}\n      instance_id: {instance}\n      api_token: {losant}\n      {common}\n  \
         index_exchange:\n    - name: ads\n      base_url: {origin}\n      token_url: {origin}/auth/realms/eventlog/protocol/openid-connect/token\n      client_key: {key}\n      subscriptions: [impressions, \"bid events\"]\n      {common}\n",
        storage = quoted(&storage.display().to_string()),
        canvas = quoted(c::CANVAS_ACCESS_TOKEN),
        account = c::CANVAS_ACCOUNT,
        username = quoted(c::INFORMATICA_USERNAME),
        password = quoted(c::INFORMATICA_PASSWORD),
        tenant = quoted(c::TENANT),
        client_id = quoted(c::ACTIVID_CLIENT_ID),
        client_secret = quoted(c::ACTIVID_CLIENT_SECRET),
        instance = quoted(c::LOSANT_INSTANCE_ID),
        losant = quoted(c::LOSANT_API_TOKEN),
        key = quoted(c::INDEX_EXCHANGE_CLIENT_KEY),
    )
}

/// The configuration, read.
pub fn config(origin: &str, storage: &Path, hold: &str) -> Result<Config, ConfigErrors> {
    parse(&config_text(origin, storage, hold, FAST), Path::new("demo.yml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_s_configuration_is_one_that_check_accepts() {
        let config = config("http://127.0.0.1:1", Path::new("/tmp/x"), "5s").unwrap();
        assert_eq!(config.sources.len(), 5);
    }
}
