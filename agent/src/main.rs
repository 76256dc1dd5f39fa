//! `lazaret-agent`: process 1 of the guest, which runs the sandbox's containers for the shim.
//!
//! ```text
//!              vsock host:1024, dialled once                      vsock guest:1025, one per stdio descriptor
//!                        │                                                      │
//!   ┌────────────────────▼───────────────────────────────────────────────────────▼────────────────┐
//!   │ boot/     link      service ───► container/ (container, process, state) ◄─── stdio/ listener  │
//!   │ mounts    ends:     the RPCs         │   spec: what the guest can run         descriptors     │
//!   │ loopback  reset                      ▼                                        pipes, ptys     │
//!   │ limits                            crun ────► cgroup /lazaret/<id> ────► the container         │
//!   │ memory                            reaper ◄──────────────── every exit in the guest            │
//!   └─────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The order of the start is the time a user waits, so only what the first request needs comes before the dial. The
//! dial is the readiness signal, and the connection is the guest's reason to be: when it ends, so does the VM.
//!
//! Threat model: the host is trusted; a container is not. No descriptor of the agent is inherited (all are
//! close-on-exec), its directories are root's and outside every container's mounts, its vsock ports speak to the
//! host's CID alone, and the OOM killer passes it over.

mod boot;
mod cgroup;
mod console;
mod container;
mod crun;
mod docker;
mod host_facts;
mod link;
mod network;
mod paths;
mod power;
mod reaper;
mod rpc;
mod service;
mod shared;
mod spec;
mod stdio;
mod sync;
mod vsock;

#[cfg(test)]
mod end_to_end_test;
#[cfg(test)]
mod pod_test;
#[cfg(test)]
mod test_host;

use crate::container::Containers;
use crate::crun::Crun;
use crate::link::Link;
use crate::power::Power;
use crate::reaper::Reaper;
use crate::service::AgentService;
use futures::stream;
use lazaret_agent_api::{AGENT_PORT, STDIO_PORT, agent_ttrpc};
use log::{error, info};
use std::io;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::OnceCell;
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Boot(#[from] boot::BootError),
    #[error("cannot start the event loop: {0}")]
    Runtime(#[source] io::Error),
    #[error("cannot watch for ended processes: {0}")]
    Reaper(#[source] io::Error),
    #[error("cannot listen on vsock port {STDIO_PORT}: {0}")]
    Listen(#[source] io::Error),
    #[error("cannot reach the host on vsock port {AGENT_PORT}: {0}")]
    Dial(#[source] io::Error),
    #[error("cannot serve the host: {0}")]
    Serve(#[source] ttrpc::Error),
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    if std::process::id() != 1 && arguments.next().as_deref() == Some(docker::COMMAND) {
        std::process::exit(docker::launch_main(arguments));
    }
    if std::process::id() != 1 {
        eprintln!(
            "lazaret-agent: this is the init process of a lazaret guest; it runs as process 1 of a microVM only"
        );
        std::process::exit(2);
    }
    match run() {
        Ok(()) => info!("the host has ended the connection; resetting"),
        Err(failure) => {
            console::init();
            error!("{failure} ({} ms after the kernel's start); resetting", power::uptime_ms());
        }
    }
    power::reset();
}

fn run() -> Result<(), Failure> {
    let begun = Instant::now();
    boot::prepare()?;
    console::init();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::Runtime)?
        .block_on(serve(begun))
}

async fn serve(begun: Instant) -> Result<(), Failure> {
    let reaper = Reaper::start().map_err(Failure::Reaper)?;
    let containers = Arc::new(Containers::new(Crun::guest(reaper.clone())));

    // Before the dial: the dial tells the host that streams may come.
    let listener = vsock::bind(STDIO_PORT).map_err(Failure::Listen)?;
    tokio::spawn(stdio::listen(listener, containers.clone()));

    let host = VsockAddr::new(VMADDR_CID_HOST, AGENT_PORT);
    let stream = VsockStream::connect(host).await.map_err(Failure::Dial)?;
    info!(
        "ready {} ms after the kernel's start, {} ms after the agent's",
        power::uptime_ms(),
        begun.elapsed().as_millis()
    );

    // Before the first request is served: the host opens these streams only after ConfigureNetwork.
    if let Err(error) = network::listen() {
        error!("neither localhost nor names can be carried to and from the host: {error}");
    }
    let power = Arc::new(Power::default());
    let slots = Arc::new(OnceCell::new());
    let setting_aside = slots.clone();
    // Beside the host's first request; a failure is told by the first request that needs it.
    tokio::spawn(async move { network::of_guest(&setting_aside).await.map(drop) });
    let service = AgentService::new(containers, reaper, power.clone(), slots);
    let link = Link::new(stream, power.clone());
    let mut server = Server::new()
        .add_listener(Listener::new(stream::iter([Ok(link)])))
        .register_service(agent_ttrpc::create_agent(Arc::new(service)));
    server.start().await.map_err(Failure::Serve)?;
    power.ended().await;
    Ok(())
}
