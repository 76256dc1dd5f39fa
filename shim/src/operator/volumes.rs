//! Lists the volumes of this host, and removes those that no sandbox has.

use crate::config::Config;
pub use crate::volume::VolumeError;
use crate::volume::{VolumeName, Volumes};
use serde::Serialize;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Volume {
    pub name: String,
    /// The most it can hold.
    pub size_mib: u64,
    /// What it takes of the host's disk now, rounded up.
    pub used_mib: u64,
    /// Namespace and id of the sandbox that has it.
    pub sandbox: Option<String>,
}

/// All volumes of `disk_dir`, by name; `root` is where the sandboxes' states are.
///
/// # Errors
/// [`VolumeError::Os`].
pub fn list(config: &Config, root: &Path) -> Result<Vec<Volume>, VolumeError> {
    let volumes = Volumes::new(&config.disk_dir, root);
    let describe = |name: VolumeName| {
        // One that is removed meanwhile is none.
        let metadata = fs::symlink_metadata(volumes.path(&name)).ok()?;
        Some(Volume {
            size_mib: metadata.len() >> 20,
            used_mib: (metadata.blocks() * 512).div_ceil(1 << 20),
            sandbox: volumes.holder(&name),
            name: name.as_str().into(),
        })
    };
    Ok(volumes.names()?.into_iter().filter_map(describe).collect())
}

/// Removes a volume, and what is on it.
///
/// # Errors
/// [`VolumeError`], above all for one that a sandbox has.
pub fn remove(config: &Config, root: &Path, name: &str) -> Result<(), VolumeError> {
    let parsed = VolumeName::parse(name)?;
    Volumes::new(&config.disk_dir, root).remove(&parsed)
}

/// The list for a person.
#[must_use]
pub fn render(volumes: &[Volume]) -> String {
    let width = volumes.iter().map(|volume| volume.name.len()).max().unwrap_or(0).max(4);
    let row = |[name, size, used, sandbox]: [&str; 4]| {
        format!("{name:<width$}  {size:>12}  {used:>12}  {sandbox}\n")
    };
    let mib = |value: u64| format!("{value} MiB");
    let mut text = row(["NAME", "SIZE", "USED", "SANDBOX"]);
    for volume in volumes {
        let sandbox = volume.sandbox.as_deref().unwrap_or("-");
        text += &row([&volume.name, &mib(volume.size_mib), &mib(volume.used_mib), sandbox]);
    }
    text
}

#[cfg(test)]
#[path = "volumes_test.rs"]
mod tests;
