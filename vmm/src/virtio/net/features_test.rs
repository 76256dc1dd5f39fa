use super::*;

const NEW: KernelVersion = KernelVersion(6, 12);

fn features(bits: &[u32]) -> Features {
    Features(bits.iter().fold(0, |bits, bit| bits | 1 << bit))
}

#[test]
fn an_empty_slot_does_not_fix_the_mtu() {
    assert!(!Features::offered(1, false, NEW).has(VIRTIO_NET_F_MTU));
    assert!(Features::offered(1, true, NEW).has(VIRTIO_NET_F_MTU));
}

#[test]
fn udp_segments_are_taken_only_if_this_kernel_takes_them() {
    assert!(Features::offered(1, false, NEW).host_uso());
    assert!(!Features::offered(1, false, KernelVersion(6, 1)).host_uso());
}

#[test]
fn a_driver_with_a_control_queue_takes_the_pairs_too() {
    let offered = Features::offered(2, false, NEW).0;
    assert!(acceptable(offered, offered));
    assert!(acceptable(0, offered));
    assert!(!acceptable(offered & !(1 << VIRTIO_NET_F_MQ), offered));
    let single = Features::offered(1, false, NEW).0;
    assert!(acceptable(single, single));
}

#[test]
fn the_tap_is_asked_for_what_the_driver_takes() {
    let (checksum, tso4) = (VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4);
    let uso = [checksum, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6];
    assert_eq!(features(&[tso4]).offloads(), 0, "segments need the checksum");
    assert_eq!(features(&[checksum]).offloads(), libc::TUN_F_CSUM);
    assert_eq!(features(&[checksum, VIRTIO_NET_F_GUEST_ECN]).offloads(), libc::TUN_F_CSUM);
    assert_eq!(features(&[checksum, tso4]).offloads(), libc::TUN_F_CSUM | libc::TUN_F_TSO4);
    assert_eq!(features(&uso[..2]).offloads(), libc::TUN_F_CSUM);
    assert_eq!(features(&uso).offloads(), libc::TUN_F_CSUM | libc::TUN_F_USO4 | libc::TUN_F_USO6);
    assert_eq!(Features::offered(1, false, NEW).offloads(), 0x6f);
}

#[test]
fn versions_are_compared_by_number() {
    for (release, version) in [("6.12.48", (6, 12)), ("5.10.0-23-amd64", (5, 10)), ("6.2-rc1", (6, 2))] {
        assert_eq!(KernelVersion::parse(release), Some(KernelVersion(version.0, version.1)), "{release}");
    }
    assert_eq!(KernelVersion::parse("plan 9"), None);
    assert!(KernelVersion(6, 12) > KernelVersion(6, 2));
    assert!(KernelVersion::running() > KernelVersion(4, 0));
}
