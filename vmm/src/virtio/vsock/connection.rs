//! One connection: its state, its credit, and the host's socket.

use super::credit::{BUFFER, Credit};
use super::packet::{HEADER_LEN, HOST_CID, Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};
use super::state::{Event, Reaction, State};
use crate::virtio::buffer::Buffer;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, sendmsg, shutdown};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;
use vmm_sys_util::epoll::EventSet;

/// The most payload in one packet to the guest, in bytes: Linux's own limit, `VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`.
const MAX_PAYLOAD: usize = 64 * 1024;

/// Both ends' ports; unique among the connections the guest knows of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// Packets the guest is owed. At most one of each kind, so that a guest that offers no buffers cannot make them pile up.
#[derive(Debug, Default, PartialEq, Eq)]
struct Owed {
    request: bool,
    response: bool,
    shutdown: bool,
    credit_update: bool,
    credit_request: bool,
}

impl Owed {
    /// The next packet that goes before data. A `SHUTDOWN` that ends the sending does not arise before all is sent.
    fn urgent(&mut self) -> Option<Op> {
        [
            (&mut self.request, Op::Request),
            (&mut self.response, Op::Response),
            (&mut self.shutdown, Op::Shutdown),
            (&mut self.credit_request, Op::CreditRequest),
        ]
        .into_iter()
        .find_map(|(owed, op)| std::mem::take(owed).then_some(op))
    }

    /// Data says the same by the way; so this goes when there is none.
    fn update(&mut self) -> Option<Op> {
        std::mem::take(&mut self.credit_update).then_some(Op::CreditUpdate)
    }
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) ports: Ports,
    guest_cid: u64,
    state: State,
    credit: Credit,
    owed: Owed,
    /// `None` once neither side has any use for it.
    socket: Option<OwnedFd>,
    /// What the guest sent and the host has not taken: at most [`BUFFER`], by credit.
    outbox: VecDeque<u8>,
    /// The socket may have something to read.
    readable: bool,
    /// The other end of the socket is closed: what can still be read can, but it takes nothing.
    hung_up: bool,
    /// The halves of the socket that were shut already.
    shut_read: bool,
    shut_write: bool,
    /// What the inner epoll watches the socket for.
    pub(super) watched: Option<EventSet>,
    /// It is in the list of those with something for the guest.
    pub(super) queued: bool,
    /// When the guest is given up on.
    pub(super) deadline: Option<Instant>,
}

impl Connection {
    fn new(ports: Ports, guest_cid: u64, socket: OwnedFd, state: State) -> Self {
        Self {
            ports,
            guest_cid,
            state,
            credit: Credit::default(),
            owed: Owed::default(),
            socket: Some(socket),
            outbox: VecDeque::new(),
            readable: false,
            hung_up: false,
            shut_read: false,
            shut_write: false,
            watched: None,
            queued: false,
            deadline: None,
        }
    }

    /// A connection of the host's: the guest is to be asked.
    pub(super) fn to_guest(ports: Ports, guest_cid: u64, socket: OwnedFd) -> Self {
        let mut connection = Self::new(ports, guest_cid, socket, State::Connecting);
        connection.owed.request = true;
        connection
    }

