//! One timer for all deadlines: it expires at the earliest deadline, and the table then sets it for the next.

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Timer {
    fd: TimerFd,
    armed: Option<Instant>,
}

impl Timer {
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        Ok(Self { fd: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?, armed: None })
    }

    /// Sets the timer to expire at `deadline` at the latest.
    pub(super) fn at_latest(&mut self, deadline: Instant) {
        if self.armed.is_some_and(|armed| armed <= deadline) {
            return;
        }
        // A wait of zero would disarm the timer.
        let wait = deadline.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        match self.fd.set(Expiration::OneShot(TimeSpec::from(wait)), TimerSetTimeFlags::empty()) {
            Ok(()) => self.armed = Some(deadline),
            Err(error) => log::error!("vsock: cannot set a timer: {error}"),
        }
    }

    /// Clears the expiration, so that the descriptor is no longer readable.
    pub(super) fn acknowledge(&mut self) {
        // Reading fails only when the timer has not expired.
        let _ = self.fd.wait();
        self.armed = None;
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_fd().as_raw_fd()
    }
}
