//! In network namespaces of their own, with a veth pair whose other end stands for the host's bridge.

use super::*;
use nix::sched::setns;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socket};
use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::{Duration, Instant};

const OPTIONS: Options = Options { slots: 4, queue_pairs: 1, anti_spoofing: true, to_host: false };
const PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const GUEST_MAC: [u8; 6] = [0x02, 0x11, 0x22, 0x33, 0x44, 0x55];
const PEER_MAC: [u8; 6] = [0x02, 0xaa, 0xbb, 0xcc, 0xdd, 0xee];
const FRAME_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs `test` in a network namespace of its own with `eth0`, and a socket at its other end, which is in another one.
fn in_namespace(test: impl FnOnce(&OwnedFd) + Send + 'static) {
    let run = move || {
        let enter = |namespace: &File| setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let outside = new_namespace();
        let inside = new_namespace();
        ip("link set lo up");
        ip("link add eth0 address 02:11:22:33:44:55 mtu 1400 type veth \
            peer name peer address 02:aa:bb:cc:dd:ee mtu 1400");
        ip(&format!("link set peer netns /proc/{}/fd/{}", std::process::id(), outside.as_raw_fd()));
        enter(&outside);
        // Nothing is said unasked at that end.
        fs::write("/proc/sys/net/ipv6/conf/peer/disable_ipv6", "1").unwrap();
        ip("link set peer up arp off");
        let peer = packet_socket("peer");
        enter(&inside);
        fs::write("/proc/sys/net/ipv6/conf/eth0/addr_gen_mode", "1").unwrap();
        ip("link set eth0 up");
        ip("addr add 10.9.0.2/24 brd + dev eth0");
        ip("addr add fd09::2/64 dev eth0 nodad");
        ip("addr add fe80::2/64 dev eth0 nodad");
        test(&peer);
    };
    std::thread::spawn(run).join().unwrap();
}

fn new_namespace() -> File {
    unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
    File::open("/proc/thread-self/ns/net").unwrap()
}

fn ip(arguments: &str) -> String {
    tool("ip", arguments)
}

fn tool(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// A namespace that has been wired, and what came of it.
#[derive(Debug)]
struct Wired {
    wiring: Wiring,
    changes: Changes,
}

impl Wired {
    /// Wires this thread's namespace; all of it, or none.
    fn wire_here(options: Options, step: Step<'_>) -> Result<Self, NetworkError> {
        let mut wiring = Wiring::default();
        let mut changes = wiring.update_here(options, step)?;
        changes.failed.pop().map_or(Ok(Self { wiring, changes }), Err)
    }

    fn update(&mut self) {
        self.changes = self.wiring.update_here(OPTIONS, &|_| Ok(())).unwrap();
        assert!(self.changes.failed.is_empty(), "{:?}", self.changes);
    }
}

fn wire(options: Options) -> Wired {
    Wired::wire_here(options, &|_| Ok(())).unwrap()
}

/// What the wiring could leave behind.
fn traces() -> (String, String, String) {
    (ip("-br link"), tool("tc", "qdisc show"), fs::read_to_string(PORT_RANGE).unwrap())
}

/// A socket for all frames that the interface receives.
fn packet_socket(interface: &str) -> OwnedFd {
    let all = libc::ETH_P_ALL.to_be_bytes();
    let protocol = u16::from_ne_bytes([all[2], all[3]]);
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK, None).unwrap();
    let index = nix::net::if_::if_nametoindex(interface).unwrap().cast_signed();
    // SAFETY: all zeroes is a valid address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    (address.sll_family, address.sll_protocol, address.sll_ifindex) = (17, protocol, index);
    let length = u32::try_from(size_of_val(&address)).unwrap();
    // SAFETY: the kernel reads the address, which outlives the call.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    assert_eq!(bound, 0, "{}", io::Error::last_os_error());
    socket
}

/// The two ends of the wire: the guest's and the host's.
struct Ends<'a> {
    guest: File,
    peer: &'a OwnedFd,
}

impl<'a> Ends<'a> {
    fn of(wired: &mut Wired, peer: &'a OwnedFd) -> Self {
        Self { guest: File::from(wired.changes.plug[0].queues.remove(0)), peer }
    }

