//! Decides when a new series may show its value: once every known scraper has read its 0.
//!
//! Promises: a series that some known scraper has not been handed as 0 is not due, unless it has been
//! held for [`LONGEST_HOLDS`] times the hold; a browser or a probe makes no series due while a scraper
//! is known; the table of scrapers is bounded, and strangers cannot push those out of it that scrape
//! regularly.
//!
//! Leaves to others: which answers were handed over whole (`web/handover.rs`), which series there are
//! and that a release is recorded before it is shown (`ledger.rs`). The rule in plain words:
//! `docs/exposition.md`.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::clock::delta;

/// After this many times the hold a series is shown, even to a scraper that was never handed its 0.
pub const LONGEST_HOLDS: u32 = 10;

/// The longest hold where the hold is 0.
const LONGEST_WITHOUT_HOLD: Duration = Duration::from_secs(10);

/// Who has not scraped for this long is no known scraper any more.
const KNOWN_FOR: Duration = Duration::from_hours(1);

/// Most scrapers that are remembered, and most of one address.
const SCRAPERS_MAX: usize = 64;
const SCRAPERS_OF_ADDRESS_MAX: usize = 8;

/// From how many intervals a scraper's usual one is told: the median, so that one pause changes little.
const GAPS: usize = 5;

/// A scraper with this many intervals scrapes regularly: it does not make room for a stranger.
const GAPS_OF_REGULAR: usize = 2;

/// No agent scrapes more often than every second; what does is given the time of one that does so every other.
const USUAL_MIN: Duration = Duration::from_secs(2);

/// How long a scrape waits for clients that were told to close and are about to: what they have read is known
/// only then, and the next request may overtake the news on its way through our own threads.
const CLOSING_WAIT: Duration = Duration::from_millis(100);

/// Longest part of a User-Agent that tells scrapers apart, in bytes.
const AGENT_BYTES_MAX: usize = 128;

/// How the User-Agents of agents begin that scrape without `X-Prometheus-Scrape-Timeout-Seconds`, or may. In
/// lower case. Prometheus, Grafana Alloy and the OpenTelemetry Collector's Prometheus receiver send both.
const AGENTS: [&str; 14] = [
    "prometheus/",
    "vm_promscrape",
    "vmagent",
    "victoriametrics",
    "grafana",
    "alloy",
    "opentelemetry",
    "otelcol",
    "telegraf",
    "datadog",
    "elastic metricbeat",
    "zabbix",
    "netdata",
    "vector/",
];

/// Who asks for `/metrics`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Client {
    /// An agent that scrapes at intervals and stores what it reads.
    Scraper(Scraper),
    /// Anybody else: a browser, a probe, a person with curl.
    Other,
}

/// What tells one scraper from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scraper {
    address: IpAddr,
    agent: String,
    /// As it was sent: two on one machine often differ in it.
    timeout: String,
}

impl Client {
    /// The client at `address` that sent these values of `User-Agent` and `X-Prometheus-Scrape-Timeout-Seconds`.
    pub fn new(address: IpAddr, agent: Option<&str>, scrape_timeout: Option<&str>) -> Self {
        let agent = agent.unwrap_or_default();
        let lower = agent.to_ascii_lowercase();
        if scrape_timeout.is_none() && !AGENTS.iter().any(|known| lower.starts_with(known)) {
            return Client::Other;
        }
        let cut = |text: &str| text[..text.floor_char_boundary(AGENT_BYTES_MAX)].to_owned();
        let timeout = cut(scrape_timeout.unwrap_or_default());
        Client::Scraper(Scraper { address: address.to_canonical(), agent: cut(agent), timeout })
    }
}

/// Numbers the births of series in this process: an answer that was begun at number n shows every unreleased
/// series up to n as 0. Given out while the state that the series is born into is locked for writing.
static BIRTHS: AtomicU64 = AtomicU64::new(0);

pub(super) fn next_birth() -> u64 {
    BIRTHS.fetch_add(1, Ordering::SeqCst) + 1
}

/// The newest birth. Read it before a state, and the state holds every series up to it.
pub(super) fn births() -> u64 {
    BIRTHS.load(Ordering::SeqCst)
}

/// How long a series is held at most.
pub(super) fn longest(hold: Duration) -> Duration {
    if hold.is_zero() { LONGEST_WITHOUT_HOLD } else { hold.saturating_mul(LONGEST_HOLDS) }
}

