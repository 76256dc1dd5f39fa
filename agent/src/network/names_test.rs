//! In network namespaces of their own, as a guest's.

use super::*;
use crate::container::test_support::processes_blocking;
use nix::sched::{CloneFlags, unshare};
use std::net::{TcpListener as StdTcpListener, UdpSocket as StdUdpSocket};
use std::process::Command;
use tokio::io::{DuplexStream, duplex};
use tokio::net::UdpSocket;

fn in_guest(test: impl AsyncFnOnce() + Send + 'static) {
    // A reaper of another test would collect the children of this one.
    let _alone = processes_blocking();
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(within(test()));
    };
    std::thread::spawn(run).join().unwrap();
}

/// The host's end of the stream of a relay.
async fn relay() -> DuplexStream {
    let (mut host, guest) = duplex(1 << 20);
    tokio::spawn(serve(guest));
    assert_eq!(host.read_u8().await.unwrap(), Ack::Attached as u8);
    host
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), work).await.unwrap()
}

/// Answers a query with its own bytes in the reverse order.
async fn answer(host: &mut DuplexStream, mut query: Frame) {
    query.message.reverse();
    host.write_all(&query.encode().unwrap()).await.unwrap();
}

async fn client() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(RESOLVER).await.unwrap();
    socket
}

#[test]
fn each_client_gets_its_own_answer_in_whatever_order_answers_come() {
    in_guest(async || {
        let mut host = relay().await;
        let (first, second) = (client().await, client().await);
        let mut queries = Vec::new();
        for (socket, query) in [(&first, b"abc"), (&second, b"xyz")] {
            socket.send(query).await.unwrap();
            let frame = within(Frame::read(&mut host, MAX_QUERY)).await.unwrap();
            assert_eq!((frame.transport, &frame.message[..]), (Transport::Udp, &query[..]));
            queries.push(frame);
        }
        for query in queries.into_iter().rev() {
            answer(&mut host, query).await;
        }
        for (socket, expected) in [(first, b"cba"), (second, b"zyx")] {
            let mut buffer = [0; 16];
            let length = within(socket.recv(&mut buffer)).await.unwrap();
            assert_eq!(&buffer[..length], expected);
        }
    });
}

#[test]
fn a_tcp_client_asks_more_than_once_and_gets_long_answers() {
    in_guest(async || {
        let mut host = relay().await;
        let mut client = TcpStream::connect(RESOLVER).await.unwrap();
        for length in [3, MAX_ANSWER] {
            client.write_all(&[0, 3, 1, 2, 3]).await.unwrap();
            let mut frame = within(Frame::read(&mut host, MAX_QUERY)).await.unwrap();
            assert_eq!((frame.transport, &frame.message[..]), (Transport::Tcp, &[1, 2, 3][..]));
            frame.message = vec![7; length];
            host.write_all(&frame.encode().unwrap()).await.unwrap();
            assert_eq!(usize::from(within(client.read_u16()).await.unwrap()), length);
            let mut answer = vec![0; length];
            within(client.read_exact(&mut answer)).await.unwrap();
            assert!(answer.iter().all(|byte| *byte == 7));
        }
    });
}

#[test]
fn a_tcp_client_without_an_answer_is_closed() {
    in_guest(async || {
        let mut host = relay().await;
        let mut client = TcpStream::connect(RESOLVER).await.unwrap();
        client.write_all(&[0, 1, 9]).await.unwrap();
        let mut frame = within(Frame::read(&mut host, MAX_QUERY)).await.unwrap();
        frame.message.clear();
        host.write_all(&frame.encode().unwrap()).await.unwrap();
        assert_eq!(within(client.read(&mut [0])).await.unwrap(), 0);
        // A query that is longer than queries are.
        let mut client = TcpStream::connect(RESOLVER).await.unwrap();
        client.write_all(&[0xff, 0xff, 0]).await.unwrap();
        assert!(!within(client.read(&mut [0])).await.is_ok_and(|length| length > 0));
    });
}

