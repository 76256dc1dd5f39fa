//! The disk of the daemon's data. Its file on the host is made when dockerd is first started: the guest finds the disk with a
//! capacity of 0 and asks for the file.
//!
//! ```text
//!   Docker ── ready ──► Wanted ── WaitDisk ──► host: the file is made, the VMM attaches it
//!                          ◄───── AnswerDisk ──
//!   Docker ◄─ the kernel has the capacity
//! ```

use crate::rpc::RpcError;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// Where the kernel says how many sectors the disk has: the third disk is the data's.
const SIZE: &str = "/sys/block/vdc/size";
/// How long the host may take to make the file.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the kernel may take to read the capacity from the device, after the host has set it.
const CAPACITY_TIMEOUT: Duration = Duration::from_secs(10);
/// The time between two looks at the capacity: the kernel announces no change from 0 (`set_capacity_and_notify`, block/genhd.c).
const CAPACITY_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub(super) enum DiskError {
    #[error("{0}")]
    Refused(String),
    #[error("the host does not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Silent,
    #[error("the host has made it, but its capacity is still 0 after {} s", CAPACITY_TIMEOUT.as_secs())]
    Capacity,
    #[error("cannot read {}: {source}", path.display())]
    Size { path: PathBuf, source: io::Error },
}

/// What is asked of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Request {
    /// Nothing.
    None,
    /// The file.
    Wanted,
    /// The file, and the host has answered: with why there is none, if there is none.
    Answered(Option<String>),
}

/// The disk, and the request for its file.
#[derive(Debug)]
pub(crate) struct DataDisk {
    size: PathBuf,
    request: watch::Sender<Request>,
}

impl DataDisk {
    pub(crate) fn of_guest() -> Self {
        Self::with_size_at(SIZE.into())
    }

    fn with_size_at(size: PathBuf) -> Self {
        Self { size, request: watch::channel(Request::None).0 }
    }

    /// Waits until its file is asked for. For the host.
    pub(crate) async fn wanted(&self) {
        // The sender is ours: it cannot be gone.
        let _ = self.request.subscribe().wait_for(|request| *request == Request::Wanted).await;
    }

    /// The host's answer; `refused` is empty when the disk has its file.
    ///
    /// # Errors
    /// FAILED_PRECONDITION when nothing is asked for.
    pub(crate) fn answer(&self, refused: String) -> Result<(), RpcError> {
        let answered = self.request.send_if_modified(|request| {
            let wanted = *request == Request::Wanted;
            if wanted {
                *request = Request::Answered(Some(refused).filter(|why| !why.is_empty()));
            }
            wanted
        });
        if answered {
            return Ok(());
        }
        Err(RpcError::FailedPrecondition("no disk is asked for, or not any more".to_owned()))
    }

    /// Waits until the disk can be used. One caller at a time.
    ///
    /// # Errors
    /// [`DiskError`]; the next call asks again.
    pub(super) async fn ready(&self) -> Result<(), DiskError> {
        if self.sectors()? > 0 {
            return Ok(());
        }
        let mut answers = self.request.subscribe();
        self.request.send_replace(Request::Wanted);
        let answered = |request: &Request| matches!(request, Request::Answered(_));
        let answer = timeout(ANSWER_TIMEOUT, answers.wait_for(answered)).await;
        let answer = answer.ok().and_then(Result::ok).map(|answer| answer.clone());
        self.request.send_replace(Request::None);
        match answer {
            Some(Request::Answered(None)) => {}
            Some(Request::Answered(Some(why))) => return Err(DiskError::Refused(why)),
            _ => return Err(DiskError::Silent),
        }
        let has_capacity = async {
            while self.sectors()? == 0 {
                sleep(CAPACITY_POLL_INTERVAL).await;
            }
            Ok(())
        };
        timeout(CAPACITY_TIMEOUT, has_capacity).await.unwrap_or(Err(DiskError::Capacity))
    }

    fn sectors(&self) -> Result<u64, DiskError> {
        let read =
            fs::read_to_string(&self.size).and_then(|text| text.trim().parse().map_err(io::Error::other));
        read.map_err(|source| DiskError::Size { path: self.size.clone(), source })
    }
}

#[cfg(test)]
#[path = "disk_test.rs"]
mod tests;
