//! Clients of a socket that are other users.

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use std::fs::{self, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A process that has connected, and what it may say.
pub(super) struct Peer {
    pub(super) process: Child,
    pub(super) stream: UnixStream,
}

impl Peer {
    /// Starts a process that connects to the socket at `path` as user `uid`, and then does nothing.
    pub(super) fn connect(path: &Path, uid: u32, no_new_privileges: bool) -> Self {
        let stream = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        let (descriptor, address) = (stream.as_raw_fd(), UnixAddr::new(path).unwrap());
        let mut command = Command::new("sleep");
        command.arg("1000").stdin(Stdio::null()).stdout(Stdio::null());
        // SAFETY: between fork and exec it makes system calls only, and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                if no_new_privileges {
                    nix::sys::prctl::set_no_new_privs()?;
                }
                // Not libc's: that wants to do it in all threads.
                if libc::syscall(libc::SYS_setuid, uid) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(connect(descriptor, &address)?)
            });
        }
        Self { process: command.spawn().unwrap(), stream: stream.into() }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(super) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// False, with the reason printed, for a test that cannot start processes of other users.
pub(super) fn is_root(test: &str) -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        crate::test_host::skipped(test, "it is not run by root");
    }
    is_root
}
