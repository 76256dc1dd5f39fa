//! The `delete` action: ends a sandbox and removes its traces without a running shim, by the record it has left.

use crate::args::Args;
use crate::events::timestamp;
use crate::sandbox::{cgroup, membership};
use crate::state::{Record, STATE_ROOT, StateDir};
use crate::{sandbox::Spec, socket};
use containerd_shim_protos::api::DeleteResponse;
use protobuf::{Message, MessageField};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// How long a shim that is ending its sandbox by itself may take, in milliseconds: containerd calls `delete` also when
/// a shim closes its connection because it was told to end.
const ENDING_TIMEOUT_MS: u16 = 2500;
/// How long a killed process may take to go, in milliseconds. containerd waits five seconds for all of `delete`.
const KILL_TIMEOUT_MS: u16 = 1000;
/// 128 + SIGKILL.
const KILLED: u32 = 137;

/// Ends what runs of the container's sandbox, and returns what to print: a `DeleteResponse`.
///
/// A member of a pod has nothing of its own to end; its sandbox lives on.
///
/// # Errors
/// The encoder's.
pub fn run(args: &Args) -> Result<Vec<u8>, protobuf::Error> {
    let bundle = args.bundle.clone().or_else(|| std::env::current_dir().ok()).unwrap_or_default();
    let own = is_own(&bundle, &args.id);
    let state = StateDir::new(Path::new(STATE_ROOT), &args.namespace, &args.id);
    let mut pid = 0;
    // A bundle without a spec is one whose start failed, or a sandbox whose bundle is going: the state tells.
    if own || state.path().exists() {
        let mut record = state.load().unwrap_or_default();
        if record.socket == PathBuf::new() {
            let directory = Path::new(socket::SOCKET_DIR);
            record.socket = socket::path(directory, &args.address, &args.namespace, &args.id);
        }
        pid = record.vmm.map_or(0, |vmm| u32::try_from(vmm.pid).unwrap_or_default());
        clean(&state, &record);
    }
    DeleteResponse {
        pid,
        exit_status: KILLED,
        exited_at: MessageField::some(timestamp(SystemTime::now())),
        ..Default::default()
    }
    .write_to_bytes()
}

/// Whether the bundle is that of a sandbox's own container, as far as its spec tells.
fn is_own(bundle: &Path, id: &str) -> bool {
    Spec::load(bundle).is_ok_and(|spec| membership::sandbox_id(&spec, id).is_ok_and(|sandbox| sandbox == id))
}

/// Kills the recorded processes, and no others, and removes what they leave.
pub fn clean(state: &StateDir, record: &Record) {
    if let Some(shim) = record.shim.filter(|_| record.ending) {
        // It removes its own traces; what it does not get done is done below.
        let _ = shim.wait(ENDING_TIMEOUT_MS);
    }
    // The shim first: it would take the VMM's end for an accident, and remove things beside us.
    for process in [record.shim, record.vmm].into_iter().flatten() {
        if let Err(error) = process.kill(KILL_TIMEOUT_MS) {
            eprintln!("lazaret: cannot kill process {}: {error}", process.pid);
        }
    }
    if record.shared {
        cgroup::wait_empty(&record.cgroups);
    }
    if record.socket != PathBuf::new() {
        let _ = std::fs::remove_file(&record.socket);
    }
    if let Err(error) = crate::network::undo(&state.network()) {
        eprintln!("lazaret: {error}");
    }
    remove_traces(state, record);
}

/// Removes the cgroups and the state directory of a sandbox whose processes have ended.
pub fn remove_traces(state: &StateDir, record: &Record) {
    cgroup::remove(&record.cgroups);
    if let Err(error) = state.remove() {
        log::warn!("{} stays: {error}", state.path().display());
    }
}

#[cfg(test)]
#[path = "delete_test.rs"]
mod tests;
