//! A guest that does whatever it likes, and a host that does anything it may: the device never panics, never fails, comes
//! to rest, and stays within its bounds.

use super::super::credit::BUFFER;
use super::super::guest::{ACCEPTED, CID, Guest, PORTS};
use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use vm_memory::{Bytes, GuestAddress};

/// Where the payloads of this guest are; its rings are below.
const PACKET: u64 = 1 << 20;
const MEMORY_END: u64 = 32 << 20;

#[derive(Debug, Clone)]
enum Act {
    /// A packet cut as given, with as much payload.
    Packet(Header, usize, Vec<usize>),
    /// Descriptors from anywhere, for either queue.
    Chain(bool, Vec<(u64, u32, u16)>),
    /// Receive buffers.
    Offer(usize, Vec<usize>),
    HostConnects,
    HostWrites(usize, usize),
    HostReads(usize, usize),
    HostShuts(usize, bool),
    HostCloses(usize),
    /// The guest resets the device.
    Reset,
}

fn port() -> impl Strategy<Value = u32> {
    // Few, so that packets meet connections: the guest's, some of those accepted, the first of ours.
    prop_oneof![0..4_u32, ACCEPTED..ACCEPTED + 3, (1 << 30)..(1 << 30) + 3_u32]
}

fn header() -> impl Strategy<Value = (Header, usize)> {
    let cid = |right: u64| prop_oneof![20 => Just(right), 1 => any::<u64>()];
    let kind = prop_oneof![20 => Just(TYPE_STREAM), 1 => any::<u16>()];
    let op = prop_oneof![20 => 1..8_u16, 10 => Just(Op::Data as u16), 1 => any::<u16>()];
    let payload = prop_oneof![Just(0_usize), 0..100_usize, 0..70_000_usize];
    let credit = || prop_oneof![0..10_u32, Just(BUFFER), any::<u32>()];
    (
        cid(CID.into()),
        cid(HOST_CID),
        port(),
        port(),
        kind,
        op,
        (payload, prop::option::weighted(0.1, any::<u32>())),
        prop_oneof![0..4_u32, any::<u32>()],
        (credit(), credit()),
    )
        .prop_map(
            |(
                src_cid,
                dst_cid,
                src_port,
                dst_port,
                kind,
                op,
                (payload, lie),
                flags,
                (buf_alloc, fwd_cnt),
            )| {
                let len = lie.unwrap_or(u32::try_from(payload).unwrap());
                (
                    Header { src_cid, dst_cid, src_port, dst_port, len, kind, op, flags, buf_alloc, fwd_cnt },
                    payload,
                )
            },
        )
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![Just(vec![44]), vec(0..50_usize, 0..5), vec(0..40_000_usize, 0..4)]
}

fn act() -> impl Strategy<Value = Act> {
    let address = || prop_oneof![0..MEMORY_END + 0x1000, any::<u64>()];
    let len = || prop_oneof![0..0x2000_u32, any::<u32>()];
    // NEXT and WRITE, and now and then INDIRECT or nonsense.
    let flags = || prop_oneof![10 => 0..4_u16, 1 => any::<u16>()];
    prop_oneof![
        30 => (header(), cuts()).prop_map(|((header, payload), cuts)| Act::Packet(header, payload, cuts)),
        2 => (any::<bool>(), vec((address(), len(), flags()), 1..6)).prop_map(|(to, chain)| Act::Chain(to, chain)),
        8 => (1..20_usize, vec(0..5000_usize, 1..4)).prop_map(|(count, sizes)| Act::Offer(count, sizes)),
        3 => Just(Act::HostConnects),
        5 => (any::<usize>(), 0..300_000_usize).prop_map(|(who, len)| Act::HostWrites(who, len)),
        5 => (any::<usize>(), 0..300_000_usize).prop_map(|(who, len)| Act::HostReads(who, len)),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(who, write)| Act::HostShuts(who, write)),
        2 => any::<usize>().prop_map(Act::HostCloses),
        1 => Just(Act::Reset),
    ]
}

