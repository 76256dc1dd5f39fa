//! With a file of a real cgroup that the kernel notifies in the same way, `populated` of `cgroup.events`: to be killed for want of
//! memory takes a controller that not every machine has in version 2.

use super::*;
use crate::cgroup::test_support::made;
use crate::container::test_support::processes;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_change_of_the_kernels_is_noticed() {
    // A reaper of another test would collect this one's process.
    let _alone = processes().await;
    let Some(made) = made("a_change_of_the_kernels_is_noticed") else { return };
    let events = made.events();
    let mut waiting = Box::pin(more(&events, "populated", 0));
    let early = timeout(Duration::from_millis(50), &mut waiting).await;
    assert!(early.is_err(), "it does not wait: {early:?}");
    let mut child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
    std::fs::write(made.cgroup.0.join("cgroup.procs"), child.id().to_string()).unwrap();
    let noticed = timeout(LONG, waiting).await;
    // Also one that was before.
    let before = timeout(LONG, more(&events, "populated", 0)).await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(noticed.unwrap().unwrap(), 1);
    assert_eq!(before.unwrap().unwrap(), 1);
}

#[tokio::test]
async fn only_a_greater_number_is_told() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("memory.events"), "low 9\noom 8\noom_kill 3\noom_group_kill 7\n").unwrap();
    let cgroup = Cgroup(dir.path().to_path_buf());
    assert_eq!(cgroup.oom_kills().await.unwrap(), 3);
    let gone = Cgroup(dir.path().join("gone"));
    assert_eq!(gone.more_oom_kills(0).await.unwrap_err().kind(), io::ErrorKind::NotFound);
}
