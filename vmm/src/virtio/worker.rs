//! The life of one device on an event loop: it is activated, kicked, woken, reset.
//!
//! ```text
//!   Transport (vCPU threads) ── Command + wake ──► Worker (loop thread) ──► VirtioDevice
//!   KVM's doorbell of each queue ────────────────►
//! ```

use super::{DeviceError, Queues, VirtioDevice, Watch};
use crate::event_loop::{Subscriber, Watches};
use lazaret_vmm_wire::Cause;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Tokens from here on are the worker's; below they are the device's own.
const WAKE: u32 = 1 << 31;
/// With the number of a queue: its doorbell.
const DOORBELL: u32 = 1 << 30;
/// How many chains a device serves before the other devices on its event loop have their turn.
const CHAINS_PER_TURN: usize = 256;

enum Command {
    Activate { features: u64, queues: Queues },
    Reset { done: SyncSender<()> },
}

/// The transport's way to its device.
pub struct WorkerHandle {
    commands: Sender<Command>,
    wake: EventFd,
    doorbells: Arc<[EventFd]>,
}

/// A device on its loop.
pub struct Worker {
    name: String,
    device: Box<dyn VirtioDevice>,
    commands: Receiver<Command>,
    wake: EventFd,
    doorbells: Arc<[EventFd]>,
    active: Option<Queues>,
}

impl Worker {
    /// Pairs `device`, whose queues are kicked through `doorbells`, with its transport's handle. `name` is for messages.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn new(
        name: String,
        device: Box<dyn VirtioDevice>,
        doorbells: Vec<EventFd>,
    ) -> io::Result<(Self, WorkerHandle)> {
        let (sender, commands) = mpsc::channel();
        let wake = EventFd::new(EFD_NONBLOCK)?;
        let doorbells: Arc<[EventFd]> = doorbells.into();
        let handle =
            WorkerHandle { commands: sender, wake: wake.try_clone()?, doorbells: Arc::clone(&doorbells) };
        Ok((Self { name, device, commands, wake, doorbells, active: None }, handle))
    }

    fn run_commands(&mut self, watches: &mut Watches) -> Result<(), DeviceError> {
        // An error says that no wake is pending: an earlier turn took both the wake and its command.
        let _ = self.wake.read();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Activate { features, queues } => self.activate(features, queues, watches)?,
                Command::Reset { done } => {
                    self.reset(watches)?;
                    // The vCPU that waits may have been stopped meanwhile.
                    let _ = done.send(());
                }
            }
        }
        Ok(())
    }

    fn activate(&mut self, features: u64, queues: Queues, watches: &mut Watches) -> Result<(), DeviceError> {
        let own = self.device.activate(features)?;
        self.active = Some(queues);
        // Doorbells that rang since DRIVER_OK are still readable.
        for (token, doorbell) in (DOORBELL..).zip(self.doorbells.iter()) {
            watches.set(doorbell.as_raw_fd(), token, EventSet::IN)?;
        }
        apply(own, watches)?;
        Ok(())
    }

    /// The device closes its descriptors when it is reset, so what is watched is removed first.
    fn reset(&mut self, watches: &mut Watches) -> io::Result<()> {
        watches.remove_all(|token| token & WAKE == 0)?;
        self.active = None;
        self.device.reset();
        for doorbell in self.doorbells.iter() {
            // Rings for the queues that are gone; an error says there were none.
            let _ = doorbell.read();
        }
        Ok(())
    }

    fn dispatch(&mut self, token: u32, events: EventSet, watches: &mut Watches) -> Result<(), DeviceError> {
        if token == WAKE {
            return self.run_commands(watches);
        }
        let Some(queues) = &mut self.active else { return Ok(()) };
        queues.limit_chains(CHAINS_PER_TURN);
        if token & DOORBELL == 0 {
            let changes = self.device.ready(token, events, queues)?;
            apply(changes, watches)?;
        } else if let Ok(index) = usize::try_from(token & !DOORBELL)
            && self.doorbells.get(index).is_some_and(|doorbell| doorbell.read().is_ok())
        {
            self.device.notified(index, queues)?;
        }
        for index in queues.take_unfinished() {
            ring(&self.doorbells, index);
        }
        Ok(())
    }
}

fn ring(doorbells: &[EventFd], queue: usize) {
    if let Some(doorbell) = doorbells.get(queue) {
        // It fails only when 2^64 - 1 kicks are pending, and one is enough.
        let _ = doorbell.write(1);
    }
}

fn apply(changes: Vec<Watch>, watches: &mut Watches) -> io::Result<()> {
    changes.into_iter().try_for_each(|change| match change {
        Watch::Set { fd, token, events } => watches.set(fd, token, events),
        Watch::Remove { fd } => watches.remove(fd),
    })
}

impl Subscriber for Worker {
    fn start(&mut self, watches: &mut Watches) -> io::Result<()> {
        watches.set(self.wake.as_raw_fd(), WAKE, EventSet::IN)
    }

    fn event(&mut self, token: u32, events: EventSet, watches: &mut Watches) -> Result<(), Cause> {
        self.dispatch(token, events, watches)
            .map_err(|error| Cause::Error(format!("virtio device {} failed: {error}", self.name)))
    }

    /// Drops the commands, so that a vCPU that waits for a reset gets an error instead of waiting for ever.
    fn ended(&mut self) {
        let (_, disconnected) = mpsc::channel();
        self.commands = disconnected;
    }
}

/// The device's thread has ended, because the VM has.
#[derive(Debug, thiserror::Error)]
#[error("the device's thread has ended")]
pub struct WorkerEnded;

impl WorkerHandle {
    pub(super) fn activate(&self, features: u64, queues: Queues) -> Result<(), WorkerEnded> {
        self.command(Command::Activate { features, queues })
    }

    /// Returns when the device holds no chain of the queues any more.
    pub(super) fn reset(&self) -> Result<(), WorkerEnded> {
        let (done, wait) = mpsc::sync_channel(1);
        self.command(Command::Reset { done })?;
        wait.recv().map_err(|_| WorkerEnded)
    }

    /// The number of queues this one serves.
    pub(super) fn queues(&self) -> usize {
        self.doorbells.len()
    }

    /// A kick that did not come through KVM's doorbell.
    pub(super) fn ring(&self, queue: usize) {
        ring(&self.doorbells, queue);
    }

    fn command(&self, command: Command) -> Result<(), WorkerEnded> {
        self.commands.send(command).map_err(|_| WorkerEnded)?;
        self.wake.write(1).map_err(|_| WorkerEnded)
    }
}
