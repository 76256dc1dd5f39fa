//! A sandbox: one microVM, and the container in it.
//!
//! ```text
//!   start ──► launch ─────────────► Ready(guest) ──► Create ──► container
//!                     └───────────► Failed(why)  ──► Create answers why
//! ```
//!
//! The guest is started when the shim is, before containerd asks for a container, and the container's mounts are made
//! beside its boot.

mod bind;
pub(crate) mod cgroup;
mod container;
mod docker;
mod docker_socket;
mod guest;
mod launch;
mod life;
mod mounts;
mod process;
mod rootfs;
mod sizing;
mod spec;
#[cfg(test)]
mod test_support;
mod vm;

use crate::error::{Error, Result};
use crate::events::{Event, Publisher};
use crate::io::Stdio;
use crate::state::Record;
pub(crate) use container::Container;
use containerd_shim_protos::events::task::{TaskCreate, TaskIO};
pub(crate) use docker::Docker;
use guest::Guest;
pub(crate) use launch::Plan;
pub(crate) use life::{Exit, Status};
use mounts::ContainerMounts;
pub(crate) use rootfs::RootMount;
pub(crate) use sizing::{Host, Size};
pub(crate) use spec::Spec;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::watch;

/// How long a container that is ended with its sandbox may take.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// What `Create` brings.
#[derive(Debug, Clone)]
pub(crate) struct NewContainer {
    pub id: String,
    pub bundle: PathBuf,
    pub rootfs: Vec<RootMount>,
    pub stdio: Stdio,
    pub checkpoint: String,
}

/// The sandbox of this shim.
pub(crate) struct Sandbox {
    shared: PathBuf,
    boot: watch::Receiver<Boot>,
    slot: Mutex<Slot>,
    events: Publisher,
    /// Whether there is a container, or one is being made.
    busy: watch::Sender<bool>,
    over: watch::Sender<bool>,
    /// The sandbox is being ended, so that the VM's end is no surprise.
    ending: AtomicBool,
}

#[derive(Clone)]
enum Boot {
    Pending,
    Ready(Arc<Guest>),
    Failed(Error),
}

#[derive(Clone)]
enum Slot {
    Empty,
    Creating(String),
    Present(Arc<Container>),
}

impl Sandbox {
    /// Starts the guest, or keeps why it cannot be started for `Create` to answer.
    #[must_use]
    pub(crate) fn start(
        plan: Result<Plan>,
        shared: PathBuf,
        mut record: Record,
        events: Publisher,
    ) -> Arc<Self> {
        let (booted, boot) = watch::channel(Boot::Pending);
        let sandbox = Arc::new(Self::new(shared, boot, events));
        let starting = sandbox.clone();
        tokio::spawn(async move {
            let result = match plan {
                Ok(plan) => {
                    let over = starting.over.subscribe();
                    launch::launch(&plan, &mut record, over).await.map_err(Error::from)
                }
                Err(error) => Err(error),
            };
            match result {
                Ok((guest, docker_listener)) => {
                    let guest = Arc::new(guest);
                    let mut ended = guest.ended();
                    if let Some(listener) = docker_listener {
                        tokio::spawn(starting.clone().export_docker(listener, guest.clone()));
                    }
                    booted.send_replace(Boot::Ready(guest));
                    if let Ok(word) = ended.wait_for(Option::is_some).await {
                        starting.guest_ended(word.as_ref());
                    }
                }
                Err(error) => {
                    log::error!("{error}");
                    booted.send_replace(Boot::Failed(error));
                }
            }
        });
        sandbox
    }

    fn new(shared: PathBuf, boot: watch::Receiver<Boot>, events: Publisher) -> Self {
        Self {
            shared,
            boot,
            slot: Mutex::new(Slot::Empty),
            events,
            busy: watch::channel(false).0,
            over: watch::channel(false).0,
            ending: AtomicBool::new(false),
        }
    }

