//! The web configuration file (`--web.config.file`): the exporter-toolkit's format.
//!
//! Promises: [`check`] accepts and refuses what `promtool check web-config` does (differences: docs/web-config.md). No
//! message holds a key or a hash.
//!
//! Leaves to others: following the file (`live.rs`), what rustls makes of the TLS settings (`tls.rs`).

use std::collections::BTreeMap;
use std::path::Path;

use http::{HeaderName, HeaderValue};
use secrecy::SecretString;
use serde::Deserialize;

use super::settings::{ClientAuth, PemSource, TlsSettings, TlsVersion, WebConfig, WebConfigError, read};
use super::{password, tls};

/// What `promtool check web-config` does: reads and checks the file, the hashes in it, and the
/// certificate, key and client CA that it names. Blocks on the file system.
pub fn check(path: &Path) -> Result<WebConfig, WebConfigError> {
    let config = parse(path, &read("--web.config.file", path)?)?;
    if let Some(tls) = &config.tls {
        tls::certified_key(&tls.read()?)?;
    }
    Ok(config)
}

/// Every scalar is optional, because Go's YAML reads null as "left out" anywhere. A plain number
/// or boolean where text belongs is taken as the text that was written, as in Go.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Raw {
    tls_server_config: Option<RawTls>,
    http_server_config: Option<RawHttp>,
    basic_auth_users: Option<BTreeMap<String, Option<String>>>,
    rate_limit: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawTls {
    cert: Option<String>,
    key: Option<String>,
    client_ca: Option<String>,
    cert_file: Option<String>,
    key_file: Option<String>,
    client_auth_type: Option<String>,
    client_ca_file: Option<String>,
    cipher_suites: Option<Vec<Option<String>>>,
    curve_preferences: Option<Vec<Option<String>>>,
    min_version: Option<String>,
    max_version: Option<String>,
    prefer_server_cipher_suites: Option<bool>,
    client_allowed_sans: Option<Vec<Option<String>>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawHttp {
    http2: Option<bool>,
    headers: Option<BTreeMap<String, Option<String>>>,
}

/// The suites of Go 1.19's `tls.CipherSuites()`, which promtool 2.42 knows.
const CIPHER_SUITES: [&str; 17] = [
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
];

const CURVES: [&str; 4] = ["CurveP256", "CurveP384", "CurveP521", "X25519"];

/// The headers that may be configured, with the values that are allowed (none listed: any).
const HEADERS: [(&str, &[&str]); 5] = [
    ("Strict-Transport-Security", &[]),
    ("X-Content-Type-Options", &["nosniff"]),
    ("X-Frame-Options", &["deny", "sameorigin"]),
    ("X-XSS-Protection", &[]),
    ("Content-Security-Policy", &[]),
];

/// Checks the content of a file at `path`, whose folder relative paths in it are relative to. Reads no other file.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<WebConfig, WebConfigError> {
    let format = |why| WebConfigError::Format { path: path.to_owned(), why };
    // like Go's Unmarshal, only the first document counts; nothing at all is an empty one
    let mut reader = bytes;
    let raw: Raw = match serde_saphyr::read::<_, Option<Raw>>(&mut reader).next() {
        None => Raw::default(),
        Some(Ok(raw)) => raw.unwrap_or_default(),
        Some(Err(error)) => return Err(format(describe(&error))),
    };
    if raw.rate_limit.is_some() {
        return Err(WebConfigError::Setting {
            setting: "rate_limit",
            why: "not supported; remove it, or limit the rate in a proxy".into(),
        });
    }
    let http = raw.http_server_config.unwrap_or_default();
    let headers = parse_headers(http.headers.unwrap_or_default())?;
    let directory = path.parent().unwrap_or(Path::new(""));
    let tls = tls_settings(raw.tls_server_config.unwrap_or_default(), directory)?;
    let users = parse_users(raw.basic_auth_users.unwrap_or_default())?;
    Ok(WebConfig { tls, http2: http.http2.unwrap_or(true), headers, users })
}

