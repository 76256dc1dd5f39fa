//! Tap devices (Linux `Documentation/networking/tuntap.rst`).

use nix::errno::Errno;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

/// `IFF_TUN_EXCL` of `linux/if_tun.h`: a device of that name must not be there yet.
const EXCLUSIVE: u16 = 0x8000;
/// `struct virtio_net_hdr_v1` (VIRTIO 1.2, 5.1.6), which comes before each frame.
static HEADER_SIZE: libc::c_int = 12;

/// How the names of the taps begin.
pub(super) const TAP_PREFIX: &str = "lazaret";
/// How long a tap of the same name may take to go after its queues were closed, and how often it is tried meanwhile: a process that
/// was forked in between has them until its exec(2).
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
const BUSY_INTERVAL: Duration = Duration::from_millis(5);

/// A tap device. It is there until the last of its queues is closed.
#[derive(Debug)]
pub(super) struct Tap {
    pub name: String,
    pub index: u32,
    /// A queue for each pair of the virtio-net device.
    pub queues: Vec<OwnedFd>,
}

impl Tap {
    /// Makes a tap in this thread's network namespace.
    ///
    /// # Errors
    /// Of the system calls; `EEXIST` or `EBUSY` when an interface has the name.
    pub(super) fn create(name: String, queues: u16) -> io::Result<Self> {
        let several = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several;
        let flags = u16::try_from(flags).map_err(io::Error::other)?;
        let mut all = vec![open_first_queue(&name, flags | EXCLUSIVE)?];
        for _ in 1..queues {
            all.push(open_queue(&name, flags)?);
        }
        let index = nix::net::if_::if_nametoindex(name.as_str())?;
        Ok(Self { name, index, queues: all })
    }
}

fn open_first_queue(name: &str, flags: u16) -> io::Result<OwnedFd> {
    let begun = Instant::now();
    loop {
        match open_queue(name, flags) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy && begun.elapsed() < BUSY_TIMEOUT => {
                std::thread::sleep(BUSY_INTERVAL);
            }
            opened => return opened,
        }
    }
}

fn open_queue(name: &str, flags: u16) -> io::Result<OwnedFd> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    // SAFETY: all zeroes is a valid request: an empty name, no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    request.ifr_ifru.ifru_flags = libc::c_short::from_ne_bytes(flags.to_ne_bytes());
    // SAFETY: the kernel reads and writes the request, which is whole and outlives the call.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    // SAFETY: the kernel reads one integer, which outlives the call.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const HEADER_SIZE) })?;
    Ok(device.into())
}
