//! The promises of the gate, in simulated time.

use super::*;

fn slow(burst: u32) -> Limits {
    Limits {
        requests: 1,
        per: Duration::from_secs(1),
        burst,
        timeout: Duration::from_secs(30),
        max_response_bytes: 1000,
    }
}

#[tokio::test(start_paused = true)]
async fn a_changed_source_begins_with_an_empty_bucket_and_the_pause_it_was_asked_for() {
    let limits = slow(5);
    let gate = Gate::full(&limits);
    gate.change(&limits);
    assert!(gate.remaining() >= 5.0, "the same limits, the same bucket");
    gate.pause(Duration::from_mins(1));
    gate.change(&Limits { burst: 3, ..limits });
    assert!(gate.remaining() < 1.0);
    let stats = SourceStats::default();
    let started = Instant::now();
    gate.pass(&stats).await;
    assert!(started.elapsed() >= Duration::from_mins(1));
}

#[tokio::test(start_paused = true)]
async fn who_already_waits_waits_by_the_changed_limits() {
    let limits = slow(1);
    let gate = Gate::empty(&limits);
    let stats = SourceStats::default();
    let started = Instant::now();
    let slower = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        gate.change(&Limits { per: Duration::from_mins(1), ..limits });
    };
    tokio::join!(gate.pass(&stats), slower);
    assert!(started.elapsed() >= Duration::from_mins(1));
}

#[tokio::test(start_paused = true)]
async fn what_is_shown_as_left_is_what_passes() {
    let bucket = Bucket::full(&slow(5));
    for wait in [0, 1, 400, 700, 1011, 1012, 1013, 2500, 60_000] {
        tokio::time::advance(Duration::from_millis(wait)).await;
        let shown = bucket.remaining();
        let mut passed = 0.0;
        while bucket.take().is_ok() {
            passed += 1.0;
            // the part of a request that has come back counts for the next figure
            if shown - passed >= 1.0 {
                assert!((bucket.remaining() - (shown - passed)).abs() < f64::EPSILON);
            }
        }
        assert!((shown - passed).abs() < f64::EPSILON, "{shown} shown after {wait} ms, {passed} passed");
    }
}
