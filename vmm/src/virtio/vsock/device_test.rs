use super::super::guest::{ACCEPTED, CID, Guest, data, ops, packet, shutdown};
use super::super::packet::{SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

const PORT: u32 = 2000;

fn read_to_end(socket: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).unwrap();
    bytes
}

/// What arrives up to a reset, which a short deadline may bring at any time.
fn until_reset(guest: &mut Guest) -> Vec<Op> {
    let mut received = Vec::new();
    while received.last() != Some(&Op::Reset) {
        received.extend(ops(&guest.next()));
    }
    received
}

fn guest() -> Guest {
    let mut guest = Guest::new();
    guest.offer(64);
    guest
}

fn device(cid: u32) -> Result<Vsock, VsockError> {
    Vsock::new(&wire::Vsock { cid, accept: vec![] }, Timeouts::default(), |_, _| true)
}

#[test]
fn reserved_context_ids_are_refused() {
    for cid in [0, 1, 2, u32::MAX] {
        assert!(matches!(device(cid), Err(VsockError::Cid(refused)) if refused == cid));
    }
    assert_eq!(device(3).unwrap().config(), [3, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_guest_connects_and_both_talk() {
    let mut guest = guest();
    let mut host = guest.connect(PORT);
    guest.send(data(PORT, ACCEPTED, b"hello"), b"hello");
    let mut bytes = [0; 5];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
    host.write_all(b"good day").unwrap();
    let packets = guest.next();
    assert_eq!(ops(&packets), [Op::Data]);
    assert_eq!(packets[0].1, b"good day");
    assert_eq!(packets[0].0.fwd_cnt, 5);
}

#[test]
fn the_host_connects_and_both_talk() {
    let mut guest = guest();
    let (port, mut host) = guest.connected(1025);
    host.write_all(b"header").unwrap();
    assert_eq!(guest.next()[0].1, b"header");
    guest.send(data(1025, port, b"ack"), b"ack");
    let mut bytes = [0; 3];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"ack");
}

#[test]
fn connections_of_the_host_to_one_port_have_ports_of_their_own() {
    let mut guest = guest();
    let (one, mut first) = guest.connected(1025);
    let (two, mut second) = guest.connected(1025);
    assert_ne!(one, two);
    first.write_all(b"1").unwrap();
    assert_eq!(guest.next()[0].0.src_port, one);
    second.write_all(b"2").unwrap();
    assert_eq!(guest.next()[0].0.src_port, two);
}

#[test]
fn a_connection_asked_for_before_the_driver_is_there_is_made_when_it_is() {
    let mut guest = Guest::new();
    let (_ours, theirs) = UnixStream::pair().unwrap();
    guest.connector.connect(1025, theirs.into());
    guest.device.reset();
    guest.offer(1);
    assert_eq!(ops(&guest.next()), [Op::Request]);
}

#[test]
fn a_port_not_accepted_is_reset() {
    let mut guest = guest();
    guest.send(packet(PORT, 1023, Op::Request), &[]);
    let packets = guest.next();
    assert_eq!(ops(&packets), [Op::Reset]);
    assert_eq!((packets[0].0.src_port, packets[0].0.dst_port), (1023, PORT));
    assert!(guest.incoming().is_none());
}

#[test]
fn a_port_is_good_for_one_connection() {
    let refused = |guest: &mut Guest, port: u32| {
        guest.send(packet(port, ACCEPTED, Op::Request), &[]);
        assert_eq!(ops(&guest.next()), [Op::Reset]);
        assert!(guest.incoming().is_none());
    };
    let mut guest = guest();
    let mut host = guest.connect(PORT);
    refused(&mut guest, PORT + 1);
    // The connection there is has not suffered.
    guest.send(data(PORT, ACCEPTED, b"hello"), b"hello");
    guest.send(packet(PORT, ACCEPTED, Op::Reset), &[]);
    assert_eq!(read_to_end(&mut host), b"hello");
    refused(&mut guest, PORT);
    guest.device.reset();
    refused(&mut guest, PORT);
    // The other ports are not concerned.
    guest.connect_to(PORT, ACCEPTED + 1);
}

#[test]
fn a_sink_that_refuses_is_a_reset() {
    let mut guest = guest();
    *guest.willing.lock().unwrap() = false;
    guest.send(packet(PORT, ACCEPTED, Op::Request), &[]);
    assert_eq!(ops(&guest.next()), [Op::Reset]);
    *guest.willing.lock().unwrap() = true;
    // The refusal did not use the port up.
    guest.connect(PORT);
}

#[test]
fn a_refusing_guest_is_end_of_file() {
    let mut guest = guest();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    // What is written before must not make an error of the end of file.
    ours.write_all(b"header").unwrap();
    guest.connector.connect(1025, theirs.into());
    let request = guest.next()[0].0;
    guest.send(packet(1025, request.src_port, Op::Reset), &[]);
    assert_eq!(read_to_end(&mut ours), b"");
    assert_eq!(ops(&guest.receive()), []);
}

#[test]
fn a_guest_that_does_not_answer_is_end_of_file_and_a_reset() {
    let connect = Duration::from_millis(1);
    let mut guest = Guest::with(Timeouts { connect, ..Timeouts::default() });
    guest.offer(64);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    guest.connector.connect(1025, theirs.into());
    assert_eq!(until_reset(&mut guest), [Op::Request, Op::Reset]);
    assert_eq!(read_to_end(&mut ours), b"");
}

#[test]
fn a_guest_that_does_not_forget_a_closed_connection_is_reset() {
    let mut guest = Guest::with(Timeouts { close: Duration::from_millis(1), ..Timeouts::default() });
    guest.offer(64);
    let host = guest.connect(PORT);
    drop(host);
    assert_eq!(until_reset(&mut guest), [Op::Shutdown, Op::Reset]);
    assert_eq!(guest.device.table.connections().len(), 0);
    guest.connect_to(PORT, ACCEPTED + 1);
}

#[test]
fn deadlines_of_many_connections_all_pass() {
    let connect = Duration::from_millis(5);
    let mut guest = Guest::with(Timeouts { connect, ..Timeouts::default() });
    guest.offer(100);
    let pairs: Vec<_> = (0..20).map(|_| UnixStream::pair().unwrap()).collect();
    let mut hosts = Vec::new();
    for (ours, theirs) in pairs {
        guest.connector.connect(1025, theirs.into());
        guest.poll(Duration::ZERO);
        hosts.push(ours);
    }
    let mut resets = 0;
    while resets < hosts.len() {
        resets += ops(&guest.next()).iter().filter(|op| **op == Op::Reset).count();
    }
    for mut host in hosts {
        assert_eq!(read_to_end(&mut host), b"");
    }
}

#[test]
fn a_reset_of_the_guest_ends_the_connection_after_its_data() {
    let mut guest = guest();
    let mut host = guest.connect(PORT);
    guest.send(data(PORT, ACCEPTED, b"last"), b"last");
    guest.send(packet(PORT, ACCEPTED, Op::Reset), &[]);
    assert_eq!(read_to_end(&mut host), b"last");
    assert!(host.write_all(b"x").is_err());
    assert_eq!(ops(&guest.receive()), []);
}

#[test]
fn a_socket_that_someone_else_has_open_too_is_not_heard_of_once_it_is_over() {
    let mut guest = guest();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let _elsewhere = theirs.try_clone().unwrap();
    guest.connector.connect(1025, theirs.into());
    let host = guest.next()[0].0.src_port;
    guest.send(packet(1025, host, Op::Response), &[]);
    guest.send(packet(1025, host, Op::Reset), &[]);
    drop(ours);
    assert_eq!(ops(&guest.receive()), []);
}

#[test]
fn packets_of_unknown_connections_are_reset_but_resets_are_not() {
    let mut guest = guest();
    for op in [Op::Response, Op::Shutdown, Op::Data, Op::CreditUpdate, Op::CreditRequest] {
        guest.send(packet(PORT, ACCEPTED, op), &[]);
        assert_eq!(ops(&guest.next()), [Op::Reset], "{op:?}");
    }
    guest.send(packet(PORT, ACCEPTED, Op::Reset), &[]);
    assert_eq!(ops(&guest.receive()), []);
}

#[test]
fn only_streams_are_offered() {
    const SEQPACKET: u16 = 2;
    let mut guest = guest();
    guest.send(Header { kind: SEQPACKET, ..packet(PORT, ACCEPTED, Op::Request) }, &[]);
    let packets = guest.next();
    assert_eq!(ops(&packets), [Op::Reset]);
    assert_eq!(packets[0].0.kind, SEQPACKET);
    assert!(guest.incoming().is_none());
}

#[test]
fn packets_under_a_false_name_are_ignored() {
    let mut guest = guest();
    let request = packet(PORT, ACCEPTED, Op::Request);
    for header in [
        Header { src_cid: u64::from(CID) + 1, ..request },
        Header { src_cid: u64::from(CID) | 1 << 32, ..request },
        Header { src_cid: HOST_CID, ..request },
        Header { dst_cid: u64::from(CID), ..request },
        Header { dst_cid: 1, ..request },
    ] {
        guest.send(header, &[]);
    }
    assert_eq!(ops(&guest.receive()), []);
    assert!(guest.incoming().is_none());
}

#[test]
fn a_guest_that_breaks_the_protocol_loses_the_connection() {
    let long = b"twenty bytes in full";
    let lies = [
        (packet(PORT, ACCEPTED, Op::Request), &long[..0]),
        (packet(PORT, ACCEPTED, Op::Response), &long[..0]),
        (Header { op: 0, ..packet(PORT, ACCEPTED, Op::Data) }, &long[..0]),
        (Header { op: 8, ..packet(PORT, ACCEPTED, Op::Data) }, &long[..0]),
        (Header { kind: 2, ..data(PORT, ACCEPTED, long) }, &long[..]),
        // More than there is.
        (Header { len: 21, ..data(PORT, ACCEPTED, long) }, &long[..]),
        (Header { len: u32::MAX, ..data(PORT, ACCEPTED, long) }, &long[..]),
    ];
    for (header, payload) in lies {
        let mut guest = guest();
        let mut host = guest.connect(PORT);
        guest.send(data(PORT, ACCEPTED, b"true"), b"true");
        guest.send(header, payload);
        assert_eq!(ops(&guest.next()), [Op::Reset], "{header:?}");
        assert_eq!(read_to_end(&mut host), b"true", "{header:?}");
        guest.connect_to(PORT, ACCEPTED + 1);
    }
}

#[test]
fn more_payload_than_the_header_says_is_not_passed_on() {
    let mut guest = guest();
    let mut host = guest.connect(PORT);
    guest.send(Header { len: 4, ..data(PORT, ACCEPTED, b"true") }, b"true and more");
    guest.send(shutdown(PORT, ACCEPTED, SHUTDOWN_SEND | SHUTDOWN_RECEIVE), &[]);
    assert_eq!(read_to_end(&mut host), b"true");
}

#[test]
fn a_flood_of_connections_ends_at_the_limit() {
    let mut guest = guest();
    let mut hosts = Vec::new();
    let mut refused = 0;
    let limit = u32::try_from(MAX_CONNECTIONS).unwrap();
    for port in 0..limit + 10 {
        guest.send(packet(PORT, ACCEPTED + port, Op::Request), &[]);
        refused += ops(&guest.next()).iter().filter(|op| **op == Op::Reset).count();
        hosts.extend(guest.incoming());
        guest.offer(1);
    }
    assert_eq!((hosts.len(), refused), (MAX_CONNECTIONS, 10));
    // The host is held to it too.
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(b"header").unwrap();
    guest.connector.connect(1025, theirs.into());
    assert_eq!(ops(&guest.receive()), []);
    assert_eq!(read_to_end(&mut ours), b"");
    // A connection that ends makes room.
    guest.send(packet(PORT, ACCEPTED, Op::Reset), &[]);
    guest.connect_to(PORT, ACCEPTED + limit);
}

#[test]
fn a_guest_without_receive_buffers_is_not_listened_to_for_ever() {
    let mut guest = Guest::new();
    let (mut asked, mut taken) = (0, 0);
    while guest.unsent() == 0 {
        for _ in 0..100 {
            guest.put(&packet(PORT, 1, Op::Request).to_bytes(), &[44]);
        }
        asked += 100;
        guest.kick();
        guest.receive();
        assert!(guest.device.resets.len() <= MAX_RESETS);
    }
    assert_eq!(guest.device.resets.len(), MAX_RESETS);
    // One buffer makes room for one packet, without another kick.
    let waiting = guest.unsent();
    guest.offer(1);
    taken += guest.next().len();
    assert_eq!((taken, guest.unsent()), (1, waiting - 1));
    // With buffers, all of them are answered.
    while taken < asked {
        guest.offer(64);
        taken += guest.next().len();
    }
    assert_eq!((guest.unsent(), taken), (0, asked));
}

#[test]
fn connections_made_and_dropped_without_receive_buffers_leave_nothing() {
    let mut guest = Guest::new();
    for host in ACCEPTED..ACCEPTED + 1000 {
        guest.send(packet(PORT, host, Op::Request), &[]);
        guest.send(packet(PORT, host, Op::Reset), &[]);
        guest.incoming().unwrap();
    }
    assert!(!guest.device.table.has_ready());
    assert_eq!(guest.device.resets.len(), 0);
    guest.offer(1);
    assert_eq!(ops(&guest.receive()), []);
}

#[test]
fn a_packet_shorter_than_its_header_is_ignored() {
    let mut guest = guest();
    let _host = guest.connect(PORT);
    guest.offer(1);
    for sizes in [&[40, 3][..], &[0]] {
        guest.put(&[0xff; 43], sizes);
        guest.kick();
        assert_eq!((guest.unsent(), ops(&guest.receive())), (0, vec![]));
    }
}

#[test]
fn receive_buffers_too_small_for_a_packet_go_back_empty() {
    let mut guest = Guest::new();
    let (_ours, theirs) = UnixStream::pair().unwrap();
    guest.connector.connect(1025, theirs.into());
    guest.receive();
    guest.rx_sizes = vec![40, 4];
    guest.rx_empty(3);
    guest.rx_sizes = vec![4096];
    guest.offer(1);
    assert_eq!(ops(&guest.next()), [Op::Request]);
}

#[test]
fn a_device_reset_ends_every_connection() {
    let mut guest = guest();
    let mut one = guest.connect(PORT);
    let (_, mut two) = guest.connected(1025);
    guest.device.reset();
    assert_eq!(read_to_end(&mut one), b"");
    assert_eq!(read_to_end(&mut two), b"");
    assert!(!guest.poll(Duration::ZERO));
    guest.connect_to(PORT, ACCEPTED + 1);
}
