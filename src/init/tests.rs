//! The conversation with a scripted user, and what is written of it.

use std::cell::RefCell;
use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::doctor::{Finding, State};
use crate::settings::tree::{self, Node, Value};
use crate::simulate::{SERVICES, Told};

/// What the user does next.
#[derive(Debug)]
enum Does {
    Types(String),
    /// Takes the option that begins so.
    Takes(&'static str),
    Says(bool),
}

fn types(text: &str) -> Does {
    Does::Types(text.into())
}

/// Plays a user, and notes what was said.
#[derive(Default)]
struct Script {
    does: VecDeque<Does>,
    told: Vec<String>,
    asked: Vec<Question>,
    offered: Vec<Vec<String>>,
}

impl Script {
    fn of(does: impl IntoIterator<Item = Does>) -> Self {
        Self { does: does.into_iter().collect(), ..Self::default() }
    }

    fn next(&mut self, question: &str) -> Result<Does, Ended> {
        self.told.push(question.to_owned());
        self.does.pop_front().ok_or(Ended::Interrupted)
    }
}

impl Dialog for Script {
    fn text(&mut self, question: &Question, check: Check<'_>) -> Result<String, Ended> {
        self.asked.push(question.clone());
        loop {
            let Does::Types(text) = self.next(&question.message)? else { panic!("{question:?} wants a text") };
            let text = if text.is_empty() { question.default.clone().unwrap_or(text) } else { text };
            match check(&text) {
                Ok(()) => return Ok(text),
                Err(why) => self.told.push(why),
            }
        }
    }

    fn secret(&mut self, question: &Question, check: SecretCheck) -> Result<SecretString, Ended> {
        self.text(question, &*check).map(SecretString::from)
    }

    fn choose(&mut self, message: &str, options: &[String]) -> Result<usize, Ended> {
        self.offered.push(options.to_vec());
        let Does::Takes(start) = self.next(message)? else { panic!("{message} wants a choice of {options:?}") };
        let place = options.iter().position(|option| option.starts_with(start));
        Ok(place.unwrap_or_else(|| panic!("{start} is not in {options:?}")))
    }

    fn confirm(&mut self, message: &str, _: bool) -> Result<bool, Ended> {
        let Does::Says(yes) = self.next(message)? else { panic!("{message} wants yes or no") };
        Ok(yes)
    }

