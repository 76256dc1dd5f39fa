//! The private Docker daemon: simply there, for a container that has no privilege.

use std::fs;
use std::os::unix::fs::MetadataExt;

use lazaret_integration::command;
use lazaret_integration::container::{Container, DEBIAN};
use lazaret_integration::{alone, beside_others, is_lazaret};

/// A container with Debian's docker CLI, which only needs a C library, and a busybox to load.
fn with_docker_cli(promise: &str) -> Container {
    let mounts = ["/usr/bin/docker:/usr/bin/docker", "/var/lib/lazaret-images:/images"].map(|mount| {
        let (from, to) = mount.split_once(':').expect("from:to");
        format!("--mount=type=bind,src={from},dst={to},options=bind:ro")
    });
    Container::new(promise).image(DEBIAN).flags(&mounts.each_ref().map(String::as_str))
}

/// What the file behind the daemon's disk, which has no name, takes of the host's: blocks of 512 bytes.
fn disk_blocks(container: &Container) -> u64 {
    let (pid, _) = container.status().expect("there is a task");
    let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("the VMM runs");
    let disk = files
        .map(|file| file.expect("the VMM runs").path())
        .find(|file| fs::read_link(file).is_ok_and(|target| target.starts_with("/var/lib/lazaret")));
    fs::metadata(disk.expect("the VMM has the disk open")).expect("it is open").blocks()
}

#[test]
fn a_sandbox_has_a_docker_daemon_of_its_own_without_privilege() {
    if !is_lazaret() {
        return;
    }
    // Beside other guests, an emulated one is too slow for the limits that dockerd has within.
    let _host = alone();
    let container = with_docker_cli("docker");
    container.detach(&["sleep", "1000"]);
    let docker = |args: &[&str]| container.exec(&[&["docker"], args].concat());

    let info = docker(&[
        "info",
        "--format",
        "{{.Driver}} {{.CgroupVersion}} {{.DefaultRuntime}} {{.KernelVersion}} {{.Containers}}",
    ]);
    let guest_kernel = container.exec(&["uname", "-r"]).success().out();
    assert_eq!(info.out().trim(), format!("overlay2 2 crun {} 0", guest_kernel.trim()), "{info}");
    let loaded = docker(&["load", "--input", "/images/busybox.tar"]).success().out();
    assert_eq!(loaded, "Loaded image: busybox:latest\n");
    assert_ne!(disk_blocks(&container), 0, "the image is on the disk");

    let run = docker(&["run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((run.out().as_str(), run.err().as_str(), run.code), ("out\n", "err\n", 7));

    // A bind mount is of the container's own files.
    let bound = "mkdir /work && cd /work && echo from outside >in && \
                 docker run --rm -v \"$PWD\":/w busybox sh -c 'cat /w/in; echo from inside >/w/out' && cat out";
    assert_eq!(container.exec(&["sh", "-c", bound]).success().out(), "from outside\nfrom inside\n");

    // The bridge, and a port of a container at the sandbox's localhost.
    let serve = "mkdir /www && echo served >/www/index.html && exec httpd -f -h /www";
    docker(&["run", "--detach", "--publish", "8080:80", "busybox", "sh", "-c", serve]).success();
    let fetch = "until docker run --rm --network host busybox wget -qO- http://127.0.0.1:8080/; do :; done";
    assert_eq!(container.exec(&["sh", "-c", fetch]).success().out(), "served\n");

    // The container itself is as it would be under runc, and nothing of this is the host's.
    let capabilities = container.exec(&["grep", "CapEff", "/proc/self/status"]).success().out();
    assert_eq!(capabilities.trim(), "CapEff:\t00000000a80425fb");
    let hosts = command::host("sh", &["-c", "pgrep -x dockerd || true; ls /var/lib/lazaret"]);
    assert_eq!(hosts, "", "no dockerd on the host, and disks have no names");
}

#[test]
fn a_socket_of_the_hosts_docker_is_the_sandboxs_own() {
    if !is_lazaret() {
        return;
    }
    let _host = alone();
    let socket = std::os::unix::net::UnixListener::bind("/run/lazaret-test-docker.sock");
    let socket = socket.expect("a socket that is as good as the host's Docker's");
    let mount =
        "--mount=type=bind,src=/run/lazaret-test-docker.sock,dst=/var/run/docker.sock,options=bind:rw";
    let container = with_docker_cli("docker-host").flags(&[mount]);
    container.detach(&["sleep", "1000"]);
    let driver = container.exec(&["docker", "info", "--format", "{{.Driver}}"]).success().out();
    assert_eq!(driver, "overlay2\n");
    socket.set_nonblocking(true).expect("a descriptor that is open");
    assert!(socket.accept().is_err(), "the container has reached the host's socket");
    drop(socket);
    fs::remove_file("/run/lazaret-test-docker.sock").expect("it is there");
}

#[test]
fn a_sandbox_that_does_not_use_docker_has_none_of_the_hosts_disk() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_others();
    let container = Container::new("docker-unused");
    container.detach(&["sleep", "1000"]);
    assert_eq!(container.exec(&["ls", "/var/run/docker.sock"]).success().out(), "/var/run/docker.sock\n");
    assert_eq!(disk_blocks(&container), 0);
}

#[test]
fn a_sandbox_without_docker_has_no_socket() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_others();
    let off = ["--annotation", "io.lazaret.docker=off"];
    let run = Container::new("docker-off").flags(&off).run(&["ls", "-A", "/run"]);
    assert_eq!(run.success().out(), "");
    let absurd = ["--annotation", "io.lazaret.docker=perhaps"];
    let run = Container::new("docker-absurd").flags(&absurd).run(&["true"]);
    assert!(run.code != 0 && run.err().contains("io.lazaret.docker"), "{run}");
}

#[test]
fn a_docker_image_that_is_missing_is_named() {
    if !is_lazaret() {
        return;
    }
    let _host = alone();
    let image = "/usr/local/share/lazaret/docker.erofs";
    let away = format!("{image}.away");
    fs::rename(image, &away).expect("it is installed");
    let run = Container::new("docker-missing").run(&["true"]);
    fs::rename(&away, image).expect("it was there");
    assert!(run.code != 0 && run.err().contains("docker_image"), "{run}");
}