/// Says where a YAML error is and what it is about, without the value (which may be a hash or a key)
/// and without the snippet of the file that serde-saphyr would show.
fn describe(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error as E;
    let error = error.without_snippet();
    let why = match error {
        E::SerdeUnknownField { field, expected, .. } => {
            format!("unknown field {}, expected one of: {}", quote_word(field), expected.join(", "))
        }
        E::DuplicateMappingKey { key: Some(key), .. } => format!("{} is set twice", quote_word(key)),
        E::SerdeInvalidType { expected, .. } | E::SerdeInvalidValue { expected, .. } => {
            format!("a value of the wrong kind, expected {expected}")
        }
        _ => "not valid YAML, or a value of the wrong kind".into(),
    };
    match error.location() {
        Some(at) => format!("line {}, column {}: {why}", at.line(), at.column()),
        None => why,
    }
}

/// Quotes a word of the file if it looks like one: a hash or a key in the wrong place does not.
fn quote_word(word: &str) -> String {
    let is_word = word.len() <= 40 && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_ ".contains(c));
    if is_word { format!("{word:?}") } else { "that value".into() }
}

fn parse_headers(written: BTreeMap<String, Option<String>>) -> Result<Vec<(HeaderName, HeaderValue)>, WebConfigError> {
    let refuse = |why| WebConfigError::Setting { setting: "http_server_config.headers", why };
    let mut headers = Vec::new();
    for (name, value) in written {
        let Some((_, allowed)) = HEADERS.iter().find(|(known, _)| *known == name) else {
            let known = HEADERS.map(|(known, _)| known).join(", ");
            return Err(refuse(format!("{} cannot be configured, only {known}", quote_word(&name))));
        };
        let value = value.unwrap_or_default();
        if !allowed.is_empty() && !allowed.contains(&value.as_str()) {
            return Err(refuse(format!("{name} must be one of {}, not {}", allowed.join(", "), quote_word(&value))));
        }
        // a value folded over several lines goes out on one, as Go sends it
        let line: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let name = HeaderName::try_from(name).map_err(|error| refuse(error.to_string()))?;
        let value = HeaderValue::from_bytes(line.as_bytes()).map_err(|error| refuse(error.to_string()))?;
        headers.push((name, value));
    }
    Ok(headers)
}

/// Passes what Go's `bcrypt.Cost` passes: at least 59 bytes, `$2`, a cost of 4 to 31.
fn parse_users(written: BTreeMap<String, Option<String>>) -> Result<BTreeMap<String, SecretString>, WebConfigError> {
    written
        .into_iter()
        .map(|(user, hash)| {
            let hash = hash.unwrap_or_default();
            if password::cost_of(&hash).is_none() {
                let why = format!(
                    "the password of {} is not a bcrypt hash; create one with: htpasswd -nBC 10 \"\"",
                    quote_word(&user)
                );
                return Err(WebConfigError::Setting { setting: "basic_auth_users", why });
            }
            Ok((user, hash.into()))
        })
        .collect()
}