    fn guest_sends(&mut self, frame: &[u8]) {
        let packet = [&[0; 12], frame].concat();
        assert_eq!(self.guest.write(&packet).unwrap(), packet.len());
    }

    fn peer_sends(&self, frame: &[u8]) {
        let sent = nix::sys::socket::send(self.peer.as_raw_fd(), frame, MsgFlags::empty()).unwrap();
        assert_eq!(sent, frame.len());
    }

    /// Whether the guest receives `frame`. What else it receives is passed over.
    fn guest_receives(&mut self, frame: &[u8]) -> bool {
        let mut buffer = [0; 2048];
        receives(frame, 12, |within| {
            let length = match self.guest.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                length => length.unwrap(),
            };
            Some(within(&buffer[..length]))
        })
    }

    fn peer_receives(&self, frame: &[u8]) -> bool {
        let mut buffer = [0; 2048];
        receives(frame, 0, |within| {
            let length = match recv(self.peer.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EAGAIN) => return None,
                length => length.unwrap(),
            };
            Some(within(&buffer[..length]))
        })
    }
}

/// A frame that crosses the wire does so before the send returns, so a moment without one is the answer no.
fn receives(
    frame: &[u8],
    header: usize,
    mut next: impl FnMut(&dyn Fn(&[u8]) -> bool) -> Option<bool>,
) -> bool {
    let quiet = Duration::from_millis(200);
    let same = |got: &[u8]| got.get(header..).is_some_and(|got| got.starts_with(frame));
    let (begun, mut last) = (Instant::now(), Instant::now());
    while last.elapsed() < quiet && begun.elapsed() < FRAME_TIMEOUT {
        match next(&same) {
            Some(true) => return true,
            Some(false) => last = Instant::now(),
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    false
}

fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&to[..], &from[..], &kind.to_be_bytes(), payload].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

fn arp(from: [u8; 6], source: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let request = [0, 1, 8, 0, 6, 4, 0, 1];
    let payload = [&request[..], &from, &source, &[0; 6], &target].concat();
    ethernet([0xff; 6], from, 0x0806, &payload)
}

/// A frame with a UDP packet; the checksum of IPv4 is right, that of UDP left out.
fn udp4(to: [u8; 6], from: [u8; 6], source: [u8; 4], destination: [u8; 4], port: u16) -> Vec<u8> {
    let data = *b"data";
    let mut header = vec![0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, 17, 0, 0];
    header.extend([source, destination].concat());
    let sum: u32 = header.chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    header[10..12].copy_from_slice(&(!sum).to_be_bytes());
    let udp = [&53u16.to_be_bytes()[..], &port.to_be_bytes(), &12u16.to_be_bytes(), &[0, 0], &data].concat();
    ethernet(to, from, 0x0800, &[header, udp].concat())
}

fn ipv6(to: [u8; 6], from: [u8; 6], source: &str, destination: &str, next: u8, payload: &[u8]) -> Vec<u8> {
    let octets = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let header =
        [&[0x60, 0, 0, 0], &length[..], &[next, 255], &octets(source), &octets(destination)].concat();
    ethernet(to, from, 0x86dd, &[&header, payload].concat())
}

#[test]
fn packets_go_from_the_interface_to_the_guest_and_back() {
    in_namespace(|peer| {
        let mut wired = wire(OPTIONS);
        let mut ends = Ends::of(&mut wired, peer);
        let inbound = udp4(GUEST_MAC, PEER_MAC, [10, 9, 0, 1], [10, 9, 0, 2], 80);
        ends.peer_sends(&inbound);
        assert!(ends.guest_receives(&inbound));
        let outbound = udp4(PEER_MAC, GUEST_MAC, [10, 9, 0, 2], [10, 9, 0, 1], 80);
        ends.guest_sends(&outbound);
        assert!(ends.peer_receives(&outbound));
        let inbound = ipv6(GUEST_MAC, PEER_MAC, "fd09::1", "fd09::2", 17, &[0, 53, 0, 80, 0, 8, 1, 1]);
        ends.peer_sends(&inbound);
        assert!(ends.guest_receives(&inbound));
        let outbound = ipv6(PEER_MAC, GUEST_MAC, "fd09::2", "fd09::1", 17, &[0, 53, 0, 80, 0, 8, 1, 1]);
        ends.guest_sends(&outbound);
        assert!(ends.peer_receives(&outbound));
    });
}

#[test]
fn arp_and_neighbour_discovery_reach_guest_and_namespace() {
    in_namespace(|peer| {
        let mut wired = wire(OPTIONS);
        let mut ends = Ends::of(&mut wired, peer);
        let request = arp(PEER_MAC, [10, 9, 0, 1], [10, 9, 0, 2]);
        ends.peer_sends(&request);
        assert!(ends.guest_receives(&request));
        // The namespace's kernel answers, too.
        let reply = [&PEER_MAC[..], &GUEST_MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]].concat();
        assert!(ends.peer_receives(&reply));
        for kind in 128..140 {
            let packet = ipv6(GUEST_MAC, PEER_MAC, "fd09::1", "fd09::2", 58, &[kind, 0, 0, 0, 0, 0, 0, 0]);
            let passed = counted_in(|| ends.peer_sends(&packet));
            assert!(ends.guest_receives(&packet), "type {kind}");
            assert_eq!(passed, (133..=137).contains(&kind), "type {kind}");
        }
    });
}

