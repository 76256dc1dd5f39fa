//! What must be there before the host is told that the guest is ready, and nothing more.

mod limits;
mod loopback;
mod memory;
mod mounts;

use crate::paths;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;

#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error(transparent)]
    Mount(#[from] mounts::MountError),
    #[error("cannot raise the loopback interface: {0}")]
    Loopback(#[source] nix::Error),
    #[error("cannot set {what}: {source}")]
    Limit { what: &'static str, source: io::Error },
    #[error("cannot make {path}: {source}")]
    Directory { path: &'static str, source: io::Error },
}

/// Prepares the guest. The order is free but for the first step, on which the others stand.
///
/// # Errors
/// [`BootError`] names the step; the guest is of no use then.
pub(crate) fn prepare() -> Result<(), BootError> {
    mounts::mount_all()?;
    for path in [paths::CONTAINERS, paths::CRUN_ROOT] {
        let made = DirBuilder::new().mode(0o700).create(path);
        made.map_err(|source| BootError::Directory { path, source })?;
    }
    limits::set()?;
    memory::keep_working_set()?;
    loopback::up().map_err(BootError::Loopback)
}
