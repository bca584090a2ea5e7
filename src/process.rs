//! The `process_*` metrics: CPU time, memory, files and threads of this process.
//!
//! Promises: names and meanings match Prometheus's client libraries. CPU time includes fractions of a second, so that a
//! program that uses 1 % of a core does not show 0 for minutes. Only `/proc/self` is read, so the values are also right where
//! the rest of `/proc` is hidden (`ProcSubset=pid` in a systemd unit). A value that the system does not report is left out.
//!
//! Leaves to others: the bytes (`exposition.rs`).

use std::sync::OnceLock;

use chrono::{DateTime, Utc};
use rustix::param::page_size;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::clock::{Clock, unix_seconds};
use crate::exposition::{Family, Kind, Sample, Value};

/// When this process started: the time of the first call, so `main` calls it first. The kernel's own value counts from the
/// boot, and the file with the time of the boot may be hidden.
pub fn started_at() -> DateTime<Utc> {
    static STARTED: OnceLock<DateTime<Utc>> = OnceLock::new();
    *STARTED.get_or_init(|| Clock::machine().now())
}

/// The current values.
pub fn families() -> Vec<Family> {
    let status = std::fs::read_to_string("/proc/self/stat").ok().and_then(|text| Stat::parse(&text));
    let status = status.as_ref();
    let max_files = getrlimit(Resource::Nofile).current;
    let numbers = [
        (
            "process_cpu_seconds_total",
            Kind::Counter,
            "Total user and system CPU time spent in seconds.",
            Some(processor_seconds()),
        ),
        ("process_open_fds", Kind::Gauge, "Number of open file descriptors.", open_files().map(float)),
        ("process_max_fds", Kind::Gauge, "Maximum number of open file descriptors.", max_files.map(float)),
        (
            "process_virtual_memory_bytes",
            Kind::Gauge,
            "Virtual memory size in bytes.",
            status.map(|status| float(status.virtual_bytes)),
        ),
        (
            "process_resident_memory_bytes",
            Kind::Gauge,
            "Resident memory size in bytes.",
            status.map(|status| float(status.resident_pages.saturating_mul(page_size() as u64))),
        ),
        (
            "process_start_time_seconds",
            Kind::Gauge,
            "Start time of the process since unix epoch in seconds.",
            Some(unix_seconds(started_at())),
        ),
        (
            "process_threads",
            Kind::Gauge,
            "Number of OS threads in the process.",
            status.map(|status| float(status.threads)),
        ),
    ];
    let known = numbers.into_iter().filter_map(|(name, kind, help, number)| {
        let sample = Sample { labels: Vec::new(), value: Value::Number(number?), created: None };
        Some(Family { name, help, kind, samples: vec![sample] })
    });
    known.collect()
}

#[expect(clippy::cast_precision_loss, reason = "bytes, files and threads of one process are fewer than 2^53")]
fn float(number: u64) -> f64 {
    number as f64
}

/// CPU time of all threads, including those that have ended.
fn processor_seconds() -> f64 {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    #[expect(clippy::cast_precision_loss, reason = "a processor's time stays exact to the microsecond for 285 years")]
    let seconds = spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9;
    seconds
}

fn open_files() -> Option<u64> {
    let entries = std::fs::read_dir("/proc/self/fd").ok()?.flatten().count();
    // reading the folder opens one file itself
    Some((entries as u64).saturating_sub(1))
}

/// The fields of `/proc/self/stat` that are used (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    threads: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // the program's name stands in parentheses and may contain anything, even parentheses
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        // proc(5) counts fields from 1; the first one after the name is number 3
        let number = |field: usize| fields.get(field - 3)?.parse().ok();
        Some(Self { threads: number(20)?, virtual_bytes: number(23)?, resident_pages: number(24)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(name: &str) -> f64 {
        let families = families();
        let family = families.iter().find(|family| family.name == name).unwrap_or_else(|| panic!("{name} is missing"));
        let [Sample { value: Value::Number(number), .. }] = family.samples[..] else { panic!("{family:?}") };
        number
    }

    #[test]
    fn processor_time_has_fractions() {
        let before = value("process_cpu_seconds_total");
        let mut steps = 0;
        // each look takes some time, and none a whole second
        while value("process_cpu_seconds_total") <= before {
            steps += 1;
            assert!(steps < 100_000, "it stays at {before}");
        }
        let step = value("process_cpu_seconds_total") - before;
        assert!(step > 0.0 && step < 1.0, "{step}");
    }

    #[test]
    fn the_start_is_this_process_s_and_does_not_move() {
        let start = value("process_start_time_seconds");
        let now = unix_seconds(Clock::machine().now());
        assert!(start <= now && start > now - 3600.0, "{start} at {now}");
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert_eq!(value("process_start_time_seconds").to_bits(), start.to_bits());
    }

    #[test]
    fn an_open_file_is_one_more_and_memory_that_is_used_is_seen() {
        // other tests of this process open and close files, too: so many at once they do not
        let before = value("process_open_fds");
        let files: Vec<_> = (0..200).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        let during = value("process_open_fds");
        assert!(during >= before + 100.0, "{before} then {during}");
        assert!(during < value("process_max_fds"));
        drop(files);
        let before = value("process_resident_memory_bytes");
        let used = vec![1_u8; 256 << 20];
        let during = value("process_resident_memory_bytes");
        assert!(during >= before + f64::from(128 << 20), "{before} then {during}, {}", used[used.len() / 2]);
        assert!(value("process_virtual_memory_bytes") >= during);
        assert!(value("process_threads") >= 1.0);
    }

    #[test]
    fn the_name_of_the_program_may_hold_anything() {
        let text =
            "7 (a) R (b 1) S 1 7 7 0 -1 4194560 100 0 0 0 5 6 0 0 20 0 13 0 4242 1048576 77 18446744073709551615\n";
        assert_eq!(Stat::parse(text), Some(Stat { threads: 13, virtual_bytes: 1_048_576, resident_pages: 77 }));
        assert_eq!(Stat::parse("7 (cut) S 1 7 7 0"), None);
        assert_eq!(Stat::parse(""), None);
    }
}
