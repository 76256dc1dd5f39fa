//! What a container sees of the host: its root and its bind mounts, put together below the shared tree.
//!
//! ```text
//!   shared/<container>/rootfs       what containerd, or Docker, gives as the root
//!   shared/<container>/mounts/<n>   the spec's n-th mount: a directory, or exactly one file
//! ```
//!
//! All of it exists only in the shim's mount namespace and in the VMM's, which follows it; dropping
//! [`ContainerMounts`] takes it away in both.

use super::bind::bind;
use super::rootfs::{self, RootMount, RootfsError};
use super::spec::{Bind, GuestPaths, Spec};
use super::steps::{Abandoned, Steps};
use crate::error::Error;
use crate::sandbox::membership::SHM;
use crate::state::remove_container;
use lazaret_agent_api::{DOCKER_SOCKET, SHARED_MEMORY, SHARED_ROOT};
use nix::mount::{MntFlags, umount2};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};

const RESOLV_CONF: &str = "/etc/resolv.conf";

#[derive(Debug, thiserror::Error)]
pub enum MountsError {
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    #[error(transparent)]
    Abandoned(#[from] Abandoned),
    #[error("the container's root {}: {source}", path.display())]
    Root { path: PathBuf, source: io::Error },
    #[error("bind mount of {} on {destination}: {source}", path.display())]
    Bind { path: PathBuf, destination: String, source: io::Error },
    #[error(
        "bind mount of the socket {} on {destination}: a program on the host cannot be reached from inside a sandbox",
        path.display()
    )]
    Socket { path: PathBuf, destination: String },
    #[error(
        "bind mount of the device {} on {destination}: the host's devices are not in a sandbox; leave the mount out",
        path.display()
    )]
    Device { path: PathBuf, destination: String },
    #[error("{}: {source}", path.display())]
    State { path: PathBuf, source: io::Error },
}

impl From<MountsError> for Error {
    fn from(error: MountsError) -> Self {
        let line = error.to_string();
        match error {
            MountsError::Bind { .. }
            | MountsError::Socket { .. }
            | MountsError::Device { .. }
            | MountsError::Rootfs(RootfsError::Loop(_) | RootfsError::Target(_)) => {
                Self::InvalidArgument(line)
            }
            _ => Self::Internal(line),
        }
    }
}

/// A container's mounts, for as long as this lives.
#[derive(Debug)]
pub(crate) struct ContainerMounts {
    directory: PathBuf,
    mounted: Vec<PathBuf>,
    paths: GuestPaths,
    resolv_conf: Option<PathBuf>,
}

