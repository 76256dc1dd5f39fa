//! A task from its creation to its removal: each step tells the truth.

use std::fs;

use lazaret_integration::command;
use lazaret_integration::container::{BUSYBOX, Container};
use lazaret_integration::shared::Shared;
use lazaret_integration::{beside_others, is_lazaret};

const FOREVER: [&str; 3] =
    ["sh", "-c", "trap 'exit 3' TERM; echo >/trap-is-set; while :; do sleep 1000 & wait; done"];

#[test]
fn a_detached_task_runs_until_it_is_killed_and_gives_its_code_on_delete() {
    let _host = beside_others();
    let container = Container::new("detached");
    container.detach(&FOREVER);
    let (pid, status) = container.status().expect("there is a task");
    assert_eq!(status, "RUNNING");
    assert!(fs::exists(format!("/proc/{pid}")).expect("/proc is mounted"), "{pid} is a process of the host");

    container.exec(&["sh", "-c", "until [ -e /trap-is-set ]; do :; done"]).success();
    container.kill("SIGTERM");
    container.wait_for_status("STOPPED");
    assert_eq!(container.delete(), 3);
    assert_eq!(container.status(), None);
    assert_ne!(container.task("delete", &[]).code, 0, "there is nothing left to delete");
}

#[test]
fn an_exec_in_a_stopped_task_is_refused() {
    let _host = beside_others();
    let container = Container::new("exec-late");
    container.detach(&["true"]);
    container.wait_for_status("STOPPED");
    let run = container.exec(&["true"]);
    assert_ne!(run.code, 0, "{run}");
}

#[test]
fn a_kill_of_a_stopped_task_finds_no_process() {
    let _host = beside_others();
    let container = Container::new("kill-late");
    container.detach(&["true"]);
    container.wait_for_status("STOPPED");
    let run = container.task("kill", &[]);
    assert_ne!(run.code, 0, "{run}");
    // From containerd 2.1 on, ctr leaves the name of the code out.
    assert!(run.err().contains("process already finished"), "{run}");
}

#[test]
fn a_running_task_is_not_deleted_without_force() {
    let _host = beside_others();
    let container = Container::new("delete-early");
    container.detach(&FOREVER);
    let run = container.task("delete", &[]);
    assert_ne!(run.code, 0, "{run}");
    assert_eq!(container.status().expect("it is still there").1, "RUNNING");
    container.task("delete", &["--force"]);
    assert_eq!(container.status(), None);
}

#[test]
fn a_container_can_be_started_again() {
    let _host = beside_others();
    let container = Container::new("again");
    container.detach(&["sh", "-c", "echo x >>/runs; exec sleep 1000"]);
    // The task runs as soon as it is detached; that its first command has run is another matter.
    container.exec(&["sh", "-c", "until [ -s /runs ]; do :; done"]).success();
    container.task("delete", &["--force"]);
    container.task("start", &["--detach"]).success();
    let run = container.exec(&["sh", "-c", "until [ $(wc -l </runs) = 2 ]; do :; done; wc -l </runs"]);
    assert_eq!(run.success().out().trim(), "2", "the snapshot is the same, the process a new one");
}

#[test]
fn a_created_container_waits_for_its_start() {
    let _host = beside_others();
    let container = Container::new("created");
    let mut create = container.ctr(&["container", "create", "--runtime", &container.runtime]);
    // In containerd 1.6, ctr would take a `-c` of the command for its own.
    create.args([BUSYBOX, &container.id, "echo", "hello"]);
    command::run(create).success();
    assert_eq!(container.status(), None, "a container is no task yet");
    let run = container.task("start", &[]);
    assert_eq!((run.out().as_str(), run.code), ("hello\n", 0), "{run}");
    container.task("delete", &[]);
    command::host("ctr", &["container", "delete", &container.id]);
}

#[test]
fn a_paused_task_stands_still_and_goes_on_and_sigkill_ends_it() {
    let _host = beside_others();
    let container = Container::new("paused");
    container.detach(&["sh", "-c", "trap 'exit 6' TERM; while :; do sleep 0.1; done"]);
    container.task("pause", &[]).success();
    container.wait_for_status("PAUSED");
    let refused = container.exec(&["true"]);
    assert!(refused.code != 0 && refused.err().contains("paused"), "{refused}");
    assert_ne!(container.task("pause", &[]).code, 0, "it is paused already");
    container.task("resume", &[]).success();
    container.wait_for_status("RUNNING");
    container.exec(&["true"]).success();
    container.task("pause", &[]).success();
    container.kill("SIGKILL");
    container.wait_for_status("STOPPED");
    assert_eq!(container.delete(), 137);
}

