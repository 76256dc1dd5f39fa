//! A container's pause, which is its sandbox's.

use super::Container;
use super::life::Status;
use crate::error::{Error, Result};
use crate::events::Event;
use crate::sandbox::guest::ProcessKey;
use crate::sync::lock;
use containerd_shim_protos::events::task::{TaskPaused, TaskResumed};

/// Signals that are sent when the container goes on: to which process, which, and whether to all of the container.
pub(super) type Signals = Vec<(ProcessKey, u32, bool)>;

/// Signals that are kept for a paused container. A client that sends more is told so.
const MAX_SIGNALS: usize = 64;

impl Container {
    /// # Errors
    /// [`Error::FailedPrecondition`] when it does not run or is paused; the guest's, and it runs on.
    pub(crate) async fn pause(&self) -> Result<()> {
        if self.init.status() != Status::Running {
            return Err(Error::FailedPrecondition(format!("container {} does not run", self.id)));
        }
        if !self.guest.is_paused() {
            // What Stats answers while nobody in the guest can.
            self.keep_last_stats().await;
        }
        self.guest.pause().await?;
        self.events
            .publish(&Event::Paused(TaskPaused { container_id: self.id.clone(), ..Default::default() }));
        Ok(())
    }

    /// Lets it go on, and sends the signals that came meanwhile.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] when it is not paused; the guest's.
    pub(crate) async fn resume(&self) -> Result<()> {
        self.guest.resume().await?;
        self.events
            .publish(&Event::Resumed(TaskResumed { container_id: self.id.clone(), ..Default::default() }));
        let signals = std::mem::take(&mut *lock(&self.signals));
        for (key, signal, all) in signals {
            if let Err(error) = self.guest.signal(&key, signal, all).await {
                log::debug!("signal {signal} that came while {key} was paused: {error}");
            }
        }
        Ok(())
    }

    /// Whether a signal can be sent now. To a paused container it is sent when that goes on, as the kernel does with a frozen
    /// process; SIGKILL has it go on.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] when there are too many of them.
    pub(super) async fn awake_for(&self, key: &ProcessKey, signal: u32, all: bool) -> Result<bool> {
        if !self.guest.is_paused() {
            return Ok(true);
        }
        if i32::try_from(signal) == Ok(libc::SIGKILL) {
            // Another client may have resumed it by now.
            if let Err(error) = self.resume().await
                && self.guest.is_paused()
            {
                return Err(error);
            }
            return Ok(true);
        }
        let mut signals = lock(&self.signals);
        if signals.len() == MAX_SIGNALS {
            return Err(Error::FailedPrecondition(format!(
                "container {} is paused, and {MAX_SIGNALS} signals wait for it already",
                self.id
            )));
        }
        signals.push((key.clone(), signal, all));
        Ok(false)
    }
}

#[cfg(test)]
#[path = "pause_test.rs"]
mod tests;
