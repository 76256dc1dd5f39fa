//! Who may use the private Docker daemon: whoever uses it is the guest's root (`docker run --privileged`), and on the host
//! reads and writes the sandbox's files as root. So it is for those who could be root in their container anyway: user 0, and
//! those whose process may gain privileges by a program that is set-user-ID, which `noNewPrivileges` in a container's spec
//! takes away for good.
//!
//! User 0 is the guest's. Root of a container in a user namespace of its own counts as any other user, and so does a user that
//! makes itself such a namespace.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;

/// Whether the process that has made the connection `stream` may use the daemon.
///
/// # Errors
/// One line: why it may not.
pub(super) fn may_use(stream: &impl AsFd) -> Result<(), String> {
    // By the kernel, at the time of its connect(2).
    let peer = getsockopt(stream, sockopt::PeerCredentials)
        .map_err(|errno| format!("it is not known who has connected: {errno}"))?;
    if peer.uid() == 0 {
        return Ok(());
    }
    match cannot_gain_privileges(stream, peer.pid()) {
        Ok(false) => Ok(()),
        Ok(true) => Err(format!(
            "user {} may not use it from a container with noNewPrivileges, unless the sandbox has the annotation \
             io.lazaret.docker.users=all",
            peer.uid()
        )),
        Err(error) => Err(format!("it is not known whether user {} could become root: {error}", peer.uid())),
    }
}

/// Whether `no_new_privs` is set in the process `pid`, which is at the other end of `stream`.
fn cannot_gain_privileges(stream: &impl AsFd, pid: libc::pid_t) -> io::Result<bool> {
    // Unlike a pid it stands for this process alone.
    let process = getsockopt(stream, sockopt::PeerPidfd)?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    // After the read: a process that is there now had its pid during the read. It is readable once the process has ended.
    let mut ended = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    if poll(&mut ended, PollTimeout::ZERO)? > 0 {
        return Err(io::Error::new(ErrorKind::NotFound, "its process has ended"));
    }
    match field(&status, "NoNewPrivs") {
        Some("0") => Ok(false),
        Some("1") => Ok(true),
        _ => Err(io::Error::new(ErrorKind::InvalidData, "the kernel does not say")),
    }
}

/// A field of `/proc/<pid>/status`. The process's name is in there, too, but the kernel escapes line breaks in it.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

#[cfg(test)]
#[path = "peer_test.rs"]
mod tests;
