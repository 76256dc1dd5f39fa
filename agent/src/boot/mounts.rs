//! The guest's file systems. The root is read-only; what is written is in memory, or the host's.

use crate::{cgroup, paths};
use lazaret_agent_api::{SHARED_MEMORY, SHARED_ROOT, SHARED_TAG};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use std::io;
use std::path::Path;

#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    #[error("cannot mount {fstype} on {target}: {errno}")]
    Mount { fstype: &'static str, target: &'static str, errno: Errno },
    #[error("cannot mount the shared tree: there is no virtio-fs device with the tag {SHARED_TAG}")]
    NoSharedTree,
    #[error("cannot make {path}: {source}")]
    Directory { path: &'static str, source: io::Error },
    #[error("cannot have the kernel's grace periods expedited: {0}")]
    Rcu(#[source] io::Error),
    #[error("cannot enable the cgroup controllers: {0}")]
    Controllers(#[source] io::Error),
}

struct Mount {
    source: &'static str,
    fstype: &'static str,
    target: &'static str,
    flags: MsFlags,
    data: &'static str,
}

const NOSUID: MsFlags = MsFlags::MS_NOSUID;
const NODEV: MsFlags = MsFlags::MS_NODEV;
const NOEXEC: MsFlags = MsFlags::MS_NOEXEC;

/// A parent comes before what is mounted below it.
const MOUNTS: [Mount; 10] = [
    Mount {
        source: "devtmpfs",
        fstype: "devtmpfs",
        target: "/dev",
        flags: NOSUID.union(NOEXEC),
        data: "mode=0755",
    },
    Mount {
        source: "proc",
        fstype: "proc",
        target: "/proc",
        flags: NOSUID.union(NODEV).union(NOEXEC),
        data: "",
    },
    Mount {
        source: "sysfs",
        fstype: "sysfs",
        target: "/sys",
        flags: NOSUID.union(NODEV).union(NOEXEC),
        data: "",
    },
    Mount {
        source: "cgroup2",
        fstype: "cgroup2",
        target: paths::CGROUP_ROOT,
        flags: NOSUID.union(NODEV).union(NOEXEC),
        data: "nsdelegate,memory_recursiveprot",
    },
    Mount {
        source: "devpts",
        fstype: "devpts",
        target: "/dev/pts",
        flags: NOSUID.union(NOEXEC),
        data: "gid=5,mode=620,ptmxmode=666",
    },
    Mount {
        source: "shm",
        fstype: "tmpfs",
        target: "/dev/shm",
        flags: NOSUID.union(NODEV),
        data: "mode=1777",
    },
    Mount { source: "run", fstype: "tmpfs", target: "/run", flags: NOSUID.union(NODEV), data: "mode=755" },
    Mount { source: "tmp", fstype: "tmpfs", target: "/tmp", flags: NOSUID.union(NODEV), data: "mode=1777" },
    // As large as CRI makes it.
    Mount {
        source: "shm",
        fstype: "tmpfs",
        target: SHARED_MEMORY,
        flags: NOSUID.union(NODEV).union(NOEXEC),
        data: "mode=1777,size=64m",
    },
    // Containers live in it: devices and set-user-id programs are theirs to have. Their specs say otherwise.
    Mount { source: SHARED_TAG, fstype: "virtiofs", target: SHARED_ROOT, flags: MsFlags::empty(), data: "" },
];

/// # Errors
/// [`MountError`] names what and where.
pub(super) fn mount_all() -> Result<(), MountError> {
    for step in &MOUNTS {
        // The root is read-only: what is not there by now is on a file system of ours.
        if !Path::new(step.target).exists() {
            std::fs::create_dir_all(step.target)
                .map_err(|source| MountError::Directory { path: step.target, source })?;
        }
        if step.target == paths::CGROUP_ROOT {
            expedite_rcu()?;
        }
        match mount(Some(step.source), step.target, Some(step.fstype), step.flags, Some(step.data)) {
            // The kernel has mounted /dev itself.
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(Errno::EINVAL) if step.fstype == "virtiofs" => return Err(MountError::NoSharedTree),
            Err(errno) => {
                return Err(MountError::Mount { fstype: step.fstype, target: step.target, errno });
            }
        }
    }
    cgroup::enable_controllers().map_err(MountError::Controllers)
}

/// Has the kernel hurry where it waits for all processors to pass a quiet point, as it does itself until process 1 runs.
/// Mounting cgroup2 waits once, 10 ms of the start, and so does much of what makes and ends a container.
fn expedite_rcu() -> Result<(), MountError> {
    std::fs::write("/sys/kernel/rcu_expedited", "1").map_err(MountError::Rcu)
}
