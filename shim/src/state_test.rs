use super::*;
use std::process::{Command, Stdio};

fn state() -> (tempfile::TempDir, StateDir) {
    let root = tempfile::tempdir().unwrap();
    let state = StateDir::new(&root.path().join("lazaret"), "default", "c1");
    (root, state)
}

#[test]
fn what_was_made_is_removed_with_its_empty_parents() {
    let (root, state) = state();
    state.create().unwrap();
    fs::create_dir_all(state.shared().join("c1/rootfs")).unwrap();
    fs::create_dir_all(state.shared().join("c1/mounts/0")).unwrap();
    fs::write(state.shared().join("c1/mounts/1"), "").unwrap();
    fs::write(state.console_log(), "Linux").unwrap();
    std::os::unix::net::UnixListener::bind(state.docker_socket()).unwrap();
    state.save(&Record::default()).unwrap();
    state.remove().unwrap();
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    state.remove().unwrap();
}

#[test]
fn another_sandboxs_state_stays() {
    let (root, state) = state();
    let other = StateDir::new(&root.path().join("lazaret"), "default", "c2");
    state.create().unwrap();
    other.create().unwrap();
    state.remove().unwrap();
    assert!(other.shared().is_dir());
}

#[test]
fn what_a_forgotten_mount_holds_is_never_removed() {
    let (_root, state) = state();
    state.create().unwrap();
    let precious = state.shared().join("c1/rootfs/data");
    fs::create_dir_all(precious.parent().unwrap()).unwrap();
    fs::write(&precious, "precious").unwrap();
    assert!(state.remove().is_err());
    assert_eq!(fs::read_to_string(precious).unwrap(), "precious");
}

#[test]
fn what_a_guest_may_have_planted_leads_nowhere() {
    let (root, state) = state();
    state.create().unwrap();
    let precious = root.path().join("precious");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("file"), "precious").unwrap();
    let shared = state.shared();
    std::os::unix::fs::symlink(&precious, shared.join("x")).unwrap();
    fs::create_dir(shared.join("y")).unwrap();
    std::os::unix::fs::symlink(&precious, shared.join("y/mounts")).unwrap();
    std::os::unix::fs::symlink(&precious, shared.join("y/rootfs")).unwrap();
    fs::write(shared.join("file"), "").unwrap();
    state.remove().unwrap();
    assert!(!state.path().exists());
    assert_eq!(fs::read_to_string(precious.join("file")).unwrap(), "precious");
}

#[test]
fn a_second_sandbox_of_the_name_is_refused() {
    let (_root, state) = state();
    state.create().unwrap();
    assert_eq!(state.create().unwrap_err().kind(), ErrorKind::AlreadyExists);
}

#[test]
fn a_record_is_read_as_it_was_written() {
    let (_root, state) = state();
    state.create().unwrap();
    assert_eq!(state.load(), None);
    let record = Record {
        vmm: Some(ProcessId { pid: 7, start_time: 8 }),
        cgroups: vec!["/sys/fs/cgroup/a".into()],
        ..Record::default()
    };
    state.save(&record).unwrap();
    assert_eq!(state.load(), Some(record));
}

#[test]
fn a_record_of_an_older_shim_is_read() {
    let (_root, state) = state();
    state.create().unwrap();
    let old = r#"{"shim":null,"ending":false,"vmm":null,"socket":"","cgroups":[],"vcpus":1,"memory_mib":2}"#;
    fs::write(state.path().join("state.json"), old).unwrap();
    assert_eq!(state.load(), Some(Record { vcpus: 1, memory_mib: 2, ..Record::default() }));
}

#[test]
fn only_the_process_that_was_recorded_is_killed() {
    let mut child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
    let found = ProcessId::of(i32::try_from(child.id()).unwrap()).unwrap();
    let recycled = ProcessId { start_time: found.start_time + 1, ..found };
    recycled.kill(1000).unwrap();
    assert!(found.is_running() && !recycled.is_running());
    assert_eq!(found.wait(0).unwrap_err().kind(), ErrorKind::TimedOut);
    found.kill(5000).unwrap();
    assert!(!found.is_running());
    child.wait().unwrap();
    found.kill(1000).unwrap();
}
