//! Credit-based flow control (VIRTIO 1.2, 5.10.6.3). Every count is modulo 2^32.

use super::packet::Header;
use std::num::Wrapping;

/// What we hold for a connection whose host socket is full, in bytes; announced to the guest as `buf_alloc`.
pub(super) const BUFFER: u32 = 256 * 1024;

/// Who may send how much on one connection.
#[derive(Debug, Default)]
pub(super) struct Credit {
    /// Bytes of data sent to the guest.
    sent: Wrapping<u32>,
    /// What the guest said of its buffer last.
    guest_buffer: u32,
    guest_forwarded: Wrapping<u32>,
    /// Bytes of data accepted from the guest, of those the ones out of our hands, and of those the ones it knows of.
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    announced: Wrapping<u32>,
}

impl Credit {
    /// Takes in the credit fields that every packet of the guest carries.
    pub(super) fn guest_says(&mut self, header: &Header) {
        self.guest_buffer = header.buf_alloc;
        self.guest_forwarded = Wrapping(header.fwd_cnt);
    }

    /// How many bytes the guest has room for. A guest whose counts cannot be gets nothing, and stalls only itself.
    pub(super) fn to_guest(&self) -> u32 {
        self.guest_buffer.saturating_sub((self.sent - self.guest_forwarded).0)
    }

    pub(super) fn sent(&mut self, bytes: u32) {
        self.sent += bytes;
    }

    /// Whether the guest may send `bytes` more; they then count as buffered.
    #[must_use]
    pub(super) fn accept(&mut self, bytes: u32) -> bool {
        let buffered = (self.received - self.forwarded).0;
        if buffered.checked_add(bytes).is_none_or(|buffered| buffered > BUFFER) {
            return false;
        }
        self.received += bytes;
        true
    }

    /// `bytes` of those buffered have left for the host, or were thrown away.
    pub(super) fn forwarded(&mut self, bytes: u32) {
        self.forwarded += bytes;
    }

    /// The `fwd_cnt` of a packet that is about to be sent.
    pub(super) fn announce(&mut self) -> u32 {
        self.announced = self.forwarded;
        self.forwarded.0
    }

    /// Whether the guest knows so little of the room there is that it should be told. A quarter of the buffer is rare
    /// enough to be cheap and soon enough that a sender with a backlog does not run dry.
    pub(super) fn update_due(&self) -> bool {
        (self.forwarded - self.announced).0 >= BUFFER / 4
    }
}

#[cfg(test)]
#[path = "credit_test.rs"]
mod tests;
