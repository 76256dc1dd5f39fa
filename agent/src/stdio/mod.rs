//! A process's input and output: pipes or a pty on the one side, the host's streams on the other.
//!
//! A descriptor has two halves that come in either order: the file, once the process has started, and the stream, once
//! the host has attached one. When both are there a task copies between them (`copy`). What is written before the host
//! attaches stays in the pipe, where it holds its writer back.

mod console;
mod copy;
mod listener;

use crate::sync::lock;
pub(crate) use console::{ConsoleError, ConsoleSocket};
use lazaret_agent_api::Ack;
use lazaret_agent_api::agent::Stdio as Wanted;
use lazaret_agent_api::agent::stream_header::Kind;
pub(crate) use listener::listen;
#[cfg(test)]
pub(crate) use listener::serve;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

/// The three descriptors of a process, of which some are the host's to attach to.
pub(crate) struct ProcessIo {
    stdin: Option<Slot>,
    stdout: Option<Slot>,
    stderr: Option<Slot>,
    terminal: Option<Mutex<Terminal>>,
    ended: watch::Sender<bool>,
    /// Attached outputs that are not yet at their end.
    open_outputs: Arc<watch::Sender<usize>>,
    /// Ends with the process's record.
    copies: Mutex<JoinSet<()>>,
}

/// The agent's side of one descriptor. An empty `file` has been given, or will never come; an empty `taker` is taken.
struct Slot {
    file: Mutex<Option<oneshot::Sender<OwnedFd>>>,
    taker: Mutex<Option<oneshot::Receiver<OwnedFd>>>,
}

#[derive(Default)]
struct Terminal {
    master: Option<OwnedFd>,
    /// Asked for before there was a terminal.
    size: Option<libc::winsize>,
}

/// The agent's ends of a process's pipes, in the order of the descriptors.
pub(crate) type Ends = [Option<OwnedFd>; 3];

impl ProcessIo {
    pub(crate) fn new(wanted: &Wanted, terminal: bool) -> Self {
        let slot = |wanted: bool| {
            wanted.then(|| {
                let (file, taker) = oneshot::channel();
                Slot { file: Mutex::new(Some(file)), taker: Mutex::new(Some(taker)) }
            })
        };
        Self {
            stdin: slot(wanted.stdin),
            stdout: slot(wanted.stdout),
            stderr: slot(wanted.stderr && !terminal),
            terminal: terminal.then(Mutex::default),
            ended: watch::Sender::new(false),
            open_outputs: Arc::new(watch::Sender::new(0)),
            copies: Mutex::default(),
        }
    }

    pub(crate) fn has_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Makes the pipes of a process without a terminal: its ends, and the agent's.
    ///
    /// # Errors
    /// Of pipe2(2).
    pub(crate) fn pipes(&self) -> nix::Result<([Stdio; 3], Ends)> {
        let mut ends: Ends = [None, None, None];
        let mut theirs = [Stdio::null(), Stdio::null(), Stdio::null()];
        for (i, slot) in [&self.stdin, &self.stdout, &self.stderr].into_iter().enumerate() {
            if slot.is_none() {
                continue;
            }
            let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
            let (their, our) = if i == 0 { (read, write) } else { (write, read) };
            set_nonblocking(&our)?;
            theirs[i] = Stdio::from(their);
            ends[i] = Some(our);
        }
        Ok((theirs, ends))
    }

    /// The process has started: `ends` are its pipes.
    pub(crate) fn connect(&self, ends: Ends) {
        for (slot, end) in [&self.stdin, &self.stdout, &self.stderr].into_iter().zip(ends) {
            if let (Some(slot), Some(end)) = (slot, end) {
                slot.send_file(end);
            }
        }
    }

