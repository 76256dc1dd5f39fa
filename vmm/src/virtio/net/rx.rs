//! From the tap to the guest.
//!
//! ```text
//!   ring ── pop ──► chains gathered, their vectors in one list ◄── readv(2) ── tap
//!                        │ those a frame lies in                 (and a spill behind them)
//!   ring ◄── complete ───┘ the rest wait for the next frame
//! ```
//!
//! The kernel gives a frame to one read, whole or cut off. So, with mergeable buffers, chains are gathered until the
//! longest frame fits before one is read. What does not fit after all lands in the spill, and the frame is dropped.

use super::features::Features;
use super::header::{ETHERNET_HEADER, FLAGS, HEADER_LEN, MAX_FRAME, NUM_BUFFERS};
use super::tap::Tap;
use super::vectors::{MAX_CHAIN_VECTORS, MAX_VECTORS, Vectors};
use crate::virtio::{Chain, DeviceError, Queues};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;

/// The receive queue among a pair's.
pub(super) const RX: usize = 0;
/// Frames read before others of the thread have their turn.
const FRAMES_PER_TURN: usize = 256;
/// Bytes of the longest frame with its header.
const MAX_PACKET: usize = HEADER_LEN + MAX_FRAME;
/// Bytes of two VLAN tags.
const VLAN_TAGS: usize = 8;

/// Why a turn is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// The tap has no frame; it will say when it has.
    Tap,
    /// The driver has not offered enough room; it will kick, or others have their turn first.
    Ring,
    /// Both may have more.
    None,
    /// The tap has gone.
    Gone,
}

/// A chain that waits for a frame.
struct Gathered {
    head: u16,
    vectors: usize,
    bytes: usize,
}

/// The receiving half of a pair.
pub(super) struct Rx {
    /// The chain popped last.
    chain: Chain,
    vectors: Vectors,
    chains: VecDeque<Gathered>,
    /// Bytes of all chains.
    room: usize,
    /// Where the end of a frame goes that does not fit. The host's memory for it is used when it first happens.
    spill: Vec<u8>,
    /// Chains that a frame lies in, with the bytes in each.
    filled: Vec<(u16, u32)>,
    mergeable: bool,
    checksums: bool,
    segments: bool,
    /// Bytes of the longest packet that is to be expected.
    longest: usize,
}

impl Rx {
    pub(super) fn new(memory: &Arc<GuestMemoryMmap>, features: Features) -> Self {
        Self {
            chain: Chain::default(),
            vectors: Vectors::new(memory),
            chains: VecDeque::with_capacity(MAX_VECTORS),
            room: 0,
            spill: vec![0; MAX_PACKET],
            filled: Vec::with_capacity(MAX_VECTORS),
            mergeable: features.mergeable(),
            checksums: features.guest_checksum(),
            segments: features.offloads() & !libc::TUN_F_CSUM != 0,
            longest: MAX_PACKET,
        }
    }

    /// Frames come from a tap of this MTU.
    pub(super) fn set_mtu(&mut self, mtu: u16) {
        self.longest = if self.segments {
            MAX_PACKET
        } else {
            HEADER_LEN + ETHERNET_HEADER + VLAN_TAGS + usize::from(mtu)
        };
    }

    /// Moves frames until there are none, or no room, or it is the turn of others.
    ///
    /// # Errors
    /// The ring's.
    pub(super) fn turn(&mut self, tap: &Tap, queues: &mut Queues) -> Result<Rest, DeviceError> {
        let rest = self.frames(tap, queues);
        queues.interrupt(RX)?;
        rest
    }

    fn frames(&mut self, tap: &Tap, queues: &mut Queues) -> Result<Rest, DeviceError> {
        for _ in 0..FRAMES_PER_TURN {
            if !self.gather(queues)? {
                return Ok(Rest::Ring);
            }
            match self.read(tap) {
                Ok(length) => self.deliver(length, queues)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Rest::Tap),
                Err(error) if error.raw_os_error() == Some(libc::EBADFD) => return Ok(Rest::Gone),
                // The frame is lost.
                Err(error) => log::debug!("virtio-net: a frame cannot be read: {error}"),
            }
        }
        Ok(Rest::None)
    }

    /// Pops chains until the longest packet fits; false when the driver has to offer more first.
    fn gather(&mut self, queues: &mut Queues) -> Result<bool, DeviceError> {
        while !self.has_room(queues) {
            if !queues.pop_into(RX, &mut self.chain)? {
                return Ok(false);
            }
            let head = self.chain.head_index();
            match self.vectors.append(&self.chain.writable) {
                // A buffer holds at least a header (5.1.6.3.1).
                Ok((vectors, bytes)) if bytes >= HEADER_LEN => {
                    self.chains.push_back(Gathered { head, vectors, bytes });
                    self.room += bytes;
                }
                // The driver's fault, and its loss: it gets the chain back with nothing in it.
                unfit => {
                    if let Ok((vectors, _)) = unfit {
                        self.vectors.drop_back(vectors);
                    }
                    queues.complete(RX, &[(head, 0)])?;
                }
            }
        }
        Ok(true)
    }

    /// Without mergeable buffers a frame lies in one chain, so one is all that is gathered.
    fn has_room(&self, queues: &Queues) -> bool {
        if self.chains.is_empty() {
            return false;
        }
        // What is all the driver can offer has to do, whatever its size.
        let all = self.chains.len() >= usize::from(queues.size(RX))
            || self.vectors.len() + 2 * MAX_CHAIN_VECTORS >= MAX_VECTORS;
        !self.mergeable || self.room >= self.longest || all
    }

    fn read(&mut self, tap: &Tap) -> io::Result<usize> {
        let spill = libc::iovec { iov_base: self.spill.as_mut_ptr().cast(), iov_len: self.spill.len() };
        // SAFETY: all vectors but the last name guest memory, of which Rust knows nothing; the last is of a buffer that is
        // borrowed mutably here, and not looked at.
        self.vectors.followed_by(spill, |vectors| unsafe { tap.read(vectors) })
    }

    /// Completes the chains that a packet of `length` bytes lies in.
    fn deliver(&mut self, length: usize, queues: &mut Queues) -> Result<(), DeviceError> {
        let room = self.room;
        if length > room || length < HEADER_LEN + ETHERNET_HEADER {
            log::debug!("virtio-net: a packet of {length} bytes is dropped; the guest has room for {room}");
            return Ok(());
        }
        let (mut rest, mut vectors, mut bytes) = (length, 0, 0);
        self.filled.clear();
        while rest > 0
            && let Some(chain) = self.chains.pop_front()
        {
            let part = rest.min(chain.bytes);
            self.filled.push((chain.head, u32::try_from(part).unwrap_or(u32::MAX)));
            rest -= part;
            vectors += chain.vectors;
            bytes += chain.bytes;
        }
        // The kernel leaves the field as it is. It is 1 without mergeable buffers (5.1.6.4.1).
        let buffers = u16::try_from(self.filled.len()).unwrap_or(u16::MAX);
        self.vectors.put(NUM_BUFFERS, &buffers.to_le_bytes());
        if !self.checksums {
            // The kernel says of a checksum that it was verified, which this driver does not want to know (5.1.6.4.1).
            self.vectors.put(FLAGS, &[0]);
        }
        self.vectors.drop_front(vectors);
        self.room -= bytes;
        queues.complete(RX, &self.filled)
    }
}
