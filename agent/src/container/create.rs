//! Making a container.

use super::exec::Execs;
use super::launch::launch;
use super::process::Process;
use super::{Bundle, Container};
use crate::cgroup::Cgroup;
use crate::crun::Crun;
use crate::rpc::RpcError;
use crate::spec::{self, Guest};
use crate::stdio::ProcessIo;
use lazaret_agent_api::agent::CreateContainerRequest;
use std::path::Path;
use std::sync::Arc;

/// Makes the container and its process, which waits. Nothing stays when it fails.
///
/// # Errors
/// INVALID_ARGUMENT for a spec that cannot be run, INTERNAL.
pub(super) async fn create(
    request: CreateContainerRequest,
    bundles: &Path,
    crun: Arc<Crun>,
    guest: &Guest,
) -> Result<Container, RpcError> {
    let id = request.container_id;
    let invalid = |error: String| RpcError::InvalidArgument(format!("container {id}: {error}"));
    let spec = spec::for_container(&request.spec, &id, guest).map_err(|error| invalid(error.to_string()))?;
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
    // The end of the first process is the end of all; theirs are told first.
    let others = execs.clone();
    init.adopt(child, async move { others.ended().await });
    Ok(Container { id, bundle, cgroup, oom_score_adj: spec.oom_score_adj, init, execs, crun })
}
