//! The sandboxes of this host, by what they have left in their state directories.

use crate::state::{ProcessId, StateDir};
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};

/// What a sandbox is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// The shim runs, the VM does not yet.
    Starting,
    Running,
    /// The VM has ended; containerd has not taken the task away yet.
    Stopped,
    /// Neither runs: what is left will be removed by containerd's `delete`.
    Dead,
}

/// One sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sandbox {
    pub namespace: String,
    pub id: String,
    pub condition: Condition,
    pub vmm_pid: Option<i32>,
    pub vcpus: u32,
    /// The guest's ceiling.
    pub memory_mib: u64,
    /// What the VMM's process, the guest's touched memory included, has of the host's now.
    pub resident_mib: Option<u64>,
    /// Where others reach it, as `ADDRESS/PREFIX`.
    pub addresses: Vec<String>,
    #[serde(skip)]
    pub console: PathBuf,
    /// Where its Docker daemon is reached, if it exports it.
    #[serde(skip)]
    pub docker_socket: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum FindError {
    #[error("there is no sandbox {0} (`lazaret ps` lists them)")]
    None(String),
    #[error("{id} could be any of {}: name it in full, and its namespace with -n", names.join(", "))]
    Many { id: String, names: Vec<String> },
    #[error("{}: {source}", path.display())]
    Log { path: PathBuf, source: std::io::Error },
}

/// All sandboxes below `root`, by namespace and id.
#[must_use]
pub fn list(root: &Path) -> Vec<Sandbox> {
    StateDir::all(root).into_iter().map(|(namespace, id, state)| describe(&state, namespace, id)).collect()
}

fn describe(state: &StateDir, namespace: String, id: String) -> Sandbox {
    let record = state.load().unwrap_or_default();
    let runs = |process: Option<ProcessId>| process.filter(ProcessId::is_running);
    let vmm = runs(record.vmm);
    let condition = match (runs(record.shim).is_some(), vmm.is_some(), record.vmm.is_some()) {
        (_, true, _) => Condition::Running,
        (true, false, false) => Condition::Starting,
        (true, false, true) => Condition::Stopped,
        (false, false, _) => Condition::Dead,
    };
    Sandbox {
        namespace,
        id,
        condition,
        vmm_pid: vmm.map(|vmm| vmm.pid),
        vcpus: record.vcpus,
        memory_mib: record.memory_mib,
        resident_mib: vmm.and_then(|vmm| resident_mib(vmm.pid)),
        // A VMM that has just ended has none.
        addresses: vmm.and_then(|vmm| crate::network::addresses(vmm.pid).ok()).unwrap_or_default(),
        console: state.console_log(),
        docker_socket: state.docker_socket(),
    }
}

fn resident_mib(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? / 1024)
}

/// The sandbox of that id, or of the only id that begins so.
///
/// # Errors
/// [`FindError`].
pub fn find(root: &Path, namespace: Option<&str>, id: &str) -> Result<Sandbox, FindError> {
    let named = |sandbox: &Sandbox| namespace.is_none_or(|namespace| sandbox.namespace == namespace);
    let candidates: Vec<_> = list(root).into_iter().filter(named).filter(|s| s.id.starts_with(id)).collect();
    let exact: Vec<_> = candidates.iter().filter(|sandbox| sandbox.id == id).cloned().collect();
    let mut matching = if exact.is_empty() { candidates } else { exact };
    match (matching.pop(), matching.is_empty()) {
        (Some(sandbox), true) => Ok(sandbox),
        (None, _) => Err(FindError::None(id.into())),
        (Some(last), false) => {
            let all = matching.iter().chain([&last]);
            let names = all.map(|sandbox| format!("{}/{}", sandbox.namespace, sandbox.id)).collect();
            Err(FindError::Many { id: id.into(), names })
        }
    }
}

/// What the guest's kernel and agent wrote to their console.
///
/// # Errors
/// [`FindError::Log`].
pub fn console(sandbox: &Sandbox) -> Result<Vec<u8>, FindError> {
    let path = &sandbox.console;
    fs::read(path).map_err(|source| FindError::Log { path: path.clone(), source })
}

/// The list for a person.
#[must_use]
pub fn render(sandboxes: &[Sandbox]) -> String {
    let row = |cells: [String; 8]| {
        let [namespace, id, condition, pid, vcpus, memory, resident, addresses] = cells;
        let id_width = sandboxes.iter().map(|sandbox| sandbox.id.len()).max().unwrap_or(0).max(2);
        let namespace_width =
            sandboxes.iter().map(|sandbox| sandbox.namespace.len()).max().unwrap_or(0).max(9);
        format!(
            "{namespace:<namespace_width$}  {id:<id_width$}  {condition:<8}  {pid:>8}  {vcpus:>5}  {memory:>9}  {resident:>9}  {addresses}\n"
        )
    };
    let head = ["NAMESPACE", "ID", "STATE", "VMM PID", "VCPUS", "MEMORY", "RESIDENT", "ADDRESSES"];
    let mib = |value: u64| format!("{value} MiB");
    let mut text = row(head.map(Into::into));
    for sandbox in sandboxes {
        let condition = match sandbox.condition {
            Condition::Starting => "starting",
            Condition::Running => "running",
            Condition::Stopped => "stopped",
            Condition::Dead => "dead",
        };
        text += &row([
            sandbox.namespace.clone(),
            sandbox.id.clone(),
            condition.into(),
            sandbox.vmm_pid.map_or("-".into(), |pid| pid.to_string()),
            sandbox.vcpus.to_string(),
            mib(sandbox.memory_mib),
            sandbox.resident_mib.map_or("-".into(), mib),
            if sandbox.addresses.is_empty() { "-".into() } else { sandbox.addresses.join(" ") },
        ]);
    }
    text
}

#[cfg(test)]
#[path = "sandboxes_test.rs"]
mod tests;