impl ContainerMounts {
    /// Mounts what `spec` and containerd's `rootfs` list name below `shared`. An empty list means that the root is
    /// mounted already, where the spec says. A bind of `shm` as the container's shared memory is the guest's instead, which all
    /// containers of the sandbox have: the pages of a file that is shared with the host are another's for each mount of it.
    ///
    /// # Errors
    /// [`MountsError`]; what was mounted before is undone. [`MountsError::Abandoned`] at the first step after `steps` were.
    pub(crate) fn create(
        shared: &Path,
        id: &str,
        bundle: &Path,
        spec: &Spec,
        rootfs: &[RootMount],
        shm: Option<&Path>,
        steps: &Steps,
    ) -> Result<Self, MountsError> {
        let binds = spec.binds(bundle);
        // Judged before anything is made.
        let kinds = binds
            .iter()
            .map(|entry| {
                steps.enter(entry.to_string())?;
                if entry.destination == SHM && shm == Some(&entry.source) {
                    return Ok(Kind::SharedMemory);
                }
                check_source(entry)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let guest = Path::new(SHARED_ROOT).join(id);
        let mut mounts = Self {
            directory: shared.join(id),
            mounted: Vec::new(),
            paths: GuestPaths { root: guest.join("rootfs"), binds: Default::default() },
            resolv_conf: None,
        };
        let root = mounts.directory.join("rootfs");
        make_directory(&root)?;
        if rootfs.is_empty() {
            let path = spec.root(bundle);
            steps.enter(format!("the container's root {}", path.display()))?;
            bind(&path, &root, false, true).map_err(|source| MountsError::Root { path, source })?;
            mounts.mounted.push(root);
        } else {
            rootfs::mount_all(rootfs, &root, &mut mounts.mounted, steps)?;
        }
        for (entry, kind) in binds.iter().zip(kinds) {
            let number = entry.index.to_string();
            let target = mounts.directory.join("mounts").join(&number);
            match kind {
                Kind::Directory => make_directory(&target)?,
                Kind::File => make_file(&target)?,
                Kind::DockerSocket => {
                    mounts.paths.binds.insert(entry.index, DOCKER_SOCKET.into());
                    continue;
                }
                Kind::SharedMemory => {
                    mounts.paths.binds.insert(entry.index, SHARED_MEMORY.into());
                    continue;
                }
            }
            steps.enter(entry.to_string())?;
            bind(&entry.source, &target, entry.read_only, entry.recursive).map_err(|source| {
                MountsError::Bind {
                    path: entry.source.clone(),
                    destination: entry.destination.clone(),
                    source,
                }
            })?;
            if entry.destination == RESOLV_CONF && kind == Kind::File {
                mounts.resolv_conf = Some(target.clone());
            }
            mounts.mounted.push(target);
            mounts.paths.binds.insert(entry.index, guest.join("mounts").join(number));
        }
        Ok(mounts)
    }

    /// Where the guest finds them.
    #[must_use]
    pub(crate) fn paths(&self) -> &GuestPaths {
        &self.paths
    }

    /// The file that the container will find at `/etc/resolv.conf`, if it is mounted there.
    #[must_use]
    pub(crate) fn resolv_conf(&self) -> Option<PathBuf> {
        self.resolv_conf.clone()
    }
}

impl Drop for ContainerMounts {
    fn drop(&mut self) {
        for path in self.mounted.iter().rev() {
            // Lazily: the guest may have files of it open; they go with the VM.
            if let Err(errno) = umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                log::warn!("cannot unmount {}: {errno}", path.display());
            }
        }
        if let Err(error) = remove_container(&self.directory) {
            log::warn!("{error}");
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
    /// The host's Docker socket, in whose place the sandbox's own is mounted.
    DockerSocket,
    /// The sandbox's shared memory, in whose place the guest's own is mounted.
    SharedMemory,
}

fn check_source(entry: &Bind) -> Result<Kind, MountsError> {
    let (path, destination) = (entry.source.clone(), entry.destination.clone());
    let kind = match fs::metadata(&path) {
        Ok(meta) => meta.file_type(),
        Err(source) => return Err(MountsError::Bind { path, destination, source }),
    };
    if kind.is_socket() {
        let is_docker = |path: &Path| path.file_name().is_some_and(|name| name == "docker.sock");
        return if is_docker(&path) || is_docker(Path::new(&destination)) {
            Ok(Kind::DockerSocket)
        } else {
            Err(MountsError::Socket { path, destination })
        };
    }
    if kind.is_block_device() || kind.is_char_device() {
        return Err(MountsError::Device { path, destination });
    }
    Ok(if kind.is_dir() { Kind::Directory } else { Kind::File })
}

/// Traversable by all: a container's user namespace maps its root to somebody else. On the host, the state directory
/// above is root's alone.
fn make_directory(path: &Path) -> Result<(), MountsError> {
    let made = DirBuilder::new().recursive(true).mode(0o711).create(path);
    made.map_err(|source| MountsError::State { path: path.into(), source })
}

fn make_file(path: &Path) -> Result<(), MountsError> {
    path.parent().map(make_directory).transpose()?;
    fs::write(path, "").map_err(|source| MountsError::State { path: path.into(), source })
}

#[cfg(test)]
#[path = "mounts_test.rs"]
mod tests;
