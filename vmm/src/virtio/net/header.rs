//! The header before every packet, `struct virtio_net_hdr_v1` (VIRTIO 1.2, 5.1.6).
//!
//! A header from the guest is copied out of its memory once and judged. What goes to the tap is this judged copy: the
//! kernel parses it, and a guest that changes its own after the check changes nothing.

use super::features::Features;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP_L4,
};

/// Bytes.
pub(super) const HEADER_LEN: usize = 12;
/// Where `num_buffers` is in it.
pub(super) const NUM_BUFFERS: usize = 10;
/// Where `flags` is in it.
pub(super) const FLAGS: usize = 0;

/// Bytes of an Ethernet header: no frame is shorter, and no checksum starts earlier.
pub(super) const ETHERNET_HEADER: usize = 14;
/// The longest frame: an IP packet of 65,535 bytes behind an Ethernet header with two VLAN tags.
pub(super) const MAX_FRAME: usize = 65_535 + ETHERNET_HEADER + 8;
/// The least bytes of payload for each segment that the host is asked to make, Linux's `TCP_MIN_GSO_SIZE`: no genuine
/// guest asks for less, and a frame in pieces of one byte would be 65,000 packets of the host's work.
const MIN_GSO_SIZE: u16 = 8;

/// What is wrong with a packet of the guest's; it is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadPacket {
    #[error("a frame of {0} bytes")]
    Length(usize),
    #[error("a checksum outside of the frame")]
    Checksum,
    #[error("a checksum that was not negotiated")]
    ChecksumNotNegotiated,
    #[error("segments of a kind that was not negotiated")]
    SegmentsNotNegotiated,
    #[error("segments of {0} bytes")]
    SegmentSize(u16),
}

/// A header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub flags: u8,
    pub gso_type: u8,
    pub hdr_len: u16,
    pub gso_size: u16,
    pub csum_start: u16,
    pub csum_offset: u16,
}

fn byte(flag: u32) -> u8 {
    flag.to_le_bytes()[0]
}

impl Header {
    pub(super) fn from_bytes(bytes: [u8; HEADER_LEN]) -> Self {
        let [flags, gso_type, a, b, c, d, e, f, g, h, _, _] = bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([a, b]),
            gso_size: u16::from_le_bytes([c, d]),
            csum_start: u16::from_le_bytes([e, f]),
            csum_offset: u16::from_le_bytes([g, h]),
        }
    }

    /// With `num_buffers` 0, as a driver sends it.
    pub(super) fn to_bytes(self) -> [u8; HEADER_LEN] {
        let [[a, b], [c, d], [e, f], [g, h]] =
            [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset].map(u16::to_le_bytes);
        [self.flags, self.gso_type, a, b, c, d, e, f, g, h, 0, 0]
    }

    /// The header that goes to the tap for a frame of `length` bytes, from a driver that negotiated `features`. It has
    /// nothing in it that was not checked: fields that say nothing are zero (5.1.6.2).
    pub(super) fn judged(self, length: usize, features: Features) -> Result<Self, BadPacket> {
        if !(ETHERNET_HEADER..=MAX_FRAME).contains(&length) {
            return Err(BadPacket::Length(length));
        }
        let mut judged = Self::default();
        // Flags that the device does not know are ignored (5.1.6.2.2).
        if self.flags & byte(VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0 {
            if !features.host_checksum() {
                return Err(BadPacket::ChecksumNotNegotiated);
            }
            // Where the two bytes of the checksum end. u16 + u16 + 2 does not overflow.
            let end = usize::from(self.csum_start) + usize::from(self.csum_offset) + 2;
            if usize::from(self.csum_start) < ETHERNET_HEADER || end > length {
                return Err(BadPacket::Checksum);
            }
            judged.flags = byte(VIRTIO_NET_HDR_F_NEEDS_CSUM);
            judged.csum_start = self.csum_start;
            judged.csum_offset = self.csum_offset;
        }
        if self.gso_type == byte(VIRTIO_NET_HDR_GSO_NONE) {
            return Ok(judged);
        }
        let ecn = self.gso_type & byte(VIRTIO_NET_HDR_GSO_ECN) != 0;
        let negotiated = match u32::from(self.gso_type & !byte(VIRTIO_NET_HDR_GSO_ECN)) {
            VIRTIO_NET_HDR_GSO_TCPV4 => features.host_tso4() && (!ecn || features.host_ecn()),
            VIRTIO_NET_HDR_GSO_TCPV6 => features.host_tso6() && (!ecn || features.host_ecn()),
            VIRTIO_NET_HDR_GSO_UDP_L4 => features.host_uso() && !ecn,
            _ => false,
        };
        if !negotiated {
            return Err(BadPacket::SegmentsNotNegotiated);
        }
        // Segments have checksums of their own, which only the host can make (5.1.6.2.1).
        if judged.flags == 0 {
            return Err(BadPacket::Checksum);
        }
        if self.gso_size < MIN_GSO_SIZE {
            return Err(BadPacket::SegmentSize(self.gso_size));
        }
        judged.gso_type = self.gso_type;
        judged.gso_size = self.gso_size;
        // A hint, which the device must not rely on (5.1.6.2.2). The kernel refuses one that is longer than the frame.
        judged.hdr_len = u16::try_from(length).map_or(self.hdr_len, |length| self.hdr_len.min(length));
        Ok(judged)
    }
}

#[cfg(test)]
#[path = "header_test.rs"]
mod tests;
