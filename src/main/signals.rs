//! The signals that end the program.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use audit_exporter::output;
use rustix::process::{Pid, kill_process};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::arguments::Arguments;
use crate::{EXIT_FAILURE, Exit};

/// How long the last log lines wait for a reader that takes none, at a second signal.
const LAST_LINES_WAIT_AT_ONCE: Duration = Duration::from_millis(200);

/// The signals that end the program. They have handlers from the start on and in every command, because the kernel
/// withholds a signal without a handler from the first process of a container.
///
/// Until the program has something to finish, a signal ends it at once. From then on the first signal asks it to
/// finish, and a second one ends it at once.
#[derive(Clone)]
pub(crate) struct Signals {
    pub(crate) stop: CancellationToken,
    finishing: Arc<AtomicBool>,
    leftover: Arc<Mutex<Leftover>>,
}

/// What an end at once leaves behind unless it is put right.
#[derive(Default)]
struct Leftover {
    children: Vec<Pid>,
    folder: Option<PathBuf>,
    terminal: Option<Termios>,
    last_word: Option<&'static str>,
}

impl Leftover {
    fn put_right(&mut self) {
        for child in self.children.drain(..) {
            let _ = kill_process(child, rustix::process::Signal::KILL);
        }
        if let Some(folder) = self.folder.take() {
            let _ = std::fs::remove_dir_all(folder);
        }
        if let Some(terminal) = self.terminal.take() {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &terminal);
            output::tell(SHOW_CURSOR_AND_PASTE_PLAINLY);
        }
    }
}

/// What a question may have switched: the cursor is visible again, and pasted text comes without marks.
const SHOW_CURSOR_AND_PASTE_PLAINLY: &str = "\x1b[?25h\x1b[?2004l";

impl Signals {
    pub(crate) fn take(arguments: &Arguments) -> Result<Self, Exit> {
        let mut terminate = signal(SignalKind::terminate()).map_err(Exit::failure)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Exit::failure)?;
        // the exporter reloads on this one, as soon as it can; a demo that was started by nohup goes on
        let ignored = hangup_is_ignored();
        let hangup = signal(SignalKind::hangup()).map_err(Exit::failure)?;
        let mut hangup = (arguments.command.is_some() && !ignored).then_some(hangup);
        let goes_on = arguments.goes_on();
        let signals = Self { stop: CancellationToken::new(), finishing: Arc::default(), leftover: Arc::default() };
        let Self { stop, finishing, leftover } = &signals;
        let (stop, finishing, leftover) = (stop.clone(), Arc::clone(finishing), Arc::clone(leftover));
        tokio::spawn(async move {
            let mut asked = false;
            loop {
                let by_signal = tokio::select! {
                    _ = terminate.recv() => 143,
                    _ = interrupt.recv() => 130,
                    () = next_signal(hangup.as_mut()) => 129,
                };
                let again = std::mem::replace(&mut asked, true);
                if finishing.load(Ordering::Acquire) && !again {
                    stop.cancel();
                    continue;
                }
                if again {
                    error!("stopped a second time; not waiting");
                }
                let mut leftover = leftover.lock().unwrap_or_else(PoisonError::into_inner);
                leftover.put_right();
                if let Some(word) = leftover.last_word {
                    output::tell(word);
                }
                output::flush(Some(LAST_LINES_WAIT_AT_ONCE));
                std::process::exit(match (again, goes_on) {
                    (true, _) => i32::from(EXIT_FAILURE),
                    (false, true) => 0,
                    (false, false) => by_signal,
                });
            }
        });
        Ok(signals)
    }

    /// From now on there is something to finish, until the token is cancelled.
    pub(crate) fn finish_work(&self) -> CancellationToken {
        self.finishing.store(true, Ordering::Release);
        self.stop.clone()
    }

    /// A folder to remove if the program ends at once.
    pub(crate) fn remove_at_end(&self, folder: &Path) {
        self.leftover().folder = Some(folder.to_owned());
    }

    /// A child to kill if the program ends at once.
    pub(crate) fn kill_at_end(&self, child: Option<Pid>) {
        self.leftover().children.extend(child);
    }

    /// All children have ended: their numbers may be those of others soon.
    pub(crate) fn kill_nobody_at_end(&self) {
        self.leftover().children.clear();
    }

    /// How the terminal is now, it is again if the program ends at once.
    pub(crate) fn restore_terminal_at_end(&self) {
        self.leftover().terminal = tcgetattr(std::io::stdin()).ok();
    }

    /// What is said if the program ends at once; `None` takes it back.
    pub(crate) fn say_at_end(&self, word: Option<&'static str>) {
        self.leftover().last_word = word;
    }

    /// Does something that no signal cuts in two: an end at once waits for it.
    pub(crate) fn undisturbed<T>(&self, work: impl FnOnce() -> T) -> T {
        let _held = self.leftover();
        work()
    }

    fn leftover(&self) -> MutexGuard<'_, Leftover> {
        self.leftover.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn next_signal(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => _ = signal.recv().await,
        None => std::future::pending().await,
    }
}

/// Whether the program was started to outlive the terminal, as nohup does it.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    let number = u32::try_from(SignalKind::hangup().as_raw_value()).unwrap_or(1);
    ignored & (1 << (number - 1)) != 0
}
