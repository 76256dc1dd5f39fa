//! The other side of a sandbox, scripted: a VMM's end of the control channel and an agent's of its service, both over
//! the real wire, so that a test can let any step fail. And a mount namespace as the shim's server has it.

use super::guest::Guest;
use super::vm::{Place, Vm};
use super::*;
use crate::volume::{Capacity, VolumeName};
use async_trait::async_trait;
use containerd_shim_protos::shim::event::Envelope;
use lazaret_agent_api::agent::{self, stream_header::Kind};
use lazaret_agent_api::agent_ttrpc::{Agent, AgentClient, create_agent};
use lazaret_agent_api::{Ack, DOCKER_PORT, decode_header};
use lazaret_vmm_wire::{Cause, Channel, Event as VmEvent, Request, Stopped};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use ttrpc::r#async::transport::{Listener, Socket};
use ttrpc::r#async::{Client, Server, TtrpcContext};
use ttrpc::{Code, get_status};

/// Runs `test` in a mount namespace of its own, with a shared tree, and a root to serve beside it.
pub(super) fn in_namespace(test: impl FnOnce(&Path, &Path) + Send + 'static) {
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

/// The mounts below `path` in this thread's namespace.
pub(super) fn mounts_below(path: &Path) -> usize {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let below = format!("{}/", path.display());
    table.lines().filter(|line| line.split(' ').nth(4).unwrap().starts_with(&below)).count()
}

/// What the scripted agent is to do, and what it was asked.
#[derive(Default)]
pub(super) struct Script {
    /// The call that fails.
    pub(super) fails: Option<&'static str>,
    /// The stream the agent refuses.
    pub(super) refuses: Option<Kind>,
    /// `StartProcess` answers only when the process has ended and its end was told.
    pub(super) ends_before_start_answers: bool,
    /// What `SignalProcess` does besides killing.
    pub(super) killing: Killing,
    /// `WaitProcess` knows no process.
    pub(super) forgets: bool,
    /// The Docker daemon's disk is a volume.
    pub(super) keeps_data: bool,
}

#[derive(Default, PartialEq, Eq)]
pub(super) enum Killing {
    #[default]
    Done,
    /// It answers, and kills nothing.
    Pretended,
    /// It never answers.
    Ignored,
}

/// The agent's state.
pub(super) struct Scripted {
    script: Script,
    calls: Mutex<Vec<String>>,
    /// By exec id.
    exits: watch::Sender<HashMap<String, u32>>,
    told: watch::Sender<bool>,
}

impl Scripted {
    pub(super) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    pub(super) fn exit(&self, exec: &str, status: u32) {
        self.exits.send_modify(|exits| _ = exits.insert(exec.into(), status));
    }

    fn answer<T: Default>(&self, call: &'static str, exec: &str) -> ttrpc::Result<T> {
        self.calls.lock().unwrap().push(format!("{call} {exec}").trim_end().into());
        if self.script.fails == Some(call) {
            let status = get_status(Code::INVALID_ARGUMENT, format!("{call} fails"));
            return Err(ttrpc::Error::RpcStatus(status));
        }
        Ok(T::default())
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
        _: agent::CreateContainerRequest,
    ) -> ttrpc::Result<agent::ProcessResponse> {
        self.0.answer("create", "")
    }

    async fn create_exec(
        &self,
        _: &TtrpcContext,
        r: agent::CreateExecRequest,
    ) -> ttrpc::Result<agent::Empty> {
        self.0.answer("create", &r.exec_id)
    }

    async fn start_process(
        &self,
        _: &TtrpcContext,
        r: agent::ProcessRequest,
    ) -> ttrpc::Result<agent::ProcessResponse> {
        if self.0.script.ends_before_start_answers {
            self.0.exit(&r.exec_id, 7);
            self.0.told.subscribe().wait_for(|told| *told).await.unwrap();
        }
        self.0.answer("start", &r.exec_id)
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
        let exits = exits.wait_for(|exits| exits.contains_key(&r.exec_id)).await.unwrap();
        self.0.told.send_replace(true);
        Ok(agent::WaitProcessResponse { exit_status: exits[&r.exec_id], ..Default::default() })
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        r: agent::SignalProcessRequest,
    ) -> ttrpc::Result<agent::Empty> {
        let answer = self.0.answer("signal", &r.exec_id);
        match self.0.script.killing {
            Killing::Done => {}
            Killing::Pretended => return answer,
            Killing::Ignored => std::future::pending().await,
        }
        self.0.exit(&r.exec_id, 128 + r.signal);
        answer
    }

    async fn delete_process(
        &self,
        _: &TtrpcContext,
        r: agent::ProcessRequest,
    ) -> ttrpc::Result<agent::Empty> {
        self.0.answer("delete", &r.exec_id)
    }

    async fn shutdown(&self, _: &TtrpcContext, _: agent::Empty) -> ttrpc::Result<agent::Empty> {
        self.0.answer("shutdown", "")
    }
}

/// A sandbox whose guest is scripted.
pub(super) struct Stage {
    pub(super) sandbox: Arc<Sandbox>,
    pub(super) agent: Arc<Scripted>,
    pub(super) events: mpsc::Receiver<Envelope>,
    pub(super) vmm: u32,
    _server: Server,
}

impl Stage {
    pub(super) async fn new(dir: &Path, shared: &Path, script: Script) -> Self {
        let refuses = script.refuses;
        let volume = VolumeName::parse("cache").filter(|_| script.keeps_data);
        let docker = Docker { eager: false, capacity: Capacity::New(64), volume, export: false };
        let agent = Arc::new(Scripted {
            script,
            calls: Mutex::default(),
            exits: watch::channel(HashMap::new()).0,
            told: watch::channel(false).0,
        });
        let (ours, theirs) = UnixStream::pair().unwrap();
        let one = futures::stream::once(async { Ok(theirs) });
        let connections = futures::StreamExt::chain(one, futures::stream::pending());
        let mut server = Server::new().register_service(create_agent(Arc::new(Handle(agent.clone()))));
        server = server.add_listener(Listener::new(connections));
        server.start().await.unwrap();

        let vm = spawn(dir, refuses);
        let vmm = vm.pid();
        let guest = Guest::new(vm, AgentClient::new(Client::new(Socket::from(ours))), Some(docker));
        let (publisher, events) = Publisher::capture();
        let boot = watch::channel(Boot::Ready(Arc::new(guest))).1;
        let sandbox = Arc::new(Sandbox::new(shared.into(), boot, publisher));
        Self { sandbox, agent, events, vmm, _server: server }
    }

    /// The topics and process ids of the events so far.
    pub(super) fn told(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.events.try_recv().ok()).map(|event| event.topic).collect()
    }
}