    /// The process has started: `master` is the other side of its terminal.
    ///
    /// # Errors
    /// Of the system calls.
    pub(crate) fn connect_terminal(&self, master: OwnedFd) -> nix::Result<()> {
        set_nonblocking(&master)?;
        let duplicate =
            || master.try_clone().map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)));
        let ends = [Some(duplicate()?), Some(duplicate()?), None];
        if let Some(terminal) = &self.terminal {
            let mut terminal = lock(terminal);
            if let Some(size) = terminal.size {
                set_size(&master, &size)?;
            }
            terminal.master = Some(master);
        }
        self.connect(ends);
        Ok(())
    }

    /// The process will never start: attached streams close.
    pub(crate) fn fail(&self) {
        for slot in [&self.stdin, &self.stdout, &self.stderr].into_iter().flatten() {
            drop(lock(&slot.file).take());
        }
    }

    /// Sets the terminal's size in characters, at once or as soon as there is one. `None`: no terminal.
    pub(crate) fn resize(&self, width: u16, height: u16) -> Option<nix::Result<()>> {
        let mut terminal = lock(self.terminal.as_ref()?);
        let size = libc::winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        terminal.size = Some(size);
        Some(terminal.master.as_ref().map_or(Ok(()), |master| set_size(master, &size)))
    }

    /// Attaches a stream to a descriptor, which can have one.
    ///
    /// # Errors
    /// The refusal to be sent.
    pub(crate) fn attach(&self, kind: Kind) -> Result<Attachment, Ack> {
        let slot = match kind {
            Kind::STDIN => &self.stdin,
            Kind::STDOUT => &self.stdout,
            Kind::STDERR => &self.stderr,
        };
        let slot = slot.as_ref().ok_or(Ack::NotFound)?;
        let file = lock(&slot.taker).take().ok_or(Ack::Taken)?;
        let open = (kind != Kind::STDIN).then(|| OpenOutput::new(self.open_outputs.clone()));
        Ok(Attachment { file, ended: self.ended.subscribe(), open })
    }

    /// Copies between an attached descriptor and its stream, on a task of its own.
    pub(crate) fn copy<S>(&self, attachment: Attachment, stream: S)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut copies = lock(&self.copies);
        while copies.try_join_next().is_some() {}
        copies.spawn(attachment.run(stream));
    }

    /// The process has ended: what its pipes hold now is the end of its output.
    pub(crate) fn end(&self) {
        self.ended.send_replace(true);
        if let Some(terminal) = &self.terminal {
            lock(terminal).master = None;
        }
    }

    /// Waits until every attached output has been handed to its stream.
    pub(crate) async fn drained(&self) {
        // The sender is ours: it cannot be gone.
        let _ = self.open_outputs.subscribe().wait_for(|&open| open == 0).await;
    }
}

impl Slot {
    fn send_file(&self, end: OwnedFd) {
        if let Some(sender) = lock(&self.file).take() {
            // A stream that was attached and has broken wants it no more: it closes.
            let _ = sender.send(end);
        }
    }
}

/// A descriptor in the hands of one stream.
pub(crate) struct Attachment {
    file: oneshot::Receiver<OwnedFd>,
    ended: watch::Receiver<bool>,
    /// Of an output.
    open: Option<OpenOutput>,
}

impl Attachment {
    async fn run<S: AsyncRead + AsyncWrite + Unpin>(self, stream: S) {
        let Ok(file) = self.file.await else { return };
        let copied = if self.open.is_some() {
            copy::output(file, stream, self.ended).await
        } else {
            copy::input(stream, file, self.ended).await
        };
        if let Err(error) = copied {
            log::warn!("a stdio stream has broken: {error}");
        }
    }
}

/// Counts an attached output from attachment to its end.
struct OpenOutput(Arc<watch::Sender<usize>>);

impl OpenOutput {
    fn new(count: Arc<watch::Sender<usize>>) -> Self {
        count.send_modify(|open| *open += 1);
        Self(count)
    }
}

impl Drop for OpenOutput {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

fn set_nonblocking(file: &OwnedFd) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

fn set_size(terminal: &OwnedFd, size: &libc::winsize) -> nix::Result<()> {
    // SAFETY: TIOCSWINSZ reads a `winsize`, which outlives the call.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, std::ptr::from_ref(size)) })
        .map(drop)
}

#[cfg(test)]
#[path = "stdio_test.rs"]
mod tests;
