use super::*;
use proptest::prelude::*;

/// Laid out by hand from VIRTIO 1.2, 5.10.6.
const BYTES: [u8; HEADER_LEN] = [
    3, 0, 0, 0, 0, 0, 0, 0, // src_cid
    2, 0, 0, 0, 0, 0, 0, 0, // dst_cid
    0xd0, 0x07, 0, 0, // src_port 2000
    0, 4, 0, 0, // dst_port 1024
    5, 0, 0, 0, // len
    1, 0, // type: stream
    4, 0, // op: shutdown
    3, 0, 0, 0, // flags
    0, 0, 4, 0, // buf_alloc 256 KiB
    7, 1, 0, 0, // fwd_cnt 263
];

fn header() -> Header {
    Header {
        src_cid: 3,
        dst_cid: HOST_CID,
        src_port: 2000,
        dst_port: 1024,
        len: 5,
        kind: TYPE_STREAM,
        op: Op::Shutdown as u16,
        flags: SHUTDOWN_RECEIVE | SHUTDOWN_SEND,
        buf_alloc: 256 * 1024,
        fwd_cnt: 263,
    }
}

#[test]
fn header_is_laid_out_as_the_spec_says() {
    assert_eq!(Header::from_bytes(&BYTES), header());
    assert_eq!(header().to_bytes(), BYTES);
}

#[test]
fn operations_are_one_to_seven() {
    for op in 0..=u16::MAX {
        assert_eq!(Op::from_wire(op).map(|known| known as u16), (1..=7).contains(&op).then_some(op));
    }
}

#[test]
fn reset_goes_back_where_the_packet_came_from() {
    let reset = Header { kind: 9, ..header() }.reset();
    let expected = Header {
        src_cid: HOST_CID,
        dst_cid: 3,
        src_port: 1024,
        dst_port: 2000,
        kind: 9,
        op: Op::Reset as u16,
        ..Header::default()
    };
    assert_eq!(reset, expected);
}

proptest! {
    #[test]
    fn any_bytes_are_a_header_and_back(bytes in prop::array::uniform32(any::<u8>()), tail in prop::array::uniform12(any::<u8>())) {
        let bytes: [u8; HEADER_LEN] = [&bytes[..], &tail[..]].concat().try_into().unwrap();
        prop_assert_eq!(Header::from_bytes(&bytes).to_bytes(), bytes);
    }
}
