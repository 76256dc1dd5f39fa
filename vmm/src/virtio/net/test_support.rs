//! A real tap in a network namespace of the test's own, and the host's side of it.
#![allow(clippy::cast_possible_truncation, reason = "sizes a test chose")]

use super::header::HEADER_LEN;
use super::tap::{Tap, interface_request};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long anything a test waits for may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);
pub(super) const TAP: &str = "tap0";
pub(super) const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x10];
pub(super) const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x20];
pub(super) const HOST_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(super) const GUEST_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// Runs `test` on a thread in a network namespace of its own; not at all, with the reason printed, without root.
pub(super) fn in_namespace(test: impl FnOnce() + Send) {
    if !nix::unistd::geteuid().is_root() || !fs::exists("/dev/net/tun").unwrap() {
        let _ = writeln!(io::stderr(), "skipped: a tap needs root and /dev/net/tun");
        return;
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            // No neighbour discovery among the frames that are counted.
            for which in ["all", "default"] {
                fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1").unwrap();
            }
            test();
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

pub(super) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_whitespace()).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// Tries again until it works: the `ip` of a test beside this one holds, between its fork and its exec, what was just closed.
fn until<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(begun.elapsed() < DEADLINE, "not in {DEADLINE:?}");
        std::thread::yield_now();
    }
}

/// Whether this network namespace has an interface of this name.
pub(super) fn has_interface(name: &str) -> bool {
    super::mtu_of(name).is_ok()
}

/// A tap that is up, with an address of the host's and a fixed neighbour, and its queues.
pub(super) fn tap(queues: u16) -> Vec<Tap> {
    until(|| (!has_interface(TAP)).then_some(()));
    let taps = Tap::open(TAP, queues).unwrap();
    let mac = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    ip(&format!("link set {TAP} address {} up", mac(HOST_MAC)));
    ip(&format!("addr add 10.0.0.1/24 dev {TAP}"));
    ip(&format!("neigh add 10.0.0.2 lladdr {} dev {TAP}", mac(GUEST_MAC)));
    taps
}

/// The host's side: frames with their virtio headers, past the IP stack.
pub(super) struct Wire(OwnedFd);

impl Wire {
    pub(super) fn new() -> Self {
        let protocol = i32::from((libc::ETH_P_ALL as u16).to_be());
        // SAFETY: plain system calls, on structures of the size they are told.
        unsafe {
            let raw = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol);
            assert!(raw >= 0, "{}", io::Error::last_os_error());
            let fd: OwnedFd = std::os::fd::FromRawFd::from_raw_fd(raw);
            let mut request = interface_request(TAP);
            assert_eq!(libc::ioctl(raw, libc::SIOCGIFINDEX, &raw mut request), 0);
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
            address.sll_ifindex = request.ifr_ifru.ifru_ifindex;
            let size = size_of_val(&address) as u32;
            assert_eq!(libc::bind(raw, (&raw const address).cast(), size), 0);
            for (option, value) in [(libc::PACKET_VNET_HDR, 1i32), (libc::PACKET_IGNORE_OUTGOING, 1)] {
                let set = libc::setsockopt(raw, libc::SOL_PACKET, option, (&raw const value).cast(), 4);
                assert_eq!(set, 0, "{}", io::Error::last_os_error());
            }
            // Room for all that a test sends before it looks.
            let room: i32 = 64 << 20;
            let set =
                libc::setsockopt(raw, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, (&raw const room).cast(), 4);
            assert_eq!(set, 0, "{}", io::Error::last_os_error());
            let timeout = libc::timeval { tv_sec: 5, tv_usec: 0 };
            let size = size_of_val(&timeout) as u32;
            libc::setsockopt(raw, libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const timeout).cast(), size);
            Self(fd)
        }
    }

    /// Sends `frame` to the tap, and so to the guest. The header has 10 bytes here.
    pub(super) fn send(&self, header: [u8; 10], frame: &[u8]) {
        let packet = [&header[..], frame].concat();
        // SAFETY: the pointer and the length are those of a live buffer.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0) };
        assert_eq!(sent, packet.len() as isize, "{}", io::Error::last_os_error());
    }

    /// The next frame that came from the guest, with its header; waits for it.
    pub(super) fn receive(&self) -> ([u8; 10], Vec<u8>) {
        let mut packet = vec![0; 70_000];
        // SAFETY: the pointer and the length are those of a live, exclusive buffer.
        let got = unsafe { libc::recv(self.0.as_raw_fd(), packet.as_mut_ptr().cast(), packet.len(), 0) };
        assert!(got > 0, "no frame: {}", io::Error::last_os_error());
        packet.truncate(got as usize);
        let frame = packet.split_off(10);
        (packet.try_into().unwrap(), frame)
    }
}

