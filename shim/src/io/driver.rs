//! A logging driver: a program of the host that is handed a process's outputs.
//!
//! ```text
//!   fd 3  stdout, to be read          CONTAINER_ID         whose output it is
//!   fd 4  stderr, to be read          CONTAINER_NAMESPACE  containerd's namespace
//!   fd 5  closed by the driver when it is ready
//! ```
//!
//! The driver ends when its inputs do; one that does not is ended.

use super::address::DriverCommand;
use super::{Owner, StdioError};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::process::Child;
use tokio::sync::oneshot;

/// How long a driver may take until it is ready.
const READY_TIMEOUT: Duration = if cfg!(test) { Duration::from_secs(2) } else { Duration::from_secs(10) };
/// How long a driver may take to end after its inputs did, as containerd's own shim has it.
const END_TIMEOUT: Duration = if cfg!(test) { Duration::from_secs(1) } else { Duration::from_secs(12) };
/// The descriptor that is the driver's first.
const FIRST_FD: RawFd = 3;

/// A driver that runs. When this is dropped, the driver is to end.
#[derive(Debug)]
pub(super) struct Driver(#[expect(dead_code, reason = "its drop is the message")] oneshot::Sender<()>);

/// Runs a driver, and waits until it is ready. The pipes are its stdout's and stderr's.
///
/// # Errors
/// [`StdioError::Driver`]; it is killed then.
pub(super) async fn start(
    command: &DriverCommand,
    owner: &Owner<'_>,
) -> Result<(Driver, [Sender; 2]), StdioError> {
    let failed = |source| StdioError::Driver { binary: command.binary.clone(), source };
    let (mut child, mut ready, outputs) = spawn(command, owner).map_err(failed)?;
    match tokio::time::timeout(READY_TIMEOUT, ready.read(&mut [0])).await {
        Ok(result) => result.map_err(failed)?,
        Err(_) => {
            let line = format!("it is not ready within {} s", READY_TIMEOUT.as_secs());
            // Reaped by tokio.
            let _ = child.start_kill();
            return Err(failed(io::Error::new(io::ErrorKind::TimedOut, line)));
        }
    };
    let (driver, dropped) = oneshot::channel();
    tokio::spawn(end_after(child, dropped));
    Ok((Driver(driver), outputs))
}

fn spawn(command: &DriverCommand, owner: &Owner<'_>) -> io::Result<(Child, Receiver, [Sender; 2])> {
    let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC);
    let ((stdout, to_stdout), (stderr, to_stderr), (from_ready, ready)) = (pipe()?, pipe()?, pipe()?);
    // Out of the way of those the driver is to have. While the six are open, none of those numbers is free, so that what
    // `spawn` opens for itself is not at one.
    let theirs = [aside(&stdout)?, aside(&stderr)?, aside(&ready)?];
    let mut driver = Command::new(&command.binary);
    driver.args(&command.args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    driver.env("CONTAINER_ID", owner.id).env("CONTAINER_NAMESPACE", owner.namespace).process_group(0);
    let hand_over = move || {
        for (target, fd) in (FIRST_FD..).zip(&theirs) {
            // SAFETY: a plain system call on a descriptor we own; the copy is not closed by exec.
            nix::errno::Errno::result(unsafe { libc::dup2(fd.as_raw_fd(), target) })?;
        }
        Ok(())
    };
    // SAFETY: `hand_over` runs between fork and exec, where only async-signal-safe calls are allowed: it makes plain system
    // calls, and neither allocates nor locks.
    unsafe { driver.pre_exec(hand_over) };
    let mut driver = tokio::process::Command::from(driver);
    let child = driver.spawn()?;
    // The driver's ends. While the shim has them open, it does not see the driver close them.
    drop((driver, stdout, stderr, ready));
    let outputs = [Sender::from_owned_fd(to_stdout)?, Sender::from_owned_fd(to_stderr)?];
    Ok((child, Receiver::from_owned_fd(from_ready)?, outputs))
}

/// The same descriptor at a number that a driver has nothing at.
fn aside(fd: &OwnedFd) -> io::Result<OwnedFd> {
    let raw = fcntl(fd.as_fd(), FcntlArg::F_DUPFD_CLOEXEC(FIRST_FD + 7))?;
    // SAFETY: the kernel has just made this descriptor for us; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Reaps the driver. After its output is closed it has a while to end.
async fn end_after(mut child: Child, dropped: oneshot::Receiver<()>) {
    tokio::select! {
        _ = child.wait() => return,
        _ = dropped => {}
    }
    if tokio::time::timeout(END_TIMEOUT, child.wait()).await.is_err() {
        log::warn!("a logging driver does not end when its input does; it is killed");
        if let Err(error) = child.kill().await {
            log::warn!("killing a logging driver: {error}");
        }
    }
}

#[cfg(test)]
#[path = "driver_test.rs"]
mod tests;
