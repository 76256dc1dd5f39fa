//! The device: packets from the transmit queue to connections, and from connections to the receive queue.

use super::connection::{Connection, Ports};
use super::connector::Connector;
use super::packet::{HEADER_LEN, HOST_CID, Header, Op, TYPE_STREAM};
use super::table::{MAX_CONNECTIONS, Number, TIMER, Table, WAKE};
use crate::virtio::buffer::Buffer;
use crate::virtio::{DeviceError, Queues, VirtioDevice, Watch};
use lazaret_vmm_wire as wire;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vmm_sys_util::epoll::{ControlOperation, EpollEvent, EventSet};

const RX: usize = 0;
const TX: usize = 1;
// Queue 2 is the event queue. Its one event, the transport reset, is for a guest that was restored from a snapshot:
// the driver's buffers stay in the queue until there is that to tell.

/// Linux fills the receive queue with buffers of nearly 4 KiB: these are half a MiB, twice its window for a connection.
const QUEUE_SIZES: [u16; 3] = [128, 128, 16];
/// Resets the guest is owed beyond those of its connections; while there are as many, its packets wait.
const MAX_RESETS: usize = 1024;

/// How long a guest has to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// To accept or refuse a connection. A guest kernel answers of itself, so this is for one that hangs, or crawls.
    pub connect: Duration,
    /// To forget a connection that is over: as long as Linux waits itself.
    pub close: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(20), close: Duration::from_secs(8) }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    #[error("vsock: the guest's context id must be from 3 to 4294967294, not {0}")]
    Cid(u32),
    #[error("vsock: cannot set up the device: {0}")]
    Host(#[from] io::Error),
}

/// Takes the host's end of a connection the guest made to an accepted port.
type Incoming = Box<dyn FnMut(u32, OwnedFd) -> bool + Send>;

/// The virtio-vsock device of one guest.
pub struct Vsock {
    config: [u8; 8],
    guest_cid: u64,
    /// The ports still to be connected to. One that was is not good again, not after a reset of the device either: each
    /// connection costs the host descriptors and whoever takes it a message, and the guest decides how many it makes.
    accept: Vec<u32>,
    incoming: Incoming,
    connector: Connector,
    table: Table,
    /// Resets for connections that are no more, or never were.
    resets: VecDeque<Header>,
    /// The transmit queue may have more.
    transmitting: bool,
    warned: bool,
}

impl Vsock {
    /// A device for the guest with `config.cid`. The first connection of the guest's to each of `config.accept` is made by
    /// giving `incoming` the port and the host's end of it, a stream socket. It must not block, and refuses by `false`,
    /// which does not count; every other connection is refused.
    ///
    /// # Errors
    /// [`VsockError::Cid`] for a reserved context id; [`VsockError::Host`] when descriptors run out.
    pub fn new(
        config: &wire::Vsock,
        timeouts: Timeouts,
        incoming: impl FnMut(u32, OwnedFd) -> bool + Send + 'static,
    ) -> Result<Self, VsockError> {
        // 0 to 2 and the last are VMADDR_CID_{HYPERVISOR,LOCAL,HOST,ANY} (VIRTIO 1.2, 5.10.4).
        if !(3..u32::MAX).contains(&config.cid) {
            return Err(VsockError::Cid(config.cid));
        }
        let (table, connector) = (Table::new(timeouts)?, Connector::new()?);
        let event = EpollEvent::new(EventSet::IN, WAKE);
        table.epoll().ctl(ControlOperation::Add, connector.event().as_raw_fd(), event)?;
        Ok(Self {
            config: u64::from(config.cid).to_le_bytes(),
            guest_cid: config.cid.into(),
            accept: config.accept.clone(),
            incoming: Box::new(incoming),
            connector,
            table,
            resets: VecDeque::new(),
            transmitting: false,
            warned: false,
        })
    }

    /// The handle by which other threads connect to the guest.
    #[must_use]
    pub fn connector(&self) -> Connector {
        self.connector.clone()
    }

    /// Moves packets both ways until there is nothing left to move. This ends because the queues hand out a limited number of
    /// chains per turn.
    fn turn(&mut self, queues: &mut Queues) -> Result<(), DeviceError> {
        loop {
            self.transmit(queues)?;
            self.receive(queues)?;
            // Packets still wait if there was no room for resets, and that the guest may have made just now.
            if !self.transmitting || self.resets.len() >= MAX_RESETS {
                break;
            }
        }
        self.table.park();
        Ok(())
    }

    /// Takes packets from the guest.
    fn transmit(&mut self, queues: &mut Queues) -> Result<(), DeviceError> {
        let memory = Arc::clone(queues.memory());
        while self.transmitting && self.resets.len() < MAX_RESETS {
            let Some(chain) = queues.pop(TX)? else {
                self.transmitting = false;
                break;
            };
            let (mut packet, _) = Buffer::of(&memory, &chain);
            let mut header = [0; HEADER_LEN];
            // A packet without a whole header names no connection that could be reset.
            if packet.copy_to(&mut header) == HEADER_LEN {
                packet.skip(HEADER_LEN);
                self.packet(&Header::from_bytes(&header), packet);
            }
            queues.push(TX, chain.head_index(), 0)?;
        }
        Ok(())
    }

