//! `audit-exporter init`: a first configuration by questions.
//!
//! Promises:
//! - The questions are the keys of the system (`System::keys`), so a new system needs nothing here.
//! - Whether an answer will do is what the parser of the configuration says, and `doctor` of the service.
//! - Nothing is written before the last answer. What is written is new: no file is overwritten (`disk.rs`).
//! - A secret is in a file of its own, never in the configuration, and no message shows it.
//!
//! Leaves to others: the terminal (whoever is a [`Dialog`]), the try of the credential, writing (`disk.rs`), the text of the
//! file (`text.rs`).

pub mod disk;
mod text;

use std::path::{Path, PathBuf};
use std::rc::Rc;

use secrecy::{ExposeSecret, SecretString};

use crate::config::{self, SourceConfig};
use crate::doctor::Findings;
use crate::event::SourceName;
use crate::settings::secret::{SECRET_BYTES_MAX, check_file_text};
use crate::settings::{Absent, Form, Key, Kind, Problem};
use crate::source::System;
use crate::source::registry::SYSTEMS;

/// Asks somebody. The terminal is one; the tests have another.
pub trait Dialog {
    /// A text in which `check` finds nothing wrong.
    fn text(&mut self, question: &Question, check: Check<'_>) -> Result<String, Ended>;
    /// The same, and nobody sees what is typed.
    fn secret(&mut self, question: &Question, check: SecretCheck) -> Result<SecretString, Ended>;
    /// Which of these.
    fn choose(&mut self, message: &str, options: &[String]) -> Result<usize, Ended>;
    /// Yes or no.
    fn confirm(&mut self, message: &str, default: bool) -> Result<bool, Ended>;
    /// Something to know before the next question.
    fn tell(&mut self, text: &str);
}

/// Says what is wrong with an answer.
pub type Check<'a> = &'a dyn Fn(&str) -> Result<(), String>;
/// The same of a secret.
pub type SecretCheck = Rc<dyn Fn(&str) -> Result<(), String>>;

/// What is asked for a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// The question.
    pub message: String,
    /// What else to know.
    pub help: Option<String>,
    /// What no answer means.
    pub default: Option<String>,
    /// What the answer was before.
    pub before: Option<String>,
}

/// Why there is no configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Ctrl-C.
    Interrupted,
    /// The user gave up.
    GivenUp,
    /// The questions could not be asked.
    Failed(String),
}

/// Where the files will be: absolute paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The configuration file.
    pub config: PathBuf,
    /// The folder of the secrets.
    pub secrets: PathBuf,
    /// Whether systemd hands the secrets to the exporter: the unit of the packages.
    pub for_unit: bool,
}

/// What the unit of the packages is given (`packaging/systemd/audit-exporter.service`).
const UNIT_CONFIG: &str = "/etc/audit-exporter/audit-exporter.yml";
const UNIT_SECRETS: &str = "/etc/audit-exporter/secrets";
/// Where the unit finds a secret: before the name of its file.
const UNIT_CREDENTIAL: &str = "/run/credentials/audit-exporter.service/secrets_";
const UNIT_STORE: &str = "/var/lib/audit-exporter";

impl Place {
    /// Where the unit of the packages takes its files from.
    pub fn of_unit() -> Self {
        Self { config: UNIT_CONFIG.into(), secrets: UNIT_SECRETS.into(), for_unit: true }
    }

    /// The folder of the counters, as the configuration names it.
    fn store(&self) -> &'static str {
        if self.for_unit { UNIT_STORE } else { "./data" }
    }

    /// The file of a secret.
    fn secret(&self, source: &str, key: &Key) -> PathBuf {
        self.secrets.join(format!("{source}.{}", key.name))
    }

    /// The file of a secret as the configuration names it: from its own folder on where that is possible.
    fn named(&self, path: &Path) -> String {
        if let (true, Some(file)) = (self.for_unit, path.file_name()) {
            return format!("{UNIT_CREDENTIAL}{}", file.display());
        }
        let folder = self.config.parent().unwrap_or(Path::new(""));
        path.strip_prefix(folder).unwrap_or(path).display().to_string()
    }
}

