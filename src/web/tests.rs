//! The whole HTTP side over real sockets: TLS, client certificates, rotation, passwords, limits.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::listen::{ListenAddress, bind, serve};
use super::{WebFile, protect};

// ---- certificates ----

struct Authority(CertifiedIssuer<'static, KeyPair>);

struct Issued {
    cert: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(&self, names: &[&str], usage: ExtendedKeyUsagePurpose) -> Issued {
        let params = params(names, usage);
        let key = KeyPair::generate().unwrap();
        Issued { cert: params.signed_by(&key, &self.0).unwrap().pem(), key: key.serialize_pem() }
    }

    fn server(&self) -> Issued {
        self.issue(&["localhost"], ExtendedKeyUsagePurpose::ServerAuth)
    }

    fn client(&self, names: &[&str]) -> Issued {
        self.issue(names, ExtendedKeyUsagePurpose::ClientAuth)
    }
}

fn params(names: &[&str], usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    for name in names {
        let ia5 = || (*name).try_into().unwrap();
        params.subject_alt_names.push(match name.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) if name.contains("://") => SanType::URI(ia5()),
            Err(_) if name.contains('@') => SanType::Rfc822Name(ia5()),
            Err(_) => SanType::DnsName(ia5()),
        });
    }
    params.extended_key_usages = vec![usage];
    params
}

/// As `openssl req -x509` makes it: its own authority.
fn self_signed(names: &[&str], usage: ExtendedKeyUsagePurpose) -> Issued {
    let mut params = params(names, usage);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    Issued { cert: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

fn client_config(trusted: &Authority, own: Option<&Issued>, alpn: &[&str]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.0.der().clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        // put together unseen, so that a test can show a certificate without having its key
        Some(own) => {
            let chain = vec![CertificateDer::from_pem_slice(own.cert.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
            let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key))))
        }
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

// ---- a running server ----

struct Running {
    folder: tempfile::TempDir,
    port: u16,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    /// With this web configuration file (none if empty) and these files beside it.
    async fn start(yaml: &str, files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let web = if yaml.is_empty() {
            WebFile::none()
        } else {
            std::fs::write(folder.path().join("web.yml"), yaml).unwrap();
            WebFile::open(&folder.path().join("web.yml")).unwrap()
        };
        let web = Arc::new(web);
        let slow = || async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            "slow"
        };
        let refused = || Err::<&str, &str>("alice");
        let fault = move || async move { refused().unwrap() };
        let router =
            Router::new().route("/", get(|| async { "hello" })).route("/slow", get(slow)).route("/fault", get(fault));
        let router = protect(router, Arc::clone(&web));
        let listeners = bind(&["127.0.0.1:0".parse().unwrap()]).await.unwrap();
        let port = listeners[0].local_addr().unwrap().port();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(serve(listeners, router, web, shutdown.clone()));
        Self { folder, port, shutdown, task }
    }

    async fn tls(authority: &Authority, extra: &str, files: &[(&str, &str)]) -> Self {
        let server = authority.server();
        let mut all = vec![("cert.pem", server.cert.as_str()), ("key.pem", server.key.as_str())];
        all.extend_from_slice(files);
        Self::start(&format!("tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n{extra}"), &all).await
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).await.unwrap()
    }

    /// The answer to a request in plain HTTP.
    async fn ask(&self, path: &str, credentials: &str) -> String {
        ask(self.connect().await, path, credentials).await.unwrap()
    }

    /// The answer to a request over TLS, or why there is none.
    async fn ask_tls(&self, config: ClientConfig) -> std::io::Result<String> {
        let stream = TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from("localhost").unwrap(), self.connect().await)
            .await?;
        ask(stream, "/", "").await
    }
}

