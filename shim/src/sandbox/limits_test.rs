use super::*;
use serde_json::json;

fn files(limits: &Limits) -> Vec<(&'static str, &str)> {
    limits.files().collect()
}

#[test]
fn a_vm_may_take_its_memory_and_what_the_host_needs_for_it() {
    let limits = Limits::of_vm(Size { vcpus: 2, memory_mib: 512 });
    // Its own, an eighth of that, 64 MiB, and 131,072 files of 2,560 bytes.
    let memory = ((512 + 64 + 64 + 320) << 20).to_string();
    assert_eq!(files(&limits), [("memory.max", memory.as_str()), ("pids.max", "66")]);
    assert_eq!(limits.controllers(), ["memory", "pids"]);
    assert_eq!(files(&Limits::of_processes(Size { vcpus: 2, memory_mib: 512 }, 3)), [("pids.max", "69")]);
}

#[test]
fn processor_time_is_that_of_the_spec() {
    let of = |cpu: Value| Limits::of_resources(&json!({ "cpu": cpu })).unwrap();
    assert_eq!(files(&of(json!({ "quota": 50_000 }))), [("cpu.max", "50000 100000")]);
    assert_eq!(files(&of(json!({ "quota": 1_000, "period": 10_000 }))), [("cpu.max", "1000 10000")]);
    assert_eq!(files(&of(json!({ "quota": -1 }))), [("cpu.max", "max 100000")]);
    assert_eq!(files(&of(json!({ "quota": 0, "shares": 0, "cpus": "" }))), []);
    let pinned = of(json!({ "cpus": "0-1", "mems": "0" }));
    assert_eq!(files(&pinned), [("cpuset.cpus", "0-1"), ("cpuset.mems", "0")]);
    assert_eq!(pinned.controllers(), ["cpuset"]);
}

#[test]
fn shares_become_a_weight() {
    for (shares, expected) in [(1, 1), (2, 1), (1024, 39), (262_144, 10_000), (u64::MAX, 10_000)] {
        assert_eq!(weight(shares), expected, "{shares}");
    }
}

#[test]
fn each_disk_has_a_line_for_each_of_its_rates() {
    let resources = json!({ "blockIO": {
        "throttleReadBpsDevice": [{ "major": 8, "minor": 0, "rate": 1_048_576 }, { "major": 8, "minor": 16, "rate": 0 }],
        "throttleWriteIOPSDevice": [{ "major": 8, "minor": 0, "rate": 100 }],
    }});
    let limits = Limits::of_resources(&resources).unwrap();
    let expected = [("io.max", "8:0 rbps=1048576"), ("io.max", "8:16 rbps=max"), ("io.max", "8:0 wiops=100")];
    assert_eq!(files(&limits), expected);
    assert_eq!(limits.controllers(), ["io"]);
}

#[test]
fn a_disk_without_numbers_is_refused() {
    let resources = json!({ "blockIO": { "throttleReadBpsDevice": [{ "path": "/dev/sda", "rate": 1 }] } });
    let error = Limits::of_resources(&resources).unwrap_err().to_string();
    assert!(error.contains("throttleReadBpsDevice") && error.contains("major"), "{error}");
}

#[test]
fn no_resources_are_no_limits() {
    assert_eq!(Limits::of_resources(&Value::Null).unwrap(), Limits::default());
}
