//! A driver for tests: the whole device, with its registers, threads and rings, and a tap.
#![allow(clippy::cast_possible_truncation, reason = "sizes a test chose")]

use super::header::HEADER_LEN;
use super::test_support::{DEADLINE, GUEST_MAC, Wire, tap};
use super::{Link, Net, Parts};
use crate::event_loop::EventLoop;
use crate::stop::Stop;
use crate::virtio::guest::{Guest, SIZE, available, descriptors, used};
use crate::virtio::{DeviceError, Interrupt, Queues, Transport, VirtioDevice, Watch, Worker};
use lazaret_vmm_wire::Cause;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL,
    VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_STATUS,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The queues of the first pair.
pub(super) const RX: usize = 0;
pub(super) const TX: usize = 1;
/// Where the guest's buffers are: those to receive into, each of `BUFFER` bytes, and those to send from.
pub(super) const RX_DATA: u64 = 0x20_0000;
pub(super) const BUFFER: u32 = 0x2000;
pub(super) const TX_DATA: u64 = 0x40_0000;

/// Only says how many queues there are, so that the rings are laid out.
struct Layout(Vec<u16>);

impl VirtioDevice for Layout {
    fn id(&self) -> u32 {
        1
    }
    fn queue_sizes(&self) -> &[u16] {
        &self.0
    }
    fn activate(&mut self, _: u64) -> Result<Vec<Watch>, DeviceError> {
        Ok(Vec::new())
    }
    fn notified(&mut self, _: usize, _: &mut Queues) -> Result<(), DeviceError> {
        Ok(())
    }
    fn reset(&mut self) {}
}

