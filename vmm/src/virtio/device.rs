//! What a virtio device is to the transport and the event loop.

use super::Queues;
use std::io;
use std::os::fd::RawFd;
use vmm_sys_util::epoll::EventSet;

/// A device of the guest. All methods run on one thread of the VMM, one at a time.
pub trait VirtioDevice: Send {
    /// The virtio device id (VIRTIO 1.2, section 5).
    fn id(&self) -> u32;

    /// Device-specific feature bits offered to the driver. The transport adds those of the ring and `VERSION_1`.
    fn features(&self) -> u64 {
        0
    }

    /// The largest size of each queue, a power of two.
    fn queue_sizes(&self) -> &[u16];

    /// The device's configuration space, little endian; the transport answers reads beyond its end with zeros.
    fn config(&self) -> &[u8] {
        &[]
    }

    /// The driver is ready (`DRIVER_OK`) and accepted `features`. Returns the device's own descriptors to watch.
    ///
    /// # Errors
    /// When the device cannot work; the VM ends with that error.
    fn activate(&mut self, features: u64) -> Result<Vec<Watch>, DeviceError>;

    /// The driver kicked queue `index`.
    ///
    /// # Errors
    /// What the guest did wrong, or what failed on the host. It ends this VM, with the error as its cause.
    fn notified(&mut self, index: usize, queues: &mut Queues) -> Result<(), DeviceError>;

    /// A descriptor of the device's own is ready; returns changes to what is watched.
    ///
    /// # Errors
    /// As [`VirtioDevice::notified`].
    fn ready(
        &mut self,
        token: u32,
        events: EventSet,
        queues: &mut Queues,
    ) -> Result<Vec<Watch>, DeviceError> {
        let _ = (events, queues);
        Err(DeviceError::Host(io::Error::other(format!("unexpected event {token}"))))
    }

    /// The driver reset the device; it is as new.
    fn reset(&mut self);
}

/// A change to the descriptors a device has watched; `token` comes back in [`VirtioDevice::ready`].
///
/// The device owns the descriptor and removes the watch before it closes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// Watch, or go on watching with another event set.
    Set {
        fd: RawFd,
        token: u32,
        events: EventSet,
    },
    Remove {
        fd: RawFd,
    },
}

/// Why a device stopped working.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("virtqueue: {0}")]
    Queue(#[from] virtio_queue::Error),
    /// The driver broke the protocol in a way the device cannot answer.
    #[error("the guest's driver broke the protocol: {0}")]
    Driver(&'static str),
    #[error(transparent)]
    Host(#[from] io::Error),
}
