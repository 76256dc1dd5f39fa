//! The configuration space of a device, which the device may change while a driver reads it (VIRTIO 1.2, 2.5).

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The bytes, little endian, and how often they have changed.
#[derive(Debug, Default)]
pub struct ConfigSpace(Mutex<Content>);

#[derive(Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    generation: u32,
}

impl ConfigSpace {
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Mutex::new(Content { bytes, generation: 0 }))
    }

    /// Reads at `offset`; what is beyond the end reads as zeros.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let content = self.content();
        let bytes = usize::try_from(offset).ok().and_then(|offset| content.bytes.get(offset..));
        data.iter_mut().zip(bytes.unwrap_or_default()).for_each(|(byte, config)| *byte = *config);
    }

    /// Differs from what it was when the bytes have changed: a driver that reads it before and after knows whether what it
    /// has read belongs together.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.content().generation
    }

    /// Changes all bytes at once. The driver is told by [`Queues::config_changed`](super::Queues::config_changed).
    pub fn replace(&self, bytes: &[u8]) {
        let mut content = self.content();
        bytes.clone_into(&mut content.bytes);
        content.generation = content.generation.wrapping_add(1);
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
