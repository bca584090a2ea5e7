//! What the program writes to standard output and standard error.
//!
//! Promises:
//! - A standard error that nobody reads holds up nothing. Lines wait in a queue of at most [`LINES_MAX`] lines and
//!   [`BYTES_MAX`] bytes; a thread of its own writes them. What does not fit is dropped and counted
//!   ([`lines_dropped`]), and the log says how many lines are missing as soon as lines get through again.
//! - Lines stay whole: a line that could be written only in part is followed by a line end.
//! - A stream that is closed, full or broken never ends the program.
//!
//! Why not the crate `tracing-appender`: when its writer is stuck at the end of the program, its guard prints that by
//! itself, which may wait for the same reader for ever. It also counts no bytes, so its queue is not bounded by them.

use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;

/// Most lines that wait to be written to standard error.
pub const LINES_MAX: usize = 8192;
/// Most bytes of them together. A longer message is taken when nothing else waits.
pub const BYTES_MAX: usize = 4 << 20;

/// How often the log says that lines are missing while they go on being dropped.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// How long to wait before a stream that takes nothing just now (`O_NONBLOCK`) is tried again.
const RETRY: Duration = Duration::from_millis(10);

static STANDARD_ERROR: OnceLock<Queue> = OnceLock::new();

// === standard error ===

/// Log lines dropped since the start: the queue was full, or standard error refused them.
pub fn lines_dropped() -> u64 {
    STANDARD_ERROR.get().map_or(0, |queue| queue.state.dropped.load(Ordering::Relaxed))
}

/// Writes a message and a line end to standard error, behind what waits there already. Does not wait.
pub fn tell(text: &str) {
    standard_error().push(format!("{}\n", text.trim_end()).into_bytes());
}

/// Waits until everything is written to standard error, but no longer than `patience` without any progress. Without
/// `patience` it waits as long as it takes.
pub fn flush(patience: Option<Duration>) {
    if let Some(queue) = STANDARD_ERROR.get() {
        queue.flush(patience);
    }
}

/// Where log lines go: each call of `write` is one whole line.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogLines;

impl Write for LogLines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        standard_error().push(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn standard_error() -> &'static Queue {
    STANDARD_ERROR.get_or_init(|| Queue::new(io::stderr()))
}

/// Lines on their way to a stream.
struct Queue {
    /// `None` where no thread could be started: then lines are written where they are made.
    lines: Option<SyncSender<Vec<u8>>>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Bytes that wait, those that are being written included.
    bytes: AtomicUsize,
    /// Bytes written so far.
    written: AtomicU64,
    /// Lines dropped so far.
    dropped: AtomicU64,
}

impl Queue {
    fn new(stream: impl Write + Send + 'static) -> Self {
        let state = Arc::new(State::default());
        let (sender, lines) = sync_channel(LINES_MAX);
        let theirs = Arc::clone(&state);
        let thread = std::thread::Builder::new().name("log".into());
        let started = thread.spawn(move || write_lines(stream, &lines, &theirs));
        Self { lines: started.is_ok().then_some(sender), state }
    }

