//! The stdio port: who may attach, and the handshake (`stdio.md`).

use super::Attachment;
use crate::container::{Containers, Process};
use crate::vsock;
use lazaret_agent_api::{Ack, MAX_HEADER, decode_header};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_vsock::VsockListener;

/// The host sends the header at once.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);

/// Serves the host's streams for as long as the guest lives.
pub(crate) async fn listen(listener: VsockListener, containers: Arc<Containers>) {
    vsock::for_each_host_stream(listener, "stdio", |stream| {
        let containers = containers.clone();
        tokio::spawn(async move {
            if let Err(error) = serve(stream, &containers).await {
                log::warn!("a stdio stream was not attached: {error}");
            }
        });
    })
    .await;
}

/// Reads the header, answers it, and has the stream copied.
pub(crate) async fn serve<S>(mut stream: S, containers: &Containers) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let attached = timeout(HEADER_DEADLINE, find(&mut stream, containers))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no header came"))??;
    match attached {
        Ok((process, attachment)) => {
            stream.write_u8(Ack::Attached as u8).await?;
            process.io.copy(attachment, stream);
            Ok(())
        }
        Err(refusal) => stream.write_u8(refusal as u8).await,
    }
}

async fn find<S: AsyncRead + Unpin>(
    stream: &mut S,
    containers: &Containers,
) -> io::Result<Result<(Arc<Process>, Attachment), Ack>> {
    let length = usize::from(stream.read_u16().await?);
    if length > MAX_HEADER {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a header of {length} bytes")));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let header = decode_header(&body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let Ok(kind) = header.kind.enum_value() else { return Ok(Err(Ack::NotFound)) };
    Ok(match containers.process(&header.container_id, &header.exec_id) {
        Ok(process) => process.io.attach(kind).map(|attachment| (process, attachment)),
        Err(_) => Err(Ack::NotFound),
    })
}

#[cfg(test)]
#[path = "listener_test.rs"]
mod tests;
