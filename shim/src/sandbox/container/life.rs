//! The life of one process, as containerd may see it: no IO, no waiting.
//!
//! ```text
//!            begin_start          started           ended            exited           deleted
//!   Created ────────────► Starting ──────► Running ────────► Ending ────────► Stopped ────────► Deleted
//!      │  ▲                │ start_failed               ▲                        ▲                 ▲
//!      │  └─── init ───────┤                            │                        │                 │
//!      │                   └──── exec: never ran, no exit event ─────────────────┘                 │
//!      ├───────────── ended: killed before it was started ┘                                        │
//!      └───────────── deleted: never started ──────────────────────────────────────────────────────┘
//! ```
//!
//! A process that is ending has ended in the guest, and its exit is not published yet. The shim waits for the answer to
//! `start` before it takes note of an end, so no exit is published before its start.

use crate::error::{Error, Result};
use std::time::SystemTime;

/// The exit status of a process whose VM ended under it: 128 + SIGKILL.
pub(in crate::sandbox) const KILLED: u32 = 137;
/// The exit status of an exec whose start failed, as runc's shim has it. An exec that nobody started has 0 there.
const START_FAILED: u32 = 255;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// As a shell counts: the exit code, or 128 + the signal.
    pub status: u32,
    pub at: SystemTime,
}

impl Exit {
    /// The exit of a process that is killed now.
    #[must_use]
    pub(in crate::sandbox) fn killed() -> Self {
        Self { status: KILLED, at: SystemTime::now() }
    }
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
    /// The guest has been asked to run the process.
    Starting,
    Running,
    Ending,
    Stopped(Exit),
    Deleted(Exit),
}

/// The state of a process as containerd sees it.
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
            Phase::Starting | Phase::Running | Phase::Ending => Status::Running,
            Phase::Stopped(exit) | Phase::Deleted(exit) => Status::Stopped(exit),
        }
    }

    /// Whether the process runs in the guest, or is being started there.
    #[must_use]
    pub(super) fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Starting | Phase::Running)
    }

    /// Whether the process has ended in the guest.
    #[must_use]
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ending | Phase::Stopped(_) | Phase::Deleted(_))
    }

    /// The exit, once it is published.
    #[must_use]
    pub(super) fn exit(&self) -> Option<Exit> {
        match self.phase {
            Phase::Stopped(exit) | Phase::Deleted(exit) => Some(exit),
            Phase::Created | Phase::Starting | Phase::Running | Phase::Ending => None,
        }
    }

    /// The guest is about to be asked to run the process.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] unless it is created.
    pub(super) fn begin_start(&mut self) -> Result<()> {
        let problem = match self.phase {
            Phase::Created => {
                self.phase = Phase::Starting;
                return Ok(());
            }
            Phase::Starting => "is being started",
            Phase::Running => "runs already",
            Phase::Ending | Phase::Stopped(_) | Phase::Deleted(_) => "has ended",
        };
        Err(Error::FailedPrecondition(format!("cannot start: the process {problem}")))
    }

    /// The guest runs the process.
    pub(super) fn started(&mut self) {
        if self.phase == Phase::Starting {
            self.phase = Phase::Running;
        }
    }

    /// The guest refused to run the process. A container's own may be started again; an exec has ended without an exit
    /// event.
    pub(super) fn start_failed(&mut self, now: SystemTime) {
        if self.phase == Phase::Starting {
            self.phase = match self.kind {
                Kind::Init => Phase::Created,
                Kind::Exec => Phase::Stopped(Exit { status: START_FAILED, at: now }),
            };
        }
    }

    /// The process has ended in the guest. False when that was known, and while its start is not answered.
    #[must_use]
    pub(super) fn ended(&mut self) -> bool {
        let first = matches!(self.phase, Phase::Created | Phase::Running);
        if first {
            self.phase = Phase::Ending;
        }
        first
    }

    /// The exit of a process that has ended is published. False when it was published before.
    #[must_use]
    pub(super) fn exited(&mut self, exit: Exit) -> bool {
        let first = self.phase == Phase::Ending;
        if first {
            self.phase = Phase::Stopped(exit);
        }
        first
    }

    /// Whether a signal may be sent.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the process has ended; [`Error::FailedPrecondition`] for an exec that was not started.
    pub(super) fn check_kill(&self) -> Result<()> {
        match (self.kind, self.phase) {
            (_, Phase::Ending | Phase::Stopped(_) | Phase::Deleted(_)) => {
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
            Phase::Starting | Phase::Running | Phase::Ending => {
                Err(Error::FailedPrecondition("cannot delete a running process".into()))
            }
            Phase::Deleted(_) => Err(Error::NotFound("process already deleted".into())),
        }
    }

    /// The process is forgotten; the exit is what `Delete` answers: 0 for an exec that nobody started.
    pub(super) fn deleted(&mut self, now: SystemTime) -> Exit {
        let exit = self.exit().unwrap_or(Exit { status: 0, at: now });
        self.phase = Phase::Deleted(exit);
        exit
    }
}

#[cfg(test)]
#[path = "life_test.rs"]
mod tests;
