//! All containers of the guest, by id.

use super::{Container, Process, create};
use crate::crun::Crun;
use crate::paths;
use crate::rpc::RpcError;
use crate::spec::{Guest, Sharing};
use crate::sync::lock;
use lazaret_agent_api::agent::{CreateContainerRequest, CreateExecRequest};
use lazaret_agent_api::check_identifier;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// How long the end of the guest waits until the containers have ended that it has killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) struct Containers {
    crun: Arc<Crun>,
    guest: Guest,
    bundles: PathBuf,
    /// `None` while the container is made or removed: its id is taken, but there is no container to use.
    table: Mutex<HashMap<String, Option<Arc<Container>>>>,
    /// The container whose files dockerd has, or had last. Taken while `table` is held.
    docker_view: Mutex<Option<String>>,
}

impl Containers {
    pub(crate) fn new(crun: Crun) -> Self {
        Self::at(paths::CONTAINERS.into(), crun)
    }

    /// Keeps the containers' bundles in `bundles`.
    pub(crate) fn at(bundles: PathBuf, crun: Crun) -> Self {
        Self {
            crun: Arc::new(crun),
            guest: Guest::look(),
            bundles,
            table: Mutex::default(),
            docker_view: Mutex::default(),
        }
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

    /// The pid of the first process of the container whose files dockerd is to have from now on: of those that have not ended the
    /// oldest, and one that only holds its pod where there is no other. Its file system is complete from its creation on.
    pub(crate) fn take_docker_view(&self) -> Option<libc::pid_t> {
        let table = self.table();
        let live = table.values().flatten().filter(|container| container.is_live());
        let view = live.min_by_key(|container| (container.holds_pod, container.number))?;
        *lock(&self.docker_view) = Some(view.id.clone());
        view.init.pid()
    }

    /// The namespaces of other containers that a new one is to have: by type, where they are.
    fn namespaces(
        &self,
        id: &str,
        joins: &HashMap<String, String>,
    ) -> Result<HashMap<String, PathBuf>, RpcError> {
        let find = |(kind, of): (&String, &String)| {
            if !["pid", "ipc", "uts", "user"].contains(&kind.as_str()) {
                return Err(RpcError::InvalidArgument(format!("container {id}: no namespace is a {kind:?}")));
            }
            let live = self.get(of).ok().filter(|container| container.is_live());
            let pid = live.and_then(|container| container.init.pid()).ok_or_else(|| {
                RpcError::FailedPrecondition(format!(
                    "container {id}: it is to have the {kind} namespace of container {of}, which does not run"
                ))
            })?;
            Ok((kind.clone(), PathBuf::from(format!("/proc/{pid}/ns/{kind}"))))
        };
        joins.iter().map(find).collect()
    }

    /// Makes a container. Answers with its process's pid.
    ///
    /// # Errors
    /// ALREADY_EXISTS, INVALID_ARGUMENT, FAILED_PRECONDITION, INTERNAL.
    pub(crate) async fn create(&self, request: CreateContainerRequest) -> Result<libc::pid_t, RpcError> {
        let id = request.container_id.clone();
        check_id("container", &id)?;
        let reservation = Reservation::reserve(self, &id)?;
        let begun = Instant::now();
        let namespaces = self.namespaces(&id, &request.joins)?;
        let sharing = Sharing { namespaces, holds_pod: request.holds_pod };
        let crun = self.crun.clone();
        let container = create::create(request, &self.bundles, crun, &self.guest, sharing).await?;
        log::info!("container {id}: made in {} ms", begun.elapsed().as_millis());
        let pid = container.init.pid().unwrap_or_default();
        reservation.put(Some(Arc::new(container)));
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

    /// # Errors
    /// As [`Container::update`].
    pub(crate) async fn update(&self, id: &str, resources: &[u8]) -> Result<(), RpcError> {
        self.get(id)?.update(resources, &self.guest).await
    }

    /// Forgets an exec, or removes a container when `exec_id` is empty. `end_docker` is awaited before a container is removed whose
    /// files dockerd has.
    ///
    /// # Errors
    /// NOT_FOUND, FAILED_PRECONDITION, INTERNAL.
    pub(crate) async fn delete(
        &self,
        id: &str,
        exec_id: &str,
        end_docker: impl Future<Output = ()>,
    ) -> Result<(), RpcError> {
        let container = self.get(id)?;
        if !exec_id.is_empty() {
            return container.delete_exec(exec_id);
        }
        container.init.may_delete()?;
        let reservation = Reservation::take(self, id)?;
        // dockerd does not take its view of a container that is out of the table.
        let in_view = lock(&self.docker_view).take_if(|view| view == id).is_some();
        if in_view {
            end_docker.await;
        }
        container.delete().await?;
        reservation.put(None);
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
        if timeout(KILL_TIMEOUT, ended).await.is_err() {
            log::warn!("containers were killed but did not end within {} s", KILL_TIMEOUT.as_secs());
        }
    }

    /// Kills every container. Answers with all of them.
    pub(crate) fn kill(&self) -> Vec<Arc<Container>> {
        let all: Vec<_> = self.table().values().flatten().cloned().collect();
        for container in &all {
            // An error says that the process has ended already.
            let _ = container.init.signal(libc::SIGKILL);
        }
        all
    }

    fn table(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<Container>>>> {
        lock(&self.table)
    }
}

/// The id becomes the name of directories and of a cgroup.
fn check_id(what: &str, id: &str) -> Result<(), RpcError> {
    check_identifier(id).map_err(|error| RpcError::InvalidArgument(format!("{what} id: {error}")))
}

/// An id whose container is being made or removed. When this is dropped the table gets what was [`put`](Self::put): the
/// container, or nothing, and then the id is free.
struct Reservation<'a> {
    containers: &'a Containers,
    id: &'a str,
    container: Option<Arc<Container>>,
}

impl<'a> Reservation<'a> {
    /// Takes an id for a new container. Without a `put` the id is free again.
    fn reserve(containers: &'a Containers, id: &'a str) -> Result<Self, RpcError> {
        let mut table = containers.table();
        if table.contains_key(id) {
            return Err(RpcError::AlreadyExists(format!("container {id} exists already")));
        }
        table.insert(id.to_owned(), None);
        drop(table);
        Ok(Self { containers, id, container: None })
    }

    /// Takes a container out of the table to remove it. Without a `put` the container is found again.
    fn take(containers: &'a Containers, id: &'a str) -> Result<Self, RpcError> {
        let container = containers.table().get_mut(id).and_then(Option::take);
        match container {
            Some(container) => Ok(Self { containers, id, container: Some(container) }),
            None => Err(no_container(id)),
        }
    }

    fn put(mut self, container: Option<Arc<Container>>) {
        self.container = container;
    }
}

impl Drop for Reservation<'_> {
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
