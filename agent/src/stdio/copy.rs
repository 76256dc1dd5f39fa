//! The two directions of a stdio stream.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::select;
use tokio::sync::watch;

/// A pipe's default capacity, and about the largest vsock packet.
const CHUNK: usize = 64 * 1024;
/// More than the kernel buffers in a pty.
const PTY_CAPACITY: usize = 128 * 1024;

/// Copies a process's output to its stream and closes it: at the end of file, or once the process has ended and what
/// the pipe held by then is handed over. Whatever a child that outlived the process writes afterwards is not its output.
///
/// # Errors
/// When the stream breaks.
pub(super) async fn output<S: AsyncWrite + Unpin>(
    file: OwnedFd,
    mut stream: S,
    mut ended: watch::Receiver<bool>,
) -> io::Result<()> {
    let file = register(file, Interest::READABLE)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = select! {
            // First, or a child that never stops writing would keep the stream open.
            biased;
            _ = ended.wait_for(|&ended| ended) => break,
            read = file.async_io(Interest::READABLE, |file| Ok(nix::unistd::read(file, &mut buffer)?)) => read,
        };
        match read {
            // EIO is how a pty says that its last user is gone.
            Ok(0) | Err(_) => return stream.shutdown().await,
            Ok(n) => stream.write_all(&buffer[..n]).await?,
        }
    }
    let mut left = capacity(file.get_ref());
    while left > 0 {
        let length = left.min(CHUNK);
        match nix::unistd::read(file.get_ref(), &mut buffer[..length]) {
            Err(Errno::EINTR) => {}
            Ok(0) | Err(_) => break,
            Ok(n) => {
                left -= n;
                stream.write_all(&buffer[..n]).await?;
            }
        }
    }
    stream.shutdown().await
}

/// The most that the process can have left behind.
fn capacity(file: &OwnedFd) -> usize {
    let pipe = fcntl(file, FcntlArg::F_GETPIPE_SZ).ok().and_then(|size| usize::try_from(size).ok());
    pipe.unwrap_or(PTY_CAPACITY)
}

/// Copies a stream to a process's input, and closes the input when the stream ends, the process ends, or no process reads.
///
/// # Errors
/// When the stream breaks.
pub(super) async fn input<S: AsyncRead + Unpin>(
    mut stream: S,
    file: OwnedFd,
    mut ended: watch::Receiver<bool>,
) -> io::Result<()> {
    let file = register(file, Interest::WRITABLE)?;
    let mut buffer = vec![0; CHUNK];
    let copy = async {
        loop {
            let n = stream.read(&mut buffer).await?;
            if n == 0 || write_all(&file, &buffer[..n]).await.is_err() {
                return Ok(());
            }
        }
    };
    select! {
        _ = ended.wait_for(|&ended| ended) => Ok(()),
        copied = copy => copied,
    }
}

fn register(file: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, and the same descriptor, for as long as the `AsyncFd` owns it.
    Ok(unsafe { AsyncFd::register_with_interest(file, interest) }?)
}

async fn write_all(file: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = file.async_io(Interest::WRITABLE, |file| Ok(nix::unistd::write(file, bytes)?)).await?;
        bytes = &bytes[n..];
    }
    Ok(())
}
