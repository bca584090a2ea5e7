//! Delivers requests to a service: over the network or, in tests, directly to the simulator.
//!
//! Promises: follows no redirect, takes a proxy from the environment only if the configuration
//! says so, never prints an address with its query.
//!
//! Leaves to others: everything that is policy: budget, retries, deadlines, the cap on bodies
//! (`api.rs`); which client a request is sent with (`transport/clients.rs`).

mod clients;
mod error;
mod shared;
mod tls;
mod tunnel;

use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use http::{HeaderMap, HeaderValue, Request, Response};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use tower::ServiceExt;

use self::clients::Client;
pub use self::error::{ConnectError, PROXY_REMEDY, PROXY_WANTS_CREDENTIALS, TransportError};
pub(crate) use self::tls::machine_has_authorities;
use crate::failure::ErrorKind;
use crate::settings::{Common, Header};

/// A header that holds a secret behind `prefix`: never printed, and wiped when it is dropped.
/// `None` if no header can hold it.
pub fn secret_header(prefix: &str, secret: &SecretString) -> Option<HeaderValue> {
    let secret = secret.expose_secret();
    let mut value = Zeroizing::new(Vec::with_capacity(prefix.len() + secret.len()));
    value.extend_from_slice(prefix.as_bytes());
    value.extend_from_slice(secret.as_bytes());
    let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(value)).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// A body as it arrives.
pub type Body = Pin<Box<dyn Stream<Item = Result<Bytes, TransportError>> + Send>>;

/// Sends one request and returns the answer's head; the body follows as it is read.
#[async_trait]
pub trait Transport: Send + Sync {
    /// Sends `request`; dropping the future or the body ends the exchange.
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError>;

    /// Secrets that every request carries beside its own. No text about an answer may repeat them.
    fn secrets(&self) -> Vec<SecretString> {
        Vec::new()
    }

    /// The same way with connections of its own, for who wants to see one made; `None` where none are shared.
    fn apart(&self) -> Option<Arc<dyn Transport>> {
        None
    }
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
pub struct Network {
    client: Arc<Client>,
    /// Further headers of every request.
    headers: Vec<Header>,
}

/// What helps if the header's value, or the password for the proxy, is in a file that cannot be read.
const UNREADABLE: &str = "make the file readable again; nothing is sent without its content";

impl Network {
    /// A way to the service of a source with these settings. Sources with equal settings share their connections.
    pub fn new(common: &Common) -> Result<Self, ConnectError> {
        Ok(Self { client: Client::shared(common)?, headers: common.headers.clone() })
    }

    fn add_headers(&self, to: &mut HeaderMap) -> Result<(), String> {
        for header in &self.headers {
            let value = header.value.read().map_err(|error| format!("the header {}: {error}", header.name))?;
            let value = secret_header("", &value);
            let bad = || format!("the header {}: its value has characters that a header cannot carry", header.name);
            to.insert(header.name.clone(), value.ok_or_else(bad)?);
        }
        Ok(())
    }
}

#[async_trait]
impl Transport for Network {
    async fn send(&self, mut request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
        let unreadable =
            |message: String| TransportError { kind: ErrorKind::Connect, message, remedy: Some(UNREADABLE) };
        let client = self.client.now().map_err(|error| unreadable(format!("proxy_password: {error}")))?;
        self.add_headers(request.headers_mut()).map_err(unreadable)?;
        let request = request.map(reqwest::Body::from);
        let request = reqwest::Request::try_from(request).map_err(explain)?;
        let to = request.url().clone();
        let response: Response<reqwest::Body> = match client.execute(request).await {
            Ok(response) => response.into(),
            Err(error) => return Err(self.client.explain(explain(error), &to).await),
        };
        Ok(response.map(|body| http_body_util::BodyExt::into_data_stream(body).map_err(explain).boxed() as Body))
    }

    fn secrets(&self) -> Vec<SecretString> {
        let headers = self.headers.iter().filter_map(|header| header.value.read().ok());
        headers.chain(self.client.proxy_secrets()).collect()
    }

    fn apart(&self) -> Option<Arc<dyn Transport>> {
        let client = Arc::new(self.client.apart().ok()?);
        Some(Arc::new(Self { client, headers: self.headers.clone() }))
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
    let kind = if tls.is_some() {
        ErrorKind::Tls
    } else if error.is_timeout() {
        ErrorKind::Timeout
    } else if error.is_decode() {
        ErrorKind::Decode
    } else {
        ErrorKind::Connect
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
        Error::InvalidCertificate(Certificate::Other(other)) => {
            other.0.downcast_ref().map(|refused: &tls::Refused| refused.remedy)
        }
        Error::InvalidCertificate(Certificate::Expired | Certificate::ExpiredContext { .. }) => {
            Some("have the service's certificate renewed; if it is good elsewhere, this machine's clock is wrong")
        }
        Error::InvalidCertificate(Certificate::NotValidYet | Certificate::NotValidYetContext { .. }) => {
            Some("set this machine's clock; if that is right, the service's certificate is not valid yet")
        }
        Error::AlertReceived(Alert::CertificateRequired) => {
            Some("the service wants to see a certificate of ours: name it in tls.cert_file and tls.key_file")
        }
        Error::AlertReceived(
            Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA,
        ) => Some(
            "the service refuses the certificate of tls.cert_file: have it renewed, or issued by an authority that the \
             service trusts; a new file is used at once",
        ),
        Error::AlertReceived(Alert::ProtocolVersion) | Error::PeerIncompatible(_) => {
            Some("the service must speak TLS 1.2 or 1.3: no other is safe")
        }
        Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => {
            Some("no TLS is spoken at that port: correct the address; http:// needs allow_plain_http: true")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Settings with these certificates in `ca_file`.
    fn trusting(folder: &Path, pem: &str) -> Common {
        let ca_file = folder.join("ca.pem");
        std::fs::write(&ca_file, pem).unwrap();
        let tls = crate::settings::Tls { ca_file: Some(ca_file), ..Default::default() };
        Common { tls: Some(tls), ..defaults() }
    }

    fn defaults() -> Common {
        Common::usual(std::time::Duration::from_hours(1))
    }

    /// What is told of a service that answers a connection so.
    async fn told(settings: &Common, serve: impl AsyncFnOnce(tokio::net::TcpStream)) -> TransportError {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
        let request = Request::get(url).body(Bytes::new()).unwrap();
        let network = Network::new(settings).unwrap();
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
            (alert(45), Some("the certificate of tls.cert_file")),
            (alert(48), Some("the certificate of tls.cert_file")),
            (alert(40), None),
        ] {
            let error = told(&defaults(), async |mut stream| {
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
            let folder = tempfile::tempdir().unwrap();
            let error = told(&trusting(folder.path(), &trusted), async |stream| {
                let _ = tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(stream).await;
            })
            .await;
            assert_eq!(error.kind, ErrorKind::Tls, "{error}");
            assert_eq!(error.remedy.map(|text| text.contains("renewed")), remedy.map(|_| true), "{error}");
        }
    }
}
