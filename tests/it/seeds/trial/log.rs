//! The log of a trial, in memory, with simulated times.

use std::io;
use std::sync::{Arc, Mutex, OnceLock};

use tokio::time::Instant;

/// Everything that was logged.
#[derive(Clone, Default)]
pub struct Log(pub Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Its end.
    pub fn tail(&self) -> String {
        let log = self.0.lock().unwrap();
        // of a seed that is looked at alone, all of it
        let shown = if std::env::var_os("AUDIT_EXPORTER_SEEDS").is_some_and(|n| n == "1") { log.len() } else { 10_000 };
        String::from_utf8_lossy(&log[log.len().saturating_sub(shown)..]).into_owned()
    }
}

/// Simulated minutes since the first line.
#[derive(Default)]
pub struct SinceStart(Arc<OnceLock<Instant>>);

impl tracing_subscriber::fmt::time::FormatTime for SinceStart {
    fn format_time(&self, to: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        let minutes = self.0.get_or_init(Instant::now).elapsed().as_secs_f64() / 60.0;
        write!(to, "{minutes:>9.2}")
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
