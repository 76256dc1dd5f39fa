use super::*;
use crate::cgroup::test_support::{in_directory, made};
use nix::sys::stat::Mode;
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

fn accounts() -> (tempfile::TempDir, Accounts) {
    let dir = tempfile::tempdir().unwrap();
    let accounts = Accounts::new("c1", in_directory(dir.path()));
    (dir, accounts)
}

#[tokio::test]
async fn the_last_count_of_oom_kills_stays_when_the_cgroup_has_gone() {
    let (dir, accounts) = accounts();
    fs::write(dir.path().join("memory.events"), "oom 2\noom_kill 2\n").unwrap();
    assert_eq!(accounts.last_oom_kills().get(), None);
    accounts.note_last_oom_kills().await;
    drop(dir);
    assert_eq!(accounts.last_oom_kills().get(), Some(&2));
    accounts.note_last_oom_kills().await;
    assert_eq!(accounts.last_oom_kills().get(), Some(&2));
}

#[tokio::test]
async fn who_waits_for_an_oom_kill_is_told_of_the_containers_end() {
    let Some(made) = made("who_waits_for_an_oom_kill_is_told_of_the_containers_end") else { return };
    let (dir, accounts) = accounts();
    // The machine need not have a memory controller: the kernel tells of changes in this file, too, and it counts no OOM kills.
    std::os::unix::fs::symlink(made.events(), dir.path().join("memory.events")).unwrap();
    let waiting = tokio::spawn(accounts.more_oom_kills(0));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished());
    drop(accounts);
    let error = waiting.await.unwrap().unwrap_err();
    assert!(matches!(&error, RpcError::NotFound(line) if line == "container c1 has been deleted"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_read_that_is_stuck_is_an_error_and_no_second_one_gets_stuck() {
    let (dir, accounts) = accounts();
    fs::write(dir.path().join("cgroup.controllers"), "").unwrap();
    // Whoever reads it waits until its writer has gone.
    let path = dir.path().join("memory.stat");
    nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
    let mut writer = None;
    for _ in 0..2 {
        let asked = tokio::spawn(accounts.stats());
        tokio::task::yield_now().await;
        writer = writer.or_else(|| Some(writer_beside_a_reader(&path)));
        // Time stands still while a thread blocks.
        tokio::time::advance(READ_TIMEOUT).await;
        let RpcError::Internal(line) = asked.await.unwrap().unwrap_err() else { panic!("it is not stuck") };
        assert_eq!(line, "container c1: its cgroup cannot be read: timed out");
    }
    fs::remove_file(&path).unwrap();
    fs::write(&path, "anon 7\n").unwrap();
    drop(writer);
    assert_eq!(accounts.stats().await.unwrap().memory.anon, 7);
}

/// Opens a pipe when it has a reader.
fn writer_beside_a_reader(path: &Path) -> fs::File {
    let begun = Instant::now();
    loop {
        match fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path) {
            Ok(writer) => return writer,
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENXIO)),
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "nobody reads");
        std::thread::yield_now();
    }
}
