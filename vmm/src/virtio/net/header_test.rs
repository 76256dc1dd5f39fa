use super::*;
use proptest::prelude::*;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_USO,
};

const ALL: Features = Features(
    1 << VIRTIO_NET_F_CSUM
        | 1 << VIRTIO_NET_F_HOST_TSO4
        | 1 << VIRTIO_NET_F_HOST_TSO6
        | 1 << VIRTIO_NET_F_HOST_ECN
        | 1 << VIRTIO_NET_F_HOST_USO,
);

fn without(bit: u32) -> Features {
    Features(ALL.0 & !(1 << bit))
}

fn segments() -> Header {
    Header { flags: 1, gso_type: 1, hdr_len: 54, gso_size: 1448, csum_start: 34, csum_offset: 16 }
}

#[test]
fn what_linux_sends_goes_through_as_it_is() {
    assert_eq!(segments().judged(65_000, ALL), Ok(segments()));
    let checksum = Header { gso_type: 0, hdr_len: 0, gso_size: 0, ..segments() };
    assert_eq!(checksum.judged(100, ALL), Ok(checksum));
    assert_eq!(Header::default().judged(60, Features(0)), Ok(Header::default()));
}

#[test]
fn fields_that_say_nothing_do_not_reach_the_kernel() {
    let noise = Header { flags: 0xfe, gso_type: 0, hdr_len: 9, gso_size: 9, csum_start: 9, csum_offset: 9 };
    assert_eq!(noise.judged(60, ALL), Ok(Header::default()));
}

#[test]
fn a_frame_has_an_ethernet_header_and_is_no_longer_than_ip_allows() {
    for length in [0, 13, MAX_FRAME + 1, usize::MAX] {
        assert_eq!(Header::default().judged(length, ALL), Err(BadPacket::Length(length)));
    }
}

#[test]
fn a_checksum_lies_inside_of_the_frame_behind_the_ethernet_header() {
    let at = |csum_start, csum_offset| Header { csum_start, csum_offset, gso_type: 0, ..segments() };
    assert!(at(34, 16).judged(52, ALL).is_ok());
    for (header, length) in
        [(at(34, 16), 51), (at(13, 16), 60), (at(u16::MAX, u16::MAX), 65_535), (at(60, 0), 60)]
    {
        assert_eq!(header.judged(length, ALL), Err(BadPacket::Checksum), "{header:?}");
    }
}

#[test]
fn what_was_not_negotiated_is_dropped() {
    let not_negotiated = Err(BadPacket::SegmentsNotNegotiated);
    let of_type = |gso_type| Header { gso_type, ..segments() };
    assert_eq!(segments().judged(9000, without(VIRTIO_NET_F_CSUM)), Err(BadPacket::ChecksumNotNegotiated));
    for (gso_type, bit) in [
        (1, VIRTIO_NET_F_HOST_TSO4),
        (4, VIRTIO_NET_F_HOST_TSO6),
        (5, VIRTIO_NET_F_HOST_USO),
        (0x81, VIRTIO_NET_F_HOST_ECN),
        (0x84, VIRTIO_NET_F_HOST_ECN),
    ] {
        assert!(of_type(gso_type).judged(9000, ALL).is_ok(), "{gso_type}");
        assert_eq!(of_type(gso_type).judged(9000, without(bit)), not_negotiated, "{gso_type}");
    }
    // UFO is never offered; the others are no types at all.
    for gso_type in [2, 3, 6, 0x80, 0x85, 0xff] {
        assert_eq!(of_type(gso_type).judged(9000, ALL), not_negotiated, "{gso_type}");
    }
}

#[test]
fn segments_need_a_checksum_and_a_size() {
    assert_eq!(Header { flags: 0, ..segments() }.judged(9000, ALL), Err(BadPacket::Checksum));
    for gso_size in [0, 1, MIN_GSO_SIZE - 1] {
        let judged = Header { gso_size, ..segments() }.judged(9000, ALL);
        assert_eq!(judged, Err(BadPacket::SegmentSize(gso_size)));
    }
    let long = Header { hdr_len: 9001, ..segments() }.judged(9000, ALL).unwrap();
    assert_eq!(long.hdr_len, 9000);
}

proptest! {
    /// A judged header is one the kernel need not be afraid of, and judging it again changes nothing.
    #[test]
    fn any_header_is_judged(bytes in any::<[u8; HEADER_LEN]>(), length in 0..70_000usize, features in any::<u64>()) {
        let header = Header::from_bytes(bytes);
        prop_assert_eq!(&header.to_bytes()[..NUM_BUFFERS], &bytes[..NUM_BUFFERS]);
        if let Ok(judged) = header.judged(length, Features(features)) {
            prop_assert!(judged.flags <= 1);
            prop_assert!(usize::from(judged.hdr_len) <= length);
            if judged.flags == 1 {
                prop_assert!(usize::from(judged.csum_start) + usize::from(judged.csum_offset) + 2 <= length);
            }
            prop_assert!(judged.gso_type == 0 || judged.gso_size >= MIN_GSO_SIZE && judged.flags == 1);
            prop_assert_eq!(judged.judged(length, Features(features)), Ok(judged));
        }
    }
}
