//! Certificates and private keys in PEM files.
//!
//! Promises: a file that is something else is said to be what it is, with the command that helps, and
//! never with a piece of its content. A certificate that cannot be read is never passed over.
//!
//! Leaves to others: which files there are (`config/read.rs`), what is done with them (`transport/tls.rs`,
//! `web/tls.rs`).

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, crypto};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::ExtendedKeyUsage;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;

/// What a file is instead of what it has to be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{is}; accepted: {accepted}")]
pub(crate) struct Unfit {
    /// Follows "the file".
    pub(crate) is: String,
    /// What would be right, and how to get there.
    pub(crate) accepted: String,
}

/// What a file is to hold.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Certificates,
    Key,
}

impl Wanted {
    fn unfit(self, is: impl Into<String>, helps: &str) -> Unfit {
        let accepted = match self {
            Wanted::Certificates => "PEM certificates (-----BEGIN CERTIFICATE-----)",
            Wanted::Key => "a PEM private key (-----BEGIN PRIVATE KEY-----) without a passphrase",
        };
        let helps = if helps.is_empty() { String::new() } else { format!(": {helps}") };
        Unfit { is: is.into(), accepted: format!("{accepted}{helps}") }
    }
}

/// The certificates of a file, at least one. Each is well formed.
pub(crate) fn certificates(file: &[u8]) -> Result<Vec<CertificateDer<'static>>, Unfit> {
    let wanted = Wanted::Certificates;
    let labels = labels(file, wanted)?;
    let expected = labels.iter().filter(|label| *label == "CERTIFICATE").count();
    if expected == 0 {
        return Err(no_such_section(wanted, &labels));
    }
    let mut read = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(file) {
        let nth = read.len() + 1;
        let certificate = certificate.map_err(|_| {
            wanted.unfit(format!("has a damaged section: certificate {nth}, or the text before it"), "copy it again")
        })?;
        X509Certificate::from_der(&certificate)
            .map_err(|_| wanted.unfit(format!("has a certificate that is not well formed: number {nth}"), ""))?;
        read.push(certificate);
    }
    if read.len() == expected {
        return Ok(read);
    }
    let is = format!("has {expected} certificates of which only {} can be read", read.len());
    Err(wanted.unfit(is, "each line from BEGIN to END begins at the left margin"))
}

/// The private key of a file.
pub(crate) fn private_key(file: &[u8]) -> Result<PrivateKeyDer<'static>, Unfit> {
    let wanted = Wanted::Key;
    let labels = labels(file, wanted)?;
    let plain = ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"];
    let has_key = labels.iter().any(|label| plain.contains(&label.as_str()));
    let legacy = file.windows(LEGACY.len()).any(|part| part == LEGACY);
    if labels.iter().any(|label| label == "ENCRYPTED PRIVATE KEY") && !has_key || has_key && legacy {
        return Err(wanted.unfit(PASSPHRASE, WITHOUT_PASSPHRASE));
    }
    if !has_key {
        return Err(no_such_section(wanted, &labels));
    }
    PrivateKeyDer::from_pem_slice(file)
        .map_err(|_| wanted.unfit("has a private key that is damaged, or does not begin at the left margin", ""))
}

const PASSPHRASE: &str = "is a private key with a passphrase, and nobody can type it in";
const WITHOUT_PASSPHRASE: &str =
    "openssl pkey -in FILE -out NEW removes it; make NEW readable for this user only (chmod 600)";
/// The header of an encrypted key in OpenSSL's older form.
const LEGACY: &[u8] = b"Proc-Type: 4,ENCRYPTED";