#[test]
fn more_queries_than_may_wait_are_dropped_and_the_relay_goes_on() {
    in_guest(async || {
        let mut host = relay().await;
        let client = client().await;
        let mut queries = Vec::new();
        for number in 0..MAX_QUERIES {
            client.send(&u32::try_from(number).unwrap().to_be_bytes()).await.unwrap();
            queries.push(within(Frame::read(&mut host, MAX_QUERY)).await.unwrap());
        }
        client.send(b"dropped").await.unwrap();
        client.send(&vec![0; MAX_QUERY + 1]).await.unwrap();
        // The datagrams above are read before the answers' tasks are.
        tokio::time::sleep(Duration::from_millis(50)).await;
        for query in queries {
            answer(&mut host, query).await;
            within(client.recv(&mut [0; 16])).await.unwrap();
        }
        client.send(b"again").await.unwrap();
        assert_eq!(within(Frame::read(&mut host, MAX_QUERY)).await.unwrap().message, b"again");
    });
}

#[test]
fn port_53_is_free_for_a_server_of_the_sandbox() {
    in_guest(async || {
        let before = StdUdpSocket::bind("0.0.0.0:53").unwrap();
        let mut host = relay().await;
        let server = StdTcpListener::bind("0.0.0.0:53").unwrap();
        for (to, is_relay) in [("127.0.0.11:53", true), ("127.0.0.1:53", false), ("127.0.0.11:53", true)] {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            socket.connect(to).await.unwrap();
            socket.send(b"abc").await.unwrap();
            let stream = TcpStream::connect(to);
            if is_relay {
                let query = within(Frame::read(&mut host, MAX_QUERY)).await.unwrap();
                answer(&mut host, query).await;
                let mut buffer = [0; 16];
                let length = within(socket.recv(&mut buffer)).await.unwrap();
                assert_eq!(&buffer[..length], b"cba");
                stream.await.unwrap().write_all(&[0, 1, 7]).await.unwrap();
                assert_eq!(within(Frame::read(&mut host, MAX_QUERY)).await.unwrap().message, [7]);
            } else {
                assert_eq!(before.recv(&mut [0; 16]).unwrap(), 3);
                let _client = stream.await.unwrap();
                server.accept().unwrap();
            }
        }
    });
}

#[test]
fn the_longest_answers_that_udp_carries_arrive() {
    in_guest(async || {
        let mut host = relay().await;
        let client = client().await;
        for length in [65_507, 65_508, 1] {
            client.send(b"abc").await.unwrap();
            let mut frame = within(Frame::read(&mut host, MAX_QUERY)).await.unwrap();
            frame.message = vec![7; length];
            host.write_all(&frame.encode().unwrap()).await.unwrap();
            if length != 65_508 {
                let mut answer = vec![0; MAX_ANSWER];
                assert_eq!(within(client.recv(&mut answer)).await.unwrap(), length);
            }
        }
    });
}

#[test]
fn a_client_of_another_address_of_the_guest_is_answered() {
    in_guest(async || {
        assert!(
            Command::new("ip").args(["addr", "add", "10.9.0.2/32", "dev", "lo"]).status().unwrap().success()
        );
        let mut host = relay().await;
        let client = UdpSocket::bind("10.9.0.2:0").await.unwrap();
        client.connect(RESOLVER).await.unwrap();
        client.send(b"abc").await.unwrap();
        let query = within(Frame::read(&mut host, MAX_QUERY)).await.unwrap();
        answer(&mut host, query).await;
        assert_eq!(within(client.recv(&mut [0; 16])).await.unwrap(), 3);
    });
}

#[test]
fn the_streams_end_gives_the_address_back() {
    in_guest(async || {
        let host = relay().await;
        drop(TcpStream::connect(RESOLVER).await.unwrap());
        drop(host);
        within(async {
            while TcpStream::connect(RESOLVER).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        drop(relay().await);
    });
}
