//! What the kernel does when memory is scarce.
//!
//! There is no swap, so what the kernel can take back is what it can read again: the pages of programs and of files. A container
//! that takes all memory has the kernel take those of every program, the agent's too, and read them again at once: the guest
//! is busy with that, but each page that is taken back counts as progress, and nothing is killed.

use super::BootError;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// Of the kernel's multi-generational LRU (Documentation/admin-guide/mm/multigen_lru.rst).
const MIN_TTL: &str = "/sys/kernel/mm/lru_gen/min_ttl_ms";

/// What was used within this time stays in memory, milliseconds; where that is more than there is, the kernel kills. The kernel's
/// documentation has 1000 for what a user does not notice, and warns that more kills early.
const WORKING_SET_MS: &str = "1000";

/// Has the kernel kill rather than take back what is in use.
///
/// # Errors
/// [`BootError::Limit`]. A kernel without multi-generational LRU is none.
pub(super) fn keep_working_set() -> Result<(), BootError> {
    set(Path::new(MIN_TTL))
}

fn set(path: &Path) -> Result<(), BootError> {
    // Not made where it is not there.
    let file = fs::OpenOptions::new().write(true).open(path);
    match file.and_then(|mut file| std::io::Write::write_all(&mut file, WORKING_SET_MS.as_bytes())) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(BootError::Limit { what: "the time for which memory in use is kept", source: error })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "memory_test.rs"]
mod tests;
