//! Panics: they should not happen, and if they do, they must not end the program.
//!
//! Promises: a panic is one line of the log, with its place; of its words only those are shown that are
//! fixed in the program, because what is put into them may be a secret or an event.
//!
//! Leaves to others: catching it, where work can go on without what has panicked: a poll
//! (`poll.rs`), the store (`ledger.rs`), a request (`web/listen.rs`), a reload (`web/routes.rs`).

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use futures_util::FutureExt;

/// Panics of all threads are logged from now on, instead of being written to standard error as they come.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        log_panic(panic.payload(), &panic.location().map(ToString::to_string).unwrap_or_default());
    }));
}

fn log_panic(payload: &(dyn Any + Send), place: &str) {
    tracing::error!(panic = %panic_text(payload), place, "a fault in this program (a panic)");
}

/// A panic that was caught. It displays what the panic said of itself, as far as that is part of the program.
///
/// Errors that may also come from elsewhere (the ledger's, a reload's) hold it, so that who matches on them can tell a
/// fault of this program from one of the disk or the file.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Panicked(String);

/// For a panic of which only its effect was seen. Words that are fixed in the program hold no secret.
impl From<&'static str> for Panicked {
    fn from(text: &'static str) -> Self {
        Self(text.to_owned())
    }
}

/// Catches a panic. State that `work` was changing must be discarded then.
pub fn catch_panic<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| Panicked(panic_text(&*panic)))
}

/// The same for a future.
pub async fn catch_panic_async<T>(work: impl Future<Output = T>) -> Result<T, Panicked> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| Panicked(panic_text(&*panic)))
}

/// What a panic says of itself, as far as it is part of the program.
///
/// A text that was put together at run time is shown up to the first quotation mark or colon: what follows
/// them is most often a value (`index out of bounds: …`, `byte index 1 is not a char boundary; it is inside 'é' …`).
fn panic_text(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        return (*text).to_owned();
    }
    let Some(text) = payload.downcast_ref::<String>() else { return "a panic without words".to_owned() };
    let end = text.find(['\'', '"', '`', ':', '\n']).unwrap_or(text.len());
    let known = text[..end].trim_end();
    if end < text.len() { format!("{known} …") } else { known.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_line_of_a_panic_has_each_key_once_in_either_format() {
        let (logfmt, json) = (Written::default(), Written::default());
        let (into_logfmt, into_json) = (logfmt.clone(), json.clone());
        let subscriber = tracing_subscriber::registry()
            .with(tracing_logfmt::builder().layer().with_writer(move || into_logfmt.clone()))
            .with(tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(move || into_json.clone()));
        tracing::subscriber::with_default(subscriber, || log_panic(&"out of range", "src/x.rs:1:2"));
        let [logfmt, json] =
            [logfmt, json].map(|written| String::from_utf8(written.0.lock().unwrap().clone()).unwrap());
        assert_eq!(
            (logfmt.matches(" message=").count(), json.matches("\"message\":").count()),
            (1, 1),
            "{logfmt}{json}"
        );
        for line in [logfmt, json] {
            assert!(line.contains("a fault in this program") && line.contains("out of range"), "{line}");
        }
    }

    #[test]
    fn no_value_in_a_panic_is_shown() {
        let name = "alice@example.com".to_owned();
        let end = name.len() + 1;
        let refused = || -> Result<(), String> { Err(name.clone()) };
        let of = |panics: &(dyn Fn() + std::panic::RefUnwindSafe)| {
            panic_text(&*std::panic::catch_unwind(panics).unwrap_err())
        };
        assert_eq!(of(&|| panic!("a fixed text, with: a colon")), "a fixed text, with: a colon");
        for shown in [
            of(&|| drop(name[1..end].to_owned())),
            of(&|| refused().unwrap()),
            of(&|| refused().expect("no name")),
            of(&|| assert_eq!(name, "bob")),
            of(&|| std::panic::panic_any(7)),
        ] {
            assert!(!shown.contains("alice") && !shown.is_empty(), "{shown}");
        }
    }
}