/// Whether the namespace's own stack receives an IPv6 packet meanwhile.
fn counted_in(send: impl FnOnce()) -> bool {
    let count = || {
        let table = fs::read_to_string("/proc/thread-self/net/snmp6").unwrap();
        let line = table.lines().find(|line| line.starts_with("Ip6InReceives")).unwrap().to_owned();
        line.split_whitespace().last().unwrap().parse::<u64>().unwrap()
    };
    let before = count();
    send();
    std::thread::sleep(Duration::from_millis(50));
    count() > before
}

#[test]
fn reserved_ports_are_the_namespaces_own() {
    in_namespace(|peer| {
        let mut wired = wire(OPTIONS);
        let mut ends = Ends::of(&mut wired, peer);
        let range = fs::read_to_string(PORT_RANGE).unwrap();
        assert_eq!(range.split_whitespace().collect::<Vec<_>>(), ["61440", "61951"]);
        let resolver = UdpSocket::bind("10.9.0.2:0").unwrap();
        resolver.set_read_timeout(Some(FRAME_TIMEOUT)).unwrap();
        let port = resolver.local_addr().unwrap().port();
        assert!(super::super::ports::PORTS.contains(&port), "{port}");
        let answer = udp4(GUEST_MAC, PEER_MAC, [10, 9, 0, 1], [10, 9, 0, 2], port);
        ends.peer_sends(&answer);
        let mut data = [0; 16];
        assert_eq!(resolver.recv(&mut data).unwrap(), 4);
        assert!(!ends.guest_receives(&answer));
        for (protocol, port, to_guest) in
            [(6, 61439u16, true), (6, 61440, false), (17, 61951, false), (17, 61952, true), (1, 61440, true)]
        {
            let payload = [&[0, 53], &port.to_be_bytes()[..], &[0; 16]].concat();
            let packet = ipv6(GUEST_MAC, PEER_MAC, "fd09::1", "fd09::2", protocol, &payload);
            ends.peer_sends(&packet);
            assert_eq!(ends.guest_receives(&packet), to_guest, "protocol {protocol} port {port}");
        }
    });
}

