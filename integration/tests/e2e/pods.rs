//! Several containers in one sandbox, as containerd's CRI makes them, without Kubernetes: `ctr` with the annotations and the namespaces
//! that CRI writes.

use std::fs;

use lazaret_integration::container::Container;
use lazaret_integration::docker::{client, disk, load_busybox, sh};
use lazaret_integration::faults::kill_process;
use lazaret_integration::{beside_few, beside_others, is_lazaret};

const TYPE: &str = "io.kubernetes.cri.container-type";
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";
const WAITS: [&str; 2] = ["sleep", "1000"];

/// The container that holds a pod, which runs. It is to be declared before the members, so that it goes after them.
fn pod(flags: &[&str]) -> Container {
    let container = Container::new("pod");
    let of = format!("{SANDBOX}={}", container.id);
    let container =
        container.flags(&["--annotation", &format!("{TYPE}=sandbox"), "--annotation", &of]).flags(flags);
    container.detach(&WAITS);
    container
}

/// A container of the pod of `sandbox`, in its network namespace, as CRI makes them.
fn member(sandbox: &Container, purpose: &str) -> Container {
    in_pod(sandbox, Container::new(purpose))
}

fn in_pod(sandbox: &Container, container: Container) -> Container {
    let of = format!("{SANDBOX}={}", sandbox.id);
    container
        .flags(&["--annotation", &format!("{TYPE}=container"), "--annotation", &of])
        .joins(sandbox, &["net"])
}

trait Joins {
    /// The namespaces of another container, by their names in `/proc/<pid>/ns`.
    fn joins(self, other: &Container, namespaces: &[&str]) -> Self;
}

impl Joins for Container {
    fn joins(mut self, other: &Container, namespaces: &[&str]) -> Self {
        let pid = pid(other);
        for name in namespaces {
            let kind = if *name == "net" { "network" } else { name };
            self = self.flags(&["--with-ns", &format!("{kind}:/proc/{pid}/ns/{name}")]);
        }
        self
    }
}

#[track_caller]
fn pid(container: &Container) -> u32 {
    container.status().expect("there is a task").0
}

#[track_caller]
fn assert_runs(container: &Container) {
    assert_eq!(container.status().expect("there is a task").1, "RUNNING", "{}", container.id);
    container.exec(&["true"]).success();
}

/// What a command in the container says, without the end of the line.
#[track_caller]
fn says(container: &Container, args: &[&str]) -> String {
    container.exec(args).success().out().trim_end().to_owned()
}

#[test]
fn members_run_beside_each_other_on_one_kernel_and_share_localhost() {
    let _host = beside_others();
    let pod = pod(&[]);
    let server = member(&pod, "server");
    server.detach(&["sh", "-c", "echo of-server >/file; while :; do nc -l -p 8080 -e cat /file; done"]);
    let client = member(&pod, "client");
    client.detach(&WAITS);
    let ask = "until nc 127.0.0.1 8080 </dev/null 2>/dev/null | grep .; do sleep 0.1; done";
    assert_eq!(says(&client, &["sh", "-c", ask]), "of-server");
    assert_ne!(client.exec(&["cat", "/file"]).code, 0, "each has a root of its own");
    let boot = |container: &Container| says(container, &["cat", "/proc/sys/kernel/random/boot_id"]);
    assert_eq!(boot(&client), boot(&server));
    if is_lazaret() {
        let host = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("/proc is mounted");
        assert_ne!(boot(&client), host.trim());
    }
}

#[test]
fn members_share_the_namespaces_that_they_join_and_no_others() {
    let _host = beside_others();
    let pod = pod(&[]);
    let one = member(&pod, "one").joins(&pod, &["ipc", "uts"]);
    one.detach(&WAITS);
    let other = member(&pod, "other").joins(&pod, &["ipc", "uts"]).joins(&one, &["pid"]);
    other.detach(&WAITS);
    let alone = member(&pod, "alone");
    alone.detach(&WAITS);
    let namespace =
        |container: &Container, kind: &str| says(container, &["readlink", &format!("/proc/self/ns/{kind}")]);
    for kind in ["ipc", "uts"] {
        assert_eq!(namespace(&one, kind), namespace(&pod, kind));
        assert_eq!(namespace(&one, kind), namespace(&other, kind));
        assert_ne!(namespace(&one, kind), namespace(&alone, kind), "{kind}");
    }
    assert_eq!(namespace(&other, "pid"), namespace(&one, "pid"));
    assert_ne!(namespace(&one, "pid"), namespace(&pod, "pid"));
    // The end of who came to the processes of another leaves those alone.
    other.kill("SIGKILL");
    other.wait_for_status("STOPPED");
    assert_runs(&one);
}

