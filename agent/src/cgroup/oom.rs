//! How often the kernel has killed in a cgroup for want of memory.

use super::stats::Fields;
use super::{Cgroup, unblocked};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// More than `memory.events` holds.
const MAX_EVENTS: usize = 4096;

impl Cgroup {
    /// Processes that the kernel has killed in it and below it, since it was made.
    ///
    /// # Errors
    /// Of the file system.
    pub(crate) async fn oom_kills(&self) -> io::Result<u64> {
        let path = self.0.join("memory.events");
        unblocked(move || count(&File::open(path)?, "oom_kill")).await
    }

    /// Waits until there are more of them than `seen`. Answers with how many there are.
    ///
    /// # Errors
    /// Of the file system: there is no such file, or the cgroup has been removed.
    pub(crate) async fn more_oom_kills(&self, seen: u64) -> io::Result<u64> {
        more(&self.0.join("memory.events"), "oom_kill", seen).await
    }
}

/// Waits until the number called `field` in a file of a cgroup is more than `seen`. The kernel makes the file's readers
/// ready for POLLPRI when it has changed since they read it.
async fn more(path: &Path, field: &'static str, seen: u64) -> io::Result<u64> {
    let path = path.to_owned();
    let file = Arc::new(unblocked(|| File::open(path)).await?);
    // SAFETY: a file keeps its descriptor open for as long as it lives, and hands it out only borrowed.
    let changes = unsafe { AsyncFd::register_with_interest(file.clone(), Interest::PRIORITY) }?;
    loop {
        // A change after this read makes the descriptor ready again.
        let read = file.clone();
        let now = unblocked(move || count(&read, field)).await?;
        if now > seen {
            return Ok(now);
        }
        changes.ready(Interest::PRIORITY).await?.clear_ready();
    }
}

fn count(file: &File, field: &str) -> io::Result<u64> {
    let mut text = [0; MAX_EVENTS];
    let length = file.read_at(&mut text, 0)?;
    Ok(Fields::of(&String::from_utf8_lossy(&text[..length])).get(field))
}

#[cfg(test)]
#[path = "oom_test.rs"]
mod tests;
