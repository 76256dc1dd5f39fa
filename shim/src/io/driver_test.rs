use super::super::{ProcessIo, Stdio as Addresses};
use super::*;
use crate::error::Error;
use lazaret_agent_api::agent::stream_header::Kind;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

const OWNER: Owner<'_> = Owner { id: "c1", namespace: "ns1" };

/// A driver that runs `script`, with a directory to write to as its first argument's value.
fn driver(dir: &Path, script: &str) -> Addresses {
    let binary = dir.join("driver");
    fs::write(&binary, format!("#!/bin/sh\ndir=$2\n{script}\n")).unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    let address = format!("binary://{}?dir={}", binary.display(), dir.display());
    Addresses { stdout: address.clone(), stderr: address, ..Default::default() }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let poll = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), poll).await.expect(what);
}

/// Writes what `kind` says to the guest's end of each output, and closes it.
async fn attach(io: &mut ProcessIo) {
    let connect = async |kind: Kind| {
        let (ours, mut guests) = UnixStream::pair().unwrap();
        guests.write_all(format!("{kind:?}").as_bytes()).await.unwrap();
        Ok(ours)
    };
    io.attach(connect).await.unwrap();
    io.outputs_open().wait_for(|open| *open == 0).await.unwrap();
}

#[tokio::test]
async fn a_driver_has_both_outputs_their_end_and_whose_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| -> PathBuf { dir.path().join(name) };
    let script = "echo $1 $CONTAINER_ID $CONTAINER_NAMESPACE >$dir/who; exec 5>&-
        cat <&3 >$dir/out & cat <&4 >$dir/err; wait; mv $dir/who $dir/done";
    let mut io = ProcessIo::open(&driver(dir.path(), script), OWNER).await.unwrap();
    assert!(at("who").exists(), "it was waited for until it was ready");
    attach(&mut io).await;
    until("both outputs ended", || at("done").exists()).await;
    assert_eq!(fs::read_to_string(at("done")).unwrap(), "dir c1 ns1\n");
    assert_eq!(fs::read_to_string(at("out")).unwrap(), "STDOUT");
    assert_eq!(fs::read_to_string(at("err")).unwrap(), "STDERR");
}

#[tokio::test]
async fn a_driver_that_does_not_end_with_its_outputs_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let script = "echo $$ >$dir/pid; exec 5>&-; exec sleep 1000";
    let io = ProcessIo::open(&driver(dir.path(), script), OWNER).await.unwrap();
    let pid = fs::read_to_string(dir.path().join("pid")).unwrap();
    let process = PathBuf::from(format!("/proc/{}", pid.trim()));
    assert!(process.exists());
    drop(io);
    until("it is killed, and reaped", || !process.exists()).await;
}

#[tokio::test]
async fn a_driver_that_cannot_be_run_or_is_never_ready_is_told_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let never = driver(dir.path(), "exec sleep 1000");
    let absent = Addresses { stdout: "binary:///nonexistent/driver".into(), ..Default::default() };
    for (stdio, name) in [(never, dir.path().join("driver")), (absent, "/nonexistent/driver".into())] {
        let refused = ProcessIo::open(&stdio, OWNER).await.map_err(Error::from);
        let Err(Error::InvalidArgument(line) | Error::DeadlineExceeded(line)) = refused else {
            panic!("it runs")
        };
        assert!(line.contains(&name.display().to_string()), "{line}");
    }
}
