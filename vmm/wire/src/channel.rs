//! Typed packets with named descriptors over a `SOCK_SEQPACKET` socket.

use crate::descriptors::{DescriptorError, Descriptors, Name, check_distinct};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The largest packet, in bytes.
pub const MAX_PACKET: usize = 64 * 1024;
/// The most descriptors a packet carries.
pub const MAX_DESCRIPTORS: usize = 64;

/// One end of the control channel. Blocking or not is a property of the descriptor.
#[derive(Debug)]
pub struct Channel(OwnedFd);

#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// A non-blocking socket has nothing to read, or no room to write.
    #[error("the control channel would block")]
    WouldBlock,
    #[error("the control channel was closed by the other side")]
    Closed,
    #[error("control channel: {0}")]
    Os(Errno),
    #[error("control channel: a message of more than {MAX_PACKET} bytes or {MAX_DESCRIPTORS} descriptors")]
    TooLarge,
    #[error("control channel: not a message: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("control channel: {0}")]
    Descriptors(#[from] DescriptorError),
}

/// A packet's bytes.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Packet<M> {
    message: M,
    /// The names of the descriptors that ride along, in their order.
    descriptors: Vec<Name>,
}

impl From<Errno> for ChannelError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::EAGAIN => Self::WouldBlock,
            Errno::EPIPE | Errno::ECONNRESET => Self::Closed,
            other => Self::Os(other),
        }
    }
}

impl Channel {
    /// A connected pair, both close-on-exec and blocking.
    ///
    /// # Errors
    /// The kernel's, when descriptors run out.
    pub fn pair() -> Result<(Self, Self), ChannelError> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self(a), Self(b)))
    }

    /// Sends one message with the descriptors that ride along.
    ///
    /// # Errors
    /// [`ChannelError::TooLarge`] and [`ChannelError::Descriptors`] before anything is sent;
    /// [`ChannelError::WouldBlock`] and [`ChannelError::Closed`] as the socket says.
    pub fn send<M: Serialize>(
        &self,
        message: &M,
        descriptors: &[(Name, BorrowedFd<'_>)],
    ) -> Result<(), ChannelError> {
        let names: Vec<_> = descriptors.iter().map(|(name, _)| *name).collect();
        check_distinct(&names)?;
        let bytes = serde_json::to_vec(&Packet { message, descriptors: names })?;
        if bytes.len() > MAX_PACKET || descriptors.len() > MAX_DESCRIPTORS {
            return Err(ChannelError::TooLarge);
        }
        let raw: Vec<RawFd> = descriptors.iter().map(|(_, descriptor)| descriptor.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
        let iov = [IoSlice::new(&bytes)];
        loop {
            match sendmsg::<()>(self.0.as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Receives one message and its descriptors, which are close-on-exec.
    ///
    /// # Errors
    /// [`ChannelError::Closed`] at the end of the channel; [`ChannelError::TooLarge`], [`ChannelError::Malformed`] or
    /// [`ChannelError::Descriptors`] when the other side breaks the protocol.
    pub fn receive<M: DeserializeOwned>(&self) -> Result<(M, Descriptors), ChannelError> {
        let mut bytes = vec![0; MAX_PACKET];
        let mut control = cmsg_space!([RawFd; MAX_DESCRIPTORS]);
        let mut iov = [IoSliceMut::new(&mut bytes)];
        let message = loop {
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<()>(self.0.as_raw_fd(), &mut iov, Some(&mut control), flags) {
                Ok(message) => break message,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        };
        let mut descriptors = Vec::new();
        for item in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = item {
                // SAFETY: the kernel has just installed these descriptors for this process; nothing else owns them.
                descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        let length = message.bytes;
        if message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
            return Err(ChannelError::TooLarge);
        }
        if length == 0 {
            return Err(ChannelError::Closed);
        }
        let packet: Packet<M> = serde_json::from_slice(&bytes[..length])?;
        Ok((packet.message, Descriptors::pair(packet.descriptors, descriptors)?))
    }
}

impl From<OwnedFd> for Channel {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
#[path = "channel_test.rs"]
mod tests;
