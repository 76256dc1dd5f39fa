use super::*;
use std::fs;

/// A guest with one character device, 1:3.
pub(super) fn guest(dir: &tempfile::TempDir) -> Guest {
    fs::create_dir_all(dir.path().join("char/1:3")).unwrap();
    Guest {
        docker_socket: dir.path().join("docker.sock"),
        apparmor: false,
        selinux: false,
        swap: false,
        controllers: ["cpu", "memory", "pids", "io"].map(str::to_owned).to_vec(),
        devices: dir.path().to_path_buf(),
    }
}

fn adapt(spec: &Value) -> (Result<ContainerSpec, SpecError>, Value) {
    adapt_sharing(spec, &Sharing::default())
}

fn adapt_sharing(spec: &Value, sharing: &Sharing) -> (Result<ContainerSpec, SpecError>, Value) {
    let dir = tempfile::tempdir().unwrap();
    let adapted = for_container(spec.to_string().as_bytes(), "c1", sharing, &guest(&dir));
    let config = adapted.as_ref().map_or(Value::Null, |a| serde_json::from_slice(&a.config).unwrap());
    (adapted, config)
}

pub(super) fn spec(linux: Value) -> Value {
    json!({
        "ociVersion": "1.2.0",
        "root": { "path": "/run/lazaret/shared/c1/rootfs" },
        "process": { "args": ["sh"], "cwd": "/", "capabilities": { "bounding": ["CAP_FROM_THE_FUTURE"] } },
        "linux": linux,
    })
}

#[test]
fn the_network_namespace_goes_and_paths_of_the_others() {
    let linux = json!({ "namespaces": [
        { "type": "pid" }, { "type": "network", "path": "/proc/7/ns/net" }, { "type": "ipc", "path": "/proc/7/ns/ipc" },
        { "type": "mount" },
    ] });
    let (_, config) = adapt(&spec(linux));
    assert_eq!(
        config["linux"]["namespaces"],
        json!([{ "type": "pid" }, { "type": "ipc" }, { "type": "mount" }])
    );
}

#[test]
fn namespaces_of_other_containers_are_joined_and_no_others() {
    let linux = json!({ "namespaces": [
        { "type": "pid" }, { "type": "ipc", "path": "/proc/7/ns/ipc" }, { "type": "uts", "path": "/proc/7/ns/uts" },
        { "type": "mount" },
    ] });
    let namespaces = HashMap::from([("ipc".to_owned(), PathBuf::from("/proc/42/ns/ipc"))]);
    let (_, config) = adapt_sharing(&spec(linux), &Sharing { namespaces, holds_pod: false });
    assert_eq!(
        config["linux"]["namespaces"],
        json!([{ "type": "pid" }, { "type": "ipc", "path": "/proc/42/ns/ipc" }, { "type": "uts" }, { "type": "mount" }])
    );
}

#[test]
fn a_container_that_holds_a_pod_has_no_docker_socket() {
    let dir = tempfile::tempdir().unwrap();
    let guest = guest(&dir);
    fs::write(&guest.docker_socket, "").unwrap();
    for holds_pod in [false, true] {
        let sharing = Sharing { holds_pod, ..Sharing::default() };
        let spec = spec(json!({})).to_string();
        let adapted = for_container(spec.as_bytes(), "c1", &sharing, &guest).unwrap();
        let config = String::from_utf8(adapted.config).unwrap();
        assert_ne!(config.contains("docker.sock"), holds_pod, "{config}");
    }
}

#[test]
fn a_container_never_shares_the_agents_pid_or_mount_namespace() {
    let (_, config) = adapt(&spec(json!({})));
    assert_eq!(config["linux"]["namespaces"], json!([{ "type": "mount" }, { "type": "pid" }]));
}

