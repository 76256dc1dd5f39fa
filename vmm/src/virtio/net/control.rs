//! The control queue: the driver's commands (VIRTIO 1.2, 5.1.6.5), and the news of the link.

use super::features::Features;
use super::link::{Link, Mac, Refused};
use super::pair::TOO_OFTEN;
use crate::virtio::buffer::Buffer;
use crate::virtio::{DeviceError, Queues, VirtioDevice, Watch};
use std::io;
use std::os::fd::AsRawFd;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_MQ,
    VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_NOBCAST, VIRTIO_NET_ERR,
    VIRTIO_NET_OK,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

/// Drivers have one command under way.
pub(super) const QUEUE_SIZES: [u16; 1] = [16];
/// Bytes of class and command, and of what is read of a command after them.
const HEADER: usize = 2;
const ARGUMENT: usize = 6;

/// The control queue's half of the device.
pub(super) struct Control {
    link: Link,
    wake: EventFd,
}

impl Control {
    pub(super) fn new(link: Link, pairs: u16) -> io::Result<Self> {
        Ok(Self { wake: link.wake(pairs)?, link })
    }

    /// Does what the command asks for.
    fn execute(&self, class: u8, command: u8, argument: &[u8]) -> Result<(), Refused> {
        match (u32::from(class), u32::from(command)) {
            // The device delivers every frame of the tap, which is all that a filter may not prevent (5.1.6.5.1).
            (VIRTIO_NET_CTRL_RX, ..=VIRTIO_NET_CTRL_RX_NOBCAST)
            | (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) => Ok(()),
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => {
                self.link.set_mac(Mac::try_from(argument).map_err(|_| Refused)?)
            }
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
                let pairs = <[u8; 2]>::try_from(argument).map_err(|_| Refused)?;
                self.link.set_pairs(u16::from_le_bytes(pairs))
            }
            _ => Err(Refused),
        }
    }
}

impl VirtioDevice for Control {
    fn id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn activate(&mut self, features: u64) -> Result<Vec<Watch>, DeviceError> {
        self.link.activate(Features(features)).map_err(|_| TOO_OFTEN)?;
        // A change since the device was made is still to be read from it, and then told: the driver may have looked before.
        Ok(vec![Watch::Set { fd: self.wake.as_raw_fd(), token: 0, events: EventSet::IN }])
    }

    fn notified(&mut self, index: usize, queues: &mut Queues) -> Result<(), DeviceError> {
        let memory = queues.memory().clone();
        while let Some(chain) = queues.pop(index)? {
            let (command, answer) = Buffer::of(&memory, &chain);
            let mut bytes = [0; HEADER + ARGUMENT];
            let length = command.copy_to(&mut bytes);
            // A table of addresses is longer than what is looked at.
            let done = match bytes.get(..length) {
                Some([class, code, argument @ ..]) => self.execute(*class, *code, argument),
                _ => Err(Refused),
            };
            let ack = if done.is_ok() { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
            let written = answer.copy_from(&ack.to_le_bytes()[..1]);
            queues.push(index, chain.head_index(), u32::try_from(written).unwrap_or(u32::MAX))?;
        }
        Ok(())
    }

    fn ready(&mut self, _: u32, _: EventSet, queues: &mut Queues) -> Result<Vec<Watch>, DeviceError> {
        // An error says that another event has taken it.
        let _ = self.wake.read();
        queues.config_changed()?;
        Ok(Vec::new())
    }

    fn reset(&mut self) {
        self.link.reset();
    }
}

#[cfg(test)]
#[path = "control_test.rs"]
mod tests;
