//! One process as the shim keeps it: its state, its stdio, and the calls that wait for its exit.
//!
//! Every event of a process is published while its life is locked, so the events are in the order of the states.

use super::life::{Exit, Kind, Life, Status};
use crate::error::{Error, Result};
use crate::events::{Event, Publisher, timestamp};
use crate::io::{ProcessIo, Stdio};
use crate::sandbox::guest::ProcessKey;
use crate::sync::lock;
use containerd_shim_protos::events::task::{TaskExecStarted, TaskExit, TaskStart};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// A process of a container.
#[derive(Debug)]
pub(crate) struct Process {
    pub key: ProcessKey,
    pub stdio: Stdio,
    kind: Kind,
    /// The pid that containerd is told: the VMM's.
    pid: u32,
    life: watch::Sender<Life>,
    io: Mutex<Io>,
    events: Publisher,
    /// Held by what changes the process and waits for the guest meanwhile: start and delete, one at a time.
    pub turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Io {
    open: Option<ProcessIo>,
    /// `CloseIO` came, perhaps before there was anything to close.
    stdin_closed: bool,
}

impl Process {
    #[must_use]
    pub(crate) fn new(key: ProcessKey, stdio: Stdio, pid: u32, events: Publisher) -> Self {
        let kind = if key.exec.is_empty() { Kind::Init } else { Kind::Exec };
        let life = watch::channel(Life::new(kind)).0;
        Self {
            key,
            stdio,
            kind,
            pid,
            life,
            io: Mutex::default(),
            events,
            turn: tokio::sync::Mutex::default(),
        }
    }

    #[must_use]
    pub(crate) fn status(&self) -> Status {
        self.life.borrow().status()
    }

    #[must_use]
    pub(crate) fn is_live(&self) -> bool {
        self.life.borrow().is_live()
    }

    /// Whether the process has ended in the guest.
    #[must_use]
    pub(crate) fn has_ended(&self) -> bool {
        self.life.borrow().has_ended()
    }

    /// # Errors
    /// As [`Life::check_kill`].
    pub(crate) fn check_kill(&self) -> Result<()> {
        self.life.borrow().check_kill()
    }

    /// # Errors
    /// As [`Life::check_delete`].
    pub(crate) fn check_delete(&self) -> Result<()> {
        self.life.borrow().check_delete()
    }

    /// # Errors
    /// As [`Life::begin_start`].
    pub(crate) fn begin_start(&self) -> Result<()> {
        let mut result = Ok(());
        self.life.send_modify(|life| result = life.begin_start());
        result
    }

    /// Publishes that the process runs.
    pub(crate) fn started(&self) {
        let (container_id, exec_id, pid) = (self.key.container.clone(), self.key.exec.clone(), self.pid);
        self.life.send_modify(|life| {
            life.started();
            self.events.publish(&match self.kind {
                Kind::Init => Event::Start(TaskStart { container_id, pid, ..Default::default() }),
                Kind::Exec => {
                    Event::ExecStarted(TaskExecStarted { container_id, exec_id, pid, ..Default::default() })
                }
            });
        });
    }

    /// The guest did not start the process. No event is published of an exec that never ran, but calls that wait for it are
    /// answered.
    pub(crate) fn start_failed(&self) {
        self.life.send_modify(|life| life.start_failed(SystemTime::now()));
        if self.kind == Kind::Exec {
            self.io().open = None;
        }
    }

    /// As [`Life::ended`]; the process's stdio comes to its end.
    pub(crate) fn ended(&self) -> bool {
        let first = self.life.send_if_modified(Life::ended);
        if first && let Some(io) = &mut self.io().open {
            io.process_ended();
        }
        first
    }

    /// Publishes the exit of a process that has ended, once.
    pub(crate) fn exited(&self, exit: Exit) {
        self.life.send_if_modified(|life| {
            let first = life.exited(exit);
            if first {
                self.publish_exit(exit);
            }
            first
        });
    }

    /// Forgets the process; the exit is the answer to `Delete`.
    pub(crate) fn deleted(&self) -> Exit {
        let mut exit = Exit::killed();
        self.life.send_modify(|life| exit = life.deleted(SystemTime::now()));
        self.io().open = None;
        exit
    }

    /// Waits until the process has ended in the guest.
    pub(crate) async fn until_ended(&self) {
        // The sender is ours: it cannot be gone.
        let _ = self.life.subscribe().wait_for(Life::has_ended).await;
    }

    /// Waits until the exit has been published.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the process goes away.
    pub(crate) async fn wait(&self) -> Result<Exit> {
        let mut life = self.life.subscribe();
        let exit = life.wait_for(|life| life.exit().is_some()).await.ok().and_then(|life| life.exit());
        exit.ok_or_else(|| Error::NotFound("the process is gone".into()))
    }

    /// Takes over the process's stdio, which is connected.
    pub(crate) fn attached(&self, mut open: ProcessIo) {
        let mut io = self.io();
        if io.stdin_closed {
            open.close_stdin();
        }
        io.open = Some(open);
    }

    /// Lets stdin end after what is in flight.
    pub(crate) fn close_stdin(&self) {
        let mut io = self.io();
        io.stdin_closed = true;
        if let Some(open) = &mut io.open {
            open.close_stdin();
        }
    }

    /// Waits up to `limit` until the outputs are handed over. They go on being so after that.
    pub(crate) async fn drain(&self, limit: Duration) {
        let Some(mut open) = self.io().open.as_ref().map(ProcessIo::outputs_open) else { return };
        if tokio::time::timeout(limit, open.wait_for(|open| *open == 0)).await.is_err() {
            log::debug!("the output of {:?} is not read to its end yet", self.key);
        }
    }

    fn publish_exit(&self, exit: Exit) {
        let id = if self.key.exec.is_empty() { &self.key.container } else { &self.key.exec };
        self.events.publish(&Event::Exit(TaskExit {
            container_id: self.key.container.clone(),
            id: id.clone(),
            pid: self.pid,
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        }));
    }

    fn io(&self) -> MutexGuard<'_, Io> {
        lock(&self.io)
    }
}
