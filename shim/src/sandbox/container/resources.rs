//! What a container uses, what it may use, and what the kernel does when that is not enough.

use super::Container;
use crate::error::{Error, Result};
use crate::events::Event;
use crate::sandbox::membership::Role;
use crate::sync::lock;
use containerd_shim_protos::events::task::TaskOOM;
use lazaret_agent_api::agent::StatsResponse;
use std::sync::Arc;
use std::time::Duration;

/// How long the last numbers of a container may take. It has ended, or is about to be paused.
const LAST_STATS_TIMEOUT: Duration = Duration::from_secs(2);
/// The least time between two OOM events of a container: a guest that makes them up is not to flood containerd.
const OOM_EVENT_INTERVAL: Duration = Duration::from_millis(100);

/// What is known of a container's use of the guest.
#[derive(Debug, Default)]
pub(super) struct Usage {
    /// The newest numbers, for when the guest cannot be asked.
    last: Option<StatsResponse>,
    /// OOM kills that were published.
    oom_kills: u64,
}

impl Container {
    /// What the container's cgroup counts, or has counted last: the guest is paused, or gone.
    ///
    /// # Errors
    /// [`Error::NotFound`] when nothing is known; the agent's.
    pub(crate) async fn stats(&self) -> Result<StatsResponse> {
        if self.guest.is_alive() && !self.guest.is_paused() {
            match self.guest.stats(&self.id).await {
                Ok(stats) => {
                    lock(&self.usage).last = Some(stats.clone());
                    return Ok(stats);
                }
                // The guest has been paused or has ended meanwhile.
                Err(_) if self.guest.is_paused() || !self.guest.is_alive() => {}
                Err(error) => return Err(error),
            }
        }
        let last = lock(&self.usage).last.clone();
        last.ok_or_else(|| Error::NotFound(format!("container {} has no statistics", self.id)))
    }

    /// Asks for the numbers once more, before the guest cannot be asked any more.
    pub(super) async fn keep_last_stats(&self) {
        match tokio::time::timeout(LAST_STATS_TIMEOUT, self.stats()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => log::debug!("the last statistics of container {}: {error}", self.id),
            Err(_) => log::debug!("the last statistics of container {} take too long", self.id),
        }
    }

    /// Changes its limits; `resources` is `linux.resources` of a spec.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] when it has ended; as the guest's.
    pub(crate) async fn update(&self, resources: &[u8]) -> Result<()> {
        if self.init.has_ended() {
            return Err(Error::FailedPrecondition(format!("container {} has ended", self.id)));
        }
        // The limits of a sandbox of several containers are those that it was started with, and those of the cgroup above it.
        self.guest.update(&self.id, resources, self.role == Role::Sole).await
    }

    /// Publishes each OOM kill until the container has ended.
    pub(super) async fn watch_oom(self: Arc<Self>) {
        loop {
            let seen = lock(&self.usage).oom_kills;
            match self.guest.wait_oom(&self.id, seen).await {
                Ok(kills) if kills > seen => self.oom_killed(kills),
                Ok(kills) => {
                    log::warn!("the agent tells {kills} OOM kills where {seen} were: no more is asked");
                    return;
                }
                Err(error) => {
                    log::debug!("OOM kills of container {} are not watched any more: {error}", self.id);
                    return;
                }
            }
            tokio::time::sleep(OOM_EVENT_INTERVAL).await;
        }
    }

    /// Takes note of the number of OOM kills so far.
    pub(super) fn oom_killed(&self, kills: u64) {
        let mut usage = lock(&self.usage);
        if kills > usage.oom_kills {
            usage.oom_kills = kills;
            self.events.publish(&Event::Oom(TaskOOM { container_id: self.id.clone(), ..Default::default() }));
        }
    }
}

#[cfg(test)]
#[path = "resources_test.rs"]
mod tests;
