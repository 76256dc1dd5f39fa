//! The Docker socket that containers find. Each connection is looked at, and then is one to the daemon's own socket, which no
//! container has: dockerd accepts from that by itself, and asks nobody.

use super::{http, peer, relay};
use http::Status;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

/// The most connections to the daemon; further clients wait. Each takes two descriptors and some 16 KiB of the agent.
const MAX_CONNECTIONS: usize = 1024;
/// The most clients that are told at a time why they are refused; others are hung up on.
const MAX_REFUSALS: usize = 32;
/// How long no client is accepted after an attempt failed, for want of memory or descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Who may use the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Users {
    /// Those who could be root in their container.
    Privileged,
    All,
}

pub(super) struct Gate {
    users: Users,
    /// The daemon's own socket.
    daemon: PathBuf,
    connections: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
}

impl Gate {
    pub(super) fn new(users: Users, daemon: PathBuf) -> Self {
        let [connections, refusals] =
            [MAX_CONNECTIONS, MAX_REFUSALS].map(|most| Arc::new(Semaphore::new(most)));
        Self { users, daemon, connections, refusals }
    }

    /// Serves clients for as long as the guest lives.
    pub(super) async fn serve(self, listener: UnixListener) {
        let gate = Arc::new(self);
        // It is never closed.
        while let Ok(permit) = gate.connections.clone().acquire_owned().await {
            match listener.accept().await {
                Ok((client, _)) => _ = tokio::spawn(gate.clone().admit(client, permit)),
                Err(error) => {
                    log::error!("cannot accept a client of the Docker socket: {error}");
                    sleep(ACCEPT_RETRY_DELAY).await;
                }
            }
        }
    }

    async fn admit(self: Arc<Self>, client: UnixStream, permit: OwnedSemaphorePermit) {
        let (client, allowed) = match self.users {
            Users::All => (client, Ok(())),
            Users::Privileged => {
                let looked = spawn_blocking(move || {
                    let allowed = peer::may_use(&client);
                    (client, allowed)
                });
                // It fails only when looking has panicked: the client is hung up on.
                let Ok(looked) = looked.await else { return };
                looked
            }
        };
        match allowed {
            Ok(()) => {
                if let Err(error) = relay::relay(client, &self.daemon).await {
                    log::debug!("a client of the Docker socket: {error}");
                }
            }
            Err(why) => {
                drop(permit);
                let Ok(_turn) = self.refusals.clone().try_acquire_owned() else { return };
                if let Err(error) = http::refuse(client, Status::Forbidden, &why).await {
                    log::debug!("a client of the Docker socket was not told why it may not use it: {error}");
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "gate_test.rs"]
mod tests;
