//! Making a container.

use super::exec::Execs;
use super::launch::launch;
use super::process::Process;
use super::stats::Accounts;
use super::{Bundle, Container};
use crate::cgroup::Cgroup;
use crate::crun::Crun;
use crate::rpc::RpcError;
use crate::spec::{self, Guest, Sharing};
use crate::stdio::ProcessIo;
use lazaret_agent_api::agent::CreateContainerRequest;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::task::spawn_blocking;

/// Makes the container and its process, which waits. Nothing stays when it fails.
///
/// # Errors
/// INVALID_ARGUMENT for a spec that cannot be run, INTERNAL.
pub(super) async fn create(
    request: CreateContainerRequest,
    bundles: &Path,
    crun: Arc<Crun>,
    guest: &Guest,
    sharing: Sharing,
) -> Result<Container, RpcError> {
    let id = request.container_id;
    let invalid = |error: String| RpcError::InvalidArgument(format!("container {id}: {error}"));
    let spec = spec::for_container(&request.spec, &id, &sharing, guest);
    let spec = spec.map_err(|error| invalid(error.to_string()))?;
    for dropped in &spec.dropped {
        log::info!("container {id}: not applied: {dropped}");
    }
    for (name, value) in &spec.sysctls {
        let set = std::fs::write(Path::new("/proc/sys").join(name), value);
        set.map_err(|error| invalid(format!("cannot set sysctl {} to {value:?}: {error}", name.display())))?;
    }

    let internal = |error: std::io::Error| RpcError::Internal(format!("container {id}: its bundle: {error}"));
    let bundle = Bundle::make(bundles.join(&id)).map_err(internal)?;
    std::fs::write(bundle.0.join("config.json"), &spec.config).map_err(internal)?;

    let cgroup = Cgroup::of(&id);
    static CREATED: AtomicU64 = AtomicU64::new(0);
    let number = CREATED.fetch_add(1, Ordering::Relaxed);
    let io = ProcessIo::new(&request.stdio.unwrap_or_default(), spec.terminal);
    let init = Arc::new(Process::new(format!("container {id}"), io));
    let launched = launch(&crun.reaper, &bundle.0, &init.io, spec.oom_score_adj, async |launch| {
        crun.create(&id, launch).await
    })
    .await;
    let child = match launched {
        Ok(child) => child,
        Err(error) => {
            // crun cleans up after itself; this is for when it was stopped, or failed in cleaning up.
            if let Err(error) = crun.delete(&id, &bundle.0).await {
                log::warn!("container {id}: after its failure: {error}");
            }
            if let Err(error) = cgroup.remove() {
                log::warn!("container {id}: its cgroup stays: {error}");
            }
            return Err(error.into());
        }
    };
    let execs = Arc::new(Execs::default());
    let accounts = Accounts::new(&id, cgroup.clone());
    // The others end with the first process, by the kernel's doing where that is the first of their pid namespace. The exits of
    // execs are known before its exit is, and so is why it was killed.
    let (others, last) = (execs.clone(), accounts.note_last_oom_kills());
    let rest = sharing.namespaces.contains_key("pid").then(|| cgroup.clone());
    init.adopt(child, async move {
        if let Some(rest) = rest {
            kill_rest(rest).await;
        }
        others.ended().await;
        last.await;
    });
    let (oom_score_adj, updating, holds_pod) =
        (spec.oom_score_adj, tokio::sync::Mutex::default(), sharing.holds_pod);
    Ok(Container {
        id,
        number,
        holds_pod,
        bundle,
        cgroup,
        oom_score_adj,
        init,
        execs,
        crun,
        accounts,
        updating,
    })
}

/// Kills what is left of a container whose processes are in the pid namespace of another.
async fn kill_rest(cgroup: Cgroup) {
    let killed = spawn_blocking(move || cgroup.end()).await;
    if let Err(error) = killed.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
        log::error!("the rest of a container that has ended cannot be killed: {error}");
    }
}
