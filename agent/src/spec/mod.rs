//! From the OCI spec that the host was given to the one that crun runs in the guest.
//!
//! The spec stays JSON throughout: what the agent has no opinion on (seccomp, capabilities, masked paths, whatever a
//! newer containerd adds) reaches crun as it came. What changes, and why:
//!
//! | in the spec | in the guest |
//! |---|---|
//! | network namespace | gone: the guest's network *is* the sandbox's |
//! | `net.*` sysctls | set by the agent for the guest, since crun wants a network namespace for them |
//! | paths of namespaces | gone: they name the host's; a new one is made, or that of another container is joined ([`Sharing`]) |
//! | no mount or pid namespace | one of its own: the guest's hold the agent |
//! | `cgroupsPath` | `/lazaret/<id>` |
//! | hooks | gone, they are the host's programs; `startContainer` runs in the container and stays |
//! | annotations | gone: to crun they are switches |
//! | AppArmor profile, SELinux labels | gone where the guest's kernel lacks them |
//! | resources | `resources`: what the guest's cgroups can apply |
//! | mounts | the Docker socket at `/var/run/docker.sock` and `DOCKER_HOST`, where the sandbox has one; not for a container that only holds its pod |
//! | devices | refused when the guest has none with that number; left out of a container that may use every device |

mod docker;
mod guest;
mod resources;
mod update;

pub(crate) use guest::Guest;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::PathBuf;
pub(crate) use update::for_update;

#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    #[error("{what} cannot be read: {source}")]
    Unreadable { what: &'static str, source: serde_json::Error },
    #[error("the OCI spec is of no use: {0} is missing or of the wrong kind")]
    Shape(&'static str),
    #[error(
        "device {path} ({kind} {major}:{minor}) is not in the guest: take it out of the container's devices"
    )]
    NoDevice { path: String, kind: String, major: i64, minor: i64 },
    #[error("it mounts a Docker socket, but its sandbox has no Docker daemon (io.lazaret.docker=off)")]
    NoDocker,
    #[error("{0:?} is not the name of a sysctl")]
    SysctlName(String),
}

type Object = Map<String, Value>;

/// What a container has of its sandbox, and is to its sandbox.
#[derive(Debug, Default)]
pub(crate) struct Sharing {
    /// Namespaces of other containers: by type, where they are.
    pub(crate) namespaces: HashMap<String, PathBuf>,
    /// It runs no program of the user's.
    pub(crate) holds_pod: bool,
}

/// A container's spec, ready for crun.
#[derive(Debug)]
pub(crate) struct ContainerSpec {
    pub(crate) config: Vec<u8>,
    pub(crate) terminal: bool,
    /// Of the guest, to be set before the container is made: file below `/proc/sys`, value.
    pub(crate) sysctls: Vec<(PathBuf, String)>,
    /// Execs get it too, unless they ask for another.
    pub(crate) oom_score_adj: i64,
    /// What was asked for and is not done, for the log.
    pub(crate) dropped: Vec<String>,
}

/// An exec's process, ready for crun.
#[derive(Debug)]
pub(crate) struct ExecSpec {
    pub(crate) process: Vec<u8>,
    pub(crate) terminal: bool,
    pub(crate) oom_score_adj: i64,
}

/// # Errors
/// [`SpecError`], all of them the caller's.
pub(crate) fn for_container(
    json: &[u8],
    id: &str,
    sharing: &Sharing,
    guest: &Guest,
) -> Result<ContainerSpec, SpecError> {
    let mut spec: Object = parse(json, "the OCI spec")?;
    spec.get("root")
        .and_then(|root| root.get("path"))
        .and_then(Value::as_str)
        .ok_or(SpecError::Shape("root.path"))?;
    spec.remove("annotations");
    if let Some(hooks) = spec.get_mut("hooks").and_then(Value::as_object_mut) {
        hooks.retain(|when, _| when == "startContainer");
    }

    let mut dropped = Vec::new();
    if !sharing.holds_pod {
        dropped.extend(docker::mount_socket(&mut spec, guest)?);
    }

    let process = spec.get_mut("process").and_then(Value::as_object_mut);
    let process = process.ok_or(SpecError::Shape("process"))?;
    let (terminal, oom_score_adj) = adapt_process(process, 0, guest);

    let linux = spec.entry("linux").or_insert_with(|| json!({})).as_object_mut();
    let linux = linux.ok_or(SpecError::Shape("linux"))?;
    linux.insert("cgroupsPath".into(), format!("{}/{id}", crate::paths::CGROUP_PARENT).into());
    // Of the host's processor and the host's interfaces.
    linux.remove("intelRdt");
    linux.remove("netDevices");
    if !guest.selinux {
        linux.remove("mountLabel");
    }
    namespaces(linux, sharing)?;
    let sysctls = network_sysctls(linux)?;
    dropped.extend(devices(linux, guest)?);
    if let Some(resources) = linux.get_mut("resources").and_then(Value::as_object_mut) {
        resources::adapt(resources, guest, &mut dropped);
    }
    Ok(ContainerSpec { config: write(&spec, "the OCI spec")?, terminal, sysctls, oom_score_adj, dropped })
}