/// A source, as far as it is answered.
#[derive(Clone)]
pub struct Draft {
    system: &'static System,
    name: String,
    /// In the order of the keys.
    answers: Vec<(Key, Answer)>,
    /// The service refused it, and the user keeps it.
    refused: bool,
}

/// What stands at a key.
#[derive(Clone)]
enum Answer {
    /// Nothing: what the key means where it is not given.
    Absent,
    Text(String),
    Texts(Vec<String>),
    Secret(SecretString),
}

impl Draft {
    fn new(system: &'static System, name: String) -> Self {
        Self { system, name, answers: Vec::new(), refused: false }
    }

    /// What the source is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the service did not accept it when it was tried.
    pub fn is_refused(&self) -> bool {
        self.refused
    }

    fn answer(&self, key: &Key) -> Option<&Answer> {
        self.answers.iter().find(|(known, _)| known.name == key.name).map(|(_, answer)| answer)
    }

    /// The same with another answer.
    fn with(&self, key: &Key, answer: Answer) -> Self {
        let mut draft = self.clone();
        match draft.answers.iter_mut().find(|(known, _)| known.name == key.name) {
            Some((_, before)) => *before = answer,
            None => draft.answers.push((*key, answer)),
        }
        draft
    }
}

/// A file to create.
pub struct NewFile {
    /// Where.
    pub path: PathBuf,
    /// Who may read it, less what the umask takes away.
    pub mode: u32,
    /// Whether the umask takes nothing away: somebody else must read it.
    pub whatever_umask: bool,
    /// What stands in it. It may be a secret.
    pub text: SecretString,
}

/// Who may read a secret: its owner.
const SECRET_MODE: u32 = 0o600;
/// Who may read the configuration: everybody. It holds no secret.
const CONFIG_MODE: u32 = 0o644;

/// The files of these sources, the configuration last.
pub fn files(drafts: &[Draft], place: &Place) -> Vec<NewFile> {
    let secret = |draft: &Draft, key: &Key, answer: &Answer| match answer {
        Answer::Secret(secret) => {
            let text = format!("{}\n", secret.expose_secret()).into();
            Some(NewFile { path: place.secret(&draft.name, key), mode: SECRET_MODE, whatever_umask: false, text })
        }
        _ => None,
    };
    let secrets = drafts.iter().flat_map(|draft| draft.answers.iter().map(move |(key, answer)| (draft, key, answer)));
    let secrets = secrets.filter_map(|(draft, key, answer)| secret(draft, key, answer));
    let text = text::whole(drafts, place).into();
    // the user of the unit is none that could be made the owner
    let config = NewFile { path: place.config.clone(), mode: CONFIG_MODE, whatever_umask: place.for_unit, text };
    secrets.chain(std::iter::once(config)).collect()
}

// === the conversation ===

/// Asks for sources until there are enough. `try_out` is what `doctor` says of one; `exists` is whether there is a file.
pub async fn interview<D: Dialog>(
    dialog: &mut D,
    place: &Place,
    exists: impl Fn(&Path) -> bool,
    try_out: impl AsyncFn(&SourceConfig) -> Findings,
) -> Result<Vec<Draft>, Ended> {
    let mut drafts: Vec<Draft> = Vec::new();
    loop {
        let titles: Vec<String> = SYSTEMS.iter().map(|system| system.title.to_owned()).collect();
        let system = SYSTEMS[dialog.choose("Which system do you want to read?", &titles)?];
        let check = |text: &str| check_name(text.trim(), system, &drafts, place, &exists);
        let question = Question {
            message: "Name of this source:".into(),
            help: Some("the label `source` of its metrics: a-z, 0-9, _ and -".into()),
            ..Question::default()
        };
        let name = dialog.text(&question, &check)?.trim().to_owned();
        let mut draft = Draft::new(system, name);
        for key in system.keys {
            draft = ask(dialog, &draft, key, place)?;
        }
        if let Some(draft) = settle(dialog, draft, place, !drafts.is_empty(), &try_out).await? {
            drafts.push(draft);
        }
        if !dialog.confirm("Add another source?", false)? {
            return Ok(drafts);
        }
    }
}

