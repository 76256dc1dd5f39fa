//! In network namespaces of their own, whose ports are reserved as wiring does it.

use super::super::ports::EphemeralPorts;
use super::*;
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream as StdTcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const TIMEOUT: Duration = Duration::from_secs(30);

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_whitespace()).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

fn new_namespace() -> Arc<OwnedFd> {
    unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
    ip("link set lo up");
    Arc::new(File::open("/proc/thread-self/ns/net").unwrap().into())
}

/// Runs `test` in a network namespace that is wired, as far as its ports.
fn in_namespace(test: impl AsyncFnOnce(Arc<OwnedFd>) + Send + 'static) {
    let run = move || {
        let namespace = new_namespace();
        let _ports = EphemeralPorts::reserve(|_| Ok(())).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(TIMEOUT, test(namespace)).await.unwrap() });
    };
    std::thread::spawn(run).join().unwrap();
}

async fn accepted(localhost: &Localhost) -> (TcpStream, LoopbackPort) {
    localhost.accept().await.unwrap()
}

#[test]
fn a_connection_to_any_port_of_localhost_is_taken_with_the_address_it_was_for() {
    in_namespace(async |namespace| {
        let localhost = Localhost::open(namespace).await.unwrap();
        for text in
            ["127.0.0.1:80", "[::1]:80", "127.0.0.1:1", "[::1]:65535", "127.0.0.1:61439", "[::1]:61952"]
        {
            let address: SocketAddr = text.parse().unwrap();
            let (client, taken) = tokio::join!(TcpStream::connect(address), accepted(&localhost));
            let (mut client, (mut server, port)) = (client.unwrap(), taken);
            assert_eq!(port.address(), address);
            client.write_all(b"question").await.unwrap();
            client.shutdown().await.unwrap();
            let mut heard = Vec::new();
            server.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"question");
            server.write_all(b"answer").await.unwrap();
            drop(server);
            heard.clear();
            client.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"answer");
        }
        // As programs do that know of IPv6 alone.
        let mapped: SocketAddr = "[::ffff:127.0.0.1]:80".parse().unwrap();
        let (client, (_, port)) = tokio::join!(TcpStream::connect(mapped), accepted(&localhost));
        client.unwrap();
        assert_eq!(port.address(), "127.0.0.1:80".parse().unwrap());
    });
}

#[test]
fn other_addresses_and_the_namespaces_own_ports_are_left_alone() {
    in_namespace(async |namespace| {
        ip("addr add 10.9.0.2/32 dev lo");
        let own: Vec<_> =
            ["127.0.0.11:53", "127.0.0.11:61450", "127.0.0.1:61451", "[::1]:61452", "10.9.0.2:80"]
                .map(|address| StdTcpListener::bind(address).unwrap())
                .into();
        let udp = UdpSocket::bind("127.0.0.1:80").unwrap();
        let localhost = Localhost::open(namespace).await.unwrap();
        for listener in own {
            let address = listener.local_addr().unwrap();
            let _client = TcpStream::connect(address).await.unwrap();
            listener.set_nonblocking(true).unwrap();
            listener.accept().unwrap_or_else(|error| panic!("{address}: {error}"));
        }
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"x", "127.0.0.1:80").unwrap();
        assert_eq!(udp.recv(&mut [0; 8]).unwrap(), 1);
        // Of the block, but the listener's own has one of those, too: ports that were free a moment ago.
        let own =
            ["127.0.0.1:0", "[::1]:0"].map(|any| StdTcpListener::bind(any).unwrap().local_addr().unwrap());
        let others = ["127.0.0.11:80", "127.0.0.2:80", "10.9.0.2:81"].map(|address| address.parse().unwrap());
        for closed in others.into_iter().chain(own) {
            assert!(PORTS.contains(&closed.port()) || closed.port() < 100, "{closed}");
            let error = TcpStream::connect(closed).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{closed}");
        }
        let nothing = tokio::time::timeout(Duration::from_millis(50), localhost.accept()).await;
        assert!(nothing.is_err(), "{nothing:?}");
    });
}

#[test]
fn a_server_of_the_namespace_is_hidden_and_seen_again() {
    in_namespace(async |namespace| {
        let server = StdTcpListener::bind("127.0.0.1:8080").unwrap();
        let localhost = Localhost::open(namespace).await.unwrap();
        let address = server.local_addr().unwrap();
        let (client, (_, port)) = tokio::join!(TcpStream::connect(address), accepted(&localhost));
        client.unwrap();
        assert_eq!(port.address(), address);
        drop(localhost);
        let _client = TcpStream::connect(address).await.unwrap();
        server.set_nonblocking(true).unwrap();
        server.accept().unwrap();
    });
}

#[test]
fn the_listeners_own_port_is_a_reset() {
    in_namespace(async |namespace| {
        let localhost = Localhost::open(namespace).await.unwrap();
        let address = localhost.ipv4.local_addr().unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        let read = tokio::select! {
            accepted = localhost.accept() => panic!("{accepted:?}"),
            read = client.read_u8() => read,
        };
        assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn the_end_leaves_nothing() {
    in_namespace(async |namespace| {
        for _ in 0..2 {
            let localhost = Localhost::open(namespace.clone()).await.unwrap();
            let waiting = TcpStream::connect("127.0.0.1:80").await.unwrap();
            drop(localhost);
            for closed in ["127.0.0.1:80", "[::1]:80"] {
                let error = TcpStream::connect(closed).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{closed}");
            }
            let mut waiting = waiting.into_std().unwrap();
            waiting.set_nonblocking(false).unwrap();
            assert!(waiting.read(&mut [0]).is_err(), "who was not taken is reset");
            assert!(waiting.write(b"x").is_err());
            let sockets = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
            assert!(!sockets.contains(" 0A "), "none listens: {sockets}");
        }
    });
}

#[test]
fn another_namespace_is_left_alone() {
    in_namespace(async |namespace| {
        let localhost = Localhost::open(namespace).await.unwrap();
        let elsewhere = std::thread::spawn(|| {
            new_namespace();
            StdTcpStream::connect("127.0.0.1:80").unwrap_err().kind()
        });
        assert_eq!(elsewhere.join().unwrap(), ErrorKind::ConnectionRefused);
        let (client, _) = tokio::join!(TcpStream::connect("127.0.0.1:80"), accepted(&localhost));
        client.unwrap();
    });
}

#[test]
fn a_namespace_without_ipv6_has_its_ipv4_taken() {
    in_namespace(async |namespace| {
        fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        let localhost = Localhost::open(namespace).await.unwrap();
        assert!(localhost.ipv6.is_none());
        let (client, _) = tokio::join!(TcpStream::connect("127.0.0.1:80"), accepted(&localhost));
        client.unwrap();
    });
}

#[test]
fn a_namespace_that_is_not_wired_is_an_error() {
    let run = || {
        let namespace = new_namespace();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let error = runtime.block_on(Localhost::open(namespace.clone())).unwrap_err();
        assert!(error.to_string().contains("is not the namespace's own"), "{error}");
        setns(&*namespace, CloneFlags::CLONE_NEWNET).unwrap();
        StdTcpStream::connect("127.0.0.1:80").unwrap_err();
    };
    std::thread::spawn(run).join().unwrap();
}
