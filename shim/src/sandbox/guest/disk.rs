//! The disk of the guest's Docker daemon, where it is made when the guest first asks for it.
//!
//! ```text
//!   agent ── WaitDisk answers ──► LaterDisk::make: the budget, the file ──► VMM: AttachDisk ──► AnswerDisk ──► agent
//! ```
//!
//! A guest gets one file, however often it asks, and a VMM that was taken over no second one by pretending that it did not take
//! the first.

use super::{CALL_TIMEOUT, Guest, within};
use crate::error::one_line;
use crate::sandbox::docker::disk::{DATA_DISK, DiskError, LaterDisk};
use lazaret_agent_api::agent::{AnswerDiskRequest, Empty};
use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;
use tokio::task::JoinSet;
use ttrpc::context::Context;

/// How long a guest that was refused waits, at least, until it is heard again.
const REQUEST_INTERVAL: Duration =
    if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(1) };

/// How long a file may take to be made before the guest is told that there is none: five seconds of it may be the wait for
/// another sandbox.
const MAKE_TIMEOUT: Duration = if cfg!(test) { Duration::from_millis(500) } else { Duration::from_secs(10) };

impl Guest {
    /// Gives the Docker daemon its disk when the guest asks for it. Ends with that, or with the VM.
    pub(crate) async fn serve_disk_request(&self) {
        let Some(disk) = &self.disk else { return };
        let mut ended = self.ended();
        tokio::select! {
            () = self.answer_disk_requests(disk) => {}
            // What is being made is given up then: the sandbox's record is soon that of another one.
            _ = ended.wait_for(Option::is_some) => {}
        }
    }

    async fn answer_disk_requests(&self, disk: &LaterDisk) {
        let (mut maker, mut last_reason) = (Maker::new(disk), String::new());
        loop {
            let nothing = Empty::default();
            let asked = self.agent.wait_disk(Context::default(), &nothing);
            if let Err(error) = self.answer("waiting for a request for a disk", asked).await {
                if self.is_alive() {
                    log::error!("the Docker daemon cannot have a disk: {error}");
                }
                return;
            }
            let refused = self.attach_disk(&mut maker).await.err().unwrap_or_default();
            if !refused.is_empty() && refused != last_reason {
                // A guest may ask again every second, and the reason is mostly the same.
                log::error!("the Docker daemon has no disk: {refused}");
            }
            self.until_resumed().await;
            let request = AnswerDiskRequest { refused: refused.clone(), ..Default::default() };
            let answer = self.agent.answer_disk(within(CALL_TIMEOUT), &request);
            if let Err(error) = self.call("answering the request for a disk", CALL_TIMEOUT, answer).await {
                log::debug!("{error}");
            }
            if refused.is_empty() {
                return;
            }
            last_reason = refused;
            tokio::time::sleep(REQUEST_INTERVAL).await;
        }
    }

    /// Hands the VMM the disk's file.
    ///
    /// # Errors
    /// Why it does not have it, in one line.
    async fn attach_disk(&self, maker: &mut Maker<'_>) -> Result<(), String> {
        let file = maker.file().await?;
        // A VMM that is frozen does not answer.
        self.until_resumed().await;
        let attached = self.vm.attach_disk(DATA_DISK, file.as_fd()).await;
        attached.map_err(|error| one_line(&error.to_string()))
    }
}

/// Makes the disk's file, once.
struct Maker<'a> {
    disk: &'a LaterDisk,
    /// The attempt under way: there is one at a time, also where the file system does not answer. It ends when this is dropped.
    attempt: JoinSet<Result<File, DiskError>>,
    file: Option<File>,
}

impl<'a> Maker<'a> {
    fn new(disk: &'a LaterDisk) -> Self {
        Self { disk, attempt: JoinSet::new(), file: None }
    }

    /// The file. One that is late is the next call's.
    ///
    /// # Errors
    /// Why there is no file, in one line.
    async fn file(&mut self) -> Result<&File, String> {
        let file = match self.file.take() {
            Some(file) => file,
            None => self.make().await?,
        };
        Ok(self.file.insert(file))
    }

    async fn make(&mut self) -> Result<File, String> {
        if self.attempt.is_empty() {
            let disk = self.disk.clone();
            self.attempt.spawn(async move { disk.make().await });
        }
        match tokio::time::timeout(MAKE_TIMEOUT, self.attempt.join_next()).await {
            Ok(Some(Ok(made))) => made.map_err(|error| one_line(&error.to_string())),
            Ok(Some(Err(error))) => Err(error.to_string()),
            Ok(None) | Err(_) => Err(format!(
                "the file system of {}, which disk_dir of config.toml sets, does not answer within {} s",
                self.disk.directory().display(),
                MAKE_TIMEOUT.as_secs()
            )),
        }
    }
}

#[cfg(test)]
#[path = "disk_test.rs"]
mod tests;
