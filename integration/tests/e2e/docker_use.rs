//! What people do with Docker, done in one sandbox, by one test after the other: a network, no privilege, Debian's docker CLI.

use std::ops::Deref;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lazaret_integration::container::Container;
use lazaret_integration::docker::{client, disk_blocks, dockerds_of_host, load_busybox, sh};
use lazaret_integration::host::Share;
use lazaret_integration::namespace::{Bridge, Namespace};
use lazaret_integration::shared::{Shared, Use};
use lazaret_integration::{command, is_lazaret, leftovers, next_beside_few, probe, traffic};

/// The host's address in the sandbox's network, and the sandbox's.
const HOST: &str = "10.90.0.1";
const SANDBOX_ADDRESS: &str = "10.90.0.2";

/// Dropped in this order: the container leaves the namespace before that goes.
struct Networked {
    container: Container,
    _namespace: Namespace,
    _bridge: Bridge,
}

static SANDBOX: Shared<Networked> = Shared::new(module_path!(), || {
    let bridge = Bridge::new("lazaret-docker", 1500, &[&format!("{HOST}/24")]);
    let namespace = Namespace::new("docker");
    namespace.join("eth0", bridge.name, 1500);
    namespace.ip(&format!("addr add {SANDBOX_ADDRESS}/24 dev eth0"));
    namespace.ip("link set eth0 up");
    let mount = format!("--mount=type=bind,src={},dst=/probe,options=bind:ro", probe::path());
    let [joins, path] = namespace.flags();
    let container = client("docker").flags(&[&mount, &joins, &path]);
    container.detach(&["sleep", "100000"]);
    load_busybox(&container);
    Networked { container, _namespace: namespace, _bridge: bridge }
});

/// A test's turn on the daemon, which has no container and no network of another test.
struct Turn {
    sandbox: Use<Networked>,
    _host: Share,
    _turn: MutexGuard<'static, ()>,
}

fn daemon() -> Turn {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let host = next_beside_few();
    Turn { sandbox: SANDBOX.sandbox(), _host: host, _turn: turn }
}

impl Deref for Turn {
    type Target = Container;

    fn deref(&self) -> &Container {
        &self.sandbox.container
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let script = "docker ps --all --quiet | xargs -r docker rm --force; docker network prune --force";
        let clean_up = sh(self, script);
        assert!(clean_up.code == 0 || std::thread::panicking(), "{clean_up}");
    }
}

#[test]
fn a_sandbox_has_a_docker_daemon_of_its_own_without_privilege() {
    if !is_lazaret() {
        return;
    }
    let container = daemon();
    let docker = |args: &[&str]| container.exec(&[&["docker"], args].concat());

    let info = docker(&[
        "info",
        "--format",
        "{{.Driver}} {{.CgroupVersion}} {{.DefaultRuntime}} {{.KernelVersion}} {{.Containers}}",
    ]);
    let guest_kernel = container.exec(&["uname", "-r"]).success().out();
    assert_eq!(info.out().trim(), format!("overlay2 2 crun {} 0", guest_kernel.trim()), "{info}");
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
    assert_eq!(dockerds_of_host(), "");
    let files = command::host("sh", &["-c", "ls /var/lib/lazaret | grep -vx volumes || true"]);
    assert_eq!(files, "", "disks have no names");
}

