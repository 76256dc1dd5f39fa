//! The end of the guest.

use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;

/// Says when the guest's work is done: the host's connection has ended, or the answer to Shutdown is on its way.
#[derive(Default)]
pub(crate) struct Power {
    shutting_down: AtomicBool,
    end: Notify,
}

impl Power {
    /// Everything is written back: the next answer that leaves is the last.
    pub(crate) fn shut_down_after_answer(&self) {
        self.shutting_down.store(true, Ordering::Relaxed);
    }

    pub(crate) fn answer_sent(&self) {
        if self.shutting_down.load(Ordering::Relaxed) {
            self.end.notify_one();
        }
    }

    pub(crate) fn connection_ended(&self) {
        self.end.notify_one();
    }

    pub(crate) async fn ended(&self) {
        self.end.notified().await;
    }
}

/// Milliseconds since the kernel's start.
pub(crate) fn uptime_ms() -> i64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .map_or(0, |now| now.tv_sec() * 1000 + now.tv_nsec() / 1_000_000)
}

/// Kills every process of the guest but the agent. One that is not process 1 would take the machine it is tried on down.
pub(crate) fn kill_all() {
    if std::process::id() == 1 {
        // SAFETY: kill(2) touches no memory. It spares process 1, its caller.
        unsafe { libc::kill(-1, libc::SIGKILL) };
    }
}

/// Resets the machine, which ends the VM: with `reboot=k` the kernel does so through port 0x64.
pub(crate) fn reset() -> ! {
    let Err(errno) = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_AUTOBOOT);
    log::error!("cannot reset the machine: {errno}");
    // The end of process 1 is a kernel panic, which `panic=-1` makes a reset too.
    std::process::exit(1)
}
