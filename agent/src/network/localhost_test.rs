use super::*;
use std::net::SocketAddr;
use tokio::io::{DuplexStream, duplex};
use tokio::net::TcpListener;

/// The host's end of a stream, after its header.
async fn forwarded(to: SocketAddr) -> DuplexStream {
    let (mut host, guest) = duplex(1 << 16);
    tokio::spawn(serve(guest));
    host.write_all(&LoopbackPort::at(to).unwrap().encode()).await.unwrap();
    host
}

async fn read_all(mut stream: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut all = Vec::new();
    timeout(Duration::from_secs(60), stream.read_to_end(&mut all)).await.unwrap().unwrap();
    all
}

#[tokio::test]
async fn a_connection_reaches_a_server_of_its_family_and_each_direction_ends_by_itself() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(address).await.unwrap();
        let mut host = forwarded(listener.local_addr().unwrap()).await;
        let (mut server, _) = listener.accept().await.unwrap();
        assert_eq!(host.read_u8().await.unwrap(), Ack::Attached as u8);
        host.write_all(b"question").await.unwrap();
        host.shutdown().await.unwrap();
        assert_eq!(read_all(&mut server).await, b"question");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        assert_eq!(read_all(host).await, b"answer");
    }
}

#[tokio::test]
async fn the_servers_end_is_not_the_clients() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut host = forwarded(listener.local_addr().unwrap()).await;
    let (mut server, _) = listener.accept().await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(read_all(&mut host).await, [Ack::Attached as u8]);
    host.write_all(b"more").await.unwrap();
    drop(host);
    assert_eq!(read_all(server).await, b"more");
}

#[tokio::test]
async fn a_server_of_the_other_family_is_reached_when_its_own_has_none() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut host = forwarded(SocketAddr::new(std::net::Ipv6Addr::LOCALHOST.into(), address.port())).await;
    listener.accept().await.unwrap();
    assert_eq!(host.read_u8().await.unwrap(), Ack::Attached as u8);
}

#[tokio::test]
async fn a_closed_port_is_refused_and_the_stream_ends() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let closed = TcpListener::bind(address).await.unwrap().local_addr().unwrap();
        assert_eq!(read_all(forwarded(closed).await).await, [Ack::NotFound as u8]);
    }
}

#[tokio::test]
async fn what_is_no_header_ends_the_stream_without_an_answer() {
    for bytes in [&[7, 0, 80][..], &[4, 0]] {
        let (mut host, guest) = duplex(64);
        host.write_all(bytes).await.unwrap();
        host.shutdown().await.unwrap();
        serve(guest).await.unwrap_err();
        assert_eq!(read_all(host).await, b"");
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_sends_no_header_is_not_waited_for() {
    let (_host, guest) = duplex(64);
    assert_eq!(serve(guest).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
}
