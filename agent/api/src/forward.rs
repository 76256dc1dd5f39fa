//! What opens a forwarded connection: where in the guest it goes.
//!
//! ```text
//!   shim                                              agent
//!    connect guest port 1027 ───────────────────────► accept, only from CID 2
//!    u8 family (4 or 6), u16 port (big endian) ─────► connects to 127.0.0.1 or ::1, then to the other one
//!    ◄──────────────────────── u8 Ack: 0 attached, 1 not found: nothing accepts there
//!    ◄──────────────── bytes, each direction to its own end ───────────────►
//! ```

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

const IPV4: u8 = 4;
const IPV6: u8 = 6;

/// A TCP port of the guest's loopback address in one of the two families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopbackPort(SocketAddr);

impl LoopbackPort {
    /// Length on the wire, in bytes.
    pub const LENGTH: usize = 3;

    /// `address`, if it is 127.0.0.1 or ::1.
    #[must_use]
    pub fn at(address: SocketAddr) -> Option<Self> {
        let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        loopback.contains(&address.ip()).then(|| Self(SocketAddr::new(address.ip(), address.port())))
    }

    /// The address to connect to.
    #[must_use]
    pub fn address(self) -> SocketAddr {
        self.0
    }

    /// The same port in the other family.
    #[must_use]
    pub fn in_other_family(self) -> Self {
        let ip = if self.0.is_ipv6() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        Self(SocketAddr::new(ip, self.0.port()))
    }

    #[must_use]
    pub fn encode(self) -> [u8; Self::LENGTH] {
        let [high, low] = self.0.port().to_be_bytes();
        [if self.0.is_ipv6() { IPV6 } else { IPV4 }, high, low]
    }

    /// `None` for a family that there is not.
    #[must_use]
    pub fn decode([family, high, low]: [u8; Self::LENGTH]) -> Option<Self> {
        let ip = match family {
            IPV4 => Ipv4Addr::LOCALHOST.into(),
            IPV6 => Ipv6Addr::LOCALHOST.into(),
            _ => return None,
        };
        Some(Self(SocketAddr::new(ip, u16::from_be_bytes([high, low]))))
    }
}

#[cfg(test)]
#[path = "forward_test.rs"]
mod tests;