/// All who ask for `/metrics`, and what they have been handed.
#[derive(Clone, Debug)]
pub(super) struct Audience {
    seats: Arc<Mutex<Seats>>,
    /// Answers whose client was told to close and has not yet.
    closing: Arc<watch::Sender<usize>>,
}

#[derive(Debug, Default)]
struct Seats {
    scrapers: Vec<(Scraper, Habit)>,
    /// The newest birth that anybody was handed.
    anybody: u64,
    /// When this process first had a source, by the wall clock.
    opened: Option<DateTime<Utc>>,
}

#[derive(Debug)]
struct Habit {
    last: Instant,
    gaps: VecDeque<Duration>,
    /// The newest birth that it was handed.
    handed: u64,
}

impl Habit {
    /// The usual time between two scrapes; `None` before the second.
    fn usual(&self) -> Option<Duration> {
        let mut gaps: Vec<Duration> = self.gaps.iter().copied().collect();
        gaps.sort_unstable();
        gaps.get(gaps.len() / 2).map(|median| USUAL_MIN.max(*median))
    }

    /// Whether it has not missed three scrapes.
    fn comes(&self, now: Instant) -> bool {
        self.usual().is_none_or(|usual| now - self.last <= usual * 7 / 2)
    }
}

impl Seats {
    fn forget(&mut self, now: Instant) {
        self.scrapers.retain(|(_, habit)| now - habit.last <= KNOWN_FOR);
    }

    fn note(&mut self, scraper: &Scraper, now: Instant) {
        self.forget(now);
        if let Some((_, habit)) = self.scrapers.iter_mut().find(|(known, _)| known == scraper) {
            if habit.gaps.len() == GAPS {
                habit.gaps.pop_front();
            }
            habit.gaps.push_back(now - habit.last);
            habit.last = now;
            return;
        }
        let neighbour = |known: &Scraper| known.address == scraper.address;
        let crowded = self.scrapers.iter().filter(|(known, _)| neighbour(known)).count() >= SCRAPERS_OF_ADDRESS_MAX;
        if crowded || self.scrapers.len() >= SCRAPERS_MAX {
            let strangers = self
                .scrapers
                .iter()
                .enumerate()
                .filter(|(_, (known, habit))| habit.gaps.len() < GAPS_OF_REGULAR && (!crowded || neighbour(known)));
            // where all scrape regularly, one more is not waited for
            let Some((place, _)) = strangers.min_by_key(|(_, (_, habit))| habit.last) else { return };
            self.scrapers.remove(place);
        }
        self.scrapers.push((scraper.clone(), Habit { last: now, gaps: VecDeque::new(), handed: 0 }));
    }

    /// The newest birth that everybody who counts was handed.
    fn handed_to_all(&self, now: Instant) -> u64 {
        let known = || self.scrapers.iter().map(|(_, habit)| habit);
        // one that is only away is not waited for, but neither does a browser stand in for it
        let Some(somebody) = known().map(|habit| habit.handed).max() else { return self.anybody };
        known().filter(|habit| habit.comes(now)).map(|habit| habit.handed).min().unwrap_or(somebody)
    }
}

impl Audience {
    pub(super) fn new() -> Self {
        Self { seats: Arc::default(), closing: Arc::new(watch::Sender::new(0)) }
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records when this process first had a source, or first was asked.
    pub(super) fn open(&self, now: DateTime<Utc>) {
        self.seats().opened.get_or_insert(now);
    }

    /// Records that `client` asks now. Returns by what series are due.
    pub(super) fn asks(&self, client: &Client, now: DateTime<Utc>, hold: Duration) -> Due {
        let mut seats = self.seats();
        let instant = Instant::now();
        seats.forget(instant);
        if let Client::Scraper(scraper) = client {
            seats.note(scraper, instant);
        }
        let opened = *seats.opened.get_or_insert(now);
        Due { handed: seats.handed_to_all(instant), opened, now, instant, hold }
    }

    /// Who of the known scrapers is waited for until the series up to `birth` are due.
    pub(super) fn waited_for(&self, birth: u64) -> usize {
        let (seats, now) = (self.seats(), Instant::now());
        let waits = |habit: &Habit| now - habit.last <= KNOWN_FOR && habit.comes(now) && habit.handed < birth;
        seats.scrapers.iter().filter(|(_, habit)| waits(habit)).count()
    }

    /// Not before this, by the wall clock, anything is shown that was born at `born`.
    pub(super) fn held_until(&self, born: DateTime<Utc>, hold: Duration) -> DateTime<Utc> {
        born.max(self.seats().opened.unwrap_or(born)) + delta(hold)
    }

    /// For the answer that is made for `client` now.
    pub(super) fn receipt(&self, client: &Client, births: u64) -> Receipt {
        Receipt { audience: self.clone(), client: client.clone(), births, closing: false }
    }

    /// Waits until those who were told to close have done so, for a moment at most.
    pub(super) async fn settle(&self) {
        let mut closing = self.closing.subscribe();
        let _ = timeout(CLOSING_WAIT, closing.wait_for(|closing| *closing == 0)).await;
    }
}

/// By what a series is due: its value may be shown.
pub(super) struct Due {
    handed: u64,
    opened: DateTime<Utc>,
    now: DateTime<Utc>,
    instant: Instant,
    hold: Duration,
}

impl Due {
    /// Whether the hold has passed. It counts from the start of this process, too: before that, nobody is known.
    /// A birth in the future was told by a clock that was wrong.
    pub(super) fn hold_has_passed(&self, born: DateTime<Utc>) -> bool {
        let passed = |since: DateTime<Utc>| self.now < since || self.now >= since + delta(self.hold);
        passed(born) && passed(self.opened)
    }

