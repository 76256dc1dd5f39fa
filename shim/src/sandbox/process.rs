//! One process as the shim keeps it: its state, its stdio, and who waits for it.
//!
//! Whatever is told of a process is told under its lock: the order of its events is the order of its states.

use super::guest::ProcessKey;
use super::life::{Exit, Kind, Life, Status};
use crate::error::{Error, Result};
use crate::events::{Event, Publisher, timestamp};
use crate::io::{ProcessIo, Stdio};
use containerd_shim_protos::events::task::{TaskExecStarted, TaskExit, TaskStart};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// A process of a container.
#[derive(Debug)]
pub(crate) struct Process {
    pub key: ProcessKey,
    pub stdio: Stdio,
    kind: Kind,
    /// The host's pid that stands for it.
    pid: u32,
    inner: Mutex<Inner>,
    exit: watch::Sender<Option<Exit>>,
    events: Publisher,
    /// Held by what changes the process and waits for the guest meanwhile: start and delete, one at a time.
    pub turn: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Inner {
    life: Life,
    io: Option<ProcessIo>,
    /// `CloseIO` came, perhaps before there was anything to close.
    stdin_closed: bool,
}

impl Process {
    #[must_use]
    pub(crate) fn new(key: ProcessKey, stdio: Stdio, pid: u32, events: Publisher) -> Self {
        let kind = if key.exec.is_empty() { Kind::Init } else { Kind::Exec };
        let inner = Inner { life: Life::new(kind), io: None, stdin_closed: false };
        let turn = tokio::sync::Mutex::new(());
        Self { key, stdio, kind, pid, inner: Mutex::new(inner), exit: watch::channel(None).0, events, turn }
    }

    #[must_use]
    pub(crate) fn status(&self) -> Status {
        self.lock().life.status()
    }

    #[must_use]
    pub(crate) fn is_live(&self) -> bool {
        self.lock().life.is_live()
    }

    /// # Errors
    /// As [`Life::check_kill`].
    pub(crate) fn check_kill(&self) -> Result<()> {
        self.lock().life.check_kill()
    }

    /// # Errors
    /// As [`Life::check_delete`].
    pub(crate) fn check_delete(&self) -> Result<()> {
        self.lock().life.check_delete()
    }

    /// # Errors
    /// As [`Life::begin_start`].
    pub(crate) fn begin_start(&self) -> Result<()> {
        self.lock().life.begin_start()
    }

    /// Tells that the process runs, and then its exit, if that came first.
    pub(crate) fn started(&self) {
        let mut inner = self.lock();
        let held = inner.life.started();
        let (container_id, exec_id, pid) = (self.key.container.clone(), self.key.exec.clone(), self.pid);
        self.events.publish(&match self.kind {
            Kind::Init => Event::Start(TaskStart { container_id, pid, ..Default::default() }),
            Kind::Exec => {
                Event::ExecStarted(TaskExecStarted { container_id, exec_id, pid, ..Default::default() })
            }
        });
        held.into_iter().for_each(|exit| self.tell(exit));
    }

    /// The guest did not start the process.
    pub(crate) fn start_failed(&self) {
        let mut inner = self.lock();
        let told = inner.life.start_failed(SystemTime::now());
        told.into_iter().for_each(|exit| self.tell(exit));
        if let (None, Status::Stopped(exit)) = (told, inner.life.status()) {
            // An exec that never ran: nothing is published, but whoever waits is let go.
            self.exit.send_replace(Some(exit));
            inner.io = None;
        }
    }

    /// Tells that the process has ended, once, and not before its start.
    pub(crate) fn exited(&self, exit: Exit) {
        let mut inner = self.lock();
        if inner.life.exited(exit) {
            self.tell(exit);
        }
    }

    /// Forgets the process; the exit is the answer to `Delete`.
    pub(crate) fn deleted(&self) -> Exit {
        let mut inner = self.lock();
        let exit = inner.life.deleted(SystemTime::now());
        inner.io = None;
        self.exit.send_replace(Some(exit));
        exit
    }

    /// Waits until the exit has been told.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the process goes away.
    pub(crate) async fn wait(&self) -> Result<Exit> {
        let mut exit = self.exit.subscribe();
        let told = exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        told.ok_or_else(|| Error::NotFound("the process is gone".into()))
    }

    /// The process's stdio is connected.
    pub(crate) fn attached(&self, mut io: ProcessIo) {
        let mut inner = self.lock();
        if inner.stdin_closed {
            io.close_stdin();
        }
        inner.io = Some(io);
    }

    /// Lets stdin end after what is in flight.
    pub(crate) fn close_stdin(&self) {
        let mut inner = self.lock();
        inner.stdin_closed = true;
        if let Some(io) = &mut inner.io {
            io.close_stdin();
        }
    }

    /// The process is gone: lets its stdio come to its end.
    pub(crate) fn ended(&self) {
        if let Some(io) = &mut self.lock().io {
            io.process_ended();
        }
    }

    /// Waits up to `limit` until the outputs are handed over. They go on being so after that.
    pub(crate) async fn drain(&self, limit: Duration) {
        let Some(mut open) = self.lock().io.as_ref().map(ProcessIo::outputs_open) else { return };
        if tokio::time::timeout(limit, open.wait_for(|open| *open == 0)).await.is_err() {
            log::debug!("the output of {:?} is not read to its end yet", self.key);
        }
    }

    fn tell(&self, exit: Exit) {
        let id = if self.key.exec.is_empty() { &self.key.container } else { &self.key.exec };
        self.events.publish(&Event::Exit(TaskExit {
            container_id: self.key.container.clone(),
            id: id.clone(),
            pid: self.pid,
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        }));
        self.exit.send_replace(Some(exit));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // What the lock guards is consistent at every step, also where a panic ended one.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
