use super::super::driver::Driver;
use super::super::test_support::{GUEST_IP, GUEST_MAC, in_namespace, udp};
use crate::virtio::guest::DATA;
use std::collections::HashSet;

/// The commands' queue of a device with `pairs`.
fn command(driver: &mut Driver, pairs: u16, bytes: &[u8]) -> u8 {
    const ACK: u64 = DATA + 0x1000;
    let queue = usize::from(2 * pairs);
    driver.guest.put(DATA, bytes);
    driver.guest.put(ACK, &[0xff]);
    let length = u32::try_from(bytes.len()).unwrap();
    driver.guest.offer(
        queue,
        &[(DATA, length.min(2), false), (DATA + 2, length.saturating_sub(2), false), (ACK, 1, true)],
    );
    driver.kick(queue);
    driver.wait_for_all(queue);
    driver.guest.bytes(ACK, 1)[0]
}

#[test]
fn commands_are_done_or_refused() {
    let mut driver = Driver::new(2, |offered| offered);
    let mac = [2, 4, 6, 8, 10, 12];
    let set_mac = |mac: &[u8]| [&[1, 1][..], mac].concat();
    let table: &[(Vec<u8>, u8)] = &[
        (set_mac(&mac), 0),
        (set_mac(&mac[..5]), 1),
        // An address of a group, and none.
        (set_mac(&[1, 0, 0, 0, 0, 1]), 1),
        (set_mac(&[0; 6]), 1),
        // Filters, of which none is needed.
        (vec![0, 0, 1], 0),
        (vec![0, 5, 0], 0),
        (vec![0, 6, 0], 1),
        ([&[1, 0][..], &[0; 8], &[7; 60]].concat(), 0),
        // Pairs.
        (vec![4, 0, 2, 0], 0),
        (vec![4, 0, 1, 0], 0),
        (vec![4, 0, 0, 0], 1),
        (vec![4, 0, 3, 0], 1),
        (vec![4, 0, 1], 1),
        // Offloads, a class that is none, no command at all.
        (vec![5, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1),
        (vec![0xff, 0xff], 1),
        (vec![4], 1),
    ];
    for (bytes, ack) in table {
        assert_eq!(command(&mut driver, 2, bytes), *ack, "{bytes:?}");
    }
    assert_eq!(driver.config().0[..6], mac);
}

#[test]
fn the_drivers_address_is_kept_until_the_next_plug() {
    in_namespace(|| {
        let mut driver = Driver::new(1, |offered| offered);
        assert_eq!(command(&mut driver, 1, &[1, 1, 2, 0, 0, 0, 0, 9]), 0);
        assert_eq!(driver.config().0[..6], [2, 0, 0, 0, 0, 9]);
        driver.plug(1);
        assert_eq!(driver.config().0[..6], GUEST_MAC);
    });
}

#[test]
fn frames_go_to_the_pairs_the_driver_uses() {
    in_namespace(|| {
        let (mut driver, _wire) = Driver::plugged(2, |offered| offered);
        let pairs = |driver: &mut Driver| -> HashSet<usize> {
            // The kernel spreads flows over the queues.
            for port in 5000..5032 {
                udp(port).send_to(b"a flow", (GUEST_IP, 3000)).unwrap();
            }
            let mut frames = 0;
            let mut pairs = HashSet::new();
            driver.wait("all flows", |driver| {
                for queue in [0, 2] {
                    for (head, _) in driver.completed(queue) {
                        driver.guest.publish(queue, head);
                        driver.kick(queue);
                        frames += 1;
                        pairs.insert(queue / 2);
                    }
                }
                frames == 32
            });
            pairs
        };
        for queue in [0, 2] {
            driver.offer_buffers(queue, 2048);
        }
        assert_eq!(pairs(&mut driver), HashSet::from([0]));
        assert_eq!(command(&mut driver, 2, &[4, 0, 2, 0]), 0);
        assert_eq!(pairs(&mut driver), HashSet::from([0, 1]));
        assert_eq!(command(&mut driver, 2, &[4, 0, 1, 0]), 0);
        assert_eq!(pairs(&mut driver), HashSet::from([0]));
        assert!(driver.link_is_up());
    });
}

#[test]
fn what_changes_the_hosts_tap_is_rationed() {
    in_namespace(|| {
        let (mut driver, _wire) = Driver::plugged(2, |offered| offered);
        let refused =
            (0..100).filter(|number| command(&mut driver, 2, &[4, 0, 1 + number % 2, 0]) == 1).count();
        // The 16 at once, and what a few seconds earn. Of the rest, half ask for what there is.
        assert!((30..=42).contains(&refused), "{refused} of 100 were refused");
        assert!(driver.stop.cause().is_none());
    });
}
