//! What the host tells the guest once: the time, randomness, the guest's name.

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;

/// Of `linux/random.h`; libc does not have them.
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

/// The most that is taken; the kernel's pool holds 32 bytes.
const MAX_ENTROPY: usize = 512;

/// `struct rand_pool_info` of `linux/random.h`, with its array.
#[repr(C)]
struct RandPoolInfo {
    entropy_count: libc::c_int,
    buf_size: libc::c_int,
    buf: [u8; MAX_ENTROPY],
}

/// Sets the wall clock.
///
/// # Errors
/// `EINVAL` for a time before 1970.
pub(crate) fn set_clock(realtime_ns: i64) -> nix::Result<()> {
    let time = TimeSpec::new(realtime_ns.div_euclid(1_000_000_000), realtime_ns.rem_euclid(1_000_000_000));
    clock_settime(ClockId::CLOCK_REALTIME, time)
}

/// Gives the kernel's generator the host's randomness and has it used at once.
///
/// # Errors
/// Of the system calls.
pub(crate) fn add_entropy(entropy: &[u8]) -> io::Result<()> {
    let used = &entropy[..entropy.len().min(MAX_ENTROPY)];
    let size = libc::c_int::try_from(used.len()).map_err(io::Error::other)?;
    let mut pool = RandPoolInfo { entropy_count: size * 8, buf_size: size, buf: [0; MAX_ENTROPY] };
    pool.buf[..used.len()].copy_from_slice(used);
    let random = OpenOptions::new().write(true).open("/dev/urandom")?;
    // SAFETY: RNDADDENTROPY reads `buf_size` bytes after two integers, all of which `pool` holds.
    Errno::result(unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, &raw const pool) })?;
    // SAFETY: RNDRESEEDCRNG takes no argument.
    Errno::result(unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) })?;
    Ok(())
}
