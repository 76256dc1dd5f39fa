//! A guest that answers: the VM, and the agent in it.
//!
//! Every call to the agent has a deadline, and ends when the VM ends. When the connection to the agent breaks while the VM
//! still runs, the shim ends the VM, and every process of the guest then ends with 137.

mod disk;
mod network;
mod pause;
mod resources;

use super::cgroup::Cgroup;
use super::container::GuestSpec;
use super::container::life::{Exit, KILLED};
use super::docker::Docker;
use super::docker::disk::LaterDisk;
use super::limits::Limits;
use super::network::Network;
use super::network::loopback::Loopback;
use super::sizing::Size;
use super::vm::{ExitReport, Vm};
use crate::error::{Error, Result};
use lazaret_agent_api::agent::{
    CreateContainerRequest, CreateExecRequest, Empty, ProcessRequest, ResizeTerminalRequest,
    SignalProcessRequest, Stdio, StreamHeader, stream_header::Kind,
};
use lazaret_agent_api::agent_ttrpc::AgentClient;
use lazaret_agent_api::{Ack, DOCKER_PORT, STDIO_PORT, encode_header};
use pause::Pause;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{OnceCell, watch};
use ttrpc::context::{Context, with_duration};

/// How long the agent may take for a call; making a container reads its image's files.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// The same for a container that is made when the Docker daemon answers, which takes half a minute on an emulated host.
const EAGER_TIMEOUT: Duration = Duration::from_secs(180);
/// How long the agent may take to send a signal. A guest that takes longer does not work any more.
const SIGNAL_TIMEOUT: Duration =
    if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(10) };
/// How long the agent may take to answer a stdio stream's header.
const STREAM_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the network namespace may take to give its interfaces back.
const UNWIRE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the agent may take to kill what runs and to write everything back: five seconds for the one, thirty for the other.
const SHUTDOWN_TIMEOUT: Duration =
    if cfg!(test) { Duration::from_millis(500) } else { Duration::from_secs(36) };
/// The same when there is a volume, for which the agent takes up to two minutes more.
const SHUTDOWN_TIMEOUT_WITH_VOLUME: Duration = Duration::from_secs(156);

/// A process in the guest: its container, and its exec id, empty for the container's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProcessKey {
    pub container: String,
    pub exec: String,
}

impl fmt::Display for ProcessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.exec.as_str() {
            "" => write!(f, "container {}", self.container),
            exec => write!(f, "exec {exec} of container {}", self.container),
        }
    }
}

impl ProcessKey {
    fn request(&self) -> ProcessRequest {
        ProcessRequest {
            container_id: self.container.clone(),
            exec_id: self.exec.clone(),
            ..Default::default()
        }
    }
}

/// The end of a process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    pub exit: Exit,
    /// How many processes of its container the guest's kernel has killed for want of memory.
    pub oom_kills: u64,
}

/// A guest's share of the host.
#[derive(Debug)]
pub(crate) struct Share {
    pub size: Size,
    /// The VMM's cgroup, where there is one.
    pub cgroup: Option<Cgroup>,
    /// What the host is to hold the guest to from the start of its first process on.
    pub limits: Limits,
    /// The disk of its Docker daemon, where it is made when the guest asks for it.
    pub disk: Option<LaterDisk>,
}

/// A running guest.
pub(crate) struct Guest {
    vm: Vm,
    agent: AgentClient,
    docker: Option<Docker>,
    network: Network,
    loopback: Loopback,
    pause: Pause,
    /// Done once the guest has its network and its limits.
    settled: OnceCell<()>,
    /// One reference for each process that stands for a container, beside this one.
    anchors: Arc<()>,
    size: Size,
    /// The VMM's, where there is one.
    cgroup: Option<Arc<Cgroup>>,
    /// What the host is to hold the guest to from the start of its first process on.
    limits: Limits,
    /// The disk of its Docker daemon, where it is made when the guest asks for it.
    disk: Option<LaterDisk>,
}

