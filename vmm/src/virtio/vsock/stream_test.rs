//! What a stream promises: every byte, in order, then the end; and that neither side can make the device hold more than
//! it said it would.

use super::credit::BUFFER;
use super::guest::{ACCEPTED, Guest, WINDOW, data, ops, packet, shutdown};
use super::packet::{HEADER_LEN, Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

const PORT: u32 = 2000;
const KIB: usize = 1024;
/// Around the size where Linux starts to send packets of several descriptors.
const SIZES: [usize; 6] = [1, 32 * KIB - 1, 32 * KIB, 32 * KIB + 1, 64 * KIB - 1, 64 * KIB];

/// Bytes that tell their place.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i.wrapping_mul(31) % 251).unwrap()).collect()
}

fn read_to_end(socket: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Cuts `total` into descriptors: the first of `first` bytes, the others of `rest`.
fn cut(total: usize, first: usize, rest: usize) -> Vec<usize> {
    let mut sizes = vec![first.min(total)];
    let mut left = total - sizes[0];
    while left > 0 {
        sizes.push(rest.min(left));
        left -= sizes[sizes.len() - 1];
    }
    sizes
}

fn guest() -> Guest {
    let mut guest = Guest::new();
    guest.offer(64);
    guest
}

#[test]
fn packets_of_any_size_and_cut_reach_the_host() {
    for size in SIZES {
        let payload = pattern(size);
        let total = HEADER_LEN + size;
        // In one; as Linux does, header apart; in pages; the header cut in the middle.
        for sizes in [
            vec![total],
            cut(total, HEADER_LEN, 32 * KIB),
            cut(total, HEADER_LEN, 4096),
            cut(total, 20, 17 * KIB),
        ] {
            let mut guest = guest();
            let mut host = guest.connect(PORT);
            let reader = thread::spawn(move || read_to_end(&mut host));
            guest.send_split(data(PORT, ACCEPTED, &payload), &payload, &sizes);
            guest.send(shutdown(PORT, ACCEPTED, SHUTDOWN_SEND | SHUTDOWN_RECEIVE), &[]);
            while !ops(&guest.next()).contains(&Op::Reset) {}
            assert_eq!(reader.join().unwrap(), payload, "{size} bytes in {sizes:?}");
        }
    }
}

#[test]
fn buffers_of_any_size_and_cut_are_filled() {
    for size in SIZES {
        for sizes in [vec![4096], vec![70 * KIB], vec![HEADER_LEN, 4096], vec![20, 20, 20, 4000], vec![45]] {
            let mut guest = Guest::new();
            guest.rx_sizes = sizes.clone();
            let ring = 128 / sizes.len();
            guest.offer(ring);
            let mut host = guest.connect(PORT);
            let sent = pattern(size.min(ring * 4000)).split_off(size.saturating_sub(KIB).min(size / 2));
            let expected = sent.clone();
            let writer = thread::spawn(move || host.write_all(&sent).map(|()| host));
            let mut received = Vec::new();
            guest.offer(1);
            while received.len() < expected.len() {
                for (_, bytes) in guest.next() {
                    received.extend(bytes);
                    guest.offer(1);
                }
            }
            assert_eq!(received, expected);
            writer.join().unwrap().unwrap();
        }
    }
}

#[test]
fn the_host_is_held_back_by_the_guests_credit() {
    let mut guest = Guest::new();
    guest.rx_sizes = vec![8 * KIB];
    guest.offer(100);
    let (port, mut host) = guest.connected(1025);
    let sent = pattern(WINDOW as usize + 1000);
    let expected = sent.clone();
    let writer = thread::spawn(move || host.write_all(&sent).map(|()| host));
    let mut received = Vec::new();
    let mut last = Vec::new();
    while received.len() < WINDOW as usize {
        for (header, bytes) in guest.next() {
            last.push(Op::from_wire(header.op).unwrap());
            received.extend(bytes);
        }
    }
    assert_eq!(received.len(), WINDOW as usize);
    // Out of credit it asks, once, and then is quiet.
    last.extend(ops(&guest.receive()));
    assert_eq!(last.iter().filter(|op| **op == Op::CreditRequest).count(), 1);
    assert_eq!(ops(&guest.receive()), []);
    // An answer that brings nothing changes nothing.
    guest.send(packet(1025, port, Op::CreditUpdate), &[]);
    assert_eq!(ops(&guest.receive()), []);
    for fwd_cnt in [600, WINDOW] {
        guest.send(Header { fwd_cnt, ..packet(1025, port, Op::CreditUpdate) }, &[]);
        let missing = (WINDOW + fwd_cnt).min(WINDOW + 1000) as usize;
        while received.len() < missing {
            guest.next().into_iter().for_each(|(_, bytes)| received.extend(bytes));
        }
        assert_eq!(received.len(), missing);
    }
    assert_eq!(received, expected);
    drop(writer.join().unwrap().unwrap());
}

#[test]
fn a_host_that_does_not_read_is_waited_for_without_holding_more_than_said() {
    let mut guest = guest();
    let mut host = guest.connect(PORT);
    let chunk = pattern(32 * KIB);
    let mut sent = Vec::<u8>::new();
    let mut forwarded = 0;
    // As a driver with credit does: until there is none.
    while sent.len() + chunk.len() <= (forwarded + BUFFER) as usize {
        guest.send(data(PORT, ACCEPTED, &chunk), &chunk);
        sent.extend(&chunk);
        for (header, _) in guest.receive() {
            assert_eq!(header.buf_alloc, BUFFER);
            forwarded = header.fwd_cnt;
        }
    }
    // What the socket's own buffer took was credited, the rest is held, and none is asked for.
    assert!(forwarded > 0);
    assert!(sent.len() - forwarded as usize > BUFFER as usize - chunk.len());
    // Asked, it tells.
    guest.send(packet(PORT, ACCEPTED, Op::CreditRequest), &[]);
    let told = guest.next();
    assert_eq!(ops(&told), [Op::CreditUpdate]);
    // The host begins to read, and the guest hears of the room.
    let reader = thread::spawn(move || read_to_end(&mut host));
    let update = guest.next();
    assert_eq!(update[0].0.op, Op::CreditUpdate as u16);
    assert!(update[0].0.fwd_cnt > told[0].0.fwd_cnt);
    // The guest closes; all it sent arrives, then the end.
    guest.send(shutdown(PORT, ACCEPTED, SHUTDOWN_SEND | SHUTDOWN_RECEIVE), &[]);
    let mut packets = guest.receive();
    while !reader.is_finished() {
        guest.poll(Duration::from_millis(100));
        packets.extend(guest.receive());
    }
    assert_eq!(packets.last().unwrap().0.op, Op::Reset as u16);
    assert_eq!(reader.join().unwrap(), sent);
}

#[test]
fn a_guest_that_sends_more_than_its_credit_is_reset() {
    let mut guest = guest();
    let _host = guest.connect(PORT);
    let chunk = pattern(64 * KIB);
    let mut sent = 0;
    let packets = loop {
        guest.send(data(PORT, ACCEPTED, &chunk), &chunk);
        sent += chunk.len();
        let packets = guest.receive();
        if ops(&packets).contains(&Op::Reset) {
            break packets;
        }
        // The socket's buffer and ours are finite.
        assert!(sent < 8 << 20);
    };
    assert_eq!(ops(&packets), [Op::Reset]);
    assert!(sent > BUFFER as usize);
}

#[test]
fn shut_stdin_leaves_output_flowing() {
    let mut guest = guest();
    let (port, mut host) = guest.connected(1025);
    host.write_all(b"last").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    let packets = guest.next();
    assert_eq!(ops(&packets), [Op::Data, Op::Shutdown]);
    assert_eq!((&packets[0].1[..], packets[1].0.flags), (&b"last"[..], SHUTDOWN_SEND));
    guest.send(data(1025, port, b"output"), b"output");
    guest.send(data(1025, port, b" and more"), b" and more");
    guest.send(shutdown(1025, port, SHUTDOWN_SEND | SHUTDOWN_RECEIVE), &[]);
    assert_eq!(read_to_end(&mut host), b"output and more");
    assert_eq!(ops(&guest.receive()), [Op::Reset]);
}

#[test]
fn a_guest_that_sends_no_more_still_receives() {
    let mut guest = guest();
    let mut host = guest.connect(PORT);
    guest.send(data(PORT, ACCEPTED, b"request"), b"request");
    guest.send(shutdown(PORT, ACCEPTED, SHUTDOWN_SEND), &[]);
    assert_eq!(read_to_end(&mut host), b"request");
    assert_eq!(ops(&guest.receive()), []);
    host.write_all(b"answer").unwrap();
    drop(host);
    let packets = guest.next();
    assert_eq!(ops(&packets), [Op::Data, Op::Shutdown]);
    assert_eq!((&packets[0].1[..], packets[1].0.flags), (&b"answer"[..], SHUTDOWN_SEND | SHUTDOWN_RECEIVE));
    // Linux answers so, once its side is closed; and that is the end of it.
    guest.send(packet(PORT, ACCEPTED, Op::Reset), &[]);
    assert_eq!(ops(&guest.receive()), []);
    guest.connect_to(PORT, ACCEPTED + 1);
}

#[test]
fn a_guest_that_receives_no_more_still_sends() {
    let mut guest = guest();
    let mut host = guest.connect(PORT);
    guest.send(shutdown(PORT, ACCEPTED, SHUTDOWN_RECEIVE), &[]);
    assert_eq!(host.write_all(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    guest.send(data(PORT, ACCEPTED, b"still here"), b"still here");
    guest.send(shutdown(PORT, ACCEPTED, SHUTDOWN_SEND), &[]);
    assert_eq!(read_to_end(&mut host), b"still here");
    assert_eq!(ops(&guest.receive()), [Op::Reset]);
}

#[test]
fn a_host_that_receives_no_more_still_sends() {
    let mut guest = guest();
    let mut host = guest.connect(PORT);
    host.shutdown(Shutdown::Read).unwrap();
    guest.send(data(PORT, ACCEPTED, b"unwanted"), b"unwanted");
    let packets = guest.next();
    assert_eq!(ops(&packets), [Op::Shutdown]);
    assert_eq!(packets[0].0.flags, SHUTDOWN_RECEIVE);
    // What was under way then is thrown away, and does not count against the guest.
    let chunk = pattern(64 * KIB);
    for _ in 0..10 {
        guest.send(data(PORT, ACCEPTED, &chunk), &chunk);
    }
    host.write_all(b"answer").unwrap();
    let packets = guest.next();
    assert_eq!(packets.last().unwrap().1, b"answer");
    assert!(!ops(&packets).contains(&Op::Reset));
}

#[test]
fn what_the_host_wrote_before_it_closed_arrives_before_the_shutdown() {
    // More than the guest has buffers for, and a guest that goes on sending to a host that is gone.
    let mut guest = Guest::new();
    guest.offer(2);
    let (port, mut host) = guest.connected(1025);
    let sent = pattern(100 * KIB);
    guest.send(data(1025, port, b"unread"), b"unread");
    host.write_all(&sent).unwrap();
    drop(host);
    let mut packets = guest.receive();
    guest.send(data(1025, port, b"nobody"), b"nobody");
    while !packets.iter().any(|(header, _)| header.flags & SHUTDOWN_SEND != 0) {
        guest.offer(1);
        packets.extend(guest.receive());
    }
    let received: Vec<u8> = packets.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    assert_eq!(received, sent);
    let (last, _) = packets.last().unwrap();
    assert_eq!((last.op, last.flags), (Op::Shutdown as u16, SHUTDOWN_SEND | SHUTDOWN_RECEIVE));
    guest.send(packet(1025, port, Op::Reset), &[]);
    guest.offer(1);
    assert_eq!(ops(&guest.receive()), []);
}

#[test]
fn a_host_that_hangs_up_later_is_noticed() {
    let mut guest = guest();
    let host = guest.connect(PORT);
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.next()[0].0.flags, SHUTDOWN_SEND);
    drop(host);
    assert_eq!(guest.next()[0].0.flags, SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
}

#[test]
fn a_host_that_hangs_up_with_data_held_for_it_is_noticed() {
    let mut guest = guest();
    let host = guest.connect(PORT);
    let chunk = pattern(64 * KIB);
    for _ in 0..6 {
        guest.send(data(PORT, ACCEPTED, &chunk), &chunk);
    }
    guest.receive();
    // The guest's end is done before; only what it sent is left of the connection, and the host does not want it.
    guest.send(packet(PORT, ACCEPTED, Op::Reset), &[]);
    drop(host);
    assert_eq!(ops(&guest.receive()), []);
    guest.connect_to(PORT, ACCEPTED + 1);
}

/// 100 MiB, no eight bytes of which are like any other.
fn hundred_mebibytes() -> Arc<Vec<u8>> {
    Arc::new(
        (0..100 * KIB as u64 * 128)
            .flat_map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
            .collect(),
    )
}

#[test]
fn a_hundred_mebibytes_to_the_host_are_complete() {
    let all = hundred_mebibytes();
    let mut guest = guest();
    let mut host = guest.connect(PORT);
    let expected = Arc::clone(&all);
    let reader = thread::spawn(move || read_to_end(&mut host) == *expected);
    let (mut sent, mut forwarded) = (0, 0);
    for payload in all.chunks(64 * KIB - 100) {
        let header = data(PORT, ACCEPTED, payload);
        while sent + header.len - forwarded > BUFFER {
            for (header, _) in guest.next() {
                forwarded = header.fwd_cnt;
                guest.offer(1);
            }
        }
        guest.send_split(header, payload, &cut(HEADER_LEN + payload.len(), HEADER_LEN, 32 * KIB));
        sent += header.len;
    }
    guest.send(shutdown(PORT, ACCEPTED, SHUTDOWN_SEND | SHUTDOWN_RECEIVE), &[]);
    while !reader.is_finished() {
        guest.poll(Duration::from_millis(100));
    }
    assert!(reader.join().unwrap());
}

#[test]
fn a_hundred_mebibytes_to_the_guest_are_complete() {
    let all = hundred_mebibytes();
    let mut guest = Guest::new();
    guest.offer(100);
    let (port, mut host) = guest.connected(1025);
    let sent = Arc::clone(&all);
    let writer = thread::spawn(move || host.write_all(&sent));
    let (mut received, mut told) = (0_usize, 0_usize);
    let mut over = false;
    while !over {
        let packets = guest.next();
        for (header, bytes) in &packets {
            assert!(all[received..].starts_with(bytes), "wrong within the packet at {received}");
            received += bytes.len();
            over |= header.op == Op::Shutdown as u16;
        }
        guest.offer(packets.len());
        if received - told > WINDOW as usize / 2 {
            told = received;
            let fwd_cnt = u32::try_from(received).unwrap();
            guest.send(Header { fwd_cnt, ..packet(1025, port, Op::CreditUpdate) }, &[]);
        }
    }
    writer.join().unwrap().unwrap();
    assert_eq!(received, all.len());
}
