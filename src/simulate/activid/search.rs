//! The searches that ActivID's log supports.
//!
//! Promises: the documented filter grammar and nothing beyond it.
//!
//! Leaves to others: which events there are (`activid.rs`).

use chrono::{DateTime, Utc};

use super::token::Record;

/// A search's filter: clauses joined by `and`.
#[derive(Default)]
pub(super) struct Filter {
    pub(super) after: Option<DateTime<Utc>>,
    pub(super) before: Option<DateTime<Utc>>,
    pub(super) verify: bool,
    /// Attribute, operator, value.
    clauses: Vec<(String, String, String)>,
}

impl Filter {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let words = filter_words(text)?;
        let mut filter = Self::default();
        for (number, clause) in words.chunks(4).enumerate() {
            let [attribute, operator, value, joint @ ..] = clause else {
                return Err(format!("clause {} is not ATTRIBUTE OPERATOR VALUE", number + 1));
            };
            let last = (number + 1) * 4 > words.len();
            match joint {
                [] if last => {}
                [and] if and.eq_ignore_ascii_case("and") && (number + 1) * 4 < words.len() => {}
                _ => return Err("clauses are joined by 'and' only".to_owned()),
            }
            let operator = operator.to_ascii_lowercase();
            match (attribute.as_str(), operator.as_str()) {
                ("meta.created", "gt") => {
                    let at = moment(value)?;
                    filter.after = Some(filter.after.map_or(at, |after| after.max(at)));
                }
                ("meta.created", "lt") => {
                    let at = moment(value)?;
                    filter.before = Some(filter.before.map_or(at, |before| before.min(at)));
                }
                ("verify", "eq") if value == "true" => filter.verify = true,
                ("type", "eq" | "co" | "ew" | "sw")
                | (
                    "directUserExtId" | "indirectUserExtId" | "authenticationType" | "resourceUris" | "eventId"
                    | "correlationId" | "status",
                    "eq",
                ) => filter.clauses.push((attribute.clone(), operator, value.clone())),
                _ => return Err(format!("{attribute} {operator} {value} is not supported")),
            }
        }
        Ok(filter)
    }

    pub(super) fn admits(&self, record: &Record) -> bool {
        self.clauses.iter().all(|(attribute, operator, value)| {
            let held = match attribute.as_str() {
                "type" | "eventId" => record.kind.as_str(),
                "directUserExtId" => &record.direct_user,
                "indirectUserExtId" => &record.indirect_user,
                "authenticationType" => &record.authentication_type,
                "correlationId" => &record.correlation_id,
                "resourceUris" if record.resource_uri.contains("/Users/") => &record.resource_uri,
                "status" => record.status.as_deref().unwrap_or(""),
                _ => return false,
            };
            let bare = value.trim_matches('*');
            match operator.as_str() {
                "co" => held.contains(bare),
                "sw" => held.starts_with(bare),
                "ew" => held.ends_with(bare),
                _ => match (value.starts_with('*') && value.len() > 1, value.ends_with('*')) {
                    (true, true) => held.contains(bare),
                    (true, false) => held.ends_with(bare),
                    (false, true) => held.starts_with(bare),
                    (false, false) => held == value,
                },
            }
        })
    }
}

/// The words of a filter; a quoted one may hold blanks.
fn filter_words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut letters = text.chars().peekable();
    while let Some(first) = letters.next() {
        if first.is_whitespace() {
            continue;
        }
        let mut word = String::new();
        if first == '"' {
            loop {
                match letters.next() {
                    Some('"') => break,
                    Some('\\') => word.extend(letters.next()),
                    Some(letter) => word.push(letter),
                    None => return Err("a quoted value does not end".to_owned()),
                }
            }
        } else {
            word.push(first);
            while let Some(letter) = letters.next_if(|letter| !letter.is_whitespace()) {
                word.push(letter);
            }
            if word.starts_with('(') {
                return Err("grouping is not supported".to_owned());
            }
        }
        words.push(word);
    }
    Ok(words)
}

/// `yyyy-MM-dd'T'HH:mm:ss[.SSS](Z|+0200|+02:00)`.
fn moment(text: &str) -> Result<DateTime<Utc>, String> {
    let shaped = text.len() >= 20 && text.as_bytes()[10] == b'T' && !text.contains(' ');
    text.parse::<DateTime<Utc>>().ok().filter(|_| shaped).ok_or_else(|| format!("{text} is no date"))
}