impl Guest {
    #[must_use]
    pub(crate) fn new(
        vm: Vm,
        agent: AgentClient,
        docker: Option<Docker>,
        network: Network,
        share: Share,
    ) -> Self {
        let Share { size, cgroup, limits, disk } = share;
        let (loopback, pause, cgroup) = (Loopback::default(), Pause::default(), cgroup.map(Arc::new));
        let (settled, anchors) = (OnceCell::new(), Arc::default());
        Self { vm, agent, docker, network, loopback, pause, settled, anchors, size, cgroup, limits, disk }
    }

    /// The VMM's pid, which stands for the guest, and for every process of it that has no other on the host.
    #[must_use]
    pub(crate) fn pid(&self) -> u32 {
        self.vm.pid()
    }

    /// Whether, and how, the VM ended.
    #[must_use]
    pub(crate) fn ended(&self) -> watch::Receiver<Option<ExitReport>> {
        self.vm.ended()
    }

    /// Whether the VM still runs, as far as is known.
    #[must_use]
    pub(crate) fn is_alive(&self) -> bool {
        self.vm.ended().borrow().is_none()
    }

    /// Whether the guest has a volume, whose data outlives the guest.
    #[must_use]
    pub(crate) fn keeps_data(&self) -> bool {
        self.docker.as_ref().is_some_and(|docker| docker.volume.is_some())
    }

    /// Gives the guest its network and its limits, with the start of its first process: the network is there then. What has failed
    /// is tried again by the next start.
    ///
    /// # Errors
    /// The network's; [`Error::InvalidArgument`] for a limit that the host's kernel refuses.
    pub(crate) async fn settle(self: &Arc<Self>, resolv_conf: Option<PathBuf>) -> Result<()> {
        let settle = async {
            self.set_up_network(resolv_conf).await?;
            self.limit()
        };
        self.settled.get_or_try_init(|| settle).await.copied()
    }

    /// # Errors
    /// The agent's.
    pub(crate) async fn create_container(&self, id: &str, spec: GuestSpec, stdio: Stdio) -> Result<()> {
        let request = CreateContainerRequest {
            container_id: id.into(),
            spec: spec.config,
            stdio: Some(stdio).into(),
            joins: spec.joins,
            holds_pod: spec.holds_pod,
            ..Default::default()
        };
        let eager = self.docker.as_ref().is_some_and(|docker| docker.eager);
        let limit = if eager { EAGER_TIMEOUT } else { CALL_TIMEOUT };
        let call = self.agent.create_container(within(limit), &request);
        self.call("creating the container", limit, call).await?;
        Ok(())
    }

    /// # Errors
    /// The agent's.
    pub(crate) async fn create_exec(&self, key: &ProcessKey, process: Vec<u8>, stdio: Stdio) -> Result<()> {
        let request = CreateExecRequest {
            container_id: key.container.clone(),
            exec_id: key.exec.clone(),
            process,
            stdio: Some(stdio).into(),
            ..Default::default()
        };
        self.call(
            "creating the process",
            CALL_TIMEOUT,
            self.agent.create_exec(within(CALL_TIMEOUT), &request),
        )
        .await?;
        Ok(())
    }

    /// # Errors
    /// The agent's.
    pub(crate) async fn start(&self, key: &ProcessKey) -> Result<()> {
        let request = key.request();
        self.call(
            "starting the process",
            CALL_TIMEOUT,
            self.agent.start_process(within(CALL_TIMEOUT), &request),
        )
        .await?;
        Ok(())
    }

