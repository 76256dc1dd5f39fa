//! The private Docker daemon: its socket is there from the start, the daemon from the first connection on.
//!
//! ```text
//!   docker CLI ──► /run/docker.sock ── gate ── relay ──► /run/lazaret/docker.sock ── first connection ──► launch ──► dockerd
//!                  in containers      who may                  ▲ root's                                 its mounts
//!   host ──► vsock 1026 ───────────────────── relay ────────────┘
//! ```
//!
//! The agent only looks whether a client waits at dockerd's own socket, which dockerd inherits, and asks the host for dockerd's disk
//! where there is none yet. dockerd accepts the connection itself, as soon as it can serve. When dockerd ends, everything that it
//! has started ends, too. Clients that still wait are answered with the reason, and the next client starts dockerd again.

mod disk;
mod gate;
mod http;
mod launch;
mod peer;
mod relay;
#[cfg(test)]
mod test_support;

pub(crate) use disk::DataDisk;
pub(crate) use http::ping;
pub(crate) use launch::{COMMAND, main as launch_main};

use crate::cgroup::Cgroup;
use crate::container::Containers;
use crate::crun::oom_score;
use crate::paths::DOCKERD_SOCKET;
use crate::reaper::{Child, Reaper};
use crate::sync::lock;
use crate::vsock;
use gate::{Gate, Users};
use lazaret_agent_api::{DOCKER_PORT, DOCKER_SOCKET, agent};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Backlog, listen};
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

/// How long dockerd may take to its first answer. It takes a second, on slow machines ten.
const START_DEADLINE: Duration = Duration::from_secs(100);
/// How long dockerd is not started again after a start that failed.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The daemon's socket, and who starts it.
struct Docker {
    socket: AsyncFd<UnixListener>,
    /// The daemon's disk outlives the guest.
    keep: bool,
    disk: Arc<DataDisk>,
    containers: Arc<Containers>,
    reaper: Arc<Reaper>,
    /// The last line that dockerd has written.
    last_line: Arc<Mutex<String>>,
}

/// Listens at the socket from now on.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn offer(
    wanted: &agent::Docker,
    disk: Arc<DataDisk>,
    containers: Arc<Containers>,
    reaper: Arc<Reaper>,
) -> io::Result<()> {
    let socket = UnixListener::bind(DOCKERD_SOCKET)?;
    fs::set_permissions(DOCKERD_SOCKET, Permissions::from_mode(0o600))?;
    socket.set_nonblocking(true)?;
    // While dockerd starts, as many clients wait as the gate lets in: a connection that finds no room fails.
    listen(&socket, Backlog::MAXCONN)?;
    let clients = tokio::net::UnixListener::bind(DOCKER_SOCKET)?;
    // The gate looks at who it is.
    fs::set_permissions(DOCKER_SOCKET, Permissions::from_mode(0o666))?;
    let users = if wanted.any_user { Users::All } else { Users::Privileged };
    tokio::spawn(Gate::new(users, DOCKERD_SOCKET.into()).serve(clients));
    // SAFETY: a listener keeps its descriptor open for as long as it lives, and hands it out only borrowed.
    let socket = unsafe { AsyncFd::register(socket) }?;
    if wanted.export {
        tokio::spawn(relay::listen(vsock::bind(DOCKER_PORT)?));
    }
    let docker = Docker { socket, keep: wanted.keep, disk, containers, reaper, last_line: Arc::default() };
    tokio::spawn(docker.serve());
    Ok(())
}

impl Docker {
    async fn serve(self) {
        loop {
            match self.socket.readable().await {
                Ok(mut ready) if !self.has_waiting_client() => ready.clear_ready(),
                Ok(_) => {
                    let answered = AtomicBool::new(false);
                    let end = self.run(&answered).await;
                    log::info!("dockerd: {end}");
                    self.refuse(&end);
                    if !answered.into_inner() {
                        // The Docker CLI asks again at once. It gets the reason, not another start, which would fail again.
                        let _ = timeout(RETRY_DELAY, self.refuse_until_retry(&end)).await;
                    }
                }
                Err(error) => {
                    log::error!("{DOCKERD_SOCKET} cannot be watched any more: {error}");
                    return;
                }
            }
        }
    }

