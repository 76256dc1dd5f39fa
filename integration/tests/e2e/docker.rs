//! The private Docker daemon: simply there, for a container that has no privilege.

use std::fs;

use lazaret_integration::container::Container;
use lazaret_integration::docker::{client, disk_blocks, load_busybox, sh};
use lazaret_integration::{alone, beside_others, command, is_lazaret, probe};

#[test]
fn a_sandbox_has_a_docker_daemon_of_its_own_without_privilege() {
    if !is_lazaret() {
        return;
    }
    // Beside other guests, an emulated one is too slow for the limits that dockerd has within.
    let _host = alone();
    let container = client("docker");
    container.detach(&["sleep", "1000"]);
    let docker = |args: &[&str]| container.exec(&[&["docker"], args].concat());

    let info = docker(&[
        "info",
        "--format",
        "{{.Driver}} {{.CgroupVersion}} {{.DefaultRuntime}} {{.KernelVersion}} {{.Containers}}",
    ]);
    let guest_kernel = container.exec(&["uname", "-r"]).success().out();
    assert_eq!(info.out().trim(), format!("overlay2 2 crun {} 0", guest_kernel.trim()), "{info}");
    load_busybox(&container);
    assert_ne!(disk_blocks(&container), 0, "the image is on the disk");

    let run = docker(&["run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((run.out().as_str(), run.err().as_str(), run.code), ("out\n", "err\n", 7));

    // A bind mount is of the container's own files.
    let bound = "mkdir /work && cd /work && echo from outside >in && \
                 docker run --rm -v \"$PWD\":/w busybox sh -c 'cat /w/in; echo from inside >/w/out' && cat out";
    assert_eq!(container.exec(&["sh", "-c", bound]).success().out(), "from outside\nfrom inside\n");

    // The bridge, and a port of a container at the sandbox's localhost, reached from its own container and from Docker's.
    let serve = "mkdir /www && echo served >/www/index.html && exec httpd -f -h /www";
    docker(&["run", "--detach", "--publish", "8080:80", "busybox", "sh", "-c", serve]).success();
    let fetch = "until docker run --rm --network host busybox wget -qO- http://127.0.0.1:8080/; do :; done
                 exec 3<>/dev/tcp/127.0.0.1/8080; printf 'GET / HTTP/1.0\r\n\r\n' >&3; tail -n 1 <&3";
    assert_eq!(sh(&container, fetch).success().out(), "served\nserved\n");

    // The container itself is as it would be under runc, and nothing of this is the host's.
    let capabilities = container.exec(&["grep", "CapEff", "/proc/self/status"]).success().out();
    assert_eq!(capabilities.trim(), "CapEff:\t00000000a80425fb");
    let hosts = command::host(
        "sh",
        &["-c", "pgrep -x dockerd || true; ls /var/lib/lazaret | grep -vx volumes || true"],
    );
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
    let container = client("docker-host").flags(&[mount]);
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
    assert!(!command::host("lazaret", &["logs", &container.id]).contains("dockerd"), "it was started");
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
fn an_eager_daemon_is_there_when_the_container_is() {
    if !is_lazaret() {
        return;
    }
    let _host = alone();
    let container = client("docker-eager").flags(&["--annotation", "io.lazaret.docker=eager"]);
    container.detach(&["sleep", "1000"]);
    assert_ne!(disk_blocks(&container), 0, "it has made its disk before it was asked");
    assert!(command::host("lazaret", &["logs", &container.id]).contains("dockerd answers"));
    let driver = sh(&container, "docker info --format '{{.Driver}}'").success().out();
    assert_eq!(driver, "overlay2\n");
}

#[test]
fn any_user_of_the_sandbox_can_use_the_socket_wherever_the_environment_says_it_is() {
    if !is_lazaret() {
        return;
    }
    let _host = alone();
    let flags = ["--user", "1000:1000", "--env", "DOCKER_HOST=unix:///home/me/docker.sock"];
    let container = client("docker-user").flags(&flags);
    container.detach(&["sleep", "1000"]);
    load_busybox(&container);
    let script = "id -u; env -u DOCKER_HOST docker ps --quiet; docker run --rm busybox id -u";
    assert_eq!(sh(&container, script).success().out(), "1000\n0\n");
}

#[test]
fn a_container_reaches_nothing_of_the_daemon_but_its_socket() {
    if !is_lazaret() {
        return;
    }
    let _host = alone();
    let mount = format!("--mount=type=bind,src={},dst=/probe,options=bind:ro", probe::path());
    let container = client("docker-reach").flags(&[&mount]);
    container.detach(&["sleep", "1000"]);
    load_busybox(&container);
    sh(&container, "docker run --detach busybox sleep 1000").success();
    // The disks' numbers are no secret; what is in them is.
    let script = r#"
        ls /dev | grep -E 'vd|vsock|fuse' || true
        for disk in vda vdb vdc; do
            read -r number </sys/block/$disk/dev
            mknod /tmp/$disk b ${number%:*} ${number#*:} 2>/dev/null && head -c 1 /tmp/$disk 2>&1 | grep -a -v -i 'not permitted' || true
        done
        grep @ /proc/net/unix || true
        find / -xdev -name '*.sock' -not -path '/run/docker.sock' -not -path '/var/run/docker.sock'
        ls /proc/driver/data /run/containerd /run/lazaret 2>/dev/null || true
        ls -d /proc/[0-9]*/exe | wc -l"#;
    let reached = sh(&container, script);
    let processes: usize = reached.out().trim().parse().unwrap_or_else(|_| panic!("{reached}"));
    assert!(processes < 10, "its processes are its own: {reached}");
    let vsock = container.exec(&["/probe", "vsock", "1", "1020", "1030"]).success().out();
    assert_eq!(vsock, "tried 1020 to 1030\n");
}

#[test]
fn sandboxes_share_neither_images_nor_containers_nor_names() {
    if !is_lazaret() {
        return;
    }
    let _host = alone();
    let sandboxes = ["docker-one", "docker-other"].map(client);
    for sandbox in &sandboxes {
        sandbox.detach(&["sleep", "1000"]);
        load_busybox(sandbox);
        let script = format!(
            "docker run --name same --publish 8080:80 --detach busybox sh -c 'echo {id}; exec sleep 1000' >/dev/null
             docker tag busybox only-{id}",
            id = sandbox.id
        );
        sh(sandbox, &script).success();
    }
    for sandbox in &sandboxes {
        let script = "docker ps --format '{{.Names}}'; docker logs same; docker images --format '{{.Repository}}' | sort";
        let said = sh(sandbox, script).success().out();
        assert_eq!(said, format!("same\n{id}\nbusybox\nonly-{id}\n", id = sandbox.id));
    }
    let hosts = command::host("sh", &["-c", "pgrep -x dockerd || true; ctr -n moby containers ls -q"]);
    assert_eq!(hosts, "", "there is no dockerd on the host, and nothing it could see");
}
