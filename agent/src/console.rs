//! The guest's log: one line an event, on the console that the host records.

use log::{LevelFilter, Log, Metadata, Record};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;

static CONSOLE: OnceLock<Console> = OnceLock::new();

struct Console(File);

impl Log for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // The RPC library reports what the agent reports itself, in more words.
        !metadata.target().starts_with("ttrpc") || metadata.level() <= log::Level::Error
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            // One write, so that lines of the kernel and of the agent do not mix. There is nobody to tell of a failure.
            let _ = (&self.0).write_all(line(&record.args().to_string()).as_bytes());
        }
    }

    fn flush(&self) {}
}

/// A log line never is two, nor a terminal's command, whatever a container's name for something holds.
fn line(message: &str) -> String {
    let clean: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("lazaret-agent: {clean}\n")
}

/// Starts the log, once `/dev` is there; without a console the guest has no log. Later calls change nothing.
pub(crate) fn init() {
    // O_NOCTTY: process 1 must not get a controlling terminal, from which keys would become signals.
    let console = OpenOptions::new().write(true).custom_flags(libc::O_NOCTTY).open("/dev/console");
    let Ok(console) = console else { return };
    if log::set_logger(CONSOLE.get_or_init(|| Console(console))).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

#[cfg(test)]
#[path = "console_test.rs"]
mod tests;
