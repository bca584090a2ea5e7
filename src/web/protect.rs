//! Basic authentication and the headers of every answer, over a whole router.
//!
//! Promises: no answer may be kept, framed, sniffed or read by another site; what the web
//! configuration says about a header wins; without a usable web configuration nothing is answered but 500; with
//! `basic_auth_users` nothing but 401 without a right password. An unknown user takes as long as a
//! known one. bcrypt runs for one request at a time, off the async threads, and only once per
//! user, hash and password while that is remembered; what is remembered is bounded and holds no
//! password.
//!
//! Leaves to others: when the web configuration is read anew (`live.rs`), how a password is compared (`password.rs`).

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use tokio::sync::Semaphore;

use super::live::WebFile;
use super::password;

/// How many right and how many wrong answers are remembered, each.
const REMEMBERED_MAX: usize = 256;

/// The router, answering only whom the web configuration lets in, with its headers on every
/// answer: also on 401, 404 and 405.
pub fn protect(router: axum::Router, web: Arc<WebFile>) -> axum::Router {
    let guard = Arc::new(Guard { web, doorman: Doorman::new() });
    router.layer(axum::middleware::from_fn_with_state(guard, answer))
}

struct Guard {
    web: Arc<WebFile>,
    doorman: Doorman,
}

async fn answer(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let settings = guard.web.settings().await;
    let mut response = match &settings {
        Ok(None) => next.run(request).await,
        Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR),
        Ok(Some(config)) if config.users.is_empty() || guard.doorman.knows(request.headers(), &config.users).await => {
            next.run(request).await
        }
        Ok(Some(_)) => {
            let mut refusal = plain(StatusCode::UNAUTHORIZED);
            refusal.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic"));
            refusal
        }
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    for (name, value) in settings.iter().flatten().flat_map(|config| &config.headers) {
        headers.insert(name, value.clone());
    }
    response
}

/// On every answer that does not say otherwise itself.
const HEADERS: [(HeaderName, &str); 5] = [
    (CACHE_CONTROL, "no-store"),
    (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (REFERRER_POLICY, "no-referrer"),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
];

/// The status in words as the body, as Go's `http.Error` sends it.
fn plain(status: StatusCode) -> Response {
    let text = status.canonical_reason().unwrap_or_default();
    let mut response = Response::new(Body::from(format!("{text}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Compares passwords and remembers the outcome.
struct Doorman {
    /// Known to nobody else, so that what is remembered cannot be searched for passwords and the
    /// cost of an unknown user cannot be told from outside.
    secret: [u8; 32],
    remembered: Mutex<Remembered>,
    /// bcrypt is slow on purpose: one at a time, or guesses would take all processors.
    turn: Semaphore,
}

/// Digests of user, hash and password, oldest first. Kept apart so that guesses cannot push out
/// the right ones.
#[derive(Default)]
struct Remembered {
    right: VecDeque<blake3::Hash>,
    wrong: VecDeque<blake3::Hash>,
}

impl Remembered {
    fn get(&self, digest: blake3::Hash) -> Option<bool> {
        if self.right.contains(&digest) {
            return Some(true);
        }
        self.wrong.contains(&digest).then_some(false)
    }

    fn set(&mut self, digest: blake3::Hash, right: bool) {
        let list = if right { &mut self.right } else { &mut self.wrong };
        if list.len() >= REMEMBERED_MAX {
            list.pop_front();
        }
        list.push_back(digest);
    }
}

impl Doorman {
    fn new() -> Self {
        Self { secret: rand::random(), remembered: Mutex::default(), turn: Semaphore::new(1) }
    }

    /// Whether the request carries the right password of a user.
    async fn knows(&self, headers: &HeaderMap, users: &BTreeMap<String, SecretString>) -> bool {
        let Some((user, secret)) = credentials(headers) else { return false };
        // made for users who exist, too, so that both take as long
        let stand_in = self.stand_in(&user, users);
        let hash = users.get(&user).cloned().unwrap_or(stand_in);
        let digest = self.digest(user.as_bytes(), hash.expose_secret().as_bytes(), secret.expose_secret());
        if let Some(right) = self.recall(digest) {
            return right;
        }
        let Ok(_turn) = self.turn.acquire().await else { return false };
        // a request before this one may have asked the same
        if let Some(right) = self.recall(digest) {
            return right;
        }
        let compared =
            tokio::task::spawn_blocking(move || password::fits(hash.expose_secret(), secret.expose_secret())).await;
        let right = compared.unwrap_or(false);
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).set(digest, right);
        right
    }

    fn recall(&self, digest: blake3::Hash) -> Option<bool> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).get(digest)
    }

    fn digest(&self, user: &[u8], hash: &[u8], password: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.secret);
        for part in [user, hash, password] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.finalize()
    }

    /// A hash for a user who does not exist: as costly as that of some user who does (always the
    /// same one for the same name).
    fn stand_in(&self, user: &str, users: &BTreeMap<String, SecretString>) -> SecretString {
        let pick = self.digest(user.as_bytes(), &[], &[]).as_bytes()[..8]
            .iter()
            .fold(0_usize, |sum, byte| sum.wrapping_mul(256).wrapping_add(usize::from(*byte)));
        let cost =
            users.values().nth(pick % users.len().max(1)).and_then(|hash| password::cost_of(hash.expose_secret()));
        password::hash_of_nothing(cost.unwrap_or(10)).into()
    }
}

/// User and password of `Authorization: Basic`, read as Go's `Request.BasicAuth` reads it.
fn credentials(headers: &HeaderMap) -> Option<(String, SecretSlice<u8>)> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, encoded) = value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let mut decoded = STANDARD.decode(encoded).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let password = decoded.split_off(colon + 1);
    decoded.pop();
    Some((String::from_utf8(decoded).ok()?, SecretSlice::from(password)))
}