    fn tell(&mut self, text: &str) {
        self.told.push(text.to_owned());
    }
}

fn place() -> Place {
    Place { config: "/etc/audit/a.yml".into(), secrets: "/etc/audit/secrets".into(), for_unit: false }
}

fn findings(source: &SourceConfig, wrong: Option<&str>) -> Findings {
    let (state, text) = wrong.map_or((State::Good, "all is well"), |wrong| (State::Wrong, wrong));
    let list = vec![Finding { state, text: text.to_owned() }];
    Findings { source: source.name.to_string(), system: source.system().to_string(), list }
}

/// The conversation with a service that says these things one after the other, and then that all is well; so does `""`.
async fn talk(script: &mut Script, wrong: &[&'static str]) -> Result<Vec<Draft>, Ended> {
    let wrong = RefCell::new(wrong.iter().copied().collect::<VecDeque<_>>());
    let try_out = async |source: &SourceConfig| {
        let wrong = wrong.borrow_mut().pop_front();
        findings(source, wrong.filter(|wrong| !wrong.is_empty()))
    };
    let outcome = interview(script, &place(), |_| false, try_out).await;
    assert!(script.does.is_empty() || outcome.is_err(), "not asked for: {:?}", script.does);
    outcome
}

/// What a user answers who wants to read a simulated service, in the order of its keys.
fn answers(system: &System) -> Vec<Does> {
    let service = SERVICES.iter().find(|service| service.system == system.name).unwrap();
    let told = |key: &Key| service.keys.iter().find(|(name, _)| *name == key.name).map(|(_, told)| told);
    let answer = |key: &Key| match (told(key), key.kind) {
        (Some(Told::Address(path)), _) => types(&format!("http://127.0.0.1:1{path}")),
        (Some(Told::Text(text)), _) => types(text),
        (Some(Told::Yaml(text)), Kind::Texts) => types(&text.replace(['[', ']', '"'], "")),
        (Some(Told::Credential), _) => types(service.secret()),
        (_, Kind::Flag) => Does::Says(key.absent == Absent::Is("true")),
        _ => types(""),
    };
    system.keys.iter().map(answer).collect()
}

#[tokio::test]
async fn what_is_written_for_every_system_is_what_the_parser_takes_and_shows_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place { config: folder.path().join("a.yml"), secrets: folder.path().join("secrets"), for_unit: false };
    let mut does = Vec::new();
    for (index, system) in SYSTEMS.iter().enumerate() {
        does.push(Does::Takes(system.title));
        does.push(types(&format!("source-{index}")));
        does.extend(answers(system));
        does.push(Does::Says(index + 1 < SYSTEMS.len()));
    }
    let mut script = Script::of(does);
    let drafts = talk(&mut script, &[]).await.unwrap();
    let files = files(&drafts, &place);
    disk::create(&files, &place.secrets).unwrap();
    let config = config::load(&place.config).unwrap();
    assert_eq!(config.warnings, []);
    let systems: Vec<_> = config.sources.iter().map(SourceConfig::system).collect();
    assert_eq!(systems, SYSTEMS.map(|system| system.name));
    let text = std::fs::read_to_string(&place.config).unwrap();
    assert!(text.starts_with("# yaml-language-server: $schema="), "{text}");
    for (source, service) in config.sources.iter().zip(SERVICES) {
        assert_eq!(source.secret().read().unwrap().expose_secret(), service.secret());
        assert!(source.secret().path().unwrap().starts_with(&place.secrets));
        assert!(!text.contains(service.secret()) && !script.told.concat().contains(service.secret()));
    }
    // a key that was not answered is there as a comment
    for key in SYSTEMS.iter().flat_map(|system| system.keys) {
        assert!(text.contains(key.says) && text.contains(key.name), "{} in\n{text}", key.name);
    }
    let modes: Vec<u32> = files.iter().map(|file| file.mode).collect();
    assert_eq!(modes, [0o600, 0o600, 0o600, 0o600, 0o600, 0o644]);
}

/// The value at `key` of the only source in a text.
fn read_back(text: &str, key: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let mut node = tree::read(text, &mut problems).unwrap_or_else(|| panic!("{problems:?} in\n{text}"));
    let mut value_of = |name: Option<&str>| {
        let Value::Map(entries) = &node.value else { panic!("no mapping in\n{text}") };
        let found = entries.iter().find(|(key, _)| name.is_none_or(|name| key.text == name));
        node = found.unwrap_or_else(|| panic!("no {name:?} in\n{text}")).1.clone();
    };
    value_of(Some("sources"));
    value_of(None);
    let Value::List(sources) = &node.value else { panic!("no list in\n{text}") };
    let Value::Map(entries) = &sources[0].value else { panic!("no source in\n{text}") };
    let found = entries.iter().find(|(name, _)| name.text == key).unwrap_or_else(|| panic!("no {key} in\n{text}"));
    let scalar = |node: &Node| match &node.value {
        Value::Scalar { text, .. } => text.clone(),
        _ => panic!("no text at {key} in\n{text}"),
    };
    match &found.1.value {
        Value::List(items) => items.iter().map(scalar).collect(),
        _ => vec![scalar(&found.1)],
    }
}

/// Answers that YAML could take for something else.
const NASTY: &[&str] = &[
    "a\"b'c`d",
    "# no comment",
    "a #b",
    "key: value",
    "ends with:",
    "- item",
    "two\nlines",
    "two\r\nlines",
    "{a: b}",
    "[a]",
    "null",
    "~",
    "true",
    "0x1f",
    "1e3",
    "&a",
    "*a",
    "!tag",
    "%dir",
    "@at",
    "|",
    ">",
    "? a",
    "\\n \\",
    "müller@exämple.de",
    "пользователь",
    "\u{1f600}",
    "a\u{85}b\u{2028}c\u{feff}d",
    "\u{0}\u{7}\u{7f}",
    "tab\there",
    "---",
    "...",
];

fn drafts_with(value: &str) -> impl Iterator<Item = (Draft, Key)> {
    SYSTEMS.iter().flat_map(move |system| {
        let draft = Draft::new(system, "a".into());
        let with = move |key: &Key| {
            let answer = match key.kind {
                Kind::Texts => Answer::Texts(vec![value.to_owned(), "b".into()]),
                Kind::Secret(_) => Answer::Secret(value.into()),
                _ => Answer::Text(value.to_owned()),
            };
            (draft.with(key, answer), *key)
        };
        system.keys.iter().map(with).collect::<Vec<_>>()
    })
}

fn is_read_back(value: &str) {
    for (draft, key) in drafts_with(value) {
        let tried = text::tried(&draft);
        assert_eq!(read_back(&tried, key.name)[0], value, "{} of {}", key.name, draft.system.name);
        let written = text::whole(&[draft], &place());
        match key.kind {
            Kind::Secret(_) => {
                assert_eq!(read_back(&written, &format!("{}_file", key.name)), [format!("secrets/a.{}", key.name)]);
            }
            _ => assert_eq!(read_back(&written, key.name)[0], value),
        }
    }
}

#[test]
fn every_answer_is_read_back_as_it_was_given_whatever_yaml_thinks_of_it() {
    for nasty in NASTY {
        is_read_back(nasty);
    }
    is_read_back(&"x".repeat(20_000));
    is_read_back(&"ü: #\" ".repeat(3_000));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_text_is_read_back(text in "\\PC{1,30}|[ -~]{1,30}|(?s:.{1,10})") {
        is_read_back(&text);
    }
}

/// A key of any system, for what is the same for all of its kind.
fn a_key(kind: impl Fn(Kind) -> bool) -> (Draft, Key) {
    let mut found = SYSTEMS.iter().flat_map(|system| system.keys.iter().map(move |key| (system, key)));
    let (system, key) = found.find(|(_, key)| kind(key.kind) && key.absent == Absent::Refused).unwrap();
    (Draft::new(system, "a".into()), *key)
}

#[test]
fn a_bad_answer_is_refused_with_the_words_of_the_parser() {
    let (draft, url) = a_key(|kind| matches!(kind, Kind::Url));
    let check = |text: &str| check_answer(&draft, &url, text, &place());
    let refused = |text: &str, says: &str| {
        let why = check(text).unwrap_err();
        assert!(why.contains(says), "{text:?}: {why}");
    };
    refused("", "this key is required");
    refused("  \n", "this key is required");
    refused("canvas.example.edu", "is not a URL");
    refused("http://canvas.example.edu", "plain http://");
    refused("https://user:password@canvas.example.edu", "user or password");
    assert_eq!(check(" https://canvas.example.edu\n"), Ok(()));
    for (text, says) in [
        ("", "it is empty"),
        ("two\nlines", "has a line end inside"),
        (" hunter2", "has a blank"),
        ("Bearer hunter2", "begins with the word `Bearer`"),
        ("${TOKEN}", "is a placeholder"),
        (&"x".repeat(SECRET_BYTES_MAX), "is longer than"),
    ] {
        let why = check_secret(text, Form::Token).unwrap_err();
        assert!(why.contains(says) && !why.contains("hunter2"), "{text:?}: {why}");
    }
    assert_eq!(check_secret("hunter2\n", Form::Token), Ok(()));
    let (draft, texts) = a_key(|kind| matches!(kind, Kind::Texts));
    let why = check_answer(&draft, &texts, "one, two, one", &place()).unwrap_err();
    assert!(why.contains("is listed twice"), "{why}");
}

#[tokio::test]
async fn a_name_that_is_taken_or_whose_file_is_there_is_refused() {
    let system = SYSTEMS[0];
    let exists = |path: &Path| path.ends_with("there.access_token");
    let drafts = [Draft::new(system, "taken".into())];
    let check = |name: &str| check_name(name, system, &drafts, &place(), exists);
    assert!(check("taken").unwrap_err().contains("another source of this file is called taken"));
    assert!(check("there").unwrap_err().contains("/etc/audit/secrets/there.access_token is in the way"));
    assert!(check("No Name").unwrap_err().contains("a source name is"));
    assert_eq!(check("free"), Ok(()));
}

/// Answers of a user for one source, and what she does after its try.
fn one_source(name: &str, then: impl IntoIterator<Item = Does>) -> Vec<Does> {
    let system = SYSTEMS[3];
    [Does::Takes(system.title), types(name)].into_iter().chain(answers(system)).chain(then).collect()
}

const REFUSED: &str = "cannot read it: 401. Fix: make a new token, and put it into `api_token`";

#[tokio::test]
async fn a_refused_credential_is_asked_for_again_with_the_reason() {
    let then = [Does::Takes("change api_token"), types("another-token"), Does::Says(false)];
    let mut script = Script::of(one_source("iot", then));
    let drafts = talk(&mut script, &[REFUSED]).await.unwrap();
    assert!(!drafts[0].is_refused());
    let files = files(&drafts, &place());
    assert_eq!(files[0].text.expose_secret(), "another-token\n");
    assert_eq!(files[0].path, Path::new("/etc/audit/secrets/iot.api_token"));
    assert!(script.told.iter().any(|told| told.contains(REFUSED)), "{:?}", script.told);
    // what the remedy names stands first, and no secret in the list
    let menu = script.offered.last().unwrap();
    assert_eq!(menu[0], "change api_token");
    assert_eq!(menu[1], "change base_url (now http://127.0.0.1:1)");
    assert_eq!(menu[3..], ["try again", "keep it as it is", "give up; nothing is written"]);
}

#[tokio::test]
async fn what_is_refused_can_be_kept_left_out_or_end_it_all() {
    let kept = [Does::Takes("try again"), Does::Takes("keep it"), Does::Says(false)];
    let drafts = talk(&mut Script::of(one_source("iot", kept)), &[REFUSED, REFUSED]).await.unwrap();
    assert!(drafts[0].is_refused() && drafts[0].name() == "iot");
    let given_up = talk(&mut Script::of(one_source("iot", [Does::Takes("give up")])), &[REFUSED]).await;
    assert_eq!(given_up.err(), Some(Ended::GivenUp));
    // the first was well, so there is something without the second
    let mut does = one_source("one", [Does::Says(true)]);
    does.extend(one_source("two", [Does::Takes("leave this source out"), Does::Says(false)]));
    let one = talk(&mut Script::of(does), &["", "no such instance"]).await.unwrap();
    assert_eq!(one.iter().map(Draft::name).collect::<Vec<_>>(), ["one"]);
}

#[tokio::test]
async fn what_only_the_whole_of_a_source_shows_is_asked_again_without_a_try() {
    // no id in any of three lists, each of which may be empty
    let system = SYSTEMS[0];
    let mut does =
        vec![Does::Takes(system.title), types("campus"), types("https://canvas.example.edu"), types("token")];
    does.extend([types(""), types(""), types(""), Does::Takes("change accounts"), types("1, 2"), Does::Says(false)]);
    let mut script = Script::of(does);
    let drafts = talk(&mut script, &[]).await.unwrap();
    let menu = script.offered.last().unwrap();
    assert_eq!(
        menu[..3].join(" "),
        "change accounts (now not given) change users (now not given) change pseudonyms (now not given)"
    );
    assert!(!menu.iter().any(|option| option.starts_with("keep")), "it cannot be kept: {menu:?}");
    let text = text::whole(&drafts, &place());
    assert_eq!(read_back(&text, "accounts"), ["1", "2"]);
}

#[tokio::test]
async fn what_was_answered_before_stands_there_when_it_is_asked_again() {
    let then = [Does::Takes("change base_url"), types("http://127.0.0.1:2"), Does::Says(false)];
    let mut script = Script::of(one_source("iot", then));
    talk(&mut script, &["the name cannot be resolved"]).await.unwrap();
    let last = script.asked.last().unwrap();
    assert_eq!(last.before.as_deref(), Some("http://127.0.0.1:1"));
    assert_eq!(last.default.as_deref(), Some("https://api.losant.com"));
}

#[tokio::test]
async fn ctrl_c_at_any_question_ends_it() {
    let all = one_source("iot", [Does::Says(false)]).len();
    for answered in 0..all {
        let does = one_source("iot", [Does::Says(false)]).into_iter().take(answered);
        let ended = talk(&mut Script::of(does), &[]).await;
        assert_eq!(ended.err(), Some(Ended::Interrupted), "after {answered} answers");
    }
}

#[test]
fn secrets_elsewhere_are_named_by_their_whole_path() {
    let secrets = "/run/secrets/audit exporter".into();
    let place = Place { config: "/etc/audit/a.yml".into(), secrets, for_unit: false };
    let (draft, key) = a_key(|kind| matches!(kind, Kind::Secret(_)));
    let text = text::whole(&[draft.with(&key, Answer::Secret("s".into()))], &place);
    let named = read_back(&text, &format!("{}_file", key.name));
    assert_eq!(named, [format!("/run/secrets/audit exporter/a.{}", key.name)]);
}

#[test]
fn the_files_of_the_unit_are_where_the_unit_looks_for_them() {
    let unit = include_str!("../../packaging/systemd/audit-exporter.service");
    let place = Place::of_unit();
    let says = |line: &str| assert!(unit.contains(line), "{line} in {unit}");
    says(&format!("--config.file={}", place.config.display()));
    says(&format!("LoadCredential=secrets:{}\n", place.secrets.display()));
    says(&format!("\nStateDirectory={}\n", place.store().strip_prefix("/var/lib/").unwrap()));
    let (draft, key) = a_key(|kind| matches!(kind, Kind::Secret(_)));
    let drafts = [draft.with(&key, Answer::Secret("s".into()))];
    let written = files(&drafts, &place);
    let (secret, config) = (&written[0], &written[1]);
    assert_eq!(secret.path, Path::new(&format!("/etc/audit-exporter/secrets/a.{}", key.name)));
    assert_eq!((secret.mode, secret.whatever_umask, config.mode, config.whatever_umask), (0o600, false, 0o644, true));
    let text = config.text.expose_secret();
    let named = format!("/run/credentials/audit-exporter.service/secrets_a.{}", key.name);
    assert_eq!(read_back(text, &format!("{}_file", key.name)), [named]);
    assert!(text.contains("\n  path: /var/lib/audit-exporter\n"), "{text}");
}
