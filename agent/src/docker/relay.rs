//! Clients that come to the daemon through the agent: the host's, each of whose streams is a connection, and the containers'.

use crate::paths::DOCKERD_SOCKET;
use crate::vsock;
use std::io;
use std::path::Path;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::UnixStream;
use tokio_vsock::VsockListener;

/// Serves the host's streams for as long as the guest lives.
pub(super) async fn listen(listener: VsockListener) {
    vsock::for_each_host_stream(listener, "Docker", |stream| {
        tokio::spawn(async move {
            if let Err(error) = relay(stream, Path::new(DOCKERD_SOCKET)).await {
                log::debug!("a Docker stream of the host: {error}");
            }
        });
    })
    .await;
}

/// Copies both ways, each to its own end: a client of `docker run -i` that has no more input still reads the output.
pub(super) async fn relay(mut client: impl AsyncRead + AsyncWrite + Unpin, daemon: &Path) -> io::Result<()> {
    let mut daemon = UnixStream::connect(daemon).await?;
    copy_bidirectional(&mut client, &mut daemon).await?;
    Ok(())
}
