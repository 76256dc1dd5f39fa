//! The queues of an active device: popping what the driver offers, completing it, interrupting when the driver wants it.

use super::{Chain, DeviceError};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

/// The interrupt line of one device (VIRTIO 1.2, 4.2.2.2 `InterruptStatus`).
#[derive(Debug)]
pub struct Interrupt {
    status: AtomicU32,
    line: EventFd,
}

impl Interrupt {
    /// An interrupt that is raised by writing `line`, an irqfd.
    #[must_use]
    pub fn new(line: EventFd) -> Self {
        Self { status: AtomicU32::new(0), line }
    }

    /// The pending causes, as the driver reads them.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The driver's acknowledgement of `causes`; all of them on a reset.
    pub fn acknowledge(&self, causes: u32) {
        self.status.fetch_and(!causes, Ordering::SeqCst);
    }

    /// Tells the driver of used buffers.
    ///
    /// # Errors
    /// The event descriptor's.
    pub fn queue(&self) -> io::Result<()> {
        self.raise(VIRTIO_MMIO_INT_VRING)
    }

    /// Tells the driver that the configuration space has changed.
    ///
    /// # Errors
    /// The event descriptor's.
    pub fn config(&self) -> io::Result<()> {
        self.raise(VIRTIO_MMIO_INT_CONFIG)
    }

    fn raise(&self, cause: u32) -> io::Result<()> {
        self.status.fetch_or(cause, Ordering::SeqCst);
        self.line.write(1)
    }
}

/// The queues of one active device.
#[derive(Debug)]
pub struct Queues {
    memory: Arc<GuestMemoryMmap>,
    interrupt: Arc<Interrupt>,
    queues: Vec<Queue>,
    /// Chains that may still be popped before others have their turn, and the queues that were not popped for it.
    chains_left: usize,
    unfinished: Vec<usize>,
    /// For each queue, its used index when [`Queues::interrupt`] last looked at it.
    interrupted: Vec<u16>,
}

