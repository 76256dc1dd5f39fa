//! The shim's server: one process for one sandbox, from the first call to the last trace being gone.

use crate::config::Config;
use crate::error::{Error, Result as RpcResult};
use crate::events;
use crate::sandbox::{Docker, Host, Plan, Sandbox, Size, Spec};
use crate::service::TaskService;
use crate::state::{ProcessId, Record, StateDir};
use crate::{delete, socket};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

/// How long a sandbox may be without a container before it ends itself: its containerd has left it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// The same after a Create that failed, when containerd is to ask for the end at once.
const FAILED_TIMEOUT: Duration = Duration::from_secs(10);
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
        // Nobody answered at the socket, so what is there was left behind; the socket is ours by now.
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(serve(setup));
    // Nothing is worth waiting for any more.
    runtime.shutdown_background();
    result
}

async fn serve(setup: Setup) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (publisher, sender) = events::start(setup.ttrpc_address.clone(), setup.namespace.clone());
    let record = Record {
        shim: ProcessId::of(std::process::id().try_into().map_err(io::Error::other)?).ok(),
        socket: setup.socket.clone(),
        ..Record::default()
    };
    setup.state.save(&record)?;
    let plan = plan(&setup);
    let record = match &plan {
        Ok(plan) => Record { vcpus: plan.size.vcpus, memory_mib: plan.size.memory_mib, ..record },
        Err(_) => record,
    };
    let sandbox = Sandbox::start(plan, setup.state.shared(), record, publisher);

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
        () = abandoned(&sandbox) => log::warn!("the sandbox is ended: nobody has a container in it"),
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

fn plan(setup: &Setup) -> RpcResult<Plan> {
    let docker = Docker::of(&setup.spec, &setup.config)?;
    docker.as_ref().map_or(Ok(()), |docker| docker.check_socket(&setup.state))?;
    Ok(Plan {
        size: Size::of(&setup.spec, &setup.config, Host::detect())?,
        docker,
        config: setup.config.clone(),
        network: setup.spec.network_namespace(),
        cgroups_path: setup.spec.cgroups_path().map(Into::into),
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
    let (mut busy, over) = (sandbox.busy(), sandbox.over());
    loop {
        if busy.wait_for(|busy| !*busy).await.is_err() {
            return;
        }
        let limit = if *over.borrow() { FAILED_TIMEOUT } else { IDLE_TIMEOUT };
        if tokio::time::timeout(limit, busy.wait_for(|busy| *busy)).await.is_err() {
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
