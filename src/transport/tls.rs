//! The TLS settings of a client: trusted authorities, client certificate, expected name.
//!
//! Promises: a service's certificate is in date and carries the name asked for, and comes from a trusted
//! authority or stands itself in `tls.ca_file`; the handshake is signed with its key. What is refused
//! comes with what helps, as far as the certificate tells.

use std::fmt;
use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{VerifierBuilderError, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};

use super::shared::Shared;
use crate::pem::{self, Unfit};

/// The cryptography of all clients.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));

/// Whom to trust, once for all clients that trust the same: the machine's authorities alone take 0.2 MB.
static TRUST: Shared<Option<[u8; 32]>, Trust> = Shared::new();

/// What to do on a machine that trusts nobody.
const NO_AUTHORITIES: &str = "this machine has no CA certificates: install them (package ca-certificates), let \
                                         SSL_CERT_FILE name a file that exists, or name the service's own authority in \
                                         tls.ca_file";

/// Whether this machine has certificates of authorities to verify a service with.
pub(crate) fn machine_has_authorities() -> bool {
    matches!(trust(None), Ok(trust) if trust.authorities.is_some())
}

/// Why a `ca_file` cannot be used. It displays what follows the file's name; nobody matches on it.
#[derive(Debug, thiserror::Error)]
pub(super) enum TrustError {
    #[error(transparent)]
    Unfit(#[from] Unfit),
    #[error("certificate {number}: {error}")]
    Certificate { number: usize, error: Error },
    #[error(transparent)]
    Verifier(#[from] VerifierBuilderError),
}

/// Who is trusted: those in a `ca_file`, or the machine's.
pub(super) fn trust(ca_file: Option<&[u8]>) -> Result<Arc<Trust>, TrustError> {
    TRUST.get(ca_file.map(|file| *blake3::hash(file).as_bytes()), || {
        let Some(file) = ca_file else {
            let machine = rustls_platform_verifier::Verifier::new(Arc::clone(&PROVIDER));
            let authorities = machine.ok().map(|machine| Arc::new(machine) as Arc<dyn ServerCertVerifier>);
            return Ok(Trust { listed: Vec::new(), authorities });
        };
        let listed = pem::certificates(file)?;
        let mut roots = RootCertStore::empty();
        for (index, certificate) in listed.iter().enumerate() {
            let number = index + 1;
            roots.add(certificate.clone()).map_err(|error| TrustError::Certificate { number, error })?;
        }
        let authorities =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&PROVIDER)).build()?;
        Ok(Trust { listed, authorities: Some(authorities) })
    })
}

/// The configuration of a client. `server_name` is the name the service must have where that is not the host of
/// its address; `proxies` are hosts that keep theirs.
pub(super) fn client_config(
    trust: Arc<Trust>,
    identity: Option<CertifiedKey>,
    server_name: Option<&str>,
    proxies: Vec<String>,
) -> Result<ClientConfig, InvalidDnsNameError> {
    let name = server_name.map(|name| ServerName::try_from(name.to_owned())).transpose()?;
    let builder = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_safe_default_protocol_versions()
        .expect("ring has cipher suites for every version that is safe")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { trust, name, proxies }));
    Ok(match identity {
        Some(identity) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity))),
        None => builder.with_no_client_auth(),
    })
}

/// Who is trusted.
#[derive(Debug)]
pub(super) struct Trust {
    /// Certificates that are trusted as they are, as a service's own: `openssl req -x509` makes one that calls itself
    /// an authority, and webpki refuses that as a service's.
    listed: Vec<CertificateDer<'static>>,
    /// `None`: this machine has none.
    authorities: Option<Arc<dyn ServerCertVerifier>>,
}

