//! A guest's driver, for tests: real rings and descriptor chains in real guest memory, driven as Linux does.

use super::packet::{HEADER_LEN, HOST_CID, Header, Op, TYPE_STREAM};
use super::{Connector, Timeouts, Vsock};
use crate::virtio::{DeviceError, Interrupt, Queues, VirtioDevice, Watch};
use lazaret_vmm_wire as wire;
use nix::poll::{PollFd, PollFlags, poll};
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::{RawDescriptor, split};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

pub(super) const CID: u32 = 3;
/// The first of the host ports these guests may connect to, and how many there are: each is good once.
pub(super) const ACCEPTED: u32 = 1024;
pub(super) const PORTS: u32 = 2048;
/// What the guest announces as its receive buffer.
pub(super) const WINDOW: u32 = 256 * 1024;

const SIZE: u16 = 128;
const MEMORY: usize = 32 << 20;
/// Where the buffers of a ring are, by its descriptors.
const BUFFERS: u64 = 1 << 20;
const BUFFER: u64 = 96 * 1024;

/// A split ring of the driver's. Descriptor `i` always owns buffer `i`.
struct Ring {
    index: usize,
    base: u64,
    offered: u16,
    seen: u16,
    /// The next descriptor to use; the tests never have more than a ring's worth under way.
    next: u16,
}

impl Ring {
    fn new(index: u16) -> Self {
        Self { index: index.into(), base: u64::from(index) * 0x4000 + 0x1000, offered: 0, seen: 0, next: 0 }
    }

    fn queue(&self) -> Queue {
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_size(SIZE);
        queue.set_desc_table_address(u32::try_from(self.base).ok(), Some(0));
        queue.set_avail_ring_address(u32::try_from(self.base + 0x1000).ok(), Some(0));
        queue.set_used_ring_address(u32::try_from(self.base + 0x2000).ok(), Some(0));
        queue.set_ready(true);
        queue
    }

    fn address(&self, descriptor: u16) -> u64 {
        BUFFERS + (self.index as u64 * u64::from(SIZE) + u64::from(descriptor)) * BUFFER
    }

    /// Offers a chain of buffers of these sizes, filled with `bytes` if the device is to read them.
    fn offer(&mut self, memory: &GuestMemoryMmap, sizes: &[usize], mut bytes: Option<&[u8]>) {
        let head = self.next;
        for (i, size) in sizes.iter().enumerate() {
            let descriptor = self.next;
            self.next = (self.next + 1) % SIZE;
            let mut flags = if bytes.is_some() { 0 } else { VRING_DESC_F_WRITE };
            if i + 1 < sizes.len() {
                flags |= VRING_DESC_F_NEXT;
            }
            let address = self.address(descriptor);
            if let Some(bytes) = &mut bytes {
                let (now, later) = bytes.split_at((*size).min(bytes.len()));
                memory.write_slice(now, GuestAddress(address)).unwrap();
                *bytes = later;
            }
            self.describe(
                memory,
                descriptor,
                address,
                u32::try_from(*size).unwrap(),
                u16::try_from(flags).unwrap(),
            );
        }
        self.publish(memory, head);
    }

    fn describe(&self, memory: &GuestMemoryMmap, at: u16, address: u64, len: u32, flags: u16) {
        let raw = RawDescriptor::from(split::Descriptor::new(address, len, flags, (at + 1) % SIZE));
        memory.write_obj(raw, GuestAddress(self.base + u64::from(at) * 16)).unwrap();
    }

    fn publish(&mut self, memory: &GuestMemoryMmap, head: u16) {
        let slot = self.base + 0x1000 + 4 + u64::from(self.offered % SIZE) * 2;
        memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.offered = self.offered.wrapping_add(1);
        memory.write_obj(self.offered, GuestAddress(self.base + 0x1000 + 2)).unwrap();
    }

    /// The next chain the device is done with: its head and the bytes it wrote.
    fn used(&mut self, memory: &GuestMemoryMmap) -> Option<(u16, usize)> {
        let index: u16 = memory.read_obj(GuestAddress(self.base + 0x2000 + 2)).unwrap();
        if index == self.seen {
            return None;
        }
        let slot = self.base + 0x2000 + 4 + u64::from(self.seen % SIZE) * 8;
        self.seen = self.seen.wrapping_add(1);
        let id: u32 = memory.read_obj(GuestAddress(slot)).unwrap();
        let len: u32 = memory.read_obj(GuestAddress(slot + 4)).unwrap();
        Some((u16::try_from(id).unwrap(), len as usize))
    }
}

