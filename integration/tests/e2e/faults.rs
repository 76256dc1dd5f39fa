//! What fails, fails truthfully, and is cleaned up: `Container` checks at its end that nothing is left.

use std::fs;
use std::process::Command;

use lazaret_integration::command;
use lazaret_integration::container::Container;
use lazaret_integration::containerd::Containerd;
use lazaret_integration::faults::{kill_process, shim_of};
use lazaret_integration::leftovers::eventually;
use lazaret_integration::spec::Spec;
use lazaret_integration::{beside_others, is_lazaret};
use nix::sys::signal::Signal;

const READY: [&str; 3] = ["sh", "-c", "echo ready; exec sleep 1000"];

fn command_line(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

#[test]
fn a_killed_vmm_is_137_for_the_user_and_leaves_nothing() {
    let _host = beside_others();
    let container = Container::new("kill-vmm");
    let run = container.attach(&READY);
    run.wait_for("ready");
    let (pid, _) = container.status().expect("there is a task");
    if is_lazaret() {
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm")).expect("it runs").trim(), "lazaret-vmm");
    }
    kill_process(pid);
    assert_eq!(run.finish().code, 137);
}

#[test]
fn a_killed_vmm_ends_an_exec_with_137_too() {
    let _host = beside_others();
    let container = Container::new("kill-vmm-exec");
    container.detach(&["sleep", "1000"]);
    let exec = command::start(container.exec_command(&[], &READY));
    exec.wait_for("ready");
    let (pid, _) = container.status().expect("there is a task");
    kill_process(pid);
    assert_eq!(exec.finish().code, 137);
    container.wait_for_status("STOPPED");
    assert_eq!(container.delete(), 137);
}

#[test]
fn a_killed_shim_takes_its_sandbox_with_it_and_137_is_told() {
    let _host = beside_others();
    let events = command::start(command_line("ctr", &["events"]));
    let container = Container::new("kill-shim");
    let run = container.attach(&READY);
    run.wait_for("ready");
    let (pid, _) = container.status().expect("there is a task");
    kill_process(shim_of(&container.id));
    // ctr asked the shim that is gone; who listens to events hears how it ended.
    assert_ne!(run.finish().code, 0);
    eventually(|| {
        let told = events.out();
        let exit = told.lines().find(|line| line.contains("/tasks/exit") && line.contains(&container.id));
        match exit {
            Some(exit) if exit.contains("\"exit_status\":137") => Ok(()),
            other => Err(format!("exit event of {}: {other:?}", container.id)),
        }
    });
    eventually(|| {
        let gone = !fs::exists(format!("/proc/{pid}")).expect("/proc is mounted");
        if gone { Ok(()) } else { Err(format!("process {pid} of the task goes on without its shim")) }
    });
}

#[test]
fn a_kernel_panic_in_the_guest_is_137_and_its_last_words_are_logged() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_others();
    let containerd = Containerd::start("panic");
    let container = Container::new("panic")
        .flags(&["--privileged", "--privileged-without-host-devices"])
        .on(&containerd.socket());
    let run = container.run(&["sh", "-c", "echo c >/proc/sysrq-trigger"]);
    assert_eq!(run.code, 137, "{run}");
    // containerd copies the shim's log in its own time.
    eventually(|| {
        let log = containerd.log();
        let said = log.lines().any(|line| line.contains(&container.id) && line.contains("Kernel panic"));
        if said { Ok(()) } else { Err(format!("containerd's log: {log}")) }
    });
}

#[test]
fn a_container_that_asks_for_the_hosts_processes_is_refused() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_others();
    // In the guest they would be the agent's.
    let mut spec = Spec::busybox(&["/bin/sh", "-c", "kill -9 1"]);
    let namespaces = spec.json["linux"]["namespaces"].as_array_mut().expect("the default has namespaces");
    namespaces.retain(|namespace| namespace["type"] != "pid");
    let run = Container::new("kill-agent").config(&spec.write()).run(&[]);
    assert_ne!(run.code, 0, "{run}");
    assert!(run.err().contains("the host's pid namespace"), "{run}");
}

#[test]
fn a_container_goes_on_while_containerd_is_stopped_and_started() {
    let _host = beside_others();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut containerd = Containerd::start("restart");
        let container = Container::new("restart").on(&containerd.socket());
        container.detach(&[
            "sh",
            "-c",
            "trap 'exit 21' TERM; echo $$ >/run-once; while :; do sleep 1000 & wait; done",
        ]);
        let before = container.status();
        containerd.stop(signal);
        containerd.resume();
        assert_eq!(container.status(), before, "after {signal}");
        container.exec(&["sh", "-c", "until [ -s /run-once ]; do :; done"]).success();
        container.kill("SIGTERM");
        container.wait_for_status("STOPPED");
        assert_eq!(container.delete(), 21);
        container.remove();
        drop(container);
    }
}

#[test]
fn an_exit_while_containerd_is_away_is_told_when_it_is_back() {
    let _host = beside_others();
    let mut containerd = Containerd::start("away");
    let container = Container::new("away").on(&containerd.socket());
    container.detach(&["sleep", "1000"]);
    let (pid, _) = container.status().expect("there is a task");
    containerd.stop(Signal::SIGTERM);
    kill_process(pid);
    containerd.resume();
    // containerd may have cleaned it up by itself.
    eventually(|| match container.status() {
        Some((_, status)) if status == "RUNNING" => Err(format!("{} is still told to run", container.id)),
        _ => Ok(()),
    });
}