    fn packet(&mut self, header: &Header, payload: Buffer<'_>) {
        // The spec leaves open what a packet under a false name gets; an answer would go to the wrong one.
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            return;
        }
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        if let Some(number) = self.table.find(ports) {
            if let Some(connection) = self.table.get(number)
                && connection.packet(header, payload)
            {
                let reset = connection.reset();
                self.resets.push_back(reset);
            }
            self.table.settle(number);
        } else if header.op == Op::Request as u16 && header.kind == TYPE_STREAM {
            if !self.accept(header) {
                self.resets.push_back(header.reset());
            }
        } else if header.op != Op::Reset as u16 {
            self.resets.push_back(header.reset());
        }
    }

    /// Makes the connection the guest asks for, if it may have it.
    fn accept(&mut self, request: &Header) -> bool {
        let port = request.dst_port;
        if !self.accept.contains(&port) {
            return false;
        }
        if self.table.is_full() {
            self.warn(format_args!(
                "port {port} refused to the guest, which has {MAX_CONNECTIONS} connections"
            ));
            return false;
        }
        let pair = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC);
        let (ours, theirs) = match pair {
            Ok(pair) => pair,
            Err(error) => {
                self.warn(format_args!("port {port} refused to the guest: {error}"));
                return false;
            }
        };
        if !(self.incoming)(port, theirs) {
            return false;
        }
        self.accept.retain(|accepted| *accepted != port);
        self.table.insert(Connection::from_guest(request, ours));
        true
    }

    /// Gives packets to the guest, as many as it has buffers for.
    fn receive(&mut self, queues: &mut Queues) -> Result<(), DeviceError> {
        let memory = Arc::clone(queues.memory());
        while !self.resets.is_empty() || self.table.has_ready() {
            let Some(chain) = queues.pop(RX)? else { break };
            let index = chain.head_index();
            // A buffer without room for a packet and a byte of payload goes back empty.
            let (_, room) = Buffer::of(&memory, &chain);
            let Some((head, body)) = room.split_at(HEADER_LEN).filter(|(_, body)| body.len() > 0) else {
                queues.push(RX, index, 0)?;
                continue;
            };
            match self.next_packet(head, body) {
                Some(used) => queues.push(RX, index, used)?,
                None => queues.unpop(RX),
            }
        }
        Ok(())
    }

    /// Puts one packet into a buffer of the guest's and returns its length, if there is one.
    fn next_packet(&mut self, head: Buffer<'_>, body: Buffer<'_>) -> Option<u32> {
        if let Some(reset) = self.resets.pop_front() {
            head.copy_from(&reset.to_bytes());
            return u32::try_from(HEADER_LEN).ok();
        }
        let number = self.table.next_ready()?;
        let used = self.table.get(number)?.fill(head, body);
        self.table.settle(number);
        used
    }

    /// Starts the connections other threads asked for.
    fn connect(&mut self) {
        while let Some((port, socket)) = self.connector.take() {
            let ports = Ports { host: self.table.free_port(port), guest: port };
            let connection = Connection::to_guest(ports, self.guest_cid, socket);
            if self.table.is_full() {
                log::warn!("vsock: no connection to guest port {port}: there are {MAX_CONNECTIONS} already");
            } else {
                self.table.insert(connection);
            }
        }
    }

    /// Logs, once, what a guest can cause as often as it likes.
    fn warn(&mut self, what: fmt::Arguments<'_>) {
        if !std::mem::replace(&mut self.warned, true) {
            log::warn!("vsock: {what}; further messages of this kind are left out");
        }
    }

    fn expire(&mut self, number: Number) {
        if let Some(connection) = self.table.get(number)
            && connection.expire()
        {
            let reset = connection.reset();
            self.resets.push_back(reset);
        }
        self.table.settle(number);
    }
}

impl VirtioDevice for Vsock {
    fn id(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, _features: u64) -> Result<Vec<Watch>, DeviceError> {
        // One descriptor stands for all: the sockets come and go in the epoll behind it.
        Ok(vec![Watch::Set { fd: self.table.epoll().as_raw_fd(), token: 0, events: EventSet::IN }])
    }

    fn notified(&mut self, index: usize, queues: &mut Queues) -> Result<(), DeviceError> {
        self.transmitting |= index == TX;
        self.turn(queues)
    }

    fn ready(&mut self, _: u32, _: EventSet, queues: &mut Queues) -> Result<Vec<Watch>, DeviceError> {
        let mut events = [EpollEvent::default(); 64];
        let count = match self.table.epoll().wait(0, &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            result => result?,
        };
        for event in &events[..count] {
            match event.data() {
                TIMER => {
                    for number in self.table.expired() {
                        self.expire(number);
                    }
                }
                WAKE => {
                    self.connector.acknowledge();
                    self.connect();
                }
                number => {
                    if let Some(connection) = self.table.get(number) {
                        connection.socket_ready(event.event_set());
                    }
                    self.table.settle(number);
                }
            }
        }
        self.turn(queues)?;
        Ok(Vec::new())
    }

    fn reset(&mut self) {
        self.table.clear();
        self.resets.clear();
        self.transmitting = false;
    }
}

impl fmt::Debug for Vsock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vsock").field("guest_cid", &self.guest_cid).field("table", &self.table).finish()
    }
}

#[cfg(test)]
#[path = "device_test.rs"]
mod tests;

#[cfg(test)]
#[path = "hostile_test.rs"]
mod hostile_tests;
