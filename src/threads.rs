//! Runs blocking work (the disk, decompression), and work that must not be cancelled halfway.
//!
//! Promises: blocking work runs on a thread for blocking work. On a runtime of one thread it runs in place, so that a
//! simulation is deterministic. [`run_to_end`] finishes its work even if the caller is cancelled.

use std::future::poll_fn;
use std::pin::Pin;

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

/// Runs `work` to its end, even if the caller is cancelled.
///
/// While the caller waits, `work` runs in the caller's task. Spawning a task for it made every commit switch threads twice
/// more, which cost about 10 % of its CPU time.
pub async fn run_to_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    let mut unfinished = Unfinished(Some(Box::pin(work)));
    let done = poll_fn(|context| match &mut unfinished.0 {
        Some(work) => work.as_mut().poll(context),
        None => unreachable!("it is only taken when this is dropped"),
    })
    .await;
    unfinished.0 = None;
    done
}

struct Unfinished<T: Send + 'static>(Option<Pin<Box<dyn Future<Output = T> + Send>>>);

impl<T: Send + 'static> Drop for Unfinished<T> {
    fn drop(&mut self) {
        // it cannot go on without a runtime, nor after a panic
        if let (Some(work), Ok(runtime), false) = (self.0.take(), Handle::try_current(), std::thread::panicking()) {
            runtime.spawn(work);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_is_finished_once_whether_or_not_somebody_waits() {
        let done = Arc::new(AtomicU32::new(0));
        let work = || {
            let done = Arc::clone(&done);
            run_to_end(async move {
                sleep(Duration::from_secs(2)).await;
                done.fetch_add(1, Ordering::Relaxed) + 1
            })
        };
        assert_eq!(work().await, 1);
        assert!(timeout(Duration::from_secs(1), work()).await.is_err());
        assert_eq!(done.load(Ordering::Relaxed), 1, "it is under way");
        sleep(Duration::from_secs(2)).await;
        assert_eq!(done.load(Ordering::Relaxed), 2);
        // work that was never polled does not start
        drop(work());
        sleep(Duration::from_secs(3)).await;
        assert_eq!(done.load(Ordering::Relaxed), 2);
    }
}
