use super::*;

fn frame(transport: Transport, length: usize) -> Frame {
    Frame { id: 0x0102_0304, transport, message: vec![7; length] }
}

#[tokio::test]
async fn a_frame_survives_the_wire() {
    for (transport, length) in [(Transport::Udp, 0), (Transport::Tcp, 65_535)] {
        let sent = frame(transport, length);
        let bytes = sent.encode().unwrap();
        assert_eq!(bytes.len(), HEADER + length);
        assert_eq!(Frame::read(&mut &bytes[..], 65_535).await.unwrap(), sent);
    }
    assert_eq!(frame(Transport::Udp, 65_536).encode(), None);
}

#[tokio::test]
async fn what_is_no_frame_is_an_error() {
    let long = frame(Transport::Udp, MAX_QUERY + 1).encode().unwrap();
    let unknown = [0, 0, 0, 1, 2, 0, 0];
    for bytes in [&long[..], &unknown] {
        let error = Frame::read(&mut &bytes[..], MAX_QUERY).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }
    let cut = &frame(Transport::Udp, 9).encode().unwrap()[..12];
    let error = Frame::read(&mut &cut[..], MAX_QUERY).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}
