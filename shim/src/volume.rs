//! The disks of the private Docker daemons, on the host. A disk is a file without a name, which is gone with its sandbox, or a
//! volume, which outlives its sandbox.
//!
//! ```text
//!   <disk_dir>/volumes/<name>     a sparse file of root's; what is in it is the guest's
//!
//!   shim: open, flock(2) ──────── the same open file ────────► lazaret-vmm
//! ```
//!
//! A volume belongs to one sandbox at a time. The lock belongs to the open file, which the VMM gets. So the lock is held until
//! both shim and VMM have ended, however they end, and nothing has to be cleaned up.

use crate::config::DOCKER_DISK_MIB;
use crate::state::StateDir;
use lazaret_agent_api::{InvalidIdentifier, check_identifier};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::linkat;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a sandbox that is ending may take to release its volume.
const RELEASE_TIMEOUT: Duration =
    if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(2) };
/// The time between two attempts to lock a volume: flock(2) does not announce that a lock is free.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// A file system with less room than this, MiB, is full: what dockerd's first start writes, 1 MiB, may not find room.
const MIN_FREE_MIB: u64 = 16;

/// Makes a file without a name in `directory`: it takes no space until it is written to, and is gone as soon as nobody
/// has it open.
///
/// # Errors
/// The kernel's; [`ErrorKind::StorageFull`] when less than [`MIN_FREE_MIB`] are free, so that the host says so rather than the guest,
/// which would see input and output errors.
pub(crate) fn nameless(directory: &Path, mib: u64) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let disk = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(0o600)
        .open(directory)?;
    disk.set_len(mib << 20)?;
    check_room(&disk)?;
    Ok(disk)
}

fn check_room(disk: &File) -> io::Result<()> {
    let room = fstatvfs(disk)?;
    let free_mib = room.blocks_available().saturating_mul(room.fragment_size()) >> 20;
    // One without limits counts no blocks at all.
    if room.blocks() == 0 || free_mib >= MIN_FREE_MIB {
        return Ok(());
    }
    let line = format!(
        "its file system is full: {free_mib} MiB are free, and a Docker disk takes at least {MIN_FREE_MIB}"
    );
    Err(io::Error::new(ErrorKind::StorageFull, line))
}

/// How large a disk is to be, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Capacity {
    /// If it is a new one; a volume that exists keeps its own.
    New(u64),
    /// A volume of another size will not do.
    Exactly(u64),
}

impl Capacity {
    /// Of a new disk.
    #[must_use]
    pub(crate) fn mib(self) -> u64 {
        let (Self::New(mib) | Self::Exactly(mib)) = self;
        mib
    }
}

/// The name of a volume: an identifier, which is the name of the volume's file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct VolumeName(String);

impl VolumeName {
    /// # Errors
    /// [`InvalidIdentifier`].
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidIdentifier> {
        check_identifier(text)?;
        Ok(Self(text.into()))
    }

    #[must_use]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("volume name: {0}")]
    Name(#[from] InvalidIdentifier),
    #[error("there is no volume {0:?} (`lazaret volume ls` lists them)")]
    None(String),
    #[error("volume {name:?} is in use{}", by.as_ref().map(|by| format!(" by sandbox {by}")).unwrap_or_default())]
    InUse {
        name: String,
        /// Namespace and id of the sandbox, if its record names the volume.
        by: Option<String>,
    },
    #[error(
        "volume {name:?} has {}, which io.lazaret.docker.disk cannot change to {}: leave that annotation out, or remove \
         the volume with `lazaret volume rm {name}`",
        size(*have), size(*asked)
    )]
    Size { name: String, have: u64, asked: u64 },
    #[error(
        "volume {name:?} is damaged: a file of {bytes} bytes is no disk; remove it with `lazaret volume rm {name}`"
    )]
    Damaged { name: String, bytes: u64 },
    #[error("{} is not a regular file, so it is no volume; move it away", .0.display())]
    NotFile(PathBuf),
    #[error("the volume {}: {source}; its place is below disk_dir, which config.toml sets", path.display())]
    Os { path: PathBuf, source: io::Error },
}

/// MiB as the annotation is written.
fn size(mib: u64) -> String {
    match mib {
        _ if mib.is_multiple_of(1 << 20) => format!("{}Ti", mib >> 20),
        _ if mib.is_multiple_of(1 << 10) => format!("{}Gi", mib >> 10),
        _ => format!("{mib}Mi"),
    }
}

/// The volumes of a host.
#[derive(Debug)]
pub(crate) struct Volumes<'a> {
    directory: PathBuf,
    /// Where the sandboxes' records are, which name their volumes.
    state_root: &'a Path,
}

impl<'a> Volumes<'a> {
    #[must_use]
    pub(crate) fn new(disk_dir: &Path, state_root: &'a Path) -> Self {
        Self { directory: disk_dir.join("volumes"), state_root }
    }

    /// The volume's file.
    #[must_use]
    pub(crate) fn path(&self, name: &VolumeName) -> PathBuf {
        self.directory.join(name.as_str())
    }

    /// How large the volume is, or will be when it is made, in MiB.
    #[must_use]
    pub(crate) fn mib(&self, name: &VolumeName, capacity: Capacity) -> u64 {
        fs::symlink_metadata(self.path(name)).map_or(capacity.mib(), |volume| volume.len() >> 20)
    }

