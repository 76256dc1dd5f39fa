//! The host's side of the end-to-end tests: the shim's RPCs and streams, and a machine that containers can run on.

use crate::cgroup;
use crate::container::Containers;
use crate::container::test_support::processes;
use crate::crun::Crun;
use crate::link::Link;
use crate::network::Slots;
use crate::power::Power;
use crate::reaper::Reaper;
use crate::service::AgentService;
use crate::stdio;
use lazaret_agent_api::agent::stream_header::Kind;
use lazaret_agent_api::agent::{
    ContainerRequest, CreateContainerRequest, CreateExecRequest, ProcessRequest, SignalProcessRequest,
    StatsResponse, Stdio, StreamHeader, UpdateContainerRequest, WaitOomRequest, WaitProcessResponse,
};
use lazaret_agent_api::{Ack, agent_ttrpc, encode_header};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex};
use tokio::sync::{MutexGuard, OnceCell};
use tokio::time::timeout;
use ttrpc::Code;
use ttrpc::asynchronous::transport::{Listener, Socket};
use ttrpc::asynchronous::{Client, Server};
use ttrpc::context::Context;

const BUSYBOX: &str = "/bin/busybox";

pub(super) struct Host {
    pub(super) agent: agent_ttrpc::AgentClient,
    pub(super) containers: Arc<Containers>,
    _server: Server,
    /// Whether containers have cgroups.
    pub(super) cgroups: bool,
    pub(super) dir: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// `None` when something is missing, which it says.
pub(super) async fn host(test: &str) -> Option<Host> {
    let missing = if !nix::unistd::geteuid().is_root() {
        Some("it is not run by root")
    } else if !Path::new(crate::paths::CRUN).exists() {
        Some("crun is not installed")
    } else if !Path::new(BUSYBOX).exists() {
        Some("busybox is not installed")
    } else {
        None
    };
    if let Some(missing) = missing {
        skipped(test, missing);
        return None;
    }
    let alone = processes().await;
    if let Err(errno) = own_mounts() {
        skipped(test, &format!("it may not mount a cgroup hierarchy: {errno}"));
        return None;
    }
    // As process 1 is: the containers' processes become its children when crun leaves them.
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let rootfs = dir.path().join("rootfs");
    for name in ["bin", "proc", "dev", "tmp", "sys"] {
        std::fs::create_dir_all(rootfs.join(name)).unwrap();
    }
    std::fs::copy(BUSYBOX, rootfs.join("bin/busybox")).unwrap();
    for name in ["sh", "cat", "echo", "sleep", "true", "id", "stty", "ls", "sha256sum", "head"] {
        std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(name)).unwrap();
    }
    std::fs::create_dir(dir.path().join("bundles")).unwrap();
    let cgroups = has_cgroups();
    let reaper = Reaper::start().unwrap();
    let crun = if cgroups {
        cgroup::enable_controllers().unwrap();
        Crun::with_cgroups(dir.path().join("crun"), reaper.clone())
    } else {
        Crun::without_cgroups(dir.path().join("crun"), reaper.clone())
    };
    let containers = Arc::new(Containers::at(dir.path().join("bundles"), crun));
    let (ours, theirs) = duplex(1 << 16);
    let power = Arc::new(Power::default());
    // The machine keeps its devices.
    let slots = Arc::new(OnceCell::new_with(Some(Slots::none())));
    let service = AgentService::new(containers.clone(), reaper, power.clone(), slots);
    let link = Link::new(theirs, power);
    let mut server = Server::new()
        .add_listener(Listener::new(futures::stream::iter([Ok(link)])))
        .register_service(agent_ttrpc::create_agent(Arc::new(service)));
    server.start().await.unwrap();
    let agent = agent_ttrpc::AgentClient::new(Client::new(Socket::new(ours)));
    Some(Host { agent, containers, _server: server, cgroups, dir, _alone: alone })
}

