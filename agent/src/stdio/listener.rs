//! The stdio port: who may attach, and the handshake (`stdio.md`).

use super::Attachment;
use crate::container::{Containers, Process};
use lazaret_agent_api::{Ack, MAX_HEADER, decode_header};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_vsock::{VMADDR_CID_HOST, VsockListener};

/// The host sends the header at once.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);

/// Accepts streams for as long as the guest lives.
pub(crate) async fn listen(listener: VsockListener, containers: Arc<Containers>) {
    let mut strangers = false;
    loop {
        match listener.accept().await {
            // vsock has no namespaces: a container can dial this port over the guest's loopback. Only the VMM can come
            // with the host's CID.
            Ok((stream, peer)) if peer.cid() == VMADDR_CID_HOST => {
                let containers = containers.clone();
                tokio::spawn(async move {
                    if let Err(error) = serve(stream, &containers).await {
                        log::warn!("a stdio stream was not attached: {error}");
                    }
                });
            }
            Ok((_, peer)) => {
                // Once: a container does not get to fill the log.
                if !std::mem::replace(&mut strangers, true) {
                    log::warn!("refused a stdio stream from CID {}, which is not the host", peer.cid());
                }
            }
            Err(error) => {
                log::error!("cannot accept a stdio stream: {error}");
                tokio::task::yield_now().await;
            }
        }
    }
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
