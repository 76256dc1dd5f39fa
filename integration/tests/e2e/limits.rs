//! What the host holds a sandbox to, whatever its guest does.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lazaret_integration::container::Container;
use lazaret_integration::spec::Spec;
use lazaret_integration::{beside_others, is_lazaret};
use serde_json::json;

/// An interface file of the VMM's cgroup.
#[track_caller]
fn limit(cgroup: &str, file: &str) -> String {
    let path = format!("/sys/fs/cgroup{cgroup}/vm/{file}");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}")).trim().to_owned()
}

/// The processor time that the VM has taken so far.
#[track_caller]
fn processor_time(cgroup: &str) -> Duration {
    let stat = limit(cgroup, "cpu.stat");
    let usage = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")).expect("cpu.stat has it");
    Duration::from_micros(usage.parse().expect("a number"))
}

#[test]
fn a_vm_has_the_memory_and_threads_of_its_size_and_the_oom_score_of_its_spec() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_others();
    let mut spec = Spec::busybox(&["/bin/sleep", "1000"]);
    spec.json["linux"]["cgroupsPath"] = json!("/lazaret-test/size");
    spec.json["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 });
    spec.json["linux"]["resources"]["cpu"] =
        json!({ "shares": 512, "quota": 150_000, "period": 100_000, "cpus": "1" });
    spec.json["process"]["oomScoreAdj"] = json!(321);
    let container = Container::new("limits-size").config(&spec.write());
    container.detach(&[]);
    let (pid, _) = container.status().expect("there is a task");
    // 64 MiB for the container, 64 for the guest; an eighth of that, 64, and 80 for files, for the host's part.
    assert_eq!(limit("/lazaret-test/size", "memory.max"), ((128 + 16 + 64 + 80) << 20).to_string());
    assert_eq!(limit("/lazaret-test/size", "pids.max"), "66");
    assert_eq!(limit("/lazaret-test/size", "cpu.max"), "150000 100000");
    assert_eq!(limit("/lazaret-test/size", "cpu.weight"), "20");
    assert_eq!(limit("/lazaret-test/size", "cpuset.cpus"), "1");
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("the VMM runs");
    assert_eq!(score.trim(), "321");
}

#[test]
fn a_guest_that_eats_its_processor_has_its_quota_and_no_more() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_others();
    let cgroup = "/lazaret-test/quota";
    let container = Container::new("limits-quota").flags(&["--cgroup", cgroup, "--cpus", "0.2"]);
    container.detach(&["sh", "-c", "while :; do :; done"]);
    assert_eq!(limit(cgroup, "cpu.max"), "20000 100000");
    let (began, before) = (Instant::now(), processor_time(cgroup));
    sleep(Duration::from_secs(10));
    let share = (processor_time(cgroup) - before).as_secs_f64() / began.elapsed().as_secs_f64();
    // One period more than those that have passed.
    assert!(share > 0.02 && share < 0.21, "{share:.3} of a processor");
    let throttled = limit(cgroup, "cpu.stat");
    assert!(!throttled.contains("nr_throttled 0\n"), "{throttled}");
}