    /// Waits for the exit of a process, which the end of the VM causes, too. `None` when the agent does not know the process
    /// because it was deleted. When the agent does not know a process that was not deleted, the VM is ended.
    pub(crate) async fn wait(&self, key: &ProcessKey, deleted: impl Fn() -> bool) -> Option<Ended> {
        let request = key.request();
        let (status, oom_kills) =
            match self.answer("waiting", self.agent.wait_process(Context::default(), &request)).await {
                Ok(answer) => (answer.exit_status, answer.oom_kills),
                Err(Error::NotFound(_)) if deleted() => return None,
                Err(error) => {
                    if self.is_alive() {
                        log::error!("the VM is ended: {error}");
                        self.stop_vm().await;
                    }
                    (KILLED, 0)
                }
            };
        // The time is the host's: the guest's clock is not trusted.
        Some(Ended { exit: Exit { status, at: SystemTime::now() }, oom_kills })
    }

    /// Sends a signal, to every process of the container with `all`.
    ///
    /// # Errors
    /// The agent's. When the guest does not answer to SIGKILL, its VM is ended instead.
    pub(crate) async fn signal(&self, key: &ProcessKey, signal: u32, all: bool) -> Result<()> {
        let request = SignalProcessRequest {
            container_id: key.container.clone(),
            exec_id: key.exec.clone(),
            signal,
            all,
            ..Default::default()
        };
        let result = self
            .call("signalling", SIGNAL_TIMEOUT, self.agent.signal_process(within(SIGNAL_TIMEOUT), &request))
            .await;
        let kill = i32::try_from(signal) == Ok(libc::SIGKILL);
        match result {
            Ok(_) => Ok(()),
            Err(Error::DeadlineExceeded(line)) if kill => {
                log::error!("the guest does not answer to SIGKILL of {key}, so its VM is ended: {line}");
                self.stop_vm().await;
                Ok(())
            }
            Err(_) if !self.is_alive() => Err(Error::NotFound("process already finished".into())),
            Err(error) => Err(error),
        }
    }

    /// # Errors
    /// The agent's.
    pub(crate) async fn resize(&self, key: &ProcessKey, width: u32, height: u32) -> Result<()> {
        let request = ResizeTerminalRequest {
            container_id: key.container.clone(),
            exec_id: key.exec.clone(),
            width,
            height,
            ..Default::default()
        };
        self.call(
            "resizing the terminal",
            CALL_TIMEOUT,
            self.agent.resize_terminal(within(CALL_TIMEOUT), &request),
        )
        .await?;
        Ok(())
    }

    /// Makes the agent forget a process, if the VM still runs.
    pub(crate) async fn forget(&self, key: &ProcessKey) {
        if !self.is_alive() {
            return;
        }
        let request = key.request();
        match self
            .call("deleting", CALL_TIMEOUT, self.agent.delete_process(within(CALL_TIMEOUT), &request))
            .await
        {
            Ok(_) | Err(Error::NotFound(_)) => {}
            Err(error) => log::warn!("the agent keeps a process that is deleted: {error}"),
        }
    }

    /// Lets the guest kill what runs in it, write everything back and unmount it.
    pub(crate) async fn shut_down(&self) {
        if self.is_paused()
            && let Err(error) = self.resume().await
        {
            log::error!("a paused guest is to be shut down: {error}");
        }
        if self.is_alive() {
            let nothing = Empty::default();
            let limit = if self.keeps_data() { SHUTDOWN_TIMEOUT_WITH_VOLUME } else { SHUTDOWN_TIMEOUT };
            let call = self.agent.shutdown(within(limit), &nothing);
            if let Err(error) = self.call("shutting down", limit, call).await {
                let volume = self.docker.as_ref().and_then(|docker| docker.volume.as_ref());
                let volume = volume.map(|name| format!(", to the volume {:?} either", name.as_str()));
                log::error!(
                    "the guest may not have written everything back{}: {error}",
                    volume.unwrap_or_default()
                );
            }
        }
    }

