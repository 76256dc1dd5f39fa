//! The cgroup v2 tree: `/lazaret/<container id>`, made and removed by crun, looked into by the agent; and `/docker`, where all
//! of the private Docker daemon is.

mod oom;
mod stats;
#[cfg(test)]
pub(crate) mod test_support;

use crate::paths::{CGROUP_PARENT, CGROUP_ROOT};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// How long the kernel may take to kill what is in a cgroup, in milliseconds.
const KILL_TIMEOUT_MS: u16 = 10_000;
/// How long the kernel may take to read a cgroup's files.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads files of a cgroup where that may block: the kernel takes memory for it, and adds up what each processor has counted.
///
/// # Errors
/// Of `read`; [`ErrorKind::TimedOut`], and `read` goes on then.
pub(crate) async fn unblocked<T: Send + 'static>(
    read: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match timeout(READ_TIMEOUT, spawn_blocking(read)).await {
        Ok(read) => read.unwrap_or_else(|error| Err(io::Error::other(error))),
        Err(_) => Err(ErrorKind::TimedOut.into()),
    }
}

/// Whether an error of a read says that the cgroup, or its file, is not there, or not any more.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// Makes the containers' parent and hands every controller down to it and to its children.
///
/// # Errors
/// Of the file system.
pub(crate) fn enable_controllers() -> io::Result<()> {
    let root = PathBuf::from(CGROUP_ROOT);
    let parent = root.join(CGROUP_PARENT.trim_start_matches('/'));
    fs::create_dir_all(&parent)?;
    for cgroup in [&root, &parent] {
        let controllers = fs::read_to_string(cgroup.join("cgroup.controllers"))?;
        let enable: Vec<String> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
        fs::write(cgroup.join("cgroup.subtree_control"), enable.join(" "))?;
    }
    Ok(())
}

/// A cgroup, with those below it.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    /// A container's.
    pub(crate) fn of(container: &str) -> Self {
        Self(Path::new(CGROUP_ROOT).join(CGROUP_PARENT.trim_start_matches('/')).join(container))
    }

    /// The Docker daemon's: its own processes are in `daemon`, its containers beside that.
    pub(crate) fn docker() -> Self {
        Self(Path::new(CGROUP_ROOT).join("docker"))
    }

    pub(crate) fn below(&self, name: &str) -> Self {
        Self(self.0.join(name))
    }

    /// Makes it, and puts this process into it.
    ///
    /// # Errors
    /// Of the file system.
    pub(crate) fn enter(&self) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        fs::write(self.0.join("cgroup.procs"), "0")
    }

    /// Kills every process in it and below, waits for their ends and removes it. One that is gone is no error.
    ///
    /// # Errors
    /// Of the file system; [`ErrorKind::TimedOut`].
    pub(crate) fn kill(&self) -> io::Result<()> {
        self.end()?;
        self.remove()
    }

    /// Kills every process in it and below, and waits for their ends. One that is gone is no error.
    ///
    /// # Errors
    /// Of the file system; [`ErrorKind::TimedOut`].
    pub(crate) fn end(&self) -> io::Result<()> {
        let events = match File::open(self.0.join("cgroup.events")) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            result => result?,
        };
        loop {
            // What changes after this read makes the descriptor ready.
            let mut text = [0; 256];
            match events.read_at(&mut text, 0) {
                // The cgroup has been removed by another process, such as crun.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
                Ok(length) if text[..length].starts_with(b"populated 0") => return Ok(()),
                result => result?,
            };
            match fs::write(self.0.join("cgroup.kill"), "1") {
                Err(error) if ![Some(libc::ENODEV), Some(libc::ENOENT)].contains(&error.raw_os_error()) => {
                    return Err(error);
                }
                _ => {}
            }
            let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
            match poll(&mut fds, PollTimeout::from(KILL_TIMEOUT_MS)) {
                Ok(0) => return Err(ErrorKind::TimedOut.into()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Every process in it and below, by the guest's pids. One that is gone has none.
    pub(crate) fn pids(&self) -> Vec<libc::pid_t> {
        let mut pids = Vec::new();
        let mut open = vec![self.0.clone()];
        while let Some(cgroup) = open.pop() {
            let procs = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
            pids.extend(procs.lines().filter_map(|line| line.parse::<libc::pid_t>().ok()));
            open.extend(children(&cgroup));
        }
        pids.sort_unstable();
        pids
    }

    /// Removes what is left of it, cgroups that the container has made below it first.
    ///
    /// # Errors
    /// Of the file system, when a process is still in it.
    pub(crate) fn remove(&self) -> io::Result<()> {
        remove_tree(&self.0)
    }
}

fn children(cgroup: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir())).map(|entry| entry.path()).collect()
}

/// A container nests cgroups as deep as the kernel lets it, so this does not recurse on the stack.
fn remove_tree(root: &Path) -> io::Result<()> {
    let mut found = vec![root.to_path_buf()];
    let mut next = 0;
    while let Some(cgroup) = found.get(next) {
        let below = children(cgroup);
        found.extend(below);
        next += 1;
    }
    for cgroup in found.iter().rev() {
        match fs::remove_dir(cgroup) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod end_test;
