//! A connection from its acceptance on; the listeners' part is in `network/localhost_test.rs`.

use super::*;
use std::io::ErrorKind;
use tokio::net::TcpListener;

const TIMEOUT: Duration = Duration::from_secs(30);

/// Carries a connection to port 80, and hands out its two ends.
async fn carried() -> (TcpStream, UnixStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    let port = LoopbackPort::at("[::1]:80".parse().unwrap()).unwrap();
    let (ours, guest) = UnixStream::pair().unwrap();
    tokio::spawn(carry((server, port), async { Ok(ours) }));
    (client, guest)
}

async fn header(guest: &mut UnixStream) -> [u8; LoopbackPort::LENGTH] {
    let mut header = [0; LoopbackPort::LENGTH];
    guest.read_exact(&mut header).await.unwrap();
    header
}

fn run(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(TIMEOUT, test()).await.unwrap() });
}

#[test]
fn the_agent_is_told_the_port_and_each_direction_ends_by_itself() {
    run(async || {
        let (mut client, mut guest) = carried().await;
        assert_eq!(header(&mut guest).await, [6, 0, 80]);
        guest.write_u8(Ack::Attached as u8).await.unwrap();
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = Vec::new();
        guest.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"question");
        guest.write_all(b"answer").await.unwrap();
        drop(guest);
        heard.clear();
        client.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"answer");
    });
}

#[test]
fn a_port_that_nobody_serves_is_a_reset_at_once() {
    run(async || {
        for answer in [Some(Ack::NotFound as u8), Some(99), None] {
            let (mut client, mut guest) = carried().await;
            header(&mut guest).await;
            if let Some(byte) = answer {
                guest.write_u8(byte).await.unwrap();
            }
            drop(guest);
            let error = client.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{answer:?}");
        }
    });
}

#[test]
fn a_client_is_reset_when_the_vm_has_gone() {
    run(async || {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let port = LoopbackPort::at("127.0.0.1:80".parse().unwrap()).unwrap();
        carry((server, port), async { Err(VmError::Os(ErrorKind::BrokenPipe.into())) }).await;
        assert_eq!(client.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
}
