//! HTTP clients, one for all sources that connect in the same way, and up to date with their files.
//!
//! Promises:
//! - Sources with equal settings share the connections, the certificates and the memory they take.
//! - A changed `ca_file`, `cert_file` or `key_file` is used from the next request on, and no connection
//!   from before is used again. Files that cannot be used, or do not belong together (yet), leave the old
//!   ones in force, and the log says so once.
//! - A request whose files did not change costs a look at their times, and no reading.
//!
//! Leaves to others: what TLS makes of the files (`tls.rs`), requests (`transport.rs`).

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, TimeDelta};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};

use super::error::{ConnectError, TransportError};
use super::shared::Shared;
use super::{tls, tunnel};
use crate::clock::Clock;
use crate::pem::{self, NoPair};
use crate::proxy::Proxies;
use crate::settings::fields::{PEM_BYTES_MAX, read_at_most};
use crate::settings::secret::SecretError;
use crate::settings::{Common, Secret};

/// Longest wait for a connection, including its handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections to one host that wait for the next request: enough for hundreds of sources that ask it within seconds.
const IDLE_CONNECTIONS_MAX: usize = 128;
/// A file that changed less than this ago may change again without another time stamp to show for it.
const TIMES_TELL_AFTER: TimeDelta = TimeDelta::seconds(2);
/// How requests introduce themselves, unless `user_agent` says otherwise.
const USER_AGENT: &str = concat!("audit-exporter/", env!("CARGO_PKG_VERSION"));

static CLIENTS: Shared<[u8; 32], Client> = Shared::new();

/// How a source connects: all that makes its connections unfit for another source.
#[derive(Clone)]
struct Way {
    ca_file: Option<PathBuf>,
    /// Certificate and key.
    identity_files: Option<(PathBuf, PathBuf)>,
    server_name: Option<String>,
    proxies: Proxies,
    /// Who we are at the proxy.
    proxy_login: Option<(String, Secret)>,
    user_agent: Option<String>,
}

impl Way {
    fn of(common: &Common) -> Result<Self, ConnectError> {
        let tls = common.tls.clone().unwrap_or_default();
        Ok(Self {
            ca_file: tls.ca_file,
            identity_files: tls.cert_file.zip(tls.key_file),
            server_name: tls.server_name,
            proxies: common.proxies()?,
            proxy_login: common.proxy_username.clone().zip(common.proxy_password.clone()),
            user_agent: common.user_agent.clone(),
        })
    }

    fn files(&self) -> impl Iterator<Item = &Path> {
        let (certificate, key) = self.identity_files.as_ref().map(|(certificate, key)| (certificate, key)).unzip();
        [self.ca_file.as_ref(), certificate, key].into_iter().flatten().map(PathBuf::as_path)
    }

    /// Equal for equal ways.
    fn digest(&self) -> [u8; 32] {
        let path = |path: Option<&PathBuf>| path.map(|path| path.as_os_str().to_owned());
        let (certificate, key) = self.identity_files.as_ref().map(|(certificate, key)| (certificate, key)).unzip();
        let login = self.proxy_login.as_ref().map(|(user, secret)| match secret.path() {
            Some(path) => (user, Some(path), None),
            None => (user, None, secret.read().ok().map(|text| digest(&text))),
        });
        let all = (path(self.ca_file.as_ref()), path(certificate), path(key), &self.server_name, &self.user_agent);
        let text = Zeroizing::new(format!("{all:?} {login:?} {}", self.proxies.secret_text()));
        *blake3::hash(text.as_bytes()).as_bytes()
    }
}

/// A client that keeps up with its files.
pub(super) struct Client {
    way: Way,
    current: Mutex<Current>,
}

struct Current {
    http: reqwest::Client,
    /// Of the files it was made from.
    digest: blake3::Hash,
    /// Of the password it shows to the proxy.
    password: Option<blake3::Hash>,
    /// The files at the latest look.
    looked: Looked,
    /// Why they cannot be used since then, as far as it was said.
    said: Option<String>,
}

/// What shows that files changed, without reading them.
#[derive(PartialEq)]
struct Looked {
    files: Vec<Option<Stamp>>,
    /// Whether the times are old enough for every further change to show in them.
    settled: bool,
}