pub(super) struct Driver {
    pub transport: Transport,
    pub guest: Guest,
    pub link: Link,
    pub stop: Stop,
    /// How often a tap was let go of.
    pub gone: Arc<AtomicUsize>,
    queues: usize,
    /// Chains of each queue that the test has looked at.
    seen: Vec<u16>,
    threads: Vec<JoinHandle<EventLoop>>,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.stop.end(Cause::Requested);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Driver {
    /// A driver that has seen a device with its link down. `choose` is given what the device offers.
    pub(super) fn new(pairs: u16, choose: impl FnOnce(u64) -> u64) -> Self {
        let net = Net::new(0, pairs).unwrap();
        let (link, shape) = (net.link(), net.shape());
        let queues = shape.queue_sizes.len();
        let guest = Guest::new(&mut Layout(shape.queue_sizes.clone()));
        let interrupt = Arc::new(Interrupt::new(guest.line.try_clone().unwrap()));
        let stop = Stop::new().unwrap();
        let (mut handles, mut threads) = (Vec::new(), Vec::new());
        let Parts { pairs: parts, control } = net.into_parts().unwrap();
        for device in parts.into_iter().chain([control]) {
            let doorbells =
                device.queue_sizes().iter().map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
            let (worker, handle) = Worker::new("net".into(), device, doorbells).unwrap();
            handles.push(handle);
            let mut event_loop = EventLoop::new(stop.clone()).unwrap();
            event_loop.add(Box::new(worker));
            threads.push(std::thread::spawn(|| event_loop.run()));
        }
        let transport = Transport::new(shape, Arc::clone(&guest.memory), interrupt, handles).unwrap();
        let seen = vec![0; queues];
        let mut driver = Self { transport, guest, link, stop, gone: Arc::default(), queues, seen, threads };
        let offered = driver.offered();
        driver.start(choose(offered));
        driver
    }

    /// The same with a tap plugged in, and the host's side of it.
    pub(super) fn plugged(pairs: u16, choose: impl FnOnce(u64) -> u64) -> (Self, Wire) {
        let driver = Self::new(pairs, choose);
        driver.plug(pairs);
        let wire = Wire::new();
        (driver, wire)
    }

    pub(super) fn plug(&self, pairs: u16) {
        let gone = Arc::clone(&self.gone);
        let count = move || {
            gone.fetch_add(1, Ordering::SeqCst);
        };
        self.link.plug(tap(pairs), GUEST_MAC, 1500, count).unwrap();
    }

    pub(super) fn read(&self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    pub(super) fn write(&mut self, register: u32, value: u32) {
        // A device whose VM has ended has nobody left to listen.
        if let Err(error) = self.transport.write(register.into(), &value.to_le_bytes()) {
            assert!(self.stop.cause().is_some(), "{error}");
        }
    }

    pub(super) fn offered(&mut self) -> u64 {
        let mut halves = [0, 1].map(|select| {
            self.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
            u64::from(self.read(VIRTIO_MMIO_DEVICE_FEATURES))
        });
        halves[1] <<= 32;
        // Tests that want it say so: it makes interrupts depend on what was acknowledged.
        (halves[0] | halves[1]) & !(1 << VIRTIO_RING_F_EVENT_IDX)
    }

    /// From reset to DRIVER_OK.
    pub(super) fn start(&mut self, features: u64) {
        for status in [1, 3] {
            self.write(VIRTIO_MMIO_STATUS, status);
        }
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.write(VIRTIO_MMIO_DRIVER_FEATURES, half);
        }
        self.write(VIRTIO_MMIO_STATUS, 11);
        assert_eq!(self.read(VIRTIO_MMIO_STATUS), 11, "the features were not accepted");
        for queue in 0..self.queues {
            self.write(VIRTIO_MMIO_QUEUE_SEL, queue as u32);
            self.write(VIRTIO_MMIO_QUEUE_NUM, SIZE.into());
            self.write(VIRTIO_MMIO_QUEUE_DESC_LOW, descriptors(queue) as u32);
            self.write(VIRTIO_MMIO_QUEUE_AVAIL_LOW, available(queue) as u32);
            self.write(VIRTIO_MMIO_QUEUE_USED_LOW, used(queue) as u32);
            self.write(VIRTIO_MMIO_QUEUE_READY, 1);
        }
        self.write(VIRTIO_MMIO_STATUS, 15);
    }

    /// Resets the device and forgets the rings.
    pub(super) fn reset(&mut self) {
        self.write(VIRTIO_MMIO_STATUS, 0);
        self.guest.forget();
        self.seen.fill(0);
    }

    /// Starts anew with all that is offered, unless the VM has ended, which the reset waits for.
    pub(super) fn restart(&mut self) {
        self.reset();
        if self.stop.cause().is_none() {
            let offered = self.offered();
            self.start(offered);
        }
    }

    /// Returns when the pair has heard of the start: frames from before, for another driver, are thrown away then.
    pub(super) fn settle(&mut self) {
        self.guest.offer(TX, &[(TX_DATA, 1, false)]);
        self.kick(TX);
        self.wait_for_all(TX);
        self.completed(TX);
    }

    pub(super) fn kick(&mut self, queue: usize) {
        self.write(VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32);
    }

    /// Waits until `done`, looking again after every interrupt and now and then.
    pub(super) fn wait(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let begun = Instant::now();
        while !done(self) {
            assert!(
                begun.elapsed() < DEADLINE,
                "{what}: not in {DEADLINE:?}; stopped: {:?}",
                self.stop.cause()
            );
            // SAFETY: the event descriptor outlives the borrow.
            let line = unsafe { BorrowedFd::borrow_raw(self.guest.line.as_raw_fd()) };
            let _ = poll(&mut [PollFd::new(line, PollFlags::POLLIN)], PollTimeout::from(5u8));
            let _ = self.guest.line.read();
        }
    }

    /// Pending interrupt causes, acknowledged.
    pub(super) fn causes(&mut self) -> u32 {
        let causes = self.read(VIRTIO_MMIO_INTERRUPT_STATUS);
        self.write(VIRTIO_MMIO_INTERRUPT_ACK, causes);
        causes
    }

    /// MAC, status, pairs and MTU, with the generation.
    pub(super) fn config(&self) -> ([u8; 12], u32) {
        let mut bytes = [0; 12];
        self.transport.read(VIRTIO_MMIO_CONFIG.into(), &mut bytes);
        (bytes, self.read(VIRTIO_MMIO_CONFIG_GENERATION))
    }

    pub(super) fn link_is_up(&self) -> bool {
        self.config().0[6] & 1 != 0
    }

    /// Offers all receive buffers of `length` bytes in the receive queue `queue`.
    pub(super) fn offer_buffers(&mut self, queue: usize, length: u32) {
        for number in 0..SIZE {
            self.guest.offer(queue, &[(RX_DATA + u64::from(number) * u64::from(BUFFER), length, true)]);
        }
        self.kick(queue);
    }

    /// Offers a header and a frame to be sent, in one descriptor, and kicks.
    pub(super) fn send(&mut self, header: [u8; HEADER_LEN], frame: &[u8]) {
        let packet = [&header[..], frame].concat();
        self.guest.put(TX_DATA, &packet);
        self.guest.offer(TX, &[(TX_DATA, packet.len() as u32, false)]);
        self.kick(TX);
    }

    /// Waits until all that was offered in `queue` has come back.
    pub(super) fn wait_for_all(&mut self, queue: usize) {
        self.wait("all chains", |driver| driver.guest.used(queue) == driver.guest.offered(queue));
    }

    /// The chains of `queue` that came back since the last call: head and bytes.
    pub(super) fn completed(&mut self, queue: usize) -> Vec<(u16, u32)> {
        let end = self.guest.used(queue);
        let mut chains = Vec::new();
        while self.seen[queue] != end {
            let entry = u64::from(self.seen[queue] % SIZE);
            let place = GuestAddress(used(queue) + 4 + 8 * entry);
            let [head, length]: [u32; 2] = self.guest.memory.read_obj(place).unwrap();
            chains.push((head as u16, length));
            self.seen[queue] = self.seen[queue].wrapping_add(1);
        }
        chains
    }

    /// The next packet in receive queue `queue`: header and frame. Its buffers are offered again.
    pub(super) fn receive(&mut self, queue: usize) -> ([u8; HEADER_LEN], Vec<u8>) {
        let mut chains = Vec::new();
        self.wait("a frame", |driver| {
            chains = driver.completed(queue);
            !chains.is_empty()
        });
        let mut packet = Vec::new();
        // What came after the first packet is for the next call.
        let mut rest = chains.into_iter();
        let mut buffers = 1;
        while buffers > 0 {
            let (head, length) = rest.next().expect("the buffers of one packet are completed together");
            packet.extend(self.guest.bytes(self.guest.buffer_of(queue, head), length as usize));
            if packet.len() == length as usize {
                buffers = u16::from_le_bytes([packet[10], packet[11]]);
                assert!(buffers > 0);
            }
            buffers -= 1;
            self.guest.publish(queue, head);
        }
        self.seen[queue] = self.seen[queue].wrapping_sub(rest.len() as u16);
        self.kick(queue);
        let frame = packet.split_off(HEADER_LEN);
        (packet.try_into().unwrap(), frame)
    }
}
