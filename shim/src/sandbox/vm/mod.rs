//! The VMM's process, as the shim sees it: how it is spawned, what is said over the control channel, and how it ends.
//!
//! One task, [`Supervisor::run`], owns the process and reads the channel. Everybody else watches for its [`ExitReport`],
//! which says how the VM ended. There is exactly one, whether the guest powered off, the VMM was killed or the channel
//! broke.

mod exit_report;
pub(in crate::sandbox) mod launch;
mod supervisor;

pub(crate) use exit_report::ExitReport;
use lazaret_vmm_wire::{Channel, ChannelError, DiskState, Event, Name, Nic, NicState, Request, VmConfig};
use nix::sched::{CloneFlags, unshare};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use supervisor::{Supervisor, log_stderr};
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::sync::{Notify, mpsc, watch};

/// The descriptor the VMM finds its end of the control channel at.
const CONTROL_FD: i32 = 3;
/// How long the VMM may take to end after it was asked to, or after it said that the VM is gone.
const END_TIMEOUT: Duration = if cfg!(test) { Duration::from_secs(1) } else { Duration::from_secs(5) };
/// How long the VMM may take to plug or unplug a network interface, to attach a disk, to pause or to resume.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What a VM is spawned into.
#[derive(Debug)]
pub(crate) struct Place {
    pub binary: PathBuf,
    /// `None` makes a new, empty network namespace.
    pub network: Option<OwnedFd>,
    /// `cgroup.procs` of the cgroup to join.
    pub cgroup: Option<OwnedFd>,
}

