//! The task that owns the VMM's process: it reads the control channel, and says once how the VM ended.

use super::exit_report::ExitReport;
use super::{END_TIMEOUT, Incoming};
use lazaret_vmm_wire::{Cause, Channel, ChannelError, Descriptors, DiskState, Event, Name, NicState};
use std::collections::HashMap;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStderr};
use tokio::sync::{Notify, mpsc, watch};

/// What is read of the VMM's standard error; it has nothing to say there unless something is wrong.
const MAX_STDERR: u64 = 64 * 1024;

pub(super) struct Supervisor {
    pub channel: Arc<AsyncFd<Channel>>,
    pub ended: watch::Sender<Option<ExitReport>>,
    pub incoming: mpsc::Sender<Incoming>,
    pub nics: Arc<watch::Sender<HashMap<u8, NicState>>>,
    pub disks: Arc<watch::Sender<HashMap<u8, DiskState>>>,
    pub paused: Arc<watch::Sender<Option<Event>>>,
}

impl Supervisor {
    pub(super) async fn run(mut self, mut child: Child, reaped: watch::Sender<bool>, kill: Arc<Notify>) {
        let mut asked = false;
        let status = tokio::select! {
            status = child.wait() => {
                // The VMM's last messages may still be in the channel.
                self.drain();
                status
            }
            () = kill.notified() => {
                asked = true;
                end_by_force(&mut child).await
            }
            () = self.listen() => tokio::select! {
                status = child.wait() => status,
                () = kill.notified() => {
                    asked = true;
                    end_by_force(&mut child).await
                }
                () = tokio::time::sleep(END_TIMEOUT) => end_by_force(&mut child).await,
            },
        };
        let how = match status {
            Ok(status) => match status.signal() {
                Some(signal) => format!("lazaret-vmm was ended by signal {signal}"),
                None => format!("lazaret-vmm ended with status {}", status.code().unwrap_or_default()),
            },
            Err(error) => format!("the shim cannot wait for lazaret-vmm: {error}"),
        };
        self.end(ExitReport { reason: how, requested: asked, console: Vec::new() });
        reaped.send_replace(true);
    }

    /// Reads the channel until it says how the VM ended, or breaks.
    async fn listen(&mut self) {
        loop {
            let Ok(mut ready) = self.channel.readable().await else { return };
            match self.channel.get_ref().receive::<Event>() {
                Ok((event, descriptors)) => {
                    drop(ready);
                    if self.handle(event, descriptors) {
                        return;
                    }
                }
                Err(ChannelError::WouldBlock) => ready.clear_ready(),
                Err(ChannelError::Closed) => return,
                Err(error) => {
                    self.end(ExitReport { reason: error.to_string(), requested: false, console: Vec::new() });
                    return;
                }
            }
        }
    }

    fn drain(&mut self) {
        while let Ok((event, descriptors)) = self.channel.get_ref().receive::<Event>() {
            if self.handle(event, descriptors) {
                return;
            }
        }
    }

    /// True when nothing follows.
    fn handle(&mut self, event: Event, descriptors: Descriptors) -> bool {
        match event {
            Event::Running => log::debug!("the vCPUs run"),
            Event::Nic { slot, state } => {
                log::debug!("network interface {slot}: {state:?}");
                self.nics.send_modify(|nics| _ = nics.insert(slot, state));
            }
            Event::Disk { index, state } => self.disks.send_modify(|disks| _ = disks.insert(index, state)),
            answer @ (Event::Paused | Event::PauseRefused(_) | Event::Resumed | Event::ResumeRefused(_)) => {
                self.paused.send_replace(Some(answer));
            }
            Event::Incoming { port } => match descriptors.only(Name::Stream) {
                Ok(stream) => {
                    if self.incoming.try_send((port, stream)).is_err() {
                        log::warn!("a stream the guest opened to port {port} is refused: nobody expects it");
                    }
                }
                Err(error) => log::warn!("lazaret-vmm's message of a stream to port {port}: {error}"),
            },
            Event::Stopped(stopped) => {
                let requested = stopped.cause == Cause::Requested;
                let reason = match stopped.cause {
                    Cause::Reset => "the guest reset or powered off".into(),
                    Cause::Requested => "the VM was stopped".into(),
                    Cause::Error(line) => line,
                };
                self.end(ExitReport { reason, requested, console: stopped.console });
                return true;
            }
        }
        false
    }

    /// Publishes the exit report, if it is the first.
    fn end(&mut self, ended: ExitReport) {
        self.ended.send_if_modified(|slot| {
            let first = slot.is_none();
            slot.get_or_insert(ended);
            first
        });
    }
}

async fn end_by_force(child: &mut Child) -> io::Result<std::process::ExitStatus> {
    child.start_kill()?;
    child.wait().await
}

pub(super) async fn log_stderr(stderr: ChildStderr) {
    let mut lines = BufReader::new(stderr.take(MAX_STDERR)).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        log::warn!("lazaret-vmm: {line}");
    }
}
