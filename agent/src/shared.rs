//! The tree that the host shares with the guest.

use lazaret_agent_api::SHARED_ROOT;
use nix::mount::{MntFlags, umount2};
use std::fs::File;
use std::time::Duration;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::timeout;

/// A host that takes longer to write back has other troubles; the guest's end does not wait for it.
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub(crate) enum SharedError {
    #[error("cannot write back {SHARED_ROOT}: {0}")]
    Sync(#[from] nix::Error),
    #[error("cannot open {SHARED_ROOT}: {0}")]
    Open(#[from] std::io::Error),
    #[error("writing back {SHARED_ROOT} took more than {n} s", n = DEADLINE.as_secs())]
    Deadline,
    #[error("cannot write back {SHARED_ROOT}: {0}")]
    Task(#[from] JoinError),
}

/// Hands every change that the guest has made to its files over to the host.
///
/// # Errors
/// [`SharedError`].
pub(crate) async fn sync() -> Result<(), SharedError> {
    written(|| Ok(nix::unistd::syncfs(File::open(SHARED_ROOT)?)?)).await
}

/// The same, and writes back what is mounted elsewhere: the volume of the Docker daemon.
///
/// # Errors
/// [`SharedError`].
pub(crate) async fn sync_all() -> Result<(), SharedError> {
    written(|| {
        nix::unistd::sync();
        Ok(nix::unistd::syncfs(File::open(SHARED_ROOT)?)?)
    })
    .await
}

async fn written(write: fn() -> Result<(), SharedError>) -> Result<(), SharedError> {
    timeout(DEADLINE, spawn_blocking(write)).await.map_err(|_| SharedError::Deadline)??
}

/// Lets go of it. What still uses it, if anything does, keeps it.
///
/// # Errors
/// Of umount2(2).
pub(crate) fn unmount() -> nix::Result<()> {
    umount2(SHARED_ROOT, MntFlags::MNT_DETACH)
}
