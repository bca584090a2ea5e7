//! What docs/security.md promises of the whole program: no secret is shown, whatever a service or a
//! file does.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use audit_exporter::simulate::raw::{self, Asked, RawService};
use audit_exporter::simulate::{self, SERVICES};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use crate::program::{
    EAGER, PATIENCE, Process, Running, ask, config_file, config_text, eventually, finish, in_repository, program,
};

// === secrets ===

/// Sessions that the services of these tests give out.
const SESSIONS: [&str; 3] = ["JMYQDbcC3Uelt8wk4iv3Hh", "ActividToken.5150.xyz", "IxToken-QWERTY-99887"];

/// What nobody may be shown where the credentials are those of [`secretive`].
fn secrets() -> Vec<&'static str> {
    SERVICES.iter().flat_map(|service| service.refused_secrets).chain(&SESSIONS).copied().collect()
}

/// The credential of a service in [`secretive`].
fn secret_of(system: &str) -> &'static str {
    simulate::service(system).unwrap().refused_secrets[0]
}

/// A secret as it could turn up: as it is, in lower case, quoted, encoded, as numbers.
fn forms(secret: &str) -> Vec<String> {
    let percent = |keep: &str| {
        let one = |byte: u8| {
            let plain = byte.is_ascii_alphanumeric() || keep.as_bytes().contains(&byte);
            if plain { char::from(byte).to_string() } else { format!("%{byte:02X}") }
        };
        secret.bytes().map(one).collect::<String>()
    };
    let bytes: Vec<String> = secret.bytes().map(|byte| byte.to_string()).collect();
    let mut forms = vec![
        secret.to_owned(),
        secret.to_lowercase(),
        serde_json::to_string(secret).unwrap().trim_matches('"').to_owned(),
        percent("-_.~"),
        percent("-_.*"),
        bytes.join(", "),
        secret.bytes().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}")),
    ];
    // base64 of a text that holds it, wherever it begins there
    for before in ["", "x", "xx"] {
        for engine in [&STANDARD as &dyn Fn64, &URL_SAFE_NO_PAD] {
            let encoded = engine.of(&format!("{before}{secret}"));
            forms.push(encoded[4..encoded.len() - 4].to_owned());
        }
    }
    forms
}

trait Fn64 {
    fn of(&self, text: &str) -> String;
}

impl<E: Engine> Fn64 for E {
    fn of(&self, text: &str) -> String {
        self.encode(text)
    }
}

#[track_caller]
fn assert_no_secret<'a>(secrets: impl IntoIterator<Item = &'a str>, shown: &str, wher: &str) {
    for secret in secrets {
        for form in forms(secret) {
            if let Some(at) = shown.find(&form) {
                let line = shown[..at].rfind('\n').map_or(0, |at| at + 1);
                let end = shown[at..].find('\n').map_or(shown.len(), |end| at + end);
                panic!("{secret}, as {form}, in {wher}: {}", &shown[line..end]);
            }
        }
    }
}

/// Everything the running program shows to anybody.
fn shown(exporter: &Running) -> String {
    let mut all = String::new();
    for path in ["/", "/api/v1/status", "/metrics", "/-/ready", "/absent"] {
        for accept in [
            "*/*",
            "application/openmetrics-text;version=1.0.0",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
        ] {
            let answer = exporter.get_with(path, &[("Accept", accept)]);
            all += &answer.to_string();
        }
    }
    all
}