/// A UDP socket of the host's on `port`.
pub(super) fn udp(port: u16) -> UdpSocket {
    let socket = until(|| UdpSocket::bind((HOST_IP, port)).ok());
    socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
    socket
}

/// The ones' complement sum of `bytes`.
pub(super) fn sum(bytes: &[u8], start: u32) -> u16 {
    let words =
        bytes.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)])));
    let mut sum = words.fold(start, |sum, word| sum.wrapping_add(word));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn pseudo_sum(from: [u8; 4], to: [u8; 4], protocol: u8, length: usize) -> u16 {
    let bytes = [&from[..], &to[..], &[0, protocol], &(length as u16).to_be_bytes()].concat();
    sum(&bytes, 0)
}

/// Where the IP payload starts in a frame.
pub(super) const IP_PAYLOAD: usize = 34;

/// A frame of IPv4. The transport's checksum, at `checksum` of its header, is left for who segments: it holds the
/// pseudo header's sum (VIRTIO 1.2, 5.1.6.2).
fn frame(to_guest: bool, protocol: u8, transport: &[u8], checksum: usize) -> Vec<u8> {
    let ends = [(HOST_MAC, HOST_IP.octets()), (GUEST_MAC, GUEST_IP.octets())];
    let ((from_mac, from), (to_mac, to)) = if to_guest { (ends[0], ends[1]) } else { (ends[1], ends[0]) };
    let length = (20 + transport.len()) as u16;
    let mut ip =
        [&[0x45, 0][..], &length.to_be_bytes(), &[0, 1, 0, 0, 64, protocol, 0, 0], &from, &to].concat();
    let ip_sum = !sum(&ip, 0);
    ip[10..12].copy_from_slice(&ip_sum.to_be_bytes());
    let mut transport = transport.to_vec();
    let pseudo = pseudo_sum(from, to, protocol, transport.len());
    transport[checksum..checksum + 2].copy_from_slice(&pseudo.to_be_bytes());
    [&to_mac[..], &from_mac, &[8, 0], &ip, &transport].concat()
}

/// Whether the transport's checksum in a frame is complete and right.
pub(super) fn checksum_is_right(frame: &[u8]) -> bool {
    let (from, to) = (frame[26..30].try_into().unwrap(), frame[30..34].try_into().unwrap());
    let transport = &frame[IP_PAYLOAD..];
    sum(transport, pseudo_sum(from, to, frame[23], transport.len()).into()) == 0xffff
}

pub(super) fn udp_frame(to_guest: bool, from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let udp = [&from.to_be_bytes()[..], &to.to_be_bytes(), &length.to_be_bytes(), &[0, 0], payload].concat();
    frame(to_guest, 17, &udp, 6)
}

pub(super) fn tcp_frame(to_guest: bool, payload: &[u8]) -> Vec<u8> {
    let header =
        [&[0x30, 0x39, 0xd4, 0x31][..], &[0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]];
    frame(to_guest, 6, &[&header.concat()[..], payload].concat(), 16)
}

/// A header as a driver writes it: the checksum at `csum_offset` of the IP payload is to be made, and segments if
/// `gso` (type, size).
pub(super) fn vnet_header(csum_offset: u16, gso: Option<(u8, u16)>) -> [u8; HEADER_LEN] {
    let (gso_type, gso_size) = gso.unwrap_or((0, 0));
    super::header::Header {
        flags: 1,
        gso_type,
        gso_size,
        hdr_len: 54,
        csum_start: IP_PAYLOAD as u16,
        csum_offset,
    }
    .to_bytes()
}
