//! A sandbox: one microVM, and the containers in it.
//!
//! ```text
//!   start ──► launch ─────────────► Ready(guest) ──► Create ──► containers ──► its end (lifecycle.rs): the guest is shut down
//!                     └───────────► Failed(why)  ──► Create answers why
//! ```
//!
//! The guest is started when the shim is, before containerd asks for a container, and the container's mounts are made
//! beside its boot. One task, [`Sandbox::run`], owns the guest's end; everybody else changes the [`Lifecycle`] and watches it.

mod anchor;
pub(crate) mod cgroup;
mod container;
mod create;
mod docker;
mod guest;
mod lifecycle;
mod limits;
pub(crate) mod membership;
mod network;
pub(crate) mod pod_resources;
mod sizing;
#[cfg(test)]
pub(crate) mod test_support;
mod vm;

use crate::error::{Error, Result};
use crate::events::Publisher;
use crate::state::Record;
pub(crate) use container::Container;
pub(crate) use container::life::{Exit, Status};
pub(crate) use container::rootfs::RootMount;
pub(crate) use container::spec::Spec;
pub(crate) use create::NewContainer;
pub(crate) use docker::Docker;
use guest::Guest;
use lazaret_agent_api::check_identifier;
use lifecycle::Lifecycle;
pub(crate) use limits::Limits;
pub(crate) use membership::Membership;
pub(crate) use network::mode::NetworkMode;
pub(crate) use network::resolv_conf;
pub(crate) use sizing::{Host, Size};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::watch;
pub(crate) use vm::launch::Plan;

/// How long what is left of a sandbox may take after its VM has ended: a Create under way, and the exits of its containers.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// The sandbox of this shim.
pub(crate) struct Sandbox {
    shared: PathBuf,
    /// What containers have as `/etc/resolv.conf`, where that is the sandbox's matter.
    resolv_conf: Option<PathBuf>,
    life: watch::Sender<Lifecycle<Arc<Guest>, Arc<Container>>>,
    events: Publisher,
}

/// Checks the id of a new container or exec, before anything is named after it.
fn check_id(what: &str, id: &str) -> Result<()> {
    check_identifier(id).map_err(|error| Error::InvalidArgument(format!("{what} id: {error}")))
}

impl Sandbox {
    /// Starts the guest. When the guest cannot be started, `Create` answers with the reason.
    #[must_use]
    pub(crate) fn start(
        plan: Result<Plan>,
        membership: Membership,
        shared: PathBuf,
        mut record: Record,
        events: Publisher,
    ) -> Arc<Self> {
        let resolv_conf = plan.as_ref().ok().and_then(|plan| plan.resolv_conf.clone());
        let sandbox = Arc::new(Self { resolv_conf, ..Self::new(membership, shared, events) });
        let starting = sandbox.clone();
        tokio::spawn(async move {
            let result = match plan {
                Ok(plan) => {
                    vm::launch::launch(&plan, &mut record, starting.until_ending()).await.map_err(Error::from)
                }
                Err(error) => Err(error),
            };
            match result {
                Ok((guest, docker_listener)) => starting.run(Arc::new(guest), docker_listener).await,
                Err(error) => {
                    log::error!("{error}");
                    starting.life.send_modify(|life| life.gone(error));
                }
            }
        });
        sandbox
    }

    fn new(membership: Membership, shared: PathBuf, events: Publisher) -> Self {
        let life = watch::channel(Lifecycle::new(membership)).0;
        Self { shared, resolv_conf: None, life, events }
    }

    /// From the guest's first answer to its end, and nothing of it is left then. The guest is shut down when the sandbox is
    /// to end; it may end before that by itself.
    async fn run(self: Arc<Self>, guest: Arc<Guest>, docker_listener: Option<UnixListener>) {
        self.life.send_modify(|life| life.booted(guest.clone()));
        if let Some(listener) = docker_listener {
            tokio::spawn(self.clone().export_docker(listener, guest.clone()));
        }
        let asked = guest.clone();
        tokio::spawn(async move { asked.serve_disk_request().await });
        let mut ended = guest.ended();
        let by_itself = tokio::select! {
            // The end of the VM first: it makes calls fail, and a Create that fails ends the sandbox.
            biased;
            _ = ended.wait_for(Option::is_some) => true,
            () = self.until_ending() => false,
        };
        // A guest without a container has nothing to write back, unless its data outlives it.
        let has_data = guest.keeps_data() || !self.life.borrow().is_empty();
        if !by_itself && has_data {
            guest.shut_down().await;
        }
        guest.stop().await;
        let exit_report = ended.borrow().clone();
        let line = match exit_report {
            Some(report) if by_itself && !report.requested => {
                log::error!("the VM ended unexpectedly: {}", report.line());
                log::error!("the guest's last console lines: {}", report.console_line());
                report.line()
            }
            Some(report) => {
                log::info!("the VM has ended, as it was to: {}", report.reason);
                report.reason
            }
            None => {
                log::error!("lazaret-vmm, process {}, does not end when it is killed", guest.pid());
                "lazaret-vmm did not end when it was killed".into()
            }
        };
        self.life
            .send_modify(|life| life.gone(Error::Internal(format!("the sandbox's VM has ended: {line}"))));
    }

