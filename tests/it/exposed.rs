//! Reading `/metrics` in tests: the text format, as far as our own pages use it.

use std::collections::BTreeMap;

/// The samples of a page: name and labels as written, and the value.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exposed(pub(crate) BTreeMap<String, f64>);

impl Exposed {
    pub(crate) fn parse(page: &str) -> Self {
        let samples = page.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        Self(
            samples
                .map(|line| line.rsplit_once(' ').expect("a sample is a name and a value"))
                .map(|(name, value)| (name.to_owned(), value.parse().expect("a value is a number")))
                .collect(),
        )
    }

    /// The samples whose names begin so.
    pub(crate) fn beginning<'a>(&'a self, start: &'a str) -> impl Iterator<Item = (&'a String, &'a f64)> {
        self.0.range(start.to_owned()..).take_while(move |(name, _)| name.starts_with(start))
    }

    /// The sum of the samples of a family whose labels contain all of `parts`.
    pub(crate) fn sum(&self, family: &str, parts: &[&str]) -> f64 {
        let of_family =
            |name: &str| name == family || name.strip_prefix(family).is_some_and(|rest| rest.starts_with('{'));
        self.beginning(family)
            .filter(|(name, _)| of_family(name) && parts.iter().all(|part| name.contains(part)))
            .map(|(_, value)| value)
            .sum()
    }
}

/// The value of a label of a sample's name; it must have one.
pub(crate) fn label(name: &str, label: &str) -> String {
    let start = name.find(&format!("{label}=\"")).unwrap() + label.len() + 2;
    name[start..].split('"').next().unwrap().to_owned()
}

/// Counters of the process's own life, which begin anew with it.
const OF_THE_PROCESS: [&str; 9] = [
    "process_",
    "audit_source_polls_total",
    "audit_source_requests_total",
    "audit_source_errors_total",
    "audit_source_throttled_total",
    "audit_source_rate_limit_wait_seconds_total",
    "audit_source_poll_duration_seconds",
    "audit_source_events_outside_window_total",
    "audit_exporter_",
];

/// What was served of the counters that outlive the process.
#[derive(Default)]
pub(crate) struct Durable {
    highest: BTreeMap<String, f64>,
    pub(crate) scrapes: u64,
}

impl Durable {
    /// What is wrong with a page: a counter that was not served as 0 first, one that went back, one
    /// that is gone (unless it is of a source in `without`).
    pub(crate) fn see(&mut self, page: &str, without: &[String]) -> Vec<String> {
        let mut wrong = Vec::new();
        let kinds: BTreeMap<&str, &str> = page
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
            .filter(|(name, kind)| {
                matches!(*kind, "counter" | "histogram") && !OF_THE_PROCESS.iter().any(|own| name.starts_with(own))
            })
            .collect();
        let mut durable = BTreeMap::new();
        for (name, value) in Exposed::parse(page).0 {
            let sample = name.split('{').next().unwrap_or(&name);
            let families = ["", "_bucket", "_sum", "_count"].iter().filter_map(|end| sample.strip_suffix(end));
            let Some(kind) = families.into_iter().find_map(|family| kinds.get(family)) else { continue };
            if *kind == "counter" && value != 0.0 && !self.highest.contains_key(&name) {
                wrong.push(format!("{name} was never served as 0 and now as {value}"));
            }
            durable.insert(name, value);
        }
        for (name, before) in &self.highest {
            match durable.get(name) {
                None if without.iter().any(|source| name.contains(&format!("source=\"{source}\""))) => {}
                None => wrong.push(format!("{name} {before} was served and is gone")),
                Some(value) if value < before => {
                    wrong.push(format!("{name} was served as {before} and now as {value}"));
                }
                Some(_) => {}
            }
        }
        self.highest.extend(durable);
        self.scrapes += 1;
        wrong
    }

    /// How many samples.
    pub(crate) fn watched(&self) -> usize {
        self.highest.len()
    }
}
