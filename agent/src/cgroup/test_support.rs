//! Cgroups for tests.

use super::Cgroup;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// A directory with whatever files, in place of a cgroup.
pub(crate) fn in_directory(path: &Path) -> Cgroup {
    Cgroup(path.to_owned())
}

/// A real cgroup, without any controller, that goes with the test.
pub(crate) struct Made {
    pub(super) cgroup: Cgroup,
    directory: File,
    hierarchy: tempfile::TempDir,
}

/// `None`, with the reason printed, where none can be made.
pub(crate) fn made(test: &str) -> Option<Made> {
    let hierarchy = tempfile::tempdir().unwrap();
    let none: Option<&str> = None;
    // In a mount namespace of this thread's own.
    let mounted = unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))
        .and_then(|()| mount(Some("cgroup2"), hierarchy.path(), Some("cgroup2"), MsFlags::empty(), none));
    if let Err(errno) = mounted {
        crate::test_host::skipped(test, &format!("it may not mount a cgroup hierarchy: {errno}"));
        return None;
    }
    let cgroup = Cgroup(hierarchy.path().join(format!("lazaret-test-{}-{test}", std::process::id())));
    fs::create_dir(&cgroup.0).unwrap();
    let directory = File::open(&cgroup.0).unwrap();
    Some(Made { cgroup, directory, hierarchy })
}

impl Made {
    /// Its `cgroup.events`, by a descriptor: other threads have other mounts.
    pub(crate) fn events(&self) -> PathBuf {
        format!("/proc/self/fd/{}/cgroup.events", self.directory.as_raw_fd()).into()
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // After a failure it may have a process.
        let _ = self.cgroup.remove();
        let _ = umount2(self.hierarchy.path(), MntFlags::MNT_DETACH);
    }
}