#[derive(Debug, thiserror::Error)]
pub enum VmError {
    #[error("cannot run {}: {source}; is lazaret installed completely?", path.display())]
    Spawn { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("slot {slot} of the VM: {reason}")]
    Nic { slot: u8, reason: String },
    #[error("disk {index} of the VM: {reason}")]
    Disk { index: u8, reason: String },
    #[error("cannot {what} the VM: {reason}")]
    Pause { what: &'static str, reason: String },
    #[error("{0}")]
    Os(#[from] io::Error),
}

/// A VM: its process, and the way to talk to it.
#[derive(Debug)]
pub(crate) struct Vm {
    pid: u32,
    channel: Arc<AsyncFd<Channel>>,
    ended: watch::Receiver<Option<ExitReport>>,
    /// True once the process is reaped: nothing of it is left in its cgroup.
    reaped: watch::Receiver<bool>,
    kill: Arc<Notify>,
    /// What the VMM last said of each of its slots for network interfaces.
    nics: Arc<watch::Sender<HashMap<u8, NicState>>>,
    /// What the VMM last said of each of its disks.
    disks: Arc<watch::Sender<HashMap<u8, DiskState>>>,
    /// The VMM's answer to the last request to pause or to resume.
    paused: Arc<watch::Sender<Option<Event>>>,
    network_namespace: Arc<OwnedFd>,
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
        let network_namespace = Arc::new(place.network.map_or_else(new_namespace, Ok)?);
        let (network, cgroup) = (network_namespace.clone(), place.cgroup);
        let enter = move || enter(theirs.as_fd(), network.as_fd(), cgroup.as_ref());
        // SAFETY: `enter` runs between fork and exec, where only async-signal-safe calls are allowed: it makes plain
        // system calls, and neither allocates nor locks.
        unsafe { command.pre_exec(enter) };
        let mut command = Command::from(command);
        command.kill_on_drop(true);
        let mut child =
            command.spawn().map_err(|source| VmError::Spawn { path: place.binary.clone(), source })?;
        // The command holds the VMM's end of the channel. While the shim has that end open, it does not see the VMM's end.
        drop(command);
        let pid = child.id().unwrap_or_default();
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(log_stderr(stderr));
        }
        set_nonblocking(ours.as_fd())?;
        // SAFETY: a channel keeps its descriptor open for as long as it lives, and hands it out only borrowed.
        let channel = Arc::new(unsafe { AsyncFd::register(ours) }.map_err(io::Error::from)?);
        let nics = Arc::new(watch::channel(HashMap::new()).0);
        let disks = Arc::new(watch::channel(HashMap::new()).0);
        let paused = Arc::new(watch::channel(None).0);
        let (ended_to, ended) = watch::channel(None);
        let (reaped_to, reaped) = watch::channel(false);
        let (incoming_to, incoming) = mpsc::channel(4);
        let kill = Arc::new(Notify::new());
        let supervisor = Supervisor {
            channel: channel.clone(),
            ended: ended_to,
            incoming: incoming_to,
            nics: nics.clone(),
            disks: disks.clone(),
            paused: paused.clone(),
        };
        tokio::spawn(supervisor.run(child, reaped_to, kill.clone()));
        Ok((Self { pid, channel, ended, reaped, kill, nics, disks, paused, network_namespace }, incoming))
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
    pub(crate) async fn boot(
        &self,
        config: VmConfig,
        descriptors: &[(Name, BorrowedFd<'_>)],
    ) -> Result<(), VmError> {
        self.send(&Request::Boot(config), descriptors).await
    }

    /// A stream to `port` of the guest. When the guest refuses the connection, the stream is at its end of file.
    ///
    /// # Errors
    /// [`VmError`] when the VMM is gone or descriptors run out.
    pub(crate) async fn connect(&self, port: u32) -> Result<UnixStream, VmError> {
        self.dialer().connect(port).await
    }

    /// Opens streams to the guest for a task that does not have the VM.
    #[must_use]
    pub(crate) fn dialer(&self) -> Dialer {
        Dialer { channel: self.channel.clone() }
    }

    /// The network namespace that the VMM was started in.
    #[must_use]
    pub(crate) fn network_namespace(&self) -> Arc<OwnedFd> {
        self.network_namespace.clone()
    }

    /// Plugs the tap whose queues are given into a slot, and waits until the link is up.
    ///
    /// # Errors
    /// [`VmError::Nic`] when the VMM refuses or does not answer; [`VmError::Channel`] when it is gone.
    pub(crate) async fn plug_nic(&self, slot: u8, nic: Nic, queues: &[OwnedFd]) -> Result<(), VmError> {
        let queues: Vec<_> =
            (0..).zip(queues).map(|(number, queue)| (Name::Tap(number), queue.as_fd())).collect();
        match self.change_nic(slot, &Request::PlugNic { slot, nic }, &queues).await? {
            NicState::Plugged => Ok(()),
            NicState::Unplugged => Err(VmError::Nic { slot, reason: "the tap device has gone".into() }),
            NicState::Refused(reason) => Err(VmError::Nic { slot, reason }),
        }
    }

    /// Takes the link of a slot down, and waits until the VMM has closed the tap.
    ///
    /// # Errors
    /// As [`Vm::plug_nic`]; that nothing was plugged in is one.
    pub(crate) async fn unplug_nic(&self, slot: u8) -> Result<(), VmError> {
        match self.change_nic(slot, &Request::UnplugNic { slot }, &[]).await? {
            NicState::Refused(reason) => Err(VmError::Nic { slot, reason }),
            NicState::Plugged | NicState::Unplugged => Ok(()),
        }
    }

    /// Sends a request that changes a slot, and waits for what becomes of the slot.
    async fn change_nic(
        &self,
        slot: u8,
        request: &Request,
        queues: &[(Name, BorrowedFd<'_>)],
    ) -> Result<NicState, VmError> {
        let answer = self.change(&self.nics, slot, request, queues).await?;
        answer.map_err(|reason| VmError::Nic { slot, reason })
    }

    /// Attaches a file to a disk that has none, and waits until the disk has it.
    ///
    /// # Errors
    /// [`VmError::Disk`] when the VMM refuses or does not answer; [`VmError::Channel`] when it is gone.
    pub(crate) async fn attach_disk(&self, index: u8, file: BorrowedFd<'_>) -> Result<(), VmError> {
        let request = Request::AttachDisk { index };
        let answer = self.change(&self.disks, index, &request, &[(Name::Disk(index), file)]).await?;
        match answer {
            Ok(DiskState::Attached) => Ok(()),
            Ok(DiskState::Refused(reason)) | Err(reason) => Err(VmError::Disk { index, reason }),
        }
    }

    /// Sends a request, and waits for what the VMM says in `states` of the device with this `number`. The inner error is why
    /// it says nothing.
    async fn change<T: Clone>(
        &self,
        states: &watch::Sender<HashMap<u8, T>>,
        number: u8,
        request: &Request,
        descriptors: &[(Name, BorrowedFd<'_>)],
    ) -> Result<Result<T, String>, VmError> {
        states.send_modify(|states| _ = states.remove(&number));
        let (mut states, mut ended) = (states.subscribe(), self.ended());
        self.send(request, descriptors).await?;
        let answer = async {
            tokio::select! {
                states = states.wait_for(|states| states.contains_key(&number)) => states.ok()?.get(&number).cloned(),
                _ = ended.wait_for(Option::is_some) => None,
            }
        };
        Ok(match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
            Ok(Some(state)) => Ok(state),
            Ok(None) => Err("the VM has ended".into()),
            Err(_) => Err(format!("lazaret-vmm does not answer within {} s", ANSWER_TIMEOUT.as_secs())),
        })
    }

    /// Takes the vCPUs out of the guest, and waits until they are. One request at a time.
    ///
    /// # Errors
    /// [`VmError::Pause`] when the VMM refuses or does not answer; [`VmError::Channel`] when it is gone.
    pub(crate) async fn pause(&self) -> Result<(), VmError> {
        self.change_vcpus("pause", &Request::Pause).await
    }

    /// Lets the vCPUs go on. One request at a time.
    ///
    /// # Errors
    /// As [`Vm::pause`].
    pub(crate) async fn resume(&self) -> Result<(), VmError> {
        self.change_vcpus("resume", &Request::Resume).await
    }

    async fn change_vcpus(&self, what: &'static str, request: &Request) -> Result<(), VmError> {
        self.paused.send_replace(None);
        let (mut paused, mut ended) = (self.paused.subscribe(), self.ended());
        self.send(request, &[]).await?;
        let answer = async {
            tokio::select! {
                answer = paused.wait_for(Option::is_some) => answer.ok()?.clone(),
                _ = ended.wait_for(Option::is_some) => None,
            }
        };
        let reason = match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
            Ok(Some(Event::PauseRefused(reason) | Event::ResumeRefused(reason))) => reason,
            Ok(Some(_)) => return Ok(()),
            Ok(None) => "the VM has ended".into(),
            Err(_) => format!("lazaret-vmm does not answer within {} s", ANSWER_TIMEOUT.as_secs()),
        };
        Err(VmError::Pause { what, reason })
    }

    /// Ends the VM, by killing the VMM if it does not end in time, and waits until nothing of it is left.
    pub(crate) async fn stop(&self) {
        let mut reaped = self.reaped.clone();
        // A VMM that is gone, or does not read the message, is dealt with below.
        let _ = tokio::time::timeout(END_TIMEOUT, self.send(&Request::Stop, &[])).await;
        if tokio::time::timeout(END_TIMEOUT, reaped.wait_for(|reaped| *reaped)).await.is_err() {
            log::warn!("lazaret-vmm does not end; it is killed");
            self.kill.notify_one();
            let _ = tokio::time::timeout(END_TIMEOUT, reaped.wait_for(|reaped| *reaped)).await;
        }
    }

    /// Whether, and how, the VM ended.
    #[must_use]
    pub(crate) fn ended(&self) -> watch::Receiver<Option<ExitReport>> {
        self.ended.clone()
    }

    async fn send(&self, request: &Request, descriptors: &[(Name, BorrowedFd<'_>)]) -> Result<(), VmError> {
        send(&self.channel, request, descriptors).await
    }
}

/// Opens streams to a guest. The VMM does not see the shim's end of the channel while there is one of these.
#[derive(Debug, Clone)]
pub(crate) struct Dialer {
    channel: Arc<AsyncFd<Channel>>,
}

impl Dialer {
    /// As [`Vm::connect`].
    ///
    /// # Errors
    /// [`VmError`] when the VMM is gone or descriptors run out.
    pub(crate) async fn connect(&self, port: u32) -> Result<UnixStream, VmError> {
        let (ours, theirs) = StdUnixStream::pair()?;
        let stream = [(Name::Stream, theirs.as_fd())];
        send(&self.channel, &Request::Connect { port }, &stream).await?;
        ours.set_nonblocking(true)?;
        Ok(UnixStream::from_std(ours)?)
    }
}

async fn send(
    channel: &AsyncFd<Channel>,
    request: &Request,
    descriptors: &[(Name, BorrowedFd<'_>)],
) -> Result<(), VmError> {
    loop {
        let mut ready = channel.writable().await?;
        match channel.get_ref().send(request, descriptors) {
            Err(ChannelError::WouldBlock) => ready.clear_ready(),
            result => return Ok(result?),
        }
    }
}

/// Runs in the VMM's process before its binary does.
fn enter(control: BorrowedFd<'_>, network: BorrowedFd<'_>, cgroup: Option<&OwnedFd>) -> io::Result<()> {
    let check = |result: libc::c_int| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    if let Some(cgroup) = cgroup {
        // SAFETY: a write of one byte from a constant to a descriptor we own.
        let written = unsafe { libc::write(cgroup.as_raw_fd(), c"0".as_ptr().cast(), 1) };
        check(if written < 0 { -1 } else { 0 })?;
    }
    // SAFETY: plain system calls on a descriptor we own.
    check(unsafe { libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) })?;
    let raw = control.as_raw_fd();
    // SAFETY: as above. dup2 onto itself would leave close-on-exec set, so that case clears it.
    check(unsafe {
        if raw == CONTROL_FD { libc::fcntl(raw, libc::F_SETFD, 0) } else { libc::dup2(raw, CONTROL_FD) }
    })
}

/// Makes `fd` non-blocking. The VMM and the agent each have such a function, too: the crates that they share with the shim are
/// contracts, not places for code.
fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// A new network namespace, whose loopback interface is up, as other runtimes leave it. The thread that makes it stays in there, so
/// one is spent on it.
fn new_namespace() -> io::Result<OwnedFd> {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        crate::network::take_loopback_up().map_err(io::Error::other)?;
        std::fs::File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
    };
    let failed = |_| io::Error::other("the thread that makes a network namespace failed");
    std::thread::spawn(make).join().map_err(failed)?
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
