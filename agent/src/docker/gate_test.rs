use super::*;
use crate::container::test_support::processes;
use crate::docker::test_support::{Peer, is_root, set_mode};
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(20);

/// The socket of a gate, and that of the daemon behind it.
fn gate(users: Users) -> (tempfile::TempDir, PathBuf, UnixListener) {
    let dir = tempfile::tempdir().unwrap();
    set_mode(dir.path(), 0o755);
    let [clients, daemon] = ["docker.sock", "daemon.sock"].map(|name| dir.path().join(name));
    let listener = UnixListener::bind(&clients).unwrap();
    set_mode(&clients, 0o666);
    let behind = UnixListener::bind(&daemon).unwrap();
    tokio::spawn(Gate::new(users, daemon).serve(listener));
    (dir, clients, behind)
}

#[tokio::test]
async fn a_client_reaches_the_daemon_both_ways_and_each_way_has_its_own_end() {
    let (_dir, path, daemon) = gate(Users::Privileged);
    let mut client = UnixStream::connect(&path).await.unwrap();
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let (mut accepted, _) = timeout(LONG, daemon.accept()).await.unwrap().unwrap();
    let mut heard = String::new();
    timeout(LONG, accepted.read_to_string(&mut heard)).await.unwrap().unwrap();
    assert_eq!(heard, "question");
    accepted.write_all(b"answer").await.unwrap();
    drop(accepted);
    let mut heard = String::new();
    timeout(LONG, client.read_to_string(&mut heard)).await.unwrap().unwrap();
    assert_eq!(heard, "answer");
}

/// A process of user 1000 that cannot gain privileges.
fn stranger(path: &Path) -> (Peer, UnixStream) {
    let peer = Peer::connect(path, 1000, true);
    let stream = peer.stream.try_clone().unwrap();
    stream.set_nonblocking(true).unwrap();
    (peer, UnixStream::from_std(stream).unwrap())
}

#[tokio::test]
async fn who_may_not_use_the_daemon_reads_why_and_does_not_reach_it() {
    if !is_root("who_may_not_use_the_daemon_reads_why_and_does_not_reach_it") {
        return;
    }
    let _alone = processes().await;
    let (_dir, path, daemon) = gate(Users::Privileged);
    let (_peer, mut stranger) = stranger(&path);
    stranger.write_all(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    stranger.shutdown().await.unwrap();
    let mut answer = String::new();
    timeout(LONG, stranger.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{head}");
    let message = "the sandbox's Docker daemon: user 1000 may not use it from a container with noNewPrivileges, unless the \
                   sandbox has the annotation io.lazaret.docker.users=all";
    assert_eq!(body, serde_json::json!({ "message": message }).to_string());
    // The only connection is that of the client that comes after.
    let mut client = UnixStream::connect(&path).await.unwrap();
    client.write_all(b"me").await.unwrap();
    let (mut accepted, _) = timeout(LONG, daemon.accept()).await.unwrap().unwrap();
    let mut heard = [0; 2];
    timeout(LONG, accepted.read_exact(&mut heard)).await.unwrap().unwrap();
    assert_eq!(&heard, b"me");
}

#[tokio::test]
async fn every_user_reaches_the_daemon_where_all_may() {
    if !is_root("every_user_reaches_the_daemon_where_all_may") {
        return;
    }
    let _alone = processes().await;
    let (_dir, path, daemon) = gate(Users::All);
    let (_peer, mut stranger) = stranger(&path);
    stranger.write_all(b"me").await.unwrap();
    let (mut accepted, _) = timeout(LONG, daemon.accept()).await.unwrap().unwrap();
    let mut heard = [0; 2];
    timeout(LONG, accepted.read_exact(&mut heard)).await.unwrap().unwrap();
    assert_eq!(&heard, b"me");
}

#[tokio::test]
async fn strangers_that_say_nothing_keep_nobody_out() {
    if !is_root("strangers_that_say_nothing_keep_nobody_out") {
        return;
    }
    let _alone = processes().await;
    let (_dir, path, daemon) = gate(Users::Privileged);
    let strangers: Vec<_> = (0..MAX_REFUSALS + 3).map(|_| stranger(&path)).collect();
    // Those that are too many are hung up on at once; the others have two seconds for their question.
    let soon = Duration::from_secs(1);
    let read = strangers.iter().map(|(_, stranger)| timeout(soon, stranger.readable()));
    let hung_up = futures::future::join_all(read).await.into_iter().filter(Result::is_ok).count();
    assert!(hung_up >= 3, "{hung_up}");
    let _client = UnixStream::connect(&path).await.unwrap();
    timeout(LONG, daemon.accept()).await.unwrap().unwrap();
}
