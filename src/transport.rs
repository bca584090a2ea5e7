//! How a request reaches a service: over the network, or, in tests, straight into the simulator.
//!
//! Promises: follows no redirect, reads no proxy from the environment, never prints an address
//! with its query. Leaves to others everything that is policy: budget, retries, deadlines, the cap
//! on bodies (`api.rs`).

use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use http::{Request, Response};
use secrecy::SecretSlice;
use tower::ServiceExt;

use crate::stats::ErrorKind;

/// A body as it arrives.
pub type Body = Pin<Box<dyn Stream<Item = Result<Bytes, TransportError>> + Send>>;

/// Why no answer, or only part of one, arrived.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct TransportError {
    /// `Connect`, `Tls`, `Timeout` or `Decode` (a body that is not the gzip it says it is, see `encoding.rs`).
    pub kind: ErrorKind,
    /// What happened, without the address.
    pub message: String,
    /// What to do about it, where that is not what to do about others of its kind.
    pub remedy: Option<&'static str>,
}

impl TransportError {
    /// An error like others of its kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), remedy: None }
    }
}

/// Sends one request and returns the answer's head; the body follows as it is read.
#[async_trait]
pub trait Transport: Send + Sync {
    /// Sends `request`; dropping the future or the body ends the exchange.
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError>;
}

/// Requests go into a router of this process: the simulator, in tests.
pub struct InMemory(pub axum::Router);

#[async_trait]
impl Transport for InMemory {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
        let mut request = request.map(axum::body::Body::from);
        if !request.headers().contains_key(http::header::HOST)
            && let Some(host) =
                request.uri().authority().and_then(|host| http::HeaderValue::from_str(host.as_str()).ok())
        {
            request.headers_mut().insert(http::header::HOST, host);
        }
        let response = match self.0.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let broken = |error: axum::Error| TransportError::new(ErrorKind::Connect, error.to_string());
        Ok(response.map(|body| body.into_data_stream().map_err(broken).boxed() as Body))
    }
}

/// Requests go over the network.
pub struct Network(reqwest::Client);

/// What a connection to a service needs beside its address.
#[derive(Debug, Default)]
pub struct NetworkOptions {
    /// PEM certificates to trust instead of the machine's.
    pub ca_pem: Option<Vec<u8>>,
    /// PEM certificate chain and private key to show.
    pub identity_pem: Option<(Vec<u8>, SecretSlice<u8>)>,
    /// The name the service's certificate must carry, where it is not the address's host.
    pub server_name: Option<String>,
    /// The HTTP proxy to go through.
    pub proxy: Option<url::Url>,
}

/// Why a client cannot be made of [`NetworkOptions`].
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A certificate, key or name cannot be used.
    #[error("{what} cannot be used: {why}")]
    Tls {
        /// Which of the options.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Anything else.
    #[error("no HTTP client: {0}")]
    Client(String),
}

/// Longest wait for a connection, including its handshake.
const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

impl Network {
    /// A client with its own connections.
    pub fn new(options: &NetworkOptions) -> Result<Self, NetworkError> {
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_max_idle_per_host(1)
            .user_agent(concat!("audit-exporter/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(tls::client_config(options)?);
        if let Some(proxy) = &options.proxy {
            let proxy = reqwest::Proxy::all(proxy.clone()).map_err(|error| NetworkError::Client(error.to_string()))?;
            builder = builder.proxy(proxy);
        }
        builder.build().map(Self).map_err(|error| NetworkError::Client(error.without_url().to_string()))
    }
}

#[async_trait]
impl Transport for Network {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
        let request = request.map(reqwest::Body::from);
        let request = reqwest::Request::try_from(request).map_err(explain)?;
        let response: Response<reqwest::Body> = self.0.execute(request).await.map_err(explain)?.into();
        Ok(response.map(|body| http_body_util::BodyExt::into_data_stream(body).map_err(explain).boxed() as Body))
    }
}

/// reqwest's error with its causes, but without the address, whose query may hold a secret.
fn explain(error: reqwest::Error) -> TransportError {
    let error = error.without_url();
    let mut message = error.to_string();
    let mut tls = None;
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        tls = tls.or_else(|| tls_error(error));
        let text = error.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        cause = error.source();
    }
    let kind = match () {
        () if tls.is_some() => ErrorKind::Tls,
        () if error.is_timeout() => ErrorKind::Timeout,
        () if error.is_decode() => ErrorKind::Decode,
        () => ErrorKind::Connect,
    };
    TransportError { kind, message, remedy: tls.and_then(remedy) }
}

/// An I/O error shows what it wraps, maybe another one, only when asked.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let wrapped = || tls_error(error.downcast_ref::<std::io::Error>()?.get_ref()?);
    error.downcast_ref().or_else(wrapped)
}

fn remedy(error: &rustls::Error) -> Option<&'static str> {
    use rustls::{AlertDescription as Alert, CertificateError as Certificate, Error};
    match error {
        Error::InvalidCertificate(Certificate::Expired | Certificate::ExpiredContext { .. }) => {
            Some("have the service's certificate renewed; if it is good elsewhere, this machine's clock is wrong")
        }
        Error::InvalidCertificate(Certificate::NotValidYet | Certificate::NotValidYetContext { .. }) => {
            Some("set this machine's clock; if that is right, the service's certificate is not valid yet")
        }
        Error::AlertReceived(Alert::CertificateRequired) => {
            Some("the service wants to see a certificate of ours: name it in tls.cert_file and tls.key_file")
        }
        Error::AlertReceived(Alert::ProtocolVersion) | Error::PeerIncompatible(_) => {
            Some("the service must speak TLS 1.2 or 1.3: no other is safe")
        }
        Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => {
            Some("no TLS is spoken at that port: correct the address; http:// needs allow_plain_http: true")
        }
        _ => None,
    }
}

