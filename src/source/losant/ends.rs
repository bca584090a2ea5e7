//! Finds the end of a window without trusting the service's own answer about it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::Request;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::api::Limits;
use crate::clock::Clock;
use crate::page::DocumentRecord;
use crate::settings::Secret;
use crate::simulate::{Faults, Options, TruthOf, World, credentials};
use crate::source::Entry as _;
use crate::source::Taken;
use crate::stats::SourceStats;
use crate::transport::InMemory;

/// Status and body.
type Answer = (StatusCode, Value);

/// What is said of a number.
type Said = fn(usize) -> Value;
/// Of what was asked for and the number of the page.
type Length = fn(usize, usize) -> usize;

/// How a service pages.
#[derive(Clone)]
struct Paging {
    events: usize,
    /// `totalCount` of a page of so many events.
    total: Said,
    /// How many of those asked for are on a page of this number.
    length: Length,
    /// `perPage` that is said, of what was asked for.
    said: Said,
    /// Pages follow each other by what was asked for, not by what they hold.
    by_asked: bool,
    /// What comes where no page is left.
    behind: Behind,
    first_page: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Behind {
    Nothing,
    LastPage,
    FirstPage,
    NotFound,
    BadRequest,
}

const HONEST: Paging = Paging {
    events: 1500,
    total: |_| json!(1500),
    length: |asked, _| asked,
    said: |asked| json!(asked),
    by_asked: false,
    behind: Behind::Nothing,
    first_page: 0,
};

impl Paging {
    fn answer(&self, query: &HashMap<String, String>) -> Answer {
        let number = |name: &str| query[name].parse::<usize>().unwrap();
        let (asked, page) = (number("perPage"), number("page").saturating_sub(self.first_page));
        let begin_of = |page: usize| {
            if self.by_asked { page * asked } else { (0..page).map(|before| (self.length)(asked, before)).sum() }
        };
        let last = (0..=self.events).take_while(|page| begin_of(*page) < self.events).last().unwrap_or(0);
        let page = match self.behind {
            Behind::LastPage => page.min(last),
            Behind::FirstPage if page > last => 0,
            Behind::NotFound if page > last => return (StatusCode::NOT_FOUND, json!({})),
            Behind::BadRequest if page > last => return (StatusCode::BAD_REQUEST, json!({})),
            _ => page,
        };
        let begin = begin_of(page).min(self.events);
        let end = (begin + (self.length)(asked, page)).min(self.events);
        let items: Vec<Value> = (begin..end).map(|n| json!({"id": n.to_string()})).collect();
        let mut body = json!({"count": items.len(), "page": page});
        body["totalCount"] = (self.total)(items.len());
        body["perPage"] = (self.said)(asked);
        body["items"] = items.into();
        (StatusCode::OK, body)
    }
}

/// What was counted, how many requests that took, and how it ended.
struct Done {
    counted: usize,
    requests: usize,
    result: Result<(), Failure>,
    reported: Vec<ErrorKind>,
}

#[derive(Default)]
struct Counting {
    window: Option<Window>,
    keys: HashSet<EventKey>,
    reported: Vec<ErrorKind>,
}

#[async_trait]
impl Sink for Counting {
    async fn page(&mut self, page: Page) -> Result<Taken, Failure> {
        let inside = page.items.iter().filter(|item| match (item.at, self.window) {
            (Some(at), Some(window)) => window.contains(at),
            _ => true,
        });
        self.keys.extend(inside.map(|item| item.key));
        Ok(Taken::default())
    }

    fn report(&mut self, failure: Failure) {
        self.reported.push(failure.kind);
    }

