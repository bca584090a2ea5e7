//! How a command asks the running exporter, and what its answers mean.

use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Interest, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::{Answer, Ask, CheckError, Reach};
use crate::verify::Say;

/// The running exporter's answer; `None` where none runs on this ledger. `file` is handed over where it is asked for.
pub(super) async fn ask_running(
    folder: &Path,
    ask: &Ask,
    file: Option<&File>,
    say: &Say,
) -> Result<Option<Answer>, CheckError> {
    let Some(mut talk) = Talk::begin(folder, ask).await? else { return Ok(None) };
    loop {
        match talk.next(say).await? {
            Answer::HandOver => {
                let file = file.ok_or_else(|| CheckError::failed("the running exporter asks for a file"))?;
                send_file(talk.writer.as_ref(), file).await.map_err(|error| cannot_ask(folder, &error))?;
            }
            answer => return Ok(Some(answer)),
        }
    }
}

/// A question to the running exporter, and its answers.
pub(super) struct Talk {
    folder: PathBuf,
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

impl Talk {
    /// Asks; `None` where no exporter runs on this ledger.
    pub(super) async fn begin(folder: &Path, ask: &Ask) -> Result<Option<Self>, CheckError> {
        let asking = |error: io::Error| cannot_ask(folder, &error);
        let none =
            |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
        let reach = match Reach::of(folder) {
            Err(error) if none(&error) => return Ok(None),
            reach => reach.map_err(asking)?,
        };
        let stream = match UnixStream::connect(&reach.path).await {
            Err(error) if none(&error) => return Ok(None),
            stream => stream.map_err(asking)?,
        };
        let (reader, mut writer) = stream.into_split();
        let mut line = serde_json::to_vec(ask).map_err(CheckError::failed)?;
        line.push(b'\n');
        writer.write_all(&line).await.map_err(asking)?;
        Ok(Some(Self { folder: folder.to_owned(), lines: BufReader::new(reader).lines(), writer }))
    }

    /// The next answer that is more than a word on what happens.
    pub(super) async fn next(&mut self, say: &Say) -> Result<Answer, CheckError> {
        while let Some(line) = self.lines.next_line().await.map_err(|error| cannot_ask(&self.folder, &error))? {
            match serde_json::from_str(&line) {
                Ok(Answer::Told(text)) => say(&text),
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    let why = format!("the running exporter has another version: {error}; restart it");
                    return Err(CheckError::Failed(why));
                }
            }
        }
        Err(CheckError::failed("the exporter stopped before it answered; try again"))
    }
}

fn cannot_ask(folder: &Path, error: &io::Error) -> CheckError {
    let on = folder.display();
    CheckError::Failed(format!(
        "cannot ask the exporter that runs on {on}: {error}; run this command as the exporter's user"
    ))
}

/// Why an answer is not the one that was wanted.
pub(super) fn unexpected(answer: Answer) -> CheckError {
    match answer {
        Answer::Failed(why) => CheckError::Failed(why),
        Answer::Refused(why) => CheckError::Usage(why),
        _ => CheckError::failed("the running exporter answered something else"),
    }
}

pub(super) fn unknown(storage: &Path, name: &str) -> CheckError {
    CheckError::Usage(format!(
        "the exporter that runs on {} has no source {name:?}: reload its configuration, or correct --source",
        storage.display()
    ))
}

async fn send_file(stream: &UnixStream, file: &File) -> io::Result<()> {
    let send = || {
        let files = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&files));
        Ok(sendmsg(stream, &[IoSlice::new(b"\n")], &mut control, SendFlags::empty()).map(drop)?)
    };
    stream.async_io(Interest::WRITABLE, send).await
}
