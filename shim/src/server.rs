//! The shim's server: one process for one sandbox, from the first call to the last trace being gone.

use crate::config::Config;
use crate::error::{Error, Result as RpcResult};
use crate::events;
use crate::sandbox::membership::Kind;
use crate::sandbox::{
    Docker, Host, Limits, Membership, NetworkMode, Plan, Sandbox, Size, Spec, pod_resources, resolv_conf,
};
use crate::service::TaskService;
use crate::state::{ProcessId, Record, StateDir};
use crate::{delete, socket};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

/// How long a sandbox may be without a container before it ends. Its containerd is gone then.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a sandbox may be there that takes no container any more: its Create failed, or its last container was deleted.
/// containerd should ask for its end at once.
const ENDED_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last events may take.
const EVENTS_TIMEOUT: Duration = Duration::from_secs(5);

/// What the server is started with.
#[derive(Debug)]
pub(crate) struct Setup {
    pub namespace: String,
    pub id: String,
    pub bundle: PathBuf,
    pub spec: Spec,
    pub config: Config,
    pub ttrpc_address: String,
    pub state: StateDir,
    pub socket: PathBuf,
    pub listener: UnixListener,
}

/// Makes the sandbox's own mount namespace, with the tree it shares with its guest. Before any thread is started.
///
/// Nothing the sandbox mounts is ever seen on the host, and all of it vanishes with its processes. The host's own later
/// mounts still come in, so that a root Docker mounts after this is there.
///
/// # Errors
/// The kernel's; the state directory is removed again.
pub(crate) fn prepare(state: &StateDir, socket: &Path) -> io::Result<()> {
    let named = |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    if let Err(error) = state.create() {
        if error.kind() != io::ErrorKind::AlreadyExists {
            return Err(named(&state.path().display().to_string(), error));
        }
        let mut record = state.load().unwrap_or_default();
        let lives = record.shim.is_some_and(|shim| shim.is_running()) && !record.ending;
        if lives && record.socket != socket {
            let of = record.shim.map_or(0, |shim| shim.pid);
            let line = format!("it is the sandbox of process {of}, which another containerd has started");
            return Err(named(
                &state.path().display().to_string(),
                io::Error::new(io::ErrorKind::AlreadyExists, line),
            ));
        }
        // No shim answered at the socket, so the state was left behind by one that is gone. The socket is ours by now.
        record.socket = PathBuf::new();
        delete::clean(state, &record);
        state.create().map_err(|error| named(&state.path().display().to_string(), error))?;
    }
    let none = None::<&str>;
    let shared = state.shared();
    let isolate = || -> nix::Result<()> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)?;
        mount(Some(&shared), &shared, none, MsFlags::MS_BIND, none)?;
        // Of a peer group of its own, not of the host's.
        mount(none, &shared, none, MsFlags::MS_PRIVATE, none)?;
        mount(none, &shared, none, MsFlags::MS_SHARED, none)
    };
    isolate().map_err(|errno| {
        let _ = state.remove();
        named("making the sandbox's mount namespace", errno.into())
    })
}

