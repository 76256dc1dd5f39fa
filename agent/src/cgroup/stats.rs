//! What a cgroup counts. The files and their fields are in the kernel's Documentation/admin-guide/cgroup-v2.rst.
//!
//! Which files there are depends on the kernel and on its controllers: a number that is not there is 0.

use super::Cgroup;
use lazaret_agent_api::agent::{
    Cpu, Hugetlb, Io, IoDevice, Memory, MemoryEvents, Pids, Pressure, PressureShare, StatsResponse,
};
use std::collections::HashMap;
use std::fs;
use std::io;

impl Cgroup {
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when there is no such cgroup.
    pub(crate) fn stats(&self) -> io::Result<StatsResponse> {
        // The only file that each cgroup of the hierarchy has.
        fs::metadata(self.0.join("cgroup.controllers"))?;
        Ok(StatsResponse {
            pids: self.pids_stats().into(),
            cpu: self.cpu_stats().into(),
            memory: self.memory_stats().into(),
            memory_events: self.memory_events().into(),
            io: self.io_stats().into(),
            hugetlb: self.hugetlb_stats(),
            ..Default::default()
        })
    }

    fn pids_stats(&self) -> Option<Pids> {
        let current = number(&self.text("pids.current")?);
        Some(Pids { current, limit: self.number("pids.max"), ..Default::default() })
    }

    fn cpu_stats(&self) -> Option<Cpu> {
        let text = self.text("cpu.stat")?;
        let of = Fields::of(&text);
        Some(Cpu {
            usage_usec: of.get("usage_usec"),
            user_usec: of.get("user_usec"),
            system_usec: of.get("system_usec"),
            nr_periods: of.get("nr_periods"),
            nr_throttled: of.get("nr_throttled"),
            throttled_usec: of.get("throttled_usec"),
            nr_bursts: of.get("nr_bursts"),
            burst_usec: of.get("burst_usec"),
            psi: self.pressure("cpu.pressure").into(),
            ..Default::default()
        })
    }

    fn memory_stats(&self) -> Option<Memory> {
        let text = self.text("memory.stat")?;
        let of = Fields::of(&text);
        // Since Linux 5.9 the kernel counts the two kinds of pages apart.
        let both = |name: &str| {
            let parts = [format!("{name}_anon"), format!("{name}_file")].map(|part| of.get(&part));
            of.get(name).saturating_add(parts[0]).saturating_add(parts[1])
        };
        Some(Memory {
            anon: of.get("anon"),
            file: of.get("file"),
            kernel_stack: of.get("kernel_stack"),
            slab: of.get("slab"),
            sock: of.get("sock"),
            shmem: of.get("shmem"),
            file_mapped: of.get("file_mapped"),
            file_dirty: of.get("file_dirty"),
            file_writeback: of.get("file_writeback"),
            anon_thp: of.get("anon_thp"),
            inactive_anon: of.get("inactive_anon"),
            active_anon: of.get("active_anon"),
            inactive_file: of.get("inactive_file"),
            active_file: of.get("active_file"),
            unevictable: of.get("unevictable"),
            slab_reclaimable: of.get("slab_reclaimable"),
            slab_unreclaimable: of.get("slab_unreclaimable"),
            pgfault: of.get("pgfault"),
            pgmajfault: of.get("pgmajfault"),
            workingset_refault: both("workingset_refault"),
            workingset_activate: both("workingset_activate"),
            workingset_nodereclaim: of.get("workingset_nodereclaim"),
            pgrefill: of.get("pgrefill"),
            pgscan: of.get("pgscan"),
            pgsteal: of.get("pgsteal"),
            pgactivate: of.get("pgactivate"),
            pgdeactivate: of.get("pgdeactivate"),
            pglazyfree: of.get("pglazyfree"),
            pglazyfreed: of.get("pglazyfreed"),
            thp_fault_alloc: of.get("thp_fault_alloc"),
            thp_collapse_alloc: of.get("thp_collapse_alloc"),
            usage: self.number("memory.current"),
            usage_limit: self.number("memory.max"),
            swap_usage: self.number("memory.swap.current"),
            swap_limit: self.number("memory.swap.max"),
            max_usage: self.number("memory.peak"),
            swap_max_usage: self.number("memory.swap.peak"),
            psi: self.pressure("memory.pressure").into(),
            ..Default::default()
        })
    }

