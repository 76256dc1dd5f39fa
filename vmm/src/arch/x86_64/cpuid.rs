//! What each vCPU says of itself: the host's features, and a topology of one package, a core per vCPU, no threads.
//!
//! Linux brings processors up in parallel by the APIC ids found here, and believes the topology; both must be true.

use crate::hypervisor::CpuidLeaf;

/// Leaf 1, ecx: a hypervisor is there; leaves from 0x4000_0000 tell which.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, edx: the package has room for more than one logical processor.
const HTT: u32 = 1 << 28;

/// Topology leaf 0xb: the type of a level.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// The leaves of the vCPU with APIC id `id` of `count`.
#[must_use]
pub fn of_vcpu(host: &[CpuidLeaf], id: u8, count: u8) -> Vec<CpuidLeaf> {
    let (id, count) = (u32::from(id), u32::from(count));
    // Bits of an APIC id that number the cores.
    let core_bits = count.next_power_of_two().trailing_zeros();
    let mut leaves: Vec<_> = host
        .iter()
        .copied()
        // Replaced below: 0xb. Not offered: its supersets, and 0xa, the performance counters of the host.
        .filter(|leaf| !matches!(leaf.function, 0xa | 0xb | 0x1f | 0x8000_0026))
        .map(|leaf| adjust(leaf, id, count))
        .collect();
    if host.iter().any(|leaf| leaf.function == 0 && leaf.eax >= 0xb) {
        let level = |index, eax, ebx, kind| CpuidLeaf {
            function: 0xb,
            index: Some(index),
            eax,
            ebx,
            ecx: index | kind << 8,
            edx: id,
        };
        leaves.push(level(0, 0, 1, LEVEL_THREAD));
        leaves.push(level(1, core_bits, count, LEVEL_CORE));
        leaves.push(level(2, 0, 0, 0));
    }
    leaves
}

fn adjust(mut leaf: CpuidLeaf, id: u32, count: u32) -> CpuidLeaf {
    match leaf.function {
        0x1 => {
            // ebx: APIC id, logical processors of the package, cache line size to flush, brand.
            leaf.ebx = id << 24 | count << 16 | leaf.ebx & 0xffff;
            leaf.ecx |= HYPERVISOR;
            leaf.edx = if count > 1 { leaf.edx | HTT } else { leaf.edx & !HTT };
        }
        // Intel's caches: eax has the cores of the package (31:26) and the sharers of this cache (25:14), minus one.
        0x4 if leaf.eax & 0x1f != 0 => {
            let level = leaf.eax >> 5 & 0x7;
            let sharers = if level < 3 { 0 } else { count - 1 };
            leaf.eax = (count - 1).min(0x3f) << 26 | sharers << 14 | leaf.eax & 0x3fff;
        }
        // AMD: ecx has the bits of the APIC id that number cores (15:12), and the cores minus one (7:0).
        0x8000_0008 => {
            let bits = count.next_power_of_two().trailing_zeros();
            leaf.ecx = leaf.ecx & !0xf0ff | bits << 12 | (count - 1);
        }
        // AMD's caches: the sharers of this cache, minus one (25:14).
        0x8000_001d if leaf.eax & 0x1f != 0 => {
            let level = leaf.eax >> 5 & 0x7;
            let sharers = if level < 3 { 0 } else { count - 1 };
            leaf.eax = leaf.eax & !(0xfff << 14) | sharers << 14;
        }
        // AMD's extended APIC id, core id with one thread each, node 0 of one.
        0x8000_001e => (leaf.eax, leaf.ebx, leaf.ecx) = (id, id, 0),
        _ => {}
    }
    leaf
}

#[cfg(test)]
#[path = "cpuid_test.rs"]
mod tests;
