//! CRI's calls, synchronous: from any thread, several at once.

use std::collections::HashMap;
use std::time::Duration;

use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{self as api};
use tokio::runtime::{Builder, Runtime};
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::command::COMMAND_TIMEOUT;

/// What a call gives, or how it was refused.
pub type Answer<T> = Result<T, Status>;

/// A command that `ExecSync` ran.
#[derive(Debug)]
pub struct Ran {
    /// The exit code.
    pub code: i32,
    /// What it wrote to its standard output.
    pub out: String,
    /// What it wrote to its standard error.
    pub err: String,
}

/// A client of one containerd, which may go and come back meanwhile.
pub struct Cri {
    runtime: Runtime,
    channel: Channel,
}

impl Cri {
    /// A client of the containerd at this socket. It connects with its first call.
    #[track_caller]
    pub fn new(socket: &str) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let endpoint = Endpoint::from_shared(format!("unix://{socket}")).expect("an absolute path");
        let channel = {
            let _runtime = runtime.enter();
            endpoint.connect_lazy()
        };
        Self { runtime, channel }
    }

    /// Makes one call, which has its deadline.
    fn call<T>(
        &self,
        call: impl AsyncFnOnce(RuntimeServiceClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Answer<T> {
        self.wait(call(RuntimeServiceClient::new(self.channel.clone())))
    }

    fn wait<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Answer<T> {
        let answer = self.runtime.block_on(async { tokio::time::timeout(COMMAND_TIMEOUT, call).await });
        let late = |_| Status::deadline_exceeded(format!("no answer within {COMMAND_TIMEOUT:?}"));
        Ok(answer.map_err(late)??.into_inner())
    }

    /// `Version`: the name of the container runtime and its version.
    pub fn version(&self) -> Answer<api::VersionResponse> {
        self.call(async |mut client| client.version(api::VersionRequest::default()).await)
    }

    /// `RunPodSandbox`: the pod's id.
    pub fn run_pod(&self, config: &api::PodSandboxConfig, handler: &str) -> Answer<String> {
        let request =
            api::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.to_owned() };
        Ok(self.call(async |mut client| client.run_pod_sandbox(request).await)?.pod_sandbox_id)
    }

    /// `StopPodSandbox`.
    pub fn stop_pod(&self, pod: &str) -> Answer<()> {
        let request = api::StopPodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.call(async |mut client| client.stop_pod_sandbox(request).await).map(drop)
    }

    /// `RemovePodSandbox`.
    pub fn remove_pod(&self, pod: &str) -> Answer<()> {
        let request = api::RemovePodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.call(async |mut client| client.remove_pod_sandbox(request).await).map(drop)
    }

    /// `PodSandboxStatus`.
    pub fn pod_status(&self, pod: &str) -> Answer<api::PodSandboxStatusResponse> {
        let request = api::PodSandboxStatusRequest { pod_sandbox_id: pod.to_owned(), verbose: true };
        self.call(async |mut client| client.pod_sandbox_status(request).await)
    }

    /// `ListPodSandbox`, without a filter.
    pub fn pods(&self) -> Answer<Vec<api::PodSandbox>> {
        let request = api::ListPodSandboxRequest::default();
        Ok(self.call(async |mut client| client.list_pod_sandbox(request).await)?.items)
    }

    /// `CreateContainer` in a pod that was run with `pod_config`: the container's id.
    pub fn create(
        &self,
        pod: &str,
        config: &api::ContainerConfig,
        pod_config: &api::PodSandboxConfig,
    ) -> Answer<String> {
        let request = api::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(pod_config.clone()),
        };
        Ok(self.call(async |mut client| client.create_container(request).await)?.container_id)
    }

    /// `StartContainer`.
    pub fn start(&self, container: &str) -> Answer<()> {
        let request = api::StartContainerRequest { container_id: container.to_owned() };
        self.call(async |mut client| client.start_container(request).await).map(drop)
    }

    /// `StopContainer`: SIGTERM, and SIGKILL after the grace period of so many seconds.
    pub fn stop(&self, container: &str, grace_period: i64) -> Answer<()> {
        let request = api::StopContainerRequest { container_id: container.to_owned(), timeout: grace_period };
        self.call(async |mut client| client.stop_container(request).await).map(drop)
    }

    /// `RemoveContainer`.
    pub fn remove(&self, container: &str) -> Answer<()> {
        let request = api::RemoveContainerRequest { container_id: container.to_owned() };
        self.call(async |mut client| client.remove_container(request).await).map(drop)
    }

    /// `ContainerStatus`.
    pub fn status(&self, container: &str) -> Answer<api::ContainerStatusResponse> {
        let request = api::ContainerStatusRequest { container_id: container.to_owned(), verbose: true };
        self.call(async |mut client| client.container_status(request).await)
    }

    /// `ExecSync`. A timeout of zero is none.
    pub fn exec(&self, container: &str, args: &[&str], timeout: Duration) -> Answer<Ran> {
        let request = api::ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: args.iter().map(|&arg| arg.to_owned()).collect(),
            timeout: timeout.as_secs().try_into().expect("a timeout of this century"),
        };
        let answer = self.call(async |mut client| client.exec_sync(request).await)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Ran { code: answer.exit_code, out: text(answer.stdout), err: text(answer.stderr) })
    }

    /// `UpdateContainerResources`.
    pub fn update(&self, container: &str, resources: api::LinuxContainerResources) -> Answer<()> {
        let request = api::UpdateContainerResourcesRequest {
            container_id: container.to_owned(),
            linux: Some(resources),
            windows: None,
            annotations: HashMap::new(),
        };
        self.call(async |mut client| client.update_container_resources(request).await).map(drop)
    }

    /// `ReopenContainerLog`.
    pub fn reopen_log(&self, container: &str) -> Answer<()> {
        let request = api::ReopenContainerLogRequest { container_id: container.to_owned() };
        self.call(async |mut client| client.reopen_container_log(request).await).map(drop)
    }

    /// `ContainerStats`.
    pub fn stats(&self, container: &str) -> Answer<api::ContainerStats> {
        let request = api::ContainerStatsRequest { container_id: container.to_owned() };
        let answer = self.call(async |mut client| client.container_stats(request).await)?;
        answer.stats.ok_or_else(|| Status::data_loss("an answer without statistics"))
    }

    /// `ListContainerStats` of a pod's containers.
    pub fn list_stats(&self, pod: &str) -> Answer<Vec<api::ContainerStats>> {
        let filter = api::ContainerStatsFilter { pod_sandbox_id: pod.to_owned(), ..Default::default() };
        let request = api::ListContainerStatsRequest { filter: Some(filter) };
        Ok(self.call(async |mut client| client.list_container_stats(request).await)?.stats)
    }

    /// `PodSandboxStats`.
    pub fn pod_stats(&self, pod: &str) -> Answer<api::PodSandboxStats> {
        let request = api::PodSandboxStatsRequest { pod_sandbox_id: pod.to_owned() };
        let answer = self.call(async |mut client| client.pod_sandbox_stats(request).await)?;
        answer.stats.ok_or_else(|| Status::data_loss("an answer without statistics"))
    }

    /// `ListImages`: the names of the images that CRI knows of.
    pub fn images(&self) -> Answer<Vec<String>> {
        let mut client = ImageServiceClient::new(self.channel.clone());
        let images = self.wait(client.list_images(api::ListImagesRequest::default()))?.images;
        Ok(images.into_iter().flat_map(|image| image.repo_tags).collect())
    }
}
