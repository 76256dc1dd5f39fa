//! Control mode: the shim says over the inherited channel what to run; the VM lives in the jail.
//!
//! ```text
//!   receive Boot ─► open what needs the host ─► jail ─► machine ─► Running ─► … ─► Stopped ─► exit
//! ```

use crate::console::{BoundedLog, Output};
use crate::disks::{Disks, DisksError};
use crate::event_loop::{Subscriber, Watches};
use crate::jail::{self, JailError};
use crate::machine::{Ended, Machine, MachineError, Placement};
use crate::nics::Nics;
use crate::pauses::{PAUSE_TIMEOUT, Pauses};
use crate::stop::Stop;
use crate::virtio::console::Console;
use crate::virtio::fs::{FsDevice, FsError, raise_open_files};
use crate::virtio::rng::Rng;
use crate::virtio::vsock::{Connector, Timeouts, Vsock, VsockError};
use lazaret_vmm_wire::{
    Cause, Channel, ChannelError, DescriptorError, Descriptors, Event, Name, Request, Stopped, VmConfig,
};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use vmm_sys_util::epoll::EventSet;

/// Bytes of the guest's console kept on the host.
const CONSOLE_LOG: u64 = 1 << 20;
/// How long the shim may take to make room for an event that must not be lost, milliseconds.
const EVENT_SEND_TIMEOUT_MS: u16 = 5000;

