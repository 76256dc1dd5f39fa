//! The one place that waits for processes.
//!
//! Process 1 is the parent of every orphan: of the containers' first processes and execs, which crun leaves behind, and
//! of strays. One loop collects them all, driven by SIGCHLD, and hands each exit to the code that waits for its pid.
//!
//! crun's children are known only once crun has ended and its pid file is read, and may be gone by then. So while
//! a start of crun [expects](Reaper::expect) a pid, exits that nothing claims are kept, the newest [`MAX_UNCLAIMED`] of them.

use crate::sync::lock;
use nix::errno::Errno;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// While a container starts, crun's own helpers are what ends unclaimed: a handful for each.
const MAX_UNCLAIMED: usize = 1024;

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// As a shell counts: the exit code, or 128 + the signal.
    pub(crate) status: u32,
    /// Nanoseconds since the epoch.
    pub(crate) at_ns: i64,
}

impl Exit {
    pub(crate) fn now(status: u32) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { status, at_ns: i64::try_from(since.as_nanos()).unwrap_or(i64::MAX) }
    }
}

/// A process that the agent is the parent of.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: libc::pid_t,
    pub(crate) handle: ProcessHandle,
    pub(crate) exit: oneshot::Receiver<Exit>,
}

/// Signals a process and never one that has its pid after it. Without a descriptor the process has ended.
#[derive(Debug)]
pub(crate) struct ProcessHandle(Option<OwnedFd>);

impl ProcessHandle {
    /// # Errors
    /// `ESRCH` when the process has ended.
    pub(crate) fn signal(&self, signal: i32) -> nix::Result<()> {
        let pidfd = self.0.as_ref().ok_or(Errno::ESRCH)?;
        // SAFETY: the descriptor is ours and open; a null siginfo asks for what kill(2) would send.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                pidfd.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        Errno::result(result).map(drop)
    }
}

#[derive(Default)]
struct Table {
    waiters: HashMap<libc::pid_t, oneshot::Sender<Exit>>,
    expecting: usize,
    unclaimed: VecDeque<(libc::pid_t, Exit)>,
}

pub(crate) struct Reaper(Mutex<Table>);

impl Reaper {
    /// Starts the loop, on the current runtime.
    ///
    /// # Errors
    /// When SIGCHLD cannot be watched.
    pub(crate) fn start() -> io::Result<Arc<Self>> {
        let signals = signal(SignalKind::child())?;
        let reaper = Arc::new(Self(Mutex::default()));
        tokio::spawn(reaper.clone().run(signals));
        Ok(reaper)
    }

    async fn run(self: Arc<Self>, mut signals: Signal) {
        loop {
            self.reap();
            if signals.recv().await.is_none() {
                return;
            }
        }
    }

    /// Collects every process that has ended: one SIGCHLD may stand for many.
    fn reap(&self) {
        // Held throughout, so that a process is not collected between its start and its registration.
        let mut table = self.table();
        loop {
            let mut status = 0;
            // Not nix's: it knows no real-time signals, and a process that ends by one would be lost.
            // SAFETY: `status` outlives the call, which writes nothing else.
            match Errno::result(unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) }) {
                Ok(0) | Err(Errno::ECHILD) => return,
                Ok(pid) if libc::WIFEXITED(status) => {
                    table.ended(pid, libc::WEXITSTATUS(status).unsigned_abs());
                }
                Ok(pid) => table.ended(pid, 128 + libc::WTERMSIG(status).unsigned_abs()),
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    log::error!("cannot wait for processes: {errno}");
                    return;
                }
            }
        }
    }

    /// Starts a process of the agent's own.
    ///
    /// # Errors
    /// As [`Command::spawn`].
    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let mut table = self.table();
        let pid = libc::pid_t::try_from(command.spawn()?.id()).map_err(io::Error::other)?;
        Ok(table.register(pid))
    }

    /// Keeps all exits until the result is dropped.
    pub(crate) fn expect(self: &Arc<Self>) -> Expectation {
        self.table().expecting += 1;
        Expectation(self.clone())
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.0)
    }
}

/// Keeps exits that nothing claims yet: the owner of this will claim a pid that it does not know now.
pub(crate) struct Expectation(Arc<Reaper>);

impl Expectation {
    /// The process with this pid, which may have ended since the expectation began.
    pub(crate) fn claim(&self, pid: libc::pid_t) -> Child {
        let mut table = self.0.table();
        match table.unclaimed.iter().rposition(|&(of, _)| of == pid).and_then(|i| table.unclaimed.remove(i)) {
            Some((_, exit)) => {
                let (sender, receiver) = oneshot::channel();
                // The receiver is in our hands: it cannot have been dropped.
                let _ = sender.send(exit);
                Child { pid, handle: ProcessHandle(None), exit: receiver }
            }
            None => table.register(pid),
        }
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        let mut table = self.0.table();
        table.expecting -= 1;
        if table.expecting == 0 {
            table.unclaimed.clear();
        }
    }
}

impl Table {
    fn register(&mut self, pid: libc::pid_t) -> Child {
        let (sender, exit) = oneshot::channel();
        self.waiters.insert(pid, sender);
        // SAFETY: a plain system call; the descriptor it returns is nobody else's. The table is locked and the pid not
        // collected, so it still names the process, be it a zombie.
        let pidfd = unsafe {
            let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
            i32::try_from(fd).ok().filter(|&fd| fd >= 0).map(|fd| OwnedFd::from_raw_fd(fd))
        };
        Child { pid, handle: ProcessHandle(pidfd), exit }
    }

    fn ended(&mut self, pid: libc::pid_t, status: u32) {
        let exit = Exit::now(status);
        if let Some(waiter) = self.waiters.remove(&pid) {
            // An error says that the receiver was dropped: the exit is not wanted any more.
            let _ = waiter.send(exit);
        } else if self.expecting > 0 {
            if self.unclaimed.len() == MAX_UNCLAIMED {
                self.unclaimed.pop_front();
            }
            self.unclaimed.push_back((pid, exit));
        }
    }
}

#[cfg(test)]
#[path = "reaper_test.rs"]
mod tests;
