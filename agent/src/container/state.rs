//! The states of a process and the transitions between them, without IO.

use crate::reaper::Exit;
use crate::rpc::RpcError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Made, not started. A container's own process is there and waits; an exec is a plan.
    Created,
    /// crun is starting the process.
    Starting,
    Running,
    /// Also of an exec that could not be started.
    Ended(Exit),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StateError {
    #[error("process already started")]
    Started,
    #[error("process not started")]
    NotStarted,
    #[error("process already finished")]
    Finished,
    #[error("cannot delete a running process")]
    Running,
}

impl State {
    /// # Errors
    /// [`StateError::Started`].
    pub(crate) fn start(&mut self) -> Result<(), StateError> {
        match self {
            Self::Created => {
                *self = Self::Starting;
                Ok(())
            }
            Self::Starting | Self::Running | Self::Ended(_) => Err(StateError::Started),
        }
    }

    /// crun has started the process, which may have ended already.
    pub(crate) fn started(&mut self) {
        if *self == Self::Starting {
            *self = Self::Running;
        }
    }

    /// crun could not start the process. A start may be tried again.
    pub(crate) fn not_started(&mut self) {
        if *self == Self::Starting {
            *self = Self::Created;
        }
    }

    /// The process has ended. Only the first exit counts.
    pub(crate) fn end(&mut self, exit: Exit) {
        if !matches!(self, Self::Ended(_)) {
            *self = Self::Ended(exit);
        }
    }

    /// `there`: whether there is a process to be signalled, as with a created container.
    ///
    /// # Errors
    /// [`StateError::NotStarted`], [`StateError::Finished`].
    pub(crate) fn may_signal(self, there: bool) -> Result<(), StateError> {
        match self {
            Self::Created | Self::Starting if !there => Err(StateError::NotStarted),
            Self::Created | Self::Starting | Self::Running => Ok(()),
            Self::Ended(_) => Err(StateError::Finished),
        }
    }

    /// # Errors
    /// [`StateError::Running`].
    pub(crate) fn may_delete(self) -> Result<(), StateError> {
        match self {
            Self::Created | Self::Ended(_) => Ok(()),
            Self::Starting | Self::Running => Err(StateError::Running),
        }
    }
}

impl StateError {
    /// With the name of the process it is about.
    pub(crate) fn of(self, name: &str) -> RpcError {
        let line = format!("{name}: {self}");
        match self {
            Self::Finished => RpcError::NotFound(line),
            Self::Started | Self::NotStarted | Self::Running => RpcError::FailedPrecondition(line),
        }
    }
}

#[cfg(test)]
#[path = "state_test.rs"]
mod tests;
