//! What a guest and its containers use, and what they may use.

use super::{CALL_TIMEOUT, Guest, within};
use crate::error::{Error, Result};
use crate::sandbox::anchor::Anchor;
use crate::sandbox::cgroup::{Cgroup, CgroupError};
use crate::sandbox::limits::Limits;
use lazaret_agent_api::agent::{ContainerRequest, StatsResponse, UpdateContainerRequest, WaitOomRequest};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use ttrpc::context::Context;

/// How long the agent may take for a container's numbers: it gives the kernel 10 s.
const STATS_TIMEOUT: Duration = Duration::from_secs(12);

impl Guest {
    /// Has the host hold the guest to the limits of its sandbox. For use before the first process is started.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a limit that the kernel refuses.
    pub(super) fn limit(&self) -> Result<()> {
        self.hold_to(&self.limits)
    }

    fn hold_to(&self, limits: &Limits) -> Result<()> {
        let Some(cgroup) = &self.cgroup else { return Ok(()) };
        cgroup.limit(limits).map_err(|error| Error::InvalidArgument(error.to_string()))
    }

    /// Starts a process of the host that stands for container `id`, beside the VMM.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub(crate) fn start_anchor(&self, id: &str) -> Result<Anchor> {
        let internal = |error: CgroupError| Error::Internal(format!("container {id}: {error}"));
        let cgroup = self.cgroup.as_deref().map(Cgroup::procs).transpose().map_err(internal)?;
        let counted = self.anchors.clone();
        // It takes nothing of what the VMM may have.
        let anchors = Arc::strong_count(&self.anchors) - 1;
        let limits = Limits::of_processes(self.size, u32::try_from(anchors).unwrap_or(u32::MAX));
        self.hold_to(&limits)?;
        Anchor::start(id, &self.vm.network_namespace(), cgroup, counted)
    }

    /// Changes the limits of a container, in the guest and, with `on_host`, those that the host holds the guest to: `resources`
    /// is `linux.resources` of a spec, of which the fields that are there count.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] for more memory than the VM has; what the guest's kernel or the host's refuses.
    pub(crate) async fn update(&self, container: &str, resources: &[u8], on_host: bool) -> Result<()> {
        let refuse = |error| Error::InvalidArgument(format!("the resources are not JSON: {error}"));
        let parsed: Value = serde_json::from_slice(resources).map_err(refuse)?;
        let limits = Limits::of_resources(&parsed)?;
        let memory = parsed["memory"]["limit"].as_u64().unwrap_or_default();
        if memory > self.memory() {
            return Err(Error::FailedPrecondition(format!(
                "a memory limit of {memory} bytes is more than the sandbox's VM has ({}): start it with room to grow, by the annotation io.lazaret.vm.memory",
                self.memory()
            )));
        }
        let request = UpdateContainerRequest {
            container_id: container.into(),
            resources: resources.to_vec(),
            ..Default::default()
        };
        let call = self.agent.update_container(within(CALL_TIMEOUT), &request);
        self.call("changing the limits", CALL_TIMEOUT, call).await?;
        if on_host { self.hold_to(&limits) } else { Ok(()) }
    }

    /// What the container's cgroup in the guest counts. Its memory limit is that of the VM, where it has no smaller one.
    ///
    /// # Errors
    /// The agent's.
    pub(crate) async fn stats(&self, container: &str) -> Result<StatsResponse> {
        let request = ContainerRequest { container_id: container.into(), ..Default::default() };
        let call = self.agent.get_stats(within(STATS_TIMEOUT), &request);
        let mut stats = self.call("reading the statistics", STATS_TIMEOUT, call).await?;
        if let Some(memory) = stats.memory.as_mut() {
            memory.usage_limit = memory.usage_limit.min(self.memory());
        }
        Ok(stats)
    }

    /// Waits until the guest's kernel has killed more processes of the container for want of memory than `seen`, and says how many.
    ///
    /// # Errors
    /// The agent's, when there is nothing more to wait for.
    pub(crate) async fn wait_oom(&self, container: &str, seen: u64) -> Result<u64> {
        let request = WaitOomRequest { container_id: container.into(), seen, ..Default::default() };
        let answer = self.answer("waiting for OOM kills", self.agent.wait_oom(Context::default(), &request));
        Ok(answer.await?.oom_kills)
    }

    /// Memory of the VM, bytes.
    fn memory(&self) -> u64 {
        self.size.memory_mib.saturating_mul(1 << 20)
    }
}
