//! Where work runs that would hold up everything else: the disk, unpacking.
//!
//! Promises: on the program's runtime, on a thread that may block; on a runtime of one thread, right
//! here, so that a simulation runs the same way each time.

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::{spawn_blocking, yield_now};

/// Runs `work` to its end, even where the caller stops waiting for it. A panic in `work` propagates to the caller.
pub async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        let done = work();
        yield_now().await;
        return done;
    }
    match spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // the runtime is shutting down, and so is the caller that waits here
            Err(_) => std::future::pending().await,
        },
    }
}
