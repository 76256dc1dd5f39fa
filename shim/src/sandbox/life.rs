//! The life of one process, as containerd may see it: no IO, no waiting.
//!
//! ```text
//!            begin_start          started
//!   Created ────────────► Starting ──────► Running ──exited──► Stopped ──delete──► Deleted
//!      │  ▲                │ start_failed                        ▲
//!      │  └─── init ───────┤                                     │
//!      │                   └──── exec: never ran, no exit event ─┤
//!      └────────── exited: killed before it was started ─────────┘
//! ```
//!
//! An exit that is reported while the start is still under way is held back, so that no exit is ever told before its
//! start.

use crate::error::{Error, Result};
use std::time::SystemTime;

/// The exit status of a process whose VM ended under it: 128 + SIGKILL.
pub(super) const KILLED: u32 = 137;
/// The exit status of an exec that could not be started, as runc's shim has it.
pub(super) const NEVER_RAN: u32 = 255;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// As a shell counts: the exit code, or 128 + the signal.
    pub status: u32,
    pub at: SystemTime,
}

/// Whether a process is its container's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Init,
    Exec,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Created,
    /// The guest has been asked; with the exit, if that came first.
    Starting(Option<Exit>),
    Running,
    Stopped(Exit),
    Deleted(Exit),
}

/// What containerd is told of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Created,
    Running,
    Stopped(Exit),
}

/// The state machine of a process.
#[derive(Debug)]
pub(super) struct Life {
    kind: Kind,
    phase: Phase,
}

impl Life {
    #[must_use]
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, phase: Phase::Created }
    }

    #[must_use]
    pub(super) fn status(&self) -> Status {
        match self.phase {
            Phase::Created => Status::Created,
            Phase::Starting(_) | Phase::Running => Status::Running,
            Phase::Stopped(exit) | Phase::Deleted(exit) => Status::Stopped(exit),
        }
    }

    /// Whether the process may still be heard of: it runs, or is about to.
    #[must_use]
    pub(super) fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Starting(_) | Phase::Running)
    }

    /// The guest is about to be asked to run the process.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] unless it is created.
    pub(super) fn begin_start(&mut self) -> Result<()> {
        let problem = match self.phase {
            Phase::Created => {
                self.phase = Phase::Starting(None);
                return Ok(());
            }
            Phase::Starting(_) => "is being started",
            Phase::Running => "runs already",
            Phase::Stopped(_) | Phase::Deleted(_) => "has ended",
        };
        Err(Error::FailedPrecondition(format!("cannot start: the process {problem}")))
    }

    /// The guest runs the process. Returns the exit that was held back, to be told after the start.
    pub(super) fn started(&mut self) -> Option<Exit> {
        let Phase::Starting(held) = self.phase else { return None };
        self.phase = held.map_or(Phase::Running, Phase::Stopped);
        held
    }

    /// The guest refused to run the process. Returns an exit to be told: a container's own process may have died of it.
    pub(super) fn start_failed(&mut self, now: SystemTime) -> Option<Exit> {
        let Phase::Starting(held) = self.phase else { return None };
        match (self.kind, held) {
            (Kind::Init, None) => self.phase = Phase::Created,
            (Kind::Init, Some(exit)) => self.phase = Phase::Stopped(exit),
            (Kind::Exec, _) => self.phase = Phase::Stopped(Exit { status: NEVER_RAN, at: now }),
        }
        held.filter(|_| self.kind == Kind::Init)
    }

    /// The process has ended. True when the exit is to be told now; false when it is held back or was told before.
    #[must_use]
    pub(super) fn exited(&mut self, exit: Exit) -> bool {
        match &mut self.phase {
            Phase::Starting(held) => {
                held.get_or_insert(exit);
                false
            }
            Phase::Created | Phase::Running => {
                self.phase = Phase::Stopped(exit);
                true
            }
            Phase::Stopped(_) | Phase::Deleted(_) => false,
        }
    }

    /// Whether a signal may be sent.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the process has ended; [`Error::FailedPrecondition`] for an exec that was not started.
    pub(super) fn check_kill(&self) -> Result<()> {
        match (self.kind, self.phase) {
            (_, Phase::Stopped(_) | Phase::Deleted(_)) => {
                Err(Error::NotFound("process already finished".into()))
            }
            (Kind::Exec, Phase::Created) => {
                Err(Error::FailedPrecondition("cannot signal: the process has not been started".into()))
            }
            _ => Ok(()),
        }
    }

    /// Whether the process may be deleted: it has ended, or was never started.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] while it runs; [`Error::NotFound`] after it was deleted.
    pub(super) fn check_delete(&self) -> Result<()> {
        match self.phase {
            Phase::Created | Phase::Stopped(_) => Ok(()),
            Phase::Starting(_) | Phase::Running => {
                Err(Error::FailedPrecondition("cannot delete a running process".into()))
            }
            Phase::Deleted(_) => Err(Error::NotFound("process already deleted".into())),
        }
    }

    /// The process is forgotten; the exit is what `Delete` answers.
    pub(super) fn deleted(&mut self, now: SystemTime) -> Exit {
        let exit = match self.phase {
            Phase::Stopped(exit) | Phase::Deleted(exit) => exit,
            _ => Exit { status: NEVER_RAN, at: now },
        };
        self.phase = Phase::Deleted(exit);
        exit
    }
}

#[cfg(test)]
#[path = "life_test.rs"]
mod tests;
