//! What is accepted and refused, beside promtool, and what a message may show.

use std::io;
use std::path::PathBuf;

use super::*;

/// A folder with a certificate, its key, another key and something that is neither.
pub(in super::super) fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    write("cert.pem", &made.cert.pem());
    write("key.pem", &made.signing_key.serialize_pem());
    write("other-key.pem", &rcgen::KeyPair::generate().unwrap().serialize_pem());
    write("junk.pem", "no PEM at all\n");
    folder
}

const HASH: &str = "$2y$04$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi";

/// What promtool 2.42 says.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Promtool {
    /// The same as we do.
    Same,
    /// It does not know the setting yet.
    TooOld,
}
use Promtool::{Same, TooOld};

/// Our cases: name, file, whether it is accepted, what promtool says. `@CERT` stands for a
/// usable `cert_file` and `key_file`, `@HASH` for a bcrypt hash.
const CASES: &[(&str, &str, bool, Promtool)] = &[
    ("nothing", "", true, Same),
    ("only a comment", "# nothing yet\n", true, Same),
    ("null document", "---\n", true, Same),
    ("empty mapping", "{}", true, Same),
    ("null sections", "tls_server_config:\nhttp_server_config:\nbasic_auth_users:\n", true, Same),
    ("a scalar", "hello", false, Same),
    ("a list", "- a\n- b\n", false, Same),
    ("broken yaml", "tls_server_config: {", false, Same),
    ("tab for indentation", "http_server_config:\n\thttp2: true\n", false, Same),
    ("unknown section", "tls_config: {}\n", false, Same),
    ("section twice", "http_server_config: {}\nhttp_server_config: {}\n", false, Same),
    ("unknown key", "tls_server_config:\n  cert: 1\n  certificate: x\n", false, Same),
    ("second document not read", "http_server_config: {http2: true}\n---\nunknown: 1\n", true, Same),
    ("certificate and key", "tls_server_config:\n@CERT", true, Same),
    ("certificate without key", "tls_server_config:\n  cert_file: cert.pem\n", false, Same),
    ("key without certificate", "tls_server_config:\n  key_file: key.pem\n", false, Same),
    ("empty paths", "tls_server_config:\n  cert_file: ''\n  key_file: ''\n", true, Same),
    ("null path", "tls_server_config:\n  cert_file: cert.pem\n  key_file:\n", false, Same),
    ("auth type only", "tls_server_config:\n  client_auth_type: NoClientCert\n", false, Same),
    ("version only: no TLS", "tls_server_config:\n  min_version: TLS13\n", true, Same),
    ("missing file", "tls_server_config:\n  cert_file: absent.pem\n  key_file: key.pem\n", false, Same),
    ("a folder", "tls_server_config:\n  cert_file: .\n  key_file: key.pem\n", false, Same),
    ("no PEM", "tls_server_config:\n  cert_file: junk.pem\n  key_file: key.pem\n", false, Same),
    ("key of another", "tls_server_config:\n  cert_file: cert.pem\n  key_file: other-key.pem\n", false, Same),
    ("key in place of certificate", "tls_server_config:\n  cert_file: key.pem\n  key_file: key.pem\n", false, Same),
    ("every version", "tls_server_config:\n@CERT  min_version: TLS10\n  max_version: TLS13\n", true, Same),
    ("version of SSL", "tls_server_config:\n@CERT  min_version: SSL30\n", false, Same),
    ("version in lower case", "tls_server_config:\n@CERT  min_version: tls12\n", false, Same),
    ("null version", "tls_server_config:\n@CERT  min_version:\n", true, Same),
    ("suites", "tls_server_config:\n@CERT  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]\n", true, Same),
    ("suites of RSA", "tls_server_config:\n@CERT  cipher_suites: [TLS_RSA_WITH_AES_128_CBC_SHA]\n", true, Same),
    ("insecure suite", "tls_server_config:\n@CERT  cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]\n", false, Same),
    ("suite as scalar", "tls_server_config:\n@CERT  cipher_suites: TLS_AES_128_GCM_SHA256\n", false, Same),
    ("no suites", "tls_server_config:\n@CERT  cipher_suites: []\n", true, Same),
    ("unknown suite without TLS", "tls_server_config:\n  cipher_suites: [X]\n", false, Same),
    ("curves", "tls_server_config:\n@CERT  curve_preferences: [X25519, CurveP256, CurveP384, CurveP521]\n", true, Same),
    ("unknown curve", "tls_server_config:\n@CERT  curve_preferences: [P-256]\n", false, Same),
    ("prefer server", "tls_server_config:\n@CERT  prefer_server_cipher_suites: false\n", true, Same),
    ("prefer server: a word", "tls_server_config:\n@CERT  prefer_server_cipher_suites: maybe\n", false, Same),
    ("auth without CA", "tls_server_config:\n@CERT  client_auth_type: RequireAndVerifyClientCert\n", true, Same),
    ("any", "tls_server_config:\n@CERT  client_auth_type: RequireAnyClientCert\n", true, Same),
    ("old name", "tls_server_config:\n@CERT  client_auth_type: RequireClientCert\n", true, Same),
    ("request", "tls_server_config:\n@CERT  client_auth_type: RequestClientCert\n", true, Same),
    ("if given", "tls_server_config:\n@CERT  client_auth_type: VerifyClientCertIfGiven\n", true, Same),
    ("unknown auth", "tls_server_config:\n@CERT  client_auth_type: Require\n", false, Same),
    ("CA without auth", "tls_server_config:\n@CERT  client_ca_file: cert.pem\n", false, Same),
    (
        "CA, no auth wanted",
        "tls_server_config:\n@CERT  client_ca_file: cert.pem\n  client_auth_type: NoClientCert\n",
        false,
        Same,
    ),
    (
        "CA",
        "tls_server_config:\n@CERT  client_ca_file: cert.pem\n  client_auth_type: RequireAndVerifyClientCert\n",
        true,
        Same,
    ),
    (
        "CA missing",
        "tls_server_config:\n@CERT  client_ca_file: absent\n  client_auth_type: RequireAndVerifyClientCert\n",
        false,
        Same,
    ),
    (
        "CA that is none",
        "tls_server_config:\n@CERT  client_ca_file: junk.pem\n  client_auth_type: RequireAndVerifyClientCert\n",
        true,
        Same,
    ),
    (
        "names",
        "tls_server_config:\n@CERT  client_allowed_sans: [a.example, '::1']\n  client_auth_type: RequireAnyClientCert\n",
        true,
        TooOld,
    ),
    ("http2", "http_server_config:\n  http2: false\n", true, Same),
    ("http2 in YAML 1.1", "http_server_config:\n  http2: off\n", true, Same),
    ("http2 by a letter", "http_server_config:\n  http2: y\n", true, Same),
    ("http2 as a number", "http_server_config:\n  http2: 1\n", false, Same),
    ("http2 null", "http_server_config:\n  http2:\n", true, Same),
    ("frame options", "http_server_config:\n  headers: {X-Frame-Options: deny}\n", true, Same),
    ("frame options in capitals", "http_server_config:\n  headers: {X-Frame-Options: DENY}\n", false, Same),
    ("frame options blank", "http_server_config:\n  headers: {X-Frame-Options: ''}\n", false, Same),
    ("header in lower case", "http_server_config:\n  headers: {x-frame-options: deny}\n", false, Same),
    ("other header", "http_server_config:\n  headers: {Server: x}\n", false, Same),
    ("header as a number", "http_server_config:\n  headers: {X-XSS-Protection: 0}\n", true, Same),
    ("header null", "http_server_config:\n  headers: {Content-Security-Policy: }\n", true, Same),
    ("header as a list", "http_server_config:\n  headers: {Content-Security-Policy: [a]}\n", false, Same),
    (
        "header folded",
        "http_server_config:\n  headers:\n    Content-Security-Policy: |\n      a\n      b\n",
        true,
        Same,
    ),
    ("user", "basic_auth_users:\n  alice: @HASH\n", true, Same),
    ("numeric user", "basic_auth_users:\n  12: @HASH\n", true, Same),
    ("user twice", "basic_auth_users:\n  alice: @HASH\n  alice: @HASH\n", false, Same),
    ("user without hash", "basic_auth_users:\n  alice:\n", false, Same),
    ("plain password", "basic_auth_users:\n  alice: secret\n", false, Same),
    (
        "letter of the hash unknown",
        "basic_auth_users:\n  a: $2z$04$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi\n",
        true,
        Same,
    ),
    (
        "hash of version 3",
        "basic_auth_users:\n  a: $3a$04$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi\n",
        false,
        Same,
    ),
    (
        "hash without letter",
        "basic_auth_users:\n  a: $2$04$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi\n",
        true,
        Same,
    ),
    (
        "hash cut short",
        "basic_auth_users:\n  a: $2y$04$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDe\n",
        false,
        Same,
    ),
    (
        "hash with other signs",
        "basic_auth_users:\n  a: $2y$04$____________________________________________________!\n",
        true,
        Same,
    ),
    ("cost 3", "basic_auth_users:\n  a: $2y$03$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi\n", false, Same),
    ("cost 32", "basic_auth_users:\n  a: $2y$32$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi\n", false, Same),
    ("cost +4", "basic_auth_users:\n  a: $2y$+4$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi\n", true, Same),
    (
        "argon2",
        "basic_auth_users:\n  a: $argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHQ$RdescudvJCsgt3ub+b2dWRWJTmaaJObG\n",
        false,
        Same,
    ),
    ("users as a list", "basic_auth_users: [alice]\n", false, Same),
    ("no users", "basic_auth_users: {}\n", true, Same),
    ("rate limit", "rate_limit: {interval: 1s, burst: 3}\n", false, Same),
    ("merge", "basic_auth_users:\n  <<: {a: @HASH}\n  b: @HASH\n", true, Same),
    ("alias", "basic_auth_users:\n  a: &h @HASH\n  b: *h\n", true, Same),
    ("unknown alias", "basic_auth_users:\n  b: *h\n", false, Same),
];