/// Serves until the sandbox is over, and removes what is left of it.
///
/// # Errors
/// The kernel's, before anything is served.
pub(crate) fn run(setup: Setup) -> io::Result<()> {
    // Connections that are carried into the guest take two descriptors each, and there can be more of them than the 1,024
    // descriptors that service managers give at first. None of them may cost a process its stdio.
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(errno) = raised {
        log::warn!("cannot raise the shim's limit of open files: {errno}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(serve(setup));
    // No task that is left has to finish.
    runtime.shutdown_background();
    result
}

async fn serve(setup: Setup) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (publisher, sender) = events::start(setup.ttrpc_address.clone(), setup.namespace.clone());
    let membership = Membership::of(&setup.spec, &setup.id, &setup.bundle);
    let record = Record {
        shared: membership.takes_members(),
        shim: ProcessId::of(std::process::id().try_into().map_err(io::Error::other)?).ok(),
        socket: setup.socket.clone(),
        ..Record::default()
    };
    setup.state.save(&record)?;
    let plan = plan(&setup, &membership);
    let record = match &plan {
        Ok(plan) => Record { vcpus: plan.size.vcpus, memory_mib: plan.size.memory_mib, ..record },
        Err(_) => record,
    };
    let sandbox = Sandbox::start(plan, membership, setup.state.shared(), record, publisher);

    let (shutdown, mut asked) = watch::channel(false);
    let service = TaskService::new(sandbox.clone(), shutdown);
    let mut server = Server::new().register_service(service.services());
    server = server.add_listener(Listener::try_from(setup.listener)?);
    server.start().await.map_err(io::Error::other)?;
    log::info!("serving at {}", socket::address(&setup.socket));

    tokio::select! {
        _ = asked.wait_for(|asked| *asked) => log::debug!("containerd asks for the end"),
        _ = terminate.recv() => log::warn!("SIGTERM: the sandbox is ended"),
        _ = interrupt.recv() => log::warn!("SIGINT: the sandbox is ended"),
        () = abandoned(&sandbox) => log::warn!("the sandbox is ended: it has been without a container for too long"),
    }
    mark_ending(&setup.state);
    // From here on a new `start` of this name makes a new sandbox.
    let _ = std::fs::remove_file(&setup.socket);
    sandbox.end().await;
    if let Err(errno) = umount2(&setup.state.shared(), MntFlags::MNT_DETACH) {
        log::warn!("unmounting {}: {errno}", setup.state.shared().display());
    }
    let record = setup.state.load().unwrap_or_default();
    delete::remove_traces(&setup.state, &record);
    sender.finish(EVENTS_TIMEOUT).await;
    // Answers on their way are let through.
    let _ = server.shutdown().await;
    Ok(())
}

/// `delete` leaves a shim that is ending alone for a while.
fn mark_ending(state: &StateDir) {
    let record = Record { ending: true, ..state.load().unwrap_or_default() };
    if let Err(error) = state.save(&record) {
        log::debug!("{}: {error}", state.path().display());
    }
}

fn plan(setup: &Setup, membership: &Membership) -> RpcResult<Plan> {
    // It is the first of its sandbox, so there is nobody to share with yet.
    setup.spec.joins(&HashMap::new())?;
    let resources = pod_resources::of(&setup.spec, membership)?;
    let docker = Docker::of(&setup.spec, &setup.config)?;
    docker.as_ref().map_or(Ok(()), |docker| docker.check_socket(&setup.state))?;
    let network = setup.spec.network_namespace();
    let network_mode = NetworkMode::of(&setup.spec, &setup.config)?;
    let resolv_conf = resolv_conf::write(&network_mode, &network, &setup.state)
        .map_err(|error| Error::Internal(format!("{}: {error}", setup.state.resolv_conf().display())))?;
    Ok(Plan {
        size: Size::of(&setup.spec, &resources, &setup.config, Host::detect())?,
        docker,
        config: setup.config.clone(),
        network,
        network_mode,
        resolv_conf,
        cgroups_path: setup.spec.cgroups_path().map(Into::into),
        limits: Limits::of_resources(&resources)?,
        oom_score_adj: match membership.kind {
            // The score of its holder is that of a program which nothing may kill, not that of what runs in it.
            Kind::Pod => 0,
            Kind::Lone | Kind::Group => setup.spec.oom_score_adj(),
        },
        hostname: hostname(&setup.spec),
        state: setup.state.clone(),
    })
}

/// The spec's, else the host's, which a container without one of its own sees under any runtime.
fn hostname(spec: &Spec) -> String {
    let named = Some(spec.hostname()).filter(|name| !name.is_empty()).map(Into::into);
    let host = || nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    named.or_else(host).unwrap_or_default()
}

/// Ends when the sandbox has been without a container for too long.
async fn abandoned(sandbox: &Arc<Sandbox>) {
    loop {
        sandbox.until_empty(true).await;
        let limit = if sandbox.is_ending() { ENDED_TIMEOUT } else { IDLE_TIMEOUT };
        if tokio::time::timeout(limit, sandbox.until_empty(false)).await.is_err() {
            return;
        }
    }
}

/// Reads the spec and the configuration for `start`.
///
/// # Errors
/// One line, as [`Error`].
pub(crate) fn load(bundle: &Path, config: Option<&Path>) -> RpcResult<(Spec, Config)> {
    let config = Config::load(config).map_err(|error| Error::InvalidArgument(error.to_string()))?;
    Ok((Spec::load(bundle)?, config))
}
