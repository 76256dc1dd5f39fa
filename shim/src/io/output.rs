//! Where a process's output goes: a pipe, also a logging driver's, or a file.

use super::{StdioError, fifo};
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe::Sender;

/// How long a file may take to be opened: its file system may not answer.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// An open output.
#[derive(Debug)]
pub(super) struct Output {
    sink: Sink,
    /// Of a named pipe: a reader of our own. Dropped when the process has ended: from then on a pipe nobody reads is broken.
    pub reader: Option<File>,
}

#[derive(Debug)]
enum Sink {
    Pipe(Sender),
    File(tokio::fs::File),
}

impl Output {
    /// # Errors
    /// [`StdioError::Open`].
    pub(super) fn fifo(path: &Path) -> Result<Self, StdioError> {
        let (pipe, reader) = fifo::open_output(path)?;
        Ok(Self { sink: Sink::Pipe(pipe), reader: Some(reader) })
    }

    /// A file that is appended to, and made where there is none.
    ///
    /// # Errors
    /// [`StdioError::Open`].
    pub(super) async fn file(path: &Path) -> Result<Self, StdioError> {
        let failed = |source| StdioError::Open { path: path.into(), source };
        let mut options = tokio::fs::OpenOptions::new();
        let open = options.create(true).append(true).mode(0o644).open(path);
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "its file system does not answer");
        let opened = tokio::time::timeout(OPEN_TIMEOUT, open).await.map_err(late);
        let file = opened.and_then(|opened| opened).map_err(failed)?;
        Ok(Self { sink: Sink::File(file), reader: None })
    }

    pub(super) fn pipe(pipe: Sender) -> Self {
        Self { sink: Sink::Pipe(pipe), reader: None }
    }

    /// Writes a part of `bytes`. Nothing was written when this is given up.
    ///
    /// # Errors
    /// Nobody reads, or the file's.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.sink {
            Sink::Pipe(pipe) => pipe.write(bytes).await,
            Sink::File(file) => file.write(bytes).await,
        }
    }

    /// Waits until what was written is there.
    pub(super) async fn flush(&mut self) {
        if let Sink::File(file) = &mut self.sink
            && let Err(error) = file.flush().await
        {
            log::warn!("writing a process's output to its file: {error}");
        }
    }
}