#[test]
fn what_the_agent_has_no_opinion_on_stays() {
    let linux = json!({ "maskedPaths": ["/proc/kcore"], "seccomp": { "defaultAction": "SCMP_ACT_NEW" }, "novel": [1] });
    let (_, config) = adapt(&spec(linux));
    assert_eq!(config["linux"]["maskedPaths"], json!(["/proc/kcore"]));
    assert_eq!(config["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_NEW");
    assert_eq!(config["linux"]["novel"], json!([1]));
    assert_eq!(config["process"]["capabilities"]["bounding"], json!(["CAP_FROM_THE_FUTURE"]));
}

#[test]
fn the_hosts_own_matters_go() {
    let mut spec = spec(json!({
        "cgroupsPath": "system.slice:docker:c1", "mountLabel": "x", "intelRdt": {}, "netDevices": {},
    }));
    spec["process"]["apparmorProfile"] = "docker-default".into();
    spec["process"]["selinuxLabel"] = "x".into();
    spec["annotations"] = json!({ "run.oci.handler": "krun" });
    spec["hooks"] = json!({ "prestart": [{ "path": "/x" }], "startContainer": [{ "path": "/y" }] });
    let (_, config) = adapt(&spec);
    assert_eq!(config["linux"]["cgroupsPath"], "/lazaret/c1");
    assert_eq!(config["hooks"], json!({ "startContainer": [{ "path": "/y" }] }));
    for gone in ["/linux/mountLabel", "/linux/intelRdt", "/linux/netDevices", "/process/apparmorProfile"] {
        assert!(config.pointer(gone).is_none(), "{gone}");
    }
    assert!(config.pointer("/process/selinuxLabel").is_none());
    assert!(config.get("annotations").is_none());
}

#[test]
fn the_oom_score_is_never_the_agents() {
    let (adapted, config) = adapt(&spec(json!({})));
    assert_eq!(config["process"]["oomScoreAdj"], 0);
    assert_eq!(adapted.unwrap().oom_score_adj, 0);

    let dir = tempfile::tempdir().unwrap();
    let exec = for_exec(br#"{"args":["sh"],"terminal":true}"#, 500, &guest(&dir)).unwrap();
    let process: Value = serde_json::from_slice(&exec.process).unwrap();
    assert!(exec.terminal);
    assert_eq!((process["oomScoreAdj"].as_i64(), exec.oom_score_adj), (Some(500), 500));
}

#[test]
fn network_sysctls_are_the_guests_and_no_way_out_of_proc_sys() {
    let sysctl = json!({ "net.ipv4.ip_unprivileged_port_start": "0", "kernel.msgmax": "1", "net/ipv4/conf/eth0.1/mtu": "2" });
    let (adapted, config) = adapt(&spec(json!({ "sysctl": sysctl })));
    let sysctls = adapted.unwrap().sysctls;
    assert!(sysctls.contains(&("net/ipv4/ip_unprivileged_port_start".into(), "0".into())));
    assert!(sysctls.contains(&("net/ipv4/conf/eth0.1/mtu".into(), "2".into())));
    assert_eq!(config["linux"]["sysctl"], json!({ "kernel.msgmax": "1" }));

    let (escape, _) = adapt(&spec(json!({ "sysctl": { "net/../../../etc/passwd": "x" } })));
    assert!(matches!(escape, Err(SpecError::SysctlName(_))));
}

#[test]
fn a_device_that_the_guest_lacks_is_named() {
    let device = |path: &str, kind: &str, minor: i64| json!({ "devices": [{ "path": path, "type": kind, "major": 1, "minor": minor }] });
    assert!(adapt(&spec(device("/dev/null", "c", 3))).0.is_ok());
    assert!(adapt(&spec(device("/fifo", "p", 0))).0.is_ok());
    let error = adapt(&spec(device("/dev/ram0", "b", 3))).0.unwrap_err();
    assert!(error.to_string().starts_with("device /dev/ram0 (b 1:3) is not in the guest"), "{error}");
}

#[test]
fn a_privileged_container_has_the_devices_of_the_guest_and_none_of_the_hosts() {
    let guests = json!({ "path": "/dev/null", "type": "c", "major": 1, "minor": 3 });
    let hosts = json!({ "path": "/dev/ram0", "type": "b", "major": 1, "minor": 3 });
    let spec_with =
        |rules: Value| spec(json!({ "devices": [hosts, guests], "resources": { "devices": rules } }));
    let (adapted, config) = adapt(&spec_with(json!([{ "allow": true, "access": "rwm" }])));
    assert_eq!(config["linux"]["devices"], json!([guests]));
    assert!(adapted.unwrap().dropped.iter().any(|line| line.starts_with("1 devices of the host's")));

    let some = json!([{ "allow": false, "access": "rwm" }, { "allow": true, "type": "b", "major": 1, "access": "rwm" }]);
    assert!(matches!(adapt(&spec_with(some)).0, Err(SpecError::NoDevice { .. })));
}

#[test]
fn resources_of_the_host_go_with_a_word_and_those_of_the_guest_stay() {
    let resources = json!({
        "devices": [{ "allow": false }],
        "memory": { "limit": 1 << 30, "swap": 1 << 31, "swappiness": 60, "disableOOMKiller": false },
        "cpu": { "shares": 512, "quota": 50000, "period": 100_000, "cpus": "4-7" },
        "pids": { "limit": 10 },
        "hugepageLimits": [],
        "blockIO": { "weight": 100, "throttleReadBpsDevice": [{ "major": 8, "minor": 0, "rate": 1 }] },
        "rdma": { "mlx5_1": {} },
        "unified": { "cpuset.cpus": "1", "memory.high": "5" },
    });
    let (adapted, config) = adapt(&spec(json!({ "resources": resources })));
    assert_eq!(
        config["linux"]["resources"],
        json!({
            "devices": [{ "allow": false }],
            "memory": { "limit": 1 << 30 },
            "cpu": { "shares": 512, "quota": 50000, "period": 100_000 },
            "pids": { "limit": 10 },
            "blockIO": { "weight": 100 },
            "unified": { "memory.high": "5" },
        })
    );
    let dropped = adapted.unwrap().dropped.join("\n");
    for named in
        ["memory.swap ", "memory.swappiness", "cpu.cpus", "throttleReadBpsDevice", "rdma", "cpuset.cpus"]
    {
        assert!(dropped.contains(named), "{named} in {dropped}");
    }
    assert!(!dropped.contains("hugepage") && !dropped.contains("disableOOM"), "{dropped}");
}

#[test]
fn a_spec_that_is_none_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let error = for_container(b"{", "c1", &Sharing::default(), &guest(&dir)).unwrap_err();
    assert!(error.to_string().starts_with("the OCI spec cannot be read: "), "{error}");
    let error = adapt(&json!({ "root": { "path": "/r" } })).0.unwrap_err();
    assert_eq!(error.to_string(), "the OCI spec is of no use: process is missing or of the wrong kind");
}
