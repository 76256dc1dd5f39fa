//! The task service: containerd's calls, parsed, carried out in tasks of their own, and answered.
//!
//! ttrpc drops a handler whose client leaves, midway; so whatever changes something runs in a task that the handler
//! only waits for.

use crate::error::{Error, Result};
use crate::events::timestamp;
use crate::io::Stdio;
use crate::sandbox::{Exit, NewContainer, RootMount, Sandbox, Status};
use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::{Task, create_task};
use containerd_shim_protos::types::mount::Mount;
use containerd_shim_protos::types::task::{ProcessInfo, Status as TaskStatus};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{oneshot, watch};
use ttrpc::r#async::{Service, TtrpcContext};

/// What Stats answers with. The agent's message has its fields and their numbers.
const METRICS: &str = "io.containerd.cgroups.v2.Metrics";
/// The service's name in the API's versions; the messages are the same.
const NAMES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

/// The service of one sandbox.
#[derive(Clone)]
pub(crate) struct TaskService {
    sandbox: Arc<Sandbox>,
    shutdown: watch::Sender<bool>,
}

impl TaskService {
    /// `shutdown` becomes true when containerd asks for the end.
    #[must_use]
    pub(crate) fn new(sandbox: Arc<Sandbox>, shutdown: watch::Sender<bool>) -> Self {
        Self { sandbox, shutdown }
    }

    /// The service under both of its names: a containerd may find a shim that another version of it has started.
    #[must_use]
    pub(crate) fn services(&self) -> HashMap<String, Service> {
        let service = || create_task(Arc::new(self.clone())).into_values().next();
        NAMES.into_iter().filter_map(|name| Some((name.to_owned(), service()?))).collect()
    }
}

/// Runs `work` to its end, whether or not anybody waits for it.
async fn run_to_completion<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> ttrpc::Result<T> {
    match tokio::spawn(work).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(Error::Internal(format!("the shim failed: {error}")).into()),
    }
}

fn root_mount(mount: Mount) -> RootMount {
    RootMount { fs_type: mount.type_, source: mount.source, target: mount.target, options: mount.options }
}

fn deleted(pid: u32, exit: Exit) -> api::DeleteResponse {
    api::DeleteResponse {
        pid,
        exit_status: exit.status,
        exited_at: MessageField::some(timestamp(exit.at)),
        ..Default::default()
    }
}