pub(in super::super) fn written(folder: &Path, yaml: &str) -> PathBuf {
    let path = folder.join("web.yml");
    let yaml = yaml.replace("@CERT", "  cert_file: cert.pem\n  key_file: key.pem\n").replace("@HASH", HASH);
    std::fs::write(&path, yaml).unwrap();
    path
}

#[test]
fn accepts_and_refuses_as_listed() {
    let folder = folder();
    for (name, yaml, accepted, _) in CASES {
        let checked = check(&written(folder.path(), yaml));
        assert_eq!(checked.is_ok(), *accepted, "{name}: {checked:?}");
    }
}

/// `None`, said aloud, only where `tests/run` was told that tools may be missing.
fn promtool() -> Option<PathBuf> {
    let named = std::env::var_os("AUDIT_EXPORTER_PROMTOOL").map(PathBuf::from);
    let in_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join("promtool")).find(|path| path.is_file())
    };
    let found = named.or_else(in_path);
    if found.is_none() {
        let missing = "promtool was not found: run tests/run, which installs it, or set AUDIT_EXPORTER_PROMTOOL";
        let allowed = std::env::var_os("AUDIT_EXPORTER_ALLOW_SKIP").is_some_and(|value| value == "1");
        assert!(allowed, "{missing}");
        let line = format!("SKIPPED: the comparison of web configurations with promtool, {missing}\n");
        if let Some(summary) = std::env::var_os("AUDIT_EXPORTER_SKIPPED") {
            let mut summary = std::fs::OpenOptions::new().create(true).append(true).open(summary).unwrap();
            io::Write::write_all(&mut summary, line.as_bytes()).unwrap();
        }
    }
    found
}