impl Trust {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        if self.listed.iter().any(|listed| listed == leaf) {
            // also refuses what cannot be parsed
            let parsed = ParsedCertificate::try_from(leaf)?;
            let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| CertificateError::BadEncoding)?;
            pem::fit_for(|usage| usage.server_auth, &leaf, now)?;
            return verify_server_name(&parsed, name);
        }
        match &self.authorities {
            Some(authorities) => authorities.verify_server_cert(leaf, chain, name, &[], now).map(|_| ()),
            None => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    /// What helps against `error`, as far as the certificate tells.
    fn remedy(&self, error: &Error, leaf: &CertificateDer<'_>, chain: &[CertificateDer<'_>]) -> Option<&'static str> {
        use CertificateError as Bad;
        let Error::InvalidCertificate(error) = error else { return None };
        if self.authorities.is_none() {
            return Some(NO_AUTHORITIES);
        }
        let (_, leaf) = X509Certificate::from_der(leaf).ok()?;
        if leaf.version() != X509Version::V3 {
            return Some(
                "the service's certificate is of X.509 version 1, which says neither its host nor its purpose: have it \
                 issued again as version 3 with a subjectAltName",
            );
        }
        match error {
            Bad::NotValidForName | Bad::NotValidForNameContext { .. } => Some(if names_a_host(&leaf) {
                "the service's certificate is for other hosts: correct the address, or set tls.server_name to a name in it"
            } else {
                "the service's certificate names its host in the common name alone, which is no longer looked at: have it \
                 issued again with a subjectAltName"
            }),
            Bad::UnknownIssuer | Bad::Other(_) if leaf.issuer() == leaf.subject() => Some(
                "the service issued its certificate itself: if its operator confirms the fingerprint, put this certificate \
                 into the file of tls.ca_file",
            ),
            Bad::Other(_) if leaf.is_ca() => Some(
                "the service's certificate is that of an authority (CA:TRUE), which is not for a service: put this very \
                 certificate into the file of tls.ca_file, or have it issued again with CA:FALSE",
            ),
            Bad::UnknownIssuer if chain.is_empty() => Some(
                "the service sends its certificate without the one of the authority that issued it, and that is not known \
                 here: have its operator configure the whole chain (fullchain), or put the authority's certificate into \
                 the file of tls.ca_file",
            ),
            Bad::UnknownIssuer => Some(
                "the authority that the service's certificate comes from is not trusted here: put its certificate into the \
                 file of tls.ca_file",
            ),
            Bad::InvalidPurpose | Bad::InvalidPurposeContext { .. } => Some(
                "the service's certificate is not meant for a server: have it issued again with the extended key usage \
                 serverAuth",
            ),
            Bad::UnsupportedSignatureAlgorithmContext { .. }
            | Bad::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => Some(
                "the service's certificate is signed in a way that is no longer safe, such as SHA-1: have it issued again \
                 with SHA-256",
            ),
            _ => None,
        }
    }
}

/// Whether the certificate names a host where names are looked for.
fn names_a_host(leaf: &X509Certificate<'_>) -> bool {
    let names = leaf.subject_alternative_name().ok().flatten();
    names.is_some_and(|names| {
        let host = |name: &GeneralName<'_>| matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_));
        names.value.general_names.iter().any(host)
    })
}

/// A refused certificate, with what helps.
#[derive(Debug)]
pub(super) struct Refused {
    error: CertificateError,
    pub(super) remedy: &'static str,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Refused {}

#[derive(Debug)]
struct Verifier {
    trust: Arc<Trust>,
    /// The name the service's certificate must carry, where it is not the address's host.
    name: Option<ServerName<'static>>,
    /// Hosts to which that does not apply.
    proxies: Vec<String>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let is_proxy = self.proxies.iter().any(|proxy| *proxy == server_name.to_str());
        let name = self.name.as_ref().filter(|_| !is_proxy).unwrap_or(server_name);
        match self.trust.verify(end_entity, intermediates, name, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(error) => Err(match (self.trust.remedy(&error, end_entity, intermediates), error) {
                (Some(remedy), Error::InvalidCertificate(error)) => {
                    CertificateError::Other(OtherError(Arc::new(Refused { error, remedy }))).into()
                }
                (_, error) => error,
            }),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &PROVIDER.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &PROVIDER.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_a_service_must_have_is_not_asked_of_a_proxy() {
        let made = |name: &str| rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap().cert;
        let (service, proxy) = (made("inner.example"), made("proxy.example"));
        let trust = trust(Some(format!("{}{}", service.pem(), proxy.pem()).as_bytes())).unwrap();
        let name = Some(ServerName::try_from("inner.example").unwrap());
        let verifier = Verifier { trust, name, proxies: vec!["proxy.example".to_owned()] };
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_001));
        let good = |shown: &CertificateDer<'static>, host: &'static str| {
            verifier.verify_server_cert(shown, &[], &ServerName::try_from(host).unwrap(), &[], now).is_ok()
        };
        assert!(good(service.der(), "outer.example"));
        assert!(good(proxy.der(), "proxy.example"));
        assert!(!good(proxy.der(), "outer.example"));
        assert!(!good(service.der(), "proxy.example"));
    }
}
