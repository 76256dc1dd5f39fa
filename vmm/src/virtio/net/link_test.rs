use super::super::test_support::{in_namespace, tap};
use super::*;
use std::fs::File;
use std::os::fd::AsRawFd;

const MAC: Mac = [2, 0, 0, 0, 0, 1];

fn plug(link: &Link, taps: Vec<Tap>, mac: Mac, mtu: u16) -> String {
    link.plug(taps, mac, mtu, || ()).map_or_else(|error| error.to_string(), |()| "plugged".into())
}

#[test]
fn what_is_no_tap_of_the_right_kind_is_refused() {
    let null = File::open("/dev/null").unwrap();
    assert!(matches!(Tap::from_descriptor(null.into()), Err(super::super::TapError::NotATap(_))));
    in_namespace(|| {
        let tun = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        let mut request = super::super::tap::interface_request("tun0");
        request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_TUN | libc::IFF_NO_PI).unwrap();
        // SAFETY: the kernel reads and writes the structure, which is of the size it expects.
        let made = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        assert_eq!(made, 0);
        assert!(matches!(Tap::from_descriptor(tun.into()), Err(super::super::TapError::Flags)));
    });
}

#[test]
fn a_plug_that_does_not_fit_is_refused_in_one_line() {
    in_namespace(|| {
        let link = Link::new(2, MAC).unwrap();
        assert_eq!(plug(&link, Vec::new(), MAC, 1500), "the slot takes 2 queues of a tap, not 0");
        assert_eq!(plug(&link, tap(2), MAC, 67), "an MTU is from 68 to 65535, not 67");
        assert_eq!(
            plug(&link, tap(2), [1; 6], 1500),
            "[01, 01, 01, 01, 01, 01] is not the address of one network interface"
        );
        let taps = tap(2);
        assert_eq!(plug(&link, taps, MAC, 1500), "plugged");
        assert_eq!(plug(&link, Vec::new(), MAC, 1500), "the slot is in use");
        let held = link.plugged();
        assert!(link.unplug());
        assert_eq!(
            plug(&link, Vec::new(), MAC, 1500),
            "the slot's former network interface is still being unplugged"
        );
        drop(held);
        assert_eq!(plug(&link, tap(2), MAC, 1500), "plugged");
    });
}

#[test]
fn a_tap_made_with_one_queue_is_one_pair() {
    in_namespace(|| {
        super::super::test_support::ip("tuntap add mode tap name one vnet_hdr");
        assert_eq!(Tap::open("one", 4).unwrap().len(), 1);
        assert_eq!(Tap::open("many", 4).unwrap().len(), 4);
    });
}

#[test]
fn an_allowance_is_spent_and_earned() {
    let start = Instant::now();
    let mut allowance = Allowance::new(start);
    let after = |seconds: u64| start + Duration::from_secs(seconds);
    assert!((0..HOST_CHANGES).all(|_| allowance.take(start)));
    assert!(!allowance.take(start) && !allowance.take(start + HOST_CHANGE_EVERY / 2));
    assert!(allowance.take(after(1)) && !allowance.take(after(1)));
    assert!(allowance.take(after(3)) && allowance.take(after(3)) && !allowance.take(after(3)));
    assert_eq!((0..100).filter(|_| allowance.take(after(1000))).count(), HOST_CHANGES as usize);
}
