//! The shim's log: lines in containerd's own format, written to the `log` pipe of the bundle, which containerd copies
//! to its log. When nobody reads the log, lines are dropped, so that the shim does not wait.

use log::{LevelFilter, Log, Metadata, Record};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A line up to this many bytes is written whole or not at all (`PIPE_BUF`).
const MAX_LINE: usize = 4096;

struct PipeLog {
    path: PathBuf,
    sandbox: String,
    pipe: Mutex<Option<File>>,
}

/// Sends this process's log to the pipe at `path`. Every line names the sandbox as `namespace/id`.
pub(crate) fn init(path: &Path, sandbox: String, debug: bool) {
    let level = if debug { LevelFilter::Debug } else { LevelFilter::Info };
    static LOG: OnceLock<PipeLog> = OnceLock::new();
    let log = LOG.get_or_init(|| PipeLog { path: path.into(), sandbox, pipe: Mutex::new(None) });
    // A second call would find a logger in place and change nothing.
    if log::set_logger(log).is_ok() {
        log::set_max_level(level);
    }
}

impl Log for PipeLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // ttrpc calls every connection that ends an error.
        let limit = if metadata.target().starts_with("ttrpc") { log::Level::Warn } else { log::Level::Trace };
        metadata.level() <= limit
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = match record.level() {
            log::Level::Error => "error",
            log::Level::Warn => "warning",
            log::Level::Info => "info",
            log::Level::Debug => "debug",
            log::Level::Trace => "trace",
        };
        let line = format_line(SystemTime::now(), level, &record.args().to_string(), &self.sandbox);
        let Ok(mut pipe) = self.pipe.lock() else { return };
        // containerd may have been restarted: one attempt with what is open, one with the pipe opened anew.
        for _ in 0..2 {
            if pipe.is_none() {
                let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
                *pipe = OpenOptions::new().write(true).custom_flags(flags).open(&self.path).ok();
            }
            match pipe.as_mut().map(|file| file.write_all(line.as_bytes())) {
                Some(Err(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => *pipe = None,
                _ => return,
            }
        }
    }

    fn flush(&self) {}
}

fn format_line(now: SystemTime, level: &str, message: &str, sandbox: &str) -> String {
    let tail = format!(" sandbox={sandbox} runtime=io.containerd.lazaret.v2\n");
    let head = format!("time=\"{}\" level={level} msg=", rfc3339(now));
    let room = MAX_LINE.saturating_sub(head.len() + tail.len());
    let mut quoted = format!("{message:?}");
    if quoted.len() > room {
        let cut = (0..=room.saturating_sub(8)).rev().find(|&at| quoted.is_char_boundary(at)).unwrap_or(0);
        quoted.truncate(cut);
        // A cut inside an escape would leave a lone backslash before the closing quote.
        let bare = quoted.trim_end_matches('\\').len();
        quoted.truncate(bare);
        quoted.push_str("…\"");
    }
    head + &quoted + &tail
}

/// A time as `2026-01-02T03:04:05.678901234Z`.
#[must_use]
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days to civil date, by eras of 400 years that begin on 1 March (H. Hinnant, "chrono-compatible date algorithms").
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", since.subsec_nanos())
}

#[cfg(test)]
#[path = "logging_test.rs"]
mod tests;