/// # Errors
/// [`SpecError::Unreadable`].
pub(crate) fn for_exec(json: &[u8], oom_score_adj: i64, guest: &Guest) -> Result<ExecSpec, SpecError> {
    let mut process: Object = parse(json, "the process's spec")?;
    let (terminal, oom_score_adj) = adapt_process(&mut process, oom_score_adj, guest);
    Ok(ExecSpec { process: write(&process, "the process's spec")?, terminal, oom_score_adj })
}

fn parse(json: &[u8], what: &'static str) -> Result<Object, SpecError> {
    serde_json::from_slice(json).map_err(|source| SpecError::Unreadable { what, source })
}

fn write(object: &Object, what: &'static str) -> Result<Vec<u8>, SpecError> {
    serde_json::to_vec(object).map_err(|source| SpecError::Unreadable { what, source })
}

/// Tells whether the process wants a terminal, and its OOM score: the given one, unless it asks for another.
fn adapt_process(process: &mut Object, oom_score_adj: i64, guest: &Guest) -> (bool, i64) {
    if !guest.apparmor {
        process.remove("apparmorProfile");
    }
    if !guest.selinux {
        process.remove("selinuxLabel");
    }
    // The host's processors.
    process.remove("execCPUAffinity");
    // Left out it would be inherited, and the agent's says "never me".
    let score = process.entry("oomScoreAdj").or_insert_with(|| oom_score_adj.into()).as_i64();
    let terminal = process.get("terminal").and_then(Value::as_bool);
    (terminal.unwrap_or(false), score.unwrap_or(oom_score_adj))
}

fn namespaces(linux: &mut Object, sharing: &Sharing) -> Result<(), SpecError> {
    let namespaces = linux.entry("namespaces").or_insert_with(|| json!([])).as_array_mut();
    let namespaces = namespaces.ok_or(SpecError::Shape("linux.namespaces"))?;
    let is = |namespace: &Value, kind: &str| namespace.get("type").and_then(Value::as_str) == Some(kind);
    namespaces.retain(|namespace| !is(namespace, "network"));
    for namespace in namespaces.iter_mut().filter_map(Value::as_object_mut) {
        let joined = namespace.get("type").and_then(|kind| sharing.namespaces.get(kind.as_str()?));
        match joined {
            Some(path) => namespace.insert("path".into(), path.to_string_lossy().into()),
            None => namespace.remove("path"),
        };
    }
    for needed in ["mount", "pid"] {
        if !namespaces.iter().any(|namespace| is(namespace, needed)) {
            namespaces.push(json!({ "type": needed }));
        }
    }
    Ok(())
}

/// Takes `net.*` out of the spec's sysctls, as files and values.
fn network_sysctls(linux: &mut Object) -> Result<Vec<(PathBuf, String)>, SpecError> {
    let Some(sysctls) = linux.get_mut("sysctl").and_then(Value::as_object_mut) else {
        return Ok(Vec::new());
    };
    let mut network = Vec::new();
    for name in sysctls.keys().cloned().collect::<Vec<_>>() {
        // Both spellings are in use; an interface's name with a dot can only be had with slashes.
        let path = if name.contains('/') { name.clone() } else { name.replace('.', "/") };
        if !path.starts_with("net/") {
            continue;
        }
        if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return Err(SpecError::SysctlName(name));
        }
        if let Some(Value::String(value)) = sysctls.remove(&name) {
            network.push((PathBuf::from(path), value));
        }
    }
    Ok(network)
}

/// Leaves the devices that the guest does not have out of a container that may use every device, such as a privileged one, whose
/// spec lists all of the host's. Any other names what it needs. Answers with a line for the log.
fn devices(linux: &mut Object, guest: &Guest) -> Result<Option<String>, SpecError> {
    let every = linux.get("resources").is_some_and(resources::allow_every_device);
    let Some(devices) = linux.get_mut("devices").and_then(Value::as_array_mut) else { return Ok(None) };
    let mut missing = Vec::new();
    devices.retain(|device| {
        let text = |key: &str| device.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let number = |key: &str| device.get(key).and_then(Value::as_i64).unwrap_or(-1);
        let (kind, major, minor) = (text("type"), number("major"), number("minor"));
        let there = kind == "p" || guest.has_device(&kind, major, minor);
        if !there {
            missing.push(SpecError::NoDevice { path: text("path"), kind, major, minor });
        }
        there
    });
    let count = missing.len();
    match missing.into_iter().next() {
        None => Ok(None),
        Some(_) if every => Ok(Some(format!("{count} devices of the host's, which the guest does not have"))),
        Some(error) => Err(error),
    }
}

#[cfg(test)]
#[path = "spec_test.rs"]
mod tests;
