use super::*;
use crate::container::test_support::processes;
use std::process::Stdio;

fn sh(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).stdin(Stdio::null());
    command
}

#[tokio::test]
async fn exit_codes_and_signals_are_counted_as_a_shell_does() {
    let _alone = processes().await;
    let reaper = Reaper::start().unwrap();
    for (script, status) in
        [("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137), ("kill -40 $$", 168)]
    {
        let child = reaper.spawn(&mut sh(script)).unwrap();
        assert_eq!(child.exit.await.unwrap().status, status, "{script}");
    }
}

#[tokio::test]
async fn an_exit_that_comes_before_its_pid_is_known_is_kept_for_who_expects_it() {
    let _alone = processes().await;
    let reaper = Reaper::start().unwrap();
    let expectation = reaper.expect();
    let pid = i32::try_from(sh("exit 9").spawn().unwrap().id()).unwrap();
    // The exit of a later process says that the earlier one, which was waited for, has been collected.
    let marker = reaper.spawn(&mut sh(&format!("while [ -d /proc/{pid} ]; do :; done"))).unwrap();
    marker.exit.await.unwrap();
    let child = expectation.claim(pid);
    assert_eq!(child.exit.await.unwrap().status, 9);
    assert_eq!(child.handle.signal(libc::SIGKILL), Err(Errno::ESRCH));
}

#[test]
fn unclaimed_exits_are_bounded_and_forgotten_with_the_expectation() {
    let reaper = Arc::new(Reaper(Mutex::default()));
    reaper.table().ended(1, 0);
    assert!(reaper.table().unclaimed.is_empty());
    let expectation = reaper.expect();
    for pid in 0..i32::try_from(MAX_UNCLAIMED).unwrap() + 5 {
        reaper.table().ended(pid, 0);
    }
    assert_eq!(reaper.table().unclaimed.len(), MAX_UNCLAIMED);
    assert_eq!(reaper.table().unclaimed.front().unwrap().0, 5);
    drop(expectation);
    assert!(reaper.table().unclaimed.is_empty());
}

#[tokio::test]
async fn a_signal_reaches_a_running_process_and_no_ended_one() {
    let _alone = processes().await;
    let reaper = Reaper::start().unwrap();
    let child = reaper.spawn(&mut sh("exec sleep 1000")).unwrap();
    child.handle.signal(libc::SIGTERM).unwrap();
    assert_eq!(child.exit.await.unwrap().status, 143);
    assert_eq!(child.handle.signal(libc::SIGTERM), Err(Errno::ESRCH));
}