    fn memory_events(&self) -> Option<MemoryEvents> {
        let text = self.text("memory.events")?;
        let of = Fields::of(&text);
        Some(MemoryEvents {
            low: of.get("low"),
            high: of.get("high"),
            max: of.get("max"),
            oom: of.get("oom"),
            oom_kill: of.get("oom_kill"),
            oom_group_kill: of.get("oom_group_kill"),
            ..Default::default()
        })
    }

    fn io_stats(&self) -> Option<Io> {
        let text = self.text("io.stat")?;
        let usage = text.lines().filter_map(io_device).collect();
        Some(Io { usage, psi: self.pressure("io.pressure").into(), ..Default::default() })
    }

    fn hugetlb_stats(&self) -> Vec<Hugetlb> {
        let names = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let sizes = names.filter_map(|name| {
            let size = name.strip_prefix("hugetlb.")?.strip_suffix(".current")?;
            // hugetlb.2MB.rsvd.current is of the same size.
            (!size.contains('.')).then(|| size.to_owned())
        });
        sizes
            .map(|pagesize| Hugetlb {
                current: self.number(&format!("hugetlb.{pagesize}.current")),
                max: self.number(&format!("hugetlb.{pagesize}.max")),
                failcnt: self
                    .text(&format!("hugetlb.{pagesize}.events"))
                    .map_or(0, |text| Fields::of(&text).get("max")),
                pagesize,
                ..Default::default()
            })
            .collect()
    }

    /// `None` where the kernel does not measure it.
    fn pressure(&self, file: &str) -> Option<Pressure> {
        let text = self.text(file)?;
        let of = |kind: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
            let of = Fields(line.split_whitespace().filter_map(|field| field.split_once('=')).collect());
            let average = |name| of.0.get(name).and_then(|text| text.parse().ok()).unwrap_or_default();
            Some(PressureShare {
                avg10: average("avg10"),
                avg60: average("avg60"),
                avg300: average("avg300"),
                total: of.get("total"),
                ..Default::default()
            })
        };
        Some(Pressure { some: of("some").into(), full: of("full").into(), ..Default::default() })
    }

    /// `None` where there is no such file, or where it cannot be read now.
    pub(crate) fn text(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.0.join(file)).ok()
    }

    /// Of a file with one number; 0 where there is no such file.
    fn number(&self, file: &str) -> u64 {
        self.text(file).map_or(0, |text| number(&text))
    }
}

/// The numbers of a file, by name.
pub(super) struct Fields<'a>(HashMap<&'a str, &'a str>);

impl<'a> Fields<'a> {
    /// Of a file with a name and a number in each line.
    pub(super) fn of(text: &'a str) -> Self {
        Self(text.lines().filter_map(|line| line.split_once(' ')).collect())
    }

    pub(super) fn get(&self, name: &str) -> u64 {
        self.0.get(name).map_or(0, |text| number(text))
    }
}

fn number(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        text => text.parse().unwrap_or_default(),
    }
}

/// A line such as `254:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`. The kernel leaves the numbers out for some
/// devices.
fn io_device(line: &str) -> Option<IoDevice> {
    let (device, numbers) = line.split_once(' ')?;
    let (major, minor) = device.split_once(':')?;
    let of = Fields(numbers.split_whitespace().filter_map(|field| field.split_once('=')).collect());
    of.0.get("rbytes")?;
    Some(IoDevice {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        rbytes: of.get("rbytes"),
        wbytes: of.get("wbytes"),
        rios: of.get("rios"),
        wios: of.get("wios"),
        ..Default::default()
    })
}

#[cfg(test)]
#[path = "stats_test.rs"]
mod tests;
