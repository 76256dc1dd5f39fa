//! What a packet costs the device and the host's stack behind it; not a test.
//!
//!     cargo test --release -p lazaret-vmm -- --ignored --nocapture net::measure
#![allow(clippy::cast_possible_truncation, reason = "sizes a test chose")]

use super::driver::{BUFFER, Driver, RX, TX, TX_DATA};
use super::test_support::{in_namespace, tap, tcp_frame, vnet_header};
use crate::virtio::guest::SIZE;
use std::io::Write;
use std::time::Instant;
use virtio_bindings::virtio_net::VIRTIO_NET_HDR_GSO_TCPV4;

/// Packets of each row.
const PACKETS: usize = 100_000;

/// The same frames by writev(2) alone: what the host's stack takes.
fn without_a_device(text: &str, packet: &[u8]) {
    let taps = tap(1);
    let vector = libc::iovec { iov_base: packet.as_ptr().cast_mut().cast(), iov_len: packet.len() };
    let begun = Instant::now();
    for _ in 0..PACKETS {
        // SAFETY: the kernel only reads the packet.
        unsafe { taps[0].write(&[vector]) }.unwrap();
    }
    row(&format!("by writev alone, {text}"), PACKETS, packet.len() - 12, begun);
}

fn row(text: &str, packets: usize, length: usize, begun: Instant) {
    let seconds = begun.elapsed().as_secs_f64();
    let (rate, bits) = (packets as f64 / seconds, (packets * length * 8) as f64 / seconds);
    // Not by a macro of std's: the test harness would swallow it.
    let _ = writeln!(std::io::stderr(), "{text:<28} {rate:>10.0}/s {:>7.2} Gbit/s", bits / 1e9);
}

#[test]
#[ignore = "a measurement"]
fn packets() {
    in_namespace(|| {
        let segments = Some((VIRTIO_NET_HDR_GSO_TCPV4 as u8, 1448));
        for (text, payload, gso) in [("1,514 bytes", 1460, None), ("64 KiB", 64_000, segments)] {
            let frame = tcp_frame(false, &vec![7; payload]);
            without_a_device(text, &[&vnet_header(16, gso)[..], &frame].concat());
            let (mut driver, wire) = Driver::plugged(1, |offered| offered);
            let packet = [&vnet_header(16, gso)[..], &frame].concat();
            driver.guest.put(TX_DATA, &packet);
            let heads: Vec<_> =
                (0..SIZE).map(|_| driver.guest.offer(TX, &[(TX_DATA, packet.len() as u32, false)])).collect();
            drop(wire);
            let begun = Instant::now();
            driver.kick(TX);
            let mut sent = 0;
            while sent < PACKETS {
                let used = driver.completed(TX).len();
                sent += used;
                for number in 0..used {
                    driver.guest.publish(TX, heads[number % heads.len()]);
                }
                if used > 0 {
                    driver.kick(TX);
                }
            }
            row(&format!("from the guest, {text}"), sent, frame.len(), begun);
        }
        for (text, payload, gso) in [("1,514 bytes", 1460, None), ("64 KiB", 64_000, segments)] {
            let frame = tcp_frame(true, &vec![7; payload]);
            let (mut driver, wire) = Driver::plugged(1, |offered| offered);
            driver.offer_buffers(RX, BUFFER);
            let header = vnet_header(16, gso)[..10].try_into().unwrap();
            let buffers = (frame.len() + 12).div_ceil(BUFFER as usize);
            let begun = Instant::now();
            let (mut received, mut sent) = (0, 0);
            while received < PACKETS / 4 {
                // As many under way as the tap's queue holds.
                while sent < received / buffers.max(1) + 256 && sent * buffers < PACKETS / 4 + 256 {
                    wire.send(header, &frame);
                    sent += 1;
                }
                for (head, _) in driver.completed(RX) {
                    driver.guest.publish(RX, head);
                    received += 1;
                }
                driver.kick(RX);
            }
            row(&format!("to the guest, {text}"), received / buffers, frame.len(), begun);
        }
    });
}