pub(super) struct Guest {
    pub(super) device: Vsock,
    pub(super) connector: Connector,
    pub(super) memory: Arc<GuestMemoryMmap>,
    queues: Queues,
    rx: Ring,
    tx: Ring,
    epoll: RawFd,
    /// How the buffers of the receive queue are cut into descriptors.
    pub(super) rx_sizes: Vec<usize>,
    incoming: mpsc::Receiver<(u32, OwnedFd)>,
    /// Whether the sink takes connections.
    pub(super) willing: Arc<Mutex<bool>>,
}

impl Guest {
    pub(super) fn new() -> Self {
        Self::with(Timeouts::default())
    }

    pub(super) fn with(timeouts: Timeouts) -> Self {
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap());
        let (sender, incoming) = mpsc::channel();
        let willing = Arc::new(Mutex::new(true));
        let ask = Arc::clone(&willing);
        let config = wire::Vsock { cid: CID, accept: (ACCEPTED..ACCEPTED + PORTS).collect() };
        let mut device = Vsock::new(&config, timeouts, move |port, socket| {
            *ask.lock().unwrap() && sender.send((port, socket)).is_ok()
        })
        .unwrap();
        let (rx, tx) = (Ring::new(0), Ring::new(1));
        let queues = vec![rx.queue(), tx.queue(), Ring::new(2).queue()];
        let interrupt = Arc::new(Interrupt::new(EventFd::new(0).unwrap()));
        let queues = Queues::new(Arc::clone(&memory), interrupt, queues);
        let epoll = match device.activate(0).unwrap()[..] {
            [Watch::Set { fd, events: EventSet::IN, .. }] => fd,
            ref other => panic!("unexpected watches {other:?}"),
        };
        let connector = device.connector();
        Self { device, connector, memory, queues, rx, tx, epoll, rx_sizes: vec![4096], incoming, willing }
    }

    /// Offers `count` receive buffers, and says so.
    pub(super) fn offer(&mut self, count: usize) {
        for _ in 0..count {
            self.rx.offer(&self.memory, &self.rx_sizes, None);
        }
        self.device.notified(0, &mut self.queues).unwrap();
    }

    /// Offers `count` buffers that must come back empty.
    pub(super) fn rx_empty(&mut self, count: usize) {
        self.offer(count);
        for _ in 0..count {
            assert_eq!(self.rx.used(&self.memory).map(|(_, len)| len), Some(0));
        }
    }

    /// Sends bytes in descriptors of these sizes; does not tell the device.
    pub(super) fn put(&mut self, bytes: &[u8], sizes: &[usize]) {
        self.tx.offer(&self.memory, sizes, Some(bytes));
    }

    pub(super) fn kick(&mut self) {
        self.device.notified(1, &mut self.queues).unwrap();
        while self.tx.used(&self.memory).is_some() {}
    }

    /// Offers a chain of descriptors as they are, to be read or written by the device, if there is room.
    ///
    /// # Errors
    /// The device's.
    pub(super) fn put_chain(
        &mut self,
        to_device: bool,
        descriptors: &[(u64, u32, u16)],
    ) -> Result<(), DeviceError> {
        let ring = if to_device { &mut self.tx } else { &mut self.rx };
        while ring.used(&self.memory).is_some() {}
        if ring.offered.wrapping_sub(ring.seen) == SIZE {
            return Ok(());
        }
        let head = ring.next;
        for (address, len, flags) in descriptors {
            ring.describe(&self.memory, ring.next, *address, *len, *flags);
            ring.next = (ring.next + 1) % SIZE;
        }
        ring.publish(&self.memory, head);
        self.device.notified(usize::from(to_device), &mut self.queues)
    }

    /// Transmit chains the device has not completed.
    pub(super) fn unsent(&mut self) -> u16 {
        while self.tx.used(&self.memory).is_some() {}
        self.tx.offered.wrapping_sub(self.tx.seen)
    }

    /// Sends one packet: its header in one descriptor, its payload in another, as Linux does.
    pub(super) fn send(&mut self, header: Header, payload: &[u8]) {
        let sizes = [HEADER_LEN, payload.len()];
        self.send_split(header, payload, if payload.is_empty() { &sizes[..1] } else { &sizes });
    }

    pub(super) fn send_split(&mut self, header: Header, payload: &[u8], sizes: &[usize]) {
        self.put(&[&header.to_bytes()[..], payload].concat(), sizes);
        self.kick();
    }

    /// The packets received, and those that arrive while the device has anything to do. It is never waited for.
    pub(super) fn receive(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut packets = Vec::new();
        for _ in 0..100_000 {
            self.take_used(&mut packets);
            if !self.poll(Duration::ZERO) {
                self.take_used(&mut packets);
                return packets;
            }
        }
        panic!("the device does not come to rest");
    }

    fn take_used(&mut self, packets: &mut Vec<(Header, Vec<u8>)>) {
        while let Some((head, len)) = self.rx.used(&self.memory) {
            let mut bytes = Vec::new();
            let mut descriptor = head;
            for size in &self.rx_sizes {
                let mut part = vec![0; (*size).min(len - bytes.len())];
                self.memory.read_slice(&mut part, GuestAddress(self.rx.address(descriptor))).unwrap();
                bytes.extend(part);
                descriptor = (descriptor + 1) % SIZE;
            }
            let header = Header::from_bytes(bytes[..HEADER_LEN].try_into().unwrap());
            assert_eq!(header.len as usize, bytes.len() - HEADER_LEN, "a packet's length and its buffer's");
            assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID.into()));
            packets.push((header, bytes.split_off(HEADER_LEN)));
        }
    }

    /// Waits until the device receives a packet; there must be one soon.
    pub(super) fn next(&mut self) -> Vec<(Header, Vec<u8>)> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let packets = self.receive();
            if !packets.is_empty() {
                return packets;
            }
            assert!(self.poll(deadline.saturating_duration_since(Instant::now())), "no packet came");
        }
    }

    /// Lets the device handle what its descriptors have within `timeout`. Returns whether there was something.
    pub(super) fn poll(&mut self, timeout: Duration) -> bool {
        self.try_poll(timeout).unwrap()
    }

    /// As [`Guest::poll`], for a guest whose chains may be malformed.
    ///
    /// # Errors
    /// The device's.
    pub(super) fn try_poll(&mut self, timeout: Duration) -> Result<bool, DeviceError> {
        // SAFETY: the device, which owns the descriptor, lives as long as `self`.
        let fd = unsafe { BorrowedFd::borrow_raw(self.epoll) };
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        let timeout = u16::try_from(timeout.as_millis()).unwrap_or(u16::MAX);
        if poll(&mut fds, timeout).unwrap() == 0 {
            return Ok(false);
        }
        assert_eq!(self.device.ready(0, EventSet::IN, &mut self.queues)?, []);
        Ok(true)
    }

    /// The connections the host was given.
    pub(super) fn incoming(&mut self) -> Option<(u32, UnixStream)> {
        self.incoming.try_recv().ok().map(|(port, socket)| (port, socket.into()))
    }

    /// Connects to [`ACCEPTED`] from `port`, and is accepted.
    pub(super) fn connect(&mut self, port: u32) -> UnixStream {
        self.connect_to(port, ACCEPTED)
    }

    /// Connects to `host` from `port`, and is accepted.
    pub(super) fn connect_to(&mut self, port: u32, host: u32) -> UnixStream {
        self.send(packet(port, host, Op::Request), &[]);
        let packets = self.next();
        assert_eq!(ops(&packets), [Op::Response]);
        assert_eq!((packets[0].0.src_port, packets[0].0.dst_port), (host, port));
        self.incoming().unwrap().1
    }

    /// The host connects to `port`, and is accepted; returns the host's port too.
    pub(super) fn connected(&mut self, port: u32) -> (u32, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.connector.connect(port, theirs.into());
        let packets = self.next();
        assert_eq!(ops(&packets), [Op::Request]);
        assert_eq!((packets[0].0.dst_port, packets[0].0.kind), (port, TYPE_STREAM));
        let host = packets[0].0.src_port;
        self.send(packet(port, host, Op::Response), &[]);
        (host, ours)
    }
}

/// A packet from the guest's `src` to the host's `dst`, with all of the guest's window free.
pub(super) fn packet(src: u32, dst: u32, op: Op) -> Header {
    Header {
        src_cid: CID.into(),
        dst_cid: HOST_CID,
        src_port: src,
        dst_port: dst,
        kind: TYPE_STREAM,
        op: op as u16,
        buf_alloc: WINDOW,
        ..Header::default()
    }
}

pub(super) fn data(src: u32, dst: u32, payload: &[u8]) -> Header {
    Header { len: u32::try_from(payload.len()).unwrap(), ..packet(src, dst, Op::Data) }
}

pub(super) fn shutdown(src: u32, dst: u32, flags: u32) -> Header {
    Header { flags, ..packet(src, dst, Op::Shutdown) }
}

pub(super) fn ops(packets: &[(Header, Vec<u8>)]) -> Vec<Op> {
    packets.iter().map(|(header, _)| Op::from_wire(header.op).unwrap()).collect()
}