async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    path: &str,
    credentials: &str,
) -> std::io::Result<String> {
    use base64::Engine;
    let authorization = if credentials.is_empty() {
        String::new()
    } else {
        let encoded = base64::engine::general_purpose::STANDARD.encode(credentials);
        format!("Authorization: Basic {encoded}\r\n")
    };
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{authorization}\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

// ---- TLS ----

#[tokio::test]
async fn answers_over_tls_with_http_1_and_http_2() {
    let authority = Authority::new();
    let running = Running::tls(&authority, "", &[]).await;
    let answer = running.ask_tls(client_config(&authority, None, &[])).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
    for (alpn, version) in [(["h2"], http::Version::HTTP_2), (["http/1.1"], http::Version::HTTP_11)] {
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(client_config(&authority, None, &alpn))
            .no_proxy()
            .build()
            .unwrap();
        let response = client.get(format!("https://localhost:{}/", running.port)).send().await.unwrap();
        assert_eq!(response.version(), version);
        assert_eq!(response.text().await.unwrap(), "hello");
    }
}

#[tokio::test]
async fn http_2_can_be_turned_off() {
    let authority = Authority::new();
    let running = Running::tls(&authority, "http_server_config: {http2: false}\n", &[]).await;
    let config = client_config(&authority, None, &["h2", "http/1.1"]);
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector.connect("localhost".try_into().unwrap(), running.connect().await).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
}

#[tokio::test]
async fn versions_are_kept_to() {
    let authority = Authority::new();
    for (extra, version) in [
        ("  max_version: TLS12\n", rustls::ProtocolVersion::TLSv1_2),
        ("  min_version: TLS13\n", rustls::ProtocolVersion::TLSv1_3),
        // suites for TLS 1.2 none of which ring has: TLS 1.3 remains
        ("  cipher_suites: [TLS_RSA_WITH_AES_128_CBC_SHA]\n", rustls::ProtocolVersion::TLSv1_3),
    ] {
        let running = Running::tls(&authority, extra, &[]).await;
        let connector = TlsConnector::from(Arc::new(client_config(&authority, None, &[])));
        let stream = connector.connect("localhost".try_into().unwrap(), running.connect().await).await.unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(version), "{extra}");
    }
    let running = Running::tls(
        &authority,
        "  max_version: TLS12\n  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384]\n",
        &[],
    )
    .await;
    let connector = TlsConnector::from(Arc::new(client_config(&authority, None, &[])));
    let stream = connector.connect("localhost".try_into().unwrap(), running.connect().await).await.unwrap();
    let suite = stream.get_ref().1.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384);
}

