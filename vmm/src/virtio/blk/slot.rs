//! Where a disk's file is, or will be.
//!
//! ```text
//!   shim ── attach ──► Slot (set once) ──► config space: the capacity
//!                                     └──► wake: the disk's thread raises the interrupt for a new configuration
//! ```

use super::{SECTOR, config};
use crate::virtio::ConfigSpace;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::sync::{Arc, OnceLock};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Why a file is not attached; the disk is what it was.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("the disk has a file already")]
    Attached,
    #[error("the descriptor is neither of a file nor of a block device")]
    Kind,
    #[error("the descriptor is not open for reading and writing")]
    Mode,
    #[error("the file is smaller than a sector")]
    Empty,
    #[error("the file cannot be looked at: {0}")]
    Os(#[from] io::Error),
}

/// What a disk's sectors are in.
#[derive(Debug)]
pub(super) struct Backing {
    pub(super) file: File,
    /// Bytes, whole sectors.
    pub(super) capacity: u64,
}

impl Backing {
    /// # Errors
    /// When the file's size cannot be had.
    pub(super) fn new(mut file: File) -> io::Result<Self> {
        // By seeking, because a block device has no length in its metadata.
        let capacity = file.seek(SeekFrom::End(0))? / SECTOR * SECTOR;
        Ok(Self { file, capacity })
    }
}

/// The place for one disk's file, shared by the disk and by those who attach the file.
#[derive(Debug, Clone)]
pub struct Slot(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Set once, so that no request ever sees it change.
    backing: OnceLock<Backing>,
    read_only: bool,
    config: Arc<ConfigSpace>,
    /// Written when a file has been attached.
    wake: EventFd,
}

impl Slot {
    pub(super) fn new(read_only: bool) -> io::Result<Self> {
        let config = Arc::new(ConfigSpace::new(config(0).to_vec()));
        let wake = EventFd::new(EFD_NONBLOCK)?;
        Ok(Self(Arc::new(Shared { backing: OnceLock::new(), read_only, config, wake })))
    }

    pub(super) fn backing(&self) -> Option<&Backing> {
        self.0.backing.get()
    }

    pub(super) fn config(&self) -> Arc<ConfigSpace> {
        Arc::clone(&self.0.config)
    }

    pub(super) fn wake(&self) -> &EventFd {
        &self.0.wake
    }

    /// Puts the first file in; false when there is one.
    pub(super) fn fill(&self, backing: Backing) -> bool {
        let sectors = backing.capacity / SECTOR;
        let first = self.0.backing.set(backing).is_ok();
        if first {
            // After the file is there: a driver that has read the capacity may ask for its sectors.
            self.0.config.replace(&config(sectors));
        }
        first
    }

    /// Gives a disk that has no file `file`, and tells the driver of its capacity.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach(&self, file: File) -> Result<(), AttachError> {
        if self.backing().is_some() {
            return Err(AttachError::Attached);
        }
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(AttachError::Kind);
        }
        let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL).map_err(io::Error::from)?);
        let mode = flags & OFlag::O_ACCMODE;
        let readable = self.0.read_only && mode == OFlag::O_RDONLY;
        if flags.contains(OFlag::O_PATH) || mode != OFlag::O_RDWR && !readable {
            return Err(AttachError::Mode);
        }
        let backing = Backing::new(file)?;
        if backing.capacity == 0 {
            return Err(AttachError::Empty);
        }
        if !self.fill(backing) {
            return Err(AttachError::Attached);
        }
        // It fails only when 2^64 - 1 are pending, and one is enough.
        let _ = self.0.wake.write(1);
        Ok(())
    }
}

#[cfg(test)]
#[path = "slot_test.rs"]
mod tests;
