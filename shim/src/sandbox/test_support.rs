//! The other side of a sandbox, scripted: a VMM's end of the control channel and an agent's of its service, both over
//! the real wire, so that a test can let any step fail. And a mount namespace as the shim's server has it.

mod vmm;

use super::cgroup::Cgroup;
use super::docker::disk::LaterDisk;
use super::guest::{Guest, Share};
use super::membership::Kind as SandboxKind;
use super::network::Network;
use super::*;
use crate::config::Config;
use crate::io::Stdio;
use crate::state::{ProcessId, StateDir};
use crate::sync::lock;
use crate::volume::{Capacity, VolumeName};
use async_trait::async_trait;
use containerd_shim_protos::shim::event::Envelope;
use lazaret_agent_api::agent::{self, stream_header::Kind};
use lazaret_agent_api::agent_ttrpc::{Agent, AgentClient, create_agent};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use protobuf::Message;
use serde_json::json;
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use ttrpc::r#async::transport::{Listener, Socket};
use ttrpc::r#async::{Client, Server, TtrpcContext};
use ttrpc::{Code, get_status};
pub(crate) use vmm::{Disks, descriptor_of};

/// Runs `test` in a mount namespace of its own, with a shared tree, and a root to serve beside it.
pub(crate) fn in_namespace(test: impl FnOnce(&Path, &Path) + Send + 'static) {
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).expect("these tests need root");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let shared = dir.path().join("shared");
        fs::create_dir(&shared).unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::write(dir.path().join("root/hello"), "hello").unwrap();
        mount(Some(&shared), &shared, none, MsFlags::MS_BIND, none).unwrap();
        mount(none, &shared, none, MsFlags::MS_SHARED, none).unwrap();
        test(dir.path(), &shared);
        assert_eq!(fs::read_dir(&shared).unwrap().count(), 0, "everything is undone");
        assert_eq!(mounts_below(&shared), 0);
        nix::mount::umount2(&shared, nix::mount::MntFlags::MNT_DETACH).unwrap();
    };
    std::thread::spawn(run).join().unwrap();
}

