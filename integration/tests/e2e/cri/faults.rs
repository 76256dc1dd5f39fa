//! What ends otherwise than it was asked to, and a containerd that goes and comes back.

use std::fs;

use lazaret_integration::cri::{Pod, api};
use lazaret_integration::faults::kill_process;
use lazaret_integration::leftovers::eventually;
use lazaret_integration::{alone, beside_others, is_lazaret};
use nix::sys::signal::Signal;

use super::{UNTIL_TERM, node, stop};

#[test]
fn a_container_that_takes_too_much_memory_is_oom_killed_and_its_neighbour_works_on() {
    let _host = beside_others();
    let together = node();
    let pod = Pod::run(&together.node, "oom");
    let beside = pod.start("beside", &UNTIL_TERM);
    let mut config = pod.container_config("eater", &["sh", "-c", "exec tail /dev/zero"]);
    config.linux.as_mut().expect("it is Linux").resources =
        Some(api::LinuxContainerResources { memory_limit_in_bytes: 32 << 20, ..Default::default() });
    let eater = pod.start_with(&config);
    assert_eq!(eater.wait_for_exit().exit_code, 137);
    // containerd hears of the two in ways of their own.
    eventually(|| match eater.status().reason {
        reason if reason == "OOMKilled" => Ok(()),
        reason => Err(reason),
    });
    assert_eq!(beside.exec(&["true"]).code, 0);
    assert!(pod.is_ready());
}

#[test]
fn a_killed_vmm_ends_every_container_with_137_and_the_pod() {
    let _host = beside_others();
    let together = node();
    if !is_lazaret() {
        return;
    }
    let pod = Pod::run(&together.node, "killed");
    let containers = ["one", "two"].map(|name| pod.start(name, &UNTIL_TERM));
    let vmm = pod.pid();
    assert_eq!(fs::read_to_string(format!("/proc/{vmm}/comm")).expect("it runs").trim(), "lazaret-vmm");
    kill_process(vmm);
    for container in &containers {
        assert_eq!(container.wait_for_exit().exit_code, 137);
    }
    eventually(|| if pod.is_ready() { Err("it is ready".into()) } else { Ok(()) });
}

#[test]
fn pods_go_on_while_containerd_is_away_and_what_ended_meanwhile_is_told() {
    let _host = alone();
    let together = node();
    let node = &together.node;
    // Of runc's task, which has no process any more, containerd does not ask how it ended: it says 255.
    let code = if is_lazaret() { 137 } else { 255 };
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let pod = Pod::run(node, "restart");
        let stays = pod.start("stays", &["sh", "-c", "while :; do echo line; sleep 0.5; done"]);
        let ends = pod.start("ends", &UNTIL_TERM);
        let (pid, end) = (stays.pid(), ends.pid());
        node.stop(signal);
        kill_process(end);
        node.resume();
        assert_eq!(stays.status().state(), api::ContainerState::ContainerRunning, "after {signal}");
        assert_eq!(stays.pid(), pid);
        assert_eq!(stays.says(&["echo", "here"]), "here");
        assert_eq!(ends.wait_for_exit().exit_code, code, "after {signal}");
        assert!(pod.is_ready());
        // Its log goes on.
        let before = stays.logged("stdout").len();
        eventually(|| match stays.logged("stdout").len() {
            now if now > before => Ok(()),
            _ => Err(format!("no line after {signal}")),
        });
        let late = pod.start("late", &UNTIL_TERM);
        stop(node, &late);
    }
}
