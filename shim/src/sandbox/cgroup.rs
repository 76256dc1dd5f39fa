//! The sandbox's place among the host's cgroups (v2).
//!
//! ```text
//!   linux.cgroupsPath      the host's accounting, and CRI's, counts the sandbox here
//!     └ vm                 the VMM; what it may take
//! ```
//!
//! A cgroup of its own, because the limits of the one above are not the VM's: whoever reads or sets those means the container.

use super::limits::Limits;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

/// Where cgroup v2 is mounted.
pub(crate) const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// The attribute of a directory that a shim has made, so that the last one to leave it can tell.
const MARK: &CStr = c"trusted.lazaret";

/// How long the kernel may take to stop the VMM's threads: one of them may be waiting for a disk.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the kernel has for a freeze whose end it does not tell.
const UNTOLD_FREEZE_TIME: Duration = Duration::from_millis(100);
/// A task's flag (include/linux/sched.h).
const PF_KTHREAD: u32 = 0x0020_0000;

/// How long the kernel may take to end killed processes that have nothing to do.
const EMPTY_TIMEOUT: Duration = Duration::from_millis(500);

/// The name of the VMM's cgroup below that of the spec.
const VM: &str = "vm";

/// A cgroup, and which of its directories are lazaret's.
#[derive(Debug)]
pub(crate) struct Cgroup {
    root: PathBuf,
    path: PathBuf,
    /// The deepest first, which is the order they are removed in.
    pub made: Vec<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("cgroupsPath {0:?} leads out of the cgroup tree")]
    Escapes(String),
    #[error("cgroupsPath {0:?} is not systemd's slice:prefix:name")]
    Systemd(String),
    #[error("cgroup {}: {source}", path.display())]
    Os { path: PathBuf, source: io::Error },
    #[error("cgroup {}: the kernel refuses {value:?} for {file}: {source}", path.display())]
    Limit { path: PathBuf, file: &'static str, value: String, source: io::Error },
}

/// Whether the host has cgroup v2 at its usual place.
#[must_use]
pub(crate) fn is_v2(root: &Path) -> bool {
    root.join("cgroup.procs").exists()
}

/// The directory below the root that `linux.cgroupsPath` names: a path, or systemd's `slice:prefix:name`.
///
/// # Errors
/// [`CgroupError::Escapes`], [`CgroupError::Systemd`].
pub(crate) fn directory(cgroups_path: &str) -> Result<PathBuf, CgroupError> {
    let path = match cgroups_path.split(':').collect::<Vec<_>>()[..] {
        [path] => PathBuf::from(path.trim_start_matches('/')),
        [slice, prefix, name] => {
            systemd_directory(slice, prefix, name).ok_or_else(|| CgroupError::Systemd(cgroups_path.into()))?
        }
        _ => return Err(CgroupError::Systemd(cgroups_path.into())),
    };
    let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
    if inside && path.components().next().is_some() {
        Ok(path)
    } else {
        Err(CgroupError::Escapes(cgroups_path.into()))
    }
}

/// `a-b.slice` lies in `a.slice`; the scope is `prefix-name.scope` (systemd.slice(5), and runc's systemd driver).
fn systemd_directory(slice: &str, prefix: &str, name: &str) -> Option<PathBuf> {
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    let stem = slice.strip_suffix(".slice")?;
    let mut path = PathBuf::new();
    if stem != "-" {
        let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
        ends.for_each(|end| path.push(format!("{}.slice", &stem[..end])));
    }
    let unit = match (prefix, name.ends_with(".slice")) {
        (_, true) => name.to_owned(),
        ("", _) => format!("{name}.scope"),
        _ => format!("{prefix}-{name}.scope"),
    };
    path.push(unit);
    Some(path)
}

impl Cgroup {
    /// Makes the VMM's cgroup below the one that the spec names, with the parents it lacks.
    ///
    /// # Errors
    /// [`CgroupError`]; what was made before is removed again.
    pub(crate) fn create(root: &Path, cgroups_path: &str) -> Result<Self, CgroupError> {
        let path = root.join(directory(cgroups_path)?).join(VM);
        // A sandbox that ends may remove a parent between two of the steps, so they are gone through again.
        loop {
            match make_all(root, &path) {
                Err((_, error)) if error.kind() == ErrorKind::NotFound && root.exists() => {}
                Ok(made) => return Ok(Self { root: root.into(), path, made }),
                Err((path, source)) => return Err(CgroupError::Os { path, source }),
            }
        }
    }

    /// The file a process joins by writing `0` to it.
    ///
    /// # Errors
    /// [`CgroupError::Os`].
    pub(crate) fn procs(&self) -> Result<File, CgroupError> {
        let path = self.path.join("cgroup.procs");
        OpenOptions::new().write(true).open(&path).map_err(|source| CgroupError::Os { path, source })
    }

