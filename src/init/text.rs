//! The text of a configuration, from answers.
//!
//! Promises: whatever was answered, each key is one line, and the parser reads there what was answered.

use std::fmt::Write;

use secrecy::ExposeSecret;
use secrecy::zeroize::Zeroizing;

use super::{Answer, Draft, Place};
use crate::settings::{Absent, Key};
use crate::source::registry::SYSTEMS;

const HEAD: &str = "\
# yaml-language-server: $schema=config.schema.json
#
# Written by `audit-exporter init`. docs/configuration.md explains every key, docs/example.yml shows them all.
# The line above is for editors: `audit-exporter config schema` prints the schema, for a file beside this one.
# After a change: `audit-exporter check`, then SIGHUP or `POST /-/reload`.

storage:
  # The folder of the counters, created if missing; relative to this file.
  path: ";

/// The configuration file.
pub(super) fn whole(drafts: &[Draft], place: &Place) -> String {
    let in_file = |draft: &Draft, key: &Key, _: &str| {
        (format!("{}_file", key.name), place.named(&place.secret(&draft.name, key)))
    };
    format!("{HEAD}{}\n\n{}", place.store(), sources(drafts, &in_file))
}

/// A configuration of one source for a try, with the secret in it: there is no file yet.
pub(super) fn tried(draft: &Draft) -> Zeroizing<String> {
    let inline = |_: &Draft, key: &Key, secret: &str| (key.name.to_owned(), secret.to_owned());
    Zeroizing::new(sources(std::slice::from_ref(draft), &inline))
}

/// How a secret stands in the text: key and value.
type Shown<'a> = &'a dyn Fn(&Draft, &Key, &str) -> (String, String);

fn sources(drafts: &[Draft], shown: Shown<'_>) -> String {
    let mut text = "sources:\n".to_owned();
    for system in SYSTEMS {
        let own: Vec<&Draft> = drafts.iter().filter(|draft| draft.system.name == system.name).collect();
        if own.is_empty() {
            continue;
        }
        // writing to a text cannot fail
        let _ = write!(text, "  # {}\n  {}:\n", system.title, system.name);
        for draft in own {
            let _ = writeln!(text, "    - name: {}", quoted(&draft.name, ":"));
            draft.answers.iter().for_each(|(key, answer)| add(&mut text, draft, key, answer, shown));
        }
    }
    text
}

fn add(text: &mut String, draft: &Draft, key: &Key, answer: &Answer, shown: Shown<'_>) {
    let (mut name, says) = (key.name.to_owned(), key.says);
    let value = match answer {
        Answer::Text(value) => quoted(value, ":"),
        Answer::Texts(values) => {
            let values: Vec<String> = values.iter().map(|value| quoted(value, "")).collect();
            format!("[{}]", values.join(", "))
        }
        Answer::Secret(secret) => {
            let (key, value) = shown(draft, key, secret.expose_secret());
            name = key;
            quoted(&value, "/")
        }
        Answer::Absent => {
            let _ = match key.absent {
                Absent::Is(default) => writeln!(text, "      # {says} The default:\n      # {name}: {default}"),
                Absent::Means(means) => writeln!(text, "      # {name} is not given, which means {means}: {says}"),
                Absent::Nothing | Absent::Usual | Absent::Refused => {
                    writeln!(text, "      # {name} is not given: {says}")
                }
            };
            return;
        }
    };
    let _ = writeln!(text, "      # {says}\n      {name}: {value}");
}

/// A value as YAML reads it back, on one line: in quotes, unless nothing in it can mean anything else. `plain`: further
/// characters that need no quotes here.
fn quoted(value: &str, plain: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c) || plain.contains(c);
    let first_and_last = [value.chars().next(), value.chars().last()];
    let ends_well = first_and_last.into_iter().all(|end| end.is_some_and(|c| c.is_ascii_alphanumeric()));
    if value.chars().all(is_plain) && ends_well && !value.eq_ignore_ascii_case("null") {
        return value.to_owned();
    }
    let mut text = "\"".to_owned();
    for c in value.chars() {
        let code = u32::from(c);
        let _ = match c {
            '"' | '\\' => write!(text, "\\{c}"),
            ' '..='~' => write!(text, "{c}"),
            _ if c.is_alphanumeric() => write!(text, "{c}"),
            _ if code <= 0xffff => write!(text, "\\u{code:04x}"),
            _ => write!(text, "\\U{code:08x}"),
        };
    }
    text + "\""
}
