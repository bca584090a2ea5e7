//! Passwords as bcrypt hashes.
//!
//! Promises: reads hashes as Go's `bcrypt` does; compares in a time that tells nothing about the password.
//!
//! Leaves to others: who may ask and how often a password is compared (`protect.rs`).

use base64::Engine;
use base64::alphabet::BCRYPT;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};

/// The 31 characters that no bcrypt result equals: its last character is never `9`, of which two bits belong to no
/// byte.
const NO_RESULT: &str = "9999999999999999999999999999999";

/// A hash of this cost that is right for no password.
pub(super) fn hash_of_nothing(cost: u32) -> String {
    format!("$2y${cost:02}$QOauhQNbBCuQDKes6eFzPe{NO_RESULT}")
}

/// The cost of a bcrypt hash, where Go's `bcrypt.Cost` finds one: at least 59 bytes, `$2`, an
/// optional letter, `$` and 4 to 31 in two digits. The rest is not looked at.
pub(super) fn cost_of(hash: &str) -> Option<u32> {
    let (cost, _) = split(hash)?;
    Some(cost)
}

/// The cost, and salt and result behind it.
fn split(hash: &str) -> Option<(u32, &[u8])> {
    if hash.len() < 59 {
        return None;
    }
    let rest = hash.as_bytes().strip_prefix(b"$2")?;
    // the letter says which old mistakes the maker avoided; Go, too, takes any
    let rest = if rest.first() == Some(&b'$') { &rest[1..] } else { rest.get(2..)? };
    let (cost, rest) = rest.split_at_checked(2)?;
    let cost: u32 = std::str::from_utf8(cost).ok()?.parse().ok()?;
    (4..=31).contains(&cost).then_some((cost, rest.get(1..)?))
}

/// Whether the hash is that of the password. A hash whose salt cannot be read fits none.
pub(super) fn fits(hash: &str, password: &[u8]) -> bool {
    let fitting = || {
        // 22 characters hold 16 bytes and 4 bits that some makers leave set
        let lenient = GeneralPurpose::new(
            &BCRYPT,
            GeneralPurposeConfig::new()
                .with_encode_padding(false)
                .with_decode_allow_trailing_bits(true)
                .with_decode_padding_mode(base64::engine::DecodePaddingMode::RequireNone),
        );
        let (cost, rest) = split(hash)?;
        let salt: [u8; 16] = lenient.decode(rest.get(..22)?).ok()?.try_into().ok()?;
        let made = bcrypt::hash_with_salt(password, cost, salt).ok()?.to_string();
        // blake3's comparison takes the same time for every difference
        Some(blake3::hash(made.as_bytes().get(29..60)?) == blake3::hash(rest.get(22..53)?))
    };
    fitting().unwrap_or(false)
}
