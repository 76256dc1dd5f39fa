//! The RPCs: parse, have it done, answer.
//!
//! ttrpc drops a handler's future when its client goes away or its deadline passes. So whatever changes something runs
//! in a task of its own, which ends its work in any case.

use crate::container::Containers;
use crate::docker::{self, DataDisk};
use crate::network::Slots;
use crate::power::{self, Power};
use crate::reaper::Reaper;
use crate::rpc::RpcError;
use crate::{host_facts, network, shared};
use async_trait::async_trait;
use lazaret_agent_api::agent::{
    self, AnswerDiskRequest, ConfigureNetworkRequest, ConfigureRequest, ContainerRequest,
    CreateContainerRequest, CreateExecRequest, Empty, ListPidsResponse, ProcessRequest, ProcessResponse,
    ResizeTerminalRequest, SignalProcessRequest, StatsResponse, UpdateContainerRequest, WaitOomRequest,
    WaitOomResponse, WaitProcessResponse,
};
use lazaret_agent_api::agent_ttrpc::Agent;
use std::future::Future;
use std::sync::{Arc, OnceLock};
use tokio::sync::OnceCell;
use ttrpc::asynchronous::TtrpcContext;

type Answer<T> = ttrpc::Result<T>;

pub(crate) struct AgentService {
    containers: Arc<Containers>,
    reaper: Arc<Reaper>,
    power: Arc<Power>,
    /// What the guest was configured with.
    docker: OnceLock<Option<agent::Docker>>,
    docker_disk: Arc<DataDisk>,
    slots: Arc<OnceCell<Slots>>,
}

impl AgentService {
    pub(crate) fn new(
        containers: Arc<Containers>,
        reaper: Arc<Reaper>,
        power: Arc<Power>,
        slots: Arc<OnceCell<Slots>>,
    ) -> Self {
        let docker_disk = Arc::new(DataDisk::of_guest());
        Self { containers, reaper, power, docker: OnceLock::new(), docker_disk, slots }
    }

    fn docker(&self) -> Option<&agent::Docker> {
        self.docker.get()?.as_ref()
    }

    fn configure_once(&self, request: &ConfigureRequest) -> Result<(), RpcError> {
        if self.docker.set(request.docker.as_ref().cloned()).is_err() {
            return Err(RpcError::FailedPrecondition("the guest is configured already".to_owned()));
        }
        host_facts::set_clock(request.realtime_ns)
            .map_err(|errno| RpcError::InvalidArgument(format!("cannot set the clock: {errno}")))?;
        host_facts::add_entropy(&request.entropy)
            .map_err(|error| RpcError::Internal(format!("cannot add entropy: {error}")))?;
        if let Some(docker) = request.docker.as_ref() {
            let (disk, containers) = (self.docker_disk.clone(), self.containers.clone());
            docker::offer(docker, disk, containers, self.reaper.clone())
                .map_err(|error| RpcError::Internal(format!("cannot offer the Docker socket: {error}")))?;
        }
        if request.hostname.is_empty() {
            return Ok(());
        }
        nix::unistd::sethostname(&request.hostname).map_err(|errno| {
            RpcError::InvalidArgument(format!("cannot set the host name {:?}: {errno}", request.hostname))
        })
    }
}

/// Runs `work` to its end, also when the client has gone.
async fn run_to_completion<T: Send + 'static>(
    work: impl Future<Output = Result<T, RpcError>> + Send + 'static,
) -> Answer<T> {
    let lost = |error| RpcError::Internal(format!("the agent has failed: {error}"));
    Ok(tokio::spawn(work).await.map_err(lost)??)
}

#[async_trait]
impl Agent for AgentService {
    async fn configure(&self, _: &TtrpcContext, request: ConfigureRequest) -> Answer<Empty> {
        self.configure_once(&request)?;
        Ok(Empty::new())
    }

