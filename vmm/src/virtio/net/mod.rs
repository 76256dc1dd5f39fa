//! virtio-net (VIRTIO 1.2, 5.1): a slot for a network interface.
//!
//! ```text
//!                     Net
//!   main loop    ┌─ Control ──► Link ◄── plug, unplug ── the shim
//!                │                │ wake
//!   net0, net1 … └─ Pair … ◄──────┘
//!                    Rx ◄── readv(2) ── tap's queue
//!                    Tx ──► writev(2) ─►
//! ```
//!
//! virtio-mmio has no hotplug, so a slot is there from the boot on, with its link down, and a tap is plugged into it later.
//! A pair of queues is served by a thread of its own: the first pairs of all slots by one, the second ones by another.
//! Packets are moved between guest memory and the tap by one system call each, without a copy or an allocation.
//!
//! **Who is trusted with what.** The guest writes rings, chains, headers and commands. A header or a length that makes no
//! sense costs the guest that packet; a ring or chain that makes none ends its VM, as for every device. The kernel parses
//! the header and the frame, so it is shown
//! a judged copy of the header ([`header`]), with nothing in it that was not negotiated and checked. A turn ends after 256
//! chains or frames. What a guest makes the host do beyond packets (TUNSETOFFLOAD, TUNSETQUEUE) is rationed ([`link`]).
//! Frames are passed on whatever addresses they bear: a host that must not believe a guest's address enforces it on its own
//! side of the tap.

mod control;
#[cfg(test)]
mod driver;
mod features;
mod header;
mod link;
mod pair;
mod rx;
mod tap;
#[cfg(test)]
mod test_support;
mod tx;
mod vectors;

pub use link::{Link, Mac, PlugError};
pub use tap::{Tap, TapError, mtu_of};

use super::{Shape, VirtioDevice};
use control::Control;
use features::{Features, KernelVersion, acceptable};
use pair::Pair;
use std::io;
use std::sync::Arc;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;

/// What serves a device, by its queues.
pub struct Parts {
    /// Receive and transmit queue each.
    pub pairs: Vec<Box<dyn VirtioDevice>>,
    /// The control queue.
    pub control: Box<dyn VirtioDevice>,
}

/// A slot that is being put together.
pub struct Net {
    link: Link,
    pairs: u16,
}

impl Net {
    /// The slot with this number, of `pairs` pairs of queues; its link is down.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn new(slot: u8, pairs: u16) -> io::Result<Self> {
        // Until something is plugged in: locally administered, and told apart by the slot. Linux takes no zero for one.
        let link = Link::new(pairs, [2, 0, 0, 0, 0, slot])?;
        Ok(Self { link, pairs })
    }

    /// The handle to plug into the slot.
    #[must_use]
    pub fn link(&self) -> Link {
        self.link.clone()
    }

    /// What the driver is told. If something is plugged in by now, that is its MTU, too.
    #[must_use]
    pub fn shape(&self) -> Shape {
        let mut queue_sizes = pair::QUEUE_SIZES.repeat(self.pairs.into());
        queue_sizes.extend(control::QUEUE_SIZES);
        Shape {
            id: VIRTIO_ID_NET,
            features: Features::offered(self.pairs, self.link.mtu().is_some(), KernelVersion::running()).0,
            config: Arc::clone(self.link.config()),
            queue_sizes,
            acceptable,
        }
    }

    /// The device's parts, in the order of their queues: the pairs, then the control queue.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn into_parts(self) -> io::Result<Parts> {
        let pairs = (0..self.pairs).map(|number| {
            Pair::new(number, self.link.clone()).map(|pair| Box::new(pair) as Box<dyn VirtioDevice>)
        });
        let pairs = pairs.collect::<io::Result<_>>()?;
        Ok(Parts { pairs, control: Box::new(Control::new(self.link, self.pairs)?) })
    }
}

#[cfg(test)]
#[path = "hostile_test.rs"]
mod hostile;
#[cfg(test)]
#[path = "measure_test.rs"]
mod measure;
#[cfg(test)]
#[path = "net_test.rs"]
mod tests;