/// A service that repeats what it was sent, wherever an answer has room for words: the worst that
/// can happen to a credential short of malice.
struct Parrot {
    address: SocketAddr,
    /// Requests that are no logins, by the first segment of their path.
    reads: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Parrot {
    fn start(lets_in: bool) -> Self {
        let reads = Arc::new(Mutex::new(BTreeMap::new()));
        let seen = Arc::clone(&reads);
        let service = RawService::start(move |asked| answer(asked, lets_in, &seen)).unwrap();
        Self { address: service.address(), reads }
    }
}

fn answer(asked: &Asked, lets_in: bool, seen: &Mutex<BTreeMap<String, usize>>) -> Vec<u8> {
    let path = &asked.target;
    let own = asked.header("host").unwrap();
    let body = String::from_utf8_lossy(&asked.body).into_owned();
    let header = |name: &str| asked.header(name).map(str::to_owned);
    let credential = header("authorization").or(header("infa-session-id")).unwrap_or_default();
    let bare = credential.split(' ').next_back().unwrap_or_default().to_owned();
    let password: Option<serde_json::Value> = serde_json::from_str(&body).ok();
    let password = password.and_then(|body| body["password"].as_str().map(str::to_owned)).unwrap_or_default();
    let secret = if password.is_empty() { bare } else { password };
    let words = format!("no {secret} here; was sent {credential} {body}");
    let error = serde_json::json!({
        "error": {"code": secret, "message": words, "type": secret, "detail": words},
    })
    .to_string();
    let flat = serde_json::json!({
        "code": secret, "type": secret, "error": secret, "message": words, "detail": words, "title": words,
        "description": words, "error_description": words, "scimType": secret, "status": 400, "statusCode": 400,
    })
    .to_string();
    let is_login = path.ends_with("/login") || path.ends_with("/token");
    let (status, kind, extra, body) = if is_login && lets_in {
        let token = if path.starts_with("/idp") { SESSIONS[1] } else { SESSIONS[2] };
        let welcome = if path.ends_with("/login") {
            serde_json::json!({
                "products": [{"name": "Integration Cloud", "baseApiUrl": format!("http://{own}/saas")}],
                "userInfo": {"sessionId": SESSIONS[0]},
            })
        } else {
            serde_json::json!({"access_token": token, "expires_in": 3600})
        };
        (200, "application/json".to_owned(), String::new(), welcome.to_string())
    } else {
        let which = path.split('/').nth(1).unwrap_or_default().to_owned();
        let nth = {
            let mut seen = seen.lock().unwrap();
            let nth = seen.entry(which).or_default();
            *nth += 1;
            *nth
        };
        let json = || "application/json".to_owned();
        let as_host: String = secret.chars().filter(char::is_ascii_alphanumeric).collect();
        match nth {
            1 => (500, json(), String::new(), error),
            2 => (403, json(), String::new(), flat),
            3 => (400, json(), String::new(), error),
            4 => (302, json(), format!("Location: https://{secret}.example/{secret}?{secret}\r\n"), flat),
            5 => (200, secret.clone(), String::new(), format!("<html>{words}")),
            6 => (200, json(), String::new(), flat),
            7 => (404, json(), String::new(), flat),
            8 => {
                (200, json(), format!("Link: <https://{as_host}.example/?{secret}>; rel=\"next\"\r\n"), "[]".to_owned())
            }
            9 => (200, format!("text/{secret}"), String::new(), format!("{{\"{secret}\": \"{words}")),
            _ => (401, json(), String::new(), error),
        }
    };
    format!(
        "HTTP/1.1 {status} {secret}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\
         Set-Cookie: {secret}\r\n{extra}\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// A source of each system with a credential that the services of the simulator would refuse.
fn secretive(origin: &str, folder: &Path) -> String {
    let quoted = |text: &str| serde_json::to_string(text).unwrap();
    SERVICES.iter().fold(config_text(origin, folder, "0s", EAGER), |text, service| {
        let [before, after] = [service.secret(), service.refused_secrets[0]].map(quoted);
        assert!(text.contains(&before));
        text.replace(&before, &after)
    })
}

#[test]
fn a_service_that_repeats_its_credential_does_not_bring_it_to_light() {
    for lets_in in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let parrot = Parrot::start(lets_in);
        let config = folder.path().join("audit-exporter.yml");
        std::fs::write(&config, secretive(&format!("http://{}", parrot.address), folder.path())).unwrap();
        let exporter = Running::exporter(&config, &["--log.level=debug"]);
        // ever more slowly: until all have had the first few answers
        let first = if lets_in { ["api", "saas", "scim", "instance"] } else { ["idp", "saas", "auth", "instance"] };
        eventually(PATIENCE, || {
            let reads = parrot.reads.lock().unwrap().clone();
            let least = first.iter().map(|which| reads.get(*which).copied().unwrap_or(0)).min().unwrap_or(0);
            if least >= if lets_in { 4 } else { 2 } { Ok(()) } else { Err(format!("requests: {reads:?}")) }
        });
        let mut seen = String::new();
        for _ in 0..20 {
            seen += &shown(&exporter);
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!(seen.contains("status 500") || seen.contains("status 403") || seen.contains("redirect"), "{seen}");
        assert_no_secret(secrets(), &seen, "a page");
        // a reload with a file that holds them where none belongs
        let [canvas, losant, activid] = ["canvas", "losant", "activid"].map(secret_of);
        let text = std::fs::read_to_string(&config).unwrap();
        for wrong in [
            text.replace("access_token:", "acces_token:"),
            text.replace("password: ", "password: {b: "),
            text.replace("api_token: ", "api_token: {a: "),
            text.replace("client_secret: ", "client_secret: ["),
            text.replace("client_key: ", "token_url: "),
            text.replace("client_id: ", "client_id: !"),
            format!("{text}\n{canvas}: {losant}\n"),
            format!("{text}{losant}"),
            text.replace("instance_id: ", &format!("instance_id: {{{activid}: {losant}}} # ")),
        ] {
            std::fs::write(&config, &wrong).unwrap();
            let refused = exporter.post("/-/reload", "");
            assert_eq!(refused.status, 500, "{wrong}");
            assert_no_secret(secrets(), &refused.to_string(), "a refusal");
            let checked = finish(&["check", &format!("--config.file={}", config.display())]);
            assert_eq!(checked.code, 2);
            assert_no_secret(secrets(), &format!("{}{}", checked.stdout, checked.stderr), "check");
        }
        exporter.process.signal("TERM");
        let (_, printed) = exporter.process.ended(PATIENCE);
        assert!(printed.contains("level=debug") || printed.contains("asking again"), "{printed}");
        assert_no_secret(secrets(), &printed, "the log");
    }
}

#[test]
fn a_secret_that_was_pasted_badly_is_never_sent_and_no_login_is_spent_on_it() {
    let service = RawService::start(|_| raw::answer(401, &[], "")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut text = secretive(&service.origin(), folder.path());
    let files: Vec<&str> = SERVICES.iter().map(|service| service.system.as_str()).collect();
    for (file, service) in files.iter().zip(SERVICES) {
        let (key, secret) = (service.secret_key(), service.refused_secrets[0]);
        std::fs::write(folder.path().join(file), secret).unwrap();
        let quoted = serde_json::to_string(secret).unwrap();
        let named = format!(" {key}_file: {file}");
        text = text.replace(&format!(" {key}: {quoted}"), &named);
        assert!(text.contains(&named), "{text}");
    }
    let config = folder.path().join("audit-exporter.yml");
    std::fs::write(&config, &text).unwrap();
    let exporter = Running::exporter(&config, &[]);
    let all_say = |what: &str| {
        eventually(PATIENCE, || {
            let status = exporter.get("/api/v1/status").json();
            let errors = status["sources"].as_array().unwrap().iter();
            let silent: Vec<_> = errors
                .filter(|source| !source["last_error"].as_str().is_some_and(|error| error.contains(what)))
                .map(|source| format!("{}: {}", source["name"], source["last_error"]))
                .collect();
            if silent.is_empty() { Ok(()) } else { Err(format!("{what}: {silent:?}")) }
        });
    };
    all_say("status 401");
    for (before, why) in [("\u{feff}", "byte order mark"), ("new\n", "line end inside")] {
        for file in &files {
            let old = std::fs::read_to_string(folder.path().join(file)).unwrap();
            std::fs::write(folder.path().join(file), format!("{before}{old}")).unwrap();
        }
        all_say(why);
        // each says which file
        for file in &files {
            let (status, path) = (exporter.get("/api/v1/status").text(), folder.path().join(file));
            assert!(status.contains(&format!("the secret file {}", path.display())), "{file} is not named in {status}");
        }
        let asked = service.asked().len();
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(service.asked().len(), asked, "nothing is asked without a credential");
        let checked = finish(&["check", &format!("--config.file={}", config.display())]);
        assert_eq!(checked.code, 2);
        assert_eq!(checked.stderr.matches(why).count(), files.len(), "{}", checked.stderr);
        assert_no_secret(secrets(), &checked.stderr, "check");
    }
    assert_no_secret(secrets(), &shown(&exporter), "a page");
}

#[test]
fn faults_of_the_services_and_wrong_credentials_show_no_secret() {
    let faults = "error=0.2,html=0.2,truncated=0.2,malformed=0.3,unauthorized=0.1,forbidden=0.1,redirect=0.1";
    let faults: Vec<String> = SERVICES.iter().map(|service| format!("--fault={}:{faults}", service.system)).collect();
    let faults: Vec<&str> = faults.iter().map(String::as_str).collect();
    let simulator = Running::simulator(&faults);
    for wrong in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let config = config_file(folder.path(), &simulator, "0s", EAGER);
        if wrong {
            let text = secretive(&format!("http://{}", simulator.address), folder.path());
            std::fs::write(&config, text).unwrap();
        }
        let exporter = Running::exporter(&config, &["--log.level=debug"]);
        let failures = |page: &str, system: &str| {
            let of_system = format!("system=\"{system}\"");
            exporter.scrape().sum(page, &[&of_system])
        };
        for system in SERVICES.iter().map(|service| service.system.as_str()) {
            eventually(PATIENCE, || {
                let errors = failures("audit_source_errors_total", system);
                if errors >= if wrong { 1.0 } else { 3.0 } {
                    Ok(())
                } else {
                    Err(format!("errors of {system}: {errors}"))
                }
            });
        }
        let pages = shown(&exporter);
        exporter.process.signal("TERM");
        let (_, printed) = exporter.process.ended(PATIENCE);
        let hidden = || if wrong { secrets() } else { simulate::secrets().collect() };
        assert_no_secret(hidden(), &pages, "a page");
        assert_no_secret(hidden(), &printed, "the log");
    }
}

#[test]
fn a_hash_or_key_in_the_wrong_place_of_the_web_configuration_is_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("audit-exporter.yml");
    std::fs::write(&config, config_text("http://127.0.0.1:1", folder.path(), "1s", EAGER)).unwrap();
    let web = folder.path().join("web.yml");
    let hash = "$2y$10$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi";
    for yaml in [
        format!("basic_auth_users: {{'{hash}': alice}}"),
        format!("basic_auth_users: ['{hash}']"),
        format!("'{hash}': alice"),
        format!("basic_auth_users: {{alice: '{hash}', '{hash}': '{hash}', '{hash}': x}}"),
        format!("tls_server_config: {{min_version: '{hash}'}}"),
        format!("tls_server_config: {{cipher_suites: ['{hash}']}}"),
        format!("tls_server_config: {{cert: '{hash}', key: '{hash}', client_auth_type: '{hash}'}}"),
        format!("tls_server_config: {{cert: '{hash}', key: '{hash}'}}"),
        format!("http_server_config: {{headers: {{X-Frame-Options: '{hash}'}}}}"),
        format!("http_server_config: {{headers: {{'{hash}': a}}}}"),
        format!("basic_auth_users: {{alice: '{hash}'"),
    ] {
        std::fs::write(&web, &yaml).unwrap();
        let refused = finish(&[
            &format!("--config.file={}", config.display()),
            &format!("--web.config.file={}", web.display()),
            "--web.listen-address=127.0.0.1:0",
        ]);
        assert_eq!(refused.code, 2, "{yaml}: {}", refused.stderr);
        assert_no_secret([hash], &refused.stderr, &yaml);
    }
}

#[test]
fn files_with_secrets_that_all_may_read_are_told_of_once_each() {
    let folder = tempfile::tempdir().unwrap();
    let set = |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    set(folder.path(), 0o755);
    let ways = folder.path().canonicalize().unwrap();
    let reachable = ways.ancestors().all(|way| way.metadata().unwrap().mode() & 0o001 != 0);
    assert!(reachable, "others cannot get at {}: set TMPDIR for this test", folder.path().display());
    let config = folder.path().join("audit-exporter.yml");
    let token = folder.path().join("losant.token");
    let secret = secret_of("losant");
    std::fs::write(&token, secret).unwrap();
    let source = |name: &str| {
        format!("    - name: {name}\n      instance_id: 575ec7417ae143cd83dc4a96\n      api_token_file: losant.token\n")
    };
    let text = format!("sources:\n  losant:\n{}{}", source("one"), source("two"));
    std::fs::write(&config, &text).unwrap();
    let check = |expected: &[&Path]| {
        let checked = finish(&["check", &format!("--config.file={}", config.display())]);
        assert_eq!((checked.code, checked.stdout.as_str()), (0, "the configuration is good\n"), "{}", checked.stderr);
        assert_eq!(checked.stderr.lines().count(), expected.len(), "{}", checked.stderr);
        for path in expected {
            assert!(checked.stderr.contains(&format!("{} ", path.display())), "{}", checked.stderr);
        }
        assert!(expected.is_empty() || checked.stderr.contains("chmod 600"), "{}", checked.stderr);
        assert_no_secret([secret], &checked.stderr, "a warning");
    };
    // two sources, one file, one line; the configuration holds no secret of its own
    set(&token, 0o644);
    set(&config, 0o644);
    check(&[&token]);
    set(&token, 0o640);
    check(&[]);
    std::fs::write(&config, text.replacen("api_token_file: losant.token", &format!("api_token: {secret}"), 1)).unwrap();
    check(&[&config]);
    set(&config, 0o600);
    check(&[]);
}

#[test]
fn the_memory_of_the_program_is_for_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--quiet"]);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    let call = [format!("--config.file={}", config.display()), "--web.listen-address=127.0.0.1:0".to_owned()];
    let mut command = program(&[]);
    // /proc belongs to root anyway where root is asked: there the program runs as nobody
    if rustix_is_root() {
        const NOBODY: u32 = 65534;
        let copy = folder.path().join("program");
        std::fs::copy(env!("CARGO_BIN_EXE_audit-exporter"), &copy).unwrap();
        std::os::unix::fs::chown(folder.path(), Some(NOBODY), None).unwrap();
        std::os::unix::fs::chown(&config, Some(NOBODY), None).unwrap();
        command = std::process::Command::new(copy);
        command.uid(NOBODY);
    }
    let mut process = Process::start(command.args(call));
    let address = process.until_printed("its address", |printed| {
        let rest = printed.split_once("address=")?.1;
        Some(rest.split_whitespace().next()?.trim_matches('"').to_owned())
    });
    let owner = std::fs::metadata(format!("/proc/{}/mem", process.id())).unwrap().uid();
    assert_eq!(owner, 0, "a process that can be dumped belongs to its user");
    // and it still sees itself
    eventually(PATIENCE, || {
        let page = ask(&address, "GET", "/metrics", &[], "").text();
        if page.contains("process_open_fds ") && page.contains("process_resident_memory_bytes ") {
            return Ok(());
        }
        Err(format!("process metrics in {page}"))
    });
}

fn rustix_is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

#[test]
fn the_security_page_names_files_and_tests_that_exist() {
    fn code(folder: &Path, all: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                code(&path, all);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                all.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut all = String::new();
    code(&in_repository("src"), &mut all);
    code(&in_repository("tests/it"), &mut all);
    let page = std::fs::read_to_string(in_repository("docs/security.md")).unwrap();
    let mut tests = 0;
    for named in page.split('`').skip(1).step_by(2) {
        if named.starts_with("src/") || named.starts_with("tests/") {
            assert!(in_repository(named).exists(), "{named}");
        } else if named.matches('_').count() >= 3 && !named.starts_with("audit_") {
            assert!(all.contains(&format!("fn {named}(")), "{named}");
            tests += 1;
        }
    }
    assert!(tests >= 25, "{tests} tests are named");
}