    /// Opens a volume for one sandbox, and makes it if there is none. A volume that another sandbox has is waited for, up to
    /// [`RELEASE_TIMEOUT`].
    ///
    /// # Errors
    /// [`VolumeError`].
    pub(crate) async fn acquire(&self, name: &VolumeName, capacity: Capacity) -> Result<File, VolumeError> {
        let deadline = Instant::now() + RELEASE_TIMEOUT;
        loop {
            match self.open(name, capacity) {
                Err(VolumeError::InUse { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(LOCK_RETRY_INTERVAL).await;
                }
                result => return result,
            }
        }
    }

    fn open(&self, name: &VolumeName, capacity: Capacity) -> Result<File, VolumeError> {
        let volume = loop {
            match self.lock(name) {
                Err(VolumeError::None(_)) => {}
                result => break result?,
            }
            if let Some(new) = self.create(name, capacity.mib())? {
                return Ok(new);
            }
        };
        let bytes = volume.metadata().map_err(self.failed(name))?.len();
        let (have, name) = (bytes >> 20, name.as_str().to_owned());
        if bytes != have << 20 || have < *DOCKER_DISK_MIB.start() {
            return Err(VolumeError::Damaged { name, bytes });
        }
        match capacity {
            Capacity::Exactly(asked) if asked != have => Err(VolumeError::Size { name, have, asked }),
            _ => Ok(volume),
        }
    }

    /// Makes a volume, which has its size and its lock before it has its name. `None` when another sandbox has made it first.
    fn create(&self, name: &VolumeName, mib: u64) -> Result<Option<File>, VolumeError> {
        let file = nameless(&self.directory, mib).map_err(self.failed(name))?;
        flock(&file).map_err(|errno| self.failed(name)(errno.into()))?;
        let open = format!("/proc/self/fd/{}", file.as_raw_fd());
        let named = self.path(name);
        match linkat(AT_FDCWD, open.as_str(), AT_FDCWD, &named, AtFlags::AT_SYMLINK_FOLLOW) {
            Ok(()) => Ok(Some(file)),
            Err(Errno::EEXIST) => Ok(None),
            Err(errno) => Err(self.failed(name)(errno.into())),
        }
    }

    /// Opens and locks a volume that exists.
    fn lock(&self, name: &VolumeName) -> Result<File, VolumeError> {
        let path = self.path(name);
        loop {
            match fs::symlink_metadata(&path) {
                Ok(metadata) if metadata.is_file() => {}
                Ok(_) => return Err(VolumeError::NotFile(path)),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    return Err(VolumeError::None(name.as_str().into()));
                }
                Err(error) => return Err(self.failed(name)(error)),
            }
            let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(&path);
            let file = match opened {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                result => result.map_err(self.failed(name))?,
            };
            match flock(&file) {
                Ok(()) => {}
                Err(Errno::EWOULDBLOCK) => {
                    return Err(VolumeError::InUse { name: name.as_str().into(), by: self.holder(name) });
                }
                Err(errno) => return Err(self.failed(name)(errno.into())),
            }
            // Before it was locked it may have been removed, and another one made.
            let locked = file.metadata().map_err(self.failed(name))?;
            let same = |named: fs::Metadata| (named.dev(), named.ino()) == (locked.dev(), locked.ino());
            if fs::symlink_metadata(&path).is_ok_and(same) {
                return Ok(file);
            }
        }
    }

    /// The sandbox that has the volume, by what it has left in its record: `<namespace>/<id>`.
    #[must_use]
    pub(crate) fn holder(&self, name: &VolumeName) -> Option<String> {
        let path = self.path(name);
        let has = |state: &StateDir| state.load().is_some_and(|record| record.has_volume(&path));
        let (namespace, id, _) =
            StateDir::all(self.state_root).into_iter().find(|(_, _, state)| has(state))?;
        Some(format!("{namespace}/{id}"))
    }

    /// The names of all volumes, in order.
    ///
    /// # Errors
    /// [`VolumeError::Os`].
    pub(crate) fn names(&self) -> Result<Vec<VolumeName>, VolumeError> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            result => result.map_err(|source| VolumeError::Os { path: self.directory.clone(), source })?,
        };
        let files = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
        let mut names: Vec<_> =
            files.filter_map(|file| VolumeName::parse(file.file_name().to_str()?).ok()).collect();
        names.sort();
        Ok(names)
    }

    /// Removes a volume that no sandbox has.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub(crate) fn remove(&self, name: &VolumeName) -> Result<(), VolumeError> {
        // Locked until its name is gone, so that no sandbox opens a volume that is being removed.
        let _volume = self.lock(name)?;
        fs::remove_file(self.path(name)).map_err(self.failed(name))
    }

    fn failed(&self, name: &VolumeName) -> impl Fn(io::Error) -> VolumeError {
        let path = self.path(name);
        move |source| VolumeError::Os { path: path.clone(), source }
    }
}

/// Takes the lock of an open file, which all copies of its descriptor share: `LOCK_UN` through one of them would end it
/// for all, so it is ended by closing alone.
pub(crate) fn flock(file: &File) -> nix::Result<()> {
    // SAFETY: a system call on a descriptor that `file` keeps open.
    Errno::result(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }).map(drop)
}

#[cfg(test)]
#[path = "volume_test.rs"]
mod tests;
