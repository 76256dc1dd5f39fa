//! The device with a real tap: what goes in at one side comes out at the other.
#![allow(clippy::cast_possible_truncation, reason = "sizes a test chose")]

use super::driver::{BUFFER, Driver, RX, RX_DATA, TX, TX_DATA};
use super::header::{HEADER_LEN, Header};
use super::test_support::{
    GUEST_IP, GUEST_MAC, IP_PAYLOAD, TAP, checksum_is_right, has_interface, in_namespace, ip, tcp_frame, udp,
    udp_frame, vnet_header,
};
use crate::virtio::guest::{SIZE, available, used};
use std::sync::atomic::Ordering;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_UDP_L4,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{Bytes, GuestAddress};

const ALL: fn(u64) -> u64 = |offered| offered;

/// Without `bits`, of what is offered.
fn without(bits: &'static [u32]) -> impl FnOnce(u64) -> u64 {
    move |offered| bits.iter().fold(offered, |features, bit| features & !(1 << bit))
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|place| (place % 251) as u8).collect()
}

#[test]
fn a_datagram_whose_checksum_is_left_to_the_host_arrives() {
    in_namespace(|| {
        let (mut driver, _wire) = Driver::plugged(1, ALL);
        let socket = udp(4000);
        driver.send(vnet_header(6, None), &udp_frame(false, 3000, 4000, b"from the guest"));
        let mut bytes = [0; 64];
        let (length, from) = socket.recv_from(&mut bytes).unwrap();
        assert_eq!((&bytes[..length], from), (&b"from the guest"[..], (GUEST_IP, 3000).into()));
        driver.wait_for_all(TX);
        driver.wait("the interrupt", |driver| driver.causes() & VIRTIO_MMIO_INT_VRING != 0);
    });
}

#[test]
fn a_driver_that_takes_unfinished_checksums_gets_them() {
    in_namespace(|| {
        let (mut driver, _wire) = Driver::plugged(1, ALL);
        driver.offer_buffers(RX, BUFFER);
        udp(4000).send_to(b"from the host", (GUEST_IP, 3000)).unwrap();
        let (header, frame) = driver.receive(RX);
        let header = Header::from_bytes(header);
        assert_eq!((header.flags, header.gso_type), (1, 0), "{header:?}");
        assert_eq!((usize::from(header.csum_start), header.csum_offset), (IP_PAYLOAD, 6));
        let sent = udp_frame(true, 4000, 3000, b"from the host");
        // All but what the host's stack chose: the identification, the flags and the header's checksum.
        assert_eq!((&frame[..18], &frame[26..]), (&sent[..18], &sent[26..]));
    });
}

#[test]
fn a_driver_that_does_not_gets_them_finished() {
    in_namespace(|| {
        let (mut driver, _wire) = Driver::plugged(1, without(&[VIRTIO_NET_F_GUEST_CSUM]));
        driver.offer_buffers(RX, BUFFER);
        udp(4000).send_to(b"from the host", (GUEST_IP, 3000)).unwrap();
        let (header, frame) = driver.receive(RX);
        assert_eq!(header, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert!(frame.ends_with(b"from the host") && checksum_is_right(&frame));
    });
}

#[test]
fn a_large_tcp_packet_leaves_the_guest_in_one_piece() {
    in_namespace(|| {
        let (mut driver, wire) = Driver::plugged(1, ALL);
        let frame = tcp_frame(false, &pattern(60_000));
        driver.send(vnet_header(16, Some((VIRTIO_NET_HDR_GSO_TCPV4 as u8, 1448))), &frame);
        let (header, seen) = wire.receive();
        assert_eq!((header[1], u16::from_le_bytes([header[4], header[5]])), (1, 1448));
        assert_eq!(seen, frame);
    });
}

#[test]
fn udp_segments_reach_a_socket_as_datagrams() {
    in_namespace(|| {
        let (mut driver, _wire) = Driver::plugged(1, ALL);
        let socket = udp(4000);
        let payload = pattern(10 * 1400 + 7);
        let frame = udp_frame(false, 3000, 4000, &payload);
        driver.send(vnet_header(6, Some((VIRTIO_NET_HDR_GSO_UDP_L4 as u8, 1400))), &frame);
        for part in payload.chunks(1400) {
            let mut bytes = [0; 2000];
            let length = socket.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..length], part);
        }
    });
}

