//! A guest that does whatever it likes: the device never panics, never hangs, sends what a chain holds and no more, and is
//! none the worse for it.
#![allow(clippy::cast_possible_truncation, reason = "sizes a test chose")]

use super::driver::{BUFFER, Driver, RX, RX_DATA, TX, TX_DATA};
use super::header::{HEADER_LEN, Header};
use super::test_support::{GUEST_IP, Wire, in_namespace, tcp_frame, udp, udp_frame, vnet_header};
use crate::virtio::guest::{MEMORY_END, SIZE, available};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use vm_memory::{Bytes, GuestAddress};

type Part = (u64, u32, bool);

fn header() -> impl Strategy<Value = [u8; HEADER_LEN]> {
    let near = |value: u16| prop_oneof![Just(value), 0..200u16, any::<u16>()];
    let plausible = (
        prop_oneof![4 => Just(1u8), 1 => any::<u8>()],
        prop_oneof![Just(0u8), Just(1), Just(4), Just(5), Just(0x81), any::<u8>()],
        near(54),
        near(1448),
        near(34),
        near(16),
    )
        .prop_map(|(flags, gso_type, hdr_len, gso_size, csum_start, csum_offset)| {
            Header { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset }.to_bytes()
        });
    prop_oneof![4 => plausible, 1 => any::<[u8; HEADER_LEN]>()]
}

/// Any descriptors, most of them in memory: many are a malformed chain, which ends the VM.
fn parts() -> impl Strategy<Value = Vec<Part>> {
    let address = prop_oneof![8 => TX_DATA..MEMORY_END, 1 => any::<u64>()];
    let length = prop_oneof![4 => 0..100u32, 4 => 0..9000u32, 1 => any::<u32>()];
    prop::collection::vec((address, length, any::<bool>()), 1..8)
}

#[derive(Debug, Clone)]
enum Act {
    /// A packet with this header, of a frame of this length, cut as given.
    Send([u8; HEADER_LEN], usize, Vec<usize>),
    Chain(usize, Vec<Part>),
    Indirect(usize, Vec<Part>),
    /// Receive buffers of this size.
    Offer(u32),
    HostSends(usize),
    Kick(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let length = prop_oneof![0..100usize, 0..2000usize, 0..70_000usize];
    let queue = || 0..2usize;
    prop_oneof![
        6 => (header(), length, prop::collection::vec(0..3000usize, 0..5)).prop_map(|(header, length, cuts)| Act::Send(header, length, cuts)),
        4 => (queue(), parts()).prop_map(|(queue, parts)| Act::Chain(queue, parts)),
        2 => (queue(), parts()).prop_map(|(queue, parts)| Act::Indirect(queue, parts)),
        2 => (0..3000u32).prop_map(Act::Offer),
        2 => (1..1400usize).prop_map(Act::HostSends),
        1 => (0..3usize).prop_map(Act::Kick),
    ]
}

fn perform(driver: &mut Driver, host: &std::net::UdpSocket, act: &Act) {
    match act {
        Act::Send(header, length, cuts) => {
            let mut packet = [&header[..], &tcp_frame(false, &vec![7; 65_000])].concat();
            packet.resize(HEADER_LEN + length, 9);
            driver.guest.put(TX_DATA, &packet);
            let (mut at, total) = (0, packet.len());
            let mut parts = Vec::new();
            for cut in cuts.iter().copied().chain([total]) {
                let cut = cut.min(total - at);
                parts.push((TX_DATA + at as u64, cut as u32, false));
                at += cut;
            }
            driver.guest.offer(TX, &parts);
            driver.kick(TX);
        }
        Act::Chain(queue, parts) => {
            driver.guest.offer(*queue, parts);
            driver.kick(*queue);
        }
        Act::Indirect(queue, parts) => {
            driver.guest.offer_indirect(*queue, RX_DATA - 0x1000, parts);
            driver.kick(*queue);
        }
        Act::Offer(length) => {
            driver.guest.offer(RX, &[(RX_DATA, *length, true)]);
            driver.kick(RX);
        }
        Act::HostSends(length) => {
            let _ = host.send_to(&vec![3; *length], (GUEST_IP, 3000));
        }
        Act::Kick(queue) => driver.kick(*queue),
    }
}

#[test]
fn nothing_a_guest_writes_breaks_the_device() {
    in_namespace(|| {
        let plugged = RefCell::new(Driver::plugged(1, |offered| offered));
        let host = udp(4000);
        let mut runner =
            TestRunner::new(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() });
        let result = runner.run(&prop::collection::vec(act(), 1..30), |acts| {
            let (driver, wire) = &mut *plugged.borrow_mut();
            for act in &acts {
                if driver.stop.cause().is_some() {
                    break;
                }
                // The ring's 16 places are never overrun: that is another test.
                for queue in [RX, TX] {
                    if driver.guest.offered(queue).wrapping_sub(driver.guest.used(queue)) >= SIZE {
                        driver.restart();
                    }
                }
                perform(driver, &host, act);
            }
            // After a reset the device is at rest: whether the VM ends is settled.
            driver.restart();
            // A VM that ends says why; the others are none the worse for it.
            if let Some(cause) = driver.stop.cause() {
                let cause = format!("{cause:?}");
                prop_assert!(cause.contains("the guest's driver broke the protocol: "), "{}", cause);
                *driver = Driver::new(1, |offered| offered);
                driver.plug(1);
                *wire = Wire::new();
                driver.restart();
            }
            let marker = udp_frame(false, 3333, 4444, b"the end");
            driver.send(vnet_header(6, None), &marker);
            driver.wait_for_all(TX);
            while wire.receive().1 != marker {}
            Ok(())
        });
        result.unwrap();
    });
}

