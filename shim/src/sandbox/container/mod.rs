//! A container: its own process, its execs, and what the host has mounted for it.

mod bind;
pub(in crate::sandbox) mod hooks;
pub(in crate::sandbox) mod life;
pub(in crate::sandbox) mod mounts;
mod pause;
mod process;
mod resources;
pub(in crate::sandbox) mod rootfs;
pub(in crate::sandbox) mod spec;
pub(in crate::sandbox) mod steps;

use crate::error::{Error, Result};
use crate::events::{Event, Publisher, timestamp};
use crate::io::{Owner, ProcessIo, Stdio};
use crate::sandbox::anchor::Anchor;
use crate::sandbox::check_id;
use crate::sandbox::guest::{Ended, Guest, ProcessKey};
use crate::sandbox::membership::Role;
use crate::sync::lock;
use containerd_shim_protos::events::task::{TaskDelete, TaskExecAdded};
use hooks::{Hooks, When};
use lazaret_agent_api::agent::stream_header::Kind;
use life::{Exit, Status};
use mounts::ContainerMounts;
use pause::Signals;
use process::Process;
use resources::Usage;
use spec::check_process;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// How long an exit event waits until the output that came before it is read. A slower reader gets the rest afterwards.
const DRAIN_BEFORE_EXIT: Duration = Duration::from_secs(2);
/// How long `Delete` waits for output to be read before it is cut off.
const DRAIN_BEFORE_DELETE: Duration = Duration::from_secs(10);
/// How long the end of a container's own process waits for the exits of its execs, which end with it.
const EXECS_EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long `Delete` waits until the container's mounts are unmounted.
const UNMOUNT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a process may take to end after SIGKILL: it may be waiting for the host's disk.
const KILL_TIMEOUT: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(30) };

/// What the guest makes a container from.
#[derive(Debug, Clone, Default)]
pub(crate) struct GuestSpec {
    /// The OCI runtime spec, with the guest's paths.
    pub config: Vec<u8>,
    /// The namespaces that are those of other containers: by type, whose.
    pub joins: HashMap<String, String>,
    /// It only holds its pod.
    pub holds_pod: bool,
}

/// A container of the sandbox.
pub(crate) struct Container {
    pub id: String,
    pub bundle: PathBuf,
    pub guest: Arc<Guest>,
    role: Role,
    /// Where its pid is not the VMM's.
    anchor: Option<Anchor>,
    init: Arc<Process>,
    execs: Mutex<HashMap<String, Exec>>,
    mounts: Mutex<Option<ContainerMounts>>,
    hooks: Hooks,
    /// Signals that came while the guest was paused.
    signals: Mutex<Signals>,
    usage: Mutex<Usage>,
    events: Publisher,
}

struct Exec {
    process: Arc<Process>,
    /// The `process` object of the spec, until the exec is started.
    spec: Vec<u8>,
}

impl Container {
    /// Runs the hooks that come before the container, makes it in the guest and connects its stdio.
    ///
    /// # Errors
    /// A hook's, the agent's, or the stdio's; nothing is left then.
    pub(crate) async fn create(
        role: Role,
        hooks: Hooks,
        guest: Arc<Guest>,
        mounts: ContainerMounts,
        spec: GuestSpec,
        stdio: Stdio,
        events: Publisher,
    ) -> Result<Arc<Self>> {
        let (id, bundle) = (hooks.id.clone(), hooks.bundle.clone());
        let anchor = (role == Role::Member).then(|| guest.start_anchor(&id)).transpose()?;
        let pid = anchor.as_ref().map_or(guest.pid(), Anchor::pid);
        hooks.run(When::Prestart, pid).await?;
        hooks.run(When::CreateRuntime, pid).await?;
        let key = ProcessKey { container: id.clone(), exec: String::new() };
        let mut io = ProcessIo::open(&stdio, Owner { id: &id, namespace: events.namespace() }).await?;
        guest.create_container(&id, spec, stdio.for_agent()?).await?;
        if let Err(error) = io.attach(|kind| guest.stream(&key, kind)).await {
            guest.forget(&key).await;
            return Err(error);
        }
        let init = Arc::new(Process::new(key, stdio, pid, events.clone()));
        init.attached(io);
        Ok(Arc::new(Self {
            id,
            bundle,
            guest,
            role,
            anchor,
            init,
            execs: Mutex::new(HashMap::new()),
            mounts: Mutex::new(Some(mounts)),
            hooks,
            signals: Mutex::default(),
            usage: Mutex::default(),
            events,
        }))
    }

