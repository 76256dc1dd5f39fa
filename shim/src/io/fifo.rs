//! containerd's end of a process's stdio: named pipes, opened so that a client may come and go.
//!
//! The shim keeps the other end of each pipe open itself. An output then never breaks because nobody reads it, and an
//! input never ends because its client goes away: only dropping [`InputHold`] ends it, after what is in flight.

use super::StdioError;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use tokio::net::unix::pipe::{OpenOptions as PipeOptions, Receiver, Sender};

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

impl Input {
    /// Opens without waiting for a client.
    ///
    /// # Errors
    /// [`StdioError::Open`].
    pub(super) fn open(path: &Path) -> Result<Self, StdioError> {
        let failed = |source| StdioError::Open { path: path.into(), source };
        let fifo = PipeOptions::new().open_receiver(path).map_err(failed)?;
        // There is a reader by now, so this does not fail for want of one.
        let hold = InputHold(PipeOptions::new().open_sender(path).map_err(failed)?);
        Ok(Self { fifo, hold: Some(hold) })
    }
}

/// Opens an output without waiting for a client, and a reader of our own with it.
///
/// # Errors
/// [`StdioError::Open`].
pub(super) fn open_output(path: &Path) -> Result<(Sender, File), StdioError> {
    let failed = |source| StdioError::Open { path: path.into(), source };
    let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    Ok((PipeOptions::new().open_sender(path).map_err(failed)?, reader))
}
