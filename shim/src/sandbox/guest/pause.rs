//! Pause and resume.
//!
//! ```text
//!   pause:  no new call to the agent ─► the vCPUs leave the guest (VMM) ─► the VMM's threads stop (cgroup.freeze)
//!   resume: the VMM's threads go on ─► the vCPUs enter the guest ─► calls again
//! ```
//!
//! A paused guest answers nothing, so whatever needs its answer is refused at once, or waits until it runs again. What ends it does not
//! wait: the kernel kills frozen processes, too.

use super::Guest;
use crate::error::{Error, Result};
use tokio::sync::{Mutex, watch};

/// Whether the guest is paused.
#[derive(Debug)]
pub(super) struct Pause {
    paused: watch::Sender<bool>,
    /// One change at a time.
    turn: Mutex<()>,
}

impl Default for Pause {
    fn default() -> Self {
        Self { paused: watch::channel(false).0, turn: Mutex::default() }
    }
}

impl Guest {
    /// Whether the guest is paused, or about to be.
    #[must_use]
    pub(crate) fn is_paused(&self) -> bool {
        *self.pause.paused.borrow()
    }

    /// # Errors
    /// [`Error::FailedPrecondition`] while it is paused.
    pub(super) fn check_not_paused(&self) -> Result<()> {
        if self.is_paused() {
            return Err(Error::FailedPrecondition("the sandbox is paused: resume it first".into()));
        }
        Ok(())
    }

    /// Waits until the guest is not paused, or has ended.
    pub(super) async fn until_resumed(&self) {
        let (mut paused, mut ended) = (self.pause.paused.subscribe(), self.ended());
        tokio::select! {
            _ = paused.wait_for(|paused| !paused) => {}
            _ = ended.wait_for(Option::is_some) => {}
        }
    }

    /// Stops the guest where it is. Without a cgroup the VMM's device threads stay awake, with nothing to do.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] when it is paused; the VMM's, and the guest runs on.
    pub(crate) async fn pause(&self) -> Result<()> {
        let _turn = self.pause.turn.lock().await;
        self.check_not_paused()?;
        self.pause.paused.send_replace(true);
        let paused = async {
            self.vm.pause().await.map_err(|error| Error::Internal(error.to_string()))?;
            if let Err(error) = self.freeze(true).await {
                self.wake().await?;
                return Err(error);
            }
            Ok(())
        };
        let paused = paused.await;
        if paused.is_err() {
            self.pause.paused.send_replace(false);
        }
        paused
    }

    /// Lets the guest go on.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] when it is not paused; the VMM's, and it stays paused.
    pub(crate) async fn resume(&self) -> Result<()> {
        let _turn = self.pause.turn.lock().await;
        if !self.is_paused() {
            return Err(Error::FailedPrecondition("the sandbox is not paused".into()));
        }
        self.wake().await?;
        self.pause.paused.send_replace(false);
        Ok(())
    }

    async fn wake(&self) -> Result<()> {
        self.freeze(false).await?;
        self.vm.resume().await.map_err(|error| Error::Internal(error.to_string()))
    }

    /// Has the VMM of a guest that is to end hear of that.
    pub(super) async fn thaw(&self) {
        if self.is_paused()
            && let Err(error) = self.freeze(false).await
        {
            log::warn!("a paused VMM is killed rather than asked to end: {error}");
        }
    }

    async fn freeze(&self, frozen: bool) -> Result<()> {
        let Some(cgroup) = self.cgroup.clone() else { return Ok(()) };
        let freeze = tokio::task::spawn_blocking(move || cgroup.freeze(frozen)).await;
        let freeze = freeze.map_err(|error| Error::Internal(format!("freezing the cgroup: {error}")))?;
        freeze.map_err(|error| Error::Internal(error.to_string()))
    }
}