    /// Serves the Docker daemon's socket on the host while the guest is ready. So no client reaches the daemon while the guest
    /// writes its volume back.
    async fn export_docker(self: Arc<Self>, listener: UnixListener, guest: Arc<Guest>) {
        let (mut life, mut ended) = (self.life.subscribe(), guest.ended());
        let connect = move || {
            let guest = guest.clone();
            async move { guest.docker().await }
        };
        tokio::select! {
            () = docker::socket::serve(listener, connect) => {}
            _ = life.wait_for(|life| !life.is_ready()) => {}
            _ = ended.wait_for(Option::is_some) => {}
        }
    }

    /// The guest, once it answers.
    async fn guest(&self) -> Result<Arc<Guest>> {
        let mut life = self.life.subscribe();
        let settled = life.wait_for(|life| !matches!(life.guest(), Ok(None))).await;
        let guest = settled.ok().and_then(|life| life.guest().transpose());
        guest.unwrap_or_else(|| Err(Error::Internal("the sandbox is gone".into())))
    }

    /// The container of that id.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>> {
        self.life.borrow().container(id)
    }

    /// Takes note that a container's own process has ended. Where the sandbox ends with it, this waits until nothing of the guest
    /// is left: the exit is published after that.
    async fn container_ended(self: Arc<Self>, id: String) {
        self.life.send_modify(|life| life.container_ended(&id));
        if !self.life.borrow().is_ready() {
            self.until_over().await;
        }
    }

    /// Deletes the container.
    ///
    /// # Errors
    /// As [`Container::delete`].
    pub(crate) async fn delete(self: &Arc<Self>, id: &str) -> Result<Exit> {
        let container = self.container(id)?;
        let exit = container.delete(self.clone().container_ended(id.into())).await?;
        self.remove(id);
        Ok(exit)
    }

    /// Pauses the container, and the guest with it.
    ///
    /// # Errors
    /// [`Error::Unimplemented`] beside other containers, which would stand still, too; as [`Container::pause`].
    pub(crate) async fn pause(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        if self.life.borrow().has_others(id) {
            return Err(Error::Unimplemented(format!(
                "container {id} is not alone in its sandbox: this version of lazaret pauses a whole sandbox only"
            )));
        }
        container.pause().await
    }

    /// Deletes a container whose creator has left before Create was answered.
    pub(crate) async fn discard(self: &Arc<Self>, id: &str) {
        log::warn!("the caller of Create left before its answer: container {id} is deleted");
        let Ok(container) = self.container(id) else { return };
        // Another client may have started it, and it may have ended by itself.
        if let Err(error) = container.kill("", libc::SIGKILL.unsigned_abs(), true).await {
            log::debug!("killing container {id}: {error}");
        }
        container.until_exit_published().await;
        if let Err(error) = self.delete(id).await {
            log::error!("container {id}: {error}");
        }
    }

    /// Waits until the sandbox is to end.
    async fn until_ending(&self) {
        // The sender is ours: it cannot be gone.
        let _ = self.life.subscribe().wait_for(Lifecycle::is_ending).await;
    }

    /// Waits until there is no VM. The shutdown of a guest, and the end of its VM, have their own deadlines.
    async fn until_over(&self) {
        let _ = self.life.subscribe().wait_for(Lifecycle::is_over).await;
    }

    /// Waits until there is a container, or one is being made; or, with `empty`, until there is none.
    pub(crate) async fn until_empty(&self, empty: bool) {
        let _ = self.life.subscribe().wait_for(|life| life.is_empty() == empty).await;
    }

    /// Whether there is no container, and none is being made.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.life.borrow().is_empty()
    }

    /// Whether the sandbox takes no container any more.
    #[must_use]
    pub(crate) fn is_ending(&self) -> bool {
        self.life.borrow().is_ending()
    }

    /// Ends the containers and the VM, and publishes the exits. Nothing of the sandbox is left but its state directory.
    pub(crate) async fn end(&self) {
        self.life.send_modify(Lifecycle::end);
        self.until_over().await;
        // A Create that was under way fails with the VM.
        let mut life = self.life.subscribe();
        let _ = tokio::time::timeout(END_TIMEOUT, life.wait_for(|life| !life.is_creating())).await;
        let ids = self.life.borrow().ids();
        for id in ids {
            let Ok(container) = self.container(&id) else { continue };
            if tokio::time::timeout(END_TIMEOUT, container.until_exit_published()).await.is_err() {
                log::error!("the exit of container {id} was not published in time");
            }
            // The container's mounts are unmounted with the container, before the tree that they are in.
            self.remove(&id);
        }
    }

    fn remove(&self, id: &str) {
        let mut removed = None;
        self.life.send_modify(|life| removed = life.remove(id));
        // What it still has is undone after the change.
        drop(removed);
    }
}

#[cfg(test)]
mod end_test;
#[cfg(test)]
mod pod_test;
#[cfg(test)]
#[path = "sandbox_test.rs"]
mod tests;
