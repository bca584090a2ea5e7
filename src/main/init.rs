//! `audit-exporter init`: the library's questions in the terminal, its files on the disk, then `check` and `doctor`.

use std::path::{Path, PathBuf};

use audit_exporter::config::SourceConfig;
use audit_exporter::init::disk::{self, NotWritten};
use audit_exporter::init::{self, Dialog, Draft, Ended, Place};
use audit_exporter::{control, doctor, output};

use crate::arguments::{CONFIG_FILE, Files, WebConfig};
use crate::signals::Signals;
use crate::terminal::Terminal;
use crate::{EXIT_FAILURE, Exit, PROGRESS, check, run_doctor};

/// The folder of the secrets, beside the configuration.
const SECRETS: &str = "secrets";
/// As a shell says it of a program that Ctrl-C ended.
const EXIT_INTERRUPTED: u8 = 130;

/// Asks, writes, and says how it is.
pub(crate) async fn run(config: Option<PathBuf>, secrets: Option<PathBuf>, signals: &Signals) -> Result<(), Exit> {
    let Some(mut terminal) = Terminal::find() else {
        return Err(Exit::usage(
            "init asks questions, and there is no terminal to ask them in (standard input and standard error): run it in \
             one, or copy docs/example.yml and try the copy with `audit-exporter check`",
        ));
    };
    let config = config.unwrap_or_else(|| CONFIG_FILE.into());
    let place = place(&config, secrets)?;
    signals.restore_terminal_at_end();
    terminal.tell(&format!(
        "This makes a first configuration, {}, and a file for each secret in {}.\n\
         Nothing is written before the last answer. Ctrl-C ends it.\n",
        config.display(),
        place.secrets.display()
    ));
    let try_out = async |source: &SourceConfig| {
        if let Some(how_long) = doctor::how_long([source]) {
            PROGRESS(&how_long);
        }
        control::try_out(source, PROGRESS).await
    };
    let exists = |path: &Path| path.symlink_metadata().is_ok();
    let drafts = init::interview(&mut terminal, &place, exists, try_out).await?;
    if drafts.is_empty() {
        return Err(Exit::failure("there is no source, so nothing was written"));
    }
    signals.undisturbed(|| write(&drafts, &place))?;
    report(Files::of(config), &drafts).await
}

/// Where to write; what is in the way is told before the first question.
fn place(config: &Path, secrets: Option<PathBuf>) -> Result<Place, Exit> {
    let absolute =
        |path: &Path| std::path::absolute(path).map_err(|error| Exit::usage(format!("{}: {error}", path.display())));
    let config = absolute(config)?;
    let folder = config.parent().unwrap_or(Path::new("/"));
    if config.symlink_metadata().is_ok() {
        return Err(Exit::usage(NotWritten::InTheWay(config)));
    }
    if !folder.is_dir() {
        return Err(Exit::usage(format!(
            "there is no folder {} for the configuration: create it, or give another --config.file",
            folder.display()
        )));
    }
    let secrets = match secrets {
        Some(secrets) => absolute(&secrets)?,
        None => folder.join(SECRETS),
    };
    Ok(Place { config, secrets })
}

fn write(drafts: &[Draft], place: &Place) -> Result<(), Exit> {
    let files = init::files(drafts, place);
    disk::create(&files, &place.secrets).map_err(|why| match why {
        NotWritten::InTheWay(_) => Exit::usage(why),
        NotWritten::Failed(..) => Exit::failure(why),
    })?;
    for file in &files {
        output::print(&format!("wrote {}", file.path.display()));
    }
    Ok(())
}

/// Ends with what `check` and `doctor` say.
async fn report(files: Files, drafts: &[Draft]) -> Result<(), Exit> {
    output::print("");
    check(&files, &WebConfig { file: None }, false)?;
    let (refused, good): (Vec<&Draft>, Vec<&Draft>) = drafts.iter().partition(|draft| draft.is_refused());
    // a credential that is refused too often locks an account
    let looked_at = match good.iter().map(|draft| draft.name().to_owned()).collect::<Vec<_>>() {
        names if names.is_empty() => Ok(()),
        names => run_doctor(&files, Some(names)).await,
    };
    let config = files.config().display();
    output::print(&format!("\nto start the exporter: audit-exporter --config.file={config}"));
    looked_at?;
    if refused.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = refused.iter().map(|draft| draft.name()).collect();
    let names = names.join(", ");
    Err(Exit {
        code: EXIT_FAILURE,
        message: format!(
            "something is wrong with {names}, as told above, and it was not tried again: correct it, then run \
             `audit-exporter doctor --config.file={config}`"
        ),
    })
}

impl From<Ended> for Exit {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Interrupted => Self { code: EXIT_INTERRUPTED, message: "interrupted; nothing was written".into() },
            Ended::GivenUp => Self::failure("given up; nothing was written"),
            Ended::Failed(why) => Self::failure(format!("{why}; nothing was written")),
        }
    }
}