/// Whether a source may have this name.
fn check_name(
    name: &str,
    system: &System,
    drafts: &[Draft],
    place: &Place,
    exists: impl Fn(&Path) -> bool,
) -> Result<(), String> {
    name.parse::<SourceName>().map_err(|error| error.to_string())?;
    if drafts.iter().any(|draft| draft.name == name) {
        return Err(format!("another source of this file is called {name}: give another name"));
    }
    let secrets = system.keys.iter().filter(|key| matches!(key.kind, Kind::Secret(_)));
    match secrets.map(|key| place.secret(name, key)).find(|path| exists(path)) {
        Some(path) => Err(format!("{} is in the way: give another name, or remove that file", path.display())),
        None => Ok(()),
    }
}

/// Asks for one key.
fn ask<D: Dialog>(dialog: &mut D, draft: &Draft, key: &Key, place: &Place) -> Result<Draft, Ended> {
    let question = question(draft, key);
    let check = |text: &str| check_answer(draft, key, text, place);
    let answer = match key.kind {
        // none of the services has one
        Kind::Section(_) | Kind::Sections(_) => Answer::Absent,
        Kind::Flag => {
            let default = key.absent == Absent::Is("true");
            let wanted = dialog.confirm(&question.message, default)?;
            if wanted == default { Answer::Absent } else { Answer::Text(wanted.to_string()) }
        }
        Kind::Secret(form) => {
            let secret = dialog.secret(&question, Rc::new(move |text: &str| check_secret(text, form)))?;
            Answer::Secret(without_line_ends(secret.expose_secret()).into())
        }
        _ => understood(key, &dialog.text(&question, &check)?),
    };
    Ok(draft.with(key, answer))
}

/// The question for a key.
fn question(draft: &Draft, key: &Key) -> Question {
    let says = key.says.trim_end_matches('.');
    let colon = if matches!(key.kind, Kind::Flag) { "?" } else { ":" };
    let mut help = Vec::new();
    if matches!(key.kind, Kind::Texts) {
        help.push("several: with commas between them".to_owned());
    }
    match key.absent {
        Absent::Nothing | Absent::Usual => help.push("press Enter to leave it out".to_owned()),
        Absent::Means(means) => help.push(format!("press Enter for {means}")),
        Absent::Refused | Absent::Is(_) => {}
    }
    if matches!(key.kind, Kind::Secret(_)) {
        help.push("it is not shown, and goes into a file of its own".to_owned());
    }
    Question {
        message: format!("{} ({says}){colon}", key.name),
        help: (!help.is_empty()).then(|| help.join("; ")),
        default: if let Absent::Is(default) = key.absent { Some(default.to_owned()) } else { None },
        before: match draft.answer(key) {
            Some(Answer::Text(text)) => Some(text.clone()),
            Some(Answer::Texts(texts)) => Some(texts.join(", ")),
            Some(Answer::Absent | Answer::Secret(_)) | None => None,
        },
    }
}

/// What was answered, without the blanks and line ends that came along when it was pasted.
fn understood(key: &Key, text: &str) -> Answer {
    let text = text.trim();
    if text.is_empty() || matches!(key.absent, Absent::Is(default) if default == text) {
        return Answer::Absent;
    }
    match key.kind {
        Kind::Texts => {
            let texts = text.split(',').map(str::trim).filter(|text| !text.is_empty());
            Answer::Texts(texts.map(str::to_owned).collect())
        }
        _ => Answer::Text(text.to_owned()),
    }
}

/// A secret without what a terminal adds at the end of a pasted line. A blank stays: it may belong to a password, and is
/// told of.
fn without_line_ends(secret: &str) -> &str {
    secret.trim_end_matches(['\n', '\r'])
}

/// What the parser of the configuration says of an answer.
fn check_answer(draft: &Draft, key: &Key, text: &str, place: &Place) -> Result<(), String> {
    match understood(key, text) {
        Answer::Absent if key.absent == Absent::Refused => Err("this key is required".into()),
        Answer::Absent => Ok(()),
        answer => {
            let text = text::tried(&draft.with(key, answer));
            match problems_of(key, &text, place).first() {
                Some(problem) => Err(problem.message.clone()),
                None => Ok(()),
            }
        }
    }
}