#[test]
fn a_large_packet_lies_in_as_many_buffers_as_it_takes() {
    in_namespace(|| {
        let (mut driver, wire) = Driver::plugged(1, ALL);
        driver.offer_buffers(RX, BUFFER);
        let mut header = [0; 10];
        header.copy_from_slice(&vnet_header(16, Some((VIRTIO_NET_HDR_GSO_TCPV4 as u8, 1448)))[..10]);
        // More packets than there are buffers for at once, of which each but the smallest takes several.
        for length in [60_000, 1000, 20_000, 63_000, 8192, 40_000] {
            let frame = tcp_frame(true, &pattern(length));
            wire.send(
                if length > 1448 { header } else { vnet_header(16, None)[..10].try_into().unwrap() },
                &frame,
            );
            let (got, seen) = driver.receive(RX);
            let buffers = (HEADER_LEN + frame.len()).div_ceil(BUFFER as usize);
            assert_eq!(u16::from_le_bytes([got[10], got[11]]) as usize, buffers, "{length}");
            assert!(seen == frame, "{length}");
        }
    });
}

#[test]
fn a_driver_without_segments_gets_frames_of_the_mtu() {
    in_namespace(|| {
        let (mut driver, wire) = Driver::plugged(1, without(&[7, 8, 54, 55, VIRTIO_NET_F_MRG_RXBUF]));
        driver.offer_buffers(RX, BUFFER);
        let header = vnet_header(16, Some((VIRTIO_NET_HDR_GSO_TCPV4 as u8, 1448)))[..10].try_into().unwrap();
        wire.send(header, &tcp_frame(true, &pattern(30_000)));
        let mut payload = Vec::<u8>::new();
        while payload.len() < 30_000 {
            let (header, frame) = driver.receive(RX);
            assert_eq!((header[1], header[10]), (0, 1));
            assert!(frame.len() <= 1514);
            payload.extend(&frame[54..]);
        }
        assert!(payload == pattern(30_000));
    });
}

#[test]
fn a_frame_that_does_not_fit_is_dropped_whole() {
    in_namespace(|| {
        let (mut driver, _wire) = Driver::plugged(1, without(&[VIRTIO_NET_F_MRG_RXBUF]));
        driver.offer_buffers(RX, 200);
        let socket = udp(4000);
        for payload in [pattern(1000), b"fits".to_vec()] {
            socket.send_to(&payload, (GUEST_IP, 3000)).unwrap();
        }
        let (_, frame) = driver.receive(RX);
        assert!(frame.ends_with(b"fits"));
    });
}

#[test]
fn frames_wait_for_buffers_and_come_after_a_kick() {
    in_namespace(|| {
        let (mut driver, _wire) = Driver::plugged(1, ALL);
        let socket = udp(4000);
        for number in 0..40u8 {
            socket.send_to(&[number; 10], (GUEST_IP, 3000)).unwrap();
        }
        assert_eq!(driver.guest.used(RX), 0);
        driver.offer_buffers(RX, BUFFER);
        for number in 0..40u8 {
            assert!(driver.receive(RX).1.ends_with(&[number; 10]));
        }
    });
}

#[test]
fn buffers_that_cannot_hold_a_header_go_back_empty() {
    in_namespace(|| {
        let (mut driver, _wire) = Driver::plugged(1, ALL);
        for _ in 0..4 {
            driver.guest.offer(RX, &[(RX_DATA, HEADER_LEN as u32 - 1, true)]);
            driver.guest.offer(RX, &[(RX_DATA, 2000, false)]);
        }
        driver.kick(RX);
        driver.wait_for_all(RX);
        assert!(driver.completed(RX).iter().all(|(_, length)| *length == 0));
    });
}

#[test]
fn packets_that_make_no_sense_are_dropped_and_the_next_is_sent() {
    in_namespace(|| {
        let (mut driver, wire) = Driver::plugged(1, without(&[VIRTIO_NET_F_CSUM]));
        let frame = udp_frame(false, 3000, 4000, b"");
        driver.send(vnet_header(6, None), &frame); // a checksum that was not negotiated
        driver.guest.offer(TX, &[(TX_DATA, 11, false)]);
        driver.guest.offer(TX, &[(TX_DATA, 12 + 13, false)]);
        driver.guest.offer(TX, &[(TX_DATA, 2000, true)]);
        driver.guest.offer(TX, &[(TX_DATA, 70_000, false)]);
        driver.kick(TX);
        driver.wait_for_all(TX);
        driver.send([0; HEADER_LEN], &frame);
        assert_eq!(wire.receive().1, frame);
    });
}

