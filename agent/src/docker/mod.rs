//! The private Docker daemon: its socket is there from the start, the daemon from the first connection on.
//!
//! ```text
//!   docker CLI ──► /run/docker.sock ── first connection ──► launch ── exec ──► dockerd
//!                  (the agent's)                            its mounts         (has inherited the socket)
//! ```
//!
//! The agent only ever looks whether somebody waits at the socket. The connection itself is dockerd's to accept, which it
//! does as soon as it can serve. When dockerd ends, whoever still waits is told why, and the next one starts it anew.

mod launch;

pub(crate) use launch::{COMMAND, main as launch_main};

use crate::container::Containers;
use crate::crun::oom_score;
use crate::reaper::{Child, Reaper};
use lazaret_agent_api::DOCKER_SOCKET;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

/// How long a client may take to say what it wants before it is told that there is no daemon.
const PATIENCE: Duration = Duration::from_secs(2);

/// The daemon's socket, and who starts it.
struct Docker {
    socket: AsyncFd<UnixListener>,
    containers: Arc<Containers>,
    reaper: Arc<Reaper>,
    /// The last line it has written.
    last_words: Arc<Mutex<String>>,
}

/// Offers the socket from now on.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn offer(containers: Arc<Containers>, reaper: Arc<Reaper>) -> io::Result<()> {
    let socket = UnixListener::bind(DOCKER_SOCKET)?;
    // Of whoever is in the sandbox: there is nobody else on this machine.
    fs::set_permissions(DOCKER_SOCKET, Permissions::from_mode(0o666))?;
    socket.set_nonblocking(true)?;
    // SAFETY: a listener keeps its descriptor open for as long as it lives, and hands it out only borrowed.
    let socket = unsafe { AsyncFd::register(socket) }?;
    let docker = Docker { socket, containers, reaper, last_words: Arc::default() };
    tokio::spawn(docker.serve());
    Ok(())
}

impl Docker {
    async fn serve(self) {
        loop {
            match self.socket.readable().await {
                Ok(mut ready) if !self.somebody_waits() => ready.clear_ready(),
                Ok(_) => {
                    let end = self.run().await;
                    log::info!("dockerd: {end}");
                    self.refuse(&end);
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

    /// Runs dockerd to its end; tells how that was.
    async fn run(&self) -> String {
        let Some(container) = self.containers.running() else {
            return "no container runs whose files it could use".to_owned();
        };
        match self.start(container) {
            Ok(child) => {
                let status = child.exit.await.map_or(255, |exit| exit.status);
                let said = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
                format!("it has ended with status {status}; its last words: {said}")
            }
            Err(error) => format!("it cannot be started: {error}"),
        }
    }

    fn start(&self, container: libc::pid_t) -> io::Result<Child> {
        let (output, theirs) = io::pipe()?;
        let mut command = Command::new("/proc/self/exe");
        command.args([COMMAND, &container.to_string()]).env_clear().current_dir("/").process_group(0);
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

    /// Answers everybody who waits.
    fn refuse(&self, why: &str) {
        while let Ok((stream, _)) = self.socket.get_ref().accept() {
            let answer = refusal(why);
            tokio::spawn(async move {
                if let Err(error) = tell(stream, answer).await {
                    log::debug!(
                        "a client of the Docker socket has not heard why there is no answer: {error}"
                    );
                }
            });
        }
    }
}

/// What the Docker API says when something is wrong with the daemon.
fn refusal(why: &str) -> String {
    let message = serde_json::json!({ "message": format!("the sandbox's Docker daemon: {why}") }).to_string();
    format!(
        "HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{message}",
        message.len()
    )
}

/// Waits for the client's question, so that it reads the answer.
async fn tell(stream: std::os::unix::net::UnixStream, answer: String) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    let mut question = [0; 4096];
    let question = stream.read(&mut question);
    match tokio::time::timeout(PATIENCE, question).await {
        Ok(Err(error)) => return Err(error),
        Ok(Ok(_)) => {}
        Err(_) => return Err(ErrorKind::TimedOut.into()),
    }
    stream.write_all(answer.as_bytes()).await
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
