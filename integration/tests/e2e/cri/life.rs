//! From RunPodSandbox to RemovePodSandbox. `Pod` and `PodContainer` check at their ends that nothing is left.

use std::thread;
use std::time::Duration;

use lazaret_integration::cri::{Code, Node, Pod, api};
use lazaret_integration::{alone, beside_others, is_lazaret};

use super::{UNTIL_TERM, node};

/// As many as run beside each other in the host's memory.
const PODS: usize = 10;

#[test]
fn a_pod_of_one_container_runs_a_command_is_stopped_and_removed() {
    let _host = beside_others();
    let together = node();
    let (node, cri) = (&together.node, &together.node.cri);
    let pod = Pod::run(node, "thin");
    assert!(pod.is_ready());
    assert!(pod.address().starts_with("10.89.0."), "{}", pod.address());
    let container = pod.create(&pod.container_config("one", &UNTIL_TERM)).expect("it is created");
    assert_eq!(container.status().state(), api::ContainerState::ContainerCreated);
    cri.start(&container.id).expect("it is started");
    assert_eq!(container.status().state(), api::ContainerState::ContainerRunning);
    assert_eq!(container.says(&["hostname"]), "thin");
    let ran = container.exec(&["sh", "-c", "echo out; echo err >&2; exit 5"]);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (5, "out\n", "err\n"));
    cri.stop(&container.id, 60).expect("it is stopped");
    let status = container.wait_for_exit();
    assert_eq!((status.exit_code, status.reason.as_str()), (21, "Error"));
    cri.remove(&container.id).expect("it is removed");
    assert_eq!(cri.status(&container.id).expect_err("it is gone").code(), Code::NotFound);
    assert!(pod.is_ready(), "a pod is there without containers");
    cri.stop_pod(&pod.id).expect("it is stopped");
    assert!(!pod.is_ready());
}

#[test]
fn a_container_that_ended_is_made_again_in_the_living_pod() {
    let _host = beside_others();
    let together = node();
    let pod = Pod::run(&together.node, "again");
    for attempt in 0..3 {
        let mut config = pod.container_config("one", &["sh", "-c", "echo $HOME; exit 3"]);
        config.metadata.as_mut().expect("it has a name").attempt = attempt;
        let container = pod.start_with(&config);
        assert_eq!(container.wait_for_exit().exit_code, 3);
        assert_eq!(container.logged("stdout").lines().last(), Some("/root"));
    }
    assert!(pod.is_ready());
}

#[test]
fn calls_that_come_twice_too_early_too_late_or_for_nobody_are_answered_alike() {
    let _host = beside_others();
    let together = node();
    let (node, cri) = (&together.node, &together.node.cri);
    let nobody = "0".repeat(64);
    for answer in [cri.stop_pod(&nobody), cri.remove_pod(&nobody), cri.remove(&nobody)] {
        answer.expect("what is not there needs not be ended");
    }
    let exec = |id: &str| cri.exec(id, &["true"], Duration::ZERO).map(drop);
    let unknown = [
        cri.start(&nobody),
        exec(&nobody),
        cri.status(&nobody).map(drop),
        cri.stats(&nobody).map(drop),
        cri.pod_status(&nobody).map(drop),
    ];
    for answer in unknown {
        assert_eq!(answer.expect_err("nobody has this id").code(), Code::NotFound);
    }

    let pod = Pod::run(node, "twice");
    let config = pod.container_config("one", &UNTIL_TERM);
    let container = pod.create(&config).expect("it is created");
    pod.create(&config).err().expect("the name is taken");
    exec(&container.id).expect_err("it does not run yet");
    cri.start(&container.id).expect("it is started");
    cri.start(&container.id).expect_err("it runs");
    exec(&container.id).expect("it runs still");
    for _ in 0..2 {
        cri.stop(&container.id, 60).expect("it is stopped");
    }
    assert_eq!(container.wait_for_exit().exit_code, 21);
    exec(&container.id).expect_err("it has ended");
    cri.start(&container.id).expect_err("it has ended");

    // A pod that is stopped with a container that runs, and one that was never started.
    let running = pod.start("running", &UNTIL_TERM);
    let created = pod.create(&pod.container_config("created", &UNTIL_TERM)).expect("it is created");
    for _ in 0..2 {
        cri.stop_pod(&pod.id).expect("it is stopped");
    }
    assert_ne!(running.wait_for_exit().exit_code, 0);
    // containerd 2.1 refuses the start, older ones the container.
    if let Ok(late) = pod.create(&pod.container_config("late", &UNTIL_TERM)) {
        cri.start(&late.id).expect_err("its pod has ended");
    }
    cri.start(&created.id).expect_err("its pod has ended");
    for _ in 0..2 {
        cri.remove(&running.id).expect("it is removed");
        cri.remove(&created.id).expect("it is removed");
        cri.remove(&container.id).expect("it is removed");
        cri.remove_pod(&pod.id).expect("it is removed");
    }
}

