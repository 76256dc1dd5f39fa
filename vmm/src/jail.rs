//! The jail: what the VMM can still reach when a guest has taken it over.
//!
//! ```text
//!   before                          after
//!   /            the host's         /         an empty tmpfs, read only
//!   PATH/…       the sandbox's      /shared   a slave of PATH, read only; what is mounted below it, now or later, shows
//!                                             up as writable as it is there
//!   /proc        the host's         none
//!   descriptors  any                0, 1, 2, the control channel, what came over it, and with a tree that of /proc/self/fd,
//!                                             from which `..` leads nowhere
//!   capabilities root's             those that serving files for any user takes, or none
//!   user         0                  0
//! ```
//!
//! The process stays in the network, pid, IPC and user namespaces and the cgroup it was started in: what that leaves it is
//! in the README. A seccomp filter for each thread will be set where the threads start.

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, mkdir, pivot_root};
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

/// The shared tree inside of the jail.
pub const SHARED: &str = "/shared";
/// Where the new root is mounted while it is built: a directory that every system has. The mount is in the jail's mount
/// namespace alone.
const NEW_ROOT_MOUNT_POINT: &str = "/tmp";
const NONE: Option<&str> = None;

/// What the virtio-fs server needs to make files for the guest's users (capability.h).
const FILE_CAPABILITIES: u32 = {
    const CHOWN: u32 = 0;
    const DAC_OVERRIDE: u32 = 1;
    const FOWNER: u32 = 3;
    const FSETID: u32 = 4;
    const SETGID: u32 = 6;
    const SETUID: u32 = 7;
    const MKNOD: u32 = 27;
    const SETFCAP: u32 = 31;
    1 << CHOWN
        | 1 << DAC_OVERRIDE
        | 1 << FOWNER
        | 1 << FSETID
        | 1 << SETGID
        | 1 << SETUID
        | 1 << MKNOD
        | 1 << SETFCAP
};

/// Why the jail cannot be closed; the VM is not started then.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    #[error("the jail cannot {what}: {errno}")]
    Step { what: &'static str, errno: Errno },
    #[error("the shared directory {path} cannot be taken into the jail: {errno}")]
    Shared { path: PathBuf, errno: Errno },
}

fn step(what: &'static str) -> impl FnOnce(Errno) -> JailError {
    move |errno| JailError::Step { what, errno }
}

fn refused(path: &Path) -> impl FnOnce(Errno) -> JailError {
    move |errno| JailError::Shared { path: path.to_owned(), errno }
}

/// Closes every descriptor but 0, 1, 2 and `keep`: whatever the parent forgot to.
///
/// # Errors
/// When the kernel is older than 5.9.
pub fn close_others(keep: RawFd) -> Result<(), JailError> {
    let keep = libc::c_uint::try_from(keep).unwrap_or(libc::c_uint::MAX);
    for (first, last) in [(3, keep.saturating_sub(1)), (keep.saturating_add(1), libc::c_uint::MAX)] {
        if first <= last {
            // SAFETY: called first in main: nothing in this process owns a descriptor in these ranges.
            let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
            Errno::result(result).map_err(step("close descriptors"))?;
        }
    }
    Ok(())
}

/// Leaves the host's file system for one that holds only `shared`, and gives up what is not needed. It must be called
/// while the process has one thread. With `shared` it returns the directory of the process's own descriptors, which
/// serving the tree needs.
///
/// # Errors
/// See [`JailError`]; the process must not go on then.
pub fn enter(shared: Option<&Path>) -> Result<Option<File>, JailError> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(step("get a mount namespace"))?;
    // Slaves rather than private mounts: of all that is shared, only the tree below keeps it, and needs it.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE).map_err(step("detach its mounts"))?;
    // Opened before the new root hides what is below its mount point.
    let tree = shared
        .map(|path| {
            open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
                .map_err(refused(path))
        })
        .transpose()?;
    let descriptors = shared
        .map(|_| own_descriptors())
        .transpose()
        .map_err(step("take the directory of its descriptors along"))?;

    let protection = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(
        Some("tmpfs"),
        NEW_ROOT_MOUNT_POINT,
        Some("tmpfs"),
        protection,
        Some("size=4k,nr_inodes=4,mode=555"),
    )
    .map_err(step("mount its root"))?;
    chdir(NEW_ROOT_MOUNT_POINT).map_err(step("enter its root"))?;
    if let (Some(tree), Some(path)) = (tree, shared) {
        let inside = SHARED.trim_start_matches('/');
        mkdir(inside, Mode::S_IRWXU).map_err(step("make /shared"))?;
        // Not a detached copy (open_tree(2), move_mount(2)): while it is detached it misses what the shim mounts in the
        // original. This copies and attaches in one step.
        let source = format!("/proc/self/fd/{}", tree.as_raw_fd());
        mount(Some(source.as_str()), inside, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)
            .map_err(refused(path))?;
        make_read_only(inside).map_err(step("make /shared read only"))?;
    }
    let read_only = protection | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(NONE, ".", NONE, read_only, NONE).map_err(step("make its root read only"))?;
    // The old root ends up on top of the new one, and is taken off (pivot_root(2), "pivot_root(".", ".")").
    pivot_root(".", ".").map_err(step("change its root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(step("leave the old root"))?;
    chdir("/").map_err(step("enter its root"))?;

    nix::sys::prctl::set_no_new_privs().map_err(step("forbid new privileges"))?;
    // Another VMM has the same user and the same capabilities, which is all that tracing takes otherwise (ptrace(2)).
    nix::sys::prctl::set_dumpable(false).map_err(step("forbid that it is traced"))?;
    keep_capabilities(if shared.is_some() { FILE_CAPABILITIES } else { 0 })
        .map_err(step("drop capabilities"))?;
    Ok(descriptors)
}

/// Opens `/proc/self/fd` so that nothing else of `/proc` can be reached from it.
///
/// A descriptor of a directory is a way to all that is above it in its mount, `/proc/sys` here, also when that mount has
/// been left. So the directory is made a mount of its own, and taken off again: its `..` is itself.
fn own_descriptors() -> Result<File, Errno> {
    const MOUNT_POINT: &str = "/proc";
    mount(Some("/proc/self/fd"), MOUNT_POINT, NONE, MsFlags::MS_BIND, NONE)?;
    let directory = open(MOUNT_POINT, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    umount2(MOUNT_POINT, MntFlags::MNT_DETACH)?;
    Ok(directory.into())
}

/// Makes the mount at `place` read only: that one alone, in all else as it was. The shim makes this call, too
/// (`sandbox/bind.rs`), on detached trees: the crate that the two share is a contract, not a place for system calls.
///
/// The top of the tree is a directory of the host's own, on its `/run`. Mounts propagate, flags do not: what is below has
/// its own, and nothing that is done to the original makes this one writable again.
fn make_read_only(place: &str) -> Result<(), Errno> {
    let attributes =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let place = CString::new(place).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the path is terminated, and outlives the call as the attributes do, whose size it is told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            place.as_ptr(),
            0,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(result).map(drop)
}

/// Keeps no more than `set` (of the first 32 capabilities) of what the thread has.
fn keep_capabilities(set: u32) -> Result<(), Errno> {
    const VERSION_3: u32 = 0x2008_0522;
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: header and data are those of version 3 of the interface: one header, two data.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    let [low, _] = data;
    let kept = low.permitted & set;
    let data = [Data { effective: kept, permitted: kept, inheritable: 0 }, Data::default()];
    // SAFETY: as above.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) }).map(drop)
}

#[cfg(test)]
#[path = "jail_test.rs"]
mod tests;