    /// The pid that containerd is told.
    #[must_use]
    pub(crate) fn pid(&self) -> u32 {
        self.anchor.as_ref().map_or(self.guest.pid(), Anchor::pid)
    }

    /// Publishes the exit of the container's own process when that has ended and `gone` is done. For use after the creation
    /// event was published.
    pub(crate) fn watch(self: &Arc<Self>, gone: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(self.clone().watch_oom());
        if let Some(anchor) = &self.anchor {
            tokio::spawn(self.clone().end_with(anchor.ended()));
        }
        let container = self.clone();
        tokio::spawn(async move {
            let Some(Ended { exit, oom_kills }) = container.until_ended(&container.init).await else {
                return;
            };
            container.oom_killed(oom_kills);
            // The answer to Start, and its event, come first.
            let turn = container.init.turn.lock().await;
            let first = container.init.ended();
            drop(turn);
            if first {
                container.publish_end(exit, gone).await;
            }
        });
    }

    /// Kills the container when its anchor has ended, unless the container has.
    async fn end_with(self: Arc<Self>, anchor: impl Future<Output = ()>) {
        anchor.await;
        if self.init.has_ended() {
            return;
        }
        log::warn!("process {} has ended, so container {} is killed", self.pid(), self.id);
        if let Err(error) = self.kill("", libc::SIGKILL.unsigned_abs(), true).await {
            log::debug!("killing container {}: {error}", self.id);
        }
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
        if !exec_id.is_empty() && !self.init.is_live() {
            return Err(self.no_exec("does not run"));
        }
        process.begin_start()?;
        let started = async {
            if exec_id.is_empty() {
                let resolv_conf = lock(&self.mounts).as_ref().and_then(ContainerMounts::resolv_conf);
                self.guest.settle(resolv_conf).await?;
            } else {
                self.create_exec(&process).await?;
            }
            self.guest.start(&process.key).await
        };
        let started = started.await;
        if let Err(error) = started {
            process.start_failed();
            if exec_id.is_empty() {
                return Err(error);
            }
            self.guest.forget(&process.key).await;
            return Err(if self.init.is_live() { error } else { self.no_exec("has ended") });
        }
        process.started();
        if exec_id.is_empty() {
            // The container runs whatever they do, as under runc.
            if let Err(error) = self.hooks.run(When::Poststart, self.pid()).await {
                log::warn!("{error}");
            }
        } else {
            let container = self.clone();
            let process = process.clone();
            tokio::spawn(async move {
                let Some(Ended { exit, .. }) = container.until_ended(&process).await else { return };
                process.ended();
                process.drain(DRAIN_BEFORE_EXIT).await;
                process.exited(exit);
            });
        }
        Ok(self.pid())
    }

    /// The pipes of an exec may have been made just for this call, so they are opened no earlier.
    async fn create_exec(&self, process: &Process) -> Result<()> {
        let spec = self.execs().get(&process.key.exec).map(|exec| exec.spec.clone()).unwrap_or_default();
        let owner = Owner { id: &process.key.exec, namespace: self.events.namespace() };
        let mut io = ProcessIo::open(&process.stdio, owner).await?;
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
        check_id("exec", &exec_id)?;
        check_process(&spec)?;
        stdio.for_agent()?;
        if self.init.has_ended() {
            return Err(self.no_exec("has ended"));
        }
        let mut execs = self.execs();
        if execs.contains_key(&exec_id) {
            return Err(Error::AlreadyExists(format!("exec {exec_id:?} of container {} exists", self.id)));
        }
        let key = ProcessKey { container: self.id.clone(), exec: exec_id.clone() };
        let process = Arc::new(Process::new(key, stdio, self.pid(), self.events.clone()));
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
        if !self.awake_for(&process.key, signal, all).await? {
            return Ok(());
        }
        let sent = self.guest.signal(&process.key, signal, all).await;
        if i32::try_from(signal) == Ok(libc::SIGKILL) {
            tokio::spawn(self.clone().end_vm_unless_killed(process));
        }
        sent
    }

