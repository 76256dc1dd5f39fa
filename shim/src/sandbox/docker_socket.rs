//! The socket of the private Docker daemon on the host. What a client says is carried to the guest and back as it is;
//! nothing here reads it.
//!
//! ```text
//!   client ──► <state dir>/docker.sock ──► relay ──► vsock guest:1026 ──► agent ──► dockerd
//! ```

use crate::error::{Error, Result};
use crate::socket::MAX_PATH;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;
use std::time::Duration;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

/// Connections at once; further ones are closed at once.
const MOST: usize = 128;
/// Bytes that are held in each direction of a connection.
const BUFFER: usize = 32 * 1024;
/// How long nothing is accepted after an attempt failed: descriptors that have run out do not come back at once.
const PAUSE: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(1) };

/// Whether a socket can be at `path`.
///
/// # Errors
/// [`Error::InvalidArgument`] when the path is too long for one.
pub(super) fn check(annotation: &str, path: &Path) -> Result<()> {
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
pub(super) fn listen_at(path: &Path) -> io::Result<UnixListener> {
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
pub(super) async fn serve<F>(listener: UnixListener, connect: impl Fn() -> F)
where
    F: Future<Output = Result<UnixStream>> + Send + 'static,
{
    let mut relays = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = relays.join_next() => {}
            accepted = listener.accept() => match accepted {
                // A client that waited would not know for what: nothing says that another will leave.
                Ok(_) if relays.len() == MOST => {
                    log::warn!("a connection to the Docker socket is refused: there are {MOST} already");
                }
                Ok((client, _)) => drop(relays.spawn(relay(client, connect()))),
                Err(error) => {
                    log::warn!("the Docker socket takes no connection: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Until both sides have said all they have to say: the end of one side's words is told to the other, whose answer still
/// comes.
async fn relay(mut client: UnixStream, guest: impl Future<Output = Result<UnixStream>>) {
    let mut guest = match guest.await {
        Ok(guest) => guest,
        Err(error) => return log::warn!("a connection to the Docker socket is refused: {error}"),
    };
    // That one side is gone is told by closing the other.
    if let Err(error) = copy_bidirectional_with_sizes(&mut client, &mut guest, BUFFER, BUFFER).await {
        log::debug!("a connection to the Docker socket broke: {error}");
    }
}

#[cfg(test)]
#[path = "docker_socket_test.rs"]
mod tests;
