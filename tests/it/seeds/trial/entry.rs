//! The sources of a trial's configuration.

use std::fmt::Write as _;
use std::time::Duration;

use audit_exporter::config::duration_text;
use audit_exporter::simulate::{Credential, Simulated};
use rand::RngExt;
use rand::rngs::StdRng;

use super::super::checks::Limit;

/// The only host there is.
pub const HOST: &str = "services.test";
/// Events per second and service, beyond which no outage takes days, and no overlap hours.
pub const RATE_OF_DAYS: f64 = 0.02;

/// A source of the configuration.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: &'static str,
    pub service: &'static Simulated,
    pub configured: bool,
    pub interval: Duration,
    pub overlap: Duration,
    pub limit: Limit,
    pub page_size: Option<u32>,
    pub lookback: Duration,
    /// `max_catch_up`, where it is short.
    pub catch_up: Option<Duration>,
}

/// The name of the file that holds the credential of a service.
pub fn secret_file(service: &Simulated) -> String {
    format!("{}.secret", service.system)
}

impl Entry {
    pub fn draw(name: &'static str, service: &'static Simulated, rate: f64, random: &mut StdRng) -> Self {
        let mut pick = |from: &[u64]| from[random.random_range(0..from.len())];
        let minutes = |minutes| Duration::from_mins(minutes);
        let feed = service.is_feed;
        Self {
            name,
            service,
            configured: true,
            interval: if feed { minutes(pick(&[2, 5, 15])) } else { Duration::from_secs(pick(&[20, 60, 60, 300])) },
            // every poll reads it again
            overlap: minutes(pick(if rate > RATE_OF_DAYS { &[10, 10, 10, 30] } else { &[10, 10, 30, 200] })),
            limit: Limit {
                requests: pick(&[30, 60, 120, 600]) as f64,
                per: minutes(1),
                burst: pick(&[1, 1, 5, 20]) as f64,
            },
            page_size: (!feed && pick(&[0, 1]) == 1).then(|| u32::try_from(pick(&[100, 300, 1000])).unwrap()),
            lookback: Duration::from_hours(24) * u32::try_from(pick(&[14, 6, 6, 6])).unwrap(),
            catch_up: (!feed && pick(&[0, 0, 0, 1]) == 1).then_some(Duration::from_hours(5)),
        }
    }

    /// As it stands in the configuration, where the first look reaches back `lookback_min` at least.
    pub fn text(&self, lookback_min: Duration) -> String {
        let file = secret_file(self.service);
        let keys = self.service.entry(&format!("https://{HOST}"), Credential::File(&file), "      ");
        let mut text = format!(
            "    - name: {}\n      {keys}\n      initial_lookback: {}\n      poll_interval: {}\n      overlap: {}\n      rate_limit: {{requests: {}, per: {}, burst: {}}}\n",
            self.name,
            duration_text(self.lookback.max(lookback_min)),
            duration_text(self.interval),
            duration_text(self.overlap),
            self.limit.requests,
            duration_text(self.limit.per),
            self.limit.burst
        );
        if let Some(size) = self.page_size {
            let _ = writeln!(text, "      page_size: {size}");
        }
        if let Some(catch_up) = self.catch_up {
            let _ = writeln!(text, "      max_catch_up: {}", duration_text(catch_up));
        }
        text
    }
}