#[tokio::test]
async fn client_certificates_are_asked_for_as_go_does() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let ca = authority.0.pem();
    let (known, foreign) = (authority.client(&["a.example"]), stranger.client(&["a.example"]));
    let for_servers = authority.server();
    // none shown, one of ours, one of a stranger, one of ours that is meant for servers
    for (kind, expected) in [
        ("RequestClientCert", [true, true, true, true]),
        ("RequireAnyClientCert", [false, true, true, true]),
        ("RequireClientCert", [false, true, true, true]),
        ("VerifyClientCertIfGiven", [true, true, false, false]),
        ("RequireAndVerifyClientCert", [false, true, false, false]),
    ] {
        let extra = format!("  client_ca_file: ca.pem\n  client_auth_type: {kind}\n");
        let running = Running::tls(&authority, &extra, &[("ca.pem", &ca)]).await;
        for (own, expected) in [None, Some(&known), Some(&foreign), Some(&for_servers)].iter().zip(expected) {
            let answer = running.ask_tls(client_config(&authority, *own, &[])).await;
            assert_eq!(answer.is_ok(), expected, "{kind}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn a_self_signed_certificate_that_is_its_own_ca_is_known() {
    let authority = Authority::new();
    let own = self_signed(&["a.example"], ExtendedKeyUsagePurpose::ClientAuth);
    let not_for_clients = self_signed(&["b.example"], ExtendedKeyUsagePurpose::ServerAuth);
    let other = self_signed(&["a.example"], ExtendedKeyUsagePurpose::ClientAuth);
    let extra = "  client_ca_file: ca.pem\n  client_auth_type: RequireAndVerifyClientCert\n";
    let ca = format!("{}{}", own.cert, not_for_clients.cert);
    let running = Running::tls(&authority, extra, &[("ca.pem", &ca)]).await;
    running.ask_tls(client_config(&authority, Some(&own), &[])).await.unwrap();
    running.ask_tls(client_config(&authority, Some(&not_for_clients), &[])).await.unwrap_err();
    running.ask_tls(client_config(&authority, Some(&other), &[])).await.unwrap_err();
    // the certificate without its key
    let stolen = Issued { cert: own.cert.clone(), key: other.key.clone() };
    running.ask_tls(client_config(&authority, Some(&stolen), &[])).await.unwrap_err();
}

#[tokio::test]
async fn client_names_are_compared_exactly() {
    let authority = Authority::new();
    let ca = authority.0.pem();
    let extra = "  client_ca_file: ca.pem\n  client_auth_type: VerifyClientCertIfGiven\n  client_allowed_sans: \
                 [a.example, 10.1.2.3, '2001:db8::1', ops@a.example, 'spiffe://a/b']\n";
    let running = Running::tls(&authority, extra, &[("ca.pem", &ca)]).await;
    for (names, expected) in [
        (&["a.example"][..], true),
        (&["b.example", "a.example"], true),
        (&["10.1.2.3"], true),
        (&["2001:db8:0::1"], true),
        (&["ops@a.example"], true),
        (&["spiffe://a/b"], true),
        (&["*.example"], false),
        (&["x.a.example"], false),
        (&["10.1.2.4"], false),
        (&["spiffe://a/b/c"], false),
        (&[], false),
    ] {
        let own = authority.client(names);
        let answer = running.ask_tls(client_config(&authority, Some(&own), &[])).await;
        assert_eq!(answer.is_ok(), expected, "{names:?}: {answer:?}");
    }
    running.ask_tls(client_config(&authority, None, &[])).await.expect_err("no certificate, no allowed name");
}

#[tokio::test]
async fn certificates_are_rotated_without_restart() {
    let (old, new) = (Authority::new(), Authority::new());
    let running = Running::tls(&old, "", &[]).await;
    running.ask_tls(client_config(&old, None, &[])).await.unwrap();

    let next = new.server();
    running.write("cert.pem", &next.cert);
    let halfway = running.ask_tls(client_config(&old, None, &[])).await.unwrap_err();
    assert!(halfway.to_string().contains("InternalError"), "new certificate, old key: {halfway}");
    running.write("key.pem", &next.key);
    running.ask_tls(client_config(&new, None, &[])).await.unwrap();
    running.ask_tls(client_config(&old, None, &[])).await.expect_err("the old certificate is gone");

    running.write("web.yml", "tls_server_config: {cert_file: cert.pem, key_file: absent.pem}");
    running.ask_tls(client_config(&new, None, &[])).await.unwrap_err();
    running.write("web.yml", "{}");
    running.ask_tls(client_config(&new, None, &[])).await.expect_err("TLS does not give way to plain HTTP");
    running.write("web.yml", "tls_server_config: {cert_file: cert.pem, key_file: key.pem}");
    running.ask_tls(client_config(&new, None, &[])).await.unwrap();
}

#[tokio::test]
async fn a_client_ca_is_rotated_without_restart() {
    let (authority, next) = (Authority::new(), Authority::new());
    let (ca, next_ca) = (authority.0.pem(), next.0.pem());
    let extra = "  client_ca_file: ca.pem\n  client_auth_type: RequireAndVerifyClientCert\n";
    let running = Running::tls(&authority, extra, &[("ca.pem", &ca)]).await;
    // one client throughout: it would resume its session if it could
    let own = authority.client(&["a.example"]);
    let config = client_config(&authority, Some(&own), &[]);
    running.ask_tls(config.clone()).await.unwrap();
    running.write("ca.pem", &next_ca);
    running.ask_tls(config).await.expect_err("its authority is no longer trusted");
    running.ask_tls(client_config(&authority, Some(&next.client(&["b"])), &[])).await.unwrap();
}

#[tokio::test]
async fn plain_http_on_the_tls_port_is_told_so() {
    let authority = Authority::new();
    let running = Running::tls(&authority, "", &[]).await;
    let answer = running.ask("/", "").await;
    assert_eq!(status(&answer), "400");
    assert!(answer.ends_with("\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"), "{answer}");
}

#[tokio::test]
async fn a_silent_client_stalls_nobody_and_is_cut_off() {
    let authority = Authority::new();
    let running = Running::tls(&authority, "", &[]).await;
    let began = Instant::now();
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(running.connect().await);
    }
    // one that says a little
    silent[0].write_all(&[22, 3, 1]).await.unwrap();
    running.ask_tls(client_config(&authority, None, &[])).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    for mut stream in silent {
        let mut rest = Vec::new();
        let ended = timeout(Duration::from_secs(8), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "still open after {:?}", began.elapsed());
    }
}

// ---- limits ----

#[tokio::test]
async fn a_slow_first_request_is_cut_off_but_a_kept_connection_is_not() {
    let running = Running::start("", &[]).await;
    let mut kept = running.connect().await;
    let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut answer = [0; 1024];
    kept.write_all(request).await.unwrap();
    assert!(kept.read(&mut answer).await.unwrap() > 0);

    let mut slow = running.connect().await;
    let began = Instant::now();
    slow.write_all(b"GET / HTTP/1.1\r\nX-Slow: ").await.unwrap();
    let drip = async {
        // until writing fails or the other side has closed
        while timeout(Duration::from_millis(500), slow.read(&mut [0])).await.is_err() {
            if slow.write_all(b"a").await.is_err() {
                break;
            }
        }
    };
    timeout(Duration::from_secs(13), drip).await.expect("cut off");
    assert!(began.elapsed() > Duration::from_secs(9), "{:?}", began.elapsed());

    kept.write_all(request).await.unwrap();
    assert!(kept.read(&mut answer).await.unwrap() > 0, "kept for the next scrape");
}

#[tokio::test]
async fn a_shutdown_finishes_what_is_under_way_and_nothing_else() {
    let running = Running::start("", &[]).await;
    let idle = running.connect().await;
    let mut under_way = running.connect().await;
    under_way.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let began = Instant::now();
    running.shutdown.cancel();
    let mut answer = String::new();
    under_way.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("slow"), "{answer}");
    running.task.await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(3), "an idle client held it up: {:?}", began.elapsed());
    TcpStream::connect(("127.0.0.1", running.port)).await.unwrap_err();
    drop(idle);
}

