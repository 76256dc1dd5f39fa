//! The tree that the host shares with the guest.

use lazaret_agent_api::SHARED_ROOT;
use nix::mount::{MntFlags, umount2};
use std::fs::File;
use std::time::Duration;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::timeout;

/// How long the host may take to write the shared tree back. The guest's end does not wait longer.
const SYNC_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the volume of the Docker daemon may take: it may be as much data as the guest has memory, on a slow disk.
const VOLUME_SYNC_TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Debug, thiserror::Error)]
pub(crate) enum SharedError {
    #[error("cannot write back {SHARED_ROOT}: {0}")]
    Sync(#[from] nix::Error),
    #[error("cannot open {SHARED_ROOT}: {0}")]
    Open(#[from] std::io::Error),
    #[error("writing back {what} took more than {n} s", n = limit.as_secs())]
    Deadline { what: &'static str, limit: Duration },
    #[error("cannot write back {SHARED_ROOT}: {0}")]
    Task(#[from] JoinError),
}

/// Hands every change that the guest has made to its files over to the host.
///
/// # Errors
/// [`SharedError`].
pub(crate) async fn sync() -> Result<(), SharedError> {
    let sync = spawn_blocking(|| Ok(nix::unistd::syncfs(File::open(SHARED_ROOT)?)?));
    timeout(SYNC_TIMEOUT, sync)
        .await
        .map_err(|_| SharedError::Deadline { what: SHARED_ROOT, limit: SYNC_TIMEOUT })??
}

/// Writes the volume of the Docker daemon back, which is mounted in dockerd's mount namespace.
///
/// # Errors
/// [`SharedError`].
pub(crate) async fn sync_volume() -> Result<(), SharedError> {
    let late = |_| SharedError::Deadline { what: "the Docker daemon's volume", limit: VOLUME_SYNC_TIMEOUT };
    Ok(timeout(VOLUME_SYNC_TIMEOUT, spawn_blocking(nix::unistd::sync)).await.map_err(late)??)
}

/// Unmounts the shared tree. A process that still uses the tree keeps it.
///
/// # Errors
/// Of umount2(2).
pub(crate) fn unmount() -> nix::Result<()> {
    umount2(SHARED_ROOT, MntFlags::MNT_DETACH)
}
