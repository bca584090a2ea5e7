//! Builds the rustls configuration from `tls_server_config`.
//!
//! Promises: a server that asks for client certificates as Go's crypto/tls does for the same
//! settings, or a stricter one; a clear error where TLS 1.2 and 1.3 with the suites and curves of
//! ring leave nothing of what was asked for.
//!
//! Leaves to others: reading the files (`settings.rs`), connections (`listen.rs`).

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    SupportedCipherSuite, SupportedProtocolVersion, version,
};
use secrecy::ExposeSecret;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::settings::{ClientAuth, Material, TlsSettings, TlsVersion, WebConfigError};
use crate::pem::{self, NoPair};

const CERT: &str = "tls_server_config.cert_file";
const KEY: &str = "tls_server_config.key_file";
const CLIENT_CA: &str = "tls_server_config.client_ca_file";
const VERSIONS: &str = "tls_server_config.min_version, max_version";

/// The certificate chain and key, if they are well formed and belong together.
pub(super) fn certified_key(material: &Material) -> Result<CertifiedKey, WebConfigError> {
    let refuse = |setting, why| WebConfigError::Setting { setting, why };
    let chain = certificates(&material.cert).map_err(|why| refuse(CERT, why))?;
    if chain.is_empty() {
        return Err(refuse(CERT, "holds no PEM certificate".into()));
    }
    let key = PrivateKeyDer::from_pem_slice(material.key.expose_secret())
        .map_err(|_| refuse(KEY, "holds no PEM private key (an encrypted one cannot be used)".into()))?;
    pem::pair(chain, key).map_err(|no_pair| match no_pair {
        NoPair::Certificate => refuse(CERT, "its first certificate is not well formed".into()),
        NoPair::Kind => {
            refuse(KEY, "not usable: RSA of 2048 bits or more, ECDSA on P-256 or P-384, or Ed25519 is needed".into())
        }
        NoPair::Apart => refuse(KEY, "does not belong to the certificate".into()),
    })
}

/// The server for these settings and the present content of their files.
pub(super) fn server_config(
    settings: &TlsSettings,
    material: &Material,
    http2: bool,
) -> Result<ServerConfig, WebConfigError> {
    let certified = certified_key(material)?;
    let (provider, versions) = protocol(settings)?;
    let provider = Arc::new(provider);
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&versions)
        .map_err(|error| WebConfigError::NothingUsable { setting: VERSIONS, why: error.to_string() })?;
    let builder = match ClientRule::of(settings, material, &provider)? {
        Some(rule) => builder.with_client_cert_verifier(Arc::new(rule)),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.ignore_client_order = settings.prefer_server_cipher_suites;
    config.alpn_protocols = if http2 { vec![b"h2".to_vec(), b"http/1.1".to_vec()] } else { vec![b"http/1.1".to_vec()] };
    Ok(config)
}

fn provider() -> CryptoProvider {
    rustls::crypto::ring::default_provider()
}

/// The part of the versions, suites and curves asked for that rustls with ring has.
fn protocol(
    settings: &TlsSettings,
) -> Result<(CryptoProvider, Vec<&'static SupportedProtocolVersion>), WebConfigError> {
    let mut provider = provider();
    if !settings.curve_preferences.is_empty() {
        let wanted = settings.curve_preferences.iter();
        provider.kx_groups = wanted.filter_map(|name| curve(name)).collect();
        if provider.kx_groups.is_empty() {
            let why =
                format!("{}; CurveP256, CurveP384 and X25519 are available", settings.curve_preferences.join(", "));
            return Err(WebConfigError::NothingUsable { setting: "tls_server_config.curve_preferences", why });
        }
    }
    let allowed = settings.min_version..=settings.max_version;
    let mut versions = Vec::new();
    if allowed.contains(&TlsVersion::Tls13) {
        versions.push(&version::TLS13);
    }
    // the list is about TLS 1.2 only: Go, too, leaves the suites of TLS 1.3 as they are
    if !settings.cipher_suites.is_empty() {
        let (tls13, tls12): (Vec<_>, Vec<_>) =
            provider.cipher_suites.into_iter().partition(|suite| suite.tls13().is_some());
        let listed = settings.cipher_suites.iter();
        let listed = listed.filter_map(|name| tls12.iter().copied().find(|suite| go_name(*suite) == *name));
        provider.cipher_suites = tls13.into_iter().chain(listed).collect();
    }
    if allowed.contains(&TlsVersion::Tls12) {
        if provider.cipher_suites.iter().any(|suite| suite.tls13().is_none()) {
            versions.push(&version::TLS12);
        } else if versions.is_empty() {
            let why = "none of the listed ones is available for TLS 1.2, and max_version excludes TLS 1.3; \
                       use TLS_ECDHE_* with AES_128_GCM_SHA256, AES_256_GCM_SHA384 or CHACHA20_POLY1305_SHA256";
            return Err(WebConfigError::NothingUsable { setting: "tls_server_config.cipher_suites", why: why.into() });
        }
    }
    if versions.is_empty() {
        let why =
            format!("from {:?} to {:?}; TLS12 and TLS13 are available", settings.min_version, settings.max_version);
        return Err(WebConfigError::NothingUsable { setting: VERSIONS, why });
    }
    Ok((provider, versions))
}

