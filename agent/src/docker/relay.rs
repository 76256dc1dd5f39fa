//! The Docker socket for the host: each of its streams is a connection.

use crate::vsock;
use lazaret_agent_api::DOCKER_SOCKET;
use std::io;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::UnixStream;
use tokio_vsock::VsockListener;

/// Serves the host's streams for as long as the guest lives.
pub(super) async fn listen(listener: VsockListener) {
    vsock::each_of_the_host(listener, "Docker", |stream| {
        tokio::spawn(async move {
            if let Err(error) = relay(stream).await {
                log::debug!("a Docker stream of the host: {error}");
            }
        });
    })
    .await;
}

/// Copies both ways, each to its own end: a client of `docker run -i` that has no more input still reads the output.
async fn relay(mut host: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut daemon = UnixStream::connect(DOCKER_SOCKET).await?;
    copy_bidirectional(&mut host, &mut daemon).await?;
    Ok(())
}
