//! A process's stdio between containerd's named pipes and the guest.
//!
//! ```text
//!   client ──► stdin pipe  ──► pump ──► vsock stream ──► process
//!   client ◄── stdout pipe ◄── pump ◄── vsock stream ◄── process
//! ```
//!
//! An output may go to a file, or both to one logging driver, instead.

mod address;
mod driver;
mod fifo;
mod output;
mod pump;

use crate::error::{Error, Result};
use address::Address;
use driver::Driver;
use fifo::{Input, InputHold};
use lazaret_agent_api::agent::stream_header::Kind;
use output::Output;
use std::io;
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

/// Whose stdio it is, for a logging driver.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner<'a> {
    /// The container's id, or the exec's.
    pub id: &'a str,
    /// containerd's namespace.
    pub namespace: &'a str,
}

#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    #[error("stdio {0:?}: lazaret takes named pipes and, for outputs, file:// and binary://")]
    Scheme(String),
    #[error("stdio {address:?}: {why}")]
    Address { address: String, why: &'static str },
    #[error(
        "stdout {stdout:?} and stderr {stderr:?}: a logging driver takes both outputs: give it for both, or leave stderr out"
    )]
    Mixed { stdout: String, stderr: String },
    #[error("stdio {}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("logging driver {}: {source}", binary.display())]
    Driver { binary: PathBuf, source: io::Error },
}

impl From<StdioError> for Error {
    fn from(error: StdioError) -> Self {
        let line = error.to_string();
        match error {
            StdioError::Scheme(_) => Self::Unimplemented(line),
            StdioError::Driver { source, .. } | StdioError::Open { source, .. }
                if source.kind() == io::ErrorKind::TimedOut =>
            {
                Self::DeadlineExceeded(line)
            }
            _ => Self::InvalidArgument(line),
        }
    }
}

impl Stdio {
    /// Where each descriptor is connected. With a terminal there is no stderr: both outputs come through stdout.
    ///
    /// # Errors
    /// [`StdioError`].
    fn addresses(&self) -> std::result::Result<[Address; 3], StdioError> {
        let stdin = match Address::parse(&self.stdin)? {
            Address::File(_) | Address::Driver(_) => return Err(StdioError::Scheme(self.stdin.clone())),
            stdin => stdin,
        };
        let stdout = Address::parse(&self.stdout)?;
        let stderr = if self.terminal { Address::None } else { Address::parse(&self.stderr)? };
        let both = matches!(stderr, Address::None) || stdout == stderr;
        if !both && [&stdout, &stderr].iter().any(|address| matches!(address, Address::Driver(_))) {
            let (stdout, stderr) = (self.stdout.clone(), self.stderr.clone());
            return Err(StdioError::Mixed { stdout, stderr });
        }
        Ok([stdin, stdout, stderr])
    }

    /// Which descriptors are connected, for the agent.
    ///
    /// # Errors
    /// As of [`ProcessIo::open`], but for what is opened.
    pub(crate) fn for_agent(&self) -> std::result::Result<lazaret_agent_api::agent::Stdio, StdioError> {
        let [stdin, stdout, stderr] = self.addresses()?.map(|address| address != Address::None);
        Ok(lazaret_agent_api::agent::Stdio { stdin, stdout, stderr, ..Default::default() })
    }
}

/// The open pipes of one process, and the tasks that copy. Dropping it closes the pipes.
#[derive(Debug)]
pub(crate) struct ProcessIo {
    stdin: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    _driver: Option<Driver>,
    hold: Option<InputHold>,
    input: JoinSet<()>,
    outputs: JoinSet<()>,
    /// Outputs that are still copied.
    open: Arc<watch::Sender<usize>>,
    ended: watch::Sender<bool>,
}

impl ProcessIo {
    /// Opens the pipes and files, and runs the logging driver. Nothing waits for a client.
    ///
    /// # Errors
    /// [`StdioError`].
    pub(crate) async fn open(stdio: &Stdio, owner: Owner<'_>) -> std::result::Result<Self, StdioError> {
        let [stdin, stdout, stderr] = stdio.addresses()?;
        let stdin = match &stdin {
            Address::Fifo(path) => Some(Input::open(path)?),
            _ => None,
        };
        let (driver, stdout, stderr) = match (&stdout, stderr) {
            (Address::Driver(command), stderr) => {
                let (driver, [out, err]) = driver::start(command, &owner).await?;
                // Without a stderr the driver finds its end.
                let stderr = (stderr != Address::None).then(|| Output::pipe(err));
                (Some(driver), Some(Output::pipe(out)), stderr)
            }
            (stdout, stderr) => (None, open_output(stdout).await?, open_output(&stderr).await?),
        };
        Ok(Self {
            stdin,
            stdout,
            stderr,
            _driver: driver,
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

    /// The process has ended: its input is closed, and an output that no client reads is not waited for.
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

async fn open_output(address: &Address) -> std::result::Result<Option<Output>, StdioError> {
    match address {
        Address::Fifo(path) => Output::fifo(path).map(Some),
        Address::File(path) => Output::file(path).await.map(Some),
        Address::None | Address::Driver(_) => Ok(None),
    }
}

#[cfg(test)]
#[path = "io_test.rs"]
mod tests;
