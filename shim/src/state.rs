//! What a sandbox keeps on the host: `/run/lazaret/<namespace>/<id>/`, and the record in it by which `delete` can end
//! exactly this sandbox without a running shim.
//!
//! ```text
//!   state.json     who runs (pid and start time), what else is to be removed, and the size of the Docker daemon's disk
//!   console.log    the guest's console, bounded by the VMM
//!   network.json   what was changed in a network namespace that outlives the sandbox
//!   docker.sock    the guest's Docker daemon, where io.lazaret.docker.export asks for it
//!   resolv.conf    of the container, where the sandbox has a user-mode network
//!   shared/        the tree the guest sees; its mounts exist only in the shim's mount namespace
//! ```

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Where the state of all sandboxes is.
pub const STATE_ROOT: &str = "/run/lazaret";

/// The identity of a process, which a later process with the same pid does not share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: i32,
    /// Start time in clock ticks since boot (`/proc/<pid>/stat`, field 22).
    pub start_time: u64,
}

/// The record of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub shim: Option<ProcessId>,
    /// The shim is ending the sandbox itself.
    pub ending: bool,
    /// The sandbox takes containers beside its own.
    #[serde(default)]
    pub shared: bool,
    pub vmm: Option<ProcessId>,
    /// The shim's socket.
    pub socket: PathBuf,
    /// Cgroups made for the sandbox, the deepest first.
    pub cgroups: Vec<PathBuf>,
    pub vcpus: u32,
    pub memory_mib: u64,
    /// The file of the volume that the sandbox has.
    pub docker_volume: Option<PathBuf>,
    /// The disk of the sandbox's Docker daemon, a volume too, from the moment on at which it may be made.
    pub docker_disk: Option<DockerDisk>,
}

/// What a Docker daemon's disk takes of the host's budget for such disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DockerDisk {
    /// `disk_dir` of the configuration, without symbolic links.
    pub directory: PathBuf,
    /// The most it can hold.
    pub mib: u64,
}

/// The state directory of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir(PathBuf);

impl Record {
    /// Whether the sandbox still has this volume.
    #[must_use]
    pub fn has_volume(&self, file: &Path) -> bool {
        self.docker_volume.as_deref() == Some(file) && self.has_disks()
    }

    /// Whether the sandbox still has its disks: until its VMM is gone, or its shim where no VMM has been started.
    #[must_use]
    pub fn has_disks(&self) -> bool {
        self.vmm.or(self.shim).is_some_and(|process| process.is_running())
    }
}