mod tls {
    //! The TLS side of a client: whom to trust, what to show, which name to expect.

    use std::sync::Arc;

    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::crypto::CryptoProvider;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
    use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
    use secrecy::ExposeSecret;

    use super::{NetworkError, NetworkOptions};

    pub(super) fn client_config(options: &NetworkOptions) -> Result<ClientConfig, NetworkError> {
        let bad = |what, why: String| NetworkError::Tls { what, why };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| bad("TLS", error.to_string()))?;
        let verifier = verifier(options, provider)?;
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let Some((certificates, key)) = &options.identity_pem else {
            return Ok(builder.with_no_client_auth());
        };
        let certificates = CertificateDer::pem_slice_iter(certificates)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| bad("tls.cert_file", error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(key.expose_secret())
            .map_err(|error| bad("tls.key_file", error.to_string()))?;
        builder.with_client_auth_cert(certificates, key).map_err(|error| bad("tls.cert_file", error.to_string()))
    }

    fn verifier(
        options: &NetworkOptions,
        provider: Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ServerCertVerifier>, NetworkError> {
        let bad = |what, why: String| NetworkError::Tls { what, why };
        let trusted: Arc<dyn ServerCertVerifier> = if let Some(pem) = &options.ca_pem {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|error| bad("tls.ca_file", error.to_string()))?;
                roots.add(certificate).map_err(|error| bad("tls.ca_file", error.to_string()))?;
            }
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| bad("tls.ca_file", error.to_string()))?
        } else {
            let verifier = rustls_platform_verifier::Verifier::new(provider);
            Arc::new(verifier.map_err(|error| bad("the machine's certificate store", error.to_string()))?)
        };
        let Some(name) = &options.server_name else { return Ok(trusted) };
        let name = ServerName::try_from(name.clone()).map_err(|error| bad("tls.server_name", error.to_string()))?;
        Ok(Arc::new(Renamed { name, trusted }))
    }

    /// Checks the certificate as `trusted` does, against another name than the address's host.
    #[derive(Debug)]
    struct Renamed {
        name: ServerName<'static>,
        trusted: Arc<dyn ServerCertVerifier>,
    }

    impl ServerCertVerifier for Renamed {
        fn verify_server_cert(
            &self,
            end_entity: &CertificateDer<'_>,
            intermediates: &[CertificateDer<'_>],
            _server_name: &ServerName<'_>,
            ocsp_response: &[u8],
            now: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            self.trusted.verify_server_cert(end_entity, intermediates, &self.name, ocsp_response, now)
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            self.trusted.verify_tls12_signature(message, cert, dss)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            self.trusted.verify_tls13_signature(message, cert, dss)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.trusted.supported_verify_schemes()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn debug_shows_no_private_key() {
        let options = NetworkOptions {
            identity_pem: Some((b"certificate".to_vec(), b"private".to_vec().into())),
            ..NetworkOptions::default()
        };
        let shown = format!("{options:?}");
        // the certificate is shown as its bytes
        assert!(shown.contains("99, 101, 114, 116") && !shown.contains("112, 114, 105, 118"), "{shown}");
    }

    /// What is told of a service that answers a connection so.
    async fn told(options: NetworkOptions, serve: impl AsyncFnOnce(tokio::net::TcpStream)) -> TransportError {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
        let request = Request::get(url).body(Bytes::new()).unwrap();
        let network = Network::new(&options).unwrap();
        let served = async {
            serve(listener.accept().await.unwrap().0).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            answer = network.send(request) => answer.err().unwrap(),
            () = served => unreachable!(),
        }
    }

    #[tokio::test]
    async fn what_is_wrong_with_tls_is_told_with_what_helps() {
        let alert = |description: u8| [21, 3, 3, 0, 2, 2, description].to_vec();
        for (answer, remedy) in [
            (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), Some("no TLS is spoken")),
            (alert(70), Some("TLS 1.2")),
            (alert(116), Some("tls.cert_file")),
            (alert(40), None),
        ] {
            let error = told(NetworkOptions::default(), async |mut stream| {
                use tokio::io::{AsyncReadExt, AsyncWriteExt};
                // closing what was not read would be a reset
                let _ = stream.read(&mut [0; 4096]).await.unwrap();
                stream.write_all(&answer).await.unwrap();
                std::future::pending::<()>().await;
            })
            .await;
            assert_eq!(error.kind, ErrorKind::Tls, "{error}");
            assert_eq!(error.remedy.is_some(), remedy.is_some(), "{error}");
            assert!(
                error.remedy.unwrap_or_default().contains(remedy.unwrap_or_default()),
                "{error}: {:?}",
                error.remedy
            );
        }
    }

    #[tokio::test]
    async fn a_certificate_that_has_ended_is_told_from_one_of_a_stranger() {
        for (year, remedy) in [(2020, Some("renewed")), (2090, None)] {
            let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            let key = rcgen::KeyPair::generate().unwrap();
            let own = params.self_signed(&key).unwrap();
            let stranger = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
            let trusted = if remedy.is_some() { own.pem() } else { stranger.cert.pem() };
            let config =
                rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                    .with_safe_default_protocol_versions()
                    .unwrap()
                    .with_no_client_auth()
                    .with_single_cert(
                        vec![own.der().clone()],
                        rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
                    )
                    .unwrap();
            let options = NetworkOptions { ca_pem: Some(trusted.into_bytes()), ..NetworkOptions::default() };
            let error = told(options, async |stream| {
                let _ = tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(stream).await;
            })
            .await;
            assert_eq!(error.kind, ErrorKind::Tls, "{error}");
            assert_eq!(error.remedy.map(|text| text.contains("renewed")), remedy.map(|_| true), "{error}");
        }
    }
}