#[test]
fn a_guest_sends_under_its_own_addresses_alone() {
    in_namespace(|peer| {
        let own = udp4(PEER_MAC, GUEST_MAC, [10, 9, 0, 2], [10, 9, 0, 1], 80);
        let frames = [
            ("own", own.clone(), true),
            ("ARP", arp(GUEST_MAC, [10, 9, 0, 2], [10, 9, 0, 1]), true),
            ("ARP probe", arp(GUEST_MAC, [0; 4], [10, 9, 0, 2]), true),
            ("link-local", ipv6(PEER_MAC, GUEST_MAC, "fe80::2", "fe80::1", 59, &[]), true),
            ("unspecified", ipv6(PEER_MAC, GUEST_MAC, "::", "ff02::1", 59, &[]), true),
            ("another's MAC", udp4(PEER_MAC, [2; 6], [10, 9, 0, 2], [10, 9, 0, 1], 80), false),
            ("another's IPv4", udp4(PEER_MAC, GUEST_MAC, [10, 9, 0, 3], [10, 9, 0, 1], 80), false),
            ("another's ARP", arp(GUEST_MAC, [10, 9, 0, 3], [10, 9, 0, 1]), false),
            ("another's IPv6", ipv6(PEER_MAC, GUEST_MAC, "fd09::3", "fd09::1", 59, &[]), false),
            ("another protocol", ethernet(PEER_MAC, GUEST_MAC, 0x8100, &own[12..]), false),
        ];
        let mut wired = wire(OPTIONS);
        let mut ends = Ends::of(&mut wired, peer);
        for (what, frame, passed) in &frames {
            ends.guest_sends(frame);
            assert_eq!(ends.peer_receives(frame), *passed, "{what}");
        }
        drop((wired, ends));
        let mut wired = wire(Options { anti_spoofing: false, ..OPTIONS });
        let mut ends = Ends::of(&mut wired, peer);
        for (what, frame, _) in &frames {
            ends.guest_sends(frame);
            // The kernel takes the tag of a VLAN out of the frame that it shows.
            assert!(ends.peer_receives(frame) || *what == "another protocol", "{what}");
        }
    });
}

#[test]
fn nothing_goes_to_the_loopback_interface_of_the_host_behind_a_user_mode_network() {
    in_namespace(|peer| {
        let v4 = |to| udp4(PEER_MAC, GUEST_MAC, [10, 9, 0, 2], to, 80);
        let v6 = |to| ipv6(PEER_MAC, GUEST_MAC, "fd09::2", to, 59, &[]);
        let frames = [
            (v4([10, 9, 0, 1]), true),
            (v4([126, 255, 255, 255]), true),
            (v4([127, 0, 0, 1]), false),
            (v4([127, 255, 0, 53]), false),
            (v4([0, 0, 0, 0]), false),
            (v6("fd09::1"), true),
            (v6("::1:0:0:0:1"), true),
            (v6("::1"), false),
            (v6("::"), false),
            (v6("::ffff:127.0.0.1"), false),
            (v6("::ffff:10.9.0.1"), false),
            (v6("::127.0.0.1"), false),
        ];
        for anti_spoofing in [true, false] {
            let mut wired = wire(Options { anti_spoofing, to_host: true, ..OPTIONS });
            let mut ends = Ends::of(&mut wired, peer);
            for (number, (frame, passed)) in frames.iter().enumerate() {
                ends.guest_sends(frame);
                assert_eq!(ends.peer_receives(frame), *passed, "frame {number}");
            }
        }
    });
}

#[test]
fn the_guest_is_told_all_that_the_namespace_holds() {
    in_namespace(|_| {
        ip("route add default via 10.9.0.1 mtu 1300");
        ip("route add 10.20.0.0/16 via 10.30.0.1 dev eth0 onlink src 10.9.0.2 metric 7");
        ip("route add blackhole 10.40.0.0/16");
        ip("route add 10.50.0.0/16 dev eth0 table 100");
        ip("-6 route add default via fe80::1 dev eth0");
        ip("rule add from 10.9.0.2 lookup 100 priority 500");
        ip("-6 rule add fwmark 1/0xf lookup 101 priority 600");
        ip("neigh add 10.9.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent");
        ip("tuntap add tun0 mode tun");
        ip("link set tun0 up");
        let wired = wire(Options { queue_pairs: 2, ..OPTIONS });
        let [nic] = &wired.changes.plug[..] else { panic!("{wired:?}") };
        assert_eq!(nic.queues.len(), 2);
        let ConfigureNetworkRequest { interfaces, routes, rules, .. } = &wired.changes.network;
        let interface = &interfaces[0];
        assert_eq!((interface.name.as_str(), interface.mtu), ("eth0", 1400));
        assert_eq!(interface.mac, GUEST_MAC);
        let mut addresses = addresses(interface).iter().map(IpAddr::to_string).collect::<Vec<_>>();
        addresses.sort();
        assert_eq!(addresses, ["10.9.0.2", "fd09::2", "fe80::2"]);
        let first = &interface.addresses[0];
        assert_eq!((first.prefix_length, first.broadcast.as_slice()), (24, &[10, 9, 0, 255][..]));
        assert_eq!(interface.neighbours.len(), 1);
        let route = |destination: &[u8], length: u32| {
            let found = |route: &&Route| route.destination == destination && route.prefix_length == length;
            routes.iter().find(found).unwrap_or_else(|| panic!("{destination:?}: {routes:?}"))
        };
        let default = route(&[0; 4], 0);
        assert_eq!((default.gateway.as_slice(), default.mtu, default.table), (&[10, 9, 0, 1][..], 1300, 254));
        let onlink = route(&[10, 20, 0, 0], 16);
        assert_eq!((onlink.onlink, onlink.priority, onlink.source.as_slice()), (true, 7, &[10, 9, 0, 2][..]));
        assert_eq!(route(&[10, 9, 0, 0], 24).scope, 253);
        assert_eq!(
            (route(&[10, 40, 0, 0], 16).interface.as_str(), route(&[10, 40, 0, 0], 16).type_),
            ("", 6)
        );
        assert_eq!(route(&[10, 50, 0, 0], 16).table, 100);
        assert_eq!(route(&[0; 16], 0).gateway.len(), 16);
        let keys: Vec<_> = rules.iter().map(|rule| (rule.ipv6, rule.priority, rule.table)).collect();
        assert_eq!(keys, [(false, 500, 100), (true, 600, 101)]);
        assert_eq!((rules[1].mark, rules[1].mark_mask), (1, 15));
    });
}

