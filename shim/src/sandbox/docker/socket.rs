//! The socket of the private Docker daemon on the host. What a client says is carried to the guest and back as it is;
//! nothing here reads it.
//!
//! ```text
//!   client ──► <state dir>/docker.sock ──► relay ──► vsock guest:1026 ──► agent ──► dockerd
//! ```

use crate::error::{Error, Result};
use crate::sandbox::network::relay;
use crate::socket::MAX_PATH;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;
use tokio::net::{UnixListener, UnixStream};

/// The most connections at a time; further ones are closed.
const MAX_CONNECTIONS: usize = 128;
/// Bytes that are buffered in each direction of a connection.
const RELAY_BUFFER: usize = 32 * 1024;

/// Whether a socket can be at `path`.
///
/// # Errors
/// [`Error::InvalidArgument`] when the path is too long for one.
pub(in crate::sandbox) fn check(annotation: &str, path: &Path) -> Result<()> {
    let length = path.as_os_str().len();
    if length <= MAX_PATH {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "annotation {annotation}: the socket {} would have a path of {length} bytes, and at most {MAX_PATH} are \
         possible: choose a shorter id",
        path.display()
    )))
}

/// Listens at `path`, for root alone.
///
/// # Errors
/// The kernel's.
pub(in crate::sandbox) fn listen_at(path: &Path) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // The file gets the socket's own mode (Linux, net/unix/af_unix.c), so it never has a wider one; the umask is not only
    // this thread's.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&socket, Backlog::MAXCONN)?;
    UnixListener::from_std(StdUnixListener::from(socket))
}

/// Carries each connection to a stream that `connect` gives for it, until it is dropped, and every connection with it.
pub(in crate::sandbox) async fn serve<F>(listener: UnixListener, connect: impl Fn() -> F)
where
    F: Future<Output = Result<UnixStream>> + Send + 'static,
{
    let listener = &listener;
    let accept = || async { Ok(listener.accept().await?.0) };
    relay::serve("the Docker socket", MAX_CONNECTIONS, accept, |client| relay(client, connect()), drop).await;
}

async fn relay(client: UnixStream, guest: impl Future<Output = Result<UnixStream>>) {
    let guest = match guest.await {
        Ok(guest) => guest,
        Err(error) => return log::warn!("a connection to the Docker socket is refused: {error}"),
    };
    if let Err(error) = relay::copy(client, guest, RELAY_BUFFER).await {
        log::debug!("a connection to the Docker socket broke: {error}");
    }
}

#[cfg(test)]
#[path = "socket_test.rs"]
mod tests;