    /// Whether everybody who counts was handed the 0.
    pub(super) fn was_handed(&self, birth: u64) -> bool {
        birth <= self.handed
    }

    /// Whether the longest hold has passed since the series was first shown as 0.
    pub(super) fn is_overdue(&self, shown_since: Option<Instant>) -> bool {
        shown_since.is_some_and(|since| self.instant - since >= longest(self.hold))
    }
}

/// For one answer to one client: what is known once the client has taken it whole.
#[derive(Debug)]
pub struct Receipt {
    audience: Audience,
    client: Client,
    births: u64,
    closing: bool,
}

impl Receipt {
    /// The client was handed the answer whole. Where that never becomes known, the receipt is dropped.
    pub fn taken(self) {
        let mut seats = self.audience.seats();
        seats.anybody = seats.anybody.max(self.births);
        let Client::Scraper(scraper) = &self.client else { return };
        if let Some((_, habit)) = seats.scrapers.iter_mut().find(|(known, _)| known == scraper) {
            habit.handed = habit.handed.max(self.births);
        }
    }

    /// The client was told to close: if it took the answer, that is known in a moment.
    pub fn closing(&mut self) {
        if !self.closing {
            self.closing = true;
            self.audience.closing.send_modify(|closing| *closing += 1);
        }
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if self.closing {
            self.audience.closing.send_modify(|closing| *closing -= 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
    }

    fn scraper(address: &str, agent: &str) -> Client {
        Client::new(address.parse().unwrap(), Some(agent), Some("10"))
    }

    /// Whether a series with this birth is due for everybody when `client` asks, who then takes the answer.
    fn ask(audience: &Audience, client: &Client, birth: u64) -> bool {
        let due = audience.asks(client, at(0), Duration::ZERO).was_handed(birth);
        audience.receipt(client, birth).taken();
        due
    }

    async fn pass(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    #[test]
    fn an_agent_says_so_by_the_header_or_its_name() {
        let client = |agent, timeout| Client::new("192.0.2.1".parse().unwrap(), agent, timeout);
        for agent in [
            "Prometheus/3.5.0",
            "vm_promscrape",
            "Telegraf/1.30",
            "Datadog Agent/7.5",
            "Grafana Alloy/v1.9",
            "otelcol/0.120",
        ] {
            assert!(matches!(client(Some(agent), None), Client::Scraper(_)), "{agent}");
        }
        for agent in
            ["Mozilla/5.0 (X11; Linux x86_64) Prometheus/1", "curl/8.5.0", "kube-probe/1.30", "Go-http-client/1.1", ""]
        {
            assert_eq!(client(Some(agent), None), Client::Other, "{agent}");
        }
        assert_eq!(client(None, None), Client::Other);
        assert!(matches!(client(None, Some("10")), Client::Scraper(_)));
        assert_ne!(client(Some("Prometheus/3"), Some("10")), client(Some("Prometheus/3"), Some("1")));
        assert_eq!(scraper("::ffff:192.0.2.1", "Prometheus/3"), scraper("192.0.2.1", "Prometheus/3"));
        let long = "é".repeat(500);
        assert!(matches!(client(Some(&long), Some(&long)), Client::Scraper(s) if s.agent.len() <= AGENT_BYTES_MAX));
    }

    #[tokio::test(start_paused = true)]
    async fn a_series_waits_for_every_known_scraper_and_a_browser_counts_for_none() {
        let audience = Audience::new();
        let (fast, slow) = (scraper("192.0.2.1", "Prometheus/3"), scraper("192.0.2.2", "Prometheus/3"));
        for _ in 0..3 {
            ask(&audience, &slow, 0);
            pass(60).await;
            ask(&audience, &fast, 0);
            pass(60).await;
        }
        assert!(!ask(&audience, &fast, 1));
        assert!(!ask(&audience, &Client::Other, 1));
        assert!(!ask(&audience, &fast, 1), "neither the browser nor the faster one speaks for the slower");
        assert_eq!(audience.waited_for(1), 1);
        assert!(!ask(&audience, &slow, 1), "this answer is its first look");
        assert!(ask(&audience, &fast, 1));
        assert_eq!(audience.waited_for(1), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn where_no_scraper_is_known_any_complete_answer_counts() {
        let audience = Audience::new();
        assert!(!ask(&audience, &Client::Other, 1));
        assert!(ask(&audience, &Client::Other, 1));
        // one that comes now is waited for all the same
        let late = scraper("192.0.2.1", "Prometheus/3");
        assert!(!ask(&audience, &late, 1));
        assert!(ask(&audience, &late, 1));
        // and is unknown again when it was not seen for an hour
        pass(3601).await;
        assert!(!ask(&audience, &Client::Other, 2));
        assert!(ask(&audience, &Client::Other, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_missed_three_of_its_own_intervals_is_waited_for_no_longer() {
        let audience = Audience::new();
        let (before, after) = (scraper("192.0.2.1", "Prometheus/3"), scraper("192.0.2.9", "Prometheus/3"));
        for _ in 0..4 {
            ask(&audience, &before, 0);
            pass(30).await;
        }
        // it is restarted, and has a new address
        assert!(!ask(&audience, &after, 1));
        pass(30).await;
        assert!(!ask(&audience, &after, 1), "60 s are two of its intervals");
        pass(50).await;
        assert!(ask(&audience, &after, 1), "110 s are more than three");
        // a browser does not stand in for one that is away
        pass(600).await;
        assert!(!ask(&audience, &Client::Other, 2));
        assert!(!ask(&audience, &Client::Other, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_push_out_neither_those_that_scrape_regularly_nor_those_of_other_addresses() {
        let audience = Audience::new();
        let (regular, new) = (scraper("192.0.2.1", "Prometheus/3"), scraper("192.0.2.2", "Prometheus/3"));
        for _ in 0..4 {
            ask(&audience, &regular, 0);
            pass(15).await;
        }
        ask(&audience, &new, 0);
        for n in 0..1000 {
            ask(&audience, &scraper("198.51.100.7", &format!("Prometheus/{n}")), 1);
        }
        let seats =
            || audience.seats().scrapers.iter().map(|(known, _)| Client::Scraper(known.clone())).collect::<Vec<_>>();
        assert!(seats().contains(&regular) && seats().contains(&new));
        assert_eq!(seats().len(), 2 + SCRAPERS_OF_ADDRESS_MAX);
        for n in 0..1000 {
            ask(&audience, &scraper(&format!("198.51.{}.{}", n / 250, n % 250), "Prometheus/3"), 1);
        }
        assert!(seats().contains(&regular));
        assert_eq!(seats().len(), SCRAPERS_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_was_not_taken_counts_for_nobody() {
        let audience = Audience::new();
        let client = scraper("192.0.2.1", "Prometheus/3");
        audience.asks(&client, at(0), Duration::ZERO);
        drop(audience.receipt(&client, 1));
        assert!(!audience.asks(&client, at(0), Duration::ZERO).was_handed(1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_hold_counts_from_the_start_of_the_process_too() {
        let audience = Audience::new();
        audience.open(at(1000));
        let hold = Duration::from_mins(1);
        assert!(!audience.asks(&Client::Other, at(1059), hold).hold_has_passed(at(0)));
        assert!(audience.asks(&Client::Other, at(1060), hold).hold_has_passed(at(0)));
        assert_eq!(audience.held_until(at(0), hold), at(1060));
        // a clock that was set back
        assert!(audience.asks(&Client::Other, at(-86_400), hold).hold_has_passed(at(0)));
    }

    #[test]
    fn the_longest_hold_is_ten_times_the_hold() {
        assert_eq!(longest(Duration::from_mins(1)), Duration::from_mins(10));
        assert_eq!(longest(Duration::ZERO), LONGEST_WITHOUT_HOLD);
    }
}
