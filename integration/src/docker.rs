//! A container whose user uses the private Docker daemon of its sandbox.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::command::{self, Finished};
use crate::container::{Container, DEBIAN};

/// How long a handful of docker commands may take: in an emulated guest each takes seconds.
pub const DOCKER_TIMEOUT: Duration = Duration::from_secs(400);

/// A Debian with the host's docker CLI and its plugins, which need a C library only, and the test images at `/images`.
pub fn client(promise: &str) -> Container {
    let mounts = ["/usr/bin/docker:/usr/bin/docker", "/var/lib/lazaret-images:/images"].map(|mount| {
        let (from, to) = mount.split_once(':').expect("from:to");
        format!("--mount=type=bind,src={from},dst={to},options=bind:ro")
    });
    let plugins = "--mount=type=bind,src=/usr/libexec/docker,dst=/usr/libexec/docker,options=rbind:ro";
    let memory = ["--annotation", "io.lazaret.vm.memory=2Gi"];
    let container = Container::new(promise).image(DEBIAN).flags(&mounts.each_ref().map(String::as_str));
    container.flags(&[plugins]).flags(&memory)
}

/// Runs a script in a client's container, to its end or to the first command that fails.
#[track_caller]
pub fn sh(client: &Container, script: &str) -> Finished {
    command::start(client.exec_command(&[], &["bash", "-ec", script])).finish_within(DOCKER_TIMEOUT)
}

/// The dockerds that the host has beside those of tests.
#[track_caller]
pub fn dockerds_of_host() -> String {
    command::host("sh", &["-c", "pgrep -x -a dockerd | grep -v lazaret-test-dockerd || true"])
}

/// Gives the daemon the image `busybox`.
#[track_caller]
pub fn load_busybox(client: &Container) {
    let loaded = sh(client, "docker load --input /images/busybox.tar").success().out();
    assert_eq!(loaded, "Loaded image: busybox:latest\n");
}

/// The file behind the daemon's disk, among the VMM's descriptors; `None` before the daemon's first start.
pub fn disk(client: &Container) -> Option<PathBuf> {
    let (pid, _) = client.status().expect("there is a task");
    let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("the VMM runs");
    files
        .map(|file| file.expect("the VMM runs").path())
        .find(|file| fs::read_link(file).is_ok_and(|target| target.starts_with("/var/lib/lazaret")))
}

/// What that file takes of the host's disk: blocks of 512 bytes.
pub fn disk_blocks(client: &Container) -> u64 {
    fs::metadata(disk(client).expect("the VMM has the disk open")).expect("it is open").blocks()
}