#[test]
fn the_end_leaves_nothing_and_so_does_a_failure_of_any_step() {
    in_namespace(|_| {
        let before = traces();
        let steps = Cell::new(0);
        let count = |_| {
            steps.set(steps.get() + 1);
            Ok(())
        };
        let wired = Wired::wire_here(OPTIONS, &count).unwrap();
        assert_ne!(traces(), before);
        drop(wired);
        assert_eq!(traces(), before);
        assert!(steps.get() > 8);
        let seen = RefCell::new(Vec::new());
        for failing in 0..steps.get() {
            let step = |name| {
                seen.borrow_mut().push(name);
                if seen.borrow().len() > failing { Err(NetworkError::Late(0)) } else { Ok(()) }
            };
            let failed = Wired::wire_here(OPTIONS, &step);
            assert!(matches!(failed, Err(NetworkError::Late(0))), "{failed:?}");
            assert_eq!(traces(), before, "after the failure of {:?}", seen.borrow().last());
            seen.borrow_mut().clear();
        }
    });
}

#[test]
fn an_ingress_in_use_is_named_and_left_alone() {
    in_namespace(|_| {
        tool("tc", "qdisc add dev eth0 ingress");
        let before = traces();
        let error = Wired::wire_here(OPTIONS, &|_| Ok(())).unwrap_err();
        assert!(error.to_string().starts_with("interface eth0: its ingress is in use"), "{error}");
        assert_eq!(traces(), before);
    });
}

#[test]
fn nothing_is_done_without_an_interface_and_too_many_are_refused() {
    in_namespace(|_| {
        ip("tuntap add tap9 mode tap");
        ip("link set tap9 up");
        let error = Wired::wire_here(Options { slots: 1, ..OPTIONS }, &|_| Ok(())).unwrap_err();
        assert!(matches!(error, NetworkError::TooMany { most: 1, .. }), "{error}");
        ip("link del tap9");
        ip("link del eth0");
        let before = traces();
        let wired = wire(OPTIONS);
        assert!(wired.changes.plug.is_empty() && wired.changes.network.routes.is_empty());
        assert_eq!(traces(), before);
    });
}

#[test]
fn another_thread_can_undo_it_and_wiring_leaves_its_caller_where_it_is() {
    in_namespace(|_| {
        let before = traces();
        let namespace = Arc::new(OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap()));
        let elsewhere = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let here = fs::read_link("/proc/thread-self/ns/net").unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let wiring = Arc::new(Mutex::new(Wiring::default()));
            let changes = runtime.block_on(Wiring::update(wiring.clone(), namespace, OPTIONS)).unwrap();
            assert_eq!(fs::read_link("/proc/thread-self/ns/net").unwrap(), here);
            assert_eq!(changes.plug.len(), 1);
            (wiring, changes)
        });
        let wired = elsewhere.join().unwrap();
        assert_ne!(traces(), before);
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            drop(wired);
        })
        .join()
        .unwrap();
        assert_eq!(traces(), before);
    });
}

