//! Streams: complete, in order, and ended when they end.

use std::io::Write;
use std::process::Command;
use std::thread;
use std::time::Duration;

use lazaret_integration::beside_others;
use lazaret_integration::command::{self, COMMAND_TIMEOUT};
use lazaret_integration::container::Container;
use lazaret_integration::shared::Shared;
use nix::sys::signal::Signal;

const MIB: usize = 1024 * 1024;
/// 100 MiB through an emulated nested guest take their time.
const LARGE_OUTPUT_TIMEOUT: Duration = Duration::from_secs(300);

/// Bytes that repeat with no power of two, so that a lost or repeated block shows.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

fn sha256(bytes: &[u8]) -> String {
    let mut sum = command::start(Command::new("sha256sum"));
    let mut stdin = sum.stdin.take().expect("piped");
    stdin.write_all(bytes).expect("sha256sum reads");
    drop(stdin);
    sum.finish().success().out()
}

#[test]
fn a_hundred_mebibytes_go_in_complete() {
    let _host = beside_others();
    let container = Container::new("stdin");
    let mut run = container.attach(&["sha256sum"]);
    let mut stdin = run.stdin.take().expect("piped");
    let writer = thread::spawn(move || stdin.write_all(&pattern(100 * MIB)));
    let run = run.finish_within(LARGE_OUTPUT_TIMEOUT).success();
    writer.join().expect("no panic").expect("all was taken");
    assert_eq!(run.out(), sha256(&pattern(100 * MIB)));
}

#[test]
fn a_hundred_mebibytes_come_out_complete() {
    let _host = beside_others();
    let container = Container::new("stdout");
    let run = container.attach(&["sh", "-c", "dd if=/dev/zero bs=1M count=100 2>/dev/null | tr '\\0' x"]);
    let run = run.finish_within(LARGE_OUTPUT_TIMEOUT).success();
    assert_eq!(run.stdout.len(), 100 * MIB);
    assert!(run.stdout.iter().all(|&byte| byte == b'x'));
}

#[test]
fn closing_stdin_is_its_end() {
    let _host = beside_others();
    let container = Container::new("eof");
    let mut run = container.attach(&["sh", "-c", "echo ready; cat; echo the end"]);
    run.wait_for("ready");
    run.write("a line without an end");
    run.stdin = None;
    assert_eq!(run.finish().success().out(), "ready\na line without an endthe end\n");
}

#[test]
fn a_client_that_goes_away_is_no_end_of_stdin() {
    let _host = beside_others();
    let container = Container::new("client-gone");
    let mut run = command::start(
        container.run_command(&[], &["sh", "-c", "echo ready; read line; echo $line >/got; sleep 1000"]),
    );
    run.wait_for("ready");
    run.signal(Signal::SIGKILL);
    run.stdin = None;
    assert_eq!(run.finish().code, 137, "that was the client");
    assert_eq!(container.status().expect("the container goes on").1, "RUNNING");
    let read = container.exec(&["sh", "-c", "test -e /got && echo read an end || echo still waiting"]);
    assert_eq!(read.success().out(), "still waiting\n");

    let mut attached = container.ctr(&["task", "attach"]);
    attached.arg(&container.id);
    let mut attached = command::start(attached);
    attached.write("from another client\n");
    let read = container.exec(&["sh", "-c", "until [ -s /got ]; do :; done; cat /got"]);
    assert_eq!(read.success().out(), "from another client\n");
}

#[test]
fn without_io_a_container_runs_all_the_same() {
    let _host = beside_others();
    let run = Container::new("null-io")
        .flags(&["--null-io"])
        .attach(&["sh", "-c", "cat; echo unheard; exit 9"])
        .finish_within(COMMAND_TIMEOUT);
    assert_eq!((run.out().as_str(), run.code), ("", 9));
}

/// Streams of an exec.
mod exec {
    use super::*;

    static SANDBOX: Shared<Container> = Shared::new(module_path!(), || {
        let container = Container::new("exec-streams");
        container.detach(&["sleep", "1000"]);
        container
    });

    #[test]
    fn a_last_word_before_the_exit_is_not_lost() {
        let _host = beside_others();
        let container = SANDBOX.sandbox();
        for number in 0..10 {
            let run =
                container.exec(&["sh", "-c", &format!("echo out {number}; echo err {number} >&2")]).success();
            assert_eq!((run.out(), run.err()), (format!("out {number}\n"), format!("err {number}\n")));
        }
    }

    #[test]
    fn a_background_child_that_keeps_stdout_open_does_not_hold_the_exit_back() {
        let _host = beside_others();
        let container = SANDBOX.sandbox();
        let run = container.exec(&["sh", "-c", "sleep 500 & echo done; exit 6"]);
        assert_eq!((run.out().as_str(), run.code), ("done\n", 6));
        let run = container.exec(&["sh", "-c", "ps | grep '[s]leep 500'"]);
        assert_eq!(run.code, 0, "the child goes on: {run}");
    }
}