    fn document(&mut self, _: &EventKey) -> Option<DocumentRecord> {
        None
    }
}

fn limits() -> Limits {
    Limits {
        requests: 100,
        per: Duration::from_secs(1),
        burst: 1,
        timeout: Duration::from_secs(30),
        max_response_bytes: 1 << 20,
    }
}

async fn read(page_size: u32, answer: impl Fn(&HashMap<String, String>) -> Answer + Send + Sync + 'static) -> Done {
    let requests = Arc::new(AtomicUsize::new(0));
    let asked = Arc::clone(&requests);
    let answer = Arc::new(answer);
    let router = axum::Router::new().fallback(move |request: Request| {
        asked.fetch_add(1, Ordering::SeqCst);
        let query = url::form_urlencoded::parse(request.uri().query().unwrap().as_bytes()).into_owned().collect();
        let (status, body) = answer(&query);
        async move { (status, body.to_string()) }
    });
    let service = Settings {
        base_url: "https://losant.test".parse().unwrap(),
        instance_id: "1".into(),
        api_token: Secret::text("t"),
    };
    let mut common = (SERVICE.defaults)();
    common.page_size = std::num::NonZeroU32::new(page_size);
    let (mut source, dialect) = service.build(&common);
    let stats = Arc::new(SourceStats::default());
    let clock = Clock::starting_at(DateTime::UNIX_EPOCH);
    let api = Api::new(Arc::new(InMemory(router)), dialect, limits(), Arc::clone(&stats), clock, 1);
    let mut sink = Counting::default();
    let window = Window { from: DateTime::UNIX_EPOCH, to: DateTime::UNIX_EPOCH + TimeDelta::hours(1) };
    let result = source.read(window, &api, &mut sink).await;
    if result.is_ok() {
        assert_eq!(stats.errors(ErrorKind::NotFound) + stats.errors(ErrorKind::Server), 0, "an end is no error");
    }
    Done { counted: sink.keys.len(), requests: requests.load(Ordering::SeqCst), result, reported: sink.reported }
}

async fn of(page_size: u32, paging: &Paging) -> Done {
    let paging = paging.clone();
    read(page_size, move |query| paging.answer(query)).await
}

#[tokio::test(start_paused = true)]
async fn no_total_makes_a_full_page_the_last() {
    let totals: [(&str, Said); 7] = [
        ("right", |_| json!(1500)),
        ("capped", |_| json!(1000)),
        ("capped where a page ends", |_| json!(500)),
        ("the length of the page", |length| json!(length)),
        ("0", |_| json!(0)),
        ("1", |_| json!(1)),
        ("absent", |_| Value::Null),
    ];
    for (name, total) in totals {
        for page_size in [100, 250, 1000, 1499, 1500] {
            let done = of(page_size, &Paging { total, ..HONEST }).await;
            done.result.unwrap();
            assert_eq!(done.counted, 1500, "{name}, {page_size} on a page");
            let pages = 1500_usize.div_ceil(page_size as usize);
            assert!(done.requests <= 2 * (pages + 1), "{name}, {page_size} on a page: {} requests", done.requests);
            assert_eq!(done.reported, [], "{name}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_cap_of_the_service_s_own_makes_a_page_the_last() {
    let lengths: [(&str, Length); 4] = [
        ("as asked", |asked, _| asked),
        ("100", |asked, _| asked.min(100)),
        ("60", |asked, _| asked.min(60)),
        ("cut by bytes", |asked, page| asked.min(60 + 7 * page % 30)),
    ];
    let said: [(&str, Said); 5] = [
        ("obeyed", |asked| json!(asked.min(100))),
        ("repeated", |asked| json!(asked)),
        ("more", |asked| json!(10 * asked)),
        ("0", |_| json!(0)),
        ("absent", |_| Value::Null),
    ];
    let totals: [(&str, Said); 4] = [
        ("right", |_| json!(1500)),
        ("capped", |_| json!(1000)),
        ("the length of the page", |length| json!(length)),
        ("absent", |_| Value::Null),
    ];
    for (length_name, length) in lengths {
        for (said_name, said) in said {
            for (total_name, total) in totals {
                for by_asked in [false, true] {
                    for behind in [Behind::Nothing, Behind::LastPage] {
                        let case = format!("{length_name}, perPage {said_name}, total {total_name}, {by_asked}");
                        // what obeys goes on where it ended
                        if by_asked && said_name == "obeyed" && length_name == "100" {
                            continue;
                        }
                        let done = of(1000, &Paging { total, length, said, by_asked, behind, ..HONEST }).await;
                        if let Err(failure) = &done.result {
                            assert_eq!(failure.kind, ErrorKind::Decode, "{case}: {failure}");
                            assert!(behind == Behind::LastPage, "{case}: {failure}");
                        } else if done.reported.is_empty() {
                            assert_eq!(done.counted, 1500, "{case}");
                        } else {
                            assert_eq!(done.reported, [ErrorKind::Truncated], "{case}");
                            assert_eq!(length_name, "cut by bytes", "{case}");
                        }
                        assert!(done.requests < 180, "{case}: {} requests", done.requests);
                    }
                }
            }
        }
    }
}

/// Seed 22: fewer on a page than is said, `page` ignored, and no total.
#[tokio::test(start_paused = true)]
async fn a_page_that_is_ignored_is_no_end_where_the_newest_events_are_others() {
    for behind in [StatusCode::OK, StatusCode::NOT_FOUND] {
        for (events, ends) in [(200, false), (61, false), (60, true), (7, true)] {
            // the length of the page is a total that some services give
            for total in [json!(null), json!(events.min(60)), json!("many"), json!(0)] {
                let said = total.clone();
                let done = read(100, move |query| {
                    let all: Vec<usize> = match query["sortDirection"].as_str() {
                        "desc" => (0..events).rev().take(60).collect(),
                        _ if query["page"] != "0" && !behind.is_success() => return (behind, json!({})),
                        _ => (0..events).take(60).collect(),
                    };
                    let items: Vec<Value> = all.iter().map(|n| json!({"id": n.to_string()})).collect();
                    (StatusCode::OK, json!({"items": items, "perPage": 100, "page": 0, "totalCount": said}))
                })
                .await;
                assert_eq!(done.result.is_ok(), ends, "{events} {behind} {total}: {:?}", done.result);
                assert_eq!(done.counted, events.min(60), "what came is counted");
                assert!(done.requests <= 4, "{} requests", done.requests);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_is_seen_whatever_comes_behind_it() {
    for behind in [Behind::Nothing, Behind::LastPage, Behind::FirstPage, Behind::NotFound, Behind::BadRequest] {
        for first_page in [0, 1] {
            for events in [1, 9, 99, 101, 333, 350] {
                for page_size in [100, 1000] {
                    for (name, total) in [("too small", Some(1)), ("none", None), ("right", Some(events))] {
                        let paging = Paging { events, behind, first_page, ..HONEST };
                        let done = read(page_size, move |query| {
                            let (status, mut list) = paging.answer(query);
                            list["totalCount"] = json!(total);
                            (status, list)
                        })
                        .await;
                        done.result.unwrap();
                        assert_eq!(done.counted, events, "total {name}");
                        let pages = events.div_ceil(page_size as usize);
                        assert!(done.requests <= pages + 3, "{} requests for {events}", done.requests);
                        assert_eq!(done.reported, []);
                    }
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_answers_everything_alike_is_left_and_believed_only_where_its_page_is_not_full() {
    for (events, total, ends) in [
        (0, json!(0), "ok"),
        (0, json!(null), "ok"),
        (9, json!(9), "ok"),
        (9, json!(null), "ok"),
        (9, json!(0), "ok"),
        (9, json!(1500), "decode"),
        (100, json!(1500), "decode"),
        (100, json!(null), "decode"),
        (100, json!(100), "decode"),
        (140, json!(0), "decode"),
    ] {
        let list = json!({"items": (0..events).map(|n| json!({"id": n.to_string()})).collect::<Vec<_>>(), "totalCount": total});
        let done = read(100, move |_| (StatusCode::OK, list.clone())).await;
        let ended = done.result.err().map_or("ok", |failure| failure.kind.as_str());
        assert_eq!((done.counted, ended), (events, ends), "{events} of {total}");
        assert!(done.requests <= 3, "{}", done.requests);
    }
}

#[tokio::test(start_paused = true)]
async fn a_window_without_events_costs_one_request_and_a_refusal_of_its_first_page_is_an_error() {
    assert_eq!(of(100, &Paging { events: 0, total: |_| json!(0), ..HONEST }).await.requests, 1);
    for (behind, kind) in [(Behind::NotFound, ErrorKind::NotFound), (Behind::BadRequest, ErrorKind::Server)] {
        let status = if behind == Behind::NotFound { StatusCode::NOT_FOUND } else { StatusCode::BAD_REQUEST };
        let done = read(100, move |_| (status, json!({"type": "NotFound", "message": "Instance was not found"}))).await;
        let failure = done.result.unwrap_err();
        assert_eq!((failure.kind, done.requests), (kind, 1));
        assert!(failure.to_string().contains("Instance was not found"), "{failure}");
    }
    // a page that is refused behind a full one proves nothing
    let done = of(100, &Paging { events: 300, total: |_| json!(null), behind: Behind::NotFound, ..HONEST }).await;
    assert_eq!((done.counted, done.result.unwrap_err().kind), (300, ErrorKind::NotFound));
}

#[tokio::test(start_paused = true)]
async fn the_simulated_log_is_counted_exactly_whatever_it_says_about_its_end() {
    for faults in [
        "losant:total_count=capped",
        "losant:total_count=page_length",
        "losant:total_count=page_length,count_cap=60",
        "losant:total_count=zero,gzip_members",
        "losant:total_count=absent",
        "losant:count_cap=60,cap_unsaid",
        "losant:total_count=absent,count_cap=60,cap_unsaid",
    ] {
        let mut switched = Faults::default();
        switched.set(faults).unwrap();
        let clock = Clock::starting_at(DateTime::from_timestamp(1_700_000_000, 0).unwrap());
        let world = World::new(Options {
            seed: 5,
            clock: clock.clone(),
            history: Duration::from_hours(3),
            day: Duration::from_hours(24),
            rate: 0.1,
            faults: switched,
            quiet: false,
        });
        let service = Settings {
            base_url: "http://losant.test".parse().unwrap(),
            instance_id: credentials::LOSANT_INSTANCE_ID.to_owned(),
            api_token: Secret::text(credentials::LOSANT_API_TOKEN),
        };
        let (mut source, dialect) = service.build(&(SERVICE.defaults)());
        let transport = Arc::new(InMemory(world.router()));
        let api = Api::new(transport, dialect, limits(), Arc::default(), clock.clone(), 1);
        let window = Window { from: clock.now() - TimeDelta::hours(2), to: clock.now() - TimeDelta::minutes(15) };
        let mut sink = Counting { window: Some(window), ..Counting::default() };
        source.read(window, &api, &mut sink).await.unwrap();
        let of = TruthOf { from: Some(window.from), to: Some(window.to), ..TruthOf::default() };
        let truth = world.truth_of(&of).total(SYSTEM);
        assert!(truth > 200, "{truth}");
        assert_eq!(sink.keys.len() as u64, truth, "{faults}");
        assert_eq!(sink.reported, [], "{faults}");
        let requests = world.requests(SYSTEM).len() as u64;
        assert!(requests < 6 * (truth / 60 + 2), "{faults}: {requests} for {truth}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// One lie at a time, of any size: everything is counted, or it is said that it is not.
    #[test]
    fn one_lie_never_loses_an_event_in_silence(
        events in 0_usize..700,
        cap in 20_usize..150,
        total in prop::option::of(0_u64..800),
        lies_about_total in any::<bool>(),
        by_asked in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let done = runtime.block_on(read(100, move |query| {
            let number = |name: &str| query[name].parse::<usize>().unwrap();
            let (asked, page) = (number("perPage"), number("page"));
            let held = if lies_about_total { asked } else { asked.min(cap) };
            let begin = (page * if by_asked { asked } else { held }).min(events);
            let end = (begin + held).min(events);
            let items: Vec<Value> = (begin..end).map(|n| json!({"id": n.to_string()})).collect();
            let total = if lies_about_total { json!(total) } else { json!(events) };
            (StatusCode::OK, json!({"items": items, "totalCount": total, "perPage": asked}))
        }));
        done.result.unwrap();
        // of a total that is too large it is said that not all came
        let too_large = lies_about_total && total.is_some_and(|total| total > events as u64);
        prop_assert_eq!(done.counted, events);
        prop_assert_eq!(done.reported.is_empty(), !too_large, "{:?}", done.reported);
    }
}