    fn has_waiting_client(&self) -> bool {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0)
    }

    /// Runs dockerd to its end, which is the end of everything that dockerd has started. Returns how dockerd ended.
    async fn run(&self, answered: &AtomicBool) -> String {
        // First, because it takes time: a container whose files dockerd is to have may end meanwhile.
        if let Err(error) = self.disk.ready().await {
            return format!("it has no disk: {error}");
        }
        let Some(container) = self.containers.take_docker_view() else {
            return "the sandbox has no running container whose files it could use".to_owned();
        };
        self.last_line().clear();
        let end = match self.start(container) {
            Ok(child) => tokio::select! {
                exit = child.exit => match exit.map_or(255, |exit| exit.status) {
                    137 => "it was killed".to_owned(),
                    status => format!("it ended with status {status}"),
                },
                () = start_timeout(answered) => format!("it did not answer within {} s of its start", START_DEADLINE.as_secs()),
            },
            Err(error) => format!("it cannot be started: {error}"),
        };
        kill().await;
        match self.last_line().as_str() {
            "" => end,
            line => format!("{end}; the last line of its output: {line}"),
        }
    }

    fn start(&self, container: libc::pid_t) -> io::Result<Child> {
        let (output, theirs) = io::pipe()?;
        let mut command = Command::new("/proc/self/exe");
        command.args([COMMAND, &container.to_string(), launch::Disk::of(self.keep).name()]);
        command.env_clear().current_dir("/").process_group(0);
        command.stdin(Stdio::null()).stdout(theirs.try_clone()?).stderr(theirs);
        let socket = self.socket.as_raw_fd();
        // SAFETY: between fork and exec it makes one system call, on a descriptor that is open.
        unsafe {
            command.pre_exec(move || match libc::dup2(socket, launch::SOCKET) {
                -1 => Err(io::Error::last_os_error()),
                _ if socket == launch::SOCKET && libc::fcntl(socket, libc::F_SETFD, 0) < 0 => {
                    Err(io::Error::last_os_error())
                }
                _ => Ok(()),
            });
        }
        oom_score(&mut command, 0);
        let child = self.reaper.spawn(&mut command)?;
        // The command holds the other end of the pipe, which is to be dockerd's alone.
        drop(command);
        let output = pipe::Receiver::from_owned_fd(output.into())?;
        tokio::spawn(log_output(output, self.last_line.clone()));
        Ok(child)
    }

    /// Answers every client that comes with `why`, until this is dropped.
    async fn refuse_until_retry(&self, why: &str) {
        while let Ok(mut ready) = self.socket.readable().await {
            self.refuse(why);
            if self.has_waiting_client() {
                // No client can be answered, for want of memory or descriptors.
                sleep(RETRY_DELAY).await;
            }
            ready.clear_ready();
        }
    }

    /// Answers every client that waits with `why`.
    fn refuse(&self, why: &str) {
        while let Ok((stream, _)) = self.socket.get_ref().accept() {
            let why = why.to_owned();
            let stream = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream));
            tokio::spawn(async move {
                let told = async { http::refuse(stream?, http::Status::Unavailable, &why).await };
                if let Err(error) = told.await {
                    log::debug!("a client of the Docker socket was not told why there is no daemon: {error}");
                }
            });
        }
    }

    fn last_line(&self) -> MutexGuard<'_, String> {
        lock(&self.last_line)
    }
}

/// Kills dockerd and everything it has started, by their cgroup. An agent that is not process 1 runs in a test, on a machine
/// whose `/docker` cgroup is not the agent's.
pub(crate) async fn kill() {
    if std::process::id() != 1 {
        return;
    }
    let killed = spawn_blocking(|| Cgroup::docker().kill()).await;
    if let Err(error) = killed.unwrap_or_else(|error| Err(io::Error::other(error))) {
        log::error!("what dockerd has started cannot be killed: {error}");
    }
}

/// Ends when dockerd has not answered within [`START_DEADLINE`]. It does not watch whether dockerd ends.
async fn start_timeout(answered: &AtomicBool) {
    let begun = Instant::now();
    match timeout(START_DEADLINE, ping()).await {
        Ok(Ok(())) => {
            answered.store(true, Ordering::Relaxed);
            log::info!("dockerd answers {} ms after its start", begun.elapsed().as_millis());
        }
        Ok(Err(line)) => log::debug!("{line}"),
        Err(_) => return,
    }
    std::future::pending().await
}

async fn log_output(output: pipe::Receiver, last_line: Arc<Mutex<String>>) {
    /// How many bytes of a line are kept.
    const MAX_LINE: usize = 1024;
    let mut lines = BufReader::new(output).split(b'\n');
    while let Ok(Some(mut line)) = lines.next_segment().await {
        line.truncate(MAX_LINE);
        let line = String::from_utf8_lossy(&line).into_owned();
        log::info!("dockerd: {line}");
        *lock(&last_line) = line;
    }
}