/// A client's hello that knows no TLS above 1.`minor`, with all that TLS 1.2 needs.
fn hello(minor: u8) -> Vec<u8> {
    let extensions = [
        &[0, 10, 0, 4, 0, 2, 0, 29][..], // supported_groups: x25519
        &[0, 11, 0, 2, 1, 0],            // ec_point_formats: uncompressed
        &[0, 13, 0, 4, 0, 2, 4, 3],      // signature_algorithms: ecdsa_secp256r1_sha256
        &[0, 23, 0, 0],                  // extended_master_secret
    ]
    .concat();
    let mut hello = vec![3, minor + 1];
    hello.extend([7; 32]); // random
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]); // no session, ECDHE_ECDSA with AES_128_GCM, no compression
    hello.extend([0, u8::try_from(extensions.len()).unwrap()]);
    hello.extend(extensions);
    let length = u8::try_from(hello.len()).unwrap();
    let mut record = vec![22, 3, 1, 0, length + 4, 1, 0, 0, length];
    record.extend(hello);
    record
}

#[tokio::test]
async fn tls_below_1_2_is_refused_even_where_the_file_allows_it() {
    let authority = Authority::new();
    for extra in ["", "  min_version: TLS10\n"] {
        let running = Running::tls(&authority, extra, &[]).await;
        let mut answers = Vec::new();
        for minor in [0, 1, 2] {
            let mut stream = running.connect().await;
            stream.write_all(&hello(minor)).await.unwrap();
            let mut answer = [0; 7];
            stream.read_exact(&mut answer).await.unwrap();
            answers.push((answer[0], [answer[5], answer[6]]));
        }
        // a fatal alert, protocol_version; and the beginning of a handshake
        assert_eq!(answers[..2], [(21, [2, 70]), (21, [2, 70])], "{extra}");
        assert_eq!(answers[2].0, 22, "{extra}");
    }
    let server = authority.server();
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("cert.pem", &server.cert);
    write("key.pem", &server.key);
    write("web.yml", "tls_server_config: {cert_file: cert.pem, key_file: key.pem, max_version: TLS11}");
    let error = WebFile::open(&folder.path().join("web.yml")).unwrap_err().to_string();
    assert!(error.contains("max_version") && error.contains("TLS12 and TLS13 are available"), "{error}");
}

#[tokio::test]
async fn requests_that_are_taken_back_at_once_end_the_connection() {
    let authority = Authority::new();
    let running = Running::tls(&authority, "", &[]).await;
    let connector = TlsConnector::from(Arc::new(client_config(&authority, None, &["h2"])));
    let stream = connector.connect("localhost".try_into().unwrap(), running.connect().await).await.unwrap();
    let (mut from, mut to) = tokio::io::split(stream);
    let flood = tokio::spawn(async move {
        to.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
        for stream in (1..200_000_u32).step_by(2) {
            let [a, b, c, d] = stream.to_be_bytes();
            // GET https://x/ (RFC 7541, static table), and RST_STREAM with CANCEL
            let headers = [0, 0, 6, 1, 5, a, b, c, d, 0x82, 0x87, 0x84, 0x41, 1, b'x'];
            let reset = [0, 0, 4, 3, 0, a, b, c, d, 0, 0, 0, 8];
            to.write_all(&[&headers[..], &reset[..]].concat()).await?;
        }
        Ok::<_, std::io::Error>(())
    });
    let mut answer = Vec::new();
    let ended = timeout(Duration::from_secs(20), from.read_to_end(&mut answer)).await;
    assert!(ended.is_ok(), "still open");
    flood.await.unwrap().expect_err("the flood is cut off");
    // and who asks properly is answered
    running.ask_tls(client_config(&authority, None, &[])).await.unwrap();
}