/// Runs `test` on a sandbox with a scripted guest.
pub(crate) fn on_stage(script: Script, test: impl AsyncFnOnce(&mut Stage, PathBuf) + Send + 'static) {
    in_namespace(move |dir, shared| {
        let spec = json!({"root": {"path": dir.join("root")}, "process": {"args": ["true"]}, "linux": {"namespaces": namespaces(None)}});
        fs::write(dir.join("config.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
        for pipe in ["in", "out"] {
            nix::unistd::mkfifo(&dir.join(pipe), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let run = async {
            let mut stage = Stage::new(dir, shared, script).await;
            let vmm = stage.vmm;
            let sandbox = stage.sandbox.clone();
            test(&mut stage, dir.into()).await;
            sandbox.end().await;
            assert!(!Path::new(&format!("/proc/{vmm}/exe")).exists(), "the VMM is gone");
        };
        let all = async { tokio::time::timeout(Duration::from_secs(60), run).await };
        runtime.block_on(all).expect("the test ends in time");
    });
}

/// A Create of container `c1`.
pub(crate) fn new(bundle: &Path) -> NewContainer {
    let pipe = |name: &str| bundle.join(name).display().to_string();
    let stdio = Stdio { stdin: pipe("in"), stdout: pipe("out"), ..Stdio::default() };
    NewContainer { id: "c1".into(), bundle: bundle.into(), rootfs: vec![], stdio, checkpoint: String::new() }
}

/// A Create of container `id` of the pod or group whose own container is `c1`. Its ipc and uts namespaces are those of the
/// process `joins`, if it is to join any.
pub(crate) fn member(dir: &Path, id: &str, joins: Option<u32>) -> NewContainer {
    let bundle = dir.join(id);
    fs::create_dir_all(&bundle).unwrap();
    let annotations = json!({"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "c1",
        "io.containerd.runc.v2.group": "c1"});
    let spec = json!({"root": {"path": dir.join("root")}, "process": {"args": ["true"]}, "annotations": annotations,
        "linux": {"namespaces": namespaces(joins)}});
    fs::write(bundle.join("config.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
    NewContainer { id: id.into(), bundle, rootfs: vec![], stdio: Stdio::default(), checkpoint: String::new() }
}

fn namespaces(joins: Option<u32>) -> serde_json::Value {
    let path = |kind: &str| joins.map_or(String::new(), |pid| format!("/proc/{pid}/ns/{kind}"));
    json!([{"type": "pid"}, {"type": "ipc", "path": path("ipc")}, {"type": "uts", "path": path("uts")}])
}

/// The budget for Docker disks, MiB; the sandbox's own has 64.
pub(crate) const DISKS_MIB: u64 = 100;

/// The state directory of the sandbox whose files are in `dir`.
pub(crate) fn state(dir: &Path) -> StateDir {
    StateDir::new(&dir.join("run"), "default", "c1")
}

/// What an exec is to run.
pub(crate) const PROCESS: &[u8] = br#"{"args": ["true"]}"#;

/// The mounts below `path` in this thread's namespace.
pub(crate) fn mounts_below(path: &Path) -> usize {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let below = format!("{}/", path.display());
    table.lines().filter(|line| line.split(' ').nth(4).unwrap().starts_with(&below)).count()
}

/// What the scripted agent is to do, and what it was asked.
#[derive(Default)]
pub(crate) struct Script {
    /// The call that fails: its name, and that of the process ([`name`]) after it.
    pub(crate) fails: Option<&'static str>,
    /// The stream the agent refuses.
    pub(crate) refuses: Option<Kind>,
    /// `StartProcess` answers only when the process has ended and its end was told.
    pub(crate) ends_before_start_answers: bool,
    /// What `SignalProcess` does besides killing.
    pub(crate) killing: Killing,
    /// `WaitProcess` knows no process.
    pub(crate) forgets: bool,
    /// The Docker daemon's disk is a volume.
    pub(crate) keeps_data: bool,
    /// `Shutdown` never answers.
    pub(crate) hangs_in_shutdown: bool,
    /// What the sandbox is, if not that of one container.
    pub(crate) kind: Option<SandboxKind>,
    /// The VMM has a cgroup, which is a directory with these interface files: `cgroup/c1/vm` in the test's.
    pub(crate) cgroup_files: &'static [&'static str],
    /// The VMM says that it does not take so many of the disks it is handed.
    pub(crate) refused_disks: usize,
}

#[derive(Default, PartialEq, Eq)]
pub(crate) enum Killing {
    #[default]
    Done,
    /// It answers, and kills nothing.
    Pretended,
    /// It never answers.
    Ignored,
}

/// The agent's state.
pub(crate) struct Scripted {
    script: Script,
    calls: watch::Sender<Vec<String>>,
    /// What containers were made from.
    specs: Mutex<Vec<agent::CreateContainerRequest>>,
    /// By the name of the process ([`name`]).
    exits: watch::Sender<HashMap<String, u32>>,
    exit_reported: watch::Sender<bool>,
    oom_kills: watch::Sender<u64>,
    /// How often the guest has asked for a disk, and has been answered.
    disk_requests: watch::Sender<usize>,
    disk_answers: watch::Sender<Vec<String>>,
}

impl Scripted {
    /// Asks for the Docker daemon's disk; the shim's answer.
    pub(crate) async fn ask_for_disk(&self) -> String {
        let mut answers = self.disk_answers.subscribe();
        let answered = answers.borrow_and_update().len();
        self.disk_requests.send_modify(|requests| *requests += 1);
        answers.wait_for(|answers| answers.len() > answered).await.unwrap().last().unwrap().clone()
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.calls.borrow().clone()
    }

    /// What container `id` was made from.
    pub(crate) fn request(&self, id: &str) -> agent::CreateContainerRequest {
        let specs = lock(&self.specs);
        specs.iter().find(|request| request.container_id == id).unwrap().clone()
    }

    pub(crate) async fn until_called(&self, call: &str) {
        let mut calls = self.calls.subscribe();
        calls.wait_for(|calls| calls.iter().any(|made| made == call)).await.unwrap();
    }

    /// The kernel has killed that many processes of the container for want of memory.
    pub(super) fn oom_kill(&self, kills: u64) {
        self.oom_kills.send_replace(kills);
    }

    /// The process of that name ends.
    pub(crate) fn exit(&self, name: &str, status: u32) {
        self.exits.send_modify(|exits| _ = exits.insert(name.into(), status));
    }

    fn answer<T: Default>(&self, call: &'static str, name: &str) -> ttrpc::Result<T> {
        let call = format!("{call} {name}").trim_end().to_owned();
        self.calls.send_modify(|calls| calls.push(call.clone()));
        if self.script.fails == Some(&call) {
            let status = get_status(Code::INVALID_ARGUMENT, format!("{call} fails"));
            return Err(ttrpc::Error::RpcStatus(status));
        }
        Ok(T::default())
    }
}

/// What a test calls a process: those of `c1` by their exec id alone, the one of another container by that container's id.
fn name(container: &str, exec: &str) -> String {
    match (container, exec) {
        ("c1", _) => exec.into(),
        (_, "") => container.into(),
        _ => format!("{container}/{exec}"),
    }
}

/// What the service's connection holds on to.
#[derive(Clone)]
struct Handle(Arc<Scripted>);

#[async_trait]
impl Agent for Handle {
    async fn create_container(
        &self,
        _: &TtrpcContext,
        r: agent::CreateContainerRequest,
    ) -> ttrpc::Result<agent::ProcessResponse> {
        let name = name(&r.container_id, "");
        lock(&self.0.specs).push(r);
        self.0.answer("create", &name)
    }

    async fn create_exec(
        &self,
        _: &TtrpcContext,
        r: agent::CreateExecRequest,
    ) -> ttrpc::Result<agent::Empty> {
        self.0.answer("create", &name(&r.container_id, &r.exec_id))
    }

    async fn start_process(
        &self,
        _: &TtrpcContext,
        r: agent::ProcessRequest,
    ) -> ttrpc::Result<agent::ProcessResponse> {
        if self.0.script.ends_before_start_answers {
            self.0.exit(&name(&r.container_id, &r.exec_id), 7);
            self.0.exit_reported.subscribe().wait_for(|reported| *reported).await.unwrap();
        }
        self.0.answer("start", &name(&r.container_id, &r.exec_id))
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        r: agent::ProcessRequest,
    ) -> ttrpc::Result<agent::WaitProcessResponse> {
        if self.0.script.forgets {
            let status = get_status(Code::NOT_FOUND, "there is no such process");
            return Err(ttrpc::Error::RpcStatus(status));
        }
        let mut exits = self.0.exits.subscribe();
        let name = name(&r.container_id, &r.exec_id);
        let exits = exits.wait_for(|exits| exits.contains_key(&name)).await.unwrap();
        self.0.exit_reported.send_replace(true);
        let oom_kills = *self.0.oom_kills.borrow();
        Ok(agent::WaitProcessResponse { exit_status: exits[&name], oom_kills, ..Default::default() })
    }

    async fn get_stats(
        &self,
        _: &TtrpcContext,
        r: agent::ContainerRequest,
    ) -> ttrpc::Result<agent::StatsResponse> {
        self.0.answer::<agent::Empty>("stats", &name(&r.container_id, ""))?;
        let memory = agent::Memory { usage: 5 << 20, usage_limit: u64::MAX, ..Default::default() };
        Ok(agent::StatsResponse { memory: Some(memory).into(), ..Default::default() })
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        r: agent::UpdateContainerRequest,
    ) -> ttrpc::Result<agent::Empty> {
        self.0.answer("update", std::str::from_utf8(&r.resources).unwrap())
    }

    async fn wait_oom(
        &self,
        _: &TtrpcContext,
        r: agent::WaitOomRequest,
    ) -> ttrpc::Result<agent::WaitOomResponse> {
        let mut kills = self.0.oom_kills.subscribe();
        let kills = *kills.wait_for(|kills| *kills > r.seen).await.unwrap();
        Ok(agent::WaitOomResponse { oom_kills: kills, ..Default::default() })
    }

    async fn wait_disk(&self, _: &TtrpcContext, _: agent::Empty) -> ttrpc::Result<agent::Empty> {
        let answered = self.0.disk_answers.borrow().len();
        let mut requests = self.0.disk_requests.subscribe();
        requests.wait_for(|requests| *requests > answered).await.unwrap();
        self.0.answer("wait disk", "")
    }

    async fn answer_disk(
        &self,
        _: &TtrpcContext,
        r: agent::AnswerDiskRequest,
    ) -> ttrpc::Result<agent::Empty> {
        self.0.disk_answers.send_modify(|answers| answers.push(r.refused));
        Ok(agent::Empty::default())
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        r: agent::SignalProcessRequest,
    ) -> ttrpc::Result<agent::Empty> {
        let name = name(&r.container_id, &r.exec_id);
        let answer = self.0.answer(if r.all { "signal all" } else { "signal" }, &name);
        match self.0.script.killing {
            Killing::Done => {}
            Killing::Pretended => return answer,
            Killing::Ignored => std::future::pending().await,
        }
        self.0.exit(&name, 128 + r.signal);
        answer
    }

    async fn resize_terminal(
        &self,
        _: &TtrpcContext,
        r: agent::ResizeTerminalRequest,
    ) -> ttrpc::Result<agent::Empty> {
        self.0.answer("resize", &name(&r.container_id, &r.exec_id))
    }

    async fn delete_process(
        &self,
        _: &TtrpcContext,
        r: agent::ProcessRequest,
    ) -> ttrpc::Result<agent::Empty> {
        self.0.answer("delete", &name(&r.container_id, &r.exec_id))
    }

    async fn shutdown(&self, _: &TtrpcContext, _: agent::Empty) -> ttrpc::Result<agent::Empty> {
        let answer = self.0.answer("shutdown", "");
        if self.0.script.hangs_in_shutdown {
            std::future::pending::<()>().await;
        }
        answer
    }
}

/// A sandbox whose guest is scripted.
pub(crate) struct Stage {
    pub(crate) sandbox: Arc<Sandbox>,
    pub(crate) agent: Arc<Scripted>,
    pub(crate) events: mpsc::Receiver<Envelope>,
    pub(crate) vmm: u32,
    pub(crate) disks: Disks,
    _server: Server,
}

impl Stage {
    pub(crate) async fn new(dir: &Path, shared: &Path, script: Script) -> Self {
        let (refuses, refused_disks) = (script.refuses, script.refused_disks);
        let kind = script.kind.unwrap_or(SandboxKind::Lone);
        let cgroup = (!script.cgroup_files.is_empty()).then(|| make_cgroup(dir, script.cgroup_files));
        let volume = VolumeName::parse("cache").ok().filter(|_| script.keeps_data);
        let docker =
            Docker { eager: false, capacity: Capacity::New(64), volume, export: false, any_user: false };
        let agent = Arc::new(Scripted {
            script,
            calls: watch::channel(Vec::new()).0,
            specs: Mutex::default(),
            exits: watch::channel(HashMap::new()).0,
            exit_reported: watch::channel(false).0,
            oom_kills: watch::channel(0).0,
            disk_requests: watch::channel(0).0,
            disk_answers: watch::channel(Vec::new()).0,
        });
        let (ours, theirs) = UnixStream::pair().unwrap();
        let one = futures::stream::once(async { Ok(theirs) });
        let connections = futures::StreamExt::chain(one, futures::stream::pending());
        let mut server = Server::new().register_service(create_agent(Arc::new(Handle(agent.clone()))));
        server = server.add_listener(Listener::new(connections));
        server.start().await.unwrap();

        let disks = Disks::default();
        let vm = vmm::spawn(dir, refuses, refused_disks, disks.clone());
        let vmm = vm.pid();
        let state = state(dir);
        state.create().unwrap();
        let record = Record { vmm: ProcessId::of(vmm.try_into().unwrap()).ok(), ..Record::default() };
        state.save(&record).unwrap();
        let config = Config { disk_dir: dir.join("disks"), docker_disks_mib: DISKS_MIB, ..Config::default() };
        let disk = LaterDisk::of(&docker, &config, &state, &dir.join("run"));
        let guest = Guest::new(
            vm,
            AgentClient::new(Client::new(Socket::from(ours))),
            Some(docker),
            Network::new(1, true, None, NetworkMode::Namespace),
            Share { size: Size { vcpus: 1, memory_mib: 256 }, cgroup, limits: Limits::default(), disk },
        );
        let membership = Membership { id: "c1".into(), kind, shm: None };
        let (publisher, events) = Publisher::capture();
        let sandbox = Arc::new(Sandbox::new(membership, shared.into(), publisher));
        tokio::spawn(sandbox.clone().run(Arc::new(guest), None));
        Self { sandbox, agent, events, vmm, disks, _server: server }
    }

    /// The next event of this topic; those before it are dropped.
    pub(crate) async fn next<T: Message>(&mut self, topic: &str) -> T {
        loop {
            let envelope = self.events.recv().await.unwrap();
            if envelope.topic == topic {
                return T::parse_from_bytes(&envelope.event.value).unwrap();
            }
        }
    }

    /// The topics of the events so far.
    pub(crate) fn published_topics(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.events.try_recv().ok()).map(|event| event.topic).collect()
    }
}

fn make_cgroup(dir: &Path, files: &[&str]) -> Cgroup {
    let root = dir.join("cgroup");
    fs::create_dir(&root).unwrap();
    let cgroup = Cgroup::create(&root, "/c1").unwrap();
    files.iter().for_each(|file| fs::write(root.join("c1/vm").join(file), "").unwrap());
    cgroup
}
