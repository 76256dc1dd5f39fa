//! The disk of the daemon's data: a volume, which is there from the guest's boot on, or a file without a name, which is made when
//! the guest asks for it.

use super::Docker;
use crate::budget::{Budget, BudgetError};
use crate::config::Config;
use crate::state::{Record, StateDir};
use crate::volume::{VolumeError, VolumeName, Volumes, nameless};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// The disk's index among those of the VM: after the guest's root and the daemon's image.
pub(in crate::sandbox) const DATA_DISK: u8 = 2;

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error(transparent)]
    Budget(#[from] BudgetError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error("a disk of {mib} MiB in {}: {source}; disk_dir of config.toml sets the directory", directory.display())]
    File { directory: PathBuf, mib: u64, source: io::Error },
    #[error("the record of the sandbox in {} cannot be read", .0.display())]
    Record(PathBuf),
}

/// Opens the volume that `docker` names, and enters its size in `record`.
///
/// # Errors
/// [`DiskError`]; the sandbox does not count any more then.
pub(in crate::sandbox) async fn open_volume(
    name: &VolumeName,
    docker: &Docker,
    config: &Config,
    state: &StateDir,
    state_root: &Path,
    record: &mut Record,
) -> Result<File, DiskError> {
    let volumes = Volumes::new(&config.disk_dir, state_root);
    let budget = Budget::new(&config.disk_dir, config.docker_disks_mib, state_root);
    // Before it is made: a volume that is refused is not left behind.
    let mib = volumes.mib(name, docker.capacity);
    let path = volumes.path(name);
    budget.lock().await?.enter(mib, Some(&path), state, record)?;
    let opened = async {
        let volume = volumes.acquire(name, docker.capacity).await?;
        let metadata = volume.metadata().map_err(|source| VolumeError::Os { path: path.clone(), source })?;
        record.docker_volume = Some(path.clone());
        // Another sandbox may have made it meanwhile, with another size.
        match metadata.len() >> 20 {
            has if has == mib => save(state, record)?,
            has => budget.lock().await?.enter(has, Some(&path), state, record)?,
        }
        Ok(volume)
    };
    let opened = opened.await;
    if opened.is_err() {
        (record.docker_volume, record.docker_disk) = (None, None);
        if let Err(error) = save(state, record) {
            log::warn!("a volume that could not be opened counts until the sandbox ends: {error}");
        }
    }
    opened
}

/// A disk that is made when the guest asks for it.
#[derive(Debug, Clone)]
pub(crate) struct LaterDisk {
    directory: PathBuf,
    mib: u64,
    budget: Budget,
    state: StateDir,
}

impl LaterDisk {
    /// The disk of `docker`; `None` when it is a volume.
    #[must_use]
    pub(in crate::sandbox) fn of(
        docker: &Docker,
        config: &Config,
        state: &StateDir,
        state_root: &Path,
    ) -> Option<Self> {
        let budget = Budget::new(&config.disk_dir, config.docker_disks_mib, state_root);
        let (directory, mib) = (config.disk_dir.clone(), docker.capacity.mib());
        docker.volume.is_none().then(|| Self { directory, mib, budget, state: state.clone() })
    }

    /// Where its file is made.
    #[must_use]
    pub(in crate::sandbox) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes the file, and enters its size in the sandbox's record.
    ///
    /// # Errors
    /// [`DiskError`]; the sandbox does not count then.
    pub(in crate::sandbox) async fn make(&self) -> Result<File, DiskError> {
        let entry = self.budget.lock().await?;
        // Read after the lock, and written before anything else runs here: the server changes the record, too.
        let unreadable = || DiskError::Record(self.state.path().into());
        let mut record = self.state.load().ok_or_else(unreadable)?;
        entry.enter(self.mib, None, &self.state, &mut record)?;
        let (directory, mib) = (self.directory.clone(), self.mib);
        let made = tokio::task::spawn_blocking(move || nameless(&directory, mib)).await;
        made.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|source| {
            let Some(mut record) = self.state.load() else { return unreadable() };
            record.docker_disk = None;
            if let Err(error) = save(&self.state, &record) {
                log::warn!("a disk that could not be made counts until the sandbox ends: {error}");
            }
            DiskError::File { directory: self.directory.clone(), mib: self.mib, source }
        })
    }
}

fn save(state: &StateDir, record: &Record) -> Result<(), BudgetError> {
    state.save(record).map_err(|source| BudgetError::Record { path: state.path().into(), source })
}

#[cfg(test)]
#[path = "disk_test.rs"]
mod tests;
