//! `init` in a terminal, as a user drives it: every answer wrong once, then right.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use audit_exporter::clock::Clock;
use audit_exporter::simulate::credentials::{CANVAS_ACCESS_TOKEN, LOSANT_API_TOKEN, LOSANT_INSTANCE_ID};
use audit_exporter::simulate::service;
use chrono::TimeDelta;
use pty_process::Size;
use pty_process::blocking::{Command, Pts, Pty, open};
use rustix::termios::{Termios, tcgetattr};
use serde_json::json;

use crate::program::{PATIENCE, Running, eventually, finish, program};

const BACKSPACE: &str = "\u{7f}";
const CTRL_C: &str = "\u{3}";
const ESCAPE: &str = "\u{1b}";

/// The program in a terminal of its own.
struct Terminal {
    keyboard: Arc<Pty>,
    /// Its other end, kept open to look at its settings.
    end: Pts,
    before: Termios,
    child: Child,
    printed: Arc<Mutex<Vec<u8>>>,
    /// How much of the text was looked at.
    seen: usize,
}

impl Terminal {
    fn start(folder: &Path, arguments: &[&str]) -> Self {
        let (pty, end) = open().unwrap();
        // wide, so that no question is wrapped
        pty.resize(Size::new(60, 250)).unwrap();
        let before = tcgetattr(end.as_fd()).unwrap();
        let binary = program(&[]).get_program().to_owned();
        let mut command = Command::new(binary).args(["init"]).args(arguments).current_dir(folder).env("TERM", "xterm");
        let child = command.spawn_borrowed(&end).unwrap();
        let keyboard = Arc::new(pty);
        let printed = Arc::<Mutex<Vec<u8>>>::default();
        let (screen, into) = (Arc::clone(&keyboard), Arc::clone(&printed));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = (&*screen).read(&mut bytes) {
                into.lock().unwrap().extend_from_slice(&bytes[..read]);
            }
        });
        Self { keyboard, end, before, child, printed, seen: 0 }
    }

    /// All that was printed, with what controls the terminal.
    fn raw(&self) -> Vec<u8> {
        self.printed.lock().unwrap().clone()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&without_controls(&self.raw())).into_owned()
    }

    /// Waits for a text after what was seen before.
    fn until(&mut self, text: &str) {
        self.seen = eventually(PATIENCE, || {
            let all = without_controls(&self.raw());
            let found = all[self.seen..].windows(text.len()).position(|window| window == text.as_bytes());
            found.map(|at| self.seen + at + text.len()).ok_or_else(|| {
                format!("{text:?}, after what is seen; unseen:\n{}", String::from_utf8_lossy(&all[self.seen..]))
            })
        });
    }

    fn types(&self, text: &str) {
        (&*self.keyboard).write_all(text.as_bytes()).unwrap();
    }

    /// Waits for a question, and answers it.
    fn answers(&mut self, question: &str, answer: &str) {
        self.until(question);
        self.types(&format!("{answer}\r"));
    }

    /// Answers all questions for a Losant source that is called `iot`.
    fn describes_losant(&mut self, simulator: &Running, token: &str) {
        self.answers("Which system", "Losant");
        self.answers("Name of this source:", "iot");
        self.answers("base_url (The API)", &format!("http://{}", simulator.address));
        self.answers("instance_id (The instance)", LOSANT_INSTANCE_ID);
        self.answers("api_token (", token);
    }

    /// Answers a question in a way that is refused, then removes that answer.
    fn is_refused(&mut self, question: &str, answer: &str, why: &str) {
        self.answers(question, answer);
        self.until(why);
        self.types(&BACKSPACE.repeat(answer.chars().count()));
    }

    /// Waits for the end; the terminal must be as it was.
    fn ended(mut self) -> (ExitStatus, String) {
        let status = eventually(PATIENCE, || {
            self.child.try_wait().unwrap().ok_or_else(|| format!("its end; it printed:\n{}", self.text()))
        });
        let after = tcgetattr(self.end.as_fd()).unwrap();
        assert_eq!((after.local_modes, after.input_modes), (self.before.local_modes, self.before.input_modes));
        assert_eq!((after.output_modes, after.control_modes), (self.before.output_modes, self.before.control_modes));
        // what it wrote last may still be on its way
        let text = eventually(PATIENCE, || {
            let text = self.text();
            std::thread::sleep(Duration::from_millis(100));
            if self.text() == text { Ok(text) } else { Err("the last words".into()) }
        });
        let raw = String::from_utf8_lossy(&self.raw()).into_owned();
        let last = |switch: &str| raw.rfind(switch);
        assert!(last("\u{1b}[?25l") <= last("\u{1b}[?25h"), "the cursor is hidden");
        assert!(last("\u{1b}[?2004h") <= last("\u{1b}[?2004l"), "what is pasted is marked");
        (status, text)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A text without the sequences that move the cursor and set colours.
fn without_controls(bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    let mut bytes = bytes.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte != 0x1b {
            text.push(byte);
        } else if bytes.next() == Some(b'[') {
            let _ = bytes.find(|byte| (0x40..=0x7e).contains(byte));
        }
    }
    text
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[test]
fn init_makes_a_configuration_that_works_though_every_answer_was_wrong_once() {
    let simulator = Running::simulator(&["--quiet"]);
    let origin = format!("http://{}", simulator.address);
    let refused_token = service("losant").unwrap().refused_secrets[0];
    let folder = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::start(folder.path(), &["--config.file=my.yml"]);

    terminal.is_refused("Which system", "no such system", "no such system");
    terminal.types("Losant\r");
    terminal.is_refused("Name of this source:", "My Source", "a source name is 1 to 63 characters");
    terminal.types("iot\r");
    // nobody listens there, which only the try shows
    terminal.is_refused("base_url (The API)", "127.0.0.1", "is not a URL");
    terminal.types("http://127.0.0.1:1\r");
    terminal.is_refused("instance_id (The instance)", "", "this key is required");
    terminal.types("a/b\r");
    terminal.until("has characters that an id cannot have");
    terminal.types(&(BACKSPACE.repeat(3) + LOSANT_INSTANCE_ID + "\r"));
    terminal.is_refused("api_token (", "", "it is empty");
    terminal.types("Bearer x\r");
    terminal.until("begins with the word `Bearer`");
    terminal.types(&(BACKSPACE.repeat(8) + refused_token + "\r"));

    terminal.until("WRONG");
    terminal.answers("change base_url (now http://127.0.0.1:1)", "");
    terminal.until("base_url (The API)");
    terminal.types(&(BACKSPACE.repeat(18) + &origin + "\r"));
    terminal.until("the service answers at");
    terminal.until("WRONG");
    // Esc is no answer
    terminal.until("What now?");
    terminal.types(ESCAPE);
    terminal.until("canceled");
    terminal.answers("change api_token", "");
    // as it comes from a clipboard, with the end of its line
    terminal.until("api_token (");
    terminal.types(&format!("\u{1b}[200~{LOSANT_API_TOKEN}\n\u{1b}[201~\r"));
    terminal.until("the credential is accepted");
    terminal.is_refused("Add another source?", "maybe", "Invalid answer");
    terminal.types("y\r");

    // a second one, which is left out in the end
    terminal.answers("Which system", "Losant");
    terminal.is_refused("Name of this source:", "iot", "another source of this file is called iot");
    terminal.types("iot2\r");
    terminal.answers("base_url (The API)", &origin);
    terminal.answers("instance_id (The instance)", LOSANT_INSTANCE_ID);
    terminal.answers("api_token (", refused_token);
    terminal.until("WRONG");
    terminal.answers("What now?", "leave");
    terminal.answers("Add another source?", "y");
    // a third one, of which only the whole is wrong
    terminal.answers("Which system", "Canvas");
    terminal.answers("Name of this source:", "campus");
    terminal.answers("base_url (The institution's Canvas)", &origin);
    terminal.answers("access_token (", CANVAS_ACCESS_TOKEN);
    terminal.answers("accounts (", "");
    terminal.answers("users (", "");
    terminal.answers("pseudonyms (", "");
    terminal.until("there is nothing to read");
    terminal.answers("change accounts", "");
    terminal.answers("accounts (", "1");
    terminal.until("the credential is accepted");
    terminal.answers("Add another source?", "");

    terminal.until("the configuration is good");
    terminal.until("iot (losant)");
    terminal.until("the credential is accepted");
    terminal.until("campus (canvas)");
    terminal.until("the credential is accepted");
    terminal.until("audit-exporter --config.file=my.yml");
    let raw = String::from_utf8_lossy(&terminal.raw()).into_owned();
    let (status, text) = terminal.ended();
    assert!(status.success(), "{status}: {text}");
    for secret in [LOSANT_API_TOKEN, refused_token, CANVAS_ACCESS_TOKEN] {
        assert!(!raw.contains(secret), "a secret was shown:\n{text}");
    }

    let (config, secrets) = (folder.path().join("my.yml"), folder.path().join("secrets"));
    assert_eq!(mode(&secrets), 0o700);
    let files = [("iot.api_token", LOSANT_API_TOKEN), ("campus.access_token", CANVAS_ACCESS_TOKEN)];
    for (name, secret) in files {
        assert_eq!(mode(&secrets.join(name)), 0o600);
        assert_eq!(std::fs::read_to_string(secrets.join(name)).unwrap(), format!("{secret}\n"));
    }
    assert_eq!(secrets.read_dir().unwrap().count(), files.len());
    let written = std::fs::read_to_string(&config).unwrap();
    assert!(written.starts_with("# yaml-language-server: $schema="), "{written}");
    assert!(!written.contains("iot2") && files.iter().all(|(_, secret)| !written.contains(secret)), "{written}");
    let checked = finish(&["check", &format!("--config.file={}", config.display())]);
    assert_eq!((checked.code, checked.stderr.as_str()), (0, ""));

    // and it counts: an event of before its start, because only whole cells are compared
    let at = Clock::machine().now() - TimeDelta::minutes(20);
    let event = json!({"event": {"system": "losant", "verb": "delete", "kind": "User", "status": "200", "count": 3,
        "at": at.to_rfc3339(), "category": "user", "action": "delete", "outcome": "success"}});
    let injected = simulator.post("/simulator/inject", &event.to_string());
    assert_eq!(injected.status, 200, "{injected}");
    let exporter = Running::exporter(&config, &[]);
    eventually(PATIENCE, || {
        let status = exporter.get("/api/v1/status").json();
        let source = status["sources"].as_array().unwrap().iter().find(|source| source["name"] == "iot").cloned();
        match source {
            Some(source) if source["last_event"].is_string() => Ok(()),
            other => Err(format!("the first event is counted: {other:?}")),
        }
    });
    let file = format!("--config.file={}", config.display());
    let verified = finish(&["verify", &file, "--source=iot", "--from=1h"]);
    assert_eq!(verified.code, 0, "{}", verified.stderr);
    assert!(verified.stdout.contains("events counted: 3; events in the service's log: 3"), "{}", verified.stdout);
}

#[test]
fn ctrl_c_and_a_signal_leave_no_file_and_the_terminal_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let is_empty = || folder.path().read_dir().unwrap().count() == 0;
    let mut terminal = Terminal::start(folder.path(), &[]);
    terminal.answers("Which system", "Losant");
    terminal.until("Name of this source:");
    terminal.types(CTRL_C);
    let (status, text) = terminal.ended();
    assert_eq!(status.code(), Some(130), "{text}");
    assert!(text.contains("interrupted; nothing was written") && is_empty(), "{text}");

    // in the middle of a question
    let mut terminal = Terminal::start(folder.path(), &[]);
    terminal.answers("Which system", "Losant");
    terminal.until("Name of this source:");
    let killed = std::process::Command::new("kill").args(["-s", "TERM", &terminal.child.id().to_string()]).status();
    assert!(killed.unwrap().success());
    let (status, text) = terminal.ended();
    assert_eq!(status.code(), Some(143), "{text}");
    assert!(is_empty());
}

