//! All containers of the guest, by id.

use super::state::State;
use super::{Container, Process, create};
use crate::crun::Crun;
use crate::paths;
use crate::rpc::RpcError;
use crate::spec::Guest;
use lazaret_agent_api::agent::{CreateContainerRequest, CreateExecRequest};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// containerd's limit for ids.
const MAX_ID: usize = 76;
/// How long the guest's end waits for that of its containers.
const KILLED: Duration = Duration::from_secs(5);

pub(crate) struct Containers {
    crun: Arc<Crun>,
    guest: Guest,
    bundles: PathBuf,
    /// `None` while it is made or removed: its id is in use, and there is nothing to be had.
    table: Mutex<HashMap<String, Option<Arc<Container>>>>,
}

impl Containers {
    pub(crate) fn new(crun: Crun) -> Self {
        Self::at(paths::CONTAINERS.into(), crun)
    }

    /// With bundles in another place.
    pub(crate) fn at(bundles: PathBuf, crun: Crun) -> Self {
        Self { crun: Arc::new(crun), guest: Guest::look(), bundles, table: Mutex::default() }
    }

    /// # Errors
    /// NOT_FOUND.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<Container>, RpcError> {
        let found = self.table().get(id).cloned().flatten();
        found.ok_or_else(|| no_container(id))
    }

    /// # Errors
    /// NOT_FOUND.
    pub(crate) fn process(&self, id: &str, exec_id: &str) -> Result<Arc<Process>, RpcError> {
        self.get(id)?.process(exec_id)
    }

    /// The pid of the first process of a container that has not ended; its file system is complete from its creation on.
    pub(crate) fn living(&self) -> Option<libc::pid_t> {
        let table = self.table();
        let mut living = table.values().flatten().map(|container| &container.init);
        living.find(|init| !matches!(init.state(), State::Ended(_)))?.pid()
    }

    /// Makes a container. Answers with its process's pid.
    ///
    /// # Errors
    /// ALREADY_EXISTS, INVALID_ARGUMENT, INTERNAL.
    pub(crate) async fn create(&self, request: CreateContainerRequest) -> Result<libc::pid_t, RpcError> {
        let id = request.container_id.clone();
        check_id("container", &id)?;
        let place = Place::reserve(self, &id)?;
        let begun = Instant::now();
        let container = create::create(request, &self.bundles, self.crun.clone(), &self.guest).await?;
        log::info!("container {id}: made in {} ms", begun.elapsed().as_millis());
        let pid = container.init.pid().unwrap_or_default();
        place.settle(Some(Arc::new(container)));
        Ok(pid)
    }

    /// # Errors
    /// As [`Container::create_exec`].
    pub(crate) fn create_exec(&self, request: CreateExecRequest) -> Result<(), RpcError> {
        check_id("exec", &request.exec_id)?;
        self.get(&request.container_id)?.create_exec(request, &self.guest)
    }

    /// # Errors
    /// As [`Container::start`] and [`Container::start_exec`].
    pub(crate) async fn start(&self, id: &str, exec_id: &str) -> Result<libc::pid_t, RpcError> {
        let container = self.get(id)?;
        if !exec_id.is_empty() {
            return container.start_exec(exec_id).await;
        }
        let begun = Instant::now();
        let pid = container.start().await?;
        log::info!("container {id}: started in {} ms", begun.elapsed().as_millis());
        Ok(pid)
    }

    /// Forgets a process; a container's own with the container, `before` whose removal something is to be done.
    ///
    /// # Errors
    /// NOT_FOUND, FAILED_PRECONDITION, INTERNAL.
    pub(crate) async fn delete(
        &self,
        id: &str,
        exec_id: &str,
        before: impl Future<Output = ()>,
    ) -> Result<(), RpcError> {
        let container = self.get(id)?;
        if !exec_id.is_empty() {
            return container.delete_exec(exec_id);
        }
        container.init.may_delete()?;
        let place = Place::take(self, id)?;
        before.await;
        container.delete().await?;
        place.settle(None);
        Ok(())
    }

    /// Kills every container, at the end of the guest, and waits for their ends, which come unless the host is stuck.
    pub(crate) async fn end(&self) {
        let all = self.kill();
        let ended = async {
            for container in &all {
                container.init.wait().await;
            }
        };
        if timeout(KILLED, ended).await.is_err() {
            log::warn!("containers were killed but did not end within {} s", KILLED.as_secs());
        }
    }

    /// Kills every container. Answers with all of them.
    pub(crate) fn kill(&self) -> Vec<Arc<Container>> {
        let all: Vec<_> = self.table().values().flatten().cloned().collect();
        for container in &all {
            // Ended already is as good.
            let _ = container.init.signal(libc::SIGKILL);
        }
        all
    }

    fn table(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<Container>>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The id becomes the name of directories and of a cgroup.
fn check_id(what: &str, id: &str) -> Result<(), RpcError> {
    let letters = id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    let begins = id.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    if letters && begins && id.len() <= MAX_ID {
        return Ok(());
    }
    let shown: String = id.chars().take(MAX_ID).collect();
    let rule = format!("letters, digits, '.', '-' and '_', at most {MAX_ID}, the first a letter or digit");
    Err(RpcError::InvalidArgument(format!("{shown:?} is no {what} id: {rule}")))
}

/// An id while its container is made or removed; settles what the table says in the end, whatever happens between.
struct Place<'a> {
    containers: &'a Containers,
    id: &'a str,
    container: Option<Arc<Container>>,
}

impl<'a> Place<'a> {
    /// For a container to be made: until there is one, the id is free again in the end.
    fn reserve(containers: &'a Containers, id: &'a str) -> Result<Self, RpcError> {
        let mut table = containers.table();
        if table.contains_key(id) {
            return Err(RpcError::AlreadyExists(format!("container {id} exists already")));
        }
        table.insert(id.to_owned(), None);
        drop(table);
        Ok(Self { containers, id, container: None })
    }

    /// For a container to be removed: until it is, it is found again in the end.
    fn take(containers: &'a Containers, id: &'a str) -> Result<Self, RpcError> {
        let container = containers.table().get_mut(id).and_then(Option::take);
        match container {
            Some(container) => Ok(Self { containers, id, container: Some(container) }),
            None => Err(no_container(id)),
        }
    }

    fn settle(mut self, container: Option<Arc<Container>>) {
        self.container = container;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut table = self.containers.table();
        match self.container.take() {
            Some(container) => drop(table.insert(self.id.to_owned(), Some(container))),
            None => drop(table.remove(self.id)),
        }
    }
}

fn no_container(id: &str) -> RpcError {
    RpcError::NotFound(format!("there is no container {id:?}"))
}
