//! Which programs the guest may keep in its page cache from one OPEN to the next.
//!
//! A guest drops what it has read of a file when it opens it again, unless the answer has `FOPEN_KEEP_CACHE`. So whoever opens a file
//! sees what the host has changed in it; but a program that runs a thousand times is read a thousand times. The answer for a
//! program therefore has the flag as long as size and times are those of the last time it was opened.
//!
//! Two changes do not show in a file's times:
//! - one in the same tick of the clock as the change before it. A file must have been left alone for longer than the coarsest tick;
//! - stores of a process of the host through a mapping, of which only the first sets the times. Data is written like that, programs
//!   are not. So data is never kept.

use crate::sync;
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;
use virtiofsd::fuse::Attr;

/// The most programs that are remembered.
const MAX_PROGRAMS: usize = 4096;
/// How long ago a file's last change must be: time stamps of vfat are even seconds.
const SETTLED: Duration = Duration::from_secs(2);
/// Somebody may execute the file.
const EXECUTABLE: u32 = 0o111;

/// The programs that the guest has opened, as they were when it last did.
#[derive(Default)]
pub(super) struct Programs(Mutex<HashMap<u64, Version>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    size: u64,
    modified: Duration,
    changed: Duration,
}

impl Programs {
    /// Whether `node`, which had these attributes just before it is opened, is a program that is the same as when it was last opened.
    /// `now` is the time since 1970.
    pub(super) fn is_unchanged(&self, node: u64, attributes: &Attr, now: Duration) -> bool {
        let version = Version {
            size: attributes.size,
            modified: Duration::new(attributes.mtime, attributes.mtimensec),
            changed: Duration::new(attributes.ctime, attributes.ctimensec),
        };
        let settled = now.checked_sub(version.changed).is_some_and(|age| age >= SETTLED);
        let mut programs = sync::lock(&self.0);
        if attributes.mode & EXECUTABLE == 0 || !settled {
            programs.remove(&node);
            return false;
        }
        // What is forgotten is read again, no more.
        if programs.len() >= MAX_PROGRAMS && !programs.contains_key(&node) {
            programs.clear();
        }
        programs.insert(node, version) == Some(version)
    }
}

#[cfg(test)]
#[path = "programs_test.rs"]
mod tests;
