//! The terminal of stand-alone mode: raw while the VM runs, and what is typed goes to the guest.

use crate::event_loop::{Subscriber, Watches};
use crate::serial::Serial;
use crate::stop::Stop;
use crate::sync::lock;
use lazaret_vmm_wire::Cause;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{self, IsTerminal, Write, stdin};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use vmm_sys_util::epoll::EventSet;

/// Ctrl-A, and then `x`, ends the VM; Ctrl-A twice types one.
const ESCAPE: u8 = 1;

/// The terminal on stdin in raw mode, until this is dropped.
pub(crate) struct RawMode(Termios);

impl RawMode {
    /// `None` when stdin is no terminal.
    ///
    /// # Errors
    /// The terminal's.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        if !stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Some(Self(before)))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // It fails when the terminal has gone, and then nobody looks at it.
        let _ = tcsetattr(stdin(), SetArg::TCSANOW, &self.0);
    }
}

/// Where typed bytes go.
pub(crate) enum Typed {
    /// The pipe that virtio-console reads.
    Console(File),
    Serial(Arc<Mutex<Serial>>),
}

/// Passes stdin on to the guest.
pub(crate) struct Keyboard {
    typed: Typed,
    stop: Stop,
    escaped: bool,
}

impl Keyboard {
    #[must_use]
    pub(crate) fn new(typed: Typed, stop: Stop) -> Self {
        Self { typed, stop, escaped: false }
    }

    /// Takes the escapes out of what was typed.
    fn unescape(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut rest = Vec::with_capacity(bytes.len());
        for byte in bytes {
            match (std::mem::take(&mut self.escaped), *byte) {
                (true, b'x') => self.stop.end(Cause::Requested),
                (false, ESCAPE) if stdin().is_terminal() => self.escaped = true,
                (_, byte) => rest.push(byte),
            }
        }
        rest
    }
}

impl Subscriber for Keyboard {
    fn start(&mut self, watches: &mut Watches) -> io::Result<()> {
        match watches.set(stdin().as_raw_fd(), 0, EventSet::IN) {
            // A file or /dev/null cannot be watched, and has no keyboard behind it.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            other => other,
        }
    }

    fn event(&mut self, _: u32, _: EventSet, watches: &mut Watches) -> Result<(), Cause> {
        let failed = |error: io::Error| Cause::Error(format!("cannot read stdin: {error}"));
        let mut bytes = [0; 4096];
        // Not through std's buffer, which would hold back bytes that epoll does not know of.
        let count = nix::unistd::read(stdin(), &mut bytes).map_err(|errno| failed(errno.into()))?;
        if count == 0 {
            return watches.remove(stdin().as_raw_fd()).map_err(failed);
        }
        let bytes = self.unescape(bytes.get(..count).unwrap_or_default());
        match &mut self.typed {
            // A guest that does not read its console loses what is typed, when the pipe is full.
            Typed::Console(pipe) => drop(pipe.write(&bytes)),
            Typed::Serial(serial) => lock(serial).type_in(&bytes),
        }
        Ok(())
    }
}

/// The signals that end a process end the VM, so that the terminal is put right.
pub(crate) struct Signals {
    signals: SignalFd,
    stop: Stop,
}

impl Signals {
    /// Blocks the signals in this thread and those it will start.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn new(stop: Stop) -> io::Result<Self> {
        let set: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
        set.thread_block()?;
        Ok(Self {
            signals: SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?,
            stop,
        })
    }
}

impl Subscriber for Signals {
    fn start(&mut self, watches: &mut Watches) -> io::Result<()> {
        watches.set(self.signals.as_raw_fd(), 0, EventSet::IN)
    }

    fn event(&mut self, _: u32, _: EventSet, _: &mut Watches) -> Result<(), Cause> {
        self.stop.end(Cause::Requested);
        Ok(())
    }
}