#[test]
fn a_ring_that_cannot_be_ends_the_vm_by_name() {
    in_namespace(|| {
        let (mut driver, _wire) = Driver::plugged(1, |offered| offered);
        // More chains than the ring has places.
        driver.guest.memory.write_obj(SIZE + 1, GuestAddress(available(TX) + 2)).unwrap();
        driver.kick(TX);
        driver.wait("the end", |driver| driver.stop.cause().is_some());
        let cause = format!("{:?}", driver.stop.cause());
        assert!(cause.contains("virtio device net failed: virtqueue: "), "{cause}");
    });
}

#[test]
fn a_head_that_is_no_descriptor_ends_the_vm() {
    in_namespace(|| {
        for queue in [RX, TX] {
            let (mut driver, _wire) = Driver::plugged(1, |offered| offered);
            driver.guest.publish(queue, 999);
            driver.kick(queue);
            driver.wait("the end", |driver| driver.stop.cause().is_some());
        }
    });
}

#[test]
fn a_chain_outside_of_memory_ends_the_vm() {
    in_namespace(|| {
        for queue in [RX, TX] {
            let (mut driver, _wire) = Driver::plugged(1, |offered| offered);
            driver.guest.offer(queue, &[(u64::MAX - 50, 100, queue == RX)]);
            driver.kick(queue);
            driver.wait("the end", |driver| driver.stop.cause().is_some());
        }
    });
}

/// Ends the flood, also when the test fails.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

#[test]
fn a_flood_does_not_keep_the_thread_from_the_other_direction() {
    in_namespace(|| {
        let (mut driver, _wire) = Driver::plugged(1, |offered| offered);
        driver.offer_buffers(RX, BUFFER);
        // Both listen, so that the host does not answer that nobody does.
        let (host, _flooded) = (udp(4000), udp(4001));
        let frame = udp_frame(false, 3000, 4001, b"flood");
        driver.send(vnet_header(6, None), &frame);
        driver.wait_for_all(TX);
        // A driver that offers without end: every place of the ring again as soon as it is used.
        let flood = AtomicBool::new(true);
        let memory = std::sync::Arc::clone(&driver.guest.memory);
        std::thread::scope(|scope| {
            let _end = OnDrop(&flood);
            scope.spawn(|| {
                let mut offered = 1u16;
                while flood.load(Ordering::Relaxed) {
                    let used: u16 =
                        memory.read_obj(GuestAddress(crate::virtio::guest::used(TX) + 2)).unwrap();
                    offered = used.wrapping_add(SIZE);
                    memory.store(offered, GuestAddress(available(TX) + 2), Ordering::Release).unwrap();
                }
                let _ = offered;
            });
            driver.kick(TX);
            for number in 0..100u8 {
                host.send_to(&[number; 20], (GUEST_IP, 3000)).unwrap();
                assert!(driver.receive(RX).1.ends_with(&[number; 20]));
            }
            // Nor from the end.
            assert!(driver.link.unplug());
            driver.wait("the tap's end", |driver| driver.gone.load(Ordering::SeqCst) == 1);
        });
        assert!(driver.stop.cause().is_none());
    });
}