#[test]
fn a_packet_may_be_cut_anywhere() {
    in_namespace(|| {
        let (mut driver, wire) = Driver::plugged(1, ALL);
        let frame = tcp_frame(false, &pattern(1000));
        let packet = [&[0; HEADER_LEN][..], &frame].concat();
        let total = packet.len() as u32;
        for cuts in [&[total][..], &[12, total - 12], &[5, 7, 20, total - 32], &[1, 12, total - 13]] {
            driver.guest.put(TX_DATA, &packet);
            let mut at = TX_DATA;
            let parts: Vec<_> = cuts
                .iter()
                .map(|length| {
                    let part = (at, *length, false);
                    at += u64::from(*length);
                    part
                })
                .collect();
            driver.guest.offer_indirect(TX, TX_DATA + 0x1_0000, &parts);
            driver.kick(TX);
            assert!(wire.receive().1 == frame, "{cuts:?}");
        }
    });
}

#[test]
fn the_driver_is_interrupted_and_kicks_only_where_the_event_index_says() {
    in_namespace(|| {
        let (mut driver, wire) = Driver::plugged(1, |offered| offered | 1 << VIRTIO_RING_F_EVENT_IDX);
        let used_event = |index: usize| GuestAddress(available(index) + 4 + 2 * u64::from(SIZE));
        let avail_event = |index: usize| GuestAddress(used(index) + 4 + 8 * u64::from(SIZE));
        let frame = udp_frame(false, 3000, 4000, b"");
        // The driver wants to know of the third; then, of one far ahead.
        driver.guest.memory.write_obj(2u16, used_event(TX)).unwrap();
        driver.causes();
        for sent in 1..=6u16 {
            driver.send([0; HEADER_LEN], &frame);
            wire.receive();
            driver.wait_for_all(TX);
            // The device asks to be kicked for the next one, once it has looked and found none.
            driver.wait("the index of the next kick", |driver| {
                driver.guest.memory.read_obj::<u16>(avail_event(TX)).unwrap() == sent
            });
            // The interrupt comes after the used index.
            if sent == 3 {
                driver.wait("the interrupt", |driver| driver.causes() & VIRTIO_MMIO_INT_VRING != 0);
            } else {
                assert_eq!(driver.causes() & VIRTIO_MMIO_INT_VRING, 0, "after {sent}");
            }
        }
    });
}

#[test]
fn a_slot_is_down_until_it_is_plugged_and_after_it_was_unplugged() {
    in_namespace(|| {
        let mut driver = Driver::new(1, ALL);
        assert_eq!(driver.config(), ([2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], 0));
        // What is sent meanwhile is lost, and comes back.
        driver.send([0; HEADER_LEN], &udp_frame(false, 3000, 4000, b""));
        driver.wait_for_all(TX);
        driver.causes();
        for round in 1..4 {
            driver.plug(1);
            driver.wait("the interrupt", |driver| driver.causes() & VIRTIO_MMIO_INT_CONFIG != 0);
            let (config, generation) = driver.config();
            assert_eq!(
                (&config[..6], &config[6..], generation),
                (&GUEST_MAC[..], &[1, 0, 1, 0, 0xdc, 5][..], 2 * round - 1)
            );
            driver.send(vnet_header(6, None), &udp_frame(false, 3000, 4000, b"up"));
            driver.wait_for_all(TX);
            assert!(driver.link.unplug());
            driver.wait("the interrupt", |driver| driver.causes() & VIRTIO_MMIO_INT_CONFIG != 0);
            assert!(!driver.link_is_up() && !driver.link.unplug());
            driver.wait("the tap's end", |driver| driver.gone.load(Ordering::SeqCst) == round as usize);
            // Another test's `ip`, between its fork and its exec, may hold it for a moment.
            driver.wait("the tap's close", |_| !has_interface(TAP));
        }
    });
}

