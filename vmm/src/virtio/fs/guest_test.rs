//! A guest for the tests: it builds FUSE messages, puts them into descriptor chains, and waits for the device.
#![allow(clippy::cast_possible_truncation, reason = "sizes a test chose")]

use super::{FsDevice, FsError, own_descriptors};
use crate::virtio::{Interrupt, Queues, VirtioDevice, Watch};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use virtio_queue::{Queue, QueueT};
use virtiofsd::fuse::{CreateIn, EntryOut, InHeader, Opcode, OpenOut, OutHeader, ReadIn, WriteIn};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

/// Two regions side by side, so that a buffer can lie across the border.
pub(super) const BORDER: u64 = 8 << 20;
pub(super) const MEMORY_END: u64 = 16 << 20;
/// That of a small guest, whose files are what the tests may hold.
pub(super) const MEMORY_MIB: u32 = 128;
const REQUEST_AT: u64 = 1 << 20;
const REPLY_AT: u64 = 4 << 20;
/// Bytes of reply a call has room for unless it says otherwise.
const ROOM: u32 = 16 << 10;
/// `FUSE_INIT` flags a current kernel sends: all there are.
const ALL: u32 = u32::MAX;

/// One descriptor: address, length, whether the device may write it.
pub(super) type Buffer = (u64, u32, bool);

pub(super) struct Guest {
    pub(super) memory: Arc<GuestMemoryMmap>,
    pub(super) device: FsDevice,
    pub(super) queues: Queues,
    /// The chains offered and the completions seen, of each queue.
    offered: [u16; 2],
    seen: [u16; 2],
    unique: u64,
    /// Who the requests are from.
    pub(super) user: (u32, u32),
}

impl Guest {
    /// A guest with `root` shared, and a session begun.
    pub(super) fn new(root: &Path) -> Self {
        let mut guest = Self::silent(unjailed("test", root).unwrap());
        guest.init().unwrap();
        guest
    }

    /// A guest whose driver is ready and has not said anything yet.
    pub(super) fn silent(device: FsDevice) -> Self {
        let ranges = [(GuestAddress(0), BORDER as usize), (GuestAddress(BORDER), BORDER as usize)];
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        let line = Arc::new(Interrupt::new(EventFd::new(0).unwrap()));
        let queues = Queues::new(Arc::clone(&memory), line, Vec::new());
        let mut guest =
            Self { memory, device, queues, offered: [0; 2], seen: [0; 2], unique: 1, user: (0, 0) };
        guest.reset();
        guest
    }

    /// Resets the device and sets it up.
    pub(super) fn reset(&mut self) {
        self.device.reset();
        let sizes = self.device.queue_sizes();
        let queues = sizes.iter().zip(0..).map(|(size, index)| queue(*size, index)).collect();
        for index in 0..sizes.len() {
            self.memory.write_obj(0u32, GuestAddress(base(index) + AVAILABLE)).unwrap();
            self.memory.write_obj(0u32, GuestAddress(base(index) + USED)).unwrap();
        }
        let line = Arc::new(Interrupt::new(EventFd::new(0).unwrap()));
        self.queues = Queues::new(Arc::clone(&self.memory), line, queues);
        (self.offered, self.seen) = ([0; 2], [0; 2]);
        let watches = self.device.activate(0).unwrap();
        assert!(matches!(watches[..], [Watch::Set { events: EventSet::IN, .. }]));
    }

    pub(super) fn init(&mut self) -> Result<Vec<u8>, i32> {
        let mut body = [7, 38, 1 << 20, ALL, ALL].map(u32::to_le_bytes).concat();
        body.resize(64, 0);
        self.ask(Opcode::Init, 0, &body)
    }

    /// A message with its header.
    pub(super) fn message(&mut self, opcode: Opcode, node: u64, body: &[u8]) -> Vec<u8> {
        self.unique += 2;
        let header = InHeader {
            len: (size_of::<InHeader>() + body.len()) as u32,
            opcode: opcode as u32,
            unique: self.unique,
            nodeid: node,
            uid: self.user.0.into(),
            gid: self.user.1.into(),
            ..InHeader::default()
        };
        [header.as_slice(), body].concat()
    }

    /// Sends a request and returns the body of its answer, or the errno.
    pub(super) fn ask(&mut self, opcode: Opcode, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let message = self.message(opcode, node, body);
        let reply = self.call(&message, ROOM);
        self.open_reply(&reply)
    }

    /// Checks an answer's header; returns its body.
    pub(super) fn open_reply(&self, reply: &[u8]) -> Result<Vec<u8>, i32> {
        let (header, body) = reply.split_at(size_of::<OutHeader>());
        let header = OutHeader::from_slice(header).unwrap();
        assert_eq!((header.unique, header.len as usize), (self.unique, reply.len()));
        if header.error == 0 { Ok(body.to_vec()) } else { Err(-header.error) }
    }

    /// Sends the bytes of a request as they are; returns the bytes of the answer.
    pub(super) fn call(&mut self, message: &[u8], room: u32) -> Vec<u8> {
        self.memory.write_slice(message, GuestAddress(REQUEST_AT)).unwrap();
        let written = self.run(1, &[(REQUEST_AT, message.len() as u32, false), (REPLY_AT, room, true)]);
        self.bytes(REPLY_AT, written as usize)
    }

