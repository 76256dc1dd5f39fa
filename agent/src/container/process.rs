//! One process of a container: its state, its stdio, and its end.

use super::state::{State, StateError};
use crate::reaper::{Child, Exit, ProcessHandle};
use crate::rpc::RpcError;
use crate::stdio::ProcessIo;
use crate::sync::lock;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// How long the end of a process waits for a host that does not read its output.
pub(super) const OUTPUT_DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) struct Process {
    /// For messages.
    name: String,
    pub(crate) io: ProcessIo,
    life: Mutex<Life>,
    /// Set once, when all that WaitProcess promises is done.
    finished: watch::Sender<Option<Exit>>,
}

struct Life {
    state: State,
    /// From the moment there is a process.
    process: Option<(libc::pid_t, ProcessHandle)>,
}

impl Process {
    pub(super) fn new(name: String, io: ProcessIo) -> Self {
        let life = Life { state: State::Created, process: None };
        Self { name, io, life: Mutex::new(life), finished: watch::Sender::new(None) }
    }

    pub(super) fn state(&self) -> State {
        self.life().state
    }

    /// # Errors
    /// The state's, named.
    pub(super) fn start(&self) -> Result<(), RpcError> {
        self.life().state.start().map_err(|error| error.of(&self.name))
    }

    /// # Errors
    /// The state's, named.
    pub(super) fn may_delete(&self) -> Result<(), RpcError> {
        self.life().state.may_delete().map_err(|error| error.of(&self.name))
    }

    pub(super) fn started(&self) {
        self.life().state.started();
    }

    pub(super) fn not_started(&self) {
        self.life().state.not_started();
    }

    /// The process could not be started: its exit is `exit`.
    pub(super) fn fail(&self, exit: Exit) {
        self.life().state.end(exit);
        self.io.fail();
        self.io.end();
        self.finished.send_replace(Some(exit));
    }

    pub(super) fn pid(&self) -> Option<libc::pid_t> {
        self.life().process.as_ref().map(|&(pid, _)| pid)
    }

    /// Takes over the process that was started. When the process ends, its output is handed over, `before` is awaited, and calls
    /// that wait for the exit are answered.
    pub(super) fn adopt(self: &Arc<Self>, child: Child, before: impl Future<Output = ()> + Send + 'static) {
        self.life().process = Some((child.pid, child.handle));
        let process = self.clone();
        tokio::spawn(async move {
            // The sender is not dropped: the reaper keeps it, and lives as long as the guest.
            let exit = child.exit.await.unwrap_or_else(|_| Exit::now(255));
            process.life().state.end(exit);
            process.io.end();
            if timeout(OUTPUT_DRAIN_TIMEOUT, process.io.drained()).await.is_err() {
                log::warn!("{}: the host does not read the process's output", process.name);
            }
            before.await;
            process.finished.send_replace(Some(exit));
        });
    }

    /// # Errors
    /// NOT_FOUND when it has ended, FAILED_PRECONDITION when there is none yet, INVALID_ARGUMENT for no signal.
    pub(super) fn signal(&self, signal: i32) -> Result<(), RpcError> {
        let life = self.life();
        life.state.may_signal(life.process.is_some()).map_err(|error| error.of(&self.name))?;
        let Some((_, handle)) = &life.process else {
            return Err(StateError::NotStarted.of(&self.name));
        };
        handle.signal(signal).map_err(|errno| match errno {
            nix::errno::Errno::ESRCH => StateError::Finished.of(&self.name),
            nix::errno::Errno::EINVAL => RpcError::InvalidArgument(format!("{signal} is not a signal")),
            errno => RpcError::Internal(format!("{}: cannot send signal {signal}: {errno}", self.name)),
        })
    }

    /// # Errors
    /// FAILED_PRECONDITION without a terminal.
    pub(crate) fn resize(&self, width: u16, height: u16) -> Result<(), RpcError> {
        match self.io.resize(width, height) {
            None => Err(RpcError::FailedPrecondition(format!("{}: it has no terminal", self.name))),
            Some(Err(errno)) => {
                Err(RpcError::Internal(format!("{}: cannot resize its terminal: {errno}", self.name)))
            }
            Some(Ok(())) => Ok(()),
        }
    }

    /// Waits for its end and the end of its output.
    pub(crate) async fn wait(&self) -> Exit {
        let mut finished = self.finished.subscribe();
        let exit = finished.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        // The sender is ours: it cannot be gone.
        exit.unwrap_or_else(|| Exit::now(255))
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        lock(&self.life)
    }
}
