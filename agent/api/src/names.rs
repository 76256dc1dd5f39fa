//! The stream that carries the guest's name queries to the host, and the answers back.
//!
//! ```text
//!   shim                                                  agent
//!    connect guest port 1028, once ─────────────────────► accept, only from CID 2
//!    ◄──────────────── u8 Ack: 0 attached, 1 not found: the guest cannot listen at 127.0.0.11
//!    ◄── frame: u32 id, u8 transport, u16 length, query ─
//!    ─── frame: u32 id, u8 transport, u16 length, answer ►   in any order; no bytes when there is no answer
//! ```
//!
//! Numbers are big endian. The ids are the agent's, which gives each query that waits another one. The shim dials and not the
//! agent: a port of the host that takes connections would take those of every process in the guest, since vsock has no
//! namespaces.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Where dockerd has its resolver, in the sandbox's network namespace, and the agent its relay, in the guest.
pub const RESOLVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 11), 53);
/// The longest query, in bytes. A query is one name and a few options; its answer has up to 65,535 bytes, by TCP.
pub const MAX_QUERY: usize = 4096;
/// The most queries that wait for their answers at a time. Each is a socket of the host in the sandbox's network namespace, and
/// has one of the 512 ports that are reserved there.
pub const MAX_QUERIES: usize = 128;
/// How many bytes of a frame come before the message.
const HEADER: usize = 7;

/// What a query came by. The resolver is asked by the same: an answer that is too long for UDP says so, and is asked for again
/// by TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Transport {
    Udp = 0,
    Tcp = 1,
}

/// A query or an answer: a DNS message as UDP carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub id: u32,
    pub transport: Transport,
    pub message: Vec<u8>,
}

impl Frame {
    /// The frame's bytes. `None` for a message of more than 65,535 bytes.
    #[must_use]
    pub fn encode(&self) -> Option<Vec<u8>> {
        let length = u16::try_from(self.message.len()).ok()?;
        let mut bytes = Vec::with_capacity(HEADER + self.message.len());
        bytes.extend(self.id.to_be_bytes());
        bytes.push(self.transport as u8);
        bytes.extend(length.to_be_bytes());
        bytes.extend(&self.message);
        Some(bytes)
    }

    /// Reads a frame with a message of at most `longest` bytes.
    ///
    /// # Errors
    /// Of the stream; [`io::ErrorKind::InvalidData`] for what is no frame or too long, after which the stream is of no use.
    pub async fn read(stream: &mut (impl AsyncRead + Unpin), longest: usize) -> io::Result<Self> {
        let mut header = [0; HEADER];
        stream.read_exact(&mut header).await?;
        let [id @ .., transport, high, low] = header;
        let transport = match transport {
            0 => Transport::Udp,
            1 => Transport::Tcp,
            other => return Err(malformed(format!("a query by the transport {other}"))),
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > longest {
            return Err(malformed(format!("a message of {length} bytes, more than {longest}")));
        }
        let mut message = vec![0; length];
        stream.read_exact(&mut message).await?;
        Ok(Self { id: u32::from_be_bytes(id), transport, message })
    }
}

fn malformed(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
#[path = "names_test.rs"]
mod tests;