/// The labels of the sections of a PEM file; an error where it is no text with such sections.
fn labels(file: &[u8], wanted: Wanted) -> Result<Vec<String>, Unfit> {
    if file.trim_ascii().is_empty() {
        return Err(wanted.unfit("is empty", ""));
    }
    if file.starts_with(b"\xef\xbb\xbf") {
        let helps = "without the mark; sed -i '1s/^\\xEF\\xBB\\xBF//' FILE removes it";
        return Err(wanted.unfit("begins with a byte order mark (BOM), as some editors write it", helps));
    }
    if file.starts_with(b"\xff\xfe") || file.starts_with(b"\xfe\xff") {
        return Err(wanted.unfit("is UTF-16 text", "iconv -f UTF-16 -t ASCII FILE > NEW converts it"));
    }
    let labels: Vec<String> = file
        .split(|byte| matches!(byte, b'\n' | b'\r'))
        .filter_map(|line| {
            let label = std::str::from_utf8(line.trim_ascii().strip_prefix(b"-----BEGIN ")?).ok()?;
            Some(label.trim_end_matches('-').to_owned())
        })
        .collect();
    if !labels.is_empty() {
        return Ok(labels);
    }
    Err(binary(file, wanted).unwrap_or_else(|| {
        let is = match wanted {
            Wanted::Certificates => "holds no certificate",
            Wanted::Key => "holds no private key",
        };
        wanted.unfit(format!("{is}: no line of it says BEGIN"), "")
    }))
}

/// What a PEM file without the wanted section holds instead.
fn no_such_section(wanted: Wanted, labels: &[String]) -> Unfit {
    let has = |part: &str| labels.iter().any(|label| label.contains(part));
    let (is, helps) = match wanted {
        Wanted::Certificates if has("PRIVATE KEY") => ("is a private key, where a certificate belongs", ""),
        Wanted::Certificates if has("REQUEST") => (
            "is a request for a certificate (CSR), which nobody has signed yet",
            "use the certificate that the authority sent back",
        ),
        Wanted::Certificates if has("TRUSTED CERTIFICATE") || has("X509 CERTIFICATE") => {
            ("is a certificate in a form of OpenSSL's own", "openssl x509 -in FILE -out NEW converts it")
        }
        Wanted::Certificates if has("PKCS7") || has("CMS") => {
            ("is a PKCS#7 bundle (.p7b)", "openssl pkcs7 -print_certs -in FILE -out NEW converts it")
        }
        Wanted::Certificates if has("CRL") => ("is a list of revoked certificates (CRL)", ""),
        Wanted::Certificates if has("PUBLIC KEY") => ("is a public key, where a certificate belongs", ""),
        Wanted::Key if has("OPENSSH PRIVATE KEY") => {
            ("is a private key in the form of OpenSSH", "openssl genpkey makes a new one; a key of SSH is not for TLS")
        }
        Wanted::Key if has("PRIVATE KEY") => ("is a private key of a kind that TLS no longer uses", ""),
        Wanted::Key if has("REQUEST") => ("is a request for a certificate (CSR), where its private key belongs", ""),
        Wanted::Key if has("CERTIFICATE") => ("is a certificate, where its private key belongs", ""),
        Wanted::Key if has("PUBLIC KEY") => ("is a public key, where the private one belongs", ""),
        Wanted::Key if has("EC PARAMETERS") => ("holds the parameters of a key and no key", ""),
        Wanted::Certificates => ("holds no certificate", ""),
        Wanted::Key => ("holds no private key", ""),
    };
    wanted.unfit(is, helps)
}