#[test]
fn trying_it_out_works_where_wiring_does_and_leaves_its_caller_where_it_is() {
    in_namespace(|_| {
        let before = traces();
        Wiring::try_out().unwrap();
        assert_eq!(traces(), before);
    });
}

/// Needs a pasta that is young enough in `PATH`; else it says that it is skipped.
#[test]
fn behind_pasta_a_guest_reaches_the_host_but_not_its_loopback_interface() {
    let Some(_one) = super::super::pasta::tests::usable() else { return };
    let host = UdpSocket::bind("0.0.0.0:0").unwrap();
    let port = host.local_addr().unwrap().port();
    let host6 = UdpSocket::bind(("::1", port)).ok();
    let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
    if probe.connect("198.51.100.1:9").is_err() {
        eprintln!("the host has no address beside its loopback interface: skipped");
        return;
    }
    let IpAddr::V4(address) = probe.local_addr().unwrap().ip() else { panic!("{probe:?}") };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let namespace = Arc::new(OwnedFd::from(std::thread::spawn(new_namespace).join().unwrap()));
        let pasta = super::super::Pasta::start(namespace.clone(), &[]).await.unwrap();
        let wiring = Arc::new(Mutex::new(Wiring::default()));
        let options = Options { to_host: true, ..OPTIONS };
        let mut changes = Wiring::update(wiring.clone(), namespace.clone(), options).await.unwrap();
        let interface = changes.network.interfaces[0].clone();
        let mac: [u8; 6] = interface.mac.clone().try_into().unwrap();
        let own = addresses(&interface).into_iter();
        let (own4, own6): (Vec<_>, Vec<_>) = own.partition(IpAddr::is_ipv4);
        let IpAddr::V4(own4) = own4[0] else { panic!("{own4:?}") };
        let own6 = own6.iter().find(|address| address.to_string().starts_with("fd")).unwrap().to_string();
        assert_eq!(changes.network.routes.iter().filter(|route| route.prefix_length == 0).count(), 2);

        let mut guest = File::from(changes.plug[0].queues.remove(0));
        let mut send = |frame: &[u8]| guest.write_all(&[&[0; 12], frame].concat()).unwrap();
        host.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        for destination in [[127, 0, 0, 1], [127, 1, 2, 3], [0; 4]] {
            send(&udp4(PEER_MAC, mac, own4.octets(), destination, port));
        }
        for destination in ["::1", "::", "::ffff:127.0.0.1", "::127.0.0.1"] {
            let payload = [&53_u16.to_be_bytes()[..], &port.to_be_bytes(), &[0, 12, 0, 0], b"data"].concat();
            send(&ipv6(PEER_MAC, mac, &own6, destination, 17, &payload));
        }
        let mut buffer = [0; 16];
        let heard = host.recv_from(&mut buffer);
        assert!(heard.is_err(), "{heard:?}");
        if let Some(host6) = host6 {
            host6.set_nonblocking(true).unwrap();
            let heard = host6.recv_from(&mut buffer);
            assert!(heard.is_err(), "{heard:?}");
        }
        send(&udp4(PEER_MAC, mac, own4.octets(), address.octets(), port));
        host.set_read_timeout(Some(FRAME_TIMEOUT)).unwrap();
        let (length, from) = host.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from.ip()), (&b"data"[..], IpAddr::V4(address)));
        host.send_to(b"answer", from).unwrap();
        let mut frame = [0; 2048];
        let answered = receives(b"answer", 12 + 14 + 20 + 8, |within| match guest.read(&mut frame) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            length => Some(within(&frame[..length.unwrap()])),
        });
        assert!(answered);
        drop(wiring);
        pasta.end().await;
    });
}