fn curve(name: &str) -> Option<&'static dyn rustls::crypto::SupportedKxGroup> {
    use rustls::crypto::ring::kx_group;
    match name {
        "CurveP256" => Some(kx_group::SECP256R1),
        "CurveP384" => Some(kx_group::SECP384R1),
        "X25519" => Some(kx_group::X25519),
        // CurveP521: ring has none
        _ => None,
    }
}

/// Go's (and IANA's) name of a TLS 1.2 suite; rustls' differs for TLS 1.3 only.
fn go_name(suite: SupportedCipherSuite) -> String {
    format!("{:?}", suite.suite())
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("not well-formed PEM: {error}"))
}

/// What a client's certificate must fulfil.
#[derive(Debug)]
struct ClientRule {
    mandatory: bool,
    chain: Chain,
    /// One of these must be among the certificate's subject alternative names.
    allowed_sans: Option<Vec<String>>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Where a client's certificate must come from.
#[derive(Debug)]
enum Chain {
    /// From anybody: only that the client holds its key is checked.
    Any,
    /// From nobody: no authority is configured.
    None,
    /// From one of these.
    From { authorities: Vec<CertificateDer<'static>>, verifier: Arc<dyn ClientCertVerifier> },
}

impl ClientRule {
    fn of(
        settings: &TlsSettings,
        material: &Material,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Option<Self>, WebConfigError> {
        let (required, verified) = match settings.client_auth {
            ClientAuth::None => {
                // Go never asks for the certificate then, and silently lets everybody in
                if settings.client_allowed_sans.is_some() {
                    tracing::warn!(
                        "tls_server_config.client_allowed_sans has no effect without client_auth_type; \
                         set it to RequireAndVerifyClientCert"
                    );
                }
                return Ok(None);
            }
            ClientAuth::Request => (false, false),
            ClientAuth::RequireAny => (true, false),
            ClientAuth::VerifyIfGiven => (false, true),
            ClientAuth::RequireAndVerify => (true, true),
        };
        // with a list of names, the toolkit lets nobody in who shows no certificate
        let mandatory = required || settings.client_allowed_sans.is_some();
        let chain = if verified { Chain::from_authorities(material, provider)? } else { Chain::Any };
        if matches!(chain, Chain::None) {
            let why = "client_auth_type verifies client certificates, but there is no client CA to verify them with";
            if mandatory {
                return Err(WebConfigError::NothingUsable { setting: CLIENT_CA, why: why.into() });
            }
            tracing::warn!("{CLIENT_CA}: {why}: clients that send a certificate are refused");
        }
        Ok(Some(Self {
            mandatory,
            chain,
            allowed_sans: settings.client_allowed_sans.clone(),
            algorithms: provider.signature_verification_algorithms,
        }))
    }
}

impl Chain {
    fn from_authorities(material: &Material, provider: &Arc<CryptoProvider>) -> Result<Self, WebConfigError> {
        let refuse = |why| WebConfigError::Setting { setting: CLIENT_CA, why };
        let Some(pem) = &material.client_ca else { return Ok(Chain::None) };
        // what is no certificate is passed over, as Go's AppendCertsFromPEM does
        let authorities: Vec<_> = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect();
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(authorities.iter().cloned());
        if added == 0 {
            return Ok(Chain::None);
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
            .build()
            .map_err(|error| refuse(error.to_string()))?;
        Ok(Chain::From { authorities, verifier })
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        match self {
            Chain::Any => Ok(()),
            Chain::None => Err(CertificateError::UnknownIssuer.into()),
            // a certificate that is listed itself: `openssl req -x509` makes it an authority, which
            // webpki, other than Go, refuses as a client's own
            Chain::From { authorities, .. } if authorities.iter().any(|authority| authority == leaf) => {
                let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| CertificateError::BadEncoding)?;
                pem::fit_for(|usage| usage.client_auth, &leaf, now)
            }
            Chain::From { verifier, .. } => verifier.verify_client_cert(leaf, intermediates, now).map(|_| ()),
        }
    }
}

/// The certificate's DNS names, e-mail addresses, IP addresses and URIs, as text.
fn subject_alternative_names(leaf: &CertificateDer<'_>) -> Result<Vec<String>, CertificateError> {
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| CertificateError::BadEncoding)?;
    let extension = leaf.subject_alternative_name().map_err(|_| CertificateError::BadEncoding)?;
    let Some(extension) = extension else { return Ok(Vec::new()) };
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(text) | GeneralName::RFC822Name(text) | GeneralName::URI(text) => Some((*text).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)).ok().map(|address| address.to_string())
        }
        _ => None,
    };
    Ok(extension.value.general_names.iter().filter_map(text).collect())
}

impl ClientCertVerifier for ClientRule {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        match &self.chain {
            Chain::From { verifier, .. } => verifier.root_hint_subjects(),
            Chain::Any | Chain::None => &[],
        }
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.chain.verify(leaf, intermediates, now)?;
        if let Some(allowed) = &self.allowed_sans {
            let names = subject_alternative_names(leaf)?;
            if !names.iter().any(|name| allowed.contains(name)) {
                return Err(CertificateError::ApplicationVerificationFailure.into());
            }
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