    /// Serves the host's end of the Docker daemon's socket while there is a daemon to be served: not while the guest writes back
    /// what is to outlive it.
    async fn export_docker(self: Arc<Self>, listener: UnixListener, guest: Arc<Guest>) {
        let (mut over, mut ended) = (self.over(), guest.ended());
        let connect = move || {
            let guest = guest.clone();
            async move { guest.docker().await }
        };
        tokio::select! {
            () = docker_socket::serve(listener, connect) => {}
            _ = over.wait_for(|over| *over) => {}
            _ = ended.wait_for(Option::is_some) => {}
        }
    }

    fn guest_ended(&self, word: Option<&vm::Ended>) {
        let Some(word) = word else { return };
        if word.requested || self.ending.load(Ordering::Relaxed) {
            log::info!("{}", word.reason);
        } else {
            log::error!("the VM ended unexpectedly: {}", word.line());
            log::error!("the guest's last words: {}", word.console_line());
        }
    }

    /// Makes the container.
    ///
    /// # Errors
    /// [`Error`]; everything is undone then, the VM included.
    pub(crate) async fn create(&self, new: NewContainer) -> Result<u32> {
        self.reserve(&new.id)?;
        match self.build(new).await {
            Ok(container) => {
                let pid = container.guest.pid();
                *self.slot() = Slot::Present(container.clone());
                container.watch();
                Ok(pid)
            }
            Err(error) => {
                // A sandbox without its container is nothing. This also stops a launch that is still under way.
                self.over.send_replace(true);
                if let Boot::Ready(guest) = &*self.boot.borrow() {
                    let guest = guest.clone();
                    tokio::spawn(async move {
                        if guest.keeps_data() {
                            guest.write_back().await;
                        }
                        guest.stop().await;
                    });
                }
                self.vacate();
                Err(error)
            }
        }
    }

    fn reserve(&self, id: &str) -> Result<()> {
        if *self.over.borrow() {
            return Err(Error::FailedPrecondition(format!("container {id}: its sandbox is ending")));
        }
        let mut slot = self.slot();
        let taken = match &*slot {
            Slot::Empty => {
                *slot = Slot::Creating(id.into());
                self.busy.send_replace(true);
                return Ok(());
            }
            Slot::Creating(other) => other,
            Slot::Present(container) => &container.id,
        };
        Err(if taken == id {
            Error::AlreadyExists(format!("container {id} exists"))
        } else {
            Error::Unimplemented(format!(
                "container {id} is to join the sandbox of {taken}: this version of lazaret has one container in a sandbox"
            ))
        })
    }

    async fn build(&self, new: NewContainer) -> Result<Arc<Container>> {
        if !new.checkpoint.is_empty() {
            return Err(Error::Unimplemented("a container cannot be restored from a checkpoint".into()));
        }
        let spec = Spec::load(&new.bundle)?;
        let (shared, id, bundle, rootfs) =
            (self.shared.clone(), new.id.clone(), new.bundle.clone(), new.rootfs.clone());
        let mut mounting = tokio::task::spawn_blocking(move || {
            let mounts = ContainerMounts::create(&shared, &id, &bundle, &spec, &rootfs)?;
            let guest_spec = spec.for_guest(mounts.paths())?;
            Ok::<_, Error>((mounts, guest_spec))
        });
        // Beside the guest's boot; whichever fails first is the answer.
        let mounted =
            async { (&mut mounting).await.map_err(|error| Error::Internal(format!("mounting: {error}")))? };
        let both = tokio::try_join!(mounted, self.guest());
        if both.is_err() && !mounting.is_finished() {
            // What is mounted by then is unmounted with the result.
            let _ = mounting.await;
        }
        let ((mounts, (spec, notes)), guest) = both?;
        notes.iter().for_each(|note| log::warn!("{note}"));
        let created = self.created_event(&new, guest.pid());
        let NewContainer { id, bundle, stdio, .. } = new;
        let events = self.events.clone();
        let container = Container::create(id, bundle, guest, mounts, spec, stdio, events).await?;
        self.events.publish(&created);
        Ok(container)
    }