#[test]
fn a_container_that_cannot_be_made_or_started_takes_nobody_with_it() {
    let _host = beside_others();
    let together = node();
    let pod = Pod::run(&together.node, "failing");
    let beside = pod.start("beside", &UNTIL_TERM);
    let broken = pod.create(&pod.container_config("broken", &["no-such-command"])).expect("it is created");
    let refused = together.node.cri.start(&broken.id).expect_err("there is no such command");
    assert!(refused.message().contains("no-such-command"), "{refused}");
    let status = broken.status();
    assert_eq!(
        (status.state(), status.reason.as_str()),
        (api::ContainerState::ContainerExited, "StartError")
    );
    let mut config = pod.container_config("no-volume", &["true"]);
    config.mounts.push(api::Mount {
        container_path: "/x".into(),
        host_path: "/proc/no/such".into(),
        ..Default::default()
    });
    pod.create(&config).err().expect("there is no such directory");
    assert_eq!(beside.exec(&["true"]).code, 0);
    assert!(pod.is_ready());
}

/// Which namespaces a pod asks for.
type Change = fn(&mut api::NamespaceOption);

/// What kubelet asks for when it runs a pod with namespaces of the host.
fn with_namespaces(node: &Node, change: Change) -> api::PodSandboxConfig {
    let mut config = Pod::config(node, "host");
    let security = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
    change(security.expect("it has one").namespace_options.as_mut().expect("it has some"));
    config
}

#[test]
fn a_pod_that_asks_for_the_hosts_processes_or_shared_memory_is_refused_and_leaves_nothing() {
    let _host = beside_others();
    let together = node();
    if !is_lazaret() {
        return;
    }
    let asks: [(Change, &str); 2] = [
        (|namespaces| namespaces.pid = api::NamespaceMode::Node.into(), "the host's pid namespace"),
        (|namespaces| namespaces.ipc = api::NamespaceMode::Node.into(), "the host's ipc namespace"),
    ];
    for (change, wanted) in asks {
        let config = with_namespaces(&together.node, change);
        let refused = Pod::run_with(&together.node, config).err().expect("a sandbox is a VM");
        assert!(refused.message().contains(wanted), "{refused}");
    }
}

#[test]
fn a_pod_that_asks_for_the_hosts_network_has_the_loopback_interface_alone() {
    let _host = beside_others();
    let together = node();
    if !is_lazaret() {
        return;
    }
    let change: Change = |namespaces| namespaces.network = api::NamespaceMode::Node.into();
    let mut config = with_namespaces(&together.node, change);
    // Its name is the host's, so kubelet gives none.
    config.hostname.clear();
    let pod = Pod::run_with(&together.node, config).expect("the configuration says so");
    let mut config = pod.container_config("one", &UNTIL_TERM);
    let security = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
    change(security.expect("it has one").namespace_options.as_mut().expect("it has some"));
    let container = pod.start_with(&config);
    let interfaces = container.says(&["sh", "-c", "ip -o link | grep -v ' state DOWN ' | cut -d ' ' -f 2"]);
    assert_eq!(interfaces, "lo:");
}

#[test]
fn a_pod_is_as_large_as_its_resources_or_its_annotations_say() {
    let _host = beside_others();
    let together = node();
    if !is_lazaret() {
        return;
    }
    let memory = |config: api::PodSandboxConfig| {
        let pod = Pod::run_with(&together.node, config).expect("it runs");
        let total = pod.start("one", &UNTIL_TERM).says(&["awk", "/MemTotal/ { print $2 }", "/proc/meminfo"]);
        total.parse::<u64>().expect("a number") >> 10
    };
    let mut config = Pod::config(&together.node, "resources");
    let resources = api::LinuxContainerResources { memory_limit_in_bytes: 300 << 20, ..Default::default() };
    config.linux.as_mut().expect("it is Linux").resources = Some(resources);
    let by_resources = memory(config);
    assert!((300..700).contains(&by_resources), "{by_resources} MiB");
    let mut config = Pod::config(&together.node, "annotations");
    config.annotations.insert("io.lazaret.vm.memory".into(), "900Mi".into());
    let by_annotation = memory(config);
    assert!((800..1000).contains(&by_annotation), "{by_annotation} MiB");
}

#[test]
fn ten_pods_start_at_once_and_end_at_once() {
    let _host = alone();
    let together = node();
    let run = |number: usize| {
        let pod = Pod::run(&together.node, &format!("ten{number}"));
        let container = pod.start("one", &UNTIL_TERM);
        assert_eq!(container.says(&["hostname"]), format!("ten{number}"));
        (container, pod)
    };
    let pods = thread::scope(|scope| {
        let runs: Vec<_> = (0..PODS).map(|number| scope.spawn(move || run(number))).collect();
        runs.into_iter().map(|run| run.join().expect("it runs")).collect::<Vec<_>>()
    });
    let ids = together.node.cri.pods().expect("they are listed").into_iter().map(|pod| pod.id);
    let ids: Vec<_> = ids.collect();
    assert!(pods.iter().all(|(_, pod)| ids.contains(&pod.id)));
    thread::scope(|scope| pods.into_iter().for_each(|pod| _ = scope.spawn(move || drop(pod))));
}
