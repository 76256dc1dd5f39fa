//! The private Docker daemon: its socket is there from the start, the daemon from the first connection on.
//!
//! ```text
//!   docker CLI ──► /run/docker.sock ── first connection ──► launch ── exec ──► dockerd
//!                  (the agent's)  ▲                         its mounts         (has inherited the socket)
//!   host ──► vsock 1026 ── relay ─┘
//! ```
//!
//! The agent only ever looks whether somebody waits at the socket. The connection itself is dockerd's to accept, which it
//! does as soon as it can serve. When dockerd ends, so does everything it has started; whoever still waits is told why, and
//! the next one starts it anew.

mod http;
mod launch;
mod relay;

pub(crate) use http::ping;
pub(crate) use launch::{COMMAND, main as launch_main};

use crate::cgroup::Cgroup;
use crate::container::Containers;
use crate::crun::oom_score;
use crate::reaper::{Child, Reaper};
use crate::vsock;
use lazaret_agent_api::{DOCKER_PORT, DOCKER_SOCKET, agent};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

/// How long dockerd may take to its first answer. It takes a second, on slow machines ten.
const START_DEADLINE: Duration = Duration::from_secs(100);
/// How long no new start is tried after one that failed.
const BREATH: Duration = Duration::from_secs(1);

/// The daemon's socket, and who starts it.
struct Docker {
    socket: AsyncFd<UnixListener>,
    /// Its disk outlives the guest.
    keep: bool,
    containers: Arc<Containers>,
    reaper: Arc<Reaper>,
    /// The last line it has written.
    last_words: Arc<Mutex<String>>,
}

/// Offers the socket from now on.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn offer(
    wanted: &agent::Docker,
    containers: Arc<Containers>,
    reaper: Arc<Reaper>,
) -> io::Result<()> {
    let socket = UnixListener::bind(DOCKER_SOCKET)?;
    // Of whoever is in the sandbox: there is nobody else on this machine.
    fs::set_permissions(DOCKER_SOCKET, Permissions::from_mode(0o666))?;
    socket.set_nonblocking(true)?;
    // SAFETY: a listener keeps its descriptor open for as long as it lives, and hands it out only borrowed.
    let socket = unsafe { AsyncFd::register(socket) }?;
    if wanted.export {
        tokio::spawn(relay::listen(vsock::bind(DOCKER_PORT)?));
    }
    let docker = Docker { socket, keep: wanted.keep, containers, reaper, last_words: Arc::default() };
    tokio::spawn(docker.serve());
    Ok(())
}

impl Docker {
    async fn serve(self) {
        loop {
            match self.socket.readable().await {
                Ok(mut ready) if !self.somebody_waits() => ready.clear_ready(),
                Ok(_) => {
                    let served = AtomicBool::new(false);
                    let end = self.run(&served).await;
                    log::info!("dockerd: {end}");
                    self.refuse(&end);
                    if !served.into_inner() {
                        // The Docker CLI asks again at once, to be told; and what has just failed fails again.
                        let _ = timeout(BREATH, self.refuse_on(&end)).await;
                    }
                }
                Err(error) => {
                    log::error!("{DOCKER_SOCKET} cannot be watched any more: {error}");
                    return;
                }
            }
        }
    }

    fn somebody_waits(&self) -> bool {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0)
    }

    /// Runs dockerd to its end, which is that of all it has started; tells how that was.
    async fn run(&self, served: &AtomicBool) -> String {
        let Some(container) = self.containers.living() else {
            return "no container is there whose files it could use".to_owned();
        };
        self.last_words().clear();
        let end = match self.start(container) {
            Ok(child) => tokio::select! {
                exit = child.exit => match exit.map_or(255, |exit| exit.status) {
                    137 => "it was killed".to_owned(),
                    status => format!("it has ended with status {status}"),
                },
                () = silent(served) => format!("it did not answer within {} s of its start", START_DEADLINE.as_secs()),
            },
            Err(error) => format!("it cannot be started: {error}"),
        };
        kill().await;
        match self.last_words().as_str() {
            "" => end,
            words => format!("{end}; its last words: {words}"),
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
        tokio::spawn(log_output(output, self.last_words.clone()));
        Ok(child)
    }

    /// Answers everybody who comes.
    async fn refuse_on(&self, why: &str) {
        while let Ok(mut ready) = self.socket.readable().await {
            self.refuse(why);
            if self.somebody_waits() {
                // Nobody can be answered, for want of memory or descriptors.
                sleep(BREATH).await;
            }
            ready.clear_ready();
        }
    }

    /// Answers everybody who waits.
    fn refuse(&self, why: &str) {
        while let Ok((stream, _)) = self.socket.get_ref().accept() {
            let why = why.to_owned();
            tokio::spawn(async move {
                if let Err(error) = http::refuse(stream, &why).await {
                    log::debug!(
                        "a client of the Docker socket has not heard why there is no answer: {error}"
                    );
                }
            });
        }
    }

    fn last_words(&self) -> MutexGuard<'_, String> {
        self.last_words.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Kills dockerd, and all it has started. On a machine that an agent is only tried on, that cgroup is somebody else's.
pub(crate) async fn kill() {
    if std::process::id() != 1 {
        return;
    }
    let killed = spawn_blocking(|| Cgroup::docker().kill()).await;
    if let Err(error) = killed.unwrap_or_else(|error| Err(io::Error::other(error))) {
        log::error!("what dockerd has started cannot be killed: {error}");
    }
}

/// Ends when dockerd has had its time and does not answer. That it has ended is told elsewhere.
async fn silent(served: &AtomicBool) {
    let begun = Instant::now();
    match timeout(START_DEADLINE, ping()).await {
        Ok(Ok(())) => {
            served.store(true, Ordering::Relaxed);
            log::info!("dockerd answers {} ms after its start", begun.elapsed().as_millis());
        }
        Ok(Err(line)) => log::debug!("{line}"),
        Err(_) => return,
    }
    std::future::pending().await
}

async fn log_output(output: pipe::Receiver, last_words: Arc<Mutex<String>>) {
    /// What of a line is kept.
    const LINE: usize = 1024;
    let mut lines = BufReader::new(output).split(b'\n');
    while let Ok(Some(mut line)) = lines.next_segment().await {
        line.truncate(LINE);
        let line = String::from_utf8_lossy(&line).into_owned();
        log::info!("dockerd: {line}");
        *last_words.lock().unwrap_or_else(PoisonError::into_inner) = line;
    }
}