#[test]
fn a_refused_credential_can_be_kept_and_is_not_tried_once_more() {
    let simulator = Running::simulator(&["--quiet"]);
    let folder = tempfile::tempdir().unwrap();
    let refused_token = service("losant").unwrap().refused_secrets[0];
    let mut terminal = Terminal::start(folder.path(), &["--secrets.path=elsewhere"]);
    terminal.describes_losant(&simulator, refused_token);
    terminal.until("WRONG");
    terminal.answers("What now?", "keep");
    terminal.answers("Add another source?", "n");
    let (status, text) = terminal.ended();
    assert_eq!(status.code(), Some(1), "{text}");
    assert_eq!(text.matches("WRONG").count(), 1, "{text}");
    assert!(text.contains("something is wrong with iot") && text.contains("it was not tried again"), "{text}");
    let written = std::fs::read_to_string(folder.path().join("audit-exporter.yml")).unwrap();
    assert!(written.contains("api_token_file: elsewhere/iot.api_token"), "{written}");
    assert_eq!(mode(&folder.path().join("elsewhere/iot.api_token")), 0o600);
}

#[test]
fn init_overwrites_nothing_and_asks_nobody_without_a_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("audit-exporter.yml");
    let file = format!("--config.file={}", config.display());
    let refused = finish(&["init", &file]);
    assert_eq!((refused.code, refused.stdout.as_str()), (2, ""), "{}", refused.stderr);
    assert!(refused.stderr.contains("there is no terminal") && refused.stderr.contains("docs/example.yml"));
    assert!(!config.exists());

    std::fs::write(&config, "mine").unwrap();
    let (status, text) = Terminal::start(folder.path(), &[]).ended();
    assert_eq!(status.code(), Some(2), "{text}");
    assert!(text.contains("audit-exporter.yml is in the way"), "{text}");
    assert_eq!(std::fs::read_to_string(&config).unwrap(), "mine");
    let (status, text) = Terminal::start(folder.path(), &["--config.file=no/such/folder.yml"]).ended();
    assert_eq!(status.code(), Some(2), "{text}");
    assert!(text.contains("no/such for the configuration"), "{text}");

    // a file that appears while the questions are answered
    let simulator = Running::simulator(&["--quiet"]);
    std::fs::remove_file(&config).unwrap();
    let mut terminal = Terminal::start(folder.path(), &[]);
    terminal.describes_losant(&simulator, LOSANT_API_TOKEN);
    terminal.until("the credential is accepted");
    terminal.until("Add another source?");
    std::fs::write(&config, "theirs").unwrap();
    terminal.types("n\r");
    let (status, text) = terminal.ended();
    assert_eq!(status.code(), Some(2), "{text}");
    assert!(text.contains("audit-exporter.yml is in the way") && text.contains("nothing was written"), "{text}");
    assert_eq!(std::fs::read_to_string(&config).unwrap(), "theirs");
    assert!(!folder.path().join("secrets").exists(), "secrets were left behind");
}
