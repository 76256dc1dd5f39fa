//! Processes that are added to a container.

use super::launch::launch;
use super::process::{OUTPUT_DRAIN_TIMEOUT, Process};
use super::state::State;
use super::{Bundle, Container};
use crate::reaper::Exit;
use crate::rpc::RpcError;
use crate::spec::{self, ExecSpec, Guest};
use crate::stdio::ProcessIo;
use crate::sync::lock;
use lazaret_agent_api::agent::CreateExecRequest;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::timeout;

/// The exit status of an exec that could not be started: a shell's, for a command that cannot be run.
const CANNOT_RUN: u32 = 127;

/// A container's execs, by id.
#[derive(Default)]
pub(super) struct Execs {
    table: Mutex<HashMap<String, Exec>>,
    /// Numbers their directories: ids are too long for a socket's path.
    next: AtomicU64,
}

struct Exec {
    process: Arc<Process>,
    spec: Arc<ExecSpec>,
}

impl Execs {
    pub(super) fn get(&self, id: &str) -> Option<Arc<Process>> {
        self.table().get(id).map(|exec| exec.process.clone())
    }

    fn process_and_spec(&self, id: &str) -> Option<(Arc<Process>, Arc<ExecSpec>)> {
        self.table().get(id).map(|exec| (exec.process.clone(), exec.spec.clone()))
    }

    /// Waits until the exits of all execs that were started are known, for as long as their output may take.
    pub(super) async fn ended(&self) {
        let started: Vec<_> = self.table().values().map(|exec| exec.process.clone()).collect();
        for process in started.iter().filter(|process| process.state() != State::Created) {
            if timeout(OUTPUT_DRAIN_TIMEOUT + Duration::from_secs(1), process.wait()).await.is_err() {
                log::warn!("an exec has outlived its container's first process");
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<String, Exec>> {
        lock(&self.table)
    }
}

impl Container {
    /// Adds a process, which waits for its start.
    ///
    /// # Errors
    /// ALREADY_EXISTS, INVALID_ARGUMENT, FAILED_PRECONDITION when the container has ended.
    pub(super) fn create_exec(&self, request: CreateExecRequest, guest: &Guest) -> Result<(), RpcError> {
        let id = request.exec_id;
        let name = format!("container {}, process {id}", self.id);
        let spec = spec::for_exec(&request.process, self.oom_score_adj, guest)
            .map_err(|error| RpcError::InvalidArgument(format!("{name}: {error}")))?;
        if matches!(self.init.state(), State::Ended(_)) {
            return Err(RpcError::FailedPrecondition(format!("container {} is not running", self.id)));
        }
        let mut table = self.execs.table();
        if table.contains_key(&id) {
            return Err(RpcError::AlreadyExists(format!("{name} exists already")));
        }
        let io = ProcessIo::new(&request.stdio.unwrap_or_default(), spec.terminal);
        let process = Arc::new(Process::new(name, io));
        table.insert(id, Exec { process, spec: Arc::new(spec) });
        Ok(())
    }

    /// Runs an added process. Answers with its pid.
    ///
    /// # Errors
    /// NOT_FOUND; FAILED_PRECONDITION when it was started or the container does not run; INVALID_ARGUMENT when it cannot
    /// be run; INTERNAL.
    pub(super) async fn start_exec(&self, id: &str) -> Result<libc::pid_t, RpcError> {
        let (process, spec) = self.execs.process_and_spec(id).ok_or_else(|| self.no_process(id))?;
        let not_running = || RpcError::FailedPrecondition(format!("container {} is not running", self.id));
        if self.init.state() != State::Running {
            return Err(not_running());
        }
        process.start()?;
        match self.launch_exec(&process, &spec).await {
            Ok(pid) => {
                process.started();
                Ok(pid)
            }
            Err(error) => {
                process.fail(Exit::now(CANNOT_RUN));
                // A container that has ended is the reason, which crun reports in many ways.
                Err(if self.init.state() == State::Running { error } else { not_running() })
            }
        }
    }

    async fn launch_exec(&self, process: &Arc<Process>, spec: &ExecSpec) -> Result<libc::pid_t, RpcError> {
        let number = self.execs.next.fetch_add(1, Ordering::Relaxed);
        let internal = |error: std::io::Error| RpcError::Internal(format!("container {}: {error}", self.id));
        let directory = Bundle::make(self.bundle.0.join(format!("exec-{number}"))).map_err(internal)?;
        std::fs::write(directory.0.join("process.json"), &spec.process).map_err(internal)?;
        let crun = async |launch: crate::crun::Launch<'_>| self.crun.exec(&self.id, launch).await;
        let child = launch(&self.crun.reaper, &directory.0, &process.io, spec.oom_score_adj, crun).await?;
        let pid = child.pid;
        process.adopt(child, async {});
        Ok(pid)
    }

    /// Forgets an added process.
    ///
    /// # Errors
    /// NOT_FOUND; FAILED_PRECONDITION while it runs.
    pub(super) fn delete_exec(&self, id: &str) -> Result<(), RpcError> {
        self.process(id)?.may_delete()?;
        self.execs.table().remove(id);
        Ok(())
    }
}
