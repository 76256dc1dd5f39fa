use super::*;
use crate::volume::{Capacity, VolumeError, VolumeName, Volumes};
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn ended(console: &[&str]) -> Ended {
    let console = console.iter().map(|line| (*line).to_owned()).collect();
    Ended { reason: "the guest reset".into(), requested: false, console }
}

#[test]
fn a_panic_is_told_by_its_first_line_and_the_agents_last_before_it() {
    let word = ended(&[
        "lazaret-agent: ready",
        "lazaret-agent: cannot go on",
        "[    3.1] Kernel panic - not syncing: Attempted to kill init!",
        "[    3.2]  ? panic+0x2fb/0x310",
        "[    3.3]  </TASK>",
    ]);
    assert_eq!(
        word.line(),
        "the guest reset; its console: lazaret-agent: cannot go on | Kernel panic - not syncing: Attempted to kill init!"
    );
    assert!(word.console_line().contains("panic+0x2fb/0x310 | </TASK>"));
}

#[test]
fn without_a_panic_the_last_lines_are_told() {
    assert_eq!(ended(&["a", "", "b", "c ", "[x] d"]).line(), "the guest reset; its console: b | c | [x] d");
    assert_eq!(ended(&[]).line(), "the guest reset");
}

#[test]
fn a_volume_is_free_as_soon_as_its_vmm_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let binary = directory.path().join("vmm");
    fs::write(&binary, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    let volumes = Volumes::new(directory.path(), directory.path());
    let name = VolumeName::parse("cache").unwrap();
    let acquire = || volumes.acquire(&name, Capacity::New(64));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let volume = acquire().await.unwrap();
        let (vm, _incoming) = Vm::spawn(Place { binary, network: None, cgroup: None }).unwrap();
        let config = VmConfig {
            vcpus: 1,
            memory_mib: 64,
            cmdline: String::new(),
            disks: Vec::new(),
            shared: None,
            vsock: None,
        };
        vm.boot(config, &[volume.as_fd()]).await.unwrap();
        drop(volume);
        assert!(matches!(acquire().await, Err(VolumeError::InUse { .. })), "it is the VMM's now");
        let pid = nix::unistd::Pid::from_raw(vm.pid().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).unwrap();
        vm.ended().wait_for(Option::is_some).await.unwrap();
        acquire().await.unwrap();
    });
}
