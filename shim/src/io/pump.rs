//! The copying between containerd's pipes and the guest's streams, with the backpressure of both.

use super::output::Output;
use std::collections::VecDeque;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;

/// Bytes copied at once: what a pipe holds.
const CHUNK: usize = 64 * 1024;
/// The most that is taken over of an output whose process has ended: more than a vsock stream and the socket to the VMM hold.
const MAX_REST: usize = 1024 * 1024;

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
/// end. Once `ended` is true, a pipe that nobody reads is given up, and what the guest still has on the way for a slow
/// reader is taken over: the guest may be about to go.
pub(super) async fn output<S: AsyncRead + Unpin>(
    mut stream: S,
    mut to: Output,
    mut ended: watch::Receiver<bool>,
) {
    let mut chunk = vec![0; CHUNK];
    let mut pending = VecDeque::new();
    let (mut open, mut running) = (true, true);
    while open || !pending.is_empty() {
        // While the process runs, a reader that is slow holds it back.
        let limit = if running { 1 } else { MAX_REST };
        tokio::select! {
            read = stream.read(&mut chunk), if open && pending.len() < limit => match read {
                Ok(length @ 1..) => pending.extend(&chunk[..length]),
                Ok(0) | Err(_) => open = false,
            },
            written = to.write(pending.as_slices().0), if !pending.is_empty() => match written {
                Ok(length) => drop(pending.drain(..length)),
                Err(_) => return,
            },
            // A sender that is gone counts as the end, too.
            _ = ended.wait_for(|ended| *ended), if running => {
                running = false;
                to.reader = None;
            }
        }
    }
    to.flush().await;
}

#[cfg(test)]
#[path = "pump_test.rs"]
mod tests;
