use super::*;
use crate::volume::{Capacity, VolumeError, VolumeName, Volumes};
use std::fs;
use std::os::unix::fs::PermissionsExt;

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
            nics: 0,
        };
        vm.boot(config, &[(Name::Disk(0), volume.as_fd())]).await.unwrap();
        drop(volume);
        assert!(matches!(acquire().await, Err(VolumeError::InUse { .. })), "it is the VMM's now");
        let pid = nix::unistd::Pid::from_raw(vm.pid().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).unwrap();
        vm.ended().wait_for(Option::is_some).await.unwrap();
        acquire().await.unwrap();
    });
}

#[test]
fn a_vmm_that_does_not_stop_is_killed_and_reaped_as_it_was_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let binary = directory.path().join("vmm");
    // It reads nothing.
    fs::write(&binary, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (vm, _incoming) = Vm::spawn(Place { binary, network: None, cgroup: None }).unwrap();
        vm.stop().await;
        assert!(!Path::new(&format!("/proc/{}", vm.pid())).exists());
        let exit_report = vm.ended().borrow().clone().unwrap();
        assert!(exit_report.requested, "{}", exit_report.reason);
        assert!(exit_report.reason.contains("signal 9"), "{}", exit_report.reason);
    });
}