#[async_trait]
impl Task for TaskService {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        let sandbox = self.sandbox.clone();
        let id = request.id.clone();
        let new = NewContainer {
            id: request.id,
            bundle: request.bundle.into(),
            rootfs: request.rootfs.into_iter().map(root_mount).collect(),
            stdio: Stdio {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
            checkpoint: request.checkpoint,
        };
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            let result = sandbox.create(new).await;
            if let Err(Ok(_)) = answer.send(result) {
                sandbox.discard(&id).await;
            }
        });
        let lost = |_| Error::Internal("the shim failed to create the container".into());
        let pid = answered.await.map_err(lost)??;
        Ok(api::CreateTaskResponse { pid, ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: api::StartRequest) -> ttrpc::Result<api::StartResponse> {
        let container = self.sandbox.container(&request.id)?;
        let pid = run_to_completion(async move { container.start(&request.exec_id).await }).await?;
        Ok(api::StartResponse { pid, ..Default::default() })
    }

    async fn state(&self, _: &TtrpcContext, request: api::StateRequest) -> ttrpc::Result<api::StateResponse> {
        let container = self.sandbox.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let (status, exit) = match process.status() {
            Status::Created => (TaskStatus::CREATED, None),
            Status::Running if container.guest.is_paused() => (TaskStatus::PAUSED, None),
            Status::Running => (TaskStatus::RUNNING, None),
            Status::Stopped(exit) => (TaskStatus::STOPPED, Some(exit)),
        };
        Ok(api::StateResponse {
            id: request.id,
            exec_id: request.exec_id,
            bundle: container.bundle.display().to_string(),
            pid: container.pid(),
            status: status.into(),
            stdin: process.stdio.stdin.clone(),
            stdout: process.stdio.stdout.clone(),
            stderr: process.stdio.stderr.clone(),
            terminal: process.stdio.terminal,
            exit_status: exit.map(|exit| exit.status).unwrap_or_default(),
            exited_at: exit.map(|exit| timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn exec(&self, _: &TtrpcContext, request: api::ExecProcessRequest) -> ttrpc::Result<api::Empty> {
        let container = self.sandbox.container(&request.id)?;
        let stdio = Stdio {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let spec = request.spec.into_option().unwrap_or_default().value;
        container.exec(request.exec_id, spec, stdio)?;
        Ok(api::Empty::default())
    }

    async fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> ttrpc::Result<api::Empty> {
        let container = self.sandbox.container(&request.id)?;
        run_to_completion(async move { container.kill(&request.exec_id, request.signal, request.all).await })
            .await?;
        Ok(api::Empty::default())
    }

    async fn wait(&self, _: &TtrpcContext, request: api::WaitRequest) -> ttrpc::Result<api::WaitResponse> {
        let process = self.sandbox.container(&request.id)?.process(&request.exec_id)?;
        let exit = process.wait().await?;
        Ok(api::WaitResponse {
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        })
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: api::DeleteRequest,
    ) -> ttrpc::Result<api::DeleteResponse> {
        let container = self.sandbox.container(&request.id)?;
        let sandbox = self.sandbox.clone();
        let pid = container.pid();
        let exit = run_to_completion(async move {
            if request.exec_id.is_empty() {
                sandbox.delete(&request.id).await
            } else {
                container.delete_exec(&request.exec_id).await
            }
        });
        Ok(deleted(pid, exit.await?))
    }

    async fn pids(&self, _: &TtrpcContext, request: api::PidsRequest) -> ttrpc::Result<api::PidsResponse> {
        let container = self.sandbox.container(&request.id)?;
        // The guest's own pids mean nothing on the host: the task's pid stands for all of them, until Delete. A containerd that starts
        // deletes a task without a pid, and how a task ended while containerd was away would be lost.
        let one = ProcessInfo { pid: container.pid(), ..Default::default() };
        Ok(api::PidsResponse { processes: vec![one], ..Default::default() })
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: api::ResizePtyRequest,
    ) -> ttrpc::Result<api::Empty> {
        let container = self.sandbox.container(&request.id)?;
        let resize = async move { container.resize(&request.exec_id, request.width, request.height).await };
        run_to_completion(resize).await?;
        Ok(api::Empty::default())
    }

    async fn close_io(&self, _: &TtrpcContext, request: api::CloseIORequest) -> ttrpc::Result<api::Empty> {
        let process = self.sandbox.container(&request.id)?.process(&request.exec_id)?;
        if request.stdin {
            process.close_stdin();
        }
        Ok(api::Empty::default())
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: api::ConnectRequest,
    ) -> ttrpc::Result<api::ConnectResponse> {
        let task_pid = self.sandbox.container(&request.id).map_or(0, |container| container.pid());
        Ok(api::ConnectResponse { shim_pid: std::process::id(), task_pid, ..Default::default() })
    }

    async fn shutdown(&self, _: &TtrpcContext, request: api::ShutdownRequest) -> ttrpc::Result<api::Empty> {
        // With a container left, only a containerd that means it ends the sandbox.
        if request.now || self.sandbox.is_empty() {
            self.shutdown.send_replace(true);
        }
        Ok(api::Empty::default())
    }

    async fn pause(&self, _: &TtrpcContext, request: api::PauseRequest) -> ttrpc::Result<api::Empty> {
        let sandbox = self.sandbox.clone();
        run_to_completion(async move { sandbox.pause(&request.id).await }).await?;
        Ok(api::Empty::default())
    }

    async fn resume(&self, _: &TtrpcContext, request: api::ResumeRequest) -> ttrpc::Result<api::Empty> {
        let container = self.sandbox.container(&request.id)?;
        run_to_completion(async move { container.resume().await }).await?;
        Ok(api::Empty::default())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: api::CheckpointTaskRequest) -> ttrpc::Result<api::Empty> {
        Err(Error::Unimplemented("checkpoint is not implemented by this version of lazaret".into()).into())
    }

    async fn update(&self, _: &TtrpcContext, request: api::UpdateTaskRequest) -> ttrpc::Result<api::Empty> {
        let container = self.sandbox.container(&request.id)?;
        let resources = request.resources.into_option().unwrap_or_default().value;
        run_to_completion(async move { container.update(&resources).await }).await?;
        Ok(api::Empty::default())
    }

    async fn stats(&self, _: &TtrpcContext, request: api::StatsRequest) -> ttrpc::Result<api::StatsResponse> {
        let container = self.sandbox.container(&request.id)?;
        let stats = run_to_completion(async move { container.stats().await }).await?;
        let metrics = Any {
            type_url: METRICS.into(),
            value: stats.write_to_bytes().map_err(|error| Error::Internal(format!("statistics: {error}")))?,
            ..Default::default()
        };
        Ok(api::StatsResponse { stats: MessageField::some(metrics), ..Default::default() })
    }
}

#[cfg(test)]
#[path = "service_test.rs"]
mod tests;
