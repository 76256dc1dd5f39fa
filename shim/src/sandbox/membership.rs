//! Which containers belong to a sandbox, by the annotations of their specs.
//!
//! ```text
//!   lone    nothing says otherwise                                 its own container alone; it ends with that one
//!   pod     container-type=sandbox (CRI)                           containers whose sandbox-id is its id and whose
//!                                                                  container-type is container; it ends with its own
//!   group   io.containerd.runc.v2.group is its own id              containers of that group; it ends with the last one
//! ```
//!
//! The annotations of a container choose the shim that its `start` leads to, so the shim checks them again: a sandbox takes
//! nobody whose own spec does not name it, and one that was not made to be shared takes nobody.

use super::container::spec::Spec;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

const GROUP: &str = "io.containerd.runc.v2.group";
/// Of containerd's CRI plugin, and of CRI-O: on the sandbox and on each container of its pod.
const SANDBOX_IDS: [&str; 2] = ["io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID"];
/// The same: `sandbox` or `container`.
const TYPES: [&str; 2] = ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"];
/// Where a container has its shared memory.
pub(super) const SHM: &str = "/dev/shm";

/// What containers a sandbox has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Its own container, and no other.
    Lone,
    /// Its own container, which holds the pod, and those of the pod.
    Pod,
    /// Containers of equal rank; its own is the first.
    Group,
}

/// What a container is to its sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// There is no other: what holds for the one holds for the other.
    Sole,
    /// It has the sandbox's id, and the pod lives as long as it does. It runs no program of the user's.
    Holder,
    /// It has the sandbox's id, and is one of a group.
    First,
    /// It came to the sandbox of another.
    Member,
}

/// What a sandbox knows of who belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Membership {
    /// The id of the sandbox, and of the container that it was started for.
    pub id: String,
    pub kind: Kind,
    /// The directory of the host that all containers of the sandbox have as their shared memory, where there is one.
    pub shm: Option<PathBuf>,
}

/// The id of the sandbox that container `id` belongs to: that of the annotations, else its own.
///
/// # Errors
/// [`Error::InvalidArgument`] when the annotations contradict each other: one of them is not from who may say so.
pub(crate) fn sandbox_id<'a>(spec: &'a Spec, id: &'a str) -> Result<&'a str> {
    let keys = SANDBOX_IDS.into_iter().chain([GROUP]);
    let mut named = keys.filter_map(|key| Some((key, annotation(spec, key)?)));
    let Some((first, sandbox)) = named.next() else { return Ok(id) };
    match named.find(|(_, other)| *other != sandbox) {
        None => Ok(sandbox),
        Some((second, other)) => Err(Error::InvalidArgument(format!(
            "container {id}: annotations {first}={sandbox:?} and {second}={other:?} name two sandboxes"
        ))),
    }
}

impl Membership {
    /// Of the sandbox that is started for container `id`.
    #[must_use]
    pub(crate) fn of(spec: &Spec, id: &str, bundle: &Path) -> Self {
        let kind = match container_type(spec) {
            Some("sandbox") => Kind::Pod,
            _ if annotation(spec, GROUP) == Some(id) => Kind::Group,
            _ => Kind::Lone,
        };
        let shm = spec.binds(bundle).into_iter().rfind(|bind| bind.destination == SHM);
        Self { id: id.into(), kind, shm: shm.filter(|_| kind != Kind::Lone).map(|bind| bind.source) }
    }

    /// Whether the sandbox takes containers beside its own.
    #[must_use]
    pub(crate) fn takes_members(&self) -> bool {
        self.kind != Kind::Lone
    }

    #[must_use]
    pub(crate) fn role(&self, id: &str) -> Role {
        match self.kind {
            _ if id != self.id => Role::Member,
            Kind::Lone => Role::Sole,
            Kind::Pod => Role::Holder,
            Kind::Group => Role::First,
        }
    }

    /// Checks that container `id` with this spec belongs to the sandbox.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] with the reason; as [`sandbox_id`].
    pub(crate) fn check(&self, spec: &Spec, id: &str) -> Result<()> {
        let refuse = |why: String| Err(Error::FailedPrecondition(format!("container {id}: {why}")));
        let named = sandbox_id(spec, id)?;
        if named != self.id {
            return refuse(format!("it belongs to the sandbox {named}, and this is {}", self.id));
        }
        match self.kind {
            _ if id == self.id => Ok(()),
            Kind::Lone => Err(self.refuse(id)),
            Kind::Pod if container_type(spec) == Some("container") => Ok(()),
            Kind::Pod => refuse(format!("to join the pod {}, it must have {}=container", self.id, TYPES[0])),
            Kind::Group if annotation(spec, GROUP) == Some(&self.id) => Ok(()),
            Kind::Group => refuse(format!("to join the group {0}, it must have {GROUP}={0}", self.id)),
        }
    }

    /// What another container is answered by a sandbox that takes no other.
    pub(super) fn refuse(&self, id: &str) -> Error {
        not_shared(id, &self.id)
    }
}

/// What container `id` is answered that is to join a sandbox which takes no other than its own.
pub(crate) fn not_shared(id: &str, sandbox: &str) -> Error {
    Error::FailedPrecondition(format!(
        "container {id} cannot join the sandbox {sandbox}, which is that of one container: a pod's has {}=sandbox, a group's {GROUP}={sandbox}",
        TYPES[0]
    ))
}

fn container_type(spec: &Spec) -> Option<&str> {
    TYPES.into_iter().find_map(|key| annotation(spec, key))
}

fn annotation<'a>(spec: &'a Spec, key: &str) -> Option<&'a str> {
    spec.annotation(key).filter(|value| !value.is_empty())
}

#[cfg(test)]
#[path = "membership_test.rs"]
mod tests;