#[tokio::test]
async fn a_client_has_64_connections_and_the_idlest_makes_room() {
    let running = Running::start("", &[]).await;
    let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut answer = [0; 1024];
    let mut busy = running.connect().await;
    busy.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut kept = running.connect().await;
    let mut silent = Vec::new();
    for _ in 0..61 {
        silent.push(running.connect().await);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    kept.write_all(request).await.unwrap();
    assert!(kept.read(&mut answer).await.unwrap() > 0);
    // the 64th has room, the next two take that of the two that said nothing for longest
    for _ in 0..3 {
        silent.push(running.connect().await);
    }
    for (number, stream) in silent.iter_mut().enumerate() {
        let closed = timeout(Duration::from_millis(if number < 2 { 3000 } else { 20 }), stream.read(&mut answer)).await;
        assert_eq!(closed.is_ok(), number < 2, "{number}: {closed:?}");
    }
    kept.write_all(request).await.unwrap();
    assert!(kept.read(&mut answer).await.unwrap() > 0, "was busy since");
    assert!(busy.read(&mut answer).await.unwrap() > 0, "has a request under way");
}

// ---- passwords and headers ----

/// Of `alice`, for `wonderland`; of `bob`, for a password of 80 bytes of which 72 count.
fn users() -> String {
    let hash = |password: &str| bcrypt::hash(password, 4).unwrap();
    format!("basic_auth_users:\n  alice: {}\n  bob: {}\n", hash("wonderland"), hash(&"b".repeat(80)))
}

#[tokio::test]
async fn only_the_right_password_lets_in() {
    let running = Running::start(&users(), &[]).await;
    let long = "b".repeat(72);
    for (credentials, expected) in [
        ("", "401"),
        ("alice:wonderland", "200"),
        ("alice:wonderland", "200"),
        ("alice:Wonderland", "401"),
        ("alice:Wonderland", "401"),
        ("alice:", "401"),
        ("alice", "401"),
        ("bob:wonderland", "401"),
        (&format!("bob:{long}"), "200"),
        (&format!("bob:{long}and more"), "200"),
        ("carol:wonderland", "401"),
        (":", "401"),
        ("Alice:wonderland", "401"),
    ] {
        let answer = running.ask("/", credentials).await;
        assert_eq!(status(&answer), expected, "{credentials}");
        if expected == "401" {
            assert!(answer.to_ascii_lowercase().contains("\r\nwww-authenticate: basic\r\n"), "{answer}");
            assert!(answer.ends_with("\r\n\r\nUnauthorized\n"), "{answer}");
        }
    }
    // what the router does not know is not shown either
    assert_eq!(status(&running.ask("/absent", "").await), "401");
    assert_eq!(status(&running.ask("/absent", "alice:wonderland").await), "404");
}

#[tokio::test]
async fn bcrypt_runs_once_per_password_and_as_long_for_an_unknown_user() {
    // `fakepassword`, at cost 10
    let hash = "$2y$10$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi";
    let running = Running::start(&format!("basic_auth_users:\n  alice: {hash}\n"), &[]).await;
    let timed = async |credentials: &str| {
        let began = Instant::now();
        let answer = running.ask("/", credentials).await;
        (status(&answer).to_owned(), began.elapsed())
    };
    for (credentials, expected) in
        [("alice:fakepassword", "200"), ("alice:wrong", "401"), ("carol:fakepassword", "401"), ("dora:", "401")]
    {
        let (first, slow) = timed(credentials).await;
        let (second, quick) = timed(credentials).await;
        assert_eq!((first.as_str(), second.as_str()), (expected, expected), "{credentials}");
        assert!(slow > Duration::from_millis(15), "{credentials}: bcrypt was not run: {slow:?}");
        assert!(quick * 3 < slow, "{credentials}: bcrypt was run again: {quick:?} after {slow:?}");
    }
}

#[tokio::test]
async fn a_bad_new_file_is_answered_with_500_and_never_opens() {
    let running = Running::start(&users(), &[]).await;
    assert_eq!(status(&running.ask("/", "").await), "401");
    for bad in ["basic_auth_users: [", "basic_auth_users:\n  alice: plain\n", "users: {}\n"] {
        running.write("web.yml", bad);
        let answer = running.ask("/", "alice:wonderland").await;
        assert_eq!(status(&answer), "500", "{bad}");
        assert!(answer.ends_with("Internal Server Error\n"), "{answer}");
    }
    std::fs::remove_file(running.path("web.yml")).unwrap();
    assert_eq!(status(&running.ask("/", "alice:wonderland").await), "500");
    // a password that was right before is asked for anew: alice has another one now
    let other = bcrypt::hash("looking-glass", 4).unwrap();
    running.write("web.yml", &format!("basic_auth_users:\n  alice: {other}\n"));
    assert_eq!(status(&running.ask("/", "alice:wonderland").await), "401");
    assert_eq!(status(&running.ask("/", "alice:looking-glass").await), "200");
}

#[tokio::test]
async fn configured_headers_are_on_every_answer() {
    let yaml = |frame: &str| {
        format!("{}http_server_config:\n  headers:\n    X-Frame-Options: {frame}\n    X-XSS-Protection: 0\n", users())
    };
    let running = Running::start(&yaml("deny"), &[]).await;
    for (path, credentials) in [("/", "alice:wonderland"), ("/", ""), ("/absent", "alice:wonderland")] {
        let answer = running.ask(path, credentials).await.to_ascii_lowercase();
        assert!(answer.contains("\r\nx-frame-options: deny\r\n"), "{answer}");
        assert!(answer.contains("\r\nx-xss-protection: 0\r\n"), "{answer}");
    }
    running.write("web.yml", &yaml("sameorigin"));
    let answer = running.ask("/", "").await.to_ascii_lowercase();
    assert!(answer.contains("\r\nx-frame-options: sameorigin\r\n"), "{answer}");
}

// ---- listeners ----

#[tokio::test]
async fn all_interfaces_are_both_kinds_of_addresses() {
    let listeners = bind(&[":0".parse().unwrap(), "localhost:0".parse().unwrap()]).await.unwrap();
    let port = listeners[0].local_addr().unwrap().port();
    TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    if Path::new("/proc/net/if_inet6").exists() && listeners[0].local_addr().unwrap().is_ipv6() {
        TcpStream::connect(("::1", port)).await.unwrap();
    }
    assert!(listeners[1].local_addr().unwrap().ip().is_loopback());
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let taken = bind(&["127.0.0.1:0".parse().unwrap()]).await.unwrap();
    let address = taken[0].local_addr().unwrap().to_string();
    let error = bind(&[address.parse::<ListenAddress>().unwrap()]).await.unwrap_err().to_string();
    assert!(error.contains(&address) && error.contains("in use"), "{error}");
}

#[test]
fn listen_addresses_are_read_and_shown() {
    for text in [":10812", "127.0.0.1:0", "[::1]:9100", "[fe80::1%eth0]:9100", "localhost:10812", "0.0.0.0:65535"] {
        assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
    }
    for text in [
        "",
        "10812",
        "::1:9100",
        "[::1]",
        "[::1:9100",
        "[localhost]:1",
        "a:",
        "a:http",
        "a:65536",
        "a:+1",
        "a b:1",
        "http://a:1",
    ] {
        let error = text.parse::<ListenAddress>().unwrap_err().to_string();
        assert!(error.contains(&format!("{text:?}")), "{error}");
    }
}

#[tokio::test]
async fn a_handler_that_panics_is_answered_with_500_and_the_connection_goes_on() {
    let running = Running::start("", &[]).await;
    let mut stream = running.connect().await;
    stream.write_all(b"GET /fault HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut head = vec![0; 1024];
    let read = stream.read(&mut head).await.unwrap();
    let answer = String::from_utf8(head[..read].to_vec()).unwrap();
    assert_eq!(status(&answer), "500");
    assert!(!answer.contains("alice"), "{answer}");
    let answer = ask(stream, "/", "").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
}
