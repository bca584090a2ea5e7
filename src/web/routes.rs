//! The pages: `/metrics`, the status page and its JSON, runbooks, health, readiness, reload.
//!
//! Promises: a scrape never causes a request to a service; nothing here waits for a poll.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::{Extension, State};
use axum::http::uri::{Authority, Uri};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::task::{JoinError, spawn_blocking};
use tower_http::compression::CompressionLayer;
use tracing::{error, info};

use super::handover::Token;
use super::listen::Peer;
use super::{runbooks, status_page};
use crate::config::{self, ConfigErrors};
use crate::exporter::{ApplyError, Exporter};
use crate::exposition::negotiate;
use crate::fault::{Panicked, catch_panic_async};
use crate::ledger::Client;

/// What the pages need.
#[derive(Clone)]
pub struct Pages {
    /// The program, once its state is loaded.
    pub exporter: Arc<OnceLock<Arc<Exporter>>>,
    /// The configuration file, if there is one to read again.
    pub config_file: Option<Arc<PathBuf>>,
    /// The folder of the ledger, if that does not come from the file.
    pub storage: Option<PathBuf>,
}

const NOT_READY: (StatusCode, &str) = (
    StatusCode::SERVICE_UNAVAILABLE,
    "audit-exporter is not ready: its ledger cannot be read yet; the log says why.\n",
);

/// Why a reload was refused. The configuration before stays in force.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The program has not begun yet.
    #[error("{}", NOT_READY.1)]
    NotReady,
    /// The configuration did not come from a file.
    #[error("there is no configuration file to read: this is a demo")]
    NoFile,
    /// The file is wrong.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// What it asks for cannot be put in force.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The reload panicked, with these words.
    #[error("a fault in this program: {0}")]
    Panicked(Panicked),
    /// The task that reloads did not come to its end.
    #[error(transparent)]
    Unfinished(#[from] JoinError),
}

/// All pages.
pub fn router(pages: Pages) -> Router {
    Router::new()
        .route("/", get(status))
        .route("/metrics", get(metrics))
        .route("/api/v1/status", get(status_json))
        .route("/runbooks", get(runbooks::to_index))
        .route("/runbooks/", get(runbooks::index))
        .route("/runbooks/{name}", get(runbooks::one))
        .route("/-/healthy", get(async || "audit-exporter is healthy.\n"))
        .route("/-/ready", get(ready))
        .route("/-/reload", post(reload).put(reload).fallback(reload_by_get))
        .fallback(async || (StatusCode::NOT_FOUND, "404 page not found\n"))
        .layer(CompressionLayer::new().gzip(true))
        .with_state(pages)
}

async fn ready(State(pages): State<Pages>) -> Response {
    match pages.exporter.get() {
        Some(_) => "audit-exporter is ready.\n".into_response(),
        None => NOT_READY.into_response(),
    }
}

async fn metrics(
    State(pages): State<Pages>,
    method: Method,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
) -> Response {
    let accept: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let accept = accept.join(", ");
    let format = negotiate(Some(accept.as_str()).filter(|accept| !accept.is_empty()));
    let Some(exporter) = pages.exporter.get() else { return NOT_READY.into_response() };
    let text = |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let client = match peer {
        // who asks for the head alone reads no value
        Some(Extension(Peer(address))) if method == Method::GET => {
            let (agent, timeout) = (text("user-agent"), text("x-prometheus-scrape-timeout-seconds"));
            Client::new(address, agent.as_deref(), timeout.as_deref())
        }
        _ => Client::Other,
    };
    let (body, receipt) = exporter.answer(format, &client).await;
    let vary = HeaderValue::from_static("accept");
    let headers = [(header::CONTENT_TYPE, HeaderValue::from_static(format.content_type())), (header::VARY, vary)];
    let mut response = (headers, body).into_response();
    if method == Method::GET {
        response.extensions_mut().insert(Token::new(receipt));
    }
    response
}

async fn status(State(pages): State<Pages>) -> Response {
    let Some(exporter) = pages.exporter.get() else { return NOT_READY.into_response() };
    let html = status_page::render(&exporter.status());
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    ];
    (headers, html).into_response()
}

async fn status_json(State(pages): State<Pages>) -> Response {
    let Some(exporter) = pages.exporter.get() else { return NOT_READY.into_response() };
    match serde_json::to_vec_pretty(&exporter.status()) {
        Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn reload(State(pages): State<Pages>, uri: Uri, headers: HeaderMap) -> Response {
    if is_from_another_site(&uri, &headers) {
        return (StatusCode::FORBIDDEN, "a page of another site may not request this\n").into_response();
    }
    // a task of its own, because the client may go away
    let reload = tokio::spawn(async move { pages.reload().await }).await;
    match reload.unwrap_or_else(|error| Err(error.into())) {
        Ok(()) => StatusCode::OK.into_response(),
        Err(why) => (StatusCode::INTERNAL_SERVER_ERROR, format!("failed to reload config:\n{why}\n")).into_response(),
    }
}

/// Whether a browser asks, on behalf of a page that is not ours: whoever looks at that page did not
/// mean to. Programs send neither header. What a browser makes of `Host` cannot be checked here: it
/// is whatever name the page was opened by.
fn is_from_another_site(uri: &Uri, headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    if let Some(site) = text("sec-fetch-site") {
        return !matches!(site, "same-origin" | "none");
    }
    let host = text("host").or(uri.authority().map(Authority::as_str)).unwrap_or_default();
    text("origin").is_some_and(|origin| origin.split_once("://").is_none_or(|(_, from)| from != host))
}

async fn reload_by_get() -> Response {
    let allow = (header::ALLOW, "POST, PUT");
    (StatusCode::METHOD_NOT_ALLOWED, [allow], "This endpoint requires a POST request.\n").into_response()
}

impl Pages {
    /// Reads the configuration file again and puts it in force. On an error the configuration before stays.
    pub async fn reload(&self) -> Result<(), ReloadError> {
        let outcome = catch_panic_async(self.try_reload()).await;
        let outcome = outcome.unwrap_or_else(|panic| Err(ReloadError::Panicked(panic)));
        match &outcome {
            Ok(()) => info!("configuration reloaded"),
            Err(why) => {
                if let Some(exporter) = self.exporter.get() {
                    exporter.reload_failed();
                }
                error!(%why, "the new configuration is refused; the previous one stays in force");
            }
        }
        outcome
    }

    async fn try_reload(&self) -> Result<(), ReloadError> {
        let exporter = self.exporter.get().ok_or(ReloadError::NotReady)?;
        let file = self.config_file.clone().ok_or(ReloadError::NoFile)?;
        let path = Arc::clone(&file);
        let mut config = spawn_blocking(move || config::load(&path)).await??;
        config.log_warnings(&file);
        if let Some(storage) = &self.storage {
            config.storage.path.clone_from(storage);
        }
        Ok(exporter.apply(config).await?)
    }
}
