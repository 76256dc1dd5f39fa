//! In a network namespace with a resolver that stands for dockerd's; the thread of the test is in another one.

use super::*;
use nix::sched::unshare;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener as StdTcpListener, UdpSocket as StdUdpSocket};
use std::process::Command;

const TIMEOUT: Duration = Duration::from_secs(60);

/// A resolver at 127.0.0.11:53 of a new network namespace. By UDP it answers every query but `silence` with its own bytes in
/// the reverse order, by TCP with as many bytes as the query's first two say.
fn resolver() -> Arc<OwnedFd> {
    let run = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        let udp = StdUdpSocket::bind(RESOLVER).unwrap();
        let tcp = StdTcpListener::bind(RESOLVER).unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; MAX_QUERY];
            while let Ok((length, client)) = udp.recv_from(&mut buffer) {
                let query = &mut buffer[..length];
                if query != b"silence" {
                    query.reverse();
                    udp.send_to(query, client).unwrap();
                }
            }
        });
        std::thread::spawn(move || {
            while let Ok((mut client, _)) = tcp.accept() {
                let (mut length, mut size) = ([0; 2], [0; 2]);
                client.read_exact(&mut length).unwrap();
                client.read_exact(&mut size).unwrap();
                let answer = vec![7; usize::from(u16::from_be_bytes(size))];
                client.write_all(&[&size[..], &answer].concat()).unwrap();
            }
        });
        Arc::new(File::open("/proc/thread-self/ns/net").unwrap().into())
    };
    std::thread::spawn(run).join().unwrap()
}

/// The guest's end of the stream, and what serves the other one.
fn served(namespace: Arc<OwnedFd>) -> (Names, UnixStream) {
    let (ours, theirs) = StdUnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    (Names::serve(namespace, ours).unwrap(), UnixStream::from_std(theirs).unwrap())
}

fn run(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(TIMEOUT, test()).await.unwrap() });
}

async fn send(guest: &mut UnixStream, id: u32, transport: Transport, message: &[u8]) {
    let frame = Frame { id, transport, message: message.into() };
    guest.write_all(&frame.encode().unwrap()).await.unwrap();
}

/// Whether nothing comes any more. The end is a reset where something of the guest's was not read.
async fn is_closed(guest: &mut UnixStream) -> bool {
    !guest.read(&mut [0]).await.is_ok_and(|length| length > 0)
}

#[test]
fn a_query_is_answered_by_the_namespaces_resolver_with_its_own_id() {
    run(async || {
        let (_names, mut guest) = served(resolver());
        for (id, query) in [(7, b"abc"), (u32::MAX, b"xyz")] {
            send(&mut guest, id, Transport::Udp, query).await;
            let answer = Frame::read(&mut guest, MAX_ANSWER).await.unwrap();
            let reversed: Vec<_> = query.iter().rev().copied().collect();
            assert_eq!(answer, Frame { id, transport: Transport::Udp, message: reversed });
        }
        send(&mut guest, 9, Transport::Tcp, &[0xff, 0xff]).await;
        let answer = Frame::read(&mut guest, MAX_ANSWER).await.unwrap();
        assert_eq!((answer.id, answer.message.len()), (9, MAX_ANSWER));
    });
}

#[test]
fn a_query_that_waits_holds_no_other_one_back() {
    run(async || {
        let (_names, mut guest) = served(resolver());
        send(&mut guest, 1, Transport::Udp, b"silence").await;
        for id in 2..MAX_QUERIES.try_into().unwrap() {
            send(&mut guest, id, Transport::Udp, b"ab").await;
            assert_eq!(Frame::read(&mut guest, MAX_ANSWER).await.unwrap().id, id);
        }
    });
}

#[test]
fn queries_beyond_those_that_may_wait_are_dropped_and_the_others_end_without_an_answer() {
    run(async || {
        let (_names, mut guest) = served(resolver());
        let most = u32::try_from(MAX_QUERIES).unwrap();
        for id in 0..=most {
            send(&mut guest, id, Transport::Udp, b"silence").await;
        }
        let mut ended = Vec::new();
        for _ in 0..UNREAD_ANSWERS {
            let answer = Frame::read(&mut guest, MAX_ANSWER).await.unwrap();
            assert!(answer.message.is_empty());
            ended.push(answer.id);
        }
        assert!(!ended.contains(&most), "{ended:?}");
        send(&mut guest, 1000, Transport::Udp, b"ab").await;
        loop {
            let answer = Frame::read(&mut guest, MAX_ANSWER).await.unwrap();
            if answer.id == 1000 {
                break assert_eq!(answer.message, b"ba");
            }
        }
    });
}

#[test]
fn where_there_is_no_resolver_the_answer_is_empty_at_once() {
    run(async || {
        let namespace = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            Arc::new(File::open("/proc/thread-self/ns/net").unwrap().into())
        });
        let (_names, mut guest) = served(namespace.join().unwrap());
        for transport in [Transport::Udp, Transport::Tcp] {
            send(&mut guest, 1, transport, b"abc").await;
            assert!(Frame::read(&mut guest, MAX_ANSWER).await.unwrap().message.is_empty());
        }
    });
}

#[test]
fn what_is_no_query_ends_the_stream_and_so_does_the_end() {
    run(async || {
        let namespace = resolver();
        for bytes in [&[0, 0, 0, 1, 9, 0, 0][..], &[0, 0, 0, 1, 0, 0xff, 0xff]] {
            let (_names, mut guest) = served(namespace.clone());
            guest.write_all(bytes).await.unwrap();
            assert!(is_closed(&mut guest).await);
        }
        let (names, mut guest) = served(namespace);
        send(&mut guest, 1, Transport::Udp, b"silence").await;
        let begun = std::time::Instant::now();
        drop(names);
        assert!(begun.elapsed() < Duration::from_secs(2), "it waits for no answer");
        assert!(is_closed(&mut guest).await);
    });
}

#[test]
fn a_guest_that_reads_nothing_holds_nobody_up() {
    run(async || {
        let (names, mut guest) = served(resolver());
        for id in 0..200 {
            send(&mut guest, id, Transport::Tcp, &[0xff, 0xff]).await;
        }
        drop(names);
    });
}