#[test]
fn what_changes_later_is_followed() {
    in_namespace(|peer| {
        let before = traces();
        let mut wired = wire(OPTIONS);
        let mut ends = Ends::of(&mut wired, peer);
        let from_new = udp4(PEER_MAC, GUEST_MAC, [10, 9, 0, 7], [10, 9, 0, 1], 80);
        ends.guest_sends(&from_new);
        assert!(!ends.peer_receives(&from_new), "an address that the interface does not have");
        ip("addr add 10.9.0.7/24 dev eth0");
        wired.update();
        assert!(wired.changes.plug.is_empty() && wired.changes.unplug.is_empty());
        assert_eq!(wired.changes.network.interfaces[0].addresses.len(), 4);
        ends.guest_sends(&from_new);
        assert!(ends.peer_receives(&from_new));
        ip("addr del 10.9.0.7/24 dev eth0");
        wired.update();
        ends.guest_sends(&from_new);
        assert!(!ends.peer_receives(&from_new));
        let from_own = udp4(PEER_MAC, GUEST_MAC, [10, 9, 0, 2], [10, 9, 0, 1], 80);
        ends.guest_sends(&from_own);
        assert!(ends.peer_receives(&from_own));

        // Another interface comes, the link goes down, and the first one goes.
        ip("link add eth1 type veth peer name peer1");
        ip("link set eth1 up");
        ip("addr add 10.8.0.2/24 dev eth1");
        wired.update();
        assert_eq!((wired.changes.plug.len(), wired.changes.plug[0].slot), (1, 1));
        ip("link set eth0 down");
        wired.update();
        assert_eq!(wired.changes.network.interfaces.len(), 2, "an interface that is down is still there");
        ip("link del eth0");
        wired.update();
        assert_eq!(wired.changes.unplug, [0]);
        drop(ends);
        wired.update();
        assert_eq!(wired.changes.network.interfaces.len(), 1);
        assert_eq!(wired.changes.network.interfaces[0].device.last(), Some(&1));
        assert!(!ip("-br link").contains("lazaret0"));
        ip("link del eth1");
        wired.update();
        drop(wired);
        assert_eq!(traces().2, before.2);
        assert!(!ip("-br link").contains("lazaret"));
    });
}

#[test]
fn an_interface_for_which_there_is_no_slot_is_left_out_with_its_routes() {
    in_namespace(|_| {
        let one = Options { slots: 1, ..OPTIONS };
        let mut wiring = Wiring::default();
        let first = wiring.update_here(one, &|_| Ok(())).unwrap();
        ip("link add eth1 type veth peer name peer1");
        ip("link set eth1 up");
        ip("addr add 10.8.0.2/24 dev eth1");
        let changes = wiring.update_here(one, &|_| Ok(())).unwrap();
        assert!(matches!(changes.failed[..], [NetworkError::TooMany { most: 1, .. }]), "{changes:?}");
        assert_eq!(changes.network, first.network);
    });
}

#[test]
fn a_change_is_heard_of() {
    in_namespace(|_| {
        let namespace = Arc::new(OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let monitor = super::super::Monitor::open(namespace).await.unwrap();
            // The links have only just come up.
            while tokio::time::timeout(Duration::from_millis(300), monitor.changed()).await.is_ok() {}
            ip("addr add 10.9.0.7/24 dev eth0");
            tokio::time::timeout(FRAME_TIMEOUT, monitor.changed()).await.unwrap().unwrap();
        });
    });
}

#[test]
fn what_a_killed_shim_leaves_is_undone_by_its_journal() {
    in_namespace(|_| {
        let before = traces();
        let state = tempfile::tempdir().unwrap();
        let file = state.path().join("network.json");
        let namespace = format!("/proc/self/task/{}/ns/net", nix::unistd::gettid()).into();
        let mut wiring = Wiring::new(Some(Journal { file: file.clone(), namespace }));
        let changes = wiring.update_here(OPTIONS, &|_| Ok(())).unwrap();
        assert_eq!(changes.plug.len(), 1);
        // As a killed process does: the taps go, and nothing else is undone.
        std::mem::forget(wiring);
        drop(changes);
        assert_ne!(traces(), before);
        super::super::undo(&file).unwrap();
        assert_eq!(traces(), before);
        super::super::undo(&file).unwrap();
        super::super::undo(&state.path().join("absent")).unwrap();
    });
}

#[test]
fn the_addresses_of_a_process_are_those_that_others_reach() {
    in_namespace(|_| {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let addresses = super::super::addresses(child.id().cast_signed()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(addresses, ["10.9.0.2/24", "fd09::2/64"]);
    });
}