    /// A connection the guest asked for by `request`, and gets.
    pub(super) fn from_guest(request: &Header, socket: OwnedFd) -> Self {
        let ports = Ports { host: request.dst_port, guest: request.src_port };
        let mut connection = Self::new(ports, request.src_cid, socket, State::ESTABLISHED);
        connection.credit.guest_says(request);
        connection.owed.response = true;
        connection
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    pub(super) fn socket(&self) -> Option<&OwnedFd> {
        self.socket.as_ref()
    }

    /// Bytes held for the host.
    #[cfg(test)]
    pub(super) fn outbox_len(&self) -> usize {
        self.outbox.len()
    }

    /// Whether nothing is left to do for it.
    pub(super) fn is_over(&self) -> bool {
        self.state == State::Gone && self.outbox.is_empty()
    }

    /// Takes in a packet of the guest's. Returns whether the guest is to be sent a reset.
    pub(super) fn packet(&mut self, header: &Header, mut payload: Buffer<'_>) -> bool {
        let length = header.len as usize;
        let event = match Op::from_wire(header.op) {
            _ if header.kind != TYPE_STREAM => Event::Malformed,
            Some(Op::Request) => Event::Request,
            Some(Op::Response) => Event::Response,
            Some(Op::Reset) => Event::Reset,
            Some(Op::Shutdown) => Event::shutdown(header.flags),
            Some(Op::CreditUpdate | Op::CreditRequest) => Event::Credit,
            Some(Op::Data) if payload.len() < length || !self.credit.accept(header.len) => Event::Malformed,
            Some(Op::Data) => Event::Data,
            None => Event::Malformed,
        };
        self.credit.guest_says(header);
        self.owed.credit_update |= header.op == Op::CreditRequest as u16;
        match self.on(event) {
            Reaction::Deliver => {
                payload.truncate(length);
                self.deliver(payload);
            }
            Reaction::Discard => self.credit.forwarded(header.len),
            Reaction::SendReset => return true,
            Reaction::Nothing | Reaction::TellShutdown => {}
        }
        false
    }

    /// The socket is ready.
    pub(super) fn socket_ready(&mut self, events: EventSet) {
        let over = EventSet::HANG_UP | EventSet::ERROR;
        self.readable |= events.intersects(EventSet::IN | over);
        self.hung_up |= events.intersects(over);
        self.flush();
        // While there are bytes of the host to be read, the guest is told of both ends at once, after these bytes.
        if self.hung_up && !self.state.sends_to_guest() {
            self.host_refuses();
        }
    }

    /// The deadline has passed. Returns whether the guest is to be sent a reset.
    pub(super) fn expire(&mut self) -> bool {
        self.on(Event::Deadline) == Reaction::SendReset
    }

    /// Whether there is something to put into a buffer of the guest's now.
    pub(super) fn has_packet(&self) -> bool {
        self.owed != Owed::default() || self.can_read()
    }

    fn can_read(&self) -> bool {
        self.readable && self.state.sends_to_guest() && self.credit.to_guest() > 0
    }

    /// Fills a buffer of the guest's with the next packet: `head` is as long as a header, `body` has room for payload.
    /// Returns the bytes used, `None` if it turns out that there is nothing to send.
    pub(super) fn fill(&mut self, head: Buffer<'_>, body: Buffer<'_>) -> Option<u32> {
        let (op, len) = if let Some(op) = self.owed.urgent() {
            (op, 0)
        } else if let Some(len) = self.read(body) {
            (Op::Data, len)
        } else {
            // The end of file may have been found just now.
            (self.owed.urgent().or_else(|| self.owed.update())?, 0)
        };
        self.owed.credit_update = false;
        let header = Header {
            len,
            flags: if op == Op::Shutdown { self.state.shutdown_flags() } else { 0 },
            buf_alloc: BUFFER,
            fwd_cnt: self.credit.announce(),
            ..self.header(op)
        };
        head.copy_from(&header.to_bytes());
        u32::try_from(HEADER_LEN).ok()?.checked_add(len)
    }

    /// Does what the state asks for: what is owed to the guest, the halves of the socket that are over.
    pub(super) fn advance(&mut self) {
        self.owed.credit_update |= self.credit.update_due() && self.state.host_expects_more();
        if self.outbox.is_empty() && !self.state.host_expects_more() {
            self.shut(Shutdown::Write);
        }
        if self.state.guest_refuses() {
            self.shut(Shutdown::Read);
        }
    }

    /// What the socket is to be watched for; `park` while the guest offers no buffer to read into.
    pub(super) fn wanted(&self, park: bool) -> Option<EventSet> {
        self.socket.as_ref()?;
        let mut events = EventSet::empty();
        if !self.outbox.is_empty() {
            events |= EventSet::OUT;
        }
        // One that is about to be read keeps the watch it has, lest each packet change it twice.
        let keep = !park && self.watched.is_some_and(|watched| watched.contains(EventSet::IN));
        if self.state.sends_to_guest() && self.credit.to_guest() > 0 && (!self.queued || keep) {
            events |= EventSet::IN;
        }
        // With nothing to read or write there still is the host hanging up to hear of, which is reported unasked.
        let listens =
            self.state != State::Connecting && self.state.host_expects_more() && !self.state.sends_to_guest();
        (!events.is_empty() || listens).then_some(events)
    }

    /// Closes the socket when nothing is left to be sent or received.
    pub(super) fn close_if_done(&mut self) {
        if self.outbox.is_empty() && matches!(self.state, State::Closing { .. } | State::Gone) {
            self.close();
        }
    }

    /// The socket cannot be watched, so its connection ends.
    pub(super) fn socket_failed(&mut self) {
        self.hung_up = true;
        self.discard();
        self.host_eof();
    }

    fn on(&mut self, event: Event) -> Reaction {
        let (state, reaction) = self.state.on(event);
        self.state = state;
        if !state.host_takes() {
            self.discard();
        }
        if state == State::Gone {
            self.owed = Owed::default();
        }
        self.owed.shutdown |= reaction == Reaction::TellShutdown;
        // When the guest has ended the direction itself, it needs no SHUTDOWN for it.
        self.owed.shutdown &= state.shutdown_flags() != 0;
        reaction
    }

    fn host_refuses(&mut self) {
        self.on(Event::HostRefuses);
    }

    fn deliver(&mut self, mut payload: Buffer<'_>) {
        if let (true, Some(socket)) = (self.outbox.is_empty(), &self.socket) {
            match payload.send(socket.as_fd()) {
                Ok(sent) => {
                    self.credit.forwarded(count(sent));
                    payload.skip(sent);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    self.credit.forwarded(count(payload.len()));
                    return self.host_refuses();
                }
            }
        }
        payload.append_to(&mut self.outbox);
    }

    /// Sends what the host takes of the outbox.
    fn flush(&mut self) {
        while let (false, Some(socket)) = (self.outbox.is_empty(), &self.socket) {
            let (first, second) = self.outbox.as_slices();
            let vectors = [IoSlice::new(first), IoSlice::new(second)];
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<()>(socket.as_raw_fd(), &vectors, &[], flags, None) {
                Ok(sent) => {
                    self.outbox.drain(..sent);
                    self.credit.forwarded(count(sent));
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(_) => {
                    self.discard();
                    self.host_refuses();
                }
            }
        }
        // An idle connection holds no memory.
        self.outbox = VecDeque::new();
    }

    /// Throws away what the host has not taken.
    fn discard(&mut self) {
        self.credit.forwarded(count(self.outbox.len()));
        self.outbox = VecDeque::new();
    }

    /// Receives from the host. `None` when there is nothing now; at the end of file the guest is owed a `SHUTDOWN` then.
    fn read(&mut self, mut body: Buffer<'_>) -> Option<u32> {
        if !self.can_read() {
            return None;
        }
        body.truncate(MAX_PAYLOAD.min(self.credit.to_guest() as usize));
        match body.receive(self.socket.as_ref()?.as_fd()) {
            Ok(0) => self.host_eof(),
            Ok(received) => {
                // That was all there is for now; if more comes meanwhile, the watch tells.
                self.readable = received == body.len();
                self.credit.sent(count(received));
                // Once each time it runs out, as there is nothing to send then.
                self.owed.credit_request |= self.credit.to_guest() == 0;
                return Some(count(received));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            // The host closed its end before it had read all.
            Err(_) => {
                self.hung_up = true;
                self.host_eof();
            }
        }
        None
    }

    fn host_eof(&mut self) {
        self.readable = false;
        self.on(Event::HostEof);
        if self.hung_up {
            self.host_refuses();
        }
    }

    /// A packet of this connection, without credit.
    fn header(&self, op: Op) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            kind: TYPE_STREAM,
            op: op as u16,
            ..Header::default()
        }
    }

    /// The reset that makes the guest forget this connection.
    pub(super) fn reset(&self) -> Header {
        self.header(Op::Reset)
    }

    fn shut(&mut self, how: Shutdown) {
        let done = match how {
            Shutdown::Read => &mut self.shut_read,
            _ => &mut self.shut_write,
        };
        if let (false, Some(socket)) = (std::mem::replace(done, true), &self.socket) {
            // It fails only when the other end is gone, which then needs no end of file.
            let _ = shutdown(socket.as_raw_fd(), how);
        }
    }

    fn close(&mut self) {
        self.shut(Shutdown::Read);
        self.shut(Shutdown::Write);
        let Some(socket) = self.socket.take() else { return };
        // A unix socket that is closed with unread data makes an error of what should be end of file to the other end.
        // After the shutdown nothing can be added, so this ends.
        let mut scratch = [0; 16 * 1024];
        while matches!(recv(socket.as_raw_fd(), &mut scratch, MsgFlags::MSG_DONTWAIT), Ok(1..)) {}
    }
}

/// A number of bytes of one packet or one outbox.
fn count(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a packet's length is 32 bits wide, an outbox far shorter")
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

impl Event {
    fn shutdown(flags: u32) -> Self {
        Self::Shutdown { send: flags & SHUTDOWN_SEND != 0, receive: flags & SHUTDOWN_RECEIVE != 0 }
    }
}