    /// Offers one chain and waits for it; returns the number of bytes the device says it wrote.
    pub(super) fn run(&mut self, queue: usize, chain: &[Buffer]) -> u32 {
        self.offer(queue, 0, chain);
        self.device.notified(queue, &mut self.queues).unwrap();
        self.wait(queue).1
    }

    /// Puts a chain that begins at descriptor `head` into the available ring.
    pub(super) fn offer(&mut self, queue: usize, head: u16, chain: &[Buffer]) {
        for (index, (addr, len, write)) in (head..).zip(chain) {
            let last = usize::from(index - head) + 1 == chain.len();
            let flags = u16::from(!last) | u16::from(*write) << 1;
            let place = base(queue) + u64::from(index) * 16;
            self.memory.write_obj(*addr, GuestAddress(place)).unwrap();
            self.memory.write_obj(*len, GuestAddress(place + 8)).unwrap();
            self.memory.write_obj([flags, index + 1], GuestAddress(place + 12)).unwrap();
        }
        let size = self.device.queue_sizes()[queue];
        let slot = u64::from(self.offered[queue] % size);
        self.memory.write_obj(head, GuestAddress(base(queue) + AVAILABLE + 4 + 2 * slot)).unwrap();
        self.offered[queue] = self.offered[queue].wrapping_add(1);
        self.memory.write_obj(self.offered[queue], GuestAddress(base(queue) + AVAILABLE + 2)).unwrap();
    }

    /// The next completion of `queue`: the chain's head and the bytes written.
    pub(super) fn wait(&mut self, queue: usize) -> (u16, u32) {
        while self.used_index(queue) == self.seen[queue] {
            self.turn(PollTimeout::from(20_000u16));
        }
        let slot = u64::from(self.seen[queue] % self.device.queue_sizes()[queue]);
        self.seen[queue] = self.seen[queue].wrapping_add(1);
        let [head, written]: [u32; 2] =
            self.memory.read_obj(GuestAddress(base(queue) + USED + 4 + 8 * slot)).unwrap();
        (head as u16, written)
    }

    /// One turn of the event loop.
    pub(super) fn turn(&mut self, timeout: PollTimeout) {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&self.device.completion);
        // SAFETY: the descriptor is the device's, which outlives the borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let ready = poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout).unwrap();
        assert_eq!(ready, 1, "the device did not answer in time");
        self.device.ready(super::COMPLETION, EventSet::IN, &mut self.queues).unwrap();
    }

    pub(super) fn used_index(&self, queue: usize) -> u16 {
        self.memory.read_obj(GuestAddress(base(queue) + USED + 2)).unwrap()
    }

    pub(super) fn bytes(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    pub(super) fn lookup(&mut self, parent: u64, name: &str) -> Result<EntryOut, i32> {
        self.ask(Opcode::Lookup, parent, &c(name)).map(|body| entry(&body))
    }

    /// Creates a file; returns its node and an open handle.
    pub(super) fn create(&mut self, parent: u64, name: &str, mode: u32) -> Result<(EntryOut, u64), i32> {
        let create =
            CreateIn { flags: libc::O_RDWR as u32, mode: mode | libc::S_IFREG, ..CreateIn::default() };
        let body = self.ask(Opcode::Create, parent, &[create.as_slice(), &c(name)].concat())?;
        let (entry_out, open) = body.split_at(size_of::<EntryOut>());
        Ok((entry(entry_out), OpenOut::from_slice(open).unwrap().fh))
    }

    pub(super) fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        let body = self.ask(Opcode::Open, node, &[flags as u32, 0].map(u32::to_le_bytes).concat())?;
        Ok(OpenOut::from_slice(&body).unwrap().fh)
    }

    pub(super) fn write(&mut self, node: u64, fh: u64, offset: u64, data: &[u8]) -> Result<u32, i32> {
        let write = WriteIn { fh, offset, size: data.len() as u32, ..WriteIn::default() };
        let body = self.ask(Opcode::Write, node, &[write.as_slice(), data].concat())?;
        Ok(u32::from_le_bytes(*body.first_chunk().unwrap()))
    }

    pub(super) fn read(&mut self, node: u64, fh: u64, offset: u64, size: u32) -> Result<Vec<u8>, i32> {
        let read = ReadIn { fh, offset, size, ..ReadIn::default() };
        self.ask(Opcode::Read, node, read.as_slice())
    }
}

/// A device for `root`, in no jail.
pub(super) fn unjailed(tag: &str, root: impl Into<PathBuf>) -> Result<FsDevice, FsError> {
    FsDevice::new(tag, root, own_descriptors()?, MEMORY_MIB)
}

/// Whether the test may do what only root may; says so when it is left out.
pub(super) fn is_root(what: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root {what}");
    }
    root
}

/// A name as a request carries it.
pub(super) fn c(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

pub(super) fn entry(body: &[u8]) -> EntryOut {
    *EntryOut::from_slice(body).unwrap()
}

const AVAILABLE: u64 = 0x8000;
const USED: u64 = 0xa000;

/// Where queue `index` lies: descriptors, then both rings.
fn base(index: usize) -> u64 {
    0x10000 * (index as u64 + 1)
}

fn queue(size: u16, index: usize) -> Queue {
    let mut queue = Queue::new(size).unwrap();
    let at = |offset| Some((base(index) + offset) as u32);
    queue.set_desc_table_address(at(0), Some(0));
    queue.set_avail_ring_address(at(AVAILABLE), Some(0));
    queue.set_used_ring_address(at(USED), Some(0));
    queue.set_ready(true);
    queue
}
