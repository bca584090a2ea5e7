//! The way to a service, with the real tools that stand on it: a proxy that asks for a password
//! (tinyproxy), certificates and servers of OpenSSL.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use audit_exporter::simulate::raw::{RawService, json};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::program::{PATIENCE, Process, Running, eventually, finish, program, tool};

/// What a Losant instance without events answers.
const NOTHING: &str = r#"{"items":[],"totalCount":0,"perPage":100,"page":0}"#;
const TOKEN: &str = "losant-token-5150";

fn quiet_service() -> RawService {
    RawService::start(|_| json(NOTHING)).unwrap()
}

/// A configuration with one source that asks every second.
fn config(folder: &Path, base_url: &str, lines: &str) -> PathBuf {
    let path = folder.join("audit-exporter.yml");
    let lines = lines.lines().fold(String::new(), |text, line| text + "      " + line + "\n");
    let text = format!(
        "storage: {{path: data}}\nsources:\n  losant:\n    - name: iot\n      instance_id: abc\n      api_token: {TOKEN}\n      \
         base_url: {base_url}\n      poll_interval: 1s\n      rate_limit: {{requests: 50, per: 1s, burst: 50}}\n{lines}"
    );
    std::fs::write(&path, text).unwrap();
    // it holds a secret
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn until_up(exporter: &Running, up: f64) {
    eventually(PATIENCE, || {
        let is = exporter.scrape().sum("audit_source_up", &[]);
        let polled = exporter.scrape().sum("audit_source_polls_total", &[]) > 0.0;
        if polled && is == up { Ok(()) } else { Err(format!("up to be {up}: {}", last_error(exporter))) }
    });
}

fn last_error(exporter: &Running) -> String {
    exporter.get("/api/v1/status").json()["sources"][0]["last_error"].to_string()
}

/// A port that nobody has just now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn until_listening(port: u16) {
    eventually(PATIENCE, || TcpStream::connect(("127.0.0.1", port)).map(drop).map_err(|error| error.to_string()));
}

/// tinyproxy with a password, and everything the exporter says to it.
struct Proxy {
    _process: Process,
    address: SocketAddr,
    heard: Arc<Mutex<Vec<u8>>>,
}

const USER: &str = "exporter";
const PASSWORD: &str = "proxy-Passw0rd";

impl Proxy {
    fn start(folder: &Path) -> Option<Self> {
        let tinyproxy = tool("AUDIT_EXPORTER_TINYPROXY", "tinyproxy")?;
        let port = free_port();
        let settings = folder.join("tinyproxy.conf");
        std::fs::write(
            &settings,
            format!("Port {port}\nListen 127.0.0.1\nTimeout 60\nMaxClients 50\nBasicAuth {USER} {PASSWORD}\nViaProxyName \"tinyproxy\"\n"),
        )
        .unwrap();
        let process = Process::start(Command::new(tinyproxy).args(["-d", "-c"]).arg(&settings));
        until_listening(port);
        // between the exporter and the proxy
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let recorded = Arc::clone(&heard);
        std::thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                let Ok(mut proxy) = TcpStream::connect(("127.0.0.1", port)) else { return };
                let (mut back, mut answers) = (client.try_clone().unwrap(), proxy.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut answers, &mut back);
                    let _ = back.shutdown(std::net::Shutdown::Write);
                });
                let recorded = Arc::clone(&recorded);
                std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Ok(length @ 1..) = client.read(&mut buffer) {
                        recorded.lock().unwrap().extend_from_slice(&buffer[..length]);
                        if proxy.write_all(&buffer[..length]).is_err() {
                            return;
                        }
                    }
                    let _ = proxy.shutdown(std::net::Shutdown::Write);
                });
            }
        });
        Some(Self { _process: process, address, heard })
    }

    fn heard(&self) -> String {
        String::from_utf8_lossy(&self.heard.lock().unwrap()).into_owned()
    }

    fn settings(&self) -> String {
        format!("proxy_url: http://{}\nproxy_username: {USER}\nproxy_password_file: proxy.password\n", self.address)
    }
}

fn credential() -> String {
    STANDARD.encode(format!("{USER}:{PASSWORD}"))
}