/// Past the test harness, which keeps what a test that passes prints to itself.
pub(super) fn skipped(test: &str, why: &str) {
    // There is nobody else to tell.
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {why}");
}

/// Gives this thread, and so crun, a mount namespace in which the cgroup hierarchy is version 2, as in a guest. Whatever
/// the machine has, its mounts are left alone.
fn own_mounts() -> nix::Result<()> {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let none: Option<&str> = None;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    // Not a mount everywhere.
    let _ = umount2("/sys/fs/cgroup", MntFlags::MNT_DETACH);
    mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), none)
}

/// The controllers are version 2's, and this program may have them used.
fn has_cgroups() -> bool {
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    ["memory", "pids"].iter().all(|needed| controllers.split_whitespace().any(|name| name == *needed))
}

pub(super) fn within() -> Context {
    ttrpc::context::with_duration(Duration::from_secs(60))
}

fn all() -> Stdio {
    Stdio { stdin: true, stdout: true, stderr: true, ..Default::default() }
}

pub(super) fn failure<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (Code, String) {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message().to_owned()),
        other => panic!("no status: {other:?}"),
    }
}

pub(super) fn process(args: &[&str]) -> Value {
    json!({ "args": args, "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 } })
}

fn create_request(id: &str, spec: &Value) -> CreateContainerRequest {
    CreateContainerRequest {
        container_id: id.into(),
        spec: spec.to_string().into_bytes(),
        stdio: Some(all()).into(),
        ..Default::default()
    }
}

impl Host {
    pub(super) fn spec(&self, process: Value) -> Value {
        json!({
            "ociVersion": "1.0.0",
            "root": { "path": self.dir.path().join("rootfs") },
            "process": process,
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"] },
            ],
            "linux": { "namespaces": [{ "type": "mount" }, { "type": "network", "path": "/nonexistent" }] },
        })
    }

    pub(super) async fn create(&self, id: &str, spec: &Value) -> ttrpc::Result<u32> {
        self.create_member(id, spec, &[]).await
    }

    /// A container that has namespaces of others: their types, and whose.
    pub(super) async fn create_member(
        &self,
        id: &str,
        spec: &Value,
        joins: &[(&str, &str)],
    ) -> ttrpc::Result<u32> {
        let joins = joins.iter().map(|(kind, of)| ((*kind).to_owned(), (*of).to_owned())).collect();
        self.create_by(CreateContainerRequest { joins, ..create_request(id, spec) }).await
    }

    /// A container that only holds its pod.
    pub(super) async fn create_holder(&self, id: &str, spec: &Value) -> ttrpc::Result<u32> {
        self.create_by(CreateContainerRequest { holds_pod: true, ..create_request(id, spec) }).await
    }

    async fn create_by(&self, request: CreateContainerRequest) -> ttrpc::Result<u32> {
        Ok(self.agent.create_container(within(), &request).await?.pid)
    }

    pub(super) async fn create_exec(&self, id: &str, exec_id: &str, process: &Value) -> ttrpc::Result<()> {
        let request = CreateExecRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
            process: process.to_string().into_bytes(),
            stdio: Some(all()).into(),
            ..Default::default()
        };
        self.agent.create_exec(within(), &request).await.map(drop)
    }

    pub(super) async fn start(&self, id: &str, exec_id: &str) -> ttrpc::Result<u32> {
        Ok(self.agent.start_process(within(), &request(id, exec_id)).await?.pid)
    }

    pub(super) async fn wait(&self, id: &str, exec_id: &str) -> ttrpc::Result<WaitProcessResponse> {
        self.agent.wait_process(within(), &request(id, exec_id)).await
    }

    pub(super) async fn delete(&self, id: &str, exec_id: &str) -> ttrpc::Result<()> {
        self.containers.delete(id, exec_id, async {}).await.map_err(ttrpc::Error::from)
    }

    pub(super) async fn signal(&self, id: &str, exec_id: &str, signal: i32, all: bool) -> ttrpc::Result<()> {
        let request = SignalProcessRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
            signal: signal.unsigned_abs(),
            all,
            ..Default::default()
        };
        self.agent.signal_process(within(), &request).await.map(drop)
    }

    pub(super) async fn stats(&self, id: &str) -> ttrpc::Result<StatsResponse> {
        let request = ContainerRequest { container_id: id.into(), ..Default::default() };
        self.agent.get_stats(within(), &request).await
    }

    pub(super) async fn update(&self, id: &str, resources: &Value) -> ttrpc::Result<()> {
        let resources = resources.to_string().into_bytes();
        let request = UpdateContainerRequest { container_id: id.into(), resources, ..Default::default() };
        self.agent.update_container(within(), &request).await.map(drop)
    }

    pub(super) async fn wait_oom(&self, id: &str, seen: u64) -> ttrpc::Result<u64> {
        let request = WaitOomRequest { container_id: id.into(), seen, ..Default::default() };
        Ok(self.agent.wait_oom(within(), &request).await?.oom_kills)
    }

    pub(super) async fn attach(&self, id: &str, exec_id: &str, kind: Kind) -> DuplexStream {
        let (mut ours, theirs) = duplex(1 << 16);
        let header = StreamHeader {
            container_id: id.into(),
            exec_id: exec_id.into(),
            kind: kind.into(),
            ..Default::default()
        };
        ours.write_all(&encode_header(&header).unwrap()).await.unwrap();
        stdio::serve(theirs, &self.containers).await.unwrap();
        assert_eq!(ours.read_u8().await.unwrap(), Ack::Attached as u8);
        ours
    }

    /// Runs a container to its end: its exit status, output and error output.
    pub(super) async fn run(&self, id: &str, spec: &Value) -> (u32, String, String) {
        self.create(id, spec).await.unwrap();
        let stdout = self.attach(id, "", Kind::STDOUT).await;
        let stderr = self.attach(id, "", Kind::STDERR).await;
        self.start(id, "").await.unwrap();
        let (out, err, exit) = tokio::join!(text(stdout), text(stderr), self.wait(id, ""));
        self.delete(id, "").await.unwrap();
        (exit.unwrap().exit_status, out, err)
    }

    /// A container that does nothing until it is killed.
    pub(super) async fn idle(&self, id: &str) -> u32 {
        self.create(id, &self.spec(process(&["sleep", "1000"]))).await.unwrap();
        self.start(id, "").await.unwrap()
    }

    pub(super) fn nothing_is_left(&self) {
        for place in ["bundles", "crun"] {
            let left: Vec<_> = std::fs::read_dir(self.dir.path().join(place)).unwrap().collect();
            assert!(left.is_empty(), "{place}: {left:?}");
        }
        if self.cgroups {
            let place = format!("{}{}", crate::paths::CGROUP_ROOT, crate::paths::CGROUP_PARENT);
            let left =
                std::fs::read_dir(place).unwrap().flatten().filter(|entry| entry.path().is_dir()).count();
            assert_eq!(left, 0, "cgroups");
        }
    }
}

/// A failed test leaves nothing that runs, and no test leaves the machine a cgroup.
impl Drop for Host {
    fn drop(&mut self) {
        self.containers.kill();
        if self.cgroups {
            // Not empty, after a failure.
            let _ = std::fs::remove_dir("/sys/fs/cgroup/lazaret");
        }
    }
}

fn request(id: &str, exec_id: &str) -> ProcessRequest {
    ProcessRequest { container_id: id.into(), exec_id: exec_id.into(), ..Default::default() }
}

pub(super) async fn text(mut stream: DuplexStream) -> String {
    let mut text = String::new();
    timeout(Duration::from_secs(60), stream.read_to_string(&mut text)).await.unwrap().unwrap();
    text
}

pub(super) async fn line(stream: &mut BufReader<DuplexStream>) -> String {
    let mut line = String::new();
    timeout(Duration::from_secs(60), stream.read_line(&mut line)).await.unwrap().unwrap();
    line
}
