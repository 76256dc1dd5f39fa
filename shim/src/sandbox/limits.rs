//! What the host holds a sandbox to, whatever the guest's kernel does: interface files of the cgroup that its VMM is in, and their
//! values (Linux, Documentation/admin-guide/cgroup-v2.rst).
//!
//! The limits inside the guest are the container's, and running into one of them there is what it is under runc. Those here
//! are for a guest whose kernel does not keep the container's: what it takes, its owner pays for.

use super::sizing::Size;
use crate::error::{Error, Result};
use lazaret_vmm_wire::{FILE_BYTES, max_files};
use serde_json::Value;

/// Memory beside the guest's own, MiB: the VMM, its page tables, its buffers.
const MEMORY_OVERHEAD_MIB: u64 = 64;
/// The guest's memory by this is what the host's kernel may keep for it besides: page tables of the guest, and pages of files that
/// are being written back. The files that the guest holds come on top of that ([`max_files`]): a guest that uses all of its memory
/// and holds all the files it may does not cost its VMM its life.
const MEMORY_OVERHEAD_DIVISOR: u64 = 8;
/// Threads of a VMM beside its vCPUs: the devices', and those of file requests that wait.
const DEVICE_THREADS: u32 = 64;
/// The period of a CPU quota where none is given, microseconds.
const DEFAULT_PERIOD_US: u64 = 100_000;
/// The arrays of `linux.resources.blockIO` and their keys in `io.max`.
const THROTTLES: [(&str, &str); 4] = [
    ("throttleReadBpsDevice", "rbps"),
    ("throttleWriteBpsDevice", "wbps"),
    ("throttleReadIOPSDevice", "riops"),
    ("throttleWriteIOPSDevice", "wiops"),
];

/// Interface files of a cgroup, and a value for each. A file may come several times, as `io.max` does: a line for each device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Limits(Vec<(&'static str, String)>);

impl Limits {
    /// What a VM of this size may take at all, from its start on.
    #[must_use]
    pub(crate) fn of_vm(size: Size) -> Self {
        let files_mib = (max_files(size.memory_mib) * FILE_BYTES).div_ceil(1 << 20);
        let overhead_mib = size.memory_mib / MEMORY_OVERHEAD_DIVISOR + MEMORY_OVERHEAD_MIB + files_mib;
        let memory_mib = size.memory_mib.saturating_add(overhead_mib);
        let memory = Self(vec![("memory.max", memory_mib.saturating_mul(1 << 20).to_string())]);
        Self([memory.0, Self::of_processes(size, 0).0].concat())
    }

    /// How many threads a VM of this size may have, beside so many other processes in its cgroup.
    #[must_use]
    pub(crate) fn of_processes(size: Size, others: u32) -> Self {
        let threads = size.vcpus.saturating_add(DEVICE_THREADS).saturating_add(others);
        Self(vec![("pids.max", threads.to_string())])
    }

    /// What `linux.resources` of a spec, or those of a pod, ask for: processor time, processors, disks.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a disk that is not named by its numbers.
    pub(crate) fn of_resources(resources: &Value) -> Result<Self> {
        let mut files = Vec::new();
        let cpu = &resources["cpu"];
        let period = cpu["period"].as_u64().filter(|&period| period > 0).unwrap_or(DEFAULT_PERIOD_US);
        match cpu["quota"].as_i64() {
            Some(quota) if quota > 0 => files.push(("cpu.max", format!("{quota} {period}"))),
            Some(quota) if quota < 0 => files.push(("cpu.max", format!("max {period}"))),
            _ => {}
        }
        if let Some(shares) = cpu["shares"].as_u64().filter(|&shares| shares > 0) {
            files.push(("cpu.weight", weight(shares).to_string()));
        }
        for (key, file) in [("cpus", "cpuset.cpus"), ("mems", "cpuset.mems")] {
            if let Some(list) = cpu[key].as_str().filter(|list| !list.is_empty()) {
                files.push((file, list.to_owned()));
            }
        }
        for (array, key) in THROTTLES {
            for device in resources["blockIO"][array].as_array().into_iter().flatten() {
                let number = |name: &str| {
                    device[name].as_u64().ok_or_else(|| {
                        Error::InvalidArgument(format!(
                            "linux.resources.blockIO.{array}: {device} has no {name}"
                        ))
                    })
                };
                let rate = match number("rate")? {
                    0 => "max".to_owned(),
                    rate => rate.to_string(),
                };
                files.push(("io.max", format!("{}:{} {key}={rate}", number("major")?, number("minor")?)));
            }
        }
        Ok(Self(files))
    }

    /// The files and their values, in the order in which they are to be written.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(file, value)| (*file, value.as_str()))
    }

    /// The controllers that the files belong to.
    #[must_use]
    pub(crate) fn controllers(&self) -> Vec<&'static str> {
        let mut controllers: Vec<_> = self
            .0
            .iter()
            .filter_map(|(file, _)| file.split_once('.').map(|(controller, _)| controller))
            .collect();
        controllers.dedup();
        controllers
    }
}

/// `cpu.shares` of 2 to 262,144 as `cpu.weight` of 1 to 10,000, as crun and runc have it.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

#[cfg(test)]
#[path = "limits_test.rs"]
mod tests;
