//! A descriptor chain: copied out of the guest's memory once, and judged before a device sees it.
//!
//! A chain is malformed when
//! - it has more descriptors than its queue, those of an indirect table included (VIRTIO 1.2, 2.7.5.3.1): so the time that
//!   one chain takes is bounded;
//! - it has no end: it comes back to itself, goes on with a descriptor that is not there or cannot be read, has an indirect
//!   table within another one, or is longer than 2^32 bytes (2.7.5.2, 2.7.5.3.1);
//! - a descriptor names memory that the guest does not have;
//! - a device-readable descriptor follows a device-writable one (2.7.4.2).
//!
//! There is one policy: a malformed chain is the driver's error. The device fails and the VM ends, with the reason. No
//! driver that works makes such a chain. To serve a part of one would hide a fault, or lose data.

use super::DeviceError;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};

/// A stretch of the guest's memory that lies in one region of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) addr: GuestAddress,
    pub(super) len: u32,
}

/// A descriptor chain that the driver offered, well formed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    head: u16,
    pub(super) readable: Vec<Segment>,
    pub(super) writable: Vec<Segment>,
}

impl Chain {
    /// Reads the chain of `descriptors` that begins with descriptor `head` of a queue of `queue_size`, in the place of the
    /// chain that this value held before: once its lists have grown, no chain is an allocation.
    ///
    /// # Errors
    /// [`DeviceError::Driver`] for a malformed chain.
    pub(super) fn read(
        &mut self,
        memory: &GuestMemoryMmap,
        head: u16,
        descriptors: impl Iterator<Item = Descriptor>,
        queue_size: u16,
    ) -> Result<(), DeviceError> {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        let mut has_end = false;
        for (number, descriptor) in descriptors.enumerate() {
            if number == usize::from(queue_size) {
                return Err(DeviceError::Driver("a descriptor chain longer than its queue"));
            }
            has_end = !descriptor.has_next();
            let segments = match (descriptor.is_write_only(), self.writable.is_empty()) {
                (true, _) => &mut self.writable,
                (false, true) => &mut self.readable,
                (false, false) => {
                    return Err(DeviceError::Driver(
                        "a device-readable descriptor after a device-writable one",
                    ));
                }
            };
            push_segments(memory, descriptor, segments)
                .ok_or(DeviceError::Driver("a descriptor outside of memory"))?;
        }
        if has_end { Ok(()) } else { Err(DeviceError::Driver("a descriptor chain without an end")) }
    }

    /// The index of the chain's first descriptor, by which the used ring names the chain.
    #[must_use]
    pub fn head_index(&self) -> u16 {
        self.head
    }
}

/// Adds the memory of `descriptor` to `segments`, cut where regions meet; `None` when a part of it does not exist.
fn push_segments(
    memory: &GuestMemoryMmap,
    descriptor: Descriptor,
    segments: &mut Vec<Segment>,
) -> Option<()> {
    let (mut addr, mut rest) = (descriptor.addr(), descriptor.len());
    while rest > 0 {
        let region = memory.find_region(addr)?;
        let left = region.last_addr().unchecked_offset_from(addr).saturating_add(1);
        let len = u32::try_from(left).unwrap_or(u32::MAX).min(rest);
        segments.push(Segment { addr, len });
        rest -= len;
        addr = addr.checked_add(u64::from(len))?;
    }
    Some(())
}

#[cfg(test)]
#[path = "chain_test.rs"]
mod tests;
