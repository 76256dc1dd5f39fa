//! Other limits for a container that runs.

use super::Container;
use super::state::State;
use crate::cgroup::unblocked;
use crate::crun::CrunError;
use crate::rpc::RpcError;
use crate::spec::{self, Guest};

impl Container {
    /// Sets what `resources`, JSON of an OCI spec, asks for.
    ///
    /// # Errors
    /// FAILED_PRECONDITION when the container has ended, or uses more memory than a limit that is only to be set if it does
    /// not; INVALID_ARGUMENT; INTERNAL.
    pub(super) async fn update(&self, resources: &[u8], guest: &Guest) -> Result<(), RpcError> {
        let id = &self.id;
        let invalid = |error: String| RpcError::InvalidArgument(format!("container {id}: {error}"));
        let not_running = || RpcError::FailedPrecondition(format!("container {id} is not running"));
        let _alone = self.updating.lock().await;
        if matches!(self.init.state(), State::Ended(_)) {
            return Err(not_running());
        }
        let cpu_max = self.text("cpu.max").await?;
        let spec =
            spec::for_update(resources, &cpu_max, guest).map_err(|error| invalid(error.to_string()))?;
        for dropped in &spec.dropped {
            log::info!("container {id}: not applied: {dropped}");
        }
        if let Some(limit) = spec.memory_limit.filter(|_| spec.check_memory) {
            let used = self.memory_used().await?;
            if used >= limit {
                return Err(RpcError::FailedPrecondition(format!(
                    "container {id}: it uses {used} bytes of memory, and the new limit is {limit}"
                )));
            }
        }
        let file = self.bundle.0.join("resources.json");
        let written = std::fs::write(&file, &spec.resources);
        written.map_err(|error| RpcError::Internal(format!("container {id}: its bundle: {error}")))?;
        match self.crun.update(id, &self.bundle.0, &file).await {
            Ok(()) => {}
            // crun reports that in many ways.
            Err(_) if matches!(self.init.state(), State::Ended(_)) => return Err(not_running()),
            Err(CrunError::Refused(message)) => return Err(invalid(message)),
            Err(error) => return Err(RpcError::Internal(format!("container {id}: {error}"))),
        }
        if let Some(limit) = spec.memory_limit {
            let used = self.memory_used().await?;
            if used > limit {
                log::info!("container {id}: it still uses {used} bytes of memory, and its limit is {limit}");
            }
        }
        Ok(())
    }

    async fn memory_used(&self) -> Result<u64, RpcError> {
        let used = self.text("memory.current").await?;
        Ok(used.trim().parse().unwrap_or_default())
    }

    /// Of a file of its cgroup; empty where there is no such file.
    async fn text(&self, file: &'static str) -> Result<String, RpcError> {
        let cgroup = self.cgroup.clone();
        let read = unblocked(move || Ok(cgroup.text(file).unwrap_or_default())).await;
        read.map_err(|error| {
            RpcError::Internal(format!("container {}: its {file} cannot be read: {error}", self.id))
        })
    }
}
