//! The VMM's process, as the shim sees it: how it is spawned, what is said over the control channel, and how it ends.
//!
//! One task, [`supervise`], owns the process and reads the channel; everybody else watches its word for how the VM
//! ended. That word comes exactly once, whether the guest powered off, the VMM was killed or the channel broke.

use lazaret_vmm_wire::{Cause, Channel, ChannelError, Event, Request, VmConfig};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::{Notify, mpsc, watch};

/// The descriptor the VMM finds its end of the control channel at.
const CONTROL_FD: i32 = 3;
/// How long the VMM may take to end after it was asked to, or after it said that the VM is gone.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// What is read of the VMM's standard error; it has nothing to say there unless something is wrong.
const MAX_STDERR: u64 = 64 * 1024;
/// How many lines of the guest's console are shown with an unexpected end.
const CONSOLE_LINES: usize = 3;

/// What a VM is spawned into.
#[derive(Debug)]
pub(crate) struct Place {
    pub binary: PathBuf,
    /// `None` makes a new, empty network namespace.
    pub network: Option<OwnedFd>,
    /// `cgroup.procs` of the cgroup to join.
    pub cgroup: Option<OwnedFd>,
}

/// Why there is no VM any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    /// One line.
    pub reason: String,
    /// The shim asked for it.
    pub requested: bool,
    /// The guest's last console lines, oldest first.
    pub console: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum VmError {
    #[error("cannot run {}: {source}; is lazaret installed completely?", path.display())]
    Spawn { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("{0}")]
    Os(#[from] io::Error),
}

/// A VM: its process, and the way to talk to it.
#[derive(Debug)]
pub(crate) struct Vm {
    pid: u32,
    channel: Arc<AsyncFd<Channel>>,
    ended: watch::Receiver<Option<Ended>>,
    /// True once the process is reaped: nothing of it is left in its cgroup.
    reaped: watch::Receiver<bool>,
    kill: Arc<Notify>,
}

/// A stream the guest opened to one of the ports it may.
pub(super) type Incoming = (u32, OwnedFd);

impl Vm {
    /// Starts the VMM's process in `place`; it waits for [`Vm::boot`]. Streams that the guest opens come out of the
    /// second value.
    ///
    /// # Errors
    /// [`VmError`].
    pub(crate) fn spawn(place: Place) -> Result<(Self, mpsc::Receiver<Incoming>), VmError> {
        let (ours, theirs) = Channel::pair()?;
        let mut command = std::process::Command::new(&place.binary);
        command.arg("--control-fd").arg(CONTROL_FD.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.env_clear();
        command.process_group(0);
        let (network, cgroup) = (place.network, place.cgroup);
        let enter = move || enter(theirs.as_fd(), network.as_ref(), cgroup.as_ref());
        // SAFETY: `enter` runs between fork and exec, where only async-signal-safe calls are allowed: it makes plain
        // system calls, and neither allocates nor locks.
        unsafe { command.pre_exec(enter) };
        let mut command = Command::from(command);
        command.kill_on_drop(true);
        let mut child =
            command.spawn().map_err(|source| VmError::Spawn { path: place.binary.clone(), source })?;
        // The command holds the VMM's end of the channel; while we had it open, the VMM's death would go unseen.
        drop(command);
        let pid = child.id().unwrap_or_default();
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(log_stderr(stderr));
        }
        nonblocking(ours.as_fd())?;
        // SAFETY: a channel keeps its descriptor open for as long as it lives, and hands it out only borrowed.
        let channel = Arc::new(unsafe { AsyncFd::register(ours) }.map_err(io::Error::from)?);
        let (ended_to, ended) = watch::channel(None);
        let (reaped_to, reaped) = watch::channel(false);
        let (incoming_to, incoming) = mpsc::channel(4);
        let kill = Arc::new(Notify::new());
        let supervisor = Supervisor { channel: channel.clone(), ended: ended_to, incoming: incoming_to };
        tokio::spawn(supervisor.run(child, reaped_to, kill.clone()));
        Ok((Self { pid, channel, ended, reaped, kill }, incoming))
    }

    /// The VMM's pid on the host, which stands for the sandbox.
    #[must_use]
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Boots. The descriptors are those of [`Request::Boot`].
    ///
    /// # Errors
    /// [`VmError::Channel`] when the VMM is gone.
    pub(crate) async fn boot(&self, config: VmConfig, descriptors: &[BorrowedFd<'_>]) -> Result<(), VmError> {
        self.send(&Request::Boot(config), descriptors).await
    }

    /// A stream to `port` of the guest. A guest that refuses shows as end of file on it.
    ///
    /// # Errors
    /// [`VmError`] when the VMM is gone or descriptors run out.
    pub(crate) async fn connect(&self, port: u32) -> Result<UnixStream, VmError> {
        let (ours, theirs) = StdUnixStream::pair()?;
        self.send(&Request::Connect { port }, &[theirs.as_fd()]).await?;
        ours.set_nonblocking(true)?;
        Ok(UnixStream::from_std(ours)?)
    }

    /// Ends the VM, by force if it must be, and waits until nothing of it is left.
    pub(crate) async fn stop(&self) {
        let mut reaped = self.reaped.clone();
        // A VMM that is gone, or takes no message, is dealt with below.
        let _ = tokio::time::timeout(END_TIMEOUT, self.send(&Request::Stop, &[])).await;
        if tokio::time::timeout(END_TIMEOUT, reaped.wait_for(|reaped| *reaped)).await.is_err() {
            log::warn!("lazaret-vmm does not end; it is killed");
            self.kill.notify_one();
            let _ = tokio::time::timeout(END_TIMEOUT, reaped.wait_for(|reaped| *reaped)).await;
        }
    }

    /// Whether, and how, the VM ended.
    #[must_use]
    pub(crate) fn ended(&self) -> watch::Receiver<Option<Ended>> {
        self.ended.clone()
    }

    async fn send(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<(), VmError> {
        loop {
            let mut ready = self.channel.writable().await?;
            match self.channel.get_ref().send(request, descriptors) {
                Err(ChannelError::WouldBlock) => ready.clear_ready(),
                result => return Ok(result?),
            }
        }
    }
}

/// Runs in the VMM's process before its binary does.
fn enter(control: BorrowedFd<'_>, network: Option<&OwnedFd>, cgroup: Option<&OwnedFd>) -> io::Result<()> {
    let check = |result: libc::c_int| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    if let Some(cgroup) = cgroup {
        // SAFETY: a write of one byte from a constant to a descriptor we own.
        let written = unsafe { libc::write(cgroup.as_raw_fd(), c"0".as_ptr().cast(), 1) };
        check(if written < 0 { -1 } else { 0 })?;
    }
    // SAFETY: plain system calls on a descriptor we own.
    check(unsafe {
        match network {
            Some(namespace) => libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET),
            None => libc::unshare(libc::CLONE_NEWNET),
        }
    })?;
    let raw = control.as_raw_fd();
    // SAFETY: as above. dup2 onto itself would leave close-on-exec set, so that case clears it.
    check(unsafe {
        if raw == CONTROL_FD { libc::fcntl(raw, libc::F_SETFD, 0) } else { libc::dup2(raw, CONTROL_FD) }
    })
}

struct Supervisor {
    channel: Arc<AsyncFd<Channel>>,
    ended: watch::Sender<Option<Ended>>,
    incoming: mpsc::Sender<Incoming>,
}

impl Supervisor {
    async fn run(mut self, mut child: Child, reaped: watch::Sender<bool>, kill: Arc<Notify>) {
        let status = tokio::select! {
            status = child.wait() => Some(status),
            () = self.listen() => None,
            () = kill.notified() => None,
        };
        let status = match status {
            Some(status) => {
                // What the VMM said last may still be in the channel.
                self.drain();
                status
            }
            None => tokio::select! {
                status = child.wait() => status,
                () = kill.notified() => end_by_force(&mut child).await,
                () = tokio::time::sleep(END_TIMEOUT) => end_by_force(&mut child).await,
            },
        };
        let how = match status {
            Ok(status) => match status.signal() {
                Some(signal) => format!("lazaret-vmm was ended by signal {signal}"),
                None => format!("lazaret-vmm ended with status {}", status.code().unwrap_or_default()),
            },
            Err(error) => format!("lazaret-vmm is lost: {error}"),
        };
        self.end(Ended { reason: how, requested: false, console: Vec::new() });
        reaped.send_replace(true);
    }

    /// Reads the channel until it says how the VM ended, or breaks.
    async fn listen(&mut self) {
        loop {
            let Ok(mut ready) = self.channel.readable().await else { return };
            match self.channel.get_ref().receive::<Event>() {
                Ok((event, descriptors)) => {
                    drop(ready);
                    if self.handle(event, descriptors) {
                        return;
                    }
                }
                Err(ChannelError::WouldBlock) => ready.clear_ready(),
                Err(ChannelError::Closed) => return,
                Err(error) => {
                    self.end(Ended { reason: error.to_string(), requested: false, console: Vec::new() });
                    return;
                }
            }
        }
    }

    fn drain(&mut self) {
        while let Ok((event, descriptors)) = self.channel.get_ref().receive::<Event>() {
            if self.handle(event, descriptors) {
                return;
            }
        }
    }

    /// True when nothing follows.
    fn handle(&mut self, event: Event, descriptors: Vec<OwnedFd>) -> bool {
        match event {
            Event::Running => log::debug!("the vCPUs run"),
            Event::Incoming { port } => {
                let Some(stream) = descriptors.into_iter().next() else { return false };
                if self.incoming.try_send((port, stream)).is_err() {
                    log::warn!("a stream the guest opened to port {port} is refused: nobody expects it");
                }
            }
            Event::Stopped(stopped) => {
                let requested = stopped.cause == Cause::Requested;
                let reason = match stopped.cause {
                    Cause::Reset => "the guest reset or powered off".into(),
                    Cause::Requested => "the VM was stopped".into(),
                    Cause::Error(line) => line,
                };
                self.end(Ended { reason, requested, console: stopped.console });
                return true;
            }
        }
        false
    }

    /// The first word counts.
    fn end(&mut self, ended: Ended) {
        self.ended.send_if_modified(|slot| {
            let first = slot.is_none();
            slot.get_or_insert(ended);
            first
        });
    }
}

impl Ended {
    /// The reason with what the guest's console says of it, in one line.
    #[must_use]
    pub(crate) fn line(&self) -> String {
        let said: Vec<&str> = self.said().collect();
        let panic = said.iter().position(|line| line.contains("Kernel panic"));
        let telling = match panic {
            // What the agent said before its death is why the kernel lost its init.
            Some(at) => {
                let agent = said[..at].iter().rposition(|line| line.starts_with("lazaret-agent"));
                agent.into_iter().chain([at]).map(|at| said[at]).collect()
            }
            None => said[said.len().saturating_sub(CONSOLE_LINES)..].to_vec(),
        };
        if telling.is_empty() {
            self.reason.clone()
        } else {
            format!("{}; its console: {}", self.reason, telling.join(" | "))
        }
    }

    /// All that is left of the console, in one line, for the log.
    #[must_use]
    pub(crate) fn console_line(&self) -> String {
        self.said().collect::<Vec<_>>().join(" | ")
    }

    /// The console's lines, without the kernel's time stamps.
    fn said(&self) -> impl Iterator<Item = &str> {
        let bare = |line: &'_ str| -> usize {
            match line.strip_prefix('[').and_then(|rest| rest.find("] ")) {
                Some(end) if line[1..=end].trim().parse::<f64>().is_ok() => end + 3,
                _ => 0,
            }
        };
        let lines = self.console.iter().map(|line| line.trim());
        lines.map(move |line| line[bare(line)..].trim_start()).filter(|line| !line.is_empty())
    }
}

async fn end_by_force(child: &mut Child) -> io::Result<std::process::ExitStatus> {
    child.start_kill()?;
    child.wait().await
}

async fn log_stderr(stderr: ChildStderr) {
    let mut lines = BufReader::new(stderr.take(MAX_STDERR)).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        log::warn!("lazaret-vmm: {line}");
    }
}

fn nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Opens a network namespace by its path.
///
/// # Errors
/// The kernel's, with the path.
pub(super) fn open_namespace(path: &Path) -> io::Result<OwnedFd> {
    std::fs::File::open(path).map(Into::into).map_err(|error| {
        io::Error::new(error.kind(), format!("network namespace {}: {error}", path.display()))
    })
}

#[cfg(test)]
#[path = "vm_test.rs"]
mod tests;
