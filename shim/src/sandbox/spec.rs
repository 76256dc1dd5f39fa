//! The OCI runtime spec (`config.json` of the bundle): what the host needs to know of it, and where the guest finds
//! what it names.
//!
//! The shim changes paths alone; what a guest can make of the rest is the agent's to judge, who knows the guest. The
//! spec stays JSON throughout, so that a field this version does not know reaches the guest's runtime unharmed.

use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Which container or pod a spec belongs to, by whoever wrote it.
const GROUP_ANNOTATIONS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];
/// Hooks that run on the host.
const HOST_HOOKS: [&str; 5] = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];

/// A spec as it was read from the bundle.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Spec(Value);

/// The network namespace a spec asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NetworkNamespace {
    New,
    Path(PathBuf),
    /// None: the host's, which a sandbox never gets.
    Host,
}

/// A bind mount of the spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bind {
    /// Its place among the spec's mounts.
    pub index: usize,
    pub source: PathBuf,
    pub destination: String,
    pub read_only: bool,
    pub recursive: bool,
}

/// Where the guest finds what the host has mounted for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GuestPaths {
    pub root: PathBuf,
    /// By the mount's place among the spec's mounts.
    pub binds: HashMap<usize, PathBuf>,
}

impl Spec {
    /// Reads `config.json` of a bundle.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] that names the file.
    pub(crate) fn load(bundle: &Path) -> Result<Self> {
        let path = bundle.join("config.json");
        let refuse = |what: String| Error::InvalidArgument(format!("{}: {what}", path.display()));
        let bytes = std::fs::read(&path)
            .map_err(|error| refuse(format!("cannot read the container's spec: {error}")))?;
        Self::parse(&bytes).map_err(refuse)
    }

    /// Reads a spec's JSON.
    ///
    /// # Errors
    /// One line that says what is wrong with it.
    pub(crate) fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        let value: Value = serde_json::from_slice(bytes).map_err(|error| format!("not JSON: {error}"))?;
        if value.is_object() { Ok(Self(value)) } else { Err("not an OCI runtime spec".into()) }
    }

    #[must_use]
    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        // Annotations have dots and slashes in their names, which a JSON pointer would need escaped.
        self.0.get("annotations")?.get(key)?.as_str()
    }

    /// The sandbox that container `id` belongs to: its pod's, else its own.
    #[must_use]
    pub(crate) fn sandbox_id<'a>(&'a self, id: &'a str) -> &'a str {
        GROUP_ANNOTATIONS
            .iter()
            .find_map(|key| self.annotation(key))
            .filter(|group| !group.is_empty())
            .unwrap_or(id)
    }

    /// An integer of `linux.resources`, such as `memory/limit`.
    #[must_use]
    pub(crate) fn resource(&self, path: &str) -> Option<i64> {
        self.0.pointer(&format!("/linux/resources/{path}"))?.as_i64()
    }

    #[must_use]
    pub(crate) fn cgroups_path(&self) -> Option<&str> {
        self.0.pointer("/linux/cgroupsPath")?.as_str().filter(|path| !path.is_empty())
    }

    #[must_use]
    pub(crate) fn hostname(&self) -> &str {
        self.0.get("hostname").and_then(Value::as_str).unwrap_or_default()
    }

    /// `root.path`, which may be relative to the bundle.
    #[must_use]
    pub(crate) fn root(&self, bundle: &Path) -> PathBuf {
        bundle.join(self.0.pointer("/root/path").and_then(Value::as_str).unwrap_or("rootfs"))
    }

    #[must_use]
    pub(crate) fn network_namespace(&self) -> NetworkNamespace {
        let namespaces = self.0.pointer("/linux/namespaces").and_then(Value::as_array);
        let network = namespaces.into_iter().flatten().find(|entry| entry["type"] == "network");
        match network.map(|entry| entry["path"].as_str().unwrap_or_default()) {
            None => NetworkNamespace::Host,
            Some("") => NetworkNamespace::New,
            Some(path) => NetworkNamespace::Path(path.into()),
        }
    }

    /// The bind mounts, in the spec's order; sources are absolute or relative to the bundle.
    #[must_use]
    pub(crate) fn binds(&self, bundle: &Path) -> Vec<Bind> {
        let mounts = self.0.get("mounts").and_then(Value::as_array);
        let bind = |(index, mount): (usize, &Value)| {
            let options: Vec<&str> =
                mount["options"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let recursive = options.contains(&"rbind");
            let is_bind = recursive || options.contains(&"bind") || mount["type"] == "bind";
            // Of contradicting options the last one counts, as with mount(8).
            let mode = options.iter().rev().find(|option| ["ro", "rw", "rro"].contains(option));
            is_bind.then(|| Bind {
                index,
                source: bundle.join(mount["source"].as_str().unwrap_or_default()),
                destination: mount["destination"].as_str().unwrap_or_default().into(),
                read_only: mode.is_some_and(|mode| *mode != "rw"),
                recursive,
            })
        };
        mounts.into_iter().flatten().enumerate().filter_map(bind).collect()
    }

    /// The spec with the guest's paths, and a line for the log about each thing that was asked for and is not done.
    ///
    /// # Errors
    /// The encoder's.
    pub(crate) fn for_guest(&self, paths: &GuestPaths) -> Result<(Vec<u8>, Vec<String>)> {
        let mut spec = self.0.clone();
        spec["root"]["path"] = path_value(&paths.root);
        let mounts = spec.get_mut("mounts").and_then(Value::as_array_mut);
        for (index, mount) in mounts.into_iter().flatten().enumerate() {
            if let Some(source) = paths.binds.get(&index) {
                mount["source"] = path_value(source);
            }
        }
        let hooks = HOST_HOOKS.iter().filter(|when| !self.0["hooks"][**when].is_null());
        let notes =
            hooks.map(|when| format!("the spec's {when} hooks are not run: a sandbox runs none on the host"));
        let bytes = serde_json::to_vec(&spec).map_err(|error| Error::Internal(format!("spec: {error}")))?;
        Ok((bytes, notes.collect()))
    }
}

/// Checks the `process` object of an exec.
///
/// # Errors
/// [`Error::InvalidArgument`] when it is none.
pub(super) fn check_process(bytes: &[u8]) -> Result<()> {
    let refuse = |what: String| Error::InvalidArgument(format!("the exec's process spec: {what}"));
    let process: Value =
        serde_json::from_slice(bytes).map_err(|error| refuse(format!("not JSON: {error}")))?;
    if process.is_object() { Ok(()) } else { Err(refuse("not an object".into())) }
}

fn path_value(path: &Path) -> Value {
    path.to_string_lossy().into_owned().into()
}

#[cfg(test)]
#[path = "spec_test.rs"]
mod tests;
