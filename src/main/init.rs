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

/// What the command line says of where to write.
pub(crate) struct Wanted {
    pub(crate) config: Option<PathBuf>,
    pub(crate) secrets: Option<PathBuf>,
    /// For the unit of the packages.
    pub(crate) systemd: bool,
}

/// Asks, writes, and says how it is.
pub(crate) async fn run(wanted: Wanted, signals: &Signals) -> Result<(), Exit> {
    let Some(mut terminal) = Terminal::find() else {
        return Err(Exit::usage(
            "init asks questions, and there is no terminal to ask them in (standard input and standard error): run it in \
             one, or copy docs/example.yml and try the copy with `audit-exporter check`",
        ));
    };
    // as the user names it, for what is shown
    let named = wanted.config.clone().unwrap_or_else(|| CONFIG_FILE.into());
    let place = place(wanted)?;
    signals.restore_terminal_at_end();
    signals.say_at_end(Some("interrupted; nothing was written"));
    terminal.tell(&format!(
        "This makes a first configuration, {}, and a file for each secret in {}.\n\
         Nothing is written before the last answer. Ctrl-C ends it.\n",
        place.config.display(),
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
    signals.say_at_end(None);
    output::print("");
    if place.for_unit { report_for_unit(place, &drafts) } else { report(Files::of(named), &drafts).await }
}

/// Where to write. What is in the way is told before the first question.
fn place(wanted: Wanted) -> Result<Place, Exit> {
    let absolute =
        |path: &Path| std::path::absolute(path).map_err(|error| Exit::usage(format!("{}: {error}", path.display())));
    let place = if wanted.systemd {
        Place::of_unit()
    } else {
        let config = absolute(wanted.config.as_deref().unwrap_or(Path::new(CONFIG_FILE)))?;
        let secrets = match wanted.secrets {
            Some(secrets) => absolute(&secrets)?,
            None => config.parent().unwrap_or(Path::new("/")).join(SECRETS),
        };
        Place { config, secrets, for_unit: false }
    };
    let Place { config, secrets, .. } = &place;
    let folder = config.parent().unwrap_or(Path::new("/"));
    if config.symlink_metadata().is_ok() {
        return Err(Exit::usage(NotWritten::InTheWay(config.clone())));
    }
    if !folder.is_dir() {
        return Err(Exit::usage(format!(
            "there is no folder {} for the configuration: {}",
            folder.display(),
            if place.for_unit {
                "install the package, or create it"
            } else {
                "create it, or give another --config.file"
            }
        )));
    }
    // the folder of the secrets is made if it is missing; what is above it is not
    let above = match secrets.symlink_metadata() {
        Ok(_) if !secrets.is_dir() => return Err(Exit::usage(NotWritten::InTheWay(secrets.clone()))),
        Ok(_) => secrets,
        Err(_) => secrets.parent().unwrap_or(Path::new("/")),
    };
    if !above.is_dir() {
        return Err(Exit::usage(format!(
            "there is no folder {} in which {} could be made: create it, or give another --secrets.path",
            above.display(),
            secrets.display()
        )));
    }
    for folder in [folder, above] {
        disk::is_writable(folder).map_err(|error| {
            let who = if place.for_unit { "; run init as root" } else { "" };
            Exit::usage(format!("no file can be created in {}: {error}{who}", folder.display()))
        })?;
    }
    Ok(place)
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
    Err(kept(&refused, &format!("run `audit-exporter doctor --config.file={config}`")))
}

/// The secrets are where the configuration says only while the unit runs, so `doctor` has to wait; each source was tried.
fn report_for_unit(place: Place, drafts: &[Draft]) -> Result<(), Exit> {
    let config = place.config.display().to_string();
    check(&Files::of(place.config), &WebConfig { file: None }, true)?;
    output::print(&format!(
        "\nto start the exporter: systemctl enable --now audit-exporter\n\
         while it runs: systemctl status audit-exporter, and audit-exporter doctor --config.file={config}"
    ));
    let refused: Vec<&Draft> = drafts.iter().filter(|draft| draft.is_refused()).collect();
    if refused.is_empty() { Ok(()) } else { Err(kept(&refused, "start the exporter")) }
}

/// What the user kept though the service refused it.
fn kept(refused: &[&Draft], then: &str) -> Exit {
    let names: Vec<&str> = refused.iter().map(|draft| draft.name()).collect();
    let names = names.join(", ");
    Exit {
        code: EXIT_FAILURE,
        message: format!(
            "something is wrong with {names}, as told above, and it was not tried again: correct it, then {then}"
        ),
    }
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