    /// Ends the VM if the process does not end within [`KILL_TIMEOUT`] of SIGKILL: the guest does not obey then.
    async fn end_vm_unless_killed(self: Arc<Self>, process: Arc<Process>) {
        if tokio::time::timeout(KILL_TIMEOUT, process.until_ended()).await.is_err() {
            log::error!("{} does not end after SIGKILL: its VM is ended", process.key);
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
        if process.has_ended() {
            return Err(Error::FailedPrecondition("cannot resize: the process has ended".into()));
        }
        self.guest.resize(&process.key, width, height).await
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

    /// Takes the container away. One that was created and never started is ended first, with what `gone` does.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] while it runs.
    pub(crate) async fn delete(&self, gone: impl Future<Output = ()>) -> Result<Exit> {
        let process = &self.init;
        let _turn = process.turn.lock().await;
        process.check_delete()?;
        if process.ended() {
            self.publish_end(Exit::killed(), gone).await;
        }
        process.drain(DRAIN_BEFORE_DELETE).await;
        self.guest.forget(&process.key).await;
        let mounts = lock(&self.mounts).take();
        // Unmounting may wait for the disk.
        let unmounting = tokio::task::spawn_blocking(move || drop(mounts));
        if tokio::time::timeout(UNMOUNT_TIMEOUT, unmounting).await.is_err() {
            log::error!("container {} is not unmounted within {} s", self.id, UNMOUNT_TIMEOUT.as_secs());
        }
        let exit = process.deleted();
        let execs: Vec<_> = self.execs().drain().map(|(_, exec)| exec.process).collect();
        execs.iter().for_each(|exec| _ = exec.deleted());
        self.events.publish(&Event::Delete(TaskDelete {
            container_id: self.id.clone(),
            id: self.id.clone(),
            pid: self.pid(),
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        }));
        if let Err(error) = self.hooks.run(When::Poststop, 0).await {
            log::warn!("{error}");
        }
        Ok(exit)
    }

    /// Waits until the exit of the container's own process has been published.
    pub(crate) async fn until_exit_published(&self) {
        let _ = self.init.wait().await;
    }

    /// The exit of a process; `None` when the agent does not know the process because it was deleted.
    async fn until_ended(&self, process: &Process) -> Option<Ended> {
        self.guest.wait(&process.key, || process.has_ended()).await
    }

    /// Publishes the exit of the container's own process, which has ended: after the exits of the execs, which end with it,
    /// and when `gone` is done.
    async fn publish_end(&self, exit: Exit, gone: impl Future<Output = ()>) {
        self.init.drain(DRAIN_BEFORE_EXIT).await;
        let running = |exec: &Arc<Process>| exec.status() == Status::Running;
        let execs: Vec<_> = self.execs().values().map(|exec| exec.process.clone()).filter(running).collect();
        let exits = async {
            for exec in &execs {
                let _ = exec.wait().await;
            }
        };
        let late = tokio::time::timeout(EXECS_EXIT_TIMEOUT, exits).await.is_err();
        self.keep_last_stats().await;
        gone.await;
        if late {
            log::warn!(
                "an exec of container {} did not end with the container: it is taken for killed",
                self.id
            );
            for exec in &execs {
                exec.ended();
                exec.exited(Exit::killed());
            }
        }
        if let Some(anchor) = &self.anchor {
            anchor.end().await;
        }
        self.init.exited(exit);
    }

    fn no_exec(&self, why: &str) -> Error {
        Error::FailedPrecondition(format!("cannot exec: container {} {why}", self.id))
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, Exec>> {
        lock(&self.execs)
    }
}
