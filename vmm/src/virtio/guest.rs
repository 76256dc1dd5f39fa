//! The driver's side of virtqueues, for tests of devices.
#![allow(clippy::cast_possible_truncation, reason = "sizes a test chose")]

use super::{DeviceError, Interrupt, Queues, VirtioDevice};
use std::sync::Arc;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub(super) const SIZE: u16 = 16;
/// Guest memory a test may use as it likes, and its end.
pub(super) const DATA: u64 = 0x10_0000;
pub(super) const MEMORY_END: u64 = 0x80_0000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// One buffer of a chain: address, length, whether the device writes it.
pub(super) type Part = (u64, u32, bool);

pub(super) struct Guest {
    pub(super) memory: Arc<GuestMemoryMmap>,
    pub(super) queues: Queues,
    pub(super) line: EventFd,
    next_descriptor: u16,
    offered: Vec<u16>,
}

/// Where queue `index` has its descriptors; the rings follow in pages of their own.
pub(super) fn descriptors(index: usize) -> u64 {
    0x1_0000 * (index as u64 + 1)
}

pub(super) fn available(index: usize) -> u64 {
    descriptors(index) + 0x4000
}

pub(super) fn used(index: usize) -> u64 {
    descriptors(index) + 0x8000
}

impl Guest {
    pub(super) fn new(device: &mut dyn VirtioDevice) -> Self {
        let features = device.features();
        Self::with_features(device, features)
    }

    /// A driver that has chosen `features`, those of the rings among them.
    pub(super) fn with_features(device: &mut dyn VirtioDevice, features: u64) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_END as usize)]).unwrap();
        let memory = Arc::new(memory);
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let count = device.queue_sizes().len();
        let queues = (0..count).map(|index| {
            let mut queue = Queue::new(SIZE).unwrap();
            queue.set_desc_table_address(Some(descriptors(index) as u32), Some(0));
            queue.set_avail_ring_address(Some(available(index) as u32), Some(0));
            queue.set_used_ring_address(Some(used(index) as u32), Some(0));
            queue.set_event_idx(features & 1 << VIRTIO_RING_F_EVENT_IDX != 0);
            queue.set_ready(true);
            assert!(queue.is_valid(&*memory));
            queue
        });
        let interrupt = Arc::new(Interrupt::new(line.try_clone().unwrap()));
        let queues = Queues::new(Arc::clone(&memory), interrupt, queues.collect());
        device.activate(features).unwrap();
        Self { memory, queues, line, next_descriptor: 0, offered: vec![0; count] }
    }

    fn describe(&self, place: u64, address: u64, length: u32, flags: u16, next: u16) {
        let bytes =
            [&address.to_le_bytes()[..], &length.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
        self.memory.write_slice(&bytes.concat(), GuestAddress(place)).unwrap();
    }

    /// Offers a chain of `parts` in queue `index`; returns its head.
    pub(super) fn offer(&mut self, index: usize, parts: &[Part]) -> u16 {
        let slot = |number: usize| (self.next_descriptor + number as u16) % SIZE;
        let head = slot(0);
        for (number, (address, length, write)) in parts.iter().enumerate() {
            let last = number + 1 == parts.len();
            let flags = if *write { WRITE } else { 0 } | if last { 0 } else { NEXT };
            let place = descriptors(index) + 16 * u64::from(slot(number));
            self.describe(place, *address, *length, flags, slot(number + 1));
        }
        self.next_descriptor = slot(parts.len());
        self.publish(index, head);
        head
    }

    /// Offers the same by an indirect table at `table`.
    pub(super) fn offer_indirect(&mut self, index: usize, table: u64, parts: &[Part]) {
        for (number, (address, length, write)) in parts.iter().enumerate() {
            let last = number + 1 == parts.len();
            let flags = if *write { WRITE } else { 0 } | if last { 0 } else { NEXT };
            self.describe(table + 16 * number as u64, *address, *length, flags, number as u16 + 1);
        }
        let head = self.next_descriptor;
        self.describe(descriptors(index) + 16 * u64::from(head), table, 16 * parts.len() as u32, INDIRECT, 0);
        self.next_descriptor = (head + 1) % SIZE;
        self.publish(index, head);
    }

    /// Offers the chain that starts at `head` again.
    pub(super) fn publish(&mut self, index: usize, head: u16) {
        let place = available(index) + 4 + 2 * u64::from(self.offered[index] % SIZE);
        self.memory.write_obj(head, GuestAddress(place)).unwrap();
        self.offered[index] = self.offered[index].wrapping_add(1);
        self.memory.write_obj(self.offered[index], GuestAddress(available(index) + 2)).unwrap();
    }

    /// Offers a chain and has the device serve it; returns what the used ring says was written.
    pub(super) fn run(
        &mut self,
        device: &mut dyn VirtioDevice,
        index: usize,
        parts: &[Part],
    ) -> Result<u32, DeviceError> {
        let head = self.offer(index, parts);
        device.notified(index, &mut self.queues)?;
        let (id, written) = self.last_used(index);
        assert_eq!(id, u32::from(head), "another chain was completed");
        Ok(written)
    }

    /// How many chains of queue `index` were offered.
    pub(super) fn offered(&self, index: usize) -> u16 {
        self.offered[index]
    }

    /// Where the first buffer of a chain is.
    pub(super) fn buffer_of(&self, index: usize, head: u16) -> u64 {
        self.memory.read_obj(GuestAddress(descriptors(index) + 16 * u64::from(head))).unwrap()
    }

    /// As before the first chain, after a reset.
    pub(super) fn forget(&mut self) {
        self.next_descriptor = 0;
        for index in 0..self.offered.len() {
            self.offered[index] = 0;
            for ring in [available(index), used(index)] {
                self.memory.write_obj(0u32, GuestAddress(ring)).unwrap();
            }
        }
    }

    /// How many chains of queue `index` were completed.
    pub(super) fn used(&self, index: usize) -> u16 {
        self.memory.read_obj(GuestAddress(used(index) + 2)).unwrap()
    }

    /// The head and the length of the chain completed last.
    pub(super) fn last_used(&self, index: usize) -> (u32, u32) {
        let entry = u64::from(self.used(index).wrapping_sub(1) % SIZE);
        let [id, length]: [u32; 2] = self.memory.read_obj(GuestAddress(used(index) + 4 + 8 * entry)).unwrap();
        (id, length)
    }

    pub(super) fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub(super) fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}
