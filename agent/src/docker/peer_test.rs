use super::*;
use crate::container::test_support::processes;
use crate::docker::test_support::{Peer, is_root, set_mode};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

/// A socket that every user can connect to.
fn socket() -> (tempfile::TempDir, UnixListener, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    set_mode(dir.path(), 0o755);
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    set_mode(&path, 0o666);
    (dir, listener, path)
}

#[tokio::test]
async fn those_who_could_be_root_may_use_it() {
    if !is_root("those_who_could_be_root_may_use_it") {
        return;
    }
    let _alone = processes().await;
    let (_dir, listener, path) = socket();
    let refused = "user 1000 may not use it from a container with noNewPrivileges, unless the sandbox has the annotation \
                   io.lazaret.docker.users=all";
    for (uid, no_new_privileges, expected) in
        [(0, false, Ok(())), (0, true, Ok(())), (1000, false, Ok(())), (1000, true, Err(refused.to_owned()))]
    {
        let _peer = Peer::connect(&path, uid, no_new_privileges);
        let (stream, _) = listener.accept().unwrap();
        assert_eq!(may_use(&stream), expected, "user {uid}, noNewPrivileges {no_new_privileges}");
    }
}

#[tokio::test]
async fn a_process_that_has_ended_vouches_for_nobody() {
    if !is_root("a_process_that_has_ended_vouches_for_nobody") {
        return;
    }
    let _alone = processes().await;
    let (_dir, listener, path) = socket();
    let mut peer = Peer::connect(&path, 1000, false);
    let (stream, _) = listener.accept().unwrap();
    // It has ended, but still has its pid.
    peer.process.kill().unwrap();
    let mut ended = nix::sys::wait::WaitPidFlag::WEXITED;
    ended |= nix::sys::wait::WaitPidFlag::WNOWAIT;
    let pid = nix::unistd::Pid::from_raw(peer.process.id().try_into().unwrap());
    nix::sys::wait::waitid(nix::sys::wait::Id::Pid(pid), ended).unwrap();
    let line = may_use(&stream).unwrap_err();
    assert_eq!(line, "it is not known whether user 1000 could become root: its process has ended");
    drop(peer);
    let line = may_use(&stream).unwrap_err();
    assert!(line.starts_with("it is not known whether user 1000 could become root: "), "{line}");
}

#[test]
fn a_field_is_not_mistaken_for_another() {
    let status = "Name:\tNoNewPrivs:\\n0\nNoNewPrivsX:\t5\nUid:\t0\t0\t0\t0\nNoNewPrivs:\t1\n";
    assert_eq!(field(status, "NoNewPrivs"), Some("1"));
    assert_eq!(field(status, "Seccomp"), None);
}
