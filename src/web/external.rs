//! The address at which people reach this exporter (`--web.external-url`).
//!
//! Promises: an absolute http or https address without anything that does not belong into a link to a page of ours, and
//! without a `/` at its end, so that a path can be added to it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use url::Url;

/// The address that links begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalUrl(Arc<str>);

/// What is wrong with what was given.
#[derive(Debug, thiserror::Error)]
#[error(
    "{why}; give the full address under which people open the status page, such as https://audit.example.com or https://example.com/audit-exporter"
)]
pub struct BadExternalUrl {
    why: String,
}

impl ExternalUrl {
    /// As it is shown, and put before a path.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

impl FromStr for ExternalUrl {
    type Err = BadExternalUrl;

    fn from_str(text: &str) -> Result<Self, BadExternalUrl> {
        let bad = |why: &str| BadExternalUrl { why: why.to_owned() };
        let url = match Url::parse(text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") => url,
            // `host:port` reads as a scheme, too
            Ok(_) | Err(url::ParseError::RelativeUrlWithoutBase) => {
                return Err(bad("it does not begin with http:// or https://"));
            }
            Err(error) => return Err(BadExternalUrl { why: format!("it is not a URL: {error}") }),
        };
        // browsers take these for an address; who writes it by hand did not mean it
        if !text.split_once(':').is_some_and(|(_, rest)| rest.starts_with("//")) {
            return Err(bad("// is missing after http: or https:"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad("it contains a user or a password, and everyone who can read /metrics would see it"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(bad("nothing may follow its path (? or #)"));
        }
        Ok(Self(url.as_str().trim_end_matches('/').into()))
    }
}

impl fmt::Display for ExternalUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_can_open_is_taken_and_a_path_can_be_added_to_it() {
        for (given, shown) in [
            ("https://audit.example.com", "https://audit.example.com"),
            ("https://audit.example.com/", "https://audit.example.com"),
            ("http://audit.example.com:10812", "http://audit.example.com:10812"),
            ("https://example.com/tools/audit-exporter//", "https://example.com/tools/audit-exporter"),
            ("HTTPS://Audit.Example.COM:443/A", "https://audit.example.com/A"),
            ("http://[2001:db8::1]:10812/", "http://[2001:db8::1]:10812"),
            ("http://bücher.example/", "http://xn--bcher-kva.example"),
        ] {
            assert_eq!(given.parse::<ExternalUrl>().unwrap().to_string(), shown, "{given}");
        }
    }

    #[test]
    fn what_is_no_such_address_is_refused_with_what_is_wrong() {
        for (given, says) in [
            ("", "does not begin with http"),
            ("audit.example.com", "does not begin with http"),
            ("audit.example.com:10812", "does not begin with http"),
            ("localhost:10812", "does not begin with http"),
            ("/audit", "does not begin with http"),
            ("javascript:alert(1)", "does not begin with http"),
            ("ftp://audit.example.com", "does not begin with http"),
            ("https:audit.example.com", "// is missing"),
            ("https://", "is not a URL"),
            ("https://:443", "is not a URL"),
            ("http://audit.example.com:99999", "is not a URL"),
            ("https://audit:secret@audit.example.com", "a user or a password"),
            ("https://audit@audit.example.com", "a user or a password"),
            ("https://audit.example.com/?x=1", "follow its path"),
            ("https://audit.example.com/#top", "follow its path"),
        ] {
            let refused = given.parse::<ExternalUrl>().unwrap_err().to_string();
            assert!(refused.contains(says) && refused.contains("such as https://"), "{given}: {refused}");
            assert!(!refused.contains("secret"), "{refused}");
        }
    }
}