/// What the file of a secret would be refused for.
fn check_secret(secret: &str, form: Form) -> Result<(), String> {
    let secret = without_line_ends(secret);
    if secret.len() >= SECRET_BYTES_MAX {
        return Err(format!("it is longer than {SECRET_BYTES_MAX} bytes"));
    }
    check_file_text(secret, form).map_err(|why| format!("it {why}"))
}

/// The problems at the line of a key. Other keys may be missing so far.
fn problems_of(key: &Key, text: &str, place: &Place) -> Vec<Problem> {
    let Err(errors) = config::parse(text, &place.config) else { return Vec::new() };
    let begins = |line: &str| line.trim_start().split_once(':').is_some_and(|(name, _)| key.is_named(name));
    let Some(line) = text.lines().position(begins) else { return Vec::new() };
    errors.problems().iter().filter(|problem| problem.line == line + 1).cloned().collect()
}

// === the try ===

/// What to do about a source that will not do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    /// Answer the key of this name again.
    Change(&'static str),
    Again,
    Keep,
    LeaveOut,
    GiveUp,
}

/// Tries a source until the service accepts it, or the user keeps it as it is; `None` if it is left out. `others`: whether
/// there are sources without it.
async fn settle<D: Dialog>(
    dialog: &mut D,
    mut draft: Draft,
    place: &Place,
    others: bool,
    try_out: &impl AsyncFn(&SourceConfig) -> Findings,
) -> Result<Option<Draft>, Ended> {
    loop {
        let (wrong, valid) = match config::parse(&text::tried(&draft), &place.config) {
            Err(errors) => {
                let messages = errors.problems().iter().map(|problem| problem.message.as_str());
                (messages.collect::<Vec<_>>().join("\n"), false)
            }
            Ok(config) => {
                let [source] = &config.sources[..] else {
                    return Err(Ended::Failed("a source was lost between the answers and the parser".into()));
                };
                config.warnings.iter().for_each(|warning| dialog.tell(&format!("note: {}", warning.message)));
                let findings = try_out(source).await;
                if !findings.wrong() {
                    dialog.tell(&findings.to_string());
                    return Ok(Some(draft));
                }
                (findings.to_string(), true)
            }
        };
        dialog.tell(&wrong);
        let (nexts, options): (Vec<Next>, Vec<String>) = menu(&draft, &wrong, valid, others).into_iter().unzip();
        match nexts[dialog.choose("What now?", &options)?] {
            Next::Change(name) => {
                let key = draft.system.keys.iter().find(|key| key.name == name);
                draft = ask(dialog, &draft, key.expect("a key of the menu is one of the system"), place)?;
            }
            Next::Again => {}
            Next::Keep => return Ok(Some(Draft { refused: true, ..draft })),
            Next::LeaveOut => return Ok(None),
            Next::GiveUp => return Err(Ended::GivenUp),
        }
    }
}

/// What can be done about what is wrong, the likeliest first: to answer a key again that is named there, before all the
/// credential.
fn menu(draft: &Draft, wrong: &str, valid: bool, others: bool) -> Vec<(Next, String)> {
    let mut keys: Vec<&Key> = draft.answers.iter().map(|(key, _)| key).collect();
    keys.sort_by_key(|key| match wrong.contains(&format!("`{}`", key.name)) {
        true if matches!(key.kind, Kind::Secret(_)) => 0,
        true => 1,
        false => 2,
    });
    let change = |key: &Key| {
        let now = match draft.answer(key) {
            Some(Answer::Text(text)) => format!(" (now {text})"),
            Some(Answer::Texts(texts)) => format!(" (now {})", texts.join(", ")),
            Some(Answer::Secret(_)) => String::new(),
            Some(Answer::Absent) | None => match key.absent {
                Absent::Is(default) => format!(" (now {default})"),
                _ => " (now not given)".into(),
            },
        };
        (Next::Change(key.name), format!("change {}{now}", key.name))
    };
    let kept = [(Next::Again, "try again".into()), (Next::Keep, "keep it as it is".into())];
    let left_out = others.then(|| (Next::LeaveOut, "leave this source out".into()));
    let given_up = (Next::GiveUp, "give up; nothing is written".into());
    let kept = kept.into_iter().filter(|_| valid);
    keys.into_iter().map(change).chain(kept).chain(left_out).chain([given_up]).collect()
}

#[cfg(test)]
mod tests;