#[test]
fn agrees_with_promtool() {
    let Some(promtool) = promtool() else { return };
    let folder = folder();
    for (name, yaml, accepted, expected) in CASES {
        let path = written(folder.path(), yaml);
        let said = std::process::Command::new(&promtool).args(["check", "web-config"]).arg(&path).output().unwrap();
        if *expected == Same {
            let text = String::from_utf8_lossy(&said.stderr);
            assert_eq!(said.status.success(), *accepted, "{name}: {text}");
        }
    }
}

#[test]
fn inline_certificates_are_read() {
    let folder = folder();
    let text = |name| {
        let text = std::fs::read_to_string(folder.path().join(name)).unwrap();
        format!("    {}\n", text.trim_end().replace('\n', "\n    "))
    };
    let (cert, key) = (text("cert.pem"), text("key.pem"));
    let yaml = format!("tls_server_config:\n  cert: |\n{cert}  key: |\n{key}");
    let config = check(&written(folder.path(), &yaml)).unwrap();
    assert!(!format!("{config:?}").contains("PRIVATE"), "no key in a Debug text");
    let other = text("other-key.pem");
    let yaml = format!("tls_server_config:\n  cert: |\n{cert}  key: |\n{other}");
    check(&written(folder.path(), &yaml)).unwrap_err();
}

#[test]
fn no_message_shows_a_secret() {
    let folder = folder();
    let secret = "hunter2hunter2";
    for yaml in [
        "basic_auth_users: SECRET",
        "basic_auth_users:\n  alice: SECRET\n",
        "basic_auth_users:\n  alice: [SECRET]\n",
        "basic_auth_users:\n  alice: {SECRET: 1}\n",
        "basic_auth_users: [SECRET]\n",
        "tls_server_config:\n  cert_file: cert.pem\n  key: SECRET\n",
        "tls_server_config:\n  key: \"SECRET\n",
        "tls_server_config:\n  key: *SECRET\n",
        "http_server_config:\n  http2: SECRET\n",
        "SECRET",
    ] {
        let error = check(&written(folder.path(), &yaml.replace("SECRET", secret))).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(secret), "{yaml}: {error}");
    }
}

#[test]
fn an_error_says_where() {
    let folder = folder();
    let error = check(&written(folder.path(), "tls_server_config:\n  cert_fil: x\n")).unwrap_err().to_string();
    assert!(error.contains("line 2") && error.contains("\"cert_fil\"") && error.contains("cert_file"), "{error}");
    let error = check(Path::new("/nowhere/web.yml")).unwrap_err().to_string();
    assert!(error.contains("/nowhere/web.yml"), "{error}");
}

#[test]
fn header_values_are_one_line_and_blank_ones_are_unset() {
    let folder = folder();
    let yaml = "http_server_config:\n  headers:\n    Content-Security-Policy: |\n      default-src\n      'self'\n    X-XSS-Protection: ''\n";
    let config = check(&written(folder.path(), yaml)).unwrap();
    assert_eq!(config.headers.len(), 1);
    assert_eq!(config.headers[0].1, "default-src 'self'");
}