/// A VMM that runs no VM: a process that only is there, and its end of the channel answered from here.
fn spawn(dir: &Path, refuses: Option<Kind>) -> Vm {
    let binary = dir.join("vmm");
    fs::write(&binary, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    let (vm, _) = Vm::spawn(Place { binary, network: None, cgroup: None }).unwrap();
    let channel = descriptor_of(vm.pid(), 3);
    let pid = nix::unistd::Pid::from_raw(vm.pid().try_into().unwrap());
    std::thread::spawn(move || {
        let channel = Channel::from(channel);
        let mut streams = Vec::new();
        while let Ok((request, mut descriptors)) = channel.receive::<Request>() {
            match request {
                Request::Boot(_) => {}
                Request::Connect { port: DOCKER_PORT } => {
                    echo(StdUnixStream::from(descriptors.remove(0)));
                }
                Request::Connect { .. } => {
                    streams.push(acknowledge(StdUnixStream::from(descriptors.remove(0)), refuses));
                }
                Request::Stop => {
                    let stopped = Stopped { cause: Cause::Requested, console: Vec::new() };
                    let _ = channel.send(&VmEvent::Stopped(stopped), &[]);
                    let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
                    return;
                }
            }
        }
    });
    vm
}

/// A daemon that says what it hears, once it has heard everything.
fn echo(mut stream: StdUnixStream) {
    std::thread::spawn(move || {
        let mut heard = Vec::new();
        // A client that is gone wants no answer.
        let _ = stream.read_to_end(&mut heard);
        let _ = stream.write_all(&heard);
    });
}

/// Answers a stream's header; a process that has its outputs closed from the start.
fn acknowledge(mut stream: StdUnixStream, refuses: Option<Kind>) -> Option<StdUnixStream> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut header = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut header).unwrap();
    let kind = decode_header(&header).unwrap().kind.unwrap();
    let ack = if refuses == Some(kind) { Ack::NotFound } else { Ack::Attached };
    stream.write_all(&[ack as u8]).unwrap();
    (kind == Kind::STDIN).then_some(stream)
}

/// A copy of a descriptor of another process (pidfd_getfd(2)).
fn descriptor_of(pid: u32, fd: i32) -> OwnedFd {
    // SAFETY: both calls take integers; each result is checked to be a new descriptor, which nothing else owns.
    unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        assert!(pidfd >= 0);
        let pidfd = OwnedFd::from_raw_fd(pidfd.try_into().unwrap());
        let copy = libc::syscall(libc::SYS_pidfd_getfd, std::os::fd::AsRawFd::as_raw_fd(&pidfd), fd, 0);
        assert!(copy >= 0, "{}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(copy.try_into().unwrap())
    }
}