/// Device, inode, size, and the times of content and inode.
#[derive(Debug, PartialEq)]
struct Stamp(u64, u64, u64, [i64; 4]);

impl Looked {
    fn now(way: &Way) -> Self {
        let stamp = |path: &Path| {
            let meta = std::fs::metadata(path).ok()?;
            let times = [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()];
            Some(Stamp(meta.dev(), meta.ino(), meta.size(), times))
        };
        let files: Vec<_> = way.files().map(stamp).collect();
        let tells_since = Clock::machine().now() - TIMES_TELL_AFTER;
        let old = |Stamp(_, _, _, [changed, _, created, _]): &Stamp| {
            DateTime::from_timestamp((*changed).max(*created), 0).is_some_and(|at| at < tells_since)
        };
        let settled = files.iter().all(|file| file.as_ref().is_none_or(old));
        Self { files, settled }
    }
}

/// The content of the files.
struct Material {
    ca: Option<Vec<u8>>,
    /// Certificate and key.
    identity: Option<(Vec<u8>, Zeroizing<Vec<u8>>)>,
}

impl Material {
    fn read(way: &Way) -> Result<Self, ConnectError> {
        let read = |what, path: &Path| {
            let refuse = |error: std::io::Error| ConnectError::tls(what, path, error);
            read_at_most(PEM_BYTES_MAX, path).map_err(refuse)
        };
        let ca = way.ca_file.as_deref().map(|path| read("tls.ca_file", path)).transpose()?;
        let identity = way.identity_files.as_ref().map(|(certificate, key)| -> Result<_, ConnectError> {
            Ok((read("tls.cert_file", certificate)?, Zeroizing::new(read("tls.key_file", key)?)))
        });
        Ok(Self { ca, identity: identity.transpose()? })
    }

    fn digest(&self) -> blake3::Hash {
        let (certificate, key) = self.identity.as_ref().map(|(cert, key)| (cert.as_slice(), key.as_slice())).unzip();
        let mut hasher = blake3::Hasher::new();
        for part in [self.ca.as_deref(), certificate, key] {
            hasher.update(&part.map_or(u64::MAX, |part| part.len() as u64).to_le_bytes());
            hasher.update(part.unwrap_or_default());
        }
        hasher.finalize()
    }
}

impl Client {
    /// The client of all sources that connect like this one.
    pub(super) fn shared(common: &Common) -> Result<Arc<Self>, ConnectError> {
        let way = Way::of(common)?;
        CLIENTS.get(way.digest(), || Self::make(way))
    }

    /// The same with connections of its own.
    pub(super) fn apart(&self) -> Result<Self, ConnectError> {
        Self::make(self.way.clone())
    }

    fn make(way: Way) -> Result<Self, ConnectError> {
        let looked = Looked::now(&way);
        let material = Material::read(&way)?;
        let password = way.password()?;
        let http = build(&way, &material, password.as_ref())?;
        let password = password.map(|password| digest(&password));
        let current = Current { http, digest: material.digest(), password, looked, said: None };
        Ok(Self { way, current: Mutex::new(current) })
    }

    /// The client for a request now.
    ///
    /// # Errors
    /// The password for the proxy cannot be read.
    pub(super) fn now(&self) -> Result<reqwest::Client, SecretError> {
        let password = self.way.password()?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let looked = Looked::now(&self.way);
        let same_password = password.as_ref().map(digest) == current.password;
        if same_password && looked.settled && looked == current.looked {
            return Ok(current.http.clone());
        }
        current.looked = looked;
        let renewed = Material::read(&self.way).and_then(|material| {
            let digest = material.digest();
            if same_password && digest == current.digest {
                return Ok(None);
            }
            build(&self.way, &material, password.as_ref()).map(|http| Some((http, digest)))
        });
        match renewed {
            Ok(None) => current.said = None,
            Ok(Some((http, digest_of_files))) => {
                if digest_of_files != current.digest {
                    tracing::info!(files = %self.shown_files(), "changed certificates and keys are now in use");
                }
                current.http = http;
                current.digest = digest_of_files;
                current.password = password.as_ref().map(digest);
                current.said = None;
            }
            Err(error) => {
                // what failed may be the disk, which no time stamp shows
                current.looked.settled = false;
                let why = error.to_string();
                if current.said.as_ref() != Some(&why) {
                    tracing::error!(%why, "changed certificates and keys cannot be used; the previous ones stay in force");
                    current.said = Some(why);
                }
            }
        }
        Ok(current.http.clone())
    }

