//! The agent's own limits, which containers inherit where their spec is silent.

use super::BootError;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use std::io;

/// What service managers give containerd, and so what users of other runtimes find in their containers.
const MAX_OPEN_FILES: u64 = 1_048_576;

/// # Errors
/// [`BootError::Limit`].
pub(super) fn set() -> Result<(), BootError> {
    // The OOM killer takes a container's process, never the one that reports its end. A spec that says nothing about
    // its own score gets 0: see `spec`.
    std::fs::write("/proc/self/oom_score_adj", "-1000")
        .map_err(|source| BootError::Limit { what: "the agent's OOM score", source })?;
    for (what, resource, value) in [
        ("the limit of open files", Resource::RLIMIT_NOFILE, MAX_OPEN_FILES),
        ("the limit of processes", Resource::RLIMIT_NPROC, RLIM_INFINITY),
        ("the limit of core files", Resource::RLIMIT_CORE, RLIM_INFINITY),
    ] {
        setrlimit(resource, value, value)
            .map_err(|errno| BootError::Limit { what, source: io::Error::from(errno) })?;
    }
    Ok(())
}
