//! Bad input gives the user of `ctr` one line that says what is wrong, a code, and leaves nothing behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lazaret_integration::command;
use lazaret_integration::container::Container;
use lazaret_integration::docker::{client, disk, load_busybox, sh};
use lazaret_integration::leftovers::{Snapshot, eventually};
use lazaret_integration::spec::Spec;
use lazaret_integration::{alone, beside_others, is_lazaret};

const KERNEL: &str = "/usr/local/share/lazaret/vmlinux";
const ROOT: &str = "/usr/local/share/lazaret/base.erofs";
const CONFIG: &str = "/etc/lazaret/config.toml";
const KVM: &str = "/dev/kvm";

/// Fails to start, and says why in one line that holds each of `expected`.
#[track_caller]
fn refused(container: &Container, args: &[&str], expected: &[&str]) {
    let run = container.run(args);
    assert_eq!(run.code, 1, "{run}");
    assert_eq!(run.out(), "", "nothing ran");
    assert_eq!(run.err().trim().lines().count(), 1, "one line: {run}");
    for text in expected {
        assert!(run.err().contains(text), "{text:?} in {run}");
    }
}

/// A file of the host put aside, and put back at the end.
struct Aside {
    path: PathBuf,
    kept: Option<PathBuf>,
}

impl Aside {
    fn put(path: &str) -> Self {
        let path = PathBuf::from(path);
        let kept = path.with_extension("put-aside");
        let kept = fs::rename(&path, &kept).is_ok().then_some(kept);
        Self { path, kept }
    }

    /// Puts other content into its place.
    fn replace(path: &str, content: &[u8]) -> Self {
        let aside = Self::put(path);
        fs::create_dir_all(aside.path.parent().expect("an absolute path")).expect("a folder");
        fs::write(&aside.path, content).expect("a file");
        aside
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        if let Some(kept) = &self.kept {
            fs::rename(kept, &self.path).expect("it goes back to where it was");
        }
    }
}

/// `true` must be refused with this file as it is now, and run again when it is back.
#[track_caller]
fn refused_without(aside: impl FnOnce() -> Aside, name: &str, expected: &[&str]) {
    if !is_lazaret() {
        return;
    }
    let _host = alone();
    let before = Snapshot::take();
    let aside = aside();
    refused(&Container::new(name), &["true"], expected);
    drop(aside);
    before.assert_nothing_new();
}

/// The first half of a file of the host.
fn half(path: &str) -> Vec<u8> {
    let whole = fs::read(Path::new(path)).expect("it is installed");
    whole[..whole.len() / 2].to_vec()
}

#[test]
fn a_missing_kernel_is_named() {
    refused_without(|| Aside::put(KERNEL), "no-kernel", &[KERNEL, "No such file"]);
}

#[test]
fn a_truncated_kernel_is_named() {
    refused_without(|| Aside::replace(KERNEL, &half(KERNEL)), "half-kernel", &[KERNEL]);
}

#[test]
fn a_kernel_that_is_none_is_named() {
    refused_without(|| Aside::replace(KERNEL, b"no kernel at all"), "false-kernel", &[KERNEL]);
}

#[test]
fn a_missing_root_is_named() {
    refused_without(|| Aside::put(ROOT), "no-root", &[ROOT, "No such file"]);
}

#[test]
fn a_truncated_root_does_not_hang() {
    refused_without(|| Aside::replace(ROOT, &half(ROOT)[..4096]), "half-root", &[ROOT]);
}

#[test]
fn an_absent_kvm_is_named() {
    refused_without(|| Aside::put(KVM), "no-kvm", &[KVM]);
}

#[test]
fn a_kvm_that_is_no_kvm_is_named() {
    refused_without(|| Aside::replace(KVM, b""), "false-kvm", &[KVM]);
}

#[test]
fn an_unknown_configuration_key_is_named() {
    refused_without(|| Aside::replace(CONFIG, b"no-such-key = 1\n"), "false-key", &[CONFIG, "no-such-key"]);
}

#[test]
fn a_configuration_that_is_no_toml_is_named() {
    refused_without(|| Aside::replace(CONFIG, b"= = =\n"), "false-toml", &[CONFIG]);
}

#[test]
fn a_docker_disk_beyond_the_hosts_budget_is_refused_to_the_client_by_the_keys_name() {
    if !is_lazaret() {
        return;
    }
    let _host = alone();
    let _config = Aside::replace(CONFIG, b"boot_timeout_s = 600\ndocker_disks_mib = 100\n");
    let client = client("docker-budget");
    client.detach(&["sleep", "1000"]);
    let asked = sh(&client, "docker ps");
    let why = "have 100 MiB together (docker_disks_mib), with no room for one of 20480 MiB";
    assert!(asked.code != 0 && asked.err().contains(why), "{asked}");
    assert_eq!(disk(&client), None);
    assert_eq!(client.exec(&["echo", "lives"]).success().out(), "lives\n");
    let volume = ["--annotation", "io.lazaret.docker.volume=too-much"];
    refused(&Container::new("volume-budget").flags(&volume), &["true"], &["docker_disks_mib"]);
    assert!(!Path::new("/var/lib/lazaret/volumes/too-much").exists());
}

