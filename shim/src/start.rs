//! The `start` action: everything that can fail early fails here, with one line; then the server is left running and
//! its address printed.
//!
//! ```text
//!   containerd ── start ──► this process: reads, checks, binds the socket
//!                             ├─ fork ──► the server: own session, own mount namespace; boots the VM at once
//!                             │◄─ ready ──┘
//!   containerd ◄─ address ────┘
//! ```
//!
//! The fork comes before any thread. The server has nothing that containerd could wait for: it leaves containerd's session,
//! standard streams and descriptors.

use crate::args::Args;
use crate::bootstrap::{self, Bootstrap};
use crate::logging;
use crate::sandbox::membership;
use crate::server::{self, Setup};
use crate::socket::{self, Bound};
use crate::state::{STATE_ROOT, StateDir};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, dup2_stderr, dup2_stdin, dup2_stdout, fork, getppid, setsid};
use std::fs::{self, File, OpenOptions};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// What the server writes to the waiting `start` when it is ready. Any other bytes are an error message.
const READY: &[u8] = b"\0";

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Bootstrap(#[from] bootstrap::BootstrapError),
    #[error(transparent)]
    Setup(#[from] crate::error::Error),
    #[error("the sandbox {sandbox} that container {id} is to join does not run")]
    NoSandbox { sandbox: String, id: String },
    #[error("{}: {source}", path.display())]
    AddressFile { path: PathBuf, source: io::Error },
    #[error("the shim's server did not start: {0}")]
    Server(String),
    #[error("{0}")]
    Os(#[from] io::Error),
    #[error("the reply to containerd: {0}")]
    Reply(#[from] protobuf::Error),
}

/// Starts the sandbox's server, or finds the one of the pod; returns what to print.
///
/// In the server's process this does not return: it ends with the sandbox.
///
/// # Errors
/// [`StartError`], in one line; nothing is left then.
pub fn run(args: &Args) -> Result<Vec<u8>, StartError> {
    let bundle = std::env::current_dir()?;
    let environment = std::env::var("TTRPC_ADDRESS").unwrap_or_default();
    let bootstrap = Bootstrap::parse(&bootstrap::read_stdin()?, args, environment)?;
    let (spec, config) = server::load(&bundle, bootstrap.config_path.as_deref())?;
    let sandbox = membership::sandbox_id(&spec, &args.id)?.to_owned();
    let directory = bootstrap.socket_dir.clone().unwrap_or_else(|| socket::SOCKET_DIR.into());
    let path = socket::path(&directory, &args.address, &args.namespace, &sandbox);
    let address = socket::address(&path);

    if sandbox != args.id {
        let state = StateDir::new(Path::new(STATE_ROOT), &args.namespace, &sandbox);
        check_sandbox(&state, &path, &sandbox, &args.id)?;
    } else if let Bound::Listener(listener) = socket::bind(&path)? {
        let setup = Setup {
            namespace: args.namespace.clone(),
            id: args.id.clone(),
            bundle: bundle.clone(),
            spec,
            config,
            ttrpc_address: bootstrap.ttrpc_address.clone(),
            state: StateDir::new(Path::new(STATE_ROOT), &args.namespace, &args.id),
            socket: path.clone(),
            listener,
        };
        spawn_server(setup, &bootstrap).inspect_err(|_| _ = fs::remove_file(&path))?;
    }
    // containerd before 2.0 finds the shim again by this file.
    let file = bundle.join("address");
    fs::write(&file, &address).map_err(|source| StartError::AddressFile { path: file, source })?;
    Ok(bootstrap.reply(&address)?)
}

/// Checks that a sandbox answers at `socket` and takes container `id`, as far as can be told from here: its shim looks closer
/// when the container is made.
fn check_sandbox(state: &StateDir, socket: &Path, sandbox: &str, id: &str) -> Result<(), StartError> {
    if UnixStream::connect(socket).is_err() {
        return Err(StartError::NoSandbox { sandbox: sandbox.into(), id: id.into() });
    }
    match state.load() {
        Some(record) if record.shared && record.socket == socket => Ok(()),
        _ => Err(membership::not_shared(id, sandbox).into()),
    }
}

fn spawn_server(setup: Setup, bootstrap: &Bootstrap) -> Result<(), StartError> {
    let (reader, writer) = io::pipe()?;
    let score = oom_score(getppid().as_raw());
    // SAFETY: no thread has been started, so the child may do whatever this process could.
    match unsafe { fork() }.map_err(io::Error::from)? {
        ForkResult::Parent { child } => {
            drop(writer);
            wait_ready(reader).inspect_err(|_| _ = waitpid(child, None))
        }
        ForkResult::Child => {
            drop(reader);
            let status = i32::from(serve(setup, bootstrap, writer, score).is_err());
            std::process::exit(status);
        }
    }
}

fn wait_ready(mut reader: PipeReader) -> Result<(), StartError> {
    let mut reply = Vec::new();
    reader.read_to_end(&mut reply)?;
    match reply.as_slice() {
        READY => Ok(()),
        [] => Err(StartError::Server("the server ended without an error message".into())),
        line => Err(StartError::Server(String::from_utf8_lossy(line).into_owned())),
    }
}

/// The server's process, from the fork to its end.
fn serve(setup: Setup, bootstrap: &Bootstrap, mut ready: PipeWriter, score: Option<i32>) -> io::Result<()> {
    let result = detach(&[setup.listener.as_raw_fd(), ready.as_raw_fd()])
        .and_then(|()| std::env::set_current_dir("/"))
        .and_then(|()| server::prepare(&setup.state, &setup.socket));
    if let Err(error) = result {
        return ready.write_all(error.to_string().as_bytes());
    }
    if let Some(score) = score {
        // Best effort: without it the shim is as likely a victim as containerd.
        let _ = fs::write("/proc/self/oom_score_adj", score.to_string());
    }
    logging::init(&setup.bundle.join("log"), format!("{}/{}", setup.namespace, setup.id), bootstrap.debug);
    for options in &bootstrap.ignored {
        log::info!("runtime options {options} mean nothing to lazaret and are ignored");
    }
    ready.write_all(READY)?;
    drop(ready);
    server::run(setup).inspect_err(|error| log::error!("{error}"))
}

/// Leaves containerd's session, streams and descriptors.
fn detach(keep: &[RawFd]) -> io::Result<()> {
    setsid()?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    drop(null);
    let open: Vec<RawFd> = fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2 && !keep.contains(fd))
        .collect();
    for fd in open {
        // SAFETY: what is closed here was inherited, and nothing in this process owns it; the directory's own
        // descriptor, which is in the list, is closed by now and closing it again does no harm.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

/// One more than containerd's, so that the shim is a likelier victim than containerd is.
fn oom_score(containerd: i32) -> Option<i32> {
    let mut text = String::new();
    File::open(format!("/proc/{containerd}/oom_score_adj")).ok()?.read_to_string(&mut text).ok()?;
    Some((text.trim().parse::<i32>().ok()? + 1).min(1000))
}

#[cfg(test)]
#[path = "start_test.rs"]
mod tests;
