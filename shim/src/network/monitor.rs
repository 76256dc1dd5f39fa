//! Changes of a network namespace.

use super::{NetworkError, namespace};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};

/// Whoever changes a network makes several changes: a link, its addresses, its routes. They are over when none has come for so
/// long, and are looked at in any case after the longer time.
const QUIET: Duration = Duration::from_millis(100);
const MOST: Duration = Duration::from_secs(1);

/// Hears of the changes of a namespace, from its opening on.
#[derive(Debug)]
pub(crate) struct Monitor(AsyncFd<lazaret_netlink::Monitor>);

impl Monitor {
    /// # Errors
    /// [`NetworkError`].
    pub(crate) async fn open(namespace: Arc<OwnedFd>) -> Result<Self, NetworkError> {
        let failed = |error: io::Error| NetworkError::Monitor(error);
        let open = move || lazaret_netlink::Monitor::open().map_err(|errno| failed(errno.into()));
        let monitor = namespace::run(namespace, open).await?;
        // SAFETY: a monitor keeps its socket open for as long as it lives, and hands it out only borrowed.
        let monitor = unsafe { AsyncFd::register(monitor) }.map_err(|error| failed(error.into()))?;
        Ok(Self(monitor))
    }

    /// Waits for a change, and for the end of those that come with it.
    ///
    /// # Errors
    /// Of recv(2).
    pub(crate) async fn changed(&self) -> io::Result<()> {
        self.heard().await?;
        let latest = Instant::now() + MOST;
        loop {
            let quiet = latest.min(Instant::now() + QUIET);
            match timeout_at(quiet, self.heard()).await {
                Ok(heard) => heard?,
                Err(_) => return Ok(()),
            }
            if Instant::now() >= latest {
                return Ok(());
            }
        }
    }

    async fn heard(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        self.0.get_ref().drain()?;
        ready.clear_ready();
        Ok(())
    }
}