/// What a binary file is; `None` if it is not one of those that are known.
fn binary(file: &[u8], wanted: Wanted) -> Option<Unfit> {
    const JAVA: &[u8] = b"\xfe\xed\xfe\xed";
    const PKCS7: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07";
    /// PBES2 of PKCS#5, and the older ones of PKCS#5 and PKCS#12.
    const ENCRYPTION: [&[u8]; 2] = [b"\x2a\x86\x48\x86\xf7\x0d\x01\x05", b"\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x01"];
    if file.starts_with(JAVA) {
        let helps = "keytool -importkeystore -srckeystore FILE -destkeystore NEW -deststoretype pkcs12, then \
                     openssl pkcs12 converts that";
        return Some(wanted.unfit("is a keystore of Java (JKS)", helps));
    }
    // a sequence, whose length is written in one way or another
    let inner = match file {
        [0x30, length, rest @ ..] => rest.get(usize::from(if *length > 0x80 { length & 0x7f } else { 0 })..)?,
        _ => return None,
    };
    let first = &inner[..inner.len().min(24)];
    let holds = |id: &[u8]| first.windows(id.len()).any(|part| part == id);
    let (is, helps) = if inner.starts_with(b"\x02\x01\x03") {
        let helps = match wanted {
            Wanted::Certificates => "openssl pkcs12 -in FILE -nokeys -out NEW converts it",
            Wanted::Key => "openssl pkcs12 -in FILE -nocerts -nodes -out NEW converts it (chmod 600)",
        };
        ("is a PKCS#12 file (.p12, .pfx)", helps)
    } else if inner.starts_with(b"\x02\x01\x00") || inner.starts_with(b"\x02\x01\x01") {
        match wanted {
            Wanted::Key => {
                ("is a private key in DER, the binary form", "openssl pkey -inform der -in FILE -out NEW converts it")
            }
            Wanted::Certificates => ("is a private key in DER, where a certificate belongs", ""),
        }
    } else if inner.starts_with(PKCS7) {
        ("is a PKCS#7 bundle (.p7b) in DER", "openssl pkcs7 -inform der -print_certs -in FILE -out NEW converts it")
    } else if ENCRYPTION.iter().any(|id| holds(id)) {
        (
            "is a private key in DER with a passphrase",
            "openssl pkey -inform der -in FILE -out NEW converts it (chmod 600)",
        )
    } else if X509Certificate::from_der(file).is_ok() {
        match wanted {
            Wanted::Certificates => {
                ("is a certificate in DER, the binary form", "openssl x509 -inform der -in FILE -out NEW converts it")
            }
            Wanted::Key => ("is a certificate in DER, where its private key belongs", ""),
        }
    } else if X509CertificationRequest::from_der(file).is_ok() {
        ("is a request for a certificate (CSR) in DER, which nobody has signed yet", "")
    } else if CertificateRevocationList::from_der(file).is_ok() {
        ("is a list of revoked certificates (CRL) in DER", "")
    } else {
        ("is binary", "")
    };
    Some(wanted.unfit(is, helps))
}

/// Why a certificate and a key cannot be shown together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoPair {
    /// The first certificate cannot be read.
    #[error("is not well formed")]
    Certificate,
    /// The key is of a kind or size that is not used.
    #[error(
        "is a private key that TLS cannot use; accepted: RSA of 2048 bits or more, ECDSA on P-256 or P-384, Ed25519"
    )]
    Kind,
    /// The key is that of another certificate.
    #[error(
        "does not belong to the certificate; accepted: the key that the first certificate of `cert_file` was issued for"
    )]
    Apart,
}

/// A chain whose first certificate belongs to `key`.
pub(crate) fn pair(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<CertifiedKey, NoPair> {
    let key = crypto::ring::default_provider().key_provider.load_private_key(key).map_err(|_| NoPair::Kind)?;
    let leaf = chain.first().ok_or(NoPair::Certificate)?;
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| NoPair::Certificate)?;
    // compared here and not by rustls, which would refuse X.509 version 1 along the way
    if key.public_key().is_some_and(|public| public.as_ref() != leaf.public_key().raw) {
        return Err(NoPair::Apart);
    }
    Ok(CertifiedKey::new(chain, key))
}

/// A certificate that is trusted by itself: valid at this time, and meant for this purpose unless it says
/// nothing about its purpose.
pub(crate) fn fit_for(
    purpose: impl Fn(&ExtendedKeyUsage<'_>) -> bool,
    leaf: &X509Certificate<'_>,
    now: UnixTime,
) -> Result<(), rustls::Error> {
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if seconds < leaf.validity().not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    if seconds > leaf.validity().not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    let usage = leaf.extended_key_usage().map_err(|_| CertificateError::BadEncoding)?;
    if usage.is_some_and(|usage| !purpose(usage.value) && !usage.value.any) {
        return Err(CertificateError::InvalidPurpose.into());
    }
    Ok(())
}
