//! What a container's cgroup counts, for the host.

use crate::cgroup::{Cgroup, READ_TIMEOUT, is_gone, unblocked};
use crate::rpc::RpcError;
use lazaret_agent_api::agent::StatsResponse;
use std::io::ErrorKind;
use std::sync::{Arc, OnceLock};
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;

/// A container's numbers, for as long as it is there. What its methods return does not keep the container from being removed.
pub(crate) struct Accounts {
    id: String,
    cgroup: Cgroup,
    /// Held by a read, and by its thread as long as that is stuck: there is one such thread at most.
    reading: Arc<Mutex<()>>,
    last_oom_kills: Arc<OnceLock<u64>>,
    /// Closed with the container.
    removed: watch::Sender<()>,
}

impl Accounts {
    pub(super) fn new(id: &str, cgroup: Cgroup) -> Self {
        let (reading, last_oom_kills, removed) = Default::default();
        Self { id: id.to_owned(), cgroup, reading, last_oom_kills, removed }
    }

    /// # Errors
    /// NOT_FOUND without a cgroup; INTERNAL.
    pub(crate) fn stats(&self) -> impl Future<Output = Result<StatsResponse, RpcError>> + Send + use<> {
        let (id, cgroup, reading) = (self.id.clone(), self.cgroup.clone(), self.reading.clone());
        async move {
            let read = async {
                let turn = reading.lock_owned().await;
                unblocked(move || {
                    let stats = cgroup.stats();
                    drop(turn);
                    stats
                })
                .await
            };
            let read = timeout(READ_TIMEOUT, read).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
            read.map_err(|error| match is_gone(&error) {
                true => RpcError::NotFound(format!("container {id}: it has no cgroup")),
                false => RpcError::Internal(format!("container {id}: its cgroup cannot be read: {error}")),
            })
        }
    }

    /// Answers with the number of OOM kills when that is more than `seen`.
    ///
    /// # Errors
    /// NOT_FOUND when the container is removed; FAILED_PRECONDITION when its memory is not counted; INTERNAL.
    pub(crate) fn more_oom_kills(
        &self,
        seen: u64,
    ) -> impl Future<Output = Result<u64, RpcError>> + Send + use<> {
        let (id, cgroup) = (self.id.clone(), self.cgroup.clone());
        let mut removed = self.removed.subscribe();
        async move {
            let deleted = || RpcError::NotFound(format!("container {id} has been deleted"));
            tokio::select! {
                kills = cgroup.more_oom_kills(seen) => kills.map_err(|error| match error.kind() {
                    ErrorKind::NotFound => {
                        RpcError::FailedPrecondition(format!("container {id}: its memory is not counted"))
                    }
                    _ if is_gone(&error) => deleted(),
                    _ => RpcError::Internal(format!("container {id}: its memory events cannot be read: {error}")),
                }),
                // Nothing is ever sent: this is the end of the sender.
                _ = removed.changed() => Err(deleted()),
            }
        }
    }

    /// Notes the number of OOM kills once the container's own process has ended.
    pub(super) fn note_last_oom_kills(&self) -> impl Future<Output = ()> + Send + use<> {
        let (id, cgroup, last) = (self.id.clone(), self.cgroup.clone(), self.last_oom_kills.clone());
        async move {
            match cgroup.oom_kills().await {
                Ok(kills) => _ = last.set(kills),
                Err(error) if is_gone(&error) => {}
                Err(error) => log::warn!("container {id}: its OOM kills are not known: {error}"),
            }
        }
    }

    /// Where that number is, from that end on.
    pub(crate) fn last_oom_kills(&self) -> Arc<OnceLock<u64>> {
        self.last_oom_kills.clone()
    }
}

#[cfg(test)]
#[path = "stats_test.rs"]
mod tests;
