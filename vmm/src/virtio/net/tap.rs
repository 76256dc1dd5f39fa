//! One queue of a tap device of the host's (Linux `Documentation/networking/tuntap.rst`).

use super::header::HEADER_LEN;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

const HEADER_SIZE: libc::c_int = 12;
const _: () = assert!(HEADER_SIZE as usize == HEADER_LEN);
/// What a queue has to be: Ethernet frames, each behind a virtio header and nothing else.
const NEEDED: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Why a descriptor is no tap for the guest.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    #[error("it is not a queue of a tap device: {0}")]
    NotATap(io::Error),
    #[error("the tap device is not made with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR")]
    Flags,
    #[error("cannot set up the tap device: {0}")]
    SetUp(#[from] io::Error),
}

/// A queue of a tap device; it does not block.
#[derive(Debug)]
pub struct Tap(File);

impl Tap {
    /// Checks that `descriptor` is a queue of a tap, and sets the tap up for the device. It takes no capability.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn from_descriptor(descriptor: OwnedFd) -> Result<Self, TapError> {
        let tap = Self(descriptor.into());
        let flags = tap.flags().map_err(TapError::NotATap)?;
        if flags & NEEDED != NEEDED {
            return Err(TapError::Flags);
        }
        tap.ioctl_int(libc::TUNSETVNETHDRSZ, HEADER_SIZE)?;
        tap.ioctl_int(libc::TUNSETVNETLE, 1)?;
        let flags = nix::fcntl::fcntl(&tap.0, nix::fcntl::FcntlArg::F_GETFL).map_err(io::Error::from)?;
        let flags = nix::fcntl::OFlag::from_bits_retain(flags) | nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(&tap.0, nix::fcntl::FcntlArg::F_SETFL(flags)).map_err(io::Error::from)?;
        Ok(tap)
    }

    /// Opens the tap device `name` of this network namespace, or makes it: `queues` queues, or one if it was made with one.
    /// For a VMM that is in no jail.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn open(name: &str, queues: u16) -> Result<Vec<Self>, TapError> {
        let open = |flags: libc::c_int| -> Result<Self, TapError> {
            let tap = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
            let mut request = interface_request(name);
            request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(|_| TapError::Flags)?;
            // SAFETY: the kernel reads and writes the structure, which is of the size it expects.
            check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
            Self::from_descriptor(tap.into())
        };
        if queues > 1 {
            let first = open(NEEDED | libc::IFF_MULTI_QUEUE);
            // EINVAL: it is there, and has one queue.
            if !matches!(&first, Err(TapError::SetUp(error)) if error.raw_os_error() == Some(libc::EINVAL)) {
                let more = (1..queues).map(|_| open(NEEDED | libc::IFF_MULTI_QUEUE));
                return std::iter::once(first).chain(more).collect();
            }
        }
        Ok(vec![open(NEEDED)?])
    }

    /// Whether there is a tap device that delivers to this queue.
    pub(super) fn is_attached(&self) -> bool {
        self.flags().is_ok()
    }

    /// The flags the device was made with.
    fn flags(&self) -> io::Result<libc::c_int> {
        let mut request = interface_request("");
        // SAFETY: the kernel fills in the structure, which is of the size it expects.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
        // SAFETY: TUNGETIFF has filled in the flags.
        Ok(libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags }))
    }

    /// Asks the kernel for frames as `offloads` (`TUN_F_*`) allow, or as near as it comes: kernels before 6.2 know no UDP
    /// segments. It holds for all queues of the tap.
    pub(super) fn set_offloads(&self, offloads: u32) -> io::Result<()> {
        let set = |offloads: u32| {
            let argument = libc::c_ulong::from(offloads);
            // SAFETY: the argument is an integer.
            check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETOFFLOAD, argument) })
        };
        match set(offloads) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                set(offloads & !(libc::TUN_F_USO4 | libc::TUN_F_USO6))
            }
            result => result,
        }
    }

    /// Has the kernel deliver frames to this queue, or no longer. One that has that already is no error.
    pub(super) fn attach(&self, attached: bool) -> io::Result<()> {
        let mut request = interface_request("");
        let flag = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(flag).unwrap_or_default();
        // SAFETY: the kernel reads the structure, which is of the size it expects.
        match check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETQUEUE, &raw mut request) }) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            result => result,
        }
    }

    /// Reads a frame with its header; `WouldBlock` when there is none. Bytes beyond the vectors are lost.
    ///
    /// # Safety
    /// The kernel writes to the vectors: nothing that Rust knows of may be there.
    pub(super) unsafe fn read(&self, vectors: &[libc::iovec]) -> io::Result<usize> {
        let count = libc::c_int::try_from(vectors.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: as the caller vouches.
        retry(|| unsafe { libc::readv(self.0.as_raw_fd(), vectors.as_ptr(), count) })
    }

    /// Writes a frame with its header, whole.
    ///
    /// # Safety
    /// The kernel reads the vectors: they must name mapped memory.
    pub(super) unsafe fn write(&self, vectors: &[libc::iovec]) -> io::Result<usize> {
        let count = libc::c_int::try_from(vectors.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: as the caller vouches.
        retry(|| unsafe { libc::writev(self.0.as_raw_fd(), vectors.as_ptr(), count) })
    }

    fn ioctl_int(&self, request: libc::Ioctl, value: libc::c_int) -> io::Result<()> {
        // SAFETY: the kernel reads one integer.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), request, &raw const value) })
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The MTU of the interface `name` of this network namespace.
///
/// # Errors
/// The kernel's.
pub fn mtu_of(name: &str) -> io::Result<u16> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut request = interface_request(name);
    // SAFETY: the kernel fills in the structure, which is of the size it expects.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) })?;
    // SAFETY: SIOCGIFMTU has filled in the MTU.
    u16::try_from(unsafe { request.ifr_ifru.ifru_mtu }).map_err(io::Error::other)
}

/// A request that names `name`, cut off at the 15 bytes of an interface's name.
pub(super) fn interface_request(name: &str) -> libc::ifreq {
    // SAFETY: all zeroes is a valid request: an empty name, no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *place = libc::c_char::from_le_bytes([byte]);
    }
    request
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn retry(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}