/// A file system in memory, mounted until it is dropped.
struct SmallFileSystem(&'static str);

impl SmallFileSystem {
    fn mount(path: &'static str, size: &str) -> Self {
        fs::create_dir_all(path).expect("a folder");
        command::host("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "none", path]);
        Self(path)
    }

    fn resize(&self, size: &str) {
        command::host("mount", &["-o", &format!("remount,size={size}"), self.0]);
    }

    fn free_blocks(&self) -> u64 {
        let free = command::host("stat", &["--file-system", "--format=%f", self.0]);
        free.trim().parse().expect("a number of blocks")
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        // The disk of a sandbox that a failed test has left is still open.
        let _ = Command::new("umount").args(["--lazy", self.0]).status();
        let _ = fs::remove_dir(self.0);
    }
}

#[test]
fn a_full_disk_directory_is_told_to_the_client_and_has_its_room_back_when_the_sandbox_ends() {
    if !is_lazaret() {
        return;
    }
    let _host = alone();
    let disks = SmallFileSystem::mount("/var/lib/lazaret-test-disks", "8m");
    let config = format!("boot_timeout_s = 600\ndisk_dir = \"{}\"\n", disks.0);
    let _config = Aside::replace(CONFIG, config.as_bytes());
    let client = client("docker-no-room");
    client.detach(&["sleep", "1000"]);
    let asked = sh(&client, "docker ps");
    let why = "in /var/lib/lazaret-test-disks: its file system is full: 8 MiB are free, and a Docker disk takes at least 16; \
        disk_dir of config.toml sets the directory";
    assert!(asked.code != 0 && asked.err().contains(why), "{asked}");
    assert_eq!(client.exec(&["echo", "lives"]).success().out(), "lives\n");

    disks.resize("256m");
    let before = disks.free_blocks();
    // The daemon that was refused a disk answers with the reason for a second.
    eventually(|| match sh(&client, "docker ps") {
        asked if asked.code == 0 => Ok(()),
        asked => Err(asked.to_string()),
    });
    load_busybox(&client);
    assert!(disks.free_blocks() < before, "the image is on the host's disk");
    client.remove();
    eventually(|| match disks.free_blocks() {
        now if now == before => Ok(()),
        now => Err(format!("{now} blocks are free, of {before} before")),
    });
}

#[test]
fn absurd_sizes_are_refused_by_name() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_others();
    let absurd = [
        ("vcpus", "0"),
        ("vcpus", "-1"),
        ("vcpus", "4096"),
        ("vcpus", "two"),
        ("memory", "0"),
        ("memory", "lots"),
        ("memory", "1"),
    ];
    for (key, value) in absurd {
        let annotation = format!("io.lazaret.vm.{key}");
        let container = Container::new("absurd").flags(&["--annotation", &format!("{annotation}={value}")]);
        refused(&container, &["true"], &[&annotation, value]);
    }
}

#[test]
fn more_memory_than_the_host_can_give_is_refused() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_others();
    let container =
        Container::new("no-memory").flags(&["--annotation", "io.lazaret.vm.memory=1000000000000000000"]);
    refused(&container, &["true"], &["memory"]);
}

#[test]
fn a_root_that_cannot_be_mounted_is_refused() {
    let _host = beside_others();
    let mut spec = Spec::busybox(&["true"]);
    spec.json["root"]["path"] = "/var/tmp/no-such-root".into();
    let container = Container::new("no-rootfs").config(&spec.write());
    refused(&container, &[], &["no-such-root"]);
}

#[test]
fn a_bind_of_what_is_not_there_is_refused() {
    let _host = beside_others();
    let container = Container::new("no-bind")
        .flags(&["--mount", "type=bind,src=/no/such/source,dst=/bound,options=rbind:ro"]);
    refused(&container, &["true"], &["/no/such/source"]);
}

#[test]
fn a_working_directory_that_is_a_file_is_refused() {
    let _host = beside_others();
    let container = Container::new("cwd").flags(&["--cwd", "/bin/busybox"]);
    refused(&container, &["true"], &["/bin/busybox"]);
}

/// The shim itself, as containerd runs it with each namespace and id, must not start, say why in one line that holds the text
/// beside them, and leave nothing.
#[track_caller]
fn shim_refuses(cases: &[(&str, &str, &str)]) {
    let _host = alone();
    let before = Snapshot::take();
    let folder = std::env::temp_dir().join("lazaret-test-no-bundle");
    fs::create_dir_all(&folder).expect("a folder");
    for (namespace, id, expected) in cases {
        let mut shim = Command::new("containerd-shim-lazaret-v2");
        shim.args([
            "-namespace",
            namespace,
            "-address",
            "/run/containerd/containerd.sock",
            "-id",
            id,
            "start",
        ]);
        shim.current_dir(&folder).env("TTRPC_ADDRESS", "/run/containerd/containerd.sock.ttrpc");
        let run = command::run(shim);
        assert_ne!(run.code, 0, "{run}");
        assert!(run.err().contains(expected), "{run}");
        assert_eq!(run.err().trim().lines().count(), 1, "{run}");
    }
    fs::remove_dir_all(&folder).expect("it is ours");
    before.assert_nothing_new();
}

#[test]
fn a_shim_without_a_bundle_says_so_and_leaves_nothing() {
    if !is_lazaret() {
        return;
    }
    shim_refuses(&[("default", "no-bundle", "config.json")]);
}

#[test]
fn an_id_or_namespace_that_is_no_identifier_starts_nothing() {
    if !is_lazaret() {
        return;
    }
    let too_long = "x".repeat(77);
    let bad = ["..", "a/b", "a..b", &too_long];
    let cases = bad.map(|bad| [("default", bad, "flag -id"), (bad, "no-bundle", "flag -namespace")]);
    shim_refuses(cases.as_flattened());
}

#[test]
fn a_volume_whose_name_is_no_identifier_is_refused() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_others();
    let annotation = "io.lazaret.docker.volume";
    for bad in ["../up", "a..b", &"x".repeat(77)] {
        let container = Container::new("no-volume").flags(&["--annotation", &format!("{annotation}={bad}")]);
        refused(&container, &["true"], &[annotation, bad, "identifier"]);
    }
}
