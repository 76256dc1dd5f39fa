//! Memory as the file server sees it: the guest's, and beyond it a strip of the worker's own.
//!
//! ```text
//!   0            guest RAM           …        1 << 60: the strip
//!   ├───────────────────────────────┤         ├─ ring ─┬─ message ───────┬─ reply ─────────────┤
//!        data of WRITE, replies                        copied requests   to the VMM's own
//! ```
//!
//! The server reads requests from descriptor chains. It is never shown the guest's: the guest could change names and
//! lengths between the check and the use. A worker copies the request into its strip, has it vetted there, and builds
//! a chain of its own that points at the copy; only bulk data stays where it is in the guest's memory.

use super::request::MESSAGE_MAX;
use crate::virtio::buffer::Buffer;
use crate::virtio::chain::Segment;
use std::io;
use std::sync::Arc;
use vhost_user_backend::bitmap::BitmapMmapRegion;
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use virtiofsd::descriptor_utils::{Reader, Writer};
use virtiofsd::fuse::{AttrOut, OutHeader};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

type ServerMemory = GuestMemoryMmap<BitmapMmapRegion>;
type ServerRegion = GuestRegionMmap<BitmapMmapRegion>;

/// Where the strip lies: beyond the 52 bits of a physical address, so that no guest memory can be there.
const STRIP: u64 = 1 << 60;
/// Descriptors of one chain: one for the message, and room for as many of the guest's as its own queue holds.
const RING_SIZE: u16 = 2048;
const DESCRIPTOR_SIZE: u64 = 16;
const AVAILABLE: u64 = STRIP + RING_SIZE as u64 * DESCRIPTOR_SIZE;
const MESSAGE: u64 = AVAILABLE + 0x2000;
const OWN_REPLY: u64 = MESSAGE + MESSAGE_MAX as u64;
/// Bytes; a reply to GETATTR is the longest.
const OWN_REPLY_LEN: usize = size_of::<OutHeader>() + size_of::<AttrOut>();
#[expect(clippy::cast_possible_truncation, reason = "a constant of some 170 KiB")]
const STRIP_LEN: usize = (OWN_REPLY - STRIP) as usize + OWN_REPLY_LEN;

/// One worker's view of the guest's memory, and its strip.
pub(super) struct Window {
    memory: ServerMemory,
    ring: Queue,
    /// Keeps the mapping alive that `memory` points into.
    _guest: Arc<GuestMemoryMmap>,
}

impl Window {
    /// A view of `guest`.
    ///
    /// # Errors
    /// When there is no memory for the strip.
    pub(super) fn new(guest: &Arc<GuestMemoryMmap>) -> io::Result<Self> {
        let mut regions = guest.iter().map(alias).collect::<io::Result<Vec<_>>>()?;
        let strip = MmapRegion::new(STRIP_LEN).map_err(io::Error::other)?;
        regions.push(
            GuestRegionMmap::new(strip, GuestAddress(STRIP))
                .ok_or_else(|| io::Error::other("no room for the strip"))?,
        );
        let memory = ServerMemory::from_regions(regions).map_err(io::Error::other)?;
        let mut ring = Queue::new(RING_SIZE).map_err(io::Error::other)?;
        ring.try_set_desc_table_address(GuestAddress(STRIP)).map_err(io::Error::other)?;
        ring.try_set_avail_ring_address(GuestAddress(AVAILABLE)).map_err(io::Error::other)?;
        ring.set_ready(true);
        // One chain at a time: `idx` stays 1, and entry 0 names descriptor 0 (VIRTIO 1.2, 2.7.6).
        memory.write_obj(1u16.to_le(), GuestAddress(AVAILABLE + 2)).map_err(io::Error::other)?;
        Ok(Self { memory, ring, _guest: Arc::clone(guest) })
    }

