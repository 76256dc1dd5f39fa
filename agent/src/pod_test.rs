//! Several containers in one guest, by the real crun: what they share, and whose files the Docker daemon has.

use crate::test_host::{Host, failure, host, process};
use serde_json::{Value, json};
use std::cell::Cell;
use std::path::PathBuf;
use ttrpc::Code;

/// A container that waits, with namespaces of its own; the paths are the host's, as CRI writes them.
fn idle(host: &Host, paths: bool) -> Value {
    let mut spec = host.spec(process(&["sleep", "1000"]));
    let namespace = |kind: &str| match paths {
        true => json!({ "type": kind, "path": format!("/proc/1/ns/{kind}") }),
        false => json!({ "type": kind }),
    };
    spec["linux"]["namespaces"] =
        json!([{ "type": "mount" }, namespace("pid"), namespace("ipc"), namespace("uts")]);
    spec
}

fn namespace(pid: u32, kind: &str) -> PathBuf {
    std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

/// The types of namespaces that two processes share, and so the containers that they are the first of.
fn shared(one: u32, other: u32) -> Vec<&'static str> {
    ["ipc", "mnt", "pid", "uts"]
        .into_iter()
        .filter(|kind| namespace(one, kind) == namespace(other, kind))
        .collect()
}

async fn remove(host: &Host, id: &str) {
    host.signal(id, "", libc::SIGKILL, true).await.unwrap();
    host.wait(id, "").await.unwrap();
    host.delete(id, "").await.unwrap();
}

#[tokio::test]
async fn containers_share_the_namespaces_that_are_named_and_no_others() {
    let Some(host) = host("containers_share_the_namespaces_that_are_named_and_no_others").await else {
        return;
    };
    let pod = host.create_holder("pod", &idle(&host, false)).await.unwrap();
    let member = [("ipc", "pod"), ("uts", "pod")];
    let c1 = host.create_member("c1", &idle(&host, true), &member).await.unwrap();
    let c2 = host.create_member("c2", &idle(&host, true), &member).await.unwrap();
    assert_eq!(shared(pod, c1), ["ipc", "uts"]);
    assert_eq!(shared(c1, c2), ["ipc", "uts"]);
    // A path that is not named leads to a new one, not to the machine's.
    let alone = host.create_member("c3", &idle(&host, true), &[]).await.unwrap();
    assert_eq!(shared(pod, alone), [""; 0]);
    assert_eq!(shared(std::process::id(), alone), [""; 0]);
    // One that sees the processes of another, as those of a pod and debuggers do.
    let debugger = [("pid", "c1"), ("ipc", "pod"), ("uts", "pod")];
    let c4 = host.create_member("c4", &idle(&host, true), &debugger).await.unwrap();
    assert_eq!(shared(c1, c4), ["ipc", "pid", "uts"]);
    for id in ["pod", "c1", "c2", "c3", "c4"] {
        host.start(id, "").await.unwrap();
    }
    // The end of one is no end of another, whatever it shares.
    remove(&host, "c4").await;
    remove(&host, "c2").await;
    host.create_exec("c1", "e1", &process(&["true"])).await.unwrap();
    host.start("c1", "e1").await.unwrap();
    assert_eq!(host.wait("c1", "e1").await.unwrap().exit_status, 0);
    for id in ["c1", "c3", "pod"] {
        remove(&host, id).await;
    }
    host.nothing_is_left();
}

#[tokio::test]
async fn what_does_not_run_or_is_no_namespace_is_not_joined() {
    let Some(host) = host("what_does_not_run_or_is_no_namespace_is_not_joined").await else { return };
    host.create("pod", &idle(&host, false)).await.unwrap();
    let spec = idle(&host, true);
    for (joins, expected) in [
        (("ipc", "nobody"), Code::FAILED_PRECONDITION),
        (("mount", "pod"), Code::INVALID_ARGUMENT),
        (("../ns/ipc", "pod"), Code::INVALID_ARGUMENT),
    ] {
        let (code, line) = failure(host.create_member("c1", &spec, &[joins]).await);
        assert_eq!((code, line.contains('\n')), (expected, false), "{line}");
    }
    host.start("pod", "").await.unwrap();
    host.signal("pod", "", libc::SIGKILL, true).await.unwrap();
    host.wait("pod", "").await.unwrap();
    let (code, line) = failure(host.create_member("c1", &spec, &[("ipc", "pod")]).await);
    assert_eq!(code, Code::FAILED_PRECONDITION);
    assert_eq!(line, "container c1: it is to have the ipc namespace of container pod, which does not run");
    host.delete("pod", "").await.unwrap();
    host.nothing_is_left();
}

#[tokio::test]
async fn dockerd_has_the_files_of_an_app_and_ends_with_that_one_alone() {
    let Some(host) = host("dockerd_has_the_files_of_an_app_and_ends_with_that_one_alone").await else {
        return;
    };
    let view = || host.containers.take_docker_view().map(libc::pid_t::unsigned_abs);
    let delete = async |id: &str| {
        let ended = Cell::new(false);
        host.containers.delete(id, "", async { ended.set(true) }).await.unwrap();
        ended.get()
    };
    assert_eq!(view(), None);
    let spec = idle(&host, false);
    let pod = host.create_holder("pod", &spec).await.unwrap();
    assert_eq!(view(), Some(pod), "there is no other");
    let c1 = host.create("c1", &spec).await.unwrap();
    host.create("c2", &spec).await.unwrap();
    assert_eq!(view(), Some(c1), "the oldest that is not the pod's holder");
    assert!(!delete("c2").await);
    assert!(!delete("pod").await);
    assert!(delete("c1").await);
    assert_eq!(view(), None);
    // One whose files it had before is nothing to it now.
    let c1 = host.create("c1", &spec).await.unwrap();
    assert_eq!(view(), Some(c1));
    host.start("c1", "").await.unwrap();
    host.signal("c1", "", libc::SIGKILL, true).await.unwrap();
    host.wait("c1", "").await.unwrap();
    let c2 = host.create("c2", &spec).await.unwrap();
    assert_eq!(view(), Some(c2), "that of one that has not ended");
    assert!(!delete("c1").await);
    assert!(delete("c2").await);
    host.nothing_is_left();
}