/// Why there is no VM.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("the control channel's first message must be a boot request")]
    NotBoot,
    #[error("the boot request: {0}")]
    Descriptors(#[from] DescriptorError),
    #[error(transparent)]
    Jail(#[from] JailError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Disks(#[from] DisksError),
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error(transparent)]
    Vsock(#[from] VsockError),
    #[error("cannot use {what}: {source}")]
    Descriptor { what: String, source: io::Error },
}

/// Runs the VM that the shim at the other end of `control` asks for, to its end. The channel is told of the end, whatever
/// it was, before this returns.
///
/// # Errors
/// When the end could not be told, or the channel was closed before anything was asked.
pub fn run(control: RawFd) -> Result<(), ControlError> {
    jail::close_others(control)?;
    // SAFETY: the parent passed this descriptor by its number for us to own; a wrong one is found by using it.
    let channel = Arc::new(Channel::from(unsafe { OwnedFd::from_raw_fd(control) }));
    let (request, descriptors) = channel.receive::<Request>()?;
    let (stopped, ended) = match serve(request, descriptors, &channel) {
        Ok((stopped, ended)) => (stopped, Some(ended)),
        Err(error) => (Stopped { cause: Cause::Error(error.to_string()), console: Vec::new() }, None),
    };
    let sent = send(&channel, &Event::Stopped(stopped));
    // The kernel takes the VM apart at the end of the process, and takes its time. Nothing is to be waited for before: a
    // request to a file system of the host may hang.
    std::mem::forget(ended);
    match sent {
        // The shim has gone; it knows how.
        Err(ChannelError::Closed) => Ok(()),
        sent => Ok(sent?),
    }
}

fn serve(
    request: Request,
    mut descriptors: Descriptors,
    channel: &Arc<Channel>,
) -> Result<(Stopped, Ended), ControlError> {
    let Request::Boot(config) = request else { return Err(ControlError::NotBoot) };
    let kvm = descriptors.take(Name::Kvm)?;
    let mut kernel = File::from(descriptors.take(Name::Kernel)?);
    let log = File::from(descriptors.take(Name::ConsoleLog)?);
    let mut files = Vec::new();
    for (index, disk) in (0..=u8::MAX).zip(&config.disks) {
        files.push(if disk.empty { None } else { Some(descriptors.take(Name::Disk(index))?.into()) });
    }
    descriptors.finish()?;
    set_nonblocking(channel)?;

    if config.shared.is_some() {
        // In the jail there is no capability for it.
        raise_open_files(config.memory_mib)?;
    }
    let own_descriptors = jail::enter(config.shared.as_ref().map(|shared| shared.path.as_path()))?;

    let log = BoundedLog::new(log, CONSOLE_LOG)
        .map_err(|source| ControlError::Descriptor { what: "the console's log".into(), source })?;
    let output = Output::new(Box::new(log));
    let mut machine = Machine::new(kvm, config.vcpus, config.memory_mib, output.clone())?;
    let disks = Disks::new(&mut machine, &config, files, channel)?;
    machine.add("console", Box::new(Console::new(output.clone(), None)), Placement::Shared)?;
    machine.add("rng", Box::new(Rng), Placement::Shared)?;
    let connector = add_vsock(&mut machine, &config, channel)?;
    let nics = Nics::new(&mut machine, &config, channel)?;
    if let (Some(shared), Some(own_descriptors)) = (&config.shared, own_descriptors) {
        let fs = FsDevice::new(&shared.tag, jail::SHARED, own_descriptors, config.memory_mib)?;
        machine.add("fs", Box::new(fs), Placement::Own)?;
    }
    machine.boot(&mut kernel, &config.cmdline)?;
    drop(kernel);
    let pauses = Pauses::new(machine.gate(), channel, PAUSE_TIMEOUT)
        .map_err(|source| ControlError::Descriptor { what: "a timer".into(), source })?;
    let stop = machine.stop();
    let shim = Shim { channel: Arc::clone(channel), connector, disks, nics, pauses, stop };
    machine.subscribe(Box::new(shim));
    let ended = machine.run(|| {
        if let Err(error) = send(channel, &Event::Running) {
            log::warn!("{error}");
        }
    })?;
    Ok((Stopped { cause: ended.cause.clone(), console: output.tail() }, ended))
}

fn add_vsock(
    machine: &mut Machine,
    config: &VmConfig,
    channel: &Arc<Channel>,
) -> Result<Option<Connector>, ControlError> {
    let Some(vsock) = &config.vsock else { return Ok(None) };
    let channel = Arc::clone(channel);
    // A shim that does not read its events has the guest's connections refused.
    let incoming = move |port, socket: OwnedFd| {
        let stream = [(Name::Stream, socket.as_fd())];
        channel.send(&Event::Incoming { port }, &stream).is_ok()
    };
    let device = Vsock::new(vsock, Timeouts::default(), incoming)?;
    let connector = device.connector();
    machine.add("vsock", Box::new(device), Placement::Shared)?;
    Ok(Some(connector))
}

fn set_nonblocking(channel: &Channel) -> Result<(), ControlError> {
    fcntl(channel, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(ChannelError::from)?;
    Ok(())
}

/// Sends an event that must not be lost: waits for room.
pub(crate) fn send(channel: &Channel, event: &Event) -> Result<(), ChannelError> {
    match channel.send(event, &[]) {
        Err(ChannelError::WouldBlock) => {
            let mut wait = [PollFd::new(channel.as_fd(), PollFlags::POLLOUT)];
            poll(&mut wait, PollTimeout::from(EVENT_SEND_TIMEOUT_MS))?;
            channel.send(event, &[])
        }
        sent => sent,
    }
}

/// The shim's requests while the VM runs.
struct Shim {
    channel: Arc<Channel>,
    connector: Option<Connector>,
    disks: Disks,
    nics: Nics,
    pauses: Pauses,
    stop: Stop,
}

/// What [`Shim`] watches.
const CHANNEL: u32 = 0;
const PAUSES: u32 = 1;

impl Subscriber for Shim {
    fn start(&mut self, watches: &mut Watches) -> io::Result<()> {
        watches.set(self.channel.as_raw_fd(), CHANNEL, EventSet::IN)?;
        self.pauses.watch(watches, PAUSES)
    }

    fn event(&mut self, token: u32, _: EventSet, _: &mut Watches) -> Result<(), Cause> {
        if token == PAUSES {
            self.pauses.ready();
            return Ok(());
        }
        match self.channel.receive::<Request>() {
            Ok((Request::Connect { port }, descriptors)) => {
                let stream = descriptors
                    .only(Name::Stream)
                    .map_err(|error| Cause::Error(format!("the connect request: {error}")))?;
                // Without a device there is nobody to connect to: closing the stream is the refusal.
                if let Some(connector) = &self.connector {
                    connector.connect(port, stream);
                }
            }
            Ok((Request::AttachDisk { index }, descriptors)) => self.disks.attach(index, descriptors),
            Ok((Request::PlugNic { slot, nic }, descriptors)) => self.nics.plug(slot, nic, descriptors),
            Ok((Request::UnplugNic { slot }, _)) => self.nics.unplug(slot),
            Ok((Request::Pause, _)) => self.pauses.pause(),
            Ok((Request::Resume, _)) => self.pauses.resume(),
            Ok((Request::Stop, _)) | Err(ChannelError::Closed) => self.stop.end(Cause::Requested),
            Ok((Request::Boot(_), _)) => {
                return Err(Cause::Error("the shim asked for a second boot".to_owned()));
            }
            Err(ChannelError::WouldBlock) => {}
            Err(error) => return Err(Cause::Error(error.to_string())),
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "control_test.rs"]
mod tests;
