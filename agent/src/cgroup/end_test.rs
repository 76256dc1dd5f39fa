use super::test_support::made;
use crate::container::test_support::processes_blocking;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

#[test]
fn all_that_is_in_a_cgroup_and_below_is_killed_and_the_cgroup_stays() {
    // A reaper of another test would collect this one's processes.
    let _alone = processes_blocking();
    let Some(made) = made("all_that_is_in_a_cgroup_and_below_is_killed_and_the_cgroup_stays") else { return };
    let below = made.cgroup.below("below");
    std::fs::create_dir(&below.0).unwrap();
    let children = [&made.cgroup, &below].map(|cgroup| {
        let child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        std::fs::write(cgroup.0.join("cgroup.procs"), child.id().to_string()).unwrap();
        child
    });
    let ended = made.cgroup.end();
    for mut child in children {
        // So that none is left when it was not killed.
        let _ = child.kill();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
    ended.unwrap();
    assert!(below.0.exists(), "what it has counted can be read");
    made.cgroup.end().unwrap();
    made.cgroup.kill().unwrap();
    assert!(!made.cgroup.0.exists());
    made.cgroup.end().unwrap();
}
