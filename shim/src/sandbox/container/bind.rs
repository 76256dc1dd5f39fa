//! Bind mounts by the kernel's newer mount calls: a detached copy is made, given its attributes, and only then put in
//! place. The shared tree propagates what appears in it to the VMM, but not what is changed later, so a mount that is
//! to be read-only must be so before it appears.
//!
//! The agent (`docker/launch.rs`) and the VMM (`jail.rs`) make such calls of their own: the crates they share with the shim
//! are contracts, not places for system calls.

use nix::errno::Errno;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What is shared with a guest is of no effect on the host: a device node there is one in the guest's kernel alone.
const INERT: u64 = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;

/// Binds `source`, a directory or a file, on `target`. With `recursive`, what is mounted below `source` comes along and
/// `read_only` holds for it too. Nothing mounted on the host later shows up.
///
/// # Errors
/// The kernel's.
pub(super) fn bind(source: &Path, target: &Path, read_only: bool, recursive: bool) -> io::Result<()> {
    let (source, target) = (c_path(source)?, c_path(target)?);
    let depth = if recursive { libc::AT_RECURSIVE.unsigned_abs() } else { 0 };
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | depth;
    // SAFETY: `source` is a terminated string that outlives the call; the result is a new descriptor or -1.
    let raw = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, source.as_ptr(), flags) };
    let raw = i32::try_from(Errno::result(raw)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us; nothing else owns it.
    let tree = unsafe { OwnedFd::from_raw_fd(raw) };
    let attributes = libc::mount_attr {
        attr_set: INERT | if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 },
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    // SAFETY: the attributes outlive the call, which is told their size; the path is the empty string.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH.unsigned_abs() | depth,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(set)?;
    // SAFETY: both paths are terminated strings that outlive the call.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    Errno::result(moved)?;
    Ok(())
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}
