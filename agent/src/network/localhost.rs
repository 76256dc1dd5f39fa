//! Connections that the host has made to localhost of the sandbox's network namespace: they go to the guest's localhost.
//!
//! Programs try ::1 and 127.0.0.1 one after the other (curl, containerd's port-forward), and stop at the first that accepts. The
//! host's listeners accept in both families, before the guest is asked. So it is here that the other family is tried.

use crate::vsock;
use lazaret_agent_api::{Ack, LoopbackPort};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_vsock::VsockListener;

/// The host sends the header at once.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);
/// How long a server may take to accept. On loopback only one whose queue is full takes any time.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes that are buffered in each direction of a connection.
const RELAY_BUFFER: usize = 16 * 1024;

/// Serves the host's streams for as long as the guest lives.
pub(super) async fn listen(listener: VsockListener) {
    vsock::for_each_host_stream(listener, "localhost", |stream| {
        tokio::spawn(async move {
            if let Err(error) = serve(stream).await {
                log::debug!("a connection to localhost: {error}");
            }
        });
    })
    .await;
}

/// Connects to the port that the header names, answers whether that was possible, and copies both ways, each to its own end.
async fn serve(mut host: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut header = [0; LoopbackPort::LENGTH];
    timeout(HEADER_DEADLINE, host.read_exact(&mut header)).await??;
    let port = LoopbackPort::decode(header).ok_or(io::ErrorKind::InvalidData)?;
    let mut server = match connect(port).await {
        Ok(server) => server,
        Err(error) => {
            host.write_u8(Ack::NotFound as u8).await?;
            return Err(error);
        }
    };
    // A write of the client's must not wait for the answer to the one before: the client has decided how it writes.
    server.set_nodelay(true)?;
    host.write_u8(Ack::Attached as u8).await?;
    copy_bidirectional_with_sizes(&mut host, &mut server, RELAY_BUFFER, RELAY_BUFFER).await?;
    Ok(())
}

/// A connection to the port, in the other family if nothing accepts in its own.
async fn connect(port: LoopbackPort) -> io::Result<TcpStream> {
    let connect = async {
        match TcpStream::connect(port.address()).await {
            Err(refused) => TcpStream::connect(port.in_other_family().address()).await.map_err(|_| refused),
            connected => connected,
        }
    };
    timeout(CONNECT_DEADLINE, connect).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
#[path = "localhost_test.rs"]
mod tests;