    fn created_event(&self, new: &NewContainer, pid: u32) -> Event {
        let mount = |mount: &RootMount| containerd_shim_protos::types::mount::Mount {
            type_: mount.fs_type.clone(),
            source: mount.source.clone(),
            target: mount.target.clone(),
            options: mount.options.clone(),
            ..Default::default()
        };
        let io = TaskIO {
            stdin: new.stdio.stdin.clone(),
            stdout: new.stdio.stdout.clone(),
            stderr: new.stdio.stderr.clone(),
            terminal: new.stdio.terminal,
            ..Default::default()
        };
        Event::Create(TaskCreate {
            container_id: new.id.clone(),
            bundle: new.bundle.display().to_string(),
            rootfs: new.rootfs.iter().map(mount).collect(),
            io: Some(io).into(),
            pid,
            ..Default::default()
        })
    }

    /// The guest, once it answers.
    async fn guest(&self) -> Result<Arc<Guest>> {
        let mut boot = self.boot.clone();
        let settled = boot.wait_for(|boot| !matches!(boot, Boot::Pending)).await;
        match settled.as_deref() {
            Ok(Boot::Ready(guest)) if guest.is_alive() => Ok(guest.clone()),
            Ok(Boot::Failed(error)) => Err(error.clone()),
            _ => Err(Error::Internal("the sandbox's VM has ended".into())),
        }
    }

    /// The container of that id.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>> {
        match &*self.slot() {
            Slot::Present(container) if container.id == id => Ok(container.clone()),
            _ => Err(Error::NotFound(format!("container {id} not found"))),
        }
    }

    /// Takes the container away, and ends the VM where something outlives it.
    ///
    /// # Errors
    /// As [`Container::delete`].
    pub(crate) async fn delete(&self, id: &str) -> Result<Exit> {
        let container = self.container(id)?;
        let exit = container.delete().await?;
        if container.guest.keeps_data() {
            // containerd waits for this answer, but not for the shim's end; and whoever has the answer may want to give the
            // volume to the next sandbox.
            self.over.send_replace(true);
            self.ending.store(true, Ordering::Relaxed);
            container.guest.write_back().await;
            container.guest.stop().await;
        }
        self.vacate();
        Ok(exit)
    }

    /// Takes away a container whose creator has left meanwhile, and its VM.
    pub(crate) async fn discard(&self, id: &str) {
        log::warn!("the caller of Create left before its answer: container {id} is taken away");
        if let Ok(container) = self.container(id) {
            container.end(END_TIMEOUT).await;
            if let Err(error) = self.delete(id).await {
                log::error!("container {id}: {error}");
            }
            self.over.send_replace(true);
            container.guest.stop().await;
        }
    }

    /// Whether there is a container, or one is being made.
    #[must_use]
    pub(crate) fn busy(&self) -> watch::Receiver<bool> {
        self.busy.subscribe()
    }

    /// Whether the sandbox can have no container any more.
    #[must_use]
    pub(crate) fn over(&self) -> watch::Receiver<bool> {
        self.over.subscribe()
    }

    /// Ends whatever runs, tells it, and ends the VM. Nothing of the sandbox is left but its state directory.
    pub(crate) async fn end(&self) {
        self.over.send_replace(true);
        self.ending.store(true, Ordering::Relaxed);
        let present = match &*self.slot() {
            Slot::Present(container) => Some(container.clone()),
            _ => None,
        };
        if let Some(container) = &present {
            container.end(END_TIMEOUT).await;
        }
        let mut boot = self.boot.clone();
        // A launch that is under way is cut short by `over`.
        let guest = match boot.wait_for(|boot| !matches!(boot, Boot::Pending)).await.as_deref() {
            Ok(Boot::Ready(guest)) => Some(guest.clone()),
            _ => None,
        };
        if let Some(guest) = guest {
            if present.is_some() {
                guest.write_back().await;
            }
            guest.stop().await;
        }
        if let Some(container) = present {
            container.all_told(END_TIMEOUT).await;
            // With the container go its mounts, before the tree they are in.
            self.vacate();
        }
        // A Create that was under way fails with the VM.
        let mut busy = self.busy();
        let _ = tokio::time::timeout(END_TIMEOUT, busy.wait_for(|busy| !*busy)).await;
    }

    fn vacate(&self) {
        *self.slot() = Slot::Empty;
        self.busy.send_replace(false);
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "sandbox_test.rs"]
mod tests;
