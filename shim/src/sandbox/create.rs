//! Create: a container's mounts, made beside the guest's boot, and then the container in the guest.

use super::container::GuestSpec;
use super::container::hooks::Hooks;
use super::container::mounts::ContainerMounts;
use super::container::steps::{Abandoned, Steps};
use super::membership::Role;
use super::{Container, Guest, RootMount, Sandbox, Spec, check_id, resolv_conf};
use crate::error::{Error, Result};
use crate::events::Event;
use crate::io::Stdio;
use containerd_shim_protos::events::task::{TaskCreate, TaskIO};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How long a container's mounts may take to be made.
const MOUNT_TIMEOUT: Duration = if cfg!(test) { Duration::from_millis(500) } else { Duration::from_secs(60) };

/// What the host has made of a bundle: the container's mounts, its spec for the guest, and its hooks.
struct Prepared {
    mounts: ContainerMounts,
    spec: GuestSpec,
    hooks: Hooks,
}

/// What `Create` brings.
#[derive(Debug, Clone)]
pub(crate) struct NewContainer {
    pub id: String,
    pub bundle: PathBuf,
    pub rootfs: Vec<RootMount>,
    pub stdio: Stdio,
    pub checkpoint: String,
}

impl Sandbox {
    /// Makes the container.
    ///
    /// # Errors
    /// [`Error`]; everything is undone then, and a sandbox that lives by this container ends.
    pub(crate) async fn create(self: &Arc<Self>, new: NewContainer) -> Result<u32> {
        check_id("container", &new.id)?;
        let id = new.id.clone();
        let mut reserved = Ok(());
        self.life.send_modify(|life| reserved = life.reserve(&id));
        reserved?;
        match self.build(new).await {
            Ok(container) => {
                let pid = container.pid();
                self.life.send_modify(|life| life.created(&id, container.clone()));
                container.watch(self.clone().container_ended(id));
                Ok(pid)
            }
            Err(error) => {
                self.life.send_modify(|life| life.create_failed(&id));
                Err(error)
            }
        }
    }

    async fn build(&self, new: NewContainer) -> Result<Arc<Container>> {
        if !new.checkpoint.is_empty() {
            return Err(Error::Unimplemented("a container cannot be restored from a checkpoint".into()));
        }
        let (Prepared { mounts, spec, hooks }, guest) = self.mount_beside_boot(&new).await?;
        let role = self.life.borrow().membership().role(&new.id);
        let (stdio, events) = (new.stdio.clone(), self.events.clone());
        let container = Container::create(role, hooks, guest, mounts, spec, stdio, events).await?;
        self.events.publish(&self.created_event(&new, container.pid()));
        Ok(container)
    }

    /// Makes the container's mounts beside the guest's boot; whichever fails first is the answer, and nothing is mounted then.
    /// A mount that blocks is given up at its deadline, and undone when it comes back.
    async fn mount_beside_boot(&self, new: &NewContainer) -> Result<(Prepared, Arc<Guest>)> {
        let NewContainer { id, bundle, rootfs, .. } = new.clone();
        let (shared, resolv_conf) = (self.shared.clone(), self.resolv_conf.clone());
        let (membership, pids) = (self.life.borrow().membership().clone(), self.pids());
        let (steps, deadline) = (Steps::default(), Instant::now() + MOUNT_TIMEOUT);
        let work = steps.clone();
        let mut mounting = tokio::task::spawn_blocking(move || -> Result<Prepared> {
            let abandoned = |error: Abandoned| Error::DeadlineExceeded(error.to_string());
            work.enter(format!("reading the spec in {}", bundle.display())).map_err(abandoned)?;
            let mut spec = Spec::load(&bundle)?;
            membership.check(&spec, &id)?;
            let joins = spec.joins(&pids)?;
            if let Some(path) = &resolv_conf {
                spec = spec.with_file(resolv_conf::PATH, path);
            }
            let shm = membership.shm.as_deref();
            let mounts = ContainerMounts::create(&shared, &id, &bundle, &spec, &rootfs, shm, &work)?;
            let hooks = Hooks::of(&spec, &id, &bundle);
            let (config, notes) = spec.for_guest(mounts.paths())?;
            notes.iter().for_each(|note| log::warn!("{note}"));
            let holds_pod = membership.role(&id) == Role::Holder;
            let spec = GuestSpec { config, joins, holds_pod };
            Ok(Prepared { mounts, spec, hooks })
        });
        let mounted = async {
            match timeout_at(deadline, &mut mounting).await {
                Ok(result) => result.map_err(|error| Error::Internal(format!("mounting: {error}")))?,
                Err(_) => Err(Error::DeadlineExceeded(format!(
                    "container {}: {}: not done within {} s; does its file system still answer?",
                    new.id,
                    steps.abandon(),
                    MOUNT_TIMEOUT.as_secs()
                ))),
            }
        };
        let both = tokio::try_join!(mounted, self.guest());
        if both.is_err() && !mounting.is_finished() {
            steps.abandon();
            // What is mounted by then is unmounted with the result.
            let _ = timeout_at(deadline, mounting).await;
        }
        both
    }

    /// The containers that have not ended, by the pids that their clients know.
    fn pids(&self) -> HashMap<u32, String> {
        let present = self.life.borrow().present();
        present.iter().map(|container| (container.pid(), container.id.clone())).collect()
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
}

#[cfg(test)]
#[path = "create_test.rs"]
mod tests;
