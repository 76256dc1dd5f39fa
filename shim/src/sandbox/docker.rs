//! The private Docker daemon, as far as the host has a part in it: whether there is one, and its disk.

use super::sizing::parse_memory;
use super::spec::Spec;
use crate::config::Config;
use crate::error::{Error, Result};
use lazaret_agent_api::agent;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

const MODE_ANNOTATION: &str = "io.lazaret.docker";
const DISK_ANNOTATION: &str = "io.lazaret.docker.disk";
/// The least and the most MiB of a disk: below the one dockerd's own files do not fit, above the other ext4 is slow to make.
const DISK_MIB: std::ops::RangeInclusive<u64> = 64..=16 << 20;

/// The daemon of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Docker {
    /// It answers before the sandbox's container is made; otherwise it is started by the first connection to it.
    pub eager: bool,
    pub disk_mib: u64,
}

impl Docker {
    /// What `spec` asks for, else the configuration; `None` when the sandbox is to have no daemon.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an annotation that means nothing.
    pub(crate) fn of(spec: &Spec, config: &Config) -> Result<Option<Self>> {
        let refuse = |annotation: &str, value: &str, expected: &str| {
            Err(Error::InvalidArgument(format!("annotation {annotation}={value:?}: {expected}")))
        };
        let eager = match spec.annotation(MODE_ANNOTATION) {
            None | Some("lazy") => false,
            Some("eager") => true,
            Some("off") => return Ok(None),
            Some(value) => return refuse(MODE_ANNOTATION, value, "expected lazy, eager or off"),
        };
        let disk_mib = match spec.annotation(DISK_ANNOTATION) {
            None => config.docker_disk_mib,
            Some(value) => match parse_memory(value).filter(|mib| DISK_MIB.contains(mib)) {
                Some(mib) => mib,
                None => {
                    let (least, most) = (DISK_MIB.start(), DISK_MIB.end());
                    let expected = format!(
                        "expected a size from {least}Mi to {most}Mi, in MiB or with a unit, such as 20Gi"
                    );
                    return refuse(DISK_ANNOTATION, value, &expected);
                }
            },
        };
        Ok(Some(Self { eager, disk_mib }))
    }

    /// What the agent is to know of it.
    #[must_use]
    pub(crate) fn for_agent(self) -> agent::Docker {
        agent::Docker { eager: self.eager, ..Default::default() }
    }

    /// Makes the disk, a file without a name in `directory`: it takes no space until it is written to, and is gone as soon
    /// as nobody has it open.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn make_disk(self, directory: &Path) -> io::Result<File> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let disk = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .mode(0o600)
            .open(directory)?;
        disk.set_len(self.disk_mib << 20)?;
        Ok(disk)
    }
}

#[cfg(test)]
#[path = "docker_test.rs"]
mod tests;