impl ProcessId {
    /// The identity of a running process.
    ///
    /// # Errors
    /// The kernel's, when there is no such process.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The command's name is in parentheses and may hold anything, a parenthesis too; field 3 follows the last one.
        let fields = stat.rsplit_once(')').map(|(_, fields)| fields.split_ascii_whitespace());
        let start_time = fields.and_then(|mut fields| fields.nth(19)?.parse().ok());
        start_time.map(|start_time| Self { pid, start_time }).ok_or_else(|| ErrorKind::InvalidData.into())
    }

    /// Whether this very process still runs (a zombie does not).
    #[must_use]
    pub fn is_running(&self) -> bool {
        let zombie = || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
            stat.rsplit_once(')').is_none_or(|(_, fields)| fields.trim_start().starts_with(['Z', 'X']))
        };
        Self::of(self.pid).is_ok_and(|found| found == *self) && !zombie()
    }

    /// Kills exactly this process, never one that has its pid by now, and waits for its end up to `timeout_ms`.
    ///
    /// # Errors
    /// The kernel's; [`ErrorKind::TimedOut`] when the process does not end.
    pub fn kill(&self, timeout_ms: u16) -> io::Result<()> {
        let Some(pidfd) = self.pin()? else { return Ok(()) };
        // SAFETY: pidfd_send_signal with a null siginfo reads no memory of ours.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                pidfd.as_raw_fd(),
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match Errno::result(sent) {
            Ok(_) => wait_exit(&pidfd, timeout_ms),
            Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits up to `timeout_ms` for the end of this very process.
    ///
    /// # Errors
    /// The kernel's; [`ErrorKind::TimedOut`] when the process does not end.
    pub fn wait(&self, timeout_ms: u16) -> io::Result<()> {
        self.pin()?.map_or(Ok(()), |pidfd| wait_exit(&pidfd, timeout_ms))
    }

    /// A descriptor of exactly this process; `None` when it is gone.
    fn pin(&self) -> io::Result<Option<OwnedFd>> {
        // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid, 0) };
        let raw = match Errno::result(raw) {
            Ok(raw) => i32::try_from(raw).map_err(io::Error::other)?,
            Err(Errno::ESRCH) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        // SAFETY: the kernel has just made this descriptor for us; nothing else owns it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(raw) };
        // The descriptor pins the process, so its identity is checked after it was opened.
        Ok(Self::of(self.pid).is_ok_and(|found| found == *self).then_some(pidfd))
    }
}

fn wait_exit(pidfd: &OwnedFd, timeout_ms: u16) -> io::Result<()> {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::from(timeout_ms))? {
        0 => Err(ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

impl StateDir {
    /// The directory of a sandbox below `root`; both names have been checked by the command line's parser.
    #[must_use]
    pub fn new(root: &Path, namespace: &str, id: &str) -> Self {
        Self(root.join(namespace).join(id))
    }

    /// The directories of all sandboxes below `root`, each after its namespace and its id, in their order.
    #[must_use]
    pub fn all(root: &Path) -> Vec<(String, String, Self)> {
        let mut all = Vec::new();
        for namespace in names(root) {
            for id in names(&root.join(&namespace)) {
                let state = Self::new(root, &namespace, &id);
                all.push((namespace.clone(), id, state));
            }
        }
        all
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The tree served to the guest.
    #[must_use]
    pub fn shared(&self) -> PathBuf {
        self.0.join("shared")
    }

    #[must_use]
    pub fn console_log(&self) -> PathBuf {
        self.0.join("console.log")
    }

    #[must_use]
    pub fn network(&self) -> PathBuf {
        self.0.join("network.json")
    }

    #[must_use]
    pub fn docker_socket(&self) -> PathBuf {
        self.0.join("docker.sock")
    }

    #[must_use]
    pub fn resolv_conf(&self) -> PathBuf {
        self.0.join("resolv.conf")
    }

    /// Makes the directory and its `shared` tree, for root alone.
    ///
    /// # Errors
    /// The kernel's; [`ErrorKind::AlreadyExists`] when a sandbox of that name has left or keeps its state.
    pub fn create(&self) -> io::Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700);
        // The parents are removed with their last sandbox, perhaps right between these two calls.
        let made = loop {
            if let Some(parent) = self.0.parent() {
                builder.recursive(true).create(parent)?;
            }
            match builder.recursive(false).create(&self.0) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                result => break result,
            }
        };
        made?;
        builder.create(self.shared())
    }

    /// Writes the record, whole or not at all.
    ///
    /// # Errors
    /// The kernel's.
    pub fn save(&self, record: &Record) -> io::Result<()> {
        let new = self.0.join("state.json.new");
        fs::write(&new, serde_json::to_vec_pretty(record)?)?;
        fs::rename(new, self.0.join("state.json"))
    }

    /// Reads the record; `None` when there is none that can be read.
    #[must_use]
    pub fn load(&self) -> Option<Record> {
        serde_json::from_slice(&fs::read(self.0.join("state.json")).ok()?).ok()
    }

    /// Removes the directory and the parents it leaves empty. Mount points are removed, never what is below one: every
    /// step takes an empty directory or a named file, so a mount that was forgotten keeps what it holds.
    ///
    /// # Errors
    /// The first thing that could not be removed; what is gone already is no error.
    pub fn remove(&self) -> io::Result<()> {
        let shared = self.shared();
        for entry in children(&shared) {
            if is_dir(&entry) { remove_container(&entry)? } else { remove_leaf(&entry)? }
        }
        remove_leaf(&shared)?;
        let written = ["network.json", "network.json.new", "state.json", "state.json.new"];
        for file in ["console.log", "docker.sock", "resolv.conf"].into_iter().chain(written) {
            remove_leaf(&self.0.join(file))?;
        }
        remove_leaf(&self.0)?;
        // Other sandboxes may live in the namespace, and other namespaces beside it.
        let namespace = self.0.parent().filter(|namespace| fs::remove_dir(namespace).is_ok());
        namespace.and_then(Path::parent).map(fs::remove_dir);
        Ok(())
    }
}

/// Removes what a container has below `shared`: its `rootfs` and its `mounts/<n>`, all of them empty mount points.
///
/// # Errors
/// As [`StateDir::remove`].
pub fn remove_container(directory: &Path) -> io::Result<()> {
    for mount in children(&directory.join("mounts")) {
        remove_leaf(&mount)?;
    }
    remove_leaf(&directory.join("mounts"))?;
    remove_leaf(&directory.join("rootfs"))?;
    remove_leaf(directory)
}

/// What is in a directory; nothing in a symbolic link to one, which would lead out of the tree.
fn children(directory: &Path) -> Vec<PathBuf> {
    if !is_dir(directory) {
        return Vec::new();
    }
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn is_dir(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

/// Removes an empty directory, or whatever else it is; what is gone already is no error.
fn remove_leaf(path: &Path) -> io::Result<()> {
    let removed = if is_dir(path) { fs::remove_dir(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(io::Error::new(error.kind(), format!("{}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "state_test.rs"]
mod tests;
