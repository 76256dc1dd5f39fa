//! In a network namespace, where ends of veth pairs stand for the guest's devices.

use super::*;
use crate::container::test_support::processes_blocking;
use lazaret_agent_api::agent::{Address, Neighbour, Route, Rule};
use nix::sched::{CloneFlags, unshare};
use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

const MAC: [u8; 6] = [0x02, 0x11, 0x22, 0x33, 0x44, 0x55];

/// Runs `test` where the guest's slots are devices `eth0` and `eth1`.
fn in_guest(test: impl FnOnce() + Send + 'static) {
    // A reaper of another test would collect the children of this one.
    let _alone = processes_blocking();
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        ip("link set lo up");
        for slot in 0..2 {
            ip(&format!("link add eth{slot} address 02:00:00:00:00:0{slot} type veth peer name peer{slot}"));
            ip(&format!("link set peer{slot} up"));
        }
        test();
    };
    std::thread::spawn(run).join().unwrap();
}

fn slots() -> Slots {
    let slots = Slots::set_aside().unwrap();
    assert!(!ip("-br link").contains("eth"), "unused devices are out of sight");
    slots
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn interface(slot: u8, name: &str) -> Interface {
    Interface {
        device: vec![2, 0, 0, 0, 0, slot],
        name: name.into(),
        mac: [&MAC[..5], &[slot]].concat(),
        mtu: 1400,
        ..Default::default()
    }
}

fn address(text: &str, prefix_length: u32) -> Address {
    Address { ip: octets(text), prefix_length, ..Default::default() }
}

fn octets(text: &str) -> Vec<u8> {
    match text.parse().unwrap() {
        IpAddr::V4(ip) => ip.octets().into(),
        IpAddr::V6(ip) => ip.octets().into(),
    }
}

fn route(destination: &str, prefix_length: u32) -> Route {
    Route {
        destination: octets(destination),
        prefix_length,
        interface: "eth0".into(),
        table: 254,
        protocol: 3,
        type_: 1,
        ..Default::default()
    }
}

fn typical() -> ConfigureNetworkRequest {
    let mut eth0 = interface(0, "eth0");
    let link_local = Address { scope: 253, ..address("fe80::2", 64) };
    let broadcast = Address { broadcast: octets("10.9.0.255"), ..address("10.9.0.2", 24) };
    eth0.addresses = vec![broadcast, address("fd09::2", 64), link_local];
    let neighbour = Neighbour { ip: octets("10.9.0.9"), mac: vec![2, 0, 0, 0, 0, 9], ..Default::default() };
    eth0.neighbours = vec![neighbour];
    // Gateways first, as a kernel lists them.
    let routes = vec![
        Route { gateway: octets("10.9.0.1"), mtu: 1300, ..route("0.0.0.0", 0) },
        Route { gateway: octets("10.30.0.1"), onlink: true, priority: 7, ..route("10.20.0.0", 16) },
        Route { source: octets("10.9.0.2"), scope: 253, protocol: 2, ..route("10.9.0.0", 24) },
        Route { gateway: octets("fe80::1"), ..route("::", 0) },
        Route { protocol: 2, priority: 256, ..route("fd09::", 64) },
        Route { protocol: 2, priority: 256, ..route("fe80::", 64) },
        Route { interface: String::new(), type_: 6, ..route("10.40.0.0", 16) },
        Route { scope: 253, table: 1000, ..route("10.50.0.0", 16) },
    ];
    let rule = Rule {
        source: octets("10.9.0.2"),
        source_prefix_length: 32,
        priority: 500,
        table: 1000,
        action: 1,
        ..Default::default()
    };
    ConfigureNetworkRequest { interfaces: vec![eth0], routes, rules: vec![rule], ..Default::default() }
}

#[test]
fn the_guest_has_what_the_namespace_had() {
    in_guest(|| {
        let begun = Instant::now();
        configure(&slots(), &typical()).unwrap();
        let addresses = ip("-o addr show dev eth0");
        assert!(begun.elapsed() < Duration::from_secs(1), "no duplicate address detection");
        for part in ["inet 10.9.0.2/24 brd 10.9.0.255 scope global", "fd09::2/64", "fe80::2/64 scope link"] {
            assert!(addresses.contains(part), "{part}: {addresses}");
        }
        assert!(!addresses.contains("tentative"), "{addresses}");
        assert_eq!(addresses.lines().count(), 3, "no address of the kernel's own: {addresses}");
        let link = ip("link show dev eth0");
        for part in ["mtu 1400", "UP", "02:11:22:33:44:00"] {
            assert!(link.contains(part), "{part}: {link}");
        }
        let v4 = ip("route show table all type unicast") + &ip("route show type blackhole");
        for part in [
            "default via 10.9.0.1 dev eth0 mtu 1300",
            "10.20.0.0/16 via 10.30.0.1 dev eth0 metric 7 onlink",
            "10.9.0.0/24 dev eth0 proto kernel scope link src 10.9.0.2",
            "blackhole 10.40.0.0/16",
            "10.50.0.0/16 dev eth0 table 1000 scope link",
        ] {
            assert!(v4.contains(part), "{part}: {v4}");
        }
        let v6 = ip("-6 route show dev eth0");
        for part in ["default via fe80::1", "fd09::/64 proto kernel metric 256", "fe80::/64 proto kernel"] {
            assert!(v6.contains(part), "{part}: {v6}");
        }
        assert_eq!(v6.lines().count(), 3, "no route of the kernel's own: {v6}");
        assert!(ip("rule show").contains("500:\tfrom 10.9.0.2 lookup 1000"));
        assert!(ip("neigh show dev eth0").contains("10.9.0.9 lladdr 02:00:00:00:00:09 PERMANENT"));
    });
}

#[test]
fn doing_it_again_is_no_error() {
    in_guest(|| {
        let mut request = typical();
        let slots = slots();
        configure(&slots, &request).unwrap();
        // A veth device has no permanent address.
        request.interfaces[0].device = request.interfaces[0].mac.clone();
        let shown =
            || ip("-o addr show dev eth0") + &ip("route") + &ip("-6 route show dev eth0") + &ip("rule");
        let before = shown();
        configure(&slots, &request).unwrap();
        assert_eq!(shown(), before);
    });
}

#[test]
fn what_is_not_asked_for_any_more_is_gone_and_what_others_did_stays() {
    in_guest(|| {
        let slots = slots();
        let mut request = typical();
        let mut eth1 = interface(1, "eth1");
        eth1.addresses = vec![address("10.8.0.2", 24)];
        request.interfaces.push(eth1);
        // A veth device has no permanent address: it is known by the one that it has now.
        let known = |request: &mut ConfigureNetworkRequest| {
            request.interfaces.iter_mut().for_each(|interface| interface.mac.clone_from(&interface.device));
        };
        known(&mut request);
        configure(&slots, &request).unwrap();
        ip("addr add 10.77.0.1/24 dev eth0");
        ip("route add 10.78.0.0/16 via 10.77.0.2");

        request.interfaces.pop();
        request.interfaces[0].addresses.remove(1);
        request.interfaces[0].addresses.push(address("10.9.0.3", 24));
        request.interfaces[0].neighbours.clear();
        request.routes.retain(|route| route.destination.len() == 4 && route.table == 254);
        request.routes[0].mtu = 1200;
        request.rules.clear();
        configure(&slots, &request).unwrap();
        assert!(!ip("-br link").contains("eth1"));
        let addresses = ip("-o addr show dev eth0");
        for part in ["10.9.0.2/24", "10.9.0.3/24", "10.77.0.1/24", "fe80::2/64"] {
            assert!(addresses.contains(part), "{part}: {addresses}");
        }
        assert!(!addresses.contains("fd09::2"), "{addresses}");
        let routes = ip("route show table all type unicast");
        assert!(routes.contains("default via 10.9.0.1 dev eth0 mtu 1200"), "{routes}");
        assert!(routes.contains("10.78.0.0/16 via 10.77.0.2"), "{routes}");
        assert!(!routes.contains("table 1000"), "{routes}");
        assert!(!ip("-6 route show dev eth0").contains("default"));
        assert!(!ip("rule show").contains("500:"));
        assert!(!ip("neigh show dev eth0").contains("PERMANENT"));

        // A slot is used again.
        let mut again = typical();
        known(&mut again);
        configure(&slots, &again).unwrap();
        assert!(ip("-6 route show dev eth0").contains("default via fe80::1"));
        configure(&slots, &ConfigureNetworkRequest::default()).unwrap();
        assert!(!ip("-br link").contains("eth"));
    });
}

#[test]
fn names_may_be_exchanged() {
    in_guest(|| {
        let interfaces = vec![interface(0, "eth1"), interface(1, "eth0")];
        configure(&slots(), &ConfigureNetworkRequest { interfaces, ..Default::default() }).unwrap();
        assert!(ip("-br link show dev eth1").contains("02:11:22:33:44:00"));
        assert!(ip("-br link show dev eth0").contains("02:11:22:33:44:01"));
    });
}

#[test]
fn a_device_may_have_the_name_that_another_slots_had() {
    in_guest(|| {
        let interfaces = vec![interface(0, "eth1")];
        configure(&slots(), &ConfigureNetworkRequest { interfaces, ..Default::default() }).unwrap();
        assert!(ip("-br link show dev eth1").contains("02:11:22:33:44:00"));
        assert!(!ip("-br link").contains("eth0"));
    });
}

#[test]
fn errors_name_the_interface_and_what_failed() {
    in_guest(|| {
        let slots = slots();
        let line = |request: &ConfigureNetworkRequest| configure(&slots, request).unwrap_err().to_string();
        let mut request = typical();
        request.interfaces[0].device = vec![2, 0, 0, 0, 0, 9];
        let missing = line(&request);
        assert!(missing.starts_with(
            "interface eth0: the guest has no network device with the address 02:00:00:00:00:09"
        ));
        let mut request = typical();
        request.routes = vec![Route { gateway: octets("10.99.0.1"), ..route("0.0.0.0", 0) }];
        let unreachable = line(&request);
        let start = "interface eth0: cannot add the route to 0.0.0.0/0 in the guest: Network is unreachable";
        assert!(unreachable.starts_with(start), "{unreachable}");
        let mut request = typical();
        request.interfaces[0].device = request.interfaces[0].mac.clone();
        request.interfaces[0].addresses[0].ip.pop();
        assert_eq!(line(&request), "interface eth0: 3 bytes are no IP address");
    });
}

#[test]
fn ipv6_that_is_off_is_left_out() {
    in_guest(|| {
        std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        configure(&slots(), &typical()).unwrap();
        assert!(!ip("-o addr").contains("inet6"));
        assert!(ip("-o addr").contains("10.9.0.2/24"));
    });
}