#[test]
fn images_are_built_and_services_find_each_other_by_name() {
    if !is_lazaret() {
        return;
    }
    let client = daemon();
    let script = r#"
        mkdir /app && cd /app && cat >Dockerfile <<'END'
FROM busybox AS build
RUN echo built on $(uname -s) >/out
FROM busybox
COPY --from=build /out /out
CMD cat /out
END
        for buildkit in 1 0; do
            DOCKER_BUILDKIT=$buildkit docker build --quiet --no-cache --tag app . >/dev/null 2>log || { cat log >&2; exit 1; }
            docker run --rm app
            docker image rm --force app >/dev/null
        done"#;
    assert_eq!(sh(&client, script).success().out(), "built on Linux\nbuilt on Linux\n");

    let script = r#"
        mkdir /services && cd /services && cat >compose.yaml <<'END'
services:
  web:
    image: busybox
    command: sh -c 'mkdir /www && echo from web >/www/index.html && exec httpd -f -h /www'
    stop_grace_period: 0s
  client:
    image: busybox
    depends_on: [web]
    command: sh -c 'until wget -qO- http://web/; do sleep 1; done'
END
        docker compose run --rm --quiet-pull client 2>log || { cat log >&2; exit 1; }
        docker compose ps --services
        docker compose down 2>log || { cat log >&2; exit 1; }
        docker ps --all --quiet; docker network ls --filter type=custom --quiet"#;
    assert_eq!(sh(&client, script).success().out(), "from web\nweb\n");

    let script = r#"
        docker network create app >/dev/null
        docker run --detach --network app --name server busybox \
            sh -c 'mkdir /www && echo from server >/www/index.html && exec httpd -f -h /www' >/dev/null
        docker run --rm --network app busybox sh -c 'until wget -qO- http://server/; do :; done'
        docker run --rm busybox wget -qO- -T 5 http://server/ 2>&1 | grep -o 'bad address'"#;
    assert_eq!(sh(&client, script).success().out(), "from server\nbad address\n");
}

#[test]
fn containers_are_looked_at_limited_restarted_and_killed() {
    if !is_lazaret() {
        return;
    }
    let client = daemon();
    let script = r#"
        docker run --detach --name one --label x=y busybox sh -c 'echo out; echo err >&2; exec sleep 1000' >/dev/null
        docker exec one sh -c 'echo in exec; exit 3' || echo exec $?
        echo piped | docker exec -i one cat
        until [ "$(docker logs one 2>&1 | sort)" = "$(printf 'err\nout')" ]; do sleep 1; done; echo logs
        docker stats --no-stream --format '{{.Name}} {{.PIDs}}' one
        docker top one -o pid,args | grep -o 'sleep 1000'
        docker kill one; docker wait one; docker rm one"#;
    let said = "in exec\nexec 3\npiped\nlogs\none 1\nsleep 1000\none\n137\none\n";
    assert_eq!(sh(&client, script).success().out(), said);

    let script = r#"
        docker run --detach --name try --restart on-failure:2 busybox sh -c 'echo try; exit 1' >/dev/null
        until [ "$(docker inspect --format '{{.RestartCount}} {{.State.Status}}' try)" = "2 exited" ]; do sleep 1; done
        docker logs try
        docker run --rm --volume data:/d busybox sh -c 'echo kept >/d/file'
        docker run --rm --volume data:/d busybox cat /d/file
        docker run --name big --memory 16m busybox tail /dev/zero || echo big $?
        until [ "$(docker inspect --format '{{.State.OOMKilled}}' big)" = true ]; do sleep 1; done
        docker run --rm --cpus 0.5 --pids-limit 20 busybox sh -c 'cat /sys/fs/cgroup/pids.max'"#;
    assert_eq!(sh(&client, script).success().out(), "try\ntry\ntry\nkept\nbig 137\n20\n");

    let script = r#"
        seq 20 | xargs -P 4 -I {} docker run --detach --name many-{} busybox sleep 1000 >/dev/null
        docker ps --quiet --filter name=many- | wc -l
        docker exec many-20 hostname | wc -l
        docker rm --force $(docker ps --quiet --all) >/dev/null
        docker ps --all --quiet"#;
    assert_eq!(sh(&client, script).success().out(), "20\n1\n");
}

#[test]
fn a_container_reaches_nothing_of_the_daemon_but_its_socket() {
    if !is_lazaret() {
        return;
    }
    let container = daemon();
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
fn its_containers_reach_the_network_and_their_published_ports_are_reached() {
    if !is_lazaret() {
        return;
    }
    let container = daemon();
    let port = traffic::serve(0).expect("a port");
    let reached = format!(
        "docker run --rm -v /probe:/probe busybox /probe talk tcp {HOST}:{port} 60000 && \
         docker run --rm -v /probe:/probe busybox /probe talk udp {HOST}:{port} 1400 && \
         docker run --detach --publish 8080:7000 -v /probe:/probe busybox /probe serve 7000"
    );
    sh(&container, &reached).success();
    let published = format!("{SANDBOX_ADDRESS}:8080").parse().expect("an address");
    leftovers::eventually(|| traffic::tcp(published, 60_000));
}
