use super::*;

fn leaf(function: u32, index: Option<u32>) -> CpuidLeaf {
    CpuidLeaf { function, index, eax: 0, ebx: 0, ecx: 0, edx: 0 }
}

fn host() -> Vec<CpuidLeaf> {
    vec![
        CpuidLeaf { eax: 0x1f, ..leaf(0, None) },
        CpuidLeaf { ebx: 0xaabb_0810, ecx: 0x0100_0000, edx: 0x0123, ..leaf(1, None) },
        // A data cache of level 1 and a unified one of level 3, as of a host with many cores.
        CpuidLeaf { eax: 0xfc00_4121, ..leaf(4, Some(0)) },
        CpuidLeaf { eax: 0xfc1f_c163, ..leaf(4, Some(1)) },
        CpuidLeaf { eax: 0x0730_0404, ..leaf(0xa, None) },
        CpuidLeaf { eax: 7, ebx: 64, ecx: 0x201, edx: 99, ..leaf(0xb, Some(1)) },
        CpuidLeaf { eax: 7, ebx: 64, ecx: 0x201, edx: 99, ..leaf(0x1f, Some(1)) },
        CpuidLeaf { eax: 7, ebx: 64, ecx: 0x201, edx: 99, ..leaf(0x8000_0026, Some(1)) },
        CpuidLeaf { eax: 0x3030, ecx: 0x0000_703f, ..leaf(0x8000_0008, None) },
        CpuidLeaf { eax: 77, ebx: 0x100, ecx: 3, ..leaf(0x8000_001e, None) },
    ]
}

fn find(leaves: &[CpuidLeaf], function: u32, index: Option<u32>) -> CpuidLeaf {
    *leaves.iter().find(|leaf| leaf.function == function && leaf.index == index).unwrap()
}

#[test]
fn each_vcpu_knows_its_own_apic_id_everywhere() {
    for id in 0..6 {
        let leaves = of_vcpu(&host(), id, 6);
        let id = u32::from(id);
        assert_eq!(find(&leaves, 1, None).ebx, id << 24 | 6 << 16 | 0x0810);
        assert!((0..3).all(|level| find(&leaves, 0xb, Some(level)).edx == id));
        let amd = find(&leaves, 0x8000_001e, None);
        assert_eq!((amd.eax, amd.ebx, amd.ecx), (id, id, 0));
    }
}

#[test]
fn the_topology_is_a_package_of_cores_without_threads() {
    let leaves = of_vcpu(&host(), 0, 6);
    let (threads, cores, end) =
        (find(&leaves, 0xb, Some(0)), find(&leaves, 0xb, Some(1)), find(&leaves, 0xb, Some(2)));
    assert_eq!((threads.eax, threads.ebx, threads.ecx), (0, 1, 0x100));
    assert_eq!((cores.eax, cores.ebx, cores.ecx), (3, 6, 0x201));
    assert_eq!((end.eax, end.ebx, end.ecx), (0, 0, 2));
    assert_eq!(
        leaves.iter().filter(|leaf| matches!(leaf.function, 0xb | 0x1f | 0xa | 0x8000_0026)).count(),
        3
    );
    assert_eq!(find(&leaves, 0x8000_0008, None).ecx & 0xf0ff, 3 << 12 | 5);
}

#[test]
fn caches_near_a_core_are_its_own_and_the_last_is_shared() {
    let leaves = of_vcpu(&host(), 0, 6);
    let sharers = |index| find(&leaves, 4, Some(index)).eax >> 14 & 0xfff;
    assert_eq!((sharers(0), sharers(1)), (0, 5));
    assert_eq!(find(&leaves, 4, Some(0)).eax >> 26, 5);
}

#[test]
fn a_hypervisor_is_told_of_and_one_vcpu_is_alone() {
    let one = find(&of_vcpu(&host(), 0, 1), 1, None);
    let two = find(&of_vcpu(&host(), 0, 2), 1, None);
    assert_ne!(one.ecx & HYPERVISOR, 0);
    assert_eq!((one.edx & HTT, two.edx & HTT), (0, HTT));
}
