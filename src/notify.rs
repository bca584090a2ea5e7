//! Notifications to the service manager (systemd's `sd_notify`): ready, stopping, and a status line for `systemctl status`.
//!
//! Promises: without `NOTIFY_SOCKET` nothing is sent. A manager that does not read its messages delays only the end of the
//! program, by at most [`SAY_MAX`]. The status line is sent when it changes, and says no more than the status page.
//!
//! Leaves to others: when the program is ready, and why it is not (`main.rs`).

use std::fmt::Write;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::exporter::{Exporter, SourceStatus};

/// How long the program waits, at its end, for the manager to read the last message.
pub const SAY_MAX: Duration = Duration::from_secs(1);
/// How often the status line is computed.
const EVERY: Duration = Duration::from_secs(2);
/// How many messages may be queued for the manager. Further ones are dropped.
const WAITING_MAX: usize = 8;

/// The service manager that started the program, if there is one.
pub struct Manager(Option<Told>);

struct Told {
    messages: SyncSender<Vec<State>>,
    ended: oneshot::Receiver<()>,
}

enum State {
    Ready,
    Stopping,
    Line(String),
}

impl Manager {
    /// The manager named by `NOTIFY_SOCKET`.
    pub fn from_env() -> Self {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Self(None);
        }
        let (messages, waiting) = sync_channel(WAITING_MAX);
        let (done, ended) = oneshot::channel();
        // not a thread of the runtime: it may block forever, and must not keep the program from ending
        std::thread::spawn(move || {
            pass_on(&waiting);
            let _ = done.send(());
        });
        Self(Some(Told { messages, ended }))
    }

    /// Reports why the program is not ready yet.
    pub fn tell_not_ready(&self, why: &str) {
        if let Self(Some(told)) = self {
            // systemctl shows one line
            let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
            told.say(vec![State::Line(format!("not ready: {why}"))]);
        }
    }

    /// Reports that the program is ready, then the state of its sources, and at the end that it is stopping.
    pub async fn tell(self, exporter: Arc<Exporter>, stop: CancellationToken) {
        let Self(Some(told)) = self else { return };
        let mut shown = line(&exporter);
        told.say(vec![State::Ready, State::Line(shown.clone())]);
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = ticks.tick() => {}
            }
            let now = line(&exporter);
            if now != shown && told.say(vec![State::Line(now.clone())]) {
                shown = now;
            }
        }
        told.say(vec![State::Stopping, State::Line("stopping: the commit under way is finished".to_owned())]);
        drop(told.messages);
        let _ = timeout(SAY_MAX, told.ended).await;
    }
}

impl Told {
    /// Returns whether the message was queued.
    fn say(&self, states: Vec<State>) -> bool {
        self.messages.try_send(states).is_ok()
    }
}

fn pass_on(messages: &Receiver<Vec<State>>) {
    for states in messages {
        let states: Vec<NotifyState<'_>> = states.iter().map(State::as_message).collect();
        if let Err(error) = sd_notify::notify(&states) {
            tracing::warn!(%error, "the service manager (NOTIFY_SOCKET) cannot be told how the program is");
        }
    }
}

impl State {
    fn as_message(&self) -> NotifyState<'_> {
        match self {
            State::Ready => NotifyState::Ready,
            State::Stopping => NotifyState::Stopping,
            State::Line(line) => NotifyState::Status(line),
        }
    }
}

fn line(exporter: &Exporter) -> String {
    summary(&exporter.status().sources, exporter.reload_succeeded())
}

/// The sources in one line: `5 sources, 1 failing`.
fn summary(sources: &[SourceStatus], reload_succeeded: bool) -> String {
    let of = |states: &[&str]| sources.iter().filter(|source| states.contains(&source.state)).count();
    let mut line = match sources.len() {
        1 => "1 source".to_owned(),
        count => format!("{count} sources"),
    };
    for (count, what) in [
        (of(&["error", "throttled"]), "failing"),
        (of(&["catching_up"]), "catching up"),
        (of(&["starting"]), "starting"),
    ] {
        if count > 0 {
            // writing to a String cannot fail
            let _ = write!(line, ", {count} {what}");
        }
    }
    if !reload_succeeded {
        line.push_str("; the last reload was refused, the configuration before it is in force");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(states: &[&'static str]) -> Vec<SourceStatus> {
        let one = |state: &&'static str| SourceStatus {
            name: "iot".to_owned(),
            system: crate::event::System::named("losant"),
            state,
            last_success: None,
            last_event: None,
            watermark: None,
            catching_up: false,
            last_error: None,
            last_error_at: None,
            next_poll: None,
            events: 0,
            rate_limit_remaining: 1.0,
            rate_limit_told: false,
            rate_limit: String::new(),
            clock_skew_seconds: None,
            tainted: None,
            cannot_report: Vec::new(),
        };
        states.iter().map(one).collect()
    }

    #[test]
    fn the_line_counts_what_is_not_well() {
        let all = |states: &[&'static str]| summary(&sources(states), true);
        assert_eq!(all(&["ok"]), "1 source");
        assert_eq!(all(&["ok", "ok", "error", "ok", "ok"]), "5 sources, 1 failing");
        assert_eq!(
            all(&["throttled", "error", "catching_up", "starting", "ok"]),
            "5 sources, 2 failing, 1 catching up, 1 starting"
        );
        assert_eq!(
            summary(&sources(&["ok", "ok"]), false),
            "2 sources; the last reload was refused, the configuration before it is in force"
        );
    }
}
