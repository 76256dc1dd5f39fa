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
use tokio::task::JoinHandle;
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
        let (mut making, mut file, mut last_reason) = (None, None, String::new());
        loop {
            let nothing = Empty::default();
            let asked = self.agent.wait_disk(Context::default(), &nothing);
            if let Err(error) = self.answer("waiting for a request for a disk", asked).await {
                if self.is_alive() {
                    log::error!("the Docker daemon cannot have a disk: {error}");
                }
                return;
            }
            let attached = async {
                let file: &File = match &file {
                    Some(file) => file,
                    None => file.insert(until_made(&mut making, disk).await?),
                };
                let attached = self.vm.attach_disk(DATA_DISK, file.as_fd()).await;
                attached.map_err(|error| one_line(&error.to_string()))
            };
            let refused = attached.await.err().unwrap_or_default();
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
}

/// Waits for the file that is being made, and has it made if it is not: one at a time, also where the file system does not answer.
///
/// # Errors
/// Why there is no file, in one line.
async fn until_made(
    making: &mut Option<JoinHandle<Result<File, DiskError>>>,
    disk: &LaterDisk,
) -> Result<File, String> {
    let disk = disk.clone();
    let directory = disk.directory().display().to_string();
    let task = making.get_or_insert_with(|| tokio::spawn(async move { disk.make().await }));
    let Ok(made) = tokio::time::timeout(MAKE_TIMEOUT, task).await else {
        return Err(format!(
            "the file system of {directory}, which disk_dir of config.toml sets, does not answer within {} s",
            MAKE_TIMEOUT.as_secs()
        ));
    };
    *making = None;
    made.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

#[cfg(test)]
#[path = "disk_test.rs"]
mod tests;