#[test]
fn a_proxy_gets_its_password_and_the_service_does_not_see_it() {
    let folder = tempfile::tempdir().unwrap();
    let Some(proxy) = Proxy::start(folder.path()) else { return };
    let service = quiet_service();
    let password = folder.path().join("proxy.password");
    std::fs::write(&password, "wrong-Passw0rd\n").unwrap();
    let file = config(folder.path(), &service.origin(), &proxy.settings());
    let exporter = Running::exporter(&file, &["--log.level=debug"]);
    until_up(&exporter, 0.0);
    // tinyproxy answers 401 to a wrong password, other proxies 407
    until_asked(&exporter);
    assert_eq!(service.asked().len(), 0, "the proxy let nothing through");
    let shown = format!("{}{}", last_error(&exporter), exporter.process.printed());
    assert!(!shown.contains("Passw0rd") && !shown.contains(&credential()), "{shown}");

    // a new password needs neither restart nor reload
    std::fs::write(&password, format!("{PASSWORD}\n")).unwrap();
    until_up(&exporter, 1.0);
    let asked = service.asked();
    assert!(!asked.is_empty());
    for asked in asked {
        assert!(asked.header("via").unwrap().contains("tinyproxy"));
        assert_eq!(asked.header("proxy-authorization"), None);
        assert_eq!(asked.header("authorization"), Some(format!("Bearer {TOKEN}").as_str()));
    }
    assert!(proxy.heard().contains(&format!("Basic {}", credential())));
    exporter.process.signal("TERM");
    let (_, printed) = exporter.process.ended(PATIENCE);
    assert!(!printed.contains("Passw0rd") && !printed.contains(&credential()), "{printed}");
}

#[test]
fn what_no_proxy_names_is_reached_directly() {
    let folder = tempfile::tempdir().unwrap();
    let Some(proxy) = Proxy::start(folder.path()) else { return };
    std::fs::write(folder.path().join("proxy.password"), PASSWORD).unwrap();
    let service = quiet_service();
    let port = service.address().port();
    for (no_proxy, direct) in [
        ("127.0.0.0/8", true),
        (&*format!("example.com, 127.0.0.1:{port}"), true),
        ("*", true),
        ("example.com, 10.0.0.0/8, 127.0.0.1:1", false),
    ] {
        let before = service.asked().len();
        let lines = format!("{}no_proxy: '{no_proxy}'", proxy.settings());
        let exporter = Running::exporter(&config(folder.path(), &service.origin(), &lines), &[]);
        until_up(&exporter, 1.0);
        let asked = &service.asked()[before..];
        assert!(!asked.is_empty());
        for asked in asked {
            assert_eq!(asked.header("via").is_none(), direct, "{no_proxy}");
            assert_eq!(asked.header("proxy-authorization"), None, "{no_proxy}");
        }
    }
}

/// OpenSSL as a program: to make certificates, and to serve.
struct OpenSsl {
    program: PathBuf,
    folder: tempfile::TempDir,
}