    /// Lays out `message` (in the strip) followed by the guest's `payload`, and the guest's `reply`, for the server.
    ///
    /// # Errors
    /// When they are more than a chain holds.
    pub(super) fn exchange(
        &mut self,
        message: &[u8],
        payload: &Buffer<'_>,
        reply: &Buffer<'_>,
    ) -> io::Result<(Reader<'_>, Writer<'_>)> {
        self.lay_out(message, payload.segments().iter().copied(), reply.segments().iter().copied())
    }

    /// Lays out a request of the VMM's own, whose reply [`Self::own_reply`] then has.
    ///
    /// # Errors
    /// When it is longer than a request may be.
    pub(super) fn own_exchange(&mut self, message: &[u8]) -> io::Result<(Reader<'_>, Writer<'_>)> {
        #[expect(clippy::cast_possible_truncation, reason = "120 bytes")]
        let reply = [Segment { addr: GuestAddress(OWN_REPLY), len: OWN_REPLY_LEN as u32 }];
        self.lay_out(message, [].into_iter(), reply.into_iter())
    }

    /// The memory of the reply to a request of the VMM's own. An answer that is shorter is followed by what was there before.
    pub(super) fn own_reply(&self) -> io::Result<[u8; OWN_REPLY_LEN]> {
        let mut reply = [0; OWN_REPLY_LEN];
        self.memory.read_slice(&mut reply, GuestAddress(OWN_REPLY)).map_err(io::Error::other)?;
        Ok(reply)
    }

    fn lay_out(
        &mut self,
        message: &[u8],
        payload: impl ExactSizeIterator<Item = Segment>,
        reply: impl ExactSizeIterator<Item = Segment>,
    ) -> io::Result<(Reader<'_>, Writer<'_>)> {
        let len = u32::try_from(message.len()).ok().filter(|_| message.len() <= MESSAGE_MAX);
        let len = len.ok_or_else(|| io::Error::from_raw_os_error(libc::E2BIG))?;
        let count = 1 + payload.len() + reply.len();
        if count > usize::from(RING_SIZE) {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
        self.memory.write_slice(message, GuestAddress(MESSAGE)).map_err(io::Error::other)?;

        let message = Segment { addr: GuestAddress(MESSAGE), len };
        let readable = std::iter::once(message).chain(payload);
        let segments =
            readable.map(|segment| (segment, 0)).chain(reply.map(|segment| (segment, VRING_DESC_F_WRITE)));
        for (index, (segment, flags)) in (1u16..).zip(segments) {
            let next = if usize::from(index) < count { VRING_DESC_F_NEXT } else { 0 };
            #[expect(clippy::cast_possible_truncation, reason = "flags of 16 bits")]
            let descriptor = Descriptor::new(segment.addr.0, segment.len, (flags | next) as u16, index);
            let place = GuestAddress(STRIP + u64::from(index - 1) * DESCRIPTOR_SIZE);
            self.memory.write_obj(RawDescriptor::from(descriptor), place).map_err(io::Error::other)?;
        }

        self.ring.set_next_avail(0);
        let chain = self.ring.iter(&self.memory).map_err(io::Error::other)?.next();
        let chain = chain.ok_or_else(|| io::Error::other("the strip holds no chain"))?;
        let reader = Reader::new(&self.memory, chain.clone()).map_err(io::Error::other)?;
        Ok((reader, Writer::new(&self.memory, chain).map_err(io::Error::other)?))
    }
}

/// A second view of the same host mapping, in the type the server wants.
fn alias(region: &GuestRegionMmap) -> io::Result<ServerRegion> {
    // SAFETY: the pointer and the size are those of a live mapping; it stays alive as long as the view because `Window`
    // keeps the `Arc` of the memory it belongs to, and a view does not unmap. Both views give out volatile slices only,
    // so neither is the other's aliased reference.
    let builder = unsafe { MmapRegionBuilder::new(region.size()).with_raw_mmap_pointer(region.as_ptr()) };
    let mapping = builder
        .with_mmap_prot(region.prot())
        .with_mmap_flags(region.flags())
        .build()
        .map_err(io::Error::other)?;
    GuestRegionMmap::new(mapping, region.start_addr())
        .ok_or_else(|| io::Error::other("a memory region past the end of the address space"))
}
