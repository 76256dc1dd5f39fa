//! The shim's requests to pause the VM and to resume it, and their answers. Nothing here waits: the main loop serves devices,
//! and a vCPU may wait for one of them before it can leave the guest.

use crate::control::send;
use crate::event_loop::Watches;
use crate::pause::Refusal;
use crate::vcpu::Gate;
use lazaret_vmm_wire::{Channel, Event};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;
use vmm_sys_util::epoll::EventSet;

/// How long the vCPUs may take to leave the guest. They leave it at once, but may wait for a device to be reset that waits for
/// the host's disk.
pub(crate) const PAUSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Pauses of a VM whose shim is at the other end of `channel`.
pub(crate) struct Pauses {
    gate: Gate,
    channel: Arc<Channel>,
    timeout: Duration,
    deadline: TimerFd,
    /// A pause is asked for and not answered.
    asked: bool,
}

impl Pauses {
    /// # Errors
    /// When no descriptor is left.
    pub(crate) fn new(gate: Gate, channel: &Arc<Channel>, timeout: Duration) -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let deadline = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        Ok(Self { gate, channel: Arc::clone(channel), timeout, deadline, asked: false })
    }

    /// Has [`Pauses::ready`] called when there may be something to answer.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn watch(&self, watches: &mut Watches, token: u32) -> io::Result<()> {
        watches.set(self.gate.event().as_raw_fd(), token, EventSet::IN)?;
        watches.set(self.deadline.as_fd().as_raw_fd(), token, EventSet::IN)
    }

    /// [`Request::Pause`](lazaret_vmm_wire::Request::Pause).
    pub(crate) fn pause(&mut self) {
        self.ready();
        if let Err(why) = self.begin() {
            self.report(&Event::PauseRefused(why));
        }
    }

    fn begin(&mut self) -> Result<(), String> {
        if self.asked {
            return Err(Refusal::Pausing.to_string());
        }
        let deadline = Expiration::OneShot(TimeSpec::from(self.timeout));
        let set = self.deadline.set(deadline, TimerSetTimeFlags::empty());
        set.map_err(|errno| format!("cannot set a timer: {errno}"))?;
        self.gate.pause().map_err(|refusal| refusal.to_string())?;
        self.asked = true;
        Ok(())
    }

    /// [`Request::Resume`](lazaret_vmm_wire::Request::Resume).
    pub(crate) fn resume(&mut self) {
        self.ready();
        let answer = match self.gate.resume() {
            Ok(()) => Event::Resumed,
            Err(refusal) => Event::ResumeRefused(refusal.to_string()),
        };
        self.report(&answer);
    }

    /// Answers a pause that is complete, or late.
    pub(crate) fn ready(&mut self) {
        // Each fails when there is nothing to read.
        let _ = self.gate.event().read();
        let late = self.deadline.wait().is_ok();
        if !self.asked {
            return;
        }
        if late && self.gate.give_up() {
            self.asked = false;
            self.report(&Event::PauseRefused(format!(
                "a vCPU has not left the guest within {:?}, since it waits for a device: the VM runs on",
                self.timeout
            )));
        } else if self.gate.is_paused() {
            self.asked = false;
            self.report(&Event::Paused);
        }
    }

    fn report(&self, event: &Event) {
        if let Err(error) = send(&self.channel, event) {
            log::warn!("a pause or its end: {error}");
        }
    }
}
