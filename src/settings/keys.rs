//! Keys as data: from one list come what the parser accepts and asks for, "did you mean", the JSON Schema, and what
//! docs/configuration.md is tested against.
//!
//! Leaves to others: reading a value (`fields.rs`).

use super::secret::Form;

/// A key of a mapping.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// As it is written.
    pub name: &'static str,
    /// What stands there.
    pub kind: Kind,
    /// What it means where it is not given.
    pub absent: Absent,
    /// What it is for, in one sentence.
    pub says: &'static str,
}

/// What a key accepts.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A text. Numbers are texts: an id is what is written.
    Text,
    /// `true` or `false`.
    Flag,
    /// A whole number.
    Count {
        /// The smallest.
        min: u32,
        /// The largest.
        max: u32,
    },
    /// A number of bytes.
    Bytes,
    /// A duration.
    Duration(Zero),
    /// A path, from the folder of the config file on.
    Path,
    /// The address of a service.
    Url,
    /// The address of a proxy: `http://` shows nothing, because what goes through it is protected by the service's TLS.
    ProxyUrl,
    /// A secret. It may be given as `NAME_file` instead, the path of a file that holds it.
    Secret(Form),
    /// A list of texts, none of them twice.
    Texts,
    /// A mapping.
    Section(&'static [Key]),
    /// A list of mappings.
    Sections(&'static [Key]),
}

/// Whether a duration may be none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zero {
    /// It may.
    Accepted,
    /// It may not.
    Refused,
}

/// What a key means where it is not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// It must be given.
    Refused,
    /// Nothing, or what the service is known to do best with.
    Nothing,
    /// The same as this value.
    Is(&'static str),
    /// Something that these words tell.
    Means(&'static str),
    /// What is usual for its system (`System::defaults`).
    Usual,
}

impl Key {
    /// A key that must be given.
    pub const fn required(name: &'static str, kind: Kind, says: &'static str) -> Self {
        Self { name, kind, absent: Absent::Refused, says }
    }

    /// A key that may be left out.
    pub const fn optional(name: &'static str, kind: Kind, absent: Absent, says: &'static str) -> Self {
        Self { name, kind, absent, says }
    }

    /// The names it may be given by: a secret has two.
    pub fn names(&self) -> impl Iterator<Item = String> {
        let file = matches!(self.kind, Kind::Secret(_)).then(|| format!("{}_file", self.name));
        std::iter::once(self.name.to_owned()).chain(file)
    }

    /// Whether it may be given by this name.
    pub(crate) fn is_named(&self, name: &str) -> bool {
        let is_file = || matches!(self.kind, Kind::Secret(_)) && name.strip_suffix("_file") == Some(self.name);
        self.name == name || is_file()
    }
}