    async fn configure_network(&self, _: &TtrpcContext, request: ConfigureNetworkRequest) -> Answer<Empty> {
        let cell = self.slots.clone();
        run_to_completion(async move {
            network::of_guest(&cell).await?;
            let configure = move || cell.get().map_or(Ok(()), |slots| network::configure(slots, &request));
            let configured = tokio::task::spawn_blocking(configure).await;
            configured.map_err(|error| RpcError::Internal(format!("the agent has failed: {error}")))??;
            Ok(Empty::new())
        })
        .await
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> Answer<ProcessResponse> {
        let containers = self.containers.clone();
        let eager = self.docker().is_some_and(|docker| docker.eager) && !request.holds_pod;
        let slots = self.slots.clone();
        let create = async move {
            // A container sees the devices that are there.
            network::of_guest(&slots).await?;
            let id = request.container_id.clone();
            let pid = containers.create(request).await?;
            if eager && let Err(why) = docker::ping().await {
                if let Err(error) = containers.delete(&id, "", docker::kill()).await {
                    log::warn!("container {id}: after the failure of its Docker daemon: {error}");
                }
                return Err(RpcError::Internal(format!("container {id}: {why}")));
            }
            Ok(pid)
        };
        let pid = run_to_completion(create).await?;
        Ok(ProcessResponse { pid: pid.unsigned_abs(), ..Default::default() })
    }

    async fn create_exec(&self, _: &TtrpcContext, request: CreateExecRequest) -> Answer<Empty> {
        self.containers.create_exec(request)?;
        Ok(Empty::new())
    }

    async fn start_process(&self, _: &TtrpcContext, request: ProcessRequest) -> Answer<ProcessResponse> {
        let containers = self.containers.clone();
        let start = async move { containers.start(&request.container_id, &request.exec_id).await };
        let pid = run_to_completion(start).await?;
        Ok(ProcessResponse { pid: pid.unsigned_abs(), ..Default::default() })
    }

    async fn wait_process(&self, _: &TtrpcContext, request: ProcessRequest) -> Answer<WaitProcessResponse> {
        let container = self.containers.get(&request.container_id)?;
        let process = container.process(&request.exec_id)?;
        let oom_kills = request.exec_id.is_empty().then(|| container.accounts.last_oom_kills());
        // It may be removed meanwhile.
        drop(container);
        let exit = process.wait().await;
        let oom_kills = oom_kills.and_then(|kills| kills.get().copied()).unwrap_or_default();
        let (exit_status, exited_at_ns) = (exit.status, exit.at_ns);
        Ok(WaitProcessResponse { exit_status, exited_at_ns, oom_kills, ..Default::default() })
    }

    async fn signal_process(&self, _: &TtrpcContext, request: SignalProcessRequest) -> Answer<Empty> {
        let container = self.containers.get(&request.container_id)?;
        container.signal(&request.exec_id, request.signal, request.all)?;
        Ok(Empty::new())
    }

    async fn resize_terminal(&self, _: &TtrpcContext, request: ResizeTerminalRequest) -> Answer<Empty> {
        let characters = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        let process = self.containers.process(&request.container_id, &request.exec_id)?;
        process.resize(characters(request.width), characters(request.height))?;
        Ok(Empty::new())
    }

    async fn delete_process(&self, _: &TtrpcContext, request: ProcessRequest) -> Answer<Empty> {
        let containers = self.containers.clone();
        run_to_completion(async move {
            // Docker's containers may write to this one's files, which are about to be handed back.
            let deleted = containers.delete(&request.container_id, &request.exec_id, docker::kill()).await;
            if request.exec_id.is_empty() {
                // The files are the user's, so they are written back also when deleting the container failed.
                let internal =
                    |error| RpcError::Internal(format!("container {}: {error}", request.container_id));
                let synced = shared::sync().await.map_err(internal);
                deleted.and(synced)?;
            } else {
                deleted?;
            }
            Ok(Empty::new())
        })
        .await
    }

    async fn list_pids(&self, _: &TtrpcContext, request: ContainerRequest) -> Answer<ListPidsResponse> {
        let pids = self.containers.get(&request.container_id)?.pids();
        let pids = pids.into_iter().map(libc::pid_t::unsigned_abs).collect();
        Ok(ListPidsResponse { pids, ..Default::default() })
    }

    async fn get_stats(&self, _: &TtrpcContext, request: ContainerRequest) -> Answer<StatsResponse> {
        let stats = self.containers.get(&request.container_id)?.accounts.stats();
        Ok(stats.await?)
    }

    async fn update_container(&self, _: &TtrpcContext, request: UpdateContainerRequest) -> Answer<Empty> {
        let containers = self.containers.clone();
        run_to_completion(async move {
            containers.update(&request.container_id, &request.resources).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn wait_oom(&self, _: &TtrpcContext, request: WaitOomRequest) -> Answer<WaitOomResponse> {
        let kills = self.containers.get(&request.container_id)?.accounts.more_oom_kills(request.seen);
        let oom_kills = kills.await?;
        Ok(WaitOomResponse { oom_kills, ..Default::default() })
    }

    async fn wait_disk(&self, _: &TtrpcContext, _: Empty) -> Answer<Empty> {
        self.docker_disk.wanted().await;
        Ok(Empty::new())
    }

    async fn answer_disk(&self, _: &TtrpcContext, request: AnswerDiskRequest) -> Answer<Empty> {
        self.docker_disk.answer(request.refused)?;
        Ok(Empty::new())
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> Answer<Empty> {
        let (containers, power) = (self.containers.clone(), self.power.clone());
        let keep = self.docker().is_some_and(|docker| docker.keep);
        run_to_completion(async move {
            containers.end().await;
            // The Docker daemon and its containers, too: they may write to the containers' files.
            power::kill_all();
            let kept = if keep { shared::sync_volume().await } else { Ok(()) };
            let synced = shared::sync().await.and(kept);
            // The guest ends in any case. The host is told when something was not written back.
            power.shut_down_after_answer();
            synced.map_err(|error| RpcError::Internal(error.to_string()))?;
            if let Err(errno) = shared::unmount() {
                log::warn!("cannot unmount the shared tree: {errno}");
            }
            Ok(Empty::new())
        })
        .await
    }
}

#[cfg(test)]
#[path = "service_test.rs"]
mod tests;