#[test]
fn when_the_exit_is_told_nothing_of_the_sandbox_runs_and_its_numbers_are_still_there() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_others();
    let container = Container::new("end");
    container.detach(&["sleep", "1000"]);
    let (pid, _) = container.status().expect("there is a task");
    container.kill("SIGKILL");
    container.wait_for_status("STOPPED");
    assert!(fs::metadata(format!("/proc/{pid}")).is_err(), "the VMM still runs");
    let numbers = container.task("metrics", &[]).success().out();
    assert!(numbers.contains("cpu.usage_usec"), "{numbers}");
    assert_eq!(container.delete(), 137);
}

#[test]
fn kill_all_ends_every_process() {
    let _host = beside_others();
    let container = Container::new("kill-all");
    container.detach(&["sh", "-c", "sleep 1000 & sleep 1000 & wait; exit 4"]);
    container.task("kill", &["--all", "--signal", "SIGKILL"]).success();
    container.wait_for_status("STOPPED");
}

/// What is done to a task that runs, and goes on running.
mod running {
    use super::*;

    static SANDBOX: Shared<Container> = Shared::new(module_path!(), || {
        let flags = ["--cgroup", "/lazaret-test/pid", "--env", "OF=task"];
        let container = Container::new("running").flags(&flags);
        container.detach(&["sh", "-c", "echo here >/file; exec sleep 1000"]);
        container
    });

    #[test]
    fn an_exec_has_its_own_output_and_code() {
        let _host = beside_others();
        let container = SANDBOX.sandbox();
        let run = container.exec(&["sh", "-c", "echo out; echo err >&2; exit 5"]);
        assert_eq!((run.out().as_str(), run.err().as_str(), run.code), ("out\n", "err\n", 5));
        let (_, status) = container.status().expect("the task goes on");
        assert_eq!(status, "RUNNING");
    }

    #[test]
    fn an_exec_is_in_the_container_of_the_task() {
        let _host = beside_others();
        let container = SANDBOX.sandbox();
        let run = container.exec(&[
            "sh",
            "-c",
            "until [ -s /file ]; do :; done; cat /file; tr '\\0' ' ' </proc/1/cmdline; echo $OF",
        ]);
        assert_eq!(run.success().out(), "here\nsleep 1000 task\n");
    }

    #[test]
    fn an_exec_of_a_command_that_is_not_there_fails_and_the_task_goes_on() {
        let _host = beside_others();
        let container = SANDBOX.sandbox();
        let run = container.exec(&["no-such-command"]);
        assert_ne!(run.code, 0, "{run}");
        assert!(run.err().contains("no-such-command"), "{run}");
        container.exec(&["true"]).success();
    }

    #[test]
    fn the_pid_is_a_process_in_the_sandboxs_cgroup_and_network() {
        let _host = beside_others();
        let container = SANDBOX.sandbox();
        let (pid, _) = container.status().expect("there is a task");
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("a live process");
        let below = if is_lazaret() { "/vm" } else { "" };
        assert_eq!(cgroup.trim(), format!("0::/lazaret-test/pid{below}"));
        let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).expect("a live process");
        assert_ne!(network(&pid.to_string()), network("self"));
    }

    #[test]
    fn the_processes_of_a_task_are_listed() {
        let _host = beside_others();
        let container = SANDBOX.sandbox();
        let (pid, _) = container.status().expect("there is a task");
        let list = container.task("ps", &[]).success().out();
        assert!(list.lines().any(|line| line.starts_with(&pid.to_string())), "{pid} in {list}");
    }

    #[test]
    fn the_numbers_of_a_task_are_told() {
        let _host = beside_others();
        let container = SANDBOX.sandbox();
        let numbers = container.task("metrics", &[]).success().out();
        let of = |name: &str| {
            let line = numbers.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
            value.unwrap_or_else(|| panic!("{name} in {numbers}"))
        };
        // Other tests run commands in it.
        assert!((1..=20).contains(&of("pids.current")) && of("cpu.usage_usec") > 0, "{numbers}");
        assert!((4096..256 << 20).contains(&of("memory.usage ")), "{numbers}");
    }
}
