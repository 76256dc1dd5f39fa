//! How large a sandbox's VM is.
//!
//! In this order: the `io.lazaret.vm.*` annotations, the limits of the container, or of the pod, the configuration. A limit is
//! what the *containers* may use, so the guest gets [`GUEST_OVERHEAD_MIB`] on top of a memory limit for its kernel and agent; the
//! guest's own cgroup then enforces the limit itself. An annotation is the VM's whole size.

use super::container::spec::Spec;
use crate::config::Config;
use crate::error::{Error, Result};
use serde_json::Value;

/// Memory in MiB the guest's kernel and agent need beside the container's limit.
pub(super) const GUEST_OVERHEAD_MIB: u64 = 64;
/// The least memory a guest is given, in MiB: below it the kernel does not reach its agent.
pub(super) const MIN_MEMORY_MIB: u64 = 96;
/// The most vCPUs a VM may have.
pub(super) const MAX_VCPUS: u32 = 32;
pub(super) const VCPUS_ANNOTATION: &str = "io.lazaret.vm.vcpus";
pub(super) const MEMORY_ANNOTATION: &str = "io.lazaret.vm.memory";

/// The size of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub vcpus: u32,
    pub memory_mib: u64,
}

/// What the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Host {
    pub cpus: u32,
    pub memory_mib: u64,
}

impl Host {
    /// Asks the kernel.
    #[must_use]
    pub(crate) fn detect() -> Self {
        let cpus =
            std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib = total.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
        Self { cpus, memory_mib: kib.map_or(u64::MAX, |kib| kib / 1024) }
    }
}

impl Size {
    /// The size of the VM for `spec` on `host`; `resources` are those of the whole sandbox (`linux.resources`).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an annotation that is no number, is zero, or is more than the host has.
    pub(crate) fn of(spec: &Spec, resources: &Value, config: &Config, host: Host) -> Result<Self> {
        let vcpus = match spec.annotation(VCPUS_ANNOTATION) {
            Some(value) => {
                let most = host.cpus.min(MAX_VCPUS);
                let vcpus = value.trim().parse::<u32>().ok().filter(|n| (1..=most).contains(n));
                vcpus.ok_or_else(|| {
                    refuse(
                        VCPUS_ANNOTATION,
                        value,
                        &format!("expected a number of vCPUs from 1 to {most} (this host)"),
                    )
                })?
            }
            None => limited_vcpus(resources).unwrap_or(config.vcpus).clamp(1, host.cpus.min(MAX_VCPUS)),
        };
        let memory_mib = match spec.annotation(MEMORY_ANNOTATION) {
            Some(value) => {
                let (least, most) = (MIN_MEMORY_MIB, host.memory_mib);
                let mib = parse_memory(value).filter(|mib| (least..=most).contains(mib));
                mib.ok_or_else(|| {
                    let expected = format!(
                        "expected a size from {least}Mi to {most}Mi (this host), in MiB or with a unit, such as 512Mi or 2Gi"
                    );
                    refuse(MEMORY_ANNOTATION, value, &expected)
                })?
            }
            // A limit above what the host has is no error under runc, and so not here.
            None => {
                limited_memory(resources).unwrap_or(config.memory_mib).clamp(MIN_MEMORY_MIB, host.memory_mib)
            }
        };
        Ok(Self { vcpus, memory_mib })
    }
}

fn refuse(annotation: &str, value: &str, expected: &str) -> Error {
    Error::InvalidArgument(format!("annotation {annotation}={value:?}: {expected}"))
}

/// CPU quota by period, rounded up: enough vCPUs to use the quota.
fn limited_vcpus(resources: &Value) -> Option<u32> {
    let quota = positive(&resources["cpu"]["quota"])?;
    let period = positive(&resources["cpu"]["period"]).unwrap_or(100_000);
    u32::try_from(quota.div_ceil(period)).ok()
}

/// The memory limit, rounded up to MiB, and the guest's own share.
fn limited_memory(resources: &Value) -> Option<u64> {
    let bytes = positive(&resources["memory"]["limit"])?;
    Some(bytes.div_ceil(1 << 20).saturating_add(GUEST_OVERHEAD_MIB))
}

fn positive(number: &Value) -> Option<u64> {
    number.as_i64().and_then(|number| u64::try_from(number).ok()).filter(|&number| number > 0)
}

/// A size in MiB: a bare number, or one with Ki, Mi, Gi, Ti (or K, M, G, T, all binary).
pub(super) fn parse_memory(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    match text[digits..].trim().trim_end_matches('B').trim_end_matches('i') {
        "" | "M" => Some(number),
        "K" => Some(number / 1024),
        "G" => number.checked_mul(1 << 10),
        "T" => number.checked_mul(1 << 20),
        _ => None,
    }
}

#[cfg(test)]
#[path = "sizing_test.rs"]
mod tests;
