//! A sandbox sees itself, and nothing of the host or of another.

use std::fs;

use lazaret_integration::container::Container;
use lazaret_integration::containerd::Containerd;
use lazaret_integration::shared::Shared;
use lazaret_integration::{beside_others, is_lazaret, probe};

#[test]
fn two_sandboxes_see_neither_each_others_processes_nor_files() {
    let _host = beside_others();
    let one = Container::new("one");
    let other = Container::new("other");
    one.detach(&["sh", "-c", "echo secret >/secret; exec sleep 1111"]);
    other.detach(&["sleep", "2222"]);
    let seen = other.exec(&["sh", "-c", "ps; ls -R /root /tmp /run; ls /"]).success().out();
    assert!(seen.contains("sleep 2222"), "{seen}");
    assert!(!seen.contains("sleep 1111") && !seen.contains("secret"), "{seen}");
}

#[test]
fn two_sandboxes_have_different_kernels() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_others();
    let boot =
        |name: &str| Container::new(name).run(&["cat", "/proc/sys/kernel/random/boot_id"]).success().out();
    assert_ne!(boot("boot-a"), boot("boot-b"));
}

#[test]
fn a_privileged_container_is_privileged_in_its_own_kernel_only() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_others();
    let container =
        Container::new("privileged").flags(&["--privileged", "--privileged-without-host-devices"]);
    let run = container.run(&[
        "sh",
        "-c",
        "echo 31337 >/proc/sys/kernel/pid_max; hostname of-the-guest; cat /proc/sys/kernel/pid_max",
    ]);
    assert_eq!(run.out(), "31337\n", "{run}");
    assert_ne!(fs::read_to_string("/proc/sys/kernel/pid_max").expect("/proc is mounted"), "31337\n");
}

#[test]
fn without_a_network_namespace_there_is_loopback_only_and_one_warning() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_others();
    let containerd = Containerd::start("net-host");
    let container = Container::new("net-host").flags(&["--net-host"]).on(&containerd.socket());
    container.detach(&["sleep", "1000"]);
    let links = container.exec(&["ls", "/sys/class/net"]).success().out();
    assert_eq!(links.trim(), "lo");
    let (pid, _) = container.status().expect("there is a task");
    let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).expect("a live process");
    assert_ne!(
        network(&pid.to_string()),
        network("self"),
        "its process on the host is not in the host's network either"
    );
    let log = containerd.log();
    let warnings: Vec<_> =
        log.lines().filter(|line| line.contains("level=warning") && line.contains(&container.id)).collect();
    let about_network = warnings.iter().filter(|line| line.contains("network")).count();
    assert_eq!(about_network, 1, "{log}");
}

/// What a container can dial.
mod vsock {
    use super::*;

    static SANDBOX: Shared<Container> = Shared::new(module_path!(), || {
        let mount = format!("type=bind,src={},dst=/probe,options=bind:ro", probe::path());
        let container = Container::new("vsock").flags(&["--mount", &mount]);
        container.detach(&["sleep", "1000"]);
        container
    });

    #[test]
    fn a_container_finds_no_open_vsock_port_on_the_host() {
        if !is_lazaret() {
            return;
        }
        let _host = beside_others();
        let container = SANDBOX.sandbox();
        let run = container.exec(&["/probe", "vsock", "2", "1", "1100"]).success();
        assert_eq!(run.out(), "tried 1 to 1100\n");
    }

    #[test]
    fn a_container_cannot_speak_with_the_agent() {
        if !is_lazaret() {
            return;
        }
        let _host = beside_others();
        let container = SANDBOX.sandbox();
        for own_cid in ["1", "3"] {
            let run = container.exec(&["/probe", "vsock", own_cid, "1020", "1030"]).success();
            assert_eq!(run.out().lines().last(), Some("tried 1020 to 1030"), "{run}");
            assert_eq!(run.out().lines().count(), 1, "a port let a container in: {run}");
        }
        assert_eq!(container.exec(&["echo", "still", "well"]).success().out(), "still well\n");
    }
}
