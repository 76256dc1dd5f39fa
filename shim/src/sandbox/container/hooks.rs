//! Hooks of the spec that are programs of the host (OCI runtime spec, config.md, "POSIX-platform Hooks").
//!
//! `prestart` and `createRuntime` run in Create, when the sandbox's network namespace is there: dockerd up to 27 plugs in the network
//! so. `poststart` runs after Start, `poststop` after Delete. `createContainer` would run in the container's mount namespace, which
//! is the guest's, so no program of the host can; `startContainer` is a program of the container's, and the guest runs it.

use super::spec::Spec;
use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// How long a hook may take that has no `timeout` of its own.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// How much is kept of what a hook says of its failure, bytes.
const MAX_STDERR: u64 = 4096;

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Prestart,
    CreateRuntime,
    Poststart,
    Poststop,
}

impl When {
    fn key(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }

    /// What State says of the container then (OCI runtime spec, runtime.md, "State").
    fn status(self) -> &'static str {
        match self {
            Self::Prestart | Self::CreateRuntime => "creating",
            Self::Poststart => "running",
            Self::Poststop => "stopped",
        }
    }
}

/// The hooks of one container's spec.
#[derive(Debug, Clone)]
pub(crate) struct Hooks {
    /// `hooks` of the spec.
    spec: Value,
    version: Value,
    annotations: Value,
    pub id: String,
    pub bundle: PathBuf,
}

impl Hooks {
    #[must_use]
    pub(crate) fn of(spec: &Spec, id: &str, bundle: &Path) -> Self {
        let field = |name: &str| spec.field(name).clone();
        Self {
            spec: field("hooks"),
            version: field("ociVersion"),
            annotations: field("annotations"),
            id: id.into(),
            bundle: bundle.into(),
        }
    }

    /// Runs the hooks of that moment, one after another. `pid` is that of the process which stands for the container on the host.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a hook that is none; [`Error::Internal`] for the first that fails, which is the last that runs.
    pub(crate) async fn run(&self, when: When, pid: u32) -> Result<()> {
        for hook in self.spec[when.key()].as_array().into_iter().flatten() {
            let state = json!({
                "ociVersion": self.version, "id": self.id, "status": when.status(), "pid": pid,
                "bundle": self.bundle, "annotations": self.annotations,
            });
            let path = hook["path"].as_str().unwrap_or_default();
            let name = format!("the spec's {} hook {path}", when.key());
            if !path.starts_with('/') {
                return Err(Error::InvalidArgument(format!("{name:?}: its path is not absolute")));
            }
            let seconds = hook["timeout"].as_u64().filter(|&seconds| seconds > 0);
            let limit = seconds.map_or(DEFAULT_TIMEOUT, Duration::from_secs);
            let failed = |what: String| Error::Internal(format!("{name}: {what}"));
            match tokio::time::timeout(limit, run(hook, path, &self.bundle, &state)).await {
                Ok(Ok(())) => {}
                Ok(Err(what)) => return Err(failed(what)),
                Err(_) => return Err(failed(format!("it does not end within {} s", limit.as_secs()))),
            }
        }
        Ok(())
    }
}

/// Runs one hook. It is killed when this is dropped.
async fn run(hook: &Value, path: &str, bundle: &Path, state: &Value) -> std::result::Result<(), String> {
    let strings = |name: &str| {
        let list = hook[name].as_array().into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
    };
    let mut command = Command::new(path);
    let args = strings("args");
    if let Some((first, rest)) = args.split_first() {
        command.arg0(first).args(rest);
    }
    let environment = strings("env");
    let environment = environment.iter().filter_map(|variable| variable.split_once('='));
    command.env_clear().envs(environment).current_dir(bundle).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook need not read its input.
        let _ = stdin.write_all(state.to_string().as_bytes()).await;
    }
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        // What is beyond the limit breaks its pipe.
        let _ = stderr.take(MAX_STDERR).read_to_end(&mut said).await;
    }
    let status = child.wait().await.map_err(|error| error.to_string())?;
    if status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&said);
    let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    Err(format!("{status}: {last}"))
}

#[cfg(test)]
#[path = "hooks_test.rs"]
mod tests;
