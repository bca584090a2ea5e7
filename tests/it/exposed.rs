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

    /// The sum of the samples of a family whose labels contain all of `parts`.
    pub(crate) fn sum(&self, family: &str, parts: &[&str]) -> f64 {
        let of_family =
            |name: &str| name == family || name.strip_prefix(family).is_some_and(|rest| rest.starts_with('{'));
        self.0
            .iter()
            .filter(|(name, _)| of_family(name) && parts.iter().all(|part| name.contains(part)))
            .map(|(_, value)| value)
            .sum()
    }
}
