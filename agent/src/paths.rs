//! Where the agent keeps its own files in the guest. `/run` is a tmpfs; nothing here is inside a container.

/// Root's alone: bundles, console sockets, crun's logs, one directory per container.
pub(crate) const CONTAINERS: &str = "/run/lazaret/containers";
/// crun's state.
pub(crate) const CRUN_ROOT: &str = "/run/crun";
/// The guest's crun.
pub(crate) const CRUN: &str = "/usr/bin/crun";
/// The one cgroup hierarchy.
pub(crate) const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// The cgroup whose children are the containers', relative to [`CGROUP_ROOT`].
pub(crate) const CGROUP_PARENT: &str = "/lazaret";
/// The socket that dockerd accepts from, root's alone. The one of [`DOCKER_SOCKET`](lazaret_agent_api::DOCKER_SOCKET) leads to it.
pub(crate) const DOCKERD_SOCKET: &str = "/run/lazaret/docker.sock";
