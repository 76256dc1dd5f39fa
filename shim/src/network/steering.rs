//! Which connections in a sandbox's network namespace go to the listeners of localhost.

use super::ports::{MASK, PORTS};
use lazaret_sk_lookup::{
    FAMILY, Instruction, LOCAL_IP4, LOCAL_IP6, LOCAL_PORT, PROTOCOL, R2, R6, R7, Steering, TO_END, and, jump,
    jump_if_equal, jump_unless_equal, load_u32, set, steer,
};
use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;

/// Places of the listeners.
const IPV4: i32 = 0;
const IPV6: i32 = 1;

/// Steers this thread's network namespace until what it returns is dropped: new TCP connections to 127.0.0.1 go to `ipv4`, those
/// to ::1 to `ipv6`. Without the latter, IPv6 is left alone.
///
/// # Errors
/// The kernel's.
pub(super) fn to_listeners(ipv4: &TcpListener, ipv6: Option<&TcpListener>) -> io::Result<Steering> {
    steer(&choose(), &[Some(ipv4.as_fd()), ipv6.map(AsFd::as_fd)])
}

/// The part of the eBPF program that chooses a listener.
fn choose() -> Vec<Instruction> {
    let is_ipv4 = [
        jump_unless_equal(R2, libc::AF_INET, TO_END),
        set(R7, IPV4),
        // Exactly 127.0.0.1: other addresses of 127.0.0.0/8 are used by programs in the namespace, such as dockerd's resolver.
        load_u32(R2, R6, LOCAL_IP4),
        jump_unless_equal(R2, i32::from_ne_bytes([127, 0, 0, 1]), TO_END),
    ];
    let is_ipv6 = [
        set(R7, IPV6),
        load_u32(R2, R6, LOCAL_IP6),
        jump_unless_equal(R2, 0, TO_END),
        load_u32(R2, R6, LOCAL_IP6 + 4),
        jump_unless_equal(R2, 0, TO_END),
        load_u32(R2, R6, LOCAL_IP6 + 8),
        jump_unless_equal(R2, 0, TO_END),
        load_u32(R2, R6, LOCAL_IP6 + 12),
        jump_unless_equal(R2, i32::from_ne_bytes([0, 0, 0, 1]), TO_END),
    ];
    let length = |part: &[Instruction]| i16::try_from(part.len()).unwrap_or(TO_END);
    let ours = [
        load_u32(R2, R6, PROTOCOL),
        jump_unless_equal(R2, libc::IPPROTO_TCP, TO_END),
        // A port of the block is the namespace's own.
        load_u32(R2, R6, LOCAL_PORT),
        and(R2, i32::from(MASK)),
        jump_if_equal(R2, i32::from(*PORTS.start()), TO_END),
        load_u32(R2, R6, FAMILY),
        jump_if_equal(R2, libc::AF_INET6, length(&is_ipv4) + 1),
    ];
    [&ours[..], &is_ipv4, &[jump(length(&is_ipv6))], &is_ipv6].concat()
}