    fn push(&self, line: Vec<u8>) {
        let length = line.len();
        let Some(lines) = &self.lines else {
            if write_whole(&mut io::stderr(), &line, &self.state.written).is_err() {
                self.state.dropped.fetch_add(1, Ordering::Relaxed);
            }
            return;
        };
        let room = |waiting: usize| (waiting == 0 || waiting + length <= BYTES_MAX).then_some(waiting + length);
        if self.state.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).is_err() {
            self.state.dropped.fetch_add(1, Ordering::Relaxed);
        } else if lines.try_send(line).is_err() {
            self.state.bytes.fetch_sub(length, Ordering::AcqRel);
            self.state.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self, patience: Option<Duration>) {
        let mut progress = (self.state.written.load(Ordering::Acquire), Instant::now());
        while self.state.bytes.load(Ordering::Acquire) > 0 {
            let written = self.state.written.load(Ordering::Acquire);
            if written != progress.0 {
                progress = (written, Instant::now());
            } else if patience.is_some_and(|patience| progress.1.elapsed() >= patience) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn write_lines(mut stream: impl Write, lines: &Receiver<Vec<u8>>, state: &State) {
    let mut told = (0, None::<Instant>);
    let mut torn = false;
    for line in lines {
        let before = state.written.load(Ordering::Acquire);
        let end: &[u8] = if torn { b"\n" } else { b"" };
        let written = write_whole(&mut stream, end, &state.written);
        if written.and_then(|()| write_whole(&mut stream, &line, &state.written)).is_err() {
            // a lone line end counts as a part, too: an empty line more does no harm
            torn |= state.written.load(Ordering::Acquire) > before;
            state.dropped.fetch_add(1, Ordering::Relaxed);
        } else {
            torn = false;
            let dropped = state.dropped.load(Ordering::Relaxed);
            let waiting = state.bytes.load(Ordering::Acquire) > line.len();
            if dropped > told.0 && (!waiting || told.1.is_none_or(|at| at.elapsed() >= TELL_EVERY)) {
                tracing::warn!(
                    dropped = dropped - told.0,
                    "log lines are missing here: standard error did not take them in time"
                );
                told = (dropped, Some(Instant::now()));
            }
        }
        state.bytes.fetch_sub(line.len(), Ordering::AcqRel);
    }
}

/// Writes all of it, and says in `written` how far it has come.
fn write_whole(stream: &mut impl Write, bytes: &[u8], written: &AtomicU64) -> io::Result<()> {
    let mut left = bytes;
    while !left.is_empty() {
        match stream.write(left) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(some) => {
                left = &left[some..];
                written.fetch_add(some as u64, Ordering::AcqRel);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(RETRY),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

// === standard output ===

/// Writes a text and a line end to standard output. Waits for a slow reader.
///
/// A reader that has gone away has seen enough. Anything else that keeps the text from being written (a full disk) is
/// said on standard error. Neither is an error of the caller: its exit code tells what it found.
pub fn print(text: &str) {
    let written = stream(|out| out.write_all(format!("{text}\n").as_bytes()));
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        tell(&format!("standard output could not be written: {error}"));
    }
}

/// Writes a long result to standard output, and says whether all of it was taken. Waits for a slow reader.
pub fn stream<T>(write: impl FnOnce(&mut dyn Write) -> io::Result<T>) -> io::Result<T> {
    let mut out = io::BufWriter::with_capacity(1 << 16, Patient(io::stdout().lock()));
    let done = write(&mut out).and_then(|done| out.flush().map(|()| done));
    // what could not be written is not tried again when it is dropped
    let _ = out.into_parts();
    done
}

/// A stream that waits where it would otherwise say that it takes nothing just now.
struct Patient<W>(W);

impl<W: Write> Write for Patient<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(RETRY),
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        loop {
            match self.0.flush() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(RETRY),
                flushed => return flushed,
            }
        }
    }
}

/// Prints a text for a program that goes on: it does not wait for the reader.
pub fn announce(text: String) {
    // where no thread can be started, nobody is told; the log has the address, too
    let _ = std::thread::Builder::new().name("announce".into()).spawn(move || print(&text));
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A stream that takes nothing while it is held, and fails on demand in the middle of a line.
    #[derive(Clone, Default)]
    struct Stream(Arc<(Mutex<Vec<u8>>, Mutex<()>, AtomicUsize)>);

    impl Write for Stream {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _free = self.0.1.lock().unwrap();
            let mut taken = self.0.0.lock().unwrap();
            match self.0.2.load(Ordering::Relaxed) {
                0 => taken.extend_from_slice(bytes),
                // full after three more bytes
                1 => {
                    self.0.2.store(2, Ordering::Relaxed);
                    let some = bytes.len().min(3);
                    taken.extend_from_slice(&bytes[..some]);
                    return Ok(some);
                }
                _ => return Err(ErrorKind::StorageFull.into()),
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stream_that_takes_nothing_holds_up_nobody_and_what_did_not_fit_is_counted() {
        let stream = Stream::default();
        let queue = Queue::new(stream.clone());
        let held = stream.0.1.lock().unwrap();
        for number in 0..LINES_MAX + 500 {
            queue.push(format!("line {number}\n").into_bytes());
        }
        let dropped = queue.state.dropped.load(Ordering::Relaxed);
        assert!((499..=500).contains(&dropped), "{dropped}: one may be on its way");
        queue.flush(Some(Duration::from_millis(50)));
        drop(held);
        queue.flush(None);
        let taken = String::from_utf8(stream.0.0.lock().unwrap().clone()).unwrap();
        assert_eq!(taken.lines().count() as u64, LINES_MAX as u64 + 500 - dropped);
        assert!(taken.lines().enumerate().all(|(number, line)| line == format!("line {number}")));
    }

    #[test]
    fn the_bytes_that_wait_are_bounded_and_a_long_message_is_taken_alone() {
        let stream = Stream::default();
        let queue = Queue::new(stream.clone());
        let held = stream.0.1.lock().unwrap();
        queue.push(vec![b'x'; BYTES_MAX + 1]);
        queue.push(vec![b'y'; 1]);
        assert_eq!(queue.state.dropped.load(Ordering::Relaxed), 1);
        drop(held);
        queue.flush(None);
        assert_eq!(stream.0.0.lock().unwrap().len(), BYTES_MAX + 1);
    }

    #[test]
    fn a_line_that_was_cut_does_not_run_into_the_next() {
        let stream = Stream::default();
        let queue = Queue::new(stream.clone());
        let push = |line: &str| {
            queue.push(line.as_bytes().to_vec());
            queue.flush(None);
        };
        push("first\n");
        stream.0.2.store(1, Ordering::Relaxed);
        push("second\n");
        push("third\n");
        stream.0.2.store(0, Ordering::Relaxed);
        push("fourth\n");
        assert_eq!(*stream.0.0.lock().unwrap(), b"first\nsec\nfourth\n");
        assert_eq!(queue.state.dropped.load(Ordering::Relaxed), 2);
    }
}
