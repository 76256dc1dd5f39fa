//! The OCI runtime spec (`config.json` of the bundle): what the host needs to know of it, and where the guest finds
//! what it names.
//!
//! The shim changes paths alone; what a guest can make of the rest is the agent's to judge, who knows the guest. The
//! spec stays JSON throughout, so that a field this version does not know reaches the guest's runtime unharmed.

use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

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

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bind mount of {} on {}", self.source.display(), self.destination)
    }
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

    /// `linux.resources`; `Null` when there is none.
    #[must_use]
    pub(crate) fn resources(&self) -> &Value {
        &self.0["linux"]["resources"]
    }

    /// A field at the top of the spec; `Null` when there is none.
    #[must_use]
    pub(super) fn field(&self, name: &str) -> &Value {
        &self.0[name]
    }

    /// By how much the kernel prefers the process when memory runs out: that of the spec, else 0, as a process has that nobody
    /// protects.
    #[must_use]
    pub(crate) fn oom_score_adj(&self) -> i32 {
        let score = self.0.pointer("/process/oomScoreAdj").and_then(Value::as_i64).unwrap_or_default();
        i32::try_from(score.clamp(-1000, 1000)).unwrap_or_default()
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

    /// The namespaces of the spec that are those of another container of its sandbox: by type, whose. `pids` has the
    /// containers of the sandbox by the pids that their clients know. What other paths name is the host's, which the guest
    /// does not have.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a pid or IPC namespace of the host's, or of a container of another sandbox, whose
    /// processes and memory this one cannot see.
    pub(crate) fn joins(&self, pids: &HashMap<u32, String>) -> Result<HashMap<String, String>> {
        let namespaces = self.0.pointer("/linux/namespaces").and_then(Value::as_array);
        let mut joins = HashMap::new();
        for kind in ["pid", "ipc", "uts", "user"] {
            let needed = kind == "pid" || kind == "ipc";
            let entry = namespaces.into_iter().flatten().find(|entry| entry["type"] == kind);
            let of = match entry.map(|entry| entry["path"].as_str().unwrap_or_default()) {
                Some("") => continue,
                Some(path) => match process_of(path, kind).and_then(|pid| pids.get(&pid)) {
                    Some(container) => {
                        joins.insert(kind.to_owned(), container.clone());
                        continue;
                    }
                    None => format!("another container's {kind} namespace ({path})"),
                },
                None => format!("the host's {kind} namespace"),
            };
            if needed {
                return Err(Error::InvalidArgument(format!(
                    "the spec asks for {of}: a sandbox is a VM, and has none but its own"
                )));
            }
        }
        Ok(joins)
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

    /// The spec with `source` of the host mounted read-only at `destination`. What the spec mounts there stays, unless it is
    /// the host's own file of that path. A root that is read-only stays as it is: it may have no file to mount on.
    #[must_use]
    pub(in crate::sandbox) fn with_file(mut self, destination: &str, source: &Path) -> Self {
        let mount = serde_json::json!({
            "destination": destination, "type": "bind", "source": path_value(source), "options": ["bind", "ro"],
        });
        let read_only = self.0.pointer("/root/readonly") == Some(&Value::Bool(true));
        if self.0["mounts"].is_null() {
            self.0["mounts"] = Value::Array(Vec::new());
        }
        let Some(mounts) = self.0["mounts"].as_array_mut() else { return self };
        match mounts.iter_mut().rfind(|there| there["destination"] == destination) {
            None if read_only => {}
            None => mounts.push(mount),
            Some(there) if there["source"] == destination => *there = mount,
            Some(_) => {}
        }
        self
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
        let bytes = serde_json::to_vec(&spec).map_err(|error| Error::Internal(format!("spec: {error}")))?;
        let hooks = !self.0["hooks"]["createContainer"].is_null();
        let note = "the spec's createContainer hooks are not run: no program of the host runs in the guest";
        Ok((bytes, hooks.then(|| note.to_owned()).into_iter().collect()))
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

/// The pid in `/proc/<pid>/ns/<kind>`.
fn process_of(path: &str, kind: &str) -> Option<u32> {
    let (pid, rest) = path.strip_prefix("/proc/")?.split_once('/')?;
    if rest.strip_prefix("ns/")? == kind { pid.parse().ok() } else { None }
}

fn path_value(path: &Path) -> Value {
    path.to_string_lossy().into_owned().into()
}

#[cfg(test)]
#[path = "spec_test.rs"]
mod tests;