/// Descriptors of `total` bytes at `PACKET`, cut as given, the rest in one.
fn cut(total: usize, cuts: &[usize], flags: u16) -> Vec<(u64, u32, u16)> {
    const NEXT: u16 = 1;
    let mut at = 0;
    let mut descriptors = Vec::new();
    for size in cuts.iter().copied().chain([total]) {
        let size = size.min(total - at);
        descriptors.push((PACKET + at as u64, u32::try_from(size).unwrap(), flags | NEXT));
        at += size;
    }
    descriptors.last_mut().unwrap().2 = flags;
    descriptors
}

/// A malformed chain, which may lie in a queue for a while, ends the VM. Here the device goes on, and must be none the worse
/// for it. Nothing else may fail.
fn served<T>(result: Result<T, DeviceError>) -> Option<T> {
    match result {
        Err(DeviceError::Driver(_)) => None,
        result => Some(result.unwrap()),
    }
}

/// Does one thing; the sockets are the host's.
fn perform(guest: &mut Guest, hosts: &mut Vec<UnixStream>, act: Act) {
    const WRITE: u16 = 2;
    let chosen = |who: usize, hosts: &[UnixStream]| who.checked_rem(hosts.len());
    match act {
        Act::Packet(header, payload, cuts) => {
            guest.memory.write_slice(&header.to_bytes(), GuestAddress(PACKET)).unwrap();
            served(guest.put_chain(true, &cut(HEADER_LEN + payload, &cuts, 0)));
        }
        Act::Chain(to_device, descriptors) => {
            served(guest.put_chain(to_device, &descriptors));
        }
        Act::Offer(count, sizes) => {
            for _ in 0..count {
                served(guest.put_chain(false, &cut(sizes.iter().sum(), &sizes, WRITE)));
            }
        }
        Act::HostConnects => {
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            guest.connector.connect(1025, theirs.into());
            hosts.push(ours);
        }
        Act::HostWrites(who, len) => {
            if let Some(who) = chosen(who, hosts) {
                // It takes what it takes, or the guest is gone.
                let _ = hosts[who].write(&vec![7; len]);
            }
        }
        Act::HostReads(who, len) => {
            if let Some(who) = chosen(who, hosts)
                && let Err(error) = hosts[who].read(&mut vec![0; len])
            {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "the end of a connection is end of file");
            }
        }
        Act::HostShuts(who, write) => {
            if let Some(who) = chosen(who, hosts) {
                let _ = hosts[who].shutdown(if write { Shutdown::Write } else { Shutdown::Read });
            }
        }
        Act::HostCloses(who) => {
            if let Some(who) = chosen(who, hosts) {
                hosts.swap_remove(who);
            }
        }
        Act::Reset => guest.device.reset(),
    }
    while let Some((port, socket)) = guest.incoming() {
        assert!((ACCEPTED..ACCEPTED + PORTS).contains(&port));
        socket.set_nonblocking(true).unwrap();
        hosts.push(socket);
    }
}

fn come_to_rest(guest: &mut Guest) {
    for _ in 0..10_000 {
        if served(guest.try_poll(Duration::ZERO)) == Some(false) {
            return;
        }
    }
    panic!("the device does not come to rest");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn nothing_a_guest_does_breaks_the_device(acts in vec(act(), 1..120)) {
        let mut guest = Guest::new();
        let mut hosts = Vec::new();
        for act in acts {
            perform(&mut guest, &mut hosts, act);
            come_to_rest(&mut guest);
            let connections = guest.device.table.connections();
            prop_assert!(connections.len() <= MAX_CONNECTIONS);
            prop_assert!(guest.device.resets.len() <= MAX_RESETS + connections.len());
            for connection in connections {
                prop_assert!(connection.outbox_len() <= BUFFER as usize);
            }
        }
        // And it is none the worse for it.
        guest.device.reset();
        prop_assert_eq!(guest.device.table.connections().len(), 0);
        for mut host in hosts {
            while let Ok(1..) = host.read(&mut [0; 4096]) {}
            prop_assert_eq!(host.read(&mut [0]).ok(), Some(0));
        }
    }
}