#[test]
fn a_plug_before_the_driver_is_seen_by_it() {
    in_namespace(|| {
        let mut driver = Driver::new(1, ALL);
        driver.reset();
        driver.plug(1);
        let offered = driver.offered();
        driver.start(offered);
        driver.settle();
        driver.wait("the interrupt", |driver| driver.causes() & VIRTIO_MMIO_INT_CONFIG != 0);
        driver.offer_buffers(RX, BUFFER);
        udp(4000).send_to(b"hello", (GUEST_IP, 3000)).unwrap();
        assert!(driver.receive(RX).1.ends_with(b"hello"));
    });
}

#[test]
fn a_driver_that_takes_less_than_the_one_before_gets_less() {
    in_namespace(|| {
        let (mut driver, _wire) = Driver::plugged(1, ALL);
        driver.offer_buffers(RX, BUFFER);
        for _ in 0..3 {
            let socket = udp(4000);
            socket.send_to(b"unfinished", (GUEST_IP, 3000)).unwrap();
            assert_eq!(driver.receive(RX).0[0], 1);
            // One that nobody reads, made for the driver before.
            driver.reset();
            socket.send_to(b"stale", (GUEST_IP, 3000)).unwrap();
            let offered = driver.offered();
            driver.start(without(&[VIRTIO_NET_F_GUEST_CSUM])(offered));
            driver.settle();
            driver.offer_buffers(RX, BUFFER);
            socket.send_to(b"finished", (GUEST_IP, 3000)).unwrap();
            let (header, frame) = driver.receive(RX);
            assert_eq!(header[0], 0);
            assert!(frame.ends_with(b"finished") && checksum_is_right(&frame), "{frame:02x?}");
            driver.reset();
            driver.start(offered);
            driver.settle();
            driver.offer_buffers(RX, BUFFER);
        }
    });
}

#[test]
fn unplugging_under_traffic_loses_frames_and_nothing_else() {
    in_namespace(|| {
        let mut driver = Driver::new(1, ALL);
        driver.offer_buffers(RX, BUFFER);
        let frame = udp_frame(false, 3000, 4000, &pattern(1000));
        for round in 1..=20 {
            driver.plug(1);
            let socket = udp(4000);
            for number in 0..50 {
                driver.send(vnet_header(6, None), &frame);
                // The tap may be gone, and the address with it.
                let _ = socket.send_to(&[7; 500], (GUEST_IP, 3000));
                if number == 25 {
                    assert!(driver.link.unplug());
                }
                driver.wait_for_all(TX);
                for (head, _) in driver.completed(RX) {
                    driver.guest.publish(RX, head);
                }
                driver.kick(RX);
            }
            driver.wait("the tap's end", |driver| driver.gone.load(Ordering::SeqCst) == round);
        }
        assert!(driver.stop.cause().is_none());
    });
}

#[test]
fn the_end_of_the_tap_takes_the_link_down_and_the_vm_lives() {
    in_namespace(|| {
        for sends in [false, true] {
            let (mut driver, _wire) = Driver::plugged(1, ALL);
            driver.offer_buffers(RX, BUFFER);
            ip(&format!("link del {TAP}"));
            if sends {
                driver.send(vnet_header(6, None), &udp_frame(false, 3000, 4000, b""));
                driver.wait_for_all(TX);
            }
            driver.wait("the link's end", |driver| !driver.link_is_up());
            driver.wait("the tap's end", |driver| driver.gone.load(Ordering::SeqCst) == 1);
            assert!(driver.stop.cause().is_none());
            // Another can be plugged in.
            driver.plug(1);
            assert!(driver.link_is_up());
            udp(4000).send_to(b"again", (GUEST_IP, 3000)).unwrap();
            assert!(driver.receive(RX).1.ends_with(b"again"));
        }
    });
}

#[test]
fn a_tap_that_is_not_up_takes_packets_away_and_no_more() {
    in_namespace(|| {
        let (mut driver, wire) = Driver::plugged(1, ALL);
        let frame = udp_frame(false, 3000, 4000, b"");
        ip(&format!("link set {TAP} down"));
        driver.send([0; HEADER_LEN], &frame);
        driver.wait_for_all(TX);
        assert!(driver.link_is_up());
        ip(&format!("link set {TAP} up"));
        drop(wire);
        let socket = udp(4000);
        driver.send(vnet_header(6, None), &udp_frame(false, 3000, 4000, b"up again"));
        let mut bytes = [0; 20];
        assert_eq!(socket.recv(&mut bytes).unwrap(), 8);
    });
}
