//! containerd's end of a process's stdio: named pipes, opened so that a client may come and go.
//!
//! The shim keeps the other end of each pipe open itself. An output then never breaks because nobody reads it, and an
//! input never ends because its client goes away: only dropping [`InputHold`] ends it, after what is in flight.

use crate::error::Error;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use tokio::net::unix::pipe::{OpenOptions as PipeOptions, Receiver, Sender};

#[derive(Debug, thiserror::Error)]
pub enum FifoError {
    #[error("stdio {0:?}: lazaret takes named pipes, given as a path or fifo:// address")]
    Scheme(String),
    #[error("stdio pipe {}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
}

impl From<FifoError> for Error {
    fn from(error: FifoError) -> Self {
        match error {
            FifoError::Scheme(_) => Self::Unimplemented(error.to_string()),
            FifoError::Open { .. } => Self::InvalidArgument(error.to_string()),
        }
    }
}

/// Where a process's input comes from.
#[derive(Debug)]
pub(super) struct Input {
    pub fifo: Receiver,
    /// `None` once the input was closed.
    pub hold: Option<InputHold>,
}

/// Keeps an input from ending.
#[derive(Debug)]
pub(super) struct InputHold(#[expect(dead_code, reason = "held open, never written to")] Sender);

/// Where a process's output goes.
#[derive(Debug)]
pub(super) struct Output {
    pub fifo: Sender,
    /// A reader of our own. Dropped when the process has ended: from then on a pipe nobody reads is broken.
    pub reader: File,
}

/// The path of a stdio address; `None` for an empty one, which is not connected.
///
/// # Errors
/// [`FifoError::Scheme`] for anything but a pipe.
pub(super) fn path(address: &str) -> Result<Option<PathBuf>, FifoError> {
    let path = address.strip_prefix("fifo://").unwrap_or(address);
    match path {
        "" => Ok(None),
        path if path.contains("://") => Err(FifoError::Scheme(address.into())),
        path => Ok(Some(path.into())),
    }
}

impl Input {
    /// Opens without waiting for a client.
    ///
    /// # Errors
    /// [`FifoError::Open`].
    pub(super) fn open(path: &Path) -> Result<Self, FifoError> {
        let failed = |source| FifoError::Open { path: path.into(), source };
        let fifo = PipeOptions::new().open_receiver(path).map_err(failed)?;
        // There is a reader by now, so this does not fail for want of one.
        let hold = InputHold(PipeOptions::new().open_sender(path).map_err(failed)?);
        Ok(Self { fifo, hold: Some(hold) })
    }
}

impl Output {
    /// Opens without waiting for a client.
    ///
    /// # Errors
    /// [`FifoError::Open`].
    pub(super) fn open(path: &Path) -> Result<Self, FifoError> {
        let failed = |source| FifoError::Open { path: path.into(), source };
        let reader =
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
        let fifo = PipeOptions::new().open_sender(path).map_err(failed)?;
        Ok(Self { fifo, reader })
    }
}
