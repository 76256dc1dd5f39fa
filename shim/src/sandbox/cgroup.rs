//! The sandbox's place among the host's cgroups (v2).
//!
//! The VMM joins the cgroup the spec names, so that the host's accounting, and CRI's, counts the sandbox where it
//! belongs. Membership is all for now: a memory limit there would count the guest's own kernel and the VMM against the
//! container and end a healthy sandbox, so the limit is kept inside the guest, where running out means what it means
//! under runc.

use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Where cgroup v2 is mounted.
pub(crate) const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// The attribute of a directory that a shim has made, so that the last one to leave it can tell.
const MARK: &CStr = c"trusted.lazaret";

/// A cgroup, and which of its directories are lazaret's.
#[derive(Debug)]
pub(crate) struct Cgroup {
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
    /// Makes the cgroup below `root`, with the parents it lacks.
    ///
    /// # Errors
    /// [`CgroupError`]; what was made before is removed again.
    pub(crate) fn create(root: &Path, cgroups_path: &str) -> Result<Self, CgroupError> {
        let path = root.join(directory(cgroups_path)?);
        // A sandbox that ends may remove a parent between two of the steps, so they are gone through again.
        loop {
            match make_all(root, &path) {
                Err((_, error)) if error.kind() == ErrorKind::NotFound && root.exists() => {}
                Ok(made) => return Ok(Self { path, made }),
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

#[cfg(test)]
#[path = "cgroup_test.rs"]
mod tests;
