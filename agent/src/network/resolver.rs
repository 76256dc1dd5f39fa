//! The guest's 127.0.0.11:53, where programs ask for names.
//!
//! No socket is bound to that port: a DNS server of the sandbox that wants port 53 of every address would find it in use. dockerd
//! has NAT for the same reason, in tables that a firewall in the sandbox would flush. Here an eBPF program steers what is for that
//! address to two sockets with ports that the kernel has chosen (`lazaret-sk-lookup`). A TCP connection then has the address that
//! the client meant. A datagram's answer is sent by a raw socket, which can say where it is from.

use lazaret_agent_api::RESOLVER;
use lazaret_sk_lookup::{
    FAMILY, LOCAL_IP4, LOCAL_PORT, PROTOCOL, R2, R6, R7, Steering, TO_END, jump_if_equal, jump_unless_equal,
    load_u32, set, steer,
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use tokio::net::{TcpListener, UdpSocket};

/// Places of the sockets.
const UDP: i32 = 0;
const TCP: i32 = 1;
/// Of the headers of IPv4 (RFC 791) and UDP (RFC 768), in bytes.
const IP_HEADER: u8 = 20;
const UDP_HEADER: u8 = 8;

/// The sockets of the address, for as long as this lives.
pub(super) struct Resolver {
    _steering: Steering,
    pub(super) udp: UdpSocket,
    pub(super) tcp: TcpListener,
    answers: OwnedFd,
}

impl Resolver {
    /// Takes what is for the address in this thread's network namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) async fn listen() -> io::Result<Self> {
        let any_port = (*RESOLVER.ip(), 0);
        let (udp, tcp) = (UdpSocket::bind(any_port).await?, TcpListener::bind(any_port).await?);
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let answers = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Raw)?;
        let choose = [
            load_u32(R2, R6, FAMILY),
            jump_unless_equal(R2, libc::AF_INET, TO_END),
            load_u32(R2, R6, LOCAL_IP4),
            jump_unless_equal(R2, i32::from_ne_bytes(RESOLVER.ip().octets()), TO_END),
            load_u32(R2, R6, LOCAL_PORT),
            jump_unless_equal(R2, i32::from(RESOLVER.port()), TO_END),
            load_u32(R2, R6, PROTOCOL),
            set(R7, UDP),
            // Over the two that follow.
            jump_if_equal(R2, libc::IPPROTO_UDP, 2),
            set(R7, TCP),
            jump_unless_equal(R2, libc::IPPROTO_TCP, TO_END),
        ];
        let steering = steer(&choose, &[Some(udp.as_fd()), Some(tcp.as_fd())])?;
        Ok(Self { _steering: steering, udp, tcp, answers })
    }

    /// Sends an answer to who has asked by UDP.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] for one that UDP cannot carry; the kernel's.
    pub(super) fn answer(&self, message: &[u8], client: SocketAddr) -> io::Result<()> {
        let SocketAddr::V4(client) = client else { return Err(io::ErrorKind::InvalidInput.into()) };
        let datagram = datagram(message, client).ok_or(io::ErrorKind::InvalidData)?;
        // The address alone counts, for the route.
        let to = SockaddrIn::from(client);
        sendto(self.answers.as_raw_fd(), &datagram, &to, MsgFlags::empty())?;
        Ok(())
    }
}

/// A packet from the resolver's address. `None` for a message that is too long.
fn datagram(message: &[u8], to: SocketAddrV4) -> Option<Vec<u8>> {
    let length = u16::try_from(message.len()).ok()?.checked_add(UDP_HEADER.into())?;
    let total = length.checked_add(IP_HEADER.into())?;
    let mut packet = Vec::with_capacity(total.into());
    // Version 4, a header of five words; no service.
    packet.extend([0x45, 0]);
    packet.extend(total.to_be_bytes());
    // The kernel fills in the identification, and the checksum after the protocol. Not a fragment; at most 64 hops.
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend(RESOLVER.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend(RESOLVER.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend(length.to_be_bytes());
    // Without a checksum: the packet does not leave the guest.
    packet.extend([0, 0]);
    packet.extend(message);
    Some(packet)
}
