//! A container: its own process, its execs, and what the host has mounted for it.

use super::guest::{Guest, ProcessKey};
use super::life::{Exit, KILLED, Status};
use super::mounts::ContainerMounts;
use super::process::Process;
use super::spec::check_process;
use crate::error::{Error, Result};
use crate::events::{Event, Publisher, timestamp};
use crate::io::{ProcessIo, Stdio};
use containerd_shim_protos::events::task::{TaskDelete, TaskExecAdded};
use lazaret_agent_api::agent::stream_header::Kind;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// How long an exit waits for the output that came before it. A reader that is slower gets the rest afterwards.
const DRAIN_BEFORE_EXIT: Duration = Duration::from_secs(2);
/// How long `Delete` waits for output to be read before it is cut off.
const DRAIN_BEFORE_DELETE: Duration = Duration::from_secs(10);
/// How long the exit of a container's own process waits for those of its execs, which end with it.
const EXECS_BEFORE_INIT: Duration = Duration::from_secs(5);

/// How long a container's own process may take to end after SIGKILL: what it waits for of the host may take its time.
const KILLED_ENDS: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(30) };

/// A container of the sandbox.
pub(crate) struct Container {
    pub id: String,
    pub bundle: PathBuf,
    pub guest: Arc<Guest>,
    init: Arc<Process>,
    execs: Mutex<HashMap<String, Exec>>,
    mounts: Mutex<Option<ContainerMounts>>,
    events: Publisher,
}

struct Exec {
    process: Arc<Process>,
    /// The `process` object of the spec, until the exec is started.
    spec: Vec<u8>,
}

impl Container {
    /// Makes the container in the guest and connects its stdio. `spec` is the guest's.
    ///
    /// # Errors
    /// The agent's, or the stdio's; nothing is left then.
    pub(crate) async fn create(
        id: String,
        bundle: PathBuf,
        guest: Arc<Guest>,
        mounts: ContainerMounts,
        spec: Vec<u8>,
        stdio: Stdio,
        events: Publisher,
    ) -> Result<Arc<Self>> {
        let key = ProcessKey { container: id.clone(), exec: String::new() };
        let mut io = ProcessIo::open(&stdio)?;
        guest.create_container(&id, spec, stdio.for_agent()?).await?;
        if let Err(error) = io.attach(|kind| guest.stream(&key, kind)).await {
            guest.forget(&key).await;
            return Err(error);
        }
        let init = Arc::new(Process::new(key, stdio, guest.pid(), events.clone()));
        init.attached(io);
        Ok(Arc::new(Self {
            id,
            bundle,
            guest,
            init,
            execs: Mutex::new(HashMap::new()),
            mounts: Mutex::new(Some(mounts)),
            events,
        }))
    }

    /// Begins to wait for the container's own process. After the container's creation has been told.
    pub(crate) fn watch(self: &Arc<Self>) {
        tokio::spawn(self.clone().until_ended(self.init.clone()));
    }