    /// Ends the VM and waits until nothing of it is left: its process is reaped, and its network is unwired.
    pub(crate) async fn stop(&self) {
        self.stop_vm().await;
        if tokio::time::timeout(UNWIRE_TIMEOUT, self.unwire_network()).await.is_err() {
            log::error!("the network is not unwired within {} s", UNWIRE_TIMEOUT.as_secs());
        }
    }

    async fn stop_vm(&self) {
        self.thaw().await;
        self.vm.stop().await;
    }

    /// A stream to one descriptor of a process, attached.
    ///
    /// # Errors
    /// [`Error`] when the guest refuses it or does not answer.
    pub(crate) async fn stream(&self, key: &ProcessKey, kind: Kind) -> Result<UnixStream> {
        let header = StreamHeader {
            container_id: key.container.clone(),
            exec_id: key.exec.clone(),
            kind: kind.into(),
            ..Default::default()
        };
        let failed = |what: String| Error::Internal(format!("connecting {kind:?} to the guest: {what}"));
        let header = encode_header(&header).map_err(|error| failed(error.to_string()))?;
        let handshake = async {
            let mut stream = self.vm.connect(STDIO_PORT).await.map_err(|error| failed(error.to_string()))?;
            let exchange = async {
                stream.write_all(&header).await?;
                stream.read_u8().await
            };
            match exchange.await.map(Ack::try_from) {
                Ok(Ok(Ack::Attached)) => Ok(stream),
                Ok(Ok(refusal)) => Err(failed(format!("the agent says {refusal:?}"))),
                Ok(Err(byte)) => Err(failed(format!("the agent answers {byte}, which is no answer"))),
                Err(error) => Err(failed(error.to_string())),
            }
        };
        let late =
            |_| Error::DeadlineExceeded(format!("the guest did not take {kind:?} within {STREAM_TIMEOUT:?}"));
        tokio::time::timeout(STREAM_TIMEOUT, handshake).await.map_err(late)?
    }

    /// A stream to the Docker daemon. When the guest refuses the connection, the stream is at its end of file.
    ///
    /// # Errors
    /// [`Error::Internal`] when the VMM is gone or descriptors run out.
    pub(crate) async fn docker(&self) -> Result<UnixStream> {
        self.vm.connect(DOCKER_PORT).await.map_err(|error| Error::Internal(error.to_string()))
    }

    /// Runs a call to the agent until it answers, the VM ends or `limit` has passed.
    async fn call<T>(
        &self,
        what: &str,
        limit: Duration,
        call: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T> {
        self.check_not_paused()?;
        match tokio::time::timeout(limit, self.answer(what, call)).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::DeadlineExceeded(format!(
                "{what}: the guest's agent did not answer within {} s",
                limit.as_secs()
            ))),
        }
    }

    async fn answer<T>(&self, what: &str, call: impl Future<Output = ttrpc::Result<T>>) -> Result<T> {
        let mut ended = self.vm.ended();
        let error = tokio::select! {
            // The answer first: it may be the last thing the guest did.
            biased;
            answer = call => match answer {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            },
            // The VMM's exit report, or its end without one.
            _ = ended.wait_for(Option::is_some) => ttrpc::Error::RemoteClosed,
        };
        if matches!(error, ttrpc::Error::RpcStatus(_)) {
            return Err(Error::from_agent(what, error));
        }
        // A broken connection is most often the VM's end, and then the exit report is about to come.
        let exit_report = tokio::time::timeout(Duration::from_secs(2), ended.wait_for(Option::is_some)).await;
        let line = match exit_report {
            Ok(Ok(exit_report)) => exit_report.as_ref().map(ExitReport::line),
            _ => None,
        };
        Err(line.map_or_else(
            || Error::from_agent(what, error),
            |line| Error::Internal(format!("{what}: the VM ended: {line}")),
        ))
    }
}

/// The deadline for ttrpc: later than ours, because ttrpc reports its own deadline as a broken connection.
fn within(limit: Duration) -> Context {
    with_duration(limit + Duration::from_secs(5))
}
