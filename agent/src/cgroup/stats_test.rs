use super::*;
use lazaret_agent_api::agent;

/// What Linux 6.12 has in the cgroup of a busybox that has been killed for want of memory; the controllers that a guest has.
const FILES: [(&str, &str); 20] = [
    ("cgroup.controllers", "cpuset cpu io memory hugetlb pids misc\n"),
    ("pids.current", "3\n"),
    ("pids.max", "max\n"),
    (
        "cpu.stat",
        "usage_usec 1000123\nuser_usec 700100\nsystem_usec 300023\nnice_usec 5\ncore_sched.force_idle_usec 0\n\
         nr_periods 11\nnr_throttled 7\nthrottled_usec 65000\nnr_bursts 2\nburst_usec 9\n",
    ),
    (
        "cpu.pressure",
        "some avg10=1.53 avg60=0.50 avg300=0.10 total=123456\nfull avg10=0.25 avg60=0.00 avg300=0.00 total=99\n",
    ),
    (
        "memory.stat",
        "anon 100\nfile 200\nkernel 5\nkernel_stack 300\npagetables 6\nsec_pagetables 0\npercpu 7\nsock 500\nvmalloc 0\n\
         shmem 600\nfile_mapped 700\nfile_dirty 800\nfile_writeback 900\nanon_thp 1000\nfile_thp 0\nshmem_thp 0\n\
         inactive_anon 1100\nactive_anon 1200\ninactive_file 1300\nactive_file 1400\nunevictable 1500\n\
         slab_reclaimable 1600\nslab_unreclaimable 1700\nslab 3300\nworkingset_refault_anon 1\n\
         workingset_refault_file 20\nworkingset_activate_anon 2\nworkingset_activate_file 30\n\
         workingset_restore_anon 4\nworkingset_restore_file 5\nworkingset_nodereclaim 2200\npgscan 2400\npgsteal 2500\n\
         pgscan_kswapd 1\npgscan_direct 2\npgfault 1800\npgmajfault 1900\npgrefill 2300\npgactivate 2600\n\
         pgdeactivate 2700\npglazyfree 2800\npglazyfreed 2900\nthp_fault_alloc 3000\nthp_collapse_alloc 3100\n",
    ),
    ("memory.current", "3200\n"),
    ("memory.max", "134217728\n"),
    ("memory.peak", "3600\n"),
    ("memory.events", "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n"),
    (
        "memory.pressure",
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    ),
    (
        "io.stat",
        "254:16 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n254:0 \n7:0 rbytes=1 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n",
    ),
    ("io.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=5\n"),
    ("hugetlb.2MB.current", "2097152\n"),
    ("hugetlb.2MB.max", "max\n"),
    ("hugetlb.2MB.events", "max 4\n"),
    ("hugetlb.2MB.events.local", "max 9\n"),
    ("hugetlb.2MB.rsvd.current", "7\n"),
    ("hugetlb.2MB.rsvd.max", "max\n"),
    ("hugetlb.2MB.numa_stat", "total=0 N0=0\n"),
];

fn cgroup(files: &[(&str, &str)]) -> (tempfile::TempDir, Cgroup) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let cgroup = Cgroup(dir.path().to_path_buf());
    (dir, cgroup)
}

#[test]
fn each_number_is_where_the_kernel_has_it() {
    let (_dir, cgroup) = cgroup(&FILES);
    let stats = cgroup.stats().unwrap();
    assert_eq!((stats.pids.current, stats.pids.limit), (3, u64::MAX));
    let cpu = &stats.cpu;
    assert_eq!((cpu.usage_usec, cpu.user_usec, cpu.system_usec), (1_000_123, 700_100, 300_023));
    assert_eq!((cpu.nr_periods, cpu.nr_throttled, cpu.throttled_usec), (11, 7, 65_000));
    assert_eq!((cpu.nr_bursts, cpu.burst_usec), (2, 9));
    let some = PressureShare { avg10: 1.53, avg60: 0.5, avg300: 0.1, total: 123_456, ..Default::default() };
    assert_eq!((&*cpu.psi.some, cpu.psi.full.total), (&some, 99));
    let memory = &stats.memory;
    // In the order of their fields: hundreds from 100 on, but for the sum of the two kinds of slab.
    let numbers = [
        memory.anon,
        memory.file,
        memory.kernel_stack,
        memory.slab - 2900,
        memory.sock,
        memory.shmem,
        memory.file_mapped,
        memory.file_dirty,
        memory.file_writeback,
        memory.anon_thp,
        memory.inactive_anon,
        memory.active_anon,
        memory.inactive_file,
        memory.active_file,
        memory.unevictable,
        memory.slab_reclaimable,
        memory.slab_unreclaimable,
        memory.pgfault,
        memory.pgmajfault,
        memory.workingset_refault + 1979,
        memory.workingset_activate + 2068,
        memory.workingset_nodereclaim,
        memory.pgrefill,
        memory.pgscan,
        memory.pgsteal,
        memory.pgactivate,
        memory.pgdeactivate,
        memory.pglazyfree,
        memory.pglazyfreed,
        memory.thp_fault_alloc,
        memory.thp_collapse_alloc,
        memory.usage,
    ];
    assert_eq!(numbers, std::array::from_fn(|i| 100 * (i as u64 + 1)));
    assert_eq!((memory.usage_limit, memory.max_usage), (128 << 20, 3600));
    assert_eq!((memory.swap_usage, memory.swap_limit, memory.swap_max_usage), (0, 0, 0));
    assert_eq!((memory.psi.some.total, memory.psi.full.total), (1, 0));
    let events = &stats.memory_events;
    assert_eq!([events.low, events.high, events.max], [1, 2, 3]);
    assert_eq!([events.oom, events.oom_kill, events.oom_group_kill], [4, 5, 6]);
    let disks: Vec<_> =
        stats.io.usage.iter().map(|disk| [disk.major, disk.minor, disk.rbytes, disk.wbytes]).collect();
    assert_eq!(disks, [[254, 16, 4096, 8192], [7, 0, 1, 0]]);
    assert_eq!((stats.io.usage[0].rios, stats.io.usage[0].wios), (1, 2));
    assert_eq!((stats.io.psi.some.total, stats.io.psi.full.is_some()), (5, false));
    let [huge] = &stats.hugetlb[..] else { panic!("{:?}", stats.hugetlb) };
    assert_eq!((&huge.pagesize[..], huge.current, huge.max, huge.failcnt), ("2MB", 2 << 20, u64::MAX, 4));
}

#[test]
fn what_the_kernel_does_not_have_is_absent() {
    let (_dir, cgroup) = cgroup(&[
        ("cgroup.controllers", ""),
        ("cpu.stat", "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnonsense\nnr_periods x\n"),
        ("memory.stat", ""),
        ("memory.max", "max\n"),
        ("io.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=5\n"),
    ]);
    let stats = cgroup.stats().unwrap();
    let cpu = agent::Cpu { usage_usec: 5, user_usec: 3, system_usec: 2, ..Default::default() };
    let memory = agent::Memory { usage_limit: u64::MAX, ..Default::default() };
    let expected = StatsResponse { cpu: Some(cpu).into(), memory: Some(memory).into(), ..Default::default() };
    assert_eq!(stats, expected);
}

#[test]
fn a_cgroup_that_is_not_there_is_not_found() {
    let (_dir, cgroup) = cgroup(&FILES[1..]);
    assert_eq!(cgroup.stats().unwrap_err().kind(), io::ErrorKind::NotFound);
}
