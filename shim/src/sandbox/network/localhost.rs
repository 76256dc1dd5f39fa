//! Connections to localhost of the sandbox's network namespace, carried to the guest's localhost.
//!
//! ```text
//!   nsenter … curl 127.0.0.1:80 ──► listener ──► relay ──► vsock guest:1027 ──► agent ──► 127.0.0.1:80
//! ```
//!
//! A client is connected before the guest is asked, so a port where nobody listens is a reset to the client, at once.

use super::relay;
use crate::network::{Localhost, reset};
use crate::sandbox::vm::VmError;
use lazaret_agent_api::{Ack, LoopbackPort};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// The most connections at a time; further ones are reset. The VM has 1,024 streams, which these must leave some of for stdio.
const MAX_CONNECTIONS: usize = 512;
/// Bytes that are buffered in each direction of a connection.
const RELAY_BUFFER: usize = 16 * 1024;
/// How long the guest may take to say whether the port is served: a moment longer than the agent gives the server.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(12);

/// Carries each connection over a stream to the agent that `connect` gives for it, until it is dropped, and every connection
/// with it.
pub(super) async fn serve<F>(localhost: Localhost, connect: impl Fn() -> F)
where
    F: Future<Output = Result<UnixStream, VmError>> + Send + 'static,
{
    let accept = || localhost.accept();
    let carry = |client| carry(client, connect());
    let refuse = |(client, _): (TcpStream, LoopbackPort)| reset(&client);
    relay::serve("localhost of the sandbox", MAX_CONNECTIONS, accept, carry, refuse).await;
}

async fn carry(
    (mut client, port): (TcpStream, LoopbackPort),
    guest: impl Future<Output = Result<UnixStream, VmError>>,
) {
    let attached = tokio::time::timeout(ANSWER_TIMEOUT, attach(port, guest)).await;
    let carried = match attached.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        // A write of the guest's must not wait for the answer to the one before.
        Ok(guest) => match client.set_nodelay(true) {
            Ok(()) => relay::copy(&mut client, guest, RELAY_BUFFER).await,
            Err(error) => Err(error),
        },
        Err(error) => Err(error),
    };
    if let Err(error) = carried {
        log::debug!("a connection to {} of the sandbox: {error}", port.address());
        reset(&client);
    }
}

/// The guest's stream, once the agent has said that the port is served.
async fn attach(
    port: LoopbackPort,
    guest: impl Future<Output = Result<UnixStream, VmError>>,
) -> io::Result<UnixStream> {
    let mut guest = guest.await.map_err(io::Error::other)?;
    guest.write_all(&port.encode()).await?;
    match Ack::try_from(guest.read_u8().await?) {
        Ok(Ack::Attached) => Ok(guest),
        _ => Err(io::ErrorKind::ConnectionRefused.into()),
    }
}

#[cfg(test)]
#[path = "localhost_test.rs"]
mod tests;
