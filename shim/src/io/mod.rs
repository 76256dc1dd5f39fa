//! A process's stdio between containerd's named pipes and the guest.
//!
//! ```text
//!   client ──► stdin pipe  ──► pump ──► vsock stream ──► process
//!   client ◄── stdout pipe ◄── pump ◄── vsock stream ◄── process
//! ```

mod fifo;
mod pump;

use crate::error::Result;
pub(crate) use fifo::FifoError;
use fifo::{Input, InputHold, Output};
use lazaret_agent_api::agent::stream_header::Kind;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The stdio containerd asked for, as it wrote it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stdio {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

impl Stdio {
    /// Which descriptors are connected. With a terminal there is no stderr: both outputs come through stdout.
    ///
    /// # Errors
    /// [`FifoError::Scheme`].
    fn paths(&self) -> std::result::Result<[Option<PathBuf>; 3], FifoError> {
        let stderr = if self.terminal { None } else { fifo::path(&self.stderr)? };
        Ok([fifo::path(&self.stdin)?, fifo::path(&self.stdout)?, stderr])
    }

    /// The same for the agent.
    ///
    /// # Errors
    /// [`FifoError::Scheme`].
    pub(crate) fn for_agent(&self) -> std::result::Result<lazaret_agent_api::agent::Stdio, FifoError> {
        let [stdin, stdout, stderr] = self.paths()?.map(|path| path.is_some());
        Ok(lazaret_agent_api::agent::Stdio { stdin, stdout, stderr, ..Default::default() })
    }
}

/// The open pipes of one process, and the tasks that copy. Dropping it closes the pipes.
#[derive(Debug)]
pub(crate) struct ProcessIo {
    stdin: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    hold: Option<InputHold>,
    input: JoinSet<()>,
    outputs: JoinSet<()>,
    /// Outputs that are still copied.
    open: Arc<watch::Sender<usize>>,
    ended: watch::Sender<bool>,
}

impl ProcessIo {
    /// Opens the pipes. Nothing waits for a client.
    ///
    /// # Errors
    /// [`FifoError`].
    pub(crate) fn open(stdio: &Stdio) -> std::result::Result<Self, FifoError> {
        let [stdin, stdout, stderr] = stdio.paths()?;
        Ok(Self {
            stdin: stdin.map(|path| Input::open(&path)).transpose()?,
            stdout: stdout.map(|path| Output::open(&path)).transpose()?,
            stderr: stderr.map(|path| Output::open(&path)).transpose()?,
            hold: None,
            input: JoinSet::new(),
            outputs: JoinSet::new(),
            open: Arc::new(watch::channel(0).0),
            ended: watch::channel(false).0,
        })
    }

    /// Connects each pipe to the stream that `connect` gives for it, and starts to copy.
    ///
    /// # Errors
    /// Those of `connect`.
    pub(crate) async fn attach<F>(&mut self, connect: impl Fn(Kind) -> F) -> Result<()>
    where
        F: Future<Output = Result<UnixStream>>,
    {
        // The outputs first: an input may make the process write and end at once.
        for (kind, output) in [(Kind::STDOUT, self.stdout.take()), (Kind::STDERR, self.stderr.take())] {
            let Some(output) = output else { continue };
            let pump = pump::output(connect(kind).await?, output, self.ended.subscribe());
            let open = self.open.clone();
            open.send_modify(|open| *open += 1);
            self.outputs.spawn(async move {
                pump.await;
                open.send_modify(|open| *open -= 1);
            });
        }
        if let Some(Input { fifo, hold }) = self.stdin.take() {
            let stream = connect(Kind::STDIN).await?;
            self.hold = hold;
            self.input.spawn(pump::input(fifo, stream));
        }
        Ok(())
    }

    /// The shim's own end of stdin is closed: the input ends once all clients have closed theirs and what they wrote
    /// is through.
    pub(crate) fn close_stdin(&mut self) {
        self.hold = None;
        if let Some(input) = &mut self.stdin {
            // Not attached yet: the pump will find the end where it is.
            input.hold = None;
        }
    }

    /// The process has ended: its input is of no use, and an output that nobody reads is no reason to wait.
    pub(crate) fn process_ended(&mut self) {
        self.hold = None;
        self.stdin = None;
        self.input.abort_all();
        self.ended.send_replace(true);
    }

    /// The number of outputs that are still copied.
    #[must_use]
    pub(crate) fn outputs_open(&self) -> watch::Receiver<usize> {
        self.open.subscribe()
    }
}

#[cfg(test)]
#[path = "io_test.rs"]
mod tests;
