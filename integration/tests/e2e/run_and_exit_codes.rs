//! `ctr run --rm`: what comes out, and with which code.

use std::fs;

use lazaret_integration::container::Container;
use lazaret_integration::{RUNC, beside_others, is_lazaret};

#[test]
fn output_is_exact_and_stderr_stays_apart() {
    let _host = beside_others();
    let run =
        Container::new("output").run(&["sh", "-c", "printf 'out\\n\\0end'; printf 'err' >&2"]).success();
    assert_eq!(run.stdout, b"out\n\0end");
    assert_eq!(run.stderr, b"err");
}

#[test]
fn the_kernel_is_not_the_hosts() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_others();
    let run =
        Container::new("kernel").run(&["cat", "/proc/version", "/proc/sys/kernel/random/boot_id"]).success();
    let out = run.out();
    let (version, boot) = out.trim().rsplit_once('\n').expect("two files");
    assert_ne!(version, fs::read_to_string("/proc/version").expect("/proc is mounted").trim());
    assert_ne!(boot, fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("/proc is mounted").trim());
}

#[test]
fn success_is_0() {
    let _host = beside_others();
    Container::new("true").run(&["true"]).success();
}

#[test]
fn exit_code_of_the_command_comes_through() {
    let _host = beside_others();
    let run = Container::new("exit7").run(&["sh", "-c", "exit 7"]);
    assert_eq!(run.code, 7, "{run}");
    assert_eq!(run.err(), "", "ctr itself has nothing to say about it");
}

#[test]
fn a_shell_that_finds_no_such_command_is_127() {
    let _host = beside_others();
    let run = Container::new("exit127").run(&["sh", "-c", "no-such-command"]);
    assert_eq!(run.code, 127, "{run}");
    assert!(run.err().contains("no-such-command: not found"), "{run}");
}

#[test]
fn a_command_that_is_not_there_fails_as_under_runc_and_is_named() {
    let _host = beside_others();
    let ours = Container::new("no-command").run(&["no-such-command"]);
    let runc = Container::new("no-command").under(RUNC).run(&["no-such-command"]);
    assert_eq!(ours.code, runc.code, "{ours}\n{runc}");
    assert!(ours.err().contains("no-such-command"), "{ours}");
    assert_eq!(ours.err().trim().lines().count(), 1, "one line: {ours}");
}

#[test]
fn sigkill_is_137() {
    let _host = beside_others();
    let container = Container::new("sigkill");
    let run = container.attach(&["sh", "-c", "echo started; exec sleep 1000"]);
    run.wait_for("started");
    container.kill("SIGKILL");
    assert_eq!(run.finish().code, 137);
}

#[test]
fn sigterm_reaches_the_command_and_its_143_comes_back() {
    let _host = beside_others();
    let container = Container::new("sigterm");
    let script = "trap 'echo stopping; exit 143' TERM; echo started; while :; do sleep 1000 & wait; done";
    let run = container.attach(&["sh", "-c", script]);
    run.wait_for("started");
    container.kill("SIGTERM");
    let run = run.finish();
    assert_eq!(run.code, 143, "{run}");
    assert_eq!(run.out(), "started\nstopping\n");
}

#[test]
fn the_longest_id_that_containerd_accepts_runs() {
    let _host = beside_others();
    let mut container = Container::new("longest-id");
    container.id = format!("{:x<76}", container.id);
    let run = container.run(&["echo", "ran"]).success();
    assert_eq!(run.out(), "ran\n");
}
