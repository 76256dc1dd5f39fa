//! The budget of a host for the disks of its Docker daemons: `docker_disks_mib` of the configuration.
//!
//! ```text
//!   <disk_dir>/.lock                            locked (flock(2)) while a disk is entered
//!   /run/lazaret/<namespace>/<id>/state.json    docker_disk: the directory, and the size of the sandbox's disk
//! ```
//!
//! There is no account but the records of the sandboxes. A disk is entered in its sandbox's record before the disk is made, and
//! counts until the VMM, which has the disk open, has ended. So a sandbox that dies, however it dies, does not count any more,
//! and nothing has to be cleaned up. What counts is the size, not what is used of it: a guest may fill its disk at any time.

use crate::state::{DockerDisk, Record, StateDir};
use crate::volume::flock;
use nix::errno::Errno;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long another sandbox may take to enter its disk.
const LOCK_TIMEOUT: Duration = if cfg!(test) { Duration::from_secs(2) } else { Duration::from_secs(5) };
/// The time between two attempts to lock: flock(2) does not announce that a lock is free.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(10);

#[derive(Debug, thiserror::Error)]
pub enum BudgetError {
    /// The guest is told this; what is taken by others is none of its business.
    #[error(
        "the Docker disks of this host have {limit} MiB together (docker_disks_mib), with no room for one of {mib} MiB"
    )]
    Exceeded { limit: u64, taken: u64, mib: u64 },
    #[error("{} has been locked for {} s, so no Docker disk can be counted", .0.display(), LOCK_TIMEOUT.as_secs())]
    Locked(PathBuf),
    #[error("{}: {source}; disk_dir of config.toml sets the directory", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("the record of the sandbox in {}: {source}", path.display())]
    Record { path: PathBuf, source: io::Error },
}

/// The budget of one directory for disks.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    directory: PathBuf,
    /// `None` for no limit.
    limit_mib: Option<u64>,
    /// Where the sandboxes' records are.
    state_root: PathBuf,
}

impl Budget {
    /// Of the disks in `directory`; a limit of 0 is none.
    #[must_use]
    pub(crate) fn new(directory: &Path, limit_mib: u64, state_root: &Path) -> Self {
        let limit_mib = Some(limit_mib).filter(|limit| *limit > 0);
        Self { directory: directory.into(), limit_mib, state_root: state_root.into() }
    }

    /// Keeps all others from entering a disk until the result is dropped.
    ///
    /// # Errors
    /// [`BudgetError::Directory`]; [`BudgetError::Locked`] after [`LOCK_TIMEOUT`].
    pub(crate) async fn lock(&self) -> Result<Entry<'_>, BudgetError> {
        let directory = self.directory.clone();
        // The directory's file system may not answer.
        let locked = tokio::task::spawn_blocking(move || lock(&directory)).await;
        let failed = |error| BudgetError::Directory { path: self.directory.clone(), source: error };
        let (directory, lock) = locked.map_err(|error| failed(io::Error::other(error)))??;
        Ok(Entry { budget: self, directory, _lock: lock })
    }
}

/// The file of a directory that is locked. It is root's alone: whoever can open a file can lock it.
pub(crate) fn lock_file(directory: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options.open(directory.join(".lock"))
}

/// Makes the directory, if it is not there, and locks it. Returns its path without symbolic links.
fn lock(path: &Path) -> Result<(PathBuf, File), BudgetError> {
    let failed = |source| BudgetError::Directory { path: path.into(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    let directory = fs::canonicalize(path).map_err(failed)?;
    let lock = lock_file(&directory).map_err(failed)?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match flock(&lock) {
            Ok(()) => return Ok((directory, lock)),
            Err(Errno::EWOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(LOCK_RETRY_INTERVAL),
            Err(Errno::EWOULDBLOCK) => return Err(BudgetError::Locked(directory)),
            Err(errno) => return Err(failed(errno.into())),
        }
    }
}

/// The right to enter a disk.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    budget: &'a Budget,
    /// The budget's, without symbolic links.
    directory: PathBuf,
    _lock: File,
}

impl Entry<'_> {
    /// Enters the disk of a sandbox in `record`, which is saved in `state`. A `volume` that another sandbox still has counts once.
    ///
    /// # Errors
    /// [`BudgetError`]; the sandbox has no disk then.
    pub(crate) fn enter(
        self,
        mib: u64,
        volume: Option<&Path>,
        state: &StateDir,
        record: &mut Record,
    ) -> Result<(), BudgetError> {
        if let Some(limit) = self.budget.limit_mib {
            let taken = self.taken(state, volume);
            if taken.saturating_add(mib) > limit {
                log::warn!("{taken} MiB of the {limit} MiB for Docker disks are taken");
                return Err(BudgetError::Exceeded { limit, taken, mib });
            }
        }
        record.docker_disk = Some(DockerDisk { directory: self.directory, mib });
        let saved = state.save(record);
        saved.map_err(|source| {
            record.docker_disk = None;
            BudgetError::Record { path: state.path().into(), source }
        })
    }

    /// MiB of the disks of all sandboxes but `own`, and but the disk that is `volume`.
    fn taken(&self, own: &StateDir, volume: Option<&Path>) -> u64 {
        let others = StateDir::all(&self.budget.state_root).into_iter().filter(|(_, _, state)| state != own);
        let records = others.filter_map(|(_, _, state)| state.load()).filter(Record::has_disks);
        let counted = |record: &Record| volume.is_none() || record.docker_volume.as_deref() != volume;
        let disks = records.filter(counted).filter_map(|record| record.docker_disk);
        let sizes = disks.filter(|disk| disk.directory == self.directory).map(|disk| disk.mib);
        sizes.fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
#[path = "budget_test.rs"]
mod tests;