    /// The login that proxies are shown, as it is and as it is sent.
    pub(super) fn proxy_secrets(&self) -> Vec<SecretString> {
        let login = |user: &str, password: &str| {
            let sent = Zeroizing::new(format!("{user}:{password}"));
            [password.into(), STANDARD.encode(sent.as_bytes()).into()]
        };
        let configured = self.way.proxy_login.as_ref().and_then(|(user, password)| {
            let password = password.read().ok()?;
            Some(login(user, password.expose_secret()))
        });
        let of_environment = self.way.proxies.logins().map(|(user, password)| login(user, password));
        configured.into_iter().chain(of_environment).flatten().collect()
    }

    /// The `error` of a request to `to`; in the words of the proxy on the way if it was the proxy that refused.
    pub(super) async fn explain(&self, error: TransportError, to: &url::Url) -> TransportError {
        let Some(proxy) = self.way.proxies.via(to) else { return error };
        let configured = self.way.proxy_login.as_ref();
        let configured = configured.and_then(|(user, password)| Some((user.clone(), password.read().ok()?)));
        // as it is written there: an encoded one would be a wrong one
        let in_address = proxy.password().filter(|password| !password.contains('%'));
        let in_address = in_address.map(|password| (proxy.username().to_owned(), password.into()));
        let login = configured.or(in_address);
        tunnel::explain(error, proxy, login.as_ref().map(|(user, password)| (user.as_str(), password)), to).await
    }

    fn shown_files(&self) -> String {
        self.way.files().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    }
}

impl Way {
    fn password(&self) -> Result<Option<SecretString>, SecretError> {
        self.proxy_login.as_ref().map(|(_, password)| password.read()).transpose()
    }
}

fn digest(secret: &SecretString) -> blake3::Hash {
    blake3::hash(secret.expose_secret().as_bytes())
}

