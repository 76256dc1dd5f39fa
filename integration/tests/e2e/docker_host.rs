//! What the host has of the private Docker daemon: its socket, where that is asked for, and the volumes it keeps.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use lazaret_integration::command::{self, Finished};
use lazaret_integration::container::Container;
use lazaret_integration::docker::{DOCKER_TIMEOUT, client, load_busybox, sh};
use lazaret_integration::leftovers::eventually;
use lazaret_integration::spec::image_archive;
use lazaret_integration::{beside_few, beside_others, is_lazaret};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const EXPORT: [&str; 2] = ["--annotation", "io.lazaret.docker.export=true"];

fn state(container: &Container) -> PathBuf {
    Path::new("/run/lazaret/default").join(&container.id)
}

/// The host's Docker command line, on the daemon of a sandbox.
fn docker(container: &Container, args: &[&str]) -> Command {
    let mut command = Command::new("docker");
    command.arg("--host").arg(format!("unix://{}/docker.sock", state(container).display())).args(args);
    command
}

fn lazaret(args: &[&str]) -> Command {
    let mut command = Command::new("lazaret");
    command.args(args);
    command
}

/// To its end, after `input` and the end of that.
#[track_caller]
fn run(command: Command, input: &str) -> Finished {
    let mut running = command::start(command);
    running.write(input);
    running.stdin = None;
    running.finish_within(DOCKER_TIMEOUT)
}

/// Ends with 1 and one line that holds each of `expected`.
#[track_caller]
fn refused(run: &Finished, expected: &[&str]) {
    assert_eq!(run.code, 1, "{run}");
    assert_eq!(run.err().trim().lines().count(), 1, "one line: {run}");
    for text in expected {
        assert!(run.err().contains(text), "{text:?} in {run}");
    }
}

fn kill_process(pid: u32) {
    kill(Pid::from_raw(pid.try_into().expect("a pid fits")), Signal::SIGKILL).expect("it runs");
}

/// A volume's name; however the test ends, the volume of that name is gone then. To be made before its sandboxes.
struct Volume(String);

impl Volume {
    fn new(promise: &str) -> Self {
        Self(format!("{promise}-{}", std::process::id()))
    }

    fn path(&self) -> PathBuf {
        Path::new("/var/lib/lazaret/volumes").join(&self.0)
    }

    fn on(&self, container: Container) -> Container {
        container.flags(&["--annotation", &format!("io.lazaret.docker.volume={}", self.0)])
    }

    /// The line of `lazaret volume ls` about it.
    #[track_caller]
    fn listed(&self) -> Option<String> {
        let list = command::host("lazaret", &["volume", "ls"]);
        list.lines().find(|line| line.split_whitespace().next() == Some(&self.0)).map(Into::into)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // What a test has put in its place, too.
        let _ = fs::remove_file(self.path());
        let _ = fs::remove_dir(self.path());
        let _ = self.path().parent().map(fs::remove_dir);
    }
}

#[test]
fn an_exported_daemon_serves_the_hosts_docker() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_few();
    let container = client("export").flags(&EXPORT);
    container.detach(&["sleep", "1000"]);
    let socket = state(&container).join("docker.sock");
    let metadata = fs::symlink_metadata(&socket).expect("it is there when Create has answered");
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);

    let info = run(docker(&container, &["info", "--format", "{{.Driver}} {{.KernelVersion}}"]), "");
    let kernel = container.exec(&["uname", "-r"]).success().out();
    assert_eq!(info.success().out().trim(), format!("overlay2 {}", kernel.trim()));
    let loaded = run(docker(&container, &["load", "--input", &image_archive("busybox")]), "");
    assert_eq!(loaded.success().out(), "Loaded image: busybox:latest\n");

    // The end of the input reaches a container that is still to answer.
    let cat = run(docker(&container, &["run", "--rm", "-i", "busybox", "cat"]), "there and back\n");
    assert_eq!(cat.success().out(), "there and back\n");
    let much = "x".repeat(3 << 20);
    let count = run(docker(&container, &["run", "--rm", "-i", "busybox", "wc", "-c"]), &much);
    assert_eq!(count.success().out().trim(), much.len().to_string());
    let ended = ["run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7"];
    let ended = run(docker(&container, &ended), "");
    assert_eq!((ended.out().as_str(), ended.err().as_str(), ended.code), ("out\n", "err\n", 7));

    // From within it is the same daemon.
    let images = sh(&container, "docker images --quiet").success().out();
    let through = run(lazaret(&["docker", &container.id, "images", "--quiet"]), "").success().out();
    assert_eq!((images.lines().count(), &through), (1, &images));
    let ended = ["docker", "-n", "default", &container.id, "run", "--rm", "busybox", "sh", "-c", "exit 9"];
    assert_eq!(run(lazaret(&ended), "").code, 9);

    // And by a name, as `docker context` gives one.
    let name = &container.id;
    let host = format!("host=unix://{}", socket.display());
    command::host("docker", &["context", "create", name, "--docker", &host]);
    let named = command::host("docker", &["--context", name, "images", "--quiet"]);
    command::host("docker", &["context", "rm", name]);
    assert_eq!(named, images);

    // Whoever still listens when the sandbox ends hears the end.
    let events = command::start(docker(&container, &["events", "--since", "0"]));
    events.wait_for("container die");
    container.remove();
    events.finish();
    eventually(|| if socket.exists() { Err(format!("{} is there", socket.display())) } else { Ok(()) });
    refused(&run(lazaret(&["docker", &container.id, "ps"]), ""), &["no sandbox", &container.id]);
}

