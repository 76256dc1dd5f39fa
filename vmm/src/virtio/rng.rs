//! virtio-rng (VIRTIO 1.2, 5.4): entropy of the host's.

use super::buffer::Buffer;
use super::{DeviceError, Queues, VirtioDevice, Watch};
use std::io;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

const QUEUE_SIZES: [u16; 1] = [64];
/// Bytes given for one request, whatever its size: a guest that wants more asks again.
const MAX_REQUEST: usize = 4096;

/// The device.
#[derive(Debug, Default)]
pub struct Rng;

impl VirtioDevice for Rng {
    fn id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn activate(&mut self, _: u64) -> Result<Vec<Watch>, DeviceError> {
        Ok(Vec::new())
    }

    fn notified(&mut self, index: usize, queues: &mut Queues) -> Result<(), DeviceError> {
        let memory = queues.memory().clone();
        while let Some(chain) = queues.pop(index)? {
            let (_, room) = Buffer::of(&memory, &chain);
            let mut bytes = [0; MAX_REQUEST];
            let bytes = bytes.get_mut(..room.len().min(MAX_REQUEST)).unwrap_or_default();
            fill(bytes)?;
            let written = u32::try_from(room.copy_from(bytes)).unwrap_or(u32::MAX);
            queues.push(index, chain.head_index(), written)?;
        }
        Ok(())
    }

    fn reset(&mut self) {}
}

/// getrandom(2) on the whole of `bytes`.
fn fill(mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: the pointer and the length are those of a live, exclusive slice.
        let filled = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        match usize::try_from(filled) {
            Ok(filled) => bytes = bytes.get_mut(filled..).unwrap_or_default(),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "rng_test.rs"]
mod tests;
