//! What is offered to the guest's driver, and what each offer rests on.
//!
//! A slot is offered before there is a tap, so an offer must be good for every tap of this host:
//!
//! * `GUEST_*` say what the driver *can* receive; a device need never send it. They are always offered, and a tap is asked
//!   for as many of them as its kernel knows (TUNSETOFFLOAD). What it does not know it does in software, before the frame
//!   reaches the device.
//! * `HOST_*` say what the driver *may* send, and must be kept. The kernel takes TCP segments by any tap; UDP segments
//!   from Linux 6.2 on, whatever the tap. So `HOST_USO` depends on the kernel's version alone. A distribution that ported
//!   it to an older kernel loses nothing but the offer.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};

/// Offered by every slot.
const ALWAYS: [u32; 17] = [
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_F_CTRL_VQ,
    // Every frame of the tap is delivered, so every filter a driver sets is kept as well as the device can (5.1.6.5.1).
    VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_MQ,
];

/// Feature bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Features(pub(super) u64);

impl Features {
    /// The offer of a device with `pairs` pairs of queues, whose MTU is known to the driver from the start if `mtu`.
    ///
    /// `VIRTIO_NET_F_MTU` makes Linux read the MTU once, when it finds the device, and keep it as the largest that can be
    /// set. Of a slot that is still empty it is not known then; without the feature, any up to 65,535 can be set.
    pub(super) fn offered(pairs: u16, mtu: bool, kernel: KernelVersion) -> Self {
        let mut bits = ALWAYS.iter().fold(0, |bits, bit| bits | 1 << bit);
        if pairs == 1 {
            bits &= !(1 << VIRTIO_NET_F_MQ);
        }
        if mtu {
            bits |= 1 << VIRTIO_NET_F_MTU;
        }
        if kernel >= UDP_SEGMENTS {
            bits |= 1 << VIRTIO_NET_F_HOST_USO;
        }
        Self(bits)
    }

    fn has(self, bit: u32) -> bool {
        self.0 & 1 << bit != 0
    }

    pub(super) fn host_checksum(self) -> bool {
        self.has(VIRTIO_NET_F_CSUM)
    }

    pub(super) fn host_tso4(self) -> bool {
        self.has(VIRTIO_NET_F_HOST_TSO4)
    }

    pub(super) fn host_tso6(self) -> bool {
        self.has(VIRTIO_NET_F_HOST_TSO6)
    }

    pub(super) fn host_ecn(self) -> bool {
        self.has(VIRTIO_NET_F_HOST_ECN)
    }

    pub(super) fn host_uso(self) -> bool {
        self.has(VIRTIO_NET_F_HOST_USO)
    }

    /// The driver takes packets whose checksum is not, or need not be, verified.
    pub(super) fn guest_checksum(self) -> bool {
        self.has(VIRTIO_NET_F_GUEST_CSUM)
    }

    pub(super) fn mergeable(self) -> bool {
        self.has(VIRTIO_NET_F_MRG_RXBUF)
    }

    /// What the driver takes, as `TUN_F_*` flags. Segments need the checksum (5.1.3.1), and the kernel knows UDP segments
    /// only for both versions of IP.
    pub(super) fn offloads(self) -> u32 {
        if !self.guest_checksum() {
            return 0;
        }
        let mut flags = libc::TUN_F_CSUM;
        if self.has(VIRTIO_NET_F_GUEST_TSO4) {
            flags |= libc::TUN_F_TSO4;
        }
        if self.has(VIRTIO_NET_F_GUEST_TSO6) {
            flags |= libc::TUN_F_TSO6;
        }
        if self.has(VIRTIO_NET_F_GUEST_ECN) && flags != libc::TUN_F_CSUM {
            flags |= libc::TUN_F_TSO_ECN;
        }
        if self.has(VIRTIO_NET_F_GUEST_USO4) && self.has(VIRTIO_NET_F_GUEST_USO6) {
            flags |= libc::TUN_F_USO4 | libc::TUN_F_USO6;
        }
        flags
    }
}

/// Whether a driver's choice can be served. One that takes the control queue but not the pairs of queues would have the
/// control queue in the place of the second pair (5.1.2). No driver is known that does so, and it is refused.
pub(super) fn acceptable(chosen: u64, offered: u64) -> bool {
    let chosen = Features(chosen);
    !Features(offered).has(VIRTIO_NET_F_MQ)
        || chosen.has(VIRTIO_NET_F_MQ)
        || !chosen.has(VIRTIO_NET_F_CTRL_VQ)
}

/// Major and minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KernelVersion(u32, u32);

/// From here on a tap takes and gives UDP segments (Linux 399e0827642f).
const UDP_SEGMENTS: KernelVersion = KernelVersion(6, 2);

impl KernelVersion {
    /// The running kernel's; 0.0 if it does not say.
    pub(super) fn running() -> Self {
        let name = nix::sys::utsname::uname();
        name.as_ref().ok().and_then(|name| Self::parse(name.release().to_str()?)).unwrap_or(Self(0, 0))
    }

    fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some(Self(numbers.next()?.ok()?, numbers.next()?.ok()?))
    }
}

#[cfg(test)]
#[path = "features_test.rs"]
mod tests;