fn build(way: &Way, material: &Material, password: Option<&SecretString>) -> Result<reqwest::Client, ConnectError> {
    let trust = tls::trust(material.ca.as_deref());
    let trust =
        trust.map_err(|why| ConnectError::tls("tls.ca_file", way.ca_file.as_deref().unwrap_or("".as_ref()), why))?;
    let identity = match (&material.identity, &way.identity_files) {
        (Some((certificate, key)), Some((certificate_file, key_file))) => {
            let bad_certificate = |why: String| ConnectError::tls("tls.cert_file", certificate_file, why);
            let bad_key = |why: String| ConnectError::tls("tls.key_file", key_file, why);
            let chain = pem::certificates(certificate).map_err(|unfit| bad_certificate(unfit.to_string()))?;
            let key = pem::private_key(key).map_err(|unfit| bad_key(unfit.to_string()))?;
            let pair = pem::pair(chain, key).map_err(|no_pair| match no_pair {
                NoPair::Certificate => bad_certificate(no_pair.to_string()),
                NoPair::Kind | NoPair::Apart => bad_key(no_pair.to_string()),
            });
            Some(pair?)
        }
        _ => None,
    };
    let proxies = way.proxies.over_tls().map(|host| host.trim_matches(['[', ']']).to_owned()).collect();
    let tls = tls::client_config(trust, identity, way.server_name.as_deref(), proxies)?;
    let mut builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .user_agent(way.user_agent.as_deref().unwrap_or(USER_AGENT))
        .tls_backend_preconfigured(tls);
    if way.proxies.any() {
        let proxies = way.proxies.clone();
        let mut proxy = reqwest::Proxy::custom(move |url| proxies.via(url).cloned());
        if let (Some((user, _)), Some(password)) = (&way.proxy_login, password) {
            proxy = proxy.basic_auth(user, password.expose_secret());
        }
        builder = builder.proxy(proxy);
    }
    builder.build().map_err(|error| ConnectError::Client(error.without_url()))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::settings::Tls;

    fn defaults() -> Common {
        Common::usual(Duration::from_hours(1))
    }

    /// Settings with a certificate in `ca_file`.
    fn trusting(folder: &Path) -> Common {
        write(folder);
        let tls = Tls { ca_file: Some(folder.join("ca.pem")), ..Tls::default() };
        Common { tls: Some(tls), ..defaults() }
    }

    /// Writes another certificate, always of the same length.
    fn write(folder: &Path) {
        let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(folder.join("ca.pem"), format!("{:\n<1000}", other.cert.pem())).unwrap();
    }

    #[test]
    fn sources_that_connect_in_the_same_way_share_a_client_and_no_others_do() {
        let folder = tempfile::tempdir().unwrap();
        let proxied = |password: &str| Common {
            proxy_url: Some(url::Url::parse("http://proxy:1").unwrap()),
            proxy_username: Some("me".to_owned()),
            proxy_password: Some(Secret::text(password)),
            ..defaults()
        };
        let named = |name: &str| Common {
            tls: Some(Tls { server_name: Some(name.to_owned()), ..Tls::default() }),
            ..defaults()
        };
        let ways = [
            defaults(),
            trusting(folder.path()),
            named("a.example"),
            named("b.example"),
            proxied("a"),
            proxied("b"),
            Common { proxy_password: Some(Secret::text("a")), proxy_username: Some("you".to_owned()), ..proxied("") },
            Common { no_proxy: Some(crate::proxy::NoProxy::parse("a.example").unwrap()), ..proxied("a") },
            Common { user_agent: Some("tester".to_owned()), ..defaults() },
        ];
        let clients: Vec<_> = ways.iter().map(|common| Client::shared(common).unwrap()).collect();
        for (n, (one, common)) in clients.iter().zip(&ways).enumerate() {
            let settings_of_another = Common { timeout: Duration::from_secs(7), ..common.clone() };
            assert!(Arc::ptr_eq(one, &Client::shared(&settings_of_another).unwrap()), "{n}");
            for (m, other) in clients.iter().enumerate() {
                assert_eq!(Arc::ptr_eq(one, other), n == m, "{n} {m}");
            }
        }
        // the authorities of this machine are in memory once, whatever else differs
        assert!(Arc::ptr_eq(&tls::trust(None).unwrap(), &tls::trust(None).unwrap()));
    }

    /// A service that keeps its connections, and how many it was asked for.
    fn service() -> (url::Url, Arc<AtomicUsize>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                counted.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    while let Ok(1..) = stream.read(&mut [0; 4096]) {
                        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
                    }
                });
            }
        });
        (url, connections)
    }

    #[tokio::test]
    async fn connections_are_shared_until_a_file_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (url, connections) = service();
        let common = trusting(folder.path());
        let (one, other) = (Client::shared(&common).unwrap(), Client::shared(&common).unwrap());
        let ask = async |client: &Client| {
            client.now().unwrap().get(url.clone()).send().await.unwrap().bytes().await.unwrap();
            connections.load(Ordering::SeqCst)
        };
        assert_eq!(ask(&one).await, 1);
        assert_eq!(ask(&other).await, 1);
        // at once, with the same length: no time stamp has to show it
        write(folder.path());
        assert_eq!(ask(&other).await, 2);
        assert_eq!(ask(&one).await, 2);
        std::fs::write(folder.path().join("ca.pem"), "nonsense").unwrap();
        assert_eq!(ask(&one).await, 2, "the certificates before stay in force");
        std::fs::remove_file(folder.path().join("ca.pem")).unwrap();
        assert_eq!(ask(&one).await, 2);
        write(folder.path());
        assert_eq!(ask(&Client::shared(&common).unwrap()).await, 3);
    }

    #[test]
    fn a_file_that_has_not_changed_for_a_while_is_looked_at_and_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let way = Way::of(&trusting(folder.path())).unwrap();
        let fresh = Looked::now(&way);
        assert!(!fresh.settled, "the next write may leave the same times");
        assert_eq!(fresh.files, Looked::now(&way).files);
        std::thread::sleep(Duration::from_millis(3100));
        let later = Looked::now(&way);
        assert!(later.settled && later.files == fresh.files);
        assert!(Looked::now(&Way::of(&defaults()).unwrap()).settled, "no files, nothing to read");
    }
}
