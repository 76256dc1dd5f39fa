use super::*;
use crate::agent::stream_header::Kind;

fn header(exec_id: &str) -> StreamHeader {
    StreamHeader {
        container_id: "c1".into(),
        exec_id: exec_id.into(),
        kind: Kind::STDERR.into(),
        ..Default::default()
    }
}

#[test]
fn a_header_survives_the_wire() {
    let bytes = encode_header(&header("e1")).unwrap();
    let length = usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    assert_eq!(length, bytes.len() - 2);
    assert_eq!(decode_header(&bytes[2..]).unwrap(), header("e1"));
}

#[test]
fn an_oversized_header_is_refused_on_both_sides() {
    assert!(matches!(encode_header(&header(&"x".repeat(MAX_HEADER))), Err(HeaderError::TooLarge(_))));
    assert!(matches!(decode_header(&[0; MAX_HEADER + 1]), Err(HeaderError::TooLarge(_))));
}

#[test]
fn an_unknown_ack_is_not_an_ack() {
    assert_eq!(Ack::try_from(2), Ok(Ack::Taken));
    assert_eq!(Ack::try_from(3), Err(3));
}
