//! The queues of an active device: popping what the driver offers, completing it, interrupting when the driver wants it.

use super::DeviceError;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_INT_VRING;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// A descriptor chain the driver offered.
pub type Chain = DescriptorChain<Arc<GuestMemoryMmap>>;

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
        self.status.fetch_or(VIRTIO_MMIO_INT_VRING, Ordering::SeqCst);
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
    budget: usize,
    starved: Vec<usize>,
}

impl Queues {
    /// Queues the driver has set up; those it left out are simply not ready.
    #[must_use]
    pub fn new(memory: Arc<GuestMemoryMmap>, interrupt: Arc<Interrupt>, queues: Vec<Queue>) -> Self {
        Self { memory, interrupt, queues, budget: usize::MAX, starved: Vec::new() }
    }

    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.memory
    }

    /// Lets `chains` be popped; after that [`Queues::pop`] finds nothing. A guest that adds chains as fast as they are
    /// served would keep the thread from all else. Without a grant there is no limit.
    pub(super) fn grant(&mut self, chains: usize) {
        self.budget = chains;
    }

    /// The queues in which something may be left for want of a grant, which are to be looked at again.
    pub(super) fn take_starved(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.starved)
    }

    /// The next chain of queue `index`. When there is none the driver is asked to kick for the next, so that none is
    /// missed between the look and the sleep.
    ///
    /// # Errors
    /// When the ring is not where the guest's memory is, or its indices cannot be.
    pub fn pop(&mut self, index: usize) -> Result<Option<Chain>, DeviceError> {
        let Some(queue) = self.queues.get_mut(index).filter(|queue| queue.ready()) else {
            return Ok(None);
        };
        if self.budget == 0 {
            self.starved.push(index);
            return Ok(None);
        }
        self.budget -= 1;
        loop {
            if let Some(chain) = queue.iter(Arc::clone(&self.memory))?.next() {
                return Ok(Some(chain));
            }
            if !queue.enable_notification(&*self.memory)? {
                return Ok(None);
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
}
