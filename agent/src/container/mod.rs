//! Containers and their processes.

mod containers;
mod create;
mod exec;
mod launch;
mod process;
mod state;
mod stats;
#[cfg(test)]
pub(crate) mod test_support;
mod update;

pub(crate) use containers::Containers;
pub(crate) use process::Process;

use crate::cgroup::Cgroup;
use crate::crun::Crun;
use crate::rpc::RpcError;
use exec::Execs;
use stats::Accounts;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// A container, from the moment crun has made it.
pub(crate) struct Container {
    id: String,
    /// How many were made before it.
    number: u64,
    /// It runs no program of the user's.
    holds_pod: bool,
    /// Its bundle and the directories of its execs; removed with it.
    bundle: Bundle,
    cgroup: Cgroup,
    oom_score_adj: i64,
    init: Arc<Process>,
    execs: Arc<Execs>,
    crun: Arc<Crun>,
    pub(crate) accounts: Accounts,
    /// Held while crun changes its limits.
    updating: tokio::sync::Mutex<()>,
}

impl Container {
    /// By exec id; the empty one is the container's own.
    ///
    /// # Errors
    /// NOT_FOUND.
    pub(crate) fn process(&self, exec_id: &str) -> Result<Arc<Process>, RpcError> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        self.execs.get(exec_id).ok_or_else(|| self.no_process(exec_id))
    }

    fn no_process(&self, exec_id: &str) -> RpcError {
        RpcError::NotFound(format!("container {}: there is no process {exec_id}", self.id))
    }

    /// Runs the container's own process. Answers with its pid.
    ///
    /// # Errors
    /// FAILED_PRECONDITION when it was started or has ended; INTERNAL.
    pub(crate) async fn start(&self) -> Result<libc::pid_t, RpcError> {
        self.init.start()?;
        if let Err(error) = self.crun.start(&self.id, &self.bundle.0).await {
            self.init.not_started();
            return Err(RpcError::Internal(format!("container {}: it cannot be started: {error}", self.id)));
        }
        self.init.started();
        self.init.pid().ok_or_else(|| RpcError::Internal(format!("container {}: it has no pid", self.id)))
    }

    /// # Errors
    /// As [`Process::signal`].
    pub(crate) fn signal(&self, exec_id: &str, signal: u32, all: bool) -> Result<(), RpcError> {
        let signal = i32::try_from(signal).ok().filter(|signal| (0..=libc::SIGRTMAX()).contains(signal));
        let signal = signal.ok_or_else(|| RpcError::InvalidArgument("not a signal".to_owned()))?;
        if !all {
            return self.process(exec_id)?.signal(signal);
        }
        if signal == libc::SIGKILL {
            // The kernel takes the first process's whole pid namespace with it, and that process last. Those in the pid namespace of
            // another container are killed when their first has ended.
            return self.init.signal(signal);
        }
        self.init.signal(signal)?;
        let init = self.init.pid();
        for pid in self.cgroup.pids().into_iter().filter(|&pid| Some(pid) != init) {
            // Gone already is as good.
            kill(pid, signal);
        }
        Ok(())
    }

    /// Whether its own process has not ended.
    fn is_live(&self) -> bool {
        !matches!(self.init.state(), state::State::Ended(_))
    }

    /// The guest's pids of all its processes.
    pub(crate) fn pids(&self) -> Vec<libc::pid_t> {
        self.cgroup.pids()
    }

    /// Kills what was never started, and removes all traces of the container from the guest.
    ///
    /// # Errors
    /// FAILED_PRECONDITION while it runs; INTERNAL when something is left.
    async fn delete(&self) -> Result<(), RpcError> {
        self.init.may_delete()?;
        if self.init.state() == state::State::Created {
            match self.init.signal(libc::SIGKILL) {
                Ok(()) | Err(RpcError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        self.init.wait().await;
        let removed = self.crun.delete(&self.id, &self.bundle.0).await;
        removed.map_err(|error| RpcError::Internal(format!("container {}: {error}", self.id)))?;
        let cgroup = self.cgroup.remove();
        cgroup
            .map_err(|error| RpcError::Internal(format!("container {}: its cgroup stays: {error}", self.id)))
    }
}

/// Sends a signal by pid, to a process that the agent need not be the parent of; nix knows no real-time signals.
fn kill(pid: libc::pid_t, signal: i32) {
    // SAFETY: kill(2) touches no memory.
    unsafe { libc::kill(pid, signal) };
}

/// A directory for crun's files that goes with its owner.
struct Bundle(PathBuf);

impl Bundle {
    /// # Errors
    /// Of the file system.
    fn make(path: PathBuf) -> io::Result<Self> {
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            log::warn!("cannot remove {}: {error}", self.0.display());
        }
    }
}
