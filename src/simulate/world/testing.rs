//! Helpers for the tests of the simulated services.

use bytes::Bytes;
use tower::ServiceExt;

use super::*;

impl World {
    pub(crate) fn now(&self) -> DateTime<Utc> {
        self.lock().clock.now()
    }
}

fn world(rate: f64, quiet: bool) -> World {
    let noon = "2026-03-04T12:00:00Z".parse().unwrap();
    World::new(Options {
        seed: 7,
        clock: Clock::starting_at(noon),
        history: Duration::from_hours(2),
        day: Duration::from_hours(24),
        rate,
        faults: Faults::default(),
        quiet,
    })
}

/// A world with traffic in which something is wrong.
pub(crate) fn with_fault(flag: &str) -> World {
    let world = with_traffic();
    let mut faults = Faults::default();
    faults.set(flag).unwrap();
    world.set_faults(faults);
    world
}

/// Two hours with traffic, at noon.
pub(crate) fn with_traffic() -> World {
    world(0.05, false)
}

/// A world in which nothing happens by itself.
pub(crate) fn quiet() -> World {
    world(0.0, true)
}

pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Request {
    let mut request = Request::builder().method(method).uri(path).header("host", "sim.example:1234");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body.into()).unwrap()
}

pub(crate) fn get(path: &str, headers: &[(&str, &str)]) -> Request {
    request("GET", path, headers, Body::empty())
}

pub(crate) async fn call(world: &World, request: Request) -> Response {
    world.router().oneshot(request).await.unwrap()
}

pub(crate) async fn bytes(response: Response) -> Bytes {
    axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap()
}

/// The status, and the body where it is JSON.
pub(crate) async fn body(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    let bytes = bytes(response).await;
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}
