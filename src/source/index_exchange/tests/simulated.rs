//! Against the simulated service: every row is counted once in the end, and answers that are none count nothing.

use super::*;
use crate::simulate::{Injection, Scenario, ScenarioCall, TruthOf};

#[tokio::test(start_paused = true)]
async fn answers_that_are_no_answers_are_errors_and_count_nothing() {
    for (fault, kind) in [
        ("html", ErrorKind::Decode),
        ("truncated", ErrorKind::Decode),
        ("deep", ErrorKind::Decode),
        ("bomb", ErrorKind::TooLarge),
        ("huge", ErrorKind::TooLarge),
        ("redirect", ErrorKind::Redirect),
        ("forbidden", ErrorKind::Forbidden),
        ("throttle", ErrorKind::Throttled),
    ] {
        let world = world(0.006, &format!("index_exchange:{fault}=1"));
        let mut reader = Reader::simulated(&world).await;
        assert_eq!(reader.read().await.unwrap_err().kind, kind, "{fault}");
        assert_eq!((reader.total(), reader.sink.source.state().facts().feed.is_some()), (0, false), "{fault}");
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_the_service_does_every_row_is_counted_once_in_the_end() {
    let all = "index_exchange:throttle=0.05,error=0.05,truncated=0.05,html=0.03,malformed=0.2,redirect=0.02,\
               unauthorized=0.03,expire_every=9,token_seconds=300";
    for faults in [
        "index_exchange:new_file_ids=false",
        "index_exchange:new_file_ids",
        "index_exchange:single_file_bids",
        "index_exchange:content_encoding",
        "index_exchange:gzip_members",
        "index_exchange:gzip_members,content_encoding",
        all,
    ] {
        let world = world(0.006, faults);
        let mut reader = Reader::simulated(&world).await;
        let from = start() - HOUR * 4;
        for step in 0..24 {
            // the next poll mends what this one could not read
            let _ = reader.read_from(from).await;
            let truth = world.truth_of(&TruthOf { from: Some(from), ..TruthOf::default() });
            assert!(reader.total() <= truth.total(SYSTEM), "{faults}: never too many");
            if step % 8 == 3 {
                let name = Scenario::UpdatedFile;
                let call = ScenarioCall { name, system: None, count: Some(5), at: None, seconds: 0 };
                world.inject(&Injection::Scenario(call));
            }
            tokio::time::advance(Duration::from_mins(15)).await;
        }
        world.set_faults({
            let mut calm = Faults::default();
            calm.set(&format!("index_exchange:new_file_ids={}", faults.contains("new_file_ids"))).unwrap();
            calm
        });
        reader.read_from(from).await.unwrap();
        let truth = world.truth_of(&TruthOf { from: Some(from), ..TruthOf::default() });
        for ((system, category, action, _), rows) in &truth.events {
            if *system == SYSTEM {
                assert_eq!(reader.count(category, action), *rows, "{faults}: {category} {action}");
            }
        }
        assert_eq!(reader.total(), truth.total(SYSTEM), "{faults}");
        assert!(reader.total() > 100, "{faults}: {}", reader.total());
    }
}