    /// Holds what is in the cgroup to `limits`. A limit whose controller the host does not hand down to here is not held: one line
    /// of the log says so.
    ///
    /// # Errors
    /// [`CgroupError::Limit`] for a value that the kernel refuses.
    pub(crate) fn limit(&self, limits: &Limits) -> Result<(), CgroupError> {
        self.enable(&limits.controllers());
        let mut missing = Vec::new();
        for (file, value) in limits.files() {
            match write(&self.path.join(file), value) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => missing.push(file),
                Err(source) => {
                    return Err(CgroupError::Limit {
                        path: self.path.clone(),
                        file,
                        value: value.into(),
                        source,
                    });
                }
            }
        }
        if !missing.is_empty() {
            log::warn!(
                "the host does not hold the sandbox to {}: the controllers are not handed down to cgroup {}",
                missing.join(", "),
                self.path.display()
            );
        }
        Ok(())
    }

    /// Stops all that is in the cgroup, or lets it go on, and waits until that is so.
    ///
    /// # Errors
    /// [`CgroupError::Os`]; the kernel's that it takes too long is [`ErrorKind::TimedOut`].
    pub(crate) fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        let failed = |source| CgroupError::Os { path: self.path.clone(), source };
        let (value, wanted) = if frozen { ("1", "frozen 1") } else { ("0", "frozen 0") };
        let events = File::open(self.path.join("cgroup.events")).map_err(failed)?;
        write(&self.path.join("cgroup.freeze"), value).map_err(failed)?;
        if frozen && self.has_kernel_thread() {
            // Such a thread counts and is never frozen, so the kernel does not say that all others are.
            let _ = wait_for(&events, wanted, UNTOLD_FREEZE_TIME);
            return Ok(());
        }
        wait_for(&events, wanted, FREEZE_TIMEOUT).map_err(failed)
    }

    /// Whether a thread of the kernel is in the cgroup: before Linux 6.14 KVM puts the one there that recovers huge pages
    /// (`kvm-nx-lpage-recovery`).
    fn has_kernel_thread(&self) -> bool {
        let processes = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        processes.lines().any(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // The name, in parentheses, may hold anything; the flags are the seventh field after it (proc_pid_stat(5)).
            let flags = stat
                .rsplit_once(')')
                .and_then(|(_, rest)| rest.split_whitespace().nth(6)?.parse::<u32>().ok());
            flags.is_some_and(|flags| flags & PF_KTHREAD != 0)
        })
    }

    /// Has the cgroups above hand these controllers down. One that cannot, because a process is in it or it has not got the
    /// controller itself, is found by its files' absence below.
    fn enable(&self, controllers: &[&str]) {
        let above: Vec<&Path> =
            self.path.ancestors().skip(1).take_while(|above| above.starts_with(&self.root)).collect();
        for cgroup in above.into_iter().rev() {
            for controller in controllers {
                if let Err(error) = write(&cgroup.join("cgroup.subtree_control"), &format!("+{controller}")) {
                    log::debug!("cgroup {} does not hand {controller} down: {error}", cgroup.display());
                }
            }
        }
    }
}

/// Writes to an interface file, which is never made by that.
fn write(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

fn make_all(root: &Path, path: &Path) -> Result<Vec<PathBuf>, (PathBuf, io::Error)> {
    let mut made = Vec::new();
    let below: Vec<&Path> = path.ancestors().take_while(|ancestor| *ancestor != root).collect();
    for directory in below.into_iter().rev() {
        let ours = match fs::create_dir(directory) {
            Ok(()) => {
                mark(directory);
                true
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => is_marked(directory),
            Err(error) => {
                remove(&made);
                return Err((directory.into(), error));
            }
        };
        if ours {
            made.insert(0, directory.to_path_buf());
        }
    }
    Ok(made)
}

/// A directory that cannot be marked is left to its maker alone to remove.
fn mark(directory: &Path) {
    let Ok(path) = CString::new(directory.as_os_str().as_bytes()) else { return };
    // SAFETY: both names are terminated strings that outlive the call; the value is empty.
    let marked = unsafe { libc::setxattr(path.as_ptr(), MARK.as_ptr(), std::ptr::null(), 0, 0) };
    if marked != 0 {
        log::debug!("{}: cannot be marked: {}", directory.display(), io::Error::last_os_error());
    }
}

fn is_marked(directory: &Path) -> bool {
    let Ok(path) = CString::new(directory.as_os_str().as_bytes()) else { return false };
    // SAFETY: as above; with a size of nothing the kernel writes nothing.
    unsafe { libc::getxattr(path.as_ptr(), MARK.as_ptr(), std::ptr::null_mut(), 0) >= 0 }
}

/// Removes cgroups that were made for a sandbox, in the order given. One that others live in by now stays.
pub(crate) fn remove(made: &[PathBuf]) {
    for path in made {
        match fs::remove_dir(path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                log::debug!("cgroup {} stays: {error}", path.display());
                return;
            }
        }
    }
}

/// Waits a moment until no process is in the VMM's cgroup, the first of those that were made: the kernel has killed the last ones with
/// the shim. Others may live in it by now, so that none is left is not certain.
pub(crate) fn wait_empty(made: &[PathBuf]) {
    let Some(vm) = made.first() else { return };
    let waited = File::open(vm.join("cgroup.events"))
        .and_then(|events| wait_for(&events, "populated 0", EMPTY_TIMEOUT));
    if let Err(error) = waited {
        log::debug!("cgroup {}: {error}", vm.display());
    }
}

/// Waits until a line of `cgroup.events` is `wanted`.
fn wait_for(events: &File, wanted: &str, timeout: Duration) -> io::Result<()> {
    let deadline = Instant::now() + timeout;
    loop {
        // What changes after this read makes the descriptor ready.
        let mut text = [0; 256];
        let length = events.read_at(&mut text, 0)?;
        if text[..length].split(|byte| *byte == b'\n').any(|line| line == wanted.as_bytes()) {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
        match poll(&mut fds, timeout) {
            Ok(0) => return Err(ErrorKind::TimedOut.into()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
#[path = "cgroup_test.rs"]
mod tests;
