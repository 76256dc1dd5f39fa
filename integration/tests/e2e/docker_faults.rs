//! The private Docker daemon when something goes wrong: one clear error, and nothing is left.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use lazaret_integration::command;
use lazaret_integration::docker::{DOCKER_TIMEOUT, client, disk_blocks, load_busybox, sh};
use lazaret_integration::leftovers::eventually;
use lazaret_integration::{alone, beside_few, is_lazaret};

const IMAGE: &str = "/usr/local/share/lazaret/docker.erofs";

/// Puts something else in the place of the installed image, until it is dropped.
struct OtherImage;

impl OtherImage {
    fn place(make: impl FnOnce(&str)) -> Self {
        fs::rename(IMAGE, format!("{IMAGE}.away")).expect("it is installed");
        let other = Self;
        make(IMAGE);
        other
    }
}

impl Drop for OtherImage {
    fn drop(&mut self) {
        fs::rename(format!("{IMAGE}.away"), IMAGE).expect("it was there");
    }
}

#[test]
fn ten_first_clients_at_once_are_all_served_and_a_dead_daemon_is_started_again() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_few();
    let client = client("docker-restart");
    client.detach(&["sleep", "1000"]);
    let ten =
        "for i in $(seq 10); do docker version --format '{{.Server.Os}}' >/tmp/$i & done; wait; cat /tmp/*";
    assert_eq!(sh(&client, ten).success().out(), "linux\n".repeat(10));

    load_busybox(&client);
    let script = r#"
        docker run --detach --name left busybox sleep 4321 >/dev/null
        docker run --detach --name back --restart always busybox sleep 1234 >/dev/null
        docker run --rm --privileged --pid host busybox killall -9 dockerd || true
        until docker info >/dev/null 2>&1; do sleep 1; done
        docker ps --all --format '{{.Names}} {{.State}}' --filter name=left
        docker run --rm --pid host busybox ps | grep -c ' sleep 4321$' || true
        until [ "$(docker inspect --format '{{.State.Status}}' back)" = running ]; do sleep 1; done
        docker start left; docker exec left echo runs again"#;
    assert_eq!(sh(&client, script).success().out(), "left exited\n0\nleft\nruns again\n");
}

#[test]
fn a_full_disk_is_the_users_error_and_what_is_pruned_goes_back_to_the_host() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_few();
    let client = client("docker-full").flags(&["--annotation", "io.lazaret.docker.disk=256Mi"]);
    client.detach(&["sleep", "1000"]);
    load_busybox(&client);
    let before = disk_blocks(&client);
    let fill = "docker run --volume big:/d busybox dd if=/dev/zero of=/d/file bs=1M || sync";
    let full = sh(&client, fill);
    assert!(full.err().contains("No space left on device"), "{full}");
    assert!(disk_blocks(&client) > before + (100 << 11), "it is written to the host");
    assert_eq!(client.exec(&["echo", "lives"]).success().out(), "lives\n");
    let prune = "docker system prune --all --force --volumes >/dev/null; docker volume rm --force big >/dev/null; sync";
    sh(&client, prune).success();
    eventually(|| match disk_blocks(&client) {
        now if now < before + (20 << 11) => Ok(()),
        now => Err(format!("{now} blocks are still the disk's, of {before} before it was filled")),
    });
}

#[test]
fn a_docker_image_that_cannot_be_used_is_one_clear_error() {
    if !is_lazaret() {
        return;
    }
    let _host = alone();
    let missing = OtherImage::place(|_| {});
    let run = client("docker-missing").run(&["true"]);
    assert!(run.code != 0 && run.err().contains("docker_image") && run.err().contains(IMAGE), "{run}");
    drop(missing);

    let cut = OtherImage::place(|path| fs::write(path, [0; 4096]).expect("there is room"));
    let run = client("docker-cut").run(&["true"]);
    assert!(run.code != 0 && run.err().contains("docker_image") && run.err().contains(IMAGE), "{run}");
    drop(cut);

    // Its first block is good, all else is not.
    let _corrupt = OtherImage::place(|path| {
        fs::copy(format!("{IMAGE}.away"), path).expect("there is room");
        let file = OpenOptions::new().write(true).open(path).expect("it was just made");
        let length = file.metadata().expect("it is open").len();
        let zeros = vec![0; 1 << 20];
        for at in (4096..length).step_by(zeros.len()) {
            let count = zeros.len().min(usize::try_from(length - at).expect("it fits"));
            file.write_all_at(&zeros[..count], at).expect("there is room");
        }
    });
    let lazy = client("docker-corrupt");
    lazy.detach(&["sleep", "1000"]);
    let asked = sh(&lazy, "docker ps");
    assert!(asked.code != 0 && asked.err().contains("the sandbox's Docker daemon: "), "{asked}");
    assert_eq!(lazy.exec(&["echo", "lives"]).success().out(), "lives\n");
    let eager = client("docker-corrupt-eager").flags(&["--annotation", "io.lazaret.docker=eager"]);
    let run = eager.run(&["true"]);
    assert!(run.code != 0 && run.err().contains("the sandbox's Docker daemon: "), "{run}");
}

#[test]
fn a_sandbox_that_is_killed_in_the_middle_of_a_build_leaves_nothing() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_few();
    let client = client("docker-killed");
    client.detach(&["sleep", "1000"]);
    load_busybox(&client);
    let script = r#"printf 'FROM busybox\nRUN touch /started && exec sleep 1000\n' >/Dockerfile
        docker build --progress plain --tag app - </Dockerfile 2>&1"#;
    let build = command::start(client.exec_command(&[], &["bash", "-c", script]));
    build.wait_for_within("RUN touch", DOCKER_TIMEOUT);
    client.kill("SIGKILL");
    assert_eq!(build.finish().code, 137);
    client.wait_for_status("STOPPED");
    assert_eq!(client.delete(), 137);
}
