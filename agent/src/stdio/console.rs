//! How the other side of a container's terminal comes to the agent: crun makes the pty inside the container and sends
//! its master over a socket.

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UnixListener;
use tokio::time::timeout;

/// How long the terminal may take to arrive. crun has sent it when crun ends, so this only covers a slow kernel.
const TERMINAL_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConsoleError {
    #[error("cannot listen for the terminal on {0}: {1}")]
    Listen(PathBuf, #[source] io::Error),
    #[error("cannot receive the terminal: {0}")]
    Receive(#[from] io::Error),
    #[error("crun sent no terminal")]
    NoTerminal,
    #[error("crun did not send the terminal within {n} s", n = TERMINAL_TIMEOUT.as_secs())]
    Deadline,
}

pub(crate) struct ConsoleSocket {
    listener: UnixListener,
    /// Leads through a descriptor: a socket's path is shorter than an id may be (unix(7)).
    pub(crate) path: PathBuf,
    _directory: File,
}

impl ConsoleSocket {
    /// In a directory that is root's alone.
    ///
    /// # Errors
    /// [`ConsoleError::Listen`].
    pub(crate) fn bind(directory: &Path) -> Result<Self, ConsoleError> {
        let failed = |error| ConsoleError::Listen(directory.join("console"), error);
        let directory = File::open(directory).map_err(failed)?;
        let path = format!("/proc/{}/fd/{}/console", std::process::id(), directory.as_raw_fd());
        let listener = UnixListener::bind(&path).map_err(failed)?;
        Ok(Self { listener, path: path.into(), _directory: directory })
    }

    /// # Errors
    /// [`ConsoleError`].
    pub(crate) async fn receive(self) -> Result<OwnedFd, ConsoleError> {
        timeout(TERMINAL_TIMEOUT, self.receive_in_time()).await.map_err(|_| ConsoleError::Deadline)?
    }

    async fn receive_in_time(self) -> Result<OwnedFd, ConsoleError> {
        let (stream, _) = self.listener.accept().await?;
        let received =
            stream.async_io(Interest::READABLE, || receive_descriptors(stream.as_raw_fd())).await?;
        received.into_iter().next().ok_or(ConsoleError::NoTerminal)
    }
}

fn receive_descriptors(socket: RawFd) -> io::Result<Vec<OwnedFd>> {
    let mut name = [0; 4096];
    let mut data = [IoSliceMut::new(&mut name)];
    let mut space = cmsg_space!([RawFd; 1]);
    let message = recvmsg::<()>(socket, &mut data, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut received = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control {
            // SAFETY: the kernel has just made these descriptors for us, each once.
            received.extend(descriptors.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(received)
}
