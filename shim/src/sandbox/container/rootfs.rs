//! The mounts containerd hands over for a container's root.

use super::bind::bind;
use super::mounts::MountsError;
use super::steps::Steps;
use nix::mount::{MsFlags, mount};
use std::io;
use std::path::{Path, PathBuf};

/// A mount as containerd describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RootMount {
    pub fs_type: String,
    pub source: String,
    /// Below the root; usually empty.
    pub target: String,
    pub options: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    #[error("mounting the container's root ({fs_type} from {mount_source}) failed: {source}")]
    Mount { fs_type: String, mount_source: String, source: io::Error },
    #[error(
        "the container's root is a {0} image on a loop device, which lazaret cannot use yet: \
         use a snapshotter that mounts directories, such as overlayfs"
    )]
    Loop(String),
    #[error("the container's root has a mount outside of it: {0:?}")]
    Target(String),
}

/// The kernel copies mount data into one page; what is longer is refused.
const MAX_DATA: usize = 4096 - 1;

/// Mount options that are flags: name, flag, whether the option clears it.
const FLAGS: [(&str, MsFlags, bool); 20] = [
    ("async", MsFlags::MS_SYNCHRONOUS, true),
    ("atime", MsFlags::MS_NOATIME, true),
    ("defaults", MsFlags::empty(), false),
    ("dev", MsFlags::MS_NODEV, true),
    ("diratime", MsFlags::MS_NODIRATIME, true),
    ("dirsync", MsFlags::MS_DIRSYNC, false),
    ("exec", MsFlags::MS_NOEXEC, true),
    ("noatime", MsFlags::MS_NOATIME, false),
    ("nodev", MsFlags::MS_NODEV, false),
    ("nodiratime", MsFlags::MS_NODIRATIME, false),
    ("noexec", MsFlags::MS_NOEXEC, false),
    ("norelatime", MsFlags::MS_RELATIME, true),
    ("nostrictatime", MsFlags::MS_STRICTATIME, true),
    ("nosuid", MsFlags::MS_NOSUID, false),
    ("relatime", MsFlags::MS_RELATIME, false),
    ("ro", MsFlags::MS_RDONLY, false),
    ("rw", MsFlags::MS_RDONLY, true),
    ("strictatime", MsFlags::MS_STRICTATIME, false),
    ("suid", MsFlags::MS_NOSUID, true),
    ("sync", MsFlags::MS_SYNCHRONOUS, false),
];

/// As of a bind mount that is shared with a guest.
const INERT: MsFlags = MsFlags::MS_NODEV.union(MsFlags::MS_NOSUID).union(MsFlags::MS_NOEXEC);

/// Mounts `mounts`, in their order, on `root`. What was mounted is added to `mounted` as it happens, so that a failure
/// can be undone.
///
/// # Errors
/// [`MountsError::Rootfs`], [`MountsError::Abandoned`].
pub(super) fn mount_all(
    mounts: &[RootMount],
    root: &Path,
    mounted: &mut Vec<PathBuf>,
    steps: &Steps,
) -> Result<(), MountsError> {
    for entry in mounts {
        let below = Path::new(entry.target.trim_start_matches('/'));
        if below.components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
            return Err(RootfsError::Target(entry.target.clone()).into());
        }
        let target = root.join(below);
        steps.enter(format!("mounting the container's root ({} from {})", entry.fs_type, entry.source))?;
        mount_one(entry, &target)?;
        mounted.push(target);
    }
    Ok(())
}

fn mount_one(entry: &RootMount, target: &Path) -> Result<(), RootfsError> {
    let failed = |source| RootfsError::Mount {
        fs_type: entry.fs_type.clone(),
        mount_source: entry.source.clone(),
        source,
    };
    let has = |name: &str| entry.options.iter().any(|option| option == name);
    if has("loop") {
        return Err(RootfsError::Loop(entry.fs_type.clone()));
    }
    if entry.fs_type == "bind" || has("bind") || has("rbind") {
        let read_only = entry.options.iter().rev().find(|option| ["ro", "rw"].contains(&option.as_str()));
        let read_only = read_only.is_some_and(|option| option == "ro");
        return bind(Path::new(&entry.source), target, read_only, !has("bind") || has("rbind"))
            .map_err(failed);
    }
    let (flags, data) = split(&entry.options);
    let (directory, data) = shorten(data);
    let (fs_type, source, target) = (entry.fs_type.clone(), entry.source.clone(), target.to_path_buf());
    let run = move || -> io::Result<()> {
        if let Some(directory) = directory {
            // The working directory belongs to the process unless the thread gives it up.
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
            std::env::set_current_dir(directory)?;
        }
        let flags = flags | INERT;
        let data = data.join(",");
        let data = Some(data.as_str()).filter(|data| !data.is_empty());
        Ok(mount(Some(source.as_str()), &target, Some(fs_type.as_str()), flags, data)?)
    };
    // A thread of its own, for its working directory.
    let result = std::thread::spawn(run).join();
    result.unwrap_or_else(|_| Err(io::Error::other("the mounting thread panicked"))).map_err(failed)
}

/// Flags, and the rest, which is the file system's. `X-` options are containerd's own.
fn split(options: &[String]) -> (MsFlags, Vec<String>) {
    let (mut flags, mut data) = (MsFlags::empty(), Vec::new());
    for option in options.iter().filter(|option| !option.to_ascii_lowercase().starts_with("x-")) {
        match FLAGS.iter().find(|(name, ..)| name == option) {
            Some((_, flag, true)) => flags.remove(*flag),
            Some((_, flag, false)) => flags.insert(*flag),
            None => data.push(option.clone()),
        }
    }
    (flags, data)
}

/// Data of an overlay of many layers that would not fit is made to: the layers' common directory becomes the working
/// directory, and they are named relative to it.
fn shorten(data: Vec<String>) -> (Option<PathBuf>, Vec<String>) {
    if data.iter().map(|option| option.len() + 1).sum::<usize>() <= MAX_DATA {
        return (None, data);
    }
    let lower = data.iter().find_map(|option| option.strip_prefix("lowerdir="));
    let layers: Vec<&Path> = lower.into_iter().flat_map(|lower| lower.split(':')).map(Path::new).collect();
    let Some(mut common) = layers.first().and_then(|layer| layer.parent()) else { return (None, data) };
    while !layers.iter().all(|layer| layer.starts_with(common)) {
        let Some(parent) = common.parent() else { return (None, data) };
        common = parent;
    }
    let relative: Vec<_> =
        layers.iter().map(|layer| layer.strip_prefix(common).unwrap_or(layer).to_string_lossy()).collect();
    let lower = format!("lowerdir={}", relative.join(":"));
    let common = common.to_path_buf();
    let replace = |option: String| if option.starts_with("lowerdir=") { lower.clone() } else { option };
    (Some(common), data.into_iter().map(replace).collect())
}

#[cfg(test)]
#[path = "rootfs_test.rs"]
mod tests;
