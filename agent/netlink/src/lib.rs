//! rtnetlink, one request at a time: what the shim needs in a sandbox's network namespace and the agent in the guest.
//!
//! A socket belongs to the network namespace of the thread that opens it, for as long as it lives and whichever thread uses
//! it. The kernel answers a request before send(2) returns, so nothing here waits for more than the kernel's own locks.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

pub use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
pub use netlink_packet_route as packet;

/// The kernel's answers are at most 32 KiB (`netlink_dump` in `net/netlink/af_netlink.c`).
const MAX_ANSWER: usize = 64 << 10;
/// A kernel that does not answer is an error rather than a thread that hangs.
const ANSWER_TIMEOUT_S: i64 = 30;
/// How often a list is asked for that changes while it is read.
const MAX_DUMPS: usize = 10;
/// `NLMSGERR_ATTR_MSG` of `linux/netlink.h`.
const ATTRIBUTE_MESSAGE: u16 = 1;
/// What a [`Monitor`] hears of. The last is `RTNLGRP_IPV6_RULE` of `linux/rtnetlink.h`, which has no name as a mask.
const CHANGES: libc::c_int = libc::RTMGRP_LINK
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV4_RULE
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV6_ROUTE
    | 1 << 18;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("{}{}", .errno.desc(), .explanation.as_ref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Refused { errno: Errno, explanation: Option<String> },
    #[error("netlink socket: {}", .0.desc())]
    Socket(#[from] Errno),
    #[error("netlink: an answer that cannot be read: {0}")]
    Malformed(String),
    #[error("netlink: the list changed each of the {MAX_DUMPS} times that it was read")]
    Changing,
}

impl NetlinkError {
    /// The kernel's error number, if the kernel refused the request.
    #[must_use]
    pub fn refused(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// An rtnetlink socket.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// A socket of the calling thread's network namespace.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`].
    pub fn open() -> Result<Self, NetlinkError> {
        let kind = (AddressFamily::Netlink, SockType::Raw, SockProtocol::NetlinkRoute);
        let socket = socket(kind.0, kind.1, SockFlag::SOCK_CLOEXEC, kind.2)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_TIMEOUT_S))?;
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            enable(&socket, option)?;
        }
        Ok(Self { socket, sequence: 0 })
    }

    /// Has the kernel do what `message` says. `flags` are [`NLM_F_CREATE`] and the like.
    ///
    /// # Errors
    /// [`NetlinkError`]; [`NetlinkError::Refused`] with the kernel's reason.
    pub fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), NetlinkError> {
        self.send(message, flags | NLM_F_ACK)?;
        self.receive().map(drop)
    }

    /// The list that `message`, a `Get…`, asks for.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn dump(&mut self, message: &RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        for _ in 0..MAX_DUMPS {
            self.send(message.clone(), NLM_F_DUMP)?;
            if let Some(list) = self.receive()? {
                return Ok(list);
            }
        }
        Err(NetlinkError::Changing)
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        (header.flags, header.sequence_number) = (NLM_F_REQUEST | flags, self.sequence);
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        Ok(())
    }

    /// Reads up to the end of the answer: what the kernel lists; `None` if the list changed meanwhile.
    fn receive(&mut self) -> Result<Option<Vec<RouteNetlinkMessage>>, NetlinkError> {
        let malformed = |what: &dyn std::fmt::Display| NetlinkError::Malformed(what.to_string());
        let mut bytes = vec![0; MAX_ANSWER];
        let (mut list, mut changed) = (Vec::new(), false);
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_TRUNC) {
                Err(Errno::EINTR) => continue,
                length => length?,
            };
            let mut rest = bytes.get(..length).ok_or_else(|| malformed(&"too long"))?;
            while !rest.is_empty() {
                let buffer = NetlinkBuffer::new_checked(rest).map_err(|error| malformed(&error))?;
                let size = usize::try_from(buffer.length()).map_err(|error| malformed(&error))?;
                let this = rest.get(..size).ok_or_else(|| malformed(&"cut off"))?;
                rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
                // An answer to a request that timed out is not this one's.
                if buffer.sequence_number() != self.sequence {
                    continue;
                }
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(this)
                    .map_err(|error| malformed(&error))?;
                changed |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(item) => list.push(item),
                    NetlinkPayload::Done(_) => return Ok((!changed).then_some(list)),
                    NetlinkPayload::Error(error) => {
                        let errno = error.raw_code().unsigned_abs().try_into().unwrap_or_default();
                        if errno == 0 {
                            return Ok(Some(list));
                        }
                        let explanation = explanation(&error.header);
                        return Err(NetlinkError::Refused { errno: Errno::from_raw(errno), explanation });
                    }
                    _ => {}
                }
            }
        }
    }
}

/// A socket that hears of changes of links, addresses, routes and rules.
#[derive(Debug)]
pub struct Monitor {
    socket: OwnedFd,
}

impl Monitor {
    /// For the calling thread's network namespace. Reading from it does not block.
    ///
    /// # Errors
    /// Of the system calls.
    pub fn open() -> Result<Self, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, CHANGES.cast_unsigned()))?;
        Ok(Self { socket })
    }

    /// Reads, and forgets, what there is to read.
    ///
    /// # Errors
    /// Of recv(2). That messages were lost is none: something has changed.
    pub fn drain(&self) -> Result<(), Errno> {
        loop {
            match recv(self.socket.as_raw_fd(), &mut [0], MsgFlags::MSG_TRUNC) {
                Err(Errno::EAGAIN) => return Ok(()),
                Ok(_) | Err(Errno::EINTR | Errno::ENOBUFS) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// What the kernel says of an error beside its number, behind the header of the refused request.
fn explanation(bytes: &[u8]) -> Option<String> {
    let attributes = NlasIterator::new(bytes.get(HEADER..)?).flatten();
    let text = attributes.into_iter().find(|attribute| attribute.kind() == ATTRIBUTE_MESSAGE)?;
    let text = String::from_utf8_lossy(text.value());
    Some(text.trim_end_matches(['\0', '.']).to_owned()).filter(|text| !text.is_empty())
}

fn enable(socket: &OwnedFd, option: libc::c_int) -> Result<(), Errno> {
    let one: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&one)).map_err(|_| Errno::EINVAL)?;
    let value = (&raw const one).cast();
    // SAFETY: the kernel reads `length` bytes of `one`, which outlives the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_NETLINK, option, value, length) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
#[path = "netlink_test.rs"]
mod tests;
