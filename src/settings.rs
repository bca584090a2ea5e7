//! The language of the config file: what a key is, which kinds of values there are, and how what is wrong with one is
//! said. The whole file is `config.rs`.
//!
//! Leaves to others: the keys that only one service has (`source/NAME/setup.rs`).

pub mod common;
pub mod fields;
pub mod keys;
pub mod secret;
pub(crate) mod tree;
pub mod units;

pub use self::common::{Common, Header, RateLimit, Tls};
pub(crate) use self::fields::is_loopback;
pub use self::fields::{Fields, Reader, endpoint};
pub use self::keys::{Absent, Key, Kind, Zero};
pub use self::secret::{Form, Secret};
pub use self::tree::Problem;
pub use self::units::{duration_text, per_text};