    /// The process of that exec id; the container's own for the empty one.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub(crate) fn process(&self, exec_id: &str) -> Result<Arc<Process>> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        let found = self.execs().get(exec_id).map(|exec| exec.process.clone());
        found.ok_or_else(|| Error::NotFound(format!("exec {exec_id} of container {} not found", self.id)))
    }

    /// # Errors
    /// [`Error::FailedPrecondition`] in the wrong state; the agent's.
    pub(crate) async fn start(self: &Arc<Self>, exec_id: &str) -> Result<u32> {
        let process = self.process(exec_id)?;
        let _turn = process.turn.lock().await;
        if !exec_id.is_empty() && self.init.status() != Status::Running {
            return Err(Error::FailedPrecondition(format!(
                "cannot exec: container {} does not run",
                self.id
            )));
        }
        process.begin_start()?;
        let started = async {
            if !exec_id.is_empty() {
                self.create_exec(&process).await?;
            }
            self.guest.start(&process.key).await
        };
        let started = started.await;
        if let Err(error) = started {
            process.start_failed();
            if !exec_id.is_empty() {
                self.guest.forget(&process.key).await;
            }
            return Err(error);
        }
        process.started();
        if !exec_id.is_empty() {
            tokio::spawn(self.clone().until_ended(process.clone()));
        }
        Ok(self.guest.pid())
    }

    /// The pipes of an exec may have been made just for this call, so they are opened no earlier.
    async fn create_exec(&self, process: &Process) -> Result<()> {
        let spec = self.execs().get(&process.key.exec).map(|exec| exec.spec.clone()).unwrap_or_default();
        let mut io = ProcessIo::open(&process.stdio)?;
        self.guest.create_exec(&process.key, spec, process.stdio.for_agent()?).await?;
        io.attach(|kind: Kind| self.guest.stream(&process.key, kind)).await?;
        process.attached(io);
        Ok(())
    }

    /// Registers an exec; it is made when it is started.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], [`Error::FailedPrecondition`], [`Error::InvalidArgument`].
    pub(crate) fn exec(&self, exec_id: String, spec: Vec<u8>, stdio: Stdio) -> Result<()> {
        check_process(&spec)?;
        stdio.for_agent()?;
        if let Status::Stopped(_) = self.init.status() {
            return Err(Error::FailedPrecondition(format!("cannot exec: container {} has ended", self.id)));
        }
        let mut execs = self.execs();
        if exec_id.is_empty() || execs.contains_key(&exec_id) {
            return Err(Error::AlreadyExists(format!("exec {exec_id:?} of container {} exists", self.id)));
        }
        let key = ProcessKey { container: self.id.clone(), exec: exec_id.clone() };
        let process = Arc::new(Process::new(key, stdio, self.guest.pid(), self.events.clone()));
        self.events.publish(&Event::ExecAdded(TaskExecAdded {
            container_id: self.id.clone(),
            exec_id: exec_id.clone(),
            ..Default::default()
        }));
        execs.insert(exec_id, Exec { process, spec });
        Ok(())
    }

    /// # Errors
    /// [`Error::NotFound`] when the process has ended; the agent's.
    pub(crate) async fn kill(self: &Arc<Self>, exec_id: &str, signal: u32, all: bool) -> Result<()> {
        let process = self.process(exec_id)?;
        process.check_kill()?;
        let sent = self.guest.signal(&process.key, signal, all).await;
        if i32::try_from(signal) == Ok(libc::SIGKILL) && exec_id.is_empty() {
            tokio::spawn(self.clone().must_end());
        }
        sent
    }

    /// A container that was killed ends, whatever its guest says; if it must be, with its VM.
    async fn must_end(self: Arc<Self>) {
        if tokio::time::timeout(KILLED_ENDS, self.init.wait()).await.is_err() {
            log::error!("container {} does not end after SIGKILL: its VM is ended", self.id);
            self.guest.stop().await;
        }
    }

    /// # Errors
    /// [`Error::FailedPrecondition`] when it does not run or has no terminal; the agent's.
    pub(crate) async fn resize(&self, exec_id: &str, width: u32, height: u32) -> Result<()> {
        let process = self.process(exec_id)?;
        if !process.stdio.terminal {
            return Err(Error::FailedPrecondition("cannot resize: the process has no terminal".into()));
        }
        match process.status() {
            Status::Stopped(_) => {
                Err(Error::FailedPrecondition("cannot resize: the process has ended".into()))
            }
            _ => self.guest.resize(&process.key, width, height).await,
        }
    }

    /// Forgets an exec that has ended or was never started.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] while it runs.
    pub(crate) async fn delete_exec(&self, exec_id: &str) -> Result<Exit> {
        let process = self.process(exec_id)?;
        let _turn = process.turn.lock().await;
        process.check_delete()?;
        let started = process.status() != Status::Created;
        process.drain(DRAIN_BEFORE_DELETE).await;
        if started {
            self.guest.forget(&process.key).await;
        }
        self.execs().remove(exec_id);
        Ok(process.deleted())
    }

    /// Takes the container away. One that was created and never started is ended first.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] while it runs.
    pub(crate) async fn delete(&self) -> Result<Exit> {
        let process = &self.init;
        let _turn = process.turn.lock().await;
        process.check_delete()?;
        if process.status() == Status::Created {
            process.ended();
            process.exited(Exit { status: KILLED, at: SystemTime::now() });
        }
        process.drain(DRAIN_BEFORE_DELETE).await;
        self.guest.forget(&process.key).await;
        let mounts = self.mounts.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Unmounting may wait for the disk.
        if let Err(error) = tokio::task::spawn_blocking(move || drop(mounts)).await {
            log::error!("unmounting: {error}");
        }
        let exit = process.deleted();
        let execs: Vec<_> = self.execs().drain().map(|(_, exec)| exec.process).collect();
        execs.iter().for_each(|exec| _ = exec.deleted());
        self.events.publish(&Event::Delete(TaskDelete {
            container_id: self.id.clone(),
            id: self.id.clone(),
            pid: self.guest.pid(),
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        }));
        Ok(exit)
    }

    /// Kills whatever runs, and waits up to `limit` until its end has been told.
    pub(crate) async fn end(&self, limit: Duration) {
        if let Status::Stopped(_) = self.init.status() {
            return;
        }
        let kill = libc::SIGKILL.unsigned_abs();
        if let Err(error) = self.guest.signal(&self.init.key, kill, true).await {
            log::debug!("killing container {}: {error}", self.id);
        }
        if tokio::time::timeout(limit, self.init.wait()).await.is_err() {
            log::warn!("container {} does not end when it is killed", self.id);
        }
    }

    /// Waits up to `limit` until the end of the container's processes has been told. After the VM's end.
    pub(crate) async fn all_told(&self, limit: Duration) {
        if tokio::time::timeout(limit, self.init.wait()).await.is_err() {
            log::error!("the end of container {} was not told", self.id);
        }
    }

    async fn until_ended(self: Arc<Self>, process: Arc<Process>) {
        let told = || matches!(process.status(), Status::Stopped(_));
        let Some(exit) = self.guest.wait(&process.key, told).await else { return };
        process.ended();
        process.drain(DRAIN_BEFORE_EXIT).await;
        if process.key.exec.is_empty() {
            self.end_execs().await;
        }
        process.exited(exit);
    }

    /// The execs have ended with the container's own process; their exits are told before its.
    async fn end_execs(&self) {
        let live = |process: &Arc<Process>| process.is_live();
        let execs: Vec<_> = self.execs().values().map(|exec| exec.process.clone()).filter(live).collect();
        let all = async {
            for exec in &execs {
                let _ = exec.wait().await;
            }
        };
        if tokio::time::timeout(EXECS_BEFORE_INIT, all).await.is_err() {
            log::warn!("an exec of container {} is not heard of again", self.id);
            execs.iter().for_each(|exec| exec.exited(Exit { status: KILLED, at: SystemTime::now() }));
        }
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, Exec>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
