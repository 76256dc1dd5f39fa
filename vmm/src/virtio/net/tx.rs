//! From the guest to the tap.
//!
//! A packet that cannot be sent is dropped, whatever the reason: the driver's mistake, a tap that is down, a host without
//! memory. So is one for which the tap has no room (EAGAIN). That only happens if someone gave the tap a limit
//! (TUNSETSNDBUF); the guest's TCP then slows down as it does for any router, and the device has nothing to wait for.

use super::features::Features;
use super::header::{HEADER_LEN, Header};
use super::tap::Tap;
use super::vectors::Vectors;
use crate::virtio::{Chain, DeviceError, Queues};
use std::io;
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;

/// The transmit queue among a pair's.
pub(super) const TX: usize = 1;

/// The sending half of a pair.
pub(super) struct Tx {
    /// The chain popped last, and its vectors.
    chain: Chain,
    vectors: Vectors,
    features: Features,
    warned: bool,
}

impl Tx {
    pub(super) fn new(memory: &Arc<GuestMemoryMmap>, features: Features) -> Self {
        Self { chain: Chain::default(), vectors: Vectors::new(memory), features, warned: false }
    }

    /// Sends what the queue holds, as far as the turn goes; without a tap, drops it. False when the tap has gone.
    ///
    /// # Errors
    /// The ring's.
    pub(super) fn turn(&mut self, tap: Option<&Tap>, queues: &mut Queues) -> Result<bool, DeviceError> {
        let mut there = true;
        while queues.pop_into(TX, &mut self.chain)? {
            let head = self.chain.head_index();
            if let Some(tap) = tap
                && let Err(error) = self.send(tap)
            {
                there &= error.raw_os_error() != Some(libc::EBADFD);
                self.dropped(&error);
            }
            queues.complete(TX, &[(head, 0)])?;
        }
        queues.interrupt(TX)?;
        Ok(there)
    }

    fn send(&mut self, tap: &Tap) -> io::Result<()> {
        self.vectors.clear();
        let (_, length) = self
            .vectors
            .append(&self.chain.readable)
            .map_err(|_| invalid("a packet of too many descriptors"))?;
        let mut header = [0; HEADER_LEN];
        if !self.vectors.take(&mut header) {
            return Err(invalid("no whole header"));
        }
        let header =
            Header::from_bytes(header).judged(length - HEADER_LEN, self.features).map_err(invalid)?;
        let bytes = header.to_bytes();
        // The kernel only reads it.
        let first = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        // SAFETY: the first vector names an array that lives to the end of this function, the others guest memory.
        self.vectors.preceded_by(first, |vectors| unsafe { tap.write(vectors) }).map(drop)
    }

    /// A guest can have it happen as often as it likes.
    fn dropped(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.warned, true) {
            log::warn!("virtio-net: a packet of the guest's is dropped: {error}; said once");
        }
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}
