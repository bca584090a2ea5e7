//! Explains why a proxy refused a tunnel to an `https://` service.
//!
//! Promises: of an error that stems from a refused `CONNECT`, the proxy's status and what to do about it are told.
//! hyper-util, which asks, tells only that there is no way; so the proxy is asked once more, by hand.
//!
//! Leaves to others: which proxy, and who we are there (`transport.rs`).

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::Url;

use super::error::{PROXY_REMEDY, PROXY_WANTS_CREDENTIALS, TransportError};
use crate::failure::ErrorKind;

/// How long the proxy has to say it again.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A status line is not longer.
const STATUS_LINE_MAX: u64 = 1024;

const REFUSED_REMEDY: &str = "have the proxy let us through to this host and port, or reach the host without it";

/// The `error`, or what the proxy says if it was the proxy that refused. `login` is the user and password it was shown.
pub(super) async fn explain(
    error: TransportError,
    proxy: &Url,
    login: Option<(&str, &SecretString)>,
    to: &Url,
) -> TransportError {
    if !error.message.contains("tunnel error") {
        return error;
    }
    let shown = proxy.origin().ascii_serialization();
    if error.message.contains("proxy authorization required") {
        let message = format!("status 407 of {shown}: {PROXY_WANTS_CREDENTIALS}");
        return TransportError { kind: ErrorKind::Auth, message, remedy: Some(PROXY_REMEDY) };
    }
    if !error.message.contains("unsuccessful") {
        return error;
    }
    let (host, port) = (to.host_str().unwrap_or_default(), to.port_or_known_default().unwrap_or(443));
    let status = tokio::time::timeout(TIMEOUT, ask(proxy, login, &format!("{host}:{port}"))).await.ok().flatten();
    let Some(status) = status.filter(|status| *status != 200) else {
        return TransportError { remedy: Some(REFUSED_REMEDY), ..error };
    };
    let message = format!("status {status} of the proxy {shown}: it does not connect us to {host}:{port}");
    TransportError { kind: error.kind, message, remedy: Some(REFUSED_REMEDY) }
}

/// The status with which a proxy answers `CONNECT`; `None` if it speaks no plain HTTP/1.
async fn ask(proxy: &Url, login: Option<(&str, &SecretString)>, to: &str) -> Option<u16> {
    if proxy.scheme() != "http" {
        return None;
    }
    let mut stream = TcpStream::connect(&*proxy.socket_addrs(|| None).ok()?).await.ok()?;
    let authorization = Zeroizing::new(login.map_or_else(String::new, |(user, password)| {
        let both = Zeroizing::new(format!("{user}:{}", password.expose_secret()));
        format!("Proxy-Authorization: Basic {}\r\n", STANDARD.encode(both.as_bytes()))
    }));
    let request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{}\r\n", *authorization);
    stream.write_all(Zeroizing::new(request).as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    let mut stream = stream.take(STATUS_LINE_MAX);
    while !answer.contains(&b'\n') && stream.read_buf(&mut answer).await.ok()? > 0 {}
    let line = String::from_utf8_lossy(&answer);
    line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Request;

    use super::super::{Network, Transport};
    use super::*;
    use crate::settings::Common;
    use crate::simulate::raw::{RawService, answer};

    async fn told(answer: impl Fn() -> Vec<u8> + Send + Sync + 'static) -> (TransportError, usize) {
        let proxy = RawService::start(move |asked| {
            assert_eq!((asked.method.as_str(), asked.target.as_str()), ("CONNECT", "service.test:443"));
            answer()
        })
        .unwrap();
        let common = Common {
            proxy_url: Some(proxy.origin().parse().unwrap()),
            ..Common::usual(std::time::Duration::from_hours(1))
        };
        let request = Request::get("https://service.test/log?token=hunter2").body(Bytes::new()).unwrap();
        let error = Network::new(&common).unwrap().send(request).await.err().unwrap();
        assert!(!error.message.contains("hunter2"), "{error}");
        (error, proxy.asked().len())
    }

    #[tokio::test]
    async fn what_a_proxy_says_that_opens_no_way_is_told() {
        for status in [302, 403, 404, 500, 502, 503] {
            let (error, asked) =
                told(move || answer(status, &[("Content-Type", "text/html")], "<html>no</html>")).await;
            assert_eq!((error.kind, asked), (ErrorKind::Connect, 2));
            let text = format!("{error}; {}", error.remedy.unwrap());
            assert!(text.contains(&format!("status {status} of the proxy http://127.0.0.1:")), "{text}");
            assert!(text.contains("service.test:443") && text.contains("have the proxy let us through"), "{text}");
        }
        let (error, asked) = told(|| answer(407, &[("Proxy-Authenticate", "Basic")], "")).await;
        assert_eq!((error.kind, asked), (ErrorKind::Auth, 1), "accounts of proxies lock, too");
        assert!(error.message.contains("407") && error.remedy.unwrap().contains("proxy_username"), "{error}");
        for nothing in [Vec::new(), b"SSH-2.0-OpenSSH\r\n".to_vec()] {
            let (error, _) = told(move || nothing.clone()).await;
            assert_eq!(error.kind, ErrorKind::Connect, "{error}");
        }
    }
}