fn tls_settings(raw: RawTls, directory: &Path) -> Result<Option<TlsSettings>, WebConfigError> {
    // names are checked before it is asked whether TLS is on at all: Go does so while it reads
    let min_version = tls_version("tls_server_config.min_version", raw.min_version)?.unwrap_or(TlsVersion::Tls12);
    let max_version = tls_version("tls_server_config.max_version", raw.max_version)?.unwrap_or(TlsVersion::Tls13);
    let cipher_suites = known_names("tls_server_config.cipher_suites", raw.cipher_suites, &CIPHER_SUITES)?;
    let curve_preferences = known_names("tls_server_config.curve_preferences", raw.curve_preferences, &CURVES)?;

    let auth_type = raw.client_auth_type.unwrap_or_default();
    let cert = pem_source(raw.cert_file, raw.cert, directory);
    let key = pem_source(raw.key_file, raw.key, directory);
    let client_ca = pem_source(raw.client_ca_file, raw.client_ca, directory);
    if cert.is_none() && key.is_none() && client_ca.is_none() && auth_type.is_empty() {
        return Ok(None);
    }
    let missing =
        |setting| WebConfigError::Setting { setting, why: "missing, while other TLS settings are set".into() };
    let cert = cert.ok_or_else(|| missing("tls_server_config.cert_file"))?;
    let key = key.ok_or_else(|| missing("tls_server_config.key_file"))?;
    let client_auth = match auth_type.as_str() {
        "" | "NoClientCert" => ClientAuth::None,
        "RequestClientCert" => ClientAuth::Request,
        // the second is the toolkit's older name for the first
        "RequireAnyClientCert" | "RequireClientCert" => ClientAuth::RequireAny,
        "VerifyClientCertIfGiven" => ClientAuth::VerifyIfGiven,
        "RequireAndVerifyClientCert" => ClientAuth::RequireAndVerify,
        other => {
            let why = format!(
                "{} is none of NoClientCert, RequestClientCert, RequireAnyClientCert, \
                 VerifyClientCertIfGiven, RequireAndVerifyClientCert",
                quote_word(other)
            );
            return Err(WebConfigError::Setting { setting: "tls_server_config.client_auth_type", why });
        }
    };
    if client_ca.is_some() && client_auth == ClientAuth::None {
        return Err(WebConfigError::Setting {
            setting: "tls_server_config.client_auth_type",
            why: "missing, while a client CA is set; usually RequireAndVerifyClientCert".into(),
        });
    }
    let texts = |list: Vec<Option<String>>| list.into_iter().map(Option::unwrap_or_default).collect();
    Ok(Some(TlsSettings {
        cert,
        key,
        client_ca,
        client_auth,
        client_allowed_sans: raw.client_allowed_sans.map(texts),
        min_version,
        max_version,
        cipher_suites,
        prefer_server_cipher_suites: raw.prefer_server_cipher_suites.unwrap_or(true),
        curve_preferences,
    }))
}

fn tls_version(setting: &'static str, name: Option<String>) -> Result<Option<TlsVersion>, WebConfigError> {
    let Some(name) = name else { return Ok(None) };
    match name.as_str() {
        "TLS10" => Ok(Some(TlsVersion::Tls10)),
        "TLS11" => Ok(Some(TlsVersion::Tls11)),
        "TLS12" => Ok(Some(TlsVersion::Tls12)),
        "TLS13" => Ok(Some(TlsVersion::Tls13)),
        _ => {
            let why = format!("{} is none of TLS10, TLS11, TLS12, TLS13", quote_word(&name));
            Err(WebConfigError::Setting { setting, why })
        }
    }
}

fn known_names(
    setting: &'static str,
    written: Option<Vec<Option<String>>>,
    known: &[&str],
) -> Result<Vec<String>, WebConfigError> {
    let names: Vec<String> = written.unwrap_or_default().into_iter().flatten().collect();
    match names.iter().find(|name| !known.contains(&name.as_str())) {
        Some(name) => {
            let why = format!("{} is none of {}", quote_word(name), known.join(", "));
            Err(WebConfigError::Setting { setting, why })
        }
        None => Ok(names),
    }
}

/// The file, relative to the web configuration file's folder; else the text; an empty one is none.
fn pem_source(file: Option<String>, inline: Option<String>, directory: &Path) -> Option<PemSource> {
    let file = file.filter(|path| !path.is_empty()).map(|path| PemSource::File(directory.join(path)));
    file.or_else(|| inline.filter(|text| !text.is_empty()).map(|text| PemSource::Inline(text.into())))
}

#[cfg(test)]
pub(super) mod tests;
