//! Questions in the terminal.
//!
//! Promises: a secret is shown as stars; after each question, also after Ctrl-C, the terminal is as it was.
//!
//! Leaves to others: what is asked (`init.rs` of the library); the terminal at the end by a signal (`signals.rs`).

use std::io::IsTerminal;
use std::rc::Rc;

use audit_exporter::init::{Check, Dialog, Ended, Question, SecretCheck};
use audit_exporter::output;
use inquire::error::CustomUserError;
use inquire::validator::Validation;
use inquire::{Confirm, InquireError, Password, PasswordDisplayMode, Select, Text};
use secrecy::SecretString;

/// The terminal of standard input and standard error.
pub(crate) struct Terminal(());

impl Terminal {
    /// It, if there is one.
    pub(crate) fn find() -> Option<Self> {
        (std::io::stdin().is_terminal() && std::io::stderr().is_terminal()).then_some(Self(()))
    }
}

/// Asks until there is an answer: Esc is none, and asks again.
fn answer<T>(mut ask: impl FnMut() -> Result<Option<T>, InquireError>) -> Result<T, Ended> {
    loop {
        match ask() {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(InquireError::OperationInterrupted) => return Err(Ended::Interrupted),
            Err(error) => return Err(Ended::Failed(format!("the question could not be asked: {error}"))),
        }
    }
}

/// What a check said, in the words of the library.
#[expect(clippy::unnecessary_wraps, reason = "that is what a validator returns")]
fn validated(checked: Result<(), String>) -> Result<Validation, CustomUserError> {
    Ok(match checked {
        Ok(()) => Validation::Valid,
        Err(why) => Validation::Invalid(why.into()),
    })
}

impl Dialog for Terminal {
    fn text(&mut self, question: &Question, check: Check<'_>) -> Result<String, Ended> {
        answer(|| {
            let mut prompt = Text::new(&question.message).with_validator(|text: &str| validated(check(text)));
            prompt.help_message = question.help.as_deref();
            prompt.default = question.default.as_deref();
            prompt.initial_value = question.before.as_deref();
            prompt.prompt_skippable()
        })
    }

    fn secret(&mut self, question: &Question, check: SecretCheck) -> Result<SecretString, Ended> {
        let secret = answer(|| {
            let check = Rc::clone(&check);
            let mut prompt = Password::new(&question.message)
                .with_display_mode(PasswordDisplayMode::Masked)
                .without_confirmation()
                .with_validator(move |text: &str| validated(check(text)));
            prompt.help_message = question.help.as_deref();
            prompt.prompt_skippable()
        });
        secret.map(SecretString::from)
    }

    fn choose(&mut self, message: &str, options: &[String]) -> Result<usize, Ended> {
        answer(|| Select::new(message, options.to_vec()).raw_prompt_skippable()).map(|chosen| chosen.index)
    }

    fn confirm(&mut self, message: &str, default: bool) -> Result<bool, Ended> {
        answer(|| Confirm::new(message).with_default(default).prompt_skippable())
    }

    fn tell(&mut self, text: &str) {
        output::tell(text);
        // the next question does not wait in that queue
        output::flush(None);
    }
}