impl OpenSsl {
    fn new() -> Option<Self> {
        Some(Self { program: tool("AUDIT_EXPORTER_OPENSSL", "openssl")?, folder: tempfile::tempdir().unwrap() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs it in its folder.
    #[track_caller]
    fn run(&self, arguments: &str) {
        let words = arguments.split(' ');
        let done = Command::new(&self.program).args(words).current_dir(self.folder.path()).output().unwrap();
        assert!(done.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// A self-signed certificate as `openssl req -x509` makes it: NAME.pem and NAME.key.
    fn self_signed(&self, name: &str, more: &str) {
        self.run(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.pem -days 30 {more}"
        ));
    }

    /// A server with this certificate, which answers every path with the content of a file of that name.
    fn serve(&self, name: &str, more: &str) -> (Process, u16) {
        let port = free_port();
        std::fs::create_dir_all(self.path("instance/abc")).unwrap();
        let answer = format!(
            "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{NOTHING}",
            NOTHING.len()
        );
        // -HTTP: the file holds the head of the answer, too
        std::fs::write(self.path("instance/abc/audit-logs"), answer).unwrap();
        let mut command = Command::new(&self.program);
        command.current_dir(self.folder.path());
        command.args(["s_server", "-quiet", "-HTTP", "-naccept", "1000", "-accept", &port.to_string()]);
        command.args(["-cert", &format!("{name}.pem"), "-key", &format!("{name}.key")]);
        command.args(more.split_whitespace());
        let process = Process::start(&mut command);
        until_listening(port);
        (process, port)
    }
}

const LOCALHOST: &str = "-subj /CN=localhost -addext subjectAltName=DNS:localhost";

#[test]
fn through_a_tunnel_a_proxy_sees_nothing_but_the_host() {
    let Some(openssl) = OpenSsl::new() else { return };
    let Some(proxy) = Proxy::start(openssl.folder.path()) else { return };
    std::fs::write(openssl.path("proxy.password"), PASSWORD).unwrap();
    openssl.self_signed("own", LOCALHOST);
    let (_server, port) = openssl.serve("own", "");
    let lines = format!(
        "{}tls: {{ca_file: own.pem}}\nheaders: [{{name: X-Gateway, value: gateway-secret}}]\nuser_agent: tester/1\n",
        proxy.settings()
    );
    let file = config(openssl.folder.path(), &format!("https://localhost:{port}"), &lines);
    let exporter = Running::exporter(&file, &[]);
    until_asked(&exporter);
    let heard = proxy.heard();
    assert!(heard.contains(&format!("CONNECT localhost:{port} HTTP/1.1\r\n")), "{heard}");
    assert!(heard.contains(&credential()) && heard.to_lowercase().contains("user-agent: tester/1"), "{heard}");
    for secret in [TOKEN, "Bearer", "audit-logs", "gateway-secret", "X-Gateway"] {
        assert!(!heard.to_lowercase().contains(&secret.to_lowercase()), "{secret} in {heard}");
    }
}

/// Until the service has answered with a status, whatever that is.
fn until_asked(exporter: &Running) {
    eventually(PATIENCE, || match exporter.scrape().sum("audit_source_requests_total", &[]) {
        answers if answers > 0.0 => Ok(()),
        _ => Err(format!("an answer: {}", last_error(exporter))),
    });
}

/// A proxy that answers every request itself, so that no name has to be resolved.
fn answering_proxy() -> RawService {
    quiet_service()
}

#[test]
fn the_environment_s_proxy_is_used_where_that_is_configured() {
    let folder = tempfile::tempdir().unwrap();
    let (proxy, service) = (answering_proxy(), quiet_service());
    let start = |base_url: &str, lines: &str, no_proxy: &str| {
        let file = config(folder.path(), base_url, &format!("allow_plain_http: true\n{lines}"));
        let mut command = program(&[&format!("--config.file={}", file.display()), "--web.listen-address=127.0.0.1:0"]);
        command
            .env("http_proxy", format!("http://exporter:env-Passw0rd@{}", proxy.address()))
            .env("NO_PROXY", no_proxy);
        Running::started(Process::start(&mut command))
    };
    let exporter = start("http://audit.example", "proxy_from_environment: true", "other.example");
    until_up(&exporter, 1.0);
    let asked = proxy.asked().pop().unwrap();
    assert!(asked.target.starts_with("http://audit.example/instance/abc/"), "{}", asked.target);
    let expected = format!("Basic {}", STANDARD.encode("exporter:env-Passw0rd"));
    assert_eq!(asked.header("proxy-authorization"), Some(expected.as_str()));
    assert!(!exporter.process.printed().contains("env-Passw0rd"));
    drop(exporter);

    // as in Prometheus, loopback is not for a proxy of the environment
    let before = proxy.asked().len();
    let exporter = start(&service.origin(), "proxy_from_environment: true", "");
    until_up(&exporter, 1.0);
    assert_eq!((proxy.asked().len(), service.asked().is_empty()), (before, false));
    assert_eq!(service.asked()[0].header("proxy-authorization"), None);
    drop(exporter);

    for (lines, no_proxy) in [("", ""), ("proxy_from_environment: true", ".example")] {
        let exporter = start("http://audit.example", lines, no_proxy);
        until_up(&exporter, 0.0);
    }
    assert_eq!(proxy.asked().len(), before, "nothing that was not to go through it");
}

#[test]
fn doctor_says_that_the_environment_s_proxy_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let look = |base_url: &str, lines: &str| {
        let file = config(folder.path(), base_url, lines);
        let mut command = program(&["doctor", &format!("--config.file={}", file.display())]);
        command.env("HTTPS_PROXY", "http://user:env-Passw0rd@127.0.0.1:1").env_remove("NO_PROXY");
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let told = "HTTPS_PROXY is set in the environment but not used";
    let said = look("https://audit.invalid", "");
    assert!(said.contains(told) && said.contains("proxy_from_environment"), "{said}");
    assert!(!said.contains("env-Passw0rd"), "{said}");
    for (base_url, lines) in [
        ("http://127.0.0.1:1", ""),
        ("https://audit.invalid", "proxy_from_environment: true"),
        ("https://audit.invalid", "proxy_url: http://127.0.0.1:1"),
    ] {
        let said = look(base_url, lines);
        assert!(!said.contains(told), "{said}");
    }
}

#[test]
fn configured_headers_go_with_every_request_and_follow_their_files() {
    let folder = tempfile::tempdir().unwrap();
    let service = RawService::start(|asked| {
        // a gateway that quotes what it does not like
        let key = asked.header("x-gateway-key").unwrap_or_default().to_owned();
        if key == "new-Gateway-Key" {
            return json(NOTHING);
        }
        let body = format!(
            r#"{{"type":"Bad","message":"the key {key} of {} is unknown"}}"#,
            asked.header("cookie").unwrap_or_default()
        );
        audit_exporter::simulate::raw::answer(403, &[("Content-Type", "application/json")], body)
    })
    .unwrap();
    let key = folder.path().join("gateway.key");
    std::fs::write(&key, "old-Gateway-Key\n").unwrap();
    let lines = "user_agent: tester (a@example.com)\nheaders:\n  - {name: X-Gateway-Key, value_file: gateway.key}\n  - {name: \
                 Cookie, value: session=inline-Secret}";
    let file = config(folder.path(), &service.origin(), lines);
    let exporter = Running::exporter(&file, &["--log.level=debug"]);
    until_up(&exporter, 0.0);
    until_asked(&exporter);
    let asked = service.asked().remove(0);
    assert_eq!(asked.header("x-gateway-key"), Some("old-Gateway-Key"));
    assert_eq!(asked.header("cookie"), Some("session=inline-Secret"));
    assert_eq!(asked.header("user-agent"), Some("tester (a@example.com)"));
    assert_eq!(asked.header("authorization"), Some(format!("Bearer {TOKEN}").as_str()));
    let error = last_error(&exporter);
    assert!(error.contains("is unknown"), "{error}");
    for secret in ["old-Gateway-Key", "inline-Secret"] {
        let shown = format!("{error}{}{}", exporter.process.printed(), exporter.get("/"));
        assert!(!shown.contains(secret), "{shown}");
    }

    std::fs::remove_file(&key).unwrap();
    eventually(PATIENCE, || match last_error(&exporter) {
        error if error.contains("x-gateway-key") && error.contains("gateway.key") => Ok(()),
        error => Err(format!("word of the missing file: {error}")),
    });
    let before = service.asked().len();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert_eq!(service.asked().len(), before, "nothing is sent without it");
    std::fs::write(&key, "new-Gateway-Key").unwrap();
    until_up(&exporter, 1.0);
}

#[test]
#[expect(clippy::too_many_lines, reason = "tables")]
fn check_names_what_a_certificate_or_key_file_is_instead() {
    let Some(openssl) = OpenSsl::new() else { return };
    openssl.self_signed("own", LOCALHOST);
    let own = std::fs::read_to_string(openssl.path("own.pem")).unwrap();
    let key = std::fs::read_to_string(openssl.path("own.key")).unwrap();
    let write = |name: &str, content: &[u8]| std::fs::write(openssl.path(name), content).unwrap();
    for command in [
        "x509 -in own.pem -outform der -out own.der",
        "pkcs12 -export -in own.pem -inkey own.key -out own.p12 -passout pass:x",
        "crl2pkcs7 -nocrl -certfile own.pem -out own.p7b",
        "crl2pkcs7 -nocrl -certfile own.pem -outform der -out own.p7b.der",
        "req -new -key own.key -subj /CN=localhost -out own.csr",
        "req -new -key own.key -subj /CN=localhost -outform der -out own.csr.der",
        "x509 -in own.pem -trustout -out trusted.pem",
        "pkey -in own.key -outform der -out key.der",
        "pkey -in own.key -pubout -out public.pem",
        "pkcs8 -topk8 -in own.key -passout pass:x -out encrypted.key",
        "pkcs8 -topk8 -in own.key -passout pass:x -outform der -out encrypted.der",
        "ec -in own.key -aes256 -passout pass:x -out legacy.key",
        "genrsa -traditional -out rsa.key 2048",
        "genrsa -out weak.key 1024",
        "ecparam -name prime256v1 -out parameters.pem",
    ] {
        openssl.run(command);
    }
    write("bom.pem", format!("\u{feff}{own}").as_bytes());
    let utf16: Vec<u8> = own.encode_utf16().flat_map(u16::to_le_bytes).collect();
    write("utf16.pem", &[b"\xff\xfe", utf16.as_slice()].concat());
    write("words.pem", b"certificates are in the other file\n");
    write("zeros.pem", &[0; 64]);
    write("blank.pem", b"\n \n");
    write("cut.pem", own.split("-----END").next().unwrap().as_bytes());
    write(
        "indented.pem",
        format!("{own}{}", own.replace('\n', "\n  ").replacen("-----BEGIN", "  -----BEGIN", 1)).as_bytes(),
    );
    write("hollow.pem", b"-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n");
    write("both.pem", format!("{key}{own}").as_bytes());
    std::fs::set_permissions(openssl.path("both.pem"), std::fs::Permissions::from_mode(0o600)).unwrap();
    write("windows.pem", own.replace('\n', "\r\n").as_bytes());
    write("bundle.pem", format!("# a comment\n{own}\nmore\n{own}").as_bytes());

    let base = "https://localhost:1";
    let check = |lines: &str| {
        let file = config(openssl.folder.path(), base, lines);
        let done = finish(&["check", &format!("--config.file={}", file.display())]);
        let stderr = done.stderr.replace(&file.display().to_string(), "FILE");
        assert!(!stderr.contains("MI"), "no content: {stderr}");
        (done.code, stderr)
    };
    for (file, is, helps) in [
        ("own.der", "is a certificate in DER", "openssl x509 -inform der"),
        ("own.p12", "is a PKCS#12 file", "openssl pkcs12"),
        ("own.p7b", "is a PKCS#7 bundle", "openssl pkcs7 -print_certs"),
        ("own.p7b.der", "is a PKCS#7 bundle", "openssl pkcs7 -inform der"),
        ("own.csr", "is a request for a certificate (CSR)", ""),
        ("own.csr.der", "is a request for a certificate (CSR)", ""),
        ("trusted.pem", "is a certificate in a form of OpenSSL's own", "openssl x509"),
        ("own.key", "is a private key, where a certificate belongs", ""),
        ("encrypted.key", "is a private key, where a certificate belongs", ""),
        ("key.der", "is a private key in DER, where a certificate belongs", ""),
        ("public.pem", "is a public key", ""),
        ("bom.pem", "begins with a byte order mark (BOM)", "sed"),
        ("utf16.pem", "is UTF-16 text", "iconv"),
        ("words.pem", "holds no certificate", ""),
        ("zeros.pem", "holds no certificate", ""),
        ("blank.pem", "is empty", ""),
        ("cut.pem", "has a damaged section", ""),
        ("indented.pem", "has 2 certificates of which only 1 can be read", "left margin"),
        ("hollow.pem", "has a certificate that is not well formed: number 1", ""),
    ] {
        let (code, said) = check(&format!("tls: {{ca_file: {file}}}"));
        assert_eq!(code, 2, "{file}: {said}");
        assert!(said.starts_with("FILE:10:22: the file of `ca_file` "), "{file}: {said}");
        assert!(said.contains(is) && said.contains(helps), "{file}: {said}");
    }
    for (file, is, helps) in [
        ("encrypted.key", "is a private key with a passphrase", "openssl pkey -in FILE"),
        ("legacy.key", "is a private key with a passphrase", "openssl pkey -in FILE"),
        ("encrypted.der", "is a private key in DER with a passphrase", "openssl pkey -inform der"),
        ("key.der", "is a private key in DER", "openssl pkey -inform der"),
        ("own.p12", "is a PKCS#12 file", "openssl pkcs12"),
        ("own.pem", "is a certificate, where its private key belongs", ""),
        ("own.der", "is a certificate in DER, where its private key belongs", ""),
        ("own.csr", "is a request for a certificate (CSR), where its private key belongs", ""),
        ("public.pem", "is a public key, where the private one belongs", ""),
        ("parameters.pem", "holds the parameters of a key", ""),
        ("weak.key", "is a private key that TLS cannot use", "2048"),
        ("rsa.key", "does not belong to the certificate", ""),
        ("words.pem", "holds no private key", ""),
    ] {
        let (code, said) = check(&format!("tls: {{cert_file: own.pem, key_file: {file}}}"));
        assert_eq!(code, 2, "{file}: {said}");
        assert!(said.starts_with("FILE:10:43: the file of `key_file` "), "{file}: {said}");
        assert!(said.contains(is) && said.contains(helps), "{file}: {said}");
    }
    for lines in [
        "tls: {ca_file: own.pem, cert_file: own.pem, key_file: own.key}",
        "tls: {ca_file: windows.pem}",
        "tls: {ca_file: bundle.pem}",
        "tls: {cert_file: both.pem, key_file: both.pem, ca_file: both.pem}",
    ] {
        let (code, said) = check(lines);
        assert_eq!((code, said.as_str()), (0, ""), "{lines}");
    }
}

#[test]
fn a_certificate_that_is_listed_itself_is_trusted_if_name_date_and_key_are_right() {
    let Some(openssl) = OpenSsl::new() else { return };
    openssl.self_signed("own", LOCALHOST);
    openssl.self_signed("twin", LOCALHOST);
    openssl.self_signed("elsewhere", "-subj /CN=other -addext subjectAltName=DNS:other.example");
    openssl.self_signed("cn", "-subj /CN=localhost");
    openssl.self_signed("no-ca", &format!("{LOCALHOST} -addext basicConstraints=critical,CA:FALSE"));
    openssl.self_signed("client", &format!("{LOCALHOST} -addext extendedKeyUsage=clientAuth"));
    // days in the past are not for `req`, which `x509` has as -1
    std::fs::write(openssl.path("san.cnf"), "subjectAltName=DNS:localhost\nbasicConstraints=CA:TRUE\n").unwrap();
    openssl.run("req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ended.key -subj /CN=localhost -out ended.csr");
    openssl.run("x509 -req -in ended.csr -signkey ended.key -days -1 -extfile san.cnf -out ended.pem");
    std::fs::copy(openssl.path("ended.key"), openssl.path("v1.key")).unwrap();
    openssl.run("x509 -req -in ended.csr -signkey v1.key -days 30 -out v1.pem");
    // an authority, an intermediate one, and what that issued
    openssl.self_signed("root", "-subj /CN=Root");
    let issue = |name: &str, subject: &str, by: &str, extensions: &str| {
        std::fs::write(openssl.path("issue.cnf"), extensions).unwrap();
        openssl.run(&format!(
            "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -subj {subject} -out {name}.csr"
        ));
        openssl.run(&format!("x509 -req -in {name}.csr -CA {by}.pem -CAkey {by}.key -CAcreateserial -days 30 -extfile issue.cnf -out {name}.pem"));
    };
    issue("middle", "/CN=Middle", "root", "basicConstraints=critical,CA:TRUE\n");
    issue("leaf", "/CN=leaf", "middle", "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n");
    issue("authority", "/CN=leaf", "root", "subjectAltName=DNS:localhost\nbasicConstraints=CA:TRUE\n");

    for (served, more, tls, trusted) in [
        ("own", "", "{ca_file: own.pem}", Ok(())),
        ("no-ca", "", "{ca_file: no-ca.pem}", Ok(())),
        ("elsewhere", "", "{ca_file: elsewhere.pem, server_name: other.example}", Ok(())),
        ("leaf", "", "{ca_file: leaf.pem}", Ok(())),
        ("leaf", "", "{ca_file: middle.pem}", Ok(())),
        ("authority", "", "{ca_file: authority.pem}", Ok(())),
        ("authority", "", "{ca_file: root.pem}", Err("CA:TRUE")),
        ("leaf", "-cert_chain middle.pem", "{ca_file: root.pem}", Ok(())),
        ("own", "", "{ca_file: twin.pem}", Err("issued its certificate itself")),
        ("own", "", "{}", Err("issued its certificate itself")),
        ("elsewhere", "", "{ca_file: elsewhere.pem}", Err("is for other hosts")),
        ("cn", "", "{ca_file: cn.pem}", Err("subjectAltName")),
        ("cn", "", "{ca_file: cn.pem, server_name: localhost}", Err("subjectAltName")),
        ("client", "", "{ca_file: client.pem}", Err("serverAuth")),
        ("ended", "", "{ca_file: ended.pem}", Err("renewed")),
        ("v1", "", "{ca_file: v1.pem}", Err("version 1")),
        ("leaf", "", "{ca_file: root.pem}", Err("the whole chain")),
        ("leaf", "-cert_chain middle.pem", "{ca_file: own.pem}", Err("is not trusted here")),
    ] {
        let (_server, port) = openssl.serve(served, more);
        let file = config(openssl.folder.path(), &format!("https://localhost:{port}"), &format!("tls: {tls}"));
        let exporter = Running::exporter(&file, &[]);
        match trusted {
            Ok(()) => until_asked(&exporter),
            Err(helps) => {
                until_up(&exporter, 0.0);
                let error = last_error(&exporter);
                assert!(error.contains(helps), "{served} {tls}: {error}");
                assert!(exporter.scrape().sum("audit_source_errors_total", &["kind=\"tls\""]) > 0.0, "{error}");
                assert_eq!(exporter.scrape().sum("audit_source_requests_total", &[]), 0.0, "{served} {tls}");
            }
        }
        std::fs::remove_dir_all(openssl.path("data")).unwrap();
    }
}

#[test]
fn rotated_certificates_are_used_without_restart_and_bad_ones_are_not() {
    let Some(openssl) = OpenSsl::new() else { return };
    openssl.self_signed("one", LOCALHOST);
    openssl.self_signed("two", LOCALHOST);
    let put = |from: &str, to: &str| {
        // as Kubernetes does: the new file takes the place of the old one
        std::fs::copy(openssl.path(from), openssl.path("new")).unwrap();
        std::fs::rename(openssl.path("new"), openssl.path(to)).unwrap();
    };
    put("one.pem", "ca.pem");
    put("one.pem", "client.pem");
    put("one.key", "client.key");
    // the server asks for a client certificate, and knows the first one only
    let (mut server, port) = openssl.serve("one", "-Verify 1 -verify_return_error -CAfile one.pem");
    let lines = "tls: {ca_file: ca.pem, cert_file: client.pem, key_file: client.key}";
    let file = config(openssl.folder.path(), &format!("https://localhost:{port}"), lines);
    let exporter = Running::exporter(&file, &[]);
    until_asked(&exporter);
    let answers = || exporter.scrape().sum("audit_source_requests_total", &[]);
    let printed = |text: &str| exporter.process.printed().matches(text).count();
    let until_printed = |text: &str, times: usize| {
        eventually(PATIENCE, || {
            if printed(text) >= times { Ok(()) } else { Err(format!("{text}: {}", exporter.process.printed())) }
        });
    };
    // half of a pair: the old pair stays
    put("two.pem", "client.pem");
    until_printed("does not belong to the certificate", 1);
    let before = answers();
    eventually(PATIENCE, || if answers() > before { Ok(()) } else { Err(last_error(&exporter)) });
    // the other half: the new pair is shown, and this server does not know it
    put("two.key", "client.key");
    until_printed("changed certificates and keys are now in use", 1);
    until_up(&exporter, 0.0);
    let error = last_error(&exporter);
    assert!(error.contains("refuses the certificate of tls.cert_file"), "{error}");
    assert!(server.running());
    drop(server);

    // a server that knows the second one, and has it
    let mut command = Command::new(&openssl.program);
    command.current_dir(openssl.folder.path()).args([
        "s_server",
        "-quiet",
        "-HTTP",
        "-Verify",
        "1",
        "-verify_return_error",
    ]);
    command.args(["-CAfile", "two.pem", "-cert", "two.pem", "-key", "two.key", "-accept", &port.to_string()]);
    let _server = eventually(PATIENCE, || {
        let mut process = Process::start(&mut command);
        std::thread::sleep(std::time::Duration::from_millis(300));
        if process.running() { Ok(process) } else { Err(process.printed()) }
    });
    until_up(&exporter, 0.0);
    let before = answers();
    // nonsense in the ca_file leaves the one before in force, and is said once
    std::fs::write(openssl.path("ca.pem"), "nonsense").unwrap();
    until_printed("holds no certificate", 1);
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert_eq!(printed("holds no certificate"), 1);
    assert_eq!(answers(), before, "the first certificate is still the only one that is trusted");
    put("two.pem", "ca.pem");
    eventually(PATIENCE, || if answers() > before { Ok(()) } else { Err(last_error(&exporter)) });
}

#[test]
fn a_machine_without_authorities_says_so_and_serves_loopback() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let places: [(&str, &Path); 3] = [
        ("SSL_CERT_FILE", Path::new("/nonexistent/ca.pem")),
        ("SSL_CERT_FILE", Path::new("/dev/null")),
        ("SSL_CERT_DIR", &empty),
    ];
    for (variable, place) in places {
        let bare = |arguments: &[&str]| {
            let mut command = program(arguments);
            command.env_remove("SSL_CERT_FILE").env_remove("SSL_CERT_DIR").env(variable, place);
            command
        };
        let far = config(folder.path(), "https://audit.example", "");
        let flag = format!("--config.file={}", far.display());
        for arguments in [vec!["check", &flag], vec![flag.as_str(), "--web.listen-address=127.0.0.1:0"]] {
            let done = bare(&arguments).output().unwrap();
            let said = String::from_utf8(done.stderr).unwrap();
            assert_eq!(done.status.code(), Some(2), "{said}");
            assert!(
                said.starts_with(&format!("{}:7:17: this machine has no CA certificates", far.display())),
                "{said}"
            );
            for word in ["ca-certificates", "SSL_CERT_FILE", "tls.ca_file"] {
                assert!(said.contains(word), "{said}");
            }
        }
        let service = quiet_service();
        let near = config(folder.path(), &service.origin(), "");
        let flag = format!("--config.file={}", near.display());
        assert!(bare(&["check", &flag]).status().unwrap().success());
        let exporter = Running::started(Process::start(&mut bare(&[&flag, "--web.listen-address=127.0.0.1:0"])));
        until_up(&exporter, 1.0);
    }
}

#[test]
fn a_proxy_of_the_environment_that_is_none_is_named_without_its_value() {
    let folder = tempfile::tempdir().unwrap();
    let file = config(folder.path(), "https://audit.example", "proxy_from_environment: true");
    let mut command = program(&["check", &format!("--config.file={}", file.display())]);
    command.env("HTTPS_PROXY", "socks5://user:env-Passw0rd@proxy:1080");
    let done = command.output().unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(2), "{said}");
    assert!(said.contains(":10:31: HTTPS_PROXY of the environment is not the address of an HTTP proxy"), "{said}");
    assert!(!said.contains("env-Passw0rd"), "{said}");
}

#[test]
fn a_proxy_that_repeats_its_password_does_not_bring_it_to_light() {
    let folder = tempfile::tempdir().unwrap();
    let proxy = RawService::start(|asked| {
        let sent = asked.header("proxy-authorization").unwrap_or_default().to_owned();
        let body = format!(r#"{{"type":"Denied","message":"{sent} is {PASSWORD}"}}"#);
        audit_exporter::simulate::raw::answer(403, &[("Content-Type", "application/json")], body)
    })
    .unwrap();
    let lines = format!(
        "allow_plain_http: true\nproxy_url: {}\nproxy_username: e\nproxy_password: {PASSWORD}\n",
        proxy.origin()
    );
    let file = config(folder.path(), "http://audit.example", &lines);
    let exporter = Running::exporter(&file, &["--log.level=debug"]);
    until_asked(&exporter);
    let error = last_error(&exporter);
    assert!(error.contains("Denied"), "{error}");
    let sent = STANDARD.encode(format!("e:{PASSWORD}"));
    assert!(proxy.asked()[0].header("proxy-authorization").unwrap().contains(&sent));
    for secret in [PASSWORD, &sent] {
        let shown = format!("{error}{}{}", exporter.process.printed(), exporter.get("/"));
        assert!(!shown.contains(secret), "{shown}");
    }
}
