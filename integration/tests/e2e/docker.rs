//! The private Docker daemon: simply there, for a container that has no privilege.

use std::fs;

use lazaret_integration::container::Container;
use lazaret_integration::docker::{client, disk, disk_blocks, dockerds_of_host, load_busybox, sh};
use lazaret_integration::{alone, beside_few, beside_others, command, is_lazaret};

#[test]
fn a_socket_of_the_hosts_docker_is_the_sandboxs_own() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_few();
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
    assert_eq!(disk(&container), None, "there is no file for it");
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
    let _host = beside_few();
    let container = client("docker-eager").flags(&["--annotation", "io.lazaret.docker=eager"]);
    container.detach(&["sleep", "1000"]);
    assert_ne!(disk_blocks(&container), 0, "it has made its disk before it was asked");
    assert!(command::host("lazaret", &["logs", &container.id]).contains("dockerd answers"));
    let driver = sh(&container, "docker info --format '{{.Driver}}'").success().out();
    assert_eq!(driver, "overlay2\n");
}

#[test]
fn any_user_can_use_the_socket_if_the_sandbox_says_so_wherever_the_environment_says_it_is() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_few();
    let flags = ["--user", "1000:1000", "--env", "DOCKER_HOST=unix:///home/me/docker.sock"];
    let all = ["--annotation", "io.lazaret.docker.users=all"];
    let container = client("docker-user").flags(&flags).flags(&all);
    container.detach(&["sleep", "1000"]);
    load_busybox(&container);
    let script = "id -u; env -u DOCKER_HOST docker ps --quiet; docker run --rm busybox id -u";
    assert_eq!(sh(&container, script).success().out(), "1000\n0\n");
}

#[test]
fn a_user_that_cannot_become_root_is_refused_in_one_line_and_starts_no_daemon() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_few();
    // What `ctr run` starts has noNewPrivileges.
    let container = client("docker-refused").flags(&["--user", "1000:1000"]);
    container.detach(&["sleep", "1000"]);
    let refused = sh(&container, "docker ps");
    assert_ne!(refused.code, 0);
    let line = "the sandbox's Docker daemon: user 1000 may not use it from a container with noNewPrivileges";
    assert!(refused.err().contains(line), "{}", refused.err());
    assert!(!command::host("lazaret", &["logs", &container.id]).contains("dockerd answers"));
}

#[test]
fn sandboxes_share_neither_images_nor_containers_nor_names() {
    if !is_lazaret() {
        return;
    }
    // Two guests that work hard.
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
    assert_eq!(dockerds_of_host(), "");
    let seen = command::host("ctr", &["-n", "moby", "containers", "ls", "-q"]);
    assert_eq!(seen, "", "there is nothing that a dockerd of the host could see");
}