impl Queues {
    /// Queues the driver has set up; those it left out are simply not ready.
    #[must_use]
    pub fn new(memory: Arc<GuestMemoryMmap>, interrupt: Arc<Interrupt>, queues: Vec<Queue>) -> Self {
        let interrupted = queues.iter().map(QueueT::next_used).collect();
        Self { memory, interrupt, queues, chains_left: usize::MAX, unfinished: Vec::new(), interrupted }
    }

    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.memory
    }

    /// Lets `chains` be popped; after that [`Queues::pop`] finds nothing. A guest that adds chains as fast as they are
    /// served would keep the thread from all else. Until this is called there is no limit.
    pub(super) fn limit_chains(&mut self, chains: usize) {
        self.chains_left = chains;
    }

    /// The queues that may hold more chains than the limit let through. They are to be served again.
    pub(super) fn take_unfinished(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.unfinished)
    }

    /// The next chain of queue `index`. When there is none the driver is asked to kick for the next, so that none is
    /// missed between the look and the sleep.
    ///
    /// # Errors
    /// When the ring is not where the guest's memory is, its indices cannot be, or the chain is malformed.
    pub fn pop(&mut self, index: usize) -> Result<Option<Chain>, DeviceError> {
        let mut chain = Chain::default();
        Ok(self.pop_into(index, &mut chain)?.then_some(chain))
    }

    /// [`Queues::pop`] into `chain`, for a device that pops by the million; false when there is none.
    ///
    /// # Errors
    /// Those of [`Queues::pop`].
    pub fn pop_into(&mut self, index: usize, chain: &mut Chain) -> Result<bool, DeviceError> {
        let Some(queue) = self.queues.get_mut(index).filter(|queue| queue.ready()) else {
            return Ok(false);
        };
        if self.chains_left == 0 {
            self.unfinished.push(index);
            return Ok(false);
        }
        self.chains_left -= 1;
        loop {
            let memory = &*self.memory;
            if let Some(descriptors) = queue.iter(memory)?.next() {
                chain.read(memory, descriptors.head_index(), descriptors, queue.size())?;
                return Ok(true);
            }
            if !queue.enable_notification(&*self.memory)? {
                return Ok(false);
            }
        }
    }

    /// Puts the chain popped last back, for a device that cannot serve it yet.
    pub fn unpop(&mut self, index: usize) {
        if let Some(queue) = self.queues.get_mut(index) {
            queue.go_to_previous_position();
        }
    }

    /// Completes the chain that starts at `head` with `written` bytes in its writable part, and interrupts the driver
    /// if it wants to know.
    ///
    /// # Errors
    /// When the used ring is not where the guest's memory is, or the interrupt cannot be raised.
    pub fn push(&mut self, index: usize, head: u16, written: u32) -> Result<(), DeviceError> {
        let Some(queue) = self.queues.get_mut(index) else { return Ok(()) };
        queue.add_used(&*self.memory, head, written)?;
        if queue.needs_notification(&*self.memory)? {
            self.interrupt.queue()?;
        }
        Ok(())
    }

    /// The size the driver gave queue `index`.
    pub(super) fn size(&self, index: usize) -> u16 {
        self.queues.get(index).map_or(0, QueueT::size)
    }

    /// Completes several chains of a queue at once, each by its head and the bytes written to it: the driver sees all of
    /// them or none. [`Queues::interrupt`] is called after the last of a turn; such a queue is not completed by
    /// [`Queues::push`].
    ///
    /// # Errors
    /// When a head is none of the queue's, or the used ring is not where the guest's memory is.
    pub(super) fn complete(&mut self, index: usize, chains: &[(u16, u32)]) -> Result<(), DeviceError> {
        let Some(queue) = self.queues.get_mut(index) else { return Ok(()) };
        let ring = GuestAddress(queue.used_ring());
        let mut next = queue.next_used();
        for (head, written) in chains {
            let size = queue.size();
            if *head >= size {
                return Err(virtio_queue::Error::InvalidDescriptorIndex.into());
            }
            // VIRTIO 1.2, 2.7.8: flags and index, then the elements, of 8 bytes each.
            let offset = 4 + 8 * u64::from(next % size);
            let place = GuestAddress(ring.0.saturating_add(offset));
            let element = [u32::from(*head).to_le(), written.to_le()];
            self.memory.write_obj(element, place).map_err(virtio_queue::Error::GuestMemory)?;
            next = next.wrapping_add(1);
        }
        queue.set_next_used(next);
        let place = GuestAddress(ring.0.saturating_add(2));
        // Release: the elements, and what the chains hold, before the index that gives them to the driver.
        let stored = self.memory.store(next.to_le(), place, Ordering::Release);
        stored.map_err(|error| virtio_queue::Error::GuestMemory(error).into())
    }

    /// Interrupts the driver if it wants to know of what [`Queues::complete`] has completed in queue `index`.
    ///
    /// # Errors
    /// When the available ring is not where the guest's memory is, or the interrupt cannot be raised.
    pub(super) fn interrupt(&mut self, index: usize) -> Result<(), DeviceError> {
        let (Some(queue), Some(before)) = (self.queues.get(index), self.interrupted.get_mut(index)) else {
            return Ok(());
        };
        let now = queue.next_used();
        let before = std::mem::replace(before, now);
        if now == before {
            return Ok(());
        }
        // The index is stored before the driver's wish is read; the driver stores and reads the other way round, so one of
        // the two sees the other's (VIRTIO 1.2, 2.7.7.1, 2.7.10.1).
        fence(Ordering::SeqCst);
        let event_idx = queue.event_idx_enabled();
        // Flags and index, then the ring, then used_event.
        let offset = if event_idx { 4 + 2 * u64::from(queue.size()) } else { 0 };
        let place = GuestAddress(queue.avail_ring().saturating_add(offset));
        let word = self.memory.load(place, Ordering::Relaxed).map(u16::from_le);
        let word = word.map_err(virtio_queue::Error::GuestMemory)?;
        let wanted = if event_idx {
            // Among those completed since is the one that the driver waits for.
            now.wrapping_sub(word).wrapping_sub(1) < now.wrapping_sub(before)
        } else {
            u32::from(word) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        if wanted {
            self.interrupt.queue()?;
        }
        Ok(())
    }

    /// Tells the driver that the configuration space has changed.
    ///
    /// # Errors
    /// When the interrupt cannot be raised.
    pub(super) fn config_changed(&self) -> io::Result<()> {
        self.interrupt.config()
    }
}