#[test]
fn a_daemon_is_exported_only_where_that_is_asked_for() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_others();
    let container = Container::new("no-export").flags(&["--annotation", "io.lazaret.docker.export=false"]);
    container.detach(&["sleep", "1000"]);
    assert!(!state(&container).join("docker.sock").exists());
    let answer = run(lazaret(&["docker", &container.id, "ps"]), "");
    refused(&answer, &[&container.id, "io.lazaret.docker.export=true"]);
}

#[test]
fn a_killed_shim_leaves_no_socket() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_others();
    let container = Container::new("export-kill").flags(&EXPORT);
    container.detach(&["sleep", "1000"]);
    let record = fs::read(state(&container).join("state.json")).expect("a sandbox has a record");
    let record: serde_json::Value = serde_json::from_slice(&record).expect("it is JSON");
    let shim = record["shim"]["pid"].as_u64().expect("it names the shim");
    kill_process(shim.try_into().expect("a pid fits"));
    eventually(|| {
        let socket = state(&container).join("docker.sock");
        if socket.exists() { Err(format!("{} is still there", socket.display())) } else { Ok(()) }
    });
}

#[test]
fn what_a_volume_holds_survives_its_sandboxes_even_a_killed_one() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_few();
    let volume = Volume::new("kept");
    let write = |container: &Container, text: &str| {
        let script = format!("docker run --rm -v data:/d busybox sh -c 'echo {text} >>/d/file && sync'");
        sh(container, &script).success();
    };
    let read = |container: &Container| {
        sh(container, "docker run --rm -v data:/d busybox cat /d/file").success().out()
    };

    let first = volume.on(client("volume-first"));
    first.detach(&["sleep", "1000"]);
    load_busybox(&first);
    write(&first, "first");

    // It is this sandbox's alone.
    let holder = format!("default/{}", first.id);
    let second = volume.on(Container::new("volume-second"));
    refused(&second.run(&["true"]), &[&format!("volume {:?} is in use by sandbox {holder}", volume.0)]);
    assert!(volume.listed().expect("it is there").ends_with(&holder));
    refused(&run(lazaret(&["volume", "rm", &volume.0]), ""), &[&volume.0, &holder]);
    first.remove();
    assert!(volume.listed().expect("it stays").ends_with(" -"));

    // Nothing is loaded again.
    let second = volume.on(client("volume-second"));
    second.detach(&["sleep", "1000"]);
    assert_eq!(read(&second), "first\n");
    write(&second, "second");
    let (vmm, _) = second.status().expect("there is a task");
    kill_process(vmm);
    second.wait_for_status("STOPPED");

    // The shim of the killed one is still there; the volume is free.
    let third = volume.on(client("volume-third"));
    third.detach(&["sleep", "1000"]);
    assert_eq!(read(&third), "first\nsecond\n");
    third.remove();
    second.remove();
    run(lazaret(&["volume", "rm", &volume.0]), "").success();
    assert_eq!(volume.listed(), None);
    assert!(!volume.path().exists());
    refused(&run(lazaret(&["volume", "rm", &volume.0]), ""), &["no volume", &volume.0]);
}

#[test]
fn a_volume_that_cannot_be_had_is_told_in_one_line() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_others();
    let volume = Volume::new("odd");
    let with = |annotation: &str| {
        volume.on(Container::new("volume-odd")).flags(&["--annotation", annotation]).run(&["true"])
    };
    with("io.lazaret.docker.disk=1Gi").success();
    with("io.lazaret.docker.disk=1Gi").success();
    assert_eq!(fs::metadata(volume.path()).expect("it stays").permissions().mode() & 0o777, 0o600);
    let rm = format!("lazaret volume rm {}", volume.0);
    refused(&with("io.lazaret.docker.disk=1Ti"), &["1Gi", "1Ti", &rm]);
    refused(&with("io.lazaret.docker=off"), &["io.lazaret.docker=\"off\"", "io.lazaret.docker.volume"]);

    fs::File::options().write(true).open(volume.path()).and_then(|file| file.set_len(0)).expect("it is ours");
    refused(&with("io.lazaret.docker=lazy"), &[&volume.0, "0 bytes", &rm]);
    run(lazaret(&["volume", "rm", &volume.0]), "").success();
    fs::create_dir(volume.path()).expect("nothing is in its place");
    refused(&with("io.lazaret.docker=lazy"), &[&volume.path().display().to_string(), "not a regular file"]);
}

#[test]
fn absurd_values_are_refused_by_name() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_others();
    for (key, value) in [("volume", "../x"), ("volume", ""), ("export", "maybe"), ("disk", "17Ti")] {
        let annotation = format!("io.lazaret.docker.{key}");
        let container =
            Container::new("docker-absurd").flags(&["--annotation", &format!("{annotation}={value}")]);
        refused(&container.run(&["true"]), &[&annotation, value]);
    }
    let off = ["--annotation", "io.lazaret.docker=off"];
    let container = Container::new("docker-absurd").flags(&EXPORT).flags(&off);
    refused(&container.run(&["true"]), &["io.lazaret.docker=\"off\"", "io.lazaret.docker.export"]);

    // As long as containerd allows, and longer than the path of a socket may be.
    let mut container = Container::new("export-long").flags(&EXPORT);
    container.id = format!("{:x<76}", container.id);
    refused(&container.run(&["true"]), &["io.lazaret.docker.export", &container.id, "107"]);
}