#[test]
fn the_shared_memory_of_a_pod_is_its_members_and_not_the_hosts() {
    let _host = beside_others();
    let directory = tempfile();
    let shm = format!("type=bind,src={directory},dst=/dev/shm,options=rbind:rw");
    let pod = pod(&["--mount", &shm]);
    let (one, other) =
        (member(&pod, "one").flags(&["--mount", &shm]), member(&pod, "other").flags(&["--mount", &shm]));
    one.detach(&WAITS);
    other.detach(&WAITS);
    one.exec(&["sh", "-c", "echo shared >/dev/shm/file"]).success();
    assert_eq!(says(&other, &["cat", "/dev/shm/file"]), "shared");
    if is_lazaret() {
        assert!(
            says(&other, &["grep", " /dev/shm ", "/proc/mounts"])
                .lines()
                .all(|line| line.contains(" tmpfs "))
        );
        assert_eq!(fs::read_dir(&directory).expect("it is there").count(), 0, "it is in the guest's memory");
    }
    fs::remove_dir_all(&directory).expect("it is there");
}

/// A directory of the host.
fn tempfile() -> String {
    let path = format!("/var/tmp/lazaret-test-shm-{}", std::process::id());
    fs::create_dir(&path).expect("it can be made");
    path
}

#[test]
fn a_pod_has_one_docker_disk_from_its_first_client_on_whichever_of_its_containers_ends() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_few();
    let pod = pod(&["--annotation", "io.lazaret.vm.memory=2Gi"]);
    let (one, other) = (in_pod(&pod, client("docker-one")), in_pod(&pod, client("docker-other")));
    one.detach(&WAITS);
    other.detach(&WAITS);
    assert_eq!(disk(&pod), None);
    load_busybox(&one);
    let first = disk(&pod).expect("the daemon stores images");
    let images = || sh(&other, "docker images --format '{{.Repository}}'").success().out();
    assert_eq!(images(), "busybox\n");
    // The daemon ends with the container whose files it has, and is started again for the other.
    one.remove();
    assert_eq!(images(), "busybox\n");
    assert_eq!(disk(&pod), Some(first));
}

#[test]
fn a_member_ends_and_is_started_again_in_the_living_pod() {
    let _host = beside_others();
    let pod = pod(&[]);
    let beside = member(&pod, "beside");
    beside.detach(&WAITS);
    let container = member(&pod, "again");
    container.detach(&["sh", "-c", "echo x >>/runs; trap 'exit 3' TERM; while :; do sleep 0.1; done"]);
    container.exec(&["sh", "-c", "until [ -s /runs ]; do :; done; sleep 0.5"]).success();
    container.kill("SIGTERM");
    container.wait_for_status("STOPPED");
    assert_eq!(container.delete(), 3);
    container.task("start", &["--detach"]).success();
    let runs = "until [ $(wc -l </runs) = 2 ]; do :; done; wc -l </runs";
    assert_eq!(says(&container, &["sh", "-c", runs]), "2", "what it wrote is there again");
    assert_runs(&beside);
    // Also after the last of them has gone.
    container.remove();
    beside.remove();
    assert_runs(&pod);
    let late = member(&pod, "late");
    late.detach(&WAITS);
    assert_runs(&late);
}

#[test]
fn what_becomes_of_one_member_is_nothing_to_the_others() {
    let _host = beside_others();
    let pod = pod(&[]);
    let beside = member(&pod, "beside");
    beside.detach(&WAITS);
    let broken = member(&pod, "broken").run(&["no-such-command"]);
    assert!(broken.code != 0 && broken.err().contains("no-such-command"), "{broken}");
    assert_runs(&beside);
    let killed = member(&pod, "killed");
    killed.detach(&WAITS);
    let process = pid(&killed);
    assert!(![pid(&pod), pid(&beside)].contains(&process), "its pid is its own");
    if is_lazaret() {
        let comm = fs::read_to_string(format!("/proc/{process}/comm")).expect("it runs");
        assert_eq!(comm.trim(), &format!("lazaret:{}", killed.id)[..15]);
    }
    kill_process(process);
    killed.wait_for_status("STOPPED");
    assert_eq!(killed.delete(), 137);
    assert!(fs::metadata(format!("/proc/{process}")).is_err(), "it is gone");
    assert_runs(&beside);
    assert_runs(&pod);
}

#[test]
fn the_end_of_the_pods_own_container_ends_all_and_nothing_is_left() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_others();
    let pod = pod(&[]);
    let (one, other) = (member(&pod, "one"), member(&pod, "other"));
    one.detach(&WAITS);
    other.detach(&WAITS);
    let processes = [&pod, &one, &other].map(pid);
    pod.kill("SIGKILL");
    for container in [&one, &other, &pod] {
        container.wait_for_status("STOPPED");
    }
    assert!(processes.iter().all(|pid| fs::metadata(format!("/proc/{pid}")).is_err()), "{processes:?}");
    for container in [&one, &other, &pod] {
        assert_eq!(container.delete(), 137);
    }
}

#[test]
fn a_sandbox_of_one_container_is_joined_by_nobody() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_others();
    let lone = Container::new("lone");
    lone.detach(&WAITS);
    let refused = member(&lone, "stranger").run(&["true"]);
    assert_ne!(refused.code, 0, "{refused}");
    assert!(refused.err().contains("which is that of one container"), "{refused}");
    assert_runs(&lone);
}
