//! The copying between containerd's pipes and the guest's streams, with the backpressure of both.

use super::fifo::Output;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;

/// Bytes copied at once: what a pipe holds.
const CHUNK: usize = 64 * 1024;

/// Copies until `from` ends, or `to` takes no more.
async fn copy(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..length]).await?;
    }
}

/// From the pipe to the process, until every writer of the pipe is gone; then the process's input ends.
pub(super) async fn input<S: AsyncWrite + Unpin>(mut fifo: Receiver, mut stream: S) {
    // A process that closes its input early breaks the copy; there is nothing more to do for it either way.
    let _ = copy(&mut fifo, &mut stream).await;
    let _ = stream.shutdown().await;
}

/// From the process to the pipe, until the guest closes the stream; then the pipe is closed, so that its reader sees the
/// end. Once `ended` is true, a pipe that nobody reads is given up.
pub(super) async fn output<S: AsyncRead + Unpin>(
    mut stream: S,
    to: Output,
    mut ended: watch::Receiver<bool>,
) {
    let Output { mut fifo, reader } = to;
    let release = async move {
        // A sender that is gone counts as the end, too.
        let _ = ended.wait_for(|ended| *ended).await;
        drop(reader);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = copy(&mut stream, &mut fifo) => {}
        () = release => {}
    }
}

#[cfg(test)]
#[path = "pump_test.rs"]
mod tests;
